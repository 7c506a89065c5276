//! Judges a history: sorts it, and goes through it a few times.
//!
//! The counter puts all writes in one order, so nothing has to be searched for: each promise is that some order in
//! the history agrees with that one.

use crate::common::proof::{Tally, Wrong};

use super::bank::{ACCOUNTS, BALANCE, Stored};
use super::operation::{Account, FOREIGN, Operation, Read, Serial, Wrote};

/// Everything that was done with one database, and what it holds in the end.
pub(super) struct History {
    pub(super) operations: Vec<Operation>,
    pub(super) stored: Stored,
}

/// The acknowledged writes by serial, as places in the history; nobody has made that before the first.
pub(super) struct Order(Vec<Option<u32>>);

pub(super) type Check = fn(&History, &Order, &mut Tally);

/// Every check but that of the order itself.
pub(super) const CHECKS: [Check; 7] =
    [what_is_stored, each_write, each_read, real_time, order_sent, tokens, snapshots];

pub(super) fn check(history: &History) -> Tally {
    let mut tally = Tally::default();
    tally.cases = history.operations.len() as u64;
    let order = order(history, &mut tally);
    for check in CHECKS {
        check(history, &order, &mut tally);
    }
    tally
}

/// The order of all writes; no two have the same place.
pub(super) fn order(history: &History, tally: &mut Tally) -> Order {
    let History { operations, stored } = history;
    let acknowledged = operations.iter().filter_map(Operation::wrote).map(|wrote| wrote.serial);
    let last = acknowledged.max().unwrap_or(0).max(stored.serial);
    let mut order = vec![None; last as usize + 1];
    for (place, operation) in operations.iter().enumerate() {
        if let Some(wrote) = operation.wrote() {
            let earlier = order[wrote.serial as usize].replace(place as u32);
            tally.check(earlier.is_none() && wrote.serial > 0, Wrong::Broken, || {
                format!("another write has the same serial as {operation:?}")
            });
        }
    }
    Order(order)
}

impl Order {
    fn get<'h>(&self, history: &'h History, serial: Serial) -> Option<&'h Operation> {
        let place = self.0.get(serial as usize).copied().flatten();
        place.map(|place| &history.operations[place as usize])
    }

    fn last(&self) -> Serial {
        (self.0.len() - 1) as Serial
    }

    /// The writes, from the first to the last; `None` where nobody was told of it.
    fn writes<'h>(&self, history: &'h History) -> impl Iterator<Item = Option<(&'h Operation, &'h Wrote)>> {
        let writes = (1..=self.last()).map(|serial| self.get(history, serial));
        writes.map(|write| write.and_then(|operation| Some((operation, operation.wrote()?))))
    }
}

/// What was acknowledged is in the file, and nothing else is.
pub(super) fn what_is_stored(history: &History, order: &Order, tally: &mut Tally) {
    let stored = &history.stored;
    let mut log = stored.log.iter().copied().peekable();
    for serial in 1..=order.last() {
        let row = log.next_if(|(stored, _)| *stored == serial).map(|(_, id)| id);
        let told = order.get(history, serial);
        match (told, row) {
            (Some(told), row) => {
                tally.check(row == Some(told.id()) && serial <= stored.serial, Wrong::Lost, || {
                    format!("{row:?} is stored instead of {told:?}")
                });
            }
            (None, Some(id)) => tally.check(false, Wrong::Ghost, || {
                let failed = history.operations.iter().find(|operation| operation.id() == id);
                format!("{id} is stored as {serial}, and its answer was {failed:?}")
            }),
            (None, None) => tally.check(false, Wrong::Half, || {
                format!("{serial} was counted, of {}, and nothing else is stored of it", stored.serial)
            }),
        }
    }
    for (serial, id) in log {
        tally.wrong(Wrong::Half, || format!("{id} is stored as {serial}, which was not counted"));
    }
}

/// The accounts after each write.
struct Accounts(Vec<Account>);

impl Accounts {
    fn new() -> Self {
        Self((0..ACCOUNTS).map(|key| Account { key, version: 0, balance: BALANCE }).collect())
    }

    fn holds(&self, account: Account) -> bool {
        self.0.get(usize::from(account.key)) == Some(&account)
    }

    fn apply(&mut self, wrote: &Wrote) {
        let amounts = [-wrote.amount, wrote.amount];
        for (found, amount) in wrote.found.iter().flatten().zip(amounts) {
            let account = &mut self.0[usize::from(found.key)];
            account.version = wrote.serial;
            account.balance += amount;
        }
    }
}

/// Each write has found its accounts as the write before it has left them, and so they are in the end.
pub(super) fn each_write(history: &History, order: &Order, tally: &mut Tally) {
    let mut accounts = Accounts::new();
    for (operation, wrote) in order.writes(history).flatten() {
        for found in wrote.found.iter().flatten() {
            tally.check(accounts.holds(*found), Wrong::Broken, || {
                let instead = accounts.0.get(usize::from(found.key));
                format!("{found:?} was found instead of {instead:?}: {operation:?}")
            });
        }
        accounts.apply(wrote);
    }
    for account in &history.stored.accounts {
        tally.check(accounts.holds(*account), Wrong::Lost, || {
            format!("{account:?} is stored instead of {:?}", accounts.0[usize::from(account.key)])
        });
    }
}

/// Each read has seen what all writes up to some serial have left, and nothing of any other.
pub(super) fn each_read(history: &History, order: &Order, tally: &mut Tally) {
    let reads = history.operations.iter().filter_map(|operation| Some((operation, operation.read()?)));
    let mut reads: Vec<(Serial, &Operation, &Read)> =
        reads.map(|(operation, read)| (read.saw.serial, operation, read)).collect();
    reads.sort_by_key(|(serial, ..)| *serial);
    let mut reads = reads.into_iter().peekable();
    let mut accounts = Accounts::new();
    let sum = i64::from(ACCOUNTS) * i64::from(BALANCE);
    for serial in 0..=order.last() {
        let write = order.get(history, serial).and_then(Operation::wrote);
        if let Some(wrote) = write {
            accounts.apply(wrote);
        }
        let group = write.and_then(|wrote| wrote.group);
        while let Some((_, operation, read)) = reads.next_if(|(saw, ..)| *saw == serial) {
            let saw = &read.saw;
            for account in saw.accounts {
                tally.check(accounts.holds(account), Wrong::Broken, || {
                    format!(
                        "{account:?} was seen instead of {:?}: {operation:?}",
                        accounts.0[usize::from(account.key)]
                    )
                });
            }
            tally.check(saw.newest == serial, Wrong::Half, || {
                format!("counted and not logged: {operation:?}")
            });
            if let Some(seen) = saw.sum {
                tally.check(seen == sum, Wrong::Half, || format!("a sum of {seen}: {operation:?}"));
            }
            let next = order.get(history, serial + 1).and_then(Operation::wrote);
            let is_whole = group.is_none() || group != next.and_then(|wrote| wrote.group);
            tally.check(is_whole, Wrong::Half, || format!("a part of a group was seen: {operation:?}"));
        }
    }
    for (_, operation, _) in reads {
        tally.wrong(Wrong::Lost, || format!("what was seen was never stored: {operation:?}"));
    }
}

/// What begins after something else has ended has seen it, and comes after it.
pub(super) fn real_time(history: &History, _: &Order, tally: &mut Tally) {
    let ranked = || history.operations.iter().filter_map(|operation| Some((operation, operation.serial()?)));
    let mut begins: Vec<(u64, &Operation, Serial)> =
        ranked().map(|(operation, serial)| (operation.invoked, operation, serial)).collect();
    let mut ends: Vec<(u64, &Operation, Serial)> =
        ranked().map(|(operation, serial)| (operation.completed, operation, serial)).collect();
    begins.sort_by_key(|(at, ..)| *at);
    ends.sort_by_key(|(at, ..)| *at);
    let mut ends = ends.into_iter().peekable();
    let mut newest: Option<(Serial, &Operation)> = None;
    for (begin, operation, serial) in begins {
        while let Some((_, ended, serial)) = ends.next_if(|(end, ..)| *end < begin) {
            if newest.is_none_or(|(newest, _)| serial > newest) {
                newest = Some((serial, ended));
            }
        }
        let Some((newest, ended)) = newest else { continue };
        let follows = if operation.wrote().is_some() { serial > newest } else { serial >= newest };
        tally.check(follows, Wrong::Broken, || format!("{operation:?} began after the end of {ended:?}"));
    }
}

/// What one actor has sent into one lane has taken effect in that order.
pub(super) fn order_sent(history: &History, _: &Order, tally: &mut Tally) {
    let writes = history.operations.iter().filter_map(|operation| Some((operation, operation.wrote()?)));
    let mut sent: Vec<_> = writes
        .map(|(operation, wrote)| {
            ((operation.by, operation.lane as u8), operation.number, wrote.serial, operation)
        })
        .collect();
    sent.sort_by_key(|(way, number, ..)| (*way, *number));
    for pair in sent.windows(2) {
        let [(way, _, serial, operation), (next_way, _, next_serial, next)] = pair else { continue };
        if way == next_way {
            tally.check(serial < next_serial, Wrong::Broken, || {
                format!("{next:?} was sent after {operation:?}")
            });
        }
    }
}

/// Tokens grow with the serials, one group is one stretch of them, and what was read after a token holds its group.
pub(super) fn tokens(history: &History, order: &Order, tally: &mut Tally) {
    // The last write of each group.
    let mut groups: Vec<(u64, Serial)> = Vec::new();
    let mut foreign_since = false;
    for (operation, wrote) in order.writes(history).flatten() {
        foreign_since |= operation.by == FOREIGN;
        let Some(group) = wrote.group else { continue };
        let last = groups.last().copied();
        let grows = last.is_none_or(|(last, _)| group > last || (group == last && !foreign_since));
        tally.check(grows, Wrong::Broken, || format!("after a write of {last:?} came {operation:?}"));
        foreign_since = false;
        match groups.last_mut() {
            Some((last, serial)) if group <= *last => *serial = wrote.serial,
            _ => groups.push((group, wrote.serial)),
        }
    }
    for operation in &history.operations {
        let Some(Read { saw, after: Some(after), .. }) = operation.read() else { continue };
        let place = groups.partition_point(|(group, _)| group <= after);
        let held = place.checked_sub(1).map_or(0, |last| groups[last].1);
        tally.check(saw.serial >= held, Wrong::Broken, || {
            format!("{held} is of the group of the token: {operation:?}")
        });
    }
}

/// All reads of a snapshot have seen one state.
pub(super) fn snapshots(history: &History, _: &Order, tally: &mut Tally) {
    let reads = history.operations.iter().filter_map(Operation::read);
    let mut seen: Vec<(u32, Serial)> =
        reads.filter_map(|read| Some((read.snapshot?, read.saw.serial))).collect();
    seen.sort_unstable();
    for pair in seen.windows(2) {
        let [(snapshot, serial), (next_snapshot, next_serial)] = pair else { continue };
        if snapshot == next_snapshot {
            tally.check(serial == next_serial, Wrong::Broken, || {
                format!("snapshot {snapshot} has seen {serial} and {next_serial}")
            });
        }
    }
}
