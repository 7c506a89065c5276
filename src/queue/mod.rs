//! The queue of a service: handles put commands in at one end, the writer takes them out at the other.
//!
//! `channel` bounds what waits and carries it across, `lanes` decides who goes next. What has crossed is kept
//! under a lock that the writer shares with the housekeeper: while a command holds the writer for long, the
//! housekeeper takes back those that have waited for too long behind it.

mod channel;
mod lanes;
mod patience;
mod seam;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use crate::config::Config;
use crate::lane::Lane;
use crate::message::Envelope;

pub(crate) use channel::{Admission, Outbox, QueueDepth};
use channel::{Freed, Inbox, Message};
pub(crate) use lanes::Lanes;
pub(crate) use seam::AtomicU8;
use seam::Mutex;

/// Opens the queue of a service.
pub(crate) fn open(config: &Config) -> (Outbox, Arc<Queue>) {
    let (outbox, inbox) = channel::open(config);
    let waiting = Waiting {
        lanes: Lanes::new(config),
        freed: Freed::default(),
        writer_listens: false,
        woken: false,
        closing: false,
    };
    (outbox, Arc::new(Queue { inbox, waiting: Mutex::new(waiting) }))
}

/// The end of the queue that the writer takes commands from.
pub(crate) struct Queue {
    inbox: Inbox,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    lanes: Lanes<Envelope>,
    freed: Freed,
    /// The writer may have a message in its hands that is older than those in the channel.
    writer_listens: bool,
    /// Somebody has rung.
    woken: bool,
    /// Nothing more is accepted.
    closing: bool,
}

/// What the writer finds when it has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A command waits.
    Command,
    /// None, and the time is up, or somebody has [rung](Queue::ring).
    Nothing,
    /// None, and none will ever come.
    End,
}

impl Queue {
    /// Waits until a command waits in a lane, or until `limit`.
    pub(crate) fn wait(&self, limit: Option<Instant>) -> Found {
        loop {
            let freed = {
                let mut waiting = self.lock();
                self.take_in(&mut waiting);
                if !waiting.lanes.is_empty() {
                    return Found::Command;
                }
                if waiting.closing {
                    return self.last(&mut waiting);
                }
                if std::mem::take(&mut waiting.woken) {
                    return Found::Nothing;
                }
                waiting.writer_listens = true;
                std::mem::take(&mut waiting.freed)
            };
            self.inbox.give_back(freed);
            let message = match limit {
                None => self.inbox.wait(),
                Some(limit) => self.inbox.wait_until(limit),
            };
            let mut waiting = self.lock();
            waiting.writer_listens = false;
            match message {
                Some(message) => waiting.accept(message),
                None => return Found::Nothing,
            }
        }
    }

    /// Wakes the writer, if it waits for a command: something has happened that it should look at.
    pub(crate) fn ring(&self) {
        self.inbox.ring();
    }

    /// Takes in what arrives until `limit`, whatever waits already; returns early when the service closes.
    pub(crate) fn gather_until(&self, limit: Instant) {
        loop {
            {
                let mut waiting = self.lock();
                self.take_in(&mut waiting);
                if waiting.closing {
                    return;
                }
                waiting.writer_listens = true;
            }
            let message = self.inbox.wait_until(limit);
            let mut waiting = self.lock();
            waiting.writer_listens = false;
            match message {
                Some(message) => waiting.accept(message),
                None => return,
            }
        }
    }

    /// What was accepted just before the close, if it has not been taken in yet.
    fn last(&self, waiting: &mut Waiting) -> Found {
        while let Some(message) = self.inbox.next_before_close() {
            waiting.accept(message);
        }
        if waiting.lanes.is_empty() { Found::End } else { Found::Command }
    }

    /// Lets `choose` look at what waits, what has just arrived included, and takes the head of the lane it
    /// chooses. Its room is free for others soon: at the latest when there is nothing to take, or with
    /// [`give_back_room`](Self::give_back_room).
    pub(crate) fn next(&self, choose: impl FnOnce(&mut Lanes<Envelope>) -> Option<Lane>) -> Option<Envelope> {
        let mut waiting = self.lock();
        // Nobody who has just arrived goes before one who waits in the first lane.
        if waiting.lanes.head(Lane::Interactive).is_none() {
            self.take_in(&mut waiting);
        }
        let envelope = choose(&mut waiting.lanes).and_then(|lane| waiting.lanes.pop(lane));
        let other = match &envelope {
            Some(envelope) => waiting.freed.add(Freed::of(envelope)),
            None => Freed::default(),
        };
        let is_due = envelope.is_none() || self.inbox.is_due(waiting.freed);
        let freed = if is_due { std::mem::take(&mut waiting.freed) } else { Freed::default() };
        drop(waiting);
        self.inbox.give_back(other);
        self.inbox.give_back(freed);
        envelope
    }

    /// Frees the room of all that was taken: what comes next may take long.
    pub(crate) fn give_back_room(&self) {
        let freed = std::mem::take(&mut self.lock().freed);
        self.inbox.give_back(freed);
    }

    /// Looks at what waits, what has just arrived included.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&mut Lanes<Envelope>) -> T) -> T {
        let mut waiting = self.lock();
        self.take_in(&mut waiting);
        at(&mut waiting.lanes)
    }

    /// Takes every command that `is_wanted`, in order.
    pub(crate) fn take(&self, is_wanted: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
        let taken = self.look(|lanes| lanes.take(is_wanted));
        for envelope in &taken {
            self.inbox.give_back(Freed::of(envelope));
        }
        taken
    }

    /// Whether the service closes.
    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Sorts what has arrived into the lanes.
    ///
    /// Under the lock, so that what two threads take in keeps its order; and not while the writer has taken a
    /// message that it has not sorted in yet.
    fn take_in(&self, waiting: &mut Waiting) {
        if !waiting.writer_listens {
            self.inbox.drain(|message| waiting.accept(message));
        }
    }

    fn lock(&self) -> seam::MutexGuard<'_, Waiting> {
        seam::lock(&self.waiting)
    }
}

impl Waiting {
    fn accept(&mut self, message: Message) {
        match message {
            Message::Command(envelope) => self.lanes.push(envelope.lane, envelope),
            Message::Wake => self.woken = true,
            Message::Close => self.closing = true,
        }
    }
}
