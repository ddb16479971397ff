/* judge.h - judging another implementation of Qwen3-MoE. */
#ifndef Q3_JUDGE_H
#define Q3_JUDGE_H

#include "host/text.h"
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

typedef enum q3_outcome { Q3_OUTCOME_AGREES, Q3_OUTCOME_DIFFERS, Q3_OUTCOME_UNJUDGED } q3_outcome;

/* JSON lines of one run, or of several one after another, in any order; name is what messages call them. */
typedef struct q3_report_part {
    const char *name, *lines;
    size_t length;
} q3_report_part;

/* The text report of such lines: merged, sorted in the order of computation, equal lines once, what a tensor looks
 * like told where `check` of the whole would tell it. all: a row for every tensor. colour: for a terminal. The
 * outcome is also the exit status. Layers that no run judged are said; whole: they are an error. Errors: a line that
 * is no finding (its number), lines of different runs, two findings for one tensor that are not equal, a part of a
 * run that is lost. text grows; nothing is printed. */
q3_status q3_report_text(q3_text *text, q3_outcome *result, const q3_report_part *parts, size_t count, bool whole, bool all,
                      bool colour, q3_error *error);
/* The same as one self-contained HTML page. */
q3_status q3_report_html(q3_text *html, const q3_report_part *parts, size_t count, q3_error *error);

#endif
