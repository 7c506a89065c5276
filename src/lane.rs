//! The three lanes in which commands wait.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who goes first: the lane in which a command waits.
///
/// Interactive commands go first; bulk and maintenance keep a guaranteed share of the writer's time, so that
/// none starves. Order is kept within a lane, and nothing is promised across lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Somebody waits for the answer (the default).
    #[default]
    Interactive,
    /// Imports and other work that comes in quantity.
    Bulk,
    /// Upkeep that nobody waits for.
    Maintenance,
}

impl Lane {
    /// Every lane, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Bulk, Self::Maintenance];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
            Self::Maintenance => "maintenance",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value for each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PerLane<T> {
    /// Of the interactive lane.
    pub interactive: T,
    /// Of the bulk lane.
    pub bulk: T,
    /// Of the maintenance lane.
    pub maintenance: T,
}

impl<T> PerLane<T> {
    /// Makes the value of each lane.
    pub(crate) fn from_fn(mut make: impl FnMut(Lane) -> T) -> Self {
        Self {
            interactive: make(Lane::Interactive),
            bulk: make(Lane::Bulk),
            maintenance: make(Lane::Maintenance),
        }
    }
}

impl<T> std::ops::Index<Lane> for PerLane<T> {
    type Output = T;

    fn index(&self, lane: Lane) -> &T {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Bulk => &self.bulk,
            Lane::Maintenance => &self.maintenance,
        }
    }
}

impl<T> std::ops::IndexMut<Lane> for PerLane<T> {
    fn index_mut(&mut self, lane: Lane) -> &mut T {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
            Lane::Maintenance => &mut self.maintenance,
        }
    }
}
