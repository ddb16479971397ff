# SPDX-License-Identifier: MIT
"""torchtitan's recorder for wild.py: every module's output, and some inputs, by torchtitan's own names.

  python3 scripts/detect/wild_torchtitan.py MODEL OUT.safetensors --tokens 1,2,3 [--dtype float32]

The model is what torchtitan's own function makes of Qwen3's sizes (models/qwen3/__init__.py), with the weights that
its own adapter makes of MODEL's. In place of flex_attention, which wants a compiler, it has torchtitan's
ScaledDotProductAttention. eps and norm_topk_prob are fixed there. Needs torch, torchtitan 0.3.0 and what it
imports (wild.py says how to install it).
"""

import argparse
import contextlib
import json
import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "record"))
import taps
import torch
from safetensors.torch import load_file

TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32"}
INPUTS = ("wo", "ffn_norm", "w2")  # whose input is a tensor that nothing else gives


class RecordError(Exception):
    """One line for the user."""


def rope_of(config):
    from torchtitan.models.common.rope import CosSinRoPE
    rope = config.get("rope_scaling") or {}
    kind = rope.get("rope_type", "default")
    more = {}
    if kind == "yarn":
        more = {"scaling": "yarn", "rope_factor": rope["factor"], "beta_fast": rope.get("beta_fast", 32.0),
                "beta_slow": rope.get("beta_slow", 1.0),
                "original_seq_len": rope.get("original_max_position_embeddings", config["max_position_embeddings"])}
    elif kind != "default":
        raise RecordError(f"rope_type: found {kind}, expected default or yarn, as CosSinRoPE has them")
    return CosSinRoPE.Config(dim=config["head_dim"], max_seq_len=4096, theta=config["rope_theta"], **more)


def load(folder, dtype):
    import torchtitan.models.qwen3 as titan
    from torchtitan.models.common import Embedding, Linear
    from torchtitan.models.common.attention import ScaledDotProductAttention
    with open(os.path.join(folder, "config.json")) as f:
        config = taps.to_4x(json.load(f))
    if config.get("mlp_only_layers") or config.get("use_sliding_window"):
        raise RecordError("mlp_only_layers, sliding_window: found them, expected a model without")
    titan.get_attention_config = lambda backend: ScaledDotProductAttention.Config()
    size, init = config["hidden_size"], titan._LINEAR_INIT
    plan = titan.Qwen3Model.Config(
        vocab_size=config["vocab_size"], dim=size, norm=titan._qwen3_norm(size),
        enable_weight_tying=config["tie_word_embeddings"],
        tok_embeddings=Embedding.Config(num_embeddings=config["vocab_size"], embedding_dim=size, param_init=init),
        lm_head=Linear.Config(in_features=size, out_features=config["vocab_size"], param_init=init),
        layers=titan._build_qwen3_moe_layers(
            n_layers=config["num_hidden_layers"], dim=size, n_heads=config["num_attention_heads"],
            n_kv_heads=config["num_key_value_heads"], head_dim=config["head_dim"],
            moe_hidden_dim=config["moe_intermediate_size"], num_experts=config["num_experts"],
            top_k=config["num_experts_per_tok"], fuse_qkv=False, attn_backend="sdpa", moe_comm_backend="standard",
            rope=rope_of(config)))
    model = plan.build()
    weights = titan.Qwen3StateDictAdapter(plan, None).from_hf(load_file(os.path.join(folder, "model.safetensors")))
    missing = [k for k in model.load_state_dict(weights, strict=False).missing_keys if "expert_bias" not in k
               and "tokens_per_expert" not in k]
    if missing:
        raise RecordError(f"weights: found none for {missing[0]}")
    return model.to(dtype).eval(), config


class Recorder:
    def __init__(self, model):
        self.tensors = {}
        for name, module in model.named_modules():
            if name and "token_dispatcher" not in name:
                module.register_forward_hook(lambda m, args, y, name=name: self.see(name, args, y))

    def see(self, name, args, result):
        values = result if isinstance(result, tuple) else (result,)
        for i, value in enumerate(values):
            self.keep(name + ".output" + (f".{i}" if i else ""), value)
        if name.rpartition(".")[2] in INPUTS:
            self.keep(name + ".input", args[0])

    def keep(self, name, value):
        if isinstance(value, torch.Tensor) and value.dtype in TYPES and value.dim() > 0:
            self.tensors[name] = value.detach().clone().contiguous()


def as_bytes(value):
    return TYPES[value.dtype], value.shape, value.reshape(-1).view(torch.uint8).numpy().tobytes()


def main():
    parser = argparse.ArgumentParser(description="Records a torchtitan run for qwen3moe check.")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--tokens", type=taps.token_ids, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    try:
        with open(os.path.join(options.model, "config.json")) as f:
            dtype = options.dtype or taps.to_4x(json.load(f)).get("torch_dtype", "float32")
        with contextlib.redirect_stdout(sys.stderr):
            model, config = load(options.model, getattr(torch, dtype))
        ids = torch.tensor([options.tokens])
        positions = torch.arange(len(options.tokens))[None]
        with torch.no_grad():
            plain = model(ids, positions)
            recorder = Recorder(model)
            logits = model(ids, positions)
        if not torch.equal(plain.view(torch.uint8), logits.view(torch.uint8)):
            raise RecordError("the logits have other bits with the hooks than without")
        recorder.tensors["input_ids"] = ids[0]
        taps.write(options.out, {name: as_bytes(value) for name, value in recorder.tensors.items()},
                   taps.metadata("torchtitan", dtype, 0, config))
    except (RecordError, OSError, KeyError, RuntimeError, ValueError, NotImplementedError) as problem:
        kind = "" if isinstance(problem, RecordError) else type(problem).__name__ + ": "
        print(f"wild_torchtitan.py: {kind}{str(problem).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
