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

/* ==== Numbers ================================================================================= */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static uint32_t load16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t load32(const uint8_t *p)
{
    return load16(p) | load16(p + 2) << 16;
}

static int load_signed(const uint8_t *p)
{
    return (*p ^ 0x80) - 0x80;
}

static double float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

/* A float16: its bits as a float32's are 2^112 times too small. */
static double half(uint32_t bits)
{
    double sign = bits & 0x8000 ? -1.0 : 1.0;
    if ((bits & 0x7C00) == 0x7C00) return sign * (double)(bits & 0x3FF ? NAN : INFINITY);
    return sign * (float_of((bits & 0x7FFF) << 13) * 0x1p112);
}

/* One rounding to float32. */
static double single(double x)
{
    return (double)(float)x;
}

/* ==== GGUF: one scale a block of 32 ===========================================================
 * d (and m) are float16 at the beginning of the block; small numbers of 4 bits stand as 16 low
 * nibbles, then 16 high ones. */

static int nibble(const uint8_t *p, size_t i)
{
    return p[i % 16] >> (i < 16 ? 0 : 4) & 0xF;
}

static int fifth_bit(const uint8_t *p, size_t i)
{
    return (int)(load32(p) >> i & 1) << 4;
}

static void q8_0(double *values, const uint8_t *block, size_t part)
{
    (void)part;
    double d = half(load16(block));
    for (size_t i = 0; i < PART; i++) values[i] = d * load_signed(block + 2 + i);
}

static void q4_0(double *values, const uint8_t *block, size_t part)
{
    (void)part;
    double d = half(load16(block));
    for (size_t i = 0; i < PART; i++) values[i] = d * (nibble(block + 2, i) - 8);
}

static void q4_1(double *values, const uint8_t *block, size_t part)
{
    (void)part;
    double d = half(load16(block)), m = half(load16(block + 2));
    for (size_t i = 0; i < PART; i++) values[i] = single(d * nibble(block + 4, i) + m);
}

static void q5_0(double *values, const uint8_t *block, size_t part)
{
    (void)part;
    double d = half(load16(block));
    for (size_t i = 0; i < PART; i++)
        values[i] = d * ((nibble(block + 6, i) | fifth_bit(block + 2, i)) - 16);
}

static void q5_1(double *values, const uint8_t *block, size_t part)
{
    (void)part;
    double d = half(load16(block)), m = half(load16(block + 2));
    for (size_t i = 0; i < PART; i++)
        values[i] = single(d * (nibble(block + 8, i) | fifth_bit(block + 4, i)) + m);
}

static void iq4_nl(double *values, const uint8_t *block, size_t part)
{
    (void)part;
    double d = half(load16(block));
    for (size_t i = 0; i < PART; i++) values[i] = d * q3_iq4_values[nibble(block + 2, i)];
}

/* e2m1, doubled. */
static double fp4(int code)
{
    static const int8_t size[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    return code & 8 ? -size[code & 7] : size[code & 7];
}

/* The scale is half of 2^(e - 127), subnormal below 2^-126. The largest products overflow. */
static void mxfp4(double *values, const uint8_t *block, size_t part)
{
    (void)part;
    uint32_t e = block[0];
    double d = float_of(e < 2 ? 0x200000u << e : (e - 1) << 23);
    for (size_t i = 0; i < PART; i++) values[i] = single(d * fp4(nibble(block + 1, i)));
}

/* ==== GGUF: blocks of 256 ======================================================================
 * Eight parts. Their scales are small numbers too, times the block's. */

/* Small numbers of 2 bits: four parts share 32 bytes. */
static int two_bits(const uint8_t *p, size_t part, size_t i)
{
    return p[part / 4 * PART + i] >> part % 4 * 2 & 3;
}

static void q2_k(double *values, const uint8_t *block, size_t part)
{
    double d = half(load16(block + 80)), m = half(load16(block + 82));
    for (size_t k = 0; k < 2; k++) {
        int scale = block[2 * part + k];
        double dl = d * (scale & 0xF), ml = m * (scale >> 4);
        for (size_t i = 16 * k; i < 16 * k + 16; i++)
            values[i] = single(dl * two_bits(block + 16, part, i) - ml);
    }
}

/* 16 scales of 6 bits in 12 bytes: low nibbles of 8 bytes, their high ones, 2 bits of 4 more. */
static void q3_k(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *high = block, *low = block + 32, *scales = block + 96;
    double d = half(load16(block + 108));
    for (size_t k = 0; k < 2; k++) {
        size_t j = 2 * part + k;
        int scale = scales[j % 8] >> (j < 8 ? 0 : 4) & 0xF;
        scale |= (scales[8 + j % 4] >> j / 4 * 2 & 3) << 4;
        double dl = d * (scale - 32);
        for (size_t i = 16 * k; i < 16 * k + 16; i++)
            values[i] = dl * (two_bits(low, part, i) - (high[i] >> part & 1 ? 0 : 4));
    }
}

/* 8 scales and 8 minima of 6 bits in 12 bytes: those of parts 0 to 3 in 4 bytes each, whose 2 upper
 * bits belong to parts 4 to 7; the others' low nibbles follow. */
static void scale_and_minimum(int *scale, int *minimum, const uint8_t *p, size_t part)
{
    *scale = p[part % 4] & 0x3F;
    *minimum = p[4 + part % 4] & 0x3F;
    if (part < 4) return;
    *scale = (p[4 + part] & 0xF) | p[part - 4] >> 6 << 4;
    *minimum = p[4 + part] >> 4 | p[part] >> 6 << 4;
}

static void q4_k(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *q = block + 16 + part / 2 * PART;
    int scale, minimum;
    scale_and_minimum(&scale, &minimum, block + 4, part);
    double d = half(load16(block)) * scale, m = half(load16(block + 2)) * minimum;
    for (size_t i = 0; i < PART; i++) values[i] = single(d * (q[i] >> part % 2 * 4 & 0xF) - m);
}

static void q5_k(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *high = block + 16, *q = block + 48 + part / 2 * PART;
    int scale, minimum;
    scale_and_minimum(&scale, &minimum, block + 4, part);
    double d = half(load16(block)) * scale, m = half(load16(block + 2)) * minimum;
    for (size_t i = 0; i < PART; i++)
        values[i] = single(d * ((q[i] >> part % 2 * 4 & 0xF) | (high[i] >> part & 1) << 4) - m);
}

static void q6_k(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *low = block + part / 4 * 64 + part % 2 * PART, *high = block + 128;
    double d = half(load16(block + 208));
    for (size_t k = 0; k < 2; k++) {
        double dl = d * load_signed(block + 192 + 2 * part + k);
        for (size_t i = 16 * k; i < 16 * k + 16; i++)
            values[i] = dl * (((low[i] >> part / 2 % 2 * 4 & 0xF) | two_bits(high, part, i) << 4) -
                              32);
    }
}

static void iq4_xs(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *q = block + 8 + 16 * part;
    int scale = block[4 + part / 2] >> part % 2 * 4 & 0xF;
    scale |= (int)(load16(block + 2) >> 2 * part & 3) << 4;
    double d = half(load16(block)) * (scale - 32);
    for (size_t i = 0; i < PART; i++) values[i] = d * q3_iq4_values[nibble(q, i)];
}

/* Five numbers of three values in a byte, as digits of a fraction to base 3: part by part 32 bytes,
 * then 16, then four numbers in each of 4. */
static int third(uint32_t byte, size_t digit)
{
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    return (int)((byte * power[digit] & 0xFF) * 3 >> 8) - 1;
}

static void tq1_0(double *values, const uint8_t *block, size_t part)
{
    double d = half(load16(block + 52));
    for (size_t i = 0; i < PART; i++) {
        size_t at = part * PART + i, rest = at - 160, last = at - 240;
        int q = at < 160   ? third(block[i], part)
                : at < 240 ? third(block[32 + rest % 16], rest / 16)
                           : third(block[48 + last % 4], last / 4);
        values[i] = d * q;
    }
}

static void tq2_0(double *values, const uint8_t *block, size_t part)
{
    double d = half(load16(block + 64));
    for (size_t i = 0; i < PART; i++) values[i] = d * (two_bits(block, part, i) - 1);
}

/* Blocks of 64: four e4m3 scales without a sign, doubled as fp4's values are. */
static void nvfp4(double *values, const uint8_t *block, size_t part)
{
    for (size_t k = 0; k < 2; k++) {
        const uint8_t *q = block + 4 + 8 * (2 * part + k);
        uint32_t code = block[2 * part + k];
        double d = float_of((code & 0x7F) << 20) * 0x1p119;
        if (code == 0x7F) d = 0.0;
        for (size_t i = 0; i < 16; i++) values[16 * k + i] = d * fp4(q[i % 8] >> i / 8 * 4 & 0xF);
    }
}

/* ==== GGUF: grids ==============================================================================
 * Several elements together are a row of a table (host/quant_grids.h), with signs of their own. */

/* Seven signs; the eighth makes their number even. */
static uint32_t even_signs(uint32_t seven)
{
    uint32_t parity = seven ^ seven >> 4;
    return seven | (0x6996u >> (parity & 0xF) & 1) << 7;
}

/* 8 elements of a row of 2 bits each, or of two rows of 4 bits each. */
static void put_eight(double *values, double d, uint32_t row, const uint8_t *map, uint32_t signs)
{
    for (size_t i = 0; i < 8; i++) {
        double value = d * map[row >> 2 * i & 3];
        values[i] = signs >> i & 1 ? -value : value;
    }
}

static void put_fours(double *values, double d, uint32_t rows, const uint8_t *map, uint32_t signs)
{
    for (size_t i = 0; i < 8; i++) {
        double value = d * map[rows >> 4 * i & 0xF];
        values[i] = signs >> i & 1 ? -value : value;
    }
}

static void iq2_xxs(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *q = block + 2 + 8 * part;
    uint32_t rest = load32(q + 4);
    double d = half(load16(block)) * (0.5 + (rest >> 28)) * 0.25;
    for (size_t k = 0; k < 4; k++)
        put_eight(values + 8 * k, d, q3_iq2_xxs_grid[q[k]], q3_iq2_values,
                  even_signs(rest >> 7 * k & 0x7F));
}

static void iq2_xs(double *values, const uint8_t *block, size_t part)
{
    double d = half(load16(block));
    for (size_t k = 0; k < 4; k++) {
        uint32_t q = load16(block + 2 + 8 * part + 2 * k), scale = block[66 + part] >> k / 2 * 4;
        put_eight(values + 8 * k, d * (0.5 + (scale & 0xF)) * 0.25, q3_iq2_xs_grid[q & 0x1FF],
                  q3_iq2_values, even_signs(q >> 9));
    }
}

static void iq2_s(double *values, const uint8_t *block, size_t part)
{
    double d = half(load16(block));
    for (size_t k = 0; k < 4; k++) {
        uint32_t q = block[2 + 4 * part + k], scale = block[74 + part] >> k / 2 * 4;
        q |= (block[66 + part] >> 2 * k & 3u) << 8;
        put_eight(values + 8 * k, d * (0.5 + (scale & 0xF)) * 0.25, q3_iq2_s_grid[q],
                  q3_iq2_values, block[34 + 4 * part + k]);
    }
}

static void iq3_xxs(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *q = block + 2 + 8 * part;
    uint32_t rest = load32(block + 66 + 4 * part);
    double d = half(load16(block)) * (0.5 + (rest >> 28)) * 0.5;
    for (size_t k = 0; k < 4; k++) {
        uint32_t rows = q3_iq3_xxs_grid[q[2 * k]] | (uint32_t)q3_iq3_xxs_grid[q[2 * k + 1]] << 16;
        put_fours(values + 8 * k, d, rows, q3_iq3_xxs_values, even_signs(rest >> 7 * k & 0x7F));
    }
}

static void iq3_s(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *q = block + 2 + 8 * part;
    uint32_t high = block[66 + part], scale = block[106 + part / 2] >> part % 2 * 4 & 0xF;
    double d = half(load16(block)) * (1 + 2 * scale);
    for (size_t k = 0; k < 4; k++) {
        uint32_t low_row = q[2 * k] | (high >> 2 * k & 1) << 8;
        uint32_t high_row = q[2 * k + 1] | (high >> (2 * k + 1) & 1) << 8;
        uint32_t rows = q3_iq3_s_grid[low_row] | (uint32_t)q3_iq3_s_grid[high_row] << 16;
        put_fours(values + 8 * k, d, rows, q3_iq3_s_values, block[74 + 4 * part + k]);
    }
}

/* 8 elements -1, 0 or 1 and a shift of an eighth. */
static void put_shifted(double *values, double d, uint32_t row, bool down)
{
    double shift = down ? -0.125 : 0.125;
    for (size_t i = 0; i < 8; i++) values[i] = d * ((int)(row >> 2 * i & 3) - 1 + shift);
}

static void iq1_s(double *values, const uint8_t *block, size_t part)
{
    uint32_t high = load16(block + 34 + 2 * part);
    double d = half(load16(block)) * (2 * (high >> 12 & 7) + 1);
    for (size_t k = 0; k < 4; k++)
        put_shifted(values + 8 * k, d,
                    q3_iq1_grid[block[2 + 4 * part + k] | (high >> 3 * k & 7) << 8], high >> 15);
}

/* The block's own scale is what the four words of scales have in their highest 4 bits. */
static void iq1_m(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *scales = block + 48;
    uint32_t bits = 0;
    for (size_t k = 0; k < 4; k++) bits |= load16(scales + 2 * k) >> 12 << 4 * k;
    double d = half(bits);
    for (size_t k = 0; k < 4; k++) {
        uint32_t scale = load16(scales + part / 2 * 2) >> (part % 2 * 6 + k / 2 * 3) & 7;
        uint32_t high = block[32 + 2 * part + k / 2] >> k % 2 * 4 & 0xF;
        put_shifted(values + 8 * k, d * (2 * scale + 1),
                    q3_iq1_grid[block[4 * part + k] | (high & 7) << 8], high >> 3);
    }
}

/* ==== GGUF: the table ========================================================================= */

static const q3_block_format formats[] = {
    {"Q4_0", 2, 32, 18, q4_0},         {"Q4_1", 3, 32, 20, q4_1},
    {"Q5_0", 6, 32, 22, q5_0},         {"Q5_1", 7, 32, 24, q5_1},
    {"Q8_0", 8, 32, 34, q8_0},         {"Q2_K", 10, 256, 84, q2_k},
    {"Q3_K", 11, 256, 110, q3_k},      {"Q4_K", 12, 256, 144, q4_k},
    {"Q5_K", 13, 256, 176, q5_k},      {"Q6_K", 14, 256, 210, q6_k},
    {"IQ2_XXS", 16, 256, 66, iq2_xxs}, {"IQ2_XS", 17, 256, 74, iq2_xs},
    {"IQ3_XXS", 18, 256, 98, iq3_xxs}, {"IQ1_S", 19, 256, 50, iq1_s},
    {"IQ4_NL", 20, 32, 18, iq4_nl},    {"IQ3_S", 21, 256, 110, iq3_s},
    {"IQ2_S", 22, 256, 82, iq2_s},     {"IQ4_XS", 23, 256, 136, iq4_xs},
    {"IQ1_M", 29, 256, 56, iq1_m},     {"TQ1_0", 34, 256, 54, tq1_0},
    {"TQ2_0", 35, 256, 66, tq2_0},     {"MXFP4", 39, 32, 17, mxfp4},
    {"NVFP4", 40, 64, 36, nvfp4},
};

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

static void read_blocks(double *values, const q3_quantized *weight, size_t first, size_t count)
{
    const q3_block_format *format = weight->format;
    first += weight->first;
    while (count > 0) {
        size_t in_block = first % format->elements, skip = in_block % PART, n = PART - skip;
        const uint8_t *block = (const uint8_t *)weight->data +
                               first / format->elements * format->bytes;
        if (n > count) n = count;
        if (n == PART) {
            format->part(values, block, in_block / PART);
        } else {
            double whole[PART];
            format->part(whole, block, in_block / PART);
            memcpy(values, whole + skip, n * sizeof *values);
        }
        values += n, first += n, count -= n;
    }
}

q3_quantized q3_block_weight(const q3_block_format *format, const void *data)
{
    return (q3_quantized){.dequantize = read_blocks, .format = format, .data = data,
                          .rounded = true};
}

/* ==== FP8 ===================================================================================== */

/* Sixteen codes: two exponents, that of the first eight numbers as a value of the lowest bit. */
#define EIGHT(s, u) s 8 * u, s 9 * u, s 10 * u, s 11 * u, s 12 * u, s 13 * u, s 14 * u
#define CODES(s) \
    s 0.0, s 0x1p-9, s 0x2p-9, s 0x3p-9, s 0x4p-9, s 0x5p-9, s 0x6p-9, s 0x7p-9, \
    EIGHT(s, 0x1p-9), s 0xFp-9, EIGHT(s, 0x1p-8), s 0xFp-8, EIGHT(s, 0x1p-7), s 0xFp-7, \
    EIGHT(s, 0x1p-6), s 0xFp-6, EIGHT(s, 0x1p-5), s 0xFp-5, EIGHT(s, 0x1p-4), s 0xFp-4, \
    EIGHT(s, 0x1p-3), s 0xFp-3, EIGHT(s, 0x1p-2), s 0xFp-2, EIGHT(s, 0x1p-1), s 0xFp-1, \
    EIGHT(s, 0x1p0), s 0xFp0, EIGHT(s, 0x1p1), s 0xFp1, EIGHT(s, 0x1p2), s 0xFp2, \
    EIGHT(s, 0x1p3), s 0xFp3, EIGHT(s, 0x1p4), s 0xFp4, EIGHT(s, 0x1p5), s (double)NAN

static void read_fp8(double *values, const q3_quantized *weight, size_t first, size_t count)
{
    static const double e4m3[256] = {CODES(+), CODES(-)};
    const q3_tensor scales = {weight->scales, weight->scale_dtype};
    const size_t wide = weight->block_columns;
    const size_t blocks = weight->columns / wide + (weight->columns % wide != 0);
    const uint8_t *data = (const uint8_t *)weight->data + weight->first;
    while (count > 0) {
        size_t row = (weight->first + first) / weight->columns;
        size_t column = (weight->first + first) % weight->columns;
        size_t n = least(wide - column % wide, weight->columns - column);
        float scale;
        q3_widen(&scale, scales, row / weight->block_rows * blocks + column / wide, 1, Q3_F32);
        if (n > count) n = count;
        for (size_t i = 0; i < n; i++) values[i] = e4m3[data[first + i]] * (double)scale;
        values += n, first += n, count -= n;
    }
}

q3_quantized q3_fp8_weight(const void *data, size_t columns, q3_tensor scales, size_t block_rows,
                           size_t block_columns)
{
    return (q3_quantized){.dequantize = read_fp8, .data = data, .scales = scales.data,
                          .scale_dtype = scales.dtype, .columns = columns,
                          .block_rows = block_rows, .block_columns = block_columns};
}

/* ==== Any weight ============================================================================== */

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
