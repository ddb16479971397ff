/* SPDX-License-Identifier: MIT */
/* margins.c - how far an honest implementation of a mistake may be from what the mistake makes
 * here: the bounds of bounds.c, of the mistaken operator with its own arguments, weights and
 * result, and what an edit makes of them. */
#include "judge/diagnosis.h"

#include <stdlib.h>
#include <string.h>

#define SAYS_NOTHING 1e100 /* as in walk.c */

/* ==== One operator ============================================================================ */

/* bounds.c reads what a walk owns, and writes none of it. */
static void lend_floats(float **to, const float *x)
{
    memcpy(to, &x, sizeof x);
}

static void lend_doubles(double **to, const double *x)
{
    memcpy(to, &x, sizeof x);
}

void q3_margin_input(margin *g, bool stream, q3_tap_id id, const float *x, const double *var)
{
    walk *w = &g->w;
    lend_floats(stream ? &w->input : &w->tap[id], x);
    lend_doubles(stream ? &w->input_var : &w->var[id], var != NULL ? var : g->none);
}

void q3_margin_weight(margin *g, const q3_node *node, size_t expert, q3_tensor weight)
{
    q3_layer *l = &g->layers[g->w.layer];
    char *home = node->home == Q3_OF_MODEL ? (char *)&g->weights
               : node->home == Q3_OF_LAYER ? (char *)l : (char *)&g->experts[expert];
    if (node->home == Q3_NO_WEIGHT) return;
    if (node->home == Q3_OF_EXPERT) l->experts = g->experts;
    memcpy(home + node->weight, &weight, sizeof weight);
}

void q3_margin_begin(margin *g, const evidence *e)
{
    walk *w = &g->w;
    size_t L = e->config->num_hidden_layers, E = e->config->num_experts;
    g->config = *e->config;
    if (e->weights != NULL) {
        g->weights = *e->weights;
        memcpy(g->layers, e->weights->layers, L * sizeof *g->layers);
    }
    if (g->layers[e->layer].experts != NULL && g->experts != NULL)
        memcpy(g->experts, g->layers[e->layer].experts, E * sizeof *g->experts);
    g->weights.layers = g->layers;
    q3_sums_forget(w);
    w->config = &g->config;
    w->weights = &g->weights;
    w->dtype = e->dtype;
    w->T = e->T;
    w->start = e->start;
    w->layer = e->layer;
    w->accumulate = e->accumulate;
    w->operand = e->operand;
    w->partial = e->partial;
    w->router = e->router;
    w->ahead = 0;
    g->uncertain = e->uncertain;
}

/* Whether the tap's values are those of the experts that were chosen. */
static bool depends_on_choice(q3_tap_id id)
{
    return id == Q3_TAP_TOPK_WEIGHTS || q3_tap_of_experts(id);
}

static void margin_take(const row_bound *b, const float *y, double *out, size_t n, q3_dtype dtype,
                    bool last)
{
    for (size_t i = 0; i < n; i++) {
        double ulp = q3_ulp((double)y[i], dtype), loose = b->noise[i], slack = b->slack[i];
        if (last) {
            loose += b->var[i] > 0 ? Q3_SIGMAS * q3_sqrt(b->var[i]) : 0;
            double far = q3_absolute((double)y[i]) + slack + loose;
            if (slack > 0) slack += b->own * (q3_ulp(far, dtype) - ulp);
            out[i] = slack + loose;
        } else {
            out[i] = b->var[i] + loose * loose / 16 + slack * ulp / 6;
            if (!(out[i] <= SAYS_NOTHING)) out[i] = SAYS_NOTHING;
        }
    }
}

void q3_margin_row(margin *g, q3_tap_id id, size_t t, const float *y, double *out, size_t n,
                   bool last)
{
    row_bound b = g->b;
    bool unknown = depends_on_choice(id) && g->uncertain != NULL && g->uncertain[t];
    q3_bound_row(&b, &g->w, id, t, y, n);
    for (size_t i = 0; unknown && i < n; i++) b.var[i] = SAYS_NOTHING;
    /* q3_bound_values takes it from the scores */
    for (size_t i = 0; id == Q3_TAP_PROBS && !last && i < n; i++) b.var[i] = 0;
    margin_take(&b, y, out, n, q3_stored_dtype(&g->w, id), last);
}

/* ==== An edit ================================================================================= */

/* One element after another: what lies as far below and above is edited, too, so that a rounding to
 * a coarser format lets an element flip where a midpoint is within reach, and nowhere else. Three
 * standard deviations of a variance; an edit that computes rounds once more. */
static void alter_each(const float *before, const float *after, double *reach, size_t count,
                       change what, double value, q3_dtype dtype, bool last)
{
    bool computes = what != ROUNDED && what != FILL;
    for (size_t i = 0; i < count; i++) {
        double x = (double)before[i], y = (double)after[i], most = 0;
        double by = last ? reach[i] : 3 * q3_sqrt(reach[i]);
        for (int side = -1; side <= 1; side += 2) {
            double end = (double)q3_round(q3_altered(x + side * by, what, value, dtype), dtype);
            double away = q3_absolute(end - y);
            if (away > most) most = away;
        }
        double ulp = computes ? q3_ulp(y, dtype) : 0;
        reach[i] = last ? most + ulp : most * most / 9 + ulp * ulp / 12;
    }
}

bool q3_margin_alter(const float *before, const float *after, double *reach, size_t rows, size_t n,
                     change what, double value, q3_dtype dtype, const q3_config *config,
                     const float *ids, bool last)
{
    if (what >= TIMES && what <= ALPHA_SIGMOID) {
        alter_each(before, after, reach, rows * n, what, value, dtype, last);
        return true;
    }
    if (what == BEST_GROUPS || what == SHIFTED || what == BY_RANK) return true; /* not of places */
    float *moved = calloc(rows * n + n, sizeof *moved);
    if (moved == NULL) return false;
    for (size_t i = 0; i < rows * n; i++) moved[i] = (float)reach[i];
    q3_alter(moved, moved + rows * n, rows, n, what, value, Q3_F32, config, ids);
    for (size_t i = 0; i < rows * n; i++) reach[i] = (double)moved[i];
    free(moved);
    return true;
}

/* ==== Memory ================================================================================== */

void q3_margin_free(margin *g)
{
    if (g == NULL) return;
    void *const owned[] = {g->b.slack, g->b.noise, g->b.var, g->none, g->layers, g->experts,
                           g->w.scores, g->w.probs, g->w.scores_var, g->w.probs_var,
                           g->w.values_noise, g->w.values_var, g->w.weight_row, g->w.head_sums, g};
    q3_sums_free(&g->w);
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) free(owned[i]);
}

margin *q3_margin_new(const evidence *e)
{
    const q3_config *c = e->config;
    size_t T = e->T, H = c->num_attention_heads, inner = H * c->head_dim, sum = inner;
    size_t widest = inner, input = inner; /* of all rows, of those that are read */
    const size_t sums[] = {c->hidden_size, c->intermediate_size, c->moe_intermediate_size};
    for (size_t i = 0; i < 3; i++)
        if (sums[i] > sum) sum = sums[i];
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        size_t n = q3_tap_row_size(c, (q3_tap_id)i, T);
        if (n > widest) widest = n;
        if (n > input && !q3_tap_is_square((q3_tap_id)i) && i != Q3_TAP_LM_HEAD) input = n;
    }
    margin *g = calloc(1, sizeof *g);
    if (g == NULL) return NULL;
    walk *w = &g->w;
    g->b = (row_bound){calloc(widest, sizeof(double)), calloc(widest, sizeof(double)),
                       calloc(widest, sizeof(double)), 1, 1};
    g->none = calloc(T, input * sizeof(double));
    g->layers = calloc(c->num_hidden_layers + 1, sizeof *g->layers);
    g->experts = calloc(c->num_experts + 1, sizeof *g->experts);
    w->scores = calloc(T, H * sizeof(float));
    w->probs = calloc(T, H * sizeof(float));
    w->scores_var = calloc(T, H * sizeof(double));
    w->probs_var = calloc(T, H * sizeof(double));
    w->values_noise = calloc(T, inner * sizeof(double));
    w->values_var = calloc(T, inner * sizeof(double));
    w->weight_row = calloc(sum, sizeof(float));
    w->head_sums = calloc(5 * c->head_dim, sizeof(double));
    bool good = g->b.slack && g->b.noise && g->b.var && g->none && g->layers && g->experts &&
                w->scores && w->probs && w->scores_var && w->probs_var && w->values_noise &&
                w->values_var && w->weight_row && w->head_sums;
    if (!good) q3_margin_free(g), g = NULL;
    return g;
}
