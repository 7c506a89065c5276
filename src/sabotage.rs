//! The service with a promise broken on purpose: the tests that prove the promise must notice.
//!
//! A test that finds nothing proves something only if it would have found it. So each of them is run once more on
//! a service that is broken in one of these ways, and fails if it sees no difference.

/// Which promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A group is acknowledged first, and committed when the next one begins.
    AckBeforeCommit,
    /// What was to be `FULL` is `NORMAL`.
    NormalForFull,
    /// Nobody looks whether the transaction still stands after a command.
    NoAutocommitCheck,
    /// A COMMIT that failed counts as undone without a fence.
    NoFence,
    /// A fence is taken for proof also where groups before it were not synced.
    FenceAfterNormal,
    /// A checkpoint that failed is tried again on the same wal-index.
    RetryCheckpoints,
    /// Nobody looks whether the files are still there.
    NoFileCheck,
}
