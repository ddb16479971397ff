/* SPDX-License-Identifier: MIT */
/* backend.h - the other implementation's tensors: whose names, which layout, which run.
 * Private to judge/.
 *
 *   aliases.c   what other systems call the taps
 *   names.c     names that are none of a tap, but may be meant as one
 *   backend.c   which tensors are given, and of which run
 *   metadata.c  what a file's metadata says of the run
 *   dtype.c     which dtype it had, where the metadata does not say it
 *   layout.c    how each of them lies
 *
 * All tensors here are float and lie token by token: [T, row], where a row is what one token has,
 * its axes in the order of the tap's shape (scores and probs: [T,H,S], S = T). Expert ids are
 * floats too. */
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

/* ==== The other implementation's file (backend.c) ============================================= */

/* Where a tap's row lies. Element (j, k) of token t's row is element offset + (t - first) * token +
 * j * stride[0] + k * stride[1] of the entry; rows with one axis have j = 0. */
typedef struct backend_layout {
    uint64_t offset, token, stride[2];
} backend_layout;

/* A tensor of the file that is a tap, or holds one. */
typedef struct backend_tensor {
    const q3_entry *entry;   /* entry->name: what the file calls it; NULL: the tap is not given */
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
    size_t T;                /* of input_ids or position_ids; 0: neither is given */
    int32_t *ids;            /* [T], owned; NULL: no input_ids */
    size_t start;            /* of position_ids, else metadata's, else 0 */
    bool has_start;          /* it is said where the run starts */
    backend_tensor *tensors; /* [L * Q3_TAP_COUNT], owned; a tap outside the layers stands at
                              * layer 0 */
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

#endif
