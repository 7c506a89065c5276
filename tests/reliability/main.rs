//! The promises under power loss, failing disks, kills, load and damage: see `docs/reliability.md`.
//!
//! Each test prints one line; `tests/common/proof.rs` tells how to do more, or one run again. Most of them run the
//! service through a VFS of their own (`tests/common/faults.rs`); each is done once more on a service that is
//! broken on purpose, and fails if it does not notice.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "../common/mod.rs"]
mod common;

#[allow(dead_code, unreachable_pub, reason = "what libFuzzer needs of it")]
#[path = "../fuzz/src/commands/mod.rs"]
mod commands;
mod compound_faults;
mod damaged_files;
mod disk_full;
mod failing_calls;
#[allow(dead_code, unreachable_pub, reason = "what libFuzzer needs of it")]
#[path = "../fuzz/src/frame.rs"]
mod frame;
mod fuzz;
mod histories;
mod io_faults;
mod kills;
mod ledger;
mod load;
mod long_reader;
mod memory_limits;
mod power_cuts;
mod power_loss;
mod process;
mod seeds;
mod swapped_files;
mod traffic;
mod workload;
