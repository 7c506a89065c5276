//! What is known of commands by their label: how long they take, and whether they tend to fail.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Duration;

use crate::label::Label;

/// Labels beyond this many are not learnt: a service has dozens, and memory must stay bounded.
const LABELS_MAX: usize = 1_024;

/// For how many commands a label keeps its savepoints after a command of it has failed half-way.
///
/// Trying without costs a group that is run twice if the label still fails; so a label that fails once in this
/// many commands always keeps them.
const GUARDED_COMMANDS: u32 = 4_096;

/// The experience with every label.
#[derive(Default)]
pub(crate) struct Labels {
    places: HashMap<Label, usize>,
    known: Vec<Known>,
    /// Commands of one kind come in runs: the last literal that was looked up, and its place.
    last: Cell<Option<(&'static str, usize)>>,
}

#[derive(Default)]
struct Known {
    /// A moving average of the running time.
    average: Duration,
    /// How many more commands keep a savepoint.
    guarded: u32,
}

impl Labels {
    /// The time a command with this label is expected to take; nothing if it is unknown.
    pub(crate) fn expect(&self, label: &Label) -> Option<Duration> {
        self.place(label).map(|place| self.known[place].average)
    }

    /// Whether commands with this label keep their savepoints whatever their kind.
    pub(crate) fn keeps_savepoint(&self, label: &Label) -> bool {
        match self.place(label) {
            Some(place) => self.known[place].guarded > 0,
            // Nothing can be learnt of it any more.
            None => self.known.len() >= LABELS_MAX,
        }
    }

    /// A command has run for so long, and succeeded or not.
    pub(crate) fn learn(&mut self, label: &Label, took: Duration, failed: bool) {
        let place = match self.place(label) {
            Some(place) => place,
            None if self.known.len() < LABELS_MAX => {
                let place = self.known.len();
                self.known.push(Known { average: took, guarded: 0 });
                self.places.insert(label.clone(), place);
                place
            }
            None => return,
        };
        let known = &mut self.known[place];
        known.average = (known.average * 7 + took) / 8;
        if known.guarded > 0 {
            known.guarded = if failed { GUARDED_COMMANDS } else { known.guarded - 1 };
        }
    }

    /// A command without a savepoint has cost its group a second run.
    pub(crate) fn guard(&mut self, label: &Label) {
        if let Some(place) = self.place(label) {
            self.known[place].guarded = GUARDED_COMMANDS;
        }
    }

    fn place(&self, label: &Label) -> Option<usize> {
        // The text of a label that is not a literal may go, and another take its address.
        let Some(text) = label.literal() else { return self.places.get(label).copied() };
        match self.last.get() {
            Some((last, place)) if std::ptr::eq(last, text) => Some(place),
            _ => {
                let place = *self.places.get(label)?;
                self.last.set(Some((text, place)));
                Some(place)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_failed_half_way_keeps_its_savepoints_until_it_has_long_not_failed() {
        let mut labels = Labels::default();
        let (bad, good) = (Label::from("bad"), Label::from(String::from("good")));
        for label in [&bad, &good] {
            labels.learn(label, Duration::from_millis(1), true);
            assert!(!labels.keeps_savepoint(label));
        }
        labels.guard(&bad);
        for _ in 1..GUARDED_COMMANDS {
            labels.learn(&bad, Duration::from_millis(1), false);
            assert!(labels.keeps_savepoint(&bad) && !labels.keeps_savepoint(&good));
        }
        labels.learn(&bad, Duration::from_millis(1), true);
        for _ in 0..GUARDED_COMMANDS {
            assert!(labels.keeps_savepoint(&bad), "failed again meanwhile");
            labels.learn(&bad, Duration::from_millis(1), false);
        }
        assert!(!labels.keeps_savepoint(&bad));
    }

    #[test]
    fn the_expected_time_follows_what_was_measured() {
        let mut labels = Labels::default();
        let label = Label::from("steady");
        assert_eq!(labels.expect(&label), None);
        for _ in 0..100 {
            labels.learn(&label, Duration::from_millis(8), false);
        }
        assert_eq!(labels.expect(&label), Some(Duration::from_millis(8)));
        assert_eq!(labels.expect(&Label::from(String::from("steady"))), Some(Duration::from_millis(8)));
    }

    #[test]
    fn labels_beyond_the_limit_are_guarded_and_cost_no_memory() {
        let mut labels = Labels::default();
        for index in 0..LABELS_MAX + 10 {
            labels.learn(&Label::from(format!("order {index}")), Duration::from_millis(1), false);
        }
        assert_eq!(labels.known.len(), LABELS_MAX);
        assert!(!labels.keeps_savepoint(&Label::from("order 1")));
        assert!(labels.keeps_savepoint(&Label::from("one more")));
    }
}
