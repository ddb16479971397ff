/* SPDX-License-Identifier: MIT */
/* score.c - `qwen3moe score`: the perplexity of a text. */
#include "command/command.h"

#include "host/files.h"

#include <stdio.h>
#include <stdlib.h>

/* -log softmax(logits)[id] in float64. */
static double negative_log_likelihood(const float *logits, size_t vocab_size, int32_t id)
{
    double max = (double)logits[q3_argmax(logits, vocab_size)], sum = 0.0;
    for (size_t i = 0; i < vocab_size; i++) sum += q3_exp((double)logits[i] - max);
    return sum == sum ? q3_log(sum) - ((double)logits[id] - max) : sum;
}

/* A float64 as JSON: Python's shortest spelling, null for what JSON cannot say. */
static void print_number(double value)
{
    char text[32];
    if (value - value != 0.0) {
        fputs("null", stdout);
        return;
    }
    q3_json_repr(value, text);
    fputs(text, stdout);
}

/* Tokens 2 to T, as many at a time as there is room for logits: a line of JSON for each, or the
 * totals. Natural logarithms. */
static q3_status score_tokens(q3_session *session, const token_list *tokens, bool lines,
                              q3_error *error)
{
    size_t V = session->config->vocab_size, T = tokens->count, most = session->run.logit_rows;
    double total = 0.0;
    for (size_t first = 0; first < T;) {
        size_t count = T - first < most ? T - first : most;
        q3_input input = {.tokens = tokens->ids + first, .count = count, .length = T,
                          .logit_rows = count};
        q3_status status = q3_forward(session->state, &input, NULL, NULL, error);
        if (status != Q3_OK) return status;
        for (size_t t = 0; t < count && first + t + 1 < T; t++) {
            int32_t id = tokens->ids[first + t + 1];
            double nll = negative_log_likelihood(q3_logits(session->state) + t * V, V, id);
            total += nll;
            if (!lines) continue;
            printf("{\"position\":%zu,\"id\":%ld,\"nll\":", first + t + 1, (long)id);
            print_number(nll);
            puts("}");
        }
        first += count;
        show_progress("score: token", first, T);
    }
    if (lines) return Q3_OK;
    double mean = total / (double)(T - 1);
    printf("tokens %zu\nmean ", T - 1);
    print_number(mean);
    printf("\nperplexity ");
    print_number(q3_exp(mean));
    putchar('\n');
    return Q3_OK;
}

q3_status verb_score(const command_line *command, q3_error *error)
{
    q3_session session;
    token_list tokens = {NULL, 0};
    uint8_t *text = NULL;
    size_t length = 0;
    if (command->operand == NULL)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "score: FILE is missing, a text file, or - for standard input");
    q3_status status = session_open(&session, command, error);
    if (status != Q3_OK) return status;
    status = q3_read_whole(&text, &length, command->operand, error);
    if (status == Q3_OK)
        status = encode_text(command, command->operand, text, length, &tokens, error);
    if (status == Q3_OK) status = session_check_tokens(&session, &tokens, 0, error);
    if (status == Q3_OK && tokens.count < 2)
        status = q3_fail(error, Q3_ERROR_INPUT, "%s: found 1 token, expected at least 2",
                         command->operand);
    if (status == Q3_OK) {
        session.run.rows = tokens.count;
        session.run.chunk = tokens.count < 32 ? tokens.count : 32;
        status = session_load(&session, command, error);
    }
    if (status == Q3_OK)
        status = score_tokens(&session, &tokens, command->value[OPTION_JSONL] != NULL, error);
    free(text);
    free(tokens.ids);
    session_close(&session);
    return status;
}
