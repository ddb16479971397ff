/* SPDX-License-Identifier: MIT */
/* What every platform computes, with or without files: each public operator and elementary
 * function on hard inputs, and a forward pass of a small random model, in float32, bfloat16 and
 * float16. Each result becomes a line "name dtype sha256"; the lines must be the same everywhere
 * (golden/bits/core.txt).
 *
 * Needs qwen3moe.c, host/taps.c and string.h. Inputs are a rule (tests/rule.h's generator): integers
 * and bit patterns only, so that making them rounds nothing. Hashed are the little-endian bytes of
 * the values as they stand in a file of that dtype (4 bytes for float32 and ids, else 2). */
#ifndef Q3_CORE_H
#define Q3_CORE_H

#include "qwen3moe.h"
#include "rule.h"
#include "host/sha256.h"

#include <string.h>

typedef struct core {
    void (*line)(void *user, const char *line); /* gets every line, ended by a newline and 0 */
    void *user;
    void (*complain)(void *user, const char *name, const char *what, uint32_t found);
    uint8_t *memory; /* aligned for double */
    size_t size, used;
    sha256 lines; /* of all lines so far */
} core;

static const char *const core_dtypes[3] = {"float32", "bfloat16", "float16"};

/* Memory that core_release gives back; too little of it is reported, once, by a NULL. */
static void *core_take(core *c, size_t size)
{
    size_t rounded = (size + 63) / 64 * 64;
    if (rounded > c->size - c->used) {
        c->complain(c->user, "memory", "bytes asked for, more than are left", (uint32_t)rounded);
        return NULL;
    }
    void *piece = c->memory + c->used;
    c->used += rounded;
    memset(piece, 0, size);
    return piece;
}

static float *core_floats(core *c, size_t count)
{
    return core_take(c, count * sizeof(float));
}

/* ==== Lines ================================================================================== */

static void core_line(core *c, const char *name, const char *dtype, sha256 *sum)
{
    char line[256], *p = line;
    size_t n = strlen(name), d = strlen(dtype);
    memcpy(p, name, n);
    p[n] = ' ';
    p += n + 1;
    memcpy(p, dtype, d);
    p[d] = ' ';
    p += d + 1;
    sha256_text(sum, p);
    p[64] = '\n';
    p[65] = '\0';
    sha256_add(&c->lines, line, (size_t)(p + 65 - line));
    c->line(c->user, line);
}

/* A float32 that float16 holds, as float16. */
static uint32_t core_half(uint32_t u)
{
    uint32_t sign = u >> 16 & 0x8000, exponent = u >> 23 & 0xff, fraction = u & 0x7fffff;
    if (exponent == 255) return sign | 0x7c00 | fraction >> 13;
    if (exponent >= 113) return sign | (exponent - 112) << 10 | fraction >> 13;
    if (exponent < 103) return sign;
    return sign | (fraction | 0x800000) >> (126 - exponent);
}

/* Whether D holds the value: then nothing is lost in the 2 bytes that are hashed. */
static bool core_holds(uint32_t u, q3_dtype dtype)
{
    uint32_t exponent = u >> 23 & 0xff;
    if (dtype == Q3_F32) return true;
    if (dtype == Q3_BF16) return (u & 0xffff) == 0;
    if (exponent == 255) return (u & 0x1fff) == 0;
    if ((u & 0x7fffffff) == 0) return true;
    if (exponent > 142 || exponent < 103) return false;
    uint32_t lost = exponent >= 113 ? 13 : 126 - exponent;
    return ((u & 0x7fffff) | 0x800000) % ((uint32_t)1 << lost) == 0;
}

/* Adds values, and reports what a hash could not name: a NaN other than the one quiet NaN, and a
 * value that the run's dtype cannot hold. */
static void core_add(core *c, const char *name, sha256 *sum, const float *values, size_t count,
                     q3_dtype dtype)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t u;
        uint8_t bytes[4];
        memcpy(&u, values + i, 4);
        if ((u & 0x7fffffff) > 0x7f800000 && u != 0x7fc00000)
            c->complain(c->user, name, "a NaN that is not 7fc00000", u);
        else if (!core_holds(u, dtype))
            c->complain(c->user, name, "more bits than the dtype holds", u);
        if (dtype == Q3_BF16) u >>= 16;
        if (dtype == Q3_F16) u = core_half(u);
        for (unsigned b = 0; b < 4; b++) bytes[b] = (uint8_t)(u >> 8 * b & 0xff);
        sha256_add(sum, bytes, dtype == Q3_F32 ? 4 : 2);
    }
}

static void core_add_bits(sha256 *sum, uint64_t u, unsigned count)
{
    uint8_t bytes[8];
    for (unsigned b = 0; b < count; b++) bytes[b] = (uint8_t)(u >> 8 * b & 0xff);
    sha256_add(sum, bytes, count);
}

/* A float64 result; which NaN an elementary function gives is not defined, only that it is one. */
static void core_add_double(sha256 *sum, double value)
{
    uint64_t u;
    memcpy(&u, &value, 8);
    core_add_bits(sum, value != value ? UINT64_C(0x7ff8000000000000) : u, 8);
}

static void core_floats_line(core *c, const char *name, const float *values, size_t count,
                             q3_dtype dtype)
{
    sha256 sum;
    sha256_init(&sum);
    core_add(c, name, &sum, values, count, dtype);
    core_line(c, name, core_dtypes[dtype], &sum);
}

/* ==== Inputs ================================================================================= */

static float core_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static double core_double(uint64_t u)
{
    double x;
    memcpy(&x, &u, 8);
    return x;
}

static uint64_t core_random(const char *what, uint64_t index)
{
    return rule_bits(rule_key("core", what), index);
}

/* Operators run on three kinds of numbers, all with full significands:
 *   plain    exponents -4..3
 *   wide     every exponent, subnormals and zeros too
 *   special  plain; one in 300 is a NaN with some payload, an infinity, a zero or a subnormal */
typedef enum core_kind { CORE_PLAIN, CORE_WIDE, CORE_SPECIAL } core_kind;

static const uint32_t core_specials[8] = {0x7f800000, 0x7f800001, 0x7fffffff, 0x7fc00000,
                                          0x7fa12345, 0, 0x00000001, 0x007fffff};

static uint32_t core_pattern(uint64_t u, core_kind kind)
{
    uint32_t sign = (uint32_t)(u >> 63) << 31, fraction = (uint32_t)u & 0x7fffff;
    uint32_t exponent = 123 + (uint32_t)(u >> 24 & 7);
    uint32_t choice = (uint32_t)(u >> 32) % 2400;
    if (kind == CORE_WIDE) exponent = (uint32_t)(u >> 24) % 255;
    if (kind == CORE_SPECIAL && choice < 8) return sign | core_specials[choice];
    return sign | exponent << 23 | fraction;
}

/* count numbers, rounded to D: what a run's tensor holds. */
static float *core_numbers(core *c, const char *what, size_t count, core_kind kind, q3_dtype dtype)
{
    float *values = core_floats(c, count);
    for (size_t i = 0; values != NULL && i < count; i++) {
        float x = core_float(core_pattern(core_random(what, i), kind));
        values[i] = q3_round((double)x, dtype);
    }
    return values;
}

/* A weight as it lies in a file, in the format that `stored` says: patterns cut to its width. */
static q3_tensor core_weight(core *c, const char *what, size_t count, core_kind kind,
                             q3_dtype stored)
{
    size_t size = stored == Q3_F32 ? 4 : 2;
    uint8_t *bytes = core_take(c, count * size + 1);
    q3_tensor tensor = {bytes, stored};
    if (bytes == NULL) return tensor;
    tensor.data = ++bytes; /* at an odd address: weights may lie anywhere */
    for (size_t i = 0; i < count; i++) {
        uint32_t u = core_pattern(core_random(what, i), kind);
        if (stored == Q3_BF16) u >>= 16;
        if (stored == Q3_F16) u = core_half(u & 0xffffe000);
        for (size_t b = 0; b < size; b++) bytes[i * size + b] = (uint8_t)(u >> 8 * b & 0xff);
    }
    return tensor;
}

/* ==== Conversions and elementary functions =================================================== */

/* Every float64 exponent with significands around the ties of all three formats. */
static void core_conversions(core *c)
{
    static const uint64_t fractions[] = {
        0, 1, UINT64_C(0xfffffffffffff),
        /* float32 */
        UINT64_C(0x0000010000000), UINT64_C(0x0000010000001), UINT64_C(0x000000fffffff),
        UINT64_C(0x0000030000000), UINT64_C(0xffffff0000000), UINT64_C(0xfffffefffffff),
        /* bfloat16 */
        UINT64_C(0x0100000000000), UINT64_C(0x0100000000001), UINT64_C(0x00fffffffffff),
        UINT64_C(0x0300000000000), UINT64_C(0xff00000000000), UINT64_C(0xfefffffffffff),
        /* float16 */
        UINT64_C(0x0020000000000), UINT64_C(0x0020000000001), UINT64_C(0x001ffffffffff),
        UINT64_C(0x0060000000000), UINT64_C(0xffe0000000000), UINT64_C(0xffdffffffffff),
        /* float16 and bfloat16 subnormals, anything */
        UINT64_C(0x8000000000000), UINT64_C(0x8000000000001), UINT64_C(0x123456789abcd)};
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++) {
        sha256 sum;
        sha256_init(&sum);
        for (uint64_t e = 0; e < 4096; e++)
            for (size_t f = 0; f < sizeof fractions / sizeof *fractions; f++) {
                if (e % 2048 < 860 && f % 4 != 0) continue; /* all of these become 0 */
                float y = q3_round(core_double(e << 52 | fractions[f]), d);
                core_add(c, "round", &sum, &y, 1, d);
            }
        core_line(c, "round", core_dtypes[d], &sum);
    }
}

/* Weights of each stored format in each run's dtype. A NaN weight may keep its payload where
 * nothing is rounded, so here it counts as a NaN; what is computed with it is hashed in full. */
static void core_widen(core *c)
{
    static const char *const names[3] = {"widen.float32", "widen.bfloat16", "widen.float16"};
    size_t count = 4096;
    for (q3_dtype stored = Q3_F32; stored <= Q3_F16; stored++) {
        q3_tensor wide = core_weight(c, "widen wide", count, CORE_WIDE, stored);
        q3_tensor special = core_weight(c, "widen special", count, CORE_SPECIAL, stored);
        float *values = core_floats(c, 2 * count);
        if (values == NULL) return;
        for (q3_dtype d = Q3_F32; d <= Q3_F16; d++) {
            q3_widen(values, wide, 0, count, d);
            q3_widen(values + count, special, 5, count - 5, d);
            for (size_t i = 0; i < 2 * count; i++)
                if (values[i] != values[i]) values[i] = core_float(0x7fc00000);
            core_floats_line(c, names[stored], values, 2 * count, d);
        }
        c->used = 0;
    }
}

/* float32 inputs: every exponent (NaNs and infinities too), both signs, six significands. */
static float core_unary_input(size_t index)
{
    uint32_t sign = index >= 6 * 256 ? 0x80000000u : 0, exponent = (uint32_t)(index / 6 % 256);
    uint32_t random = (uint32_t)core_random("unary", index) & 0x7fffff;
    const uint32_t fractions[6] = {0, 1, 0x400000, 0x7fffff, random, random ^ 0x155555};
    return core_float(sign | exponent << 23 | fractions[index % 6]);
}

/* exp and silu, in float64 and rounded; float64 arguments as softmax has them too. */
static void core_exponentials(core *c)
{
    sha256 e, s;
    sha256_init(&e);
    sha256_init(&s);
    for (size_t i = 0; i < 2 * 6 * 256; i++) {
        double x = (double)core_unary_input(i);
        core_add_double(&e, q3_exp(x));
        core_add_double(&s, q3_silu(x));
    }
    for (size_t i = 0; i < 2000; i++) {
        uint64_t u = core_random("exp", i);
        double x = core_double((u & UINT64_C(0x800fffffffffffff)) | (1010 + u / 4096 % 23) << 52);
        core_add_double(&e, q3_exp(x));
        core_add_double(&s, q3_silu(x));
    }
    core_line(c, "exp", "float64", &e);
    core_line(c, "silu", "float64", &s);
}

static void core_circular(core *c)
{
    static const uint32_t hard[] = {0x46199998, 0x3fc90fdb, 0x40490fdb, 0x4096cbe4, 0x49800000,
                                    0x46d37a26};
    sha256 s, k;
    sha256_init(&s);
    sha256_init(&k);
    for (size_t i = 0; i < 2 * 6 * 256 + 2000 + 6; i++) {
        float x = core_unary_input(i);
        if (i >= 2 * 6 * 256) x = core_float((uint32_t)(core_random("angle", i) % 0x49800001));
        if (i >= 2 * 6 * 256 + 2000) x = core_float(hard[i - 2 * 6 * 256 - 2000]);
        if (!(x >= -0x1p20f && x <= 0x1p20f)) continue;
        float y[2] = {q3_sin(x), q3_cos(x)};
        core_add(c, "sin", &s, &y[0], 1, Q3_F32);
        core_add(c, "cos", &k, &y[1], 1, Q3_F32);
    }
    core_line(c, "sin", "float32", &s);
    core_line(c, "cos", "float32", &k);
}

static void core_powers(core *c)
{
    static const float bases[] = {1e4f, 1e6f, 5e6f, 2.0f, 0.3f, 1.0f, 3.4e38f, 1e-40f};
    sha256 l, r, p;
    sha256_init(&l);
    sha256_init(&r);
    sha256_init(&p);
    for (uint64_t e = 0; e < 2048; e++) {
        uint64_t u = core_random("log", e);
        double x = core_double((u & UINT64_C(0xfffffffffffff)) | e << 52);
        if (e > 0 && e < 2047) core_add_double(&l, q3_log(x));
        core_add_double(&r, q3_sqrt(x));
        core_add_double(&r, q3_sqrt(core_double(e << 52)));
        core_add_double(&r, q3_sqrt(core_double(e << 52 | 1)));
        core_add_double(&r, q3_sqrt(-x));
    }
    for (size_t b = 0; b < 8; b++)
        for (size_t i = 0; i <= 64; i++) {
            bool extreme = bases[b] > 1e30f || bases[b] < 1e-30f;
            float y = q3_pow(bases[b], (float)i / (extreme ? 128.0f : 64.0f));
            core_add(c, "pow", &p, &y, 1, Q3_F32);
        }
    core_line(c, "log", "float64", &l);
    core_line(c, "sqrt", "float64", &r);
    core_line(c, "pow", "float32", &p);
}

/* ==== Operators ============================================================================== */

/* A name and the kind of its numbers: "linear.wide". */
static const char *core_name(char name[48], const char *operator, core_kind kind)
{
    static const char *const kinds[3] = {".plain", ".wide", ".special"};
    size_t n = strlen(operator);
    memcpy(name, operator, n);
    memcpy(name + n, kinds[kind], strlen(kinds[kind]) + 1);
    return name;
}

static void core_rows(core *c, core_kind kind, q3_dtype d)
{
    enum { T = 5, V = 11, M = 599 }; /* more than one piece of weights, and a tail */
    static const int32_t ids[T] = {10, 0, 7, 7, 3};
    char name[48];
    q3_tensor table = core_weight(c, "embedding", V * M, kind, Q3_F32);
    q3_tensor weight = core_weight(c, "norm", M, kind, Q3_F16);
    float *x = core_numbers(c, "norm x", T * M, kind, d), *y = core_floats(c, T * M);
    if (table.data == NULL || weight.data == NULL || x == NULL || y == NULL) return;
    q3_embedding(y, ids, table, T, V, M, d);
    core_floats_line(c, core_name(name, "embedding", kind), y, T * M, d);
    q3_rmsnorm(y, x, weight, T, M, 1e-6f, d);
    core_floats_line(c, core_name(name, "rmsnorm", kind), y, T * M, d);
    q3_rmsnorm(x, x, weight, T * 13, M / 13, 0.0f, d); /* in place, rows of 46, no eps */
    core_floats_line(c, core_name(name, "rmsnorm.rows", kind), x, T * 13 * (M / 13), d);
}

static void core_linear(core *c, core_kind kind, q3_dtype d)
{
    enum { T = 10, N = 7, K = 1113 };
    char name[48];
    const q3_tensor none = {NULL, Q3_F32};
    q3_tensor weight = core_weight(c, "linear", N * K, kind, Q3_F32);
    q3_tensor bias = core_weight(c, "linear bias", N, kind, Q3_BF16);
    float *x = core_numbers(c, "linear x", T * K, kind, d), *y = core_floats(c, T * N);
    if (weight.data == NULL || bias.data == NULL || x == NULL || y == NULL) return;
    q3_linear(y, x, weight, none, T, N, K, d);
    core_floats_line(c, core_name(name, "linear", kind), y, T * N, d);
    q3_linear(y, x, weight, bias, T, N, K, d);
    core_floats_line(c, core_name(name, "linear.bias", kind), y, T * N, d);
    /* The second half of a row is the first with the weights' sign turned: the exact sum is 0, and
     * what is left are the roundings of the partial sums, which show every change of order. */
    uint8_t *bytes = (uint8_t *)c->memory + ((const uint8_t *)weight.data - c->memory);
    size_t half = K / 2;
    for (size_t n = 0; n < N; n++)
        for (size_t k = 0; k < half; k++) {
            uint8_t *from = bytes + (n * K + k) * 4, *to = bytes + (n * K + K - 1 - k) * 4;
            memcpy(to, from, 4);
            to[3] ^= 0x80;
        }
    for (size_t t = 0; t < T; t++)
        for (size_t k = 0; k < half; k++) x[t * K + K - 1 - k] = x[t * K + k];
    for (size_t t = 0; t < T; t++) x[t * K + half] = 0.0f;
    q3_linear(y, x, weight, none, T, N, K, d);
    core_floats_line(c, core_name(name, "linear.cancelling", kind), y, T * N, d);
}

static void core_elementwise(core *c, core_kind kind, q3_dtype d)
{
    enum { N = 3000 };
    char name[48];
    float *a = core_numbers(c, "a", N, kind, d), *b = core_numbers(c, "b", N, kind, d);
    float *y = core_floats(c, N);
    if (a == NULL || b == NULL || y == NULL) return;
    for (size_t i = 0; i < 256 && kind == CORE_SPECIAL; i++) { /* each of them with each other */
        uint32_t first = core_specials[i / 32] | (uint32_t)(i / 16 % 2) << 31;
        uint32_t second = core_specials[i / 2 % 8] | (uint32_t)(i % 2) << 31;
        a[i] = q3_round((double)core_float(first), d);
        b[i] = q3_round((double)core_float(second), d);
    }
    q3_silu_map(y, a, N, d);
    core_floats_line(c, core_name(name, "silu_map", kind), y, N, d);
    q3_multiply(y, a, b, N, d);
    core_floats_line(c, core_name(name, "multiply", kind), y, N, d);
    q3_residual_add(a, a, b, N, d);
    core_floats_line(c, core_name(name, "residual_add", kind), a, N, d);
}

static void core_attention(core *c, core_kind kind, q3_dtype d, size_t window)
{
    enum { T = 5, H = 6, K = 2, HD = 70, FIRST = 6, S = 12 };
    char name[48];
    const char *labels[3] = {"attention_scores", "attention_probs", "attention_values"};
    if (window != 0) {
        labels[0] = "attention_scores.window";
        labels[1] = "attention_probs.window";
        labels[2] = "attention_values.window";
    }
    float *q = core_numbers(c, "q", T * H * HD, kind, d);
    float *k = core_numbers(c, "k", S * K * HD, kind, d);
    float *v = core_numbers(c, "v", S * K * HD, kind, d);
    float *scores = core_floats(c, H * T * S), *y = core_floats(c, T * H * HD);
    double *scratch = core_take(c, S * sizeof *scratch);
    if (!q || !k || !v || !scores || !y || !scratch) return;
    q3_attention_scores(scores, q, k, T, H, K, HD, FIRST, S, window, d);
    core_floats_line(c, core_name(name, labels[0], kind), scores, H * T * S, d);
    q3_attention_probs(scores, scores, scratch, T, H, FIRST, S, window, d);
    core_floats_line(c, core_name(name, labels[1], kind), scores, H * T * S, d);
    q3_attention_values(y, scores, v, T, H, K, HD, FIRST, S, window, d);
    core_floats_line(c, core_name(name, labels[2], kind), y, T * H * HD, d);
}

static void core_ids_line(core *c, const char *name, const int32_t *ids, size_t count, q3_dtype d)
{
    sha256 sum;
    sha256_init(&sum);
    for (size_t i = 0; i < count; i++) core_add_bits(&sum, (uint32_t)ids[i], 4);
    core_line(c, name, core_dtypes[d], &sum);
}

/* The router on equal, ordinary and non-finite logits; then the experts on its choice. */
static void core_experts(core *c, core_kind kind, q3_dtype d)
{
    enum { T = 9, E = 13, A = 4, N = 17, K = 83 };
    char name[48];
    float *logits = core_numbers(c, "logits", T * E, kind, d), *p = core_floats(c, T * E);
    float *w = core_floats(c, T * A), *x = core_numbers(c, "expert x", T * K, kind, d);
    float *y = core_floats(c, T * A * N), *scratch = core_floats(c, T * (K + N));
    float *out = core_floats(c, T * N);
    int32_t *ids = core_take(c, T * A * sizeof *ids);
    q3_mlp *experts = core_take(c, E * sizeof *experts);
    q3_tensor gate = core_weight(c, "experts", E * N * K, kind, Q3_F32);
    if (!logits || !p || !w || !x || !y || !scratch || !out || !ids || !experts || !gate.data)
        return;
    for (size_t e = 0; e < E; e++) {
        logits[e] = logits[E + e] = e % 3 == 0 ? 1.5f : logits[e];
        q3_tensor one = {(const uint8_t *)gate.data + e * N * K * 4, Q3_F32};
        experts[e].gate_proj = experts[e].up_proj = experts[e].down_proj = one;
    }
    q3_router_probs(p, logits, T, E);
    sha256 sum;
    sha256_init(&sum);
    core_add(c, "router_probs", &sum, p, T * E, Q3_F32);
    core_line(c, core_name(name, "router_probs", kind), core_dtypes[d], &sum);
    q3_router_topk(ids, p, T, E, A);
    core_ids_line(c, core_name(name, "router_topk", kind), ids, T * A, d);
    q3_router_weights(w, p, ids, T, E, A, true, d);
    core_floats_line(c, core_name(name, "router_weights.renormalised", kind), w, T * A, d);
    q3_router_weights(w, p, ids, T, E, A, false, d);
    core_floats_line(c, core_name(name, "router_weights", kind), w, T * A, d);
    q3_expert_linear(y, x, ids, experts, Q3_UP_PROJ, scratch, T, E, A, N, K, d);
    core_floats_line(c, core_name(name, "expert_linear", kind), y, T * A * N, d);
    q3_expert_combine(out, y, ids, w, T, A, N, d);
    core_floats_line(c, core_name(name, "expert_combine", kind), out, T * N, d);
    for (size_t t = 0; t < T; t++) ids[t] = (int32_t)q3_argmax(logits + t * E, E);
    core_ids_line(c, core_name(name, "argmax", kind), ids, T, d);
}

/* Every kind of frequencies; tables near the first and the last position; their application. */
static void core_rope(core *c, q3_dtype d)
{
    enum { T = 3, H = 2, HD = 22 };
    static const q3_rope ropes[6] = {
        {.type = Q3_ROPE_DEFAULT, .rope_theta = 1e6},
        {.type = Q3_ROPE_LINEAR, .rope_theta = 1e4, .factor = 3.0},
        {.type = Q3_ROPE_DYNAMIC, .rope_theta = 1e4, .factor = 2.5},
        {.type = Q3_ROPE_YARN, .rope_theta = 1e6, .factor = 4.0, .beta_fast = 32, .beta_slow = 1,
         .original_max_position_embeddings = 32768, .truncate = true},
        {.type = Q3_ROPE_YARN, .rope_theta = 1e6, .factor = 40.0, .beta_fast = 20, .beta_slow = 2,
         .original_max_position_embeddings = 512, .mscale = 0.8, .mscale_all_dim = 0.5},
        {.type = Q3_ROPE_LLAMA3, .rope_theta = 5e5, .factor = 8.0, .low_freq_factor = 1,
         .high_freq_factor = 4, .original_max_position_embeddings = 256}};
    static const char *const names[6] = {"default", "linear", "dynamic",
                                         "yarn", "yarn.mscale", "llama3"};
    for (size_t r = 0; r < 6; r++) {
        char name[48] = "rope.";
        float inv_freq[HD / 2], table[2][3][T * HD], y[T * H * HD], scaling;
        float *x = core_numbers(c, "rope x", T * H * HD, CORE_PLAIN, d);
        sha256 sum;
        if (x == NULL) return;
        memcpy(name + 5, names[r], strlen(names[r]) + 1);
        sha256_init(&sum);
        scaling = q3_rope_frequencies(inv_freq, &ropes[r], HD, 1024, 5000);
        core_add(c, name, &sum, inv_freq, HD / 2, Q3_F32);
        core_add(c, name, &sum, &scaling, 1, Q3_F32);
        for (size_t p = 0; p < 3; p++) {
            static const size_t first[3] = {0, 4999, 1048573};
            q3_rope_table(table[0][p], table[1][p], inv_freq, scaling, T, first[p], HD, d);
            core_add(c, name, &sum, table[0][p], T * HD, d);
            core_add(c, name, &sum, table[1][p], T * HD, d);
            q3_rope_apply(y, x, table[0][p], table[1][p], T, H, HD, d);
            core_add(c, name, &sum, y, T * H * HD, d);
        }
        core_line(c, name, core_dtypes[d], &sum);
    }
    c->used = 0;
}

static void core_operators(core *c)
{
    core_conversions(c);
    core_widen(c);
    core_exponentials(c);
    core_circular(c);
    core_powers(c);
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++) {
        core_rope(c, d);
        for (core_kind kind = CORE_PLAIN; kind <= CORE_SPECIAL; kind++) {
            core_rows(c, kind, d);
            c->used = 0;
            core_linear(c, kind, d);
            c->used = 0;
            core_elementwise(c, kind, d);
            c->used = 0;
            core_attention(c, kind, d, 0);
            c->used = 0;
            core_attention(c, kind, d, 3);
            c->used = 0;
            core_experts(c, kind, d);
            c->used = 0;
        }
    }
}

/* ==== A run's taps =========================================================================== */

typedef struct core_taps {
    core *c;
    const q3_config *config;
    size_t T;
    void **tensors; /* [(L + 1) * Q3_TAP_COUNT], whole tensors of 32-bit elements */
} core_taps;

/* A piece goes to its place in the whole tensor, so that no chunk can be seen. */
static void core_record(void *user, const q3_tap *tap)
{
    core_taps *r = user;
    size_t shape[3] = {1, 1, 1}, row = 1, outer = tap->token_axis == 1 ? tap->shape[0] : 1;
    size_t rank = q3_tap_shape(shape, r->config, tap->id, r->T);
    size_t tokens = tap->shape[tap->token_axis];
    void **tensor = &r->tensors[tap->layer * Q3_TAP_COUNT + (size_t)tap->id];
    const uint8_t *data = tap->data;
    if (*tensor == NULL) *tensor = core_take(r->c, shape[0] * shape[1] * shape[2] * 4);
    if (*tensor == NULL) return;
    for (size_t i = tap->token_axis + 1; i < rank; i++) row *= tap->shape[i];
    for (size_t h = 0; h < outer; h++)
        for (size_t t = 0; t < tokens; t++, data += row * 4) {
            size_t whole = tap->token_axis == 1 ? r->T : row;
            memcpy((uint8_t *)*tensor + (h * r->T + tap->first + t) * whole * 4, data, row * 4);
        }
}

/* A line for each tensor that ran, in the order of computation. */
static void core_tap_lines(const core_taps *r, q3_dtype dtype)
{
    size_t L = r->config->num_hidden_layers;
    for (size_t place = 0; place < L + 2; place++) {
        bool front = place == 0, head = place == L + 1;
        int from = front ? Q3_TAP_EMBED_TOKENS : head ? Q3_TAP_NORM : Q3_TAP_INPUT_LAYERNORM;
        int to = front ? Q3_TAP_SIN : head ? Q3_TAP_LM_HEAD : Q3_TAP_LAYER;
        size_t layer = front || head ? 0 : place - 1;
        for (int id = from; id <= to; id++) {
            char name[Q3_TAP_NAME_SIZE];
            size_t shape[3] = {1, 1, 1};
            const void *values = r->tensors[layer * Q3_TAP_COUNT + (size_t)id];
            q3_dtype d = q3_tap_dtype((q3_tap_id)id, dtype);
            sha256 sum;
            if (values == NULL) continue;
            q3_tap_name(name, (q3_tap_id)id, layer);
            q3_tap_shape(shape, r->config, (q3_tap_id)id, r->T);
            sha256_init(&sum);
            if (d == Q3_I32)
                for (size_t i = 0; i < shape[0] * shape[1]; i++)
                    core_add_bits(&sum, (uint32_t)((const int32_t *)values)[i], 4);
            else
                core_add(r->c, name, &sum, values, shape[0] * shape[1] * shape[2], d);
            core_line(r->c, name, core_dtypes[dtype], &sum);
        }
    }
}

/* Lines of one run, `chunk` tokens a call. */
static void core_run(core *c, const q3_config *config, const q3_weights *weights,
                     const int32_t *ids, size_t T, size_t start, size_t chunk, q3_dtype dtype)
{
    q3_run run = {dtype, 0, config->num_hidden_layers, start, T, chunk, 0};
    size_t slots = (run.end_layer + 1) * Q3_TAP_COUNT;
    core_taps taps = {c, config, T, core_take(c, slots * sizeof(void *))};
    size_t size = q3_state_size(config, &run);
    void *memory = core_take(c, size);
    q3_error error;
    if (taps.tensors == NULL || memory == NULL) return;
    memset(memory, 0xff, size); /* NaNs, so that what is read before it is written shows */
    q3_state *state = q3_state_init(memory, size, config, weights, &run);
    if (state == NULL) {
        c->complain(c->user, "state: refused", q3_selftest(), 0);
        c->used = 0;
        return;
    }
    for (size_t first = 0; first < T; first += chunk) {
        size_t count = T - first < chunk ? T - first : chunk;
        q3_input input = {ids + first, NULL, count, start + T, count};
        if (q3_forward(state, &input, core_record, &taps, &error) != Q3_OK)
            c->complain(c->user, "forward", "an error at token", (uint32_t)first);
    }
    core_tap_lines(&taps, dtype);
    c->used = 0;
}

/* ==== The small model ======================================================================== */

enum { CORE_L = 3, CORE_E = 9, CORE_V = 61, CORE_M = 38, CORE_T = 9 };
#define CORE_BLOB_SIZE 202057 /* of its weights */

static const size_t core_dense_layers[1] = {1};
static const q3_config core_config = {
    .vocab_size = CORE_V, .hidden_size = CORE_M, .intermediate_size = 45,
    .num_hidden_layers = CORE_L, .num_attention_heads = 6, .num_key_value_heads = 2, .head_dim = 10,
    .max_position_embeddings = 4096, .num_experts = CORE_E, .num_experts_per_tok = 3,
    .moe_intermediate_size = 21, .decoder_sparse_step = 1, .sliding_window = 5, .pad_token_id = -1,
    .rms_norm_eps = 1e-6, .norm_topk_prob = true, .attention_bias = true,
    .rope = {.type = Q3_ROPE_DEFAULT, .rope_theta = 1e6}, .mlp_only_layers = core_dense_layers,
    .mlp_only_count = 1};

/* Its weights lie one behind another in a blob, from its second byte on, in the three formats by
 * turns. */
typedef struct core_model {
    q3_weights weights;
    q3_layer layers[CORE_L];
    q3_mlp experts[CORE_L][CORE_E];
    const uint8_t *blob;
    uint8_t *fill; /* the same blob while it is made, else NULL */
    size_t used, tensors;
} core_model;

/* Elements of full significand from 2^(scale - 3) to 2^(scale + 1), one in 32 subnormal. */
static q3_tensor core_tensor(core_model *m, size_t rows, size_t cols, int scale)
{
    static const unsigned fraction_bits[3] = {23, 7, 10}, bias[3] = {127, 127, 15};
    q3_dtype stored = (q3_dtype)(m->tensors % 3);
    size_t size = stored == Q3_F32 ? 4 : 2, number = m->tensors++;
    q3_tensor tensor = {m->blob + m->used, stored};
    if (m->used + rows * cols * size > CORE_BLOB_SIZE) m->fill = NULL; /* and `used` tells */
    for (size_t i = 0; m->fill != NULL && i < rows * cols; i++) {
        uint64_t u = rule_bits(rule_key("core", "model") + number * UINT64_C(0x100000001), i);
        uint32_t exponent = bias[stored] + (uint32_t)scale - (uint32_t)(u >> 40 & 3);
        if (u >> 50 & 31) exponent <<= fraction_bits[stored];
        else exponent = 0;
        uint32_t bits = exponent | ((uint32_t)u & (((uint32_t)1 << fraction_bits[stored]) - 1));
        uint8_t *to = m->fill + m->used + i * size;
        bits |= (uint32_t)(u >> 63) << (8 * size - 1);
        for (size_t b = 0; b < size; b++) to[b] = (uint8_t)(bits >> 8 * b & 0xff);
    }
    m->used += rows * cols * size;
    return tensor;
}

static q3_mlp core_mlp(core_model *m, size_t width)
{
    q3_mlp mlp;
    mlp.gate_proj = core_tensor(m, width, CORE_M, -2);
    mlp.up_proj = core_tensor(m, width, CORE_M, -2);
    mlp.down_proj = core_tensor(m, CORE_M, width, -2);
    return mlp;
}

static void core_layer(core_model *m, size_t i)
{
    q3_layer *l = &m->layers[i];
    l->input_layernorm = core_tensor(m, CORE_M, 1, 1);
    l->q_proj = core_tensor(m, 60, CORE_M, -2);
    l->k_proj = core_tensor(m, 20, CORE_M, -2);
    l->v_proj = core_tensor(m, 20, CORE_M, -2);
    l->o_proj = core_tensor(m, CORE_M, 60, -3);
    l->q_proj_bias = core_tensor(m, 60, 1, -3);
    l->k_proj_bias = core_tensor(m, 20, 1, -3);
    l->v_proj_bias = core_tensor(m, 20, 1, -3);
    l->o_proj_bias = core_tensor(m, CORE_M, 1, -3);
    l->q_norm = core_tensor(m, 10, 1, 1);
    l->k_norm = core_tensor(m, 10, 1, 1);
    l->post_attention_layernorm = core_tensor(m, CORE_M, 1, 1);
    if (!q3_layer_is_sparse(&core_config, i)) {
        l->mlp = core_mlp(m, core_config.intermediate_size);
        return;
    }
    l->gate = core_tensor(m, CORE_E, CORE_M, -1);
    for (size_t e = 0; e < CORE_E; e++)
        m->experts[i][e] = core_mlp(m, core_config.moe_intermediate_size);
    l->experts = m->experts[i];
}

/* blob: CORE_BLOB_SIZE bytes; fill NULL if they are already there. The vocabulary's last row, in
 * float32, holds a NaN and an infinity. */
static void core_model_make(core_model *m, const uint8_t *blob, uint8_t *fill)
{
    static const uint8_t poison[8] = {0x45, 0x23, 0xa1, 0xff, 0, 0, 0x80, 0x7f};
    memset(m, 0, sizeof *m);
    m->blob = blob;
    m->fill = fill;
    m->used = 1;
    if (fill != NULL) fill[0] = 0;
    m->weights.embed_tokens = core_tensor(m, CORE_V, CORE_M, 0);
    if (fill != NULL) memcpy(fill + 1 + (CORE_V - 1) * CORE_M * 4 + 8, poison, 8);
    for (size_t i = 0; i < CORE_L; i++) core_layer(m, i);
    m->weights.norm = core_tensor(m, CORE_M, 1, 1);
    m->weights.lm_head = core_tensor(m, CORE_V, CORE_M, -1);
    m->weights.layers = m->layers;
}

/* Everything above; chunk as in core_run, 0: the whole prompt. The last token has a NaN. */
static void core_all(core *c, const core_model *m, size_t chunk)
{
    static const int32_t ids[CORE_T] = {17, 3, 42, 59, 0, 28, 28, 5, CORE_V - 1};
    core_operators(c);
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++)
        core_run(c, &core_config, &m->weights, ids, CORE_T, 1021, chunk == 0 ? CORE_T : chunk, d);
}

#endif
