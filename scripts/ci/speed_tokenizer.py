# SPDX-License-Identifier: MIT
"""Speed and memory of the tokenizer beside Hugging Face's, one thread, in one run.

    python3 scripts/ci/speed_tokenizer.py TOKENIZER_JSON [TEXT_FILE]

Needs a C compiler (CC, else cc), tokenizers==0.23.3 and, if it is installed, tiktoken (which is
given the same vocabulary and pattern, and does no NFC). TOKENIZER_JSON is Qwen3's. TEXT_FILE
(default: this project's MODEL.md) is repeated to 10 MB; a second text of 10 MB mixes many scripts.
Each measurement is a process of its own that does one thing: processor time, the best of three
(encoding by the others: one), and of memory what the process grew by at its peak. Then long texts
without any border: time per byte must not grow with the length.
"""
import ctypes
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SOURCES = ["tokenizer.c"] + ["host/" + name for name in (
    "nfc.c", "tokenizer_file.c", "json.c", "decimal.c", "files.c", "text.c")]
SIZE = 10_000_000


class Ours:
    def __init__(self, library, path):
        self.c = ctypes.CDLL(library)
        self.error = ctypes.create_string_buffer(512)
        self.handle = ctypes.c_void_p()
        if self.c.q3_tokenizer_open(ctypes.byref(self.handle), path.encode(), self.error):
            raise SystemExit(self.error.value.decode())

    def encode(self, data):
        ids, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
        if self.c.q3_tokenizer_encode(self.handle, data, ctypes.c_size_t(len(data)),
                                      ctypes.byref(ids), ctypes.byref(count), self.error):
            raise SystemExit(self.error.value.decode())
        free = self.c.free
        free.argtypes = [ctypes.c_void_p]
        free(ids)
        return count.value


class Theirs:
    def __init__(self, library, path):
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_file(path)

    def encode(self, data):
        return len(self.tokenizer.encode(data.decode(), add_special_tokens=False).ids)


class Tiktoken:
    def __init__(self, library, path):
        import tiktoken
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        letters = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
        others = [b for b in range(256) if b not in letters]
        byte = {chr(b): b for b in letters} | {chr(256 + i): b for i, b in enumerate(others)}
        ranks = {bytes(byte[c] for c in key): i for key, i in data["model"]["vocab"].items()}
        split = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        special = {t["content"]: t["id"] for t in data["added_tokens"]}
        self.tokenizer = tiktoken.Encoding("qwen3", pat_str=split, mergeable_ranks=ranks,
                                           special_tokens=special)

    def encode(self, data):
        return len(self.tokenizer.encode(data.decode(), allowed_special="all"))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def child(kind, library, path, text):
    """One process: loads, then encodes the text if there is one; prints what it took."""
    if kind == "Theirs":
        import tokenizers  # not part of the load
    before, start = resident(), time.process_time()
    system = globals()[kind](library, path)
    result = {"load": time.process_time() - start, "memory": peak() - before}
    if text:
        with open(text, "rb") as file:
            data = file.read()
        before, start = resident(), time.process_time()
        result["ids"] = system.encode(data)
        result["seconds"] = time.process_time() - start
        result["memory"] = peak() - before
    print(json.dumps(result))


def measure(kind, library, path, text="", times=3):
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    best = None
    for _ in range(times):
        out = subprocess.run([sys.executable, __file__, "--child", kind, library, path, text],
                             stdout=subprocess.PIPE, check=True, env=environment)
        one = json.loads(out.stdout)
        key = "seconds" if text else "load"
        best = one if best is None or one[key] < best[key] else best
    return best


def mixed(size):
    pick, parts, length = random.Random(1), [], 0
    phrases = ["\u0928\u092e\u0938\u094d\u0924\u0947 ", "\u0645\u0631\u062d\u064b\u0627 ",
               "\ud55c\uad6d\uc5b4 ", "e\u0301te\u0301 ", "Vi\u1ec7t ", "\U0001f600"]
    cyrillic = [chr(c) for c in range(0x430, 0x450)]
    han = [chr(c) for c in range(0x4E00, 0x5600)]
    makers = [
        lambda: " " + "".join(pick.choice("etaoinshrdlu") for _ in range(pick.randrange(1, 10))),
        lambda: " the" + pick.choice((" house", " of", " and", "re", ",", ".\n")),
        lambda: "".join(pick.choice(han) for _ in range(pick.randrange(2, 15))) + "\u3002",
        lambda: " " + "".join(pick.choice(cyrillic) for _ in range(pick.randrange(2, 9))),
        lambda: pick.choice(phrases),
        lambda: str(pick.randrange(10 ** 6)) + pick.choice((" ", ", ", "\n")),
        lambda: "    if (x[i] == 0)\n        return -1;\n",
    ]
    while length < size:
        parts.append(pick.choice(makers)())
        length += len(parts[-1].encode())
    return "".join(parts)


def main():
    path = os.path.abspath(sys.argv[1])
    source = sys.argv[2] if len(sys.argv) > 2 else os.path.join(ROOT, "MODEL.md")
    with open(source, encoding="utf-8") as file:
        plain = file.read()
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "tokenizer.so")
        subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-O3", "-fPIC", "-shared",
                        "-I", ROOT, "-o", library] + [os.path.join(ROOT, name) for name in SOURCES], check=True)
        systems = {"ours": "Ours", "tokenizers": "Theirs"}
        try:
            import tiktoken  # noqa: F401
            systems["tiktoken"] = "Tiktoken"
        except ImportError:
            print("tiktoken is not installed: not measured")
        load = {name: measure(kind, library, path) for name, kind in systems.items()}
        for name, one in load.items():
            print(f"load         {name:11} {one['load']:8.3f} s   {one['memory']:6.0f} MiB")
        texts = {"plain": (plain * (SIZE // len(plain) + 1))[:SIZE], "mixed": mixed(SIZE)}
        speed = {}
        for label, text in texts.items():
            file = os.path.join(folder, label)
            with open(file, "w", encoding="utf-8", newline="") as out:
                size = len(text.encode())
                out.write(text)
            for name, kind in systems.items():
                one = measure(kind, library, path, file, 3 if name == "ours" else 1)
                speed[label, name] = size / one["seconds"] / 1e6
                print(f"encode {label} {name:11} {speed[label, name]:8.1f} MB/s "
                      f"{one['memory']:6.0f} MiB, {one['ids']} ids")
        ratio = min(speed[label, "ours"] / speed[label, "tokenizers"] for label in texts)
        print(f"ours / tokenizers: speed {ratio:.1f} or more, load time "
              f"{load['ours']['load'] / load['tokenizers']['load']:.3f}, memory "
              f"{load['ours']['memory'] / load['tokenizers']['memory']:.3f}")
        ours, pick = Ours(library, path), random.Random(1)
        word = "".join(pick.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(1 << 20))
        long = {"one word": word, "one letter": "a", "spaces": " ", "line ends": "\n",
                "digits": "7", "marks": "\u0301\u0323", "Han": "\u4e00\u4e8c", "signs": "!?",
                "tokens": "<|im_end|>"}
        for label, text in long.items():
            line = []
            for size in (1 << 14, 1 << 16, 1 << 18, 1 << 20):
                unit = len(text.encode())
                data = (text * (size // unit + 1)).encode()[:size // unit * unit or size]
                data = data.decode(errors="ignore").encode()
                best = min(once(ours, data) for _ in range(3))
                line.append(f"{best / len(data) * 1e9:6.1f}")
            print(f"{label:11} ns a byte at 16 KiB, 64 KiB, 256 KiB, 1 MiB: {' '.join(line)}")


def once(system, data):
    start = time.process_time()
    system.encode(data)
    return time.process_time() - start


if len(sys.argv) > 1 and sys.argv[1] == "--child":
    child(*sys.argv[2:])
else:
    main()
