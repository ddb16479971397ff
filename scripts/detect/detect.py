# SPDX-License-Identifier: MIT
"""The detection matrix: planted bugs against today's gates and against check; honest backends against check.

Needs torch==2.13.0, transformers==5.17.0 (or 4.57.6), safetensors, numpy.

  python3 scripts/detect/detect.py COMMAND                    COMMAND is the built qwen3moe
  python3 scripts/detect/detect.py COMMAND --honest FOLDER    also the backends that scripts/detect/honest.py made there
  ... --only NAME       only the bugs (class names in bugs.py and wild_bugs.py) that this pattern fits; no honest ones
  ... --markdown FILE   the table
  ... --jobs N          2 if not given

Each bug of scripts/detect/bugs.py and wild_bugs.py runs in a backend of its own, whose tensors go through `check` (bugs of kind
"rounding": with --strict). Found: exit status 1. At the right operator: the tap named is the first that the
bug touches, and the operators that the report names hold the broken one. Every model, dtype and way of
running that the bugs use is run without bug too, and must agree.

Today's gates get the tensors of the run with the bug and of the same run without it: the logits of the whole
model, and the one tensor where the bug is born, where it shows most.

Exit status 0: all found at the right operator, no false alarm; else 1.
"""

import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
import threading

import torch
from safetensors.torch import save_file

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
import bugs
import hf_taps
import wild_bugs
from backend import Backend

torch.set_num_threads(1)

# ---- today's gates ------------------------------------------------------------------------------


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return cosine(a, b)


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def error(a, b):
    """Normalised mean square error."""
    return ((a - b).square().sum() / b.square().sum()).item()


def relative_difference(a, b):
    """SGLang's: 1 - 2 a·b / (a·a + b·b)."""
    return 1 - (2 * (a @ b) / (a @ a + b @ b)).item()


TORCH_DEFAULT = {"float32": (1.3e-6, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float16": (1e-3, 1e-5)}


def close(a, b, rtol, atol):
    return torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def best(x, n):
    return x.topk(n, dim=-1).indices


def in_each_others(a, b, n):
    """vLLM's check of log-probabilities: each one's choice is among the other's best n."""
    return bool(((best(b, n) == best(a, 1)).any(-1) & (best(a, n) == best(b, 1)).any(-1)).all())


# Letter, what it is, whether it passes: flat tensors a and b (of the right one), dtype; the last three
# are for logits [T,V] alone.
GATES = [
    ("p", "PCC 0.99", lambda a, b, d: correlation(a, b) >= 0.99),
    ("P", "PCC 0.999", lambda a, b, d: correlation(a, b) >= 0.999),
    ("c", "cosine 0.99", lambda a, b, d: cosine(a, b) >= 0.99),
    ("n", "NMSE 1e-2", lambda a, b, d: error(a, b) <= 1e-2),
    ("r", "rel_diff 1e-3", lambda a, b, d: relative_difference(a, b) <= 1e-3),
    ("a", "allclose 1e-2, 1e-2", lambda a, b, d: close(a, b, 1e-2, 1e-2)),
    ("t", "torch's default tolerances", lambda a, b, d: close(a, b, *TORCH_DEFAULT[d])),
]
LOGITS_GATES = [
    ("5", "top-5 log-probabilities", lambda a, b: in_each_others(a, b, 5)),
    ("1", "top-1 of the last token", lambda a, b: torch.equal(best(a[-1], 1), best(b[-1], 1))),
    ("*", "top-1 of all tokens", lambda a, b: torch.equal(best(a, 1), best(b, 1))),
]


def gates(bad, good, dtype, logits):
    """The letters of the gates that see a difference, a dot for each that does not."""
    a, b = bad.double(), good.double()
    seen = [letter if not passes(a.flatten(), b.flatten(), dtype) else "."
            for letter, _, passes in GATES]
    if logits:
        seen += [letter if not passes(a, b) else "." for letter, _, passes in LOGITS_GATES]
    return "".join(seen)


def same(a, b):
    return torch.equal(a.double().nan_to_num(1e300), b.double().nan_to_num(1e300))


def by_id(taps, name):
    """A tap; one of the chosen experts by rising id, since their order says nothing."""
    m = re.fullmatch(r"(.*\.mlp\.)(topk_|experts\.).*", name)
    if not m:
        return taps[name]
    order = taps[m[1] + "topk_indices.output"].argsort(-1)
    return torch.take_along_dim(taps[name], order.view(order.shape + (1,) * (taps[name].dim() - 2)), 1)


# ---- honest runs of the same backend ------------------------------------------------------------


class OtherOrder(Backend):
    """Sums in another order: terms permuted, in float32, three parts."""

    def linear(self, x, name):
        w, n = self.w[name + ".weight"].float(), x.shape[1]
        order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
        y = sum(x.float()[:, part] @ w[:, part].T for part in order.chunk(3))
        return (y + self.w.get(name + ".bias", torch.zeros(1)).float()).to(self.D)


class Decoding(Backend):
    """The first 16 tokens at once, the rest one by one."""
    cached = 16


class Chunks(Backend):
    """In chunks of 10."""
    chunk = 10


class OtherCombine(Backend):
    """Experts' results added up in float32 by rank, rounded once."""

    def combine(self, down, weights, ids, m):
        return (down.float() * weights[..., None].float()).sum(1).to(self.D)


class Batched(Backend):
    """A batch axis in front, heads before tokens."""

    def run(self, ids, start=0):
        heads = re.compile(r"self_attn\.[qk]_(norm|rope)\.output$")
        return {name: (x.transpose(0, 1) if heads.search(name) else x)[None]
                for name, x in super().run(ids, start).items()}


VARIANTS = [OtherOrder, Decoding, Chunks, OtherCombine, Batched]

# ---- one backend, judged ------------------------------------------------------------------------


class Matrix:
    def __init__(self, command, folder):
        self.command, self.folder, self.lock = command, folder, threading.Lock()
        self.models, self.runs = {}, {}

    def model(self, name):
        """config after defaults, weights; its folder is written once."""
        with self.lock:
            if name not in self.models:
                config, weights = bugs.load_model(name)
                path = os.path.join(self.folder, name)
                os.mkdir(path)
                with open(os.path.join(path, "config.json"), "w") as f:
                    json.dump(config, f)
                save_file(weights, os.path.join(path, "model.safetensors"))
                self.models[name] = config, hf_taps.full_config(config), weights
            return self.models[name]

    def taps(self, cls, model, dtype, start, tokens):
        _, full, weights = self.model(model)
        ids = bugs.prompt(model, tokens)
        return cls(full, weights, hf_taps.DTYPES[dtype]).run(ids, start)

    def honest_taps(self, bug):
        """The same run without the bug."""
        key = bug.model, bug.dtype, bug.start, bug.tokens, bug.chunk, bug.cached
        with self.lock:
            known = self.runs.get(key)
        if known is None:
            cls = type("Honest", (Backend,), {"chunk": bug.chunk, "cached": bug.cached})
            known = self.taps(cls, *key[:4])
            with self.lock:
                self.runs[key] = known
        return known

    def write(self, path, tensors, model, dtype, start):
        metadata = {"dtype": dtype, "start": str(start), "past": "0", "producer": "scripts/detect/backend.py",
                    "config": hf_taps.config_line(self.model(model)[0])}
        save_file({n: x.contiguous() for n, x in tensors.items()}, path, metadata=metadata)

    def check(self, model, path, options):
        """Exit status, findings, the last line."""
        report = os.path.join(self.folder, os.path.basename(path) + ".jsonl")
        try:
            done = subprocess.run([self.command, "check", model, path, "--json", report, *options],
                                  capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            return -1, [], "no end after 120 s"
        findings = []
        if done.returncode in (0, 1):
            with open(report) as f:
                findings = [line for line in map(json.loads, f) if "tap" in line]
        last = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
        return done.returncode, findings, last

    def judge(self, bug):
        """A row of the table."""
        bad, good = self.taps(bug, bug.model, bug.dtype, bug.start, bug.tokens), self.honest_taps(bug)
        tensors = bugs.file_of(bug, bad)
        if bug.layout == "all":  # the list itself: this tensor changes, and none that is shown before it
            changed = [n for n in tensors if not same(by_id(bad, n), by_id(good, n))]
            assert changed and changed[0] == bug.tap, (bug, changed[:1])
        path = os.path.join(self.folder, f"{bug.__name__}.safetensors")
        self.write(path, tensors, bug.model, bug.dtype, bug.start)
        options = ["--strict"] if bug.kind == "rounding" else []
        status, findings, last = self.check(os.path.join(self.folder, bug.model), path, options)
        os.remove(path)
        counts = FAILURES + (["rounding"] if bug.kind == "rounding" else [])
        first = next((f for f in findings if f["verdict"] in counts), None)
        row = {"bug": bug, "status": status, "last": last, "verdict": "", "tap": "", "looks": "",
               "figures": {}, "logits": gates(bad["lm_head.output"], good["lm_head.output"], bug.dtype, True),
               "birth": gates(bad[bug.tap], good[bug.tap], bug.dtype, False)}
        if first:
            row.update(verdict=first["verdict"], tap=first["tap"], looks=first.get("looks_like") or "",
                       figures=first)
        row["found"] = status == 1
        named = [first["tap"], *first["operators"]] if first else []
        row["right"] = (row["found"] and row["tap"] == bug.tap and last == f"differs: {bug.tap}"
                        and any(bug.operator in operator for operator in named))
        row["told"] = None if not bug.looks else bool(re.search(bug.looks, row["looks"], re.I))
        for tap, looks in bug.also:
            second = next((f for f in findings if f["tap"] == tap), {})
            row["right"] = row["right"] and second.get("verdict") in counts
            row["told"] = row["told"] and bool(re.search(looks, second.get("looks_like") or ""))
            row["looks"] += f"; `{tap}`: {second.get('looks_like')}"
        return row

    def judge_honest(self, name, model, path, options):
        """name, whether it is a false alarm, what check said, how many tensors it called rounding."""
        status, findings, last = self.check(model, path, options)
        rounding = sum(f["verdict"] == "rounding" for f in findings)
        return name, status != 0 or last != "agrees", last, rounding

    def own_honest(self, job):
        """A run of the backend without any bug."""
        cls, model, dtype, start, tokens, layout = job
        taps = self.taps(cls, model, dtype, start, tokens)
        name = f"{cls.__name__} {model} {dtype} from {start}, {tokens} tokens, {layout}"
        path = os.path.join(self.folder, name.replace(" ", "_") + ".safetensors")
        self.write(path, bugs.LAYOUTS[layout](taps, None), model, dtype, start)
        # Its rounding points are Hugging Face's: not even "rounding" may be said.
        row = self.judge_honest(name, os.path.join(self.folder, model), path, ["--strict"])
        os.remove(path)
        return row

    def honest_gates(self):
        """Today's gates on honest pairs: logits of the backend as it is against another honest way."""
        rows = []
        for model in ("tiny", "small-rows", "wide", "tiny-window"):
            single = self.taps(Backend, model, "float32", 0, bugs.TOKENS)["lm_head.output"]
            for dtype in hf_taps.DTYPES:
                plain = self.taps(Backend, model, dtype, 0, bugs.TOKENS)["lm_head.output"]
                for cls in (OtherOrder, OtherCombine, Decoding):
                    other = self.taps(cls, model, dtype, 0, bugs.TOKENS)["lm_head.output"]
                    rows.append(gates(other, plain, dtype, True))
                if dtype != "float32":
                    rows.append(gates(plain, single, dtype, True))
        return rows


FAILURES = ["differs", "non-finite", "shape"]


def honest_jobs():
    """Every model, dtype, start, length and layout that the bugs use; the variants on some of them."""
    used = sorted({(b.model, b.dtype, b.start, b.tokens, b.layout) for b in wild_bugs.ALL})
    jobs = [(Backend, *job) for job in used]
    jobs += [(Backend, model, dtype, 7, 1 if model == "tiny-nan" else bugs.TOKENS, "all")
             for model in bugs.MODELS for dtype in hf_taps.DTYPES]
    jobs += [(cls, model, dtype, 0, bugs.TOKENS, "all") for cls in VARIANTS
             for model in ("tiny", "wide", "tiny-window") for dtype in hf_taps.DTYPES]
    jobs += [(cls, "tiny", dtype, 0, bugs.TOKENS, layout) for cls in (Backend, OtherOrder)
             for dtype in hf_taps.DTYPES for layout in ("vllm", "layers", "no attention")]
    return list(dict.fromkeys(jobs))


# ---- the table ----------------------------------------------------------------------------------


def legend():
    return ", ".join(f"{letter} {what}" for letter, what, _ in GATES + LOGITS_GATES)


def mark(value):
    return {None: "", True: "yes", False: "NO"}[value]


def text_table(rows):
    for r in rows:
        b = r["bug"]
        print(f"{b.__name__:24} {b.dtype:8} {r['logits']} {r['birth']}  {r['verdict'] or r['last']:10} "
              f"{mark(r['right']):3} {r['tap']}  {mark(r['told'])} {r['looks']}")
        if not r["right"]:
            print(f"    expected {b.kind} at {b.tap} ({b.operator}); status {r['status']}, {r['last']}")


def markdown_table(rows, totals):
    lines = ["| bug | real | dtype | gates: logits | at birth | check | tap | looks like |",
             "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        b = r["bug"]
        lines.append(f"| {b.title} | {'#%d' % b.number if b.number else ''} | {b.dtype} | `{r['logits']}` | "
                     f"`{r['birth']}` | {r['verdict'] or 'missed'} | `{r['tap']}` | {r['looks']} |")
    return "\n".join(lines + ["", "Gates: " + legend() + ".", ""] + totals) + "\n"


def totals_of(rows, honest, pairs):
    n = len(rows)
    lines = [f"- bugs: {n}; found {sum(r['found'] for r in rows)}, at the right operator "
             f"{sum(r['right'] for r in rows)}, missed {sum(not r['found'] for r in rows)}; diagnosis right "
             f"{sum(r['told'] is True for r in rows)} of {sum(r['told'] is not None for r in rows)}"]
    for i, (_, what, *_) in enumerate(GATES + LOGITS_GATES):
        at_birth = f", at birth {sum(r['birth'][i] != '.' for r in rows)}" if i < len(GATES) else ""
        lines.append(f"- {what}: sees {sum(r['logits'][i] != '.' for r in rows)} in the logits{at_birth}; "
                     f"false alarms on {sum(p[i] != '.' for p in pairs)} of {len(pairs)} honest pairs")
    lines.append(f"- honest runs: {len(honest)}; false alarms {sum(alarm for _, alarm, _, _ in honest)}")
    return lines


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("command")
    parser.add_argument("--honest")
    parser.add_argument("--only")
    parser.add_argument("--markdown")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    command = os.path.abspath(args.command)
    chosen = [b for b in wild_bugs.ALL if not args.only or re.search(args.only, b.__name__)]
    with tempfile.TemporaryDirectory() as folder, \
            concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        matrix = Matrix(command, folder)
        rows = list(pool.map(matrix.judge, chosen))
        text_table(rows)
        honest, pairs, others = [], [], 0
        if not args.only:
            honest = list(pool.map(matrix.own_honest, honest_jobs()))
            pairs = matrix.honest_gates()
        if args.honest:
            with open(os.path.join(args.honest, "list.json")) as f:
                dumps = json.load(f)

            def run(h):
                path = {k: os.path.join(args.honest, h[k]) for k in ("model", "file")}
                return matrix.judge_honest(h["name"], path["model"], path["file"], h["options"])
            honest += pool.map(run, dumps)
            others = len(dumps)
    for name, alarm, last, rounding in honest:
        if alarm or args.honest:
            print(f"{'FALSE ALARM' if alarm else 'agrees':11} {name}: {last}; rounding in {rounding}")
    totals = totals_of(rows, honest, pairs)
    print("gates: " + legend())
    print("\n".join(totals))
    print(f"dumps of other backends: {others}")
    if args.markdown:
        with open(args.markdown, "w") as f:
            f.write(markdown_table(rows, totals))
    return 0 if all(r["right"] for r in rows) and not any(alarm for _, alarm, _, _ in honest) else 1


if __name__ == "__main__":
    sys.exit(main())
