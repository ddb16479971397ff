/* SPDX-License-Identifier: MIT */
/* A model whose weights are all behind a q3_quantized, with the values that they have in the file:
 * the judge says of any tensors what it says with the weights as they lie, word for word. So no
 * part of it takes a weight's bytes for what they are not. Tensors are Hugging Face's
 * (golden/hf/tiny), right and with mistakes that are searched for.
 *
 *   test_quantized GOLDEN */
#include "given.h"

static const char *golden;

/* ==== The same weights, quantised ============================================================= */

/* Any weight as a quantised one: data is the q3_tensor. */
static void read_plain(double *values, const q3_quantized *weight, size_t first, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float value;
        q3_widen(&value, *(const q3_tensor *)weight->data, weight->first + first + i, 1, Q3_F32);
        values[i] = (double)value;
    }
}

static q3_tensor behind(fixture *f, const q3_tensor *plain)
{
    if (plain->data == NULL) return *plain;
    q3_quantized *weight = fixture_block(f, sizeof *weight);
    *weight = (q3_quantized){.dequantize = read_plain, .data = plain, .rounded = true};
    return (q3_tensor){weight, Q3_QUANTIZED};
}

static q3_mlp mlp_behind(fixture *f, const q3_mlp *plain)
{
    return (q3_mlp){behind(f, &plain->gate_proj), behind(f, &plain->up_proj),
                    behind(f, &plain->down_proj)};
}

static q3_layer layer_behind(fixture *f, const q3_layer *l, size_t experts)
{
    q3_layer own = {
        behind(f, &l->input_layernorm), behind(f, &l->q_proj), behind(f, &l->k_proj),
        behind(f, &l->v_proj), behind(f, &l->o_proj), behind(f, &l->q_proj_bias),
        behind(f, &l->k_proj_bias), behind(f, &l->v_proj_bias), behind(f, &l->o_proj_bias),
        behind(f, &l->q_norm), behind(f, &l->k_norm), behind(f, &l->post_attention_layernorm),
        behind(f, &l->gate), NULL, mlp_behind(f, &l->mlp)};
    q3_mlp *all = l->experts != NULL ? fixture_block(f, experts * sizeof *all) : NULL;
    for (size_t e = 0; all != NULL && e < experts; e++) all[e] = mlp_behind(f, &l->experts[e]);
    own.experts = all;
    return own;
}

static void quantise(fixture *f, const fixture *plain)
{
    const q3_weights *w = plain->weights;
    memset(f, 0, sizeof *f);
    f->config = plain->config;
    f->layers = fixture_block(f, f->config->num_hidden_layers * sizeof *f->layers);
    f->own = (q3_weights){behind(f, &w->embed_tokens), behind(f, &w->norm),
                          behind(f, &w->lm_head), f->layers};
    for (size_t i = 0; i < f->config->num_hidden_layers; i++)
        f->layers[i] = layer_behind(f, &w->layers[i], f->config->num_experts);
    f->weights = &f->own;
}

/* ==== What the judge says ===================================================================== */

/* Everything but the fingerprint of the weights. */
static void compare(const char *what, const q3_report *a, const q3_report *b)
{
    CHECKF(a != NULL && b != NULL, "%s", what);
    if (a == NULL || b == NULL) return;
    CHECKF(q3_report_count(a) == q3_report_count(b) && q3_report_outcome(a) == q3_report_outcome(b),
           "%s", what);
    for (size_t i = 0; i < q3_report_count(a) && i < q3_report_count(b); i++) {
        const q3_finding *x = q3_report_finding(a, i), *y = q3_report_finding(b, i);
        CHECKF(strcmp(x->name, y->name) == 0 && x->verdict == y->verdict &&
                   strcmp(x->reason, y->reason) == 0 && strcmp(x->looks_like, y->looks_like) == 0,
               "%s: %s: %s, %s, %s; quantised %s, %s, %s", what, x->name,
               q3_verdict_name(x->verdict), x->reason, x->looks_like, q3_verdict_name(y->verdict),
               y->reason, y->looks_like);
    }
}

typedef void change_fn(given *g);

static void nothing(given *g)
{
    (void)g;
}

static void exchange(given *g, const char *one, const char *other)
{
    q3_entry *a = given_find(g, one), *b = given_find(g, other);
    const void *data = a->data;
    a->data = b->data;
    b->data = data;
}

static void experts_exchanged(given *g)
{
    exchange(g, "model.layers.0.mlp.experts.gate_proj.output",
             "model.layers.0.mlp.experts.up_proj.output");
}

static void no_rope(given *g)
{
    given_find(g, "model.layers.1.self_attn.q_rope.output")->data =
        given_find(g, "model.layers.1.self_attn.q_norm.output")->data;
}

static void times(given *g, const char *name, float factor)
{
    q3_entry *e = given_find(g, name);
    float *values = given_floats(g, e);
    for (size_t i = 0; i < given_size(e); i++) values[i] *= factor;
}

static void norm_doubled(given *g)
{
    times(g, "model.layers.2.input_layernorm.output", 2);
}

static void values_doubled(given *g)
{
    times(g, "model.layers.0.self_attn.v_proj.output", 2);
}

static void one_logit(given *g)
{
    given_floats(g, given_find(g, "lm_head.output"))[5] += 1;
}

static void few_given(given *g)
{
    given_drop(g, "mlp.");
    given_drop(g, "norm");
    given_drop(g, "rotary");
    times(g, "lm_head.output", 1.5f);
}

static void test_reports(const fixture *plain, const fixture *other, const char *path,
                         q3_dtype dtype)
{
    static const struct { const char *what; change_fn *change; } cases[] = {
        {"right", nothing},
        {"experts exchanged", experts_exchanged},
        {"no RoPE", no_rope},
        {"norm doubled", norm_doubled},
        {"values doubled", values_doubled},
        {"one logit", one_logit},
        {"few tensors", few_given},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        given g;
        q3_error error = {""};
        given_open(&g, golden, path);
        cases[i].change(&g);
        q3_report *a = given_judge(plain, &g, dtype, &error);
        q3_report *b = given_judge(other, &g, dtype, &error);
        compare(cases[i].what, a, b);
        CHECK(a != NULL && (q3_report_outcome(a) == Q3_OUTCOME_AGREES) == (i == 0));
        q3_report_close(a);
        q3_report_close(b);
        given_close(&g);
    }
}

int main(int argc, char **argv)
{
    char folder[1024];
    fixture plain, other;
    golden = argc > 1 ? argv[1] : "golden";
    snprintf(folder, sizeof folder, "%s/tiny", golden);
    fixture_from_folder(&plain, folder);
    quantise(&other, &plain);
    test_reports(&plain, &other, "hf/tiny/taps-float32.safetensors", Q3_F32);
    test_reports(&plain, &other, "hf/tiny/taps-bfloat16.safetensors", Q3_BF16);
    fixture_close(&other);
    fixture_close(&plain);
    return t_done("quantized");
}
