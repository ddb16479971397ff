# SPDX-License-Identifier: MIT
"""What MODEL.md section 13 and tests/judge/formats.schema.json say of the lines of `--json` and of
a dump's metadata is what the command writes, and nothing else:

    scripts/ci/check_formats.py COMMAND [LINES.jsonl ...]

Makes reports of golden/tiny against Hugging Face's taps, as they are and with planted faults, with
every option that a line tells, a diff, and dumps; validates each line, each header's metadata, and
the lines of the other files. Compares keys and types with MODEL.md's tables, and shows that a line
without any of its keys, or with one more, is refused. Needs jsonschema (pip install jsonschema).
Exit status: 0 all is well, 1 something is not.
"""
import hashlib
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

import jsonschema

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "tests/judge/formats.schema.json").read_text())
TAPS = ROOT / "golden/hf/tiny"
MODEL = ROOT / "golden/tiny"
failures = []


def expect(what, good, why=""):
    print(("ok      " if good else "FAILED  ") + what + ("" if good else f": {why}"))
    if not good:
        failures.append(what)


def validator(name=None):
    """Of the whole schema, or of one of its definitions."""
    schema = SCHEMA if name is None else {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{name}"}
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


LINE = validator()


def read_header(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), bytearray(data[8 + size:])


def plant_faults(source, path):
    """A copy with an infinity, a large error, a wrong expert, other shapes, a tensor misnamed."""
    header, body = read_header(source)
    layer = "model.layers.%d."

    def put(name, index, text):
        start = header[name]["data_offsets"][0] + len(text) * index
        body[start:start + len(text)] = text

    put(layer % 2 + "self_attn.k_norm.output", 77, b"\x80\x42")
    put(layer % 3 + "self_attn.o_proj.output", 500, b"\x80\x7f")
    put(layer % 4 + "mlp.topk_indices.output", 21, struct.pack("<i", 13))
    header[layer % 3 + "mlp.gate.output"]["shape"] = [14, 24, 1, 1, 1]
    header[layer % 0 + "input_layernorm.output"]["shape"].insert(0, 1)
    header["nobody's"] = header.pop(layer % 4 + "self_attn.q_proj.output")
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def check_junit(name, xml, lines, status):
    """The XML is well formed, has a test case for each tap, counts them, and fails where check does."""
    suites = ElementTree.parse(xml).getroot()
    values = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    cases, found = suites.findall("testsuite/testcase"), 0
    taps = [value["tap"] for value in values if "tap" in value]
    expect(f"{name}: a test case for each tap", sorted(c.get("name") for c in cases) == sorted(taps))
    for suite in suites:
        for kind, what in ("tests", "testcase"), ("failures", ".//failure"), ("skipped", ".//skipped"):
            number = len(suite.findall(what))
            found += number if kind == "failures" else 0
            expect(f"{name}: JUnit's {kind}", int(suite.get(kind)) == number, suite.get(kind))
    expect(f"{name}: JUnit fails as check does", (found > 0) == (status != 0), f"{found}, status {status}")


def make_lines(command, work):
    """The lines of reports, by what was done."""
    taps, faults = TAPS / "taps-bfloat16.safetensors", work / "faults.safetensors"
    plant_faults(taps, faults)
    model, lines, xml = str(MODEL), work / "lines.jsonl", work / "junit.xml"
    jobs = {
        "agrees": ["check", model, str(taps)],
        "differs": ["check", model, str(faults)],
        "float32": ["check", model, str(TAPS / "taps-float32.safetensors")],
        "options": ["check", model, str(faults), "--free", "--strict", "--accumulate", "tf32",
                    "--kv", "float16", "--router", "float16", "--layers", "0:3"],
        "diff": ["diff", str(taps), str(faults)],
        "sides": ["check", model, str(faults), str(taps), "--require", "*.mlp.*"],
    }
    for name, job in jobs.items():
        run = subprocess.run([command, *job, "--json", str(lines), "--junit", str(xml)],
                             capture_output=True, text=True)
        if run.returncode > 1:
            sys.exit(f"check_formats.py: {name}: {run.stderr.strip()}")
        check_junit(name, xml, lines, run.returncode)
        yield name, lines.read_text(encoding="utf-8").splitlines()


def check_lines(name, lines):
    for number, line in enumerate(lines, 1):
        value = json.loads(line)
        error = next(LINE.iter_errors(value), None)
        if error is not None:
            expect(f"{name}: line {number}", False, f"{error.message[:200]}: {line[:200]}")
            return []
        if "tap" not in value:
            continue
        places = [value["max_at"]] + ([value["bad"]["at"]] if value["bad"] else [])
        if any(len(at) != len(value["shape"]) for at in places):
            expect(f"{name}: line {number}", False, "a place has not as many entries as the shape")
            return []
    expect(f"{name}: {len(lines)} lines", True)
    return [json.loads(line) for line in lines]


def check_strictness(values):
    """Each key is needed, and no other is allowed."""
    run = next(value for value in values if "run" in value)
    bad = next(value for value in values if value.get("bad"))
    parts = ("run", run, run["run"]), ("tensor", bad, bad), ("bad", bad, bad["bad"])
    for what, whole, part in parts:
        for key in list(part):
            kept = part.pop(key)
            expect(f"{what} without {key} is refused", not LINE.is_valid(whole), "it passes")
            part[key] = kept
        part["other"] = 0
        expect(f"{what} with another key is refused", not LINE.is_valid(whole), "it passes")
        del part["other"]


def check_seen(values):
    """The reports above hold what the schema allows, so that nothing passes unseen."""
    tensors = [value for value in values if "tap" in value]
    verdicts = {value["verdict"] for value in tensors}
    for verdict in ("exact", "within", "differs", "non-finite", "missing", "shape"):
        expect(f"a tensor is {verdict}", verdict in verdicts, f"only {sorted(verdicts)}")
    for key in ("given_as", "looks_like", "bad"):
        seen = {value[key] is None for value in tensors}
        expect(f"{key} is null and is not", seen == {True, False}, str(seen))
    for key in ("note", "reason", "operators", "token_profile", "channel_profile", "margins"):
        expect(f"some tensor has {key}", any(value[key] for value in tensors))
    text = json.dumps(values)
    expect("a value is infinite", '"inf"' in text)


def documented():
    """MODEL.md's tables of section 13: {definition: {key: type}}, in their order."""
    text = (ROOT / "MODEL.md").read_text(encoding="utf-8")
    section = text.split("\n## 13. ")[1].split("\n## ")[0]
    tables = re.findall(r"\| key \| type \|.*\n\|---.*\n((?:\|.*\n?)+)", section)
    names = ("run", "unknown", "finding_line", "element", "tap_row", "metadata")
    expect("MODEL.md 13 has six tables", len(tables) == len(names), f"found {len(tables)}")
    rows = [re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", table, re.M) for table in tables]
    return {name: {key: kind.replace(" ", "_") for key, kind in row}
            for name, row in zip(names, rows)}


def check_document():
    for name, keys in documented().items():
        schema = {key: value["$ref"].rsplit("/", 1)[1]
                  for key, value in SCHEMA["$defs"][name]["properties"].items()}
        differences = sorted(set(keys.items()) ^ set(schema.items()))
        expect(f"MODEL.md and schema: {name}, {len(keys)} keys", not differences and len(keys) > 1,
               str(differences))


def fingerprint(layer, config, tensors):
    """Of one layer's weights, as MODEL.md 13 says; tensors: {name: (dtype, shape, bytes)}."""
    head, begin = f"model.layers.{layer}.", hashlib.sha256()
    names = ["input_layernorm.weight"]
    names += [f"self_attn.{p}_proj.{kind}" for kind in ("weight", "bias") for p in "qkvo"]
    names += ["self_attn.q_norm.weight", "self_attn.k_norm.weight", "post_attention_layernorm.weight",
              "mlp.gate.weight"]
    mlps = [f"mlp.experts.{e}." for e in range(config["num_experts"])] + ["mlp."]
    names += [mlp + p + "_proj.weight" for mlp in mlps for p in ("gate", "up", "down")]
    names = [(re.sub(r"experts\.\d+\.", "", name), head + name) for name in names]
    if layer == 0:
        names.insert(0, ("model.embed_tokens.weight",) * 2)
    if layer + 1 == config["num_hidden_layers"]:
        tied = config.get("tie_word_embeddings", False)
        names += [("model.norm.weight",) * 2,
                  ("lm_head.weight", "model.embed_tokens.weight" if tied else "lm_head.weight")]
    for name, stored in names:
        if stored not in tensors:
            continue
        dtype, shape, data = tensors[stored]
        step = (len(data) - 64) // 3
        blocks = [data] if len(data) <= 256 else [data[k * step:k * step + 64] for k in range(3)] + [data[-64:]]
        text = f"{name}\0{dtype}\0{json.dumps(shape, separators=(',', ':'))}\0"
        begin.update(text.encode() + b"".join(blocks))
    return begin.hexdigest()[:32]


def check_weights(values):
    """The fingerprints in the lines are those of the model's file."""
    header, body = read_header(MODEL / "model.safetensors")
    header.pop("__metadata__", None)
    config = json.loads((MODEL / "config.json").read_text())
    tensors = {name: (t["dtype"], t["shape"], bytes(body[slice(*t["data_offsets"])]))
               for name, t in header.items()}
    want = [fingerprint(layer, config, tensors) for layer in range(config["num_hidden_layers"])]
    for run in [value["run"] for value in values if "run" in value and value["run"]["tokens"]]:
        part = want[run["first_layer"]:run["end_layer"]]
        expect(f"weights of {run['command'][-40:]}", run["weights"] == part, f"{run['weights']}, {part}")


def check_taps(command):
    """What `taps --json` prints: of the whole model, and of one layer."""
    row = validator("tap_row")
    for job in [], ["--layer", "1"]:
        run = subprocess.run([command, "taps", str(MODEL), "--json", *job], check=True, capture_output=True, text=True)
        taps = json.loads(run.stdout)["taps"]
        error = next((e for tap in taps for e in row.iter_errors(tap)), None)
        expect(" ".join(["taps", *job]), error is None and len(taps) > 10, str(error and error.message))


def check_dumps(command, work):
    metadata, path = validator("metadata"), work / "dump.safetensors"
    for job in ["--dtype", "float32"], ["--dtype", "bfloat16", "--start", "30"], ["--dtype", "float16"]:
        subprocess.run([command, "dump", str(MODEL), "--tokens", "5,600,7", *job, "-o", str(path)],
                       check=True, capture_output=True)
        found = read_header(path)[0]["__metadata__"]
        error = next(metadata.iter_errors(found), None)
        config = json.loads(found["config"])
        good = error is None and isinstance(config, dict) and list(config) == sorted(config)
        expect(f"metadata of dump {' '.join(job)}", good, str(error or "config"))
    for path in sorted(TAPS.glob("taps-*.safetensors")):
        error = next(metadata.iter_errors(read_header(path)[0]["__metadata__"]), None)
        expect(f"metadata of {path.name}", error is None, str(error and error.message))


def main():
    if len(sys.argv) < 2:
        sys.exit("check_formats.py: found no argument, expected COMMAND [LINES.jsonl ...]")
    check_document()
    with tempfile.TemporaryDirectory() as folder:
        work, values = pathlib.Path(folder), []
        for name, lines in make_lines(sys.argv[1], work):
            values += check_lines(name, lines)
        check_dumps(sys.argv[1], work)
        check_taps(sys.argv[1])
    if not failures:
        check_seen(values)
        check_weights(values)
        check_strictness(values)
    for path in sys.argv[2:]:
        check_lines(path, pathlib.Path(path).read_text(encoding="utf-8").splitlines())
    sys.exit(1 if failures else 0)


main()
