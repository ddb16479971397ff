/* SPDX-License-Identifier: MIT */
/* evaluate.c - one layer's forward pass with one mistake in it: walks the graph from what the
 * mistake touches to the tensor in question. Arguments, weights and results are edited as the
 * mistake says; what lies between is computed by the public operators. What the other
 * implementation gave stands in the place of what is computed, so a mistake shows in the tensors
 * behind it as far as the next given ones. */
#include "judge/operation.h"

#include "host/files.h"

#include <stdlib.h>
#include <string.h>

static const edit *edit_of(const operation *o, part at)
{
    for (size_t i = 0; o->edits != NULL && i < EDITS; i++)
        if (o->edits[i].at == at) return &o->edits[i];
    return NULL;
}

change q3_change_of(const operation *o, part at)
{
    const edit *found = edit_of(o, at);
    return found != NULL ? found->what : NO_CHANGE;
}

/* What the operator rounds to: the edit of the result does it in its place, or nothing does. */
q3_dtype q3_rounds_to(const operation *o)
{
    change result = q3_change_of(o, RESULT);
    bool later = result == UNROUNDED || result == ROUNDED || result == STORED;
    return later ? Q3_F32 : o->e->dtype;
}

void *q3_pass_room(pass *p, size_t count, size_t size)
{
    void *block = calloc(count + 1, size);
    if (block == NULL) p->no_memory = true;
    return block;
}

/* Floats as a weight: little-endian, as in files. */
static q3_tensor as_tensor(uint8_t *bytes, const float *values, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &values[i], 4);
        for (unsigned k = 0; k < 4; k++) bytes[4 * i + k] = (uint8_t)(u >> 8 * k & 0xFF);
    }
    return (q3_tensor){bytes, Q3_F32};
}

/* ==== Which taps an edit means ================================================================ */

/* The tap that is to the keys what `tap` is to the queries, or to a dense MLP what it is to the
 * experts, if the operator of `id` is one of those. */
static q3_tap_id counterpart(q3_tap_id id, q3_tap_id tap)
{
    bool keys = id == Q3_TAP_K_NORM || id == Q3_TAP_K_ROPE;
    if (keys && tap == Q3_TAP_Q_PROJ) return Q3_TAP_K_PROJ;
    if (keys && tap == Q3_TAP_Q_NORM) return Q3_TAP_K_NORM;
    if (keys && tap == Q3_TAP_Q_ROPE) return Q3_TAP_K_ROPE;
    for (size_t i = 0; q3_tap_info(id)->place == Q3_PLACE_DENSE && i < Q3_TAP_COUNT; i++)
        if (q3_tap_info((q3_tap_id)i)->like == tap) return (q3_tap_id)i;
    return tap;
}

/* Whose weight is taken by mistake. */
static q3_tap_id partner(q3_tap_id id)
{
    static const q3_tap_id pairs[][2] = {
        {Q3_TAP_COS, Q3_TAP_SIN}, {Q3_TAP_K_PROJ, Q3_TAP_V_PROJ}, {Q3_TAP_Q_NORM, Q3_TAP_K_NORM},
        {Q3_TAP_INPUT_LAYERNORM, Q3_TAP_POST_ATTENTION_LAYERNORM},
        {Q3_TAP_LM_HEAD, Q3_TAP_EMBED_TOKENS},
        {Q3_TAP_EXPERTS_GATE_PROJ, Q3_TAP_EXPERTS_UP_PROJ},
        {Q3_TAP_DENSE_GATE_PROJ, Q3_TAP_DENSE_UP_PROJ},
    };
    if (id == Q3_TAP_NORM) return Q3_TAP_POST_ATTENTION_LAYERNORM; /* of the last layer */
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        for (size_t k = 0; k < 2; k++)
            if (pairs[i][k] == id) return pairs[i][1 - k];
    return id;
}

static const q3_node *partner_node(const operation *o, size_t *layer)
{
    const q3_config *c = o->e->config;
    *layer = o->node->id == Q3_TAP_NORM ? c->num_hidden_layers - 1 : o->e->layer;
    return q3_graph_node(c, partner(o->node->id), *layer);
}

/* The weight, or its partner's. */
static q3_tensor weight_of(const operation *o, bool of_partner, size_t expert)
{
    size_t layer = o->e->layer;
    const q3_node *node = of_partner ? partner_node(o, &layer) : o->node;
    if (node == NULL) return (q3_tensor){NULL, Q3_F32};
    return q3_graph_weight(node, o->e->weights, layer, expert);
}

/* ==== Arguments =============================================================================== */

const float *q3_pass_get(pass *p, q3_tap_id id);
static bool run(pass *p, const q3_node *node, const float *x, const double *x_var, float *y,
                double *doubt, bool last);

static size_t row_of(const evidence *e, q3_tap_id id)
{
    return id == STREAM ? e->config->hidden_size : q3_tap_row_size(e->config, id, e->T);
}

const q3_node *q3_node_of(const evidence *e, q3_tap_id id)
{
    return q3_graph_node(e->config, id, e->layer);
}

/* The variance of a tap inside the pass; NULL: none. */
const double *q3_pass_var(const pass *p, q3_tap_id id)
{
    if (id == STREAM) return p->e->input_var;
    return p->doubt[id] != NULL ? p->doubt[id] : p->e->var[id];
}

/* The variance of x[i], which is about to be edited. */
static double *copy_var(operation *o, size_t i, size_t count)
{
    if (o->doubt == NULL) return NULL;
    double *copy = o->own_var[i] = q3_pass_room(o->p, count, sizeof *copy);
    if (copy != NULL && o->var[i] != NULL) memcpy(copy, o->var[i], count * sizeof *copy);
    o->var[i] = copy;
    return copy;
}

/* x[i], edited. False: something is not known, or no memory. */
bool q3_take(operation *o, size_t i, q3_tap_id from)
{
    const evidence *e = o->e;
    const edit *by = NULL;
    for (size_t k = 0; o->edits != NULL && k < EDITS; k++) {
        const edit *next = &o->edits[k];
        if (next->at != (part)(ARG_1 + i)) continue;
        if (next->what == READ_PAST && e->given[from]) return false;
        if (next->what == READ || next->what == READ_PAST)
            from = counterpart(o->node->id, next->tap);
        else by = next;
    }
    size_t row = row_of(e, from);
    o->n[i] = q3_tap_of_experts(from) ? row / e->config->num_experts_per_tok : row;
    o->rows[i] = e->T * row / o->n[i];
    if (by != NULL && !q3_can_alter(by->what, o->value, o->n[i])) return false;
    o->x[i] = from == STREAM ? e->input : q3_pass_get(o->p, from);
    o->var[i] = q3_pass_var(o->p, from);
    if (by == NULL || o->x[i] == NULL) return o->x[i] != NULL;
    float *copy = o->own[i] = q3_pass_room(o->p, e->T * row + o->n[i], sizeof *copy);
    double *var = copy_var(o, i, e->T * row);
    if (copy == NULL || o->p->no_memory) return false;
    memcpy(copy, o->x[i], e->T * row * sizeof *copy);
    if (by->what >= GROUPED_FP8 && by->what <= OFF_SQUARED) {
        q3_tensor weight = weight_of(o, false, 0);
        for (size_t r = 0; r < o->rows[i]; r++)
            q3_quantise_activations(copy + r * o->n[i], o->n[i], weight, by->what, o->value);
    } else if (by->what == THROUGH) {
        const q3_node *node = q3_node_of(e, counterpart(o->node->id, by->tap));
        if (!run(o->p, node, o->x[i], q3_pass_var(o->p, from), copy, var, false)) return false;
    } else {
        /* Not rounded once more: what is in a format, a float32 step, a limit that was found. */
        bool wide = by->what == ROUNDED || by->what == SIGMOID || by->what == WITHIN;
        q3_dtype dtype = wide ? Q3_F32 : from == STREAM ? e->dtype : q3_tap_dtype(from, e->dtype);
        q3_alter(copy, copy + e->T * row, o->rows[i], o->n[i], by->what, o->value, dtype, e->config,
                 o->ids);
        if (var != NULL && !q3_margin_alter(o->x[i], copy, var, o->rows[i], o->n[i], by->what,
                                            o->value, dtype, e->config, o->ids, false))
            o->p->no_memory = true;
    }
    o->x[i] = copy;
    return true;
}

/* ==== Embedding and tables (MODEL.md sections 4 and 5) ======================================== */

static bool run_embedding(operation *o, float *y)
{
    const evidence *e = o->e;
    size_t V = e->config->vocab_size;
    int64_t shift = q3_change_of(o, ARG_1) == SHIFTED ? (int64_t)o->value : 0;
    q3_tensor weight = weight_of(o, false, 0);
    int32_t *ids = q3_pass_room(o->p, e->T, sizeof *ids);
    bool good = e->ids != NULL && weight.data != NULL && ids != NULL;
    for (size_t t = 0; good && t < e->T; t++) {
        int64_t id = e->ids[t] + shift;
        ids[t] = id < 0 || (uint64_t)id >= V ? e->ids[t] : (int32_t)id;
    }
    if (good) q3_embedding(y, ids, weight, e->T, V, e->config->hidden_size, o->dtype);
    free(ids);
    return good;
}

/* A blend r = a b + c (1 - b) becomes a (1 - b) + c b = a + c - r: of a frequency c of RoPE
 * without scaling, and a, which is c over the factor. */
static void invert_ramp(float *inv_freq, const q3_rope *rope, size_t hd)
{
    for (size_t j = 0; j < hd / 2; j++) {
        double c = q3_exp(-2 * (double)j / (double)hd * q3_log(rope->rope_theta));
        inv_freq[j] = (float)(c + c / rope->factor - (double)inv_freq[j]);
    }
}

/* cos and sin [T,hd] with an edited parameter; at a tap behind the tables, too. bounded: which of
 * the two is the operator's result, if its bounds are asked for. */
static bool make_table(operation *o, float *cos, float *sin, size_t hd, const float *bounded)
{
    const evidence *e = o->e;
    change what = q3_change_of(o, PARAMETER);
    q3_rope rope = e->config->rope;
    size_t half = hd / 2;
    float *inv_freq = q3_pass_room(o->p, 2 * half, sizeof *inv_freq), *safe = inv_freq + half;
    if (inv_freq == NULL) return false;
    if (what == THETA) rope.rope_theta = o->value;
    if (what == UNSCALED) rope.type = Q3_ROPE_DEFAULT;
    if (what == FACTOR) rope.factor = o->value;
    size_t most = e->config->max_position_embeddings, length = e->start + e->T;
    if (!q3_rope_fits(&rope, hd, most, length)) {
        free(inv_freq);
        return false;
    }
    float scaling = q3_rope_frequencies(inv_freq, &rope, hd, most, length);
    if (what == RAMP_INVERTED) invert_ramp(inv_freq, &rope, hd);
    if (what == NO_ATTENTION_FACTOR || (what == RAMP_INVERTED && o->value != 0)) scaling = 1.0f;
    if (what == FREQUENCIES)
        q3_alter(inv_freq, NULL, 1, half, ROUNDED, o->value, Q3_F32, e->config, NULL);
    for (size_t t = 0; t < e->T; t++) {
        double position = (double)(e->start + t);
        if (what == FIRST_POSITION) position = o->value + (double)t;
        if (what == ONE_POSITION) position = o->value;
        if (what == POSITIONS) position = q3_to_format(position, q3_format_in(o->value));
        if (!(position < 0x1p31)) position = 0;
        /* Angles beyond 2^20, which q3_cos does not take, are 0. */
        for (size_t j = 0; j < half; j++)
            safe[j] = position * (double)inv_freq[j] <= 0x1p20 ? inv_freq[j] : 0.0f;
        q3_rope_table(cos + t * hd, sin + t * hd, safe, scaling, 1, (size_t)position, hd, o->dtype);
        if (bounded == NULL || o->doubt == NULL) continue;
        margin *g = o->p->margin;
        q3_margin_begin(g, e);
        g->w.start = (size_t)position, g->w.inv_freq = safe, g->w.scaling = scaling;
        q3_margin_row(g, o->node->id, 0, bounded + t * hd, o->doubt + t * hd, hd, o->last);
    }
    free(inv_freq);
    return true;
}

static bool run_table(operation *o, float *y)
{
    size_t hd = o->e->config->head_dim, count = o->e->T * hd;
    float *other = q3_pass_room(o->p, count, sizeof *other);
    bool sine = (o->node->id == Q3_TAP_SIN) != (q3_change_of(o, WEIGHT) == PARTNERS);
    bool good = other != NULL && make_table(o, sine ? other : y, sine ? y : other, hd, y);
    free(other);
    return good;
}

/* ==== Norms and rotary embedding (MODEL.md sections 4 and 5) ================================== */

/* w[n * heads]: the weight, edited, as often as there are heads. */
static bool norm_weight(operation *o, float *w, size_t n, size_t heads)
{
    const edit *by = edit_of(o, WEIGHT);
    q3_tensor weight = weight_of(o, by != NULL && by->what == PARTNERS, 0);
    if (weight.data == NULL) return false;
    for (size_t h = 0; h < heads; h++) q3_widen(w + h * n, weight, 0, n, o->dtype);
    if (by != NULL) q3_alter(w, w, 1, n * heads, by->what, o->value, o->dtype, o->e->config, NULL);
    return true;
}

static bool run_norm(operation *o, float *y)
{
    const evidence *e = o->e;
    change what = q3_change_of(o, ROUNDING);
    bool head = o->node->op == Q3_OP_HEAD_NORM, together = q3_change_of(o, PARAMETER) == ALL_HEADS;
    size_t n = head ? e->config->head_dim : o->n[0], heads = together ? o->n[0] / n : 1;
    size_t wide = n * heads;
    size_t rows = e->T * o->n[0] / wide;
    float eps = (float)(q3_change_of(o, PARAMETER) == EPS ? o->value : e->config->rms_norm_eps);
    const float *x = o->x[0], *branch = NULL;
    if (together && !head) return false;
    /* of what post_attention_layernorm's argument is the rounded sum of */
    if (what == UNROUNDED_SUM) {
        if (o->node->id != Q3_TAP_POST_ATTENTION_LAYERNORM) return false;
        x = e->input, branch = q3_pass_get(o->p, Q3_TAP_O_PROJ);
        if (x == NULL || branch == NULL) return false;
    }
    float *w = q3_pass_room(o->p, wide, sizeof *w);
    uint8_t *bytes = q3_pass_room(o->p, wide, 4);
    bool good = w != NULL && bytes != NULL && norm_weight(o, w, n, heads);
    if (good && what != NO_CHANGE)
        q3_rounding_norm(y, x, branch, w, rows, wide, (double)eps, what, o->value, o->dtype);
    else if (good) q3_rmsnorm(y, x, as_tensor(bytes, w, wide), rows, wide, eps, o->dtype);
    free(w);
    free(bytes);
    return good;
}

static bool run_rope(operation *o, float *y)
{
    const evidence *e = o->e;
    const float *x = o->x[0], *cos = o->x[1], *sin = o->x[2];
    change what = q3_change_of(o, PARAMETER);
    size_t hd = e->config->head_dim, heads = o->n[0] / hd, width = what == HALF_WIDTH ? hd / 2 : hd;
    float *table = what != NO_CHANGE ? q3_pass_room(o->p, 2 * e->T * hd, sizeof *table) : NULL;
    bool good = width % 2 == 0;
    if (what != NO_CHANGE) {
        good = good && table != NULL && make_table(o, table, table + e->T * hd, width, NULL);
        cos = table, sin = table + e->T * hd;
    }
    change rounding = q3_change_of(o, ROUNDING);
    if (good && rounding != NO_CHANGE)
        q3_rounding_rope(y, x, cos, sin, e->T, heads, hd, rounding, o->dtype);
    else if (good && width == hd) q3_rope_apply(y, x, cos, sin, e->T, heads, hd, o->dtype);
    else if (good) memcpy(y, x, e->T * o->n[0] * sizeof *y);
    for (size_t r = 0; good && width < hd && r < e->T * heads; r++)
        q3_rope_apply(y + r * hd, x + r * hd, cos + r / heads * width, sin + r / heads * width, 1,
                      1, width, o->dtype);
    for (size_t i = 0; good && q3_change_of(o, RESULT) == UPPER_KEPT && i < e->T * o->n[0]; i++)
        if (i % hd >= hd / 2) y[i] = x[i];
    free(table);
    return good;
}

/* ==== Linear maps (MODEL.md section 4) ======================================================== */

/* y[T,N] = x[T,K] weight[N,K]^T + bias. other: of a mistake that mixes two weights. */
typedef struct map {
    const float *x;
    q3_tensor weight, bias, other;
    size_t T, N, K;
} map;

static double largest_weight(const map *m, q3_dtype dtype)
{
    float some[64];
    double most = 0;
    for (size_t i = 0; i < m->N * m->K; i += 64) {
        size_t n = m->N * m->K - i < 64 ? m->N * m->K - i : 64;
        q3_widen(some, m->weight, i, n, dtype);
        for (size_t k = 0; k < n; k++)
            if (q3_absolute((double)some[k]) > most) most = q3_absolute((double)some[k]);
    }
    return most;
}

/* Row r of the weight, edited. most: the tensor's largest value (FP8_SCALED). A quantised weight of
 * more than 24 bits (FP8 with a float32 scale) is rounded to float32, by at most 2^-25 of it each:
 * that is within the u S which the bound of a sum has for its operands (MODEL.md 12.1). */
static void weight_row(const operation *o, float *row, const map *m, size_t r, double most)
{
    change what = q3_change_of(o, WEIGHT);
    q3_tensor weight = m->weight;
    if (what == INTERLEAVED) { /* gate and up stacked, and rows taken alternately */
        bool up = o->node->id == Q3_TAP_EXPERTS_UP_PROJ || o->node->id == Q3_TAP_DENSE_UP_PROJ;
        size_t from = 2 * r + up;
        if ((from < m->N) == up) weight = m->other;
        r = from % m->N;
    }
    if (what == TRANSPOSED)
        for (size_t k = 0; k < m->K; k++) q3_widen(row + k, weight, k * m->N + r, 1, o->e->dtype);
    else
        q3_widen(row, weight, r * m->K, m->K, o->e->dtype);
    if (what == ROUNDED || what == SQUARED)
        q3_alter(row, NULL, 1, m->K, what, o->value, Q3_F32, o->e->config, NULL);
    if (what == FP8_SCALED || what == INT8_SCALED)
        q3_rounding_weight(row, m->K, most, what, o->e->dtype);
}

/* The bias of row r, edited. */
static float bias_of(const operation *o, const map *m, size_t r)
{
    change what = q3_change_of(o, BIAS);
    size_t hd = o->e->config->head_dim, heads = m->N / hd;
    float bias = 0.0f;
    if (m->bias.data == NULL) return 0.0f;
    if (what == BY_CHANNEL) r = r % heads * hd + r / heads;
    if (what == BY_HEAD) r = r % hd * heads + r / hd;
    q3_widen(&bias, m->bias, r, 1, o->e->dtype);
    return what == TIMES ? bias * (float)o->value : bias;
}

/* Of the tensor in question only some channels may be wanted. */
static const sample *wanted(const operation *o)
{
    return o->node->id == o->e->id ? o->p->only : NULL;
}

/* Some rows of the weight at a time, as the mistake has them. */
static bool run_rows(operation *o, const map *m, float *y)
{
    enum { SOME = 16 };
    change sum = q3_change_of(o, ROUNDING);
    const sample *only = wanted(o);
    size_t count = only != NULL ? only->count : m->N;
    float *rows = q3_pass_room(o->p, SOME * m->K, sizeof *rows);
    float *some = q3_pass_room(o->p, m->T, SOME * sizeof *some), bias[SOME];
    uint8_t bytes[4 * SOME];
    bool good = rows != NULL && some != NULL;
    double most = q3_change_of(o, WEIGHT) == FP8_SCALED ? largest_weight(m, o->e->dtype) : 0;
    for (size_t r = 0; good && r < count; r += SOME) {
        size_t n = count - r < SOME ? count - r : SOME, at[SOME];
        for (size_t i = 0; i < n; i++) {
            at[i] = only != NULL ? only->channel[r + i] : r + i;
            weight_row(o, rows + i * m->K, m, at[i], most);
            bias[i] = bias_of(o, m, at[i]);
        }
        for (size_t i = 0; sum != NO_CHANGE && i < m->T * n; i++)
            some[i] = q3_rounding_sum(rows + i % n * m->K, m->x + i / n * m->K, m->K,
                                      (double)bias[i % n], sum, o->value, o->dtype);
        q3_dots dots = {.x = m->x, .x_stride = m->K, .rows = rows, .row_stride = m->K,
                        .bias = as_tensor(bytes, bias, n), .T = m->T, .N = n, .C = m->K,
                        .dtype = o->dtype, .y = some, .y_stride = n};
        if (sum == NO_CHANGE) q3_run_dots(&dots);
        for (size_t i = 0; i < m->T * n; i++) y[i / n * m->N + at[i % n]] = some[i];
    }
    free(rows);
    free(some);
    return good;
}

static bool run_map(operation *o, const map *m, float *y)
{
    change weight = q3_change_of(o, WEIGHT), bias = q3_change_of(o, BIAS);
    bool whole = weight == NO_CHANGE || weight == PARTNERS || weight == PERMUTED;
    bool plain = bias == NO_CHANGE || bias == MISSING;
    if (m->weight.data == NULL || (weight == INTERLEAVED && m->other.data == NULL)) return false;
    if (!whole || !plain || q3_change_of(o, ROUNDING) != NO_CHANGE || o->dtype != o->e->dtype ||
        wanted(o) != NULL)
        return run_rows(o, m, y);
    q3_linear(y, m->x, m->weight, m->bias, m->T, m->N, m->K, o->dtype);
    return true;
}

static bool run_linear(operation *o, float *y)
{
    const evidence *e = o->e;
    change bias = q3_change_of(o, BIAS);
    size_t layer = e->layer;
    bool other = q3_change_of(o, WEIGHT) == PARTNERS;
    const q3_node *node = other ? partner_node(o, &layer) : o->node;
    map m = {.x = o->x[0], .weight = weight_of(o, other, 0), .other = weight_of(o, true, 0),
             .T = e->T, .N = row_of(e, o->node->id), .K = o->n[0]};
    m.bias = q3_graph_bias(node, e->weights, layer);
    if ((bias != NO_CHANGE || q3_change_of(o, ROUNDING) == BIAS_LATER) && m.bias.data == NULL)
        return false;
    if ((bias == BY_CHANNEL || bias == BY_HEAD) && m.N % e->config->head_dim != 0) return false;
    if (bias == MISSING) m.bias.data = NULL;
    return run_map(o, &m, y);
}

/* All slots that have expert e: gathered, mapped, scattered. in, out: [T*A] rows. */
static bool run_expert(operation *o, float *y, float *in, float *out, size_t e)
{
    /* rows of x a token */
    size_t A = o->e->config->num_experts_per_tok, n = 0, each = o->rows[0] / o->e->T;
    bool weighted = q3_change_of(o, ARG_1) == WEIGHTED;
    const float *weights = weighted ? q3_pass_get(o->p, Q3_TAP_TOPK_WEIGHTS) : NULL;
    map m = {.x = in, .N = row_of(o->e, o->node->id) / A, .K = o->n[0]};
    if (weighted && weights == NULL) return false;
    for (size_t slot = 0; slot < o->e->T * A; slot++) {
        if (o->ids[slot] != (float)e) continue;
        float *row = in + n++ * m.K;
        memcpy(row, o->x[0] + slot * each / A * m.K, m.K * sizeof *row);
        for (size_t k = 0; k < m.K && weighted; k++)
            row[k] = q3_round((double)row[k] * (double)weights[slot], o->dtype);
    }
    if ((m.T = n) == 0) return true;
    m.weight = weight_of(o, q3_change_of(o, WEIGHT) == PARTNERS,
                         q3_change_of(o, WEIGHT) == PERMUTED ? o->p->m->map[e] : e);
    m.other = weight_of(o, true, e);
    if (!run_map(o, &m, out)) return false;
    n = 0;
    for (size_t slot = 0; slot < o->e->T * A; slot++)
        if (o->ids[slot] == (float)e) memcpy(y + slot * m.N, out + n++ * m.N, m.N * sizeof *y);
    return true;
}

static bool run_experts(operation *o, float *y)
{
    const q3_config *c = o->e->config;
    size_t slots = o->e->T * c->num_experts_per_tok;
    float *in = q3_pass_room(o->p, slots, o->n[0] * sizeof *in);
    float *out = q3_pass_room(o->p, o->e->T, row_of(o->e, o->node->id) * sizeof *out);
    bool good = in != NULL && out != NULL;
    for (size_t e = 0; e < c->num_experts && good; e++) good = run_expert(o, y, in, out, e);
    free(in);
    free(out);
    return good;
}

/* ==== Router, MLP (MODEL.md section 7) ======================================================== */

/* The chosen experts as integers. owned. */
static int32_t *whole_ids(const operation *o)
{
    size_t count = o->e->T * o->e->config->num_experts_per_tok;
    int32_t *ids = q3_pass_room(o->p, count, sizeof *ids);
    for (size_t i = 0; ids != NULL && i < count; i++) ids[i] = (int32_t)o->ids[i];
    return ids;
}

static bool run_choice(operation *o, float *y)
{
    const q3_config *c = o->e->config;
    size_t count = o->e->T * c->num_experts_per_tok;
    int32_t *ids = q3_pass_room(o->p, count, sizeof *ids);
    if (ids == NULL) return false;
    q3_router_topk(ids, o->x[0], o->e->T, c->num_experts, c->num_experts_per_tok);
    for (size_t i = 0; i < count; i++) y[i] = (float)ids[i];
    free(ids);
    return true;
}

static bool run_weights(operation *o, float *y)
{
    const q3_config *c = o->e->config;
    size_t E = c->num_experts, A = c->num_experts_per_tok;
    bool normed = q3_change_of(o, PARAMETER) == RENORMALISED ? o->value != 0 : c->norm_topk_prob;
    int32_t *ids = whole_ids(o);
    if (ids == NULL) return false;
    change rounding = q3_change_of(o, ROUNDING);
    if (rounding != NO_CHANGE)
        for (size_t t = 0; t < o->e->T; t++)
            q3_rounding_weights(y + t * A, o->x[0] + t * E, o->ids + t * A, A, normed, rounding,
                                o->dtype);
    else q3_router_weights(y, o->x[0], ids, o->e->T, E, A, normed, o->dtype);
    free(ids);
    return true;
}

static bool run_combine(operation *o, float *y)
{
    const q3_config *c = o->e->config;
    int32_t *ids = whole_ids(o);
    if (ids == NULL) return false;
    q3_expert_combine(y, o->x[0], ids, o->x[1], o->e->T, c->num_experts_per_tok, c->hidden_size,
                      o->dtype);
    free(ids);
    return true;
}

/* The router's softmax, its steps rounded. */
static bool run_low_router(operation *o, float *y, change what)
{
    size_t T = o->rows[0], E = o->n[0];
    double *scratch = q3_pass_room(o->p, E, sizeof *scratch);
    if (scratch == NULL) return false;
    memcpy(y, o->x[0], T * E * sizeof *y);
    q3_rounding_probs(y, scratch, T, E, what, o->value, Q3_F32);
    free(scratch);
    return true;
}

/* Softmax over the experts, SiLU: or another function of each element. */
static bool run_function(operation *o, float *y)
{
    const float *x = o->x[0];
    size_t count = o->rows[0] * o->n[0];
    change other = q3_change_of(o, PARAMETER);
    bool router = o->node->op == Q3_OP_ROUTER;
    q3_dtype dtype = router ? o->e->router : o->dtype;
    change rounding = q3_change_of(o, ROUNDING);
    if (rounding != NO_CHANGE && router)
        return run_low_router(o, y, rounding);
    if (rounding == SIGMOID_ROUNDED) q3_rounding_silu(y, x, count, dtype);
    else if (router) q3_router_probs(y, x, o->rows[0], o->n[0]);
    else q3_silu_map(y, x, count, dtype);
    for (size_t i = 0; i < count && router && dtype != Q3_F32; i++)
        y[i] = q3_round((double)y[i], dtype);
    for (size_t i = 0; i < count && other != NO_CHANGE; i++)
        y[i] = q3_round(q3_altered((double)x[i], other, o->value, dtype), dtype);
    return true;
}

/* ==== One operator ============================================================================ */

static bool run_operator(operation *o, float *y)
{
    size_t count = o->rows[0] * o->n[0];
    switch (o->node->op) {
    case Q3_OP_EMBEDDING: return run_embedding(o, y);
    case Q3_OP_TABLE: return run_table(o, y);
    case Q3_OP_NORM: case Q3_OP_HEAD_NORM: return run_norm(o, y);
    case Q3_OP_LINEAR: return run_linear(o, y);
    case Q3_OP_EXPERT_LINEAR: return run_experts(o, y);
    case Q3_OP_ROPE: return run_rope(o, y);
    case Q3_OP_SCORES: case Q3_OP_PROBS: case Q3_OP_VALUES: return q3_run_attention(o, y);
    case Q3_OP_ROUTER: case Q3_OP_SILU: return run_function(o, y);
    case Q3_OP_TOPK: return run_choice(o, y);
    case Q3_OP_ROUTER_WEIGHTS: return run_weights(o, y);
    case Q3_OP_COMBINE: return run_combine(o, y);
    case Q3_OP_SUM: q3_residual_add(y, o->x[0], o->x[1], count, o->dtype); return true;
    case Q3_OP_PRODUCT: break;
    default: return false;
    }
    if (q3_change_of(o, ROUNDING) == ONCE)
        q3_rounding_product(y, o->x[0], o->x[1], count, o->dtype);
    else q3_multiply(y, o->x[0], o->x[1], count, o->dtype);
    return true;
}

/* All arguments but those of attention, which takes its own. */
static bool take_all(operation *o, const float *x, const double *x_var)
{
    const q3_node *node = o->node;
    bool inside = node->op == Q3_OP_SCORES || node->op == Q3_OP_PROBS || node->op == Q3_OP_VALUES;
    bool chosen = node->op == Q3_OP_EXPERT_LINEAR || node->op == Q3_OP_ROUTER_WEIGHTS ||
        node->op == Q3_OP_COMBINE;
    bool good = true;
    bool unbiased = q3_change_of(o, BIAS) == NO_CHANGE && q3_change_of(o, ROUNDING) != BIAS_LATER;
    if (node->op == Q3_OP_EXPERT_LINEAR && !unbiased) return false;
    if (chosen && (o->ids = q3_pass_get(o->p, Q3_TAP_TOPK_INDICES)) == NULL) return false;
    for (size_t i = 0; !inside && i < (size_t)node->count + node->stream; i++) {
        q3_tap_id from = node->stream && i == 0 ? STREAM : node->from[i - node->stream];
        if (from == Q3_TAP_TOPK_INDICES) continue;
        if (i == 0 && x != NULL)
            o->x[0] = x, o->var[0] = x_var, o->n[0] = row_of(o->e, from), o->rows[0] = o->e->T;
        else good = q3_take(o, i, from) && good;
    }
    return good;
}

/* The weight that the operator read instead of its own: of the bounds. */
static void bound_weight(const operation *o, margin *g)
{
    change what = q3_change_of(o, WEIGHT);
    bool experts = o->node->home == Q3_OF_EXPERT;
    if (what != PARTNERS && what != PERMUTED) return;
    for (size_t e = 0; e < (experts ? o->e->config->num_experts : 1); e++) {
        size_t from = what == PERMUTED ? o->p->m->map[e] : e;
        q3_margin_weight(g, o->node, e, weight_of(o, what == PARTNERS, from));
    }
}

/* The bounds of the result y, before it is edited. Those of tables and attention were found with
 * them. */
static void bound_result(const operation *o, const float *y)
{
    const q3_node *node = o->node;
    margin *g = o->p->margin;
    change what = q3_change_of(o, PARAMETER);
    size_t n = row_of(o->e, node->id);
    bool inside = node->op == Q3_OP_SCORES || node->op == Q3_OP_PROBS || node->op == Q3_OP_VALUES;
    if (o->doubt == NULL || inside || node->op == Q3_OP_TABLE) return;
    q3_margin_begin(g, o->e);
    g->w.dtype = o->dtype;
    if (what == EPS) g->config.rms_norm_eps = o->value;
    if (what == RENORMALISED) g->config.norm_topk_prob = o->value != 0;
    bound_weight(o, g);
    if (o->ids != NULL) q3_margin_input(g, false, Q3_TAP_TOPK_INDICES, o->ids, NULL);
    for (size_t i = 0; i < (size_t)node->count + node->stream; i++) {
        bool stream = node->stream && i == 0;
        q3_tap_id from = stream ? node->id : node->from[i - node->stream];
        if (from != Q3_TAP_TOPK_INDICES) q3_margin_input(g, stream, from, o->x[i], o->var[i]);
    }
    for (size_t t = 0; t < o->e->T; t++)
        q3_margin_row(g, node->id, t, y + t * n, o->doubt + t * n, n, o->last);
}

/* What kernels that fuse RoPE, attention, silu(gate) up and the experts write to memory. */
static bool is_stored(q3_tap_id id)
{
    return id == Q3_TAP_Q_ROPE || id == Q3_TAP_K_ROPE || id == Q3_TAP_O_PROJ_INPUT ||
        id == Q3_TAP_EXPERTS_DOWN_PROJ_INPUT || id == Q3_TAP_DENSE_DOWN_PROJ_INPUT ||
        id == Q3_TAP_MLP;
}

/* The result's edits, behind the operator. Those of scores and probs, and UPPER_KEPT, were made
 * with it. */
static bool finish(operation *o, float *y)
{
    const q3_node *node = o->node;
    const edit *by = edit_of(o, RESULT);
    size_t n = row_of(o->e, node->id), count = o->e->T * n;
    if (by == NULL || node->op == Q3_OP_SCORES || node->op == Q3_OP_PROBS) return true;
    if (by->what == UNROUNDED || by->what == UPPER_KEPT) return true;
    if (by->what == STORED && !is_stored(node->id)) return true;
    bool again = by->what == AGAIN || by->what == THROUGH, good;
    if (by->what == THROUGH) node = q3_node_of(o->e, counterpart(node->id, by->tap));
    float *copy = q3_pass_room(o->p, count + n, sizeof *copy);
    double *var = q3_pass_room(o->p, o->doubt != NULL && again ? count : 0, sizeof *var);
    if (copy == NULL || var == NULL) return free(copy), free(var), false;
    memcpy(copy, y, count * sizeof *copy);
    if (o->doubt != NULL && again) memcpy(var, o->doubt, count * sizeof *var);
    if (again) {
        good = run(o->p, node, copy, o->doubt != NULL ? var : NULL, y, o->doubt, o->last);
    } else {
        q3_dtype dtype = q3_tap_dtype(node->id, o->e->dtype);
        change what = by->what == STORED ? ROUNDED : by->what;
        q3_alter(y, copy + count, o->e->T, n, what, o->value, dtype, o->e->config, o->ids);
        good = o->doubt == NULL ||
               q3_margin_alter(copy, y, o->doubt, o->e->T, n, what, o->value, dtype,
                               o->e->config, o->ids, o->last);
    }
    free(copy);
    free(var);
    return good;
}

/* Theirs is what it would be computed from. */
static void skip(operation *o, float *y)
{
    size_t count = o->rows[0] * o->n[0];
    memcpy(y, o->x[0], count * sizeof *y);
    for (size_t i = 0; o->doubt != NULL && i < count; i++) {
        double var = o->var[0] != NULL ? o->var[0][i] : 0, ulp = q3_ulp((double)y[i], o->e->dtype);
        o->doubt[i] = o->last ? ulp + Q3_SIGMAS * q3_sqrt(var) : var;
    }
}

/* The operator's result, and its bounds or variances into doubt unless that is NULL. x: its first
 * argument, and nothing is edited; NULL: as the graph and the mistake have it. */
static bool run(pass *p, const q3_node *node, const float *x, const double *x_var, float *y,
                double *doubt, bool last)
{
    operation o = {.p = p, .e = p->e, .node = node, .value = p->m->value, .doubt = doubt};
    if (x == NULL && p->m->at >> node->id & 1) o.edits = p->m->edits;
    change result = q3_change_of(&o, RESULT);
    o.last = last && result != AGAIN && result != THROUGH;
    o.dtype = q3_rounds_to(&o);
    bool good = take_all(&o, x, x_var);
    if (good && result == SKIPPED) {
        skip(&o, y);
    } else if (good && (good = run_operator(&o, y))) {
        bound_result(&o, y);
        o.last = last;
        good = finish(&o, y);
    }
    for (size_t i = 0; i < 3; i++) free(o.own[i]), free(o.own_var[i]);
    return good;
}

/* ==== The pass ================================================================================ */

bool q3_in_dense_layer(const evidence *e)
{
    return q3_tap_in_layer(e->id) && !q3_layer_is_sparse(e->config, e->layer);
}

/* Whether the mistake reaches this tap. The pass never runs behind what was given. */
static bool reaches(const pass *p, q3_tap_id id)
{
    const evidence *e = p->e;
    const q3_node *node = q3_node_of(e, id);
    if (id != e->id && e->given[id] && e->tap[id] != NULL) return false;
    if (p->m->at >> id & 1) return true;
    for (size_t i = 0; node != NULL && i < node->count; i++)
        if (reaches(p, node->from[i])) return true;
    return false;
}

/* Multiplications of one operator. */
double q3_work_of(const evidence *e, const q3_node *node)
{
    double size = (double)e->T * (double)row_of(e, node->id);
    switch ((int)node->op) {
    case Q3_OP_LINEAR: return size * (double)row_of(e, node->from[0]);
    case Q3_OP_EXPERT_LINEAR:
        if (!q3_tap_of_experts(node->from[0])) return size * (double)e->config->hidden_size;
        return size * (double)e->config->moe_intermediate_size;
    case Q3_OP_COMBINE: return size;
    case Q3_OP_SCORES: case Q3_OP_PROBS: return size * (double)e->config->head_dim;
    case Q3_OP_VALUES: return size * 2 * (double)e->T;
    default: return size * 4;
    }
}

/* Keys and values that came before the file stay as they are. */
static void keep_past(pass *p, q3_tap_id id)
{
    const evidence *e = p->e;
    bool cached = id == Q3_TAP_K_ROPE || id == Q3_TAP_V_PROJ;
    if (!cached || p->result[id] == NULL || e->tap[id] == NULL) return;
    size_t count = e->past * row_of(e, id);
    memcpy(p->made[id], e->tap[id], count * sizeof **p->made);
    if (p->doubt[id] != NULL) memset(p->doubt[id], 0, count * sizeof **p->doubt);
}

/* A tap inside the pass: recomputed if the mistake reaches it. NULL: not known. */
const float *q3_pass_get(pass *p, q3_tap_id id)
{
    const evidence *e = p->e;
    const q3_node *node = q3_node_of(e, id);
    if (p->known[id]) return p->result[id];
    p->known[id] = true;
    p->result[id] = id == e->id ? e->ours : e->tap[id];
    if (node == NULL || !reaches(p, id)) return p->result[id];
    p->result[id] = NULL;
    size_t maps = node->op == Q3_OP_EXPERT_LINEAR ? e->config->num_experts_per_tok : 1;
    double share = id == e->id && p->only != NULL
        ? (double)(p->only->count * maps) / (double)row_of(e, id) : 1;
    p->work += q3_work_of(e, node) * share;
    p->made[id] = q3_pass_room(p, e->T, row_of(e, id) * sizeof **p->made);
    if (p->margin != NULL) p->doubt[id] = q3_pass_room(p, e->T, row_of(e, id) * sizeof **p->doubt);
    if (p->no_memory || p->made[id] == NULL) return NULL;
    if (run(p, node, NULL, NULL, p->made[id], p->doubt[id], id == e->id))
        p->result[id] = p->made[id];
    keep_past(p, id);
    return p->result[id];
}

const float *q3_pass_sample(pass *p, const evidence *e, const mistake *m, const sample *only)
{
    memset(p, 0, sizeof *p);
    p->e = e;
    p->m = m;
    p->only = only;
    return reaches(p, e->id) ? q3_pass_get(p, e->id) : NULL;
}

const float *q3_pass_run(pass *p, const evidence *e, const mistake *m)
{
    return q3_pass_sample(p, e, m, NULL);
}

const double *q3_pass_bound(pass *p)
{
    q3_tap_id id = p->e->id;
    double work = p->work;
    pass again = {.e = p->e, .m = p->m, .work = 2 * work, .margin = q3_margin_new(p->e)};
    again.no_memory = again.margin == NULL;
    const float *y = again.no_memory ? NULL : q3_pass_get(&again, id);
    again.no_memory = again.no_memory || again.margin->w.no_memory;
    q3_pass_free(p);
    *p = again;
    return y != NULL ? p->doubt[id] : NULL;
}

void q3_pass_free(pass *p)
{
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) free(p->made[i]), free(p->doubt[i]);
    q3_margin_free(p->margin);
    memset(p, 0, sizeof *p);
}
