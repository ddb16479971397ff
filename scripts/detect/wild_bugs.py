# SPDX-License-Identifier: MIT
"""More planted bugs of the detection matrix (scripts/detect/detect.py), behind those of scripts/detect/bugs.py, which
says what the decorator means: what real packages were found to do, or do by design.
"""

import torch
import torch.nn.functional as F

from backend import Backend
from bugs import BUGS, NotRenormalised, bug, in_layer

# ---- formats ------------------------------------------------------------------------------------


def truncated(x, dtype):
    """float32 to bfloat16 or float16, towards zero."""
    y = x.float().to(dtype)
    back = y.float()
    beyond = back.abs() > x.float().abs()
    one_less = (y.view(torch.int16) - 1).view(dtype)
    return torch.where(beyond, one_less, y)


def lanes_sum(x, w, dtype, lanes):
    """x W^T with so many accumulators of dtype, which are added up at the end."""
    total = torch.zeros(lanes, x.shape[0], w.shape[0], dtype=dtype)
    for k in range(w.shape[1]):
        lane = total[k % lanes].float()
        total[k % lanes] = (lane + x[:, k, None].float() * w[None, :, k].float()).to(dtype)
    out = total[0]
    for lane in total[1:]:
        out = out + lane
    return out


# ==== rotary embedding =============================================================================


class RampInverted(Backend):
    """YaRN's blend the other way round."""
    def frequencies(self):
        inverse, scale = super().frequencies()
        rope, self.c = self.c["rope_scaling"], {**self.c, "rope_scaling": None}
        plain = super().frequencies()[0]
        self.c = {**self.c, "rope_scaling": rope}
        return plain + plain / rope["factor"] - inverse, scale


@bug("model.rotary_emb.cos", number=26, model="tiny-yarn", start=60, looks="ramp inverted .the slow")
class YarnRampInverted(RampInverted):
    """YaRN's ramp inverted."""


@bug("model.rotary_emb.cos", number=26, model="tiny-yarn", start=60, looks="ramp inverted and its attention factor")
class YarnRampAndFactor(RampInverted):
    """YaRN's ramp inverted and its attention factor missing (litgpt 0.5.13)."""
    def frequencies(self):
        return super().frequencies()[0], 1.0


@bug("self_attn.q_rope.output", number=26, layer=0, model="tiny-yarn", dtype="float32", start=60, hidden="rotary",
     looks="ramp inverted and its attention factor")
class YarnRampHidden(YarnRampAndFactor):
    """The same where cos and sin are not shown."""


class FusedRope(Backend):
    """One of RoPE's two products goes into the sum as it is."""
    sine = False

    def rope(self, x, name):
        a = x.double() * self.cos[:, None].double()
        b = self.rotated(x).double() * self.sin[:, None].double()
        if self.sine:
            a = a.to(self.D).double()
        else:
            b = b.to(self.D).double()
        return (a + b).to(self.D)


@bug("self_attn.q_rope.output", number=32, layer=0, kind="rounding", looks="fused.*with cos")
class RopeFusedCos(FusedRope):
    """RoPE with a fused multiply-add, x cos not rounded."""


@bug("self_attn.q_rope.output", number=32, layer=0, dtype="float16", kind="rounding", looks="fused.*with sin")
class RopeFusedSin(FusedRope):
    """RoPE with a fused multiply-add, rotated x sin not rounded."""
    sine = True


@bug("self_attn.q_rope.output", number=32, layer=0, dtype="float32", kind="rounding", looks="fused.*with cos")
class RopeFusedSingle(FusedRope):
    """RoPE with a fused multiply-add in a float32 run."""


# ==== norms ========================================================================================


@bug("input_layernorm.output", number=32, layer=0, looks="norm computed in bfloat16, each step")
class LowNorm(Backend):
    """Norm in bfloat16 throughout: squares, mean, root and product."""
    def norm(self, x, name):
        if not name.endswith("input_layernorm"):
            return super().norm(x, name)
        return self.w[name + ".weight"] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


@bug("self_attn.q_norm.output", number=32, layer=0, kind="rounding", looks="variance computed in bfloat16, each square")
class LowSquares(Backend):
    """q_norm's and k_norm's squares and their mean in bfloat16."""
    def head_norm(self, x, name):
        variance = x.pow(2).mean(-1, keepdim=True).float()
        return self.w[name + ".weight"] * (x.float() * torch.rsqrt(variance + self.eps)).to(self.D)


@bug("self_attn.q_norm.output", number=31, layer=0, model="tiny-eps", looks="eps 1e-06 instead of 0.001")
class HeadEpsDefault(Backend):
    """q_norm and k_norm keep 1e-6 where rms_norm_eps is 1e-3 (keras-hub)."""
    def head_norm(self, x, name):
        self.eps = 1e-6
        y = super().head_norm(x, name)
        self.eps = self.c["rms_norm_eps"]
        return y


# ==== linear maps ==================================================================================


@bug("self_attn.o_proj.output", layer=0, model="bias", dtype="float32", looks="bias missing")
class OutputBiasDropped(Backend):
    """o_proj's bias dropped, those of q, k and v kept (vLLM)."""
    def prepare(self):
        for i in range(self.c["num_hidden_layers"]):
            self.w[f"model.layers.{i}.self_attn.o_proj.bias"].zero_()


@bug("self_attn.q_proj.output", layer=0, model="bias", looks=r"bias in another order, \[heads,head_dim\]")
class BiasByChannel(Backend):
    """q_proj's bias converted as [head_dim,heads], layer 0."""
    def prepare(self):
        name = "model.layers.0.self_attn.q_proj.bias"
        self.w[name] = self.w[name].view(self.H, self.hd).T.flatten().contiguous()


@bug("self_attn.k_proj.output", layer=1, model="bias", looks=r"bias in another order, \[head_dim,heads\]")
class BiasByHead(Backend):
    """k_proj's bias converted the other way round, layer 1."""
    def prepare(self):
        name = "model.layers.1.self_attn.k_proj.bias"
        self.w[name] = self.w[name].view(self.hd, self.K).T.flatten().contiguous()


@bug("self_attn.q_proj.output", number=7, layer=0, dtype="float32", looks="declare --accumulate f16")
class HalfLanes(Backend):
    """q_proj adds up in float16 in eight lanes, in a float32 run."""
    def linear(self, x, name):
        if not name.endswith("q_proj"):
            return super().linear(x, name)
        return lanes_sum(x, self.w[name + ".weight"], torch.float16, 8).float()


@bug("self_attn.v_proj.output", layer=2, looks="stored in bfloat16 by truncation")
class TruncatedMap(Backend):
    """v_proj's result cut off to bfloat16 instead of rounded, layer 2."""
    def linear(self, x, name):
        if not in_layer(name, 2, "self_attn.v_proj"):
            return super().linear(x, name)
        return truncated(F.linear(x.float(), self.w[name + ".weight"].float()), self.D)


@bug("self_attn.v_proj.output", layer=2, dtype="float16", looks="stored in float16 by truncation")
class TruncatedHalf(TruncatedMap):
    """The same in float16."""


@bug("self_attn.v_proj.output", layer=2, dtype="float32", looks="stored in tf32 by truncation")
class TruncatedSingle(Backend):
    """v_proj's result cut off to TF32 in a float32 run, layer 2."""
    def linear(self, x, name):
        y = super().linear(x, name)
        if in_layer(name, 2, "self_attn.v_proj"):
            y = (y.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
        return y


class TruncatedAll(Backend):
    """Every float32 result of RoPE, attention and experts cut off."""
    def rope(self, x, name):
        x = x.float()
        return truncated(x * self.cos[:, None].float() + self.rotated(x) * self.sin[:, None].float(), self.D)

    def weighted(self, probs, v, a):
        return truncated(torch.matmul(probs.float(), v.float()), self.D)

    def product(self, act, gate, up, name):
        return truncated(F.silu(gate.float()) * up.float(), self.D) if "experts" in name else act * up

    def combine(self, down, weights, ids, m):
        return truncated((down.float() * weights[..., None].float()).sum(1), self.D)


@bug("self_attn.q_rope.output", number=32, layer=0, looks="stored in bfloat16 by truncation")
class TruncatedShown(TruncatedAll):
    """Results of RoPE, attention and experts cut off to bfloat16."""


@bug("self_attn.o_proj.input", number=32, layer=0, layout="vllm", operator="self_attn.q_rope",
     looks="stored in bfloat16 by truncation")
class TruncatedHidden(TruncatedAll):
    """The same in vLLM's tensors (its AVX2 build)."""


# ==== windows where probs are hidden ===============================================================


class NarrowWindow(Backend):
    def window(self, i):
        return 5


@bug("self_attn.o_proj.input", number=35, layer=0, hidden="scores|probs", operator="self_attn.probs",
     looks="window of 5 keys though the config has none")
class WindowGuessed(NarrowWindow):
    """A window of 5 keys that the config does not have; scores and probs not shown."""


@bug("self_attn.o_proj.input", number=35, layer=0, model="tiny-window", hidden="scores|probs",
     operator="self_attn.probs", looks="window of 5 keys instead of 7")
class WindowOther(NarrowWindow):
    """A window of 5 keys instead of 7; scores and probs not shown."""


@bug("self_attn.o_proj.output", number=35, layer=0, model="tiny-window", dtype="float32", layout="no attention",
     operator="self_attn.probs", looks="window ignored")
class WindowIgnored(Backend):
    """The window ignored (mlx-lm, keras-hub); attention's inner tensors not shown."""
    def window(self, i):
        return None


@bug("output", number=35, layer=0, model="tiny-window", dtype="float32", layout="layers",
     operator="self_attn.probs", looks="window of 5 keys instead of 7")
class WindowLayers(NarrowWindow):
    """A window of 5 keys instead of 7, layers' outputs alone."""


# ==== router =======================================================================================


@bug("mlp.router_probs.output", number=7, layer=0, looks="router softmax computed in bfloat16 throughout")
class LowRouter(Backend):
    """The router's softmax in bfloat16 throughout."""
    def router_probs(self, logits, m):
        e = (logits - logits.amax(-1, keepdim=True)).exp()
        return e / e.sum(-1, keepdim=True)


@bug("mlp.router_probs.output", number=7, layer=0, looks=r"exp\(logit - logsumexp\) in bfloat16")
class LogSumExpRouter(Backend):
    """The router's probabilities as exp(logit - logsumexp) in bfloat16."""
    def router_probs(self, logits, m):
        return (logits - logits.logsumexp(-1, keepdim=True)).exp()


@bug("mlp.router_probs.output", number=7, layer=0, model="wide", tokens=400,
     looks="router probabilities rounded to bfloat16")
class RoundedRouterLong(Backend):
    """Router's softmax cast to bfloat16, 128 experts and 400 tokens."""
    def router_probs(self, logits, m):
        return super().router_probs(logits, m).to(self.D)


@bug("mlp.router_probs.output", number=7, layer=0, model="wide", tokens=400,
     looks="router softmax computed in bfloat16 throughout")
class LowRouterLong(LowRouter):
    """The router's softmax in bfloat16 throughout, 128 experts and 400 tokens."""


class SortedIds(Backend):
    def choose(self, probs, logits, m):
        return super().choose(probs, logits, m).sort(-1).values

    def weights(self, probs, ids, logits, m):
        return super().weights(probs, super().choose(probs, logits, m), logits, m)


@bug("mlp.topk_weights.output", number=9, layer=0, looks="ids sorted, their weights left")
class IdsSorted(SortedIds):
    """Ids sorted, their weights left in the order of rank."""


@bug("mlp.output", number=9, layer=0, hidden="topk|router_probs|experts", operator="mlp.topk_weights",
     looks="ids sorted, their weights left")
class IdsSortedHidden(SortedIds):
    """The same without the experts' inner tensors."""


@bug("mlp.topk_weights.output", number=9, layer=2, looks="weights permuted within their rows")
class WeightsRotated(Backend):
    """Each slot has the next one's weight, layer 2."""
    def weights(self, probs, ids, logits, m):
        w = super().weights(probs, ids, logits, m)
        return w.roll(-1, dims=-1) if in_layer(m, 2, "") else w


@bug("mlp.topk_weights.output", number=7, layer=0, model="wide", looks="rounded after each slot")
class SlotsSummed(Backend):
    """Weights in bfloat16 renormalised by a sum that is rounded after each slot (mlx-lm)."""
    def weights(self, probs, ids, logits, m):
        w = probs.gather(-1, ids).to(self.D)
        total = w[:, 0]
        for slot in w.unbind(-1)[1:]:
            total = total + slot
        return w / total[:, None]


# ==== capacity =====================================================================================


def places(ids, experts, by_rank=False):
    """How many slots with the same expert come before each slot."""
    T, A = ids.shape
    flat = ids.T.flatten() if by_rank else ids.flatten()
    one_hot = F.one_hot(flat, experts)
    place = ((one_hot.cumsum(0) - 1) * one_hot).sum(-1)
    return place.view(A, T).T if by_rank else place.view(T, A)


@bug("mlp.topk_weights.output", number=33, layer=0, looks="capacity of 8 tokens")
class CapacityWeights(Backend):
    """An expert takes 8 tokens at most, the weights of the rest are 0."""
    def weights(self, probs, ids, logits, m):
        return super().weights(probs, ids, logits, m) * (places(ids, self.c["num_experts"]) < 8)


@bug("mlp.experts.down_proj.output", number=33, layer=2, looks="capacity of 8 tokens")
class CapacityRows(Backend):
    """An expert takes 8 tokens at most, its result for the rest is 0, layer 2."""
    def keep(self, name, value):
        if in_layer(name, 2, "mlp.experts.down_proj.output"):
            ids = self.taps["model.layers.2.mlp.topk_indices.output"].long()
            value.mul_((places(ids, self.c["num_experts"]) < 8)[..., None])
        return super().keep(name, value)


@bug("mlp.output", number=33, layer=0, hidden="topk|router_probs|experts", operator="mlp.experts.down_proj",
     looks="capacity of 7 tokens an expert.*first choices")
class CapacityRanked(Backend):
    """An expert takes 7 tokens at most, all first choices before the second ones; the inner tensors not shown."""
    def combine(self, down, weights, ids, m):
        return super().combine(down, weights * (places(ids, self.c["num_experts"], True) < 7), ids, m)


# ==== two at once ==================================================================================


@bug("mlp.router_probs.output", layer=0, looks="router probabilities rounded to bfloat16",
     also=[("model.layers.0.mlp.topk_weights.output", "top-k weights not renormalised")])
class LowAndNotRenormalised(NotRenormalised):
    """Router probabilities in bfloat16, and the weights not renormalised."""
    def router_probs(self, logits, m):
        return super().router_probs(logits, m).to(self.D)


@bug("model.rotary_emb.cos", start=100, model="small-rows", looks="rope_theta 10000",
     also=[("model.layers.0.input_layernorm.output", "eps 1e-05")])
class ThetaAndEps(Backend):
    """rope_theta 10000, and eps 1e-5 instead of 1e-6."""
    def prepare(self):
        self.c = {**self.c, "rope_theta": 10000.0}
        self.eps = 1e-5


ALL = BUGS  # those of bugs.py, and these
