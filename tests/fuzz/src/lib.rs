//! What the fuzz targets do with their bytes: `tests/fuzz.sh` builds and runs them.
//!
//! They share the model, the disk and the VFS of the reliability tests. A case that shows something wrong panics, and
//! libFuzzer keeps its bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "../../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "each test uses a part of this")]
#[path = "../../reliability/ledger.rs"]
mod ledger;
#[allow(dead_code, reason = "each test uses a part of this")]
#[path = "../../reliability/workload.rs"]
mod workload;

pub mod commands;
pub mod config;
pub mod damaged_files;
pub mod frame;
