#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What it costs to dump and to judge a model of a published size: measures one layer, with values by the rule, and
prints a table for the whole model: a layer's seconds times the layers, the head counted as layers by its share of a
token's weights.

  python3 scripts/bench/cost.py QWEN3MOE WORK [--only NAME] [--tokens 16,512] [--seconds JSON]

QWEN3MOE: the command; WORK: a folder on a file system that knows holes, with room for a layer (1.2, 4.8 or 15 GB;
what is made there is removed). NAME: 30B, 235B or 480B. --seconds: a line that an earlier run printed, whose
figures are used instead of measuring. Needs numpy; memory for a layer, so that it is read from the disk once;
a quiet machine. Each command runs twice, the second time counts.
"""

import argparse
import json
import os
import random
import shutil
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE) + "/ci")
from giant import PUBLISHED, TREES, Run, joined # noqa: E402

NAMES = {"30B": "Qwen3-30B-A3B", "235B": "Qwen3-235B-A22B", "480B": "Qwen3-Coder-480B-A35B-Instruct"}
LAYER = 1


def config_of(name):
    with open(f"{TREES}{NAMES[name]}.json", encoding="utf-8") as f:
        return json.load(f)


def layers_of(c):
    """The layers, and the head as so many more."""
    M, hd = c["hidden_size"], c["head_dim"]
    attention = 2 * (c["num_attention_heads"] + c["num_key_value_heads"]) * hd * M
    experts = c["num_experts_per_tok"] * 3 * c["moe_intermediate_size"] * M
    return c["num_hidden_layers"] + c["vocab_size"] * M / (attention + experts)


def write_input(path, T, M):
    """Hidden states that a layer may meet: normal numbers, as bfloat16."""
    draw = random.Random(T)
    bits = [struct.unpack("<I", struct.pack("<f", draw.gauss(0, 1)))[0] >> 16 for _ in range(T * M)]
    name = f"model.layers.{LAYER - 1}.output"
    text = json.dumps({name: {"dtype": "BF16", "shape": [T, M], "data_offsets": [0, 2 * T * M]}}).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + struct.pack(f"<{T * M}H", *bits))


def second(*command):
    Run(*command).good()
    return Run(*command).good()


def measure(command, work, name, T):
    """Seconds, own memory and bytes of one layer's dump and check."""
    c, taps, source = config_of(name), f"{work}/taps", f"{work}/input"
    write_input(source, T, c["hidden_size"])
    which = ["--layers", f"{LAYER}:{LAYER + 1}"]
    dump = second(command, "dump", f"{work}/{name}", *which, "--from", source, "-o", taps)
    size = os.path.getsize(taps)
    joined(taps + ".all", taps, source)
    check = second(command, "check", f"{work}/{name}", taps + ".all", *which)
    os.remove(taps + ".all")
    return {"dump": round(dump.seconds, 2), "check": round(check.seconds, 2), "bytes": size,
            "kilobytes": max(dump.kilobytes, check.kilobytes)}


def row(name, T, m):
    c = config_of(name)
    layers, total = layers_of(c), PUBLISHED[NAMES[name]][2]
    minutes = [m[verb] * layers / 60 for verb in ("dump", "check")]
    taps = m["bytes"] * c["num_hidden_layers"] + 2 * T * c["vocab_size"]
    return (f"| {name} | {T} | {m['dump']:.1f} s, {m['check']:.1f} s | {minutes[0]:.2g} min | {minutes[1]:.2g} min "
            f"| {total / 1e9:.0f} GB | {taps / 1e9:.2g} GB | {m['kilobytes'] / 1e6:.2f} GB |")


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("command")
    parser.add_argument("work")
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--tokens", default="16,512")
    parser.add_argument("--seconds")
    o = parser.parse_args()
    found = json.loads(o.seconds) if o.seconds else {}
    for name in [o.only] if o.only and not found else [] if found else list(NAMES):
        folder = f"{o.work}/{name}"
        Run(sys.executable, os.path.dirname(HERE) + "/golden/make_sparse.py", f"{TREES}{NAMES[name]}.json", folder,
            "--layers", LAYER).good()
        try:
            for T in o.tokens.split(","):
                found[f"{name} {T}"] = measure(os.path.realpath(o.command), o.work, name, int(T))
        finally:
            shutil.rmtree(folder)
    print(json.dumps(found), end="\n\n")
    print("| model | tokens | a layer: dump, check | dump, one core | check, one core | weights | all taps | memory of its own |")
    print("|---|---|---|---|---|---|---|---|")
    for key, m in found.items():
        name, T = key.split()
        print(row(name, int(T), m))


if __name__ == "__main__":
    main()
