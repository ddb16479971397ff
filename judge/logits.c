/* SPDX-License-Identifier: MIT */
/* logits.c - our logits of some tokens, or of some columns: computed from the last norm where they
 * are asked for, as nothing keeps the rows of all tokens. */
#include "judge/graph.h"
#include "judge/walk.h"

#include "host/quants.h"

static q3_tensor weight_of(const walk *w)
{
    return q3_graph_weight(q3_graph_node(w->config, Q3_TAP_LM_HEAD, 0), w->weights, 0, 0);
}

void q3_logits_rows(float *y, const walk *w, size_t t, size_t count)
{
    const q3_tensor no_bias = {NULL, Q3_F32};
    size_t M = w->config->hidden_size;
    q3_linear(y, w->tap[Q3_TAP_NORM] + t * M, weight_of(w), no_bias, count, w->config->vocab_size,
              M, w->dtype);
}

/* Of the file's tokens. */
static void column(const void *user, float *to, size_t stride, size_t i)
{
    const walk *w = user;
    size_t M = w->config->hidden_size;
    q3_quantized own;
    q3_dots dots = {.x = w->tap[Q3_TAP_NORM] + w->past * M, .x_stride = M,
                    .weight = q3_tensor_from(weight_of(w), i * M, &own), .row_stride = M,
                    .T = w->T - w->past, .N = 1, .C = M, .dtype = w->dtype, .y = to,
                    .y_stride = stride};
    q3_run_dots(&dots);
}

own_rows q3_logits_own(const walk *w)
{
    return (own_rows){.column = column, .user = w};
}
