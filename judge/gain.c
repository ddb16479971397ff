/* SPDX-License-Identifier: MIT */
/* gain.c - differences that lie within their bounds, but have a direction: a factor over a whole
 * tensor, or over each of its rows (MODEL.md 12.5). */
#include "judge/graph.h"
#include "judge/verdict.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double size_of(double x)
{
    return x < 0 ? -x : x;
}

/* ==== A factor over the whole tensor ========================================================== */

/* A norm's inner roundings may have a direction in common, where the same tokens come again and
 * again: an eighth of an ulp, and as much of the input's. */
static double common_of_norm(const trial *r, const walk *w)
{
    const q3_node *node = q3_graph_node(w->config, r->id, r->f.layer);
    double common = 0;
    if (node->op != Q3_OP_NORM && node->op != Q3_OP_HEAD_NORM) return 0;
    for (size_t i = 0; i < w->T * r->n; i++)
        common += size_of(r->weight[i]) * q3_ulp((double)r->ours[i], w->dtype) / 6;
    return common;
}

/* Roundings have no direction, so that over a whole tensor they hardly add up along it: a gain that
 * they and the sums' noise, were it all of one sign, do not explain is a factor. Six standard
 * deviations where it was followed back through what was not given, eight of what is known element
 * by element alone. */
static bool find_gain(trial *r, walk *w)
{
    q3_finding *f = &r->f;
    double along = size_of(r->along), least = Q3_SIGMAS * q3_sqrt(r->along_var) + r->along_noise;
    spread hidden = {true, 0, 0};
    if (!(along > least)) return true;
    r->asks_all = r->brief && r->propagated;
    if (r->asks_all) return true;
    if (r->propagated && !q3_gain_reach(&hidden, w, r->id, r->weight)) return false;
    least = (r->propagated ? Q3_SIGMAS : 8) * q3_sqrt(r->along_var + hidden.var) +
            r->along_noise + hidden.bias + common_of_norm(r, w);
    if (!hidden.known || !(along > least)) return true;
    f->verdict = Q3_VERDICT_DIFFERS;
    snprintf(f->reason, sizeof f->reason,
             "theirs is %.6g times ours over the whole tensor, which no rounding makes (%zu rows: "
             "%.2g off 1 at most)",
             1 + r->along / r->power, w->T - r->tensor->first, least / r->power);
    return true;
}

/* ==== A factor over each row of a norm ======================================================== */

/* Elements whose inputs have the same significand are rounded alike inside a norm, and so count as
 * one. Of a row, relative differences (theirs - ours) / ours: */
typedef struct row_gain {
    double same[1024];  /* their sums by the input's significand */
    double sum, noise;  /* of all; what the noise of the sum of squares makes of it */
    double var;         /* of the sum, were every sign a coin's throw */
    double coarse;      /* the factor, less 1, of a mean of squares that is rounded to D */
} row_gain;

/* Of all rows that differ. */
typedef struct evidence_of_rows {
    size_t rows;
    double square;          /* sum of their sums over their standard deviations, squared: chi-square
                             * of `rows` degrees, at most */
    double along, along_var; /* sums along `coarse`; variance */
} evidence_of_rows;

/* Bits of a significand behind its 1; float32's are told apart in any case. */
static unsigned significand_of(float x, q3_dtype dtype)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return dtype == Q3_BF16 ? bits >> 16 & 127 : bits >> 13 & 1023;
}

/* One row of ours, theirs, and the norm's input. A sum that is fused with the norm may not have
 * rounded its result: x ulp(x) gathers what that one factor may be. False: it does not differ, or
 * nothing can be said of it. */
static bool gather_row(row_gain *g, const walk *w, const float *y, const float *theirs,
                       const float *x, size_t n)
{
    double square = 0, unrounded = 0, count = 0, eps = (double)(float)w->config->rms_norm_eps;
    memset(g, 0, sizeof *g);
    for (size_t i = 0; i < n; i++) {
        double part = y[i] != 0 ? ((double)theirs[i] - (double)y[i]) / (double)y[i] : 0;
        double step = (double)x[i] * q3_ulp((double)x[i], w->dtype);
        if (w->dtype == Q3_F32) g->var += part * part;
        else g->same[significand_of(x[i], w->dtype)] += part;
        g->sum += part;
        count += y[i] != 0;
        square += (double)x[i] * (double)x[i];
        unrounded += step * step / 12;
    }
    for (size_t i = 0; i < 1024; i++) g->var += g->same[i] * g->same[i];
    if (!(g->var > 0) || !q3_is_finite(g->var) || !(square > 0)) return false;
    double mean = square / (double)n;
    g->var += count * count * unrounded / square / square;
    g->noise = count * (2 + 4 * q3_sqrt((double)n)) * 0x1p-24;
    g->coarse = q3_sqrt((mean + eps) / ((double)q3_round(mean, w->dtype) + eps)) - 1;
    return q3_is_finite(g->var) && q3_is_finite(g->coarse);
}

static void add_row(evidence_of_rows *e, const row_gain *g)
{
    double beyond = size_of(g->sum) - g->noise;
    if (!(beyond > 0)) beyond = 0;
    e->rows++;
    e->square += beyond * beyond / g->var;
    e->along += g->coarse * (g->sum < 0 ? -beyond : beyond);
    e->along_var += g->coarse * g->coarse * g->var;
}

/* Whether a token's row is much like an earlier one's, as those of equal tokens are: then its
 * roundings are no evidence of their own. A quarter of the first elements are the same. */
static bool seen_before(const trial *r, size_t t)
{
    size_t some = r->n < 64 ? r->n : 64;
    for (size_t s = r->tensor->first; s < t; s++) {
        size_t same = 0;
        for (size_t i = 0; i < some; i++) same += r->ours[s * r->n + i] == r->ours[t * r->n + i];
        if (same * 4 >= some) return true;
    }
    return false;
}

/* The evidence of all rows, or of those that are like no other. */
static evidence_of_rows all_evidence(row_gain *g, const trial *r, const walk *w, bool distinct)
{
    const q3_node *node = q3_graph_node(w->config, r->id, r->f.layer);
    size_t n = node->op == Q3_OP_HEAD_NORM ? w->config->head_dim : r->n;
    const float *input = node->stream ? w->input : w->tap[node->from[0]];
    evidence_of_rows e = {0, 0, 0, 0};
    for (size_t t = r->tensor->first; t < w->T; t++) {
        if (distinct && seen_before(r, t)) continue;
        for (size_t at = t * r->n; at < (t + 1) * r->n; at += n)
            if (gather_row(g, w, r->ours + at, r->theirs + at, input + at, n)) add_row(&e, g);
    }
    return e;
}

/* Chernoff's bounds, e^-20: of a chi-square sum, and of one along what a coarse mean of squares
 * does. */
static bool beyond_chance(const evidence_of_rows *e)
{
    double n = (double)e->rows;
    if (e->along > 0 && e->along * e->along > 2 * 20 * e->along_var) return true;
    return e->square > n && (e->square - n - n * q3_log(e->square / n)) / 2 > 20;
}

static bool find_row_gains(trial *r, const walk *w)
{
    const q3_node *node = q3_graph_node(w->config, r->id, r->f.layer);
    if (r->propagated || (node->op != Q3_OP_NORM && node->op != Q3_OP_HEAD_NORM)) return true;
    row_gain *g = malloc(sizeof *g);
    if (g == NULL) return false;
    evidence_of_rows e = all_evidence(g, r, w, false);
    bool found = beyond_chance(&e);
    if (found) {
        e = all_evidence(g, r, w, true);
        found = beyond_chance(&e);
    }
    free(g);
    if (!found) return true;
    r->f.verdict = Q3_VERDICT_DIFFERS;
    snprintf(r->f.reason, sizeof r->f.reason,
             "each row has a factor of its own, which no rounding makes (%zu rows; the factors' "
             "squares are %.3g times what chance explains)",
             e.rows, e.square / (double)e.rows);
    return true;
}

bool q3_find_gains(trial *r, walk *w)
{
    if (!find_gain(r, w)) return false;
    return r->f.verdict == Q3_VERDICT_DIFFERS || find_row_gains(r, w);
}
