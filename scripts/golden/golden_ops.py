# SPDX-License-Identifier: MIT
"""golden/ops: one self-contained file per operator, outputs by Hugging Face's own modules.

Needs torch==2.13.0, transformers==5.17.0, safetensors, numpy. Run through make_golden.py.
Every case is made in three dtypes: inputs and weights are the same numbers rounded to the dtype.
Names: case{n}.{dtype}.{field}. Sizes, scalars and the lists of inputs and outputs: metadata key
case{n}, a JSON object.
"""

import json
import os
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from torch import nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe import modeling_qwen3_moe as modeling

import hf_taps
import rule

INF, NAN = float("inf"), float("nan")


def values(name, *shape):
    """About normal, variance 1, 38 significant bits, by the hash of rule.py: the same anywhere."""
    n = int(np.prod(shape))
    total = np.zeros(n, dtype=np.float64)
    for i, scale in enumerate((2.0**-15, 2.0**-35)):
        u = rule.bits(rule.key("ops", f"{name}.{i}"), 0, n)
        parts = [(u >> np.uint64(16 * k)) & np.uint64(0xFFFF) for k in range(4)]
        total += (sum(parts).astype(np.int64) - 131070) * scale
    return torch.from_numpy(total.reshape(shape))


def powers(name, low, high, *shape):
    """Powers of two from 2^low to 2^high."""
    u = rule.bits(rule.key("ops", name), 0, int(np.prod(shape)))
    e = low + ((u >> np.uint64(33)) % np.uint64(high - low + 1)).astype(np.int64)
    return torch.from_numpy(np.ldexp(1.0, e).reshape(shape))


def distinct(name, T, E, A):
    """A different experts for each token."""
    u = rule.bits(rule.key("ops", name), 0, T * E).reshape(T, E)
    return torch.from_numpy(np.argsort(u, axis=1, kind="stable")[:, :A].astype(np.int64))


class File:
    """The cases of one operator."""

    def __init__(self, operator):
        self.operator, self.tensors, self.metadata, self.count = operator, {}, {}, 0

    def add(self, note, scalars, inputs, compute):
        """inputs: float64 or integer tensors. compute(dtype, **inputs) gives the outputs."""
        prefix = f"case{self.count}"
        self.count += 1
        for label, dtype in hf_taps.DTYPES.items():
            given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
            with torch.no_grad():
                out = compute(dtype, **{k: v.clone() for k, v in given.items()})
            for name, value in {**given, **out}.items():
                value = value.to(torch.int32) if not value.is_floating_point() else value
                self.tensors[f"{prefix}.{label}.{name}"] = value.detach().clone()
        self.metadata[prefix] = json.dumps({"note": note, **scalars, "inputs": list(given),
                                            "outputs": list(out)})

    def write(self, folder):
        order = sorted(self.tensors, key=lambda n: -self.tensors[n].element_size())
        metadata = {"format": "qwen3moe-op-1", "operator": self.operator, "cases": str(self.count),
                    "producer": "transformers " + transformers.__version__, **self.metadata}
        hf_taps.write_tensors(os.path.join(folder, self.operator + ".safetensors"),
                              {n: self.tensors[n] for n in order}, metadata)


def module(kind, dtype, **weights):
    """A Hugging Face module's parameters set; its other attributes stay."""
    kind = kind.to(dtype)
    with torch.no_grad():
        for name, value in weights.items():
            kind.get_parameter(name).copy_(value)
    assert {n for n, _ in kind.named_parameters()} == set(weights)
    return kind.eval()


# ---- one function per file ----------------------------------------------------------------------


def embedding():
    f = File("embedding")

    def compute(dtype, ids, weight):
        return {"y": module(nn.Embedding(*weight.shape), dtype, weight=weight)(ids)}

    w = values("embedding.0", 23, 12)
    f.add("repeated ids, the first and the last row", {"T": 6, "V": 23, "M": 12},
          {"ids": torch.tensor([0, 22, 5, 5, 7, 0]), "weight": w}, compute)
    w = values("embedding.1", 9, 7) * powers("embedding.1p", -30, 14, 9, 7)
    w[2, :6] = torch.tensor([0.0, -0.0, INF, -INF, 2.0**-24, -(2.0**-149)])
    w[4, 3] = NAN
    f.add("zeros of both signs, infinities, a NaN, subnormals", {"T": 5, "V": 9, "M": 7},
          {"ids": torch.tensor([2, 4, 8, 2, 1]), "weight": w}, compute)
    return f


def norm_inputs(name, T, M):
    w = values(name + ".w", M) * 0.3 + 1.0
    w[::5] = -w[::5]
    return {"x": values(name + ".x", T, M), "weight": w}


def rmsnorm_compute(eps):
    def compute(dtype, x, weight):
        norm = module(modeling.Qwen3MoeRMSNorm(weight.shape[0], eps=eps), dtype, weight=weight)
        return {"y": norm(x)}
    return compute


def rmsnorm():
    f = File("rmsnorm")

    def add(note, eps, T, M, change=lambda x: None):
        inputs = norm_inputs(f"rmsnorm.{f.count}", T, M)
        change(inputs["x"])
        f.add(note, {"T": T, "M": M, "eps": eps}, inputs, rmsnorm_compute(eps))

    def tiny(x):
        x *= torch.tensor([2.0**-10, 2.0**-12, 2.0**-14, 2.0**-20, 1.0])[:, None]

    def massive(x):
        x[:, 5] = torch.tensor([900.0, -3000.0, 20000.0])

    def zeros(x):
        x[0] = 0.0
        x[1] = -0.0
        x[2, ::2] = -0.0

    def infinite(x):
        x[0, 3] = INF
        x[1, 2] = NAN
        x[2, 0] = -INF

    add("plain", 1e-6, 4, 40)
    add("eps 1e-5", 1e-5, 3, 33)
    add("one channel", 1e-6, 3, 1)
    add("seventeen channels", 1e-6, 3, 17)
    add("a long row", 1e-6, 2, 1000)
    add("rows of tiny variance", 1e-6, 5, 36, tiny)
    add("rows of tiny variance, eps 1e-5", 1e-5, 5, 20, tiny)
    add("one massive channel", 1e-6, 3, 48, massive)
    add("zeros of both signs", 1e-6, 3, 10, zeros)
    add("an infinity, a NaN, minus infinity; one row without", 1e-6, 4, 9, infinite)
    add("values near the largest of float16", 1e-6, 2, 24, lambda x: x.mul_(2.0**13))
    return f


def qk_norm():
    f = File("qk_norm")
    for note, eps, T, H, hd in (("heads of 8", 1e-6, 3, 6, 8), ("heads of 128", 1e-6, 2, 3, 128),
                                ("heads of 10, eps 1e-5, small", 1e-5, 4, 5, 10)):
        inputs = norm_inputs(f"qk_norm.{f.count}", T * H, hd)
        inputs["x"] = inputs["x"].reshape(T, H, hd) * (2.0**-9 if "small" in note else 1.0)
        f.add(note, {"T": T, "H": H, "hd": hd, "eps": eps}, inputs, rmsnorm_compute(eps))
    return f


def linear_compute(dtype, x, weight, bias=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    weights = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return {"y": module(layer, dtype, **weights)(x)}


def linear():
    f = File("linear")

    def add(note, T, N, K, bias=False, change=lambda i: None, gain=1.0):
        name = f"linear.{f.count}"
        inputs = {"x": values(name + ".x", T, K), "weight": values(name + ".w", N, K) * gain}
        if bias:
            inputs["bias"] = values(name + ".b", N)
        change(inputs)
        f.add(note, {"T": T, "N": N, "K": K}, inputs, linear_compute)

    def massive(i):
        i["x"][:, 7] *= 4096.0

    def cancel(i):
        half = i["x"].shape[1] // 2
        i["x"][:, half:] = -i["x"][:, :half]
        i["weight"][:, half:] = i["weight"][:, :half] * (1 + 2.0**-7)

    def spread(i):
        i["x"] *= powers("linear.spread", -12, 6, *i["x"].shape)

    def infinite(i):
        i["x"][0, 2] = INF
        i["x"][1, 0] = NAN
        i["x"][2, :] = 0.0
        i["bias"][0] = -0.0
        i["bias"][1] = INF

    for K in (1, 2, 15, 16, 17, 31, 33):
        add(f"{K} columns", 3, 5, K)
    add("plain", 4, 24, 40)
    add("with a bias", 4, 20, 36, bias=True)
    add("one token", 1, 30, 64)
    add("one row", 5, 1, 50)
    add("a long sum", 2, 6, 1000, gain=0.0625)
    add("a longer sum", 1, 3, 4099, gain=0.03125)
    add("one massive channel", 3, 12, 48, change=massive)
    add("sums that cancel", 3, 8, 40, change=cancel)
    add("a wide spread of magnitudes", 3, 10, 45, change=spread)
    add("an infinity, a NaN, a row of zeros, a bias of -0", 4, 6, 9, bias=True, change=infinite)
    return f


def lm_head():
    f = File("lm_head")
    for T, V, M in ((1, 301, 40), (3, 64, 24)):
        name = f"lm_head.{f.count}"
        f.add("head", {"T": T, "V": V, "M": M},
              {"x": values(name + ".x", T, M), "weight": values(name + ".w", V, M) * 0.25},
              linear_compute)
    return f


# ---- rotary embedding ---------------------------------------------------------------------------

ROPES = [
    ("default", 128, 40960, 0, 6, {"rope_theta": 1000000.0}),
    ("default, theta 1e4", 8, 2048, 0, 4, {"rope_theta": 10000.0}),
    ("default, theta 5e6, late positions", 64, 262144, 32765, 4, {"rope_theta": 5000000.0}),
    ("default, theta 1e7, hd 2", 2, 4096, 1000, 3, {"rope_theta": 10000000.0}),
    ("linear", 16, 4096, 3000, 4, {"rope_theta": 10000.0, "rope_type": "linear", "factor": 3.0}),
    ("dynamic, past the maximum", 32, 64, 70, 8,
     {"rope_theta": 1000000.0, "rope_type": "dynamic", "factor": 2.5}),
    ("dynamic, one past the maximum", 16, 64, 60, 5,
     {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 4.0}),
    ("dynamic, up to the maximum", 16, 64, 60, 4,
     {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 4.0}),
    ("yarn", 128, 40960, 20000, 4, {"rope_theta": 1000000.0, "rope_type": "yarn", "factor": 4.0,
                                    "original_max_position_embeddings": 32768}),
    ("yarn, original length absent", 64, 40960, 300, 4,
     {"rope_theta": 1000000.0, "rope_type": "yarn", "factor": 1.5}),
    ("yarn, not truncated", 24, 4096, 2000, 4,
     {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 8.0, "truncate": False,
      "original_max_position_embeddings": 512}),
    ("yarn, attention factor and betas given", 32, 8192, 100, 4,
     {"rope_theta": 500000.0, "rope_type": "yarn", "factor": 2.0, "attention_factor": 0.75,
      "beta_fast": 20.0, "beta_slow": 2.0, "original_max_position_embeddings": 4096}),
    ("yarn, mscale", 16, 4096, 500, 4,
     {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 40.0, "mscale": 0.8,
      "mscale_all_dim": 0.5, "original_max_position_embeddings": 1024}),
    ("yarn, factor 1", 16, 4096, 500, 3,
     {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 1.0,
      "original_max_position_embeddings": 4096}),
    ("yarn, low and high limits meet", 8, 4096, 50, 3,
     {"rope_theta": 1000000.0, "rope_type": "yarn", "factor": 4.0,
      "original_max_position_embeddings": 4}),
    ("llama3", 64, 131072, 9000, 4,
     {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
      "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    ("llama3, short original length", 16, 4096, 700, 4,
     {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
      "high_freq_factor": 4.0, "original_max_position_embeddings": 256}),
]


def rope_table():
    f = File("rope_table")
    for note, hd, longest, first, T, rope in ROPES:
        rope = {"rope_type": "default", **rope}
        config = Qwen3MoeConfig(head_dim=hd, max_position_embeddings=longest, num_attention_heads=2,
                                num_key_value_heads=2, hidden_size=8, rope_parameters=dict(rope))

        def compute(dtype, config=config, first=first, T=T):
            rotary = modeling.Qwen3MoeRotaryEmbedding(config)
            x = torch.zeros(1, T, 4, dtype=dtype)
            cos, sin = rotary(x, torch.arange(first, first + T)[None])
            return {"cos": cos[0], "sin": sin[0], "inv_freq": rotary.inv_freq,
                    "attention_scaling": torch.tensor([rotary.attention_scaling])}

        f.add(note, {"T": T, "hd": hd, "first": first, "length": first + T,
                     "max_position_embeddings": longest, **rope}, {}, compute)
    return f


def rope_apply():
    f = File("rope_apply")

    def add(note, T, H, K, hd, first, change=lambda q, k: None):
        name = f"rope_apply.{f.count}"
        q, k = values(name + ".q", T, H, hd), values(name + ".k", T, K, hd)
        change(q, k)
        config = Qwen3MoeConfig(head_dim=hd, rope_parameters={"rope_type": "default",
                                                              "rope_theta": 10000.0})

        def compute(dtype, q, k):
            cos, sin = modeling.Qwen3MoeRotaryEmbedding(config)(
                q[None], torch.arange(first, first + T)[None])
            y = modeling.apply_rotary_pos_emb(q[None].transpose(1, 2), k[None].transpose(1, 2),
                                              cos, sin)
            return {"cos": cos[0], "sin": sin[0], "q_rope": y[0][0].transpose(0, 1).contiguous(),
                    "k_rope": y[1][0].transpose(0, 1).contiguous()}

        f.add(note, {"T": T, "H": H, "K": K, "hd": hd, "first": first}, {"q": q, "k": k}, compute)

    def zeros(q, k):
        q[:, 0] = 0.0
        q[:, 1] = -0.0
        k[0, :, ::2] = -0.0

    def odd(q, k):
        q[0, 0, 1] = INF
        q[1, 1, 2] = NAN
        k[0, 0] *= 2.0**-20
        k[1, 0] *= 2.0**12

    add("heads of 16", 5, 6, 2, 16, 4000)
    add("heads of 2", 3, 4, 2, 2, 1)
    add("heads of 10", 4, 3, 1, 10, 77)
    add("zeros of both signs", 3, 2, 1, 8, 0, zeros)
    add("an infinity, a NaN, small and large keys", 3, 2, 1, 8, 9, odd)
    return f


# ---- attention ----------------------------------------------------------------------------------


def attention():
    f = File("attention")

    def add(note, T, S, H, K, hd, first=None, window=0, change=lambda q, k, v: None):
        name = f"attention.{f.count}"
        first = S - T if first is None else first
        q, k = values(name + ".q", T, H, hd) * 1.5, values(name + ".k", S, K, hd)
        v = values(name + ".v", S, K, hd)
        change(q, k, v)
        row, key = torch.arange(first, first + T)[:, None], torch.arange(S)[None]
        seen = (key <= row) & (key > row - (window or S + 1))

        def compute(dtype, q, k, v):
            low = torch.finfo(dtype).min
            mask = torch.where(seen, torch.tensor(0.0, dtype=dtype), torch.tensor(low, dtype=dtype))
            heads = [x[None].transpose(1, 2) for x in (q, k, v)]
            self = SimpleNamespace(num_key_value_groups=H // K, training=False)
            y, probs = modeling.eager_attention_forward(self, *heads, mask[None, None],
                                                        scaling=hd**-0.5)
            # Hugging Face keeps no scores: its own line again, whose softmax must be its probs.
            keys = modeling.repeat_kv(heads[1], H // K)
            scores = torch.matmul(heads[0], keys.transpose(2, 3)) * hd**-0.5
            again = nn.functional.softmax(scores + mask, dim=-1, dtype=torch.float32).to(dtype)
            hf_taps.same(again, probs, "probs")
            return {"scores": torch.where(seen, scores, torch.zeros_like(scores))[0],
                    "probs": probs[0], "y": y[0].reshape(T, H * hd)}

        f.add(note, {"T": T, "S": S, "H": H, "K": K, "hd": hd, "first": first, "window": window},
              {"q": q, "k": k, "v": v}, compute)

    def equal(q, k, v):
        k[:] = k[0]

    def wide(q, k, v):
        q *= 40.0

    def far_below(q, k, v):
        far_above(q, k, v)
        q.neg_()

    def far_above(q, k, v):
        q.copy_(q * 0.25 + 60.0)
        k.copy_(k * 0.03125 + 4.0)

    def far_apart(q, k, v):
        far_above(q, k, v)
        k[0].neg_()

    def massive(q, k, v):
        k[0] *= 30.0
        v[0] *= 2.0**-8
        v[2] *= 300.0

    def zeros(q, k, v):
        q[0] = 0.0
        v[:, 0] = -0.0

    add("a prompt, three queries a key head", 6, 6, 6, 2, 16)
    add("one key head", 4, 4, 5, 1, 10)
    add("a key head each", 4, 4, 3, 3, 8)
    add("eight queries a key head", 3, 3, 16, 2, 8)
    add("after a cached prefix", 3, 11, 6, 2, 8)
    add("one token after a cached prefix", 1, 40, 6, 2, 16)
    add("one token, one key", 1, 1, 4, 2, 8)
    add("rows of the cache not yet written", 3, 9, 4, 2, 8, first=2)
    add("window of 4", 9, 9, 4, 2, 8, window=4)
    add("window of 1", 4, 4, 4, 2, 8, window=1)
    add("window of 3 after a cached prefix", 4, 10, 6, 2, 8, window=3)
    add("window longer than the run", 5, 5, 4, 2, 8, window=9)
    add("all scores far below 0", 5, 5, 4, 2, 16, change=far_below)
    add("all scores far above 0", 5, 5, 4, 2, 16, change=far_above)
    add("the first score far below the others", 5, 5, 4, 2, 16, change=far_apart)
    add("equal keys: uniform probabilities", 5, 5, 4, 2, 8, change=equal)
    add("wide scores: probabilities of 0 and 1", 6, 6, 4, 2, 16, change=wide)
    add("a sink key with small values, a large value", 6, 6, 4, 2, 16, change=massive)
    add("a query of zeros, values of -0", 4, 4, 4, 2, 8, change=zeros)
    add("heads of 128", 3, 7, 4, 2, 128)
    return f


# ---- experts ------------------------------------------------------------------------------------


def moe_config(M, F, E, A, norm=False):
    return Qwen3MoeConfig(hidden_size=M, moe_intermediate_size=F, num_experts=E,
                          num_experts_per_tok=A, norm_topk_prob=norm, intermediate_size=F)


def router():
    f = File("router")

    def add(note, T, M, E, A, norm, x, weight):
        def compute(dtype, x, weight):
            gate = module(modeling.Qwen3MoeTopKRouter(moe_config(M, 4, E, A, norm)), dtype,
                          weight=weight)
            logits, weights, ids = gate(x)
            probs = nn.functional.softmax(logits, dtype=torch.float, dim=-1)
            assert torch.equal(torch.gather(probs, 1, ids), torch.topk(probs, A, dim=-1).values)
            # Only orders that no rounding and no tie decides are stored.
            p = torch.sort(probs, dim=-1, descending=True).values[:, :min(A + 1, E)]
            assert (p[:, :-1] > p[:, 1:] * (1 + 2.0**-12)).all(), (note, dtype)
            return {"logits": logits, "probs": probs, "ids": ids, "weights": weights}

        f.add(note, {"T": T, "M": M, "E": E, "A": A, "norm_topk_prob": norm},
              {"x": x, "weight": weight}, compute)

    def plain(note, T, M, E, A, norm):
        name = f"router.{f.count}"
        add(note, T, M, E, A, norm, values(name + ".x", T, M), values(name + ".w", E, M) * 0.35)

    def exact(note, A, norm, *rows):
        """One channel, so that the logits are the weights themselves (and their negatives)."""
        w = torch.tensor(rows, dtype=torch.float64)[:, None]
        add(note, 1, 1, len(rows), A, norm, torch.ones(1, 1, dtype=torch.float64), w)

    plain("renormalised", 5, 40, 7, 3, True)
    plain("not renormalised", 5, 40, 7, 3, False)
    plain("one of many", 4, 24, 11, 1, False)
    plain("one of many, renormalised", 3, 24, 11, 1, True)
    plain("all experts", 3, 24, 5, 5, True)
    plain("all experts, not renormalised", 3, 24, 4, 4, False)
    plain("8 of 128", 2, 64, 128, 8, True)
    plain("one expert", 3, 10, 1, 1, True)
    exact("all negative", 3, True, -1.5, -0.25, -7.0, -3.0, -0.75, -2.0)
    exact("all negative, far from 0", 3, False, -201.5, -200.25, -207.0, -203.0, -199.0)
    exact("all below -745, where exp is 0 in float64", 3, True, -1008.0, -1000.0, -1004.0, -1016.0)
    exact("all above 710, where exp overflows in float64", 2, False, 1000.0, 1008.0, 1004.0, 992.0)
    exact("huge spread: probabilities of 0", 2, True, 300.0, -300.0, 290.0, 0.0, -60000.0)
    exact("huge spread, one chosen with 4e-18", 2, False, 300.0, 260.0, -3.0, -60000.0)
    exact("minus infinity is never chosen", 2, True, 1.0, -INF, 0.5, -INF, -4.0)
    exact("ties below those chosen", 2, True, -1.0, 2.0, -1.0, 3.0, -1.0, -1.0)
    exact("zeros of both signs below those chosen", 1, False, 0.0, 1.0, -0.0)
    exact("nearly flat", 3, True, 0.5, 0.53125, 0.5625, 0.4375, 0.46875)
    return f


def expert_inputs(name, T, M, F, E, A):
    return {"x": values(name + ".x", T, M), "ids": distinct(name + ".ids", T, E, A),
            "weights": values(name + ".weights", T, A).abs() * 0.3 + 0.01,
            "gate_proj": values(name + ".gate", E, F, M) * 0.25,
            "up_proj": values(name + ".up", E, F, M) * 0.25,
            "down_proj": values(name + ".down", E, M, F) * 0.25}


def expert_module(dtype, gate_proj, up_proj, down_proj, A):
    E, F, M = gate_proj.shape
    config = moe_config(M, F, E, A)
    config._experts_implementation = "eager"
    return module(modeling.Qwen3MoeExperts(config), dtype,
                  gate_up_proj=torch.cat((gate_proj, up_proj), dim=1), down_proj=down_proj)


def expert_taps(experts, x, ids, weights):
    """The steps inside, slot by slot; what they add up to must be the module's own output."""
    y, steps = torch.zeros_like(x), {}
    block = SimpleNamespace(experts=experts)
    chosen = nn.functional.one_hot(ids, num_classes=experts.num_experts).permute(2, 1, 0)
    for e in range(experts.num_experts):
        slot, token = torch.where(chosen[e])
        if token.numel():
            step = hf_taps.Watch.expert_steps(block, e, x[token])
            for name, value in step.items():
                shape = (*ids.shape, value.shape[-1])
                steps.setdefault(name, torch.zeros(shape, dtype=x.dtype))[token, slot] = value
            part = step["down_proj.output"] * weights[token, slot, None]
            y.index_add_(0, token, part.to(x.dtype))
    hf_taps.same(experts(x, ids, weights), y, "experts")
    return y, steps


SHORT = {"gate_proj.output": "gate", "up_proj.output": "up", "act_fn.output": "act",
         "down_proj.input": "product", "down_proj.output": "down"}


def swiglu_expert():
    f = File("swiglu_expert")

    def add(note, T, M, F, E, A, change=lambda i: None):
        inputs = expert_inputs(f"swiglu_expert.{f.count}", T, M, F, E, A)
        change(inputs)

        def compute(dtype, x, ids, weights, gate_proj, up_proj, down_proj):
            experts = expert_module(dtype, gate_proj, up_proj, down_proj, A)
            y, steps = expert_taps(experts, x, ids, weights)
            return {**{SHORT[n]: v for n, v in steps.items()}, "y": y}

        f.add(note, {"T": T, "M": M, "F": F, "E": E, "A": A}, inputs, compute)

    def large(i):
        i["x"] *= 16.0

    def small(i):
        i["x"] *= 2.0**-6

    add("three of seven", 4, 20, 12, 7, 3)
    add("all of four", 3, 17, 9, 4, 4)
    add("one of two", 3, 8, 33, 2, 1)
    add("large gates: silu is x or nearly 0", 3, 24, 10, 5, 3, large)
    add("small gates: silu is nearly x / 2", 3, 24, 10, 5, 3, small)
    return f


def expert_combine():
    f = File("expert_combine")

    def add(note, T, M, E, A, change=lambda i: None):
        name = f"expert_combine.{f.count}"
        inputs = expert_inputs(name, T, M, 1, E, A)
        change(inputs)

        def compute(dtype, x, ids, weights, gate_proj, up_proj, down_proj):
            experts = expert_module(dtype, gate_proj, up_proj, down_proj, A)
            y, steps = expert_taps(experts, x, ids, weights)
            return {"down": steps["down_proj.output"], "y": y}

        f.add(note, {"T": T, "M": M, "E": E, "A": A}, inputs, compute)
        # Where the experts' outputs came from does not matter here.
        prefix, dropped = f"case{f.count - 1}", ("x", "gate_proj", "up_proj", "down_proj")
        about = json.loads(f.metadata[prefix])
        about["inputs"] = [name for name in about["inputs"] if name not in dropped]
        f.metadata[prefix] = json.dumps(about)
        for label in hf_taps.DTYPES:
            for field in dropped:
                del f.tensors[f"{prefix}.{label}.{field}"]

    def spread(i):
        i["down_proj"] *= powers("expert_combine.p", -6, 6, *i["down_proj"].shape)

    def negative_zero(i):
        i["down_proj"][:, ::2] = -0.0
        i["x"].abs_()
        i["gate_proj"].abs_()
        i["up_proj"].abs_()

    def overflow(i):
        i["down_proj"][:3] = INF
        i["down_proj"][3] = -INF
        i["ids"] = torch.tensor([[0, 1, 2], [4, 2, 3], [4, 5, 3]])

    add("three of seven", 5, 20, 7, 3)
    add("eight of thirty", 4, 12, 30, 8)
    add("one of three", 3, 10, 3, 1)
    add("magnitudes that spread, so that the order shows", 6, 16, 9, 6, spread)
    add("expert outputs of -0", 3, 8, 5, 3, negative_zero)
    add("infinities", 3, 8, 6, 3, overflow)
    return f


def dense_mlp():
    f = File("dense_mlp")
    for note, T, M, I, gain in (("plain", 4, 40, 52, 1.0), ("odd sizes", 3, 19, 35, 1.0),
                                ("large gates", 2, 24, 31, 12.0)):
        name = f"dense_mlp.{f.count}"
        inputs = {"x": values(name + ".x", T, M) * gain,
                  "gate_proj": values(name + ".gate", I, M) * 0.2,
                  "up_proj": values(name + ".up", I, M) * 0.2,
                  "down_proj": values(name + ".down", M, I) * 0.2}

        def compute(dtype, x, gate_proj, up_proj, down_proj):
            I, M = gate_proj.shape
            config = Qwen3MoeConfig(hidden_size=M, intermediate_size=I)
            mlp = module(modeling.Qwen3MoeMLP(config), dtype, **{
                "gate_proj.weight": gate_proj, "up_proj.weight": up_proj,
                "down_proj.weight": down_proj})
            out = {}
            for name, field in (("gate_proj", "gate"), ("up_proj", "up"), ("act_fn", "act")):
                mlp.get_submodule(name).register_forward_hook(
                    lambda m, a, y, field=field: out.__setitem__(field, y.clone()))
            mlp.down_proj.register_forward_pre_hook(
                lambda m, a: out.__setitem__("product", a[0].clone()))
            y = mlp(x)
            return {**out, "y": y}

        f.add(note, {"T": T, "M": M, "I": I}, inputs, compute)
    return f


# ---- elementwise --------------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 2.0**-24, -(2.0**-24), 2.0**-14, 2.0**-126,
           -(2.0**-130), 65504.0, -65504.0, 0.5, -0.5]


def wide_values(name, n):
    return values(name, n) * powers(name + ".p", -18, 10, n)


def silu():
    f = File("silu")
    act = transformers.activations.ACT2FN["silu"]
    compute = lambda dtype, x: {"y": act(x)}
    f.add("about 1", {"n": 300}, {"x": values("silu.0", 300) * 2.0}, compute)
    f.add("many magnitudes", {"n": 300}, {"x": wide_values("silu.1", 300)}, compute)
    f.add("large: x or nearly 0", {"n": 120}, {"x": values("silu.2", 120) * 30.0}, compute)
    # Of minus infinity torch makes a NaN (-inf / inf), where the limit is -0: not stored.
    special = [x for x in SPECIAL if x != -INF]
    f.add("special values", {"n": len(special)},
          {"x": torch.tensor(special, dtype=torch.float64)}, compute)
    return f


def pairs(operator, compute):
    """a and b of many magnitudes, and every pair of special values."""
    f = File(operator)
    f.add("about 1", {"n": 200}, {"a": values(operator + ".0", 200),
                                  "b": values(operator + ".1", 200)}, compute)
    f.add("many magnitudes", {"n": 300}, {"a": wide_values(operator + ".2", 300),
                                          "b": wide_values(operator + ".3", 300)}, compute)
    s, n = torch.tensor(SPECIAL, dtype=torch.float64), len(SPECIAL)
    f.add("special values", {"n": n * n}, {"a": s.repeat_interleave(n), "b": s.repeat(n)}, compute)
    return f


def residual_add():
    return pairs("residual_add", lambda dtype, a, b: {"y": a + b})


def multiply():
    return pairs("multiply", lambda dtype, a, b: {"y": a * b})


def rule_values():
    """Values of the rule itself, so that its two halves can be compared."""
    f = File("rule")
    for name, shape in (("model.embed_tokens.weight", (9, 5)), ("model.norm.weight", (64,)),
                        ("model.layers.3.self_attn.q_norm.weight", (40,)),
                        ("model.layers.0.self_attn.q_proj.weight", (3, 33)),
                        ("model.layers.0.self_attn.q_proj.bias", (21,)),
                        ("model.layers.1.mlp.gate.weight", (7, 16)),
                        ("model.layers.11.mlp.experts.127.down_proj.weight", (2, 17)),
                        ("lm_head.weight", (2, 1025)), ("input", (3, 4))):
        prefix = f"case{f.count}"
        f.metadata[prefix] = json.dumps({"note": "the rule", "seed": "any text", "name": name,
                                         "inputs": ["y"], "outputs": []})
        f.tensors[f"{prefix}.float32.y"] = torch.from_numpy(rule.fill("any text", name, shape))
        f.count += 1
    return f


OPERATORS = [embedding, rmsnorm, linear, qk_norm, rope_table, rope_apply, attention, router,
             swiglu_expert, expert_combine, dense_mlp, residual_add, multiply, silu, lm_head,
             rule_values]


def write(folder):
    os.makedirs(folder, exist_ok=True)
    for make in OPERATORS:
        file = make()
        file.write(folder)
        print(f"ops/{file.operator}: {file.count} cases, {len(file.tensors)} tensors", flush=True)
