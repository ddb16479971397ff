/* SPDX-License-Identifier: MIT */
/* attend.c - attention with a mistake in it (MODEL.md section 6), and its bounds. */
#include "judge/operation.h"

#include <stdlib.h>
#include <string.h>

/* Scores, probs and values together, token by token: what the tap in question does not need is
 * not stored. */
typedef struct attention {
    const evidence *e;
    operation at[3];             /* scores, probs, values: their edits */
    float *cache[2];             /* [T,heads,hd] keys and values as they are read */
    double *cache_var[2];        /* with bounds */
    size_t heads[2];
    const float *scores, *probs; /* [T,H,T] that were given, or NULL */
    float *line, *before;        /* [H,T] of one token; with bounds, before an edit */
    double *scratch;             /* [T] */
    bool bounded;
} attention;

/* The key/value head that query head h reads. */
static size_t head_of(const q3_config *c, size_t h, change what)
{
    size_t K = c->num_key_value_heads;
    if (what == HEADS_TILED) return h % K;
    return h / K < K ? h / K : K - 1;
}

/* Keys or values, edited: argument 2 of o. With a head for each query head where these are
 * mapped otherwise. */
static bool fill_cache(attention *a, size_t i, operation *o)
{
    const q3_config *c = a->e->config;
    change what = q3_change_of(o, ARG_2);
    size_t K = c->num_key_value_heads, hd = c->head_dim;
    bool mapped = what == HEADS_TILED || what == HEADS_DIVIDED;
    if (!q3_take(o, 1, o->node->from[1])) return false;
    size_t heads = a->heads[i] = mapped ? c->num_attention_heads : K;
    float *to = a->cache[i] = q3_pass_room(o->p, a->e->T * heads, hd * sizeof *to);
    double *var = o->doubt == NULL ? NULL : q3_pass_room(o->p, a->e->T * heads, hd * sizeof *var);
    a->cache_var[i] = var;
    for (size_t r = 0; to != NULL && r < a->e->T * heads; r++, to += hd) {
        size_t s = r / heads, h = mapped ? head_of(c, r % heads, what) : r % heads;
        if (what == ROW_BEFORE && s > 0) s--;
        memcpy(to, o->x[1] + (s * K + h) * hd, hd * sizeof *to);
        if (var != NULL && o->var[1] != NULL)
            memcpy(var + r * hd, o->var[1] + (s * K + h) * hd, hd * sizeof *var);
    }
    return a->cache[i] != NULL && (var != NULL || o->doubt == NULL);
}

/* The cache as token t reads it, from key `first` on. */
static const float *read_cache(attention *a, size_t i, size_t t, size_t first)
{
    const operation *o = &a->at[2 * i];
    size_t row = a->heads[i] * a->e->config->head_dim;
    /* each row is right again when the next token reads it */
    if (q3_change_of(o, ARG_2) == STALE && t > 0) {
        memcpy(a->cache[i] + t * row, o->x[1] + (t - 1) * row, row * sizeof(float));
        memcpy(a->cache[i] + (t - 1) * row, o->x[1] + (t - 1) * row, row * sizeof(float));
    }
    return a->cache[i] + first * row;
}

/* Keys [first, end) that token t sees: one at least. */
static void seen_keys(const attention *a, size_t t, size_t *first, size_t *end)
{
    const operation *o = &a->at[1];
    change what = q3_change_of(o, PARAMETER);
    *first = q3_first_key(t, what == WINDOW ? (size_t)o->value : a->e->config->sliding_window);
    *end = t + 1;
    if (what == ONE_MORE_KEY && t + 1 < a->e->T) ++*end;
    if (what == ALL_KEYS) *end = a->e->T;
    if (what == ONE_KEY_LESS && *end - *first > 1) --*end;
}

/* line[H,n] = scores of token t and keys [first, first + n). */
static void score(attention *a, const float *q, size_t t, size_t first, size_t n)
{
    const q3_config *c = a->e->config;
    const operation *o = &a->at[0];
    size_t H = c->num_attention_heads, hd = c->head_dim, low = q3_first_key(t, c->sliding_window);
    change what = q3_change_of(o, ROUNDING), after = q3_change_of(o, RESULT);
    const float *query = q + t * H * hd, *keys = read_cache(a, 0, t, first);
    bool given = a->scores != NULL && first >= low && first + n <= t + 1;
    if (!given && what != NO_CHANGE)
        q3_rounding_scores(a->line, query, keys, H, a->heads[0], hd, n, what, o->value, o->dtype);
    else if (!given)
        q3_attention_scores(a->line, query, keys, 1, H, a->heads[0], hd, n - 1, n, 0, o->dtype);
    if (after != NO_CHANGE && after != STORED)
        q3_alter(a->line, NULL, H, n, after, o->value, a->e->dtype, c, NULL);
    for (size_t i = 0; i < H * n && a->scores != NULL; i++) {
        size_t s = first + i % n;
        if (s >= low && s <= t) a->line[i] = a->scores[(t * H + i / n) * a->e->T + s];
    }
}

static void copy_keys(attention *a, float *to, const float *from, size_t t, size_t first, size_t n)
{
    size_t H = a->e->config->num_attention_heads, T = a->e->T;
    for (size_t h = 0; h < H; h++) {
        if (to != NULL) memcpy(to + (t * H + h) * T + first, a->line + h * n, n * sizeof *to);
        else memcpy(a->line + h * n, from + (t * H + h) * T + first, n * sizeof *from);
    }
}

/* [H,n] as [H,T], from key `first` on. */
static void spread_keys(const attention *a, float *to, size_t first, size_t n)
{
    size_t H = a->e->config->num_attention_heads, T = a->e->T;
    memset(to, 0, H * T * sizeof *to);
    for (size_t h = 0; h < H; h++) memcpy(to + h * T + first, a->line + h * n, n * sizeof *to);
}

/* Bounds of token t's scores, which are in line[H,n]: into the result's, or as variances into the
 * walk for what is computed from them. */
static void bound_scores(attention *a, size_t t, size_t first, size_t n, bool last)
{
    const operation *o = &a->at[0];
    margin *g = o->p->margin;
    walk *w = &g->w;
    size_t count = a->e->config->num_attention_heads * a->e->T;
    double *out = last ? o->doubt + t * count : w->scores_var;
    size_t T = a->e->T, low = q3_first_key(t, a->e->config->sliding_window);
    g->config.num_key_value_heads = a->heads[0];
    q3_margin_input(g, false, Q3_TAP_K_ROPE, a->cache[0], a->cache_var[0]);
    spread_keys(a, w->scores, first, n);
    q3_margin_row(g, Q3_TAP_SCORES, t, w->scores, out, count, last);
    double scale = q3_change_of(o, ROUNDING) == SCALE ? o->value : 1;
    for (size_t i = 0; i < count && scale > 1; i++) out[i] *= last ? scale : scale * scale;
    for (size_t i = 0; i < count && !last; i++) {
        bool given = a->scores != NULL && i % T >= low && i % T <= t;
        if (given || a->probs != NULL) out[i] = 0;
    }
}

/* Of its probabilities in line[H,n], which are about to be edited. */
static void bound_probs(attention *a, size_t t, size_t first, size_t n, bool last)
{
    const operation *o = &a->at[1];
    margin *g = o->p->margin;
    walk *w = &g->w;
    const q3_config *c = a->e->config;
    size_t count = c->num_attention_heads * a->e->T;
    double *out = last ? o->doubt + t * count : w->probs_var;
    change after = q3_change_of(o, RESULT);
    spread_keys(a, w->probs, first, n);
    q3_margin_row(g, Q3_TAP_PROBS, t, w->probs, out, count, last);
    if (a->probs != NULL) memset(out, 0, count * sizeof *out);
    if (after == NO_CHANGE || after == STORED) return;
    memcpy(a->before, w->probs, count * sizeof *a->before);
    q3_alter(w->probs, NULL, 1, count, after, o->value, a->e->dtype, c, NULL);
    q3_margin_alter(a->before, w->probs, out, 1, count, after, o->value, a->e->dtype, c, NULL,
                    last);
}

/* Of its values y[H,hd]. */
static void bound_values(attention *a, size_t t, const float *y)
{
    const operation *o = &a->at[2];
    margin *g = o->p->margin;
    size_t count = a->e->config->num_attention_heads * a->e->config->head_dim;
    g->config.num_key_value_heads = a->heads[1];
    q3_margin_input(g, false, Q3_TAP_V_PROJ, a->cache[1], a->cache_var[1]);
    q3_bound_values(&g->w, t);
    q3_margin_row(g, Q3_TAP_O_PROJ_INPUT, t, y, o->doubt + t * count, count, o->last);
}

/* Token t's row of the tap `want`. */
static void attend(attention *a, q3_operator want, const float *q, float *y, size_t t)
{
    const q3_config *c = a->e->config;
    size_t H = c->num_attention_heads, hd = c->head_dim, first, end;
    const operation *o = &a->at[1];
    change softmax = q3_change_of(o, ROUNDING), after = q3_change_of(o, RESULT);
    if (want == Q3_OP_SCORES) {
        first = q3_first_key(t, c->sliding_window);
        score(a, q, t, first, t + 1 - first);
        copy_keys(a, y, NULL, t, first, t + 1 - first);
        if (a->bounded) bound_scores(a, t, first, t + 1 - first, true);
        return;
    }
    seen_keys(a, t, &first, &end);
    size_t n = end - first;
    if (a->probs != NULL) {
        copy_keys(a, NULL, a->probs, t, first, n);
        if (a->bounded) bound_scores(a, t, first, n, false);
    } else {
        score(a, q, t, first, n);
        if (a->bounded) bound_scores(a, t, first, n, false);
        if (softmax != NO_CHANGE)
            q3_rounding_probs(a->line, a->scratch, H, n, softmax, o->value, o->dtype);
        else q3_attention_probs(a->line, a->line, a->scratch, 1, H, n - 1, n, 0, o->dtype);
    }
    if (a->bounded) bound_probs(a, t, first, n, want == Q3_OP_PROBS);
    if (a->probs == NULL && after != NO_CHANGE && after != STORED)
        q3_alter(a->line, NULL, H, n, after, o->value, a->e->dtype, c, NULL);
    if (want == Q3_OP_PROBS) copy_keys(a, y, NULL, t, first, n);
    else
        q3_attention_values(y + t * H * hd, a->line, read_cache(a, 1, t, first), 1, H, a->heads[1],
                            hd, n - 1, n, 0, a->at[2].dtype);
    if (a->bounded && want == Q3_OP_VALUES) bound_values(a, t, y + t * H * hd);
}

/* The walk that the bounds are read from, but for what changes from token to token. */
static void bound_attention(attention *a, const operation *o, const float *q)
{
    margin *g = o->p->margin;
    change mask = q3_change_of(&a->at[1], PARAMETER);
    a->bounded = true;
    q3_margin_begin(g, a->e);
    q3_margin_input(g, false, Q3_TAP_Q_ROPE, q, q3_pass_var(o->p, Q3_TAP_Q_ROPE));
    if (mask == WINDOW) g->config.sliding_window = (size_t)a->at[1].value;
    if (mask == ONE_MORE_KEY) g->w.ahead = 1;
    if (mask == ALL_KEYS) g->w.ahead = a->e->T;
    for (size_t i = 0; i < 3; i++) a->at[i].doubt = o->doubt, a->at[i].last = o->last;
}

bool q3_run_attention(operation *o, float *y)
{
    static const q3_tap_id ids[3] = {Q3_TAP_SCORES, Q3_TAP_PROBS, Q3_TAP_O_PROJ_INPUT};
    pass *p = o->p;
    const evidence *e = o->e;
    q3_operator want = o->node->op;
    attention a = {.e = e};
    for (size_t i = 0; i < 3; i++) {
        a.at[i] = (operation){.p = p, .e = e, .node = q3_node_of(e, ids[i]), .value = o->value};
        if (p->m->at >> ids[i] & 1) a.at[i].edits = p->m->edits;
        a.at[i].dtype = q3_rounds_to(&a.at[i]);
        a.at[i].doubt = o->doubt;
    }
    if (want != Q3_OP_SCORES && e->given[Q3_TAP_SCORES]) a.scores = e->tap[Q3_TAP_SCORES];
    if (want == Q3_OP_VALUES && e->given[Q3_TAP_PROBS]) a.probs = e->tap[Q3_TAP_PROBS];
    a.line = q3_pass_room(p, e->T * e->config->num_attention_heads, sizeof *a.line);
    a.before = q3_pass_room(p, e->T * e->config->num_attention_heads, sizeof *a.before);
    a.scratch = q3_pass_room(p, e->T, sizeof *a.scratch);
    const float *q = q3_pass_get(p, Q3_TAP_Q_ROPE);
    bool good = q != NULL && a.line != NULL && a.scratch != NULL && fill_cache(&a, 0, &a.at[0]) &&
                (want != Q3_OP_VALUES || fill_cache(&a, 1, &a.at[2]));
    good = good && a.before != NULL;
    if (good && o->doubt != NULL) bound_attention(&a, o, q);
    for (size_t t = 0; good && t < e->T; t++) attend(&a, want, q, y, t);
    for (size_t i = 0; i < 3; i++) free(a.at[i].own[1]), free(a.at[i].own_var[1]);
    for (size_t i = 0; i < 2; i++) free(a.cache[i]), free(a.cache_var[i]);
    free(a.line);
    free(a.before);
    free(a.scratch);
    return good;
}
