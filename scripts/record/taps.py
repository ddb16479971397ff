# SPDX-License-Identifier: MIT
"""What a file of taps is: the config line of its metadata, and how it is written. The standard library alone.

The recorders of scripts/record need this file beside them.
"""

import json
import os
import struct

# After defaults, with the names of 4.x; a rope_scaling of null is the default type.
DEFAULTS = {
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 32768,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
ROPE_DEFAULTS = {
    "linear": {"factor": None},
    "dynamic": {"factor": None},
    "yarn": {"attention_factor": None, "beta_fast": 32.0, "beta_slow": 1.0, "factor": None,
             "mscale": None, "mscale_all_dim": None, "original_max_position_embeddings": None,
             "truncate": True},
    "llama3": {"factor": None, "high_freq_factor": None, "low_freq_factor": None,
               "original_max_position_embeddings": None},
}


def to_4x(config):
    """A config.json's dictionary in the 4.x spelling, nothing filled in."""
    config = dict(config)
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    if "rope_parameters" in config:
        rope = dict(config.pop("rope_parameters"))
        if "rope_theta" in rope:
            config["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = rope
    return config


def full_config(config):
    """The dictionary after defaults: what the `config` metadata holds."""
    given = to_4x(config)
    full = {k: given.get(k, v) for k, v in DEFAULTS.items()}
    layers = set(full["mlp_only_layers"] or [])
    full["mlp_only_layers"] = sorted(i for i in layers if 0 <= i < full["num_hidden_layers"])
    full["head_dim"] = given.get("head_dim", full["hidden_size"] // full["num_attention_heads"])
    if not full["use_sliding_window"]:
        full["sliding_window"] = None
    full["use_sliding_window"] = full["sliding_window"] is not None
    full["rope_theta"] = float(full["rope_theta"])
    full["rope_scaling"] = None
    rope = given.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        full["rope_scaling"] = {k: rope[k] if rope.get(k) is not None else v
                                for k, v in ROPE_DEFAULTS[kind].items()}
        full["rope_scaling"]["rope_type"] = kind
        if full["rope_scaling"].get("original_max_position_embeddings", 0) is None:
            length = full["max_position_embeddings"]
            full["rope_scaling"]["original_max_position_embeddings"] = length
    return full


def config_line(config):
    return json.dumps(full_config(config), sort_keys=True, separators=(",", ":"))


SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}


def write(path, tensors, metadata):
    """tensors: name: (type, shape, bytes). A safetensors file may have no gaps and each tensor stands at a
    multiple of its element size: wide elements first, else in the order given. The file appears whole."""
    header, at = {"__metadata__": metadata}, 0
    names = sorted(tensors, key=lambda name: -SIZES[tensors[name][0]])
    for name in names:
        kind, shape, blob = tensors[name]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(f"{path}.part", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            f.write(tensors[name][2])
    os.replace(f"{path}.part", path)


def metadata(producer, dtype, start, config=None, past=0):
    """past: how many keys the cache held before the first token."""
    line = {} if config is None else {"config": config_line(config)}
    return {"format": "qwen3moe-taps-1", "producer": producer, "dtype": dtype, "start": str(start),
            "past": str(past), **line}


def token_ids(text):
    """Of --tokens: 1,2,3."""
    return [int(token) for token in text.split(",")]


def check_ids(ids, vocab):
    for token in ids:
        if not 0 <= token < vocab:
            raise ValueError(f"--tokens: found {token}, expected 0 to {vocab - 1}")
