//! The way to the writer: bounded by permits, one channel, one receiver. The only file that knows flume.
//!
//! A sender takes a permit for its command and permits for its bytes, by lane, before the channel sees it;
//! the writer gives them back when it takes the command up. So the channel needs no bound of its own, a flood
//! in one lane never takes the room of another, and memory stays bounded by count and by bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::patience::Patience;
use super::seam::{self, AtomicBool, AtomicUsize, Receiver, Semaphore, Sender, TryAcquireError};
use crate::config::Config;
use crate::error::NotStarted;
use crate::lane::{Lane, PerLane};
use crate::message::Envelope;

/// What crosses the channel.
pub(super) enum Message {
    Command(Envelope),
    /// The writer should look around: something has happened beside it.
    Wake,
    /// Nothing more will be accepted: finish what was, then end.
    Close,
}

/// The room of each lane.
struct Room {
    lanes: PerLane<LaneRoom>,
    closed: AtomicBool,
    /// Senders between their last look at `closed` and the channel.
    in_delivery: AtomicUsize,
    commands_max: usize,
    bytes_max: usize,
}

impl Room {
    /// Whether a command has a place, which it takes before it is sent.
    fn is_taken(&self) -> bool {
        Lane::ALL.into_iter().any(|lane| self.lanes[lane].commands.available_permits() < self.commands_max)
    }
}

struct LaneRoom {
    commands: Semaphore,
    bytes: Semaphore,
}

pub(super) fn open(config: &Config) -> (Outbox, Inbox) {
    let room = Arc::new(Room {
        lanes: PerLane::from_fn(|_| LaneRoom {
            commands: Semaphore::new(config.queue_commands_max),
            bytes: Semaphore::new(config.queue_bytes_max),
        }),
        closed: AtomicBool::new(false),
        in_delivery: AtomicUsize::new(0),
        commands_max: config.queue_commands_max,
        bytes_max: config.queue_bytes_max,
    });
    let (sender, receiver) = seam::unbounded();
    (
        Outbox { sender: sender.clone(), room: room.clone() },
        Inbox { receiver, bell: sender, room, patience: Patience::new() },
    )
}

/// The end that handles hold.
pub(crate) struct Outbox {
    sender: Sender<Message>,
    room: Arc<Room>,
}

/// What a lane says to a command.
pub(crate) enum Admission {
    Accepted,
    /// There is no room now; the command comes back.
    Full(Envelope),
}

impl Outbox {
    /// Sends a command if its lane has room now.
    pub(crate) fn try_send(&self, envelope: Envelope) -> Result<Admission, NotStarted> {
        self.check_size(&envelope)?;
        let room = &self.room.lanes[envelope.lane];
        let permits = room.commands.try_acquire().and_then(|command| {
            let bytes = room.bytes.try_acquire_many(envelope.bytes)?;
            Ok((command, bytes))
        });
        match permits {
            Ok((command, bytes)) => {
                self.deliver(envelope)?;
                command.forget();
                bytes.forget();
                Ok(Admission::Accepted)
            }
            Err(TryAcquireError::NoPermits) => Ok(Admission::Full(envelope)),
            Err(TryAcquireError::Closed) => Err(NotStarted::Closed),
        }
    }

    /// Sends a command as soon as its lane has room; first come, first served.
    ///
    /// Cancel safety: dropped before it is ready, nothing was sent and no room is taken.
    pub(crate) async fn send(&self, envelope: Envelope) -> Result<(), NotStarted> {
        self.check_size(&envelope)?;
        let room = &self.room.lanes[envelope.lane];
        let command = room.commands.acquire().await.map_err(|_| NotStarted::Closed)?;
        let bytes = room.bytes.acquire_many(envelope.bytes).await.map_err(|_| NotStarted::Closed)?;
        self.deliver(envelope)?;
        command.forget();
        bytes.forget();
        Ok(())
    }

    /// Accepts nothing more, and tells the writer.
    pub(crate) fn close(&self) {
        self.room.closed.store(true, Ordering::SeqCst);
        for lane in Lane::ALL {
            self.room.lanes[lane].commands.close();
            self.room.lanes[lane].bytes.close();
        }
        // A writer that is gone needs no telling.
        drop(self.sender.send(Message::Close));
    }

    fn check_size(&self, envelope: &Envelope) -> Result<(), NotStarted> {
        let (bytes, bytes_max) = (envelope.bytes as usize, self.room.bytes_max);
        if bytes > bytes_max { Err(NotStarted::TooLarge { bytes, bytes_max }) } else { Ok(()) }
    }

    fn deliver(&self, envelope: Envelope) -> Result<(), NotStarted> {
        self.room.in_delivery.fetch_add(1, Ordering::SeqCst);
        let delivered = if self.room.closed.load(Ordering::SeqCst) {
            Err(NotStarted::Closed)
        } else {
            self.sender.send(Message::Command(envelope)).map_err(|_| NotStarted::Closed)
        };
        self.room.in_delivery.fetch_sub(1, Ordering::SeqCst);
        delivered
    }
}

/// As many commands give back their room together: for each by itself it would take as long as all else that is
/// done to take one up.
const FREED_MAX: usize = 32;

/// The room of commands that no longer wait, while it is not given back.
#[derive(Clone, Copy, Default)]
pub(super) struct Freed {
    lane: Lane,
    commands: usize,
    bytes: usize,
}

impl Freed {
    pub(super) fn of(envelope: &Envelope) -> Self {
        Self { lane: envelope.lane, commands: 1, bytes: envelope.bytes as usize }
    }

    /// Adds more; returns what was of another lane, and is to be given back by itself.
    pub(super) fn add(&mut self, more: Self) -> Self {
        let other = if self.lane == more.lane { Self::default() } else { std::mem::take(self) };
        let (commands, bytes) = (self.commands + more.commands, self.bytes + more.bytes);
        *self = Self { lane: more.lane, commands, bytes };
        other
    }
}

/// The end that the writer holds.
pub(super) struct Inbox {
    receiver: Receiver<Message>,
    bell: Sender<Message>,
    room: Arc<Room>,
    patience: Patience,
}

impl Inbox {
    /// Waits for a message.
    pub(super) fn wait(&self) -> Option<Message> {
        // Not at the channel, where a sender would find it locked.
        self.patience.look_for(|| self.room.is_taken());
        self.receiver.recv().ok()
    }

    /// Wakes the writer, if it waits.
    pub(super) fn ring(&self) {
        // The receiver is here.
        drop(self.bell.send(Message::Wake));
    }

    /// Waits for a message until `limit`.
    pub(super) fn wait_until(&self, limit: Instant) -> Option<Message> {
        self.receiver.recv_deadline(limit).ok()
    }

    /// Takes what has arrived, without waiting.
    pub(super) fn drain(&self, take: impl FnMut(Message)) {
        self.receiver.drain().for_each(take);
    }

    /// Gives back room that was freed.
    pub(super) fn give_back(&self, freed: Freed) {
        if freed.commands > 0 {
            let room = &self.room.lanes[freed.lane];
            room.commands.add_permits(freed.commands);
            room.bytes.add_permits(freed.bytes);
        }
    }

    /// Whether it is so much that somebody may wait for it.
    pub(super) fn is_due(&self, freed: Freed) -> bool {
        freed.commands >= FREED_MAX.min(self.room.commands_max / 64)
            || freed.bytes >= self.room.bytes_max / 64
    }

    /// Takes the next message from before the close; `None` when there is none left.
    ///
    /// A sender may have found the queue open and not have reached the channel yet. It is a few instructions
    /// away, and its command would be accepted and never answered.
    pub(super) fn next_before_close(&self) -> Option<Message> {
        loop {
            let all_delivered = self.room.in_delivery.load(Ordering::SeqCst) == 0;
            match self.receiver.try_recv() {
                Ok(message) => return Some(message),
                Err(_) if all_delivered => return None,
                Err(_) => seam::yield_now(),
            }
        }
    }
}

/// The number of commands that wait in each lane.
#[derive(Clone)]
pub(crate) struct QueueDepth(Arc<Room>);

impl QueueDepth {
    pub(crate) fn of(outbox: &Outbox) -> Self {
        Self(outbox.room.clone())
    }

    pub(crate) fn read(&self) -> PerLane<usize> {
        PerLane::from_fn(|lane| {
            self.0.commands_max.saturating_sub(self.0.lanes[lane].commands.available_permits())
        })
    }
}
