/* SPDX-License-Identifier: MIT */
/* check.c - `qwen3moe check`: judges another implementation's tensors. */
#include "command/command.h"
#include "judge/judge.h"

#include <stdlib.h>
#include <string.h>

/* A dtype that something is rounded to. */
static q3_status read_format(q3_dtype *dtype, const command_line *command, option_id option,
                             q3_error *error)
{
    const char *text = command->value[option];
    for (q3_dtype d = Q3_BF16; text != NULL && d <= Q3_F16; d++)
        if (strcmp(text, q3_dtype_name(d)) == 0) *dtype = d;
    if (text == NULL || *dtype != Q3_F32) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT, "%s: found %.40s, expected float16 or bfloat16",
                   option_name(option), text);
}

static q3_status read_options(q3_judge_options *options, const command_line *command,
                              q3_error *error)
{
    static const struct { const char *name; q3_accumulate value; } precisions[] = {
        {"bf16", Q3_ACCUMULATE_BF16}, {"f16", Q3_ACCUMULATE_F16}, {"tf32", Q3_ACCUMULATE_TF32},
    };
    const char *accumulate = command->value[OPTION_ACCUMULATE];
    *options = (q3_judge_options){
        .free_running = command->value[OPTION_FREE] != NULL,
        .strict = command->value[OPTION_STRICT] != NULL,
        .model = command->model,
        .progress = report_progress,
    };
    for (size_t i = 0; accumulate != NULL && i < sizeof precisions / sizeof precisions[0]; i++)
        if (strcmp(accumulate, precisions[i].name) == 0) options->accumulate = precisions[i].value;
    if (accumulate != NULL && options->accumulate == Q3_ACCUMULATE_F32)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "--accumulate: found %.40s, expected bf16, f16 or tf32", accumulate);
    q3_status status = read_format(&options->kv, command, OPTION_KV, error);
    return status == Q3_OK ? read_format(&options->router, command, OPTION_ROUTER, error) : status;
}

/* --tokens or --prompt. */
static q3_status give_tokens(q3_judge *judge, const command_line *command, q3_error *error)
{
    token_list tokens = {NULL, 0};
    if (command->value[OPTION_TOKENS] == NULL && command->value[OPTION_PROMPT] == NULL)
        return Q3_OK;
    q3_status status = read_tokens(command, command->value[OPTION_PROMPT], &tokens, error);
    if (status == Q3_OK) status = q3_judge_tokens(judge, tokens.ids, tokens.count, error);
    free(tokens.ids);
    return status;
}

q3_status verb_check(const command_line *command, q3_error *error)
{
    q3_session session;
    q3_judge_options options;
    q3_judge *judge = NULL;
    q3_report *report = NULL;
    if (command->operand == NULL)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "check: the file of the other implementation's tensors is missing");
    q3_status status = check_outputs(command, error);
    if (status == Q3_OK) status = read_options(&options, command, error);
    if (status == Q3_OK) status = session_open(&session, command, error);
    if (status != Q3_OK) return status;
    q3_run *run = &session.run;
    options.first_layer = run->first_layer;
    options.end_layer = run->end_layer;
    status = q3_judge_open(&judge, session.config, &options, error);
    if (status == Q3_OK) status = q3_judge_file(judge, command->operand, error);
    if (status == Q3_OK) status = give_tokens(judge, command, error);
    if (status == Q3_OK) status = q3_judge_prepare(judge, &run->dtype, error);
    if (status == Q3_OK) status = session_load_weights(&session, error);
    if (status == Q3_OK)
        status = q3_judge_run(judge, q3_model_weights(session.model), run->dtype, &report, error);
    if (status == Q3_OK) status = write_report(command, command->operand, report, error);
    q3_report_close(report);
    q3_judge_close(judge);
    session_close(&session);
    return status;
}
