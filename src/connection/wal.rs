//! What a connection knows of the WAL and does with it: its size, and checkpoints.

use std::cell::Cell;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ffi};

use crate::failure::Failure;
use crate::{sqlite_ffi, transaction};

thread_local! {
    static WAL_PAGES: Cell<u64> = const { Cell::new(0) };
    static WAL_COMMITS: Cell<u64> = const { Cell::new(0) };
}

/// Lets SQLite tell the size of the WAL at every commit of this connection.
///
/// After [`configure`], since setting `wal_autocheckpoint` replaces the hook
/// (<https://www.sqlite.org/c3ref/wal_hook.html>). The hook can't fail: an error would make COMMIT report a
/// failure although it has happened.
pub(crate) fn watch_wal(connection: &Connection) {
    connection.wal_hook(Some(|_, pages| {
        WAL_PAGES.set(pages.unsigned_abs().into());
        WAL_COMMITS.set(WAL_COMMITS.get() + 1);
        Ok(())
    }));
}

/// The WAL begins anew: it has no pages until the next commit tells.
pub(crate) fn reset_wal_pages() {
    WAL_PAGES.set(0);
}

/// The pages in the WAL after the newest commit on this thread.
pub(crate) fn wal_pages() -> u64 {
    WAL_PAGES.get()
}

/// How many commits on this thread have written to the WAL.
pub(crate) fn wal_commits() -> u64 {
    WAL_COMMITS.get()
}

/// Makes the last close of the database leave the WAL as it is, for a recovery at the next open.
pub(crate) fn leave_wal_alone(connection: &Connection) {
    let set = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    if let Err(error) = set {
        tracing::error!(%error, "could not keep SQLite from a checkpoint at close");
    }
}

/// A checkpoint, as `PRAGMA wal_checkpoint` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckpointMode {
    /// Copies what it can without waiting for anyone.
    Passive,
    /// Copies everything, then begins the WAL anew.
    Restart,
    /// Copies everything, then empties the WAL file.
    Truncate,
    /// Copies nothing, and tells how much others have copied.
    Noop,
}

/// What a checkpoint did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpointed {
    /// A reader, a writer or another checkpoint was in the way.
    pub(crate) blocked: bool,
    /// Pages in the WAL.
    pub(crate) wal_pages: u64,
    /// Pages of these that are in the database file now.
    pub(crate) copied_pages: u64,
}

/// Runs a checkpoint that waits for readers for at most `wait`, and leaves the connection as patient as it was.
pub(crate) fn checkpoint(
    connection: &Connection,
    mode: CheckpointMode,
    wait: Duration,
) -> rusqlite::Result<Checkpointed> {
    let sql = match mode {
        CheckpointMode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        CheckpointMode::Restart => "PRAGMA wal_checkpoint(RESTART)",
        CheckpointMode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
        CheckpointMode::Noop => "PRAGMA wal_checkpoint(NOOP)",
    };
    let patience = busy_timeout(connection)?;
    let waits = matches!(mode, CheckpointMode::Restart | CheckpointMode::Truncate);
    if waits {
        connection.busy_timeout(wait)?;
    }
    let result = connection.query_row(sql, (), |row| {
        let pages = |column| Ok::<_, rusqlite::Error>(unsigned(row.get(column)?));
        Ok(Checkpointed { blocked: row.get(0)?, wal_pages: pages(1)?, copied_pages: pages(2)? })
    });
    if waits {
        connection.busy_timeout(patience)?;
    }
    result
}

/// A count of pages as SQLite tells it: -1 where there is no WAL, else without a sign.
fn unsigned(pages: i32) -> u64 {
    if pages == -1 { 0 } else { pages.cast_unsigned().into() }
}

/// Fails if the shared wal-index says that more of the WAL is copied than there is.
///
/// A checkpoint would then copy nothing, and begin the WAL anew over all that was committed. These counters alone have
/// no checksum. Such an index is kept alive by another process that has the file open: who opens it first makes a new
/// one.
pub(crate) fn require_wal_index(connection: &Connection) -> rusqlite::Result<()> {
    // The two are not read at one moment: another process may have committed and copied in between.
    for _ in 0..3 {
        let seen = checkpoint(connection, CheckpointMode::Noop, Duration::ZERO)?;
        if seen.copied_pages <= seen.wal_pages {
            return Ok(());
        }
    }
    let message =
        "the -shm file is damaged; copy the database and its -wal before the programs that have it open end";
    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(message.into())))
}

/// Makes the WAL durable that was found at the open, before anything rests on it: a sync of it may have failed before,
/// and what the system dropped then can still be read. Answers false where another process has the write lock.
pub(crate) fn make_wal_durable(connection: &Connection, page_bytes: u64) -> rusqlite::Result<bool> {
    /// <https://www.sqlite.org/fileformat2.html#wal_file_format>
    const HEADER_BYTES: u64 = 32;
    const FRAME_HEADER_BYTES: u64 = 24;
    let pages = checkpoint(connection, CheckpointMode::Noop, Duration::ZERO)?.wal_pages;
    if pages == 0 {
        return Ok(true);
    }
    let bytes = HEADER_BYTES + pages * (FRAME_HEADER_BYTES + page_bytes);
    match transaction::locked(connection, || sqlite_ffi::write_wal_again(connection, bytes)) {
        Ok(()) => Ok(true),
        Err(error) if Failure::of(&error) == Failure::Busy => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn busy_timeout(connection: &Connection) -> rusqlite::Result<Duration> {
    let millis = connection.pragma_query_value(None, "busy_timeout", |row| row.get::<_, u32>(0))?;
    Ok(Duration::from_millis(millis.into()))
}
