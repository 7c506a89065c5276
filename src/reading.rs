//! Who reads now.

use std::time::Duration;

use serde::Serialize;

use crate::label::Label;
use crate::units::millis;

/// A read in progress, or a snapshot that is held: what keeps the WAL from being begun anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reading {
    /// The label of the read or the snapshot.
    pub label: Label,
    /// How long it has had its connection.
    #[serde(rename = "age_ms", serialize_with = "millis")]
    pub age: Duration,
}
