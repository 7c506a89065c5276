//! The binary: what it says and how it ends, and that looking into a database changes nothing.
#![cfg(feature = "cli")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[path = "../common/mod.rs"]
mod common;

mod dashboard;
mod inspect;
mod stress;

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn solewriter<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_solewriter"));
    command.args(args).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What it wrote to the standard output, once it has ended with `status`.
fn json(output: &Output, status: i32) -> Value {
    assert_eq!(output.status.code(), Some(status), "{}{}", text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn bad_flags_are_refused_with_status_2() {
    for args in [&[][..], &["inspect"], &["inspect", "--fast", "x"], &["guess"]] {
        let output = solewriter(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_reason_to_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    common::plain(&path).execute_batch("CREATE TABLE t (x)").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = solewriter([OsStr::new("inspect"), path.as_os_str()]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

/// Not a test of its own: the other program of those that need one.
#[cfg(unix)]
#[test]
fn a_process_of_its_own() {
    common::foreign::serve();
}
