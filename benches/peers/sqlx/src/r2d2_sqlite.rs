//! r2d2_sqlite: a pool of 10 connections, its default, each used on one of tokio's blocking threads; any of them writes.

use ::r2d2_sqlite::SqliteConnectionManager;
use peers_common::{Error, Setup};
use r2d2::Pool;

use crate::peer::Connections;
use crate::steps;

pub(crate) struct R2d2(Pool<SqliteConnectionManager>);

impl Connections for R2d2 {
    async fn open(setup: &Setup) -> Result<Self, Error> {
        let durability = setup.durability;
        let manager = SqliteConnectionManager::file(&setup.path)
            .with_init(move |connection| steps::configure(connection, durability));
        let pool = tokio::task::spawn_blocking(move || Pool::new(manager)).await??;
        Ok(Self(pool))
    }

    async fn write<F>(&self, closure: F) -> Result<(), Error>
    where
        F: FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<()> + Send + 'static,
    {
        self.on_blocking_thread(closure).await
    }

    async fn read<F>(&self, closure: F) -> Result<usize, Error>
    where
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<usize> + Send + 'static,
    {
        self.on_blocking_thread(|connection| closure(connection)).await
    }

    async fn close(self) -> Result<(), Error> {
        // The pool closes its connections one after the other, the last of which runs the checkpoint.
        Ok(tokio::task::spawn_blocking(move || drop(self.0)).await?)
    }
}

impl R2d2 {
    async fn on_blocking_thread<F, T>(&self, closure: F) -> Result<T, Error>
    where
        F: FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let pool = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut connection = pool.get()?;
            Ok::<_, Error>(closure(&mut connection)?)
        });
        done.await?
    }
}
