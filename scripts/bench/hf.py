# SPDX-License-Identifier: MIT
"""Hugging Face on one thread, for bench.py: prints "block SECONDS" and "decode SECONDS", a line each.

  python3 scripts/bench/hf.py FOLDER DTYPE TOKENS REPEAT      torch 2.13.0, transformers 5.17.0
"""

import sys
import time

import torch
import transformers

folder, dtype, tokens, repeat = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
ids = torch.tensor([[(i * 7919 + 13) % model.config.vocab_size for i in range(tokens)]])
with torch.no_grad():
    for i in range(repeat + 1):  # the first reads the file
        begin = time.monotonic()
        model.model(ids, use_cache=False)  # the layers, without lm_head
        if i > 0:
            print("block", time.monotonic() - begin)
    past = model(ids[:, :16], use_cache=True, logits_to_keep=1).past_key_values
    for i in range(repeat + 1):
        begin = time.monotonic()
        past = model(ids[:, 16 + i:17 + i], past_key_values=past, use_cache=True).past_key_values
        if i > 0:
            print("decode", time.monotonic() - begin)
