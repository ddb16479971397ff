# SPDX-License-Identifier: MIT
"""A Qwen3-MoE backend in torch, written to be broken: scripts/detect/bugs.py patches it, scripts/detect/detect.py has the
broken ones judged. Needs torch==2.13.0.

The order of the steps and the rounding points are Hugging Face's in eager mode, which the honest backend
agrees with: python3 scripts/detect/backend.py compares it with golden/hf. D is the run's dtype: torch's elementwise
operations round once to it, its products add in float32 or better and round once.
"""

import json
import math

import torch
import torch.nn.functional as F

TAPS_ALONG_KEYS = (".scores.output", ".probs.output")  # [H,T,S]; all others begin with T


class Backend:
    """One model, loaded; run() gives every tap of a prompt. Every step is a method that a bug may replace;
    `name` is the module's path, so that a bug can pick one layer."""

    chunk = 0  # tokens of one call; 0: the whole prompt at once. Keys and values are cached between calls
    cached = 0  # tokens from this one on come one by one; 0: none

    def __init__(self, config, weights, dtype):
        """config: after defaults, 4.x names. weights: by checkpoint name; rounded to D here."""
        self.c, self.D = config, dtype
        self.w = {name: value.to(dtype, copy=True) for name, value in weights.items()}
        if config["tie_word_embeddings"]:
            self.w.setdefault("lm_head.weight", self.w["model.embed_tokens.weight"])
        self.H, self.K = config["num_attention_heads"], config["num_key_value_heads"]
        self.hd, self.A = config["head_dim"], config["num_experts_per_tok"]
        self.eps, self.rep = config["rms_norm_eps"], self.H // self.K
        self.prepare()

    def prepare(self):
        """For bugs in the weights, and in what is read from the config."""

    # ---- a run ----------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, ids, start=0):
        """Taps by name, in the order of computation, calls joined."""
        T, calls, first = len(ids), [], 0
        self.keys, self.values, self.ids, self.start = {}, {}, ids, start
        while first < T:
            end = first + self.chunk if self.chunk else T
            if self.cached:
                end = first + 1 if first >= self.cached else self.cached
            end = min(end, T)
            self.taps = {}
            self.call(ids[first:end], first)
            calls.append(self.taps)
            first = end
        return {name: join([taps[name] for taps in calls], name, T) for name in calls[0]}

    def keep(self, name, value):
        self.taps[name] = value.clone()
        return value

    def call(self, ids, past):
        """past: tokens that are in the cache."""
        self.past = past
        self.taps["input_ids"] = torch.tensor(ids)
        self.taps["position_ids"] = torch.arange(self.start + past, self.start + past + len(ids))
        h = self.keep("model.embed_tokens.output", self.embed(torch.tensor(ids)))
        cos, sin = self.table(self.positions(len(ids)))
        self.cos = self.keep("model.rotary_emb.cos", cos)
        self.sin = self.keep("model.rotary_emb.sin", sin)
        for i in range(self.c["num_hidden_layers"]):
            h = self.keep(f"model.layers.{i}.output", self.layer(i, f"model.layers.{i}.", h))
        h = self.keep("model.norm.output", self.norm(h, "model.norm"))
        self.keep("lm_head.output", self.head(h))

    def layer(self, i, p, h):
        x = self.keep(p + "input_layernorm.output", self.norm(h, p + "input_layernorm"))
        x = self.keep(p + "self_attn.o_proj.output", self.attention(i, p + "self_attn.", x))
        before, h = h, self.residual(h, x, p + "post_attention_layernorm.input")
        h = self.keep(p + "post_attention_layernorm.input", h)
        x = self.post_norm(before, h, p + "post_attention_layernorm")
        x = self.keep(p + "post_attention_layernorm.output", x)
        x = self.experts(p + "mlp.", x) if self.sparse(i) else self.dense(p + "mlp.", x)
        return self.residual(h, self.keep(p + "mlp.output", x), p + "output")

    def sparse(self, i):
        return (i not in self.c["mlp_only_layers"] and self.c["num_experts"] > 0
                and (i + 1) % self.c["decoder_sparse_step"] == 0)

    # ---- steps ----------------------------------------------------------------------------------

    def embed(self, ids):
        return self.w["model.embed_tokens.weight"][ids]

    def norm(self, x, name):
        t = x.float()
        t = t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.w[name + ".weight"] * t.to(self.D)

    def post_norm(self, before, h, name):
        return self.norm(h, name)

    def linear(self, x, name):
        return F.linear(x.to(self.D), self.w[name + ".weight"], self.w.get(name + ".bias"))

    def residual(self, h, x, name):
        return h + x

    def head(self, h):
        return self.linear(h, "lm_head")

    # ---- rotary embedding -----------------------------------------------------------------------

    def positions(self, n):
        return torch.arange(self.start + self.past, self.start + self.past + n)

    def frequencies(self):
        """Inverse frequencies [hd/2] and the factor of cos and sin, float32."""
        theta, rope = self.c["rope_theta"], self.c["rope_scaling"] or {"rope_type": "default"}
        powers = theta ** (torch.arange(0, self.hd, 2).float() / self.hd)
        if rope["rope_type"] == "default":
            return 1.0 / powers, 1.0
        if rope["rope_type"] == "linear":
            return 1.0 / powers / rope["factor"], 1.0
        assert rope["rope_type"] == "yarn" and rope["mscale"] is None, rope
        length, factor = rope["original_max_position_embeddings"], rope["factor"]

        def dim(turns):
            return self.hd * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        low, high = dim(rope["beta_fast"]), dim(rope["beta_slow"])
        if rope["truncate"]:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.hd - 1)
        ramp = (torch.arange(self.hd // 2).float() - low) / max(high - low, 0.001)
        blend = 1 - (1 - ramp.clamp(0, 1))
        scale = rope["attention_factor"] or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        return 1.0 / (factor * powers) * blend + 1.0 / powers * (1 - blend), scale

    def table(self, positions):
        inverse, scale = self.frequencies()
        angle = positions.float()[:, None] * inverse[None, :]
        angle = torch.cat((angle, angle), dim=-1)
        return (angle.cos() * scale).to(self.D), (angle.sin() * scale).to(self.D)

    @staticmethod
    def rotated(x):
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), dim=-1)

    def rope(self, x, name):
        """x [T,heads,hd]."""
        return x * self.cos[:, None] + self.rotated(x) * self.sin[:, None]

    # ---- attention ------------------------------------------------------------------------------

    def attention(self, i, a, x):
        T = x.shape[0]
        q = self.keep(a + "q_proj.output", self.linear(x, a + "q_proj"))
        k = self.keep(a + "k_proj.output", self.linear(x, a + "k_proj"))
        v = self.keep(a + "v_proj.output", self.linear(x, a + "v_proj"))
        q, k = self.prepared(a, q.view(T, self.H, self.hd), k.view(T, self.K, self.hd))
        k, v = self.cache(a, k, v.view(T, self.K, self.hd))
        scores = self.scores(q.transpose(0, 1), self.repeat(k, a + "keys"), a)
        seen = self.seen(i, T, k.shape[0])
        self.keep(a + "scores.output", torch.where(self.honest_seen(T, k.shape[0]), scores, 0))
        mask = torch.where(seen, 0, torch.finfo(self.D).min).to(self.D)
        probs = self.keep(a + "probs.output", self.softmax(scores + mask, a))
        o = self.weighted(probs, self.repeat(v, a + "values"), a)
        return self.linear(self.keep(a + "o_proj.input", self.joined(o)), a + "o_proj")

    def prepared(self, a, q, k):
        """Norm and RoPE of queries and keys."""
        q = self.keep(a + "q_norm.output", self.head_norm(q, a + "q_norm"))
        k = self.keep(a + "k_norm.output", self.head_norm(k, a + "k_norm"))
        q = self.keep(a + "q_rope.output", self.rope(q, a + "q_rope"))
        return q, self.keep(a + "k_rope.output", self.rope(k, a + "k_rope"))

    def head_norm(self, x, name):
        return self.norm(x, name)

    def cache(self, a, k, v):
        """Appends; gives all rows so far [S,K,hd]."""
        k, v = self.stored(k, a), self.stored(v, a)
        self.keys[a] = torch.cat((self.keys[a], k)) if self.past else k
        self.values[a] = torch.cat((self.values[a], v)) if self.past else v
        return self.keys[a], self.values[a]

    def stored(self, x, a):
        return x

    def kv_head(self, name):
        """The key/value head of each query head."""
        return torch.arange(self.H) // self.rep

    def repeat(self, x, name):
        return x[:, self.kv_head(name)].transpose(0, 1)

    def scale(self):
        return self.hd ** -0.5

    def scores(self, q, k, a):
        """q [H,T,hd], k [H,S,hd]."""
        return torch.matmul(q, k.transpose(1, 2)) * self.scale()

    def window(self, i):
        return self.c["sliding_window"]

    def rows(self, T, S):
        """Row of each query, and of each key."""
        return torch.arange(S - T, S)[:, None], torch.arange(S)[None, :]

    def seen(self, i, T, S):
        t, s = self.rows(T, S)
        return (s <= t) & (s > t - (self.window(i) or S + 1))

    def honest_seen(self, T, S):
        t, s = self.rows(T, S)
        return (s <= t) & (s > t - (self.c["sliding_window"] or S + 1))

    def softmax(self, scores, a):
        return F.softmax(scores, dim=-1, dtype=torch.float32).to(self.D)

    def weighted(self, probs, v, a):
        return torch.matmul(probs.to(self.D), v)

    def joined(self, o):
        """[H,T,hd] to [T,H*hd]."""
        return o.transpose(0, 1).reshape(o.shape[1], -1)

    # ---- experts --------------------------------------------------------------------------------

    def experts(self, m, x):
        logits = self.keep(m + "gate.output", self.router(m, x))
        probs = self.keep(m + "router_probs.output", self.router_probs(logits, m))
        ids = self.keep(m + "topk_indices.output", self.choose(probs, logits, m).to(torch.int32))
        ids = ids.long()
        weights = self.keep(m + "topk_weights.output", self.weights(probs, ids, logits, m))
        steps = {}
        for e in ids.unique().tolist():
            token, slot = torch.where(ids == e)
            rows = self.expert_input(x[token], weights[token, slot, None])
            for name, value in self.mlp(f"{m}experts.{e}.", rows).items():
                full = steps.setdefault(name, value.new_zeros(*ids.shape, value.shape[-1]))
                full[token, slot] = value
        for name, value in steps.items():
            self.keep(f"{m}experts.{name}", value)
        return self.combine(steps["down_proj.output"], weights, ids, m)

    def router(self, m, x):
        return self.linear(x, m + "gate")

    def router_probs(self, logits, m):
        return F.softmax(logits, dim=-1, dtype=torch.float32)

    def choose(self, probs, logits, m):
        """Ids by falling probability, equal ones by rising id."""
        return torch.sort(probs, dim=-1, descending=True, stable=True).indices[:, :self.A]

    def weights(self, probs, ids, logits, m):
        w = probs.gather(-1, ids)
        return (w / w.sum(-1, keepdim=True) if self.c["norm_topk_prob"] else w).to(self.D)

    def expert_input(self, x, weight):
        return x

    def combine(self, down, weights, ids, m):
        """down [T,A,M]: experts by rising id, rounded after each."""
        part = (down * weights[..., None]).to(self.D)
        out = torch.zeros_like(part[:, 0])
        for slots in ids.argsort(dim=-1).unbind(-1):
            out = out + part[torch.arange(len(part)), slots]
        return out

    def mlp(self, name, x):
        """The steps of one expert, or of a dense layer."""
        gate, up = self.linear(x, name + "gate_proj"), self.linear(x, name + "up_proj")
        act = self.act(gate, name)
        product = self.product(act, gate, up, name)
        return {"gate_proj.output": gate, "up_proj.output": up, "act_fn.output": act,
                "down_proj.input": product, "down_proj.output": self.linear(product, name + "down_proj")}

    def act(self, gate, name):
        return F.silu(gate)

    def product(self, act, gate, up, name):
        return act * up

    def dense(self, m, x):
        steps = self.mlp(m, x)
        out = steps.pop("down_proj.output")
        for name, value in steps.items():
            self.keep(m + name, value)
        return out


def join(parts, name, T):
    """The calls' parts of one tap; keys that came later are 0."""
    if len(parts) == 1:
        return parts[0].contiguous()
    if name.endswith(TAPS_ALONG_KEYS):
        return torch.cat([F.pad(part, (0, T - part.shape[-1])) for part in parts], dim=1)
    return torch.cat(parts)


def check():
    """The honest backend against golden/hf: the largest relative L2 of any tap, or what is wrong."""
    import os
    import sys

    from safetensors.torch import load_file

    sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
    import hf_taps
    import make_golden
    for case in [*make_golden.CASES, "tiny"]:
        folder = f"{make_golden.HF}/{case}"
        config = make_golden.CASES[case][0] if case != "tiny" else None
        weights = hf_taps.rule_checkpoint(config, case) if config else load_file(
            f"{make_golden.TINY}/model.safetensors")
        line = f"{case}:"
        for dtype in hf_taps.DTYPES:
            want, metadata = hf_taps.read_tensors(f"{folder}/taps-{dtype}.safetensors")
            full = hf_taps.full_config(config) if config else json.loads(metadata["config"])
            if (full["rope_scaling"] or {}).get("rope_type") in ("dynamic", "llama3") or "mscale" in case:
                continue
            backend = Backend(full, weights, hf_taps.DTYPES[dtype])
            got = backend.run(want["input_ids"].tolist(), int(metadata["start"]))
            assert list(got) == list(want), set(got) ^ set(want)
            equal, worst = 0, (0, "")
            for name, value in want.items():
                assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
                equal += torch.equal(got[name], value)
                d, v = (got[name].double() - value.double()).norm(), value.double().norm()
                worst = max(worst, ((d / v).item() if v else d.item(), name))
            line += f" {dtype} {equal}/{len(want)} equal, {worst[0]:.1e} {worst[1]};"
        print(line)


if __name__ == "__main__":
    check()
