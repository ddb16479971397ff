/* SPDX-License-Identifier: MIT */
/* graph.c - what each tap is computed from: one row a tap, in the order of computation. */
#include "judge/graph.h"

#define MODEL(field) Q3_OF_MODEL, offsetof(q3_weights, field), 0
#define LAYER(field) Q3_OF_LAYER, offsetof(q3_layer, field), 0
#define BIASED(field) Q3_OF_LAYER, offsetof(q3_layer, field), offsetof(q3_layer, field##_bias)
#define DENSE(field) Q3_OF_LAYER, offsetof(q3_layer, mlp.field), 0
#define EXPERT(field) Q3_OF_EXPERT, offsetof(q3_mlp, field), 0
#define NONE Q3_NO_WEIGHT, 0, 0

static const q3_node nodes[] = {
    /* tap, operator, stream, inputs, weight, own ulps, roundings */
    {Q3_TAP_EMBED_TOKENS, Q3_OP_EMBEDDING, false, 0, {0}, MODEL(embed_tokens), 1, 1},
    {Q3_TAP_COS, Q3_OP_TABLE, false, 0, {0}, NONE, 1, 2},
    {Q3_TAP_SIN, Q3_OP_TABLE, false, 0, {0}, NONE, 1, 2},
    {Q3_TAP_INPUT_LAYERNORM, Q3_OP_NORM, true, 0, {0}, LAYER(input_layernorm), 3, 2},
    {Q3_TAP_Q_PROJ, Q3_OP_LINEAR, false, 1, {Q3_TAP_INPUT_LAYERNORM}, BIASED(q_proj), 1, 1},
    {Q3_TAP_K_PROJ, Q3_OP_LINEAR, false, 1, {Q3_TAP_INPUT_LAYERNORM}, BIASED(k_proj), 1, 1},
    {Q3_TAP_V_PROJ, Q3_OP_LINEAR, false, 1, {Q3_TAP_INPUT_LAYERNORM}, BIASED(v_proj), 1, 1},
    {Q3_TAP_Q_NORM, Q3_OP_HEAD_NORM, false, 1, {Q3_TAP_Q_PROJ}, LAYER(q_norm), 3, 2},
    {Q3_TAP_K_NORM, Q3_OP_HEAD_NORM, false, 1, {Q3_TAP_K_PROJ}, LAYER(k_norm), 3, 2},
    {Q3_TAP_Q_ROPE, Q3_OP_ROPE, false, 3, {Q3_TAP_Q_NORM, Q3_TAP_COS, Q3_TAP_SIN}, NONE, 1, 3},
    {Q3_TAP_K_ROPE, Q3_OP_ROPE, false, 3, {Q3_TAP_K_NORM, Q3_TAP_COS, Q3_TAP_SIN}, NONE, 1, 3},
    {Q3_TAP_SCORES, Q3_OP_SCORES, false, 2, {Q3_TAP_Q_ROPE, Q3_TAP_K_ROPE}, NONE, 3, 2},
    {Q3_TAP_PROBS, Q3_OP_PROBS, false, 1, {Q3_TAP_SCORES}, NONE, 1, 1},
    {Q3_TAP_O_PROJ_INPUT, Q3_OP_VALUES, false, 2, {Q3_TAP_PROBS, Q3_TAP_V_PROJ}, NONE, 1, 1},
    {Q3_TAP_O_PROJ, Q3_OP_LINEAR, false, 1, {Q3_TAP_O_PROJ_INPUT}, BIASED(o_proj), 1, 1},
    {Q3_TAP_POST_ATTENTION_INPUT, Q3_OP_SUM, true, 1, {Q3_TAP_O_PROJ}, NONE, 1, 1},
    {Q3_TAP_POST_ATTENTION_LAYERNORM, Q3_OP_NORM, false, 1, {Q3_TAP_POST_ATTENTION_INPUT},
     LAYER(post_attention_layernorm), 3, 2},
    {Q3_TAP_GATE, Q3_OP_LINEAR, false, 1, {Q3_TAP_POST_ATTENTION_LAYERNORM}, LAYER(gate), 1, 1},
    {Q3_TAP_ROUTER_PROBS, Q3_OP_ROUTER, false, 1, {Q3_TAP_GATE}, NONE, 1, 1},
    {Q3_TAP_TOPK_INDICES, Q3_OP_TOPK, false, 1, {Q3_TAP_ROUTER_PROBS}, NONE, 1, 1},
    {Q3_TAP_TOPK_WEIGHTS, Q3_OP_ROUTER_WEIGHTS, false, 2,
     {Q3_TAP_ROUTER_PROBS, Q3_TAP_TOPK_INDICES}, NONE, 1, 1},
    {Q3_TAP_EXPERTS_GATE_PROJ, Q3_OP_EXPERT_LINEAR, false, 2,
     {Q3_TAP_POST_ATTENTION_LAYERNORM, Q3_TAP_TOPK_INDICES}, EXPERT(gate_proj), 1, 1},
    {Q3_TAP_EXPERTS_UP_PROJ, Q3_OP_EXPERT_LINEAR, false, 2,
     {Q3_TAP_POST_ATTENTION_LAYERNORM, Q3_TAP_TOPK_INDICES}, EXPERT(up_proj), 1, 1},
    {Q3_TAP_EXPERTS_ACT_FN, Q3_OP_SILU, false, 1, {Q3_TAP_EXPERTS_GATE_PROJ}, NONE, 1, 1},
    {Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, Q3_OP_PRODUCT, false, 2,
     {Q3_TAP_EXPERTS_ACT_FN, Q3_TAP_EXPERTS_UP_PROJ}, NONE, 1, 2},
    {Q3_TAP_EXPERTS_DOWN_PROJ, Q3_OP_EXPERT_LINEAR, false, 2,
     {Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, Q3_TAP_TOPK_INDICES}, EXPERT(down_proj), 1, 1},
    {Q3_TAP_DENSE_GATE_PROJ, Q3_OP_LINEAR, false, 1, {Q3_TAP_POST_ATTENTION_LAYERNORM},
     DENSE(gate_proj), 1, 1},
    {Q3_TAP_DENSE_UP_PROJ, Q3_OP_LINEAR, false, 1, {Q3_TAP_POST_ATTENTION_LAYERNORM},
     DENSE(up_proj), 1, 1},
    {Q3_TAP_DENSE_ACT_FN, Q3_OP_SILU, false, 1, {Q3_TAP_DENSE_GATE_PROJ}, NONE, 1, 1},
    {Q3_TAP_DENSE_DOWN_PROJ_INPUT, Q3_OP_PRODUCT, false, 2,
     {Q3_TAP_DENSE_ACT_FN, Q3_TAP_DENSE_UP_PROJ}, NONE, 1, 2},
    {Q3_TAP_MLP, Q3_OP_COMBINE, false, 2, {Q3_TAP_EXPERTS_DOWN_PROJ, Q3_TAP_TOPK_WEIGHTS},
     NONE, 1, 1},
    {Q3_TAP_MLP, Q3_OP_LINEAR, false, 1, {Q3_TAP_DENSE_DOWN_PROJ_INPUT},
     DENSE(down_proj), 1, 1}, /* dense layers */
    {Q3_TAP_LAYER, Q3_OP_SUM, false, 2, {Q3_TAP_POST_ATTENTION_INPUT, Q3_TAP_MLP}, NONE, 1, 1},
    {Q3_TAP_NORM, Q3_OP_NORM, true, 0, {0}, MODEL(norm), 3, 2},
    {Q3_TAP_LM_HEAD, Q3_OP_LINEAR, false, 1, {Q3_TAP_NORM}, MODEL(lm_head), 1, 1},
};

const q3_node *q3_graph_node(const q3_config *config, q3_tap_id id, size_t layer)
{
    if (!q3_tap_exists(config, 0, config->num_hidden_layers, id, layer)) return NULL;
    bool dense = id == Q3_TAP_MLP && !q3_layer_is_sparse(config, layer);
    for (size_t i = 0; i < sizeof nodes / sizeof nodes[0]; i++)
        if (nodes[i].id == id) return &nodes[i + dense];
    return NULL;
}

static q3_tensor tensor_at(const void *home, size_t offset)
{
    return *(const q3_tensor *)(const void *)((const char *)home + offset);
}

q3_tensor q3_graph_weight(const q3_node *node, const q3_weights *weights, size_t layer,
                          size_t expert)
{
    if (node->home == Q3_OF_MODEL) return tensor_at(weights, node->weight);
    if (node->home == Q3_OF_LAYER) return tensor_at(&weights->layers[layer], node->weight);
    if (node->home == Q3_OF_EXPERT)
        return tensor_at(&weights->layers[layer].experts[expert], node->weight);
    return (q3_tensor){NULL, Q3_F32};
}

q3_tensor q3_graph_bias(const q3_node *node, const q3_weights *weights, size_t layer)
{
    if (node->bias == 0) return (q3_tensor){NULL, Q3_F32};
    return tensor_at(&weights->layers[layer], node->bias);
}
