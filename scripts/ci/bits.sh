#!/usr/bin/env bash
# The same dump from every compiler: builds the command in several ways, runs `dump` on golden/tiny in three
# dtypes, and compares the files' sha256.
#
#   scripts/ci/bits.sh [--without COMPILER]...     COMPILER: gcc, clang, tcc or musl-gcc
#
# A compiler that is not there is a failure unless it is left out by name. The flags that CMakeLists.txt
# adds for arithmetic are left out: the bits do not rest on them; one row even asks for fused
# multiply-add. scripts/ci/platforms.sh has other processors and systems.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
without=' '
while [ $# -gt 0 ]; do
    [ "$1" = --without ] && [ $# -ge 2 ] || { echo "usage: bits.sh [--without COMPILER]..." >&2; exit 2; }
    without+="$2 "
    shift 2
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# kernels.c takes longest to compile, and nothing here runs it: scripts/ci/platforms.sh has its bits.
sources=()
for source in "$root"/{,host/,judge/,command/}*.c; do
    [ "$source" = "$root/kernels.c" ] || sources+=("$source")
done

rows='gcc -O0
gcc -O2
gcc -O3 -march=native
gcc -O3 -march=native -ffp-contract=fast
gcc -Os
gcc -O2 -flto
clang -O0
clang -O2
clang -O3 -march=native
clang -Os
clang -O2 -flto
tcc
musl-gcc -O2 -static'

# 26 tokens in calls of 32 and of 5, and a run far from the start in calls of 1.
tokens=40,77,258,1794,1248,389,279,557,282,0,2039,1999,7,7,300,301,302,2000,2001,13,1024,511,999,64,3,1500
dump() { "$work/qwen3moe" dump "$root/golden/tiny" --dtype "$1" -o "$work/$2" "${@:3}" >/dev/null; }
hashes() {
    local dtype
    for dtype in float32 bfloat16 float16; do
        dump $dtype a --tokens $tokens && dump $dtype b --tokens $tokens --chunk 5 &&
            dump $dtype c --tokens 5,6,7,8 --start 1048570 --chunk 1 || return 1
        cmp -s "$work/a" "$work/b" || { echo "chunks differ"; return 0; }
        cat "$work/a" "$work/c" | sha256sum | cut -c1-16
    done
}

failed=0 first='' count=0
printf '%-42s %-16s %-16s %-16s\n' 'compiler' float32 bfloat16 float16
while read -r compiler flags; do
    [[ $without == *" $compiler "* ]] && continue
    line="$compiler $flags"
    if ! command -v "$compiler" >/dev/null; then
        found='the compiler is missing'
    elif ! $compiler -std=c11 $flags -DQ3_ABORT=q3_abort -I"$root" "${sources[@]}" -o "$work/qwen3moe" 2>"$work/log"; then
        found="does not build: $(head -n 1 "$work/log")"
    else
        found=$(hashes 2>&1 | tr '\n' ' ') || true
    fi
    first=${first:-$found}
    verdict=
    [[ $found =~ ^([0-9a-f]{16}\ ){3}$ && $found = "$first" ]] || { verdict='<-- differs'; failed=$((failed + 1)); }
    count=$((count + 1))
    printf '%-42s %s%s\n' "$line" "$found" "$verdict"
done <<<"$rows"
echo "bits: $((count - failed)) builds agree, $failed do not"
[ $failed = 0 ] && [ $count -gt 1 ]
