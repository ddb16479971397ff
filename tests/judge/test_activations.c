/* SPDX-License-Identifier: MIT */
/* An FP8 checkpoint, golden/fp8, and backends that multiply with it in their own ways, as
 * scripts/golden/make_fp8.py has them: the weights as they are, rounded as they are loaded,
 * activations quantised in groups. Each is within its bounds where it is declared, and named where
 * it is not; a wrong scale is found in either case. Argument: the golden folder. */
#include "host/files.h"
#include "judge/judge.h"
#include "t.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct fp8 {
    const char *folder;
    q3_model *model;
} fp8;

static q3_report *judge(const fp8 *f, const char *name, q3_accumulate accumulate,
                        const char *const *hidden)
{
    char path[512];
    q3_error error = {""};
    q3_judge *j = NULL;
    q3_report *report = NULL;
    q3_tensors *tensors = NULL;
    q3_dtype dtype = strstr(name, "float32") != NULL ? Q3_F32
                   : strstr(name, "float16") != NULL && strstr(name, "bfloat16") == NULL ? Q3_F16
                                                                                         : Q3_BF16;
    const q3_judge_options options = {.accumulate = accumulate};
    snprintf(path, sizeof path, "%s/%s.safetensors", f->folder, name);
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

/* Every element's verdict: nothing differs. */
static void check_agrees(const fp8 *f, const char *name, q3_accumulate accumulate)
{
    q3_report *report = judge(f, name, accumulate, NULL);
    q3_error line = {""};
    if (report == NULL) return;
    q3_report_sentence(report, &line);
    CHECKF(q3_report_outcome(report) == Q3_OUTCOME_AGREES, "%s: %s", name, line.text);
    for (size_t i = 0; i < q3_report_count(report); i++) {
        const q3_finding *found = q3_report_finding(report, i);
        CHECKF(found->verdict == Q3_VERDICT_EXACT || found->verdict == Q3_VERDICT_WITHIN,
               "%s: %s: %s", name, found->name, q3_verdict_name(found->verdict));
    }
    q3_report_close(report);
}

/* The first tensor that differs, and the cause that it has. tensor "": whichever. */
static void check_differs(const fp8 *f, const char *name, q3_accumulate accumulate,
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
static void check_only(const fp8 *f, const char *name, const char *tensor)
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

int main(int argc, char **argv)
{
    char path[512];
    q3_error error = {""};
    q3_dtype dtype = Q3_BF16;
    fp8 f = {path, NULL};
    static const char *const inner[] = {".experts.", "mlp.gate_proj", "mlp.up_proj", "mlp.act_fn",
                                        "mlp.down_proj", NULL};
    if (argc < 2) return 2;
    snprintf(path, sizeof path, "%s/fp8", argv[1]);
    CHECKF(q3_model_open(&f.model, path, &error) == Q3_OK, "%s", error.text);
    if (f.model == NULL) return t_done("activations");
    CHECKF(q3_model_load(f.model, &dtype, 0, q3_model_config(f.model)->num_hidden_layers,
                         &error) == Q3_OK, "%s", error.text);
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
    static const char *const attention[] = {"_proj.", "norm.output", "rope", "scores", "probs",
                                            ".experts.", "act_fn", NULL};
    check_differs(&f, "quantised", Q3_ACCUMULATE_F32, inner, "q_proj", GROUPED);
    check_differs(&f, "quantised", Q3_ACCUMULATE_F32, attention, "", GROUPED);
    q3_model_close(f.model);
    return t_done("activations");
}
