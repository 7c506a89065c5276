//! turso with `BEGIN CONCURRENT`: transactions run side by side, and who meets a conflict runs again.

use std::path::Path;
use std::time::{Duration, Instant};

use ::turso::{Connection, Error as TursoError, Value as TursoValue};
use peers_common::rows::{INSERT, READ, READ_BALANCE, Row, TEXT, WRITE_BALANCE};
use peers_common::{Error, IMPORT_BATCH, Setup, Statement, System, Value};

use crate::connections::Connections;

/// How long a transaction is tried again: the busy timeout of the others.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Turso(Connections);

impl System for Turso {
    async fn open(setup: &Setup) -> Result<Self, Error> {
        Connections::open(setup).await.map(Self)
    }

    async fn run_script(&self, sql: &'static str) -> Result<(), Error> {
        Ok(self.0.get().await?.execute_batch(sql).await?)
    }

    async fn insert(&self, row: Row) -> Result<(), Error> {
        self.concurrently(Work::Rows(&[row])).await
    }

    async fn deposit(&self, row: Row) -> Result<(), Error> {
        self.concurrently(Work::Deposit(row)).await
    }

    async fn read(&self, id: i64) -> Result<usize, Error> {
        let connection = self.0.get().await?;
        let mut read = connection.prepare_cached(READ).await?;
        let text: String = read.query_row([id]).await?.get(0)?;
        Ok(text.len())
    }

    async fn execute(&self, statement: Statement) -> Result<(), Error> {
        self.concurrently(Work::Statements(&[statement])).await
    }

    async fn transaction(&self, statements: Vec<Statement>) -> Result<(), Error> {
        self.concurrently(Work::Statements(&statements)).await
    }

    async fn import(&self, mut rows: impl Iterator<Item = Row> + Send + 'static) -> Result<(), Error> {
        loop {
            let batch: Vec<Row> = rows.by_ref().take(IMPORT_BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            self.concurrently(Work::Rows(&batch)).await?;
        }
    }

    async fn close(self) -> Result<(), Error> {
        self.0.get().await?.pragma_query("wal_checkpoint(TRUNCATE)", |_| Ok(())).await?;
        Ok(())
    }

    async fn pairs(path: &Path, sql: &'static str) -> Result<Vec<(i64, i64)>, Error> {
        let path = path.to_str().ok_or("turso wants a path that is text")?;
        let database = ::turso::Builder::new_local(path).build().await?;
        let mut rows = database.connect()?.query(sql, ()).await?;
        let mut pairs = Vec::new();
        while let Some(row) = rows.next().await? {
            pairs.push((row.get(0)?, row.get(1)?));
        }
        Ok(pairs)
    }
}

impl Turso {
    /// Runs a transaction beside others, and again while it is in conflict with one of them.
    async fn concurrently(&self, work: Work<'_>) -> Result<(), Error> {
        let connection = self.0.get().await?;
        let begun = Instant::now();
        loop {
            let result = work.run(&connection).await;
            let Err(error) = result else { return Ok(()) };
            if !connection.is_autocommit()? {
                connection.execute("ROLLBACK", ()).await?;
            }
            if !is_retryable(&error) || begun.elapsed() > PATIENCE {
                return Err(error.into());
            }
            tokio::task::yield_now().await;
        }
    }
}

/// What a transaction does; it may have to be done again.
#[derive(Clone, Copy)]
enum Work<'w> {
    Rows(&'w [Row]),
    Deposit(Row),
    Statements(&'w [Statement]),
}

impl Work<'_> {
    async fn run(self, connection: &Connection) -> Result<(), TursoError> {
        connection.prepare_cached("BEGIN CONCURRENT").await?.execute(()).await?;
        match self {
            Self::Rows(rows) => {
                for row in rows {
                    insert(connection, *row).await?;
                }
            }
            Self::Deposit(row) => deposit(connection, row).await?,
            Self::Statements(statements) => {
                for statement in statements {
                    let parameters: Vec<TursoValue> = statement.parameters.iter().map(parameter).collect();
                    connection.prepare_cached(statement.sql).await?.execute(parameters).await?;
                }
            }
        }
        connection.prepare_cached("COMMIT").await?.execute(()).await?;
        Ok(())
    }
}

async fn deposit(connection: &Connection, row: Row) -> Result<(), TursoError> {
    let mut read = connection.prepare_cached(READ_BALANCE).await?;
    let balance: i64 = read.query_row([row.account()]).await?.get(0)?;
    let mut write = connection.prepare_cached(WRITE_BALANCE).await?;
    write.execute([row.account(), balance + 1]).await?;
    insert(connection, row).await
}

async fn insert(connection: &Connection, row: Row) -> Result<(), TursoError> {
    connection.prepare_cached(INSERT).await?.execute((row.client, row.sequence, TEXT)).await?;
    Ok(())
}

/// As its example of concurrent writes tells them.
fn is_retryable(error: &TursoError) -> bool {
    match error {
        TursoError::Busy(_) | TursoError::BusySnapshot(_) => true,
        TursoError::Error(message) => message.contains("conflict"),
        _ => false,
    }
}

fn parameter(value: &Value) -> TursoValue {
    match value {
        Value::Integer(value) => TursoValue::Integer(*value),
        Value::Text(value) => TursoValue::Text(value.clone()),
    }
}
