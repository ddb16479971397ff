/* SPDX-License-Identifier: MIT */
/* What has too many inputs to try each, or few enough to try all in seconds, through several
 * builds of qwen3moe.c, against MPFR: exp and log of float64, their errors before the last
 * rounding, pow of RoPE, sqrt, the scale of attention, conversions; and hashes of exp and
 * softmax, which must be equal in all builds.
 * usage: values LIBRARY... */
#include "reference.h"
#include "under_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIBRARIES = 8 };

typedef struct result {
    uint64_t inputs, misrounded; /* not the correctly rounded value */
    double worst;                /* largest error of a result, in ulp of float64 */
    double mean;                 /* of the same */
    uint64_t hash;
} result;

static const char *name;          /* of the build that is tested */
static const under_test *library; /* its functions */
static bool first_build;          /* is it the first? Then what is the same in all is printed */
static int status;
static size_t row_index;          /* of the table's rows for this build */
static uint64_t first_hash[32];   /* of the rows, in the first build */

static uint64_t mix(uint64_t hash, uint64_t value)
{
    return (hash ^ value) * UINT64_C(0x100000001B3);
}

static void row(const char *what, result r, bool correctly, double start)
{
    printf("| %s | %s | %llu | %llu | %.0f |", what, name, (unsigned long long)r.inputs,
           (unsigned long long)r.misrounded, seconds() - start);
    if (r.worst > 0.0)
        printf(" largest error %.4f ulp, mean %.4f", r.worst, r.mean / (double)r.inputs);
    if (r.hash != 0) printf(" hash %016llx", (unsigned long long)r.hash);
    printf("\n");
    fflush(stdout);
    if (r.inputs == 0 || (correctly && r.misrounded != 0)) status = 1;
    if (row_index < sizeof first_hash / sizeof *first_hash) {
        if (first_hash[row_index] == 0) first_hash[row_index] = r.hash;
        if (first_hash[row_index] != r.hash) {
            printf("%s: %s: other bits than the first build\n", what, name);
            status = 1;
        }
    }
    row_index++;
}

/* One float64 result against its function. */
static void judge(result *r, function f, double x, double got)
{
    double error = error_in_ulp(f, x, got, 0.0, 0);
    if (!(error <= 0.5)) r->misrounded++; /* an exact half does not occur */
    if (!(error <= r->worst)) r->worst = error;
    r->mean += error;
    r->inputs++;
    r->hash = mix(r->hash, bits64(got));
}

/* ==== exp and log of float64 ================================================================== */

/* Normal results: the middles of k's intervals ((k + 1/2) ln 2), where |r| is largest, and
 * multiples of ln 2, where it is smallest, both with neighbours; tiny arguments; random ones. */
static void exp_normal(void)
{
    double start = seconds();
    uint64_t state = 11;
    result r = {0};
    for (int k = -1021; k <= 1022; k++) {
        double middle = (k + 0.5) * 0x1.62e42fefa39efp-1, whole = k * 0x1.62e42fefa39efp-1;
        for (int d = -20; d <= 20; d++) {
            judge(&r, F_EXP, from64(bits64(middle) + (uint64_t)(int64_t)d),
                  library->exp(from64(bits64(middle) + (uint64_t)(int64_t)d)));
            if (k == 0) continue;
            judge(&r, F_EXP, from64(bits64(whole) + (uint64_t)(int64_t)d),
                  library->exp(from64(bits64(whole) + (uint64_t)(int64_t)d)));
        }
    }
    for (int i = 0; i < 200000; i++) {
        double x = ldexp(random_between(&state, -1.0, 1.0), i % 1000 - 990);
        judge(&r, F_EXP, x, library->exp(x));
    }
    for (int i = 0; i < 1000000; i++) {
        double x = i % 2 == 0 ? random_between(&state, -708.3, 709.7)
                              : random_between(&state, -40.0, 0.0);
        judge(&r, F_EXP, x, library->exp(x));
    }
    row("exp, float64, normal results", r, false, start);
    if (!(r.worst < 0.75)) status = 1;
}

static void exp_subnormal(void)
{
    double start = seconds();
    uint64_t state = 12;
    result r = {0};
    for (int i = 0; i < 500000; i++) {
        double x = random_between(&state, -745.1332, -708.3964185322641);
        judge(&r, F_EXP, x, library->exp(x));
    }
    row("exp, float64, subnormal results", r, false, start);
    if (!(r.worst < 1.0)) status = 1;
}

static void log_normal(void)
{
    double start = seconds();
    uint64_t state = 13;
    result r = {0};
    for (int i = 0; i < 500000; i++) {
        int e = (int)(next_random(&state) % 2045) - 1022;
        double x = ldexp(random_between(&state, 1.0, 2.0), e);
        judge(&r, F_LOG, x, library->log(x));
        x = random_between(&state, 0.5, 2.0);
        judge(&r, F_LOG, x, library->log(x));
        x = 1.0 + ldexp(random_between(&state, -1.0, 1.0), -(i % 52));
        if (x > 0.0) judge(&r, F_LOG, x, library->log(x));
    }
    row("log, float64", r, false, start);
    if (!(r.worst < 0.75)) status = 1;
}

/* ==== Errors before the last rounding ========================================================= */

static void kernel(const char *what, function f, double low, double high)
{
    uint64_t state = 14;
    double worst = -1000.0, at = 0.0, h, l;
    for (int i = 0; i < 400000; i++) {
        double x = (double)(float)random_between(&state, low, high);
        if (i % 4 == 0) x = (double)(float)ldexp(random_between(&state, 0.5, 1.0), -(i % 100) / 4);
        if (f == F_EXP && i % 2 == 0) x = random_between(&state, low, high);
        int k = 0;
        if (f == F_EXP) library->exp_parts(x, &h, &l, &k);
        if (f == F_SIN) library->sin_parts(x, &h, &l);
        if (f == F_COS) library->cos_parts(x, &h, &l);
        if (f == F_LOG) library->log_parts(x, &h, &l);
        double error = error_log2(f, x, h, l, k);
        if (error <= worst) continue;
        worst = error;
        at = x;
    }
    printf("%s: high + low is off by at most 2^%.2f of the result (at %a)\n", what, worst, at);
}

/* ==== pow ===================================================================================== */

static void judge_pow(result *r, float base, float y)
{
    float got = library->pow(base, y), want = (float)correct(F_POW, (double)base, (double)y, F32);
    r->inputs++;
    if (bits32(got) == bits32(want)) return;
    if (r->misrounded++ < 20)
        printf("pow(%a, %a): got %a, want %a\n", (double)base, (double)y, (double)got,
               (double)want);
}

/* Every frequency of every even head_dim up to 512, for thetas of published models and some
 * others. */
static void pow_default(void)
{
    static const float thetas[] = {1e3f, 1e4f, 1.5e5f, 5e5f, 1e6f, 5e6f, 8e6f, 1e7f, 1e8f};
    double start = seconds();
    result r = {0};
    for (size_t t = 0; t < sizeof thetas / sizeof *thetas; t++)
        for (int hd = 2; hd <= 512; hd += 2)
            for (int j = 0; j < hd; j += 2)
                judge_pow(&r, thetas[t], (float)((double)j / (double)hd));
    row("pow, theta^(2j/hd)", r, true, start);
}

/* Dynamic RoPE: the growth of theta for random lengths, then every frequency of the grown theta. */
static void pow_dynamic(void)
{
    static const float factors[] = {1.5f, 2.0f, 2.5f, 4.0f, 8.0f, 32.0f};
    static const float longest[] = {2048.0f, 32768.0f, 40960.0f, 262144.0f};
    double start = seconds();
    uint64_t state = 15;
    result r = {0};
    for (int i = 0; i < 6000; i++) {
        float theta = i % 3 == 0 ? 1e4f : i % 3 == 1 ? 1e6f : 1e7f, factor = factors[i % 6];
        float max = longest[i / 6 % 4], hd = (float)(4 + 2 * (next_random(&state) % 127));
        if (i % 2 == 0) hd = 128.0f;
        float length = max + 1.0f + (float)(next_random(&state) % (1048576 - 262144));
        float ratio = (factor * length / max) - (factor - 1.0f);
        float y = (float)((double)hd / ((double)hd - 2.0));
        judge_pow(&r, ratio, y);
        float grown = theta * (float)correct(F_POW, (double)ratio, (double)y, F32);
        for (int j = 0; j < (int)hd; j += 2) judge_pow(&r, grown, (float)((double)j / (double)hd));
    }
    row("pow, dynamic RoPE", r, true, start);
}

/* ==== sqrt and the scale ====================================================================== */

static void judge_sqrt(result *r, double x)
{
    r->inputs++;
    if (bits64(library->sqrt(x)) == bits64(correct(F_SQRT, x, 0.0, F64))) return;
    if (r->misrounded++ < 20) printf("sqrt(%a): got %a\n", x, library->sqrt(x));
}

/* Random bits; squares and the squares of middles of two results, with neighbours; subnormals. */
static void sqrt_all(void)
{
    double start = seconds();
    uint64_t state = 16;
    result r = {0};
    for (int i = 0; i < 300000; i++) {
        double root = random_between(&state, 1.0, 2.0);
        long double middle = (long double)root + 0x1p-53L;
        int e = 2 * ((int)(next_random(&state) % 1020) - 510);
        for (int d = -1; d <= 1; d++) {
            double x = from64(bits64((double)(middle * middle)) + (uint64_t)(int64_t)d);
            judge_sqrt(&r, ldexp(x, e));
        }
        double small = ldexp((double)(next_random(&state) >> 38 | 1), e / 4);
        for (int d = -1; d <= 1; d++)
            judge_sqrt(&r, from64(bits64(small * small) + (uint64_t)(int64_t)d));
        judge_sqrt(&r, from64(next_random(&state) % UINT64_C(0x7FF0000000000000)));
        judge_sqrt(&r, from64(next_random(&state) >> (12 + i % 52)));
    }
    row("sqrt, float64", r, true, start);
}

static void scale_all(void)
{
    static float unit[4096];
    double start = seconds();
    result r = {0};
    unit[0] = 1.0f;
    for (size_t hd = 2; hd <= 4096; hd += 2, r.inputs++) {
        float score;
        library->attention_scores(&score, unit, unit, 1, 1, 1, hd, 0, 1, 0, Q3_F32);
        if (bits32(score) != bits32((float)correct(F_RSQRT, (double)hd, 0.0, F32))) r.misrounded++;
    }
    row("scale hd^-0.5, even hd to 4096", r, true, start);
}

/* ==== Conversions ============================================================================= */

static void judge_round(result *r, double x, q3_dtype dtype, format to)
{
    double got = (double)library->round(x, dtype), want = correct(F_ID, x, 0.0, to);
    r->inputs++;
    if (bits64(got) == bits64(want)) return;
    if (r->misrounded++ < 20)
        printf("round(%a) to dtype %d: got %a, want %a\n", x, (int)dtype, got, want);
}

/* Every value of a 16-bit format, the middles, and the doubles beside each; then random doubles
 * over the format's exponents. */
static void round_all(const char *what, q3_dtype dtype, format to)
{
    double start = seconds();
    uint64_t state = 17;
    result r = {0};
    int smallest = to.emin - to.precision + 1;
    for (int e = to.emin; e <= to.emax; e++) {
        for (int m = 0; m < 1 << to.precision; m++) {
            if (e != to.emin && m < 1 << (to.precision - 1)) continue;
            int unit = e - to.precision + 1;
            double x = ldexp(m, unit), middle = ldexp(m + 0.5, unit);
            for (int d = -1; d <= 1; d++) {
                judge_round(&r, from64(bits64(middle) + (uint64_t)(int64_t)d), dtype, to);
                judge_round(&r, -from64(bits64(middle) + (uint64_t)(int64_t)d), dtype, to);
                if (m + d < 0) continue;
                judge_round(&r, from64(bits64(x) + (uint64_t)(int64_t)d), dtype, to);
                judge_round(&r, -from64(bits64(x) + (uint64_t)(int64_t)d), dtype, to);
            }
        }
    }
    for (int i = 0; i < 300000; i++) {
        int e = smallest - 4 + (int)(next_random(&state) % (uint64_t)(to.emax - smallest + 8));
        judge_round(&r, ldexp(random_between(&state, -2.0, 2.0), e), dtype, to);
    }
    row(what, r, true, start);
}

/* float64 to float32: random values, middles and the doubles beside them. */
static void round_f32(void)
{
    double start = seconds();
    uint64_t state = 18;
    result r = {0};
    for (int i = 0; i < 500000; i++) {
        uint32_t u = (uint32_t)next_random(&state) & 0x7FFFFFFF;
        if (i % 4 == 0) u &= 0x00FFFFFF;
        if (u >> 23 == 0xFF) continue;
        double low = (double)from32(u), high = u == 0x7F7FFFFF ? 0x1p128 : (double)from32(u + 1);
        double middle = (low + high) / 2.0;
        for (int d = -1; d <= 1; d++)
            judge_round(&r, from64(bits64(middle) + (uint64_t)(int64_t)d), Q3_F32, F32);
        judge_round(&r, -random_between(&state, low, high), Q3_F32, F32);
    }
    row("float64 to float32, middles", r, true, start);
}

/* All 65536 encodings: the value by the format's definition, NaN as NaN. */
static void widen_all(const char *what, q3_dtype dtype, format from)
{
    double start = seconds();
    result r = {0};
    for (uint32_t code = 0; code < 0x10000; code++, r.inputs++) {
        uint8_t bytes[2] = {(uint8_t)(code & 0xFF), (uint8_t)(code >> 8)};
        const q3_tensor tensor = {bytes, dtype};
        float got;
        library->widen(&got, tensor, 0, 1, Q3_F32);
        int fraction_bits = from.precision - 1, ones = (1 << (15 - fraction_bits)) - 1;
        int e = (int)(code & 0x7FFF) >> fraction_bits;
        int fraction = (int)code & ((1 << fraction_bits) - 1);
        int significand = e == 0 ? fraction : fraction | 1 << fraction_bits;
        double want = ldexp(significand, (e == 0 ? 1 : e) + from.emin - 1 - fraction_bits);
        if (e == ones) want = fraction == 0 ? INFINITY : NAN;
        if (code >> 15 != 0) want = -want;
        bool same = want != want ? got != got : bits64((double)got) == bits64(want);
        if (!same) r.misrounded++;
    }
    row(what, r, true, start);
}

/* silu of every value of a 16-bit format, rounded to it once: the run's act_fn. */
static void silu_half(const char *what, q3_dtype dtype, format to)
{
    double start = seconds();
    result r = {0};
    uint64_t ties = 0;
    for (uint32_t code = 0; code < 0x10000; code++) {
        uint8_t bytes[2] = {(uint8_t)(code & 0xFF), (uint8_t)(code >> 8)};
        const q3_tensor tensor = {bytes, dtype};
        float x, got;
        library->widen(&x, tensor, 0, 1, Q3_F32);
        if (isnan(x) || isinf(x)) continue;
        library->silu_map(&got, &x, 1, dtype);
        r.inputs++;
        if (bits32(got) == bits32((float)correct(F_SILU, (double)x, 0.0, to))) continue;
        if (fabsf(x) < 0x1p-125f)
            ties++;
        else if (r.misrounded++ < 20)
            printf("silu(%a) to dtype %d: got %a\n", (double)x, (int)dtype, (double)got);
    }
    row(what, r, true, start);
    if (first_build)
        printf("%s: besides, %llu ties below 2^-125\n", what, (unsigned long long)ties);
}

/* ==== Hashes: equal in every build ============================================================ */

static void hash_exp(void)
{
    double start = seconds();
    uint64_t state = 19;
    result r = {0};
    for (int i = 0; i < 10000000; i++, r.inputs++) {
        double x = i % 4 == 0 ? random_between(&state, -746.0, 710.0)
                 : i % 4 == 1 ? from64(next_random(&state)) : random_between(&state, -60.0, 0.0);
        if (x != x) x = 0.0;
        r.hash = mix(r.hash, bits64(library->exp(x)));
    }
    row("exp, float64, bits", r, false, start);
}

/* No more is promised of silu, log and pow than float32, but their bits must not depend on the
 * build. */
static void hash_others(void)
{
    double start = seconds();
    uint64_t state = 20;
    result r = {0};
    for (int i = 0; i < 2000000; i++, r.inputs++) {
        double x = random_between(&state, -800.0, 100.0);
        r.hash = mix(r.hash, bits64(library->silu(i % 2 == 0 ? x : x / 64.0)));
        r.hash = mix(r.hash, bits64(library->log(ldexp(fabs(x) + 0.1, i % 1000 - 500))));
        float base = (float)fabs(x) + 0.5f;
        r.hash = mix(r.hash, bits32(library->pow(base, (float)(i % 16000) * 0x1p-11f)));
    }
    row("silu, log, pow: bits", r, false, start);
}

static void hash_softmax(void)
{
    enum { E = 128, ROWS = 20000, S = 777 };
    static float logits[S], probs[S];
    static double scratch[S];
    double start = seconds();
    uint64_t state = 21;
    result r = {0};
    for (size_t t = 0; t < ROWS; t++) {
        double spread = t % 3 == 0 ? 1.0 : t % 3 == 1 ? 10.0 : 200.0;
        size_t n = t % 16 == 0 ? S : E;
        for (size_t e = 0; e < n; e++) logits[e] = (float)random_between(&state, -spread, spread);
        if (t % 16 == 0)
            library->attention_probs(probs, logits, scratch, 1, 1, n - 1, n, 0, Q3_F32);
        else
            library->router_probs(probs, logits, 1, n);
        for (size_t e = 0; e < n; e++, r.inputs++) r.hash = mix(r.hash, bits32(probs[e]));
    }
    row("softmax of router and attention: bits", r, false, start);
}

/* RoPE's frequencies of every type over many models. */
static void hash_rope(void)
{
    static const q3_rope_type types[] = {Q3_ROPE_DEFAULT, Q3_ROPE_LINEAR, Q3_ROPE_DYNAMIC,
                                         Q3_ROPE_YARN, Q3_ROPE_LLAMA3};
    static float inv_freq[256];
    double start = seconds();
    uint64_t state = 22;
    result r = {0};
    for (int i = 0; i < 20000; i++) {
        q3_rope rope = {.type = types[i % 5], .rope_theta = random_between(&state, 1e3, 1e7),
                        .factor = random_between(&state, 1.0, 32.0),
                        .original_max_position_embeddings = (double)(1024 << i % 6),
                        .beta_fast = 32.0, .beta_slow = 1.0, .truncate = i % 2 == 0,
                        .low_freq_factor = 1.0,
                        .high_freq_factor = random_between(&state, 2.0, 8.0)};
        size_t hd = 4 + 2 * (size_t)(next_random(&state) % 100);
        float scaling = library->rope_frequencies(inv_freq, &rope, hd, 32768, 1 + 7 * (size_t)i);
        r.hash = mix(r.hash, bits32(scaling));
        for (size_t j = 0; j < hd / 2; j++, r.inputs++) r.hash = mix(r.hash, bits32(inv_freq[j]));
    }
    row("rope_frequencies of every type: bits", r, false, start);
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 1 + LIBRARIES) return 2;
    for (int i = 1; i < argc; i++) {
        const char *slash = strrchr(argv[i], '/');
        name = slash != NULL ? slash + 1 : argv[i];
        library = load_under_test(argv[i]);
        row_index = 0;
        first_build = i == 1;
        hash_exp();
        hash_others();
        hash_softmax();
        hash_rope();
        exp_normal();
        exp_subnormal();
        log_normal();
        pow_default();
        pow_dynamic();
        sqrt_all();
        scale_all();
        round_all("float64 to bfloat16, values and middles", Q3_BF16, BF16);
        round_all("float64 to float16, values and middles", Q3_F16, F16);
        round_f32();
        widen_all("bfloat16 to float32, all", Q3_BF16, BF16);
        widen_all("float16 to float32, all", Q3_F16, F16);
        silu_half("silu, bfloat16, all", Q3_BF16, BF16);
        silu_half("silu, float16, all", Q3_F16, F16);
        if (!first_build) continue; /* the parts before rounding: one build says it */
        kernel("exp", F_EXP, -100.0, 88.0);
        kernel("exp, wide", F_EXP, -745.0, 709.0);
        kernel("sin", F_SIN, 0.0, 0x1p20);
        kernel("cos", F_COS, 0.0, 0x1p20);
        kernel("log", F_LOG, 0.0, 1e7);
    }
    return status;
}
