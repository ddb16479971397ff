/* compare.c - the walk over the taps: every tensor that the other implementation gives is compared with ours, its
 * verdict found, and its values put in the place of ours, so that what follows is computed from them. */
#include "judge/diagnose.h"
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAYS_NOTHING 1e100 /* a variance that no tensor stays within */

/* Which taps each tap is computed from (MODEL.md section 8). input: what the layer starts from. */
static const struct { q3_tap_id id; q3_tap_id from[4]; size_t count; bool input; } sources[] = {
    {Q3_TAP_INPUT_LAYERNORM, {0}, 0, true},
    {Q3_TAP_Q_PROJ, {Q3_TAP_INPUT_LAYERNORM}, 1, false}, {Q3_TAP_K_PROJ, {Q3_TAP_INPUT_LAYERNORM}, 1, false},
    {Q3_TAP_V_PROJ, {Q3_TAP_INPUT_LAYERNORM}, 1, false}, {Q3_TAP_Q_NORM, {Q3_TAP_Q_PROJ}, 1, false},
    {Q3_TAP_K_NORM, {Q3_TAP_K_PROJ}, 1, false}, {Q3_TAP_Q_ROPE, {Q3_TAP_Q_NORM, Q3_TAP_COS, Q3_TAP_SIN}, 3, false},
    {Q3_TAP_K_ROPE, {Q3_TAP_K_NORM, Q3_TAP_COS, Q3_TAP_SIN}, 3, false},
    {Q3_TAP_SCORES, {Q3_TAP_Q_ROPE, Q3_TAP_K_ROPE}, 2, false}, {Q3_TAP_PROBS, {Q3_TAP_SCORES}, 1, false},
    {Q3_TAP_O_PROJ_INPUT, {Q3_TAP_PROBS, Q3_TAP_V_PROJ}, 2, false},
    {Q3_TAP_O_PROJ, {Q3_TAP_O_PROJ_INPUT}, 1, false}, {Q3_TAP_POST_ATTENTION_INPUT, {Q3_TAP_O_PROJ}, 1, true},
    {Q3_TAP_POST_ATTENTION_LAYERNORM, {Q3_TAP_POST_ATTENTION_INPUT}, 1, false},
    {Q3_TAP_GATE, {Q3_TAP_POST_ATTENTION_LAYERNORM}, 1, false}, {Q3_TAP_ROUTER_PROBS, {Q3_TAP_GATE}, 1, false},
    {Q3_TAP_TOPK_INDICES, {Q3_TAP_ROUTER_PROBS}, 1, false},
    {Q3_TAP_TOPK_WEIGHTS, {Q3_TAP_ROUTER_PROBS, Q3_TAP_TOPK_INDICES}, 2, false},
    {Q3_TAP_EXPERTS_GATE_PROJ, {Q3_TAP_POST_ATTENTION_LAYERNORM, Q3_TAP_TOPK_INDICES}, 2, false},
    {Q3_TAP_EXPERTS_UP_PROJ, {Q3_TAP_POST_ATTENTION_LAYERNORM, Q3_TAP_TOPK_INDICES}, 2, false},
    {Q3_TAP_EXPERTS_ACT_FN, {Q3_TAP_EXPERTS_GATE_PROJ}, 1, false},
    {Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, {Q3_TAP_EXPERTS_ACT_FN, Q3_TAP_EXPERTS_UP_PROJ}, 2, false},
    {Q3_TAP_EXPERTS_DOWN_PROJ, {Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, Q3_TAP_TOPK_INDICES}, 2, false},
    {Q3_TAP_DENSE_GATE_PROJ, {Q3_TAP_POST_ATTENTION_LAYERNORM}, 1, false},
    {Q3_TAP_DENSE_UP_PROJ, {Q3_TAP_POST_ATTENTION_LAYERNORM}, 1, false},
    {Q3_TAP_DENSE_ACT_FN, {Q3_TAP_DENSE_GATE_PROJ}, 1, false},
    {Q3_TAP_DENSE_DOWN_PROJ_INPUT, {Q3_TAP_DENSE_ACT_FN, Q3_TAP_DENSE_UP_PROJ}, 2, false},
    {Q3_TAP_MLP, {Q3_TAP_EXPERTS_DOWN_PROJ, Q3_TAP_TOPK_WEIGHTS, Q3_TAP_DENSE_DOWN_PROJ_INPUT}, 3, false},
    {Q3_TAP_LAYER, {Q3_TAP_POST_ATTENTION_INPUT, Q3_TAP_MLP}, 2, false}, {Q3_TAP_NORM, {0}, 0, true},
    {Q3_TAP_LM_HEAD, {Q3_TAP_NORM}, 1, false},
};

#define BEHIND_INPUT ((uint64_t)1 << 63) /* beside the taps' bits: what is behind the layer's input is not given */

/* One tensor under judgement. */
typedef struct trial {
    q3_finding f;
    figures g;
    const backend_tensor *tensor; /* NULL: not given, or its shape is wrong */
    size_t layout, n, channels, heads; /* n: elements of a row */
    float *ours, *theirs;         /* [T,n] */
    float *sorted;                /* [T,n] theirs, if the file has them in another order; else NULL */
    double *bound;                /* [T,n] */
    double *channel_differ, *channel_expected, *head_differ, *head_expected;
    bool propagated;              /* some variance came in */
    double along, along_var, along_noise; /* sum ours (theirs - ours), its variance by roundings, its noise at most */
} trial;

typedef struct judging {
    walk w;
    const backend *b;
    const judge_options *options;
    q3_text *lines;
    const int32_t *ids;
    size_t end_layer;
    trial scores, probs;          /* of the layer, token by token */
    double *row[3];               /* a row's bounds */
    bool seen[Q3_TAP_COUNT];      /* in this layer */
    uint64_t between[Q3_TAP_COUNT]; /* of this layer, behind each tap, itself too: bit id of what is not given */
    q3_layer_tap *earlier, *list;    /* not given, behind what this layer starts from; room for a finding's */
    size_t earlier_count;
    bool diagnosed[Q3_TAP_COUNT][2];
    bool later_keys_broken;       /* a key or value of the layer is not finite */
    q3_status status;
    q3_error *error;
} judging;

static size_t row_size(const judging *j, q3_tap_id id)
{
    size_t shape[3], rank = q3_tap_shape(shape, j->w.config, id, j->w.T);
    if (id == Q3_TAP_SCORES || id == Q3_TAP_PROBS) return shape[0] * shape[2];
    return rank == 3 ? shape[1] * shape[2] : shape[1];
}

static void out_of_memory(judging *j)
{
    if (j->status == Q3_OK)
        j->status = q3_fail(j->error, Q3_ERROR_MEMORY, "no memory for the tensors of %zu tokens", j->w.T);
}

static bool is_finite(double x)
{
    return x - x == 0;
}

/* ==== A trial ================================================================================== */

static void trial_free(trial *r)
{
    free(r->ours);
    free(r->theirs);
    free(r->sorted);
    free(r->bound);
    free(r->channel_differ);
    free(r->head_differ);
    memset(r, 0, sizeof *r);
}

static void trial_begin(judging *j, trial *r, q3_tap_id id, size_t layer)
{
    size_t T = j->w.T, shape[3];
    memset(r, 0, sizeof *r);
    r->f.rank = q3_tap_shape(shape, j->w.config, id, T);
    memcpy(r->f.shape, shape, sizeof shape);
    bool square = id == Q3_TAP_SCORES || id == Q3_TAP_PROBS;
    if (square) {
        r->f.shape[0] = shape[1];
        r->f.shape[1] = shape[0];
    }
    r->f.layer = layer;
    r->f.verdict = Q3_VERDICT_MISSING;
    r->n = row_size(j, id);
    r->channels = r->f.shape[r->f.rank - 1];
    r->heads = r->n / r->channels;
    const backend_tensor *tensor = q3_backend_find(j->b, id, layer);
    if (tensor == NULL) return;
    r->f.given_as = tensor->entry->name;
    memcpy(r->f.note, tensor->note, sizeof r->f.note);
    if (tensor->layouts == 0) {
        r->f.verdict = Q3_VERDICT_SHAPE;
        memcpy(r->f.reason, tensor->note, sizeof tensor->note);
        r->f.note[0] = 0;
        return;
    }
    r->tensor = tensor;
    r->ours = calloc(T, r->n * sizeof *r->ours);
    r->theirs = calloc(T, r->n * sizeof *r->theirs);
    r->bound = calloc(T, r->n * sizeof *r->bound);
    r->channel_differ = calloc(2 * r->channels, sizeof(double));
    r->head_differ = calloc(2 * r->heads, sizeof(double));
    q3_dtype dtype = id == Q3_TAP_ROUTER_PROBS ? Q3_F32 : j->w.dtype;
    bool memory = r->ours != NULL && r->theirs != NULL && r->bound != NULL && r->channel_differ != NULL &&
                  r->head_differ != NULL && q3_figures_begin(&r->g, &r->f, dtype, T, r->channels);
    if (!memory) {
        out_of_memory(j);
        r->tensor = NULL;
        return;
    }
    r->channel_expected = r->channel_differ + r->channels;
    r->head_expected = r->head_differ + r->heads;
}

/* Hugging Face loses what is finite, or the other way round, where: a masked key or value is not finite (its mask
 * adds, ours never looks); silu of -infinity; the sum of squares of a norm overflows float32. Not judged. */
static bool beyond_agreement(const judging *j, q3_tap_id id, size_t t, size_t i, size_t n)
{
    const walk *w = &j->w;
    switch ((int)id) {
    case Q3_TAP_SCORES: case Q3_TAP_PROBS: case Q3_TAP_O_PROJ_INPUT: return j->later_keys_broken;
    case Q3_TAP_EXPERTS_ACT_FN: return !is_finite((double)w->tap[Q3_TAP_EXPERTS_GATE_PROJ][t * n + i]);
    case Q3_TAP_DENSE_ACT_FN: return !is_finite((double)w->tap[Q3_TAP_DENSE_GATE_PROJ][t * n + i]);
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

static double root_mean_square(const float *x, size_t n)
{
    double square = 0;
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        if (is_finite((double)x[i])) square += (double)x[i] * (double)x[i], count++;
    return count > 0 ? q3_sqrt(square / (double)count) : 0;
}

static void take_bad(trial *r, size_t t, size_t i, double ours, double theirs, double bound, double ulp)
{
    q3_finding *f = &r->f;
    f->outside++;
    if (f->has_bad) return;
    double error = theirs > ours ? theirs - ours : ours - theirs;
    f->has_bad = true;
    f->bad_at[0] = t;
    f->bad_at[1] = f->rank > 2 ? i / r->channels : i;
    f->bad_at[2] = f->rank > 2 ? i % r->channels : 0;
    f->bad_ours = ours;
    f->bad_theirs = theirs;
    f->bad_ulp = is_finite(error) ? error / ulp : 0;
    f->bad_bound_ulp = is_finite(bound) ? bound / ulp : 0;
}

/* Judges one element; bounds of the row are in b. */
static void judge_element(judging *j, trial *r, q3_tap_id id, size_t t, size_t i, const row_bound *b, double rms)
{
    double ours = (double)r->ours[t * r->n + i], theirs = (double)r->theirs[t * r->n + i];
    double large = ours < 0 ? -ours : ours, other = theirs < 0 ? -theirs : theirs;
    double ulp = q3_ulp(other > large ? other : large, r->g.dtype);
    double loose = b->noise[i] + (b->var[i] > 0 ? Q3_SIGMAS * q3_sqrt(b->var[i]) : 0);
    double slack = b->slack[i] + (b->slack[i] > 0 ? b->own * (ulp - q3_ulp(ours, r->g.dtype)) : 0); /* of the larger */
    double bound = r->bound[t * r->n + i] = slack + loose, flips = 2 * b->roundings * loose / ulp;
    bool same = ours == theirs || (ours != ours && theirs != theirs);
    r->propagated = r->propagated || b->var[i] > 0;
    if (b->var[i] > 0 && !(bound < rms)) return;
    if (!is_finite(ours) != !is_finite(theirs) && beyond_agreement(j, id, t, i, r->n)) return;
    r->f.judged++;
    if (is_finite(ours) && is_finite(theirs)) {
        r->along += ours * (theirs - ours);
        r->along_var += ours * ours * slack * ulp / 6;
        r->along_noise += large * b->noise[i];
    }
    if (!(flips < 1)) flips = 1;
    r->f.expected += flips;
    r->channel_expected[i % r->channels] += flips;
    r->head_expected[i / r->channels] += flips;
    if (same) return;
    r->channel_differ[i % r->channels]++;
    r->head_differ[i / r->channels]++;
    double error = theirs > ours ? theirs - ours : ours - theirs;
    if (bound > 0 && error / bound > r->f.max_bound_ratio) r->f.max_bound_ratio = error / bound;
    if (is_finite(ours) && !is_finite(theirs) && r->f.verdict != Q3_VERDICT_DIFFERS) r->f.verdict = Q3_VERDICT_NON_FINITE;
    if (error <= bound) return;
    if (r->f.verdict != Q3_VERDICT_NON_FINITE) r->f.verdict = Q3_VERDICT_DIFFERS;
    take_bad(r, t, i, ours, theirs, bound, ulp);
}

/* Token t's row: bounds, comparison, and theirs into ours[n] (the walk's) unless it is free. var_out[n] gets what
 * the walk does not know afterwards. */
static void trial_row(judging *j, trial *r, q3_tap_id id, size_t t, float *ours, double *var_out)
{
    walk *w = &j->w;
    size_t n = r->n;
    row_bound b = {j->row[0], j->row[1], j->row[2], 1, 1};
    bool given = r->tensor != NULL && t >= r->tensor->first;
    bool routed = id >= Q3_TAP_TOPK_WEIGHTS && id <= Q3_TAP_EXPERTS_DOWN_PROJ;
    q3_bound_row(&b, w, id, t, ours, n);
    for (size_t i = 0; routed && w->uncertain[t] && i < n; i++) b.var[i] = SAYS_NOTHING;
    if (given) {
        float *mine = r->ours + t * n, *theirs = r->theirs + t * n;
        memcpy(mine, ours, n * sizeof *mine);
        if (r->sorted != NULL) memcpy(theirs, r->sorted + t * n, n * sizeof *theirs);
        else q3_backend_row(theirs, j->b, r->tensor, id, r->layout, t);
        size_t low = q3_first_key(t, w->config->sliding_window);
        for (size_t i = 0; i < n && id == Q3_TAP_SCORES; i++) /* masked: theirs may hold anything */
            if (i % r->channels > t || i % r->channels < low) theirs[i] = 0.0f;
        q3_figures_row(&r->g, t, mine, theirs, n);
        double rms = root_mean_square(mine, n);
        for (size_t i = 0; i < n; i++) judge_element(j, r, id, t, i, &b, rms);
        if (!j->options->free_running) memcpy(ours, theirs, n * sizeof *ours);
    }
    bool known = given && !j->options->free_running;
    for (size_t i = 0; i < n && var_out != NULL; i++) {
        double noise = b.noise[i] / 4, ulp = q3_ulp((double)ours[i], id == Q3_TAP_ROUTER_PROBS ? Q3_F32 : w->dtype);
        double before = id == Q3_TAP_PROBS ? 0 : b.var[i]; /* bound_values takes it from the scores */
        var_out[i] = known ? 0 : before + noise * noise + b.slack[i] * ulp / 6;
        if (!(var_out[i] <= SAYS_NOTHING)) var_out[i] = SAYS_NOTHING;
    }
}

/* ==== Verdicts ================================================================================= */

/* Whether k differing elements are more than honest accumulation explains, where lambda is the most that may be
 * expected: Chernoff's bound of a Poisson count, k ln(k / lambda) - k + lambda, against 20 (2e-9). */
static bool unexplained(double k, double lambda)
{
    if (k <= lambda) return false;
    if (lambda <= 0) return true;
    return k * q3_log(k / lambda) - k + lambda > 20;
}

static void find_rounding(trial *r)
{
    q3_finding *f = &r->f;
    double all = 0;
    for (size_t c = 0; c < r->channels; c++) all += r->channel_differ[c];
    if (unexplained(all, f->expected)) {
        f->verdict = Q3_VERDICT_ROUNDING;
        snprintf(f->reason, sizeof f->reason, "%.0f of %llu elements differ, at most %.3g expected", all,
                 (unsigned long long)f->judged, f->expected);
        return;
    }
    for (size_t c = 0; c < r->channels && f->verdict != Q3_VERDICT_ROUNDING; c++)
        if (unexplained(r->channel_differ[c], r->channel_expected[c])) {
            f->verdict = Q3_VERDICT_ROUNDING;
            snprintf(f->reason, sizeof f->reason, "channel %zu: %.0f of %llu elements differ, at most %.3g expected", c,
                     r->channel_differ[c], (unsigned long long)(f->elements / r->channels), r->channel_expected[c]);
        }
    for (size_t h = 0; h < r->heads && r->heads > 1 && f->verdict != Q3_VERDICT_ROUNDING; h++)
        if (unexplained(r->head_differ[h], r->head_expected[h])) {
            f->verdict = Q3_VERDICT_ROUNDING;
            snprintf(f->reason, sizeof f->reason, "head %zu: %.0f of %llu elements differ, at most %.3g expected", h,
                     r->head_differ[h], (unsigned long long)(f->elements / r->heads), r->head_expected[h]);
        }
}

/* Roundings have no direction, so that over a whole tensor they hardly add up along it: a gain that they and the
 * sums' noise, were it all of one sign, do not explain is a factor. Eight standard deviations. */
static void find_gain(trial *r)
{
    q3_finding *f = &r->f;
    double along = r->along < 0 ? -r->along : r->along;
    if (r->propagated || !(along > 8 * q3_sqrt(r->along_var) + r->along_noise)) return;
    f->verdict = Q3_VERDICT_DIFFERS;
    snprintf(f->reason, sizeof f->reason, "gain %.6g over the whole tensor, which no rounding makes", f->gain);
}

static void fill_evidence(evidence *e, const judging *j, const trial *r, q3_tap_id id)
{
    const walk *w = &j->w;
    memset(e, 0, sizeof *e);
    e->config = w->config;
    e->weights = w->weights;
    e->dtype = w->dtype;
    e->T = w->T;
    e->start = w->start;
    e->layer = r->f.layer;
    e->ids = j->ids;
    e->input = w->input;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        bool front = i <= Q3_TAP_SIN, square = i == Q3_TAP_SCORES || i == Q3_TAP_PROBS;
        e->given[i] = w->given[i];
        if ((j->seen[i] || front) && i != (size_t)id && (!square || w->given[i])) e->tap[i] = w->tap[i];
    }
    e->id = id;
    e->first = r->tensor->first;
    e->row = r->n;
    e->ours = r->ours;
    e->theirs = r->theirs;
    e->bound = r->bound;
}

static void explain(judging *j, trial *r, q3_tap_id id)
{
    evidence e;
    bool rounding = r->f.verdict == Q3_VERDICT_ROUNDING;
    bool trouble = rounding || r->f.verdict == Q3_VERDICT_DIFFERS || r->f.verdict == Q3_VERDICT_NON_FINITE;
    if (!trouble || j->diagnosed[id][rounding] || j->options->free_running) return;
    j->diagnosed[id][rounding] = true;
    fill_evidence(&e, j, r, id);
    q3_status status = q3_diagnose(r->f.looks_like, &e, j->error);
    if (j->status == Q3_OK) j->status = status;
}

static void decide_choice(q3_finding *f)
{
    f->verdict = f->wrong_sets > 0 ? Q3_VERDICT_DIFFERS : f->near_ties > 0 ? Q3_VERDICT_NEAR_TIE : Q3_VERDICT_EXACT;
}

static void decide_values(judging *j, trial *r, q3_tap_id id)
{
    q3_finding *f = &r->f;
    bool sparse = id == Q3_TAP_MLP && q3_layer_is_sparse(j->w.config, f->layer);
    if (f->verdict != Q3_VERDICT_MISSING) {
        snprintf(f->reason, sizeof f->reason, "%llu of %llu elements outside the bound",
                 (unsigned long long)f->outside, (unsigned long long)f->elements);
    } else if (f->judged * 2 < f->elements) {
        f->verdict = Q3_VERDICT_UNJUDGED;
        snprintf(f->reason, sizeof f->reason, "the bound says something of %llu of %llu elements only",
                 (unsigned long long)f->judged, (unsigned long long)f->elements);
    } else if (f->differ == 0) {
        f->verdict = Q3_VERDICT_EXACT;
    } else {
        f->verdict = Q3_VERDICT_WITHIN;
        if (!sparse) find_rounding(r);
        find_gain(r);
    }
}

/* What is not given behind a tap, from what it is computed from. */
static uint64_t behind(const judging *j, q3_tap_id id)
{
    uint64_t taps = 0;
    for (size_t i = 0; i < sizeof sources / sizeof sources[0]; i++) {
        if (sources[i].id != id) continue;
        if (sources[i].input && j->earlier_count > 0) taps |= BEHIND_INPUT;
        for (size_t k = 0; k < sources[i].count; k++) taps |= j->between[sources[i].from[k]];
    }
    return taps;
}

/* Those taps, with their layers, into list; returns how many. */
static size_t list_taps(const judging *j, q3_layer_tap *list, uint64_t taps, size_t layer)
{
    size_t count = (taps & BEHIND_INPUT) != 0 ? j->earlier_count : 0;
    memcpy(list, j->earlier, count * sizeof *list);
    for (size_t i = 0; i < Q3_TAP_COUNT; i++)
        if (taps >> i & 1) list[count++] = (q3_layer_tap){(q3_tap_id)i, i <= Q3_TAP_SIN ? 0 : layer};
    return count;
}

/* The verdict of a tensor all of whose rows were judged; writes the finding, and frees the trial. */
static void trial_end(judging *j, trial *r, q3_tap_id id)
{
    char name[Q3_TAP_NAME_SIZE];
    q3_finding *f = &r->f;
    bool given = r->tensor != NULL;
    uint64_t taps = behind(j, id);
    j->between[id] = given && !j->options->free_running ? 0 : taps | (uint64_t)1 << id;
    j->w.given[id] = given;
    j->seen[id] = true;
    if (given && j->status == Q3_OK) {
        q3_figures_end(&r->g);
        if (id == Q3_TAP_TOPK_INDICES)
            decide_choice(f);
        else
            decide_values(j, r, id);
        explain(j, r, id);
        f->between = j->list;
        f->between_count = list_taps(j, j->list, taps, f->layer);
    }
    q3_tap_name(name, id, f->layer);
    f->name = name;
    if (j->status == Q3_OK) q3_report_put_finding(j->lines, f);
    trial_free(r);
}

/* ==== Router =================================================================================== */

/* How far p may be from an honest implementation's, in a choice between two: its bound and the rounding of its
 * logit, which a fused router may leave out; *var: what came in. */
static double choice_bound(judging *j, size_t t, size_t e, double *var)
{
    walk *w = &j->w;
    size_t E = w->config->num_experts;
    row_bound b = {j->row[0], j->row[1], j->row[2], 1, 1};
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

/* The smallest probability of those chosen (a), and the largest of those left (b): their distance, and whether the
 * bounds reach over it. */
static double margin(judging *j, size_t t, const float *chosen, bool *doubtful)
{
    const walk *w = &j->w;
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
    double bound = choice_bound(j, t, low, &var) + choice_bound(j, t, high, &var) + Q3_SIGMAS * q3_sqrt(var);
    *doubtful = !((distance < 0 ? -distance : distance) > bound);
    return distance;
}

static bool valid_choice(const float *ids, size_t A, size_t E)
{
    for (size_t a = 0; a < A; a++)
        if (!(ids[a] >= 0 && ids[a] < (float)E) || among(ids, a, ids[a])) return false;
    return true;
}

/* Token t: their choice against ours. False if it cannot be followed. */
static bool judge_choice(judging *j, trial *r, size_t t, const float *ours, const float *theirs)
{
    q3_finding *f = &r->f;
    size_t A = r->n, E = j->w.config->num_experts;
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
    f->token_profile[t * f->token_bins / j->w.T] = 1;
    double distance = valid ? margin(j, t, theirs, &doubtful) : 0; /* negative: a worse expert was taken */
    if (valid && doubtful) {
        f->near_ties++;
        return true;
    }
    f->wrong_sets++;
    if (!f->has_bad) {
        size_t a = 0;
        while (a + 1 < A && among(ours, A, theirs[a]) && !among(theirs, a, theirs[a])) a++;
        f->has_bad = true;
        f->bad_at[0] = t;
        f->bad_at[1] = a;
        f->bad_ours = (double)ours[a];
        f->bad_theirs = (double)theirs[a];
        if (valid)
            snprintf(f->reason, sizeof f->reason,
                     "token %zu: a chosen expert's probability is %.3g below a left one's", t, -distance);
        else if (among(theirs, a, theirs[a]))
            snprintf(f->reason, sizeof f->reason, "token %zu, slot %zu: expert id %g stands twice", t, a,
                     (double)theirs[a]);
        else
            snprintf(f->reason, sizeof f->reason, "token %zu, slot %zu: expert id %g is outside 0 to %zu", t, a,
                     (double)theirs[a], E - 1);
    }
    return valid;
}

static void judge_topk(judging *j, const q3_tap *tap)
{
    trial r;
    walk *w = &j->w;
    size_t A = w->config->num_experts_per_tok, T = w->T;
    int32_t *ids = tap->data;
    trial_begin(j, &r, tap->id, tap->layer);
    q3_finding *f = &r.f;
    f->margin_bins = r.tensor != NULL ? (T < Q3_PROFILE_BINS ? T : Q3_PROFILE_BINS) : 0;
    for (size_t i = 0; i < Q3_PROFILE_BINS; i++) f->margins[i] = i < f->margin_bins ? 1.0f : 0.0f;
    for (size_t t = 0; t < T && j->status == Q3_OK; t++) {
        float *own = w->tap[tap->id] + t * A;
        bool given = r.tensor != NULL && t >= r.tensor->first, doubtful;
        for (size_t a = 0; a < A; a++) own[a] = (float)ids[t * A + a];
        double distance = margin(j, t, own, &doubtful);
        w->uncertain[t] = doubtful && !(given && !j->options->free_running);
        if (!given) continue;
        float *theirs = r.theirs + t * A, *bin = &f->margins[t * f->margin_bins / T];
        if (distance < (double)*bin) *bin = (float)distance;
        memcpy(r.ours + t * A, own, A * sizeof *own);
        q3_backend_row(theirs, j->b, r.tensor, tap->id, r.layout, t);
        bool follow = judge_choice(j, &r, t, own, theirs);
        if (!follow || j->options->free_running) continue;
        for (size_t a = 0; a < A; a++) {
            own[a] = theirs[a];
            ids[t * A + a] = (int32_t)theirs[a];
        }
    }
    trial_end(j, &r, tap->id);
}

/* ==== The walk ================================================================================= */

/* The squared distance of two rows, or more than `most`; what is not finite does not count. */
static double apart(const float *a, const float *b, size_t n, double most)
{
    double sum = 0;
    for (size_t i = 0; i < n && sum <= most; i++) {
        double d = (double)a[i] - (double)b[i];
        if (is_finite(d)) sum += d * d;
    }
    return sum;
}

/* Two readings of the axes: the closer one. */
static void choose_layout(judging *j, trial *r, q3_tap_id id, const float *ours)
{
    double away[2] = {0, 0};
    for (size_t l = 0; l < 2; l++)
        for (size_t t = r->tensor->first; t < j->w.T; t++) {
            q3_backend_row(r->theirs, j->b, r->tensor, id, l, t);
            away[l] += apart(r->theirs, ours + t * r->n, r->n, SAYS_NOTHING);
        }
    r->layout = away[1] < away[0];
}

/* Experts' rows [T*A,n] may lie expert by expert, those of one in any order: so a hook sees them in Hugging Face 5's
 * grouped_mm, which is its default. They are read so if, each row taken for the nearest of its expert's, they are
 * far closer (256 times) than as token by token. */
static void read_by_expert(judging *j, trial *r, q3_tap_id id, const float *ours)
{
    size_t T = j->w.T, A = j->w.config->num_experts_per_tok, E = j->w.config->num_experts, n = r->n / A;
    const float *experts = j->w.tap[Q3_TAP_TOPK_INDICES];
    size_t *end = calloc(E + 1, sizeof *end); /* of each expert's rows that are left; they begin where others end */
    size_t *begin = calloc(E + 1, sizeof *begin);
    float *left = calloc(T, r->n * sizeof *left);
    double by_token = 0, by_expert = 0;
    r->sorted = calloc(T, r->n * sizeof *r->sorted);
    if (end == NULL || begin == NULL || left == NULL || r->sorted == NULL) out_of_memory(j);
    for (size_t t = 0; t < T && j->status == Q3_OK; t++) {
        q3_backend_row(left + t * r->n, j->b, r->tensor, id, 0, t);
        by_token += apart(left + t * r->n, ours + t * r->n, r->n, SAYS_NOTHING);
    }
    for (size_t i = 0; i < T * A && j->status == Q3_OK; i++) end[(size_t)experts[i]]++;
    for (size_t e = 0, all = 0; e < E && j->status == Q3_OK; e++) begin[e] = all, end[e] = all += end[e];
    for (size_t i = 0; i < T * A && j->status == Q3_OK; i++) {
        size_t e = (size_t)experts[i], best = begin[e];
        double least = apart(left + best * n, ours + i * n, n, SAYS_NOTHING);
        for (size_t k = best + 1; k < end[e]; k++) {
            double distance = apart(left + k * n, ours + i * n, n, least);
            if (distance < least) least = distance, best = k;
        }
        by_expert += least;
        memcpy(r->sorted + i * n, left + best * n, n * sizeof *left);
        memmove(left + best * n, left + --end[e] * n, n * sizeof *left); /* the last one takes its place */
    }
    free(end);
    free(begin);
    free(left);
    if (j->status == Q3_OK && by_expert * 256 < by_token) {
        size_t used = strlen(r->f.note);
        snprintf(r->f.note + used, sizeof r->f.note - used, "%sexpert by expert", used > 0 ? ", " : "");
    } else {
        free(r->sorted);
        r->sorted = NULL;
    }
}

/* --kv: from here on keys and values are what that cache holds. */
static void round_cache(judging *j, const q3_tap *tap, size_t count)
{
    float *values = tap->data;
    bool cached = tap->id == Q3_TAP_K_ROPE || tap->id == Q3_TAP_V_PROJ;
    for (size_t i = 0; cached && i < count; i++) {
        if (j->options->kv != Q3_AUTO) values[i] = q3_round((double)values[i], j->options->kv);
        if (!is_finite((double)values[i])) j->later_keys_broken = true;
    }
    if (cached) memcpy(j->w.tap[tap->id], values, count * sizeof *values);
}

static void judge_whole(judging *j, const q3_tap *tap)
{
    trial r;
    walk *w = &j->w;
    float *values = tap->data;
    trial_begin(j, &r, tap->id, tap->layer);
    if (r.tensor != NULL && r.tensor->layouts == 2) choose_layout(j, &r, tap->id, values);
    if (r.tensor != NULL && r.tensor->merged && r.tensor->first == 0) read_by_expert(j, &r, tap->id, values);
    for (size_t t = 0; t < w->T && j->status == Q3_OK; t++)
        trial_row(j, &r, tap->id, t, values + t * r.n, tap->id == Q3_TAP_LM_HEAD ? NULL : w->var[tap->id] + t * r.n);
    size_t count = w->T * r.n;
    if (tap->id != Q3_TAP_LM_HEAD) memcpy(w->tap[tap->id], values, count * sizeof *values);
    round_cache(j, tap, count);
    trial_end(j, &r, tap->id);
}

/* Scores or probs of one token: [H,1,S] into a row [H,T], and back. */
static void judge_token(judging *j, const q3_tap *tap)
{
    walk *w = &j->w;
    bool probs = tap->id == Q3_TAP_PROBS;
    trial *r = probs ? &j->probs : &j->scores;
    size_t H = tap->shape[0], S = tap->shape[2], T = w->T, t = tap->first;
    float *row = probs ? w->probs : w->scores, *values = tap->data;
    if (t == 0) trial_begin(j, r, tap->id, tap->layer);
    if (j->status != Q3_OK) return;
    memset(row, 0, H * T * sizeof *row);
    for (size_t h = 0; h < H; h++) memcpy(row + h * T, values + h * S, S * sizeof *row);
    trial_row(j, r, tap->id, t, row, probs ? w->probs_var : w->scores_var);
    for (size_t h = 0; h < H; h++) memcpy(values + h * S, row + h * T, S * sizeof *row);
    if (w->tap[tap->id] != NULL) memcpy(w->tap[tap->id] + t * H * T, row, H * T * sizeof *row);
    if (!probs) return;
    bool known = r->tensor != NULL && t >= r->tensor->first && !j->options->free_running;
    if (known) memset(w->scores_var, 0, H * T * sizeof *w->scores_var);
    q3_bound_values(w, t);
    if (t + 1 < T) return;
    trial_end(j, &j->scores, Q3_TAP_SCORES);
    trial_end(j, &j->probs, Q3_TAP_PROBS);
}

/* What the next layer starts from. */
static void end_layer(judging *j)
{
    walk *w = &j->w;
    size_t count = w->T * w->config->hidden_size;
    memcpy(w->input, w->tap[Q3_TAP_LAYER], count * sizeof *w->input);
    memcpy(w->input_var, w->var[Q3_TAP_LAYER], count * sizeof *w->input_var);
    j->earlier_count = list_taps(j, j->list, j->between[Q3_TAP_LAYER], w->layer);
    memcpy(j->earlier, j->list, j->earlier_count * sizeof *j->list);
    for (size_t i = Q3_TAP_INPUT_LAYERNORM; i <= Q3_TAP_LAYER; i++) j->seen[i] = false, j->between[i] = 0;
    j->later_keys_broken = false;
}

static void see_tap(void *user, const q3_tap *tap)
{
    judging *j = user;
    walk *w = &j->w;
    if (j->status != Q3_OK) return;
    w->layer = tap->layer;
    if (tap->id == Q3_TAP_SCORES || tap->id == Q3_TAP_PROBS)
        judge_token(j, tap);
    else if (tap->id == Q3_TAP_TOPK_INDICES)
        judge_topk(j, tap);
    else
        judge_whole(j, tap);
    if (j->status != Q3_OK) return;
    if (tap->id == Q3_TAP_EMBED_TOKENS) {
        size_t count = w->T * w->config->hidden_size;
        memcpy(w->input, w->tap[tap->id], count * sizeof *w->input);
        memcpy(w->input_var, w->var[tap->id], count * sizeof *w->input_var);
        j->earlier_count = list_taps(j, j->earlier, j->between[tap->id], 0);
    }
    if (tap->id == Q3_TAP_LAYER) {
        end_layer(j);
        if (j->options->progress != NULL) j->options->progress("check: layer", tap->layer + 1, j->end_layer);
    }
}

/* ==== Memory and the run ======================================================================= */

static size_t longest_sum(const q3_config *c)
{
    size_t most = c->hidden_size, inner = c->num_attention_heads * c->head_dim;
    if (inner > most) most = inner;
    if (c->intermediate_size > most) most = c->intermediate_size;
    return c->moe_intermediate_size > most ? c->moe_intermediate_size : most;
}

static bool judging_init(judging *j)
{
    walk *w = &j->w;
    const q3_config *c = w->config;
    size_t T = w->T, H = c->num_attention_heads, widest = 1;
    size_t inner = H * c->head_dim, M = c->hidden_size;
    bool good = true;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        q3_tap_id id = (q3_tap_id)i;
        bool square = id == Q3_TAP_SCORES || id == Q3_TAP_PROBS, wanted = id != Q3_TAP_LM_HEAD && !square;
        size_t n = row_size(j, id);
        if (n > widest) widest = n;
        for (size_t l = 0; square && l < c->num_hidden_layers; l++)
            wanted = wanted || q3_backend_find(j->b, id, l) != NULL;
        if (!wanted || n == 0) continue;
        w->tap[i] = calloc(T, n * sizeof *w->tap[i]);
        if (!square) w->var[i] = calloc(T, n * sizeof *w->var[i]);
        good = good && w->tap[i] != NULL && (square || w->var[i] != NULL);
    }
    for (size_t i = 0; i < 3; i++) good = (j->row[i] = calloc(widest, sizeof(double))) != NULL && good;
    j->earlier = calloc((c->num_hidden_layers + 1) * Q3_TAP_COUNT, sizeof *j->earlier);
    j->list = calloc((c->num_hidden_layers + 2) * Q3_TAP_COUNT, sizeof *j->list);
    good = good && j->earlier != NULL && j->list != NULL;
    w->inv_freq = calloc(c->head_dim, sizeof(float));
    w->input = calloc(T, M * sizeof(float));
    w->input_var = calloc(T, M * sizeof(double));
    w->uncertain = calloc(T, sizeof(bool));
    w->scores = calloc(T, H * sizeof(float));
    w->probs = calloc(T, H * sizeof(float));
    w->scores_var = calloc(T, H * sizeof(double));
    w->probs_var = calloc(T, H * sizeof(double));
    w->values_noise = calloc(T, inner * sizeof(double));
    w->values_var = calloc(T, inner * sizeof(double));
    w->weight_row = calloc(longest_sum(c), sizeof(float));
    return good && w->inv_freq && w->input && w->input_var && w->uncertain && w->scores && w->probs && w->scores_var &&
           w->probs_var && w->values_noise && w->values_var && w->weight_row;
}

static void judging_free(judging *j)
{
    walk *w = &j->w;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        free(w->tap[i]);
        free(w->var[i]);
    }
    for (size_t i = 0; i < 3; i++) free(j->row[i]);
    free(j->earlier);
    free(j->list);
    trial_free(&j->scores);
    trial_free(&j->probs);
    free(w->inv_freq);
    free(w->input);
    free(w->input_var);
    free(w->uncertain);
    free(w->scores);
    free(w->probs);
    free(w->scores_var);
    free(w->probs_var);
    free(w->values_noise);
    free(w->values_var);
    free(w->weight_row);
    free(j);
}

q3_status q3_compare_run(q3_text *lines, q3_state *state, const q3_config *c, const q3_weights *weights,
                      const q3_run *run, const backend *b, const int32_t *ids, const float *hidden, size_t T,
                      const judge_options *options, q3_error *error)
{
    judging *j = calloc(1, sizeof *j);
    if (j == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory");
    j->w.config = c;
    j->w.weights = weights;
    j->w.dtype = run->dtype;
    j->w.T = T;
    j->w.start = run->start;
    j->w.operand = options->operand;
    j->b = b;
    j->options = options;
    j->lines = lines;
    j->ids = ids;
    j->end_layer = run->end_layer;
    j->error = error;
    if (!judging_init(j)) out_of_memory(j);
    if (j->status == Q3_OK) {
        q3_input input = {.count = T, .length = run->start + T, .logit_rows = T};
        j->w.scaling = q3_rope_frequencies(j->w.inv_freq, &c->rope, c->head_dim, c->max_position_embeddings,
                                           input.length);
        if (run->first_layer > 0) {
            input.hidden = hidden;
            memcpy(j->w.input, hidden, T * c->hidden_size * sizeof *hidden);
        } else {
            input.tokens = ids;
        }
        q3_status status = q3_forward(state, &input, see_tap, j, error);
        if (status != Q3_OK) j->status = status;
    }
    q3_status status = j->status;
    judging_free(j);
    return status;
}
