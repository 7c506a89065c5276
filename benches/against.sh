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
sort -k2,2 -k3,3n -k1,1 -k4,4n "$place/figures" | awk '
    { key = $2 " " $3; system = $1; n[key, system]++; value[key, system, n[key, system]] = $4; keys[key] = 1 }
    END {
        printf "%-14s %7s %26s %26s %26s %9s %9s\n", "workload", "clients", "now", "before", "before, no savepoints", "/ before", "/ bare"
        for (key in keys) {
            split(key, part, " ")
            for (i = 1; i <= 3; i++) {
                system = substr("now   beforebare  ", i * 6 - 5, 6); gsub(" ", "", system)
                c = n[key, system]; m[i] = value[key, system, int((c + 1) / 2)]
                text[i] = sprintf("%d (%d–%d)", m[i], value[key, system, 1], value[key, system, c])
            }
            printf "%-14s %7s %26s %26s %26s %9.2f %9.2f\n", part[1], part[2], text[1], text[2], text[3], m[1] / m[2], m[1] / m[3]
        }
    }' | { read -r head; echo "$head"; sort; }
