/* SPDX-License-Identifier: MIT */
/* walk.h - the walk over the taps: what is known while a layer is judged, the bounds of what is
 * computed from it, and figures of the difference. Private to judge/.
 *
 *   walk.c        the walk, and the other's values in place of ours
 *   memory.c      what the walk keeps
 *   logits.c      our logits, where they are asked for
 *   sums.c        the sums over weights that bounds need
 *   activations.c activations that are quantised before these sums
 *   bounds.c      what honest arithmetic may make of each element (MODEL.md section 12 derives it)
 *   statistics.c  how two tensors differ: figures that need no model */
#ifndef Q3_JUDGE_WALK_H
#define Q3_JUDGE_WALK_H

#include "judge/backend.h"
#include "judge/graph.h"

/* ==== Sums (sums.c) =========================================================================== */

/* Of the linear map that makes a tap: what its bounds need of a block of tokens. (From layer to
 * layer other maps lie between two of one tap, so that the tap's name tells whose they are.) */
typedef struct map_sums {
    q3_tap_id id;
    size_t first, end;                 /* the tokens; equal: none */
    double *size, *squares, *spread;   /* [end - first, row], owned: row_sums of each token */
    size_t room[3];                    /* elements that they have room for */
    size_t until;                      /* tokens from here on are not asked for; 0: all may be */
    bool has_spread;
} map_sums;

/* Of one token's row: sum |w||x|, sum (w x)^2 and sum w^2 var(x) of each element. NULL: no
 * --accumulate asks for it; no variance came in. Where activations are quantised (fp8, q8) squares
 * is sum (w e)^2, e being how far off x may be. */
typedef struct row_sums {
    const double *size, *squares, *spread;
} row_sums;

/* ==== Bounds (bounds.c) ======================================================================= */

/* The walk over one layer. Rows and whole tensors as everywhere here; what runs after is computed
 * from them. The variance of an element is 0 where the other gave it: what may differ there was
 * judged. */
typedef struct walk {
    const q3_config *config;
    const q3_weights *weights;
    q3_dtype dtype;
    q3_dtype router;          /* of router_probs as they are compared: float32, or --router's */
    size_t T, start;
    size_t past;              /* of the T: tokens before the file's first, of which nothing is
                               * known but keys and values; start is the position of the first of
                               * them */
    q3_accumulate accumulate;
    double operand;           /* what it says of operands and results of sums: their unit; 0:
                               * float32. Of fp8 and q8: but for linear maps */
    double partial;           /* the same of their partial sums */
    size_t ahead;             /* keys behind its own that a token sees: none, but by mistake */
    size_t layer;
    float *inv_freq;          /* [hd/2] */
    float scaling;            /* attention_scaling: of cos and sin */
    float *input;             /* [T,M] what the layer starts from */
    double *input_var;
    float *tap[Q3_TAP_COUNT]; /* [T,row], NULL until the walk comes there; scores and probs: if
                               * given */
    double *var[Q3_TAP_COUNT];
    /* of what each tap's own operator may do to it, where it was not given: a standard deviation,
     * and the part of it that is noise, four of them; NULL for scores and probs */
    float *own_sd[Q3_TAP_COUNT], *own_noise[Q3_TAP_COUNT];
    bool given[Q3_TAP_COUNT]; /* for all tokens */
    bool *uncertain;          /* [T]: which experts this token has is not known */
    bool keys_broken;         /* a key or value of the layer is not finite */
    /* Of the token whose attention is at hand, [H,T] each; and o_proj.input's bounds, [T,H*hd]. */
    float *scores, *probs;
    double *scores_var, *probs_var, *values_noise, *values_var;
    double *head_sums;        /* [5,hd] */
    float *weight_row;        /* [longest sum] */
    map_sums sums;            /* of the tap at hand */
    bool no_memory;           /* for these: bounds say nothing */
} walk;

/* All memory of the walk, in proportion to T; w's config, T and past are set. False: there is none,
 * and q3_walk_free is still to be called. */
bool q3_walk_memory(walk *w, const backend *b);
void q3_walk_free(walk *w);

/* Token t's row, of a block that is summed up when its first row is asked for. Its inputs must stay
 * as they are, and its weight, until q3_sums_forget. False: no memory. */
bool q3_sums_row(row_sums *out, walk *w, const q3_node *node, size_t t);
void q3_sums_forget(walk *w);
/* The block of tokens t, t + 1, ... of lm_head, and y[count,V], their logits, as q3_logits_rows. */
bool q3_sums_logits(float *y, walk *w, size_t t, size_t count);
void q3_sums_free(walk *w);

/* activations.c: how far each of x[K] may be off where a backend quantises it for this weight, as
 * declared (Q3_ACCUMULATE_FP8 or _Q8). False: not at all, and errors are not written. */
bool q3_activation_errors(float *errors, const float *x, size_t K, q3_tensor weight,
                          q3_accumulate declared);
/* Whether that is what is declared. */
bool q3_quantises(q3_accumulate declared);

/* Our logits [count,V] of tokens t, t + 1, ...; the last norm is final. And those of all of the
 * file's tokens for q3_match_rows. */
void q3_logits_rows(float *y, const walk *w, size_t t, size_t count);
own_rows q3_logits_own(const walk *w);

/* What an honest implementation may differ by, element by element: |theirs - ours| <= slack + noise
 * + Q3_SIGMAS * sqrt(var). */
typedef struct row_bound {
    double *slack; /* roundings to D, which may stand elsewhere or be left out */
    double *noise; /* sums and functions in float32, four standard deviations */
    double *var;   /* what came in from tensors that were not given: a variance */
    double own;    /* how many ulp of the element itself are in its slack, where that is not 0 */
    double roundings; /* to D, on the way from the noise to the stored value */
} row_bound;

#define Q3_SIGMAS 6.0

/* In whose ulp a tap's values are judged: the run's dtype, or float32. */
q3_dtype q3_stored_dtype(const walk *w, q3_tap_id id);
/* Bounds of token t's row of `id`, whose values are ours[n]; inputs are read from w. */
void q3_bound_row(row_bound *b, walk *w, q3_tap_id id, size_t t, const float *ours, size_t n);
/* After a token's probs (w->probs, w->probs_var) are final: the bounds of its o_proj.input. */
void q3_bound_values(walk *w, size_t t);
/* In units of the declared format (MODEL.md 12.7), of a sum y whose products' squares add up to
 * `squares`: rounded operands and result; rounded partial sums of n products. */
double q3_operand_noise(double squares, double y);
double q3_partial_noise(size_t n, double squares, double y);
/* The derivative of silu. */
double q3_silu_slope(double x);

/* ==== Figures (statistics.c) ================================================================== */

/* Sums over rows, in float64. */
typedef struct figures {
    q3_finding *f;
    q3_dtype dtype;       /* whose ulp */
    size_t T, channels;   /* a row has any number of elements; channel = index mod channels */
    double xx, xy, yy, ee, x, y, finite; /* of pairs that are finite, and how many are */
    bool broken;          /* one of a pair is not finite */
    double *token_square, *channel_square; /* [T], [channels], owned */
} figures;

/* 2^e spacing of D at value (the smallest subnormal's near 0). D: float32, bfloat16, float16. */
double q3_ulp(double value, q3_dtype dtype);
/* false: no memory */
bool q3_figures_begin(figures *g, q3_finding *f, q3_dtype dtype, size_t T, size_t channels);
/* One row of n elements: token t; heads = n / channels gives the place's second entry. */
void q3_figures_row(figures *g, size_t t, const float *ours, const float *theirs, size_t n);
void q3_figures_end(figures *g);
/* Puts an element that differs in its place among the finding's worst, by its difference over its
 * bound: in ulp, where nothing is allowed. */
void q3_keep_worst(q3_finding *f, const q3_element *e);

/* ==== The walk (walk.c) ======================================================================= */

/* Runs the run's layers over the T tokens that b is bound to (ids, or hidden[T,M] if the first
 * layer is above 0; run->chunk is T), behind a cache of b->past (run->rows is T and these,
 * run->start the first one's position), and appends a line for every tap. */
q3_status q3_walk(q3_text *lines, const q3_config *config, const q3_weights *weights,
                  const q3_run *run, const backend *b, const int32_t *ids, const float *hidden,
                  const q3_judge_options *options, q3_error *error);

#endif
