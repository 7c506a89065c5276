#!/usr/bin/env bash
# Runs tests where mistakes in memory, and misuse of SQLite, are noticed, and prints a line for each way.
#
#   tests/sanitizers.sh [debug|address|valgrind]…    all of them, or those
#
# debug      SQLite with its own assertions, the expensive ones too
# address    AddressSanitizer and LeakSanitizer, in SQLite too
# valgrind   memcheck, for the tests that bear being slow, in the build of `debug`
#
# SOLEWRITER_TESTS names the test files to run instead. The reliability tests do 99 cases each (SOLEWRITER_CASES), which is
# too few for their canaries: here others notice. Nothing is built in the folder of the usual tests; fails if anything is
# found.
set -euo pipefail
cd "$(dirname "$0")/.."

# Not of use here: those that measure bytes, wake-ups or shares of time, those of documents, and those of the pages and the
# command line, which do nothing to memory or SQLite that others do not.
left_out='cli dashboard fair_lanes fair_waiting guide http idle memory metrics observability operations_guide send_sync
    wake_ups'
# With hundreds of cases or limits of time that hold only on a fast machine, or that kill the process. Under
# valgrind everything takes 20 to 50 times as long, on one core.
too_slow='backpressure cancellation checkpoints disk_full foreign_writers fork group_commit health honest_outcome
    hostile_neighbours import_resume open_errors read_limits reentrancy reliability shutdown sole_writer swapped_files
    wal_limits'

usage() {
    sed -n '4,8s/^# *//p' "$0" >&2
    exit 2
}

ways=${*:-debug address valgrind}
for way in $ways; do
    case $way in debug | address | valgrind) ;; *) usage ;; esac
done

all=$(for test in tests/*.rs tests/*/main.rs; do
    test=${test#tests/} && test=${test%/main.rs} && echo "${test%.rs}"
done | sort)
without() { grep -vxFf <(xargs -n1 <<<"$*"); } # reads names
host=$(rustc -vV | sed -n 's/^host: //p')
folder=${CARGO_TARGET_DIR:-target}/sanitizers
mkdir -p "$folder"
folder=$(realpath "$folder")
export SOLEWRITER_CASES=${SOLEWRITER_CASES:-99}
# The least that the chosen tests need: SQLite, and services that are broken on purpose.
features=(--features sabotage)

# This variable takes -D and -U only.
debug() {
    LIBSQLITE3_FLAGS='-DSQLITE_DEBUG -DSQLITE_ENABLE_EXPENSIVE_ASSERT' \
        cargo test --locked "${features[@]}" --target-dir "$folder/debug" "$@"
}

targets() { # TEST…
    [ -n "${SOLEWRITER_TESTS-}" ] || echo --lib
    for test in "$@"; do echo "--test $test"; done
}

tests_ran() { sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/p' "$1" |
    awk '{ passed += $1; failed += $2 } END { printf "passed=%d failed=%d", passed, failed }'; }

failed=()
for way in $ways; do
    begun=$SECONDS
    log=$folder/$way.log
    tests=${SOLEWRITER_TESTS:-$(without "$left_out" <<<"$all")}
    outcome=ok
    case $way in
    debug)
        debug $(targets $tests) --no-fail-fast >"$log" 2>&1 || outcome=failed
        found="assertions=$(grep -c 'Assertion .* failed' "$log" || true)"
        ;;
    address)
        # What is built for the host alone, macros and build scripts, must not have it: hence a target.
        RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CFLAGS='-fsanitize=address -fno-omit-frame-pointer' \
            ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1 \
            cargo test --locked "${features[@]}" --target-dir "$folder/$way" --target "$host" $(targets $tests) \
            --no-fail-fast >"$log" 2>&1 || outcome=failed
        found="errors=$(grep -c 'ERROR: AddressSanitizer' "$log" || true)"
        found+=" leaks=$(grep -c 'ERROR: LeakSanitizer' "$log" || true)"
        ;;
    valgrind)
        [ -n "${SOLEWRITER_TESTS-}" ] || tests=$(without "$too_slow" <<<"$tests")
        programs=$(debug $(SOLEWRITER_TESTS=- targets $tests) --no-run --message-format=json 2>"$log" |
            sed -n 's/.*"executable":"\([^"]*\/deps\/[^"]*\)".*/\1/p')
        [ -n "$programs" ] || { tail -40 "$log" >&2 && exit 1; }
        for program in $programs; do
            # Threads take turns, else one that waits for another in a loop would hold it up.
            valgrind --fair-sched=yes --leak-check=full --errors-for-leak-kinds=definite --error-exitcode=99 \
                "$program" --test-threads=1 >>"$log" 2>&1 || outcome=failed
        done
        found="errors=$(sed -n 's/.*ERROR SUMMARY: \([0-9]*\) errors.*/\1/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')"
        ;;
    esac
    echo "sanitizer_$way: $(tests_ran "$log") $found seconds=$((SECONDS - begun))"
    if [ $outcome = failed ]; then
        failed+=("$way")
        grep -E '^(test .* FAILED|---- .* stdout|error: test failed)|panicked at|ERROR: |Assertion .* failed' "$log" |
            tail -40 >&2
        echo "the output is in $log" >&2
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
