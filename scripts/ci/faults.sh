#!/usr/bin/env bash
# Each call of libc that can fail, failing in turn: tests/faults, under AddressSanitizer and
# UndefinedBehaviorSanitizer. Before that, that no call is left out, and that planted faults are found.
#
#   scripts/ci/faults.sh [CASE]...     only these cases (tests/faults/cases.c)
#
# Needs clang (or CC) with its sanitizers, Ninja and nm.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags='-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'

cmake -G Ninja -S "$root" -B "$work/build" -DCMAKE_BUILD_TYPE=None -DCMAKE_C_COMPILER="${CC:-clang}" \
    -DCMAKE_C_FLAGS="$flags" >"$work/log" || { cat "$work/log"; exit 1; }
cmake --build "$work/build" -j 2 --target test_faults >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
cd "$work"

# What the product calls of libc is in wrapped.txt, so that it can fail, or cannot fail: it reads and writes memory
# alone, tells a time, asks whether a terminal is there, or belongs to signals, write and _exit with them.
cannot_fail='abort bcmp clock difftime dirfd fileno isatty memchr memcmp memcpy memmove memset qsort snprintf stpcpy
strcat strchr strcmp strcpy strcspn strerror strlen strncmp strpbrk strrchr strspn strstr strtol strtoul time
vsnprintf __errno_location __cpu_model stdin stdout stderr q3_abort _GLOBAL_OFFSET_TABLE_
_exit raise sigaction sigaddset sigemptyset sigfillset signal __sysv_signal sigprocmask write'
nm -u build/libq3_loud.a build/libq3_judge.a build/CMakeFiles/test_faults.dir/command/*.o |
    awk '$1 == "U" { print $2 }' | grep -v '^__asan_\|^__ubsan_\|^__sanitizer_\|^___asan_' | sort -u >called
nm build/libq3_loud.a build/libq3_judge.a build/CMakeFiles/test_faults.dir/command/*.o |
    awk 'NF == 3 { print $3 }' | sort -u >own
{ tr -s ' ' '\n' <<<"$cannot_fail"; cat "$root/tests/faults/wrapped.txt" own; } | sort -u >known
if comm -23 called known | grep .; then
    echo "faults.sh: calls that tests/faults/inject.c does not know" >&2
    exit 1
fi

build/test_faults "$root/golden" --planted
build/test_faults "$root/golden" "$@"
