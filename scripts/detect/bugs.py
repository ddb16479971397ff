# SPDX-License-Identifier: MIT
"""The planted bugs of the detection matrix (scripts/detect/detect.py): each a small patch of scripts/detect/backend.py.

Every class below is one bug. Its first line says what is wrong; the decorator says where it must be found:

  @bug(tap, number=..., ...)
    tap      the first tap that is wrong, behind model.layers.{layer}. if layer is given
    number   the row of the catalogue of real bugs that it is one of; 0: none
    model    a name of MODELS; dtype; start: first position; tokens: of the prompt
    kind     "value": check's verdict is differs (or non-finite, shape). "rounding": every element within
             its bound, a rounding point elsewhere: verdict rounding, an error under --strict
    looks    what the diagnosis must say (regular expression); None: no particular mistake is to be told
    layout   which tensors the file has, under which names: a name of LAYOUTS
    operator the broken operator, where the file has no tensor right behind it

Bugs are planted where they show least: bfloat16 unless float32 alone can see them, often in one layer.
"""

import json
import math
import os
import re
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
import hf_taps
import make_golden
import rule
from backend import Backend

# ---- models -------------------------------------------------------------------------------------

# Random weights by rule (seed: the model's name), as golden/hf/base is: nothing square but `square`.
RULE = {
    "small-rows": {"num_hidden_layers": 1},
    "bias": {"attention_bias": True},
    "wide": {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 48},
    "square": {"hidden_size": 48, "moe_intermediate_size": 48},
    "negative": {"num_experts": 9, "norm_topk_prob": False},
    "long": {"hidden_size": 600, "head_dim": 34, "num_hidden_layers": 1},
    "sparse-step": {"num_hidden_layers": 4, "decoder_sparse_step": 2},
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}
# golden/tiny's weights under a config with these changes.
TINY = {
    "tiny": {},
    "tiny-plain": {"norm_topk_prob": False},
    "tiny-window": {"use_sliding_window": True, "sliding_window": 7},
    "tiny-window-off": {"use_sliding_window": False, "sliding_window": 7},
    "tiny-yarn": {"rope_scaling": YARN},
    "tiny-eps": {"rms_norm_eps": 1e-3},
    "tiny-linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "tiny-tied": {"tie_word_embeddings": True},
    "tiny-nan": {},
    "tiny-sparse": {},
}
MODELS = [*TINY, *RULE]
TOKENS = 24
NAN_TOKEN = 7  # of tiny-nan; alone in its prompt: Hugging Face's mask lets NaN spread to other rows


def load_model(name):
    """config.json's dictionary and weights."""
    if name in RULE:
        config = {**make_golden.BASE, **RULE[name]}
        return config, hf_taps.rule_checkpoint(config, name)
    config = {**json.load(open(os.path.join(make_golden.TINY, "config.json"))), **TINY[name]}
    weights = load_file(os.path.join(make_golden.TINY, "model.safetensors"))
    if name == "tiny-tied":
        del weights["lm_head.weight"]
    if name == "tiny-nan":
        weights["model.embed_tokens.weight"][NAN_TOKEN, 5] = math.nan
    if name == "tiny-sparse":
        return make_golden.without_dense(config, weights)
    return config, weights


def prompt(model, tokens):
    """Ids. Of golden/tiny: the text whose taps are in golden/hf/tiny; else by rule."""
    if model in RULE:
        u = rule.bits(rule.key(model, "input_ids"), 0, tokens)
        return (u % 50).astype("int64").tolist()
    taps = hf_taps.read_tensors(f"{make_golden.HF}/tiny/taps-bfloat16.safetensors")[0]
    ids = taps["input_ids"].tolist()[:tokens]
    if model == "tiny-nan":
        ids[-1] = NAN_TOKEN
    return ids


# ---- layouts ------------------------------------------------------------------------------------

LLAMA_CPP = {
    "input_layernorm.output": "attn_norm", "self_attn.q_norm.output": "Qcur_normed",
    "self_attn.k_norm.output": "Kcur_normed", "self_attn.q_rope.output": "Qcur",
    "self_attn.k_rope.output": "Kcur", "self_attn.v_proj.output": "Vcur",
    "self_attn.probs.output": "kq_soft_max", "self_attn.o_proj.input": "kqv_out",
    "post_attention_layernorm.input": "ffn_inp", "post_attention_layernorm.output": "ffn_norm",
    "mlp.gate.output": "ffn_moe_logits", "mlp.router_probs.output": "ffn_moe_probs",
    "mlp.topk_indices.output": "ffn_moe_topk", "mlp.topk_weights.output": "ffn_moe_weights_norm",
    "mlp.experts.gate_proj.output": "ffn_moe_gate", "mlp.experts.up_proj.output": "ffn_moe_up",
    "mlp.experts.down_proj.input": "ffn_moe_swiglu", "mlp.experts.down_proj.output": "ffn_moe_down",
    "mlp.output": "ffn_moe_out", "output": "l_out"}


def parts(name):
    """A tap's layer (a string, "" outside) and the rest of its name."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
    return match.groups() if match else ("", name)


def all_taps(taps, hidden):
    return {name: v for name, v in taps.items()
            if not hidden or not re.search(hidden, name)}


def llama_cpp(taps, hidden):
    """The names of llama.cpp's evaluation callback: Qcur is after RoPE."""
    out = {n: taps[n] for n in ("input_ids", "position_ids")}
    for name, value in taps.items():
        layer, rest = parts(name)
        if rest in LLAMA_CPP and not (hidden and re.search(hidden, name)):
            out[f"{LLAMA_CPP[rest]}-{layer}"] = value
    return {**out, "result_norm": taps["model.norm.output"],
            "result_output": taps["lm_head.output"]}


def vllm(taps, hidden):
    """The three projections as one tensor, and no steps of attention or experts of their own."""
    hidden = hidden or r"_norm|_rope|scores|probs|rotary|experts|topk|mlp\.(gate|up|act)"
    out = all_taps(taps, r"[qkv]_proj|gate_proj|up_proj|" + hidden)
    for i in {parts(n)[0] for n in taps} - {""}:
        p = f"model.layers.{i}."
        out[p + "self_attn.qkv_proj.output"] = torch.cat(
            [taps[f"{p}self_attn.{x}_proj.output"] for x in "qkv"], dim=-1)
        if f"{p}mlp.gate_proj.output" in taps:
            out[p + "mlp.gate_up_proj.output"] = torch.cat(
                [taps[f"{p}mlp.{x}_proj.output"] for x in ("gate", "up")], dim=-1)
    return out


def layers_only(taps, hidden):
    return {name: v for name, v in taps.items()
            if name in ("input_ids", "position_ids", "model.embed_tokens.output", "lm_head.output")
            or re.fullmatch(r"model\.layers\.\d+\.output", name)}


def no_attention(taps, hidden):
    """q_proj, k_proj, v_proj and what comes behind attention."""
    return all_taps(taps, r"rotary|_norm\.|_rope|scores|probs|o_proj\.input")


LAYOUTS = {"all": all_taps, "llama.cpp": llama_cpp, "vllm": vllm, "layers": layers_only,
           "no attention": no_attention}

# ---- the list -----------------------------------------------------------------------------------

BUGS = []


def bug(tap, number=0, layer=None, model="tiny", dtype="bfloat16", start=0, tokens=TOKENS,
        kind="value", looks=None, layout="all", hidden=None, operator=None, also=()):
    """hidden: a regular expression of tensors that the file does not have. also: of a second bug, independent of
    the first: its tap and what the diagnosis must say of it."""
    def register(cls):
        cls.tap = tap if layer is None else f"model.layers.{layer}.{tap}"
        cls.title = cls.__doc__.strip().splitlines()[0].rstrip(".")
        cls.number, cls.model, cls.dtype, cls.start, cls.tokens = number, model, dtype, start, tokens
        cls.kind, cls.looks, cls.layout, cls.hidden, cls.also = kind, looks, layout, hidden, also
        cls.operator = operator or re.sub(r"\.(out|in)put$", "", tap)
        BUGS.append(cls)
        return cls
    return register


def file_of(cls, taps):
    """What the backend's file holds of its taps."""
    return LAYOUTS[cls.layout](taps, cls.hidden)


def in_layer(name, layer, rest):
    return name.startswith(f"model.layers.{layer}.{rest}")


def fp8(x):
    """Rounded to e4m3, as a cache without a scale keeps it."""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)


def fp8_scaled(w):
    scale = w.abs().max().float() / 448
    return (fp8(w.float() / scale) * scale).to(w.dtype)


def int8(w):
    """Rows quantised to 8 bits, one scale a row."""
    scale = w.float().abs().amax(dim=-1, keepdim=True) / 127
    return ((w.float() / scale).round() * scale).to(w.dtype)


def low_precision_sum(x, w, dtype):
    """x W^T with an accumulator of dtype, product by product."""
    total = torch.zeros(x.shape[0], w.shape[0], dtype=dtype)
    for k in range(w.shape[1]):
        total = (total.float() + x[:, k, None].float() * w[None, :, k].float()).to(dtype)
    return total


# ==== embedding ====================================================================================


@bug("model.embed_tokens.output", looks="scaled|gain")
class ScaledEmbedding(Backend):
    """Embedding times sqrt(hidden_size), as Gemma."""
    def embed(self, ids):
        return super().embed(ids) * self.c["hidden_size"] ** 0.5


@bug("model.embed_tokens.output", number=42)
class ShardedVocabulary(Backend):
    """Vocabulary split in two, the second half's rows not summed in."""
    def embed(self, ids):
        return super().embed(ids) * (ids < self.c["vocab_size"] // 2)[:, None]


# ==== rotary table =================================================================================


@bug("model.rotary_emb.cos", number=27, start=3000, looks="position")
class PositionOffByOne(Backend):
    """Positions begin at 1."""
    def positions(self, n):
        return super().positions(n) + 1


@bug("model.rotary_emb.cos", number=27, looks="position")
class DecodeAtZero(Backend):
    """Decoding token by token at position 0."""
    cached = 16

    def positions(self, n):
        return super().positions(n) * (self.past == 0)


@bug("model.rotary_emb.cos", number=27, start=500, looks="position")
class PositionsRestart(Backend):
    """Positions restart in each chunk of the prompt."""
    chunk = 10

    def positions(self, n):
        return torch.arange(self.start, self.start + n)


@bug("model.rotary_emb.cos", start=3000, looks="position|rounded")
class PositionsRounded(Backend):
    """Positions in bfloat16."""
    def positions(self, n):
        return super().positions(n).bfloat16()


@bug("model.rotary_emb.cos", number=24, start=100, looks="theta")
class DefaultTheta(Backend):
    """rope_theta 10000, the default, instead of 100000."""
    def prepare(self):
        self.c = {**self.c, "rope_theta": 10000.0}


@bug("self_attn.q_rope.output", number=25, layer=0, start=40, looks="theta", hidden="rotary",
     operator="self_attn.q_rope")
class WrongTheta(Backend):
    """rope_theta of another checkpoint, 1000000 (cos and sin are not shown)."""
    def prepare(self):
        self.c = {**self.c, "rope_theta": 1000000.0}


@bug("model.rotary_emb.cos", start=300, looks="frequenc")
class RoundedFrequencies(Backend):
    """Inverse frequencies rounded to bfloat16 (model.to(bfloat16))."""
    def frequencies(self):
        inverse, scale = super().frequencies()
        return inverse.bfloat16().float(), scale


@bug("model.rotary_emb.cos", start=700, dtype="float32", looks="rounded|bf16|bfloat16")
class RoundedTable(Backend):
    """cos and sin kept in bfloat16 in a float32 run."""
    def table(self, positions):
        return tuple(x.bfloat16().float() for x in super().table(positions))


@bug("model.rotary_emb.cos", start=50, looks="swapped|cos")
class SwappedTable(Backend):
    """cos and sin swapped."""
    def table(self, positions):
        return super().table(positions)[::-1]


@bug("model.rotary_emb.cos", number=26, model="tiny-yarn", start=100, looks="yarn|scaling")
class YarnIgnored(Backend):
    """YaRN ignored."""
    def prepare(self):
        self.c = {**self.c, "rope_scaling": None}


@bug("model.rotary_emb.cos", number=26, model="tiny-yarn", looks="attention factor|attention_factor|gain")
class YarnFactorMissing(Backend):
    """YaRN's attention factor missing."""
    def frequencies(self):
        return super().frequencies()[0], 1.0


@bug("model.rotary_emb.cos", number=26, model="tiny-yarn", start=60, looks="factor")
class YarnFactorDerived(Backend):
    """YaRN's factor taken as max_position_embeddings / original length, 4 instead of 2."""
    def prepare(self):
        rope = self.c["rope_scaling"]
        factor = self.c["max_position_embeddings"] / rope["original_max_position_embeddings"]
        self.c = {**self.c, "rope_scaling": {**rope, "factor": factor}}


@bug("model.rotary_emb.cos", model="tiny-linear", start=20, looks="scaling|linear")
class LinearIgnored(Backend):
    """Linear RoPE scaling ignored."""
    def prepare(self):
        self.c = {**self.c, "rope_scaling": None}


# ==== rotary embedding =============================================================================


@bug("self_attn.q_rope.output", number=21, layer=0, looks="interleaved")
class Interleaved(Backend):
    """RoPE on pairs (2i, 2i+1) instead of (i, i+hd/2)."""
    def rope(self, x, name):
        half = self.hd // 2
        cos, sin, a, b = self.cos[:, None, :half], self.sin[:, None, :half], x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


@bug("self_attn.q_rope.output", number=21, layer=0, model="tiny-sparse", dtype="float32",
     looks="interleaved", layout="llama.cpp")
class InterleavedLlama(Interleaved):
    """The same in a file of llama.cpp's tensors."""


@bug("self_attn.q_rope.output", number=22, layer=0, looks="twice")
class RopeTwice(Backend):
    """RoPE applied twice to queries and keys."""
    def rope(self, x, name):
        return super().rope(super().rope(x, name), name)


@bug("self_attn.k_rope.output", number=23, layer=3, looks="rope.*(missing|not)|no rope|without rope")
class RopeNotWritten(Backend):
    """RoPE of the keys not written back, layer 3."""
    def rope(self, x, name):
        return x if in_layer(name, 3, "self_attn.k_rope") else super().rope(x, name)


@bug("self_attn.q_rope.output", number=20, layer=0, looks="half|partial|dimension")
class RopeHalfWritten(Backend):
    """RoPE writes only the first half of the dimensions."""
    def rope(self, x, name):
        half = self.hd // 2
        return torch.cat((super().rope(x, name)[..., :half], x[..., half:]), dim=-1)


@bug("self_attn.q_rope.output", layer=0, looks="sign|direction|other way|backwards|-sin|negative")
class RopeBackwards(Backend):
    """RoPE rotates the other way (sign of sin)."""
    def rope(self, x, name):
        return x * self.cos[:, None] - self.rotated(x) * self.sin[:, None]


@bug("self_attn.q_rope.output", number=32, layer=0, kind="rounding", looks="round")
class RopeRoundedOnce(Backend):
    """RoPE in float32 with one rounding instead of three."""
    def rope(self, x, name):
        x = x.float()
        return (x * self.cos[:, None] + self.rotated(x) * self.sin[:, None]).to(self.D)


@bug("self_attn.k_rope.output", number=27, layer=0, start=90, looks="position")
class LocalKeys(Backend):
    """Keys get the positions of their chunk, queries the right ones."""
    chunk = 10

    def rope(self, x, name):
        right = self.cos, self.sin
        if name.endswith("k_rope"):
            self.cos, self.sin = self.table(torch.arange(x.shape[0]))
        y = super().rope(x, name)
        self.cos, self.sin = right
        return y


class NormAfterRope(Backend):
    def prepared(self, a, q, k):
        q = self.norm(self.rope(q, a + "q_rope"), a + "q_norm")
        k = self.norm(self.rope(k, a + "k_rope"), a + "k_norm")
        for name, x in (("q_norm", q), ("k_norm", k), ("q_rope", q), ("k_rope", k)):
            self.keep(f"{a}{name}.output", x)
        return q, k


@bug("self_attn.q_norm.output", layer=0, start=30, looks="after rope|before the norm|order")
class NormAfterRopeAll(NormAfterRope):
    """QK-norm after RoPE."""


@bug("self_attn.q_rope.output", layer=0, start=30, hidden="[qk]_norm",
     looks="after rope|before the norm|order", operator="self_attn.q_norm")
class NormAfterRopeHidden(NormAfterRope):
    """QK-norm after RoPE; the norm's own result not shown."""


# ==== norms ========================================================================================


@bug("input_layernorm.output", number=31, layer=0, model="small-rows", looks="eps")
class LargeEps(Backend):
    """rms_norm_eps 1e-5 instead of 1e-6, rows of small variance."""
    def prepare(self):
        self.eps = 1e-5


@bug("self_attn.q_norm.output", number=31, layer=0, dtype="float32", looks="eps")
class HeadEps(Backend):
    """eps not passed on to q_norm and k_norm: 1e-5."""
    def head_norm(self, x, name):
        self.eps = 1e-5
        y = super().head_norm(x, name)
        self.eps = self.c["rms_norm_eps"]
        return y


@bug("input_layernorm.output", number=31, layer=0, dtype="float32", looks="eps")
class EpsOutside(Backend):
    """eps added to the root, not under it."""
    def norm(self, x, name):
        t = x.float()
        return self.w[name + ".weight"] * (t / (t.pow(2).mean(-1, keepdim=True).sqrt() + self.eps))


@bug("input_layernorm.output", number=31, layer=0, model="small-rows", looks="eps")
class NoEps(Backend):
    """No eps."""
    def prepare(self):
        self.eps = 0.0


@bug("input_layernorm.output", number=32, layer=0, kind="rounding", looks="weight|before|round")
class WeightBeforeCast(Backend):
    """Norm's weight multiplied before the cast: one rounding instead of two."""
    def norm(self, x, name):
        t = x.float()
        t = t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.w[name + ".weight"].float() * t).to(self.D)


@bug("post_attention_layernorm.output", number=32, layer=2, looks="variance rounded to bfloat16")
class RoundedVariance(Backend):
    """Variance rounded to bfloat16, one norm."""
    def norm(self, x, name):
        if not in_layer(name, 2, "post"):
            return super().norm(x, name)
        t = x.float()
        variance = t.pow(2).mean(-1, keepdim=True).bfloat16().float()
        return self.w[name + ".weight"] * (t * torch.rsqrt(variance + self.eps)).to(self.D)


@bug("post_attention_layernorm.output", number=32, layer=0, kind="rounding", looks="unrounded|sum|round")
class FusedAddNorm(Backend):
    """Norm of the residual sum before it is rounded (fused add and norm)."""
    def post_norm(self, before, h, name):
        t = before.float() + self.taps[name.replace("post_attention_layernorm", "self_attn.o_proj.output")]
        t = t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.w[name + ".weight"] * t.to(self.D)


@bug("input_layernorm.output", layer=2, looks="layernorm|mean")
class LayerNorm(Backend):
    """LayerNorm instead of RMSNorm, layer 2's first norm."""
    def norm(self, x, name):
        if in_layer(name, 2, "input"):
            x = x.float() - x.float().mean(-1, keepdim=True)
        return super().norm(x, name)


@bug("input_layernorm.output", layer=0, looks=r"weight \+ 1|1 \+ weight|gemma|plus one")
class GemmaWeight(Backend):
    """Norm's weight + 1, as Gemma."""
    def prepare(self):
        for name in self.w:
            if name.endswith("layernorm.weight"):
                self.w[name] = self.w[name] + 1


@bug("self_attn.k_norm.output", layer=3, looks="weight")
class NoNormWeight(Backend):
    """k_norm without its weight, layer 3."""
    def prepare(self):
        self.w["model.layers.3.self_attn.k_norm.weight"].fill_(1)


@bug("self_attn.q_norm.output", number=19, layer=0, looks="all heads|whole|extent|together")
class NormAllHeads(Backend):
    """QK-norm over all heads together."""
    def head_norm(self, x, name):
        t = x.float()
        t = t * torch.rsqrt(t.pow(2).mean((-2, -1), keepdim=True) + self.eps)
        return self.w[name + ".weight"] * t.to(self.D)


@bug("self_attn.q_norm.output", layer=2, looks="swapped|k_norm")
class NormsSwapped(Backend):
    """Weights of q_norm and k_norm swapped, layer 2."""
    def head_norm(self, x, name):
        other = {"q": "k_norm", "k": "q_norm"}[name[-6]]
        return super().head_norm(x, name[:-6] + other if in_layer(name, 2, "") else name)


@bug("self_attn.q_rope.output", number=18, layer=0, hidden="[qk]_norm", operator="self_attn.q_norm",
     looks="norm.*(missing|not)|no.*norm|without.*norm")
class NoHeadNorm(Backend):
    """QK-norm missing."""
    def head_norm(self, x, name):
        return x


@bug("self_attn.q_norm.output", number=18, layer=0, looks="norm.*(missing|not)|no.*norm|without.*norm")
class NoHeadNormDecoding(Backend):
    """QK-norm missing when decoding with a cache."""
    cached = 16

    def head_norm(self, x, name):
        return x if self.past else super().head_norm(x, name)


@bug("post_attention_layernorm.output", layer=3, looks="weight|input_layernorm")
class WrongNormWeight(Backend):
    """Second norm with the first norm's weight, layer 3."""
    def prepare(self):
        p = "model.layers.3."
        self.w[p + "post_attention_layernorm.weight"] = self.w[p + "input_layernorm.weight"]


@bug("model.norm.output", looks="norm.*(missing|not)|no.*norm|without.*norm")
class NoFinalNorm(Backend):
    """Final norm missing."""
    def norm(self, x, name):
        return x if name == "model.norm" else super().norm(x, name)


@bug("model.norm.output", looks="twice")
class FinalNormTwice(Backend):
    """Final norm applied to hidden_states[-1], which is normalised already."""
    def norm(self, x, name):
        y = super().norm(x, name)
        return super().norm(y, name) if name == "model.norm" else y


@bug("input_layernorm.output", number=10, layer=0, model="tiny-nan", tokens=1)
class NanDropped(Backend):
    """NaN replaced by 0 in a norm."""
    def norm(self, x, name):
        return super().norm(x, name).nan_to_num()


# ==== linear maps ==================================================================================


@bug("self_attn.q_proj.output", layer=3, looks="channel|row")
class WrongRow(Backend):
    """One row of q_proj is its neighbour's, layer 3."""
    def prepare(self):
        w = self.w["model.layers.3.self_attn.q_proj.weight"]
        w[17] = w[18]


class ScaledChannel(Backend):
    factor = 1.0

    def linear(self, x, name):
        if not in_layer(name, 2, "self_attn.v_proj"):
            return super().linear(x, name)
        y = F.linear(x.float(), self.w[name + ".weight"].float())
        y[:, 5] *= self.factor
        return y.to(self.D)


@bug("self_attn.v_proj.output", layer=2, kind="rounding", looks="channel|scaled|gain")
class ScaledChannel1002(ScaledChannel):
    """One channel of v_proj times 1.002, layer 2."""
    factor = 1.002


@bug("self_attn.v_proj.output", layer=2, looks="channel|scaled|gain")
class ScaledChannel101(ScaledChannel):
    """One channel of v_proj times 1.01, layer 2."""
    factor = 1.01


@bug("self_attn.v_proj.output", layer=2, dtype="float32", looks="channel|scaled|gain")
class ScaledChannel10001(ScaledChannel):
    """One channel of v_proj times 1.0001, layer 2."""
    factor = 1.0001


@bug("mlp.output", number=45, layer=1, looks="channel|scaled|gain")
class MassiveChannel(Backend):
    """The largest channel of the dense layer's down_proj 15 % low."""
    def prepare(self):
        w = self.w["model.layers.1.mlp.down_proj.weight"]
        w[w.float().norm(dim=-1).argmax()] *= 0.85


@bug("self_attn.k_proj.output", layer=0, layout="vllm", looks="swapped|v_proj")
class FusedSwapped(Backend):
    """Keys and values swapped in a fused qkv_proj."""
    def linear(self, x, name):
        return super().linear(x, name.translate(str.maketrans("kv", "vk"))
                              if name.endswith(("self_attn.k_proj", "self_attn.v_proj")) else name)


@bug("self_attn.o_proj.output", layer=0, model="bias", looks="bias")
class BiasMissing(Backend):
    """o_proj's bias missing."""
    def linear(self, x, name):
        y = self.w[name + ".weight"]
        return F.linear(x, y) if name.endswith("o_proj") else super().linear(x, name)


@bug("self_attn.k_proj.output", layer=1, model="bias", looks="bias")
class BiasTwice(Backend):
    """k_proj's bias added twice, layer 1."""
    def prepare(self):
        self.w["model.layers.1.self_attn.k_proj.bias"] *= 2


@bug("self_attn.q_proj.output", number=32, layer=0, model="bias", kind="rounding", looks="bias|round")
class BiasAfterRounding(Backend):
    """Bias added after the product is rounded."""
    def linear(self, x, name):
        y = F.linear(x, self.w[name + ".weight"])
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y


@bug("mlp.experts.down_proj.output", number=12, layer=2, looks="tail|last|block|terms")
class TailMissing(Backend):
    """down_proj's sum without its last block (56 = 3 times 16 and 8), layer 2."""
    def linear(self, x, name):
        if in_layer(name, 2, "mlp.experts") and name.endswith("down_proj"):
            x = F.pad(x[:, :48], (0, 8))
        return super().linear(x, name)


@bug("self_attn.o_proj.output", number=13, layer=2, looks="accumulat")
class LowAccumulator(Backend):
    """o_proj adds up in bfloat16, layer 2."""
    def linear(self, x, name):
        if in_layer(name, 2, "self_attn.o_proj"):
            return low_precision_sum(x, self.w[name + ".weight"], torch.bfloat16)
        return super().linear(x, name)


@bug("self_attn.q_proj.output", number=7, layer=0, model="long", dtype="float16", looks="accumulat")
class HalfAccumulator(Backend):
    """q_proj adds up in float16, 600 terms."""
    def linear(self, x, name):
        if name.endswith("q_proj"):
            return low_precision_sum(x, self.w[name + ".weight"], torch.float16)
        return super().linear(x, name)


@bug("self_attn.o_proj.output", number=12, layer=0, looks="accumulat|parts|shard|split")
class RoundedShards(Backend):
    """o_proj in two shards, each rounded before they are added."""
    def linear(self, x, name):
        if not name.endswith("o_proj"):
            return super().linear(x, name)
        w, k = self.w[name + ".weight"], x.shape[1] // 2
        return F.linear(x[:, :k], w[:, :k]) + F.linear(x[:, k:], w[:, k:])


@bug("self_attn.q_proj.output", layer=0, dtype="float32", looks="tf32|rounded|accumulat")
class Tf32(Backend):
    """TF32 products in a float32 run, not declared."""
    def linear(self, x, name):
        bits = (x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
        return super().linear(bits.view(torch.float32), name)


@bug("self_attn.o_proj.output", layer=2, dtype="float32", looks="rounded|bf16|bfloat16")
class ActivationsCast(Backend):
    """o_proj's input cast to bfloat16 in a float32 run, layer 2."""
    def linear(self, x, name):
        return super().linear(x.bfloat16() if in_layer(name, 2, "self_attn.o_proj") else x, name)


@bug("self_attn.k_proj.output", number=36, layer=3, looks="quanti|fp8|8.bit")
class Fp8Weights(Backend):
    """k_proj's weights through FP8, layer 3."""
    def prepare(self):
        name = "model.layers.3.self_attn.k_proj.weight"
        self.w[name] = fp8_scaled(self.w[name])


@bug("mlp.experts.down_proj.output", layer=0, looks="expert|quanti|int8|8.bit")
class Int8Expert(Backend):
    """One expert's down_proj through int8, layer 0."""
    def prepare(self):
        name = "model.layers.0.mlp.experts.6.down_proj.weight"
        self.w[name] = int8(self.w[name])


@bug("mlp.gate.output", layer=3, looks="quanti|int8|8.bit")
class Int8Router(Backend):
    """The router through int8, layer 3."""
    def prepare(self):
        self.w["model.layers.3.mlp.gate.weight"] = int8(self.w["model.layers.3.mlp.gate.weight"])


@bug("self_attn.o_proj.output", number=36, layer=2, looks="block|channel|scaled|gain")
class NeighbourScale(Backend):
    """A block of o_proj's rows dequantised with the next block's scale, layer 2."""
    def prepare(self):
        w = self.w["model.layers.2.self_attn.o_proj.weight"]
        w[32:64] *= w[64:96].abs().max() / w[32:64].abs().max()


@bug("self_attn.o_proj.output", number=14, layer=0, model="square", looks="transpos")
class TransposedOutput(Backend):
    """A square o_proj transposed."""
    def prepare(self):
        name = "model.layers.0.self_attn.o_proj.weight"
        self.w[name] = self.w[name].T.contiguous()


@bug("mlp.experts.down_proj.output", number=14, layer=1, model="square", looks="transpos")
class TransposedExpert(Backend):
    """Square down_proj of all experts transposed, layer 1."""
    def prepare(self):
        for name in self.w:
            if in_layer(name, 1, "mlp.experts") and name.endswith("down_proj.weight"):
                self.w[name] = self.w[name].T.contiguous()


@bug("self_attn.v_proj.output", layer=2, looks="channel|lane|token before|previous")
class StuckLane(Backend):
    """One channel of v_proj keeps the value of the token before, layer 2."""
    def linear(self, x, name):
        y = super().linear(x, name)
        if in_layer(name, 2, "self_attn.v_proj"):
            y[1:, 33] = y[:-1, 33].clone()
        return y


@bug("self_attn.o_proj.output", number=38, layer=3, tokens=23, looks="token|row")
class OddRow(Backend):
    """The last token's row not written where T is odd, layer 3."""
    def linear(self, x, name):
        y = super().linear(x, name)
        if in_layer(name, 3, "self_attn.o_proj") and len(y) % 2:
            y[-1] = y[-2] * 0.97
        return y


@bug("self_attn.k_proj.output", number=38, layer=2, looks="token|row|accumulat")
class SecondTile(Backend):
    """Rows from 16 on computed with bfloat16 sums (depends on the batch), layer 2."""
    def linear(self, x, name):
        y = super().linear(x, name)
        if in_layer(name, 2, "self_attn.k_proj"):
            y[16:] = low_precision_sum(x[16:], self.w[name + ".weight"], torch.bfloat16)
        return y


# ==== attention ====================================================================================


class Tiled(Backend):
    def kv_head(self, name):
        return torch.arange(self.H) % self.K


@bug("self_attn.scores.output", number=28, layer=0, looks="head")
class TiledHeads(Tiled):
    """Key/value heads tiled instead of repeated."""


@bug("self_attn.o_proj.output", number=28, layer=0, layout="no attention", looks="head",
     operator="self_attn.scores")
class TiledHidden(Tiled):
    """The same without attention's inner tensors."""


@bug("output", number=28, layer=0, layout="layers", looks="head", dtype="float32",
     operator="self_attn.scores")
class TiledLayers(Tiled):
    """The same with the layers' outputs alone."""


@bug("self_attn.probs.output", number=28, layer=0, model="tiny-sparse", dtype="float32",
     layout="llama.cpp", looks="head", operator="self_attn.scores")
class TiledLlama(Tiled):
    """The same in a file of llama.cpp's tensors."""


@bug("self_attn.scores.output", number=28, layer=0, looks="head")
class WrongDivisor(Backend):
    """Key/value head h div K instead of h div (H/K)."""
    def kv_head(self, name):
        return (torch.arange(self.H) // self.K).clamp(max=self.K - 1)


@bug("self_attn.o_proj.input", number=28, layer=2, looks="head")
class TiledValues(Backend):
    """The values alone with tiled heads, layer 2."""
    def kv_head(self, name):
        if in_layer(name, 2, "self_attn.values"):
            return torch.arange(self.H) % self.K
        return super().kv_head(name)


@bug("self_attn.scores.output", number=30, layer=0, looks="scale")
class NoScale(Backend):
    """Attention scale missing."""
    def scale(self):
        return 1.0


@bug("self_attn.scores.output", number=29, layer=0, looks="head_dim|scale|hidden")
class WrongHeadDim(Backend):
    """Scale of head_dim = hidden_size / heads, 20 instead of 24."""
    def scale(self):
        return (self.c["hidden_size"] // self.H) ** -0.5


@bug("self_attn.o_proj.output", number=29, layer=0, layout="no attention", looks="head_dim|scale|hidden",
     operator="self_attn.scores")
class WrongHeadDimHidden(WrongHeadDim):
    """The same without attention's inner tensors."""


@bug("self_attn.scores.output", number=30, layer=3, looks="attention scale applied twice")
class ScaleTwice(Backend):
    """Attention scale applied twice, layer 3."""
    def scores(self, q, k, a):
        return super().scores(q, k, a) * (self.scale() if in_layer(a, 3, "") else 1)


@bug("self_attn.scores.output", number=32, layer=0, kind="rounding", looks="round")
class ScoresRoundedOnce(Backend):
    """Scores scaled before they are rounded."""
    def scores(self, q, k, a):
        return (torch.matmul(q.float(), k.float().transpose(1, 2)) * self.scale()).to(self.D)


@bug("self_attn.scores.output", layer=0, looks="scale|round")
class ScaledQueries(Backend):
    """Queries scaled and rounded before the product."""
    def scores(self, q, k, a):
        return torch.matmul(q * self.scale(), k.transpose(1, 2))


@bug("self_attn.scores.output", layer=0, looks="cap|tanh")
class ScoresCapped(Backend):
    """Scores through 50 tanh(s/50), as Gemma 2."""
    def scores(self, q, k, a):
        return torch.tanh(super().scores(q, k, a) / 50) * 50


@bug("self_attn.probs.output", layer=2, looks="future|mask|causal")
class SeesFuture(Backend):
    """Mask off by one: each token sees the next one, layer 2."""
    def seen(self, i, T, S):
        t, s = self.rows(T, S)
        return s <= t + 1 if i == 2 else super().seen(i, T, S)


@bug("self_attn.probs.output", layer=0, looks="itself|mask|causal|strict|own")
class StrictMask(Backend):
    """Mask off by one: tokens do not see themselves."""
    def seen(self, i, T, S):
        t, s = self.rows(T, S)
        return (s < t) | ((s == 0) & (t == 0))


@bug("self_attn.probs.output", number=35, layer=0, model="tiny-window", looks="window")
class WiderWindow(Backend):
    """Window of w + 1 keys."""
    def window(self, i):
        return 8


@bug("self_attn.probs.output", number=35, layer=0, model="tiny-window", looks="window")
class SymmetricWindow(Backend):
    """Window of 2w + 1."""
    def window(self, i):
        return 15


@bug("self_attn.probs.output", number=35, layer=0, model="tiny-window-off", looks="window")
class UnwantedWindow(Backend):
    """Window applied though use_sliding_window is false."""
    def window(self, i):
        return 7


@bug("self_attn.probs.output", number=35, layer=1, model="tiny-window", looks="window")
class WindowOddLayers(Backend):
    """No window in every second layer."""
    def window(self, i):
        return None if i % 2 else 7


@bug("self_attn.probs.output", layer=0, looks="round|bf16|bfloat16|precision")
class LowSoftmax(Backend):
    """Softmax in bfloat16 throughout."""
    def softmax(self, scores, a):
        e = (scores - scores.amax(-1, keepdim=True)).exp()
        return e / e.sum(-1, keepdim=True)


@bug("self_attn.probs.output", layer=4, dtype="float16")
class NoMaximum(Backend):
    """Softmax in float16 without subtracting the maximum, layer 4, whose scores a sink token drives up."""
    def softmax(self, scores, a):
        if not in_layer(a, 4, ""):
            return super().softmax(scores, a)
        e = scores.exp()
        return e / e.sum(-1, keepdim=True)


@bug("self_attn.probs.output", layer=2, looks="sink|plus one|denominator|extra")
class SoftmaxPlusOne(Backend):
    """A sink in the softmax: 1 added to the denominator, layer 2."""
    def softmax(self, scores, a):
        extra = torch.zeros(*scores.shape[:-1], int(in_layer(a, 2, "")), dtype=scores.dtype)
        return super().softmax(torch.cat((scores, extra), -1), a)[..., :scores.shape[-1]]


@bug("self_attn.probs.output", number=42, layer=0, looks="drop|zero")
class Dropout(Backend):
    """Attention dropout left on, 0.1."""
    def softmax(self, scores, a):
        torch.manual_seed(1)
        return F.dropout(super().softmax(scores, a), 0.1)


@bug("self_attn.scores.output", number=38, layer=0, looks="stale|cache|earlier|previous")
class StaleKeys(Backend):
    """Decoding: the token's own key is not in the cache yet when it attends."""
    cached = 16

    def cache(self, a, k, v):
        k, v = super().cache(a, k, v)
        return torch.cat((k[:-1], k[-2:-1])) if self.past else k, v


@bug("self_attn.o_proj.input", number=38, layer=2, looks="stale|cache|shift|row|previous")
class ShiftedValues(Backend):
    """Decoding: cached values read one row off, layer 2."""
    cached = 16

    def cache(self, a, k, v):
        k, v = super().cache(a, k, v)
        return k, torch.cat((v[:1], v[:-1])) if self.past and in_layer(a, 2, "") else v


@bug("self_attn.scores.output", number=39, layer=0, looks="fp8|float8|rounded|cache|quanti")
class Fp8Cache(Backend):
    """Keys and values kept in FP8."""
    def stored(self, x, a):
        return fp8(x)


@bug("self_attn.scores.output", number=39, layer=0, looks="fp8|float8|rounded|cache|quanti|token")
class Fp8CacheLate(Backend):
    """Keys and values kept in FP8 from position 16 on."""
    def stored(self, x, a):
        return torch.cat((x[:16], fp8(x[16:])))


@bug("self_attn.scores.output", layer=0, dtype="float32", looks="--kv|float16|f16|half")
class HalfCache(Backend):
    """Keys and values kept in float16 in a float32 run, not declared."""
    def stored(self, x, a):
        return x.half().float()


@bug("self_attn.o_proj.input", layer=0, looks="head|order|transpos")
class HeadsJoined(Backend):
    """Heads joined as [hd,H] instead of [H,hd]."""
    def joined(self, o):
        return o.permute(1, 2, 0).reshape(o.shape[1], -1)


# ==== residuals ====================================================================================


@bug("post_attention_layernorm.input", layer=0, looks="residual|norm")
class NormedResidual(Backend):
    """Residual taken from the normed input."""
    def residual(self, h, x, name):
        if "post_attention" in name:
            h = self.taps[name.replace("post_attention_layernorm.input", "input_layernorm.output")]
        return h + x


@bug("post_attention_layernorm.input", layer=0, kind="rounding", looks="round")
class FloatResidual(Backend):
    """Residual sum kept in float32 in a bfloat16 run."""
    def residual(self, h, x, name):
        return h.float() + x.float()


@bug("output", layer=4, looks="residual")
class NoLastResidual(Backend):
    """Residual missing in the last layer."""
    def residual(self, h, x, name):
        return x if name == "model.layers.4.output" else h + x


@bug("output", layer=2, looks="residual|attention")
class LostAttention(Backend):
    """Second residual adds what came before attention, layer 2."""
    def residual(self, h, x, name):
        return (self.taps["model.layers.1.output"] if name == "model.layers.2.output" else h) + x

# ==== router =======================================================================================


@bug("mlp.gate.output", layer=2, looks="norm|input")
class RouterBeforeNorm(Backend):
    """Router reads the residual stream instead of the norm, layer 2."""
    def router(self, m, x):
        if in_layer(m, 2, ""):
            x = self.taps[m.replace("mlp.", "post_attention_layernorm.input")]
        return super().router(m, x)


@bug("mlp.gate.output", number=41, layer=0, looks="probabilit|softmax")
class LogitsAreProbabilities(Backend):
    """Router logits recorded as probabilities, everything else right."""
    def keep(self, name, value):
        if name.endswith("mlp.gate.output"):
            self.taps[name] = F.softmax(value, dim=-1, dtype=torch.float32)
            return value
        return super().keep(name, value)


@bug("mlp.gate.output", number=7, layer=0, kind="rounding", looks="round")
class RouterNotRounded(Backend):
    """Router logits kept in float32."""
    def router(self, m, x):
        return F.linear(x.float(), self.w[m + "gate.weight"].float())


@bug("mlp.router_probs.output", number=41, layer=0, looks="twice|softmax")
class SoftmaxTwice(Backend):
    """Softmax of probabilities."""
    def router_probs(self, logits, m):
        return F.softmax(super().router_probs(logits, m), dim=-1)


@bug("mlp.router_probs.output", layer=0, looks="sigmoid")
class SigmoidRouter(Backend):
    """Sigmoid instead of softmax."""
    def router_probs(self, logits, m):
        return logits.float().sigmoid()


@bug("mlp.router_probs.output", number=7, layer=0, looks="round|bf16|bfloat16")
class RoundedProbabilities(Backend):
    """Router's softmax cast to bfloat16 before the selection."""
    def router_probs(self, logits, m):
        return super().router_probs(logits, m).to(self.D)


@bug("mlp.topk_indices.output", number=5, layer=0, model="negative", looks=None)
class NegativeLogits(Backend):
    """Selection that begins at 0: logits that are all negative choose expert 0 on."""
    def choose(self, probs, logits, m):
        return super().choose(logits.float().clamp(min=0), logits, m)


@bug("mlp.topk_indices.output", layer=2, looks="smallest|ascending|reverse")
class TopAscending(Backend):
    """The k smallest chosen, layer 2."""
    def choose(self, probs, logits, m):
        return super().choose(-probs if in_layer(m, 2, "") else probs, logits, m)


@bug("mlp.topk_indices.output", layer=0, looks="group")
class GroupedTop(Backend):
    """Selection in the best two of seven groups of experts, as DeepSeek."""
    def choose(self, probs, logits, m):
        groups = probs.view(len(probs), 7, 2)
        best = groups.amax(-1).topk(2).indices
        keep = torch.zeros_like(probs[:, :7]).scatter(1, best, 1.0)
        return super().choose((groups * keep[..., None]).flatten(1), logits, m)


@bug("mlp.topk_indices.output", layer=2, looks=None)
class SelectionBias(Backend):
    """A bias of 0.02 for the even experts in the selection alone, layer 2."""
    def choose(self, probs, logits, m):
        bias = 0.02 * (torch.arange(probs.shape[1]) % 2 == 0)
        return super().choose(probs + bias if in_layer(m, 2, "") else probs, logits, m)


@bug("mlp.topk_indices.output", number=10, layer=0, model="tiny-nan", tokens=1, looks=None)
class DuplicateIds(Backend):
    """A row of NaN chooses expert 0 four times."""
    def choose(self, probs, logits, m):
        ids = super().choose(probs, logits, m)
        return torch.where(probs.isnan().any(-1, keepdim=True), 0, ids)


class NotRenormalised(Backend):
    def weights(self, probs, ids, logits, m):
        return probs.gather(-1, ids).to(self.D)


@bug("mlp.topk_weights.output", number=1, layer=0, looks="renormal")
class NoRenormalisation(NotRenormalised):
    """Top-k weights not renormalised."""


@bug("mlp.output", number=1, layer=0, looks="renormal", hidden="router_probs|topk|experts",
     operator="mlp.topk_weights")
class NoRenormalisationHidden(NotRenormalised):
    """The same without the experts' inner tensors."""


@bug("output", number=1, layer=0, looks="renormal", layout="layers", dtype="float32",
     operator="mlp.topk_weights")
class NoRenormalisationLayers(NotRenormalised):
    """The same with the layers' outputs alone."""


@bug("mlp.topk_weights.output", number=2, layer=0, model="tiny-plain", looks="renormal")
class UnwantedRenormalisation(Backend):
    """Weights renormalised though norm_topk_prob is false."""
    def weights(self, probs, ids, logits, m):
        w = probs.gather(-1, ids)
        return (w / w.sum(-1, keepdim=True)).to(self.D)


@bug("mlp.topk_weights.output", number=4, layer=0, model="tiny-plain", looks="renormal|after",
     hidden="router_probs")
class TopThenSoftmax(Backend):
    """Softmax of the chosen logits alone though norm_topk_prob is false."""
    def weights(self, probs, ids, logits, m):
        return F.softmax(logits.gather(-1, ids).float(), dim=-1).to(self.D)


@bug("mlp.topk_weights.output", number=3, layer=0, model="tiny-plain", looks="logits")
class RawLogits(Backend):
    """Raw logits as weights where they are not renormalised."""
    def weights(self, probs, ids, logits, m):
        return logits.gather(-1, ids)


@bug("mlp.topk_weights.output", number=9, layer=0, looks="order|pair|id|rank")
class WrongPairs(Backend):
    """Weights in the order of the ids, ids in the order of rank."""
    def weights(self, probs, ids, logits, m):
        return super().weights(probs, ids.sort(-1).values, logits, m)


@bug("mlp.topk_weights.output", number=32, layer=0, kind="rounding", looks="round")
class WeightsNotRounded(Backend):
    """Weights kept in float32 (transformers 5.0 to 5.5)."""
    def weights(self, probs, ids, logits, m):
        w = probs.gather(-1, ids)
        return w / w.sum(-1, keepdim=True)


@bug("mlp.topk_weights.output", number=7, layer=0, kind="rounding", looks="round|bf16|bfloat16")
class RenormalisedLate(Backend):
    """Weights rounded to bfloat16 before they are renormalised."""
    def weights(self, probs, ids, logits, m):
        w = probs.gather(-1, ids).to(self.D)
        return w / w.sum(-1, keepdim=True)


@bug("mlp.topk_weights.output", number=6, layer=0, model="wide", looks="slot|last|expert")
class LastSlot(Backend):
    """128 experts, 8 chosen: the last slot has the weight of the one before."""
    def weights(self, probs, ids, logits, m):
        w = super().weights(probs, ids, logits, m)
        w[:, 7] = w[:, 6]
        return w


@bug("mlp.topk_weights.output", layer=2, looks="k - 1|one expert|fewer|last")
class OneFewer(Backend):
    """Three experts instead of four, layer 2."""
    def weights(self, probs, ids, logits, m):
        if not in_layer(m, 2, ""):
            return super().weights(probs, ids, logits, m)
        w = probs.gather(-1, ids)
        w[:, -1] = 0
        return (w / w.sum(-1, keepdim=True)).to(self.D)


# ==== experts ======================================================================================


class Permuted(Backend):
    def mlp(self, name, x):
        e = name.split("experts.")
        if len(e) == 2 and e[1] in ("4.", "5."):
            name = f"{e[0]}experts.{9 - int(e[1][0])}."
        return super().mlp(name, x)


@bug("mlp.experts.gate_proj.output", number=11, layer=0, looks="expert")
class PermutedExperts(Permuted):
    """Experts 4 and 5 change places."""


@bug("mlp.output", number=11, layer=0, looks="expert", hidden=r"\.experts\.", operator="mlp.experts.gate_proj")
class PermutedHidden(Permuted):
    """The same without the experts' inner tensors."""


@bug("mlp.experts.up_proj.output", layer=2, looks="expert")
class NeighbourExpert(Backend):
    """Expert 3's up_proj is expert 2's, layer 2."""
    def prepare(self):
        m = "model.layers.2.mlp.experts."
        self.w[m + "3.up_proj.weight"] = self.w[m + "2.up_proj.weight"]


@bug("mlp.experts.gate_proj.output", number=12, layer=0, model="wide", looks="channel|row|shift|shard")
class UnevenShard(Backend):
    """Experts' rows from 32 on taken from 24 on (48 split as 32 and 16)."""
    def prepare(self):
        for name in self.w:
            if "experts" in name and name.endswith(("gate_proj.weight", "up_proj.weight")):
                self.w[name][32:] = self.w[name][24:40].clone()


@bug("mlp.experts.gate_proj.output", number=46, layer=0, looks="weight")
class WeightBefore(Backend):
    """Routing weight applied before the expert."""
    def expert_input(self, x, weight):
        return x * weight

    def combine(self, down, weights, ids, m):
        return super().combine(down, torch.ones_like(weights), ids, m)


@bug("mlp.experts.gate_proj.output", number=15, layer=0, looks="swapped")
class GateUpSwapped(Backend):
    """gate and up swapped."""
    def linear(self, x, name):
        if name.endswith(("gate_proj", "up_proj")):
            stem, last = name.rsplit(".", 1)
            name = f"{stem}.{'up' if last == 'gate_proj' else 'gate'}_proj"
        return super().linear(x, name)


@bug("mlp.gate_proj.output", number=15, layer=1, layout="vllm", looks="swapped",
     hidden=r"_norm\.|_rope|scores|probs|rotary|experts|topk|mlp\.act")
class GateUpFused(Backend):
    """The same in the dense layer's fused gate_up_proj."""
    def linear(self, x, name):
        swap = {"model.layers.1.mlp.gate_proj": "up", "model.layers.1.mlp.up_proj": "gate"}
        return super().linear(x, f"model.layers.1.mlp.{swap[name]}_proj" if name in swap else name)


@bug("mlp.experts.gate_proj.output", number=15, layer=2, looks="interleav")
class GateUpInterleaved(Backend):
    """gate and up interleaved row by row instead of halves, layer 2."""
    def prepare(self):
        for e in range(self.c["num_experts"]):
            m = f"model.layers.2.mlp.experts.{e}."
            both = torch.cat((self.w[m + "gate_proj.weight"], self.w[m + "up_proj.weight"]))
            self.w[m + "gate_proj.weight"], self.w[m + "up_proj.weight"] = both[::2], both[1::2]


@bug("mlp.experts.act_fn.output", layer=0, looks="gelu")
class Gelu(Backend):
    """GELU instead of SiLU."""
    def act(self, gate, name):
        return F.gelu(gate)


@bug("mlp.act_fn.output", layer=1, looks="hard|swish|gelu|tanh")
class HardSwish(Backend):
    """Hard swish instead of SiLU, dense layer."""
    def act(self, gate, name):
        return F.hardswish(gate) if in_layer(name, 1, "") else super().act(gate, name)


@bug("mlp.experts.act_fn.output", number=15, layer=0, looks=r"1\.702|alpha")
class SwigluAlpha(Backend):
    """x sigmoid(1.702 x) instead of SiLU."""
    def act(self, gate, name):
        return (gate.float() * (1.702 * gate.float()).sigmoid()).to(self.D)


@bug("mlp.experts.down_proj.input", number=15, layer=0, looks=r"up \+ 1|\+ 1|plus one")
class SwigluPlusOne(Backend):
    """silu(gate) (up + 1)."""
    def product(self, act, gate, up, name):
        return act * (up + 1)


@bug("mlp.experts.down_proj.input", number=15, layer=2, looks="clip|clamp|limit")
class SwigluClipped(Backend):
    """up clipped, layer 2, where only a few values are beyond it."""
    def product(self, act, gate, up, name):
        return act * (up.clamp(-1.5, 1.5) if in_layer(name, 2, "") else up)


@bug("mlp.experts.act_fn.output", number=32, layer=0, kind="rounding", looks="round|sigmoid")
class RoundedSigmoid(Backend):
    """SiLU with the sigmoid rounded first."""
    def act(self, gate, name):
        return gate * gate.sigmoid()


@bug("mlp.experts.gate_proj.output", layer=3, looks="expert|channel|row")
class ExpertRow(Backend):
    """One row of one expert's gate_proj 3 % high, layer 3."""
    def prepare(self):
        self.w["model.layers.3.mlp.experts.8.gate_proj.weight"][3] *= 1.03


@bug("mlp.output", layer=2, looks="slot|last|expert|missing")
class SlotSkipped(Backend):
    """The last slot left out of the sum, layer 2."""
    def combine(self, down, weights, ids, m):
        if in_layer(m, 2, ""):
            weights = weights * (torch.arange(self.A) < self.A - 1)
        return super().combine(down, weights, ids, m)


@bug("mlp.output", layer=0, looks="weight")
class WeightsTwice(Backend):
    """Routing weights applied twice."""
    def combine(self, down, weights, ids, m):
        return super().combine(down, weights * weights, ids, m)


@bug("mlp.output", layer=2, looks="weight")
class WeightsIgnored(Backend):
    """Experts averaged, routing weights ignored, layer 2."""
    def combine(self, down, weights, ids, m):
        return super().combine(down, torch.full_like(weights, 0.25) if in_layer(m, 2, "") else weights, ids, m)


@bug("mlp.output", layer=3, looks="gain|scal|factor")
class ScaledExperts(Backend):
    """A routed_scaling_factor of 1.05, layer 3."""
    def combine(self, down, weights, ids, m):
        out = super().combine(down, weights, ids, m)
        return out * 1.05 if in_layer(m, 3, "") else out


@bug("mlp.output", layer=0, looks="expert|missing|drop")
class Capacity(Backend):
    """An expert takes 9 tokens at most, the rest is dropped."""
    def combine(self, down, weights, ids, m):
        one_hot = F.one_hot(ids, self.c["num_experts"])
        place = (one_hot.sum(1).cumsum(0)[:, None] * one_hot).sum(-1)
        return super().combine(down, weights * (place <= 9), ids, m)


@bug("mlp.output", number=13, layer=2, looks="token|swapped|row")
class RowsSwapped(Backend):
    """Two tokens' results change places, layer 2."""
    def combine(self, down, weights, ids, m):
        out = super().combine(down, weights, ids, m)
        if in_layer(m, 2, ""):
            out[[4, 5]] = out[[5, 4]]
        return out


@bug("mlp.output", number=33, layer=0, looks="expert|missing", hidden=r"\.experts\.")
class Traced(Backend):
    """Experts that the first 3 tokens did not choose are missing."""
    def combine(self, down, weights, ids, m):
        return super().combine(down, weights * torch.isin(ids, ids[:3]), ids, m)


@bug("mlp.output", number=16, layer=1, hidden="mlp.(gate_proj|up_proj|act_fn|down_proj)", operator="mlp.down_proj",
     looks=None)
class DenseWidth(Backend):
    """A dense layer with the width of an expert (56 of 200)."""
    def product(self, act, gate, up, name):
        return act * up * (torch.arange(act.shape[-1]) < self.c["moe_intermediate_size"])


# ==== head =========================================================================================


@bug("lm_head.output", number=34, looks="tied|embed")
class TiedHead(Backend):
    """lm_head tied to the embedding though it is not."""
    def prepare(self):
        self.w["lm_head.weight"] = self.w["model.embed_tokens.weight"]


@bug("lm_head.output", number=34, model="tiny-tied", looks=None)
class UntiedHead(Backend):
    """lm_head left at its random start though it is tied."""
    def prepare(self):
        torch.manual_seed(2)
        self.w["lm_head.weight"] = torch.randn_like(self.w["model.embed_tokens.weight"]) * 0.02


@bug("lm_head.output", looks="cap|tanh")
class LogitsCapped(Backend):
    """Logits through 30 tanh(x/30), as Gemma."""
    def head(self, h):
        return torch.tanh(super().head(h) / 30) * 30


@bug("lm_head.output", number=42, looks="channel|row|shift")
class VocabularyShard(Backend):
    """lm_head's second half one row off."""
    def prepare(self):
        half = self.c["vocab_size"] // 2
        w = self.w["lm_head.weight"].clone()
        w[half:-1] = self.w["lm_head.weight"][half + 1:]
        self.w["lm_head.weight"] = w


# ==== few tensors ==================================================================================


@bug("mlp.topk_weights.output", number=2, layer=0, model="negative", dtype="float32", layout="llama.cpp",
     looks="renormal")
class UnwantedLlama(UnwantedRenormalisation):
    """Weights renormalised though norm_topk_prob is false, llama.cpp's tensors."""


@bug("output", number=24, layer=0, layout="layers", dtype="float32", start=100, looks="theta",
     operator="model.rotary_emb")
class DefaultThetaLayers(DefaultTheta):
    """rope_theta 10000 instead of 100000, layers' outputs alone."""


@bug("output", layer=2, layout="layers", dtype="float32", looks=None, operator="mlp.experts.gate_proj")
class ExpertRowLayers(Backend):
    """One row of one expert's gate_proj 3 % high, layers' outputs alone."""
    def prepare(self):
        self.w["model.layers.2.mlp.experts.8.gate_proj.weight"][3] *= 1.03


@bug("self_attn.o_proj.output", layer=2, layout="no attention", looks="future|mask|causal",
     operator="self_attn.probs")
class SeesFutureHidden(SeesFuture):
    """Each token sees the next one, layer 2, without attention's inner tensors."""


@bug("self_attn.o_proj.input", number=18, layer=0, layout="vllm", operator="self_attn.q_norm",
     looks="norm.*(missing|not)|no.*norm|without.*norm")
class NoHeadNormFused(NoHeadNorm):
    """QK-norm missing, vLLM's tensors."""
