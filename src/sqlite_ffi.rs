//! The only unsafe code of the crate: the few SQLite calls that rusqlite does not offer, and two of the system.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use rusqlite::{Connection, ffi};

/// Whether the open transaction violates a deferred foreign key, that is, whether COMMIT would fail now.
///
/// SQLite reports zero or one, not a count (<https://www.sqlite.org/c3ref/c_dbstatus_options.html>,
/// `SQLITE_DBSTATUS_DEFERRED_FKS`).
pub(crate) fn deferred_foreign_key_violated(connection: &Connection) -> bool {
    let (mut current, mut highwater) = (0, 0);
    // SAFETY: the handle is valid while `connection` is borrowed, `Connection` is not `Sync`, so no other
    // thread uses it meanwhile, and the two out-pointers live on this stack frame.
    let code = unsafe {
        ffi::sqlite3_db_status(
            connection.handle(),
            ffi::SQLITE_DBSTATUS_DEFERRED_FKS,
            &mut current,
            &mut highwater,
            0,
        )
    };
    code == ffi::SQLITE_OK && current != 0
}

/// Forgets the rowid of the last insert, so that a command never sees that of the command before it.
///
/// `ROLLBACK TO` does not bring the older value back (<https://www.sqlite.org/c3ref/last_insert_rowid.html>).
pub(crate) fn reset_last_insert_rowid(connection: &Connection) {
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile.
    unsafe { ffi::sqlite3_set_last_insert_rowid(connection.handle(), 0) }
}

/// The extended result code of the last call on the connection.
pub(crate) fn extended_error_code(connection: &Connection) -> i32 {
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile.
    unsafe { ffi::sqlite3_extended_errcode(connection.handle()) }
}

/// The message of the last call on the connection.
pub(crate) fn error_message(connection: &Connection) -> String {
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile. SQLite
    // returns a string that lives until the next call on the connection, and it is copied before.
    let message = unsafe { CStr::from_ptr(ffi::sqlite3_errmsg(connection.handle())) };
    message.to_string_lossy().into_owned()
}

/// Lets neither SQL nor C load an extension from now on; answers whether it still could.
pub(crate) fn forbid_extensions(connection: &Connection) -> rusqlite::Result<bool> {
    let mut still: c_int = -1;
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile. This
    // option takes an `int` and a pointer to one (<https://www.sqlite.org/c3ref/c_dbconfig_defensive.html>).
    let code = unsafe {
        ffi::sqlite3_db_config(
            connection.handle(),
            ffi::SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION,
            0 as c_int,
            ptr::from_mut(&mut still),
        )
    };
    match code {
        ffi::SQLITE_OK => Ok(still != 0),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// The texts of the statements that are still there.
pub(crate) fn statements(connection: &Connection) -> Vec<String> {
    let mut texts = Vec::new();
    each_statement(connection, |statement| {
        // SAFETY: the statement is not finalized; its text is a string that lives as long as it, or null.
        let text = unsafe {
            let text = ffi::sqlite3_sql(statement);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        texts.push(text);
    });
    texts
}

/// Resets every statement, so that none is left half-stepped and pins the WAL.
pub(crate) fn reset_statements(connection: &Connection) {
    each_statement(connection, |statement| {
        // SAFETY: the statement is not finalized, and a reset is allowed in any state.
        unsafe { ffi::sqlite3_reset(statement) };
    });
}

fn each_statement(connection: &Connection, mut visit: impl FnMut(*mut ffi::sqlite3_stmt)) {
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile. The list
    // gives statements that are not finalized, or null; no visitor finalizes one.
    unsafe {
        let database = connection.handle();
        let mut statement = ffi::sqlite3_next_stmt(database, ptr::null_mut());
        while !statement.is_null() {
            visit(statement);
            statement = ffi::sqlite3_next_stmt(database, statement);
        }
    }
}

/// Finalizes every statement that is still there: user code has leaked them.
///
/// Call it after a close that failed, which has emptied rusqlite's statement cache, and only where no virtual table is
/// left that has statements of its own.
pub(crate) fn finalize_leaked_statements(connection: &mut Connection) {
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile. There are none
    // but rusqlite's, says the caller. Every `Statement` of rusqlite borrows the connection, which is borrowed mutably here: so whoever made one has dropped
    // it, which finalizes it, or has forgotten it, and then can't reach it any more. The list gives statements that
    // are not finalized, or null.
    unsafe {
        let database = connection.handle();
        loop {
            let statement = ffi::sqlite3_next_stmt(database, ptr::null_mut());
            if statement.is_null() {
                return;
            }
            ffi::sqlite3_finalize(statement);
        }
    }
}

/// Whether the database file that a connection has open is not the one that has its name; false where the VFS can't
/// tell. Opens and reads nothing.
pub(crate) fn has_moved(connection: &Connection) -> bool {
    let mut moved: c_int = 0;
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile.
    // `SQLITE_FCNTL_HAS_MOVED` stores an integer into the pointer it is given.
    let code = unsafe {
        let out = ptr::from_mut(&mut moved).cast();
        ffi::sqlite3_file_control(connection.handle(), c"main".as_ptr(), ffi::SQLITE_FCNTL_HAS_MOVED, out)
    };
    code == ffi::SQLITE_OK && moved != 0
}

/// Syncs the database file, which a checkpoint beside a busy writer does not do by itself.
///
/// A failure must be taken as that of a checkpoint: the system may have dropped what it could not write
/// (<https://www.sqlite.org/c3ref/io_methods.html>, `xSync`).
pub(crate) fn sync_database_file(connection: &Connection) -> rusqlite::Result<()> {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile.
    // `SQLITE_FCNTL_FILE_POINTER` stores the file of the named database into the pointer it is given; the file
    // lives as long as the connection, and its methods, where there are any, have an `xSync` in every version.
    let code = unsafe {
        let out = ptr::from_mut(&mut file).cast();
        match ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_FILE_POINTER,
            out,
        ) {
            ffi::SQLITE_OK if !file.is_null() && !(*file).pMethods.is_null() => {
                match (*(*file).pMethods).xSync {
                    Some(sync) => sync(file, ffi::SQLITE_SYNC_NORMAL),
                    None => ffi::SQLITE_OK,
                }
            }
            code => code,
        }
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// Writes the first bytes of the WAL once more, as they are, and syncs it. The caller holds the write lock.
///
/// After a sync that failed the system may count what it could not write as written, and no later sync writes it.
pub(crate) fn write_wal_again(connection: &Connection, bytes: u64) -> rusqlite::Result<()> {
    // As much as the largest page has: SQLite's VFS takes no more than 128 KiB at a time.
    const PIECE: usize = 1 << 16;
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile.
    // `SQLITE_FCNTL_JOURNAL_POINTER` stores the file of the WAL into the pointer it is given; the file lives as long as
    // the connection has the WAL, and its methods, where there are any, have these in every version. Reads and writes
    // stay within the piece.
    let code = unsafe {
        let out = ptr::from_mut(&mut file).cast();
        let main = c"main".as_ptr();
        let told =
            ffi::sqlite3_file_control(connection.handle(), main, ffi::SQLITE_FCNTL_JOURNAL_POINTER, out);
        if told != ffi::SQLITE_OK || file.is_null() || (*file).pMethods.is_null() {
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), None));
        }
        let methods = &*(*file).pMethods;
        let (Some(read), Some(write), Some(sync)) = (methods.xRead, methods.xWrite, methods.xSync) else {
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), None));
        };
        let mut piece = vec![0_u8; PIECE];
        let mut code = ffi::SQLITE_OK;
        let mut done = 0;
        while done < bytes && code == ffi::SQLITE_OK {
            let count = (bytes - done).min(PIECE as u64);
            let (n, at) = (count as c_int, done.cast_signed());
            code = read(file, piece.as_mut_ptr().cast(), n, at);
            if code == ffi::SQLITE_OK {
                code = write(file, piece.as_ptr().cast(), n, at);
            }
            done += count;
        }
        if code == ffi::SQLITE_OK { sync(file, ffi::SQLITE_SYNC_FULL) } else { code }
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// Something that a statement would do, asked about while it is prepared
/// (<https://www.sqlite.org/c3ref/set_authorizer.html>).
///
/// The names are bytes: those in the schema of a damaged file need not be text.
pub(crate) struct Action<'a> {
    /// `SQLITE_INSERT`, say (<https://www.sqlite.org/c3ref/c_alter_table.html>).
    pub(crate) code: c_int,
    /// What the code says they are.
    pub(crate) names: [Option<&'a [u8]>; 2],
    pub(crate) database: Option<&'a [u8]>,
    /// The trigger or the view that would do it.
    pub(crate) accessor: Option<&'a [u8]>,
}

/// Asks `is_allowed` about every statement that is prepared on the connection from now on; once for a connection.
///
/// As rusqlite's authorizer, which panics where a name is no text.
pub(crate) fn authorize<F>(connection: &Connection, is_allowed: F) -> rusqlite::Result<()>
where
    F: Fn(&Action<'_>) -> bool + Send + 'static,
{
    let asked = Box::into_raw(Box::new(is_allowed)).cast();
    // SAFETY: the handle is valid while `connection` is borrowed, and no other thread uses it meanwhile. SQLite has the
    // closure dropped when the connection is closed, or at once where it has no memory to note that, and asks it
    // until then: nobody else gives a connection data of this name, and an authorizer that another takes the place of
    // is asked no more.
    unsafe {
        let name = c"solewriter.authorizer".as_ptr();
        match ffi::sqlite3_set_clientdata(connection.handle(), name, asked, Some(forget::<F>)) {
            ffi::SQLITE_OK => {}
            code => return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
        }
        match ffi::sqlite3_set_authorizer(connection.handle(), Some(ask::<F>), asked) {
            ffi::SQLITE_OK => Ok(()),
            code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
        }
    }
}

/// Drops the closure of an authorizer.
unsafe extern "C" fn forget<F>(asked: *mut c_void) {
    // SAFETY: this is called once, with what `authorize` has made of a box.
    drop(unsafe { Box::from_raw(asked.cast::<F>()) });
}

unsafe extern "C" fn ask<F: Fn(&Action<'_>) -> bool>(
    asked: *mut c_void,
    code: c_int,
    first: *const c_char,
    second: *const c_char,
    database: *const c_char,
    accessor: *const c_char,
) -> c_int {
    // SAFETY: SQLite gives strings that live as long as this call, or null, and the closure, which is not dropped yet.
    let (action, is_allowed) = unsafe {
        let name = |name: *const c_char| (!name.is_null()).then(|| CStr::from_ptr(name).to_bytes());
        let names = [name(first), name(second)];
        (Action { code, names, database: name(database), accessor: name(accessor) }, &*asked.cast::<F>())
    };
    // A panic must not cross SQLite.
    match catch_unwind(AssertUnwindSafe(|| is_allowed(&action))) {
        Ok(true) => ffi::SQLITE_OK,
        Ok(false) | Err(_) => ffi::SQLITE_DENY,
    }
}

// The system.

/// Has `prepare` called before every fork of this process, then `parent` in it and `child` in the fork, all on
/// the thread that forks. For good: what is registered can't be taken back.
#[cfg(unix)]
pub(crate) fn at_fork(
    prepare: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
) -> std::io::Result<()> {
    // SAFETY: the three are functions of this program, which are there for as long as it runs, and safe to
    // call at any time, from any thread.
    match unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) } {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code)),
    }
}

/// Writes what is dirty of these bytes of a file to its disk, and waits for that; it is not durable then.
///
/// A descriptor that is of no file is an error, and that of another file does no harm: it is written a little earlier.
#[cfg(target_os = "linux")]
pub(crate) fn write_back(descriptor: std::os::fd::RawFd, begin: u64, bytes: u64) -> std::io::Result<()> {
    let invalid = |_| std::io::ErrorKind::InvalidInput;
    let (begin, bytes) = (begin.try_into().map_err(invalid)?, bytes.try_into().map_err(invalid)?);
    // SAFETY: it takes numbers, reads no memory, and changes nothing that a program can see.
    let code = unsafe {
        let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        libc::sync_file_range(descriptor, begin, bytes, flags)
    };
    if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::mem_forget)]
    use super::*;

    #[test]
    fn a_deferred_violation_is_seen_before_commit_and_gone_after_rollback_to() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(
            "PRAGMA foreign_keys = ON;
             CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
             BEGIN; SAVEPOINT s;",
        )
        .unwrap();
        assert!(!deferred_foreign_key_violated(&db));
        db.execute_batch("INSERT INTO child VALUES (1)").unwrap();
        assert!(deferred_foreign_key_violated(&db));
        db.execute_batch("ROLLBACK TO s").unwrap();
        assert!(!deferred_foreign_key_violated(&db));
    }

    #[test]
    fn every_statement_is_asked_about_and_the_closure_goes_with_its_connection() {
        let (asked, kept) = (std::sync::Arc::new(std::sync::Mutex::new(Vec::new())), std::sync::Arc::new(()));
        let db = Connection::open_in_memory().unwrap();
        let (noted, going) = (asked.clone(), kept.clone());
        authorize(&db, move |action| {
            let _goes_with_it = &going;
            noted.lock().unwrap().push((action.code, action.names.map(|name| name.map(<[u8]>::to_vec))));
            assert_ne!(action.code, ffi::SQLITE_DETACH, "a panic refuses, too");
            action.code != ffi::SQLITE_ATTACH
        })
        .unwrap();
        db.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
        for refused in ["ATTACH ':memory:' AS other", "DETACH main"] {
            let refused = db.execute_batch(refused).unwrap_err();
            assert_eq!(refused.sqlite_error().unwrap().extended_code, ffi::SQLITE_AUTH);
        }
        let insert = (ffi::SQLITE_INSERT, [Some(b"t".to_vec()), None]);
        assert!(asked.lock().unwrap().contains(&insert));
        db.close().unwrap();
        assert_eq!(std::sync::Arc::strong_count(&kept), 1);
    }

    #[test]
    fn the_last_error_has_a_code_and_a_message() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (x UNIQUE); INSERT INTO t VALUES (1)").unwrap();
        connection.execute("INSERT INTO t VALUES (1)", ()).unwrap_err();
        assert_eq!(extended_error_code(&connection), ffi::SQLITE_CONSTRAINT_UNIQUE);
        assert_eq!(error_message(&connection), "UNIQUE constraint failed: t.x");
    }

    #[test]
    fn the_last_insert_rowid_is_forgotten() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
        assert_eq!(db.last_insert_rowid(), 1);
        reset_last_insert_rowid(&db);
        assert_eq!(db.last_insert_rowid(), 0);
    }

    #[test]
    fn a_connection_can_be_closed_once_its_leaked_statements_are_finalized() {
        let db = Connection::open_in_memory().unwrap();
        let mut statement = db.prepare("SELECT 1 UNION ALL SELECT 2").unwrap();
        let mut rows = statement.query(()).unwrap();
        rows.next().unwrap();
        std::mem::forget(rows);
        std::mem::forget(statement);
        drop(db.prepare_cached("SELECT 3").unwrap());
        let (mut db, _) = db.close().unwrap_err();
        finalize_leaked_statements(&mut db);
        db.close().unwrap();
    }

    #[test]
    fn a_long_wal_is_written_again_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("again.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(900000))",
        )
        .unwrap();
        let wal = || std::fs::read(directory.path().join("again.db-wal")).unwrap();
        let before = wal();
        write_wal_again(&db, before.len() as u64).unwrap();
        assert!(before.len() > 900_000 && before == wal());
        // There is no more of it.
        write_wal_again(&db, before.len() as u64 + 1).unwrap_err();
    }

    #[test]
    fn the_file_of_a_database_can_be_synced() {
        let directory = tempfile::tempdir().unwrap();
        let db = Connection::open(directory.path().join("synced.db")).unwrap();
        db.execute_batch("CREATE TABLE t (x)").unwrap();
        sync_database_file(&db).unwrap();
        // A database in memory has no file to sync.
        sync_database_file(&Connection::open_in_memory().unwrap()).unwrap();
    }

    /// How many pages of a file are dirty, or on their way to the disk; `None` where nobody can tell.
    #[cfg(target_os = "linux")]
    fn dirty_pages(file: &std::fs::File) -> Option<u64> {
        use std::os::fd::AsRawFd;
        const CACHESTAT: libc::c_long = 451;
        let (range, mut counts) = ([0_u64; 2], [0_u64; 5]);
        // SAFETY: the call reads two numbers and writes five.
        let code =
            unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0) };
        let [_cached, dirty, in_write_back, ..] = counts;
        (code == 0).then_some(dirty + in_write_back)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_written_back_is_not_dirty_any_more() {
        use std::os::fd::AsRawFd;
        let file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &file, &[1; 1 << 20]).unwrap();
        let dirty = dirty_pages(&file);
        write_back(file.as_raw_fd(), 0, 1 << 19).unwrap();
        // An older kernel can't tell, and in a file system in memory nothing is ever clean.
        if let (Some(256), Some(left)) = (dirty, dirty_pages(&file))
            && left < 256
        {
            // Fewer, if the system has begun with the rest by itself.
            assert!(left <= 128, "{left}");
            write_back(file.as_raw_fd(), 1 << 19, 1 << 19).unwrap();
            assert_eq!(dirty_pages(&file), Some(0));
        }
        assert!(write_back(-1, 0, 1).is_err());
    }
}
