//! What every system on rusqlite does with a connection. Each package has its own rusqlite, so each compiles this file.

use std::path::Path;

use peers_common::rows::{INSERT, READ, READ_BALANCE, Row, TEXT, WRITE_BALANCE};
use peers_common::{Durability, Statement, Value};
use rusqlite::types::{ToSql, ToSqlOutput};
use rusqlite::{Connection, OpenFlags, Params, Transaction, TransactionBehavior, params_from_iter};

/// What the steps need of a connection or a transaction, whoever owns it. Statements come from its cache.
pub(crate) trait Sql {
    fn execute(&mut self, sql: &'static str, params: impl Params) -> rusqlite::Result<usize>;
    fn integer(&self, sql: &'static str, params: impl Params) -> rusqlite::Result<i64>;
}

impl Sql for Connection {
    fn execute(&mut self, sql: &'static str, params: impl Params) -> rusqlite::Result<usize> {
        self.prepare_cached(sql)?.execute(params)
    }

    fn integer(&self, sql: &'static str, params: impl Params) -> rusqlite::Result<i64> {
        self.prepare_cached(sql)?.query_row(params, |row| row.get(0))
    }
}

impl Sql for Transaction<'_> {
    fn execute(&mut self, sql: &'static str, params: impl Params) -> rusqlite::Result<usize> {
        self.prepare_cached(sql)?.execute(params)
    }

    fn integer(&self, sql: &'static str, params: impl Params) -> rusqlite::Result<i64> {
        self.prepare_cached(sql)?.query_row(params, |row| row.get(0))
    }
}

/// Sets what solewriter sets. Checkpoints stay as they are: SQLite's own, which nothing else would run.
pub(crate) fn configure(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(128);
    connection.execute_batch(&format!(
        "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = {};
         PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -65536;
         PRAGMA mmap_size = 268435456;",
        durability.pragma()
    ))
}

pub(crate) fn insert(sql: &mut impl Sql, row: Row) -> rusqlite::Result<()> {
    sql.execute(INSERT, (row.client, row.sequence, TEXT))?;
    Ok(())
}

/// Adds one to a balance and inserts the row; the caller's transaction keeps them together.
pub(crate) fn deposit(sql: &mut impl Sql, row: Row) -> rusqlite::Result<()> {
    let balance = sql.integer(READ_BALANCE, [row.account()])?;
    sql.execute(WRITE_BALANCE, (row.account(), balance + 1))?;
    insert(sql, row)
}

/// The length of an item's text.
pub(crate) fn read(connection: &Connection, id: i64) -> rusqlite::Result<usize> {
    connection.prepare_cached(READ)?.query_row([id], |row| Ok(row.get_ref(0)?.as_str()?.len()))
}

pub(crate) fn execute(sql: &mut impl Sql, statement: &Statement) -> rusqlite::Result<()> {
    sql.execute(statement.sql, params_from_iter(statement.parameters.iter().map(Parameter)))?;
    Ok(())
}

/// Runs steps in a transaction that has the write lock from its start, so that none of them can fail for want of it.
pub(crate) fn in_transaction(
    connection: &mut Connection,
    steps: impl FnOnce(&mut Transaction<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    steps(&mut transaction)?;
    transaction.commit()
}

/// The rows of a query of two integers, in a new connection.
pub(crate) fn pairs(path: &Path, sql: &str) -> rusqlite::Result<Vec<(i64, i64)>> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

struct Parameter<'v>(&'v Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self.0 {
            Value::Integer(value) => value.to_sql(),
            Value::Text(value) => value.to_sql(),
        }
    }
}
