/* SPDX-License-Identifier: MIT */
/* backend.h - the other implementation's tensors: whose names, which layout, which run.
 * Private to judge/.
 *
 *   aliases.c   what other systems call the taps
 *   names.c     names that are none of a tap, but may be meant as one
 *   backend.c   which tensors are given, and of which run
 *   metadata.c  what a file's metadata says of the run
 *   dtype.c     which dtype it had, where the metadata does not say it
 *   past.c      the keys that came before its first token
 *   layout.c    how each of them lies
 *   rows.c      which tokens rows of logits are of
 *
 * All tensors here are float and lie token by token: [T, row], where a row is what one token has,
 * its axes in the order of the tap's shape (scores and probs: [T,H,S], S = T and the keys that came
 * before). Expert ids are floats too. */
#ifndef Q3_JUDGE_BACKEND_H
#define Q3_JUDGE_BACKEND_H

#include "host/files.h"
#include "judge/judge.h"

/* ==== Names (aliases.c) ======================================================================= */

/* A name of another system (aliases.c lists them), or ours. */
typedef struct q3_alias {
    q3_tap_id id;
    size_t count; /* taps id, id + 1, ... lie one behind the other along the last axis; 1 but for
                   * fused tensors */
    size_t layer;
    bool weak;    /* the tap's own name, if it is there too, is to be preferred */
    bool sum;     /* to be preferred to all others: certain to be behind the residual sum */
    bool added;   /* the residual, to be added to what another name gives */
} q3_alias;

/* Which tap a name means. False if none is known, or if it depends on the model and config is NULL.
 * The tap need not exist in the model. */
bool q3_tap_alias(q3_alias *alias, const q3_config *config, const char *name);
/* The index-th name of the table of aliases, # for a number; NULL: there are no more. */
const char *q3_alias_pattern(size_t index);

#define Q3_NAME_ROOM 200
/* The name as the tables write it: model.MODULE.output. False for one that has no such form. */
bool q3_canonical_name(char out[Q3_NAME_ROOM], const char *name);

/* A tensor's name that fits no tap and looks like one, and the known name that is nearest to it
 * ("": none is near). */
#define Q3_UNKNOWN_MOST 32
#define Q3_UNKNOWN_KINDS 256
typedef struct q3_unknown {
    const char *name; /* the tensor's */
    char nearest[Q3_TAP_NAME_SIZE];
} q3_unknown;

/* Whether the name is the pattern with a number, as it is usually written, in the place of #. */
bool q3_name_fits(const char *pattern, const char *name, size_t *number);

/* ==== The other implementation's file (backend.c) ============================================= */

/* Where a tap's row lies. Element (j, k) of token t's row is element offset + (t - first) * token +
 * j * stride[0] + k * stride[1] of the entry; rows with one axis have j = 0. */
typedef struct backend_layout {
    uint64_t offset, token, stride[2];
} backend_layout;

/* A tensor of the file that is a tap, or holds one. */
typedef struct backend_tensor {
    const q3_entry *entry;   /* entry->name: what the file calls it; NULL: the tap is not given */
    const q3_entry *residual; /* to be added to it; NULL: nothing is */
    size_t first;            /* tokens [first, T) are given: some keep only the last rows */
    size_t layouts; /* 0: the shape is wrong, note says "found [5,7], expected [6,7]"; 2: two
                                readings fit (T = H, say), and the closer one is to be taken */
    backend_layout layout[2];
    bool merged;             /* experts' rows [T*A,n]: token by token, or expert by expert */
    char note[128];          /* "" or what was recognised: "axes [H,T,hd]", "rows 0:144 of 240" */
} backend_tensor;

typedef struct backend {
    const char *name;        /* for messages: the file's path, say */
    const q3_config *config;
    q3_tensors *file;        /* NULL: all tensors lie in memory */
    q3_entry *entries;       /* all that are given; owned, their names and data are not */
    size_t count, room;
    q3_dtype dtype;          /* metadata's; Q3_AUTO: it says none */
    q3_dtype run;            /* the dtype that it is judged in: that of a residual sum */
    size_t T;                /* of input_ids or position_ids; 0: neither is given */
    int32_t *ids;            /* [T], owned; NULL: no input_ids */
    size_t start;            /* of position_ids, else metadata's, else 0 */
    bool has_start;          /* it is said where the run starts */
    size_t past;             /* keys that the cache held before the first token */
    bool past_unknown;       /* it may have held some: nothing says how many */
    backend_tensor *tensors; /* [L * Q3_TAP_COUNT], owned; a tap outside the layers stands at
                              * layer 0 */
    size_t *logit_rows;      /* [T], owned: which row of the logits each token has, as the file says
                              * it; NULL: it does not */
    size_t logit_count;
    size_t unknown;          /* tensors that are no tap; the first one's name */
    const char *unknown_name;
    q3_unknown unknowns[Q3_UNKNOWN_MOST]; /* the first of those that look like taps */
    size_t unknown_count;
    const char *kinds[Q3_UNKNOWN_KINDS]; /* names that were looked at: one of all that differ in
                                          * their numbers */
    size_t kind_count;
    char dtype_note[200];    /* how the run's dtype was found, where that is worth a word; "" */
} backend;

/* Nothing is given yet. name and config must outlive b. Error: a model without layers. */
q3_status q3_backend_init(backend *b, const q3_config *config, const char *name, q3_error *error);
void q3_backend_close(backend *b); /* {0} is allowed */
/* Adds a file's tensors. Errors: those of q3_backend_metadata, a second file. */
q3_status q3_backend_add_file(backend *b, const char *path, q3_error *error);
/* b->file's metadata (metadata.c). Errors: a config with a key that contradicts the model's (names
 * it), in the spelling of transformers 4.x or 5.x; a key that it lacks is not compared. A dtype or
 * a start that is none. */
q3_status q3_backend_metadata(backend *b, q3_error *error);
/* Adds a tensor in memory; name and data must outlive b. Errors: a name that was given, no data. */
q3_status q3_backend_add_tensor(backend *b, const q3_entry *entry, q3_error *error);
/* When all is given: reads ids and positions, finds the taps under all known names. Errors:
 * positions that are not consecutive, ids that are no integers or not in the vocabulary, two
 * tensors that are the same tap. */
q3_status q3_backend_read(backend *b, q3_error *error);
/* T is known (b->T, or what check was told): fills first, layouts, layout and note of every
 * tensor. */
q3_status q3_backend_bind(backend *b, size_t T, q3_error *error);
/* The run's dtype when b is bound: metadata's, else what the tensors show (MODEL.md 12.10), else
 * Q3_AUTO. Fills b->dtype_note. */
q3_dtype q3_backend_dtype(backend *b);
/* Counts a tensor that is no tap, and lists its name if it looks like one (names.c). */
void q3_note_unknown(backend *b, const char *name);
/* NULL if the tap is not given. */
const backend_tensor *q3_backend_find(const backend *b, q3_tap_id id, size_t layer);
/* Token t's row, t >= first. F64 is rounded to float32; integers become floats (ids beyond 2^24
 * lose bits, which no valid id has). */
void q3_backend_row(float *row, const backend *b, const backend_tensor *tensor, q3_tap_id id,
                    size_t layout, size_t t);
/* ==== Keys before the file (past.c; MODEL.md 12.11) =========================================== */

/* Keys or values of one layer's cache: element (t, k, d) is element t * row + k * head + d of the
 * entry; entry NULL: they are not given. */
typedef struct past_rows {
    const q3_entry *entry;
    uint64_t count, row, head; /* count: of rows */
} past_rows;

/* Whether the name is that of a layer's keys or values in a cache. */
bool q3_past_name(const char *name, size_t *layer, bool *values);
/* When T, start and the taps are known: fills past and past_unknown. Errors: metadata's past is no
 * number, or larger than start. */
q3_status q3_past_read(backend *b, q3_error *error);
/* The rows of b->past keys or values that came before the first token: the first of those there. */
past_rows q3_past_find(const backend *b, size_t layer, bool values);
/* Row t [K,hd]. */
void q3_past_row(float *row, const backend *b, const past_rows *rows, size_t t);

/* ==== Which reading is meant (layout.c) ======================================================= */

/* MODEL.md 12.8: which of two readings is closer to ours[T,row]. scratch: a row. */
size_t q3_closer_layout(float *scratch, const backend *b, const backend_tensor *tensor,
                        q3_tap_id id, const float *ours);
/* MODEL.md 12.8: experts' rows [T*A,n] may lie expert by expert, those of one in any order: so a
 * hook sees them in Hugging Face 5's grouped_mm, which is its default. They are read so if, each
 * row taken for the nearest of its expert's (choice[T,A] has the experts), they are far closer (256
 * times) to ours[T,row] than as token by token: *sorted[T,row] is then new memory, else NULL.
 * choice NULL: the same with the rows of each token, whose experts may stand in any order where
 * nobody says which. False: no memory. */
bool q3_read_rows(float **sorted, const backend *b, const backend_tensor *tensor, q3_tap_id id,
                  const float *choice, const float *ours);

/* ==== Rows of logits (rows.c; MODEL.md 12.8) ================================================== */

#define Q3_NO_ROW SIZE_MAX

/* When all is bound: fills logit_rows from the tensor logit_positions, or from metadata's. Errors:
 * another number of them than the logits have rows, a position outside the run or twice. */
q3_status q3_rows_read(backend *b, q3_error *error);
/* Our rows of the T tokens: in memory, or computed where they are asked for. Then whole rows are
 * not compared, and no two tokens count as equal: rows that are either's are nobody's. */
typedef struct own_rows {
    const float *values; /* [T,row]; NULL: */
    /* to[t * stride] = element i of token t, for all tokens */
    void (*column)(const void *user, float *to, size_t stride, size_t i);
    const void *user;
} own_rows;

/* Which tokens the rows are of, by ours: *row_of is new memory [T], Q3_NO_ROW: none; NULL: the last
 * ones in order, and then *doubtful says that the values do not show it. False: no memory. */
bool q3_match_rows(size_t **row_of, bool *doubtful, const backend *b, const backend_tensor *tensor,
                   q3_tap_id id, const own_rows *ours);
/* Adds "rows of tokens 3, 7, HOW" to a note. */
void q3_note_rows(char *note, size_t room, const size_t *row_of, size_t T, const char *how);

#endif
