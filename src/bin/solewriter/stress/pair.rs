//! What is written: pairs of rows, of which both must be there or none; and ways to spoil one half-way.

use std::fmt;
use std::panic;

use serde::{Deserialize, Serialize};
use solewriter::{Command, CommitToken, Database, WriteError, WriteTransaction, rusqlite};

/// One half of a pair.
const INSERT_HALF: &str = "INSERT INTO stress_halves (source, seq, half) VALUES (?1, ?2, ?3)";

/// Both halves in one statement.
const INSERT_PAIR: &str = "INSERT INTO stress_halves (source, seq, half) VALUES (?1, ?2, 0), (?1, ?2, ?3)";

/// A half that the table refuses.
const REFUSED_HALF: i64 = 2;

/// A pair of rows, known by who writes it and by its number there.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) source: i64,
    pub(crate) seq: u64,
    /// What makes it fail after its first half.
    pub(crate) poison: Option<Poison>,
}

/// How a command is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Poison {
    Constraint,
    Panic,
    OwnError,
}

/// The ways to send a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Statement,
    Typed,
    Once,
    Rerunnable,
}

/// Why a pair is not written.
#[derive(Debug)]
pub(crate) enum PairError {
    Poisoned,
    Sqlite(rusqlite::Error),
}

impl Poison {
    /// Whether a pair is spoilt, and how: `percent` of them are, the same ones for the same seed.
    pub(crate) fn of(seed: u64, seq: u64, percent: f64) -> Option<Self> {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(seq));
        let is_spoilt = rng.f64() * 100.0 < percent;
        is_spoilt.then(|| [Self::Constraint, Self::Panic, Self::OwnError][rng.usize(..3)])
    }
}

impl Way {
    pub(crate) fn choose(rng: &mut fastrand::Rng) -> Self {
        [Self::Statement, Self::Typed, Self::Once, Self::Rerunnable][rng.usize(..4)]
    }
}

impl Pair {
    /// Writes both halves, one after the other.
    pub(crate) fn write(&self, tx: &mut WriteTransaction<'_>) -> Result<(), PairError> {
        let (source, seq) = (self.source, self.seq.cast_signed());
        tx.execute(INSERT_HALF, (source, seq, 0))?;
        let second = match self.poison {
            None => 1,
            Some(Poison::Constraint) => REFUSED_HALF,
            // Without the panic hook: it would write to the terminal, and nobody has made a mistake.
            Some(Poison::Panic) => panic::resume_unwind(Box::new("poisoned")),
            Some(Poison::OwnError) => return Err(PairError::Poisoned),
        };
        tx.execute(INSERT_HALF, (source, seq, second))?;
        Ok(())
    }

    /// Sends the pair and waits until it is committed.
    pub(crate) async fn send(self, db: &Database, way: Way) -> Result<CommitToken, WriteError<PairError>> {
        match way {
            Way::Statement => {
                // A statement can only fail as a statement.
                let second = if self.poison.is_some() { REFUSED_HALF } else { 1 };
                let parameters = (self.source, self.seq.cast_signed(), second);
                let answer = db.execute(INSERT_PAIR, parameters).label("stress.statement").committed().await;
                answer.map(|done| done.token).map_err(|error| error.map_command(PairError::Sqlite))
            }
            Way::Typed => db.send(self).committed().await.map(|done| done.token),
            Way::Once => {
                let answer = db.write_or_reject("stress.once", move |tx| self.write(tx)).committed().await;
                answer.map(|done| done.token)
            }
            Way::Rerunnable => {
                let write =
                    move |tx: &mut WriteTransaction<'_>| self.write(tx).map_err(PairError::into_sqlite);
                let answer = db.write_rerunnable("stress.rerunnable", write).committed().await;
                answer.map(|done| done.token).map_err(|error| error.map_command(PairError::Sqlite))
            }
        }
    }
}

impl Command for Pair {
    const NAME: &'static str = "stress.typed";
    type Output = ();
    type Error = PairError;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> Result<(), PairError> {
        self.write(tx)
    }
}

impl PairError {
    /// For the kind of command whose error is always one of rusqlite.
    fn into_sqlite(self) -> rusqlite::Error {
        match self {
            Self::Sqlite(error) => error,
            Self::Poisoned => rusqlite::Error::QueryReturnedNoRows,
        }
    }
}

impl From<rusqlite::Error> for PairError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl fmt::Display for PairError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poisoned => f.write_str("it was to fail"),
            Self::Sqlite(_) => f.write_str("SQLite refused it"),
        }
    }
}

impl std::error::Error for PairError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Poisoned => None,
            Self::Sqlite(error) => Some(error),
        }
    }
}
