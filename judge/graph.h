/* SPDX-License-Identifier: MIT */
/* graph.h - the model as a graph: what each tap is computed from, by which operator, with which
 * weights. Private to judge/; MODEL.md sections 3 to 8 have the formulas. */
#ifndef Q3_JUDGE_GRAPH_H
#define Q3_JUDGE_GRAPH_H

#include "host/taps.h"

typedef enum q3_operator {
    Q3_OP_EMBEDDING,       /* q3_embedding */
    Q3_OP_TABLE,           /* q3_rope_table: cos or sin */
    Q3_OP_NORM,            /* q3_rmsnorm of whole rows */
    Q3_OP_HEAD_NORM,       /* q3_rmsnorm head by head */
    Q3_OP_LINEAR,          /* q3_linear */
    Q3_OP_ROPE,            /* q3_rope_apply */
    Q3_OP_SCORES,          /* q3_attention_scores */
    Q3_OP_PROBS,           /* q3_attention_probs */
    Q3_OP_VALUES,          /* q3_attention_values */
    Q3_OP_SUM,             /* q3_residual_add: the stream, then the branch */
    Q3_OP_ROUTER,          /* q3_router_probs */
    Q3_OP_TOPK,            /* q3_router_topk */
    Q3_OP_ROUTER_WEIGHTS,  /* q3_router_weights */
    Q3_OP_EXPERT_LINEAR,   /* q3_expert_linear */
    Q3_OP_SILU,            /* q3_silu_map */
    Q3_OP_PRODUCT,         /* q3_multiply: silu(gate), then up */
    Q3_OP_COMBINE          /* q3_expert_combine */
} q3_operator;

/* Which of the model's weights: an offset into q3_weights, q3_layer or q3_mlp. */
typedef enum q3_weight_home { Q3_NO_WEIGHT, Q3_OF_MODEL, Q3_OF_LAYER, Q3_OF_EXPERT } q3_weight_home;

typedef struct q3_node {
    q3_tap_id id;
    q3_operator op;
    bool stream;           /* reads what the layer (the final norm) starts from: before `from`,
                            * where both are */
    unsigned char count;   /* of from */
    q3_tap_id from[3];     /* in the order of the operator's arguments */
    q3_weight_home home;
    size_t weight, bias;   /* offsets; bias 0: none */
    /* Rounding class (MODEL.md 12.2): how many ulp of the element itself an honest
     * implementation may differ by, where roundings stand elsewhere or are left out; and how many
     * roundings lie between the operator's float32 noise and the stored value. */
    unsigned char own_ulps, roundings;
} q3_node;

/* The node that makes a tap in this layer (for a tap outside the layers any number); mlp.output of
 * a dense layer is down_proj's. NULL: the layer has no such tap. */
const q3_node *q3_graph_node(const q3_config *config, q3_tap_id id, size_t layer);

/* The node's weight and bias; data NULL: none. expert: for Q3_OP_EXPERT_LINEAR. */
q3_tensor q3_graph_weight(const q3_node *node, const q3_weights *weights, size_t layer,
                          size_t expert);
q3_tensor q3_graph_bias(const q3_node *node, const q3_weights *weights, size_t layer);

#endif
