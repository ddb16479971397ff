/* SPDX-License-Identifier: MIT */
/* report.c - a report as a caller holds it: read from lines, asked, closed. What it says as text
 * stands in report_text.c and report_page.c. */
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Reading ================================================================================= */

/* Keeps a copy of the lines, in which each part ends with a newline. */
static q3_status keep_lines(q3_report *r, const q3_report_part *parts, size_t count,
                            q3_error *error)
{
    size_t size = 1;
    for (size_t i = 0; i < count; i++) size += parts[i].length + 1;
    r->lines = malloc(size);
    if (r->lines == NULL) return q3_no_memory(error, r->name);
    for (size_t i = 0; i < count; i++) {
        if (parts[i].length == 0) continue;
        memcpy(r->lines + r->length, parts[i].lines, parts[i].length);
        r->length += parts[i].length;
        if (r->lines[r->length - 1] != '\n') r->lines[r->length++] = '\n';
    }
    r->lines[r->length] = 0;
    return Q3_OK;
}

static q3_status check_whole(const q3_report *r, q3_error *error)
{
    for (size_t i = 0; i < r->run.layers; i++)
        if (!r->covered[i])
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: layer %zu: found no report of it, expected one", r->name, i);
    return Q3_OK;
}

/* The lines of one side are in: what they say. */
static q3_status read_side(q3_report *r, bool whole, q3_error *error)
{
    if (!r->has_run)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: found no line of a run, expected reports that check or diff wrote",
                       r->name);
    q3_status status = q3_report_merge(r, error);
    if (status != Q3_OK) return status;
    q3_report_decide(r);
    status = q3_report_find_causes(r, error);
    return status == Q3_OK && whole ? check_whole(r, error) : status;
}

static q3_status read_parts(q3_report *sides[2], const q3_report_part *parts, size_t count,
                            bool whole, q3_error *error)
{
    q3_status status = Q3_OK;
    for (size_t i = 0; i < count && status == Q3_OK; i++)
        status = q3_report_take(sides, &parts[i], error);
    for (size_t s = 0; s < 2 && status == Q3_OK; s++) {
        const q3_report *r = sides[s];
        bool other = sides[1 - s]->has_run || sides[1 - s]->count > 0;
        if (r->has_run || r->count > 0 || (s == 0 && !other))
            status = read_side(sides[s], whole, error);
    }
    return status;
}

static q3_report *new_side(const char *name)
{
    q3_report *r = calloc(1, sizeof *r);
    if (r != NULL) snprintf(r->name, sizeof r->name, "%s", name);
    return r;
}

/* Two sides are one report, the first of them with the second; one of them alone is a report like
 * any other. */
static q3_report *join(q3_report *sides[2])
{
    bool first = sides[0]->has_run;
    q3_report *r = sides[first ? 0 : 1], *other = sides[first ? 1 : 0];
    if (other->has_run)
        r->second = other;
    else
        q3_report_close(other);
    return r;
}

q3_status q3_report_read(q3_report **report, const q3_report_part *parts, size_t count, bool whole,
                         q3_error *error)
{
    const char *name = count == 1 ? parts[0].name : "reports";
    q3_report *sides[2] = {new_side(name), new_side(name)};
    *report = NULL;
    q3_status status = Q3_OK;
    if (sides[0] == NULL || sides[1] == NULL) status = q3_no_memory(error, name);
    if (status == Q3_OK) status = read_parts(sides, parts, count, whole, error);
    if (status == Q3_OK)
        status = keep_lines(sides[sides[0]->has_run ? 0 : 1], parts, count, error);
    if (status == Q3_OK) {
        *report = join(sides);
        return Q3_OK;
    }
    q3_report_close(sides[0]);
    q3_report_close(sides[1]);
    return status;
}

void q3_report_close(q3_report *r)
{
    if (r == NULL) return;
    for (size_t i = 0; i < r->count; i++) q3_report_free_finding(&r->entries[i].f);
    if (r->has_run) q3_report_free_run(&r->run);
    q3_report_close(r->second);
    free(r->entries);
    free(r->causes);
    free(r->covered);
    free(r->lines);
    free(r->fingerprints);
    for (size_t i = 0; i < r->commands.count; i++) free((void *)(uintptr_t)r->commands.items[i]);
    free(r->commands.items);
    free(r);
}

/* ==== Asking ================================================================================== */

size_t q3_report_count(const q3_report *r)
{
    return r->count;
}

const q3_finding *q3_report_finding(const q3_report *r, size_t index)
{
    return &r->entries[index].f;
}

const q3_finding *q3_report_decisive(const q3_report *r)
{
    if (r->first_bad == NULL && r->second != NULL) return q3_report_decisive(r->second);
    return r->first_bad != NULL ? &r->first_bad->f : NULL;
}

const q3_report *q3_report_second(const q3_report *r)
{
    return r->second;
}

/* Of two sides: one that differs decides, then one that was not judged. */
q3_outcome q3_report_outcome(const q3_report *r)
{
    q3_outcome own = q3_report_own_outcome(r);
    if (r->second == NULL || own == Q3_OUTCOME_DIFFERS) return own;
    q3_outcome other = q3_report_own_outcome(r->second);
    return other == Q3_OUTCOME_AGREES ? own : other;
}

/* The entries stand layer by layer, so that it is enough to remember the last ones counted. */
q3_coverage q3_report_coverage(const q3_report *r)
{
    q3_coverage all = {.layers = r->run.layers};
    size_t inside = SIZE_MAX, reached = SIZE_MAX;
    for (size_t i = 0; i < r->run.layers; i++) all.layers_run += r->covered[i];
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        bool layered = q3_tap_in_layer(e->id);
        if (e->id == Q3_TAP_COUNT) continue;
        all.taps_expected++;
        all.layer_taps_expected += layered;
        if (!q3_report_is_judged(&e->f)) continue;
        all.taps_judged++;
        all.layer_taps_judged += layered;
        all.head_judged = all.head_judged || e->id == Q3_TAP_LM_HEAD;
        if (layered && e->f.layer != reached) all.layers_reached++;
        if (layered) reached = e->f.layer;
        if (!layered || e->id == Q3_TAP_LAYER || e->f.layer == inside) continue;
        all.layers_judged++;
        inside = e->f.layer;
    }
    return all;
}

void q3_report_sentence(const q3_report *r, q3_error *line)
{
    q3_text sentence = {0};
    bool first = r->second == NULL || q3_report_own_outcome(r) == q3_report_outcome(r);
    q3_report_add_sentence(&sentence, first ? r : r->second);
    q3_fail(line, Q3_OK, "%s", sentence.data != NULL ? sentence.data : "");
    free(sentence.data);
}

/* ==== Writing ================================================================================= */

q3_status q3_report_give(q3_text *made, char **text, size_t *length, const q3_report *r,
                         q3_error *error)
{
    *text = made->data;
    *length = made->size;
    if (!made->failed && made->data != NULL) return Q3_OK;
    free(made->data);
    *text = NULL;
    *length = 0;
    return q3_no_memory(error, r->name);
}

q3_status q3_report_lines(const q3_report *r, char **lines, size_t *length, q3_error *error)
{
    q3_text copy = {malloc(r->length + 1), r->length, r->length + 1, false};
    if (copy.data != NULL) memcpy(copy.data, r->lines, r->length + 1);
    return q3_report_give(&copy, lines, length, r, error);
}
