# SPDX-License-Identifier: MIT
"""Differential fuzzer of the tokenizer against Hugging Face's.

    python3 tests/fuzz/fuzz_tokenizer.py COMMAND TOKENIZER_JSON [--seconds 600] [--seed 1]
                                      [--text FILE ...]

Needs tokenizers==0.23.3. COMMAND is the built qwen3moe; TOKENIZER_JSON any tokenizer.json it reads.
Texts are mixed from alphabets that the rules meet (letters, marks, Hangul, white space,
contractions, added tokens and parts of them, any code point), from phrases in many scripts, and
from pieces of the given text files. Each seed gives the same texts. Differences are printed,
shortened as far as they stay differences; the shortest belong into TEXTS of
scripts/golden/make_tokenizer_golden.py. Exit status 1 then.
"""
import argparse
import json
import os
import random
import subprocess
import tempfile
import time

import tokenizers
from tokenizers import Tokenizer

PHRASES = [
    "the quick brown fox", "Don't we'll I'VE they're", "na\u00efve fa\u00e7ade", "3.14159e-10",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5", "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\u304b\u3099\u30ab\u309a",
    "\uc548\ub155\ud558\uc138\uc694", "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u0645\u0631\u062d\u0628\u064b\u0627", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0b95\u0bca\u0b9f\u0bc1",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0f42\u0fb7\u0f71\u0f72",
    "\u1780\u17d2\u1798\u17c2\u179a", "\u10d2\u10d0\u10db\u10d0\u10e0", "\u1200\u120b\u121d",
    "\u0532\u0561\u0580\u0587", "Vi\u1ec7t Nam", "e\u0302\u0323", "\u1e0b\u0323",
    "for (i = 0; i < n; i++) {\n\ta[i] += 1;\n}\n", "\"key\": [1, 2.50, null],\r\n",
    "https://a.b/c?d=e&f", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f1e9\U0001f1ea\ufe0f\u20e3", "\u00bd \u2167 \u00b2 \u0663 \U0001d7d8",
    "\ufb01 \ufb06 \u0130 \u017f \u212a \u212b",
]
ALPHABETS = [
    "abcxyzABCXYZ",
    "aeiou\u0301\u0300\u0323\u0338\u0327\u0344\u1df6\u0c3c\u3099\u05b0\u0f71\u0f72",
    " \t\n\r\u000b\u000c\u0085\u00a0\u2003\u2028\u3000", "'sStTmMdDrReEvVlL\u017f\u2019",
    "0123456789\u0663\u00bd", "!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`\"'",
    "\u1100\u1112\u1161\u1175\u11a7\u11a8\u11c2\uac00\uac01\ud7a3\u1176",
    "\u0000\u0001\u001c\u007f\u200b\u200d\ufeff\ufffd\ue000\U0010ffff", "<|>_imstarend/think",
]


def any_code(pick):
    kind = pick.random()
    top = 0x3000 if kind < 0.5 else 0xFFFF if kind < 0.8 else 0x10FFFF
    code = pick.randrange(top + 1)
    return chr(code) if not 0xD800 <= code <= 0xDFFF else "\u0300"


def make_text(pick, added, files):
    parts = []
    for _ in range(pick.choice((1, 2, 3, 5, 8, 13, 30))):
        kind = pick.randrange(8)
        if kind < 3:
            alphabet = pick.choice(ALPHABETS)
            parts += (pick.choice(alphabet) for _ in range(pick.choice((1, 1, 2, 3, 6, 20))))
        elif kind == 3:
            parts.append(any_code(pick) * pick.choice((1, 1, 1, 2, 40)))
        elif kind == 4:
            phrase = pick.choice(PHRASES)
            start = pick.randrange(len(phrase))
            parts.append(phrase[start:start + pick.randrange(1, 12)])
        elif kind == 5 and added:
            token = pick.choice(added)
            parts.append(token if pick.random() < 0.7 else token[:pick.randrange(len(token))])
        elif kind == 6 and files:
            text = pick.choice(files)
            start = pick.randrange(len(text))
            parts.append(text[start:start + pick.choice((3, 10, 50))])
        else:
            parts.append(pick.choice((" ", "\n", "a", "'s", "\u0301", "1")))
    return "".join(parts)


class Pair:
    """Ours and theirs."""

    def __init__(self, command, folder, path):
        self.command, self.folder, self.tokenizer = command, folder, Tokenizer.from_file(path)

    def differ(self, texts):
        lines = "".join(json.dumps(text) + "\n" for text in texts).encode()
        done = subprocess.run([self.command, "tokenize", self.folder, "--jsonl"], input=lines,
                              stdout=subprocess.PIPE, check=True)
        ours = done.stdout.decode().split("\n")
        theirs = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        assert len(ours) == len(texts) + 1
        return [text for text, a, b in zip(texts, ours, theirs) if a != " ".join(map(str, b.ids))]

    def shorten(self, text):
        """Removes characters as long as the two still differ."""
        size = max(len(text) // 2, 1)
        while True:
            shorter = [text[:i] + text[i + size:] for i in range(0, len(text), size)]
            found = self.differ(shorter)
            if found:
                text = found[0]
            elif size == 1:
                return text
            else:
                size //= 2


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("tokenizer")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", nargs="*", default=[])
    options = parser.parse_args()
    assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
    path = os.path.abspath(options.tokenizer)
    files = [open(name, encoding="utf-8").read() for name in options.text]
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(path, os.path.join(folder, "tokenizer.json"))
        pair = Pair(os.path.abspath(options.command), folder, path)
        added = [t.content for t in pair.tokenizer.get_added_tokens_decoder().values()]
        start, count, characters, wrong, seed = time.time(), 0, 0, [], options.seed
        while time.time() - start < options.seconds:
            pick = random.Random(seed)
            texts = [make_text(pick, added, files) for _ in range(20000)]
            for text in pair.differ(texts)[:5]:
                wrong.append(pair.shorten(text))
                print(f"seed {seed}: {ascii(wrong[-1])}", flush=True)
            count += len(texts)
            characters += sum(map(len, texts))
            seed += 1
    print(f"seeds {options.seed} to {seed - 1}: {count} texts, {characters} characters, "
          f"{time.time() - start:.0f} s, {len(wrong)} differences")
    raise SystemExit(bool(wrong))


main()
