/* SPDX-License-Identifier: MIT */
/* verdict.c - one tensor under judgement: its elements against their bounds, and the verdict
 * (MODEL.md 12.4 to 12.6). */
#include "judge/verdict.h"

#include "judge/graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool q3_is_finite(double x)
{
    return x - x == 0;
}

/* ==== One tensor ============================================================================== */

void q3_trial_free(trial *r)
{
    free(r->ours);
    free(r->theirs);
    free(r->sorted);
    free(r->row_of);
    free(r->bound);
    free(r->weight);
    free(r->channel_differ);
    free(r->head_differ);
    memset(r, 0, sizeof *r);
}

size_t q3_trial_at(const trial *r, size_t t)
{
    return r->brief ? 0 : t * r->n;
}

bool q3_trial_begin(trial *r, const walk *w, const backend *b, q3_tap_id id, size_t layer,
                    bool brief)
{
    size_t T = w->T, kept = brief ? 1 : T, shape[3];
    memset(r, 0, sizeof *r);
    r->id = id;
    r->brief = brief;
    r->f.rank = q3_tap_shape(shape, w->config, id, T);
    memcpy(r->f.shape, shape, sizeof shape);
    bool square = q3_tap_is_square(id);
    if (square) { /* a finding's places begin with the token */
        r->f.shape[0] = shape[1];
        r->f.shape[1] = shape[0];
    }
    r->f.shape[0] -= w->past;
    r->f.layer = layer;
    r->f.verdict = Q3_VERDICT_MISSING;
    r->n = q3_tap_row_size(w->config, id, T);
    r->channels = r->f.shape[r->f.rank - 1];
    r->heads = r->n / r->channels;
    const backend_tensor *tensor = q3_backend_find(b, id, layer);
    if (tensor == NULL) return true;
    r->f.given_as = tensor->entry->name;
    memcpy(r->f.note, tensor->note, sizeof r->f.note);
    if (tensor->layouts == 0) {
        r->f.verdict = Q3_VERDICT_SHAPE;
        memcpy(r->f.reason, tensor->note, sizeof tensor->note);
        r->f.note[0] = 0;
        return true;
    }
    r->ours = calloc(kept, r->n * sizeof *r->ours);
    r->theirs = calloc(kept, r->n * sizeof *r->theirs);
    r->bound = calloc(kept, r->n * sizeof *r->bound);
    r->weight = calloc(kept, r->n * sizeof *r->weight);
    r->channel_differ = calloc(2 * r->channels, sizeof(double));
    r->head_differ = calloc(2 * r->heads, sizeof(double));
    bool memory = r->ours != NULL && r->theirs != NULL && r->bound != NULL &&
                  r->weight != NULL && r->channel_differ != NULL && r->head_differ != NULL &&
                  q3_figures_begin(&r->g, &r->f, q3_stored_dtype(w, id), T - w->past,
                                   r->channels);
    if (!memory) return false;
    r->tensor = tensor;
    r->channel_expected = r->channel_differ + r->channels;
    r->head_expected = r->head_differ + r->heads;
    return true;
}

/* ==== Elements ================================================================================ */

/* MODEL.md 12.9: Hugging Face loses what is finite, or the other way round, where: a masked key or
 * value is not finite (its mask adds, ours never looks); silu of -infinity; the sum of squares of a
 * norm overflows float32. Not judged. */
static bool beyond_agreement(const walk *w, q3_tap_id id, size_t t, size_t i, size_t n)
{
    switch ((int)id) {
    case Q3_TAP_SCORES: case Q3_TAP_PROBS: case Q3_TAP_O_PROJ_INPUT: return w->keys_broken;
    case Q3_TAP_EXPERTS_ACT_FN:
        return !q3_is_finite((double)w->tap[Q3_TAP_EXPERTS_GATE_PROJ][t * n + i]);
    case Q3_TAP_DENSE_ACT_FN:
        return !q3_is_finite((double)w->tap[Q3_TAP_DENSE_GATE_PROJ][t * n + i]);
    case Q3_TAP_INPUT_LAYERNORM: case Q3_TAP_NORM: case Q3_TAP_POST_ATTENTION_LAYERNORM: {
        bool after = id == Q3_TAP_POST_ATTENTION_LAYERNORM;
        const float *x = (after ? w->tap[Q3_TAP_POST_ATTENTION_INPUT] : w->input) + t * n;
        double square = 0;
        for (size_t k = 0; k < n; k++) square += (double)x[k] * (double)x[k];
        return square > 0x1p127;
    }
    default: return false;
    }
}

/* Of what is finite: above it a bound says nothing of an element (MODEL.md 12.3). */
static double root_mean_square(const float *x, size_t n)
{
    double square = 0;
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        if (q3_is_finite((double)x[i])) square += (double)x[i] * (double)x[i], count++;
    return count > 0 ? q3_sqrt(square / (double)count) : 0;
}

static void place(size_t at[3], const trial *r, size_t t, size_t i)
{
    at[0] = t;
    at[1] = r->f.rank > 2 ? i / r->channels : i;
    at[2] = r->f.rank > 2 ? i % r->channels : 0;
}

/* An element that differs, into its place among the worst; what is not finite differs by one
 * enormous step, as in the figures. */
static void take_worst(trial *r, size_t t, size_t i, double ours, double theirs, double bound,
                       double ulp)
{
    double error = theirs > ours ? theirs - ours : ours - theirs;
    q3_element e = {{0}, ours, theirs, q3_is_finite(error) ? error / ulp : 0x1p100,
                    q3_is_finite(bound) ? bound / ulp : 0};
    place(e.at, r, t, i);
    q3_keep_worst(&r->f, &e);
}

/* An element outside its bound: the first one is shown. */
static void take_bad(trial *r, size_t t, size_t i, double ours, double theirs, double bound,
                     double ulp)
{
    q3_finding *f = &r->f;
    f->outside++;
    if (f->has_bad) return;
    double error = theirs > ours ? theirs - ours : ours - theirs;
    f->has_bad = true;
    place(f->bad_at, r, t, i);
    f->bad_ours = ours;
    f->bad_theirs = theirs;
    f->bad_ulp = q3_is_finite(error) ? error / ulp : 0;
    f->bad_bound_ulp = q3_is_finite(bound) ? bound / ulp : 0;
}

/* Judges one element; bounds of the row are in b. */
static void judge_element(trial *r, const walk *w, size_t t, size_t i, const row_bound *b,
                          double rms)
{
    size_t at = q3_trial_at(r, t) + i;
    double ours = (double)r->ours[at], theirs = (double)r->theirs[at];
    double large = ours < 0 ? -ours : ours, other = theirs < 0 ? -theirs : theirs;
    /* of the larger; with that of an infinity the bound would say nothing of the element, and the
     * search for a cause would pass it over */
    double ulp = q3_ulp(other > large && q3_is_finite(other) ? other : large, r->g.dtype);
    double loose = b->noise[i] + (b->var[i] > 0 ? Q3_SIGMAS * q3_sqrt(b->var[i]) : 0);
    double slack = b->slack[i] + (b->slack[i] > 0 ? b->own * (ulp - q3_ulp(ours, r->g.dtype)) : 0);
    double bound = r->bound[at] = slack + loose, flips = 2 * b->roundings * loose / ulp;
    bool same = ours == theirs || (ours != ours && theirs != theirs);
    r->propagated = r->propagated || b->var[i] > 0;
    if (b->var[i] > 0 && !(bound < rms)) return;
    if (!q3_is_finite(ours) != !q3_is_finite(theirs) && beyond_agreement(w, r->id, t, i, r->n))
        return;
    r->f.judged++;
    double var = slack * ulp / 6, all = var + b->var[i] + b->noise[i] * b->noise[i] / 16;
    if (q3_is_finite(ours) && q3_is_finite(theirs) && all > 0) {
        double weight = r->weight[at] = ours / all;
        r->along += weight * (theirs - ours);
        r->along_var += weight * weight * var;
        r->along_noise += large / all * b->noise[i];
        r->power += weight * ours;
    }
    if (!(flips < 1)) flips = 1;
    r->f.expected += flips;
    r->channel_expected[i % r->channels] += flips;
    r->head_expected[i / r->channels] += flips;
    if (same) return;
    r->channel_differ[i % r->channels]++;
    r->head_differ[i / r->channels]++;
    double error = theirs > ours ? theirs - ours : ours - theirs;
    take_worst(r, t - w->past, i, ours, theirs, bound, ulp);
    if (bound > 0 && error / bound > r->f.max_bound_ratio) r->f.max_bound_ratio = error / bound;
    if (q3_is_finite(ours) && !q3_is_finite(theirs) && r->f.verdict != Q3_VERDICT_DIFFERS)
        r->f.verdict = Q3_VERDICT_NON_FINITE;
    if (error <= bound) return;
    if (r->f.verdict != Q3_VERDICT_NON_FINITE) r->f.verdict = Q3_VERDICT_DIFFERS;
    take_bad(r, t - w->past, i, ours, theirs, bound, ulp);
}

void q3_trial_row(trial *r, const walk *w, size_t t, const row_bound *b)
{
    const float *ours = r->ours + q3_trial_at(r, t);
    q3_figures_row(&r->g, t - w->past, ours, r->theirs + q3_trial_at(r, t), r->n);
    double rms = root_mean_square(ours, r->n);
    for (size_t i = 0; i < r->n; i++) judge_element(r, w, t, i, b, rms);
}

/* ==== The router's choice ===================================================================== */

/* MODEL.md 12.6: how far p may be from an honest implementation's, in a choice between two: its
 * bound and the rounding of its logit, which a fused router may leave out; *var: what came in. */
static double choice_bound(walk *w, const row_bound *scratch, size_t t, size_t e, double *var)
{
    size_t E = w->config->num_experts;
    row_bound b = *scratch;
    double p = (double)w->tap[Q3_TAP_ROUTER_PROBS][t * E + e];
    q3_bound_row(&b, w, Q3_TAP_ROUTER_PROBS, t, w->tap[Q3_TAP_ROUTER_PROBS] + t * E, E);
    *var += w->var[Q3_TAP_ROUTER_PROBS][t * E + e];
    return b.slack[e] + b.noise[e] + p * q3_ulp((double)w->tap[Q3_TAP_GATE][t * E + e], w->dtype);
}

static bool among(const float *ids, size_t count, float id)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

double q3_choice_margin(walk *w, const row_bound *scratch, size_t t, const float *chosen,
                        bool *doubtful)
{
    size_t E = w->config->num_experts, A = w->config->num_experts_per_tok, low = E, high = E;
    const float *p = w->tap[Q3_TAP_ROUTER_PROBS] + t * E;
    for (size_t e = 0; e < E; e++) {
        bool in = among(chosen, A, (float)e);
        if (in && (low == E || p[e] < p[low])) low = e;
        if (!in && (high == E || p[e] > p[high])) high = e;
    }
    *doubtful = false;
    if (low == E || high == E) return 1.0;
    double distance = (double)p[low] - (double)p[high], var = 0;
    double bound = choice_bound(w, scratch, t, low, &var) +
                   choice_bound(w, scratch, t, high, &var) + Q3_SIGMAS * q3_sqrt(var);
    *doubtful = !((distance < 0 ? -distance : distance) > bound);
    return distance;
}

static bool valid_choice(const float *ids, size_t A, size_t E)
{
    for (size_t a = 0; a < A; a++)
        if (!(ids[a] >= 0 && ids[a] < (float)E) || among(ids, a, ids[a])) return false;
    return true;
}

bool q3_trial_choice(trial *r, walk *w, const row_bound *scratch, size_t t, const float *ours,
                     const float *theirs)
{
    q3_finding *f = &r->f;
    size_t A = r->n, E = w->config->num_experts, own = t - w->past;
    bool doubtful, same = true, order = true, valid = valid_choice(theirs, A, E);
    for (size_t a = 0; a < A; a++) {
        same = same && among(theirs, A, ours[a]);
        order = order && ours[a] == theirs[a];
    }
    f->elements += A;
    f->judged += A;
    f->other_order += valid && same && !order;
    if (valid && same) return true;
    f->differ++;
    f->token_profile[own * f->token_bins / (w->T - w->past)] = 1;
    /* negative: a worse expert was taken */
    double distance = valid ? q3_choice_margin(w, scratch, t, theirs, &doubtful) : 0;
    if (valid && doubtful) {
        f->near_ties++;
        return true;
    }
    f->wrong_sets++;
    if (!f->has_bad) {
        size_t a = 0;
        while (a + 1 < A && among(ours, A, theirs[a]) && !among(theirs, a, theirs[a])) a++;
        f->has_bad = true;
        f->bad_at[0] = own;
        f->bad_at[1] = a;
        f->bad_ours = (double)ours[a];
        f->bad_theirs = (double)theirs[a];
        if (valid)
            snprintf(f->reason, sizeof f->reason,
                     "token %zu: a chosen expert's probability is %.3g below a left one's", own,
                     -distance);
        else if (among(theirs, a, theirs[a]))
            snprintf(f->reason, sizeof f->reason, "token %zu, slot %zu: expert id %g stands twice",
                     own, a, (double)theirs[a]);
        else
            snprintf(f->reason, sizeof f->reason,
                     "token %zu, slot %zu: expert id %g is outside 0 to %zu", own, a,
                     (double)theirs[a], E - 1);
    }
    return valid;
}

/* ==== The verdict ============================================================================= */

/* MODEL.md 12.4: whether k differing elements are more than honest accumulation explains, where
 * lambda is the most that may be expected: Chernoff's bound of a Poisson count, k ln(k / lambda) -
 * k + lambda, against 20 (2e-9). */
static bool unexplained(double k, double lambda)
{
    if (k <= lambda) return false;
    if (!(lambda > 1e-300)) return true;
    return k * q3_log(k / lambda) - k + lambda > 20;
}

/* MODEL.md 12.4, over the tensor, then channel by channel, then head by head. */
static void find_rounding(trial *r)
{
    q3_finding *f = &r->f;
    double all = 0;
    for (size_t c = 0; c < r->channels; c++) all += r->channel_differ[c];
    if (unexplained(all, f->expected)) {
        f->verdict = Q3_VERDICT_ROUNDING;
        snprintf(f->reason, sizeof f->reason, "%.0f of %llu elements differ, at most %.3g expected",
                 all, (unsigned long long)f->judged, f->expected);
        return;
    }
    for (size_t c = 0; c < r->channels && f->verdict != Q3_VERDICT_ROUNDING; c++)
        if (unexplained(r->channel_differ[c], r->channel_expected[c])) {
            f->verdict = Q3_VERDICT_ROUNDING;
            snprintf(f->reason, sizeof f->reason,
                     "channel %zu: %.0f of %llu elements differ, at most %.3g expected", c,
                     r->channel_differ[c], (unsigned long long)(f->elements / r->channels),
                     r->channel_expected[c]);
        }
    for (size_t h = 0; h < r->heads && r->heads > 1 && f->verdict != Q3_VERDICT_ROUNDING; h++)
        if (unexplained(r->head_differ[h], r->head_expected[h])) {
            f->verdict = Q3_VERDICT_ROUNDING;
            snprintf(f->reason, sizeof f->reason,
                     "head %zu: %.0f of %llu elements differ, at most %.3g expected", h,
                     r->head_differ[h], (unsigned long long)(f->elements / r->heads),
                     r->head_expected[h]);
        }
}

static void decide_choice(q3_finding *f)
{
    f->verdict = f->wrong_sets > 0  ? Q3_VERDICT_DIFFERS
                 : f->near_ties > 0 ? Q3_VERDICT_NEAR_TIE
                                    : Q3_VERDICT_EXACT;
    if (f->verdict == Q3_VERDICT_NEAR_TIE)
        snprintf(f->reason, sizeof f->reason,
                 "other experts in %llu of %zu tokens, where rounding may decide: the "
                 "probabilities' bounds reach over the margin",
                 (unsigned long long)f->near_ties, f->shape[0]);
}

/* What was found element by element goes first; then whether the bounds said enough; then counts
 * and the gain, for what lies within. */
static bool decide_values(trial *r, walk *w)
{
    q3_finding *f = &r->f;
    bool sparse = r->id == Q3_TAP_MLP && q3_layer_is_sparse(w->config, f->layer);
    if (f->verdict != Q3_VERDICT_MISSING) {
        snprintf(f->reason, sizeof f->reason, "%llu of %llu elements outside the bound",
                 (unsigned long long)f->outside, (unsigned long long)f->elements);
    } else if (f->judged * 2 < f->elements) {
        f->verdict = Q3_VERDICT_UNJUDGED;
        snprintf(f->reason, sizeof f->reason,
                 "the bound says something of %llu of %llu elements only",
                 (unsigned long long)f->judged, (unsigned long long)f->elements);
    } else if (f->differ == 0) {
        f->verdict = Q3_VERDICT_EXACT;
    } else {
        f->verdict = Q3_VERDICT_WITHIN;
        if (!sparse) find_rounding(r);
        return q3_find_gains(r, w);
    }
    return true;
}

bool q3_trial_decide(trial *r, walk *w)
{
    q3_figures_end(&r->g);
    if (r->id != Q3_TAP_TOPK_INDICES) return decide_values(r, w);
    decide_choice(&r->f);
    return true;
}
