//! tokio-rusqlite: a thread for each connection. One writes; it has no pool, so reads take turns on the others.

use std::sync::atomic::{AtomicUsize, Ordering};

use peers_common::{Error, Setup};

use crate::peer::Connections;
use crate::steps;

pub(crate) struct TokioRusqlite {
    writer: tokio_rusqlite::Connection,
    readers: Vec<tokio_rusqlite::Connection>,
    next: AtomicUsize,
}

impl Connections for TokioRusqlite {
    async fn open(setup: &Setup) -> Result<Self, Error> {
        let writer = open(setup).await?;
        let mut readers = Vec::with_capacity(setup.readers);
        for _ in 0..setup.readers {
            readers.push(open(setup).await?);
        }
        Ok(Self { writer, readers, next: AtomicUsize::new(0) })
    }

    async fn write<F>(&self, closure: F) -> Result<(), Error>
    where
        F: FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<()> + Send + 'static,
    {
        Ok(self.writer.call(closure).await?)
    }

    async fn read<F>(&self, closure: F) -> Result<usize, Error>
    where
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<usize> + Send + 'static,
    {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.readers.len().max(1);
        let reader = self.readers.get(number).unwrap_or(&self.writer);
        Ok(reader.call(|connection| closure(connection)).await?)
    }

    async fn close(self) -> Result<(), Error> {
        for connection in self.readers.into_iter().chain([self.writer]) {
            connection.close().await?;
        }
        Ok(())
    }
}

async fn open(setup: &Setup) -> Result<tokio_rusqlite::Connection, Error> {
    let connection = tokio_rusqlite::Connection::open(&setup.path).await?;
    let durability = setup.durability;
    connection.call(move |connection| steps::configure(connection, durability)).await?;
    Ok(connection)
}
