#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""MODEL.md section 11's tables of config keys and defaults, against the transformers that is installed
and against this program:

    scripts/ci/check_config.py COMMAND

For each key: left out and stated with the default of the table give the same configuration, in Hugging
Face's class and in what `COMMAND info --json` says; another value gives another. What a RoPE key's default
does is read off Hugging Face's inverse frequencies. Then where rope_theta may stand. Needs transformers
(4.57.6 or 5.17.0) and torch. Exit status: 0 all is well, 1 something is not."""
import inspect
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
import transformers
from transformers import Qwen3Config, Qwen3MoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeAttention, Qwen3MoeRotaryEmbedding

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = pathlib.Path(sys.argv[1]).resolve()
VERSION = int(transformers.__version__.split(".")[0])
KINDS = {"qwen3_moe": (Qwen3MoeConfig, Qwen3MoeAttention, Qwen3MoeRotaryEmbedding),
         "qwen3": (Qwen3Config, Qwen3Attention, Qwen3RotaryEmbedding)}
WORDS = {"required", "none", "the weights'", "section 5's", "max_position_embeddings",
         "hidden_size / num_attention_heads"}
transformers.logging.set_verbosity_error()
failures, checked = [], 0


def expect(what, good, found=""):
    global checked
    checked += 1
    if not good:
        failures.append(what)
        print(f"FAILED  {what} {found}")


def rows(first):
    """The table of MODEL.md that begins with this header: its rows, cell by cell."""
    text = (ROOT / "MODEL.md").read_text()
    lines = text[text.index(first):].splitlines()[2:]
    table = []
    for line in lines:
        if not line.startswith("|"):
            return table
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def literal(cell):
    """A cell's default; None if it is a word."""
    if cell in WORDS or cell == "":
        return None
    return (json.loads(cell),)


def other(value):
    """Another value that the key may have."""
    if isinstance(value, bool):
        return not value
    if value is None:
        return 5
    if isinstance(value, list):
        return [0]
    return 5e5 if value == 10000.0 else value / 2 if isinstance(value, float) else value * 2


def ours(keys, good=True):
    """What the command makes of a config.json: the configuration, or None where it is refused."""
    with tempfile.TemporaryDirectory() as name:
        (pathlib.Path(name) / "config.json").write_text(json.dumps(keys))
        done = subprocess.run([COMMAND, "info", name, "--json"], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        expect(f"one line for {keys}", done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr)
        return None


def theirs(kind, keys):
    keys = {key: value for key, value in keys.items() if key != "model_type"}
    return json.dumps(KINDS[kind][0](**json.loads(json.dumps(keys))).to_dict(), sort_keys=True, default=str)


FIXED = {"hidden_act": "gelu", "partial_rotary_factor": 0.5}  # keys of one value, and another


def check_key(kind, key, cell):
    base = {"model_type": kind}
    windowed = {**base, "use_sliding_window": True} if key == "sliding_window" else base
    default = literal(cell)
    if default is None:
        return
    value = default[0]
    changed = {key: value // 2 if key == "num_key_value_heads" else other(value)}
    what = f"{kind}: {key} {json.dumps(value)}"
    if key in ("rope_scaling", "rope_parameters"):
        changed = {key: {"rope_type": "linear", "factor": 2.0}}
    if not (key == "rope_parameters" and VERSION < 5) and key != "partial_rotary_factor":
        expect(f"{what} is transformers' default", theirs(kind, windowed) == theirs(kind, {**windowed, key: value}))
        expect(f"{what}: transformers knows the key",
               theirs(kind, {**windowed, **changed}) != theirs(kind, windowed))
    if ours(base) is None:
        sys.exit(f"{COMMAND} refuses {base}")
    here = windowed if kind == "qwen3_moe" else base
    expect(f"{what} is the command's default", ours(here) == ours({**here, key: value}))
    if key in FIXED or (kind, key) == ("qwen3", "use_sliding_window"):
        expect(f"{what}: no other", ours({**base, key: FIXED.get(key, True)}) is None)
    elif key != "pad_token_id" and (kind, key) != ("qwen3", "sliding_window"):
        # The one shows in the module tree alone, the other needs a window.
        expect(f"{what}: the command knows the key", ours({**here, **changed}) not in (None, ours(here)))


def check_rest(kind):
    """What the table says in words."""
    base = {"model_type": kind}
    config, attention, _ = KINDS[kind]
    expect("model_type is required", ours({}) is None)
    keys = {**base, "hidden_size": 100, "num_attention_heads": 6, "num_key_value_heads": 2}
    head = 128 if kind == "qwen3" else 16
    with torch.device("meta"):
        made = attention(config(**{k: v for k, v in keys.items() if k != "model_type"}), 0)
    expect(f"{kind}: head_dim in transformers", made.head_dim == head, made.head_dim)
    expect(f"{kind}: head_dim in the command", f'"head_dim":{head},' in (ours(keys) or ""))
    for key, value in (("head_dim", None), ("head_dim", 0), ("head_dim", 3), ("num_key_value_heads", None),
                       ("quantization_config", None), ("num_hidden_layers", 65536)):
        expect(f"{kind}: {key} {value} is refused", ours({**base, key: value}) is None)
    if kind == "qwen3_moe":
        expect("num_local_experts", ours({**base, "num_local_experts": 16}) == ours({**base, "num_experts": 16}))


# What each type needs, and another value of each key.
NEEDS = {"linear": {"factor": 4.0}, "dynamic": {"factor": 4.0}, "yarn": {"factor": 4.0},
         "llama3": {"factor": 4.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0}}
OTHER = {"factor": 2.0, "original_max_position_embeddings": 256, "beta_fast": 20.0, "beta_slow": 2.0,
         "mscale": 2.0, "mscale_all_dim": 0.5, "attention_factor": 0.5, "truncate": False,
         "low_freq_factor": 2.0, "high_freq_factor": 8.0}
SHAPE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}


def frequencies(kind, keys, length=10000):
    """Hugging Face's inverse frequencies, as text; None where it raises."""
    try:
        config = KINDS[kind][0](**{**SHAPE, **json.loads(json.dumps(keys))})
        rope = keys.get("rope_scaling") or keys.get("rope_parameters") or {}
        name = rope.get("rope_type", rope.get("type", "default"))
        if name == "default":
            return str(KINDS[kind][2](config).inv_freq.tolist())
        function = ROPE_INIT_FUNCTIONS[name]
        extra = {"seq_len": length} if "seq_len" in inspect.signature(function).parameters else {}
        inv_freq, scaling = function(config, device="cpu", **extra)
        return str((inv_freq.tolist(), scaling))
    except Exception:
        return None


def check_rope_key(kind, key, cell, types):
    default = literal(cell)
    if cell == "max_position_embeddings":
        default = (SHAPE["max_position_embeddings"],)
    for rope in types.split(", ") if types else []:
        full = {**NEEDS[rope], "rope_type": rope}
        partner = {"mscale": {"mscale_all_dim": 0.7}, "mscale_all_dim": {"mscale": 0.7}}.get(key, {})
        without = {k: v for k, v in {**full, **partner}.items() if k != key}
        base, what = {"model_type": kind, **SHAPE}, f"{kind}, {rope}: {key}"

        def both(scaling):
            return (frequencies(kind, {"rope_scaling": scaling}), ours({**base, "rope_scaling": scaling}))

        hf, us = both(without)
        if cell == "required":
            expect(f"{what} is required", us is None and hf is None, (hf, us))
            continue
        expect(f"{what} may be absent", us is not None and hf is not None)
        hf_other, us_other = both({**without, key: OTHER[key]})
        expect(f"{what} changes something in transformers", hf_other != hf)
        expect(f"{what} changes something in the command", us_other not in (None, us))
        if default is not None:
            hf_same, us_same = both({**without, key: default[0]})
            expect(f"{what} {default[0]} is transformers' default", hf_same == hf)
            expect(f"{what} {default[0]} is the command's default", us_same == us)


def check_notes(kind):
    """null and 0 of YaRN's numbers mean the default; truncate's null does not."""
    base = {"model_type": kind, **SHAPE}
    yarn = {"rope_type": "yarn", **NEEDS["yarn"]}
    for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        for value in (None, 0):
            scaling = {**yarn, key: value}
            expect(f"{kind}: {key} {value} in transformers",
                   frequencies(kind, {"rope_scaling": scaling}) == frequencies(kind, {"rope_scaling": yarn}))
            expect(f"{kind}: {key} {value} in the command",
                   ours({**base, "rope_scaling": scaling}) == ours({**base, "rope_scaling": yarn}))
    expect("attention_factor null", ours({**base, "rope_scaling": {**yarn, "attention_factor": None}}) ==
           ours({**base, "rope_scaling": yarn}))
    expect("truncate null is refused", ours({**base, "rope_scaling": {**yarn, "truncate": None}}) is None)
    expect("rope_scaling needs its type", ours({**base, "rope_scaling": {"factor": 2.0}}) is None)
    expect("llama3 needs its length", ours({**base, "rope_scaling": {
        **NEEDS["llama3"], "rope_type": "llama3", "original_max_position_embeddings": None}}) is None)


def theta_of(kind, keys):
    """Which theta Hugging Face computes with: that of the plain spelling with the same frequencies."""
    found = frequencies(kind, keys)
    rope = {k: v for k, v in (keys.get("rope_scaling") or keys.get("rope_parameters")).items()
            if k != "rope_theta"}
    key = "rope_scaling" if "rope_scaling" in keys else "rope_parameters"
    for theta in (10000.0, 5e5, 2e5):
        plain = {key: {**rope, "rope_theta": theta}} if VERSION >= 5 else {"rope_scaling": rope, "rope_theta": theta}
        if frequencies(kind, plain) == found:
            return theta
    return None


def check_theta(kind):
    base, linear = {"model_type": kind, **SHAPE}, {"rope_type": "linear", "factor": 2.0}

    def ours_theta(keys):
        said = ours({**base, **keys})
        return said and float(re.search(r'"rope_theta":([0-9.e+]+)', said)[1])

    # Where it stands, what 4.x and 5.x take (None: no such spelling), what this does (None: refused).
    places = (
        ({"rope_scaling": linear, "rope_theta": 5e5}, 5e5, 5e5, 5e5),
        ({"rope_parameters": linear, "rope_theta": 5e5}, None, 5e5, None),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}, None, 5e5, 5e5),
        ({"rope_parameters": linear, "rope_scaling": linear, "rope_theta": 5e5}, None, None, 5e5),
        ({"rope_parameters": {**linear, "rope_theta": 5e5}}, None, 5e5, 5e5),
        ({"rope_parameters": {**linear, "rope_theta": 5e5}, "rope_theta": 2e5}, None, 5e5, None),
        ({"rope_scaling": {**linear, "rope_theta": 5e5}}, 10000.0, 5e5, None),
        ({"rope_scaling": {**linear, "rope_theta": 10000.0}}, 10000.0, 10000.0, 10000.0),
        ({"rope_scaling": {**linear, "rope_theta": 5e5}, "rope_theta": 2e5}, 2e5, 5e5, None),
        ({"rope_scaling": {**linear, "rope_theta": 5e5}, "rope_theta": 5e5}, 5e5, 5e5, 5e5),
        ({"rope_scaling": linear}, 10000.0, 10000.0, 10000.0))
    for keys, four, five, here in places:
        wanted = five if VERSION >= 5 else four
        if wanted is not None:
            expect(f"{kind}: theta of {keys} in transformers", theta_of(kind, keys) == wanted, theta_of(kind, keys))
        expect(f"{kind}: theta of {keys} in the command", ours_theta(keys) == here, ours_theta(keys))


def main():
    keys, rope_keys = rows('| key | "qwen3_moe" |'), rows("| key | default | types |")
    for row in keys:
        for kind, cell in (("qwen3_moe", row[1]), ("qwen3", row[2])):
            for key in re.findall(r"`(\w+)`", row[0]):
                check_key(kind, key, cell)
    for kind in KINDS:
        check_rest(kind)
        for row in rope_keys:
            check_rope_key(kind, row[0].strip("`"), row[1], row[2])
        check_notes(kind)
        check_theta(kind)
    # No key that the command reads is missing in the tables.
    source = (ROOT / "host/config.c").read_text()
    reader = source[:source.index("/* ==== The configuration as a line of JSON")]
    named = set(re.findall(r"`(\w+)`", "".join("".join(row) for row in keys + rope_keys)))
    read = set(re.findall(r'"([a-z]+(?:_[a-z0-9]+)*)"', reader)) - {"rope_type", "type"}
    listed = set(re.findall(r"`(\w+)`", (ROOT / "MODEL.md").read_text()))
    values = {"default", "linear", "dynamic", "yarn", "llama3", "silu", "fp8", "e4m3", "float", "lm_head",
              "true", "false", "qwen3", "qwen3_moe", "full_attention", "integers", "file"}
    expect("every key that host/config.c reads is told", not (read - listed - values), sorted(read - listed - values))
    print(f"{len(keys)} keys and {len(rope_keys)} of RoPE ({len(named)} names), {checked} comparisons, "
          f"transformers {transformers.__version__}: {len(failures)} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
