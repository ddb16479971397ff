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

typedef struct judging {
    walk w;
    const backend *b;
    const q3_judge_options *options;
    q3_text *lines;
    const int32_t *ids;
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
    q3_status status;
    q3_error *error;
} judging;

static void out_of_memory(judging *j)
{
    if (j->status == Q3_OK)
        j->status = q3_fail(j->error, Q3_ERROR_MEMORY, "no memory for the tensors of %zu tokens",
                            j->w.T);
}

/* ==== One tensor ============================================================================== */

static void begin(judging *j, trial *r, const q3_tap *tap)
{
    if (!q3_trial_begin(r, &j->w, j->b, tap->id, tap->layer)) out_of_memory(j);
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
 * a token in an order that nobody says, as mlx-lm's argpartition leaves them. */
static void choose_reading(judging *j, trial *r, const float *ours)
{
    bool rows = q3_tap_of_experts(r->id) && r->tensor->first == 0;
    if (r->tensor->layouts == 2)
        r->layout = q3_closer_layout(r->theirs, j->b, r->tensor, r->id, ours);
    if (rows && r->tensor->merged)
        try_order(j, r, ours, j->w.tap[Q3_TAP_TOPK_INDICES], "expert by expert");
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
    e->layer = r->f.layer;
    e->ids = j->ids;
    e->input = w->input;
    e->input_var = w->input_var;
    e->uncertain = w->uncertain;
    e->operand = w->operand;
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
    e->first = r->tensor->first;
    e->row = r->n;
    e->ours = r->ours;
    e->theirs = r->theirs;
    e->bound = r->bound;
}

/* What it looks like: once a tap, kind of verdict and cause, as a mistake in the code stands in
 * every layer. */
static void explain(judging *j, trial *r)
{
    evidence e;
    bool rounding = r->f.verdict == Q3_VERDICT_ROUNDING;
    bool trouble = rounding || r->f.verdict == Q3_VERDICT_DIFFERS ||
                   r->f.verdict == Q3_VERDICT_NON_FINITE;
    if (!trouble || j->options->free_running) return;
    fill_evidence(&e, j, r);
    q3_status status = q3_diagnose(r->f.looks_like, r->f.cause, &e, &j->told[r->id][rounding],
                                   j->error);
    if (j->status == Q3_OK) j->status = status;
}

/* What is not given behind a tap, from what it is computed from. */
static uint64_t behind(const judging *j, q3_tap_id id)
{
    const q3_node *node = q3_graph_node(j->w.config, id, j->w.layer);
    uint64_t taps = node->stream && j->earlier_count > 0 ? BEHIND_INPUT : 0;
    for (size_t k = 0; k < node->count; k++) taps |= j->between[node->from[k]];
    return taps;
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
static void carry_on(judging *j, q3_tap_id id, size_t t, bool known, const row_bound *b,
                     const float *ours, size_t n, double *var_out)
{
    walk *w = &j->w;
    bool cached = (id == Q3_TAP_K_ROPE || id == Q3_TAP_V_PROJ) && j->options->kv != Q3_F32;
    for (size_t i = 0; i < n; i++) {
        double noise = b->noise[i] / 4, x = (double)ours[i];
        double own = noise * noise + b->slack[i] * q3_ulp(x, q3_stored_dtype(w, id)) / 6;
        /* q3_bound_values takes it from the scores */
        double before = id == Q3_TAP_PROBS ? 0 : b->var[i];
        var_out[i] = known ? 0 : before + own;
        if (!(var_out[i] <= SAYS_NOTHING)) var_out[i] = SAYS_NOTHING;
        if (w->own_sd[id] == NULL) continue;
        double cell = cached ? q3_ulp(x, j->options->kv) : 0; /* --kv may round otherwise */
        w->own_sd[id][t * n + i] = (float)q3_sqrt(own + cell * cell / 6);
        w->own_noise[id][t * n + i] = (float)b->noise[i];
    }
}

/* Token t's row: bounds, comparison, and theirs into ours[n] (the walk's) unless it is free.
 * var_out[n], if it is not NULL, gets what the walk does not know afterwards (MODEL.md 12.3:
 * variances carried on). */
static void trial_row(judging *j, trial *r, size_t t, float *ours, double *var_out)
{
    walk *w = &j->w;
    size_t n = r->n;
    row_bound b = j->scratch;
    bool given = r->tensor != NULL && t >= r->tensor->first,
         known = given && !j->options->free_running;
    q3_bound_row(&b, w, r->id, t, ours, n);
    for (size_t i = 0; depends_on_choice(r->id) && w->uncertain[t] && i < n; i++)
        b.var[i] = SAYS_NOTHING;
    if (given) {
        float *theirs = r->theirs + t * n;
        memcpy(r->ours + t * n, ours, n * sizeof *ours);
        if (r->sorted != NULL) memcpy(theirs, r->sorted + t * n, n * sizeof *theirs);
        else q3_backend_row(theirs, j->b, r->tensor, r->id, r->layout, t);
        size_t low = q3_first_key(t, w->config->sliding_window);
        /* masked: theirs may hold anything */
        for (size_t i = 0; i < n && r->id == Q3_TAP_SCORES; i++)
            if (i % r->channels > t || i % r->channels < low) theirs[i] = 0.0f;
        q3_trial_row(r, w, t, &b);
        if (known) memcpy(ours, theirs, n * sizeof *ours);
    }
    if (var_out != NULL) carry_on(j, r->id, t, known, &b, ours, n, var_out);
}

/* The verdict of a tensor all of whose rows were judged; writes the finding, and frees the
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
        if (!q3_trial_decide(r, &j->w)) out_of_memory(j);
        explain(j, r);
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
    size_t A = w->config->num_experts_per_tok, T = w->T;
    int32_t *ids = tap->data;
    begin(j, &r, tap);
    q3_finding *f = &r.f;
    f->margin_bins = r.tensor != NULL ? (T < Q3_PROFILE_BINS ? T : Q3_PROFILE_BINS) : 0;
    for (size_t i = 0; i < Q3_PROFILE_BINS; i++) f->margins[i] = i < f->margin_bins ? 1.0f : 0.0f;
    for (size_t t = 0; t < T && j->status == Q3_OK; t++) {
        float *own = w->tap[tap->id] + t * A;
        bool given = r.tensor != NULL && t >= r.tensor->first, doubtful;
        for (size_t a = 0; a < A; a++) own[a] = (float)ids[t * A + a];
        double distance = q3_choice_margin(w, &j->scratch, t, own, &doubtful);
        w->uncertain[t] = doubtful && !(given && !j->options->free_running);
        if (!given) continue;
        float *theirs = r.theirs + t * A, *bin = &f->margins[t * f->margin_bins / T];
        if (distance < (double)*bin) *bin = (float)distance;
        memcpy(r.ours + t * A, own, A * sizeof *own);
        q3_backend_row(theirs, j->b, r.tensor, tap->id, r.layout, t);
        bool follow = q3_trial_choice(&r, w, &j->scratch, t, own, theirs);
        if (!follow || j->options->free_running) continue;
        for (size_t a = 0; a < A; a++) {
            own[a] = theirs[a];
            ids[t * A + a] = (int32_t)theirs[a];
        }
    }
    trial_end(j, &r);
}

/* ==== The walk ================================================================================ */

/* --kv (MODEL.md 12.7): from here on keys and values are what that cache holds. */
static void round_cache(judging *j, const q3_tap *tap, size_t count)
{
    float *values = tap->data;
    bool cached = tap->id == Q3_TAP_K_ROPE || tap->id == Q3_TAP_V_PROJ;
    for (size_t i = 0; cached && i < count; i++) {
        if (j->options->kv != Q3_F32) values[i] = q3_round((double)values[i], j->options->kv);
        if (!q3_is_finite((double)values[i])) j->w.keys_broken = true;
    }
    if (cached) memcpy(j->w.tap[tap->id], values, count * sizeof *values);
}

static void round_all(float *values, size_t count, q3_dtype dtype)
{
    for (size_t i = 0; i < count; i++) values[i] = q3_round((double)values[i], dtype);
}

/* Whether router_probs are given before they were rounded: a value that --router's dtype cannot
 * hold says so. */
static bool router_given_unrounded(judging *j, size_t layer)
{
    const backend_tensor *tensor = q3_backend_find(j->b, Q3_TAP_ROUTER_PROBS, layer);
    size_t E = j->w.config->num_experts;
    float *row = j->probs_row;
    if (tensor == NULL || tensor->layouts == 0) return false;
    for (size_t t = tensor->first; t < j->w.T; t++) {
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
    if (!unrounded) round_all(tap->data, j->w.T * j->w.config->num_experts, j->w.router);
}

/* ...and from there on they are rounded in any case: so experts are chosen, and weighted. */
static void end_router(judging *j, const q3_tap *tap)
{
    if (tap->id != Q3_TAP_ROUTER_PROBS || j->options->router == Q3_F32) return;
    size_t count = j->w.T * j->w.config->num_experts;
    j->w.router = j->options->router;
    round_all(tap->data, count, j->w.router);
    memcpy(j->w.tap[tap->id], tap->data, count * sizeof(float));
}

/* A whole tensor [T,row]. */
static void judge_whole(judging *j, const q3_tap *tap)
{
    trial r;
    walk *w = &j->w;
    float *values = tap->data;
    bool kept = w->tap[tap->id] != NULL; /* lm_head is not: nothing is computed from it */
    round_router(j, tap);
    begin(j, &r, tap);
    if (r.tensor != NULL) choose_reading(j, &r, values);
    for (size_t t = 0; t < w->T && j->status == Q3_OK; t++)
        trial_row(j, &r, t, values + t * r.n, kept ? w->var[tap->id] + t * r.n : NULL);
    size_t count = w->T * r.n;
    if (kept) memcpy(w->tap[tap->id], values, count * sizeof *values);
    round_cache(j, tap, count);
    end_router(j, tap);
    trial_end(j, &r);
}

/* Scores or probs of one token: [H,1,S] into a row [H,T], and back. */
static void judge_token(judging *j, const q3_tap *tap)
{
    walk *w = &j->w;
    bool probs = tap->id == Q3_TAP_PROBS;
    trial *r = probs ? &j->probs : &j->scores;
    size_t H = tap->shape[0], S = tap->shape[2], T = w->T, t = tap->first;
    float *row = probs ? w->probs : w->scores, *values = tap->data;
    if (t == 0) begin(j, r, tap);
    if (j->status != Q3_OK) return;
    memset(row, 0, H * T * sizeof *row);
    for (size_t h = 0; h < H; h++) memcpy(row + h * T, values + h * S, S * sizeof *row);
    trial_row(j, r, t, row, probs ? w->probs_var : w->scores_var);
    for (size_t h = 0; h < H; h++) memcpy(values + h * S, row + h * T, S * sizeof *row);
    if (w->tap[tap->id] != NULL) memcpy(w->tap[tap->id] + t * H * T, row, H * T * sizeof *row);
    if (!probs) return;
    bool known = r->tensor != NULL && t >= r->tensor->first && !j->options->free_running;
    if (known) memset(w->scores_var, 0, H * T * sizeof *w->scores_var);
    q3_bound_values(w, t);
    if (t + 1 < T) return;
    trial_end(j, &j->scores);
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

/* Room for a row of any weight. */
static size_t longest_sum(const q3_config *c)
{
    size_t most = c->hidden_size, inner = c->num_attention_heads * c->head_dim;
    if (inner > most) most = inner;
    if (c->intermediate_size > most) most = c->intermediate_size;
    return c->moe_intermediate_size > most ? c->moe_intermediate_size : most;
}

/* All memory of the walk, in proportion to T. Scores and probs, which grow with T^2, are kept only
 * where the other implementation gave them. False: no memory. */
static bool judging_init(judging *j)
{
    walk *w = &j->w;
    const q3_config *c = w->config;
    size_t T = w->T, H = c->num_attention_heads, widest = 1;
    size_t inner = H * c->head_dim, M = c->hidden_size;
    bool good = true;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        q3_tap_id id = (q3_tap_id)i;
        bool square = q3_tap_is_square(id), wanted = id != Q3_TAP_LM_HEAD && !square;
        size_t n = q3_tap_row_size(c, id, T);
        if (n > widest) widest = n;
        for (size_t l = 0; square && l < c->num_hidden_layers; l++)
            wanted = wanted || q3_backend_find(j->b, id, l) != NULL;
        if (!wanted || n == 0) continue;
        w->tap[i] = calloc(T, n * sizeof *w->tap[i]);
        good = good && w->tap[i] != NULL;
        if (square) continue;
        w->var[i] = calloc(T, n * sizeof *w->var[i]);
        w->own_sd[i] = calloc(T, n * sizeof *w->own_sd[i]);
        w->own_noise[i] = calloc(T, n * sizeof *w->own_noise[i]);
        good = good && w->var[i] != NULL && w->own_sd[i] != NULL && w->own_noise[i] != NULL;
    }
    j->scratch = (row_bound){calloc(widest, sizeof(double)), calloc(widest, sizeof(double)),
                             calloc(widest, sizeof(double)), 1, 1};
    good = good && j->scratch.slack != NULL && j->scratch.noise != NULL && j->scratch.var != NULL;
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
    j->probs_row = calloc(c->num_experts + 1, sizeof(float));
    return good && w->inv_freq && w->input && w->input_var && w->uncertain && w->scores &&
           w->probs && w->scores_var && w->probs_var && w->values_noise && w->values_var &&
           w->weight_row && j->probs_row;
}

static void judging_free(judging *j)
{
    walk *w = &j->w;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        free(w->tap[i]);
        free(w->var[i]);
        for (size_t k = 0; k < 2; k++) q3_told_free(&j->told[i][k]);
        free(w->own_sd[i]);
        free(w->own_noise[i]);
    }
    free(j->scratch.slack);
    free(j->scratch.noise);
    free(j->scratch.var);
    free(j->memory);
    free(j->earlier);
    free(j->list);
    q3_trial_free(&j->scores);
    q3_trial_free(&j->probs);
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
    free(j->probs_row);
    free(j);
}

/* Of what enters and leaves the sums (MODEL.md 12.7). */
static double unit_roundoff(q3_accumulate accumulate)
{
    switch (accumulate) {
    case Q3_ACCUMULATE_BF16: return 0x1p-9;
    case Q3_ACCUMULATE_F16: return 0x1p-11;
    case Q3_ACCUMULATE_TF32: return 0x1p-10; /* cut off, not rounded, by some */
    case Q3_ACCUMULATE_F32: default: return 0;
    }
}

static q3_status make_state(judging *j, const q3_run *run)
{
    size_t size = q3_state_size(j->w.config, run);
    j->memory = size == 0 ? NULL : malloc(size);
    if (j->memory == NULL)
        return q3_fail(j->error, Q3_ERROR_MEMORY, "no memory for a state of %zu bytes", size);
    j->state = q3_state_init(j->memory, size, j->w.config, j->w.weights, run);
    if (j->state == NULL)
        return q3_fail(j->error, Q3_ERROR_ARITHMETIC, "arithmetic: %s", q3_selftest());
    return Q3_OK;
}

static q3_status run_layers(judging *j, const q3_run *run, const float *hidden)
{
    const q3_config *c = j->w.config;
    q3_input input = {
        .count = run->rows, .length = run->start + run->rows, .logit_rows = run->rows};
    j->w.scaling = q3_rope_frequencies(j->w.inv_freq, &c->rope, c->head_dim,
                                       c->max_position_embeddings, input.length);
    if (run->first_layer > 0) {
        input.hidden = hidden;
        memcpy(j->w.input, hidden, run->rows * c->hidden_size * sizeof *hidden);
    } else {
        input.tokens = j->ids;
    }
    q3_status status = q3_forward(j->state, &input, see_tap, j, j->error);
    return status != Q3_OK ? status : j->status;
}

q3_status q3_walk(q3_text *lines, const q3_config *config, const q3_weights *weights,
                  const q3_run *run, const backend *b, const int32_t *ids, const float *hidden,
                  const q3_judge_options *options, q3_error *error)
{
    judging *j = calloc(1, sizeof *j);
    if (j == NULL) return q3_no_memory(error, "judge");
    j->w.config = config;
    j->w.weights = weights;
    j->w.dtype = run->dtype;
    j->w.T = run->rows;
    j->w.start = run->start;
    j->w.router = options->router;
    j->w.operand = unit_roundoff(options->accumulate);
    j->b = b;
    j->options = options;
    j->lines = lines;
    j->ids = ids;
    j->end_layer = run->end_layer;
    j->error = error;
    q3_status status = make_state(j, run);
    if (status == Q3_OK && !judging_init(j)) out_of_memory(j);
    if (status == Q3_OK) status = j->status;
    if (status == Q3_OK) status = run_layers(j, run, hidden);
    judging_free(j);
    return status;
}
