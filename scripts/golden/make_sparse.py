# SPDX-License-Identifier: MIT
"""A checkpoint as it is published, of any size, that takes hardly any room: every tensor, header and index
is there, the values only of the layers that are asked for. The rest are holes, which read as zeros.

  python3 scripts/golden/make_sparse.py CONFIG.json FOLDER [option]...

    --layers 0,93        layers whose values are written, by the rule of rule.py; default: none
    --ends               those of embed_tokens, norm and lm_head too
    --seed TEXT          the rule's (sparse)
    --dtype NAME         bfloat16, float16 or float32 (bfloat16)
    --shard-bytes N      most bytes of tensors in a file (4000000000: 118 files of Qwen3-235B-A22B)
    --one                one model.safetensors and no index

The file system must know holes. Needs numpy only where values are written. Prints what it made, and
removes nothing: FOLDER must be empty or new.
"""

import argparse
import json
import os
import sys

SIZES = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}
PIECE = 1 << 22  # elements that are made at a time


def layer_shapes(c, i):
    """Names and shapes of layer i, in the order of Hugging Face's modules."""
    M, hd = c["hidden_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
    p = f"model.layers.{i}."
    for name, rows, cols in (("q", q, M), ("k", kv, M), ("v", kv, M), ("o", M, q)):
        yield f"{p}self_attn.{name}_proj.weight", (rows, cols)
        if c.get("attention_bias"):
            yield f"{p}self_attn.{name}_proj.bias", (rows,)
    yield p + "self_attn.q_norm.weight", (hd,)
    yield p + "self_attn.k_norm.weight", (hd,)
    experts = c.get("num_experts", 0)
    dense = i in (c.get("mlp_only_layers") or []) or experts == 0 or (i + 1) % c.get("decoder_sparse_step", 1)
    if dense:
        mlps = [("mlp.", c["intermediate_size"])]
    else:
        yield p + "mlp.gate.weight", (experts, M)
        mlps = [(f"mlp.experts.{e}.", c["moe_intermediate_size"]) for e in range(experts)]
    for name, width in mlps:
        yield p + name + "gate_proj.weight", (width, M)
        yield p + name + "up_proj.weight", (width, M)
        yield p + name + "down_proj.weight", (M, width)
    yield p + "input_layernorm.weight", (M,)
    yield p + "post_attention_layernorm.weight", (M,)


def shapes(c):
    """All of the model: (layer, or None at its ends; name; shape)."""
    yield None, "model.embed_tokens.weight", (c["vocab_size"], c["hidden_size"])
    for i in range(c["num_hidden_layers"]):
        for name, shape in layer_shapes(c, i):
            yield i, name, shape
    yield None, "model.norm.weight", (c["hidden_size"],)
    if not c.get("tie_word_embeddings"):
        yield None, "lm_head.weight", (c["vocab_size"], c["hidden_size"])


def elements(shape):
    n = 1
    for size in shape:
        n *= size
    return n


def split(tensors, size, most):
    """Tensors in their order, as many in a file as fit; one that is larger than a file has its own."""
    shards, used = [[]], 0
    for tensor in tensors:
        n = elements(tensor[2]) * size
        if shards[-1] and used + n > most:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += n
    return shards


def write_values(f, name, shape, seed, dtype):
    """A tensor's values, some rows at a time, at the file's place."""
    import numpy as np

    import rule

    rows = shape[0]
    step = max(1, PIECE // (elements(shape) // rows))
    for first in range(0, rows, step):
        values = rule.fill(seed, name, shape, first, min(step, rows - first)).reshape(-1)
        if dtype == "bfloat16":  # the rule's values have 8 bits: cutting the others off is exact
            values = (values.view(np.uint32) >> np.uint32(16)).astype("<u2")
        f.write(values.astype({"bfloat16": "<u2", "float16": "<f2", "float32": "<f4"}[dtype]).tobytes())


def write_shard(path, tensors, wanted, seed, dtype):
    """One file: the length, the header, then values or holes."""
    code, size = SIZES[dtype]
    header, at, places = {"__metadata__": {"format": "pt"}}, 0, []
    for layer, name, shape in sorted(tensors, key=lambda t: t[1]):
        n = elements(shape) * size
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + n]}
        if layer in wanted:
            places.append((at, name, shape))
        at += n
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + at)
        for place, name, shape in places:
            f.seek(8 + len(text) + place)
            write_values(f, name, shape, seed, dtype)
    return at


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("config")
    parser.add_argument("folder")
    parser.add_argument("--layers", default="")
    parser.add_argument("--ends", action="store_true")
    parser.add_argument("--seed", default="sparse")
    parser.add_argument("--dtype", choices=SIZES, default="bfloat16")
    parser.add_argument("--shard-bytes", type=int, default=4000000000)
    parser.add_argument("--one", action="store_true")
    a = parser.parse_args()
    with open(a.config, encoding="utf-8") as f:
        config = json.load(f)
    wanted = {int(i) for i in a.layers.split(",") if i} | ({None} if a.ends else set())
    if any(i is not None and not 0 <= i < config["num_hidden_layers"] for i in wanted):
        sys.exit(f"--layers: found {a.layers}, expected layers below {config['num_hidden_layers']}")
    os.makedirs(a.folder, exist_ok=True)
    if os.listdir(a.folder):
        sys.exit(f"{a.folder}: is not empty")
    with open(f"{a.folder}/config.json", "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)
    tensors = list(shapes(config))
    shards = split(tensors, SIZES[a.dtype][1], a.shard_bytes if not a.one else 1 << 62)
    total, weight_map = 0, {}
    for n, shard in enumerate(shards, 1):
        name = "model.safetensors" if a.one else f"model-{n:05d}-of-{len(shards):05d}.safetensors"
        total += write_shard(f"{a.folder}/{name}", shard, wanted, a.seed, a.dtype)
        weight_map.update((tensor[1], name) for tensor in shard)
    if not a.one:
        with open(f"{a.folder}/model.safetensors.index.json", "w", encoding="utf-8") as f:
            json.dump({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, f, indent=2)
            f.write("\n")
    print(f"{a.folder}: {len(shards)} files, {len(tensors)} tensors, {total} bytes")


if __name__ == "__main__":
    main()
