# SPDX-License-Identifier: MIT
"""Records what vLLM computes, by Hugging Face's module names, for `qwen3moe check`.

  python3 scripts/record/record_vllm.py MODEL OUT.safetensors --tokens 1,2,3 [--dtype bfloat16] [--chunk 4] ...

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"       # before vllm is imported: the engine in this process
    llm = LLM(MODEL, enforce_eager=True, enable_prefix_caching=False)
    from record_vllm import record
    with record(llm, "backend.safetensors"):
        llm.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=1, prompt_logprobs=1))

Needs vLLM 0.32, and record_hf.py and taps.py beside this file. One request at a time. The prompt may be prefilled in
chunks, and tokens that are generated are recorded too. Nothing is computed again, and every hook copies: vLLM
overwrites tensors in place. What is seen, and where:
- the modules' outputs: qkv_proj and gate_up_proj are fused, as `check` understands them;
- the residual stream where the norms return it, since layers keep it apart;
- q_rope and k_rope: what rotary_emb returns, one module for all layers; cos and sin: its cache at the positions;
- o_proj.input: what `attn` returns; its scores stay in the kernel;
- topk_indices and topk_weights: what the router's select_experts returns; the experts' steps stay in the kernel;
- lm_head: the rows that were asked for, of one token a call, or with prompt_logprobs of every token.
Several processes (tensor parallel) cannot be recorded. Prefix caching can: keys that came from the cache are said.
"""

import argparse
import contextlib
import json
import os
import sys

import torch

import record_hf
import taps
from record_hf import RecordError, first


class Recorder(record_hf.Recorder):
    """record_hf.py's, with what vLLM has in other places."""

    def begin(self, args, kwargs):
        super().begin(args, kwargs)
        if not self.calls:  # a request begins at 0, so that what comes before the first call was in the cache
            self.past_count = record_hf.first_position(self.call)

    def hook_outside(self, name, module):
        if name == "logits_processor":  # lm_head is an argument of it and never called
            self.around(module, lambda args, kwargs, y: self.see_logits(args[1], y))
            return True
        return super().hook_outside(name, module)

    def hook_attention(self, p, module):
        self.after(module.attn, lambda y: self.keep(p + "self_attn.o_proj.input", y))

    def hook_experts(self, p, module):
        """The router is no module: its function is replaced. Without one (monolithic kernels) the choice is hidden."""
        self.after(module.gate, lambda y: self.keep(p + "mlp.gate.output", first(y)))
        router = getattr(module.experts, "router", None)
        if router is not None:
            self.replace(router, "select_experts", lambda y, kwargs: self.see_choice(p, y))

    def see_choice(self, p, y):
        self.keep(p + "mlp.topk_weights.output", y[0])
        self.keep(p + "mlp.topk_indices.output", y[1])

    def hook_rotary(self, module):
        super().hook_rotary(module)
        self.around(module, lambda args, kwargs, y: self.see_cache(module, args[0]))

    def see_cache(self, module, positions):
        """The row [cos, sin] of each position, of half a head each. It is a table in the run's dtype."""
        if self.call is not None and "model.rotary_emb.cos" not in self.call:
            halves = module.cos_sin_cache[positions.flatten()].chunk(2, dim=-1)
            for tap, half in zip(("cos", "sin"), halves):
                self.keep("model.rotary_emb." + tap, torch.cat((half, half), dim=-1))


@contextlib.contextmanager
def record(llm, path, wanted=lambda tap: True):
    """Records what llm computes in the block, and writes path at its end. Gives the Recorder."""
    import vllm
    found = []
    check_engine(llm)
    llm.apply_model(lambda model: found.append(Recorder(model, wanted)))
    recorder = found[0]
    try:
        yield recorder
    finally:
        recorder.close()
    config = llm.llm_engine.vllm_config.model_config.hf_config.to_dict()
    record_hf.write(path, recorder, f"vllm {vllm.__version__}", config)


def check_engine(llm):
    core = getattr(llm.llm_engine, "engine_core", None)
    if not hasattr(core, "engine_core"):
        raise RecordError("VLLM_ENABLE_V1_MULTIPROCESSING: found an engine in another process, expected 0, set before "
                          "vllm is imported")
    config = llm.llm_engine.vllm_config
    if config.parallel_config.world_size != 1:
        raise RecordError(f"found {config.parallel_config.world_size} processes, expected 1")
    if not config.model_config.enforce_eager:
        raise RecordError("enforce_eager: found False, expected True")


# ---- command line -------------------------------------------------------------------------------


def load(options):
    """The engine. Its greeting and progress go to standard error, and only from warnings on."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM
    room = max(len(options.tokens) + options.generate, 32)
    return LLM(model=options.model, skip_tokenizer_init=True, enforce_eager=True,
               enable_prefix_caching=options.cached > 0, block_size=32, dtype=options.dtype, max_model_len=room, max_num_seqs=1, enable_chunked_prefill=True,
               max_num_batched_tokens=options.chunk or room, kv_cache_memory_bytes=options.cache << 20)


def run(llm, options, tokens):
    """prompt_logprobs asks for every token's logits, and takes nothing from the prefix cache."""
    from vllm import SamplingParams
    logprobs = None if options.last_logits or options.cached else 1
    llm.generate([{"prompt_token_ids": tokens}], use_tqdm=False, sampling_params=SamplingParams(
        max_tokens=options.generate, temperature=0, ignore_eos=True, detokenize=False, prompt_logprobs=logprobs))


def record_command(options):
    """What the command line asks for. Gives the Recorder."""
    if not os.path.isdir(options.model):
        raise RecordError(f"{options.model}: found no such folder, expected a model")
    with open(os.path.join(options.model, "config.json")) as f:
        config = json.load(f)
    taps.check_ids(options.tokens, taps.full_config(config)["vocab_size"])
    options.dtype = options.dtype or taps.to_4x(config).get("torch_dtype") or "bfloat16"
    llm = load(options)
    if options.cached:
        run(llm, options, options.tokens[:options.cached])
    with record(llm, options.out, record_hf.wanted_by(options)) as recorder:
        run(llm, options, options.tokens)
    return recorder


def arguments(line=None):
    parser = argparse.ArgumentParser(description="Records vLLM's run for qwen3moe check.")
    parser.add_argument("model", help="a model folder")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--tokens", type=taps.token_ids, required=True, help="1,2,3")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the model's")
    parser.add_argument("--chunk", type=int, default=0, help="tokens of the prompt per call; 0: all")
    parser.add_argument("--generate", type=int, default=1, help="tokens to sample; all but the last are recorded too")
    parser.add_argument("--last-logits", action="store_true", help="logits only where vLLM samples")
    parser.add_argument("--cached", type=int, default=0, metavar="N",
                        help="N tokens run before, unrecorded: as many of them as fill blocks of 32 stay in the cache")
    parser.add_argument("--cache", type=int, default=64, help="MiB of keys and values")
    parser.add_argument("--taps", action="append", metavar="GLOB", help="only these; may be repeated")
    parser.add_argument("--layers-only", action="store_true", help="only each layer's output")
    return parser.parse_args(line)


def main():
    options = arguments()
    try:
        recorder = record_command(options)
    except (RecordError, ImportError, OSError, ValueError, RuntimeError, IndexError) as problem:
        print(f"record_vllm.py: {str(problem).splitlines()[0]}", file=sys.stderr)
        return 2
    for tap, why in recorder.left_out.items():
        print(f"record_vllm.py: {tap}: left out, {why}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
