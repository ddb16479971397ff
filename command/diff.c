/* SPDX-License-Identifier: MIT */
/* diff.c - `qwen3moe diff`: the figures for two files of tensors. */
#include "command/command.h"
#include "judge/judge.h"

q3_status verb_diff(const command_line *command, q3_error *error)
{
    q3_report *report = NULL;
    report_outputs outputs = {.standard = false};
    progress shown = {.what = NULL};
    if (command->operand == NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "diff: the second file is missing");
    q3_status status = open_outputs(&outputs, command, error);
    if (status == Q3_OK)
        status = q3_diff(&report, command->model, command->operand, command->text, report_progress,
                         &shown, error);
    if (status == Q3_OK) status = write_report(command, command->operand, report, &outputs, error);
    abandon_outputs(&outputs);
    q3_report_close(report);
    return status;
}
