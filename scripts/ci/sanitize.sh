#!/usr/bin/env bash
# The tests under AddressSanitizer and UndefinedBehaviorSanitizer, and under valgrind; and a planted bug
# (tests/unit/canary.c) that each of them must report, so that a checker that is off is noticed.
#
#   scripts/ci/sanitize.sh [-j N]     N tests at once (2)
#
# Needs gcc or clang with their sanitizers, Ninja and valgrind.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
jobs=2
[ "${1:-}" = -j ] && jobs=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
compiler=${CC:-cc}

# reports NAME WANT COMMAND...: the command fails and says WANT.
reports() {
    local name=$1 want=$2
    shift 2
    if "$@" >"$work/said" 2>&1 || ! grep -q "$want" "$work/said"; then
        cat "$work/said"
        echo "sanitize.sh: $name did not report the planted bug" >&2
        exit 1
    fi
    echo "$name reports the planted bug: $(grep -m 1 "$want" "$work/said")"
}

echo "== planted bugs"
$compiler -std=c11 $flags "$root/tests/unit/canary.c" -o "$work/canary"
$compiler -std=c11 -O1 -g "$root/tests/unit/canary.c" -o "$work/plain"
reports AddressSanitizer heap-buffer-overflow "$work/canary" read
reports UndefinedBehaviorSanitizer 'signed integer overflow' "$work/canary" add
# shellcheck disable=SC2054
memcheck=(valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite,indirect)
reports valgrind 'Invalid read of size 1' "${memcheck[@]}" "$work/plain" read
reports valgrind 'depends on uninitialised value' "${memcheck[@]}" "$work/plain" branch
"$work/plain" read || { echo "sanitize.sh: the planted bug stops the program without a checker" >&2; exit 1; }

echo "== address,undefined"
cmake -G Ninja -S "$root" -B "$work/san" -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS="$flags" -DQ3_TEST_TIMEOUT=0 >"$work/log" || { cat "$work/log"; exit 1; }
cmake --build "$work/san" -j "$jobs" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
(cd "$work/san" && ctest -j "$jobs" --timeout 1500 --output-on-failure)

# The test programs run under valgrind; and the command, which they start through a shell, by a script in its
# place, since the shell itself takes as long there as a small run. What valgrind adds is reads of memory that
# nobody wrote, in the code as it is optimised. `model` and `check` run with every configuration of golden/hf, but
# without golden/tiny, which takes them minutes here: `bits`, `diagnose`, `judge` and `judge_command` run that. The
# label `real` has the same code, with a billion multiply-adds.
echo "== valgrind"
emulator=$(IFS=';'; echo "${memcheck[*]}")
cmake -G Ninja -S "$root" -B "$work/valgrind" -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS='-O2 -g' -DQ3_TEST_TIMEOUT=0 \
    "-DCMAKE_CROSSCOMPILING_EMULATOR=$emulator" >"$work/log" || { cat "$work/log"; exit 1; }
cmake --build "$work/valgrind" -j "$jobs" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
mv "$work/valgrind/qwen3moe" "$work/valgrind/qwen3moe-itself"
printf '#!/bin/sh\nexec %s "$0-itself" "$@"\n' "${memcheck[*]}" >"$work/valgrind/qwen3moe"
chmod +x "$work/valgrind/qwen3moe"
(cd "$work/valgrind" && ctest -LE real -E '^(model|check)$' -j "$jobs" --timeout 1500 --output-on-failure)
cases=("$root"/golden/hf/*/config.json)
cd "$work/valgrind"
"${memcheck[@]}" ./test_check "$root/golden" --some "${cases[@]%/config.json}" >"$work/check" 2>&1 &
"${memcheck[@]}" ./test_model "$root/golden" --some "${cases[@]%/config.json}" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
wait $! || { cat "$work/check"; exit 1; }
tail -qn 1 "$work/log" "$work/check"
grep -q 'valgrind' "$work/valgrind/CTestTestfile.cmake" || { echo "sanitize.sh: valgrind was not used" >&2; exit 1; }
echo "sanitizers and valgrind: no reports"
