/* SPDX-License-Identifier: MIT */
/* A residual that is kept apart (MODEL.md 12.12): what a layer of vLLM or SGLang returns, made of
 * Hugging Face's tensors (golden/hf/tiny). The branch alone is advice; both are added; a residual
 * that is really missing is found.
 *
 *   test_residual GOLDEN */
#include "given.h"

#include <math.h>

static fixture tiny;
static const char *golden;

enum { L = 5 };

static const char *name_of(size_t layer, const char *rest)
{
    static char names[4][80];
    static size_t at;
    char *name = names[at++ % 4];
    snprintf(name, sizeof names[0], "model.layers.%lu.%s", (unsigned long)layer, rest);
    return name;
}

static q3_report *judge(const given *g, q3_dtype dtype)
{
    q3_error error = {""};
    q3_report *report = given_judge(&tiny, g, dtype, &error);
    CHECKF(report != NULL, "%s", error.text);
    if (report == NULL) exit(1);
    return report;
}

static void open_tiny(given *g, q3_dtype dtype)
{
    given_open(g, golden, dtype == Q3_F32 ? "hf/tiny/taps-float32.safetensors"
                                          : "hf/tiny/taps-bfloat16.safetensors");
}

/* Both sums of a layer, as their branches alone. */
static void take_branches(given *g, size_t layer)
{
    given_find(g, name_of(layer, "output"))->data =
        given_find(g, name_of(layer, "mlp.output"))->data;
    given_find(g, name_of(layer, "post_attention_layernorm.input"))->data =
        given_find(g, name_of(layer, "self_attn.o_proj.output"))->data;
}

/* ==== Kept apart ============================================================================== */

/* The branches alone: nothing is blamed, all else is judged as before; where less is given, too. */
static void test_advice(q3_dtype dtype)
{
    static const char *const hidden[] = {"", "norm.output", "mlp.output", "o_proj.output",
                                         "self_attn", ".mlp.", "post_attention"};
    given g;
    open_tiny(&g, dtype);
    for (size_t layer = 0; layer < L; layer++) take_branches(&g, layer);
    for (size_t i = 0; i < sizeof hidden / sizeof hidden[0]; i++) {
        if (hidden[i][0] != 0) given_drop(&g, hidden[i]);
        q3_report *report = judge(&g, dtype);
        bool wide = dtype == Q3_BF16 && i > 3; /* bounds of what is hidden, too */
        size_t count = given_check(report, hidden[i], "put",
                                   wide ? "" : "the residual is not in it, which is kept apart: "
                                               "record output + residual");
        CHECKF(count >= (i < 6 ? 2 * L : L), "without %s: %zu", hidden[i], count);
        CHECK(q3_report_decisive(report) == NULL);
        q3_report_close(report);
    }
    given_close(&g);
}

/* Nothing else is given: nothing was judged. */
static void test_alone(void)
{
    given g;
    open_tiny(&g, Q3_BF16);
    take_branches(&g, 0);
    q3_entry ids = *given_find(&g, "input_ids"), out = *given_find(&g, name_of(0, "output"));
    g.entries[0] = ids;
    g.entries[1] = out;
    g.count = 2;
    q3_report *report = judge(&g, Q3_BF16);
    CHECK(q3_report_outcome(report) == Q3_OUTCOME_UNJUDGED);
    q3_report_close(report);
    given_close(&g);
}

/* Layer by layer the branch and the residual: under the layer's name, and under the norms'. */
static void test_both(size_t way)
{
    static const char *const first[] = {"output", "output.0", "output.0"};
    given g;
    open_tiny(&g, Q3_BF16);
    for (size_t layer = 0; layer < L; layer++) {
        q3_entry out = *given_find(&g, name_of(layer, "mlp.output"));
        q3_entry middle = *given_find(&g, name_of(layer, "post_attention_layernorm.input"));
        q3_entry attention = *given_find(&g, name_of(layer, "self_attn.o_proj.output"));
        given_add(&g, name_of(layer, "A.output"), &out);
        given_add(&g, name_of(layer, "B.output"), &middle);
        given_add(&g, name_of(layer, "A.input"), &attention);
    }
    /* the stream before each layer */
    q3_entry stream = *given_find(&g, "model.embed_tokens.output");
    for (size_t layer = 0; layer < L; layer++) {
        q3_entry next = *given_find(&g, name_of(layer, "output"));
        given_add(&g, name_of(layer, "B.input"), &stream);
        stream = next;
    }
    for (size_t layer = 0; layer < L; layer++) {
        bool last = layer + 1 == L;
        q3_entry a = *given_find(&g, name_of(layer, "A.output"));
        q3_entry b = *given_find(&g, name_of(layer, "B.output"));
        q3_entry c = *given_find(&g, name_of(layer, "A.input"));
        q3_entry d = *given_find(&g, name_of(layer, "B.input"));
        given_find(&g, name_of(layer, "output"))->name = "gone";
        given_find(&g, name_of(layer, "post_attention_layernorm.input"))->name = "gone";
        given_drop(&g, "gone");
        if (way < 2) {
            given_add(&g, name_of(layer, first[way]), &a);
            given_add(&g, name_of(layer, "output.1"), &b);
        } else if (!last) {
            given_add(&g, name_of(layer + 1, "input_layernorm.input.0"), &a);
            given_add(&g, name_of(layer + 1, "input_layernorm.input.1"), &b);
        } else {
            given_add(&g, "model.norm.input", &a);
            given_add(&g, "model.norm.input.1", &b);
        }
        given_add(&g, name_of(layer, way == 1 ? "post_attention_layernorm.input.0"
                                              : "post_attention_layernorm.input"), &c);
        given_add(&g, name_of(layer, "post_attention_layernorm.input.1"), &d);
    }
    given_drop(&g, ".A.");
    given_drop(&g, ".B.");
    q3_report *report = judge(&g, Q3_BF16);
    CHECK(given_check(report, "both", NULL, "") == 0);
    for (size_t layer = 0; layer < L; layer++) {
        const q3_finding *f = given_found(report, name_of(layer, "output"));
        CHECKF(f->verdict == Q3_VERDICT_EXACT && strstr(f->note, "plus ") != NULL, "%s: %s, %s",
               f->name, q3_verdict_name(f->verdict), f->note);
    }
    q3_report_close(report);
    given_close(&g);
}

/* What a fused norm returns beside its output is the sum: it counts, whatever else is there. */
static void test_fused(void)
{
    given g;
    open_tiny(&g, Q3_BF16);
    for (size_t layer = 0; layer < L; layer++) {
        q3_entry sum = *given_find(&g, name_of(layer, "output"));
        q3_entry middle = *given_find(&g, name_of(layer, "post_attention_layernorm.input"));
        given_add(&g, layer + 1 < L ? name_of(layer + 1, "input_layernorm.output.1")
                                    : "model.norm.output.1", &sum);
        given_add(&g, name_of(layer, "post_attention_layernorm.output.1"), &middle);
        take_branches(&g, layer);
    }
    q3_report *report = judge(&g, Q3_BF16);
    CHECK(given_check(report, "fused", NULL, "") == 0);
    q3_report_close(report);
    given_close(&g);
}

/* ==== Really missing ========================================================================== */

/* Hugging Face's RMSNorm in float32. */
static void norm(float *y, const float *x, q3_tensor weight, size_t rows, size_t n)
{
    float w[512];
    q3_widen(w, weight, 0, n, Q3_F32);
    for (size_t r = 0; r < rows; r++, x += n, y += n) {
        double square = 0;
        for (size_t i = 0; i < n; i++) square += (double)x[i] * (double)x[i];
        for (size_t i = 0; i < n; i++)
            y[i] = (float)((double)w[i] * (double)x[i] /
                           sqrt(square / (double)n + tiny.config->rms_norm_eps));
    }
}

static void check_missing(const given *g, const char *name)
{
    q3_report *report = judge(g, Q3_F32);
    const q3_finding *f = q3_report_decisive(report);
    CHECKF(f != NULL && strcmp(f->name, name) == 0 && f->verdict == Q3_VERDICT_DIFFERS &&
               strncmp(f->looks_like, "residual missing", 16) == 0,
           "%s: found %s, looks like %s", name, f != NULL ? f->name : "nothing",
           f != NULL ? f->looks_like : "");
    q3_report_close(report);
}

/* The norm behind it is that of the branch. */
static void test_missing(void)
{
    static const char *const rest[] = {"post_attention_layernorm.input", "output"};
    size_t M = tiny.config->hidden_size;
    for (size_t i = 0; i < 2; i++) {
        given g;
        open_tiny(&g, Q3_F32);
        size_t layer = i == 0 ? 1 : L - 1;
        q3_entry *sum = given_find(&g, name_of(layer, rest[i]));
        q3_entry *after = given_find(&g, i == 0 ? name_of(layer, "post_attention_layernorm.output")
                                                : "model.norm.output");
        take_branches(&g, layer);
        if (i == 1)
            given_find(&g, name_of(layer, rest[0]))->name = "gone"; /* is right in this case */
        float *branch = given_floats(&g, sum), *y = given_floats(&g, after);
        norm(y, branch, i == 0 ? tiny.weights->layers[layer].post_attention_layernorm
                               : tiny.weights->norm, 24, M);
        check_missing(&g, sum->name);
        given_close(&g);
    }
}

/* A model that forgets the last residual of a layer: what is computed from it shows it, near or
 * far. */
typedef struct forgetful {
    size_t layer;
    float branch[24 * 128], out[L][24 * 128], logits[24 * 4096];
} forgetful;

static void forget(void *user, const q3_tap *tap)
{
    forgetful *f = user;
    size_t bytes = tap->shape[0] * tap->shape[1] * sizeof(float);
    if (tap->id == Q3_TAP_MLP) memcpy(f->branch, tap->data, bytes);
    if (tap->id == Q3_TAP_LAYER && tap->layer == f->layer) memcpy(tap->data, f->branch, bytes);
    if (tap->id == Q3_TAP_LAYER) memcpy(f->out[tap->layer], tap->data, bytes);
    if (tap->id == Q3_TAP_LM_HEAD) memcpy(f->logits, tap->data, bytes);
}

/* Of a run whose layer loses its residual: the layers' outputs, and logits or not. */
static void test_forgetful(size_t layer, bool logits)
{
    static forgetful f;
    given g;
    q3_error error;
    int32_t ids[24];
    int64_t read[24];
    open_tiny(&g, Q3_F32);
    q3_entry_integers(read, given_find(&g, "input_ids"), 0, 24);
    for (size_t t = 0; t < 24; t++) ids[t] = (int32_t)read[t];
    q3_run run = {.dtype = Q3_F32, .end_layer = L, .rows = 24, .chunk = 24};
    void *memory;
    q3_state *state = fixture_state(&tiny, &run, &memory);
    q3_input input = {.tokens = ids, .count = 24, .logit_rows = 24};
    f.layer = layer;
    CHECK(tiny.config->hidden_size <= 128 && tiny.config->vocab_size <= 4096);
    CHECK(q3_forward(state, &input, forget, &f, &error) == Q3_OK);
    free(memory);
    for (size_t i = 0; i < L; i++) given_find(&g, name_of(i, "output"))->data = f.out[i];
    given_find(&g, "lm_head.output")->data = f.logits;
    size_t kept = 0;
    for (size_t i = 0; i < g.count; i++) {
        const char *name = g.entries[i].name, *end = strrchr(name, '.');
        bool out = end != NULL && strncmp(name, "model.layers.", 13) == 0 && end == name + 14;
        if (out || strcmp(name, "input_ids") == 0 || (logits && strstr(name, "lm_head") != NULL))
            g.entries[kept++] = g.entries[i];
    }
    g.count = kept;
    CHECK(kept == L + 1u + logits);
    check_missing(&g, name_of(layer, "output"));
    given_close(&g);
}

int main(int argc, char **argv)
{
    char path[512];
    if (argc != 2) return 2;
    golden = argv[1];
    snprintf(path, sizeof path, "%s/tiny", golden);
    fixture_from_folder(&tiny, path);
    CHECK(tiny.config->num_hidden_layers == L);
    test_advice(Q3_F32);
    test_advice(Q3_BF16);
    test_alone();
    for (size_t way = 0; way < 3; way++) test_both(way);
    test_fused();
    test_missing();
    test_forgetful(0, false);
    test_forgetful(2, false);
    test_forgetful(L - 1, true);
    fixture_close(&tiny);
    return t_done("test_residual");
}
