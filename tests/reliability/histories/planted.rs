//! Canaries of the checker: histories that are right, and the same with one thing wrong, which must be found.

use fastrand::Rng;
use solewriter::Lane;

use crate::common::proof::{Tally, Wrong};

use super::bank::{ACCOUNTS, BALANCE, Stored};
use super::checker::{self, Check, History};
use super::operation::{Account, Actor, Did, FOREIGN, Operation, Read, Saw, Serial, Wrote};

const ACTORS: Actor = 6;

/// Does something to a history.
type Plant = fn(&mut History, &mut Rng);

/// Every promise, broken: what is done to the history, which check must find it, and what it calls it.
const PLANTS: [(&str, Plant, Check, Wrong); 24] = [
    ("an acknowledged write is not stored", lose, checker::what_is_stored, Wrong::Lost),
    ("it is counted, and that is all", count_only, checker::what_is_stored, Wrong::Half),
    ("it is logged, and that is all", log_only, checker::what_is_stored, Wrong::Half),
    ("a write that failed is stored", store_failed, checker::what_is_stored, Wrong::Ghost),
    ("one write in the place of another", store_another, checker::what_is_stored, Wrong::Lost),
    ("two writes with one serial", repeat_serial, check_order, Wrong::Broken),
    ("a write that has found an old version", find_old_version, checker::each_write, Wrong::Broken),
    ("a write that has found an old balance", find_old_balance, checker::each_write, Wrong::Broken),
    ("an account that was not stored", store_old_account, checker::each_write, Wrong::Lost),
    ("a read with one new account", see_new_account, checker::each_read, Wrong::Broken),
    ("a read with the log of another state", see_other_log, checker::each_read, Wrong::Half),
    ("a read of one half of a transfer", see_other_sum, checker::each_read, Wrong::Half),
    ("a read of a part of a group", see_part_of_group, checker::each_read, Wrong::Half),
    ("a read of what was never there", see_never_stored, checker::each_read, Wrong::Lost),
    ("a read of an old state", read_late, checker::real_time, Wrong::Broken),
    ("a read of the future", read_early, checker::real_time, Wrong::Broken),
    ("reads that go back", swap_reads, checker::real_time, Wrong::Broken),
    ("a write before one that had ended", write_late, checker::real_time, Wrong::Broken),
    ("a write that was seen before it began", write_after_seen, checker::real_time, Wrong::Broken),
    ("pipelined writes that change places", swap_sent, checker::order_sent, Wrong::Broken),
    ("tokens that change places", swap_groups, checker::tokens, Wrong::Broken),
    ("a foreign write within a group", surround_foreign, checker::tokens, Wrong::Broken),
    ("a read that does not see its token", read_before_token, checker::tokens, Wrong::Broken),
    ("a snapshot of two states", see_two_states, checker::snapshots, Wrong::Broken),
];

#[test]
fn a_right_history_is_found_right() {
    for seed in 0..50 {
        let history = history(&mut Rng::with_seed(seed));
        let tally = checker::check(&history);
        assert_eq!(tally.wrongs(), 0, "with seed {seed}: {tally:?}");
        assert!(tally.checks > tally.cases);
    }
}

#[test]
fn whatever_is_planted_is_found() {
    for (name, plant, check, how) in PLANTS {
        for seed in 0..50 {
            let rng = &mut Rng::with_seed(seed);
            let mut history = history(rng);
            plant(&mut history, rng);
            let mut tally = Tally::default();
            let order = checker::order(&history, &mut Tally::default());
            check(&history, &order, &mut tally);
            assert!(tally.count(how) > 0, "{name}, with seed {seed}: {tally:?}");
            assert!(checker::check(&history).wrongs() > 0, "{name}, with seed {seed}");
        }
    }
}

fn check_order(history: &History, _: &checker::Order, tally: &mut Tally) {
    checker::order(history, tally);
}

/// A history as it should be: each operation takes effect at an instant of its own, and lasts for a while around it.
fn history(rng: &mut Rng) -> History {
    let accounts = (0..ACCOUNTS).map(|key| Account { key, version: 0, balance: BALANCE }).collect();
    let stored = Stored { serial: 0, log: Vec::new(), accounts };
    let history = History { operations: Vec::new(), stored };
    let mut world =
        World { rng, history, at: 10_000, numbers: [0; 7], group: 0, is_open: false, snapshots: 0 };
    for _ in 0..500 {
        world.act();
    }
    world.read(None, None);
    world.history
}

struct World<'r> {
    rng: &'r mut Rng,
    history: History,
    at: u64,
    numbers: [u32; ACTORS as usize + 1],
    group: u64,
    /// Whether the group may get another write.
    is_open: bool,
    snapshots: u32,
}

impl World<'_> {
    fn act(&mut self) {
        match self.rng.u8(0..10) {
            0..5 => {
                if !(self.is_open && self.rng.bool()) {
                    self.group += 1;
                }
                self.is_open = true;
                let by = self.rng.u16(0..ACTORS);
                self.write(by, Some(self.group));
            }
            5 => {
                self.is_open = false;
                self.write(FOREIGN, None);
            }
            6 => {
                let by = self.rng.u16(0..ACTORS);
                self.note(by, Lane::Bulk, Did::Failed);
            }
            7..9 => {
                let after = self.rng.bool().then(|| self.rng.u64(0..=self.group));
                self.read(after, None);
            }
            _ => {
                self.snapshots += 1;
                for _ in 0..3 {
                    self.read(None, Some(self.snapshots));
                }
                // They count as made when it was taken.
                let reads = self.history.operations.len() - 3;
                let Operation { invoked, completed, .. } = self.history.operations[reads];
                for operation in &mut self.history.operations[reads..] {
                    (operation.invoked, operation.completed) = (invoked, completed);
                }
            }
        }
    }

    fn note(&mut self, by: Actor, lane: Lane, did: Did) -> i64 {
        self.at += 1_000;
        let (invoked, completed) = (self.at - self.rng.u64(0..4_000), self.at + self.rng.u64(0..4_000));
        let number = &mut self.numbers[usize::from(by.min(ACTORS))];
        let operation = Operation { invoked, completed, by, number: *number, lane, did };
        *number += 1;
        self.history.operations.push(operation);
        operation.id()
    }

    fn write(&mut self, by: Actor, group: Option<u64>) {
        let lane = Lane::ALL[self.rng.usize(0..3)];
        let from = self.rng.u16(0..ACCOUNTS);
        let to = (from + self.rng.u16(1..ACCOUNTS)) % ACCOUNTS;
        let amount = self.rng.i32(1..100);
        let stored = &mut self.history.stored;
        stored.serial += 1;
        let serial = stored.serial;
        let found = [(from, -amount), (to, amount)].map(|(key, change)| {
            let account = &mut stored.accounts[usize::from(key)];
            let found = *account;
            *account = Account { key, version: serial, balance: found.balance + change };
            Some(found)
        });
        let id = self.note(by, lane, Did::Wrote(Wrote { serial, group, found, amount }));
        self.history.stored.log.push((serial, id));
    }

    fn read(&mut self, after: Option<u64>, snapshot: Option<u32>) {
        self.is_open = false;
        let by = self.rng.u16(0..ACTORS);
        let Stored { serial, accounts, .. } = &self.history.stored;
        let accounts = [0; 2].map(|_| accounts[self.rng.usize(0..accounts.len())]);
        let sum = Some(i64::from(ACCOUNTS) * i64::from(BALANCE));
        let saw = Saw { serial: *serial, newest: *serial, accounts, sum };
        self.note(by, Lane::default(), Did::Read(Read { saw, after, snapshot }));
    }
}

/// The places of the operations that are of some kind.
fn places(history: &History, is: impl Fn(&Operation) -> bool) -> Vec<usize> {
    (0..history.operations.len()).filter(|place| is(&history.operations[*place])).collect()
}

fn any(places: &[usize], rng: &mut Rng) -> usize {
    places[rng.usize(0..places.len())]
}

fn writes(history: &History) -> Vec<usize> {
    places(history, |operation| operation.wrote().is_some())
}

fn wrote(history: &mut History, place: usize) -> &mut Wrote {
    match &mut history.operations[place].did {
        Did::Wrote(wrote) => wrote,
        other => panic!("{other:?}"),
    }
}

fn reads(history: &History) -> Vec<usize> {
    places(history, |operation| operation.read().is_some_and(|read| read.snapshot.is_none()))
}

fn read(history: &mut History, place: usize) -> &mut Read {
    match &mut history.operations[place].did {
        Did::Read(read) => read,
        other => panic!("{other:?}"),
    }
}

fn any_read<'h>(history: &'h mut History, rng: &mut Rng) -> &'h mut Saw {
    let place = any(&reads(history), rng);
    &mut read(history, place).saw
}

fn any_found<'h>(history: &'h mut History, rng: &mut Rng) -> &'h mut Account {
    let place = any(&writes(history), rng);
    wrote(history, place).found[rng.usize(0..2)].as_mut().unwrap()
}

/// Two places of these in a row in the history whose serials differ.
fn two(history: &History, places: &[usize], rng: &mut Rng) -> (usize, usize) {
    loop {
        let first = rng.usize(0..places.len() - 1);
        let pair = (places[first], places[first + 1]);
        let serials = (history.operations[pair.0].serial(), history.operations[pair.1].serial());
        if serials.0 != serials.1 {
            return pair;
        }
    }
}

/// One of the first half, so that there is much after it.
fn any_early(places: &[usize], rng: &mut Rng) -> usize {
    any(&places[..places.len() / 2], rng)
}

fn lose(history: &mut History, rng: &mut Rng) {
    let row = rng.usize(0..history.stored.log.len());
    history.stored.log.remove(row);
}

fn count_only(history: &mut History, _: &mut Rng) {
    history.stored.serial += 1;
}

fn log_only(history: &mut History, _: &mut Rng) {
    let next = history.stored.serial + 1;
    history.stored.log.push((next, -1));
}

fn store_failed(history: &mut History, rng: &mut Rng) {
    let failed = any(&places(history, |operation| matches!(operation.did, Did::Failed)), rng);
    let id = history.operations[failed].id();
    history.stored.serial += 1;
    history.stored.log.push((history.stored.serial, id));
}

fn store_another(history: &mut History, rng: &mut Rng) {
    let row = rng.usize(0..history.stored.log.len());
    history.stored.log[row].1 = -1;
}

fn repeat_serial(history: &mut History, rng: &mut Rng) {
    let (first, second) = two(history, &writes(history), rng);
    wrote(history, second).serial = wrote(history, first).serial;
}

fn find_old_version(history: &mut History, rng: &mut Rng) {
    any_found(history, rng).version ^= 1;
}

fn find_old_balance(history: &mut History, rng: &mut Rng) {
    any_found(history, rng).balance -= 1;
}

fn store_old_account(history: &mut History, rng: &mut Rng) {
    let key = rng.usize(0..history.stored.accounts.len());
    history.stored.accounts[key].version ^= 1;
}

fn see_new_account(history: &mut History, rng: &mut Rng) {
    any_read(history, rng).accounts[1].version += 1;
}

fn see_other_log(history: &mut History, rng: &mut Rng) {
    any_read(history, rng).newest += 1;
}

fn see_other_sum(history: &mut History, rng: &mut Rng) {
    *any_read(history, rng).sum.as_mut().unwrap() -= 1;
}

fn see_part_of_group(history: &mut History, rng: &mut Rng) {
    let writes = writes(history);
    let group = |place: usize| history.operations[place].wrote().and_then(|wrote| wrote.group);
    let parts = writes.windows(2).filter(|pair| group(pair[0]).is_some() && group(pair[0]) == group(pair[1]));
    let parts: Vec<usize> = parts.map(|pair| pair[0]).collect();
    let part = any(&parts, rng);
    let serial: Serial = wrote(history, part).serial;
    let saw = any_read(history, rng);
    (saw.serial, saw.newest) = (serial, serial);
}

fn see_never_stored(history: &mut History, rng: &mut Rng) {
    let next = history.stored.serial + 1;
    any_read(history, rng).serial = next;
}

fn move_to(history: &mut History, place: usize, at: u64) {
    let operation = &mut history.operations[place];
    (operation.invoked, operation.completed) = (at, at + 1);
}

fn end(history: &History) -> u64 {
    history.operations.iter().map(|operation| operation.completed).max().unwrap() + 1
}

fn read_late(history: &mut History, rng: &mut Rng) {
    let read = any_early(&reads(history), rng);
    move_to(history, read, end(history));
}

fn read_early(history: &mut History, rng: &mut Rng) {
    let reads = reads(history);
    let read = any(&reads[reads.len() / 2..], rng);
    move_to(history, read, 0);
}

/// What two reads have seen, of which the second begins after the first has ended.
fn swap_reads(history: &mut History, rng: &mut Rng) {
    let reads = reads(history);
    let first = any_early(&reads, rng);
    let ended = history.operations[first].completed;
    let seen = history.operations[first].serial();
    let later = |place: &&usize| {
        let operation = &history.operations[**place];
        operation.invoked > ended && operation.serial() > seen
    };
    let second = *reads.iter().find(later).unwrap();
    let saw = read(history, second).saw;
    read(history, second).saw = std::mem::replace(&mut read(history, first).saw, saw);
}

fn write_late(history: &mut History, rng: &mut Rng) {
    let write = any_early(&writes(history), rng);
    move_to(history, write, end(history));
}

fn write_after_seen(history: &mut History, _: &mut Rng) {
    let newest = *writes(history).last().unwrap();
    move_to(history, newest, end(history));
}

fn swap_sent(history: &mut History, rng: &mut Rng) {
    let first = any_early(&writes(history), rng);
    let Operation { by, lane, number, .. } = history.operations[first];
    let same = |place: &&usize| {
        let operation = &history.operations[**place];
        **place > first && (operation.by, operation.lane) == (by, lane)
    };
    let Some(second) = writes(history).iter().find(same).copied() else { return swap_sent(history, rng) };
    history.operations[first].number = std::mem::replace(&mut history.operations[second].number, number);
}

fn swap_groups(history: &mut History, rng: &mut Rng) {
    let grouped = places(history, |operation| operation.wrote().is_some_and(|wrote| wrote.group.is_some()));
    let first = any_early(&grouped, rng);
    let group = wrote(history, first).group;
    let later = |place: &&usize| history.operations[**place].wrote().unwrap().group > group;
    let second = *grouped.iter().find(later).unwrap();
    let other = std::mem::replace(&mut wrote(history, second).group, group);
    wrote(history, first).group = other;
}

fn surround_foreign(history: &mut History, rng: &mut Rng) {
    let writes = writes(history);
    let is_foreign = |place: usize| history.operations[place].by == FOREIGN;
    let stretches = writes
        .windows(3)
        .filter(|stretch| !is_foreign(stretch[0]) && is_foreign(stretch[1]) && !is_foreign(stretch[2]));
    let stretches: Vec<&[usize]> = stretches.collect();
    let stretch = stretches[rng.usize(0..stretches.len())];
    wrote(history, stretch[2]).group = wrote(history, stretch[0]).group;
}

fn read_before_token(history: &mut History, rng: &mut Rng) {
    let early = any_early(&reads(history), rng);
    let saw = history.operations[early].serial().unwrap();
    let later = |operation: &&Operation| {
        operation.wrote().is_some_and(|wrote| wrote.group.is_some() && wrote.serial > saw)
    };
    let group = history.operations.iter().find(later).unwrap().wrote().unwrap().group;
    read(history, early).after = group;
}

fn see_two_states(history: &mut History, rng: &mut Rng) {
    let held = places(history, |operation| operation.read().is_some_and(|read| read.snapshot.is_some()));
    let place = any(&held, rng);
    read(history, place).saw.serial += 1;
}
