/* SPDX-License-Identifier: MIT */
/* diff.c - the figures for two files of tensors: the report of a judge without a model, so without
 * bounds. */
#include "host/files.h"
#include "host/taps.h"
#include "judge/report.h"
#include "judge/walk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A name, and the tensor that has it. */
typedef struct name_of {
    const char *name;
    size_t index;
} name_of;

/* One file, and what its tensors are called by us, where that needs no model. */
typedef struct side {
    const char *path;
    q3_tensors *file;
    size_t count;
    char (*tap)[Q3_TAP_NAME_SIZE]; /* [count], "" for other names */
    bool *paired;                  /* [count] */
    name_of *names, *taps;         /* [count], [tap_count], sorted: own names, and taps' */
    size_t tap_count;
} side;

static int by_name(const void *a, const void *b)
{
    const name_of *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : x->index < y->index ? -1 : x->index > y->index;
}

/* The first of the tensors that have this name; SIZE_MAX: none has it. */
static size_t find(const name_of *names, size_t count, const char *name)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(names[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && strcmp(names[low].name, name) == 0 ? names[low].index : SIZE_MAX;
}

/* One tensor of a file is a tap: the one of the tap's own name, else the first. */
static void name_tensors(side *s)
{
    for (size_t i = 0; i < s->count; i++)
        s->names[i] = (name_of){q3_tensors_at(s->file, i)->name, i};
    qsort(s->names, s->count, sizeof *s->names, by_name);
    for (size_t i = 0; i < s->count; i++) {
        const char *name = q3_tensors_at(s->file, i)->name;
        q3_alias alias;
        if (!q3_tap_alias(&alias, NULL, name) || alias.count != 1) continue;
        q3_tap_name(s->tap[i], alias.id, alias.layer);
        bool own = strcmp(s->tap[i], name) == 0;
        if (!own && find(s->names, s->count, s->tap[i]) != SIZE_MAX)
            s->tap[i][0] = 0;
        else
            s->taps[s->tap_count++] = (name_of){s->tap[i], i};
    }
    qsort(s->taps, s->tap_count, sizeof *s->taps, by_name);
    size_t kept = 0;
    for (size_t k = 0; k < s->tap_count; k++)
        if (kept > 0 && strcmp(s->taps[kept - 1].name, s->taps[k].name) == 0)
            s->tap[s->taps[k].index][0] = 0;
        else
            s->taps[kept++] = s->taps[k];
    s->tap_count = kept;
}

static q3_status side_open(side *s, const char *path, q3_error *error)
{
    s->path = path;
    q3_status status = q3_tensors_open(&s->file, path, error);
    if (status != Q3_OK) {
        s->file = NULL;
        return status;
    }
    s->count = q3_tensors_count(s->file);
    s->tap = calloc(s->count + 1, sizeof *s->tap);
    s->paired = calloc(s->count + 1, sizeof *s->paired);
    s->names = calloc(s->count + 1, sizeof *s->names);
    s->taps = calloc(s->count + 1, sizeof *s->taps);
    if (s->tap == NULL || s->paired == NULL || s->names == NULL || s->taps == NULL)
        return q3_fail(error, Q3_ERROR_MEMORY, "%s: no memory for %zu names", path, s->count);
    name_tensors(s);
    return Q3_OK;
}

static void side_close(side *s)
{
    q3_tensors_close(s->file);
    free(s->tap);
    free(s->paired);
    free(s->names);
    free(s->taps);
}

/* The tensor of b that is a's number i: of the same name, else of the same tap under a name that a
 * does not have. SIZE_MAX: none. */
static size_t partner(const side *a, size_t i, const side *b)
{
    size_t k = find(b->names, b->count, q3_tensors_at(a->file, i)->name);
    if (k != SIZE_MAX || a->tap[i][0] == 0) return k;
    k = find(b->taps, b->tap_count, a->tap[i]);
    if (k == SIZE_MAX) return k;
    bool taken = find(a->names, a->count, q3_tensors_at(b->file, k)->name) != SIZE_MAX;
    return taken ? SIZE_MAX : k;
}

/* ==== Values ================================================================================== */

static bool is_integer(const q3_entry *e)
{
    return e->dtype == Q3_I32 || e->dtype == Q3_I64;
}

/* As it is in the file; integers beyond 2^53 are rounded. */
static double value_at(const q3_entry *e, uint64_t index)
{
    if (is_integer(e)) {
        int64_t integer;
        q3_entry_integers(&integer, e, index, 1);
        return (double)integer;
    }
    if (e->dtype != Q3_F64) {
        float value;
        q3_entry_floats(&value, e, index, 1);
        return (double)value;
    }
    const uint8_t *byte = (const uint8_t *)e->data + 8 * index;
    uint64_t bits = 0;
    double value;
    for (int i = 7; i >= 0; i--) bits = bits << 8 | byte[i];
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Equal values: a NaN is a NaN, -0 is 0. */
static bool equal_at(const q3_entry *a, const q3_entry *b, uint64_t index)
{
    if (is_integer(a) && is_integer(b)) {
        int64_t x, y;
        q3_entry_integers(&x, a, index, 1);
        q3_entry_integers(&y, b, index, 1);
        return x == y;
    }
    double x = value_at(a, index), y = value_at(b, index);
    return x == y || (x != x && y != y);
}

/* ==== One tensor ============================================================================== */

/* Axes of 1 left out; more than three are joined at the end. Returns the rank, at least 1. */
static size_t plain_shape(uint64_t shape[8], const q3_entry *e)
{
    size_t rank = 0;
    for (size_t i = 0; i < e->rank; i++)
        if (e->shape[i] != 1) shape[rank++] = e->shape[i];
    if (rank == 0) shape[rank++] = 1;
    return rank;
}

/* Whose ulp: that of the first file's tensor, or of its run where it is stored wider. */
static q3_dtype ulp_dtype(const side *a, const q3_entry *e, const q3_alias *alias)
{
    const char *text = q3_tensors_metadata(a->file, "dtype");
    if (e->dtype == Q3_BF16 || e->dtype == Q3_F16) return e->dtype;
    for (q3_dtype d = Q3_BF16; text != NULL && d <= Q3_F16; d++)
        if (strcmp(text, q3_dtype_name(d)) == 0 && alias->id != Q3_TAP_ROUTER_PROBS) return d;
    return Q3_F32;
}

/* Where element (t, h, c) of a tensor lies. */
typedef struct axes {
    size_t T, outer, channels;
    uint64_t token, line; /* from one t, one h to the next */
} axes;

/* Where token, head and channel lie in a tensor of this shape, and the finding's own shape. */
static axes axes_of(q3_finding *f, const uint64_t *shape, size_t rank, const q3_alias *alias)
{
    axes x = {(size_t)shape[0], 1, 1, 1, 1};
    bool square = rank == 3 && q3_tap_is_square(alias->id);
    f->rank = rank < 3 ? rank : 3;
    for (size_t i = 0; i < f->rank; i++) f->shape[i] = (size_t)shape[i];
    for (size_t i = 3; i < rank; i++) f->shape[2] *= (size_t)shape[i];
    if (rank > 1) x.channels = f->shape[f->rank - 1];
    if (rank > 2) x.outer = f->shape[1];
    x.line = x.channels;
    x.token = (uint64_t)x.outer * x.channels;
    if (square) { /* [H,T,S]: the tokens are the second axis */
        x = (axes){f->shape[1], f->shape[0], f->shape[2], f->shape[2],
                   (uint64_t)f->shape[1] * f->shape[2]};
        f->shape[0] = x.T;
        f->shape[1] = x.outer;
    }
    return x;
}

/* What only exact values can say: how many differ, zeros of two signs, what is finite here alone,
 * the first. */
typedef struct exact_counts {
    uint64_t differ, zeros, non_finite;
} exact_counts;

/* An element that differs: the first one, and those that differ most. */
static void take_element(q3_finding *f, const size_t at[3], double ours, double theirs,
                         q3_dtype dtype)
{
    double error = ours > theirs ? ours - theirs : theirs - ours;
    double x_size = ours < 0 ? -ours : ours, y_size = theirs < 0 ? -theirs : theirs;
    q3_element e = {{at[0], at[1], at[2]}, ours, theirs, 0x1p100, 0};
    if (error - error == 0) e.ulp = error / q3_ulp(y_size > x_size ? y_size : x_size, dtype);
    q3_keep_worst(f, &e);
    if (f->has_bad) return;
    memcpy(f->bad_at, e.at, sizeof e.at);
    f->has_bad = true;
    f->bad_ours = ours;
    f->bad_theirs = theirs;
    f->bad_ulp = e.ulp;
}

/* Experts are a set: a token has other ones, or the same in another order. */
static void count_choice(q3_finding *f, const float *ours, const float *theirs, size_t A)
{
    size_t found = 0, in_place = 0;
    for (size_t i = 0; i < A; i++) {
        size_t k = 0;
        while (k < A && theirs[k] != ours[i]) k++;
        found += k < A;
        in_place += theirs[i] == ours[i];
    }
    f->wrong_sets += found < A;
    f->other_order += found == A && in_place < A;
}

/* Token t, by exact values: floats alone would hide what F64 and integers hold. */
static void count_row(q3_finding *f, exact_counts *n, const q3_entry *a, const q3_entry *b,
                      const axes *x, size_t t, q3_dtype dtype)
{
    for (size_t h = 0; h < x->outer; h++) {
        uint64_t begin = t * x->token + h * x->line;
        for (size_t c = 0; c < x->channels; c++) {
            double ours = value_at(a, begin + c), theirs = value_at(b, begin + c);
            if (ours == 0 && theirs == 0) n->zeros += (1 / ours > 0) != (1 / theirs > 0);
            if (equal_at(a, b, begin + c)) continue;
            n->differ++;
            n->non_finite += ours - ours == 0 && theirs - theirs != 0;
            const size_t at[3] = {t, f->rank > 2 ? h : c, f->rank > 2 ? c : 0};
            take_element(f, at, ours, theirs, dtype);
        }
    }
}

static void read_line(float *line, const q3_entry *e, uint64_t begin, size_t count)
{
    if (!is_integer(e)) {
        q3_entry_floats(line, e, begin, count);
        return;
    }
    for (size_t i = 0; i < count; i++) line[i] = (float)value_at(e, begin + i);
}

static q3_status compare_values(q3_finding *f, const side *a, const q3_entry *ours,
                                const q3_entry *theirs, const q3_alias *alias, q3_error *error)
{
    uint64_t shape[8];
    size_t rank = plain_shape(shape, ours);
    axes x = axes_of(f, shape, rank, alias);
    for (size_t i = 0; i < rank; i++)
        if (shape[i] == 0) return Q3_OK; /* two empty tensors: f says exact */
    size_t row = x.outer * x.channels;
    q3_dtype dtype = ulp_dtype(a, ours, alias);
    float *values = calloc(2 * row + 1, sizeof *values);
    exact_counts n = {0, 0, 0};
    figures g;
    if (values == NULL || !q3_figures_begin(&g, f, dtype, x.T, x.channels)) {
        free(values);
        return q3_fail(error, Q3_ERROR_MEMORY, "%s: no memory for %zu elements", ours->name, row);
    }
    for (size_t t = 0; t < x.T; t++) {
        for (size_t h = 0; h < x.outer; h++) {
            read_line(values + h * x.channels, ours, t * x.token + h * x.line, x.channels);
            read_line(values + row + h * x.channels, theirs, t * x.token + h * x.line, x.channels);
        }
        q3_figures_row(&g, t, values, values + row, row);
        count_row(f, &n, ours, theirs, &x, t, dtype);
        if (alias->id == Q3_TAP_TOPK_INDICES) count_choice(f, values, values + row, row);
    }
    q3_figures_end(&g);
    free(values);
    f->differ = n.differ;
    f->verdict = n.non_finite > 0 ? Q3_VERDICT_NON_FINITE
                 : n.differ > 0   ? Q3_VERDICT_DIFFERS
                                  : Q3_VERDICT_EXACT;
    if (n.differ > 0)
        snprintf(f->reason, sizeof f->reason, "%llu of %llu elements differ",
                 (unsigned long long)n.differ, (unsigned long long)f->elements);
    if (n.zeros > 0)
        snprintf(f->note, sizeof f->note, "%llu zeros of the other sign, which are equal",
                 (unsigned long long)n.zeros);
    return Q3_OK;
}

/* ==== Two files =============================================================================== */

/* The tap's name where the tensor is one, else its own. */
static void name_finding(q3_finding *f, const side *s, size_t i)
{
    q3_alias alias = {.id = Q3_TAP_COUNT, .count = 1};
    memset(f, 0, sizeof *f);
    f->name = s->tap[i][0] != 0 ? s->tap[i] : q3_tensors_at(s->file, i)->name;
    if (q3_tap_find(f->name, &alias.id, &alias.layer)) f->layer = alias.layer;
}

/* Tensor i of the first file and k of the second (SIZE_MAX: it has none), as a line. */
static q3_status compare_pair(q3_text *lines, const side *a, size_t i, const side *b, size_t k,
                              q3_error *error)
{
    const q3_entry *ours = q3_tensors_at(a->file, i),
                   *theirs = k != SIZE_MAX ? q3_tensors_at(b->file, k) : NULL;
    q3_alias alias = {.id = Q3_TAP_COUNT, .count = 1};
    uint64_t shape[2][8];
    char found[64], expected[64];
    q3_finding f;
    name_finding(&f, a, i);
    q3_status status = Q3_OK;
    if (theirs == NULL) {
        f.verdict = Q3_VERDICT_MISSING;
        snprintf(f.reason, sizeof f.reason, "only in the first file");
    } else {
        size_t rank = plain_shape(shape[0], ours);
        f.given_as = theirs->name;
        if (rank != plain_shape(shape[1], theirs) ||
            memcmp(shape[0], shape[1], rank * sizeof shape[0][0]) != 0) {
            q3_shape_text(found, sizeof found, theirs->shape, theirs->rank);
            q3_shape_text(expected, sizeof expected, ours->shape, ours->rank);
            f.verdict = Q3_VERDICT_SHAPE;
            snprintf(f.reason, sizeof f.reason, "found %s, expected %s", found, expected);
        } else {
            q3_tap_find(f.name, &alias.id, &alias.layer);
            status = compare_values(&f, a, ours, theirs, &alias, error);
        }
    }
    if (status == Q3_OK) q3_report_put_finding(lines, &f);
    return status;
}

static q3_status compare_files(q3_text *lines, const side *a, const side *b,
                               void (*progress)(void *user, const char *what, size_t done,
                                                size_t all),
                               void *user, q3_error *error)
{
    for (size_t i = 0; i < a->count; i++) {
        size_t k = partner(a, i, b);
        q3_status status = compare_pair(lines, a, i, b, k, error);
        if (status != Q3_OK) return status;
        if (k != SIZE_MAX) b->paired[k] = true;
        if (progress != NULL) progress(user, "diff: tensor", i + 1, a->count);
    }
    for (size_t k = 0; k < b->count; k++) {
        q3_finding f;
        if (b->paired[k]) continue;
        name_finding(&f, b, k);
        f.verdict = Q3_VERDICT_MISSING;
        f.given_as = q3_tensors_at(b->file, k)->name;
        snprintf(f.reason, sizeof f.reason, "only in the second file");
        q3_report_put_finding(lines, &f);
    }
    return Q3_OK;
}

q3_status q3_diff(q3_report **report, const char *a, const char *b, const char *command,
                  void (*progress)(void *user, const char *what, size_t done, size_t all),
                  void *user, q3_error *error)
{
    side first = {0}, second = {0};
    q3_text lines = {0};
    *report = NULL;
    q3_status status = side_open(&first, a, error);
    if (status == Q3_OK) status = side_open(&second, b, error);
    if (status == Q3_OK) {
        const q3_judged_run run = {
            .model = a, .file = b, .dtype = Q3_F32, .version = q3_version(),
            .command = command};
        q3_report_put_run(&lines, &run);
        status = compare_files(&lines, &first, &second, progress, user, error);
    }
    q3_report_part part = {b, lines.data, lines.size};
    if (status == Q3_OK && lines.failed)
        status = q3_no_memory(error, b);
    if (status == Q3_OK) status = q3_report_read(report, &part, 1, false, error);
    free(lines.data);
    side_close(&first);
    side_close(&second);
    return status;
}
