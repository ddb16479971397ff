/* SPDX-License-Identifier: MIT */
/* report.h - inside a report: what the files report*.c share, and how the judge writes its lines.
 *
 * report_lines.c writes and reads lines, report_merge.c puts them together, report.c is what a
 * caller holds, report_causes.c groups what is wrong by its cause, report_summary.c has the words
 * that text and page share; report_text.c with report_map.c, report_page.c and report_junit.c
 * write it; page_assets.c is the page's style and script; fingerprint.c says which weights a run
 * had. */
#ifndef Q3_REPORT_H
#define Q3_REPORT_H

#include "host/taps.h"
#include "host/text.h"
#include "judge/backend.h"

/* ==== Fingerprints (fingerprint.c) ============================================================ */

#define Q3_FINGERPRINT_SIZE 33 /* 32 hexadecimal digits and a 0 */

/* Of the weights of a layer (MODEL.md 13), with the embedding where it is the first and the head
 * where it is the last. */
void q3_fingerprint_layer(char text[Q3_FINGERPRINT_SIZE], const q3_config *config,
                          const q3_weights *weights, size_t layer);
/* Of fingerprints, one after another; "" if one is not known. */
void q3_fingerprint_all(char text[Q3_FINGERPRINT_SIZE],
                        char (*layers)[Q3_FINGERPRINT_SIZE], const bool *covered, size_t count);

/* ==== Lines (report_lines.c; MODEL.md 13) ===================================================== */

typedef struct q3_text_list {
    const char **items;
    size_t count;
} q3_text_list;

/* What a report says of the run. Of the texts below `unknown`, NULL is "". */
typedef struct q3_judged_run {
    const char *model, *file;      /* as given; of a diff the first and the second file */
    q3_dtype dtype;
    size_t T, start;               /* tokens, and the first one's position */
    size_t layers;                 /* of the model; 0: a diff, where a missing tensor differs too */
    size_t first_layer, end_layer; /* that this run judged */
    bool free_running, strict;
    const char *accumulate, *kv;   /* "" or the option's value */
    size_t unknown;                /* tensors of the file that are no taps */
    const char *unknown_name;      /* the first of them, or NULL */
    const char *router;            /* "" or the option's value */
    const char *version, *command; /* of the program; its command line */
    const char *dtype_note;        /* how the run's dtype was found, or "" */
    q3_text_list weights;          /* a fingerprint of each layer from first_layer to end_layer */
    q3_text_list token_text;       /* [T], or none */
    q3_text_list require;          /* globs of the taps that must be judged */
    const q3_unknown *unknowns;    /* names that look like taps */
    size_t unknown_count;
    char side[2];                  /* "A" or "B" of two that are judged side by side; else "" */
} q3_judged_run;

/* Append one line. Numbers as q3_text_real writes them, so that reading gives the same double. */
void q3_report_put_run(q3_text *lines, const q3_judged_run *run);
void q3_report_put_finding(q3_text *lines, const q3_finding *f);

typedef struct report_line {
    bool is_run;
    q3_judged_run run; /* its texts are owned, as those of f are */
    q3_finding f;
} report_line;

/* place: "FILE: line N", for messages. Where it fails, nothing is owned. */
q3_status q3_report_read_line(report_line *line, const char *place, const char *text, size_t length,
                              q3_error *error);
void q3_report_free_run(q3_judged_run *run);
void q3_report_free_finding(q3_finding *f);

/* ==== The report (report.c) =================================================================== */

typedef struct report_entry {
    q3_finding f;  /* its texts are owned */
    q3_tap_id id;  /* Q3_TAP_COUNT: the name is no tap's, as may be in a diff */
    size_t number; /* of the line, all parts counted through */
} report_entry;

/* One mistake: the tensors that it made wrong. */
typedef struct report_cause {
    const report_entry *first; /* where it starts: the first in the order of computation */
    size_t count;              /* tensors */
    double gravity;            /* of the gravest of them */
} report_cause;

struct q3_report {
    char name[301];        /* for messages: the part's, cut off where it is long, or "reports" */
    char *lines;           /* of all parts, each ended by a newline; a 0 behind them */
    size_t length;         /* of lines */
    bool has_run;
    q3_judged_run run;     /* its texts are owned; its layers are those of the first run read */
    bool *covered;         /* [run.layers]: some run judged it */
    q3_text_list commands; /* owned, each once, sorted: the runs' command lines */
    char (*fingerprints)[Q3_FINGERPRINT_SIZE]; /* [run.layers], owned; "": not known */
    char fingerprint[Q3_FINGERPRINT_SIZE];     /* of all layers that were run; "": not known */
    report_entry *entries; /* in the order of computation; what is no tap, behind */
    size_t count, room;
    const report_entry *first_bad; /* the first that makes exit status 1; NULL: none */
    size_t required;               /* taps that --require names and that are not judged */
    const report_entry *first_required; /* the first of them; NULL: none */
    report_cause *causes;  /* owned; the gravest first */
    size_t cause_count;
    q3_report *second;     /* owned: what the lines say of side B, where they have two; else NULL */
};

/* A writer's result: the text's block goes to the caller. */
q3_status q3_report_give(q3_text *made, char **text, size_t *length, const q3_report *r,
                         q3_error *error);

/* ==== Merging (report_merge.c) ================================================================ */

/* Takes one part's lines into the reports of their sides: B's into the second. */
q3_status q3_report_take(q3_report *sides[2], const q3_report_part *part, q3_error *error);
/* When all are in: equal lines once, in the order of computation; fails where a part of a run is
 * lost. */
q3_status q3_report_merge(q3_report *r, q3_error *error);

/* ==== Causes (report_causes.c) ================================================================ */

/* Fills causes. */
q3_status q3_report_find_causes(q3_report *r, q3_error *error);

/* ==== Summary: what text and page say alike (report_summary.c) ================================ */

/* The words of a verdict beside its name. */
typedef struct verdict_words {
    char letter;         /* in the map */
    const char *meaning; /* in the page's legend */
    const char *blame;   /* behind a tensor's name, in the sentence; NULL: blames nobody */
} verdict_words;

extern const verdict_words q3_verdict_words[Q3_VERDICT_COUNT];

/* Fills first_bad, required and first_required. */
void q3_report_decide(q3_report *r);
/* Of this side alone. */
q3_outcome q3_report_own_outcome(const q3_report *r);
/* Whether the verdict makes exit status 1. */
bool q3_report_is_bad(const q3_report *r, const q3_finding *f);
/* Whether --require names the tap. */
bool q3_report_is_required(const q3_report *r, const q3_finding *f);
/* Judged: any verdict but missing and unjudged. */
bool q3_report_is_judged(const q3_finding *f);
/* What needs no row of its own: exact, within, and in a run what is missing. */
bool q3_report_is_quiet(const q3_report *r, const q3_finding *f);
void q3_report_tally(const q3_report *r, size_t counts[Q3_VERDICT_COUNT]);

/* The texts below may hold names from a file, as they stand there: the writer cleans or escapes. */

void q3_report_add_count(q3_text *out, const char *before, uint64_t value, const char *after);
/* "121 of 125 taps of the layers, 5 of 5 layers reached, lm_head not judged" */
void q3_report_add_coverage(q3_text *out, const q3_report *r);
/* "agrees", "differs: TAP" or "could not judge"; and the sentence that says why. */
void q3_report_add_verdict(q3_text *out, const q3_report *r);
void q3_report_add_sentence(q3_text *out, const q3_report *r);
/* What is wrong with a tensor, or why nothing was said of it; and what was judged together with
 * it. */
void q3_report_add_blame(q3_text *out, const q3_report *r, const q3_finding *f);
/* "looks like " and what a tensor looks like, which is known. */
void q3_report_add_looks(q3_text *out, const q3_finding *f);
/* The sentence of one cause. */
void q3_report_add_cause(q3_text *out, const q3_report *r, const report_cause *c);
/* Why nothing, or not all that was asked for, can be said. */
void q3_report_add_silence(q3_text *out, const q3_report *r);
/* "from position 3, teacher-forced, strict, --kv float16" */
void q3_report_add_options(q3_text *out, const q3_judged_run *run);
/* "2 tensors that are no taps, the first: NAME" */
void q3_report_add_unknown(q3_text *out, const q3_judged_run *run);
/* "token 3 " God", head 2, channel 5", for a place of this tensor: the token's text where it is
 * known. */
void q3_report_add_place(q3_text *out, const q3_report *r, const report_entry *e,
                         const size_t place[3]);
/* A blank and a token's text in quotes, on one line: what a terminal would act on as an escape. */
void q3_report_add_token(q3_text *out, const char *text);
/* The taps that were judged together with a tensor, with commas. */
void q3_report_add_between(q3_text *out, const q3_finding *f);

/* ==== The text's map (report_map.c) =========================================================== */

void q3_report_pad(q3_text *out, size_t count);
void q3_report_paint(q3_text *out, const char *text, q3_verdict v, bool colour);
/* Empty where no tensor is a tap. */
void q3_report_add_map(q3_text *out, const q3_report *r, bool colour);

/* ==== The page's files (page_assets.c) ======================================================== */

/* Line by line; NULL ends them. */
extern const char *const q3_page_style[];
extern const char *const q3_page_script[];

#endif
