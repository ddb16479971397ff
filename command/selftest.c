/* SPDX-License-Identifier: MIT */
/* selftest.c - `qwen3moe selftest`: what this compiler and processor do, and a hash of what the
 * operators give here, which must be the same everywhere. */
#include "command/command.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

/* Inputs by a rule: any sign, full significands, exponents 2^-8 to 2^7. */
static void fill(float *values, size_t count, uint32_t *state)
{
    for (size_t i = 0; i < count; i++) {
        *state = *state * 1664525u + 1013904223u;
        uint32_t u =
            (*state & 0x80000000u) | (119 + (*state >> 27 & 15)) << 23 | (*state >> 4 & 0x7FFFFF);
        memcpy(&values[i], &u, 4);
    }
}

/* FNV-1a over the values' bits, least significant byte first. */
static uint64_t add_hash(uint64_t hash, const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t u;
        memcpy(&u, &values[i], 4);
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ (u >> shift & 0xFF)) * UINT64_C(0x100000001B3);
    }
    return hash;
}

/* A weight of `count` bfloat16 elements, as in a file. */
static q3_tensor fill_weight(uint8_t *bytes, size_t count, uint32_t *state)
{
    for (size_t i = 0; i < count; i++) {
        float value;
        uint32_t u;
        fill(&value, 1, state);
        memcpy(&u, &value, 4);
        bytes[2 * i] = (uint8_t)(u >> 16 & 0xFF);
        bytes[2 * i + 1] = (uint8_t)(u >> 24);
    }
    q3_tensor tensor = {bytes, Q3_BF16};
    return tensor;
}

enum { T = 3, H = 4, K = 2, HD = 20, M = 77, E = 5, A = 3 };

/* Every operator in one dtype, each fed by the ones before it. */
static uint64_t hash_operators(uint64_t hash, q3_dtype dtype)
{
    static const q3_rope rope = {.type = Q3_ROPE_YARN, .rope_theta = 1e6, .factor = 4.0,
                                 .original_max_position_embeddings = 4096, .beta_fast = 32,
                                 .beta_slow = 1, .truncate = true};
    const q3_tensor no_bias = {NULL, Q3_F32};
    uint8_t bytes[2 * H * HD * M];
    float x[T * M], q[T * H * HD], k[T * K * HD], v[T * K * HD], inv_freq[HD / 2], cos[T * HD],
    sin[T * HD];
    float scores[H * T * T], y[T * H * HD], logits[T * E], weights[T * A], down[T * A * M];
    double scratch[T];
    int32_t ids[T * A];
    uint32_t state = 1;
    fill(x, T * M, &state);
    fill(down, T * A * M, &state);
    q3_rmsnorm(x, x, fill_weight(bytes, M, &state), T, M, 1e-6f, dtype);
    q3_linear(q, x, fill_weight(bytes, H * HD * M, &state), no_bias, T, H * HD, M, dtype);
    q3_linear(k, x, fill_weight(bytes, K * HD * M, &state), no_bias, T, K * HD, M, dtype);
    q3_linear(v, x, fill_weight(bytes, K * HD * M, &state), no_bias, T, K * HD, M, dtype);
    q3_linear(logits, x, fill_weight(bytes, E * M, &state), no_bias, T, E, M, dtype);
    q3_rmsnorm(q, q, fill_weight(bytes, HD, &state), T * H, HD, 1e-6f, dtype);
    q3_rmsnorm(k, k, fill_weight(bytes, HD, &state), T * K, HD, 1e-6f, dtype);
    float scaling = q3_rope_frequencies(inv_freq, &rope, HD, 16384, T);
    q3_rope_table(cos, sin, inv_freq, scaling, T, 5000, HD, dtype);
    q3_rope_apply(q, q, cos, sin, T, H, HD, dtype);
    q3_rope_apply(k, k, cos, sin, T, K, HD, dtype);
    q3_attention_scores(scores, q, k, T, H, K, HD, 0, T, 2, dtype);
    hash = add_hash(hash, scores, H * T * T);
    q3_attention_probs(scores, scores, scratch, T, H, 0, T, 2, dtype);
    q3_attention_values(y, scores, v, T, H, K, HD, 0, T, 2, dtype);
    q3_silu_map(q, y, T * H * HD, dtype);
    q3_multiply(q, q, y, T * H * HD, dtype);
    q3_residual_add(q, q, y, T * H * HD, dtype);
    for (size_t i = 0; i < T * E; i++) logits[i] *= 0x1p-7f;
    q3_router_probs(logits, logits, T, E);
    q3_router_topk(ids, logits, T, E, A);
    q3_router_weights(weights, logits, ids, T, E, A, true, dtype);
    q3_expert_combine(x, down, ids, weights, T, A, M, dtype);
    hash = add_hash(add_hash(hash, cos, T * HD), sin, T * HD);
    hash = add_hash(add_hash(hash, scores, H * T * T), q, T * H * HD);
    hash = add_hash(add_hash(hash, logits, T * E), weights, T * A);
    return add_hash(hash, x, T * M);
}

/* What the compiler says of itself, and what the arithmetic shows. */
static void print_environment(void)
{
    volatile double above = 1.0 + 0x1p-30, below = 1.0 - 0x1p-30, one = 1.0;
    double a = above, b = below, c = one;
    const uint16_t word = 1;
    uint8_t low;
    memcpy(&low, &word, 1);
#if defined(__VERSION__)
    printf("compiler %s\n", __VERSION__);
#else
    printf("compiler unknown\n");
#endif
#if defined(FLT_EVAL_METHOD)
    printf("FLT_EVAL_METHOD %d\n", (int)FLT_EVAL_METHOD);
#endif
    printf("byte order %s\n", low == 1 ? "little" : "big");
    printf("products fused into sums %s\n", a * b - c == 0.0 ? "no" : "yes");
}

q3_status verb_selftest(const command_line *command, q3_error *error)
{
    /* Our own bits; a change is a line in CHANGELOG.md. */
    const uint64_t expected = UINT64_C(0xE44155DC59F230F8);
    uint64_t hash = UINT64_C(0xCBF29CE484222325);
    const char *what;
    bool holds, all = true;
    (void)command;
    (void)error;
    print_environment();
    for (size_t i = 0; (what = q3_selftest_check(i, &holds)) != NULL; i++) {
        printf("%s: %s\n", what, holds ? "holds" : "broken");
        all = all && holds;
    }
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++) hash = hash_operators(hash, d);
    printf("operators %08lx%08lx: %s\n", (unsigned long)(hash >> 32),
           (unsigned long)(hash & 0xFFFFFFFF), hash == expected ? "holds" : "broken");
    return all && hash == expected ? Q3_OK : VERB_DIFFERS;
}
