/* SPDX-License-Identifier: MIT */
/* activations.c - what backends make of the activations that meet a quantised weight: small
 * integers or FP8, with a scale for each group of them (MODEL.md 12.7). */
#include "judge/diagnosis.h"

#include "host/quants.h"

/* Of how many activations each a group is; 0: the weight is not quantised. */
static size_t group_of(q3_tensor weight, bool *fp8)
{
    if (weight.dtype != Q3_QUANTIZED) return 0;
    const q3_quantized *w = weight.data;
    const q3_block_format *blocks = w->format;
    *fp8 = blocks == NULL; /* of a program's own format no blocks are known: 0 */
    if (*fp8) return w->block_columns;
    return blocks->elements == 256 ? 256 : 32; /* llama.cpp's Q8_K, or its Q8_0 and Q8_1 */
}

static double largest(const float *x, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++)
        if (q3_absolute((double)x[i]) > most) most = q3_absolute((double)x[i]);
    return most;
}

/* ==== How far off they may be ================================================================= */

#define LEAST_FP8 1e-4 /* some take no smaller one for the largest of a group */

/* FP8: half a unit of 4 significant bits; below 2^-6 of the scale half of 2^-9 of it, where the
 * scale may be twice as large as it must, a power of two. Q8: half of a step, 1/127 of the largest,
 * and its rounding to float16. */
static double error_of(double size, double most, bool fp8)
{
    if (fp8) {
        double unit = (most > LEAST_FP8 ? most : LEAST_FP8) / 448 * 0x1p-9;
        return size * 0x1p-4 > unit ? size * 0x1p-4 : unit;
    }
    double step = most / 127, share = step < 0x1p-14 ? 0x1p-25 / step : 0x1p-11;
    return most > 0 ? step / 2 + size * share : 0;
}

bool q3_quantises(q3_accumulate declared)
{
    return declared == Q3_ACCUMULATE_FP8 || declared == Q3_ACCUMULATE_Q8;
}

bool q3_activation_errors(float *errors, const float *x, size_t K, q3_tensor weight,
                          q3_accumulate declared)
{
    bool fp8 = false;
    size_t group = group_of(weight, &fp8);
    if (declared == Q3_ACCUMULATE_Q8 && (weight.dtype == Q3_F16 || weight.dtype == Q3_BF16)) {
        double unit = weight.dtype == Q3_F16 ? 0x1p-11 : 0x1p-9;
        for (size_t k = 0; k < K; k++) {
            double error = unit * q3_absolute((double)x[k]);
            errors[k] = (float)(weight.dtype == Q3_F16 && error < 0x1p-25 ? 0x1p-25 : error);
        }
        return true;
    }
    if (group == 0 || declared != (fp8 ? Q3_ACCUMULATE_FP8 : Q3_ACCUMULATE_Q8)) return false;
    for (size_t first = 0; first < K; first += group) {
        size_t n = K - first < group ? K - first : group;
        double most = largest(x + first, n);
        for (size_t k = first; k < first + n; k++)
            errors[k] = (float)error_of(q3_absolute((double)x[k]), most, fp8);
    }
    return true;
}

/* ==== One way of doing it ===================================================================== */

/* vLLM's: x / s in E4M3, s = the largest / 448; or the power of two from there on. */
static void to_fp8(float *x, size_t n, bool powers)
{
    double most = largest(x, n), power = 0x1p-126;
    double scale = (double)(float)((most > 1e-10 ? most : 1e-10) / 448);
    while (powers && power < scale) power *= 2;
    if (powers) scale = power;
    for (size_t k = 0; k < n; k++)
        x[k] = (float)(q3_to_format((double)(float)((double)x[k] / scale), FORMAT_FP8) * scale);
}

/* llama.cpp's: 127 for the largest; the step of blocks of 32 is kept in float16. */
static void to_q8(float *x, size_t n)
{
    double most = largest(x, n), inverse = most > 0 ? (double)(float)(127 / most) : 0;
    double step = n <= 32 ? (double)q3_round((double)(float)(most / 127), Q3_F16)
                : most > 0 ? (double)(float)(1 / inverse) : 0;
    for (size_t k = 0; k < n; k++) {
        double steps = (double)(float)((double)x[k] * inverse);
        x[k] = (float)(((steps + 0x1.8p52) - 0x1.8p52) * step);
    }
}

void q3_quantise_activations(float *x, size_t K, q3_tensor weight, change what, double value)
{
    bool fp8 = false;
    size_t group = group_of(weight, &fp8);
    if (what == OFF_SQUARED) {
        bool any = q3_activation_errors(x, x, K, weight, (q3_accumulate)value);
        for (size_t k = 0; k < K; k++) x[k] = any ? x[k] * x[k] : 0.0f;
        return;
    }
    if (group == 0 || fp8 == (what == GROUPED_Q8)) return;
    if (value > 0) group = (size_t)value;
    for (size_t first = 0; first < K; first += group) {
        size_t n = K - first < group ? K - first : group;
        if (fp8) to_fp8(x + first, n, what == GROUPED_FP8_POWERS);
        else to_q8(x + first, n);
    }
}

quantised q3_format_of_weights(const evidence *e)
{
    if (e->weights == NULL) return NOT_QUANTISED;
    const q3_layer *l = &e->weights->layers[e->layer];
    const q3_mlp *mlp = l->experts != NULL ? l->experts : &l->mlp;
    const q3_tensor *const some[] = {&l->q_proj, &l->o_proj, &mlp->gate_proj, &mlp->down_proj,
                                     &e->weights->lm_head};
    bool fp8 = false;
    for (size_t i = 0; i < sizeof some / sizeof some[0]; i++)
        if (group_of(*some[i], &fp8) != 0) return fp8 ? QUANTISED_FP8 : QUANTISED_BLOCKS;
    return NOT_QUANTISED;
}
