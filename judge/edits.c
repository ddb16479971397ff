/* SPDX-License-Identifier: MIT */
/* edits.c - what an edit makes of values: of an argument, a weight or a result of an operator. */
#include "judge/diagnosis.h"

#include <string.h>

double q3_absolute(double x)
{
    return x < 0 ? -x : x;
}

/* ==== Formats ================================================================================= */

/* A float's upper 19 bits, after `add` to its lower 13. */
static float cut_tf32(double value, uint32_t add)
{
    float x = (float)value;
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u >> 23 & 0xFF) == 0xFF) return x;
    u = (u + add) & ~0x1FFFu;
    memcpy(&x, &u, 4);
    return x;
}

/* E4M3: 4 significant bits, normal from 2^-6, at most 448. */
static double to_fp8(double value)
{
    double size = q3_absolute(value), unit = 0x1p-9;
    if (!(size <= 448)) return value != value ? value : value < 0 ? -448 : 448;
    while (size >= 16 * unit) unit *= 2;
    double units = (size / unit + 0x1.8p52) - 0x1.8p52;
    return value < 0 ? -units * unit : units * unit;
}

/* Towards zero, where rounding would not; never to infinity. */
static double cut(double value, q3_dtype dtype)
{
    double most = dtype == Q3_F16 ? 65504 : 0x1.fep127, size = q3_absolute(value);
    double rounded = (double)q3_round(size, dtype);
    if (size - size != 0) return value;
    if (rounded > most) rounded = most;
    else if (rounded > size) rounded -= q3_ulp(size, dtype);
    return value < 0 ? -rounded : rounded;
}

double q3_to_format(double value, format f)
{
    switch (f) {
    case FORMAT_BF16: return (double)q3_round(value, Q3_BF16);
    case FORMAT_F16: return (double)q3_round(value, Q3_F16);
    case FORMAT_TF32_AWAY: return (double)cut_tf32(value, 0x1000);
    case FORMAT_TF32_CUT: return (double)cut_tf32(value, 0);
    case FORMAT_FP8: return to_fp8(value);
    case FORMAT_BF16_CUT: return cut((double)(float)value, Q3_BF16);
    case FORMAT_F16_CUT: return cut((double)(float)value, Q3_F16);
    case FORMAT_TF32: default: break;
    }
    float x = (float)value;
    uint32_t u;
    memcpy(&u, &x, 4);
    return (double)cut_tf32(value, 0xFFF + (u >> 13 & 1));
}

format q3_format_in(double value)
{
    return value >= 0 && value <= FORMAT_F16_CUT ? (format)(int)value : FORMAT_BF16;
}

/* ==== Element by element ====================================================================== */

/* cap tanh(x / cap), rounded to D after each step, the last one left to the caller. */
static double softcapped(double x, double cap, q3_dtype dtype)
{
    double y = (double)q3_round((double)q3_round(x, dtype) / cap, dtype);
    double u = q3_exp(-2 * q3_absolute(y));
    double bent = (double)q3_round((1 - u) / (1 + u), dtype) * cap;
    return y < 0 ? -bent : bent;
}

/* The normal distribution's Phi(x) = 1/2 + exp(-x^2/2) / sqrt(2 pi) (x + x^3/3 + x^5/(3 5) ...) */
static double normal_below(double x)
{
    double term = x, sum = x;
    if (!(q3_absolute(x) < 8)) return x > 0 ? 1 : x != x ? x : 0;
    for (int n = 3; q3_absolute(term) > 1e-18 * q3_absolute(sum) && n < 500; n += 2) {
        term = term * x * x / n;
        sum += term;
    }
    return 0.5 + q3_exp(-x * x / 2) / 0x1.40d931ff62706p+1 * sum;
}

double q3_altered(double x, change what, double value, q3_dtype dtype)
{
    switch ((int)what) {
    case TIMES: return x * value;
    case PLUS: return x + value;
    case AT_MOST: return x > value ? value : x;
    case WITHIN: return q3_absolute(x) > value ? (x < 0 ? -value : value) : x;
    case AT_LEAST_0: return x > 0 ? x : 0;
    case FILL: return value;
    case SQUARED: return x * x;
    case ROUNDED: return q3_to_format(x, q3_format_in(value));
    case CAPPED: return softcapped(x, value, dtype);
    case SIGMOID: return 1 / (1 + q3_exp(-x));
    case GELU: return x * normal_below(x);
    case GELU_TANH: return x / (1 + q3_exp(-2 * 0x1.988453365de01p-1 * (x + 0.044715 * x * x * x)));
    case RELU: return x > 0 ? x : 0;
    case HARD_SWISH: return x <= -3 ? 0 : x >= 3 ? x : x * (x + 3) / 6;
    case ALPHA_SIGMOID: return x / (1 + q3_exp(-1.702 * x));
    default: return x;
    }
}

/* ==== Rows ==================================================================================== */

/* Whole heads: element i of each half goes to (or comes from) the pair 2i, 2i+1. */
static void pair(float *row, float *copy, size_t hd, bool from_pairs)
{
    memcpy(copy, row, hd * sizeof *row);
    for (size_t i = 0; i < hd / 2; i++)
        for (size_t k = 0; k < 2; k++) {
            size_t half = k * (hd / 2) + i, twin = 2 * i + k;
            row[from_pairs ? half : twin] = copy[from_pairs ? twin : half];
        }
}

/* How many of a token's ids are below that of slot b. */
static size_t place_by_id(const float *ids, size_t A, size_t b)
{
    size_t below = 0;
    for (size_t i = 0; i < A; i++) below += ids[i] < ids[b];
    return below;
}

/* The slot with the a-th smallest id. */
static size_t slot_by_id(const float *ids, size_t A, size_t a)
{
    for (size_t b = 0; b < A; b++)
        if (place_by_id(ids, A, b) == a) return b;
    return a;
}

/* The a-th largest of row[n], from 0 on. */
static float ranked(const float *row, size_t n, size_t a)
{
    for (size_t b = 0; b < n; b++) {
        size_t before = 0;
        for (size_t i = 0; i < n; i++) before += row[i] > row[b] || (row[i] == row[b] && i < b);
        if (before == a) return row[b];
    }
    return row[a];
}

/* Probabilities outside the two groups with the largest are 0. */
static void keep_groups(float *row, size_t E, size_t groups)
{
    size_t size = E / groups, best[2] = {groups, groups};
    float top[2] = {-1.0f, -1.0f};
    for (size_t g = 0; g < groups; g++) {
        float most = 0.0f;
        for (size_t i = g * size; i < (g + 1) * size; i++)
            if (row[i] > most) most = row[i];
        size_t at = most > top[0] ? 0 : most > top[1] ? 1 : 2;
        if (at == 0) top[1] = top[0], best[1] = best[0];
        if (at < 2) top[at] = most, best[at] = g;
    }
    for (size_t i = 0; i < E; i++)
        if (i / size != best[0] && i / size != best[1]) row[i] = 0.0f;
}

/* One row[n]; copy: as it was. ids[A]: of the token. */
static void alter_row(float *row, float *copy, size_t n, change what, double value,
                      const q3_config *c, const float *ids)
{
    size_t hd = c->head_dim, A = c->num_experts_per_tok;
    memcpy(copy, row, n * sizeof *row);
    switch ((int)what) {
    case FROM_PAIRS: case TO_PAIRS:
        for (size_t i = 0; i < n; i += hd) pair(row + i, copy, hd, what == FROM_PAIRS);
        break;
    case TRANSPOSED: /* [H,hd] as [hd,H] */
        for (size_t i = 0; i < n; i++) row[i % hd * (n / hd) + i / hd] = copy[i];
        break;
    case NO_TAIL: memset(row + n - (size_t)value, 0, (size_t)value * sizeof *row); break;
    case NO_TAIL_BLOCK:
        memset(row + n - n % (size_t)value, 0, n % (size_t)value * sizeof *row);
        break;
    case FIRST_TERMS: memset(row + (size_t)value, 0, (n - (size_t)value) * sizeof *row); break;
    case REVERSED: case BY_ID:
        for (size_t a = 0; a < n; a++)
            row[a] = copy[what == REVERSED ? n - 1 - a : slot_by_id(ids, n, a)];
        break;
    case BY_RANK:
        for (size_t a = 0; a < n; a++) row[a] = ranked(copy, n, place_by_id(ids, n, a));
        break;
    case LAST_REPEATED: if (n > 1) row[n - 1] = copy[n - 2]; break;
    case NO_SLOT: row[(size_t)value] = 0.0f; break;
    case NO_EXPERT:
        for (size_t a = 0; a < n; a++)
            if ((double)ids[a] == value) row[a] = 0.0f;
        break;
    case NO_LAST_CHOSEN: row[(size_t)ids[A - 1]] = 0.0f; break;
    case BEST_GROUPS: keep_groups(row, n, (size_t)value); break;
    case SHIFTED: /* ids of experts */
        for (size_t a = 0, by = (size_t)((int64_t)c->num_experts + (int64_t)value); a < n; a++)
            row[a] = (float)(((size_t)row[a] + by) % c->num_experts);
        break;
    default: break;
    }
}

/* x[T,A,n / A]: slots that an expert has no room for are 0. */
static void keep_capacity(float *x, const float *ids, size_t T, const q3_config *c, size_t n,
                          double most, bool by_rank)
{
    size_t A = c->num_experts_per_tok, width = n / A;
    for (size_t e = 0; e < c->num_experts; e++) {
        size_t taken = 0;
        for (size_t i = 0; i < T * A; i++) {
            size_t slot = by_rank ? i % T * A + i / T : i;
            if (ids[slot] == (float)e && (double)taken++ >= most)
                memset(x + slot * width, 0, width * sizeof *x);
        }
    }
}

bool q3_can_alter(change what, double value, size_t K)
{
    if (what == NO_TAIL || what == FIRST_TERMS) return (double)K > value;
    return what != NO_TAIL_BLOCK || ((double)K > value && K % (size_t)value != 0);
}

void q3_alter(float *x, float *copy, size_t rows, size_t n, change what, double value,
              q3_dtype dtype, const q3_config *config, const float *ids)
{
    bool one_by_one = what >= TIMES && what <= ALPHA_SIGMOID;
    if (what == CAPACITY || what == CAPACITY_BY_RANK) {
        keep_capacity(x, ids, rows, config, n, value, what == CAPACITY_BY_RANK);
        return;
    }
    for (size_t i = 0; i < rows * n && one_by_one; i++)
        x[i] = q3_round(q3_altered((double)x[i], what, value, dtype), dtype);
    for (size_t r = 0; r < rows && !one_by_one; r++)
        alter_row(x + r * n, copy, n, what, value, config,
                  ids != NULL ? ids + r * config->num_experts_per_tok : NULL);
}
