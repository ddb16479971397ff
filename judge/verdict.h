/* SPDX-License-Identifier: MIT */
/* verdict.h - one tensor under judgement: its elements against their bounds, and the verdict.
 * Private to judge/; MODEL.md section 12. */
#ifndef Q3_JUDGE_VERDICT_H
#define Q3_JUDGE_VERDICT_H

#include "judge/walk.h"

typedef struct trial {
    q3_finding f;
    figures g;
    q3_tap_id id;
    const backend_tensor *tensor; /* NULL: not given, or its shape is wrong */
    size_t layout;                /* which of the tensor's readings */
    size_t *row_of;               /* [T - past], owned: which of the tensor's rows each token has;
                                   * NULL: those from `first` on in order */
    bool doubtful_rows;           /* so they were read, but nothing says that they are these */
    size_t n, channels, heads;    /* elements of a row = heads (or slots) * channels */
    bool brief;                   /* ours, theirs, bound and weight are of the token at hand alone,
                                   * so that no cause can be looked for */
    bool asks_all;                /* brief, and its verdict hangs on the weights of all tokens */
    float *ours, *theirs;         /* [T,n] */
    float *sorted;                /* [T,n] theirs, if the file has them in another order; else
                                   * NULL */
    double *bound;                /* [T,n] */
    double *channel_differ, *channel_expected, *head_differ, *head_expected;
    bool propagated;              /* some variance came in */
    /* [T,n] how much an element says of a gain: ours over its variance; 0: it is not judged. And
     * the sum of weight (theirs - ours), its variance by roundings, its noise at most, and what a
     * gain of 1 adds to it */
    double *weight;
    double along, along_var, along_noise, power;
} trial;

/* Begins with nothing compared: the verdict is `missing`, or `shape`. False: no memory. */
bool q3_trial_begin(trial *r, const walk *w, const backend *b, q3_tap_id id, size_t layer,
                    bool brief);
/* Where token t's row begins in ours, theirs, bound and weight. */
size_t q3_trial_at(const trial *r, size_t t);
void q3_trial_free(trial *r); /* {0} is allowed */

/* Token t's rows of ours and theirs are in place: compares them, element by element, within the
 * bounds of b. */
void q3_trial_row(trial *r, const walk *w, size_t t, const row_bound *b);

/* Token t's choice of experts, which is a set: theirs[A] against ours[A]. False: it is not a
 * choice, and cannot be followed. scratch: room for the bounds of a row of router_probs. */
bool q3_trial_choice(trial *r, walk *w, const row_bound *scratch, size_t t, const float *ours,
                     const float *theirs);
/* The smallest probability of the chosen[A] minus the largest of those left (1 if there are none),
 * and whether the bounds of the two reach over it, so that an honest implementation may choose
 * otherwise. */
double q3_choice_margin(walk *w, const row_bound *scratch, size_t t, const float *chosen,
                        bool *doubtful);

/* The verdict, when all given rows were compared. False: no memory. */
bool q3_trial_decide(trial *r, walk *w);

/* gain.c: whether what lies within its bounds has a direction, which makes it `differs`. False: no
 * memory. */
bool q3_find_gains(trial *r, walk *w);

/* slopes.c: of the sum over a tap's elements of slope[T,row] times their error, what the roundings
 * of all that was not given behind it make: its variance, and what may have one sign. known: false
 * where that reaches what nothing is known of. Overwrites w->scores, w->probs and scores_var.
 * False: no memory. */
typedef struct spread {
    bool known;
    double var, bias;
} spread;

bool q3_gain_reach(spread *out, walk *w, q3_tap_id id, const double *slope);

bool q3_is_finite(double x);

#endif
