/* SPDX-License-Identifier: MIT */
/* Models for the tests: a folder's weights, or weights by the rule (tests/rule.h) for a folder that
 * holds a config.json alone. */
#ifndef Q3_TESTS_MODEL_H
#define Q3_TESTS_MODEL_H

#include "qwen3moe.h"
#include "rule.h"
#include "t.h"

typedef struct fixture {
    q3_model *model;
    const q3_config *config;
    const q3_weights *weights;
    char seed[64];
    q3_weights own;   /* by the rule: bfloat16, which holds every value */
    q3_layer *layers;
    void *blocks[4096];
    size_t block_count;
} fixture;

static void *fixture_block(fixture *f, size_t size)
{
    void *block = calloc(1, size > 0 ? size : 1);
    if (block == NULL || f->block_count == sizeof f->blocks / sizeof f->blocks[0]) {
        fprintf(stderr, "no memory for a fixture\n");
        exit(1);
    }
    return f->blocks[f->block_count++] = block;
}

/* A tensor by the rule, as little-endian bfloat16. */
static q3_tensor fixture_tensor(fixture *f, const char *name, size_t rows, size_t cols)
{
    float *values = malloc(rows * cols * sizeof *values);
    uint8_t *bytes = fixture_block(f, rows * cols * 2);
    q3_tensor tensor = {bytes, Q3_BF16};
    if (values == NULL) exit(1);
    rule_fill(values, f->seed, name, rows, cols);
    for (size_t i = 0; i < rows * cols; i++) {
        uint32_t u;
        memcpy(&u, &values[i], 4);
        bytes[2 * i] = (uint8_t)(u >> 16 & 0xFF);
        bytes[2 * i + 1] = (uint8_t)(u >> 24);
    }
    free(values);
    return tensor;
}

static q3_tensor fixture_layer_tensor(fixture *f, size_t layer, const char *name, size_t rows,
                                      size_t cols)
{
    char full[128];
    snprintf(full, sizeof full, "model.layers.%lu.%s", (unsigned long)layer, name);
    return fixture_tensor(f, full, rows, cols);
}

static q3_mlp fixture_mlp(fixture *f, size_t layer, const char *prefix, size_t width)
{
    char name[64];
    q3_mlp mlp;
    size_t M = f->config->hidden_size;
    snprintf(name, sizeof name, "%sgate_proj.weight", prefix);
    mlp.gate_proj = fixture_layer_tensor(f, layer, name, width, M);
    snprintf(name, sizeof name, "%sup_proj.weight", prefix);
    mlp.up_proj = fixture_layer_tensor(f, layer, name, width, M);
    snprintf(name, sizeof name, "%sdown_proj.weight", prefix);
    mlp.down_proj = fixture_layer_tensor(f, layer, name, M, width);
    return mlp;
}

static void fixture_layer(fixture *f, size_t i)
{
    const q3_config *c = f->config;
    q3_layer *l = &f->layers[i];
    size_t M = c->hidden_size, q = c->num_attention_heads * c->head_dim;
    size_t k = c->num_key_value_heads * c->head_dim;
    l->input_layernorm = fixture_layer_tensor(f, i, "input_layernorm.weight", M, 1);
    l->q_proj = fixture_layer_tensor(f, i, "self_attn.q_proj.weight", q, M);
    l->k_proj = fixture_layer_tensor(f, i, "self_attn.k_proj.weight", k, M);
    l->v_proj = fixture_layer_tensor(f, i, "self_attn.v_proj.weight", k, M);
    l->o_proj = fixture_layer_tensor(f, i, "self_attn.o_proj.weight", M, q);
    if (c->attention_bias) {
        l->q_proj_bias = fixture_layer_tensor(f, i, "self_attn.q_proj.bias", q, 1);
        l->k_proj_bias = fixture_layer_tensor(f, i, "self_attn.k_proj.bias", k, 1);
        l->v_proj_bias = fixture_layer_tensor(f, i, "self_attn.v_proj.bias", k, 1);
        l->o_proj_bias = fixture_layer_tensor(f, i, "self_attn.o_proj.bias", M, 1);
    }
    l->q_norm = fixture_layer_tensor(f, i, "self_attn.q_norm.weight", c->head_dim, 1);
    l->k_norm = fixture_layer_tensor(f, i, "self_attn.k_norm.weight", c->head_dim, 1);
    l->post_attention_layernorm = fixture_layer_tensor(f, i, "post_attention_layernorm.weight", M,
                                                       1);
    if (!q3_layer_is_sparse(c, i)) {
        l->mlp = fixture_mlp(f, i, "mlp.", c->intermediate_size);
        return;
    }
    l->gate = fixture_layer_tensor(f, i, "mlp.gate.weight", c->num_experts, M);
    q3_mlp *experts = fixture_block(f, c->num_experts * sizeof *experts);
    for (size_t e = 0; e < c->num_experts; e++) {
        char prefix[48];
        snprintf(prefix, sizeof prefix, "mlp.experts.%lu.", (unsigned long)e);
        experts[e] = fixture_mlp(f, i, prefix, c->moe_intermediate_size);
    }
    l->experts = experts;
}

/* Weights by the rule; f has nothing but perhaps a model. */
static inline void fixture_of(fixture *f, const q3_config *c, const char *seed)
{
    snprintf(f->seed, sizeof f->seed, "%.63s", seed);
    f->config = c;
    f->own.embed_tokens = fixture_tensor(f, "model.embed_tokens.weight", c->vocab_size,
                                         c->hidden_size);
    f->own.norm = fixture_tensor(f, "model.norm.weight", c->hidden_size, 1);
    f->own.lm_head = c->tie_word_embeddings
                         ? f->own.embed_tokens
                         : fixture_tensor(f, "lm_head.weight", c->vocab_size, c->hidden_size);
    f->layers = fixture_block(f, c->num_hidden_layers * sizeof *f->layers);
    for (size_t i = 0; i < c->num_hidden_layers; i++) fixture_layer(f, i);
    f->own.layers = f->layers;
    f->weights = &f->own;
}

/* folder/config.json and the rule; the folder's last part is the seed. */
static inline void fixture_by_rule(fixture *f, const char *folder)
{
    q3_error error;
    const char *slash = strrchr(folder, '/');
    memset(f, 0, sizeof *f);
    if (q3_model_open(&f->model, folder, &error) != Q3_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    fixture_of(f, q3_model_config(f->model), slash != NULL ? slash + 1 : folder);
}

/* A folder with weights. */
static inline void fixture_from_folder(fixture *f, const char *folder)
{
    q3_error error;
    q3_dtype dtype = Q3_F32;
    memset(f, 0, sizeof *f);
    if (q3_model_open(&f->model, folder, &error) != Q3_OK ||
        q3_model_load(f->model, &dtype, 0, q3_model_config(f->model)->num_hidden_layers,
                      &error) != Q3_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    f->config = q3_model_config(f->model);
    f->weights = q3_model_weights(f->model);
}

static void fixture_close(fixture *f)
{
    q3_model_close(f->model);
    for (size_t i = 0; i < f->block_count; i++) free(f->blocks[i]);
}

/* A state in memory filled with signalling NaN patterns, so that what is read before it is written
 * shows. */
static inline q3_state *fixture_state(const fixture *f, const q3_run *run, void **memory)
{
    size_t size = q3_state_size(f->config, run);
    const uint32_t poison = 0x7FA00001u;
    uint8_t *bytes = malloc(size);
    if (size == 0 || bytes == NULL) exit(1);
    for (size_t i = 0; i < size; i++) bytes[i] = (uint8_t)(poison >> 8 * (i % 4) & 0xFF);
    *memory = bytes;
    return q3_state_init(bytes, size, f->config, f->weights, run);
}

#endif
