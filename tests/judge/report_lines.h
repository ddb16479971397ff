/* SPDX-License-Identifier: MIT */
/* report_lines.h - what the tests of reports share: lines of a run, and what comes of them. */
#ifndef Q3_TEST_REPORT_LINES_H
#define Q3_TEST_REPORT_LINES_H

#include "judge/report.h"
#include "t.h"

#define TAP(layer, rest) "model.layers." #layer "." rest
#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static void release(q3_text *text)
{
    free(text->data);
    memset(text, 0, sizeof *text);
}

/* What a run of layers [first, end) of `layers`, none of them dense, writes a line for, too:
 * missing. */
static void add_rest(q3_text *lines, size_t first, size_t end, size_t layers)
{
    for (int id = 0; id < Q3_TAP_COUNT; id++) {
        bool front = id <= Q3_TAP_SIN, head = id >= Q3_TAP_NORM;
        if (id >= Q3_TAP_DENSE_GATE_PROJ && id <= Q3_TAP_DENSE_DOWN_PROJ_INPUT) continue;
        if ((id == Q3_TAP_EMBED_TOKENS && first > 0) || (head && end < layers)) continue;
        for (size_t layer = front || head ? 0 : first; layer < (front || head ? 1 : end); layer++) {
            char name[Q3_TAP_NAME_SIZE], key[Q3_TAP_NAME_SIZE + 10];
            q3_tap_name(name, (q3_tap_id)id, layer);
            snprintf(key, sizeof key, "{\"tap\":\"%s\"", name);
            if (strstr(lines->data, key) == NULL)
                q3_report_put_finding(
                    lines,
                    &(q3_finding){.name = name, .layer = layer, .verdict = Q3_VERDICT_MISSING});
        }
    }
}

static q3_status read_text(q3_text *text, q3_outcome *result, const char *lines, bool all,
                           bool colour, q3_error *error)
{
    q3_report_part part = {"lines", lines, strlen(lines)};
    q3_report *report;
    release(text);
    q3_status status = q3_report_read(&report, &part, 1, false, error);
    CHECK((status == Q3_OK) == (report != NULL));
    if (status != Q3_OK) return status;
    unsigned flags = (all ? Q3_REPORT_ALL : 0) | (colour ? Q3_REPORT_COLOUR : 0);
    status = q3_report_text(report, flags, &text->data, &text->size, error);
    CHECK(status == Q3_OK && text->data[text->size] == 0);
    *result = q3_report_outcome(report);
    q3_report_close(report);
    return status;
}

/* The text of lines that are a report. */
static q3_outcome good_text(q3_text *text, const char *lines, bool all, bool colour)
{
    q3_outcome result = Q3_OUTCOME_UNJUDGED;
    q3_error error = {""};
    q3_status status = read_text(text, &result, lines, all, colour, &error);
    CHECKF(status == Q3_OK && text->data != NULL && !text->failed, "status %d: %s", (int)status,
           error.text);
    return result;
}

/* The message of lines that are none. */
static void refused(const char *lines, const char *message)
{
    q3_text text = {0};
    q3_outcome result;
    q3_error error = {""};
    q3_status status = read_text(&text, &result, lines, false, false, &error);
    CHECKF(status == Q3_ERROR_INPUT && strcmp(error.text, message) == 0 && text.data == NULL,
           "status %d, \"%s\", expected \"%s\"", (int)status, error.text, message);
    release(&text);
}

static q3_status read_html(q3_text *html, const char *lines, q3_error *error)
{
    q3_report_part part = {"lines", lines, strlen(lines)};
    q3_report *report;
    q3_status status = q3_report_read(&report, &part, 1, false, error);
    if (status != Q3_OK) return status;
    status = q3_report_html(report, &html->data, &html->size, error);
    q3_report_close(report);
    return status;
}

/* The text ends with this line, and the one before begins so. */
static void ends(const q3_text *text, const char *before, const char *line)
{
    char end[512];
    snprintf(end, sizeof end, "\n%s\n", line);
    size_t n = strlen(end);
    const char *p = text->size > n ? text->data + text->size - n : text->data;
    CHECKF(strcmp(p, end) == 0, "expected \"%s\" at the end of \"%s\"", line, text->data);
    while (p > text->data && p[-1] != '\n') p--;
    bool begins = strncmp(p, before, strlen(before)) == 0;
    CHECKF(begins, "expected \"%s\" before the end of \"%s\"", before, text->data);
}

#endif
