/* SPDX-License-Identifier: MIT */
/* statistics.c - how two tensors differ: what can be said without a model. */
#include "judge/walk.h"

#include <stdlib.h>
#include <string.h>

const char *q3_verdict_name(q3_verdict verdict)
{
    static const char *const names[Q3_VERDICT_COUNT] = {
        [Q3_VERDICT_EXACT] = "exact",       [Q3_VERDICT_WITHIN] = "within",
        [Q3_VERDICT_ROUNDING] = "rounding", [Q3_VERDICT_NEAR_TIE] = "near-tie",
        [Q3_VERDICT_DIFFERS] = "differs",   [Q3_VERDICT_NON_FINITE] = "non-finite",
        [Q3_VERDICT_MISSING] = "missing",   [Q3_VERDICT_SHAPE] = "shape",
        [Q3_VERDICT_UNJUDGED] = "unjudged",
    };
    return names[verdict];
}

/* From the exponent's bits, so that no libm is needed. */
double q3_ulp(double value, q3_dtype dtype)
{
    static const int precision[3] = {24, 8, 11}, emin[3] = {-126, -126, -14};
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    int exponent = (int)(bits >> 52 & 0x7FF) - 1023;
    if (exponent < emin[dtype]) exponent = emin[dtype];
    if (exponent > 127) exponent = 127; /* infinity and NaN: float32's largest */
    bits = (uint64_t)(exponent - precision[dtype] + 1 + 1023) << 52;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

bool q3_figures_begin(figures *g, q3_finding *f, q3_dtype dtype, size_t T, size_t channels)
{
    memset(g, 0, sizeof *g);
    g->f = f;
    g->dtype = dtype;
    g->T = T;
    g->channels = channels;
    g->token_square = calloc(T + 1, sizeof *g->token_square);
    g->channel_square = calloc(channels + 1, sizeof *g->channel_square);
    f->token_bins = T < Q3_PROFILE_BINS ? T : Q3_PROFILE_BINS;
    f->channel_bins = channels < Q3_PROFILE_BINS ? channels : Q3_PROFILE_BINS;
    if (g->token_square != NULL && g->channel_square != NULL) return true;
    free(g->token_square);
    free(g->channel_square);
    return false;
}

/* A profile's bin keeps its largest value. */
static void raise_to(float *profile, size_t bins, size_t index, size_t count, double value)
{
    float *bin = &profile[index * bins / count];
    if (value > (double)*bin) *bin = (float)value;
}

/* A difference of one element, in ulp of D. Values that are not finite count as one enormous
 * step. */
static void one_difference(figures *g, size_t t, size_t i, double ours, double theirs)
{
    q3_finding *f = g->f;
    double size = ours < 0 ? -ours : ours, other = theirs < 0 ? -theirs : theirs;
    double error = theirs - ours, ulps;
    if (error < 0) error = -error;
    bool finite = error - error == 0;
    ulps = finite ? error / q3_ulp(other > size ? other : size, g->dtype) : 0x1p100;
    f->differ++;
    f->over_1_ulp += ulps > 1;
    raise_to(f->token_profile, f->token_bins, t, g->T, ulps);
    raise_to(f->channel_profile, f->channel_bins, i % g->channels, g->channels, ulps);
    if (ulps > f->max_ulp) {
        f->max_ulp = ulps;
        f->max_at[0] = t;
        f->max_at[1] = f->rank > 2 ? i / g->channels : i;
        f->max_at[2] = f->rank > 2 ? i % g->channels : 0;
        f->max_ours = ours;
        f->max_theirs = theirs;
    }
    double square = finite ? error * error : 0x1p1000;
    g->token_square[t] += square;
    g->channel_square[i % g->channels] += square;
    if (finite) g->ee += square;
    else g->broken = true;
}

void q3_figures_row(figures *g, size_t t, const float *ours, const float *theirs, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double x = (double)ours[i], y = (double)theirs[i];
        bool same = x == y || (x != x && y != y);
        g->f->elements++;
        if (!same) one_difference(g, t, i, x, y);
        if (x - x != 0 || y - y != 0) continue;
        g->finite++;
        g->xx += x * x;
        g->xy += x * y;
        g->yy += y * y;
        g->x += x;
        g->y += y;
    }
}

static size_t largest(const double *values, size_t count)
{
    size_t best = 0;
    for (size_t i = 1; i < count; i++)
        if (values[i] > values[best]) best = i;
    return best;
}

/* What follows from the sums, when all rows are in. */
void q3_figures_end(figures *g)
{
    q3_finding *f = g->f;
    f->gain = g->xx > 0 ? g->xy / g->xx : 1.0;
    f->offset = g->finite > 0 ? (g->y - g->x) / g->finite : 0.0;
    f->relative_l2 = g->broken   ? 0x1p100
                     : g->xx > 0 ? q3_sqrt(g->ee) / q3_sqrt(g->xx)
                     : g->ee > 0 ? 0x1p100
                                 : 0.0;
    f->worst_token = largest(g->token_square, g->T);
    f->worst_channel = largest(g->channel_square, g->channels);
    free(g->token_square);
    free(g->channel_square);
    g->token_square = g->channel_square = NULL;
}

static double badness(const q3_element *e)
{
    return e->bound_ulp > 0 ? e->ulp / e->bound_ulp : e->ulp;
}

void q3_keep_worst(q3_finding *f, const q3_element *e)
{
    size_t at = f->worst_count;
    while (at > 0 && badness(e) > badness(&f->worst[at - 1])) at--;
    if (at == Q3_WORST_MOST) return;
    if (f->worst_count < Q3_WORST_MOST) f->worst_count++;
    for (size_t k = f->worst_count - 1; k > at; k--) f->worst[k] = f->worst[k - 1];
    f->worst[at] = *e;
}
