//! A life of a service over files that are recorded, and what is wrong about it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rusqlite::{Connection, OpenFlags};
use solewriter::{
    Builder, Config, Database, Drain, Durability, ImportError, ImportFailure, ImportReport, Lane, NotStarted,
    OnDrop, OpenErrorReason, Outcome, ReadEnd, ReadError, RolledBack, Sabotage, Snapshot, Unknown, Work,
    Write, WriteError, WriteTransaction,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::hostile::{self, Typed, VALUE_BYTES_MAX, What};
use super::plan::{Failing, How, Maintenance, Plan, Sent, Step, Text};
use crate::common::disk::{Disk, Image};
use crate::common::faults::{By, CODES, Call, Fault, Faults};
use crate::common::proof::{Tally, Wrong};
use crate::common::{HANG, Kind, config_with, plain, soon};
use crate::frame;
use crate::ledger::{End, Ledger, PER_TASK, examine, parts, payload};
use crate::workload::{Manner, Notes, create_with, import};

/// Entries of the import.
const ENTRIES: i64 = 30;

/// The read and the snapshot whose SQL may not end.
const TEXT_DEADLINE: Duration = hostile::PERHAPS_ENDLESS;

thread_local! {
    /// Two for a thread, since SQLite keeps a VFS for ever: one tears the writes that fail.
    static FAULTS: [Faults; 2] = {
        let both = [Faults::register(), Faults::register()];
        both[1].tear_writes();
        both
    };
}

/// An empty database, made once for each size of a page.
fn empty(page_bytes: u32) -> Image {
    thread_local! { static MADE: RefCell<HashMap<u32, Image>> = RefCell::default(); }
    let make = || {
        let directory = frame::directory();
        let path = directory.path().join("empty.db");
        create_with(&path, page_bytes);
        let connection = plain(&path);
        connection.execute_batch(hostile::SCHEMA).unwrap();
        connection.close().unwrap();
        Image::read(&path)
    };
    MADE.with_borrow_mut(|made| made.entry(page_bytes).or_insert_with(make).clone())
}

type Answer = Pin<Box<dyn Future<Output = Result<(), WriteError>>>>;

/// A command that was accepted.
struct Waiting {
    command: i64,
    sent: Sent,
    answer: Answer,
}

/// What holds the writer.
struct Gate {
    open: mpsc::Sender<()>,
    answer: Answer,
}

pub(super) struct Life<'p> {
    plan: &'p Plan,
    runtime: Runtime,
    _directory: TempDir,
    path: PathBuf,
    before: Image,
    faults: Faults,
    sabotage: Option<Sabotage>,
    ledger: Ledger,
    db: Database,
    /// How many commands each lane was sent.
    sent: [i64; 3],
    waiting: Vec<Waiting>,
    gate: Option<Gate>,
    foreign: Option<Connection>,
    /// A snapshot, and how many rows it has shown.
    snapshot: Option<(Snapshot, i64)>,
    /// Something among what is under way may cost others their only run.
    has_enders: bool,
    /// The newest command that was acknowledged.
    newest: Option<i64>,
    /// Writing has stopped, until the database is opened anew.
    has_stopped: bool,
    tally: Tally,
}

impl<'p> Life<'p> {
    pub(super) fn new(plan: &'p Plan, sabotage: Option<Sabotage>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directory = frame::directory();
        let path = directory.path().join("test.db");
        let faults = FAULTS.with(|both| both[usize::from(plan.tears_writes)].clone());
        faults.heal();
        faults.forget();
        let before = empty(plan.page_bytes);
        before.write(&path);
        faults.record();
        let db = builder(plan, &path, &faults, sabotage).open_blocking().unwrap();
        Self {
            plan,
            runtime,
            _directory: directory,
            path,
            before,
            faults,
            sabotage,
            ledger: Ledger::default(),
            db,
            sent: [0; 3],
            waiting: Vec::new(),
            gate: None,
            foreign: None,
            snapshot: None,
            has_enders: false,
            newest: None,
            has_stopped: false,
            tally: Tally::of_one_case(),
        }
    }

    pub(super) fn live(mut self) -> Tally {
        for step in &self.plan.steps {
            self.step(step);
        }
        self.settle();
        self.faults.heal();
        self.recover();
        self.close();
        self.tally.add("faults", self.faults.failed() as u64);
        self.look_at_files();
        self.tally
    }

    /// Whether nothing has failed so far, so that every answer is known.
    fn is_calm(&self) -> bool {
        self.faults.failed() == 0
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Send(sent) => self.send(sent),
            Step::Gate => self.hold_the_writer(),
            Step::Settle => self.settle(),
            Step::Drop(which) => self.drop_one(*which),
            Step::Read => self.read(),
            Step::ReadText(text) => self.read_text(text),
            Step::TakeSnapshot => self.take_snapshot(),
            Step::ReadSnapshot => self.read_snapshot(),
            Step::DropSnapshot => self.snapshot = None,
            Step::Import(limit) => self.import(*limit),
            Step::Maintain(what) => self.maintain(*what),
            Step::Foreign => self.let_another_write(),
            Step::Fail(how) => self.fail(how),
            Step::Heal => self.faults.heal(),
            Step::Reopen => self.reopen(),
        }
    }

    fn send(&mut self, sent: &Sent) {
        let lane = &mut self.sent[sent.lane as usize];
        let command = (sent.lane as i64 + 1) * PER_TASK + *lane;
        *lane += 1;
        self.has_enders |= sent.what.may_end_the_transaction() || sent.deadline.is_some();
        match self.submit(command, sent) {
            Ok(answer) => self.waiting.push(Waiting { command, sent: sent.clone(), answer }),
            Err(refused) => self.take_answer(command, sent, Err(refused)),
        }
    }

    fn submit(&self, command: i64, sent: &Sent) -> Result<Answer, WriteError> {
        let Self { db, .. } = self;
        let what = sent.what.clone();
        let statement = what.statement(command);
        match (sent.kind, statement) {
            (Kind::Statement, Some(sql)) => {
                let part = if matches!(what, What::Manner(Manner::Good)) { 0 } else { 99 };
                self.accept(db.execute(sql, (command, part, payload(command, 0))), sent)
            }
            (Kind::Typed, _) => self.accept(db.send(Typed { command, what }), sent),
            (Kind::Once, _) => {
                let inner = db.clone();
                self.accept(db.write("once", move |tx| what.run(tx, command, Some(&inner))), sent)
            }
            (Kind::Rerunnable | Kind::Statement, _) => {
                let inner = db.clone();
                // A few labels, so that some of them learn that they fail.
                let label = format!("again.{}", command % 3);
                let run = move |tx: &mut WriteTransaction<'_>| what.run(tx, command, Some(&inner));
                self.accept(db.write_rerunnable(label, run), sent)
            }
        }
    }

    fn accept<W>(&self, write: Write<'_, W>, sent: &Sent) -> Result<Answer, WriteError>
    where
        W: Work<Error = rusqlite::Error>,
    {
        let mut write = write.lane(sent.lane).durability(sent.durability);
        if sent.withdraws {
            write = write.on_drop(OnDrop::Withdraw);
        }
        if let Some(deadline) = sent.what.deadline().or(sent.deadline) {
            write = write.deadline(deadline);
        }
        let receipt = if self.plan.is_small { write.try_submit()? } else { self.wait(soon(write.submit()))? };
        Ok(Box::pin(async move { receipt.await.map(drop) }))
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    fn hold_the_writer(&mut self) {
        if self.gate.is_some() {
            return;
        }
        let (open, wait) = mpsc::channel::<()>();
        let gate = self.db.write("gate", move |_| Ok(wait.recv().is_ok()));
        // In a group that nobody joins.
        let gate = gate.lane(Lane::Bulk).durability(Durability::Normal).try_submit();
        if let Ok(receipt) = gate {
            self.gate = Some(Gate { open, answer: Box::pin(async move { receipt.await.map(drop) }) });
        }
    }

    /// Waits for whatever is under way.
    fn settle(&mut self) {
        let gate = self.gate.take().map(|Gate { open, answer }| {
            // It may have failed long ago.
            let _is_gone = open.send(()).is_err();
            answer
        });
        if let Some(foreign) = self.foreign.take() {
            // Fails where calls do; then it is rolled back.
            let _has_failed = foreign.execute_batch("COMMIT").is_err();
        }
        if let Some(answer) = gate {
            let _has_failed = self.wait(soon(answer)).is_err();
        }
        for Waiting { command, sent, answer } in std::mem::take(&mut self.waiting) {
            let answer = self.wait(soon(answer));
            self.take_answer(command, &sent, answer);
        }
    }

    fn take_answer(&mut self, command: i64, sent: &Sent, answer: Result<(), WriteError>) {
        let is_true = self.may_be(sent, &answer);
        let calm = self.is_calm();
        self.tally.check(is_true, Wrong::Broken, || format!("calm: {calm}, {command} {sent:?}: {answer:?}"));
        let told = match &answer {
            Ok(()) => "acked",
            Err(error) => match error.outcome() {
                Outcome::Unknown => "unknown",
                Outcome::NotStarted => "not_started",
                Outcome::RolledBack => "rolled_back",
            },
        };
        self.tally.add(told, 1);
        self.has_stopped |= matches!(answer, Err(WriteError::NotStarted(NotStarted::Stopped(_))));
        if sent.what.writes_parts() {
            self.ledger.answered(command, sent.durability, &answer, self.faults.recorded());
            if answer.is_ok() {
                self.newest = Some(command);
            }
        }
    }

    /// Whether a command may be told this.
    fn may_be(&self, sent: &Sent, answer: &Result<(), WriteError>) -> bool {
        if sent.what.may_be_told(answer) {
            return true;
        }
        let has_deadline = sent.deadline.is_some() || sent.what.deadline().is_some();
        let has_code = || answer.as_ref().err().and_then(WriteError::sqlite_extended_code).is_some();
        match answer {
            Err(WriteError::NotStarted(reason)) => match reason {
                NotStarted::DeadlineExceeded { .. } => has_deadline,
                NotStarted::QueueFull { .. } => self.plan.is_small,
                // Another program holds the lock, or its call fails as if one did.
                NotStarted::Busy(_) => (self.tally.counted("foreign") > 0 || !self.is_calm()) && has_code(),
                NotStarted::DiskFull(_) | NotStarted::Unavailable(_) | NotStarted::Stopped(_) => {
                    !self.is_calm() && has_code()
                }
                _ => false,
            },
            Err(WriteError::RolledBack(reason)) => match reason {
                RolledBack::DeadlineExceeded { .. } => has_deadline,
                // Only where one that can't run again has been run, or calls have failed.
                RolledBack::GroupLost(_) => !self.is_calm() || (sent.kind == Kind::Once && self.has_enders),
                RolledBack::Environment(_) => !self.is_calm() && has_code(),
                _ => false,
            },
            Err(WriteError::Unknown(Unknown::CommitFailed(_))) => !self.is_calm() && has_code(),
            _ => false,
        }
    }

    fn drop_one(&mut self, which: usize) {
        if !self.waiting.is_empty() {
            // Nothing is known of it from here on.
            drop(self.waiting.swap_remove(which % self.waiting.len()));
            self.tally.add("dropped", 1);
        }
    }

    /// Whether a read may fail like that.
    fn see_read_error(&mut self, error: &ReadError) {
        let is_true = match error {
            ReadError::Query(_) => !self.is_calm(),
            ReadError::Connection(_) => !self.is_calm() && error.sqlite_extended_code().is_some(),
            ReadError::Ended { why, .. } | ReadError::SnapshotEnded { why, .. } => {
                !self.is_calm() && matches!(why, ReadEnd::Reopened | ReadEnd::Broken)
            }
            _ => false,
        };
        let calm = self.is_calm();
        self.tally.check(is_true, Wrong::Broken, || format!("calm: {calm}, a read: {error:?}"));
        self.tally.add("reads_failed", 1);
    }

    /// A read sees one state, and in it what was acknowledged before.
    fn read(&mut self) {
        let newest = self.newest.unwrap_or_default();
        let read = self.db.read("read", move |tx| {
            let both = "SELECT (SELECT count(*) FROM part), parts FROM total";
            let (there, counted): (i64, i64) =
                tx.query_row(both, (), |row| Ok((row.get(0)?, row.get(1)?)))?;
            let its_parts = "SELECT count(*) FROM part WHERE command = ?1";
            Ok((there, counted, tx.query_row(its_parts, [newest], |row| row.get::<_, i64>(0))?))
        });
        match self.wait(soon(read)) {
            Ok((there, counted, its_parts)) => {
                let agrees = there == counted;
                self.tally.check(agrees, Wrong::Half, || format!("{there} rows, {counted} counted"));
                let wanted = parts(newest);
                let example = || format!("{its_parts} rows of {newest} are read, instead of {wanted}");
                self.tally.check(newest == 0 || its_parts == wanted, Wrong::Lost, example);
            }
            Err(error) => self.see_read_error(&error),
        }
    }

    /// What a read tries is refused, or harmless.
    fn read_text(&mut self, Text { sql, how }: &Text) {
        let (sql, how) = (sql.clone(), *how);
        let read = self.db.read("text", move |tx| {
            match how {
                How::Batch | How::Query => drop(tx.query_all(&sql, (), |_| Ok(()))?),
                How::Execute => drop(tx.prepare_cached(&sql)?.execute(())?),
            }
            Ok(())
        });
        let answer = self.wait(soon(read.deadline(TEXT_DEADLINE)));
        self.tally.checks += 1;
        match answer {
            // Whether it may be refused depends on the SQL alone.
            Ok(())
            | Err(ReadError::Query(_) | ReadError::ReadOnly(_) | ReadError::DeadlineExceeded { .. }) => {}
            Err(error) => self.see_read_error(&error),
        }
    }

    fn count(&mut self) -> Option<Result<i64, ReadError>> {
        let (snapshot, _) = self.snapshot.as_ref()?;
        let count = snapshot.read(|tx| tx.query_row("SELECT count(*) FROM part", (), |row| row.get(0)));
        Some(self.wait(soon(count)))
    }

    fn take_snapshot(&mut self) {
        self.snapshot = None;
        match self.wait(soon(self.db.snapshot("snapshot"))) {
            Ok(snapshot) => self.snapshot = Some((snapshot, 0)),
            Err(error) => return self.see_read_error(&error),
        }
        match self.count() {
            Some(Ok(count)) => self.snapshot.iter_mut().for_each(|(_, shown)| *shown = count),
            Some(Err(error)) => {
                self.snapshot = None;
                self.see_read_error(&error);
            }
            None => {}
        }
    }

    fn read_snapshot(&mut self) {
        match self.count() {
            Some(Ok(count)) => {
                let shown = self.snapshot.as_ref().map(|(_, shown)| *shown);
                let same = shown == Some(count);
                self.tally.check(same, Wrong::Broken, || format!("a snapshot: {count} after {shown:?}"));
            }
            Some(Err(error)) => {
                self.snapshot = None;
                self.see_read_error(&error);
            }
            None => {}
        }
    }

    fn import(&mut self, limit: Option<Duration>) {
        // It would wait for the gate.
        self.settle();
        let (ledger, faults) = (&self.ledger, &self.faults);
        let recorded = || faults.recorded();
        let import = import(&self.db, ENTRIES, 3, Notes { ledger, recorded: &recorded });
        match limit {
            Some(limit) => {
                let ran = self.wait(async { tokio::time::timeout(limit, import).await });
                self.tally.add("imports_dropped", u64::from(ran.is_err()));
            }
            None => {
                let ran = self.wait(soon(import));
                self.see_import(&ran);
            }
        }
    }

    fn see_import(&mut self, ran: &Result<ImportReport<rusqlite::Error>, ImportError<rusqlite::Error>>) {
        self.tally.add("imports", 1);
        let Err(ImportError { failure, .. }) = ran else { return };
        // A batch of an import that was dropped may still be under way.
        let is_true = !self.is_calm()
            && matches!(
                failure,
                ImportFailure::BatchesLost { .. } | ImportFailure::Writer(_) | ImportFailure::Record(_)
            );
        let calm = self.is_calm();
        self.tally.check(is_true, Wrong::Broken, || format!("calm: {calm}, the import: {failure:?}"));
    }

    fn maintain(&mut self, what: Maintenance) {
        self.settle();
        let maintain = self.db.maintain("maintain", move |m| match what {
            Maintenance::Check => m.integrity_check().map(|found| found.join(", ")),
            Maintenance::Optimize => m.optimize().map(|()| String::new()),
            Maintenance::Vacuum => m.vacuum().map(|()| String::new()),
            Maintenance::Reindex => m.execute_batch("REINDEX; ANALYZE").map(|()| String::new()),
        });
        let maintained = self.wait(soon(maintain));
        let calm = self.is_calm();
        let is_well = matches!(&maintained, Ok(found) if found.is_empty());
        let example = || format!("calm: {calm}, {what:?}: {maintained:?}");
        self.tally.check(is_well || !calm, Wrong::Broken, example);
    }

    fn let_another_write(&mut self) {
        if self.foreign.is_some() {
            return;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let Ok(foreign) = Connection::open_with_flags_and_vfs(&self.path, flags, self.faults.name()) else {
            return;
        };
        // While a gate holds the writer it does not get the lock.
        let write = "PRAGMA wal_autocheckpoint = 0; PRAGMA busy_timeout = 5; BEGIN IMMEDIATE;
             INSERT INTO filler (payload) VALUES ('of another')";
        if foreign.execute_batch(write).is_ok() {
            self.foreign = Some(foreign);
            self.tally.add("foreign", 1);
        }
    }

    fn fail(&mut self, how: &Failing) {
        match *how {
            Failing::Any { spared, lasts, second_code } => {
                self.faults.fail_after(spared, lasts, CODES[usize::from(second_code)]);
            }
            Failing::Kind { op, of, by, second_code, spared, times } => {
                let call = Call { op, of, by: by.unwrap_or(By::Other), failed: true };
                let code = CODES[usize::from(second_code)](call);
                let fault = Fault::new(op, of, code).after(spared).times(times);
                self.faults.inject(match by {
                    Some(by) => fault.by(by),
                    None => fault,
                });
            }
        }
    }

    fn close(&mut self) {
        self.snapshot = None;
        let stats = self.db.stats();
        for (what, count) in [
            ("groups", stats.groups_committed),
            ("rerun", stats.commands.rerun),
            ("checkpoints", stats.checkpoints),
            ("restarts", stats.wal_restarts),
        ] {
            self.tally.add(what, count);
        }
        let closed = self.wait(soon(self.db.shutdown(Drain::within(HANG))));
        let calm = self.is_calm();
        match closed {
            Ok(report) => {
                self.tally.add("stopped", u64::from(report.stopped));
                let example = || format!("calm: {calm}, {report:?}");
                self.tally.check(!report.stopped || !calm, Wrong::Broken, example);
            }
            Err(error) => self.tally.wrong(Wrong::Broken, || format!("the close: {error:?}")),
        }
    }

    fn reopen(&mut self) {
        self.settle();
        self.close();
        (self.has_enders, self.has_stopped) = (false, false);
        self.tally.add("reopened", 1);
        let builder = || builder(self.plan, &self.path, &self.faults, self.sabotage);
        let refused = match builder().open_blocking() {
            Ok(db) => {
                self.db = db;
                return;
            }
            Err(refused) => refused,
        };
        let is_typed = matches!(
            refused.reason,
            OpenErrorReason::Sqlite(_) | OpenErrorReason::NotADatabase(_) | OpenErrorReason::Pragma { .. }
        );
        let calm = self.is_calm();
        let example = || format!("calm: {calm}, an open: {refused:?}");
        self.tally.check(is_typed && !calm, Wrong::Broken, example);
        self.faults.heal();
        self.db = builder()
            .open_blocking()
            .unwrap_or_else(|error| panic!("it can't be opened any more: {error:?}, {:#?}", self.plan));
    }

    /// Now that nothing fails any more: writes until that succeeds, or has stopped for good; and reads.
    fn recover(&mut self) {
        let limit = Instant::now() + HANG;
        let sent = Sent {
            kind: Kind::Rerunnable,
            what: What::Manner(Manner::Good),
            lane: Lane::Interactive,
            durability: Durability::Full,
            deadline: None,
            withdraws: false,
        };
        let newest = self.newest;
        while self.newest == newest && !self.has_stopped {
            self.send(&sent);
            self.settle();
            if Instant::now() > limit {
                self.tally.wrong(Wrong::Broken, || "it does not heal".into());
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Readers are replaced one by one, and wait while every connection is opened anew.
        loop {
            let failed = self.tally.counted("reads_failed");
            self.read();
            if self.tally.counted("reads_failed") == failed {
                break;
            }
            if Instant::now() > limit {
                self.tally.wrong(Wrong::Broken, || "reads do not go on".into());
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Looks at what the end of the process, or of the machine, leaves at some moments, and at the end.
    fn look_at_files(&mut self) {
        let (record, answers) = (self.faults.take_record(), self.ledger.answers());
        let image_path = self.path.with_file_name("image.db");
        let mut rng = Rng::with_seed(self.plan.luck);
        let at = |part: u8| record.len() * usize::from(part) / 255;
        let looks = || self.plan.looks.iter().map(|(part, end)| (at(*part), *end));
        let (mut disk, mut killed) = (Disk::new(self.before.clone()), self.before.clone());
        let mut files = Tally::default();
        for done in 0..=record.len() {
            if let Some(recorded) = done.checked_sub(1).map(|last| &record[last]) {
                disk.apply(recorded, &mut rng);
                killed.apply(recorded);
            }
            for (_, end) in looks().filter(|(at, _)| *at == done) {
                let image = if end == End::Kill { killed.clone() } else { disk.power_loss(&mut rng) };
                image.write(&image_path);
                examine(&image_path, &answers, done, end, &mut files);
            }
        }
        killed.write(&image_path);
        examine(&image_path, &answers, record.len(), End::Kill, &mut files);
        check_rest(&image_path, &mut files);
        let images = std::mem::take(&mut files.cases);
        files.add("images", images);
        self.tally.merge(files);
    }
}

fn builder(plan: &Plan, path: &Path, faults: &Faults, sabotage: Option<Sabotage>) -> Builder {
    let config: Config = config_with(|config| {
        config.mmap_bytes = 0;
        (config.readers, config.readers_overflow) = (2, plan.readers_overflow);
        config.checkpoint_pages = plan.checkpoint_pages;
        // The writer waits for a checkpoint once the WAL is so large.
        config.wal_target_bytes = 65_536;
        config.group_commands_max = plan.group_commands_max;
        config.cache_bytes = plan.cache_bytes;
        config.statement_cache_capacity = 8;
        config.breaker_failures = plan.breaker_failures;
        config.breaker_pause = Duration::from_millis(1);
        config.busy_timeout = Duration::from_millis(300);
        config.foreign_gap = Duration::ZERO;
        config.value_bytes_max = VALUE_BYTES_MAX;
        config.bulk_hold_target = Duration::from_millis(2);
        if plan.is_small {
            config.queue_commands_max = 3;
        }
    });
    let builder = Database::builder(path).config(config).vfs(faults.name());
    match sabotage {
        Some(how) => builder.sabotage(how),
        None => builder,
    }
}

/// Nothing is left of what failed commands have done to other tables.
fn check_rest(path: &Path, files: &mut Tally) {
    let left =
        "SELECT (SELECT count(*) FROM child) + (SELECT count(*) FROM trap) + (SELECT count(*) FROM total) - 1
         + (SELECT count(*) FROM sqlite_schema WHERE name NOT IN
             ('part', 'mirror', 'total', 'filler', 'by_size', 'added', 'parent', 'child', 'trap')
             AND name NOT LIKE 'sqlite%' AND name NOT LIKE 'solewriter%')
         + (SELECT user_version FROM pragma_user_version)";
    let found = plain(path).query_row(left, (), |row| row.get::<_, i64>(0));
    files.check(matches!(found, Ok(0)), Wrong::Half, || format!("of failed commands is left: {found:?}"));
}
