/* SPDX-License-Identifier: MIT */
/* Another project's program that judges: it computes a tensor, breaks it, gives it to the installed
 * qwen3moe::judge from memory, and reads the finding.
 *
 *   judge MODEL    prints "differs: TAP: what it looks like; N of M tensors judged" */
#include <judge/judge.h>
#include <qwen3moe.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T = 5 };

/* Layer 0's q_proj of the run, as another implementation might keep it. */
typedef struct kept {
    float *values;
    size_t width;
} kept;

static void keep(void *user, const q3_tap *tap)
{
    kept *k = (kept *)user;
    if (tap->id != Q3_TAP_Q_PROJ || tap->layer != 0) return;
    k->width = tap->shape[1];
    k->values = (float *)malloc(T * k->width * sizeof *k->values);
    if (k->values != NULL) memcpy(k->values, tap->data, T * k->width * sizeof *k->values);
}

static int fail(const q3_error *error)
{
    puts(error->text);
    return 2;
}

int main(int argc, char **argv)
{
    const int32_t ids[T] = {5, 600, 7, 1999, 20};
    q3_model *model;
    q3_error error;
    q3_dtype dtype = Q3_F32;
    q3_judge *judge;
    q3_report *report;
    kept q = {NULL, 0};
    if (argc != 2 || q3_model_open(&model, argv[1], &error) != Q3_OK) return 2;
    const q3_config *config = q3_model_config(model);
    size_t layers = config->num_hidden_layers;
    if (q3_model_load(model, &dtype, 0, layers, &error) != Q3_OK) return fail(&error);
    const q3_weights *weights = q3_model_weights(model);
    q3_run run = {Q3_F32, 0, layers, 0, T, T, 0};
    void *memory = malloc(q3_state_size(config, &run));
    q3_state *state = q3_state_init(memory, q3_state_size(config, &run), config, weights, &run);
    q3_input input = {ids, NULL, T, T, 0};
    if (state == NULL || q3_forward(state, &input, keep, &q, &error) != Q3_OK) return 2;
    if (q.values == NULL) return 2;
    for (size_t i = 0; i < T * q.width; i++) q.values[i] *= 1.5f;

    q3_entry tensor = {"model.layers.0.self_attn.q_proj.output", Q3_F32, 2, {T, q.width}, q.values};
    if (q3_judge_open(&judge, config, NULL, &error) != Q3_OK ||
        q3_judge_tokens(judge, ids, T, &error) != Q3_OK ||
        q3_judge_tensor(judge, &tensor, &error) != Q3_OK ||
        q3_judge_run(judge, weights, Q3_F32, &report, &error) != Q3_OK)
        return fail(&error);
    const q3_finding *f = q3_report_decisive(report);
    q3_coverage c = q3_report_coverage(report);
    if (q3_report_outcome(report) != Q3_OUTCOME_DIFFERS || f == NULL) return 1;
    printf("%s: %s: %s; %zu of %zu tensors judged\n", q3_verdict_name(f->verdict), f->name,
           f->looks_like, c.taps_judged, c.taps_expected);
    q3_report_close(report);
    q3_judge_close(judge);
    q3_model_close(model);
    free(q.values);
    free(memory);
    return 0;
}
