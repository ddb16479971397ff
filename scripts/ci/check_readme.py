#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs README.md's examples and compares what they print with what README says.

    scripts/ci/check_readme.py BUILD      BUILD: a folder where the project was built, with libqwen3moe.a

Each block of README with lines "$ COMMAND" (and "> MORE OF IT") runs in the shell; what stands behind a command is what
it must print. Left out are those that name MODEL, which the reader has. The block of C is compiled, and prints the
number that the text before it says. Needs a C compiler and nm.
"""
import os, re, subprocess, sys, tempfile

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
PROGRAM = re.compile(r"which prints (\d+).*?```c\n(.*?)```", re.S)


def examples(text):
    """[command, what it prints] of each example, in order."""
    found, inside, example = [], False, None
    for line in text.split("\n"):
        if line.startswith("```"):
            inside, example = not inside, None
        elif inside and line.startswith("$ "):
            example = [line[2:], ""]
            found.append(example)
        elif example and line.startswith("> ") and not example[1]:
            example[0] += "\n" + line[2:]
        elif example:
            example[1] += line + "\n"
    return found


def said(command, folder):
    """What it prints, and on failure what else there is."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, capture_output=True, text=True)
    return done.stdout + (f"{done.stderr}exit status {done.returncode}\n" if done.returncode else "")


def main():
    if len(sys.argv) != 2:
        sys.exit("check_readme.py: expected one argument, the folder of the build")
    build = os.path.abspath(sys.argv[1])
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
        text = f.read()
    count = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        # As in the top folder, but what the examples write does not stay.
        for name in os.listdir(ROOT):
            if not name.startswith((".", "build")):
                os.symlink(os.path.join(ROOT, name), os.path.join(folder, name))
        os.symlink(build, os.path.join(folder, "build"))
        cases = [(c, want) for c, want in examples(text) if not re.search(r"\bMODEL\b", c)]
        program = PROGRAM.search(text)
        if program is None:
            sys.exit("check_readme.py: found no program behind 'which prints N'")
        with open(os.path.join(folder, "program.c"), "w", encoding="utf-8") as f:
            f.write(program[2])
        cases.append(("cc -std=c11 -I. program.c build/libqwen3moe.a -o program && ./program", program[1] + "\n"))
        for command, want in cases:
            count += 1
            found = said(command, folder)
            if found.rstrip("\n") != want.rstrip("\n"):
                wrong += 1
                print(f"README.md: {command}\nfound:\n{found}expected:\n{want}")
    print(f"README: {count} examples, {wrong} print something else")
    return 1 if wrong or count < 10 else 0


if __name__ == "__main__":
    sys.exit(main())
