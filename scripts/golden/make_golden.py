# SPDX-License-Identifier: MIT
"""Makes golden/hf, golden/turns and golden/ops: what Hugging Face computes, stored. See golden/README.md.

Needs torch==2.13.0, transformers==5.17.0 (4.57.6 for a comparison), safetensors, numpy.

  python3 scripts/golden/make_golden.py                 makes golden/hf, golden/ops and golden/MANIFEST
  python3 scripts/golden/make_golden.py NAME...         only these: cases, `tiny`, `turns`, `ops`
  python3 scripts/golden/make_golden.py --check         makes them again and compares with what is stored:
                                                 inputs, ids and rule-made weights bit for bit
  python3 scripts/golden/make_golden.py --compare DIR   the same against the files in DIR (say golden/),
                                                 under either version; prints what differs most
  python3 scripts/golden/make_golden.py --manifest      only golden/MANIFEST
  python3 scripts/golden/make_golden.py --search        for each case the first ids without near ties
"""

import hashlib
import json
import os
import sys
import tempfile

# torch computes with the instructions that the golden files were made with: on a processor with AVX512-FP16 or
# AMX its float16 and bfloat16 sums would be others. Before it is loaded, and not for who only imports this.
if __name__ == "__main__":
    os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2")

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

import golden_ops
import hf_taps
import rule
import truth

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
GOLDEN = os.path.join(ROOT, "golden")
HF = os.path.join(GOLDEN, "hf")
TINY = os.path.join(GOLDEN, "tiny")
PRODUCER = "transformers " + transformers.__version__

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


def rope(**changes):
    return case(num_hidden_layers=1, **changes)


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
    "dense": case(model_type="qwen3", architectures=["Qwen3ForCausalLM"], num_experts=0, tie_word_embeddings=True,
                  start=70, drop=("decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size",
                                  "norm_topk_prob", "num_experts_per_tok")),
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
    # rotary embedding: a single layer shows it
    "rope-absent": rope(drop=("rope_theta", "rope_scaling"), start=1234),
    "positions": rope(start=7000, tokens=6, rope_theta=10000000.0, head_dim=16),
    "rope-linear": rope(start=2000, rope_scaling={"rope_type": "linear", "factor": 3.0}),
    "rope-dynamic": rope(start=21, tokens=6, max_position_embeddings=16, head_dim=16,
                         rope_scaling={"rope_type": "dynamic", "factor": 2.5}),
    "rope-dynamic-short": rope(start=9, max_position_embeddings=15, rope_theta=10000.0,
                               rope_scaling={"type": "dynamic", "factor": 4.0}),
    "rope-yarn": rope(start=5000, head_dim=32, rope_scaling=yarn(
        factor=4.0, original_max_position_embeddings=32768)),
    "rope-yarn-not-truncated": rope(start=900, head_dim=16, rope_theta=10000.0, rope_scaling=yarn(
        factor=8.0, original_max_position_embeddings=128, truncate=False)),
    "rope-yarn-attention-factor": rope(start=40, head_dim=16, rope_scaling=yarn(
        factor=2.0, original_max_position_embeddings=1024, attention_factor=0.75, beta_fast=20.0,
        beta_slow=2.0)),
    "rope-yarn-mscale": rope(start=4096, head_dim=16, max_position_embeddings=512,
                             rope_scaling=yarn(factor=40.0, mscale=0.8, mscale_all_dim=0.5)),
    "rope-llama3": rope(start=1500, head_dim=16, rope_theta=500000.0, rope_scaling={
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


def token_axis(name):
    return 1 if name.endswith((".scores.output", ".probs.output")) else 0


def last_tokens(name, value, first):
    return value.narrow(token_axis(name), first, value.shape[token_axis(name)] - first)


def write_truth(path, model64, config, ids, start, single, first=0):
    """float64 tap - float32 tap, as float32, of tokens first, first + 1, ...: added to the stored
    float32 tap it is the float64 value to about 2^-48 of it."""
    tensors = {}
    for name, value in truth.float64_run(model64, config, ids, start).items():
        if value.is_floating_point():
            delta = (value - single[name].double()).float()
            tensors[name] = last_tokens(name, delta, first)
        else:
            assert torch.equal(value, single[name]), name
    hf_taps.write_tensors(path, tensors, {
        "format": "qwen3moe-truth-1", "producer": PRODUCER, "first": str(first)})


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
        write_truth(f"{path}/truth.safetensors", hf_taps.load_rule(config, name, torch.float64),
                    config, ids, start, runs["float32"])


# ---- golden/turns -------------------------------------------------------------------------------

# Second turns of cases: tokens of the first, of the second, dtypes, and which of the rule's lists of ids. window
# keeps 4 keys of 8; rope-dynamic's frequencies change between the two.
TURNS = {"base": (5, 3, ("float32", "bfloat16"), 0),
         "window": (8, 4, ("bfloat16",), 0),
         "rope-dynamic": (12, 6, ("float32",), 0)}


def write_turns(folder):
    os.makedirs(os.path.join(folder, "turns"), exist_ok=True)
    for name, (past, own, dtypes, attempt) in TURNS.items():
        config = CASES[name][0]
        u = rule.bits(rule.key(name, f"turns.{attempt}"), 0, past + own)
        ids = (u % config["vocab_size"]).astype("int64").tolist()
        runs = {}
        for dtype in dtypes:
            model = hf_taps.load_rule(config, name, hf_taps.DTYPES[dtype])
            runs[dtype] = hf_taps.run_turn(model, config, ids, past)
        c = hf_taps.full_config(config)
        gaps = [hf_taps.margins(taps, c["num_experts_per_tok"], c["num_experts"]) for taps in runs.values()]
        assert all(gap >= MARGIN for gap in gaps), f"{name}: these ids have near ties"
        for dtype, taps in runs.items():
            kept = taps["past_key_values.layers.0.keys"].shape[-2]
            taps = dict(sorted(taps.items(), key=lambda tap: -tap[1].element_size()))
            hf_taps.write_taps(f"{folder}/turns/{name}-{dtype}.safetensors", taps, dtype, config, past,
                               past=str(kept))


# ---- golden/tiny --------------------------------------------------------------------------------

# The first text's first TINY_TOKENS ids are where every tap is stored: chosen because no routing
# hangs on rounding there. The others: short and long, in the manner of the training text and not.
PROMPTS = [
    "It is like a grain of mustard seed, which, when it is sown in the earth, is less than all the"
    " seeds that be in the earth:",
    "In the beginning",
    "And",
    "<|endoftext|>",
    "And it came to pass in those days, that the king",
    "The LORD is my shepherd; I shall",
    "Blessed are",
    "Then answered Jesus and said unto them,",
    "These are the generations of the sons of Noah, Shem, Ham, and Japheth: and unto them were sons"
    " born after the flood. The sons of Japheth; Gomer, and Magog, and Madai, and",
    "Now the names of the children of Israel, which came into Egypt",
    "In 1984, the caf\u00e9's 7 owners wrote:\n\tif (x != y) return",
    "But thou, O",
]
TINY_TOKENS = 24
TINY_FIRST = 16  # the float64 run is stored from this token on
NEW_TOKENS = 64


def tiny_ids():
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(TINY, "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in PROMPTS]


@torch.no_grad()
def greedy(model, ids):
    """The next NEW_TOKENS ids with a cache, whatever eos says, and the two best logits of each step
    with their ids; the logits of the prompt's last position."""
    cache = transformers.DynamicCache(config=model.config)
    step, new, best, first = torch.tensor([ids]), [], [], None
    for _ in range(NEW_TOKENS):
        logits = model(input_ids=step, past_key_values=cache, use_cache=True).logits[0, -1]
        first = logits if first is None else first
        best.append(torch.topk(logits.float(), 2))
        new.append(int(logits.argmax()))
        step = torch.tensor([[new[-1]]])
    same = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)),
                          max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
                          eos_token_id=None, pad_token_id=0)
    assert same[0, len(ids):].tolist() == new, "generate() says otherwise"
    return {"logits": first, "ids": torch.tensor(new, dtype=torch.int32),
            "top": torch.stack([b.values for b in best]),
            "top_ids": torch.stack([b.indices for b in best]).to(torch.int32)}


def write_tiny(folder):
    path = os.path.join(folder, "hf", "tiny")
    os.makedirs(path, exist_ok=True)
    config = json.load(open(os.path.join(TINY, "config.json")))
    prompts = tiny_ids()
    ids = prompts[0][:TINY_TOKENS]
    assert len(ids) == TINY_TOKENS and TINY_TOKENS % 2 == 0
    models = {d: hf_taps.load_folder(TINY, t) for d, t in hf_taps.DTYPES.items()}
    runs = {d: hf_taps.run(model, config, ids) for d, model in models.items()}
    found = suits("tiny", config, runs)
    assert found, "tiny: near ties"
    print("tiny: smallest gap " + ", ".join(f"{d} {g:.1e}" for d, g in found["gap"].items()))
    for dtype, taps in runs.items():
        hf_taps.write_taps(f"{path}/taps-{dtype}.safetensors", taps, dtype, config, 0)
    write_truth(f"{path}/truth.safetensors", hf_taps.load_folder(TINY, torch.float64), config, ids,
                0, runs["float32"], TINY_FIRST)
    tensors = {f"prompt{p}.prompt": torch.tensor(ids, dtype=torch.int32)
               for p, ids in enumerate(prompts)}
    for dtype, model in models.items():
        for p, ids in enumerate(prompts):
            for field, value in greedy(model, ids).items():
                tensors[f"prompt{p}.{dtype}.{field}"] = value
    order = sorted(tensors, key=lambda n: -tensors[n].element_size())
    hf_taps.write_tensors(f"{path}/generate.safetensors", {n: tensors[n] for n in order}, {
        "format": "qwen3moe-generate-1", "producer": PRODUCER, "prompts": str(len(prompts)),
        "new_tokens": str(NEW_TOKENS),
        **{f"prompt{p}": text for p, text in enumerate(PROMPTS)}})
    with open(f"{path}/in-the-beginning.ids", "w") as f:
        new = tensors[f"prompt{PROMPTS.index('In the beginning')}.float32.ids"].tolist()
        f.write(" ".join(map(str, new)) + "\n")
    print(f"tiny: {len(prompts)} prompts of {[len(i) for i in prompts]} tokens", flush=True)


# ---- model folders, for other scripts ------------------------------------------------------------


def write_model(folder, case):
    """Writes a model folder for the case, or for "tiny-sparse"; returns config, ids, first position."""
    taken = "tiny" if case == "tiny-sparse" else case
    taps, metadata = hf_taps.read_tensors(f"{HF}/{taken}/taps-float32.safetensors")
    if case.startswith("tiny"):
        config = json.load(open(os.path.join(TINY, "config.json")))
        weights = load_file(os.path.join(TINY, "model.safetensors"))
        if case == "tiny-sparse":
            config, weights = without_dense(config, weights)
    else:
        config = CASES[case][0]
        weights = hf_taps.rule_checkpoint(config, case)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    return config, taps["input_ids"].tolist(), int(metadata["start"])


def without_dense(config, weights):
    """The same model with its dense layers left out, which llama.cpp's qwen3moe cannot have."""
    full = hf_taps.full_config(config)
    kept = [i for i in range(full["num_hidden_layers"]) if hf_taps.is_sparse(full, i)]
    config = {**config, "num_hidden_layers": len(kept), "mlp_only_layers": []}
    renamed = {}
    for name, value in weights.items():
        if name.startswith("model.layers."):
            _, _, i, rest = name.split(".", 3)
            if int(i) not in kept:
                continue
            name = f"model.layers.{kept.index(int(i))}.{rest}"
        renamed[name] = value
    return config, renamed


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
                lines.append(("golden/" + relative, digest))
    with open(os.path.join(GOLDEN, "MANIFEST"), "w", newline="\n") as f:
        f.writelines(f"{digest}  {name}\n" for name, digest in sorted(lines))


# ---- comparing ----------------------------------------------------------------------------------

# Relative L2 distance of a tap between two processors or releases, both free-running. float32: a
# few times the distance of Hugging Face from exact arithmetic (1e-6). The 2-byte dtypes: an element
# on the other side of a rounding boundary moves all that follows by a few units of the last place.
BOUND = {"float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}


def bits_equal(x, y):
    return torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


def angle_allowance(a, b):
    """0 where the rotary table has the same bits. Else another processor's pow() moved an inverse
    frequency by a unit of its last place, 2^-24 or a little more of the angle: the share of the
    largest angle in everything that follows."""
    if "model.rotary_emb.cos" not in a or bits_equal(a["model.rotary_emb.cos"],
                                                     b["model.rotary_emb.cos"]):
        return 0.0
    return 2.0**-22 * float(a["position_ids"].max())


def sum_allowance(tensors, name):
    """How far apart two float32 sums may be in an operator's output, each of them in an order of its own: two
    standard deviations of the difference of two random walks of n roundings, 2 sqrt(2 n) 2^-24 of the sum's size
    (MODEL.md section 10), over the output's own size, which is small where the sum cancels. In a softmax the
    scores' error is one of the exponent, and so a share of each probability."""
    prefix, dtype, field = (name.split(".") + ["", ""])[:3]
    of = {k.rpartition(".")[2]: v.double().nan_to_num(0, 0, 0) for k, v in tensors.items()
          if k.startswith(f"{prefix}.{dtype}.")}
    walk = lambda n: 2 * (2 * n) ** 0.5 * 2.0**-24
    size = lambda x: x.norm().clamp(min=1e-300)
    if dtype != "float32" or not (field == "y" or field == "probs"):
        return 0.0
    if field == "y" and {"x", "weight"} <= set(of) and of["weight"].dim() == of["x"].dim() == 2:
        sums = of["x"].abs() @ of["weight"].abs().T
        return walk(of["x"].shape[1]) * (size(sums) / size(of["y"])).item()
    if not {"q", "k", "v"} <= set(of):
        return 0.0
    heads, width = of["q"].shape[1:]
    k, v = (of[x].abs().repeat_interleave(heads // of[x].shape[1], 1) for x in "kv")
    error = walk(width) * width**-0.5 * torch.einsum("thd,shd->hts", of["q"].abs(), k).max().item()
    if field == "probs":
        return error
    return error * (size(torch.einsum("hts,shd->thd", of["probs"], v)) / size(of["y"])).item()


def inputs_of(metadata, name):
    """Whether a tensor is an input, which must have the same bits."""
    if metadata["format"] == "qwen3moe-op-1":
        prefix, _, field = name.split(".")
        return field in json.loads(metadata[prefix])["inputs"]
    return name in ("input_ids", "position_ids") or name.endswith(".prompt")


def compare_file(old, new, label, worst):
    """Problems found between two files of one name; worst collects the largest differences."""
    (a, am), (b, bm) = hf_taps.read_tensors(old), hf_taps.read_tensors(new)
    drop = lambda m: {k: v for k, v in m.items() if k != "producer"}
    if list(a) != list(b) or drop(am) != drop(bm):
        return [f"{label}: not the same tensors or metadata"]
    problems, allowance = [], angle_allowance(a, b)
    for name in a:
        x, y, where = a[name], b[name], f"{label}: {name}"
        if x.dtype != y.dtype or x.shape != y.shape:
            problems.append(f"{where}: another dtype or shape")
        elif bits_equal(x, y):
            continue
        elif inputs_of(am, name):
            problems.append(f"{where}: other bits in an input")
        elif x.is_floating_point():
            more = sum_allowance(a, name) if am["format"] == "qwen3moe-op-1" else 0.0
            problems += compare_floats(x, y, where, name, allowance + more, worst)
        elif am.get("dtype", name.split(".")[1]) in ("bfloat16", "float16"):
            # Another routing or another next token: all that follows is another computation.
            worst.setdefault("another choice", []).append((1.0, 1.0, where))
            break
        else:
            problems.append(f"{where}: other integers")
    return problems


def compare_floats(x, y, where, name, allowance, worst):
    x, y, dtype = x.double(), y.double(), str(x.dtype).split(".")[1]
    finite = torch.isfinite(x)
    if not torch.equal(torch.nan_to_num(x[~finite], 0.5), torch.nan_to_num(y[~finite], 0.5)):
        return [f"{where}: other infinities or NaNs"]
    share = (x[finite] != y[finite]).double().mean().item()
    distance = ((x - y)[finite].norm() / x[finite].norm().clamp(min=1e-300)).item()
    worst.setdefault(dtype, []).append((distance, share, where))
    bound = BOUND[dtype] + allowance
    if not distance <= bound:
        return [f"{where}: relative L2 distance {distance:.1e}, at most {bound:.1e}"]
    return []


def compare_truth(old, new, label):
    """The float64 values themselves: float32 tap plus difference."""
    sums = []
    for path in (old, new):
        taps, _ = hf_taps.read_tensors(os.path.join(path, "taps-float32.safetensors"))
        delta, metadata = hf_taps.read_tensors(os.path.join(path, "truth.safetensors"))
        first = int(metadata["first"])
        sums.append({n: last_tokens(n, taps[n].double(), first) + d.double()
                     for n, d in delta.items()})
    problems = []
    for name, x in sums[0].items():
        distance = ((x - sums[1][name]).norm() / x.norm().clamp(min=1e-300)).item()
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
        folder = name if name in ("ops", "turns") else f"hf/{name}"
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
            if entry != "truth.safetensors":
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
        if name == "tiny":
            write_tiny(folder)
        elif name == "turns":
            write_turns(folder)
        elif name == "ops":
            golden_ops.write(os.path.join(folder, "ops"))
        elif name in CASES:
            write_case(folder, name)
        else:
            raise SystemExit(f"no case {name}")


def main(arguments):
    # The operators' files call modules that 4.57.6 does not have.
    everything = list(CASES) + ["tiny", "turns"] + (["ops"] if hf_taps.V5 else [])
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
        for name in arguments[1:] or CASES:
            search(name)
        return 0
    make(GOLDEN, arguments or everything)
    with open(os.path.join(HF, "weights.sha256"), "w", newline="\n") as f:
        f.writelines(weights_lines(CASES))
    write_manifest()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
