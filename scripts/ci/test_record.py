# SPDX-License-Identifier: MIT
"""Tests of the recorders of PyTorch models, of llama.cpp and of vLLM against hf_taps.py, which computes taps its own way.

  python3 scripts/ci/test_record.py [--llamacpp PYTHON] [--vllm PYTHON]     under transformers 5.17.0 or 4.57.6

The Pythons are those of environments with these packages; --vllm-only runs vLLM's tests alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch

ROOMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path[1:1] = [os.path.join(ROOMS, room) for room in ("golden", "record", "detect")]
import hf_taps
import make_golden
import record_hf
import taps
import wild

CASES = ["base", "window", "no-experts", "sparse-step", "rope-yarn", "tiny", "tiny-sparse"]
SQUARE = (".scores.output", ".probs.output")


def recorded(model, folder, ids, start, **more):
    path = os.path.join(folder, "recorded.safetensors")
    record_hf.record_unchanged(model, path, ids, start, **more)
    return hf_taps.read_tensors(path)


def masked(name, value, want):
    return torch.where(want == 0, 0, value) if name.endswith("scores.output") else value


def farthest(found, want):
    """The largest relative L2 distance, and where."""
    worst = 0.0, "nothing"
    for name, value in found.items():
        assert value.shape == want[name].shape, (name, value.shape, want[name].shape)
        a, b = masked(name, value, want[name]).double(), want[name].double()
        worst = max(worst, (float((a - b).norm() / (b.norm() + 1e-30)), name))
    return worst


def test_case(case, folder):
    config, ids, start = make_golden.write_model(folder, case)
    line = taps.config_line(config)
    for dtype in hf_taps.DTYPES:
        model = hf_taps.load_folder(folder, hf_taps.DTYPES[dtype])
        want = hf_taps.run(model, config, ids, start)
        found, metadata = recorded(model, folder, ids, start)
        assert metadata["config"] == line and metadata["dtype"] == dtype, metadata
        assert metadata["start"] == str(start)
        assert set(found) == set(want), set(found) ^ set(want)
        for name in want:
            value = masked(name, found[name], want[name])
            assert torch.equal(value, want[name].to(value.dtype)), (case, dtype, name)
    for chunk in (1, 3):
        model = hf_taps.load_folder(folder, torch.float32)
        want = hf_taps.run(model, config, ids, start)
        if case == "window":  # the cache forgets keys: these have no column for each
            want = {name: value for name, value in want.items() if not name.endswith(SQUARE)}
        found, _ = recorded(model, folder, ids, start, chunk=chunk)
        distance, name = farthest(found, want)
        assert set(found) == set(want) and distance < 1e-5, (case, chunk, distance, name)


def test_experts(folder):
    """Slots of the packed implementations: in float32 each step must be eager's."""
    config, ids, start = make_golden.write_model(folder, "tiny")
    want = hf_taps.run(hf_taps.load_folder(folder, torch.float32), config, ids, start)
    for experts in ("grouped_mm", "batched_mm") if hf_taps.V5 else ():
        model = record_hf.load(argparse.Namespace(model=folder, dtype="float32", attn="sdpa", experts=experts,
                                                  device="cpu"))
        found, _ = recorded(model, folder, ids, start)
        distance, name = farthest(found, want)
        missing = {name.rpartition(".self_attn.")[2] for name in set(want) - set(found)}
        assert distance < 1e-5 and missing == {"scores.output", "probs.output"}, (experts, distance, name, missing)


def test_configs():
    for case, (config, *_) in make_golden.CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "config.json"), "w") as f:
                json.dump(config if hf_taps.V5 else taps.to_4x(config), f)
            read = hf_taps.transformers.AutoConfig.from_pretrained(folder).to_dict()
        assert taps.config_line(read) == taps.config_line(config), case


class Part(torch.nn.Module):
    """Somebody's own: no batch axis, one layer, an mlp without parts, and no config."""

    def __init__(self):
        super().__init__()
        layer = torch.nn.Module()
        layer.input_layernorm, layer.mlp = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)
        layer.forward = lambda x: layer.mlp(layer.input_layernorm(x)).add_(x)  # what was recorded is overwritten
        self.layers = torch.nn.ModuleList([layer])

    def forward(self, x):
        return self.layers[0](x)


def test_part(folder):
    path, model = os.path.join(folder, "part.safetensors"), Part()
    with torch.no_grad(), record_hf.record(model, path):
        y = [model(torch.randn(n, 4)) for n in (3, 2)]
    found, metadata = hf_taps.read_tensors(path)
    p = "model.layers.0."
    assert set(found) == {p + "input_layernorm.output", p + "mlp.output", p + "output"}, set(found)
    assert torch.equal(found[p + "output"], torch.cat(y)) and "config" not in metadata
    mlp = model.layers[0].mlp(found[p + "input_layernorm.output"])
    assert torch.allclose(found[p + "mlp.output"], mlp), "mlp.output"


class Norm(torch.nn.Module):
    """(output, residual), both in place, where it is given a residual."""

    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x, residual=None):
        total = x if residual is None else residual.add_(x)
        y = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return y if residual is None else (x.copy_(y), residual)


class Turn(torch.nn.Module):
    """One for all layers, which turns q and k in place."""

    def forward(self, positions, q, k):
        angle = positions[:, None].float()
        for x in (q, k):
            a, b = x.clone().chunk(2, -1)
            x.copy_(torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1))
        return q, k


class OwnLayer(torch.nn.Module):
    def __init__(self, turn, truth, i):
        super().__init__()
        self.before, self.fused, self.turn = Norm(8), torch.nn.Linear(8, 16), turn
        self.out, self.between, self.ffn = torch.nn.Linear(8, 8), Norm(8), torch.nn.Linear(8, 8)
        self.tell = lambda tap, value: truth.setdefault(f"model.layers.{i}.{tap}", []).append(value.clone())
        self.last = lambda value: truth.setdefault(f"model.layers.{i - 1}.output", []).append(value.clone())

    def forward(self, positions, x, residual):
        if residual is None:
            residual, x = x.clone(), self.before(x)
        else:
            x, residual = self.before(x, residual)
            self.last(residual)
        self.tell("input_layernorm.output", x)
        qkv = self.fused(x)
        self.tell("self_attn.qkv_proj.output", qkv)
        q, k, v = qkv.split([8, 4, 4], dim=-1)
        q, k = self.turn(positions, q.contiguous(), k.contiguous())
        self.tell("self_attn.q_rope.output", q)
        self.tell("self_attn.k_rope.output", k)
        attended = q * torch.cat((k, v), -1)
        self.tell("self_attn.o_proj.input", attended)
        x = self.out(attended)
        self.tell("self_attn.o_proj.output", x)
        x, residual = self.between(x, residual)
        self.tell("post_attention_layernorm.input", residual)
        self.tell("post_attention_layernorm.output", x)
        x = self.ffn(x)
        self.tell("mlp.output", x)
        return x, residual


class Own(torch.nn.Module):
    """Somebody's model with names of its own, which keeps the residual apart, and gives the logits of some tokens."""

    NAMES = {"wte": "model.embed_tokens", "h.#": "model.layers.#", "h.#.before": "model.layers.#.input_layernorm",
             "h.{i}.fused": "model.layers.{i}.self_attn.qkv_proj", "h.#.turn": "model.layers.#.self_attn.rotary_emb",
             "h.#.out": "model.layers.#.self_attn.o_proj", "h.#.between": "model.layers.#.post_attention_layernorm",
             "h.#.ffn": "model.layers.#.mlp.output", "last": "model.norm", "head": "lm_head"}

    def __init__(self):
        super().__init__()
        self.truth, turn = {}, Turn()
        self.wte, self.last, self.head = torch.nn.Embedding(16, 8), Norm(8), torch.nn.Linear(8, 16)
        self.h = torch.nn.ModuleList(OwnLayer(turn, self.truth, i) for i in range(3))

    def forward(self, tokens, positions, logits_of):
        tell = lambda tap, value: self.truth.setdefault(tap, []).append(value.clone())
        tell("input_ids", tokens)
        tell("position_ids", positions)
        x, residual = self.wte(tokens), None
        tell("model.embed_tokens.output", x)
        for layer in self.h:
            x, residual = layer(positions, x, residual)
        x, residual = self.last(x, residual)
        tell("model.layers.2.output", residual)
        tell("model.norm.output", x)
        y = self.head(x[logits_of])
        tell("lm_head.output", y)
        tell("logit_positions", positions[logits_of])
        return y


def by_function(own):
    """Own.NAMES as a function."""
    own = own.replace(".turn", ".self_attn.rotary_emb").replace(".ffn", ".mlp")
    for theirs, ours in (("h.", "model.layers."), ("wte", "model.embed_tokens"), ("before", "input_layernorm"),
                         ("fused", "self_attn.qkv_proj"), ("out", "self_attn.o_proj"), ("last", "model.norm"),
                         ("between", "post_attention_layernorm"), ("head", "lm_head")):
        own = own.replace(theirs, ours)
    return own or None


def test_names(folder):
    """Own names, (output, residual), qkv_proj, positions, one rotary module, the final norm, rows of logits."""
    path = os.path.join(folder, "own.safetensors")
    for names in (Own.NAMES, by_function):
        model = Own()
        with torch.no_grad(), record_hf.record(model, path, names=names):
            model(tokens=torch.tensor([3, 1, 4]), positions=torch.tensor([5, 6, 7]), logits_of=[0, 2])
            model(tokens=torch.tensor([1, 5]), positions=torch.tensor([8, 9]), logits_of=[1])
        found, metadata = hf_taps.read_tensors(path)
        assert set(found) == set(model.truth), set(found) ^ set(model.truth)
        for tap, parts in model.truth.items():
            assert torch.equal(found[tap].reshape(-1), torch.cat(parts).reshape(-1)), tap
        assert found["logit_positions"].tolist() == [5, 7, 9] and metadata["start"] == "5", metadata
    some, model = {own: name for own, name in Own.NAMES.items() if own not in ("last", "h.#.turn")}, Own()
    with torch.no_grad(), record_hf.record(model, path, names=some):
        model(tokens=torch.tensor([3, 1, 4]), positions=torch.tensor([5, 6, 7]), logits_of=[0, 1, 2])
    found, _ = hf_taps.read_tensors(path)
    assert found["position_ids"].tolist() == [5, 6, 7], "the model's own argument"
    assert "model.layers.2.output" not in found and "model.layers.1.output" in found, "no norm behind it shows the sum"


def test_no_names(folder):
    """Where nothing fits, or a pattern does not, the error lists the names, with the nearest known."""
    path, model = os.path.join(folder, "none.safetensors"), Own()
    wrong = {"nothing": (None, ["found no module with a known name", "\n  h.#.before\n", "\n  h.#.fused"]),
             "typing": ({**Own.NAMES, "h.#.befor": "model.layers.#.input_layernorm"},
                        ["found no module for 'h.#.befor'", "\n  wte"])}
    for names, words in wrong.values():
        try:
            with record_hf.record(model, path, names=names):
                raise AssertionError(f"{names}: not refused")
        except record_hf.RecordError as problem:
            assert all(word in str(problem) for word in words), problem
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    far = torch.nn.ModuleDict({"layer": torch.nn.ModuleDict({"self_attn_k_norm": torch.nn.Linear(2, 2)})})
    for i in range(60):
        far[f"m{i}"] = torch.nn.Linear(1, 1)
    try:
        with record_hf.record(far, path):
            raise AssertionError("not refused")
    except record_hf.RecordError as problem:
        assert "(like model.layers.#.self_attn.k_norm)" in str(problem), problem
        assert str(problem).count("\n") == 49 and str(problem).endswith("and 14 more"), problem


class Tables(torch.nn.Module):
    """cos and sin from one module that every layer calls, each time with other values."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, position_ids):
        self.calls += 1
        return position_ids[:, None] * torch.full((1, 4), 0.25 / self.calls), torch.full((len(x), 4), 0.5 / self.calls)


class Shared(torch.nn.Module):
    """One table module; norms that are given one tensor, and a router whose block has no list of experts."""

    def __init__(self):
        super().__init__()
        tables = Tables()
        self.layers = torch.nn.ModuleList()
        for _ in range(2):
            layer = torch.nn.Module()
            layer.rotary_emb, layer.post_attention_layernorm = tables, Norm(4)
            layer.mlp = torch.nn.Module()
            layer.mlp.gate = torch.nn.Linear(4, 3)
            self.layers.append(layer)
        self.norm = Norm(4)

    def forward(self, x, position_ids):
        for layer in self.layers:
            layer.rotary_emb(x, position_ids)
            layer.mlp.gate(layer.post_attention_layernorm(x))
        return self.norm(x)


def test_shared(folder):
    path, model, x = os.path.join(folder, "shared.safetensors"), Shared(), torch.rand(3, 4) + 1
    with torch.no_grad(), record_hf.record(model, path):
        y = model(x, position_ids=torch.arange(3))
    found, _ = hf_taps.read_tensors(path)
    assert torch.equal(found["model.rotary_emb.cos"], torch.arange(3)[:, None] * torch.full((1, 4), 0.25))
    assert torch.equal(found["model.rotary_emb.sin"], torch.full((3, 4), 0.5)), "the first call's"
    assert torch.equal(found["model.norm.output"], y)
    for i, layer in enumerate(model.layers):
        p = f"model.layers.{i}."
        assert torch.equal(found[p + "post_attention_layernorm.input"], x), "one argument: the stream"
        entered = found[p + "post_attention_layernorm.output"]
        assert torch.equal(found[p + "mlp.gate.output"], layer.mlp.gate(entered)), "the router's logits"


def test_past(folder):
    """What was in the cache before the run, and the logits of some tokens."""
    path = os.path.join(folder, "past.safetensors")
    model = hf_taps.load_folder(make_golden.TINY, torch.float32)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9]])
    with torch.no_grad():
        cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
        want = [(layer.keys[0].clone(), layer.values[0].clone()) for layer in cache.layers]
        with record_hf.record(model, path):
            y = model(input_ids=ids[:, 4:], past_key_values=cache, logits_to_keep=2)
    found, metadata = hf_taps.read_tensors(path)
    assert (metadata["past"], metadata["start"]) == ("4", "4"), metadata
    for i, (keys, values) in enumerate(want):
        assert torch.equal(found[f"past_key_values.layers.{i}.keys"], keys)
        assert torch.equal(found[f"past_key_values.layers.{i}.values"], values)
    assert torch.equal(found["lm_head.output"], y.logits[0]) and found["logit_positions"].tolist() == [5, 6]
    cache = hf_taps.transformers.StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        model(input_ids=ids[:, :4], past_key_values=cache)
        with record_hf.record(model, path):
            model(input_ids=ids[:, 4:], past_key_values=cache)
    found, _ = hf_taps.read_tensors(path)
    assert torch.equal(found["past_key_values.layers.0.keys"], want[0][0]), "no room behind the keys"
    with torch.no_grad(), record_hf.record(model, path):
        model(input_ids=ids, position_ids=torch.arange(7)[None] + 2)
    found, metadata = hf_taps.read_tensors(path)
    assert (metadata["past"], metadata["start"]) == ("0", "2") and not any("past" in tap for tap in found), metadata


def test_refusals(folder):
    model = hf_taps.load_folder(make_golden.TINY, torch.float32).model
    ids = torch.ones(1, 3, dtype=torch.int64)
    calls = {"batch": [{"input_ids": ids.expand(2, 3)}],
             "padding": [{"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1]])}],
             "consecutive": [{"input_ids": ids}, {"input_ids": ids}], "no forward call": []}
    path = os.path.join(folder, "refused.safetensors")
    for word, arguments in calls.items():
        try:
            with torch.no_grad(), record_hf.record(model, path):
                for more in arguments:
                    model(**more)
            raise AssertionError(f"{word}: not refused")
        except record_hf.RecordError as problem:
            assert word in str(problem), problem
        assert not os.path.exists(path)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in module.__dict__
    assert not hasattr(sys.modules[type(model).__module__].apply_rotary_pos_emb, "recorded")


def test_command(folder):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "record", "record_hf.py")
    path = os.path.join(folder, "command.safetensors")
    command = [sys.executable, script, make_golden.TINY, path, "--tokens", "3,4,5"]
    for more, count in (["--layers-only"], 5), (["--taps", "*norm.output"], 5 * 4 + 1):
        subprocess.run([*command, *more], check=True)
        names = [name for name in hf_taps.read_tensors(path)[0] if not name.endswith("_ids")]
        assert len(names) == count, names
    os.remove(path)
    for change in (["--tokens", "3,9999"], ["--attn", "none-such"]):
        run = subprocess.run([*command, *change], stderr=subprocess.PIPE, text=True)
        assert run.returncode == 2 and run.stderr.count("\n") == 1 and not os.path.exists(path), run.stderr


def test_llamacpp(python, folder):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "record", "record_llamacpp.py")
    for case in ("base", "tiny-sparse", "wide-router"):
        config, ids, start = make_golden.write_model(folder, case)
        want = hf_taps.run(hf_taps.load_folder(folder, torch.float32), config, ids, start)
        path = os.path.join(folder, "llamacpp.safetensors")
        for more in ([], ["--ubatch", "3", "--threads", "2"], ["--flash", "on"]):
            prompt = ["--tokens", ",".join(map(str, ids)), "--start", str(start)]
            subprocess.run([python, script, folder, path, *prompt, *more], check=True)
            found, metadata = hf_taps.read_tensors(path)
            assert metadata["config"] == taps.config_line(config)
            distance, name = farthest(found, want)
            missing = {name.rpartition(".")[0].rpartition(".")[2] for name in set(want) - set(found)}
            expected = {"act_fn", "rotary_emb"} | ({"scores", "probs"} if "--flash" in more else set())
            bound = 1e-2 if "--flash" in more else 1e-5  # it rounds keys and values to float16
            assert distance < bound and missing == expected, (case, more, distance, name, missing)


VLLM_RUNS = [  # model, tokens, arguments, what comes before the file, whose logits it has
    ("default", 11, [], 0, range(11)),
    ("dense-mixed", 11, ["--chunk", "3"], 0, range(11)),
    ("tied", 40, ["--chunk", "32", "--last-logits", "--generate", "3"], 0, [31, 39, 40, 41]),
    ("default", 40, ["--cached", "36"], 32, [39]),
]
# In the kernels, or of another name.
VLLM_HIDDEN = {"scores.output", "probs.output", "router_probs.output", "act_fn.output", "gate_proj.output",
               "up_proj.output", "down_proj.input", "down_proj.output", "q_proj.output", "k_proj.output", "v_proj.output"}


def fused(want):
    """Hugging Face's taps as vLLM has them: q, k and v, gate and up side by side; heads in one line."""
    result = {tap: value.flatten(1) if tap.endswith("_rope.output") else value for tap, value in want.items()}
    for room, whole, parts in ("self_attn", "qkv_proj", "qkv"), ("mlp", "gate_up_proj", ("gate", "up")):
        for i in range(4):
            taps_ = [f"model.layers.{i}.{room}.{part}_proj.output" for part in parts]
            if taps_[0] in want:
                result[f"model.layers.{i}.{room}.{whole}.output"] = torch.cat([want[tap] for tap in taps_], -1)
    return result


def by_expert(taps_, p):
    """Ids and weights in the order of the ids: vLLM's top-k does not sort."""
    ids, order = taps_[p + "topk_indices.output"].sort(-1)
    return ids, taps_[p + "topk_weights.output"].gather(1, order)


def test_vllm_run(python, folder, model, tokens, more, past, logits_of):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "record", "record_vllm.py")
    path, model_folder = os.path.join(folder, "vllm.safetensors"), os.path.join(folder, "vllm-" + model)
    config = wild.write_model(model_folder, model, "float32")
    ids = wild.ids_by_rule(model, tokens)
    run = subprocess.run([python, script, model_folder, path, "--tokens", ",".join(map(str, ids)), "--dtype",
                          "float32", *more], stderr=subprocess.PIPE, text=True)
    assert run.returncode == 0, run.stderr
    found, metadata = hf_taps.read_tensors(path)
    assert metadata["config"] == taps.config_line(config) and metadata["past"] == metadata["start"] == str(past)
    ids = ids[:past] + found["input_ids"].tolist()
    assert ids[:tokens] == wild.ids_by_rule(model, tokens)
    want = fused(hf_taps.run(hf_taps.load_folder(model_folder, torch.float32), config, ids, 0))
    positions = found.pop("logit_positions", found["position_ids"]).tolist()
    assert positions == list(logits_of), positions
    want["lm_head.output"] = want["lm_head.output"][positions]
    for tap in want:
        want[tap] = want[tap][past:] if tap != "lm_head.output" else want[tap]
    for p in [tap[:-len("topk_indices.output")] for tap in found if tap.endswith("topk_indices.output")]:
        for taps_ in (found, want):
            taps_[p + "topk_indices.output"], taps_[p + "topk_weights.output"] = by_expert(taps_, p)
    distance, name = farthest(found, want)
    missing = {tap for tap in set(want) - set(found) if not any(tap.endswith("." + end) for end in VLLM_HIDDEN)}
    assert distance < 1e-5 and not missing, (model, more, distance, name, missing)


def test_vllm(python, folder):
    for run in VLLM_RUNS:
        test_vllm_run(python, folder, *run)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "record", "record_vllm.py")
    path, model = os.path.join(folder, "vllm.safetensors"), os.path.join(folder, "vllm-default")
    os.remove(path)
    for change, word in (["--tokens", "3,9999"], "9999"), (["--tokens", "3", "--dtype", "float64"], "float64"):
        run = subprocess.run([python, script, model, path, *change], stderr=subprocess.PIPE, text=True)
        assert run.returncode == 2 and word in run.stderr.splitlines()[-1] and not os.path.exists(path), run.stderr
    code = f"""import os, sys; os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"; sys.path.insert(0, {os.path.dirname(script)!r})
from vllm import LLM, SamplingParams; import record_vllm
llm = LLM({model!r}, enforce_eager=True, skip_tokenizer_init=True, dtype="float32", max_model_len=32, kv_cache_memory_bytes=1 << 24)
with record_vllm.record(llm, {path!r}):
    llm.generate([{{"prompt_token_ids": [3, 4]}}] * 2, SamplingParams(max_tokens=1, detokenize=False))"""
    run = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 1 and "expected consecutive ones" in run.stderr, run.stderr  # two requests in one batch
    assert not os.path.exists(path)


def main():
    parser = argparse.ArgumentParser(description="Tests of the recorders.")
    parser.add_argument("--llamacpp", metavar="PYTHON")
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--vllm-only", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.vllm_only:
            test_vllm(options.vllm, folder)
            print("recorders: vLLM's passed")
            return
        for case in CASES:
            test_case(case, folder)
        for test in (test_experts, test_part, test_names, test_no_names, test_shared, test_past, test_refusals,
                     test_command):
            test(folder)
        test_configs()
        if options.llamacpp:
            test_llamacpp(options.llamacpp, folder)
        if options.vllm:
            test_vllm(options.vllm, folder)
    print(f"recorders: all passed with transformers {hf_taps.transformers.__version__}")


if __name__ == "__main__":
    sys.exit(main())
