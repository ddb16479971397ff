/* diagnose.c - which known mistake explains a tensor that differs. Each is computed from what the other
 * implementation gave, and named only if every element then agrees; where several do, the closest, and of equals
 * the one that stands first here. */
#include "judge/diagnose.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Comparing ================================================================================ */

static q3_dtype stored_in(const evidence *e)
{
    q3_dtype dtype = q3_tap_dtype(e->id, e->dtype);
    return dtype == Q3_I32 ? Q3_F32 : dtype;
}

/* Taps whose noise is in proportion to them (MODEL.md section 12). */
static bool in_proportion(q3_tap_id id)
{
    return id == Q3_TAP_PROBS || id == Q3_TAP_ROUTER_PROBS || id == Q3_TAP_TOPK_WEIGHTS;
}

/* The bound is that of the larger of ours and theirs, or 0, where ours is not rounded (a masked probability, say); where
 * a mistake's result is larger it is that of the larger value. Negative: nothing is said. */
static double tolerance(const evidence *e, size_t index, double right)
{
    double bound = e->bound[index], size = absolute((double)e->theirs[index]), ours = absolute((double)e->ours[index]);
    if (bound < 0 || e->id == Q3_TAP_TOPK_INDICES) return bound;
    double large = bound > 0 && size > ours ? size : ours;
    if (size < absolute(right)) size = absolute(right);
    double more = q3_ulp(size, stored_in(e)) - q3_ulp(large, stored_in(e));
    if (in_proportion(e->id) && ours > 0 && size > ours) return bound * (size / ours);
    return bound + (more > 0 ? more : 0) + e->carry * q3_ulp(size, stored_in(e));
}

bool agrees(const evidence *e, size_t index, float right)
{
    double allowed = tolerance(e, index, (double)right), x = (double)right, y = (double)e->theirs[index];
    if (allowed < 0 || x == y || (x != x && y != y)) return true;
    return absolute(x - y) <= allowed;
}

/* Sum of squares in ulp of D, each element's limited. */
static double distance(const evidence *e, const float *y)
{
    double sum = 0;
    for (size_t i = e->first * e->row; i < e->T * e->row; i++) {
        double a = (double)y[i], b = (double)e->theirs[i];
        double size = absolute(a) > absolute(b) ? absolute(a) : absolute(b);
        if (e->bound[i] < 0 || a == b || (a != a && b != b)) continue;
        double d = (a - b) / q3_ulp(size, stored_in(e));
        sum += absolute(d) < 1e4 ? d * d : 1e8;
    }
    return sum;
}

static bool agrees_everywhere(const evidence *e, const float *y)
{
    for (size_t i = e->first * e->row; i < e->T * e->row; i++)
        if (!agrees(e, i, y[i])) return false;
    return true;
}

/* ---- Mistakes that some tokens, keys, heads or experts have, and the others not ---- */

typedef enum unit_kind { UNIT_TOKEN, UNIT_KEY, UNIT_HEAD, UNIT_EXPERT, UNIT_KINDS } unit_kind;

static bool has_experts(const evidence *e)
{
    return e->id >= Q3_TAP_EXPERTS_GATE_PROJ && e->id <= Q3_TAP_EXPERTS_DOWN_PROJ &&
           e->tap[Q3_TAP_TOPK_INDICES] != NULL;
}

/* How many units of this kind the tensor has; 0: none. */
static size_t unit_count(const evidence *e, unit_kind kind)
{
    bool square = e->id == Q3_TAP_SCORES || e->id == Q3_TAP_PROBS;
    bool heads = e->id >= Q3_TAP_Q_PROJ && e->id <= Q3_TAP_K_ROPE;
    if (kind == UNIT_TOKEN) return e->T;
    if (kind == UNIT_KEY) return square ? e->T : 0;
    if (kind == UNIT_EXPERT) return has_experts(e) ? e->config->num_experts : 0;
    if (square) return e->config->num_attention_heads;
    return heads || e->id == Q3_TAP_O_PROJ_INPUT ? e->row / e->config->head_dim : 0;
}

static size_t unit_of(const evidence *e, unit_kind kind, size_t t, size_t i)
{
    size_t A = e->config->num_experts_per_tok;
    bool square = e->id == Q3_TAP_SCORES || e->id == Q3_TAP_PROBS;
    if (kind == UNIT_TOKEN) return t;
    if (kind == UNIT_KEY) return i % e->T;
    if (kind == UNIT_HEAD) return i / (square ? e->T : e->config->head_dim);
    return (size_t)e->tap[Q3_TAP_TOPK_INDICES][t * A + i / (e->row / A)];
}

static void name_units(char *text, size_t room, unit_kind kind, size_t first, size_t last, size_t wrong,
                       size_t all)
{
    static const char *const names[UNIT_KINDS] = {"token", "key", "head", "expert"};
    const char *name = names[kind];
    if (wrong == 1) snprintf(text, room, " (%s %zu only)", name, first);
    else if (last - first + 1 == wrong && last + 1 == all) snprintf(text, room, " (%ss from %zu on)", name, first);
    else if (last - first + 1 == wrong) snprintf(text, room, " (%ss %zu to %zu)", name, first, last);
    else snprintf(text, room, " (%zu of %zu %ss, first %zu)", wrong, all, name, first);
}

/* Whether each unit is explained by the mistake's y or by ours, and which are by y alone. */
static bool mixed(char *text, size_t room, diagnosis *d, const float *y, unit_kind kind)
{
    const evidence *e = d->e;
    size_t count = unit_count(e, kind), first = count, last = 0, wrong = 0, right = 0;
    size_t *by = d->outside[0], *own = d->outside[1];
    if (count < 2) return false;
    memset(by, 0, count * sizeof *by);
    memset(own, 0, count * sizeof *own);
    for (size_t t = e->first; t < e->T; t++)
        for (size_t i = 0; i < e->row; i++) {
            size_t u = unit_of(e, kind, t, i), at = t * e->row + i;
            by[u] += !agrees(e, at, y[at]);
            own[u] += !agrees(e, at, e->ours[at]);
        }
    for (size_t u = 0; u < count; u++) {
        if (by[u] > 0 && own[u] > 0) return false;
        right += by[u] > 0;
        if (own[u] == 0) continue;
        if (first == count) first = u;
        last = u;
    }
    /* Units that both explain count as wrong where they lie between wrong ones. */
    for (size_t u = first; u < count; u++) wrong += own[u] > 0 || (by[u] == 0 && u < last);
    size_t end = last;
    while (end + 1 < count && by[end + 1] == 0) end++;
    if (end + 1 == count) wrong += end - last, last = end;
    if (first == count || right == 0) return false;
    name_units(text, room, kind, first, last, wrong, count);
    return true;
}

/* ==== Trying a mistake ========================================================================= */

bool weigh(diagnosis *d, const float *y, const char *text)
{
    char where[64] = "";
    strength s = agrees_everywhere(d->e, y) ? FULL : NOTHING;
    double away = distance(d->e, y);
    if (d->rounding && !(away <= d->own_distance / 4)) return false;
    for (int kind = 0; s == NOTHING && !d->rounding && kind < UNIT_KINDS; kind++)
        if (d->strength <= PARTIAL && mixed(where, sizeof where, d, y, (unit_kind)kind)) s = PARTIAL;
    if (s == NOTHING || s < d->strength || (s == d->strength && !(away < d->distance / 2))) return false;
    d->strength = s;
    d->distance = away;
    snprintf(d->name, sizeof d->name, "%s", text);
    if (d->rounding)
        snprintf(d->text, sizeof d->text, "%s, explains %.0f %% of the rounding", text,
                 100 * (1 - away / d->own_distance));
    else
        snprintf(d->text, sizeof d->text, "%s%s, explains 100 %% of elements", text, where);
    return true;
}

/* The set of experts decides, not their order. */
static void sort_rows(float *ids, size_t T, size_t A)
{
    for (size_t t = 0; t < T; t++, ids += A)
        for (size_t i = 1; i < A; i++)
            for (size_t k = i; k > 0 && ids[k] < ids[k - 1]; k--) {
                float swap = ids[k];
                ids[k] = ids[k - 1];
                ids[k - 1] = swap;
            }
}

/* Remembers m as the best: its map belongs to the caller. */
static void keep_mistake(diagnosis *d, const mistake *m)
{
    size_t E = d->e->config->num_experts;
    if (m->map != NULL && d->best_map == NULL) d->best_map = malloc(E * sizeof *d->best_map);
    d->no_memory = d->no_memory || (m->map != NULL && d->best_map == NULL);
    d->best = *m;
    if (m->map == NULL || d->no_memory) return;
    memcpy(d->best_map, m->map, E * sizeof *d->best_map);
    d->best.map = d->best_map;
}

void attempt_with(diagnosis *d, const mistake *m, const char *text)
{
    pass p;
    const evidence *own = d->e;
    evidence carried = *own;
    if (d->no_memory || d->work < 0) return;
    /* Three roundings more than the operator's: a step in the first may become two. */
    carried.carry = m->kind == MAP_CAPPED ? 2 : 0;
    d->e = &carried;
    const float *y = pass_run(&p, d->e, m);
    if (y != NULL && d->e->id == Q3_TAP_TOPK_INDICES) sort_rows(p.made[d->e->id], d->e->T, d->e->row);
    if (y != NULL && weigh(d, y, text)) keep_mistake(d, m);
    d->work -= p.work;
    d->no_memory = d->no_memory || p.no_memory;
    pass_free(&p);
    d->e = own;
}

void attempt(diagnosis *d, uint64_t at, mistake_kind kind, double value, const char *text, ...)
{
    char filled[128];
    mistake m = {at, kind, value, NULL};
    va_list arguments;
    va_start(arguments, text);
    vsnprintf(filled, sizeof filled, text, arguments);
    va_end(arguments);
    attempt_with(d, &m, filled);
}

/* ==== The diagnosis ============================================================================ */

/* A copy of what is judged: bound is -1 where it says nothing, expert ids are sorted in each row. */
typedef struct judged_copy {
    double *bound;
    float *ours, *theirs;
} judged_copy;

static bool copy_judged(judged_copy *c, const evidence *e)
{
    size_t count = e->T * e->row;
    double *bound = c->bound = calloc(count, sizeof *bound);
    c->ours = calloc(count, sizeof *c->ours);
    c->theirs = calloc(count, sizeof *c->theirs);
    if (bound == NULL || c->ours == NULL || c->theirs == NULL) return false;
    memcpy(c->ours, e->ours, count * sizeof *c->ours);
    memcpy(c->theirs, e->theirs, count * sizeof *c->theirs);
    if (e->id == Q3_TAP_TOPK_INDICES) {
        sort_rows(c->ours, e->T, e->row);
        sort_rows(c->theirs, e->T, e->row);
    }
    for (size_t t = e->first; t < e->T; t++) {
        double square = 0;
        const double *from = e->bound + t * e->row;
        for (size_t i = 0; i < e->row; i++) {
            double x = (double)e->ours[t * e->row + i];
            if (x - x == 0) square += x * x;
        }
        double size = q3_sqrt(square / (double)e->row);
        for (size_t i = 0; i < e->row; i++)
            bound[t * e->row + i] = from[i] == 0 || from[i] < size ? from[i] : -1;
        for (size_t i = t * e->row; i < (t + 1) * e->row; i++)
            if (e->ours[i] - e->ours[i] != 0.0f) bound[i] = 0; /* infinities and NaN */
    }
    return true;
}

#define WORK 5e10 /* multiplications: a minute or two */

/* A rounding shows in some elements only, and so needs all of them. Else the tokens up to the first wrong one are
 * enough to choose by, where whole prompts of a large model would take long: what a token has depends on those
 * before it alone. (Scores and probs lie in rows of T.) */
static size_t tokens_to_choose_by(const diagnosis *d)
{
    const evidence *e = d->e;
    const q3_config *c = e->config;
    size_t wide = c->num_experts_per_tok * c->moe_intermediate_size, t = e->first;
    if (c->intermediate_size > wide) wide = c->intermediate_size;
    double token = (double)c->hidden_size * (double)(3 * wide + 4 * c->num_attention_heads * c->head_dim);
    bool square = e->given[Q3_TAP_SCORES] || e->given[Q3_TAP_PROBS] || e->id == Q3_TAP_SCORES ||
                  e->id == Q3_TAP_PROBS, all = d->rounding || c->rope.type == Q3_ROPE_DYNAMIC;
    if (all || square || (double)e->T * token < 1e8) return e->T;
    for (bool right = true; right && t < e->T; t++)
        for (size_t i = t * e->row; i < (t + 1) * e->row && right; i++) right = agrees(e, i, e->ours[i]);
    t += 2;
    return t < e->T ? t : e->T;
}

static void try_all(diagnosis *d)
{
    const evidence *e = d->e;
    evidence few = *e;
    few.T = tokens_to_choose_by(d);
    d->e = &few;
    try_list(d);
    d->e = e;
    if (few.T < e->T && d->strength != NOTHING) { /* what was chosen, on all tokens */
        char name[160];
        mistake m = d->best;
        memcpy(name, d->name, sizeof name);
        d->strength = NOTHING;
        d->work = WORK;
        d->text[0] = 0;
        attempt_with(d, &m, name);
    }
    d->work = WORK;
    search_positions(d);
    search_theta(d);
    search_eps(d);
    search_limit(d);
    search_experts(d);
    search_hidden_experts(d);
    search_missing(d);
    find_patterns(d);
}

q3_status q3_diagnose(char text[200], const evidence *e, q3_error *error)
{
    diagnosis d = {0};
    evidence own = *e;
    judged_copy copy = {NULL, NULL, NULL};
    size_t units = e->T;
    text[0] = 0;
    if (e->T == 0 || e->row == 0) return Q3_OK;
    if (e->config->num_experts > units) units = e->config->num_experts;
    if (e->row > units) units = e->row;
    d.outside[0] = calloc(units, sizeof *d.outside[0]);
    d.outside[1] = calloc(units, sizeof *d.outside[1]);
    d.no_memory = !copy_judged(&copy, e) || d.outside[0] == NULL || d.outside[1] == NULL;
    own.bound = copy.bound, own.ours = copy.ours, own.theirs = copy.theirs;
    d.e = &own;
    d.work = WORK;
    if (!d.no_memory) {
        d.rounding = agrees_everywhere(&own, own.ours);
        d.own_distance = distance(&own, own.ours);
        if (d.own_distance > 0) try_all(&d);
    }
    free(copy.bound);
    free(copy.ours);
    free(copy.theirs);
    free(d.outside[0]);
    free(d.outside[1]);
    free(d.best_map);
    if (d.no_memory) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for a diagnosis");
    memcpy(text, d.text, sizeof d.text);
    return Q3_OK;
}
