/* SPDX-License-Identifier: MIT */
/* Quantised weights (host/quants.c, and what qwen3moe.c and kernels.c make of them) against
 * golden/quants: GGUF's blocks as the gguf package dequantises them, FP8 as ml_dtypes reads it, and
 * sums of products that numpy added (scripts/golden/make_quants.py). All of it bit by bit.
 *
 *   test_quants [GOLDEN FOLDER]     default: golden */
#include "host/quants.h"
#include "t.h"

#include <math.h>

static const q3_dtype dtypes[] = {Q3_F32, Q3_BF16, Q3_F16};

static void *block_of(size_t size)
{
    void *memory = malloc(size > 0 ? size : 1);
    if (memory == NULL) exit(1);
    return memory;
}

static bool same(double a, double b)
{
    return a != a ? b != b : memcmp(&a, &b, sizeof a) == 0;
}

/* How many of them differ. */
static size_t differ(const double *a, const double *b, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += !same(a[i], b[i]);
    return count;
}

/* ==== The golden files ======================================================================== */

static const q3_entry *find(const q3_tensors *file, const char *of, const char *what)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s", of, what);
    const q3_entry *e = q3_tensors_find(file, name);
    if (e == NULL) {
        fprintf(stderr, "no tensor %s\n", name);
        exit(1);
    }
    return e;
}

static size_t count_of(const q3_entry *e)
{
    size_t count = 1;
    for (size_t i = 0; i < e->rank; i++) count *= (size_t)e->shape[i];
    return count;
}

/* Bytes, which the file has as int32. */
static uint8_t *bytes_of(const q3_entry *e, uint8_t *out)
{
    for (size_t i = 0; i < count_of(e); i++) {
        int64_t value;
        q3_entry_integers(&value, e, i, 1);
        out[i] = (uint8_t)value;
    }
    return out;
}

static double *doubles_of(const q3_entry *e)
{
    double *out = block_of(count_of(e) * sizeof *out);
    for (size_t i = 0; i < count_of(e); i++) {
        uint64_t u = 0;
        float x;
        const uint8_t *p = (const uint8_t *)e->data + 8 * i;
        for (size_t k = 0; k < 8; k++) u |= e->dtype == Q3_F64 ? (uint64_t)p[k] << 8 * k : 0;
        memcpy(&out[i], &u, 8);
        if (e->dtype == Q3_F64) continue;
        q3_entry_floats(&x, e, i, 1);
        out[i] = (double)x;
    }
    return out;
}

static float *floats_of(const q3_entry *e)
{
    float *out = block_of(count_of(e) * sizeof *out);
    q3_entry_floats(out, e, 0, count_of(e));
    return out;
}

/* ==== What is the same for every kind of weight =============================================== */

/* All elements at once, and every range of some lengths. */
static void check_ranges(const char *name, const q3_quantized *weight, const double *want, size_t n)
{
    double *got = block_of((n + 1) * sizeof *got);
    got[n] = 77;
    weight->dequantize(got, weight, 0, n);
    CHECKF(differ(got, want, n) == 0, "%s: %zu of %zu values differ", name, differ(got, want, n),
           n);
    size_t wrong = 0;
    for (size_t length = 0; length < 80; length = 2 * length + 1)
        for (size_t first = 0; first + length <= n; first += 1 + first % 7) {
            got[length] = 77;
            weight->dequantize(got, weight, first, length);
            wrong += differ(got, want + first, length) + (got[length] != 77);
        }
    q3_quantized part, rest; /* tensors that begin at other elements */
    q3_tensor_from(q3_tensor_from((q3_tensor){weight, Q3_QUANTIZED}, 40, &part), 5, &rest);
    rest.dequantize(got, &rest, 3, n - 48);
    wrong += differ(got, want + 48, n - 48);
    CHECKF(wrong == 0, "%s: ranges differ", name);
    free(got);
}

/* As this processor reads them, and as any does. */
static void check_values(const char *name, const q3_quantized *weight, q3_read_fn *plain,
                         const double *want, size_t n)
{
    q3_quantized other = *weight;
    char plainly[80];
    snprintf(plainly, sizeof plainly, "%s plainly", name);
    other.dequantize = plain;
    check_ranges(name, weight, want, n);
    check_ranges(plainly, &other, want, n);
}

/* As float32, in each kind of run; the embedding rounds once. */
static void check_widened(const char *name, const q3_quantized *weight, const double *want,
                          size_t n)
{
    float *got = block_of(n * sizeof *got), *row = block_of(n * sizeof *row);
    for (size_t k = 0; k < 3; k++) {
        const q3_tensor tensor = {weight, Q3_QUANTIZED};
        const int32_t ids[1] = {1};
        size_t wrong = 0, M = n / 2;
        q3_widen(got, tensor, 5, n - 5, dtypes[k]);
        for (size_t i = 5; i < n; i++) {
            float x = q3_round(want[i], weight->rounded ? dtypes[k] : Q3_F32);
            wrong += !same((double)got[i - 5], (double)x);
        }
        q3_embedding(row, ids, tensor, 1, 2, M, dtypes[k]);
        for (size_t i = 0; i < M; i++)
            wrong += !same((double)row[i], (double)q3_round(want[M + i], dtypes[k]));
        CHECKF(wrong == 0, "%s, run %zu: %zu elements differ", name, k, wrong);
    }
    free(got);
    free(row);
}

/* Operators that take elements as float32 give what they give for the float32 weight. */
static void check_operators(const char *name, const q3_quantized *weight, const double *want,
                            size_t n)
{
    enum { T = 3, N = 5, C = 32 };
    uint8_t *bytes = block_of(4 * n);
    float x[T * C], got[T * C], expected[T * C];
    const q3_tensor tensor = {weight, Q3_QUANTIZED}, plain = {bytes, Q3_F32};
    for (size_t i = 0; i < T * C; i++) x[i] = (float)(i * 37 % 64) - 30.5f;
    for (size_t i = 0; i < n; i++) {
        float value = q3_round(want[i], Q3_F32);
        uint32_t u;
        memcpy(&u, &value, 4);
        for (size_t k = 0; k < 4; k++) bytes[4 * i + k] = (uint8_t)(u >> 8 * k);
    }
    for (size_t k = 0; k < 3; k++) {
        size_t wrong = 0;
        q3_dtype norm = weight->rounded ? dtypes[k] : Q3_F32; /* how it reads its weight */
        q3_rmsnorm(got, x, tensor, T, C, 1e-6f, norm);
        q3_rmsnorm(expected, x, plain, T, C, 1e-6f, norm);
        for (size_t i = 0; i < T * C; i++)
            wrong += !same((double)got[i], (double)expected[i]);
        q3_linear(got, x, (q3_tensor){x, Q3_BF16}, tensor, 1, N, C, norm);
        q3_linear(expected, x, (q3_tensor){x, Q3_BF16}, plain, 1, N, C, norm);
        for (size_t i = 0; i < N; i++) wrong += !same((double)got[i], (double)expected[i]);
        CHECKF(wrong == 0, "%s, run %zu: %zu results of operators differ", name, k, wrong);
    }
    free(bytes);
}

/* Sums [T,N] of the first N rows with x[T,C], by each table of kernels; want is that of the run's
 * dtype. */
static void check_sums(const char *name, const q3_quantized *weight, const float *x,
                       const double *want, size_t T, size_t N, size_t C, q3_dtype dtype)
{
    double *sums = block_of(T * N * sizeof *sums);
    float *y = block_of(T * N * sizeof *y);
    const q3_kernels *kernels;
    for (size_t i = 0; (kernels = q3_kernels_available(i)) != NULL; i++) {
        q3_dots d = {.x = x, .x_stride = C, .weight = {weight, Q3_QUANTIZED}, .row_stride = C,
                     .T = T, .N = N, .C = C, .dtype = dtype, .sums = sums, .y = y, .y_stride = N};
        kernels->dots(&d);
        size_t wrong = differ(sums, want, T * N);
        for (size_t k = 0; k < T * N; k++)
            wrong += !same((double)y[k], (double)q3_round(want[k], dtype));
        CHECKF(wrong == 0, "%s, %s: %zu of %zu sums differ", name, kernels->name, wrong, T * N);
    }
    free(sums);
    free(y);
}

/* ==== GGUF ==================================================================================== */

static void test_format(const q3_tensors *file, const q3_block_format *format)
{
    const char *name = format->name;
    const q3_entry *blocks = find(file, name, "blocks"), *sums = find(file, name, "sums");
    const q3_entry *values = find(file, name, "values"), *tokens = q3_tensors_find(file, "x");
    int64_t type;
    q3_entry_integers(&type, find(file, name, "type"), 0, 1);
    CHECKF(type == format->type && q3_block_find(format->type) == format, "%s: type", name);
    CHECKF(blocks->shape[1] == format->bytes && values->shape[1] == format->elements,
           "%s: %u elements in %u bytes", name, format->elements, format->bytes);
    uint8_t *bytes = block_of(count_of(blocks) + 1); /* at an odd address */
    const q3_quantized weight = q3_block_weight(format, bytes_of(blocks, bytes + 1));
    CHECK(weight.format == format && weight.rounded);
    double *want = doubles_of(values), *added = doubles_of(sums);
    float *x = floats_of(tokens);
    size_t C = (size_t)tokens->shape[1], T = (size_t)sums->shape[1], N = (size_t)sums->shape[2];
    check_values(name, &weight, format->read[0], want, count_of(values));
    check_widened(name, &weight, want, count_of(values));
    check_operators(name, &weight, want, count_of(values));
    for (size_t k = 0; k < 3; k++)
        check_sums(name, &weight, x, added + k * T * N, T, N, C, dtypes[k]);
    free(bytes);
    free(want);
    free(added);
    free(x);
}

static void test_blocks(const q3_tensors *file)
{
    const q3_block_format *format;
    size_t formats = 0, types = 0;
    for (; (format = q3_block_at(formats)) != NULL; formats++) test_format(file, format);
    for (size_t i = 0; i < q3_tensors_count(file); i++)
        types += strstr(q3_tensors_at(file, i)->name, ".type") != NULL;
    CHECKF(formats == types, "%zu block types, %zu in the file", formats, types);
    CHECK(q3_block_find(0) == NULL && q3_block_find(1) == NULL && q3_block_find(30) == NULL);
    CHECK(q3_block_find(4) == NULL && q3_block_find(UINT32_MAX) == NULL);
    const uint8_t bytes[4] = {0};
    CHECK(q3_tensor_from((q3_tensor){bytes, Q3_BF16}, 1, NULL).data == bytes + 2);
}

/* ==== FP8 ===================================================================================== */

static void test_fp8_case(const q3_tensors *file, const char *name, bool special)
{
    const q3_entry *codes = find(file, name, "codes"), *scales = find(file, name, "scales");
    int64_t block[2];
    q3_entry_integers(block, q3_tensors_find(file, "block"), 0, 2);
    size_t N = (size_t)codes->shape[0], C = (size_t)codes->shape[1];
    uint8_t *bytes = bytes_of(codes, block_of(count_of(codes)));
    const q3_tensor by = {scales->data, scales->dtype};
    const q3_quantized weight = q3_fp8_weight(bytes, C, by, (size_t)block[0], (size_t)block[1]);
    double *want = doubles_of(find(file, name, "values"));
    check_values(name, &weight, q3_fp8_readers[0], want, count_of(codes));
    check_widened(name, &weight, want, count_of(codes));
    check_operators(name, &weight, want, count_of(codes));
    for (size_t k = 0; k < 3 && !special; k++) { /* never rounded to the run's dtype */
        const q3_entry *tokens = find(file, name, "x");
        double *added = doubles_of(find(file, name, "sums"));
        float *x = floats_of(tokens);
        check_sums(name, &weight, x, added, (size_t)tokens->shape[0], N, C, dtypes[k]);
        free(added);
        free(x);
    }
    free(bytes);
    free(want);
}

/* Every code; and blocks of 128, whose last ones are short, by a second computation. */
static void test_fp8(const q3_tensors *file)
{
    static const char *const cases[] = {"float32", "bfloat16", "float16"};
    static const uint8_t ones[4] = {0, 0, 0x80, 0x3F};
    enum { N = 129, C = 300, BLOCKS = 3 };
    uint8_t codes[256], *bytes = block_of(N * C);
    float scales[2 * BLOCKS] = {0.5f, -3.25f, 1e-3f, 7.0f, 0x1.fffffep-100f, 0.0f};
    double *e4m3 = doubles_of(q3_tensors_find(file, "e4m3")), *want = block_of(N * C * 8);
    uint8_t little[sizeof scales];
    for (size_t i = 0; i < 256; i++) codes[i] = (uint8_t)i;
    q3_quantized every = q3_fp8_weight(codes, 256, (q3_tensor){ones, Q3_F32}, 128, 256);
    check_values("every code", &every, q3_fp8_readers[0], e4m3, 256);
    for (size_t i = 0; i < 2 * BLOCKS; i++) {
        uint32_t u;
        memcpy(&u, &scales[i], 4);
        for (size_t k = 0; k < 4; k++) little[4 * i + k] = (uint8_t)(u >> 8 * k);
    }
    for (size_t i = 0; i < N * C; i++) {
        bytes[i] = (uint8_t)(i * 89 >> 3);
        want[i] = e4m3[bytes[i]] * (double)scales[i / C / 128 * BLOCKS + i % C / 128];
    }
    every = q3_fp8_weight(bytes, C, (q3_tensor){little, Q3_F32}, 128, 128);
    check_values("blocks of 128", &every, q3_fp8_readers[0], want, N * C);
    for (size_t i = 0; i < 3; i++) {
        char name[32];
        test_fp8_case(file, cases[i], false);
        snprintf(name, sizeof name, "%s.special", cases[i]);
        test_fp8_case(file, name, true);
    }
    free(bytes);
    free(e4m3);
    free(want);
}

/* 28 bits, just above the middle of two bfloat16: by way of float32 it would be the middle. */
static void read_middle(double *values, const q3_quantized *weight, size_t first, size_t count)
{
    (void)weight, (void)first;
    for (size_t i = 0; i < count; i++) values[i] = 1 + 0x1p-8 + 0x1p-27;
}

static void test_one_rounding(void)
{
    const q3_quantized weight = {.dequantize = read_middle};
    const int32_t ids[1] = {0};
    float y[3];
    q3_embedding(y, ids, (q3_tensor){&weight, Q3_QUANTIZED}, 1, 1, 3, Q3_BF16);
    CHECK(y[0] == 1 + 0x1p-7f && y[2] == y[0]);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; void (*test)(const q3_tensors *); } files[] = {
        {"blocks", test_blocks}, {"fp8", test_fp8},
    };
    for (size_t i = 0; i < 2; i++) {
        char path[1024];
        q3_tensors *file;
        q3_error error;
        snprintf(path, sizeof path, "%s/quants/%s.safetensors", argc > 1 ? argv[1] : "golden",
                 files[i].name);
        if (q3_tensors_open(&file, path, &error) != Q3_OK) {
            fprintf(stderr, "%s\n", error.text);
            return 1;
        }
        files[i].test(file);
        q3_tensors_close(file);
    }
    test_one_rounding();
    return t_done("quants");
}
