# SPDX-License-Identifier: MIT
"""GGUF files from end to end: what the command makes of them, and llama.cpp judged on its own files.

  python3 scripts/ci/test_gguf.py COMMAND [--tokenizer TOKENIZER_JSON]      llama-cpp-python 0.3.36, gguf 0.19.0, numpy

- golden/tiny as GGUF, with its tokenizer and template: dumps, texts and ids are those of the folder, byte for byte;
- one model by rule in each type that llama.cpp's tools write: llama.cpp's run of a file agrees with that file;
- llama.cpp's run of a file in which one thing is wrong does not agree with the right one, and the tap is named.
--tokenizer: Qwen3's own file, as a GGUF file, gives the same ids.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
GOLDEN = os.path.join(ROOMS, "..", "golden")
sys.path[1:1] = [os.path.join(ROOMS, room) for room in ("golden", "record")]
import gguf
import make_gguf
import record_llamacpp as recorder

TYPES = {"f32": [], "f16": ["--accumulate", "f16"], "bf16": ["--accumulate", "bf16"]}
QUANTISED = ["q8_0", "q4_0", "q4_1", "q5_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs"]
TEXTS = ["In the beginning", "\n\n  1234 'LL <|im_start|>user\nx<|im_end|>", "nai\u0308ve \u4e2d\u6587 \U0001f600 e\u0301",
         "<think>\n\n</think>\t\r\n", " def f(x):\n    return x['a'] ** 2  # \u00e9\n"]


def run(*command, status=0, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == status, (command, done.returncode, done.stdout[-3000:], done.stderr)
    return done.stdout


def tokenizer_of(path, template=None):
    """What a converter writes of a tokenizer.json: tokens that no id has are padding."""
    j = json.load(open(path))
    vocab, added = j["model"]["vocab"], {token["id"]: token for token in j["added_tokens"]}
    size = max([*vocab.values(), *added]) + 10
    tokens, types = [f"[PAD{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    for token, i in vocab.items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for i, token in added.items():
        tokens[i] = token["content"]
        types[i] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in j["model"]["merges"]]

    def write(g, count=None):
        g.add_tokenizer_model("gpt2")
        g.add_tokenizer_pre("qwen2")
        g.add_token_list(tokens[:count])
        g.add_token_types(types[:count])
        g.add_token_merges(merges)
        g.add_add_bos_token(False)
        if template is not None:
            g.add_chat_template(template)
    return write


def test_tiny(command, work):
    """The folder's model, in the type that holds its weights: the same bytes come out."""
    folder = os.path.join(GOLDEN, "tiny")
    config = json.load(open(os.path.join(folder, "config.json")))
    weights = recorder.read_weights(os.path.join(folder, "model.safetensors"))
    tokenizer = tokenizer_of(os.path.join(folder, "tokenizer.json"), open(os.path.join(folder, "chat_template.jinja")).read())

    def more(g):
        tokenizer(g, config["vocab_size"])
        g.add_eos_token_id(2002)

    # Ids behind the tokenizer's are padding to vocab_size.
    for kind in ("f32", "bf16"):
        path = os.path.join(work, f"tiny-{kind}.gguf")
        recorder.write_gguf(path, config, weights, kind, lambda g: pad_tokens(g, more, config["vocab_size"]))
        dumps = []
        for model in (folder, path):
            dumps.append(os.path.join(work, "dump.safetensors"))
            run(command, "dump", model, "--prompt", TEXTS[0], "--dtype", "float32", "-o", dumps[-1])
            dumps[-1] = open(dumps[-1], "rb").read()
        assert dumps[0] == dumps[1], kind
    chat = [command, "generate", "", "--user", "Hello", "-n", "12", "--dtype", "float32", "--ids"]
    assert run(*chat[:2], folder, *chat[3:]) == run(*chat[:2], path, *chat[3:])
    text = os.path.join(work, "text")
    open(text, "w", encoding="utf-8").write("".join(TEXTS))
    assert run(command, "score", folder, text, "--dtype", "float32") == run(command, "score", path, text)
    compare_ids(command, folder, path)
    # the same in parts, whichever is named
    parts = os.path.join(work, "parts")
    os.mkdir(parts)
    recorder.write_gguf(os.path.join(parts, "p.gguf"), config, weights, "bf16",
                        lambda g: pad_tokens(g, more, config["vocab_size"]), split_max_tensors=40)
    names = sorted(os.listdir(parts))
    assert len(names) > 1, names
    for name in names:
        out = os.path.join(work, "dump.safetensors")
        run(command, "dump", os.path.join(parts, name), "--prompt", TEXTS[0], "-o", out)
        assert open(out, "rb").read() == dumps[0], name


def pad_tokens(g, more, size):
    """As many tokens as the embedding has rows."""
    class Writer:
        def __getattr__(self, name):
            return getattr(g, name)

        def add_token_list(self, tokens):
            g.add_token_list(tokens + [f"[MORE{i}]" for i in range(size - len(tokens))])

        def add_token_types(self, types):
            g.add_token_types(types + [gguf.TokenType.UNUSED] * (size - len(types)))
    more(Writer())


def compare_ids(command, folder, path):
    lines = "".join(json.dumps(text) + "\n" for text in TEXTS)
    want = run(command, "tokenize", folder, "--jsonl", text=lines)
    assert run(command, "tokenize", path, "--jsonl", text=lines) == want
    assert run(command, "tokenize", path, "--decode", text=want) == run(command, "tokenize", folder, "--decode", text=want)


def test_official(command, work, tokenizer):
    """Without weights: only what tokenize needs."""
    path, folder = os.path.join(work, "official.gguf"), os.path.join(work, "official")
    os.mkdir(folder)
    shutil.copy(tokenizer, os.path.join(folder, "tokenizer.json"))
    g = gguf.GGUFWriter(path, "qwen3moe")
    tokenizer_of(tokenizer)(g)
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()
    compare_ids(command, folder, path)


def record(path, out, *more, ids=make_gguf.IDS):
    run(sys.executable, os.path.join(ROOMS, "record", "record_llamacpp.py"), path, out, "--tokens",
        ",".join(map(str, ids)), *more)


def check(command, model, taps, *options, status=0):
    return run(command, "check", model, taps, *options, status=status)


def test_types(command, work):
    """Each type, llama.cpp against the very file; returns the files' paths."""
    paths = {}
    weights = make_gguf.weights_by_rule(make_gguf.CONFIG)
    for kind in [*TYPES, *QUANTISED]:
        paths[kind] = os.path.join(work, f"{kind}.gguf")
        if kind in TYPES:
            recorder.write_gguf(paths[kind], make_gguf.CONFIG, weights, kind)
        else:
            make_gguf.quantize(paths["f32"], paths[kind], kind)
        taps = paths[kind].replace(".gguf", ".safetensors")
        record(paths[kind], taps)
        check(command, paths[kind], taps, *TYPES.get(kind, ["--accumulate", "q8"]))
    # llama.cpp's own defaults of cache and attention
    record(paths["q4_k_m"], taps, "--kv", "f16", "--flash", "auto")
    check(command, paths["q4_k_m"], taps, "--accumulate", "q8", "--kv", "float16")
    return paths


def test_rope(command, work):
    """What rope.scaling means, and a model whose head is its embedding."""
    weights = make_gguf.weights_by_rule(make_gguf.CONFIG)
    kinds = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
    for kind in kinds:
        def more(g):
            g.add_tokenizer_model("no_vocab")
            g.add_rope_scaling_type(kinds[kind])
            g.add_rope_scaling_factor(4.0)
            if kind == "yarn":
                g.add_rope_scaling_orig_ctx_len(1024)
        path, taps = os.path.join(work, f"{kind}.gguf"), os.path.join(work, f"{kind}.safetensors")
        recorder.write_gguf(path, make_gguf.CONFIG, weights, "f32", more)
        record(path, taps, "--start", "3000")
        check(command, path, taps)
    config = dict(make_gguf.CONFIG, tie_word_embeddings=True)
    path, taps = os.path.join(work, "tied.gguf"), os.path.join(work, "tied.safetensors")
    recorder.write_gguf(path, config, weights, "f32")
    record(path, taps)
    check(command, path, taps)


def tamper(path, wrong, change):
    """A copy with change(tensors by name), each the bytes of its blocks."""
    data = bytearray(open(path, "rb").read())
    reader = gguf.GGUFReader(path)
    places = {t.name: (t.data_offset, t.n_bytes, t.tensor_type) for t in reader.tensors}
    blocks = {name: data[at:at + n] for name, (at, n, _) in places.items()}
    change(blocks)
    for name, (at, n, _) in places.items():
        assert len(blocks[name]) == n
        data[at:at + n] = blocks[name]
    open(wrong, "wb").write(data)


def swap(a, b):
    def change(t):
        t[a], t[b] = t[b], t[a]
    return change


def shift_scales(name, block):
    """Each block has the scale of the next: its first two bytes (Q8_0)."""
    def change(t):
        old = bytes(t[name])
        for at in range(0, len(old), block):
            after = (at + block) % len(old)
            t[name][at:at + 2] = old[after:after + 2]
    return change


def permute_rows(name, row, hd):
    """As a Llama model's q is permuted for the other kind of RoPE: rows i and i + hd/2 side by side."""
    def change(t):
        old, head = bytes(t[name]), row * hd
        for start in range(0, len(old), head):
            for i in range(hd):
                source = start + (i % 2 * hd // 2 + i // 2) * row
                t[name][start + i * row:start + (i + 1) * row] = old[source:source + row]
    return change


def test_planted(command, work, paths):
    """Quantised activations are declared, and hide none of these."""
    c, bytes_of = make_gguf.CONFIG, {"q8_0": 34}
    row = c["hidden_size"] // 32 * bytes_of["q8_0"]
    planted = {
        "swapped gate and up": (swap("blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"),
                                "model.layers.1.mlp.experts.gate_proj.output"),
        "scales off by a block": (shift_scales("blk.0.attn_q.weight", bytes_of["q8_0"]), "model.layers.0.self_attn.q_proj.output"),
        "permuted rows": (permute_rows("blk.1.attn_k.weight", row, c["head_dim"]), "model.layers.1.self_attn.k_proj.output"),
        "experts in another order": (lambda t: t["blk.0.ffn_down_exps.weight"].extend(
            [t["blk.0.ffn_down_exps.weight"].pop(0) for _ in range(len(t["blk.0.ffn_down_exps.weight"]) // c["num_experts"])]),
            "model.layers.0.mlp.experts.down_proj.output"),
        "a norm's neighbour": (swap("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"), "model.layers.0.input_layernorm.output")}
    wrong, taps = os.path.join(work, "wrong.gguf"), os.path.join(work, "wrong.safetensors")
    for name, (change, tap) in planted.items():
        tamper(paths["q8_0"], wrong, change)
        record(wrong, taps)
        said = check(command, paths["q8_0"], taps, "--accumulate", "q8", status=1)
        assert re.search(f"^differs: {re.escape(tap)}$", said, re.M), (name, said[-2000:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--tokenizer")
    options = parser.parse_args()
    command = os.path.abspath(options.command)
    with tempfile.TemporaryDirectory() as work:
        test_tiny(command, work)
        if options.tokenizer:
            test_official(command, work, options.tokenizer)
        paths = test_types(command, work)
        test_rope(command, work)
        test_planted(command, work, paths)
    print(f"gguf: golden/tiny the same in {2 + 1} files; llama.cpp agrees with its own files in {len(paths)} types; "
          "5 planted mistakes found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
