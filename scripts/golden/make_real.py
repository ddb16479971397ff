# SPDX-License-Identifier: MIT
"""Makes golden/real: what Hugging Face computes in one layer, and at the ends, of the published models, at full
size, with weights by the rule of rule.py. See golden/real/README.md.

Needs torch==2.13.0, transformers==5.17.0 (4.57.6 for a comparison), safetensors, numpy; 5 GB of memory.

  python3 scripts/golden/make_real.py                    makes golden/real (README.md apart) and golden/MANIFEST
  python3 scripts/golden/make_real.py NAME...            only these: names of golden/real's folders
  python3 scripts/golden/make_real.py --check [NAME]...  makes them again and compares, within make_golden.py's bounds
  python3 scripts/golden/make_real.py --all FOLDER [NAME]...
                                   every tap of every run, float16 too: 50 MB in FOLDER, for real_table.py
  python3 scripts/golden/make_real.py --search           for each run the first input without near ties

How so large a layer runs in 5 GB: the model is Hugging Face's own Qwen3MoeForCausalLM, made with one layer and
without memory for its weights (`meta`). Then each weight is put in its place, by the rule, which bfloat16 holds
exactly; an expert's when the layer reads it, so that the experts that no token chose are never made; of the
embedding the tokens' rows alone. The head is called by itself, some of its rows at a time. A layer behind the first
starts from hidden states by the rule, in the place of the embeddings.
"""

import gc
import json
import os
import sys
import tempfile

if __name__ == "__main__":  # as in make_golden.py
    os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2")

import numpy as np
import torch
import transformers
from transformers.models.qwen3_moe import modeling_qwen3_moe as modeling

import hf_taps
import make_golden
import rule

REAL = os.path.join(make_golden.GOLDEN, "real")
SEED = "real"
TOKENS = 4
PIECE = 1 << 16  # elements that are made at a time: they stay in the processor's cache
HEAD_ROWS = 8192  # rows of the head

# ---- the models ---------------------------------------------------------------------------------

# golden/trees has the published configs; those of July 2025 (2507) are the same but for these keys.
LONG = {"max_position_embeddings": 262144}
MODELS = {
    "Qwen3-30B-A3B": ("Qwen3-30B-A3B", {}),
    "Qwen3-30B-A3B-2507": ("Qwen3-30B-A3B", {**LONG, "rope_theta": 10000000.0}),
    "Qwen3-235B-A22B": ("Qwen3-235B-A22B", {}),
    "Qwen3-235B-A22B-2507": ("Qwen3-235B-A22B", {**LONG, "rope_theta": 5000000.0}),
    "Qwen3-Coder-480B-A35B": ("Qwen3-Coder-480B-A35B-Instruct", {}),
}

# A run: model, layer, first position, and which of the rule's inputs (the first that --search found to suit).
# The last layer has the final norm and the head behind it.
RUNS = [
    ("Qwen3-30B-A3B", 0, 0, 5),
    ("Qwen3-30B-A3B", 24, 40000, 10),
    ("Qwen3-30B-A3B-2507", 47, 262140, 11),
    ("Qwen3-235B-A22B", 0, 0, 3),
    ("Qwen3-235B-A22B", 47, 40000, 14),
    ("Qwen3-235B-A22B-2507", 93, 262140, 70),
    ("Qwen3-Coder-480B-A35B", 0, 0, 1),
    ("Qwen3-Coder-480B-A35B", 31, 40000, 95),
    ("Qwen3-Coder-480B-A35B", 61, 262140, 1),
]

# ---- what is stored -----------------------------------------------------------------------------

ALWAYS = "input_ids position_ids model.rotary_emb.cos model.rotary_emb.sin mlp.topk_indices.output"
PLACE = ("model.embed_tokens.output self_attn.k_rope.output self_attn.scores.output self_attn.probs.output "
         "mlp.gate.output mlp.router_probs.output mlp.topk_weights.output")
# Left out where they are large: what follows is then judged together with them.
STEPS = "mlp.experts.up_proj.output mlp.experts.act_fn.output"
WIDE = (" self_attn.q_proj.output self_attn.k_proj.output self_attn.q_norm.output self_attn.k_norm.output"
        " self_attn.o_proj.output post_attention_layernorm.output mlp.experts.gate_proj.output"
        " mlp.experts.down_proj.output mlp.output")


def stored_taps(model, layer, dtype, last):
    """The taps that golden/real keeps of a run, without the layer's number; None: it keeps nothing."""
    if dtype == "float16" or (model == "Qwen3-Coder-480B-A35B" and layer == 31):
        return None
    if not last:  # the position is what is new
        more = "self_attn.q_rope.output post_attention_layernorm.input" if dtype == "bfloat16" else ""
        return set(f"{ALWAYS} {PLACE} {more}".split())
    left = ""
    if "30B" not in model:
        left += STEPS
        if dtype == "float32":
            left += WIDE
        elif "480B" in model:
            left += " self_attn.q_norm.output mlp.experts.gate_proj.output"
    every = [*hf_taps.LAYER_ORDER, *ALWAYS.split(), *PLACE.split(), "model.norm.output", "lm_head.output"]
    return set(every) - set(left.split())


def short_name(name):
    return name.split(".", 3)[3] if name.startswith("model.layers.") else name


def select(taps, model, layer, dtype, last):
    """Of a run's taps what is stored, the hidden states that it starts from among it."""
    keep = stored_taps(model, layer, dtype, last)
    start = f"model.layers.{layer - 1}.output"
    return keep and {n: v for n, v in taps.items() if n == start or short_name(n) in keep}


# ---- weights ------------------------------------------------------------------------------------


def fill(name, shape, first=0, count=None):
    """All rows or some by the rule, in bfloat16, which holds every value of it."""
    count = shape[0] - first if count is None else count
    out = torch.empty((count, *shape[1:]), dtype=torch.bfloat16)
    step = max(1, PIECE // out[0].numel())
    for row in range(0, count, step):
        n = min(step, count - row)
        out[row:row + n] = torch.from_numpy(rule.fill(SEED, name, shape, first + row, n))
    return out


class Experts:
    """What stands for the experts' weights: makes an expert's when it is read, and keeps them as bfloat16."""

    def __init__(self, kept, prefix, config, dtype, parts):
        self.kept, self.prefix, self.dtype, self.parts = kept, prefix, dtype, parts
        M, F = config["hidden_size"], config["moe_intermediate_size"]
        self.shapes = {"gate_proj": (F, M), "up_proj": (F, M), "down_proj": (M, F)}

    def weight(self, e, part):
        name = f"{self.prefix}{int(e)}.{part}.weight"
        if name not in self.kept:
            self.kept[name] = fill(name, self.shapes[part])
        return self.kept[name]

    def __getitem__(self, e):
        return torch.cat([self.weight(e, part) for part in self.parts]).to(self.dtype)


class ExpertModules(Experts):
    """The same for transformers 4.x, where each expert is a module."""

    def __init__(self, kept, prefix, config, dtype, made):
        super().__init__(kept, prefix, config, dtype, ())
        self.made = made

    def __getitem__(self, e):
        with torch.device("meta"):
            expert = modeling.Qwen3MoeMLP(self.made, intermediate_size=self.made.moe_intermediate_size)
        for part in self.shapes:
            weight = self.weight(e, part).to(self.dtype)
            getattr(expert, part).weight = torch.nn.Parameter(weight, requires_grad=False)
        return expert


def lazy_zeros(shape, dtype):
    """Zeros that take no memory before they are written."""
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.zeros(shape[0] * shape[1] * size, dtype=np.uint8)).view(dtype).view(shape)


def put_weights(model, layer, dtype, kept, ids):
    """Each weight by the rule; kept: those that were made before, in bfloat16."""
    for name, parameter in list(model.named_parameters()):
        full, shape = name.replace("model.layers.0.", f"model.layers.{layer}."), tuple(parameter.shape)
        if name == "lm_head.weight":  # is called by itself
            value = torch.empty((1, shape[1]), dtype=dtype)
        elif name == "model.embed_tokens.weight":
            value = lazy_zeros(shape, dtype)
            for i in set(ids):
                value[i] = torch.from_numpy(rule.fill(SEED, full, shape, i, 1)[0])
        else:
            if full not in kept:
                kept[full] = fill(full, shape)
            value = kept[full].to(dtype)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))


def make_model(config, layer, dtype, kept, ids):
    """Hugging Face's model of this one layer."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump({**config, "num_hidden_layers": 1}, f)
        made = transformers.AutoConfig.from_pretrained(folder)
    options = {"experts_implementation": "eager"} if hf_taps.V5 else {}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            made, dtype=dtype, attn_implementation="eager", **options)
    assert isinstance(model, modeling.Qwen3MoeForCausalLM)
    # The frequencies are no weight, and float32 in every dtype.
    model.model.rotary_emb = modeling.Qwen3MoeRotaryEmbedding(config=model.config)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    block, prefix = model.model.layers[0].mlp, f"model.layers.{layer}.mlp.experts."
    if hf_taps.V5:
        del block.experts.gate_up_proj, block.experts.down_proj
        block.experts.__dict__.update(
            gate_up_proj=Experts(kept, prefix, config, dtype, ("gate_proj", "up_proj")),
            down_proj=Experts(kept, prefix, config, dtype, ("down_proj",)))
    else:
        del block.experts
        block.__dict__["experts"] = ExpertModules(kept, prefix, config, dtype, model.config)
    put_weights(model, layer, dtype, kept, ids)
    assert not any(x.is_meta for x in [*model.parameters(), *model.buffers()])
    return model.eval()


# ---- runs ---------------------------------------------------------------------------------------


def read_config(model):
    source, changes = MODELS[model]
    with open(os.path.join(make_golden.GOLDEN, "trees", source + ".json"), encoding="utf-8") as f:
        return {**json.load(f), **changes}


def make_input(config, layer, attempt):
    """ids, and behind the first layer hidden states in float32: list `attempt` of the rule's."""
    if layer == 0:
        u = rule.bits(rule.key(SEED, f"input_ids.{attempt}"), 0, TOKENS)
        return (u % config["vocab_size"]).astype("int64").tolist(), None
    name = f"model.layers.{layer - 1}.output"
    hidden = torch.from_numpy(rule.fill(f"{SEED} {attempt}", name, (TOKENS, config["hidden_size"])))
    # As behind trained layers: two channels that are much larger than the others, and one of the first token.
    hidden[:, 5] *= 1024
    hidden[:, 1000] *= -512
    hidden[0, 77] *= 8192
    return [], hidden


@torch.no_grad()
def run_layer(config, layer, start, given, dtype, kept):
    """Every tap of the layer, of what comes before it and of the norm behind it."""
    ids, hidden = given
    model = make_model(config, layer, dtype, kept, ids)
    positions = torch.arange(start, start + TOKENS, dtype=torch.int64)[None]
    arguments = {"position_ids": positions, "use_cache": False,
                 "attention_mask": torch.ones((1, TOKENS), dtype=torch.int64)}
    taps = {"position_ids": positions[0]}
    if hidden is None:
        arguments["input_ids"] = torch.tensor([ids], dtype=torch.int64)
        taps["input_ids"] = arguments["input_ids"][0]
    else:
        arguments["inputs_embeds"] = hidden.to(dtype)[None]
        taps[f"model.layers.{layer - 1}.output"] = hidden.to(dtype)
    plain = model.model(**arguments).last_hidden_state
    watch = hf_taps.Watch(model)
    with watch.on():
        again = model.model(**arguments).last_hidden_state
    hf_taps.same(again, plain, "the run with hooks")
    taps.update(watch.taps)
    return {n.replace("model.layers.0.", f"model.layers.{layer}."): v for n, v in taps.items()} \
        if layer > 0 else taps


@torch.no_grad()
def run_head(config, norms):
    """Logits of the last token by dtype, some rows of the head at a time."""
    V, M = config["vocab_size"], config["hidden_size"]
    parts = {dtype: [] for dtype in norms}
    for first in range(0, V, HEAD_ROWS):
        weight = fill("lm_head.weight", (V, M), first, min(HEAD_ROWS, V - first))
        for dtype, norm in norms.items():
            head = torch.nn.Linear(1, 1, bias=False, device="meta")
            head.weight = torch.nn.Parameter(weight.to(norm.dtype), requires_grad=False)
            parts[dtype].append(head(norm[None, -1:, :])[0])
    return {dtype: torch.cat(part, dim=-1) for dtype, part in parts.items()}


def run(name, layer, start, attempt, dtypes):
    """Taps by dtype, in the order of computation."""
    config, kept, runs = read_config(name), {}, {}
    last = layer == config["num_hidden_layers"] - 1
    given = make_input(config, layer, attempt)
    for dtype in dtypes:
        runs[dtype] = run_layer(config, layer, start, given, hf_taps.DTYPES[dtype], kept)
        gc.collect()  # hooks and model hold each other
    gap = min(hf_taps.margins(taps, config["num_experts_per_tok"], config["num_experts"]) for taps in runs.values())
    assert gap >= make_golden.MARGIN, f"{name} layer {layer}: near ties ({gap:.1e}): --search finds another input"
    kept.clear()
    norms = {dtype: taps.pop("model.norm.output") for dtype, taps in runs.items()}
    for dtype, logits in run_head(config, norms).items() if last else ():
        runs[dtype].update({"model.norm.output": norms[dtype], "lm_head.output": logits})
    order = [f"model.layers.{layer - 1}.output", *(n.replace("model.layers.0.", f"model.layers.{layer}.")
             for n in hf_taps.tap_names({**config, "num_hidden_layers": 1}))]
    return {dtype: {n: taps[n] for n in order if n in taps} for dtype, taps in runs.items()}


def write(folder, names, everything):
    """The files of these models; everything: all taps, in three dtypes."""
    for name, layer, start, attempt in RUNS:
        if name not in names:
            continue
        config = read_config(name)
        last = layer == config["num_hidden_layers"] - 1
        dtypes = [d for d in hf_taps.DTYPES if everything or stored_taps(name, layer, d, last)]
        if not dtypes:
            continue
        os.makedirs(os.path.join(folder, name), exist_ok=True)
        with open(os.path.join(folder, name, "config.json"), "w", newline="\n") as f:
            json.dump(config, f, indent=2)
            f.write("\n")
        for dtype, taps in run(name, layer, start, attempt, dtypes).items():
            taps = taps if everything else select(taps, name, layer, dtype, last)
            taps = dict(sorted(taps.items(), key=lambda tap: -tap[1].element_size()))
            more = {"past": "0", **({"logit_positions": str(start + TOKENS - 1)} if last else {})}
            path = os.path.join(folder, name, f"layer-{layer}-{dtype}.safetensors")
            hf_taps.write_taps(path, taps, dtype, config, start, **more)
            print(f"{os.path.relpath(path)}: {len(taps)} tensors, {os.path.getsize(path)} bytes", flush=True)


def search(names):
    """Prints for each run the first input whose routing hangs on no rounding."""
    for name, layer, start, chosen in RUNS:
        if name not in names:
            continue
        config, kept = read_config(name), {}
        for attempt in range(1000):
            given = make_input(config, layer, attempt)
            gaps = []
            for dtype in hf_taps.DTYPES.values():
                taps = route(config, layer, start, given, dtype, kept)
                gaps.append(hf_taps.margins(taps, config["num_experts_per_tok"], config["num_experts"]))
            if min(gaps) >= make_golden.MARGIN:
                mark = "" if attempt == chosen else f"   NOT {chosen}"
                print(f"{name} layer {layer}: input {attempt}{mark}", flush=True)
                break


@torch.no_grad()
def route(config, layer, start, given, dtype, kept):
    """The router's probabilities alone."""
    ids, hidden = given
    model, found = make_model(config, layer, dtype, kept, ids), {}

    class Enough(Exception):
        pass

    def stop(module, args):
        logits = torch.nn.functional.linear(args[0][0], module.gate.weight)
        found["router_probs.output"] = torch.softmax(logits, -1, dtype=torch.float)
        raise Enough

    model.model.layers[0].mlp.register_forward_pre_hook(stop)
    inputs = {"inputs_embeds": hidden.to(dtype)[None]} if hidden is not None else {"input_ids": torch.tensor([ids])}
    try:
        model.model(position_ids=torch.arange(start, start + TOKENS)[None], use_cache=False, **inputs)
    except Enough:
        return found


# ---- command ------------------------------------------------------------------------------------


def compare(names):
    problems, worst = [], {}
    with tempfile.TemporaryDirectory() as new:
        write(new, names, False)
        for name in names:
            entries = sorted(os.listdir(os.path.join(new, name)))
            for entry in entries:
                old, made = os.path.join(REAL, name, entry), os.path.join(new, name, entry)
                if entry.endswith(".safetensors"):
                    problems += make_golden.compare_file(old, made, f"{name}/{entry}", worst)
                elif open(old, "rb").read() != open(made, "rb").read():
                    problems.append(f"{name}/{entry}: other bytes")
    for dtype, found in sorted(worst.items()):
        distance, _, label = max(found)
        print(f"{dtype}: {len(found)} tensors differ; largest relative L2 distance {distance:.1e} in {label}")
    print("\n".join(problems) or "all within the bounds")
    return 1 if problems else 0


def main(arguments):
    mode = arguments.pop(0) if arguments[:1] in (["--check"], ["--all"], ["--search"]) else ""
    folder = arguments.pop(0) if mode == "--all" and arguments else REAL
    names = arguments or list(MODELS)
    if any(name not in MODELS for name in names):
        raise SystemExit(__doc__)
    if mode == "--check":
        return compare(names)
    if mode == "--search":
        search(names)
        return 0
    write(folder, names, mode == "--all")
    if folder == REAL:
        make_golden.write_manifest()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
