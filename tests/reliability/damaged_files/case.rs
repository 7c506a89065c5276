//! One damaged file: the service opens it, uses all of it and closes it; then SQLite alone looks at what is there.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use rusqlite::{Connection, ffi};
use solewriter::{
    BlockingDatabase, Database, Drain, ImportError, ImportFailure, MaintenanceError, NotStarted, OnError,
    OpenErrorReason, Outcome, ReadEnd, ReadError, RolledBack, Sabotage, Trouble, Unknown, WriteError,
};

use super::damage::{self, Damage, Reach};
use super::good::{self, ENTRIES, Files, Good, Goods, Kind, LOOKS, PATIENCE, TABLES};
use super::imports::Imported;
use super::ops::{Found, How, Op, Receipt};
use super::report::{Mode, Report};
use crate::common::foreign::Foreign;
use crate::common::proof::Wrong;
use crate::common::{HANG, beside, plain};

/// A file on its way through the service.
struct Case {
    rng: fastrand::Rng,
    mode: Mode,
    path: PathBuf,
    good: Rc<Good>,
    damage: Damage,
    /// Another process has the file open.
    in_use: bool,
    /// Nobody but SQLite can tell whether this counts.
    suspicions: Vec<(Wrong, String)>,
    /// What was asked of the service, and how it was answered.
    sent: Vec<(Op, Answered)>,
    /// New rows have ids of their own.
    next_id: i64,
    /// Why it was not opened.
    refused: Option<String>,
    /// A damaged index or list of free pages is whole again after a VACUUM.
    mended: bool,
    report: Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Acknowledged,
    NotApplied,
    Unknown,
}

/// Runs the case of a seed in a directory.
pub(super) fn run(seed: u64, mode: Mode, goods: &Goods, directory: &Path) -> Report {
    let mut rng = fastrand::Rng::with_seed(seed);
    let kind = Kind::any(&mut rng);
    let good = goods.get(kind);
    let path = directory.join(format!("{seed}.db"));
    let mut files = good.files.clone();
    let damage = if kind.is_hot() && rng.u8(..10) == 0 {
        Damage::of_shared_memory_in_use()
    } else {
        damage::damage(&mut rng, kind, goods, &mut files)
    };
    let mut report = use_damaged(rng, mode, good, &files, damage, path);
    for (_, what) in &mut report.wrong {
        *what = format!("{kind:?}, {what}");
    }
    report
}

/// Has files that are damaged used and looked at.
pub(super) fn use_damaged(
    rng: fastrand::Rng,
    mode: Mode,
    good: Rc<Good>,
    files: &Files,
    damage: Damage,
    path: PathBuf,
) -> Report {
    files.write(&path);
    damage.finish(&path);
    let in_use = damage.is_in_use;
    let mut case = Case {
        rng,
        mode,
        path,
        good,
        damage,
        in_use,
        suspicions: Vec::new(),
        sent: Vec::new(),
        next_id: 1_000_000,
        refused: None,
        mended: false,
        report: Report::default(),
    };
    let neighbour = in_use.then(|| case.neighbour());
    case.go_through();
    if let Some(neighbour) = neighbour {
        neighbour.close();
    }
    case.verify();
    for suffix in ["", "-wal", "-shm", "-solewriter", "-journal"] {
        // Most are not there.
        drop(std::fs::remove_file(beside(&case.path, suffix)));
    }
    let Case { mut report, damage, .. } = case;
    for (_, what) in &mut report.wrong {
        *what = format!("{}: {what}", damage.what);
    }
    report
}

impl Case {
    /// Another process that has the database open, whose -shm file is damaged then.
    fn neighbour(&mut self) -> Foreign {
        let mut foreign = Foreign::start_in("damaged_files", &self.path);
        foreign.ask(if self.rng.bool() {
            "SELECT count(*) FROM small"
        } else {
            "BEGIN; SELECT count(*) FROM small"
        });
        let path = beside(&self.path, "-shm");
        let mut bytes = std::fs::read(&path).unwrap();
        self.damage.what = damage::flip_shared_memory(&mut self.rng, &mut bytes);
        // In place, since the other process has it mapped.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&bytes).unwrap();
        foreign
    }

    fn is_intact_for_sure(&self) -> bool {
        self.damage.reach <= Reach::Records
    }

    fn open(&mut self) -> Option<BlockingDatabase> {
        let before = Files::read(&self.path);
        let config = crate::common::config_with(|config| {
            config.readers = 1;
            config.readers_overflow = 1;
            config.busy_timeout = PATIENCE;
            config.command_wait_max = Duration::from_secs(10);
            config.read_age_max = Duration::from_secs(10);
            config.breaker_pause = Duration::from_millis(2);
            config.breaker_failures = 3;
            config.checkpoint_pages = [10, 4_000][self.rng.usize(..2)];
        });
        let mut builder = Database::builder(&self.path).config(config);
        if self.mode == Mode::AckBeforeCommit {
            builder = builder.sabotage(Sabotage::AckBeforeCommit);
        }
        let refused = match builder.open_blocking() {
            Ok(db) => {
                self.report.count("opened");
                return Some(db.blocking());
            }
            Err(refused) => refused,
        };
        let code = refused.sqlite_extended_code().map(|code| code & 0xff);
        let (kind, is_typed) = match refused.reason {
            OpenErrorReason::NotADatabase(_) => ("not_a_database", code == Some(ffi::SQLITE_NOTADB)),
            OpenErrorReason::Sqlite(_) => ("not_opened", code.is_some()),
            _ => ("not_opened", false),
        };
        self.report.count(kind);
        self.report.check(is_typed, Wrong::Broken, || format!("refused: {refused:?}"));
        self.report.check(!self.is_intact_for_sure(), Wrong::Broken, || format!("refused: {refused:?}"));
        // SQLite takes a file of a single byte for an empty one, which the service does not; and it reads one of a
        // version that it can't write. A -shm file that was damaged while it was in use is made anew once it is not.
        if before.db.len() != 1 && code != Some(ffi::SQLITE_READONLY) && !self.in_use {
            self.refused = Some(format!("{refused:?}"));
        }
        let after = Files::read(&self.path);
        // An empty -wal file says nothing, and goes with the connection.
        let wal = |files: &Files| files.wal.clone().filter(|wal| !wal.is_empty());
        let same = before.db == after.db && wal(&before) == wal(&after);
        self.report.check(same, Wrong::Broken, || format!("refused and changed: {refused:?}"));
        if matches!(refused.reason, OpenErrorReason::NotADatabase(_)) && before.wal.is_none() {
            self.report.check(before == after, Wrong::Broken, || {
                format!("not a database, and changed: {refused:?}")
            });
        }
        None
    }

    /// What the command line finds, which looks at the bytes of the -wal file too.
    fn inspect(&mut self) {
        let Some(program) = option_env!("CARGO_BIN_EXE_solewriter") else { return };
        self.report.count("inspected");
        let before = Files::read(&self.path);
        let ran = Command::new(program).arg("inspect").arg(&self.path).output().unwrap();
        let ended_well = matches!(ran.status.code(), Some(0..3));
        let told = String::from_utf8_lossy(&ran.stderr);
        self.report.check(ended_well, Wrong::Broken, || format!("inspect: {}, {told}", ran.status));
        let after = Files::read(&self.path);
        self.report
            .check(before == after, Wrong::Broken, || format!("changed by inspect: {}, {told}", ran.status));
    }

    fn go_through(&mut self) {
        if self.rng.u8(..30) == 0 {
            self.inspect();
        }
        let Some(db) = self.open() else { return };
        if self.damage.reach <= Reach::Records {
            self.compare(&db);
        }
        let mut steps: [fn(&mut Self, &BlockingDatabase); 7] =
            [Self::look, Self::write, Self::write, Self::import, Self::maintain, Self::ask, Self::snapshot];
        self.rng.shuffle(&mut steps);
        for step in steps {
            step(self, &db);
        }
        self.write(&db);
        match db.shutdown(Drain::within(HANG)) {
            Ok(report) if report.stopped => self.report.count("stopped"),
            Ok(_) => {}
            Err(error) => self.report.wrong(Wrong::Broken, format!("{error:?}")),
        }
        if self.mode == Mode::Panic {
            drop(std::thread::spawn(|| panic!("on purpose")).join());
        }
    }

    /// What must be there is there.
    fn compare(&mut self, db: &BlockingDatabase) {
        let seen: Vec<String> = LOOKS
            .iter()
            .map(|sql| match db.read("compare", |tx| tx.query_row(sql, (), |row| row.get(0))).wait() {
                Ok(seen) => seen,
                Err(error) => format!("{error:?}"),
            })
            .collect();
        // The last one is about the records.
        let compared = match self.damage.reach {
            Reach::Nothing => LOOKS.len(),
            Reach::Records => LOOKS.len() - 1,
            Reach::Commits | Reach::Anything => 0,
        };
        let same = seen[..compared] == self.good.seen[..compared];
        let difference = || good::difference(&self.good.seen[..compared], &seen[..compared]);
        self.report.check(same, Wrong::Lost, difference);
    }

    fn look(&mut self, db: &BlockingDatabase) {
        for sql in LOOKS {
            let read = db.read("look", move |tx| tx.query_row(sql, (), |row| row.get::<_, String>(0)));
            if let Err(error) = read.wait() {
                self.see_read_error(&error);
            }
        }
        for table in TABLES {
            let whole = db.read("look", move |tx| {
                let mut statement = tx.prepare(&format!("SELECT * FROM {table} LIMIT 100"))?;
                let columns = statement.column_count();
                let mut rows = statement.query(())?;
                while let Some(row) = rows.next()? {
                    (0..columns).try_for_each(|column| row.get_ref(column).map(drop))?;
                }
                Ok(())
            });
            if let Err(error) = whole.wait() {
                self.see_read_error(&error);
            }
        }
    }

    fn snapshot(&mut self, db: &BlockingDatabase) {
        match db.snapshot("snapshot").wait() {
            Ok(snapshot) => {
                let mut has_failed = false;
                for sql in LOOKS {
                    let read = snapshot.read(move |tx| tx.query_row(sql, (), |row| row.get::<_, String>(0)));
                    let Err(error) = read.wait() else { continue };
                    let was_lost = matches!(error, ReadError::SnapshotEnded { why: ReadEnd::Broken, .. });
                    if was_lost && has_failed {
                        break;
                    }
                    self.see_read_error(&error);
                    has_failed = true;
                }
            }
            Err(error) => self.see_read_error(&error),
        }
    }

    /// What the service says of itself.
    fn ask(&mut self, db: &BlockingDatabase) {
        if let Err(error) = db.import_records(10) {
            self.see_read_error(&error);
        }
        let health = db.database().health();
        let text = serde_json::to_string(&(&health, db.database().stats()));
        self.report.check(text.is_ok(), Wrong::Broken, || format!("{health:?}"));
        let failures = db.database().recent_failures();
        self.report.check(failures.len() <= 64, Wrong::Broken, || format!("{failures:?}"));
    }

    fn write(&mut self, db: &BlockingDatabase) {
        let mut receipts: Vec<(Op, Receipt)> = Vec::new();
        for _ in 0..self.rng.usize(1..8) {
            self.next_id += 1;
            let op = Op::any(&mut self.rng, self.next_id, self.good.ids);
            let mut earlier =
                self.sent.iter().map(|(sent, _)| sent).chain(receipts.iter().map(|(sent, _)| sent));
            if earlier.any(|sent| *sent == op) {
                continue;
            }
            match op.submit(db, How::any(&mut self.rng)) {
                Ok(receipt) => receipts.push((op, receipt)),
                Err(error) => self.see_answer(db, op, Err(error)),
            }
        }
        let mut acknowledged = Vec::new();
        for (op, receipt) in receipts {
            let answer = receipt();
            // An old row that was not found is no promise.
            if matches!(answer, Ok(0)) {
                continue;
            }
            if answer.is_ok() {
                acknowledged.push(op.clone());
            }
            self.see_answer(db, op, answer);
        }
        for op in acknowledged {
            let (sql, id) = (op.probe(), op.id());
            match db.read("right after", move |tx| tx.query_row(sql, [id], |row| row.get(0))).wait() {
                Ok(seen) => {
                    self.report.checks += 1;
                    self.suspect(&op, Answered::Acknowledged, &op.find(seen), "right after");
                }
                Err(error) => self.see_read_error(&error),
            }
        }
    }

    fn see_answer(&mut self, db: &BlockingDatabase, op: Op, answer: Result<usize, WriteError>) {
        let answered = match answer {
            Ok(_) => Answered::Acknowledged,
            Err(error) => {
                self.see_write_error(db, &error);
                match error.outcome() {
                    Outcome::NotStarted | Outcome::RolledBack => Answered::NotApplied,
                    Outcome::Unknown => Answered::Unknown,
                }
            }
        };
        self.report.count(match answered {
            Answered::Acknowledged => "acked",
            Answered::NotApplied => "not_applied",
            Answered::Unknown => "unknown",
        });
        self.sent.push((op, answered));
    }

    /// Notes what does not fit the answer.
    fn suspect(&mut self, op: &Op, answered: Answered, found: &Found, when: &str) {
        let how = match (answered, found) {
            (Answered::Acknowledged, Found::Applied)
            | (Answered::NotApplied, Found::Absent)
            | (Answered::Unknown, Found::Applied | Found::Absent) => return,
            (Answered::Acknowledged, Found::Absent) => Wrong::Lost,
            (Answered::NotApplied, Found::Applied) => Wrong::Ghost,
            (_, Found::Half(_)) => Wrong::Half,
        };
        self.suspicions.push((how, format!("{op:?} {answered:?}, {when}: {found:?}")));
    }

    fn see_write_error(&mut self, db: &BlockingDatabase, error: &WriteError) {
        let code = error.sqlite_extended_code();
        let is_of_the_file = code.is_some_and(|code| is_of_the_file(code & 0xff));
        let is_true = match error {
            // FTS5 says of its own tables what is not said of the file.
            WriteError::Command(_) => !is_of_the_file || code == Some(ffi::SQLITE_CORRUPT_VTAB),
            WriteError::RolledBack(RolledBack::Environment(_) | RolledBack::GroupLost(_))
            | WriteError::Unknown(Unknown::CommitFailed(_)) => code.is_some(),
            WriteError::NotStarted(NotStarted::Unavailable(_) | NotStarted::DiskFull(_)) => code.is_some(),
            WriteError::NotStarted(NotStarted::Stopped(_)) => {
                let health = db.database().health();
                let is_told = health.reasons.iter().any(|reason| reason.kind == Trouble::Stopped);
                is_told && is_of_the_file
            }
            _ => false,
        };
        self.report.check(is_true, Wrong::Broken, || format!("{error:?}"));
        let may_fail = self.damage.reach == Reach::Anything;
        self.report.check(may_fail, Wrong::Broken, || format!("nothing is damaged: {error:?}"));
    }

    fn see_read_error(&mut self, error: &ReadError) {
        self.report.count("reads_failed");
        let is_true = match error {
            ReadError::Query(_) => true,
            ReadError::Connection(_) => error.sqlite_extended_code().is_some(),
            _ => false,
        };
        self.report.check(is_true, Wrong::Broken, || format!("{error:?}"));
        // What is read of the records may make no sense.
        let may_fail = self.damage.reach >= Reach::Records;
        self.report.check(may_fail, Wrong::Broken, || format!("nothing is damaged: {error:?}"));
    }

    fn maintain(&mut self, db: &BlockingDatabase) {
        let found = db.maintain("check", |m| m.integrity_check()).wait();
        let is_intact = matches!(&found, Ok(problems) if problems.is_empty());
        if let Err(error) = found {
            self.see_maintenance_error(&error);
        }
        let rebuild = self.rng.u8(..4) == 0;
        let maintained = db.maintain("maintain", move |m| {
            m.optimize()?;
            if rebuild { m.vacuum() } else { Ok(()) }
        });
        if let Err(error) = maintained.wait() {
            self.see_maintenance_error(&error);
        }
        self.mended |= rebuild && !is_intact;
    }

    fn see_maintenance_error(&mut self, error: &MaintenanceError) {
        self.report.count("maintenance_failed");
        let code = error.sqlite_extended_code().map(|code| code & 0xff);
        let is_true = match error {
            MaintenanceError::Failed(_) => !code.is_some_and(is_of_the_file),
            MaintenanceError::CutShort(RolledBack::Environment(_))
            | MaintenanceError::NotStarted(
                NotStarted::Stopped(_) | NotStarted::Unavailable(_) | NotStarted::DiskFull(_),
            ) => code.is_some(),
            _ => false,
        };
        self.report.check(is_true, Wrong::Broken, || format!("{error:?}"));
        let may_fail = self.damage.reach >= Reach::Records;
        self.report.check(may_fail, Wrong::Broken, || format!("nothing is damaged: {error:?}"));
    }

    fn import(&mut self, db: &BlockingDatabase) {
        let before = self.imported(db);
        let ran = good::import(db, OnError::Skip);
        let after = self.imported(db);
        let (report, failure) = match &ran {
            Ok(report) => (report, None),
            Err(ImportError { report, failure }) => (&**report, Some(failure)),
        };
        self.report.count(if failure.is_none() { "imports_resumed" } else { "imports_refused" });
        if let Some(failure) = failure {
            let is_true = match failure {
                ImportFailure::Record(_) | ImportFailure::StreamTooShort { .. } => true,
                ImportFailure::BatchesLost { last: error, .. } | ImportFailure::Writer(error) => {
                    !matches!(error, WriteError::Unknown(Unknown::WriterLost | Unknown::FilesReplaced(_)))
                }
                _ => false,
            };
            self.report.check(is_true, Wrong::Broken, || format!("import: {failure:?}"));
            let may_fail = self.damage.reach >= Reach::Records;
            self.report.check(may_fail, Wrong::Broken, || format!("nothing is damaged: {failure:?}"));
        }
        let (Some(before), Some(after)) = (before, after) else { return };
        self.report.checks += 1;
        if let Err(what) = before.leads_to(&after, report, failure) {
            self.suspicions.push((Wrong::Broken, format!("import: {what}; {report:?} {failure:?}")));
        }
        if self.damage.reach <= Reach::Commits {
            let whole = (0..ENTRIES).filter(|entry| good::is_good_entry(*entry)).map(|entry| (entry, 1));
            let is_whole = after.entries.iter().map(|(entry, count)| (*entry, *count)).eq(whole);
            self.report.check(is_whole, Wrong::Broken, || format!("import: {:?}", after.entries));
        }
    }

    /// What the import has come to; nothing if it can't be read.
    fn imported(&mut self, db: &BlockingDatabase) -> Option<Imported> {
        let read = db.read("imported", Imported::read);
        read.wait().inspect_err(|error| self.see_read_error(error)).ok()
    }

    /// What SQLite alone finds, once nobody else has the file.
    fn verify(&mut self) {
        let connection = plain(&self.path);
        let intact = is_intact(&connection);
        match (&intact, self.is_intact_for_sure()) {
            (Ok(()), _) => self.report.count("intact"),
            (Err(_), false) => self.report.count("damaged"),
            (Err(found), true) => self.report.wrong(Wrong::Corrupt, found.clone()),
        }
        if let (Some(refused), Ok(())) = (&self.refused, &intact) {
            self.report.wrong(Wrong::Broken, format!("refused, and SQLite finds nothing wrong: {refused}"));
        }
        if self.mode == Mode::RowDeleted {
            self.delete_a_row(&connection);
        }
        if intact.is_err() || self.mended {
            self.report.figures.insert("suspicions".into(), self.suspicions.len() as u64);
            return;
        }
        for (op, answered) in std::mem::take(&mut self.sent) {
            match connection.query_row(op.probe(), [op.id()], |row| row.get(0)) {
                Ok(seen) => {
                    self.report.checks += 1;
                    self.suspect(&op, answered, &op.find(seen), "at the end");
                }
                // Its table had been lost before.
                Err(_) if answered != Answered::Acknowledged => {}
                Err(error) => self.report.wrong(Wrong::Lost, format!("{op:?}: {error:?}")),
            }
        }
        self.report.wrong.append(&mut self.suspicions);
    }

    fn delete_a_row(&self, connection: &Connection) {
        let is_there = |(op, answered): &&(Op, Answered)| {
            matches!(op, Op::Large(_)) && *answered == Answered::Acknowledged
        };
        if let Some((op, _)) = self.sent.iter().find(is_there) {
            // Where the file is damaged, this fails, and nothing is to be noticed.
            drop(connection.execute("DELETE FROM large WHERE id = ?1", [op.id()]));
        }
    }
}

/// Whether a primary result code is about the file, and not about what was asked.
fn is_of_the_file(code: i32) -> bool {
    matches!(
        code,
        ffi::SQLITE_CORRUPT
            | ffi::SQLITE_NOTADB
            | ffi::SQLITE_IOERR
            | ffi::SQLITE_CANTOPEN
            | ffi::SQLITE_PROTOCOL
    )
}

fn is_intact(connection: &Connection) -> Result<(), String> {
    let mut statement = connection.prepare("PRAGMA integrity_check").map_err(|error| error.to_string())?;
    let found = statement.query_row((), |row| row.get::<_, String>(0)).map_err(|error| error.to_string())?;
    if found == "ok" { Ok(()) } else { Err(found) }
}
