# SPDX-License-Identifier: MIT
"""Judges what Hugging Face computed at the published sizes, and prints golden/real/README.md's table.

  python3 scripts/golden/real_table.py COMMAND [FOLDER]    COMMAND: build/qwen3moe; FOLDER: golden/real, or what
                                                           `make_real.py --all FOLDER` made

Makes the checkpoints by rule as sparse files in a temporary folder (5 GB at most; TMPDIR says where): of the layer
in question what its tokens need. `seconds` is a run of `check` by the clock, `memory` its peak resident memory, most
of which are pages of the mapped checkpoint; `own` what it allocates itself (sampled). Exit status 1: something is not
within its bound. Needs numpy.
"""

import collections
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

import make_sparse
import rule

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SEED = "real"  # make_real.py's
PIECE = 1 << 16  # elements that are made at a time: they stay in the processor's cache
DTYPES = ("bfloat16", "float16", "float32")
GROUPS = ("front", "attention", "router", "experts", "end")


def read_header(path):
    """Where a safetensors file's data begins, and its header."""
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        return 8 + length, json.loads(f.read(length))


def read_integers(path, name):
    start, header = read_header(path)
    if name not in header:
        return []
    entry = header[name]
    a, b = entry["data_offsets"]
    data = np.memmap(path, np.uint8, "r")[start + a:start + b]
    return np.unique(data.view({"I32": "<i4", "I64": "<i8"}[entry["dtype"]])).tolist()


# ---- the checkpoint -----------------------------------------------------------------------------


def needed(name, layer, experts, last):
    """Whether a tensor is read by a run of this layer; of the embedding only some rows are."""
    if name in ("model.norm.weight", "lm_head.weight"):
        return last
    found = re.fullmatch(rf"model\.layers\.{layer}\.(?:mlp\.experts\.(\d+)\.)?.*", name)
    return bool(found) and (found[1] is None or int(found[1]) in experts)


def write_rows(f, at, name, shape, first, count):
    columns = make_sparse.elements(shape) // shape[0]
    step = max(1, PIECE // columns)
    f.seek(at + first * columns * 2)
    for row in range(first, first + count, step):
        values = rule.fill(SEED, name, shape, row, min(step, first + count - row)).reshape(-1)
        f.write((values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes())


def make_checkpoint(folder, config, layer, taps):
    """config.json and one file; returns its bytes that are not holes."""
    last = layer == config["num_hidden_layers"] - 1
    path = os.path.join(folder, "model.safetensors")
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)
    tensors = list(make_sparse.shapes(config))
    make_sparse.write_shard(path, tensors, set(), SEED, "bfloat16")
    start, header = read_header(path)
    ids = read_integers(taps, "input_ids")
    experts = set(read_integers(taps, f"model.layers.{layer}.mlp.topk_indices.output"))
    with open(path, "r+b") as f:
        for _, name, shape in tensors:
            at = start + header[name]["data_offsets"][0]
            if needed(name, layer, experts, last):
                write_rows(f, at, name, shape, 0, shape[0])
            elif name == "model.embed_tokens.weight":
                for i in ids:
                    write_rows(f, at, name, shape, i, 1)


# ---- judging ------------------------------------------------------------------------------------


def own_memory(pid):
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as f:
            return int(re.search(r"RssAnon:\s*(\d+)", f.read())[1]) * 1024
    except (OSError, TypeError):
        return 0


def check(command, model, taps, layer, report):
    """Exit status, seconds, peak resident memory, peak of its own memory."""
    began, own = time.monotonic(), 0
    process = subprocess.Popen([command, "check", model, taps, "--layers", f"{layer}:{layer + 1}", "--json", report],
                               stdout=subprocess.DEVNULL)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        own = max(own, own_memory(process.pid))
        time.sleep(0.005)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.monotonic() - began, usage.ru_maxrss * 1024, own


def group_of(tap):
    if tap.startswith(("model.embed_tokens", "model.rotary_emb")):
        return "front"
    if tap.startswith(("model.norm", "lm_head")):
        return "end"
    name = tap.split(".", 3)[3]
    if name.startswith(("mlp.gate.", "mlp.router_probs", "mlp.topk")):
        return "router"
    return "experts" if name.startswith("mlp.") or name == "output" else "attention"


Run = collections.namedtuple("Run", "status seconds memory own lines")


def judge_layer(command, folder, model, layer, runs):
    """Every file of one layer; runs[shape, dtype] grows."""
    with open(os.path.join(folder, model, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    paths = {d: p for d in DTYPES if os.path.exists(p := os.path.join(folder, model, f"layer-{layer}-{d}.safetensors"))}
    with tempfile.TemporaryDirectory() as work:
        make_checkpoint(work, config, layer, next(iter(paths.values())))
        report = os.path.join(work, "report.json")
        for dtype, taps in paths.items():
            found = check(command, work, taps, layer, report)
            with open(report, encoding="utf-8") as f:
                lines = [line for line in map(json.loads, f) if "tap" in line]
            runs[model.replace("-2507", ""), dtype].append(Run(*found, lines))
            print(f"{model}, layer {layer}, {dtype}: exit status {found[0]}", file=sys.stderr)


def row(shape, dtype, group, runs):
    """A line of the table, or None."""
    lines = [line for run in runs for line in run.lines
             if line["elements"] > 0 and group_of(line["tap"]) == group]
    if not lines:
        return None
    worst = max(lines, key=lambda line: line["max_bound_ratio"])
    near = worst["worst"][0] if worst["worst"] else {"ulp": 0.0, "bound_ulp": 0.0}
    name = re.sub(r"^model\.(layers\.\d+\.)?|\.output$", "", worst["tap"])
    at = f"{near['ulp']:.3g} of {near['bound_ulp']:.3g}, {name}" if near["ulp"] else "-"
    words = sorted({line["verdict"] for line in lines})
    return (f"| {shape} | {dtype} | {group} | {len(lines)} | {sum(line['elements'] for line in lines)} | "
            f"{sum(line['differ'] for line in lines)} | {max(line['max_ulp'] for line in lines):.3g} | {at} | "
            f"{', '.join(words)} |")


def main(arguments):
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        sys.exit(__doc__)
    command = os.path.abspath(arguments[0])
    folder = arguments[1] if len(arguments) == 2 else os.path.join(ROOT, "golden", "real")
    layers = {tuple(re.search(r"([^/]+)/layer-(\d+)-", path).groups())
              for path in glob.glob(f"{folder}/*/layer-*.safetensors")}
    order = ("30B", "235B", "480B")
    size = lambda model: [s in model for s in order].index(True)
    runs = collections.defaultdict(list)
    for model, layer in sorted(layers, key=lambda x: (size(x[0]), int(x[1]))):
        judge_layer(command, folder, model, int(layer), runs)
    print("| shape | dtype | taps | tensors | elements | differ | largest error, ulp | nearest to its bound, ulp | "
          "verdicts |\n|---|---|---|---|---|---|---|---|---|")
    for (shape, dtype), found in sorted(runs.items(), key=lambda x: (size(x[0][0]), x[0][1])):
        print("\n".join(filter(None, (row(shape, dtype, group, found) for group in GROUPS))))
    print("\n| shape | dtype | files | seconds, each at most | memory | own |\n|---|---|---|---|---|---|")
    for (shape, dtype), found in sorted(runs.items(), key=lambda x: (size(x[0][0]), x[0][1])):
        print(f"| {shape} | {dtype} | {len(found)} | {max(r.seconds for r in found):.1f} | "
              f"{max(r.memory for r in found) / 1e6:.0f} MB | {max(r.own for r in found) / 1e6:.0f} MB |")
    bad = sum(run.status != 0 for found in runs.values() for run in found)
    count = sum(len(found) for found in runs.values())
    print(f"\n{count - bad} of {count} files agree" + ("" if bad else ": all within their bounds"))
    return 1 if bad or not runs else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
