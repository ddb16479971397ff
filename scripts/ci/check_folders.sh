#!/bin/sh
# Folders that transformers 4.57.6 and 5.17.0 save from the same weights, whole, sharded, tied, and
# in 5.x's packed layout, must load and give the same bits.
#
#   scripts/ci/check_folders.sh QWEN3MOE PYTHON4 PYTHON5
#
# QWEN3MOE: the built command. PYTHON4, PYTHON5: interpreters of environments with torch==2.13.0 and
# transformers==4.57.6, transformers==5.17.0. Exit status 0 if all agree.
# SPDX-License-Identifier: MIT
set -eu
if [ $# -ne 3 ]; then
    sed -n '2,8p' "$0" >&2
    exit 2
fi
command=$1
python4=$2
python5=$3
scripts=$(dirname "$0")/..
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python5" "$scripts/golden/make_folders.py" weights "$work/weights.npz"
"$python4" "$scripts/golden/make_folders.py" save "$work/weights.npz" "$work/4" 2> "$work/log" ||
    { cat "$work/log" >&2; exit 2; }
"$python5" "$scripts/golden/make_folders.py" save "$work/weights.npz" "$work/5" 2> "$work/log" ||
    { cat "$work/log" >&2; exit 2; }

status=0
expected=
compared=0
for dtype in float32 bfloat16 float16; do
    for folder in 4/one 4/sharded 5/one 5/sharded 5/packed 4/tied 5/tied; do
        "$command" dump "$work/$folder" --dtype "$dtype" --tokens 3,1,4,1,5,9,2,6 \
            -o "$work/taps.safetensors" > /dev/null
        found=$(sha256sum < "$work/taps.safetensors" | cut -d' ' -f1)
        case $folder in
            4/one) expected=$found untied=$found ;;
            4/tied) expected=$found ;;
        esac
        if [ "$folder" = 4/tied ] && [ "$found" = "$untied" ]; then
            echo "$dtype $folder: found the untied model's bits, expected others"
            status=1
        fi
        if [ "$found" != "$expected" ]; then
            echo "$dtype $folder: found $found, expected $expected"
            status=1
        fi
        compared=$((compared + 1))
    done
done
echo "check_folders: $compared dumps compared"
[ "$compared" -eq 21 ] || status=1
exit $status
