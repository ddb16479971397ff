#!/bin/sh
# The core's worst-case stack, from the compiler's own figures: every function's frame (-fstack-usage) and who calls
# whom (-fcallgraph-info), added up along the deepest path. Fails where a frame has no fixed size, where a function
# may call itself, where a path is deeper than the limit, or where the core needs more of libc than three functions.
#
#   stack.sh [COMPILER FLAG...]     gcc 10 or later; without arguments: gcc at every level of optimisation
#
# Not in the figures: a tap and what reads a quantised weight, which are the caller's, the three functions, and
# routines for arithmetic that the processor lacks. Frames are in bytes; "path" is the deepest one of q3_forward.
# SPDX-License-Identifier: MIT
set -eu
limit=6144
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

measure() { # COMPILER FLAG...
    (cd "$work" && "$@" -std=c11 -ffreestanding -fcallgraph-info=su,da -c "$root/qwen3moe.c" -o core.o)
    needs=$("$nm" -u "$work/core.o" | awk '{print $NF}' |
        grep -Ev '^(__aeabi_[a-z0-9_]+|__[a-z]+[dsuf]i[0-9]*)$' | sort | tr '\n' ' ')
    for name in $needs; do
        case $name in
        memcpy | memset | memmove) ;;
        *) echo "$*: qwen3moe.o needs $name, expected memcpy, memset, memmove"; return 1 ;;
        esac
    done
    awk -v what="$*" -v needs="$needs" -v limit=$limit '
        function text(key,   a) { # the value of key: "..."
            a = index($0, key ": \"")
            if (a == 0) return ""
            a = substr($0, a + length(key) + 3)
            return substr(a, 1, index(a, "\"") - 1)
        }
        function short(name) { sub(/.*:/, "", name); return name }
        function fail(message) { print what ": " message; failed = 1; exit 1 }
        # Bytes from name downward; the next function of the deepest path is left in below[name].
        function depth(name,   n, callees, i, bytes, most) {
            if (name in known) return known[name]
            if (name in open) fail("found recursion in " short(name))
            open[name] = 1
            most = 0
            n = split(calls[name], callees, " ")
            for (i = 1; i <= n; i++) {
                bytes = depth(callees[i])
                if (bytes > most) { most = bytes; below[name] = callees[i] }
            }
            delete open[name]
            return known[name] = frame[name] + most
        }
        /^node:/ && /bytes/ {
            name = text("title"); label = text("label")
            if (label ~ /\(dynamic\)/) fail("found a frame without a fixed size in " short(name))
            sub(/ bytes.*/, "", label); sub(/.*\\n/, "", label)
            frame[name] = label + 0
        }
        /^edge:/ {
            from = text("sourcename"); to = text("targetname")
            if (to != "__indirect_call") { called[to] = 1; calls[from] = calls[from] " " to }
            else { taps++; through[from] = 1 }                 # the tap, or a kernel of the table
            if (to == "__indirect_call" && from ~ /q3_selftest/) indirect[from] = 1 # its table of checks
        }
        END {
            if (failed) exit 1
            # Operators without a linear map or scores: the kernel that they call is not the largest, plain_dots.
            elementwise = "^(q3_(rmsnorm|rope_apply|attention_probs|attention_values|router_probs|expert_combine|"
            elementwise = elementwise "silu_map|multiply|residual_add)|rotate|exp_below)(\\.|$)"
            # What is called through a pointer here is a quantised weight, which brings its own reader.
            readers = "^(exact_elements|widen_quantized|q3_widen|quantized_sums|row_sums|row_piece|sums_of|plain_dots|"
            readers = readers "embed_quantized|q3_embedding)(\\.|$)"
            for (from in through) if (short(from) ~ readers) delete through[from]
            if (!("q3_forward" in frame) || taps == 0) fail("found no call graph")
            # Static functions that nobody calls by name stand in the table of checks, or in that of kernels.
            for (name in frame) {
                if (name !~ /:/ || name in called) continue
                if (short(name) ~ /^plain_/) {
                    for (from in through)
                        if (short(name) !~ /^plain_dots/ || short(from) !~ elementwise)
                            calls[from] = calls[from] " " name
                }
                else for (from in indirect) calls[from] = calls[from] " " name
            }
            deepest = 0
            for (name in frame) if (depth(name) > deepest) { deepest = depth(name); deepest_of = name }
            path = "q3_forward"
            for (name = "q3_forward"; name in below; name = below[name]) path = path " > " short(below[name])
            printf "%-46s %7d %7d %7d %7d   %s\n", what, depth("q3_forward"), depth("q3_state_init"),
                depth("q3_selftest"), deepest, path
            if (deepest > limit) fail("found " deepest " bytes in " short(deepest_of) ", expected at most " limit)
        }' "$work/core.ci"
}

printf '%-46s %7s %7s %7s %7s   %s\n' compiler forward init selftest any path
if [ $# -gt 0 ]; then
    case $1 in *-gcc) nm=${1%gcc}nm ;; *) nm='nm' ;; esac
    measure "$@"
else
    nm='nm'
    for level in -O0 -O1 -O2 -O3 -Os; do measure gcc $level; done
fi
echo "limit $limit"
