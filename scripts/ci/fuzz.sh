#!/usr/bin/env bash
# libFuzzer on what comes from outside (tests/fuzz/fuzz.c), under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   scripts/ci/fuzz.sh [--seconds N] [TARGET]...
#
# --seconds N  for each target (4)
# TARGET       json, config, safetensors, tokenizer, report, names, chat, gguf, index; all if none is named
#
# Needs clang with its sanitizers and libFuzzer (Debian: clang libclang-rt-14-dev). Starts from tests/fuzz/corpus. What
# fails is kept beside the working folder as fuzz-TARGET-...: put it into the corpus, where ctest runs it from then on.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
seconds=4
targets=()
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=$2; shift ;;
    -*) echo "fuzz.sh: unexpected option '$1'" >&2; exit 2 ;;
    *) targets+=("$1") ;;
    esac
    shift
done
[ ${#targets[@]} -gt 0 ] || targets=(json config safetensors tokenizer report names chat gguf index)
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
flags=(-std=c11 -O1 -g -I"$root" -DQ3_ABORT=q3_abort "-DGOLDEN=\"$root/golden\""
    "-fsanitize=address,undefined" -fno-sanitize-recover=all)
sources=("$root"/*.c "$root"/host/*.c "$root"/judge/*.c)
for source in "${sources[@]}"; do echo "$source"; done |
    xargs -P 2 -I{} sh -c 'clang "$@" -fsanitize=fuzzer-no-link -c "$0" -o "$(echo "$0" | tr / _).o"' {} "${flags[@]}"
failed=0
for target in "${targets[@]}"; do
    clang "${flags[@]}" -DTARGET="$target" -fsanitize=fuzzer "$root/tests/fuzz/fuzz.c" ./*.o -o "$target"
    mkdir -p "corpus-$target"
    if ./"$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=30000 -print_final_stats=1 \
        -artifact_prefix="$here/fuzz-$target-" "corpus-$target" "$root/tests/fuzz/corpus/$target" >log 2>&1; then
        echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' log) runs, no report"
    else
        tail -n 40 log
        echo "$target: FAILED"
        failed=$((failed + 1))
    fi
done
echo "fuzz: $((${#targets[@]} - failed)) passed, $failed failed"
[ $failed = 0 ]
