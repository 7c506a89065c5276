//! Hands out connections, one for each command that runs; turso has no pool.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use peers_common::{Durability, Error, Setup};
use tokio::sync::{Semaphore, SemaphorePermit};
use turso::{Builder, Connection, Database};

/// Commands that run at the same time. With 512 of them inserts under FULL were ten times slower, in twice the memory.
const CONNECTIONS_MAX: usize = 64;

pub(crate) struct Connections {
    database: Database,
    durability: Durability,
    room: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Connections {
    pub(crate) async fn open(setup: &Setup) -> Result<Self, Error> {
        let path = setup.path.to_str().ok_or("turso wants a path that is text")?;
        let database = Builder::new_local(path).build().await?;
        database.connect()?.pragma_update("journal_mode", "'mvcc'").await?;
        Ok(Self {
            database,
            durability: setup.durability,
            room: Semaphore::new(CONNECTIONS_MAX),
            idle: Mutex::new(Vec::new()),
        })
    }

    /// A connection that nobody else uses.
    pub(crate) async fn get(&self) -> Result<InUse<'_>, Error> {
        let permit = self.room.acquire().await?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok(InUse { connections: self, connection: Some(connection), _permit: permit })
    }

    /// What the systems on SQLite set, as far as turso knows it.
    async fn connect(&self) -> Result<Connection, Error> {
        let connection = self.database.connect()?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update("synchronous", self.durability.pragma()).await?;
        connection.pragma_update("foreign_keys", "ON").await?;
        connection.pragma_update("temp_store", "MEMORY").await?;
        connection.pragma_update("cache_size", -65536).await?;
        Ok(connection)
    }
}

/// A connection that goes back when it is dropped.
pub(crate) struct InUse<'c> {
    connections: &'c Connections,
    /// `None` once it is on its way back.
    connection: Option<Connection>,
    _permit: SemaphorePermit<'c>,
}

impl Deref for InUse<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("it is there until the drop"),
        }
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut idle = self.connections.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.connection.take());
    }
}
