/* SPDX-License-Identifier: MIT */
/* kernels_dots.h - sums of products; included by kernels.c once for each instruction set, which
 * defines SET and NAME (its name and how functions are called), TARGET (the functions' attribute)
 * and WIDTH (float64 of a vector). No guard: it is meant to be included again.
 *
 * A sum's lane l is the sum over c = l, l + 16, l + 32, ..., ascending, from +0; that order is kept
 * by every loop here, and only what runs side by side differs. Columns behind the last one of a sum
 * are zeros: a lane begins with +0, so it never is -0, and adding +0 leaves its bits alone. */

typedef double NAME(vector) __attribute__((vector_size(8 * WIDTH)));
typedef double NAME(doubles) __attribute__((vector_size(8 * WIDTH), aligned(8), may_alias));
typedef uint64_t NAME(bits) __attribute__((vector_size(8 * WIDTH)));
typedef float NAME(singles) __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t NAME(word) __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t NAME(words) __attribute__((vector_size(4 * WIDTH), aligned(1), may_alias));
#define INLINE TARGET UNUSED static inline __attribute__((always_inline))
#define vector NAME(vector)
#define doubles NAME(doubles)
#define bits NAME(bits)
#define singles NAME(singles)
#define word NAME(word)
#define words NAME(words)

/* A tile: ROWS rows of the weight, two vectors of them, times at most TILE tokens. All its
 * accumulators stay in registers, of which AVX-512 has 32, the others 16. */
#define ROWS (2 * WIDTH)
#if WIDTH == 8
#define TILE 12
#elif WIDTH == 4
#define TILE 6
#elif defined(__aarch64__)
#define TILE 12
#else
#define TILE 5
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
 * and NaN get the exponent that they need. */
INLINE singles NAME(halves)(word h)
{
    singles scaled = (singles)((h & 0x7FFF) << 13) * 0x1p112f;
    word special = (word)((h & 0x7C00) == 0x7C00) & 0x7F800000u;
    return (singles)((word)scaled | special | (h & 0x8000) << 16);
}

/* ==== One token ===============================================================================
 * Lanes side by side. 16-bit weights come two to a word: even columns are its lower half, odd ones
 * its upper half, so that no element moves to another place. The token is laid out to fit. */

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
    if (dtype == Q3_F32) {
        UNROLL for (int g = 0; g < LANES / WIDTH; g++)
            lane[g] += NAME(widened)((singles)*(const words *)(p + 4 * g * WIDTH)) *
                       *(const doubles *)(x + g * WIDTH);
        return;
    }
    UNROLL for (int g = 0; g < LANES / WIDTH; g += 2) {
        word pair = *(const words *)(p + 2 * g * WIDTH);
        singles even, odd;
        if (dtype == Q3_BF16) {
            even = (singles)(pair << 16);
            odd = (singles)(pair & 0xFFFF0000u);
        } else {
            even = NAME(halves)(pair & 0xFFFF);
            odd = NAME(halves)(pair >> 16);
        }
        lane[g] += NAME(widened)(even) * *(const doubles *)(x + g * WIDTH);
        lane[g + 1] += NAME(widened)(odd) * *(const doubles *)(x + (g + 1) * WIDTH);
    }
}

/* The lanes in their own order, folded as ever. */
INLINE double NAME(fold)(const vector lane[LANES / WIDTH], bool pairs)
{
    double sum[LANES];
    for (int l = 0; l < LANES; l++) {
        int in_word = l % (2 * WIDTH), group = l / (2 * WIDTH);
        sum[l] = pairs ? lane[2 * group + in_word % 2][in_word / 2] : lane[l / WIDTH][l % WIDTH];
    }
    for (int s = LANES / 2; s > 0; s /= 2)
        for (int l = 0; l < s; l++) sum[l] += sum[l + s];
    return sum[0];
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
    for (int r = 0; r < count; r++) sums[r] = NAME(fold)(lane[r], dtype != Q3_F32);
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
    NAME(lay_out)(x, d->x, d->C, d->weight.dtype != Q3_F32);
    if (d->weight.dtype == Q3_BF16)
        NAME(one_token_of)(d, x, Q3_BF16);
    else if (d->weight.dtype == Q3_F16)
        NAME(one_token_of)(d, x, Q3_F16);
    else
        NAME(one_token_of)(d, x, Q3_F32);
    free(x);
    return true;
}

/* ==== A block of tokens =======================================================================
 * One lane at a time: lane l of a sum is a short sum of C/16 products, so a tile of rows times
 * tokens keeps all its lanes l in registers from the first product to the last. Rows stand side by
 * side in a vector, tokens are multiplied one by one, so that a tile may have any number of them.
 * Weights are laid out as [lane][step][row] in float64 once for all tokens of the call, tokens as
 * [tile][lane][step][token] once for all rows. */

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
INLINE void NAME(transpose)(word m[WIDTH])
{
    for (int pass = WIDTH; pass > 1; pass /= 2) {
        word z[WIDTH];
        UNROLL for (int i = 0; i < WIDTH / 2; i++) {
            word a = m[i], b = m[i + WIDTH / 2];
#if WIDTH == 8
            z[2 * i] = SHUFFLE(word, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            z[2 * i + 1] = SHUFFLE(word, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif WIDTH == 4
            z[2 * i] = SHUFFLE(word, a, b, 0, 4, 1, 5);
            z[2 * i + 1] = SHUFFLE(word, a, b, 2, 6, 3, 7);
#else
            z[2 * i] = SHUFFLE(word, a, b, 0, 2);
            z[2 * i + 1] = SHUFFLE(word, a, b, 1, 3);
#endif
        }
        UNROLL for (int i = 0; i < WIDTH; i++) m[i] = z[i];
    }
}

/* 16 columns of WIDTH rows, stride bytes apart, into the 16 lanes of a step. */
INLINE void NAME(pack_columns)(double *out, size_t lane_stride, const uint8_t *p,
                                      size_t stride, bool pairs)
{
    const int columns = pairs ? 2 : 1; /* of a word */
    UNROLL for (int c = 0; c < LANES; c += columns * WIDTH) {
        word m[WIDTH];
        UNROLL for (int r = 0; r < WIDTH; r++)
            m[r] = *(const words *)(p + (size_t)r * stride + (pairs ? 2 : 4) * c);
        NAME(transpose)(m);
        UNROLL for (int i = 0; i < WIDTH; i++) {
            double *to = out + (size_t)(c + columns * i) * lane_stride;
            *(doubles *)to = NAME(widened)((singles)(pairs ? m[i] << 16 : m[i]));
            if (!pairs) continue;
            *(doubles *)(to + lane_stride) = NAME(widened)((singles)(m[i] & 0xFFFF0000u));
        }
    }
}

/* WIDTH rows at p into their half of a tile. */
INLINE void NAME(pack_half)(double *out, const uint8_t *p, size_t stride, size_t C,
                                   bool pairs)
{
    const size_t size = pairs ? 2 : 4, lane_stride = apart(padded(C) / LANES * ROWS);
    size_t c = 0;
    for (; c + LANES <= C; c += LANES, out += ROWS)
        NAME(pack_columns)(out, lane_stride, p + c * size, stride, pairs);
    if (c == C) return;
    uint8_t rest[WIDTH][LANES * 4] = {{0}};
    for (size_t r = 0; r < WIDTH; r++) memcpy(rest[r], p + r * stride + c * size, (C - c) * size);
    NAME(pack_columns)(out, lane_stride, rest[0], sizeof rest[0], pairs);
}

/* n elements of a weight as float32, rounded to the run's dtype. */
TARGET static void NAME(widen_row)(float *out, const q3_dots *d, size_t first, size_t n)
{
    if (d->weight.dtype == Q3_F16 && (d->dtype == Q3_F16 || d->dtype == Q3_F32)) {
        const uint8_t *p = (const uint8_t *)d->weight.data + 2 * first;
        size_t i = 0;
        for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
            word pair = *(const words *)(p + 2 * i);
            singles even = NAME(halves)(pair & 0xFFFF), odd = NAME(halves)(pair >> 16);
            for (size_t k = 0; k < WIDTH; k++) {
                out[i + 2 * k] = even[k];
                out[i + 2 * k + 1] = odd[k];
            }
        }
        q3_widen(out + i, d->weight, first + i, n - i, d->dtype);
        return;
    }
    enum { MANY = 256 };
    double wide[MANY];
    for (size_t i = 0; i < n; i += MANY) {
        size_t m = least(MANY, n - i);
        q3_widen(out + i, d->weight, first + i, m, Q3_F32);
        for (size_t k = 0; k < m; k++) wide[k] = (double)out[i + k];
        NAME(round)(out + i, wide, m, d->dtype);
    }
}

/* Rows [o, o + ROWS) as a tile; behind the last row the last again. direct: as they lie. */
TARGET static void NAME(pack_rows)(double *out, const q3_dots *d, size_t o, float *row, bool direct)
{
    const bool pairs = direct && d->weight.dtype == Q3_BF16;
    const size_t size = pairs ? 2 : 4;
    for (size_t half = 0; half < ROWS; half += WIDTH) {
        const uint8_t *p = (const uint8_t *)d->weight.data + (o + half) * d->row_stride * size;
        size_t stride = d->row_stride * size;
        if (!direct || o + half + WIDTH > d->N) {
            stride = padded(d->C) * sizeof *row;
            for (size_t r = 0; r < WIDTH; r++) {
                size_t from = least(o + half + r, d->N - 1) * d->row_stride;
                float *to = row + r * padded(d->C);
                if (direct)
                    memcpy(to, (const uint8_t *)d->weight.data + from * size, d->C * size);
                else
                    NAME(widen_row)(to, d, from, d->C);
            }
            p = (const uint8_t *)row;
        }
        if (pairs)
            NAME(pack_half)(out + half, p, stride, d->C, true);
        else
            NAME(pack_half)(out + half, p, stride, d->C, false);
    }
}

/* sums[n][ROWS] of one lane. Order: steps ascending, one accumulator each. */
INLINE void NAME(lane_tile)(double *sums, const double *w, const double *x, size_t steps,
                                   bool size, const int n)
{
    enum { AHEAD = 6 }; /* steps that the first-level cache is asked for what comes */
    vector low[TILE], high[TILE];
    UNROLL for (int t = 0; t < n; t++) low[t] = high[t] = (vector){0};
    for (size_t s = 0; s < steps; s++, w += ROWS, x += n) {
        vector a = *(const doubles *)w, b = *(const doubles *)(w + WIDTH);
        for (int i = 0; i < ROWS; i += 8) __builtin_prefetch(w + AHEAD * ROWS + i);
        for (int i = 0; i < n; i += 8) __builtin_prefetch(x + AHEAD * n + i);
        if (size) {
            a = (vector)((bits)a & (UINT64_MAX >> 1));
            b = (vector)((bits)b & (UINT64_MAX >> 1));
        }
        UNROLL for (int t = 0; t < n; t++) {
            low[t] += a * x[t];
            high[t] += b * x[t];
        }
    }
    UNROLL for (int t = 0; t < n; t++) {
        *(doubles *)(sums + t * ROWS) = low[t];
        *(doubles *)(sums + t * ROWS + WIDTH) = high[t];
    }
}

#define CASE(n)                                                                \
    case n:                                                                    \
        NAME(lane_tile)(sums, w, x, steps, size, n <= TILE ? n : 1);           \
        break

INLINE void NAME(any_lane)(double *sums, const double *w, const double *x, size_t steps,
                                  bool size, size_t n)
{
    switch (n) {
        CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6);
        CASE(7); CASE(8); CASE(9); CASE(10); CASE(11); CASE(12);
    }
}
#undef CASE

/* A tile's sums[n][ROWS], of ROWS * TILE * 5 elements. Order: lane l takes lane l + s for s = 8, 4,
 * 2, 1, as everywhere, but each as soon as both are there: lanes come as 0, 8, 4, 12, 2, ..., and a
 * pair of equally long sums at the end of the row of waiting ones becomes one. */
TARGET static void NAME(tile)(double *sums, const double *w, const double *x, size_t steps,
                              bool size, size_t n, const uint8_t *next, size_t next_bytes)
{
    size_t waiting = 0, w_stride = apart(steps * ROWS), x_stride = apart(steps * n);
    for (size_t i = 0; i < LANES; i++) {
        size_t l = (i & 1) << 3 | (i & 2) << 1 | (i & 4) >> 1 | (i & 8) >> 3;
        double *sum = sums + waiting++ * ROWS * TILE;
        for (size_t b = i * next_bytes / LANES; b < (i + 1) * next_bytes / LANES; b += 64)
            __builtin_prefetch(next + b, 0, 2);
        if (size)
            NAME(any_lane)(sum, w + l * w_stride, x + l * x_stride, steps, true, n);
        else
            NAME(any_lane)(sum, w + l * w_stride, x + l * x_stride, steps, false, n);
        for (size_t k = i; k & 1; k >>= 1, waiting--) {
            double *b = sums + (waiting - 1) * ROWS * TILE, *a = b - ROWS * TILE;
            for (size_t e = 0; e < n * ROWS; e += WIDTH) *(doubles *)(a + e) += *(doubles *)(b + e);
        }
    }
}

/* A block's arrays: tiles of tokens, of the tokens' sizes, of rows; a tile's sums with all rows of
 * the block; WIDTH rows on their way. */
typedef struct NAME(block) {
    double *tokens, *sizes, *rows, *sums;
    float *row;
    size_t N;    /* rows of a block */
    bool direct; /* weights are laid out as they lie: nothing is to be rounded */
} NAME(block);

/* What is needed after rows [o, o + N) met a tile of tokens: tile `token_tile`, or if that is 0 the
 * weights of the next rows; the part of it that is asked for while the tile of row o + r is at
 * work. */
TARGET static const uint8_t *NAME(what_next)(size_t *bytes, const q3_dots *d, const NAME(block) *b,
                                             size_t token_tile, size_t r, size_t N, size_t o)
{
    const size_t element = d->weight.dtype == Q3_F32 ? 4 : 2;
    if (token_tile > 0) {
        size_t all = LANES * apart(padded(d->C) / LANES * TILE) * sizeof(double);
        size_t parts = (N + ROWS - 1) / ROWS;
        *bytes = all / parts;
        return (const uint8_t *)b->tokens + token_tile * all + r / ROWS * (all / parts);
    }
    size_t at = o + N + r;
    if (at >= d->N) return NULL;
    *bytes = least(ROWS, d->N - at) * d->row_stride * element;
    return (const uint8_t *)d->weight.data + at * d->row_stride * element;
}

/* Tokens [first, first + T), all rows: a block of rows is laid out, then meets tile after tile. */
TARGET static void NAME(run_block)(const q3_dots *d, const NAME(block) *b, size_t first, size_t T)
{
    size_t steps = padded(d->C) / LANES, tiles = (T + TILE - 1) / TILE;
    size_t tokens = LANES * apart(steps * TILE), rows = LANES * apart(steps * ROWS); /* of a tile */
    double sums[5 * ROWS * TILE], sizes[5 * ROWS * TILE];
    for (size_t i = 0; i < tiles; i++) {
        size_t t = i * T / tiles, n = (i + 1) * T / tiles - t;
        NAME(pack_tokens)(b->tokens + i * tokens, d, first + t, n, false);
        if (d->sizes != NULL) NAME(pack_tokens)(b->sizes + i * tokens, d, first + t, n, true);
    }
    for (size_t o = 0; o < d->N; o += b->N) {
        size_t N = least(b->N, d->N - o);
        for (size_t r = 0; r < N; r += ROWS)
            NAME(pack_rows)(b->rows + r / ROWS * rows, d, o + r, b->row, b->direct);
        for (size_t i = 0; i < tiles; i++)
            for (size_t r = 0; r < N; r += ROWS) {
                size_t t = i * T / tiles, n = (i + 1) * T / tiles - t;
                const double *w = b->rows + r / ROWS * rows;
                size_t bytes = 0;
                const uint8_t *next =
                    NAME(what_next)(&bytes, d, b, i + 1 < tiles ? i + 1 : 0, r, N, o);
                NAME(tile)(sums, w, b->tokens + i * tokens, steps, false, n, next, bytes);
                if (d->sizes != NULL)
                    NAME(tile)(sizes, w, b->sizes + i * tokens, steps, true, n, NULL, 0);
                for (size_t k = 0; k < n; k++) {
                    memcpy(b->sums + k * b->N + r, sums + k * ROWS, ROWS * sizeof *sums);
                    if (d->sizes != NULL)
                        memcpy(d->sizes + (first + t + k) * d->N + o + r, sizes + k * ROWS,
                               least(ROWS, N - r) * sizeof *sizes);
                }
                for (size_t k = 0; r + ROWS >= N && k < n; k++)
                    hand_over(d, NAME(round), b->sums + k * b->N, first + t + k, o, N);
            }
    }
}

/* False: no memory, or sums too long for it. */
TARGET static bool NAME(some_tokens)(const q3_dots *d)
{
    const size_t steps = padded(d->C) / LANES, kinds = d->sizes != NULL ? 2 : 1;
    if (steps > ROW_BYTES / 8 / LANES / ROWS) return false;
    size_t tokens = LANES * apart(steps * TILE), rows = LANES * apart(steps * ROWS); /* of a tile */
    size_t token_tiles = least((d->T + TILE - 1) / TILE, TOKEN_BYTES / 8 / kinds / tokens);
    size_t row_tiles = least((d->N + ROWS - 1) / ROWS, least(ROW_BLOCK / 8 / rows, 64));
    if (token_tiles == 0) token_tiles = 1;
    if (row_tiles == 0) row_tiles = 1;
    size_t all = kinds * token_tiles * tokens + row_tiles * (rows + ROWS * TILE);
    double *scratch = malloc(all * 8 + WIDTH * padded(d->C) * 4 + 64);
    if (scratch == NULL) return false;
    NAME(block) b = {.tokens = scratch + (64 - (uintptr_t)scratch % 64) % 64 / 8,
                     .N = row_tiles * ROWS};
    b.sizes = b.tokens + (kinds - 1) * token_tiles * tokens;
    b.rows = b.sizes + token_tiles * tokens;
    b.sums = b.rows + row_tiles * rows;
    b.row = (float *)(b.sums + row_tiles * ROWS * TILE);
    b.direct = d->weight.dtype == Q3_F32 ? d->dtype == Q3_F32 || d->rows != NULL
                                         : d->weight.dtype == Q3_BF16 && d->dtype != Q3_F16;
    for (size_t t = 0; t < d->T; t += token_tiles * TILE)
        NAME(run_block)(d, &b, t, least(token_tiles * TILE, d->T - t));
    free(scratch);
    return true;
}

/* Order   16 lanes over c, whichever way is taken; the bias last, before the one rounding. */
TARGET static void NAME(dots)(const q3_dots *dots)
{
    q3_dots d = *dots;
    if (d.T == 0 || d.N == 0) return;
    if (d.rows != NULL) d.weight = (q3_tensor){d.rows, Q3_F32};
    bool as_it_lies = d.rows != NULL || d.dtype == Q3_F32 || d.dtype == d.weight.dtype;
    bool done = false;
    if (d.C > 0)
        done = d.T == 1 && d.sizes == NULL && as_it_lies ? NAME(one_token)(&d)
                                                         : NAME(some_tokens)(&d);
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
#undef ROWS
#undef TILE
