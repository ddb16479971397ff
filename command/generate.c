/* SPDX-License-Identifier: MIT */
/* generate.c - `qwen3moe generate`: continues a prompt, greedily or by sampling. */
#include "command/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ==== Sampling ===================================================================================
 * Hugging Face's filters in its order: temperature, top-k, top-p; then one draw. The generator is
 * splitmix64, named in MODEL.md; no other program's draws are reproduced. */

typedef struct candidate {
    double score;
    int32_t id;
} candidate;

typedef struct token_sampler {
    bool greedy;
    double temperature, top_p;
    uint64_t top_k; /* 0: off */
    uint64_t state;
    candidate *candidates; /* [V], falling score; equal scores by rising id */
    size_t vocab_size;
} token_sampler;

/* For qsort: falling score, then rising id. */
static int compare_candidates(const void *left, const void *right)
{
    const candidate *a = left, *b = right;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

/* Reads the sampling options; s->candidates is owned. */
static q3_status sampler_open(token_sampler *s, const command_line *command, size_t vocab_size,
                              q3_error *error)
{
    const char *const *value = command->value;
    memset(s, 0, sizeof *s);
    s->vocab_size = vocab_size;
    s->greedy = value[OPTION_TEMPERATURE] == NULL && value[OPTION_TOP_K] == NULL &&
                value[OPTION_TOP_P] == NULL && value[OPTION_SEED] == NULL;
    q3_status status = number_option(command, OPTION_TEMPERATURE, 1.0, &s->temperature, error);
    if (status == Q3_OK) status = number_option(command, OPTION_TOP_P, 1.0, &s->top_p, error);
    if (status == Q3_OK)
        status = integer_option(command, OPTION_TOP_K, 0, INT32_MAX, 0, &s->top_k, error);
    if (status == Q3_OK)
        status = integer_option(command, OPTION_SEED, 0, UINT64_MAX, 0, &s->state, error);
    if (status != Q3_OK) return status;
    if (s->temperature <= 0.0)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "--temperature: found %.40s, expected a number above 0",
                       value[OPTION_TEMPERATURE]);
    if (s->top_p <= 0.0 || s->top_p > 1.0)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "--top-p: found %.40s, expected a number above 0, at most 1",
                       value[OPTION_TOP_P]);
    if (s->greedy) return Q3_OK;
    s->candidates = malloc(vocab_size * sizeof *s->candidates);
    return s->candidates != NULL ? Q3_OK : q3_no_memory(error, "candidates of the vocabulary");
}

/* 53 bits of splitmix64's next number, as a multiple of 2^-53 in [0, 1). */
static double next_uniform(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* How many candidates top-k leaves: those not below the k-th, ties at the boundary included. */
static size_t keep_top_k(const token_sampler *s)
{
    size_t kept = s->vocab_size;
    if (s->top_k == 0 || s->top_k >= kept) return kept;
    kept = (size_t)s->top_k;
    while (kept < s->vocab_size && s->candidates[kept].score == s->candidates[kept - 1].score)
        kept++;
    return kept;
}

/* How many of them top-p leaves: from the small end, those go whose summed probability is at
 * most 1 - top_p; one always stays. Turns scores into exp(score - max) and returns their sum in
 * *mass. */
static size_t keep_top_p(token_sampler *s, size_t kept, double *mass)
{
    double max = s->candidates[0].score, total = 0.0, small = 0.0;
    for (size_t i = kept; i > 0; i--) {
        s->candidates[i - 1].score = q3_exp(s->candidates[i - 1].score - max);
        total += s->candidates[i - 1].score;
    }
    while (s->top_p < 1.0 && kept > 1) {
        small += s->candidates[kept - 1].score;
        if (small / total > 1.0 - s->top_p) break;
        kept--;
    }
    *mass = 0.0;
    for (size_t i = 0; i < kept; i++) *mass += s->candidates[i].score;
    return kept;
}

/* The next token. Greedy without sampling options: the largest logit, the lowest id of equals. */
static q3_status choose(token_sampler *s, const float *logits, int32_t *id, q3_error *error)
{
    if (s->greedy) {
        *id = (int32_t)q3_argmax(logits, s->vocab_size);
        return Q3_OK;
    }
    for (size_t i = 0; i < s->vocab_size; i++) {
        double score = (double)q3_round((double)logits[i] / s->temperature, Q3_F32);
        if (score - score != 0.0) /* NaN or infinite */
            return q3_fail(error, Q3_ERROR_INPUT,
                           "logits: found NaN or infinity for id %zu, expected numbers", i);
        s->candidates[i].score = score;
        s->candidates[i].id = (int32_t)i;
    }
    qsort(s->candidates, s->vocab_size, sizeof *s->candidates, compare_candidates);
    double mass, sum = 0.0, draw = next_uniform(&s->state);
    size_t kept = keep_top_p(s, keep_top_k(s), &mass);
    size_t i = 0;
    for (; i + 1 < kept; i++) {
        sum += s->candidates[i].score;
        if (sum / mass > draw) break;
    }
    *id = s->candidates[i].id;
    return Q3_OK;
}

/* ==== Generate ================================================================================ */

/* Where the new tokens go: ids on one line, or text as it comes. */
typedef struct token_output {
    q3_tokenizer *tokenizer; /* NULL: ids */
    size_t printed;
} token_output;

/* An id behind a blank, or the bytes of the token, which may be a part of a character. */
static q3_status print_token(token_output *out, int32_t id, q3_error *error)
{
    uint8_t *bytes;
    size_t length;
    if (out->tokenizer == NULL) {
        printf("%s%ld", out->printed++ > 0 ? " " : "", (long)id);
        return Q3_OK;
    }
    q3_status status = q3_tokenizer_decode(out->tokenizer, &id, 1, &bytes, &length, error);
    if (status != Q3_OK) return status;
    fwrite(bytes, 1, length, stdout);
    fflush(stdout);
    free(bytes);
    return Q3_OK;
}

/* Whether id is one of ids[count]. */
static bool is_among(const int32_t *ids, size_t count, int32_t id)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

/* The prompt in chunks; the last one leaves the logits of its last token. Dynamic RoPE takes the
 * prompt's length for all of them, as one call of Hugging Face does. */
static q3_status prefill(q3_session *session, const token_list *tokens, q3_error *error)
{
    progress shown = {.what = "prompt: token"};
    if (tokens->count > session->run.chunk) show_progress(&shown, 0, tokens->count);
    for (size_t first = 0; first < tokens->count;) {
        size_t left = tokens->count - first, chunk = session->run.chunk;
        size_t count = left < chunk ? left : chunk;
        q3_input input = {.tokens = tokens->ids + first, .count = count,
                          .length = session->run.start + tokens->count,
                          .logit_rows = count == left};
        q3_status status = q3_forward(session->state, &input, NULL, NULL, error);
        if (status != Q3_OK) return status;
        first += count;
        if (tokens->count > session->run.chunk)
            show_progress(&shown, first, tokens->count);
    }
    return Q3_OK;
}

/* Prints up to n new tokens, a newline, and the times on standard error. An end token is printed
 * as an id, not as text. */
static q3_status continue_prompt(q3_session *session, const token_list *tokens, uint64_t n,
                                 token_sampler *sampler, token_output *out, q3_error *error)
{
    const int32_t *eos;
    size_t eos_count, made = 0;
    clock_t begin = clock();
    q3_status status = q3_model_eos(session->model, &eos, &eos_count, error);
    if (status == Q3_OK && n > 0) status = prefill(session, tokens, error);
    clock_t middle = clock();
    while (status == Q3_OK && made < n) {
        int32_t id;
        status = choose(sampler, q3_logits(session->state), &id, error);
        if (status != Q3_OK) break;
        made++;
        bool ended = is_among(eos, eos_count, id);
        if (!ended || out->tokenizer == NULL) status = print_token(out, id, error);
        if (ended || made == n || status != Q3_OK) break;
        q3_input input = {.tokens = &id, .count = 1, .logit_rows = 1};
        status = q3_forward(session->state, &input, NULL, NULL, error);
    }
    if (status != Q3_OK) return status;
    putchar('\n');
    fflush(stdout);
    fprintf(stderr, "prompt: %zu tokens in %ld ms; generated: %zu tokens in %ld ms\n",
            tokens->count, (long)((middle - begin) * 1000 / CLOCKS_PER_SEC), made,
            (long)((clock() - middle) * 1000 / CLOCKS_PER_SEC));
    return Q3_OK;
}

q3_status verb_generate(const command_line *command, q3_error *error)
{
    q3_session session;
    token_sampler sampler = {0};
    token_list tokens = {NULL, 0};
    token_output out = {NULL, 0};
    uint64_t n = 64;
    q3_status status = session_open(&session, command, error);
    if (status != Q3_OK) return status;
    status = integer_option(command, OPTION_N, 0, Q3_MAX_POSITIONS, 64, &n, error);
    if (status == Q3_OK)
        status = sampler_open(&sampler, command, session.config->vocab_size, error);
    if (status == Q3_OK) status = read_tokens(command, command->operand, &tokens, error);
    if (status == Q3_OK) status = session_check_tokens(&session, &tokens, (size_t)n, error);
    if (status == Q3_OK && command->value[OPTION_IDS] == NULL)
        status = open_tokenizer(&out.tokenizer, command, error);
    if (status == Q3_OK) {
        session.run.rows = tokens.count + (size_t)n;
        session.run.chunk = tokens.count < TOKENS_AT_ONCE ? tokens.count : TOKENS_AT_ONCE;
        session.run.logit_rows = 1;
        status = session_load(&session, command, error);
    }
    if (status == Q3_OK) status = continue_prompt(&session, &tokens, n, &sampler, &out, error);
    q3_tokenizer_free(out.tokenizer);
    free(sampler.candidates);
    free(tokens.ids);
    session_close(&session);
    return status;
}
