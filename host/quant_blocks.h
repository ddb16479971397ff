/* SPDX-License-Identifier: MIT */
/* quant_blocks.h - elements of FP8 and of GGUF's block types; included by quants.c once for each
 * instruction set that it is compiled for, with SET and TARGET as in kernels.c; WIDE says that this
 * is AVX2. No guard: it is meant to be included again.
 *
 * Of 32 elements the small numbers are gathered first, as bytes, then multiplied: loops that
 * compilers turn into vectors, if they know how to widen bytes to float64. */

typedef void NAME(part_fn)(double *values, const uint8_t *block, size_t part);

#if WIDE
/* Four of them as float64. */
INLINE __m256d NAME(four)(const int8_t *q)
{
    int32_t bytes;
    memcpy(&bytes, q, sizeof bytes);
    return _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes)));
}
#endif

/* values = d q; n is a multiple of 4. */
INLINE void NAME(put)(double *values, const int8_t *q, double d, size_t n)
{
#if WIDE
    for (size_t i = 0; i < n; i += 4)
        _mm256_storeu_pd(values + i, _mm256_mul_pd(NAME(four)(q + i), _mm256_set1_pd(d)));
#else
    for (size_t i = 0; i < n; i++) values[i] = d * q[i];
#endif
}

/* values = d q + m, rounded to float32; n is a multiple of 8. */
INLINE void NAME(put_sum)(double *values, const int8_t *q, double d, double m, size_t n)
{
#if WIDE
    for (size_t i = 0; i < n; i += 8) { /* float32, in which products are exact too */
        __m256i bytes = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(q + i)));
        __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(bytes), _mm256_set1_ps((float)d));
        __m256 sum = _mm256_add_ps(product, _mm256_set1_ps((float)m));
        _mm256_storeu_pd(values + i, _mm256_cvtps_pd(_mm256_castps256_ps128(sum)));
        _mm256_storeu_pd(values + i + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(sum, 1)));
    }
#else
    for (size_t i = 0; i < n; i++) values[i] = (double)(float)(d * q[i] + m);
#endif
}

/* ==== One scale a block of 32 ==================================================================
 * d (and m) are float16 at the beginning of the block; small numbers of 4 bits stand as 16 low
 * nibbles, then 16 high ones. */

INLINE void NAME(nibbles)(int8_t q[PART], const uint8_t *p, unsigned less)
{
    for (size_t i = 0; i < 16; i += 8) {
        uint64_t both = load_eight(p + i);
        uint64_t low = eight_less(both & EACH(0xF), less);
        uint64_t high = eight_less(both >> 4 & EACH(0xF), less);
        memcpy(q + i, &low, sizeof low);
        memcpy(q + 16 + i, &high, sizeof high);
    }
}

/* With a fifth bit each. */
INLINE void NAME(five_bits)(int8_t q[PART], const uint8_t *p, const uint8_t *fifth, unsigned less)
{
    for (size_t i = 0; i < PART; i += 8) {
        uint64_t four = load_eight(p + i % 16) >> (i < 16 ? 0 : 4) & EACH(0xF);
        uint64_t five = eight_less(four | eight_bits(fifth[i / 8]) << 4, less);
        memcpy(q + i, &five, sizeof five);
    }
}

INLINE void NAME(q8_0)(double *values, const uint8_t *block, size_t part)
{
    int8_t q[PART];
    (void)part;
    memcpy(q, block + 2, sizeof q);
    NAME(put)(values, q, half(load16(block)), PART);
}

INLINE void NAME(q4_0)(double *values, const uint8_t *block, size_t part)
{
    int8_t q[PART];
    (void)part;
    NAME(nibbles)(q, block + 2, 8);
    NAME(put)(values, q, half(load16(block)), PART);
}

INLINE void NAME(q4_1)(double *values, const uint8_t *block, size_t part)
{
    int8_t q[PART];
    (void)part;
    NAME(nibbles)(q, block + 4, 0);
    NAME(put_sum)(values, q, half(load16(block)), half(load16(block + 2)), PART);
}

INLINE void NAME(q5_0)(double *values, const uint8_t *block, size_t part)
{
    int8_t q[PART];
    (void)part;
    NAME(five_bits)(q, block + 6, block + 2, 16);
    NAME(put)(values, q, half(load16(block)), PART);
}

INLINE void NAME(q5_1)(double *values, const uint8_t *block, size_t part)
{
    int8_t q[PART];
    (void)part;
    NAME(five_bits)(q, block + 8, block + 4, 0);
    NAME(put_sum)(values, q, half(load16(block)), half(load16(block + 2)), PART);
}

/* Numbers of 4 bits that stand for others. */
INLINE void NAME(put_mapped)(double *values, const uint8_t *p, const int8_t map[16], double d)
{
    int8_t q[PART];
    NAME(nibbles)(q, p, 0);
    for (size_t i = 0; i < PART; i++) q[i] = map[q[i]];
    NAME(put)(values, q, d, PART);
}

INLINE void NAME(iq4_nl)(double *values, const uint8_t *block, size_t part)
{
    (void)part;
    NAME(put_mapped)(values, block + 2, q3_iq4_values, half(load16(block)));
}

/* The scale is half of 2^(e - 127), subnormal below 2^-126. The largest products overflow. */
INLINE void NAME(mxfp4)(double *values, const uint8_t *block, size_t part)
{
    uint32_t e = block[0];
    (void)part;
    NAME(put_mapped)(values, block + 1, fp4, float_of(e < 2 ? 0x200000u << e : (e - 1) << 23));
    for (size_t i = 0; i < PART; i++) values[i] = (double)(float)values[i];
}

/* Blocks of 64: four e4m3 scales without a sign, halved since fp4 is doubled; 0x7F counts as 0. */
INLINE void NAME(nvfp4)(double *values, const uint8_t *block, size_t part)
{
    for (size_t k = 0; k < 2; k++, values += 16) {
        const uint8_t *p = block + 4 + 8 * (2 * part + k);
        uint32_t code = block[2 * part + k];
        double d = float_of((code & 0x7F) << 20) * 0x1p119;
        if (code == 0x7F) d = 0.0;
        for (size_t i = 0; i < 8; i++) values[i] = d * fp4[p[i] & 0xF];
        for (size_t i = 0; i < 8; i++) values[8 + i] = d * fp4[p[i] >> 4];
    }
}

/* ==== Blocks of 256 =============================================================================
 * Eight parts. Their scales are small numbers too, times the block's. */

/* Numbers of `size` bits that lie side by side in 32 bytes, part by part. */
INLINE uint64_t NAME(field)(const uint8_t *p, size_t part, unsigned size)
{
    return load_eight(p) >> part * size & EACH((1u << size) - 1);
}

INLINE void NAME(two_bits)(int8_t q[PART], const uint8_t *p, size_t part, unsigned less)
{
    for (size_t i = 0; i < PART; i += 8) {
        uint64_t two = eight_less(NAME(field)(p + part / 4 * PART + i, part % 4, 2), less);
        memcpy(q + i, &two, sizeof two);
    }
}

INLINE void NAME(q2_k)(double *values, const uint8_t *block, size_t part)
{
    int8_t q[PART];
    double d = half(load16(block + 80)), m = half(load16(block + 82));
    NAME(two_bits)(q, block + 16, part, 0);
    for (size_t k = 0; k < 2; k++) {
        int scale = block[2 * part + k];
        NAME(put_sum)(values + 16 * k, q + 16 * k, d * (scale & 0xF), -(m * (scale >> 4)), 16);
    }
}

/* 16 scales of 6 bits in 12 bytes: low nibbles of 8 bytes, their high ones, 2 bits of 4 more. */
INLINE void NAME(q3_k)(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *low = block + 32 + part / 4 * PART, *high = block, *scales = block + 96;
    double d = half(load16(block + 108));
    int8_t q[PART];
    for (size_t i = 0; i < PART; i += 8) {
        uint64_t three = NAME(field)(low + i, part % 4, 2) | NAME(field)(high + i, part, 1) << 2;
        three = eight_less(three, 4);
        memcpy(q + i, &three, sizeof three);
    }
    for (size_t k = 0; k < 2; k++) {
        size_t j = 2 * part + k;
        int scale = scales[j % 8] >> (j < 8 ? 0 : 4) & 0xF;
        scale |= (scales[8 + j % 4] >> j / 4 * 2 & 3) << 4;
        NAME(put)(values + 16 * k, q + 16 * k, d * (scale - 32), 16);
    }
}

/* 8 scales and 8 minima of 6 bits in 12 bytes: those of parts 0 to 3 in 4 bytes each, whose 2 upper
 * bits belong to parts 4 to 7; the others' low nibbles follow. */
INLINE void NAME(scale_and_minimum)(double *d, double *m, const uint8_t *block, size_t part)
{
    const uint8_t *p = block + 4;
    int scale = p[part % 4] & 0x3F, minimum = p[4 + part % 4] & 0x3F;
    if (part >= 4) {
        scale = (p[4 + part] & 0xF) | p[part - 4] >> 6 << 4;
        minimum = p[4 + part] >> 4 | p[part] >> 6 << 4;
    }
    *d = half(load16(block)) * scale;
    *m = -(half(load16(block + 2)) * minimum);
}

INLINE void NAME(q4_k)(double *values, const uint8_t *block, size_t part)
{
    int8_t q[PART];
    double d, m;
    NAME(scale_and_minimum)(&d, &m, block, part);
    for (size_t i = 0; i < PART; i += 8) {
        uint64_t four = NAME(field)(block + 16 + part / 2 * PART + i, part % 2, 4);
        memcpy(q + i, &four, sizeof four);
    }
    NAME(put_sum)(values, q, d, m, PART);
}

INLINE void NAME(q5_k)(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *low = block + 48 + part / 2 * PART, *high = block + 16;
    int8_t q[PART];
    double d, m;
    NAME(scale_and_minimum)(&d, &m, block, part);
    for (size_t i = 0; i < PART; i += 8) {
        uint64_t five = NAME(field)(low + i, part % 2, 4) | NAME(field)(high + i, part, 1) << 4;
        memcpy(q + i, &five, sizeof five);
    }
    NAME(put_sum)(values, q, d, m, PART);
}

INLINE void NAME(q6_k)(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *low = block + part / 4 * 64 + part % 2 * PART, *high = block + 128;
    double d = half(load16(block + 208));
    int8_t q[PART];
    for (size_t i = 0; i < PART; i += 8) {
        uint64_t six = NAME(field)(low + i, part / 2 % 2, 4) |
                       NAME(field)(high + part / 4 * PART + i, part % 4, 2) << 4;
        six = eight_less(six, 32);
        memcpy(q + i, &six, sizeof six);
    }
    for (size_t k = 0; k < 2; k++) {
        double scale = load_signed(block + 192 + 2 * part + k);
        NAME(put)(values + 16 * k, q + 16 * k, d * scale, 16);
    }
}

INLINE void NAME(iq4_xs)(double *values, const uint8_t *block, size_t part)
{
    int scale = block[4 + part / 2] >> part % 2 * 4 & 0xF;
    scale |= (int)(load16(block + 2) >> 2 * part & 3) << 4;
    NAME(put_mapped)(values, block + 8 + 16 * part, q3_iq4_values,
                     half(load16(block)) * (scale - 32));
}

/* Five numbers of three values in a byte, as digits of a fraction to base 3: five parts of 32
 * bytes, five times 16 numbers of 16 bytes, four times 4 of 4. */
INLINE void NAME(tq1_0)(double *values, const uint8_t *block, size_t part)
{
    int8_t q[PART];
    for (size_t i = 0; i < PART; i++) {
        size_t at = part * PART + i, rest = at - 160, last = at - 240;
        q[i] = at < 160   ? third(block[i], part)
               : at < 240 ? third(block[32 + rest % 16], rest / 16)
                          : third(block[48 + last % 4], last / 4);
    }
    NAME(put)(values, q, half(load16(block + 52)), PART);
}

INLINE void NAME(tq2_0)(double *values, const uint8_t *block, size_t part)
{
    int8_t q[PART];
    NAME(two_bits)(q, block, part, 1);
    NAME(put)(values, q, half(load16(block + 64)), PART);
}

/* ==== Grids =====================================================================================
 * Several elements together are a row of a table (quant_grids.h), with signs of their own. */

/* 8 elements of a row of 2 bits each, or of two rows of 4 bits each; from none of the maps 0 comes,
 * so that the sign of a number is as good as that of its product. */
INLINE void NAME(put_row)(double *values, double d, uint32_t row, unsigned size, const int8_t *map,
                          uint32_t signs)
{
    int8_t q[8];
    for (unsigned i = 0; i < 8; i++) {
        int8_t value = map[row >> size * i & ((1u << size) - 1)];
        q[i] = (int8_t)(signs >> i & 1 ? -value : value);
    }
    NAME(put)(values, q, d, 8);
}

INLINE void NAME(iq2_xxs)(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *q = block + 2 + 8 * part;
    uint32_t rest = load32(q + 4);
    double d = half(load16(block)) * (0.5 + (rest >> 28)) * 0.25;
    for (size_t k = 0; k < 4; k++)
        NAME(put_row)(values + 8 * k, d, q3_iq2_xxs_grid[q[k]], 2, q3_iq2_values,
                      even_signs(rest >> 7 * k & 0x7F));
}

INLINE void NAME(iq2_xs)(double *values, const uint8_t *block, size_t part)
{
    double d = half(load16(block));
    for (size_t k = 0; k < 4; k++) {
        uint32_t q = load16(block + 2 + 8 * part + 2 * k), scale = block[66 + part] >> k / 2 * 4;
        NAME(put_row)(values + 8 * k, d * (0.5 + (scale & 0xF)) * 0.25, q3_iq2_xs_grid[q & 0x1FF],
                      2, q3_iq2_values, even_signs(q >> 9));
    }
}

INLINE void NAME(iq2_s)(double *values, const uint8_t *block, size_t part)
{
    double d = half(load16(block));
    for (size_t k = 0; k < 4; k++) {
        uint32_t q = block[2 + 4 * part + k], scale = block[74 + part] >> k / 2 * 4;
        q |= (block[66 + part] >> 2 * k & 3u) << 8;
        NAME(put_row)(values + 8 * k, d * (0.5 + (scale & 0xF)) * 0.25, q3_iq2_s_grid[q], 2,
                      q3_iq2_values, block[34 + 4 * part + k]);
    }
}

INLINE void NAME(iq3_xxs)(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *q = block + 2 + 8 * part;
    uint32_t rest = load32(block + 66 + 4 * part);
    double d = half(load16(block)) * (0.5 + (rest >> 28)) * 0.5;
    for (size_t k = 0; k < 4; k++) {
        uint32_t rows = q3_iq3_xxs_grid[q[2 * k]] | (uint32_t)q3_iq3_xxs_grid[q[2 * k + 1]] << 16;
        NAME(put_row)(values + 8 * k, d, rows, 4, q3_iq3_xxs_values,
                      even_signs(rest >> 7 * k & 0x7F));
    }
}

INLINE void NAME(iq3_s)(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *q = block + 2 + 8 * part;
    uint32_t high = block[66 + part], scale = block[106 + part / 2] >> part % 2 * 4 & 0xF;
    double d = half(load16(block)) * (1 + 2 * scale);
    for (size_t k = 0; k < 4; k++) {
        uint32_t low_row = q[2 * k] | (high >> 2 * k & 1) << 8;
        uint32_t high_row = q[2 * k + 1] | (high >> (2 * k + 1) & 1) << 8;
        uint32_t rows = q3_iq3_s_grid[low_row] | (uint32_t)q3_iq3_s_grid[high_row] << 16;
        NAME(put_row)(values + 8 * k, d, rows, 4, q3_iq3_s_values, block[74 + 4 * part + k]);
    }
}

/* 8 elements -1, 0 or 1, plus or minus an eighth: in eighths. */
INLINE void NAME(put_shifted)(double *values, double d, uint32_t row, bool down)
{
    int8_t q[8];
    for (size_t i = 0; i < 8; i++)
        q[i] = (int8_t)(((int)(row >> 2 * i & 3) - 1) * 8 + (down ? -1 : 1));
    NAME(put)(values, q, d * 0.125, 8);
}

INLINE void NAME(iq1_s)(double *values, const uint8_t *block, size_t part)
{
    uint32_t high = load16(block + 34 + 2 * part);
    double d = half(load16(block)) * (2 * (high >> 12 & 7) + 1);
    for (size_t k = 0; k < 4; k++)
        NAME(put_shifted)(values + 8 * k, d,
                          q3_iq1_grid[block[2 + 4 * part + k] | (high >> 3 * k & 7) << 8],
                          high >> 15);
}

/* The block's own scale is what the four words of scales have in their highest 4 bits. */
INLINE void NAME(iq1_m)(double *values, const uint8_t *block, size_t part)
{
    const uint8_t *scales = block + 48;
    uint32_t bits = 0;
    for (size_t k = 0; k < 4; k++) bits |= load16(scales + 2 * k) >> 12 << 4 * k;
    double d = half(bits);
    for (size_t k = 0; k < 4; k++) {
        uint32_t scale = load16(scales + part / 2 * 2) >> (part % 2 * 6 + k / 2 * 3) & 7;
        uint32_t high = block[32 + 2 * part + k / 2] >> k % 2 * 4 & 0xF;
        NAME(put_shifted)(values + 8 * k, d * (2 * scale + 1),
                          q3_iq1_grid[block[4 * part + k] | (high & 7) << 8], high >> 3);
    }
}

/* ==== FP8 ===================================================================================== */

/* Codes of e4m3 times a scale. In a float16's place an e4m3 is 2^8 times too small, and its NaN a
 * number. */
INLINE void NAME(put_e4m3)(double *values, const uint8_t *codes, double scale, size_t n)
{
    size_t i = 0;
#if WIDE
    const __m128i size = _mm_set1_epi16(0x7F), sign = _mm_set1_epi16((short)0x8000);
    const __m256d times = _mm256_set1_pd(scale * 256.0);
    for (; i + 8 <= n; i += 8) {
        __m128i code = _mm_cvtepu8_epi16(_mm_loadl_epi64((const void *)(codes + i)));
        __m128i low = _mm_and_si128(code, size), nan = _mm_cmpeq_epi16(low, size);
        __m128i half = _mm_or_si128(_mm_slli_epi16(low, 7),
                                    _mm_and_si128(_mm_slli_epi16(code, 8), sign));
        __m256 x = _mm256_cvtph_ps(_mm_or_si128(half, _mm_srli_epi16(nan, 1)));
        __m256d front = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
        __m256d back = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
        _mm256_storeu_pd(values + i, _mm256_mul_pd(front, times));
        _mm256_storeu_pd(values + i + 4, _mm256_mul_pd(back, times));
    }
#endif
    for (; i < n; i++) values[i] = e4m3(codes[i]) * scale;
}

/* Row by row, block by block. */
TARGET static void NAME(read_fp8)(double *values, const q3_quantized *weight, size_t first,
                                  size_t count)
{
    const q3_tensor scales = {weight->scales, weight->scale_dtype};
    const size_t wide = weight->block_columns, columns = weight->columns;
    const size_t blocks = columns / wide + (columns % wide != 0);
    const uint8_t *codes = (const uint8_t *)weight->data + weight->first + first;
    size_t row = (weight->first + first) / columns, column = (weight->first + first) % columns;
    for (; count > 0; row++, column = 0) {
        size_t at = row / weight->block_rows * blocks + column / wide, skip = column % wide;
        for (size_t n; column < columns && count > 0; column += n, at++, skip = 0) {
            float scale;
            q3_widen(&scale, scales, at, 1, Q3_F32);
            n = least(least(wide - skip, columns - column), count);
            NAME(put_e4m3)(values, codes, (double)scale, n);
            values += n, codes += n, count -= n;
        }
    }
}

/* ==== Any range =============================================================================== */

INLINE void NAME(read)(double *values, const q3_quantized *weight, size_t first, size_t count,
                       NAME(part_fn) *read_part, size_t elements, size_t bytes)
{
    first += weight->first;
    const uint8_t *block = (const uint8_t *)weight->data + first / elements * bytes;
    for (size_t at = first % elements; count > 0;) {
        size_t skip = at % PART, n = least(PART - skip, count);
        if (n == PART) {
            read_part(values, block, at / PART);
        } else {
            double whole[PART];
            read_part(whole, block, at / PART);
            memcpy(values, whole + skip, n * sizeof *values);
        }
        values += n, count -= n, at += n;
        if (at < elements) continue;
        at = 0;
        block += bytes;
    }
}

#define FORMAT(label, number, name, elements, bytes)                                             \
    TARGET static void JOINED(read_##name, SET)(double *values, const q3_quantized *weight,      \
                                                size_t first, size_t count)                      \
    {                                                                                            \
        NAME(read)(values, weight, first, count, NAME(name), elements, bytes);                   \
    }
FORMATS
#undef FORMAT
