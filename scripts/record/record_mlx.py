# SPDX-License-Identifier: MIT
"""Records what mlx-lm computes, by Hugging Face's names, for `qwen3moe check`.

    from record_mlx import record
    with record(model, "backend.safetensors", config):
        model(mx.array([ids]))

model is mlx_lm's, as load gives it; config its config.json, a dictionary. Needs mlx, numpy, and taps.py beside
this file. From the command line:

  python3 scripts/record/record_mlx.py MODEL OUT.safetensors --tokens 1,2,3 [--chunk 1] [--plain] [--gather]

Every module's __call__ is wrapped while it lasts: mlx calls no hooks. Of the experts' block, softmax, the chosen
experts and the weights are what its own calls of mlx.core return. What mlx fuses cannot be seen: cos and sin,
scores and probabilities, act_fn. From 64 slots on mlx-lm sorts the experts' rows by expert; they are put back
with mlx-lm's own inverse order. --plain: each module's output under its own name, as it comes. --gather: mlx's
CPU build has gather_mm in float32 alone; of other dtypes it is made of a gather and matmul.

Several calls with a cache become one run. The command line runs the model twice, with and without this, and the
logits must have the same bits.
"""

import argparse
import contextlib
import os
import re
import sys

import mlx.core as mx
import numpy as np

import taps

TYPES = {mx.float32: "F32", mx.bfloat16: "BF16", mx.float16: "F16", mx.int32: "I32"}
LAYER = re.compile(r"model\.layers\.(\d+)(?:\.(.+))?$")

# Modules whose output is a tap.
OUTPUTS = {"input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_norm",
           "self_attn.k_norm", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate", "mlp.gate_proj",
           "mlp.up_proj", "mlp"}
HEADS = {"self_attn.q_norm", "self_attn.k_norm"}  # [T,heads,hd]
INPUTS = {"self_attn.o_proj", "post_attention_layernorm", "mlp.down_proj"}
ENDS = {"model.embed_tokens", "model.norm", "lm_head"}
EXPERTS = {"mlp.switch_mlp." + name: name for name in ("gate_proj", "up_proj", "down_proj")}


class RecordError(Exception):
    """One line for the user."""


def rows(value, axes):
    """Without the axes of 1 in front that a tap of so many axes does not have."""
    while value.ndim > axes and value.shape[0] == 1:
        value = value[0]
    return value


class Proxy:
    """mlx.core as one file sees it, with a few functions watched."""

    def __init__(self, watched):
        self.__dict__.update(watched)

    def __getattr__(self, name):
        return getattr(mx, name)


class Recorder:
    """The wrappers around one model's modules, and what they saw."""

    def __init__(self, model, plain=False):
        self.model, self.plain = model, plain
        self.calls, self.call = [], None  # of each call of the model: tap: array
        self.undo = []
        self.names = {id(module): name for name, module in model.named_modules()}
        self.prefix = ""                  # model.layers.i. of the layer that runs
        self.order = None                 # mlx-lm's inverse order of the experts' rows
        self.scores = None                # of the experts that were chosen
        for cls in {type(module) for _, module in model.named_modules()}:
            self.wrap(cls, "__call__", self.around)
        self.watch_routing()

    def wrap(self, place, name, around):
        original = getattr(place, name)
        setattr(place, name, lambda *args, **kwargs: around(original, *args, **kwargs))
        self.undo.append(lambda: setattr(place, name, original))

    def watch_routing(self):
        """The functions that the files of the experts' block and of its matrices call."""
        for module in {type(m): m for _, m in self.model.named_modules()}.values():
            file = sys.modules[type(module).__module__]
            if hasattr(module, "switch_mlp"):
                proxy = Proxy({name: self.watched(name) for name in ("softmax", "take_along_axis")})
                file.mx = proxy
                self.undo.append(lambda file=file: setattr(file, "mx", mx))
                experts = sys.modules[type(module.switch_mlp).__module__]
                self.wrap(experts, "_gather_sort", self.see_order)

    def watched(self, name):
        def function(*args, **kwargs):
            result = getattr(mx, name)(*args, **kwargs)
            if name == "softmax":
                self.keep(self.prefix + "mlp.router_probs.output", result)
            else:
                self.scores = result
            return result
        return function

    def see_order(self, original, *args):
        result = original(*args)
        self.order = result[2]
        return result

    # ---- modules

    def around(self, original, module, *args, **kwargs):
        name = self.names.get(id(module))
        if name is None or (self.call is None and module is not self.model):
            return original(module, *args, **kwargs)
        layer = LAYER.match(name)
        if module is self.model:
            self.call = {"input_ids": rows(args[0], 1).astype(mx.int32)}
        elif layer and layer[2] is None:
            self.prefix = name + "."
        if layer and layer[2] == "mlp":
            self.order = None
        result = original(module, *args, **kwargs)
        self.see(name, layer, args, result)
        return result

    def see(self, name, layer, args, result):
        if name == "":
            self.keep("lm_head.output", result)
            self.calls.append(self.call)
            self.call = None
        elif self.plain:
            if not name.endswith(".rope"):  # one module for queries and keys
                self.call[name] = result
        elif layer:
            self.see_in_layer(name, layer[2], args, result)
        elif name in ENDS:
            self.keep(name + ".output", result)

    def see_in_layer(self, name, rest, args, result):
        if rest is None or rest in OUTPUTS:
            self.keep(name + ".output", result, 3 if rest in HEADS else 2)
        if rest in INPUTS:
            self.keep(name + ".input", args[0])
        if rest == "self_attn.rope":
            tap = self.prefix + "self_attn.q_rope.output"
            tap = tap.replace("q_rope", "k_rope") if tap in self.call else tap
            self.keep(tap, result.swapaxes(-3, -2), 3)
        if rest in EXPERTS:
            tap = f"{self.prefix}mlp.experts.{EXPERTS[rest]}."
            self.keep_slots(tap + "output", result)
            if rest.endswith("down_proj"):
                self.keep_slots(tap + "input", args[0])
        if rest == "mlp.switch_mlp":
            self.keep(self.prefix + "mlp.topk_indices.output", args[1].astype(mx.int32))
            self.keep(self.prefix + "mlp.topk_weights.output", self.scores)  # divided in place by now

    def keep(self, tap, value, axes=2):
        if not self.plain or tap == "lm_head.output":
            self.call[tap] = rows(value, axes)

    def keep_slots(self, tap, value):
        """Rows of experts, token by token and place by place: [T,A,n]."""
        tokens = self.call["input_ids"].shape[0]
        value = value.reshape(-1, value.shape[-1])
        if self.order is not None:
            value = value[self.order]
        self.keep(tap, value.reshape(tokens, -1, value.shape[-1]), 3)

    # ---- joining

    def joined(self):
        """The calls as one run: tap: array."""
        if not self.calls:
            raise RecordError("found no call of the model, expected one at least")
        if len(self.calls) == 1:
            return self.calls[0]
        if self.plain:
            raise RecordError("--plain: found several calls, expected one")
        return {tap: mx.concatenate([call[tap] for call in self.calls]) for tap in self.calls[0]}


def as_bytes(tap, value):
    if value.dtype not in TYPES:
        raise RecordError(f"{tap}: found {value.dtype}, expected one of {', '.join(TYPES.values())}")
    bits = value.view(mx.uint16) if value.dtype.size == 2 else value
    return TYPES[value.dtype], value.shape, np.ascontiguousarray(np.array(bits)).tobytes()


def dtype_of(tensors):
    """The run's: of the first tap that has one."""
    name = next(str(value.dtype) for value in tensors.values() if value.dtype != mx.int32)
    return name.rpartition(".")[2]


@contextlib.contextmanager
def record(model, path, config=None, plain=False):
    """Records the calls of the model inside the block, and writes the file at its end."""
    recorder = Recorder(model, plain)
    try:
        yield recorder
    finally:
        for undo in reversed(recorder.undo):
            undo()
    tensors = recorder.joined()
    mx.eval(list(tensors.values()))
    taps.write(path, {tap: as_bytes(tap, value) for tap, value in tensors.items()},
               taps.metadata(f"mlx-lm on mlx {mx.__version__}", dtype_of(tensors), 0, config))


def gather_mm(x, weight, rhs_indices, sorted_indices=False):
    return mx.matmul(x, weight[rhs_indices])


# ---- command line -------------------------------------------------------------------------------


def run(model, ids, chunk):
    """The logits of a prompt; with a cache if it goes in chunks."""
    from mlx_lm.models.cache import make_prompt_cache
    if not chunk:
        return model(mx.array([ids]))
    cache = make_prompt_cache(model)
    parts = [model(mx.array([ids[at:at + chunk]]), cache=cache) for at in range(0, len(ids), chunk)]
    return mx.concatenate(parts, axis=1)


def arguments():
    parser = argparse.ArgumentParser(description="Records an mlx-lm run for qwen3moe check.")
    parser.add_argument("model", help="a model folder; its weights' dtype is the run's")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--tokens", type=taps.token_ids, required=True, help="1,2,3")
    parser.add_argument("--chunk", type=int, default=0, help="tokens per call, with a cache; 1: one by one")
    parser.add_argument("--plain", action="store_true", help="modules' outputs under mlx-lm's own names")
    parser.add_argument("--gather", action="store_true", help="gather_mm by matmul: for 2-byte dtypes on a CPU")
    return parser.parse_args()


def main():
    options = arguments()
    try:
        if not os.path.isdir(options.model):
            raise RecordError(f"{options.model}: found no such folder, expected a model")
        from pathlib import Path
        from mlx_lm.utils import load_model
        model, config = load_model(Path(options.model))
        taps.check_ids(options.tokens, config["vocab_size"])
        if options.gather:
            mx.gather_mm = gather_mm
        plain = run(model, options.tokens, options.chunk)
        with record(model, options.out, config, options.plain):
            logits = run(model, options.tokens, options.chunk)
        if not mx.array_equal(plain, logits):
            raise RecordError("the logits have other bits with the wrappers than without")
    except (RecordError, OSError, RuntimeError, ValueError) as problem:
        print(f"record_mlx.py: {str(problem).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
