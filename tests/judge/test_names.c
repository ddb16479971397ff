/* SPDX-License-Identifier: MIT */
/* names.c: names of another implementation's file that fit no tap of the model.
 *
 *   test_names
 *
 * Files go into a folder names.tmp in the working directory. */
#define _POSIX_C_SOURCE 200809L
#define FOLDER "names.tmp"
#include "other.h"

static const q3_model *model;

/* Names that fit no tap of the model (layer 0 has experts, layer 1 none): those that look like taps
 * are listed, each kind once, with the name that may have been meant. */
static void check_unknown_names(void)
{
    static const struct { const char *name, *nearest; /* NULL: not listed */ } cases[] = {
        {"model.layers.0.self_attn.q_prj.output", "model.layers.0.self_attn.q_proj.output"},
        {"model.layers.1.self_attn.q_prj.output", NULL}, /* of the same kind */
        {"layers.0.self_attn.k_prj", "model.layers.0.self_attn.k_proj.output"},
        {"model.layers.7.mlp.output", "model.layers.1.mlp.output"}, /* no such layer */
        {"model.layers.1.mlp.gate.output", "model.layers.1.mlp.gate_proj.output"}, /* dense */
        {"model.layers.0.mlp.experts.3.gate_proj", "model.layers.0.mlp.experts.gate_proj.output"},
        {"model.layers.0.mlp.experts.4.gate_proj", NULL},
        {"ffn_moe_ot-0", "ffn_moe_out-0"},
        {"blocks.0.hook_resid_pots", "blocks.0.hook_resid_post"},
        {"lm_haed.output", "lm_head.output"},
        {"model.rotary_emb.cosine", "model.rotary_emb.cos"},
        {"logit", "logits"},
        {"model.layers.0.self_attn.q_proj.input", NULL}, /* what a known module reads */
        {"transformer.h.0.attn.qkv.input", NULL},
        {"model.layers.0.self_attn.q_prj.input", "model.layers.0.self_attn.o_proj.input"},
        {"gpt_neox.11.attention.query_key_value", ""}, /* another system's */
        {"zebra", NULL},
        {"attention_mask", NULL},
        {"cache_position", NULL},
        {"x", NULL},
        {"7", NULL},
    };
    backend b;
    q3_error error = {""};
    size_t listed = 0;
    file_begin("");
    for (size_t i = 0; i < COUNT(cases); i++) {
        tensor_begin(cases[i].name, "F32", "1", 4);
        put_value("F32", 0);
    }
    file_end(PATH, 0);
    CHECKF(open_file(&b, PATH, model, &error) == Q3_OK, "%s", error.text);
    CHECK(b.unknown == COUNT(cases) && strcmp(b.unknown_name, cases[0].name) == 0);
    for (size_t i = 0; i < COUNT(cases); i++) {
        const q3_unknown *u = &b.unknowns[listed];
        bool here = listed < b.unknown_count && strcmp(u->name, cases[i].name) == 0;
        CHECKF(here == (cases[i].nearest != NULL), "%s", cases[i].name);
        if (!here) continue;
        CHECK_TEXT(u->nearest, cases[i].nearest);
        listed++;
    }
    CHECK(listed == b.unknown_count);
    q3_backend_close(&b);
}

/* No more than 32, of however many kinds. */
static void check_many_unknown(void)
{
    backend b;
    q3_error error = {""};
    char name[300];
    file_begin("");
    for (size_t i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "layers.0.mlp.");
        for (size_t k = 0; k <= (i == 20 ? 250 : i); k++) strcat(name, "x");
        tensor_begin(name, "F32", "1", 4);
        put_value("F32", 0);
    }
    file_end(PATH, 0);
    CHECKF(open_file(&b, PATH, model, &error) == Q3_OK, "%s", error.text);
    CHECK(b.unknown == 50 && b.unknown_count == 32);
    q3_backend_close(&b);
}

int main(void)
{
    q3_model *opened = open_model();
    if (opened == NULL) return t_done("names");
    model = opened;
    check_unknown_names();
    check_many_unknown();
    q3_model_close(opened);
    return t_done("names");
}
