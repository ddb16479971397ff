/* SPDX-License-Identifier: MIT */
/* slopes.c: what roundings of tensors that were not given make of a weighted sum behind them,
 * against the derivatives written out here: three operators, each with one hidden input. */
#include "t.h"

#include "judge/verdict.h"

#include <math.h>
#include <string.h>

/* One token's worth of everything is at most this. */
enum { T = 2, HD = 4, I = 5, MOST = T * I };

static const q3_config config = {
    .num_hidden_layers = 1, .hidden_size = 3, .intermediate_size = I, .num_attention_heads = 1,
    .num_key_value_heads = 1, .head_dim = HD, .vocab_size = 8, .rms_norm_eps = 1e-6,
    .decoder_sparse_step = 1, .max_position_embeddings = 64};

static double nothing[MOST];
static float no_noise[MOST];

/* Given by the other: all of it is judged elsewhere, and nothing behind it matters. */
static void give(walk *w, q3_tap_id id, float *values)
{
    w->given[id] = true;
    w->tap[id] = values;
    w->var[id] = nothing;
}

static void hide(walk *w, q3_tap_id id, float *values, float *sd)
{
    w->tap[id] = values;
    w->var[id] = nothing;
    w->own_sd[id] = sd;
    w->own_noise[id] = no_noise;
}

static bool near(double x, double want)
{
    return fabs(x - want) <= 1e-12 * fabs(want);
}

/* sum of slope act up, act hidden: its derivative by act is slope up. The roundings' variances add;
 * what they may have in common is 0.3 of each deviation, away from 0. */
static void test_product(void)
{
    walk w = {.config = &config, .dtype = Q3_BF16, .T = T};
    float act[MOST], up[MOST], gate[MOST], sd[MOST];
    double slope[MOST], var = 0, common = 0;
    spread found;
    for (size_t i = 0; i < MOST; i++) {
        act[i] = i % 3 == 0 ? -0.25f : 0.5f + (float)i;
        up[i] = (float)i - 3.5f;
        gate[i] = 1.0f;
        sd[i] = 0x1p-9f * (float)(i + 1);
        slope[i] = i % 2 == 0 ? 1.5 : -0.75;
        double part = slope[i] * (double)up[i] * (double)sd[i];
        var += part * part;
        common += 0.3 * (act[i] < 0 ? -part : part);
    }
    give(&w, Q3_TAP_DENSE_GATE_PROJ, gate);
    give(&w, Q3_TAP_DENSE_UP_PROJ, up);
    hide(&w, Q3_TAP_DENSE_ACT_FN, act, sd);
    CHECK(q3_gain_reach(&found, &w, Q3_TAP_DENSE_DOWN_PROJ_INPUT, slope) && found.known);
    CHECKF(near(found.var, var), "variance %g, want %g", found.var, var);
    CHECKF(near(found.bias, fabs(common)), "bias %g, want %g", found.bias, fabs(common));
}

/* sum of slope q_rope, both tables hidden: a kernel that keeps them in float32 shifts the sum by
 * the slope of each table times what rounding took from it. */
static void test_tables(void)
{
    enum { HALF = HD / 2, START = 5 };
    float inv_freq[HALF] = {1.0f, 0.125f}, x[T * HD], cos_[T * HD], sin_[T * HD];
    walk w = {.config = &config, .dtype = Q3_BF16, .T = T, .start = START, .inv_freq = inv_freq,
              .scaling = 1.0f};
    double slope[T * HD], by_cos = 0, by_sin = 0;
    spread found;
    for (size_t i = 0; i < T * HD; i++) {
        x[i] = 1.0f + (float)i;
        slope[i] = i % 3 == 0 ? -2.0 : 1.25;
    }
    for (size_t i = 0; i < T * HD; i++) {
        size_t d = i % HD, other = d < HALF ? i + HALF : i - HALF;
        float angle = (float)(START + i / HD) * inv_freq[d % HALF];
        double turned = d < HALF ? -(double)x[other] : (double)x[other];
        float c = (float)cos((double)angle), s = (float)sin((double)angle);
        cos_[i] = q3_round((double)c, Q3_BF16);
        sin_[i] = q3_round((double)s, Q3_BF16);
        by_cos += slope[i] * (double)x[i] * ((double)c - (double)cos_[i]);
        by_sin += slope[i] * turned * ((double)s - (double)sin_[i]);
    }
    give(&w, Q3_TAP_Q_NORM, x);
    hide(&w, Q3_TAP_COS, cos_, no_noise);
    hide(&w, Q3_TAP_SIN, sin_, no_noise);
    CHECK(q3_gain_reach(&found, &w, Q3_TAP_Q_ROPE, slope) && found.known);
    CHECK(found.var == 0 && fabs(by_cos) + fabs(by_sin) > 1e-3);
    CHECKF(fabs(found.bias - fabs(by_cos) - fabs(by_sin)) < 1e-9, "bias %g, want %g", found.bias,
           fabs(by_cos) + fabs(by_sin));
}

/* sum of slope o_proj.input, probabilities hidden, scores given: two roundings of a probability
 * differ by a variance of ulp^2 / 6, times the square of the sum's derivative by it, slope v. What
 * float32 sums add is 2^-16 of an ulp, here nothing. */
static void test_probs(void)
{
    float q[T * HD] = {0}, k[T * HD] = {0}, v[T * HD];
    float scores[T * T] = {0.5f, 0, 0.25f, -0.75f}, row[T] = {0}, probs[T] = {0};
    double scores_var[T] = {0}, probs_var[T] = {0}, noise[T * HD] = {0}, var[T * HD] = {0};
    double slope[T * HD], want = 0;
    walk w = {.config = &config, .dtype = Q3_BF16, .T = T, .scores = row, .probs = probs,
              .scores_var = scores_var, .probs_var = probs_var, .values_noise = noise,
              .values_var = var};
    spread found;
    for (size_t i = 0; i < T * HD; i++) {
        v[i] = 1.0f + (float)(i * i);
        slope[i] = i < HD ? 0.0 : 0.5 + (double)i; /* of the second token, which sees both keys */
    }
    double e = exp(-1.0), p[T] = {1 / (1 + e), e / (1 + e)};
    for (size_t s = 0; s < T; s++) {
        double by_prob = 0, ulp = q3_ulp(p[s], Q3_BF16);
        for (size_t d = 0; d < HD; d++) by_prob += slope[HD + d] * (double)v[s * HD + d];
        want += by_prob * by_prob * ulp * ulp / 6;
    }
    give(&w, Q3_TAP_Q_ROPE, q);
    give(&w, Q3_TAP_K_ROPE, k);
    give(&w, Q3_TAP_V_PROJ, v);
    give(&w, Q3_TAP_SCORES, scores);
    CHECK(q3_gain_reach(&found, &w, Q3_TAP_O_PROJ_INPUT, slope) && found.known);
    CHECKF(fabs(found.var - want) <= 1e-3 * want, "variance %g, want %g", found.var, want);
}

int main(void)
{
    test_product();
    test_tables();
    test_probs();
    return t_done("slopes");
}
