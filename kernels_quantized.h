/* SPDX-License-Identifier: MIT */
/* kernels_quantized.h - quantised weights on their way to kernels_dots.h, as float64; included by
 * kernels.c behind kernels_maps.h. A piece of a row is decoded once for all tokens that there is
 * room for, whichever way they go. */

/* Elements [c, c + n) of a row as the run's products take them, then zeros up to a multiple of
 * LANES. */
TARGET static void NAME(decode)(double *out, const q3_dots *d, size_t row, size_t c, size_t n)
{
    const q3_quantized *weight = d->weight.data;
    weight->dequantize(out, weight, row * d->row_stride + c, n);
    for (size_t i = n; i < padded(n); i++) out[i] = 0.0;
    if (!weight->rounded || d->dtype == Q3_F32) return;
    const format to = format_of(d->dtype);
    for (size_t i = 0; i < n; i += WIDTH)
        NAME(store)(out + i, WIDEN(NAME(narrow)(NAME(load)(out + i), &to)));
}

/* m[i][j] becomes m[j][i]. */
INLINE void NAME(turn)(NAME(f64) m[WIDTH])
{
    for (int pass = WIDTH; pass > 1; pass /= 2) {
        NAME(f64) z[WIDTH];
        UNROLL for (int i = 0; i < WIDTH / 2; i++) {
            NAME(f64) a = m[i], b = m[i + WIDTH / 2];
#if WIDTH == 8
            z[2 * i] = SHUFFLE(NAME(i64), a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            z[2 * i + 1] = SHUFFLE(NAME(i64), a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif WIDTH == 4
            z[2 * i] = SHUFFLE(NAME(i64), a, b, 0, 4, 1, 5);
            z[2 * i + 1] = SHUFFLE(NAME(i64), a, b, 2, 6, 3, 7);
#else
            z[2 * i] = SHUFFLE(NAME(i64), a, b, 0, 2);
            z[2 * i + 1] = SHUFFLE(NAME(i64), a, b, 1, 3);
#endif
        }
        UNROLL for (int i = 0; i < WIDTH; i++) m[i] = z[i];
    }
}

/* Rows [o, o + 2 WIDTH) as a tile [lane][step][row] of kernels_dots.h, behind the last row the last
 * again. */
TARGET static void NAME(pack_decoded)(double *out, const q3_dots *d, size_t o)
{
    enum { ROWS = 2 * WIDTH, SOME = 256, APART = 8 }; /* columns; rows are no power of two apart */
    const size_t lane_stride = apart(padded(d->C) / LANES * ROWS);
    double piece[ROWS][SOME + APART];
    for (size_t c = 0; c < d->C; c += SOME) {
        size_t n = least(SOME, d->C - c);
        for (size_t r = 0; r < ROWS; r++) NAME(decode)(piece[r], d, least(o + r, d->N - 1), c, n);
        for (size_t k = 0; k < padded(n); k += WIDTH)
            for (size_t r = 0; r < ROWS; r += WIDTH) {
                NAME(f64) m[WIDTH];
                double *to = out + k % LANES * lane_stride + (c + k) / LANES * ROWS + r;
                UNROLL for (size_t i = 0; i < WIDTH; i++) m[i] = NAME(load)(&piece[r + i][k]);
                NAME(turn)(m);
                UNROLL for (size_t i = 0; i < WIDTH; i++) NAME(store)(to + i * lane_stride, m[i]);
            }
    }
}
