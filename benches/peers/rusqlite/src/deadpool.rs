//! deadpool-sqlite: a pool whose connections run closures on tokio's blocking threads; any of them writes.

use deadpool_sqlite::{Config, Hook, HookError, Pool, Runtime};
use peers_common::{Error, Setup};

use crate::peer::Connections;
use crate::steps;

/// What the other pools have by default; its own default follows the number of cores.
const CONNECTIONS: usize = 10;

pub(crate) struct Deadpool(Pool);

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
        Ok(Self(pool.max_size(CONNECTIONS).post_create(configure).build()?))
    }

    async fn write<F>(&self, closure: F) -> Result<(), Error>
    where
        F: FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<()> + Send + 'static,
    {
        let connection = self.0.get().await?;
        Ok(connection.interact(closure).await.map_err(|error| error.to_string())??)
    }

    async fn read<F>(&self, closure: F) -> Result<usize, Error>
    where
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<usize> + Send + 'static,
    {
        let connection = self.0.get().await?;
        Ok(connection
            .interact(|connection| closure(connection))
            .await
            .map_err(|error| error.to_string())??)
    }

    async fn close(self) -> Result<(), Error> {
        // Dropped connections are closed later, all at once, and none of them may find itself the last, which has to
        // run the checkpoint. So each is closed in its turn, and leaves an empty one in its place.
        let mut closed = Vec::new();
        for _ in 0..self.0.status().size {
            let connection = self.0.get().await?;
            let close = connection.interact(|connection| {
                let open = std::mem::replace(connection, rusqlite::Connection::open_in_memory()?);
                open.close().map_err(|(_, error)| error)
            });
            close.await.map_err(|error| error.to_string())??;
            closed.push(connection);
        }
        Ok(())
    }
}
