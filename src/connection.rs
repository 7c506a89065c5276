//! Opens a connection for its role, and sets and verifies every setting of it.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, ffi};

use crate::config::{Config, Durability};
use crate::error::OpenErrorReason;
use crate::sqlite_ffi;

/// The first version without the WAL-reset bug, which corrupts a database that one connection writes while
/// another checkpoints: just what this crate does (<https://www.sqlite.org/wal.html#walresetbug>).
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Which file, and through which VFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) path: PathBuf,
    /// `None` is SQLite's default.
    pub(crate) vfs: Option<String>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Writer,
    Checkpointer,
    Reader,
}

impl Role {
    pub(crate) fn flags(self) -> OpenFlags {
        // Each connection stays on one thread, so SQLite's own mutexes would only cost time. No URIs: a path
        // from a user could carry options.
        OpenFlags::SQLITE_OPEN_NO_MUTEX
            | match self {
                Self::Writer | Self::Checkpointer => OpenFlags::SQLITE_OPEN_READ_WRITE,
                Self::Reader => OpenFlags::SQLITE_OPEN_READ_ONLY,
            }
    }
}

pub(crate) fn require_sqlite_version() -> Result<(), OpenErrorReason> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(OpenErrorReason::SqliteTooOld { version: rusqlite::version() });
    }
    Ok(())
}

/// Fails if the file is neither empty nor a database, and changes nothing, not even the -wal or -shm file.
pub(crate) fn require_database(location: &Location) -> Result<(), OpenErrorReason> {
    // SQLite takes a file of a single byte for an empty one, and would write over it.
    if std::fs::metadata(&location.path).is_ok_and(|metadata| metadata.len() == 1) {
        let not_a_database = ffi::Error::new(ffi::SQLITE_NOTADB);
        return Err(rusqlite::Error::SqliteFailure(not_a_database, None).into());
    }
    // `immutable` makes SQLite read the file alone, without locks, WAL or shared memory.
    let uri = format!("file:{}?immutable=1", percent_encoded(&location.path));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = match &location.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(uri, flags, vfs.as_str()),
        None => Connection::open_with_flags(uri, flags),
    }?;
    let read = connection.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(()));
    match read.map_err(OpenErrorReason::from) {
        Err(reason @ OpenErrorReason::NotADatabase(_)) => Err(reason),
        // Without its WAL a database may look damaged that is not; the real open finds out.
        _ => Ok(()),
    }
}

/// A path as a part of a URI, byte by byte: it need not be UTF-8.
fn percent_encoded(path: &Path) -> String {
    let mut encoded = String::new();
    for &byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02x}"));
        }
    }
    encoded
}

pub(crate) fn open(location: &Location, role: Role, config: &Config) -> Result<Connection, OpenErrorReason> {
    let connection = match &location.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(&location.path, role.flags(), vfs.as_str()),
        None => Connection::open_with_flags(&location.path, role.flags()),
    }?;
    configure(&connection, role, config)?;
    Ok(connection)
}

/// Makes every setting that matters explicit, and reads it back: another build of SQLite may have other
/// defaults, and a pragma it does not know is silently ignored.
pub(crate) fn configure(connection: &Connection, role: Role, config: &Config) -> Result<(), OpenErrorReason> {
    connection.set_prepared_statement_cache_capacity(config.statement_cache_capacity);
    // First, since reading the schema may meet a lock (recovery, the last close of another process).
    connection.busy_timeout(config.busy_timeout)?;
    let cache_kib = i64::try_from(config.cache_bytes / 1024).unwrap_or(i64::MAX);
    let reader = role == Role::Reader;
    let integers = [
        ("synchronous", synchronous(config.durability)),
        ("foreign_keys", config.foreign_keys.into()),
        ("temp_store", 2),
        ("cache_size", -cache_kib),
        ("mmap_size", config.mmap_bytes.cast_signed()),
        // Inside COMMIT a checkpoint is the largest source of delay, and its errors are swallowed.
        ("wal_autocheckpoint", 0),
        ("query_only", reader.into()),
    ];
    for (name, value) in integers {
        let value = value.to_string();
        set(connection, name, &value, &value)?;
    }
    if !reader {
        // A WAL that once grew beyond its target gives the space back when it begins anew.
        let limit = config.wal_target_bytes.to_string();
        set(connection, "journal_size_limit", &limit, &limit)?;
        // Last, since it alone changes the file.
        set(connection, "journal_mode", "wal", "wal")?;
    }
    #[cfg(target_vendor = "apple")]
    set(connection, "fullfsync", "1", "1")?;
    Ok(())
}

/// Sets how much a commit survives; between transactions only, SQLite can't change it inside one.
pub(crate) fn set_durability(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", synchronous(durability))
}

pub(crate) fn page_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    connection.pragma_query_value(None, "page_size", |row| Ok(row.get::<_, u32>(0)?.into()))
}

thread_local! {
    static WAL_PAGES: Cell<u64> = const { Cell::new(0) };
}

/// Lets SQLite tell the size of the WAL at every commit of this connection.
///
/// After [`configure`], since setting `wal_autocheckpoint` replaces the hook
/// (<https://www.sqlite.org/c3ref/wal_hook.html>). The hook can't fail: an error would make COMMIT report a
/// failure although it has happened.
pub(crate) fn watch_wal(connection: &Connection) {
    connection.wal_hook(Some(|_, pages| {
        WAL_PAGES.set(pages.unsigned_abs().into());
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

fn synchronous(durability: Durability) -> i64 {
    match durability {
        Durability::Normal => 1,
        Durability::Full => 2,
    }
}

fn set(
    connection: &Connection,
    name: &'static str,
    value: &str,
    wanted: &str,
) -> Result<(), OpenErrorReason> {
    // Some pragmas answer with a row when set, some do not.
    let mut statement = connection.prepare(&format!("PRAGMA {name} = {value}"))?;
    let mut rows = statement.query(())?;
    while rows.next()?.is_some() {}
    let found = connection.query_row(&format!("PRAGMA {name}"), (), |row| row.get::<_, Value>(0));
    let found = match found {
        Ok(Value::Integer(number)) => number.to_string(),
        Ok(Value::Text(text)) => text,
        // A VFS that can't map files has no `mmap_size` to answer with, and reads files instead.
        Err(rusqlite::Error::QueryReturnedNoRows) if name == "mmap_size" => return Ok(()),
        Ok(_) | Err(rusqlite::Error::QueryReturnedNoRows) => "nothing".into(),
        Err(error) => return Err(error.into()),
    };
    if found == wanted {
        return Ok(());
    }
    Err(OpenErrorReason::Pragma { name, wanted: wanted.into(), found })
}

/// Closes a connection; the handle of one that user code leaked a statement of is leaked with it. Returns
/// whether it is really closed.
pub(crate) fn close(connection: Connection) -> bool {
    if let Err((connection, error)) = connection.close() {
        tracing::error!(%error, "a connection could not be closed");
        // At least it must not pin the WAL.
        sqlite_ffi::reset_statements(&connection);
        return false;
    }
    true
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

/// Runs a checkpoint that waits for readers for at most `wait`.
pub(crate) fn checkpoint(
    connection: &Connection,
    mode: CheckpointMode,
    wait: Duration,
    config: &Config,
) -> rusqlite::Result<Checkpointed> {
    let sql = match mode {
        CheckpointMode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        CheckpointMode::Restart => "PRAGMA wal_checkpoint(RESTART)",
        CheckpointMode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    if mode != CheckpointMode::Passive {
        connection.busy_timeout(wait)?;
    }
    let result = connection.query_row(sql, (), |row| {
        let pages = |column| Ok::<_, rusqlite::Error>(row.get::<_, i64>(column)?.max(0).cast_unsigned());
        Ok(Checkpointed { blocked: row.get(0)?, wal_pages: pages(1)?, copied_pages: pages(2)? })
    });
    if mode != CheckpointMode::Passive {
        connection.busy_timeout(config.busy_timeout)?;
    }
    result
}
