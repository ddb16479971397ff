/* SPDX-License-Identifier: MIT */
/* taps.c - one row a tap: its name (Hugging Face's module path), its shape, where it stands. Needs
 * no operating system: of the C library memcpy, strlen, strcmp and strncmp alone. */
#include "host/taps.h"

#include <string.h>

/* name and label of a module's output or input, in a layer and outside */
#define OUT(module) module ".output", module
#define IN(module) module ".input", module ".input"
#define MODEL(what, end) "model." what end, what

#define FRONT Q3_PLACE_FRONT
#define LAYER Q3_PLACE_LAYER
#define SPARSE Q3_PLACE_SPARSE
#define DENSE Q3_PLACE_DENSE
#define HEAD Q3_PLACE_HEAD
#define ROW Q3_LAYOUT_ROW
#define HEADS Q3_LAYOUT_HEADS
#define SQUARE Q3_LAYOUT_SQUARE
#define SLOTS Q3_LAYOUT_SLOTS
#define SLOT_ROWS Q3_LAYOUT_SLOT_ROWS
#define NONE Q3_GROUP_NONE
#define ATTENTION Q3_GROUP_ATTENTION
#define ROUTER Q3_GROUP_ROUTER
#define MLP Q3_GROUP_MLP

/* How it ends: what the values are rounded to, and for a dense layer's tap its column. */
#define RUN Q3_AUTO, Q3_TAP_COUNT
#define F32 Q3_F32, Q3_TAP_COUNT
#define I32 Q3_I32, Q3_TAP_COUNT
#define LIKE(tap) Q3_AUTO, Q3_TAP_##tap

/* Letters of a shape: T tokens (also for S, the keys of a whole run) and qwen3moe.h's others; Q is
 * H*hd, R is K*hd, d is hd. */
static const q3_tap_row rows[Q3_TAP_COUNT + 1] = {
    /* name and label, code, shape, place, layout, group, how it ends, what it holds */
    [Q3_TAP_EMBED_TOKENS] = {MODEL("embed_tokens", ".output"), "", "TM", FRONT, ROW, NONE, RUN,
        "the tokens' rows of the embedding"},
    [Q3_TAP_COS] = {MODEL("rotary_emb.cos", ""), "", "Td", FRONT, ROW, NONE, RUN,
        "cosines of position times frequency, the half twice"},
    [Q3_TAP_SIN] = {MODEL("rotary_emb.sin", ""), "", "Td", FRONT, ROW, NONE, RUN,
        "sines of position times frequency, the half twice"},
    [Q3_TAP_INPUT_LAYERNORM] = {OUT("input_layernorm"), "norm", "TM", LAYER, ROW, ATTENTION, RUN,
        "RMSNorm of what the layer starts from, times the norm's weight"},
    [Q3_TAP_Q_PROJ] = {OUT("self_attn.q_proj"), "q", "TQ", LAYER, HEADS, ATTENTION, RUN,
        "queries of all heads, with the bias if there is one"},
    [Q3_TAP_K_PROJ] = {OUT("self_attn.k_proj"), "k", "TR", LAYER, HEADS, ATTENTION, RUN,
        "keys of all key/value heads, before norm and RoPE"},
    [Q3_TAP_V_PROJ] = {OUT("self_attn.v_proj"), "v", "TR", LAYER, HEADS, ATTENTION, RUN,
        "values of all key/value heads"},
    [Q3_TAP_Q_NORM] = {OUT("self_attn.q_norm"), "qn", "THd", LAYER, HEADS, ATTENTION, RUN,
        "each head's RMSNorm of its queries, before RoPE"},
    [Q3_TAP_K_NORM] = {OUT("self_attn.k_norm"), "kn", "TKd", LAYER, HEADS, ATTENTION, RUN,
        "each head's RMSNorm of its keys, before RoPE"},
    [Q3_TAP_Q_ROPE] = {OUT("self_attn.q_rope"), "qr", "THd", LAYER, HEADS, ATTENTION, RUN,
        "queries turned by their position, halves against halves"},
    [Q3_TAP_K_ROPE] = {OUT("self_attn.k_rope"), "kr", "TKd", LAYER, HEADS, ATTENTION, RUN,
        "keys turned by their position, as the cache holds them"},
    [Q3_TAP_SCORES] = {OUT("self_attn.scores"), "qk", "HTT", LAYER, SQUARE, ATTENTION, RUN,
        "query times key times head_dim^-0.5, before the mask; 0 where masked"},
    [Q3_TAP_PROBS] = {OUT("self_attn.probs"), "p", "HTT", LAYER, SQUARE, ATTENTION, RUN,
        "softmax of the scores over the keys; 0 where masked"},
    [Q3_TAP_O_PROJ_INPUT] = {IN("self_attn.o_proj"), "pv", "TQ", LAYER, HEADS, ATTENTION, RUN,
        "sums of the values, weighted by the probabilities, head behind head"},
    [Q3_TAP_O_PROJ] = {OUT("self_attn.o_proj"), "o", "TM", LAYER, ROW, ATTENTION, RUN,
        "attention's output, before the residual sum"},
    [Q3_TAP_POST_ATTENTION_INPUT] = {IN("post_attention_layernorm"), "res", "TM",
        LAYER, ROW, ATTENTION, RUN,
        "the residual stream behind attention"},
    [Q3_TAP_POST_ATTENTION_LAYERNORM] = {OUT("post_attention_layernorm"), "norm", "TM",
        LAYER, ROW, ROUTER, RUN,
        "RMSNorm of that, times the norm's weight: what router and MLP read"},
    [Q3_TAP_GATE] = {OUT("mlp.gate"), "rout", "TE", SPARSE, ROW, ROUTER, RUN,
        "the router's logits, raw"},
    [Q3_TAP_ROUTER_PROBS] = {OUT("mlp.router_probs"), "rp", "TE", SPARSE, ROW, ROUTER, F32,
        "softmax of the logits over all experts"},
    [Q3_TAP_TOPK_INDICES] = {OUT("mlp.topk_indices"), "ids", "TA", SPARSE, SLOTS, ROUTER, I32,
        "the chosen experts, the likeliest first"},
    [Q3_TAP_TOPK_WEIGHTS] = {OUT("mlp.topk_weights"), "w", "TA", SPARSE, SLOTS, ROUTER, RUN,
        "their weights as multiplied, renormalised if norm_topk_prob says so"},
    [Q3_TAP_EXPERTS_GATE_PROJ] = {OUT("mlp.experts.gate_proj"), "gate", "TAF",
        SPARSE, SLOT_ROWS, MLP, RUN,
        "gate_proj of each chosen expert, in the order of topk_indices"},
    [Q3_TAP_EXPERTS_UP_PROJ] = {OUT("mlp.experts.up_proj"), "up", "TAF",
        SPARSE, SLOT_ROWS, MLP, RUN,
        "up_proj of each chosen expert"},
    [Q3_TAP_EXPERTS_ACT_FN] = {OUT("mlp.experts.act_fn"), "act", "TAF",
        SPARSE, SLOT_ROWS, MLP, RUN,
        "silu of the experts' gate_proj"},
    [Q3_TAP_EXPERTS_DOWN_PROJ_INPUT] = {IN("mlp.experts.down_proj"), "mul", "TAF",
        SPARSE, SLOT_ROWS, MLP, RUN,
        "silu(gate_proj) times up_proj"},
    [Q3_TAP_EXPERTS_DOWN_PROJ] = {OUT("mlp.experts.down_proj"), "down", "TAM",
        SPARSE, SLOT_ROWS, MLP, RUN,
        "each chosen expert's output, before its weight"},
    [Q3_TAP_DENSE_GATE_PROJ] = {OUT("mlp.gate_proj"), "gate", "TI",
        DENSE, ROW, MLP, LIKE(EXPERTS_GATE_PROJ),
        "the MLP's gate_proj"},
    [Q3_TAP_DENSE_UP_PROJ] = {OUT("mlp.up_proj"), "up", "TI",
        DENSE, ROW, MLP, LIKE(EXPERTS_UP_PROJ),
        "the MLP's up_proj"},
    [Q3_TAP_DENSE_ACT_FN] = {OUT("mlp.act_fn"), "act", "TI", DENSE, ROW, MLP, LIKE(EXPERTS_ACT_FN),
        "silu of gate_proj"},
    [Q3_TAP_DENSE_DOWN_PROJ_INPUT] = {IN("mlp.down_proj"), "mul", "TI",
        DENSE, ROW, MLP, LIKE(EXPERTS_DOWN_PROJ_INPUT),
        "silu(gate_proj) times up_proj"},
    [Q3_TAP_MLP] = {OUT("mlp"), "mlp", "TM", LAYER, ROW, MLP, RUN,
        "the experts' weighted sum, or the dense MLP's output, before the residual sum"},
    [Q3_TAP_LAYER] = {"output", "output", "out", "TM", LAYER, ROW, MLP, RUN,
        "the residual stream behind the layer, not normalised"},
    [Q3_TAP_NORM] = {MODEL("norm", ".output"), "", "TM", HEAD, ROW, NONE, RUN,
        "RMSNorm of the last layer's output, times the norm's weight"},
    [Q3_TAP_LM_HEAD] = {OUT("lm_head"), "", "TV", HEAD, ROW, NONE, RUN,
        "the logits of all tokens"},
    [Q3_TAP_COUNT] = {"", "", "", "", Q3_PLACE_NONE, ROW, NONE, RUN, ""},
};

static const char layers[] = "model.layers.";

const q3_tap_row *q3_tap_info(q3_tap_id id)
{
    Q3_CHECK(id <= Q3_TAP_COUNT);
    return &rows[id];
}

bool q3_tap_in_layer(q3_tap_id id)
{
    q3_tap_place place = q3_tap_info(id)->place;
    return place == LAYER || place == SPARSE || place == DENSE;
}

bool q3_tap_at_front(q3_tap_id id)
{
    return q3_tap_info(id)->place == FRONT;
}

bool q3_tap_at_head(q3_tap_id id)
{
    return q3_tap_info(id)->place == HEAD;
}

bool q3_tap_is_square(q3_tap_id id)
{
    return q3_tap_info(id)->layout == SQUARE;
}

bool q3_tap_has_heads(q3_tap_id id)
{
    return q3_tap_info(id)->layout == HEADS;
}

bool q3_tap_of_experts(q3_tap_id id)
{
    return q3_tap_info(id)->layout == SLOT_ROWS;
}

q3_tap_id q3_tap_column(q3_tap_id id)
{
    const q3_tap_row *row = q3_tap_info(id);
    return row->place == DENSE ? row->like : id;
}

size_t q3_tap_row_size(const q3_config *config, q3_tap_id id, size_t T)
{
    size_t shape[3], rank = q3_tap_shape(shape, config, id, T);
    if (q3_tap_is_square(id)) return shape[0] * shape[2];
    return rank == 3 ? shape[1] * shape[2] : shape[1];
}

const char *q3_tap_axis(q3_tap_id id, size_t rank, size_t axis)
{
    q3_tap_layout layout = q3_tap_info(id)->layout;
    if (axis == 0) return "token";
    if (axis == 2) return layout == SQUARE ? "key" : "channel";
    if (rank == 2) return layout == SLOTS ? "slot" : "channel";
    return layout == SLOT_ROWS ? "slot" : "head";
}

const char *q3_tap_symbol(q3_tap_id id, size_t axis)
{
    static const struct { char letter; const char *symbol; } symbols[] = {
        {'T', "T"}, {'M', "M"}, {'H', "H"}, {'K', "K"}, {'d', "hd"}, {'Q', "H*hd"}, {'R', "K*hd"},
        {'E', "E"}, {'A', "A"}, {'F', "F"}, {'I', "I"},
    };
    char letter = q3_tap_info(id)->shape[axis];
    if (letter == 'T' && axis == 2) return "S";
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++)
        if (symbols[i].letter == letter) return symbols[i].symbol;
    return "V";
}

const char *q3_tap_short_label(q3_tap_id id)
{
    static const char *const modules[] = {"self_attn.", "mlp."};
    const char *label = q3_tap_info(id)->label;
    for (size_t i = 0; i < sizeof modules / sizeof modules[0]; i++)
        if (strncmp(label, modules[i], strlen(modules[i])) == 0) return label + strlen(modules[i]);
    return label;
}

/* ==== What qwen3moe.h promises ================================================================ */

void q3_tap_name(char name[Q3_TAP_NAME_SIZE], q3_tap_id id, size_t layer)
{
    Q3_CHECK(id < Q3_TAP_COUNT);
    char *p = name;
    if (q3_tap_in_layer(id)) {
        size_t digits = 1;
        memcpy(p, layers, sizeof layers - 1);
        p += sizeof layers - 1;
        for (size_t n = layer; n >= 10; n /= 10) digits++;
        for (size_t i = digits; i > 0; i--, layer /= 10) p[i - 1] = (char)('0' + layer % 10);
        p += digits;
        *p++ = '.';
    }
    memcpy(p, rows[id].name, strlen(rows[id].name) + 1);
}

bool q3_tap_find(const char *name, q3_tap_id *id, size_t *layer)
{
    size_t number = 0;
    const char *rest = name;
    bool layered = strncmp(name, layers, sizeof layers - 1) == 0;
    if (layered) {
        const char *digits = name + sizeof layers - 1;
        for (rest = digits; *rest >= '0' && *rest <= '9' && number < SIZE_MAX / 10 - 1; rest++)
            number = number * 10 + (size_t)(*rest - '0');
        bool written_so = rest != digits && (*digits != '0' || rest == digits + 1);
        if (!written_so || *rest++ != '.') return false;
    }
    for (int i = 0; i < Q3_TAP_COUNT; i++) {
        if (q3_tap_in_layer((q3_tap_id)i) != layered || strcmp(rest, rows[i].name) != 0) continue;
        *id = (q3_tap_id)i;
        *layer = number;
        return true;
    }
    return false;
}

bool q3_tap_exists(const q3_config *config, size_t first_layer, size_t end_layer, q3_tap_id id,
                   size_t layer)
{
    q3_tap_place place = q3_tap_info(id)->place;
    bool inside = layer >= first_layer && layer < end_layer;
    switch (place) {
    case FRONT: return id != Q3_TAP_EMBED_TOKENS || first_layer == 0;
    case LAYER: return inside;
    case SPARSE: return inside && q3_layer_is_sparse(config, layer);
    case DENSE: return inside && !q3_layer_is_sparse(config, layer);
    case HEAD: return end_layer == config->num_hidden_layers;
    case Q3_PLACE_NONE: break;
    }
    return false;
}

/* The size that a letter of a shape stands for. */
static size_t size_of(char letter, const q3_config *c, size_t T)
{
    switch (letter) {
    case 'T': return T;
    case 'M': return c->hidden_size;
    case 'H': return c->num_attention_heads;
    case 'K': return c->num_key_value_heads;
    case 'd': return c->head_dim;
    case 'Q': return c->num_attention_heads * c->head_dim;
    case 'R': return c->num_key_value_heads * c->head_dim;
    case 'E': return c->num_experts;
    case 'A': return c->num_experts_per_tok;
    case 'F': return c->moe_intermediate_size;
    case 'I': return c->intermediate_size;
    default: return c->vocab_size;
    }
}

size_t q3_tap_shape(size_t shape[3], const q3_config *config, q3_tap_id id, size_t T)
{
    Q3_CHECK(id < Q3_TAP_COUNT);
    size_t rank = strlen(rows[id].shape);
    for (size_t i = 0; i < rank; i++) shape[i] = size_of(rows[id].shape[i], config, T);
    return rank;
}

q3_dtype q3_tap_dtype(q3_tap_id id, q3_dtype run)
{
    q3_dtype own = q3_tap_info(id)->dtype;
    return own == Q3_AUTO ? run : own;
}

bool q3_tap_fits(const char *pattern, const char *name)
{
    const char *star = NULL, *retry = name;
    while (*name != 0) {
        if (*pattern == '*') {
            star = ++pattern;
            retry = name;
        } else if (*pattern == '?' || *pattern == *name) {
            pattern++;
            name++;
        } else if (star != NULL) {
            pattern = star;
            name = ++retry;
        } else {
            return false;
        }
    }
    while (*pattern == '*') pattern++;
    return *pattern == 0;
}
