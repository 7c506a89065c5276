//! async-sqlite: a `Client`, one connection on its own thread, that writes, and a `Pool` of them that reads.

use async_sqlite::{Client, ClientBuilder, JournalMode, Pool, PoolBuilder};
use peers_common::{Error, Setup};

use crate::peer::Connections;
use crate::steps;

pub(crate) struct AsyncSqlite {
    writer: Client,
    readers: Option<Pool>,
}

impl Connections for AsyncSqlite {
    async fn open(setup: &Setup) -> Result<Self, Error> {
        let durability = setup.durability;
        let writer = ClientBuilder::new().path(&setup.path).journal_mode(JournalMode::Wal).open().await?;
        writer.conn(move |connection| steps::configure(connection, durability)).await?;
        let readers = match setup.readers {
            0 => None,
            readers => {
                let pool = PoolBuilder::new().path(&setup.path).num_conns(readers).open().await?;
                let configured =
                    pool.conn_for_each(move |connection| steps::configure(connection, durability));
                for result in configured.await {
                    result?;
                }
                Some(pool)
            }
        };
        Ok(Self { writer, readers })
    }

    async fn write<F>(&self, closure: F) -> Result<(), Error>
    where
        F: FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<()> + Send + 'static,
    {
        Ok(self.writer.conn_mut(closure).await?)
    }

    async fn read<F>(&self, closure: F) -> Result<usize, Error>
    where
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<usize> + Send + 'static,
    {
        match &self.readers {
            Some(pool) => Ok(pool.conn(closure).await?),
            None => Ok(self.writer.conn(closure).await?),
        }
    }

    async fn close(self) -> Result<(), Error> {
        if let Some(pool) = self.readers {
            pool.close().await?;
        }
        Ok(self.writer.close().await?)
    }
}
