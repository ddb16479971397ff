#!/usr/bin/env bash
# scripts/record/split_check.sh for real: golden/tiny against Hugging Face's taps, and against taps with a planted
# fault, in parts by GNU parallel, here and on (feigned) other machines, and by Slurm. The merged report must
# be that of one `qwen3moe check`, byte for byte, as text and as HTML, but for the command line: one run has its
# own, a merged report a part's, which ends in the number of the other parts. Slurm is one node that is started
# here on the loopback interface and stopped.
#
#   scripts/ci/split_test.sh QWEN3MOE
#
# QWEN3MOE: the command. Needs root, GNU parallel, Slurm and munge (Debian: parallel slurm-wlm munge), python3.
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
[ $# = 1 ] || { echo 'usage: split_test.sh QWEN3MOE' >&2; exit 2; }
QWEN3MOE=$(realpath "$1")
export QWEN3MOE
work=$(mktemp -d)
chmod 755 "$work" # munged wants its socket reachable
daemons=()
finish() {
    local pid
    for pid in "${daemons[@]}"; do
        kill "$(cat "$pid")" 2>/dev/null || true
    done
    for pid in "${daemons[@]}"; do # they remove their file when they end
        for _ in $(seq 100); do [ ! -f "$pid" ] || sleep 0.1; done
    done
    rm -rf "$work"
}
trap finish EXIT
passed=0
failed() {
    echo "split_test.sh: $1" >&2
    exit 1
}

# daemon PIDFILE COMMAND...
daemon() {
    daemons=("$1" "${daemons[@]}")
    "${@:2}"
    for _ in $(seq 100); do [ -s "$1" ] || sleep 0.1; done
    [ -s "$1" ] || failed "$2: did not start"
}

start_slurm() {
    mkdir "$work/state" "$work/spool"
    (umask 077; head -c 128 /dev/urandom >"$work/munge.key")
    daemon "$work/munge.pid" munged --key-file "$work/munge.key" --socket "$work/munge.socket" \
        --pid-file "$work/munge.pid" --log-file "$work/munge.log" --seed-file "$work/munge.seed"
    cat >"$work/slurm.conf" <<END
ClusterName=loopback
SlurmctldHost=localhost
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$work/munge.socket
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0
MailProg=/bin/true
NodeName=localhost CPUs=2 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES
END
    export SLURM_CONF=$work/slurm.conf
    daemon "$work/slurmctld.pid" slurmctld
    daemon "$work/slurmd.pid" slurmd -N localhost
}

# A report without its one line (in the page, its one entry) that says the command.
without_command() { # FILE
    [ "$(grep -c -e '^command  ' -e '<dt>command<dd>' "$1")" -le 1 ] || failed "$1: more than one command line"
    sed -e '/^command  /d' -e 's/<dt>command<dd>[^<]*//' "$1"
}

# What check and split_check.sh say of the same file: NAME STATUS BACKEND
same() {
    local name=$1 want=$2 backend=$3 how status files
    status=0
    "$QWEN3MOE" check golden/tiny "$backend" --all --html "$work/one.html" >"$work/one" || status=$?
    [ $status = "$want" ] || { cat "$work/one"; failed "$name: one run: found status $status, expected $want"; }
    for how in parallel:2 parallel:5 slurm:3 machines:4; do
        status=0
        rm -rf "$work/parts"
        case $how in
        slurm*) set -- --slurm ;;
        *) set -- ;;
        esac
        case $how in
        machines*) export PARALLEL_SSH="$work/ssh" PARALLEL='--sshlogin one,two --jobs 1' ;;
        *) unset PARALLEL_SSH PARALLEL ;;
        esac
        scripts/record/split_check.sh "$@" golden/tiny "$backend" "${how#*:}" "$work/parts" --all >"$work/merged" ||
            status=$?
        [ $status = "$want" ] || { cat "$work/merged"; failed "$name, $how: status $status, expected $want"; }
        diff <(without_command "$work/one") <(without_command "$work/merged") ||
            failed "$name, $how: the reports are not the same"
        grep -q "^command  .* check golden/tiny .*--layers 0:.* (and $((${how#*:} - 1)) more)$" "$work/merged" ||
            failed "$name, $how: the command line is not a part's"
        cmp <(without_command "$work/one.html") <(without_command "$work/parts/report.html") ||
            failed "$name, $how: the HTML is not the same"
        files=("$work"/parts/part-*.jsonl)
        [ ${#files[@]} = "${how#*:}" ] || failed "$name, $how: found ${#files[@]} parts"
        echo "$name, $how parts: $(tail -n 1 "$work/merged"), status $status, the report of one run"
        passed=$((passed + 1))
    done
}

# A copy of a file of taps, in which one element of each TAP is another number.
plant() { # FROM TO TAP...
    python3 - "$@" <<'END'
import json, struct, sys
source, target, *taps = sys.argv[1:]
data = bytearray(open(source, "rb").read())
length = struct.unpack("<Q", data[:8])[0]
entries = json.loads(data[8:8 + length])
for tap in taps:
    assert entries[tap]["dtype"] == "F32"
    at = 8 + length + entries[tap]["data_offsets"][0] + 4 * 77
    data[at:at + 4] = struct.pack("<f", struct.unpack("<f", data[at:at + 4])[0] + 0.5)
open(target, "wb").write(data)
END
}

# Status 2 and a line, and no report, from split_check.sh: NAME WORDS COMMAND...; without `anew` in front of
# them, with what the folder has of the last start.
refused() {
    local anew=no name words status=0
    if [ "$1" = anew ]; then anew=yes; shift; fi
    name=$1 words=$2
    shift 2
    [ $anew = no ] || rm -rf "$work/parts"
    "$@" >"$work/said" 2>"$work/line" || status=$?
    if [ $status != 2 ] || [ -s "$work/said" ] || ! grep -q "$words" "$work/line"; then
        cat "$work/said" "$work/line"
        failed "$name: found status $status, expected 2 and: $words"
    fi
    echo "$name: $(head -n 1 "$work/line" | sed "s|$work/||g")"
    passed=$((passed + 1))
}

# GNU parallel's other machines: this one, with an empty environment, by an ssh that is none.
cat >"$work/ssh" <<'END'
#!/bin/sh
# ssh HOST -- COMMAND...
shift 2
exec env -i HOME=/ SHELL=/bin/sh PATH=/usr/bin:/bin sh -c "$*"
END
chmod +x "$work/ssh"

cd "$root" # the report shows paths as they are given
start_slurm
taps=golden/hf/tiny/taps
for dtype in float32 bfloat16 float16; do
    same $dtype 0 "$taps-$dtype.safetensors"
done
plant "$taps-float32.safetensors" "$work/fault.safetensors" model.layers.3.post_attention_layernorm.output
same 'a fault in layer 3' 1 "$work/fault.safetensors"
plant "$taps-float32.safetensors" "$work/all.safetensors" model.layers.{0,1,2,3,4}.self_attn.q_proj.output
same 'a fault in every layer' 1 "$work/all.safetensors"

# A command that dies in layer 2, without a word, as one that is killed does.
cat >"$work/dies" <<END
#!/bin/sh
case "\$*" in *'--layers 2:3'*) kill -9 \$\$ ;; esac
exec '$QWEN3MOE' "\$@"
END
chmod +x "$work/dies"
split=(scripts/record/split_check.sh)
run=(golden/tiny "$taps-float32.safetensors")
refused anew 'a lost part, parallel' 'layers 2:3: found no report' \
    env QWEN3MOE="$work/dies" "${split[@]}" "${run[@]}" 5 "$work/parts"
refused anew 'a lost part, slurm' 'layers 2:3: found no report' \
    env QWEN3MOE="$work/dies" "${split[@]}" --slurm "${run[@]}" 5 "$work/parts"
refused anew 'a job that Slurm refuses' 'layers 0:2: found no report' \
    env SBATCH_PARTITION=none "${split[@]}" --slurm "${run[@]}" 2 "$work/parts"
refused anew 'a part that is refused' 'layers 0:2: found no report' \
    "${split[@]}" "${run[@]}" 2 "$work/parts" --dtype float8
refused anew 'no jobs' 'JOBS: found 0' "${split[@]}" "${run[@]}" 0 "$work/parts"
refused anew '--free' 'free: found with parts' "${split[@]}" "${run[@]}" 2 "$work/parts" --free

# A part that is lost is made by the next start, and no other: parallel and Slurm.
cp "$taps-float32.safetensors" "$work/taps.safetensors"
cat >"$work/once" <<END
#!/bin/sh
case "\$*" in *'--layers 2:3'*) [ ! -e '$work/deadly' ] || kill -9 \$\$ ;; esac
exec '$QWEN3MOE' "\$@"
END
chmod +x "$work/once"
run=(golden/tiny "$work/taps.safetensors" 5 "$work/parts" --all)
"$QWEN3MOE" check golden/tiny "$work/taps.safetensors" --all --html "$work/one.html" >"$work/one"
for how in '' --slurm; do
    touch "$work/deadly"
    # shellcheck disable=SC2086 # none or one
    refused anew "a part that dies once ${how:-parallel}" 'layers 2:3: found no report' \
        env QWEN3MOE="$work/once" "${split[@]}" $how "${run[@]}"
    rm "$work/deadly"
    for start in second third; do
        touch "$work/before"
        # shellcheck disable=SC2086
        QWEN3MOE="$work/once" "${split[@]}" $how "${run[@]}" >"$work/merged"
        diff <(without_command "$work/one") <(without_command "$work/merged") || failed "the $start start: another report"
        cmp <(without_command "$work/one.html") <(without_command "$work/parts/report.html") ||
            failed "the $start start: another page"
        made=$(find "$work/parts" -name 'part-*.jsonl' -newer "$work/before" -printf '%f ')
        expected=''
        [ $start = third ] || expected='part-00002.jsonl '
        [ "$made" = "$expected" ] || failed "the $start start made '$made', expected '$expected'"
        echo "the $start start, ${how:-parallel}: made '$made', the report of one run"
        passed=$((passed + 1))
    done
done
refused 'parts of other options' 'found the parts of another run' \
    env QWEN3MOE="$work/once" "${split[@]}" "${run[@]}" --strict
touch "$work/taps.safetensors"
refused 'taps that are newer' 'found newer than' env QWEN3MOE="$work/once" "${split[@]}" "${run[@]}"
mkdir "$work/else"
refused 'a folder of something else' 'expected a new folder' \
    "${split[@]}" golden/tiny "$taps-float32.safetensors" 2 "$work/else"
echo "split: $passed passed, 0 failed"
