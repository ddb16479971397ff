# SPDX-License-Identifier: MIT
"""Records what KerasHub computes, by Hugging Face's names, for `qwen3moe check`.

    from record_keras import record
    with record(backbone, "backend.safetensors", config):
        backbone({"token_ids": ids, "padding_mask": ones})

backbone is a keras_hub.models.Qwen3MoeBackbone on any eager backend; config the config.json that it was made of, a
dictionary. Needs keras-hub 0.32.0, and taps.py beside this file. From the command line, with a Hugging Face folder:

  python3 scripts/record/record_keras.py MODEL OUT.safetensors --tokens 1,2,3 [--dtype float32] [--backend torch|jax]

Layers are watched by a wrapper around keras.layers.Layer.__call__; of the experts' block, softmax, top_k, the
weights and the products are what its own calls of keras.ops return. Its experts compute every token: the rows of
the chosen ones are kept. Scores, probabilities, cos and sin are not there to be seen. One call, batch of one. The
logits are the tied or untied head's, called once more; the command line runs the model twice, with and without
this, and its output must have the same values.
"""

import argparse
import contextlib
import json
import os
import re
import sys

import numpy as np

import taps

LAYER = re.compile(r"transformer_layer_(\d+)$")

# A decoder layer's own layers, and what their output is called; then those whose input is a tap.
NAMES = {"_self_attention_layernorm": "input_layernorm.output",
         "_feedforward_layernorm": "post_attention_layernorm.output",
         "_self_attention_layer._query_dense": "self_attn.q_proj.output",
         "_self_attention_layer._key_dense": "self_attn.k_proj.output",
         "_self_attention_layer._value_dense": "self_attn.v_proj.output",
         "_self_attention_layer._query_dense_layer_norm": "self_attn.q_norm.output",
         "_self_attention_layer._key_dense_layer_norm": "self_attn.k_norm.output",
         "_self_attention_layer.rotary_embedding_layer": "self_attn.q_rope.output",
         "_self_attention_layer._output_dense": "self_attn.o_proj.output",
         "mlp": "mlp.output", "mlp._sparse_feedforward_gate_dense": "mlp.gate.output",
         "mlp._feedforward_gate_dense": "mlp.gate_proj.output",
         "mlp._feedforward_intermediate_dense": "mlp.up_proj.output"}
INPUTS = {"_feedforward_layernorm": "post_attention_layernorm.input",
          "_self_attention_layer._output_dense": "self_attn.o_proj.input",
          "mlp._feedforward_output_dense": "mlp.down_proj.input"}


class RecordError(Exception):
    """One line for the user."""


class Proxy:
    """keras.ops as one file sees it, with a few functions watched."""

    def __init__(self, module, see):
        self.module, self.see = module, see

    def __getattr__(self, name):
        function = getattr(self.module, name)
        if name not in ("softmax", "top_k", "cast", "transpose", "einsum"):
            return function

        def watched(*args, **kwargs):
            result = function(*args, **kwargs)
            self.see(name, args, result)
            return result
        return watched


class Recorder:
    """The wrappers, and what they saw."""

    def __init__(self, backbone):
        import keras
        self.keras, self.tensors, self.names = keras, {}, {}
        self.bank = None  # of the experts' block that runs: its steps
        self.prefix = ""
        for layer in backbone.layers:
            match = LAYER.match(layer.name)
            if match:
                self.name_layer(f"model.layers.{match[1]}.", layer)
        self.names[id(backbone.token_embedding)] = "", {"out": "model.embed_tokens.output"}
        self.names[id(backbone.layer_norm)] = "", {"out": "model.norm.output"}
        self.wrap(keras.layers.Layer)
        file = sys.modules["keras_hub.src.models.qwen3_moe.qwen3_moe_decoder"]
        self.file, file.ops = file, Proxy(keras.ops, self.see_op)

    def name_layer(self, p, layer):
        self.names[id(layer)] = p, {"out": "output"}
        for path in {**NAMES, **INPUTS}:
            found = layer
            for part in path.split("."):
                found = getattr(found, part, None)
            if found is not None:
                self.names[id(found)] = p, {"out": NAMES.get(path), "in": INPUTS.get(path)}

    def wrap(self, cls):
        self.original = cls.__call__

        def called(layer, *args, **kwargs):
            p, taps_of = self.names.get(id(layer), ("", {}))
            if p:
                self.prefix = p
            if taps_of.get("in"):
                self.keep(p + taps_of["in"], args[0])
            result = self.original(layer, *args, **kwargs)
            if taps_of.get("out") and not kwargs.get("reverse"):
                self.keep(p + taps_of["out"], result[0] if isinstance(result, tuple) else result)
            return result

        cls.__call__ = called

    def close(self):
        self.keras.layers.Layer.__call__ = self.original
        self.file.ops = self.keras.ops

    def see_op(self, name, args, result):
        """Of the experts' block: what each of its own steps gave."""
        p = self.prefix + "mlp."
        if name == "softmax":
            self.bank = {}
            self.keep(p + "router_probs.output", result)
        elif self.bank is None or self.prefix + "mlp.output" in self.tensors:
            return
        elif name == "top_k":
            self.bank["ids"] = self.array(result[1]).astype(np.int32)
            self.tensors[p + "topk_indices.output"] = self.bank["ids"]
        elif name == "transpose":
            self.bank["routing"] = result
        elif name == "cast" and args[0] is self.bank.get("routing"):
            self.chosen(p + "topk_weights.output", self.keras.ops.expand_dims(result, -1))
        elif name == "einsum" and "gate_up" not in self.bank:
            self.bank["gate_up"] = result
            gate, up = self.keras.ops.split(result, 2, axis=-1)
            self.chosen(p + "experts.gate_proj.output", gate)
            self.chosen(p + "experts.up_proj.output", up)
        elif name == "einsum":
            self.chosen(p + "experts.down_proj.input", args[1])
            self.chosen(p + "experts.down_proj.output", result)

    def chosen(self, tap, value):
        """Of [E,T,n] the rows of the chosen experts, [T,A,n]."""
        ids, value = self.bank["ids"], self.array(value)
        rows = value[ids, np.arange(len(ids))[:, None]]
        self.tensors[tap] = rows[..., 0] if tap.endswith("topk_weights.output") else rows

    def keep(self, tap, value):
        if tap in self.tensors:
            tap = tap.replace("q_rope", "k_rope")  # one layer, queries first
        value = self.array(value)
        self.tensors[tap] = value[0] if value.ndim > 2 and value.shape[0] == 1 else value

    def array(self, value):
        """A copy; bfloat16 as ml_dtypes has it."""
        if self.keras.backend.backend() == "torch":
            import ml_dtypes
            import torch
            value = value.detach()
            if value.dtype == torch.bfloat16:
                return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
            return value.numpy().copy()
        return np.array(value)


def as_bytes(tap, value):
    kind = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int32": "I32"}.get(value.dtype.name)
    if kind is None:
        raise RecordError(f"{tap}: found {value.dtype}, expected float32, bfloat16, float16 or int32")
    return kind, value.shape, np.ascontiguousarray(value).tobytes()


@contextlib.contextmanager
def record(backbone, path, config=None, ids=None):
    """Records the call inside the block, and writes the file at its end."""
    recorder = Recorder(backbone)
    try:
        yield recorder
    finally:
        recorder.close()
    tensors = recorder.tensors
    if ids is not None:
        tensors["input_ids"] = np.array(ids, dtype=np.int32)
    taps.write(path, {tap: as_bytes(tap, value) for tap, value in tensors.items()},
               taps.metadata("keras-hub", tensors["model.embed_tokens.output"].dtype.name, 0, config))


# ---- command line -------------------------------------------------------------------------------


def run(backbone, ids):
    inputs = {"token_ids": np.array([ids], dtype="int32"), "padding_mask": np.ones((1, len(ids)), dtype="int32")}
    return backbone(inputs)


def main():
    parser = argparse.ArgumentParser(description="Records a KerasHub run for qwen3moe check.")
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--tokens", type=taps.token_ids, required=True, help="1,2,3")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the config's")
    parser.add_argument("--backend", default="torch", choices=["torch", "jax"])
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = options.backend
    try:
        with open(os.path.join(options.model, "config.json")) as f:
            config = json.load(f)
        taps.check_ids(options.tokens, config["vocab_size"])
        import keras_hub
        dtype = options.dtype or taps.to_4x(config).get("torch_dtype", "float32")
        backbone = keras_hub.models.Qwen3MoeBackbone.from_preset(options.model, dtype=dtype)
        with contextlib.nullcontext() if options.backend == "jax" else no_grad():
            plain = run(backbone, options.tokens)
            with record(backbone, options.out, config, options.tokens) as recorder:
                output = run(backbone, options.tokens)
                recorder.keep("lm_head.output", backbone.token_embedding(output, reverse=True))
        if recorder.array(plain).tobytes() != recorder.array(output).tobytes():
            raise RecordError("the output has other bits with the wrappers than without")
    except (RecordError, AttributeError, OSError, KeyError, RuntimeError, ValueError) as problem:
        kind = "" if isinstance(problem, RecordError) else type(problem).__name__ + ": "
        print(f"record_keras.py: {kind}{str(problem).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


def no_grad():
    import torch
    return torch.no_grad()


if __name__ == "__main__":
    sys.exit(main())
