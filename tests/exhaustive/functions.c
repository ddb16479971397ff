/* SPDX-License-Identifier: MIT */
/* Every float32 input of exp, silu, sin and cos, through several builds of qwen3moe.c, against
 * the correctly rounded value.
 * usage: functions FUNCTION LIBRARY...    FUNCTION: sin, cos, exp, silu
 *        functions FUNCTION               prints the hardest inputs only
 *
 * The expected value. y is the C library's double result. If y (1 - 2^-40) and y (1 + 2^-40)
 * round to the same float32, so does every real number between them, because rounding is
 * monotonic; the true value lies between them as long as the C library's relative error is below
 * 2^-40, which is 2^12 times what glibc states for exp, sin and cos (one unit of 2^-53 and
 * less). Otherwise (one input in 2^15, and many subnormal results) MPFR decides. It also checks
 * one input in 2^16 whatever the quick path said, so that the margin itself is tested.
 * silu below 2^-125: x/2 + x^2/4 - ... lies above x/2 by less than 2^-124 |x|, so the value is
 * x/2 rounded, and rounded up where x/2 is a tie; MPFR checks the sample there too. */
#include "reference.h"
#include "under_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1 << 12, SAMPLE = 1 << 16, LIBRARIES = 8, HARDEST = 24 };

/* Bit patterns without the sign. */
typedef struct range { uint32_t first, last; bool negative; } range;

typedef struct task {
    const char *name;
    function f;
    bool mirrored; /* f(-x) is tested against f(x) too */
    size_t ranges;
    range part[2];
} task;

/* sin, cos: |x| <= 2^20. exp: outside these parts the result is 1 (|x| < 2^-27), 0 or infinity,
 * tested at their ends only. silu: every finite x. */
static const task tasks[] = {
    {"sin", F_SIN, true, 1, {{0, 0x49800000u, false}, {0, 0, false}}},
    {"cos", F_COS, true, 1, {{0, 0x49800000u, false}, {0, 0, false}}},
    {"exp", F_EXP, false, 2, {{0x32000000u, 0x43000000u, false}, {0x32000000u, 0x43000000u, true}}},
    {"silu", F_SILU, false, 2, {{0, 0x7F7FFFFFu, false}, {0, 0x7F7FFFFFu, true}}},
};

static struct { double log2; float x; } hardest[HARDEST];
static uint64_t mpfr_calls;

static void remember(function f, float x)
{
    double h = hardness(f, (double)x);
    if (h == -1000.0 || h >= hardest[HARDEST - 1].log2) return;
    size_t i = HARDEST - 1;
    for (; i > 0 && h < hardest[i - 1].log2; i--) hardest[i] = hardest[i - 1];
    hardest[i].log2 = h;
    hardest[i].x = x;
}

static double quick(function f, double x)
{
    if (f == F_SIN) return sin(x);
    if (f == F_COS) return cos(x);
    return f == F_EXP ? exp(x) : x / (1.0 + exp(-x));
}

static float by_mpfr(function f, float x)
{
    mpfr_calls++;
    return (float)correct(f, (double)x, 0.0, F32);
}

/* The float32 nearest to x/2 for |x| < 2^-125, ties upwards. */
static float half_up(float x)
{
    int64_t n = (int64_t)ldexp((double)x, 149); /* x = n * 2^-149 */
    int64_t half = (n + 1 - ((n + 1) % 2 + 2) % 2) / 2;
    return n < 0 && half == 0 ? -0.0f : (float)ldexp((double)half, -149);
}

static float expected(function f, float x)
{
    if (f == F_SILU && fabsf(x) < 0x1p-125f && x != 0.0f) return half_up(x);
    double y = quick(f, (double)x);
    float a = (float)(y * (1.0 - 0x1p-40)), b = (float)(y * (1.0 + 0x1p-40));
    if (bits32(a) == bits32(b)) return a;
    if (fabs(y) > 0x1p-120) remember(f, x);
    return by_mpfr(f, x);
}

static void call(float *y, const float *x, size_t n, function f, const under_test *library)
{
    if (f == F_SIN)
        for (size_t i = 0; i < n; i++) y[i] = library->sin(x[i]);
    else if (f == F_COS)
        for (size_t i = 0; i < n; i++) y[i] = library->cos(x[i]);
    else if (f == F_EXP)
        for (size_t i = 0; i < n; i++) y[i] = library->round(library->exp((double)x[i]), Q3_F32);
    else
        for (size_t i = 0; i < n; i++) y[i] = library->round(library->silu((double)x[i]), Q3_F32);
}

typedef struct tally {
    const char *name;
    const under_test *library;
    uint64_t inputs, misrounded, tiny_ties; /* tiny_ties: silu's named exception */
    double seconds;
} tally;

static void compare(tally *t, function f, const float *x, const float *want, size_t n)
{
    float got[BLOCK];
    double start = seconds();
    call(got, x, n, f, t->library);
    t->seconds += seconds() - start;
    t->inputs += n;
    if (memcmp(got, want, n * sizeof *got) == 0) return;
    for (size_t i = 0; i < n; i++) {
        if (bits32(got[i]) == bits32(want[i])) continue;
        if (f == F_SILU && fabsf(x[i]) < 0x1p-125f) {
            t->tiny_ties++;
            continue;
        }
        if (t->misrounded++ < 20)
            printf("%s: %s(%a, 0x%08x): got 0x%08x, want 0x%08x\n", t->name, f == F_SIN ? "sin" :
                   f == F_COS ? "cos" : f == F_EXP ? "exp" : "silu", (double)x[i], bits32(x[i]),
                   bits32(got[i]), bits32(want[i]));
    }
}

/* One block of consecutive floats: the expected values once, then every build. */
static uint64_t run_block(const task *job, tally *tallies, size_t count, const float *x, size_t n)
{
    float want[BLOCK], mirror[BLOCK];
    uint64_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        want[i] = expected(job->f, x[i]);
        if (bits32(x[i]) % SAMPLE == 0 && bits32(by_mpfr(job->f, x[i])) != bits32(want[i])) {
            printf("the quick path is wrong at %a\n", (double)x[i]);
            wrong++;
        }
    }
    for (size_t c = 0; c < count; c++) compare(&tallies[c], job->f, x, want, n);
    if (!job->mirrored) return wrong;
    for (size_t i = 0; i < n; i++) {
        mirror[i] = -x[i];
        if (job->f == F_SIN) want[i] = -want[i];
    }
    for (size_t c = 0; c < count; c++) compare(&tallies[c], job->f, mirror, want, n);
    return wrong;
}

/* exp beyond its parts, and the special values. */
static uint64_t run_ends(const task *job, tally *tallies, size_t count)
{
    static const uint32_t exp_ends[] = {0, 1, 0x007FFFFF, 0x00800000, 0x1F000000, 0x31FFFFFF,
                                        0x43000001, 0x44000000, 0x4B000000, 0x60000000, 0x7F7FFFFF,
                                        0x7F800000};
    float x[2 * sizeof exp_ends / sizeof *exp_ends], want[2 * sizeof exp_ends / sizeof *exp_ends];
    size_t n = 0;
    if (job->f == F_EXP) {
        for (size_t i = 0; i < sizeof exp_ends / sizeof *exp_ends; i++) {
            x[n++] = from32(exp_ends[i]);
            x[n++] = from32(exp_ends[i] | 0x80000000u);
        }
    } else if (job->f == F_SILU) {
        x[n++] = INFINITY;
        x[n++] = -INFINITY;
    }
    for (size_t i = 0; i < n; i++) {
        want[i] = isinf(x[i]) ? (x[i] > 0 ? INFINITY : job->f == F_EXP ? 0.0f : -0.0f)
                              : (float)correct(job->f, (double)x[i], 0.0, F32);
    }
    for (size_t c = 0; c < count; c++) compare(&tallies[c], job->f, x, want, n);
    return 0;
}

static const task *find(const char *name)
{
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
        if (strcmp(tasks[i].name, name) == 0) return &tasks[i];
    fprintf(stderr, "functions: %s: expected sin, cos, exp or silu\n", name);
    exit(2);
}

/* Of the 2^23 odd multiples of 2^-149 below 2^-125 of each sign, those whose half lies between
 * an even multiple below and an odd one above. */
#define TINY_TIES ((uint64_t)1 << 23)

static int report(const task *job, const tally *tallies, size_t count, double reference,
                  uint64_t wrong)
{
    int status = wrong != 0;
    for (size_t c = 0; c < count; c++) {
        const tally *t = &tallies[c];
        printf("| %s, float32 | %s | %llu | %llu | %.0f |\n", job->name, t->name,
               (unsigned long long)t->inputs, (unsigned long long)t->misrounded, t->seconds);
        if (t->misrounded != 0) status = 1;
        if (job->f == F_SILU) {
            printf("| of these, ties below 2^-125 | %s | 16777216 | %llu | |\n", t->name,
                   (unsigned long long)t->tiny_ties);
            if (t->tiny_ties != TINY_TIES) status = 1;
        }
    }
    printf("%s: reference %.0f s, MPFR %llu times; hardest:\n", job->name, reference,
           (unsigned long long)mpfr_calls);
    for (size_t i = 0; i < HARDEST && hardest[i].log2 < 0.0; i++)
        printf("hard %s %08x %.2f\n", job->name, bits32(hardest[i].x), hardest[i].log2);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 2 + LIBRARIES) return 2;
    const task *job = find(argv[1]);
    size_t count = (size_t)(argc - 2);
    tally tallies[LIBRARIES] = {{0}};
    for (size_t c = 0; c < count; c++) {
        const char *slash = strrchr(argv[2 + c], '/');
        tallies[c].name = slash != NULL ? slash + 1 : argv[2 + c];
        tallies[c].library = load_under_test(argv[2 + c]);
    }
    double start = seconds();
    uint64_t wrong = 0;
    for (size_t p = 0; p < job->ranges; p++) {
        const range *part = &job->part[p];
        uint32_t sign = part->negative ? 0x80000000u : 0;
        for (uint64_t u = part->first; u <= part->last; u += BLOCK) {
            float x[BLOCK];
            size_t n = 0;
            for (; n < BLOCK && u + n <= part->last; n++) x[n] = from32((uint32_t)(u + n) | sign);
            wrong += run_block(job, tallies, count, x, n);
        }
    }
    wrong += run_ends(job, tallies, count);
    double spent = seconds() - start;
    for (size_t c = 0; c < count; c++) spent -= tallies[c].seconds;
    return report(job, tallies, count, spent, wrong);
}
