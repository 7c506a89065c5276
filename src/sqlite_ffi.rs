//! The few SQLite calls that rusqlite does not offer: the only unsafe code of the crate.
#![allow(unsafe_code)]

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
    fn the_last_insert_rowid_is_forgotten() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
        assert_eq!(db.last_insert_rowid(), 1);
        reset_last_insert_rowid(&db);
        assert_eq!(db.last_insert_rowid(), 0);
    }
}
