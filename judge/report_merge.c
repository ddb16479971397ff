/* report_merge.c - lines of one run, or of several over parts of its layers, put together into one report. */
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* All but the layers. */
static bool same_run(const q3_judged_run *a, const q3_judged_run *b)
{
    return same_text(a->model, b->model) && same_text(a->file, b->file) && a->dtype == b->dtype && a->T == b->T &&
           a->start == b->start && a->layers == b->layers && a->free_running == b->free_running &&
           a->strict == b->strict && same_text(a->accumulate, b->accumulate) && same_text(a->kv, b->kv) &&
           a->unknown == b->unknown && same_text(a->unknown_name, b->unknown_name);
}

/* The first run, or a part of the same one; it is kept or freed. */
static q3_status take_run(q3_report *r, q3_judged_run *run, const char *place, q3_error *error)
{
    q3_status status = Q3_OK;
    if (!r->has_run) {
        r->covered = calloc(run->layers + 1, sizeof *r->covered);
        if (r->covered == NULL) status = q3_fail(error, Q3_ERROR_MEMORY, "%s: no memory", place);
    } else if (!same_run(&r->run, run)) {
        status = q3_fail(error, Q3_ERROR_INPUT, "%s: found another run (model, file, dtype or options), "
                      "expected parts of one", place);
    }
    for (size_t i = run->first_layer; status == Q3_OK && i < run->end_layer; i++) r->covered[i] = true;
    if (status == Q3_OK && !r->has_run) {
        r->run = *run;
        r->has_run = true;
    } else {
        q3_report_free_run(run);
    }
    return status;
}

static q3_status take_finding(q3_report *r, q3_finding *f, const char *place, q3_error *error)
{
    if (r->count == r->room) {
        size_t room = 2 * r->room + 256;
        report_entry *grown = realloc(r->entries, room * sizeof *grown);
        if (grown == NULL) {
            q3_report_free_finding(f);
            return q3_fail(error, Q3_ERROR_MEMORY, "%s: no memory", place);
        }
        r->entries = grown;
        r->room = room;
    }
    report_entry *e = &r->entries[r->count];
    size_t layer = 0;
    *e = (report_entry){.f = *f, .order = r->count++, .rank = SIZE_MAX, .id = Q3_TAP_COUNT};
    e->known = q3_tap_find(f->name, &e->id, &layer);
    bool head = e->id == Q3_TAP_NORM || e->id == Q3_TAP_LM_HEAD;
    if (e->known) e->rank = e->id <= Q3_TAP_SIN ? 0 : head ? SIZE_MAX - 1 : layer + 1;
    return Q3_OK;
}

static int by_name(const void *a, const void *b)
{
    const report_entry *x = a, *y = b;
    int order = strcmp(x->f.name, y->f.name);
    return order != 0 ? order : x->order < y->order ? -1 : 1;
}

static int by_computation(const void *a, const void *b)
{
    const report_entry *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->known && x->id != y->id) return x->id < y->id ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

/* A run tells what a tensor looks like for the first of a kind alone: where runs overlap, one of two may not. */
static bool same_finding(const q3_finding *a, const q3_finding *b)
{
    q3_finding x = *a, y = *b;
    q3_text lines[2] = {{0}, {0}};
    if (x.looks_like[0] == 0 || y.looks_like[0] == 0) x.looks_like[0] = y.looks_like[0] = 0;
    q3_report_put_finding(&lines[0], &x);
    q3_report_put_finding(&lines[1], &y);
    bool same = lines[0].size == lines[1].size && memcmp(lines[0].data, lines[1].data, lines[0].size) == 0;
    free(lines[0].data);
    free(lines[1].data);
    return same;
}

/* As compare.c does in one run: a mistake that stands in every layer is told once. */
static void tell_once(q3_report *r)
{
    bool told[Q3_TAP_COUNT][2] = {{false}};
    for (size_t i = 0; i < r->count; i++) {
        report_entry *e = &r->entries[i];
        bool rounding = e->f.verdict == Q3_VERDICT_ROUNDING;
        if (!e->known || (!rounding && e->f.verdict != Q3_VERDICT_DIFFERS && e->f.verdict != Q3_VERDICT_NON_FINITE)) continue;
        if (told[e->id][rounding]) e->f.looks_like[0] = 0;
        told[e->id][rounding] = true;
    }
}

/* Equal lines once, in the order of computation. */
static q3_status merge(q3_report *r, q3_error *error)
{
    size_t kept = 0;
    if (r->count == 0) return Q3_OK;
    qsort(r->entries, r->count, sizeof *r->entries, by_name);
    for (size_t i = 0; i < r->count; i++) {
        report_entry e = r->entries[i], *before = kept > 0 ? &r->entries[kept - 1] : NULL;
        bool again = before != NULL && strcmp(before->f.name, e.f.name) == 0;
        if (again && !same_finding(&before->f, &e.f))
            return q3_fail(error, Q3_ERROR_INPUT, "%s: %.200s: found two findings that differ, expected one", r->name,
                        e.f.name);
        if (again) q3_report_free_finding(&e.f);
        memset(&r->entries[i].f, 0, sizeof e.f); /* its texts are freed, or move */
        if (!again) r->entries[kept++] = e;
    }
    r->count = kept;
    qsort(r->entries, r->count, sizeof *r->entries, by_computation);
    tell_once(r);
    return Q3_OK;
}

/* The first tap of a layer, of whose taps `seen` has the bits, that has no line; Q3_TAP_COUNT: none. Experts' taps
 * and a dense MLP's exclude each other. */
static q3_tap_id lost_tap(uint64_t seen)
{
    bool dense = false;
    for (int id = Q3_TAP_DENSE_GATE_PROJ; id <= Q3_TAP_DENSE_DOWN_PROJ_INPUT; id++) dense = dense || seen >> id & 1;
    for (int id = Q3_TAP_INPUT_LAYERNORM; id <= Q3_TAP_LAYER; id++) {
        bool of_dense = id >= Q3_TAP_DENSE_GATE_PROJ && id <= Q3_TAP_DENSE_DOWN_PROJ_INPUT;
        bool of_sparse = id >= Q3_TAP_GATE && id < Q3_TAP_DENSE_GATE_PROJ;
        if (dense ? of_sparse : of_dense) continue;
        if (!(seen >> id & 1)) return (q3_tap_id)id;
    }
    return Q3_TAP_COUNT;
}

static q3_status lost(const q3_report *r, q3_tap_id id, size_t layer, q3_error *error)
{
    char name[Q3_TAP_NAME_SIZE];
    q3_tap_name(name, id, layer);
    return q3_fail(error, Q3_ERROR_INPUT, "%s: %s: found no line, expected one: part of a report is lost", r->name, name);
}

/* A run writes a line for every tap of its layers, those before the first one and those behind the last one too:
 * all are there, and no others, else part of a report is lost. */
static q3_status check_layers(const q3_report *r, q3_error *error)
{
    size_t L = r->run.layers;
    uint64_t ends = 0, *seen = calloc(L, sizeof *seen);
    q3_status status = Q3_OK;
    if (seen == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "%s: no memory", r->name);
    for (size_t i = 0; i < r->count && status == Q3_OK; i++) {
        const report_entry *e = &r->entries[i];
        uint64_t bit = e->known ? (uint64_t)1 << e->id : 0;
        bool layered = e->known && e->rank != 0 && e->rank != SIZE_MAX - 1;
        if (layered && (e->f.layer >= L || !r->covered[e->f.layer]))
            status = q3_fail(error, Q3_ERROR_INPUT, "%s: %s: found a line, expected none: no run judged this layer",
                          r->name, e->f.name);
        else
            *(layered ? &seen[e->f.layer] : &ends) |= bit;
    }
    for (size_t l = 0; l < L && status == Q3_OK; l++) {
        q3_tap_id id = r->covered[l] ? lost_tap(seen[l]) : Q3_TAP_COUNT;
        if (id != Q3_TAP_COUNT) status = lost(r, id, l, error);
    }
    for (int id = 0; id < Q3_TAP_COUNT && status == Q3_OK; id++) {
        bool front = id == Q3_TAP_EMBED_TOKENS && r->covered[0], table = id == Q3_TAP_COS || id == Q3_TAP_SIN;
        bool head = (id == Q3_TAP_NORM || id == Q3_TAP_LM_HEAD) && r->covered[L - 1];
        if ((front || table || head) && !(ends >> id & 1)) status = lost(r, (q3_tap_id)id, 0, error);
    }
    free(seen);
    return status;
}

q3_status q3_report_take(q3_report *r, const q3_report_part *part, q3_error *error)
{
    q3_status status = Q3_OK;
    for (size_t at = 0, number = 1; at < part->length && status == Q3_OK; number++) {
        const char *begin = part->lines + at, *end = memchr(begin, '\n', part->length - at);
        size_t length = end != NULL ? (size_t)(end - begin) : part->length - at;
        char place[128];
        report_line line;
        at += length + 1;
        if (length == 0) continue;
        snprintf(place, sizeof place, "%.100s: line %zu", part->name, number);
        status = q3_report_read_line(&line, place, begin, length, error);
        if (status != Q3_OK) break;
        status = line.is_run ? take_run(r, &line.run, place, error) : take_finding(r, &line.f, place, error);
    }
    return status;
}

q3_status q3_report_merge(q3_report *r, q3_error *error)
{
    q3_status status = merge(r, error);
    if (status == Q3_OK && r->run.layers > 0) status = check_layers(r, error);
    return status;
}
