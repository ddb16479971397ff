#!/usr/bin/env bash
# What a compiler or a processor's mode may do to the arithmetic is either harmless (the same bits) or
# refused, at compile time or by the self-test; never different bits in silence.
# Needs gcc, clang, sha256sum. Builds core and host straight from their sources, so that nothing but the flags
# under test is given.
# SPDX-License-Identifier: MIT
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root" || exit 1
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
sources=$(tr '\n' ' ' <CMakeLists.txt | sed -n 's/.*set(Q3_SOURCES \([^)]*\)).*/\1/p' | sed 's/ kernels.c / /')
failed=0 cases=0

say() { # name result
    cases=$((cases + 1))
    printf '%-52s %s\n' "$1" "$2"
    case $2 in FAILED*) failed=$((failed + 1)) ;; esac
}

# 26 tokens with all tensors; and what a text scores, where attention is tiled.
tokens=40,77,258,1794,1248,389,279,557,282,0,2039,1999,7,7,300,301,302,2000,2001,13,1024,511,999,64,3,1500
sed -n 1,9p qwen3moe.h >"$work/text"
dump() { # an environment; prints the hash of both
    env "$@" "$work/q" dump golden/tiny --tokens $tokens --dtype bfloat16 -o "$work/x.safetensors" >"$work/out" 2>&1 || return
    { env "$@" "$work/q" score golden/tiny "$work/text" --jsonl --dtype bfloat16 2>&1; cat "$work/x.safetensors"; } | sha256sum
}

# Runs a built command: its self-test and a dump. $2... is an environment. Exit status 0: harmless.
judge() {
    local name=$1 test=0 dump=0 hash; shift
    rm -f "$work/x.safetensors"
    env "$@" "$work/q" selftest >"$work/log" 2>&1 || test=$?
    hash=$(dump "$@") || dump=$?
    if [ $test -eq 1 ] && [ $dump -eq 2 ] && [ ! -e "$work/x.safetensors" ]; then
        say "$name" "refused: $(sed -n 's/^qwen3moe: //p' "$work/out")"
        return 1
    elif [ $test -eq 0 ] && [ $dump -eq 0 ] && [ "$hash" = "$reference" ]; then
        say "$name" "harmless: the same bits"
    else
        say "$name" "FAILED: self-test $test, dump $dump"
        return 1
    fi
}

# What bits do not come from, compiled once; and the fast kernels, which a build with the plain loops never runs.
mkdir "$work/rest" "$work/objects"
for source in judge/*.c command/*.c; do
    gcc -std=c11 -O1 -DQ3_ABORT=q3_abort -I. -c "$source" -o "$work/rest/$(echo "${source%.c}" | tr / _).o" || exit 1
done
gcc -std=c11 -O1 -DQ3_ABORT=q3_abort -I. -c kernels.c -o "$work/kernels.o" || exit 1

# compile COMPILER FLAG... SOURCE...
compile() {
    (cd "$work/objects" && "$@" -std=c11 -DQ3_ABORT=q3_abort -I"$root" -c) >"$work/log" 2>&1
}

link() { # compiler and flags
    "$@" "$work"/objects/*.o "$work"/rest/*.o -o "$work/q" >"$work/log" 2>&1
}

# The core first: it may be refused.
build() { # compiler and flags
    rm -f "$work"/objects/*
    cp "$work/kernels.o" "$work/objects"
    compile "$@" "$root/qwen3moe.c" && compile "$@" "$root/tokenizer.c" "$root"/host/*.c && link "$@"
}

# The fast kernels, at -O1, which takes half of -O3's time; the last build's host.
build_fast() { # compiler and flags
    compile "${@/#-O3/-O1}" -DQ3_KERNELS=q3_best_kernels "$root/kernels.c" "$root/qwen3moe.c" && link "$@"
}

unbuilt() { # name
    if grep -q 'qwen3moe: ' "$work/log"; then
        say "$1" "refused by the compiler: $(grep -o 'qwen3moe: [^"]*' "$work/log" | head -n 1)"
    else
        cat "$work/log"
        say "$1" "FAILED: does not build"
    fi
}

# With the plain loops; where that is harmless, with the fast kernels too.
case_of() {
    build "$@" || { unbuilt "$*"; return; }
    judge "$*" || return
    build_fast "$@" || { unbuilt "$*, fast kernels"; return; }
    judge "$*, fast kernels"
}

build gcc -O2 || { cat "$work/log"; exit 1; }
reference=$(dump) || exit 1

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
# shellcheck disable=SC2086
for cc in gcc clang; do
    for flags in -Ofast -funsafe-math-optimizations "-O3 -ffp-contract=fast -march=native"; do
        rm -rf "$work/build" "$work"/objects/*
        if CC=$cc cmake -S . -B "$work/build" -DBUILD_TESTING=OFF -DCMAKE_C_FLAGS="$flags" >"$work/log" 2>&1 &&
            cmake --build "$work/build" -j 2 --target q3_objects >"$work/log" 2>&1 &&
            find "$work/build" -name '*.o' -exec cp {} "$work/objects" \; &&
            link $cc $flags -O3; then # as CMake would
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

# A caller that changed the rounding mode.
if gcc -O2 -std=c11 -frounding-math -I. tests/model/modes.c $sources -lm -o "$work/modes" && "$work/modes" golden/tiny; then
    say "fesetround by the caller" "refused"
else
    say "fesetround by the caller" "FAILED"
fi

echo "guards: $((cases - failed)) passed, $failed failed"
[ $failed -eq 0 ]
