#!/usr/bin/env bash
# Runs the reliability tests and prints the line of each.
#
#   tests/reliability.sh short|long [NAME…]    all of them, or those
#   tests/reliability.sh list                  their names
#
# `short` is what `cargo test` does too, `long` what docs/reliability.md reports. SOLEWRITER_SEED and
# SOLEWRITER_CASES are passed on. Fails if a test fails, falls short of its number of cases, or prints no line.
set -euo pipefail
cd "$(dirname "$0")/.."

# The name of a line, and which test prints it: the arguments of `cargo test`.
tests='
power_loss           --test reliability power_loss::power_loss
compound_faults      --test reliability compound_faults::
io_faults            --test reliability io_faults::
failed_syncs         --test reliability power_loss::failed_syncs
checkpoint_failures  --test reliability power_loss::checkpoint_failures
kills                --test reliability kills::
power_cuts_ext4      --test reliability power_cuts::what_was_answered_outlives_a_power_cut_on_ext4
power_cuts_xfs       --test reliability power_cuts::what_was_answered_outlives_a_power_cut_on_xfs
failing_calls        --test reliability failing_calls::
heap_limits          --test reliability memory_limits::where
out_of_memory        --test reliability memory_limits::what
import_kills         --test import_resume kills::
disk_full            --test reliability disk_full::
random_commands      --test reliability fuzz::
hostile_neighbours   --test hostile_neighbours
histories            --test reliability histories::
queue_schedules      --lib queue::tests::
writer_simulation    --lib writer::tests::
load                 --test reliability load::under_load
flood                --test reliability load::in_a_flood
long_reader          --test reliability long_reader::
swapped_files        --test reliability swapped_files::
foreign_duel         --test foreign_writers duel
damaged_files        --test reliability damaged_files::
seeds                --test reliability seeds::
'
names=$(awk '{ print $1 }' <<<"$tests")

usage() {
    sed -n '4,5s/^# *//p' "$0" >&2
    exit 2
}

mode=${1-}
[ $# -gt 0 ] && shift
case $mode in
list) echo "$names" && exit ;;
short | long) ;;
*) usage ;;
esac
wanted=${*:-$names}
for name in $wanted; do
    grep -qx "$name" <<<"$names" || { echo "there is no test $name" >&2 && usage; }
done

log=${CARGO_TARGET_DIR:-target}/reliability.log
mkdir -p "$(dirname "$log")"
: >"$log"
cargo test --all-features --test reliability --no-run >>"$log" 2>&1 || { tail -40 "$log" >&2 && exit 1; }

failed=()
skipped=()
for name in $wanted; do
    read -r -a arguments < <(awk -v name="$name" '$1 == name { $1 = ""; print }' <<<"$tests")
    begin=$(($(wc -c <"$log") + 1))
    outcome=ok
    SOLEWRITER_RELIABILITY=$mode cargo test --all-features "${arguments[@]}" >>"$log" 2>&1 || outcome=failed
    # The test runner may have begun the line.
    line=$(tail -c "+$begin" "$log" | grep -oE "\b$name: (cases=|SKIP).*" || true)
    [ -n "$line" ] || { outcome=failed && line="$name: no line"; }
    echo "$line"
    case $line in *": SKIP "*) skipped+=("$name") ;; esac
    if [ $outcome = failed ]; then
        failed+=("$name")
        tail -c "+$begin" "$log" | tail -40 >&2
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; the output is in $log" >&2
    exit 1
fi
echo "$(wc -w <<<"$wanted") tests in $SECONDS s, all as they should be${skipped:+; skipped: ${skipped[*]}}"
