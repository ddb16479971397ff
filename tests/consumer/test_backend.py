# SPDX-License-Identifier: MIT
"""A backend's test suite that uses scripts/record/qwen3moe_check.py: an example, and the module's test.

  QWEN3MOE=build/qwen3moe PYTHONPATH=scripts/record python3 -m pytest tests/consumer/test_backend.py

In your own suite test_backend is all there is to write; the others show what a wrong backend looks like. Their
files are made here, from Hugging Face's tensors, with the standard library alone.
"""

import json
import os
import struct

import pytest
from qwen3moe_check import Differs, NotJudged, check

COMMAND = os.environ.get("QWEN3MOE", "qwen3moe")
MODEL = "golden/tiny"
BACKEND = "golden/hf/tiny/taps-bfloat16.safetensors"
TAP = "model.layers.2.self_attn.v_proj.output"


def test_backend():
    report = check(MODEL, BACKEND, require=["model.layers.*.output", "lm_head.output"], command=COMMAND)
    assert report.headline.endswith("agrees")
    assert {t["verdict"] for t in report.tensors} == {"exact", "within"}
    assert report.run["dtype"] == "bfloat16"


def rewritten(path, keep=lambda name: True, change=None):
    """BACKEND's tensors that `keep` wants, in a new file; the first element of `change` with another exponent."""
    with open(BACKEND, "rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        data = bytearray(stream.read())
    out, body = {"__metadata__": header.pop("__metadata__")}, bytearray()
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        if name == change:
            data[begin + 1] ^= 0x02
        if keep(name):
            out[name] = {**tensor, "data_offsets": [len(body), len(body) + end - begin]}
            body += data[begin:end]
    text = json.dumps(out).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_wrong_operator_is_named(tmp_path):
    file = rewritten(tmp_path / "wrong.safetensors", change=TAP)
    with pytest.raises(Differs, match="differs: " + TAP) as caught:
        check(MODEL, file, command=COMMAND)
    wrong = [t for t in caught.value.report.tensors if t["verdict"] == "differs"]
    assert wrong[0]["tap"] == TAP  # what was computed from it, in the file, does not fit it any more
    assert wrong[0]["bad"]["at"] == [0, 0]


def test_missing_tap_is_no_agreement(tmp_path):
    file = rewritten(tmp_path / "part.safetensors", keep=lambda name: name != TAP)
    check(MODEL, file, command=COMMAND)
    with pytest.raises(NotJudged, match="v_proj"):
        check(MODEL, file, require="*.v_proj.output", command=COMMAND)


def test_nothing_inside_a_layer_is_no_agreement(tmp_path):
    file = rewritten(tmp_path / "front.safetensors", keep=lambda name: "layers" not in name and "lm_head" not in name)
    with pytest.raises(NotJudged, match="could not judge"):
        check(MODEL, file, command=COMMAND)


def test_bad_input_is_one_line(tmp_path):
    file = tmp_path / "none.safetensors"
    with pytest.raises(NotJudged, match="none.safetensors"):
        check(MODEL, file, command=COMMAND)


def test_options(tmp_path):
    with pytest.raises(NotJudged, match="expected 3"):
        check(MODEL, BACKEND, tokens=[1, 2, 3], command=COMMAND)
    report = check(MODEL, BACKEND, layers="0:1", strict=True, dtype=None, free=False, command=COMMAND)
    assert report.run["end_layer"] == 1 and report.run["strict"] == 1
