/* SPDX-License-Identifier: MIT */
/* slopes.c - what honest roundings of the tensors that were not given may make of a sum over a
 * tensor behind them (MODEL.md 12.5). The sum's derivative by each of their elements is found
 * backwards, operator by operator, as a gradient is; the roundings are independent of each other,
 * so that the variances add, whatever way their errors take and however many rows share them. */
#include "judge/graph.h"
#include "judge/verdict.h"

#include <stdlib.h>
#include <string.h>

/* How far roundings of one tensor may have a direction in common, in standard deviations of one
 * (0.41 ulp): an eighth of an ulp. Values repeat: the same tokens, the same significands. */
#define COMMON 0.3

typedef struct slopes {
    walk *w;
    double *tap[Q3_TAP_COUNT]; /* of the sum by a hidden tap's elements, [T,row]; NULL: none */
    double *probs, *scores;    /* of a token, [H,T] */
    row_bound scratch;         /* of a token's probs or scores */
    /* of the sum: variance; the square of what each tap's roundings may have in common, added; and
     * what another honest way of computing shifts it by */
    double var, common, shift;
    bool known, memory;        /* false: nothing is known of what it reaches; no memory */
} slopes;

static double size_of(double x)
{
    return x < 0 ? -x : x;
}

/* Where a tap's slopes are gathered; NULL: it was given, and nothing behind it matters. */
static double *reach(slopes *s, q3_tap_id id)
{
    walk *w = s->w;
    size_t count = w->T * q3_tap_row_size(w->config, id, w->T);
    if (w->given[id]) { /* unless some rows were left out */
        for (size_t i = 0; i < count && s->known; i++) s->known = w->var[id][i] == 0;
        return NULL;
    }
    if (s->tap[id] == NULL) s->tap[id] = calloc(count, sizeof(double));
    s->memory = s->memory && s->tap[id] != NULL;
    return s->tap[id];
}

static void reach_stream(slopes *s)
{
    const walk *w = s->w;
    size_t count = w->T * w->config->hidden_size;
    for (size_t i = 0; i < count && s->known; i++) s->known = w->input_var[i] == 0;
}

/* ==== Row by row ============================================================================== */

/* One weight row at a time, for all tokens: dx[T,K] += dy[T,N] W[N,K]. (As float32, which matters
 * to a derivative in no kind of weight.) */
static void push_linear(slopes *s, const q3_node *node, const double *dy, size_t N)
{
    walk *w = s->w;
    size_t K = q3_tap_row_size(w->config, node->from[0], w->T);
    q3_tensor weight = q3_graph_weight(node, w->weights, w->layer, 0);
    double *dx = reach(s, node->from[0]);
    for (size_t o = 0; o < N && dx != NULL; o++) {
        q3_widen(w->weight_row, weight, o * K, K, w->dtype);
        for (size_t t = 0; t < w->T; t++) {
            double slope = dy[t * N + o];
            for (size_t k = 0; k < K && slope != 0; k++)
                dx[t * K + k] += slope * (double)w->weight_row[k];
        }
    }
}

static void push_experts(slopes *s, const q3_node *node, const double *dy)
{
    walk *w = s->w;
    const q3_config *c = w->config;
    size_t A = c->num_experts_per_tok, N = q3_tap_row_size(c, node->id, w->T) / A, shape[3];
    size_t rank = q3_tap_shape(shape, c, node->from[0], w->T), K = shape[rank - 1];
    double *dx = reach(s, node->from[0]);
    for (size_t i = 0; i < w->T * A && dx != NULL; i++) {
        size_t expert = (size_t)w->tap[Q3_TAP_TOPK_INDICES][i];
        q3_tensor weight = q3_graph_weight(node, w->weights, w->layer, expert);
        double *row = dx + (rank == 3 ? i : i / A) * K; /* the slot's, or the token's */
        for (size_t o = 0; o < N; o++) {
            double slope = dy[i * N + o];
            if (slope == 0) continue;
            q3_widen(w->weight_row, weight, o * K, K, w->dtype);
            for (size_t k = 0; k < K; k++) row[k] += slope * (double)w->weight_row[k];
        }
    }
}

/* y = weight x r: dx = r weight dy - x r^2 / n (sum of y dy). */
static void push_norm(slopes *s, const q3_node *node, const double *dy, size_t row)
{
    walk *w = s->w;
    size_t n = node->op == Q3_OP_HEAD_NORM ? w->config->head_dim : row;
    const float *x = node->stream ? w->input : w->tap[node->from[0]], *y = w->tap[node->id];
    double *dx = NULL, eps = (double)(float)w->config->rms_norm_eps;
    if (node->stream) reach_stream(s);
    else dx = reach(s, node->from[0]);
    if (dx == NULL) return;
    q3_widen(w->weight_row, q3_graph_weight(node, w->weights, w->layer, 0), 0, n, w->dtype);
    for (size_t at = 0; at < w->T * row; at += n) {
        double square = 0, along = 0;
        for (size_t i = at; i < at + n; i++) {
            square += (double)x[i] * (double)x[i];
            along += dy[i] * (double)y[i];
        }
        double r = 1 / q3_sqrt(square / (double)n + eps);
        if (!q3_is_finite(r)) continue; /* a row of zeros, and no eps */
        for (size_t i = 0; i < n; i++)
            dx[at + i] += (double)w->weight_row[i] * r * dy[at + i] -
                          (double)x[at + i] * r * r / (double)n * along;
    }
}

/* ==== Rotary embedding ======================================================================== */

static void push_rope(slopes *s, const q3_node *node, const double *dy, size_t row)
{
    const walk *w = s->w;
    size_t hd = w->config->head_dim, half = hd / 2;
    const float *x = w->tap[node->from[0]], *cos = w->tap[Q3_TAP_COS], *sin = w->tap[Q3_TAP_SIN];
    double *dx = reach(s, node->from[0]), *dc = reach(s, Q3_TAP_COS), *ds = reach(s, Q3_TAP_SIN);
    for (size_t i = 0; i < w->T * row && s->memory; i++) {
        size_t d = i % hd, at = i / row * hd + d, other = d < half ? i + half : i - half;
        double sign = d < half ? -1 : 1;
        if (dx != NULL) dx[i] += dy[i] * (double)cos[at];
        if (dx != NULL) dx[other] += sign * dy[i] * (double)sin[at];
        if (dc != NULL) dc[at] += dy[i] * (double)x[i];
        if (ds != NULL) ds[at] += sign * dy[i] * (double)x[other];
    }
}

/* The tables of a kernel that does not round them are known: what that adds to the sum. (Most
 * cosines are near 1, so that their roundings have a direction.) */
static void own_table(slopes *s, q3_tap_id id)
{
    const walk *w = s->w;
    size_t hd = w->config->head_dim;
    double shift = 0;
    for (size_t i = 0; i < w->T * hd; i++) {
        float angle = (float)((double)(w->start + i / hd) * (double)w->inv_freq[i % (hd / 2)]);
        float exact = id == Q3_TAP_COS ? q3_cos(angle) : q3_sin(angle);
        shift += s->tap[id][i] *
                 ((double)exact * (double)w->scaling - (double)w->tap[id][i]);
    }
    s->shift += size_of(shift);
}

/* ==== Attention =============================================================================== */

/* A token's scores and probabilities once more, unrounded where they are hidden: into w->scores and
 * w->probs, which nobody reads any more. *shift: what probabilities that are not rounded add to the
 * sum, of slopes dp. */
static void attend(walk *w, size_t t, const double *dp, double *shift)
{
    const q3_config *c = w->config;
    size_t H = c->num_attention_heads, K = c->num_key_value_heads, hd = c->head_dim, T = w->T;
    size_t low = q3_first_key(t, c->sliding_window);
    const float *q = w->tap[Q3_TAP_Q_ROPE] + t * H * hd, *k = w->tap[Q3_TAP_K_ROPE];
    for (size_t h = 0; h < H; h++) {
        float *scores = w->scores + h * T, *probs = w->probs + h * T;
        double max = -1e300, sum = 0;
        for (size_t s = low; s <= t; s++) {
            double dot = 0;
            for (size_t d = 0; d < hd; d++)
                dot += (double)q[h * hd + d] * (double)k[(s * K + h / (H / K)) * hd + d];
            dot /= q3_sqrt((double)hd);
            if (w->given[Q3_TAP_SCORES]) dot = (double)w->tap[Q3_TAP_SCORES][(t * H + h) * T + s];
            scores[s] = (float)dot;
            if (dot > max) max = dot;
        }
        for (size_t s = low; s <= t; s++) sum += q3_exp((double)scores[s] - max);
        for (size_t s = low; s <= t; s++) {
            double p = q3_exp((double)scores[s] - max) / sum;
            if (dp != NULL) *shift += dp[h * T + s] * (p - (double)q3_round(p, w->dtype));
            probs[s] = (float)p;
            if (w->given[Q3_TAP_PROBS]) probs[s] = w->tap[Q3_TAP_PROBS][(t * H + h) * T + s];
        }
    }
}

/* Of a token's hidden probs or scores, whose bounds are not kept: a row [H,T]. */
static void own_square(slopes *s, q3_tap_id id, size_t t, const float *y, const double *slope)
{
    walk *w = s->w;
    size_t T = w->T, n = w->config->num_attention_heads * T;
    q3_bound_row(&s->scratch, w, id, t, y, n);
    for (size_t i = 0; i < n; i++) {
        double noise = s->scratch.noise[i];
        double var = noise * noise / 16 + s->scratch.slack[i] * q3_ulp((double)y[i], w->dtype) / 6;
        s->var += slope[i] * slope[i] * var;
        s->shift += size_of(slope[i]) * noise;
    }
}

/* From a token's scores [H,T] to queries and keys. */
static void push_scores(slopes *s, size_t t, const double *ds)
{
    const walk *w = s->w;
    const q3_config *c = w->config;
    size_t H = c->num_attention_heads, K = c->num_key_value_heads, hd = c->head_dim, T = w->T;
    double *dq = reach(s, Q3_TAP_Q_ROPE), *dk = reach(s, Q3_TAP_K_ROPE);
    double scale = 1 / q3_sqrt((double)hd);
    for (size_t i = 0; i < H * T && s->memory; i++) {
        size_t h = i / T, query = (t * H + h) * hd, key = (i % T * K + h / (H / K)) * hd;
        for (size_t d = 0; d < hd && ds[i] != 0; d++) {
            if (dq != NULL)
                dq[query + d] += scale * ds[i] * (double)w->tap[Q3_TAP_K_ROPE][key + d];
            if (dk != NULL)
                dk[key + d] += scale * ds[i] * (double)w->tap[Q3_TAP_Q_ROPE][query + d];
        }
    }
}

/* From a token's probabilities, whose slopes are dp, to its scores: ds = p (dp - sum of p dp). */
static void push_probs(slopes *s, size_t t, const double *dp)
{
    walk *w = s->w;
    size_t T = w->T, low = q3_first_key(t, w->config->sliding_window);
    if (w->given[Q3_TAP_SCORES]) return;
    memset(s->scores, 0, w->config->num_attention_heads * T * sizeof *s->scores);
    for (size_t h = 0; h < w->config->num_attention_heads; h++) {
        const float *p = w->probs + h * T;
        double mean = 0;
        for (size_t k = low; k <= t; k++) mean += (double)p[k] * dp[h * T + k];
        for (size_t k = low; k <= t; k++)
            s->scores[h * T + k] = (double)p[k] * (dp[h * T + k] - mean);
    }
    own_square(s, Q3_TAP_SCORES, t, w->scores, s->scores);
    push_scores(s, t, s->scores);
}

/* From a token's o_proj.input to values and probabilities. */
static void push_values(slopes *s, size_t t, const double *dy)
{
    walk *w = s->w;
    const q3_config *c = w->config;
    size_t H = c->num_attention_heads, K = c->num_key_value_heads, hd = c->head_dim, T = w->T;
    const float *v = w->tap[Q3_TAP_V_PROJ];
    double *dv = reach(s, Q3_TAP_V_PROJ);
    memset(s->probs, 0, H * T * sizeof *s->probs);
    for (size_t h = 0; h < H; h++)
        for (size_t k = q3_first_key(t, c->sliding_window); k <= t; k++) {
            size_t value = (k * K + h / (H / K)) * hd;
            double p = (double)w->probs[h * T + k];
            for (size_t d = 0; d < hd; d++) {
                s->probs[h * T + k] += dy[h * hd + d] * (double)v[value + d];
                if (dv != NULL) dv[value + d] += p * dy[h * hd + d];
            }
        }
}

/* From the rows of one of attention's three taps to what is before attention. */
static void push_attention(slopes *s, q3_tap_id id, const double *dy, size_t row)
{
    walk *w = s->w;
    size_t count = w->config->num_attention_heads * w->T;
    double shift = 0;
    memset(w->scores_var, 0, count * sizeof *w->scores_var);
    for (size_t t = 0; t < w->T && s->memory && s->known; t++) {
        if (id == Q3_TAP_SCORES) {
            push_scores(s, t, dy + t * row);
            continue;
        }
        attend(w, t, NULL, NULL);
        if (id == Q3_TAP_PROBS) {
            push_probs(s, t, dy + t * row);
            continue;
        }
        push_values(s, t, dy + t * row);
        if (w->given[Q3_TAP_PROBS]) continue;
        attend(w, t, s->probs, &shift);
        own_square(s, Q3_TAP_PROBS, t, w->probs, s->probs);
        push_probs(s, t, s->probs);
    }
    s->shift += size_of(shift);
}

/* ==== Router ================================================================================== */

/* dlogit = p (dp - sum of p dp). */
static void push_router(slopes *s, const double *dy, size_t E)
{
    const float *p = s->w->tap[Q3_TAP_ROUTER_PROBS];
    double *dx = reach(s, Q3_TAP_GATE);
    for (size_t t = 0; t < s->w->T && dx != NULL; t++) {
        double mean = 0;
        for (size_t i = t * E; i < (t + 1) * E; i++) mean += (double)p[i] * dy[i];
        for (size_t i = t * E; i < (t + 1) * E; i++) dx[i] += (double)p[i] * (dy[i] - mean);
    }
}

/* dp = (dw - sum of w dw) / sum of the chosen p; or dw. */
static void push_weights(slopes *s, const double *dy, size_t A)
{
    const walk *w = s->w;
    size_t E = w->config->num_experts;
    const float *p = w->tap[Q3_TAP_ROUTER_PROBS], *ids = w->tap[Q3_TAP_TOPK_INDICES];
    double *dx = reach(s, Q3_TAP_ROUTER_PROBS);
    for (size_t t = 0; t < w->T && dx != NULL; t++) {
        double mass = 0, mean = 0;
        for (size_t a = t * A; a < (t + 1) * A; a++) {
            mass += (double)p[t * E + (size_t)ids[a]];
            mean += (double)w->tap[Q3_TAP_TOPK_WEIGHTS][a] * dy[a];
        }
        if (!w->config->norm_topk_prob || !(mass > 0)) mass = 1, mean = 0;
        for (size_t a = t * A; a < (t + 1) * A; a++)
            dx[t * E + (size_t)ids[a]] += (dy[a] - mean) / mass;
    }
}

/* As own_table: a weight near 1 is rounded to it. */
static void own_weights(slopes *s)
{
    const walk *w = s->w;
    size_t E = w->config->num_experts, A = w->config->num_experts_per_tok;
    const float *p = w->tap[Q3_TAP_ROUTER_PROBS], *ids = w->tap[Q3_TAP_TOPK_INDICES];
    double shift = 0;
    for (size_t t = 0; t < w->T; t++) {
        double mass = 0;
        for (size_t a = t * A; a < (t + 1) * A; a++) mass += (double)p[t * E + (size_t)ids[a]];
        if (!w->config->norm_topk_prob || !(mass > 0)) mass = 1;
        for (size_t a = t * A; a < (t + 1) * A; a++)
            shift += s->tap[Q3_TAP_TOPK_WEIGHTS][a] * ((double)p[t * E + (size_t)ids[a]] / mass -
                                                       (double)w->tap[Q3_TAP_TOPK_WEIGHTS][a]);
    }
    s->shift += size_of(shift);
}

/* ==== MLP ===================================================================================== */

static void push_silu(slopes *s, const q3_node *node, const double *dy, size_t count)
{
    const float *x = s->w->tap[node->from[0]];
    double *dx = reach(s, node->from[0]);
    for (size_t i = 0; i < count && dx != NULL; i++) dx[i] += dy[i] * q3_silu_slope((double)x[i]);
}

static void push_product(slopes *s, const q3_node *node, const double *dy, size_t count)
{
    const float *act = s->w->tap[node->from[0]], *up = s->w->tap[node->from[1]];
    double *da = reach(s, node->from[0]), *du = reach(s, node->from[1]);
    for (size_t i = 0; i < count && s->memory; i++) {
        if (da != NULL) da[i] += dy[i] * (double)up[i];
        if (du != NULL) du[i] += dy[i] * (double)act[i];
    }
}

static void push_combine(slopes *s, const double *dy, size_t M)
{
    const walk *w = s->w;
    size_t A = w->config->num_experts_per_tok;
    const float *down = w->tap[Q3_TAP_EXPERTS_DOWN_PROJ], *weight = w->tap[Q3_TAP_TOPK_WEIGHTS];
    double *dd = reach(s, Q3_TAP_EXPERTS_DOWN_PROJ), *dw = reach(s, Q3_TAP_TOPK_WEIGHTS);
    for (size_t i = 0; i < w->T * A * M && s->memory; i++) {
        double slope = dy[i / M / A * M + i % M];
        if (dd != NULL) dd[i] += slope * (double)weight[i / M];
        if (dw != NULL) dw[i / M] += slope * (double)down[i];
    }
}

static void push_sum(slopes *s, const q3_node *node, const double *dy, size_t count)
{
    if (node->stream) reach_stream(s);
    for (size_t k = 0; k < node->count; k++) {
        double *dx = reach(s, node->from[k]);
        for (size_t i = 0; i < count && dx != NULL; i++) dx[i] += dy[i];
    }
}

/* ==== Every tap =============================================================================== */

static void push(slopes *s, q3_tap_id id, const double *dy)
{
    walk *w = s->w;
    const q3_node *node = q3_graph_node(w->config, id, w->layer);
    size_t row = q3_tap_row_size(w->config, id, w->T), count = w->T * row;
    switch (node->op) {
    case Q3_OP_EMBEDDING: case Q3_OP_TABLE: case Q3_OP_TOPK: break;
    case Q3_OP_NORM: case Q3_OP_HEAD_NORM: push_norm(s, node, dy, row); break;
    case Q3_OP_LINEAR: push_linear(s, node, dy, row); break;
    case Q3_OP_ROPE: push_rope(s, node, dy, row); break;
    case Q3_OP_SCORES: case Q3_OP_PROBS: case Q3_OP_VALUES: push_attention(s, id, dy, row); break;
    case Q3_OP_SUM: push_sum(s, node, dy, count); break;
    case Q3_OP_ROUTER: push_router(s, dy, row); break;
    case Q3_OP_ROUTER_WEIGHTS: push_weights(s, dy, row); break;
    case Q3_OP_EXPERT_LINEAR: push_experts(s, node, dy); break;
    case Q3_OP_SILU: push_silu(s, node, dy, count); break;
    case Q3_OP_PRODUCT: push_product(s, node, dy, count); break;
    case Q3_OP_COMBINE: push_combine(s, dy, row); break;
    }
}

/* The roundings of a hidden tap itself. The noise of a row may have one sign, as that of a norm,
 * which is one factor, has. */
static void own(slopes *s, q3_tap_id id)
{
    const walk *w = s->w;
    size_t row = q3_tap_row_size(w->config, id, w->T);
    double common = 0, noise = 0;
    for (size_t t = 0; t < w->T; t++) {
        double of_row = 0;
        for (size_t i = t * row; i < (t + 1) * row; i++) {
            double slope = s->tap[id][i], sd = (double)w->own_sd[id][i];
            double along = w->tap[id][i] < 0 ? -slope : slope;
            s->var += slope * slope * sd * sd;
            common += along * COMMON * sd;
            of_row += along * (double)w->own_noise[id][i];
        }
        noise += size_of(of_row);
    }
    common = size_of(common) + noise;
    s->common += common * common;
    if (id == Q3_TAP_COS || id == Q3_TAP_SIN) own_table(s, id);
    if (id == Q3_TAP_TOPK_WEIGHTS) own_weights(s);
}

/* A tap is computed from taps that come before it: backwards, each is reached when its slopes are
 * complete. */
bool q3_gain_reach(spread *out, walk *w, q3_tap_id id, const double *slope)
{
    size_t n = w->config->num_attention_heads * w->T;
    slopes s = {.w = w, .known = true};
    s.probs = calloc(n, sizeof *s.probs);
    s.scores = calloc(n, sizeof *s.scores);
    s.scratch = (row_bound){calloc(n, sizeof(double)), calloc(n, sizeof(double)),
                            calloc(n, sizeof(double)), 1, 1};
    s.memory = s.probs != NULL && s.scores != NULL && s.scratch.slack != NULL &&
               s.scratch.noise != NULL && s.scratch.var != NULL;
    for (size_t i = (size_t)id + 1; i-- > 0 && s.memory && s.known;) {
        if (i != (size_t)id && s.tap[i] == NULL) continue;
        if (i != (size_t)id) own(&s, (q3_tap_id)i);
        push(&s, (q3_tap_id)i, i == (size_t)id ? slope : s.tap[i]);
    }
    s.known = s.known && q3_is_finite(s.var) && q3_is_finite(s.common) && q3_is_finite(s.shift);
    *out = (spread){s.known, s.var, q3_sqrt(s.common) + s.shift};
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) free(s.tap[i]);
    free(s.probs);
    free(s.scores);
    free(s.scratch.slack);
    free(s.scratch.noise);
    free(s.scratch.var);
    return s.memory;
}
