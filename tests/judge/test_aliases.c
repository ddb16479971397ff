/* SPDX-License-Identifier: MIT */
/* aliases.c: what other systems call the taps.
 *
 *   test_aliases
 *
 * The names were taken from the systems' sources: transformers' modeling_qwen3_moe.py (4.57, 5.17)
 * and model_debugging_utils.py, vLLM's and SGLang's models/qwen3_moe.py, llama.cpp's
 * llama-graph.cpp and models/qwen3moe.cpp, TransformerLens' components (also from its own dumps:
 * 4.3, 3.9, 3.4, 2.18), and of mlx-lm 0.32.2, litgpt 0.5.13, torchtitan 0.3.0, keras-hub 0.32.0 and
 * tinygrad 0.14.0 the files that aliases.c names. */
#include "t.h"

#include "host/taps.h"
#include "judge/backend.h"

#define P "model.layers.2."

typedef struct name_case {
    const char *name;
    const char *taps; /* "" : none; several: those of a fused tensor */
} name_case;

/* In the model below, layer 1 is dense. */
static const name_case cases[] = {
    /* ours */
    {"model.embed_tokens.output", "model.embed_tokens.output"},
    {P "output", P "output"},
    {"model.rotary_emb.cos", "model.rotary_emb.cos"},
    /* Hugging Face: module names, alone or behind a class or a wrapper, whole model or bare */
    {"model.embed_tokens", "model.embed_tokens.output"},
    {"embed_tokens", "model.embed_tokens.output"},
    {"Qwen3MoeForCausalLM.model.embed_tokens_outputs", "model.embed_tokens.output"},
    {"model.norm", "model.norm.output"},
    {"norm.output", "model.norm.output"},
    {"Qwen3MoeModel.norm", "model.norm.output"},
    {"lm_head", "lm_head.output"},
    {"Qwen3MoeForCausalLM.lm_head_outputs", "lm_head.output"},
    {"rotary_emb.sin", "model.rotary_emb.sin"},
    {"Qwen3MoeForCausalLM.model.rotary_emb_outputs_0", "model.rotary_emb.cos"},
    {"Qwen3MoeForCausalLM.model.rotary_emb_outputs_1", "model.rotary_emb.sin"},
    {"model.layers.2", P "output"},
    {"layers.2.output", P "output"},
    {"layers.2", P "output"},
    {"Qwen3MoeModel.layers.2.mlp", P "mlp.output"},
    {"_orig_mod.module.model.layers.2.mlp", P "mlp.output"},
    {"model.layers.2.input_layernorm", P "input_layernorm.output"},
    {"model.layers.2.self_attn.q_proj", P "self_attn.q_proj.output"},
    {"Qwen3MoeForCausalLM.model.layers.2.self_attn.q_proj_outputs", P "self_attn.q_proj.output"},
    {"model.layers.2.self_attn.k_norm", P "self_attn.k_norm.output"},
    {"model.layers.2.self_attn.q_rope", P "self_attn.q_rope.output"},
    {"model.layers.2.self_attn.scores", P "self_attn.scores.output"},
    {"model.layers.2.self_attn.probs", P "self_attn.probs.output"},
    {"Qwen3MoeForCausalLM.model.layers.2.self_attn.o_proj_inputs_args_0",
     P "self_attn.o_proj.input"},
    {"model.layers.2.self_attn.o_proj", P "self_attn.o_proj.output"},
    {"model.layers.2.self_attn", P "self_attn.o_proj.output"},
    {"model.layers.2.self_attn.output", P "self_attn.o_proj.output"},
    {"model.layers.2.self_attn.output.0", P "self_attn.o_proj.output"},
    {"model.layers.2.self_attn.output.1", P "self_attn.probs.output"},
    {"Qwen3MoeForCausalLM.model.layers.2.post_attention_layernorm_inputs_args_0",
     P "post_attention_layernorm.input"},
    {"model.layers.2.post_attention_layernorm", P "post_attention_layernorm.output"},
    {"model.layers.2.mlp.gate", P "mlp.gate.output"},
    {"model.layers.2.mlp.gate.output.0", P "mlp.gate.output"},
    {"Qwen3MoeForCausalLM.model.layers.2.mlp.gate_outputs_0", P "mlp.gate.output"},
    {"Qwen3MoeForCausalLM.model.layers.2.mlp.gate_outputs_1", P "mlp.topk_weights.output"},
    {"Qwen3MoeForCausalLM.model.layers.2.mlp.gate_outputs_2", P "mlp.topk_indices.output"},
    {"model.layers.2.mlp.output.1", P "mlp.gate.output"},
    {"model.layers.2.mlp.experts", P "mlp.output"},
    {"model.layers.2.mlp.experts.act_fn", P "mlp.experts.act_fn.output"},
    {"model.layers.2.mlp.experts.gate_up_proj",
     P "mlp.experts.gate_proj.output " P "mlp.experts.up_proj.output"},
    {"model.layers.2.input", "model.layers.1.output"},
    {"Qwen3MoeForCausalLM.model.layers.2_inputs_args_0", "model.layers.1.output"},
    {"Qwen3MoeForCausalLM.model.layers.2.input_layernorm_inputs_kwargs_hidden_states",
     "model.layers.1.output"},
    {"model.layers.0.input_layernorm.input", "model.embed_tokens.output"},
    {"model.norm.input", "model.layers.2.output"},
    {"model.layers.1.mlp.down_proj", "model.layers.1.mlp.output"},
    {"model.layers.2.mlp.down_proj", ""},
    {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.gate_proj.output"},
    {"Qwen3MoeForCausalLM.model.layers.1.mlp.down_proj_inputs_args_0",
     "model.layers.1.mlp.down_proj.input"},
    {"inputs_embeds", "model.embed_tokens.output"},
    {"hidden_states.0", "model.embed_tokens.output"},
    {"hidden_states.2", "model.layers.1.output"},
    {"hidden_states.3", "model.norm.output"},
    {"hidden_states_2", "model.layers.1.output"},
    {"hidden_states[3]", "model.norm.output"},
    {"attentions.0", "model.layers.0.self_attn.probs.output"},
    {"attentions_2", P "self_attn.probs.output"},
    {"attentions[2]", P "self_attn.probs.output"},
    /* of the sparse layers, which are 0 and 2 */
    {"router_logits.0", "model.layers.0.mlp.gate.output"},
    {"router_logits_1", P "mlp.gate.output"},
    {"router_logits[1]", P "mlp.gate.output"},
    {"last_hidden_state", "model.norm.output"},
    {"logits", "lm_head.output"},
    /* vLLM */
    {"model.layers.2.self_attn.qkv_proj",
     P "self_attn.q_proj.output " P "self_attn.k_proj.output " P "self_attn.v_proj.output"},
    {"model.layers.2.self_attn.qkv_proj.output.0",
     P "self_attn.q_proj.output " P "self_attn.k_proj.output " P "self_attn.v_proj.output"},
    {"model.layers.2.self_attn.rotary_emb.output.0", ""}, /* the last layer's, whatever the name */
    {"model.layers.2.self_attn.rotary_emb.output.1", ""},
    {"model.layers.2.mlp.topk.output.0", P "mlp.topk_weights.output"},
    {"model.layers.2.mlp.topk.output.1", P "mlp.topk_indices.output"},
    {"model.layers.2.mlp.topk.output.2", P "mlp.gate.output"},
    {"model.layers.2.self_attn.attn", P "self_attn.o_proj.input"},
    {"model.layers.2.self_attn.o_proj.output.0", P "self_attn.o_proj.output"},
    {"model.layers.2.post_attention_layernorm.output.0", P "post_attention_layernorm.output"},
    {"model.layers.2.post_attention_layernorm.output.1", P "post_attention_layernorm.input"},
    {"model.layers.2.input_layernorm.output.1", "model.layers.1.output"},
    {"model.norm.output.1", "model.layers.2.output"},
    /* the residual that is kept apart, and what it is added to */
    {"model.layers.2.output.0", P "output"},
    {"model.layers.2.output.1", P "output"},
    {"model.layers.2.input_layernorm.input.0", "model.layers.1.output"},
    {"model.layers.2.input_layernorm.input.1", "model.layers.1.output"},
    {"model.layers.2.post_attention_layernorm.input.0", P "post_attention_layernorm.input"},
    {"model.layers.2.post_attention_layernorm.input.1", P "post_attention_layernorm.input"},
    {"model.norm.input.0", "model.layers.2.output"},
    {"model.norm.input.1", "model.layers.2.output"},
    {"model.layers.1.mlp.gate_up_proj",
     "model.layers.1.mlp.gate_proj.output model.layers.1.mlp.up_proj.output"},
    {"logits_processor", "lm_head.output"},
    /* llama.cpp */
    {"embd", "model.embed_tokens.output"},
    {"inp_embd", "model.embed_tokens.output"},
    {"attn_norm-2", P "input_layernorm.output"},
    {"wqkv-2",
     P "self_attn.q_proj.output " P "self_attn.k_proj.output " P "self_attn.v_proj.output"},
    {"Vcur-2", P "self_attn.v_proj.output"},
    {"Qcur_normed-2", P "self_attn.q_norm.output"},
    {"Kcur_normed-2", P "self_attn.k_norm.output"},
    {"Qcur-2", P "self_attn.q_rope.output"},
    {"Kcur-2", P "self_attn.k_rope.output"},
    {"kq_soft_max-2", P "self_attn.probs.output"},
    {"kqv_out-2", P "self_attn.o_proj.input"},
    {"ffn_inp-2", P "post_attention_layernorm.input"},
    {"ffn_norm-2", P "post_attention_layernorm.output"},
    {"ffn_moe_logits-2", P "mlp.gate.output"},
    {"ffn_moe_probs-2", P "mlp.router_probs.output"},
    {"ffn_moe_topk-2", P "mlp.topk_indices.output"},
    {"ffn_moe_weights_norm-2", P "mlp.topk_weights.output"},
    {"ffn_moe_weights-2", ""}, /* before the division, which this model has */
    {"ffn_moe_gate_up-2", P "mlp.experts.gate_proj.output " P "mlp.experts.up_proj.output"},
    {"ffn_moe_gate-2", P "mlp.experts.gate_proj.output"},
    {"ffn_moe_up-2", P "mlp.experts.up_proj.output"},
    {"ffn_moe_swiglu-2", P "mlp.experts.down_proj.input"},
    {"ffn_moe_down-2", P "mlp.experts.down_proj.output"},
    {"ffn_moe_out-2", P "mlp.output"},
    {"ffn_gate-1", "model.layers.1.mlp.gate_proj.output"},
    {"ffn_up-1", "model.layers.1.mlp.up_proj.output"},
    {"ffn_swiglu-1", "model.layers.1.mlp.down_proj.input"},
    {"ffn_out-1", "model.layers.1.mlp.output"},
    {"l_out-2", P "output"},
    {"result_norm", "model.norm.output"},
    {"result_output", "lm_head.output"},
    /* TransformerLens */
    {"hook_embed", "model.embed_tokens.output"},
    {"blocks.2.hook_resid_pre", "model.layers.1.output"},
    {"blocks.0.hook_resid_pre", "model.embed_tokens.output"},
    {"blocks.2.attn.hook_q", P "self_attn.q_proj.output"},
    {"blocks.2.attn.hook_k", P "self_attn.k_proj.output"},
    {"blocks.2.attn.hook_v", P "self_attn.v_proj.output"},
    {"blocks.2.attn.hook_rot_q", P "self_attn.q_rope.output"},
    {"blocks.2.attn.hook_rot_k", P "self_attn.k_rope.output"},
    {"blocks.2.attn.hook_attn_scores", P "self_attn.scores.output"},
    {"blocks.2.attn.hook_pattern", P "self_attn.probs.output"},
    {"blocks.2.attn.hook_z", P "self_attn.o_proj.input"},
    {"blocks.2.hook_attn_out", P "self_attn.o_proj.output"},
    {"blocks.2.hook_resid_mid", P "post_attention_layernorm.input"},
    {"blocks.2.mlp.hook_expert_indices", P "mlp.topk_indices.output"},
    {"blocks.1.mlp.hook_pre", "model.layers.1.mlp.gate_proj.output"},
    {"blocks.1.mlp.hook_pre_linear", "model.layers.1.mlp.up_proj.output"},
    {"blocks.1.mlp.hook_post", "model.layers.1.mlp.down_proj.input"},
    {"blocks.2.hook_mlp_out", P "mlp.output"},
    {"blocks.2.hook_resid_post", P "output"},
    {"embed.hook_out", "model.embed_tokens.output"},
    {"rotary_emb.hook_cos", "model.rotary_emb.cos"},
    {"rotary_emb.hook_sin", "model.rotary_emb.sin"},
    {"blocks.2.hook_in", "model.layers.1.output"},
    {"blocks.0.ln1.hook_in", "model.embed_tokens.output"},
    {"blocks.2.ln1.hook_out", P "input_layernorm.output"},
    {"blocks.2.attn.hook_in", P "input_layernorm.output"},
    {"blocks.2.attn.q.hook_out", P "self_attn.q_proj.output"},
    {"blocks.2.attn.k.hook_out", P "self_attn.k_proj.output"},
    {"blocks.2.attn.v.hook_out", P "self_attn.v_proj.output"},
    {"blocks.2.attn.q_norm.hook_out", P "self_attn.q_norm.output"},
    {"blocks.2.attn.k_norm.hook_out", P "self_attn.k_norm.output"},
    {"blocks.2.attn.hook_q_normed", P "self_attn.q_norm.output"},
    {"blocks.2.attn.hook_k_normed", P "self_attn.k_norm.output"},
    {"blocks.2.attn.o.hook_in", P "self_attn.o_proj.input"},
    {"blocks.2.attn.o.hook_out", P "self_attn.o_proj.output"},
    {"blocks.2.attn.hook_out", P "self_attn.o_proj.output"},
    {"blocks.2.ln2.hook_in", P "post_attention_layernorm.input"},
    {"blocks.2.ln2.hook_out", P "post_attention_layernorm.output"},
    {"blocks.2.mlp.hook_in", P "post_attention_layernorm.output"},
    {"blocks.2.mlp.gate.hook_out", P "mlp.gate.output"},
    {"blocks.2.mlp.gate.hook_expert_indices", P "mlp.topk_indices.output"},
    {"blocks.1.mlp.dense_gate.hook_out", "model.layers.1.mlp.gate_proj.output"},
    {"blocks.1.mlp.dense_in.hook_out", "model.layers.1.mlp.up_proj.output"},
    {"blocks.1.mlp.dense_out.hook_in", "model.layers.1.mlp.down_proj.input"},
    {"blocks.1.mlp.dense_out.hook_out", "model.layers.1.mlp.output"},
    {"blocks.2.mlp.dense_out.hook_out", ""},
    {"blocks.2.mlp.hook_out", P "mlp.output"},
    {"blocks.2.hook_out", P "output"},
    {"ln_final.hook_in", "model.layers.2.output"},
    {"ln_final.hook_out", "model.norm.output"},
    {"unembed.hook_in", "model.norm.output"},
    {"unembed.hook_out", "lm_head.output"},
    {"hook_unembed", "lm_head.output"},
    /* mlx-lm */
    {"model.layers.2.mlp.switch_mlp.gate_proj", P "mlp.experts.gate_proj.output"},
    {"model.layers.2.mlp.switch_mlp.up_proj.output", P "mlp.experts.up_proj.output"},
    {"model.layers.2.mlp.switch_mlp.down_proj.input", P "mlp.experts.down_proj.input"},
    {"model.layers.2.mlp.switch_mlp.down_proj", P "mlp.experts.down_proj.output"},
    {"model.layers.2.mlp.switch_mlp", P "mlp.experts.down_proj.output"},
    {"model.layers.2.mlp.switch_mlp.activation", ""}, /* one for all layers */
    {"model.layers.2.self_attn.rope", ""},            /* called twice */
    /* litgpt */
    {"transformer.wte", "model.embed_tokens.output"},
    {"transformer.h.2.input", "model.layers.1.output"},
    {"transformer.h.0.norm_1.input", "model.embed_tokens.output"},
    {"transformer.h.2.norm_1", P "input_layernorm.output"},
    {"_orig_mod.transformer.h.2.attn.qkv",
     P "self_attn.q_proj.output " P "self_attn.k_proj.output " P "self_attn.v_proj.output"},
    {"transformer.h.2.attn.norm_q", P "self_attn.q_norm.output"},
    {"transformer.h.2.attn.norm_k", P "self_attn.k_norm.output"},
    {"transformer.h.2.attn.proj.input", P "self_attn.o_proj.input"},
    {"transformer.h.2.attn.proj", P "self_attn.o_proj.output"},
    {"transformer.h.2.attn", P "self_attn.o_proj.output"},
    {"transformer.h.2.post_attention_norm", P "self_attn.o_proj.output"},
    {"transformer.h.2.norm_2.input", P "post_attention_layernorm.input"},
    {"transformer.h.2.norm_2", P "post_attention_layernorm.output"},
    {"transformer.h.2.mlp.gate", P "mlp.gate.output"},
    {"transformer.h.1.mlp.fc_1", "model.layers.1.mlp.gate_proj.output"},
    {"transformer.h.1.mlp.fc_2", "model.layers.1.mlp.up_proj.output"},
    {"transformer.h.1.mlp.proj.input", "model.layers.1.mlp.down_proj.input"},
    {"transformer.h.1.mlp.proj", "model.layers.1.mlp.output"},
    {"transformer.h.2.mlp.proj", ""},
    {"transformer.h.2.mlp", P "mlp.output"},
    {"transformer.h.2.post_mlp_norm", P "mlp.output"},
    {"transformer.h.2", P "output"},
    {"transformer.ln_f.input", "model.layers.2.output"},
    {"transformer.ln_f", "model.norm.output"},
    {"transformer.h.2.mlp.experts.3.fc_1", ""},
    /* torchtitan */
    {"tok_embeddings", "model.embed_tokens.output"},
    {"layers.2.attention_norm.input", "model.layers.1.output"},
    {"layers.2.attention_norm", P "input_layernorm.output"},
    {"layers.2.attention.qkv_linear.wq", P "self_attn.q_proj.output"},
    {"layers.2.attention.qkv_linear.wk", P "self_attn.k_proj.output"},
    {"layers.2.attention.qkv_linear.wv", P "self_attn.v_proj.output"},
    {"layers.2.attention.qkv_linear.output.0", P "self_attn.q_proj.output"},
    {"layers.2.attention.qkv_linear.output.1", P "self_attn.k_proj.output"},
    {"layers.2.attention.qkv_linear.output.2", P "self_attn.v_proj.output"},
    {"layers.2.attention.qkv_linear.wqkv", ""}, /* group by group */
    {"layers.2.attention.q_norm", P "self_attn.q_norm.output"},
    {"layers.2.attention.k_norm", P "self_attn.k_norm.output"},
    {"layers.2.attention.rope.output.0", P "self_attn.q_rope.output"},
    {"layers.2.attention.rope.output.1", P "self_attn.k_rope.output"},
    {"layers.2.attention.inner_attention", P "self_attn.o_proj.input"},
    {"layers.2.attention.wo.input", P "self_attn.o_proj.input"},
    {"layers.2.attention.wo", P "self_attn.o_proj.output"},
    {"layers.2.attention", P "self_attn.o_proj.output"},
    {"layers.2.ffn_norm.input", P "post_attention_layernorm.input"},
    {"layers.2.ffn_norm", P "post_attention_layernorm.output"},
    {"layers.2.moe.router.gate", P "mlp.gate.output"},
    {"layers.2.moe.router.output.0", P "mlp.topk_weights.output"},
    {"layers.2.moe.router.output.1", P "mlp.topk_indices.output"},
    {"layers.2.moe.router.output.2", P "mlp.router_probs.output"},
    {"layers.2.moe.routed_experts.inner_experts", P "mlp.experts.down_proj.output"},
    {"layers.2.moe.routed_experts", P "mlp.output"},
    {"layers.2.moe", P "mlp.output"},
    {"layers.1.feed_forward.w1", "model.layers.1.mlp.gate_proj.output"},
    {"layers.1.feed_forward.w3", "model.layers.1.mlp.up_proj.output"},
    {"layers.1.feed_forward.w2.input", "model.layers.1.mlp.down_proj.input"},
    {"layers.1.feed_forward.w2", "model.layers.1.mlp.output"},
    {"layers.1.feed_forward", "model.layers.1.mlp.output"},
    /* keras-hub */
    {"transformer_layer_2.input", "model.layers.1.output"},
    {"transformer_layer_2/self_attention_layernorm.input", "model.layers.1.output"},
    {"transformer_layer_2/self_attention_layernorm", P "input_layernorm.output"},
    {"transformer_layer_2/self_attention/query", P "self_attn.q_proj.output"},
    {"transformer_layer_2/self_attention/key", P "self_attn.k_proj.output"},
    {"transformer_layer_2/self_attention/value", P "self_attn.v_proj.output"},
    {"transformer_layer_2/self_attention/query_dense_layernorm", P "self_attn.q_norm.output"},
    {"transformer_layer_2/self_attention/key_dense_layernorm", P "self_attn.k_norm.output"},
    {"transformer_layer_2/self_attention/rotary_embedding", ""}, /* called twice */
    {"transformer_layer_2/self_attention/attention_softmax", P "self_attn.probs.output"},
    {"transformer_layer_2/self_attention/attention_output.input", P "self_attn.o_proj.input"},
    {"transformer_layer_2/self_attention/attention_output", P "self_attn.o_proj.output"},
    {"transformer_layer_2/self_attention", P "self_attn.o_proj.output"},
    {"transformer_layer_2/feedforward_layernorm.input", P "post_attention_layernorm.input"},
    {"transformer_layer_2.feedforward_layernorm", P "post_attention_layernorm.output"},
    {"transformer_layer_2.mlp.sparse_feedforward_gate_dense", P "mlp.gate.output"},
    {"transformer_layer_2.mlp.output.0", P "mlp.output"},
    {"transformer_layer_2.mlp.output.1", P "mlp.gate.output"},
    {"transformer_layer_1/mlp/feedforward_gate_dense", "model.layers.1.mlp.gate_proj.output"},
    {"transformer_layer_1/mlp/feedforward_intermediate_dense",
     "model.layers.1.mlp.up_proj.output"},
    {"transformer_layer_1/mlp/feedforward_output_dense.input",
     "model.layers.1.mlp.down_proj.input"},
    {"transformer_layer_1/mlp/feedforward_output_dense", "model.layers.1.mlp.output"},
    {"transformer_layer_2", P "output"},
    {"sequence_output_layernorm.input", "model.layers.2.output"},
    {"sequence_output_layernorm", "model.norm.output"},
    {"token_embedding", ""}, /* the logits too */
    {"transformer_layer_2/mlp/experts", ""},
    /* tinygrad */
    {"token_embd", "model.embed_tokens.output"},
    {"blk.2.input", "model.layers.1.output"},
    {"blk.2.attn_norm.input", "model.layers.1.output"},
    {"blk.2.attn_norm", P "input_layernorm.output"},
    {"blk.2.attn_q", P "self_attn.q_proj.output"},
    {"blk.2.attn_k", P "self_attn.k_proj.output"},
    {"blk.2.attn_v", P "self_attn.v_proj.output"},
    {"blk.2.attn_q_norm", P "self_attn.q_norm.output"},
    {"blk.2.attn_k_norm", P "self_attn.k_norm.output"},
    {"blk.2.attn_output.input", P "self_attn.o_proj.input"},
    {"blk.2.attn_output", P "self_attn.o_proj.output"},
    {"blk.2.ffn_norm.input", P "post_attention_layernorm.input"},
    {"blk.2.ffn_norm", P "post_attention_layernorm.output"},
    {"blk.2.ffn_gate_inp", P "mlp.gate.output"},
    {"blk.2.ffn_gate_exps", P "mlp.experts.gate_proj.output"},
    {"blk.2.ffn_up_exps", P "mlp.experts.up_proj.output"},
    {"blk.2.ffn_down_exps", P "mlp.experts.down_proj.output"},
    {"blk.1.ffn_gate", "model.layers.1.mlp.gate_proj.output"},
    {"blk.1.ffn_up", "model.layers.1.mlp.up_proj.output"},
    {"blk.1.ffn_down.input", "model.layers.1.mlp.down_proj.input"},
    {"blk.1.ffn_down", "model.layers.1.mlp.output"},
    {"blk.2", P "output"},
    {"output_norm.input", "model.layers.2.output"},
    {"output_norm", "model.norm.output"},
    {"output", ""}, /* anybody's */
    {"blk.2.attn_q.weight", ""},
    /* meanings that are others, or not certain */
    {"kq-2", ""},
    {"ffn_moe_weighted-2", ""},
    {"norm-2", ""},
    {"norm", ""},
    {"Qcur-2 (reshaped)", ""},
    {"Qcur-02", ""},
    {"Qcur-", ""},
    {"Qcur", ""},
    {"Qcur--1", ""},
    {"Qcur-99999999999999999999999999", ""},
    {"kqv-2", ""},
    {"blocks.2.ln1.hook_normalized", ""},
    {"blocks.2.mlp.hook_expert_weights", ""},
    {"blocks.2", ""},
    {"model.layers.2.mlp.experts.5.gate_proj", ""},
    {"model.layers.2.self_attn.q_proj.weight", ""},
    {"model.layers.02.mlp", ""},
    {"model.layers.", ""},
    {"model", ""},
    {"", ""},
    {"Qwen3MoeForCausalLM.", ""},
    {"_outputs", ""},
    {"_inputs_args_0", ""},
    {"model.layers.2.mlp.output.output", ""},
    {"hidden_states.", ""},
    {"hidden_states.2.output", ""},
};

/* Without a model: what depends on one is unknown, the rest is as before. */
static const name_case without_model[] = {
    {"hidden_states.2", ""},
    {"hidden_states.0", ""},
    {"model.norm.input", ""},
    {"ffn_moe_weights-2", ""},
    {"router_logits.0", ""},
    {"model.layers.1.mlp.down_proj", ""},
    {"ffn_moe_weights_norm-2", P "mlp.topk_weights.output"},
    {"blocks.2.hook_resid_pre", "model.layers.1.output"},
    {"l_out-2", P "output"},
};

static void check_names(const name_case *list, size_t count, const q3_config *config)
{
    for (size_t i = 0; i < count; i++) {
        q3_alias alias;
        char got[3 * Q3_TAP_NAME_SIZE] = "", name[Q3_TAP_NAME_SIZE];
        if (q3_tap_alias(&alias, config, list[i].name))
            for (size_t k = 0; k < alias.count; k++) {
                q3_tap_name(name, (q3_tap_id)((size_t)alias.id + k), alias.layer);
                if (k > 0) strcat(got, " ");
                strcat(got, name);
            }
        CHECKF(strcmp(got, list[i].taps) == 0, "%s: got \"%s\", want \"%s\"", list[i].name, got,
               list[i].taps);
    }
}

/* Which of two names of a tap is preferred. */
static void check_weak(const q3_config *config)
{
    static const struct { const char *name; bool weak;
    } list[] = {
        {P "mlp.output", false},
        {P "mlp", false},
        {P "mlp.experts.output", true},
        {P "self_attn.output", true},
        {P "self_attn.o_proj", false},
        {"hidden_states.2", true},
        {"l_out-2", false},
        {P "input", true},
        {"blocks.2.hook_resid_pre", true},
        {"blocks.2.hook_resid_post", false},
        {"logits", true},
        {P "mlp.switch_mlp", false}, /* in the order of the slots */
        {P "mlp.switch_mlp.down_proj", true},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        q3_alias alias;
        CHECKF(q3_tap_alias(&alias, config, list[i].name) && alias.weak == list[i].weak, "%s",
               list[i].name);
    }
}

/* The names that are listed for a tap are those that are read as this tap, and every row of the
 * table is one of some tap's. */
static void check_listed(const q3_config *config)
{
    size_t L = config->num_hidden_layers, count = 0, parts = 0;
    for (int id = 0; id < Q3_TAP_COUNT; id++)
        for (size_t layer = 0; layer < L; layer++) {
            q3_other_name other;
            bool inside = q3_tap_in_layer((q3_tap_id)id);
            if (!q3_tap_exists(config, 0, L, (q3_tap_id)id, layer) || (!inside && layer > 0))
                continue;
            for (size_t i = 0; q3_other_name_at(&other, config, (q3_tap_id)id, layer, i); i++) {
                char name[300];
                const char *at = strchr(other.name, '#');
                q3_alias alias;
                CHECK((at != NULL) == other.numbered && other.system[0] != 0);
                snprintf(name, sizeof name, "%.*s", at != NULL ? (int)(at - other.name) : 200,
                         other.name);
                if (at != NULL)
                    snprintf(name + strlen(name), 100, "%zu%.80s", other.number, at + 1);
                CHECKF(q3_tap_alias(&alias, config, name) && alias.count == other.parts &&
                           alias.id + other.part == (size_t)id &&
                           (alias.layer == layer || !inside),
                       "%s", name);
                count++;
                parts += other.part > 0;
            }
        }
    CHECKF(count > 500 && parts > 10, "%zu names, %zu parts", count, parts);
}

/* hidden_states.3 is what follows the last norm, blocks.0.hook_resid_pre the embedding. */
static void check_listed_numbers(const q3_config *config)
{
    static const struct { q3_tap_id id; size_t layer; const char *name; size_t number; } list[] = {
        {Q3_TAP_EMBED_TOKENS, 0, "hidden_states.#", 0},
        {Q3_TAP_LAYER, 0, "hidden_states.#", 1},
        {Q3_TAP_NORM, 0, "hidden_states.#", 3},
        {Q3_TAP_EMBED_TOKENS, 0, "blocks.#.hook_resid_pre", 0},
        {Q3_TAP_LAYER, 1, "blocks.#.hook_resid_pre", 2},
        {Q3_TAP_LAYER, 1, "l_out-#", 1},
        {Q3_TAP_GATE, 2, "router_logits.#", 1},
        {Q3_TAP_LAYER, 2, "transformer.ln_f.input", 0},
    };
    for (size_t c = 0; c < sizeof list / sizeof list[0]; c++) {
        q3_other_name other;
        bool found = false;
        for (size_t i = 0;
             q3_other_name_at(&other, config, list[c].id, list[c].layer, i) && !found; i++)
            found = strcmp(other.name, list[c].name) == 0 &&
                    (!other.numbered || other.number == list[c].number);
        CHECKF(found, "%s", list[c].name);
    }
}

/* A name longer than any that is known. */
static void check_long(const q3_config *config)
{
    char name[1000] = "model.layers.2.mlp.";
    q3_alias alias;
    for (size_t n = strlen(name); n < sizeof name - 1; n++) {
        name[n] = 'x';
        name[n + 1] = 0;
        CHECK(!q3_tap_alias(&alias, config, name));
    }
}

int main(void)
{
    static const size_t dense[] = {1};
    q3_config config = {.num_hidden_layers = 3, .num_experts = 4, .num_experts_per_tok = 2,
                        .decoder_sparse_step = 1, .norm_topk_prob = true, .mlp_only_layers = dense,
                        .mlp_only_count = 1};
    static const name_case not_renormalised[] = {
        {"ffn_moe_weights-2", P "mlp.topk_weights.output"}};
    check_names(cases, sizeof cases / sizeof cases[0], &config);
    check_names(without_model, sizeof without_model / sizeof without_model[0], NULL);
    check_weak(&config);
    check_long(&config);
    check_listed(&config);
    check_listed_numbers(&config);
    config.norm_topk_prob = false;
    check_names(not_renormalised, 1, &config);
    return t_done("names");
}
