/* SPDX-License-Identifier: MIT */
/* kernels_maps.h and kernels_attention.h: every table of kernels that this processor runs against
 * the plain one, bit by bit: rounding, exp, silu, products and sums. The plain functions have their
 * own tests (test_math.c, test_ops.c, tests/exhaustive). */
#include "qwen3moe.h"
#include "t.h"

enum { N = 4099 };

static double from64(uint64_t u)
{
    double x;
    memcpy(&x, &u, 8);
    return x;
}

static uint64_t bits64(double x)
{
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}

static float from32(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t u = *state;
    u ^= u << 13;
    u ^= u >> 7;
    u ^= u << 17;
    return *state = u;
}

/* The same bits; of float64 any NaN for any NaN, since only what is stored is canonical. */
static void same_floats(const float *got, const float *want, size_t n, const char *name, int what)
{
    size_t i = 0;
    while (i < n && memcmp(&got[i], &want[i], sizeof *got) == 0) i++;
    CHECKF(i == n, "%s, %d: element %lu: got %a, want %a", name, what, (unsigned long)i,
           i < n ? (double)got[i] : 0.0, i < n ? (double)want[i] : 0.0);
}

static void same_doubles(const double *got, const double *want, size_t n, const char *name)
{
    size_t i = 0;
    while (i < n && (bits64(got[i]) == bits64(want[i]) || (got[i] != got[i] && want[i] != want[i])))
        i++;
    CHECKF(i == n, "%s: element %lu: got %a, want %a", name, (unsigned long)i,
           i < n ? got[i] : 0.0, i < n ? want[i] : 0.0);
}

static const double specials[] = {0.0, -0.0, 0x1p-1074, -0x1p-1074, 0x1p-1022,
                                  0x1.fffffffffffffp1023, -0x1.fffffffffffffp1023, 0x1p900,
                                  -0x1p900, 0x1.fffffep127, 0x1p128,
                                  0x1.ffffffp127, 65504.0, 65520.0, 65519.99, -65520.0, 65536.0};

/* Specials, infinities and NaN of every kind, at changing places. */
static void put_specials(double *x, size_t n, size_t shift)
{
    static const uint64_t odd[] = {0x7FF0000000000000u, 0xFFF0000000000000u, 0x7FF8000000000000u,
                                   0xFFF8000000000000u, 0x7FF0000000000001u, 0xFFF4000000001234u};
    size_t count = sizeof specials / sizeof *specials, odds = sizeof odd / sizeof *odd;
    for (size_t i = 0; i < count + odds && shift + 3 * i < n; i++)
        x[shift + 3 * i] = i < count ? specials[i] : from64(odd[i - count]);
}

/* Rounding: each exponent of float64, significands random, or a middle of D's numbers and its
 * neighbours. */
static void test_round(const q3_kernels *kernels)
{
    static double x[N];
    static float got[N], want[N];
    static const int kept[] = {[Q3_F32] = 23, [Q3_BF16] = 7, [Q3_F16] = 10};
    uint64_t state = 7;
    for (int d = Q3_F32; d <= Q3_F16; d++) {
        for (uint64_t e = 0; e < 2047; e++) {
            size_t n = 67 + e % 9; /* every tail */
            for (size_t i = 0; i < n; i++) {
                uint64_t u = next_random(&state), fraction = next_random(&state) >> 12;
                /* Subnormal results have fewer bits: their middles too. */
                int bits = i % 4 == 3 ? (int)(u >> 8 & 31) % (kept[d] + 1) : kept[d];
                uint64_t middle = (uint64_t)1 << (51 - bits);
                if (i % 4 != 0) fraction = (fraction & ~(2 * middle - 1)) + middle + u % 3 - 1;
                x[i] = from64((u >> 63) << 63 | e << 52 | (fraction & 0xFFFFFFFFFFFFF));
            }
            kernels->round(got, x, n, (q3_dtype)d);
            for (size_t i = 0; i < n; i++) want[i] = q3_round(x[i], (q3_dtype)d);
            same_floats(got, want, n, kernels->name, d);
        }
        for (size_t shift = 0; shift < 8; shift++) {
            put_specials(x, 97, shift);
            kernels->round(got, x, 97, (q3_dtype)d);
            for (size_t i = 0; i < 97; i++) want[i] = q3_round(x[i], (q3_dtype)d);
            same_floats(got, want, 97, kernels->name, d);
        }
    }
}

/* exp: |x| up to 800, tiny x, all bits, and the neighbours of the half multiples of ln 2, where the
 * rounding of x / ln 2 decides; subnormal results; y == x. */
static void test_exp(const q3_kernels *kernels)
{
    static double x[N], got[N], want[N];
    uint64_t state = 11;
    for (size_t round = 0; round < 60; round++) {
        size_t n = N - round % 40;
        for (size_t i = 0; i < n; i++) {
            uint64_t u = next_random(&state);
            double unit = (double)(u >> 11) * 0x1p-53;
            if (i % 5 == 0) x[i] = (unit - 0.5) * 1600.0;
            if (i % 5 == 1) x[i] = from64(next_random(&state));
            if (i % 5 == 2) x[i] = (unit - 0.5) / (double)((uint64_t)1 << (u & 63));
            if (i % 5 == 3) x[i] = -unit * 40.0 - (u & 1 ? 705.0 : 0.0);
            if (i % 5 == 4) {
                x[i] = ((double)(u % 2152) - 1076.0 + 0.5) * 0x1.62e42fefa39efp-1;
                x[i] = from64(bits64(x[i]) + (u >> 40) % 7 - 3);
            }
        }
        put_specials(x, n, round);
        x[n - 1] = -745.2, x[n - 2] = 709.79, x[n - 3] = -745.13, x[n - 4] = 709.78;
        for (size_t i = 0; i < n; i++) want[i] = q3_exp(x[i]);
        kernels->exp(got, x, n);
        same_doubles(got, want, n, kernels->name);
        kernels->exp(x, x, n);
        same_doubles(x, want, n, kernels->name);
    }
}

/* float32 arguments in steps over all of them, for silu in each dtype; exp of the same. */
static void test_silu(const q3_kernels *kernels)
{
    static float x[N], got[N], want[N];
    static double wide[N], e[N], right[N];
    for (uint64_t u = 0; u < (uint64_t)1 << 32;) {
        for (size_t i = 0; i < N; i++, u += 11003) x[i] = from32((uint32_t)u);
        q3_dtype dtype = (q3_dtype)(u / 11003 / N % 3);
        x[u % 64] = from32(0xFF800000u), x[64 + u % 64] = from32(0x7F800000u);
        x[N - 1] = from32(0xFF800001u); /* signalling */
        for (size_t i = 0; i < N; i++) {
            want[i] = q3_round(q3_silu((double)x[i]), dtype);
            wide[i] = (double)x[i];
            right[i] = q3_exp(wide[i]);
        }
        kernels->silu(got, x, N, dtype);
        same_floats(got, want, N, kernels->name, (int)dtype);
        kernels->exp(e, wide, N);
        same_doubles(e, right, N, kernels->name);
    }
}

/* Products and sums of float32 of any bits, of every short length; y may be an operand. */
static void test_pairs(const q3_kernels *kernels)
{
    static float a[N], b[N], got[N], product[N], sum[N];
    uint64_t state = 5;
    for (size_t n = 0; n < 200; n++) {
        q3_dtype dtype = (q3_dtype)(n % 3);
        for (size_t i = 0; i < n; i++) {
            uint64_t u = next_random(&state);
            uint32_t near = 0x30000000u + ((uint32_t)(u >> 32) & 0x9FFFFFFFu); /* fewer overflows */
            a[i] = from32((uint32_t)u);
            b[i] = from32(i % 3 == 0 ? (uint32_t)(u >> 32) : near);
            product[i] = q3_round((double)a[i] * (double)b[i], dtype);
            sum[i] = q3_round((double)a[i] + (double)b[i], dtype);
        }
        kernels->multiply(got, a, b, n, dtype);
        same_floats(got, product, n, kernels->name, (int)dtype);
        kernels->add(got, a, b, n, dtype);
        same_floats(got, sum, n, kernels->name, (int)dtype);
        memcpy(got, a, n * sizeof *a);
        kernels->multiply(got, got, b, n, dtype);
        same_floats(got, product, n, kernels->name, (int)dtype);
        kernels->add(b, a, b, n, dtype);
        same_floats(b, sum, n, kernels->name, (int)dtype);
    }
}

/* What attention is made of: float32 below 1.5, and where `odd` says so one value that is not. */
static void fill(float *x, size_t n, uint64_t *state, q3_dtype dtype, unsigned odd)
{
    static const uint32_t odds[] = {0x7F800000u, 0xFFC00001u, 0x7F61B1E6u, 0xFF800000u,
                                    0x80000001u};
    for (size_t i = 0; i < n; i++) {
        double unit = (double)(next_random(state) >> 11) * 0x1p-53;
        x[i] = q3_round(3.0 * unit - 1.5, dtype);
    }
    if (odd < sizeof odds / sizeof *odds && n > 0) x[*state % n] = from32(odds[odd]);
}

/* Two products of 2^44 that cancel, in two lanes: what is left depends on the order of the sum. */
static void cancel(float *x, size_t rows, size_t hd, float sign)
{
    for (size_t i = 0; hd > 3 && i < rows; i++) {
        x[i * hd + 2] = 0x1p22f;
        x[i * hd + 3] = sign * 0x1p22f;
    }
}

/* Attention in tiles against the plain operators; returns whether it was done. */
static bool check_attention(const q3_kernels *kernels, q3_attention a, unsigned odd,
                            uint64_t *state)
{
    size_t S = a.first + a.T, rows = a.T * a.H, keys = S * a.K;
    float *q = malloc(rows * a.hd * sizeof *q), *k = malloc(keys * a.hd * sizeof *k);
    float *v = malloc(keys * a.hd * sizeof *v), *scores = malloc(rows * S * sizeof *scores);
    float *got = malloc(rows * a.hd * sizeof *got), *want = malloc(rows * a.hd * sizeof *want);
    double *scratch = malloc(S * sizeof *scratch);
    fill(q, rows * a.hd, state, a.dtype, odd / 16 % 16);
    fill(k, keys * a.hd, state, a.dtype, odd / 256 % 16);
    fill(v, keys * a.hd, state, a.dtype, odd % 16);
    if (a.dtype == Q3_F32 && odd % 16 > 8) {
        cancel(q, rows, a.hd, 1.0f);
        cancel(k, keys, a.hd, -1.0f);
    }
    a.q = q, a.k = k, a.v = v, a.y = got;
    bool done = kernels->attend(&a);
    q3_attention_scores(scores, q, k, a.T, a.H, a.K, a.hd, a.first, S, a.window, a.dtype);
    q3_attention_probs(scores, scores, scratch, a.T, a.H, a.first, S, a.window, a.dtype);
    q3_attention_values(want, scores, v, a.T, a.H, a.K, a.hd, a.first, S, a.window, a.dtype);
    if (done) same_floats(got, want, rows * a.hd, kernels->name, (int)a.T);
    free(q), free(k), free(v), free(scores), free(got), free(want), free(scratch);
    return done;
}

/* Groups and tokens that fill vectors and that do not, windows smaller and larger than a tile, head
 * dimensions on and off the lanes, more rows than a tile has; infinities, NaN and overflow in each
 * argument. More keys than the scratch holds: not done. */
static void test_attention(const q3_kernels *kernels)
{
    uint64_t state = 17;
    size_t done = 0;
    const q3_kernels *before = q3_use_kernels(q3_plain_kernels());
    for (unsigned c = 0; c < 240; c++) {
        uint64_t u = next_random(&state);
        size_t share = 1 + u % 5, K = 1 + (u >> 8) % 3;
        q3_attention a = {.H = share * K, .K = K, .hd = 2 + 2 * ((u >> 16) % 40),
                          .T = 1 + (u >> 24) % 20, .first = (u >> 32) % 90,
                          .dtype = (q3_dtype)(c % 3)};
        if (c % 2 != 0) a.window = 1 + (u >> 40) % 60;
        if (c % 16 == 0) a.hd = 128, a.T = 1 + (u >> 24) % 90;
        unsigned odd = c % 4 != 0 ? 0xFFF : (unsigned)(u >> 48 & 0xFFF);
        done += check_attention(kernels, a, odd, &state);
    }
    CHECKF(done > 150, "%s: %lu of 240", kernels->name, (unsigned long)done);
    q3_attention few = {.H = 64, .K = 1, .hd = 16, .T = 1, .first = (size_t)1 << 20};
    CHECK(!kernels->attend(&few));
    q3_use_kernels(before);
}

int main(void)
{
    const q3_kernels *kernels;
    for (size_t i = 1; (kernels = q3_kernels_available(i)) != NULL; i++) {
        test_round(kernels);
        test_exp(kernels);
        test_silu(kernels);
        test_pairs(kernels);
        test_attention(kernels);
    }
    CHECK(q3_kernels_available(0) == q3_plain_kernels());
    return t_done("maps");
}
