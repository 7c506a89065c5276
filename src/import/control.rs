//! Pausing, resuming and cancelling an import from elsewhere.

use tokio::sync::watch;

/// What somebody wants of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Wish {
    #[default]
    Run,
    Pause,
    Cancel,
}

/// Pauses, resumes and cancels an import; cheap to clone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
/// use solewriter::ImportFailure;
///
/// db.execute("CREATE TABLE words (word TEXT)", ()).await?;
/// let words = futures_util::stream::iter(["tea", "cake"]);
/// let run = db.import("words", words).run(|tx, word| tx.execute("INSERT INTO words VALUES (?1)", [word]));
/// let control = run.control();
/// control.cancel();
/// let stopped = run.await.unwrap_err();
/// assert!(matches!(stopped.failure, ImportFailure::Cancelled));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ImportControl {
    wish: watch::Sender<Wish>,
}

impl ImportControl {
    pub(super) fn new() -> Self {
        Self { wish: watch::Sender::new(Wish::default()) }
    }

    /// Lets the batch on its way finish, and begins no other until it is [resumed](Self::resume).
    ///
    /// Meanwhile the stream is not polled either, so what it prepares stands still.
    pub fn pause(&self) {
        self.wish(Wish::Pause);
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.wish(Wish::Run);
    }

    /// Lets the batch on its way finish and ends the import with
    /// [`ImportFailure::Cancelled`](super::ImportFailure::Cancelled); what is imported stays. It can't be taken back.
    pub fn cancel(&self) {
        self.wish(Wish::Cancel);
    }

    /// Whether the import is paused, or is about to be.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        *self.wish.borrow() == Wish::Pause
    }

    pub(super) fn is_cancelled(&self) -> bool {
        *self.wish.borrow() == Wish::Cancel
    }

    pub(super) fn wishes(&self) -> watch::Receiver<Wish> {
        self.wish.subscribe()
    }

    fn wish(&self, wanted: Wish) {
        self.wish.send_if_modified(|wish| {
            let changes = *wish != Wish::Cancel && *wish != wanted;
            if changes {
                *wish = wanted;
            }
            changes
        });
    }
}
