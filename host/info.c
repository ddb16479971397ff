/* SPDX-License-Identifier: MIT */
/* info.c - what a configuration says without any weights: the module tree and the counts. */
#include "host/files.h"

#include <stdlib.h>
#include <string.h>

/* ==== The module tree ========================================================================= */

/* PyTorch indents by two spaces for each level. */
static void indent(q3_text *t, size_t depth)
{
    for (size_t i = 0; i < depth; i++) q3_text_add(t, "  ");
}

/* A line of its own. */
static void line(q3_text *t, size_t depth, const char *text)
{
    indent(t, depth);
    q3_text_add(t, text);
    q3_text_add(t, "\n");
}

/* "(name): " at the start of a line. */
static void named(q3_text *t, size_t depth, const char *name)
{
    indent(t, depth);
    q3_text_add(t, "(");
    q3_text_add(t, name);
    q3_text_add(t, "): ");
}

/* Linear: y = x W^T, W [out,in]. */
static void linear(q3_text *t, size_t depth, const char *name, uint64_t in, uint64_t out, bool bias)
{
    named(t, depth, name);
    q3_text_add(t, "Linear(in_features=");
    q3_text_uint(t, in);
    q3_text_add(t, ", out_features=");
    q3_text_uint(t, out);
    q3_text_add(t, bias ? ", bias=True)\n" : ", bias=False)\n");
}

/* RMSNorm; epsilon as Python prints it. */
static void norm(q3_text *t, size_t depth, const char *name, const q3_config *c, size_t size)
{
    named(t, depth, name);
    q3_text_add(t, c->dense ? "Qwen3RMSNorm((" : "Qwen3MoeRMSNorm((");
    q3_text_uint(t, size);
    q3_text_add(t, ",), eps=");
    q3_text_real(t, c->rms_norm_eps);
    q3_text_add(t, ")\n");
}

/* The start of entry first, or of the equal entries first to end - 1, of a ModuleList. */
static void entries(q3_text *t, size_t depth, size_t first, size_t end, const char *module)
{
    indent(t, depth);
    q3_text_add(t, "(");
    q3_text_uint(t, first);
    if (end - first > 1) {
        q3_text_add(t, "-");
        q3_text_uint(t, end - 1);
    }
    q3_text_add(t, "): ");
    if (end - first > 1) {
        q3_text_uint(t, end - first);
        q3_text_add(t, " x ");
    }
    q3_text_add(t, module);
    q3_text_add(t, "(\n");
}

/* Three linear maps and the activation, and the closing parenthesis at depth. */
static void mlp(q3_text *t, size_t depth, const q3_config *c, size_t width)
{
    linear(t, depth + 1, "gate_proj", c->hidden_size, width, false);
    linear(t, depth + 1, "up_proj", c->hidden_size, width, false);
    linear(t, depth + 1, "down_proj", width, c->hidden_size, false);
    line(t, depth + 1, "(act_fn): SiLU()");
    line(t, depth, ")");
}

/* What is inside a decoder layer, and its closing parenthesis at depth 3. */
static void decoder_layer(q3_text *t, const q3_config *c, bool sparse)
{
    uint64_t q = (uint64_t)c->num_attention_heads * c->head_dim;
    uint64_t kv = (uint64_t)c->num_key_value_heads * c->head_dim;
    line(t, 4, c->dense ? "(self_attn): Qwen3Attention(" : "(self_attn): Qwen3MoeAttention(");
    linear(t, 5, "q_proj", c->hidden_size, q, c->attention_bias);
    linear(t, 5, "k_proj", c->hidden_size, kv, c->attention_bias);
    linear(t, 5, "v_proj", c->hidden_size, kv, c->attention_bias);
    linear(t, 5, "o_proj", q, c->hidden_size, c->attention_bias);
    norm(t, 5, "q_norm", c, c->head_dim);
    norm(t, 5, "k_norm", c, c->head_dim);
    line(t, 4, ")");
    if (sparse) {
        line(t, 4, "(mlp): Qwen3MoeSparseMoeBlock(");
        linear(t, 5, "gate", c->hidden_size, c->num_experts, false);
        line(t, 5, "(experts): ModuleList(");
        entries(t, 6, 0, c->num_experts, "Qwen3MoeMLP");
        mlp(t, 6, c, c->moe_intermediate_size);
        line(t, 5, ")");
        line(t, 4, ")");
    } else {
        line(t, 4, c->dense ? "(mlp): Qwen3MLP(" : "(mlp): Qwen3MoeMLP(");
        mlp(t, 4, c, c->intermediate_size);
    }
    norm(t, 4, "input_layernorm", c, c->hidden_size);
    norm(t, 4, "post_attention_layernorm", c, c->hidden_size);
    line(t, 3, ")");
}

/* Neighbours that print alike are one entry. */
static void decoder_layers(q3_text *t, const q3_config *c)
{
    if (c->num_hidden_layers == 0) {
        line(t, 2, "(layers): ModuleList()");
        return;
    }
    line(t, 2, "(layers): ModuleList(");
    for (size_t first = 0, end; first < c->num_hidden_layers && !t->failed; first = end) {
        bool sparse = q3_layer_is_sparse(c, first);
        end = first + 1;
        while (end < c->num_hidden_layers && q3_layer_is_sparse(c, end) == sparse) end++;
        entries(t, 3, first, end, c->dense ? "Qwen3DecoderLayer" : "Qwen3MoeDecoderLayer");
        decoder_layer(t, c, sparse);
    }
    line(t, 2, ")");
}

char *q3_module_tree(const q3_config *config)
{
    q3_text t = {0};
    line(&t, 0, config->dense ? "Qwen3ForCausalLM(" : "Qwen3MoeForCausalLM(");
    line(&t, 1, config->dense ? "(model): Qwen3Model(" : "(model): Qwen3MoeModel(");
    named(&t, 2, "embed_tokens");
    q3_text_add(&t, "Embedding(");
    q3_text_uint(&t, config->vocab_size);
    q3_text_add(&t, ", ");
    q3_text_uint(&t, config->hidden_size);
    if (config->pad_token_id >= 0) {
        q3_text_add(&t, ", padding_idx=");
        q3_text_uint(&t, (uint64_t)config->pad_token_id);
    }
    q3_text_add(&t, ")\n");
    decoder_layers(&t, config);
    norm(&t, 2, "norm", config, config->hidden_size);
    line(&t, 2, config->dense ? "(rotary_emb): Qwen3RotaryEmbedding()"
                            : "(rotary_emb): Qwen3MoeRotaryEmbedding()");
    line(&t, 1, ")");
    linear(&t, 1, "lm_head", config->hidden_size, config->vocab_size, false);
    line(&t, 0, ")");
    return t.data;
}

/* ==== Counts ================================================================================== */

/* *sum += times * a * b; false if that does not fit. */
static bool add(uint64_t *sum, uint64_t times, uint64_t a, uint64_t b)
{
    uint64_t product = 0;
    if (times != 0 && a != 0 && b != 0) {
        if (a > UINT64_MAX / b || times > UINT64_MAX / (a * b)) return false;
        product = times * a * b;
    }
    if (product > UINT64_MAX - *sum) return false;
    *sum += product;
    return true;
}

/* Parameters with so many experts in each sparse layer. The router counts whole: it always runs. */
static bool count_parameters(uint64_t *sum, const q3_config *c, uint64_t sparse, uint64_t experts)
{
    uint64_t V = c->vocab_size, M = c->hidden_size, L = c->num_hidden_layers, hd = c->head_dim;
    uint64_t q = c->num_attention_heads * hd, kv = c->num_key_value_heads * hd;
    *sum = 0;
    return add(sum, c->tie_word_embeddings ? 1 : 2, V, M) && /* embed_tokens, lm_head */
           add(sum, 1, 1, M) &&                              /* norm */
           add(sum, L, 2, M) &&                              /* two norms of a layer */
           add(sum, L, 2 * q + 2 * kv, M) &&                 /* q, k, v and o */
           add(sum, c->attention_bias ? L : 0, 1, q + 2 * kv + M) &&
           add(sum, L, 2, hd) &&                             /* q_norm, k_norm */
           add(sum, sparse, c->num_experts, M) &&            /* the router */
           add(sum, sparse * 3, experts, c->moe_intermediate_size * M) &&
           add(sum, (L - sparse) * 3, c->intermediate_size, M);
}

bool q3_count(q3_counts *counts, const q3_config *config)
{
    q3_counts n = {0};
    uint64_t sparse = 0;
    uint64_t active = config->num_experts_per_tok;
    if (active > config->num_experts) active = config->num_experts;
    for (size_t i = 0; i < config->num_hidden_layers; i++) sparse += q3_layer_is_sparse(config, i);
    if (!count_parameters(&n.parameters, config, sparse, config->num_experts) ||
        !count_parameters(&n.active_per_token, config, sparse, active) ||
        !add(&n.key_value_elements_per_token, 2 * (uint64_t)config->num_hidden_layers,
             config->num_key_value_heads, config->head_dim))
        return false;
    *counts = n;
    return true;
}
