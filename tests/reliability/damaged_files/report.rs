//! What was seen of one file, on its way from the process that used it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::proof::Wrong;

/// What is broken on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mode {
    #[default]
    Truthful,
    /// An acknowledged row is deleted behind the service's back.
    RowDeleted,
    AckBeforeCommit,
    Panic,
    Crash,
    Hang,
}

/// What was seen of one file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) checks: u64,
    pub(super) wrong: Vec<(Wrong, String)>,
    pub(super) figures: BTreeMap<String, u64>,
}

impl Report {
    pub(super) fn wrong(&mut self, how: Wrong, what: impl Into<String>) {
        self.wrong.push((how, what.into()));
    }

    pub(super) fn check(&mut self, holds: bool, how: Wrong, what: impl FnOnce() -> String) {
        self.checks += 1;
        if !holds {
            self.wrong(how, what());
        }
    }

    /// Nothing here panics on purpose, wherever it is caught.
    pub(super) fn panicked(&mut self, panics: Vec<String>) {
        *self.figures.entry("panics".into()).or_default() += panics.len() as u64;
        self.wrong.extend(panics.into_iter().map(|panic| (Wrong::Broken, panic)));
    }

    pub(super) fn count(&mut self, figure: &str) {
        *self.figures.entry(figure.into()).or_default() += 1;
    }
}
