# SPDX-License-Identifier: MIT
"""Records what a PyTorch backend computes, by Hugging Face's module names, for `qwen3moe check`.

    from record_hf import record
    with record(model, "backend.safetensors"):
        model(input_ids)

model is any tree of torch modules with Hugging Face's names, whole or in part: Qwen3MoeForCausalLM or a bare
Qwen3MoeModel of transformers 4.5x or 5.x, on any device, with any attention and experts implementation, or
somebody's own. One that has other names is recorded with a map to these:

    with record(model, "backend.safetensors", names={"blocks.#": "model.layers.#", "blocks.#.ffn": "model.layers.#.mlp",
                                                     "blocks.#.rope_q": "model.layers.#.self_attn.q_rope.output"}):

# or {i} is the layer's number. The longest pattern that a module's name begins with counts, and what follows it
stays; a tap's name, with .output or .input, is of that module alone. Or names is a function from a module's name to
such a name or None. Needs torch, and taps.py beside this file; from the command line, transformers too:

  python3 scripts/record/record_hf.py MODEL OUT.safetensors --tokens 1,2,3 [--dtype bfloat16] [--attn sdpa] ...

Only what the backend computes is recorded, in the dtype it has there; nothing is computed again:
- module outputs and inputs, by forward hooks;
- q_rope and k_rope, by a wrapper around the modeling file's apply_rotary_pos_emb (grouped_mm likewise);
- what an attention or experts block keeps to itself (scores, router probabilities, chosen experts, the
  experts' steps), by looking at the torch functions that the block calls;
- of norms and layers that keep the residual apart, (output, residual), the residual as the norms return it;
- of a module compiled by torch.compile, its output alone: hooks inside would change what is compiled. A
  model compiled as a whole gives its logits and, if asked for, hidden_states.

Several forward calls become one run: chunks of a prompt with a cache, or token by token. Batch of one, no padding.
Keys that are in the cache before the first call are kept too. Logits of some tokens alone come with logit_positions.
The command line runs the model twice, with and without this, and the logits must have the same bits.
"""

import argparse
import contextlib
import difflib
import fnmatch
import os
import re
import sys

import torch
from torch.overrides import TorchFunctionMode, resolve_name

import taps

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
         torch.int64: "I64", torch.int32: "I32"}
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.(.+))?$")

# Modules whose output is a tap, and the axes of the tap: 2 is [T,n], 3 is [T,heads,hd].
OUTPUTS = {"input_layernorm": 2, "self_attn.q_proj": 2, "self_attn.k_proj": 2, "self_attn.v_proj": 2,
           "self_attn.qkv_proj": 2, "self_attn.q_norm": 3, "self_attn.k_norm": 3, "self_attn.o_proj": 2,
           "mlp.gate_proj": 2, "mlp.up_proj": 2, "mlp.gate_up_proj": 2, "mlp": 2}
INPUTS = {"self_attn.o_proj", "mlp.down_proj"}
NORMS = {"input_layernorm", "post_attention_layernorm"}
EXPERT = re.compile(r"mlp\.experts\.\d+\.(gate_proj|up_proj|act_fn|down_proj)$")  # modules in 4.x


class RecordError(Exception):
    """One line for the user."""


def first(value):
    return value[0] if isinstance(value, (tuple, list)) else value


def first_of(args, kwargs):
    """A call's first argument, by place or by name."""
    return next(iter((*args, *kwargs.values())), None)


def rows_of(value):
    """A copy without batch axis."""
    return value.detach().reshape(-1, value.shape[-1]).to("cpu", copy=True).contiguous()


def which_rows(some, rows):
    """For each of some, which of rows it is: rising where that is possible, since equal rows are several tokens'. None:
    one of them is none of these."""
    some, rows = (part.to(rows.dtype).view(torch.uint8) for part in (some, rows))
    if torch.equal(some, rows):
        return list(range(len(rows)))
    found = []
    for row in some:
        places = torch.nonzero((rows == row).all(dim=1)).flatten().tolist()
        if not places:
            return None
        later = [place for place in places if not found or place > found[-1]]
        found.append((later or places)[0])
    return found


def plain_name(name):
    """A module's name without what torch.compile puts in."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def is_pair(y):
    """Two tensors of one shape."""
    return isinstance(y, tuple) and len(y) == 2 and all(map(torch.is_tensor, y)) and y[0].shape == y[1].shape


class Names:
    """What the modules of a model are called: Hugging Face's names, by the user's map, a dictionary or a function."""

    KNOWN = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers.#",
             "model.layers.#.self_attn", *(f"model.layers.#.{rest}" for rest in [*OUTPUTS, *NORMS, "mlp.gate", "mlp.act_fn"])]

    def __init__(self, names):
        self.function = names if callable(names) else None
        self.rows = [] if names is None or callable(names) else [
            (re.compile(re.sub(r"\\#|\\\{i\\\}", r"(\\d+)", re.escape(pattern)) + r"(\..+)?$"), pattern, name)
            for pattern, name in sorted(names.items(), key=lambda row: -len(row[0]))]
        self.seen, self.fitted = [], set()  # names; patterns

    def __call__(self, own):
        """A module's name, which may end with .output or .input: then it is a tap."""
        own = plain_name(own)
        self.seen.append(own)
        if self.function:
            return self.function(own) or own
        for row, pattern, name in self.rows:
            match = row.match(own)
            if match and not (match[match.re.groups] and name.endswith((".output", ".input"))):
                self.fitted.add(pattern)
                layer = match[1] if match.re.groups > 1 else ""
                return re.sub(r"#|\{i\}", layer, name) + (match[match.re.groups] or "")
        return own

    def check(self, hooked):
        """hooked: whether anything was recognised. Says what there is, if that is nothing or a pattern fits nothing."""
        lost = [repr(pattern) for _, pattern, _ in self.rows if pattern not in self.fitted]
        if lost:
            raise RecordError(f"names: found no module for {', '.join(lost)}; {self.listed()}")
        if not hooked:
            raise RecordError(f"found no module with a known name, expected some, or names= for them; {self.listed()}")

    def listed(self, most=48):
        """The modules' names, with # for numbers, and the nearest known to each."""
        own = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name) for name in self.seen if name))
        lines = ["the modules are:"]
        for name in own[:most]:
            near = difflib.get_close_matches(name, self.KNOWN, 1, 0.5)
            lines.append(f"  {name}" + (f" (like {near[0]})" if near and near[0] != name else ""))
        return "\n".join(lines + [f"  and {len(own) - most} more"] * (len(own) > most))


def is_compiled(module):
    """Whether a call of the module runs compiled code."""
    return (type(module).__name__ == "OptimizedModule" or hasattr(module.forward, "_torchdynamo_orig_callable")
            or getattr(module, "_compiled_call_impl", None) is not None)


class Inside(TorchFunctionMode):
    """Shows see(name, arguments, result) each torch function that is called."""

    def __init__(self, see):
        super().__init__()
        self.see = see

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.see((resolve_name(function) or "").rpartition(".")[2], args, result)
        return result


class Recorder:
    """The hooks on one model, and what they saw."""

    def __init__(self, model, wanted=lambda tap: True, names=None):
        self.model, self.wanted, self.names = model, wanted, Names(names)
        self.undo = []      # takes the hooks away
        self.calls = []     # of each forward call: tap: tensor
        self.call = None    # of the one that runs
        self.normed = []    # of each forward call: what the final norm gave, or None
        self.logits = []    # (call, the rows' tokens in it, rows)
        self.past = {}      # the cache's keys and values before the first call
        self.past_count = 0
        self.prefix = ""    # model.layers.i. of the layer that runs
        self.layers = 0
        self.routed = set()  # prefixes of layers with a block of experts that is watched
        self.block = None   # the last Block that began
        self.left_out = {}  # tap: why
        try:
            self.hook()
        except RecordError:
            self.close()
            raise

    def close(self):
        for undo in reversed(self.undo):
            undo()

    def keep(self, tap, value, axes=2):
        """A tap of this call, without batch axis."""
        if self.call is None or not torch.is_tensor(value) or not self.wanted(tap):
            return
        if value.dim() > axes and value.shape[0] == 1:
            value = value[0]
        self.call[tap] = value.detach().to("cpu", copy=True).contiguous()

    # ---- modules

    def after(self, module, act):
        """act(result) after each call."""
        self.around(module, lambda args, kwargs, y: act(y))

    def around(self, module, act):
        """act(arguments, keyword arguments, result) after each call."""
        def hook(m, args, kwargs, y):
            act(args, kwargs, y)
        self.undo.append(module.register_forward_hook(hook, with_kwargs=True).remove)

    def before(self, module, act):
        def hook(m, args, kwargs):
            act(args, kwargs)
        self.undo.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def watch(self, module, watcher):
        """Looks inside the module's forward. watcher() gives see and end for one call."""
        own, forward = module.__dict__.get("forward"), module.forward

        def watched(*args, **kwargs):
            if self.call is None:
                return forward(*args, **kwargs)
            see, end = watcher()
            with Inside(see):
                result = forward(*args, **kwargs)
            end()
            return result

        module.forward = watched
        self.undo.append(lambda: module.__dict__.pop("forward") if own is None
                         else module.__dict__.update(forward=own))

    def hook(self):
        self.before(self.model, self.begin)
        compiled, hooked = [], False  # what is inside is left alone
        for own, module in list(self.model.named_modules()):
            if any(own.startswith(prefix) for prefix in compiled):
                continue
            if is_compiled(module):
                compiled.append(own and own + ".")
            name = self.names(own)
            tap, _, side = name.rpartition(".")
            match = LAYER.search(name)
            if side in ("output", "input"):
                self.hook_tap(name, tap, side, module)
                hooked = True
            elif match:
                self.layers = max(self.layers, int(match[1]) + 1)
                hooked |= self.hook_in_layer(f"model.layers.{match[1]}.", match[2], module)
            else:
                hooked |= self.hook_outside(name, module)
        self.names.check(hooked or bool(compiled))
        self.after(self.model, self.end)

    def hook_tap(self, name, tap, side, module):
        """A module that the user gave a tap."""
        axes = OUTPUTS.get(tap.partition("layers.")[2].partition(".")[2], 3 if tap.endswith("_rope") else 2)
        if side == "output":
            self.after(module, lambda y: self.keep(name, first(y), axes))
        else:
            self.before(module, lambda args, kwargs: self.keep(name, first_of(args, kwargs), axes))

    def hook_outside(self, name, module):
        last = name.rpartition(".")[2]
        if last == "embed_tokens":
            self.before(module, lambda args, kwargs: self.see_ids(first_of(args, kwargs)))
            self.after(module, lambda y: self.keep("model.embed_tokens.output", y))
        elif last == "rotary_emb":
            self.hook_rotary(module)
        elif last == "lm_head":
            self.around(module, lambda args, kwargs, y: self.see_logits(first_of(args, kwargs), first(y)))
        elif name in ("norm", "model.norm"):
            self.around(module, self.see_final_norm)
        return last in ("embed_tokens", "rotary_emb", "lm_head", "norm")

    def hook_rotary(self, module):
        self.before(module, lambda args, kwargs: [self.see_positions(value) for value in (*args, *kwargs.values())])
        self.around(module, self.see_rotary)

    def hook_in_layer(self, p, rest, module):
        """Whether the module was recognised."""
        if rest is None:
            self.before(module, lambda args, kwargs: self.begin_layer(p))
            self.after(module, lambda y: self.see_layer(p, y))
        if rest in INPUTS:
            self.before(module, lambda args, kwargs: self.keep(f"{p}{rest}.input", first_of(args, kwargs)))
        if rest in OUTPUTS:
            self.after(module, lambda y: self.keep(f"{p}{rest}.output", first(y), OUTPUTS[rest]))
        if rest == "mlp.act_fn":
            self.around(module, lambda args, kwargs, y: self.see_act(p, first_of(args, kwargs), y))
        if rest in NORMS:
            self.around(module, lambda args, kwargs, y: self.see_norm(p, rest, args, kwargs, y))
        if rest == "self_attn":
            self.after(module, lambda y: self.see_attention(p, y))
            self.hook_attention(p, module)
        if rest == "mlp" and hasattr(module, "experts") and hasattr(module, "gate"):
            self.routed.add(p)
            self.hook_experts(p, module)
        if rest == "mlp.gate" and p not in self.routed:
            self.after(module, lambda y: self.keep(p + "mlp.gate.output", first(y)))
        if rest is not None and rest.endswith("rotary_emb"):
            self.hook_rotary(module)
        return rest in (None, "self_attn", "mlp.gate", "mlp.act_fn") or rest in OUTPUTS or rest in NORMS or rest in INPUTS

    def hook_attention(self, p, module):
        if not is_compiled(module):
            self.watch(module, lambda: Attention(self, p).watcher())
            self.replace(sys.modules[type(module).__module__], "apply_rotary_pos_emb", self.see_rope)

    def hook_experts(self, p, module):
        if not is_compiled(module):
            Block(self, p, module).hook()
            self.replace(torch.nn.functional, "grouped_mm", lambda y, _: self.block.see_product(y))

    def replace(self, file, name, act):
        """A function of a file that may have it, with act(result, keyword arguments) after each call."""
        original = getattr(file, name, None)
        if original is None or hasattr(original, "recorded"):
            return

        def wrapper(*args, **kwargs):
            result = original(*args, **kwargs)
            if self.call is not None and not torch.compiler.is_compiling():
                act(result, kwargs)
            return result

        wrapper.recorded = True
        setattr(file, name, wrapper)
        self.undo.append(lambda: setattr(file, name, original))

    def see_rope(self, result, kwargs):
        for tap, value in zip(("q_rope", "k_rope"), result):
            if kwargs.get("unsqueeze_dim", 1) == 1:
                value = value.transpose(-3, -2)  # [B,heads,T,hd]
            self.keep(f"{self.prefix}self_attn.{tap}.output", value, 3)

    # ---- what they see

    def begin(self, args, kwargs):
        self.call = {}
        self.normed.append(None)
        mask = kwargs.get("attention_mask")
        if torch.is_tensor(mask) and mask.dim() == 2 and not torch.all(mask != 0):
            raise RecordError("attention_mask: found padding, expected none")
        self.see_ids(kwargs.get("input_ids", first(args) if args else None))
        self.see_positions(kwargs.get("position_ids", kwargs.get("positions")))
        if not self.calls:
            self.see_past(kwargs.get("past_key_values"))

    def end(self, y):
        """What no module of its own gave, if the model returns it: hidden_states of a compiled model."""
        states = getattr(y, "hidden_states", None) or ()
        names = ["model.embed_tokens.output"] + [f"model.layers.{i}.output" for i in range(len(states) - 2)]
        found = dict(zip(names, states[:-1]))
        if states:
            found["model.norm.output"] = states[-1]
        for tap, value in found.items():
            if tap not in self.call:
                self.keep(tap, value)
        logits, call = getattr(y, "logits", None), self.call
        self.calls.append(self.call)
        self.call = None
        if torch.is_tensor(logits) and len(self.calls) - 1 not in (number for number, *_ in self.logits):
            rows = logits.shape[-2]  # there is no module lm_head that was seen: the last rows, if not all
            count = len(call.get("input_ids", range(rows)))
            self.keep_logits(len(self.calls) - 1, list(range(count - rows, count)), logits)

    def see_ids(self, ids):
        if not torch.is_tensor(ids) or ids.is_floating_point():
            return
        if ids.dim() > 1 and ids.shape[0] != 1:
            raise RecordError(f"input_ids: found a batch of {ids.shape[0]}, expected 1")
        self.keep("input_ids", ids, 1)

    def see_positions(self, positions):
        if torch.is_tensor(positions) and not positions.is_floating_point() and self.call is not None:
            if "position_ids" not in self.call:
                self.keep("position_ids", positions, 1)

    def see_past(self, cache):
        """The keys and values that a cache holds before the first call. A static one has room behind them."""
        self.past_count = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        for i, layer in enumerate(getattr(cache, "layers", ()) if self.past_count else ()):
            for what in ("keys", "values"):
                value = getattr(layer, what, None)
                if torch.is_tensor(value) and value.dim() == 4 and value.shape[0] == 1:
                    self.keep_past(f"past_key_values.layers.{i}.{what}", value[0, :, :self.past_count])

    def keep_past(self, name, value):
        if self.wanted(name):
            self.past[name] = value.detach().to("cpu", copy=True).contiguous()

    def see_rotary(self, args, kwargs, y):
        """cos and sin, of the first call that gives them; or queries and keys, of a module that turns them itself."""
        if not (isinstance(y, (tuple, list)) and len(y) == 2 and all(map(torch.is_tensor, y))) or self.call is None:
            return
        values = [v for v in (*args, *kwargs.values()) if torch.is_tensor(v) and v.is_floating_point()]
        if len(values) > 1 and all(v.shape == turned.shape for v, turned in zip(values, y)):
            for tap, value in zip(("q_rope", "k_rope"), y):
                self.keep(f"{self.prefix}self_attn.{tap}.output", value, 3)
        elif "model.rotary_emb.cos" not in self.call:
            self.keep("model.rotary_emb.cos", y[0])
            self.keep("model.rotary_emb.sin", y[1])

    def see_act(self, p, entered, y):
        """Of gate; what takes [gate, up] gives their product, half as wide: that is down_proj.input."""
        product = torch.is_tensor(entered) and entered.shape[-1] == 2 * y.shape[-1]
        self.keep(p + ("mlp.down_proj.input" if product else "mlp.act_fn.output"), y)

    def begin_layer(self, p):
        self.prefix, self.apart = p, False

    def see_norm(self, p, rest, args, kwargs, y):
        """Its first argument is the residual stream, or where it is given a second one and returns (output, residual),
        the stream is the residual that it returns, the sum of both."""
        self.apart = is_pair(y)
        stream = y[1] if self.apart else first_of(args, kwargs)
        if rest == "post_attention_layernorm":
            self.keep(f"{p}{rest}.input", stream)
        elif self.apart:
            self.keep_stream(int(p.split(".")[2]) - 1, stream)
        self.keep(f"{p}{rest}.output", first(y))

    def see_layer(self, p, y):
        """Its output is the stream, but where the norms keep the residual apart: there the next norm has it."""
        if not (self.apart and is_pair(y)):
            self.keep(p + "output", first(y))

    def keep_stream(self, layer, stream):
        if layer >= 0:
            self.keep(f"model.layers.{layer}.output", stream)

    def see_final_norm(self, args, kwargs, y):
        if is_pair(y):
            self.keep_stream(self.layers - 1, y[1])
        self.keep("model.norm.output", first(y))
        if self.normed:
            self.normed[-1] = rows_of(first(y))

    def see_logits(self, entered, logits):
        """Whose rows they are: of the tokens whose rows of the final norm entered. vLLM and others take some."""
        number = len(self.calls) - (self.call is None)  # of the call that runs or was the last
        if number < 0 or not torch.is_tensor(entered) or not torch.is_tensor(logits):
            return
        normed = self.normed[number]
        tokens = which_rows(rows_of(entered), normed if normed is not None else rows_of(entered))
        if tokens is None:
            self.left_out["lm_head.output"] = "its rows are not the final norm's"
        else:
            self.keep_logits(number, tokens, logits)

    def keep_logits(self, number, tokens, logits):
        if self.wanted("lm_head.output"):
            self.logits.append((number, tokens, rows_of(logits)))

    def see_attention(self, p, y):
        if isinstance(y, tuple) and len(y) > 1 and torch.is_tensor(y[1]) and y[1].dim() == 4:
            self.keep(p + "self_attn.probs.output", y[1], 3)
        if self.call is not None and p + "self_attn.o_proj.output" not in self.call:  # compiled, or has none
            self.keep(p + "self_attn.o_proj.output", first(y))

    # ---- joining

    def joined(self):
        """The calls as one run: tap: tensor."""
        if not self.calls:
            raise RecordError("found no forward call of the model, expected one at least")
        result = {}
        for tap in dict.fromkeys(tap for call in self.calls for tap in call):
            parts = [call.get(tap) for call in self.calls]
            square = tap.endswith((".scores.output", ".probs.output"))
            why = self.why_not(parts, 1 if square else 0, square)
            if why:
                self.left_out[tap] = why
                continue
            if square:  # keys to come
                parts = [torch.nn.functional.pad(part, (0, parts[-1].shape[2] - part.shape[2])) for part in parts]
            result[tap] = torch.cat(parts, dim=1 if square else 0)
        positions = result.get("position_ids")
        if positions is not None and torch.any(positions[1:] != positions[:-1] + 1):
            raise RecordError(f"position_ids: found {positions.tolist()}, expected consecutive ones")
        return {**result, **self.joined_logits(first_position(result)), **self.past}

    def joined_logits(self, start):
        """A row for every token, or some rows and their tokens' positions. Where a token has two, its first."""
        before, tokens = [], 0
        for call, normed in zip(self.calls, self.normed):
            before.append(tokens)
            tokens += len(call.get("input_ids", () if normed is None else normed))
        rows = {}
        for number, places, values in self.logits:
            for place, value in zip(places, values):
                rows.setdefault(before[number] + place, value)
        if not rows:
            return {}
        found = {"lm_head.output": torch.stack([rows[token] for token in sorted(rows)])}
        if tokens and len(rows) != tokens:
            found["logit_positions"] = start + torch.tensor(sorted(rows))
        return found

    def why_not(self, parts, axis, square):
        seen = 0
        for call, part in zip(self.calls, parts):
            if part is None:
                return "not in every call"
            tokens = len(call["input_ids"]) if "input_ids" in call else part.shape[axis]
            seen += tokens
            if len(parts) > 1 and part.shape[axis] != tokens:
                return "not a row for every token"
            if square and part.shape[2] != seen:
                return "not a column for every key"
        return None


class Attention:
    """Eager attention's scores: the product of queries and keys, scaled."""

    def __init__(self, recorder, p):
        self.recorder, self.p, self.product = recorder, p, None

    def watcher(self):
        return self.see, lambda: None

    def see(self, name, args, result):
        if name == "matmul" and self.product is None:
            self.product = result
        elif name == "mul" and args[0] is self.product and not torch.is_tensor(args[1]):
            self.recorder.keep(self.p + "self_attn.scores.output", result, 3)


class Block:
    """A block of experts, modules (4.x) or packed (5.x, eager, grouped_mm or batched_mm). A slot is a token and
    its place among the token's chosen experts: token * A + place."""

    def __init__(self, recorder, p, module):
        self.recorder, self.p, self.module = recorder, p + "mlp.", module
        self.packed = not isinstance(module.experts, torch.nn.ModuleList)

    def hook(self):
        r = self.recorder
        r.watch(self.module, self.watcher)
        r.after(self.module.gate, self.see_gate)
        if hasattr(self.module.experts, "act_fn"):
            r.before(self.module.experts.act_fn, lambda args, kwargs: self.see_gate_half(args[0]))
            r.after(self.module.experts.act_fn, self.see_act)
        for name, module in self.module.named_modules():
            step = EXPERT.match("mlp." + name)
            if step and step[1] == "down_proj":
                r.before(module, lambda args, kwargs: self.fill("down_proj.input", args[0]))
            if step:
                r.after(module, lambda y, step=step[1]: self.fill(step + ".output", y))

    def watcher(self):
        self.ids = self.rows = self.values = self.gate_up = self.act = None
        self.recorder.block = self
        self.steps = {}  # step: values [T*A,n], how often each slot was filled
        return self.see, self.end

    def keep(self, rest, value, axes=2):
        self.recorder.keep(self.p + rest, value, axes)

    def see(self, name, args, result):
        if name == "linear" and args[1] is getattr(self.module.gate, "weight", None):
            self.keep("gate.output", result)
        elif name == "softmax" and self.ids is None:
            self.keep("router_probs.output", result)
        elif name == "topk":
            self.values = result[0]
            self.choose(result[1])
        elif name == "to" and args[0] is self.values:
            self.keep("topk_weights.output", result)
        elif name == "where" and len(args) == 1 and len(result) == 2 and self.ids is not None:
            place, token = result  # of the mask [A,T] of one expert
            self.rows = (token * self.ids.shape[1] + place).cpu()
        elif name == "sort" and self.ids is not None and result[1].dim() == 1:
            self.rows = result[1].cpu()
        elif name in ("linear", "bmm") and self.packed and self.ids is not None:
            self.see_product(result.squeeze(-1) if name == "bmm" else result)
        elif name == "mul" and args[0] is self.act and self.act is not None:
            self.fill("down_proj.input", result)

    def choose(self, ids):
        self.ids = ids.reshape(-1, ids.shape[-1])
        self.rows = torch.arange(ids.numel())
        self.keep("topk_indices.output", self.ids)

    def see_gate(self, y):
        """4.x: logits. 5.x: logits (probabilities in 5.0 to 5.5, where `see` finds the logits), weights, ids."""
        y = y if isinstance(y, tuple) else (y,)
        sums = y[0].float().sum(-1)
        probs = bool(torch.all(y[0] >= 0)) and bool(torch.all((sums - 1).abs() < 1e-2))
        self.keep("router_probs.output" if probs else "gate.output", y[0])
        if len(y) == 3:
            self.choose(y[2])
            if y[1].shape == y[2].shape:
                self.keep("topk_weights.output", y[1])

    def see_product(self, result):
        if self.act is None:
            self.gate_up = result
        else:
            self.fill("down_proj.output", result)
            self.act = None

    def see_gate_half(self, gate):
        """What enters act_fn is gate; up is the other half."""
        self.fill("gate_proj.output", gate)
        if self.gate_up is not None and self.gate_up.shape[-1] == 2 * gate.shape[-1]:
            for half, other in zip(self.gate_up.chunk(2, -1), reversed(self.gate_up.chunk(2, -1))):
                if torch.equal(half, gate):
                    self.fill("up_proj.output", other)
                    break

    def see_act(self, y):
        self.fill("act_fn.output", y)
        self.act = y

    def fill(self, step, value):
        """Rows of one step, into the places of their slots."""
        tap = f"{self.p}experts.{step}"
        if self.recorder.call is None or self.ids is None or not self.recorder.wanted(tap):
            return
        if value.dim() != 2 or len(value) != len(self.rows):
            return
        if step not in self.steps:
            shape = self.ids.numel(), value.shape[1]
            self.steps[step] = torch.zeros(shape, dtype=value.dtype), torch.zeros(shape[0], dtype=torch.int64)
        values, count = self.steps[step]
        values[self.rows] = value.detach().cpu()
        count[self.rows] += 1

    def end(self):
        for step, (values, count) in self.steps.items():
            if torch.all(count == 1):
                self.keep(f"experts.{step}", values.view(*self.ids.shape, -1), 3)


@contextlib.contextmanager
def record(model, path, wanted=lambda tap: True, config=None, producer=None, names=None):
    """Records the forward calls made in the block, and writes path at its end. wanted(tap): whether to keep it.
    config: a dictionary, if the model has no config. names: Hugging Face's names of the model's modules, see above.
    Gives the Recorder: its left_out says what is missing."""
    recorder = Recorder(model, wanted, names)
    try:
        yield recorder
    finally:
        recorder.close()
    if config is None and hasattr(model, "config"):
        config = model.config.to_dict()
    write(path, recorder, producer or producer_of(model), config)


def write(path, recorder, producer, config):
    tensors = recorder.joined()
    metadata = taps.metadata(producer, dtype_of(tensors), first_position(tensors), config, recorder.past_count)
    taps.write(path, {tap: as_bytes(tap, value) for tap, value in tensors.items()}, metadata)


def as_bytes(tap, value):
    if value.dtype not in TYPES:
        raise RecordError(f"{tap}: found {value.dtype}, expected one of {', '.join(TYPES.values())}")
    return TYPES[value.dtype], value.shape, value.reshape(-1).view(torch.uint8).numpy().tobytes()


def producer_of(model):
    library = sys.modules.get(type(getattr(model, "_orig_mod", model)).__module__.partition(".")[0])
    return " ".join(filter(None, (library.__name__, getattr(library, "__version__", None))))


def dtype_of(tensors):
    """The run's: of the first tap that is no table and no probability."""
    for tap, value in tensors.items():
        if value.is_floating_point() and "rotary_emb" not in tap and "router_probs" not in tap:
            return str(value.dtype).rpartition(".")[2]
    raise RecordError("found no tap, expected one at least")


def first_position(tensors):
    positions = tensors.get("position_ids")
    return 0 if positions is None else int(positions[0])


# ---- command line -------------------------------------------------------------------------------


def load(options):
    import transformers
    transformers.utils.logging.disable_progress_bar()
    more = {"experts_implementation": options.experts} if options.experts else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation=options.attn, **more)
    return model.eval().to(options.device)


def run(model, ids, start=0, chunk=0):
    """The logits of a prompt; with a cache if it goes in chunks."""
    ids = torch.tensor([ids], dtype=torch.int64, device=next(model.parameters()).device)
    positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
    logits, past, step = [], None, chunk or ids.shape[1]
    with torch.no_grad():
        for at in range(0, ids.shape[1], step):
            part = slice(at, at + step)
            y = model(input_ids=ids[:, part], position_ids=positions[:, part], past_key_values=past,
                      use_cache=chunk > 0)
            past = y.past_key_values
            logits.append(y.logits)
    return torch.cat(logits, dim=1)


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def record_unchanged(model, path, ids, start=0, chunk=0, wanted=lambda tap: True, producer=None):
    """Records a run, and sees to it that it is the run the model makes unrecorded."""
    plain = run(model, ids, start, chunk)
    with record(model, path, wanted, producer=producer) as recorder:
        logits = run(model, ids, start, chunk)
    if not same_bits(plain, logits):
        again = same_bits(plain, run(model, ids, start, chunk))
        note = "recording changed the logits" if again else "two runs without recording differ too"
        print(f"record_hf.py: {path}: note: {note}", file=sys.stderr)
        if again:
            raise RecordError("the logits have other bits with the hooks than without")
    return recorder


def layers_only(tap):
    return tap.endswith("_ids") or re.fullmatch(r"model\.layers\.\d+\.output", tap) is not None


def wanted_by(options):
    if options.layers_only:
        return layers_only
    globs = options.taps or ["*"]
    return lambda tap: tap.endswith("_ids") or any(fnmatch.fnmatchcase(tap, glob) for glob in globs)


def arguments():
    parser = argparse.ArgumentParser(description="Records a transformers model's run for qwen3moe check.")
    parser.add_argument("model", help="a model folder")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--tokens", type=taps.token_ids, required=True, help="1,2,3")
    parser.add_argument("--start", type=int, default=0, help="first position")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--attn", default="eager", help="eager, sdpa, flash_attention_2, ...")
    parser.add_argument("--experts", help="5.x: eager, grouped_mm, batched_mm; default: the library's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tf32", action="store_true", help="let CUDA round float32 factors to TF32")
    parser.add_argument("--chunk", type=int, default=0, help="tokens per call, with a cache; 1: one by one")
    parser.add_argument("--taps", action="append", metavar="GLOB", help="only these; may be repeated")
    parser.add_argument("--layers-only", action="store_true", help="only each layer's output")
    return parser.parse_args()


def main():
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    ids = options.tokens
    try:
        if not os.path.isdir(options.model):
            raise RecordError(f"{options.model}: found no such folder, expected a model")
        model = load(options)
        taps.check_ids(ids, model.config.vocab_size)
        recorder = record_unchanged(model, options.out, ids, options.start, options.chunk,
                                    wanted_by(options))
    except (RecordError, OSError, ValueError, RuntimeError, IndexError) as problem:
        print(f"record_hf.py: {str(problem).splitlines()[0]}", file=sys.stderr)
        return 2
    for tap, why in recorder.left_out.items():
        print(f"record_hf.py: {tap}: left out, {why}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
