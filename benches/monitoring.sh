#!/usr/bin/env bash
# What measuring itself costs the service: instructions per command, counted by valgrind's callgrind, with the
# histograms, counters, events and the name of the holder in and out (`--cfg solewriter_unmonitored`).
#
#   benches/monitoring.sh [COMMANDS]
#
# Two runs of different length give the instructions per command without those of opening and closing.
set -euo pipefail
cd "$(dirname "$0")/.."
commands=${1:-20000}
place=target/monitoring
mkdir -p "$place"

build() { # NAME FLAGS: builds the benchmark and keeps the program as NAME.
    local program
    program=$(RUSTFLAGS="$2" CARGO_TARGET_DIR=$place/$1.d cargo bench --bench monitoring --no-run \
        --message-format=json 2>/dev/null | sed -n 's/.*"executable":"\([^"]*monitoring-[^"]*\)".*/\1/p' | tail -n 1)
    cp "$program" "$place/$1"
}

instructions() { # NAME COMMANDS TOGETHER
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$place/$1" --commands "$2" --together "$3" 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

echo 'building' >&2
build in ''
build out '--cfg solewriter_unmonitored'
printf '%-10s %10s %12s %12s %8s\n' together commands in out 'in/out'
for together in 1 64 512; do
    for name in in out; do
        few=$(instructions "$name" "$commands" "$together")
        many=$(instructions "$name" $((commands * 2)) "$together")
        declare "$name=$(((many - few) / commands))"
    done
    # shellcheck disable=SC2154
    awk -v t="$together" -v n="$commands" -v i="$in" -v o="$out" \
        'BEGIN { printf "%-10d %10d %12d %12d %8.3f\n", t, n, i, o, i / o }'
done
