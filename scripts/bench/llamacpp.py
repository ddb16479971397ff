# SPDX-License-Identifier: MIT
"""llama.cpp on one thread, for bench.py: prints "block SECONDS" and "decode SECONDS", a line each.

  python3 scripts/bench/llamacpp.py FOLDER DTYPE TOKENS REPEAT      llama-cpp-python 0.3.36, gguf 0.19.0, numpy

It drops the rows whose logits are not asked for before the last layer's experts, so the block asks for all of
them, of a vocabulary of 256: then lm_head takes no time, as in the others' blocks. The decode has the whole one.
"""

import ctypes
import os
import sys
import tempfile
import time
import types

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "record"))
import llama_cpp  # noqa: E402
import record_llamacpp as recorder  # noqa: E402

folder, dtype, tokens, repeat = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
KIND = {"bfloat16": "bf16", "float32": "f32"}[dtype]
OPTIONS = types.SimpleNamespace(flash="auto", ubatch=None, threads=1, kv="f16")


def decode(context, ids, start, all_rows):
    """Seconds of one call."""
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    recorder.fill(batch, ids, start)
    for t in range(len(ids)):
        batch.logits[t] = all_rows or t + 1 == len(ids)
    begin = time.monotonic()
    status = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_synchronize(context)
    seconds = time.monotonic() - begin
    llama_cpp.llama_batch_free(batch)
    assert status == 0, f"llama_decode: {status}"
    return seconds


def run(c, weights, block):
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "model.gguf")
        recorder.write_gguf(path, c, weights, KIND)
        p = llama_cpp.llama_model_default_params()
        p.n_gpu_layers, p.use_extra_bufts = 0, True
        model = llama_cpp.llama_model_load_from_file(path.encode(), p)
        most = max(tokens, 64 + repeat)
        context = recorder.make_context(model, OPTIONS, most, llama_cpp.ggml_backend_sched_eval_callback(0))
        ids = [(i * 7919 + 13) % c["vocab_size"] for i in range(most)]
        if not block:
            decode(context, ids[:16], 0, False)
        for i in range(repeat + 1):
            if block:
                llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
                seconds = decode(context, ids[:tokens], 0, True)
            else:
                seconds = decode(context, ids[16 + i:17 + i], 16 + i, True)
            if i > 0:
                print("block" if block else "decode", seconds, flush=True)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
config, weights = recorder.read_config(folder), recorder.read_weights(f"{folder}/model.safetensors")
run(config, weights, False)
for name in ("model.embed_tokens.weight", "lm_head.weight"):
    weights[name] = weights[name][:256]
run({**config, "vocab_size": 256}, weights, True)
