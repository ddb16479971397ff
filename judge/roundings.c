/* SPDX-License-Identifier: MIT */
/* roundings.c - mistakes inside an operator's rounding, which no edit around the public
 * operators makes. In the words of MODEL.md section 2: a rounding point that is missing, stands
 * elsewhere, or is in another format; and sums, roots and softmaxes that are taken otherwise. */
#include "judge/diagnosis.h"

/* ==== Linear maps (MODEL.md section 4: one float64 sum, one rounding) ========================= */

/* LOW_SUM: each product in float32, the running sum in the format. PARTS: each part's sum in D,
 * and their sums. */
float q3_rounding_sum(const float *w, const float *x, size_t K, double bias, change what,
                      double value, q3_dtype dtype)
{
    bool low = what == LOW_SUM;
    q3_dtype narrow = q3_format_in(value) == FORMAT_F16 ? Q3_F16 : Q3_BF16;
    size_t parts = what == PARTS ? (size_t)value : 1;
    double total = 0;
    for (size_t p = 0; p < parts; p++) {
        double sum = 0;
        for (size_t k = K * p / parts; k < K * (p + 1) / parts; k++) {
            double product = (double)w[k] * (double)x[k];
            sum += low ? (double)(float)product : product;
            if (low) sum = (double)q3_round((double)(float)sum, narrow);
        }
        if (parts > 1) sum = (double)q3_round(sum, dtype);
        total = p == 0 ? sum : (double)q3_round(total + sum, dtype);
    }
    if (what == BIAS_LATER) total = (double)q3_round(total, dtype);
    total += bias;
    if (what == CAST) total = q3_to_format(total, q3_format_in(value));
    return q3_round(total, dtype);
}

/* int8: one scale a row, 127 its largest value; fp8 (E4M3): one a tensor, 448 its largest.
 * Scales and quotients are float32, as the libraries have them. */
void q3_rounding_weight(float *row, size_t K, double most, change what, q3_dtype dtype)
{
    double scale = most / 448;
    if (what == INT8_SCALED) {
        scale = 0;
        for (size_t k = 0; k < K; k++)
            if (q3_absolute((double)row[k]) / 127 > scale)
                scale = q3_absolute((double)row[k]) / 127;
    }
    scale = (double)(float)scale;
    if (!(scale > 0)) return;
    for (size_t k = 0; k < K; k++) {
        double units = (double)(float)((double)row[k] / scale);
        units = what == FP8_SCALED ? q3_to_format(units, FORMAT_FP8)
            : (units + 0x1.8p52) - 0x1.8p52;
        row[k] = q3_round((double)(float)(units * scale), dtype);
    }
}

/* ==== Norms (MODEL.md section 4: D after the division, D after the weight) ==================== */

/* The mean of squares plus eps as a library has it that squares in the format: each square is
 * rounded, and their mean. */
static double low_variance(const float *x, size_t n, double eps, format f)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += q3_to_format((double)x[i] * (double)x[i], f);
    return q3_to_format(squares / (double)n, f) + eps;
}

/* A row whose every step is in the format; root: that before its reciprocal, too, as torch has it
 * in some of its loops. */
static void low_norm(float *y, const float *x, const float *weight, size_t n, double eps, bool root,
                     format f, q3_dtype dtype)
{
    double length = q3_sqrt(q3_to_format(low_variance(x, n, eps, f), f));
    if (root) length = q3_to_format(length, f);
    double inverse = q3_to_format(1 / length, f);
    for (size_t i = 0; i < n; i++) {
        double normal = (double)q3_round(q3_to_format((double)x[i] * inverse, f), dtype);
        y[i] = q3_round((double)weight[i] * normal, dtype);
    }
}

void q3_rounding_norm(float *y, const float *x, const float *branch, const float *weight,
                      size_t rows, size_t n, double eps, change what, double value, q3_dtype dtype)
{
    format f = q3_format_in(value);
    for (size_t r = 0; r < rows; r++, x += n, y += n) {
        double sum = 0, squares = 0;
        const float *more = branch != NULL ? branch + r * n : NULL;
        if (what == LOW_NORM || what == LOW_ROOT) {
            low_norm(y, x, weight, n, eps, what == LOW_ROOT, f, dtype);
            continue;
        }
        for (size_t i = 0; i < n; i++) sum += (double)x[i];
        double mean = what == CENTRED ? sum / (double)n : 0;
        for (size_t i = 0; i < n; i++) {
            double v = (double)x[i] + (more != NULL ? (double)more[i] : 0) - mean;
            squares += v * v;
        }
        double variance = what == SUM_OF_SQUARES ? squares : squares / (double)n;
        if (what == VARIANCE) variance = q3_to_format(variance, f);
        double root = what == EPS_OUTSIDE ? q3_sqrt(variance) + eps : q3_sqrt(variance + eps);
        if (what == SQUARES) root = q3_sqrt(low_variance(x, n, eps, f));
        for (size_t i = 0; i < n; i++) {
            double normal = ((double)x[i] + (more != NULL ? (double)more[i] : 0) - mean) / root;
            if (what != CAST_LAST) normal = (double)q3_round(normal, dtype);
            y[i] = q3_round((double)weight[i] * normal, dtype);
        }
    }
}

/* ==== Rotary embedding (MODEL.md section 5: two products and their sum, three roundings) ====== */

/* ONCE: one rounding, behind the sum. COS_FUSED, SIN_FUSED: a fused multiply-add, which takes the
 * product with the cosine, or that with the sine, as it is. */
void q3_rounding_rope(float *y, const float *x, const float *cos, const float *sin, size_t T,
                      size_t heads, size_t hd, change what, q3_dtype dtype)
{
    for (size_t row = 0; row < T * heads; row++, x += hd, y += hd) {
        const float *c = cos + row / heads * hd, *s = sin + row / heads * hd;
        for (size_t i = 0, j = hd / 2; i < hd / 2; i++, j++) {
            double a = (double)x[i], b = (double)x[j];
            double products[4] = {a * (double)c[i], b * (double)s[i], b * (double)c[i],
                                  a * (double)s[i]};
            for (size_t k = 0; k < 4 && what != ONCE; k++)
                if ((k % 2 == 1) == (what == COS_FUSED))
                    products[k] = (double)q3_round(products[k], dtype);
            y[i] = q3_round(products[0] - products[1], dtype);
            y[j] = q3_round(products[2] + products[3], dtype);
        }
    }
}

/* ==== Attention (MODEL.md section 6) ========================================================== */

/* Right is D(D(q k) scale). SCALE: another scale; ONCE: without the inner rounding; QUERY_FIRST:
 * D(D(q scale) k). */
void q3_rounding_scores(float *scores, const float *q, const float *k, size_t H, size_t K,
                        size_t hd, size_t n, change what, double value, q3_dtype dtype)
{
    double scale = (double)(float)(1.0 / q3_sqrt((double)hd));
    for (size_t i = 0; i < H * n; i++) {
        const float *query = q + i / n * hd, *key = k + (i % n * K + i / n / (H / K)) * hd;
        double sum = 0;
        for (size_t d = 0; d < hd; d++) {
            double x = (double)query[d];
            if (what == QUERY_FIRST) x = (double)q3_round(x * scale, dtype);
            sum += x * (double)key[d];
        }
        if (what != ONCE) sum = (double)q3_round(sum, dtype);
        scores[i] = q3_round(what == QUERY_FIRST ? sum
                             : sum * (what == SCALE ? scale * value : scale), dtype);
    }
}

/* exp(s - log(sum of exp)), each step in the format; once: the logarithm in float64 as far as its
 * own rounding. */
static void by_logarithm(float *scores, size_t n, double max, bool once, format f)
{
    double sum = 0;
    for (size_t s = 0; s < n; s++) {
        double d = (double)scores[s] - max;
        sum += once ? q3_exp(d) : q3_to_format(q3_exp(q3_to_format(d, f)), f);
    }
    double log = sum; /* NaN stays: else the largest term is 1 */
    if (sum >= 1) log = once ? q3_log(sum) : q3_to_format(q3_log(q3_to_format(sum, f)), f);
    double whole = q3_to_format(log + max, f);
    for (size_t s = 0; s < n; s++)
        scores[s] = (float)q3_to_format(q3_exp(q3_to_format((double)scores[s] - whole, f)), f);
}

/* Right is float64, the maximum subtracted. LOW_SOFTMAX: each step in the format; NO_MAXIMUM:
 * that, and nothing subtracted; SINK: a key of score 0 and no value; BASE_2: 2^s. */
void q3_rounding_probs(float *scores, double *scratch, size_t H, size_t n, change what,
                       double value, q3_dtype dtype)
{
    format f = q3_format_in(value);
    bool low = what == LOW_SOFTMAX || what == NO_MAXIMUM;
    bool logarithm = what == LOGSUMEXP || what == LOGSUMEXP_ONCE;
    for (size_t h = 0; h < H; h++, scores += n) {
        for (size_t s = 0; s < n && (low || logarithm); s++)
            scores[s] = (float)q3_to_format((double)scores[s], f);
        double max = (double)scores[0];
        for (size_t s = 0; s < n; s++)
            if ((double)scores[s] > max) max = (double)scores[s];
        if (logarithm) {
            by_logarithm(scores, n, max, what == LOGSUMEXP_ONCE, f);
            continue;
        }
        if (what == NO_MAXIMUM) max = 0;
        double sum = what == SINK ? q3_exp(-max) : 0;
        for (size_t s = 0; s < n; s++) {
            double d = (double)scores[s] - max;
            if (what == BASE_2) d *= 0x1.62e42fefa39efp-1;
            scratch[s] = low ? q3_to_format(q3_exp(q3_to_format(d, f)), f) : q3_exp(d);
            sum += scratch[s];
        }
        if (low) sum = q3_to_format(sum, f);
        for (size_t s = 0; s < n; s++) {
            double p = scratch[s] / sum;
            scores[s] = q3_round(low ? q3_to_format(p, f) : p, dtype);
        }
    }
}

/* ==== Experts (MODEL.md section 7) ============================================================ */

/* The chosen probabilities rounded to D before they are renormalised, and their sum, too.
 * SLOTS_SUMMED: after each slot. */
void q3_rounding_weights(float *weights, const float *probs, const float *ids, size_t A,
                         bool normed, change what, q3_dtype dtype)
{
    double sum = 0;
    for (size_t a = 0; a < A; a++) {
        sum += (double)q3_round((double)probs[(size_t)ids[a]], dtype);
        if (what == SLOTS_SUMMED) sum = (double)q3_round(sum, dtype);
    }
    for (size_t a = 0; a < A; a++) {
        double p = (double)q3_round((double)probs[(size_t)ids[a]], dtype);
        weights[a] = q3_round(normed ? p / (double)q3_round(sum, dtype) : p, dtype);
    }
}

/* The sigmoid rounded before the product. */
void q3_rounding_silu(float *y, const float *x, size_t n, q3_dtype dtype)
{
    for (size_t i = 0; i < n; i++) {
        double sigmoid = 1 / (1 + q3_exp(-(double)x[i]));
        y[i] = q3_round((double)x[i] * (double)q3_round(sigmoid, dtype), dtype);
    }
}

/* silu(a) b with one rounding. */
void q3_rounding_product(float *y, const float *a, const float *b, size_t n, q3_dtype dtype)
{
    for (size_t i = 0; i < n; i++) y[i] = q3_round(q3_silu((double)a[i]) * (double)b[i], dtype);
}
