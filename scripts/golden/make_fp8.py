# SPDX-License-Identifier: MIT
"""Makes golden/fp8: a small checkpoint in the layout of the published FP8 ones, and what Hugging Face computes with it.

Needs what make_golden.py needs.

  python3 scripts/golden/make_fp8.py            makes golden/fp8 (then make_golden.py --manifest)
  python3 scripts/golden/make_fp8.py --check    makes the checkpoint again and compares it, byte for byte; compares the
                                         weights that Hugging Face loads with fp8 x scale in float64, bit for bit

The taps of one prompt, each run with another way of multiplying:
  taps-D          the weights as they are: Hugging Face's modules in D, but for the linear maps that are quantised, which
                  get D's activations and their own weights in float32, and round once (its float32 run is all its own)
  loaded          bfloat16: Hugging Face's own, which rounds the weights to bfloat16 as it loads them
  quantised       bfloat16: activations quantised per token and group, as vLLM, SGLang and DeepGEMM do: s = max|x| / 448
                  in float32, q = e4m3(x / s), sums of each group in float32 times both scales
  powers          the same with the powers of two from s on
  wrong-scale     quantised, and one block of layer 0's o_proj has its neighbour's scale
  wrong-order     quantised, and the scales of layer 0's q_proj lie as [columns, rows]
"""

import json
import os
import sys

if __name__ == "__main__":
    os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2")

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

import hf_taps
import rule

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
FOLDER = os.path.join(ROOT, "golden", "fp8")
BLOCK = 32
TOKENS = 12
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": True, "head_dim": 16, "hidden_act": "silu",
    "hidden_size": 128, "intermediate_size": 96, "max_position_embeddings": 40960, "mlp_only_layers": [1],
    "model_type": "qwen3_moe", "moe_intermediate_size": 64, "norm_topk_prob": True, "num_attention_heads": 6,
    "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm", "model.layers.0.mlp.gate",
                                   "model.layers.1.self_attn.k_proj"]},
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 50,
}


def blocks(x):
    """[rows,columns] as [row of blocks, BLOCK, column of blocks, BLOCK]."""
    return x.reshape(x.shape[0] // BLOCK, BLOCK, x.shape[1] // BLOCK, BLOCK)


def quantise(name, weight):
    """Codes and scales, which have each another factor up to 2; layer 1's are float32, the others bfloat16."""
    spread = 1 + torch.from_numpy(rule.bits(rule.key("fp8", name), 0, weight.numel() // BLOCK**2) % 64).double() / 64
    parts = blocks(weight.double())
    scale = parts.abs().amax((1, 3)) / 448 * spread.reshape(parts.shape[0], parts.shape[2])
    scale = scale.to(torch.float32 if ".layers.1." in name else torch.bfloat16)
    if name.endswith("layers.0.self_attn.v_proj.weight"):
        scale[0, 0], scale[0, 1] = 0, 1e-23
    codes = parts / scale.double().clamp(min=1e-12)[:, None, :, None]
    return codes.clamp(-448, 448).float().to(torch.float8_e4m3fn).reshape(weight.shape), scale


def is_quantised(name):
    kept = CONFIG["quantization_config"]["modules_to_not_convert"]
    return "_proj.weight" in name and not any(k in name for k in kept)


def checkpoint():
    tensors = {}
    for name, value in hf_taps.rule_checkpoint(CONFIG, "fp8").items():
        if is_quantised(name):
            tensors[name], tensors[name.replace(".weight", ".weight_scale_inv")] = quantise(name, value)
        else:
            tensors[name] = value.to(torch.bfloat16)
    return tensors


def exact(tensors, name):
    """fp8 x scale in float64: at most 28 bits."""
    scale = tensors[name.replace(".weight", ".weight_scale_inv")].double()
    weight = blocks(tensors[name].double()) * scale[:, None, :, None]
    return weight.reshape(tensors[name].shape)


def write_folder(folder, tensors):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(CONFIG, f, indent=2)
        f.write("\n")
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def load(folder, dtype):
    """Hugging Face's dequantised load, on a processor and without accelerate, which it asks for."""
    FineGrainedFP8HfQuantizer.validate_environment = lambda self, *a, **k: setattr(
        self.quantization_config, "dequantize", True)
    return hf_taps.load_folder(folder, dtype)


def linears(model):
    """Each weight of a linear map, under its name in the checkpoint: a view of the model's own."""
    found = {}
    for name, value in model.named_parameters():
        prefix = name.rpartition(".")[0]
        if name.endswith("experts.gate_up_proj"):
            for e in range(value.shape[0]):
                gate, up = value[e].chunk(2)
                found[f"{prefix}.{e}.gate_proj.weight"], found[f"{prefix}.{e}.up_proj.weight"] = gate, up
        elif name.endswith("experts.down_proj"):
            found |= {f"{prefix}.{e}.down_proj.weight": value[e] for e in range(value.shape[0])}
        elif name.endswith("_proj.weight"):
            found[name] = value
    return found


def in_groups(x, powers):
    """q and s of activations quantised in groups."""
    g = x.float().reshape(*x.shape[:-1], -1, BLOCK)
    s = g.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448
    if powers:
        s = torch.exp2(torch.ceil(torch.log2(s)))
    return (g / s).clamp(-448, 448).to(torch.float8_e4m3fn).float(), s


def multiply(x, codes, scales, way):
    """One quantised linear map, its result in float32."""
    if way == "exact":
        wide = scales.float().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return plain_linear(x.float(), codes.float() * wide)
    q, s = in_groups(x, way == "powers")
    y = torch.zeros(*x.shape[:-1], codes.shape[0])
    for b in range(codes.shape[1] // BLOCK):
        part = plain_linear(q[..., b, :].contiguous(), codes[:, b * BLOCK:(b + 1) * BLOCK].float().contiguous())
        y += part * s[..., b, :] * scales[:, b].float().repeat_interleave(BLOCK)
    return y


plain_linear = F.linear


def run(folder, tensors, dtype, way, ids):
    """The taps with quantised linear maps multiplied in this way; None: Hugging Face's own."""
    model = load(folder, dtype)
    table, gate_up = {}, {}
    for name, weight in linears(model).items():
        if not is_quantised(name):
            continue
        scales = tensors[name.replace(".weight", ".weight_scale_inv")]
        if "experts" in name and "down_proj" not in name:
            gate_up.setdefault(name.rsplit(".", 2)[0], []).append((weight.data_ptr(), tensors[name], scales))
        else:
            table[weight.data_ptr()] = (tensors[name], scales)
    for parts in gate_up.values(): # both at once: the rows of the one lie before those of the other
        table[parts[0][0]] = tuple(torch.cat([p[i].float() for p in parts]).to(parts[0][i].dtype) for i in (1, 2))

    def linear(x, weight, bias=None):
        if weight.data_ptr() not in table:
            return plain_linear(x, weight, bias)
        y = multiply(x, *table[weight.data_ptr()], way)
        return (y if bias is None else y + bias.float()).to(x.dtype)

    F.linear = linear if way else plain_linear
    try:
        return hf_taps.run(model, CONFIG, ids)
    finally:
        F.linear = plain_linear


def wrong(tensors, bug):
    changed = dict(tensors)
    if bug == "wrong-scale":
        name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
        changed[name] = tensors[name].clone()
        changed[name][1, 1] = tensors[name][1, 2]
    else:
        name = "model.layers.0.self_attn.q_proj.weight_scale_inv"
        changed[name] = tensors[name].T.contiguous().reshape(tensors[name].shape)
    return changed


def check(tensors):
    stored = load_file(os.path.join(FOLDER, "model.safetensors"))
    assert list(stored) == sorted(tensors) or set(stored) == set(tensors)
    for name, value in tensors.items():
        hf_taps.same(stored[name].view(torch.uint8), value.view(torch.uint8), name)
    loaded = linears(load(FOLDER, torch.float32))
    count = 0
    for name, value in loaded.items():
        if is_quantised(name):
            hf_taps.same(value, exact(tensors, name).float(), name)
            count += 1
    print(f"golden/fp8: the checkpoint is the rule's; {count} weights are fp8 x scale, bit for bit")


def main():
    tensors = checkpoint()
    if sys.argv[1:] == ["--check"]:
        return check(tensors)
    ids = (rule.bits(rule.key("fp8", "input_ids.0"), 0, TOKENS) % CONFIG["vocab_size"]).astype("int64").tolist()
    write_folder(FOLDER, tensors)
    files = [(f"taps-{d}", d, None if d == "float32" else "exact", tensors) for d in hf_taps.DTYPES]
    files += [("loaded", "bfloat16", None, tensors), ("quantised", "bfloat16", "groups", tensors),
              ("powers", "bfloat16", "powers", tensors)]
    files += [(bug, "bfloat16", "groups", wrong(tensors, bug)) for bug in ("wrong-scale", "wrong-order")]
    for name, dtype, way, weights in files:
        taps = run(FOLDER, weights, hf_taps.DTYPES[dtype], way, ids)
        gap = hf_taps.margins(taps, CONFIG["num_experts_per_tok"], CONFIG["num_experts"])
        print(f"{name}: smallest gap {gap:.1e}", flush=True)
        hf_taps.write_taps(f"{FOLDER}/{name}.safetensors", taps, dtype, CONFIG, 0)
    check(tensors)


if __name__ == "__main__":
    main()
