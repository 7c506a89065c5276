//! `solewriter stress`: writes, reads and imports as fast as it goes while other programs write too and some commands
//! fail on purpose, and then looks for every row that was acknowledged.
//!
//! `load` has the tasks, `pair` what they write, `ledger` what they were answered, `foreign` the other programs;
//! `measured` and `live` tell how it goes, `verify` and `report` how it went.

mod foreign;
mod ledger;
mod live;
mod load;
mod measured;
mod pair;
mod report;
mod schema;
mod verify;

use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use solewriter::rusqlite::{Connection, OpenFlags};
use solewriter::{Config, Database, Drain};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::cli::{Load, Stress};
use crate::{Refusal, Verdict, output};
pub(crate) use foreign::run as run_foreign;
use foreign::{Foreign, ForeignReport};
use ledger::Shared;
use live::Live;
use load::{Published, Site};
use measured::{Measured, lock};
use report::Report;
use verify::Verification;

/// How long the tasks and the service have to come to an end.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(options: &Stress) -> Result<Verdict, Refusal> {
    require_writable(options.json.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let interrupted = listen_for_interrupt();
        let run = Run::begin(&options.load).await?;
        let time_is_up = tokio::time::sleep(options.duration);
        let end = async {
            tokio::select! {
                () = time_is_up => {}
                Ok(()) = interrupted => {}
            }
        };
        run.until(end).await
    })?;
    verdict(&report, options.json.as_deref())
}

/// Tells how it went.
pub(crate) fn verdict(report: &Report, json: Option<&Path>) -> Result<Verdict, Refusal> {
    report.print(json)?;
    Ok(if report.is_fine() { Verdict::Fine } else { Verdict::Problems })
}

/// A run that goes on.
pub(crate) struct Run {
    site: Site,
    tasks: JoinSet<()>,
    ledgers: Vec<(i64, Shared)>,
    foreign: Vec<Foreign>,
    began: Instant,
    path: PathBuf,
    /// Removed at the end.
    _temporary: Option<TempDir>,
}

impl Run {
    /// Opens the database and sets everyone to work.
    pub(crate) async fn begin(load: &Load) -> Result<Self, Refusal> {
        let (path, temporary) = match &load.path {
            Some(path) => (path.clone(), None),
            None => {
                let directory = tempfile::Builder::new().prefix("solewriter-stress-").tempdir()?;
                (directory.path().join("stress.db"), Some(directory))
            }
        };
        schema::require_ours(&path)?;
        let config =
            Config { name: "stress".into(), durability: load.durability.into(), ..Config::default() };
        let db = Database::builder(&path).config(config).open().await?;
        db.write("stress.schema", |tx| tx.execute_batch(schema::SCHEMA)).await?;
        let site = Site {
            db,
            measured: Arc::new(Measured::default()),
            stop: Arc::new(AtomicBool::new(false)),
            poison: load.poison,
            seed: load.seed.unwrap_or_else(|| fastrand::u64(..)),
        };
        let mut run = Self {
            site,
            tasks: JoinSet::new(),
            ledgers: Vec::new(),
            foreign: Vec::new(),
            began: Instant::now(),
            path,
            _temporary: temporary,
        };
        run.set_to_work(load).await?;
        run.began = Instant::now();
        Ok(run)
    }

    async fn set_to_work(&mut self, load: &Load) -> Result<(), Refusal> {
        let db = self.site.db.clone();
        let mut published = Vec::new();
        for source in schema::sources(&db, "writer", load.writers).await? {
            let (writer, ledger) = (Arc::new(Published::new(source)), self.ledger(source));
            self.tasks.spawn(load::write(self.site.clone(), writer.clone(), ledger));
            published.push(writer);
        }
        for number in 0..load.readers {
            self.tasks.spawn(load::read(self.site.clone(), published.clone(), number as u64));
        }
        for source in schema::sources(&db, "import", load.imports).await? {
            let ledger = self.ledger(source);
            self.tasks.spawn(load::import(self.site.clone(), source, ledger));
        }
        for source in schema::sources(&db, "foreign", load.foreign_writers).await? {
            self.foreign.push(Foreign::start(db.path(), source)?);
        }
        Ok(())
    }

    fn ledger(&mut self, source: i64) -> Shared {
        let ledger = Shared::default();
        self.ledgers.push((source, ledger.clone()));
        ledger
    }

    pub(crate) fn database(&self) -> Database {
        self.site.db.clone()
    }

    /// Shows how it goes until `end`; then lets everyone finish, closes the database, and looks at every row.
    pub(crate) async fn until(mut self, end: impl Future<Output = ()>) -> Result<Report, Refusal> {
        let mut live = Live::new(self.site.db.clone(), self.site.measured.clone());
        live.show_until(end).await;
        let took = self.began.elapsed();
        self.site.stop.store(true, Ordering::Relaxed);
        let mut tasks_lost = 0;
        let finished = async {
            while let Some(task) = self.tasks.join_next().await {
                tasks_lost += u64::from(task.is_err());
            }
        };
        if tokio::time::timeout(PATIENCE, finished).await.is_err() {
            // What they still wait for stays open in their ledgers.
            tasks_lost += self.tasks.len() as u64;
            self.tasks.abort_all();
            output::note("some tasks did not come to an end");
        }
        let wal_max_bytes = live.end();
        let foreign = tokio::task::block_in_place(|| foreign::finish(self.foreign));
        let stats = self.site.db.stats();
        if let Err(error) = self.site.db.shutdown(Drain::within(PATIENCE)).await {
            output::note(&error.to_string());
        }
        let mut report = Report::new(&self.site, took, &stats, wal_max_bytes);
        report.tasks_lost = tasks_lost;
        tokio::task::block_in_place(|| verified(report, &self.path, &self.ledgers, foreign))
    }
}

/// Looks for every row on a connection that has nothing to do with the service. One that may write, as the last to
/// close takes the -wal file away.
fn verified(
    mut report: Report,
    path: &Path,
    ledgers: &[(i64, Shared)],
    foreign: Vec<(i64, ForeignReport)>,
) -> Result<Report, Refusal> {
    output::note("looking for every row …");
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut verification = Verification::of(&connection);
    for (source, ledger) in ledgers {
        let ledger = lock(ledger);
        report.acknowledged += ledger.acknowledged();
        verification.check(&connection, *source, &ledger);
    }
    for (source, foreign) in foreign {
        verification.check_foreign(&connection, source, &foreign);
        report.add_foreign(foreign);
    }
    report.nothing_acknowledged = report.acknowledged == 0 && !ledgers.is_empty();
    report.verification = verification;
    Ok(report)
}

/// The first Ctrl-C ends the run that the receiver waits in. Once that is over, or at the second, the program ends.
pub(crate) fn listen_for_interrupt() -> oneshot::Receiver<()> {
    let (run, interrupted) = oneshot::channel();
    tokio::spawn(async move {
        let mut run = Some(run);
        while tokio::signal::ctrl_c().await.is_ok() {
            match run.take().map(|run| run.send(())) {
                Some(Ok(())) => output::note("interrupted; Ctrl-C again leaves without looking for the rows"),
                _ => process::exit(130),
            }
        }
    });
    interrupted
}

/// Finds out before the run what would only show after it.
pub(crate) fn require_writable(json: Option<&Path>) -> Result<(), Refusal> {
    let Some(json) = json.filter(|json| *json != Path::new("-")) else { return Ok(()) };
    let folder = match json.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if json.is_dir() {
        return Err(format!("--json: {} is a folder", json.display()).into());
    }
    if !folder.is_dir() {
        return Err(format!("--json: there is no folder {}", folder.display()).into());
    }
    Ok(())
}
