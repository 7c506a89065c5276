//! How long a command is expected to take, by its label.

use std::collections::HashMap;
use std::time::Duration;

use crate::label::Label;

/// Labels beyond this many are not learnt: a service has dozens, and memory must stay bounded.
const LABELS_MAX: usize = 1_024;

/// A moving average of the running time of each label.
#[derive(Default)]
pub(crate) struct Forecast {
    average: HashMap<Label, Duration>,
}

impl Forecast {
    /// The time a command with this label is expected to take; zero if nothing is known.
    pub(crate) fn expect(&self, label: &Label) -> Duration {
        self.average.get(label).copied().unwrap_or_default()
    }

    pub(crate) fn learn(&mut self, label: &Label, took: Duration) {
        if let Some(average) = self.average.get_mut(label) {
            *average = (*average * 7 + took) / 8;
        } else if self.average.len() < LABELS_MAX {
            self.average.insert(label.clone(), took);
        }
    }
}
