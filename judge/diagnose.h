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
    size_t past;                        /* of the T: tokens that came before the file, of which only
                                         * keys and values are known */
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
    q3_accumulate accumulate;           /* --accumulate and --router, as in the walk */
    double operand, partial;
    q3_dtype router;
    bool differs;                       /* the verdict is worse than `rounding` */
    double *budget;                     /* multiplications that the run's searches have left; NULL:
                                         * each search has its own alone */
    bool *stopped;                      /* set where that ended a search; NULL: nobody asks */
} evidence;

/* What explained one tap's tensors of a run so far: a mistake in the code stands in every layer. */
#define TOLD 4
typedef struct told_causes {
    struct remembered *mistakes[TOLD]; /* owned */
    size_t count, searches;            /* searches: whole ones that gave no mistake of these */
} told_causes;

void q3_told_free(told_causes *t);

/* MODEL.md 12.13: how many multiplications all searches of a run have, by its size alone; and what
 * a reason says behind its own words where that ended one. */
double q3_search_budget(const q3_config *config, size_t T, size_t layers);
void q3_say_stopped(char *reason, size_t room);

/* Tries every known mistake that could have happened between the last given tensors and this
 * one: computes the mutated operators from the given tensors and looks whether their result
 * explains theirs within the bound. text: "looks like ..." without these two words, and the
 * share it explains; cause: the mistake's name alone; "" if none does.
 * before, or NULL: what was told of the tap in earlier layers is tried first. If it explains theirs
 * as well, that is the cause and there is no text; else there is a whole search, as long as TOLD of
 * them have not named another mistake. */
q3_status q3_diagnose(char text[200], char cause[160], const evidence *e, told_causes *before,
                      q3_error *error);

#endif
