//! What an import has come to, and what the next run of it may make of that.

use std::collections::BTreeMap;

use solewriter::{ImportFailure, ImportReport, ReadTransaction, WriteError};

use super::good::{self, ENTRIES, IMPORT};

#[derive(Debug)]
pub(super) struct Imported {
    /// How often each entry is there.
    pub(super) entries: BTreeMap<i64, i64>,
    record: Option<Record>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    next_entry: i64,
    accepted: i64,
    failed: i64,
    is_complete: bool,
}

impl Record {
    /// Every entry before the next one was imported or has failed.
    fn makes_sense(&self) -> bool {
        self.next_entry >= 0
            && self.accepted >= 0
            && self.failed >= 0
            && self.accepted.checked_add(self.failed) == Some(self.next_entry)
    }
}

impl Imported {
    pub(super) fn read(tx: &ReadTransaction<'_>) -> rusqlite::Result<Self> {
        let entries = "SELECT entry, count(*) FROM imported NOT INDEXED GROUP BY entry";
        let entries = tx.query_all(entries, (), |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect();
        let is_table =
            "SELECT count(*) FROM sqlite_schema WHERE name = 'solewriter_imports' AND type = 'table'";
        if tx.query_row(is_table, (), |row| row.get::<_, i64>(0))? == 0 {
            return Ok(Self { entries, record: None });
        }
        let record =
            "SELECT next_entry, accepted, failed, state = 'complete' FROM solewriter_imports WHERE id = ?1";
        let record = tx.query_all(record, [IMPORT], |row| {
            Ok(Record {
                next_entry: row.get(0)?,
                accepted: row.get(1)?,
                failed: row.get(2)?,
                is_complete: row.get(3)?,
            })
        })?;
        Ok(Self { entries, record: record.into_iter().next() })
    }

    /// Whether the run of an import did what it says, and went on where its record says.
    pub(super) fn leads_to(
        &self,
        after: &Self,
        report: &ImportReport<rusqlite::Error>,
        failure: Option<&ImportFailure>,
    ) -> Result<(), String> {
        let mut added = after.entries.clone();
        for (entry, count) in &self.entries {
            *added.entry(*entry).or_default() -= count;
        }
        added.retain(|_, count| *count != 0);
        if let Some(record) = &self.record
            && !record.makes_sense()
        {
            let refused = matches!(failure, Some(ImportFailure::Record(_))) && added.is_empty();
            return if refused { Ok(()) } else { Err(format!("went on after {record:?}, added {added:?}")) };
        }
        if let Some((entry, count)) = added.iter().find(|(_, count)| **count != 1) {
            return Err(format!("entry {entry} is there {count} times more"));
        }
        let is_complete = self.record.is_some_and(|record| record.is_complete);
        let from = self.record.map_or(0, |record| record.next_entry);
        let wanted: Vec<i64> = (from..ENTRIES)
            .filter(|entry| good::is_good_entry(*entry) && !is_complete)
            .take(if failure.is_none() { usize::MAX } else { added.len() })
            .collect();
        if !added.keys().eq(&wanted) {
            return Err(format!("added {added:?} instead of {wanted:?}"));
        }
        let may_be_more = matches!(failure, Some(ImportFailure::Writer(WriteError::Unknown(_))));
        if report.accepted != added.len() as u64 && !may_be_more {
            return Err(format!("{} entries were added", added.len()));
        }
        Ok(())
    }
}
