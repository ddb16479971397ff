# SPDX-License-Identifier: MIT
"""Model folders as transformers saves them, from one set of weights, to compare how they load.

  python3 scripts/golden/make_folders.py weights FILE.npz          the weights (any version), made once
  python3 scripts/golden/make_folders.py save FILE.npz FOLDER      save_pretrained of this version:
                                                            FOLDER/one, /sharded, /tied, and under
                                                            5.x /packed (its layout in memory)
  python3 scripts/golden/make_folders.py trees FOLDER              config.json and printed module tree of
                                                            cases that published models do not have

Needs torch==2.13.0, numpy, safetensors and transformers==4.57.6 or transformers==5.17.0; run `save`
once in an environment of each. `trees` needs 4.57.6. scripts/ci/check_folders.sh uses what it makes.
"""

import json
import os
import sys

import numpy as np
import torch
import transformers
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import rule

V5 = int(transformers.__version__.split(".")[0]) >= 5
SEED = "folders"
CONFIG = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 5,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "mlp_only_layers": [1],
    "norm_topk_prob": True,
    "attention_bias": True,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}
TREES = {
    "no-layers": {"num_hidden_layers": 0},
    "one-layer": {"num_hidden_layers": 1},
    "one-expert": {"num_experts": 1, "num_experts_per_tok": 1},
    "no-experts": {"num_experts": 0},
    "biases": {"attention_bias": True, "num_hidden_layers": 2},
    "padding": {"pad_token_id": 7},
    "padding-from-end": {"pad_token_id": -1},
    "padding-zero": {"pad_token_id": 0},
    "eps-1e-5": {"rms_norm_eps": 1e-05},
    "eps-1e-4": {"rms_norm_eps": 0.0001},
    "eps-long": {"rms_norm_eps": 1.2345678901234567e-06},
    "eps-zero": {"rms_norm_eps": 0.0},
    "tied": {"tie_word_embeddings": True},
    "alternating": {"decoder_sparse_step": 2, "num_hidden_layers": 5},
    "dense-ends": {"mlp_only_layers": [0, 1, 6], "num_hidden_layers": 7},
}


def shapes():
    """Names and shapes of the checkpoint: one tensor for each expert's matrix."""
    c = CONFIG
    M, V, F, hd = c["hidden_size"], c["vocab_size"], c["moe_intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
    out = {"model.embed_tokens.weight": (V, M), "model.norm.weight": (M,), "lm_head.weight": (V, M)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = out[p + "post_attention_layernorm.weight"] = (M,)
        for name, rows, cols in (("q", q, M), ("k", kv, M), ("v", kv, M), ("o", M, q)):
            out[f"{p}self_attn.{name}_proj.weight"] = (rows, cols)
            out[f"{p}self_attn.{name}_proj.bias"] = (rows,)
        out[p + "self_attn.q_norm.weight"] = out[p + "self_attn.k_norm.weight"] = (hd,)
        if i in c["mlp_only_layers"]:
            mlps = [("mlp.", c["intermediate_size"])]
        else:
            out[p + "mlp.gate.weight"] = (c["num_experts"], M)
            mlps = [(f"mlp.experts.{e}.", F) for e in range(c["num_experts"])]
        for name, width in mlps:
            out[p + name + "gate_proj.weight"] = out[p + name + "up_proj.weight"] = (width, M)
            out[p + name + "down_proj.weight"] = (M, width)
    return out


def make_weights(path):
    np.savez(path, **{name: rule.fill(SEED, name, shape) for name, shape in shapes().items()})


def packed(weights):
    """The names that 5.x uses in memory: the experts of a layer are two tensors."""
    out = {}
    for name, value in weights.items():
        if ".experts." not in name:
            out[name] = value
    for i in range(CONFIG["num_hidden_layers"]):
        p = f"model.layers.{i}.mlp.experts."
        if i in CONFIG["mlp_only_layers"]:
            continue
        each = [[weights[f"{p}{e}.{m}_proj.weight"] for m in ("gate", "up", "down")]
                for e in range(CONFIG["num_experts"])]
        out[p + "gate_up_proj"] = torch.stack([torch.cat((gate, up)) for gate, up, _ in each])
        out[p + "down_proj"] = torch.stack([down for _, _, down in each])
    return out


def build(weights, config):
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config, dtype="bfloat16")).to(torch.bfloat16)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        sys.exit(f"missing {missing}, unexpected {unexpected}")
    return model


def save(weights_path, folder):
    weights = {k: torch.from_numpy(v).to(torch.bfloat16) for k, v in np.load(weights_path).items()}
    own = packed(weights) if V5 else weights
    model = build(own, CONFIG)
    model.save_pretrained(f"{folder}/one")
    model.save_pretrained(f"{folder}/sharded", max_shard_size="30KB")
    if not os.path.exists(f"{folder}/sharded/model.safetensors.index.json"):
        sys.exit("nothing was sharded")
    if V5:
        model.save_pretrained(f"{folder}/packed", save_original_format=False)
    own["lm_head.weight"] = own["model.embed_tokens.weight"]
    build(own, {**CONFIG, "tie_word_embeddings": True}).save_pretrained(f"{folder}/tied")


def save_trees(folder):
    if V5:
        sys.exit("the trees are those of 4.x")
    os.makedirs(folder, exist_ok=True)
    for name, change in TREES.items():
        config = {**CONFIG, "attention_bias": False, "mlp_only_layers": [], **change}
        text = str(Qwen3MoeForCausalLM(Qwen3MoeConfig(**config)))
        # 4.51 has the plain activation module, 4.57 its own class for the same function
        text = text.replace("SiLUActivation()", "SiLU()")
        with open(f"{folder}/{name}.json", "w") as f:
            json.dump({**config, "model_type": "qwen3_moe"}, f, indent=2, sort_keys=True)
            f.write("\n")
        with open(f"{folder}/{name}.txt", "w") as f:
            f.write(text + "\n")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    if sys.argv[1:2] == ["weights"] and len(sys.argv) == 3:
        make_weights(sys.argv[2])
    elif sys.argv[1:2] == ["save"] and len(sys.argv) == 4:
        save(sys.argv[2], sys.argv[3])
    elif sys.argv[1:2] == ["trees"] and len(sys.argv) == 3:
        save_trees(sys.argv[2])
    else:
        sys.exit(__doc__)
