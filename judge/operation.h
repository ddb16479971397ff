/* SPDX-License-Identifier: MIT */
/* operation.h - one operator of a pass with a mistake in it: what evaluate.c and attend.c share. */
#ifndef Q3_JUDGE_OPERATION_H
#define Q3_JUDGE_OPERATION_H

#include "judge/diagnosis.h"

/* One operator that is about to run. */
typedef struct operation {
    pass *p;
    const evidence *e;
    const q3_node *node;
    const edit *edits;  /* that the mistake makes here; NULL: none */
    double value;       /* the mistake's */
    const float *x[3];  /* arguments, as edited: rows[i] of n[i] */
    float *own[3];      /* those of them that are copies */
    size_t rows[3], n[3];
    const float *ids;   /* chosen experts, where the operator reads them */
    /* with bounds: the arguments' variances (NULL: 0), those of them that are copies, and the
     * result's bounds, or variances if it is not the last; NULL: without */
    const double *var[3];
    double *own_var[3], *doubt;
    bool last;
    q3_dtype dtype;     /* that its result is rounded to */
} operation;

/* How the mistake edits this part of it. */
change q3_change_of(const operation *o, part at);
/* What the operator rounds to: the edit of the result does it in its place, or nothing does. */
q3_dtype q3_rounds_to(const operation *o);
const q3_node *q3_node_of(const evidence *e, q3_tap_id id);

/* Zeros; NULL, and p->no_memory: no memory. */
void *q3_pass_room(pass *p, size_t count, size_t size);
/* A tap inside the pass: recomputed if the mistake reaches it; NULL: not known. And its variance;
 * NULL: none. */
const float *q3_pass_get(pass *p, q3_tap_id id);
const double *q3_pass_var(const pass *p, q3_tap_id id);
/* x[i], edited. False: something is not known, or no memory. */
bool q3_take(operation *o, size_t i, q3_tap_id from);

/* Attention (attend.c): scores, probs or o_proj.input. */
bool q3_run_attention(operation *o, float *y);

#endif
