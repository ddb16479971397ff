/* graph.c: what each tap is computed from and with which weights, written down a second time, from
 * Hugging Face's modeling_qwen3_moe.py.
 *
 *   test_graph
 * SPDX-License-Identifier: MIT */
#include "judge/graph.h"
#include "t.h"

#include <string.h>

#define S "self_attn."

/* A module's inputs by their taps' names in the layer, in the order of its forward pass; "stream":
 * the hidden states that the layer (the final norm) is called with. */
typedef struct expected {
    const char *tap, *from;
    const char *weight; /* of the layer, of an expert ("experts.up_proj") or of the model; "" */
    bool bias;
} expected;

static const expected attention[] = {
    {"input_layernorm.output", "stream", "input_layernorm", false},
    {S "q_proj.output", "input_layernorm.output", "q_proj", true},
    {S "k_proj.output", "input_layernorm.output", "k_proj", true},
    {S "v_proj.output", "input_layernorm.output", "v_proj", true},
    {S "q_norm.output", S "q_proj.output", "q_norm", false},
    {S "k_norm.output", S "k_proj.output", "k_norm", false},
    {S "q_rope.output", S "q_norm.output model.rotary_emb.cos model.rotary_emb.sin", "", false},
    {S "k_rope.output", S "k_norm.output model.rotary_emb.cos model.rotary_emb.sin", "", false},
    {S "scores.output", S "q_rope.output " S "k_rope.output", "", false},
    {S "probs.output", S "scores.output", "", false},
    {S "o_proj.input", S "probs.output " S "v_proj.output", "", false},
    {S "o_proj.output", S "o_proj.input", "o_proj", true},
    {"post_attention_layernorm.input", "stream " S "o_proj.output", "", false},
    {"post_attention_layernorm.output", "post_attention_layernorm.input",
     "post_attention_layernorm", false},
    {"output", "post_attention_layernorm.input mlp.output", "", false},
};

static const expected sparse[] = {
    {"mlp.gate.output", "post_attention_layernorm.output", "gate", false},
    {"mlp.router_probs.output", "mlp.gate.output", "", false},
    {"mlp.topk_indices.output", "mlp.router_probs.output", "", false},
    {"mlp.topk_weights.output", "mlp.router_probs.output mlp.topk_indices.output", "", false},
    {"mlp.experts.gate_proj.output", "post_attention_layernorm.output mlp.topk_indices.output",
     "experts.gate_proj", false},
    {"mlp.experts.up_proj.output", "post_attention_layernorm.output mlp.topk_indices.output",
     "experts.up_proj", false},
    {"mlp.experts.act_fn.output", "mlp.experts.gate_proj.output", "", false},
    {"mlp.experts.down_proj.input", "mlp.experts.act_fn.output mlp.experts.up_proj.output", "",
     false},
    {"mlp.experts.down_proj.output", "mlp.experts.down_proj.input mlp.topk_indices.output",
     "experts.down_proj", false},
    {"mlp.output", "mlp.experts.down_proj.output mlp.topk_weights.output", "", false},
};

static const expected dense[] = {
    {"mlp.gate_proj.output", "post_attention_layernorm.output", "mlp.gate_proj", false},
    {"mlp.up_proj.output", "post_attention_layernorm.output", "mlp.up_proj", false},
    {"mlp.act_fn.output", "mlp.gate_proj.output", "", false},
    {"mlp.down_proj.input", "mlp.act_fn.output mlp.up_proj.output", "", false},
    {"mlp.output", "mlp.down_proj.input", "mlp.down_proj", false},
};

static const expected ends[] = {
    {"model.embed_tokens.output", "", "embed_tokens", false},
    {"model.rotary_emb.cos", "", "", false},
    {"model.rotary_emb.sin", "", "", false},
    {"model.norm.output", "stream", "norm", false},
    {"lm_head.output", "model.norm.output", "lm_head", false},
};

/* Every tensor's data is a letter of its own: its address tells which it is. */
static const char marks[64];
static const char *const mark_names[] = {
    "embed_tokens",
    "norm",
    "lm_head",
    "input_layernorm",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "q_proj.bias",
    "k_proj.bias",
    "v_proj.bias",
    "o_proj.bias",
    "q_norm",
    "k_norm",
    "post_attention_layernorm",
    "gate",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "experts.gate_proj",
    "experts.up_proj",
    "experts.down_proj",
};

static q3_tensor mark(const char *name)
{
    for (size_t i = 0; i < sizeof mark_names / sizeof mark_names[0]; i++)
        if (strcmp(mark_names[i], name) == 0) return (q3_tensor){&marks[i], Q3_F32};
    CHECKF(false, "no tensor %s", name);
    return (q3_tensor){NULL, Q3_F32};
}

/* Layer 0 sparse, layer 1 dense; of the experts number 2 is marked. */
static const size_t dense_layers[] = {1};
static const q3_config config = {
    .vocab_size = 9,
    .hidden_size = 4,
    .intermediate_size = 6,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 2,
    .num_experts = 3,
    .num_experts_per_tok = 2,
    .moe_intermediate_size = 5,
    .decoder_sparse_step = 1,
    .mlp_only_layers = dense_layers,
    .mlp_only_count = 1,
};
static q3_mlp experts[3];
static q3_layer layers[2];
static q3_weights weights;

static void make_weights(void)
{
    experts[2] = (q3_mlp){mark("experts.gate_proj"), mark("experts.up_proj"),
                          mark("experts.down_proj")};
    for (size_t i = 0; i < 2; i++)
        layers[i] = (q3_layer){
            .input_layernorm = mark("input_layernorm"),
            .q_proj = mark("q_proj"),
            .k_proj = mark("k_proj"),
            .v_proj = mark("v_proj"),
            .o_proj = mark("o_proj"),
            .q_proj_bias = mark("q_proj.bias"),
            .k_proj_bias = mark("k_proj.bias"),
            .v_proj_bias = mark("v_proj.bias"),
            .o_proj_bias = mark("o_proj.bias"),
            .q_norm = mark("q_norm"),
            .k_norm = mark("k_norm"),
            .post_attention_layernorm = mark("post_attention_layernorm"),
            .gate = mark("gate"),
            .experts = experts,
            .mlp = {mark("mlp.gate_proj"), mark("mlp.up_proj"), mark("mlp.down_proj")},
        };
    weights = (q3_weights){mark("embed_tokens"), mark("norm"), mark("lm_head"), layers};
}

/* The tap's name in its layer. */
static void add_name(char *text, size_t size, q3_tap_id id, size_t layer)
{
    char name[Q3_TAP_NAME_SIZE], prefix[32];
    q3_tap_name(name, id, layer);
    snprintf(prefix, sizeof prefix, "model.layers.%lu.", (unsigned long)layer);
    size_t skip = strncmp(name, prefix, strlen(prefix)) == 0 ? strlen(prefix) : 0,
           used = strlen(text);
    snprintf(text + used, size - used, "%s%s", used > 0 ? " " : "", name + skip);
}

static void check_row(const expected *e, size_t layer, bool in_layer)
{
    char full[Q3_TAP_NAME_SIZE + 40], from[400] = "";
    q3_tap_id id = Q3_TAP_COUNT;
    size_t number;
    snprintf(full, sizeof full, in_layer ? "model.layers.%lu.%s" : "%.0lu%s",
             in_layer ? (unsigned long)layer : 0ul, e->tap);
    CHECKF(q3_tap_find(full, &id, &number), "%s", full);
    const q3_node *node = q3_graph_node(&config, id, layer);
    CHECKF(node != NULL && node->id == id, "%s", full);
    if (node == NULL) return;
    if (node->stream) snprintf(from, sizeof from, "stream");
    for (size_t k = 0; k < node->count; k++) add_name(from, sizeof from, node->from[k], layer);
    CHECKF(strcmp(from, e->from) == 0, "%s: from \"%s\", want \"%s\"", full, from, e->from);
    q3_tensor weight = q3_graph_weight(node, &weights, layer, 2),
              bias = q3_graph_bias(node, &weights, layer);
    CHECKF(weight.data == (e->weight[0] != 0 ? mark(e->weight).data : NULL), "%s: weight", full);
    snprintf(full, sizeof full, "%s.bias", e->weight);
    CHECKF(bias.data == (e->bias ? mark(full).data : NULL), "%s", full);
    CHECK(node->own_ulps >= 1 && node->roundings >= 1);
}

int main(void)
{
    size_t taps = 0;
    make_weights();
    for (size_t layer = 0; layer < 2; layer++)
        for (size_t i = 0; i < sizeof attention / sizeof attention[0]; i++)
            check_row(&attention[i], layer, true);
    for (size_t i = 0; i < sizeof sparse / sizeof sparse[0]; i++) check_row(&sparse[i], 0, true);
    for (size_t i = 0; i < sizeof dense / sizeof dense[0]; i++) check_row(&dense[i], 1, true);
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) check_row(&ends[i], 0, false);
    /* mlp: twice */
    taps = (sizeof attention + sizeof sparse + sizeof dense + sizeof ends) / sizeof attention[0] -
           1;
    CHECK(taps == Q3_TAP_COUNT);
    CHECK(q3_graph_node(&config, Q3_TAP_GATE, 1) == NULL &&
          q3_graph_node(&config, Q3_TAP_DENSE_ACT_FN, 0) == NULL);
    CHECK(q3_graph_node(&config, Q3_TAP_MLP, 2) == NULL);
    return t_done("test_graph");
}
