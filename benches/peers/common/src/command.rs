//! The commands that clients send.

use crate::Error;
use crate::marketplace::Entry;
use crate::rows::{ITEMS, Row};
use crate::system::System;

/// One command of so many writes in a mix.
const MIXED_WRITE_EVERY: i64 = 10;

/// What a client sends, again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    Insert,
    InsertInClosure,
    Deposit,
    Read,
    /// Nine reads, then an insert.
    Mixed,
    /// Any entry of the catalogs of so many importers, with so many entries each.
    Rename {
        importers: i64,
        entries: i64,
    },
}

impl Command {
    /// Sends the command for the n-th time.
    pub(crate) async fn send<S: System>(self, system: &S, client: i64, n: i64) -> Result<(), Error> {
        match self {
            Self::Insert => system.insert(Row { client, sequence: n }).await,
            Self::InsertInClosure => system.insert_in_closure(Row { client, sequence: n }).await,
            Self::Deposit => system.deposit(Row { client, sequence: n }).await,
            Self::Read => read(system, client, n).await,
            Self::Mixed => match self.row(n) {
                Some(sequence) => system.insert(Row { client, sequence }).await,
                None => read(system, client, n).await,
            },
            Self::Rename { importers, entries } => {
                let entry = Entry { importer: n % importers, sequence: scattered(client, n) % entries };
                system.execute(entry.rename(format!("renamed-{n}"))).await
            }
        }
    }

    /// Which row of its client the n-th command writes, if it writes one that is looked for afterwards.
    pub(crate) fn row(self, n: i64) -> Option<i64> {
        match self {
            Self::Insert | Self::InsertInClosure | Self::Deposit => Some(n),
            Self::Mixed => (n % MIXED_WRITE_EVERY == MIXED_WRITE_EVERY - 1).then_some(n / MIXED_WRITE_EVERY),
            Self::Read | Self::Rename { .. } => None,
        }
    }
}

async fn read<S: System>(system: &S, client: i64, n: i64) -> Result<(), Error> {
    match system.read(scattered(client, n) % ITEMS).await? {
        0 => Err("an item has no text".into()),
        _ => Ok(()),
    }
}

/// A number from 0 that jumps about, the same in every run.
pub fn scattered(client: i64, n: i64) -> i64 {
    let mixed = (client.wrapping_mul(1_000_003).wrapping_add(n))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15_u64.cast_signed());
    (mixed >> 20).unsigned_abs() as i64
}
