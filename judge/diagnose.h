/* diagnose.h - what the files of the diagnosis share.
 *
 * diagnose.c  which mistake explains a tensor, and how well
 * suspects.c  the list of known mistakes
 * mistakes.c  a layer's forward pass with one mistake in it
 * slips.c     the linear maps, norms and rotary embeddings of that pass
 * searches.c  mistakes with a number in them that has to be found first
 * patterns.c  what can be said of the difference itself */
#ifndef Q3_DIAGNOSE_H
#define Q3_DIAGNOSE_H

#include "judge/walk.h"

/* ==== Diagnosis (diagnose.c) ================================================================= */

/* What the walk knows when a tensor differs. Tensors of the layer at hand are as the walk goes on from them: the
 * other's values where it gave them, else ours; those that come later, or were not kept, are NULL. */
typedef struct evidence {
    const q3_config *config;
    const q3_weights *weights;
    q3_dtype dtype;
    size_t T, start, layer;
    const int32_t *ids;                 /* NULL: unknown */
    const float *input;                 /* [T,M] what the layer starts from; for norm and lm_head: the last
                                           layer's output */
    const float *tap[Q3_TAP_COUNT];     /* scores and probs [T,H,T], kept only where the other gave them */
    bool given[Q3_TAP_COUNT];           /* the other gave it */
    q3_tap_id id;                       /* the tensor in question */
    size_t first;                       /* its tokens [first, T) are given */
    size_t row;                         /* elements of its row */
    const float *ours, *theirs;         /* [T, row] */
    const double *bound;                /* [T, row]: |theirs - right| of an honest implementation */
    double carry;                       /* ulp that the further roundings of a mistake may add (diagnose's own) */
} evidence;

/* Tries every known mistake that could have happened between the last given tensors and this one: computes the
 * mutated operators from the given tensors and looks whether their result explains theirs within the bound.
 * text: "looks like ..." without these two words, and the share it explains; "" if none does. */
q3_status q3_diagnose(char text[200], const evidence *e, q3_error *error);

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
const float *pass_run(pass *p, const evidence *e, const mistake *m);
void pass_free(pass *p);

/* A tap inside a pass: recomputed if the mistake reaches it. NULL: not known. */
const float *pass_get(pass *p, q3_tap_id id);
size_t tap_row(const evidence *e, q3_tap_id id);
bool tap_is_dense(const evidence *e); /* of a layer without experts */

/* slips.c: operators of a pass; y is [T, row of id]. False: something is not known, or no memory. */
bool slip_map(pass *p, q3_tap_id id, mistake_kind kind, float *y);
bool slip_experts(pass *p, q3_tap_id id, mistake_kind kind, float *y);
bool slip_norm(pass *p, q3_tap_id id, mistake_kind kind, float *y);
bool slip_table(pass *p, q3_tap_id id, mistake_kind kind, float *y);
bool slip_rope(pass *p, q3_tap_id id, mistake_kind kind, float *y);

double to_format(double value, format f);
/* cap tanh(x / cap), rounded to D after each step, the last one left to the caller. */
double softcapped(double x, double cap, q3_dtype dtype);
double absolute(double x);

/* ==== One diagnosis (diagnose.c) ============================================================== */

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
bool agrees(const evidence *e, size_t index, float right);
/* Looks whether y explains theirs, and keeps its text if it does so better than all before: then true. */
bool weigh(diagnosis *d, const float *y, const char *text);
void attempt_with(diagnosis *d, const mistake *m, const char *text);
void attempt(diagnosis *d, uint64_t at, mistake_kind kind, double value, const char *text, ...) Q3_PRINTF(5, 6);

void try_list(diagnosis *d); /* suspects.c */
/* searches.c */
void search_positions(diagnosis *d);
void search_theta(diagnosis *d);
void search_eps(diagnosis *d);
void search_limit(diagnosis *d);
void search_experts(diagnosis *d);
void search_hidden_experts(diagnosis *d);
void search_missing(diagnosis *d);

/* What can be said of the difference itself: which channels, tokens, experts, and by which factor. */
void find_patterns(diagnosis *d);

#endif
