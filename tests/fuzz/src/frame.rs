//! What the targets have in common: the canary, a place for files, and what was seen.

use std::fmt::Debug;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use tempfile::TempDir;

use crate::common::in_memory_dir;
use crate::common::proof::{Tally, Wrong};

/// What is broken on purpose in this process, to see that it is noticed.
static CANARY: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("SOLEWRITER_FUZZ_CANARY").ok());

/// Where the files of a case are to lie. Whoever sets it removes what a crash leaves there.
static DIRECTORY: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os("SOLEWRITER_FUZZ_DIR").map(PathBuf::from));

static SEEN: Mutex<Option<Tally>> = Mutex::new(None);

pub(crate) fn canary() -> Option<&'static str> {
    CANARY.as_deref()
}

/// A directory for the files of one case.
pub(crate) fn directory() -> TempDir {
    DIRECTORY.as_ref().map_or_else(in_memory_dir, |within| tempfile::tempdir_in(within).unwrap())
}

/// Has what was seen printed once libFuzzer is done.
pub fn begin() {
    #[allow(unsafe_code, reason = "libFuzzer ends the process itself")]
    // SAFETY: the function takes nothing, does not unwind, and is there for ever.
    let registered = unsafe { libc::atexit(print) };
    assert_eq!(registered, 0);
}

extern "C" fn print() {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(tally) = &*seen else { return };
    let mut line = format!("figures: checks={}", tally.checks);
    for (name, how) in [
        ("lost", Wrong::Lost),
        ("half", Wrong::Half),
        ("ghost", Wrong::Ghost),
        ("corrupt", Wrong::Corrupt),
        ("broken", Wrong::Broken),
    ] {
        line += &format!(" {name}={}", tally.count(how));
    }
    for (what, count) in tally.counts() {
        line += &format!(" {what}={count}");
    }
    // Whoever does not read it has no need of it.
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Prints a case before it is run, for one that hangs or crashes, if that is asked for.
pub(crate) fn show(case: &impl Debug) {
    static ONCE: LazyLock<bool> = LazyLock::new(|| std::env::var_os("SOLEWRITER_FUZZ_SHOW").is_some());
    static SHOWN: AtomicBool = AtomicBool::new(false);
    if *ONCE && !SHOWN.swap(true, Ordering::Relaxed) {
        drop(writeln!(std::io::stderr(), "{case:#?}"));
    }
}

/// Takes in what was seen of a case.
///
/// # Panics
/// If anything of it is wrong: libFuzzer keeps the input then.
pub(crate) fn judge(tally: Tally, case: &impl Debug) {
    assert!(tally.wrongs() == 0, "{:#?}\nin {case:#?}", tally.examples());
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().merge(tally);
}
