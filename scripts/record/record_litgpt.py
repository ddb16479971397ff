# SPDX-License-Identifier: MIT
"""Records what litgpt computes, by Hugging Face's names, for `qwen3moe check`.

    from record_litgpt import record
    with record(model, "backend.safetensors", config):
        model(torch.tensor([ids]))

model is a litgpt.model.GPT; config the config.json of the Hugging Face model that it was made of, a dictionary.
Needs torch, litgpt 0.5.13, and taps.py beside this file. From the command line, a Hugging Face folder is converted
by litgpt's own converter first:

  python3 scripts/record/record_litgpt.py MODEL OUT.safetensors --tokens 1,2,3 [--dtype float32] [--mscale]

litgpt does not read config.json: what its Config says in its place is in `lit_config`; --mscale sets the key of
rope_adjustments that scales YaRN's cos and sin, which litgpt leaves out otherwise. One call of the model, batch of
one. Scores, probabilities and router_probs are not there to be seen (fused attention; the softmax is over the
chosen experts alone). The command line runs the model twice, with and without this, and the logits must have the
same bits.
"""

import argparse
import contextlib
import json
import os
import re
import sys

import torch
from torch.overrides import TorchFunctionMode, resolve_name

import taps

TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32"}
BLOCK = re.compile(r"transformer\.h\.(\d+)(?:\.(.+))?$")
EXPERT = re.compile(r"mlp\.experts\.\d+(?:\.(.+))?$")

# litgpt's modules in a block, and what their output is called; with False: their input.
NAMES = {"norm_1": ("input_layernorm.output", True), "attn.qkv": ("self_attn.qkv_proj.output", True),
         "attn.proj": ("self_attn.o_proj.input", False), "norm_2": ("post_attention_layernorm.input", False),
         "mlp.proj": ("mlp.down_proj.input", False)}
MORE = {"attn.norm_q": "self_attn.q_norm.output", "attn.norm_k": "self_attn.k_norm.output",
        "attn.proj": "self_attn.o_proj.output", "norm_2": "post_attention_layernorm.output",
        "mlp.gate": "mlp.gate.output", "mlp.fc_1": "mlp.gate_proj.output", "mlp.fc_2": "mlp.up_proj.output",
        "mlp": "mlp.output", None: "output"}
ENDS = {"transformer.wte": "model.embed_tokens.output", "transformer.ln_f": "model.norm.output",
        "lm_head": "lm_head.output"}
STEPS = {"fc_1": "gate_proj.output", "fc_2": "up_proj.output", "proj": "down_proj.output"}


class RecordError(Exception):
    """One line for the user."""


class Inside(TorchFunctionMode):
    """Shows see(name, arguments, result) each torch function that is called."""

    def __init__(self, see):
        super().__init__()
        self.see = see

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.see((resolve_name(function) or "").rpartition(".")[2], args, result)
        return result


class Recorder:
    """The hooks on one model, and what they saw."""

    def __init__(self, model):
        self.tensors, self.undo = {}, []
        self.prefix = ""   # model.layers.i. of the block that runs
        self.ids = self.weights = self.slots = None  # of the block's experts
        for name, module in model.named_modules():
            block = BLOCK.match(name)
            if block:
                self.hook_in_block(f"model.layers.{block[1]}.", block[2], module)
            elif name in ENDS:
                self.after(module, lambda y, tap=ENDS[name]: self.keep(tap, y))
        self.before(model, self.begin)
        self.wrap_rope(sys.modules[type(model).__module__])

    def after(self, module, act):
        self.undo.append(module.register_forward_hook(lambda m, args, y: act(y)).remove)

    def before(self, module, act):
        self.undo.append(module.register_forward_pre_hook(lambda m, args: act(*args)).remove)

    def hook_in_block(self, p, rest, module):
        expert = EXPERT.match(rest or "")
        if expert:
            self.hook_expert(p + "mlp.experts.", expert[1], module)
            return
        if rest is None:
            self.before(module, lambda x, cos, sin, *more: self.see_block(p, cos, sin))
        if rest in NAMES:
            tap, output = NAMES[rest]
            (self.after if output else self.before)(module, lambda x: self.keep(p + tap, x))
        if rest in MORE:
            heads = rest in ("attn.norm_q", "attn.norm_k")
            self.after(module, lambda y: self.keep(p + MORE[rest], y.transpose(1, 2) if heads else y))
        if rest == "mlp":
            self.watch(module)

    def hook_expert(self, p, rest, module):
        if rest in STEPS:
            self.after(module, lambda y: self.fill(p + STEPS[rest], y))
        if rest == "proj":
            self.before(module, lambda x: self.fill(p + "down_proj.input", x))

    def watch(self, module):
        """Looks at the torch functions that a block's mlp calls."""
        forward = module.forward

        def watched(x):
            with Inside(self.see):
                return forward(x)

        module.forward = watched
        self.undo.append(lambda: module.__dict__.pop("forward"))

    def wrap_rope(self, file):
        original = file.apply_rope

        def wrapper(x, cos, sin):
            y = original(x, cos, sin)
            tap = self.prefix + "self_attn.q_rope.output"
            tap = tap.replace("q_rope", "k_rope") if tap in self.tensors else tap
            self.keep(tap, y.transpose(1, 2))
            return y

        file.apply_rope = wrapper
        self.undo.append(lambda: setattr(file, "apply_rope", original))

    # ---- what they see

    def begin(self, ids, *more):
        if self.tensors or ids.shape[0] != 1:
            raise RecordError(f"found {'a second call' if self.tensors else 'a batch'}, expected one call of one")
        self.keep("input_ids", ids.to(torch.int32))

    def see_block(self, p, cos, sin):
        self.prefix = p
        self.tensors.setdefault("model.rotary_emb.cos", cos[0].clone())
        self.tensors.setdefault("model.rotary_emb.sin", sin[0].clone())

    def see(self, name, args, result):
        p = self.prefix + "mlp."
        if name == "topk":
            self.ids = result[1]
            self.keep(p + "topk_indices.output", result[1].to(torch.int32))
        elif name == "softmax":
            self.weights = result
        elif name == "to" and args[0] is self.weights:
            self.keep(p + "topk_weights.output", result)
        elif name == "where" and len(args) == 1:
            token, place = result
            self.slots = token * self.ids.shape[1] + place
        elif name == "silu":
            if p + "topk_indices.output" in self.tensors:
                self.fill(p + "experts.act_fn.output", result)
            else:
                self.keep(p + "act_fn.output", result)

    def keep(self, tap, value):
        """Without batch axis, where it has one."""
        value = value[0] if value.dim() > 1 and value.shape[0] == 1 else value
        self.tensors[tap] = value.detach().clone().contiguous()

    def fill(self, tap, value):
        """The rows of one expert: each goes to its token and place."""
        shape = *self.ids.shape, value.shape[-1]
        if tap not in self.tensors:
            self.tensors[tap] = torch.full(shape, float("nan"), dtype=value.dtype)
        self.tensors[tap].view(-1, shape[-1])[self.slots] = value.detach()


def as_bytes(tap, value):
    if value.dtype not in TYPES:
        raise RecordError(f"{tap}: found {value.dtype}, expected one of {', '.join(TYPES.values())}")
    return TYPES[value.dtype], value.shape, value.reshape(-1).view(torch.uint8).numpy().tobytes()


@contextlib.contextmanager
def record(model, path, config=None):
    """Records the call of the model inside the block, and writes the file at its end."""
    recorder = Recorder(model)
    try:
        yield recorder
    finally:
        for undo in reversed(recorder.undo):
            undo()
    dtype = str(recorder.tensors["model.embed_tokens.output"].dtype).rpartition(".")[2]
    taps.write(path, {tap: as_bytes(tap, value) for tap, value in recorder.tensors.items()},
               taps.metadata("litgpt", dtype, 0, config))


# ---- command line -------------------------------------------------------------------------------


def rope_adjustments(config, mscale):
    rope = config.get("rope_scaling") or {}
    kind = rope.get("rope_type", "default")
    length = rope.get("original_max_position_embeddings", config["max_position_embeddings"])
    if kind == "yarn":
        found = {"factor": rope["factor"], "beta_fast": rope.get("beta_fast", 32.0),
                 "beta_slow": rope.get("beta_slow", 1.0), "original_max_seq_len": length}
        return {**found, "mscale": 1.0} if mscale else found
    if kind == "llama3":
        return {"factor": rope["factor"], "low_freq_factor": rope["low_freq_factor"],
                "high_freq_factor": rope["high_freq_factor"], "original_max_seq_len": length}
    if kind == "linear":
        return {"factor": rope["factor"]}
    if kind != "default":
        raise RecordError(f"rope_type: found {kind}, expected what litgpt has")
    return None


def lit_config(config, mscale=False):
    """litgpt's Config for a Hugging Face config.json: the keys of its own Qwen3-30B-A3B."""
    from litgpt.config import Config
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise RecordError("mlp_only_layers, decoder_sparse_step: found dense layers, expected none")
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    return Config(
        name="Qwen3-30B-A3B", block_size=config["max_position_embeddings"], head_size=config["head_dim"],
        vocab_size=config["vocab_size"], padded_vocab_size=config["vocab_size"],
        n_layer=config["num_hidden_layers"], n_head=config["num_attention_heads"], n_embd=config["hidden_size"],
        n_query_groups=config["num_key_value_heads"], rotary_percentage=1.0, parallel_residual=False, bias=False,
        attn_bias=config.get("attention_bias", False), norm_class_name="RMSNorm", mlp_class_name="LLaMAMoE",
        intermediate_size=config["intermediate_size"], moe_intermediate_size=config["moe_intermediate_size"],
        norm_eps=config["rms_norm_eps"], rope_base=config["rope_theta"], norm_qk=True,
        n_expert=config["num_experts"], n_expert_per_token=config["num_experts_per_tok"],
        norm_topk_prob=config.get("norm_topk_prob", False), sliding_window_size=window,
        rope_adjustments=rope_adjustments(config, mscale))


def load(folder, dtype, mscale):
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_qwen_3
    from safetensors.torch import load_file
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    lit, weights = lit_config(config, mscale), {}
    copy_weights_qwen_3(lit, {}, weights, load_file(os.path.join(folder, "model.safetensors")), debug_mode=True)
    model = GPT(lit)
    model.load_state_dict(weights)
    return model.to(dtype).eval(), config


def main():
    parser = argparse.ArgumentParser(description="Records a litgpt run for qwen3moe check.")
    parser.add_argument("model", help="a Hugging Face folder with one model.safetensors")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--tokens", type=taps.token_ids, required=True, help="1,2,3")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the config's")
    parser.add_argument("--mscale", action="store_true", help="YaRN with rope_adjustments' mscale 1")
    options = parser.parse_args()
    try:
        with open(os.path.join(options.model, "config.json")) as f:
            dtype = options.dtype or taps.to_4x(json.load(f)).get("torch_dtype", "float32")
        with contextlib.redirect_stdout(sys.stderr):
            model, config = load(options.model, getattr(torch, dtype), options.mscale)
        taps.check_ids(options.tokens, config["vocab_size"])
        ids = torch.tensor([options.tokens])
        with torch.no_grad():
            plain = model(ids)
            with record(model, options.out, config):
                logits = model(ids)
        if not torch.equal(plain.view(torch.uint8), logits.view(torch.uint8)):
            raise RecordError("the logits have other bits with the hooks than without")
    except (RecordError, OSError, KeyError, RuntimeError, ValueError) as problem:
        kind = "" if isinstance(problem, RecordError) else type(problem).__name__ + ": "
        print(f"record_litgpt.py: {kind}{str(problem).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
