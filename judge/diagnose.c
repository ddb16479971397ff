/* SPDX-License-Identifier: MIT */
/* diagnose.c - which known mistake explains a tensor that differs: in which order explanations
 * are looked for, and on which tokens. */
#include "judge/diagnosis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== The diagnosis =========================================================================== */

/* A copy of what is judged: bound is -1 where it says nothing, expert ids are sorted in each
 * row. */
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
        q3_sort_ids(c->ours, e->T, e->row);
        q3_sort_ids(c->theirs, e->T, e->row);
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

/* A rounding shows in some elements only, and so needs all of them. Else the tokens up to the
 * first wrong one are enough to choose by, where whole prompts of a large model would take long:
 * what a token has depends on those before it alone. (Scores and probs lie in rows of T.) */
static size_t tokens_to_choose_by(const diagnosis *d)
{
    const evidence *e = d->e;
    const q3_config *c = e->config;
    size_t wide = c->num_experts_per_tok * c->moe_intermediate_size, t = e->first;
    if (c->intermediate_size > wide) wide = c->intermediate_size;
    size_t heads = 4 * c->num_attention_heads * c->head_dim;
    double token = (double)c->hidden_size * (double)(3 * wide + heads);
    bool square = e->given[Q3_TAP_SCORES] || e->given[Q3_TAP_PROBS] || q3_tap_is_square(e->id);
    bool all = d->rounding || c->rope.type == Q3_ROPE_DYNAMIC;
    if (all || square || (double)e->T * token < 1e8) return e->T;
    for (bool right = true; right && t < e->T; t++)
        for (size_t i = t * e->row; i < (t + 1) * e->row && right; i++)
            right = q3_agrees(e, i, e->ours[i]);
    t += 2;
    return t < e->T ? t : e->T;
}

static void try_all(diagnosis *d)
{
    const evidence *e = d->e;
    evidence few = *e;
    few.T = tokens_to_choose_by(d);
    d->e = &few;
    q3_choose_sample(d);
    q3_try_mistakes(d);
    d->e = e;
    q3_choose_sample(d);
    if (few.T < e->T && d->strength != NOTHING) { /* what was chosen, on all tokens */
        char name[160], cause[160];
        mistake m = d->best;
        memcpy(name, d->name, sizeof name);
        memcpy(cause, d->cause, sizeof cause);
        m.cause = cause;
        d->text[0] = d->cause[0] = 0;
        q3_attempt_again(d, &m, name);
    }
    d->work = WORK;
    q3_search_positions(d);
    q3_search_theta(d);
    q3_search_eps(d);
    q3_search_limit(d);
    q3_search_experts(d);
    q3_search_hidden_experts(d);
    q3_search_capacity(d);
    q3_search_missing(d);
    q3_search_pairs(d);
    q3_search_window(d);
    q3_search_declared(d);
    q3_locate(d);
}

/* ==== What was told already =================================================================== */

typedef struct remembered {
    char cause[160];
    strength strength;
    bool by_mistake; /* else by q3_locate */
    mistake m;
    size_t *map;     /* owned: m.map */
} remembered;

void q3_told_free(told_causes *t)
{
    for (size_t i = 0; i < t->count; i++) {
        free(t->mistakes[i]->map);
        free(t->mistakes[i]);
    }
    memset(t, 0, sizeof *t);
}

/* Whether a mistake that was told explains this tensor, too, as well as it did the other. */
static bool explained(diagnosis *d, const told_causes *before)
{
    for (size_t i = 0; i < before->count; i++) {
        const remembered *r = before->mistakes[i];
        d->strength = NOTHING;
        d->work = WORK;
        if (r->by_mistake) q3_attempt(d, &r->m, r->cause);
        else q3_locate(d);
        if (d->strength >= r->strength && strcmp(d->cause, r->cause) == 0) return true;
    }
    d->strength = NOTHING;
    d->text[0] = d->cause[0] = 0;
    return false;
}

/* Keeps the cause of d, which the caller gives up. False: it was told before. */
static bool is_new(diagnosis *d, told_causes *before)
{
    for (size_t i = 0; i < before->count; i++)
        if (strcmp(d->cause, before->mistakes[i]->cause) == 0) return false;
    before->searches++;
    if (d->cause[0] == 0 || before->count == TOLD) return true;
    remembered *r = calloc(1, sizeof *r);
    d->no_memory = d->no_memory || r == NULL;
    if (r == NULL) return true;
    before->mistakes[before->count++] = r;
    memcpy(r->cause, d->cause, sizeof r->cause);
    r->strength = d->strength;
    r->by_mistake = d->by_mistake;
    r->m = d->best;
    r->m.cause = r->cause;
    r->map = d->best_map;
    if (r->m.map != NULL) r->m.map = r->map;
    d->best_map = NULL;
    return true;
}

/* ==== The budget ============================================================================== */

#define LEAST_BUDGET 2e10 /* of a small run: some seconds */
#define BUDGET 4          /* for each multiplication of the layers' maps */

double q3_search_budget(const q3_config *c, size_t T, size_t layers)
{
    double M = (double)c->hidden_size, wide = (double)c->intermediate_size;
    double heads = (double)(2 * (c->num_attention_heads + c->num_key_value_heads));
    if (c->num_experts > 0) wide = (double)(c->num_experts_per_tok * c->moe_intermediate_size);
    double layer = M * (heads * (double)c->head_dim + 3 * wide + (double)c->num_experts);
    return LEAST_BUDGET + BUDGET * (double)T * (double)layers * layer;
}

void q3_say_stopped(char *reason, size_t room)
{
    size_t used = strlen(reason);
    snprintf(reason + used, room - used, "%sthe search for its cause stopped at its budget",
             used > 0 ? "; " : "");
}

/* ==== One diagnosis =========================================================================== */

static void look(diagnosis *d, told_causes *before)
{
    d->rounding = q3_agrees_everywhere(d->e, d->e->ours);
    d->own_distance = q3_distance(d->e, d->e->ours);
    if (!(d->own_distance > 0)) return;
    q3_choose_sample(d);
    if (before != NULL && explained(d, before)) {
        d->text[0] = 0;
        return;
    }
    if (before != NULL && before->searches >= TOLD) return;
    d->work = WORK;
    try_all(d);
    if (before != NULL && !is_new(d, before)) d->text[0] = 0;
}

q3_status q3_diagnose(char text[200], char cause[160], const evidence *e, told_causes *before,
                      q3_error *error)
{
    diagnosis d = {0};
    evidence own = *e;
    judged_copy copy = {NULL, NULL, NULL};
    size_t units = e->T;
    text[0] = cause[0] = 0;
    if (e->T == 0 || e->row == 0) return Q3_OK;
    if (e->config->num_experts > units) units = e->config->num_experts;
    if (e->row > units) units = e->row;
    d.outside[0] = calloc(units, sizeof *d.outside[0]);
    d.outside[1] = calloc(units, sizeof *d.outside[1]);
    d.no_memory = !copy_judged(&copy, e) || d.outside[0] == NULL || d.outside[1] == NULL;
    own.bound = copy.bound, own.ours = copy.ours, own.theirs = copy.theirs;
    d.e = &own;
    if (!d.no_memory) look(&d, before);
    free(copy.bound);
    free(copy.ours);
    free(copy.theirs);
    free(d.outside[0]);
    free(d.outside[1]);
    free(d.best_map);
    if (d.no_memory) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for a diagnosis");
    if (e->stopped != NULL) *e->stopped = d.stopped && d.strength != FULL;
    memcpy(text, d.text, sizeof d.text);
    memcpy(cause, d.cause, sizeof d.cause);
    return Q3_OK;
}
