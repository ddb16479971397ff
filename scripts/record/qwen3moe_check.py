# SPDX-License-Identifier: MIT
"""`qwen3moe check` for a test suite: judges a file of tensors, and raises with what the command says.

    from qwen3moe_check import check

    def test_backend():
        run_my_backend("backend.safetensors")
        check("path/to/Qwen3-30B-A3B", "backend.safetensors", require=["*.self_attn.q_rope.output"])

Needs Python 3.8 and the command, nothing else. What is judged, and how, is the command's to say: README.md.
"""

import json
import os
import subprocess
import tempfile

__all__ = ["check", "Report", "Differs", "NotJudged"]


class Report:
    """What the command said.

    status     0 agrees, 1 differs, 2 could not judge
    text       the report, as the command prints it
    headline   its last lines: how much was judged, the mistakes, the verdict; with status 2 what was wrong
    run        the run, a dict: MODEL.md section 13 has its keys; {} if nothing was run
    tensors    a dict for each tap, in the order of computation: the same section
    """

    def __init__(self, status, text, message, lines):
        self.status = status
        self.text = text
        self.headline = text.rstrip("\n").rpartition("\n\n")[2]
        if message:
            self.headline = (self.headline + "\n" + message).lstrip("\n")
        self.run = next((line["run"] for line in lines if "run" in line), {})
        self.tensors = [line for line in lines if "tap" in line]

    def __str__(self):
        return self.text or self.headline


class Differs(AssertionError):
    """The backend differs. `report` has the whole."""

    def __init__(self, report):
        super().__init__(report.headline)
        self.report = report


class NotJudged(Exception):
    """Nothing could be judged, or a required tap is missing, or the input is wrong. `report` has what there is."""

    def __init__(self, report):
        super().__init__(report.headline)
        self.report = report


def _arguments(options):
    """--name value for each option; True is an option without a value, a list of numbers one with commas, any
    other list an option for each. None and False: not given."""
    for name, value in options.items():
        name = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            yield name
        elif isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value) and value:
            yield name + "=" + ",".join(map(str, value))
        elif isinstance(value, (list, tuple)):
            yield from (name + "=" + str(v) for v in value)
        else:
            yield name + "=" + str(value)


def check(model, file, require=(), command="qwen3moe", timeout=None, **options):
    """Judges file against model, a Hugging Face folder; returns a Report if it agrees.

    require    globs of taps that must have been judged: "*.mlp.topk_indices.output"
    command    the command's path, if it is not in PATH
    timeout    in seconds; subprocess.TimeoutExpired beyond it
    options    the command's, without their dashes: dtype="bfloat16", strict=True, tokens=[1, 2, 3], kv="float16"

    Raises Differs or NotJudged, with the command's last lines as message."""
    if isinstance(require, str):
        require = [require]
    with tempfile.TemporaryDirectory() as folder:
        lines = os.path.join(folder, "report.jsonl")
        arguments = [command, "check", *_arguments({"require": list(require), **options}), "--json", lines,
                     "--", os.fspath(model), os.fspath(file)]
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              encoding="utf-8", errors="replace", timeout=timeout)
        found = []
        if os.path.exists(lines):
            with open(lines, encoding="utf-8") as stream:
                found = [json.loads(line) for line in stream]
    report = Report(done.returncode, done.stdout, done.stderr.strip(), found)
    if done.returncode == 1:
        raise Differs(report)
    if done.returncode != 0:
        raise NotJudged(report)
    return report
