//! Opening what can't be opened: a clear typed error each, and nothing created or changed.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use common::HANG;
use rusqlite::ffi;
use solewriter::{Config, Database, Drain, OpenError, OpenErrorReason as Reason};
use tempfile::TempDir;
use walkdir::WalkDir;

/// Name, size, time of the last change, and contents of a file or directory.
type Entry = (PathBuf, u64, SystemTime, Vec<u8>);

fn listing(dir: &Path) -> Vec<Entry> {
    let entries = WalkDir::new(dir).sort_by_file_name().into_iter().map(Result::unwrap);
    entries
        .map(|entry| {
            let metadata = entry.metadata().unwrap();
            let contents = if metadata.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
            (entry.path().to_owned(), metadata.len(), metadata.modified().unwrap(), contents)
        })
        .collect()
}

/// Opens `name` within `dir`, which fails and leaves everything as it was.
fn refused(dir: &Path, name: impl AsRef<Path>, config: Config) -> OpenError {
    let before = listing(dir);
    let path = dir.join(name);
    let error = Database::builder(&path).config(config).open_blocking().expect_err("it is refused");
    assert_eq!(listing(dir), before, "{error}");
    assert_eq!(error.path, path);
    error
}

fn open_refused(dir: &TempDir, name: impl AsRef<Path>) -> Reason {
    refused(dir.path(), name, Config::default()).reason
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Bytes without a pattern, as an encrypted database has.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn a_file_that_is_not_a_database() {
    let dir = dir();
    let text = "Dear diary, today I did not write SQL. ".repeat(100);
    // SQLite takes a file of a single byte for an empty one.
    for contents in [&b"x"[..], b"no", b"SQLite format 4\0", text.as_bytes(), &noise(512), &noise(65_536)] {
        fs::write(dir.path().join("app.db"), contents).unwrap();
        let error = refused(dir.path(), "app.db", Config::default());
        assert!(matches!(error.reason, Reason::NotADatabase(_)), "{error:?}");
        assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_NOTADB));
        assert!(error.source().is_some() && error.to_string().contains("app.db"), "{error}");
    }
}

#[test]
fn a_directory_that_does_not_exist() {
    let dir = dir();
    assert!(matches!(open_refused(&dir, "none/app.db"), Reason::DirectoryMissing));
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(matches!(open_refused(&dir, "file/app.db"), Reason::DirectoryMissing));
}

#[test]
fn a_directory_as_path() {
    let dir = dir();
    fs::create_dir(dir.path().join("app.db")).unwrap();
    for path in ["app.db", "app.db/", ".", "app.db/.."] {
        assert!(matches!(open_refused(&dir, path), Reason::NotAFile), "{path}");
    }
}

#[test]
fn a_path_that_names_no_file_on_disk() {
    for path in ["", ":memory:", "file:app.db", "file::memory:?cache=shared", "file:///tmp/app.db?mode=ro"] {
        let error = Database::builder(path).open_blocking().expect_err(path);
        assert!(matches!(error.reason, Reason::NotAFilePath), "{path}: {error:?}");
        assert!(path.is_empty() || !Path::new(path).exists(), "{path}");
    }
}

#[cfg(unix)]
#[test]
fn a_file_with_several_hard_links() {
    let dir = dir();
    common::plain(&dir.path().join("app.db")).execute_batch("CREATE TABLE t (x)").unwrap();
    fs::hard_link(dir.path().join("app.db"), dir.path().join("other.db")).unwrap();
    for name in ["app.db", "other.db"] {
        assert!(matches!(open_refused(&dir, name), Reason::HardLinks { links: 2 }));
    }
}

#[cfg(unix)]
#[test]
fn a_symbolic_link_that_leads_nowhere() {
    let dir = dir();
    std::os::unix::fs::symlink("nowhere.db", dir.path().join("app.db")).unwrap();
    assert!(matches!(open_refused(&dir, "app.db"), Reason::Missing));
}

#[cfg(unix)]
#[test]
fn something_that_is_not_a_regular_file() {
    let dir = dir();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("app.db")).unwrap();
    assert!(matches!(open_refused(&dir, "app.db"), Reason::NotAFile));
    assert!(matches!(Database::builder("/dev/null").open_blocking().unwrap_err().reason, Reason::NotAFile));
}

#[test]
fn a_missing_file_that_is_not_to_be_created() {
    let config = Config { create: false, ..Config::default() };
    let dir = dir();
    assert!(matches!(refused(dir.path(), "app.db", config).reason, Reason::Missing));
}

#[test]
fn a_setting_that_makes_no_sense() {
    let dir = dir();
    let error = refused(dir.path(), "app.db", Config { readers: 0, ..Config::default() });
    assert!(matches!(&error.reason, Reason::Config(error) if error.field == "readers"), "{error:?}");
    assert!(error.source().unwrap().to_string().contains("readers"));
}

#[test]
fn a_vfs_that_does_not_exist() {
    let dir = dir();
    let before = listing(dir.path()).len();
    let error = Database::builder(dir.path().join("app.db")).vfs("none").open_blocking().unwrap_err();
    assert!(matches!(error.reason, Reason::Sqlite(_)), "{error:?}");
    assert_eq!(listing(dir.path()).len(), before);
}

/// SQLite answers with the journal mode that is in force. Through this VFS, which has no shared memory, that is
/// not WAL.
#[cfg(unix)]
#[test]
fn a_place_where_sqlite_can_not_keep_a_wal() {
    let dir = dir();
    let builder = Database::builder(dir.path().join("app.db")).vfs("unix-dotfile");
    // It maps no files either, which would be noticed first.
    let error = builder.config(Config { mmap_bytes: 0, ..Config::default() }).open_blocking().unwrap_err();
    assert!(
        matches!(&error.reason, Reason::Pragma { name: "journal_mode", found, .. } if found == "delete"),
        "{error:?}"
    );
    assert!(!dir.path().join("app.db").exists(), "what the open made is removed");
}

/// A directory that is shown again elsewhere by a program: FUSE. Taken away when dropped.
#[cfg(target_os = "linux")]
struct Mirror(TempDir);

#[cfg(target_os = "linux")]
impl Mirror {
    fn of(dir: &Path) -> Option<Self> {
        let shown = tempfile::tempdir().unwrap();
        let output =
            std::process::Command::new("bindfs").arg("--no-allow-other").args([dir, shown.path()]).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(shown)),
            Ok(output) => skip(String::from_utf8_lossy(&output.stderr).trim()),
            Err(error) => skip(&error.to_string()),
        }
    }
}

#[cfg(target_os = "linux")]
fn skip<T>(reason: &str) -> Option<T> {
    common::proof::skip("open_errors", format!("bindfs shows no directory on FUSE: {reason}"));
    None
}

#[cfg(target_os = "linux")]
impl Drop for Mirror {
    fn drop(&mut self) {
        for program in [&["fusermount", "-u"][..], &["fusermount3", "-u"], &["umount"]] {
            let run = std::process::Command::new(program[0]).args(&program[1..]).arg(self.0.path()).output();
            if run.is_ok_and(|output| output.status.success()) {
                return;
            }
        }
        eprintln!("still mounted: {}", self.0.path().display());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_system_on_which_a_wal_is_not_safe() {
    let below = dir();
    common::plain(&below.path().join("old.db")).execute_batch("CREATE TABLE t (x)").unwrap();
    let Some(mirror) = Mirror::of(below.path()) else { return };
    for name in ["old.db", "new.db"] {
        let error = refused(mirror.0.path(), name, Config::default());
        assert!(
            matches!(error.reason, Reason::NetworkFileSystem { kind } if kind.contains("FUSE")),
            "{error:?}"
        );
        assert!(error.to_string().contains("allow_network_file_system"), "{error}");
    }
    let config = Config { allow_network_file_system: true, ..Config::default() };
    let db =
        Database::builder(mirror.0.path().join("old.db")).config(config).open_blocking().unwrap().blocking();
    db.execute("INSERT INTO t VALUES (1)", ()).wait().unwrap();
    db.shutdown(Drain::within(HANG)).unwrap();
}

#[test]
fn a_refused_open_does_not_stand_in_the_way_of_the_next() {
    let dir = dir();
    let path = dir.path().join("app.db");
    fs::write(&path, "not a database").unwrap();
    assert!(matches!(open_refused(&dir, "app.db"), Reason::NotADatabase(_)));
    fs::remove_file(&path).unwrap();
    let db = Database::builder(&path).open_blocking().unwrap().blocking();
    let plain = common::plain(&path);
    let mode: String = plain.query_row("PRAGMA journal_mode", (), |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    drop(plain);
    db.shutdown(Drain::within(HANG)).unwrap();
}

/// Without rights: in a process without root's, since those pass every check.
#[cfg(unix)]
mod permissions {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::sync::{Mutex, PoisonError};

    use super::*;

    const CASE: &str = "SOLEWRITER_TEST_CASE";
    const NOBODY: u32 = 65_534;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Opens the path in a process that is not root, and returns the path it has no rights to.
    fn denied(test: &str, path: &Path, dir: &TempDir) {
        // A program that another thread forks meanwhile inherits the copy while it is open for writing, and the
        // system runs no program that is: "text file busy".
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let before = listing(dir.path());
        // A copy, since the directories of the original may be closed to others.
        let programs = tempfile::tempdir().unwrap();
        chmod(programs.path(), 0o755);
        let program = programs.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let mut child = Command::new(program);
        child.args(["--exact", test, "--nocapture"]).env(CASE, path).current_dir("/");
        if dir.path().metadata().unwrap().uid() == 0 {
            child.uid(NOBODY).gid(NOBODY);
        }
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(listing(dir.path()), before);
    }

    /// In the child: what it has no rights to. `None` in the parent.
    fn denied_here() -> Option<PathBuf> {
        let path = std::env::var_os(CASE)?;
        match Database::builder(path).open_blocking().unwrap_err().reason {
            Reason::PermissionDenied { at } => Some(at),
            reason => panic!("{reason:?}"),
        }
    }

    /// A database that others may reach, and then only as `mode` and `dir_mode` say.
    fn database(mode: u32, dir_mode: u32) -> (TempDir, PathBuf) {
        let dir = dir();
        let path = dir.path().join("app.db");
        common::plain(&path).execute_batch("CREATE TABLE t (x)").unwrap();
        chmod(&path, mode);
        chmod(dir.path(), dir_mode);
        (dir, path)
    }

    #[test]
    fn a_directory_that_is_read_only() {
        if let Some(at) = denied_here() {
            return assert!(at.is_dir(), "{}", at.display());
        }
        let (dir, path) = database(0o666, 0o555);
        denied("permissions::a_directory_that_is_read_only", &path, &dir);
        denied("permissions::a_directory_that_is_read_only", &dir.path().join("new.db"), &dir);
        chmod(dir.path(), 0o755);
    }

    #[test]
    fn a_file_that_can_not_be_written() {
        if let Some(at) = denied_here() {
            return assert!(at.ends_with("app.db"), "{}", at.display());
        }
        let (dir, path) = database(0o444, 0o777);
        denied("permissions::a_file_that_can_not_be_written", &path, &dir);
    }

    #[test]
    fn a_file_that_can_not_be_read() {
        if let Some(at) = denied_here() {
            return assert!(at.ends_with("app.db"), "{}", at.display());
        }
        let (dir, path) = database(0o200, 0o777);
        denied("permissions::a_file_that_can_not_be_read", &path, &dir);
    }
}

/// A database as a crash leaves it, whose newest commits are in the -wal alone; `last` is the last of them.
fn crashed(dir: &TempDir, last: &str) -> PathBuf {
    let (crashed, path) = (dir.path().join("crashed.db"), dir.path().join("app.db"));
    let before = common::plain(&crashed);
    let schema = "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x); INSERT INTO t VALUES (1)";
    before.execute_batch(schema).unwrap();
    before.execute_batch(&format!("PRAGMA wal_checkpoint(TRUNCATE); {last}")).unwrap();
    fs::copy(common::beside(&crashed, "-wal"), common::beside(&path, "-wal")).unwrap();
    fs::copy(&crashed, &path).unwrap();
    path
}

fn change(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// After a crash in the middle of a checkpoint the first page may speak of pages that are still in the WAL only, or be
/// no page at all.
#[test]
fn a_database_that_needs_its_wal_is_opened_and_recovered() {
    // The page count of the header, and the counter that vouches for it (https://www.sqlite.org/fileformat2.html).
    let counts = |file: &mut [u8]| file[28..32].copy_from_slice(&1000_u32.to_be_bytes());
    let nothing = |file: &mut [u8]| file[..512].fill(0);
    for damage in [counts, nothing] {
        let dir = dir();
        let path = crashed(&dir, "INSERT INTO t VALUES (zeroblob(100000))");
        change(&path, damage);
        let db = Database::builder(&path).open_blocking().unwrap().blocking();
        let bytes = "SELECT sum(length(x)) FROM t";
        let bytes = db.read("bytes", move |tx| tx.query_row(bytes, (), |row| row.get::<_, i64>(0)));
        assert_eq!(bytes.wait().unwrap(), 100_001);
    }
}

// The close of what was opened in vain copied the WAL into a file of which nobody knows what is left (damaged_files,
// seed 67).
#[test]
fn a_database_that_is_refused_keeps_its_wal() {
    let no_schema = |file: &mut [u8]| file[100] = 0xff;
    let no_header = |file: &mut [u8]| file[..16].fill(0xff);
    for (damage, code) in [(no_schema as fn(&mut [u8]), ffi::SQLITE_CORRUPT), (no_header, ffi::SQLITE_NOTADB)]
    {
        let dir = dir();
        // The first page is in the file only.
        let path = crashed(&dir, "UPDATE t SET x = 2");
        change(&path, damage);
        let files = || ["", "-wal"].map(|suffix| fs::read(common::beside(&path, suffix)).unwrap());
        let before = files();
        let refused = Database::builder(&path).open_blocking().unwrap_err();
        assert_eq!(refused.sqlite_extended_code(), Some(code), "{refused:?}");
        let is_no_database = matches!(refused.reason, Reason::NotADatabase(_));
        assert_eq!(is_no_database, code == ffi::SQLITE_NOTADB, "{refused:?}");
        assert!(files() == before, "{refused:?}");
    }
}

// A checkpoint copies nothing that the wal-index says is copied, and begins the WAL anew: what had been acknowledged
// was gone (damaged_files, seed 1130).
#[cfg(unix)]
#[test]
fn a_damaged_wal_index_that_another_connection_keeps_alive() {
    let dir = dir();
    let path = dir.path().join("app.db");
    let other = common::plain(&path);
    other.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x)").unwrap();
    let shm = fs::OpenOptions::new().write(true).open(common::beside(&path, "-shm")).unwrap();
    // How many frames are copied (https://www.sqlite.org/walformat.html).
    for copied in [0x1000_u32, 0x8000_0000] {
        std::os::unix::fs::FileExt::write_all_at(&shm, &copied.to_ne_bytes(), 96).unwrap();
        let refused = Database::builder(&path).open_blocking().unwrap_err();
        assert_eq!(refused.sqlite_extended_code(), Some(ffi::SQLITE_CORRUPT), "{refused:?}");
    }
    std::os::unix::fs::FileExt::write_all_at(&shm, &[0; 4], 96).unwrap();
    let db = Database::builder(&path).open_blocking().unwrap().blocking();
    db.execute("INSERT INTO t VALUES (1)", ()).wait().unwrap();
}
