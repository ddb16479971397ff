/* SPDX-License-Identifier: MIT */
/* Every table of kernels that this processor runs, against sums that are computed here a second
 * time, plainly: the float64 sums by their bits, not what is left of them behind a rounding.
 *
 * Weights and tokens have full significands and exponents far apart, so that another order of the
 * additions shows; some are infinite or no numbers. Weights lie at odd addresses too. */
#include "qwen3moe.h"
#include "t.h"

#include <stdlib.h>
#include <string.h>

enum { LANES = 16, MOST = 300000 };
static const size_t size_of_dtype[] = {4, 2, 2};
static const char *const names[] = {"float32", "bfloat16", "float16"};

static uint32_t state = 1;

static uint32_t next(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8 ^ state << 16;
}

static float from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

/* Any significand, any sign, 2^-20 to 2^19. */
static uint32_t wide_float(void)
{
    uint32_t u = next();
    return (u & 0x807FFFFFu) | (107 + next() % 40) << 23;
}

/* Elements of each dtype, as files hold them; special: infinities, NaN, zeros, subnormals too. */
static void fill(uint8_t *data, q3_dtype dtype, size_t count, bool special)
{
    static const uint32_t odd[] = {0x7F800000u, 0xFF800000u, 0x7FC12345u, 0x80000000u, 0, 1};
    for (size_t i = 0; i < count; i++) {
        uint32_t u = wide_float();
        if (special && next() % 32 == 0) u = odd[next() % 6];
        if (dtype == Q3_BF16) u >>= 16;
        if (dtype == Q3_F16) u = next() & (special && next() % 32 == 0 ? 0xFFFF : 0xBFFF);
        if (dtype == Q3_F16 && !special && (u & 0x7C00) == 0x7C00) u ^= 0x4000;
        for (size_t b = 0; b < size_of_dtype[dtype]; b++)
            data[i * size_of_dtype[dtype] + b] = (uint8_t)(u >> 8 * b);
    }
}

/* An element as a number, by the format's definition. */
static double element(const uint8_t *data, q3_dtype dtype, size_t i)
{
    const uint8_t *p = data + i * size_of_dtype[dtype];
    uint32_t u = (uint32_t)p[0] | (uint32_t)p[1] << 8;
    if (dtype == Q3_BF16) return (double)from_bits(u << 16);
    if (dtype == Q3_F32)
        return (double)from_bits(u | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
    double sign = u & 0x8000 ? -1 : 1, value = (double)(u & 0x3FF);
    int exponent = (int)(u >> 10 & 0x1F);
    if (exponent == 31) return sign * (double)from_bits(value != 0 ? 0x7FC00000u : 0x7F800000u);
    if (exponent > 0) value += 1024;
    for (int k = exponent > 0 ? exponent : 1; k < 25; k++) value /= 2;
    for (int k = 25; k < exponent; k++) value *= 2;
    return sign * value;
}

/* A quantised weight of 29 bits: a float32 times 16 to 31, by its place. */
static double multiple(const uint8_t *data, size_t i)
{
    return element(data, Q3_F32, i) * (double)(16 + i % 16);
}

static void read_multiples(double *values, const q3_quantized *weight, size_t first, size_t count)
{
    for (size_t i = 0; i < count; i++) values[i] = multiple(weight->data, first + i);
}

/* An element as the products take it. */
static double weight_at(const q3_dots *d, size_t at)
{
    if (d->rows != NULL) return (double)d->rows[at];
    if (d->weight.dtype != Q3_QUANTIZED)
        return (double)q3_round(element(d->weight.data, d->weight.dtype, at), d->dtype);
    const q3_quantized *weight = d->weight.data;
    double exact = multiple(weight->data, at);
    return weight->rounded && d->dtype != Q3_F32 ? (double)q3_round(exact, d->dtype) : exact;
}

/* One sum, and the sum of its products' sizes. */
static void plainly(double *sum, double *size, const q3_dots *d, size_t t, size_t n)
{
    double lane[LANES] = {0}, large[LANES] = {0};
    for (size_t c = 0; c < d->C; c++) {
        double w = weight_at(d, n * d->row_stride + c);
        double product = w * (double)d->x[t * d->x_stride + c];
        lane[c % LANES] += product;
        large[c % LANES] += product < 0 ? -product : product;
    }
    for (size_t s = LANES / 2; s > 0; s /= 2)
        for (size_t l = 0; l < s; l++) {
            lane[l] += lane[l + s];
            large[l] += large[l + s];
        }
    *sum = lane[0];
    *size = large[0];
}

static bool same(double a, double b)
{
    return a != a ? b != b : memcmp(&a, &b, sizeof a) == 0;
}

static double sums[MOST], sizes[MOST], expected[MOST], expected_sizes[MOST];
static float y[MOST];

/* The table's results are those that were expected, in all three forms. */
static void compare(const q3_kernels *k, const q3_dots *given, const char *what)
{
    q3_dots d = *given;
    size_t wrong = 0, all = d.T * d.N;
    memset(sums, 0xA5, all * sizeof *sums);
    memset(sizes, 0xA5, all * sizeof *sizes);
    d.sums = sums;
    k->dots(&d);
    for (size_t i = 0; i < all; i++) wrong += !same(sums[i], expected[i]);
    CHECKF(wrong == 0, "%s, %s, T %zu, N %zu, C %zu: %zu sums differ", k->name, what, d.T, d.N, d.C,
           wrong);
    d.sizes = sizes;
    k->dots(&d);
    wrong = 0;
    for (size_t i = 0; i < all; i++)
        wrong += !same(sizes[i], expected_sizes[i]) || !same(sums[i], expected[i]);
    CHECKF(wrong == 0, "%s, %s, T %zu, N %zu, C %zu: %zu sizes differ", k->name, what, d.T, d.N,
           d.C, wrong);
    d.sums = d.sizes = NULL;
    d.y = y;
    d.y_stride = d.N + 3;
    for (size_t i = 0; i < d.T * d.y_stride; i++) y[i] = 77.0f;
    k->dots(&d);
    wrong = 0;
    for (size_t t = 0; t < d.T; t++)
        for (size_t n = 0; n < d.y_stride; n++) {
            double sum = n < d.N ? expected[t * d.N + n] : 77.0;
            if (n < d.N && d.bias.data != NULL)
                sum += (double)q3_round(element(d.bias.data, d.bias.dtype, n), d.dtype);
            float want = n < d.N ? q3_round(sum, d.dtype) : 77.0f;
            wrong += !same((double)y[t * d.y_stride + n], (double)want);
        }
    CHECKF(wrong == 0, "%s, %s, T %zu, N %zu, C %zu: %zu results differ", k->name, what, d.T, d.N,
           d.C, wrong);
}

/* One shape and pair of dtypes, with weights that begin `skip` bytes behind a round address. Every
 * other quantised one is rounded. */
static void try_dots(size_t T, size_t N, size_t C, q3_dtype weight, q3_dtype dtype, size_t skip,
                     bool special, bool native)
{
    size_t row_stride = C + (native ? 5 : 0), x_stride = C + N % 3;
    q3_dtype stored = weight == Q3_QUANTIZED ? Q3_F32 : weight;
    size_t bytes = N * row_stride * size_of_dtype[stored];
    uint8_t *data = malloc(bytes + skip + 1), *bias = malloc(4 * N + 1);
    float *x = malloc((T * x_stride + 1) * sizeof *x);
    if (data == NULL || bias == NULL || x == NULL) exit(1);
    fill(data + skip, stored, N * row_stride, special);
    fill(bias, Q3_F32, N, special);
    for (size_t i = 0; i < T * x_stride; i++) x[i] = from_bits(wide_float());
    if (special && T * C > 0) x[next() % (T * C)] = from_bits(0x7F800000u);
    q3_dots d = {.x = x, .x_stride = x_stride, .weight = {data + skip, weight},
                 .row_stride = row_stride, .T = T, .N = N, .C = C, .dtype = dtype};
    q3_quantized quantized = {.dequantize = read_multiples, .data = data + skip,
                              .rounded = (T + N + C) % 2 == 0};
    if (weight == Q3_QUANTIZED) d.weight.data = &quantized;
    if (native) d.rows = (const float *)(const void *)(data + skip);
    if (N % 2 == 0) d.bias = (q3_tensor){bias, Q3_F32};
    for (size_t t = 0; t < T; t++)
        for (size_t n = 0; n < N; n++)
            plainly(&expected[t * N + n], &expected_sizes[t * N + n], &d, t, n);
    char what[96];
    const char *kind = weight == Q3_QUANTIZED ? "quantised" : names[weight];
    snprintf(what, sizeof what, "%s%s in a %s run, %zu bytes on%s", native ? "rows of " : "", kind,
             names[dtype], skip, special ? ", with infinities" : "");
    const q3_kernels *k;
    for (size_t i = 0; (k = q3_kernels_available(i)) != NULL; i++) compare(k, &d, what);
    free(data);
    free(bias);
    free(x);
}

static void test_columns(void)
{
    static const size_t few[] = {1, 2, 5, 13};
    for (size_t C = 0; C <= 70; C++)
        for (q3_dtype weight = Q3_F32; weight <= Q3_F16; weight++)
            for (q3_dtype dtype = Q3_F32; dtype <= Q3_F16; dtype++) {
                size_t T = few[(C + weight + dtype) % 4], N = 1 + (7 * C + 3 * dtype) % 37;
                try_dots(T, N, C, weight, dtype, C % 4, C % 5 == 4, false);
                try_dots(1, N, C, weight, dtype, 3 - C % 4, C % 5 == 3, false);
            }
    for (size_t C = 120; C < 2200; C = 2 * C - 7)
        for (q3_dtype weight = Q3_F32; weight <= Q3_F16; weight++) {
            try_dots(1, 35, C, weight, weight, 1, false, false);
            try_dots(7, 35, C, weight, Q3_F32, 1, false, false);
        }
}

static void test_tokens(void)
{
    for (size_t T = 0; T <= 20; T++) {
        q3_dtype weight = (q3_dtype)(T % 3);
        try_dots(T, 33, 100, weight, Q3_BF16, 0, false, false);
        try_dots(T, 16, 64, Q3_F32, Q3_F16, 0, T % 2 == 0, true);
    }
    for (q3_dtype weight = Q3_F32; weight <= Q3_F16; weight++) {
        try_dots(64, 50, 131, weight, Q3_F32, 1, false, false);
        try_dots(129, 24, 48, weight, Q3_BF16, 0, true, false);
    }
}

/* Every number of tokens up to more than go without laying out the weights, in each pair of dtypes;
 * columns that end anywhere in a step, and more than are taken at once; rows that are no
 * multiple of those that go together, and more than meet the same columns. */
static void test_few_tokens(void)
{
    static const size_t columns[] = {1, 15, 17, 31, 48, 67, 129, 200}, rows[] = {25, 47, 3, 49, 26};
    size_t i = 0;
    for (size_t T = 1; T <= 26; T++)
        for (q3_dtype weight = Q3_F32; weight <= Q3_F16; weight++)
            for (q3_dtype dtype = Q3_F32; dtype <= Q3_F16; dtype++, i++)
                try_dots(T, rows[i % 5], columns[i % 8], weight, dtype, i % 3, i % 4 == 0, false);
    for (q3_dtype weight = Q3_F32; weight <= Q3_F16; weight++) {
        try_dots(8, 5, 2100, weight, weight, 1, false, false);
        try_dots(3, 4, 4129, weight, Q3_BF16, 0, true, false);
        try_dots(12, 28, 2065, weight, Q3_F32, 1, false, false);
    }
}

/* Quantised weights: every number of tokens, rows and columns that are no multiples of what is
 * decoded together. */
static void test_quantized(void)
{
    static const size_t columns[] = {1, 15, 17, 127, 128, 129, 511, 513}, rows[] = {25, 47, 3, 16};
    size_t i = 0;
    for (size_t T = 0; T <= 26; T++)
        for (q3_dtype dtype = Q3_F32; dtype <= Q3_F16; dtype++, i++)
            try_dots(T, rows[(i / 8 + i) % 4], columns[i % 8], Q3_QUANTIZED, dtype, i % 3,
                     i % 4 == 0, false);
    try_dots(1, 100, 1300, Q3_QUANTIZED, Q3_F32, 1, false, false);
    try_dots(70, 83, 1001, Q3_QUANTIZED, Q3_F16, 1, true, false);
    try_dots(90, 19, 2050, Q3_QUANTIZED, Q3_BF16, 0, false, false);
    try_dots(20, 3, 40001, Q3_QUANTIZED, Q3_F32, 0, false, false);
}

/* More than one group of tokens, set of rows that are laid out, set of tokens that are; the last
 * one is short. */
static void test_groups(void)
{
    try_dots(90, 19, 2050, Q3_BF16, Q3_BF16, 0, false, false);
    try_dots(61, 83, 1000, Q3_F16, Q3_F16, 1, true, false);
    try_dots(26, 114, 8200, Q3_F32, Q3_BF16, 0, false, false);
    try_dots(40, 3, 32000, Q3_BF16, Q3_F16, 0, false, false);
}

/* Every number of rows; more rows than a block, and than results that leave together. */
static void test_rows(void)
{
    for (size_t N = 0; N <= 40; N++)
        for (size_t T = 1; T <= 3; T++)
            try_dots(T, N, 37, (q3_dtype)(N % 3), Q3_F32, 0, false, false);
    try_dots(1, 1000, 40, Q3_BF16, Q3_BF16, 0, false, false);
    try_dots(3, 300, 1500, Q3_BF16, Q3_BF16, 0, false, false);
}

/* Tokens that take more scratch than there is go in several blocks. */
static void test_long_sums(void)
{
    try_dots(20, 3, 70001, Q3_BF16, Q3_F32, 0, false, false);
    try_dots(1, 5, 70001, Q3_F32, Q3_F32, 0, false, false);
}

/* q3_use_kernels is what operators then take, and says what they took before. */
static void test_choice(void)
{
    const q3_kernels *plain = q3_kernels_available(0);
    CHECK_TEXT(plain->name, "plain");
    CHECK(plain == q3_plain_kernels());
    CHECK(q3_use_kernels(plain) == NULL);
    CHECK(q3_use_kernels(NULL) == plain);
    bool listed = false;
    const q3_kernels *k;
    for (size_t i = 0; (k = q3_kernels_available(i)) != NULL; i++) listed |= k == q3_best_kernels();
    CHECK(listed);
}

int main(void)
{
    test_choice();
    test_columns();
    test_tokens();
    test_few_tokens();
    test_quantized();
    test_groups();
    test_rows();
    test_long_sums();
    return t_done("kernels");
}
