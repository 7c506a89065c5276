//! solewriter in its normal case: default settings but for the durability, watched by a subscriber.

use std::path::Path;
use std::time::Duration;

use ::solewriter::{Config, Database, Drain, WriteTransaction};
use futures_util::stream;
use peers_common::marketplace::Entry;
use peers_common::rows::{INSERT, READ, Row, TEXT};
use peers_common::{Durability, Error, Setup, Statement, System};
use rusqlite::Params;

use crate::steps::{self, Sql};

pub(crate) struct Solewriter(Database);

impl System for Solewriter {
    async fn open(setup: &Setup) -> Result<Self, Error> {
        // As a service has one. What it writes goes nowhere, as to a log that is collected elsewhere.
        tracing_subscriber::fmt().with_writer(std::io::sink).try_init()?;
        let mut config = Config {
            durability: match setup.durability {
                Durability::Full => ::solewriter::Durability::Full,
                Durability::Normal => ::solewriter::Durability::Normal,
            },
            ..Config::default()
        };
        if setup.readers > 0 {
            (config.readers, config.readers_overflow) = (setup.readers, 0);
        }
        Ok(Self(Database::builder(&setup.path).config(config).open().await?))
    }

    async fn run_script(&self, sql: &'static str) -> Result<(), Error> {
        let sql = sql.to_owned();
        Ok(self.0.write("schema", move |tx| tx.execute_batch(&sql)).await?)
    }

    async fn insert(&self, row: Row) -> Result<(), Error> {
        self.0.execute(INSERT, (row.client, row.sequence, TEXT)).await?;
        Ok(())
    }

    async fn insert_in_closure(&self, row: Row) -> Result<(), Error> {
        Ok(self.0.write("insert", move |tx| steps::insert(tx, row)).await?)
    }

    async fn deposit(&self, row: Row) -> Result<(), Error> {
        Ok(self.0.write("deposit", move |tx| steps::deposit(tx, row)).await?)
    }

    async fn read(&self, id: i64) -> Result<usize, Error> {
        let read = self
            .0
            .read("item", move |tx| tx.query_row(READ, [id], |row| Ok(row.get_ref(0)?.as_str()?.len())));
        Ok(read.await?)
    }

    async fn execute(&self, statement: Statement) -> Result<(), Error> {
        Ok(self.0.write("statement", move |tx| steps::execute(tx, &statement)).await?)
    }

    async fn transaction(&self, statements: Vec<Statement>) -> Result<(), Error> {
        let run = move |tx: &mut WriteTransaction<'_>| {
            statements.iter().try_for_each(|statement| steps::execute(tx, statement))
        };
        Ok(self.0.write("statements", run).await?)
    }

    async fn import(&self, rows: impl Iterator<Item = Row> + Send + 'static) -> Result<(), Error> {
        let import = self.0.import("rows", stream::iter(rows)).run(|tx, row| steps::insert(tx, *row));
        let report = import.await?;
        match report.failed {
            0 => Ok(()),
            failed => Err(format!("{failed} rows failed").into()),
        }
    }

    async fn import_entries(&self, entries: Vec<Entry>) -> Vec<(Entry, Error)> {
        let mut failed = Vec::new();
        let import = self
            .0
            .import("entries", stream::iter(entries.clone()))
            .prepare(1, |entry: Entry| async move { Ok::<_, rusqlite::Error>(entry.statements()) });
        let run = import.run_observed(
            |tx, statements| statements.iter().try_for_each(|statement| steps::execute(tx, statement)),
            |index, outcome| {
                if let Err(error) = outcome {
                    failed.push((index, error.to_string()));
                }
            },
        );
        let ended = run.await;
        let mut failed: Vec<_> = failed
            .into_iter()
            .filter_map(|(index, error)| Some((*entries.get(usize::try_from(index).ok()?)?, error.into())))
            .collect();
        if let Err(error) = ended {
            let error = error.to_string();
            failed.extend(entries.iter().map(|entry| (*entry, error.clone().into())));
        }
        failed
    }

    async fn close(self) -> Result<(), Error> {
        self.0.shutdown(Drain::within(Duration::from_secs(30))).await?;
        Ok(())
    }

    async fn pairs(path: &Path, sql: &'static str) -> Result<Vec<(i64, i64)>, Error> {
        Ok(steps::pairs(path, sql)?)
    }
}

impl Sql for WriteTransaction<'_> {
    fn execute(&mut self, sql: &'static str, params: impl Params) -> rusqlite::Result<usize> {
        WriteTransaction::execute(self, sql, params)
    }

    fn integer(&self, sql: &'static str, params: impl Params) -> rusqlite::Result<i64> {
        self.query_row(sql, params, |row| row.get(0))
    }
}
