/* judge.h - what the files share that judge another implementation; not part of the library.
 *
 * aliases.c   what other systems call the taps
 * backend.c   the other implementation's file: whose names, which layout, which run
 * bounds.c    what honest arithmetic may make of each element (MODEL.md section 12 derives it)
 * figures.c   how two tensors differ: figures that need no model
 * compare.c   the walk over the taps: verdicts, and the other's values in place of ours
 * diagnose.c  which known mistake explains a difference
 * report.c    runs and findings as JSON lines, and such lines read
 * merge.c     lines of one run or of several, put together
 * wording.c   what text.c (the text) and html.c (the page) say alike
 *
 * All tensors here are float and lie token by token: [T, row], where a row is what one token has, its
 * axes in the order of the tap's shape (scores and probs: [T,H,S], S = T). Expert ids are floats too. */
#ifndef Q3_JUDGE_H
#define Q3_JUDGE_H

#include "host/files.h"

/* ==== Names (aliases.c) ====================================================================== */

/* A name of another system (aliases.c lists them), or ours. */
typedef struct q3_alias {
    q3_tap_id id;
    size_t count; /* taps id, id + 1, ... lie one behind the other along the last axis; 1 but for fused tensors */
    size_t layer;
    bool weak;    /* the tap's own name, if it is there too, is to be preferred */
} q3_alias;

/* Which tap a name means. False if none is known, or if it depends on the model and config is NULL. The tap
 * need not exist in the model. */
bool q3_tap_alias(q3_alias *alias, const q3_config *config, const char *name);

/* ==== The other implementation's file (backend.c) ============================================ */

/* Where a tap's row lies. Element (j, k) of token t's row is element
 * offset + (t - first) * token + j * stride[0] + k * stride[1] of the entry; rows with one axis have j = 0. */
typedef struct backend_layout {
    uint64_t offset, token, stride[2];
} backend_layout;

/* A tensor of the file that is a tap, or holds one. */
typedef struct backend_tensor {
    const q3_entry *entry;   /* entry->name: what the file calls it; NULL: the tap is not given */
    size_t first;            /* tokens [first, T) are given: some keep only the last rows */
    size_t layouts;          /* 0: the shape is wrong, note says "found [5,7], expected [6,7]"; 2: two
                                readings fit (T = H, say), and the closer one is to be taken */
    backend_layout layout[2];
    bool merged;             /* experts' rows [T*A,n]: token by token, or expert by expert */
    char note[128];          /* "" or what was recognised: "axes [H,T,hd]", "rows 0:144 of 240" */
} backend_tensor;

typedef struct backend {
    const char *path;
    q3_tensors *file;
    const q3_config *config;
    q3_dtype dtype;          /* metadata's; Q3_AUTO: it says none */
    size_t T;                /* of input_ids or position_ids; 0: the file has neither */
    int32_t *ids;            /* [T], owned; NULL: no input_ids */
    size_t start;            /* of position_ids, else metadata's, else 0 */
    bool has_start;          /* the file says where the run starts */
    backend_tensor *tensors; /* [L * Q3_TAP_COUNT], owned; a tap outside the layers stands at layer 0 */
    size_t unknown;          /* tensors that are no tap; the first one's name */
    const char *unknown_name;
} backend;

/* Opens the file, finds the taps under all known names, reads ids and positions. Errors: metadata config
 * that differs from the model's (names the key), positions that are not consecutive, two tensors that are
 * the same tap, ids that are no integers. Shapes are looked at by backend_bind. */
q3_status backend_open(backend *b, const char *path, const q3_model *model, q3_error *error);
void backend_close(backend *b); /* {0} is allowed */
/* T is known (b->T, or what check was told): fills first, layouts, layout and note of every tensor. */
q3_status backend_bind(backend *b, size_t T, q3_error *error);
/* NULL if the tap is not given. */
const backend_tensor *backend_find(const backend *b, q3_tap_id id, size_t layer);
/* Token t's row, t >= first. F64 is rounded to float32; integers become floats (ids beyond 2^24 lose
 * bits, which no valid id has). */
void backend_row(float *row, const backend *b, const backend_tensor *tensor, q3_tap_id id, size_t layout,
                 size_t t);
/* "[5,7]", cut off if it is too long. */
void shape_text(char text[64], const uint64_t *shape, size_t rank);

/* ==== Bounds (bounds.c) ====================================================================== */

/* The walk over one layer. Rows and whole tensors as everywhere here; what runs after is computed from them. The
 * variance of an element is 0 where the other gave it: what may differ there was judged. */
typedef struct walk {
    const q3_config *config;
    const q3_weights *weights;
    q3_dtype dtype;
    size_t T, start;
    double operand;           /* --accumulate: unit of what enters and leaves the sums; 0: float32 */
    size_t layer;
    float *inv_freq;          /* [hd/2] */
    float scaling;            /* attention_scaling: of cos and sin */
    float *input;             /* [T,M] what the layer starts from */
    double *input_var;
    float *tap[Q3_TAP_COUNT]; /* [T,row], NULL until the walk comes there; scores and probs: if given */
    double *var[Q3_TAP_COUNT];
    bool given[Q3_TAP_COUNT]; /* for all tokens */
    bool *uncertain;          /* [T]: which experts this token has is not known */
    /* Of the token whose attention is at hand, [H,T] each; and o_proj.input's bounds, [T,H*hd]. */
    float *scores, *probs;
    double *scores_var, *probs_var, *values_noise, *values_var;
    float *weight_row;        /* [longest sum] */
} walk;

/* What an honest implementation may differ by, element by element: |theirs - ours| <= slack + noise +
 * Q3_SIGMAS * sqrt(var). */
typedef struct row_bound {
    double *slack; /* roundings to D, which may stand elsewhere or be left out */
    double *noise; /* sums and functions in float32, four standard deviations */
    double *var;   /* what came in from tensors that were not given: a variance */
    double own;    /* how many ulp of the element itself are in its slack, where that is not 0 */
    double roundings; /* to D, on the way from the noise to the stored value */
} row_bound;

#define Q3_SIGMAS 6.0

/* Bounds of token t's row of `id`, whose values are ours[n]; inputs are read from w. */
void bound_row(row_bound *b, walk *w, q3_tap_id id, size_t t, const float *ours, size_t n);
/* After a token's probs (w->probs, w->probs_var) are final: the bounds of its o_proj.input. */
void bound_values(walk *w, size_t t);

/* ==== Findings =============================================================================== */

typedef enum verdict {
    VERDICT_EXACT, VERDICT_WITHIN, VERDICT_ROUNDING, VERDICT_NEAR_TIE, VERDICT_DIFFERS, VERDICT_NON_FINITE,
    VERDICT_MISSING, VERDICT_SHAPE, VERDICT_UNJUDGED, VERDICT_COUNT
} verdict;

/* "exact", "within", "rounding", "near-tie", "differs", "non-finite", "missing", "shape", "unjudged" */
extern const char *const verdict_names[VERDICT_COUNT];

#define PROFILE_BINS 64

typedef struct layer_tap {
    q3_tap_id id;
    size_t layer;
} layer_tap;

/* What is known of one tensor. Places are [token, head or expert or slot, channel] with as many entries as the
 * tap has axes; scores and probs: [query token, head, key]. Numbers that do not exist are 0. */
typedef struct finding {
    const char *name;         /* the tap's */
    size_t layer;             /* of a layer's taps */
    verdict verdict;
    const char *given_as;     /* what the file calls it; NULL: missing */
    char note[128];           /* layout or rows that were recognised; "" */
    char reason[200];         /* a sentence fragment for all verdicts but exact and within; "" */
    size_t rank, shape[3];    /* [T, ...]; scores and probs [T,H,S] */
    uint64_t elements;        /* that were compared */
    uint64_t judged;          /* of these, whose bound says something */
    uint64_t differ, over_1_ulp, outside; /* any difference; above 1 ulp of D; outside the bound */
    double expected;          /* of `differ`: what honest accumulation may make, as a count */
    double max_ulp;           /* largest difference, in ulp of D */
    size_t max_at[3];
    double max_ours, max_theirs;
    double max_bound_ratio;   /* largest difference over its bound */
    double relative_l2;       /* |theirs - ours| / |ours| */
    double gain, offset;      /* least squares: theirs = gain * ours; and theirs = ours + offset */
    size_t worst_token, worst_channel; /* by the sum of squared differences */
    bool has_bad;             /* the first element outside its bound */
    size_t bad_at[3];
    double bad_ours, bad_theirs, bad_ulp, bad_bound_ulp;
    uint64_t near_ties, wrong_sets, other_order; /* tokens, of topk_indices */
    size_t between_count;     /* taps that were not given since the last given ones: judged together */
    const layer_tap *between; /* in the order of computation; the owner's, not the finding's */
    char looks_like[200];     /* of diagnose; "" */
    size_t token_bins, channel_bins; /* profiles: largest difference in ulp of D, bin by bin */
    float token_profile[PROFILE_BINS], channel_profile[PROFILE_BINS];
    size_t margin_bins;       /* topk_indices: smallest p_k - p_(k+1) of the tokens of a bin */
    float margins[PROFILE_BINS];
} finding;

/* ==== Figures (figures.c) ==================================================================== */

/* Sums over rows, in float64. */
typedef struct figures {
    finding *f;
    q3_dtype dtype;       /* whose ulp */
    size_t T, channels;   /* a row has any number of elements; channel = index mod channels */
    double xx, xy, yy, ee, x, y, finite; /* of pairs that are finite, and how many are */
    bool broken;          /* one of a pair is not finite */
    double *token_square, *channel_square; /* [T], [channels], owned */
} figures;

/* 2^e spacing of D at value (the smallest subnormal's near 0). D: float32, bfloat16, float16. */
double ulp_of(double value, q3_dtype dtype);
bool figures_begin(figures *g, finding *f, q3_dtype dtype, size_t T, size_t channels); /* false: no memory */
/* One row of n elements: token t; heads = n / channels gives the place's second entry. */
void figures_row(figures *g, size_t t, const float *ours, const float *theirs, size_t n);
void figures_end(figures *g);

/* ==== The walk (compare.c) =================================================================== */

/* What the other implementation is declared to do, and how it is judged. */
typedef struct judge_options {
    bool free_running;  /* our values stay in place */
    double operand;     /* --accumulate: unit roundoff of what enters and leaves the sums; 0: float32 */
    q3_dtype kv;        /* --kv: what keys and values are rounded to; Q3_AUTO: nothing */
    void (*progress)(const char *what, size_t done, size_t all); /* may be NULL */
} judge_options;

/* Runs the run's layers over T tokens (ids, or hidden[T,M] if the first layer is above 0) and appends a line for
 * every tap. state was made for config, weights and run; run->chunk is T. */
q3_status compare_run(q3_text *lines, q3_state *state, const q3_config *config, const q3_weights *weights,
                      const q3_run *run, const backend *b, const int32_t *ids, const float *hidden, size_t T,
                      const judge_options *options, q3_error *error);

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
q3_status diagnose(char text[200], const evidence *e, q3_error *error);

/* ==== Reports (report.c) ===================================================================== */

/* What a report says of the run. */
typedef struct judged_run {
    const char *model, *file;      /* as given */
    q3_dtype dtype;
    size_t T, start;
    size_t layers, first_layer, end_layer; /* layers 0: a diff of two files, of which model is the first; there a
                                              missing tensor is a difference too */
    bool free_running, strict;
    const char *accumulate, *kv;   /* "" or the option's value */
    size_t unknown;
    const char *unknown_name;      /* or NULL */
} judged_run;

/* Append one line. Numbers as q3_text_real writes them, so that reading gives the same double. */
void report_run(q3_text *lines, const judged_run *run);
void report_finding(q3_text *lines, const finding *f);

typedef enum outcome { OUTCOME_AGREES, OUTCOME_DIFFERS, OUTCOME_UNJUDGED } outcome;

/* JSON lines of one run, or of several one after another, in any order; name is what messages call them. */
typedef struct report_part {
    const char *name, *lines;
    size_t length;
} report_part;

/* The text report of such lines: merged, sorted in the order of computation, equal lines once, what a tensor looks
 * like told where `check` of the whole would tell it. all: a row for every tensor. colour: for a terminal. The
 * outcome is also the exit status. Layers that no run judged are said; whole: they are an error. Errors: a line that
 * is no finding (its number), lines of different runs, two findings for one tensor that are not equal, a part of a
 * run that is lost. text grows; nothing is printed. */
q3_status report_text(q3_text *text, outcome *result, const report_part *parts, size_t count, bool whole, bool all,
                      bool colour, q3_error *error);
/* The same as one self-contained HTML page. */
q3_status report_html(q3_text *html, const report_part *parts, size_t count, q3_error *error);

#endif
