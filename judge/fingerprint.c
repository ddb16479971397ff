/* SPDX-License-Identifier: MIT */
/* fingerprint.c - which weights a run had: a sum over the names, dtypes, shapes and samples of a
 * layer's tensors, so that a model of hundreds of gigabytes need not be read for it (MODEL.md
 * section 13). */
#include "host/sha256.h"
#include "judge/report.h"

#include <string.h>

#define BLOCKS 4      /* of a tensor, the first at its beginning, the last at its end */
#define BLOCK 64      /* bytes */

/* Where sample i of `blocks` begins, of `length` each. */
static size_t place_of(size_t i, size_t blocks, size_t size, size_t length)
{
    if (i > 0 && i + 1 == blocks) return size - length;
    return blocks > 1 ? (size - length) / (BLOCKS - 1) * i : 0;
}

/* Of a quantised one the elements' own bits, little-endian, as its bytes lie in several places. */
static void add_elements(sha256 *sum, const q3_quantized *weight, size_t size)
{
    enum { LENGTH = BLOCK / 8 };
    size_t blocks = size > BLOCKS * LENGTH ? BLOCKS : 1, step = LENGTH;
    if (blocks == 1) step = size;
    for (size_t i = 0; i < blocks; i++) {
        double values[BLOCKS * LENGTH];
        uint8_t bytes[8 * BLOCKS * LENGTH];
        weight->dequantize(values, weight, place_of(i, blocks, size, step), step);
        for (size_t k = 0; k < step; k++) {
            uint64_t u = 0x7FF8000000000000u; /* any NaN */
            if (values[k] == values[k]) memcpy(&u, &values[k], sizeof u);
            for (size_t b = 0; b < 8; b++) bytes[8 * k + b] = (uint8_t)(u >> 8 * b);
        }
        sha256_add(sum, bytes, 8 * step);
    }
}

/* Adds a tensor of rows * columns elements; columns 0: one axis. */
static void add_tensor(sha256 *sum, const char *name, q3_tensor tensor, size_t rows, size_t columns)
{
    if (tensor.data == NULL) return;
    bool quantized = tensor.dtype == Q3_QUANTIZED;
    const char *dtype = quantized ? "quantized" : q3_dtype_code(tensor.dtype);
    size_t size = rows * (columns > 0 ? columns : 1);
    char shape[64];
    const uint64_t axes[2] = {rows, columns};
    q3_shape_text(shape, sizeof shape, axes, columns > 0 ? 2 : 1);
    sha256_add(sum, name, strlen(name) + 1);
    sha256_add(sum, dtype, strlen(dtype) + 1);
    sha256_add(sum, shape, strlen(shape) + 1);
    if (quantized) {
        add_elements(sum, tensor.data, size);
        return;
    }
    size *= q3_dtype_size(tensor.dtype);
    size_t blocks = size > BLOCKS * BLOCK ? BLOCKS : 1, length = blocks > 1 ? BLOCK : size;
    for (size_t i = 0; i < blocks; i++)
        sha256_add(sum, (const uint8_t *)tensor.data + place_of(i, blocks, size, length), length);
}

/* An expert, or a dense MLP; experts follow one another. */
static void add_mlp(sha256 *sum, const q3_mlp *mlp, size_t M, size_t width)
{
    add_tensor(sum, "mlp.gate_proj.weight", mlp->gate_proj, width, M);
    add_tensor(sum, "mlp.up_proj.weight", mlp->up_proj, width, M);
    add_tensor(sum, "mlp.down_proj.weight", mlp->down_proj, M, width);
}

static void add_layer(sha256 *sum, const q3_config *c, const q3_layer *l, size_t layer)
{
    size_t M = c->hidden_size, hd = c->head_dim;
    size_t q = c->num_attention_heads * hd, k = c->num_key_value_heads * hd;
    add_tensor(sum, "input_layernorm.weight", l->input_layernorm, M, 0);
    add_tensor(sum, "self_attn.q_proj.weight", l->q_proj, q, M);
    add_tensor(sum, "self_attn.k_proj.weight", l->k_proj, k, M);
    add_tensor(sum, "self_attn.v_proj.weight", l->v_proj, k, M);
    add_tensor(sum, "self_attn.o_proj.weight", l->o_proj, M, q);
    add_tensor(sum, "self_attn.q_proj.bias", l->q_proj_bias, q, 0);
    add_tensor(sum, "self_attn.k_proj.bias", l->k_proj_bias, k, 0);
    add_tensor(sum, "self_attn.v_proj.bias", l->v_proj_bias, k, 0);
    add_tensor(sum, "self_attn.o_proj.bias", l->o_proj_bias, M, 0);
    add_tensor(sum, "self_attn.q_norm.weight", l->q_norm, hd, 0);
    add_tensor(sum, "self_attn.k_norm.weight", l->k_norm, hd, 0);
    add_tensor(sum, "post_attention_layernorm.weight", l->post_attention_layernorm, M, 0);
    if (!q3_layer_is_sparse(c, layer)) {
        add_mlp(sum, &l->mlp, M, c->intermediate_size);
        return;
    }
    add_tensor(sum, "mlp.gate.weight", l->gate, c->num_experts, M);
    for (size_t e = 0; e < c->num_experts && l->experts != NULL; e++)
        add_mlp(sum, &l->experts[e], M, c->moe_intermediate_size);
}

static void end_sum(sha256 *sum, char text[Q3_FINGERPRINT_SIZE])
{
    char whole[65];
    sha256_text(sum, whole);
    memcpy(text, whole, Q3_FINGERPRINT_SIZE - 1);
    text[Q3_FINGERPRINT_SIZE - 1] = 0;
}

void q3_fingerprint_layer(char text[Q3_FINGERPRINT_SIZE], const q3_config *config,
                          const q3_weights *weights, size_t layer)
{
    size_t V = config->vocab_size, M = config->hidden_size;
    sha256 sum;
    sha256_init(&sum);
    if (layer == 0) add_tensor(&sum, "model.embed_tokens.weight", weights->embed_tokens, V, M);
    add_layer(&sum, config, &weights->layers[layer], layer);
    if (layer + 1 == config->num_hidden_layers) {
        add_tensor(&sum, "model.norm.weight", weights->norm, M, 0);
        add_tensor(&sum, "lm_head.weight", weights->lm_head, V, M);
    }
    end_sum(&sum, text);
}

void q3_fingerprint_all(char text[Q3_FINGERPRINT_SIZE], char (*layers)[Q3_FINGERPRINT_SIZE],
                        const bool *covered, size_t count)
{
    sha256 sum;
    bool known = count > 0;
    sha256_init(&sum);
    for (size_t i = 0; i < count; i++) {
        if (!covered[i]) continue;
        known = known && layers[i][0] != 0;
        sha256_add(&sum, layers[i], strlen(layers[i]));
    }
    text[0] = 0;
    if (known) end_sum(&sum, text);
}
