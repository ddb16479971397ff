/* SPDX-License-Identifier: MIT */
/* The diagnosis of roundings: those that stand elsewhere, are in another format, or cut off.
 * test_diagnose.c has the rest, and what both are.
 *
 * test_diagnose_roundings GOLDEN */
#include "troubles.h"

/* ==== Formats ================================================================================= */

/* x with so many bits of its mantissa, towards zero. */
static float cut_bits(double x, unsigned mantissa)
{
    float y = (float)x;
    uint32_t u;
    memcpy(&u, &y, 4);
    u &= ~(((uint32_t)1 << (23 - mantissa)) - 1);
    memcpy(&y, &u, 4);
    return y;
}

static float cut(const world *w, double x)
{
    return cut_bits(x, w->dtype == Q3_BF16 ? 7 : 10);
}

static double low(double x)
{
    return (double)q3_round(x, Q3_BF16);
}

/* ==== Mistakes ================================================================================ */

static void make_cut_map(const world *w, float *y, int variant)
{
    size_t N = w->H * w->hd, K = w->M;
    const float *x = w->tap[Q3_TAP_INPUT_LAYERNORM];
    float *q = widened(w, w->l->q_proj, N * K);
    for (size_t i = 0; i < T * N; i++) {
        double sum = 0;
        for (size_t k = 0; k < K; k++) sum += (double)x[i / N * K + k] * (double)q[i % N * K + k];
        y[i] = variant == 0 ? cut(w, sum) : cut_bits(sum, variant == 1 ? 7 : 10);
    }
    free(q);
}

/* The two products and their sum: 0 cut off once; 1 and 2 with one product as it is. */
static void make_rope(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_Q_NORM];
    size_t half = w->hd / 2;
    for (size_t row = 0; row < T * w->H; row++)
        for (size_t j = 0; j < w->hd; j++) {
            size_t other = j < half ? j + half : j - half, t = row / w->H;
            double a = (double)x[row * w->hd + j] * (double)w->tap[Q3_TAP_COS][t * w->hd + j];
            double b = (double)x[row * w->hd + other] * (double)w->tap[Q3_TAP_SIN][t * w->hd + j];
            if (variant == 2) a = (double)D(w, a);
            if (variant == 1) b = (double)D(w, b);
            double sum = j < half ? a - b : a + b;
            y[row * w->hd + j] = variant == 0 ? cut(w, sum) : D(w, sum);
        }
}

/* q_norm. 0: the mean of squares rounded, 1: the squares, too, 2: every step. */
static void make_norm(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_Q_PROJ];
    float *g = widened(w, w->l->q_norm, w->hd);
    for (size_t row = 0; row < T * w->H; row++, x += w->hd, y += w->hd) {
        double mean = 0;
        for (size_t i = 0; i < w->hd; i++) {
            double square = pow((double)x[i], 2);
            mean += (variant == 0 ? square : low(square)) / (double)w->hd;
        }
        double shifted = low(mean) + plain_eps(w);
        double root = variant == 2 ? low(1 / sqrt(low(shifted))) : 1 / sqrt(shifted);
        for (size_t i = 0; i < w->hd; i++) {
            double v = (double)D(w, (double)x[i] * root);
            y[i] = D(w, (double)g[i] * v);
        }
    }
    free(g);
}

/* The heads' sums of values, cut off. */
static void make_values(const world *w, float *y, int variant)
{
    (void)variant;
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < w->H * w->hd; i++) {
            size_t h = i / w->hd, head = h / (w->H / w->K);
            double sum = 0;
            for (size_t s = 0; s <= t; s++)
                sum += (double)w->tap[Q3_TAP_PROBS][(t * w->H + h) * T + s] *
                       (double)w->tap[Q3_TAP_V_PROJ][(s * w->K + head) * w->hd + i % w->hd];
            y[t * w->H * w->hd + i] = cut(w, sum);
        }
}

/* Attention in one kernel: nothing is rounded before its result, which is cut off. */
static void make_attention(const world *w, float *y, int variant)
{
    (void)variant;
    for (size_t row = 0; row < T * w->H; row++) {
        size_t t = row / w->H, head = row % w->H / (w->H / w->K);
        const float *q = w->tap[Q3_TAP_Q_ROPE] + row * w->hd;
        double p[T], sum = 0, scale = 1 / sqrt((double)w->hd);
        for (size_t s = 0; s <= t; s++) {
            const float *k = w->tap[Q3_TAP_K_ROPE] + (s * w->K + head) * w->hd;
            double dot = 0;
            for (size_t i = 0; i < w->hd; i++) dot += (double)q[i] * (double)k[i];
            sum += p[s] = exp(dot * scale);
        }
        for (size_t i = 0; i < w->hd; i++) {
            double value = 0;
            for (size_t s = 0; s <= t; s++)
                value += p[s] * (double)w->tap[Q3_TAP_V_PROJ][(s * w->K + head) * w->hd + i];
            y[row * w->hd + i] = cut(w, value / sum);
        }
    }
}

/* The experts in one kernel, which cuts off silu(gate) up and the weighted sum. */
static void make_experts(const world *w, float *y, int variant)
{
    float *gate = memory(w->F * w->M, sizeof *gate), *up = memory(w->F * w->M, sizeof *up);
    float *down = memory(w->F * w->M, sizeof *down);
    double *sum = memory(w->M, sizeof *sum), *inner = memory(w->F, sizeof *inner);
    (void)variant;
    for (size_t t = 0; t < T; t++) {
        const float *x = w->tap[Q3_TAP_POST_ATTENTION_LAYERNORM] + t * w->M;
        memset(sum, 0, w->M * sizeof *sum);
        for (size_t slot = t * w->A; slot < (t + 1) * w->A; slot++) {
            const q3_mlp *m = &w->l->experts[(size_t)w->tap[Q3_TAP_TOPK_INDICES][slot]];
            q3_widen(gate, m->gate_proj, 0, w->F * w->M, w->dtype);
            q3_widen(up, m->up_proj, 0, w->F * w->M, w->dtype);
            q3_widen(down, m->down_proj, 0, w->F * w->M, w->dtype);
            for (size_t i = 0; i < w->F; i++) {
                double g = 0, u = 0;
                for (size_t k = 0; k < w->M; k++) g += (double)gate[i * w->M + k] * (double)x[k];
                for (size_t k = 0; k < w->M; k++) u += (double)up[i * w->M + k] * (double)x[k];
                inner[i] = (double)cut(w, g / (1 + exp(-g)) * u);
            }
            for (size_t i = 0; i < w->M; i++)
                for (size_t k = 0; k < w->F; k++)
                    sum[i] += (double)down[i * w->F + k] * inner[k] *
                              (double)w->tap[Q3_TAP_TOPK_WEIGHTS][slot];
        }
        for (size_t i = 0; i < w->M; i++) y[t * w->M + i] = cut(w, sum[i]);
    }
    free(gate), free(up), free(down), free(sum), free(inner);
}

/* down_proj's output of experts whose every operand and result is in bfloat16, in a float32 run. */
static void make_low_experts(const world *w, float *y, int variant)
{
    float *weights[3], *inner = memory(w->F, sizeof *inner);
    (void)variant;
    for (size_t i = 0; i < 3; i++) weights[i] = memory(w->F * w->M, sizeof(float));
    for (size_t slot = 0; slot < T * w->A; slot++) {
        const float *x = w->tap[Q3_TAP_POST_ATTENTION_LAYERNORM] + slot / w->A * w->M;
        const q3_mlp *m = &w->l->experts[(size_t)w->tap[Q3_TAP_TOPK_INDICES][slot]];
        q3_widen(weights[0], m->gate_proj, 0, w->F * w->M, Q3_BF16);
        q3_widen(weights[1], m->up_proj, 0, w->F * w->M, Q3_BF16);
        q3_widen(weights[2], m->down_proj, 0, w->F * w->M, Q3_BF16);
        for (size_t i = 0; i < w->F; i++) {
            double g = 0, u = 0;
            for (size_t k = 0; k < w->M; k++) {
                g += (double)weights[0][i * w->M + k] * low((double)x[k]);
                u += (double)weights[1][i * w->M + k] * low((double)x[k]);
            }
            g = low(g);
            inner[i] = (float)low(low(g / (1 + exp(-g))) * low(u));
        }
        for (size_t i = 0; i < w->M; i++) {
            double sum = 0;
            for (size_t k = 0; k < w->F; k++)
                sum += (double)weights[2][i * w->F + k] * (double)inner[k];
            y[slot * w->M + i] = (float)low(sum);
        }
    }
    for (size_t i = 0; i < 3; i++) free(weights[i]);
    free(inner);
}

/* Of q_proj, its bias in another order. */
static void make_bias(const world *w, float *y, int variant)
{
    size_t N = w->H * w->hd;
    float *q = widened(w, w->l->q_proj, N * w->M), *b = widened(w, w->l->q_proj_bias, N);
    const float *x = w->tap[Q3_TAP_INPUT_LAYERNORM];
    for (size_t i = 0; i < T * N; i++) {
        double sum = 0;
        size_t o = i % N, from = variant == 0 ? o % w->H * w->hd + o / w->H
            : o % w->hd * w->H + o / w->hd;
        for (size_t k = 0; k < w->M; k++)
            sum += (double)x[i / N * w->M + k] * (double)q[o * w->M + k];
        y[i] = D(w, sum + (double)b[from]);
    }
    free(q), free(b);
}

/* q_proj added up in float16, a term at a time; variant 1: in four lanes. */
static void make_sum(const world *w, float *y, int variant)
{
    size_t N = w->H * w->hd, K = w->M, lanes = variant == 1 ? 4 : 1;
    const float *x = w->tap[Q3_TAP_INPUT_LAYERNORM];
    float *q = widened(w, w->l->q_proj, N * K);
    for (size_t i = 0; i < T * N; i++) {
        double sum[4] = {0};
        for (size_t k = 0; k < K; k++) {
            double *lane = &sum[k % lanes];
            *lane += (double)x[i / N * K + k] * (double)q[i % N * K + k];
            *lane = (double)q3_round(*lane, Q3_F16);
        }
        for (size_t k = 1; k < lanes; k++) sum[0] = (double)q3_round(sum[0] + sum[k], Q3_F16);
        y[i] = D(w, sum[0]);
    }
    free(q);
}

#define CUT "stored in bfloat16 by truncation instead of rounding, explains 100 %"
static const trouble troubles[] = {
    {CUT, "base", Q3_BF16, Q3_TAP_Q_PROJ, 0, make_cut_map, 0},
    {CUT, "base", Q3_BF16, Q3_TAP_Q_ROPE, 0, make_rope, 0},
    {CUT, "base", Q3_BF16, Q3_TAP_O_PROJ_INPUT, 0, make_values, 0},
    {"attention: stored in bfloat16 by truncation", "base", Q3_BF16, Q3_TAP_O_PROJ_INPUT,
     HIDE(Q3_TAP_SCORES, Q3_TAP_PROBS), make_attention, 0},
    {"experts: stored in bfloat16 by truncation", "base", Q3_BF16, Q3_TAP_MLP,
     HIDE(Q3_TAP_EXPERTS_GATE_PROJ, Q3_TAP_EXPERTS_DOWN_PROJ), make_experts, 0},
    {"experts computed in bfloat16 throughout", "base", Q3_F32, Q3_TAP_EXPERTS_DOWN_PROJ,
     HIDE(Q3_TAP_EXPERTS_GATE_PROJ, Q3_TAP_EXPERTS_DOWN_PROJ_INPUT), make_low_experts, 0},
    {"RoPE with a fused multiply-add (the product with cos", "base", Q3_BF16, Q3_TAP_Q_ROPE, 0,
     make_rope, 1},
    {"RoPE with a fused multiply-add (the product with sin", "base", Q3_BF16, Q3_TAP_Q_ROPE, 0,
     make_rope, 2},
    {"variance rounded to bfloat16, explains", "base", Q3_BF16, Q3_TAP_Q_NORM, 0, make_norm, 0},
    {"variance computed in bfloat16, each square and the mean", "base", Q3_BF16, Q3_TAP_Q_NORM, 0,
     make_norm, 1},
    {"norm computed in bfloat16, each step rounded", "base", Q3_BF16, Q3_TAP_Q_NORM, 0, make_norm,
     2},
    {"stored in float16 by truncation", "base", Q3_F16, Q3_TAP_Q_PROJ, 0, make_cut_map, 0},
    {"RoPE with a fused multiply-add (the product with cos", "base", Q3_F16, Q3_TAP_Q_ROPE, 0,
     make_rope, 1},
    {"sums accumulated in float16, declare --accumulate f16-sums", "base", Q3_F16, Q3_TAP_Q_PROJ, 0,
     make_sum, 0},
    {"stored in bfloat16 by truncation", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_cut_map, 1},
    {"stored in tf32 by truncation", "base", Q3_F32, Q3_TAP_Q_PROJ, 0, make_cut_map, 2},
    {"RoPE with a fused multiply-add (the product with cos", "base", Q3_F32, Q3_TAP_Q_ROPE, 0,
     make_rope, 1},
    {"RoPE with a fused multiply-add (the product with sin", "base", Q3_F32, Q3_TAP_Q_ROPE, 0,
     make_rope, 2},
    {"sums accumulated in float16, declare --accumulate f16", "base", Q3_F32, Q3_TAP_Q_PROJ, 0,
     make_sum, 0},
    {"sums accumulated in float16, declare --accumulate f16", "base", Q3_F32, Q3_TAP_Q_PROJ, 0,
     make_sum, 1},
    {"bias in another order, [heads,head_dim] read as [head_dim,heads]", "bias", Q3_BF16,
     Q3_TAP_Q_PROJ, 0, make_bias, 0},
    {"bias in another order, [head_dim,heads] read as [heads,head_dim]", "bias", Q3_BF16,
     Q3_TAP_Q_PROJ, 0, make_bias, 1},
};

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    (void)fixture_from_folder; /* of model.h */
    test_troubles(argv[1], troubles, sizeof troubles / sizeof troubles[0]);
    return t_done("diagnose_roundings");
}
