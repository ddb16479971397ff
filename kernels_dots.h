/* SPDX-License-Identifier: MIT */
/* kernels_dots.h - sums of products; included by kernels.c once for each instruction set, which
 * defines SET and NAME (its name and how functions are called), TARGET (the functions' attribute)
 * and WIDTH (float64 of a vector). No guard: it is meant to be included again. */

TARGET static void NAME(dots)(const q3_dots *d)
{
    q3_plain_kernels()->dots(d);
}

/* Order   one accumulator for each element, keys ascending. */
TARGET static void NAME(values)(double *sums, const float *probs, const float *rows, size_t stride,
                                size_t count, size_t n)
{
    q3_plain_kernels()->values(sums, probs, rows, stride, count, n);
}
