#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the tests executed, by file, from llvm-cov's export; scripts/ci/coverage.sh makes it.

    coverage.py EXPORT.json [--list FILE]... [--write]

--list FILE  prints where the branches that no test takes are, of files whose path begins with FILE
--write      puts the table into tests/README.md, where else it is compared with the one there: another processor
             takes other branches, and a change of some lines is no reason to measure again, so that counts may
             differ by a fiftieth, or 20

Each condition (each operand of && and ||) and each case of a switch has sides, of which each is taken or not. Not
counted: what the compiler folds; the sides of Q3_CHECK, whose false one ends the program. A side that cannot be
taken is excused where it stands, by a comment on its line or on lines of its own before it:

    /* not reached: why */          no test can take it; what lies behind it is excused, too
    /* depends on the machine */    the same, but another processor may take it

On the line of a function's { it holds for the function. Exit status 1: in a file of WHOLE a side is neither taken nor
excused; all that a comment of the first kind excuses is taken; tests/README.md has figures far from those of the
table printed here.
"""
import argparse, bisect, collections, json, os, re, sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
README = os.path.join(ROOT, "tests", "README.md")
MARK = re.compile(r"/\* (not reached: .*?|depends on the machine )\*/", re.S)
# Every side taken, or excused.
WHOLE = ["qwen3moe.c", "kernels.c", "kernels_attention.h", "kernels_dots.h", "kernels_maps.h", "kernels_quantized.h",
         "kernels_tiles.h", "tokenizer.c", "host/tokenizer_file.c", "host/nfc.c", "host/nfc.h", "host/safetensors.c",
         "host/json.c", "host/decimal.c", "host/config.c"]


SECTION = """
What `ctest` executes is counted by scripts/ci/coverage.sh (`--list FILE` says where it does not): lines, and the sides
of each operand of a condition. Excused are sides that no test can take, and those that another processor or system
takes, each by a comment beside it in the source that says why. None is open in the files that have a row of their
own: the core, the tokenizer, and the readers of JSON, config.json and safetensors.

"""


class Source:
    """A file's text: where its marks and its preconditions are."""

    def __init__(self, path):
        text = open(path, encoding="utf-8").read()
        self.starts = [0] + [m.end() for m in re.finditer("\n", text)]
        self.lines = text.split("\n")
        self.marks = {}  # line to whether another machine may take what it excuses
        for m in MARK.finditer(text):
            first, last = self.line(m.start()), self.line(m.end())
            alone = not text[self.starts[first - 1]:m.start()].strip()
            self.marks[last + 1 if alone else first] = m.group(1).startswith("depends")
        self.checks = [(m.start(), self.closing(text, m.end())) for m in re.finditer(r"\bQ3_CHECK\(", text)]

    def line(self, offset):
        return bisect.bisect_right(self.starts, offset)

    @staticmethod
    def closing(text, at):
        depth = 1
        while depth > 0:
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        return at

    def checked(self, line, column):
        at = self.starts[line - 1] + column - 1
        return any(first <= at < last for first, last in self.checks)


class File:
    """The figures of one file. sides: (line, column, what) to how often it was taken."""

    def __init__(self, name, export, functions):
        self.name, self.source, self.functions = name, Source(os.path.join(ROOT, name)), functions
        self.sides, self.behind = {}, set()
        segments = [(s[0], s[1], s[2], s[3]) for s in export["segments"]]
        places = [s[:2] for s in segments]
        for b in export["branches"]:
            self.add(b[:2], b[4], b[5], segments[bisect.bisect_right(places, (b[0], b[1])) - 1][2])
        for e in export["expansions"]:
            for b in e["branches"]:  # of a macro's own text: they stand where it is used
                self.add(e["source_region"][:2], b[4], b[5], e["source_region"][4])
        # What was seen in one copy of a function is not behind anything.
        self.behind = {place for place in self.behind if place not in self.sides}
        lines = export["summary"]["lines"]
        self.lines, self.executed = lines["count"], lines["covered"]
        self.judge()

    def add(self, place, true, false, around):
        place = tuple(place)
        if self.source.checked(*place):
            return
        if true == false == 0:
            if around == 0:
                self.behind.add(place)
            return  # else folded
        sides = self.sides.setdefault(place, [0, 0])
        sides[0] += true
        sides[1] += false

    def mark_of(self, line):
        """The line of the mark that excuses what stands on this line, or None."""
        if line in self.source.marks:
            return line
        return next((first for (first, last) in self.functions
                     if first <= line <= last and first in self.source.marks), None)

    def judge(self):
        self.open, self.excused, used = [], 0, set()
        for (line, _), count in sorted(self.functions.items()):
            if count == 0 and self.mark_of(line):
                used.add(self.mark_of(line))
            elif count == 0:
                self.open.append((line, 1, "called"))
        for (line, column), sides in sorted(self.sides.items()):
            for taken, what in zip(sides, ("true", "false")):
                if taken == 0 and self.mark_of(line):
                    self.excused += 1
                    used.add(self.mark_of(line))
                elif taken == 0:
                    self.open.append((line, column, what))
        self.branches = 2 * (len(self.sides) + len(self.behind))
        self.taken = sum(n > 0 for sides in self.sides.values() for n in sides)
        # What lies behind is excused with it; where nothing is open, all that is behind is.
        if not self.open:
            self.excused += 2 * len(self.behind)
        self.untrue = sorted(line for line, other in self.source.marks.items() if line not in used and not other)


def read(path):
    files, data = [], json.load(open(path, encoding="utf-8"))["data"][0]
    calls = collections.defaultdict(collections.Counter)  # of the function from a line to another, by file
    for function in data["functions"]:
        first, _, last = function["regions"][0][:3]
        calls[function["filenames"][0]][first, last] += function["count"]
    for export in data["files"]:
        name = os.path.relpath(export["filename"], ROOT)
        if not name.startswith(("..", "tests/", "build")) and export["summary"]["lines"]["count"] > 0:
            files.append(File(name, export, calls[export["filename"]]))
    return sorted(files, key=lambda f: ("/" in f.name, f.name))


HEAD = ["files", "lines", "executed", "branches", "taken", "excused", "open"]


def row(name, files):
    lines, executed, branches, taken, excused = (
        sum(getattr(f, what) for f in files) for what in ("lines", "executed", "branches", "taken", "excused"))
    return [name, lines, executed, branches, taken, excused, branches - taken - excused]


def rooms(files):
    """The table of tests/README.md."""
    rows = [row(f.name, [f]) for f in files if f.name in WHOLE]
    for room, name in ("host/", "host/, the rest"), ("judge/", "judge/"), ("command/", "command/"):
        rows.append(row(name, [f for f in files if f.name.startswith(room) and f.name not in WHOLE]))
    return rows + [row("all", files)]


def near(have, want):
    """Whether two rows say the same, but for another machine or a change of some lines."""
    return len(have) == len(want) and all(
        cell.isdigit() and abs(int(cell) - n) <= max(20, n / 50) for cell, n in zip(have[1:], want[1:]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("export")
    parser.add_argument("--list", action="append", default=[])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    files = read(arguments.export)
    for cells in [HEAD] + [row(f.name, [f]) for f in files] + [row("all", files)]:
        print("".join(str(c).ljust(26) if i == 0 else str(c).rjust(10) for i, c in enumerate(cells)))
    print()
    failed = [f"{name}: not among the files that were compiled" for name in WHOLE
              if name not in [f.name for f in files]]
    for f in files:
        shown = f.name in WHOLE or any(f.name.startswith(p) for p in arguments.list)
        for line, column, what in f.open if shown else []:
            text = f"{f.name}:{line}:{column}: never {what}: {f.source.lines[line - 1].strip()}"
            if f.name in WHOLE:
                failed.append(text)
            else:
                print(text)
        failed += [f"{f.name}:{line}: taken, though it says that it is not reached: "
                   + f.source.lines[line - 1].strip() for line in f.untrue]
    rows = rooms(files)
    table = ["| " + " | ".join(map(str, cells)) + " |" for cells in [HEAD] + rows]
    table.insert(1, "|---" * len(HEAD) + "|")
    print("\n".join(table))
    readme = open(README, encoding="utf-8").read()
    have = re.search(re.escape(table[0]) + r"\n(\|.*\n)*", readme)
    if arguments.write:
        text = "\n".join(table) + "\n"
        with open(README, "w", encoding="utf-8") as file:
            file.write(readme.replace(have.group(), text) if have else readme + SECTION + text)
    elif not have:
        failed.append("tests/README.md: found no table of files, lines, ..., expected one")
    else:
        old = {cells[0]: cells for cells in (line.strip("| ").split(" | ") for line in have.group().split("\n"))}
        failed += [f"tests/README.md: found {old.get(cells[0], 'no row')}, expected about {cells}" for cells in rows
                   if not near(old.get(cells[0], []), cells)]
    for text in failed:
        print(f"coverage.py: {text}", file=sys.stderr)
    return 1 if failed else 0


sys.exit(main())
