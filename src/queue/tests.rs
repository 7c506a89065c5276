//! The queue under a controlled scheduler: admission, lanes, shutdown, withdrawal, in thousands of schedules.
//!
//! Properties, in the line `queue_schedules`: every accepted command is answered or taken back, exactly once; one that was refused is never
//! answered; what one client sends into one lane is taken in that order; at the end all room is free again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Runner, thread};

use super::{Admission, Found, Outbox, Queue, QueueDepth, open};
use crate::config::{Config, Durability};
use crate::error::{NotStarted, Unknown};
use crate::label::Label;
use crate::lane::{Lane, PerLane};
use crate::message::{Caller, Claim, Envelope, Fate, Job, Kind, Step, Ticket, Timing};
use crate::proof::{Proof, Tally, Wrong};
use crate::rules::Guard;
use crate::token::CommitToken;
use crate::transaction::WriteTransaction;

/// What the scheduler controls, in place of the real thing.
pub(crate) mod scheduled {
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::task::{Poll, Waker};
    use std::time::Instant;

    use shuttle::sync::Condvar;
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize};
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};
    pub(crate) use shuttle::thread::yield_now;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    /// As that of Tokio: permits, first come first served, and a close.
    pub(crate) struct Semaphore(Mutex<Permits>);

    struct Permits {
        free: usize,
        closed: bool,
        /// Those who wait, by ticket, each until this many permits are free.
        line: VecDeque<(usize, Option<Waker>)>,
        tickets: usize,
    }

    #[derive(Debug, PartialEq, Eq)]
    pub(crate) enum TryAcquireError {
        NoPermits,
        Closed,
    }

    pub(crate) struct Permit<'s>(&'s Semaphore, usize);

    impl Permit<'_> {
        pub(crate) fn forget(mut self) {
            self.1 = 0;
        }
    }

    impl Drop for Permit<'_> {
        fn drop(&mut self) {
            self.0.add_permits(self.1);
        }
    }

    impl Semaphore {
        pub(crate) fn new(free: usize) -> Self {
            Self(Mutex::new(Permits { free, closed: false, line: VecDeque::new(), tickets: 0 }))
        }

        pub(crate) fn try_acquire(&self) -> Result<Permit<'_>, TryAcquireError> {
            self.try_acquire_many(1)
        }

        pub(crate) fn try_acquire_many(&self, wanted: u32) -> Result<Permit<'_>, TryAcquireError> {
            let mut permits = lock(&self.0);
            let wanted = wanted as usize;
            if permits.closed {
                return Err(TryAcquireError::Closed);
            }
            if permits.free < wanted || !permits.line.is_empty() {
                return Err(TryAcquireError::NoPermits);
            }
            permits.free -= wanted;
            Ok(Permit(self, wanted))
        }

        pub(crate) async fn acquire(&self) -> Result<Permit<'_>, TryAcquireError> {
            self.acquire_many(1).await
        }

        pub(crate) async fn acquire_many(&self, wanted: u32) -> Result<Permit<'_>, TryAcquireError> {
            let wanted = wanted as usize;
            let mut ticket = None;
            poll_fn(|context| {
                let mut permits = lock(&self.0);
                let ticket = *ticket.get_or_insert_with(|| {
                    permits.tickets += 1;
                    let ticket = permits.tickets;
                    permits.line.push_back((ticket, None));
                    ticket
                });
                if permits.closed {
                    return Poll::Ready(Err(TryAcquireError::Closed));
                }
                if permits.line.front().is_some_and(|(first, _)| *first == ticket) && permits.free >= wanted {
                    permits.line.pop_front();
                    permits.free -= wanted;
                    permits.wake();
                    return Poll::Ready(Ok(Permit(self, wanted)));
                }
                for (waiting, waker) in &mut permits.line {
                    if *waiting == ticket {
                        *waker = Some(context.waker().clone());
                    }
                }
                Poll::Pending
            })
            .await
        }

        pub(crate) fn add_permits(&self, permits: usize) {
            let mut all = lock(&self.0);
            all.free += permits;
            all.wake();
        }

        pub(crate) fn close(&self) {
            let mut permits = lock(&self.0);
            permits.closed = true;
            permits.wake();
        }

        pub(crate) fn available_permits(&self) -> usize {
            lock(&self.0).free
        }
    }

    impl Permits {
        fn wake(&mut self) {
            self.line.iter_mut().filter_map(|(_, waker)| waker.take()).for_each(Waker::wake);
        }
    }

    /// As that of flume: any number of senders and receivers, without a bound.
    pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        let channel = Arc::new((Mutex::new(VecDeque::new()), Condvar::new()));
        (Sender(channel.clone()), Receiver(channel))
    }

    type Channel<T> = Arc<(Mutex<VecDeque<T>>, Condvar)>;

    pub(crate) struct Sender<T>(Channel<T>);

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }

    pub(crate) struct Receiver<T>(Channel<T>);

    impl<T> Sender<T> {
        pub(crate) fn send(&self, message: T) -> Result<(), T> {
            lock(&self.0.0).push_back(message);
            self.0.1.notify_one();
            Ok(())
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn recv(&self) -> Result<T, ()> {
            let mut messages = lock(&self.0.0);
            loop {
                match messages.pop_front() {
                    Some(message) => return Ok(message),
                    None => messages = self.0.1.wait(messages).unwrap(),
                }
            }
        }

        /// There is no clock here: the time is up as soon as there is nothing.
        pub(crate) fn recv_deadline(&self, _limit: Instant) -> Result<T, ()> {
            yield_now();
            self.try_recv()
        }

        pub(crate) fn try_recv(&self) -> Result<T, ()> {
            lock(&self.0.0).pop_front().ok_or(())
        }

        pub(crate) fn drain(&self) -> impl Iterator<Item = T> + use<T> {
            std::mem::take(&mut *lock(&self.0.0)).into_iter()
        }
    }
}

/// Who has said what of each command, and the order in which the writer has answered.
type Answers = Arc<shuttle::sync::Mutex<Log>>;

#[derive(Default)]
struct Log {
    said: HashMap<u64, Vec<&'static str>>,
    committed: Vec<u64>,
}

struct Noted {
    id: u64,
    answers: Answers,
}

impl Job for Noted {
    fn run(&self, _: &mut WriteTransaction<'_>, _: Guard) -> Step {
        unreachable!("there is no database here")
    }

    fn answer(&self, fate: Fate) -> Option<Caller> {
        let what = match fate {
            Fate::Committed(..) => "committed",
            Fate::NotStarted(_) => "not started",
            // Dropped: taken back or refused, or lost, which shows as no answer.
            Fate::Unknown(Unknown::WriterLost) => return None,
            _ => "another fate",
        };
        note(&self.answers, self.id, what);
        None
    }
}

fn note(answers: &Answers, id: u64, what: &'static str) {
    let mut log = answers.lock().unwrap();
    log.said.entry(id).or_default().push(what);
    if what == "committed" {
        log.committed.push(id);
    }
}

fn ticket(id: u64, lane: Lane, answers: &Answers) -> Arc<Ticket> {
    Arc::new(Ticket {
        kind: Kind::Rerunnable,
        label: Label::from("noted"),
        lane,
        durability: Durability::Full,
        bytes: 1,
        submitted: Instant::now(),
        deadline: None,
        span: tracing::Span::none(),
        claim: Claim::default(),
        job: Noted { id, answers: answers.clone() },
    })
}

fn committed() -> Fate {
    Fate::Committed(CommitToken { opening: 0, group: 1 }, Timing::default())
}

fn small() -> Config {
    Config { queue_commands_max: 2, queue_bytes_max: 2, ..Config::default() }
}

/// One client: sends three commands, the first two as soon as there is room, the last only if there is; takes the
/// second one back at once.
fn send(outbox: &Outbox, client: u64, lane: Lane, answers: &Answers) {
    for index in 0..3 {
        let id = client * 10 + index;
        let ticket = ticket(id, lane, answers);
        let envelope = Envelope::new(ticket.clone());
        let accepted = if index < 2 {
            block_on(outbox.send(envelope))
        } else {
            match outbox.try_send(envelope) {
                Ok(Admission::Accepted) => Ok(()),
                Ok(Admission::Full(_)) => Err(NotStarted::QueueFull { lane }),
                Err(reason) => Err(reason),
            }
        };
        match accepted {
            Ok(()) if index == 1 && ticket.claim.withdraw() => note(answers, id, "withdrawn"),
            Ok(()) => note(answers, id, "accepted"),
            Err(_) => note(answers, id, "refused"),
        }
    }
}

/// The writer's loop, without a database.
fn write(queue: &Queue) {
    while queue.wait(None) != Found::End {
        answer_all(queue);
    }
}

/// The same, leaving when it sees the close and nothing that waits: a sender may have found the queue open and
/// not have reached it yet.
fn write_carelessly(queue: &Queue) {
    while !(queue.look(|lanes| lanes.is_empty()) && queue.is_closing()) {
        answer_all(queue);
        thread::yield_now();
    }
}

fn answer_all(queue: &Queue) {
    while let Some(envelope) = queue.next(|lanes| lanes.next(false, |_| Duration::ZERO)) {
        if envelope.start() {
            envelope.answer(committed());
        }
    }
}

/// Takes back what it finds waiting, as the housekeeper does behind a command that holds the writer.
fn take_back(queue: &Queue) {
    for envelope in queue.take(|_| true) {
        if envelope.start() {
            envelope.answer(Fate::NotStarted(NotStarted::Closed));
        }
    }
}

fn one_life(write: fn(&Queue)) -> Tally {
    let (outbox, queue) = open(&small());
    let outbox = Arc::new(outbox);
    let answers = Answers::default();
    let clients: Vec<_> = [(1, Lane::Interactive), (2, Lane::Interactive), (3, Lane::Bulk)]
        .into_iter()
        .map(|(client, lane)| {
            let (outbox, answers) = (outbox.clone(), answers.clone());
            thread::spawn(move || send(&outbox, client, lane, &answers))
        })
        .collect();
    let housekeeper = thread::spawn({
        let queue = queue.clone();
        move || take_back(&queue)
    });
    let closer = thread::spawn({
        let outbox = outbox.clone();
        move || outbox.close()
    });
    write(&queue);
    for thread in clients.into_iter().chain([housekeeper, closer]) {
        thread.join().unwrap();
    }
    let mut tally = Tally::of_one_case();
    let answers = answers.lock().unwrap();
    for (id, said) in &answers.said {
        let count = |what| said.iter().filter(|said| **said == what).count();
        let answered = count("committed") + count("not started");
        let (holds, how) = match (count("accepted"), count("withdrawn"), count("refused")) {
            (1, 0, 0) => (answered == 1, if answered == 0 { Wrong::Lost } else { Wrong::Broken }),
            (0, 1, 0) | (0, 0, 1) => (answered == 0, Wrong::Ghost),
            _ => (false, Wrong::Broken),
        };
        tally.check(holds, how, || format!("command {id}: {said:?}"));
    }
    for client in 1..=3 {
        let of_client: Vec<u64> = answers.committed.iter().copied().filter(|id| id / 10 == client).collect();
        tally.check(of_client.is_sorted(), Wrong::Broken, || format!("out of order: {of_client:?}"));
    }
    let depth = QueueDepth::of(&outbox).read();
    tally.check(depth == PerLane::default(), Wrong::Broken, || format!("room is not free again: {depth:?}"));
    tally
}

/// A hundred lives: in random schedules, and in those that search for bugs which need few changes of threads.
fn lives(seed: u64, write: fn(&Queue)) -> Tally {
    let sum = Arc::new(Mutex::new(Tally::default()));
    run(RandomScheduler::new_from_seed(seed, 80), write, &sum);
    run(PctScheduler::new_from_seed(seed, 3, 20), write, &sum);
    std::mem::take(&mut *sum.lock().unwrap())
}

fn run(scheduler: impl Scheduler + 'static, write: fn(&Queue), sum: &Arc<Mutex<Tally>>) {
    let sum = sum.clone();
    let live = move || {
        let tally = one_life(write);
        sum.lock().unwrap().merge(tally);
    };
    Runner::new(scheduler, shuttle::Config::new()).run(live);
}

/// Whatever such a writer breaks first: it may leave threads behind that wait for ever, which the scheduler reports.
fn careless_lives(seed: u64) -> Tally {
    catch_unwind(AssertUnwindSafe(|| lives(seed, write_carelessly))).unwrap_or_else(|panic| {
        let mut tally = Tally::of_one_case();
        tally.wrong(Wrong::Broken, || crate::transaction::panic_message(panic));
        tally
    })
}

#[test]
fn queue_schedules_answer_each_accepted_command_exactly_once() {
    let mut proof = Proof::new("queue_schedules", 20_000, 1_000_000);
    proof.run(|seed| lives(seed, write));
    proof.canary("LeavesAtClose", 400, careless_lives);
    proof.finish();
}
