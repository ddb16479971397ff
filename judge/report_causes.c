/* SPDX-License-Identifier: MIT */
/* report_causes.c - which tensors one mistake made: findings grouped by their cause, and which of
 * the mistakes is the gravest. */
#include "judge/report.h"

#include <stdlib.h>
#include <string.h>

/* Taps that one function makes, where no cause is known: RoPE turns q and k, one module has the
 * cosines and the sines, and a dense layer's MLP is written as an expert is. */
static q3_tap_id kin_of(q3_tap_id id)
{
    static const q3_tap_id pairs[][2] = {{Q3_TAP_SIN, Q3_TAP_COS}, {Q3_TAP_K_NORM, Q3_TAP_Q_NORM},
                                         {Q3_TAP_K_ROPE, Q3_TAP_Q_ROPE}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        if (id == pairs[i][0]) return pairs[i][1];
    return q3_tap_column(id);
}

static bool is_rounding(const report_entry *e)
{
    return e->f.verdict == Q3_VERDICT_ROUNDING;
}

/* Whether the mistake that c holds made e too. A named one is told by its name, which stands at
 * every tensor that it explains; what it does not explain is no consequence of it. Without a name:
 * the same operator, or the same wrong shape. */
static bool belongs(const report_cause *c, const report_entry *e)
{
    const q3_finding *a = &c->first->f, *b = &e->f;
    bool shape = a->verdict == Q3_VERDICT_SHAPE;
    if (is_rounding(c->first) != is_rounding(e) || shape != (b->verdict == Q3_VERDICT_SHAPE))
        return false;
    if (a->cause[0] != 0 || b->cause[0] != 0) return strcmp(a->cause, b->cause) == 0;
    return kin_of(c->first->id) == kin_of(e->id) || (shape && strcmp(a->reason, b->reason) == 0);
}

/* How far the tensor is from right, so that two can be compared: the relative L2 error, of experts'
 * ids the share of tokens that have wrong ones. What is not finite or has another shape is beyond
 * all others. */
static double gravity(const report_entry *e)
{
    const q3_finding *f = &e->f;
    double size = e->id == Q3_TAP_TOPK_INDICES && f->shape[0] > 0
                      ? (double)f->wrong_sets / (double)f->shape[0] : f->relative_l2;
    bool whole = f->verdict != Q3_VERDICT_SHAPE && f->verdict != Q3_VERDICT_NON_FINITE;
    return whole && size - size == 0 ? size : 1.7976931348623157e308;
}

/* Differences before roundings, and the graver one first; of two alike the one that starts
 * earlier. */
static int by_gravity(const void *a, const void *b)
{
    const report_cause *x = a, *y = b;
    if (is_rounding(x->first) != is_rounding(y->first)) return is_rounding(x->first) ? 1 : -1;
    if (x->gravity != y->gravity) return x->gravity > y->gravity ? -1 : 1;
    return x->first < y->first ? -1 : 1;
}

static void take(q3_report *r, const report_entry *e)
{
    size_t i = 0;
    while (i < r->cause_count && !belongs(&r->causes[i], e)) i++;
    report_cause *c = &r->causes[i];
    if (i == r->cause_count) {
        *c = (report_cause){.first = e};
        r->cause_count++;
    }
    double size = gravity(e);
    if (size > c->gravity) c->gravity = size;
    c->count++;
}

/* Where our values stay in place, and where there is no model, what follows the first difference
 * may be no more than its consequence: there is one cause then, and it has one tensor. */
q3_status q3_report_find_causes(q3_report *r, q3_error *error)
{
    bool carried = r->run.free_running || r->run.layers == 0;
    r->causes = calloc(r->count + 1, sizeof *r->causes);
    if (r->causes == NULL) return q3_no_memory(error, r->name);
    for (size_t i = 0; i < r->count && r->first_bad != NULL; i++) {
        const report_entry *e = &r->entries[i];
        if (q3_report_is_bad(r, &e->f) && (!carried || e == r->first_bad)) take(r, e);
    }
    if (r->cause_count > 1) qsort(r->causes, r->cause_count, sizeof *r->causes, by_gravity);
    return Q3_OK;
}
