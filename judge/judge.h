/* judge.h - judging another implementation of Qwen3-MoE. */
#ifndef Q3_JUDGE_H
#define Q3_JUDGE_H

#include "qwen3moe.h"

/* ==== Findings =============================================================================== */

typedef enum q3_verdict {
    Q3_VERDICT_EXACT, Q3_VERDICT_WITHIN, Q3_VERDICT_ROUNDING, Q3_VERDICT_NEAR_TIE, Q3_VERDICT_DIFFERS, Q3_VERDICT_NON_FINITE,
    Q3_VERDICT_MISSING, Q3_VERDICT_SHAPE, Q3_VERDICT_UNJUDGED, Q3_VERDICT_COUNT
} q3_verdict;

/* "exact", "within", "rounding", "near-tie", "differs", "non-finite", "missing", "shape", "unjudged" */
extern const char *const q3_verdict_names[Q3_VERDICT_COUNT];

#define Q3_PROFILE_BINS 64

typedef struct q3_layer_tap {
    q3_tap_id id;
    size_t layer;
} q3_layer_tap;

/* What is known of one tensor. Places are [token, head or expert or slot, channel] with as many entries as the
 * tap has axes; scores and probs: [query token, head, key]. Numbers that do not exist are 0. */
typedef struct q3_finding {
    const char *name;         /* the tap's */
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
    uint64_t near_ties, wrong_sets, other_order; /* tokens, of topk_indices */
    size_t between_count;     /* taps that were not given since the last given ones: judged together */
    const q3_layer_tap *between; /* in the order of computation; the owner's, not the finding's */
    char looks_like[200];     /* of q3_diagnose; "" */
    size_t token_bins, channel_bins; /* profiles: largest difference in ulp of D, bin by bin */
    float token_profile[Q3_PROFILE_BINS], channel_profile[Q3_PROFILE_BINS];
    size_t margin_bins;       /* topk_indices: smallest p_k - p_(k+1) of the tokens of a bin */
    float margins[Q3_PROFILE_BINS];
} q3_finding;

/* ==== Reports ================================================================================ */

/* A report is made of lines of JSON (MODEL.md 13): a line for the run and one for every tap. It is read from the
 * lines of one run, or of several runs over parts of the layers, and then says what it found, as values or as text,
 * as lines or as a page. One thread at a time may read or close a report; after that any number may look at it. */
typedef struct q3_report q3_report;

/* What the whole says; also the exit status of the command. */
typedef enum q3_outcome { Q3_OUTCOME_AGREES, Q3_OUTCOME_DIFFERS, Q3_OUTCOME_UNJUDGED } q3_outcome;

/* Lines of one run, or of several one after another, in any order; name is what messages call them. */
typedef struct q3_report_part {
    const char *name, *lines; /* lines need no 0 behind them */
    size_t length;
} q3_report_part;

/* Reads and merges the lines: findings in the order of computation, equal ones once, what a tensor looks like told
 * where `check` of the whole would tell it. whole: every layer must have been run by some part. Errors: a line that
 * is no finding (its number), parts of different runs, two findings for one tensor that are not equal, a part of a
 * run that is lost; *report is then NULL. error may be NULL. The parts may be freed afterwards. */
q3_status q3_report_read(q3_report **report, const q3_report_part *parts, size_t count, bool whole, q3_error *error);
void q3_report_close(q3_report *report); /* NULL: nothing */

q3_outcome q3_report_outcome(const q3_report *report);

/* The findings; their texts live as long as the report. */
size_t q3_report_count(const q3_report *report);
const q3_finding *q3_report_finding(const q3_report *report, size_t index); /* index < count */
/* The first that makes the outcome Q3_OUTCOME_DIFFERS; NULL: none does. */
const q3_finding *q3_report_decisive(const q3_report *report);

/* How much of the model the report speaks of. A tensor counts as judged with any verdict but missing and unjudged. */
typedef struct q3_coverage {
    size_t taps_judged;
    size_t taps_expected; /* all taps of the layers that were run, and of the model's ends where they were */
    size_t layers_judged; /* that have a judged tensor inside, which is not the layer's output */
    size_t layers;        /* of the model; 0: a diff of two files */
} q3_coverage;

q3_coverage q3_report_coverage(const q3_report *report);

/* Writers. Each returns a new block, ended by 0, that the caller gives to free(); *length is without the 0. The only
 * error is no memory, and then *text is NULL. error may be NULL. */
#define Q3_REPORT_ALL 1u    /* a row for every tensor, not for what is wrong alone */
#define Q3_REPORT_COLOUR 2u /* with the escape codes of a terminal */
q3_status q3_report_text(const q3_report *report, unsigned flags, char **text, size_t *length, q3_error *error);
/* The lines as they were read, one part behind the other: what reading gives the same report. */
q3_status q3_report_lines(const q3_report *report, char **lines, size_t *length, q3_error *error);
/* One self-contained HTML page. */
q3_status q3_report_html(const q3_report *report, char **html, size_t *length, q3_error *error);

#endif
