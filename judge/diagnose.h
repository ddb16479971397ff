/* SPDX-License-Identifier: MIT */
/* diagnose.h - which known mistake explains a tensor that differs. Private to judge/: what the
 * walk uses. */
#ifndef Q3_JUDGE_DIAGNOSE_H
#define Q3_JUDGE_DIAGNOSE_H

#include "judge/walk.h"

/* What the walk knows when a tensor differs. Tensors of the layer at hand are as the walk goes
 * on from them: the other's values where it gave them, else ours; those that come later, or were
 * not kept, are NULL. */
typedef struct evidence {
    const q3_config *config;
    const q3_weights *weights;
    q3_dtype dtype;
    size_t T, start, layer;
    const int32_t *ids;                 /* NULL: unknown */
    const float *input;                 /* [T,M] what the layer starts from; for norm and lm_head:
                                           the last layer's output */
    /* scores and probs [T,H,T], kept only where the other gave them */
    const float *tap[Q3_TAP_COUNT];
    bool given[Q3_TAP_COUNT];           /* the other gave it */
    q3_tap_id id;                       /* the tensor in question */
    size_t first;                       /* its tokens [first, T) are given */
    size_t row;                         /* elements of its row */
    const float *ours, *theirs;         /* [T, row] */
    const double *bound;                /* [T, row]: |theirs - right| of an honest implementation */
    /* of what is not given; NULL: 0, or none */
    const double *var[Q3_TAP_COUNT], *input_var; /* variances, as the walk has them */
    const bool *uncertain;              /* [T]: which experts the token has is not known */
    double operand;                     /* --accumulate and --router, as in the walk */
    q3_dtype router;
} evidence;

/* Tries every known mistake that could have happened between the last given tensors and this
 * one: computes the mutated operators from the given tensors and looks whether their result
 * explains theirs within the bound. text: "looks like ..." without these two words, and the
 * share it explains; "" if none does. */
q3_status q3_diagnose(char text[200], const evidence *e, q3_error *error);

#endif
