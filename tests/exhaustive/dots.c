/* SPDX-License-Identifier: MIT */
/* How often q3_linear's stored result is not the exactly rounded dot product, on long sums of three
 * kinds of data, against the exact accumulator; and that all builds store the same bits. Without
 * planned cancellation it must be never for bfloat16 weights, at most 1 in 100000 for float32 ones.
 * usage: dots LIBRARY... */
#include "exact.h"
#include "reference.h"
#include "under_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { LONGEST = 4096, LIBRARIES = 8 };

/* even: significands full, all exponents within a factor of 4. wide: exponents over 2^40. near:
 * a last element takes away the sum, so that about 24 bits cancel. */
typedef enum data { EVEN, WIDE, NEAR } data;

typedef struct kind {
    const char *name;
    q3_dtype run, weight;
    data data;
    size_t K, dots;
} kind;

static const kind kinds[] = {
    {"float32 run, float32 weights", Q3_F32, Q3_F32, EVEN, 256, 1000000},
    {"float32 run, float32 weights", Q3_F32, Q3_F32, EVEN, 4096, 200000},
    {"float32 run, float32 weights, wide", Q3_F32, Q3_F32, WIDE, 256, 1000000},
    {"float32 run, bfloat16 weights", Q3_F32, Q3_BF16, EVEN, 256, 1000000},
    {"float32 run, bfloat16 weights", Q3_F32, Q3_BF16, EVEN, 4096, 60000},
    {"float32 run, bfloat16 weights, wide", Q3_F32, Q3_BF16, WIDE, 256, 1000000},
    {"bfloat16 run, bfloat16 weights", Q3_BF16, Q3_BF16, EVEN, 4096, 60000},
    {"bfloat16 run, bfloat16 weights, wide", Q3_BF16, Q3_BF16, WIDE, 256, 500000},
    {"float16 run, bfloat16 weights", Q3_F16, Q3_BF16, EVEN, 256, 300000},
    {"float32 run, float32 weights, cancelling", Q3_F32, Q3_F32, NEAR, 256, 200000},
    {"bfloat16 run, bfloat16 weights, cancelling", Q3_BF16, Q3_BF16, NEAR, 256, 200000},
};

/* As many significant bits as dtype has, all random. */
static float draw(uint64_t *state, q3_dtype dtype, data how)
{
    uint64_t u = next_random(state);
    uint32_t e = how == WIDE ? 107 + (uint32_t)(u >> 32) % 41 : 126 + (uint32_t)(u >> 32) % 2;
    uint32_t mask = dtype == Q3_BF16 ? 0x7F0000 : dtype == Q3_F16 ? 0x7FE000 : 0x7FFFFF;
    uint32_t fraction = (uint32_t)u & mask;
    return from32((uint32_t)(u >> 63) << 31 | e << 23 | fraction);
}

static double exact_result(const float *w, const float *x, size_t n, q3_dtype dtype)
{
    const format to = dtype == Q3_BF16 ? BF16 : dtype == Q3_F16 ? F16 : F32;
    exact sum = {{0}};
    for (size_t i = 0; i < n; i++) exact_add(&sum, w[i], x[i]);
    return exact_round(&sum, to.precision, to.emin, to.emax);
}

static q3_tensor pack(uint8_t *bytes, const float *values, size_t count, q3_dtype dtype)
{
    size_t size = dtype == Q3_BF16 ? 2 : 4;
    for (size_t i = 0; i < count; i++)
        for (size_t b = 0; b < size; b++)
            bytes[i * size + b] = (uint8_t)(bits32(values[i]) >> (8 * (b + 4 - size)) & 0xFF);
    q3_tensor tensor = {bytes, dtype};
    return tensor;
}

static void make(float *w, float *x, uint64_t *state, const kind *k)
{
    for (size_t i = 0; i < k->K; i++) {
        x[i] = draw(state, k->run, k->data);
        w[i] = draw(state, k->weight, k->data);
    }
    if (k->data != NEAR) return;
    w[k->K - 1] = 1.0f;
    x[k->K - 1] = -(float)exact_result(w, x, k->K - 1, k->run);
}

static int run_kind(const kind *k, const under_test **libraries, size_t count)
{
    static float w[LONGEST], x[LONGEST];
    static uint8_t bytes[4 * LONGEST];
    const q3_tensor none = {NULL, Q3_F32};
    double start = seconds();
    uint64_t state = 31, different = 0, unequal = 0;
    for (size_t d = 0; d < k->dots; d++) {
        float y[LIBRARIES];
        make(w, x, &state, k);
        q3_tensor weight = pack(bytes, w, k->K, k->weight);
        for (size_t c = 0; c < count; c++) {
            libraries[c]->linear(&y[c], x, weight, none, 1, 1, k->K, k->run);
            if (bits32(y[c]) != bits32(y[0])) unequal++;
        }
        if (bits64((double)y[0]) != bits64(exact_result(w, x, k->K, k->run))) different++;
    }
    printf("| linear, %s, K = %lu | all | %lu | %llu | %.0f |", k->name, (unsigned long)k->K,
           (unsigned long)k->dots, (unsigned long long)different, seconds() - start);
    if (unequal != 0) printf(" BUILDS DIFFER: %llu", (unsigned long long)unequal);
    printf("\n");
    fflush(stdout);
    if (unequal != 0) return 1;
    if (k->data == NEAR) return 0;
    return k->weight == Q3_BF16 ? different != 0 : different * 100000 > k->dots;
}

int main(int argc, char **argv)
{
    const under_test *libraries[LIBRARIES];
    int status = 0;
    if (argc < 2 || argc > 1 + LIBRARIES) return 2;
    for (int i = 1; i < argc; i++) libraries[i - 1] = load_under_test(argv[i]);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        status |= run_kind(&kinds[i], libraries, (size_t)(argc - 1));
    return status;
}
