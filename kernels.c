/* SPDX-License-Identifier: MIT */
/* kernels.c - the inner loops of qwen3moe.c once more, fast: the same bits by another way through
 * the data (MODEL.md section 2). kernels_dots.h has the sums, kernels_quantized.h their quantised
 * weights, kernels_maps.h what goes element by element, kernels_attention.h both in one; they are
 * written over vectors of WIDTH float64, and compiled here once for each instruction set. Which of
 * them runs is asked of the processor. What is not x86-64 or aarch64, or has a compiler without GNU
 * vectors, keeps the plain loops. */
#include "qwen3moe.h"

#include <stdlib.h>
#include <string.h>

#if (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 8)) && !defined(__TINYC__) && \
    (defined(__x86_64__) || (defined(__aarch64__) && !defined(__AARCH64EB__)))
#define VECTORS 1
#else
#define VECTORS 0
#endif

#if VECTORS

/* A product that feeds an addition is exact here as everywhere, so that fusing them changes no bit;
 * and it halves the work. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT ON
#else
#pragma GCC optimize("fp-contract=fast", "no-associative-math") /* a flag that it would take up */
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <stdatomic.h>
#else
#include <arm_neon.h>
#endif

#define LANES 16
#define QUIET_NAN 0x7FC00000
#define SIGN_BIT 0x8000000000000000u
#define INFINITY_BITS 0x7FF0000000000000u
#define JOIN(name, set) name##_##set
#define JOINED(name, set) JOIN(name, set)
#define NAME(name) JOINED(name, SET)

#define UNUSED __attribute__((unused))
#define UNROLL _Pragma("GCC unroll 16")
/* The vector stays in a register: gcc would load it again for each use. */
#if defined(__x86_64__)
#define KEEP(x) __asm__("" : "+v"(x))
#else
#define KEEP(x) __asm__("" : "+w"(x))
#endif
#if defined(__clang__)
#define SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif

/* Scratch that tokens may take which are laid out, and rows; weights that are read again. */
#define TOKEN_BYTES ((size_t)10 << 20)
#define ROW_BYTES ((size_t)4 << 20)
/* Tokens for the second-level cache, beside a tile of rows; a few tokens' columns for the first. */
#define GROUP_BYTES ((size_t)1 << 20)
#define TOKENS_AT_HAND ((size_t)24 << 10)
#define MOST_COLUMNS 2048
#define DECODED_COLUMNS 512 /* of SOME_ROWS rows, for the second-level cache */
#define SOME_ROWS 24 /* that meet them before the next columns */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* How a float64 becomes an element of D: on_grid and narrow of kernels_maps.h. */
typedef struct format {
    bool single, half;  /* float32, float16: where the processor has its own conversion */
    double grid, least; /* 1.5 * 2^(53 - precision); the least normal number */
    double fits;        /* a value below it does not overflow */
    double up;          /* times this, the first power of two above D's range is that of float32 */
    float down;
} format;

static format format_of(q3_dtype dtype)
{
    static const format formats[] = {
        [Q3_F32] = {true, false, 0x1.8p29, 0x1p-126, 0x1p127, 1.0, 1.0f},
        [Q3_BF16] = {false, false, 0x1.8p45, 0x1p-126, 0x1p127, 1.0, 1.0f},
        [Q3_F16] = {false, true, 0x1.8p42, 0x1p-14, 0x1p15, 0x1p112, 0x1p-112f}};
    Q3_CHECK(dtype == Q3_F32 || dtype == Q3_BF16 || dtype == Q3_F16);
    return formats[dtype];
}

/* Columns with those that are added to fill the last step. */
static size_t padded(size_t C)
{
    return (C + LANES - 1) / LANES * LANES;
}

/* Where the next lane begins: at a power of two behind this one all lanes would meet in the same
 * places of the cache. */
static size_t apart(size_t n)
{
    return (n + 7) / 8 * 8 + 8;
}

static double size_of(double x)
{
    return x < 0 ? -x : x;
}

typedef void round_fn(float *y, const double *x, size_t n, q3_dtype dtype);

/* Sums of rows [o, o + n) with token t go where they are wanted; sums are lost. */
static void hand_over(const q3_dots *d, round_fn *round, double *sums, size_t t, size_t o, size_t n)
{
    if (d->sums != NULL) memcpy(d->sums + t * d->N + o, sums, n * sizeof *sums);
    if (d->y == NULL) return;
    for (size_t r = 0; d->bias.data != NULL && r < n; r++) {
        float b;
        q3_widen(&b, d->bias, o + r, 1, d->dtype);
        sums[r] += (double)b;
    }
    round(d->y + t * d->y_stride + o, sums, n, d->dtype);
}

static bool is_quantized(const q3_dots *d)
{
    return d->weight.dtype == Q3_QUANTIZED;
}

/* Whether the weight can be taken from where it lies: no element changes by rounding to the run's
 * dtype. */
static bool as_it_lies(const q3_dots *d)
{
    if (is_quantized(d)) return false;
    return d->rows != NULL || d->dtype == Q3_F32 || d->dtype == d->weight.dtype;
}

static bool want_sums(const q3_dots *d)
{
    return d->sums != NULL || d->y != NULL;
}

/* The first place from p on that begins a cache line. */
static double *to_line(double *p)
{
    return p + (64 - (uintptr_t)p % 64) % 64 / sizeof *p;
}

/* A call with few tokens: T of them, with so many columns at a time and in so many passes; lanes,
 * and columns that are not taken as they lie, of SOME_ROWS rows. */
typedef struct few {
    double *x[2], *lanes[2]; /* of the tokens; of their sizes (NULL: not wanted) */
    uint8_t *rows;
    size_t T, columns, passes;
    size_t element, ahead; /* bytes of a weight, and to the one that is needed SOME_ROWS later */
    size_t taken;          /* bytes of a weight where it is multiplied: 4 or 8 if not as it lies */
    bool direct; /* weights are taken as they lie, */
    bool pairs;  /* two of 16 bits together */
} few;

/* The first token of pass i: passes are as equal as can be. */
static size_t pass_start(const few *b, size_t i)
{
    return i * b->T / b->passes;
}

/* What a processor's second-level cache is asked for: from an address on, so many bytes a step. */
typedef struct ask {
    uintptr_t at;
    size_t step;
} ask;

/* A call with more: tokens T from `first` on and their sizes (NULL: not wanted) in tiles; a tile of
 * rows, a lane of it as float64; sums whose lanes are not all there. */
typedef struct block {
    double *x[2], *lane, *waiting;
    uint32_t *rows;
    size_t steps, token_tile;       /* elements of a tile */
    size_t first, T, tiles, group;  /* tiles of tokens, and that meet a tile of rows together */
    size_t stretch;                 /* rows that each group meets before the next group does */
} block;

/* The first token of tile k, counted from b->first: tiles are as equal as can be. */
static size_t tile_start(const block *b, size_t k)
{
    return k * b->T / b->tiles;
}

#include "kernels_tiles.h"

#define TABLE(set) {#set, dots_##set, values_##set, round_##set, multiply_##set, add_##set, \
                    silu_##set, exp_##set, attend_##set}

/* What every processor of the kind has. */
#if defined(__x86_64__)
#define SET baseline
#else
#define SET neon
#endif
#define TARGET
#define WIDTH 2
#include "kernels_maps.h"
#include "kernels_quantized.h"
#include "kernels_attention.h"
#include "kernels_dots.h"
#undef SET
#undef TARGET
#undef WIDTH

#if defined(__x86_64__)
#define SET avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define WIDTH 4
#include "kernels_maps.h"
#include "kernels_quantized.h"
#include "kernels_attention.h"
#include "kernels_dots.h"
#undef SET
#undef TARGET
#undef WIDTH

#define SET avx512
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq")))
#define WIDTH 8
#include "kernels_maps.h"
#include "kernels_quantized.h"
#include "kernels_attention.h"
#include "kernels_dots.h"
#undef SET
#undef TARGET
#undef WIDTH

static const q3_kernels sets[] = {TABLE(baseline), TABLE(avx2), TABLE(avx512)};

/* Not every compiler that is taken here knows the name of this one. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
}

/* How many of them this processor runs: each has all that the one before it has. */
static size_t ask_for_sets(void)
{
    if (!has_f16c()) return 1;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return wide ? 3 : 2;
}

/* Asked once: in a virtual machine the answer takes longer than many a call of a kernel. */
static size_t count_sets(void)
{
    static atomic_size_t known;
    size_t count = atomic_load_explicit(&known, memory_order_relaxed);
    if (count > 0) return count;
    count = ask_for_sets();
    atomic_store_explicit(&known, count, memory_order_relaxed);
    return count;
}
#else
static const q3_kernels sets[] = {TABLE(neon)};

static size_t count_sets(void)
{
    return 1;
}
#endif

const q3_kernels *q3_best_kernels(void)
{
    return &sets[count_sets() - 1];
}

const q3_kernels *q3_kernels_available(size_t index)
{
    if (index == 0) return q3_plain_kernels();
    return index <= count_sets() ? &sets[index - 1] : NULL;
}

#else

const q3_kernels *q3_best_kernels(void)
{
    return q3_plain_kernels();
}

const q3_kernels *q3_kernels_available(size_t index)
{
    return index == 0 ? q3_plain_kernels() : NULL;
}

#endif
