"""Makes golden/hf and golden/ops: what Hugging Face computes, stored. See golden/README.md.

Needs torch==2.13.0, transformers==5.17.0 (4.57.6 for a comparison), safetensors, numpy.

  python3 scripts/make_golden.py                 makes golden/hf, golden/ops and golden/MANIFEST
  python3 scripts/make_golden.py NAME...         only these: cases, `tiny`, `ops`
  python3 scripts/make_golden.py --check         makes them again and compares with what is stored:
                                                 inputs, ids and rule-made weights bit for bit
  python3 scripts/make_golden.py --compare DIR   the same against the files in DIR (say golden/),
                                                 under either version; prints what differs most
  python3 scripts/make_golden.py --manifest      only golden/MANIFEST
  python3 scripts/make_golden.py --search        for each case the first ids without near ties
"""

import hashlib
import json
import os
import sys
import tempfile

import torch
import transformers

import hf_taps
import rule

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
GOLDEN = os.path.join(ROOT, "golden")
HF = os.path.join(GOLDEN, "hf")

# ---- the random configs -------------------------------------------------------------------------

# Nothing square, H/K not K, F not I, M not H*hd. Each case below says what it changes.
BASE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 40,
    "intermediate_size": 44,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 18,
    "norm_topk_prob": True,
    "num_attention_heads": 6,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 50,
}


def case(start=0, tokens=4, ids=0, drop=(), **changes):
    """config, first position, number of tokens, and which of the rule's lists of ids is used: the
    first one that --search found to suit."""
    config = {**BASE, **changes}
    for key in drop:
        del config[key]
    return dict(sorted(config.items())), start, tokens, ids


def yarn(**keys):
    return {"rope_type": "yarn", **keys}


# The 5.x spelling.
def case5(start=0, tokens=4, ids=0, rope=None, **changes):
    config = case(drop=("rope_theta", "rope_scaling"), **changes)[0]
    config["num_local_experts"] = config.pop("num_experts")
    config["rope_parameters"] = rope
    config["dtype"] = "bfloat16"
    return dict(sorted(config.items())), start, tokens, ids


CASES = {
    # routing and layer kinds
    "base": case(ids=2, tokens=8, num_hidden_layers=3),
    "no-renormalise": case(drop=("norm_topk_prob",)),
    "sparse-step": case(num_hidden_layers=4, decoder_sparse_step=2),
    "mlp-only": case(num_hidden_layers=3, mlp_only_layers=[0, 2], start=100),
    "step-and-mlp-only": case(num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[9, 1]),
    "no-experts": case(num_experts=0),
    "one-expert-of-many": case(num_experts_per_tok=1, num_experts=11, norm_topk_prob=False),
    "one-expert-renormalised": case(num_experts_per_tok=1, num_experts=5),
    "all-experts": case(num_experts_per_tok=5, num_experts=5, norm_topk_prob=False),
    "wide-router": case(ids=19, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=10),
    "negative-router": case(ids=2, num_experts=4, tokens=8, norm_topk_prob=False),
    # attention
    "bias": case(attention_bias=True, start=2000),
    "tied": case(tie_word_embeddings=True),
    "head-dim-absent": case(drop=("head_dim",), hidden_size=48, start=30),
    "one-kv-head": case(num_key_value_heads=1, num_attention_heads=5),
    "every-head-its-own": case(num_key_value_heads=4, num_attention_heads=4, head_dim=6),
    "window": case(tokens=12, use_sliding_window=True, sliding_window=5),
    "window-ignored": case(ids=2, sliding_window=2),
    "window-three": case(tokens=10, start=3000, use_sliding_window=True, sliding_window=3),
    # sizes and eps
    "odd-sizes": case(hidden_size=37, head_dim=10, moe_intermediate_size=19, vocab_size=43),
    "long-rows": case(hidden_size=101, head_dim=34, moe_intermediate_size=33, start=512),
    "eps": case(ids=8, rms_norm_eps=1e-05, tokens=8),
    # rotary embedding
    "rope-absent": case(drop=("rope_theta", "rope_scaling"), start=1234),
    "positions": case(start=7000, tokens=6, rope_theta=10000000.0, head_dim=16),
    "rope-linear": case(start=2000, rope_scaling={"rope_type": "linear", "factor": 3.0}),
    "rope-dynamic": case(start=21, tokens=6, max_position_embeddings=16, head_dim=16,
                         rope_scaling={"rope_type": "dynamic", "factor": 2.5}),
    "rope-dynamic-short": case(start=9, max_position_embeddings=15, rope_theta=10000.0,
                               rope_scaling={"type": "dynamic", "factor": 4.0}),
    "rope-yarn": case(start=5000, head_dim=32, rope_scaling=yarn(
        factor=4.0, original_max_position_embeddings=32768)),
    "rope-yarn-not-truncated": case(start=900, head_dim=16, rope_theta=10000.0, rope_scaling=yarn(
        factor=8.0, original_max_position_embeddings=128, truncate=False)),
    "rope-yarn-attention-factor": case(start=40, head_dim=16, rope_scaling=yarn(
        factor=2.0, original_max_position_embeddings=1024, attention_factor=0.75, beta_fast=20.0,
        beta_slow=2.0)),
    "rope-yarn-mscale": case(start=4096, head_dim=16, max_position_embeddings=512,
                             rope_scaling=yarn(factor=40.0, mscale=0.8, mscale_all_dim=0.5)),
    "rope-llama3": case(ids=1, start=1500, head_dim=16, rope_theta=500000.0, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256}),
    # the 5.x spelling
    "spelling-5": case5(start=3, rope={"rope_type": "default", "rope_theta": 5000000.0}),
    "spelling-5-yarn": case5(start=6000, head_dim=16, rope={
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0,
        "original_max_position_embeddings": 2048}),
}

# Cases with a float64 run beside the float32 one.
TRUTH_CASES = ["base", "bias", "long-rows", "sparse-step"]

# In no run may the order of the first A + 1 probabilities hang on rounding: smallest relative gap.
MARGIN = 1e-3


def suits(name, config, runs):
    """Whether these ids give a case worth storing."""
    c = hf_taps.full_config(config)
    gaps = {dtype: hf_taps.margins(taps, c["num_experts_per_tok"], c["num_experts"])
            for dtype, taps in runs.items()}
    if any(not gap >= MARGIN for gap in gaps.values()):
        return None
    for taps in runs.values():
        if not all(torch.isfinite(v).all() for v in taps.values() if v.is_floating_point()):
            return None
    negative = min(sum(int((v < 0).all(dim=-1).sum()) for n, v in taps.items()
                       if n.endswith("mlp.gate.output")) for taps in runs.values())
    small = (runs["float32"]["input_ids"] % 7 == 3).sum().item()
    if (name == "negative-router" and negative < 2) or (name == "eps" and small < 3):
        return None
    return {"gap": gaps, "negative": negative, "small": small}


def make_ids(name, attempt):
    """List `attempt` of the case's ids, by the rule."""
    config, _, tokens, _ = CASES[name]
    u = rule.bits(rule.key(name, f"input_ids.{attempt}"), 0, tokens)
    return (u % config["vocab_size"]).astype("int64").tolist()


def load_models(name):
    return {d: hf_taps.load_rule(CASES[name][0], name, t) for d, t in hf_taps.DTYPES.items()}


def run_case(name, ids, models):
    """taps by dtype."""
    config, start = CASES[name][:2]
    if "dynamic" in json.dumps(config):
        models = load_models(name)  # dynamic RoPE keeps the frequencies of earlier runs
    return {d: hf_taps.run(model, config, ids, start) for d, model in models.items()}


def search(name):
    """Prints the first list of ids that suits."""
    models = load_models(name)
    for attempt in range(20000):
        found = suits(name, CASES[name][0], run_case(name, make_ids(name, attempt), models))
        if found:
            mark = "" if attempt == CASES[name][3] else f"   NOT {CASES[name][3]}"
            print(f"{name}: ids {attempt}{mark}", flush=True)
            return
    raise SystemExit(f"{name}: no ids without near ties")


def truth_tensors(single, double):
    """truth - float32 tap, as float32: added to the stored float32 tap it is the float64 value to
    about 2^-48 of it."""
    tensors = {}
    for name, value in double.items():
        if value.is_floating_point():
            tensors[name] = (value - single[name].double()).float()
        else:
            assert torch.equal(value, single[name]), name
    return tensors


def truth_of(model64, config, ids, start, single):
    import truth
    return truth_tensors(single, truth.float64_run(model64, config, ids, start))


def write_case(folder, name):
    config, start, _, attempt = CASES[name]
    ids = make_ids(name, attempt)
    runs = run_case(name, ids, load_models(name))
    found = suits(name, config, runs)
    assert found, f"{name}: these ids have near ties"
    print(f"{name}: smallest gap " + ", ".join(f"{d} {g:.1e}" for d, g in found["gap"].items())
          + f"; rows of logits all negative {found['negative']}, small rows {found['small']}",
          flush=True)
    path = os.path.join(folder, "hf", name)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    for dtype in hf_taps.DTYPES:
        hf_taps.write_taps(f"{path}/taps-{dtype}.safetensors", runs[dtype], dtype, config, start)
    if name in TRUTH_CASES:
        tensors = truth_of(hf_taps.load_rule(config, name, torch.float64), config, ids, start,
                           runs["float32"])
        hf_taps.write_tensors(f"{path}/truth.safetensors", tensors, {
            "format": "qwen3moe-truth-1", "producer": "transformers " + transformers.__version__})


# ---- the manifest -------------------------------------------------------------------------------


def write_manifest():
    lines = []
    for folder, folders, files in os.walk(GOLDEN):
        folders.sort()
        for name in files:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, GOLDEN).replace(os.sep, "/")
            if relative != "MANIFEST":
                digest = hashlib.sha256(open(path, "rb").read()).hexdigest()
                lines.append((relative, digest))
    with open(os.path.join(GOLDEN, "MANIFEST"), "w", newline="\n") as f:
        f.writelines(f"{digest}  {name}\n" for name, digest in sorted(lines))


# ---- comparing ----------------------------------------------------------------------------------

# Relative L2 distance of a tap between two processors or releases, both free-running. float32: a
# few times the distance of Hugging Face from exact arithmetic (1e-6). The 2-byte dtypes: an element
# on the other side of a rounding boundary moves everything after it by a few units in the last place.
BOUND = {"float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}


def compare_file(old, new, label, worst):
    """Problems found between two files of one name; worst collects the largest differences."""
    (a, am), (b, bm) = hf_taps.read_tensors(old), hf_taps.read_tensors(new)
    problems = []
    drop = lambda m: {k: v for k, v in m.items() if k != "producer"}
    if list(a) != list(b):
        return [f"{label}: not the same tensors"]
    if drop(am) != drop(bm):
        problems.append(f"{label}: not the same metadata")
    for name in a:
        x, y = a[name], b[name]
        if x.dtype != y.dtype or x.shape != y.shape:
            problems.append(f"{label}: {name}: another dtype or shape")
        elif not x.is_floating_point():
            if not torch.equal(x, y):
                problems.append(f"{label}: {name}: other integers")
        else:
            problems += compare_floats(x, y, f"{label}: {name}", am, worst)
    return problems


def compare_floats(x, y, label, metadata, worst):
    if torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8)):
        return []
    if metadata["format"] == "qwen3moe-truth-1":
        return []  # float64 minus float32: checked by its sum, in compare_truth
    dtype = metadata.get("dtype", str(x.dtype).split(".")[1])
    x64, y64 = x.double(), y.double()
    distance = ((x64 - y64).norm() / x64.norm().clamp(min=1e-300)).item()
    share = (x != y).double().mean().item()
    worst.setdefault(dtype, []).append((distance, share, label))
    if not distance <= BOUND[dtype]:
        return [f"{label}: relative L2 distance {distance:.1e}, at most {BOUND[dtype]:.0e}"]
    return []


def compare_truth(old, new, label):
    """The float64 values themselves, float32 tap plus difference."""
    problems = []
    sums = []
    for path in (old, new):
        taps, _ = hf_taps.read_tensors(os.path.join(path, "taps-float32.safetensors"))
        delta, _ = hf_taps.read_tensors(os.path.join(path, "truth.safetensors"))
        sums.append({n: taps[n][-d.shape[0]:].double() + d.double() if d.shape == taps[n].shape
                     else None for n, d in delta.items()})
    for name in sums[0]:
        x, y = sums[0][name], sums[1][name]
        distance = ((x - y).norm() / x.norm().clamp(min=1e-300)).item()
        if not distance <= 1e-12:
            problems.append(f"{label}: {name}: float64 values differ by {distance:.1e}")
    return problems


def weights_digest(name):
    """sha256 of the rule's weights: float32, little-endian, in the order of the checkpoint."""
    digest = hashlib.sha256()
    for tensor in hf_taps.rule_checkpoint(CASES[name][0], name).values():
        digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def weights_lines(names):
    return [f"{weights_digest(name)}  {name}\n" for name in names]


def compare_weights(old, names):
    stored = open(os.path.join(old, "hf", "weights.sha256")).readlines()
    return [f"hf/weights.sha256: other weights: {line.strip()}" for line in weights_lines(names)
            if line not in stored]


def compare_folders(old, new, names):
    problems, worst, files, tensors = [], {}, 0, 0
    problems += compare_weights(old, [name for name in names if name in CASES])
    for name in names:
        folder = "ops" if name == "ops" else f"hf/{name}"
        entries = sorted(os.listdir(os.path.join(new, folder)))
        if entries != sorted(os.listdir(os.path.join(old, folder))):
            problems.append(f"{folder}: not the same files")
            continue
        for entry in entries:
            a, b, label = (os.path.join(d, folder, entry) for d in (old, new, ""))
            label = f"{folder}/{entry}"
            files += 1
            if not entry.endswith(".safetensors"):
                if open(a, "rb").read() != open(b, "rb").read():
                    problems.append(f"{label}: other bytes")
                continue
            tensors += len(hf_taps.read_tensors(b)[0])
            problems += compare_file(a, b, label, worst)
        if "truth.safetensors" in entries:
            problems += compare_truth(os.path.join(old, folder), os.path.join(new, folder), folder)
    print(f"{files} files, {tensors} tensors, transformers {transformers.__version__}")
    for dtype, found in sorted(worst.items()):
        distance, share, label = max(found)
        print(f"{dtype}: {len(found)} tensors differ; largest relative L2 distance {distance:.1e} "
              f"({100 * share:.2g} % of elements) in {label}")
    print("\n".join(problems) or "all within the bounds")
    return 1 if problems else 0


# ---- command ------------------------------------------------------------------------------------


def make(folder, names):
    for name in names:
        if name in CASES:
            write_case(folder, name)
        else:
            raise SystemExit(f"no case {name}")


def main(arguments):
    everything = list(CASES)
    if arguments[:1] == ["--manifest"]:
        write_manifest()
        return 0
    if arguments[:1] in (["--check"], ["--compare"]):
        rest = arguments[1:]
        old = GOLDEN if arguments[0] == "--check" else rest.pop(0)
        names = rest or everything
        with tempfile.TemporaryDirectory() as new:
            make(new, names)
            return compare_folders(old, new, names)
    if arguments[:1] == ["--search"]:
        for name in arguments[1:] or everything:
            search(name)
        return 0
    make(GOLDEN, arguments or everything)
    with open(os.path.join(HF, "weights.sha256"), "w", newline="\n") as f:
        f.writelines(weights_lines(CASES))
    write_manifest()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
