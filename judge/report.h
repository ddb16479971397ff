/* report.h - a report that was read: what report.c, merge.c, wording.c, text.c and html.c share. */
#ifndef Q3_REPORT_H
#define Q3_REPORT_H

#include "judge/judge.h"

typedef struct report_entry {
    finding f;         /* its texts are owned */
    size_t order;      /* of the lines */
    size_t rank;       /* 0 front, layer + 1, SIZE_MAX - 1 head, SIZE_MAX no tap */
    bool known;        /* the name is a tap's */
    q3_tap_id id;
} report_entry;

typedef struct report {
    const char *name;
    bool has_run;
    judged_run run;    /* its texts are owned; the layer range is that of the first run read */
    bool *covered;     /* [layers]: some run judged it */
    report_entry *entries; /* in the order of computation */
    size_t count, room;
} report;

/* ==== Lines (report.c) ======================================================================= */

typedef struct report_line {
    bool is_run;
    judged_run run; /* its texts are owned, as those of f are */
    finding f;
} report_line;

/* place: "FILE: line N", for messages. Where it fails, nothing is owned. */
q3_status report_line_read(report_line *line, const char *place, const char *text, size_t length, q3_error *error);
void report_run_free(judged_run *run);
void report_finding_free(finding *f);

/* ==== Merging (merge.c) ====================================================================== */

/* Reads and merges the lines. The names of the parts must live as long as the report. */
q3_status report_read(report *r, const report_part *parts, size_t count, q3_error *error);
void report_close(report *r);

/* Whether the verdict makes exit status 1. */
bool report_is_bad(const report *r, const finding *f);
/* The first entry that does; NULL: none. */
const report_entry *report_first_bad(const report *r);
/* "agrees", "differs: TAP" or "could not judge", and the sentence before it. */
outcome report_outcome(const report *r);
void report_sentence(q3_text *out, const report *r);
/* "token 3, head 2, channel 5", for a place of this tensor. */
void report_place(q3_text *out, const report_entry *e, const size_t place[3]);
/* "self_attn.q_proj", "lm_head"; and those that were judged together with a tensor, with commas. */
void report_operator(char name[Q3_TAP_NAME_SIZE], q3_tap_id id);
void report_operators(q3_text *out, const finding *f);
/* A letter for each verdict. */
extern const char report_glyphs[VERDICT_COUNT];
/* A string of JSON. */
void report_string(q3_text *out, const char *text);

#endif
