//! Prepared statements, kept for the next call with the same text.

use std::cell::RefCell;

use rusqlite::{CachedStatement, Connection, Statement};

/// The statements of a connection, without its lifetime.
pub(crate) trait Statements {
    /// Prepares a statement, or finds it, and lends it out for one use.
    fn lend(&self, sql: &str, to: &mut dyn FnMut(&mut Statement<'_>)) -> rusqlite::Result<()>;

    /// Keeps none: each is prepared anew at its next use.
    fn forget(&self);
}

/// As rusqlite keeps them.
impl Statements for Connection {
    fn lend(&self, sql: &str, to: &mut dyn FnMut(&mut Statement<'_>)) -> rusqlite::Result<()> {
        to(&mut *self.prepare_cached(sql)?);
        Ok(())
    }

    fn forget(&self) {
        self.flush_prepared_statement_cache();
    }
}

/// So many are at hand: those of a few kinds of commands, which come by turns.
const RECENT_MAX: usize = 8;

/// As [`Connection`] keeps them, with the last few at hand.
///
/// To take a statement out of rusqlite's cache, and to put it back, is a quarter of what SQLite needs to insert a row.
pub(crate) struct RecentStatements<'c> {
    connection: &'c Connection,
    /// The latest is the last.
    recent: RefCell<Vec<Recent<'c>>>,
    recent_max: usize,
}

struct Recent<'c> {
    sql: Box<str>,
    /// Goes back to the cache when it is dropped.
    statement: CachedStatement<'c>,
}

impl<'c> RecentStatements<'c> {
    pub(crate) fn new(connection: &'c Connection, capacity: usize) -> Self {
        let recent_max = RECENT_MAX.min(capacity);
        Self { connection, recent: RefCell::new(Vec::with_capacity(recent_max + 1)), recent_max }
    }

    fn take(&self, sql: &str) -> rusqlite::Result<Recent<'c>> {
        let mut recent = self.recent.borrow_mut();
        match recent.iter().rposition(|recent| *recent.sql == *sql) {
            Some(place) => Ok(recent.remove(place)),
            None => Ok(Recent { statement: self.connection.prepare_cached(sql)?, sql: sql.into() }),
        }
    }

    fn put_back(&self, mut used: Recent<'c>) {
        // They may be large, and nobody needs them any more.
        used.statement.clear_bindings();
        let mut recent = self.recent.borrow_mut();
        recent.push(used);
        if recent.len() > self.recent_max {
            recent.remove(0);
        }
    }
}

impl Statements for RecentStatements<'_> {
    fn lend(&self, sql: &str, to: &mut dyn FnMut(&mut Statement<'_>)) -> rusqlite::Result<()> {
        // Out of the list meanwhile: user code that maps a row may ask for the same text.
        let mut used = self.take(sql)?;
        to(&mut used.statement);
        self.put_back(used);
        Ok(())
    }

    fn forget(&self) {
        self.recent.borrow_mut().clear();
        self.connection.forget();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    fn run(statements: &dyn Statements, sql: &str) -> i64 {
        let mut answer = 0;
        let lent = statements.lend(sql, &mut |statement| {
            answer = statement.query_row((), |row| row.get(0)).unwrap();
        });
        lent.unwrap();
        answer
    }

    #[test]
    fn the_last_few_are_at_hand_and_the_others_are_back_in_the_cache() {
        let connection = Connection::open_in_memory().unwrap();
        let statements = RecentStatements::new(&connection, 16);
        for number in 0..20 {
            assert_eq!(run(&statements, &format!("SELECT {number}")), number);
        }
        let texts: Vec<_> = statements.recent.borrow().iter().map(|recent| recent.sql.to_string()).collect();
        assert_eq!(texts, (12..20).map(|number| format!("SELECT {number}")).collect::<Vec<_>>());
        assert_eq!(run(&statements, "SELECT 12"), 12);
        assert_eq!(&*statements.recent.borrow()[7].sql, "SELECT 12", "the latest is the last to go");
        assert_eq!(run(&statements, "SELECT 3"), 3);
    }

    #[test]
    fn a_statement_can_be_asked_for_while_the_same_is_in_use() {
        let connection = Connection::open_in_memory().unwrap();
        let statements = RecentStatements::new(&connection, 16);
        let mut inner = 0;
        let lent = statements.lend("SELECT 7", &mut |_| inner = run(&statements, "SELECT 7"));
        assert!(lent.is_ok() && inner == 7);
    }

    #[test]
    fn what_is_forgotten_and_what_a_cache_has_no_room_for_is_prepared_anew() {
        let connection = Connection::open_in_memory().unwrap();
        let statements = RecentStatements::new(&connection, 16);
        run(&statements, "SELECT 1");
        statements.forget();
        assert!(statements.recent.borrow().is_empty());
        let without_cache = RecentStatements::new(&connection, 0);
        run(&without_cache, "SELECT 1");
        assert!(without_cache.recent.borrow().is_empty());
    }
}
