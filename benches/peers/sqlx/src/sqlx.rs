//! sqlx: one pool of 10 connections for everything, and the writer pool of one connection beside a pool of readers.

use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use ::sqlx::query::Query;
use ::sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use ::sqlx::{QueryBuilder, Sqlite};
use peers_common::rows::{INSERT, READ, READ_BALANCE, Row, TEXT, WRITE_BALANCE};
use peers_common::{Durability, Error, IMPORT_BATCH, Setup, Statement, System, Value};

const POOL: u32 = 10;

/// How many connections there are, and who writes.
pub(crate) trait Shape: Send + Sync + 'static {
    fn open(setup: &Setup) -> impl Future<Output = Result<Pools, Error>> + Send;
}

pub(crate) struct Pools {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// Every connection of a pool writes and reads.
pub(crate) struct All;

impl Shape for All {
    async fn open(setup: &Setup) -> Result<Pools, Error> {
        let pool = SqlitePoolOptions::new().max_connections(POOL).connect_with(options(setup)).await?;
        Ok(Pools { writer: pool.clone(), readers: pool })
    }
}

/// One connection writes, others only read.
pub(crate) struct One;

impl Shape for One {
    async fn open(setup: &Setup) -> Result<Pools, Error> {
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options(setup)).await?;
        let readers = match u32::try_from(setup.readers)? {
            0 => writer.clone(),
            readers => {
                let options = options(setup).read_only(true);
                SqlitePoolOptions::new().max_connections(readers).connect_with(options).await?
            }
        };
        Ok(Pools { writer, readers })
    }
}

fn options(setup: &Setup) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(&setup.path)
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(10))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(match setup.durability {
            Durability::Full => SqliteSynchronous::Full,
            Durability::Normal => SqliteSynchronous::Normal,
        })
        .foreign_keys(true)
        .statement_cache_capacity(128)
        .pragma("temp_store", "MEMORY")
        .pragma("cache_size", "-65536")
        .pragma("mmap_size", "268435456")
}

pub(crate) struct Sqlx<S> {
    pools: Pools,
    shape: PhantomData<S>,
}

impl<S: Shape> System for Sqlx<S> {
    async fn open(setup: &Setup) -> Result<Self, Error> {
        Ok(Self { pools: S::open(setup).await?, shape: PhantomData })
    }

    async fn run_script(&self, sql: &'static str) -> Result<(), Error> {
        ::sqlx::raw_sql(sql).execute(&self.pools.writer).await?;
        Ok(())
    }

    async fn insert(&self, row: Row) -> Result<(), Error> {
        insert(row).execute(&self.pools.writer).await?;
        Ok(())
    }

    async fn deposit(&self, row: Row) -> Result<(), Error> {
        let mut transaction = self.pools.writer.begin_with("BEGIN IMMEDIATE").await?;
        let balance: i64 =
            ::sqlx::query_scalar(READ_BALANCE).bind(row.account()).fetch_one(&mut *transaction).await?;
        let write = ::sqlx::query(WRITE_BALANCE).bind(row.account()).bind(balance + 1);
        write.execute(&mut *transaction).await?;
        insert(row).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    async fn read(&self, id: i64) -> Result<usize, Error> {
        let text: String = ::sqlx::query_scalar(READ).bind(id).fetch_one(&self.pools.readers).await?;
        Ok(text.len())
    }

    async fn execute(&self, statement: Statement) -> Result<(), Error> {
        query(statement).execute(&self.pools.writer).await?;
        Ok(())
    }

    async fn transaction(&self, statements: Vec<Statement>) -> Result<(), Error> {
        let mut transaction = self.pools.writer.begin_with("BEGIN IMMEDIATE").await?;
        for statement in statements {
            query(statement).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn import(&self, mut rows: impl Iterator<Item = Row> + Send + 'static) -> Result<(), Error> {
        loop {
            let batch: Vec<Row> = rows.by_ref().take(IMPORT_BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            // One statement for all of them, as its documentation advises for many rows.
            let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO events (client, sequence, text) ");
            insert.push_values(batch, |mut values, row| {
                values.push_bind(row.client).push_bind(row.sequence).push_bind(TEXT);
            });
            insert.build().execute(&self.pools.writer).await?;
        }
    }

    async fn close(self) -> Result<(), Error> {
        self.pools.readers.close().await;
        self.pools.writer.close().await;
        Ok(())
    }

    async fn pairs(path: &Path, sql: &'static str) -> Result<Vec<(i64, i64)>, Error> {
        Ok(crate::steps::pairs(path, sql)?)
    }
}

fn insert(row: Row) -> Query<'static, Sqlite, SqliteArguments> {
    ::sqlx::query(INSERT).bind(row.client).bind(row.sequence).bind(TEXT)
}

fn query(statement: Statement) -> Query<'static, Sqlite, SqliteArguments> {
    let query = ::sqlx::query(statement.sql);
    statement.parameters.into_iter().fold(query, |query, parameter| match parameter {
        Value::Integer(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
    })
}
