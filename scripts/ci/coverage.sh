#!/usr/bin/env bash
# Which branches the tests take: builds with clang's source-based coverage, runs ctest, prints a table by file
# (scripts/ci/coverage.py, which says what fails).
#
#   scripts/ci/coverage.sh [--work FOLDER] [--list FILE]... [--write]
#
# --work FOLDER   builds there and keeps it: the next run compiles what changed
# --list FILE     where the branches are that no test takes, of files whose path begins with FILE
# --write         puts the table into tests/README.md
#
# Clang's, not gcov's: it counts each operand of a condition in the source, with its column, before the compiler
# changes anything, so that it may optimise and the tests stay fast; gcov counts the jumps that gcc
# makes of the source, which are others at each -O. Twice: the library with its fast kernels, and test_bits once more
# with the plain loops of qwen3moe.c alone. Needs clang and llvm.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work='' list=()
while [ $# -gt 0 ]; do
    case $1 in
    --work) mkdir -p "$2" && work=$(cd "$2" && pwd) ;;
    --list) list+=(--list "$2") ;;
    --write) list+=(--write) && shift && continue ;;
    *) sed -n '2,/^# SPDX/p' "$0" >&2 && exit 2 ;;
    esac
    shift 2
done
[ -n "$work" ] || { work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT; }
cd "$root"

flags='-O1 -g0 -fprofile-instr-generate -fcoverage-mapping -mllvm -runtime-counter-relocation'
cmake -S . -B "$work/build" -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS="$flags" >/dev/null
cmake --build "$work/build" -j 2 >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
sources=$(tr '\n' ' ' <CMakeLists.txt | sed -n 's/.*set(Q3_SOURCES \([^)]*\)).*/\1/p')
# shellcheck disable=SC2086 # lists of words
clang -std=c11 $flags -ffp-contract=off -DQ3_ABORT=q3_abort -I. -Itests $sources tests/model/test_bits.c \
    -lm -o "$work/build/plain_bits"

# The counters of all processes of a program are added up, as each of them ends, in four files, so that two seldom wait
# for each other. Not so where a test limits the size of files, which would limit these too, or ends processes by
# signals: there the counters are mapped, and tests run one by one, as two processes would lose counts.
rm -rf "$work/profiles" && mkdir "$work/profiles"
tests() {
    (cd "$work/build" && ctest --output-on-failure "$@") >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
}
mapped='^(dump|outputs|signals)$'
export LLVM_PROFILE_FILE=$work/profiles/%4m.profraw
tests -j 2 -E "$mapped"
LLVM_PROFILE_FILE=$work/profiles/mapped-%m%c.profraw tests -R "$mapped"
(cd "$work/build" && ./plain_bits "$root/golden") >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
llvm-profdata merge -o "$work/all.profdata" "$work"/profiles/*.profraw
programs=()
for program in "$work"/build/test_* "$work/build/plain_bits"; do
    [ ! -x "$program" ] || [ -d "$program" ] || programs+=(-object "$program")
done
llvm-cov export "$work/build/qwen3moe" "${programs[@]}" -instr-profile "$work/all.profdata" >"$work/export.json"
python3 scripts/ci/coverage.py "$work/export.json" "${list[@]}"
