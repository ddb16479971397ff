/* SPDX-License-Identifier: MIT */
/* quants.c - elements of quantised weights as float64: FP8 with block scales, GGUF's block types.
 *
 * The gguf package, whose values these are, computes in float32. Here everything is float64, which
 * gives the same: a float16 scale times the small numbers of a block has 24 bits at most, so that
 * its products are exact either way; a sum or difference of two of them is exact in float64 (both
 * are multiples of 2^-24 below 2^27) and rounded to float32 once, as there. So no product is
 * rounded before it is added, and it does not matter whether a compiler fuses the two. */
#include "host/quants.h"

#include "host/quant_grids.h"
#include "host/text.h"

#include <math.h>
#include <string.h>

#define PART 32 /* elements that are read at once */

/* What is compiled a second time for processors that have AVX2, and its choice. */
#if (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 8)) && !defined(__TINYC__) && \
    defined(__x86_64__)
#define VECTORS 1
#include <immintrin.h>
#else
#define VECTORS 0
#endif
#if defined(__GNUC__) || defined(__clang__)
#define INLINE TARGET static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
#define JOIN(name, set) name##_##set
#define JOINED(name, set) JOIN(name, set)
#define NAME(name) JOINED(name, SET)

/* ==== Numbers ================================================================================= */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline uint32_t load16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static inline uint32_t load32(const uint8_t *p)
{
    return load16(p) | load16(p + 2) << 16;
}

static inline int load_signed(const uint8_t *p)
{
    return (*p ^ 0x80) - 0x80;
}

static inline double float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

/* A float16 above its subnormals has its bits in a float32 that is 2^112 times too small. */
static inline double half(uint32_t bits)
{
    double sign = bits & 0x8000 ? -1.0 : 1.0;
    if ((bits & 0x7C00) == 0) return sign * ((bits & 0x3FF) * 0x1p-24);
    if ((bits & 0x7C00) == 0x7C00) return sign * (double)(bits & 0x3FF ? NAN : INFINITY);
    return sign * (float_of((bits & 0x7FFF) << 13) * 0x1p112);
}

/* Eight bytes at once, whatever their order. */
#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))

static inline uint64_t load_eight(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* Each byte of x less y; 0 to 127 both. */
static inline uint64_t eight_less(uint64_t x, uint64_t y)
{
    return ((x | EACH(0x80)) - EACH(y)) ^ EACH(0x80);
}

/* 1 in byte i if bit i is set. */
static inline uint64_t eight_bits(uint64_t bits)
{
    static const uint8_t bit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    return ((EACH(bits) & load_eight(bit)) + EACH(0x7F)) >> 7 & EACH(1);
}

/* e2m1, doubled. */
static const int8_t fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* A digit, from the first, of a fraction to base 3; less 1. */
static inline int8_t third(uint32_t byte, size_t digit)
{
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    return (int8_t)((int)((byte * power[digit] & 0xFF) * 3 >> 8) - 1);
}

/* Seven signs; the eighth makes their number even. */
static inline uint32_t even_signs(uint32_t seven)
{
    uint32_t parity = seven ^ seven >> 4;
    return seven | (0x6996u >> (parity & 0xF) & 1) << 7;
}

/* e4m3 by its code, as the upper 16 bits of a float64 (NaN is no constant that every compiler
 * takes): 8 multiples of 2^-9, then 3 bits behind the point with exponents from -6 on; the last
 * code of either sign is NaN. */
#define NORMAL(s, code) s | (0x3F80 + 2 * (code))
#define FOUR(s, code) \
    NORMAL(s, code), NORMAL(s, code + 1), NORMAL(s, code + 2), NORMAL(s, code + 3)
#define SIXTEEN(s, code) FOUR(s, code), FOUR(s, code + 4), FOUR(s, code + 8), FOUR(s, code + 12)
#define CODES(s) \
    s, s | 0x3F60, s | 0x3F70, s | 0x3F78, s | 0x3F80, s | 0x3F84, s | 0x3F88, s | 0x3F8C, \
    FOUR(s, 8), FOUR(s, 12), SIXTEEN(s, 16), SIXTEEN(s, 32), SIXTEEN(s, 48), SIXTEEN(s, 64), \
    SIXTEEN(s, 80), SIXTEEN(s, 96), FOUR(s, 112), FOUR(s, 116), FOUR(s, 120), NORMAL(s, 124), \
    NORMAL(s, 125), NORMAL(s, 126), 0x7FF8

static inline double e4m3(uint8_t code)
{
    static const uint16_t upper[256] = {CODES(0), CODES(0x8000)};
    uint64_t bits = (uint64_t)upper[code] << 48;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* ==== Readers =================================================================================
 * GGUF's block types: label, number, name here, elements and bytes of a block. */
#define FORMATS \
    FORMAT("Q4_0", 2, q4_0, 32, 18) \
    FORMAT("Q4_1", 3, q4_1, 32, 20) \
    FORMAT("Q5_0", 6, q5_0, 32, 22) \
    FORMAT("Q5_1", 7, q5_1, 32, 24) \
    FORMAT("Q8_0", 8, q8_0, 32, 34) \
    FORMAT("Q2_K", 10, q2_k, 256, 84) \
    FORMAT("Q3_K", 11, q3_k, 256, 110) \
    FORMAT("Q4_K", 12, q4_k, 256, 144) \
    FORMAT("Q5_K", 13, q5_k, 256, 176) \
    FORMAT("Q6_K", 14, q6_k, 256, 210) \
    FORMAT("IQ2_XXS", 16, iq2_xxs, 256, 66) \
    FORMAT("IQ2_XS", 17, iq2_xs, 256, 74) \
    FORMAT("IQ3_XXS", 18, iq3_xxs, 256, 98) \
    FORMAT("IQ1_S", 19, iq1_s, 256, 50) \
    FORMAT("IQ4_NL", 20, iq4_nl, 32, 18) \
    FORMAT("IQ3_S", 21, iq3_s, 256, 110) \
    FORMAT("IQ2_S", 22, iq2_s, 256, 82) \
    FORMAT("IQ4_XS", 23, iq4_xs, 256, 136) \
    FORMAT("IQ1_M", 29, iq1_m, 256, 56) \
    FORMAT("TQ1_0", 34, tq1_0, 256, 54) \
    FORMAT("TQ2_0", 35, tq2_0, 256, 66) \
    FORMAT("MXFP4", 39, mxfp4, 32, 17) \
    FORMAT("NVFP4", 40, nvfp4, 64, 36)

#define SET plain
#define TARGET
#define WIDE 0
#include "host/quant_blocks.h"
#undef SET
#undef TARGET
#undef WIDE

#if VECTORS
#define SET avx2
#define WIDE 1
#define TARGET __attribute__((target("avx2,f16c")))
#include "host/quant_blocks.h"
#undef SET
#undef TARGET
#undef WIDE
#define READERS(name) {read_##name##_plain, read_##name##_avx2}
#else
#define READERS(name) {read_##name##_plain}
#endif

#define FORMAT(label, number, name, elements, bytes) \
    {label, number, elements, bytes, READERS(name)},
static const q3_block_format formats[] = {FORMATS};
#undef FORMAT

q3_read_fn *const q3_fp8_readers[2] = READERS(fp8);

const q3_block_format *q3_block_at(size_t index)
{
    return index < sizeof formats / sizeof formats[0] ? &formats[index] : NULL;
}

const q3_block_format *q3_block_find(uint32_t type)
{
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (formats[i].type == type) return &formats[i];
    return NULL;
}

/* As kernels.c has asked the processor, where there is kernels.c. */
static bool has_vectors(void)
{
#if VECTORS && defined(Q3_KERNELS)
    const char *set = Q3_KERNELS()->name;
    return strcmp(set, "avx2") == 0 || strcmp(set, "avx512") == 0;
#else
    return false;
#endif
}

/* ==== Weights ================================================================================= */

q3_quantized q3_block_weight(const q3_block_format *format, const void *data)
{
    return (q3_quantized){.dequantize = format->read[has_vectors()], .format = format,
                          .data = data, .rounded = true};
}

q3_quantized q3_fp8_weight(const void *data, size_t columns, q3_tensor scales, size_t block_rows,
                           size_t block_columns)
{
    return (q3_quantized){.dequantize = q3_fp8_readers[has_vectors()], .data = data,
                          .scales = scales.data, .scale_dtype = scales.dtype, .columns = columns,
                          .block_rows = block_rows, .block_columns = block_columns};
}

q3_tensor q3_tensor_from(q3_tensor tensor, size_t first, q3_quantized *own)
{
    if (tensor.dtype != Q3_QUANTIZED) {
        const uint8_t *data = tensor.data;
        return (q3_tensor){data + first * q3_dtype_size(tensor.dtype), tensor.dtype};
    }
    *own = *(const q3_quantized *)tensor.data;
    own->first += first;
    return (q3_tensor){own, Q3_QUANTIZED};
}
