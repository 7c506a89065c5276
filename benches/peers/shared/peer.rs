//! A system that hands out rusqlite connections: everything but how it opens them and runs a closure on one.

use std::path::Path;

use peers_common::rows::Row;
use peers_common::{Error, IMPORT_BATCH, Setup, Statement, System};
use rusqlite::Connection;

use crate::steps;

/// Hands out connections.
pub(crate) trait Connections: Sized + Send + Sync + 'static {
    fn open(setup: &Setup) -> impl Future<Output = Result<Self, Error>> + Send;

    /// Runs a closure on a connection that writes.
    fn write<F>(&self, closure: F) -> impl Future<Output = Result<(), Error>> + Send
    where
        F: FnOnce(&mut Connection) -> rusqlite::Result<()> + Send + 'static;

    /// Runs a closure on a connection that reads.
    fn read<F>(&self, closure: F) -> impl Future<Output = Result<usize, Error>> + Send
    where
        F: FnOnce(&Connection) -> rusqlite::Result<usize> + Send + 'static;

    fn close(self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A system made of them.
pub(crate) struct Peer<C>(C);

impl<C: Connections> System for Peer<C> {
    async fn open(setup: &Setup) -> Result<Self, Error> {
        C::open(setup).await.map(Self)
    }

    async fn run_script(&self, sql: &'static str) -> Result<(), Error> {
        self.0.write(move |connection| connection.execute_batch(sql)).await
    }

    async fn insert(&self, row: Row) -> Result<(), Error> {
        self.0.write(move |connection| steps::insert(connection, row)).await
    }

    async fn deposit(&self, row: Row) -> Result<(), Error> {
        self.0.write(move |connection| steps::in_transaction(connection, |tx| steps::deposit(tx, row))).await
    }

    async fn read(&self, id: i64) -> Result<usize, Error> {
        self.0.read(move |connection| steps::read(connection, id)).await
    }

    async fn execute(&self, statement: Statement) -> Result<(), Error> {
        self.0.write(move |connection| steps::execute(connection, &statement)).await
    }

    async fn transaction(&self, statements: Vec<Statement>) -> Result<(), Error> {
        let run = move |connection: &mut Connection| {
            steps::in_transaction(connection, |tx| {
                statements.iter().try_for_each(|statement| steps::execute(tx, statement))
            })
        };
        self.0.write(run).await
    }

    async fn import(&self, mut rows: impl Iterator<Item = Row> + Send + 'static) -> Result<(), Error> {
        loop {
            let batch: Vec<Row> = rows.by_ref().take(IMPORT_BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let run = move |connection: &mut Connection| {
                steps::in_transaction(connection, |tx| {
                    batch.into_iter().try_for_each(|row| steps::insert(tx, row))
                })
            };
            self.0.write(run).await?;
        }
    }

    async fn close(self) -> Result<(), Error> {
        self.0.close().await
    }

    async fn pairs(path: &Path, sql: &'static str) -> Result<Vec<(i64, i64)>, Error> {
        Ok(steps::pairs(path, sql)?)
    }
}
