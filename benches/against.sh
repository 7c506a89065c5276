#!/usr/bin/env bash
# What isolation costs, side by side in one run: this working tree, an earlier commit, and that commit with its
# savepoints taken out by hand. Prints the median of the rounds, in commands per second, and their range.
#
#   benches/against.sh [ROUNDS] [SECONDS] [COMMIT]
#
# The default commit is the first complete form of the service, which put a savepoint around every command.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5} seconds=${2:-2} commit=${3:-bcb1ff6}
place=target/against
mkdir -p "$place"

build() { # NAME DIRECTORY: builds the benchmark there and keeps the program as NAME.
    local program
    touch "$2/src/lib.rs"
    program=$(cd "$2" && CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$OLDPWD/target} \
        cargo bench --bench isolation --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*isolation-[^"]*\)".*/\1/p' | tail -n 1)
    cp "$program" "$place/$1"
}

echo 'building' >&2
build now .
rm -rf "$place/tree"
git worktree prune
git worktree add -q --force --detach "$place/tree" "$commit"
cp benches/isolation.rs "$place/tree/benches/"
printf '\n[[bench]]\nname = "isolation"\nharness = false\n' >> "$place/tree/Cargo.toml"
build before "$place/tree"
sed -i -e '/pause(|| self.control.savepoint()).map_err(Fault::control)?;/d' \
    -e '/self.end_savepoint(result.is_ok()).map_err(Fault::control)?;/d' "$place/tree/src/transaction.rs"
build bare "$place/tree"
git worktree remove --force "$place/tree"

: > "$place/figures"
for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    for system in bare now before; do
        "$place/$system" --seconds "$seconds" --directory "$place" | sed "s/^/$system /" >> "$place/figures"
    done
done
# Sorted, the middle one of each run of lines is the median.
sort -k2,2 -k3,3n -k1,1 -k4,4n "$place/figures" | awk '
    { n[$2, $3, $1]++; rate[$2, $3, $1, n[$2, $3, $1]] = $4; rows[$2 " " $3] = 1 }
    function median(workload, clients, form) {
        return rate[workload, clients, form, int((n[workload, clients, form] + 1) / 2)]
    }
    function range(workload, clients, form) {
        return sprintf("%d (%d-%d)", median(workload, clients, form), rate[workload, clients, form, 1],
            rate[workload, clients, form, n[workload, clients, form]])
    }
    END {
        for (row in rows) {
            split(row, part, " "); w = part[1]; c = part[2]
            printf "%-14s %5s %24s %24s %24s %9.2f %9.2f\n", w, c, range(w, c, "now"), range(w, c, "before"),
                range(w, c, "bare"), median(w, c, "now") / median(w, c, "before"),
                median(w, c, "now") / median(w, c, "bare")
        }
    }' | sort -k1,1 -k2,2n |
    { printf '%-14s %5s %24s %24s %24s %9s %9s\n' workload tasks now before 'bare: no savepoints' '/ before' '/ bare'; cat; }
