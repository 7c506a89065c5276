//! Random groups of good and hostile commands against a model: every answer must be true, and the file must hold
//! what the answers say.
//!
//! The model runs the commands one after the other, in the order in which they were sent. It knows the one exception
//! of the contract: a `FnOnce` command that had run in a group which SQLite itself rolled back.
//!
//! A case is a group, a seed a life of a database with some hundred of them. Both canaries must be caught by the
//! model: a plain group commit without any of our checks, and the service without one of its checks.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Mutex, mpsc};

use common::proof::{Proof, Tally, Wrong};
use common::{Kind, config_with, in_memory_dir, soon};
use fastrand::Rng;
use rusqlite::{Connection, ffi};
use serde::{Deserialize, Serialize};
#[cfg(feature = "sabotage")]
use solewriter::Sabotage;
use solewriter::{
    Builder, Database, Drain, Durability, Lane, RolledBack, Work, Write, WriteError, WriteTransaction,
};

const SCHEMA: &str = "CREATE TABLE t (x INTEGER PRIMARY KEY);
     CREATE TABLE parent (id INTEGER PRIMARY KEY);
     CREATE TABLE child (parent NOT NULL REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
     CREATE TABLE trap (n);
     CREATE TRIGGER trap AFTER INSERT ON trap WHEN new.n = 2 BEGIN SELECT RAISE(FAIL, 'trapped'); END;
     INSERT INTO t VALUES (0)";

/// Few values, so that commands clash.
const VALUES: i64 = 30;

/// What a command does with its two values. `0` is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum What {
    Insert,
    Delete,
    Move,
    InsertBoth,
    InsertAndSwallow,
    FailAfterInsert,
    OrFail,
    OrRollback,
    SwallowRollback,
    RaiseFail,
    Panic,
    BreakForeignKey,
    MendForeignKey,
    TryToCommit,
    LeakStatement,
    CreateAndFail,
    CountAndFail,
}

use What::*;

const ALL: [What; 17] = [
    Insert,
    Delete,
    Move,
    InsertBoth,
    InsertAndSwallow,
    FailAfterInsert,
    OrFail,
    OrRollback,
    SwallowRollback,
    RaiseFail,
    Panic,
    BreakForeignKey,
    MendForeignKey,
    TryToCommit,
    LeakStatement,
    CreateAndFail,
    CountAndFail,
];

/// Those that are one statement.
const STATEMENTS: [What; 5] = [Insert, Delete, Move, OrFail, OrRollback];

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Doing {
    what: What,
    x: i64,
    y: i64,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    kind: Kind,
    doing: Doing,
}

impl Sent {
    fn random(rng: &mut Rng) -> Self {
        let kind = Kind::ALL[rng.usize(0..4)];
        // Half of them are good, else every group would be lost.
        let what = match (kind, rng.bool()) {
            (Kind::Statement, _) => STATEMENTS[rng.usize(0..STATEMENTS.len())],
            (_, true) => [Insert, Delete, Delete, Move, InsertBoth][rng.usize(0..5)],
            (_, false) => ALL[rng.usize(0..ALL.len())],
        };
        Self { kind, doing: Doing { what, x: rng.i64(1..VALUES), y: rng.i64(1..VALUES) } }
    }
}

/// What SQL needs to be done on, here and in the canary.
trait Sql {
    fn run(&mut self, sql: &str, values: &[i64]) -> rusqlite::Result<usize>;
    fn batch(&mut self, sql: &str) -> rusqlite::Result<()>;
    fn leak(&mut self);
}

impl Sql for WriteTransaction<'_> {
    fn run(&mut self, sql: &str, values: &[i64]) -> rusqlite::Result<usize> {
        self.execute(sql, rusqlite::params_from_iter(values))
    }

    fn batch(&mut self, sql: &str) -> rusqlite::Result<()> {
        self.execute_batch(sql)
    }

    fn leak(&mut self) {
        let mut statement = ManuallyDrop::new(self.prepare("SELECT 1 UNION ALL SELECT 2").unwrap());
        let mut rows = ManuallyDrop::new(statement.query(()).unwrap());
        rows.next().unwrap().unwrap();
    }
}

impl Sql for &Connection {
    fn run(&mut self, sql: &str, values: &[i64]) -> rusqlite::Result<usize> {
        self.prepare_cached(sql)?.execute(rusqlite::params_from_iter(values))
    }

    fn batch(&mut self, sql: &str) -> rusqlite::Result<()> {
        self.execute_batch(sql)
    }

    fn leak(&mut self) {}
}

const INSERT: &str = "INSERT INTO t VALUES (?1)";
const DELETE: &str = "DELETE FROM t WHERE x = ?1";
const MOVE: &str = "UPDATE t SET x = ?2 WHERE x = ?1";
const OR_FAIL: &str = "INSERT OR FAIL INTO t VALUES (?1), (0)";
const OR_ROLLBACK: &str = "INSERT OR ROLLBACK INTO t VALUES (?1)";

impl Doing {
    fn run(self, sql: &mut impl Sql) -> rusqlite::Result<usize> {
        let Self { what, x, y } = self;
        match what {
            Insert => sql.run(INSERT, &[x]),
            Delete => sql.run(DELETE, &[x]),
            Move => sql.run(MOVE, &[x, y]),
            OrFail => sql.run(OR_FAIL, &[x]),
            OrRollback => sql.run(OR_ROLLBACK, &[x]),
            InsertBoth => Ok(sql.run(INSERT, &[x])? + sql.run(INSERT, &[y])?),
            InsertAndSwallow => {
                let inserted = sql.run(INSERT, &[x])?;
                let _swallowed = sql.run(INSERT, &[0]).is_err();
                Ok(inserted)
            }
            FailAfterInsert => Ok(sql.run(INSERT, &[x])? + sql.run(INSERT, &[0])?),
            SwallowRollback => {
                let inserted = sql.run(INSERT, &[x])?;
                let _swallowed = sql.run(OR_ROLLBACK, &[0]).is_err();
                let _vetoed = sql.run(INSERT, &[y]).is_err();
                Ok(inserted)
            }
            RaiseFail => Ok(sql.run(INSERT, &[x])? + sql.run("INSERT INTO trap VALUES (1), (2)", &[])?),
            Panic => {
                sql.run(INSERT, &[x])?;
                panic!("hostile")
            }
            BreakForeignKey => Ok(sql.run(INSERT, &[x])? + sql.run("INSERT INTO child VALUES (404)", &[])?),
            MendForeignKey => {
                sql.run("INSERT INTO child VALUES (404)", &[])?;
                sql.run("DELETE FROM child", &[])?;
                sql.run(INSERT, &[x])
            }
            TryToCommit => {
                let inserted = sql.run(INSERT, &[x])?;
                for control in ["COMMIT", "ROLLBACK", "SAVEPOINT mine", "RELEASE solewriter"] {
                    let _refused = sql.batch(control).is_err();
                }
                let _refused = sql.run("COMMIT", &[]).is_err();
                Ok(inserted)
            }
            LeakStatement => {
                let inserted = sql.run(INSERT, &[x])?;
                sql.leak();
                Ok(inserted)
            }
            CreateAndFail => {
                sql.batch("CREATE TABLE IF NOT EXISTS more (x); PRAGMA user_version = 7")?;
                sql.run("CREATE TABLE IF NOT EXISTS more (x)", &[])?;
                sql.run(INSERT, &[0])
            }
            CountAndFail => sql.run("PRAGMA user_version = 9", &[]).and_then(|_| sql.run(INSERT, &[0])),
        }
    }
}

impl solewriter::Command for Doing {
    const NAME: &'static str = "doing";
    type Output = usize;
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<usize> {
        (*self).run(tx)
    }
}

/// What a command is told, as far as the model can tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Changed(usize),
    Clash,
    Trapped,
    Panicked,
    ForeignKey,
    Ended,
    StatementOpen,
    GroupLost,
    Other,
}

impl Told {
    fn of(answer: &Result<usize, WriteError>) -> Self {
        let code = answer.as_ref().err().and_then(WriteError::sqlite_extended_code);
        match answer {
            Ok(rows) => Self::Changed(*rows),
            Err(WriteError::Command(_)) if code == Some(ffi::SQLITE_CONSTRAINT_PRIMARYKEY) => Self::Clash,
            Err(WriteError::Command(_)) if code == Some(ffi::SQLITE_CONSTRAINT_TRIGGER) => Self::Trapped,
            Err(WriteError::RolledBack(RolledBack::Panicked(_))) => Self::Panicked,
            Err(WriteError::RolledBack(RolledBack::ForeignKey)) => Self::ForeignKey,
            Err(WriteError::RolledBack(RolledBack::TransactionEnded)) => Self::Ended,
            Err(WriteError::RolledBack(RolledBack::StatementLeftOpen)) => Self::StatementOpen,
            Err(WriteError::RolledBack(RolledBack::GroupLost(_))) => Self::GroupLost,
            Err(_) => Self::Other,
        }
    }
}

type Rows = BTreeSet<i64>;

/// What a command would be told alone, and the rows after it.
fn expected(rows: &Rows, Doing { what, x, y }: Doing) -> (Told, Rows) {
    let mut after = rows.clone();
    let told = match what {
        Insert | InsertAndSwallow | MendForeignKey | TryToCommit | OrRollback if after.insert(x) => {
            Told::Changed(1)
        }
        InsertBoth if x != y && after.insert(x) && after.insert(y) => Told::Changed(2),
        Delete => Told::Changed(usize::from(after.remove(&x))),
        Move if !after.remove(&x) => Told::Changed(0),
        Move if after.insert(y) => Told::Changed(1),
        _ if !matches!(what, CreateAndFail | CountAndFail) && rows.contains(&x) => Told::Clash,
        SwallowRollback => Told::Ended,
        RaiseFail => Told::Trapped,
        Panic => Told::Panicked,
        BreakForeignKey => Told::ForeignKey,
        LeakStatement => Told::StatementOpen,
        _ => Told::Clash,
    };
    let after = if matches!(told, Told::Changed(_)) { after } else { rows.clone() };
    (told, after)
}

/// Whether a command may have ended the transaction.
///
/// One that can run again did so once more, alone: if what it clashed with was lost meanwhile, its answer does not
/// show it any more.
fn may_have_ended_the_transaction(sent: Sent, told: Told) -> bool {
    let rolls_back = matches!(sent.doing.what, OrRollback | SwallowRollback);
    matches!(told, Told::Ended | Told::StatementOpen)
        || (rolls_back && (told == Told::Clash || sent.kind != Kind::Once))
}

/// Goes through the answers of what was sent together; says which one is wrong.
fn judge(rows: &mut Rows, sent: &[Sent], told: &[Told]) -> Result<(), String> {
    for (place, (command, told_now)) in sent.iter().zip(told).enumerate() {
        let is_once = command.kind == Kind::Once;
        if *told_now == Told::GroupLost {
            let later = sent.iter().zip(told).skip(place + 1);
            if is_once && later.clone().any(|(sent, told)| may_have_ended_the_transaction(*sent, *told)) {
                continue;
            }
            return Err(format!("{place} lost its group for no reason"));
        }
        let (wanted, after) = expected(rows, command.doing);
        if wanted == *told_now {
            *rows = after;
            continue;
        }
        // It did leave one, when those were still there that it has cost their run.
        if command.doing.what == LeakStatement && *told_now == Told::StatementOpen {
            continue;
        }
        // It ended the transaction of those its error rests on, and could not be asked again without them.
        let lost_before = sent[..place]
            .iter()
            .zip(told)
            .any(|(sent, told)| sent.kind == Kind::Once && *told == Told::GroupLost);
        let ended = matches!(
            (command.doing.what, *told_now),
            (OrRollback, Told::Clash) | (SwallowRollback, Told::Ended)
        );
        if is_once && lost_before && ended {
            continue;
        }
        return Err(format!("{place} was told {told_now:?} instead of {wanted:?}"));
    }
    Ok(())
}

type Answer = Pin<Box<dyn Future<Output = Result<usize, WriteError>>>>;

async fn submit(db: &Database, Sent { kind, doing }: Sent) -> Answer {
    let Doing { what, x, y } = doing;
    match kind {
        Kind::Once => boxed(db.write("once", move |tx| doing.run(tx))).await,
        Kind::Rerunnable => boxed(db.write_rerunnable(format!("{what:?}"), move |tx| doing.run(tx))).await,
        Kind::Typed => boxed(db.send(doing)).await,
        Kind::Statement => match what {
            Insert => boxed(db.execute(INSERT, (x,))).await,
            Delete => boxed(db.execute(DELETE, (x,))).await,
            Move => boxed(db.execute(MOVE, (x, y))).await,
            OrFail => boxed(db.execute(OR_FAIL, (x,))).await,
            _ => boxed(db.execute(OR_ROLLBACK, (x,))).await,
        },
    }
}

async fn boxed<W: Work<Output = usize, Error = rusqlite::Error>>(write: Write<'_, W>) -> Answer {
    let receipt = write.submit().await.unwrap();
    Box::pin(receipt)
}

/// Sends the commands so that they wait together, and returns what each was told.
async fn send(db: &Database, sent: &[Sent]) -> Vec<Told> {
    // Less durable than the others, so it is a group of its own, behind which they gather.
    let (open, wait) = mpsc::channel::<()>();
    let gate = db.write("gate", move |_| Ok(wait.recv().is_ok()));
    let gate = gate.durability(Durability::Normal).lane(Lane::Bulk).submit().await.unwrap();
    let mut answers = Vec::new();
    for command in sent {
        answers.push(submit(db, *command).await);
    }
    open.send(()).unwrap();
    let mut told = Vec::new();
    for answer in answers {
        told.push(Told::of(&soon(answer).await));
    }
    // Where it was overtaken, it is a neighbour like others.
    drop(soon(gate).await);
    told
}

/// The rows of `t`, and how many things of a failed command are left.
async fn rows_of(db: &Database) -> (Rows, i64) {
    db.read("rows", |tx| {
        let left: i64 = tx.query_row(
            "SELECT (SELECT count(*) FROM child) + (SELECT count(*) FROM trap)
               + (SELECT count(*) FROM sqlite_schema WHERE name = 'more') + (SELECT user_version FROM pragma_user_version)",
            (),
            |row| row.get(0),
        )?;
        let rows: Vec<i64> = tx.query_all("SELECT x FROM t", (), |row| row.get(0))?;
        Ok((rows.into_iter().collect(), left))
    })
    .await
    .unwrap()
}

/// Compares what a group was told and has left with the model.
fn check(tally: &mut Tally, rows: &mut Rows, sent: &[Sent], told: &[Told], (found, left): (Rows, i64)) {
    let case = |wrong: String| format!("{wrong}\nfound {found:?}\nsent {sent:#?}\ntold {told:?}");
    tally.cases += 1;
    tally.checks += sent.len() as u64;
    if let Err(wrong) = judge(rows, sent, told) {
        tally.wrong(Wrong::Broken, || case(wrong));
    }
    tally.check(rows.is_subset(&found), Wrong::Lost, || case(format!("instead of {rows:?}")));
    tally.check(found.is_subset(rows), Wrong::Ghost, || case(format!("instead of {rows:?}")));
    tally.check(left == 0, Wrong::Half, || case("something of a failed command is left".into()));
}

/// What was seen beside what is wrong.
#[derive(Default)]
struct Seen {
    told: BTreeMap<String, u64>,
    commands: u64,
    rerun: u64,
    replaced: u64,
    groups_lost: u64,
}

const GROUPS: usize = 500;

/// Sends groups to a database of their own, until the model finds something wrong.
async fn live(seed: u64, seen: &Mutex<Seen>, set: impl Fn(Builder) -> Builder) -> Tally {
    let directory = in_memory_dir();
    let path = directory.path().join("test.db");
    let db = set(Database::builder(&path).config(config_with(|_| ()))).open().await.unwrap();
    db.write("schema", |tx| tx.execute_batch(SCHEMA)).await.unwrap();
    let (mut tally, mut rows, mut rng) = (Tally::default(), Rows::from([0]), Rng::with_seed(seed));
    for _ in 0..GROUPS {
        let sent: Vec<Sent> = (0..rng.usize(1..9)).map(|_| Sent::random(&mut rng)).collect();
        let told = send(&db, &sent).await;
        check(&mut tally, &mut rows, &sent, &told, rows_of(&db).await);
        if tally.wrongs() > 0 {
            return tally;
        }
        let mut seen = seen.lock().unwrap();
        for told in told {
            let name = if let Told::Changed(_) = told { "Changed".into() } else { format!("{told:?}") };
            *seen.told.entry(name).or_default() += 1;
            seen.commands += 1;
        }
    }
    let stats = db.stats();
    db.shutdown(Drain::within(common::HANG)).await.unwrap();
    common::check(&path);
    let mut seen = seen.lock().unwrap();
    seen.rerun += stats.commands.rerun;
    seen.replaced += stats.connections_replaced;
    seen.groups_lost += stats.groups_lost;
    tally
}

fn live_blocking(seed: u64, seen: &Mutex<Seen>, set: impl Fn(Builder) -> Builder) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(live(seed, seen, set))
}

#[test]
fn every_answer_is_true_and_the_file_holds_what_the_answers_say() {
    std::panic::set_hook(Box::new(|panic| {
        // A million hostile panics are no news.
        if panic.payload().downcast_ref::<&str>().is_none_or(|what| *what != "hostile") {
            eprintln!("{panic}");
        }
    }));
    let mut proof = Proof::new("hostile_neighbours", 20_000, 1_000_000);
    let seen = Mutex::default();
    proof.run(|seed| live_blocking(seed, &seen, |builder| builder));
    let Seen { told, commands, rerun, replaced, groups_lost } = seen.into_inner().unwrap();
    for (name, value) in [("commands", commands), ("rerun", rerun), ("replaced", replaced)] {
        proof.figure(name, value);
    }
    if !proof.is_replay() {
        assert!(rerun > 0 && groups_lost > 0, "there were hostile groups");
        assert_eq!(told.len(), 8, "every answer of the model occurs, and no other: {told:?}");
    }
    for (what, count) in told {
        proof.figure(&format!("told:{what}"), count);
    }
    proof.canary("PlainGroupCommit", 4, live_plainly);
    #[cfg(feature = "sabotage")]
    proof.canary(Sabotage::NoAutocommitCheck, 4, |seed| {
        let set = |builder: Builder| builder.sabotage(Sabotage::NoAutocommitCheck);
        live_blocking(seed, &Mutex::default(), set)
    });
    proof.finish();
}

/// BEGIN, the commands, COMMIT, and each is told what its own statements said.
fn send_plainly(connection: &Connection, sent: &[Sent]) -> Vec<Told> {
    let _ignored = connection.execute_batch("BEGIN IMMEDIATE").is_err();
    let told = sent
        .iter()
        .map(|command| {
            let mut sql = connection;
            match catch_unwind(AssertUnwindSafe(|| command.doing.run(&mut sql))) {
                Ok(result) => Told::of(&result.map_err(WriteError::Command)),
                Err(_) => Told::Panicked,
            }
        })
        .collect();
    let _ignored = connection.execute_batch("COMMIT").is_err();
    told
}

/// A plain group commit, in the place of the service.
fn live_plainly(seed: u64) -> Tally {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(SCHEMA).unwrap();
    connection.pragma_update(None, "foreign_keys", true).unwrap();
    let (mut tally, mut rows, mut rng) = (Tally::default(), Rows::from([0]), Rng::with_seed(seed));
    while tally.wrongs() == 0 && tally.cases < 20 {
        let sent: Vec<Sent> = (0..rng.usize(1..9)).map(|_| Sent::random(&mut rng)).collect();
        let told = send_plainly(&connection, &sent);
        let mut statement = connection.prepare("SELECT x FROM t").unwrap();
        let found = statement.query_map((), |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>();
        check(&mut tally, &mut rows, &sent, &told, (found.unwrap(), 0));
    }
    tally
}
