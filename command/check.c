/* check.c - the verbs `check` and `report`: options in, reports out. */
#include "command/command.h"
#include "judge/walk.h"
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Unit roundoff of what --accumulate names; tf32 is cut off, not rounded, by some. */
static const struct { const char *name; double operand; } precisions[] = {
    {"bf16", 0x1p-9}, {"f16", 0x1p-11}, {"tf32", 0x1p-10},
};

static q3_status read_options(judge_options *options, const command_line *command, q3_error *error)
{
    const char *accumulate = command->value[OPTION_ACCUMULATE], *kv = command->value[OPTION_KV];
    *options = (judge_options){command->value[OPTION_FREE] != NULL, 0, Q3_AUTO, show_progress};
    for (size_t i = 0; accumulate != NULL && i < sizeof precisions / sizeof precisions[0]; i++)
        if (strcmp(accumulate, precisions[i].name) == 0) options->operand = precisions[i].operand;
    if (accumulate != NULL && options->operand == 0)
        return q3_fail(error, Q3_ERROR_INPUT, "--accumulate: found %.40s, expected bf16, f16 or tf32", accumulate);
    for (q3_dtype d = Q3_BF16; kv != NULL && d <= Q3_F16; d++)
        if (strcmp(kv, q3_dtype_name(d)) == 0) options->kv = d;
    if (kv != NULL && options->kv == Q3_AUTO)
        return q3_fail(error, Q3_ERROR_INPUT, "--kv: found %.40s, expected float16 or bfloat16", kv);
    return Q3_OK;
}

/* ==== The run ================================================================================== */

/* The backend's ids, else those of --tokens or --prompt; both: the same. Layers above 0 need none. */
static q3_status read_ids(token_list *tokens, const command_line *command, const q3_session *session,
                          const backend *b, q3_error *error)
{
    bool given = command->value[OPTION_TOKENS] != NULL || command->value[OPTION_PROMPT] != NULL;
    q3_status status = Q3_OK;
    if (given) status = read_tokens(command, command->value[OPTION_PROMPT], tokens, error);
    if (status != Q3_OK) return status;
    if (given && b->T != 0 && tokens->count != b->T)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found %zu tokens, expected %zu as given", b->path, b->T,
                    tokens->count);
    for (size_t t = 0; given && b->ids != NULL && t < b->T; t++)
        if (b->ids[t] != tokens->ids[t])
            return q3_fail(error, Q3_ERROR_INPUT, "%s: input_ids: found %ld for token %zu, expected %ld as given", b->path,
                        (long)b->ids[t], t, (long)tokens->ids[t]);
    if (given) return Q3_OK;
    if (b->ids == NULL && session->run.first_layer == 0)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: input_ids: found none, expected them, or --tokens or --prompt",
                    b->path);
    if (b->ids == NULL) return Q3_OK;
    tokens->ids = malloc(b->T * sizeof *tokens->ids);
    if (tokens->ids == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu tokens", b->T);
    memcpy(tokens->ids, b->ids, b->T * sizeof *tokens->ids);
    tokens->count = b->T;
    return Q3_OK;
}

/* The tensor that layer A > 0 starts from, or NULL. */
static const backend_tensor *start_tensor(const q3_session *session, const backend *b)
{
    return session->run.first_layer == 0 ? NULL : q3_backend_find(b, Q3_TAP_LAYER, session->run.first_layer - 1);
}

/* Rows of the start tensor say how many tokens there are where the file has no ids. */
static size_t count_rows(const backend_tensor *start)
{
    const q3_entry *e = start->entry;
    return e->rank >= 2 && e->shape[e->rank - 2] <= Q3_MAX_POSITIONS ? (size_t)e->shape[e->rank - 2] : 0;
}

static q3_status read_hidden(float **hidden, const q3_session *session, const backend *b, size_t T, q3_error *error)
{
    const backend_tensor *start = start_tensor(session, b);
    char name[Q3_TAP_NAME_SIZE];
    size_t M = session->config->hidden_size;
    if (session->run.first_layer == 0) return Q3_OK;
    q3_tap_name(name, Q3_TAP_LAYER, session->run.first_layer - 1);
    if (start == NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %s: found none, expected it for --layers %zu:%zu", b->path, name,
                    session->run.first_layer, session->run.end_layer);
    if (start->layouts == 0 || start->first != 0)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %s: found another shape, expected [%zu,%zu]", b->path, name, T, M);
    *hidden = malloc(T * M * sizeof **hidden);
    if (*hidden == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu tokens", T);
    for (size_t t = 0; t < T; t++) q3_backend_row(*hidden + t * M, b, start, Q3_TAP_LAYER, 0, t);
    return Q3_OK;
}

/* Loads the model for the backend's run and judges it into lines. */
static q3_status judge(q3_text *lines, const command_line *command, q3_session *session, backend *b,
                       const judge_options *options, token_list *tokens, float **hidden, q3_error *error)
{
    q3_status status = read_ids(tokens, command, session, b, error);
    const backend_tensor *start = start_tensor(session, b);
    size_t T = tokens->count != 0 ? tokens->count : b->T;
    if (T == 0 && start != NULL) T = count_rows(start);
    if (session->run.dtype == Q3_AUTO) session->run.dtype = b->dtype;
    session->run.start = b->start;
    if (status == Q3_OK && tokens->count != 0) status = session_check_tokens(session, tokens, 0, error);
    if (status == Q3_OK && (T == 0 || T > Q3_MAX_POSITIONS - b->start))
        status = q3_fail(error, Q3_ERROR_INPUT, "%s: found %zu tokens from %zu on, expected 1 or more, all below %zu",
                      b->path, T, b->start, Q3_MAX_POSITIONS);
    if (status == Q3_OK) status = q3_backend_bind(b, T, error);
    if (status == Q3_OK) status = read_hidden(hidden, session, b, T, error);
    if (status != Q3_OK) return status;
    session->run.rows = session->run.chunk = T;
    status = session_load(session, command, error);
    if (status != Q3_OK) return status;
    const char *accumulate = command->value[OPTION_ACCUMULATE], *kv = command->value[OPTION_KV];
    q3_judged_run run = {
        command->model, b->path, session->run.dtype, T, b->start, session->config->num_hidden_layers,
        session->run.first_layer, session->run.end_layer, options->free_running, command->value[OPTION_STRICT] != NULL,
        accumulate != NULL ? accumulate : "", kv != NULL ? kv : "", b->unknown, b->unknown_name,
    };
    q3_report_put_run(lines, &run);
    return q3_compare_run(lines, session->state, session->config, q3_model_weights(session->model), &session->run, b,
                       tokens->ids, *hidden, T, options, error);
}

/* ==== Reports out ============================================================================== */

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
                return q3_fail(error, Q3_ERROR_INPUT, "%s: found %.300s, expected a file that is not read",
                            outputs[o].option, outputs[o].path);
    if (json == NULL || page == NULL || !q3_same_file(json, page)) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT, "--html: found %.300s, expected another file than --json's", page);
}

static q3_status write_reports(const command_line *command, const q3_report_part *parts, size_t count, bool whole,
                               q3_error *error)
{
    q3_report *report = NULL;
    char *text = NULL, *html = NULL, *lines = NULL;
    size_t text_length = 0, html_length = 0, lines_length = 0;
    q3_outcome outcome = Q3_OUTCOME_UNJUDGED;
    const char *json = command->value[OPTION_JSON_FILE], *page = command->value[OPTION_HTML];
    unsigned flags = command->value[OPTION_ALL] != NULL ? Q3_REPORT_ALL : 0;
    if (is_terminal(stdout)) flags |= Q3_REPORT_COLOUR;
    q3_status status = q3_report_read(&report, parts, count, whole, error);
    if (status == Q3_OK) outcome = q3_report_outcome(report);
    if (status == Q3_OK) status = q3_report_text(report, flags, &text, &text_length, error);
    if (status == Q3_OK && page != NULL) status = q3_report_html(report, &html, &html_length, error);
    if (status == Q3_OK && json != NULL) status = q3_report_lines(report, &lines, &lines_length, error);
    if (status == Q3_OK && json != NULL) status = write_file(json, lines, lines_length, error);
    if (status == Q3_OK) status = check_outputs(command, error); /* other spellings of a file that is there now */
    if (status == Q3_OK && page != NULL) status = write_file(page, html, html_length, error);
    bool taken = (json != NULL && strcmp(json, "-") == 0) || (page != NULL && strcmp(page, "-") == 0);
    if (status == Q3_OK && !taken) fwrite(text, 1, text_length, stdout);
    free(text);
    free(html);
    free(lines);
    q3_report_close(report);
    if (status != Q3_OK) return status;
    if (outcome == Q3_OUTCOME_DIFFERS) return VERB_DIFFERS;
    if (outcome == Q3_OUTCOME_AGREES) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT, "%s: no tensor could be judged", parts[0].name);
}

q3_status write_report(const command_line *command, const q3_text *lines, q3_error *error)
{
    q3_report_part part = {command->operand, lines->data, lines->size};
    if (lines->failed) return q3_fail(error, Q3_ERROR_MEMORY, "%s: no memory for the report", part.name);
    return write_reports(command, &part, 1, false, error);
}

/* ==== The verbs ================================================================================ */

q3_status verb_check(const command_line *command, q3_error *error)
{
    q3_session session;
    backend b = {0};
    judge_options options;
    token_list tokens = {NULL, 0};
    float *hidden = NULL;
    q3_text lines = {0};
    if (command->operand == NULL)
        return q3_fail(error, Q3_ERROR_INPUT,
                    "check: found no file behind MODEL, expected the other implementation's tensors");
    q3_status status = check_outputs(command, error);
    if (status == Q3_OK) status = read_options(&options, command, error);
    if (status == Q3_OK) status = session_open(&session, command, error);
    if (status != Q3_OK) return status;
    status = q3_backend_open(&b, command->operand, session.model, error);
    if (status == Q3_OK) status = judge(&lines, command, &session, &b, &options, &tokens, &hidden, error);
    if (status == Q3_OK) status = write_report(command, &lines, error);
    free(lines.data);
    free(hidden);
    free(tokens.ids);
    q3_backend_close(&b);
    session_close(&session);
    return status;
}

q3_status verb_report(const command_line *command, q3_error *error)
{
    size_t count = command->operand_count, read = 0;
    q3_report_part *parts = calloc(count, sizeof *parts);
    q3_status status = check_outputs(command, error);
    if (parts == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu files", count);
    for (; read < count && status == Q3_OK; read++) {
        uint8_t *bytes = NULL;
        size_t length = 0;
        status = read_whole(command->operands[read], &bytes, &length, error);
        if (status == Q3_OK && memchr(bytes, 0, length) != NULL)
            status = q3_fail(error, Q3_ERROR_INPUT, "%s: found a zero byte, expected lines of JSON", command->operands[read]);
        parts[read] = (q3_report_part){command->operands[read], (const char *)bytes, length};
    }
    if (status == Q3_OK) status = write_reports(command, parts, count, true, error);
    for (size_t i = 0; i < read; i++) free((void *)(uintptr_t)parts[i].lines);
    free(parts);
    return status;
}
