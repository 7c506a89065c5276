//! Opens a connection for its role, and sets and verifies every setting of it; `wal` is what it knows of the WAL
//! and does with it.

mod wal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Row, ffi};

use crate::config::{Checkpoints, Config, Durability};
use crate::error::{Cause, OpenErrorReason};
use crate::failure::Failure;
use crate::identity::Replaced;
use crate::on_connect::{ConnectionRole, OnConnect};
#[cfg(feature = "sabotage")]
use crate::sabotage::Sabotage;
use crate::sqlite_ffi;

pub(crate) use wal::{
    CheckpointMode, Checkpointed, checkpoint, leave_wal_alone, make_wal_durable, require_wal_index,
    reset_wal_pages, wal_commits, wal_pages, watch_wal,
};

/// The first version without the WAL-reset bug, which corrupts a database that one connection writes while
/// another checkpoints: just what this crate does (<https://www.sqlite.org/wal.html#walresetbug>).
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// The longest SQL text. SQLite counts the rest of a whole script here, so that of an import must fit; its own
/// limit is 1 GB.
const SQL_BYTES_MAX: i32 = 16 * 1024 * 1024;

/// The longest pattern of LIKE and GLOB. One match takes the product of both lengths, and nothing can end it
/// halfway: 50,000 bytes, SQLite's limit, on a text of a megabyte hold the writer for a minute.
const LIKE_PATTERN_BYTES_MAX: i32 = 1_000;

/// Which file, through which VFS, and what the caller does to each connection.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    pub(crate) path: PathBuf,
    /// `None` is SQLite's default.
    pub(crate) vfs: Option<String>,
    pub(crate) on_connect: Option<OnConnect>,
    #[cfg(feature = "sabotage")]
    pub(crate) sabotage: Option<Sabotage>,
}

impl Location {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            vfs: None,
            on_connect: None,
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }
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

    /// What user code knows it as; the checkpointer runs none, so it needs nothing that user code asks for.
    fn of_user_code(self) -> Option<ConnectionRole> {
        match self {
            Self::Writer => Some(ConnectionRole::Writer),
            Self::Checkpointer => None,
            Self::Reader => Some(ConnectionRole::Reader),
        }
    }
}

pub(crate) fn require_sqlite_version() -> Result<(), OpenErrorReason> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(OpenErrorReason::SqliteTooOld { version: rusqlite::version() });
    }
    Ok(())
}

/// Fails if the file is neither empty nor a database, and changes nothing, not even the -shm file. Where there is a -wal
/// file, only the real open can tell.
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
        Err(reason @ OpenErrorReason::NotADatabase(_)) if !has_wal(location) => Err(reason),
        // Without its WAL a database may look damaged, or like none at all, that is intact with it: any page may be in
        // pieces after a crash in the midst of a checkpoint. The real open finds out.
        _ => Ok(()),
    }
}

/// Whether there is something in the -wal file.
fn has_wal(location: &Location) -> bool {
    let mut wal = location.path.clone().into_os_string();
    wal.push("-wal");
    std::fs::metadata(wal).is_ok_and(|wal| wal.len() > 0)
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

/// Opens a connection for its role, by name. `is_ours` looks whether that is still the name of the database that the
/// service has.
///
/// It is asked once the file is open and before anything is read of it: to SQLite another file is another database, for
/// which it would take our -shm file as left behind, and begin it anew while our own connections use it.
pub(crate) fn open(
    location: &Location,
    role: Role,
    config: &Config,
    is_ours: &dyn Fn() -> Result<(), Cause>,
) -> Result<Connection, OpenErrorReason> {
    let connection = match &location.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(&location.path, role.flags(), vfs.as_str()),
        None => Connection::open_with_flags(&location.path, role.flags()),
    }
    .map_err(|error| without_path(error, &location.path))?;
    is_ours().map_err(OpenErrorReason::Sqlite)?;
    if sqlite_ffi::has_moved(&connection) {
        return Err(OpenErrorReason::Sqlite(Replaced::DATABASE.into()));
    }
    match configure(&connection, role, location, config) {
        Ok(()) => Ok(connection),
        Err(reason) => {
            refuse(connection, location);
            Err(reason)
        }
    }
}

/// rusqlite puts the path into what it says of an open that failed. Who opens the database is told it anyway; but later
/// opens fail in the log and in the health too, where nobody is told the folder.
fn without_path(error: rusqlite::Error, path: &Path) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(code, Some(message)) if message.contains(&*path.to_string_lossy()) => {
            rusqlite::Error::SqliteFailure(code, None)
        }
        error => error,
    }
}

/// Closes a connection that is not fit to be used, and leaves the files as they are.
///
/// The last close would copy the WAL into the database file: perhaps a WAL that belongs to another database, or into
/// a file of which nobody knows what is left.
pub(crate) fn refuse(connection: Connection, location: &Location) {
    // One that is empty was made by this connection, and goes with it.
    if has_wal(location) {
        leave_wal_alone(&connection);
    }
    close(connection);
}

/// Makes every setting that matters explicit, and reads it back: another build of SQLite may have other
/// defaults, and a pragma it does not know is silently ignored.
///
/// The caller's hook runs first, so that it can't take any of this back.
pub(crate) fn configure(
    connection: &Connection,
    role: Role,
    location: &Location,
    config: &Config,
) -> Result<(), OpenErrorReason> {
    if let (Some(on_connect), Some(role)) = (&location.on_connect, role.of_user_code()) {
        on_connect.run(connection, role)?;
    }
    connection.set_prepared_statement_cache_capacity(config.statement_cache_capacity);
    // First, since reading the schema may meet a lock (recovery, the last close of another process).
    connection.busy_timeout(config.busy_timeout)?;
    set_switches(connection, config)?;
    set_limits(connection, config)?;
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
    if role == Role::Writer {
        // It waits for the lock of another process by itself, and hears its callers meanwhile.
        connection.busy_timeout(Duration::ZERO)?;
    }
    Ok(())
}

/// What SQL and a file from someone else may not do (<https://www.sqlite.org/security.html>), and whether the
/// last close checkpoints.
///
/// Strings in double quotes stay allowed: that is for misspelled columns, and would break SQL that works.
fn set_switches(connection: &Connection, config: &Config) -> Result<(), OpenErrorReason> {
    let switches = [
        // No writes to the shadow tables of an index or to the schema as a table.
        ("defensive", DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        ("trusted_schema", DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, config.trusted_schema),
        (
            "no_ckpt_on_close",
            DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE,
            config.checkpoints == Checkpoints::External,
        ),
    ];
    for (name, switch, wanted) in switches {
        connection.set_db_config(switch, wanted)?;
        verify(name, wanted, connection.db_config(switch)?)?;
    }
    verify("load_extension", false, sqlite_ffi::forbid_extensions(connection)?)
}

/// Only limits whose honest uses lie far below. Not the depth of triggers, which those of ON DELETE CASCADE
/// count towards, nor the number of attached databases, which VACUUM needs one of.
fn set_limits(connection: &Connection, config: &Config) -> Result<(), OpenErrorReason> {
    let limits = [
        ("value_bytes_max", Limit::SQLITE_LIMIT_LENGTH, config.value_bytes_max.cast_signed()),
        ("sql_length", Limit::SQLITE_LIMIT_SQL_LENGTH, SQL_BYTES_MAX),
        ("like_pattern_length", Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, LIKE_PATTERN_BYTES_MAX),
    ];
    for (name, limit, wanted) in limits {
        connection.set_limit(limit, wanted)?;
        verify(name, wanted, connection.limit(limit)?)?;
    }
    Ok(())
}

fn verify<T: PartialEq + ToString>(name: &'static str, wanted: T, found: T) -> Result<(), OpenErrorReason> {
    if found == wanted {
        return Ok(());
    }
    Err(OpenErrorReason::Pragma { name, wanted: wanted.to_string(), found: found.to_string() })
}

/// Sets how much a commit survives; between transactions only, SQLite can't change it inside one.
pub(crate) fn set_durability(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", synchronous(durability))
}

pub(crate) fn page_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    connection.pragma_query_value(None, "page_size", |row| Ok(row.get::<_, u32>(0)?.into()))
}

/// Asks for the counter that changes whenever another connection has committed.
pub(crate) const DATA_VERSION: &str = "PRAGMA data_version";

/// Reads something, which makes the -wal and the -shm file if they are not there yet.
pub(crate) fn read_schema(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(()))
}

/// Brings the statistics of the query planner up to date.
pub(crate) const OPTIMIZE: &str = "PRAGMA optimize";

/// Looks for damage, with all that belongs to it.
pub(crate) const INTEGRITY_CHECK: &str = "PRAGMA integrity_check";

/// Writes to the database without changing it: a page of it is new in the WAL.
pub(crate) fn rewrite_user_version(connection: &Connection) -> rusqlite::Result<()> {
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    connection.pragma_update(None, "user_version", version)
}

/// Whether SQLite finds nothing wrong with the database; takes as long as reading all of it.
///
/// # Errors
/// That of a page which could not be read: the check tells it in words, among what it takes for damage.
pub(crate) fn is_intact(connection: &Connection) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare("PRAGMA quick_check")?;
    let found = statement.query_map((), problem)?.collect::<rusqlite::Result<Vec<_>>>()?;
    let unread = found.iter().filter_map(|line| line.split_once("error code=")).find_map(|(_, code)| {
        let digits = code.split(|c: char| !c.is_ascii_digit()).next()?;
        let is_unread =
            |code: &i32| matches!(Failure::of_code(*code), Failure::Read | Failure::Io | Failure::Memory);
        digits.parse().ok().filter(is_unread)
    });
    match unread {
        Some(code) => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
        None => Ok(found == ["ok"]),
    }
}

/// What a check has found. It names tables and columns, whose names may be damaged too.
pub(crate) fn problem(row: &Row<'_>) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into_owned())
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
    verify(name, wanted, &found)
}

/// Closes a connection, also one that user code has leaked statements of: each would keep its file descriptors,
/// and the WAL pinned, for as long as the process lives. Returns whether it is really closed.
pub(crate) fn close(connection: Connection) -> bool {
    let Err((mut connection, _)) = connection.close() else { return true };
    // The close has taken the hooks away; the end of a leaked statement that writes would be a commit.
    let vetoed = connection.commit_hook(Some(|| true)).is_ok();
    if vetoed && leaked_statements_stand_alone(&connection) {
        sqlite_ffi::finalize_leaked_statements(&mut connection);
    } else if vetoed {
        // At least they must not pin the WAL.
        sqlite_ffi::reset_statements(&connection);
    }
    let closed = connection.close().map_err(|(_, error)| error);
    if let Err(error) = &closed {
        tracing::error!(%error, "a connection could not be closed");
    }
    closed.is_ok()
}

/// Whether no virtual table is behind any statement that is left on a connection whose close has failed.
///
/// Virtual tables have statements of their own on the connection, which are not ours to finalize. The close has let
/// go of every table that no statement refers to; so they are gone too, unless one that is left refers to one.
fn leaked_statements_stand_alone(connection: &Connection) -> bool {
    const OF_VIRTUAL_TABLES: [&str; 11] = [
        "VBegin", "VCheck", "VColumn", "VCreate", "VDestroy", "VFilter", "VInitIn", "VNext", "VOpen",
        "VRename", "VUpdate",
    ];
    let stands_alone = |sql: String| {
        let mut explained = connection.prepare(&format!("EXPLAIN {sql}"))?;
        let opcodes = explained.query_map((), |row| row.get::<_, String>("opcode"))?;
        let opcodes = opcodes.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok::<_, rusqlite::Error>(!opcodes.iter().any(|opcode| OF_VIRTUAL_TABLES.contains(&opcode.as_str())))
    };
    // What can't be explained, such as a statement on a table that is gone, is left alone.
    sqlite_ffi::statements(connection).into_iter().all(|sql| stands_alone(sql).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::wal::busy_timeout;
    use super::*;

    const ROLES: [Role; 3] = [Role::Writer, Role::Checkpointer, Role::Reader];

    fn location(directory: &tempfile::TempDir) -> Location {
        let path = directory.path().join("test.db");
        std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
        Location::new(&path)
    }

    #[test]
    fn every_connection_is_hardened_whatever_the_hook_did() {
        let directory = tempfile::tempdir().unwrap();
        let mut location = location(&directory);
        location.on_connect = Some(OnConnect::new(|connection, _| {
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, true)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, 5)?;
            connection.pragma_update(None, "synchronous", 0)
        }));
        for trusted_schema in [false, true] {
            let config = Config { trusted_schema, ..Config::default() };
            for role in ROLES {
                let connection = open(&location, role, &config, &|| Ok(())).unwrap();
                let switch = |switch| connection.db_config(switch).unwrap();
                assert!(switch(DbConfig::SQLITE_DBCONFIG_DEFENSIVE), "{role:?}");
                assert_eq!(switch(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA), trusted_schema, "{role:?}");
                assert!(!switch(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE), "{role:?}");
                let limit = |limit| connection.limit(limit).unwrap();
                assert_eq!(limit(Limit::SQLITE_LIMIT_LENGTH), 256 << 20, "{role:?}");
                assert_eq!(limit(Limit::SQLITE_LIMIT_SQL_LENGTH), SQL_BYTES_MAX, "{role:?}");
                assert_eq!(
                    limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH),
                    LIKE_PATTERN_BYTES_MAX,
                    "{role:?}"
                );
                let synchronous =
                    connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0));
                assert_eq!(synchronous.unwrap(), 2, "{role:?}");
            }
        }
    }

    #[test]
    fn a_check_tells_of_damage_in_names_that_are_no_text() {
        let connection = Connection::open_in_memory().unwrap();
        let damage = "CREATE TABLE t (x); INSERT INTO t VALUES (NULL);
                      PRAGMA writable_schema = ON;
                      UPDATE sqlite_schema SET sql = CAST('CREATE TABLE t (' || x'78ff' || ' NOT NULL)' AS TEXT);
                      PRAGMA writable_schema = RESET";
        connection.execute_batch(damage).unwrap();
        assert!(!is_intact(&connection).unwrap());
    }

    #[test]
    fn only_the_writer_waits_for_nobody_also_after_a_checkpoint() {
        let directory = tempfile::tempdir().unwrap();
        let (location, config) = (location(&directory), Config::default());
        for role in ROLES {
            let connection = open(&location, role, &config, &|| Ok(())).unwrap();
            let patience = if role == Role::Writer { Duration::ZERO } else { config.busy_timeout };
            assert_eq!(busy_timeout(&connection).unwrap(), patience, "{role:?}");
            if role == Role::Reader {
                continue;
            }
            for mode in [CheckpointMode::Passive, CheckpointMode::Restart, CheckpointMode::Truncate] {
                checkpoint(&connection, mode, Duration::from_millis(1)).unwrap();
                assert_eq!(busy_timeout(&connection).unwrap(), patience, "{role:?}, {mode:?}");
            }
        }
    }

    #[test]
    fn a_writer_that_meets_a_lock_is_told_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let (location, config) = (location(&directory), Config::default());
        let writer = open(&location, Role::Writer, &config, &|| Ok(())).unwrap();
        let other = open(&location, Role::Writer, &config, &|| Ok(())).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let began = std::time::Instant::now();
        let refused = writer.execute_batch("BEGIN IMMEDIATE").unwrap_err();
        assert_eq!(refused.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
        assert!(began.elapsed() < config.busy_timeout / 10);
    }

    #[test]
    fn where_another_program_checkpoints_no_close_does() {
        for (checkpoints, stays) in [(Checkpoints::External, true), (Checkpoints::Service, false)] {
            let directory = tempfile::tempdir().unwrap();
            let location = location(&directory);
            let config = Config { checkpoints, ..Config::default() };
            let writer = open(&location, Role::Writer, &config, &|| Ok(())).unwrap();
            let others = [Role::Checkpointer, Role::Reader]
                .map(|role| open(&location, role, &config, &|| Ok(())).unwrap());
            writer.execute_batch("CREATE TABLE t (x)").unwrap();
            close(writer);
            // The last close is that of a connection which could checkpoint.
            let [checkpointer, reader] = others;
            close(reader);
            close(checkpointer);
            let wal = directory.path().join("test.db-wal");
            assert_eq!(wal.metadata().is_ok_and(|wal| wal.len() > 0), stays, "{checkpoints:?}");
        }
    }
}
