//! What a history is made of: who did what, when, and what it did or saw.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use solewriter::Lane;

/// The place of a write in the order of all writes, from 1; and of a state: that after this write.
pub(super) type Serial = u32;

/// Whose operation it is: the number of a task, or one of these.
pub(super) type Actor = u16;

/// Another process, with a plain connection.
pub(super) const FOREIGN: Actor = 1_000;

/// Nanoseconds on a clock that all processes share.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Operation {
    pub(super) invoked: u64,
    pub(super) completed: u64,
    pub(super) by: Actor,
    /// Its place among what its actor has sent.
    pub(super) number: u32,
    pub(super) lane: Lane,
    pub(super) did: Did,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Did {
    Wrote(Wrote),
    /// A write that was answered as not applied.
    Failed,
    Read(Read),
}

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Wrote {
    pub(super) serial: Serial,
    /// The group of its token; neither entries of imports nor other processes have one.
    pub(super) group: Option<u64>,
    /// The accounts that it has written, as it found them: the amount goes from the first to the second.
    pub(super) found: [Option<Account>; 2],
    pub(super) amount: i32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Read {
    pub(super) saw: Saw,
    /// The group of the token that it was to see.
    pub(super) after: Option<u64>,
    /// Which snapshot it was made in. It counts as made when the snapshot was taken.
    pub(super) snapshot: Option<u32>,
}

/// What the statements of one read have seen.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Saw {
    /// By the counter.
    pub(super) serial: Serial,
    /// By the newest row of the log.
    pub(super) newest: Serial,
    pub(super) accounts: [Account; 2],
    /// Of all balances; not every read adds them up.
    pub(super) sum: Option<i64>,
}

/// An account, and the write that has set it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) key: u16,
    pub(super) version: Serial,
    pub(super) balance: i32,
}

/// By which a row of the log names who has written it.
pub(super) fn id(by: Actor, number: u32) -> i64 {
    i64::from(by) << 32 | i64::from(number)
}

impl Operation {
    pub(super) fn id(&self) -> i64 {
        id(self.by, self.number)
    }

    pub(super) fn wrote(&self) -> Option<&Wrote> {
        match &self.did {
            Did::Wrote(wrote) => Some(wrote),
            _ => None,
        }
    }

    pub(super) fn read(&self) -> Option<&Read> {
        match &self.did {
            Did::Read(read) => Some(read),
            _ => None,
        }
    }

    /// The state that it made or saw.
    pub(super) fn serial(&self) -> Option<Serial> {
        match &self.did {
            Did::Wrote(wrote) => Some(wrote.serial),
            Did::Read(read) => Some(read.saw.serial),
            Did::Failed => None,
        }
    }
}
