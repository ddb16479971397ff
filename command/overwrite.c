/* SPDX-License-Identifier: MIT */
/* overwrite.c - what a command line writes destroys nothing: no output is an input, or a file of
 * the model that no earlier run wrote, however its path is spelled. */
#include "command/command.h"

#include "host/gguf.h"

#include <stdlib.h>
#include <string.h>

/* The options that name a file to read. */
static const option_id inputs[] = {OPTION_CHAT, OPTION_FROM};

#define DUMP_MARK "\"format\":\"qwen3moe-taps-1\""
#define STATE_MARK "\"format\":\"qwen3moe-unfinished-1\""

/* The options that write a file: to their value, or where that is no path beside -o's. A file that
 * an earlier run wrote begins with the mark. */
typedef struct output_row {
    option_id option;
    const char *suffix; /* NULL: the option's value is the path */
    const char *mark;
} output_row;

static const output_row outputs[] = {
    {OPTION_OUTPUT, NULL, DUMP_MARK},
    {OPTION_JSON_FILE, NULL, "{\"run\":{\"format\":\"qwen3moe-report-1\""},
    {OPTION_HTML, NULL, "<title>qwen3moe: "},
    {OPTION_JUNIT, NULL, "\n<testsuites>\n<testsuite name=\""},
    {OPTION_RESUME, ".part", DUMP_MARK},
    {OPTION_RESUME, ".part.state", STATE_MARK},
    {OPTION_RESUME, ".part.state.part", STATE_MARK},
};

static q3_status fail_output(const char *name, const char *path, const char *expected,
                             q3_error *error)
{
    return q3_fail(error, Q3_ERROR_INPUT, "%s: found %.300s, expected %s", name, path, expected);
}

/* The index-th path that is read; NULL: there are no more. */
static const char *input_at(const command_line *command, size_t index)
{
    if (index < command->file_count) return command->operands[index];
    index -= command->file_count;
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++)
        if (command->value[inputs[i]] != NULL && index-- == 0) return command->value[inputs[i]];
    return NULL;
}

/* No file that is read, and not the place of what is printed. */
static q3_status check_named(const command_line *command, const char *name, const char *path,
                             q3_error *error)
{
    const char *input;
    bool read = false;
    q3_status status = Q3_OK;
    if (command->has_model) status = q3_gguf_has_part(&read, command->model, path, error);
    if (status != Q3_OK) return status;
    read = read || q3_stream_is(0, path);
    for (size_t i = 0; !read && (input = input_at(command, i)) != NULL; i++)
        read = q3_same_file(path, input);
    if (read) return fail_output(name, path, "a file that is not read", error);
    if (q3_stream_is(1, path))
        return fail_output(name, path, "another file than standard output", error);
    if (!q3_stream_is(2, path)) return Q3_OK;
    return fail_output(name, path, "another file than standard error", error);
}

/* No file of the model's folder, and nothing in the place of an unfinished run, that no earlier run
 * wrote. */
static q3_status check_kept(const command_line *command, const output_row *row, const char *name,
                            const char *path, q3_error *error)
{
    bool holds = false;
    q3_status status = Q3_OK;
    if (command->has_model) status = q3_folder_holds(&holds, command->model, path, error);
    if (status != Q3_OK || (!holds && row->suffix == NULL) || q3_is_earlier(path, row->mark))
        return status;
    return fail_output(name, path, "a new file, or one that an earlier run wrote", error);
}

static q3_status check_output(const command_line *command, const output_row *row, q3_error *error)
{
    bool beside = row->suffix != NULL;
    const char *value = command->value[beside ? OPTION_OUTPUT : row->option];
    const char *name = option_name(beside ? OPTION_OUTPUT : row->option);
    if (command->value[row->option] == NULL || value == NULL || q3_is_standard(value))
        return Q3_OK;
    char *path = q3_join(value, beside ? row->suffix : "", "");
    if (path == NULL) return q3_no_memory(error, value);
    q3_status status = check_named(command, name, path, error);
    if (status == Q3_OK) status = check_kept(command, row, name, path, error);
    free(path);
    return status;
}

q3_status check_outputs(const command_line *command, q3_error *error)
{
    q3_status status = Q3_OK;
    const char *input;
    for (size_t i = 0; (input = input_at(command, i)) != NULL; i++)
        if (q3_stream_is(1, input))
            return fail_output("standard output", input, "a file that is not read", error);
    for (size_t i = 0; i < sizeof outputs / sizeof outputs[0] && status == Q3_OK; i++)
        status = check_output(command, &outputs[i], error);
    return status;
}
