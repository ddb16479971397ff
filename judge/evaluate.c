/* evaluate.c - one layer's forward pass with one mistake in it. What the other implementation gave is put in the
 * place of what is computed, so a mistake shows in the tensors behind it as far as the next given ones. */
#include "judge/diagnosis.h"

#include <stdlib.h>
#include <string.h>

size_t q3_row_of(const evidence *e, q3_tap_id id)
{
    size_t shape[3], rank = q3_tap_shape(shape, e->config, id, e->T);
    if (id == Q3_TAP_SCORES || id == Q3_TAP_PROBS) return shape[0] * shape[2];
    return rank == 3 ? shape[1] * shape[2] : shape[1];
}

/* ==== Attention ================================================================================ */

typedef struct attention {
    const evidence *e;
    const float *q, *k, *v;        /* [T,H,hd], [T,K,hd] */
    const float *scores, *probs;   /* [T,H,T] that were given, or NULL */
    mistake_kind at_scores, at_probs, at_values;
    double value;
    double *row;                   /* [T] */
} attention;

static format format_in(double value)
{
    return value >= 0 && value <= FORMAT_FP8 ? (format)(int)value : FORMAT_BF16;
}

static size_t head_of(const q3_config *c, size_t h, mistake_kind kind)
{
    size_t K = c->num_key_value_heads, wrong = h / K < K ? h / K : K - 1;
    if (kind == HEAD_TILED) return h % K;
    return kind == HEAD_DIVISOR ? wrong : h / (c->num_attention_heads / K);
}

/* The cached row that stands for row s when token t reads it. */
static size_t cached_row(size_t t, size_t s, mistake_kind kind)
{
    if (kind == CACHE_STALE && s == t && s > 0) return s - 1;
    return kind == CACHE_SHIFTED && s > 0 ? s - 1 : s;
}

static double one_score(const attention *a, size_t t, size_t h, size_t s)
{
    const q3_config *c = a->e->config;
    q3_dtype D = a->e->dtype;
    mistake_kind kind = a->at_scores;
    size_t H = c->num_attention_heads, K = c->num_key_value_heads, hd = c->head_dim;
    const float *q = a->q + (t * H + h) * hd;
    const float *k = a->k + (cached_row(t, s, kind) * K + head_of(c, h, kind)) * hd;
    double scale = (double)(float)(1.0 / q3_sqrt((double)hd)), sum = 0;
    if (a->scores != NULL && s <= t && s >= q3_first_key(t, c->sliding_window))
        return (double)a->scores[(t * H + h) * a->e->T + s];
    for (size_t d = 0; d < hd; d++) {
        double x = (double)q[d], y = (double)k[d];
        if (kind == SCORE_QUERY_FIRST) x = (double)q3_round(x * scale, D);
        if (kind == CACHE_FORMAT) y = q3_to_format(y, format_in(a->value));
        sum += x * y;
    }
    if (kind == SCORE_QUERY_FIRST) return (double)q3_round(sum, D);
    if (kind != SCORE_ONCE) sum = (double)q3_round(sum, D);
    if (kind == SCORE_SCALE) scale *= a->value;
    double score = (double)q3_round(sum * scale, D);
    return kind == SCORE_CAPPED ? (double)q3_round(q3_softcapped(score, a->value, D), D) : score;
}

/* Keys [first, end) that token t sees. */
static void seen_keys(const attention *a, size_t t, size_t *first, size_t *end)
{
    mistake_kind kind = a->at_probs;
    size_t window = a->e->config->sliding_window, T = a->e->T;
    if (kind == PROB_WINDOW) window = (size_t)a->value;
    *first = q3_first_key(t, window);
    *end = t + 1;
    if (kind == PROB_FUTURE && t + 1 < T) ++*end;
    if (kind == PROB_UNMASKED) *end = T;
    if (kind == PROB_STRICT && t > 0) --*end;
}

/* probs[T] of one token and head, from row[first, end). */
static void softmax(const attention *a, float *probs, size_t first, size_t end)
{
    double max = a->row[first], sum = 0;
    format f = format_in(a->value);
    bool low = a->at_probs == PROB_FORMAT || a->at_probs == PROB_NO_MAXIMUM;
    q3_dtype D = a->e->dtype;
    for (size_t s = first; s < end; s++)
        if (a->row[s] > max) max = a->row[s];
    if (a->at_probs == PROB_NO_MAXIMUM) max = 0;
    if (a->at_probs == PROB_SINK) sum = q3_exp(-max);
    for (size_t s = first; s < end; s++) {
        double d = a->row[s] - max;
        if (a->at_probs == PROB_BASE_2) d *= 0x1.62e42fefa39efp-1;
        a->row[s] = low ? q3_to_format(q3_exp(q3_to_format(d, f)), f) : q3_exp(d);
        sum += a->row[s];
    }
    if (low) sum = q3_to_format(sum, f);
    for (size_t s = first; s < end; s++) probs[s] = q3_round(a->row[s] / sum, D);
}

/* Element d of value head's row s. */
static double one_value(const attention *a, size_t t, size_t h, size_t s, size_t d)
{
    const q3_config *c = a->e->config;
    size_t K = c->num_key_value_heads, hd = c->head_dim, head = head_of(c, h, a->at_values);
    const float *from = a->at_values == VALUE_FROM_KEYS ? a->k : a->v;
    double x = (double)from[(cached_row(t, s, a->at_values) * K + head) * hd + d];
    return a->at_values == CACHE_FORMAT ? q3_to_format(x, format_in(a->value)) : x;
}

/* One token and head, into y: its row of scores, of probs, or its hd sums. */
static void attend(attention *a, q3_tap_id want, float *y, float *probs, size_t t, size_t h)
{
    const q3_config *c = a->e->config;
    size_t H = c->num_attention_heads, hd = c->head_dim, T = a->e->T, first, end;
    if (want == Q3_TAP_SCORES) {
        for (size_t s = 0; s < T; s++) {
            bool seen = s <= t && s >= q3_first_key(t, c->sliding_window);
            y[(t * H + h) * T + s] = seen ? (float)one_score(a, t, h, s) : 0.0f;
        }
        return;
    }
    for (size_t s = 0; s < T; s++) probs[s] = 0.0f;
    seen_keys(a, t, &first, &end);
    if (a->probs != NULL) {
        memcpy(probs, a->probs + (t * H + h) * T, T * sizeof *probs);
    } else {
        for (size_t s = first; s < end; s++) a->row[s] = one_score(a, t, h, s);
        softmax(a, probs, first, end);
    }
    if (want == Q3_TAP_PROBS) {
        memcpy(y + (t * H + h) * T, probs, T * sizeof *probs);
        return;
    }
    for (size_t d = 0; d < hd; d++) {
        double sum = 0;
        for (size_t s = first; s < end; s++) sum += (double)probs[s] * one_value(a, t, h, s, d);
        y[t * H * hd + (a->at_values == VALUE_JOINED ? d * H + h : h * hd + d)] = q3_round(sum, a->e->dtype);
    }
}

static mistake_kind kind_at(const pass *p, q3_tap_id id)
{
    return p->m->at >> id & 1 ? p->m->kind : NO_MISTAKE;
}

static bool run_attention(pass *p, q3_tap_id want, float *y)
{
    const evidence *e = p->e;
    attention a = {.e = e, .value = p->m->value, .at_scores = kind_at(p, Q3_TAP_SCORES)};
    a.at_probs = kind_at(p, Q3_TAP_PROBS);
    a.at_values = kind_at(p, Q3_TAP_O_PROJ_INPUT);
    if (want != Q3_TAP_SCORES && e->given[Q3_TAP_SCORES]) a.scores = e->tap[Q3_TAP_SCORES];
    if (want == Q3_TAP_O_PROJ_INPUT && e->given[Q3_TAP_PROBS]) a.probs = e->tap[Q3_TAP_PROBS];
    a.q = q3_pass_get(p, Q3_TAP_Q_ROPE);
    a.k = q3_pass_get(p, a.at_scores == CACHE_UNROTATED ? Q3_TAP_K_NORM : Q3_TAP_K_ROPE);
    a.v = want == Q3_TAP_O_PROJ_INPUT ? q3_pass_get(p, Q3_TAP_V_PROJ) : a.k;
    a.row = malloc((e->T + 1) * sizeof *a.row);
    float *probs = malloc((e->T + 1) * sizeof *probs);
    bool good = a.q != NULL && a.k != NULL && a.v != NULL && a.row != NULL && probs != NULL;
    for (size_t t = 0; good && t < e->T; t++)
        for (size_t h = 0; h < e->config->num_attention_heads; h++) attend(&a, want, y, probs, t, h);
    free(a.row);
    free(probs);
    return good;
}

/* ==== Residual stream and embedding ============================================================ */

static bool run_embedding(pass *p, mistake_kind kind, float *y)
{
    const evidence *e = p->e;
    size_t V = e->config->vocab_size, M = e->config->hidden_size;
    double factor = q3_sqrt((double)M);
    if (p->m->value > 0) factor = (double)q3_round(factor, e->dtype);
    if (e->ids == NULL || e->weights->embed_tokens.data == NULL) return false;
    for (size_t t = 0; t < e->T; t++) {
        int64_t id = e->ids[t] + (kind == EMBED_ROW ? (int64_t)p->m->value : 0);
        if (id < 0 || (uint64_t)id >= V) id = e->ids[t];
        q3_widen(y + t * M, e->weights->embed_tokens, (size_t)id * M, M, e->dtype);
        for (size_t i = 0; i < M && kind == EMBED_SCALED; i++)
            y[t * M + i] = q3_round((double)y[t * M + i] * factor, e->dtype);
    }
    return true;
}

static bool run_residual(pass *p, q3_tap_id id, mistake_kind kind, float *y)
{
    const evidence *e = p->e;
    bool last = id == Q3_TAP_LAYER;
    const float *stream = last ? q3_pass_get(p, Q3_TAP_POST_ATTENTION_INPUT) : e->input;
    const float *branch = q3_pass_get(p, last ? Q3_TAP_MLP : Q3_TAP_O_PROJ);
    if (kind == SUM_NORMED)
        stream = q3_pass_get(p, last ? Q3_TAP_POST_ATTENTION_LAYERNORM : Q3_TAP_INPUT_LAYERNORM);
    if (kind == SUM_WITHOUT_ATTENTION) stream = last ? e->input : NULL;
    if (stream == NULL || branch == NULL) return false;
    for (size_t i = 0; i < e->T * e->config->hidden_size; i++) {
        double a = (double)stream[i], b = (double)branch[i];
        if (kind == SUM_NO_RESIDUAL) a = 0;
        if (kind == SUM_NO_BRANCH) b = 0;
        if (kind == SUM_DOUBLED) a *= 2;
        y[i] = q3_round(a + b, kind == SUM_NOT_ROUNDED ? Q3_F32 : e->dtype);
    }
    return true;
}

/* ==== Router =================================================================================== */

static bool run_router(pass *p, mistake_kind kind, float *y)
{
    const evidence *e = p->e;
    size_t E = e->config->num_experts, count = e->T * E;
    const float *logits = q3_pass_get(p, Q3_TAP_GATE);
    if (logits == NULL) return false;
    q3_router_probs(y, logits, e->T, E);
    if (kind == ROUTER_TWICE) q3_router_probs(y, y, e->T, E);
    for (size_t i = 0; i < count; i++) {
        if (kind == ROUTER_SIGMOID) y[i] = (float)(1 / (1 + q3_exp(-(double)logits[i])));
        if (kind == ROUTER_FORMAT) y[i] = (float)q3_to_format((double)y[i], format_in(p->m->value));
    }
    return true;
}

/* Probabilities of one token as the choice sees them. */
static void choose_from(float *row, const float *probs, const float *logits, const pass *p, mistake_kind kind)
{
    size_t E = p->e->config->num_experts, groups = kind == CHOICE_GROUPS ? (size_t)(int)p->m->value : 1;
    size_t size = E / groups, best[2] = {groups, groups};
    float top[2] = {-1.0f, -1.0f};
    for (size_t i = 0; i < E; i++) {
        row[i] = probs[i];
        if (kind == CHOICE_LOWEST) row[i] = -probs[i];
        if (kind == CHOICE_CLAMPED) row[i] = logits[i] > 0.0f ? logits[i] : 0.0f;
    }
    if (kind != CHOICE_GROUPS) return;
    for (size_t g = 0; g < groups; g++) {
        float most = 0.0f;
        for (size_t i = g * size; i < (g + 1) * size; i++)
            if (row[i] > most) most = row[i];
        size_t at = most > top[0] ? 0 : most > top[1] ? 1 : 2;
        if (at == 0) top[1] = top[0], best[1] = best[0];
        if (at < 2) top[at] = most, best[at] = g;
    }
    for (size_t i = 0; i < E; i++)
        if (i / size != best[0] && i / size != best[1]) row[i] = 0.0f;
}

static bool run_choice(pass *p, mistake_kind kind, float *y)
{
    const evidence *e = p->e;
    size_t E = e->config->num_experts, A = e->config->num_experts_per_tok;
    const float *probs = q3_pass_get(p, Q3_TAP_ROUTER_PROBS), *logits = q3_pass_get(p, Q3_TAP_GATE);
    float *row = malloc(E * sizeof *row);
    int32_t *ids = malloc(A * sizeof *ids);
    bool good = probs != NULL && logits != NULL && row != NULL && ids != NULL;
    for (size_t t = 0; good && t < e->T; t++) {
        choose_from(row, probs + t * E, logits + t * E, p, kind);
        q3_router_topk(ids, row, 1, E, A);
        size_t shift = kind == CHOICE_SHIFTED ? (size_t)((int64_t)E + (int64_t)p->m->value) : 0;
        for (size_t a = 0; a < A; a++) y[t * A + a] = (float)(((size_t)ids[a] + shift) % E);
    }
    free(row);
    free(ids);
    return good;
}

/* The slot whose weight slot a gets. ids, probs: of the token. */
static size_t weight_slot(size_t a, size_t A, const float *ids, mistake_kind kind)
{
    if (kind == WEIGHT_REVERSED) return A - 1 - a;
    if (kind == WEIGHT_LAST_REPEATED && a + 1 == A && A > 1) return a - 1;
    if (kind != WEIGHT_BY_ID) return a;
    for (size_t b = 0; b < A; b++) { /* the one with the a-th smallest id */
        size_t below = 0;
        for (size_t i = 0; i < A; i++) below += ids[i] < ids[b];
        if (below == a) return b;
    }
    return a;
}

static void token_weights(float *y, const float *ids, const float *probs, const float *logits, size_t A,
                          mistake_kind kind, bool normed, q3_dtype D)
{
    double mass = 0, max = (double)logits[(size_t)ids[0]];
    bool own = kind == WEIGHT_LOGITS || kind == WEIGHT_CHOSEN || kind == WEIGHT_SIGMOID;
    for (size_t a = 0; a < A; a++)
        if ((double)logits[(size_t)ids[a]] > max) max = (double)logits[(size_t)ids[a]];
    for (int round = 0; round < 2; round++)
        for (size_t a = 0; a < A; a++) {
            size_t slot = weight_slot(a, A, ids, kind), id = (size_t)ids[slot];
            double x = own ? (double)logits[id] : (double)probs[id];
            if (kind == WEIGHT_CHOSEN) x = q3_exp(x - max);
            if (kind == WEIGHT_SIGMOID) x = 1 / (1 + q3_exp(-x));
            if (kind == WEIGHT_ROUNDED_FIRST) x = (double)q3_round(x, D);
            if (kind == WEIGHT_FEWER && a + 1 == A) x = 0;
            if (round == 0) {
                mass += kind == WEIGHT_LAST_REPEATED ? (double)probs[(size_t)ids[a]] : x;
                continue;
            }
            if (kind == WEIGHT_ROUNDED_FIRST) mass = (double)q3_round(mass, D);
            if (normed) x /= mass;
            if (kind == WEIGHT_MEAN) x = 1 / (double)A;
            if (kind == WEIGHT_ONE) x = 1;
            y[a] = q3_round(x, kind == WEIGHT_NOT_ROUNDED ? Q3_F32 : D);
            if (kind == WEIGHT_TWICE) y[a] = q3_round((double)y[a] * (double)y[a], D);
        }
}

static bool run_weights(pass *p, mistake_kind kind, float *y)
{
    const evidence *e = p->e;
    size_t E = e->config->num_experts, A = e->config->num_experts_per_tok;
    const float *probs = q3_pass_get(p, Q3_TAP_ROUTER_PROBS), *logits = q3_pass_get(p, Q3_TAP_GATE);
    const float *ids = q3_pass_get(p, Q3_TAP_TOPK_INDICES);
    bool normed = e->config->norm_topk_prob;
    if (kind == WEIGHT_PLAIN || kind == WEIGHT_LOGITS) normed = false;
    if (kind == WEIGHT_NORMED || kind == WEIGHT_CHOSEN) normed = true;
    if (probs == NULL || logits == NULL || ids == NULL) return false;
    for (size_t t = 0; t < e->T; t++)
        token_weights(y + t * A, ids + t * A, probs + t * E, logits + t * E, A, kind, normed, e->dtype);
    return true;
}

/* ==== MLP ====================================================================================== */

/* The normal distribution's Phi(x) = 1/2 + exp(-x^2/2) / sqrt(2 pi) (x + x^3/3 + x^5/(3 5) + ...) */
static double normal_below(double x)
{
    double term = x, sum = x;
    if (!(q3_absolute(x) < 8)) return x > 0 ? 1 : x != x ? x : 0;
    for (int n = 3; q3_absolute(term) > 1e-18 * q3_absolute(sum) && n < 500; n += 2) {
        term = term * x * x / n;
        sum += term;
    }
    return 0.5 + q3_exp(-x * x / 2) / 0x1.40d931ff62706p+1 * sum;
}

static double activation(double x, mistake_kind kind, q3_dtype D)
{
    double sigmoid = 1 / (1 + q3_exp(-x));
    switch ((int)kind) {
    case ACT_GELU: return x * normal_below(x);
    case ACT_GELU_TANH: return x / (1 + q3_exp(-2 * 0x1.988453365de01p-1 * (x + 0.044715 * x * x * x)));
    case ACT_RELU: return x > 0 ? x : 0;
    case ACT_HARD: return x <= -3 ? 0 : x >= 3 ? x : x * (x + 3) / 6;
    case ACT_ALPHA: return x / (1 + q3_exp(-1.702 * x));
    case ACT_CLAMPED: return q3_silu(x > 7 ? 7 : x);
    case ACT_SIGMOID_ROUNDED: return x * (double)q3_round(sigmoid, D);
    default: return q3_silu(x);
    }
}

static bool run_activation(pass *p, bool sparse, mistake_kind kind, float *y)
{
    const float *x = q3_pass_get(p, sparse ? Q3_TAP_EXPERTS_GATE_PROJ : Q3_TAP_DENSE_GATE_PROJ);
    size_t count = p->e->T * q3_row_of(p->e, sparse ? Q3_TAP_EXPERTS_GATE_PROJ : Q3_TAP_DENSE_GATE_PROJ);
    for (size_t i = 0; x != NULL && i < count; i++)
        y[i] = q3_round(activation((double)x[i], kind, p->e->dtype), p->e->dtype);
    return x != NULL;
}

static bool run_product(pass *p, bool sparse, mistake_kind kind, float *y)
{
    q3_tap_id gate = sparse ? Q3_TAP_EXPERTS_GATE_PROJ : Q3_TAP_DENSE_GATE_PROJ;
    q3_tap_id act = sparse ? Q3_TAP_EXPERTS_ACT_FN : Q3_TAP_DENSE_ACT_FN;
    const float *a = q3_pass_get(p, kind == UP_ONCE ? gate : act);
    const float *b = q3_pass_get(p, sparse ? Q3_TAP_EXPERTS_UP_PROJ : Q3_TAP_DENSE_UP_PROJ);
    q3_dtype D = p->e->dtype;
    if (a == NULL || b == NULL || (kind == UP_ONCE && p->e->given[act])) return false;
    for (size_t i = 0; i < p->e->T * q3_row_of(p->e, gate); i++) {
        double up = (double)b[i], left = kind == UP_ONCE ? q3_silu((double)a[i]) : (double)a[i];
        if (kind == UP_PLUS_ONE) up = (double)q3_round(up + 1, D);
        if (kind == UP_CLAMPED && q3_absolute(up) > p->m->value) up = up < 0 ? -p->m->value : p->m->value;
        y[i] = q3_round(left * up, D);
    }
    return true;
}

static bool run_combine(pass *p, mistake_kind kind, float *y)
{
    const evidence *e = p->e;
    size_t A = e->config->num_experts_per_tok, M = e->config->hidden_size;
    const float *down = q3_pass_get(p, Q3_TAP_EXPERTS_DOWN_PROJ), *ids = q3_pass_get(p, Q3_TAP_TOPK_INDICES);
    const float *weights = q3_pass_get(p, Q3_TAP_TOPK_WEIGHTS);
    int32_t *whole = malloc((A + 1) * sizeof *whole);
    float *w = malloc((A + 1) * sizeof *w);
    bool good = down != NULL && ids != NULL && weights != NULL && whole != NULL && w != NULL;
    for (size_t t = 0; good && t < e->T; t++) {
        for (size_t a = 0; a < A; a++) {
            double x = (double)weights[t * A + a];
            whole[a] = (int32_t)ids[t * A + a];
            if (kind == COMBINE_EXPERT && (double)whole[a] == p->m->value) x = 0;
            if (kind == COMBINE_SLOT && (double)a == p->m->value) x = 0;
            if (kind == WEIGHT_MEAN) x = 1 / (double)A;
            if (kind == WEIGHT_ONE) x = 1;
            if (kind == WEIGHT_TWICE) x *= x;
            if (kind == WEIGHT_REVERSED) x = (double)weights[t * A + A - 1 - a];
            w[a] = q3_round(x, kind == WEIGHT_NOT_ROUNDED ? Q3_F32 : e->dtype);
        }
        q3_expert_combine(y + t * M, down + t * A * M, whole, w, 1, A, M, e->dtype);
    }
    free(whole);
    free(w);
    return good;
}

/* ==== The pass ================================================================================= */

static bool is_sparse(const evidence *e)
{
    return q3_layer_is_sparse(e->config, e->layer);
}

bool q3_in_dense_layer(const evidence *e)
{
    return e->id >= Q3_TAP_INPUT_LAYERNORM && e->id <= Q3_TAP_LAYER && !is_sparse(e);
}

/* Whether the mistake reaches this tap. The pass never runs behind what was given. */
static bool reaches(const pass *p, q3_tap_id id)
{
    const evidence *e = p->e;
    const q3_node *node = q3_graph_node(e->config, id, e->layer);
    if (id != e->id && e->given[id] && e->tap[id] != NULL) return false;
    if (p->m->at >> id & 1) return true;
    for (size_t i = 0; node != NULL && i < node->count; i++)
        if (reaches(p, node->from[i])) return true;
    return false;
}

static bool run_operator(pass *p, q3_tap_id id, float *y)
{
    mistake_kind kind = kind_at(p, id);
    bool sparse = is_sparse(p->e);
    switch ((int)id) {
    case Q3_TAP_EMBED_TOKENS: return run_embedding(p, kind, y);
    case Q3_TAP_COS: case Q3_TAP_SIN: return q3_evaluate_table(p, id, kind, y);
    case Q3_TAP_INPUT_LAYERNORM: case Q3_TAP_Q_NORM: case Q3_TAP_K_NORM: case Q3_TAP_POST_ATTENTION_LAYERNORM:
    case Q3_TAP_NORM: return q3_evaluate_norm(p, id, kind, y);
    case Q3_TAP_Q_ROPE: case Q3_TAP_K_ROPE: return q3_evaluate_rope(p, id, kind, y);
    case Q3_TAP_SCORES: case Q3_TAP_PROBS: case Q3_TAP_O_PROJ_INPUT: return run_attention(p, id, y);
    case Q3_TAP_POST_ATTENTION_INPUT: case Q3_TAP_LAYER: return run_residual(p, id, kind, y);
    case Q3_TAP_ROUTER_PROBS: return run_router(p, kind, y);
    case Q3_TAP_TOPK_INDICES: return run_choice(p, kind, y);
    case Q3_TAP_TOPK_WEIGHTS: return run_weights(p, kind, y);
    case Q3_TAP_EXPERTS_GATE_PROJ: case Q3_TAP_EXPERTS_UP_PROJ: case Q3_TAP_EXPERTS_DOWN_PROJ:
        return q3_evaluate_experts(p, id, kind, y);
    case Q3_TAP_EXPERTS_ACT_FN: case Q3_TAP_DENSE_ACT_FN: return run_activation(p, sparse, kind, y);
    case Q3_TAP_EXPERTS_DOWN_PROJ_INPUT: case Q3_TAP_DENSE_DOWN_PROJ_INPUT: return run_product(p, sparse, kind, y);
    case Q3_TAP_MLP: return sparse ? run_combine(p, kind, y) : q3_evaluate_map(p, id, kind, y);
    default: return q3_evaluate_map(p, id, kind, y);
    }
}

/* Multiplications of one operator. */
static double work_of(const evidence *e, q3_tap_id id, size_t row)
{
    const q3_config *c = e->config;
    double size = (double)e->T * (double)row;
    switch ((int)id) {
    case Q3_TAP_Q_PROJ: case Q3_TAP_K_PROJ: case Q3_TAP_V_PROJ: case Q3_TAP_GATE: case Q3_TAP_LM_HEAD:
    case Q3_TAP_EXPERTS_GATE_PROJ: case Q3_TAP_EXPERTS_UP_PROJ: case Q3_TAP_DENSE_GATE_PROJ:
    case Q3_TAP_DENSE_UP_PROJ:
        return size * (double)c->hidden_size;
    case Q3_TAP_O_PROJ: return size * (double)(c->num_attention_heads * c->head_dim);
    case Q3_TAP_EXPERTS_DOWN_PROJ: return size * (double)c->moe_intermediate_size;
    case Q3_TAP_MLP: return size * (is_sparse(e) ? 1 : (double)c->intermediate_size);
    case Q3_TAP_SCORES: case Q3_TAP_PROBS: return size * (double)c->head_dim;
    case Q3_TAP_O_PROJ_INPUT: return size * 2 * (double)e->T;
    default: return size * 4;
    }
}

const float *q3_pass_get(pass *p, q3_tap_id id)
{
    const evidence *e = p->e;
    if (p->known[id]) return p->result[id];
    p->known[id] = true;
    p->result[id] = id == e->id ? e->ours : e->tap[id];
    if (!reaches(p, id)) return p->result[id];
    size_t row = q3_row_of(e, id);
    p->result[id] = NULL;
    p->work += work_of(e, id, row);
    p->made[id] = calloc(e->T, row * sizeof **p->made);
    if (p->made[id] == NULL) p->no_memory = true;
    else if (run_operator(p, id, p->made[id])) p->result[id] = p->made[id];
    return p->result[id];
}

const float *q3_pass_run(pass *p, const evidence *e, const mistake *m)
{
    memset(p, 0, sizeof *p);
    p->e = e;
    p->m = m;
    return reaches(p, e->id) ? q3_pass_get(p, e->id) : NULL;
}

void q3_pass_free(pass *p)
{
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) free(p->made[i]);
    memset(p, 0, sizeof *p);
}
