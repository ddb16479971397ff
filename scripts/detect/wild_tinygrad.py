# SPDX-License-Identifier: MIT
"""Records what tinygrad's tinygrad.llm computes, for scripts/detect/wild.py.

  python3 scripts/detect/wild_tinygrad.py MODEL OUT.safetensors --tokens 1,2,3

Needs tinygrad 0.14.0, gguf 0.19.0, numpy and clang. The folder is written as GGUF with llama.cpp's names, as its
converter does, and loaded by tinygrad's own loader. Each step is watched by a wrapper around the function or class
that makes it, and every tensor is realised; a block is run as it is, not compiled as a whole, so that what tinygrad
fuses in a real run is not fused here. Its 0.14.0 wheel has no tinygrad/llm/kernels, which tinygrad/llm/model.py
imports: a stand-in gives it tinygrad.nn's Linear and no kernels for AMD cards.
"""

import argparse
import json
import os
import sys
import tempfile
import types

import gguf
import numpy as np

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "record"))
import taps

LAYER = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp"}
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}


def read_weights(path):
    """The tensors of a safetensors file as float32."""
    from safetensors import safe_open
    with safe_open(path, "np") as f:
        return {name: f.get_tensor(name).astype(np.float32) for name in f.keys()}


def write_gguf(path, c, weights):
    g = gguf.GGUFWriter(path, "qwen3moe")
    g.add_context_length(64)
    g.add_embedding_length(c["hidden_size"])
    g.add_block_count(c["num_hidden_layers"])
    g.add_feed_forward_length(c["intermediate_size"])
    g.add_head_count(c["num_attention_heads"])
    g.add_head_count_kv(c["num_key_value_heads"])
    g.add_key_length(c["head_dim"])
    g.add_value_length(c["head_dim"])
    g.add_layer_norm_rms_eps(c["rms_norm_eps"])
    g.add_rope_freq_base(c["rope_theta"])
    g.add_expert_count(c["num_experts"])
    g.add_expert_used_count(c["num_experts_per_tok"])
    g.add_expert_feed_forward_length(c["moe_intermediate_size"])
    g.add_expert_weights_norm(c["norm_topk_prob"])
    rope = c.get("rope_scaling")
    if rope:
        kinds = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
        g.add_rope_scaling_type(kinds[rope["rope_type"]])
        g.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            g.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    g.add_token_list([f"t{i}" for i in range(c["vocab_size"])])
    g.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    g.add_tensor("output_norm.weight", weights["model.norm.weight"])
    if not c["tie_word_embeddings"]:
        g.add_tensor("output.weight", weights["lm_head.weight"])
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for ours, theirs in LAYER.items():
            for part in ("weight", "bias"):
                if f"{p}{ours}.{part}" in weights:
                    g.add_tensor(f"blk.{i}.{theirs}.{part}", weights[f"{p}{ours}.{part}"])
        for theirs, ours in EXPERTS.items():
            g.add_tensor(f"blk.{i}.{theirs}.weight", np.stack(
                [weights[f"{p}mlp.experts.{e}.{ours}.weight"] for e in range(c["num_experts"])]))
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()


def stand_in():
    """tinygrad.llm.kernels.amd, which the wheel lacks."""
    from tinygrad import nn
    package, module = types.ModuleType("tinygrad.llm.kernels"), types.ModuleType("tinygrad.llm.kernels.amd")
    module.Linear, module.amd_custom_kernels_supported = nn.Linear, lambda device: False
    module.flash_attention = module.gated_delta_prefill = None
    sys.modules.setdefault(package.__name__, package)
    sys.modules.setdefault(module.__name__, module)


class Recorder:
    """Wrappers around tinygrad.llm.model's steps."""

    def __init__(self, file, model):
        self.file, self.tensors, self.layer = file, {}, ""
        self.names = {id(model.output_norm): ("model.norm.output", None), id(model.output): ("lm_head.output", None)}
        self.linear = sys.modules["tinygrad.llm.kernels.amd"].Linear
        for i, block in enumerate(model.blk):
            p = f"model.layers.{i}."
            for ours, theirs in LAYER.items():
                inputs = {"attn_output": "self_attn.o_proj.input", "ffn_norm": "post_attention_layernorm.input"}
                tap = inputs.get(theirs)
                self.names[id(getattr(block, theirs))] = f"{p}{ours}.output", tap and p + tap
            for theirs, ours in EXPERTS.items():
                tap = p + "mlp.experts.down_proj.input" if ours == "down_proj" else None
                self.names[id(getattr(block, theirs))] = f"{p}mlp.experts.{ours}.output", tap
        for cls in (self.linear, file.nn.RMSNorm, file.ExpertWeights):
            self.wrap_call(cls)
        self.wrap("apply_rope", self.see_rope)
        self.wrap("pairwise_topk", lambda y: self.keep(self.layer + "mlp.topk_indices.output", y[1]))
        file.function = lambda **options: lambda f: f

    def wrap_call(self, cls):
        call = cls.__call__

        def called(module, *args):
            y = call(module, *args)
            tap, before = self.names.get(id(module), (None, None))
            if before:
                self.keep(before, args[-1])
            if tap:
                heads = tap.endswith(("q_norm.output", "k_norm.output"))
                self.keep(tap, y.transpose(1, 2) if heads else y)
            return y

        cls.__call__ = called

    def wrap(self, name, see):
        original = getattr(self.file, name)

        def wrapper(*args):
            y = original(*args)
            see(y)
            return y

        setattr(self.file, name, wrapper)

    def see_rope(self, y):
        tap = self.layer + "self_attn.q_rope.output"
        self.keep(tap.replace("q_rope", "k_rope") if tap in self.tensors else tap, y.transpose(1, 2))

    def keep(self, tap, value):
        self.tensors[tap] = value[0].contiguous()


def run(file, model, ids):
    from tinygrad import Tensor
    recorder = Recorder(file, model)
    recorder.keep("model.embed_tokens.output", x := model.token_embd(Tensor([ids])).float())
    for i, block in enumerate(model.blk):
        recorder.layer = f"model.layers.{i}."
        feed_forward = block._feed_forward
        block._feed_forward = lambda h, f=feed_forward, p=recorder.layer: kept(recorder, p + "mlp.output", f(h))
        x = kept(recorder, recorder.layer + "output", block(x, 0))
    model.output(model.output_norm(x))
    Tensor.realize(*recorder.tensors.values())
    return {tap: value.numpy() for tap, value in recorder.tensors.items()}


def kept(recorder, tap, value):
    recorder.keep(tap, value)
    return value


def main():
    parser = argparse.ArgumentParser(description="Records a tinygrad run for qwen3moe check.")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--tokens", type=taps.token_ids, required=True)
    options = parser.parse_args()
    stand_in()
    import tinygrad.llm.model as file
    with open(os.path.join(options.model, "config.json")) as f:
        config = json.load(f)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.gguf")
        write_gguf(path, config, read_weights(os.path.join(options.model, "model.safetensors")))
        model, _ = file.Transformer.from_gguf(path, max_context=64, realize=True)
        tensors = run(file, model, options.tokens)
    tensors["input_ids"] = np.array(options.tokens, dtype=np.int32)
    types_of = {"float32": "F32", "float16": "F16", "int32": "I32"}
    taps.write(options.out, {tap: (types_of[value.dtype.name], value.shape, np.ascontiguousarray(value).tobytes())
                             for tap, value in tensors.items()}, taps.metadata("tinygrad", "float32", 0, config))


if __name__ == "__main__":
    main()
