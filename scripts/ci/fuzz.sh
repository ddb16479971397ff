#!/usr/bin/env bash
# libFuzzer on what comes from outside (tests/fuzz), under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   scripts/ci/fuzz.sh [--seconds N] [--corpus DIR] [TARGET]...
#
# --seconds N   for each target (30); two run at a time
# --corpus DIR  where inputs that reach something new are kept, in a folder for each target; later runs start from
#               them, too
# TARGET        json, config, safetensors, tokenizer, encode, chat, report, names, gguf, index, backends; all if none is
#               named
#
# Needs clang with its sanitizers and libFuzzer (Debian: clang libclang-rt-14-dev). Starts from tests/fuzz/corpus. What
# fails is kept in the working folder as fuzz-TARGET-...: put it into the corpus, where ctest runs it from then on.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
all=(json config safetensors tokenizer encode chat report names gguf index backends)
seconds=30 corpus='' targets=()
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=$2; shift ;;
    --corpus) mkdir -p "$2"; corpus=$(cd "$2" && pwd); shift ;;
    *) [[ " ${all[*]} " == *" $1 "* ]] || { echo "fuzz.sh: found '$1', expected a target or an option" >&2; exit 2; }
        targets+=("$1") ;;
    esac
    shift
done
[ ${#targets[@]} -gt 0 ] || targets=("${all[@]}")
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -n "$corpus" ] || corpus=$work/corpus
cd "$work"
flags=(-std=c11 -O1 -g -I"$root" -I"$root/tests" -DQ3_ABORT=q3_abort -DLIBFUZZER "-DGOLDEN=\"$root/golden\""
    "-fsanitize=fuzzer-no-link,address,undefined" -fno-sanitize-recover=all)
for source in "$root"/*.c "$root"/host/*.c "$root"/judge/*.c "$root"/tests/fuzz/*.c; do echo "$source"; done |
    xargs -P 2 -I{} sh -c 'clang "$@" -c "$0" -o "$(echo "$0" | tr / _).o"' {} "${flags[@]}"
clang "${flags[@]}" -fsanitize=fuzzer ./*.o -o fuzz

# Runs one target in a folder of its own, where it may write files.
run() {
    mkdir -p "$work/$1" "$corpus/$1"
    cd "$work/$1"
    if FUZZ_TARGET=$1 ../fuzz -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -max_len=30000 \
        -print_final_stats=1 -dict="$root/tests/fuzz/dictionary" -artifact_prefix="$here/fuzz-$1-" "$corpus/$1" \
        "$root/tests/fuzz/corpus/$1" >log 2>&1; then
        echo "$1: $(sed -n 's/^stat::number_of_executed_units: *//p' log) runs, no report"
    else
        tail -n 40 log
        echo "$1: FAILED"
    fi
}
export -f run
export work corpus seconds root here
printf '%s\n' "${targets[@]}" | xargs -P 2 -I{} bash -c 'run {}' | tee said
failed=$(grep -c ': FAILED$' said || true)
passed=$(grep -c ' runs, no report$' said || true)
echo "fuzz: $passed passed, $failed failed, $(awk '/ runs, no report$/ { n += $2 } END { print n + 0 }' said) runs"
[ "$failed" = 0 ] && [ "$passed" = ${#targets[@]} ]
