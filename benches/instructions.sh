#!/usr/bin/env bash
# Counts the instructions of a command, from the handle to its answer, on all threads together, and compares them with
# what is written down in instructions.txt. Counts do not depend on what else the machine does.
#
#   benches/instructions.sh             fails if one has grown by more than a tenth
#   benches/instructions.sh --update    writes them down
#
# Two runs of different length give the instructions per command without those of opening and closing. Needs valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."
baseline=benches/instructions.txt
size=512

program=$(cargo bench --locked --bench hot_path --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*hot_path-[^"]*\)".*/\1/p' | tail -n 1)
[ -n "$program" ] || { echo 'the benchmark can not be built' >&2 && exit 1; }

instructions() { # WORKLOAD GROUPS
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" --workload "$1" --groups "$2" --size $size 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

counted=''
for workload in raw statement typed once; do
    few=$(instructions $workload 10)
    many=$(instructions $workload 30)
    counted+="$workload $(((many - few) / 20 / size))"$'\n'
done

if [ "${1-}" = --update ]; then
    printf '%s' "$counted" >$baseline
fi
printf '%s' "$counted" | awk -v baseline=$baseline '
    BEGIN { while ((getline line < baseline) > 0) { split(line, part, " "); before[part[1]] = part[2] } }
    !($1 in before) { print "there is no count of " $1 " in " baseline; failed = 1; next }
    {
        ratio = $2 / before[$1]
        printf "%-10s %6d instructions a command, %.3f of %d\n", $1, $2, ratio, before[$1]
        if (ratio > 1.1) { print "too many: see docs/performance.md"; failed = 1 }
        if (ratio < 0.95) print "fewer: write it down with --update"
    }
    END { exit failed }'
