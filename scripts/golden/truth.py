# SPDX-License-Identifier: MIT
"""What Hugging Face's model would give in exact arithmetic: the same modules run in float64.

Needs what hf_taps.py needs (transformers==5.17.0 or 4.57.6).

Loading the model in float64 is not enough: its norms, softmaxes and rotary embedding go through
float32. float64_run() replaces those three, and nothing else, for the time of one run. What belongs
to the definition of the model keeps its float32 value: inverse frequencies, the angles (position
times inverse frequency, one float32 product), the attention scaling of YaRN, head_dim^-0.5 and eps.

  python3 scripts/golden/truth.py     shows that the replacement works: the taps are compared with a second
                               forward pass, written below in numpy's 80-bit long double (needs x86)
"""

import contextlib
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers.models.qwen3_moe import modeling_qwen3_moe as modeling

import hf_taps


def norm_forward(self, x):
    variance = x.pow(2).mean(-1, keepdim=True)
    return self.weight * (x * torch.rsqrt(variance + float(np.float32(self.variance_epsilon))))


@contextlib.contextmanager
def float64(model):
    """Norms, softmaxes and the rotary table of this model in float64."""
    rotary, softmax = model.model.rotary_emb, F.softmax
    norm, table = modeling.Qwen3MoeRMSNorm.forward, rotary.forward

    def softmax64(x, dim=None, _stacklevel=3, dtype=None):
        assert x.dtype == torch.float64
        return softmax(x, dim=dim, dtype=torch.float64)

    def table64(x, position_ids):
        table(x, position_ids)  # dynamic RoPE makes its frequencies here
        assert rotary.inv_freq.dtype == torch.float32
        angle = position_ids[0].float()[:, None] * rotary.inv_freq[None, :]
        angle = torch.cat((angle, angle), dim=-1)[None].double()
        scaling = float(np.float32(rotary.attention_scaling))
        return angle.cos() * scaling, angle.sin() * scaling

    for layer in model.model.layers:
        a = layer.self_attn
        a.scaling = float(np.float32(a.head_dim**-0.5))
    modeling.Qwen3MoeRMSNorm.forward = norm_forward
    F.softmax = softmax64
    rotary.forward = table64
    try:
        yield
    finally:
        modeling.Qwen3MoeRMSNorm.forward = norm
        F.softmax = softmax
        rotary.forward = table


def float64_run(model, config, ids, start):
    """hf_taps.run of a model loaded in float64, with the three replacements."""
    with float64(model):
        taps = hf_taps.run(model, config, ids, start)
    for name, value in taps.items():
        if value.is_floating_point():
            assert value.dtype == torch.float64, (name, value.dtype)
    return taps


# ---- a second opinion: the forward pass in 80-bit arithmetic ------------------------------------


def rms(x, w, eps):
    return w * (x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def mlp(x, w, p, note=None):
    gate, up = x @ w[p + "gate_proj.weight"].T, x @ w[p + "up_proj.weight"].T
    act = gate / (1 + np.exp(-gate))
    if note is not None:
        note(gate, up, act, act * up)
    return (act * up) @ w[p + "down_proj.weight"].T


def long_double_taps(weights, config, ids, start, inv_freq, attention_scaling):
    c = hf_taps.full_config(config)
    L = np.longdouble
    w = {k: v.numpy().astype(L) for k, v in weights.items()}
    taps, eps = {}, L(np.float32(c["rms_norm_eps"]))
    T, H, K, hd = len(ids), c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    angle = np.arange(start, start + T).astype(np.float32)[:, None] * inv_freq[None, :]
    angle = np.concatenate((angle, angle), axis=1).astype(L)
    scaling = L(np.float32(attention_scaling))
    cos, sin = np.cos(angle) * scaling, np.sin(angle) * scaling
    taps["model.rotary_emb.cos"], taps["model.rotary_emb.sin"] = cos, sin
    h = taps["model.embed_tokens.output"] = w["model.embed_tokens.weight"][ids]
    window = c["sliding_window"] or T
    seen = np.array([[t - window < s <= t for s in range(T)] for t in range(T)])
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        x = taps[p + "input_layernorm.output"] = rms(h, w[p + "input_layernorm.weight"], eps)

        def project(name, x):
            y = x @ w[f"{a}{name}_proj.weight"].T + w.get(f"{a}{name}_proj.bias", L(0))
            taps[f"{a}{name}_proj.output"] = y
            return y

        def rotate(name, heads):
            y = rms(project(name, x).reshape(T, heads, hd), w[f"{a}{name}_norm.weight"], eps)
            taps[f"{a}{name}_norm.output"] = y
            half = np.concatenate((-y[..., hd // 2:], y[..., :hd // 2]), axis=-1)
            y = taps[f"{a}{name}_rope.output"] = y * cos[:, None] + half * sin[:, None]
            return y

        q, k, v = rotate("q", H), rotate("k", K), project("v", x).reshape(T, K, hd)
        k, v = np.repeat(k, H // K, axis=1), np.repeat(v, H // K, axis=1)
        scores = np.einsum("thd,shd->hts", q, k) * L(np.float32(hd**-0.5))
        taps[a + "scores.output"] = np.where(seen, scores, L(0))
        probs = taps[a + "probs.output"] = softmax(np.where(seen, scores, L(-np.inf)))
        o = taps[a + "o_proj.input"] = np.einsum("hts,shd->thd", probs, v).reshape(T, H * hd)
        h = taps[p + "post_attention_layernorm.input"] = h + project("o", o)
        x = rms(h, w[p + "post_attention_layernorm.weight"], eps)
        taps[p + "post_attention_layernorm.output"] = x
        y = sparse(taps, w, c, p + "mlp.", x) if hf_taps.is_sparse(c, i) else mlp(
            x, w, p + "mlp.", lambda g, u, s, m: taps.update({
                p + "mlp.gate_proj.output": g, p + "mlp.up_proj.output": u,
                p + "mlp.act_fn.output": s, p + "mlp.down_proj.input": m}))
        taps[p + "mlp.output"] = y
        h = taps[p + "output"] = h + y
    h = taps["model.norm.output"] = rms(h, w["model.norm.weight"], eps)
    head = "model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"
    taps["lm_head.output"] = h @ w[head].T
    return taps


def sparse(taps, w, c, p, x):
    logits = taps[p + "gate.output"] = x @ w[p + "gate.weight"].T
    probs = taps[p + "router_probs.output"] = softmax(logits)
    ids = np.argsort(-probs, axis=-1, kind="stable")[:, :c["num_experts_per_tok"]]
    chosen = np.take_along_axis(probs, ids, axis=-1)
    if c["norm_topk_prob"]:
        chosen = chosen / chosen.sum(axis=-1, keepdims=True)
    taps[p + "topk_indices.output"], taps[p + "topk_weights.output"] = ids, chosen
    steps = {n: [] for n in ("gate_proj.output", "up_proj.output", "act_fn.output",
                             "down_proj.input", "down_proj.output")}
    y = np.zeros_like(x)
    for t in range(x.shape[0]):
        for slot, e in enumerate(ids[t]):
            row = []
            down = mlp(x[t:t + 1], w, f"{p}experts.{e}.", lambda *values: row.extend(values))
            y[t] += chosen[t, slot] * down[0]
            for name, value in zip(steps, row + [down]):
                steps[name].append(value[0])
    for name, rows in steps.items():
        taps[p + "experts." + name] = np.stack(rows).reshape(x.shape[0], ids.shape[1], -1)
    return y


def relative(a, b):
    """Relative L2 distance of a from b."""
    size = np.sqrt((b * b).sum())
    return float(np.sqrt(((a - b) ** 2).sum()) / size) if size else float(np.abs(a).max())


def show(label, config, weights, load, ids, start):
    """Prints how far the taps are from 80-bit arithmetic; returns it for the float64 run."""
    model = load(torch.float64)
    rotary = model.model.rotary_emb
    wide = long_double_taps(weights, config, ids, start, rotary.inv_freq.numpy(),
                            rotary.attention_scaling)
    runs = {"float64, replaced": float64_run(model, config, ids, start),
            "float64 as it comes": hf_taps.run(load(torch.float64), config, ids, start),
            "float32": hf_taps.run(load(torch.float32), config, ids, start)}
    print(f"{label}: {len(wide)} taps; largest relative L2 distance from 80-bit arithmetic:")
    worst = {}
    for run, taps in runs.items():
        for name, value in wide.items():
            if name.endswith("topk_indices.output"):
                assert np.array_equal(taps[name].numpy(), value), (run, name)
                continue
            error = relative(taps[name].numpy().astype(np.longdouble), value)
            worst[run] = max(worst.get(run, (0, "")), (error, name))
        print(f"  {run:20} {worst[run][0]:.2e}  {worst[run][1]}", flush=True)
    return worst["float64, replaced"][0]


def main():
    import make_golden
    good = True
    for case in make_golden.TRUTH_CASES + ["tiny"]:
        taps, metadata = hf_taps.read_tensors(f"{make_golden.HF}/{case}/taps-float32.safetensors")
        if case == "tiny":
            config = json.load(open(os.path.join(make_golden.TINY, "config.json")))
            weights = load_file(os.path.join(make_golden.TINY, "model.safetensors"))
            weights = {name: value.float() for name, value in weights.items()}
            load = lambda dtype: hf_taps.load_folder(make_golden.TINY, dtype)
        else:
            config = make_golden.CASES[case][0]
            weights = hf_taps.rule_checkpoint(config, case)
            load = lambda dtype: hf_taps.load_rule(config, case, dtype)
        error = show(case, config, weights, load, taps["input_ids"].tolist(),
                     int(metadata["start"]))
        good = good and error <= 1e-13
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
