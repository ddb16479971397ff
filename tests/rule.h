/* SPDX-License-Identifier: MIT */
/* Weights and inputs that are a rule, not data: the C half. scripts/golden/rule.py gives the same
 * bits.
 *
 * A value depends on a seed (a text, the case's name), the tensor's Hugging Face checkpoint name,
 * its shape and the element's row-major index. Vectors (norm weights, biases): cols = 1.
 *   key    FNV-1a, 64 bits, over the bytes of seed, one zero byte, the bytes of name
 *   u      splitmix64's finaliser of key + (index + 1) * 0x9E3779B97F4A7C15, modulo 2^64
 *   m      2 * (u >> 56) - 255: odd, -255..255, so never 0, mean 0, root mean square 147.8
 *   c      the smallest c with 4^c >= cols, so that 2^c is about sqrt(cols)
 * The name's ending chooses the value:
 *   norm.weight          (64 + ((u >> 48) mod 128)) / 128, in 0.5..1.5; / 64 for q_norm.weight;
 *                        negative where (u >> 40) mod 16 is 0
 *   .bias                m * 2^-9
 *   embed_tokens.weight  m * 2^-7; rows with row mod 7 = 3 are m * 2^-17: as small as eps's root
 *   mlp.gate.weight      m * 2^-(6 + c): router logits spread twice as far as other outputs
 *   other .weight        m * 2^-(7 + c): outputs about as large as inputs
 *   any other name       m * 2^-7
 * Each value has at most 8 significant bits and (up to 2^20 columns) is a multiple of 2^-17:
 * exact in bfloat16, float16 and float32. Integers and multiplications by powers of two: no
 * libm. */
#ifndef Q3_RULE_H
#define Q3_RULE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline int rule_ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && memcmp(text + (n - k), end, k) == 0;
}

static inline uint64_t rule_key(const char *seed, const char *name)
{
    uint64_t h = UINT64_C(0xCBF29CE484222325);
    const char *part[2];
    part[0] = seed;
    part[1] = name;
    for (size_t p = 0; p < 2; p++) {
        if (p == 1) {
            h *= UINT64_C(0x100000001B3); /* the zero byte between the two texts */
        }
        for (size_t i = 0; part[p][i] != 0; i++) {
            h = (h ^ (uint64_t)(unsigned char)part[p][i]) * UINT64_C(0x100000001B3);
        }
    }
    return h;
}

static inline uint64_t rule_bits(uint64_t key, uint64_t index)
{
    uint64_t z = key + (index + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* m * 2^-shift, exactly. */
static inline float rule_scaled(int m, unsigned shift)
{
    float scale = 1.0f;
    for (unsigned i = 0; i < shift; i++) {
        scale *= 0.5f;
    }
    return (float)m * scale;
}

/* The power of two for every row but the small rows of the embedding; norms do not use it. */
static inline unsigned rule_shift(const char *name, uint64_t cols)
{
    unsigned c = 0;
    if (rule_ends_with(name, ".bias")) {
        return 9;
    }
    if (rule_ends_with(name, "embed_tokens.weight") || !rule_ends_with(name, ".weight")) {
        return 7;
    }
    while ((UINT64_C(1) << (2 * c)) < cols) {
        c++;
    }
    return rule_ends_with(name, "mlp.gate.weight") ? 6 + c : 7 + c;
}

/* Rows [row, row + count) of a tensor with `cols` columns, so that a large one can be made piece by
 * piece. */
static inline void rule_fill_rows(float *out, const char *seed, const char *name, uint64_t row,
                                  uint64_t count, uint64_t cols)
{
    const uint64_t key = rule_key(seed, name);
    const int norm = rule_ends_with(name, "norm.weight");
    const int embed = rule_ends_with(name, "embed_tokens.weight");
    const unsigned norm_shift = rule_ends_with(name, "q_norm.weight") ? 6 : 7;
    const unsigned shift = rule_shift(name, cols);
    for (uint64_t r = 0; r < count; r++) {
        const unsigned s = embed && (row + r) % 7 == 3 ? 17 : shift;
        const float unit = rule_scaled(1, s), norm_unit = rule_scaled(1, norm_shift);
        for (uint64_t c = 0; c < cols; c++) {
            const uint64_t u = rule_bits(key, (row + r) * cols + c);
            float *y = out + (size_t)(r * cols + c);
            if (norm) {
                const int w = 64 + (int)((u >> 48) % 128);
                *y = (float)((u >> 40) % 16 == 0 ? -w : w) * norm_unit;
            } else {
                *y = (float)(2 * (int)(u >> 56) - 255) * unit;
            }
        }
    }
}

/* A whole tensor. */
static inline void rule_fill(float *out, const char *seed, const char *name, uint64_t rows,
                             uint64_t cols)
{
    rule_fill_rows(out, seed, name, 0, rows, cols);
}

#endif
