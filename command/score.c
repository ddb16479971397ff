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

typedef struct scoring {
    const token_list *tokens;
    bool lines;   /* of JSON, one for each token */
    double total;
} scoring;

/* The pass calls this: logits of some tokens, in the order of the tokens. */
static void score_logits(void *user, const q3_tap *tap)
{
    scoring *s = user;
    if (tap->id != Q3_TAP_LM_HEAD) return;
    size_t count = tap->shape[0], V = tap->shape[1];
    const float *logits = tap->data;
    for (size_t t = 0; t < count && tap->first + t + 1 < s->tokens->count; t++) {
        size_t position = tap->first + t + 1;
        int32_t id = s->tokens->ids[position];
        double nll = negative_log_likelihood(logits + t * V, V, id);
        s->total += nll;
        if (!s->lines) continue;
        printf("{\"position\":%zu,\"id\":%ld,\"nll\":", position, (long)id);
        print_number(nll);
        puts("}");
    }
}

/* Tokens 2 to T: a line of JSON for each, or the totals. Natural logarithms. */
static q3_status score_tokens(const q3_session *session, const token_list *tokens, bool lines,
                              q3_error *error)
{
    scoring s = {tokens, lines, 0.0};
    layer_pass pass = {.what = "score: layer", .tokens = tokens->ids, .logits = true,
                       .head_only = true, .tap = score_logits, .user = &s};
    q3_status status = session_run_layers(session, &pass, error);
    if (status != Q3_OK || lines) return status;
    double mean = s.total / (double)(tokens->count - 1);
    printf("tokens %zu\nmean ", tokens->count - 1);
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
        session.run.chunk = tokens.count < TOKENS_AT_ONCE ? tokens.count : TOKENS_AT_ONCE;
        status = session_load_layers(&session, command, error);
    }
    if (status == Q3_OK)
        status = score_tokens(&session, &tokens, command->value[OPTION_JSONL] != NULL, error);
    free(text);
    free(tokens.ids);
    session_close(&session);
    return status;
}
