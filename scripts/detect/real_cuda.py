# SPDX-License-Identifier: MIT
"""Hugging Face on a GPU, on layers of the published shapes with weights by rule (rule.py), judged by
`qwen3moe check`: each run that is honest must agree, and float16 accumulation that is not declared must
be named with the option that declares it.

  python3 scripts/detect/real_cuda.py OUT --command build/qwen3moe [--only GLOB] [--jobs N]

OUT/table.md: a line for each run. OUT/NAME.jsonl, NAME.txt: check's report. OUT/kept-NAME.published: dumps of
layer 0, as golden/real/gpu has them (a layer of the whole model: that is what their config says). Models are made in
OUT/models (8 GB). --shapes small makes narrow models, to try this program without a GPU. Needs what record_hf.py needs.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time

import torch

ROOMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path[1:1] = [os.path.join(ROOMS, room) for room in ("golden", "record", "detect")]
import hf_taps
import make_sparse
import record_hf
import rule
import taps

torch.use_deterministic_algorithms(False)  # hf_taps asks for them; these backends run as they come
TREES = os.path.join(ROOMS, "..", "golden", "trees")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"30b": ("Qwen3-30B-A3B", 2), "235b": ("Qwen3-235B-A22B", 1)}
SMALL = {"hidden_size": 256, "moe_intermediate_size": 96, "num_attention_heads": 8, "vocab_size": 500}


class Run:
    """One run of Hugging Face, and what check shall say of it: (options, status, words in its text)."""

    def __init__(self, model, dtype, tokens, attn="sdpa", experts="grouped_mm", checks=(((), 0, ""),), chunk=0,
                 compiled=None, tf32=False, sums16=False, layer=None, start=0):
        self.model, self.dtype, self.tokens, self.attn, self.experts = model, dtype, tokens, attn, experts
        self.checks, self.chunk, self.compiled, self.tf32 = checks, chunk, compiled, tf32
        self.sums16, self.layer, self.start = sums16, layer, start


F16_DECLARED = ((("--accumulate", "f16-sums"), 0, ""),)
F16_SUMS = (*F16_DECLARED, ((), 1, "declare --accumulate f16-sums"))
TF32_SUMS = ((("--accumulate", "tf32"), 0, ""), ((), 1, "declare --accumulate tf32"))

RUNS = {
    "bf16-sdpa-grouped": Run("30b", "bfloat16", 200),
    "bf16-sdpa-eager": Run("30b", "bfloat16", 200, experts="eager"),
    "bf16-eager-eager": Run("30b", "bfloat16", 200, "eager", "eager"),
    "bf16-eager-batched": Run("30b", "bfloat16", 64, "eager", "batched_mm"),
    "bf16-sdpa-batched": Run("30b", "bfloat16", 32, experts="batched_mm"),
    "bf16-decode": Run("30b", "bfloat16", 32, chunk=1),
    "bf16-chunks": Run("30b", "bfloat16", 150, chunk=37),
    "bf16-compiled-parts": Run("30b", "bfloat16", 64, experts="batched_mm", compiled="parts"),
    "bf16-compiled-layers": Run("30b", "bfloat16", 64, experts="batched_mm", compiled="layers"),
    "bf16-far": Run("30b", "bfloat16", 32, start=40900),
    "f16-sdpa-grouped": Run("30b", "float16", 200),
    "f16-eager-eager": Run("30b", "float16", 64, "eager", "eager"),
    "f16-sums16": Run("30b", "float16", 64, experts="eager", sums16=True, checks=F16_SUMS),
    "f32-eager-eager": Run("30b", "float32", 64, "eager", "eager"),
    "f32-sdpa-batched": Run("30b", "float32", 32, experts="batched_mm"),
    "f32-sdpa-grouped": Run("30b", "float32", 200),
    "f32-decode": Run("30b", "float32", 32, experts="eager", chunk=1),
    "f32-tf32": Run("30b", "float32", 64, "eager", "eager", tf32=True, checks=TF32_SUMS),
    "f32-tf32-sdpa": Run("30b", "float32", 200, experts="eager", tf32=True, checks=TF32_SUMS),
    "bf16-compiled-grouped": Run("30b", "bfloat16", 64, compiled="layers"),
    "f16-decode": Run("30b", "float16", 32, chunk=1),
    "f16-sums16-grouped": Run("30b", "float16", 200, sums16=True, checks=F16_DECLARED),
    "f16-sums16-decode": Run("30b", "float16", 32, experts="batched_mm", chunk=1, sums16=True, checks=F16_DECLARED),
    "f32-compiled-layers": Run("30b", "float32", 64, experts="batched_mm", compiled="layers"),
    "235b-bf16-sdpa-grouped": Run("235b", "bfloat16", 64),
    "235b-bf16-decode": Run("235b", "bfloat16", 32, chunk=1),
    "235b-bf16-eager-eager": Run("235b", "bfloat16", 32, "eager", "eager"),
    "235b-f32-eager": Run("235b", "float32", 32, "eager", "eager"),
    "235b-f16-sums16": Run("235b", "float16", 32, experts="eager", sums16=True, checks=F16_SUMS),
    # few tokens, for golden/real/gpu
    "kept-bf16-sdpa-grouped": Run("30b", "bfloat16", 4, layer=0),
    "kept-f16-sums16": Run("30b", "float16", 4, experts="eager", sums16=True, layer=0, checks=F16_SUMS),
    "kept-f32-tf32": Run("30b", "float32", 3, "eager", "eager", tf32=True, layer=0, checks=TF32_SUMS),
    "kept-235b-bf16-sdpa-grouped": Run("235b", "bfloat16", 3, layer=0),
}


def published(model):
    with open(os.path.join(TREES, SHAPES[model][0] + ".json"), encoding="utf-8") as f:
        return json.load(f)


def config_of(model, small):
    config = {**published(model), "num_hidden_layers": SHAPES[model][1], "torch_dtype": "bfloat16"}
    return {**config, **SMALL} if small else config


def write_model(folder, config, seed):
    """config.json and one model.safetensors, bfloat16, which holds the rule's values exactly."""
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)
    tensors, header, at = list(make_sparse.shapes(config)), {"__metadata__": {"format": "pt"}}, 0
    for _, name, shape in tensors:
        size = 2 * make_sparse.elements(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, name, shape in tensors:
            values = rule.fill_torch(seed, name, shape, DEVICE).bfloat16().reshape(-1)
            f.write(values.view(torch.uint8).cpu().numpy().tobytes())


def ids_of(name, count, vocab):
    return (rule.bits(rule.key(name, "real"), 0, count) % vocab).astype("int64").tolist()


def compile_parts(model, compiled):
    for layer in model.model.layers:
        parts = (layer.input_layernorm, layer.self_attn, layer.post_attention_layernorm, layer.mlp)
        for module in (layer,) if compiled == "layers" else parts:
            module.forward = torch.compile(module.forward)


def record(name, run, folder, out):
    """Makes the run; gives its seconds."""
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = run.tf32
    matmul.allow_fp16_accumulation = run.sums16
    options = argparse.Namespace(model=folder, dtype=run.dtype, attn=run.attn, experts=run.experts, device=DEVICE)
    model = record_hf.load(options)
    if run.compiled:
        compile_parts(model, run.compiled)
    wanted = lambda tap: run.layer is None or not tap.startswith(("lm_head", "model.norm", "model.layers.1."))
    producer = f"transformers {sys.modules['transformers'].__version__}, torch {torch.__version__}, "
    producer += torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    ids = ids_of(name, run.tokens, model.config.vocab_size)
    started = time.time()
    path = os.path.join(out, name + ".safetensors")
    record_hf.record_unchanged(model, path, ids, run.start, run.chunk, wanted, producer)
    seconds = time.time() - started
    if run.layer is not None:  # a layer of the published model, which has more of them
        tensors, metadata = hf_taps.read_tensors(path)
        hf_taps.write_tensors(path.replace(".safetensors", ".published"), tensors,
                              {**metadata, "config": taps.config_line(published(run.model))})
    return seconds


def largest(report):
    """The largest error of a compared tap as a part of its bound, and its tap."""
    most, where = 0.0, ""
    with open(report, encoding="utf-8") as f:
        for finding in map(json.loads, f):
            if finding.get("max_bound_ratio", 0) > most:
                most, where = finding["max_bound_ratio"], finding["tap"]
    return f"{most:.2f} {where}"


def check(command, name, run, number, folder, out):
    """One judgement of a run: its line of the table, and whether it is what it shall be."""
    options, expected, words = run.checks[number]
    report = os.path.join(out, f"{name}-{number}")
    more = ["--layers", "0:1"] if run.layer is not None else []
    started = time.time()
    try:
        done = subprocess.run([command, "check", folder, os.path.join(out, name + ".safetensors"), *options, *more,
                               "--json", report + ".jsonl"], capture_output=True, text=True, timeout=420)
        status, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        status, said = 124, ""
    with open(report + ".txt", "w", encoding="utf-8") as f:
        f.write(said)
    good = status == expected and words in said
    verdict = {0: "agrees", 1: "differs", 2: "could not judge"}.get(status, f"status {status}")
    most = largest(report + ".jsonl") if status in (0, 1) else ""
    line = (f"| {name} | {run.dtype} | {run.tokens} | {' '.join(options)} | {verdict} | {words if words in said else ''} "
            f"| {most} | {time.time() - started:.0f} | {'yes' if good else 'NO'} |")
    print(line, flush=True)
    return good, line


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("out")
    parser.add_argument("--command", required=True)
    parser.add_argument("--only", default="*")
    parser.add_argument("--jobs", type=int, default=8, help="checks at a time")
    parser.add_argument("--shapes", choices=["published", "small"], default="published")
    a = parser.parse_args()
    os.makedirs(a.out, exist_ok=True)
    runs = {name: run for name, run in RUNS.items() if fnmatch.fnmatchcase(name, a.only)}
    folders, lines, bad = {}, [], 0
    for model in dict.fromkeys(run.model for run in runs.values()):
        folders[model], started = os.path.join(a.out, "models", model), time.time()
        shutil.rmtree(folders[model], ignore_errors=True)
        write_model(folders[model], config_of(model, a.shapes == "small"), "real")
        print(f"{folders[model]}: made in {time.time() - started:.1f} s", flush=True)
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        waiting = []
        for name, run in runs.items():
            try:
                print(f"{name}: recorded in {record(name, run, folders[run.model], a.out):.1f} s", flush=True)
            except Exception as problem:  # another implementation's; the others go on
                print(f"{name}: {type(problem).__name__}: {str(problem)[:400]}", flush=True)
                lines.append(f"| {name} | {run.dtype} | {run.tokens} | | not recorded: {type(problem).__name__} | | | | NO |")
                bad += 1
                continue
            waiting += [(name, pool.submit(check, a.command, name, run, i, folders[run.model], a.out))
                        for i in range(len(run.checks))]
        for _, one in waiting:
            good, line = one.result()
            lines.append(line)
            bad += not good
    for name in runs:
        path = os.path.join(a.out, name + ".safetensors")
        if os.path.exists(path):
            os.remove(path)
    with open(os.path.join(a.out, "table.md"), "w", encoding="utf-8") as f:
        f.write("| run | dtype | tokens | declared | check | named | largest error by its bound | seconds | as it shall be |\n|---|---|---|---|---|---|---|---|---|\n")
        f.write("\n".join(lines) + "\n")
    shutil.rmtree(os.path.join(a.out, "models"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
