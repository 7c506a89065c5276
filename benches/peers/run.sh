#!/usr/bin/env bash
# solewriter beside its peers and raw SQLite, in one interleaved run: prints a table, and writes JSON and a drawing.
#
#   benches/peers/run.sh [--quick] [--json FILE] [--svg FILE] [--workload W,…] [--system S,…] [--clients N,…]
#                        [--rounds N] [--seconds S] [--rows N]
#
# The full run takes most of an hour, and the first one builds turso, which is long too; --quick takes minutes and leaves
# turso out. Only a full run without filters draws into docs/ by itself.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target/peers}
mkdir -p "$target"
target=$(cd "$target" && pwd)

packages=(rusqlite sqlx driver)
if [[ " $* " != *' --quick '* ]]; then
    packages+=(turso)
fi
for package in "${packages[@]}"; do
    cargo build --release --quiet --manifest-path "$here/$package/Cargo.toml" --target-dir "$target"
done

# On the disk that the target folder is on: a file system in memory would make every sync free.
arguments=(--directory "$target/databases")
if [[ $# == 0 || ($# == 2 && $1 == --json) ]]; then
    arguments+=(--svg "$here/../../docs/peers.svg")
fi
exec "$target/release/peers-driver" "${arguments[@]}" "$@"
