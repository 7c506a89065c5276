//! deadpool-sqlite: a pool whose connections run closures on tokio's blocking threads; any of them writes.

use std::path::PathBuf;
use std::time::Duration;

use deadpool_sqlite::{Config, Hook, HookError, Pool, Runtime};
use peers_common::{Error, Setup};

use crate::peer::Connections;
use crate::steps;

/// What the other pools have by default; its own default follows the number of cores.
const CONNECTIONS: usize = 10;

pub(crate) struct Deadpool {
    pool: Pool,
    wal: PathBuf,
}

impl Connections for Deadpool {
    async fn open(setup: &Setup) -> Result<Self, Error> {
        let durability = setup.durability;
        let configure = Hook::async_fn(move |connection, _| {
            let configured = connection.interact(move |connection| steps::configure(connection, durability));
            Box::pin(async move {
                let configured = configured.await.map_err(|error| HookError::message(error.to_string()))?;
                configured.map_err(HookError::Backend)
            })
        });
        let pool = Config::new(&setup.path).builder(Runtime::Tokio1)?;
        let pool = pool.max_size(CONNECTIONS).post_create(configure).build()?;
        Ok(Self { pool, wal: setup.wal() })
    }

    async fn write<F>(&self, closure: F) -> Result<(), Error>
    where
        F: FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<()> + Send + 'static,
    {
        let connection = self.pool.get().await?;
        Ok(connection.interact(closure).await.map_err(|error| error.to_string())??)
    }

    async fn read<F>(&self, closure: F) -> Result<usize, Error>
    where
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<usize> + Send + 'static,
    {
        let connection = self.pool.get().await?;
        Ok(connection
            .interact(|connection| closure(connection))
            .await
            .map_err(|error| error.to_string())??)
    }

    async fn close(self) -> Result<(), Error> {
        self.pool.close();
        // It closes the connections in the background, and the last of them removes the WAL after its checkpoint.
        while self.wal.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}
