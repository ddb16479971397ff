/* SPDX-License-Identifier: MIT */
/* The arithmetic of qwen3moe.c: elementary functions, conversions, dot products, NaN on store.
 *
 * test_math GOLDEN    GOLDEN is the folder golden/
 *
 * Expected values: golden/math/ (MPFR), the definitions of the formats, an exact accumulator
 * (exhaustive/exact.h) and a second, plain implementation of the order of lanes that qwen3moe.h
 * states. tests/exhaustive/ takes its time over every input; here stand its hardest ones and a
 * sample. */
#include "qwen3moe.h"
#include "exhaustive/exact.h"
#include "rule.h"
#include "t.h"

#include <inttypes.h>
#include <math.h>

/* ==== Bits and pseudo-random values ========================================================== */

static uint32_t bits32(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static float from32(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static uint64_t bits64(double x)
{
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}

static double from64(uint64_t u)
{
    double x;
    memcpy(&x, &u, 8);
    return x;
}

/* 2^e for -1074 <= e <= 1023, by doubling and halving. */
static double two_to(int e)
{
    double x = 1.0;
    for (; e > 0; e--) x *= 2.0;
    for (; e < 0; e++) x *= 0.5;
    return x;
}

static uint64_t draw(uint64_t *counter)
{
    return rule_bits(UINT64_C(0x746573745F6D6174), (*counter)++);
}

/* A float32 with a full random significand, a random sign and an exponent in [-spread, spread]. */
static float draw_wide(uint64_t *counter, uint32_t spread)
{
    uint64_t u = draw(counter);
    uint32_t e = 127 - spread + (uint32_t)(u >> 32) % (2 * spread + 1);
    return from32((uint32_t)(u >> 63) << 31 | e << 23 | ((uint32_t)u & 0x7FFFFF));
}

/* ==== Elementary functions against golden/math =============================================== */

enum { COLUMNS = 3 };

static FILE *open_table(const char *golden, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/math/%s.txt", golden, name);
    FILE *file = fopen(path, "r");
    CHECKF(file != NULL, "%s: cannot be read", path);
    return file;
}

/* The next line's hexadecimal numbers; false at the end of the file. A malformed line fails. */
static bool next_row(FILE *file, uint64_t value[COLUMNS], size_t columns)
{
    char line[256];
    do {
        if (file == NULL || fgets(line, sizeof line, file) == NULL) return false;
    } while (line[0] == '#');
    char *p = line;
    for (size_t c = 0; c < columns; c++) {
        char *end;
        value[c] = strtoull(p, &end, 16);
        CHECKF(end != p, "malformed line: %s", line);
        p = end;
    }
    CHECKF(*p == '\n', "malformed line: %s", line);
    return true;
}

static void close_table(FILE *file, size_t rows, size_t least, const char *name)
{
    CHECKF(rows >= least, "%s: %lu rows", name, (unsigned long)rows);
    if (file != NULL) fclose(file);
}

static float stored_exp(float x)
{
    return q3_round(q3_exp((double)x), Q3_F32);
}

static float stored_silu(float x)
{
    return q3_round(q3_silu((double)x), Q3_F32);
}

/* silu below 2^-125: x/2 is a multiple n/2 of 2^-149; a tie goes to even, though the true value
 * lies above it by less than 2^-250. The one named exception to correct rounding. */
static uint32_t tiny_silu(uint32_t x)
{
    uint32_t n = x & 0x7FFFFFFF;
    if (n >> 23 != 0) n = ((n & 0x7FFFFF) | 0x800000) << ((n >> 23) - 1);
    uint32_t half = n / 2 + (n % 4 == 3);
    return (x & 0x80000000u) | half;
}

static void test_table_f32(const char *golden, const char *name, float (*f)(float))
{
    uint64_t v[COLUMNS];
    size_t rows = 0;
    FILE *file = open_table(golden, name);
    for (; next_row(file, v, 2); rows++) {
        uint32_t x = (uint32_t)v[0], want = (uint32_t)v[1], got = bits32(f(from32(x)));
        if (f == stored_silu && (x & 0x7FFFFFFF) < 0x01000000u) {
            CHECKF(want - tiny_silu(x) + 1 <= 2, "table: silu(%08" PRIx32 ")", x);
            want = tiny_silu(x);
        }
        CHECKF(got == want, "%s(%08" PRIx32 "): got %08" PRIx32 ", want %08" PRIx32, name, x, got,
               want);
    }
    close_table(file, rows, 1000, name);
}

/* Distance of two doubles of one sign, in steps from one to the next. */
static uint64_t steps(double a, double b)
{
    uint64_t x = bits64(a), y = bits64(b);
    return x > y ? x - y : y - x;
}

/* Before the last rounding exp and log are off by at most 0.25 ulp (2^-55.05 of the result,
 * measured: tests/exhaustive/README.md), so a result is the correctly rounded one or its
 * neighbour; and off by 0.02 on average, so the latter is rare: 3.6 % of these rows for exp, 0.2
 * % for log. A subnormal exp is rounded a second time: again 1 step at most. */
static void test_table_f64(const char *golden, const char *name, double (*f)(double),
                           bool correctly)
{
    uint64_t v[COLUMNS];
    size_t rows = 0, different = 0;
    FILE *file = open_table(golden, name);
    for (; next_row(file, v, 2); rows++) {
        double x = from64(v[0]), want = from64(v[1]), got = f(x);
        different += bits64(got) != v[1];
        CHECKF(steps(got, want) <= (correctly ? 0 : 1),
               "%s(%016" PRIx64 "): got %016" PRIx64 ", want %016" PRIx64, name, v[0], bits64(got),
               v[1]);
    }
    CHECKF(different * 20 <= rows, "%s: %lu of %lu differ", name, (unsigned long)different,
           (unsigned long)rows);
    printf("%s: %lu of %lu not correctly rounded\n", name, (unsigned long)different,
           (unsigned long)rows);
    close_table(file, rows, 1000, name);
}

static void test_pow(const char *golden)
{
    uint64_t v[COLUMNS];
    size_t rows = 0;
    FILE *file = open_table(golden, "pow_float32");
    for (; next_row(file, v, 3); rows++) {
        uint32_t got = bits32(q3_pow(from32((uint32_t)v[0]), from32((uint32_t)v[1])));
        CHECKF(got == v[2], "pow(%08" PRIx64 ", %08" PRIx64 "): got %08" PRIx32 ", want %08" PRIx64,
               v[0], v[1], got, v[2]);
    }
    close_table(file, rows, 1000, "pow_float32");
}

/* The default inverse frequencies are the reciprocals, in float32, of MPFR's float32 powers: two
 * roundings, not one. The table's first rows are those of these models, j ascending. */
static void test_frequencies(const char *golden)
{
    static const double thetas[] = {1e4, 5e5, 1e6, 5e6, 1e7};
    static const size_t heads[] = {64, 80, 128, 96};
    uint64_t v[COLUMNS];
    size_t rows = 0, one_step = 0;
    FILE *file = open_table(golden, "pow_float32");
    for (size_t t = 0; t < 5; t++)
        for (size_t h = 0; h < 4; h++) {
            q3_rope rope = {.type = Q3_ROPE_DEFAULT, .rope_theta = thetas[t]};
            float inv_freq[64];
            CHECK(q3_rope_frequencies(inv_freq, &rope, heads[h], 4096, 1) == 1.0f);
            for (size_t j = 0; j < heads[h] / 2 && next_row(file, v, 3); j++, rows++) {
                float power = from32((uint32_t)v[2]), want = 1.0f / power;
                CHECK(from32((uint32_t)v[0]) == (float)thetas[t] &&
                      from32((uint32_t)v[1]) == (float)(2 * j) / (float)heads[h]);
                CHECKF(bits32(inv_freq[j]) == bits32(want),
                       "theta %g, head_dim %lu, j %lu: got %08" PRIx32 ", want %08" PRIx32,
                       thetas[t], (unsigned long)heads[h], (unsigned long)j, bits32(inv_freq[j]),
                       bits32(want));
                one_step += q3_pow((float)thetas[t], -from32((uint32_t)v[1])) != want;
            }
        }
    /* Otherwise one step could not be told from two. */
    CHECKF(rows == 920 && one_step > 200, "%lu rows, %lu differ in one step", (unsigned long)rows,
           (unsigned long)one_step);
    fclose(file);
}

/* The scale hd^-0.5 can be seen as the score of q = k = (1, 0, 0, ...). */
static void test_scale(const char *golden)
{
    uint64_t v[COLUMNS];
    size_t rows = 0;
    static float unit[4096];
    unit[0] = 1.0f;
    FILE *file = open_table(golden, "scale_float32");
    for (; next_row(file, v, 2) && v[0] <= 4096; rows++) {
        float score;
        q3_attention_scores(&score, unit, unit, 1, 1, 1, (size_t)v[0], 0, 1, 0, Q3_F32);
        CHECKF(bits32(score) == v[1], "head_dim %" PRIu64 ": got %08" PRIx32 ", want %08" PRIx64,
               v[0], bits32(score), v[1]);
    }
    close_table(file, rows, 2048, "scale_float32");
}

static void test_special_values(void)
{
    const double inf = (double)INFINITY, nan = (double)NAN;
    CHECK(q3_exp(inf) == inf);
    CHECK(bits64(q3_exp(-inf)) == 0);
    CHECK(q3_exp(nan) != q3_exp(nan));
    CHECK(q3_exp(709.8) == inf);
    CHECK(bits64(q3_exp(-745.3)) == 0);
    CHECK(bits64(q3_exp(-1e300)) == 0 && q3_exp(1e300) == inf);
    CHECK(bits64(q3_exp(0.0)) == bits64(1.0) && bits64(q3_exp(-0.0)) == bits64(1.0));
    CHECK(q3_silu(inf) == inf);
    CHECK(bits64(q3_silu(-inf)) == bits64(-0.0));
    CHECK(bits64(q3_silu(-0.0)) == bits64(-0.0) && bits64(q3_silu(0.0)) == 0);
    CHECK(bits64(q3_silu(-1e300)) == bits64(-0.0) && q3_silu(1e300) == 1e300);
    CHECK(q3_silu(nan) != q3_silu(nan));
    CHECK(bits32(q3_sin(-0.0f)) == 0x80000000u && bits32(q3_sin(0.0f)) == 0);
    CHECK(bits32(q3_cos(-0.0f)) == 0x3F800000u && bits32(q3_cos(0.0f)) == 0x3F800000u);
    CHECK(bits64(q3_log(1.0)) == 0);
    CHECK(q3_pow(1.0f, 3.0f) == 1.0f && q3_pow(1e6f, 0.0f) == 1.0f);
    CHECK(q3_pow(2.0f, 10.0f) == 1024.0f);
    CHECK(bits64(q3_sqrt(inf)) == bits64(inf));
    CHECK(q3_sqrt(-1.0) != q3_sqrt(-1.0) && q3_sqrt(nan) != q3_sqrt(nan));
    CHECK(q3_sqrt(-inf) != q3_sqrt(-inf));
    CHECK(bits64(q3_sqrt(-0.0)) == bits64(-0.0));
}

/* ==== Conversions ============================================================================= */

/* A 16-bit format: the value of each encoding from its fields. */
typedef struct half_format { q3_dtype dtype; int fraction_bits, bias; } half_format;

static const half_format halves[] = {{Q3_BF16, 7, 127}, {Q3_F16, 10, 15}};

static bool half_is_finite(half_format f, uint32_t code)
{
    uint32_t ones = (1u << (15 - f.fraction_bits)) - 1;
    return (code >> f.fraction_bits & ones) != ones;
}

/* Also of the first code past the largest finite one, where the next binade would begin. */
static double half_value(half_format f, uint32_t code)
{
    uint32_t e = (code & 0x7FFF) >> f.fraction_bits;
    double fraction = (double)(code & ((1u << f.fraction_bits) - 1)) * two_to(-f.fraction_bits);
    double magnitude = e == 0 ? fraction * two_to(1 - f.bias)
                              : (1.0 + fraction) * two_to((int)e - f.bias);
    return (code & 0x8000) != 0 ? -magnitude : magnitude;
}

static void check_round(double x, double want, q3_dtype dtype)
{
    double got = (double)q3_round(x, dtype);
    CHECKF(bits64(got) == bits64(want),
           "round(%016" PRIx64 ") to dtype %d: got %016" PRIx64 ", want %016" PRIx64, bits64(x),
           (int)dtype, bits64(got), bits64(want));
}

/* Every value of the format, the middle between it and the next one, the doubles beside each. */
static void test_round_to_half(half_format f)
{
    for (uint32_t code = 0; code < 0x8000 && half_is_finite(f, code); code++) {
        double low = half_value(f, code), high = half_value(f, code + 1);
        double middle = (low + high) / 2.0;
        double top = half_is_finite(f, code + 1) ? high : (double)INFINITY;
        double even = code % 2 == 0 ? low : top;
        uint64_t u = bits64(middle), v = bits64(low);
        for (int sign = 0; sign < 2; sign++) {
            double s = sign ? -1.0 : 1.0;
            check_round(s * low, s * low, f.dtype);
            check_round(s * from64(v + 1), s * low, f.dtype);
            if (v != 0) check_round(s * from64(v - 1), s * low, f.dtype);
            check_round(s * from64(u - 1), s * low, f.dtype);
            check_round(s * middle, s * even, f.dtype);
            check_round(s * from64(u + 1), s * top, f.dtype);
        }
    }
}

static void test_round_f32(void)
{
    uint64_t counter = 0;
    for (int i = 0; i < 100000; i++) {
        uint32_t code = (uint32_t)draw(&counter) & 0x7FFFFFFF;
        if (i < 3) code = i == 0 ? 0 : i == 1 ? 0x007FFFFF : 0x7F7FFFFF;
        if (code >> 23 == 0xFF) continue;
        bool largest = code == 0x7F7FFFFF;
        double low = (double)from32(code), high = largest ? two_to(128) : (double)from32(code + 1);
        double middle = (low + high) / 2.0, top = largest ? (double)INFINITY : high;
        double even = code % 2 == 0 ? low : top;
        check_round(low, low, Q3_F32);
        check_round(-from64(bits64(middle) - 1), -low, Q3_F32);
        check_round(middle, even, Q3_F32);
        check_round(-middle, -even, Q3_F32);
        check_round(from64(bits64(middle) + 1), top, Q3_F32);
    }
}

static void test_round_special(void)
{
    static const uint64_t nans[] = {UINT64_C(0x7FF8000000000000), UINT64_C(0xFFF8000000000000),
                                    UINT64_C(0x7FF0000000000001), UINT64_C(0xFFFFFFFFFFFFFFFF),
                                    UINT64_C(0x7FF0000010000000)};
    for (int d = 0; d < 3; d++) {
        q3_dtype dtype = d == 0 ? Q3_F32 : d == 1 ? Q3_BF16 : Q3_F16;
        for (size_t i = 0; i < sizeof nans / sizeof *nans; i++)
            CHECK(bits32(q3_round(from64(nans[i]), dtype)) == 0x7FC00000u);
        CHECK(bits32(q3_round((double)INFINITY, dtype)) == 0x7F800000u);
        CHECK(bits32(q3_round(-(double)INFINITY, dtype)) == 0xFF800000u);
        CHECK(bits32(q3_round(1e300, dtype)) == 0x7F800000u);
        CHECK(bits32(q3_round(-0x1.fffffffffffffp1023, dtype)) == 0xFF800000u);
        CHECK(bits32(q3_round(0x1p-1022, dtype)) == 0);
        CHECK(bits32(q3_round(-1e-300, dtype)) == 0x80000000u);
        CHECK(bits32(q3_round(from64(1), dtype)) == 0);
        CHECK(bits32(q3_round(-0.0, dtype)) == 0x80000000u);
    }
}

/* All 65536 encodings, widened; and what the run's dtype cannot hold, rounded. */
static void test_widen(half_format f)
{
    for (uint32_t code = 0; code < 0x10000; code++) {
        uint8_t bytes[4] = {0xEE, (uint8_t)(code & 0xFF), (uint8_t)(code >> 8), 0xEE};
        const q3_tensor tensor = {bytes + 1, f.dtype};
        float y[3] = {1.0f, 1.0f, 1.0f};
        q3_widen(y + 1, tensor, 0, 1, Q3_F32);
        uint32_t ones = 0x7FFFu >> f.fraction_bits << f.fraction_bits;
        if (half_is_finite(f, code)) {
            CHECKF(bits64((double)y[1]) == bits64(half_value(f, code)), "code %04" PRIx32, code);
        } else if ((code & 0x7FFF) == ones) {
            CHECKF(bits32(y[1]) == ((code & 0x8000) << 16 | 0x7F800000u), "code %04" PRIx32, code);
        } else {
            CHECKF(y[1] != y[1], "code %04" PRIx32, code);
        }
        q3_dtype other = f.dtype == Q3_BF16 ? Q3_F16 : Q3_BF16;
        float rounded = 1.0f, want = q3_round((double)y[1], other);
        q3_widen(&rounded, tensor, 0, 1, other);
        CHECKF(bits32(rounded) == bits32(want), "code %04" PRIx32 " to the other format", code);
        CHECK(y[0] == 1.0f && y[2] == 1.0f);
    }
}

/* float32 weights at an odd address, from the middle of a tensor. */
static void test_widen_f32(void)
{
    uint64_t counter = 0;
    uint8_t bytes[1 + 4 * 64];
    uint32_t code[64];
    const q3_tensor tensor = {bytes + 1, Q3_F32};
    for (size_t i = 0; i < 64; i++) {
        code[i] = bits32(draw_wide(&counter, 20));
        for (size_t b = 0; b < 4; b++) bytes[1 + 4 * i + b] = (uint8_t)(code[i] >> (8 * b) & 0xFF);
    }
    for (size_t d = 0; d < 3; d++) {
        q3_dtype dtype = d == 0 ? Q3_F32 : d == 1 ? Q3_BF16 : Q3_F16;
        float y[64];
        q3_widen(y, tensor, 3, 61, dtype);
        for (size_t i = 0; i < 61; i++)
            CHECK(bits32(y[i]) == bits32(q3_round((double)from32(code[i + 3]), dtype)));
    }
}

/* ==== Dot products ============================================================================ */

/* The bytes of count float32 values in a file's dtype, which holds them exactly. */
static q3_tensor pack(uint8_t *bytes, const float *values, size_t count, q3_dtype dtype)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t u = bits32(values[i]);
        if (dtype == Q3_BF16) u >>= 16;
        for (size_t b = 0; b < (dtype == Q3_BF16 ? 2 : 4); b++)
            *bytes++ = (uint8_t)(u >> (8 * b) & 0xFF);
    }
    q3_tensor tensor = {bytes - count * (dtype == Q3_BF16 ? 2 : 4), dtype};
    return tensor;
}

/* The order of qwen3moe.h, plainly: element i to lane i mod `lanes`, ascending; then lane l takes
 * lane l + s for s = lanes/2, ..., 2, 1 (upwards: s = 1, 2, ..., the wrong way). */
static double plain_dot(const float *w, const float *x, size_t n, size_t lanes, bool upwards)
{
    double lane[64] = {0};
    for (size_t i = 0; i < n; i++) {
        volatile double product = (double)w[i] * (double)x[i];
        lane[i % lanes] = lane[i % lanes] + product;
    }
    if (upwards) {
        for (size_t s = 1; s < lanes; s *= 2)
            for (size_t l = 0; l + s < lanes; l += 2 * s) lane[l] += lane[l + s];
    } else {
        for (size_t s = lanes / 2; s >= 1; s /= 2)
            for (size_t l = 0; l < s; l++) lane[l] += lane[l + s];
    }
    return lane[0];
}

static double exact_dot(const float *w, const float *x, size_t n, float bias, q3_dtype dtype)
{
    exact sum = {{0}};
    for (size_t i = 0; i < n; i++) exact_add(&sum, w[i], x[i]);
    exact_add(&sum, bias, 1.0f);
    if (dtype == Q3_BF16) return exact_round(&sum, 8, -126, 127);
    if (dtype == Q3_F16) return exact_round(&sum, 11, -14, 15);
    return dtype == Q3_F32 ? exact_round(&sum, 24, -126, 127) : exact_round(&sum, 53, -1022, 1023);
}

enum { LONGEST = 777 };

/* Rounded to D as the run's values are; the smallest exponents stay normal. */
static void fill(float *values, size_t n, q3_dtype dtype, uint32_t spread, uint64_t *counter)
{
    for (size_t i = 0; i < n; i++) values[i] = q3_round((double)draw_wide(counter, spread), dtype);
}

/* Stored results are the exactly rounded ones: full significands, exponents over 2^(2 * spread), no
 * planned cancellation. A float64 sum is off by some units of 2^-53, so a float32 result would be
 * another for about 1 in 2^27 of dots, a bfloat16 one for 1 in 2^43; none of these. */
static void test_dots_exactly_rounded(void)
{
    static const struct { q3_dtype run, weight; uint32_t spread; } kinds[] = {
        {Q3_F32, Q3_F32, 1}, {Q3_F32, Q3_BF16, 1}, {Q3_BF16, Q3_BF16, 1}, {Q3_F16, Q3_F32, 1},
        {Q3_F32, Q3_F32, 20}, {Q3_F32, Q3_BF16, 20}, {Q3_BF16, Q3_BF16, 20}};
    uint64_t counter = 0;
    float w[LONGEST], x[LONGEST];
    uint8_t bytes[4 * LONGEST], bias_bytes[4];
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        q3_dtype run = kinds[kind].run;
        for (size_t i = 0; i < 2000; i++) {
            size_t n = i % (LONGEST + 1);
            float bias = 0.0f, y = 1.0f;
            fill(x, n, run, kinds[kind].spread, &counter);
            fill(w, n, kinds[kind].weight, kinds[kind].spread, &counter);
            q3_tensor b = {NULL, Q3_F32}, weight = pack(bytes, w, n, kinds[kind].weight);
            for (size_t k = 0; k < n; k++) w[k] = q3_round((double)w[k], run);
            if (i % 3 == 0) {
                fill(&bias, 1, run, kinds[kind].spread, &counter);
                b = pack(bias_bytes, &bias, 1, Q3_F32);
            }
            q3_linear(&y, x, weight, b, 1, 1, n, run);
            double want = exact_dot(w, x, n, bias, run);
            CHECKF(bits64((double)y) == bits64(want),
                   "kind %lu, C = %lu: got %016" PRIx64 ", want %016" PRIx64, (unsigned long)kind,
                   (unsigned long)n, bits64((double)y), bits64(want));
        }
    }
}

/* Two last elements take away what the first n - 2 add up to, so that the stored result consists of
 * the float64 rounding errors alone: any other order of additions then shows. Also the error bound:
 * C/16 + 5 additions deep, each off by at most 2^-53 of the sum of magnitudes. */
static void test_order_of_lanes(void)
{
    uint64_t counter = 1000000;
    float w[LONGEST], x[LONGEST];
    uint8_t bytes[4 * LONGEST];
    const q3_tensor no_bias = {NULL, Q3_F32};
    size_t cases = 0, unlike[4] = {0};
    for (size_t n = 3; n <= LONGEST; n++, cases++) {
        fill(x, n, Q3_F32, 3, &counter);
        fill(w, n, Q3_F32, 3, &counter);
        for (size_t last = n - 2; last < n; last++) {
            w[last] = 1.0f;
            x[last] = -(float)plain_dot(w, x, last, 16, false);
        }
        float y, want = (float)plain_dot(w, x, n, 16, false);
        q3_linear(&y, x, pack(bytes, w, n, Q3_F32), no_bias, 1, 1, n, Q3_F32);
        CHECKF(bits32(y) == bits32(want), "C = %lu: got %08" PRIx32 ", want %08" PRIx32,
               (unsigned long)n, bits32(y), bits32(want));
        unlike[0] += (float)plain_dot(w, x, n, 1, false) != want;
        unlike[1] += (float)plain_dot(w, x, n, 8, false) != want;
        unlike[2] += (float)plain_dot(w, x, n, 32, false) != want;
        unlike[3] += (float)plain_dot(w, x, n, 16, true) != want;
        double magnitude = 0.0, truth = exact_dot(w, x, n, 0.0f, Q3_F64);
        for (size_t i = 0; i < n; i++) magnitude += fabs((double)w[i] * (double)x[i]);
        double bound = (double)(n / 16 + 5) * 0x1p-53 * magnitude + 0x1p-24 * fabs(truth);
        CHECKF(fabs((double)y - truth) <= bound, "C = %lu: beyond the bound", (unsigned long)n);
    }
    /* The test's own power: other orders must be seen. */
    for (size_t i = 0; i < 4; i++)
        CHECKF(unlike[i] * 10 >= cases * 7, "order %lu seen in %lu of %lu", (unsigned long)i,
               (unsigned long)unlike[i], (unsigned long)cases);
}

/* A token's row is the same alone and among any number of others, for any C, cancelling too. */
static void test_tokens_together(void)
{
    enum { MOST = 19, ROWS = 3 };
    static float x[MOST * LONGEST], w[ROWS * LONGEST], alone[ROWS], y[MOST * ROWS];
    static uint8_t bytes[4 * ROWS * LONGEST];
    uint64_t counter = 2000000;
    for (size_t n = 1; n <= LONGEST; n++) {
        q3_dtype kind = n % 2 == 0 ? Q3_BF16 : Q3_F32;
        size_t T = 1 + n % MOST;
        fill(x, T * n, Q3_F32, 3, &counter);
        fill(w, ROWS * n, kind, 3, &counter);
        for (size_t t = 0; t < T && n > 1; t++) {
            float *last = x + t * n + n - 1;
            w[n - 1] = 1.0f;
            *last = -(float)plain_dot(w, x + t * n, n - 1, 16, false);
        }
        q3_tensor weight = pack(bytes, w, ROWS * n, kind), bias = {NULL, Q3_F32};
        q3_linear(y, x, weight, bias, T, ROWS, n, Q3_F32);
        for (size_t t = 0; t < T; t++) {
            q3_linear(alone, x + t * n, weight, bias, 1, ROWS, n, Q3_F32);
            CHECKF(memcmp(alone, y + t * ROWS, sizeof alone) == 0, "T = %lu, token %lu, C = %lu",
                   (unsigned long)T, (unsigned long)t, (unsigned long)n);
        }
    }
}

/* q k uses the same lanes. It is stored before the scale, so hd = 4^n, whose scale is a power of
 * two, shows it whole. */
static void test_scores_use_lanes(void)
{
    uint64_t counter = 3000000;
    float q[256], k[256];
    for (size_t i = 0; i < 200; i++) {
        size_t hd = i % 3 == 0 ? 16 : i % 3 == 1 ? 64 : 256;
        fill(q, hd, Q3_F32, 3, &counter);
        fill(k, hd, Q3_F32, 3, &counter);
        for (size_t last = hd - 2; last < hd; last++) {
            q[last] = 1.0f;
            k[last] = -(float)plain_dot(q, k, last, 16, false);
        }
        float score, want = (float)plain_dot(q, k, hd, 16, false);
        want *= hd == 16 ? 0.25f : hd == 64 ? 0.125f : 0.0625f;
        q3_attention_scores(&score, q, k, 1, 1, 1, hd, 0, 1, 0, Q3_F32);
        CHECKF(bits32(score) == bits32(want), "hd %lu: got %08" PRIx32 ", want %08" PRIx32,
               (unsigned long)hd, bits32(score), bits32(want));
    }
}

/* The exact accumulator itself, on sums whose result is plain. */
static void test_exact_accumulator(void)
{
    exact sum = {{0}};
    CHECK(bits64(exact_round(&sum, 24, -126, 127)) == 0);
    exact_add(&sum, 0x1p-149f, 0x1p-149f);
    CHECK(exact_round(&sum, 53, -1022, 1023) == 0x1p-298);
    CHECK(bits64(exact_round(&sum, 24, -126, 127)) == 0);
    exact_add(&sum, 0x1.fffffep127f, -0x1.fffffep127f);
    CHECK(exact_round(&sum, 24, -126, 127) == -(double)INFINITY);
    exact_add(&sum, 0x1.fffffep127f, 0x1.fffffep127f);
    CHECK(exact_round(&sum, 53, -1022, 1023) == 0x1p-298);
    exact_add(&sum, -1.0f, 1.0f);
    CHECK(exact_round(&sum, 53, -1022, 1023) == -1.0);
    exact_add(&sum, -0x1p-24f, 1.0f);
    CHECK(exact_round(&sum, 24, -126, 127) == -1.0); /* just inside the tie */
    CHECK(exact_round(&sum, 25, -126, 127) == -1.0 - 0x1p-24);
    exact_add(&sum, -0x1p-149f, 0x1p-148f);
    CHECK(exact_round(&sum, 24, -126, 127) == -1.0 - 0x1p-23);
    exact_add(&sum, 65519.0f, 1.0f);
    CHECK(exact_round(&sum, 11, -14, 15) == 65504.0);
    exact_add(&sum, 3.0f, 1.0f);
    CHECK(exact_round(&sum, 11, -14, 15) == (double)INFINITY);
}

/* ==== NaN and infinity on store =============================================================== */

enum { ROOM = 64 };

/* Inputs of every operator, all set to one value; outputs likewise. */
typedef struct nan_case {
    float a[ROOM], b[ROOM], out[ROOM], scratch[ROOM];
    double wide[ROOM];
    uint8_t bytes[4 * ROOM];
    q3_tensor weight; /* bytes, filled with the value */
    q3_dtype dtype;
    int32_t ids[4];
} nan_case;

typedef struct nan_row {
    const char *name;
    size_t (*run)(nan_case *); /* returns how many outputs it wrote, all of which must be NaN */
} nan_row;

static size_t nan_round(nan_case *c)
{
    c->out[0] = q3_round((double)c->a[0], c->dtype);
    return 1;
}

static size_t nan_embedding(nan_case *c)
{
    q3_embedding(c->out, c->ids, c->weight, 2, 2, 3, c->dtype);
    return 6;
}

static size_t nan_rmsnorm_x(nan_case *c)
{
    memset(c->bytes, 0, sizeof c->bytes);
    q3_rmsnorm(c->out, c->a, c->weight, 2, 3, 1e-6f, c->dtype);
    return 6;
}

static size_t nan_rmsnorm_weight(nan_case *c)
{
    for (size_t i = 0; i < 6; i++) c->a[i] = (float)i + 1.0f;
    q3_rmsnorm(c->out, c->a, c->weight, 2, 3, 1e-6f, c->dtype);
    return 6;
}

static size_t nan_linear_x(nan_case *c)
{
    const q3_tensor none = {NULL, Q3_F32};
    memset(c->bytes, 0, sizeof c->bytes);
    q3_linear(c->out, c->a, c->weight, none, 2, 3, 5, c->dtype);
    return 6;
}

static size_t nan_linear_weight(nan_case *c)
{
    const q3_tensor none = {NULL, Q3_F32};
    memset(c->a, 0, sizeof c->a);
    q3_linear(c->out, c->a, c->weight, none, 2, 3, 5, c->dtype);
    return 6;
}

static size_t nan_linear_bias(nan_case *c)
{
    static const uint8_t zero[2 * 4 * 5];
    const q3_tensor zeros = {zero, Q3_F32};
    memset(c->a, 0, sizeof c->a);
    q3_linear(c->out, c->a, zeros, c->weight, 2, 2, 5, c->dtype);
    return 4;
}

/* 0 * infinity */
static size_t nan_rope_table(nan_case *c)
{
    float inv_freq[2] = {0.0f, 0.0f};
    float scaling = c->a[0] == c->a[0] ? c->a[0] : INFINITY;
    q3_rope_table(c->b, c->out, inv_freq, scaling, 1, 0, 4, c->dtype);
    return 4;
}

static size_t nan_rope_apply(nan_case *c)
{
    memset(c->b, 0, sizeof c->b);
    q3_rope_apply(c->out, c->a, c->b, c->b, 2, 2, 4, c->dtype);
    return 16;
}

static size_t nan_scores(nan_case *c)
{
    memset(c->b, 0, sizeof c->b);
    q3_attention_scores(c->out, c->a, c->b, 1, 2, 1, 4, 2, 3, 0, c->dtype);
    return 6;
}

static size_t nan_probs(nan_case *c)
{
    q3_attention_probs(c->out, c->a, c->wide, 1, 2, 2, 3, 0, c->dtype);
    return 6;
}

static size_t nan_values(nan_case *c)
{
    memset(c->b, 0, sizeof c->b);
    q3_attention_values(c->out, c->b, c->a, 1, 2, 1, 4, 2, 3, 0, c->dtype);
    return 8;
}

static size_t nan_router_probs(nan_case *c)
{
    q3_router_probs(c->out, c->a, 2, 5);
    return 10;
}

static size_t nan_router_weights(nan_case *c)
{
    q3_router_weights(c->out, c->a, c->ids, 2, 3, 2, true, c->dtype);
    return 4;
}

static size_t nan_router_weights_raw(nan_case *c)
{
    if (c->a[0] == c->a[0]) memset(c->a, 0xFF, sizeof c->a);
    q3_router_weights(c->out, c->a, c->ids, 2, 3, 2, false, c->dtype);
    return 4;
}

static size_t nan_expert_linear(nan_case *c, q3_projection projection)
{
    const q3_mlp one = {c->weight, c->weight, c->weight};
    const q3_mlp experts[2] = {one, one};
    memset(c->a, 0, sizeof c->a);
    q3_expert_linear(c->out, c->a, c->ids, experts, projection, c->scratch, 2, 2, 2, 3, 4,
                     c->dtype);
    return 12;
}

static size_t nan_gate(nan_case *c) { return nan_expert_linear(c, Q3_GATE_PROJ); }
static size_t nan_up(nan_case *c) { return nan_expert_linear(c, Q3_UP_PROJ); }
static size_t nan_down(nan_case *c) { return nan_expert_linear(c, Q3_DOWN_PROJ); }

static size_t nan_silu(nan_case *c)
{
    if (c->a[0] == c->a[0]) memset(c->a, 0xFF, sizeof c->a);
    q3_silu_map(c->out, c->a, 5, c->dtype);
    return 5;
}

static size_t nan_multiply(nan_case *c)
{
    memset(c->b, 0, sizeof c->b);
    q3_multiply(c->out, c->a, c->b, 5, c->dtype);
    return 5;
}

static size_t nan_residual(nan_case *c)
{
    for (size_t i = 0; i < 5; i++) c->b[i] = -c->a[i];
    q3_residual_add(c->out, c->a, c->b, 5, c->dtype);
    return 5;
}

static size_t nan_combine(nan_case *c)
{
    memset(c->b, 0, sizeof c->b);
    q3_expert_combine(c->out, c->a, c->ids, c->b, 2, 2, 3, c->dtype);
    return 6;
}

static const nan_row nan_rows[] = {
    {"round", nan_round}, {"embedding", nan_embedding}, {"rmsnorm, x", nan_rmsnorm_x},
    {"rmsnorm, weight", nan_rmsnorm_weight}, {"linear, x", nan_linear_x},
    {"linear, weight", nan_linear_weight}, {"linear, bias", nan_linear_bias},
    {"rope_table", nan_rope_table}, {"rope_apply", nan_rope_apply},
    {"attention_scores", nan_scores}, {"attention_probs", nan_probs},
    {"attention_values", nan_values}, {"router_probs", nan_router_probs},
    {"router_weights", nan_router_weights}, {"router_weights, raw", nan_router_weights_raw},
    {"expert_linear, gate", nan_gate}, {"expert_linear, up", nan_up},
    {"expert_linear, down", nan_down},
    {"silu_map", nan_silu}, {"multiply", nan_multiply}, {"residual_add", nan_residual},
    {"expert_combine", nan_combine},
};

/* Which rows make a NaN out of infinity alone: infinity over infinity, times 0, minus infinity. */
static bool infinity_makes_nan(const char *name)
{
    return strcmp(name, "round") != 0 && strcmp(name, "embedding") != 0 &&
           strcmp(name, "rmsnorm, weight") != 0 && strcmp(name, "linear, bias") != 0;
}

static void run_nan_row(const nan_row *row, uint32_t value, q3_dtype weight, q3_dtype dtype)
{
    static nan_case c;
    const int32_t ids[4] = {0, 1, 1, 0};
    memcpy(c.ids, ids, sizeof ids);
    c.dtype = dtype;
    for (size_t i = 0; i < ROOM; i++) {
        c.a[i] = c.b[i] = from32(value);
        c.out[i] = 0.0f;
    }
    c.weight = pack(c.bytes, c.a, ROOM, weight);
    size_t n = row->run(&c);
    CHECK(n > 0 && n <= ROOM);
    for (size_t i = 0; i < n; i++)
        CHECKF(bits32(c.out[i]) == 0x7FC00000u,
               "%s, input %08" PRIx32 ", dtypes %d %d, element %lu: got %08" PRIx32, row->name,
               value, (int)weight, (int)dtype, (unsigned long)i, bits32(c.out[i]));
}

static void test_nan_on_store(void)
{
    static const uint32_t values[] = {0x7FC00000, 0xFFC00000, 0x7F810000, 0xFF810000, 0x7FD50000,
                                      0xFFFF0000, 0x7F800000, 0xFF800000}; /* bfloat16 holds them */
    static const uint32_t long_nans[] = {0x7F800001, 0xFF800001, 0x7FC12345, 0xFFFFFFFF};
    static const q3_dtype dtypes[] = {Q3_F32, Q3_BF16, Q3_F16};
    for (size_t r = 0; r < sizeof nan_rows / sizeof *nan_rows; r++) {
        for (size_t d = 0; d < 3; d++) {
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                bool infinite = (values[v] & 0x7FFFFFFF) == 0x7F800000u;
                if (infinite && !infinity_makes_nan(nan_rows[r].name)) continue;
                run_nan_row(&nan_rows[r], values[v], Q3_F32, dtypes[d]);
                run_nan_row(&nan_rows[r], values[v], Q3_BF16, dtypes[d]);
            }
            for (size_t v = 0; v < sizeof long_nans / sizeof *long_nans; v++)
                run_nan_row(&nan_rows[r], long_nans[v], Q3_F32, dtypes[d]);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: test_math GOLDEN\n");
        return 2;
    }
    test_table_f32(argv[1], "exp", stored_exp);
    test_table_f32(argv[1], "silu", stored_silu);
    test_table_f32(argv[1], "sin", q3_sin);
    test_table_f32(argv[1], "cos", q3_cos);
    test_table_f64(argv[1], "exp_float64", q3_exp, false);
    test_table_f64(argv[1], "log_float64", q3_log, false);
    test_table_f64(argv[1], "sqrt_float64", q3_sqrt, true);
    test_pow(argv[1]);
    test_frequencies(argv[1]);
    test_scale(argv[1]);
    test_special_values();
    for (size_t i = 0; i < 2; i++) {
        test_round_to_half(halves[i]);
        test_widen(halves[i]);
    }
    test_round_f32();
    test_round_special();
    test_widen_f32();
    test_exact_accumulator();
    test_dots_exactly_rounded();
    test_order_of_lanes();
    test_tokens_together();
    test_scores_use_lanes();
    test_nan_on_store();
    return t_done("math");
}
