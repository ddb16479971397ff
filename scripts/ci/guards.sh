#!/usr/bin/env bash
# What a compiler or a processor's mode may do to the arithmetic is either harmless (the same bits) or
# refused, at compile time or by the self-test; never different bits in silence.
# Needs gcc, clang, sha256sum. Builds core and host straight from their sources, so that nothing but the flags
# under test is given.
# SPDX-License-Identifier: MIT
set -u
cd "$(dirname "$0")/../.." || exit 1
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
sources=$(tr '\n' ' ' <CMakeLists.txt | sed -n 's/.*set(Q3_SOURCES \([^)]*\)).*/\1/p')
failed=0 cases=0

say() { # name result
    cases=$((cases + 1))
    printf '%-52s %s\n' "$1" "$2"
    case $2 in FAILED*) failed=$((failed + 1)) ;; esac
}

# Runs a built command: its self-test and a dump. $2... is an environment.
judge() {
    local name=$1; shift
    rm -f "$work/x.safetensors"
    env "$@" "$work/q" selftest >"$work/log" 2>&1
    local test=$?
    env "$@" "$work/q" dump golden/tiny --tokens 5,600,7,1999,20 --dtype bfloat16 -o "$work/x.safetensors" >"$work/out" 2>&1
    local dump=$?
    if [ $test -eq 1 ] && [ $dump -eq 2 ] && [ ! -e "$work/x.safetensors" ]; then
        say "$name" "refused: $(sed -n 's/^qwen3moe: //p' "$work/out")"
    elif [ $test -eq 0 ] && [ $dump -eq 0 ] && [ "$(sha256sum <"$work/x.safetensors")" = "$reference" ]; then
        say "$name" "harmless: the same bits"
    else
        say "$name" "FAILED: self-test $test, dump $dump"
    fi
}

# What a dump's bits do not come from, compiled once.
mkdir "$work/rest"
for source in judge/*.c command/*.c; do
    gcc -std=c11 -O1 -DQ3_ABORT=q3_abort -I. -c "$source" -o "$work/rest/$(echo "${source%.c}" | tr / _).o" || exit 1
done

build() { # compiler and flags
    "$@" -std=c11 -DQ3_ABORT=q3_abort -I. ./*.c host/*.c "$work"/rest/*.o -o "$work/q" >"$work/log" 2>&1
}

case_of() {
    if build "$@"; then
        judge "$*"
    elif grep -q 'qwen3moe: ' "$work/log"; then
        say "$*" "refused by the compiler: $(grep -o 'qwen3moe: [^"]*' "$work/log" | head -n 1)"
    else
        cat "$work/log"
        say "$*" "FAILED: does not build"
    fi
}

build gcc -O2 || { cat "$work/log"; exit 1; }
"$work/q" dump golden/tiny --tokens 5,600,7,1999,20 --dtype bfloat16 -o "$work/r.safetensors" >/dev/null || exit 1
reference=$(sha256sum <"$work/r.safetensors")

for cc in gcc clang; do
    for flags in -Ofast -ffast-math -funsafe-math-optimizations -fassociative-math -freciprocal-math \
        -ffinite-math-only -fno-signed-zeros "-fassociative-math -fno-signed-zeros -fno-trapping-math" \
        "-ffp-contract=fast -march=native" "-ffp-contract=fast -march=native -ffast-math -fno-fast-math"; do
        # shellcheck disable=SC2086
        case_of $cc -O3 $flags
    done
done
case_of gcc -O2 -mfpmath=387
case_of clang -O3 -fdenormal-fp-math=positive-zero

# The project's own flags stand behind the user's.
for cc in gcc clang; do
    for flags in -Ofast -funsafe-math-optimizations "-O3 -ffp-contract=fast -march=native"; do
        rm -rf "$work/build"
        if CC=$cc cmake -S . -B "$work/build" -DBUILD_TESTING=OFF -DCMAKE_C_FLAGS="$flags" >"$work/log" 2>&1 &&
            cmake --build "$work/build" -j 2 --target q3_command >"$work/log" 2>&1; then
            cp "$work/build/qwen3moe" "$work/q"
            judge "cmake with $cc $flags"
        else
            say "cmake with $cc $flags" "FAILED: does not build"
        fi
    done
done

# A foreign shared library that sets flush-to-zero as it is loaded.
build gcc -O2
echo 'int nothing;' >"$work/foreign.c"
gcc -shared -fPIC -Ofast "$work/foreign.c" -o "$work/foreign.so"
judge "gcc -O2, with a library built with -Ofast" LD_PRELOAD="$work/foreign.so"
grep -q refused <<<"$(tail -n 1 "$work/out")" || true

# A caller that changed the rounding mode.
if gcc -O2 -std=c11 -frounding-math -I. tests/model/modes.c $sources -lm -o "$work/modes" && "$work/modes" golden/tiny; then
    say "fesetround by the caller" "refused"
else
    say "fesetround by the caller" "FAILED"
fi

echo "guards: $((cases - failed)) passed, $failed failed"
[ $failed -eq 0 ]
