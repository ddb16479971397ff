#!/usr/bin/env bash
# Installs into an empty folder, and builds and runs another project's program (tests/consumer) against what
# is there: static and shared library, found by find_package and by pkg-config, from C and from C++; the
# folder is moved in between, since an installed tree may be.
#
#   scripts/ci/install_test.sh
#
# Needs CMake, a C and a C++ compiler, pkg-config.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log() { "$@" >"$work/log" 2>&1 || { cat "$work/log"; echo "install_test.sh: failed: $*" >&2; exit 1; }; }
passed=0
# runs NAME COMMAND...: prints what the command itself says of golden/tiny.
runs() {
    local name=$1 got
    shift
    got=$("$@" "$root/golden/tiny/config.json")
    if [ "$got" != "$want" ]; then
        echo "install_test.sh: $name: got $got, want $want" >&2
        exit 1
    fi
    echo "$name: $got"
    passed=$((passed + 1))
}

# judges NAME COMMAND...: the program that breaks a tensor and has it judged finds what it broke.
judges() {
    local name=$1 got
    shift
    got=$("$@" "$root/golden/tiny") || { echo "install_test.sh: $name: failed: $got" >&2; exit 1; }
    case $got in
    'differs: model.layers.0.self_attn.q_proj.output: scaled by a factor 1.5 (gain)'*'; 1 of '*' tensors judged') ;;
    *) echo "install_test.sh: $name: got $got" >&2; exit 1 ;;
    esac
    echo "$name: $got"
    passed=$((passed + 1))
}

for shared in OFF ON; do
    rm -rf "$work/prefix" "$work/moved"
    log cmake -S "$root" -B "$work/build-$shared" -DBUILD_SHARED_LIBS=$shared -DBUILD_TESTING=OFF \
        -DCMAKE_INSTALL_PREFIX="$work/prefix" -DCMAKE_INSTALL_LIBDIR=lib
    log cmake --build "$work/build-$shared" -j 2
    log cmake --install "$work/build-$shared"
    (cd "$work/prefix" && find . -type f -o -type l | LC_ALL=C sort)
    export LD_LIBRARY_PATH="$work/prefix/lib"
    version=$("$work/prefix/bin/qwen3moe" --version)
    count=$("$work/prefix/bin/qwen3moe" info "$root/golden/tiny" | sed -n 's/^parameters //p')
    want="${version#qwen3moe } $count 1"

    export PKG_CONFIG_PATH="$work/prefix/lib/pkgconfig"
    flags=$(pkg-config --cflags --libs qwen3moe)
    [ "$(pkg-config --modversion qwen3moe)" = "${version#qwen3moe }" ] || { echo 'pkg-config: another version' >&2; exit 1; }
    log cc -std=c11 -Wall -Wextra -Wpedantic -Werror "$root/tests/consumer/consumer.c" $flags -o "$work/c"
    runs "pkg-config, C, shared $shared" "$work/c"
    log c++ -std=c++11 -Wall -Wextra -Wpedantic -Werror "$root/tests/consumer/consumer.cpp" $flags -o "$work/cpp"
    runs "pkg-config, C++, shared $shared" "$work/cpp"

    flags=$(pkg-config --cflags --libs qwen3moe-judge)
    log cc -std=c11 -Wall -Wextra -Wpedantic -Werror "$root/tests/consumer/judge.c" $flags -o "$work/judge"
    judges "pkg-config, judge, shared $shared" "$work/judge"

    mv "$work/prefix" "$work/moved"
    export LD_LIBRARY_PATH="$work/moved/lib"
    log cmake -S "$root/tests/consumer" -B "$work/consumer-$shared" -DCMAKE_PREFIX_PATH="$work/moved"
    log cmake --build "$work/consumer-$shared"
    runs "find_package, C, shared $shared" "$work/consumer-$shared/consumer"
    runs "find_package, C++, shared $shared" "$work/consumer-$shared/consumer_cpp"
    judges "find_package, judge, shared $shared" "$work/consumer-$shared/consumer_judge"
done
if [ -n "$(nm -D --undefined-only "$work/moved/lib/libqwen3moe.so" | grep -w q3_abort || true)" ]; then
    echo 'install_test.sh: the library needs q3_abort' >&2
    exit 1
fi
echo "install: $passed passed, 0 failed"
