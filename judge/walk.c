/* SPDX-License-Identifier: MIT */
/* walk.c - the walk over the taps: every tensor that the other implementation gives is compared
 * with ours, its verdict found, and its values put in the place of ours, so that what follows is
 * computed from them. */
#include "judge/diagnose.h"
#include "judge/graph.h"
#include "judge/report.h"
#include "judge/verdict.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAYS_NOTHING 1e100 /* a variance that no tensor stays within */

#define BEHIND_INPUT ((uint64_t)1 << 63) /* beside the taps' bits: what is behind the layer's
                                          * input is not given */

/* Whether tensors that are what a residual sum adds, without the stream, were recorded so (vLLM's
 * layers return the two apart) or computed so, which is a mistake (MODEL.md 12.12). */
typedef enum apart {
    APART_POSSIBLE, /* no such tensor came yet */
    APART_ASSUMED,  /* one did: our own sum is in its place, and what is computed from it decides */
    APART_CERTAIN,
    APART_REFUTED   /* they were computed so */
} apart;

typedef struct judging {
    walk w;
    const backend *b;
    const q3_judge_options *options;
    q3_text *lines;
    int32_t *ids;                 /* [T], owned, 0 for what came before; NULL: not known */
    size_t end_layer;
    void *memory;                 /* of the state */
    q3_state *state;
    trial scores, probs;          /* of the layer, token by token */
    row_bound scratch;            /* a row's bounds; owned */
    float *probs_row;             /* [E] */
    bool seen[Q3_TAP_COUNT];      /* in this layer */
    uint64_t between[Q3_TAP_COUNT]; /* of this layer, behind each tap, itself too: bit id of what
                                     * is not given */
    q3_layer_tap *earlier, *list;    /* not given, behind what this layer starts from; room for a
                                      * finding's */
    size_t earlier_count;
    told_causes told[Q3_TAP_COUNT][2]; /* by tap, and whether it is a rounding */
    double budget;                /* multiplications that searches for causes have left */
    bool past_given[2];           /* of this layer: the keys, the values that came before */
    bool past_lost;               /* in some layer they are not */
    bool *lost;                   /* [T]: of this layer: the token's probabilities hang on them */
    apart apart;
    uint64_t apart_taps;          /* of this layer: such tensors, and BEHIND_INPUT */
    q3_tap_id apart_id;           /* the last of them, and its values [T,M], owned */
    float *apart_values;
    q3_status status;
    q3_error *error;
} judging;

static void out_of_memory(judging *j)
{
    if (j->status == Q3_OK)
        j->status = q3_fail(j->error, Q3_ERROR_MEMORY, "no memory for the tensors of %zu tokens",
                            j->w.T);
}

/* Elements of a token's keys, and of its values. */
static size_t key_row(const walk *w)
{
    return w->config->num_key_value_heads * w->config->head_dim;
}

/* Whether theirs has token t's row: r->tensor's row *row. */
static bool has_row(const judging *j, const trial *r, size_t t, size_t *row)
{
    size_t own = t - j->w.past;
    if (r->tensor == NULL || (r->row_of == NULL && own < r->tensor->first)) return false;
    *row = r->row_of != NULL ? r->row_of[own] : own - r->tensor->first;
    return *row != Q3_NO_ROW;
}

static void read_row(const judging *j, const trial *r, size_t row, float *theirs)
{
    q3_backend_row(theirs, j->b, r->tensor, r->id, r->layout, r->tensor->first + row);
}

/* ==== One tensor ============================================================================== */

static void begin(judging *j, trial *r, const q3_tap *tap, bool brief)
{
    if (!q3_trial_begin(r, &j->w, j->b, tap->id, tap->layer, brief)) out_of_memory(j);
}

/* Which tokens the rows of the last norm and of logits are of: as the file says it, else as their
 * values do. */
static void find_rows(judging *j, trial *r, const own_rows *ours)
{
    const backend *b = j->b;
    size_t rows = b->T - r->tensor->first;
    bool said = b->logit_rows != NULL && rows == b->logit_count &&
                (r->id == Q3_TAP_LM_HEAD || rows < b->T);
    if (said) {
        r->row_of = malloc(b->T * sizeof *r->row_of);
        if (r->row_of != NULL) memcpy(r->row_of, b->logit_rows, b->T * sizeof *r->row_of);
    }
    bool memory = said ? r->row_of != NULL
                       : q3_match_rows(&r->row_of, &r->doubtful_rows, b, r->tensor, r->id, ours);
    if (!memory) out_of_memory(j);
    if (r->row_of == NULL) return;
    r->f.note[0] = 0;
    q3_note_rows(r->f.note, sizeof r->f.note, r->row_of, b->T,
                 said ? "of logit_positions" : "by their values");
}

/* Experts' rows in another order, if that is far closer to ours; said in the note. */
static void try_order(judging *j, trial *r, const float *ours, const float *choice,
                      const char *order)
{
    if (!q3_read_rows(&r->sorted, j->b, r->tensor, r->id, choice, ours)) out_of_memory(j);
    size_t used = strlen(r->f.note);
    if (r->sorted == NULL) return;
    snprintf(r->f.note + used, sizeof r->f.note - used, "%s%s", used > 0 ? ", " : "", order);
}

/* Of two readings of the axes the closer one; experts' rows that lie expert by expert; and those of
 * a token in an order that nobody says, as mlx-lm's argpartition leaves them; rows of logits. ours:
 * of the file's tokens. */
static void choose_reading(judging *j, trial *r, const float *ours)
{
    bool rows = q3_tap_of_experts(r->id) && r->tensor->first == 0;
    const float *choice = j->w.tap[Q3_TAP_TOPK_INDICES];
    if (rows) choice += j->w.past * j->w.config->num_experts_per_tok;
    if (q3_tap_at_head(r->id)) find_rows(j, r, &(own_rows){.values = ours});
    if (r->tensor->layouts == 2)
        r->layout = q3_closer_layout(r->theirs, j->b, r->tensor, r->id, ours);
    if (rows && r->tensor->merged)
        try_order(j, r, ours, choice, "expert by expert");
    if (rows && r->sorted == NULL && !j->w.given[Q3_TAP_TOPK_INDICES])
        try_order(j, r, ours, NULL, "a token's experts in another order");
}

/* Whether the values are those of the experts that were chosen. */
static bool depends_on_choice(q3_tap_id id)
{
    return id == Q3_TAP_TOPK_WEIGHTS || q3_tap_of_experts(id);
}

/* What the diagnosis may look at: the tensors of this layer as the walk goes on from them. Those
 * that come later are not there, nor scores and probs that were not given, which were never kept
 * whole. */
static void fill_evidence(evidence *e, const judging *j, const trial *r)
{
    const walk *w = &j->w;
    memset(e, 0, sizeof *e);
    e->config = w->config;
    e->weights = w->weights;
    e->dtype = w->dtype;
    e->T = w->T;
    e->start = w->start;
    e->past = w->past;
    e->layer = r->f.layer;
    e->ids = j->ids;
    e->input = w->input;
    e->input_var = w->input_var;
    e->uncertain = w->uncertain;
    e->accumulate = w->accumulate;
    e->operand = w->operand;
    e->partial = w->partial;
    e->router = w->router;
    e->differs = r->f.verdict != Q3_VERDICT_ROUNDING;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        e->var[i] = w->var[i];
        bool front = q3_tap_at_front((q3_tap_id)i), square = q3_tap_is_square((q3_tap_id)i);
        e->given[i] = w->given[i];
        if ((j->seen[i] || front) && i != (size_t)r->id && (!square || w->given[i]))
            e->tap[i] = w->tap[i];
    }
    e->id = r->id;
    e->first = w->past + (r->row_of != NULL ? 0 : r->tensor->first);
    e->row = r->n;
    e->ours = r->ours;
    e->theirs = r->theirs;
    e->bound = r->bound;
}

static bool is_trouble(const judging *j, const trial *r)
{
    q3_verdict verdict = r->f.verdict;
    bool wrong = verdict == Q3_VERDICT_DIFFERS || verdict == Q3_VERDICT_NON_FINITE;
    return (wrong || verdict == Q3_VERDICT_ROUNDING) && !j->options->free_running;
}

/* What it looks like: once a tap, kind of verdict and cause, as a mistake in the code stands in
 * every layer. */
static void explain(judging *j, trial *r)
{
    evidence e;
    bool rounding = r->f.verdict == Q3_VERDICT_ROUNDING;
    if (!is_trouble(j, r)) return;
    if (j->options->progress != NULL)
        j->options->progress(j->options->user, "check: looking for causes, layer", r->f.layer + 1,
                             j->end_layer);
    bool stopped = false;
    fill_evidence(&e, j, r);
    e.budget = &j->budget;
    e.stopped = &stopped;
    q3_status status = q3_diagnose(r->f.looks_like, r->f.cause, &e, &j->told[r->id][rounding],
                                   j->error);
    if (j->status == Q3_OK) j->status = status;
    if (stopped) q3_say_stopped(r->f.reason, sizeof r->f.reason);
}

/* What is not given behind a tap, from what it is computed from. */
static uint64_t behind(const judging *j, q3_tap_id id)
{
    const q3_node *node = q3_graph_node(j->w.config, id, j->w.layer);
    uint64_t taps = node->stream && j->earlier_count > 0 ? BEHIND_INPUT : 0;
    for (size_t k = 0; k < node->count; k++) taps |= j->between[node->from[k]];
    return taps;
}

/* Whether attention is between the tap and what it is computed from, or makes it. */
static bool hangs_on_attention(const judging *j, q3_tap_id id, uint64_t taps)
{
    const uint64_t attention = (uint64_t)1 << Q3_TAP_SCORES | (uint64_t)1 << Q3_TAP_PROBS |
                               (uint64_t)1 << Q3_TAP_O_PROJ_INPUT;
    bool found = ((taps | (uint64_t)1 << id) & attention) != 0;
    for (size_t i = 0; i < j->earlier_count && (taps & BEHIND_INPUT) != 0; i++)
        found = found || j->earlier[i].id == Q3_TAP_O_PROJ_INPUT;
    return found;
}

/* Those taps, with their layers, into list; returns how many. */
static size_t list_taps(const judging *j, q3_layer_tap *list, uint64_t taps, size_t layer)
{
    size_t count = (taps & BEHIND_INPUT) != 0 ? j->earlier_count : 0;
    memcpy(list, j->earlier, count * sizeof *list);
    for (size_t i = 0; i < Q3_TAP_COUNT; i++)
        if (taps >> i & 1)
            list[count++] = (q3_layer_tap){(q3_tap_id)i, q3_tap_in_layer((q3_tap_id)i) ? layer : 0};
    return count;
}

/* What is unknown of token t's row behind a tap, as a variance (MODEL.md 12.3): nothing where
 * theirs took the place of ours; and what the tap's own operator has to do with it (12.5). */
static void carry_on(judging *j, const trial *r, size_t t, bool known, const row_bound *b,
                     const float *ours, double *var_out)
{
    walk *w = &j->w;
    q3_tap_id id = r->id;
    size_t n = r->n;
    q3_dtype dtype = q3_stored_dtype(w, id);
    bool cached = (id == Q3_TAP_K_ROPE || id == Q3_TAP_V_PROJ) && j->options->kv != Q3_F32;
    bool own_asked = r->tensor == NULL && w->own_sd[id] != NULL; /* slopes.c: of what is hidden */
    if (known) memset(var_out, 0, n * sizeof *var_out);
    for (size_t i = 0; (!known || own_asked) && i < n; i++) {
        double noise = b->noise[i] / 4, x = (double)ours[i];
        double own = noise * noise + b->slack[i] * q3_ulp(x, dtype) / 6;
        /* q3_bound_values takes it from the scores */
        double before = id == Q3_TAP_PROBS ? 0 : b->var[i];
        var_out[i] = known ? 0 : before + own;
        if (!(var_out[i] <= SAYS_NOTHING)) var_out[i] = SAYS_NOTHING;
        if (!own_asked) continue;
        double cell = cached ? q3_ulp(x, j->options->kv) : 0; /* --kv may round otherwise */
        w->own_sd[id][t * n + i] = (float)q3_sqrt(own + cell * cell / 6);
        w->own_noise[id][t * n + i] = (float)b->noise[i];
    }
}

/* A row that is not given, between others that are: the diagnosis sees that nothing is said. */
static void leave_out(trial *r, size_t t, const float *ours)
{
    if (r->row_of == NULL) return;
    memcpy(r->ours + t * r->n, ours, r->n * sizeof *ours);
    memcpy(r->theirs + t * r->n, ours, r->n * sizeof *ours);
    for (size_t i = 0; i < r->n; i++) r->bound[t * r->n + i] = SAYS_NOTHING;
}

/* Nothing is known of what hangs on keys and values that came before and are not given. */
static void hide_past(const judging *j, const trial *r, size_t t, const row_bound *b)
{
    size_t past = j->w.past;
    bool all = (r->id == Q3_TAP_PROBS && j->lost[t]) ||
               (r->id == Q3_TAP_O_PROJ_INPUT && (j->lost[t] || !j->past_given[1]));
    bool some = r->id == Q3_TAP_SCORES && !j->past_given[0];
    for (size_t i = 0; (all || some) && i < r->n; i++)
        if (all || i % r->channels < past) b->var[i] = SAYS_NOTHING;
}

/* Token t's row: bounds, comparison, and theirs into ours[n] (the walk's) unless it is free.
 * var_out[n], if it is not NULL, gets what the walk does not know afterwards (MODEL.md 12.3:
 * variances carried on). */
static void trial_row(judging *j, trial *r, size_t t, float *ours, double *var_out)
{
    walk *w = &j->w;
    size_t n = r->n, row;
    row_bound b = j->scratch;
    bool given = has_row(j, r, t, &row), known = given && !j->options->free_running;
    if (!given) leave_out(r, t, ours);
    if (!given && var_out == NULL) return;
    q3_bound_row(&b, w, r->id, t, ours, n);
    if (w->no_memory) out_of_memory(j);
    hide_past(j, r, t, &b);
    for (size_t i = 0; depends_on_choice(r->id) && w->uncertain[t] && i < n; i++)
        b.var[i] = SAYS_NOTHING;
    if (given) {
        float *theirs = r->theirs + q3_trial_at(r, t);
        memcpy(r->ours + q3_trial_at(r, t), ours, n * sizeof *ours);
        if (r->sorted != NULL)
            memcpy(theirs, r->sorted + (t - w->past) * n, n * sizeof *theirs);
        else read_row(j, r, row, theirs);
        size_t low = q3_first_key(t, w->config->sliding_window);
        /* masked: theirs may hold anything */
        for (size_t i = 0; i < n && r->id == Q3_TAP_SCORES; i++)
            if (i % r->channels > t || i % r->channels < low) theirs[i] = 0.0f;
        q3_trial_row(r, w, t, &b);
        if (known) memcpy(ours, theirs, n * sizeof *ours);
    }
    if (var_out != NULL) carry_on(j, r, t, known, &b, ours, var_out);
}

/* What differs and need not be wrong: rows that may be of other tokens, and what is computed from
 * keys that came before the file and are not in it. */
static void excuse(const judging *j, trial *r, uint64_t taps)
{
    q3_finding *f = &r->f;
    const backend *b = j->b;
    bool differs = f->verdict == Q3_VERDICT_DIFFERS, unjudged = f->verdict == Q3_VERDICT_UNJUDGED;
    bool attended = hangs_on_attention(j, r->id, taps);
    bool unknown = b->past_unknown && attended && differs;
    bool lost = j->past_lost && attended && unjudged;
    if (unknown)
        snprintf(f->reason, sizeof f->reason,
                 "the run begins at position %zu, and which keys came before is not known: record "
                 "past_key_values, or metadata past",
                 b->start);
    else if (lost)
        snprintf(f->reason, sizeof f->reason,
                 "%zu keys came before the run and are not in the file: record past_key_values",
                 b->past);
    else if (differs && r->doubtful_rows)
        snprintf(f->reason, sizeof f->reason,
                 "which tokens its %zu rows are of is not known: record logit_positions",
                 b->T - r->tensor->first);
    else return;
    f->verdict = Q3_VERDICT_UNJUDGED;
    f->has_bad = false;
    f->outside = f->wrong_sets = 0;
    f->worst_count = 0;
}

/* ---- a residual kept apart ------------------------------------------------------------------- */

/* Whether theirs is the branch alone, within what is known of the branch, and by far not its sum
 * with the stream: ours[T,M], of the file's tokens. */
static bool is_branch(const judging *j, trial *r, const float *ours)
{
    const walk *w = &j->w;
    const q3_node *node = q3_graph_node(w->config, r->id, w->layer);
    if (node->op != Q3_OP_SUM || r->tensor->first > 0 || j->options->free_running) return false;
    q3_tap_id branch = node->from[node->count - 1];
    double from_sum = 0, from_branch = 0;
    for (size_t t = w->past; t < w->T; t++, ours += r->n) {
        float *theirs = r->theirs + t * r->n;
        const float *alone = w->tap[branch] + t * r->n;
        read_row(j, r, t - w->past, theirs);
        for (size_t i = 0; i < r->n; i++) {
            double x = (double)theirs[i], a = x - (double)alone[i], b = x - (double)ours[i];
            double large = x * x > (double)alone[i] * (double)alone[i] ? x : (double)alone[i];
            double bound = q3_ulp(large, w->dtype) +
                           Q3_SIGMAS * q3_sqrt(w->var[branch][t * r->n + i]);
            if (!(a <= bound && -a <= bound)) return false;
            from_branch += a * a;
            from_sum += b * b;
        }
    }
    return from_branch * 256 < from_sum;
}

/* The tensor counts as not given, so that our own sum stays. */
static void set_apart(judging *j, trial *r)
{
    const q3_node *node = q3_graph_node(j->w.config, r->id, j->w.layer);
    uint64_t behind_branch = j->between[node->from[node->count - 1]];
    /* a branch that is right was computed from the sum before */
    if (j->apart == APART_ASSUMED && (behind_branch & j->apart_taps) != 0) j->apart = APART_CERTAIN;
    if (j->apart == APART_POSSIBLE) j->apart = APART_ASSUMED;
    j->apart_taps |= (uint64_t)1 << r->id;
    j->apart_id = r->id;
    free(j->apart_values);
    j->apart_values = r->theirs;
    r->theirs = NULL;
    r->tensor = NULL;
    q3_figures_end(&r->g); /* of nothing */
    r->f.gain = 0;
    r->f.token_bins = r->f.channel_bins = 0;
    r->f.verdict = Q3_VERDICT_UNJUDGED;
    snprintf(r->f.reason, sizeof r->f.reason,
             "the residual is not in it, which is kept apart: record output + residual");
}

/* Whether a norm's output is nearer to the norm of the last branch than to that of our sum. */
static bool follows_branch(judging *j, const trial *r)
{
    walk *w = &j->w;
    const q3_node *node = q3_graph_node(w->config, r->id, w->layer);
    bool attention = r->id == Q3_TAP_POST_ATTENTION_LAYERNORM;
    if (node->op != Q3_OP_NORM || attention != (j->apart_id == Q3_TAP_POST_ATTENTION_INPUT))
        return true;
    float *y = calloc(w->T, r->n * sizeof *y);
    double from_sum = 0, from_branch = 0;
    if (y == NULL) {
        out_of_memory(j);
        return false;
    }
    q3_rmsnorm(y, j->apart_values, q3_graph_weight(node, w->weights, w->layer, 0), w->T, r->n,
               (float)w->config->rms_norm_eps, w->dtype);
    for (size_t i = w->past * r->n; i < w->T * r->n; i++) {
        double a = (double)r->theirs[i] - (double)y[i];
        double b = (double)r->theirs[i] - (double)r->ours[i];
        if (!(a * a - a * a == 0) || !(b * b - b * b == 0)) continue;
        from_branch += a * a;
        from_sum += b * b;
    }
    free(y);
    return from_branch < from_sum;
}

/* What is computed from our sum in a branch's place shows whether the other computed with the sum,
 * too. Where it did not, the walk begins again. */
static void decide_apart(judging *j, const trial *r, uint64_t taps)
{
    q3_verdict verdict = r->f.verdict;
    if (j->apart != APART_ASSUMED || (taps & j->apart_taps) == 0) return;
    if (verdict <= Q3_VERDICT_ROUNDING)
        j->apart = APART_CERTAIN;
    else if (verdict == Q3_VERDICT_DIFFERS || verdict == Q3_VERDICT_NON_FINITE)
        j->apart = follows_branch(j, r) ? APART_REFUTED : APART_CERTAIN;
    if (j->apart == APART_REFUTED && j->status == Q3_OK) j->status = Q3_ERROR_INPUT;
}

/* The verdict of a tensor all of whose rows were judged. */
static void decide(judging *j, trial *r)
{
    if (r->tensor == NULL || j->status != Q3_OK) return;
    if (!q3_trial_decide(r, &j->w)) out_of_memory(j);
}

/* Behind the verdict: what excuses it, what explains it. Writes the finding, and frees the
 * trial. */
static void trial_end(judging *j, trial *r)
{
    char name[Q3_TAP_NAME_SIZE];
    q3_finding *f = &r->f;
    q3_tap_id id = r->id;
    bool given = r->tensor != NULL;
    uint64_t taps = behind(j, id);
    j->between[id] = given && !j->options->free_running ? 0 : taps | (uint64_t)1 << id;
    j->w.given[id] = given;
    j->seen[id] = true;
    if (given && j->status == Q3_OK) {
        excuse(j, r, taps);
        decide_apart(j, r, taps);
        if (j->status == Q3_OK) explain(j, r);
        f->between = j->list;
        f->between_count = list_taps(j, j->list, taps, f->layer);
    }
    q3_tap_name(name, id, f->layer);
    f->name = name;
    f->side[0] = j->options->side;
    if (j->status == Q3_OK) q3_report_put_finding(j->lines, f);
    q3_trial_free(r);
}

/* ==== Router ================================================================================== */

/* topk_indices: a set is compared, not values (MODEL.md 12.6). A valid choice of theirs is
 * followed, so that weights and experts are judged by their ids. */
static void judge_topk(judging *j, const q3_tap *tap)
{
    trial r;
    walk *w = &j->w;
    size_t A = w->config->num_experts_per_tok, T = w->T - w->past;
    int32_t *ids = tap->data;
    begin(j, &r, tap, false);
    q3_finding *f = &r.f;
    f->margin_bins = r.tensor != NULL ? (T < Q3_PROFILE_BINS ? T : Q3_PROFILE_BINS) : 0;
    for (size_t i = 0; i < Q3_PROFILE_BINS; i++) f->margins[i] = i < f->margin_bins ? 1.0f : 0.0f;
    for (size_t t = w->past; t < w->T && j->status == Q3_OK; t++, ids += A) {
        float *own = w->tap[tap->id] + t * A;
        size_t row;
        bool given = has_row(j, &r, t, &row), doubtful;
        for (size_t a = 0; a < A; a++) own[a] = (float)ids[a];
        double distance = q3_choice_margin(w, &j->scratch, t, own, &doubtful);
        w->uncertain[t] = doubtful && !(given && !j->options->free_running);
        if (!given) continue;
        float *theirs = r.theirs + t * A;
        float *bin = &f->margins[(t - w->past) * f->margin_bins / T];
        if (distance < (double)*bin) *bin = (float)distance;
        memcpy(r.ours + t * A, own, A * sizeof *own);
        read_row(j, &r, row, theirs);
        bool follow = q3_trial_choice(&r, w, &j->scratch, t, own, theirs);
        if (!follow || j->options->free_running) continue;
        for (size_t a = 0; a < A; a++) {
            own[a] = theirs[a];
            ids[a] = (int32_t)theirs[a];
        }
    }
    decide(j, &r);
    trial_end(j, &r);
}

/* ==== The walk ================================================================================ */

static void round_all(float *values, size_t count, q3_dtype dtype)
{
    for (size_t i = 0; i < count; i++) values[i] = q3_round((double)values[i], dtype);
}

/* Keys, or values, that came before: [past,K*hd], as the cache holds them. False: they are not
 * given; then zeros. */
static bool read_past(const judging *j, size_t layer, bool values, float *rows)
{
    size_t past = j->w.past, n = key_row(&j->w);
    past_rows from = q3_past_find(j->b, layer, values);
    bool given = past == 0 || from.entry != NULL;
    for (size_t t = 0; t < past; t++) {
        if (given) q3_past_row(rows + t * n, j->b, &from, t);
        else memset(rows + t * n, 0, n * sizeof *rows);
    }
    if (j->options->kv != Q3_F32) round_all(rows, past * n, j->options->kv);
    return given;
}

/* --kv (MODEL.md 12.7): from here on keys and values are what that cache holds. Those that came
 * before join them. */
static void fill_cache(judging *j, const q3_tap *tap, size_t count)
{
    walk *w = &j->w;
    float *values = tap->data, *cache = w->tap[tap->id];
    bool second = tap->id == Q3_TAP_V_PROJ;
    if (tap->id != Q3_TAP_K_ROPE && !second) return;
    if (j->options->kv != Q3_F32) round_all(values, count, j->options->kv);
    j->past_given[second] = read_past(j, tap->layer, second, cache);
    j->past_lost = j->past_lost || !j->past_given[second];
    memcpy(cache + w->past * key_row(w), values, count * sizeof *values);
    for (size_t i = 0; i < w->past * key_row(w) + count; i++)
        if (!q3_is_finite((double)cache[i])) w->keys_broken = true;
}

/* Whether router_probs are given before they were rounded: a value that --router's dtype cannot
 * hold says so. */
static bool router_given_unrounded(judging *j, size_t layer)
{
    const backend_tensor *tensor = q3_backend_find(j->b, Q3_TAP_ROUTER_PROBS, layer);
    size_t E = j->w.config->num_experts;
    float *row = j->probs_row;
    if (tensor == NULL || tensor->layouts == 0) return false;
    for (size_t t = tensor->first; t < j->b->T; t++) {
        q3_backend_row(row, j->b, tensor, Q3_TAP_ROUTER_PROBS, 0, t);
        for (size_t e = 0; e < E; e++)
            if (row[e] != q3_round((double)row[e], j->options->router)) return true;
    }
    return false;
}

/* --router (MODEL.md 12.7): ours are rounded before they are compared, unless theirs were recorded
 * before they were. */
static void round_router(judging *j, const q3_tap *tap)
{
    if (tap->id != Q3_TAP_ROUTER_PROBS || j->options->router == Q3_F32) return;
    bool unrounded = router_given_unrounded(j, tap->layer);
    j->w.router = unrounded ? Q3_F32 : j->options->router;
    if (!unrounded) round_all(tap->data, j->b->T * j->w.config->num_experts, j->w.router);
}

/* ...and from there on they are rounded in any case: so experts are chosen, and weighted. */
static void end_router(judging *j, const q3_tap *tap)
{
    if (tap->id != Q3_TAP_ROUTER_PROBS || j->options->router == Q3_F32) return;
    size_t E = j->w.config->num_experts, count = j->b->T * E;
    j->w.router = j->options->router;
    round_all(tap->data, count, j->w.router);
    memcpy(j->w.tap[tap->id] + j->w.past * E, tap->data, count * sizeof(float));
}

/* A whole tensor [T,row]. */
static void judge_whole(judging *j, const q3_tap *tap)
{
    trial r;
    walk *w = &j->w;
    float *values = tap->data;
    bool kept = w->tap[tap->id] != NULL; /* logits are not: nothing is computed from them */
    round_router(j, tap);
    begin(j, &r, tap, false);
    if (r.tensor != NULL) choose_reading(j, &r, values);
    if (r.tensor != NULL && j->apart != APART_REFUTED && is_branch(j, &r, values))
        set_apart(j, &r);
    for (size_t t = w->past; (kept || r.tensor != NULL) && t < w->T && j->status == Q3_OK; t++)
        trial_row(j, &r, t, values + (t - w->past) * r.n,
                  kept ? w->var[tap->id] + t * r.n : NULL);
    size_t count = (w->T - w->past) * r.n;
    if (kept) memcpy(w->tap[tap->id] + w->past * r.n, values, count * sizeof *values);
    fill_cache(j, tap, count);
    end_router(j, tap);
    decide(j, &r);
    trial_end(j, &r);
}

/* Rows of a block, which takes 16 MB with its sums; blocks are as equal as can be. */
static size_t logits_at_once(const walk *w)
{
    size_t kinds = 1U + (w->accumulate != Q3_ACCUMULATE_F32) + !w->given[Q3_TAP_NORM];
    size_t row = w->config->vocab_size * (sizeof(float) + kinds * sizeof(double));
    size_t rows = ((size_t)16 << 20) / row, all = w->T - w->past;
    if (rows == 0) rows = 1;
    size_t blocks = (all + rows - 1) / rows;
    return blocks > 0 ? (all + blocks - 1) / blocks : 1;
}

/* Logits of the tokens that the file has. */
static void judge_blocks(judging *j, trial *r)
{
    walk *w = &j->w;
    size_t room = logits_at_once(w), n, row;
    float *block = malloc(room * r->n * sizeof *block);
    if (block == NULL) out_of_memory(j);
    for (size_t t = w->past; t < w->T && j->status == Q3_OK; t += n > 0 ? n : 1) {
        for (n = 0; n < room && t + n < w->T && has_row(j, r, t + n, &row);) n++;
        if (n > 0 && !q3_sums_logits(block, w, t, n)) out_of_memory(j);
        for (size_t i = 0; i < n && j->status == Q3_OK; i++)
            trial_row(j, r, t + i, block + i * r->n, NULL);
    }
    free(block);
}

/* Logits without a row kept of any token. False: they must be, for a cause, or for rows that may be
 * of tokens with equal logits. */
static bool judge_brief(judging *j, const q3_tap *tap)
{
    trial r;
    begin(j, &r, tap, true);
    own_rows own = q3_logits_own(&j->w);
    if (r.tensor != NULL) find_rows(j, &r, &own);
    judge_blocks(j, &r);
    decide(j, &r);
    bool whole = r.asks_all || r.doubtful_rows || is_trouble(j, &r);
    if (whole) q3_trial_free(&r);
    else trial_end(j, &r);
    return !whole;
}

/* Logits of all tokens may take more room than all else. */
static void judge_logits(judging *j)
{
    walk *w = &j->w;
    q3_tap tap = {.id = Q3_TAP_LM_HEAD, .dtype = w->dtype};
    const backend_tensor *tensor = q3_backend_find(j->b, tap.id, 0);
    size_t layouts = tensor != NULL ? tensor->layouts : 0;
    w->layer = 0;
    if ((layouts == 1 && judge_brief(j, &tap)) || j->status != Q3_OK) return;
    size_t T = w->T - w->past, V = w->config->vocab_size;
    float *values = tap.data = layouts > 0 ? malloc(T * V * sizeof *values) : NULL;
    if (values != NULL) q3_logits_rows(values, w, w->past, T);
    else if (layouts > 0) out_of_memory(j);
    if (j->status == Q3_OK) judge_whole(j, &tap);
    free(values);
}

/* Scores or probs of one token: [H,1,S] into a row [H,T], and back. */
static void judge_token(judging *j, const q3_tap *tap)
{
    walk *w = &j->w;
    bool probs = tap->id == Q3_TAP_PROBS;
    trial *r = probs ? &j->probs : &j->scores;
    size_t H = tap->shape[0], S = tap->shape[2], T = w->T, t = tap->first;
    float *row = probs ? w->probs : w->scores, *values = tap->data;
    if (t == w->past) begin(j, r, tap, false);
    if (j->status != Q3_OK) return;
    memset(row, 0, H * T * sizeof *row);
    for (size_t h = 0; h < H; h++) memcpy(row + h * T, values + h * S, S * sizeof *row);
    trial_row(j, r, t, row, probs ? w->probs_var : w->scores_var);
    for (size_t h = 0; h < H; h++) memcpy(values + h * S, row + h * T, S * sizeof *row);
    if (w->tap[tap->id] != NULL) memcpy(w->tap[tap->id] + t * H * T, row, H * T * sizeof *row);
    size_t at;
    bool known = has_row(j, r, t, &at) && !j->options->free_running;
    j->lost[t] = !known && (probs ? j->lost[t] : !j->past_given[0]);
    if (!probs) return;
    if (known) memset(w->scores_var, 0, H * T * sizeof *w->scores_var);
    q3_bound_values(w, t);
    if (t + 1 < T) return;
    decide(j, &j->scores);
    trial_end(j, &j->scores);
    decide(j, &j->probs);
    trial_end(j, &j->probs);
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
    j->apart_taps = (j->between[Q3_TAP_LAYER] & j->apart_taps) != 0 ? BEHIND_INPUT : 0;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++)
        if (q3_tap_in_layer((q3_tap_id)i)) j->seen[i] = false, j->between[i] = 0;
    w->keys_broken = false;
}

/* Called by q3_forward for every tensor, which may be changed: that is how theirs takes the
 * place of ours. */
static void see_tap(void *user, const q3_tap *tap)
{
    judging *j = user;
    walk *w = &j->w;
    if (j->status != Q3_OK) return;
    w->layer = tap->layer;
    if (q3_tap_is_square(tap->id))
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
        if (j->options->progress != NULL)
            j->options->progress(j->options->user, "check: layer", tap->layer + 1, j->end_layer);
    }
}

/* ==== Memory and the run ====================================================================== */

/* False: no memory. */
static bool judging_init(judging *j)
{
    walk *w = &j->w;
    const q3_config *c = w->config;
    size_t widest = 1;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        size_t n = q3_tap_row_size(c, (q3_tap_id)i, w->T);
        if (n > widest) widest = n;
    }
    j->scratch = (row_bound){calloc(widest, sizeof(double)), calloc(widest, sizeof(double)),
                             calloc(widest, sizeof(double)), 1, 1};
    j->earlier = calloc((c->num_hidden_layers + 1) * Q3_TAP_COUNT, sizeof *j->earlier);
    j->list = calloc((c->num_hidden_layers + 2) * Q3_TAP_COUNT, sizeof *j->list);
    j->lost = calloc(w->T, sizeof *j->lost);
    j->probs_row = calloc(c->num_experts + 1, sizeof(float));
    return q3_walk_memory(w, j->b) && j->scratch.slack && j->scratch.noise && j->scratch.var &&
           j->earlier && j->list && j->lost && j->probs_row;
}

static void judging_free(judging *j)
{
    for (size_t i = 0; i < Q3_TAP_COUNT; i++)
        for (size_t k = 0; k < 2; k++) q3_told_free(&j->told[i][k]);
    free(j->scratch.slack);
    free(j->scratch.noise);
    free(j->scratch.var);
    free(j->memory);
    free(j->earlier);
    free(j->list);
    free(j->ids);
    free(j->lost);
    free(j->apart_values);
    q3_trial_free(&j->scores);
    q3_trial_free(&j->probs);
    q3_walk_free(&j->w);
    free(j->probs_row);
    free(j);
}

/* Of what enters and leaves the sums (MODEL.md 12.7). */
static double unit_roundoff(q3_accumulate accumulate)
{
    switch (accumulate) {
    case Q3_ACCUMULATE_BF16: case Q3_ACCUMULATE_BF16_SUMS: return 0x1p-9;
    case Q3_ACCUMULATE_F16: case Q3_ACCUMULATE_F16_SUMS: return 0x1p-11;
    case Q3_ACCUMULATE_TF32: return 0x1p-10; /* cut off, not rounded, by some */
    case Q3_ACCUMULATE_Q8: return 0x1p-11; /* a cache in float16 rounds queries and probabilities */
    case Q3_ACCUMULATE_F32: case Q3_ACCUMULATE_FP8: default: return 0;
    }
}

static q3_status make_state(judging *j, const q3_run *whole)
{
    q3_run own = *whole, *run = &own;
    run->logit_rows = 1; /* the fewest; judge_logits has its own */
    size_t size = q3_state_size(j->w.config, run);
    j->memory = size == 0 ? NULL : malloc(size);
    if (j->memory == NULL)
        return q3_fail(j->error, Q3_ERROR_MEMORY, "no memory for a state of %zu bytes", size);
    j->state = q3_state_init(j->memory, size, j->w.config, j->w.weights, run);
    if (j->state == NULL)
        return q3_fail(j->error, Q3_ERROR_ARITHMETIC, "arithmetic: %s", q3_selftest());
    return Q3_OK;
}

/* The cache as it was before the run. */
static q3_status fill_state(judging *j, const q3_run *run)
{
    size_t count = j->w.past * key_row(&j->w);
    float *rows = calloc(2 * count + 1, sizeof *rows);
    if (rows == NULL) out_of_memory(j);
    for (size_t layer = run->first_layer; rows != NULL && layer < run->end_layer; layer++) {
        read_past(j, layer, false, rows);
        read_past(j, layer, true, rows + count);
        q3_state_fill(j->state, layer, rows, rows + count, j->w.past);
    }
    free(rows);
    return j->status;
}

/* The file's ids, behind those of what came before. */
static void copy_ids(judging *j, const int32_t *ids)
{
    if (ids == NULL) return;
    j->ids = calloc(j->w.T, sizeof *j->ids);
    if (j->ids == NULL) out_of_memory(j);
    else memcpy(j->ids + j->w.past, ids, (j->w.T - j->w.past) * sizeof *ids);
}

static q3_status run_layers(judging *j, const q3_run *run, const float *hidden)
{
    const q3_config *c = j->w.config;
    size_t T = run->chunk, M = c->hidden_size;
    q3_input input = {.count = T, .length = run->start + run->rows, .logit_rows = 0};
    j->w.scaling = q3_rope_frequencies(j->w.inv_freq, &c->rope, c->head_dim,
                                       c->max_position_embeddings, input.length);
    if (run->first_layer > 0) {
        input.hidden = hidden;
        memcpy(j->w.input + j->w.past * M, hidden, T * M * sizeof *hidden);
    } else {
        input.tokens = j->ids + j->w.past;
    }
    q3_status status = q3_forward(j->state, &input, see_tap, j, j->error);
    if (status == Q3_OK) status = j->status;
    if (status == Q3_OK && run->end_layer == c->num_hidden_layers) judge_logits(j);
    return status != Q3_OK ? status : j->status;
}

/* One walk; *again: what was assumed on the way was refuted, and the lines are worth nothing. */
static q3_status walk_once(q3_text *lines, const q3_config *config, const q3_weights *weights,
                           const q3_run *run, const backend *b, const int32_t *ids,
                           const float *hidden, const q3_judge_options *options, bool *again,
                           q3_error *error)
{
    judging *j = calloc(1, sizeof *j);
    if (j == NULL) return q3_no_memory(error, "judge");
    j->w.config = config;
    j->w.weights = weights;
    j->w.dtype = run->dtype;
    j->w.T = run->rows;
    j->w.past = run->rows - run->chunk;
    j->w.start = run->start;
    j->w.router = options->router;
    j->w.accumulate = options->accumulate;
    j->w.operand = unit_roundoff(options->accumulate);
    bool sums = options->accumulate == Q3_ACCUMULATE_BF16_SUMS ||
                options->accumulate == Q3_ACCUMULATE_F16_SUMS;
    j->w.partial = sums ? j->w.operand : 0;
    j->b = b;
    j->options = options;
    j->lines = lines;
    j->end_layer = run->end_layer;
    j->budget = q3_search_budget(config, run->rows, run->end_layer - run->first_layer);
    j->error = error;
    j->apart = *again ? APART_REFUTED : APART_POSSIBLE;
    q3_status status = make_state(j, run);
    if (status == Q3_OK && !judging_init(j)) out_of_memory(j);
    copy_ids(j, ids);
    if (status == Q3_OK && j->status == Q3_OK) status = fill_state(j, run);
    if (status == Q3_OK) status = j->status;
    if (status == Q3_OK) status = run_layers(j, run, hidden);
    *again = !*again && j->apart == APART_REFUTED;
    judging_free(j);
    return status;
}

q3_status q3_walk(q3_text *lines, const q3_config *config, const q3_weights *weights,
                  const q3_run *run, const backend *b, const int32_t *ids, const float *hidden,
                  const q3_judge_options *options, q3_error *error)
{
    size_t begin = lines->size;
    bool again = false;
    q3_status status = walk_once(lines, config, weights, run, b, ids, hidden, options, &again,
                                 error);
    if (!again) return status;
    lines->size = begin;
    return walk_once(lines, config, weights, run, b, ids, hidden, options, &again, error);
}
