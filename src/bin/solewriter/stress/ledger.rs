//! What each writer has been answered: little memory for many answers, since most of them are alike.

use std::sync::Mutex;

use roaring::RoaringTreemap;

/// The answers to one writer's pairs, numbered from 0.
///
/// Kept are those that were not acknowledged, so a pair that was costs nothing, and of the others two bytes.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    sent: u64,
    /// Answered as failed: no row may be there.
    failed: RoaringTreemap,
    /// Answered as unknown, or not answered: both rows may be there or none.
    open: RoaringTreemap,
}

/// A ledger that its writer and the end of the run share.
pub(crate) type Shared = std::sync::Arc<Mutex<Ledger>>;

/// What an answer says about the rows of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Both,
    None,
    BothOrNone,
}

impl Ledger {
    /// The number of the next pair, which is open until it is answered.
    pub(crate) fn next(&mut self) -> u64 {
        let seq = self.sent;
        self.sent += 1;
        self.open.insert(seq);
        seq
    }

    /// Enters the answer to a pair.
    pub(crate) fn answered(&mut self, seq: u64, expected: Expected) {
        if expected != Expected::BothOrNone {
            self.open.remove(seq);
        }
        if expected == Expected::None {
            self.failed.insert(seq);
        }
    }

    /// Nobody will answer these any more, and whoever was to says that all is done: both halves are owed.
    pub(crate) fn close(&mut self, sent: std::ops::Range<u64>) {
        self.open.remove_range(sent);
    }

    /// What must be found of a pair.
    pub(crate) fn expected(&self, seq: u64) -> Expected {
        if seq >= self.sent || self.failed.contains(seq) {
            Expected::None
        } else if self.open.contains(seq) {
            Expected::BothOrNone
        } else {
            Expected::Both
        }
    }

    /// How many pairs were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// How many pairs were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.sent - self.failed.len() - self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_nobody_answered_is_owed_once_all_is_said_to_be_done() {
        let mut ledger = Ledger::default();
        assert_eq!([0; 3].map(|_| ledger.next()), [0, 1, 2]);
        ledger.answered(0, Expected::None);
        ledger.close(0..2);
        let expected = [Expected::None, Expected::Both, Expected::BothOrNone];
        assert_eq!([0, 1, 2].map(|seq| ledger.expected(seq)), expected);
    }

    #[test]
    fn a_pair_is_expected_as_it_was_answered() {
        let mut ledger = Ledger::default();
        let answers = [Some(Expected::Both), Some(Expected::None), Some(Expected::BothOrNone), None];
        for answer in answers {
            let seq = ledger.next();
            if let Some(answer) = answer {
                ledger.answered(seq, answer);
            }
        }
        let expected =
            [Expected::Both, Expected::None, Expected::BothOrNone, Expected::BothOrNone, Expected::None];
        for (seq, expected) in (0..).zip(expected) {
            assert_eq!(ledger.expected(seq), expected, "{seq}");
        }
        assert_eq!((ledger.sent(), ledger.acknowledged()), (4, 1));
    }
}
