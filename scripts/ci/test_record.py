# SPDX-License-Identifier: MIT
"""Tests of record_hf.py, record_llamacpp.py and taps.py against hf_taps.py, which computes taps its own way.

  python3 scripts/ci/test_record.py [--llamacpp PYTHON]     under transformers 5.17.0 or 4.57.6
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch

ROOMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path[1:1] = [os.path.join(ROOMS, room) for room in ("golden", "record")]
import hf_taps
import make_golden
import record_hf
import taps

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
    assert not hasattr(hf_taps.modeling.apply_rotary_pos_emb, "recorded")


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


def main():
    parser = argparse.ArgumentParser(description="Tests of the recorders.")
    parser.add_argument("--llamacpp", metavar="PYTHON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            test_case(case, folder)
        for test in (test_experts, test_part, test_refusals, test_command):
            test(folder)
        test_configs()
        if options.llamacpp:
            test_llamacpp(options.llamacpp, folder)
    print(f"recorders: all passed with transformers {hf_taps.transformers.__version__}")


if __name__ == "__main__":
    sys.exit(main())
