//! What was sent and what was acknowledged, to look for it afterwards.

use std::collections::{HashMap, HashSet};

/// The rows that were sent: those of each client are numbered from 0, and all but the failed are acknowledged.
#[derive(Debug, Default)]
pub struct Ledger {
    clients: HashMap<i64, Sent>,
}

#[derive(Debug, Default)]
struct Sent {
    rows: i64,
    failed: HashSet<i64>,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, but absent.
    pub lost: u64,
    /// There, although an error was the answer, or twice.
    pub surplus: u64,
}

impl Ledger {
    /// Notes what a client has sent, and which of it was answered with an error.
    pub fn note(&mut self, client: i64, rows: i64, failed: impl IntoIterator<Item = i64>) {
        let sent = self.clients.entry(client).or_default();
        sent.rows = sent.rows.max(rows);
        sent.failed.extend(failed);
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.clients.values().map(|sent| sent.rows.unsigned_abs() - sent.failed.len() as u64).sum()
    }

    /// Compares with what is there.
    #[must_use]
    pub fn compare(&self, there: &[(i64, i64)]) -> Verdict {
        let mut found: HashSet<(i64, i64)> = HashSet::with_capacity(there.len());
        let mut surplus = 0;
        for &(client, sequence) in there {
            let is_acknowledged = self
                .clients
                .get(&client)
                .is_some_and(|sent| sequence < sent.rows && !sent.failed.contains(&sequence));
            if !is_acknowledged || !found.insert((client, sequence)) {
                surplus += 1;
            }
        }
        Verdict { lost: self.acknowledged().saturating_sub(found.len() as u64), surplus }
    }
}

#[cfg(test)]
mod tests {
    use super::{Ledger, Verdict};

    #[test]
    fn absent_rows_are_lost_and_failed_ones_that_are_there_are_surplus() {
        let mut ledger = Ledger::default();
        ledger.note(1, 3, [1]);
        ledger.note(2, 2, []);
        let verdict = ledger.compare(&[(1, 0), (1, 1), (2, 0), (2, 0), (9, 0)]);
        assert_eq!(verdict, Verdict { lost: 2, surplus: 3 });
    }
}
