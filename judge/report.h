/* report.h - a report that was read, and what the files report*.c share. */
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
void q3_report_put_run(q3_text *lines, const q3_judged_run *run);
void q3_report_put_finding(q3_text *lines, const q3_finding *f);

typedef struct report_entry {
    q3_finding f;         /* its texts are owned */
    size_t order;      /* of the lines */
    size_t rank;       /* 0 front, layer + 1, SIZE_MAX - 1 head, SIZE_MAX no tap */
    bool known;        /* the name is a tap's */
    q3_tap_id id;
} report_entry;

struct q3_report {
    char *name;            /* for messages: the part's, or "reports" */
    char *lines;           /* of all parts, each ended by a newline; a 0 behind them */
    size_t length;         /* of lines */
    bool has_run;
    q3_judged_run run;     /* its texts are owned; the layer range is that of the first run read */
    bool *covered;         /* [layers]: some run judged it */
    report_entry *entries; /* in the order of computation */
    size_t count, room;
};

/* ==== Lines (report_lines.c) ================================================================= */

typedef struct report_line {
    bool is_run;
    q3_judged_run run; /* its texts are owned, as those of f are */
    q3_finding f;
} report_line;

/* place: "FILE: line N", for messages. Where it fails, nothing is owned. */
q3_status q3_report_read_line(report_line *line, const char *place, const char *text, size_t length, q3_error *error);
void q3_report_free_run(q3_judged_run *run);
void q3_report_free_finding(q3_finding *f);

/* ==== Merging (report_merge.c) =============================================================== */

/* Takes one part's lines into the report. */
q3_status q3_report_take(q3_report *r, const q3_report_part *part, q3_error *error);
/* When all are in: equal lines once, in the order of computation; fails where a part of a run is lost. */
q3_status q3_report_merge(q3_report *r, q3_error *error);

/* ==== Summary (report_summary.c) ============================================================= */

/* The first entry that makes exit status 1; NULL: none. */
const report_entry *q3_report_first_bad(const q3_report *r);
/* The sentence before "agrees", "differs: TAP" or "could not judge". */
void q3_report_sentence(q3_text *out, const q3_report *r);
/* "token 3, head 2, channel 5", for a place of this tensor. */
void q3_report_place(q3_text *out, const report_entry *e, const size_t place[3]);
/* "self_attn.q_proj", "lm_head"; and those that were judged together with a tensor, with commas. */
void q3_report_operator(char name[Q3_TAP_NAME_SIZE], q3_tap_id id);
void q3_report_operators(q3_text *out, const q3_finding *f);
/* A letter for each verdict. */
extern const char q3_report_glyphs[Q3_VERDICT_COUNT];
/* A string of JSON. */
void q3_report_put_string(q3_text *out, const char *text);
/* Of the page, line by line; NULL ends them (page_assets.c). */
extern const char *const q3_page_style[];
extern const char *const q3_page_script[];
/* A writer's result: the text's block goes to the caller. */
q3_status q3_report_give(q3_text *made, char **text, size_t *length, const q3_report *r, q3_error *error);

#endif
