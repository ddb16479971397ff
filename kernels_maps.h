/* SPDX-License-Identifier: MIT */
/* kernels_maps.h - what goes element by element; included by kernels.c as kernels_dots.h is. */

TARGET static void NAME(round)(float *y, const double *x, size_t n, q3_dtype dtype)
{
    q3_plain_kernels()->round(y, x, n, dtype);
}

TARGET static void NAME(multiply)(float *y, const float *a, const float *b, size_t n,
                                  q3_dtype dtype)
{
    q3_plain_kernels()->multiply(y, a, b, n, dtype);
}

TARGET static void NAME(add)(float *y, const float *a, const float *b, size_t n, q3_dtype dtype)
{
    q3_plain_kernels()->add(y, a, b, n, dtype);
}

TARGET static void NAME(silu)(float *y, const float *x, size_t n, q3_dtype dtype)
{
    q3_plain_kernels()->silu(y, x, n, dtype);
}

TARGET static void NAME(exp)(double *y, const double *x, size_t n)
{
    q3_plain_kernels()->exp(y, x, n);
}
