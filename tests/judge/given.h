/* SPDX-License-Identifier: MIT */
/* given.h - what another implementation may give, made of a golden file's tensors: some left out,
 * some under other names, some changed; and what the judge says of it. */
#ifndef Q3_TESTS_GIVEN_H
#define Q3_TESTS_GIVEN_H

#include "judge/judge.h"
#include "model.h"

#include <string.h>

enum { MOST_GIVEN = 512 };

typedef struct given {
    q3_tensors *file;
    q3_entry entries[MOST_GIVEN];
    size_t count;
    void *blocks[MOST_GIVEN]; /* owned */
    size_t block_count;
    size_t first_layer; /* where the judge begins */
} given;

static inline void *given_block(given *g, size_t size)
{
    void *block = calloc(size + 1, 1);
    if (block == NULL || g->block_count == MOST_GIVEN) exit(1);
    return g->blocks[g->block_count++] = block;
}

static inline void given_open(given *g, const char *golden, const char *path)
{
    char whole[1200];
    q3_error error;
    memset(g, 0, sizeof *g);
    snprintf(whole, sizeof whole, "%s/%s", golden, path);
    if (q3_tensors_open(&g->file, whole, &error) != Q3_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    for (size_t i = 0; i < q3_tensors_count(g->file); i++)
        g->entries[g->count++] = *q3_tensors_at(g->file, i);
}

static inline void given_close(given *g)
{
    for (size_t i = 0; i < g->block_count; i++) free(g->blocks[i]);
    q3_tensors_close(g->file);
}

static inline q3_entry *given_find(given *g, const char *name)
{
    for (size_t i = 0; i < g->count; i++)
        if (strcmp(g->entries[i].name, name) == 0) return &g->entries[i];
    fprintf(stderr, "no tensor %s\n", name);
    exit(1);
}

/* Leaves out every tensor whose name has this text. */
static inline void given_drop(given *g, const char *text)
{
    size_t kept = 0;
    for (size_t i = 0; i < g->count; i++)
        if (strstr(g->entries[i].name, text) == NULL) g->entries[kept++] = g->entries[i];
    g->count = kept;
}

static inline size_t given_size(const q3_entry *e)
{
    size_t count = 1;
    for (size_t i = 0; i < e->rank; i++) count *= (size_t)e->shape[i];
    return count;
}

/* The tensor's values in new memory as float32, so that they can be changed. */
static inline float *given_floats(given *g, q3_entry *e)
{
    size_t count = given_size(e);
    float *values = given_block(g, count * sizeof *values);
    q3_entry_floats(values, e, 0, count);
    e->dtype = Q3_F32;
    e->data = values;
    return values;
}

static inline q3_entry *given_add(given *g, const char *name, const q3_entry *like)
{
    char *copy = given_block(g, strlen(name));
    if (g->count == MOST_GIVEN) exit(1);
    memcpy(copy, name, strlen(name));
    q3_entry e = *like;
    e.name = copy;
    g->entries[g->count] = e;
    return &g->entries[g->count++];
}

static inline void given_integers(given *g, const char *name, const int64_t *values, size_t count)
{
    int64_t *copy = given_block(g, count * sizeof *copy);
    memcpy(copy, values, count * sizeof *copy);
    given_add(g, name, &(q3_entry){.dtype = Q3_I64, .rank = 1, .shape = {count}, .data = copy});
}

/* NULL: refused, and error says why. */
static inline q3_report *given_judge(const fixture *f, const given *g, q3_dtype dtype,
                                     q3_error *error)
{
    q3_judge *judge = NULL;
    q3_report *report = NULL;
    const q3_judge_options options = {.first_layer = g->first_layer};
    q3_status status = q3_judge_open(&judge, f->config, &options, error);
    for (size_t i = 0; i < g->count && status == Q3_OK; i++)
        status = q3_judge_tensor(judge, &g->entries[i], error);
    if (status == Q3_OK) status = q3_judge_run(judge, f->weights, dtype, &report, error);
    q3_judge_close(judge);
    return report;
}

static inline const q3_finding *given_found(const q3_report *report, const char *name)
{
    for (size_t i = 0; i < q3_report_count(report); i++)
        if (strcmp(q3_report_finding(report, i)->name, name) == 0)
            return q3_report_finding(report, i);
    fprintf(stderr, "no finding of %s\n", name);
    exit(1);
}

/* Every tensor is exact, within, missing, or (where its name has the text; NULL: nowhere) unjudged
 * with this reason. Returns how many are unjudged. */
static inline size_t given_check(const q3_report *report, const char *what, const char *unjudged,
                                 const char *reason)
{
    size_t count = 0, good = 0;
    for (size_t i = 0; i < q3_report_count(report); i++) {
        const q3_finding *f = q3_report_finding(report, i);
        bool may = unjudged != NULL && strstr(f->name, unjudged) != NULL &&
                   strstr(f->reason, reason) != NULL;
        bool is = f->verdict == Q3_VERDICT_UNJUDGED;
        count += is;
        good += f->verdict <= Q3_VERDICT_WITHIN;
        CHECKF(f->verdict <= Q3_VERDICT_WITHIN || f->verdict == Q3_VERDICT_MISSING || (is && may),
               "%s: %s: %s, %s; %s", what, f->name, q3_verdict_name(f->verdict), f->reason,
               f->looks_like);
    }
    CHECKF(good > 0, "%s: nothing is judged", what);
    return count;
}

#endif
