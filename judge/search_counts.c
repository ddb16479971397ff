/* SPDX-License-Identifier: MIT */
/* search_counts.c - mistakes whose number shows in which tokens are wrong: how many keys a window
 * has where probs are hidden, how many tokens an expert takes; and weights that stand in another
 * order in their rows. */
#include "judge/diagnosis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t first_wrong_token(const evidence *e)
{
    for (size_t i = e->first * e->row; i < e->T * e->row; i++)
        if (!q3_agrees(e, i, e->ours[i])) return i / e->row;
    return e->T;
}

/* ==== Window ================================================================================== */

/* The distance of a window, or negative: it does not explain everything. */
static double window_distance(diagnosis *d, double keys)
{
    const evidence *e = d->e;
    mistake m = {.at = TAP_BIT(Q3_TAP_PROBS), .edits = {{PARAMETER, WINDOW, 0}}, .value = keys};
    pass p;
    const float *y = q3_pass_run(&p, e, &m);
    double away = y != NULL && q3_agrees_everywhere(e, y) ? q3_distance(e, y) : -1;
    d->work -= p.work;
    d->no_memory = d->no_memory || p.no_memory;
    q3_pass_free(&p);
    return away;
}

/* A window that is too narrow for token t has t keys at most, and one that is too wide more than
 * the config's: of those that explain everything the closest. */
void q3_search_window(diagnosis *d)
{
    const evidence *e = d->e;
    size_t own = e->config->sliding_window, keys = 0;
    double closest = -1;
    if (e->id < Q3_TAP_O_PROJ_INPUT || e->id >= Q3_TAP_NORM || e->given[Q3_TAP_PROBS]) return;
    if (d->rounding || d->strength == FULL) return;
    size_t wrong = first_wrong_token(e), most = own > 0 && own <= wrong ? e->T - 1 : wrong;
    double rest = d->work * 3 / 4; /* long prompts have many windows */
    for (size_t k = most; k > 0 && k < e->T && d->work > rest && !d->no_memory; k--) {
        double away = k != own ? window_distance(d, (double)k) : -1;
        if (away < 0 || (keys > 0 && away >= closest)) continue;
        keys = k;
        closest = away;
    }
    char text[160];
    mistake m = {.at = TAP_BIT(Q3_TAP_PROBS), .edits = {{PARAMETER, WINDOW, 0}},
                 .value = (double)keys};
    if (own > 0) snprintf(text, sizeof text, "window of %zu keys instead of %zu", keys, own);
    else snprintf(text, sizeof text, "window of %zu keys though the config has none", keys);
    if (keys > 0) q3_attempt(d, &m, text);
}

/* ==== Capacity ================================================================================ */

/* What slots that are dropped are seen by: what their experts make is 0, or their weights are. */
static mistake dropped(const evidence *e, change what, size_t most)
{
    bool behind = e->id == Q3_TAP_MLP || e->id == Q3_TAP_LAYER;
    uint64_t at = TAP_BIT(Q3_TAP_EXPERTS_GATE_PROJ) | TAP_BIT(Q3_TAP_EXPERTS_UP_PROJ) |
        TAP_BIT(Q3_TAP_EXPERTS_DOWN_PROJ) | TAP_BIT(Q3_TAP_TOPK_WEIGHTS);
    mistake m = {.at = behind ? TAP_BIT(Q3_TAP_MLP) : at,
                 .edits = {{behind ? ARG_2 : RESULT, what, 0}}, .value = (double)most};
    return m;
}

/* How many slots before slot `at` of ids[T*A] have its expert: token by token, or all first slots
 * before all second ones. */
static size_t slots_before(const float *ids, size_t T, size_t A, size_t at, bool by_rank)
{
    size_t before = 0;
    for (size_t i = 0; i < T * A; i++) {
        bool earlier = i < at;
        if (by_rank) earlier = i % A < at % A || (i % A == at % A && i < at);
        before += earlier && ids[i] == ids[at];
    }
    return before;
}

static void attempt_capacity(diagnosis *d, change what, size_t most)
{
    char text[160];
    mistake m = dropped(d->e, what, most);
    snprintf(text, sizeof text, "capacity of %zu tokens an expert, slots beyond it dropped%s", most,
             what == CAPACITY_BY_RANK ? " (first choices come first)" : "");
    if (most > 0 && d->strength != FULL) q3_attempt(d, &m, text);
}

/* An expert that takes so many tokens at most, as they come, or all first choices first. The first
 * wrong token lost a slot: as they come, the first slot that was dropped at all; else a later one
 * may have been. */
void q3_search_capacity(diagnosis *d)
{
    const evidence *e = d->e;
    const float *ids = e->tap[Q3_TAP_TOPK_INDICES];
    size_t A = e->config->num_experts_per_tok, most = 0;
    bool slots = q3_tap_of_experts(e->id) || e->id == Q3_TAP_TOPK_WEIGHTS;
    bool behind = e->id == Q3_TAP_MLP || e->id == Q3_TAP_LAYER;
    if ((!slots && !behind) || q3_in_dense_layer(e) || ids == NULL || d->rounding) return;
    size_t wrong = first_wrong_token(e);
    for (size_t at = wrong * A; wrong < e->T && at < (wrong + 1) * A; at++) {
        size_t before = slots_before(ids, e->T, A, at, true);
        attempt_capacity(d, CAPACITY, slots_before(ids, e->T, A, at, false));
        if (before > most) most = before;
    }
    for (; most > 0; most--) attempt_capacity(d, CAPACITY_BY_RANK, most);
}

/* ==== Weights in another order ================================================================ */

/* y[A]: of ours, each slot the one that is nearest to theirs and not taken yet. True: the order
 * is another. */
static bool pair_nearest(float *y, const float *ours, const float *theirs, size_t A, bool *taken)
{
    bool moved = false;
    memset(taken, 0, A * sizeof *taken);
    for (size_t a = 0; a < A; a++) {
        size_t best = A;
        for (size_t b = 0; b < A; b++) {
            double away = q3_absolute((double)ours[b] - (double)theirs[a]);
            if (!taken[b] &&
                (best == A || away < q3_absolute((double)ours[best] - (double)theirs[a]))) best = b;
        }
        taken[best] = true;
        y[a] = ours[best];
        moved = moved || (best != a && ours[best] != ours[a]);
    }
    return moved;
}

void q3_search_pairs(diagnosis *d)
{
    const evidence *e = d->e;
    size_t tokens = 0, first = 0;
    if (e->id != Q3_TAP_TOPK_WEIGHTS || d->rounding || d->strength == FULL) return;
    float *y = calloc(e->T + 1, e->row * sizeof *y);
    bool *taken = calloc(e->row + 1, sizeof *taken);
    for (size_t t = e->T; y != NULL && taken != NULL && t-- > e->first;) {
        size_t at = t * e->row;
        if (!pair_nearest(y + at, e->ours + at, e->theirs + at, e->row, taken)) continue;
        tokens++;
        first = t;
    }
    char text[160];
    snprintf(text, sizeof text,
             "weights permuted within their rows in %zu of %zu tokens (first: token %zu)", tokens,
             e->T - e->first, first);
    if (tokens > 0) q3_weigh_as(d, y, text, "weights permuted within their rows");
    d->no_memory = d->no_memory || y == NULL || taken == NULL;
    free(y);
    free(taken);
}
