#!/usr/bin/env python3
"""Static analyzers over the product: qwen3moe.c, kernels*, tokenizer.c, host/, judge/, command/.

    scripts/ci/analyze.py [-j N] [--only TOOL] [FILE]...     all tools, two at a time; FILE: these alone

gcc -fanalyzer, clang --analyze, clang-tidy and cppcheck; one that is missing is a failure. A finding is
right (then the code is mended) or stands in analyze.txt with the reason why it is none: by file, check and
the text of the line, so that the entry goes when the line changes. An entry that nothing finds is a
failure too. First each tool is shown files with planted bugs, each of which it must find.
SPDX-License-Identifier: MIT"""
import argparse, collections, concurrent.futures, os, pathlib, re, shutil, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
FLAGS = ["-std=c11", "-I."]
# These define what analyze.h makes macros of.
DEFINING = {"host/text.c", "host/json.c"}
# Pairs that are left out: gcc's analyzer takes minutes for vectors in three instruction sets.
WITHOUT = {("gcc", "kernels.c")}

# Checks of clang-tidy that are left out, and why. clang-analyzer: clang --analyze is the same engine.
TIDY = """-*,bugprone-*,cert-*,misc-*,concurrency-*,readability-misleading-indentation,readability-suspicious-call-argument
    -bugprone-easily-swappable-parameters  rows and columns side by side are what an operator takes
    -bugprone-narrowing-conversions        -Wconversion is on, and this one warns of exact conversions too
    -bugprone-implicit-widening-of-multiplication-result  int constants alone
    -bugprone-reserved-identifier,-cert-dcl37-c,-cert-dcl51-cpp  feature macros of POSIX
    -bugprone-macro-parentheses            macros that list the elements of a table
    -bugprone-branch-clone                 a switch by cases of the same value is a table
    -bugprone-suspicious-include           kernels.c compiles its headers once an instruction set
    -cert-err33-c                          snprintf into a buffer that fits, fclose of what was read
    -cert-flp30-c                          none counts in a loop what is not exact
    -misc-unused-parameters                functions in a table have the same parameters
    -misc-no-recursion                     JSON's depth is bounded
    -concurrency-mt-unsafe                 strerror, exit: the command has one thread
"""

PLANTED = {
    "leak": ("#include <stdlib.h>\nint leak(int n);\nint leak(int n)\n{\n    char *p = malloc(10);\n"
             "    if (p == NULL) return 1;\n    p[0] = 1;\n    if (n > 3) return 2;\n    free(p);\n"
             "    return 0;\n}\n", {"gcc", "clang", "cppcheck"}),
    "null": ("#include <stdlib.h>\nint null(int n);\nint null(int n)\n{\n    int *p = NULL, a = 1;\n"
             "    if (n > 3) p = &a;\n    if (n < 7) return *p;\n    return 0;\n}\n",
             {"gcc", "clang", "cppcheck"}),
    "bounds": ("int bounds(void);\nint bounds(void)\n{\n    int a[4] = {0, 1, 2, 3}, i = 4;\n"
               "    return a[i];\n}\n", {"clang", "cppcheck"}),
    "garbage": ("int garbage(int n);\nint garbage(int n)\n{\n    int a;\n    if (n > 3) a = 1;\n"
                "    return a;\n}\n", {"gcc", "clang", "cppcheck"}),
    "sizeof": ("#include <string.h>\nvoid wrong(char *p);\nvoid wrong(char *p)\n{\n"
               "    memset(p, sizeof(*p), 0);\n}\n", {"tidy", "cppcheck"}),
}


def tidy_checks():
    first, *rest = TIDY.strip().splitlines()
    return ",".join([first] + [line.split()[0] for line in rest])


def command(tool, path, extra):
    """What analyses one file, and what a line of its output must match: file, line, message, check."""
    if tool == "gcc":
        return (["gcc", "-fanalyzer", "-O0", *FLAGS, *extra, "-c", "-o", "/dev/null", path],
                r"^(?P<file>[^:\s]+):(?P<line>\d+):\d+: warning: (?P<text>.*) \[-W(?P<check>[\w-]+)\]$")
    if tool == "clang":
        return (["clang", "--analyze", "--analyzer-output", "text", *FLAGS, *extra, "-o", "/dev/null", path],
                r"^(?P<file>[^:\s]+):(?P<line>\d+):\d+: warning: (?P<text>.*) \[(?P<check>[\w.-]+)\]$")
    if tool == "tidy":
        return (["clang-tidy", "--quiet", "--header-filter=.*", "--checks=" + tidy_checks(), path, "--",
                 *FLAGS, *extra],
                r"^(?P<file>[^:\s]+):(?P<line>\d+):\d+: warning: (?P<text>.*) \[(?P<check>[\w.,-]+)\]$")
    return (["cppcheck", "-q", "--enable=warning,portability,performance", "--std=c11", "-I.", "-D__GNUC__=12",
             "--suppress=*:*/usr/include/*", "--template={file}:{line}: {id}: {message}", path],
            r"^(?P<file>[^:\s]+):(?P<line>\d+): (?P<check>\w+): (?P<text>.*)$")


TOOLS = {"gcc": "gcc", "clang": "clang", "tidy": "clang-tidy", "cppcheck": "cppcheck"}


def analyse(tool, path, folder):
    """The findings of one tool in one file, as {(file, check, line's text)}; the command's seconds."""
    extra = []
    if path not in DEFINING and folder == ROOT:  # behind the file's own feature macros
        macros = re.findall(r"(?m)^ *# *define (_[A-Z]\w+) ?(\w*)", (ROOT / path).read_text())
        extra = [f"-D{name}={value}" for name, value in macros] + ["-include", "scripts/ci/analyze.h"]
    words, pattern = command(tool, path, extra)
    began = time.monotonic()
    done = subprocess.run(words, cwd=folder, text=True, capture_output=True)
    output = done.stdout + done.stderr
    found = {}
    for line in output.splitlines():
        match = re.match(pattern, line)
        if match is None:
            continue
        name = match["file"].removeprefix(str(folder) + "/").removeprefix("./")
        source = (folder / name).read_text().splitlines()[int(match["line"]) - 1].strip()
        check = f"{tool}:{match['check']}"
        found.setdefault((name, check, source), f"{name}:{match['line']}: {match['text']} [{check}]")
    if done.returncode != 0 and not found:
        found[(path, f"{tool}:failed", "")] = f"{path}: {tool} failed:\n{output}"
    return found, time.monotonic() - began


def read_known(path):
    """analyze.txt: a reason (#), then its entries: file | check | text of the line."""
    known, reason = {}, ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            reason = ""
        elif line.startswith("#"):
            reason += line[1:]
        else:
            parts = tuple(part.strip() for part in line.split(" | ", 2))
            if len(parts) != 3 or not reason.strip():
                sys.exit(f"{path.name}:{number}: expected a reason, then file | check | line")
            known[parts] = False
    return known


def self_check(tools, pool):
    """Whether each tool finds what is planted for it."""
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        runs = {}
        for bug, (text, finders) in PLANTED.items():
            (folder / f"{bug}.c").write_text(text)
            for tool in sorted(finders & set(tools)):
                runs[pool.submit(analyse, tool, f"{bug}.c", folder)] = (tool, bug)
        for run, (tool, bug) in runs.items():
            if not any(key[1] != f"{tool}:failed" for key in run.result()[0]):
                missed.append(f"{tool} does not find the planted {bug}")
    print(f"{len(runs)} planted bugs, {len(runs) - len(missed)} found")
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-j", type=int, default=2)
    parser.add_argument("--only", choices=TOOLS, action="append")
    parser.add_argument("files", nargs="*", metavar="FILE")
    args = parser.parse_args()
    tools = args.only or list(TOOLS)
    missing = [TOOLS[tool] for tool in tools if shutil.which(TOOLS[tool]) is None]
    if missing:
        sys.exit(f"not installed: {' '.join(missing)}")
    sources = args.files or sorted(str(path.relative_to(ROOT)) for room in ("", "host", "judge", "command")
                                   for path in (ROOT / room).glob("*.c"))
    known = read_known(HERE / "analyze.txt")
    problems, unused, seconds = [], [], collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(args.j) as pool:
        problems += self_check(tools, pool)
        print("\n".join(problems), end="\n" if problems else "", flush=True)
        runs = {pool.submit(analyse, tool, path, ROOT): tool for path in sources for tool in tools
                if (tool, path) not in WITHOUT}
        for run in concurrent.futures.as_completed(runs):
            found, took = run.result()
            seconds[runs[run]] += took
            for key, text in found.items():
                if key in known:
                    known[key] = True
                else:
                    problems.append(f"{text}\n    {' | '.join(key)}")
                    print(problems[-1], flush=True)
    if not args.files and not args.only:
        unused = [f"analyze.txt: nothing finds {' | '.join(key)}" for key, used in known.items() if not used]
    print("".join(problem + "\n" for problem in unused), end="")
    spent = os.times()
    print(f"{len(sources)} files; " + ", ".join(f"{tool} {took:.0f} s" for tool, took in seconds.items())
          + f"; {spent.children_user + spent.children_system:.0f} s of one core")
    print(f"{len(set(problems))} findings, {sum(known.values())} known to be none")
    return 1 if problems or unused else 0


if __name__ == "__main__":
    sys.exit(main())
