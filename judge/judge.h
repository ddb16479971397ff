/* SPDX-License-Identifier: MIT */
/* judge.h - judging another implementation of Qwen3-MoE: the library qwen3moe::judge.
 *
 * It is given tensors that the other implementation computed, runs the model itself, compares every
 * tensor with a bound that is derived from the operator, the sizes, the data and the dtype
 * (MODEL.md section 12), puts the other's values in the place of its own, so that each verdict
 * speaks of one operator, and says which known mistake explains a difference.
 *
 * Use:
 *   q3_judge *judge;  q3_report *report;  q3_dtype dtype = Q3_AUTO;
 *   if (q3_judge_open(&judge, q3_model_config(model), NULL, &error)) die(error.text);
 *   q3_entry q = {"model.layers.0.self_attn.q_proj.output", Q3_BF16, 2, {T, H * hd}, data};
 *   if (q3_judge_tokens(judge, ids, T, &error)) die(error.text);
 *   if (q3_judge_tensor(judge, &q, &error)) die(error.text);
 *   if (q3_judge_prepare(judge, &dtype, &error)) die(error.text);
 *   if (q3_model_load(model, &dtype, 0, L, &error)) die(error.text);
 *   if (q3_judge_run(judge, q3_model_weights(model), dtype, &report, &error)) die(error.text);
 *   const q3_finding *f = q3_report_decisive(report);
 *   if (f != NULL) printf("%s: %s\n", f->name, f->looks_like);
 *
 * Errors and memory are qwen3moe.h's: a status and one line of text; nothing is printed. There are
 * no globals: one thread at a time may use a judge, different judges may run in different threads
 * and share config and weights. */
#ifndef Q3_JUDGE_H
#define Q3_JUDGE_H

#include "qwen3moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ==== Findings ================================================================================ */

/* The verdict on one tensor. */
typedef enum q3_verdict {
    Q3_VERDICT_EXACT,      /* equal values */
    Q3_VERDICT_WITHIN,     /* every element within its bound */
    Q3_VERDICT_ROUNDING,   /* so it is, but more elements differ than honest sums explain: a
                            * rounding stands elsewhere */
    Q3_VERDICT_NEAR_TIE,   /* topk_indices: other experts, where the bounds reach over the margin */
    Q3_VERDICT_DIFFERS,    /* an element outside its bound, or a gain that no rounding makes */
    Q3_VERDICT_NON_FINITE, /* infinite or NaN where ours is not */
    Q3_VERDICT_MISSING,    /* not given */
    Q3_VERDICT_SHAPE,      /* another shape or dtype */
    Q3_VERDICT_UNJUDGED,   /* the bound is too wide to say anything */
    Q3_VERDICT_COUNT
} q3_verdict;

/* "exact", "within", "rounding", "near-tie", "differs", "non-finite", "missing", "shape",
 * "unjudged" */
Q3_API const char *q3_verdict_name(q3_verdict verdict);

#define Q3_PROFILE_BINS 64
#define Q3_WORST_MOST 8

typedef struct q3_layer_tap {
    q3_tap_id id;
    size_t layer;
} q3_layer_tap;

/* One element of two tensors. */
typedef struct q3_element {
    size_t at[3];
    double ours, theirs, ulp, bound_ulp; /* their difference and its bound in ulp of D */
} q3_element;

/* What is known of one tensor. Places are [token, head or expert or slot, channel] with as many
 * entries as the tap has axes; scores and probs: [query token, head, key]. Numbers that do not
 * exist are 0. */
typedef struct q3_finding {
    const char *name;         /* the tap's */
    char side[2];             /* "A" or "B": whose, of two that are judged side by side; else "" */
    size_t layer;             /* of a layer's taps */
    q3_verdict verdict;
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
    size_t worst_count;       /* the elements with the largest difference over their bound, worst
                               * first */
    q3_element worst[Q3_WORST_MOST];
    uint64_t near_ties, wrong_sets, other_order; /* tokens, of topk_indices */
    size_t between_count;     /* taps that were not given since the last given ones: judged
                               * together */
    const q3_layer_tap *between; /* in the order of computation; the owner's, not the finding's */
    char looks_like[200];     /* the known mistake, its place and share; "": none, or the cause of
                               * the same tap in an earlier layer, which tells it */
    char cause[160];          /* the mistake alone, without its place and how much it explains; ""
                               * if no known one explains the difference */
    size_t token_bins, channel_bins; /* profiles: largest difference in ulp of D, bin by bin */
    float token_profile[Q3_PROFILE_BINS], channel_profile[Q3_PROFILE_BINS];
    size_t margin_bins;       /* topk_indices: smallest p_k - p_(k+1) of the tokens of a bin */
    float margins[Q3_PROFILE_BINS];
} q3_finding;

typedef struct q3_report q3_report; /* see below */

/* ==== Judging (judge.c) ======================================================================= */

typedef struct q3_judge q3_judge;

/* _FP8: activations are quantised to FP8 before they meet a weight that an fp8 checkpoint
 * quantises, in groups as wide as its blocks; _Q8: as llama.cpp does it, by the weight's format
 * (MODEL.md 12.7). */
typedef enum q3_accumulate {
    Q3_ACCUMULATE_F32, Q3_ACCUMULATE_BF16, Q3_ACCUMULATE_F16, Q3_ACCUMULATE_TF32,
    Q3_ACCUMULATE_BF16_SUMS, Q3_ACCUMULATE_F16_SUMS, /* partial sums too */
    Q3_ACCUMULATE_FP8, Q3_ACCUMULATE_Q8
} q3_accumulate;

/* What the other implementation is declared to do, and what is judged of it. {0} is the rule. The
 * texts are not copied: they must outlive the judge. */
typedef struct q3_judge_options {
    bool free_running;             /* our values stay in place: shows the drift */
    bool strict;                   /* a rounding point that lies elsewhere counts as a difference */
    q3_accumulate accumulate;      /* precision of what enters and leaves its sums */
    q3_dtype kv;                   /* what it rounds keys and values to before attention; Q3_F32:
                                    * nothing */
    q3_dtype router;               /* what it rounds the router's probabilities to before it
                                    * chooses; Q3_F32: nothing */
    size_t first_layer, end_layer; /* layers [first_layer, end_layer) are judged; end_layer 0: to
                                    * the last */
    char side;                     /* 'A' or 'B': one of two that are judged side by side; else 0 */
    const char *const *require;    /* globs ('*': any characters, '?': one) of the taps that must be
                                    * judged, else nothing agrees */
    size_t require_count;
    const q3_tokenizer *tokenizer; /* so that reports show the tokens' text; NULL: they do not */
    const char *command;           /* the command line, for reports; NULL: "" */
    const char *model;             /* what reports call the model; NULL: "" */
    const char *name;              /* what messages and reports call the tensors; NULL: the
                                    * file's path, or "tensors" */
    /* called by q3_judge_run; may be NULL */
    void (*progress)(void *user, const char *what, size_t done, size_t all);
    void *user;
} q3_judge_options;

/* A judge for one run of the model. config must outlive it. options may be NULL. Errors: a model
 * without layers, a range that is none, a
 * glob that fits no tap of the model. */
Q3_API q3_status q3_judge_open(q3_judge **judge, const q3_config *config,
                               const q3_judge_options *options, q3_error *error);
Q3_API void q3_judge_close(q3_judge *judge); /* NULL: nothing */

/* What the other implementation computed, under any name that is known (q3_tap_name's,
 * and other systems': judge/aliases.c): a safetensors file, of which there may be one, and tensors
 * in memory, any number. input_ids and position_ids are tensors too. tensor is copied, its name and
 * data stay the caller's and must outlive the judge; elements are little-endian, as in a file, at
 * any alignment. Names that are not known are counted in the report. Errors: a file that cannot be
 * read, or whose metadata says another config; a name twice. */
Q3_API q3_status q3_judge_file(q3_judge *judge, const char *path, q3_error *error);
Q3_API q3_status q3_judge_tensor(q3_judge *judge, const q3_entry *tensor, q3_error *error);
/* The tokens of the run, where there is no tensor input_ids (if there is one, they must be the
 * same). Copied. */
Q3_API q3_status q3_judge_tokens(q3_judge *judge, const int32_t *ids, size_t count,
                                 q3_error *error);

/* Everything that can be checked before weights are loaded; nothing can be given afterwards.
 * *dtype, if it is Q3_AUTO, becomes the run's dtype as the file's metadata says it, or else as the
 * tensors show it (MODEL.md 12.10), and stays Q3_AUTO where they do not. dtype may be NULL. Errors:
 * no tokens, positions that are not consecutive, two tensors that are one tap. */
Q3_API q3_status q3_judge_prepare(q3_judge *judge, q3_dtype *dtype, q3_error *error);

/* Runs the model and judges every tap that is given (prepares, if that was not done). weights are
 * those of the layers that are judged, loaded for this dtype; they may go when it returns. May be
 * called again, with another dtype say. *report is the caller's (q3_report_close); NULL on an
 * error. */
Q3_API q3_status q3_judge_run(q3_judge *judge, const q3_weights *weights, q3_dtype dtype,
                              q3_report **report, q3_error *error);

/* What another system calls a tap. */
typedef struct q3_other_name {
    const char *system; /* "llama.cpp" */
    const char *name;   /* "ffn_moe_out-#": # stands for the number */
    bool numbered;
    size_t number;      /* of this layer, as that system counts */
    bool among_sparse;  /* it counts the layers with experts alone */
    size_t part, parts; /* of a tensor that holds several taps: which, from 0, and of how many */
} q3_other_name;

/* The index-th name, from 0 on, under which q3_judge_tensor knows a tap of this layer (0 outside
 * the layers), beside q3_tap_name's; false: there are no more. */
Q3_API bool q3_other_name_at(q3_other_name *name, const q3_config *config, q3_tap_id id,
                             size_t layer, size_t index);

/* The figures for two safetensors files; no model, so no bounds. command: the command line, for
 * reports; NULL: "". */
Q3_API q3_status q3_diff(q3_report **report, const char *a, const char *b, const char *command,
                         void (*progress)(void *user, const char *what, size_t done, size_t all),
                         void *user, q3_error *error);

/* ==== Reports ================================================================================= */

/* A report is made of lines of JSON (MODEL.md 13): one for the run and one for every tap. It is
 * read from the lines of one run, or of several runs over parts of the layers, and says what they
 * found: as values, as text, as lines, as a page. A report that was read does not change: any
 * number of threads may ask it and write it at once; one closes it. */

/* What the whole says; also the exit status of the command. */
typedef enum q3_outcome { Q3_OUTCOME_AGREES, Q3_OUTCOME_DIFFERS, Q3_OUTCOME_UNJUDGED } q3_outcome;

/* Lines of one run, or of several one after another, in any order. */
typedef struct q3_report_part {
    const char *name;  /* for messages: a path */
    const char *lines; /* need no 0 behind them */
    size_t length;
} q3_report_part;

/* Reads and merges the lines: findings in the order of computation, equal ones once, what a tensor
 * looks like told where a run over all layers would tell it. whole: every layer must have been run
 * by some part. The parts may be freed afterwards. Errors, with which *report is NULL: a line that
 * is none of a report (its number), parts of different runs, two findings for one tensor that are
 * not equal, a part of a run that is lost, no memory. error may be NULL. */
Q3_API q3_status q3_report_read(q3_report **report, const q3_report_part *parts, size_t count,
                                bool whole, q3_error *error);
Q3_API void q3_report_close(q3_report *report); /* NULL: nothing */

Q3_API q3_outcome q3_report_outcome(const q3_report *report);

/* What lines of two sides, judged side by side, say of the second; NULL: they have one. The report
 * itself speaks of the first: but its outcome is that of both (one that differs decides, then one
 * that could not be judged), and so is what is decisive. */
Q3_API const q3_report *q3_report_second(const q3_report *report);

/* Why it is so, in one line: the report's line before the last; of several mistakes the first. */
Q3_API void q3_report_sentence(const q3_report *report, q3_error *line);

/* The findings, index < count; their texts live as long as the report. */
Q3_API size_t q3_report_count(const q3_report *report);
Q3_API const q3_finding *q3_report_finding(const q3_report *report, size_t index);
/* The first that makes the outcome Q3_OUTCOME_DIFFERS; NULL: none does. */
Q3_API const q3_finding *q3_report_decisive(const q3_report *report);

/* How much of the model the report speaks of. A tensor is judged with any verdict but missing and
 * unjudged. Where no tap of a layer is judged and lm_head is not either, the outcome is
 * Q3_OUTCOME_UNJUDGED. */
typedef struct q3_coverage {
    size_t taps_judged;
    size_t taps_expected; /* taps of the layers that were run, and of the model's ends they reach */
    size_t layers_judged; /* with a judged tensor inside, which is not the layer's output */
    size_t layers;        /* of the model; 0: a diff of two files */
    size_t layer_taps_judged, layer_taps_expected; /* of the taps above, those of layers */
    size_t layers_run;     /* that were to be judged */
    size_t layers_reached; /* of these, with a judged tensor, be it the output alone */
    bool head_judged;      /* lm_head */
} q3_coverage;

Q3_API q3_coverage q3_report_coverage(const q3_report *report);

/* Writers. Each makes a new block, ended by 0, that the caller gives to free(); *length is without
 * the 0. The only error is no memory, and then *text is NULL. error may be NULL. */
#define Q3_REPORT_ALL 1u    /* a row for every tensor, not for what is wrong alone */
#define Q3_REPORT_COLOUR 2u /* with a terminal's escape codes */
Q3_API q3_status q3_report_text(const q3_report *report, unsigned flags, char **text,
                                size_t *length, q3_error *error);
/* The lines as they were read, one part behind the other: reading them makes the same report. */
Q3_API q3_status q3_report_lines(const q3_report *report, char **lines, size_t *length,
                                 q3_error *error);
/* JUnit's XML: a test case for each tap, that failed where it makes the outcome
 * Q3_OUTCOME_DIFFERS or is required and not judged, skipped where it was not judged. */
Q3_API q3_status q3_report_junit(const q3_report *report, char **xml, size_t *length,
                                 q3_error *error);
/* One self-contained HTML page. */
Q3_API q3_status q3_report_html(const q3_report *report, char **html, size_t *length,
                                q3_error *error);

#ifdef __cplusplus
}
#endif

#endif
