# SPDX-License-Identifier: MIT
"""What scripts/bench.sh measures and prints; its comment has the options.

  python3 scripts/bench/bench.py ROOT WORK [--quick] [--hf PYTHON] [--llamacpp PYTHON] [--repeat N]

WORK/build has the programs bench and qwen3moe.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import time

QWEN30 = {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4,
          "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
          "vocab_size": 151936, "num_hidden_layers": 2}
QWEN235 = {**QWEN30, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 64,
           "moe_intermediate_size": 1536, "num_hidden_layers": 94}
SMALL = {**QWEN30, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
         "num_experts": 32, "moe_intermediate_size": 192, "intermediate_size": 1024, "vocab_size": 4096}
REST = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False,
        "decoder_sparse_step": 1, "hidden_act": "silu", "max_position_embeddings": 40960, "mlp_only_layers": [],
        "norm_topk_prob": True, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
        "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False}


class Bench:
    def __init__(self, options):
        self.o = options
        self.programs = f"{options.work}/build"
        self.results = {}

    # ---- running ----

    def numbers(self, *arguments):
        """What the program bench prints: a list for each line's first number, or of all of them."""
        out = subprocess.run([f"{self.programs}/bench", *map(str, arguments)], check=True, stdout=subprocess.PIPE,
                             text=True)
        return [tuple(float(x) for x in line.split()) for line in out.stdout.splitlines()]

    def times(self, *arguments):
        return [line[0] for line in self.numbers(*arguments)]

    def command(self, *arguments, status=0):
        """Seconds of one run of the command."""
        begin = time.monotonic()
        done = subprocess.run([f"{self.programs}/qwen3moe", *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        if done.returncode != status:
            said = " ".join(map(str, arguments))
            raise SystemExit(f"qwen3moe {said}: status {done.returncode}\n{done.stdout[-600:]}")
        return time.monotonic() - begin

    def model(self, name, config, dtype):
        """A folder with one file of weights by rule, made once."""
        folder = f"{self.o.work}/{name}-{dtype}"
        if not os.path.exists(f"{folder}/done"):
            shutil.rmtree(folder, ignore_errors=True)
            self.sparse(folder, config, "--one", "--dtype", dtype)
            subprocess.run([f"{self.programs}/bench", "fill", f"{folder}/model.safetensors"], check=True)
            open(f"{folder}/done", "w").close()
        return folder

    def sparse(self, folder, config, *options):
        path = f"{self.o.work}/config.json"
        with open(path, "w", encoding="utf-8") as f:
            json.dump({**REST, **config, "torch_dtype": "bfloat16"}, f)
        subprocess.run(["python3", f"{self.o.root}/scripts/golden/make_sparse.py", path, folder, *options],
                       check=True, stdout=subprocess.DEVNULL)

    # ---- printing ----

    def say(self, what, values, unit, ratio="", digits=3):
        values = sorted(values)
        print(f"{what:46} {values[0]:10.{digits}f} {statistics.median(values):10.{digits}f} {values[-1]:10.{digits}f} "
              f"{unit:7} {ratio}", flush=True)
        return statistics.median(values)

    def goal(self, of, value, wanted, most=False):
        good = value <= wanted if most else value >= wanted
        return f"{value:.2f} of {of}, goal {'<=' if most else '>='} {wanted}: {'reached' if good else 'NOT reached'}"

    # ---- the table ----

    def machine(self):
        peak = self.times("peak", self.o.repeat)
        read = self.times("read", 256 if self.o.quick else 2048, self.o.repeat)
        self.peak, self.read = statistics.median(peak), statistics.median(read)
        self.say("float64 multiply-adds in registers", peak, "GMAC/s")
        self.say("plain read loop", read, "GB/s")

    def macs(self, c, tokens, head=False):
        """Multiply-adds of a call, but for attention's own, which are few at these positions."""
        M, hd = c["hidden_size"], c["head_dim"]
        q, kv = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
        experts = 3 * M * c["moe_intermediate_size"] * c["num_experts_per_tok"]
        layer = M * (2 * q + 2 * kv) + M * c["num_experts"] + experts
        return tokens * (layer * c["num_hidden_layers"] + (M * c["vocab_size"] if head else 0))

    def decode(self, name, config):
        for dtype, size, wanted in (("bfloat16", 2, 0.7), ("float32", 4, 0.9)):
            folder = self.model(name, config, dtype)
            rate = [self.macs(config, 1, True) * size / t / 1e9
                    for t in self.times("decode", folder, dtype, 16, 2 * self.o.repeat)]
            median = statistics.median(rate)
            self.say(f"decode, {dtype} weights", rate, "GB/s", self.goal("the read loop", median / self.read, wanted))

    def blocks(self, name, config):
        folder = self.model(name, config, "bfloat16")
        for tokens, wanted in ((128, 0.6), (512, 0.75)):
            times = self.times("block", folder, "bfloat16", tokens, self.o.repeat)
            rate = [self.macs(config, tokens) / t / 1e9 for t in times]
            median = statistics.median(rate)
            self.say(f"block of {tokens} tokens, bfloat16 weights", rate, "GMAC/s",
                     self.goal("the peak", median / self.peak, wanted))
            self.results[tokens] = statistics.median(times)

    def attention(self):
        for positions in ((512, 2048) if self.o.quick else (4096, 32768)):
            tokens = 16
            rest = statistics.median(self.times("attention", "bfloat16", 0, tokens, self.o.repeat))
            times = self.times("attention", "bfloat16", positions, tokens, self.o.repeat)
            rate = [tokens * 64 * 128 * 2 * positions / (t - rest) / 1e9 for t in times]
            median = statistics.median(rate)
            self.say(f"attention of {tokens} tokens behind {positions}", rate, "GMAC/s",
                     self.goal("the peak", median / self.peak, 0.5))

    def check(self, name, config):
        tokens = 16
        ids = ",".join(str((i * 7919 + 13) % config["vocab_size"]) for i in range(tokens))
        folder = self.model(name, config, "bfloat16")
        taps = f"{self.o.work}/taps.safetensors"
        for dtype in ("bfloat16", "float16", "float32"):
            run = ["--tokens", ids, "--dtype", dtype]
            forward = [self.command("dump", folder, *run, "--taps", "lm_head.output", "-o", taps)
                       for _ in range(self.o.repeat)]
            self.command("dump", folder, *run, "-o", taps)
            honest = [self.command("check", folder, taps) for _ in range(self.o.repeat)]
            base = statistics.median(forward)
            median = self.say(f"check {name}, {tokens} tokens, {dtype}", honest, "s",
                              self.goal("the forward pass", statistics.median(honest) / base, 2.0, True))
            break_tap(taps, "model.layers.0.self_attn.v_proj.output")
            found = [self.command("check", folder, taps, status=1)]
            self.say(f"check {name} with a diagnosis, {dtype}", found, "s",
                     self.goal("the honest check", found[0] / median, 5, True))
        os.remove(taps)

    def opening(self):
        folder = f"{self.o.work}/open"
        shutil.rmtree(folder, ignore_errors=True)
        self.sparse(folder, QWEN235)
        times = self.times("open", folder, 2 * self.o.repeat)
        median = statistics.median(times)
        self.say("opening 118 files, 36945 tensors", times, "s", self.goal("a second", median, 0.3, True))

    def tokenizer(self):
        text = f"{self.o.work}/text"
        with open(f"{self.o.root}/MODEL.md", "rb") as f:
            page = f.read()
        with open(text, "wb") as f:
            f.write(page * ((1 << (20 if self.o.quick else 22)) // len(page) + 1))
        lines = self.numbers("tokenize", f"{self.o.root}/golden/tiny", text, self.o.repeat)
        size = os.path.getsize(text)
        self.say("tokenizer of golden/tiny: start", [a for a, _ in lines], "s", "", 4)
        self.say("tokenizer of golden/tiny: MODEL.md", [size / b / 1e6 for _, b in lines], "MB/s")

    # ---- growth: the cost of one more, beside the one before ----

    def grow(self, what, counts, cost):
        """cost(n) is the cost of each of n; more than half as much again as at any smaller n is a cliff."""
        least = None
        for n in counts:
            each = cost(n)
            cliff = "" if least is None or each <= 1.5 * least else "  <- a cliff"
            print(f"  {what} {n:6}  {each * 1e6:12.2f} us each{cliff}", flush=True)
            least = each if least is None else min(each, least)

    def least(self, *arguments):
        return min(self.times(*arguments, self.o.repeat) if arguments[0] != "block" else
                   self.times(*arguments[:4], self.o.repeat, *arguments[4:]))

    def growth(self):
        folder = self.model("small", SMALL, "bfloat16")
        print("how the cost grows (small models)")
        top = 256 if self.o.quick else 1024
        self.grow("tokens", [n for n in (1, 2, 3, 4, 7, 8, 15, 16, 17, 32, 33, 64, 128, 256, 512, 1024) if n <= top],
                  lambda n: self.least("block", folder, "bfloat16", n) / n)
        top = 4096 if self.o.quick else 32768
        rest = self.least("attention", "bfloat16", 0, 1)
        self.grow("positions", [n for n in (64, 512, 4096, 32768) if n <= top],
                  lambda n: (self.least("attention", "bfloat16", n, 1) - rest) / n)
        self.grow("layers", (1, 2, 4, 8), lambda n: self.least(
            "block", self.model(f"layers{n}", {**SMALL, "num_hidden_layers": n}, "bfloat16"), "bfloat16", 32) / n)
        self.grow("experts a token", (1, 2, 4, 8, 16, 32), lambda n: self.least(
            "block", self.model(f"experts{n}", {**SMALL, "num_experts_per_tok": n}, "bfloat16"), "bfloat16", 32) / n)
        plain, tapped = (self.least("block", folder, "bfloat16", 128, *more) for more in ((), ("taps",)))
        print(f"  taps given: {tapped / plain:.2f} times the pass without")

    # ---- others ----

    def peers(self, name, config):
        tokens = 128 if self.o.quick else 512
        for python, script, kinds in ((self.o.hf, "hf.py", ("bfloat16", "float32")),
                                      (self.o.llamacpp, "llamacpp.py", ("bfloat16", "float32"))):
            if python is None:
                print(f"{script[:-3]}: not compared (no Python given)")
                continue
            for dtype in kinds:
                folder = self.model(name, config, dtype)
                out = subprocess.run([python, f"{self.o.root}/scripts/bench/{script}", folder, dtype, str(tokens),
                                      str(self.o.repeat)], check=True, stdout=subprocess.PIPE, text=True,
                                     env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
                lines = [line.split() for line in out.stdout.splitlines() if line.startswith(("block ", "decode "))]
                times = [float(t) for kind, t in lines if kind == "block"]
                ours = self.results.get(tokens)
                ratio = f"ours takes {ours / statistics.median(times):.2f} of it" if ours else ""
                self.say(f"{script[:-3]}: block of {tokens} tokens, {dtype}", times, "s", ratio)
                size = 2 if dtype == "bfloat16" else 4
                rate = [self.macs(config, 1, True) * size / float(t) / 1e9 for kind, t in lines if kind == "decode"]
                if rate:
                    self.say(f"{script[:-3]}: decode, {dtype}", rate, "GB/s",
                             f"{statistics.median(rate) / self.read:.2f} of the read loop")

    def all(self):
        name, config = ("quick", SMALL) if self.o.quick else ("30b", QWEN30)
        print(f"processor  {processor()}\n{'':46} {'least':>10} {'median':>10} {'most':>10}")
        self.machine()
        self.decode(name, config)
        self.blocks(name, config)
        self.attention()
        self.check(name, config)
        if not self.o.quick:
            self.check("235b", {**QWEN235, "num_hidden_layers": 1, "vocab_size": 4096})
        self.opening()
        self.tokenizer()
        self.peers(name, config)
        self.growth()


def break_tap(path, name):
    """A mistake: every value of one tensor has the other sign."""
    with open(path, "r+b") as f:
        length, = struct.unpack("<Q", f.read(8))
        entry = json.loads(f.read(length))[name]
        begin, end = entry["data_offsets"]
        size = 4 if entry["dtype"] == "F32" else 2
        f.seek(8 + length + begin)
        data = bytearray(f.read(end - begin))
        data[size - 1::size] = bytes(b ^ 0x80 for b in data[size - 1::size])
        f.seek(8 + length + begin)
        f.write(data)


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            lines = dict(line.split(":", 1) for line in f.read().split("\n\n")[0].splitlines())
    except OSError:
        return "unknown"
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    flags = lines.get("flags", lines.get("Features", "")).split()
    known = [f for f in ("avx2", "fma", "avx512f", "asimd") if f in flags]
    kind = f"family {lines.get('cpu family')}, model {lines.get('model')}"
    return f"{lines.get('model name', 'unknown')} ({kind}; {' '.join(known)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("root")
    parser.add_argument("work")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--hf")
    parser.add_argument("--llamacpp")
    parser.add_argument("--repeat", type=int)
    o = parser.parse_args()
    o.repeat = o.repeat or (2 if o.quick else 5)
    Bench(o).all()
