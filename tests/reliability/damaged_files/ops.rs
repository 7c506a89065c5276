//! The commands that are sent to a damaged database, and how to see what became of each.

use serde::{Deserialize, Serialize};
use solewriter::{BlockingDatabase, Command, WriteError, WriteTransaction};

/// A command, by the id of its row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Op {
    /// Has a trigger.
    Small(i64),
    /// Has two indexes.
    Large(i64),
    Keyed(i64),
    /// Has overflow pages.
    Blob(i64),
    Pair(i64),
    Word(i64),
    Table(i64),
    ChangeLarge(i64),
    ChangeBlob(i64),
    MoveKeyed(i64),
}

/// Which form of a command is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Once,
    Rerunnable,
    Typed,
    Statement,
}

impl How {
    pub(super) fn any(rng: &mut fastrand::Rng) -> Self {
        [Self::Once, Self::Rerunnable, Self::Typed, Self::Statement][rng.usize(..4)]
    }
}

/// What is found of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Applied,
    Absent,
    /// Neither.
    Half(String),
}

/// Waits for the answer of a command: how many rows it changed.
pub(super) type Receipt = Box<dyn FnOnce() -> Result<usize, WriteError>>;

impl Op {
    pub(super) fn any(rng: &mut fastrand::Rng, new_id: i64, old_ids: i64) -> Self {
        let old = rng.i64(0..old_ids);
        match rng.u8(..13) {
            0 => Self::Small(new_id),
            1..4 => Self::Large(new_id),
            4 => Self::Keyed(new_id),
            5 => Self::Blob(new_id),
            6..8 => Self::Pair(new_id),
            8 => Self::Word(new_id),
            9 => Self::Table(new_id),
            10 => Self::ChangeLarge(old),
            11 => Self::ChangeBlob(old),
            _ => Self::MoveKeyed(old),
        }
    }

    pub(super) fn id(&self) -> i64 {
        match self {
            Self::Small(id)
            | Self::Large(id)
            | Self::Keyed(id)
            | Self::Blob(id)
            | Self::Pair(id)
            | Self::Word(id)
            | Self::Table(id)
            | Self::ChangeLarge(id)
            | Self::ChangeBlob(id)
            | Self::MoveKeyed(id) => *id,
        }
    }

    /// One statement, or several.
    fn sql(&self) -> &'static [&'static str] {
        match self {
            Self::Small(_) => &["INSERT INTO small (id, x) VALUES (?1, 'new ' || ?1)"],
            Self::Large(_) => &["INSERT INTO large (id, k, body) VALUES (?1, 'new ' || ?1, 'new ' || ?1)"],
            Self::Keyed(_) => &["INSERT INTO keyed (k, v) VALUES ('new ' || ?1, 'new ' || ?1)"],
            Self::Blob(_) => &["INSERT INTO blobs (id, x) VALUES (?1, 'new ' || ?1 || hex(zeroblob(4000)))"],
            Self::Pair(_) => &[
                "INSERT INTO first_half (id, x) VALUES (?1, 'new ' || ?1)",
                "INSERT INTO second_half (id, x) VALUES (?1, 'new ' || ?1)",
            ],
            Self::Word(_) => &["INSERT INTO words (rowid, x) VALUES (?1, 'new' || ?1)"],
            Self::Table(_) => &[],
            Self::ChangeLarge(_) => &["UPDATE large SET body = 'new ' || ?1 WHERE id = ?1"],
            Self::ChangeBlob(_) => {
                &["UPDATE blobs SET x = 'new ' || ?1 || hex(zeroblob(4000)) WHERE id = ?1"]
            }
            Self::MoveKeyed(_) => &[
                "DELETE FROM keyed WHERE k = 'key ' || ?1",
                "INSERT INTO keyed (k, v) VALUES ('moved ' || ?1, 'new ' || ?1)",
            ],
        }
    }

    /// A query that tells whether the command is applied.
    pub(super) fn probe(&self) -> &'static str {
        match self {
            Self::Small(_) => {
                "SELECT coalesce((SELECT x FROM small WHERE id = ?1), '-') || '/'
                     || coalesce((SELECT x FROM noted WHERE id = ?1), '-')"
            }
            Self::Large(_) => {
                "SELECT coalesce((SELECT body FROM large NOT INDEXED WHERE id = ?1), '-') || '/'
                     || coalesce((SELECT body FROM large WHERE k = 'new ' || ?1), '-')"
            }
            Self::Keyed(_) => "SELECT coalesce((SELECT v FROM keyed WHERE k = 'new ' || ?1), '-')",
            Self::Blob(_) | Self::ChangeBlob(_) => {
                "SELECT coalesce((SELECT rtrim(x, '0') || length(x) FROM blobs WHERE id = ?1), '-')"
            }
            Self::Pair(_) => {
                "SELECT coalesce((SELECT x FROM first_half WHERE id = ?1), '-') || '/'
                     || coalesce((SELECT x FROM second_half WHERE id = ?1), '-')"
            }
            Self::Word(_) => {
                "SELECT coalesce((SELECT x FROM words WHERE rowid = ?1), '-') || '/'
                     || coalesce((SELECT x FROM words WHERE words MATCH 'new' || ?1), '-')"
            }
            Self::Table(_) => {
                "SELECT coalesce((SELECT type FROM sqlite_schema WHERE name = 'made_' || ?1), '-')"
            }
            Self::ChangeLarge(_) => {
                "SELECT coalesce((SELECT body FROM large NOT INDEXED WHERE id = ?1), '-')"
            }
            Self::MoveKeyed(_) => {
                "SELECT coalesce((SELECT v FROM keyed WHERE k = 'moved ' || ?1), '-') || '/'
                     || (SELECT count(*) FROM keyed WHERE k = 'key ' || ?1)"
            }
        }
    }

    /// What the answer of the [`probe`](Self::probe) means.
    pub(super) fn find(&self, seen: String) -> Found {
        let id = self.id();
        let long =
            || format!("{}{}", format!("new {id}").trim_end_matches('0'), format!("new {id}").len() + 8_000);
        let applied = match self {
            Self::Small(_) | Self::Large(_) | Self::Pair(_) => format!("new {id}/new {id}"),
            Self::Word(_) => format!("new{id}/new{id}"),
            Self::Keyed(_) | Self::ChangeLarge(_) => format!("new {id}"),
            Self::Blob(_) | Self::ChangeBlob(_) => long(),
            Self::Table(_) => "table".into(),
            Self::MoveKeyed(_) => format!("new {id}/0"),
        };
        let is_absent = match self {
            // What an old row holds is not known.
            Self::ChangeLarge(_) | Self::ChangeBlob(_) => true,
            Self::MoveKeyed(_) => seen.starts_with('-'),
            Self::Small(_) | Self::Large(_) | Self::Pair(_) | Self::Word(_) => seen == "-/-",
            Self::Keyed(_) | Self::Blob(_) | Self::Table(_) => seen == "-",
        };
        match is_absent {
            _ if seen == applied => Found::Applied,
            true => Found::Absent,
            false => Found::Half(seen),
        }
    }

    /// Sends the command; what it returns waits for the answer.
    pub(super) fn submit(&self, db: &BlockingDatabase, how: How) -> Result<Receipt, WriteError> {
        let op = self.clone();
        Ok(match (how, self.sql()) {
            (How::Statement, [sql]) => {
                let receipt = db.execute(*sql, (self.id(),)).submit()?;
                Box::new(|| receipt.wait())
            }
            (How::Typed, _) => {
                let receipt = db.send(op).submit()?;
                Box::new(|| receipt.wait())
            }
            (How::Once, _) => {
                let receipt = db.write("once", move |tx| op.apply(tx)).submit()?;
                Box::new(|| receipt.wait())
            }
            (How::Rerunnable | How::Statement, _) => {
                let receipt = db.write_rerunnable("again", move |tx| op.apply(tx)).submit()?;
                Box::new(|| receipt.wait())
            }
        })
    }
}

impl Command for Op {
    const NAME: &'static str = "op";
    type Output = usize;
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<usize> {
        if let Self::Table(id) = self {
            let made = format!("CREATE TABLE made_{id} (x); INSERT INTO made_{id} VALUES ({id})");
            return tx.execute_batch(&made).map(|()| 1);
        }
        let mut changed = 0;
        for sql in self.sql() {
            changed += tx.execute(sql, [self.id()])?;
        }
        Ok(changed)
    }
}
