//! Holds what the database has against what was answered.

use serde::Serialize;
use solewriter::rusqlite::{self, Connection};

use super::foreign::ForeignReport;
use super::ledger::{Expected, Ledger};
use crate::pragmas::{self, Check, Violation};

/// What became of the answers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Verification {
    /// Acknowledged pairs that are there, both halves.
    pub(crate) verified: u64,
    /// Acknowledged pairs of which nothing is there.
    pub(crate) lost: u64,
    /// Pairs of which one half is there, whatever was answered.
    pub(crate) half_applied: u64,
    /// Pairs that were answered as failed, or never sent, and are there.
    pub(crate) unexpected: u64,
    /// Rows of other programs that are there.
    pub(crate) foreign_verified: u64,
    /// Rows that other programs had committed and that are not there.
    pub(crate) foreign_lost: u64,
    /// Why rows could not be read, if any could not.
    pub(crate) unreadable: Option<String>,
    pub(crate) integrity: Check<String>,
    pub(crate) foreign_keys: Check<Violation>,
}

impl Verification {
    /// Looks at all pairs of these sources, and at the database as a whole.
    pub(crate) fn of(connection: &Connection) -> Self {
        Self {
            integrity: pragmas::integrity_check(connection),
            foreign_keys: pragmas::foreign_key_check(connection),
            ..Self::default()
        }
    }

    /// Whether every answer was true.
    pub(crate) fn is_fine(&self) -> bool {
        let wrong = [self.lost, self.half_applied, self.unexpected, self.foreign_lost];
        wrong == [0; 4]
            && self.unreadable.is_none()
            && self.integrity.is_fine()
            && self.foreign_keys.is_fine()
    }

    /// Looks at every pair of one writer.
    pub(crate) fn check(&mut self, connection: &Connection, source: i64, ledger: &Ledger) {
        if let Err(error) = self.check_pairs(connection, source, ledger) {
            self.note_unreadable(&error);
        }
    }

    /// Rows that can't be read are not there for anybody.
    fn note_unreadable(&mut self, error: &rusqlite::Error) {
        self.unreadable.get_or_insert_with(|| error.to_string());
    }

    /// In order: neither the rows nor the answers are gathered in memory.
    fn check_pairs(&mut self, connection: &Connection, source: i64, ledger: &Ledger) -> rusqlite::Result<()> {
        let sql = "SELECT seq, count(*) FROM stress_halves WHERE source = ?1 GROUP BY seq ORDER BY seq";
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([source])?;
        let mut next = 0;
        while let Some(row) = rows.next()? {
            let (seq, halves): (i64, i64) = (row.get(0)?, row.get(1)?);
            let seq = seq.cast_unsigned();
            for absent in next..seq.min(ledger.sent()) {
                self.count(ledger.expected(absent), 0);
            }
            self.count(ledger.expected(seq), halves);
            next = seq + 1;
        }
        for absent in next..ledger.sent() {
            self.count(ledger.expected(absent), 0);
        }
        Ok(())
    }

    fn count(&mut self, expected: Expected, halves: i64) {
        match (expected, halves) {
            (_, 1) => self.half_applied += 1,
            (Expected::Both, 0) => self.lost += 1,
            (Expected::Both, _) => self.verified += 1,
            (Expected::None, 2..) => self.unexpected += 1,
            (Expected::None | Expected::BothOrNone, _) => {}
        }
    }

    /// Looks at the rows of another program. Its last one may be there though it could not tell.
    pub(crate) fn check_foreign(&mut self, connection: &Connection, source: i64, report: &ForeignReport) {
        let there = connection.query_row(
            "SELECT count(*) FROM stress_foreign WHERE source = ?1 AND seq < ?2",
            (source, report.acknowledged.cast_signed()),
            |row| row.get::<_, i64>(0),
        );
        match there.map(i64::cast_unsigned) {
            Ok(there) => {
                self.foreign_verified += there;
                self.foreign_lost += report.acknowledged - there;
            }
            Err(error) => self.note_unreadable(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::schema::SCHEMA;
    use super::*;

    /// Ten acknowledged pairs, one that failed, one unknown; then somebody meddles with the rows.
    fn verification(meddle: &str) -> Verification {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection.execute_batch("INSERT INTO stress_sources VALUES (1, 'writer'), (2, 'foreign')").unwrap();
        let mut ledger = Ledger::default();
        for expected in [Expected::Both; 10].into_iter().chain([Expected::None, Expected::BothOrNone]) {
            let seq = ledger.next();
            ledger.answered(seq, expected);
            if expected == Expected::Both {
                let insert = "INSERT INTO stress_halves VALUES (1, ?1, 0), (1, ?1, 1)";
                connection.execute(insert, [seq.cast_signed()]).unwrap();
            }
        }
        connection.execute_batch("INSERT INTO stress_foreign VALUES (2, 0), (2, 1)").unwrap();
        connection.execute_batch(meddle).unwrap();
        let mut verification = Verification::of(&connection);
        verification.check(&connection, 1, &ledger);
        let report = ForeignReport { acknowledged: 2, ..ForeignReport::default() };
        verification.check_foreign(&connection, 2, &report);
        verification
    }

    #[test]
    fn true_answers_are_fine() {
        let verification = verification("");
        assert!(verification.is_fine(), "{verification:?}");
        assert_eq!((verification.verified, verification.foreign_verified), (10, 2));
    }

    #[test]
    fn an_unknown_pair_may_be_there_or_not() {
        let verification = verification("INSERT INTO stress_halves VALUES (1, 11, 0), (1, 11, 1)");
        assert!(verification.is_fine(), "{verification:?}");
        assert_eq!(verification.verified, 10);
    }

    #[test]
    fn every_false_answer_is_found() {
        for (meddle, [lost, half_applied, unexpected, foreign_lost]) in [
            ("DELETE FROM stress_halves WHERE seq = 0", [1, 0, 0, 0]),
            ("DELETE FROM stress_halves WHERE seq = 9", [1, 0, 0, 0]),
            ("DELETE FROM stress_halves WHERE seq IN (3, 4)", [2, 0, 0, 0]),
            ("DELETE FROM stress_halves", [10, 0, 0, 0]),
            ("DELETE FROM stress_halves WHERE seq = 5 AND half = 1", [0, 1, 0, 0]),
            ("DELETE FROM stress_halves WHERE seq = 9 AND half = 0", [0, 1, 0, 0]),
            ("INSERT INTO stress_halves VALUES (1, 10, 0)", [0, 1, 0, 0]),
            ("INSERT INTO stress_halves VALUES (1, 11, 1)", [0, 1, 0, 0]),
            ("INSERT INTO stress_halves VALUES (1, 10, 0), (1, 10, 1)", [0, 0, 1, 0]),
            ("INSERT INTO stress_halves VALUES (1, 77, 0), (1, 77, 1)", [0, 0, 1, 0]),
            ("DELETE FROM stress_foreign WHERE seq = 0", [0, 0, 0, 1]),
        ] {
            let found = verification(meddle);
            assert!(!found.is_fine(), "{meddle}");
            let counts = [found.lost, found.half_applied, found.unexpected, found.foreign_lost];
            assert_eq!(counts, [lost, half_applied, unexpected, foreign_lost], "{meddle}");
        }
    }

    #[test]
    fn rows_that_can_not_be_read_are_no_reason_to_be_content() {
        let found = verification("DROP TABLE stress_halves; CREATE TABLE stress_halves (other)");
        assert!(found.unreadable.is_some() && !found.is_fine(), "{found:?}");
    }

    #[test]
    fn a_violated_foreign_key_is_found() {
        let meddle = "PRAGMA foreign_keys = off; DELETE FROM stress_sources WHERE source = 2";
        let verification = verification(meddle);
        assert_eq!(verification.foreign_keys.found, 2);
        assert!(!verification.is_fine());
    }
}
