//! Commit tokens: which commit a read must see.

use serde::{Deserialize, Serialize};

/// Names the commit of a command: the number of its group since the database was opened.
///
/// Tokens of one opening grow with every commit. They can be sent to another task, or to a client and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommitToken {
    /// Which opening of the database the number counts in: its time in microseconds since 1970.
    pub(crate) opening: u64,
    pub(crate) group: u64,
}

impl CommitToken {
    /// The number of the group, counted from 1 since the database was opened.
    #[must_use]
    pub fn group(self) -> u64 {
        self.group
    }
}

/// Tokens are ordered within one opening only.
impl PartialOrd for CommitToken {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (self.opening == other.opening).then(|| self.group.cmp(&other.group))
    }
}
