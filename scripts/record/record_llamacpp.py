# SPDX-License-Identifier: MIT
"""Runs a model through llama.cpp and records its tensors under our tap names, for `qwen3moe check`.

Needs llama-cpp-python==0.3.36, gguf==0.19.0, numpy, and taps.py beside this file; no torch.

  python3 scripts/record/record_llamacpp.py MODEL OUT.safetensors --tokens 1,2,3 [--start P] [--weights f32|bf16|f16]
      [--kv f32|f16|bf16] [--flash off|on|auto] [--ubatch N] [--threads N]

MODEL is a GGUF file (of one that is split, the first part), which check can be given as its MODEL too; or a folder
with config.json and one model.safetensors, which must be what llama.cpp's qwen3moe can compute: experts in every
layer, norm_topk_prob, no biases, no window, default RoPE. A GGUF file is made of that; --weights is the type of its
matrices (router and norms stay float32, as llama.cpp's converter leaves them). Without options all is float32 and
flash attention is off. llama.cpp's own defaults are --kv f16 --flash auto.

The tensors are those that llama.cpp's evaluation callback shows, all float32. What check must be told:
--accumulate bf16 or f16 if the weights are (their factors are rounded to the weights' type before each product),
--kv float16 or bfloat16 for the cache, and --accumulate f16 with it (queries and probabilities are rounded
likewise; flash attention also sums the values in float16, and rounds a float32 cache to float16 as it reads).
Some tensors need care:
- Qcur-i and Kcur-i are first the projection, then the same reshaped, last the result of RoPE, which
  is the one whose source is Qcur_normed-i; projections are known by their weight instead;
- RoPE is of the kind that pairs i with i + hd/2, like Hugging Face's: weights are not permuted;
- kq-i comes before the scale, which softmax applies in float32: so does this script;
- keys are padded with empty cells, which are cut off after a look that their probability is 0;
- the last layer keeps only the rows that are asked for: all are;
- silu(gate)*up is one operation: there is no act_fn; cos and sin are never shown; flash attention shows no scores;
- ffn_moe_weights_norm divides by max(sum, 2^-14): the same unless the sum is smaller.
"""

import argparse
import ctypes
import json
import os
import struct
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

import taps as taps_file

# ---- files --------------------------------------------------------------------------------------


def read_weights(path):
    """The tensors of a safetensors file as float32."""
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, e in header.items():
        a, b = e["data_offsets"]
        blob = data[8 + size + a:8 + size + b]
        if e["dtype"] == "BF16":
            value = (np.frombuffer(blob, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            value = np.frombuffer(blob, {"F32": "<f4", "F16": "<f2"}[e["dtype"]])
        tensors[name] = value.astype(np.float32).reshape(e["shape"])
    return tensors


def write_taps(path, taps, start, config):
    types = {"float32": "F32", "int32": "I32", "int64": "I64"}
    tensors = {name: (types[value.dtype.name], value.shape, np.ascontiguousarray(value).tobytes())
               for name, value in taps.items()}
    taps_file.write(path, tensors, taps_file.metadata("llama.cpp", "float32", start, config))


def read_config(folder):
    c = json.load(open(os.path.join(folder, "config.json")))
    refused = {"norm_topk_prob": not c.get("norm_topk_prob", False),
               "attention_bias": c.get("attention_bias", False),
               "use_sliding_window": c.get("use_sliding_window", False),
               "rope_scaling": c.get("rope_scaling") is not None,
               "mlp_only_layers": bool(c.get("mlp_only_layers")),
               "decoder_sparse_step": c.get("decoder_sparse_step", 1) != 1,
               "num_experts": not c.get("num_experts")}
    for key, wrong in refused.items():
        if wrong:
            raise ValueError(f"{folder}/config.json: {key}: found {c.get(key)}, expected what "
                             "llama.cpp's qwen3moe computes")
    c.setdefault("head_dim", c["hidden_size"] // c["num_attention_heads"])
    return c


def read_gguf(path):
    """A config.json's dictionary of a GGUF file's metadata. A float32 there is the decimal that it came from."""
    reader = gguf.GGUFReader(path)
    arch = reader.get_field("general.architecture").contents()
    tensors = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # ne: the fastest axis first

    def get(key, default=None):
        field = reader.get_field(f"{arch}.{key}")
        return default if field is None else field.contents()

    def real(key, default):
        return float(str(np.float32(get(key, default))))

    heads, width = get("attention.head_count"), get("embedding_length")
    c = {"vocab_size": tensors["token_embd.weight"][1], "hidden_size": width, "num_hidden_layers": get("block_count"),
         "num_attention_heads": heads, "num_key_value_heads": get("attention.head_count_kv", heads),
         "head_dim": get("attention.key_length", width // heads), "max_position_embeddings": get("context_length"),
         "num_experts": get("expert_count"), "num_experts_per_tok": get("expert_used_count"),
         "intermediate_size": get("feed_forward_length", taps_file.DEFAULTS["intermediate_size"]),
         "rms_norm_eps": real("attention.layer_norm_rms_epsilon", None),
         "rope_theta": real("rope.freq_base", 10000), "norm_topk_prob": True,
         "tie_word_embeddings": "output.weight" not in tensors}
    c["moe_intermediate_size"] = get("expert_feed_forward_length", c["intermediate_size"] // c["num_experts_per_tok"])
    kind, factor = get("rope.scaling.type", "linear"), real("rope.scaling.factor", 1)
    if kind == "yarn" or (kind == "linear" and factor != 1):
        c["rope_scaling"] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        length = get("rope.scaling.original_context_length", c["max_position_embeddings"])
        c["rope_scaling"]["original_max_position_embeddings"] = length
    return c


# The types of weights and caches: GGUF's, of which enum ggml_type has the same numbers.
TYPES = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16,
         "bf16": gguf.GGMLQuantizationType.BF16}

LAYER_WEIGHTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp"}


def write_gguf(path, c, weights, kind, more=lambda writer: writer.add_tokenizer_model("no_vocab"), **options):
    """kind: f32, f16 or bf16, of the matrices but the router's. more: writes other metadata. options: of GGUFWriter. A
    layer without a router is dense, which llama.cpp's qwen3moe cannot have."""
    def add(name, value):
        matrix = value.ndim > 1 and "ffn_gate_inp" not in name
        type_ = TYPES[kind if matrix else "f32"]
        g.add_tensor(name, gguf.quants.quantize(value, type_), raw_dtype=type_)

    g = gguf.GGUFWriter(path, "qwen3moe", **options)
    g.add_context_length(c["max_position_embeddings"])
    g.add_embedding_length(c["hidden_size"])
    g.add_block_count(c["num_hidden_layers"])
    g.add_feed_forward_length(c["intermediate_size"])
    g.add_head_count(c["num_attention_heads"])
    g.add_head_count_kv(c["num_key_value_heads"])
    g.add_key_length(c["head_dim"])
    g.add_value_length(c["head_dim"])
    g.add_layer_norm_rms_eps(c["rms_norm_eps"])
    g.add_rope_freq_base(c["rope_theta"])
    g.add_expert_count(c["num_experts"])
    g.add_expert_used_count(c["num_experts_per_tok"])
    g.add_expert_feed_forward_length(c["moe_intermediate_size"])
    g.add_vocab_size(c["vocab_size"])
    more(g)
    add("token_embd.weight", weights["model.embed_tokens.weight"])
    add("output_norm.weight", weights["model.norm.weight"])
    if not c["tie_word_embeddings"]:
        add("output.weight", weights["lm_head.weight"])
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        dense = f"{p}mlp.gate.weight" not in weights
        for ours, theirs in LAYER_WEIGHTS.items():
            if ours != "mlp.gate" or not dense:
                add(f"blk.{i}.{theirs}.weight", weights[f"{p}{ours}.weight"])
        for name in ("gate", "up", "down"):
            if dense:
                add(f"blk.{i}.ffn_{name}.weight", weights[f"{p}mlp.{name}_proj.weight"])
                continue
            add(f"blk.{i}.ffn_{name}_exps.weight", np.stack(
                [weights[f"{p}mlp.experts.{e}.{name}_proj.weight"]
                 for e in range(c["num_experts"])]))
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()


# ---- taps ---------------------------------------------------------------------------------------


class Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h, as far as it is read."""


Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4), ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32), ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64)]

F32, I32 = 0, 26  # enum ggml_type

# By the name of the weight that a projection multiplies, and by the tensor's own name.
BY_WEIGHT = {"attn_q": "self_attn.q_proj.output", "attn_k": "self_attn.k_proj.output",
             "attn_v": "self_attn.v_proj.output", "attn_output": "self_attn.o_proj.output"}
BY_NAME = {
    "attn_norm": "input_layernorm.output", "Qcur_normed": "self_attn.q_norm.output",
    "Kcur_normed": "self_attn.k_norm.output", "kq": "self_attn.scores.output",
    "kq_soft_max": "self_attn.probs.output", "kqv_out": "self_attn.o_proj.input",
    "ffn_inp": "post_attention_layernorm.input", "ffn_norm": "post_attention_layernorm.output",
    "ffn_moe_logits": "mlp.gate.output", "ffn_moe_probs": "mlp.router_probs.output",
    "ffn_moe_topk": "mlp.topk_indices.output", "ffn_moe_weights_norm": "mlp.topk_weights.output",
    "ffn_moe_gate": "mlp.experts.gate_proj.output", "ffn_moe_up": "mlp.experts.up_proj.output",
    "ffn_moe_swiglu": "mlp.experts.down_proj.input",
    "ffn_moe_down": "mlp.experts.down_proj.output", "ffn_moe_out": "mlp.output", "l_out": "output"}
ROPE = {"Qcur": "self_attn.q_rope.output", "Kcur": "self_attn.k_rope.output"}
OUTSIDE = {"result_norm": "model.norm.output", "result_output": "lm_head.output"}


def tap_of(tensor):
    """Our name of a node, or None."""
    name = tensor.name.decode()
    source = tensor.src[0].contents.name.decode() if tensor.src[0] else ""
    if name in OUTSIDE:
        return OUTSIDE[name]
    if source == "token_embd.weight":
        return "model.embed_tokens.output"
    if source.startswith("blk.") and source.endswith(".weight"):
        _, i, weight, _ = source.split(".")
        if weight in BY_WEIGHT:
            return f"model.layers.{i}.{BY_WEIGHT[weight]}"
    stem, _, i = name.rpartition("-")
    if stem in ROPE and source == f"{stem}_normed-{i}":
        return f"model.layers.{i}.{ROPE[stem]}"
    return f"model.layers.{i}.{BY_NAME[stem]}" if stem in BY_NAME and i.isdigit() else None  # "0 (reshaped)"


def values_of(tensor):
    """A node's values, outermost axis first, by its strides (top-k is a view of the whole sort)."""
    assert tensor.type in (F32, I32), (tensor.name, tensor.type)
    ne, nb = tensor.ne[:], tensor.nb[:]
    size = sum((n - 1) * b for n, b in zip(ne, nb)) + 4
    memory = np.frombuffer(ctypes.string_at(tensor.data, size), dtype=np.uint8)
    dtype = np.float32 if tensor.type == F32 else np.int32
    return np.ndarray(ne[::-1], dtype, memory, strides=nb[::-1]).copy()


def shape_of(c, name):
    """Of one token's row."""
    rest = name.split(".", 3)[-1] if name.startswith("model.layers.") else name
    H, K, hd = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    A, F, M = c["num_experts_per_tok"], c["moe_intermediate_size"], c["hidden_size"]
    if rest.startswith("mlp.experts."):
        return (A, M if rest.endswith("down_proj.output") else F)
    q, k = (H, hd), (K, hd)
    shapes = {"q_proj.output": (H * hd,), "k_proj.output": (K * hd,), "v_proj.output": (K * hd,),
              "o_proj.input": (H * hd,), "q_norm.output": q, "k_norm.output": k, "q_rope.output": q,
              "k_rope.output": k, "gate.output": (c["num_experts"],),
              "router_probs.output": (c["num_experts"],), "topk_indices.output": (A,),
              "topk_weights.output": (A,), "lm_head.output": (c["vocab_size"],)}
    return shapes.get(rest.removeprefix("self_attn.").removeprefix("mlp."), (M,))


def our_layout(c, name, value, done):
    """One evaluation's rows; of earlier ones there are `done`. Scores and probabilities lie [H,t,cells]."""
    if not name.endswith((".scores.output", ".probs.output")):
        row = shape_of(c, name)
        assert value.size % np.prod(row) == 0, (name, value.shape, row)
        return value.reshape(-1, *row)
    assert value.shape[:2] == (1, c["num_attention_heads"]), (name, value.shape)
    value = value[0]
    seen = np.tri(value.shape[1], value.shape[2], done, dtype=bool)
    if name.endswith(".probs.output"):
        assert np.all(value[:, ~seen] == 0), name
        return value
    scale = np.float32(1) / np.sqrt(np.float32(c["head_dim"]))
    return np.where(seen, value * scale, np.float32(0))


def join(name, parts, T):
    """The evaluations' rows as one run's."""
    if not name.endswith((".scores.output", ".probs.output")):
        return np.concatenate(parts)
    cells = max(part.shape[2] for part in parts)
    parts = [np.pad(part, ((0, 0), (0, 0), (0, cells - part.shape[2]))) for part in parts]
    return np.ascontiguousarray(np.concatenate(parts, axis=1)[:, :, :T])


def order(c):
    """Tap names in the order of computation; no graph has all of them."""
    layer = ["input_layernorm.output", *list(BY_WEIGHT.values())[:3],
             "self_attn.q_norm.output", "self_attn.k_norm.output", *ROPE.values(),
             "self_attn.scores.output", "self_attn.probs.output", "self_attn.o_proj.input",
             "self_attn.o_proj.output", "post_attention_layernorm.input",
             "post_attention_layernorm.output"]
    layer += [name for name in BY_NAME.values() if name.startswith("mlp.")] + ["output"]
    names = [f"model.layers.{i}.{name}" for i in range(c["num_hidden_layers"]) for name in layer]
    return ["model.embed_tokens.output", *names, *OUTSIDE.values()]


# ---- run ----------------------------------------------------------------------------------------


def fill(batch, ids, start):
    batch.n_tokens = len(ids)
    for t, token in enumerate(ids):
        batch.token[t] = token
        batch.pos[t] = start + t
        batch.n_seq_id[t] = 1
        batch.seq_id[t][0] = 0
        batch.logits[t] = 1


def watcher(c, parts, problems):
    """The callback: each node that is a tap goes to the end of parts[name]."""
    def see(pointer, ask, _):
        try:
            tensor = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
            name = tap_of(tensor)
            if not ask and name is not None:
                rows = parts.setdefault(name, [])
                axis = 1 if name.endswith((".scores.output", ".probs.output")) else 0
                done = sum(part.shape[axis] for part in rows)
                rows.append(our_layout(c, name, values_of(tensor), done))
            return name is not None or not ask
        except Exception as problem:  # must not pass through C
            problems.append(problem)
            return False
    return llama_cpp.ggml_backend_sched_eval_callback(see)


def make_context(model, options, T, callback):
    flash = {"off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
             "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO}
    p = llama_cpp.llama_context_default_params()
    p.n_ctx = p.n_batch = max(256, T)
    p.n_ubatch = options.ubatch or p.n_batch
    p.n_threads = p.n_threads_batch = options.threads
    p.flash_attn_type = flash[options.flash]
    p.type_k = p.type_v = int(TYPES[options.kv])
    p.offload_kqv = p.op_offload = False
    p.cb_eval = callback
    context = llama_cpp.llama_init_from_model(model, p)
    assert context, "llama.cpp makes no context"
    return context


def run(path, c, ids, options):
    """Every tap of one prompt in one batch, which llama.cpp evaluates in pieces of --ubatch tokens."""
    parts, problems, T = {}, [], len(ids)
    callback = watcher(c, parts, problems)
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    p = llama_cpp.llama_model_default_params()
    p.n_gpu_layers, p.use_extra_bufts = 0, False
    model = llama_cpp.llama_model_load_from_file(path.encode(), p)
    assert model, "llama.cpp does not load the GGUF file"
    context = make_context(model, options, T, callback)
    batch = llama_cpp.llama_batch_init(T, 0, 1)
    fill(batch, ids, options.start)
    status = llama_cpp.llama_decode(context, batch)
    if problems:
        raise problems[0]
    assert status == 0, f"llama_decode: {status}"
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    taps = {name: join(name, parts[name], T) for name in order(c) if name in parts}
    extra = set(parts) - set(taps)
    assert not extra, f"{sorted(extra)} have no place in the order"
    return taps


def record(options):
    ids = options.tokens
    own = not os.path.isdir(options.model)
    c = read_gguf(options.model) if own else read_config(options.model)
    taps_file.check_ids(ids, c["vocab_size"])
    with tempfile.TemporaryDirectory() as folder:
        path = options.model if own else os.path.join(folder, "model.gguf")
        if not own:
            weights = read_weights(os.path.join(options.model, "model.safetensors"))
            write_gguf(path, c, weights, options.weights)
        taps = run(path, c, ids, options)
    position = np.arange(options.start, options.start + len(ids), dtype=np.int64)
    write_taps(options.out, {"input_ids": np.array(ids, dtype=np.int64), "position_ids": position, **taps},
               options.start, c)


def main():
    parser = argparse.ArgumentParser(description="llama.cpp's tensors under our tap names.")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--tokens", type=taps_file.token_ids, required=True)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--weights", choices=TYPES, default="f32", help="of a folder's matrices")
    parser.add_argument("--kv", choices=TYPES, default="f32")
    parser.add_argument("--flash", choices=["off", "on", "auto"], default="off")
    parser.add_argument("--ubatch", type=int, default=0, help="tokens per evaluation; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    try:
        record(options)
    except (AssertionError, KeyError, OSError, ValueError) as problem:
        print(f"record_llamacpp.py: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
