/* SPDX-License-Identifier: MIT */
/* bounds.c - what honest arithmetic may make of each element, derived from the operator, the sizes,
 * the data and D. MODEL.md 12.1 to 12.3 have the derivations; the same symbols are used here.
 *
 * u = 2^-24, n the length of a sum, S = sum |w||x|, ulp that of D at the element.
 *   noise   float32 sums in any order: (2 + 4 sqrt n) u S, four standard deviations of a random
 *           walk
 *   slack   Hugging Face rounds to D wherever it stores a tensor; a fused kernel may leave such a
 *           rounding out, or keep the value of its input before that was rounded
 *   var     variances of inputs that were not given, through the operator's derivative: what is
 *           independent from element to element as a sum of squares, and once more as if it were
 *           one common factor */
#include "judge/graph.h"
#include "judge/walk.h"

#include <string.h>

#define U 0x1p-24

/* By its bits: a branch on a sign that is random, once a product, would take most of the time. */
static double size_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= UINT64_MAX >> 1;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

/* Of a float32 sum of n products, over its size S: four standard deviations of a random walk of its
 * partial sums' roundings (12.1). */
static double sum_noise(size_t n)
{
    return (2 + 4 * q3_sqrt((double)n)) * U;
}

/* ==== Sums ==================================================================================== */

/* What a sum of n products gathers: 12.1 and 12.3 need it. */
typedef struct sum {
    size_t n;       /* products */
    double size;    /* sum |w||x| */
    double squares; /* sum (w x)^2 */
    double var;     /* sum w^2 var(x) */
    double x2, along; /* sum x^2, sum x^2 var(x): variance of the input's error along itself */
} sum;

double q3_operand_noise(double squares, double y)
{
    return 4 * q3_sqrt(2 * squares) + 3 * size_of(y);
}

double q3_partial_noise(size_t n, double squares, double y)
{
    return q3_sqrt((double)n) * (6.3662 * q3_sqrt(squares / 3) + 4 * size_of(y) / 3);
}

/* 12.7: what --accumulate declares. */
static double operand_noise(const walk *w, const sum *s, double y)
{
    if (w->operand == 0) return 0;
    double noise = w->operand * q3_operand_noise(s->squares, y);
    return w->partial == 0 ? noise : noise + w->partial * q3_partial_noise(s->n, s->squares, y);
}

/* 12.7: the same of a linear map; where activations are quantised, errors of at most e each, and of
 * sums over a group in a tensor core of 14 bits. */
static double map_noise(const walk *w, const sum *s, double y)
{
    if (!q3_quantises(w->accumulate)) return operand_noise(w, s, y);
    if (s->squares == 0) return 0;
    return 4 * q3_sqrt(s->squares) + (w->accumulate == Q3_ACCUMULATE_FP8 ? 0x1p-12 * s->size : 0);
}

/* 12.3: the variance of y from a sum's inputs: independent, plus common. */
static double sum_var(const sum *s, double y)
{
    if (s->var == 0) return 0;
    return s->var + (s->x2 > 0 ? 4 * s->along / s->x2 / s->x2 * y * y : 0);
}

/* One element of a linear map, or of what is like it: 1 ulp, the sum's noise, what came in. */
static void bound_sum(row_bound *b, const walk *w, size_t i, const sum *s, double noise, double y)
{
    b->slack[i] = q3_ulp(y, w->dtype);
    b->noise[i] = noise * s->size + map_noise(w, s, y);
    b->var[i] = sum_var(s, y);
}

/* What must be equal: the embedding, and what is masked. */
static void bound_nothing(row_bound *b, size_t n)
{
    for (size_t i = 0; i < n; i++) b->slack[i] = b->noise[i] = b->var[i] = 0;
}

/* Of an input's row: what all sums over it share. */
static void add_input(sum *s, const float *x, const double *x_var, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        double square = (double)x[k] * (double)x[k];
        s->x2 += square;
        s->along += square * x_var[k];
    }
}

/* y[N] = weight[N,K] x[K] + bias: elements [at, at + N) of the row whose sums are in `row`. */
static void bound_linear(row_bound *b, const walk *w, const float *y, const float *x,
                         const double *x_var, const row_sums *row, size_t at, q3_tensor bias,
                         size_t N, size_t K)
{
    double noise = sum_noise(K);
    sum s = {.n = K};
    if (row->spread != NULL) add_input(&s, x, x_var, K);
    for (size_t o = at; o < at + N; o++) {
        float add = 0.0f;
        if (bias.data != NULL) q3_widen(&add, bias, o, 1, w->dtype);
        s.size = row->size[o] + size_of((double)add);
        if (row->squares != NULL) s.squares = row->squares[o];
        if (row->spread != NULL) s.var = row->spread[o];
        bound_sum(b, w, o, &s, noise, (double)y[o]);
    }
}

/* Without memory for its sums nothing is said. */
static bool find_sums(row_bound *b, walk *w, const q3_node *node, row_sums *row, size_t t, size_t n)
{
    if (q3_sums_row(row, w, node, t)) return true;
    w->no_memory = true;
    bound_nothing(b, n);
    return false;
}

/* ==== Norms =================================================================================== */

/* One row: y = weight D(x r), r = 1 / sqrt(mean(x^2) + eps). Three roundings: the input's (a fused
 * residual sum), the inner one and the last. A relative error of the sum of squares halves under
 * the root. */
static void bound_norm(row_bound *b, walk *w, const float *y, const float *x, const double *x_var,
                       q3_tensor weight, size_t n)
{
    double square = 0, spread = 0, eps = (double)(float)w->config->rms_norm_eps;
    for (size_t i = 0; i < n; i++) {
        double v = (double)x[i];
        square += v * v;
        spread += v * v * x_var[i];
    }
    double mean = square / (double)n + eps, r = mean > 0 ? 1 / q3_sqrt(mean) : 0;
    double noise = sum_noise(n),
           common = mean > 0 ? spread / ((double)n * mean) / ((double)n * mean) : 0;
    q3_widen(w->weight_row, weight, 0, n, w->dtype);
    for (size_t i = 0; i < n; i++) {
        double own = (double)w->weight_row[i] * r;
        b->slack[i] = 3 * q3_ulp((double)y[i], w->dtype);
        b->noise[i] = size_of((double)y[i]) * noise;
        b->var[i] = own * own * x_var[i] + (double)y[i] * (double)y[i] * common;
    }
}

/* ==== Rotary embedding ======================================================================== */

/* cos and sin times attention_scaling. The angle's error, in u of the angle: 4 for a power in
 * float32, and 2 for each of the j multiplications by which some make the j-th frequency from the
 * first. */
static void bound_table(row_bound *b, const walk *w, size_t t, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t j = i % (n / 2);
        double angle = (double)(w->start + t) * (double)w->inv_freq[j];
        b->slack[i] = q3_ulp((double)y[i], w->dtype);
        b->noise[i] = (double)w->scaling * (8 * U + angle * (4 + 2 * (double)j) * U);
        b->var[i] = 0;
    }
}

/* y = D(D(x cos) + D(rotate_half(x) sin)); heads rows of hd. */
static void bound_rope(row_bound *b, const walk *w, size_t t, const float *y, const float *x,
                       const double *x_var, size_t n)
{
    size_t hd = w->config->head_dim;
    const float *cos = w->tap[Q3_TAP_COS] + t * hd, *sin = w->tap[Q3_TAP_SIN] + t * hd;
    const double *cos_var = w->var[Q3_TAP_COS] + t * hd, *sin_var = w->var[Q3_TAP_SIN] + t * hd;
    for (size_t i = 0; i < n; i++) {
        size_t d = i % hd, other = d < hd / 2 ? i + hd / 2 : i - hd / 2;
        double c = (double)cos[d], s = (double)sin[d], a = (double)x[i], r = (double)x[other];
        b->slack[i] = q3_ulp((double)y[i], w->dtype) + q3_ulp(a * c, w->dtype) / 2 +
                      q3_ulp(r * s, w->dtype) / 2;
        b->noise[i] = 0;
        b->var[i] = c * c * x_var[i] + s * s * x_var[other] + a * a * cos_var[d] +
                    r * r * sin_var[d];
    }
}

/* ==== Attention =============================================================================== */

/* The keys that token t sees end here. */
static size_t end_key(const walk *w, size_t t)
{
    return t + 1 + w->ahead < w->T ? t + 1 + w->ahead : w->T;
}

/* The sums of one score, q and k[hd]; what may differ in either. */
static void add_products(sum *a, sum *other, const walk *w, const float *q, const double *q_var,
                         const float *k, const double *k_var, size_t hd)
{
    for (size_t d = 0; d < hd; d++) {
        double x = (double)q[d], y = (double)k[d], product = x * y;
        a->size += size_of(product);
        if (w->operand != 0) a->squares += product * product;
        if (q_var != NULL) {
            a->var += y * y * q_var[d];
            a->x2 += x * x;
            a->along += x * x * q_var[d];
        }
        if (k_var != NULL) {
            other->var += x * x * k_var[d];
            other->x2 += y * y;
            other->along += y * y * k_var[d];
        }
    }
}

/* NULL, where it is 0 everywhere. */
static const double *unless_0(const double *var, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (var[i] != 0) return var;
    return NULL;
}

/* One token's scores [H,T]: product and scaled product may both stay unrounded (12.2). */
static void bound_scores(row_bound *b, walk *w, size_t t, const float *y)
{
    const q3_config *c = w->config;
    size_t H = c->num_attention_heads, K = c->num_key_value_heads, hd = c->head_dim, T = w->T;
    const float *q = w->tap[Q3_TAP_Q_ROPE] + t * H * hd, *k = w->tap[Q3_TAP_K_ROPE];
    const double *q_var = unless_0(w->var[Q3_TAP_Q_ROPE] + t * H * hd, H * hd);
    size_t low = q3_first_key(t, c->sliding_window), end = end_key(w, t);
    const double *k_var = w->var[Q3_TAP_K_ROPE];
    if (unless_0(k_var + low * K * hd, (end - low) * K * hd) == NULL) k_var = NULL;
    double scale = 1 / q3_sqrt((double)hd), noise = sum_noise(hd);
    for (size_t h = 0; h < H; h++)
        for (size_t s = low; s < end; s++) {
            size_t i = h * T + s, key = (s * K + h / (H / K)) * hd;
            sum a = {.n = hd}, other = {.n = hd};
            add_products(&a, &other, w, q + h * hd, q_var != NULL ? q_var + h * hd : NULL, k + key,
                         k_var != NULL ? k_var + key : NULL, hd);
            double product = (double)y[i] / scale;
            b->slack[i] = 3 * q3_ulp((double)y[i], w->dtype);
            b->noise[i] = scale * (noise * a.size + operand_noise(w, &a, product));
            b->var[i] = scale * scale * (sum_var(&a, product) + sum_var(&other, product));
        }
}

/* 12.3: 6 sigma of an exponent that errs by sigma, over 6: sigma itself where it is small. */
static double grown(double var)
{
    double sd = Q3_SIGMAS * q3_sqrt(var);
    if (!(sd < 50)) return 1e20; /* says nothing */
    return sd > 0 ? (q3_exp(sd) - 1) / Q3_SIGMAS : 0;
}

/* A softmax's element: p = exp(s - max) / sum. s - max is rounded to float32; exp, sum and quotient
 * err by a few u. var: of s; common: sum p^2 var over the row. dp = p ((1 - p) ds - sum of the
 * other p ds). */
static void bound_softmax(row_bound *b, size_t i, double p, double below_max, size_t n, double var,
                          double common, double ulp)
{
    double spread = (1 - 2 * p) * var + common, sd = p * grown(spread > 0 ? spread : 0);
    b->slack[i] = ulp;
    b->noise[i] = p * ((below_max + 8) * U + sum_noise(n));
    b->var[i] = sd * sd;
}

/* One token's probs [H,T]. */
static void bound_probs(row_bound *b, const walk *w, size_t t, const float *y)
{
    size_t T = w->T, low = q3_first_key(t, w->config->sliding_window), end = end_key(w, t);
    for (size_t h = 0; h < w->config->num_attention_heads; h++) {
        const float *scores = w->scores + h * T;
        const double *var = w->scores_var + h * T;
        double max = (double)scores[low], common = 0;
        for (size_t s = low; s < end; s++) {
            double p = (double)y[h * T + s];
            if ((double)scores[s] > max) max = (double)scores[s];
            common += p * p * var[s];
        }
        for (size_t s = low; s < end; s++) {
            double p = (double)y[h * T + s];
            bound_softmax(b, h * T + s, p, max - (double)scores[s], end - low, var[s], common,
                          q3_ulp(p, w->dtype));
        }
    }
}

/* A head's sums over the keys, [hd] each. */
typedef struct value_sums {
    double *size, *squares, *of_probs, *var, *y; /* of_probs: sum v^2 var(p); one behind another */
} value_sums;

/* y = sum p v. Errors of the scores pull y towards v: dy = sum p ds (v - y); those of the probs
 * themselves add up. The sum runs over the keys block by block where it is fused, so that with
 * --accumulate the partial sums are rounded too: a random walk of n of them. */
static void bound_values_of_head(walk *w, value_sums *g, size_t h, size_t low, size_t end)
{
    const q3_config *c = w->config;
    size_t K = c->num_key_value_heads, hd = c->head_dim, of = h / (c->num_attention_heads / K);
    const float *probs = w->probs + h * w->T;
    const double *probs_var = w->probs_var + h * w->T, *scores_var = w->scores_var + h * w->T;
    memset(g->size, 0, 5 * hd * sizeof *g->size);
    for (size_t s = low; s < end; s++) {
        size_t value = (s * K + of) * hd;
        const float *v = w->tap[Q3_TAP_V_PROJ] + value;
        const double *v_var = w->var[Q3_TAP_V_PROJ] + value;
        double p = (double)probs[s];
        for (size_t d = 0; d < hd; d++) {
            double x = (double)v[d], product = p * x;
            g->size[d] += size_of(product);
            g->squares[d] += product * product;
            g->of_probs[d] += x * x * probs_var[s];
            g->var[d] += p * p * v_var[d];
            g->y[d] += product;
        }
    }
    for (size_t s = low; s < end; s++) {
        if (scores_var[s] == 0) continue;
        double pull = (double)probs[s] * grown(scores_var[s]);
        const float *v = w->tap[Q3_TAP_V_PROJ] + (s * K + of) * hd;
        for (size_t d = 0; d < hd; d++) {
            double by = pull * ((double)v[d] - g->y[d]);
            g->var[d] += by * by;
        }
    }
}

void q3_bound_values(walk *w, size_t t)
{
    const q3_config *c = w->config;
    size_t H = c->num_attention_heads, hd = c->head_dim;
    size_t low = q3_first_key(t, c->sliding_window), end = end_key(w, t), n = end - low;
    double noise = sum_noise(n), partial = (2 + 4 * q3_sqrt((double)n)) * w->operand;
    double *room = w->head_sums;
    value_sums g = {room, room + hd, room + 2 * hd, room + 3 * hd, room + 4 * hd};
    for (size_t h = 0; h < H; h++) {
        bound_values_of_head(w, &g, h, low, end);
        for (size_t d = 0; d < hd; d++) {
            sum a = {.n = n, .size = g.size[d], .squares = g.squares[d]};
            size_t i = (t * H + h) * hd + d;
            w->values_noise[i] = (noise + partial) * a.size + operand_noise(w, &a, g.y[d]);
            w->values_var[i] = g.of_probs[d] + g.var[d];
        }
    }
}

/* One token's o_proj.input, of what q3_bound_values found. */
static void bound_attention(row_bound *b, const walk *w, size_t t, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        b->slack[i] = q3_ulp((double)y[i], w->dtype);
        b->noise[i] = w->values_noise[t * n + i];
        b->var[i] = w->values_var[t * n + i];
    }
}

/* ==== Router ================================================================================== */

/* The router's probabilities, which are float32 in every run, unless --router says otherwise. */
static void bound_router(row_bound *b, const walk *w, size_t t, const float *y, size_t E)
{
    const float *logits = w->tap[Q3_TAP_GATE] + t * E;
    const double *var = w->var[Q3_TAP_GATE] + t * E;
    double max = (double)logits[0], common = 0;
    for (size_t e = 0; e < E; e++) {
        if ((double)logits[e] > max) max = (double)logits[e];
        common += (double)y[e] * (double)y[e] * var[e];
    }
    for (size_t e = 0; e < E; e++)
        bound_softmax(b, e, (double)y[e], max - (double)logits[e], E, var[e], common,
                      q3_ulp((double)y[e], w->router));
}

/* w_a = p_a / sum p of the chosen; where --router is declared, each partial sum may be rounded to
 * it. */
static void bound_weights(row_bound *b, const walk *w, size_t t, const float *y, size_t A)
{
    size_t E = w->config->num_experts;
    const float *ids = w->tap[Q3_TAP_TOPK_INDICES] + t * A,
                *probs = w->tap[Q3_TAP_ROUTER_PROBS] + t * E;
    const double *var = w->var[Q3_TAP_ROUTER_PROBS] + t * E;
    double mass = 0, spread = 0;
    for (size_t a = 0; a < A; a++) {
        mass += (double)probs[(size_t)ids[a]];
        spread += var[(size_t)ids[a]];
    }
    bool divided = w->config->norm_topk_prob && mass > 0;
    double half = divided && w->router != Q3_F32 ? q3_ulp(mass, w->router) / 2 : 0;
    half *= (double)(A - 1); /* additions, no partial sum above the last */
    double rounded = half > 0 ? half / (mass - half) : 0; /* what 1 / sum grows by at most */
    for (size_t a = 0; a < A; a++) {
        double p = (double)y[a], own = var[(size_t)ids[a]];
        b->slack[a] = q3_ulp(p, w->dtype);
        b->noise[a] = p * (4 * U + sum_noise(A) + rounded);
        b->var[a] = divided ? (own + p * p * spread) / (mass * mass) : own;
    }
}

/* ==== MLP ===================================================================================== */

static double sigmoid(double x)
{
    return 1 / (1 + q3_exp(-x));
}

double q3_silu_slope(double x)
{
    double s = sigmoid(x), slope = s * (1 + x * (1 - s));
    return slope - slope == 0 ? slope : x > 0 ? 1 : 0; /* infinities */
}

/* silu(x): 8 u of itself, and what came in times the derivative. From 1 + exp(-x) = 2^126 on its
 * float32 reciprocal is subnormal, which may be flushed, and from 2^128 on exp is infinite: all of
 * y may be lost (12.1). */
static void bound_silu(row_bound *b, const walk *w, const float *y, const float *x,
                       const double *x_var, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double v = (double)x[i], slope = q3_silu_slope(v);
        bool lost = sigmoid(v - Q3_SIGMAS * q3_sqrt(x_var[i])) < 0x1p-126;
        b->slack[i] = q3_ulp((double)y[i], w->dtype);
        b->noise[i] = size_of((double)y[i]) * (lost ? 1 + 8 * U : 8 * U);
        b->var[i] = slope * slope * x_var[i];
    }
}

/* act * up, where act may not have been rounded. */
static void bound_product(row_bound *b, const walk *w, const float *y, const float *act,
                          const double *act_var, const float *up, const double *up_var, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double a = (double)act[i], v = (double)up[i];
        b->slack[i] = q3_ulp((double)y[i], w->dtype) + q3_ulp(a, w->dtype) / 2 * size_of(v);
        b->noise[i] = 0;
        b->var[i] = v * v * act_var[i] + a * a * up_var[i];
    }
}

/* An expert's linear map, slot by slot. */
static void bound_experts(row_bound *b, walk *w, const q3_node *node, size_t t, const float *y)
{
    const q3_config *c = w->config;
    const q3_tensor none = {NULL, Q3_F32};
    q3_tap_id input = node->from[0];
    size_t A = c->num_experts_per_tok, n = q3_tap_row_size(c, node->id, w->T), N = n / A, shape[3];
    size_t rank = q3_tap_shape(shape, c, input, w->T), K = shape[rank - 1],
           row = q3_tap_row_size(c, input, w->T);
    bool by_slot = rank == 3; /* down_proj reads the slot's own row, gate_proj and up_proj the
                               * token's */
    row_sums sums;
    if (!find_sums(b, w, node, &sums, t, n)) return;
    for (size_t a = 0; a < A; a++) {
        size_t at = t * row + (by_slot ? a * K : 0);
        bound_linear(b, w, y, w->tap[input] + at, w->var[input] + at, &sums, a * N, none, N, K);
    }
}

/* The weighted sum over the slots: each product and each partial sum may be rounded to D, in any
 * order, so that a partial sum may be as large as the sum of all sizes; or none is but the last. */
static void bound_combine(row_bound *b, const walk *w, size_t t, const float *y)
{
    size_t A = w->config->num_experts_per_tok, M = w->config->hidden_size;
    const float *weights = w->tap[Q3_TAP_TOPK_WEIGHTS] + t * A,
                *down = w->tap[Q3_TAP_EXPERTS_DOWN_PROJ] + t * A * M;
    const double *weights_var = w->var[Q3_TAP_TOPK_WEIGHTS] + t * A;
    const double *down_var = w->var[Q3_TAP_EXPERTS_DOWN_PROJ] + t * A * M;
    for (size_t i = 0; i < M; i++) {
        double size = 0, slack = q3_ulp((double)y[i], w->dtype), var = 0;
        for (size_t a = 0; a < A; a++) {
            double weight = (double)weights[a], value = (double)down[a * M + i];
            size += size_of(weight * value);
            slack += q3_ulp(weight * value, w->dtype) / 2;
            var += weight * weight * down_var[a * M + i] + value * value * weights_var[a];
        }
        b->slack[i] = slack + (double)A / 2 * q3_ulp(size, w->dtype);
        b->noise[i] = sum_noise(A) * size;
        b->var[i] = var;
    }
}

/* y = a + branch, where the branch may not have been rounded. */
static void bound_residual(row_bound *b, const walk *w, const float *y, const double *a_var,
                           const float *branch, const double *branch_var, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        b->slack[i] = q3_ulp((double)y[i], w->dtype) + q3_ulp((double)branch[i], w->dtype) / 2;
        b->noise[i] = 0;
        b->var[i] = a_var[i] + branch_var[i];
    }
}

/* ==== Every tap =============================================================================== */

q3_dtype q3_stored_dtype(const walk *w, q3_tap_id id)
{
    if (id == Q3_TAP_ROUTER_PROBS) return w->router;
    return q3_tap_info(id)->dtype == Q3_F32 ? Q3_F32 : w->dtype;
}

/* Row t of what a node reads, and its variance. */
typedef struct operand {
    const float *x;
    const double *var;
    size_t n; /* elements of a row */
} operand;

static operand row_of_stream(const walk *w, size_t t)
{
    size_t M = w->config->hidden_size;
    return (operand){w->input + t * M, w->input_var + t * M, M};
}

static operand row_of_tap(const walk *w, q3_tap_id id, size_t t)
{
    size_t n = q3_tap_row_size(w->config, id, w->T);
    return (operand){w->tap[id] + t * n, w->var[id] + t * n, n};
}

/* Whole rows, or head by head. */
static void bound_norms(row_bound *b, walk *w, const q3_node *node, const float *y,
                        const operand *in)
{
    size_t width = node->op == Q3_OP_HEAD_NORM ? w->config->head_dim : in->n;
    q3_tensor weight = q3_graph_weight(node, w->weights, w->layer, 0);
    for (size_t at = 0; at < in->n; at += width) {
        row_bound part = {b->slack + at, b->noise + at, b->var + at, 1, 1};
        bound_norm(&part, w, y + at, in->x + at, in->var + at, weight, width);
    }
}

void q3_bound_row(row_bound *b, walk *w, q3_tap_id id, size_t t, const float *y, size_t n)
{
    const q3_node *node = q3_graph_node(w->config, id, w->layer);
    operand in[3];
    row_sums sums;
    size_t count = 0;
    b->own = (double)node->own_ulps;
    b->roundings = (double)node->roundings;
    bool by_row = node->op != Q3_OP_SCORES && node->op != Q3_OP_PROBS && node->op != Q3_OP_VALUES;
    if (node->stream) in[count++] = row_of_stream(w, t);
    for (size_t k = 0; k < node->count && by_row; k++)
        in[count++] = row_of_tap(w, node->from[k], t);
    switch (node->op) {
    case Q3_OP_EMBEDDING: case Q3_OP_TOPK: bound_nothing(b, n); break;
    case Q3_OP_TABLE: bound_table(b, w, t, y, n); break;
    case Q3_OP_NORM: case Q3_OP_HEAD_NORM: bound_norms(b, w, node, y, &in[0]); break;
    case Q3_OP_LINEAR:
        if (find_sums(b, w, node, &sums, t, n))
            bound_linear(b, w, y, in[0].x, in[0].var, &sums, 0,
                         q3_graph_bias(node, w->weights, w->layer), n, in[0].n);
        break;
    case Q3_OP_ROPE: bound_rope(b, w, t, y, in[0].x, in[0].var, n); break;
    case Q3_OP_SCORES: bound_nothing(b, n), bound_scores(b, w, t, y); break;
    case Q3_OP_PROBS: bound_nothing(b, n), bound_probs(b, w, t, y); break;
    case Q3_OP_VALUES: bound_attention(b, w, t, y, n); break;
    case Q3_OP_SUM: bound_residual(b, w, y, in[0].var, in[1].x, in[1].var, n); break;
    case Q3_OP_ROUTER: bound_router(b, w, t, y, n); break;
    case Q3_OP_ROUTER_WEIGHTS: bound_weights(b, w, t, y, n); break;
    case Q3_OP_EXPERT_LINEAR: bound_experts(b, w, node, t, y); break;
    case Q3_OP_SILU: bound_silu(b, w, y, in[0].x, in[0].var, n); break;
    case Q3_OP_PRODUCT: bound_product(b, w, y, in[0].x, in[0].var, in[1].x, in[1].var, n); break;
    case Q3_OP_COMBINE: bound_combine(b, w, t, y); break;
    }
}
