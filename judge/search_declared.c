/* SPDX-License-Identifier: MIT */
/* search_declared.c - whether sums that differ would be within their bound if --accumulate were
 * declared (MODEL.md 12.7): then that is what a porter can do about it. */
#include "judge/diagnosis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct accumulator {
    const char *name, *option;
    format low;
    double unit;
    bool partial; /* of the partial sums too */
} accumulator;

static const accumulator accumulators[] = { /* by rising unit */
    {"float16", "f16", FORMAT_F16, 0x1p-11, false}, {"tf32", "tf32", FORMAT_TF32, 0x1p-10, false},
    {"bfloat16", "bf16", FORMAT_BF16, 0x1p-9, false},
    {"float16", "f16-sums", FORMAT_F16, 0x1p-11, true},
    {"bfloat16", "bf16-sums", FORMAT_BF16, 0x1p-9, true},
};

/* Which of them may be behind a run's sums, the likeliest first: what holds the run's own values
 * rounds no operand. */
static const struct { size_t count, of[5]; } tried[] = {
    [Q3_F32] = {5, {0, 1, 2, 3, 4}}, [Q3_BF16] = {1, {4}}, [Q3_F16] = {3, {3, 2, 4}},
};

/* Element i of a linear map of squares, without its bias. */
static double product_sum(const evidence *e, const float *squares, size_t i)
{
    const q3_node *node = q3_graph_node(e->config, e->id, e->layer);
    q3_tensor bias = q3_graph_bias(node, e->weights, e->layer);
    float added = 0.0f;
    if (bias.data != NULL) q3_widen(&added, bias, i % e->row, 1, e->dtype);
    double sum = (double)squares[i] - (double)added;
    return sum > 0 ? sum : 0;
}

/* bound[T,row]: the evidence's, and what the declaration adds to a sum of n products (12.7).
 * squares: of the products, as a linear map of squares gives them. */
static void widen_bound(double *bound, const evidence *e, const float *squares,
                        const accumulator *a, size_t n)
{
    for (size_t i = 0; i < e->T * e->row; i++) {
        double sum = product_sum(e, squares, i), y = (double)e->ours[i];
        double more = q3_operand_noise(sum, y);
        if (a->partial) more += q3_partial_noise(n, sum, y);
        bound[i] = e->bound[i] < 0 ? e->bound[i] : e->bound[i] + a->unit * more;
    }
}

/* Roundings have no direction: sum ours (theirs - ours) is within five standard deviations of 0. */
static bool without_direction(const evidence *e)
{
    double along = 0, square = 0;
    for (size_t i = e->first * e->row; i < e->T * e->row; i++) {
        double product = (double)e->ours[i] * ((double)e->theirs[i] - (double)e->ours[i]);
        if (e->bound[i] < 0 || product - product != 0) continue;
        along += product;
        square += product * product;
    }
    return along * along <= 25 * square;
}

/* And they are everywhere: what is wrong in some tokens or channels alone is something else. Each
 * token and each quarter of a row has a quarter of its share of the wrong elements at least. */
static bool everywhere(const evidence *e)
{
    size_t quarters[4] = {0}, all = 0, tokens = e->T - e->first, least = e->row;
    for (size_t t = e->first; t < e->T; t++) {
        size_t wrong = 0;
        for (size_t i = 0; i < e->row; i++) {
            bool bad = !q3_agrees(e, t * e->row + i, e->ours[t * e->row + i]);
            wrong += bad;
            quarters[4 * i / e->row] += bad;
        }
        all += wrong;
        if (wrong < least) least = wrong;
    }
    for (size_t k = 0; k < 4; k++)
        if (16 * quarters[k] < all) return false;
    return all >= 16 * tokens && 4 * least * tokens >= all;
}

/* Sums that were added up in a format, as the list has it: the same text, and what to declare. */
static void add_advice(diagnosis *d, const char *option)
{
    size_t used = strlen(d->name);
    snprintf(d->name + used, sizeof d->name - used, ", declare --accumulate %s", option);
    snprintf(d->text, sizeof d->text, "%s, explains 100 %% of elements", d->name);
}

/* Whether activations that are quantised, in whichever way, may be all that differs. */
static bool try_quantised(diagnosis *d)
{
    const evidence *e = d->e;
    quantised weights = q3_format_of_weights(e);
    bool fp8 = weights == QUANTISED_FP8, found = false;
    mistake squares = {.at = TAP_BIT(e->id), .edits = {{ARG_1, OFF_SQUARED, 0},
                                                       {WEIGHT, SQUARED, 0},
                                                       {RESULT, UNROUNDED, 0}},
                       .value = fp8 ? Q3_ACCUMULATE_FP8 : Q3_ACCUMULATE_Q8};
    pass p;
    if (weights == NOT_QUANTISED) return false;
    const float *sums = q3_pass_run(&p, e, &squares);
    double *bound = calloc(e->T * e->row + 1, sizeof *bound);
    evidence declared = *e;
    declared.bound = bound;
    for (size_t i = 0; sums != NULL && bound != NULL && i < e->T * e->row; i++) {
        double more = 4 * q3_sqrt(product_sum(e, sums, i));
        bound[i] = e->bound[i] < 0 ? e->bound[i] : e->bound[i] + more;
    }
    if (sums != NULL && bound != NULL && q3_agrees_everywhere(&declared, e->ours)) {
        d->e = &declared;
        found = q3_weigh(d, e->ours, fp8 ? "activations quantised, declare --accumulate fp8"
                                         : "activations quantised, declare --accumulate q8");
        d->e = e;
    }
    d->no_memory = d->no_memory || bound == NULL || p.no_memory;
    q3_pass_free(&p);
    free(bound);
    return found;
}

void q3_search_declared(diagnosis *d)
{
    const evidence *e = d->e;
    const q3_node *node = q3_graph_node(e->config, e->id, e->layer);
    size_t shape[3] = {0, 0, 0};
    bool map = node != NULL && (node->op == Q3_OP_LINEAR || node->op == Q3_OP_EXPERT_LINEAR);
    bool summed = d->strength == FULL && strncmp(d->name, "sums accumulated in ", 20) == 0;
    mistake squares = {.at = TAP_BIT(e->id), .edits = {{ARG_1, SQUARED, 0}, {WEIGHT, SQUARED, 0},
                                                       {RESULT, UNROUNDED, 0}}};
    pass p;
    if (!map || d->rounding || (d->strength == FULL && !summed)) return;
    if (!summed && (!without_direction(e) || !everywhere(e) || try_quantised(d))) return;
    const float *sums = q3_pass_run(&p, e, &squares);
    double *bound = calloc(e->T * e->row + 1, sizeof *bound);
    evidence declared = *e;
    size_t n = shape[q3_tap_shape(shape, e->config, node->from[0], e->T) - 1];
    for (size_t i = 0; sums != NULL && bound != NULL && i < tried[e->dtype].count; i++) {
        const accumulator *a = &accumulators[tried[e->dtype].of[i]];
        char text[160];
        widen_bound(bound, e, sums, a, n);
        declared.bound = bound;
        if (!q3_agrees_everywhere(&declared, e->ours)) continue;
        if (summed && a->partial && (format)d->best.value == a->low) add_advice(d, a->option);
        if (summed) continue;
        d->e = &declared;
        snprintf(text, sizeof text, "sums accumulated in %s, declare --accumulate %s",
                 a->name, a->option);
        q3_weigh(d, e->ours, text);
        d->e = e;
    }
    d->no_memory = d->no_memory || bound == NULL || p.no_memory;
    q3_pass_free(&p);
    free(bound);
}
