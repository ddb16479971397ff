#!/usr/bin/env bash
# Breaks the code on purpose, one place at a time (scripts/ci/mutants.txt), and fails unless a test notices
# each time.
#
#   scripts/ci/mutate.sh [-j N] [--quick] [TEXT]
#
# -j N     so many copies of the tree at work (2)
# --quick  only checks that each mutant's text stands in its file exactly once: builds and runs nothing
# TEXT     only the mutants whose line "FILE: what is wrong" holds it
#
# Needs bash, CMake and a C compiler; takes Ninja if there is one. Works on copies in a temporary folder.
# Prints a line for each mutant: seconds, the test that failed, the mutant. Tests run one by one until
# one fails, the quickest first, but those that compare with our own earlier bits (label "bits") last: they
# see any change and cannot tell a wrong one. A mutant that does not compile is an error.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "$0")/../.." && pwd)
jobs=2 quick=no only=
while [ $# -gt 0 ]; do
    case $1 in
    -j) jobs=$2; shift ;;
    --quick) quick=yes ;;
    -*) echo "mutate.sh: $1: no such option" >&2; exit 2 ;;
    *) only=$1 ;;
    esac
    shift
done

# ---- the list: names[i], files[i], olds[i], news[i] ----

names=() files=() olds=() news=()
read_list() {
    local line text last=@ n=-1
    while IFS= read -r line || [ -n "$line" ]; do
        text=${line#?}
        text=${text# }
        case $line in
        '@ '*)
            n=$((n + 1)) last=@
            names[n]=$text files[n]=${text%%: *} olds[n]='' news[n]='' ;;
        -*)
            [ "$last" = - ] && olds[n]+=$'\n'
            olds[n]+=$text last=- ;;
        +*)
            [ "$last" = + ] && news[n]+=$'\n'
            news[n]+=$text last=+ ;;
        '#'* | '') ;;
        *) echo "mutants.txt: not understood: $line" >&2; exit 1 ;;
        esac
    done <"$root/scripts/ci/mutants.txt"
}

# The bytes of FOLDER's file with mutant i in it, on standard output; fails unless the text stands in
# the file exactly once.
mutate() {
    local i=$1 folder=$2
    OLD=${olds[i]} NEW=${news[i]} awk '
        { all = all $0 "\n" }
        END {
            old = ENVIRON["OLD"]
            at = index(all, old)
            behind = substr(all, at + length(old))
            if (old == "" || at == 0 || index(behind, old) != 0) exit 1
            printf "%s%s%s", substr(all, 1, at - 1), ENVIRON["NEW"], behind
        }' "$folder/${files[i]}" && return
    echo "mutants.txt: ${names[i]}: its text must stand in the file exactly once" >&2
    return 1
}

read_list
wanted=()
stale=0
for i in "${!names[@]}"; do
    [[ ${names[i]} == *"$only"* ]] || continue
    wanted+=("$i")
    mutate "$i" "$root" >/dev/null || stale=$((stale + 1))
done
echo "${#wanted[@]} mutants, $stale of them stale"
[ "$stale" = 0 ] && [ ${#wanted[@]} -gt 0 ] || exit 1
[ "$quick" = no ] || exit 0

# ---- copies of the tree, and the tests in the order of their times ----

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)

targets=()
build() { cmake --build "$1/build" --target "${targets[@]}" >"$1/log" 2>&1; }
run_test() { (cd "$1/build" && ctest -R "^$2\$" --timeout "$3" >"$1/log" 2>&1); }

tree=$work/tree # as it is now; the checkout may change meanwhile
mkdir "$tree"
(cd "$root" && tar cf - --exclude=.git --exclude='./build*' .) | tar xf - -C "$tree"

prepare() {
    cp -R "$tree" "$1"
    cmake "${generator[@]}" -S "$1" -B "$1/build" -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS=-O1 -DQ3_TEST_TIMEOUT=0 >"$1/log" 2>&1 ||
        { cat "$1/log"; return 1; }
}

prepare "$work/0"
mapfile -t tests < <(cd "$work/0/build" && ctest -N | sed -n 's/^ *Test *#[0-9]*: //p')
mapfile -t targets < <(grep -o '/build/test_[a-z0-9_]*' "$work/0/build/CTestTestfile.cmake" |
    sed 's|.*/||' | sort -u; echo q3_command) # without the library that is installed
[ ${#targets[@]} -gt 1 ]
build "$work/0" || { cat "$work/0/log"; exit 1; }
for test in "${tests[@]}"; do
    begin=$(date +%s%N)
    if ! run_test "$work/0" "$test" 600; then
        cat "$work/0/log"
        echo "$test fails without any mutant"
        exit 1
    fi
    echo "$((($(date +%s%N) - begin) / 1000000)) $test"
done | sort -n >"$work/times" || { cat "$work/times"; exit 1; }
echo "tests, ms: $(tr '\n' ' ' <"$work/times")"
own=$(cd "$work/0/build" && ctest -N -L '^bits$' | sed -n 's/^ *Test *#[0-9]*: //p')
mapfile -t tests < <(cut -d' ' -f2 "$work/times" | grep -vxF "$own"; echo "$own")
slowest=$(tail -n 1 "$work/times" | cut -d' ' -f1)
for ((k = 1; k < jobs; k++)); do
    prepare "$work/$k"
    build "$work/$k" &
done
wait

# ---- the mutants ----

# Prints and stores the result of mutant i in copy k.
try() {
    local i=$1 folder=$work/$2 begin=$SECONDS killer=
    mutate "$i" "$tree" >"$folder/${files[i]}"
    if ! build "$folder"; then
        killer='DOES NOT COMPILE'
        cat "$folder/log"
    fi
    for test in "${tests[@]}"; do
        [ -z "$killer" ] || break
        run_test "$folder" "$test" $((slowest / 200 + 30)) || killer=$test
    done
    cp "$tree/${files[i]}" "$folder/${files[i]}"
    printf '%4d s  %-16s  %s\n' $((SECONDS - begin)) "${killer:-NOT NOTICED}" "${names[i]}" |
        tee -a "$work/results.$2"
}

for ((k = 0; k < jobs; k++)); do
    (
        trap - EXIT
        for ((n = k; n < ${#wanted[@]}; n += jobs)); do try "${wanted[n]}" "$k"; done
    ) &
done
wait
cat "$work"/results.* >"$work/all"
bad=$(grep -c -e 'NOT NOTICED' -e 'DOES NOT COMPILE' "$work/all" || true)
good=$(($(wc -l <"$work/all") - bad))
echo "mutants: $good noticed, $bad not, of ${#wanted[@]}; $SECONDS s"
grep -e 'NOT NOTICED' -e 'DOES NOT COMPILE' "$work/all" || true
echo "noticed by our own earlier bits alone: $(awk '{print $3}' "$work/all" | grep -cxF "$own" || true)"
[ "$good" = ${#wanted[@]} ]
