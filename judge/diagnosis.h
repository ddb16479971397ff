/* SPDX-License-Identifier: MIT */
/* diagnosis.h - what the files of the diagnosis share. Each calls only those below it:
 *
 * diagnose.c   the order in which explanations are looked for
 * mistakes.c   the list of known mistakes: a row each
 * searches.c, search_counts.c   mistakes with a number in them that has to be found first
 * search_declared.c   sums that a declaration would allow
 * locate.c     what can be said of the difference itself
 * attempt.c    how well an explanation fits, and the best so far
 * evaluate.c, attend.c   a layer's forward pass with one mistake in it
 * margins.c    how far from it an honest implementation of the mistake may be
 * edits.c      what an edit makes of values
 * activations.c   how backends quantise the activations of a quantised weight
 * roundings.c  mistakes inside an operator's rounding */
#ifndef Q3_JUDGE_DIAGNOSIS_H
#define Q3_JUDGE_DIAGNOSIS_H

#include "host/taps.h"
#include "judge/diagnose.h"
#include "judge/graph.h"

/* ==== A mistake =============================================================================== */

/* Formats below D. AWAY: ties away from zero, as tensor cores round to TF32; CUT: the bits behind
 * the last are cut off. */
typedef enum format {
    FORMAT_BF16, FORMAT_F16, FORMAT_TF32, FORMAT_TF32_AWAY, FORMAT_TF32_CUT, FORMAT_FP8,
    FORMAT_BF16_CUT, FORMAT_F16_CUT
} format;

/* What of an operator is edited: an argument (in the order of graph.h, the stream before all),
 * its weight, its bias, a parameter, its result; or the roundings inside it. */
typedef enum part { NO_PART, ARG_1, ARG_2, ARG_3, WEIGHT, BIAS, PARAMETER, RESULT, ROUNDING } part;

/* How it is edited. (v): by the mistake's value; (tap): by the edit's tap. */
typedef enum change {
    NO_CHANGE,
    /* Arguments and results. Where the operator is that of the keys, or a dense MLP's, `tap` means
     * its counterpart. READ_PAST jumps over the argument, which must not have been given; THROUGH:
     * that operator, too. */
    READ /* (tap) */, READ_PAST /* (tap) */, THROUGH /* (tap) */, AGAIN, SKIPPED, UNROUNDED,
    /* Element by element; rounded to D. WITHIN: at most so far from 0; CAPPED: v tanh(x / v). */
    TIMES /* (v) */, PLUS /* (v) */, AT_MOST /* (v) */, WITHIN /* (v) */, AT_LEAST_0,
    FILL /* (v) */,
    SQUARED, ROUNDED /* (v: format) */, CAPPED /* (v) */,
    SIGMOID, GELU, GELU_TANH, RELU, HARD_SWISH, ALPHA_SIGMOID,
    /* Rows that meet a quantised weight: in groups that share a scale, v: of so many, 0: as the
     * weight's format says */
    GROUPED_FP8 /* (v) */, GROUPED_FP8_POWERS /* (v) */, GROUPED_Q8 /* (v) */,
    OFF_SQUARED /* the square of how far off they may be; v: as declared */,
    STORED /* (v: format): where a fused kernel stores it; what lies between is not rounded */,
    /* Rows: of heads, of terms of a sum, of slots, of experts */
    FROM_PAIRS, TO_PAIRS, UPPER_KEPT, TRANSPOSED,
    NO_TAIL /* (v: terms) */, NO_TAIL_BLOCK /* (v: terms) */, FIRST_TERMS /* (v) */,
    REVERSED, BY_ID, BY_RANK, LAST_REPEATED, NO_SLOT /* (v) */, NO_EXPERT /* (v: id) */,
    NO_LAST_CHOSEN, BEST_GROUPS /* (v: groups) */, SHIFTED /* (v) */, WEIGHTED,
    /* An expert's slots beyond so many are 0: counted token by token, or rank by rank */
    CAPACITY /* (v) */, CAPACITY_BY_RANK /* (v) */,
    /* Keys and values as they are read */
    HEADS_TILED, HEADS_DIVIDED, STALE, ROW_BEFORE,
    /* Weights and biases */
    PARTNERS, INTERLEAVED, PERMUTED /* by map */, FP8_SCALED, INT8_SCALED, MISSING,
    BY_CHANNEL /* [heads,hd] as [hd,heads] */, BY_HEAD /* the other way round */,
    /* Parameters */
    THETA /* (v) */, FACTOR /* (v) */, UNSCALED, NO_ATTENTION_FACTOR, FREQUENCIES /* (v: format) */,
    RAMP_INVERTED /* (v: without the attention factor, too) */,
    FIRST_POSITION /* (v) */, ONE_POSITION /* (v) */, POSITIONS /* (v: format) */, HALF_WIDTH,
    EPS /* (v) */, ALL_HEADS, ONE_MORE_KEY, ONE_KEY_LESS, ALL_KEYS, WINDOW /* (v: keys) */,
    RENORMALISED /* (v: or not) */,
    /* Roundings inside: roundings.c */
    LOW_SUM /* (v: format) */, PARTS /* (v: count) */, BIAS_LATER, CAST /* (v: format) */,
    EPS_OUTSIDE, CAST_LAST, CENTRED, SUM_OF_SQUARES, VARIANCE /* (v: format) */,
    SQUARES /* (v: format) */, LOW_NORM /* (v: format) */, LOW_ROOT /* (v: format) */,
    UNROUNDED_SUM,
    ONCE, COS_FUSED, SIN_FUSED, SCALE /* (v: factor) */, QUERY_FIRST, LOW_SOFTMAX /* (v: format) */,
    NO_MAXIMUM /* (v: format) */, LOGSUMEXP /* (v: format) */, LOGSUMEXP_ONCE /* (v: format) */,
    SINK, BASE_2, ROUNDED_FIRST, SLOTS_SUMMED, SIGMOID_ROUNDED
} change;

typedef struct edit {
    part at;
    change what;
    q3_tap_id tap;
} edit;

#define STREAM Q3_TAP_COUNT /* as a tap to be read: what the layer (the final norm) starts from */
#define EDITS 3 /* of one mistake at most */
#define TAP_BIT(id) ((uint64_t)1 << (id))

/* The right graph, edited. */
typedef struct mistake {
    uint64_t at;       /* whose operators, by the taps they make */
    edit edits[EDITS];
    double value;
    double carry;      /* ulp that its further roundings may add to the operator's bound */
    const size_t *map; /* PERMUTED: [E] whose weights each expert has */
    const char *cause; /* its name without its place; NULL: the text that it is tried with */
    bool allowed;      /* a rounding that MODEL.md 12.2 lets anyone leave out: no difference */
} mistake;

/* ==== What an edit makes of values (edits.c) ================================================== */

double q3_absolute(double x);
double q3_to_format(double value, format f);
format q3_format_in(double value);
/* One element: TIMES to ALPHA_SIGMOID, not yet rounded; D is what steps on the way are rounded
 * to. */
double q3_altered(double x, change what, double value, q3_dtype dtype);
/* x[rows,n], in place, rounded to D. copy: room for a row. ids: of the chosen experts, for what
 * asks for them. */
void q3_alter(float *x, float *copy, size_t rows, size_t n, change what, double value,
              q3_dtype dtype, const q3_config *config, const float *ids);
/* Whether a sum of K terms can lose this tail, and keep something; true for all other changes. */
bool q3_can_alter(change what, double value, size_t K);

/* ==== Mistakes inside an operator's rounding (roundings.c) ==================================== */

/* One element of a linear map. */
float q3_rounding_sum(const float *w, const float *x, size_t K, double bias, change what,
                      double value, q3_dtype dtype);
/* A weight's row quantised; most: the tensor's largest value. */
void q3_rounding_weight(float *row, size_t K, double most, change what, q3_dtype dtype);
/* y[rows,n]; branch: what was added to x before its rounding, or NULL. */
void q3_rounding_norm(float *y, const float *x, const float *branch, const float *weight,
                      size_t rows, size_t n, double eps, change what, double value, q3_dtype dtype);
void q3_rounding_rope(float *y, const float *x, const float *cos, const float *sin, size_t T,
                      size_t heads, size_t hd, change what, q3_dtype dtype);
/* One token: scores[H,n] of q[H,hd] and k[n,K,hd]; probs of scores[H,n], in place, also those of
 * the router, whose rows are tokens. */
void q3_rounding_scores(float *scores, const float *q, const float *k, size_t H, size_t K,
                        size_t hd, size_t n, change what, double value, q3_dtype dtype);
void q3_rounding_probs(float *scores, double *scratch, size_t H, size_t n, change what,
                       double value, q3_dtype dtype);
/* One token's routing weights[A]. */
void q3_rounding_weights(float *weights, const float *probs, const float *ids, size_t A,
                         bool normed, change what, q3_dtype dtype);
/* silu of x, and silu of a times b: y[n]. */
void q3_rounding_silu(float *y, const float *x, size_t n, q3_dtype dtype);
void q3_rounding_product(float *y, const float *a, const float *b, size_t n, q3_dtype dtype);

/* ==== Quantised activations (activations.c) =================================================== */

typedef enum quantised { NOT_QUANTISED, QUANTISED_FP8, QUANTISED_BLOCKS } quantised;
/* What the weights are that the tensor in question may be computed from. */
quantised q3_format_of_weights(const evidence *e);
/* x[K] as a backend makes it for this weight (GROUPED_FP8 to OFF_SQUARED). As it is, or 0 for
 * OFF_SQUARED, where the weight's format is another. */
void q3_quantise_activations(float *x, size_t K, q3_tensor weight, change what, double value);

/* ==== Bounds of a mistaken operator (margins.c) =============================================== */

/* What bounds.c reads, as the mistake has it. */
typedef struct margin {
    walk w;
    q3_config config;   /* and its weights: copies, of which one parameter may be another */
    q3_weights weights;
    q3_layer *layers;   /* owned, as all that follows and what w has for rows */
    q3_mlp *experts;    /* of the layer */
    row_bound b;
    double *none;       /* zeros: the variance of what is known */
    const bool *uncertain;
} margin;

margin *q3_margin_new(const evidence *e); /* NULL: no memory */
void q3_margin_free(margin *g);           /* NULL is allowed */
/* Everything as the right operator has it; then its arguments (the stream, or of that tap; var
 * NULL: 0) and its weight are put in. */
void q3_margin_begin(margin *g, const evidence *e);
void q3_margin_input(margin *g, bool stream, q3_tap_id id, const float *x, const double *var);
void q3_margin_weight(margin *g, const q3_node *node, size_t expert, q3_tensor weight);
/* Token t's row y[n]: if it is the last how far theirs may be, else its variance. */
void q3_margin_row(margin *g, q3_tap_id id, size_t t, const float *y, double *out, size_t n,
                   bool last);
/* reach[rows,n] of `before` becomes that of `after`, which q3_alter made of it. False: no
 * memory. */
bool q3_margin_alter(const float *before, const float *after, double *reach, size_t rows, size_t n,
                     change what, double value, q3_dtype dtype, const q3_config *config,
                     const float *ids, bool last);

/* ==== The pass (evaluate.c) =================================================================== */

/* Some channels of a linear map, spread over those that are wrong: a mistake that does not explain
 * these is dropped before the others are computed. */
#define SAMPLE 24
typedef struct sample {
    size_t channel[SAMPLE], count; /* count 0: the map is small enough to be computed whole */
} sample;

/* One pass with one mistake, as far as e->id. */
typedef struct pass {
    const evidence *e;
    const mistake *m;
    float *made[Q3_TAP_COUNT]; /* owned; NULL: as the evidence has it */
    margin *margin;            /* owned; NULL: without bounds */
    double *doubt[Q3_TAP_COUNT]; /* of what is made: variances; of e->id bounds; owned */
    bool known[Q3_TAP_COUNT];  /* result[] is set */
    const sample *only;        /* of e->id's linear map: its other channels stay 0; NULL: all */
    const float *result[Q3_TAP_COUNT];
    double work;               /* multiplications */
    bool no_memory;
} pass;

/* The tensor e->id [T, row] with the mistake in it; NULL if the mistake does not reach it, if
 * something that it needs is not known, or (pass->no_memory) without memory. Valid until
 * q3_pass_free. */
const float *q3_pass_run(pass *p, const evidence *e, const mistake *m);
/* The same of these channels alone. */
const float *q3_pass_sample(pass *p, const evidence *e, const mistake *m, const sample *only);
/* Multiplications of a node's operator. */
double q3_work_of(const evidence *e, const q3_node *node);
/* Of the same: how far an honest implementation of the mistake may be from it, element by element.
 * It is computed once more. NULL: no memory. */
const double *q3_pass_bound(pass *p);
void q3_pass_free(pass *p);
bool q3_in_dense_layer(const evidence *e); /* of a layer without experts */

/* ==== One diagnosis (attempt.c) =============================================================== */

/* How well an explanation holds, worst first. PLACE: where the difference is, but not what made
 * it. */
typedef enum strength { NOTHING, PLACE, PARTIAL, FULL } strength;

typedef struct diagnosis {
    const evidence *e;   /* bound is -1 where it says nothing; expert ids are sorted in each row */
    bool rounding;       /* ours is within the bound everywhere: a rounding stands elsewhere */
    double own_distance; /* of ours */
    strength strength;
    double distance;     /* of the best so far */
    char text[200], name[160]; /* name: of the mistake alone */
    char cause[160];     /* without its place */
    bool by_mistake;     /* best has the text */
    /* per unit: elements that the mistake does not explain; that ours does not */
    size_t *outside[2];
    double work;         /* that is left for further attempts */
    bool stopped;        /* some were left out */
    sample some;         /* of e->id on its tokens */
    bool no_memory;
    mistake best;
    size_t *best_map;    /* owned: best.map */
    struct plan *plan;   /* while q3_try_mistakes runs */
} diagnosis;

/* Chooses d->some for d->e. */
void q3_choose_sample(diagnosis *d);
/* The file's number of a token: those that came before it have none. */
size_t q3_own_token(const evidence *e, size_t t);
/* Whether theirs is what an honest implementation of something whose result is `right` may give. */
bool q3_agrees(const evidence *e, size_t index, float right);
bool q3_agrees_everywhere(const evidence *e, const float *y);
/* Sum of squares in ulp of D, each element's limited. */
double q3_distance(const evidence *e, const float *y);
/* Each token's ids by value: which experts a token has decides, not their order. */
void q3_sort_ids(float *ids, size_t T, size_t A);
/* Looks whether y explains theirs, and keeps its text if it does so better than all before: then
 * true. */
bool q3_weigh(diagnosis *d, const float *y, const char *text);
/* cause: the text without its place and its numbers. */
bool q3_weigh_as(diagnosis *d, const float *y, const char *text, const char *cause);
/* Computes the mistake and weighs it. */
void q3_attempt(diagnosis *d, const mistake *m, const char *text);
/* The same of one that explained something before, and no better one did: though the budget is
 * spent. */
void q3_attempt_again(diagnosis *d, const mistake *m, const char *text);


/* mistakes.c: every known mistake, the cheapest first; of those that explain theirs the one that
 * q3_weigh would keep in the order of the list. */
void q3_try_mistakes(diagnosis *d);

/* searches.c: mistakes with a number or a choice in them that has to be found first. */
void q3_search_positions(diagnosis *d);
void q3_search_theta(diagnosis *d);
void q3_search_eps(diagnosis *d);
void q3_search_limit(diagnosis *d);
void q3_search_experts(diagnosis *d);
void q3_search_hidden_experts(diagnosis *d);
void q3_search_missing(diagnosis *d);

/* search_counts.c: those whose number shows in which tokens are wrong. */
void q3_search_window(diagnosis *d);
void q3_search_capacity(diagnosis *d);
void q3_search_pairs(diagnosis *d);

/* search_declared.c: sums that a declaration would allow. */
void q3_search_declared(diagnosis *d);

/* locate.c: what can be said of the difference itself: which channels, tokens, experts, and by
 * which factor. */
void q3_locate(diagnosis *d);

#endif
