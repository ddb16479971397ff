/* SPDX-License-Identifier: MIT */
/* aliases.c - what other systems call the taps. */
#include "host/taps.h"
#include "judge/backend.h"

#include <string.h>

/* # is the layer's number. Hugging Face's and vLLM's names stand here as q3_canonical_name writes
 * them.
 * How to read:
 *   's'  strong: this is the tap
 *   'w'  weak: so it is, but where the tap's own name is in the file too, that one counts; and, all
 *        weak:
 *   'p'  what layer # starts from
 *   'h'  the same, but number L is behind the final norm
 *   'n'  what the final norm starts from
 *   'S', 'P', 'N'  so is it, or what the layer starts from, or the final norm, behind the residual
 *        sum: where it is there, nothing else counts
 *   'a', 'b', 'c'  as 'w', 'p' and 'n', and is to be added: the residual that is kept apart
 *   'd'  in dense layers
 *   'r'  # counts the sparse layers alone
 *   'u'  where the weights are not renormalised */
typedef struct alias_row {
    const char *name;
    char reading;
    unsigned char ids; /* taps from `first` on that lie one behind the other in each row */
    q3_tap_id first;
} alias_row;

/* Hugging Face (modeling_qwen3_moe.py): tuples' elements, what a forward pass returns, packed
 * experts. The gate's tuple is of 5.x (before 5.6 its element 0 was the probabilities), mlp's
 * of 4.x. */
static const alias_row hugging_face[] = {
    {"model.layers.#.input", 'p', 1, Q3_TAP_LAYER},
    {"model.layers.#.input_layernorm.input", 'p', 1, Q3_TAP_LAYER},
    {"model.norm.input", 'n', 1, Q3_TAP_LAYER},
    {"model.rotary_emb.output", 's', 1, Q3_TAP_COS},
    {"model.rotary_emb.output.1", 's', 1, Q3_TAP_SIN},
    {"model.layers.#.self_attn.output", 'w', 1, Q3_TAP_O_PROJ},
    {"model.layers.#.self_attn.output.1", 'w', 1, Q3_TAP_PROBS},
    {"model.layers.#.mlp.output.1", 'w', 1, Q3_TAP_GATE},
    {"model.layers.#.mlp.gate.output.1", 'w', 1, Q3_TAP_TOPK_WEIGHTS},
    {"model.layers.#.mlp.gate.output.2", 'w', 1, Q3_TAP_TOPK_INDICES},
    {"model.layers.#.mlp.experts.output", 'w', 1, Q3_TAP_MLP},
    {"model.layers.#.mlp.experts.gate_up_proj.output", 's', 2, Q3_TAP_EXPERTS_GATE_PROJ},
    {"model.layers.#.mlp.down_proj.output", 'd', 1, Q3_TAP_MLP},
    {"inputs_embeds", 'w', 1, Q3_TAP_EMBED_TOKENS},
    {"hidden_states.#", 'h', 1, Q3_TAP_LAYER},
    {"hidden_states_#", 'h', 1, Q3_TAP_LAYER},
    {"hidden_states[#]", 'h', 1, Q3_TAP_LAYER},
    {"attentions.#", 'w', 1, Q3_TAP_PROBS},
    {"attentions_#", 'w', 1, Q3_TAP_PROBS},
    {"attentions[#]", 'w', 1, Q3_TAP_PROBS},
    {"router_logits.#", 'r', 1, Q3_TAP_GATE},
    {"router_logits_#", 'r', 1, Q3_TAP_GATE},
    {"router_logits[#]", 'r', 1, Q3_TAP_GATE},
    {"last_hidden_state", 'w', 1, Q3_TAP_NORM},
    {"logits", 'w', 1, Q3_TAP_LM_HEAD},
};

/* vLLM and SGLang (models/qwen3_moe.py): fused projections, norms that return (output, residual),
 * as their layers do: the two are added. One rotary_emb serves all layers, so that a hook on it,
 * called by the name of the first one, ends with the last one's: left out. */
static const alias_row vllm[] = {
    {"model.layers.#.input_layernorm.output.1", 'P', 1, Q3_TAP_LAYER},
    {"model.norm.output.1", 'N', 1, Q3_TAP_LAYER},
    {"model.layers.#.output.0", 'w', 1, Q3_TAP_LAYER},
    {"model.layers.#.output.1", 'a', 1, Q3_TAP_LAYER},
    {"model.layers.#.input_layernorm.input.1", 'b', 1, Q3_TAP_LAYER},
    {"model.norm.input.1", 'c', 1, Q3_TAP_LAYER},
    {"model.layers.#.post_attention_layernorm.input.1", 'a', 1, Q3_TAP_POST_ATTENTION_INPUT},
    {"model.layers.#.self_attn.qkv_proj.output", 's', 3, Q3_TAP_Q_PROJ},
    {"model.layers.#.self_attn.attn.output", 'w', 1, Q3_TAP_O_PROJ_INPUT},
    {"model.layers.#.post_attention_layernorm.output.1", 'S', 1, Q3_TAP_POST_ATTENTION_INPUT},
    {"model.layers.#.mlp.topk.output", 'w', 1, Q3_TAP_TOPK_WEIGHTS},
    {"model.layers.#.mlp.topk.output.1", 'w', 1, Q3_TAP_TOPK_INDICES},
    {"model.layers.#.mlp.topk.output.2", 'w', 1, Q3_TAP_GATE},
    {"model.layers.#.mlp.gate_up_proj.output", 's', 2, Q3_TAP_DENSE_GATE_PROJ},
    {"logits_processor.output", 'w', 1, Q3_TAP_LM_HEAD},
};

/* llama.cpp (src/llama-graph.cpp, src/models/qwen3moe.cpp, qwen3.cpp): the evaluation
 * callback's. The last tensor called Qcur is behind RoPE. kq is not here: it comes before the
 * scale. */
static const alias_row llama_cpp[] = {
    {"embd", 's', 1, Q3_TAP_EMBED_TOKENS},
    {"inp_embd", 's', 1, Q3_TAP_EMBED_TOKENS},
    {"attn_norm-#", 's', 1, Q3_TAP_INPUT_LAYERNORM},
    {"wqkv-#", 's', 3, Q3_TAP_Q_PROJ},
    {"Vcur-#", 's', 1, Q3_TAP_V_PROJ},
    {"Qcur_normed-#", 's', 1, Q3_TAP_Q_NORM},
    {"Kcur_normed-#", 's', 1, Q3_TAP_K_NORM},
    {"Qcur-#", 's', 1, Q3_TAP_Q_ROPE},
    {"Kcur-#", 's', 1, Q3_TAP_K_ROPE},
    {"kq_soft_max-#", 's', 1, Q3_TAP_PROBS},
    {"kqv_out-#", 's', 1, Q3_TAP_O_PROJ_INPUT},
    {"ffn_inp-#", 's', 1, Q3_TAP_POST_ATTENTION_INPUT},
    {"ffn_norm-#", 's', 1, Q3_TAP_POST_ATTENTION_LAYERNORM},
    {"ffn_moe_logits-#", 's', 1, Q3_TAP_GATE},
    {"ffn_moe_probs-#", 's', 1, Q3_TAP_ROUTER_PROBS},
    {"ffn_moe_topk-#", 's', 1, Q3_TAP_TOPK_INDICES},
    {"ffn_moe_weights-#", 'u', 1, Q3_TAP_TOPK_WEIGHTS},
    {"ffn_moe_weights_norm-#", 's', 1, Q3_TAP_TOPK_WEIGHTS},
    {"ffn_moe_gate_up-#", 's', 2, Q3_TAP_EXPERTS_GATE_PROJ},
    {"ffn_moe_gate-#", 's', 1, Q3_TAP_EXPERTS_GATE_PROJ},
    {"ffn_moe_up-#", 's', 1, Q3_TAP_EXPERTS_UP_PROJ},
    {"ffn_moe_swiglu-#", 's', 1, Q3_TAP_EXPERTS_DOWN_PROJ_INPUT},
    {"ffn_moe_down-#", 's', 1, Q3_TAP_EXPERTS_DOWN_PROJ},
    {"ffn_moe_out-#", 's', 1, Q3_TAP_MLP},
    {"ffn_gate-#", 's', 1, Q3_TAP_DENSE_GATE_PROJ},
    {"ffn_up-#", 's', 1, Q3_TAP_DENSE_UP_PROJ},
    {"ffn_swiglu-#", 's', 1, Q3_TAP_DENSE_DOWN_PROJ_INPUT},
    {"ffn_out-#", 's', 1, Q3_TAP_MLP},
    {"l_out-#", 's', 1, Q3_TAP_LAYER},
    {"result_norm", 's', 1, Q3_TAP_NORM},
    {"result_output", 's', 1, Q3_TAP_LM_HEAD},
};

/* TransformerLens: the names of 2.x (components/abstract_attention.py, transformer_block.py,
 * mlps/gated_mlp.py), which 3.x and 4.x have too; then those that only these have.
 * hook_normalized lies before the weight, and hook_expert_weights before or behind top-k by
 * version: both are left out. Queries and keys are normalised behind hook_q and hook_k. */
static const alias_row transformer_lens[] = {
    {"hook_embed", 's', 1, Q3_TAP_EMBED_TOKENS},
    {"blocks.#.hook_resid_pre", 'p', 1, Q3_TAP_LAYER},
    {"blocks.#.attn.hook_q", 's', 1, Q3_TAP_Q_PROJ},
    {"blocks.#.attn.hook_k", 's', 1, Q3_TAP_K_PROJ},
    {"blocks.#.attn.hook_v", 's', 1, Q3_TAP_V_PROJ},
    {"blocks.#.attn.hook_rot_q", 's', 1, Q3_TAP_Q_ROPE},
    {"blocks.#.attn.hook_rot_k", 's', 1, Q3_TAP_K_ROPE},
    {"blocks.#.attn.hook_attn_scores", 's', 1, Q3_TAP_SCORES},
    {"blocks.#.attn.hook_pattern", 's', 1, Q3_TAP_PROBS},
    {"blocks.#.attn.hook_z", 's', 1, Q3_TAP_O_PROJ_INPUT},
    {"blocks.#.hook_attn_out", 's', 1, Q3_TAP_O_PROJ},
    {"blocks.#.hook_resid_mid", 's', 1, Q3_TAP_POST_ATTENTION_INPUT},
    {"blocks.#.mlp.hook_expert_indices", 's', 1, Q3_TAP_TOPK_INDICES},
    {"blocks.#.mlp.hook_pre", 's', 1, Q3_TAP_DENSE_GATE_PROJ},
    {"blocks.#.mlp.hook_pre_linear", 's', 1, Q3_TAP_DENSE_UP_PROJ},
    {"blocks.#.mlp.hook_post", 's', 1, Q3_TAP_DENSE_DOWN_PROJ_INPUT},
    {"blocks.#.hook_mlp_out", 's', 1, Q3_TAP_MLP},
    {"blocks.#.hook_resid_post", 's', 1, Q3_TAP_LAYER},
    {"embed.hook_out", 'w', 1, Q3_TAP_EMBED_TOKENS},
    {"rotary_emb.hook_cos", 'w', 1, Q3_TAP_COS},
    {"rotary_emb.hook_sin", 'w', 1, Q3_TAP_SIN},
    {"blocks.#.hook_in", 'p', 1, Q3_TAP_LAYER},
    {"blocks.#.ln1.hook_in", 'p', 1, Q3_TAP_LAYER},
    {"blocks.#.ln1.hook_out", 'w', 1, Q3_TAP_INPUT_LAYERNORM},
    {"blocks.#.attn.hook_in", 'w', 1, Q3_TAP_INPUT_LAYERNORM},
    {"blocks.#.attn.q.hook_out", 'w', 1, Q3_TAP_Q_PROJ},
    {"blocks.#.attn.k.hook_out", 'w', 1, Q3_TAP_K_PROJ},
    {"blocks.#.attn.v.hook_out", 'w', 1, Q3_TAP_V_PROJ},
    {"blocks.#.attn.q_norm.hook_out", 'w', 1, Q3_TAP_Q_NORM},
    {"blocks.#.attn.k_norm.hook_out", 'w', 1, Q3_TAP_K_NORM},
    {"blocks.#.attn.hook_q_normed", 'w', 1, Q3_TAP_Q_NORM},
    {"blocks.#.attn.hook_k_normed", 'w', 1, Q3_TAP_K_NORM},
    {"blocks.#.attn.o.hook_in", 'w', 1, Q3_TAP_O_PROJ_INPUT},
    {"blocks.#.attn.o.hook_out", 'w', 1, Q3_TAP_O_PROJ},
    {"blocks.#.attn.hook_out", 'w', 1, Q3_TAP_O_PROJ},
    {"blocks.#.ln2.hook_in", 'w', 1, Q3_TAP_POST_ATTENTION_INPUT},
    {"blocks.#.ln2.hook_out", 'w', 1, Q3_TAP_POST_ATTENTION_LAYERNORM},
    {"blocks.#.mlp.hook_in", 'w', 1, Q3_TAP_POST_ATTENTION_LAYERNORM},
    {"blocks.#.mlp.gate.hook_out", 'w', 1, Q3_TAP_GATE},
    {"blocks.#.mlp.gate.hook_expert_indices", 'w', 1, Q3_TAP_TOPK_INDICES},
    {"blocks.#.mlp.dense_gate.hook_out", 'w', 1, Q3_TAP_DENSE_GATE_PROJ},
    {"blocks.#.mlp.dense_in.hook_out", 'w', 1, Q3_TAP_DENSE_UP_PROJ},
    {"blocks.#.mlp.dense_out.hook_in", 'w', 1, Q3_TAP_DENSE_DOWN_PROJ_INPUT},
    {"blocks.#.mlp.dense_out.hook_out", 'd', 1, Q3_TAP_MLP},
    {"blocks.#.mlp.hook_out", 'w', 1, Q3_TAP_MLP},
    {"blocks.#.hook_out", 'w', 1, Q3_TAP_LAYER},
    {"ln_final.hook_in", 'n', 1, Q3_TAP_LAYER},
    {"ln_final.hook_out", 'w', 1, Q3_TAP_NORM},
    {"unembed.hook_in", 'w', 1, Q3_TAP_NORM},
    {"unembed.hook_out", 'w', 1, Q3_TAP_LM_HEAD},
    {"hook_unembed", 'w', 1, Q3_TAP_LM_HEAD},
};

/* mlx-lm 0.32.2 (models/qwen3_moe.py, switch_layers.py): a wrapper's name of each module; the
 * others are Hugging Face's. From 64 slots on rows lie expert by expert, but for switch_mlp's own
 * output. Left out: rope, which is called for queries, then for keys; activation, of which one
 * serves all layers. */
static const alias_row mlx_lm[] = {
    {"model.layers.#.mlp.switch_mlp.gate_proj.output", 's', 1, Q3_TAP_EXPERTS_GATE_PROJ},
    {"model.layers.#.mlp.switch_mlp.up_proj.output", 's', 1, Q3_TAP_EXPERTS_UP_PROJ},
    {"model.layers.#.mlp.switch_mlp.down_proj.input", 's', 1, Q3_TAP_EXPERTS_DOWN_PROJ_INPUT},
    {"model.layers.#.mlp.switch_mlp.down_proj.output", 'w', 1, Q3_TAP_EXPERTS_DOWN_PROJ},
    {"model.layers.#.mlp.switch_mlp.output", 's', 1, Q3_TAP_EXPERTS_DOWN_PROJ},
};

/* litgpt 0.5.13 (model.py): queries, keys and values of qkv lie one behind the other; norm_q and
 * norm_k see [heads,T,hd]; post_attention_norm and post_mlp_norm pass on what they get. Left
 * out: mlp.experts.N, which see the rows of one expert. */
static const alias_row litgpt[] = {
    {"transformer.wte.output", 's', 1, Q3_TAP_EMBED_TOKENS},
    {"transformer.h.#.input", 'p', 1, Q3_TAP_LAYER},
    {"transformer.h.#.norm_1.input", 'p', 1, Q3_TAP_LAYER},
    {"transformer.h.#.norm_1.output", 's', 1, Q3_TAP_INPUT_LAYERNORM},
    {"transformer.h.#.attn.qkv.output", 's', 3, Q3_TAP_Q_PROJ},
    {"transformer.h.#.attn.norm_q.output", 's', 1, Q3_TAP_Q_NORM},
    {"transformer.h.#.attn.norm_k.output", 's', 1, Q3_TAP_K_NORM},
    {"transformer.h.#.attn.proj.input", 's', 1, Q3_TAP_O_PROJ_INPUT},
    {"transformer.h.#.attn.proj.output", 's', 1, Q3_TAP_O_PROJ},
    {"transformer.h.#.attn.output", 'w', 1, Q3_TAP_O_PROJ},
    {"transformer.h.#.post_attention_norm.output", 'w', 1, Q3_TAP_O_PROJ},
    {"transformer.h.#.norm_2.input", 's', 1, Q3_TAP_POST_ATTENTION_INPUT},
    {"transformer.h.#.norm_2.output", 's', 1, Q3_TAP_POST_ATTENTION_LAYERNORM},
    {"transformer.h.#.mlp.gate.output", 's', 1, Q3_TAP_GATE},
    {"transformer.h.#.mlp.fc_1.output", 's', 1, Q3_TAP_DENSE_GATE_PROJ},
    {"transformer.h.#.mlp.fc_2.output", 's', 1, Q3_TAP_DENSE_UP_PROJ},
    {"transformer.h.#.mlp.proj.input", 's', 1, Q3_TAP_DENSE_DOWN_PROJ_INPUT},
    {"transformer.h.#.mlp.proj.output", 'd', 1, Q3_TAP_MLP},
    {"transformer.h.#.mlp.output", 's', 1, Q3_TAP_MLP},
    {"transformer.h.#.post_mlp_norm.output", 'w', 1, Q3_TAP_MLP},
    {"transformer.h.#.output", 's', 1, Q3_TAP_LAYER},
    {"transformer.ln_f.input", 'n', 1, Q3_TAP_LAYER},
    {"transformer.ln_f.output", 's', 1, Q3_TAP_NORM},
};

/* torchtitan 0.3.0 (models/qwen3/model.py, models/common/attention.py, moe.py, feed_forward.py):
 * layers.# stands here as q3_canonical_name writes it. qkv_linear gives (q, k, v), rope (q, k),
 * each layer's own; the router (weights, ids, probabilities). inner_experts' rows lie expert by
 * expert and are not weighted yet. Left out: wqkv, whose columns go group by group. */
static const alias_row torchtitan[] = {
    {"tok_embeddings.output", 's', 1, Q3_TAP_EMBED_TOKENS},
    {"model.layers.#.attention_norm.input", 'p', 1, Q3_TAP_LAYER},
    {"model.layers.#.attention_norm.output", 's', 1, Q3_TAP_INPUT_LAYERNORM},
    {"model.layers.#.attention.qkv_linear.wq.output", 's', 1, Q3_TAP_Q_PROJ},
    {"model.layers.#.attention.qkv_linear.wk.output", 's', 1, Q3_TAP_K_PROJ},
    {"model.layers.#.attention.qkv_linear.wv.output", 's', 1, Q3_TAP_V_PROJ},
    {"model.layers.#.attention.qkv_linear.output", 'w', 1, Q3_TAP_Q_PROJ},
    {"model.layers.#.attention.qkv_linear.output.1", 'w', 1, Q3_TAP_K_PROJ},
    {"model.layers.#.attention.qkv_linear.output.2", 'w', 1, Q3_TAP_V_PROJ},
    {"model.layers.#.attention.q_norm.output", 's', 1, Q3_TAP_Q_NORM},
    {"model.layers.#.attention.k_norm.output", 's', 1, Q3_TAP_K_NORM},
    {"model.layers.#.attention.rope.output", 's', 1, Q3_TAP_Q_ROPE},
    {"model.layers.#.attention.rope.output.1", 's', 1, Q3_TAP_K_ROPE},
    {"model.layers.#.attention.inner_attention.output", 'w', 1, Q3_TAP_O_PROJ_INPUT},
    {"model.layers.#.attention.wo.input", 's', 1, Q3_TAP_O_PROJ_INPUT},
    {"model.layers.#.attention.wo.output", 's', 1, Q3_TAP_O_PROJ},
    {"model.layers.#.attention.output", 'w', 1, Q3_TAP_O_PROJ},
    {"model.layers.#.ffn_norm.input", 's', 1, Q3_TAP_POST_ATTENTION_INPUT},
    {"model.layers.#.ffn_norm.output", 's', 1, Q3_TAP_POST_ATTENTION_LAYERNORM},
    {"model.layers.#.moe.router.gate.output", 's', 1, Q3_TAP_GATE},
    {"model.layers.#.moe.router.output", 's', 1, Q3_TAP_TOPK_WEIGHTS},
    {"model.layers.#.moe.router.output.1", 's', 1, Q3_TAP_TOPK_INDICES},
    {"model.layers.#.moe.router.output.2", 's', 1, Q3_TAP_ROUTER_PROBS},
    {"model.layers.#.moe.routed_experts.inner_experts.output", 's', 1, Q3_TAP_EXPERTS_DOWN_PROJ},
    {"model.layers.#.moe.routed_experts.output", 'w', 1, Q3_TAP_MLP},
    {"model.layers.#.moe.output", 's', 1, Q3_TAP_MLP},
    {"model.layers.#.feed_forward.w1.output", 's', 1, Q3_TAP_DENSE_GATE_PROJ},
    {"model.layers.#.feed_forward.w3.output", 's', 1, Q3_TAP_DENSE_UP_PROJ},
    {"model.layers.#.feed_forward.w2.input", 's', 1, Q3_TAP_DENSE_DOWN_PROJ_INPUT},
    {"model.layers.#.feed_forward.w2.output", 'w', 1, Q3_TAP_MLP},
    {"model.layers.#.feed_forward.output", 's', 1, Q3_TAP_MLP},
};

/* keras-hub 0.32.0 (models/qwen3_moe): the layers' own names as in their paths, where / may stand
 * for each point; mlp is the attribute, as its block's name changes. attention_softmax is
 * called where there is no fused kernel. Left out: rotary_embedding, which is called for
 * queries, then for keys; token_embedding, which the logits come from too; experts, which
 * compute all experts for every token. */
static const alias_row keras_hub[] = {
    {"transformer_layer_#.input", 'p', 1, Q3_TAP_LAYER},
    {"transformer_layer_#.self_attention_layernorm.input", 'p', 1, Q3_TAP_LAYER},
    {"transformer_layer_#.self_attention_layernorm.output", 's', 1, Q3_TAP_INPUT_LAYERNORM},
    {"transformer_layer_#.self_attention.query.output", 's', 1, Q3_TAP_Q_PROJ},
    {"transformer_layer_#.self_attention.key.output", 's', 1, Q3_TAP_K_PROJ},
    {"transformer_layer_#.self_attention.value.output", 's', 1, Q3_TAP_V_PROJ},
    {"transformer_layer_#.self_attention.query_dense_layernorm.output", 's', 1, Q3_TAP_Q_NORM},
    {"transformer_layer_#.self_attention.key_dense_layernorm.output", 's', 1, Q3_TAP_K_NORM},
    {"transformer_layer_#.self_attention.attention_softmax.output", 's', 1, Q3_TAP_PROBS},
    {"transformer_layer_#.self_attention.attention_output.input", 's', 1, Q3_TAP_O_PROJ_INPUT},
    {"transformer_layer_#.self_attention.attention_output.output", 's', 1, Q3_TAP_O_PROJ},
    {"transformer_layer_#.self_attention.output", 'w', 1, Q3_TAP_O_PROJ},
    {"transformer_layer_#.feedforward_layernorm.input", 's', 1, Q3_TAP_POST_ATTENTION_INPUT},
    {"transformer_layer_#.feedforward_layernorm.output", 's', 1, Q3_TAP_POST_ATTENTION_LAYERNORM},
    {"transformer_layer_#.mlp.sparse_feedforward_gate_dense.output", 's', 1, Q3_TAP_GATE},
    {"transformer_layer_#.mlp.output.1", 'w', 1, Q3_TAP_GATE},
    {"transformer_layer_#.mlp.feedforward_gate_dense.output", 's', 1, Q3_TAP_DENSE_GATE_PROJ},
    {"transformer_layer_#.mlp.feedforward_intermediate_dense.output", 's', 1,
     Q3_TAP_DENSE_UP_PROJ},
    {"transformer_layer_#.mlp.feedforward_output_dense.input", 's', 1,
     Q3_TAP_DENSE_DOWN_PROJ_INPUT},
    {"transformer_layer_#.mlp.feedforward_output_dense.output", 'w', 1, Q3_TAP_MLP},
    {"transformer_layer_#.mlp.output", 's', 1, Q3_TAP_MLP},
    {"transformer_layer_#.output", 's', 1, Q3_TAP_LAYER},
    {"sequence_output_layernorm.input", 'n', 1, Q3_TAP_LAYER},
    {"sequence_output_layernorm.output", 's', 1, Q3_TAP_NORM},
};

/* tinygrad 0.14.0 (llm/model.py): attributes, which are GGUF's names of the weights. attn_q_norm
 * and attn_k_norm see [heads,T,hd]. Left out: output, a name that anything may have. */
static const alias_row tinygrad[] = {
    {"token_embd.output", 's', 1, Q3_TAP_EMBED_TOKENS},
    {"blk.#.input", 'p', 1, Q3_TAP_LAYER},
    {"blk.#.attn_norm.input", 'p', 1, Q3_TAP_LAYER},
    {"blk.#.attn_norm.output", 's', 1, Q3_TAP_INPUT_LAYERNORM},
    {"blk.#.attn_q.output", 's', 1, Q3_TAP_Q_PROJ},
    {"blk.#.attn_k.output", 's', 1, Q3_TAP_K_PROJ},
    {"blk.#.attn_v.output", 's', 1, Q3_TAP_V_PROJ},
    {"blk.#.attn_q_norm.output", 's', 1, Q3_TAP_Q_NORM},
    {"blk.#.attn_k_norm.output", 's', 1, Q3_TAP_K_NORM},
    {"blk.#.attn_output.input", 's', 1, Q3_TAP_O_PROJ_INPUT},
    {"blk.#.attn_output.output", 's', 1, Q3_TAP_O_PROJ},
    {"blk.#.ffn_norm.input", 's', 1, Q3_TAP_POST_ATTENTION_INPUT},
    {"blk.#.ffn_norm.output", 's', 1, Q3_TAP_POST_ATTENTION_LAYERNORM},
    {"blk.#.ffn_gate_inp.output", 's', 1, Q3_TAP_GATE},
    {"blk.#.ffn_gate_exps.output", 's', 1, Q3_TAP_EXPERTS_GATE_PROJ},
    {"blk.#.ffn_up_exps.output", 's', 1, Q3_TAP_EXPERTS_UP_PROJ},
    {"blk.#.ffn_down_exps.output", 's', 1, Q3_TAP_EXPERTS_DOWN_PROJ},
    {"blk.#.ffn_gate.output", 's', 1, Q3_TAP_DENSE_GATE_PROJ},
    {"blk.#.ffn_up.output", 's', 1, Q3_TAP_DENSE_UP_PROJ},
    {"blk.#.ffn_down.input", 's', 1, Q3_TAP_DENSE_DOWN_PROJ_INPUT},
    {"blk.#.ffn_down.output", 'd', 1, Q3_TAP_MLP},
    {"blk.#.output", 's', 1, Q3_TAP_LAYER},
    {"output_norm.input", 'n', 1, Q3_TAP_LAYER},
    {"output_norm.output", 's', 1, Q3_TAP_NORM},
};

#define ROWS(name) name, sizeof (name) / sizeof (name)[0]

static const struct { const char *system; const alias_row *rows; size_t count; } systems[] = {
    {"Hugging Face", ROWS(hugging_face)},
    {"vLLM, SGLang", ROWS(vllm)},
    {"llama.cpp", ROWS(llama_cpp)},
    {"TransformerLens", ROWS(transformer_lens)},
    {"mlx-lm", ROWS(mlx_lm)},
    {"litgpt", ROWS(litgpt)},
    {"torchtitan", ROWS(torchtitan)},
    {"keras-hub", ROWS(keras_hub)},
    {"tinygrad", ROWS(tinygrad)},
};

/* The index-th row, and whose it is; NULL: there are not so many. */
static const alias_row *row_at(size_t index, const char **system)
{
    for (size_t i = 0; i < sizeof systems / sizeof systems[0]; i++) {
        *system = systems[i].system;
        if (index < systems[i].count) return &systems[i].rows[index];
        index -= systems[i].count;
    }
    return NULL;
}

static bool starts(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

static bool ends(const char *text, const char *with)
{
    size_t n = strlen(text), m = strlen(with);
    return n >= m && strcmp(text + n - m, with) == 0;
}

bool q3_name_fits(const char *pattern, const char *name, size_t *number)
{
    *number = 0;
    for (; *pattern != 0; pattern++) {
        if (*pattern != '#') {
            if (*name++ != *pattern) return false;
            continue;
        }
        const char *digits = name;
        for (; *name >= '0' && *name <= '9' && *number < SIZE_MAX / 10 - 1; name++)
            *number = *number * 10 + (size_t)(*name - '0');
        if (name == digits || (*digits == '0' && name != digits + 1)) return false;
    }
    return *name == 0;
}

/* Hugging Face's ways to write a module's output as model.MODULE.output or .output.N: with the
 * class's or a wrapper's name in front, from the bare Qwen3MoeModel, the debugger's
 * MODULE_outputs_N and MODULE_inputs_args_0, the module alone; and Keras' paths, with slashes.
 * Element 0 of an output is the output, but for a layer's: there it depends on the system. */
bool q3_canonical_name(char out[Q3_NAME_ROOM], const char *name)
{
    static const char *const wrappers[] = {"_orig_mod.", "module.", "Qwen3MoeForCausalLM.",
                                           "Qwen3MoeModel."};
    static const char *const bare[] = {"layers.", "embed_tokens", "norm", "rotary_emb"};
    static const char *const inputs[] = {"_inputs_args_0", "_inputs_kwargs_hidden_states"};
    size_t number, n = 0;
    if (strcmp(name, "norm") == 0) return false; /* in llama.cpp: before the weight */
    for (size_t i = 0; i < sizeof wrappers / sizeof wrappers[0];) {
        bool found = starts(name, wrappers[i]);
        if (found) name += strlen(wrappers[i]);
        i = found ? 0 : i + 1;
    }
    if (strlen(name) + 16 > Q3_NAME_ROOM) return false;
    for (size_t i = 0; i < sizeof bare / sizeof bare[0]; i++)
        if (starts(name, bare[i])) n = 6;
    memcpy(out, "model.", 6);
    memcpy(out + n, name, strlen(name) + 1);
    for (char *slash = out; (slash = strchr(slash, '/')) != NULL;) *slash = '.';
    char *p = strstr(out, "_outputs");
    /* _outputs_1 becomes .output.1, in the same room */
    if (p != NULL && (p[8] == 0 || p[8] == '_')) {
        memcpy(p, ".output", 7);
        memmove(p + 7, p + 8, strlen(p + 8) + 1);
        if (p[7] == '_') p[7] = '.';
    }
    for (size_t i = 0; i < 2; i++)
        if (ends(out, inputs[i])) memcpy(out + strlen(out) - strlen(inputs[i]), ".input", 7);
    if (ends(out, ".input.0")) out[strlen(out) - 2] = 0;
    if (ends(out, ".output.0") && !q3_name_fits("model.layers.#.output.0", out, &number))
        out[strlen(out) - 2] = 0;
    bool whole = strstr(out, ".output.") != NULL || strstr(out, ".input.") != NULL ||
                 ends(out, ".output") || ends(out, ".input");
    if (!whole && !ends(out, ".cos") && !ends(out, ".sin")) memcpy(out + strlen(out), ".output", 8);
    return true;
}

/* The layer that is the number-th sparse one, from 0; num_hidden_layers if there are not so
 * many. */
static size_t sparse_layer(const q3_config *config, size_t number)
{
    size_t layer = 0;
    for (; layer < config->num_hidden_layers; layer++)
        if (q3_layer_is_sparse(config, layer) && number-- == 0) break;
    return layer;
}

/* The row's reading of layer `number`. */
static bool read_row(q3_alias *alias, const alias_row *row, const q3_config *config, size_t number)
{
    char reading = row->reading;
    size_t L = config != NULL ? config->num_hidden_layers : 0;
    alias->sum = strchr("SPN", reading) != NULL;
    alias->added = strchr("abc", reading) != NULL;
    if (alias->sum) reading = reading == 'S' ? 'w' : reading == 'P' ? 'p' : 'n';
    if (alias->added) reading = reading == 'a' ? 'w' : reading == 'b' ? 'p' : 'n';
    if (config == NULL && (alias->added || strchr("hndru", reading) != NULL)) return false;
    if (reading == 'd' && (number >= L || q3_layer_is_sparse(config, number))) return false;
    if (reading == 'u' && config->norm_topk_prob) return false;
    alias->count = row->ids;
    alias->weak = reading != 's';
    alias->id = row->first;
    alias->layer = reading == 'n' ? L - 1 : reading == 'r' ? sparse_layer(config, number) : number;
    if (reading == 'p' || reading == 'h') {
        if (number == 0) alias->id = Q3_TAP_EMBED_TOKENS;
        if (number > 0) alias->layer--;
        if (reading == 'h' && number == L) {
            alias->id = Q3_TAP_NORM;
            alias->layer = 0;
        }
    }
    return true;
}

const char *q3_alias_pattern(size_t index)
{
    const char *system;
    const alias_row *row = row_at(index, &system);
    return row != NULL ? row->name : NULL;
}

bool q3_tap_alias(q3_alias *alias, const q3_config *config, const char *name)
{
    char written[Q3_NAME_ROOM];
    bool known = q3_canonical_name(written, name);
    *alias = (q3_alias){.id = Q3_TAP_COUNT, .count = 1};
    if (q3_tap_find(name, &alias->id, &alias->layer)) return true;
    if (known && q3_tap_find(written, &alias->id, &alias->layer)) return true;
    const alias_row *row;
    const char *system;
    for (size_t i = 0; (row = row_at(i, &system)) != NULL; i++) {
        size_t number;
        if (q3_name_fits(row->name, name, &number) ||
            (known && q3_name_fits(row->name, written, &number)))
            return read_row(alias, row, config, number);
    }
    return false;
}

bool q3_other_name_at(q3_other_name *other, const q3_config *config, q3_tap_id id, size_t layer,
                      size_t index)
{
    size_t L = config->num_hidden_layers, sparse = 0;
    const alias_row *row;
    for (size_t l = 0; l < layer && l < L; l++) sparse += q3_layer_is_sparse(config, l);
    /* a row may count from another layer (read_row) */
    const size_t numbers[] = {layer, layer + 1, sparse, 0, L};
    for (size_t i = 0; (row = row_at(i, &other->system)) != NULL; i++) {
        bool numbered = strchr(row->name, '#') != NULL, found = false;
        for (size_t n = 0; n < (numbered ? sizeof numbers / sizeof numbers[0] : 1) && !found; n++) {
            q3_alias alias;
            found = read_row(&alias, row, config, numbers[n]) && !alias.added && id >= alias.id &&
                    id < alias.id + alias.count && (!q3_tap_in_layer(id) || alias.layer == layer);
            other->number = numbers[n];
            other->part = found ? (size_t)(id - alias.id) : 0;
        }
        if (!found || index-- > 0) continue;
        other->name = row->name;
        other->numbered = numbered;
        other->among_sparse = row->reading == 'r';
        other->parts = row->ids;
        return true;
    }
    return false;
}
