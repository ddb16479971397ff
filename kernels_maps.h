/* SPDX-License-Identifier: MIT */
/* kernels_maps.h - what goes element by element: rounding, exp, silu; included by kernels.c as
 * kernels_dots.h is. No branches, special cases by selection. Each step is the IEEE operation that
 * qwen3moe.c does, or one that gives the same number (said where). */

typedef double NAME(f64) __attribute__((vector_size(8 * WIDTH)));
typedef int64_t NAME(i64) __attribute__((vector_size(8 * WIDTH)));
typedef uint64_t NAME(u64) __attribute__((vector_size(8 * WIDTH)));
typedef float NAME(f32) __attribute__((vector_size(4 * WIDTH)));
typedef int32_t NAME(i32) __attribute__((vector_size(4 * WIDTH)));

/* What differs by instruction set. FUSED rounds a product and an addition once, whatever the flags;
 * BATCH vectors' exponentials are computed together, since each is one long chain. */
#if WIDTH == 8
#define FUSED(a, b, c) _mm512_fmadd_pd(a, b, c)
#define LARGER(a, b) _mm512_max_pd(a, b)
#define FLOOR(x) _mm512_floor_pd(x)
#define NARROW(x) _mm512_cvtpd_ps(x)
#define WIDEN(x) _mm512_cvtps_pd(x)
#define BATCH 8
#elif WIDTH == 4
#define FUSED(a, b, c) _mm256_fmadd_pd(a, b, c)
#define LARGER(a, b) _mm256_max_pd(a, b)
#define FLOOR(x) _mm256_floor_pd(x)
#define NARROW(x) _mm256_cvtpd_ps(x)
#define WIDEN(x) _mm256_cvtps_pd(x)
#define BATCH 4
#else
#if defined(__aarch64__)
#define FUSED(a, b, c) vfmaq_f64(c, a, b)
#define FLOOR(x) vrndmq_f64(x)
#endif
#define LARGER(a, b) NAME(select)((a) > (b), a, b)
#define NARROW(x) __builtin_convertvector(x, NAME(f32))
#define WIDEN(x) __builtin_convertvector(x, NAME(f64))
#define BATCH 4
#endif

#define INLINE TARGET UNUSED static inline __attribute__((always_inline))

INLINE NAME(f64) NAME(load)(const double *p)
{
    NAME(f64) x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE NAME(f64) NAME(load_floats)(const float *p)
{
    NAME(f32) x;
    memcpy(&x, p, sizeof x);
    return WIDEN(x);
}

INLINE void NAME(store)(double *p, NAME(f64) x)
{
    memcpy(p, &x, sizeof x);
}

/* x in every place. (Without + 0, which would lose the sign of -0.) */
INLINE NAME(f64) NAME(all)(double x)
{
    return x - (NAME(f64)){0};
}

INLINE NAME(i64) NAME(all_bits)(uint64_t bits)
{
    return (NAME(i64))((NAME(u64)){0} + bits);
}

/* a where the mask is all ones, b where it is 0. */
INLINE NAME(f64) NAME(select)(NAME(i64) mask, NAME(f64) a, NAME(f64) b)
{
    return (NAME(f64))((mask & (NAME(i64))a) | (~mask & (NAME(i64))b));
}

/* ---- exp ---- */

/* x / d rounded, d a whole number from 3 to 14, without a division where FUSED is to be had: its
 * inverse and what that leaves of 1 / d, rounded, are 1 / d but for 2^-107 of it.
 * Method    the sum is rounded once, and off by less than 2^-104 of the quotient. No quotient by d
 *           is that near to the middle of two numbers: it is 1 / (2 d) units in the last place away
 *           at least.
 * Special   x below 2^-900 may give any number as small: it goes into a sum with 1. */
INLINE NAME(f64) NAME(divided)(NAME(f64) x, int d)
{
#ifdef FUSED
    const double rest[15] = {0, 0, 0, 0x1.5555555555555p-56, 0, -0x1.999999999999ap-57,
                             0x1.5555555555555p-57, 0x1.2492492492492p-57, 0, 0x1.c71c71c71c71cp-58,
                             -0x1.999999999999ap-58, -0x1.745d1745d1746p-59, 0x1.5555555555555p-58,
                             -0x1.3b13b13b13b14p-58, 0x1.2492492492492p-58};
    if (d == 4 || d == 8) return x * (1.0 / d);
    return FUSED(x, NAME(all)(1.0 / d), x * rest[d]);
#else
    return x / d;
#endif
}

/* x / ln 2 rounded, likewise.
 * Method    q is within 0.95 units in the last place of the quotient, so that what it leaves, a
 *           multiple of that unit, is small enough to be exact; times the inverse, which is within
 *           2^-54.2, it is q's error but for 2^-54.3 units. The middle of two numbers is 2^-53.5
 *           away. */
INLINE NAME(f64) NAME(by_ln2)(NAME(f64) x)
{
    const double ln2 = 0x1.62e42fefa39efp-1;
#ifdef FUSED
    NAME(f64) i = NAME(all)(1.0 / ln2), q = x * i;
    return FUSED(FUSED(-q, NAME(all)(ln2), x), i, q);
#else
    return x / ln2;
#endif
}

/* x >= 0 without its fraction. Going up to 2^52 and back rounds to one of the two next to it. */
INLINE NAME(f64) NAME(below)(NAME(f64) x)
{
#ifdef FLOOR
    return FLOOR(x);
#else
    NAME(f64) whole = (x + 0x1.8p52) - 0x1.8p52;
    return whole - (NAME(f64))((whole > x) & (NAME(i64))NAME(all)(1.0));
#endif
}

/* x = n ln 2 + r + r_low, as exp_parts. n is rounded by its magnitude: the half is added, then the
 * fraction cut off. */
INLINE void NAME(reduce)(NAME(f64) x, NAME(f64) *n, NAME(f64) *r, NAME(f64) *r_low)
{
    const double ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c76p-45;
    const NAME(i64) sign = NAME(all_bits)(SIGN_BIT);
    NAME(i64) q = (NAME(i64))NAME(by_ln2)(x);
    NAME(f64) size = NAME(below)((NAME(f64))(q & ~sign) + 0.5);
    *n = (NAME(f64))((NAME(i64))size | ((NAME(i64))x & sign));
    NAME(f64) whole = x - *n * ln2_high;
    *r = whole - *n * ln2_low;
    *r_low = (whole - *r) - *n * ln2_low;
}

/* x * 2^n, rounded once, |n| <= 1076: 2^(n >> 1) and 2^(n - (n >> 1)) are normal, so that the first
 * product is exact. */
INLINE NAME(f64) NAME(scaled)(NAME(f64) x, NAME(f64) n)
{
#if WIDTH == 8
    return _mm512_scalef_pd(x, n);
#else
    NAME(u64) k = (NAME(u64))(n + (0x1.8p52 + 2048.0)), half = k >> 1; /* ends in n + 2048 */
    return x * (NAME(f64))((half - 1) << 52) * (NAME(f64))((k - half - 1) << 52);
#endif
}

/* y = exp(x), as q3_exp; count is at most BATCH, and y may be x. A NaN stays one. */
INLINE void NAME(exponentials)(NAME(f64) *y, const NAME(f64) *x, size_t count)
{
    NAME(f64) n[BATCH], r[BATCH], r_low[BATCH], t[BATCH];
    for (size_t i = 0; i < count; i++) {
        NAME(reduce)(x[i], &n[i], &r[i], &r_low[i]);
        t[i] = NAME(all)(1.0);
    }
    UNROLL for (int d = 14; d >= 3; d--)
        for (size_t i = 0; i < count; i++) t[i] = 1.0 + NAME(divided)(r[i] * t[i], d);
    for (size_t i = 0; i < count; i++) {
        NAME(f64) s = r[i] * r[i] * t[i] * 0.5 + r_low[i];
        NAME(f64) a = r[i] + s, a_low = (r[i] - a) + s, h = 1.0 + a;
        NAME(f64) e = h + (((1.0 - h) + a) + a_low);
        e = NAME(scaled)(e, n[i]);
        e = NAME(select)(x[i] > 709.79, (NAME(f64))NAME(all_bits)(INFINITY_BITS), e);
        y[i] = (NAME(f64))((NAME(i64))e & ~(x[i] < -745.2));
    }
}

TARGET static void NAME(exp)(double *y, const double *x, size_t n)
{
    size_t i = 0;
    for (; i + BATCH * WIDTH <= n; i += BATCH * WIDTH) {
        NAME(f64) e[BATCH];
        memcpy(e, x + i, sizeof e);
        NAME(exponentials)(e, e, BATCH);
        memcpy(y + i, e, sizeof e);
    }
    for (; i + WIDTH <= n; i += WIDTH) {
        NAME(f64) e = NAME(load)(x + i);
        NAME(exponentials)(&e, &e, 1);
        NAME(store)(y + i, e);
    }
    for (; i < n; i++) y[i] = q3_exp(x[i]);
}

/* ---- Rounding ---- */

/* x rounded to the precision of D, exponents unlimited above, the sign of 0 lost; of NaN and
 * infinity NaN. The power of two in x, or D's least normal number if that is larger, times `grid`
 * leaves a sum with x just as many bits as D has. That product is kept apart: fused into the
 * difference it would leave -0 instead of +0 under valgrind. */
INLINE NAME(f64) NAME(on_grid)(NAME(f64) x, const format *to)
{
    NAME(f64) power = (NAME(f64))((NAME(i64))x & NAME(all_bits)(INFINITY_BITS));
    NAME(f64) grid = LARGER(power, NAME(all)(to->least)) * to->grid;
    KEEP(grid);
    return (x + grid) - grid;
}

/* x rounded to D as q3_round does it; a NaN may be any NaN. float32's range is the conversion's;
 * float16 is moved up there and back. */
INLINE NAME(f32) NAME(narrow)(NAME(f64) x, const format *to)
{
    if (to->single) return NARROW(x);
    NAME(i64) sign = (NAME(i64))x & NAME(all_bits)(SIGN_BIT);
    NAME(f64) size = (NAME(f64))((NAME(i64))x ^ sign);
    NAME(f64) y = (NAME(f64))((NAME(i64))NAME(on_grid)(x, to) | sign);
    y = NAME(select)(size < 0x1p900, y, x);
    return NARROW(y * to->up) * to->down;
}

/* The quiet NaN for every NaN. */
INLINE void NAME(put)(float *y, NAME(f32) x)
{
    NAME(i32) nan = x != x, quiet = (NAME(i32)){0} + QUIET_NAN;
    x = (NAME(f32))((~nan & (NAME(i32))x) | (nan & quiet));
    memcpy(y, &x, sizeof x);
}

TARGET static void NAME(round)(float *y, const double *x, size_t n, q3_dtype dtype)
{
    const format to = format_of(dtype);
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) NAME(put)(y + i, NAME(narrow)(NAME(load)(x + i), &to));
    for (; i < n; i++) y[i] = q3_round(x[i], dtype);
}

TARGET static void NAME(multiply)(float *y, const float *a, const float *b, size_t n,
                                  q3_dtype dtype)
{
    const format to = format_of(dtype);
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        NAME(f64) x = NAME(load_floats)(a + i) * NAME(load_floats)(b + i);
        NAME(put)(y + i, NAME(narrow)(x, &to));
    }
    for (; i < n; i++) y[i] = q3_round((double)a[i] * (double)b[i], dtype);
}

TARGET static void NAME(add)(float *y, const float *a, const float *b, size_t n, q3_dtype dtype)
{
    const format to = format_of(dtype);
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        NAME(f64) x = NAME(load_floats)(a + i) + NAME(load_floats)(b + i);
        NAME(put)(y + i, NAME(narrow)(x, &to));
    }
    for (; i < n; i++) y[i] = q3_round((double)a[i] + (double)b[i], dtype);
}

/* count vectors of D(x / (1 + exp(-x))), as q3_silu */
INLINE void NAME(some_silu)(float *y, const float *x, size_t count, const format *to)
{
    NAME(f64) e[BATCH];
    for (size_t j = 0; j < count; j++) e[j] = -NAME(load_floats)(x + j * WIDTH);
    NAME(exponentials)(e, e, count);
    for (size_t j = 0; j < count; j++) {
        NAME(f64) v = NAME(load_floats)(x + j * WIDTH), s = v / (1.0 + e[j]);
        s = NAME(select)(v < -800.0, NAME(all)(-0.0), s);
        NAME(put)(y + j * WIDTH, NAME(narrow)(s, to));
    }
}

TARGET static void NAME(silu)(float *y, const float *x, size_t n, q3_dtype dtype)
{
    const format to = format_of(dtype);
    size_t i = 0;
    for (; i + BATCH * WIDTH <= n; i += BATCH * WIDTH) NAME(some_silu)(y + i, x + i, BATCH, &to);
    for (; i + WIDTH <= n; i += WIDTH) NAME(some_silu)(y + i, x + i, 1, &to);
    for (; i < n; i++) y[i] = q3_round(q3_silu((double)x[i]), dtype);
}
