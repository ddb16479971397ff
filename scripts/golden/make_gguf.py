# SPDX-License-Identifier: MIT
"""Makes golden/gguf: small GGUF files as llama.cpp's tools write them, what their weights are, what llama.cpp computes.

  python3 scripts/golden/make_gguf.py FOLDER      llama-cpp-python 0.3.36, gguf 0.19.0, numpy

FOLDER/NAME.gguf are one model, of weights by rule (rule.py), in several types; FOLDER/NAME.safetensors are llama.cpp's
taps of a few tokens. FOLDER/weights.txt has, of each tensor of each file, its shape and the SHA-256 of its elements as
the gguf package's dequantize gives them: little-endian float32, row-major.
"""

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile

ROOMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path[1:1] = [os.path.join(ROOMS, "record")]
import gguf
import llama_cpp
import record_llamacpp as recorder
import rule

# Rows of 256 elements hold blocks of every type; those of down_proj, 32 long, hold the small ones alone.
CONFIG = {"vocab_size": 40, "hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
          "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 4096, "num_experts": 3,
          "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True, "rms_norm_eps": 1e-06,
          "rope_theta": 1000000.0, "tie_word_embeddings": False}
IDS = [1, 38, 17, 5]
FTYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q2_k": 10, "q3_k_m": 12, "q4_k_m": 15,
          "q5_k_m": 17, "q6_k": 18, "iq4_xs": 30, "bf16": 32}  # enum llama_ftype
FILES = ("q8_0", "q4_k_m")


def shapes(c):
    """Of Hugging Face's tensors."""
    M, hd, F = c["hidden_size"], c["head_dim"], c["moe_intermediate_size"]
    q, k = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
    layer = {"input_layernorm": (M,), "self_attn.q_proj": (q, M), "self_attn.k_proj": (k, M), "self_attn.v_proj": (k, M),
             "self_attn.o_proj": (M, q), "self_attn.q_norm": (hd,), "self_attn.k_norm": (hd,),
             "post_attention_layernorm": (M,), "mlp.gate": (c["num_experts"], M)}
    for e in range(c["num_experts"]):
        layer |= {f"mlp.experts.{e}.gate_proj": (F, M), f"mlp.experts.{e}.up_proj": (F, M),
                  f"mlp.experts.{e}.down_proj": (M, F)}
    result = {"model.embed_tokens.weight": (c["vocab_size"], M), "model.norm.weight": (M,)}
    if not c["tie_word_embeddings"]:
        result["lm_head.weight"] = (c["vocab_size"], M)
    for i in range(c["num_hidden_layers"]):
        result |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return result


def weights_by_rule(c, seed="gguf"):
    return {name: rule.fill(seed, name, shape) for name, shape in shapes(c).items()}


def quantize(source, target, kind):
    """With llama.cpp's own tool, which chooses the types of some tensors itself."""
    p = llama_cpp.llama_model_quantize_default_params()
    p.ftype, p.nthread, p.allow_requantize = FTYPES[kind], 1, True
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(p))
    assert status == 0, f"llama_model_quantize: {status}"


def weight_lines(path):
    """NAME SHAPE SHA-256, the slowest axis first."""
    for tensor in sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.name):
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("<f4")
        shape = ",".join(str(n) for n in reversed(tensor.shape.tolist()))
        yield f"{tensor.name} {tensor.tensor_type.name} {shape} {hashlib.sha256(values.tobytes()).hexdigest()}\n"


def main():
    folder = sys.argv[1]
    script = os.path.join(ROOMS, "record", "record_llamacpp.py")
    with tempfile.TemporaryDirectory() as work, open(os.path.join(folder, "weights.txt"), "w") as lines:
        whole = os.path.join(work, "f32.gguf")
        recorder.write_gguf(whole, CONFIG, weights_by_rule(CONFIG), "f32")
        for kind in FILES:
            path = os.path.join(folder, f"{kind}.gguf")
            quantize(whole, path, kind)
            lines.writelines(f"{kind}.gguf {line}" for line in weight_lines(path))
            subprocess.run([sys.executable, script, path, path.replace(".gguf", ".safetensors"), "--tokens",
                            ",".join(map(str, IDS))], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
