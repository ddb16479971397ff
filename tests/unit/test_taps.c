/* SPDX-License-Identifier: MIT */
/* Tests of host/taps.c: every tap's name, shape, place, dtype and words, written down here a second
 * time (MODEL.md section 8). */
#include "host/taps.h"

#include "t.h"

/* T 2, M 3, H 8, K 4, hd 6, E 9, A 5, F 7, I 11, V 13: products are told apart. */
static const q3_config config = {
    .hidden_size = 3, .num_attention_heads = 8, .num_key_value_heads = 4, .head_dim = 6,
    .num_experts = 9, .num_experts_per_tok = 5, .moe_intermediate_size = 7, .intermediate_size = 11,
    .vocab_size = 13, .num_hidden_layers = 2,
    .decoder_sparse_step = 2, /* layer 0 is dense, layer 1 sparse */
};

typedef struct expected {
    q3_tap_id id;
    const char *name, *label, *shorter, *code;
    size_t rank, shape[3], row; /* of T = 2 */
    char place, group;          /* f front, l layer, s sparse, d dense, h head; a, r, m or - */
    const char *axes;           /* of a finding: "thc" */
    q3_dtype dtype;             /* in a bfloat16 run */
} expected;

#define L "model.layers.1."
#define D "model.layers.0."

static const expected taps[] = {
    {Q3_TAP_EMBED_TOKENS, "model.embed_tokens.output", "embed_tokens", "embed_tokens", "",
     2, {2, 3}, 3, 'f', '-', "tc", 'D'},
    {Q3_TAP_COS, "model.rotary_emb.cos", "rotary_emb.cos", "rotary_emb.cos", "",
     2, {2, 6}, 6, 'f', '-', "tc", 'D'},
    {Q3_TAP_SIN, "model.rotary_emb.sin", "rotary_emb.sin", "rotary_emb.sin", "",
     2, {2, 6}, 6, 'f', '-', "tc", 'D'},
    {Q3_TAP_INPUT_LAYERNORM, L "input_layernorm.output", "input_layernorm", "input_layernorm",
     "norm", 2, {2, 3}, 3, 'l', 'a', "tc", 'D'},
    {Q3_TAP_Q_PROJ, L "self_attn.q_proj.output", "self_attn.q_proj", "q_proj", "q",
     2, {2, 48}, 48, 'l', 'a', "tc", 'D'},
    {Q3_TAP_K_PROJ, L "self_attn.k_proj.output", "self_attn.k_proj", "k_proj", "k",
     2, {2, 24}, 24, 'l', 'a', "tc", 'D'},
    {Q3_TAP_V_PROJ, L "self_attn.v_proj.output", "self_attn.v_proj", "v_proj", "v",
     2, {2, 24}, 24, 'l', 'a', "tc", 'D'},
    {Q3_TAP_Q_NORM, L "self_attn.q_norm.output", "self_attn.q_norm", "q_norm", "qn",
     3, {2, 8, 6}, 48, 'l', 'a', "thc", 'D'},
    {Q3_TAP_K_NORM, L "self_attn.k_norm.output", "self_attn.k_norm", "k_norm", "kn",
     3, {2, 4, 6}, 24, 'l', 'a', "thc", 'D'},
    {Q3_TAP_Q_ROPE, L "self_attn.q_rope.output", "self_attn.q_rope", "q_rope", "qr",
     3, {2, 8, 6}, 48, 'l', 'a', "thc", 'D'},
    {Q3_TAP_K_ROPE, L "self_attn.k_rope.output", "self_attn.k_rope", "k_rope", "kr",
     3, {2, 4, 6}, 24, 'l', 'a', "thc", 'D'},
    {Q3_TAP_SCORES, L "self_attn.scores.output", "self_attn.scores", "scores", "qk",
     3, {8, 2, 2}, 16, 'l', 'a', "thk", 'D'},
    {Q3_TAP_PROBS, L "self_attn.probs.output", "self_attn.probs", "probs", "p",
     3, {8, 2, 2}, 16, 'l', 'a', "thk", 'D'},
    {Q3_TAP_O_PROJ_INPUT, L "self_attn.o_proj.input", "self_attn.o_proj.input", "o_proj.input",
     "pv", 2, {2, 48}, 48, 'l', 'a', "tc", 'D'},
    {Q3_TAP_O_PROJ, L "self_attn.o_proj.output", "self_attn.o_proj", "o_proj", "o",
     2, {2, 3}, 3, 'l', 'a', "tc", 'D'},
    {Q3_TAP_POST_ATTENTION_INPUT, L "post_attention_layernorm.input",
     "post_attention_layernorm.input", "post_attention_layernorm.input", "res", 2, {2, 3}, 3, 'l',
     'a', "tc", 'D'},
    {Q3_TAP_POST_ATTENTION_LAYERNORM, L "post_attention_layernorm.output",
     "post_attention_layernorm", "post_attention_layernorm", "norm", 2, {2, 3}, 3, 'l', 'r', "tc",
     'D'},
    {Q3_TAP_GATE, L "mlp.gate.output", "mlp.gate", "gate", "rout",
     2, {2, 9}, 9, 's', 'r', "tc", 'D'},
    {Q3_TAP_ROUTER_PROBS, L "mlp.router_probs.output", "mlp.router_probs", "router_probs", "rp",
     2, {2, 9}, 9, 's', 'r', "tc", 'f'},
    {Q3_TAP_TOPK_INDICES, L "mlp.topk_indices.output", "mlp.topk_indices", "topk_indices", "ids",
     2, {2, 5}, 5, 's', 'r', "ts", 'i'},
    {Q3_TAP_TOPK_WEIGHTS, L "mlp.topk_weights.output", "mlp.topk_weights", "topk_weights", "w",
     2, {2, 5}, 5, 's', 'r', "ts", 'D'},
    {Q3_TAP_EXPERTS_GATE_PROJ, L "mlp.experts.gate_proj.output", "mlp.experts.gate_proj",
     "experts.gate_proj", "gate", 3, {2, 5, 7}, 35, 's', 'm', "tsc", 'D'},
    {Q3_TAP_EXPERTS_UP_PROJ, L "mlp.experts.up_proj.output", "mlp.experts.up_proj",
     "experts.up_proj", "up", 3, {2, 5, 7}, 35, 's', 'm', "tsc", 'D'},
    {Q3_TAP_EXPERTS_ACT_FN, L "mlp.experts.act_fn.output", "mlp.experts.act_fn",
     "experts.act_fn", "act", 3, {2, 5, 7}, 35, 's', 'm', "tsc", 'D'},
    {Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, L "mlp.experts.down_proj.input", "mlp.experts.down_proj.input",
     "experts.down_proj.input", "mul", 3, {2, 5, 7}, 35, 's', 'm', "tsc", 'D'},
    {Q3_TAP_EXPERTS_DOWN_PROJ, L "mlp.experts.down_proj.output", "mlp.experts.down_proj",
     "experts.down_proj", "down", 3, {2, 5, 3}, 15, 's', 'm', "tsc", 'D'},
    {Q3_TAP_DENSE_GATE_PROJ, D "mlp.gate_proj.output", "mlp.gate_proj", "gate_proj", "gate",
     2, {2, 11}, 11, 'd', 'm', "tc", 'D'},
    {Q3_TAP_DENSE_UP_PROJ, D "mlp.up_proj.output", "mlp.up_proj", "up_proj", "up",
     2, {2, 11}, 11, 'd', 'm', "tc", 'D'},
    {Q3_TAP_DENSE_ACT_FN, D "mlp.act_fn.output", "mlp.act_fn", "act_fn", "act",
     2, {2, 11}, 11, 'd', 'm', "tc", 'D'},
    {Q3_TAP_DENSE_DOWN_PROJ_INPUT, D "mlp.down_proj.input", "mlp.down_proj.input",
     "down_proj.input", "mul", 2, {2, 11}, 11, 'd', 'm', "tc", 'D'},
    {Q3_TAP_MLP, L "mlp.output", "mlp", "mlp", "mlp", 2, {2, 3}, 3, 'l', 'm', "tc", 'D'},
    {Q3_TAP_LAYER, L "output", "output", "output", "out", 2, {2, 3}, 3, 'l', 'm', "tc", 'D'},
    {Q3_TAP_NORM, "model.norm.output", "norm", "norm", "", 2, {2, 3}, 3, 'h', '-', "tc", 'D'},
    {Q3_TAP_LM_HEAD, "lm_head.output", "lm_head", "lm_head", "",
     2, {2, 13}, 13, 'h', '-', "tc", 'D'},
};

static void test_row(const expected *e)
{
    static const char groups[] = {[Q3_GROUP_NONE] = '-', [Q3_GROUP_ATTENTION] = 'a',
                                  [Q3_GROUP_ROUTER] = 'r', [Q3_GROUP_MLP] = 'm'};
    const q3_tap_row *row = q3_tap_info(e->id);
    char name[Q3_TAP_NAME_SIZE];
    bool outside = e->place == 'f' || e->place == 'h';
    size_t shape[3], layer = 9, of = outside ? 9 : e->place == 'd' ? 0 : 1;
    q3_tap_id id = Q3_TAP_COUNT;
    q3_tap_name(name, e->id, of);
    CHECK_TEXT(name, e->name);
    CHECK(q3_tap_find(e->name, &id, &layer) && id == e->id && layer == (outside ? 0 : of));
    CHECK_TEXT(row->label, e->label);
    CHECK_TEXT(q3_tap_short_label(e->id), e->shorter);
    CHECK_TEXT(row->code, e->code);
    CHECKF(groups[row->group] == e->group, "%s", e->name);
    size_t rank = q3_tap_shape(shape, &config, e->id, 2);
    CHECKF(rank == e->rank && memcmp(shape, e->shape, rank * sizeof *shape) == 0, "%s", e->name);
    CHECKF(q3_tap_row_size(&config, e->id, 2) == e->row, "%s", e->name);
    q3_dtype dtype = e->dtype == 'D' ? Q3_F16 : e->dtype == 'f' ? Q3_F32 : Q3_I32;
    CHECKF(q3_tap_dtype(e->id, Q3_F16) == dtype, "%s", e->name);
    for (size_t i = 0; i < rank; i++) {
        const char *axis = q3_tap_axis(e->id, rank, i);
        CHECKF(axis[0] == e->axes[i], "%s: axis %zu is \"%s\"", e->name, i, axis);
    }
}

static void test_place(const expected *e)
{
    bool front = e->place == 'f', head = e->place == 'h';
    bool dense = e->place == 'l' || e->place == 'd', sparse = e->place == 'l' || e->place == 's';
    CHECKF(q3_tap_at_front(e->id) == front && q3_tap_at_head(e->id) == head, "%s", e->name);
    CHECKF(q3_tap_in_layer(e->id) == (dense || sparse), "%s", e->name);
    CHECKF(q3_tap_exists(&config, 0, 2, e->id, 0) == (front || head || dense), "%s", e->name);
    CHECKF(q3_tap_exists(&config, 0, 2, e->id, 1) == (front || head || sparse), "%s", e->name);
    CHECKF(q3_tap_exists(&config, 0, 1, e->id, 1) == front, "%s", e->name);
    bool ends = head || (front && e->id != Q3_TAP_EMBED_TOKENS);
    CHECKF(q3_tap_exists(&config, 1, 2, e->id, 0) == ends, "%s", e->name);
}

/* Which taps are of which kind: by their shapes here. */
static void test_kinds(const expected *e)
{
    bool square = strchr(e->axes, 'k') != NULL, experts = strcmp(e->axes, "tsc") == 0;
    bool heads = (e->row == 48 || e->row == 24) && !square;
    CHECKF(q3_tap_is_square(e->id) == square && q3_tap_of_experts(e->id) == experts, "%s", e->name);
    CHECKF(q3_tap_has_heads(e->id) == heads, "%s", e->name);
    if (e->place != 'd') {
        CHECK(q3_tap_column(e->id) == e->id && q3_tap_info(e->id)->like == Q3_TAP_COUNT);
    } else { /* "mlp.up_proj" stands in the column of "mlp.experts.up_proj" */
        char label[Q3_TAP_NAME_SIZE];
        snprintf(label, sizeof label, "mlp.experts.%s", e->shorter);
        CHECK_TEXT(q3_tap_info(q3_tap_column(e->id))->label, label);
    }
}

static void test_names(void)
{
    static const char *const wrong[] = {
        "", "model", "model.layers.", "model.layers.1", "model.layers.1.", "model.layers..output",
        "model.layers.01.output", "model.layers.+1.output", "model.layers.1.output.",
        "model.layers.1.norm", "model.layers.1.model.norm.output", "output", "mlp.output",
        "lm_head",
        "model.norm.outpu", "model.layers.1.lm_head.output",
        "model.layers.99999999999999999999999.output"};
    char name[Q3_TAP_NAME_SIZE];
    size_t layer = 7;
    q3_tap_id id = Q3_TAP_COUNT;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        CHECKF(!q3_tap_find(wrong[i], &id, &layer), "%s", wrong[i]);
    CHECK(id == Q3_TAP_COUNT && layer == 7);
    CHECK(q3_tap_find("model.layers.0.output", &id, &layer) && id == Q3_TAP_LAYER && layer == 0);
    q3_tap_name(name, Q3_TAP_POST_ATTENTION_LAYERNORM, SIZE_MAX);
    CHECK(strlen(name) < sizeof name && strstr(name, ".post_attention_layernorm.output") != NULL);
    q3_tap_name(name, Q3_TAP_MLP, 1230);
    CHECK_TEXT(name, "model.layers.1230.mlp.output");
    CHECK(q3_tap_find(name, &id, &layer) && id == Q3_TAP_MLP && layer == 1230);
    CHECK_TEXT(q3_tap_info(Q3_TAP_COUNT)->name, "");
    CHECK(!q3_tap_in_layer(Q3_TAP_COUNT) && !q3_tap_at_front(Q3_TAP_COUNT));
    CHECK(!q3_tap_at_head(Q3_TAP_COUNT) && !q3_tap_exists(&config, 0, 2, Q3_TAP_COUNT, 0));
    CHECK(q3_tap_column(Q3_TAP_COUNT) == Q3_TAP_COUNT);
}

int main(void)
{
    CHECK(sizeof taps / sizeof taps[0] == Q3_TAP_COUNT);
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        CHECK(taps[i].id == (q3_tap_id)i); /* the order of computation */
        test_row(&taps[i]);
        test_place(&taps[i]);
        test_kinds(&taps[i]);
    }
    test_names();
    return t_done("taps");
}
