/* SPDX-License-Identifier: MIT */
/* report.c - `qwen3moe report`, and how the reports of all verbs are written: the text, --json and
 * --html. */
#include "command/command.h"
#include "host/files.h"
#include "judge/judge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Reports out ============================================================================= */

static q3_status write_file(const char *path, const char *text, size_t length, q3_error *error)
{
    q3_output *output;
    q3_status status = q3_output_open(&output, path, error);
    if (status != Q3_OK) return status;
    status = q3_output_put(output, 0, (const uint8_t *)text, length, error);
    if (status == Q3_OK) return q3_output_commit(output, error);
    q3_output_abandon(output);
    return status;
}

q3_status check_outputs(const command_line *command, q3_error *error)
{
    const char *json = command->value[OPTION_JSON_FILE], *page = command->value[OPTION_HTML];
    const struct { const char *option, *path; } outputs[] = {{"--json", json}, {"--html", page}};
    for (size_t o = 0; o < 2; o++)
        for (size_t i = 0; outputs[o].path != NULL && i < command->operand_count; i++)
            if (q3_same_file(outputs[o].path, command->operands[i]))
                return q3_fail(error, Q3_ERROR_INPUT,
                               "%s: found %.300s, expected a file that is not read",
                               outputs[o].option, outputs[o].path);
    if (json == NULL || page == NULL || !q3_same_file(json, page)) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT,
                   "--html: found %.300s, expected another file than --json's", page);
}

q3_status write_report(const command_line *command, const char *name, const q3_report *report,
                       q3_error *error)
{
    char *text = NULL, *html = NULL, *lines = NULL;
    size_t text_length = 0, html_length = 0, lines_length = 0;
    const char *json = command->value[OPTION_JSON_FILE], *page = command->value[OPTION_HTML];
    unsigned flags = command->value[OPTION_ALL] != NULL ? Q3_REPORT_ALL : 0;
    if (is_terminal(stdout)) flags |= Q3_REPORT_COLOUR;
    q3_status status = q3_report_text(report, flags, &text, &text_length, error);
    if (status == Q3_OK && page != NULL)
        status = q3_report_html(report, &html, &html_length, error);
    if (status == Q3_OK && json != NULL)
        status = q3_report_lines(report, &lines, &lines_length, error);
    if (status == Q3_OK && json != NULL) status = write_file(json, lines, lines_length, error);
    /* other spellings of a file that is there now */
    if (status == Q3_OK) status = check_outputs(command, error);
    if (status == Q3_OK && page != NULL) status = write_file(page, html, html_length, error);
    bool taken = (json != NULL && strcmp(json, "-") == 0) ||
                 (page != NULL && strcmp(page, "-") == 0);
    if (status == Q3_OK && !taken) fwrite(text, 1, text_length, stdout);
    free(text);
    free(html);
    free(lines);
    if (status != Q3_OK) return status;
    switch (q3_report_outcome(report)) {
    case Q3_OUTCOME_AGREES: return Q3_OK;
    case Q3_OUTCOME_DIFFERS: return VERB_DIFFERS;
    case Q3_OUTCOME_UNJUDGED: default: break;
    }
    return q3_fail(error, Q3_ERROR_INPUT, "%s: no tensor could be judged", name);
}

void report_progress(void *user, const char *what, size_t done, size_t all)
{
    (void)user;
    show_progress(what, done, all);
}

/* ==== The verb ================================================================================ */

q3_status verb_report(const command_line *command, q3_error *error)
{
    size_t count = command->operand_count, read = 0;
    q3_report_part *parts = calloc(count, sizeof *parts);
    q3_report *report = NULL;
    q3_status status = check_outputs(command, error);
    if (parts == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu files", count);
    for (; read < count && status == Q3_OK; read++) {
        const char *path = command->operands[read];
        uint8_t *bytes = NULL;
        size_t length = 0;
        status = q3_read_whole(&bytes, &length, path, error);
        if (status == Q3_OK && memchr(bytes, 0, length) != NULL)
            status = q3_fail(error, Q3_ERROR_INPUT, "%s: found a zero byte, expected lines of JSON",
                             path);
        parts[read] = (q3_report_part){path, (const char *)bytes, length};
    }
    if (status == Q3_OK) status = q3_report_read(&report, parts, count, true, error);
    if (status == Q3_OK) status = write_report(command, parts[0].name, report, error);
    for (size_t i = 0; i < read; i++) free((void *)(uintptr_t)parts[i].lines);
    free(parts);
    q3_report_close(report);
    return status;
}
