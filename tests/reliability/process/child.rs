//! What the process does: a service under load, which says each answer as soon as it has it.
#![allow(unsafe_code, reason = "rusqlite has no call for the limit of the heap")]

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::stream;
use rusqlite::ffi;
use solewriter::{Database, Drain, Outcome, RolledBack, Sabotage, Work, Write, WriteError, WriteTransaction};

use super::plan::{self, IMPORT, Peril, Planned, Run};
use super::points::{self, Point, say};
use crate::common::faults::Faults;
use crate::common::{HANG, Kind};

/// What a child is told to do.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    pub(crate) path: PathBuf,
    pub(crate) run: Run,
    pub(crate) sabotage: Option<Sabotage>,
}

const PATH: &str = "SOLEWRITER_TEST_PROCESS";
const ORDERS: &str = "SOLEWRITER_TEST_PROCESS_ORDERS";

impl Orders {
    pub(crate) fn environment(&self) -> [(&'static str, std::ffi::OsString); 2] {
        let Self { path, run: Run { seed, number, peril, point, .. }, sabotage } = self;
        let point = point.map_or("-".into(), |point| format!("{point:?}"));
        let sabotage = sabotage.map_or("-".into(), |sabotage| format!("{sabotage:?}"));
        [(PATH, path.into()), (ORDERS, format!("{seed} {number} {peril:?} {point} {sabotage}").into())]
    }

    fn from_environment() -> Option<Self> {
        let path = std::env::var_os(PATH)?.into();
        let orders = std::env::var(ORDERS).ok()?;
        let mut words = orders.split(' ');
        let mut next = || words.next().unwrap();
        let (seed, number) = (next().parse().unwrap(), next().parse().unwrap());
        let peril = Peril::named(next()).unwrap();
        let run = Run::new(seed, number, Point::named(next())).amid(peril);
        let sabotages = [Sabotage::AckBeforeCommit, Sabotage::NoFence, Sabotage::NormalForFull];
        let name = next();
        let sabotage = sabotages.into_iter().find(|sabotage| format!("{sabotage:?}") == name);
        Some(Self { path, run, sabotage })
    }
}

/// How many answers there were.
static ANSWERS: AtomicU32 = AtomicU32::new(0);

/// The tasks send nothing more.
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Does as it is told; nothing in the tests' own process.
pub(crate) fn serve() {
    let Some(Orders { path, run, sabotage }) = Orders::from_environment() else { return };
    points::speak_into(std::io::stdout().as_fd().try_clone_to_owned().unwrap().into());
    let faults = Faults::register();
    points::arm(run, &faults);
    let mut builder = Database::builder(path).config(run.config()).vfs(faults.name());
    if let Some(how) = sabotage {
        builder = builder.sabotage(how);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match builder.open().await {
            Ok(db) => load(db, run).await,
            Err(error) => say(&format!("unopened {error}: {:?}", error.reason)),
        }
    });
}

async fn load(db: Database, run: Run) {
    points::opened();
    match run.peril {
        Peril::HeapLimit => drop(std::thread::spawn(move || limit_heap(run))),
        Peril::OutOfMemory => drop(std::thread::spawn(move || fill_memory(run))),
        Peril::Kill | Peril::PowerCut | Peril::FailingCalls => {}
    }
    let tasks: Vec<_> = run.tasks().map(|task| tokio::spawn(send(db.clone(), run, task))).collect();
    for _ in 0..2 {
        tokio::spawn(look(db.clone(), run));
    }
    if run.has_import() {
        tokio::spawn(import(db.clone()));
    }
    if run.point == Some(Point::Close) {
        let answers = run.rng().u32(0..500);
        while ANSWERS.load(Ordering::Relaxed) < answers {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        IS_OVER.store(true, Ordering::Relaxed);
    }
    for task in tasks {
        task.await.unwrap();
    }
    if let Some(import) = db.import_control(&IMPORT.into()) {
        import.cancel();
    }
    crate::common::until("the import ends", || db.imports().is_empty()).await;
    points::closing();
    let report = db.shutdown(Drain::within(HANG)).await;
    // What this one is here for is to be killed.
    say(&format!("end {report:?}"));
}

/// Lets SQLite have as much memory as it has, and a little more, for a moment at a time.
fn limit_heap(run: Run) {
    let mut rng = run.rng();
    let limit = |bytes: i64| {
        // SAFETY: both may be called at any time, by any thread.
        unsafe {
            ffi::sqlite3_hard_heap_limit64(if bytes == 0 { 0 } else { ffi::sqlite3_memory_used() + bytes })
        };
    };
    loop {
        std::thread::sleep(Duration::from_micros(rng.u64(0..5_000)));
        limit(1 << rng.u8(0..16));
        std::thread::sleep(Duration::from_micros(rng.u64(0..3_000)));
        limit(0);
    }
}

/// Takes memory until there is none.
fn fill_memory(run: Run) {
    let mut rng = run.rng();
    std::thread::sleep(Duration::from_micros(rng.u64(0..200_000)));
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1_u8; 1 << 20]);
        std::thread::sleep(Duration::from_micros(rng.u64(0..200)));
    }
}

/// Wherever in it the error of SQLite is.
fn is_without_memory(error: &WriteError) -> bool {
    format!("{error:?}").contains("OutOfMemory")
}

type Answer = Pin<Box<dyn Future<Output = Result<(), WriteError>> + Send>>;

/// Sends one command after the other, a few of them on their way at a time.
async fn send(db: Database, run: Run, task: i64) {
    let mut waiting = VecDeque::<(Planned, Answer)>::new();
    for seq in 0.. {
        let is_over = IS_OVER.load(Ordering::Relaxed);
        while waiting.len() >= run.depth || is_over {
            let Some((planned, answer)) = waiting.pop_front() else { return };
            tell(&planned, answer.await);
        }
        let planned = run.command(task, seq);
        match submit(&db, &planned).await {
            Ok(answer) => waiting.push_back((planned, answer)),
            Err(error) => tell(&planned, Err(error)),
        }
    }
}

fn tell(planned: &Planned, answer: Result<(), WriteError>) {
    let outcome = answer.as_ref().err().map(WriteError::outcome);
    let told = match outcome {
        None => "acked",
        Some(Outcome::NotStarted | Outcome::RolledBack) => "refused",
        Some(_) => "unknown",
    };
    say(&format!("{told} {} {}", planned.doing.task, planned.doing.seq));
    if let Err(error) = &answer
        && is_without_memory(error)
    {
        say("without_memory");
    }
    ANSWERS.fetch_add(1, Ordering::Relaxed);
    if outcome == Some(Outcome::NotStarted) {
        // Nothing is written any more.
        IS_OVER.store(true, Ordering::Relaxed);
    }
    match answer {
        // Where nobody is hostile, a fence has settled it.
        Err(WriteError::RolledBack(RolledBack::GroupLost(_))) => points::told_of_fence(),
        Err(WriteError::Unknown(_)) => points::pass(Point::InDoubt),
        _ => {}
    }
}

async fn submit(
    db: &Database,
    Planned { kind, durability, lane, doing }: &Planned,
) -> Result<Answer, WriteError> {
    let (durability, lane, doing) = (*durability, *lane, *doing);
    match kind {
        Kind::Once => {
            boxed(db.write("once", move |tx| doing.run(tx, false)).durability(durability).lane(lane)).await
        }
        Kind::Rerunnable => {
            let runs = AtomicU32::new(0);
            let again =
                move |tx: &mut WriteTransaction<'_>| doing.run(tx, runs.fetch_add(1, Ordering::Relaxed) > 0);
            boxed(db.write_rerunnable("again", again).durability(durability).lane(lane)).await
        }
        Kind::Typed => boxed(db.send(doing).durability(durability).lane(lane)).await,
        Kind::Statement => boxed(db.execute(doing.sql(), ()).durability(durability).lane(lane)).await,
    }
}

async fn boxed<W: Work<Error = rusqlite::Error>>(write: Write<'_, W>) -> Result<Answer, WriteError> {
    let receipt = write.submit().await?;
    Ok(Box::pin(async { receipt.await.map(|_| ()) }))
}

/// Every command is whole in every snapshot, which pins the WAL meanwhile.
async fn look(db: Database, run: Run) {
    let mut rng = run.rng();
    loop {
        tokio::time::sleep(Duration::from_millis(rng.u64(0..20))).await;
        let task = rng.i64(run.tasks());
        let Ok(snapshot) = db.snapshot("look").await else { return };
        let mut seen = Vec::new();
        for _ in 0..2 {
            let commands = snapshot.read(move |tx| {
                tx.query_all("SELECT seq, count(*) FROM parts WHERE task = ?1 GROUP BY seq", [task], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
            });
            let Ok(commands) = commands.await else { return };
            seen.push(commands);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let is_whole = |(seq, parts): &(i64, i64)| {
            let planned = run.command(task, *seq);
            planned.is_good() && planned.doing.parts == *parts
        };
        if seen[0] != seen[1] {
            say("wrong a snapshot changes");
        }
        if let Some(part) = seen[0].iter().find(|command| !is_whole(command)) {
            say(&format!("half a snapshot of task {task} has {part:?}"));
        }
    }
}

/// Goes on where the last child was killed, and has no end.
async fn import(db: Database) {
    let entries = db.import("entries", stream::iter(0_i64..)).id(IMPORT).buffer(64);
    let run = entries.prepare(4, plan::prepare_entry).run_observed(plan::import_entry, |entry, outcome| {
        if outcome.is_ok() {
            say(&format!("imported {entry}"));
        }
    });
    // Whatever ends it, its record says how far it is.
    drop(run.await);
}
