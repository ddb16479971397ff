/* SPDX-License-Identifier: MIT */
/* attempt.c - how well an explanation fits a tensor that differs: each is named only if every
 * element then agrees within the bound (or every element of some tokens, keys, heads or experts,
 * and the others are right); of several the closest is kept, and of equals the first. */
#include "judge/diagnosis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Comparing =============================================================================== */

static q3_dtype stored_in(const evidence *e)
{
    q3_dtype dtype = e->id == Q3_TAP_ROUTER_PROBS ? e->router : q3_tap_dtype(e->id, e->dtype);
    return dtype == Q3_I32 ? Q3_F32 : dtype;
}

/* Taps whose noise is in proportion to them (MODEL.md section 12). */
static bool in_proportion(q3_tap_id id)
{
    return id == Q3_TAP_PROBS || id == Q3_TAP_ROUTER_PROBS || id == Q3_TAP_TOPK_WEIGHTS;
}

/* For a value that no operator made (a scaled one, one of another place): the bound of ours, which
 * is that of the larger of ours and theirs, or 0, where ours is not rounded (a masked probability,
 * say); where the value is larger, it is in proportion. Negative: nothing is said. */
static double tolerance(const evidence *e, size_t index, double value)
{
    double bound = e->bound[index], size = q3_absolute((double)e->theirs[index]);
    double ours = q3_absolute((double)e->ours[index]);
    if (bound < 0 || e->id == Q3_TAP_TOPK_INDICES) return bound;
    double large = bound > 0 && size > ours ? size : ours;
    if (size < q3_absolute(value)) size = q3_absolute(value);
    double more = q3_ulp(size, stored_in(e)) - q3_ulp(large, stored_in(e));
    if (in_proportion(e->id) && ours > 0 && size > ours) return bound * (size / ours);
    return bound + (more > 0 ? more : 0);
}

/* What is said of a tensor: its values, and how far an honest one may be from them; bound NULL:
 * tolerance(). */
typedef struct claim {
    const float *y;
    const double *bound;
} claim;

static bool agrees(const evidence *e, const claim *c, size_t index)
{
    double x = (double)c->y[index], y = (double)e->theirs[index];
    if (e->bound[index] < 0 || x == y || (x != x && y != y)) return true;
    double allowed = c->bound != NULL ? c->bound[index] : tolerance(e, index, x);
    return allowed < 0 || q3_absolute(x - y) <= allowed;
}

static bool agrees_everywhere(const evidence *e, const claim *c)
{
    for (size_t i = e->first * e->row; i < e->T * e->row; i++)
        if (!agrees(e, c, i)) return false;
    return true;
}

size_t q3_own_token(const evidence *e, size_t t)
{
    return t - e->past;
}

bool q3_agrees(const evidence *e, size_t index, float right)
{
    double allowed = tolerance(e, index, (double)right), x = (double)right;
    double y = (double)e->theirs[index];
    if (allowed < 0 || x == y || (x != x && y != y)) return true;
    return q3_absolute(x - y) <= allowed;
}

/* The square of an element's distance in ulp of D, limited. */
static double squared_ulp(const evidence *e, const float *y, size_t index)
{
    double a = (double)y[index], b = (double)e->theirs[index];
    double size = q3_absolute(a) > q3_absolute(b) ? q3_absolute(a) : q3_absolute(b);
    if (e->bound[index] < 0 || a == b || (a != a && b != b)) return 0;
    double d = (a - b) / q3_ulp(size, stored_in(e));
    return q3_absolute(d) < 1e4 ? d * d : 1e8;
}

double q3_distance(const evidence *e, const float *y)
{
    double sum = 0;
    for (size_t i = e->first * e->row; i < e->T * e->row; i++) sum += squared_ulp(e, y, i);
    return sum;
}

bool q3_agrees_everywhere(const evidence *e, const float *y)
{
    claim c = {y, NULL};
    return agrees_everywhere(e, &c);
}

/* ---- Mistakes that some tokens, keys, heads or experts have, and the others not ---- */

typedef enum unit_kind { UNIT_TOKEN, UNIT_KEY, UNIT_HEAD, UNIT_EXPERT, UNIT_KINDS } unit_kind;

static bool has_experts(const evidence *e)
{
    return q3_tap_of_experts(e->id) && e->tap[Q3_TAP_TOPK_INDICES] != NULL;
}

/* How many units of this kind the tensor has; 0: none. */
static size_t unit_count(const evidence *e, unit_kind kind)
{
    bool square = q3_tap_is_square(e->id);
    if (kind == UNIT_TOKEN) return e->T;
    if (kind == UNIT_KEY) return square ? e->T : 0;
    if (kind == UNIT_EXPERT) return has_experts(e) ? e->config->num_experts : 0;
    if (square) return e->config->num_attention_heads;
    return q3_tap_has_heads(e->id) ? e->row / e->config->head_dim : 0;
}

static size_t unit_of(const evidence *e, unit_kind kind, size_t t, size_t i)
{
    size_t A = e->config->num_experts_per_tok;
    bool square = q3_tap_is_square(e->id);
    if (kind == UNIT_TOKEN) return t;
    if (kind == UNIT_KEY) return i % e->T;
    if (kind == UNIT_HEAD) return i / (square ? e->T : e->config->head_dim);
    return (size_t)e->tap[Q3_TAP_TOPK_INDICES][t * A + i / (e->row / A)];
}

static void name_units(char *text, size_t room, unit_kind kind, size_t first, size_t last,
                       size_t wrong, size_t all)
{
    static const char *const names[UNIT_KINDS] = {"token", "key", "head", "expert"};
    const char *name = names[kind];
    if (wrong == 1) snprintf(text, room, " (%s %zu only)", name, first);
    else if (last - first + 1 == wrong && last + 1 == all)
        snprintf(text, room, " (%ss from %zu on)", name, first);
    else if (last - first + 1 == wrong)
        snprintf(text, room, " (%ss %zu to %zu)", name, first, last);
    else snprintf(text, room, " (%zu of %zu %ss, first %zu)", wrong, all, name, first);
}

/* Whether each unit is explained by the mistake's y or by ours, and which are by y alone. */
static bool mixed(char *text, size_t room, diagnosis *d, const claim *c, unit_kind kind)
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
            by[u] += !agrees(e, c, at);
            own[u] += !q3_agrees(e, at, e->ours[at]);
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
    if (kind == UNIT_TOKEN)
        first = q3_own_token(e, first), last = q3_own_token(e, last), count -= e->past;
    name_units(text, room, kind, first, last, wrong, count);
    return true;
}

/* ==== Trying a mistake ======================================================================== */

/* Whether a mistake's y can explain theirs: it is much nearer than ours, in all, or, since some
 * tokens or heads may be right, where ours is wrong. */
static bool is_near(const diagnosis *d, const float *y)
{
    const evidence *e = d->e;
    double own = 0, by = 0;
    if (d->rounding) return q3_distance(e, y) <= d->own_distance / 4;
    for (size_t i = e->first * e->row; i < e->T * e->row; i++) {
        if (q3_agrees(e, i, e->ours[i])) continue;
        own += squared_ulp(e, e->ours, i);
        by += squared_ulp(e, y, i);
    }
    return by <= own / 4;
}

static bool weigh(diagnosis *d, const claim *c, const char *text, const char *cause)
{
    char where[64] = "";
    strength s = agrees_everywhere(d->e, c) ? FULL : NOTHING;
    double away = q3_distance(d->e, c->y);
    if (d->rounding && !(away <= d->own_distance / 4)) return false;
    for (int kind = 0; s == NOTHING && !d->rounding && kind < UNIT_KINDS; kind++)
        if (d->strength <= PARTIAL && mixed(where, sizeof where, d, c, (unit_kind)kind))
            s = PARTIAL;
    if (s == NOTHING || s < d->strength || (s == d->strength && !(away < d->distance / 2)))
        return false;
    d->strength = s;
    d->distance = away;
    d->by_mistake = false;
    snprintf(d->name, sizeof d->name, "%s", text);
    snprintf(d->cause, sizeof d->cause, "%s", cause);
    if (d->rounding)
        snprintf(d->text, sizeof d->text, "%s, explains %.0f %% of the rounding", text,
                 100 * (1 - away / d->own_distance));
    else
        snprintf(d->text, sizeof d->text, "%s%s, explains 100 %% of elements", text, where);
    return true;
}

bool q3_weigh(diagnosis *d, const float *y, const char *text)
{
    claim c = {y, NULL};
    return weigh(d, &c, text, text);
}

bool q3_weigh_as(diagnosis *d, const float *y, const char *text, const char *cause)
{
    claim c = {y, NULL};
    return weigh(d, &c, text, cause);
}

/* The set of experts decides, not their order. */
void q3_sort_ids(float *ids, size_t T, size_t A)
{
    for (size_t t = 0; t < T; t++, ids += A)
        for (size_t i = 1; i < A; i++)
            for (size_t k = i; k > 0 && ids[k] < ids[k - 1]; k--) {
                float swap = ids[k];
                ids[k] = ids[k - 1];
                ids[k - 1] = swap;
            }
}

static void spend(diagnosis *d, double work)
{
    d->work -= work;
    if (d->e->budget != NULL) *d->e->budget -= work;
}

static bool is_spent(diagnosis *d)
{
    bool spent = d->work < 0 || (d->e->budget != NULL && *d->e->budget < 0);
    d->stopped = d->stopped || spent;
    return spent;
}

/* Remembers m as the best: its map belongs to the caller. */
static void keep_mistake(diagnosis *d, const mistake *m)
{
    size_t E = d->e->config->num_experts;
    if (m->map != NULL && d->best_map == NULL) d->best_map = malloc(E * sizeof *d->best_map);
    d->no_memory = d->no_memory || (m->map != NULL && d->best_map == NULL);
    d->best = *m;
    d->by_mistake = true;
    if (m->map == NULL || d->no_memory) return;
    memcpy(d->best_map, m->map, E * sizeof *d->best_map);
    d->best.map = d->best_map;
}

/* As for ours: where a mistake's bound reaches the root mean square of the row, it says nothing
 * (-1). A mistake that says nothing of most elements that ours says something of, or of most that
 * ours does not explain, explains nothing: false. carry: ulp that the mistake adds. */
static bool limit_bounds(const diagnosis *d, const float *y, double *bound, double carry)
{
    const evidence *e = d->e;
    size_t judged = 0, said = 0, wrong = 0, wrong_said = 0;
    for (size_t t = e->first; t < e->T; t++) {
        double square = 0, count = 0;
        for (size_t i = t * e->row; i < (t + 1) * e->row; i++)
            if (y[i] - y[i] == 0.0f) square += (double)y[i] * (double)y[i], count++;
        double size = count > 0 ? q3_sqrt(square / count) : 0;
        for (size_t i = t * e->row; i < (t + 1) * e->row; i++) {
            bool finite = y[i] - y[i] == 0.0f;
            bound[i] = finite ? bound[i] + carry * q3_ulp((double)y[i], stored_in(e)) : 0;
            if (size > 0 && !(bound[i] == 0 || bound[i] < size)) bound[i] = -1;
            if (e->bound[i] < 0) continue;
            bool own = q3_agrees(e, i, e->ours[i]);
            judged++, said += bound[i] >= 0;
            wrong += !own, wrong_said += !own && bound[i] >= 0;
        }
    }
    return 2 * said >= judged && 2 * wrong_said >= wrong;
}

/* ---- Some channels first --------------------------------------------------------------------- */

/* Whether an element is to be explained. */
static bool in_question(const diagnosis *d, size_t at)
{
    const evidence *e = d->e;
    if (d->rounding) return e->bound[at] >= 0 && e->ours[at] != e->theirs[at];
    return !q3_agrees(e, at, e->ours[at]);
}

#define SMALL 4e6 /* multiplications of a map that is computed whole at once */

void q3_choose_sample(diagnosis *d)
{
    const evidence *e = d->e;
    const q3_node *node = q3_graph_node(e->config, e->id, e->layer);
    bool experts = node != NULL && node->op == Q3_OP_EXPERT_LINEAR;
    size_t N = experts ? e->row / e->config->num_experts_per_tok : e->row, wrong = 0, nth = 0;
    d->some.count = 0;
    if (node == NULL || (node->op != Q3_OP_LINEAR && !experts)) return;
    if (q3_work_of(e, node) < SMALL || N < 4 * SAMPLE) return;
    bool *bad = calloc(N, sizeof *bad);
    d->no_memory = d->no_memory || bad == NULL;
    for (size_t i = e->first * e->row; bad != NULL && i < e->T * e->row; i++)
        bad[i % N] = bad[i % N] || in_question(d, i);
    for (size_t c = 0; bad != NULL && c < N; c++) wrong += bad[c];
    for (size_t c = 0; bad != NULL && c < N; c++) {
        if (!bad[c]) continue;
        bool take = wrong <= SAMPLE || nth * SAMPLE / wrong == d->some.count;
        nth++;
        if (take && d->some.count < SAMPLE) d->some.channel[d->some.count++] = c;
    }
    free(bad);
}

/* False: the mistake is no nearer in these channels, where it was to explain something, than half
 * of what ours is off; is_near would ask for a quarter over all. */
static bool explains_some(diagnosis *d, const mistake *m)
{
    const evidence *e = d->e;
    pass p;
    double own = 0, by = 0;
    const q3_node *node = q3_graph_node(e->config, e->id, e->layer);
    bool experts = node->op == Q3_OP_EXPERT_LINEAR, edited = (m->at >> e->id & 1) != 0;
    size_t N = experts ? e->row / e->config->num_experts_per_tok : e->row;
    for (size_t k = 0; edited && k < EDITS; k++) /* of rows: such an edit needs all channels */
        if (m->edits[k].at == RESULT && m->edits[k].what >= FROM_PAIRS) return true;
    for (size_t k = 0; edited && k < EDITS; k++)
        if (m->edits[k].at == RESULT && (m->edits[k].what == THROUGH || m->edits[k].what == AGAIN))
            return true;
    const float *y = q3_pass_sample(&p, e, m, &d->some);
    for (size_t at = e->first * e->row; y != NULL && at < e->T * e->row; at += N)
        for (size_t k = 0; k < d->some.count; k++) {
            size_t i = at + d->some.channel[k];
            if (!in_question(d, i)) continue;
            own += squared_ulp(e, e->ours, i);
            by += squared_ulp(e, y, i);
        }
    bool good = y != NULL && by <= own / 2;
    spend(d, p.work);
    d->no_memory = d->no_memory || p.no_memory;
    q3_pass_free(&p);
    return good;
}

/* Computes the mistake and weighs what it makes, by its own bounds, which are found where it is
 * near enough. */
void q3_attempt(diagnosis *d, const mistake *m, const char *text)
{
    pass p;
    const evidence *e = d->e;
    claim c = {NULL, NULL};
    if (m->allowed && e->differs) return;
    if (d->no_memory || is_spent(d)) return;
    if (d->some.count > 0 && !explains_some(d, m)) return;
    c.y = q3_pass_run(&p, e, m);
    bool ids = e->id == Q3_TAP_TOPK_INDICES;
    if (c.y != NULL && ids) q3_sort_ids(p.made[e->id], e->T, e->row);
    bool near = c.y != NULL && is_near(d, c.y);
    if (near && !ids) {
        c.bound = q3_pass_bound(&p);
        c.y = p.made[e->id];
        near = c.bound != NULL && limit_bounds(d, c.y, p.doubt[e->id], m->carry);
    }
    if (near && weigh(d, &c, text, m->cause != NULL ? m->cause : text)) keep_mistake(d, m);
    spend(d, p.work);
    d->no_memory = d->no_memory || p.no_memory;
    q3_pass_free(&p);
}

void q3_attempt_again(diagnosis *d, const mistake *m, const char *text)
{
    const evidence *e = d->e;
    evidence unlimited = *e;
    double left = d->work;
    unlimited.budget = NULL;
    d->e = &unlimited;
    d->strength = NOTHING;
    d->work = 0;
    q3_attempt(d, m, text);
    d->e = e;
    d->work = left;
}
