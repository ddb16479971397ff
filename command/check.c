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
        {"bf16-sums", Q3_ACCUMULATE_BF16_SUMS}, {"f16-sums", Q3_ACCUMULATE_F16_SUMS},
        {"fp8", Q3_ACCUMULATE_FP8}, {"q8", Q3_ACCUMULATE_Q8},
    };
    const char *accumulate = command->value[OPTION_ACCUMULATE];
    *options = (q3_judge_options){
        .free_running = command->value[OPTION_FREE] != NULL,
        .strict = command->value[OPTION_STRICT] != NULL,
        .model = command->model,
        .command = command->text,
        .require = command->require,
        .require_count = command->require_count,
    };
    for (size_t i = 0; accumulate != NULL && i < sizeof precisions / sizeof precisions[0]; i++)
        if (strcmp(accumulate, precisions[i].name) == 0) options->accumulate = precisions[i].value;
    if (accumulate != NULL && options->accumulate == Q3_ACCUMULATE_F32)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "--accumulate: found %.40s, expected bf16, f16, tf32, bf16-sums, f16-sums, "
                       "fp8 or q8", accumulate);
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

/* The model's tokenizer, for the text of the tokens; NULL where there is none that can be read. */
static q3_tokenizer *find_tokenizer(const command_line *command)
{
    q3_tokenizer *tokenizer;
    return open_tokenizer(&tokenizer, command, NULL) == Q3_OK ? tokenizer : NULL;
}

/* One file under judgement. */
typedef struct side {
    const char *path;
    q3_session session;
    progress shown;
    q3_judge *judge;
    q3_report *report;
} side;

/* The judge has come to another layer. */
static void side_progress(void *user, const char *what, size_t done, size_t all)
{
    side *s = user;
    q3_model_turn(s->session.model, done);
    report_progress(&s->shown, what, done, all);
}

/* Everything that can be found wrong before the work. */
static q3_status side_open(side *s, const command_line *command, q3_judge_options options,
                           q3_error *error)
{
    q3_status status = session_open(&s->session, command, error);
    if (status != Q3_OK) return status;
    q3_run *run = &s->session.run;
    options.first_layer = run->first_layer;
    options.end_layer = run->end_layer;
    options.progress = side_progress;
    options.user = s;
    status = q3_judge_open(&s->judge, s->session.config, &options, error);
    if (status == Q3_OK) status = q3_judge_file(s->judge, s->path, error);
    if (status == Q3_OK) status = give_tokens(s->judge, command, error);
    if (status == Q3_OK) status = q3_judge_prepare(s->judge, &run->dtype, error);
    return status;
}

static q3_status side_run(side *s, q3_error *error)
{
    q3_status status = session_load_weights(&s->session, error);
    if (status != Q3_OK) return status;
    q3_model_turn(s->session.model, s->session.run.first_layer);
    return q3_judge_run(s->judge, q3_model_weights(s->session.model), s->session.run.dtype,
                        &s->report, error);
}

static void side_close(side *s)
{
    q3_report_close(s->report);
    q3_judge_close(s->judge);
    session_close(&s->session);
}

/* The lines of both sides as one report. */
static q3_status join_sides(q3_report **report, const side *sides, q3_error *error)
{
    q3_report_part parts[2];
    char *lines[2] = {NULL, NULL};
    q3_status status = Q3_OK;
    for (size_t i = 0; i < 2 && status == Q3_OK; i++) {
        status = q3_report_lines(sides[i].report, &lines[i], &parts[i].length, error);
        parts[i].name = sides[i].path;
        parts[i].lines = lines[i];
    }
    if (status == Q3_OK) status = q3_report_read(report, parts, 2, false, error);
    free(lines[0]);
    free(lines[1]);
    return status;
}

/* Two files: each is judged by itself, and the report has both. */
static q3_status check_sides(side *sides, size_t count, const command_line *command,
                             const q3_judge_options *options, report_outputs *outputs,
                             q3_error *error)
{
    q3_status status = Q3_OK;
    q3_report *both = NULL;
    for (size_t i = 0; i < count && status == Q3_OK; i++) {
        q3_judge_options own = *options;
        if (count > 1) own.side = i == 0 ? 'A' : 'B';
        sides[i].path = command->operands[i + 1];
        status = side_open(&sides[i], command, own, error);
    }
    for (size_t i = 0; i < count && status == Q3_OK; i++) status = side_run(&sides[i], error);
    if (status == Q3_OK && count > 1) status = join_sides(&both, sides, error);
    if (status == Q3_OK)
        status = write_report(command, command->operand, count > 1 ? both : sides[0].report,
                              outputs, error);
    q3_report_close(both);
    return status;
}

q3_status verb_check(const command_line *command, q3_error *error)
{
    q3_judge_options options;
    report_outputs outputs;
    side sides[2] = {{.path = NULL}, {.path = NULL}};
    size_t count = command->operand_count - 1;
    if (command->operand == NULL)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "check: the file of the other implementation's tensors is missing");
    q3_status status = read_options(&options, command, error);
    if (status == Q3_OK) status = open_outputs(&outputs, command, error);
    if (status != Q3_OK) return status;
    q3_tokenizer *tokenizer = find_tokenizer(command);
    options.tokenizer = tokenizer;
    status = check_sides(sides, count, command, &options, &outputs, error);
    for (size_t i = 0; i < count; i++) side_close(&sides[i]);
    q3_tokenizer_free(tokenizer);
    abandon_outputs(&outputs);
    return status;
}
