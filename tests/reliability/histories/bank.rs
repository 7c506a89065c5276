//! What is written and read: accounts, the number of the newest write, and a log of all writes.

use rusqlite::{Connection, Params, Row};
use serde::{Deserialize, Serialize};
use solewriter::{Command, ReadTransaction, WriteTransaction};

use super::operation::{Account, Saw, Serial, Wrote};

pub(super) const ACCOUNTS: u16 = 100;

/// Of each account at first.
pub(super) const BALANCE: i32 = 1_000;

/// The log begins with a row that nobody has written. Its trigger makes one statement a whole write.
const SCHEMA: &str = "
    CREATE TABLE counter (id INTEGER PRIMARY KEY, serial INTEGER NOT NULL);
    INSERT INTO counter VALUES (0, 0);
    CREATE TABLE account (key INTEGER PRIMARY KEY, version INTEGER NOT NULL, balance INTEGER NOT NULL);
    CREATE TABLE log (serial INTEGER PRIMARY KEY, id INTEGER NOT NULL, key, version, balance);
    INSERT INTO log (serial, id) VALUES (0, 0);
    CREATE TRIGGER whole AFTER INSERT ON log WHEN new.key IS NOT NULL BEGIN
        UPDATE counter SET serial = new.serial;
        UPDATE account SET version = new.serial WHERE key = new.key;
    END;
    CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (parent NOT NULL REFERENCES parent DEFERRABLE INITIALLY DEFERRED);";

/// A whole write as one statement: takes the id and the key.
pub(super) const TOUCH: &str = "
    INSERT INTO log (serial, id, key, version, balance)
    SELECT counter.serial + 1, ?1, key, version, balance FROM counter, account WHERE key = ?2
    RETURNING serial, key, version, balance";

/// Takes the id; costs the whole transaction.
pub(super) const OR_ROLLBACK: &str = "
    INSERT OR ROLLBACK INTO log (serial, id)
    SELECT serial + 1, ?1 FROM counter UNION ALL SELECT serial, ?1 FROM counter
    RETURNING serial, id, 0, 0";

pub(super) fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(SCHEMA)?;
    let mut insert = connection.prepare("INSERT INTO account VALUES (?1, 0, ?2)")?;
    (0..ACCOUNTS).try_for_each(|key| insert.execute((key, BALANCE)).map(drop))
}

/// What reads need of SQL, in the service and in another process.
pub(super) trait Query {
    fn row<P: Params, T>(
        &self,
        sql: &str,
        params: P,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T>;
}

/// What writes need of it.
pub(super) trait Execute: Query {
    fn run(&mut self, sql: &str, params: impl Params) -> rusqlite::Result<usize>;
}

impl Query for ReadTransaction<'_> {
    fn row<P: Params, T>(
        &self,
        sql: &str,
        params: P,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.query_row(sql, params, map)
    }
}

impl Query for WriteTransaction<'_> {
    fn row<P: Params, T>(
        &self,
        sql: &str,
        params: P,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.query_row(sql, params, map)
    }
}

impl Execute for WriteTransaction<'_> {
    fn run(&mut self, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
        self.execute(sql, params)
    }
}

impl Query for &Connection {
    fn row<P: Params, T>(
        &self,
        sql: &str,
        params: P,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.prepare_cached(sql)?.query_row(params, map)
    }
}

impl Execute for &Connection {
    fn run(&mut self, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
        self.prepare_cached(sql)?.execute(params)
    }
}

/// A write: takes its serial, and moves an amount between accounts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Transfer {
    pub(super) id: i64,
    pub(super) from: u16,
    /// Without another account, only the version of the one is new.
    pub(super) to: Option<u16>,
    pub(super) amount: i32,
    /// How it fails in the end.
    pub(super) spite: Option<Spite>,
}

/// How a command fails.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Spite {
    Fail,
    OrRollback,
    SwallowRollback,
    Panic,
    BreakForeignKey,
}

/// What a hostile command says in its panic.
pub(super) const HOSTILE: &str = "hostile";

impl Transfer {
    pub(super) fn random(id: i64, rng: &mut fastrand::Rng) -> Self {
        let from = rng.u16(0..ACCOUNTS);
        let to = rng.bool().then(|| (from + rng.u16(1..ACCOUNTS)) % ACCOUNTS);
        Self { id, from, to, amount: rng.i32(1..100), spite: None }
    }

    /// By several statements, which read, count and then write.
    pub(super) fn run(self, sql: &mut impl Execute) -> rusqlite::Result<Wrote> {
        let Self { id, from, to, amount, spite } = self;
        let serial =
            sql.row("UPDATE counter SET serial = serial + 1 RETURNING serial", (), |row| row.get(0))?;
        let first = account(sql, from)?;
        let second = to.map(|key| account(sql, key)).transpose()?;
        let amount = if second.is_some() { amount } else { 0 };
        set(sql, Account { version: serial, balance: first.balance - amount, ..first })?;
        if let Some(second) = second {
            set(sql, Account { version: serial, balance: second.balance + amount, ..second })?;
        }
        sql.run("INSERT INTO log (serial, id) VALUES (?1, ?2)", (serial, id))?;
        if let Some(spite) = spite {
            spite.fail(sql)?;
        }
        Ok(Wrote { serial, group: None, found: [Some(first), second], amount })
    }
}

impl Spite {
    pub(super) const ALL: [Self; 5] =
        [Self::Fail, Self::OrRollback, Self::SwallowRollback, Self::Panic, Self::BreakForeignKey];

    fn fail(self, sql: &mut impl Execute) -> rusqlite::Result<usize> {
        match self {
            Self::Fail => Err(rusqlite::Error::InvalidQuery),
            Self::OrRollback => sql.run("INSERT OR ROLLBACK INTO log (serial, id) VALUES (0, 0)", ()),
            Self::SwallowRollback => Ok(usize::from(Self::OrRollback.fail(sql).is_ok())),
            Self::Panic => std::panic::panic_any(HOSTILE),
            Self::BreakForeignKey => sql.run("INSERT INTO child VALUES (404)", ()),
        }
    }
}

fn account(sql: &impl Query, key: u16) -> rusqlite::Result<Account> {
    sql.row("SELECT version, balance FROM account WHERE key = ?1", [key], |row| {
        Ok(Account { key, version: row.get(0)?, balance: row.get(1)? })
    })
}

fn set(sql: &mut impl Execute, account: Account) -> rusqlite::Result<usize> {
    let Account { key, version, balance } = account;
    sql.run("UPDATE account SET version = ?2, balance = ?3 WHERE key = ?1", (key, version, balance))
}

/// What [`TOUCH`] returns.
pub(super) fn touched(row: &Row<'_>) -> rusqlite::Result<Wrote> {
    let found = Account { key: row.get(1)?, version: row.get(2)?, balance: row.get(3)? };
    Ok(Wrote { serial: row.get(0)?, group: None, found: [Some(found), None], amount: 0 })
}

impl Command for Transfer {
    const NAME: &'static str = "transfer";
    type Output = Wrote;
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<Wrote> {
        self.run(tx)
    }
}

/// What a read looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glance {
    keys: [u16; 2],
    adds_up: bool,
}

impl Glance {
    pub(super) fn random(rng: &mut fastrand::Rng) -> Self {
        Self { keys: [rng.u16(0..ACCOUNTS), rng.u16(0..ACCOUNTS)], adds_up: rng.u8(0..4) == 0 }
    }

    /// By several statements, with the counter first and the log last.
    pub(super) fn look(self, sql: &impl Query) -> rusqlite::Result<Saw> {
        let serial = sql.row("SELECT serial FROM counter", (), |row| row.get(0))?;
        let [first, second] = self.keys;
        let accounts = [account(sql, first)?, account(sql, second)?];
        let total = || sql.row("SELECT sum(balance) FROM account", (), |row| row.get(0));
        let sum = self.adds_up.then(total).transpose()?;
        let newest = sql.row("SELECT max(serial) FROM log", (), |row| row.get(0))?;
        Ok(Saw { serial, newest, accounts, sum })
    }
}

/// What a file holds in the end.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) serial: Serial,
    /// Who has made which write, by serial.
    pub(super) log: Vec<(Serial, i64)>,
    /// By key.
    pub(super) accounts: Vec<Account>,
}

impl Stored {
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let serial = connection.row("SELECT serial FROM counter", (), |row| row.get(0))?;
        let mut log = connection.prepare("SELECT serial, id FROM log WHERE serial > 0 ORDER BY serial")?;
        let log = log.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let accounts = (0..ACCOUNTS).map(|key| account(&connection, key)).collect::<Result<_, _>>()?;
        Ok(Self { serial, log, accounts })
    }
}
