/* SPDX-License-Identifier: MIT */
/* kernels_attention.h - attention of a tile of query rows (kernels_tiles.h); included by kernels.c
 * behind kernels_maps.h. Rows lie side by side in the vectors, GROUP of them in a group, and keys
 * follow one another: so each sum stays in its own place of a vector and takes its terms in the
 * order that qwen3moe.c gives it. */

#define GROUP (2 * WIDTH)
#if WIDTH == 8 || defined(__aarch64__) /* 32 vector registers */
#define AT_ONCE 8 /* rows of values, or keys times lanes, beside two vectors */
#define PAIR 2    /* lanes of scores that are summed at once */
#else
#define AT_ONCE 4
#define PAIR 1
#endif
#define SOME (AT_ONCE / PAIR) /* keys whose scores are computed at once */

/* Of the dot products of SOME keys and a group's rows: one lane, or where PAIR is 2 lanes l and
 * l + 8 and then their sum. q holds `steps` elements a lane, lane by lane. */
INLINE void NAME(lane_of_scores)(NAME(f64) lane[SOME][2], const double *q, const double *k,
                                 size_t steps)
{
    NAME(f64) sum[PAIR][SOME][2] = {{{{0}}}};
    size_t depth = steps * LANES, next = steps * LANES / 2 * GROUP;
    for (size_t c = 0; c < steps; c++, q += GROUP, k += LANES)
        for (size_t l = 0; l < PAIR; l++) {
            NAME(f64) a = NAME(load)(q + l * next), b = NAME(load)(q + l * next + WIDTH);
            for (size_t i = 0; i < SOME; i++) {
                sum[l][i][0] += k[i * depth + l * (LANES / 2)] * a;
                sum[l][i][1] += k[i * depth + l * (LANES / 2)] * b;
            }
        }
    for (size_t i = 0; i < SOME; i++)
        for (size_t j = 0; j < 2; j++)
            lane[i][j] = PAIR == 2 ? sum[0][i][j] + sum[PAIR - 1][i][j] : sum[0][i][j];
}

/* D(D(dot) * scale). The sign of a zero is lost where `fits`, which no probability shows. */
INLINE NAME(f64) NAME(score)(NAME(f64) dot, double scale, const format *to, bool fits)
{
    if (fits) return NAME(on_grid)(NAME(on_grid)(dot, to) * scale, to);
    NAME(f64) product = WIDEN(NAME(narrow)(dot, to));
    return WIDEN(NAME(narrow)(product * scale, to));
}

/* Order   a lane takes its products ascending; then lane l takes lane l + s for s = 8, 4, 2, 1. */
TARGET static void NAME(some_scores)(double *panel, const double *q, const double *k, size_t steps,
                                     double scale, const format *to, bool fits)
{
    NAME(f64) lane[LANES / PAIR][SOME][2];
    for (size_t l = 0; l < LANES / PAIR; l++)
        NAME(lane_of_scores)(lane[l], q + l * steps * GROUP, k + l, steps);
    for (size_t i = 0; i < SOME; i++)
        for (size_t j = 0; j < 2; j++) {
            NAME(f64) sum[LANES / PAIR];
            for (size_t l = 0; l < LANES / PAIR; l++) sum[l] = lane[l][i][j];
            for (size_t s = LANES / PAIR / 2; s > 0; s /= 2)
                for (size_t l = 0; l < s; l++) sum[l] += sum[l + s];
            NAME(store)(panel + i * GROUP + j * WIDTH, NAME(score)(sum[0], scale, to, fits));
        }
}

/* Widens keys s, s + 1, ... (behind the last: the last again); returns their largest magnitude,
 * infinity or a NaN if there is one. */
TARGET static double NAME(widen_keys)(const tile *t, size_t s, size_t count)
{
    size_t hd = t->a->hd;
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        const float *key = t->k + least(s + i, t->end - 1) * t->stride;
        double *wide = t->wide + i * t->depth;
        for (size_t c = 0; c < hd; c++) wide[c] = (double)key[c];
        for (size_t c = hd; c < t->depth; c++) wide[c] = 0.0;
        for (size_t c = 0; c < hd; c++) largest = larger_size(largest, key[c]);
    }
    return as_float(largest);
}

/* Behind the scores of n keys from s on of group g: what a row does not see becomes -infinity,
 * whose exp is 0 and changes no sum; then each row's maximum. */
TARGET static void NAME(mask)(const tile *t, size_t g, size_t s, size_t n)
{
    double *panel = t->panel + (g * t->room + s - t->begin) * GROUP, *max = t->max + g * GROUP;
    bool common = s >= t->common && s + n <= t->common_end;
    for (size_t i = 0; !common && i < n; i++)
        for (size_t r = 0; r < GROUP; r++)
            if (!tile_sees(t, g * GROUP + r, s + i)) panel[i * GROUP + r] = -__builtin_inf();
    for (size_t j = 0; j < GROUP; j += WIDTH) {
        NAME(f64) high = NAME(load)(max + j);
        for (size_t i = 0; i < n; i++) {
            NAME(f64) x = NAME(load)(panel + i * GROUP + j);
            high = LARGER(x, high);
        }
        NAME(store)(max + j, high);
    }
}

/* The scores of all rows with keys begin to end. The next keys are asked for meanwhile, a part of
 * each by each group. */
TARGET static void NAME(tile_scores)(const tile *t)
{
    size_t hd = t->a->hd, steps = t->depth / LANES;
    double scale = (double)q3_round(1.0 / q3_sqrt((double)hd), Q3_F32);
    for (size_t r = 0; r < t->groups * GROUP; r++) t->max[r] = -__builtin_inf();
    for (size_t s = t->begin; s < t->end; s += KEYS) {
        size_t n = least(KEYS, t->end - s);
        double largest = NAME(widen_keys)(t, s, round_up(n, SOME));
        bool fits = largest * t->largest_q * (double)hd < t->to.fits;
        for (size_t g = 0; g < t->groups; g++) {
            double *panel = t->panel + (g * t->room + s - t->begin) * GROUP;
            for (size_t i = 0; i < n; i += SOME) {
                for (size_t k = s + KEYS + i; k < s + KEYS + i + SOME; k++)
                    for (size_t c = g * PER_LINE; c < hd; c += t->groups * PER_LINE)
                        ask_ahead(t, t->k, k, c);
                NAME(some_scores)(panel + i * GROUP, t->q + g * t->depth * GROUP,
                                  t->wide + i * t->depth, steps, scale, &t->to, fits);
            }
            NAME(mask)(t, g, s, n);
        }
    }
}

/* n keys' scores become exp(score - max); max becomes their sum.
 * Order   one accumulator for each row, keys ascending. */
TARGET static void NAME(exp_sum)(double *panel, double *max, size_t n)
{
    enum { STEP = BATCH / 2 };
    NAME(f64) high[2] = {NAME(load)(max), NAME(load)(max + WIDTH)}, sum[2] = {{0}, {0}};
    size_t s = 0;
    for (; s + STEP <= n; s += STEP, panel += STEP * GROUP) {
        NAME(f64) e[BATCH];
        memcpy(e, panel, sizeof e);
        for (size_t j = 0; j < BATCH; j++) e[j] -= high[j % 2];
        NAME(exponentials)(e, e, BATCH);
        for (size_t j = 0; j < BATCH; j++) sum[j % 2] += e[j];
        memcpy(panel, e, sizeof e);
    }
    for (; s < n; s++, panel += GROUP)
        for (size_t j = 0; j < 2; j++) {
            NAME(f64) e = NAME(load)(panel + j * WIDTH) - high[j];
            NAME(exponentials)(&e, &e, 1);
            sum[j] += e;
            NAME(store)(panel + j * WIDTH, e);
        }
    NAME(store)(max, sum[0]);
    NAME(store)(max + WIDTH, sum[1]);
}

/* Probabilities of n keys: D(exp / sum), from 0 to 1 or NaN. */
TARGET static void NAME(normalise)(double *probs, const double *exps, const double *sums, size_t n,
                                   const format *to)
{
    NAME(f64) sum[2] = {NAME(load)(sums), NAME(load)(sums + WIDTH)};
    for (size_t i = 0; i < 2 * n; i++) {
        NAME(f64) p = NAME(load)(exps + i * WIDTH) / sum[i % 2];
        NAME(store)(probs + i * WIDTH, NAME(on_grid)(p, to));
    }
}

/* sums[AT_ONCE rows][GROUP elements] += probs times values of n keys.
 * Order   one accumulator for each element, keys ascending. */
TARGET static void NAME(some_values)(double *sums, const double *probs, const double *v, size_t n)
{
    NAME(f64) sum[AT_ONCE][2];
    for (size_t i = 0; i < AT_ONCE; i++)
        for (size_t j = 0; j < 2; j++) sum[i][j] = NAME(load)(sums + i * GROUP + j * WIDTH);
    for (size_t s = 0; s < n; s++, probs += GROUP, v += GROUP) {
        NAME(f64) a = NAME(load)(v), b = NAME(load)(v + WIDTH);
        for (size_t i = 0; i < AT_ONCE; i++) {
            sum[i][0] += probs[i] * a;
            sum[i][1] += probs[i] * b;
        }
    }
    for (size_t i = 0; i < AT_ONCE; i++)
        for (size_t j = 0; j < 2; j++) NAME(store)(sums + i * GROUP + j * WIDTH, sum[i][j]);
}

/* Widens the values of keys s, s + 1, ...; what lies behind hd sums up to what nobody reads. */
TARGET static void NAME(widen_values)(const tile *t, size_t s, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const float *value = t->v + (s + i) * t->stride;
        for (size_t d = 0; d < t->a->hd; d += GROUP) {
            double *wide = t->wide + d * VALUES + i * GROUP;
            size_t n = least(GROUP, t->a->hd - d);
            if (n == GROUP) {
                NAME(store)(wide, NAME(load_floats)(value + d));
                NAME(store)(wide + WIDTH, NAME(load_floats)(value + d + WIDTH));
            } else {
                for (size_t c = 0; c < n; c++) wide[c] = (double)value[d + c];
            }
        }
    }
}

/* Keys that all rows see. The next values are asked for meanwhile, a few keys' by some rows. */
TARGET static void NAME(common_values)(const tile *t)
{
    for (size_t s = t->common; s < t->common_end; s += VALUES) {
        size_t n = least(VALUES, t->common_end - s), rows = t->groups * GROUP;
        NAME(widen_values)(t, s, n);
        for (size_t g = 0; g < t->groups; g++)
            NAME(normalise)(t->probs + g * VALUES * GROUP,
                            t->panel + (g * t->room + s - t->begin) * GROUP, t->max + g * GROUP, n,
                            &t->to);
        for (size_t d = 0; d < t->width; d += GROUP)
            for (size_t r = 0; r < rows; r += AT_ONCE) {
                for (size_t i = r / AT_ONCE; i < VALUES; i += rows / AT_ONCE)
                    ask_ahead(t, t->v, s + VALUES + i, d);
                NAME(some_values)(t->sums + d * rows + r * GROUP,
                                  t->probs + r / GROUP * VALUES * GROUP + r % GROUP,
                                  t->wide + d * VALUES, n);
            }
    }
}

/* Keys from begin to end that some rows do not see: for each row those that it sees. */
TARGET static void NAME(edge_values)(const tile *t, size_t begin, size_t end)
{
    size_t hd = t->a->hd, rows = t->groups * GROUP;
    for (size_t r = 0; r < t->rows && begin < end; r++) {
        double *panel = t->panel + (r / GROUP * t->room + begin - t->begin) * GROUP;
        if (r % GROUP == 0)
            NAME(normalise)(panel, panel, t->max + r, end - begin, &t->to);
        for (size_t s = begin; s < end; s++) {
            if (!tile_sees(t, r, s)) continue;
            const float *value = t->v + s * t->stride;
            double p = panel[(s - begin) * GROUP + r % GROUP];
            for (size_t d = 0; d < hd; d += GROUP) {
                double *sums = t->sums + d * rows + r * GROUP;
                size_t n = least(GROUP, hd - d);
                for (size_t c = 0; c < n; c++) sums[c] += p * (double)value[d + c];
            }
        }
    }
}

/* The queries as the scores want them; rows behind the last, and elements behind hd, are 0. */
TARGET static void NAME(pack_queries)(tile *t)
{
    size_t hd = t->a->hd;
    uint32_t largest = 0;
    for (size_t r = 0; r < t->groups * GROUP; r++) {
        const float *q = t->a->q + tile_row(t, r < t->rows ? r : 0);
        double *to = t->q + r / GROUP * t->depth * GROUP + r % GROUP;
        for (size_t l = 0; l < LANES; l++)
            for (size_t c = l; c < t->depth; c += LANES, to += GROUP) {
                float x = r < t->rows && c < hd ? q[c] : 0.0f;
                largest = larger_size(largest, x);
                *to = (double)x;
            }
    }
    t->largest_q = as_float(largest);
}

TARGET static void NAME(run_tile)(tile *t)
{
    size_t hd = t->a->hd, rows = t->groups * GROUP;
    NAME(pack_queries)(t);
    NAME(tile_scores)(t);
    for (size_t g = 0; g < t->groups; g++)
        NAME(exp_sum)(t->panel + g * t->room * GROUP, t->max + g * GROUP, t->end - t->begin);
    memset(t->sums, 0, rows * t->width * sizeof *t->sums);
    NAME(edge_values)(t, t->begin, t->common);
    NAME(common_values)(t);
    NAME(edge_values)(t, t->common_end, t->end);
    for (size_t r = 0; r < t->rows; r++)
        for (size_t d = 0; d < hd; d += GROUP)
            NAME(round)(t->a->y + tile_row(t, r) + d, t->sums + d * rows + r * GROUP,
                        least(GROUP, hd - d), t->a->dtype);
}

TARGET static bool NAME(attend)(const q3_attention *a)
{
    return attend_tiles(a, GROUP, NAME(run_tile));
}

#undef GROUP
#undef AT_ONCE
#undef PAIR
#undef SOME
#undef FUSED
#undef LARGER
#undef FLOOR
#undef NARROW
#undef WIDEN
#undef BATCH
#undef INLINE
