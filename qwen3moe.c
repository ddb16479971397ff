/* SPDX-License-Identifier: MIT */
/* qwen3moe.c - the model: arithmetic, operators, forward pass, state, self-test.
 *
 * Freestanding: needs memcpy, memset and nothing else of libc, no libm. MODEL.md is the
 * specification; section numbers below are its. T, M, H, K, N, C, hd, E, A, F, V, S, D are in
 * qwen3moe.h's legend. */
#include "qwen3moe.h"

#include <float.h>
#include <string.h>

/* ==== What the compiler must keep ================================================================
 * The bits rest on IEEE 754 arithmetic done as written. Flags that give that up are refused here;
 * CMakeLists.txt puts the right ones behind the user's own. */
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(__NO_SIGNED_ZEROS__) || defined(_M_FP_FAST)
#error "qwen3moe: fast-math changes results; build with -fno-fast-math"
#endif
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ != 0
#error "qwen3moe: NaN and infinity are needed; build with -fno-finite-math-only"
#endif
/* 16 is 0 where _Float16 has arithmetic of its own. */
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 1 && \
    FLT_EVAL_METHOD != 16
#error "qwen3moe: float64 arithmetic must be float64 (on i386: -msse2 -mfpmath=sse)"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif
_Static_assert(FLT_RADIX == 2 && FLT_MANT_DIG == 24 && FLT_MAX_EXP == 128, "float is not binary32");
_Static_assert(DBL_MANT_DIG == 53 && DBL_MAX_EXP == 1024, "double is not binary64");
_Static_assert(sizeof(float) == 4 && sizeof(double) == 8, "float or double has padding");

/* Contraction (a product and an addition fused into one rounding) must not show even where a
 * compiler insists on it. So a product feeds an addition only if it is exact: of two float32
 * values, by a power of two, or of factors short enough. Any other product is divided, converted or
 * stored first. */
static double stored(double product)
{
    volatile double rounded = product;
    return rounded;
}

/* ==== Bits ==================================================================================== */

static uint64_t bits_of(double x)
{
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}

static double double_of(uint64_t u)
{
    double x;
    memcpy(&x, &u, 8);
    return x;
}

static float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

#define QUIET_NAN 0x7FC00000u
#define FRACTION_MASK 0xFFFFFFFFFFFFFu

/* 2^k for -1022 <= k <= 1023 */
static double power_of_two(int k)
{
    return double_of((uint64_t)(1023 + k) << 52);
}

/* Files are little-endian. The test of one byte folds to a constant. */
static bool big_endian(void)
{
    const uint16_t one = 1;
    uint8_t low;
    memcpy(&low, &one, 1);
    return low == 0;
}

static uint32_t load16(const uint8_t *p)
{
    uint16_t u;
    memcpy(&u, p, 2);
    return big_endian() ? (uint32_t)((u >> 8 | u << 8) & 0xFFFF) : u;
}

static uint32_t load32(const uint8_t *p)
{
    uint32_t u;
    memcpy(&u, p, 4);
    return big_endian() ? u >> 24 | (u >> 8 & 0xFF00) | (u << 8 & 0xFF0000) | u << 24 : u;
}

/* ==== Conversions (MODEL.md section 2) ======================================================== */

/* value rounded to nearest, ties to even, to a format of `precision` significant bits whose normal
 * numbers have exponents emin to emax; one rounding from float64. Counted in units of the result's
 * last place, an exact scaling, value is below 2^precision; adding 1.5 * 2^52 leaves it no fraction
 * bits, so that the addition itself rounds it to a whole number. */
static float round_to(double value, int precision, int emin, int emax)
{
    uint64_t u = bits_of(value);
    int exponent = (int)(u >> 52 & 0x7FF) - 1023;
    float sign = u >> 63 ? -1.0f : 1.0f;
    if (exponent == 1024)
        return (u & FRACTION_MASK) != 0 ? float_of(QUIET_NAN) : sign * float_of(0x7F800000u);
    if (exponent < emin) exponent = emin;
    double units = value * power_of_two(precision - 1 - exponent);
    double whole = (units + 0x1.8p52) - 0x1.8p52;
    double rounded = whole * power_of_two(exponent - precision + 1);
    if (rounded == 0.0) return sign * 0.0f;
    if (rounded >= 2.0 * power_of_two(emax) || rounded <= -2.0 * power_of_two(emax))
        return sign * float_of(0x7F800000u);
    return (float)rounded;
}

float q3_round(double value, q3_dtype dtype)
{
    if (dtype == Q3_BF16) return round_to(value, 8, -126, 127);
    if (dtype == Q3_F16) return round_to(value, 11, -14, 15);
    Q3_CHECK(dtype == Q3_F32);
    return value != value ? float_of(QUIET_NAN) : (float)value;
}

/* A float32 step of Hugging Face's RoPE set-up: one operation in float64, rounded to float32. (Sum,
 * product and quotient of float32 values rounded to 53 and then to 24 bits are the float32
 * results.) */
static float single(double value)
{
    return q3_round(value, Q3_F32);
}

static float float_of_f16(uint32_t half)
{
    uint32_t sign = (half & 0x8000u) << 16;
    uint32_t exponent = half >> 10 & 0x1F;
    uint32_t fraction = half & 0x3FF;
    if (exponent == 31) return float_of(fraction != 0 ? QUIET_NAN : sign | 0x7F800000u);
    if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f; /* exact: subnormal or zero */
    return sign != 0 ? -magnitude : magnitude;
}

#define SPAN 64 /* elements of an elementwise step, in float64 */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Elements first, first + 1, ... of a quantised weight as the run's products take them. */
static void exact_elements(double *values, const q3_quantized *weight, size_t first, size_t count,
                           q3_dtype dtype)
{
    weight->dequantize(values, weight, first, count);
    if (!weight->rounded || dtype == Q3_F32) return;
    for (size_t i = 0; i < count; i++) values[i] = (double)q3_round(values[i], dtype);
}

/* The same as float32 values of dtype `to`. */
static void widen_quantized(float *values, const q3_quantized *weight, size_t first, size_t count,
                            q3_dtype dtype, q3_dtype to)
{
    double exact[SPAN];
    for (size_t i = 0; i < count; i += SPAN) {
        size_t n = least(SPAN, count - i);
        exact_elements(exact, weight, first + i, n, dtype);
        for (size_t k = 0; k < n; k++) values[i + k] = q3_round(exact[k], to);
    }
}

/* Every float16 and bfloat16 is a float32; only what the run's dtype cannot hold is rounded. */
void q3_widen(float *values, q3_tensor tensor, size_t first, size_t count, q3_dtype dtype)
{
    const uint8_t *p = tensor.data;
    if (tensor.dtype == Q3_QUANTIZED) {
        widen_quantized(values, tensor.data, first, count, dtype, Q3_F32);
        return;
    }
    if (tensor.dtype == Q3_BF16) {
        p += 2 * first;
        for (size_t i = 0; i < count; i++) values[i] = float_of(load16(p + 2 * i) << 16);
    } else if (tensor.dtype == Q3_F16) {
        p += 2 * first;
        for (size_t i = 0; i < count; i++) values[i] = float_of_f16(load16(p + 2 * i));
    } else {
        Q3_CHECK(tensor.dtype == Q3_F32);
        p += 4 * first;
        for (size_t i = 0; i < count; i++) values[i] = float_of(load32(p + 4 * i));
    }
    if (dtype == tensor.dtype || dtype == Q3_F32) return;
    for (size_t i = 0; i < count; i++) values[i] = q3_round((double)values[i], dtype);
}

/* ==== Elementary functions (MODEL.md section 3) ==================================================
 * Our own, so that the bits do not depend on a libm. No table and no fitted coefficients: Taylor
 * series whose steps divide by integers. */

/* exp(x) = (high + low) * 2^k for |x| < 746.
 * Method    k = x / ln 2 rounded; r = x - k ln 2, |r| <= 0.3466, with ln 2 in two parts short
 *           enough for k times either to be exact;
 *           exp(r) = 1 + r + r^2/2 (1 + r/3 (1 + r/4 (... r/14))).
 *           Each step ends in a division, so no inexact product feeds an addition.
 * Accuracy  the series leaves 2^-63; high + low is within 2^-55.0 of the result
 *           (tests/exhaustive). */
static void exp_parts(double x, double *high, double *low, int *k)
{
    const double ln2 = 0x1.62e42fefa39efp-1;
    const double ln2_high = 0x1.62e42fefa38p-1; /* 42 bits */
    const double ln2_low = 0x1.ef35793c76p-45;  /* 41 bits; what is left is below 2^-86 */
    int n = (int)(x / ln2 + (x < 0 ? -0.5 : 0.5));
    double whole = x - n * ln2_high;
    double r = whole - n * ln2_low;
    double r_low = (whole - r) - n * ln2_low;
    double t = 1.0;
    for (int i = 14; i >= 3; i--) t = 1.0 + r * t / i;
    double s = r * r * t / 2.0 + r_low;
    double a = r + s;
    double a_low = (r - a) + s;
    double h = 1.0 + a;
    *high = h;
    *low = ((1.0 - h) + a) + a_low;
    *k = n;
}

/* Special   NaN gives NaN; above 709.79 infinity, below -745.2 zero.
 * Accuracy  rounded to float32 it is correctly rounded for every float32 x; for float64 x the
 *           largest error found is 0.669 ulp, 0.782 where the result is subnormal
 *           (tests/exhaustive).
 * The factor 2^k is applied in two halves, so that a subnormal result is rounded only once more. */
double q3_exp(double x)
{
    if (x != x) return x;
    if (x > 709.79) return double_of((uint64_t)0x7FF << 52);
    if (x < -745.2) return 0.0;
    double high, low;
    int k;
    exp_parts(x, &high, &low, &k);
    return (high + low) * power_of_two(k / 2) * power_of_two(k - k / 2);
}

/* Special   -infinity gives -0, infinity itself.
 * Accuracy  rounded to float32 it is correctly rounded for every float32 x with |x| >= 2^-125;
 *           below, x/2 is the rounded value of a true result that lies 2^-250 above a tie. */
double q3_silu(double x)
{
    if (x < -800.0) return -0.0;
    return x / (1.0 + q3_exp(-x));
}

/* high + low, |low| <= ulp(high)/2, rounded to odd: a following conversion to float32 is then one
 * correct rounding of the sum. */
static double round_to_odd(double high, double low)
{
    if (low == 0.0) return high;
    uint64_t u = bits_of(high);
    if ((low < 0.0) == (high > 0.0)) u--;
    return double_of(u | 1);
}

static void two_sum(double a, double b, double *sum, double *error)
{
    double s = a + b, b_part = s - a;
    *error = (a - (s - b_part)) + (b - b_part);
    *sum = s;
}

/* x = k pi/2 + high + low, |x| <= 2^20: pi/2 in four parts of at most 33 bits, k below 2^20, so
 * that every k * part is exact. Returns k. */
static int reduce(double x, double *high, double *low)
{
    int k = (int)(x / 0x1.921fb54442d18p+0 + (x < 0 ? -0.5 : 0.5));
    double h, e;
    two_sum(x - k * 0x1.921fb544p+0, -(k * 0x1.0b4611a6p-34), &h, &e);
    e = (e - k * 0x1.3198a2e0p-69) - k * 0x1.b839a252p-104;
    *high = h + e;
    *low = (h - *high) + e;
    return k;
}

/* sin(r + r_low), |r| <= 0.786: r - r^3/6 (1 - r^2/20 (1 - r^2/42 (...))), to r^19. */
static void sin_series(double r, double r_low, double *high, double *low)
{
    double z = r * r, t = 1.0;
    for (int i = 18; i >= 4; i -= 2) t = 1.0 - z * t / (i * (i + 1));
    double c = stored(r_low * (1.0 - 0.5 * z)) - r * z * t / 6.0;
    *high = r + c;
    *low = (r - *high) + c;
}

/* cos(r + r_low), |r| <= 0.786: 1 - r^2/2 + r^4/24 (1 - r^2/30 (1 - r^2/56 (...))), to r^18, with
 * the rounding error of r^2 put back. */
static void cos_series(double r, double r_low, double *high, double *low)
{
    double z = stored(r * r), t = 1.0;
    for (int i = 17; i >= 5; i -= 2) t = 1.0 - z * t / (i * (i + 1));
    double front = (double)(float)r, back = r - front; /* 24 and 29 bits: the products are exact */
    double z_error = ((front * front - z) + 2.0 * front * back) + stored(back * back);
    double a = 1.0 - 0.5 * z;
    double c = z * z * t / 24.0 - stored(r * r_low) - 0.5 * z_error;
    c += (1.0 - a) - 0.5 * z;
    *high = a + c;
    *low = (a - *high) + c;
}

/* sin(x + quadrant pi/2) */
static float sin_quadrant(float x, unsigned quadrant)
{
    Q3_CHECK(x >= -0x1p20f && x <= 0x1p20f);
    double r, r_low, high, low;
    quadrant += (unsigned)reduce((double)x, &r, &r_low);
    if (quadrant & 1)
        cos_series(r, r_low, &high, &low);
    else
        sin_series(r, r_low, &high, &low);
    double y = round_to_odd(high, low);
    return (float)(quadrant & 2 ? -y : y);
}

/* Accuracy  correctly rounded for every float32 |x| <= 2^20 (tests/exhaustive); high + low is
 *           within 2^-54.4 of sine and cosine. sin(-0) is -0. */
float q3_sin(float x)
{
    return x == 0.0f ? x : sin_quadrant(x, 0);
}

float q3_cos(float x)
{
    return sin_quadrant(x, 1);
}

/* log(x) = high + low, x positive, normal and finite.
 * Method    x = 2^e m, m in [0.707, 1.415); s = (m - 1)/(m + 1);
 *           log m = 2 (s + s^3/3 + s^5/5 + ...), to s^27, with the rounding error of the quotient s
 *           put back. Used for RoPE's frequencies, a few times a run: products are stored, speed
 *           does not matter.
 * Accuracy  high + low is within 2^-57.7 of the logarithm; the largest error found of q3_log is
 *           0.535 ulp. */
static void log_parts(double x, double *high, double *low)
{
    uint64_t u = bits_of(x);
    int e = (int)(u >> 52) - 1023;
    double m = double_of((u & FRACTION_MASK) | (uint64_t)1023 << 52);
    if (m > 0x1.6a09e667f3bcdp+0) {
        m *= 0.5;
        e++;
    }
    double n = m - 1.0, d = m + 1.0, d_low = (1.0 - d) + m;
    double s = n / d;
    double s1 = (double)(float)s, s2 = s - s1, d1 = (double)(float)d, d2 = d - d1;
    double p = stored(s * d);
    double p_low = ((s1 * d1 - p) + s1 * d2 + s2 * d1) + stored(s2 * d2);
    double s_low = (((n - p) - p_low) - stored(s * d_low)) / d;
    double z = stored(s * s), q = 1.0 / 27.0;
    for (int i = 25; i >= 3; i -= 2) q = stored(q * z) + 1.0 / i;
    double c = 2.0 * (stored(stored(s * z) * q) + s_low);
    double h, t;
    two_sum(e * 0x1.62e42fefa38p-1, 2.0 * s, &h, &t);
    t += e * 0x1.ef35793c76p-45 + c;
    *high = h + t;
    *low = (h - *high) + t;
}

double q3_log(double x)
{
    Q3_CHECK(x >= 0x1p-1022 && x <= DBL_MAX);
    double high, low;
    log_parts(x, &high, &low);
    return high;
}

/* exp(y log(base)), the product y log(base) kept in two parts.
 * Accuracy  0 misrounded of 689,000 (theta, head_dim, j), dynamic bases included
 *           (tests/exhaustive). */
float q3_pow(float base, float y)
{
    Q3_CHECK(base > 0.0f && base <= FLT_MAX);
    double log_high, log_low, high, low;
    log_parts((double)base, &log_high, &log_low);
    double l1 = (double)(float)log_high, l2 = log_high - l1; /* 24 and 29 bits */
    double p = stored((double)y * log_high);
    double p_low = (((double)y * l1 - p) + (double)y * l2) + stored((double)y * log_low);
    Q3_CHECK(p >= -80.0 && p <= 80.0);
    int k;
    exp_parts(p, &high, &low, &k);
    return single((high + (low + stored(high * p_low))) * power_of_two(k));
}

/* Digit by digit on integers: 54 binary digits of the root of significand * 2^54, the last one and
 * the remainder for the rounding. */
double q3_sqrt(double x)
{
    uint64_t u = bits_of(x);
    if (x == 0.0 || u == (uint64_t)0x7FF << 52) return x;
    if (!(x > 0.0)) return (double)float_of(QUIET_NAN);
    int exponent = (int)(u >> 52) - 1023;
    uint64_t significand = u & FRACTION_MASK;
    if (exponent == -1023)
        for (exponent = -1022; significand >> 52 == 0; exponent--) significand <<= 1;
    else
        significand |= (uint64_t)1 << 52;
    if (exponent & 1) {
        significand <<= 1;
        exponent--;
    }
    uint64_t root = 0, rest = 0;
    for (int i = 53; i >= 0; i--) {
        uint64_t two_bits = i >= 27 ? significand >> (2 * i - 54) & 3 : 0;
        rest = rest << 2 | two_bits;
        root <<= 1;
        if (rest >= 2 * root + 1) {
            rest -= 2 * root + 1;
            root++;
        }
    }
    /* Never a tie: an odd root's square is odd, the number rooted is even. */
    root = (root >> 1) + (root & 1);
    return (double)root * power_of_two(exponent / 2 - 52);
}

/* ==== Dot products (MODEL.md section 2) ==========================================================
 * float32 times float32 is exact in float64, so fused or not, the bits are the same; lanes leave
 * the compiler free to use vectors of any width up to 16. */
#define LANES 16

/* lane[i mod 16] += w[i] * x[i], i ascending. Four products a visit keep a lane in its register. */
static void add_products(double lane[LANES], const float *w, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        for (size_t l = 0; l < LANES; l++) {
            double s = lane[l];
            s += (double)w[i + l] * (double)x[i + l];
            s += (double)w[i + LANES + l] * (double)x[i + LANES + l];
            s += (double)w[i + 2 * LANES + l] * (double)x[i + 2 * LANES + l];
            s += (double)w[i + 3 * LANES + l] * (double)x[i + 3 * LANES + l];
            lane[l] = s;
        }
    }
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++) lane[l] += (double)w[i + l] * (double)x[i + l];
    for (; i < n; i++) lane[i % LANES] += (double)w[i] * (double)x[i];
}

static double fold(double lane[LANES])
{
    for (size_t s = LANES / 2; s > 0; s /= 2)
        for (size_t l = 0; l < s; l++) lane[l] += lane[l + s];
    return lane[0];
}

static double dot(const float *a, const float *b, size_t n)
{
    double lane[LANES] = {0};
    add_products(lane, a, b, n);
    return fold(lane);
}

/* ==== Kernels (MODEL.md section 2) ===============================================================
 * The operators' inner loops as they are meant. Whatever is taken in their place (kernels.c) gives
 * the same bits. */

/* Weights are widened this many at a time: a multiple of LANES, small enough for the stack. */
#define PIECE 512
_Static_assert(PIECE / 2 % LANES == 0, "half a piece ends within the lanes");
#define TOKENS 8 /* that share a widened piece */

/* Elements c, c + 1, ... of a row of the weight. */
static const float *row_piece(float buffer[PIECE], const q3_dots *d, size_t row, size_t c, size_t n)
{
    if (d->rows != NULL) return d->rows + row * d->row_stride + c;
    q3_widen(buffer, d->weight, row * d->row_stride + c, n, d->dtype);
    return buffer;
}

/* By its bits: a branch on a sign that is random would take most of the time. */
static double size_of(double x)
{
    return double_of(bits_of(x) & UINT64_MAX >> 1);
}

/* lane[i mod 16] += |w[i] x[i]|, as add_products. */
static void add_sizes(double lane[LANES], const float *w, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++) lane[l] += size_of((double)w[i + l] * (double)x[i + l]);
    for (; i < n; i++) lane[i % LANES] += size_of((double)w[i] * (double)x[i]);
}

/* The sums of one row of the weight with tokens t, t + 1, ..., or those of sizes. */
static void row_sums(double *sums, const q3_dots *d, size_t row, size_t t, size_t tokens, bool size)
{
    double lane[TOKENS][LANES] = {{0}};
    float buffer[PIECE];
    for (size_t c = 0; c < d->C; c += PIECE) {
        size_t n = least(PIECE, d->C - c);
        const float *w = row_piece(buffer, d, row, c, n), *x = d->x + t * d->x_stride + c;
        for (size_t i = 0; i < tokens; i++, x += d->x_stride) {
            if (size)
                add_sizes(lane[i], w, x, n);
            else
                add_products(lane[i], w, x, n);
        }
    }
    for (size_t i = 0; i < tokens; i++) sums[i] = fold(lane[i]);
}

/* The same of a quantised weight: half as many elements at a time, in float64. Their products with
 * float32 are exact too. */
static void quantized_sums(double *sums, const q3_dots *d, size_t row, size_t t, size_t tokens,
                           bool size)
{
    double lane[TOKENS][LANES] = {{0}}, w[PIECE / 2];
    for (size_t c = 0; c < d->C; c += PIECE / 2) {
        size_t n = least(PIECE / 2, d->C - c);
        const float *x = d->x + t * d->x_stride + c;
        exact_elements(w, d->weight.data, row * d->row_stride + c, n, d->dtype);
        for (size_t i = 0; i < tokens; i++, x += d->x_stride)
            for (size_t k = 0; k < n; k++) {
                double product = w[k] * (double)x[k];
                lane[i][k % LANES] += size ? size_of(product) : product;
            }
    }
    for (size_t i = 0; i < tokens; i++) sums[i] = fold(lane[i]);
}

/* Order   16 lanes over c; the bias last, before the one rounding. A row of the weight is read once
 *         for all tokens, TOKENS of which share its widened piece; each sum is the one that T = 1
 *         gives. */
static void plain_dots(const q3_dots *d)
{
    bool quantized = d->rows == NULL && d->weight.dtype == Q3_QUANTIZED;
    for (size_t o = 0; o < d->N; o++) {
        float b = 0.0f;
        if (d->bias.data != NULL) q3_widen(&b, d->bias, o, 1, d->dtype);
        for (size_t t0 = 0; t0 < d->T; t0 += TOKENS) {
            size_t tokens = least(TOKENS, d->T - t0);
            double sum[TOKENS] = {0}, size[TOKENS];
            if (quantized) {
                if (d->sums != NULL || d->y != NULL) quantized_sums(sum, d, o, t0, tokens, false);
                if (d->sizes != NULL) quantized_sums(size, d, o, t0, tokens, true);
            } else {
                if (d->sums != NULL || d->y != NULL) row_sums(sum, d, o, t0, tokens, false);
                if (d->sizes != NULL) row_sums(size, d, o, t0, tokens, true);
            }
            for (size_t t = 0; t < tokens; t++) {
                if (d->sums != NULL) d->sums[(t0 + t) * d->N + o] = sum[t];
                if (d->sizes != NULL) d->sizes[(t0 + t) * d->N + o] = size[t];
                if (d->bias.data != NULL) sum[t] += (double)b;
                if (d->y != NULL) d->y[(t0 + t) * d->y_stride + o] = q3_round(sum[t], d->dtype);
            }
        }
    }
}

static void plain_values(double *sums, const float *probs, const float *rows, size_t stride,
                         size_t count, size_t n)
{
    for (size_t s = 0; s < count; s++, rows += stride)
        for (size_t i = 0; i < n; i++) sums[i] += (double)probs[s] * (double)rows[i];
}

static void plain_round(float *y, const double *x, size_t n, q3_dtype dtype)
{
    for (size_t i = 0; i < n; i++) y[i] = q3_round(x[i], dtype);
}

static void plain_multiply(float *y, const float *a, const float *b, size_t n, q3_dtype dtype)
{
    for (size_t i = 0; i < n; i++) y[i] = q3_round((double)a[i] * (double)b[i], dtype);
}

static void plain_add(float *y, const float *a, const float *b, size_t n, q3_dtype dtype)
{
    for (size_t i = 0; i < n; i++) y[i] = q3_round((double)a[i] + (double)b[i], dtype);
}

static void plain_silu(float *y, const float *x, size_t n, q3_dtype dtype)
{
    for (size_t i = 0; i < n; i++) y[i] = q3_round(q3_silu((double)x[i]), dtype);
}

static void plain_exp(double *y, const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = q3_exp(x[i]);
}

const q3_kernels *q3_plain_kernels(void)
{
    static const q3_kernels plain = {"plain", plain_dots, plain_values, plain_round, plain_multiply,
                                     plain_add, plain_silu, plain_exp, NULL};
    return &plain;
}

/* Whoever compiles kernels.c too says -DQ3_KERNELS=q3_best_kernels. */
#ifndef Q3_KERNELS
#define Q3_KERNELS q3_plain_kernels
#endif

static const q3_kernels *chosen; /* by q3_use_kernels; the only variable of the core */

const q3_kernels *q3_use_kernels(const q3_kernels *kernels)
{
    const q3_kernels *before = chosen;
    chosen = kernels;
    return before;
}

static const q3_kernels *kernels(void)
{
    return chosen != NULL ? chosen : Q3_KERNELS();
}

void q3_run_dots(const q3_dots *dots)
{
    kernels()->dots(dots);
}

/* ==== Operators (MODEL.md section 4) ========================================================== */

/* y[t,:] = embed_tokens[ids[t],:]
 * Shapes  y: f32[T,M]; ids: [T] in [0, V); embed_tokens: [V,M].
 * Source  nn.Embedding. No scale; a padding id has no effect.
 * Golden  golden/ops/embedding.safetensors */
void q3_embedding(float *y, const int32_t *ids, q3_tensor embed_tokens, size_t T, size_t V,
                  size_t M, q3_dtype dtype)
{
    for (size_t t = 0; t < T; t++) {
        Q3_CHECK(ids[t] >= 0 && (size_t)ids[t] < V);
        if (embed_tokens.dtype == Q3_QUANTIZED) {
            widen_quantized(y + t * M, embed_tokens.data, (size_t)ids[t] * M, M, dtype, dtype);
            continue; /* rounded once */
        }
        q3_widen(y + t * M, embed_tokens, (size_t)ids[t] * M, M, Q3_F32);
        for (size_t m = t * M; m < (t + 1) * M; m++) y[m] = q3_round((double)y[m], dtype);
    }
}

/* y[t,:] = D(w * D(x[t,:] / sqrt(mean(x[t,:]^2) + eps)))
 * Shapes  x, y: f32[T,M]; weight: [M].
 * Order   the squares add in 16 lanes; two roundings: after the division, after the weight.
 * Alias   y == x.
 * Source  Qwen3MoeRMSNorm.forward: the cast back to D comes before the weight.
 * Golden  golden/ops/rmsnorm.safetensors, qk_norm.safetensors */
void q3_rmsnorm(float *y, const float *x, q3_tensor weight, size_t T, size_t M, float eps,
                q3_dtype dtype)
{
    const q3_kernels *kernel = kernels();
    float w[SPAN];
    double quotient[SPAN];
    for (size_t t = 0; t < T; t++, x += M, y += M) {
        double root = q3_sqrt(dot(x, x, M) / (double)M + (double)eps);
        for (size_t m = 0; m < M; m += SPAN) {
            size_t n = least(SPAN, M - m);
            q3_widen(w, weight, m, n, dtype);
            for (size_t i = 0; i < n; i++) quotient[i] = (double)x[m + i] / root;
            kernel->round(y + m, quotient, n, dtype);
            kernel->multiply(y + m, y + m, w, n, dtype);
        }
    }
}

/* y[t,o] = D(sum_c x[t,c] weight[o,c] + bias[o])
 * Shapes  x: f32[T,C]; y: f32[T,N]; weight: [N,C]; bias: [N] or absent.
 * Order   16 lanes over c; the bias last, before the one rounding; each sum is the one that T = 1
 *         gives (plain_dots).
 * Source  nn.Linear.
 * Golden  golden/ops/linear.safetensors, lm_head.safetensors */
void q3_linear(float *y, const float *x, q3_tensor weight, q3_tensor bias, size_t T, size_t N,
               size_t C, q3_dtype dtype)
{
    q3_dots dots = {.x = x, .x_stride = C, .weight = weight, .row_stride = C, .bias = bias, .T = T,
                    .N = N, .C = C, .dtype = dtype, .y = y, .y_stride = N};
    kernels()->dots(&dots);
}

/* ---- Rotary position embedding (MODEL.md section 5) ----
 * Hugging Face sets the table up in float32 tensors and Python floats; each float32 step is
 * kept. */

static double whole_below(double x)
{
    Q3_CHECK(x >= -0x1p62 && x <= 0x1p62);
    double n = (double)(int64_t)x;
    return n > x ? n - 1.0 : n;
}

/* The dimension that turns `rotations` times within the original length. */
static double yarn_dimension(double rotations, const q3_rope *rope, size_t hd)
{
    double original = rope->original_max_position_embeddings;
    double turns = original / (rotations * 2.0 * 0x1.921fb54442d18p+1);
    return (double)hd * q3_log(turns) / (2.0 * q3_log(rope->rope_theta));
}

/* 0.1 * weight * log(scale) + 1, in Python's order. */
static double yarn_scale(double scale, double weight)
{
    return scale <= 1.0 ? 1.0 : stored(0.1 * weight * q3_log(scale)) + 1.0;
}

static float yarn_attention_scaling(const q3_rope *rope)
{
    if (rope->has_attention_factor) return single(rope->attention_factor);
    if (rope->mscale != 0.0 && rope->mscale_all_dim != 0.0)
        return single(yarn_scale(rope->factor, rope->mscale) /
                      yarn_scale(rope->factor, rope->mscale_all_dim));
    return single(yarn_scale(rope->factor, 1.0));
}

/* Interpolated (1 / (factor * pf)) and extrapolated (1 / pf) frequencies, blended along a ramp. */
static void yarn_frequencies(float *inv_freq, const q3_rope *rope, size_t hd)
{
    double low = yarn_dimension(rope->beta_fast, rope, hd);
    double high = yarn_dimension(rope->beta_slow, rope, hd);
    if (rope->truncate) {
        low = whole_below(low);
        high = -whole_below(-high);
    }
    if (low < 0.0) low = 0.0;
    if (high > (double)hd - 1.0) high = (double)hd - 1.0;
    if (low == high) high += 0.001;
    float start = single(low), width = single(high - low), factor = single(rope->factor);
    for (size_t j = 0; j < hd / 2; j++) {
        float pf = q3_pow(single(rope->rope_theta), single((double)(2 * j) / (double)hd));
        float extrapolation = single(1.0 / (double)pf);
        float interpolation = single(1.0 / (double)single((double)factor * (double)pf));
        float ramp = single((double)single((double)j - (double)start) / (double)width);
        ramp = ramp < 0.0f ? 0.0f : ramp > 1.0f ? 1.0f : ramp;
        float keep = single(1.0 - (double)ramp);
        float blend = single(1.0 - (double)keep);
        inv_freq[j] = single((double)single((double)interpolation * (double)blend) +
                             (double)single((double)extrapolation * (double)keep));
    }
}

/* One frequency of llama3: long waves divided by factor, short ones kept, a smooth step between.
 * A number divided by a tensor is, in torch, the tensor's reciprocal times the number. */
static float llama3_frequency(float inv_freq, const q3_rope *rope)
{
    double original = rope->original_max_position_embeddings;
    float longest = single(original / rope->low_freq_factor);
    float shortest = single(original / rope->high_freq_factor);
    float factor = single(rope->factor), low = single(rope->low_freq_factor);
    float width = single(rope->high_freq_factor - rope->low_freq_factor);
    float wave = single(1.0 / (double)inv_freq);
    float period = single((double)wave * (double)single(0x1.921fb54442d18p+2));
    if (period > longest) return single((double)inv_freq / (double)factor);
    if (period < shortest) return inv_freq;
    float turns = single((double)single(1.0 / (double)period) * (double)single(original));
    float smooth = single((double)single((double)turns - (double)low) / (double)width);
    float rest = single(1.0 - (double)smooth);
    float slow = single((double)single((double)rest * (double)inv_freq) / (double)factor);
    return single((double)slow + (double)single((double)smooth * (double)inv_freq));
}

/* Dynamic: theta * (factor * length / max - (factor - 1))^(hd / (hd - 2)) if length exceeds max. */
static float dynamic_theta(const q3_rope *rope, size_t hd, size_t max_position_embeddings,
                           size_t length)
{
    float theta = single(rope->rope_theta);
    if (length <= max_position_embeddings) return theta;
    float ratio = single((double)single(rope->factor) * (double)single((double)length));
    ratio = single((double)ratio / (double)single((double)max_position_embeddings));
    ratio = single((double)ratio - (double)single(rope->factor - 1.0));
    float growth = q3_pow(ratio, single((double)hd / ((double)hd - 2.0)));
    return single((double)theta * (double)growth);
}

/* inv_freq[j] = 1 / theta^(2j/hd), then as the type says.
 * Shapes  inv_freq: f32[hd/2].
 * Order   theta^(2j/hd) correctly rounded to float32, then its reciprocal: two roundings, as in
 *         torch.
 * Source  compute_default_rope_parameters, ROPE_INIT_FUNCTIONS of modeling_rope_utils.py; YaRN by
 *         the factor given (4.56 and later, 5.0 and later), not by the ratio of lengths.
 * Golden  golden/ops/rope_table.safetensors */
float q3_rope_frequencies(float *inv_freq, const q3_rope *rope, size_t hd,
                          size_t max_position_embeddings, size_t length)
{
    Q3_CHECK(hd % 2 == 0);
    if (rope->type == Q3_ROPE_YARN) {
        yarn_frequencies(inv_freq, rope, hd);
        return yarn_attention_scaling(rope);
    }
    float theta = single(rope->rope_theta);
    if (rope->type == Q3_ROPE_DYNAMIC)
        theta = dynamic_theta(rope, hd, max_position_embeddings, length);
    for (size_t j = 0; j < hd / 2; j++) {
        float pf = q3_pow(theta, single((double)(2 * j) / (double)hd));
        inv_freq[j] = single(1.0 / (double)pf);
        if (rope->type == Q3_ROPE_LINEAR)
            inv_freq[j] = single((double)inv_freq[j] / (double)single(rope->factor));
        if (rope->type == Q3_ROPE_LLAMA3) inv_freq[j] = llama3_frequency(inv_freq[j], rope);
    }
    return 1.0f;
}

/* cos[t,j] = D(f32(cos(f32(position * inv_freq[j mod hd/2])) * attention_scaling)), sin likewise
 * Shapes  cos, sin: f32[T,hd]; inv_freq: f32[hd/2]; positions first .. first + T - 1.
 * Source  Qwen3MoeRotaryEmbedding.forward.
 * Golden  golden/ops/rope_table.safetensors */
void q3_rope_table(float *cos, float *sin, const float *inv_freq, float attention_scaling, size_t T,
                   size_t first, size_t hd, q3_dtype dtype)
{
    size_t half = hd / 2;
    for (size_t t = 0; t < T; t++, cos += hd, sin += hd) {
        for (size_t j = 0; j < half; j++) {
            float angle = single((double)(first + t) * (double)inv_freq[j]);
            float c = single((double)q3_cos(angle) * (double)attention_scaling);
            float s = single((double)q3_sin(angle) * (double)attention_scaling);
            cos[j] = cos[half + j] = q3_round((double)c, dtype);
            sin[j] = sin[half + j] = q3_round((double)s, dtype);
        }
    }
}

/* n elements of a head's first half (a) and of its second (b). */
static void rotate(float *y_a, float *y_b, const float *a, const float *b, const float *cos_a,
                   const float *cos_b, const float *sin_a, const float *sin_b, size_t n,
                   q3_dtype dtype)
{
    const q3_kernels *kernel = kernels();
    float sine_a[SPAN], sine_b[SPAN];
    for (size_t i = 0; i < n; i++) sine_a[i] = -b[i];
    kernel->multiply(sine_a, sine_a, sin_a, n, dtype);
    kernel->multiply(sine_b, a, sin_b, n, dtype);
    kernel->multiply(y_a, a, cos_a, n, dtype);
    kernel->multiply(y_b, b, cos_b, n, dtype);
    kernel->add(y_a, y_a, sine_a, n, dtype);
    kernel->add(y_b, y_b, sine_b, n, dtype);
}

/* y = D(D(x * cos) + D(rotate_half(x) * sin)), rotate_half(x) = (-x[hd/2:], x[:hd/2])
 * Shapes  x, y: f32[T,H,hd]; cos, sin: f32[T,hd].
 * Alias   y == x: a pair is read before it is written.
 * Source  apply_rotary_pos_emb: halves, not neighbours (2j, 2j+1).
 * Golden  golden/ops/rope_apply.safetensors */
void q3_rope_apply(float *y, const float *x, const float *cos, const float *sin, size_t T, size_t H,
                   size_t hd, q3_dtype dtype)
{
    size_t half = hd / 2;
    for (size_t t = 0; t < T; t++, cos += hd, sin += hd) {
        for (size_t h = 0; h < H; h++, x += hd, y += hd) {
            for (size_t i = 0, j = half; i < half; i += SPAN, j += SPAN)
                rotate(y + i, y + j, x + i, x + j, cos + i, cos + j, sin + i, sin + j,
                       least(SPAN, half - i), dtype);
        }
    }
}

/* ---- Attention (MODEL.md section 6) ---- */

size_t q3_first_key(size_t row, size_t window)
{
    return window != 0 && row + 1 > window ? row + 1 - window : 0;
}

/* scores[h,t,s] = D(D(q[t,h,:] k[s,h/(H/K),:]) * f32(hd^-0.5)) where s is seen, else 0
 * Shapes  scores: f32[H,T,S]; q: f32[T,H,hd]; k: f32[S,K,hd].
 * Order   16 lanes over hd; two roundings: the product first, then the scaled one.
 * Source  eager_attention_forward, before the mask is added; repeat_kv.
 * Golden  golden/ops/attention.safetensors */
void q3_attention_scores(float *scores, const float *q, const float *k, size_t T, size_t H,
                         size_t K, size_t hd, size_t first, size_t S, size_t window,
                         q3_dtype dtype)
{
    Q3_CHECK(K != 0 && H % K == 0 && first + T <= S);
    const q3_kernels *kernel = kernels();
    double scale = (double)single(1.0 / q3_sqrt((double)hd)), scaled[SPAN];
    q3_dots dots = {.x_stride = hd, .row_stride = K * hd, .T = H / K, .C = hd, .dtype = dtype,
                    .y_stride = T * S};
    for (size_t i = 0; i < H * T * S; i++) scores[i] = 0.0f;
    for (size_t t = 0; t < T; t++) {
        size_t low = q3_first_key(first + t, window), end = first + t + 1;
        dots.N = end - low;
        for (size_t key_head = 0; key_head < K; key_head++) {
            size_t h = key_head * dots.T;
            dots.x = q + (t * H + h) * hd;
            dots.rows = k + (low * K + key_head) * hd;
            dots.y = scores + (h * T + t) * S + low;
            kernel->dots(&dots);
        }
        for (size_t h = 0; h < H; h++) {
            float *row = scores + (h * T + t) * S;
            for (size_t s = low; s < end; s += SPAN) {
                size_t n = least(SPAN, end - s);
                for (size_t i = 0; i < n; i++) scaled[i] = (double)row[s + i] * scale;
                kernel->round(row + s, scaled, n, dtype);
            }
        }
    }
}

/* probs[h,t,s] = D(exp(scores - max) / sum of exp(scores - max)) over the keys seen, else 0
 * Shapes  probs, scores: f32[H,T,S]; scratch: f64[S].
 * Order   everything in float64; one accumulator, keys ascending, so that neither chunks nor the
 *         size of the cache show; one rounding.
 * Alias   probs == scores.
 * Source  nn.functional.softmax(dtype=torch.float32).to(query.dtype). A masked key that is finite
 *         adds exp(-huge) = 0.
 * Golden  golden/ops/attention.safetensors */
void q3_attention_probs(float *probs, const float *scores, double *scratch, size_t T, size_t H,
                        size_t first, size_t S, size_t window, q3_dtype dtype)
{
    const q3_kernels *kernel = kernels();
    Q3_CHECK(first + T <= S);
    for (size_t row = 0; row < H * T; row++, probs += S, scores += S) {
        size_t last = first + row % T, low = q3_first_key(last, window);
        float max = scores[low];
        double sum = 0.0;
        for (size_t s = low + 1; s <= last; s++)
            if (scores[s] > max) max = scores[s];
        for (size_t s = low; s <= last; s++) scratch[s] = (double)scores[s] - (double)max;
        kernel->exp(scratch + low, scratch + low, last + 1 - low);
        for (size_t s = low; s <= last; s++) sum += scratch[s];
        for (size_t s = low; s <= last; s++) scratch[s] /= sum;
        for (size_t s = 0; s < low; s++) probs[s] = 0.0f;
        kernel->round(probs + low, scratch + low, last + 1 - low, dtype);
        for (size_t s = last + 1; s < S; s++) probs[s] = 0.0f;
    }
}

/* y[t,h,:] = D(sum_s probs[h,t,s] v[s,h/(H/K),:])
 * Shapes  y: f32[T,H,hd]; probs: f32[H,T,S]; v: f32[S,K,hd].
 * Order   one float64 accumulator per element, keys ascending, the keys seen only.
 * Source  eager_attention_forward, torch.matmul(attn_weights, value_states).
 * Golden  golden/ops/attention.safetensors */
void q3_attention_values(float *y, const float *probs, const float *v, size_t T, size_t H, size_t K,
                         size_t hd, size_t first, size_t S, size_t window, q3_dtype dtype)
{
    const q3_kernels *kernel = kernels();
    Q3_CHECK(K != 0 && H % K == 0 && first + T <= S);
    for (size_t h = 0; h < H; h++) {
        for (size_t t = 0; t < T; t++, probs += S) {
            size_t low = q3_first_key(first + t, window);
            for (size_t d = 0; d < hd; d += SPAN) {
                double sums[SPAN] = {0};
                size_t n = least(SPAN, hd - d);
                kernel->values(sums, probs + low, v + (low * K + h / (H / K)) * hd + d, K * hd,
                               first + t + 1 - low, n);
                kernel->round(y + (t * H + h) * hd + d, sums, n, dtype);
            }
        }
    }
}

/* ---- Experts (MODEL.md section 7) ---- */

/* exp(x - max) of n elements; returns n. */
static size_t exp_below(double y[SPAN], const float *x, float max, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = (double)x[i] - (double)max;
    kernels()->exp(y, y, n);
    return n;
}

/* probs[t,e] = f32(exp(logits - max) / sum of exp(logits - max))
 * Shapes  probs, logits: f32[T,E].
 * Order   float64, one accumulator, experts ascending. The result is float32 in every run.
 * Alias   probs == logits.
 * Source  Qwen3MoeTopKRouter.forward: softmax(dtype=torch.float) over all experts, before top-k.
 * Golden  golden/ops/router.safetensors */
void q3_router_probs(float *probs, const float *logits, size_t T, size_t E)
{
    double exps[SPAN];
    for (size_t t = 0; t < T; t++, probs += E, logits += E) {
        float max = E > 0 ? logits[0] : 0.0f;
        double sum = 0.0;
        for (size_t e = 1; e < E; e++)
            if (logits[e] > max) max = logits[e];
        for (size_t e = 0; e < E; e += SPAN) {
            size_t n = exp_below(exps, logits + e, max, least(SPAN, E - e));
            for (size_t i = 0; i < n; i++) sum += exps[i];
        }
        for (size_t e = 0; e < E; e += SPAN) {
            size_t n = exp_below(exps, logits + e, max, least(SPAN, E - e));
            for (size_t i = 0; i < n; i++) exps[i] /= sum;
            kernels()->round(probs + e, exps, n, Q3_F32);
        }
    }
}

/* Whether element i comes before element j: larger first, NaN before any number, then by index. */
static bool comes_before(const float *values, size_t i, size_t j)
{
    float a = values[i], b = values[j];
    bool a_nan = a != a, b_nan = b != b;
    if (a_nan != b_nan) return a_nan;
    if (!a_nan && a != b) return a > b;
    return i < j;
}

/* The first in that order of those behind `previous` (n: of all). */
static size_t next_largest(const float *values, size_t n, size_t previous)
{
    size_t best = n;
    for (size_t i = 0; i < n; i++) {
        if (previous < n && !comes_before(values, previous, i)) continue;
        if (best == n || comes_before(values, i, best)) best = i;
    }
    return best;
}

size_t q3_argmax(const float *values, size_t n)
{
    Q3_CHECK(n > 0);
    return next_largest(values, n, n);
}

/* ids[t,:] = the A largest of probs[t,:]
 * Shapes  ids: i32[T,A]; probs: f32[T,E].
 * Order   falling probability, ties to the lowest id (torch.topk's own order of ties follows no
 *         rule).
 * Golden  golden/ops/router.safetensors */
void q3_router_topk(int32_t *ids, const float *probs, size_t T, size_t E, size_t A)
{
    Q3_CHECK(A >= 1 && A <= E && E <= INT32_MAX);
    for (size_t t = 0; t < T; t++, ids += A, probs += E) {
        size_t previous = E;
        for (size_t a = 0; a < A; a++) {
            previous = next_largest(probs, E, previous);
            ids[a] = (int32_t)previous;
        }
    }
}

/* weights[t,a] = D(p[t,a] / sum_a p[t,a]) if norm_topk_prob, else D(p[t,a]);
 * p[t,a] = probs[t,ids[t,a]]
 * Shapes  weights: f32[T,A]; probs: f32[T,E]; ids: i32[T,A].
 * Order   the sum in float64 by rank; one rounding.
 * Source  Qwen3MoeTopKRouter.forward of 5.6 and later, 4.5x: the weights are cast to D before use.
 * Golden  golden/ops/router.safetensors */
void q3_router_weights(float *weights, const float *probs, const int32_t *ids, size_t T, size_t E,
                       size_t A, bool norm_topk_prob, q3_dtype dtype)
{
    for (size_t t = 0; t < T; t++, weights += A, ids += A, probs += E) {
        double sum = 0.0;
        for (size_t a = 0; a < A; a++) {
            Q3_CHECK(ids[a] >= 0 && (size_t)ids[a] < E);
            sum += (double)probs[ids[a]];
        }
        for (size_t a = 0; a < A; a++) {
            double p = (double)probs[ids[a]];
            weights[a] = q3_round(norm_topk_prob ? p / sum : p, dtype);
        }
    }
}

static q3_tensor projection_of(const q3_mlp *mlp, q3_projection projection)
{
    if (projection == Q3_GATE_PROJ) return mlp->gate_proj;
    return projection == Q3_UP_PROJ ? mlp->up_proj : mlp->down_proj;
}

/* y[t,a,:] = x[t,:] W^T, or x[t,a,:] W^T for down_proj; W of expert ids[t,a]
 * Shapes  y: f32[T,A,N]; x: f32[T,C] or f32[T,A,C]; ids: i32[T,A]; scratch: f32[T*(C+N)].
 * Order   as q3_linear. Experts ascending; an expert's tokens are gathered, so that its weights are
 *         read once, and scattered back.
 * Source  Qwen3MoeExperts.forward (eager), Qwen3MoeMLP.forward.
 * Golden  golden/ops/swiglu_expert.safetensors, dense_mlp.safetensors */
void q3_expert_linear(float *y, const float *x, const int32_t *ids, const q3_mlp *experts,
                      q3_projection projection, float *scratch, size_t T, size_t E, size_t A,
                      size_t N, size_t C, q3_dtype dtype)
{
    const q3_tensor no_bias = {NULL, Q3_F32};
    float *in = scratch, *out = scratch + T * C;
    for (size_t e = 0; e < E; e++) {
        size_t n = 0;
        for (size_t slot = 0; slot < T * A; slot++) {
            if (ids[slot] < 0 || (size_t)ids[slot] != e) continue;
            size_t row = projection == Q3_DOWN_PROJ ? slot : slot / A;
            Q3_CHECK(n < T);
            memcpy(in + n++ * C, x + row * C, C * sizeof *in);
        }
        if (n == 0) continue;
        q3_linear(out, in, projection_of(&experts[e], projection), no_bias, n, N, C, dtype);
        n = 0;
        for (size_t slot = 0; slot < T * A; slot++)
            if (ids[slot] >= 0 && (size_t)ids[slot] == e)
                memcpy(y + slot * N, out + n++ * N, N * sizeof *y);
    }
}

/* y = D(x / (1 + exp(-x))), x f32[n]. Source: nn.SiLU. Alias y == x. */
void q3_silu_map(float *y, const float *x, size_t n, q3_dtype dtype)
{
    kernels()->silu(y, x, n, dtype);
}

/* y = D(a * b), f32[n]: silu(gate) times up. Alias y == a or y == b. */
void q3_multiply(float *y, const float *a, const float *b, size_t n, q3_dtype dtype)
{
    kernels()->multiply(y, a, b, n, dtype);
}

/* y = D(a + b), f32[n]. Alias y == a or y == b. Golden golden/ops/residual_add.safetensors */
void q3_residual_add(float *y, const float *a, const float *b, size_t n, q3_dtype dtype)
{
    kernels()->add(y, a, b, n, dtype);
}

/* The slot with the lowest id above `previous` (-1 at first); ids are distinct. */
static size_t next_slot(const int32_t *ids, size_t A, int32_t previous)
{
    size_t best = A;
    for (size_t a = 0; a < A; a++)
        if (ids[a] > previous && (best == A || ids[a] < ids[best])) best = a;
    return best;
}

/* y[t,:] = D(... D(D(0 + c_1) + c_2) ... + c_A), c = D(down[t,a,:] * weights[t,a]) by ascending id
 * Shapes  y: f32[T,M]; down: f32[T,A,M]; ids: i32[T,A], distinct; weights: f32[T,A].
 * Order   from +0 (so that -0 becomes +0), rounded to D after every expert.
 * Source  final_hidden_states.index_add_ in Qwen3MoeExperts.forward (eager).
 * Golden  golden/ops/expert_combine.safetensors */
void q3_expert_combine(float *y, const float *down, const int32_t *ids, const float *weights,
                       size_t T, size_t A, size_t M, q3_dtype dtype)
{
    const q3_kernels *kernel = kernels();
    double product[SPAN];
    float c[SPAN];
    for (size_t t = 0; t < T; t++, y += M, down += A * M, ids += A, weights += A) {
        int32_t previous = -1;
        for (size_t m = 0; m < M; m++) y[m] = 0.0f;
        for (size_t n = 0; n < A; n++) {
            size_t a = next_slot(ids, A, previous);
            Q3_CHECK(a < A);
            for (size_t m = 0; m < M; m += SPAN) {
                size_t width = least(SPAN, M - m);
                for (size_t i = 0; i < width; i++)
                    product[i] = (double)down[a * M + m + i] * (double)weights[a];
                kernel->round(c, product, width, dtype);
                kernel->add(y + m, y + m, c, width, dtype);
            }
            previous = ids[a];
        }
    }
}

/* ==== Forward pass (MODEL.md section 8) ==========================================================
 * Layers outside, the call's tokens inside; operators only; a tap after each. */

/* What a run keeps from call to call, and the arrays that a call works in; T is at most chunk. */
struct q3_state {
    const q3_config *config;
    const q3_weights *weights;
    q3_run run;
    size_t cached;       /* tokens in the cache */
    float *keys;         /* [end_layer - first_layer, rows, K, hd], after the norm and RoPE */
    float *values;       /* [end_layer - first_layer, rows, K, hd] */
    float *hidden;       /* [chunk,M], the residual stream */
    float *norm;         /* [chunk,M], output of whichever norm ran last */
    float *branch;       /* [chunk,M], what is added to the residual */
    float *inv_freq;     /* [hd/2] */
    float *cos, *sin;    /* [chunk,hd] */
    float *q, *k, *v;    /* [chunk,H,hd], [chunk,K,hd] twice */
    float *attention;    /* [chunk,H,hd], weighted sums of V */
    float *scores;       /* [H,1,rows] of one token, then its probs */
    double *scratch;     /* [rows] */
    float *router;       /* [chunk,E], logits, then probs */
    float *topk_weights; /* [chunk,A] */
    int32_t *topk_ids;   /* [chunk,A]; a dense layer sees one expert, 0 */
    float *gate, *up;    /* [chunk,A,F] or [chunk,I] */
    float *down;         /* [chunk,A,M] or [chunk,M] */
    float *gathered;     /* q3_expert_linear's scratch */
    float *logits;       /* [logit_rows,V] */
};

/* One call of q3_forward. */
typedef struct pass {
    q3_state *s;
    q3_tap_fn *tap;
    void *user;
    size_t T;     /* tokens of this call */
    size_t first; /* row of the run the first of them is */
    size_t layer;
} pass;

/* A tensor whose first axis is the tokens. */
static void tap(const pass *p, q3_tap_id id, void *data, q3_dtype dtype, size_t rank, size_t n1,
                size_t n2)
{
    if (p->tap == NULL) return;
    q3_tap tap = {id, p->layer, dtype, rank, {p->T, n1, n2}, 0, p->first, data};
    p->tap(p->user, &tap);
}

/* Scores or probs of one token: [H, 1, keys so far]. */
static void tap_token(const pass *p, q3_tap_id id, float *data, size_t row)
{
    if (p->tap == NULL) return;
    q3_tap tap = {id, p->layer, p->s->run.dtype, 3, {p->s->config->num_attention_heads, 1, row + 1},
                  1, row, data};
    p->tap(p->user, &tap);
}

/* Queries, keys and values of the call's tokens, as attention needs them: normalised, rotated. */
static void project(const pass *p, const q3_layer *w)
{
    q3_state *s = p->s;
    const q3_config *c = s->config;
    q3_dtype D = s->run.dtype;
    size_t T = p->T, M = c->hidden_size, H = c->num_attention_heads, K = c->num_key_value_heads;
    size_t hd = c->head_dim;
    float eps = single(c->rms_norm_eps);
    q3_linear(s->q, s->norm, w->q_proj, w->q_proj_bias, T, H * hd, M, D);
    tap(p, Q3_TAP_Q_PROJ, s->q, D, 2, H * hd, 1);
    q3_linear(s->k, s->norm, w->k_proj, w->k_proj_bias, T, K * hd, M, D);
    tap(p, Q3_TAP_K_PROJ, s->k, D, 2, K * hd, 1);
    q3_linear(s->v, s->norm, w->v_proj, w->v_proj_bias, T, K * hd, M, D);
    tap(p, Q3_TAP_V_PROJ, s->v, D, 2, K * hd, 1);
    q3_rmsnorm(s->q, s->q, w->q_norm, T * H, hd, eps, D);
    tap(p, Q3_TAP_Q_NORM, s->q, D, 3, H, hd);
    q3_rmsnorm(s->k, s->k, w->k_norm, T * K, hd, eps, D);
    tap(p, Q3_TAP_K_NORM, s->k, D, 3, K, hd);
    q3_rope_apply(s->q, s->q, s->cos, s->sin, T, H, hd, D);
    tap(p, Q3_TAP_Q_ROPE, s->q, D, 3, H, hd);
    q3_rope_apply(s->k, s->k, s->cos, s->sin, T, K, hd, D);
    tap(p, Q3_TAP_K_ROPE, s->k, D, 3, K, hd);
}

/* Self-attention and its residual sum. Token by token, so that the scores take H*rows and no
 * square; or all at once where no tap wants to see them. */
static void attend(const pass *p, const q3_layer *w)
{
    q3_state *s = p->s;
    const q3_config *c = s->config;
    q3_dtype D = s->run.dtype;
    size_t T = p->T, M = c->hidden_size, H = c->num_attention_heads, K = c->num_key_value_heads;
    size_t hd = c->head_dim, window = c->sliding_window;
    size_t cache = (p->layer - s->run.first_layer) * s->run.rows * K * hd;
    float *keys = s->keys + cache, *values = s->values + cache;
    project(p, w);
    memcpy(keys + p->first * K * hd, s->k, T * K * hd * sizeof *keys);
    memcpy(values + p->first * K * hd, s->v, T * K * hd * sizeof *values);
    q3_attention all = {.y = s->attention, .q = s->q, .k = keys, .v = values, .T = T, .H = H,
                        .K = K, .hd = hd, .first = p->first, .window = window, .dtype = D};
    bool done = p->tap == NULL && kernels()->attend != NULL && kernels()->attend(&all);
    for (size_t t = 0; !done && t < T; t++) {
        size_t row = p->first + t, S = row + 1;
        float *q = s->q + t * H * hd, *sums = s->attention + t * H * hd;
        q3_attention_scores(s->scores, q, keys, 1, H, K, hd, row, S, window, D);
        tap_token(p, Q3_TAP_SCORES, s->scores, row);
        q3_attention_probs(s->scores, s->scores, s->scratch, 1, H, row, S, window, D);
        tap_token(p, Q3_TAP_PROBS, s->scores, row);
        q3_attention_values(sums, s->scores, values, 1, H, K, hd, row, S, window, D);
    }
    tap(p, Q3_TAP_O_PROJ_INPUT, s->attention, D, 2, H * hd, 1);
    q3_linear(s->branch, s->attention, w->o_proj, w->o_proj_bias, T, M, H * hd, D);
    tap(p, Q3_TAP_O_PROJ, s->branch, D, 2, M, 1);
    q3_residual_add(s->hidden, s->hidden, s->branch, T * M, D);
    tap(p, Q3_TAP_POST_ATTENTION_INPUT, s->hidden, D, 2, M, 1);
}

/* Router and experts of a sparse layer, into branch. */
static void run_experts(const pass *p, const q3_layer *w)
{
    q3_state *s = p->s;
    const q3_config *c = s->config;
    const q3_tensor no_bias = {NULL, Q3_F32};
    q3_dtype D = s->run.dtype;
    size_t T = p->T, M = c->hidden_size, E = c->num_experts, A = c->num_experts_per_tok;
    size_t F = c->moe_intermediate_size;
    const q3_mlp *experts = w->experts;
    int32_t *ids = s->topk_ids;
    q3_linear(s->router, s->norm, w->gate, no_bias, T, E, M, D);
    tap(p, Q3_TAP_GATE, s->router, D, 2, E, 1);
    q3_router_probs(s->router, s->router, T, E);
    tap(p, Q3_TAP_ROUTER_PROBS, s->router, Q3_F32, 2, E, 1);
    q3_router_topk(ids, s->router, T, E, A);
    tap(p, Q3_TAP_TOPK_INDICES, ids, Q3_I32, 2, A, 1);
    q3_router_weights(s->topk_weights, s->router, ids, T, E, A, c->norm_topk_prob, D);
    tap(p, Q3_TAP_TOPK_WEIGHTS, s->topk_weights, D, 2, A, 1);
    q3_expert_linear(s->gate, s->norm, ids, experts, Q3_GATE_PROJ, s->gathered, T, E, A, F, M, D);
    tap(p, Q3_TAP_EXPERTS_GATE_PROJ, s->gate, D, 3, A, F);
    q3_expert_linear(s->up, s->norm, ids, experts, Q3_UP_PROJ, s->gathered, T, E, A, F, M, D);
    tap(p, Q3_TAP_EXPERTS_UP_PROJ, s->up, D, 3, A, F);
    q3_silu_map(s->gate, s->gate, T * A * F, D);
    tap(p, Q3_TAP_EXPERTS_ACT_FN, s->gate, D, 3, A, F);
    q3_multiply(s->gate, s->gate, s->up, T * A * F, D);
    tap(p, Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, s->gate, D, 3, A, F);
    q3_expert_linear(s->down, s->gate, ids, experts, Q3_DOWN_PROJ, s->gathered, T, E, A, M, F, D);
    tap(p, Q3_TAP_EXPERTS_DOWN_PROJ, s->down, D, 3, A, M);
    q3_expert_combine(s->branch, s->down, ids, s->topk_weights, T, A, M, D);
}

/* The MLP of a dense layer, into branch. */
static void run_dense(const pass *p, const q3_mlp *w)
{
    q3_state *s = p->s;
    const q3_tensor no_bias = {NULL, Q3_F32};
    q3_dtype D = s->run.dtype;
    size_t T = p->T, M = s->config->hidden_size, I = s->config->intermediate_size;
    q3_linear(s->gate, s->norm, w->gate_proj, no_bias, T, I, M, D);
    tap(p, Q3_TAP_DENSE_GATE_PROJ, s->gate, D, 2, I, 1);
    q3_linear(s->up, s->norm, w->up_proj, no_bias, T, I, M, D);
    tap(p, Q3_TAP_DENSE_UP_PROJ, s->up, D, 2, I, 1);
    q3_silu_map(s->gate, s->gate, T * I, D);
    tap(p, Q3_TAP_DENSE_ACT_FN, s->gate, D, 2, I, 1);
    q3_multiply(s->gate, s->gate, s->up, T * I, D);
    tap(p, Q3_TAP_DENSE_DOWN_PROJ_INPUT, s->gate, D, 2, I, 1);
    q3_linear(s->branch, s->gate, w->down_proj, no_bias, T, M, I, D);
}

bool q3_layer_is_sparse(const q3_config *config, size_t layer)
{
    for (size_t i = 0; i < config->mlp_only_count; i++)
        if (config->mlp_only_layers[i] == layer) return false;
    return config->num_experts > 0 && (layer + 1) % config->decoder_sparse_step == 0;
}

/* Attention and its residual sum, then experts or a dense MLP and theirs. */
static void run_layer(const pass *p)
{
    q3_state *s = p->s;
    const q3_layer *w = &s->weights->layers[p->layer];
    q3_dtype D = s->run.dtype;
    size_t T = p->T, M = s->config->hidden_size;
    float eps = single(s->config->rms_norm_eps);
    q3_rmsnorm(s->norm, s->hidden, w->input_layernorm, T, M, eps, D);
    tap(p, Q3_TAP_INPUT_LAYERNORM, s->norm, D, 2, M, 1);
    attend(p, w);
    q3_rmsnorm(s->norm, s->hidden, w->post_attention_layernorm, T, M, eps, D);
    tap(p, Q3_TAP_POST_ATTENTION_LAYERNORM, s->norm, D, 2, M, 1);
    if (q3_layer_is_sparse(s->config, p->layer))
        run_experts(p, w);
    else
        run_dense(p, &w->mlp);
    tap(p, Q3_TAP_MLP, s->branch, D, 2, M, 1);
    q3_residual_add(s->hidden, s->hidden, s->branch, T * M, D);
    tap(p, Q3_TAP_LAYER, s->hidden, D, 2, M, 1);
}

/* How many rows of logits a state has room for. */
static size_t logit_room(const q3_run *run)
{
    return run->logit_rows != 0 ? run->logit_rows : run->chunk;
}

/* The final norm of all tokens, and lm_head of the last `rows` of them: piece by piece where there
 * is no room for all, the short piece first, so that the last one fills q3_logits. */
static void run_head(pass *p, size_t rows)
{
    q3_state *s = p->s;
    const q3_config *c = s->config;
    const q3_tensor no_bias = {NULL, Q3_F32};
    size_t T = p->T, first = p->first, M = c->hidden_size, V = c->vocab_size;
    q3_dtype D = s->run.dtype;
    q3_rmsnorm(s->norm, s->hidden, s->weights->norm, p->T, M, single(c->rms_norm_eps), D);
    tap(p, Q3_TAP_NORM, s->norm, D, 2, M, 1);
    for (; rows > 0; rows -= p->T) {
        p->T = (rows - 1) % logit_room(&s->run) + 1;
        p->first = first + T - rows;
        q3_linear(s->logits, s->norm + (T - rows) * M, s->weights->lm_head, no_bias, p->T, V, M, D);
        tap(p, Q3_TAP_LM_HEAD, s->logits, D, 2, V, 1);
    }
}

/* Starts a message. error may be NULL, here and below. */
static void begin(q3_error *error)
{
    if (error != NULL) error->text[0] = 0;
}

/* Appends to a message; what does not fit is left out. */
static void say(q3_error *error, const char *text)
{
    if (error == NULL) return;
    size_t at = 0;
    while (error->text[at] != 0) at++;
    for (; *text != 0 && at + 1 < sizeof error->text; text++) error->text[at++] = *text;
    error->text[at] = 0;
}

static void say_number(q3_error *error, size_t number)
{
    char digits[24];
    size_t at = sizeof digits - 1;
    digits[at] = 0;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    say(error, digits + at);
}

static q3_status check_input(const q3_state *s, const q3_input *input, q3_error *error)
{
    size_t room = s->run.rows - s->cached, V = s->config->vocab_size;
    Q3_CHECK(input->count >= 1 && input->count <= s->run.chunk);
    Q3_CHECK(input->logit_rows <= input->count);
    if (input->count > room) {
        begin(error);
        say(error, "tokens: found ");
        say_number(error, input->count);
        say(error, " more, expected at most ");
        say_number(error, room);
        return Q3_ERROR_INPUT;
    }
    for (size_t t = 0; s->run.first_layer == 0 && t < input->count; t++) {
        int32_t id = input->tokens[t];
        if (id >= 0 && (size_t)id < V) continue;
        begin(error);
        say(error, "token ");
        say_number(error, s->cached + t);
        say(error, id < 0 ? ": found id -" : ": found id ");
        say_number(error, (size_t)(id < 0 ? -(int64_t)id : id));
        say(error, ", expected 0 to ");
        say_number(error, V - 1);
        return Q3_ERROR_INPUT;
    }
    return Q3_OK;
}

static const char *broken_mode(void); /* of the self-test, below */

q3_status q3_forward(q3_state *s, const q3_input *input, q3_tap_fn *tap_fn, void *user,
                     q3_error *error)
{
    q3_status status = check_input(s, input, error);
    if (status != Q3_OK) return status;
    const char *broken = broken_mode();
    if (broken != NULL) {
        begin(error);
        say(error, "arithmetic: ");
        say(error, broken);
        return Q3_ERROR_ARITHMETIC;
    }
    const q3_config *c = s->config;
    q3_dtype D = s->run.dtype;
    size_t M = c->hidden_size, hd = c->head_dim, first = s->run.start + s->cached;
    pass p = {s, tap_fn, user, input->count, s->cached, 0};
    if (s->run.first_layer == 0) {
        q3_embedding(s->hidden, input->tokens, s->weights->embed_tokens, p.T, c->vocab_size, M, D);
        tap(&p, Q3_TAP_EMBED_TOKENS, s->hidden, D, 2, M, 1);
    } else {
        memcpy(s->hidden, input->hidden, p.T * M * sizeof *s->hidden);
    }
    size_t length = input->length != 0 ? input->length : first + p.T;
    size_t limit = c->max_position_embeddings;
    float scaling = q3_rope_frequencies(s->inv_freq, &c->rope, hd, limit, length);
    q3_rope_table(s->cos, s->sin, s->inv_freq, scaling, p.T, first, hd, D);
    tap(&p, Q3_TAP_COS, s->cos, D, 2, hd, 1);
    tap(&p, Q3_TAP_SIN, s->sin, D, 2, hd, 1);
    for (p.layer = s->run.first_layer; p.layer < s->run.end_layer; p.layer++) run_layer(&p);
    p.layer = 0;
    s->cached += p.T;
    if (s->run.end_layer == c->num_hidden_layers) run_head(&p, input->logit_rows);
    return Q3_OK;
}

/* ==== State =================================================================================== */

/* The caller's memory, handed out piece by piece. base NULL: only measures. */
typedef struct q3_arena {
    uint8_t *base;
    size_t used;
    bool too_large;
} q3_arena;

/* The next piece: rows * columns elements of this size, on a cache line of its own. */
static void *take(q3_arena *arena, size_t rows, size_t columns, size_t size)
{
    const size_t step = 64;
    if (arena->too_large || (columns != 0 && rows > SIZE_MAX / columns) ||
        rows * columns > (SIZE_MAX - step - arena->used) / size) {
        arena->too_large = true;
        return NULL;
    }
    void *piece = arena->base == NULL ? NULL : arena->base + arena->used;
    arena->used += (rows * columns * size + step - 1) / step * step;
    return piece;
}

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Every array of a state, in turn. Sizes are those of arrays that the weights fill, so products of
 * two of them fit; `take` sees to it that those with chunk, rows and layers do. */
static void lay_out(q3_state *s, q3_arena *arena, const q3_config *c, const q3_run *run)
{
    size_t T = run->chunk, M = c->hidden_size, hd = c->head_dim, E = c->num_experts;
    size_t A = E > 0 ? c->num_experts_per_tok : 1, f = sizeof(float);
    size_t wide = largest(c->intermediate_size, E > 0 ? c->moe_intermediate_size : 0);
    size_t inner = largest(c->intermediate_size, E > 0 ? A * c->moe_intermediate_size : 0);
    size_t key_values = c->num_key_value_heads * hd;
    size_t cache = run->end_layer - run->first_layer;
    if (cache != 0 && run->rows > SIZE_MAX / cache) arena->too_large = true;
    cache *= run->rows;
    s->keys = take(arena, cache, key_values, f);
    s->values = take(arena, cache, key_values, f);
    s->hidden = take(arena, T, M, f);
    s->norm = take(arena, T, M, f);
    s->branch = take(arena, T, M, f);
    s->inv_freq = take(arena, 1, hd / 2, f);
    s->cos = take(arena, T, hd, f);
    s->sin = take(arena, T, hd, f);
    s->q = take(arena, T, c->num_attention_heads * hd, f);
    s->k = take(arena, T, key_values, f);
    s->v = take(arena, T, key_values, f);
    s->attention = take(arena, T, c->num_attention_heads * hd, f);
    s->scores = take(arena, c->num_attention_heads, run->rows, f);
    s->scratch = take(arena, 1, run->rows, sizeof(double));
    s->router = take(arena, T, E, f);
    s->topk_weights = take(arena, T, A, f);
    s->topk_ids = take(arena, T, A, sizeof(int32_t));
    s->gate = take(arena, T, inner, f);
    s->up = take(arena, T, inner, f);
    s->down = take(arena, T, A * M, f);
    s->gathered = take(arena, T, M + wide, f);
    bool head = run->end_layer == c->num_hidden_layers;
    s->logits = take(arena, head ? logit_room(run) : 0, c->vocab_size, f);
}

/* A caller's mistakes. */
static void check_run(const q3_config *config, const q3_run *run)
{
    Q3_CHECK(run->dtype == Q3_F32 || run->dtype == Q3_BF16 || run->dtype == Q3_F16);
    Q3_CHECK(run->first_layer <= run->end_layer && run->end_layer <= config->num_hidden_layers);
    Q3_CHECK(run->chunk >= 1 && run->chunk <= run->rows && run->rows <= Q3_MAX_POSITIONS);
    Q3_CHECK(run->start <= Q3_MAX_POSITIONS - run->rows && run->logit_rows <= run->chunk);
}

size_t q3_state_size(const q3_config *config, const q3_run *run)
{
    q3_state measured;
    q3_arena arena = {NULL, 0, false};
    check_run(config, run);
    take(&arena, 1, 1, sizeof measured);
    lay_out(&measured, &arena, config, run);
    return arena.too_large ? 0 : arena.used;
}

q3_state *q3_state_init(void *memory, size_t size, const q3_config *config,
                        const q3_weights *weights, const q3_run *run)
{
    size_t needed = q3_state_size(config, run);
    Q3_CHECK(memory != NULL && needed != 0 && size >= needed);
    Q3_CHECK((uintptr_t)memory % _Alignof(double) == 0);
    if (q3_selftest() != NULL) return NULL;
    q3_arena arena = {memory, 0, false};
    q3_state *s = take(&arena, 1, 1, sizeof *s);
    memset(s, 0, sizeof *s);
    s->config = config;
    s->weights = weights;
    s->run = *run;
    lay_out(s, &arena, config, run);
    return s;
}

void q3_state_reset(q3_state *state)
{
    state->cached = 0;
}

void q3_state_fill(q3_state *state, size_t layer, const float *keys, const float *values,
                   size_t count)
{
    const q3_run *run = &state->run;
    size_t row = state->config->num_key_value_heads * state->config->head_dim;
    Q3_CHECK(layer >= run->first_layer && layer < run->end_layer && count <= run->rows);
    Q3_CHECK(state->cached == 0 || state->cached == count);
    size_t at = (layer - run->first_layer) * run->rows * row;
    memcpy(state->keys + at, keys, count * row * sizeof *keys);
    memcpy(state->values + at, values, count * row * sizeof *values);
    state->cached = count;
}

const float *q3_logits(const q3_state *state)
{
    return state->logits;
}

const float *q3_hidden(const q3_state *state)
{
    return state->hidden;
}

size_t q3_cached(const q3_state *state)
{
    return state->cached;
}

/* ==== Self-test (MODEL.md section 2) =============================================================
 * What flags cannot promise: some compilers announce nothing, another library may have set the
 * processor's modes, or a caller the rounding mode. Inputs are volatile, so that nothing is
 * folded. */

/* Subnormals kept, rounding to nearest; a few instructions, also run at each call of q3_forward. */
static const char *broken_mode(void)
{
    volatile float smallest_normal = FLT_MIN, half = 0.5f;
    volatile double one = 1.0, tiny = 0x1p-53, more = 0x1.8p-53, smallest_double = DBL_MIN;
    volatile float flushed = smallest_normal * half;
    volatile double flushed_double = smallest_double * 0.5;
    volatile double down = one + tiny, up = one + more, minus = -one - more;
    if (flushed != float_of(0x00400000u) || flushed == 0.0f || flushed_double == 0.0)
        return "found subnormals flushed to zero, expected them kept";
    if (down != 1.0 || up != 1.0 + 0x1p-52 || minus != -1.0 - 0x1p-52)
        return "found another rounding mode, expected to nearest, ties to even";
    return NULL;
}

/* A sum whose last bit depends on its order. */
static bool lanes_hold(void)
{
    float w[77], x[77];
    uint32_t u = 12345;
    for (size_t i = 0; i < 77; i++) {
        u = u * 1664525u + 1013904223u;
        w[i] = float_of((u & 0x807FFFFFu) | (96 + (u >> 24 & 63)) << 23);
        u = u * 1664525u + 1013904223u;
        x[i] = float_of(0x3F800000u | u >> 9);
    }
    double sums[2];
    q3_dots dots = {.x = x, .rows = w, .T = 2, .N = 1, .C = 77, .sums = sums}; /* both tokens x */
    kernels()->dots(&dots);
    return bits_of(dot(w, x, 77)) == UINT64_C(0xC207C2BA2F049B16) &&
           bits_of(sums[0]) == UINT64_C(0xC207C2BA2F049B16) && bits_of(sums[1]) == bits_of(sums[0]);
}

static bool sums_as_written(void)
{
    volatile double one = 1.0, tiny = 0x1p-60, big = 0x1p53;
    volatile double rest = (one + tiny) - one, steps = ((big + one) + one) + one;
    return rest == 0.0 && steps == big;
}

static bool nan_is_unequal(void)
{
    volatile double zero = 0.0, nan = zero / zero;
    return nan != nan;
}

/* The hardest argument of sine, and one of each other function. */
/* An argument of exp that is as near to one multiple of ln 2 as to the next. */
static double half_way(double i)
{
    return (i - 11.5) * 0x1.62e42fefa39efp-1;
}

static bool functions_hold(void)
{
    volatile float hard = 0x1.33333p13f, three = 3.0f;
    volatile double one = 1.0;
    double many[24];
    for (size_t i = 0; i < 24; i++) many[i] = half_way(one * (double)i);
    kernels()->exp(many, many, 24);
    for (size_t i = 0; i < 24; i++)
        if (bits_of(many[i]) != bits_of(q3_exp(half_way(one * (double)i)))) return false;
    return q3_sin(hard) == float_of(0xBEB1FA5Du) && q3_cos(three) == float_of(0xBF7D7026u) &&
           bits_of(q3_exp(-one)) == UINT64_C(0x3FD78B56362CEF38) &&
           q3_round(q3_silu(-1.5 * one), Q3_F32) == float_of(0xBE8C1A51u) &&
           q3_pow(1e6f, 0.296875f * (float)one) == float_of(0x4271B7F3u) &&
           bits_of(q3_sqrt(2.0 * one)) == UINT64_C(0x3FF6A09E667F3BCD);
}

/* Ties, just above a tie, and a subnormal. */
static bool rounding_holds(void)
{
    volatile double one = 1.0, above = 0x1p-40;
    return q3_round(one * 0x1.01p0, Q3_BF16) == 1.0f &&
           q3_round(one * 0x1.03p0, Q3_BF16) == 0x1.04p0f &&
           q3_round(one * 0x1.01p0 + above, Q3_BF16) == 0x1.02p0f &&
           q3_round(one * 0x1.002p0, Q3_F16) == 1.0f &&
           q3_round(-one * 0x1.006p0, Q3_F16) == -0x1.008p0f &&
           q3_round(one * 0x1.8p-24 + above, Q3_F16) == 0x1p-23f &&
           q3_round(one * 0x1.000001p0, Q3_F32) == 1.0f;
}

static bool modes_hold(void)
{
    return broken_mode() == NULL;
}

static const struct {
    const char *what;
    bool (*holds)(void);
    const char *broken;
} checks[] = {
    {"subnormals kept, rounding to nearest", modes_hold, NULL},
    {"sums as written, no wider than float64", sums_as_written,
     "found sums reordered or kept wider than float64, expected them as written"},
    {"NaN unequal to itself", nan_is_unequal, "found NaN equal to itself, expected IEEE 754"},
    {"conversions round once, ties to even", rounding_holds,
     "found a conversion that rounds otherwise, expected to nearest, ties to even"},
    {"dot product in 16 lanes", lanes_hold,
     "found a dot product added in another order, expected 16 lanes"},
    {"elementary functions", functions_hold,
     "found another value of an elementary function, expected MPFR's"},
};

const char *q3_selftest_check(size_t index, bool *holds)
{
    if (index >= sizeof checks / sizeof checks[0]) return NULL;
    *holds = checks[index].holds();
    return checks[index].what;
}

const char *q3_selftest(void)
{
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++)
        if (!checks[i].holds()) return i == 0 ? broken_mode() : checks[i].broken;
    return NULL;
}

/* ==== Version ================================================================================= */

const char *q3_version(void)
{
    return Q3_VERSION;
}
