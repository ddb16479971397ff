# SPDX-License-Identifier: MIT
"""How far our float32, Hugging Face's and llama.cpp's are from exact arithmetic, tap by tap.

Needs torch==2.13.0, transformers==5.17.0 (or 4.57.6), safetensors, numpy on x86 (80-bit long
double), a C compiler (cc, or $CC); for --llamacpp a Python that has llama-cpp-python==0.3.36,
gguf==0.19.0 and numpy.

  python3 scripts/ci/accuracy.py COMMAND                    COMMAND is the built qwen3moe
  python3 scripts/ci/accuracy.py COMMAND --llamacpp PYTHON  llama.cpp too, run by that Python
  ... --taps FILE                                        every tap's figures, as tab-separated text
  ... --case NAME                                        only this case (repeatable)

Teacher-forced: one operator at a time. Its inputs are Hugging Face's float32 tensors, for Hugging
Face's own result (a tap comes from the taps before it) and for ours (tests/model/forced.c); the truth is
the operator below in 80-bit arithmetic on the same inputs, with nothing rounded inside. llama.cpp
is judged on its own tensors by the same operators. Free-running: whole runs against Hugging Face's
modules in float64 (truth.py); on that run's tensors the operators below must agree with it.
Inverse frequencies, angles, attention scaling, hd^-0.5 and eps keep their float32 values
throughout: they belong to the definition.

Exit status 0 if our error is at most Hugging Face's in the median over the taps, both ways, and,
teacher-forced, at most 1.05 of it in every tap, in relative L2 and in rms ulp, and if, over all cases,
MODEL.md section 10 has these errors of ours; else 1. Equal bits tie.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
import hf_taps
import make_golden
import truth

L = np.longdouble
ROOT = make_golden.ROOT
LIMIT = 1.05
LABELS = {"ours": "ours", "hf": "Hugging Face", "llama.cpp": "llama.cpp"}

# Cases of golden/hf whose weights are a rule, and golden/tiny. "tiny-sparse" is golden/tiny without its dense layer,
# for llama.cpp (make_golden.without_dense).
CASES = ["base", "bias", "long-rows", "sparse-step", "no-renormalise", "wide-router", "one-kv-head",
         "window", "odd-sizes", "eps", "positions", "rope-yarn", "tiny", "tiny-sparse"]

# ---- one operator, exactly ----------------------------------------------------------------------


class Exact:
    """Each tap's value in 80-bit arithmetic from the tensors before it in `taps` (numpy)."""

    def __init__(self, config, weights, taps, inv_freq, attention_scaling):
        self.c = hf_taps.full_config(config)
        self.w, self.taps = weights, taps
        self.inv_freq, self.scaling = inv_freq, L(np.float32(attention_scaling))
        self.eps = L(np.float32(self.c["rms_norm_eps"]))

    def tap(self, name):
        return self.taps[name].astype(L)

    def has(self, name):
        return name in self.taps

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w.get(name + ".bias", L(0))

    def norm(self, x, name):
        return truth.rms(x, self.w[name + ".weight"], self.eps)

    def table(self):
        """cos and sin: from the tensors, else (llama.cpp shows none) as they are defined."""
        if self.has("model.rotary_emb.cos"):
            return self.tap("model.rotary_emb.cos"), self.tap("model.rotary_emb.sin")
        return self.exact_table()

    def exact_table(self):
        position = self.taps["position_ids"].astype(np.float32)
        angle = position[:, None] * self.inv_freq[None, :]
        angle = np.concatenate((angle, angle), axis=1).astype(L)
        return np.cos(angle) * self.scaling, np.sin(angle) * self.scaling

    def value(self, name):
        """The exact value of a tap, or None where an input is missing."""
        try:
            if not name.startswith("model.layers."):
                return self.outside(name)
            _, _, i, rest = name.split(".", 3)
            p = f"model.layers.{i}."
            if rest.startswith("self_attn."):
                return self.attention(p, p + "self_attn.", rest[len("self_attn."):])
            if rest.startswith("mlp."):
                return self.mlp(int(i), p, p + "mlp.", rest[len("mlp."):])
            return self.layer(int(i), p, rest)
        except KeyError as missing:
            if missing.args[0] in self.w:
                raise
            return None

    def outside(self, name):
        if name == "model.embed_tokens.output":
            return self.w["model.embed_tokens.weight"][self.taps["input_ids"]]
        if name == "model.rotary_emb.cos":
            return self.exact_table()[0]
        if name == "model.rotary_emb.sin":
            return self.exact_table()[1]
        if name == "model.norm.output":
            last = f"model.layers.{self.c['num_hidden_layers'] - 1}.output"
            return self.norm(self.tap(last), "model.norm")
        assert name == "lm_head.output", name
        head = "model.embed_tokens" if self.c["tie_word_embeddings"] else "lm_head"
        return self.linear(self.tap("model.norm.output"), head)

    def before(self, i):
        return self.tap(f"model.layers.{i - 1}.output" if i else "model.embed_tokens.output")

    def layer(self, i, p, rest):
        if rest == "input_layernorm.output":
            return self.norm(self.before(i), p + "input_layernorm")
        if rest == "post_attention_layernorm.input":
            return self.before(i) + self.tap(p + "self_attn.o_proj.output")
        if rest == "post_attention_layernorm.output":
            return self.norm(self.tap(p + "post_attention_layernorm.input"),
                             p + "post_attention_layernorm")
        assert rest == "output", rest
        return self.tap(p + "post_attention_layernorm.input") + self.tap(p + "mlp.output")

    def seen(self, T):
        window = self.c["sliding_window"] or T
        return np.array([[t - window < s <= t for s in range(T)] for t in range(T)])

    def attention(self, p, a, rest):
        c = self.c
        T, H, K, hd = (len(self.taps["input_ids"]), c["num_attention_heads"],
                       c["num_key_value_heads"], c["head_dim"])
        if rest in ("q_proj.output", "k_proj.output", "v_proj.output"):
            return self.linear(self.tap(p + "input_layernorm.output"), a + rest[:6])
        if rest in ("q_norm.output", "k_norm.output"):
            x = self.tap(f"{a}{rest[0]}_proj.output").reshape(T, -1, hd)
            return self.norm(x, a + rest[:6])
        if rest in ("q_rope.output", "k_rope.output"):
            x, (cos, sin) = self.tap(f"{a}{rest[0]}_norm.output"), self.table()
            half = np.concatenate((-x[..., hd // 2:], x[..., :hd // 2]), axis=-1)
            return x * cos[:, None] + half * sin[:, None]
        if rest == "scores.output":
            q, k = self.tap(a + "q_rope.output"), self.tap(a + "k_rope.output")
            k = np.repeat(k, H // K, axis=1)
            scores = np.einsum("thd,shd->hts", q, k) * L(np.float32(hd**-0.5))
            return np.where(self.seen(T), scores, L(0))
        if rest == "probs.output":
            scores = self.tap(a + "scores.output")
            return truth.softmax(np.where(self.seen(T), scores, L(-np.inf)))
        if rest == "o_proj.input":
            v = self.tap(a + "v_proj.output").reshape(T, K, hd)
            v = np.repeat(v, H // K, axis=1)
            return np.einsum("hts,shd->thd", self.tap(a + "probs.output"), v).reshape(T, H * hd)
        assert rest == "o_proj.output", rest
        return self.linear(self.tap(a + "o_proj.input"), a + "o_proj")

    def mlp(self, i, p, m, rest):
        x = self.tap(p + "post_attention_layernorm.output")
        if rest == "gate.output":
            return self.linear(x, m + "gate")
        if rest == "router_probs.output":
            return truth.softmax(self.tap(m + "gate.output"))
        ids = self.taps.get(m + "topk_indices.output")
        if rest == "topk_weights.output":
            chosen = np.take_along_axis(self.tap(m + "router_probs.output"), ids, axis=-1)
            if self.c["norm_topk_prob"]:
                chosen = chosen / chosen.sum(axis=-1, keepdims=True)
            return chosen
        if rest == "output" and hf_taps.is_sparse(self.c, i):
            down = self.tap(m + "experts.down_proj.output")
            return (down * self.tap(m + "topk_weights.output")[..., None]).sum(axis=1)
        prefix = m + "experts." if rest.startswith("experts.") else m
        rest = rest[len("experts."):] if rest.startswith("experts.") else rest
        if rest == "act_fn.output":
            return self.silu(self.tap(prefix + "gate_proj.output"))
        if rest == "down_proj.input":
            act = prefix + "act_fn.output"  # llama.cpp has none: it fuses silu and the product
            act = self.tap(act) if self.has(act) else self.silu(
                self.tap(prefix + "gate_proj.output"))
            return act * self.tap(prefix + "up_proj.output")
        if rest in ("gate_proj.output", "up_proj.output"):
            return self.project(x, prefix, rest[:-7], ids)
        assert rest in ("down_proj.output", "output"), rest
        return self.project(self.tap(prefix + "down_proj.input"), prefix, "down_proj", ids)

    @staticmethod
    def silu(x):
        return x / (1 + np.exp(-x))

    def project(self, x, prefix, name, ids):
        """A dense layer's linear map, or each slot's expert's."""
        if not prefix.endswith("experts."):
            return self.linear(x, prefix + name)
        by_slot = x.ndim == 3
        return np.stack([np.stack([self.linear(x[t, a] if by_slot else x[t], f"{prefix}{e}.{name}")
                                   for a, e in enumerate(row)]) for t, row in enumerate(ids)])


# ---- figures ------------------------------------------------------------------------------------


def ulp(value):
    """The distance between neighbouring float32 numbers at |value|; the least one at 0."""
    _, exponent = np.frexp(np.abs(value))
    return np.ldexp(L(1), np.maximum(np.where(value == 0, -126, exponent - 1), -126) - 23)


class Figures:
    """Error of one tensor: largest and rms in ulp, relative L2."""

    def __init__(self, got, want):
        assert got.shape == want.shape, (got.shape, want.shape)
        assert np.isfinite(got).all() and np.isfinite(want).all()
        error = np.abs(got.astype(L) - want)
        ulps = error / ulp(want)
        self.count, self.max = ulps.size, float(ulps.max())
        self.squares = float((ulps * ulps).sum())
        self.rms = float(np.sqrt(self.squares / self.count))
        size = np.sqrt((want * want).sum())
        self.relative = float(np.sqrt((error * error).sum()) / size) if size else float(error.max())


KINDS = [
    ("embedding", r"model\.embed_tokens\.output"),
    ("cos, sin", r"model\.rotary_emb\.(cos|sin)"),
    ("norms", r"model\.norm\.output|.*layernorm\.output"),
    ("q_proj, k_proj, v_proj", r".*[qkv]_proj\.output"),
    ("q_norm, k_norm", r".*[qk]_norm\.output"),
    ("q_rope, k_rope", r".*_rope\.output"),
    ("scores", r".*scores\.output"),
    ("probs", r".*self_attn\.probs\.output"),
    ("o_proj.input", r".*o_proj\.input"),
    ("o_proj", r".*o_proj\.output"),
    ("residual sums", r".*post_attention_layernorm\.input|model\.layers\.\d+\.output"),
    ("router logits", r".*mlp\.gate\.output"),
    ("router_probs", r".*router_probs\.output"),
    ("topk_weights", r".*topk_weights\.output"),
    ("gate_proj, up_proj", r".*(gate|up)_proj\.output"),
    ("act_fn", r".*act_fn\.output"),
    ("silu(gate)·up", r".*down_proj\.input"),
    ("down_proj", r".*down_proj\.output"),
    ("mlp.output", r".*mlp\.output"),
    ("lm_head", r"lm_head\.output"),
]


def kind_of(name, names):
    """The operator that makes a tap; the output of a dense layer's MLP is down_proj's."""
    if name.endswith("mlp.output") and name[:-len("output")] + "gate.output" not in names:
        return "down_proj"
    return next(kind for kind, pattern in KINDS if re.fullmatch(pattern, name))


# ---- runs ---------------------------------------------------------------------------------------


def build_forced(folder):
    """tests/model/forced.c with the library's sources, as CMakeLists.txt lists them."""
    cmake = open(os.path.join(ROOT, "CMakeLists.txt")).read()
    sources = re.search(r"set\(Q3_SOURCES ([^)]*)\)", cmake).group(1).split()
    program = os.path.join(folder, "forced")
    subprocess.run(shlex.split(os.environ.get("CC", "cc")) + [
        "-std=c11", "-O2", "-ffp-contract=off", "-I", ROOT, "-o", program,
        os.path.join(ROOT, "tests", "model", "forced.c")] + [os.path.join(ROOT, s) for s in sources],
        check=True)
    return program


def llamacpp_can(config):
    """llama.cpp's qwen3moe: all layers sparse, renormalised, no bias, no window; default RoPE."""
    c = hf_taps.full_config(config)
    return (all(hf_taps.is_sparse(c, i) for i in range(c["num_hidden_layers"]))
            and c["norm_topk_prob"] and not c["attention_bias"] and c["sliding_window"] is None
            and c["rope_scaling"] is None)


def arrays(path):
    return {name: value.numpy() for name, value in hf_taps.read_tensors(path)[0].items()}


def check_frequencies(case, config, ours, theirs):
    """Default RoPE is two float32 roundings; says where a processor's pow() made others of them."""
    c = hf_taps.full_config(config)
    if c["rope_scaling"] is None:
        j = np.arange(0, c["head_dim"], 2).astype(np.float32) / np.float32(c["head_dim"])
        power = np.power(L(np.float32(c["rope_theta"])), j.astype(L)).astype(np.float32)
        assert np.array_equal(ours, np.float32(1) / power), f"{case}: inverse frequencies"
    if not np.array_equal(ours, theirs):
        print(f"{case}: Hugging Face has {np.sum(ours != theirs)} other inverse frequencies here")


def run_case(case, command, forced, llamacpp):
    """Rows (case, tap, way, who, figures, kind), and the taps whose bits are Hugging Face's."""
    with tempfile.TemporaryDirectory() as folder:
        config, ids, start = make_golden.write_model(folder, case)
        weights = {name: value.float().numpy().astype(L) for name, value in
                   load_file(os.path.join(folder, "model.safetensors")).items()}
        model = hf_taps.load_folder(folder, torch.float32)
        hf = hf_taps.run(model, config, ids, start)
        inv_freq = model.model.rotary_emb.inv_freq.numpy().copy()
        scaling = model.model.rotary_emb.attention_scaling
        exact = truth.float64_run(hf_taps.load_folder(folder, torch.float64), config, ids, start)
        path = lambda name: os.path.join(folder, name + ".safetensors")
        hf_taps.write_taps(path("hf"), hf, "float32", config, start)
        subprocess.run([forced, folder, path("hf"), path("forced")], check=True)
        prompt = ["--tokens", ",".join(map(str, ids)), "--start", str(start)]
        subprocess.run([command, "dump", folder, "-o", path("ours"), "--dtype", "float32"] + prompt,
                       check=True, stdout=subprocess.DEVNULL)
        runs = {"ours": arrays(path("ours")), "hf": {k: v.numpy() for k, v in hf.items()}}
        taught = arrays(path("forced"))
        if llamacpp and llamacpp_can(config):
            script = os.path.join(ROOT, "scripts", "record", "record_llamacpp.py")
            subprocess.run([llamacpp, script, folder, path("llamacpp")] + prompt, check=True)
            runs["llama.cpp"] = arrays(path("llamacpp"))
    check_frequencies(case, config, taught["inv_freq"], inv_freq)
    exact = {name: value.numpy() for name, value in exact.items()}
    check_operators(case, exact, Exact(config, weights, exact, inv_freq, scaling))
    operators = {who: Exact(config, weights, runs[who], inv_freq, scaling)
                 for who in runs if who != "ours"}
    own = Exact(config, weights, runs["hf"], taught["inv_freq"], scaling)
    return judge(case, hf_taps.tap_names(config)[2:], runs, taught, exact, operators, own)


def check_operators(case, exact, operator):
    """The truth itself: on the float64 run's tensors every operator gives that run's next one."""
    for name, value in exact.items():
        if value.dtype == np.float64:
            distance = truth.relative(value.astype(L), operator.value(name))
            if not distance <= 1e-13:
                raise SystemExit(f"{case}: {name}: found an operator {distance:.1e} from the "
                                 "float64 run, expected 1e-13 at most")


def judge(case, names, runs, taught, exact, operators, own):
    rows, ties = [], set()
    for name in names:
        hf = runs["hf"][name]
        if name.endswith("topk_indices.output"):
            for who, taps in {**runs, "ours, taught": taught, "float64": exact}.items():
                if not np.array_equal(taps[name], hf):
                    raise SystemExit(f"{case}: {name}: {who}: found other experts than Hugging "
                                     "Face's, expected the same")
            continue
        kind = kind_of(name, names)
        if np.array_equal(taught[name].view(np.uint32), hf.view(np.uint32)):
            ties.add((case, name))
        # cos and sin come from each one's own inverse frequencies, which are no tap.
        rows.append((case, name, "forced", "ours", Figures(taught[name], own.value(name)), kind))
        for who, operator in operators.items():
            want = operator.value(name) if name in runs[who] else None
            if want is not None:
                rows.append((case, name, "forced", who, Figures(runs[who][name], want), kind))
        for who, taps in runs.items():
            if name in taps:
                want = exact[name].astype(L)
                rows.append((case, name, "free", who, Figures(taps[name], want), kind))
    return rows, ties


# ---- report -------------------------------------------------------------------------------------


def ratios(rows, ties, way, measure):
    """Our error over Hugging Face's by tap; equal bits (taught) and equal errors tie."""
    errors = {}
    for case, name, w, who, figures, _ in rows:
        if w == way:
            errors.setdefault((case, name), {})[who] = getattr(figures, measure)
    found = {}
    for key, e in errors.items():
        if (way == "forced" and key in ties) or e["ours"] == e["hf"]:
            found[key] = 1.0
        else:
            found[key] = e["ours"] / e["hf"] if e["hf"] > 0 else float("inf")
    return found


def number(value):
    return "0" if value == 0 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def small(value):
    return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-")


def print_forced(rows, whos):
    """The table; returns its rows as lists of cells."""
    table = []
    print("| operator | taps | " + " | ".join(f"{LABELS[w]}: max, rms, L2" for w in whos) + " |")
    print("|---|---|" + "---|" * len(whos))
    for kind, _ in KINDS:
        mine = [r for r in rows if r[2] == "forced" and r[5] == kind]
        if not mine:
            continue
        cells = []
        for who in whos:
            figures = [r[4] for r in mine if r[3] == who]
            count = sum(f.count for f in figures)
            rms = np.sqrt(sum(f.squares for f in figures) / count) if count else 0
            cells.append(f"{number(max(f.max for f in figures))}, {number(rms)}, "
                         f"{small(np.median([f.relative for f in figures]))}" if count else "-")
        taps = sum(r[3] == "ours" for r in mine)
        table.append([kind, str(taps), *cells])
        print("| " + " | ".join(table[-1]) + " |")
    return table


def as_written(table):
    """Whether MODEL.md section 10 has these operators and numbers of taps, and ours wherever Hugging Face's errors are
    the written ones: those, and with them the inputs of both, move with processor and release."""
    with open(os.path.join(ROOT, "MODEL.md"), encoding="utf-8") as f:
        lines = f.read().split("| operator | taps |")[1].split("\n\n")[0].split("\n")[2:]
    written = [line.strip("| ").split(" | ")[:4] for line in lines]
    wrong = [] if len(written) == len(table) else [f"{len(written)} operators, expected {len(table)}"]
    moved = 0
    for row, cells in zip(written, (cells[:4] for cells in table)):
        moved += row[3] != cells[3]
        if row[:2] != cells[:2] or (row[3] == cells[3] and row[2] != cells[2]):
            wrong.append(f"{' | '.join(row)}, expected {' | '.join(cells)}")
    for row in wrong:
        print(f"MODEL.md section 10: found {row}")
    print(f"MODEL.md section 10: {len(written) - moved} operators compared; of {moved} Hugging Face's errors are others here")
    return not wrong


def print_free(rows, whos, cases):
    print("| run | taps | " + " | ".join(f"{LABELS[w]}: logits, median" for w in whos) + " |")
    print("|---|---|" + "---|" * len(whos))
    for case in cases:
        cells = []
        for who in whos:
            figures = {r[1]: r[4].relative for r in rows
                       if r[0] == case and r[2] == "free" and r[3] == who}
            cells.append(f"{small(figures['lm_head.output'])}, "
                         f"{small(np.median(list(figures.values())))}" if figures else "-")
        taps = sum(r[0] == case and r[2] == "free" and r[3] == "ours" for r in rows)
        print(f"| {case} | {taps} | " + " | ".join(cells) + " |")


def verdict(rows, ties):
    good = True
    for way, measure, label in (("forced", "relative", "relative L2"), ("forced", "rms", "rms ulp"),
                                ("free", "relative", "relative L2")):
        found = ratios(rows, ties, way, measure)
        median = float(np.median(list(found.values())))
        good = good and median <= 1
        worst = max(found, key=found.get)
        print(f"{way}, {label}: our error over Hugging Face's, {len(found)} taps: median "
              f"{median:.3f}, largest {found[worst]:.3f} ({': '.join(worst)})")
        for key, ratio in sorted(found.items(), key=lambda item: -item[1]):
            if way == "forced" and not ratio <= LIMIT:
                good = False
                print(f"  {': '.join(key)}: {ratio:.3f}, at most {LIMIT} expected")
    print(f"forced: {len(ties)} taps have Hugging Face's bits")
    return good


def write_rows(path, rows):
    with open(path, "w", newline="\n") as f:
        f.write("case\ttap\tinputs\trun\telements\tmax ulp\trms ulp\trelative L2\n")
        for case, name, way, who, x, _ in rows:
            f.write(f"{case}\t{name}\t{way}\t{who}\t{x.count}\t{x.max:.4g}\t{x.rms:.4g}"
                    f"\t{x.relative:.4g}\n")


def main():
    parser = argparse.ArgumentParser(description="Errors against exact arithmetic.")
    parser.add_argument("command")
    parser.add_argument("--llamacpp", metavar="PYTHON")
    parser.add_argument("--taps", metavar="FILE")
    parser.add_argument("--case", action="append", choices=CASES)
    options = parser.parse_args()
    rows, ties, cases = [], set(), options.case or CASES
    command = os.path.abspath(options.command)
    if not os.access(command, os.X_OK):
        raise SystemExit(f"{options.command}: found no program, expected the built qwen3moe")
    with tempfile.TemporaryDirectory() as folder:
        try:
            forced = build_forced(folder)
            for case in cases:
                more, same = run_case(case, command, forced, options.llamacpp)
                rows += more
                ties |= same
        except (subprocess.CalledProcessError, OSError) as problem:
            raise SystemExit(f"accuracy.py: {problem}")
    table = report(rows, cases, options)
    good = verdict(rows, ties)
    if not options.case:
        good = as_written(table) and good
    return 0 if good else 1


def report(rows, cases, options):
    whos = [w for w in ("ours", "hf", "llama.cpp") if any(r[3] == w for r in rows)]
    if options.llamacpp:
        assert "llama.cpp" in whos, "no case that llama.cpp can run"
    print("\nTeacher-forced; max and rms in ulp of float32, median over the taps of relative L2:\n")
    table = print_forced(rows, whos)
    print("\nFree-running, relative L2 error:\n")
    print_free(rows, whos, cases)
    print()
    if options.taps:
        write_rows(options.taps, rows)
    return table


if __name__ == "__main__":
    sys.exit(main())
