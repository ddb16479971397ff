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

static const struct {
    option_id option;
    q3_status (*write)(const q3_report *report, char **text, size_t *length, q3_error *error);
} kinds[REPORT_OUTPUTS] = {
    {OPTION_JSON_FILE, q3_report_lines},
    {OPTION_HTML, q3_report_html},
    {OPTION_JUNIT, q3_report_junit},
};

/* No output is an input, or another output. */
static q3_status check_output(const report_outputs *outputs, size_t kind,
                              const command_line *command, q3_error *error)
{
    const char *path = command->value[kinds[kind].option], *name = option_name(kinds[kind].option);
    for (size_t i = 0; i < command->operand_count; i++)
        if (q3_same_file(path, command->operands[i]))
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: found %.300s, expected a file that is not read", name, path);
    for (size_t i = 0; i < kind; i++)
        if (outputs->file[i] != NULL && q3_output_is(outputs->file[i], path))
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: found %.300s, expected another file than %s's", name, path,
                           option_name(kinds[i].option));
    return Q3_OK;
}

q3_status open_outputs(report_outputs *outputs, const command_line *command, q3_error *error)
{
    q3_status status = Q3_OK;
    memset(outputs, 0, sizeof *outputs);
    for (size_t i = 0; i < REPORT_OUTPUTS && status == Q3_OK; i++) {
        const char *path = command->value[kinds[i].option];
        if (path == NULL) continue;
        status = check_output(outputs, i, command, error);
        if (status == Q3_OK) status = q3_output_open(&outputs->file[i], path, error);
        outputs->standard = outputs->standard || strcmp(path, "-") == 0;
    }
    if (status != Q3_OK) abandon_outputs(outputs);
    return status;
}

void abandon_outputs(report_outputs *outputs)
{
    for (size_t i = 0; i < REPORT_OUTPUTS; i++) q3_output_abandon(outputs->file[i]);
    memset(outputs, 0, sizeof *outputs);
}

static q3_status print_text(const command_line *command, const q3_report *report, q3_error *error)
{
    char *text;
    size_t length;
    unsigned flags = command->value[OPTION_ALL] != NULL ? Q3_REPORT_ALL : 0;
    if (is_terminal(stdout)) flags |= Q3_REPORT_COLOUR;
    q3_status status = q3_report_text(report, flags, &text, &length, error);
    if (status == Q3_OK) fwrite(text, 1, length, stdout);
    free(text);
    return status;
}

static q3_status write_output(report_outputs *outputs, size_t kind, const q3_report *report,
                              q3_error *error)
{
    char *text;
    size_t length;
    q3_output *output = outputs->file[kind];
    q3_status status = kinds[kind].write(report, &text, &length, error);
    if (status == Q3_OK)
        status = q3_output_put(output, 0, (const uint8_t *)text, length, error);
    free(text);
    if (status != Q3_OK) return status;
    outputs->file[kind] = NULL;
    return q3_output_commit(output, error);
}

/* The text first: what a file's place cannot take was found out all the same. */
q3_status write_report(const command_line *command, const char *name, const q3_report *report,
                       report_outputs *outputs, q3_error *error)
{
    q3_error why;
    q3_status status = Q3_OK;
    if (!outputs->standard) status = print_text(command, report, error);
    for (size_t i = 0; i < REPORT_OUTPUTS && status == Q3_OK; i++)
        if (outputs->file[i] != NULL) status = write_output(outputs, i, report, error);
    abandon_outputs(outputs);
    if (status != Q3_OK) return status;
    switch (q3_report_outcome(report)) {
    case Q3_OUTCOME_AGREES: return Q3_OK;
    case Q3_OUTCOME_DIFFERS: return VERB_DIFFERS;
    case Q3_OUTCOME_UNJUDGED: default: break;
    }
    q3_report_sentence(report, &why);
    return q3_fail(error, Q3_ERROR_INPUT, "%s: %s", name, why.text);
}

void report_progress(void *user, const char *what, size_t done, size_t all)
{
    progress *shown = user;
    shown->what = what;
    show_progress(shown, done, all);
}

/* ==== The verb ================================================================================ */

q3_status verb_report(const command_line *command, q3_error *error)
{
    size_t count = command->operand_count, read = 0;
    q3_report_part *parts = calloc(count, sizeof *parts);
    q3_report *report = NULL;
    report_outputs outputs;
    q3_status status = open_outputs(&outputs, command, error);
    if (status == Q3_OK && parts == NULL) status = q3_no_memory(error, "report");
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
    if (status == Q3_OK) status = write_report(command, parts[0].name, report, &outputs, error);
    for (size_t i = 0; i < read; i++) free((void *)(uintptr_t)parts[i].lines);
    free(parts);
    abandon_outputs(&outputs);
    q3_report_close(report);
    return status;
}
