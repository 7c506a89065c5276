#!/usr/bin/env bash
# Builds the fuzz targets and prints the line of each.
#
#   tests/fuzz.sh [SECONDS] [TARGET…]    all of them, or those; a minute each if nothing is said
#   tests/fuzz.sh again TARGET FILE      an input again, a hundred times, since threads decide too
#   tests/fuzz.sh list                   their names
#
# SOLEWRITER_SEED sets where libFuzzer begins (1). What it has found worth keeping is the beginning of the next run. Each
# target is run once more on something that is broken on purpose, until that is noticed. Fails if a target crashes, hangs,
# or notices nothing. Needs a C++ compiler for libFuzzer.
set -euo pipefail
cd "$(dirname "$0")/.."

# Each target and its canaries.
targets='
commands       AckBeforeCommit NoFence
config         LosesMillis
damaged_files  RowDeleted
'
names=$(awk 'NF { print $1 }' <<<"$targets")
canary_seconds=60

usage() {
    sed -n '4,6s/^# *//p' "$0" >&2
    exit 2
}

is_target() { grep -qx "$1" <<<"$names" || { echo "there is no target $1" >&2 && usage; }; }

seconds=60
again=''
case ${1-} in
list) echo "$names" && exit ;;
again)
    [ $# = 3 ] && [ -f "$3" ] || usage
    again=$(realpath "$3")
    is_target "$2"
    ;;
'' | *[!0-9]*) ;;
*) seconds=$1 && shift ;;
esac
wanted=${*:-$names}
[ -n "$again" ] && wanted=$2
for name in $wanted; do is_target "$name"; done

host=$(rustc -vV | sed -n 's/^host: //p')
folder=${CARGO_TARGET_DIR:-target}/fuzz
mkdir -p "$folder"
folder=$(realpath "$folder")
# What cargo-fuzz sets. With a target of its own, what runs while it is built is not instrumented.
flags='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares'
RUSTFLAGS=$(echo $flags) cargo build --locked --manifest-path tests/fuzz/Cargo.toml --bins --target "$host" \
    --target-dir "$folder" >"$folder/build.log" 2>&1 || { tail -40 "$folder/build.log" >&2 && exit 1; }
programs=$folder/$host/debug

scratch=$(mktemp -d "$([ -d /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/solewriter-fuzz-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
export SOLEWRITER_FUZZ_DIR=$scratch
unset SOLEWRITER_FUZZ_CANARY SOLEWRITER_FUZZ_SHOW
export RUST_BACKTRACE=0
seed=${SOLEWRITER_SEED:-1}

if [ -n "$again" ]; then
    SOLEWRITER_FUZZ_SHOW=1 "$programs/$wanted" -runs=100 -timeout=60 "$again"
    exit
fi

# Runs a target until it has crashed or the time is over.
fuzz() { # TARGET SECONDS ARTIFACTS CORPUS…
    local program=$programs/$1 limit=$2 artifacts=$3
    shift 3
    mkdir -p "$artifacts" "$1"
    "$program" -max_total_time="$limit" -seed="$seed" -timeout=60 -rss_limit_mb=4096 -max_len=2048 -len_control=0 \
        -print_final_stats=1 -artifact_prefix="$artifacts/" "$@"
}

figure() { sed -n "s/^$1: *\([0-9]*\).*/\1/p" "$2" | tail -1; } # NAME LOG

failed=()
for name in $wanted; do
    log=$folder/$name.log
    corpora=("$folder/corpus/$name")
    [ -d "tests/fuzz/seeds/$name" ] && corpora+=("tests/fuzz/seeds/$name")
    line="fuzz_$name:"
    if fuzz "$name" "$seconds" "$folder/crashes/$name" "${corpora[@]}" >"$log" 2>&1; then
        coverage=$(sed -n 's/.*DONE *cov: \([0-9]*\).*corp: \([0-9]*\).*/coverage=\1 corpus=\2/p' "$log" | tail -1)
        seen=$(sed -n 's/^figures: //p' "$log" | tail -1)
        line+=" cases=$(figure stat::number_of_executed_units "$log") $seen seed=$seed seconds=$seconds $coverage"
    else
        failed+=("$name")
        tail -60 "$log" >&2
        input=$(sed -n 's/.*Test unit written to \(.*\)/\1/p' "$log" | tail -1)
        echo "run it again: tests/fuzz.sh again $name ${input:-?}" >&2
        line+=" FAILED, see $log"
    fi
    for canary in $(awk -v name="$name" '$1 == name { $1 = ""; print }' <<<"$targets"); do
        log=$folder/$name.$canary.log
        if SOLEWRITER_FUZZ_CANARY=$canary fuzz "$name" $canary_seconds "$scratch/crashes" "$scratch/$canary" \
            "${corpora[@]}" >"$log" 2>&1; then
            failed+=("$name:$canary")
            line+=" canary:$canary=UNNOTICED"
        elif grep -qE '^ *"(Lost|Half|Ghost|Corrupt|Broken): ' "$log"; then
            line+=" canary:$canary=$(figure stat::number_of_executed_units "$log")"
        else
            failed+=("$name:$canary")
            tail -40 "$log" >&2
            line+=" canary:$canary=ANOTHER"
        fi
    done
    echo "$line"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
