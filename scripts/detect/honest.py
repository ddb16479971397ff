# SPDX-License-Identifier: MIT
"""Honest backends: dumps that `qwen3moe check` must not blame.

  python3 scripts/detect/honest.py OUT [--v4 PYTHON] [--llamacpp PYTHON]   OUT/NAME.safetensors and OUT/list.json
  python3 scripts/detect/honest.py golden/h100 --cuda                      makes golden/h100, on a machine with one

list.json: [{"name", "model" (a folder), "file", "options" (of check), "why"}]. Needs what record_hf.py and
hf_taps.py need, and a C++ compiler for torch.compile. --v4: a Python with transformers 4.57.6; --llamacpp: one
with llama-cpp-python and gguf; without them, their backends are left out, and that is said.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile

# Nothing that an earlier process compiled, for other instructions maybe, is taken for this one's.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers.models.qwen3_moe import modeling_qwen3_moe as modeling

ROOMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path[1:1] = [os.path.join(ROOMS, room) for room in ("golden", "record")]
import hf_taps
import make_golden
import record_hf
import rule

torch.use_deterministic_algorithms(False)  # hf_taps asks for them; these backends run as they come

RECORD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "record")
GOLDEN = os.path.join(RECORD, "..", "..", "golden")
TINY = os.path.join(GOLDEN, "tiny")

# Long sums, for the GPU: its kernels split them.
LONG = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu",
        "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 32, "hidden_size": 768,
        "intermediate_size": 64, "max_position_embeddings": 4096, "mlp_only_layers": [],
        "moe_intermediate_size": 64, "norm_topk_prob": True, "num_attention_heads": 4, "num_experts": 8,
        "num_experts_per_tok": 3, "num_hidden_layers": 1, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 40}


def write_model(folder, config, weights):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
    save_file({name: value.contiguous() for name, value in weights.items()},
              os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    return folder


def write_edge(folder):
    """tiny with gate projections 60 times as large: many a gate lies where float32's exp(-x) overflows."""
    with open(os.path.join(TINY, "config.json")) as f:
        config = json.load(f)
    weights = load_file(os.path.join(TINY, "model.safetensors"))
    return write_model(folder, config, {name: value * 60 if name.endswith("gate_proj.weight") else value
                                        for name, value in weights.items()})


def ids_by_rule(name, count, vocab):
    return (rule.bits(rule.key(name, "honest"), 0, count) % vocab).astype("int64").tolist()


def load(folder, dtype, attn="eager", experts="eager", device="cpu"):
    return record_hf.load(argparse.Namespace(model=folder, dtype=dtype, attn=attn, experts=experts, device=device))


def tiny_ids(count):
    """The text whose taps are in golden/hf/tiny."""
    path = os.path.join(GOLDEN, "hf", "tiny", "taps-bfloat16.safetensors")
    return hf_taps.read_tensors(path)[0]["input_ids"].tolist()[:count]


# ---- golden/h100 --------------------------------------------------------------------------------

CUDA_RUNS = {  # name: dtype, attention, experts, TF32
    "bf16-eager": ("bfloat16", "eager", "eager", False),
    "bf16-grouped": ("bfloat16", "sdpa", "grouped_mm", False),
    "f16-sdpa": ("float16", "sdpa", "eager", False),
    "f32": ("float32", "eager", "eager", False),
    "f32-tf32": ("float32", "eager", "eager", True),
}


def small(tap):
    """tiny has five layers: of three of them only output and routing, to keep the files small."""
    match = record_hf.LAYER.search(tap)
    return (match is None or int(match[1]) < 2
            or match[2] in ("output", "mlp.gate.output", "mlp.topk_indices.output"))


def write_long(folder):
    return write_model(folder, LONG, hf_taps.rule_checkpoint(LONG, "long"))


def make_cuda(out):
    os.makedirs(out, exist_ok=True)
    producer = f"transformers {hf_taps.transformers.__version__}, torch {torch.__version__}, "
    producer += torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as temporary:
        prompts = {"tiny": (TINY, tiny_ids(6)), "long": (write_long(temporary), ids_by_rule("long", 5, 40))}
        for model, (folder, ids) in prompts.items():
            for name, (dtype, attn, experts, tf32) in CUDA_RUNS.items():
                torch.backends.cuda.matmul.allow_tf32 = tf32
                path = os.path.join(out, f"{model}-{name}.safetensors")
                record_hf.record_unchanged(load(folder, dtype, attn, experts, "cuda"), path, ids, wanted=small,
                                           producer=producer)


# ---- backends made here -------------------------------------------------------------------------


class Linear:
    """Linear maps in another honest way: the sum over K in pieces, partial sums added in float32, one rounding."""

    def __init__(self, piece):
        self.piece = piece

    def __call__(self, x, weight, bias=None):
        total = 0
        for at in range(0, x.shape[-1], self.piece):
            part = slice(at, at + self.piece)
            total = total + x[..., part].float() @ weight[..., part].float().T
        if bias is not None:
            total = total + bias.float()
        return total.to(x.dtype)


@contextlib.contextmanager
def replaced(place, name, value):
    old = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, old)


def compiled_parts(model):
    """torch.compile of each norm, attention and mlp: what enters and leaves them can be seen."""
    for layer in model.model.layers:
        for module in (layer.input_layernorm, layer.self_attn, layer.post_attention_layernorm, layer.mlp):
            module.forward = torch.compile(module.forward)
    return model


def compiled_layers(model):
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward)
    return model


def combine_in_float32(self, x, ids, weights):
    """Experts whose weighted sum is float32 until its one rounding, and whose silu(gate)*up is rounded once."""
    total = torch.zeros(x.shape, dtype=torch.float32)
    for token in range(x.shape[0]):
        for e, weight in zip(ids[token].tolist(), weights[token]):
            gate, up = F.linear(x[token], self.gate_up_proj[e]).chunk(2, dim=-1)
            product = (F.silu(gate.float()) * up.float()).to(x.dtype)
            total[token] += F.linear(product, self.down_proj[e]).float() * weight.float()
    return total.to(x.dtype)


def permute_experts(model):
    """The same function with the experts stored in another order: at e the model's expert order[e]."""
    n = model.config.num_experts
    order = torch.tensor([(5 * e + 3) % n for e in range(n)])
    assert sorted(order.tolist()) == list(range(n))
    for mlp in (layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "experts")):
        for weight in (mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj):
            weight.data = weight.data[order]
    return order


def map_back(path, order):
    """The dump of a permuted model, with the ids that the model's own folder has."""
    tensors, metadata = hf_taps.read_tensors(path)
    for tap, value in tensors.items():
        if tap.endswith("topk_indices.output"):
            tensors[tap] = order[value]
        if tap.endswith(("mlp.gate.output", "router_probs.output")):
            back = torch.empty_like(value)
            back[:, order] = value
            tensors[tap] = back
    record_hf.taps.write(path, {tap: record_hf.as_bytes(tap, value) for tap, value in tensors.items()}, metadata)


class Bench:
    """Makes the dumps, one after another."""

    def __init__(self, out, v4, llamacpp):
        self.out, self.v4, self.llamacpp, self.list, self.models = out, v4, llamacpp, [], {}

    def folder(self, model):
        """Of golden/tiny, of golden/tiny without its dense layer, of a case of golden/hf, of LONG, of the edge."""
        if model == "tiny":
            return TINY
        if model not in self.models:
            folder = self.models[model] = os.path.join(self.out, "models", model)
            os.makedirs(folder, exist_ok=True)
            own = {"long": write_long, "tiny-edge": write_edge}.get(model)
            own(folder) if own else make_golden.write_model(folder, model)
        return self.models[model]

    def prompt(self, model, tokens):
        """The text for golden/tiny's first; else ids by rule, where experts may nearly tie."""
        if model.startswith("tiny") and tokens <= 24:
            return tiny_ids(tokens)
        with open(os.path.join(self.folder(model), "config.json")) as f:
            return ids_by_rule(model, tokens, json.load(f)["vocab_size"])

    def add(self, name, model, why, options=(), file=None):
        file = file or os.path.join(self.out, name + ".safetensors")
        self.list.append({"name": name, "model": os.path.abspath(self.folder(model)),
                          "file": os.path.abspath(file), "options": list(options), "why": why})
        return file

    def hf(self, name, model, dtype, why, tokens=20, attn="eager", experts="eager", change=None, **more):
        path = self.add(name, model, why)
        loaded = load(self.folder(model), dtype, attn, experts)
        loaded = change(loaded) if change else loaded
        record_hf.record_unchanged(loaded, path, self.prompt(model, tokens), **more)
        return path

    def other(self, python, script, name, model, why, options, more, tokens=20):
        """By another Python, if it was named."""
        if python:
            ids = ",".join(map(str, self.prompt(model, tokens)))
            path = self.add(name, model, why, options)
            script = os.path.join(RECORD, script)
            subprocess.run([python, script, self.folder(model), path, "--tokens", ids, *more], check=True)
        else:
            print(f"honest.py: {name}: left out, its Python was not named")

    # ---- the list

    def transformers(self):
        for dtype in hf_taps.DTYPES:
            self.hf(f"eager-{dtype}", "tiny", dtype, "eager, a text", 24)
            self.hf(f"eager-ids-{dtype}", "tiny", dtype, "eager, random ids, more tokens", 40)
        for model in ("base", "window", "wide-router", "no-renormalise", "rope-yarn", "bias", "long"):
            self.hf(f"eager-{model}", model, "bfloat16", "eager, random weights and ids")
        for dtype in ("bfloat16", "float32"):
            self.hf(f"sdpa-{dtype}", "tiny", dtype, "fused attention", attn="sdpa")
            self.hf(f"layers-{dtype}", "tiny", dtype, "layer outputs alone", wanted=record_hf.layers_only)
            self.hf(f"cached-{dtype}", "tiny", dtype, "token by token with a cache", chunk=1)
        self.hf("chunks", "base", "bfloat16", "chunks of a prompt with a cache", attn="sdpa", chunk=7)
        self.hf("grouped-tiny", "tiny", "bfloat16", "the library's defaults", attn="sdpa", experts="grouped_mm")
        self.hf("grouped-long", "long", "bfloat16", "grouped_mm, long sums", attn="sdpa", experts="grouped_mm")
        self.hf("batched", "tiny", "bfloat16", "batched_mm", experts="batched_mm")
        for threads in (1, 2):
            torch.set_num_threads(threads)
            self.hf(f"threads-{threads}", "long", "float32", f"{threads} threads", tokens=64, attn="sdpa")

    def edge(self):
        """Gates between -88.72, where exp(-x) overflows and torch gives -0, and -104."""
        hidden = ("mlp.act_fn.output", "mlp.experts.act_fn.output")
        for dtype in hf_taps.DTYPES:
            path = self.hf(f"edge-{dtype}", "tiny-edge", dtype, "gates where silu's exp overflows")
            self.hf(f"edge-fused-{dtype}", "tiny-edge", dtype, "the same, silu hidden in the product",
                    wanted=lambda tap: not tap.endswith(hidden))
            taps, _ = hf_taps.read_tensors(path)
            lost = sum(int(((x > -104) & (x < -88.73)).sum()) for tap, x in taps.items() if "gate_proj" in tap)
            assert lost > 100, lost

    def plain_hooks(self):
        """What a user saves who knows no recorder: every module's output under its name, a tuple's by number."""
        model, taps = load(TINY, "bfloat16", "sdpa", "grouped_mm"), {}

        def save(name):
            def hook(module, inputs, output):
                parts = output if isinstance(output, tuple) else (output,)
                for i, part in enumerate(parts):
                    if torch.is_tensor(part):
                        taps[name if len(parts) == 1 else f"{name}.output.{i}"] = part.detach().clone().contiguous()
            return hook

        for name, module in model.named_modules():
            if name:
                module.register_forward_hook(save(name))
        ids = torch.tensor([tiny_ids(20)])
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
        save_file({"input_ids": ids, **taps}, self.add("plain-hooks", "tiny", "a forward hook on every module"),
                  metadata={"dtype": "bfloat16"})

    def own_ways(self):
        for dtype in ("bfloat16", "float32"):
            with replaced(F, "linear", Linear(32)):
                self.hf(f"split-k-{dtype}", "long", dtype, "sums over K in pieces of 32")
        experts = modeling.Qwen3MoeExperts
        with replaced(experts, "forward", combine_in_float32):
            self.hf("combined-float32", "tiny", "bfloat16", "silu(gate)*up and the experts' sum rounded once")
        order = []
        self.hf("permuted", "tiny", "bfloat16", "experts stored in another order",
                change=lambda model: order.append(permute_experts(model)) or model)
        map_back(self.list[-1]["file"], order[0])

    def compiled(self):
        for dtype in ("bfloat16", "float32"):
            self.hf(f"compiled-parts-{dtype}", "tiny", dtype, "torch.compile of norms, attention and mlp",
                    attn="sdpa", change=compiled_parts)
        self.hf("compiled-layers", "tiny", "bfloat16", "torch.compile of each layer", attn="sdpa",
                change=compiled_layers)

        path = self.add("compiled-whole", "tiny", "torch.compile of the model: its hidden states and logits")
        model = torch.compile(load(TINY, "bfloat16", "sdpa"))
        with torch.no_grad(), record_hf.record(model, path):
            model(input_ids=torch.tensor([tiny_ids(20)]), use_cache=False, output_hidden_states=True)

    def others(self):
        for dtype in hf_taps.DTYPES:
            self.other(self.v4, "record_hf.py", f"4.57-{dtype}", "tiny", "transformers 4.57.6", [],
                       ["--dtype", dtype])
        for name, options, more in LLAMACPP:
            for model in ("tiny-sparse", "base"):
                if model == "base" and "bf16" in more:
                    continue  # its float32 weights are not bfloat16's
                self.other(self.llamacpp, "record_llamacpp.py", f"llamacpp-{name}-{model}", model,
                           "llama.cpp " + " ".join(more), options, more)

    def h100(self):
        for model in ("tiny", "long"):
            for name, run in CUDA_RUNS.items():
                self.add(f"h100-{model}-{name}", model, "Hugging Face on an H100",
                         ["--accumulate", "tf32"] if run[3] else [],
                         os.path.join(GOLDEN, "h100", f"{model}-{name}.safetensors"))


LLAMACPP = [  # name, check's options, record_llamacpp.py's
    ("f32", [], []),
    ("pieces", [], ["--ubatch", "6", "--threads", "2"]),
    ("bf16", ["--accumulate", "bf16"], ["--weights", "bf16"]),
    ("cache-f16", ["--kv", "float16", "--accumulate", "f16"], ["--kv", "f16"]),
    ("defaults-f32", ["--kv", "float16", "--accumulate", "f16"], ["--kv", "f16", "--flash", "auto"]),
    ("defaults-bf16", ["--kv", "float16", "--accumulate", "bf16"],
     ["--weights", "bf16", "--kv", "f16", "--flash", "auto"]),
]


def main():
    parser = argparse.ArgumentParser(description="Makes honest backends' dumps.")
    parser.add_argument("out")
    parser.add_argument("--v4", metavar="PYTHON")
    parser.add_argument("--llamacpp", metavar="PYTHON")
    parser.add_argument("--cuda", action="store_true", help="makes golden/h100")
    options = parser.parse_args()
    if options.cuda:
        make_cuda(options.out)
        return
    bench = Bench(options.out, options.v4, options.llamacpp)
    os.makedirs(options.out, exist_ok=True)
    for make in (bench.transformers, bench.edge, bench.plain_hooks, bench.own_ways, bench.others, bench.h100,
                 bench.compiled):
        make()
    with open(os.path.join(options.out, "list.json"), "w") as f:
        json.dump(bench.list, f, indent=1)
    print(f"{len(bench.list)} honest backends")


if __name__ == "__main__":
    main()
