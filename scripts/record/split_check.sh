#!/usr/bin/env bash
# qwen3moe check in parts: cuts the model's layers into ranges, checks each range in a process of its own, on
# this machine, on many, or as a Slurm job array, and merges what they found into one report, which is the
# same text and HTML, byte for byte, as that of a single `qwen3moe check`, but for the command line that they show.
#
#   scripts/record/split_check.sh [--slurm] MODEL BACKEND JOBS FOLDER [option of check]...
#
#   MODEL     the model's folder             BACKEND   the other implementation's taps (.safetensors)
#   JOBS      how many ranges                FOLDER    is made: the parts, their logs and report.html;
#                                                      of a run that was interrupted: what is missing is made
#   options   --strict, --accumulate X, --kv X, --router X, --require GLOB, --dtype X, --tokens IDS, --prompt TEXT,
#             --all
#
# Each process opens the weights of its own layers alone, and starts from the output of the layer before,
# which BACKEND must hold for every range but the first.
#
# Without --slurm: GNU parallel, one process a core. It takes further options from the environment's PARALLEL:
# '--sshlogin :,node1,node2' for this machine and two more, '--jobs 4' for four processes a machine.
# With --slurm: sbatch, a task for each range. Partition, account and time limit come from Slurm's own
# variables (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT).
# All machines must see MODEL, BACKEND, FOLDER and the command under the same paths. The command is
# $QWEN3MOE, else qwen3moe in PATH.
#
# Exit status: the report's: 0 agrees, 1 differs, 2 could not judge. A part that is lost is status 2.
# SPDX-License-Identifier: MIT
set -euo pipefail

stop() {
    echo "split_check.sh: $1" >&2
    exit 2
}

slurm=no
[ "${1:-}" != --slurm ] || { slurm=yes; shift; }
[ $# -ge 4 ] || stop "found $# arguments, expected [--slurm] MODEL BACKEND JOBS FOLDER [option of check]..."
command=$(command -v "${QWEN3MOE:-qwen3moe}") || stop "${QWEN3MOE:-qwen3moe}: found no such command (QWEN3MOE)"
command=$(realpath "$command")
[ -d "$1" ] || stop "$1: found no such folder, expected a model"
[ -f "$2" ] || stop "$2: found no such file, expected taps"
model=$1 backend=$2 jobs=$3 folder=$4 # as given: the report shows them
shift 4
[[ $jobs =~ ^[1-9][0-9]{0,4}$ ]] || stop "JOBS: found $jobs, expected a number from 1 on"
all=()
for option in "$@"; do
    case $option in
    --all) all=(--all) ;;
    --free*) stop "--free: found with parts, expected one run: a range starts from the other's numbers" ;;
    --layers* | --json* | --html* | --junit*) stop "$option: found with parts, expected it left out: each part has its own" ;;
    esac
done
if [ $slurm = yes ]; then needed=sbatch; else needed=parallel; fi
command -v $needed >/dev/null || stop "found no $needed, expected it installed"
layers=$("$command" info --json "$model" | sed -n 's/.*"num_hidden_layers":\([0-9]*\).*/\1/p')
[ -n "$layers" ] || stop "$model: found no number of layers"
[ "$jobs" -le "$layers" ] || jobs=$layers
[ -e "$folder/part.sh" ] || mkdir "$folder" || stop "$folder: expected a new folder, or one of this script's"
folder=$(realpath "$folder")

# Ranges as even as can be, without an empty one, and the program of part N.
ranges=() parts=()
for ((part = 0; part < jobs; part++)); do
    ranges+=("$((layers * part / jobs)):$((layers * (part + 1) / jobs))")
    parts+=("$folder/part-$(printf %05d $part).jsonl")
done
program=$(cat <<END
#!/usr/bin/env bash
# part.sh N: checks range N
ranges=(${ranges[*]})
cd $(printf %q "$PWD")
file=$(printf %q "$folder")/part-\$(printf %05d "\$1")
{
    $(printf '%q ' "$command" check "$model" "$backend" "$@")\\
        --layers "\${ranges[\$1]}" --json "\$file.jsonl"
    echo "exit status \$?"
} >"\$file.log" 2>&1
END
)
if [ ! -e "$folder/part.sh" ]; then
    echo "$program" >"$folder/part.sh.new"
    mv "$folder/part.sh.new" "$folder/part.sh"
elif [ "$program" != "$(cat "$folder/part.sh")" ]; then
    stop "$folder: found the parts of another run, expected those of this one; remove it, or name another folder"
fi

# What is there of an earlier start is whole: a part is written whole or not at all.
missing=()
for ((part = 0; part < jobs; part++)); do
    if [ ! -s "${parts[part]}" ]; then
        missing+=("$part")
    elif [ "$backend" -nt "${parts[part]}" ]; then
        stop "$backend: found newer than ${parts[part]}, expected the file that was judged; remove $folder"
    fi
done

# A part's own exit status says nothing that its file does not: check writes the file whole or not at all.
if [ ${#missing[@]} = 0 ]; then
    : # only the report is
elif [ $slurm = yes ]; then
    sbatch --quiet --wait --job-name=qwen3moe-check --array="$(IFS=,; echo "${missing[*]}")" --chdir="$folder" \
        --output="$folder/slurm-%a.log" --wrap="bash $(printf %q "$folder")/part.sh \$SLURM_ARRAY_TASK_ID" || true
else
    parallel --will-cite bash "$(printf %q "$folder")/part.sh" ::: "${missing[@]}" || true
fi

lost=0
for ((part = 0; part < jobs; part++)); do
    [ ! -s "${parts[part]}" ] || continue
    log=${parts[part]%.jsonl}.log
    said=$(grep -s -e '^qwen3moe: ' -e '^exit status ' "$log" | tail -n 2 | paste -s -d" ") || true
    echo "split_check.sh: layers ${ranges[part]}: found no report, expected ${parts[part]}:" \
        "${said:-it did not start}" >&2
    lost=$((lost + 1))
done
[ $lost = 0 ] || stop "$lost of $jobs parts are lost: could not judge"
exec "$command" report "${parts[@]}" "${all[@]}" --html "$folder/report.html"
