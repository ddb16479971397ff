#!/usr/bin/env bash
# Instructions of fixed work, counted by valgrind's callgrind, beside those that scripts/ci/instructions.txt
# has: 5 % more or fewer is a failure. No clock is asked, so that the machine's load does not matter; kernels
# are chosen by name, so that its processor does not.
#
#   scripts/ci/instructions.sh [--store] [BUILD]
#
# --store   writes the counts of now; do that in the commit that changes them, which says why
# BUILD     where to build; default: a temporary folder
#
# Needs gcc 12.2.0 (Debian 12's: another compiler makes other instructions), cmake, valgrind, python3.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
stored=$root/scripts/ci/instructions.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
store=
if [ "${1:-}" = --store ]; then store=yes; shift; fi
build=${1:-$work/build}

compiler="gcc $(gcc -dumpfullversion)"
if [ "$compiler" != "gcc 12.2.0" ]; then
    echo "instructions: found $compiler, expected gcc 12.2.0, whose counts are stored"
    exit 2
fi
cmake -S "$root" -B "$build" -DCMAKE_C_COMPILER=gcc -DCMAKE_BUILD_TYPE=Release -DQ3_BUILD_TESTS=OFF >/dev/null
cmake --build "$build" -j 2 --target bench >/dev/null

# A checkpoint of 98 files and 11,793 tensors, all holes.
cat >"$work/config.json" <<'JSON'
{"model_type": "qwen3_moe", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 30,
 "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 128, "num_experts_per_tok": 8,
 "moe_intermediate_size": 32, "torch_dtype": "bfloat16"}
JSON
python3 "$root/scripts/golden/make_sparse.py" "$work/config.json" "$work/sparse" --shard-bytes 500000 >/dev/null

# count KERNELS WORK: a line "KERNELS WORK INSTRUCTIONS".
count() {
    LC_ALL=C valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect=counted \
        "$build/bench" count "$1" "$2" "$root/golden" "$work/sparse" 2>"$work/said" >/dev/null ||
        { cat "$work/said" >&2; exit 1; }
    echo "$1 $2 $(sed -n 's/.*Collected : *\([0-9]*\).*/\1/p' "$work/said")"
}
{
    echo "# $compiler, -O3, x86-64; instructions of: scripts/ci/instructions.sh --store"
    for kernels in plain avx2; do
        for what in decode block check; do count $kernels $what; done
    done
    for what in open tokenize; do count plain $what; done
} >"$work/counts"

if [ -n "$store" ]; then
    cp "$work/counts" "$stored"
    cat "$stored"
    exit
fi
awk '
    /^#/ { next }
    NR == FNR { before[$1 " " $2] = $3; next }
    { name = $1 " " $2; seen[name] = 1
      change = name in before ? 100 * ($3 / before[name] - 1) : 100
      printf "%-16s %14.0f  %+.2f %%\n", name, $3, change
      if (change >= 5) { bad = 1; print "  more than is stored: find out why, or say why it must be, and store it (--store)" }
      if (change <= -5) { bad = 1; print "  fewer than is stored: store it (--store), so that it stays so" } }
    END { for (name in before) if (!(name in seen)) { bad = 1; print name ": stored, but not counted" }
          exit bad }' "$stored" "$work/counts"
echo "instructions: each within 5 % of what is stored"
