//! What a service is put to while it is watched: tasks that send commands of every kind, good and bad, readers,
//! and an import.

use std::panic::resume_unwind;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use solewriter::{
    Batch, Command, Config, Database, Drain, Durability, ImportError, ImportReport, OpenError, Sabotage,
    ShutdownReport, Work, Write, WriteError, WriteTransaction,
};

use super::ledger::{IMPORT, INSERT, Ledger, PER_TASK, SCHEMA, Told, entry_fails, parts, payload};
use crate::common::faults::Faults;
use crate::common::proof::Tally;
use crate::common::{HANG, Kind, config_with, plain};

/// Where the answers are noted, and how much of what was done to the files is recorded by then.
#[derive(Clone, Copy)]
pub(crate) struct Notes<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) recorded: &'a (dyn Fn() -> usize + Sync),
}

/// How much is asked of the service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) tasks: i64,
    /// Commands of each task.
    pub(crate) commands: i64,
    /// Entries of the import; none, no import.
    pub(crate) entries: i64,
    /// Percent of the commands that ask for `NORMAL`.
    pub(crate) normal: u32,
    /// Percent of the commands that fail, or do their neighbours harm.
    pub(crate) hostile: u32,
    /// Snapshots that pin the WAL for a while.
    pub(crate) snapshots: bool,
    /// The first of the tasks, where others have been at work before.
    pub(crate) first_task: i64,
}

impl Default for Workload {
    fn default() -> Self {
        Self { tasks: 6, commands: 25, entries: 40, normal: 0, hostile: 15, snapshots: true, first_task: 1 }
    }
}

/// Makes a database with the tables of the ledger.
pub(crate) fn create(path: &Path, rng: &mut Rng) {
    create_with(path, [512, 1024, 4096][rng.usize(0..3)]);
}

/// The same with pages of this size.
pub(crate) fn create_with(path: &Path, page_bytes: u32) {
    let connection = plain(path);
    let pragmas = format!("PRAGMA page_size = {page_bytes}; PRAGMA journal_mode = WAL;");
    connection.execute_batch(&format!("{pragmas}{SCHEMA}")).unwrap();
    connection.close().unwrap();
}

/// Settings under which everything happens often: checkpoints, a WAL that begins anew, small groups.
pub(crate) fn lively(rng: &mut Rng) -> Config {
    config_with(|config| {
        config.mmap_bytes = 0;
        config.readers = 1;
        config.checkpoint_pages = rng.u32(4..60);
        config.wal_target_bytes = rng.u64(65_536..200_000);
        config.group_commands_max = rng.usize(1..20);
        config.statement_cache_capacity = 16;
        // What does not fit is written before its COMMIT.
        config.cache_bytes = [4_096, 2_000_000][rng.usize(0..2)];
        config.breaker_failures = u32::MAX;
        config.bulk_hold_target = Duration::from_millis(2);
    })
}

/// A typed command that writes all of its parts.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct AddParts {
    command: i64,
}

impl Command for AddParts {
    const NAME: &'static str = "parts.add";
    type Output = i64;
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<i64> {
        add_parts(tx, self.command)
    }
}

pub(crate) fn add_parts(tx: &mut WriteTransaction<'_>, command: i64) -> rusqlite::Result<i64> {
    for part in 0..parts(command) {
        tx.execute(INSERT, (command, part, payload(command, part)))?;
    }
    Ok(parts(command))
}

/// The same, each part in a savepoint, and one more that is undone.
fn add_nested(tx: &mut WriteTransaction<'_>, command: i64) -> rusqlite::Result<i64> {
    for part in 0..parts(command) {
        tx.savepoint(|tx| tx.execute(INSERT, (command, part, payload(command, part))))?;
    }
    let undone = tx.savepoint(|tx| {
        tx.execute(INSERT, (command, 50, payload(command, 50)))?;
        Err(rusqlite::Error::QueryReturnedNoRows)
    });
    match undone {
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(parts(command)),
        other => other,
    }
}

/// What a command does besides its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Manner {
    Good,
    /// It writes them in savepoints.
    Nests,
    /// It writes more than a small cache holds.
    Spills,
    /// It moves pages about: rows that nobody looks at grow, shrink, come and go.
    Churns,
    FailsAtTheEnd,
    Panics,
    RollsBackEverything,
    KeepsHalf,
}

impl Manner {
    fn random(rng: &mut Rng, hostile: u32) -> Self {
        if rng.u32(0..100) < hostile {
            let bad = [Self::FailsAtTheEnd, Self::Panics, Self::RollsBackEverything, Self::KeepsHalf];
            bad[rng.usize(0..bad.len())]
        } else if rng.u8(0..4) == 0 {
            Self::Churns
        } else {
            Self::Good
        }
    }

    /// Whether only something outside of the command can make it fail.
    pub(crate) fn is_good(self) -> bool {
        matches!(self, Self::Good | Self::Nests | Self::Spills | Self::Churns)
    }

    pub(crate) fn run(self, tx: &mut WriteTransaction<'_>, command: i64) -> rusqlite::Result<i64> {
        let added = if self == Self::Nests { add_nested(tx, command)? } else { add_parts(tx, command)? };
        let payload = payload(command, 0);
        match self {
            Self::Good | Self::Nests => {}
            Self::Spills => {
                tx.execute(
                    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 30)
                     INSERT INTO filler (payload) SELECT zeroblob(800) FROM n",
                    (),
                )?;
                tx.execute("UPDATE filler SET payload = ?1 WHERE id % 2 = 0", [&payload])?;
            }
            Self::Churns => {
                tx.execute("DELETE FROM filler WHERE id % 3 = ?1", [command % 3])?;
                tx.execute("INSERT INTO filler (payload) VALUES (?1), (?1), (?1)", [&payload])?;
                tx.execute(
                    "UPDATE filler SET payload = payload || payload WHERE length(payload) < 3000",
                    (),
                )?;
            }
            Self::FailsAtTheEnd => {
                tx.execute(INSERT, (0, 0, payload))?;
            }
            // Without the hook: thousands of these are no news.
            Self::Panics => resume_unwind(Box::new("hostile")),
            Self::RollsBackEverything => {
                tx.execute("INSERT OR ROLLBACK INTO part VALUES (0, 0, 1)", ())?;
            }
            Self::KeepsHalf => {
                tx.execute("INSERT OR FAIL INTO part VALUES (?1, 99, ?2), (0, 0, 1)", (command, payload))?;
            }
        }
        Ok(added)
    }
}

impl Workload {
    /// Has the service do all of it, and notes the answers.
    pub(crate) async fn run(&self, db: &Database, rng: &mut Rng, notes: Notes<'_>) {
        let tasks: Vec<_> =
            (0..self.tasks).map(|task| (self.first_task + task, Rng::with_seed(rng.u64(..)))).collect();
        let writers = join_all(tasks.into_iter().map(|(task, rng)| self.write(db, task, rng, notes)));
        let import = async {
            if self.entries > 0 {
                self.import(db, notes).await;
            }
        };
        let readers = async {
            if self.snapshots {
                pin(db).await;
            }
        };
        tokio::join!(writers, import, readers);
    }

    /// One task: some commands at once, then their answers, and so on.
    async fn write(&self, db: &Database, task: i64, mut rng: Rng, notes: Notes<'_>) {
        let mut command = task * PER_TASK;
        let last = command + self.commands;
        while command < last {
            let burst = rng.i64(1..5).min(last - command);
            let mut answers = Vec::new();
            for command in command..command + burst {
                let durability =
                    if rng.u32(0..100) < self.normal { Durability::Normal } else { Durability::Full };
                let manner = Manner::random(&mut rng, self.hostile);
                let order = Order::random(command, manner, durability, &mut rng);
                answers.push(order.submit(db, notes).await);
            }
            command += burst;
            join_all(answers).await;
        }
    }

    async fn import(&self, db: &Database, notes: Notes<'_>) {
        // It ends early where the service does; what it did until then is what counts.
        drop(import(db, self.entries, 5, notes).await);
    }
}

/// Imports entries, some of which are bad.
pub(crate) async fn import(
    db: &Database,
    entries: i64,
    lost_batches_max: u32,
    notes: Notes<'_>,
) -> Result<ImportReport<rusqlite::Error>, ImportError<rusqlite::Error>> {
    let apply = |tx: &mut WriteTransaction<'_>, entry: &i64| {
        let added = add_parts(tx, *entry)?;
        if entry_fails(*entry) {
            tx.execute(INSERT, (0, 0, 1))?;
        }
        Ok::<_, rusqlite::Error>(added)
    };
    let import = db.import("catalog", stream::iter(IMPORT..IMPORT + entries));
    let import = import.id("catalog").batch(Batch::Fixed(5)).lost_batches_max(lost_batches_max);
    let run = import.run_observed(apply, |index, outcome| {
        let told = if outcome.is_ok() { Told::Acked(Durability::Full) } else { Told::NotApplied };
        notes.ledger.note(IMPORT + index as i64, told, (notes.recorded)());
    });
    run.await
}

/// A command to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) command: i64,
    pub(crate) kind: Kind,
    pub(crate) manner: Manner,
    pub(crate) durability: Durability,
}

impl Order {
    fn random(command: i64, manner: Manner, durability: Durability, rng: &mut Rng) -> Self {
        let kind = match (rng.u8(0..4), manner) {
            (0, Manner::Good) if parts(command) == 1 => Kind::Statement,
            (1, Manner::Good) => Kind::Typed,
            (2, _) => Kind::Once,
            _ => Kind::Rerunnable,
        };
        Self { command, kind, manner, durability }
    }

    /// Sends it; the future is its answer, noted.
    pub(crate) async fn submit<'a>(
        self,
        db: &Database,
        notes: Notes<'a>,
    ) -> impl Future<Output = Result<(), WriteError>> + use<'a> {
        let Self { command, kind, manner, durability } = self;
        let run = move |tx: &mut WriteTransaction<'_>| manner.run(tx, command);
        let submitted = match kind {
            Kind::Statement => {
                accept(db.execute(INSERT, (command, 0, payload(command, 0))), durability).await
            }
            Kind::Typed => accept(db.send(AddParts { command }), durability).await,
            Kind::Once => accept(db.write("parts.once", run), durability).await,
            Kind::Rerunnable => {
                accept(db.write_rerunnable(format!("parts.{manner:?}"), run), durability).await
            }
        };
        async move {
            let answer = match submitted {
                Ok(answer) => answer.await,
                Err(refused) => Err(refused),
            };
            notes.ledger.answered(command, durability, &answer, (notes.recorded)());
            answer
        }
    }
}

pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<(), WriteError>>>>;

pub(crate) async fn accept<W>(write: Write<'_, W>, durability: Durability) -> Result<Answer, WriteError>
where
    W: Work<Error = rusqlite::Error>,
{
    let receipt = write.durability(durability).submit().await?;
    Ok(Box::pin(async move { receipt.await.map(drop) }))
}

/// Keeps the WAL from beginning anew, now and then. Not all of it succeeds where calls fail.
async fn pin(db: &Database) {
    for _ in 0..6 {
        if let Ok(snapshot) = db.snapshot("pin").await {
            for _ in 0..3 {
                let count = snapshot
                    .read(|tx| tx.query_row("SELECT count(*) FROM part", (), |row| row.get::<_, i64>(0)));
                drop(count.await);
                tokio::task::yield_now().await;
            }
        }
        drop(
            db.read("total", |tx| tx.query_row("SELECT parts FROM total", (), |row| row.get::<_, i64>(0)))
                .await,
        );
    }
}

/// Opens the service through the test's own VFS.
pub(crate) fn open(
    path: &Path,
    faults: &Faults,
    config: Config,
    sabotage: Option<Sabotage>,
) -> Result<Database, OpenError> {
    let mut builder = Database::builder(path).config(config).vfs(faults.name());
    if let Some(how) = sabotage {
        builder = builder.sabotage(how);
    }
    builder.open_blocking()
}

/// Has the service do a workload.
pub(crate) fn drive(db: &Database, workload: Workload, rng: &mut Rng, notes: Notes<'_>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let work = workload.run(db, rng, notes);
        tokio::time::timeout(HANG, work).await.expect("it hangs");
    });
}

/// Closes the service, whatever state it is in, and counts what it has been through.
pub(crate) fn close(db: Database, tally: &mut Tally) -> ShutdownReport {
    let stats = db.stats();
    tally.add("acked", stats.commands.committed);
    tally.add("groups", stats.groups_committed);
    tally.add("rerun", stats.commands.rerun);
    tally.add("checkpoints", stats.checkpoints);
    tally.add("restarts", stats.wal_restarts);
    db.blocking().shutdown(Drain::within(HANG)).expect("the service closes")
}
