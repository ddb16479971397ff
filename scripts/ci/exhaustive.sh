#!/bin/sh
# The proof of the arithmetic: builds tests/exhaustive/ and runs all of it; see its README.md.
#
# usage: scripts/ci/exhaustive.sh [sin|cos|exp|silu|values|dots|maps ...]    all of them if none is named
#        scripts/ci/exhaustive.sh golden                                     writes golden/math/ again
#
# Needs gcc, clang, objdump, MPFR and GMP with their headers, a processor with fused multiply-add
# (FMA) and about half an hour of one core. The build folder is ${BUILD:-build/exhaustive}. Exit
# status 0: every claim of the table holds.
# SPDX-License-Identifier: MIT
set -eu
cd "$(dirname "$0")/../.."
build=${BUILD:-build/exhaustive}
source=tests/exhaustive
mkdir -p "$build"
flags='-std=c11 -Wall -Wextra -Werror -O2'
fused='vfn?m(add|sub)|\<fn?m(add|sub)\>|\<fml[as]\>' # x86-64, aarch64

program() { # name, further sources
    gcc $flags -ffp-contract=off -o "$build/$1" "$source/$1.c" "$source/reference.c" "$2" \
        -lmpfr -lgmp -lm -ldl
}

if [ "${1:-}" = golden ]; then
    gcc $flags -ffp-contract=off -o "$build/make_golden" "$source/make_golden.c" \
        "$source/reference.c" -lmpfr -lgmp -lm
    mkdir -p golden/math
    exec "$build/make_golden" "$source/hard.txt" golden/math
fi

# Four builds of qwen3moe.c. That the fused ones are fused is looked at, not believed.
for compiler in gcc clang; do
    $compiler $flags -fPIC -shared -ffp-contract=off -o "$build/$compiler-separate" \
        "$source/under_test.c"
    $compiler $flags -march=native -fPIC -shared -ffp-contract=fast -o "$build/$compiler-fused" \
        "$source/under_test.c"
    for kind in separate fused; do
        count=$(objdump -d "$build/$compiler-$kind" | grep -c -E "$fused") || true
        case $kind$count in
        separate0) ;;
        separate*)
            echo "$compiler-separate: found $count fused operations, expected 0" >&2
            exit 1
            ;;
        fused0)
            echo "$compiler-fused: found 0 fused operations, expected some (FMA)" >&2
            exit 1
            ;;
        esac
    done
done
builds="$build/gcc-separate $build/gcc-fused $build/clang-separate $build/clang-fused"
program functions $source/load.c
program values $source/load.c
program dots $source/load.c
gcc $flags -O3 -ffp-contract=off -o "$build/maps" $source/maps.c qwen3moe.c kernels.c

status=0
# shellcheck disable=SC2048 # names of parts are single words
for part in ${*:-sin cos exp silu values dots maps}; do
    case $part in
    sin | cos | exp | silu) set -- "$build/functions" "$part" ;;
    *) set -- "$build/$part" ;;
    esac
    [ "$part" = maps ] || set -- "$@" $builds
    # shellcheck disable=SC2086
    if "$@" >"$build/$part.txt" 2>&1; then
        echo "$part: ok" >&2
    else
        echo "$part: FAILED, see $build/$part.txt" >&2
        status=1
    fi
    parts="${parts:-} $build/$part.txt"
done

# Rows that say the same of several builds become one, with the seconds added up.
echo '| function | builds | inputs of each | misrounded | seconds | besides |'
echo '|---|---|---|---|---|---|'
# shellcheck disable=SC2086
cat $parts | awk -F'|' '/^\|/ {
    key = $2 "|" $4 "|" $5 "|" $7
    if (!(key in builds)) order[++n] = key
    builds[key] = (key in count ? builds[key] "," : "") $3
    count[key]++; seconds[key] += $6
} END {
    for (i = 1; i <= n; i++) {
        split(order[i], field, "|"); key = order[i]
        if (count[key] == 4 || builds[key] == " all ") builds[key] = " all four "
        sub(/^ +/, "", field[4])
        printf "|%s|%s|%s|%s| %d | %s |\n", field[1], builds[key], field[2], field[3],
            seconds[key], field[4]
    }
}'
echo
# shellcheck disable=SC2086
cat $parts | grep -v -e '^|' -e '^hard' || true
exit $status
