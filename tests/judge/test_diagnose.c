/* SPDX-License-Identifier: MIT */
/* The diagnosis: mistakes made here in plain loops, each of which must be named, and no other.
 *
 * test_diagnose GOLDEN
 *
 * A case makes one tensor of a world (plain.h) wrong, in float64 from the taps before it; the bound
 * is a few ulp. Honest tensors, roundings of chance and noise must get no name. Two pairs of
 * mistakes are the same numbers, and have one name: softmax over the chosen logits and renormalised
 * probabilities; float16 and TF32 operands in float16's normal range. */
#include "troubles.h"

/* ==== Mistakes ================================================================================ */

static void make_embedding(const world *w, float *y, int variant)
{
    float *e = widened(w, w->f.weights->embed_tokens, w->V * w->M);
    for (size_t i = 0; i < T * w->M; i++) {
        size_t id = (size_t)w->ids[i / w->M] + (variant == 1);
        y[i] = e[id * w->M + i % w->M];
        if (variant == 0) y[i] = D(w, (double)y[i] * (double)D(w, sqrt((double)w->M)));
    }
    free(e);
}

static void make_table(const world *w, float *y, int variant)
{
    float *other = memory(T * w->hd, sizeof *other);
    double theta = w->c->rope.rope_theta;
    switch (variant) {
    case 0: table(w, y, other, theta, position_next); break;
    case 1: table(w, y, other, theta, position_zero); break;
    case 2: table(w, y, other, theta, position_restart); break;
    case 3: table(w, y, other, 1e4, position_right); break;
    case 4: table(w, y, other, 42000, position_right); break;
    case 5: table(w, other, y, theta, position_right); break;
    case 6: table(w, y, other, 1e6, position_right); break; /* of yarn's world */
    default: break;
    }
    free(other);
    for (size_t t = 0; t < T; t++)
        for (size_t j = 0; j < w->hd && variant == 7; j++) {
            double f = 1 / (double)(float)pow(theta,
                                              2.0 * (double)(j % (w->hd / 2)) / (double)w->hd);
            double low = (double)q3_round((double)(float)f, Q3_BF16);
            y[t * w->hd + j] = D(w, cos((double)(float)((double)(START + t) * low)));
        }
}

/* YaRN as its paper has it, but the ramp the other way round; variant 1: cos not scaled. */
static void make_yarn(const world *w, float *y, int variant)
{
    const q3_rope *r = &w->c->rope;
    double hd = (double)w->hd, theta = r->rope_theta, length = r->original_max_position_embeddings;
    double scale = variant == 1 ? 1 : r->has_attention_factor ? r->attention_factor
        : 0.1 * log(r->factor) + 1;
    double low = hd * log(length / (r->beta_fast * 2 * acos(-1))) / (2 * log(theta));
    double high = hd * log(length / (r->beta_slow * 2 * acos(-1))) / (2 * log(theta));
    if (r->truncate) low = floor(low), high = ceil(high);
    low = fmax(low, 0), high = fmin(high, hd - 1);
    for (size_t t = 0; t < T; t++)
        for (size_t j = 0; j < w->hd / 2; j++) {
            double ramp = fmin(1, fmax(0, ((double)j - low) / fmax(high - low, 0.001)));
            double fast = pow(theta, -2 * (double)j / hd);
            double f = fast * ramp + fast / r->factor * (1 - ramp);
            double c = cos((double)(START + t) * f) * scale;
            y[t * w->hd + j] = y[t * w->hd + w->hd / 2 + j] = D(w, c);
        }
}

static void make_rope(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_Q_NORM], *c = w->tap[Q3_TAP_COS], *s = w->tap[Q3_TAP_SIN];
    float *own = memory(T * w->H * w->hd, sizeof *own), *c2 = memory(T * w->hd, sizeof *c2);
    float *s2 = memory(T * w->hd, sizeof *s2), *g = widened(w, w->l->q_norm, w->hd);
    switch (variant) {
    case 0: rope(w, y, x, c, s, w->H, true, 1); break;
    case 1: rope(w, own, x, c, s, w->H, false, 1), rope(w, y, own, c, s, w->H, false, 1); break;
    case 2: memcpy(y, x, T * w->H * w->hd * sizeof *y); break;
    case 3: rope(w, y, x, c, s, w->H, false, -1); break;
    case 4:
        rope(w, y, x, c, s, w->H, false, 1);
        for (size_t i = 0; i < T * w->H * w->hd; i++)
            if (i % w->hd >= w->hd / 2) y[i] = x[i];
        break;
    case 5: /* norm behind */
        rope(w, own, w->tap[Q3_TAP_Q_PROJ], c, s, w->H, false, 1);
        norm(w, y, own, g, T * w->H, w->hd, (norm_options){.eps = plain_eps(w)});
        break;
    case 6: table(w, c2, s2, 1e4, position_right), rope(w, y, x, c2, s2, w->H, false, 1); break;
    case 7: table(w, c2, s2, w->c->rope.rope_theta, position_restart),
        rope(w, y, x, c2, s2, w->H, false, 1); break;
    default: rope(w, y, w->tap[Q3_TAP_Q_PROJ], c, s, w->H, false, 1); break;
    }
    free(own), free(c2), free(s2), free(g);
}

static void make_norm(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_EMBED_TOKENS];
    float *g = widened(w, w->l->input_layernorm, w->M);
    float *other = widened(w, w->l->post_attention_layernorm, w->M);
    norm_options o = {.eps = plain_eps(w)};
    switch (variant) {
    case 0: o.eps = (double)(float)1e-5; break;
    case 1: o.eps = 0; break;
    case 2: o.outside = true; break;
    case 3: o.plus = 1; break;
    case 4: o.centred = true; break;
    case 5: o.summed = true; break;
    case 6: o.late = true; break;
    case 7: o.eps = 3e-5; break;
    default: break;
    }
    norm(w, y, x, variant == 8 ? NULL : variant == 9 ? other : g, T, w->M, o);
    if (variant == 10) memcpy(y, x, T * w->M * sizeof *y);
    if (variant == 11) {
        memcpy(other, y, w->M * sizeof *y);
        for (size_t t = 0; t < T; t++) {
            memcpy(other, y + t * w->M, w->M * sizeof *y);
            norm(w, y + t * w->M, other, g, 1, w->M, o);
        }
    }
    free(g), free(other);
}

static void make_head_norm(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_Q_PROJ];
    float *g = widened(w, w->l->q_norm, w->hd), *k = widened(w, w->l->k_norm, w->hd);
    float *own = memory(T * w->H * w->hd, sizeof *own);
    size_t n = w->H * w->hd;
    if (variant == 0) norm(w, y, x, k, T * w->H, w->hd, (norm_options){.eps = plain_eps(w)});
    if (variant == 1) {
        norm(w, own, x, NULL, T, n, (norm_options){.eps = plain_eps(w)});
        for (size_t i = 0; i < T * n; i++) y[i] = D(w, (double)own[i] * (double)g[i % w->hd]);
    }
    if (variant == 2) {
        rope(w, own, x, w->tap[Q3_TAP_COS], w->tap[Q3_TAP_SIN], w->H, false, 1);
        norm(w, y, own, g, T * w->H, w->hd, (norm_options){.eps = plain_eps(w)});
    }
    if (variant == 3) memcpy(y + 7 * n, x + 7 * n, (T - 7) * n * sizeof *y);
    if (variant == 4) {
        memcpy(own, y, T * n * sizeof *own);
        rope(w, y, own, w->tap[Q3_TAP_COS], w->tap[Q3_TAP_SIN], w->H, false, 1);
    }
    free(g), free(k), free(own);
}

/* A scaled format of a row or a tensor. */
static void quantise(const world *w, float *weight, size_t n, double most, bool fp8)
{
    float scale = (float)(most / (fp8 ? 448 : 127));
    for (size_t i = 0; i < n; i++) {
        double u = (double)(float)((double)weight[i] / (double)scale);
        weight[i] = D(w, (double)(float)((fp8 ? e4m3(u) : rint(u)) * (double)scale));
    }
}

static double largest(const float *x, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs((double)x[i]));
    return most;
}

static float rounded_operand(double x, int variant)
{
    float y = (float)x;
    uint32_t u;
    memcpy(&u, &y, 4);
    if (variant == 7) return q3_round(x, Q3_BF16);
    u = (u + 0x1000) & ~0x1FFFu; /* TF32 */
    memcpy(&y, &u, 4);
    return y;
}

/* q_proj [N,M] with mistakes in its weight, its operands or its sum. */
static void make_map(const world *w, float *y, int variant)
{
    size_t N = w->H * w->hd, K = w->M;
    const float *x = w->tap[Q3_TAP_INPUT_LAYERNORM];
    float *q = widened(w, w->l->q_proj, N * K), *t = memory(N * K, sizeof *t);
    float *own = memory(T * K, sizeof *own);
    memcpy(own, x, T * K * sizeof *own);
    for (size_t i = 0; i < N * K && variant == 0; i++) t[i] = q[i % K * N + i / K];
    if (variant == 0) memcpy(q, t, N * K * sizeof *t);
    if (variant == 1) quantise(w, q, N * K, largest(q, N * K), true);
    for (size_t o = 0; o < N && variant == 2; o++)
        quantise(w, q + o * K, K, largest(q + o * K, K), false);
    for (size_t i = 0; i < T * K && variant == 3; i++)
        if (i % K >= K - 16) own[i] = 0;
    for (size_t i = 0; i < T * K && (variant == 7 || variant == 8); i++)
        own[i] = rounded_operand((double)x[i], variant);
    for (size_t i = 0; i < N * K && (variant == 7 || variant == 8); i++)
        q[i] = rounded_operand((double)q[i], variant);
    linear(w, y, own, q, T, N, K);
    for (size_t i = 0; i < T * N && variant >= 4 && variant <= 6; i++) {
        double sum = 0, half = 0;
        if (variant == 6 && i / N < 5) continue;
        for (size_t k = 0; k < K; k++) {
            double p = (double)x[i / N * K + k] * (double)q[i % N * K + k];
            if (variant == 4) (k < K / 2 ? (half += p) : (sum += p));
            else sum = (double)q3_round(sum + p, Q3_BF16);
        }
        y[i] = variant == 4 ? D(w, (double)D(w, half) + (double)D(w, sum)) : D(w, sum);
    }
    free(q), free(t), free(own);
}

static void make_bias(const world *w, float *y, int variant)
{
    size_t N = w->H * w->hd;
    float *q = widened(w, w->l->q_proj, N * w->M), *b = widened(w, w->l->q_proj_bias, N);
    const float *x = w->tap[Q3_TAP_INPUT_LAYERNORM];
    for (size_t i = 0; i < T * N; i++) {
        double sum = 0;
        for (size_t k = 0; k < w->M; k++)
            sum += (double)x[i / N * w->M + k] * (double)q[i % N * w->M + k];
        y[i] = D(w, sum + variant * (double)b[i % N]);
    }
    free(q), free(b);
}

static void make_swapped(const world *w, float *y, int variant)
{
    size_t N = w->K * w->hd;
    float *v = widened(w, w->l->v_proj, N * w->M);
    (void)variant;
    linear(w, y, w->tap[Q3_TAP_INPUT_LAYERNORM], v, T, N, w->M);
    free(v);
}

static void make_attention(const world *w, float *y, int variant)
{
    static const q3_tap_id ids[] = {
        Q3_TAP_SCORES, Q3_TAP_SCORES, Q3_TAP_SCORES, Q3_TAP_SCORES, Q3_TAP_SCORES, Q3_TAP_SCORES,
            Q3_TAP_SCORES,
        Q3_TAP_SCORES, Q3_TAP_PROBS, Q3_TAP_PROBS, Q3_TAP_PROBS, Q3_TAP_PROBS, Q3_TAP_PROBS,
            Q3_TAP_PROBS,
        Q3_TAP_PROBS, Q3_TAP_O_PROJ_INPUT, Q3_TAP_O_PROJ_INPUT, Q3_TAP_O_PROJ_INPUT,
        Q3_TAP_O_PROJ_INPUT, Q3_TAP_O_PROJ_INPUT, Q3_TAP_O_PROJ_INPUT, Q3_TAP_PROBS};
    attention_options o = right_attention(w);
    double narrow = (double)(w->M / w->H);
    switch (variant) {
    case 0: o.tiled_keys = true; break;
    case 1: o.divisor = true; break;
    case 2: o.scale = 1; break;
    case 3: o.scale *= o.scale; break;
    case 4: o.scale = 1 / sqrt(narrow); break;
    case 5: o.cap = 50; break;
    case 6: o.stale = true; break;
    case 7: o.fp8_keys = true; break;
    case 8: o.future = 1; break;
    case 9: o.strict = true; break;
    case 10: o.future = T; break;
    case 11: o.sink = 1; break;
    case 12: o.base = 2; break;
    case 13: o.window = 0; break;
    case 14: o.window++; break;
    case 15: o.tiled_values = true; break;
    case 16: o.shifted_values = true; break;
    case 17: o.tiled_keys = o.tiled_values = true; break;
    case 18: o.window = 7; break;
    case 19: case 21: o.window = 3; break;
    default: o.window = 0; break;
    }
    attention_tap(w, y, ids[variant], o);
}

/* Mistakes in the keys: scores of keys that are not rotated; keys that are normalised too late. */
static void make_keys(const world *w, float *y, int variant)
{
    world other = *w;
    float *rotated = memory(T * w->K * w->hd, sizeof *rotated);
    float *g = widened(w, w->l->k_norm, w->hd);
    other.tap[Q3_TAP_K_ROPE] = w->tap[Q3_TAP_K_NORM];
    if (variant == 0) attention_tap(&other, y, Q3_TAP_SCORES, right_attention(w));
    rope(w, rotated, w->tap[Q3_TAP_K_PROJ], w->tap[Q3_TAP_COS], w->tap[Q3_TAP_SIN], w->K, false, 1);
    if (variant == 1) norm(w, y, rotated, g, T * w->K, w->hd, (norm_options){.eps = plain_eps(w)});
    free(rotated), free(g);
}

static void make_joined(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_O_PROJ_INPUT];
    (void)variant;
    for (size_t t = 0; t < T; t++)
        for (size_t h = 0; h < w->H; h++)
            for (size_t d = 0; d < w->hd; d++)
                y[t * w->H * w->hd + d * w->H + h] = x[(t * w->H + h) * w->hd + d];
}

static void make_sum(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_EMBED_TOKENS], *o = w->tap[Q3_TAP_O_PROJ];
    const float *n = w->tap[Q3_TAP_INPUT_LAYERNORM];
    for (size_t i = 0; i < T * w->M; i++) {
        double a = variant == 0 ? 0 : variant == 1 ? (double)n[i] : variant == 2 ? 2 * (double)x[i]
            : (double)x[i];
        y[i] = D(w, a + (variant == 3 ? 0 : (double)o[i]));
        if (variant == 4) y[i] = (float)((double)x[i] + (double)o[i]);
        if (variant == 5) y[i] = D(w, (double)x[i] + (double)w->tap[Q3_TAP_MLP][i]);
    }
}

static void make_head(const world *w, float *y, int variant)
{
    float *e = widened(w, w->f.weights->embed_tokens, w->V * w->M);
    const float *x = w->tap[Q3_TAP_NORM];
    if (variant == 0) linear(w, y, x, e, T, w->V, w->M);
    for (size_t i = 0; i < T * w->V && variant == 1; i++) y[i] = D(w, 30 * tanh((double)y[i] / 30));
    for (size_t i = 0; i + 1 < T * w->V && variant == 2; i++)
        if (i % w->V >= 20 && i % w->V + 1 < w->V) y[i] = w->tap[Q3_TAP_LM_HEAD][i + 1];
    if (variant == 3) memcpy(y, w->last, T * w->M * sizeof *y);
    free(e);
}

/* Differences that have a shape and no operator. */
static void make_shape(const world *w, float *y, int variant)
{
    size_t n = w->H * w->hd;
    const float *x = w->tap[Q3_TAP_Q_PROJ];
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < n; i++) {
            size_t at = t * n + i;
            if (variant == 0 && i == 11) y[at] = D(w, 0.85 * (double)x[at]);
            if (variant == 1 && i == 11) y[at] = x[at + 1];
            if (variant == 2 && i == 11 && t > 0) y[at] = x[at - n];
            if (variant == 3 && i >= 16 && i < 24) y[at] = D(w, 1.5 * (double)x[at]);
            if (variant == 4 && (t == 3 || t == 4)) y[at] = x[(7 - t) * n + i];
            if (variant == 5) y[at] = D(w, 1.25 * (double)x[at]);
            if (variant == 6) y[at] = 0;
            if (variant == 7 && t + 1 == T) y[at] = (float)(i % 5);
            if (variant == 8 && i == 11) y[at] = (float)(at % 7);
            if (variant == 9 && t > 0) y[at] = x[at - n];
            if (variant == 10) y[at] = x[t * n + (i + n / 2) % n];
            if (variant == 11 && t >= 6) y[at] = (float)(at % 13);
            if (variant == 12) y[at] = D(w, (double)x[at] + 0.25);
            if (variant == 13) y[at] = D(w, (double)x[at] + (double)(i % 7) / 8);
            if (variant == 15 && i == 11) y[at] = D(w, (double)x[at] - 0.5);
            if (variant == 14) y[at] = D(w, 1.01 * (double)x[at]);
        }
}

static const trouble troubles[] = {
    {"embedding scaled by sqrt(hidden_size) in", "base", Q3_BF16, Q3_TAP_EMBED_TOKENS, 0,
     make_embedding, 0},
    {"embedding row of id + 1", "base", Q3_BF16, Q3_TAP_EMBED_TOKENS, 0, make_embedding, 1},
    {"position off by one (the first is 10)", "base", Q3_F32, Q3_TAP_COS, 0, make_table, 0},
    {"positions from 0 though", "base", Q3_BF16, Q3_TAP_COS, 0, make_table, 1},
    {"positions that do not go on: token 4 has position 13, token 5 has 9", "base", Q3_F32,
     Q3_TAP_COS, 0, make_table, 2},
    {"rope_theta 10000 instead of 1000000", "base", Q3_F32, Q3_TAP_COS, 0, make_table, 3},
    {"rope_theta 42000 instead of 1000000", "base", Q3_BF16, Q3_TAP_COS, 0, make_table, 4},
    {"cos and sin swapped", "base", Q3_BF16, Q3_TAP_COS, 0, make_table, 5},
    {"inverse frequencies rounded to bfloat16", "base", Q3_F32, Q3_TAP_COS, 0, make_table, 7},
    {"RoPE scaling (yarn) ignored", "rope-yarn", Q3_F32, Q3_TAP_COS, 0, make_table, 6},
    {"YaRN's ramp inverted (the slow", "rope-yarn", Q3_F32, Q3_TAP_COS, 0, make_yarn, 0},
    {"YaRN's ramp inverted and its attention factor", "rope-yarn", Q3_F32, Q3_TAP_COS, 0,
     make_yarn, 1},
    {"YaRN's ramp inverted and its attention factor", "rope-yarn", Q3_BF16, Q3_TAP_COS, 0,
     make_yarn, 1},
    {"RoPE interleaved, pairs (2i, 2i+1), explains", "base", Q3_BF16, Q3_TAP_Q_ROPE, 0, make_rope,
     0},
    {"RoPE applied twice", "base", Q3_BF16, Q3_TAP_Q_ROPE, 0, make_rope, 1},
    {"RoPE missing", "base", Q3_F32, Q3_TAP_Q_ROPE, 0, make_rope, 2},
    {"RoPE in the other direction", "base", Q3_BF16, Q3_TAP_Q_ROPE, 0, make_rope, 3},
    {"RoPE on the first half", "base", Q3_BF16, Q3_TAP_Q_ROPE, 0, make_rope, 4},
    {"QK-norm after RoPE", "base", Q3_BF16, Q3_TAP_Q_ROPE, HIDE(Q3_TAP_Q_NORM, Q3_TAP_K_NORM),
     make_rope, 5},
    {"QK-norm after RoPE", "base", Q3_BF16, Q3_TAP_K_ROPE, HIDE(Q3_TAP_Q_NORM, Q3_TAP_K_NORM),
     make_keys, 1},
    {"RoPE missing, keys only", "base", Q3_BF16, Q3_TAP_SCORES, HIDE(Q3_TAP_Q_ROPE, Q3_TAP_K_ROPE),
     make_keys, 0},
    {"rope_theta 10000", "base", Q3_F32, Q3_TAP_Q_ROPE, HIDE(Q3_TAP_COS, Q3_TAP_SIN), make_rope, 6},
    {"positions that do not go on", "base", Q3_F32, Q3_TAP_Q_ROPE, 0, make_rope, 7},
    {"QK-norm: norm missing", "base", Q3_BF16, Q3_TAP_Q_ROPE, HIDE(Q3_TAP_Q_NORM, Q3_TAP_K_NORM),
     make_rope, 8},
    {"eps 1e-05 instead of 1e-06", "base", Q3_F32, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 0},
    {"eps missing", "base", Q3_F32, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 1},
    {"eps added outside", "base", Q3_F32, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 2},
    {"norm weight + 1", "base", Q3_BF16, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 3},
    {"LayerNorm", "base", Q3_BF16, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 4},
    {"sum instead of mean", "base", Q3_BF16, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 5},
    {"norm weight multiplied before the cast", "base", Q3_BF16, Q3_TAP_INPUT_LAYERNORM, 0,
     make_norm, 6},
    {"eps 3e-05 instead of 1e-06", "base", Q3_F32, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 7},
    {"norm weight missing", "base", Q3_BF16, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 8},
    {"norm with post_attention_layernorm's weight", "base", Q3_BF16, Q3_TAP_INPUT_LAYERNORM, 0,
     make_norm, 9},
    {"norm missing", "base", Q3_BF16, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 10},
    {"norm applied twice", "base", Q3_BF16, Q3_TAP_INPUT_LAYERNORM, 0, make_norm, 11},
    {"weights of q_norm and k_norm swapped", "base", Q3_BF16, Q3_TAP_Q_NORM, 0, make_head_norm, 0},
    {"QK-norm over all heads", "base", Q3_BF16, Q3_TAP_Q_NORM, 0, make_head_norm, 1},
    {"QK-norm after RoPE", "base", Q3_BF16, Q3_TAP_Q_NORM, 0, make_head_norm, 2},
    {"norm missing (tokens from 7 on)", "base", Q3_BF16, Q3_TAP_Q_NORM, 0, make_head_norm, 3},
    {"RoPE applied to it already", "base", Q3_BF16, Q3_TAP_Q_NORM, 0, make_head_norm, 4},
    {"weight transposed", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_map, 0},
    {"weights quantised to fp8", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_map, 1},
    {"weights quantised to int8", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_map, 2},
    {"tail of the sum missing, its last 16", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_map, 3},
    {"sum in 2 parts", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_map, 4},
    {"sums accumulated in bfloat16, declare --accumulate bf16-sums, explains", "base", Q3_BF16,
     Q3_TAP_Q_PROJ, 0, make_map, 5},
    {"sums accumulated in bfloat16 (tokens from 5 on)", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_map,
     6},
    {"operands rounded to bf16", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_map, 7},
    {"operands rounded to tf32", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_map, 8},
    {"bias missing", "bias", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_bias, 0},
    {"bias added twice", "bias", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_bias, 2},
    {"weights of k_proj and v_proj swapped", "base", Q3_BF16, Q3_TAP_K_PROJ, 0, make_swapped, 0},
    {"KV head mapping tiled (h mod K), explains", "base", Q3_BF16, Q3_TAP_SCORES, 0, make_attention,
     0},
    {"KV head mapping h / K", "base", Q3_BF16, Q3_TAP_SCORES, 0, make_attention, 1},
    {"attention scale missing", "base", Q3_BF16, Q3_TAP_SCORES, 0, make_attention, 2},
    {"attention scale applied twice", "base", Q3_BF16, Q3_TAP_SCORES, 0, make_attention, 3},
    {"attention scale of head_dim = hidden", "base", Q3_BF16, Q3_TAP_SCORES, 0, make_attention, 4},
    {"scores softcapped, 50", "base", Q3_F32, Q3_TAP_SCORES, 0, make_attention, 5},
    {"stale cache, its last row", "base", Q3_BF16, Q3_TAP_SCORES, 0, make_attention, 6},
    {"KV cache rounded to fp8", "base", Q3_BF16, Q3_TAP_SCORES, 0, make_attention, 7},
    {"mask lets each token see one future", "base", Q3_BF16, Q3_TAP_PROBS, 0, make_attention, 8},
    {"mask hides the token itself", "base", Q3_BF16, Q3_TAP_PROBS, 0, make_attention, 9},
    {"causal mask missing", "base", Q3_F32, Q3_TAP_PROBS, 0, make_attention, 10},
    {"softmax with a sink", "base", Q3_BF16, Q3_TAP_PROBS, 0, make_attention, 11},
    {"softmax in base 2", "base", Q3_BF16, Q3_TAP_PROBS, 0, make_attention, 12},
    {"window ignored", "window", Q3_BF16, Q3_TAP_PROBS, 0, make_attention, 13},
    {"window of 6 keys instead of 5", "window", Q3_BF16, Q3_TAP_PROBS, 0, make_attention, 14},
    {"window of 3 keys instead of 5", "window", Q3_BF16, Q3_TAP_PROBS, 0, make_attention, 21},
    {"KV head mapping tiled (h mod K), values only", "base", Q3_BF16, Q3_TAP_O_PROJ_INPUT, 0,
     make_attention, 15},
    {"stale cache, read one row off, values only", "base", Q3_BF16, Q3_TAP_O_PROJ_INPUT, 0,
     make_attention, 16},
    {"KV head mapping tiled (h mod K), explains", "base", Q3_BF16, Q3_TAP_O_PROJ_INPUT,
     HIDE(Q3_TAP_SCORES, Q3_TAP_PROBS), make_attention, 17},
    {"window of 7 keys though the config has none", "base", Q3_BF16, Q3_TAP_O_PROJ_INPUT,
     HIDE(Q3_TAP_SCORES, Q3_TAP_PROBS), make_attention, 18},
    {"window of 7 keys instead of 5", "window", Q3_BF16, Q3_TAP_O_PROJ_INPUT,
     HIDE(Q3_TAP_SCORES, Q3_TAP_PROBS), make_attention, 18},
    {"window of 3 keys instead of 5", "window", Q3_F32, Q3_TAP_O_PROJ_INPUT,
     HIDE(Q3_TAP_SCORES, Q3_TAP_PROBS), make_attention, 19},
    {"window ignored", "window", Q3_F32, Q3_TAP_O_PROJ_INPUT, HIDE(Q3_TAP_SCORES, Q3_TAP_PROBS),
     make_attention, 20},
    {"heads joined as [hd,H]", "base", Q3_BF16, Q3_TAP_O_PROJ_INPUT, 0, make_joined, 0},
    {"residual missing (vLLM keeps it apart: record the sum), explains 100 %", "base", Q3_BF16,
     Q3_TAP_POST_ATTENTION_INPUT, 0, make_sum, 0},
    {"residual taken from the normed input", "base", Q3_BF16, Q3_TAP_POST_ATTENTION_INPUT, 0,
     make_sum, 1},
    {"residual doubled", "base", Q3_BF16, Q3_TAP_POST_ATTENTION_INPUT, 0, make_sum, 2},
    {"branch missing", "base", Q3_BF16, Q3_TAP_POST_ATTENTION_INPUT, 0, make_sum, 3},
    {"residual sum not rounded", "base", Q3_BF16, Q3_TAP_POST_ATTENTION_INPUT, 0, make_sum, 4},
    {"residual taken from before attention", "base", Q3_BF16, Q3_TAP_LAYER, 0, make_sum, 5},
    {"norm missing", "base", Q3_BF16, Q3_TAP_NORM, 0, make_head, 3},
    {"lm_head tied", "base", Q3_BF16, Q3_TAP_LM_HEAD, 0, make_head, 0},
    {"logits softcapped, 30", "base", Q3_F32, Q3_TAP_LM_HEAD, 0, make_head, 1},
    {"channels from 20 on shifted by one", "base", Q3_BF16, Q3_TAP_LM_HEAD, 0, make_head, 2},
    {"channel 11 alone scaled by a factor 0.85", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_shape,
     0},
    {"channel 11 has the values of channel 12", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_shape, 1},
    {"channel 11 keeps the values of the token before", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0,
     make_shape, 2},
    {"channels 16 to 23 alone scaled by a factor 1.5", "base", Q3_F32, Q3_TAP_Q_PROJ, 0,
     make_shape, 3},
    {"tokens 3 and 4 swapped", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_shape, 4},
    {"scaled by a factor 1.25", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_shape, 5},
    {"zeros", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_shape, 6},
    {"a mistake in one place: only the last token", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_shape,
     7},
    {"a mistake in one place: only channel 11", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_shape, 8},
    {"values of the token before, shifted", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_shape, 9},
    {"halves of the channels swapped", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_shape, 10},
    {"a mistake in one place: only tokens from 6 on", "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_shape,
     11},
    {"a constant added, 0.25", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_shape, 12},
    {"a constant added to each channel", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_shape, 13},
    {"a constant added to channel 11, explains 100 %", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_shape,
     15},
    {"scaled by a factor 1.01, explains", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_shape, 14},
};

/* ==== What is no mistake, or none that is known =============================================== */

/* What was given before an operator is not explained by the other order of the two. */
static void test_given(const char *golden)
{
    world w;
    char text[200];
    world_open(&w, golden, "base", Q3_BF16);
    float *y = memory(T * w.row[Q3_TAP_Q_ROPE], sizeof *y);
    make_rope(&w, y, 5);
    ask(text, &w, Q3_TAP_Q_ROPE, 0, y);
    CHECKF(strncmp(text, "QK-norm", 7) != 0, "norms were given: %s", text);
    free(y);
    world_close(&w);
}

/* Nothing, flips of one ulp, noise, and values that are no numbers: no cause is named. */
static void test_honest(const char *golden)
{
    static const q3_dtype dtypes[] = {Q3_F32, Q3_BF16, Q3_F16};
    static const char *const names[] = {"base", "window", "no-renormalise"};
    for (size_t k = 0; k < 9; k++) {
        world w;
        world_open(&w, golden, names[k / 3], dtypes[k % 3]);
        for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
            q3_tap_id id = (q3_tap_id)i;
            size_t count = T * w.row[i];
            float *y = memory(count, sizeof *y);
            bool dense = i >= Q3_TAP_DENSE_GATE_PROJ && i <= Q3_TAP_DENSE_DOWN_PROJ_INPUT;
            for (int how = 0; how < 4 && !dense; how++) {
                char text[200];
                for (size_t n = 0; n < count; n++) {
                    double x = (double)w.tap[i][n];
                    double u = (double)(rule_bits(k * 64 + i, n) >> 40) / 0x1p24 - 0.5;
                    y[n] = (float)x;
                    if (how == 1 && fabs(u) < 0.02)
                        y[n] = (float)(x + ulp(x, i == Q3_TAP_ROUTER_PROBS ? Q3_F32 : w.dtype));
                    if (how == 2) y[n] = (float)(x * (1 + u));
                    if (how == 3 && fabs(u) < 0.05) y[n] = u < 0 ? (float)NAN : (float)INFINITY;
                }
                if (id == Q3_TAP_TOPK_INDICES && how > 0) continue;
                ask(text, &w, id, how == 2 && k % 2 ? HIDE(Q3_TAP_Q_NORM, Q3_TAP_PROBS) : 0, y);
                bool none = text[0] == 0 ||
                    (how > 1 && strncmp(text, "a mistake in one place", 22) == 0);
                CHECKF(none, "%s, tap %zu, %d: %s", names[k / 3], i, how, text);
            }
            free(y);
        }
        world_close(&w);
    }
}

/* Evidence with nothing but the tensor itself. */
static void test_bare(const char *golden)
{
    world w;
    world_open(&w, golden, "base", Q3_BF16);
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        bool dense = i >= Q3_TAP_DENSE_GATE_PROJ && i <= Q3_TAP_DENSE_DOWN_PROJ_INPUT;
        double *bound = memory(T * w.row[i], sizeof *bound);
        float *y = memory(T * w.row[i], sizeof *y);
        for (size_t n = 0; n < T * w.row[i]; n++) {
            bound[n] = 1e-3;
            y[n] = w.tap[i][n] + (i == Q3_TAP_TOPK_INDICES ? 0.0f : 1.0f);
        }
        for (size_t tokens = 1; tokens <= 2; tokens++) {
            char text[200], cause[160];
            q3_error error;
            evidence e = {.config = w.c, .weights = w.f.weights, .dtype = w.dtype, .T = tokens,
                          .start = START, .input = w.tap[Q3_TAP_EMBED_TOKENS], .id = (q3_tap_id)i,
                              .row = w.row[i], .ours = w.tap[i], .theirs = y, .bound = bound};
            if (i == Q3_TAP_SCORES || i == Q3_TAP_PROBS) e.row = w.H * tokens;
            if (!dense) CHECK(q3_diagnose(text, cause, &e, NULL, &error) == Q3_OK);
        }
        free(bound);
        free(y);
    }
    world_close(&w);
}

/* Configs at the edge of what a config may say: a mistake that cannot be computed there is none. */
static void test_edges(const char *golden)
{
    world w;
    char text[200];
    world_open(&w, golden, "base", Q3_BF16);
    q3_config c = *w.c;
    w.c = &c;

    /* a window of one key: none is left to a mask that hides the token itself */
    attention_options right = right_attention(&w), wrong = right;
    float *y = memory(T * w.row[Q3_TAP_PROBS], sizeof *y);
    c.sliding_window = right.window = 1;
    wrong.window = 2;
    attention_tap(&w, w.tap[Q3_TAP_PROBS], Q3_TAP_PROBS, right);
    attention_tap(&w, y, Q3_TAP_PROBS, wrong);
    ask(text, &w, Q3_TAP_PROBS, 0, y);
    CHECKF(strncmp(text, "window of 2 keys instead of 1", 29) == 0, "window: %s", text);
    free(y);

    /* dynamic RoPE that half the width would carry beyond float32 */
    y = memory(T * w.row[Q3_TAP_Q_ROPE], sizeof *y);
    c.rope = (q3_rope){.type = Q3_ROPE_DYNAMIC, .rope_theta = 100, .factor = 3e19};
    c.max_position_embeddings = START + T - 1;
    make_rope(&w, y, 2);
    ask(text, &w, Q3_TAP_Q_ROPE, 0, y);
    CHECKF(strncmp(text, "RoPE missing", 12) == 0, "dynamic: %s", text);
    free(y);
    world_close(&w);
}

/* The cheap come first: a residual that is doubled costs a sum, and is found within a budget that
 * mistakes in the experts, which stand before it in the list and are run through three maps each,
 * would have spent. */
static void test_order(const char *golden)
{
    world w;
    char text[200];
    world_open(&w, golden, "base", Q3_F32);
    const q3_config *c = w.c;
    const uint64_t hidden = (uint64_t)1 << Q3_TAP_MLP | (uint64_t)1 << Q3_TAP_EXPERTS_DOWN_PROJ |
                            (uint64_t)1 << Q3_TAP_EXPERTS_DOWN_PROJ_INPUT |
                            (uint64_t)1 << Q3_TAP_EXPERTS_ACT_FN |
                            (uint64_t)1 << Q3_TAP_EXPERTS_GATE_PROJ |
                            (uint64_t)1 << Q3_TAP_EXPERTS_UP_PROJ;
    double map = (double)(T * c->num_experts_per_tok * c->hidden_size * c->moe_intermediate_size);
    double budget = 2 * map;
    float *y = memory(T * w.M, sizeof *y);
    for (size_t i = 0; i < T * w.M; i++)
        y[i] = D(&w, 2 * (double)w.tap[Q3_TAP_POST_ATTENTION_INPUT][i] +
                         (double)w.tap[Q3_TAP_MLP][i]);
    ask_within(text, &w, Q3_TAP_LAYER, hidden, y, &budget);
    CHECKF(strncmp(text, "residual doubled", 16) == 0 && budget < 0, "budget: %s", text);
    free(y);
    world_close(&w);
}

/* Cosines that no theta has: that of wide heads, far behind, would be beyond float64. */
static void test_no_theta(void)
{
    enum { HD = 256 };
    q3_config c = {.hidden_size = 64, .num_attention_heads = 1, .num_key_value_heads = 1,
                   .num_hidden_layers = 1, .head_dim = HD, .max_position_embeddings = 4096,
                   .rope = {.rope_theta = 1e4}};
    float ours[HD], theirs[HD];
    double bound[HD];
    char text[200], cause[160];
    q3_error error;
    for (size_t i = 0; i < HD; i++) {
        ours[i] = 0.5f;
        theirs[i] = i == 1 || i == 2 ? 0.0f : 1.0f;
        bound[i] = 1e-3;
    }
    evidence e = {.config = &c, .dtype = Q3_F32, .T = 1, .start = Q3_MAX_POSITIONS - 1,
                  .id = Q3_TAP_COS, .row = HD, .ours = ours, .theirs = theirs, .bound = bound};
    double budget = 0.5; /* less than one mistake takes: the first ends it */
    bool stopped = false;
    e.budget = &budget;
    e.stopped = &stopped;
    CHECK(q3_diagnose(text, cause, &e, NULL, &error) == Q3_OK);
    CHECK(stopped && budget < 0);
    char reason[80] = "2 of 4 elements";
    q3_say_stopped(reason, sizeof reason);
    CHECK(strcmp(reason, "2 of 4 elements; the search for its cause stopped at its budget") == 0);
    double one = q3_search_budget(e.config, 1, 1), two = q3_search_budget(e.config, 2, 1);
    CHECK(one > 2e10 && two - one == q3_search_budget(e.config, 1, 2) - one);
    budget = two;
    e.stopped = NULL;
    CHECK(q3_diagnose(text, cause, &e, NULL, &error) == Q3_OK);
    CHECKF(text[0] == 0, "no theta: %s", text);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    (void)fixture_from_folder; /* of model.h */
    test_troubles(argv[1], troubles, sizeof troubles / sizeof troubles[0]);
    test_given(argv[1]);
    test_honest(argv[1]);
    test_bare(argv[1]);
    test_edges(argv[1]);
    test_order(argv[1]);
    test_no_theta();
    return t_done("diagnose");
}
