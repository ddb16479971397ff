/* SPDX-License-Identifier: MIT */
/* memory.c - what the walk over the taps keeps. */
#include "judge/walk.h"

#include "host/taps.h"

#include <stdlib.h>

/* Room for a row of any weight. */
static size_t longest_sum(const q3_config *c)
{
    size_t most = c->hidden_size, inner = c->num_attention_heads * c->head_dim;
    if (inner > most) most = inner;
    if (c->intermediate_size > most) most = c->intermediate_size;
    return c->moe_intermediate_size > most ? c->moe_intermediate_size : most;
}

/* Tokens that came before have no experts of their own; the diagnosis, which computes their rows
 * too, needs ids that are a choice. */
static void name_experts(walk *w)
{
    float *ids = w->tap[Q3_TAP_TOPK_INDICES];
    size_t A = w->config->num_experts_per_tok;
    for (size_t i = 0; ids != NULL && i < w->past * A; i++) ids[i] = (float)(i % A);
}

/* Scores and probs, which grow with T^2, only where the other implementation gave them; logits,
 * from which nothing is computed, not at all. */
static bool take_taps(walk *w, const backend *b)
{
    size_t T = w->T;
    bool good = true;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        q3_tap_id id = (q3_tap_id)i;
        bool square = q3_tap_is_square(id), wanted = id != Q3_TAP_LM_HEAD && !square;
        size_t n = q3_tap_row_size(w->config, id, T);
        for (size_t l = 0; square && l < w->config->num_hidden_layers; l++)
            wanted = wanted || q3_backend_find(b, id, l) != NULL;
        if (!wanted || n == 0) continue;
        w->tap[i] = calloc(T, n * sizeof *w->tap[i]);
        good = good && w->tap[i] != NULL;
        if (square) continue;
        w->var[i] = calloc(T, n * sizeof *w->var[i]);
        w->own_sd[i] = calloc(T, n * sizeof *w->own_sd[i]);
        w->own_noise[i] = calloc(T, n * sizeof *w->own_noise[i]);
        good = good && w->var[i] != NULL && w->own_sd[i] != NULL && w->own_noise[i] != NULL;
    }
    return good;
}

bool q3_walk_memory(walk *w, const backend *b)
{
    const q3_config *c = w->config;
    size_t T = w->T, H = c->num_attention_heads, inner = H * c->head_dim, M = c->hidden_size;
    bool good = take_taps(w, b);
    w->inv_freq = calloc(c->head_dim, sizeof(float));
    w->input = calloc(T, M * sizeof(float));
    w->input_var = calloc(T, M * sizeof(double));
    w->uncertain = calloc(T, sizeof(bool));
    w->scores = calloc(T, H * sizeof(float));
    w->probs = calloc(T, H * sizeof(float));
    w->scores_var = calloc(T, H * sizeof(double));
    w->probs_var = calloc(T, H * sizeof(double));
    w->values_noise = calloc(T, inner * sizeof(double));
    w->values_var = calloc(T, inner * sizeof(double));
    w->weight_row = calloc(longest_sum(c), sizeof(float));
    w->head_sums = calloc(5 * c->head_dim, sizeof(double));
    name_experts(w);
    return good && w->inv_freq && w->input && w->input_var && w->uncertain && w->scores &&
           w->probs && w->scores_var && w->probs_var && w->values_noise && w->values_var &&
           w->weight_row && w->head_sums;
}

void q3_walk_free(walk *w)
{
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        free(w->tap[i]);
        free(w->var[i]);
        free(w->own_sd[i]);
        free(w->own_noise[i]);
    }
    free(w->inv_freq);
    free(w->input);
    free(w->input_var);
    free(w->uncertain);
    free(w->scores);
    free(w->probs);
    free(w->scores_var);
    free(w->probs_var);
    free(w->values_noise);
    free(w->values_var);
    free(w->weight_row);
    free(w->head_sums);
    q3_sums_free(w);
}
