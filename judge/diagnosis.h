/* diagnosis.h - what the files of the diagnosis share. Each calls only those below it:
 *
 * diagnose.c   the order in which explanations are looked for
 * mistakes.c   the list of known mistakes
 * searches.c   mistakes with a number in them that has to be found first
 * locate.c     what can be said of the difference itself
 * attempt.c    how well an explanation fits, and the best so far
 * evaluate.c   a layer's forward pass with one mistake in it
 * operators.c  the linear maps, norms and rotary embeddings of that pass */
#ifndef Q3_JUDGE_DIAGNOSIS_H
#define Q3_JUDGE_DIAGNOSIS_H

#include "judge/diagnose.h"
#include "judge/graph.h"

/* Formats below D; AWAY and CUT: ties away from zero, and truncation, as tensor cores round to TF32. */
typedef enum format { FORMAT_BF16, FORMAT_F16, FORMAT_TF32, FORMAT_TF32_AWAY, FORMAT_TF32_CUT, FORMAT_FP8 } format;

/* A wrong operator. `value` is the number in brackets. */
typedef enum mistake_kind {
    NO_MISTAKE,
    /* embedding */
    EMBED_SCALED /* (1: by a factor rounded to D) */, EMBED_ROW /* (rows further) */,
    /* table: cos and sin */
    TABLE_THETA /* (theta) */, TABLE_OFFSET /* (positions) */, TABLE_FROM_ZERO, TABLE_CONSTANT /* (position) */,
    TABLE_POSITION_FORMAT /* (format) */, TABLE_UNSCALED, TABLE_NO_FACTOR, TABLE_FACTOR /* (factor) */,
    TABLE_FREQUENCY_FORMAT /* (format) */, TABLE_FORMAT /* (format) */, TABLE_SWAPPED,
    /* rotary embedding */
    ROPE_INTERLEAVED, ROPE_INTERLEAVED_IN, ROPE_TWICE, ROPE_MISSING, ROPE_HALF, ROPE_PARTIAL, ROPE_BACKWARDS,
    ROPE_ONCE, ROPE_POSITION /* (position of all tokens) */, ROPE_NORM_AFTER,
    /* norms */
    NORM_EPS /* (eps) */, NORM_EPS_OUTSIDE, NORM_PLUS_ONE, NORM_NO_WEIGHT, NORM_OTHER_WEIGHT, NORM_BEFORE_CAST,
    NORM_CENTRED, NORM_SUM, NORM_MISSING, NORM_TWICE, NORM_VARIANCE_FORMAT /* (format) */, NORM_UNROUNDED_SUM,
    NORM_ALL_HEADS, NORM_AFTER_ROPE, NORM_ROTATED,
    /* linear maps */
    MAP_TRANSPOSED, MAP_OTHER_WEIGHT, MAP_FP8, MAP_INT8, MAP_OPERANDS /* (format) */, MAP_CAST /* (format) */,
    MAP_LOW_SUM /* (format) */, MAP_PARTS /* (count) */, MAP_TAIL /* (terms) */, MAP_TAIL_BLOCK /* (terms) */,
    MAP_NO_BIAS, MAP_BIAS_TWICE, MAP_BIAS_AFTER, MAP_NOT_ROUNDED, MAP_INTERLEAVED, MAP_STREAM,
    MAP_WEIGHTED, MAP_EXPERTS /* (see map) */,
    MAP_SOFTMAX, MAP_CAPPED /* (cap) */,
    /* attention; KEY_ and HEAD_ at the scores, at o_proj's input, or both */
    SCORE_SCALE /* (factor) */, SCORE_ONCE, SCORE_QUERY_FIRST, SCORE_CAPPED /* (cap) */, HEAD_TILED, HEAD_DIVISOR,
    CACHE_STALE, CACHE_SHIFTED, CACHE_FORMAT /* (format) */, CACHE_UNROTATED, PROB_FUTURE, PROB_STRICT,
    PROB_UNMASKED, PROB_WINDOW /* (keys) */, PROB_FORMAT /* (format) */, PROB_NO_MAXIMUM /* (format) */, PROB_SINK,
    PROB_BASE_2, VALUE_FROM_KEYS, VALUE_JOINED,
    /* residual sums */
    SUM_NO_RESIDUAL, SUM_NO_BRANCH, SUM_NORMED, SUM_DOUBLED, SUM_NOT_ROUNDED, SUM_WITHOUT_ATTENTION,
    /* router */
    ROUTER_TWICE, ROUTER_SIGMOID, ROUTER_FORMAT /* (format) */, CHOICE_LOWEST, CHOICE_GROUPS /* (groups) */,
    CHOICE_SHIFTED /* (ids) */, CHOICE_CLAMPED,
    WEIGHT_PLAIN, WEIGHT_NORMED, WEIGHT_LOGITS, WEIGHT_CHOSEN, WEIGHT_SIGMOID, WEIGHT_BY_ID, WEIGHT_REVERSED,
    WEIGHT_NOT_ROUNDED, WEIGHT_ROUNDED_FIRST, WEIGHT_LAST_REPEATED, WEIGHT_FEWER, WEIGHT_MEAN, WEIGHT_ONE,
    WEIGHT_TWICE,
    /* MLP */
    ACT_GELU, ACT_GELU_TANH, ACT_RELU, ACT_HARD, ACT_ALPHA, ACT_CLAMPED, ACT_SIGMOID_ROUNDED, UP_PLUS_ONE,
    UP_CLAMPED /* (limit) */, UP_ONCE, COMBINE_EXPERT /* (id that is missing) */, COMBINE_SLOT /* (slot missing) */
} mistake_kind;

#define TAP_BIT(id) ((uint64_t)1 << (id))

typedef struct mistake {
    uint64_t at;      /* which operators: by the taps they make */
    mistake_kind kind;
    double value;
    const size_t *map; /* MAP_EXPERTS: [E] whose weights each expert has */
} mistake;

/* One pass with one mistake, as far as e->id. */
typedef struct pass {
    const evidence *e;
    const mistake *m;
    float *made[Q3_TAP_COUNT]; /* owned; NULL: as the evidence has it */
    bool known[Q3_TAP_COUNT];  /* result[] is set */
    const float *result[Q3_TAP_COUNT];
    double work;               /* multiplications */
    bool no_memory;
} pass;

/* The tensor e->id [T, row] with the mistake in it; NULL if the mistake does not reach it, if something that it
 * needs is not known, or (pass->no_memory) without memory. Valid until pass_free. */
const float *q3_pass_run(pass *p, const evidence *e, const mistake *m);
void q3_pass_free(pass *p);

/* A tap inside a pass: recomputed if the mistake reaches it. NULL: not known. */
const float *q3_pass_get(pass *p, q3_tap_id id);
size_t q3_row_of(const evidence *e, q3_tap_id id);
bool q3_in_dense_layer(const evidence *e); /* of a layer without experts */

/* operators.c: operators of a pass; y is [T, row of id]. False: something is not known, or no memory. */
bool q3_evaluate_map(pass *p, q3_tap_id id, mistake_kind kind, float *y);
bool q3_evaluate_experts(pass *p, q3_tap_id id, mistake_kind kind, float *y);
bool q3_evaluate_norm(pass *p, q3_tap_id id, mistake_kind kind, float *y);
bool q3_evaluate_table(pass *p, q3_tap_id id, mistake_kind kind, float *y);
bool q3_evaluate_rope(pass *p, q3_tap_id id, mistake_kind kind, float *y);

double q3_to_format(double value, format f);
/* cap tanh(x / cap), rounded to D after each step, the last one left to the caller. */
double q3_softcapped(double x, double cap, q3_dtype dtype);
double q3_absolute(double x);

/* ==== One diagnosis (attempt.c) =============================================================== */

/* How well an explanation holds, worst first. PLACE: where the difference is, but not what made it. */
typedef enum strength { NOTHING, PLACE, PARTIAL, FULL } strength;

typedef struct diagnosis {
    const evidence *e;   /* bound is -1 where it says nothing; expert ids are sorted in each row */
    bool rounding;       /* ours is within the bound everywhere: a rounding stands elsewhere */
    double own_distance; /* of ours */
    strength strength;
    double distance;     /* of the best so far */
    char text[200], name[160]; /* name: of the mistake alone */
    size_t *outside[2];  /* per unit: elements that the mistake does not explain; that ours does not */
    double work;         /* that is left for further attempts */
    bool no_memory;
    mistake best;        /* that has the text, if a mistake has it */
    size_t *best_map;    /* owned: best.map */
} diagnosis;

/* Whether theirs is what an honest implementation of something whose result is `right` may give. */
bool q3_agrees(const evidence *e, size_t index, float right);
bool q3_agrees_everywhere(const evidence *e, const float *y);
/* Sum of squares in ulp of D, each element's limited. */
double q3_distance(const evidence *e, const float *y);
/* Each token's ids by value: which experts a token has decides, not their order. */
void q3_sort_ids(float *ids, size_t T, size_t A);
/* Looks whether y explains theirs, and keeps its text if it does so better than all before: then true. */
bool q3_weigh(diagnosis *d, const float *y, const char *text);
void q3_attempt_with(diagnosis *d, const mistake *m, const char *text);
void q3_attempt(diagnosis *d, uint64_t at, mistake_kind kind, double value, const char *text, ...) Q3_PRINTF(5, 6);

void q3_try_mistakes(diagnosis *d); /* mistakes.c */

/* searches.c: mistakes with a number or a choice in them that has to be found first. */
void q3_search_positions(diagnosis *d);
void q3_search_theta(diagnosis *d);
void q3_search_eps(diagnosis *d);
void q3_search_limit(diagnosis *d);
void q3_search_experts(diagnosis *d);
void q3_search_hidden_experts(diagnosis *d);
void q3_search_missing(diagnosis *d);

/* locate.c: what can be said of the difference itself: which channels, tokens, experts, and by which factor. */
void q3_locate(diagnosis *d);

#endif
