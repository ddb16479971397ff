#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checkpoints of the published layout at full size, which are holes but for their headers: as many files,
tensors and bytes as are published; opened in 0.3 s of processor time and 64 MB; `info`, `dump`, `check` and an interrupted dump
work on single layers of them; a part needs its own layers' files alone; what a run keeps in memory is the same
for 2 layers as for 10; what is wrong with an index of this size is said in one line.

  python3 scripts/ci/giant.py QWEN3MOE BENCH [32-BIT-QWEN3MOE]

QWEN3MOE: the command; BENCH: the program `bench` of the same build; 32-BIT-QWEN3MOE: the command as a 32-bit
program. Needs a file system that knows holes, and 2 GB of memory; takes 40 seconds. Linux.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TREES = ROOT + "/golden/trees/"
INDEX = "model.safetensors.index.json"
# Files, tensors and bytes of tensors, as published.
PUBLISHED = {
    "Qwen3-30B-A3B": (16, 18867, 61064245248),
    "Qwen3-235B-A22B": (118, 36945, 470187269120),
    "Qwen3-Coder-480B-A35B-Instruct": (241, 30321, 960309750784),
}
passed = 0


def say(text):
    global passed
    passed += 1
    print(text, flush=True)


def fail(text):
    sys.exit(f"giant.py: {text}")


def expect(holds, text):
    say(text) if holds else fail(text)


class Run:
    """A program's end: its status, what it said, its seconds, and the most memory of its own in kilobytes."""

    def __init__(self, *command, kill_after=None):
        begin = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            p = subprocess.Popen([str(word) for word in command], stdout=out, stderr=err)
            self.kilobytes = 0
            while p.poll() is None:
                try:
                    with open(f"/proc/{p.pid}/status", encoding="ascii") as f:
                        own = re.search(r"RssAnon:\s+(\d+)", f.read())
                    self.kilobytes = max(self.kilobytes, int(own[1]) if own else 0)
                except OSError:
                    pass
                if kill_after is not None and time.monotonic() - begin > kill_after:
                    p.send_signal(signal.SIGKILL)
                time.sleep(0.002)
            self.seconds, self.status = time.monotonic() - begin, p.returncode
            out.seek(0)
            err.seek(0)
            self.out, self.err = out.read().decode(), err.read().decode()

    def good(self, status=0):
        if self.status != status:
            fail(f"found status {self.status}, expected {status}: {self.out[-300:]}{self.err[-300:]}")
        return self


class Giants:
    def __init__(self, command, bench, work):
        self.command, self.bench, self.work = command, bench, work

    def run(self, *arguments, **options):
        return Run(self.command, *arguments, **options)

    def make(self, name, *options):
        folder = f"{self.work}/{name}{''.join(options)}"
        script = ROOT + "/scripts/golden/make_sparse.py"
        said = Run(sys.executable, script, f"{TREES}{name}.json", folder, *options).good().out
        return folder, tuple(int(n) for n in re.findall(r"(\d+) (?:files|tensors|bytes)", said))

    def opened(self, name, folder, layers):
        """The whole model, as a run over all layers opens it."""
        seconds, own = [], 0
        for _ in range(3): # processor time: whatever else the machine does
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            own = max(own, Run(self.bench, "open", folder, 1).good().kilobytes)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        seconds = min(seconds)
        expect(seconds < 0.3 and own < 64 << 10, f"{name}: opened in {seconds:.3f} s and {own} kB of its own")
        out = self.run("info", folder).good().out
        expect(f"(0-{layers - 1}): {layers} x" in out, f"{name}: info knows {layers} layers")

    def start(self, path, layer, M, tokens):
        """A file that a run of layer `layer` can start from."""
        name, size = f"model.layers.{layer - 1}.output", tokens * M * 2
        text = json.dumps({name: {"dtype": "BF16", "shape": [tokens, M], "data_offsets": [0, size]}}).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text + b"\x80\x3f" * (tokens * M))

    def layers(self, name, folder, M, last):
        """dump and check of the first and the last layer, with their own files alone."""
        with open(f"{folder}/{INDEX}", encoding="utf-8") as f:
            weight_map = json.load(f)["weight_map"]
        for layer in (0, last):
            needed = {file for tensor, file in weight_map.items() if tensor.startswith(f"model.layers.{layer}.")}
            ends = ["model.embed_tokens.weight"] if layer == 0 else ["model.norm.weight", "lm_head.weight"]
            needed |= {weight_map[tensor] for tensor in ends}
            part, taps = f"{self.work}/part", f"{self.work}/taps"
            shutil.rmtree(part, ignore_errors=True)
            os.mkdir(part)
            for file in sorted(needed) + [INDEX, "config.json"]:
                os.symlink(f"{folder}/{file}", f"{part}/{file}")
            self.start(f"{self.work}/from", layer, M, 2)
            source = ["--tokens", "1,2"] if layer == 0 else ["--from", f"{self.work}/from"]
            which = ["--layers", f"{layer}:{layer + 1}"]
            said = self.run("dump", part, *source, *which, "-o", taps).good().out
            if layer > 0: # the layer's input must be in the file, too
                taps = f"{self.work}/whole"
                joined(taps, f"{self.work}/taps", f"{self.work}/from")
            self.run("check", part, taps, *which, *([] if layer == 0 else ["--tokens", "1,2"])).good()
            expect("tensors of 2 tokens" in said,
                   f"{name}: dump and check of layer {layer} with {len(needed)} files of "
                   f"{len(set(weight_map.values()))}")

    def memory(self, name, folder):
        """The same for 2 layers and for more."""
        tokens = ",".join(str(t) for t in range(16))
        for verb in ("dump", "check"):
            found = []
            for layers in ("0:2", "0:10" if verb == "dump" else "0:6"):
                taps = f"{self.work}/long" # in the end that of 10 layers
                arguments = ["dump", folder, "--tokens", tokens, "-o", taps]
                if verb == "check":
                    arguments = ["check", folder, taps]
                found.append(self.run(*arguments, "--layers", layers).good().kilobytes)
            expect(found[1] < found[0] + 4096,
                   f"{name}: {verb} of 16 tokens takes {found[0]} kB of its own for 2 layers, {found[1]} for {layers[2:]}")

    def interrupted(self, name, folder):
        whole, taps = f"{self.work}/whole", f"{self.work}/resumed"
        arguments = ["dump", folder, "--tokens", "1,2,3", "--layers", "0:5", "-o"]
        seconds = self.run(*arguments, whole).good().seconds
        for start in range(1, 40):
            self.run(*arguments, taps, "--resume", kill_after=seconds * (0.3 + 0.02 * start))
            if os.path.exists(taps):
                break
        with open(whole, "rb") as a, open(taps, "rb") as b:
            expect(a.read() == b.read(), f"{name}: a dump that was killed {start - 1} times is that of one run")

    def wrong(self, name, folder):
        """Each is one line and status 2."""
        index = f"{folder}/{INDEX}"
        with open(index, encoding="utf-8") as f:
            text = f.read()
        shard = "model-00007-of-00118.safetensors"
        size = os.path.getsize(f"{folder}/{shard}")

        def refused(what, words):
            run = self.run("dump", folder, "--tokens", "1", "-o", f"{self.work}/never").good(2)
            if not re.search(words, run.err) or run.err.count("\n") != 1 or run.seconds > 10:
                fail(f"{what}: found {run.err!r} in {run.seconds:.1f} s, expected {words}")
            say(f"{name}: {what}: {run.err.strip().replace(folder, 'MODEL')}")

        def with_index(what, changed, words):
            with open(index, "w", encoding="utf-8") as f:
                f.write(changed)
            refused(what, words)
            with open(index, "w", encoding="utf-8") as f:
                f.write(text)

        os.rename(f"{folder}/{shard}", f"{self.work}/shard")
        refused("a file of the index is missing", f"{shard}: no such file")
        os.rename(f"{self.work}/shard", f"{folder}/{shard}")
        os.truncate(f"{folder}/{shard}", size - 1)
        refused("a file ends too soon", f"{shard}: .*expected at most {size - 1}|where the file ends")
        os.truncate(f"{folder}/{shard}", size)
        os.truncate(f"{folder}/{shard}", size + (5 << 32))
        refused("a file goes on behind its last tensor", f"{shard}: file: found .* bytes of data")
        os.truncate(f"{folder}/{shard}", size)
        with_index("the index puts a tensor elsewhere", text.replace(shard, "model-00008-of-00118.safetensors", 1),
                   "the index puts this tensor into another file|missing, though the index puts it here")
        with_index("the index is cut off", text[:len(text) // 2], INDEX)
        million = ",".join(f'"{i}":"{shard}"' for i in range(1000000))
        with_index("a million more tensors", text.replace('"weight_map": {', '"weight_map": {' + million + ","),
                   "the model has no such tensor")
        # total_size is for people: no version of transformers reads it.
        with open(index, "w", encoding="utf-8") as f:
            f.write(re.sub(r'"total_size": \d+', '"total_size": 1', text))
        self.run("dump", folder, "--tokens", "1", "--layers", "0:1", "-o", f"{self.work}/taps").good()
        with open(index, "w", encoding="utf-8") as f:
            f.write(text)
        say(f"{name}: another total_size changes nothing")


def joined(path, taps, source):
    """The tensors of both files, of which all are at multiples of 2."""
    entries, data = {}, b""
    for file in (source, taps):
        with open(file, "rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
            for key, entry in header.items():
                if key != "__metadata__":
                    entry["data_offsets"] = [at + len(data) for at in entry["data_offsets"]]
                entries[key] = entry
            data += f.read()
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + data)


def narrow(name, command, folder, taps):
    """A 32-bit program says why it does not open files of 4 GB; `info` needs none of them."""
    Run(command, "info", folder).good()
    run = Run(command, "dump", folder, "--tokens", "1", "--layers", "0:1", "-o", taps).good(2)
    expect("this is a 32-bit program" in run.err and run.err.count("\n") == 1,
           f"{name}: {run.err.strip().replace(folder, 'MODEL')}")


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    work = tempfile.mkdtemp()
    try:
        giants = Giants(os.path.realpath(sys.argv[1]), os.path.realpath(sys.argv[2]), work)
        folders = {}
        for name, published in PUBLISHED.items():
            folders[name], made = giants.make(name)
            room = sum(os.stat(f"{folders[name]}/{file}").st_blocks * 512 for file in os.listdir(folders[name]))
            if room > 1 << 30:
                fail(f"{work}: found {room} bytes used, expected a file system that knows holes")
            expect(made == published, f"{name}: {made[0]} files, {made[1]} tensors, {made[2]} bytes, as published")
        q235, q480 = "Qwen3-235B-A22B", "Qwen3-Coder-480B-A35B-Instruct"
        giants.opened(q235, folders[q235], 94)
        giants.opened(q480, folders[q480], 62)
        giants.layers(q235, folders[q235], 4096, 93)
        giants.layers(q480, folders[q480], 6144, 61)
        giants.memory(q235, folders[q235])
        giants.interrupted(q235, folders[q235])
        giants.wrong(q235, folders[q235])
        one, made = giants.make(q235, "--one")
        size = os.path.getsize(f"{one}/model.safetensors")
        giants.opened(f"{q235}, one file of {size} bytes", one, 94)
        if len(sys.argv) == 4:
            narrow(f"{q235}, 32 bits", os.path.realpath(sys.argv[3]), one, f"{work}/taps")
        print(f"giant: {passed} passed, 0 failed")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
