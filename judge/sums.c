/* SPDX-License-Identifier: MIT */
/* sums.c - what the bounds of linear maps need of their products (MODEL.md 12.1, 12.3, 12.7): sums
 * over a weight's row, which is read once for a whole block of tokens, an expert's once for all of
 * the block that chose it. Each sum adds up in 16 lanes, as the map's own does. */
#include "judge/graph.h"
#include "judge/walk.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK ((size_t)1 << 22) /* results of a block of tokens at most: 32 MB */

/* Rows of one weight: x[rows,K] with variances var[rows,K] (NULL: 0); results [rows,N], those that
 * are not NULL; y: the map's own. */
typedef struct group {
    q3_tensor weight;
    size_t rows, N, K;
    const float *x;
    const double *var;
    double *size, *squares, *spread;
    float *y;
} group;

/* Rows of float32, each over a power of two of its own, `by`: the largest is about 1, and what is
 * below 2^-126 of it counts for nothing. */
typedef struct scaled {
    float *rows;
    double *by;
} scaled;

static bool scaled_init(scaled *s, size_t rows, size_t K)
{
    s->rows = malloc((rows * K + 1) * sizeof *s->rows);
    s->by = malloc((rows + 1) * sizeof *s->by);
    return s->rows != NULL && s->by != NULL;
}

static void scaled_free(scaled *s)
{
    free(s->rows);
    free(s->by);
}

/* Row r: x * x. (Of a row with an infinity or a NaN no scale is right, nor needed.) */
static void square_row(scaled *s, size_t r, const float *x, size_t K)
{
    uint32_t largest = 0, infinite = 0x7F800000;
    float to;
    for (size_t k = 0; k < K; k++) {
        uint32_t bits;
        memcpy(&bits, &x[k], sizeof bits);
        bits &= 0x7FFFFFFF;
        if (bits > largest) largest = bits;
    }
    largest &= infinite; /* 2^e; a subnormal has 2^-126 */
    if (largest == 0) largest = 1 << 23;
    if (largest == infinite) largest = 127 << 23;
    largest = (254U << 23) - largest; /* 2^-e, which for e = 127 is subnormal: half as much */
    if (largest == 0) largest = 1 << 23;
    memcpy(&to, &largest, sizeof to);
    for (size_t k = 0; k < K; k++) s->rows[r * K + k] = x[k] * to * (x[k] * to);
    s->by[r] = 1 / ((double)to * (double)to);
}

/* Row r: variances. */
static void scale_row(scaled *s, size_t r, const double *var, size_t K)
{
    double largest = 0, by = 1;
    uint64_t bits;
    for (size_t k = 0; k < K; k++)
        if (var[k] > largest && var[k] <= 0x1p1000) largest = var[k];
    memcpy(&bits, &largest, sizeof bits);
    bits &= UINT64_C(0x7FF) << 52;
    if (largest >= 0x1p-1000) memcpy(&by, &bits, sizeof by);
    for (size_t k = 0; k < K; k++) s->rows[r * K + k] = (float)(var[k] / by);
    s->by[r] = by;
}

/* The sums of |w||x|, and of w x if y is wanted, in the kernels' tiles. */
static void add_sizes(const group *g, q3_dtype dtype)
{
    q3_dots dots = {.x = g->x, .x_stride = g->K, .weight = g->weight, .row_stride = g->K,
                    .T = g->rows, .N = g->N, .C = g->K, .dtype = dtype, .sizes = g->size,
                    .y = g->y, .y_stride = g->N};
    q3_run_dots(&dots);
}

/* What sum (w x)^2 is made of instead of x where activations are quantised: owned; *none: this
 * weight leaves them as they are. NULL: no memory, unless none. */
static float *find_errors(const walk *w, const group *g, bool *none)
{
    float *errors = malloc((g->rows * g->K + 1) * sizeof *errors);
    *none = false;
    for (size_t r = 0; errors != NULL && !*none && r < g->rows; r++)
        *none = !q3_activation_errors(errors + r * g->K, g->x + r * g->K, g->K, g->weight,
                                      w->accumulate);
    if (*none) free(errors);
    return *none ? NULL : errors;
}

enum { AT_ONCE = 64 }; /* rows of a weight */

/* results[rows,N]: columns first to first + n - 1 of the products' sums. */
static void add_products(double *results, double *sums, const scaled *x, const scaled *w,
                         const group *g, size_t first, size_t n)
{
    q3_dots dots = {.x = x->rows, .x_stride = g->K, .rows = w->rows, .row_stride = g->K,
                    .T = g->rows, .N = n, .C = g->K, .dtype = Q3_F32, .sums = sums};
    q3_run_dots(&dots);
    for (size_t r = 0; r < g->rows; r++)
        for (size_t o = 0; o < n; o++)
            results[r * g->N + first + o] = sums[r * n + o] * x->by[r] * w->by[o];
}

/* sum (w terms)^2, unless terms is NULL, and sum w^2 var: rows of squares, in the kernels' tiles.
 * Squares are rounded to float32, 2^-24 of a variance; so is a quantised weight of more bits. */
static bool add_squares(walk *w, const group *g, const float *terms)
{
    scaled x = {NULL, NULL}, var = {NULL, NULL}, rows = {NULL, NULL};
    double *sums = malloc((g->rows * AT_ONCE + 1) * sizeof *sums);
    bool good = sums != NULL && scaled_init(&rows, AT_ONCE, g->K) &&
        (terms == NULL || scaled_init(&x, g->rows, g->K)) &&
        (g->spread == NULL || scaled_init(&var, g->rows, g->K));
    for (size_t r = 0; good && r < g->rows; r++) {
        if (terms != NULL) square_row(&x, r, terms + r * g->K, g->K);
        if (g->spread != NULL) scale_row(&var, r, g->var + r * g->K, g->K);
    }
    for (size_t first = 0; good && first < g->N; first += AT_ONCE) {
        size_t n = g->N - first < AT_ONCE ? g->N - first : AT_ONCE;
        for (size_t o = 0; o < n; o++) {
            q3_widen(w->weight_row, g->weight, (first + o) * g->K, g->K, w->dtype);
            square_row(&rows, o, w->weight_row, g->K);
        }
        if (terms != NULL) add_products(g->squares, sums, &x, &rows, g, first, n);
        if (g->spread != NULL) add_products(g->spread, sums, &var, &rows, g, first, n);
    }
    scaled_free(&x);
    scaled_free(&var);
    scaled_free(&rows);
    free(sums);
    return good;
}

static bool add_group(walk *w, const group *g)
{
    bool none = false, squares = g->squares != NULL;
    float *errors = squares && q3_quantises(w->accumulate) ? find_errors(w, g, &none) : NULL;
    if (squares && q3_quantises(w->accumulate) && errors == NULL && !none) return false;
    if (g->size != NULL) add_sizes(g, w->dtype);
    if (none) memset(g->squares, 0, g->rows * g->N * sizeof *g->squares);
    squares = squares && !none;
    const float *terms = !squares ? NULL : errors != NULL ? errors : g->x;
    bool good = (!squares && g->spread == NULL) || add_squares(w, g, terms);
    free(errors);
    return good;
}

/* ==== A block of tokens ======================================================================= */

/* Whether anything came in with a token's inputs. */
static bool any(const double *var, size_t n)
{
    bool found = false;
    for (size_t i = 0; i < n; i++) found = found || var[i] != 0;
    return found;
}

/* Room for `count` results of each kind that is asked for. */
static bool make_room(map_sums *s, size_t count, bool squares, bool spread)
{
    double **all[3] = {&s->size, &s->squares, &s->spread};
    const bool wanted[3] = {true, squares, spread};
    for (size_t i = 0; i < 3; i++) {
        if (!wanted[i] || s->room[i] >= count) continue;
        free(*all[i]);
        *all[i] = malloc(count * sizeof **all[i]);
        s->room[i] = *all[i] != NULL ? count : 0;
        if (*all[i] == NULL) return false;
    }
    return true;
}

/* What an expert's slots of a block are gathered in: n rows. */
typedef struct gathered {
    float *x;
    double *var, *results[3];
    size_t *slots, n;
} gathered;

static bool gathered_init(gathered *g, const group *all, size_t slots)
{
    double *const to[3] = {all->size, all->squares, all->spread};
    bool good = true;
    memset(g, 0, sizeof *g);
    g->x = malloc(slots * all->K * sizeof *g->x);
    g->slots = malloc(slots * sizeof *g->slots);
    if (all->var != NULL) g->var = malloc(slots * all->K * sizeof *g->var);
    for (size_t i = 0; i < 3; i++)
        if (to[i] != NULL) good = (g->results[i] = malloc(slots * all->N * sizeof(double))) && good;
    return good && g->x != NULL && g->slots != NULL && (all->var == NULL || g->var != NULL);
}

static void gathered_free(gathered *g)
{
    free(g->x);
    free(g->var);
    free(g->slots);
    for (size_t i = 0; i < 3; i++) free(g->results[i]);
}

/* One expert's slots, of which `each` share a row of x. */
static bool add_expert(walk *w, gathered *g, const group *all, q3_tensor weight, size_t each)
{
    double *const to[3] = {all->size, all->squares, all->spread};
    size_t K = all->K, N = all->N;
    group own = {.weight = weight, .rows = g->n, .N = N, .K = K, .x = g->x,
                 .var = all->var != NULL ? g->var : NULL, .size = g->results[0],
                 .squares = g->results[1], .spread = g->results[2]};
    for (size_t i = 0; i < g->n; i++) {
        size_t row = g->slots[i] / each * K;
        memcpy(g->x + i * K, all->x + row, K * sizeof *g->x);
        if (all->var != NULL) memcpy(g->var + i * K, all->var + row, K * sizeof *g->var);
    }
    if (!add_group(w, &own)) return false;
    for (size_t k = 0; k < 3; k++)
        for (size_t i = 0; to[k] != NULL && i < g->n; i++)
            memcpy(to[k] + g->slots[i] * N, g->results[k] + i * N, N * sizeof **to);
    return true;
}

/* Expert by expert; ids of the block's slots. */
static bool add_experts(walk *w, const q3_node *node, const group *all, const float *ids,
                        size_t slots, size_t each)
{
    gathered g;
    bool good = gathered_init(&g, all, slots);
    for (size_t e = 0; good && e < w->config->num_experts; e++) {
        g.n = 0;
        for (size_t i = 0; i < slots; i++)
            if (ids[i] == (float)e) g.slots[g.n++] = i;
        if (g.n > 0)
            good = add_expert(w, &g, all, q3_graph_weight(node, w->weights, w->layer, e), each);
    }
    gathered_free(&g);
    return good;
}

/* The block that begins with token t; y: what the map gives for it, if not NULL. */
static bool fill_block(walk *w, const q3_node *node, size_t t, float *y)
{
    map_sums *s = &w->sums;
    const q3_config *c = w->config;
    bool experts = node->op == Q3_OP_EXPERT_LINEAR;
    size_t row = q3_tap_row_size(c, node->id, w->T), in = q3_tap_row_size(c, node->from[0], w->T);
    size_t count = BLOCK / row, A = c->num_experts_per_tok;
    if (count == 0) count = 1;
    size_t until = s->until != 0 ? s->until : w->T;
    if (count > until - t) count = until - t;
    const double *var = w->var[node->from[0]] + t * in;
    bool came = any(var, count * in), squares = w->accumulate != Q3_ACCUMULATE_F32;
    s->id = node->id, s->first = s->end = t;
    if (!make_room(s, count * row, squares, came)) return false;
    group g = {.N = row, .K = in, .rows = count, .x = w->tap[node->from[0]] + t * in,
               .var = came ? var : NULL, .size = s->size, .squares = squares ? s->squares : NULL,
               .spread = came ? s->spread : NULL, .y = y};
    s->has_spread = came;
    s->end = t + count;
    if (!experts) {
        g.weight = q3_graph_weight(node, w->weights, w->layer, 0);
        return add_group(w, &g);
    }
    bool by_slot = q3_tap_of_experts(node->from[0]);
    g.N = row / A;
    g.K = by_slot ? in / A : in;
    return add_experts(w, node, &g, w->tap[Q3_TAP_TOPK_INDICES] + t * A, count * A,
                       by_slot ? 1 : A);
}

bool q3_sums_row(row_sums *out, walk *w, const q3_node *node, size_t t)
{
    map_sums *s = &w->sums;
    size_t row = q3_tap_row_size(w->config, node->id, w->T);
    bool here = s->id == node->id && t >= s->first && t < s->end;
    if (!here && !fill_block(w, node, t, NULL)) return false;
    size_t at = (t - s->first) * row;
    out->size = s->size + at;
    out->squares = w->accumulate != Q3_ACCUMULATE_F32 ? s->squares + at : NULL;
    out->spread = s->has_spread ? s->spread + at : NULL;
    return true;
}

bool q3_sums_logits(float *y, walk *w, size_t t, size_t count)
{
    w->sums.until = t + count;
    bool good = fill_block(w, q3_graph_node(w->config, Q3_TAP_LM_HEAD, 0), t, y);
    w->sums.until = 0;
    return good;
}

void q3_sums_forget(walk *w)
{
    w->sums.first = w->sums.end = 0;
}

void q3_sums_free(walk *w)
{
    free(w->sums.size);
    free(w->sums.squares);
    free(w->sums.spread);
    memset(&w->sums, 0, sizeof w->sums);
}
