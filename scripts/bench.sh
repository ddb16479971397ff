#!/usr/bin/env bash
# How fast this is on this machine, one thread, beside what the machine can do and beside others: makes
# checkpoints by rule, times fixed work, prints the least, median and largest time of each, the ratios to the
# goals, and how the cost grows.
#
#   scripts/bench.sh [--quick] [--hf PYTHON] [--llamacpp PYTHON] [--work FOLDER] [--repeat N] [--cmake OPTION]...
#
# --quick     small models, under a minute on two cores: to try the script, not to quote
# --hf        a Python with torch 2.13.0 and transformers 5.17.0; left out: not compared
# --llamacpp  a Python with llama-cpp-python 0.3.36, gguf and numpy; left out: not compared
# --work      where checkpoints and the build go (10 GB without --quick) and stay; default: temporary
# --cmake     for the configuration, such as -DCMAKE_C_COMPILER=clang
#
# Needs cmake, a C compiler, python3 (its own library alone). The processor's name is a part of every result.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work="" cmake=() rest=()
while [ $# -gt 0 ]; do
    case $1 in
        --work) work=$2; shift 2 ;;
        --cmake) cmake+=("$2"); shift 2 ;;
        --quick) rest+=("$1"); shift ;;
        --hf|--llamacpp|--repeat) rest+=("$1" "$2"); shift 2 ;;
        *) sed -n '2,/^# SPDX/p' "$0" | sed '$d'; exit 2 ;;
    esac
done
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work"
cmake -S "$root" -B "$work/build" -DQ3_BUILD_TESTS=OFF "${cmake[@]}" >/dev/null
cmake --build "$work/build" -j 2 --target bench q3_command >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
grep -m 1 '^CMAKE_C_COMPILER:' "$work/build/CMakeCache.txt" | sed 's/.*=/compiler   /'
python3 "$root/scripts/bench/bench.py" "$root" "$work" "${rest[@]}"
