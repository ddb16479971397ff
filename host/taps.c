/* names.c - what the taps are called, and their shapes. The names are Hugging Face's module paths. */
#include "qwen3moe.h"

#include <string.h>

/* Where a tap stands, and which models have it. */
typedef enum tap_place { FRONT, EVERY_LAYER, SPARSE_LAYER, DENSE_LAYER, HEAD } tap_place;

/* Sizes of a whole tensor, by letters: T tokens (S is T in a whole run), and the legend's others;
 * Q is H*hd, R is K*hd, d is hd. */
typedef struct tap_row {
    const char *name; /* behind model.layers.{i}. in a layer */
    const char *shape;
    tap_place place;
} tap_row;

static const tap_row taps[Q3_TAP_COUNT] = {
    [Q3_TAP_EMBED_TOKENS] = {"model.embed_tokens.output", "TM", FRONT},
    [Q3_TAP_COS] = {"model.rotary_emb.cos", "Td", FRONT},
    [Q3_TAP_SIN] = {"model.rotary_emb.sin", "Td", FRONT},
    [Q3_TAP_INPUT_LAYERNORM] = {"input_layernorm.output", "TM", EVERY_LAYER},
    [Q3_TAP_Q_PROJ] = {"self_attn.q_proj.output", "TQ", EVERY_LAYER},
    [Q3_TAP_K_PROJ] = {"self_attn.k_proj.output", "TR", EVERY_LAYER},
    [Q3_TAP_V_PROJ] = {"self_attn.v_proj.output", "TR", EVERY_LAYER},
    [Q3_TAP_Q_NORM] = {"self_attn.q_norm.output", "THd", EVERY_LAYER},
    [Q3_TAP_K_NORM] = {"self_attn.k_norm.output", "TKd", EVERY_LAYER},
    [Q3_TAP_Q_ROPE] = {"self_attn.q_rope.output", "THd", EVERY_LAYER},
    [Q3_TAP_K_ROPE] = {"self_attn.k_rope.output", "TKd", EVERY_LAYER},
    [Q3_TAP_SCORES] = {"self_attn.scores.output", "HTT", EVERY_LAYER},
    [Q3_TAP_PROBS] = {"self_attn.probs.output", "HTT", EVERY_LAYER},
    [Q3_TAP_O_PROJ_INPUT] = {"self_attn.o_proj.input", "TQ", EVERY_LAYER},
    [Q3_TAP_O_PROJ] = {"self_attn.o_proj.output", "TM", EVERY_LAYER},
    [Q3_TAP_POST_ATTENTION_INPUT] = {"post_attention_layernorm.input", "TM", EVERY_LAYER},
    [Q3_TAP_POST_ATTENTION_LAYERNORM] = {"post_attention_layernorm.output", "TM", EVERY_LAYER},
    [Q3_TAP_GATE] = {"mlp.gate.output", "TE", SPARSE_LAYER},
    [Q3_TAP_ROUTER_PROBS] = {"mlp.router_probs.output", "TE", SPARSE_LAYER},
    [Q3_TAP_TOPK_INDICES] = {"mlp.topk_indices.output", "TA", SPARSE_LAYER},
    [Q3_TAP_TOPK_WEIGHTS] = {"mlp.topk_weights.output", "TA", SPARSE_LAYER},
    [Q3_TAP_EXPERTS_GATE_PROJ] = {"mlp.experts.gate_proj.output", "TAF", SPARSE_LAYER},
    [Q3_TAP_EXPERTS_UP_PROJ] = {"mlp.experts.up_proj.output", "TAF", SPARSE_LAYER},
    [Q3_TAP_EXPERTS_ACT_FN] = {"mlp.experts.act_fn.output", "TAF", SPARSE_LAYER},
    [Q3_TAP_EXPERTS_DOWN_PROJ_INPUT] = {"mlp.experts.down_proj.input", "TAF", SPARSE_LAYER},
    [Q3_TAP_EXPERTS_DOWN_PROJ] = {"mlp.experts.down_proj.output", "TAM", SPARSE_LAYER},
    [Q3_TAP_DENSE_GATE_PROJ] = {"mlp.gate_proj.output", "TI", DENSE_LAYER},
    [Q3_TAP_DENSE_UP_PROJ] = {"mlp.up_proj.output", "TI", DENSE_LAYER},
    [Q3_TAP_DENSE_ACT_FN] = {"mlp.act_fn.output", "TI", DENSE_LAYER},
    [Q3_TAP_DENSE_DOWN_PROJ_INPUT] = {"mlp.down_proj.input", "TI", DENSE_LAYER},
    [Q3_TAP_MLP] = {"mlp.output", "TM", EVERY_LAYER},
    [Q3_TAP_LAYER] = {"output", "TM", EVERY_LAYER},
    [Q3_TAP_NORM] = {"model.norm.output", "TM", HEAD},
    [Q3_TAP_LM_HEAD] = {"lm_head.output", "TV", HEAD},
};

static const char layers[] = "model.layers.";

static bool in_layer(q3_tap_id id)
{
    return taps[id].place != FRONT && taps[id].place != HEAD;
}

void q3_tap_name(char name[Q3_TAP_NAME_SIZE], q3_tap_id id, size_t layer)
{
    Q3_CHECK(id < Q3_TAP_COUNT);
    char *p = name;
    if (in_layer(id)) {
        size_t digits = 1;
        memcpy(p, layers, sizeof layers - 1);
        p += sizeof layers - 1;
        for (size_t n = layer; n >= 10; n /= 10) digits++;
        for (size_t i = digits; i > 0; i--, layer /= 10) p[i - 1] = (char)('0' + layer % 10);
        p += digits;
        *p++ = '.';
    }
    memcpy(p, taps[id].name, strlen(taps[id].name) + 1);
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
        if (in_layer((q3_tap_id)i) != layered || strcmp(rest, taps[i].name) != 0) continue;
        *id = (q3_tap_id)i;
        *layer = number;
        return true;
    }
    return false;
}

bool q3_tap_exists(const q3_config *config, size_t first_layer, size_t end_layer, q3_tap_id id,
                   size_t layer)
{
    if (id == Q3_TAP_EMBED_TOKENS) return first_layer == 0;
    if (taps[id].place == FRONT) return true;
    if (taps[id].place == HEAD) return end_layer == config->num_hidden_layers;
    if (layer < first_layer || layer >= end_layer) return false;
    return taps[id].place == EVERY_LAYER ||
           (taps[id].place == SPARSE_LAYER) == q3_layer_is_sparse(config, layer);
}

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
    size_t rank = strlen(taps[id].shape);
    for (size_t i = 0; i < rank; i++) shape[i] = size_of(taps[id].shape[i], config, T);
    return rank;
}

q3_dtype q3_tap_dtype(q3_tap_id id, q3_dtype run)
{
    if (id == Q3_TAP_TOPK_INDICES) return Q3_I32;
    return id == Q3_TAP_ROUTER_PROBS ? Q3_F32 : run;
}
