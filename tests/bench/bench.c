/* SPDX-License-Identifier: MIT */
/* Work to be measured: by the clock in scripts/bench.sh, by counted instructions in
 * scripts/ci/instructions.sh. Prints a number for each repetition, seconds unless said.
 *
 *   bench peak REPEAT                             multiply-adds of float64 in registers, 10^9/s
 *   bench read MIB REPEAT                         a plain read loop, 10^9 bytes/s
 *   bench fill FILE                               puts the rule's values (tests/rule.h) into every
 *                                                 tensor of a safetensors file, in place
 *   bench open FOLDER REPEAT
 *   bench block FOLDER DTYPE TOKENS REPEAT [taps] a call of so many tokens, without lm_head
 *   bench decode FOLDER DTYPE POSITION REPEAT     one token behind so many, with lm_head
 *   bench attention DTYPE POSITIONS TOKENS REPEAT one layer with the heads of Qwen3-235B-A22B and
 *                                                 hardly anything else, behind so many positions
 *   bench linear KIND ROWS COLUMNS TOKENS REPEAT  one linear map in a float32 run; KIND of weight:
 *                                                 bfloat16, FP8 (blocks of 128), a type of GGUF's
 *   bench tokenize FOLDER FILE REPEAT             opening, then encoding: two numbers a line
 *   bench count KERNELS WORK GOLDEN FOLDER        once, inside a function called counted(): decode,
 *                                                 block, check, open or tokenize */
#define _POSIX_C_SOURCE 200809L /* clock_gettime, fseeko */
#define _FILE_OFFSET_BITS 64
#include "host/quants.h"
#include "judge/judge.h"
#include "qwen3moe.h"
#include "rule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void q3_abort(const char *file, int line, const char *text);
void q3_abort(const char *file, int line, const char *text)
{
    fprintf(stderr, "%s:%d: broken precondition: %s\n", file, line, text);
    abort();
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(q3_status status, const q3_error *error)
{
    if (status == Q3_OK) return;
    fprintf(stderr, "bench: %s\n", error->text);
    exit(2);
}

static void *block(size_t size)
{
    void *memory = malloc(size > 0 ? size : 1);
    if (memory == NULL) {
        fprintf(stderr, "bench: no memory for %zu bytes\n", size);
        exit(2);
    }
    return memory;
}

/* ==== The machine ============================================================================= */

/* 12 sums hide the latency; a = a x + y cannot be taken out of the loop. */
#define PEAK(name, width, attribute) \
    attribute static double name(size_t n) \
    { \
        typedef double vector __attribute__((vector_size(8 * width))); \
        vector a[12], x, y; \
        for (size_t i = 0; i < width; i++) x[i] = 0x1.fffffffp-1, y[i] = 0x1p-30; \
        for (size_t i = 0; i < 12; i++) a[i] = x + (double)i; \
        for (; n > 0; n--) \
            for (size_t i = 0; i < 12; i++) a[i] = a[i] * x + y; \
        for (size_t i = 1; i < 12; i++) a[0] += a[i]; \
        return a[0][0]; \
    }

#if defined(__clang__)
#pragma STDC FP_CONTRACT ON
#else
#pragma GCC optimize("fp-contract=fast")
#endif
PEAK(peak_baseline, 2, )
#if defined(__x86_64__)
PEAK(peak_avx2, 4, __attribute__((target("avx2,fma"))))
PEAK(peak_avx512, 8, __attribute__((target("avx512f"))))
#endif

static void measure_peak(size_t repeat)
{
    double (*peak)(size_t) = peak_baseline;
    size_t width = 2, n = 10000000;
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2) peak = peak_avx2, width = 4;
    if (__builtin_cpu_supports("avx512f")) peak = peak_avx512, width = 8;
#endif
    for (; repeat > 0; repeat--) {
        double begin = now();
        volatile double sum = peak(n);
        (void)sum;
        printf("%.4f\n", (double)(n * 12 * width) / (now() - begin) / 1e9);
    }
}

static void measure_read(size_t mebibytes, size_t repeat)
{
    typedef uint64_t vector __attribute__((vector_size(64)));
    size_t count = (mebibytes << 20) / sizeof(vector);
    uint8_t *memory = block((count + 1) * sizeof(vector));
    vector *v = (void *)(memory + (64 - (uintptr_t)memory % 64));
    memset(memory, 1, (count + 1) * sizeof(vector));
    for (; repeat > 0; repeat--) {
        vector a = {0}, b = {0}, c = {0}, d = {0};
        double begin = now();
        for (size_t i = 0; i + 3 < count; i += 4)
            a += v[i], b += v[i + 1], c += v[i + 2], d += v[i + 3];
        double seconds = now() - begin;
        a += b + c + d;
        volatile uint64_t sum = a[0];
        (void)sum;
        printf("%.4f\n", (double)(count * sizeof(vector)) / seconds / 1e9);
    }
    free(memory);
}

/* ==== Weights ================================================================================= */

/* Rows of the rule as the dtype's bytes: its values have 8 bits, which each dtype holds. */
static void store_rows(uint8_t *bytes, const float *values, size_t count, q3_dtype dtype)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t u;
        memcpy(&u, &values[i], sizeof u);
        if (dtype == Q3_F16) { /* what is below 2^-14 becomes 0, which takes as long */
            uint32_t exponent = u >> 23 & 0xFF, sign = u >> 16 & 0x8000;
            u = exponent < 113 ? sign : sign | (exponent - 112) << 10 | (u >> 13 & 0x3FF);
            bytes[2 * i] = (uint8_t)u;
            bytes[2 * i + 1] = (uint8_t)(u >> 8);
        } else if (dtype == Q3_BF16) {
            bytes[2 * i] = (uint8_t)(u >> 16);
            bytes[2 * i + 1] = (uint8_t)(u >> 24);
        } else {
            memcpy(bytes + 4 * i, &u, 4);
        }
    }
}

static void fill_tensor(FILE *file, const q3_entry *e, uint64_t place)
{
    uint64_t columns = e->rank > 1 ? e->shape[1] : 1, step = 1 + (1 << 18) / columns;
    size_t size = e->dtype == Q3_F32 ? 4 : 2;
    float *values = malloc((size_t)(step * columns) * sizeof *values);
    uint8_t *bytes = malloc((size_t)(step * columns) * size);
    bool good = values != NULL && bytes != NULL && fseeko(file, (off_t)place, SEEK_SET) == 0;
    for (uint64_t row = 0; good && row < e->shape[0]; row += step) {
        uint64_t rows = e->shape[0] - row < step ? e->shape[0] - row : step;
        size_t count = (size_t)(rows * columns);
        rule_fill_rows(values, "bench", e->name, row, rows, columns);
        store_rows(bytes, values, count, e->dtype);
        good = fwrite(bytes, size, count, file) == count;
    }
    free(values);
    free(bytes);
    if (good) return;
    fprintf(stderr, "bench: %s: cannot be written\n", e->name);
    exit(2);
}

static void fill_file(const char *path)
{
    q3_tensors *tensors;
    q3_error error;
    const uint8_t *first = NULL;
    uint8_t length[8];
    uint64_t data = 8;
    FILE *file = fopen(path, "r+b");
    check(q3_tensors_open(&tensors, path, &error), &error);
    if (file == NULL || fread(length, 1, 8, file) != 8) exit(2);
    for (size_t i = 0; i < 8; i++) data += (uint64_t)length[i] << (8 * i);
    for (size_t i = 0; i < q3_tensors_count(tensors); i++) {
        const uint8_t *at = q3_tensors_at(tensors, i)->data;
        if (first == NULL || at < first) first = at;
    }
    for (size_t i = 0; i < q3_tensors_count(tensors); i++) {
        const q3_entry *e = q3_tensors_at(tensors, i);
        fill_tensor(file, e, data + (uint64_t)((const uint8_t *)e->data - first));
    }
    q3_tensors_close(tensors);
    if (fclose(file) != 0) exit(2);
}

/* ==== Runs ==================================================================================== */

typedef struct bench {
    q3_model *model;
    const q3_config *config;
    const q3_weights *weights;
    q3_state *state;
    void *memory;
    int32_t *ids; /* [rows], spread over the vocabulary */
} bench;

static q3_dtype dtype_of(const char *name)
{
    q3_dtype dtype = strcmp(name, "float32") == 0 ? Q3_F32
                   : strcmp(name, "bfloat16") == 0 ? Q3_BF16
                   : strcmp(name, "float16") == 0 ? Q3_F16 : Q3_AUTO;
    if (dtype != Q3_AUTO) return dtype;
    fprintf(stderr, "bench: found %s, expected float32, bfloat16 or float16\n", name);
    exit(2);
}

static void make_state(bench *b, q3_dtype dtype, size_t rows, size_t chunk)
{
    q3_run run = {.dtype = dtype, .end_layer = b->config->num_hidden_layers, .rows = rows,
                  .chunk = chunk, .logit_rows = 1};
    size_t size = q3_state_size(b->config, &run);
    b->memory = block(size);
    b->state = q3_state_init(b->memory, size, b->config, b->weights, &run);
    b->ids = block(rows * sizeof *b->ids);
    for (size_t i = 0; i < rows; i++)
        b->ids[i] = (int32_t)((i * 7919 + 13) % b->config->vocab_size);
}

static void open_folder(bench *b, const char *folder, q3_dtype dtype)
{
    q3_error error;
    memset(b, 0, sizeof *b);
    check(q3_model_open(&b->model, folder, &error), &error);
    b->config = q3_model_config(b->model);
    check(q3_model_load(b->model, &dtype, 0, b->config->num_hidden_layers, &error), &error);
    b->weights = q3_model_weights(b->model);
}

static void bench_close(bench *b)
{
    free(b->memory);
    free(b->ids);
    q3_model_close(b->model);
}

static void forward(bench *b, size_t first, size_t count, size_t logit_rows, q3_tap_fn *tap)
{
    q3_error error;
    q3_input input = {.tokens = b->ids + first, .count = count, .logit_rows = logit_rows};
    check(q3_forward(b->state, &input, tap, NULL, &error), &error);
}

static void ignore_tap(void *user, const q3_tap *tap)
{
    (void)user, (void)tap;
}

static void measure_block(const char *folder, q3_dtype dtype, size_t tokens, size_t repeat,
                          bool taps)
{
    bench b;
    open_folder(&b, folder, dtype);
    make_state(&b, dtype, tokens, tokens);
    for (size_t i = 0; i <= repeat; i++) { /* the first reads the file */
        q3_state_reset(b.state);
        double begin = now();
        forward(&b, 0, tokens, 0, taps ? ignore_tap : NULL);
        if (i > 0) printf("%.6f\n", now() - begin);
    }
    bench_close(&b);
}

/* The first round maps the pages of the experts that the second one meets again. */
static void measure_decode(const char *folder, q3_dtype dtype, size_t position, size_t repeat)
{
    bench b;
    open_folder(&b, folder, dtype);
    make_state(&b, dtype, position + repeat, position > 0 ? position : 1);
    for (size_t round = 0; round < 2; round++) {
        q3_state_reset(b.state);
        if (position > 0) forward(&b, 0, position, 0, NULL);
        for (size_t i = 0; i < repeat; i++) {
            double begin = now();
            forward(&b, position + i, 1, 1, NULL);
            if (round > 0) printf("%.6f\n", now() - begin);
        }
    }
    bench_close(&b);
}

/* ==== Attention alone ========================================================================= */

static q3_tensor by_rule(const char *name, size_t rows, size_t columns)
{
    float *values = block(rows * columns * sizeof *values);
    rule_fill(values, "bench", name, rows, columns);
    return (q3_tensor){values, Q3_F32};
}

/* Keys and values that lie in the cache already. */
static void fill_cache(bench *b, size_t count)
{
    size_t row = b->config->num_key_value_heads * b->config->head_dim;
    float *keys = block(2 * count * row * sizeof *keys);
    rule_fill(keys, "bench", "keys", count, row);
    rule_fill(keys + count * row, "bench", "values", count, row);
    q3_state_reset(b->state);
    q3_state_fill(b->state, 0, keys, keys + count * row, count);
    free(keys);
}

static void measure_attention(q3_dtype dtype, size_t positions, size_t tokens, size_t repeat)
{
    enum { M = 64, H = 64, K = 4, HD = 128, V = 16 };
    q3_config c = {.vocab_size = V, .hidden_size = M, .intermediate_size = 16,
                   .num_hidden_layers = 1, .num_attention_heads = H, .num_key_value_heads = K,
                   .head_dim = HD, .max_position_embeddings = 40960, .rms_norm_eps = 1e-6,
                   .rope = {.rope_theta = 1e6}};
    q3_layer layer = {
        .input_layernorm = by_rule("a.norm.weight", M, 1), .q_proj = by_rule("q.weight", H * HD, M),
        .k_proj = by_rule("k.weight", K * HD, M), .v_proj = by_rule("v.weight", K * HD, M),
        .o_proj = by_rule("o.weight", M, H * HD), .q_norm = by_rule("q_norm.weight", HD, 1),
        .k_norm = by_rule("k_norm.weight", HD, 1),
        .post_attention_layernorm = by_rule("b.norm.weight", M, 1),
        .mlp = {by_rule("g.weight", 16, M), by_rule("u.weight", 16, M),
                by_rule("d.weight", M, 16)}};
    q3_tensor embedding = by_rule("embed_tokens.weight", V, M);
    q3_weights weights = {embedding, by_rule("c.norm.weight", M, 1), embedding, &layer};
    bench b = {.config = &c, .weights = &weights};
    make_state(&b, dtype, positions + tokens, tokens);
    for (size_t i = 0; i <= repeat; i++) {
        fill_cache(&b, positions);
        double begin = now();
        forward(&b, 0, tokens, 0, NULL);
        if (i > 0) printf("%.6f\n", now() - begin);
    }
    bench_close(&b);
}

/* ==== A linear map ============================================================================ */

/* Any bytes are values; which ones, that takes equally long, but for NaN: exponents stay low. */
static void measure_linear(const char *kind, size_t N, size_t C, size_t T, size_t repeat)
{
    const q3_block_format *format = NULL;
    for (size_t i = 0; (format = q3_block_at(i)) != NULL && strcmp(format->name, kind) != 0;) i++;
    bool fp8 = strcmp(kind, "FP8") == 0;
    size_t blocks = (N + 127) / 128 * ((C + 127) / 128);
    size_t size = format != NULL ? N * C / format->elements * format->bytes : N * C * (fp8 ? 1 : 2);
    uint8_t *bytes = block(size + 2 * blocks), *scales = bytes + size;
    float *x = block(T * C * sizeof *x), *y = block(T * N * sizeof *y);
    for (size_t i = 0; i < size + 2 * blocks; i++) bytes[i] = (uint8_t)(i * 2654435761u >> 24 & 63);
    rule_fill(x, "bench", "x", T, C);
    if (format == NULL && !fp8 && dtype_of(kind) != Q3_BF16) exit(2);
    q3_quantized weight = format != NULL ? q3_block_weight(format, bytes)
                        : q3_fp8_weight(bytes, C, (q3_tensor){scales, Q3_BF16}, 128, 128);
    q3_tensor tensor = {bytes, Q3_BF16};
    if (format != NULL || fp8) tensor = (q3_tensor){&weight, Q3_QUANTIZED};
    for (; repeat > 0; repeat--) {
        double begin = now();
        q3_linear(y, x, tensor, (q3_tensor){NULL, Q3_F32}, T, N, C, Q3_F32);
        printf("%.6f\n", now() - begin);
    }
    free(bytes);
    free(x);
    free(y);
}

/* ==== Opening and the tokenizer =============================================================== */

static void measure_open(const char *folder, size_t repeat)
{
    for (; repeat > 0; repeat--) {
        bench b;
        double begin = now();
        open_folder(&b, folder, Q3_AUTO);
        printf("%.6f\n", now() - begin);
        bench_close(&b);
    }
}

static q3_tokenizer *open_tokenizer(const char *folder)
{
    char path[1024];
    q3_tokenizer *tokenizer;
    q3_error error;
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    check(q3_tokenizer_open(&tokenizer, path, &error), &error);
    return tokenizer;
}

static char *read_text(const char *path, size_t *length)
{
    FILE *file = fopen(path, "rb");
    char *text = block(1 << 26);
    *length = file == NULL ? 0 : fread(text, 1, 1 << 26, file);
    if (file != NULL) fclose(file);
    if (*length > 0) return text;
    fprintf(stderr, "bench: %s: cannot be read\n", path);
    exit(2);
}

static void encode(const q3_tokenizer *tokenizer, const char *text, size_t length)
{
    int32_t *ids;
    size_t count;
    q3_error error;
    check(q3_tokenizer_encode(tokenizer, text, length, &ids, &count, &error), &error);
    free(ids);
}

static void measure_tokenizer(const char *folder, const char *path, size_t repeat)
{
    size_t length;
    char *text = read_text(path, &length);
    for (; repeat > 0; repeat--) {
        double begin = now();
        q3_tokenizer *tokenizer = open_tokenizer(folder);
        double middle = now();
        encode(tokenizer, text, length);
        printf("%.6f %.6f\n", middle - begin, now() - middle);
        q3_tokenizer_free(tokenizer);
    }
    free(text);
}

/* ==== Counted ================================================================================= */

typedef struct counting {
    const char *work, *folder;
    bench b;
    q3_judge *judge;
    q3_tokenizer *tokenizer;
    char *text;
    size_t length;
} counting;

/* The work, and nothing before or after it: callgrind counts while this runs. */
#if defined(__GNUC__)
__attribute__((noinline))
#endif
static void counted(counting *c)
{
    q3_error error;
    q3_report *report;
    if (strcmp(c->work, "decode") == 0) {
        for (size_t i = 0; i < 4; i++) forward(&c->b, 20 + i, 1, 1, NULL);
    } else if (strcmp(c->work, "block") == 0) {
        forward(&c->b, 0, 20, 1, NULL);
    } else if (strcmp(c->work, "check") == 0) {
        check(q3_judge_run(c->judge, c->b.weights, Q3_BF16, &report, &error), &error);
        q3_report_close(report);
    } else if (strcmp(c->work, "open") == 0) {
        measure_open(c->folder, 1);
    } else {
        encode(c->tokenizer, c->text, c->length);
    }
}

static void use_kernels(const char *name)
{
    for (size_t i = 0; q3_kernels_available(i) != NULL; i++) {
        if (strcmp(q3_kernels_available(i)->name, name) != 0) continue;
        q3_use_kernels(q3_kernels_available(i));
        return;
    }
    fprintf(stderr, "bench: this processor has no kernels %s\n", name);
    exit(3);
}

static void count(const char *kernels, const char *work, const char *golden, const char *folder)
{
    char path[1024];
    q3_error error;
    counting c = {.work = work, .folder = folder};
    use_kernels(kernels);
    snprintf(path, sizeof path, "%s/tiny", golden);
    open_folder(&c.b, path, Q3_BF16);
    make_state(&c.b, Q3_BF16, 24, 20);
    if (strcmp(work, "decode") == 0) forward(&c.b, 0, 20, 0, NULL);
    c.tokenizer = open_tokenizer(path);
    snprintf(path, sizeof path, "%s/tiny/tokenizer.json", golden);
    c.text = read_text(path, &c.length);
    check(q3_judge_open(&c.judge, c.b.config, NULL, &error), &error);
    snprintf(path, sizeof path, "%s/hf/tiny/taps-bfloat16.safetensors", golden);
    check(q3_judge_file(c.judge, path, &error), &error);
    counted(&c);
    q3_judge_close(c.judge);
    q3_tokenizer_free(c.tokenizer);
    free(c.text);
    bench_close(&c.b);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    size_t last = argc > 2 ? (size_t)strtoul(argv[argc - 1], NULL, 10) : 0;
    if (strcmp(what, "peak") == 0 && argc == 3) measure_peak(last);
    else if (strcmp(what, "read") == 0 && argc == 4) measure_read(strtoul(argv[2], NULL, 10), last);
    else if (strcmp(what, "fill") == 0 && argc == 3) fill_file(argv[2]);
    else if (strcmp(what, "open") == 0 && argc == 4) measure_open(argv[2], last);
    else if (strcmp(what, "block") == 0 && (argc == 6 || argc == 7))
        measure_block(argv[2], dtype_of(argv[3]), strtoul(argv[4], NULL, 10),
                      strtoul(argv[5], NULL, 10), argc == 7);
    else if (strcmp(what, "linear") == 0 && argc == 7)
        measure_linear(argv[2], strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10),
                       strtoul(argv[5], NULL, 10), last);
    else if (strcmp(what, "decode") == 0 && argc == 6)
        measure_decode(argv[2], dtype_of(argv[3]), strtoul(argv[4], NULL, 10), last);
    else if (strcmp(what, "attention") == 0 && argc == 6)
        measure_attention(dtype_of(argv[2]), strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10),
                          last);
    else if (strcmp(what, "tokenize") == 0 && argc == 5) measure_tokenizer(argv[2], argv[3], last);
    else if (strcmp(what, "count") == 0 && argc == 6) count(argv[2], argv[3], argv[4], argv[5]);
    else return fprintf(stderr, "bench: see the comment at the top of tests/bench/bench.c\n"), 2;
    return 0;
}
