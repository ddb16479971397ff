/* SPDX-License-Identifier: MIT */
/* kernels_dots.h - sums of products; included by kernels.c once for each instruction set, which
 * defines SET and NAME (its name and how functions are called), TARGET (the functions' attribute)
 * and WIDTH (float64 of a vector). No guard: it is meant to be included again.
 *
 * A sum's lane l is the sum over c = l, l + 16, l + 32, ..., ascending, from +0; that order is kept
 * by every loop here, and only what runs side by side differs. Columns behind the last one of a sum
 * are zeros: a lane begins with +0, so it never is -0, and adding +0 leaves its bits alone. */

/* Words of a vector that is transposed: AVX2 has no shuffle across more than these. */
#if WIDTH == 8
#define SIDE 16
#else
#define SIDE WIDTH
#endif

typedef double NAME(vector) __attribute__((vector_size(8 * WIDTH)));
typedef double NAME(doubles) __attribute__((vector_size(8 * WIDTH), aligned(8), may_alias));
typedef uint64_t NAME(bits) __attribute__((vector_size(8 * WIDTH)));
typedef float NAME(singles) __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t NAME(word) __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t NAME(words) __attribute__((vector_size(4 * WIDTH), aligned(1), may_alias));
typedef uint16_t NAME(shorts) __attribute__((vector_size(4 * WIDTH), aligned(1), may_alias));
typedef uint32_t NAME(side) __attribute__((vector_size(4 * SIDE), aligned(1), may_alias));
typedef uint32_t NAME(long_words) __attribute__((vector_size(8 * WIDTH), aligned(1), may_alias));
#define INLINE TARGET UNUSED static inline __attribute__((always_inline))
#define vector NAME(vector)
#define doubles NAME(doubles)
#define bits NAME(bits)
#define singles NAME(singles)
#define word NAME(word)
#define words NAME(words)
#define shorts NAME(shorts)
#define long_words NAME(long_words)
#define side NAME(side)

/* A tile: ROWS rows of the weight, two vectors of them, times at most TILE tokens. All its
 * accumulators stay in registers, of which AVX-512 has 32, the others 16. */
#define ROWS (2 * WIDTH)
/* For few tokens: FEW_ROWS rows times at most FEW tokens, WIDTH lanes of each. Up to MOST_FEW go
 * that way, since laying out the weights for the other costs more than it wins. */
#define FEW_ROWS 3
#define MOST_DECODED 16 /* likewise of quantised weights, which are float64 by then */
#if WIDTH == 8
#define TILE 12
#define FEW 8
#define MOST_FEW 12
#elif defined(__aarch64__)
#define TILE 12
#define FEW 8
#define MOST_FEW 10
#else
#define TILE (WIDTH == 4 ? 6 : 5)
#define FEW 4
#define MOST_FEW 10
#endif

/* float32 as float64. gcc splits __builtin_convertvector in halves, and joins them again. */
INLINE vector NAME(widened)(singles x)
{
#if WIDTH == 8
    return (vector)_mm512_cvtps_pd((__m256)x);
#elif WIDTH == 4
    return (vector)_mm256_cvtps_pd((__m128)x);
#else
    return __builtin_convertvector(x, vector);
#endif
}

/* float16, one in each word's lower half, as float32: scaled by 2^112, which is exact; infinities
 * and NaN get the exponent that they need. The wider sets have an instruction for it. */
INLINE singles NAME(halves)(word h)
{
    singles scaled = (singles)((h & 0x7FFF) << 13) * 0x1p112f;
    word special = (word)((h & 0x7C00) == 0x7C00) & 0x7F800000u;
    return (singles)((word)scaled | special | (h & 0x8000) << 16);
}

/* WIDTH float16 at p, in order. */
INLINE singles NAME(in_order)(const uint8_t *p)
{
#if WIDTH == 8
    return (singles)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
#elif WIDTH == 4
    return (singles)_mm_cvtph_ps(_mm_loadl_epi64((const void *)p));
#else
    word h = {(uint32_t)(p[0] | p[1] << 8), (uint32_t)(p[2] | p[3] << 8)};
    return NAME(halves)(h);
#endif
}

/* 2 WIDTH elements of 16 bits, in order. */
INLINE long_words NAME(extended)(const uint8_t *p)
{
#if WIDTH == 8
    return (long_words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
#elif WIDTH == 4
    return (long_words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
#else
    return __builtin_convertvector(*(const shorts *)p, long_words);
#endif
}

/* Weights rounded to the run's dtype; a NaN may be any NaN. */
INLINE singles NAME(rounded)(singles x, const format *to)
{
#if WIDTH == 8
    if (to->half)
        return (singles)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#elif WIDTH == 4
    if (to->half)
        return (singles)_mm_cvtph_ps(_mm_cvtps_ph((__m128)x, _MM_FROUND_TO_NEAREST_INT));
#endif
    return (singles)NAME(narrow)(NAME(widened)(x), to);
}

/* The even and the odd elements of WIDTH pairs of 16 bits. */
INLINE void NAME(unpair)(singles *even, singles *odd, word pair, q3_dtype dtype)
{
    if (dtype == Q3_BF16) {
        *even = (singles)(pair << 16);
        *odd = (singles)(pair & 0xFFFF0000u);
        return;
    }
#if WIDTH == 8
    shorts h = SHUFFLE(shorts, (shorts)pair, (shorts)pair, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9,
                       11, 13, 15);
    *even = (singles)_mm256_cvtph_ps(_mm256_castsi256_si128((__m256i)h));
    *odd = (singles)_mm256_cvtph_ps(_mm256_extracti128_si256((__m256i)h, 1));
#elif WIDTH == 4
    shorts h = SHUFFLE(shorts, (shorts)pair, (shorts)pair, 0, 2, 4, 6, 1, 3, 5, 7);
    *even = (singles)_mm_cvtph_ps((__m128i)h);
    *odd = (singles)_mm_cvtph_ps(_mm_unpackhi_epi64((__m128i)h, (__m128i)h));
#else
    *even = NAME(halves)(pair & 0xFFFF);
    *odd = NAME(halves)(pair >> 16);
#endif
}

/* ==== One token ===============================================================================
 * Lanes side by side. 16-bit weights come two to a word: even columns are its lower half, odd ones
 * its upper half, so that no element moves to another place. The token is laid out to fit. */

/* float16 that has its own instruction stays in order. */
#define PAIRS(dtype) ((dtype) == Q3_BF16 || ((dtype) == Q3_F16 && WIDTH == 2))

/* x[C] as float64, 16 columns after another, in the order in which add_columns takes them. */
TARGET static void NAME(lay_out)(double *out, const float *x, size_t C, bool pairs)
{
    for (size_t c = 0; c < C; c += LANES) {
        size_t n = least(LANES, C - c);
        for (size_t l = 0; l < LANES; l++) {
            size_t in_word = l % (2 * WIDTH), group = l / (2 * WIDTH);
            size_t at = pairs ? (2 * group + in_word % 2) * WIDTH + in_word / 2 : l;
            out[c + at] = l < n ? (double)x[c + l] : 0.0;
        }
    }
}

/* One row's 16 columns from p on, times the token's. */
INLINE void NAME(add_columns)(vector lane[LANES / WIDTH], const uint8_t *p, const double *x,
                              q3_dtype dtype)
{
    if (PAIRS(dtype)) {
        UNROLL for (int g = 0; g < LANES / WIDTH; g += 2) {
            singles even, odd;
            NAME(unpair)(&even, &odd, *(const words *)(p + 2 * g * WIDTH), dtype);
            lane[g] += NAME(widened)(even) * *(const doubles *)(x + g * WIDTH);
            lane[g + 1] += NAME(widened)(odd) * *(const doubles *)(x + (g + 1) * WIDTH);
        }
        return;
    }
    UNROLL for (int g = 0; g < LANES / WIDTH; g++) {
        singles w = dtype == Q3_F16 ? NAME(in_order)(p + 2 * g * WIDTH)
                                    : (singles)*(const words *)(p + 4 * g * WIDTH);
        lane[g] += NAME(widened)(w) * *(const doubles *)(x + g * WIDTH);
    }
}

/* sum[i] += sum[i + s] in each vector, s = WIDTH / 2, ..., 1; the first place has them all. */
INLINE double NAME(fold_vector)(vector sum)
{
#if WIDTH == 8
    sum += SHUFFLE(bits, sum, sum, 4, 5, 6, 7, 0, 1, 2, 3);
    sum += SHUFFLE(bits, sum, sum, 2, 3, 0, 1, 6, 7, 4, 5);
#elif WIDTH == 4
    sum += SHUFFLE(bits, sum, sum, 2, 3, 0, 1);
#endif
    return sum[0] + sum[1];
}

/* Lanes folded as ever: lane l takes lane l + s for s = 8, 4, 2, 1. Of pairs, vector 2g has lanes
 * 2 WIDTH g + 0, 2, 4, ..., vector 2g + 1 those between them. */
INLINE double NAME(fold)(const vector lane[LANES / WIDTH], bool pairs)
{
    vector sum[LANES / WIDTH];
    UNROLL for (int g = 0; g < LANES / WIDTH; g++) sum[g] = lane[g];
    const int left = pairs ? 2 : 1; /* vectors */
    UNROLL for (int s = LANES / WIDTH / 2; s >= left; s /= 2)
        UNROLL for (int g = 0; g < s; g++) sum[g] += sum[g + s];
    double first = NAME(fold_vector)(sum[0]);
    return pairs ? first + NAME(fold_vector)(sum[1]) : first;
}

/* sums[count] of rows at p, p + stride, ... bytes with the token. Order: 16 lanes over c. The same
 * columns of the next rows are asked for meanwhile, for the second-level cache: what is read next
 * from memory is not what a processor guesses. */
INLINE void NAME(row_group)(double *sums, const uint8_t *p, size_t stride, const double *x,
                                   size_t C, q3_dtype dtype, const int count)
{
    vector lane[4][LANES / WIDTH];
    const size_t size = dtype == Q3_F32 ? 4 : 2, step = 64 / size;
    size_t c = 0;
    UNROLL for (int r = 0; r < count; r++)
        UNROLL for (int g = 0; g < LANES / WIDTH; g++) lane[r][g] = (vector){0};
    for (; c + step <= C; c += step)
        UNROLL for (int r = 0; r < count; r++) {
            const uint8_t *q = p + (size_t)r * stride + c * size;
            __builtin_prefetch((const void *)((uintptr_t)q + (size_t)count * stride), 0, 2);
            UNROLL for (size_t i = 0; i < step; i += LANES)
                NAME(add_columns)(lane[r], q + i * size, x + c + i, dtype);
        }
    for (; c < C; c += LANES)
        for (int r = 0; r < count; r++) {
            uint8_t rest[LANES * 4] = {0};
            memcpy(rest, p + (size_t)r * stride + c * size, least(LANES, C - c) * size);
            NAME(add_columns)(lane[r], rest, x + c, dtype);
        }
    for (int r = 0; r < count; r++) sums[r] = NAME(fold)(lane[r], PAIRS(dtype));
}

/* All rows; their results leave 64 at a time. */
INLINE void NAME(one_token_of)(const q3_dots *d, const double *x, q3_dtype dtype)
{
    enum { AT_ONCE = WIDTH == 8 ? 4 : 2, MANY = 64 };
    const size_t size = dtype == Q3_F32 ? 4 : 2, stride = d->row_stride * size;
    const uint8_t *p = d->weight.data;
    for (size_t o = 0; o < d->N; o += MANY) {
        double sums[MANY];
        size_t n = least(MANY, d->N - o), r = 0;
        for (; r + AT_ONCE <= n; r += AT_ONCE)
            NAME(row_group)(sums + r, p + (o + r) * stride, stride, x, d->C, dtype, AT_ONCE);
        for (; r < n; r++)
            NAME(row_group)(sums + r, p + (o + r) * stride, stride, x, d->C, dtype, 1);
        hand_over(d, NAME(round), sums, 0, o, n);
    }
}

TARGET static bool NAME(one_token)(const q3_dots *d)
{
    double *x = malloc(padded(d->C) * sizeof *x);
    if (x == NULL) return false;
    NAME(lay_out)(x, d->x, d->C, PAIRS(d->weight.dtype));
    if (d->weight.dtype == Q3_BF16)
        NAME(one_token_of)(d, x, Q3_BF16);
    else if (d->weight.dtype == Q3_F16)
        NAME(one_token_of)(d, x, Q3_F16);
    else
        NAME(one_token_of)(d, x, Q3_F32);
    free(x);
    return true;
}

/* ==== Few tokens ==============================================================================
 * Lanes side by side too, WIDTH of them at a time, so that some rows and tokens go together. Of the
 * tokens so many columns are taken at once as stay in the first-level cache while SOME_ROWS rows
 * meet them; the lanes wait in memory for the next columns. */

/* How weights come to few tokens: WIDTH lanes of float32, of pairs of bfloat16 the even ones or the
 * odd ones, of float16, of float64 (decoded). */
enum NAME(way) { NAME(floats), NAME(even), NAME(odd), NAME(float16s), NAME(decoded) };

/* Elements first to first + n - 1 of the weight as float32, rounded to the run's dtype, then zeros
 * up to a multiple of LANES. */
TARGET static void NAME(widen)(float *out, const q3_dots *d, size_t first, size_t n)
{
    const q3_dtype dtype = d->weight.dtype;
    const size_t element = dtype == Q3_F32 ? 4 : 2;
    const uint8_t *p = (const uint8_t *)d->weight.data + first * element;
    const format to = format_of(d->dtype);
    for (size_t i = 0; i < n; i += LANES, p += LANES * element) {
        uint8_t rest[LANES * 4] = {0};
        const uint8_t *from = p;
        if (n - i < LANES) from = memcpy(rest, p, (n - i) * element);
        if (dtype == Q3_F32) memcpy(out + i, from, LANES * sizeof *out);
        if (dtype == Q3_BF16)
            UNROLL for (int k = 0; k < LANES; k += 2 * WIDTH)
                *(long_words *)(out + i + k) = NAME(extended)(from + 2 * k) << 16;
        if (dtype == Q3_F16)
            UNROLL for (int k = 0; k < LANES; k += WIDTH)
                *(words *)(out + i + k) = (word)NAME(in_order)(from + 2 * k);
        for (size_t k = i; k < i + LANES && !as_it_lies(d); k += WIDTH)
            *(words *)(out + k) = (words)NAME(rounded)((singles)*(const words *)(out + k), &to);
    }
}

/* WIDTH lanes from p on, which is where they lie, or for odd ones the even ones before them; as
 * float32 without the bits outside the mask, or of float64 those outside the mask's upper half. */
INLINE vector NAME(some_lanes)(const uint8_t *p, const enum NAME(way) way, uint32_t mask)
{
    if (way == NAME(decoded)) {
        const uint64_t wide = (uint64_t)mask << 32 | UINT32_MAX;
        return (vector)((bits)*(const doubles *)(const void *)p & wide);
    }
    if (way == NAME(float16s))
        return NAME(widened)((singles)((word)NAME(in_order)(p) & mask));
    words w = *(const words *)p;
    if (way == NAME(even)) w <<= 16;
    if (way == NAME(odd)) mask &= 0xFFFF0000u;
    return NAME(widened)((singles)(w & mask));
}

/* WIDTH lanes of FEW_ROWS rows times n tokens, lanes[row][token][LANES] of T tokens, go on by some
 * columns, or begin with the first: w[row], x[step][n][WIDTH]. What lies `ahead` bytes behind the
 * weights is asked for.
 * Order   columns ascending. */
INLINE void NAME(few_columns)(double *lanes, size_t T, const uint8_t *const w[FEW_ROWS],
                              const double *x, size_t steps, bool first, size_t ahead,
                              uint32_t mask, const enum NAME(way) way, const int n)
{
    const size_t step = LANES * (way == NAME(decoded) ? 8 : way == NAME(floats) ? 4 : 2);
    vector sum[FEW_ROWS][FEW];
    UNROLL for (int r = 0; r < FEW_ROWS; r++)
        UNROLL for (int t = 0; t < n; t++) sum[r][t] = (vector){0};
    if (!first)
        UNROLL for (int r = 0; r < FEW_ROWS; r++)
            UNROLL for (int t = 0; t < n; t++)
                sum[r][t] = *(const doubles *)(lanes + ((size_t)r * T + (size_t)t) * LANES);
    for (size_t s = 0; s < steps; s++, x += n * WIDTH) {
        vector a[FEW_ROWS];
        UNROLL for (int r = 0; r < FEW_ROWS; r++) {
            a[r] = NAME(some_lanes)(w[r] + s * step, way, mask);
            __builtin_prefetch((const void *)((uintptr_t)w[r] + s * step + ahead), 0, 2);
        }
        UNROLL for (int t = 0; t < n; t++) {
            vector b = *(const doubles *)(x + t * WIDTH);
            KEEP(b);
            UNROLL for (int r = 0; r < FEW_ROWS; r++) sum[r][t] += a[r] * b;
        }
    }
    UNROLL for (int r = 0; r < FEW_ROWS; r++)
        UNROLL for (int t = 0; t < n; t++)
            *(doubles *)(lanes + ((size_t)r * T + (size_t)t) * LANES) = sum[r][t];
}

#define CASE(n)                                                              \
    case n:                                                                  \
        NAME(few_columns)(lanes, T, w, x, steps, first, ahead, mask, way,    \
                          n <= FEW ? n : 1);                                 \
        break

INLINE void NAME(any_few)(double *lanes, size_t T, const uint8_t *const w[FEW_ROWS],
                          const double *x, size_t steps, bool first, size_t ahead,
                          uint32_t mask, const enum NAME(way) way, size_t n)
{
    switch (n) {
        CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6); CASE(7); CASE(8);
    }
}
#undef CASE

/* Tokens, or their sizes, as [columns at once][tokens together][part][step][token][WIDTH], where a
 * part is WIDTH of a step's columns. */
TARGET static void NAME(lay_few)(const few *b, const q3_dots *d, size_t kind)
{
    double *out = b->x[kind];
    for (size_t c = 0; c < d->C; c += b->columns)
        for (size_t i = 0; i < b->passes; i++)
            for (size_t part = 0; part < LANES / WIDTH; part++)
                for (size_t k = c; k < least(c + b->columns, padded(d->C)); k += LANES)
                    for (size_t t = pass_start(b, i); t < pass_start(b, i + 1); t++)
                        for (size_t j = 0; j < WIDTH; j++) {
                            size_t at = k + (b->pairs ? part / 2 * 2 * WIDTH + 2 * j + part % 2
                                                      : part * WIDTH + j);
                            double x = at < d->C ? (double)d->x[t * d->x_stride + at] : 0.0;
                            *out++ = kind == 1 ? size_of(x) : x;
                        }
}

/* A part of FEW_ROWS rows' columns, at w, times all tokens that go together in pass i, or their
 * sizes (kind 1); r, c, n are few_rows' own. */
TARGET static void NAME(few_together)(const few *b, const uint8_t *const w[FEW_ROWS], size_t r,
                                      size_t c, size_t n, size_t i, size_t part, size_t kind)
{
    size_t t = pass_start(b, i), tokens = pass_start(b, i + 1) - t, steps = padded(n) / LANES;
    double *lanes = b->lanes[kind] + (r * b->T + t) * LANES + part * WIDTH;
    const double *x = b->x[kind] + c * b->T + (t * LANES + part * WIDTH * tokens) * steps;
    const size_t at = b->pairs ? part / 2 * 4 * WIDTH : part * WIDTH * b->taken;
    const uint32_t mask = kind == 1 ? 0x7FFFFFFF : UINT32_MAX;
    const bool first = c == 0;
    const uint8_t *p[FEW_ROWS];
    UNROLL for (int k = 0; k < FEW_ROWS; k++) p[k] = w[k] + at;
    if (b->taken == 8)
        NAME(any_few)(lanes, b->T, p, x, steps, first, b->ahead, mask, NAME(decoded), tokens);
    else if (b->taken == 4)
        NAME(any_few)(lanes, b->T, p, x, steps, first, b->ahead, mask, NAME(floats), tokens);
    else if (!b->pairs)
        NAME(any_few)(lanes, b->T, p, x, steps, first, b->ahead, mask, NAME(float16s), tokens);
    else if (part % 2 == 0)
        NAME(any_few)(lanes, b->T, p, x, steps, first, b->ahead, mask, NAME(even), tokens);
    else
        NAME(any_few)(lanes, b->T, p, x, steps, first, b->ahead, mask, NAME(odd), tokens);
}

/* Columns [c, c + n) of rows [o, o + rows), behind the last the last again. */
TARGET static void NAME(few_rows)(const q3_dots *d, const few *b, size_t o, size_t rows, size_t c,
                                  size_t n)
{
    const size_t parts = LANES / WIDTH;
    const uint8_t *data = d->weight.data, *w[SOME_ROWS];
    for (size_t r = 0; r < round_up(rows, FEW_ROWS); r++) {
        size_t from = least(o + r, d->N - 1), at = (from * d->row_stride + c) * b->element;
        uint8_t *out = b->rows + r * b->columns * b->taken;
        w[r] = b->direct && n % LANES == 0 ? data + at : out;
        if (is_quantized(d))
            NAME(decode)((double *)(void *)out, d, from, c, n);
        else if (!b->direct)
            NAME(widen)((float *)(void *)out, d, from * d->row_stride + c, n);
        else if (w[r] == out)
            memcpy(memset(out, 0, padded(n) * b->element), data + at, n * b->element);
    }
    for (size_t i = 0; i < 2 * b->passes; i++)
        for (size_t part = 0; part < parts && b->x[i % 2] != NULL; part++)
            for (size_t r = 0; r < rows; r += FEW_ROWS)
                NAME(few_together)(b, w + r, r, c, n, i / 2, part, i % 2);
}

/* Rows [o, o + rows), all columns. */
TARGET static void NAME(some_rows)(const q3_dots *d, const few *b, size_t o, size_t rows)
{
    for (size_t c = 0; c < d->C; c += b->columns)
        NAME(few_rows)(d, b, o, rows, c, least(b->columns, d->C - c));
    for (size_t kind = 0; kind < 2; kind++)
        for (size_t t = 0; t < b->T && b->x[kind] != NULL; t++) {
            double sums[SOME_ROWS];
            for (size_t r = 0; r < rows; r++) {
                vector lane[LANES / WIDTH];
                memcpy(lane, b->lanes[kind] + (r * b->T + t) * LANES, sizeof lane);
                sums[r] = NAME(fold)(lane, b->pairs);
            }
            if (kind == 1)
                memcpy(d->sizes + t * d->N + o, sums, rows * sizeof *sums);
            else
                hand_over(d, NAME(round), sums, t, o, rows);
        }
}

/* False: no memory. */
TARGET static bool NAME(few_tokens)(const q3_dots *d)
{
    const bool wanted[2] = {want_sums(d), d->sizes != NULL};
    const size_t kinds = (size_t)wanted[0] + wanted[1];
    size_t tokens = d->T * padded(d->C), lanes = SOME_ROWS * d->T * LANES;
    if (kinds * tokens > TOKEN_BYTES / 8) return false;
    const bool quantized = is_quantized(d);
    few b = {.T = d->T, .passes = (d->T + FEW - 1) / FEW,
             .element = quantized ? 0 : d->weight.dtype == Q3_F32 ? 4 : 2};
    b.ahead = SOME_ROWS * d->row_stride * b.element;
    b.direct = as_it_lies(d) && (d->weight.dtype != Q3_F16 || WIDTH > 2);
    b.pairs = b.direct && d->weight.dtype == Q3_BF16;
    b.taken = quantized ? 8 : b.direct ? b.element : 4;
    size_t together = (d->T + b.passes - 1) / b.passes;
    b.columns = least(TOKENS_AT_HAND / 8 / WIDTH / together * LANES,
                      quantized ? DECODED_COLUMNS : MOST_COLUMNS);
    size_t all = kinds * (tokens + lanes) + SOME_ROWS * b.columns * (quantized ? 2 : 1) / 2;
    double *scratch = malloc((all + LINE) * sizeof *scratch);
    if (scratch == NULL) return false;
    double *free_from = to_line(scratch);
    for (size_t kind = 0; kind < 2; kind++) {
        if (!wanted[kind]) continue;
        b.x[kind] = free_from;
        b.lanes[kind] = free_from + tokens;
        free_from += tokens + lanes;
        NAME(lay_few)(&b, d, kind);
    }
    b.rows = (uint8_t *)free_from;
    for (size_t o = 0; o < d->N; o += SOME_ROWS)
        NAME(some_rows)(d, &b, o, least(SOME_ROWS, d->N - o));
    free(scratch);
    return true;
}

/* ==== A block of tokens =======================================================================
 * One lane at a time: lane l of a sum is a short sum of C/16 products, so a tile of rows times
 * tokens keeps all its lanes l in registers from the first product to the last. Rows stand side by
 * side in a vector, tokens are multiplied one by one, so that a tile may have any number of them.
 * Tokens are laid out as [tile][lane][step][token] in float64 once for all rows; a group of their
 * tiles stays in the second-level cache while all rows of a stretch pass by. For each group a tile
 * of rows is laid out as [lane][step][row], and a lane of it is widened to float64, which stays in
 * the first-level cache while the tiles of the group meet it. 16-bit weights are laid out as words
 * of two neighbouring lanes, and are told from each other when they are widened. */

/* Tokens [first, first + n) of a tile. */
TARGET static void NAME(pack_tokens)(double *out, const q3_dots *d, size_t first, size_t n,
                                     bool size)
{
    size_t steps = padded(d->C) / LANES, lane_stride = apart(steps * n);
    const float *x = d->x + first * d->x_stride;
    for (size_t s = 0; s < steps; s++)
        for (size_t l = 0; l < LANES; l++) {
            double *to = out + l * lane_stride + s * n;
            size_t c = s * LANES + l;
            for (size_t t = 0; t < n; t++) {
                double value = c < d->C ? (double)x[t * d->x_stride + c] : 0.0;
                to[t] = size ? size_of(value) : value;
            }
        }
}

/* Words m[i][j] become m[j][i]. */
INLINE void NAME(transpose)(side m[SIDE])
{
    for (int pass = SIDE; pass > 1; pass /= 2) {
        side z[SIDE];
        UNROLL for (int i = 0; i < SIDE / 2; i++) {
            side a = m[i], b = m[i + SIDE / 2];
#if SIDE == 16
            z[2 * i] = SHUFFLE(side, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            z[2 * i + 1] = SHUFFLE(side, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                   15, 31);
#elif SIDE == 4
            z[2 * i] = SHUFFLE(side, a, b, 0, 4, 1, 5);
            z[2 * i + 1] = SHUFFLE(side, a, b, 2, 6, 3, 7);
#else
            z[2 * i] = SHUFFLE(side, a, b, 0, 2);
            z[2 * i + 1] = SHUFFLE(side, a, b, 1, 3);
#endif
        }
        UNROLL for (int i = 0; i < SIDE; i++) m[i] = z[i];
    }
}

/* Words [at, at + SIDE) of SIDE rows go to their lanes; a step has so many words, a multiple or a
 * part of SIDE, as `at` is. */
INLINE void NAME(pack_words)(uint32_t *out, size_t lane_stride, const uint8_t *const row[SIDE],
                             size_t at, const size_t words_a_step)
{
    side m[SIDE];
    UNROLL for (int r = 0; r < SIDE; r++) {
        m[r] = *(const side *)(row[r] + 4 * at);
#if SIDE > 2 /* clang has no register for a short one */
        KEEP(m[r]);
#endif
    }
    NAME(transpose)(m);
    out += at % words_a_step * lane_stride + at / words_a_step * ROWS;
    UNROLL for (size_t i = 0; i < SIDE; i++)
        *(side *)(out + i % words_a_step * lane_stride + i / words_a_step * ROWS) = m[i];
}

/* Rows [o, o + ROWS) as a tile, behind the last row the last again; elements of `size` bytes. */
INLINE void NAME(pack_tile)(uint32_t *out, const q3_dots *d, size_t o, const size_t size)
{
    const size_t steps = padded(d->C) / LANES, lane_stride = apart(steps * ROWS);
    const size_t bytes = d->C * size, words_a_step = LANES * size / 4;
    const uint8_t *row[ROWS];
    for (size_t r = 0; r < ROWS; r++)
        row[r] = (const uint8_t *)d->weight.data + least(o + r, d->N - 1) * d->row_stride * size;
    size_t at = 0;
    for (; 4 * (at + SIDE) <= bytes; at += SIDE)
        UNROLL for (size_t r = 0; r < ROWS; r += SIDE)
            NAME(pack_words)(out + r, lane_stride, row + r, at, words_a_step);
    for (; at < steps * words_a_step; at++)
        for (size_t r = 0; r < ROWS; r++) {
            uint32_t two = 0;
            if (4 * at < bytes) memcpy(&two, row[r] + 4 * at, least(4, bytes - 4 * at));
            out[at % words_a_step * lane_stride + at / words_a_step * ROWS + r] = two;
        }
}

TARGET static void NAME(pack_rows)(uint32_t *out, const q3_dots *d, size_t o)
{
    if (is_quantized(d))
        NAME(pack_decoded)((double *)(void *)out, d, o);
    else if (d->weight.dtype == Q3_F32)
        NAME(pack_tile)(out, d, o, 4);
    else
        NAME(pack_tile)(out, d, o, 2);
}

/* Words w[n] as float64, rounded to the run's dtype first if `to` says how; of words of two lanes
 * the odd one or the other. All bits outside the mask are cleared. */
INLINE void NAME(widen_words)(double *out, const uint32_t *w, size_t n, const q3_dtype dtype,
                              const bool odd, const format *to, uint64_t mask)
{
    for (size_t i = 0; i < n; i += ROWS)
        UNROLL for (size_t k = i; k < i + ROWS; k += WIDTH) {
            singles pair[2];
            pair[0] = (singles)*(const words *)(w + k);
            if (dtype != Q3_F32) NAME(unpair)(&pair[0], &pair[1], (word)pair[0], dtype);
            if (to != NULL) pair[odd] = NAME(rounded)(pair[odd], to);
            *(doubles *)(out + k) = (vector)((bits)NAME(widened)(pair[odd]) & mask);
        }
}

/* Lane l of a tile of rows at w, in float64, or the sizes of that: in `out`, or where it is. */
TARGET static const double *NAME(widen_lane)(const q3_dots *d, double *out, const uint32_t *w,
                                             size_t l, size_t n, bool size)
{
    if (is_quantized(d)) {
        const double *decoded = (const double *)(const void *)w + l * apart(n);
        for (size_t i = 0; size && i < n; i++) out[i] = size_of(decoded[i]);
        return size ? out : decoded;
    }
    const q3_dtype dtype = d->weight.dtype;
    const bool odd = dtype != Q3_F32 && l % 2 == 1;
    const uint64_t mask = size ? ~SIGN_BIT : UINT64_MAX;
    const format to = format_of(d->dtype);
    w += (dtype == Q3_F32 ? l : l / 2) * apart(n);
    if (!as_it_lies(d))
        NAME(widen_words)(out, w, n, dtype, odd, &to, mask);
    else if (dtype == Q3_F32)
        NAME(widen_words)(out, w, n, Q3_F32, false, NULL, mask);
    else if (dtype == Q3_BF16 && odd)
        NAME(widen_words)(out, w, n, Q3_BF16, true, NULL, mask);
    else if (dtype == Q3_BF16)
        NAME(widen_words)(out, w, n, Q3_BF16, false, NULL, mask);
    else if (odd)
        NAME(widen_words)(out, w, n, Q3_F16, true, NULL, mask);
    else
        NAME(widen_words)(out, w, n, Q3_F16, false, NULL, mask);
    return out;
}

/* A tile's lane number i, with at most 4 x [n][ROWS] that wait in `waiting`.
 * Order   steps ascending, one accumulator each; then lane l takes lane l + s for s = 8, 4, 2, 1,
 *         as everywhere, but each as soon as both are there: lanes come as 0, 8, 4, 12, 2, ..., and
 *         a pair of equally long sums at the end of the row of waiting ones becomes one. */
INLINE void NAME(lane_tile)(double *waiting, size_t i, const double *w, const double *x,
                            size_t steps, ask next, const int n)
{
    enum { AHEAD = 6 }; /* steps that the first-level cache is asked for what comes */
    vector low[TILE], high[TILE];
    UNROLL for (int t = 0; t < n; t++) low[t] = high[t] = (vector){0};
    for (size_t s = 0; s < steps; s++, w += ROWS, x += n) {
        vector a = *(const doubles *)w, b = *(const doubles *)(w + WIDTH);
        for (int k = 0; k < n; k += 8) __builtin_prefetch(x + AHEAD * n + k);
        __builtin_prefetch((const void *)(next.at + s * next.step), 0, 2);
        UNROLL for (int t = 0; t < n; t++) {
            low[t] += a * x[t];
            high[t] += b * x[t];
        }
    }
    for (size_t k = i; k != 0; k &= k - 1) waiting += ROWS * TILE;
    for (; i & 1; i >>= 1) {
        waiting -= ROWS * TILE;
        UNROLL for (int t = 0; t < n; t++) {
            low[t] += *(const doubles *)(waiting + t * ROWS);
            high[t] += *(const doubles *)(waiting + t * ROWS + WIDTH);
        }
    }
    UNROLL for (int t = 0; t < n; t++) {
        *(doubles *)(waiting + t * ROWS) = low[t];
        *(doubles *)(waiting + t * ROWS + WIDTH) = high[t];
    }
}

#define CASE(n)                                                            \
    case n:                                                                \
        NAME(lane_tile)(waiting, i, w, x, steps, next, n <= TILE ? n : 1); \
        break

INLINE void NAME(any_lane)(double *waiting, size_t i, const double *w, const double *x,
                           size_t steps, ask next, size_t n)
{
    switch (n) {
        CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6);
        CASE(7); CASE(8); CASE(9); CASE(10); CASE(11); CASE(12);
    }
}
#undef CASE

/* The tile of rows that is laid out times token tiles [first, end), whose sums are then the first
 * of what waited; `bytes` at `next`, which are needed next, are asked for, a few with each step. */
TARGET static void NAME(group)(const q3_dots *d, const block *b, const double *x, size_t first,
                               size_t end, bool size, const uint8_t *next, size_t bytes)
{
    const size_t steps = b->steps;
    ask a = {(uintptr_t)next, bytes / (LANES * (end - first) * steps) + 1};
    for (size_t i = 0; i < LANES; i++) {
        size_t l = (i & 1) << 3 | (i & 2) << 1 | (i & 4) >> 1 | (i & 8) >> 3;
        const double *w = NAME(widen_lane)(d, b->lane, b->rows, l, steps * ROWS, size);
        for (size_t k = first; k < end; k++, a.at += a.step * steps) {
            size_t n = tile_start(b, k + 1) - tile_start(b, k);
            NAME(any_lane)(b->waiting + (k - first) * 4 * ROWS * TILE, i, w,
                           x + k * b->token_tile + l * apart(steps * n), steps, a, n);
        }
    }
}

/* Rows [o, o + ROWS) times a group of token tiles; rows from `next` on are asked for meanwhile. */
TARGET static void NAME(rows_and_group)(const q3_dots *d, const block *b, size_t o, size_t next,
                                        size_t first, size_t end)
{
    const size_t size = is_quantized(d) ? 0 : d->weight.dtype == Q3_F32 ? 4 : 2;
    const size_t stride = d->row_stride * size, n = least(ROWS, d->N - o);
    const size_t bytes = least(ROWS, d->N - next) * stride;
    NAME(pack_rows)(b->rows, d, o);
    for (size_t kind = 0; kind < 2; kind++) {
        if (b->x[kind] == NULL) continue;
        NAME(group)(d, b, b->x[kind], first, end, kind == 1,
                    (const uint8_t *)d->weight.data + next * stride, bytes);
        for (size_t k = first; k < end; k++)
            for (size_t t = tile_start(b, k); t < tile_start(b, k + 1); t++) {
                double *sums = b->waiting + (k - first) * 4 * ROWS * TILE +
                               (t - tile_start(b, k)) * ROWS;
                if (kind == 1)
                    memcpy(d->sizes + (b->first + t) * d->N + o, sums, n * sizeof *sums);
                else
                    hand_over(d, NAME(round), sums, b->first + t, o, n);
            }
    }
}

/* Tokens b->first to b->first + b->T - 1, all rows. */
TARGET static void NAME(run_block)(const q3_dots *d, const block *b)
{
    for (size_t k = 0; k < b->tiles; k++) {
        size_t t = tile_start(b, k), n = tile_start(b, k + 1) - t;
        for (size_t kind = 0; kind < 2; kind++)
            if (b->x[kind] != NULL)
                NAME(pack_tokens)(b->x[kind] + k * b->token_tile, d, b->first + t, n, kind == 1);
    }
    for (size_t o = 0; o < d->N; o += b->stretch) {
        size_t end = least(o + b->stretch, d->N);
        for (size_t k = 0; k < b->tiles; k += b->group)
            for (size_t r = o; r < end; r += ROWS) {
                bool again = r + ROWS >= end && k + b->group < b->tiles;
                NAME(rows_and_group)(d, b, r, again ? o : least(r + ROWS, d->N), k,
                                     least(k + b->group, b->tiles));
            }
    }
}

/* False: no memory, or sums too long for it. */
TARGET static bool NAME(many_tokens)(const q3_dots *d)
{
    const size_t steps = padded(d->C) / LANES, words_each = is_quantized(d) ? 2 : 1;
    const size_t row_tile = LANES * apart(steps * ROWS) * words_each;
    const size_t kinds = (size_t)want_sums(d) + (d->sizes != NULL);
    if (row_tile > ROW_BYTES / 4) return false;
    block b = {.steps = steps, .token_tile = LANES * apart(steps * TILE)};
    size_t fit = larger(TOKEN_BYTES / 8 / kinds / b.token_tile, 1);
    size_t tiles = least((d->T + TILE - 1) / TILE, fit);
    b.group = least(tiles, larger(GROUP_BYTES / 8 / b.token_tile, 2));
    b.stretch = larger(ROW_BYTES / 4 / larger(d->row_stride, 1) / ROWS, 1) * ROWS;
    size_t tokens = tiles * b.token_tile, waiting = b.group * 4 * ROWS * TILE;
    size_t all = kinds * tokens + waiting + steps * ROWS + row_tile / 2;
    double *scratch = malloc((all + LINE) * sizeof *scratch);
    if (scratch == NULL) return false;
    b.waiting = to_line(scratch);
    b.lane = b.waiting + waiting;
    double *x = b.lane + steps * ROWS;
    if (want_sums(d)) b.x[0] = x;
    if (d->sizes != NULL) b.x[1] = x + (kinds - 1) * tokens;
    b.rows = (uint32_t *)(x + kinds * tokens);
    for (; b.first < d->T; b.first += b.T) {
        b.T = least(tiles * TILE, d->T - b.first);
        b.tiles = (b.T + TILE - 1) / TILE;
        NAME(run_block)(d, &b);
    }
    free(scratch);
    return true;
}

/* Order   16 lanes over c, whichever way is taken; the bias last, before the one rounding. */
TARGET static void NAME(dots)(const q3_dots *dots)
{
    q3_dots d = *dots;
    if (d.T == 0 || d.N == 0) return;
    if (d.rows != NULL) d.weight = (q3_tensor){d.rows, Q3_F32};
    const size_t most = is_quantized(&d) ? MOST_DECODED : MOST_FEW;
    bool done = false;
    if (d.C > 0 && d.T == 1 && d.sizes == NULL && as_it_lies(&d))
        done = NAME(one_token)(&d);
    else if (d.C > 0)
        done = d.T <= most ? NAME(few_tokens)(&d) : NAME(many_tokens)(&d);
    if (!done) q3_plain_kernels()->dots(dots);
}

/* Order   one accumulator for each element, keys ascending. */
TARGET static void NAME(values)(double *sums, const float *probs, const float *rows, size_t stride,
                                size_t count, size_t n)
{
    q3_plain_kernels()->values(sums, probs, rows, stride, count, n);
}

#undef INLINE
#undef vector
#undef doubles
#undef bits
#undef singles
#undef word
#undef words
#undef shorts
#undef long_words
#undef side
#undef SIDE
#undef PAIRS
#undef ROWS
#undef TILE
#undef FEW
#undef FEW_ROWS
#undef MOST_FEW
#undef MOST_DECODED
