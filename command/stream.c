/* SPDX-License-Identifier: MIT */
/* stream.c - a pass over a model of any size, one layer after the other: all tokens go through a
 * layer before any goes through the next, so that each weight is read from its file once. In memory
 * are the state and the cache of one layer, and the hidden states [T,M] between two. */
#include "command/command.h"

#include <stdlib.h>
#include <string.h>

/* What a run without layers has in the place of its one. */
static q3_run one_layer(const q3_run *whole, size_t layer)
{
    q3_run run = *whole;
    run.first_layer = layer;
    run.end_layer = layer < whole->end_layer ? layer + 1 : layer;
    return run;
}

q3_status session_load_layers(q3_session *session, const command_line *command, q3_error *error)
{
    const q3_run *whole = &session->run;
    size_t last = whole->end_layer > whole->first_layer ? whole->end_layer - 1 : whole->end_layer;
    size_t M = session->config->hidden_size;
    q3_run run;
    q3_status status = session_load_weights(session, error);
    if (status != Q3_OK) return status;
    session_limit_logits(session);
    run = one_layer(whole, last); /* the largest: it may have logits */
    status = session_take_memory(session, &run, command->model, error);
    if (status != Q3_OK) return status;
    if (whole->rows <= SIZE_MAX / sizeof(float) / M)
        session->hidden = malloc(whole->rows * M * sizeof *session->hidden);
    return session->hidden != NULL ? Q3_OK : q3_no_memory(error, "hidden states");
}

/* A pass and the layer that it has come to. */
typedef struct streaming {
    const q3_session *session;
    const layer_pass *pass;
    size_t layer;
} streaming;

/* Hands on what a whole run shows: the tables of RoPE are the same in every layer. */
static void pass_on(void *user, const q3_tap *tap)
{
    const streaming *s = user;
    bool table = tap->id == Q3_TAP_COS || tap->id == Q3_TAP_SIN;
    if (table && s->layer != s->session->run.first_layer) return;
    if (tap->id == Q3_TAP_TOPK_INDICES)
        q3_model_chosen(s->session->model, tap->layer, tap->data, tap->shape[0] * tap->shape[1]);
    s->pass->tap(s->pass->user, tap);
}

/* All tokens through one layer, chunk by chunk; the hidden states take their next values. */
static q3_status run_layer(streaming *s, q3_error *error)
{
    const q3_session *session = s->session;
    const q3_config *config = session->config;
    const q3_run *whole = &session->run;
    q3_run run = one_layer(whole, s->layer);
    bool last = run.end_layer == whole->end_layer, seen = last || !s->pass->head_only;
    size_t T = whole->rows, M = config->hidden_size;
    q3_state *state = q3_state_init(session->memory, session->memory_size, config,
                                    q3_model_weights(session->model), &run);
    if (state == NULL)
        return q3_fail(error, Q3_ERROR_ARITHMETIC, "arithmetic: %s", q3_selftest());
    q3_model_turn(session->model, s->layer);
    for (size_t first = 0; first < T; first += run.chunk) {
        size_t count = T - first < run.chunk ? T - first : run.chunk;
        float *hidden = session->hidden + first * M;
        q3_input input = {.tokens = s->layer == 0 ? s->pass->tokens + first : NULL,
                          .hidden = hidden, .count = count, .length = whole->start + T,
                          .logit_rows = last && s->pass->logits ? count : 0};
        q3_status status = q3_forward(state, &input, seen ? pass_on : NULL, s, error);
        if (status != Q3_OK) return status;
        memcpy(hidden, q3_hidden(state), count * M * sizeof *hidden);
    }
    return Q3_OK;
}

q3_status session_run_layers(const q3_session *session, const layer_pass *pass, q3_error *error)
{
    const q3_run *run = &session->run;
    streaming s = {session, pass, pass->begin > 0 ? pass->begin : run->first_layer};
    progress shown = {.what = pass->what};
    q3_status status;
    show_progress(&shown, s.layer, run->end_layer);
    do {
        status = run_layer(&s, error);
        s.layer++;
        if (status == Q3_OK && pass->done != NULL) status = pass->done(pass->user, s.layer, error);
        if (status == Q3_OK) show_progress(&shown, s.layer, run->end_layer);
    } while (status == Q3_OK && s.layer < run->end_layer);
    return status;
}
