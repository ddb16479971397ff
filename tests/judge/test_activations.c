/* SPDX-License-Identifier: MIT */
/* Quantised weights, and backends that multiply with them in their own ways: the FP8 checkpoint of
 * golden/fp8 with its weights as they are, rounded as they are loaded, and with activations
 * quantised in groups, as scripts/golden/make_fp8.py has them; llama.cpp's own runs of golden/gguf.
 * Each is within its bounds where it is declared, and named where it is not; a wrong scale is found
 * in either case. Argument: the golden folder. */
#include "host/files.h"
#include "judge/judge.h"
#include "t.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct weights {
    char folder[512];
    q3_model *model;
} weights;

static void open_weights(weights *w, const char *folder, const char *name)
{
    char path[512];
    q3_error error = {""};
    q3_dtype dtype = Q3_AUTO;
    snprintf(w->folder, sizeof w->folder, "%s", folder);
    snprintf(path, sizeof path, "%.400s%.100s", folder, name);
    w->model = NULL;
    CHECKF(q3_model_open(&w->model, path, &error) == Q3_OK, "%s", error.text);
    if (w->model == NULL) exit(1);
    CHECKF(q3_model_load(w->model, &dtype, 0, q3_model_config(w->model)->num_hidden_layers,
                         &error) == Q3_OK, "%s", error.text);
}

static q3_report *judge(const weights *f, const char *name, q3_accumulate accumulate,
                        const char *const *hidden)
{
    char path[512];
    q3_error error = {""};
    q3_judge *j = NULL;
    q3_report *report = NULL;
    q3_tensors *tensors = NULL;
    q3_dtype dtype = strstr(name, "float32") != NULL || strncmp(name, "q8", 2) == 0 ||
                             strncmp(name, "q4", 2) == 0 ? Q3_F32
                   : strstr(name, "float16") != NULL && strstr(name, "bfloat16") == NULL ? Q3_F16
                                                                                         : Q3_BF16;
    const q3_judge_options options = {.accumulate = accumulate};
    snprintf(path, sizeof path, "%.400s/%.60s.safetensors", f->folder, name);
    CHECKF(q3_tensors_open(&tensors, path, &error) == Q3_OK, "%s", error.text);
    CHECK(q3_judge_open(&j, q3_model_config(f->model), &options, &error) == Q3_OK);
    for (size_t i = 0; tensors != NULL && i < q3_tensors_count(tensors); i++) {
        const q3_entry *entry = q3_tensors_at(tensors, i);
        bool given = true;
        for (size_t k = 0; hidden != NULL && hidden[k] != NULL; k++)
            given = given && strstr(entry->name, hidden[k]) == NULL;
        if (given) CHECKF(q3_judge_tensor(j, entry, &error) == Q3_OK, "%s", error.text);
    }
    CHECKF(q3_judge_run(j, q3_model_weights(f->model), dtype, &report, &error) == Q3_OK, "%s",
           error.text);
    q3_judge_close(j);
    q3_tensors_close(tensors);
    return report;
}

/* No tensor differs. (Those that llama.cpp does not show are missing.) */
static void check_agrees(const weights *f, const char *name, q3_accumulate accumulate)
{
    q3_report *report = judge(f, name, accumulate, NULL);
    q3_error line = {""};
    if (report == NULL) return;
    q3_report_sentence(report, &line);
    CHECKF(q3_report_outcome(report) == Q3_OUTCOME_AGREES, "%s: %s", name, line.text);
    for (size_t i = 0; i < q3_report_count(report); i++) {
        const q3_finding *found = q3_report_finding(report, i);
        CHECKF(found->verdict == Q3_VERDICT_EXACT || found->verdict == Q3_VERDICT_WITHIN ||
               (found->verdict == Q3_VERDICT_MISSING && accumulate == Q3_ACCUMULATE_Q8),
               "%s: %s: %s", name, found->name, q3_verdict_name(found->verdict));
    }
    q3_report_close(report);
}

/* The first tensor that differs, and the cause that it has. tensor "": whichever. */
static void check_differs(const weights *f, const char *name, q3_accumulate accumulate,
                          const char *const *hidden, const char *tensor, const char *cause)
{
    q3_report *report = judge(f, name, accumulate, hidden);
    if (report == NULL) return;
    const q3_finding *found = q3_report_decisive(report);
    CHECKF(found != NULL, "%s: nothing differs", name);
    if (found != NULL) {
        CHECKF(strstr(found->name, tensor) != NULL, "%s: %s", name, found->name);
        CHECKF(strcmp(found->cause, cause) == 0, "%s: %s: got \"%s\", want \"%s\"", name,
               found->name, found->cause, cause);
    }
    q3_report_close(report);
}

/* No tensor but this one differs: what is declared is allowed, and nothing else. */
static void check_only(const weights *f, const char *name, const char *tensor)
{
    q3_report *report = judge(f, name, Q3_ACCUMULATE_FP8, NULL);
    for (size_t i = 0; report != NULL && i < q3_report_count(report); i++) {
        const q3_finding *found = q3_report_finding(report, i);
        CHECKF((found->verdict == Q3_VERDICT_DIFFERS) == (strstr(found->name, tensor) != NULL),
               "%s: %s: %s", name, found->name, q3_verdict_name(found->verdict));
    }
    q3_report_close(report);
}

#define LOADED "quantised weights rounded to bf16 as they are loaded, declare --accumulate bf16"
#define GROUPED "activations quantised to fp8, declare --accumulate fp8"
#define POWERS \
    "activations quantised to fp8 with powers of two as scales, declare --accumulate fp8"

#define BLOCKS "activations quantised to 8 bits, declare --accumulate q8"

/* q_proj of layer 0 in bfloat16, its input in groups of 16, which no row of the list has. */
static void check_other_groups(const weights *f)
{
    static const char name[] = "model.layers.0.self_attn.q_proj.output";
    const q3_config *c = q3_model_config(f->model);
    const q3_layer *l = q3_model_weights(f->model)->layers;
    size_t M = c->hidden_size, N = c->num_attention_heads * c->head_dim;
    char path[600];
    q3_error error = {""};
    q3_tensors *tensors = NULL;
    q3_report *report = NULL;
    snprintf(path, sizeof path, "%s/taps-bfloat16.safetensors", f->folder);
    CHECK(q3_tensors_open(&tensors, path, &error) == Q3_OK);
    const q3_entry *ids = q3_tensors_find(tensors, "input_ids"),
                   *in = q3_tensors_find(tensors, "model.layers.0.input_layernorm.output");
    size_t T = (size_t)ids->shape[0];
    int32_t tokens[64];
    float *x = calloc(T * M, sizeof *x), *w = calloc(M, sizeof *w), *y = calloc(T * N, sizeof *y);
    if (x == NULL || w == NULL || y == NULL) exit(1);
    q3_entry_floats(x, in, 0, T * M);
    for (size_t i = 0; i < T * M; i += 16) {
        double most = 0;
        for (size_t k = i; k < i + 16; k++) most = fmax(most, fabs((double)x[k]));
        for (size_t k = i; k < i + 16; k++) {
            int exponent;
            double v = (double)x[k] / (most / 448), unit;
            frexp(v, &exponent);
            unit = ldexp(1, exponent - 4 < -9 ? -9 : exponent - 4);
            x[k] = (float)(rint(v / unit) * unit * (most / 448));
        }
    }
    for (size_t i = 0; i < T * N; i++) {
        double sum = 0;
        float bias;
        q3_widen(w, l[0].q_proj, i % N * M, M, Q3_F32);
        q3_widen(&bias, l[0].q_proj_bias, i % N, 1, Q3_F32);
        for (size_t k = 0; k < M; k++) sum += (double)w[k] * (double)x[i / N * M + k];
        y[i] = q3_round(sum + (double)bias, Q3_BF16);
    }
    const q3_entry given = {name, Q3_F32, 2, {T, N}, y};
    q3_judge *j = NULL;
    const q3_judge_options options = {.end_layer = 1};
    for (size_t t = 0; t < T; t++) {
        int64_t id;
        q3_entry_integers(&id, ids, t, 1);
        tokens[t] = (int32_t)id;
    }
    CHECK(q3_judge_open(&j, c, &options, &error) == Q3_OK);
    CHECK(q3_judge_tokens(j, tokens, T, &error) == Q3_OK);
    CHECK(q3_judge_tensor(j, in, &error) == Q3_OK && q3_judge_tensor(j, &given, &error) == Q3_OK);
    CHECKF(q3_judge_run(j, q3_model_weights(f->model), Q3_BF16, &report, &error) == Q3_OK, "%s",
           error.text);
    const q3_finding *found = q3_report_decisive(report);
    CHECK(found != NULL && strcmp(found->name, name) == 0);
    if (found != NULL) CHECK_TEXT(found->cause, "activations quantised, declare --accumulate fp8");
    q3_report_close(report);
    q3_judge_close(j);
    q3_tensors_close(tensors);
    free(x);
    free(w);
    free(y);
}

static void check_fp8(const char *golden)
{
    static const char *const inner[] = {".experts.", "mlp.gate_proj", "mlp.up_proj", "mlp.act_fn",
                                        "mlp.down_proj", NULL};
    static const char *const attention[] = {"_proj.", "norm.output", "rope", "scores", "probs",
                                            ".experts.", "act_fn", NULL};
    char folder[512];
    weights f;
    snprintf(folder, sizeof folder, "%s/fp8", golden);
    open_weights(&f, folder, "");
    check_agrees(&f, "taps-float32", Q3_ACCUMULATE_F32);
    check_agrees(&f, "taps-bfloat16", Q3_ACCUMULATE_F32);
    check_agrees(&f, "taps-float16", Q3_ACCUMULATE_F32);
    check_agrees(&f, "loaded", Q3_ACCUMULATE_BF16);
    check_agrees(&f, "quantised", Q3_ACCUMULATE_FP8);
    check_agrees(&f, "powers", Q3_ACCUMULATE_FP8);
    check_differs(&f, "loaded", Q3_ACCUMULATE_F32, NULL, "q_proj", LOADED);
    check_differs(&f, "quantised", Q3_ACCUMULATE_F32, NULL, "q_proj", GROUPED);
    check_differs(&f, "powers", Q3_ACCUMULATE_F32, NULL, "q_proj", POWERS);
    check_differs(&f, "quantised", Q3_ACCUMULATE_Q8, NULL, "q_proj", GROUPED); /* of GGUF alone */
    check_differs(&f, "quantised", Q3_ACCUMULATE_BF16, NULL, "q_proj", GROUPED);
    check_only(&f, "wrong-scale", "layers.0.self_attn.o_proj.output");
    check_only(&f, "wrong-order", "layers.0.self_attn.q_proj.output");
    check_differs(&f, "quantised", Q3_ACCUMULATE_F32, inner, "q_proj", GROUPED);
    check_differs(&f, "quantised", Q3_ACCUMULATE_F32, attention, "", GROUPED);
    check_other_groups(&f);
    q3_model_close(f.model);
}

/* Taps that llama.cpp wrote, of weights in blocks of 32 and of 256. */
static void check_gguf(const char *golden, const char *name)
{
    char folder[512], file[32];
    weights f;
    snprintf(folder, sizeof folder, "%s/gguf", golden);
    snprintf(file, sizeof file, "/%.20s.gguf", name);
    open_weights(&f, folder, file);
    check_agrees(&f, name, Q3_ACCUMULATE_Q8);
    check_differs(&f, name, Q3_ACCUMULATE_F32, NULL, "q_proj", BLOCKS);
    check_differs(&f, name, Q3_ACCUMULATE_FP8, NULL, "q_proj", BLOCKS);
    q3_model_close(f.model);
}

int main(int argc, char **argv)
{
    if (argc < 2) return 2;
    check_fp8(argv[1]);
    check_gguf(argv[1], "q8_0");
    check_gguf(argv[1], "q4_k_m");
    return t_done("activations");
}
