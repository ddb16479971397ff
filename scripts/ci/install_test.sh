#!/usr/bin/env bash
# What another project gets. Installs into an empty folder, and builds and runs other programs (tests/consumer)
# against what is there: static and shared libraries, found by find_package and by pkg-config, from C and from C++; the
# folder is moved in between, since an installed tree may be. Then: what a shared library shows, which versions the
# package says it is, the source tree as a part of another project, and the core compiled by hand.
#
#   scripts/ci/install_test.sh
#
# Needs CMake, a C and a C++ compiler, binutils, pkg-config.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log() { "$@" >"$work/log" 2>&1 || { cat "$work/log"; echo "install_test.sh: failed: $*" >&2; exit 1; }; }
passed=0
fail() { echo "install_test.sh: $*" >&2; exit 1; }
pass() { echo "$1"; passed=$((passed + 1)); }
# runs NAME COMMAND...: prints what the command itself says of golden/tiny.
runs() {
    local name=$1 got
    shift
    got=$("$@" "$root/golden/tiny/config.json")
    [ "$got" = "$want" ] || fail "$name: got $got, want $want"
    pass "$name: $got"
}

# judges NAME COMMAND...: the program that breaks a tensor and has it judged finds what it broke.
judges() {
    local name=$1 got
    shift
    got=$("$@" "$root/golden/tiny") || fail "$name: failed: $got"
    case $got in
    'differs: model.layers.0.self_attn.q_proj.output: scaled by a factor 1.5'*'; 1 of '*' tensors judged') ;;
    *) fail "$name: got $got" ;;
    esac
    pass "$name: $got"
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
    for package in qwen3moe qwen3moe-judge; do
        [ "$(pkg-config --modversion $package)" = "${version#qwen3moe }" ] || fail "pkg-config: another version"
    done
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
[ -z "$(cd "$work/build-ON" && ctest -N | grep '#')" ] || fail "found tests in spite of BUILD_TESTING=OFF"

# ---- what a shared library shows: what its headers mark, and nothing else ----

# marked FILE...: the functions behind Q3_API and Q3_PRIVATE_API.
marked() {
    sed -n 's/^Q3_\(PRIVATE_\)\{0,1\}API [^(]*\(q3_[a-z0-9_]*\)(.*/\2/p' "$@" | LC_ALL=C sort
}
# shows LIBRARY HEADER...
shows() {
    local library=$1
    shift
    nm -D --defined-only "$work/moved/lib/$library" | awk '{print $3}' | LC_ALL=C sort >"$work/shown"
    [ -s "$work/shown" ] || fail "$library shows nothing"
    if grep -v '^q3_' "$work/shown"; then fail "$library shows names of others"; fi
    marked "$@" | diff - "$work/shown" || fail "$library: < is marked alone, > is shown alone"
    pass "$library shows the $(wc -l <"$work/shown") functions that are marked, and nothing else"
}
shows libqwen3moe.so "$root/qwen3moe.h" "$root"/host/*.h
shows libqwen3moe_judge.so "$root/judge/judge.h"
if nm -D --undefined-only "$work/moved/lib/libqwen3moe.so" | grep -w q3_abort; then fail "the library needs q3_abort"; fi
for library in "$work"/build-OFF/libqwen3moe*.a; do
    if nm -g --defined-only "$library" | awk 'NF == 3 && $3 !~ /^q3_/' | grep .; then
        fail "$library has names without q3_"
    fi
done

# A Windows DLL exports the same functions, and only while it is built.
exports() { cc -E -D_WIN32 "$@" "$root/qwen3moe.h" | grep -c 'declspec(dllexport)' || true; }
[ "$(exports -DQ3_BUILD_DLL)" = "$(marked "$root/qwen3moe.h" | wc -l)" ] || fail "a DLL exports other functions"
[ "$(exports)" = 0 ] || fail "a DLL's users export its functions"

# ---- which versions the package says it is ----

series=${version#qwen3moe } && series=${series%.*} # 0.1 of 0.1.0
for wanted in "$series yes" "${version#qwen3moe } yes" "0.0 no" "0.$((${series#*.} + 1)) no" "1.0 no"; do
    found=no
    rm -rf "$work/version"
    if cmake -S "$root/tests/consumer" -B "$work/version" -DCMAKE_PREFIX_PATH="$work/moved" \
        -DWANT="${wanted% *}" >"$work/log" 2>&1; then found=yes; fi
    [ $found = "${wanted#* }" ] || { cat "$work/log"; fail "find_package(qwen3moe ${wanted% *}): found $found"; }
done
pass "find_package: $series and no other"

# ---- the source tree as a part of another project ----

cache() { sed -n 's/^\([A-Za-z_][^:]*\):.*/\1/p' "$1/CMakeCache.txt" | LC_ALL=C sort; }
log cmake -S "$root/tests/consumer/parent" -B "$work/alone"
log cmake -S "$root/tests/consumer/parent" -B "$work/parent" -DQ3_SOURCE="$root" -DCMAKE_INSTALL_PREFIX="$work/none"
log cmake --build "$work/parent" -j 2
unset LD_LIBRARY_PATH
runs "add_subdirectory" "$work/parent/parent"
judges "add_subdirectory, judge" "$work/parent/parent_judge"
tests=$(cd "$work/parent" && ctest -N | sed -n 's/^ *Test *#[0-9]*: //p')
[ "$tests" = own ] || fail "a parent project has the tests" $tests
leaked=$(comm -13 <(cache "$work/alone") <(cache "$work/parent") | grep -v '^Q3_\|^qwen3moe') || true
[ -z "$leaked" ] || fail "a parent project has the variables" $leaked
grep -q '^CMAKE_BUILD_TYPE:[A-Z]*=$' "$work/parent/CMakeCache.txt" || fail "a parent project's build type was set"
made=$(find "$work/parent" -type f -perm -u+x ! -path '*/CMakeFiles/*' -printf '%f\n' | LC_ALL=C sort | tr '\n' ' ')
[ "$made" = 'parent parent_judge ' ] || fail "a parent project builds $made"
log cmake --install "$work/parent"
[ ! -e "$work/none" ] || fail "a parent project installs $(find "$work/none" -type f)"
pass "add_subdirectory: no tests, no options but Q3_, no command, nothing installed"

# ---- the core by hand, and a broken precondition ----

log cc -std=c11 -ffreestanding -c "$root/qwen3moe.c" -o "$work/core.o"
for definition in Q3_ABORT=my_abort 'Q3_ABORT(file, line, text)=my_abort(file, line, text)'; do
    declared=()
    [ "$definition" = Q3_ABORT=my_abort ] || declared=(-include "$work/my_abort.h")
    echo 'void my_abort(const char *file, int line, const char *text);' >"$work/my_abort.h"
    for compiler in "cc -std=c11" "c++ -std=c++11 -fsyntax-only -x c++"; do
        source=("$root/tests/consumer/abort.c" "$root/qwen3moe.c" -o "$work/abort")
        [ "${compiler%% *}" = cc ] || source=("$root/qwen3moe.h")
        # shellcheck disable=SC2086
        log $compiler -Wall -Wextra -Wpedantic -Werror -I"$root" -D"$definition" "${declared[@]}" "${source[@]}"
    done
    [ "$("$work/abort")" = "$root/qwen3moe.c:dtype == Q3_F32" ] || fail "-D$definition: found $("$work/abort")"
    pass "-D$definition: compiles and is called"
done
echo "install: $passed passed, 0 failed"
