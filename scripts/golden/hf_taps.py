# SPDX-License-Identifier: MIT
"""Runs Hugging Face's Qwen3MoeForCausalLM and returns every tensor on its way, by name.

Needs torch==2.13.0, safetensors, numpy and transformers==5.17.0 (or 4.57.6: the same taps).

Modules are watched by forward hooks; rotary embedding and eager attention by wrapping the
functions the modeling file calls; what Hugging Face keeps in local variables (the scaled scores,
the router's probabilities, the experts' inner steps) is computed again by the same calls on the
same tensors, and the result that Hugging Face does keep must come out with the same bits. Every
run is made twice, with and without this machinery, and the logits must have the same bits.

Conditions: eager attention, eager experts, one thread, no hub kernels, batch of one, no padding,
consecutive positions. The model is made by from_pretrained(dtype=...), never by .to(dtype), which
would round the inverse frequencies.
"""

import contextlib
import json
import os
import struct
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "record"))
import rule
from taps import config_line, full_config, to_4x

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
V5 = int(transformers.__version__.split(".")[0]) >= 5

# ---- checkpoints --------------------------------------------------------------------------------


def is_sparse(full, layer):
    return (layer not in full["mlp_only_layers"] and full["num_experts"] > 0
            and (layer + 1) % full["decoder_sparse_step"] == 0)


def checkpoint_shapes(config):
    """Names and shapes of the checkpoint, in Hugging Face's own order."""
    c = full_config(config)
    M, V, hd = c["hidden_size"], c["vocab_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
    shapes = {"model.embed_tokens.weight": (V, M)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name, rows, cols in (("q", q, M), ("k", kv, M), ("v", kv, M), ("o", M, q)):
            shapes[f"{p}self_attn.{name}_proj.weight"] = (rows, cols)
            if c["attention_bias"]:
                shapes[f"{p}self_attn.{name}_proj.bias"] = (rows,)
        shapes[p + "self_attn.q_norm.weight"] = shapes[p + "self_attn.k_norm.weight"] = (hd,)
        mlps = [("mlp.", c["intermediate_size"])]
        if is_sparse(c, i):
            shapes[p + "mlp.gate.weight"] = (c["num_experts"], M)
            mlps = [(f"mlp.experts.{e}.", c["moe_intermediate_size"])
                    for e in range(c["num_experts"])]
        for prefix, width in mlps:
            shapes[p + prefix + "gate_proj.weight"] = (width, M)
            shapes[p + prefix + "up_proj.weight"] = (width, M)
            shapes[p + prefix + "down_proj.weight"] = (M, width)
        shapes[p + "input_layernorm.weight"] = (M,)
        shapes[p + "post_attention_layernorm.weight"] = (M,)
    shapes["model.norm.weight"] = (M,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, M)
    return shapes


def rule_checkpoint(config, seed):
    return {name: torch.from_numpy(rule.fill(seed, name, shape))
            for name, shape in checkpoint_shapes(config).items()}


# ---- models -----------------------------------------------------------------------------------


def load_folder(folder, dtype):
    """from_pretrained, with every key of the checkpoint used and none missing."""
    options = {"experts_implementation": "eager"} if V5 else {}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True, **options)
    problems = {k: v for k, v in info.items() if v}
    assert not problems, problems
    assert type(model).__name__ in ("Qwen3MoeForCausalLM", "Qwen3ForCausalLM")
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert all(p.dtype == dtype for p in model.parameters())
    return model.eval()


def load_rule(config, seed, dtype):
    """A model with weights by the rule, written as a checkpoint and read by Hugging Face."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(config if V5 else to_4x(config), f)
        save_file(rule_checkpoint(config, seed), os.path.join(folder, "model.safetensors"),
                  metadata={"format": "pt"})
        return load_folder(folder, dtype)


# ---- taps -------------------------------------------------------------------------------------


def same(a, b, what):
    """Equal bits (a NaN equals the same NaN)."""
    a, b = a.contiguous(), b.contiguous()
    assert a.dtype == b.dtype and a.shape == b.shape, what
    assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), f"{what}: not the same bits"


class Watch:
    """Hooks on one model; taps[name] is filled while the model runs."""

    def __init__(self, model):
        self.model, self.taps, self.handles = model, {}, []
        self.modeling = sys.modules[type(model).__module__]
        self.layer = 0

    def keep(self, name, value):
        assert name not in self.taps, name
        self.taps[name] = value.detach().clone()

    def after(self, module, name, pick=lambda y: y[0]):
        hook = lambda m, args, y: self.keep(name, pick(y))
        self.handles.append(module.register_forward_hook(hook))

    def before(self, module, name):
        self.handles.append(module.register_forward_pre_hook(
            lambda m, args: self.keep(name, args[0][0])))

    def enter(self, i):
        def hook(module, args, kwargs):
            self.layer = i
        return hook

    def hook_layer(self, i, layer):
        p = f"model.layers.{i}."
        self.handles.append(layer.register_forward_pre_hook(self.enter(i), with_kwargs=True))
        self.after(layer.input_layernorm, p + "input_layernorm.output")
        a = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "o_proj"):
            self.after(getattr(a, name), f"{p}self_attn.{name}.output")
        self.before(a.o_proj, p + "self_attn.o_proj.input")
        self.before(layer.post_attention_layernorm, p + "post_attention_layernorm.input")
        self.after(layer.post_attention_layernorm, p + "post_attention_layernorm.output")
        if hasattr(layer.mlp, "experts"):
            self.handles.append(layer.mlp.register_forward_hook(
                lambda m, args, y: self.experts(p, m, args[0], y)))
        else:
            for name in ("gate_proj", "up_proj", "act_fn"):
                self.after(getattr(layer.mlp, name), f"{p}mlp.{name}.output")
            self.before(layer.mlp.down_proj, p + "mlp.down_proj.input")
            self.after(layer.mlp, p + "mlp.output")
        # A tuple in older releases, [1,T,M] here: both give [T,M].
        self.after(layer, p + "output", lambda y: y[0][0] if isinstance(y, tuple) else y[0])

    def experts(self, p, block, x, y):
        """The sparse block once more, step by step."""
        x = x.view(-1, x.shape[-1])
        T, c = x.shape[0], self.model.config
        A, E = c.num_experts_per_tok, c.num_experts
        logits = F.linear(x, block.gate.weight)
        probs = F.softmax(logits, dim=-1, dtype=torch.float)
        weights, ids = torch.topk(probs, A, dim=-1)
        if c.norm_topk_prob:
            weights /= weights.sum(dim=-1, keepdim=True)
        weights = weights.to(x.dtype)
        if V5:
            own = block.gate(x)
            same(own[0], logits, "router logits")
            same(own[1], weights, "router weights")
            same(own[2], ids, "selected experts")
        else:
            same(y[1], logits, "router logits")
        steps = {}
        out = torch.zeros_like(x)
        chosen = F.one_hot(ids, num_classes=E).permute(2, 1, 0)
        for e in range(E):
            slot, token = torch.where(chosen[e])
            if token.numel() == 0:
                continue
            step = self.expert_steps(block, e, x[token])
            for name, value in step.items():
                full = steps.setdefault(name, torch.zeros(T, A, value.shape[-1], dtype=x.dtype))
                full[token, slot] = value
            part = step["down_proj.output"] * weights[token, slot, None]
            out.index_add_(0, token, part.to(x.dtype))
        final = y[0] if isinstance(y, tuple) else y
        same(out.reshape(final.shape), final, "experts")
        self.keep(p + "mlp.gate.output", logits)
        self.keep(p + "mlp.router_probs.output", probs)
        self.keep(p + "mlp.topk_indices.output", ids.to(torch.int32))
        self.keep(p + "mlp.topk_weights.output", weights)
        for name, value in steps.items():
            self.keep(p + "mlp.experts." + name, value)
        self.keep(p + "mlp.output", final[0])

    @staticmethod
    def expert_steps(block, e, x):
        if V5:
            gate, up = F.linear(x, block.experts.gate_up_proj[e]).chunk(2, dim=-1)
            act = block.experts.act_fn(gate)
            product = act * up
            down = F.linear(product, block.experts.down_proj[e])
        else:
            expert = block.experts[e]
            gate, up = expert.gate_proj(x), expert.up_proj(x)
            act = expert.act_fn(gate)
            product = act * up
            down = expert.down_proj(product)
        return {"gate_proj.output": gate, "up_proj.output": up, "act_fn.output": act,
                "down_proj.input": product, "down_proj.output": down}

    def rotary(self, original):
        def apply(q, k, cos, sin, *args, **kwargs):
            q, k = original(q, k, cos, sin, *args, **kwargs)
            p = f"model.layers.{self.layer}.self_attn."
            self.keep(p + "q_rope.output", q[0].transpose(0, 1).contiguous())
            self.keep(p + "k_rope.output", k[0].transpose(0, 1).contiguous())
            return q, k
        return apply

    def attention(self, original):
        def forward(module, query, key, value, mask, scaling, dropout=0.0, **kwargs):
            out, probs = original(module, query, key, value, mask, scaling, dropout=dropout,
                                  **kwargs)
            keys = self.modeling.repeat_kv(key, module.num_key_value_groups)
            scores = torch.matmul(query, keys.transpose(2, 3)) * scaling
            masked = scores + mask
            again = F.softmax(masked, dim=-1, dtype=torch.float32).to(query.dtype)
            same(again, probs, "attention probabilities")
            seen = mask == 0
            assert torch.all(probs[~seen.expand_as(probs)] == 0)
            p = f"model.layers.{self.layer}.self_attn."
            self.keep(p + "scores.output", torch.where(seen, scores, torch.zeros_like(scores))[0])
            self.keep(p + "probs.output", probs[0])
            return out, probs
        return forward

    @contextlib.contextmanager
    def on(self):
        m = self.model.model
        self.after(m.embed_tokens, "model.embed_tokens.output")
        self.handles.append(m.rotary_emb.register_forward_hook(lambda mod, args, y: (
            self.keep("model.rotary_emb.cos", y[0][0]), self.keep("model.rotary_emb.sin", y[1][0]),
            None)[2]))
        for i, layer in enumerate(m.layers):
            self.hook_layer(i, layer)
        self.after(m.norm, "model.norm.output")
        self.after(self.model.lm_head, "lm_head.output")
        own = self.modeling
        rotary, attention = own.apply_rotary_pos_emb, own.eager_attention_forward
        own.apply_rotary_pos_emb = self.rotary(rotary)
        own.eager_attention_forward = self.attention(attention)
        try:
            yield
        finally:
            own.apply_rotary_pos_emb = rotary
            own.eager_attention_forward = attention
            for handle in self.handles:
                handle.remove()


LAYER_ORDER = """
    input_layernorm.output self_attn.q_proj.output self_attn.k_proj.output
    self_attn.v_proj.output self_attn.q_norm.output self_attn.k_norm.output
    self_attn.q_rope.output self_attn.k_rope.output self_attn.scores.output
    self_attn.probs.output self_attn.o_proj.input self_attn.o_proj.output
    post_attention_layernorm.input post_attention_layernorm.output mlp.gate.output
    mlp.router_probs.output mlp.topk_indices.output mlp.topk_weights.output
    mlp.experts.gate_proj.output mlp.experts.up_proj.output mlp.experts.act_fn.output
    mlp.experts.down_proj.input mlp.experts.down_proj.output mlp.gate_proj.output
    mlp.up_proj.output mlp.act_fn.output mlp.down_proj.input mlp.output output
""".split()
SPARSE = [n for n in LAYER_ORDER if ".experts." in n or n in (
    "mlp.gate.output", "mlp.router_probs.output", "mlp.topk_indices.output",
    "mlp.topk_weights.output")]
DENSE = "mlp.gate_proj.output mlp.up_proj.output mlp.act_fn.output mlp.down_proj.input".split()


def tap_names(config):
    c = full_config(config)
    names = ["input_ids", "position_ids", "model.embed_tokens.output", "model.rotary_emb.cos",
             "model.rotary_emb.sin"]
    for i in range(c["num_hidden_layers"]):
        skip = DENSE if is_sparse(c, i) else SPARSE
        names += [f"model.layers.{i}.{n}" for n in LAYER_ORDER if n not in skip]
    return names + ["model.norm.output", "lm_head.output"]


@torch.no_grad()
def run(model, config, ids, start=0):
    """Every tap of one prompt, in the order of computation."""
    ids = torch.tensor([ids], dtype=torch.int64)
    positions = torch.arange(start, start + ids.shape[1], dtype=torch.int64)[None]
    arguments = {"input_ids": ids, "position_ids": positions, "use_cache": False,
                 "attention_mask": torch.ones_like(ids)}
    plain = model(**arguments).logits
    watch = Watch(model)
    with watch.on():
        logits = model(**arguments).logits
    same(logits, plain, "logits with hooks")
    same(logits[0], watch.taps["lm_head.output"], "lm_head")
    taps = {"input_ids": ids[0], "position_ids": positions[0], **watch.taps}
    names = tap_names(config)
    assert sorted(taps) == sorted(names), set(taps) ^ set(names)
    return {name: taps[name] for name in names}


def first_turn(model, ids):
    """A cache with the keys and values of these ids."""
    cache = transformers.DynamicCache(config=model.config)
    model(torch.tensor([ids], dtype=torch.int64), past_key_values=cache, use_cache=True)
    return cache


@torch.no_grad()
def run_turn(model, config, ids, past):
    """Every tap of ids[past:], run with a cache of ids[:past], and that cache as it was before."""
    own = torch.tensor([ids[past:]], dtype=torch.int64)
    positions = torch.arange(past, len(ids), dtype=torch.int64)[None]
    arguments = {"input_ids": own, "position_ids": positions, "use_cache": True,
                 "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    plain = model(**arguments, past_key_values=first_turn(model, ids[:past])).logits
    watch, cache = Watch(model), first_turn(model, ids[:past])
    before = {f"past_key_values.layers.{i}.{what}": getattr(layer, what).clone()
              for i, layer in enumerate(cache.layers) for what in ("keys", "values")}
    with watch.on():
        logits = model(**arguments, past_key_values=cache).logits
    same(logits, plain, "logits with hooks")
    taps = {"input_ids": own[0], "position_ids": positions[0], **watch.taps}
    return {**{name: taps[name] for name in tap_names(config)}, **before}


def margins(taps, A, E):
    """The smallest relative gap between neighbours among the first A + 1 probabilities."""
    worst = 1.0
    for name, probs in taps.items():
        if name.endswith("router_probs.output"):
            p = torch.sort(probs.double(), dim=-1, descending=True).values[:, :min(A + 1, E)]
            if p.shape[1] > 1:
                worst = min(worst, ((p[:, :-1] - p[:, 1:]) / p[:, :-1]).min().item())
    return worst


# ---- files ------------------------------------------------------------------------------------

FILE_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16",
              torch.float16: "F16", torch.int64: "I64", torch.int32: "I32"}


def write_tensors(path, tensors, metadata):
    """A safetensors file: metadata first, tensors in the order given, each aligned to its elements
    (asserted: the format allows no gaps, so the caller's order has to make it so)."""
    header, blobs, at = {"__metadata__": metadata}, [], 0
    for name, value in tensors.items():
        value = value.contiguous()
        blob = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert at % value.element_size() == 0, (path, name, "is not aligned")
        header[name] = {"dtype": FILE_TYPES[value.dtype], "shape": list(value.shape),
                        "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_taps(path, taps, dtype, config, start, **more):
    metadata = {"format": "qwen3moe-taps-1", "producer": "transformers " + transformers.__version__,
                "dtype": dtype, "start": str(start), "config": config_line(config), **more}
    write_tensors(path, taps, metadata)


def read_tensors(path):
    """tensors, metadata; independent of the safetensors library's own reader."""
    types = {v: k for k, v in FILE_TYPES.items()}
    data = open(path, "rb").read()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, e in header.items():
        a, b = e["data_offsets"]
        blob = np.frombuffer(data[8 + n + a:8 + n + b], dtype=np.uint8).copy()
        tensors[name] = torch.from_numpy(blob).view(types[e["dtype"]]).reshape(e["shape"])
    return tensors, metadata
