#!/bin/sh
# Builds the core for a Cortex-M board without an operating system and runs it in qemu-system-arm.
#
#   run.sh DIR MACHINE FLAGS...     DIR to work in; MACHINE and -mcpu as in scripts/ci/platforms.sh
#
# Prints "core HASH", and the lines that golden/bits/core.txt does not have; the status is the
# program's own, not 0 where it found a wrong NaN.
# SPDX-License-Identifier: MIT
set -eu
dir=$1 machine=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
case $machine in
mps2-an505) flash=0x10000000 ram=0x38000000 ;; # the secure half
*) flash=0x00000000 ram=0x20000000 ;;
esac
mkdir -p "$dir"
cc -std=c11 -O1 -I"$root" -I"$root/tests" "$here/make_model.c" "$root/qwen3moe.c" "$root/host/taps.c" \
    -o "$dir/make_model"
"$dir/make_model" >"$dir/model_data.h"

compile="arm-none-eabi-gcc --specs=picolibc.specs -mthumb $* -std=c11 -O2 -ffreestanding
-Wall -Wextra -Werror -I$root -I$root/tests -I$here -I$dir"
for source in qwen3moe host/taps tests/baremetal/main tests/baremetal/start; do
    $compile -c "$root/$source.c" -o "$dir/$(basename $source).o"
done

# The core's promises to such boards: three functions of libc, a stack that is bounded.
# shellcheck disable=SC2086
sh "$here/stack.sh" ${compile%%-Wall*} >"$dir/stack" || { cat "$dir/stack"; exit 1; }
$compile -nostartfiles -T "$here/link.ld" -Wl,--defsym=flash=$flash,--defsym=ram=$ram \
    -Wl,--no-warn-rwx-segments \
    "$dir/qwen3moe.o" "$dir/taps.o" "$dir/main.o" "$dir/start.o" -o "$dir/core.elf"

status=0
timeout 300 qemu-system-arm -M "$machine" -display none -monitor none -serial none \
    -semihosting-config enable=on,target=native -kernel "$dir/core.elf" >"$dir/out" 2>&1 ||
    status=$?
grep -v '^core ' "$dir/out" | diff - "$root/golden/bits/core.txt" | sed -n 's/^< //p'
grep '^core ' "$dir/out"
exit $status
