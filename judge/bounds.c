/* bounds.c - what honest arithmetic may make of each element, derived from the operator, the sizes, the data
 * and D. MODEL.md section 12 has the derivations; the same symbols are used here.
 *
 * u = 2^-24, n the length of a sum, S = sum |w||x|, ulp that of D at the element.
 *   noise   float32 sums in any order: (2 + 4 sqrt n) u S, four standard deviations of a random walk
 *   slack   Hugging Face rounds to D wherever it stores a tensor; a fused kernel may leave such a rounding out,
 *           or keep the value of its input before that was rounded
 *   var     variances of inputs that were not given, through the operator's derivative: what is independent from
 *           element to element as a sum of squares, and once more as if it were one common factor */
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

static double sum_noise(size_t n)
{
    return (2 + 4 * q3_sqrt((double)n)) * U;
}

/* ==== Sums ===================================================================================== */

/* What a sum of n products gathers. */
typedef struct sum {
    double size;    /* sum |w||x| */
    double squares; /* sum (w x)^2 */
    double var;     /* sum w^2 var(x) */
    double x2, along; /* sum x^2, sum x^2 var(x): variance of the input's error along itself */
} sum;

static void add_product(sum *s, double w, double x, double x_var)
{
    double product = size_of(w * x);
    s->size += product;
    s->squares += product * product;
    s->var += w * w * x_var;
    s->x2 += x * x;
    s->along += x * x * x_var;
}

/* Where --accumulate is declared, both operands and the result are rounded (or cut off) to its unit: independent
 * errors of the products, and a common one of the cut and of the result. */
static double operand_noise(const walk *w, const sum *s, double y)
{
    if (w->operand == 0) return 0;
    return 4 * q3_sqrt(2 * s->squares) * w->operand + 3 * w->operand * size_of(y);
}

/* The variance of y from a sum's inputs: independent, plus common. */
static double sum_var(const sum *s, double y)
{
    if (s->var == 0) return 0;
    return s->var + (s->x2 > 0 ? 4 * s->along / s->x2 / s->x2 * y * y : 0);
}

static void bound_sum(row_bound *b, const walk *w, size_t i, const sum *s, double noise, double y)
{
    b->slack[i] = q3_ulp(y, w->dtype);
    b->noise[i] = noise * s->size + operand_noise(w, s, y);
    b->var[i] = sum_var(s, y);
}

/* y[N] = weight[N,K] x[K] + bias. */
static void bound_linear(row_bound *b, walk *w, const float *y, const float *x, const double *x_var,
                         q3_tensor weight, q3_tensor bias, size_t N, size_t K)
{
    double noise = sum_noise(K);
    for (size_t o = 0; o < N; o++) {
        sum s = {0, 0, 0, 0, 0};
        float add = 0.0f;
        q3_widen(w->weight_row, weight, o * K, K, w->dtype);
        for (size_t k = 0; k < K; k++) add_product(&s, (double)w->weight_row[k], (double)x[k], x_var[k]);
        if (bias.data != NULL) q3_widen(&add, bias, o, 1, w->dtype);
        s.size += size_of((double)add);
        bound_sum(b, w, o, &s, noise, (double)y[o]);
    }
}

/* ==== Norms ==================================================================================== */

/* One row: y = weight D(x r), r = 1 / sqrt(mean(x^2) + eps). Three roundings: the input's (a fused residual sum),
 * the inner one and the last. A relative error of the sum of squares halves under the root. */
static void bound_norm(row_bound *b, walk *w, const float *y, const float *x, const double *x_var, q3_tensor weight,
                       size_t n)
{
    double square = 0, spread = 0, eps = (double)(float)w->config->rms_norm_eps;
    for (size_t i = 0; i < n; i++) {
        double v = (double)x[i];
        square += v * v;
        spread += v * v * x_var[i];
    }
    double mean = square / (double)n + eps, r = mean > 0 ? 1 / q3_sqrt(mean) : 0;
    double noise = sum_noise(n), common = mean > 0 ? spread / ((double)n * mean) / ((double)n * mean) : 0;
    q3_widen(w->weight_row, weight, 0, n, w->dtype);
    for (size_t i = 0; i < n; i++) {
        double own = (double)w->weight_row[i] * r;
        b->slack[i] = 3 * q3_ulp((double)y[i], w->dtype);
        b->noise[i] = size_of((double)y[i]) * noise;
        b->var[i] = own * own * x_var[i] + (double)y[i] * (double)y[i] * common;
    }
}

/* ==== Rotary embedding ========================================================================= */

/* cos and sin times attention_scaling. The angle's error, in u of the angle: 4 for a power in float32, and 2 for
 * each of the j multiplications by which some make the j-th frequency from the first. */
static void bound_table(row_bound *b, const walk *w, size_t t, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t j = i % (n / 2);
        double angle = (double)(w->start + t) * (double)w->inv_freq[j];
        b->slack[i] = q3_ulp((double)y[i], w->dtype);
        b->noise[i] = (double)w->scaling * (8 * U + angle * (4 + 2 * (double)j) * U);
        b->var[i] = 0;
    }
    b->roundings = 2;
}

/* y = D(D(x cos) + D(rotate_half(x) sin)); heads rows of hd. */
static void bound_rope(row_bound *b, const walk *w, size_t t, const float *y, const float *x, const double *x_var,
                       size_t n)
{
    size_t hd = w->config->head_dim;
    const float *cos = w->tap[Q3_TAP_COS] + t * hd, *sin = w->tap[Q3_TAP_SIN] + t * hd;
    const double *cos_var = w->var[Q3_TAP_COS] + t * hd, *sin_var = w->var[Q3_TAP_SIN] + t * hd;
    for (size_t i = 0; i < n; i++) {
        size_t d = i % hd, other = d < hd / 2 ? i + hd / 2 : i - hd / 2;
        double c = (double)cos[d], s = (double)sin[d], a = (double)x[i], r = (double)x[other];
        b->slack[i] = q3_ulp((double)y[i], w->dtype) + q3_ulp(a * c, w->dtype) / 2 + q3_ulp(r * s, w->dtype) / 2;
        b->noise[i] = 0;
        b->var[i] = c * c * x_var[i] + s * s * x_var[other] + a * a * cos_var[d] + r * r * sin_var[d];
    }
    b->roundings = 3;
}

/* ==== Attention ================================================================================ */

/* One token's scores [H,T]. */
static void bound_scores(row_bound *b, walk *w, size_t t, const float *y)
{
    const q3_config *c = w->config;
    size_t H = c->num_attention_heads, K = c->num_key_value_heads, hd = c->head_dim, T = w->T;
    const float *q = w->tap[Q3_TAP_Q_ROPE] + t * H * hd, *k = w->tap[Q3_TAP_K_ROPE];
    const double *q_var = w->var[Q3_TAP_Q_ROPE] + t * H * hd, *k_var = w->var[Q3_TAP_K_ROPE];
    double scale = 1 / q3_sqrt((double)hd), noise = sum_noise(hd);
    for (size_t h = 0; h < H; h++)
        for (size_t s = q3_first_key(t, c->sliding_window); s <= t; s++) {
            size_t i = h * T + s, key = (s * K + h / (H / K)) * hd;
            sum a = {0, 0, 0, 0, 0}, other = {0, 0, 0, 0, 0};
            for (size_t d = 0; d < hd; d++) {
                add_product(&a, (double)k[key + d], (double)q[h * hd + d], q_var[h * hd + d]);
                add_product(&other, (double)q[h * hd + d], (double)k[key + d], k_var[key + d]);
            }
            double product = (double)y[i] / scale;
            b->slack[i] = 3 * q3_ulp((double)y[i], w->dtype);
            b->noise[i] = scale * (noise * a.size + operand_noise(w, &a, product));
            b->var[i] = scale * scale * (sum_var(&a, product) + sum_var(&other, product));
        }
    b->own = 3;
    b->roundings = 2;
}

/* 6 sigma of an exponent that errs by sigma, over 6: sigma itself where it is small. */
static double grown(double var)
{
    double sd = Q3_SIGMAS * q3_sqrt(var);
    if (!(sd < 50)) return 1e20; /* says nothing */
    return sd > 0 ? (q3_exp(sd) - 1) / Q3_SIGMAS : 0;
}

/* A softmax's element: p = exp(s - max) / sum. s - max is rounded to float32; exp, sum and quotient err by a few u.
 * var: of s; common: sum p^2 var over the row. dp = p ((1 - p) ds - sum of the other p ds). */
static void bound_softmax(row_bound *b, size_t i, double p, double below_max, size_t n, double var, double common,
                          double ulp)
{
    double spread = (1 - 2 * p) * var + common, sd = p * grown(spread > 0 ? spread : 0);
    b->slack[i] = ulp;
    b->noise[i] = p * ((below_max + 8) * U + sum_noise(n));
    b->var[i] = sd * sd;
}

/* One token's probs [H,T]. */
static void bound_probs(row_bound *b, const walk *w, size_t t, const float *y)
{
    size_t T = w->T, low = q3_first_key(t, w->config->sliding_window);
    for (size_t h = 0; h < w->config->num_attention_heads; h++) {
        const float *scores = w->scores + h * T;
        const double *var = w->scores_var + h * T;
        double max = (double)scores[low], common = 0;
        for (size_t s = low; s <= t; s++) {
            double p = (double)y[h * T + s];
            if ((double)scores[s] > max) max = (double)scores[s];
            common += p * p * var[s];
        }
        for (size_t s = low; s <= t; s++) {
            double p = (double)y[h * T + s];
            bound_softmax(b, h * T + s, p, max - (double)scores[s], t + 1 - low, var[s], common, q3_ulp(p, w->dtype));
        }
    }
}

/* y = sum p v. Errors of the scores pull y towards v: dy = sum p ds (v - y); those of the probs themselves add up.
 * The sum runs over the keys block by block where it is fused, so that with --accumulate the partial sums are
 * rounded too: a random walk of n of them. */
void q3_bound_values(walk *w, size_t t)
{
    const q3_config *c = w->config;
    size_t H = c->num_attention_heads, K = c->num_key_value_heads, hd = c->head_dim, T = w->T;
    size_t low = q3_first_key(t, c->sliding_window), n = t + 1 - low;
    const float *v = w->tap[Q3_TAP_V_PROJ];
    const double *v_var = w->var[Q3_TAP_V_PROJ];
    double noise = sum_noise(n), partial = (2 + 4 * q3_sqrt((double)n)) * w->operand;
    for (size_t h = 0; h < H; h++)
        for (size_t d = 0; d < hd; d++) {
            sum a = {0, 0, 0, 0, 0};
            double var = 0, y = 0;
            for (size_t s = low; s <= t; s++) {
                size_t value = (s * K + h / (H / K)) * hd + d;
                double p = (double)w->probs[h * T + s], x = (double)v[value];
                add_product(&a, x, p, w->probs_var[h * T + s]);
                var += p * p * v_var[value];
                y += p * x;
            }
            for (size_t s = low; s <= t; s++) {
                if (w->scores_var[h * T + s] == 0) continue;
                double x = (double)v[(s * K + h / (H / K)) * hd + d];
                double pull = (double)w->probs[h * T + s] * grown(w->scores_var[h * T + s]) * (x - y);
                var += pull * pull;
            }
            size_t i = (t * H + h) * hd + d;
            w->values_noise[i] = (noise + partial) * a.size + operand_noise(w, &a, y);
            w->values_var[i] = a.var + var;
        }
}

/* ==== Router =================================================================================== */

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
        bound_softmax(b, e, (double)y[e], max - (double)logits[e], E, var[e], common, q3_ulp((double)y[e], Q3_F32));
}

/* w_a = p_a / sum p of the chosen. */
static void bound_weights(row_bound *b, const walk *w, size_t t, const float *y, size_t A)
{
    size_t E = w->config->num_experts;
    const float *ids = w->tap[Q3_TAP_TOPK_INDICES] + t * A, *probs = w->tap[Q3_TAP_ROUTER_PROBS] + t * E;
    const double *var = w->var[Q3_TAP_ROUTER_PROBS] + t * E;
    double mass = 0, spread = 0;
    for (size_t a = 0; a < A; a++) {
        mass += (double)probs[(size_t)ids[a]];
        spread += var[(size_t)ids[a]];
    }
    bool divided = w->config->norm_topk_prob && mass > 0;
    for (size_t a = 0; a < A; a++) {
        double p = (double)y[a], own = var[(size_t)ids[a]];
        b->slack[a] = q3_ulp(p, w->dtype);
        b->noise[a] = p * (4 * U + sum_noise(A));
        b->var[a] = divided ? (own + p * p * spread) / (mass * mass) : own;
    }
}

/* ==== MLP ====================================================================================== */

static double sigmoid(double x)
{
    return 1 / (1 + q3_exp(-x));
}

static void bound_silu(row_bound *b, const walk *w, const float *y, const float *x, const double *x_var, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double v = (double)x[i], s = sigmoid(v), slope = s * (1 + v * (1 - s));
        if (!(slope - slope == 0)) slope = v > 0 ? 1 : 0; /* infinities */
        b->slack[i] = q3_ulp((double)y[i], w->dtype);
        b->noise[i] = size_of((double)y[i]) * 8 * U;
        b->var[i] = slope * slope * x_var[i];
    }
}

/* act * up, where act may not have been rounded. */
static void bound_product(row_bound *b, const walk *w, const float *y, const float *act, const double *act_var,
                          const float *up, const double *up_var, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double a = (double)act[i], v = (double)up[i];
        b->slack[i] = q3_ulp((double)y[i], w->dtype) + q3_ulp(a, w->dtype) / 2 * size_of(v);
        b->noise[i] = 0;
        b->var[i] = v * v * act_var[i] + a * a * up_var[i];
    }
    b->roundings = 2;
}

/* An expert's linear map, slot by slot. */
static void bound_experts(row_bound *b, walk *w, q3_tap_id id, size_t t, const float *y)
{
    const q3_config *c = w->config;
    const q3_tensor none = {NULL, Q3_F32};
    const q3_mlp *experts = w->weights->layers[w->layer].experts;
    size_t A = c->num_experts_per_tok, M = c->hidden_size, F = c->moe_intermediate_size;
    bool down = id == Q3_TAP_EXPERTS_DOWN_PROJ;
    size_t N = down ? M : F, K = down ? F : M;
    q3_tap_id input = down ? Q3_TAP_EXPERTS_DOWN_PROJ_INPUT : Q3_TAP_POST_ATTENTION_LAYERNORM;
    for (size_t a = 0; a < A; a++) {
        const q3_mlp *e = &experts[(size_t)w->tap[Q3_TAP_TOPK_INDICES][t * A + a]];
        q3_tensor weight = down ? e->down_proj : id == Q3_TAP_EXPERTS_GATE_PROJ ? e->gate_proj : e->up_proj;
        size_t row = down ? t * A + a : t;
        row_bound part = {b->slack + a * N, b->noise + a * N, b->var + a * N, 1, 1};
        bound_linear(&part, w, y + a * N, w->tap[input] + row * K, w->var[input] + row * K, weight, none, N, K);
    }
}

/* The weighted sum over the slots: each product and each partial sum may be rounded to D, in any order, so that a
 * partial sum may be as large as the sum of all sizes; or none is but the last. */
static void bound_combine(row_bound *b, const walk *w, size_t t, const float *y)
{
    size_t A = w->config->num_experts_per_tok, M = w->config->hidden_size;
    const float *weights = w->tap[Q3_TAP_TOPK_WEIGHTS] + t * A, *down = w->tap[Q3_TAP_EXPERTS_DOWN_PROJ] + t * A * M;
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
static void bound_residual(row_bound *b, const walk *w, const float *y, const double *a_var, const float *branch,
                           const double *branch_var, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        b->slack[i] = q3_ulp((double)y[i], w->dtype) + q3_ulp((double)branch[i], w->dtype) / 2;
        b->noise[i] = 0;
        b->var[i] = a_var[i] + branch_var[i];
    }
}

/* ==== Every tap ================================================================================ */

static void bound_nothing(row_bound *b, size_t n)
{
    for (size_t i = 0; i < n; i++) b->slack[i] = b->noise[i] = b->var[i] = 0;
}

/* Taps with a linear map behind them that is no expert's. */
static void bound_map(row_bound *b, walk *w, q3_tap_id id, size_t t, const float *y, size_t n)
{
    const q3_layer *l = &w->weights->layers[w->layer];
    const q3_tensor none = {NULL, Q3_F32};
    const struct { q3_tap_id id, input; q3_tensor weight, bias; } maps[] = {
        {Q3_TAP_Q_PROJ, Q3_TAP_INPUT_LAYERNORM, l->q_proj, l->q_proj_bias},
        {Q3_TAP_K_PROJ, Q3_TAP_INPUT_LAYERNORM, l->k_proj, l->k_proj_bias},
        {Q3_TAP_V_PROJ, Q3_TAP_INPUT_LAYERNORM, l->v_proj, l->v_proj_bias},
        {Q3_TAP_O_PROJ, Q3_TAP_O_PROJ_INPUT, l->o_proj, l->o_proj_bias},
        {Q3_TAP_GATE, Q3_TAP_POST_ATTENTION_LAYERNORM, l->gate, none},
        {Q3_TAP_DENSE_GATE_PROJ, Q3_TAP_POST_ATTENTION_LAYERNORM, l->mlp.gate_proj, none},
        {Q3_TAP_DENSE_UP_PROJ, Q3_TAP_POST_ATTENTION_LAYERNORM, l->mlp.up_proj, none},
        {Q3_TAP_MLP, Q3_TAP_DENSE_DOWN_PROJ_INPUT, l->mlp.down_proj, none},
        {Q3_TAP_LM_HEAD, Q3_TAP_NORM, w->weights->lm_head, none},
    };
    size_t m = 0, shape[3];
    while (maps[m].id != id) m++;
    q3_tap_shape(shape, w->config, maps[m].input, w->T);
    bound_linear(b, w, y, w->tap[maps[m].input] + t * shape[1], w->var[maps[m].input] + t * shape[1], maps[m].weight,
                 maps[m].bias, n, shape[1]);
}

/* Norms: rows of the whole hidden size, or of each head. */
static void bound_norms(row_bound *b, walk *w, q3_tap_id id, size_t t, const float *y, size_t n)
{
    const q3_layer *l = &w->weights->layers[w->layer];
    bool heads = id == Q3_TAP_Q_NORM || id == Q3_TAP_K_NORM;
    q3_tap_id from = id == Q3_TAP_Q_NORM ? Q3_TAP_Q_PROJ : id == Q3_TAP_K_NORM ? Q3_TAP_K_PROJ
                     : Q3_TAP_POST_ATTENTION_INPUT;
    q3_tensor weight = id == Q3_TAP_Q_NORM ? l->q_norm : id == Q3_TAP_K_NORM ? l->k_norm
                       : id == Q3_TAP_POST_ATTENTION_LAYERNORM ? l->post_attention_layernorm
                       : id == Q3_TAP_NORM ? w->weights->norm : l->input_layernorm;
    bool input = id == Q3_TAP_INPUT_LAYERNORM || id == Q3_TAP_NORM;
    const float *x = (input ? w->input : w->tap[from]) + t * n;
    const double *x_var = (input ? w->input_var : w->var[from]) + t * n;
    size_t width = heads ? w->config->head_dim : n;
    for (size_t at = 0; at < n; at += width) {
        row_bound part = {b->slack + at, b->noise + at, b->var + at, 1, 1};
        bound_norm(&part, w, y + at, x + at, x_var + at, weight, width);
    }
    b->own = 3;
    b->roundings = 2;
}

void q3_bound_row(row_bound *b, walk *w, q3_tap_id id, size_t t, const float *y, size_t n)
{
    bool sparse = id < Q3_TAP_NORM && w->config->num_experts > 0 && q3_layer_is_sparse(w->config, w->layer);
    q3_tap_id gate = sparse ? Q3_TAP_EXPERTS_GATE_PROJ : Q3_TAP_DENSE_GATE_PROJ;
    q3_tap_id up = sparse ? Q3_TAP_EXPERTS_UP_PROJ : Q3_TAP_DENSE_UP_PROJ;
    q3_tap_id act = sparse ? Q3_TAP_EXPERTS_ACT_FN : Q3_TAP_DENSE_ACT_FN;
    b->own = b->roundings = 1;
    switch ((int)id) {
    case Q3_TAP_COS: case Q3_TAP_SIN: bound_table(b, w, t, y, n); break;
    case Q3_TAP_INPUT_LAYERNORM: case Q3_TAP_POST_ATTENTION_LAYERNORM: case Q3_TAP_NORM:
    case Q3_TAP_Q_NORM: case Q3_TAP_K_NORM: bound_norms(b, w, id, t, y, n); break;
    case Q3_TAP_Q_ROPE: bound_rope(b, w, t, y, w->tap[Q3_TAP_Q_NORM] + t * n, w->var[Q3_TAP_Q_NORM] + t * n, n); break;
    case Q3_TAP_K_ROPE: bound_rope(b, w, t, y, w->tap[Q3_TAP_K_NORM] + t * n, w->var[Q3_TAP_K_NORM] + t * n, n); break;
    case Q3_TAP_SCORES: bound_nothing(b, n), bound_scores(b, w, t, y); break;
    case Q3_TAP_PROBS: bound_nothing(b, n), bound_probs(b, w, t, y); break;
    case Q3_TAP_O_PROJ_INPUT:
        for (size_t i = 0; i < n; i++) {
            b->slack[i] = q3_ulp((double)y[i], w->dtype);
            b->noise[i] = w->values_noise[t * n + i];
            b->var[i] = w->values_var[t * n + i];
        }
        break;
    case Q3_TAP_POST_ATTENTION_INPUT:
        bound_residual(b, w, y, w->input_var + t * n, w->tap[Q3_TAP_O_PROJ] + t * n, w->var[Q3_TAP_O_PROJ] + t * n, n);
        break;
    case Q3_TAP_ROUTER_PROBS: bound_router(b, w, t, y, n); break;
    case Q3_TAP_TOPK_WEIGHTS: bound_weights(b, w, t, y, n); break;
    case Q3_TAP_EXPERTS_GATE_PROJ: case Q3_TAP_EXPERTS_UP_PROJ:
    case Q3_TAP_EXPERTS_DOWN_PROJ: bound_experts(b, w, id, t, y); break;
    case Q3_TAP_EXPERTS_ACT_FN: case Q3_TAP_DENSE_ACT_FN:
        bound_silu(b, w, y, w->tap[gate] + t * n, w->var[gate] + t * n, n); break;
    case Q3_TAP_EXPERTS_DOWN_PROJ_INPUT: case Q3_TAP_DENSE_DOWN_PROJ_INPUT:
        bound_product(b, w, y, w->tap[act] + t * n, w->var[act] + t * n, w->tap[up] + t * n, w->var[up] + t * n, n);
        break;
    case Q3_TAP_LAYER:
        bound_residual(b, w, y, w->var[Q3_TAP_POST_ATTENTION_INPUT] + t * n, w->tap[Q3_TAP_MLP] + t * n,
                       w->var[Q3_TAP_MLP] + t * n, n);
        break;
    case Q3_TAP_MLP:
        if (sparse) bound_combine(b, w, t, y);
        else bound_map(b, w, id, t, y, n);
        break;
    case Q3_TAP_EMBED_TOKENS: case Q3_TAP_TOPK_INDICES: bound_nothing(b, n); break;
    default: bound_map(b, w, id, t, y, n); break;
    }
}
