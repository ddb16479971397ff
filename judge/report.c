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

static q3_status read_parts(q3_report *r, const q3_report_part *parts, size_t count, bool whole,
                            q3_error *error)
{
    q3_status status = Q3_OK;
    for (size_t i = 0; i < count && status == Q3_OK; i++)
        status = q3_report_take(r, &parts[i], error);
    if (status == Q3_OK && !r->has_run)
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "%s: found no line of a run, expected reports that check or diff wrote",
                         r->name);
    if (status == Q3_OK) status = q3_report_merge(r, error);
    if (status == Q3_OK) r->first_bad = q3_report_find_bad(r);
    if (status == Q3_OK && whole) status = check_whole(r, error);
    if (status == Q3_OK) status = keep_lines(r, parts, count, error);
    return status;
}

q3_status q3_report_read(q3_report **report, const q3_report_part *parts, size_t count, bool whole,
                         q3_error *error)
{
    const char *name = count == 1 ? parts[0].name : "reports";
    q3_report *r = calloc(1, sizeof *r);
    *report = NULL;
    if (r == NULL) return q3_no_memory(error, name);
    snprintf(r->name, sizeof r->name, "%s", name);
    q3_status status = read_parts(r, parts, count, whole, error);
    if (status == Q3_OK)
        *report = r;
    else
        q3_report_close(r);
    return status;
}

void q3_report_close(q3_report *r)
{
    if (r == NULL) return;
    for (size_t i = 0; i < r->count; i++) q3_report_free_finding(&r->entries[i].f);
    if (r->has_run) q3_report_free_run(&r->run);
    free(r->entries);
    free(r->covered);
    free(r->lines);
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
    return r->first_bad != NULL ? &r->first_bad->f : NULL;
}

/* The entries stand layer by layer, so that it is enough to remember the last one counted. */
q3_coverage q3_report_coverage(const q3_report *r)
{
    q3_coverage all = {.layers = r->run.layers};
    size_t last = SIZE_MAX;
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        bool judged = e->f.verdict != Q3_VERDICT_MISSING && e->f.verdict != Q3_VERDICT_UNJUDGED;
        bool inside = q3_tap_in_layer(e->id) && e->id != Q3_TAP_LAYER;
        if (e->id == Q3_TAP_COUNT) continue;
        all.taps_expected++;
        if (!judged) continue;
        all.taps_judged++;
        if (!inside || e->f.layer == last) continue;
        all.layers_judged++;
        last = e->f.layer;
    }
    return all;
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
