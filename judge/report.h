/* report.h - a report that was read: what report.c, merge.c, wording.c, text.c and html.c share. */
#ifndef Q3_REPORT_H
#define Q3_REPORT_H

#include "host/text.h"
#include "judge/judge.h"

/* What a report says of the run. */
typedef struct q3_judged_run {
    const char *model, *file;      /* as given */
    q3_dtype dtype;
    size_t T, start;
    size_t layers, first_layer, end_layer; /* layers 0: a diff of two files, of which model is the first; there a
                                              missing tensor is a difference too */
    bool free_running, strict;
    const char *accumulate, *kv;   /* "" or the option's value */
    size_t unknown;
    const char *unknown_name;      /* or NULL */
} q3_judged_run;

/* Append one line. Numbers as q3_text_real writes them, so that reading gives the same double. */
void q3_report_run(q3_text *lines, const q3_judged_run *run);
void q3_report_finding(q3_text *lines, const q3_finding *f);

typedef struct report_entry {
    q3_finding f;         /* its texts are owned */
    size_t order;      /* of the lines */
    size_t rank;       /* 0 front, layer + 1, SIZE_MAX - 1 head, SIZE_MAX no tap */
    bool known;        /* the name is a tap's */
    q3_tap_id id;
} report_entry;

typedef struct report {
    const char *name;
    bool has_run;
    q3_judged_run run;    /* its texts are owned; the layer range is that of the first run read */
    bool *covered;     /* [layers]: some run judged it */
    report_entry *entries; /* in the order of computation */
    size_t count, room;
} report;

/* ==== Lines (report.c) ======================================================================= */

typedef struct report_line {
    bool is_run;
    q3_judged_run run; /* its texts are owned, as those of f are */
    q3_finding f;
} report_line;

/* place: "FILE: line N", for messages. Where it fails, nothing is owned. */
q3_status q3_report_line_read(report_line *line, const char *place, const char *text, size_t length, q3_error *error);
void q3_report_run_free(q3_judged_run *run);
void q3_report_finding_free(q3_finding *f);

/* ==== Merging (merge.c) ====================================================================== */

/* Reads and merges the lines. The names of the parts must live as long as the report. */
q3_status q3_report_read(report *r, const q3_report_part *parts, size_t count, q3_error *error);
void q3_report_close(report *r);

/* Whether the verdict makes exit status 1. */
bool q3_report_is_bad(const report *r, const q3_finding *f);
/* The first entry that does; NULL: none. */
const report_entry *q3_report_first_bad(const report *r);
/* "agrees", "differs: TAP" or "could not judge", and the sentence before it. */
q3_outcome q3_report_outcome(const report *r);
void q3_report_sentence(q3_text *out, const report *r);
/* "token 3, head 2, channel 5", for a place of this tensor. */
void q3_report_place(q3_text *out, const report_entry *e, const size_t place[3]);
/* "self_attn.q_proj", "lm_head"; and those that were judged together with a tensor, with commas. */
void q3_report_operator(char name[Q3_TAP_NAME_SIZE], q3_tap_id id);
void q3_report_operators(q3_text *out, const q3_finding *f);
/* A letter for each verdict. */
extern const char q3_report_glyphs[Q3_VERDICT_COUNT];
/* A string of JSON. */
void q3_report_string(q3_text *out, const char *text);

#endif
