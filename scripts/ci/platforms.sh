#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The same bits everywhere: builds tests/model/test_bits.c and the command for many compilers, flags,
# processors and systems, runs them (under emulators where needed) and compares their hashes with
# golden/bits.
#
#   scripts/ci/platforms.sh [--quick | --all] [--without NAME]... [--only NAME]... [--table]
#                           [--jobs N] [--list] [--install] [--work DIR]
#
#   --quick     the default: one row of each kind, under 10 minutes
#   --all       every row
#   --without   leaves a row out by its name; nothing else is ever left out: a tool that is missing,
#               or a processor that cannot run a row, is a failure
#   --only      these rows alone; those of an earlier run in the same --work folder are kept
#   --table     writes the table to golden/bits/README.md too, between its two marks
#   --jobs N    so many rows at once (2)
#   --list      prints the names of the rows
#   --install   first installs what is needed: Debian packages (apt-get, as root) and, into a Python
#               environment in the work folder, ziglang and wasmtime from PyPI
#   --work DIR  the folder to work in, kept; else one in /tmp that is removed
#
# A row is built with the kernels of kernels.c, and without the arithmetic flags that CMakeLists.txt
# adds (-ffp-contract=off): the bits do not rest on them. The library is compiled anew for each row;
# what holds none of the model's arithmetic (judge/, command/) once for each compiler and target, with
# -O1, and shared by its rows. Exit status: 0 if every row passed and all hashes are one, else 1.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
set_name=quick without="" only="" table=no install=no list=no work="" jobs=2

packages="build-essential cmake clang llvm tcc musl-tools python3-venv
gcc-i686-linux-gnu libc6-dev-i386-cross gcc-aarch64-linux-gnu libc6-dev-arm64-cross
gcc-arm-linux-gnueabihf libc6-dev-armhf-cross gcc-arm-linux-gnueabi libc6-dev-armel-cross
gcc-riscv64-linux-gnu libc6-dev-riscv64-cross gcc-s390x-linux-gnu libc6-dev-s390x-cross
gcc-powerpc64-linux-gnu libc6-dev-ppc64-cross gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross
gcc-mips64el-linux-gnuabi64 libc6-dev-mips64el-cross gcc-m68k-linux-gnu libc6-dev-m68k-cross
qemu-user-static qemu-system-arm gcc-arm-none-eabi picolibc-arm-none-eabi wine wine64"

usage()
{
    echo "platforms.sh: $1" >&2
    sed -n '7,21s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    --quick) set_name=quick ;;
    --all) set_name=all ;;
    --table) table=yes ;;
    --install) install=yes ;;
    --list) list=yes ;;
    --without | --only | --work | --jobs)
        [ $# -ge 2 ] || usage "$1: found no value, expected one"
        case $1 in
        --without) without="$without $2 " ;;
        --only) only="$only $2 " ;;
        --work) work=$2 ;;
        --jobs) jobs=$2 ;;
        esac
        shift ;;
    *) usage "found $1, expected an option" ;;
    esac
    shift
done

[ $table = no ] || [ -z "$only" ] || [ -s "$work/rows" ] ||
    usage "--table: found --only, expected all rows, or --work with the rows of an earlier run"
if [ -z "$work" ]; then
    work=$(mktemp -d) || exit 1
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work" && work=$(cd "$work" && pwd) || exit 1
venv=$work/venv
export WINEPREFIX="$work/wine" WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml=" DISPLAY=
export ZIG_GLOBAL_CACHE_DIR="$work/zig" ZIG_LOCAL_CACHE_DIR="$work/zig"

if [ $install = yes ]; then
    # shellcheck disable=SC2086
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends $packages; } >"$work/install.log" 2>&1 ||
        { tail -5 "$work/install.log" >&2; exit 1; }
    python3 -m venv "$venv" && "$venv/bin/pip" install -q ziglang==0.17.1 wasmtime || exit 1
fi
wine=wine64
command -v wine64 >/dev/null || wine=/usr/lib/wine/wine64
zig="$venv/bin/python -m ziglang cc"

# What CMakeLists.txt builds, so that the list stands there alone.
cmake_list() { tr '\n' ' ' <"$root/CMakeLists.txt" | sed -n "s/.*$1 \([^)]*\)).*/\1/p"; }
sources="$(cmake_list 'set(Q3_SOURCES')"
command_sources="$(cmake_list 'set(Q3_JUDGE') $(cmake_list 'set(Q3_COMMAND')"

hash_of() { cat "$@" | sha256sum | cut -c1-64; }
bits=$root/golden/bits
core_hash=$(hash_of "$bits/core.txt")
sheets=$(sed -n '/^static const char \*const cases/,/;/p' "$root/tests/model/test_bits.c" |
    grep -o '"[a-z0-9-]*"' | tr -d '"' | sed "s|.*|$bits/&.txt|")
# shellcheck disable=SC2086
all_hash=$(hash_of "$bits/core.txt" $sheets "$bits/tiny.txt")
files_hash=$(hash_of "$bits/files.txt")

rows=$work/rows
[ -n "$only" ] && [ -f "$rows" ] || : >"$rows"
left="" unknown="$without $only"

# Whether a row runs: $1 is its name, $2 the smallest set it belongs to.
wanted()
{
    case "$unknown" in
    *" $1 "*) unknown=$(printf '%s' "$unknown" | sed "s/ $1 / /g") ;;
    esac
    if [ $list = yes ]; then
        echo "$1 ($2)"
        return 1
    fi
    case "$without" in
    *" $1 "*)
        left="$left $1"
        echo "$1: left out by name"
        return 1 ;;
    esac
    if [ -n "$only" ]; then
        case "$only" in
        *" $1 "*) return 0 ;;
        esac
        return 1
    fi
    [ "$2" = quick ] || [ $set_name = all ]
}

# A finished row: name, compiler, result, hashes of core, all and files, seconds. Rows end in any order;
# the table has them in the order in which they began.
finish()
{
    printf '| %s | %s | %s | %s | %s | %s | %s |\n' "$1" "$2" "$4" "$5" "$6" "$7" "$3" >"$work/done/$1"
    {
        printf '%-26s %-14s %s %s %s %ss\n' "$1" "$3" "$4" "$5" "$6" "$7"
        case $3 in
        same | built | refused) ;;
        *) sed 's/^/    /' "$work/logs/$1" | tail -12 ;;
        esac
    } >"$work/done/$1.said"
    cat "$work/done/$1.said"
}

# later NAME FUNCTION WORD...: runs it beside at most $jobs - 1 others.
running=0 begun=()
later()
{
    begun+=("$1")
    if [ $running -ge "$jobs" ]; then
        wait -n || true
        running=$((running - 1))
    fi
    "${@:2}" &
    running=$((running + 1))
}

short() { printf '%s' "$1" | cut -c1-16; }

version() { "$1" --version 2>/dev/null | head -1 | sed 's/ (.*)//; s/^Debian //'; }

# host/text.c: host_text.o
object() { printf '%s.o' "${1%.c}" | tr / _; }

# compile DIR SOURCES COMPILER FLAGS...: objects. Warnings are errors where the compiler knows them.
compile()
{
    local dir=$1 sources=$2 source
    shift 2
    mkdir -p "$dir" || return 1
    for source in $sources; do
        "$@" -DQ3_ABORT=q3_abort -DQ3_KERNELS=q3_best_kernels -I"$root" -I"$root/tests" -c "$root/$source" \
            -o "$dir/$(object "$source")" || return 1
    done
}

objects() { for source in $2; do echo "$1/$(object "$source")"; done; }

# build DIR EXE COMPILER FLAGS...: both programs.
build()
{
    local dir=$1 exe=$2 key word shared without_level=()
    shift 2
    rm -rf "$dir"
    compile "$dir" "$sources tests/model/test_bits.c" "$@" || return 1
    # What the flags below change is no concern of judge/ and command/: one set of objects for all of them.
    for word; do
        case $word in
        -O* | -march=* | -mfpu=* | -ffp-contract=* | -flto | -std=*) ;;
        *) without_level+=("$word") ;;
        esac
    done
    key=$(echo "${without_level[*]}" | sha256sum | cut -c1-16)
    shared=$work/shared/$key
    (
        flock 9
        [ -e "$shared/complete" ] || {
            compile "$shared" "$command_sources" "${without_level[@]}" -std=gnu11 -O1 && touch "$shared/complete"
        }
    ) 9>"$work/shared/$key.lock" || return 1
    # shellcheck disable=SC2046
    "$@" $(objects "$dir" "$sources") "$dir/tests_model_test_bits.o" -o "$dir/test_bits$exe" &&
        "$@" $(objects "$dir" "$sources") $(objects "$shared" "$command_sources") -o "$dir/qwen3moe$exe"
}

# row NAME SET EXE RUNNER COMPILER FLAGS...: builds and runs. RUNNER: words, "" for this machine,
# "none" to build alone.
row()
{
    wanted "$1" "$2" || return 0
    later "$1" build_and_run "$@"
}

build_and_run()
{
    local name=$1 exe=$3 runner=$4 start label core=- all=- files=- result=same
    shift 4
    start=$(date +%s)
    label=$(version "$1")
    case "$*" in
    *ziglang*) label="zig $("$1" -m ziglang version 2>/dev/null) cc ${*:5}" ;;
    musl-gcc*) label="musl-gcc, $label ${*:2}" ;;
    *) label="$label ${*:2}" ;;
    esac
    label=$(echo "$label" | sed 's/ -W[A-Za-z-]*//g')
    {
        if ! command -v "$1" >/dev/null; then
            echo "found no $1, expected it installed (--install)"
            result=missing
        elif ! build "$work/$name" "$exe" "$@"; then
            result=not-built
        elif [ "$runner" = none ]; then
            result=built
        else
            run_row
        fi
    } >"$work/logs/$name" 2>&1
    finish "$name" "$label" "$result" "$(short "$core")" "$(short "$all")" "$(short "$files")" \
        $(($(date +%s) - start))
    [ $result = same ] || [ $result = built ] && rm -rf "${work:?}/$name"
}

# On build_and_run's variables.
run_row()
{
    local out=$work/$name/out
    # shellcheck disable=SC2086
    if ! $runner "$work/$name/test_bits$exe" "$root/golden" >"$out"; then
        cat "$out"
        result=differs
    fi
    core=$(tr -d '\r' <"$out" | sed -n 's/^core //p')
    all=$(tr -d '\r' <"$out" | sed -n 's/^bits //p')
    [ "$result" = same ] || return
    # shellcheck disable=SC2086
    cmake -DCOMMAND="$work/$name/qwen3moe$exe" -DMAKER="$work/maker/test_bits" \
        -DGOLDEN="$root/golden" -DWHERE="$work/$name/dump" -DRUNNER="$(echo $runner | tr ' ' ';')" \
        -P "$root/tests/platforms/dump.cmake" >"$out" 2>&1 || result=differs
    cat "$out"
    files=$(sed -n 's/^-- files //p' "$out")
    [ "$core $all $files" = "$core_hash $all_hash $files_hash" ] || result=differs
}

# march NAME SET LEVEL COMPILER FLAGS...: a row for one x86-64 level; this processor must have it.
march()
{
    name=$1 in_set=$2 level=$3
    shift 3
    needs=""
    case $level in
    v2) needs="sse4_2 popcnt" ;;
    v3) needs="avx2 fma bmi2 f16c" ;;
    v4) needs="avx512f avx512bw avx512cd avx512dq avx512vl" ;;
    esac
    for feature in $needs; do
        grep -qw "$feature" /proc/cpuinfo && continue
        if wanted "$name" "$in_set"; then
            echo "found a processor without $feature, expected x86-64-$level (--without $name)" \
                >"$work/logs/$name"
            begun+=("$name")
            finish "$name" "-march=x86-64-$level" cannot-run - - - 0
        fi
        return
    done
    row "$name" "$in_set" "" "" "$@" "-march=x86-64-$level"
}

# refused NAME SET COMPILER FLAGS...: qwen3moe.c must not compile, and say why.
refused()
{
    wanted "$1" "$2" || return 0
    later "$1" must_refuse "$@"
}

must_refuse()
{
    local name=$1 start result=refused log=$work/logs/$1
    shift 2
    start=$(date +%s)
    if ! command -v "$1" >/dev/null; then
        echo "found no $1, expected it installed (--install)" >"$log"
        result=missing
    elif "$@" -I"$root" -c "$root/qwen3moe.c" -o "$work/$name.o" >"$log" 2>&1; then
        echo "it compiled, expected an #error" >>"$log"
        result=accepted
    elif ! grep -q '#error "qwen3moe: ' "$log"; then
        result=not-built
    fi
    finish "$name" "$(version "$1") ${*:2}" $result - - - $(($(date +%s) - start))
}

# bare NAME SET MACHINE FLAGS...: tests/baremetal on an emulated board.
bare()
{
    wanted "$1" "$2" || return 0
    later "$1" run_bare "$@"
}

run_bare()
{
    local name=$1 machine=$3 start core=- result=same log=$work/logs/$1
    shift 3
    start=$(date +%s)
    if sh "$root/tests/baremetal/run.sh" "$work/$name" "$machine" "$@" >"$log" 2>&1; then
        core=$(sed -n 's/^core //p' "$log")
        [ "$core" = "$core_hash" ] || result=differs
    else
        result=differs
    fi
    finish "$name" "$(version arm-none-eabi-gcc) picolibc $*, no system" $result \
        "$(short "$core")" - - $(($(date +%s) - start))
}

# ==== The rows ====
strict="-std=c11 -Wall -Wextra -Werror"
fused="-std=gnu11 -ffp-contract=fast -Wall -Wextra -Werror"
if [ $list = no ]; then
    # shellcheck disable=SC2086
    rm -rf "$work/done" "$work/logs" "$work/shared"
    mkdir -p "$work/done" "$work/logs" "$work/shared"
    build "$work/maker" "" cc -std=c11 -O1 >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
fi

# shellcheck disable=SC2086
all_rows()
{
    for compiler in gcc clang; do
        for level in O0 O1 O2 O3 Os; do
            row $compiler-$level quick "" "" $compiler $strict -$level
        done
        # At link time gcc no longer sees that outputs are written whenever the status is 0.
        row $compiler-lto quick "" "" $compiler $strict -O2 -flto -Wno-maybe-uninitialized \
            -Wno-unknown-warning-option
        march $compiler-x86-64-v2 all v2 $compiler $strict -O2
        march $compiler-x86-64-v3 quick v3 $compiler $strict -O3
        march $compiler-x86-64-v4 quick v4 $compiler $strict -O3
        row $compiler-native quick "" "" $compiler $strict -O3 -march=native
        row $compiler-fused quick "" "" $compiler $fused -O3 -march=native
        row $compiler-unsigned-char all "" "" $compiler $strict -O2 -funsigned-char
    done
    row tcc quick "" "" tcc
    row musl quick "" "" musl-gcc $strict -O2 -static

    cross="$strict -O2 -static" cross_fused="$fused -O3 -static"
    row i686 quick "" qemu-i386-static i686-linux-gnu-gcc $cross -msse2 -mfpmath=sse
    row aarch64 quick "" qemu-aarch64-static aarch64-linux-gnu-gcc $cross
    row aarch64-fused quick "" qemu-aarch64-static aarch64-linux-gnu-gcc $cross_fused
    row armhf quick "" qemu-arm-static arm-linux-gnueabihf-gcc $cross
    row armhf-neon-fused all "" qemu-arm-static arm-linux-gnueabihf-gcc $cross_fused \
        -mfpu=neon-vfpv4
    row armel quick "" qemu-arm-static arm-linux-gnueabi-gcc $cross
    row riscv64 quick "" qemu-riscv64-static riscv64-linux-gnu-gcc $cross
    row riscv64-fused all "" qemu-riscv64-static riscv64-linux-gnu-gcc $cross_fused
    row s390x quick "" qemu-s390x-static s390x-linux-gnu-gcc $cross
    row s390x-z14-fused all "" qemu-s390x-static s390x-linux-gnu-gcc $cross_fused -march=z14
    row ppc64 quick "" qemu-ppc64-static powerpc64-linux-gnu-gcc $cross
    row ppc64-fused all "" qemu-ppc64-static powerpc64-linux-gnu-gcc $cross_fused
    row ppc64le quick "" qemu-ppc64le-static powerpc64le-linux-gnu-gcc $cross
    row ppc64le-fused all "" qemu-ppc64le-static powerpc64le-linux-gnu-gcc $cross_fused
    row mips64el quick "" qemu-mips64el-static mips64el-linux-gnuabi64-gcc $cross

    refused m68k quick m68k-linux-gnu-gcc -std=c11 -O2
    refused i686-x87 quick i686-linux-gnu-gcc -std=c11 -O2 -mfpmath=387

    bare cortex-m3 quick mps2-an385 -mcpu=cortex-m3 -mfloat-abi=soft
    bare cortex-m4f quick mps2-an386 -mcpu=cortex-m4 -mfloat-abi=hard
    bare cortex-m7 quick mps2-an500 -mcpu=cortex-m7 -mfloat-abi=hard
    bare cortex-m33 quick mps2-an505 -mcpu=cortex-m33 -mfloat-abi=hard

    row windows quick .exe "$wine" $zig -target x86_64-windows-gnu $strict -O2
    wasmtime="$venv/bin/python $root/tests/platforms/wasm.py $root/golden $work"
    row wasm32-wasi quick .wasm "$wasmtime" \
        $zig -target wasm32-wasi $strict -O2 -D_WASI_EMULATED_PROCESS_CLOCKS \
        -Wno-unused-command-line-argument -lwasi-emulated-process-clocks
    row zig-linux quick "" "" $zig -target x86_64-linux-musl $strict -O3 -march=native
    row zig-aarch64-linux all "" qemu-aarch64-static $zig -target aarch64-linux-musl $fused -O3
    row aarch64-macos quick "" none $zig -target aarch64-macos $strict -O2
    row x86_64-macos quick "" none $zig -target x86_64-macos $strict -O2
}
all_rows
[ $list = no ] || exit 0
wait
for name in "${begun[@]}"; do
    [ -e "$work/done/$name" ] || printf '| %s | | | | | 0 | no-result |\n' "$name" >"$work/done/$name"
    awk -F'|' 'NR == FNR { new = $0; name = $2; next } $2 == name { $0 = new; found = 1 } { print }
        END { if (!found) print new }' "$work/done/$name" "$rows" >"$work/all" && mv "$work/all" "$rows"
done

count() { grep -cE "\| ($1) \|\$" "$rows"; }
failed=$(($(grep -c . "$rows") - $(count 'same|built|refused')))
for name in $unknown; do
    echo "platforms.sh: --without, --only: found $name, expected a row's name (--list)" >&2
    failed=$((failed + 1))
done
summary="$(count same) rows ran with the one hash $core_hash (core), $(count built) were built, \
$(count refused) were refused by the compiler as they must be, $failed failed, in \
$(awk -F'|' '{ sum += $7 } END { print sum + 0 }' "$rows") seconds"
echo "$summary; left out by name:${left:- none}"

if [ $table = yes ]; then
    {
        sed '/<!-- table -->/q' "$bits/README.md"
        echo
        echo "| target | compiler | core | all | files | seconds | |"
        echo "|---|---|---|---|---|---|---|"
        cat "$rows"
        echo
        echo "$summary. Left out by name:${left:- none}."
        echo
        sed -n '/<!-- end -->/,$p' "$bits/README.md"
    } >"$work/README.md" && cp "$work/README.md" "$bits/README.md"
fi
[ $failed -eq 0 ] && [ -s "$rows" ]
