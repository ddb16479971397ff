/* SPDX-License-Identifier: MIT */
/* report_merge.c - lines of one run, or of several over parts of its layers, put together into one
 * report, which is then what a run over all of them would have written: MODEL.md 13. */
#include "judge/diagnose.h"
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Taking lines in ========================================================================= */

static bool same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* Lines that were written before these keys were say nothing of them, nor does a part that had no
 * tokens of it. */
static bool same_if_said(const char *a, const char *b)
{
    return a[0] == 0 || b[0] == 0 || strcmp(a, b) == 0;
}

static bool same_list(const q3_text_list *a, const q3_text_list *b)
{
    bool same = a->count == b->count;
    for (size_t i = 0; i < a->count && same; i++) same = strcmp(a->items[i], b->items[i]) == 0;
    return same;
}

/* All but the layers, and what each part has of its own: the command line, the layers' weights. */
static bool same_run(const q3_judged_run *a, const q3_judged_run *b)
{
    const q3_text_list *x = &a->token_text, *y = &b->token_text;
    return same_text(a->model, b->model) && same_text(a->file, b->file) && a->dtype == b->dtype &&
           a->T == b->T && a->start == b->start && a->layers == b->layers &&
           a->free_running == b->free_running && a->strict == b->strict &&
           same_text(a->accumulate, b->accumulate) && same_text(a->kv, b->kv) &&
           same_text(a->router, b->router) && same_text(a->side, b->side) &&
           same_list(&a->require, &b->require) && same_if_said(a->version, b->version) &&
           same_if_said(a->dtype_note, b->dtype_note) &&
           (x->count == 0 || y->count == 0 || same_list(x, y)) && a->unknown == b->unknown &&
           same_text(a->unknown_name, b->unknown_name);
}

/* The layers' fingerprints, which two parts that have a layer must agree on. */
static q3_status take_weights(q3_report *r, const q3_judged_run *run, const char *place,
                              q3_error *error)
{
    for (size_t i = 0; i < run->weights.count; i++) {
        char *known = r->fingerprints[run->first_layer + i];
        const char *text = run->weights.items[i];
        if (known[0] != 0 && strcmp(known, text) != 0)
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: layer %zu: found weights %.40s, expected %s as in another part",
                           place, run->first_layer + i, text, known);
        snprintf(known, Q3_FINGERPRINT_SIZE, "%s", text);
    }
    return Q3_OK;
}

/* Command lines, sorted, so that it does not matter which part is read first. */
static q3_status take_command(q3_report *r, const char *command, const char *place, q3_error *error)
{
    q3_text_list *list = &r->commands;
    size_t at = 0;
    while (at < list->count && strcmp(list->items[at], command) < 0) at++;
    bool known = at < list->count && strcmp(list->items[at], command) == 0;
    if (known || command[0] == 0) return Q3_OK;
    const char **more = realloc(list->items, (list->count + 1) * sizeof *more);
    char *copy = q3_join(command, "", "");
    if (more != NULL) list->items = more;
    if (more == NULL || copy == NULL) {
        free(copy);
        return q3_no_memory(error, place);
    }
    memmove(more + at + 1, more + at, (list->count - at) * sizeof *more);
    more[at] = copy;
    list->count++;
    return Q3_OK;
}

static void swap_texts(const char **a, const char **b)
{
    const char *kept = *a;
    *a = *b;
    *b = kept;
}

/* What the report's run does not say and a further part does. */
static void fill_run(q3_judged_run *run, q3_judged_run *more)
{
    if (run->version[0] == 0) swap_texts(&run->version, &more->version);
    if (run->dtype_note[0] == 0) swap_texts(&run->dtype_note, &more->dtype_note);
    if (run->token_text.count > 0) return;
    q3_text_list none = run->token_text;
    run->token_text = more->token_text;
    more->token_text = none;
}

/* The first run, or a part of the same one; it is kept or freed. */
static q3_status take_run(q3_report *r, q3_judged_run *run, const char *place, q3_error *error)
{
    q3_status status = Q3_OK;
    if (!r->has_run) {
        r->covered = calloc(run->layers + 1, sizeof *r->covered);
        r->fingerprints = calloc(run->layers + 1, sizeof *r->fingerprints);
        if (r->covered == NULL || r->fingerprints == NULL) status = q3_no_memory(error, place);
    } else if (!same_run(&r->run, run)) {
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "%s: found another run (model, file, dtype or options), "
                         "expected parts of one", place);
    }
    for (size_t i = run->first_layer; status == Q3_OK && i < run->end_layer; i++)
        r->covered[i] = true;
    if (status == Q3_OK) status = take_weights(r, run, place, error);
    if (status == Q3_OK) status = take_command(r, run->command, place, error);
    if (status == Q3_OK && !r->has_run) {
        r->run = *run;
        r->has_run = true;
    } else {
        if (status == Q3_OK) fill_run(&r->run, run);
        q3_report_free_run(run);
    }
    return status;
}

/* What all runs say together. */
static q3_status end_run(q3_report *r, q3_error *error)
{
    if (r->commands.count > 0) {
        char *first = q3_join(r->commands.items[0], "", "");
        if (first == NULL) return q3_no_memory(error, r->name);
        free((void *)(uintptr_t)r->run.command);
        r->run.command = first;
    }
    q3_fingerprint_all(r->fingerprint, r->fingerprints, r->covered, r->run.layers);
    return Q3_OK;
}

static q3_status take_finding(q3_report *r, q3_finding *f, const char *place, q3_error *error)
{
    q3_buffer entries = {r->entries, r->count, r->room};
    if (!q3_reserve(&entries, 1, sizeof *r->entries)) {
        q3_report_free_finding(f);
        return q3_no_memory(error, place);
    }
    r->entries = entries.data;
    r->room = entries.capacity;
    report_entry *e = &r->entries[r->count];
    size_t layer;
    *e = (report_entry){.f = *f, .id = Q3_TAP_COUNT, .number = r->count};
    r->count++;
    if (!q3_tap_find(f->name, &e->id, &layer)) e->id = Q3_TAP_COUNT;
    return Q3_OK;
}

q3_status q3_report_take(q3_report *sides[2], const q3_report_part *part, q3_error *error)
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
        const char *side = line.is_run ? line.run.side : line.f.side;
        q3_report *r = sides[side[0] == 'B'];
        status = line.is_run ? take_run(r, &line.run, place, error)
                             : take_finding(r, &line.f, place, error);
    }
    return status;
}

/* ==== Equal lines once, in the order of computation =========================================== */

static int by_name(const void *a, const void *b)
{
    const report_entry *x = a, *y = b;
    int order = strcmp(x->f.name, y->f.name);
    return order != 0 ? order : x->number < y->number ? -1 : 1;
}

/* Front, layers, head, and behind them what is no tap, as it came. */
static int part_of(q3_tap_id id)
{
    return q3_tap_at_front(id) ? 0 : q3_tap_in_layer(id) ? 1 : q3_tap_at_head(id) ? 2 : 3;
}

static int by_computation(const void *a, const void *b)
{
    const report_entry *x = a, *y = b;
    int part = part_of(x->id), order = part - part_of(y->id);
    if (order != 0) return order;
    if (part == 1 && x->f.layer != y->f.layer) return x->f.layer < y->f.layer ? -1 : 1;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return x->number < y->number ? -1 : 1;
}

/* One tensor has one finding. A run tells what it looks like for the first of a kind alone: where
 * runs overlap, one of two may not. */
static q3_status check_same(const q3_report *r, const q3_finding *a, const q3_finding *b,
                            q3_error *error)
{
    q3_finding x = *a, y = *b;
    q3_text lines[2] = {{0}, {0}};
    if (x.looks_like[0] == 0 || y.looks_like[0] == 0)
        x.looks_like[0] = y.looks_like[0] = x.cause[0] = y.cause[0] = 0;
    q3_report_put_finding(&lines[0], &x);
    q3_report_put_finding(&lines[1], &y);
    bool made = lines[0].data != NULL && lines[1].data != NULL;
    bool same = made && strcmp(lines[0].data, lines[1].data) == 0;
    free(lines[0].data);
    free(lines[1].data);
    if (!made) return q3_no_memory(error, r->name);
    if (same) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT,
                   "%s: %.200s: found two findings that differ, expected one", r->name, a->name);
}

/* What is told of a tap so far. */
typedef struct told {
    const char *causes[TOLD];
    size_t count, searches;
} told;

static void tell(told *t, q3_finding *f)
{
    size_t k = 0;
    while (k < t->count && strcmp(t->causes[k], f->cause) != 0) k++;
    if (k < t->count) f->looks_like[0] = 0;
    else if (t->searches++ >= TOLD) f->looks_like[0] = f->cause[0] = 0;
    else if (f->cause[0] != 0) t->causes[t->count++] = f->cause;
}

/* As q3_diagnose does in one run: a mistake that stands in every layer is told once a tap, and so
 * many are looked for. */
static void tell_once(q3_report *r)
{
    told all[Q3_TAP_COUNT][2];
    memset(all, 0, sizeof all);
    for (size_t i = 0; i < r->count; i++) {
        report_entry *e = &r->entries[i];
        bool rounding = e->f.verdict == Q3_VERDICT_ROUNDING;
        bool wrong = e->f.verdict == Q3_VERDICT_DIFFERS || e->f.verdict == Q3_VERDICT_NON_FINITE;
        if (e->id != Q3_TAP_COUNT && (rounding || wrong)) tell(&all[e->id][rounding], &e->f);
    }
}

static q3_status merge(q3_report *r, q3_error *error)
{
    size_t kept = 0;
    if (r->count == 0) return Q3_OK;
    qsort(r->entries, r->count, sizeof *r->entries, by_name);
    for (size_t i = 0; i < r->count; i++) {
        report_entry e = r->entries[i], *before = kept > 0 ? &r->entries[kept - 1] : NULL;
        bool again = before != NULL && strcmp(before->f.name, e.f.name) == 0;
        q3_status status = again ? check_same(r, &before->f, &e.f, error) : Q3_OK;
        if (status != Q3_OK) return status;
        if (again) q3_report_free_finding(&e.f);
        memset(&r->entries[i].f, 0, sizeof e.f); /* its texts are freed, or move */
        if (!again) r->entries[kept++] = e;
    }
    r->count = kept;
    qsort(r->entries, r->count, sizeof *r->entries, by_computation);
    tell_once(r);
    return Q3_OK;
}

/* ==== Nothing is lost ========================================================================= */

static bool has(uint64_t seen, q3_tap_id id)
{
    return (seen >> id & 1) != 0;
}

/* The first tap of a layer, of whose taps `seen` has the bits, that has no line; Q3_TAP_COUNT:
 * none. A layer has experts' taps or those of a dense MLP: with one of the latter it is dense. */
static q3_tap_id lost_tap(uint64_t seen)
{
    bool dense = false;
    for (q3_tap_id id = 0; id < Q3_TAP_COUNT; id++)
        dense = dense || (q3_tap_info(id)->place == Q3_PLACE_DENSE && has(seen, id));
    for (q3_tap_id id = 0; id < Q3_TAP_COUNT; id++) {
        q3_tap_place other = dense ? Q3_PLACE_SPARSE : Q3_PLACE_DENSE;
        if (!q3_tap_in_layer(id) || q3_tap_info(id)->place == other) continue;
        if (!has(seen, id)) return id;
    }
    return Q3_TAP_COUNT;
}

/* Outside the layers: the embedding belongs to the run of the first layer, the head to that of the
 * last, and every run has the tables of rotary embedding. */
static bool needs_line(const q3_report *r, q3_tap_id id)
{
    if (q3_tap_at_head(id)) return r->covered[r->run.layers - 1];
    if (id == Q3_TAP_EMBED_TOKENS) return r->covered[0];
    return q3_tap_at_front(id);
}

static q3_status lost(const q3_report *r, q3_tap_id id, size_t layer, q3_error *error)
{
    char name[Q3_TAP_NAME_SIZE];
    q3_tap_name(name, id, layer);
    return q3_fail(error, Q3_ERROR_INPUT,
                   "%s: %s: found no line, expected one: part of a report is lost", r->name, name);
}

/* seen[l]: the taps of layer l that have a line; seen[layers]: those outside. */
static q3_status look(const q3_report *r, uint64_t *seen, q3_error *error)
{
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        bool layered = q3_tap_in_layer(e->id);
        if (strcmp(e->f.side, r->run.side) != 0)
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: %s: found a line of side \"%s\", expected side \"%s\", the run's",
                           r->name, e->f.name, e->f.side, r->run.side);
        if (layered && (e->f.layer >= r->run.layers || !r->covered[e->f.layer]))
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: %s: found a line, expected none: no run judged this layer", r->name,
                           e->f.name);
        if (e->id != Q3_TAP_COUNT)
            seen[layered ? e->f.layer : r->run.layers] |= (uint64_t)1 << e->id;
    }
    return Q3_OK;
}

/* A run writes a line for every tap of its layers, those before the first one and those behind the
 * last one too: all are there, and no others, else part of a report is lost. */
static q3_status check_layers(const q3_report *r, q3_error *error)
{
    size_t L = r->run.layers;
    uint64_t *seen = calloc(L + 1, sizeof *seen);
    if (seen == NULL) return q3_no_memory(error, r->name);
    q3_status status = look(r, seen, error);
    for (size_t l = 0; l < L && status == Q3_OK; l++) {
        q3_tap_id id = r->covered[l] ? lost_tap(seen[l]) : Q3_TAP_COUNT;
        if (id != Q3_TAP_COUNT) status = lost(r, id, l, error);
    }
    for (q3_tap_id id = 0; id < Q3_TAP_COUNT && status == Q3_OK; id++)
        if (needs_line(r, id) && !has(seen[L], id)) status = lost(r, id, 0, error);
    free(seen);
    return status;
}

q3_status q3_report_merge(q3_report *r, q3_error *error)
{
    q3_status status = end_run(r, error);
    if (status == Q3_OK) status = merge(r, error);
    if (status == Q3_OK && r->run.layers > 0) status = check_layers(r, error);
    return status;
}
