/* SPDX-License-Identifier: MIT */
/* taps.h - one row a tap: all that is told of it anywhere. Private; needs no operating system.
 *
 * The order of q3_tap_id is the order of computation; nothing else is read from it. A new tap is an
 * enumerator in qwen3moe.h, a row in taps.c and one in judge/graph.c. */
#ifndef Q3_TAPS_H
#define Q3_TAPS_H

#include "qwen3moe.h"

/* Where a tap stands in the model. */
typedef enum q3_tap_place {
    Q3_PLACE_FRONT,  /* before the layers: embedding and tables of rotary embedding */
    Q3_PLACE_LAYER,  /* in every layer */
    Q3_PLACE_SPARSE, /* in layers with experts */
    Q3_PLACE_DENSE,  /* in layers with one MLP */
    Q3_PLACE_HEAD,   /* behind the layers: the last norm and lm_head */
    Q3_PLACE_NONE    /* no tap */
} q3_tap_place;

/* What one token's values are. */
typedef enum q3_tap_layout {
    Q3_LAYOUT_ROW,      /* [T,n] channels */
    Q3_LAYOUT_HEADS,    /* [T,H,hd], or flat [T,H*hd], of query or of key/value heads */
    Q3_LAYOUT_SQUARE,   /* [H,T,S] a value for each head and key; T is the second axis */
    Q3_LAYOUT_SLOTS,    /* [T,A] one value for each chosen expert */
    Q3_LAYOUT_SLOT_ROWS /* [T,A,n] channels for each chosen expert */
} q3_tap_layout;

/* Which part of a layer computes it. */
typedef enum q3_tap_group {
    Q3_GROUP_NONE,      /* outside the layers */
    Q3_GROUP_ATTENTION, /* from input_layernorm to the sum behind attention */
    Q3_GROUP_ROUTER,    /* from post_attention_layernorm to the chosen weights */
    Q3_GROUP_MLP        /* experts or the dense MLP, to the layer's output */
} q3_tap_group;

typedef struct q3_tap_row {
    const char *name;  /* behind "model.layers.{i}." in a layer, else whole */
    const char *label; /* the name in reports: without "model." and ".output" */
    const char *code;  /* the head of its column in the text report's map; "" outside the layers */
    const char *shape; /* sizes of a whole tensor, by letters: see taps.c */
    q3_tap_place place;
    q3_tap_layout layout;
    q3_tap_group group;
    q3_dtype dtype;    /* Q3_AUTO: the run's */
    q3_tap_id like;    /* of a dense MLP's tap: the experts' of the same step; else Q3_TAP_COUNT */
    const char *meaning; /* what it holds, in a line */
} q3_tap_row;

/* Never NULL. Q3_TAP_COUNT has the row of no tap: empty texts, Q3_PLACE_NONE, Q3_LAYOUT_ROW. */
Q3_PRIVATE_API const q3_tap_row *q3_tap_info(q3_tap_id id);

/* Whether the name has a layer's number. */
Q3_PRIVATE_API bool q3_tap_in_layer(q3_tap_id id);
Q3_PRIVATE_API bool q3_tap_at_front(q3_tap_id id);
Q3_PRIVATE_API bool q3_tap_at_head(q3_tap_id id);
/* scores and probs */
Q3_PRIVATE_API bool q3_tap_is_square(q3_tap_id id);
/* Rows of heads: q, k and v in all their states, and o_proj's input; not scores and probs. */
Q3_PRIVATE_API bool q3_tap_has_heads(q3_tap_id id);
/* [T,A,n]: the experts' inner taps, a row for each chosen expert. */
Q3_PRIVATE_API bool q3_tap_of_experts(q3_tap_id id);

/* The tap whose column of a map it shares: itself; in a dense layer the experts' tap that does the
 * same. */
Q3_PRIVATE_API q3_tap_id q3_tap_column(q3_tap_id id);

/* Values of one token in a run of T tokens: the product of all axes but the token's. */
Q3_PRIVATE_API size_t q3_tap_row_size(const q3_config *config, q3_tap_id id, size_t T);
/* The size of an axis of a whole tensor, in MODEL.md's symbols: "T", "H*hd"; of scores and probs
 * [H,T,S]. axis < q3_tap_shape's rank. */
Q3_PRIVATE_API const char *q3_tap_symbol(q3_tap_id id, size_t axis);
/* What an axis counts in a finding about a tensor of this rank (scores and probs: token first):
 * "token" (axis 0), "head", "slot", "key" or "channel". */
Q3_PRIVATE_API const char *q3_tap_axis(q3_tap_id id, size_t rank, size_t axis);
/* The label without "self_attn." and "mlp.": "q_proj", "experts.gate_proj". */
Q3_PRIVATE_API const char *q3_tap_short_label(q3_tap_id id);

/* Whether the pattern fits the whole name: * is any run of characters, dots too, ? any one. */
Q3_PRIVATE_API bool q3_tap_fits(const char *pattern, const char *name);

#endif
