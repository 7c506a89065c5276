//! A snapshot: a connection of the pool that keeps its transaction over several reads.
//!
//! The thread of the connection serves the snapshot in one piece of work. It waits for the next read with a
//! time limit, so that the transaction ends at its age whoever is there to ask, without another thread and
//! without a runtime; and while no snapshot exists, nothing waits.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::pins::{Pin, Pinned};
use super::pool::{Order, ReaderPool, Work};
use super::running::{Place, Request, Running, Task};
use super::thread::Reader;
use super::waiting::Submitted;
use crate::error::{Cause, ReadEnd, ReadError};
use crate::label::Label;
use crate::sync::{after, drop_quietly};
use crate::transaction::{ReadTransaction, end_read, read_transaction_stands};

/// The line to a snapshot; the snapshot ends when this is dropped.
pub(crate) struct HeldSnapshot {
    jobs: mpsc::Sender<Job>,
    /// One read at a time.
    turn: Arc<Semaphore>,
    pinned: Arc<Pinned>,
}

enum Job {
    Read(SnapshotRead),
    End,
}

/// Returns whether the connection is fit for use after the snapshot.
type SnapshotRead = Box<dyn FnOnce(&Place<'_>, Instant) -> bool + Send>;

type HoldReply = oneshot::Sender<Result<HeldSnapshot, ReadError>>;

impl ReaderPool {
    /// Holds a snapshot of what is committed when it gets its connection, until it is `age_max` old.
    ///
    /// Cancel safety: where the answer is dropped, so is the snapshot.
    pub(crate) fn hold(
        self: &Arc<Self>,
        label: Label,
        asked: Instant,
        age_max: Duration,
    ) -> Submitted<oneshot::Receiver<Result<HeldSnapshot, ReadError>>> {
        let (reply, answer) = oneshot::channel();
        let (jobs, inbox) = mpsc::channel();
        let wake = jobs.clone();
        let wake = Some(Box::new(move || send_end(&wake)) as _);
        let work = Box::new(Hold { age_max, line: Some((reply, jobs, inbox)) });
        Submitted { waiting: self.submit(Order { label, asked, wake, work }), answer }
    }
}

/// A snapshot, as the work of a reader.
struct Hold {
    age_max: Duration,
    /// Taken when it begins.
    line: Option<(HoldReply, mpsc::Sender<Job>, mpsc::Receiver<Job>)>,
}

impl Work for Hold {
    fn run(
        &mut self,
        reader: &mut Reader,
        connection: &mut Connection,
        pin: &Pin,
        pool: &Arc<ReaderPool>,
    ) -> bool {
        let Some((reply, jobs, inbox)) = self.line.take() else { return true };
        let limit = after(self.age_max);
        let watchdog = reader.watchdog.clone();
        let begun = reader.begin(connection, pool, limit);
        let mut fit = false;
        match (begun, reader.user_code()) {
            (Ok(()), Some(user_code)) => {
                let turn = Arc::new(Semaphore::new(1));
                let held = HeldSnapshot { jobs, turn, pinned: pin.pinned().clone() };
                // Where nobody waits for it, it comes back here and is dropped, which ends it.
                drop(reply.send(Ok(held)));
                let place = Place { connection, user_code, watchdog: &watchdog, pin, is_snapshot: true };
                fit = serve(&inbox, &place, limit, pool);
            }
            (begun, _) => {
                let error = match (pin.pinned().ended(), begun) {
                    (Some((ReadEnd::Closed, _)), _) | (None, Ok(())) => ReadError::Closed,
                    (Some((why, age)), _) => ReadError::Ended { age, why },
                    (None, Err(cause)) => ReadError::Connection(cause),
                };
                drop(reply.send(Err(error)));
            }
        }
        fit = end_read(connection) && fit;
        // Reads that came too late learn of the end when they are dropped. What they hold is the user's.
        drop_quietly(inbox);
        fit
    }

    /// Whoever holds the snapshot has it since it began.
    fn answer(self: Box<Self>) {}

    fn refuse(self: Box<Self>, cause: Cause) {
        if let Some((reply, ..)) = self.line {
            drop(reply.send(Err(ReadError::Connection(cause))));
        }
    }
}

/// Runs the reads of a snapshot, one after the other, until it ends. Returns whether the connection is fit for
/// further use.
fn serve(inbox: &mpsc::Receiver<Job>, place: &Place<'_>, limit: Instant, pool: &ReaderPool) -> bool {
    let pinned = place.pin.pinned();
    let mut fit = true;
    while pinned.ended().is_none() {
        if !read_transaction_stands(place.connection) {
            pinned.note_end(ReadEnd::Broken);
            return false;
        }
        match inbox.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(Job::Read(read)) => {
                pool.count_read();
                fit &= read(place, limit);
            }
            Ok(Job::End) | Err(RecvTimeoutError::Disconnected) => return fit,
            Err(RecvTimeoutError::Timeout) => pinned.note_end(ReadEnd::AgeLimit),
        }
    }
    fit
}

impl HeldSnapshot {
    pub(crate) fn label(&self) -> &Label {
        self.pinned.label()
    }

    pub(crate) fn age(&self) -> Duration {
        self.pinned.age()
    }

    /// Waits until no other read of this snapshot runs. First come, first served.
    ///
    /// Cancel safety: dropped before it is ready, nothing is taken.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        // It is never closed.
        Turn { snapshot: self, permit: self.turn.clone().acquire_owned().await.ok() }
    }
}

/// Dropping it blocks nobody: the thread rolls back when it comes to it.
impl Drop for HeldSnapshot {
    fn drop(&mut self) {
        send_end(&self.jobs);
    }
}

/// A snapshot that has ended already has no thread that listens.
fn send_end(jobs: &mpsc::Sender<Job>) {
    let _has_ended = jobs.send(Job::End).is_err();
}

/// The right to one read of a snapshot.
pub(crate) struct Turn<'s> {
    snapshot: &'s HeldSnapshot,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turn<'_> {
    /// Runs a closure in the snapshot.
    pub(crate) fn read<F, T, E>(self, request: Request, closure: F) -> Running<T, E>
    where
        F: FnOnce(&ReadTransaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let (snapshot, permit) = (self.snapshot, self.permit);
        let (task, running) = Task::new(request, closure, Some(snapshot.pinned.clone()));
        let read = move |place: &Place<'_>, limit| {
            let bound = task.bound_in_snapshot(limit);
            let finished = task.run_within(place, bound);
            let fit = finished.fit;
            drop(permit);
            finished.answer();
            fit
        };
        // Where the snapshot has ended, the task is dropped here, and its answer with it.
        let _has_ended = snapshot.jobs.send(Job::Read(Box::new(read))).is_err();
        running
    }
}
