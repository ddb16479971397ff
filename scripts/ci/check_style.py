#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a reader expects of every file, and what README says in numbers.

    scripts/ci/check_style.py [--rooms]     --rooms: the first check alone

rooms    nothing includes leftwards: core, then host with the tokenizer, then judge, then command
text     100 columns, no tabs, no blanks at the end of a line; hexadecimal digits of C in upper case
licence  SPDX line in each source file
paths    each path of this project that a document names exists
numbers  what documents say in numbers is what the files say that programs wrote (NUMBERS)

Each check must also find what it looks for in a planted violation. Needs Python and git.
"""
import os, re, subprocess, sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
WIDTH = 100

# What a file of a room may include by a path of this project, beside headers of the system.
ALLOWED = {
    "core": {"core"},
    "host": {"core", "host"},
    "judge": {"core", "host", "judge"},
    "command": {"core", "host", "judge", "command"},
}


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def room(path):
    """The room of a source file or header; None: a test or something else, which may include all."""
    if path in ("qwen3moe.c", "qwen3moe.h", "kernels.c", "kernels_dots.h", "kernels_maps.h",
                "kernels_attention.h", "kernels_tiles.h", "kernels_quantized.h"):
        return "core"
    if path == "tokenizer.c":
        return "host"
    first = path.split("/")[0]
    return first if first in ALLOWED and "/" in path else None


def rooms(path, text):
    here = room(path)
    if here is None:
        return
    for number, line in enumerate(text.split("\n"), 1):
        found = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
        if not found:
            continue
        there = room(found[1]) or room(os.path.normpath(os.path.join(os.path.dirname(path), found[1])))
        if there not in ALLOWED[here]:
            yield f"{path}:{number}: {here} includes {found[1]}, expected only {sorted(ALLOWED[here])}"


def text_rules(path, text):
    if not path.endswith((".c", ".h", ".py", ".sh", ".cmake", ".txt", ".js", ".css", "/run")):
        return
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > WIDTH and path.endswith((".c", ".h")) and not path.startswith(WIDE):
            yield f"{path}:{number}: {len(line)} columns, expected at most {WIDTH}"
        if "\t" in line:
            yield f"{path}:{number}: a tab"
        if line != line.rstrip() and not path.endswith("mutants.txt"):
            yield f"{path}:{number}: blanks at the end"
        # 0xFF, but 0x1.8p52 as C prints it; bytes in the texts of tests are data.
        if path.endswith((".c", ".h")) and not path.startswith(WIDE):
            bare = re.sub(r'"(\\.|[^"\\])*"', '""', line)
            for digits in re.findall(r"\b0[xX]([0-9a-fA-F.]+)", bare):
                if "." not in digits and not re.search(r"0x" + re.escape(digits) + r"p", bare) and digits != digits.upper():
                    yield f"{path}:{number}: 0x{digits}, expected upper case"


# Made by programs: their lines are data.
WIDE = ("host/unicode.h", "tests/platforms/core.h", "judge/page_assets.c")


def licence(path, text):
    if not path.endswith((".c", ".h", ".py", ".sh", ".js", ".css", ".cmake", "CMakeLists.txt", "/run")):
        return
    if "SPDX-License-Identifier: " not in text[:4000]:
        yield f"{path}: found no SPDX-License-Identifier"


def paths(path, text, exists):
    if not path.endswith(".md"):
        return
    first = r"(?:scripts|tests|host|judge|command|golden|cmake|\.ci)"
    for name in sorted(set(re.findall(r"(?<![\w/.-])(" + first + r"/[\w./*<>-]*[\w*])", text))):
        if any(c in name for c in "*<>") or "build" in name:
            continue
        if not exists(name):
            yield f"{path}: names {name}, which does not exist"


# ---- numbers ----

# What a document says in numbers, and the file that a program wrote or that a test asks it of. Each of both patterns
# must fit exactly once. What README's examples print is scripts/ci/check_readme.py's.
NUMBERS = (
    ("README.md", r"plants (\d+)\s+bugs", "golden/DETECTION.md", r"- bugs: (\d+);"),
    ("README.md", r"judges (\d+)\s+dumps\s+of\s+honest\s+backends", "golden/DETECTION.md", r"and (\d+) dumps"),
    ("README.md", r"with (\d+)\s+combinations\s+of\s+compilers", "golden/bits/README.md", r"(\d+) rows ran with the one hash"),
    ("README.md", r"at most ([\d.]+) of Hugging Face's \(median\)", "tests/model/test_model.c", r"CHECKF\(median <= ([\d.]+),"),
    ("MODEL.md", r"all taps must be at most ([\d.]+\d)", "tests/model/test_model.c", r"CHECKF\(median <= ([\d.]+),"),
    ("MODEL.md", r"at most ([\d.]+) of it in\s+every\s+single\s+one", "scripts/ci/accuracy.py", r"LIMIT = ([\d.]+)"),
    ("tests/baremetal/README.md", r"At most (\d+) bytes", "tests/baremetal/stack.sh", r"\nlimit=(\d+)"),
)


def numbers(text_of):
    for document, pattern, source, its_pattern in NUMBERS:
        found, expected = re.findall(pattern, text_of(document)), re.findall(its_pattern, text_of(source))
        if len(found) != 1 or len(expected) != 1:
            yield (f"{document}: '{pattern}' fits {len(found)} times, '{its_pattern}' {len(expected)} times in {source}, "
                   f"expected 1 and 1")
        elif found != expected:
            yield f"{document}: '{pattern}': found {found[0]}, expected {expected[0]}, as {source} says"


# ---- the run ----

def numbers_planted():
    """For each row of NUMBERS: another number in the document; the number reworded away."""
    for row in NUMBERS:
        document, pattern, source, _ = row
        for change in (lambda number: f"{number}0", lambda number: "many"):
            def text_of(name):
                text, where = read(name), re.search(pattern, read(name))
                if name != document or where is None:
                    return text
                return text[:where.start(1)] + change(where[1]) + text[where.end(1):]
            yield [fault for fault in numbers(text_of) if document in fault and pattern in fault]


def planted():
    """Each check finds what it is there for."""
    cases = (
        rooms("host/x.c", '#include "judge/judge.h"\n'),
        rooms("qwen3moe.c", '#include "host/text.h"\n'),
        rooms("judge/x.c", '#include "command/command.h"\n'),
        rooms("host/x.c", '#include "../judge/graph.h"\n'),
        text_rules("judge/x.c", "x" * (WIDTH + 1)), text_rules("judge/x.c", "\tx"),
        text_rules("judge/x.c", "x "), text_rules("judge/x.c", "y = 0xff;"),
        licence("judge/x.c", "int x;"), paths("README.md", "see `scripts/ci/none.sh`", lambda name: False),
        *numbers_planted(),
    )
    return [f"planted violation {k}: not found" for k, case in enumerate(cases) if not list(case)]


def main():
    only_rooms = sys.argv[1:] == ["--rooms"]
    if sys.argv[1:] and not only_rooms:
        sys.exit("check_style.py: expected no arguments, or --rooms")
    files = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True,
                           capture_output=True, check=True).stdout.split("\n")
    wrong, count = planted(), 0
    for path in files:
        if not path or path.startswith("golden/") and not path.endswith(".md"):
            continue
        if not os.path.isfile(os.path.join(ROOT, path)):
            continue
        try:
            text = read(path)
        except UnicodeDecodeError:
            continue
        count += 1
        wrong += rooms(path, text)
        if only_rooms:
            continue
        wrong += text_rules(path, text)
        wrong += licence(path, text)
        beside = os.path.join(ROOT, os.path.dirname(path))  # names may count from the document's folder
        wrong += paths(path, text, lambda name: os.path.exists(os.path.join(ROOT, name))
                       or os.path.exists(os.path.join(beside, name)))
    if not only_rooms:
        wrong += numbers(read)
    print("\n".join(wrong), end="\n" if wrong else "")
    print(f"style: {count} files, {len(wrong)} faults")
    return 1 if wrong or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
