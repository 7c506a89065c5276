//! What user code gets to see of a connection, and every statement that begins or ends a transaction.
//!
//! User code never holds the connection itself: it could commit its neighbours, or change settings that
//! outlive it. An authorizer refuses such SQL while user code runs, and a commit hook vetoes any commit.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{CachedStatement, Connection, Params, Row, Statement, ffi};

use crate::error::{RolledBack, WriteError};
use crate::sqlite_ffi;
use crate::watchdog::Watchdog;

/// One unchanging state of the database, for reading.
///
/// Every method that takes SQL keeps the prepared statement for the next call, except
/// [`prepare`](Self::prepare).
pub struct ReadTransaction<'c> {
    connection: &'c Connection,
    /// Refuses further statements once the time of a read is up.
    watchdog: Option<&'c Watchdog>,
}

impl ReadTransaction<'_> {
    /// Prepares a statement that is used once.
    ///
    /// # Errors
    /// SQLite's, if the SQL is wrong or not allowed here.
    pub fn prepare(&self, sql: &str) -> rusqlite::Result<Statement<'_>> {
        self.check()?;
        self.connection.prepare(sql)
    }

    /// Prepares a statement, or takes the one prepared earlier for the same text.
    ///
    /// # Errors
    /// SQLite's, if the SQL is wrong or not allowed here.
    pub fn prepare_cached(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.check()?;
        self.connection.prepare_cached(sql)
    }

    /// The first row of a query, mapped by `map`.
    ///
    /// # Errors
    /// [`rusqlite::Error::QueryReturnedNoRows`] if there is none; SQLite's or the mapping's otherwise.
    pub fn query_row<T, P, F>(&self, sql: &str, params: P, map: F) -> rusqlite::Result<T>
    where
        P: Params,
        F: FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    {
        self.prepare_cached(sql)?.query_row(params, map)
    }

    /// All rows of a query, each mapped by `map`.
    ///
    /// # Errors
    /// SQLite's or the mapping's.
    pub fn query_all<T, P, F>(&self, sql: &str, params: P, map: F) -> rusqlite::Result<Vec<T>>
    where
        P: Params,
        F: FnMut(&Row<'_>) -> rusqlite::Result<T>,
    {
        self.prepare_cached(sql)?.query_map(params, map)?.collect()
    }

    fn check(&self) -> rusqlite::Result<()> {
        self.watchdog.map_or(Ok(()), Watchdog::check)
    }
}

impl fmt::Debug for ReadTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadTransaction").finish_non_exhaustive()
    }
}

/// What a command may do: read, write, and nest, but neither commit nor roll back the transaction it shares
/// with its neighbours.
///
/// A command fails by returning an error; all it wrote is undone then, and nothing of its neighbours.
pub struct WriteTransaction<'c> {
    read: ReadTransaction<'c>,
    control: &'c dyn Savepoints,
    user_code: &'c UserCode,
}

impl<'c> Deref for WriteTransaction<'c> {
    type Target = ReadTransaction<'c>;

    fn deref(&self) -> &Self::Target {
        &self.read
    }
}

impl<'c> WriteTransaction<'c> {
    /// Runs one statement and returns how many rows it changed.
    ///
    /// # Errors
    /// SQLite's; [`rusqlite::Error::ExecuteReturnedResults`] if the statement gives rows.
    pub fn execute<P: Params>(&mut self, sql: &str, params: P) -> rusqlite::Result<usize> {
        self.prepare_cached(sql)?.execute(params)
    }

    /// Runs several statements without parameters, such as the steps of a migration.
    ///
    /// # Errors
    /// SQLite's, at the first statement that fails.
    pub fn execute_batch(&mut self, sql: &str) -> rusqlite::Result<()> {
        self.connection.execute_batch(sql)
    }

    /// The rowid of the newest row this command inserted; 0 if it inserted none.
    #[must_use]
    pub fn last_insert_rowid(&self) -> i64 {
        self.connection.last_insert_rowid()
    }

    /// How many rows the newest statement that can change rows has changed. Ask after such a statement: before
    /// the first one of a command, the answer is about the command before it.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.connection.changes()
    }

    /// Runs a part of the command that can fail by itself: its writes are undone if it returns an error.
    ///
    /// # Errors
    /// That of `part`, or SQLite's.
    ///
    /// # Panics
    /// If `part` does; its writes are undone then too.
    pub fn savepoint<T, E>(
        &mut self,
        part: impl FnOnce(&mut WriteTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<rusqlite::Error>,
    {
        if self.connection.is_autocommit() {
            // Outside of a transaction a savepoint would begin one, and its release commit it.
            let ended = ffi::Error::new(ffi::SQLITE_ABORT_ROLLBACK);
            return Err(rusqlite::Error::SqliteFailure(ended, None).into());
        }
        self.user_code.pause(|| self.control.savepoint())?;
        let result = catch_unwind(AssertUnwindSafe(|| part(self)));
        // SQLite may have ended the transaction by itself, and the savepoint with it.
        if !self.connection.is_autocommit() {
            self.end_savepoint(matches!(result, Ok(Ok(_))))?;
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs user code so that its failure, its panic or a foreign key it breaks costs nobody else anything.
    pub(crate) fn isolate<T, E>(
        &mut self,
        work: impl FnOnce(&mut WriteTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, Fault<E>> {
        self.user_code.pause(|| self.control.savepoint()).map_err(Fault::control)?;
        sqlite_ffi::reset_last_insert_rowid(self.connection);
        let result = self.user_code.run(|| catch_unwind(AssertUnwindSafe(|| work(self))));
        let result = match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(WriteError::Command(error)),
            Err(panic) => Err(RolledBack::Panicked(panic_message(panic)).into()),
        };
        // Both mean that the savepoint can neither be released nor rolled back.
        let ended = self.connection.is_autocommit();
        if ended || self.connection.is_busy() {
            let reason = if ended { RolledBack::TransactionEnded } else { RolledBack::StatementLeftOpen };
            let error = match result {
                Ok(value) => discard(value, reason),
                Err(error) => error,
            };
            return Err(Fault { error, transaction_lost: true });
        }
        // COMMIT would fail for everyone: name the culprit while it can still be undone alone.
        let result = match result {
            Ok(value) if sqlite_ffi::deferred_foreign_key_violated(self.connection) => {
                Err(discard(value, RolledBack::ForeignKey))
            }
            result => result,
        };
        self.end_savepoint(result.is_ok()).map_err(Fault::control)?;
        result.map_err(|error| Fault { error, transaction_lost: false })
    }

    fn end_savepoint(&self, keep: bool) -> rusqlite::Result<()> {
        self.user_code
            .pause(|| if keep { self.control.release() } else { self.control.roll_back_savepoint() })
    }
}

impl fmt::Debug for WriteTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTransaction").finish_non_exhaustive()
    }
}

/// Drops a value that is worth nothing, for this reason. Its type is the user's, and may panic.
fn discard<T, E>(value: T, reason: RolledBack) -> WriteError<E> {
    match catch_unwind(AssertUnwindSafe(|| drop(value))) {
        Ok(()) => reason.into(),
        Err(panic) => RolledBack::Panicked(panic_message(panic)).into(),
    }
}

/// Why a piece of isolated user code is not in the transaction.
pub(crate) struct Fault<E> {
    pub(crate) error: WriteError<E>,
    /// Whether it took the whole transaction with it; else only its own writes are undone.
    pub(crate) transaction_lost: bool,
}

impl<E> Fault<E> {
    /// A savepoint statement of our own failed, so what the transaction holds is in doubt.
    fn control(error: rusqlite::Error) -> Self {
        Self { error: RolledBack::GroupLost(error.into()).into(), transaction_lost: true }
    }
}

/// The savepoints of a write connection, without its lifetime.
trait Savepoints {
    fn savepoint(&self) -> rusqlite::Result<()>;
    fn release(&self) -> rusqlite::Result<()>;
    /// Undoes what was written since the savepoint and removes it.
    fn roll_back_savepoint(&self) -> rusqlite::Result<()>;
}

/// The statements that begin and end transactions on a write connection.
///
/// They are prepared once and kept out of rusqlite's statement cache: a cached `COMMIT` would be handed to a
/// command that asks for the same text, past the authorizer.
pub(crate) struct TransactionControl<'c> {
    connection: &'c Connection,
    user_code: &'c UserCode,
    begin: RefCell<Statement<'c>>,
    commit: RefCell<Statement<'c>>,
    savepoint: RefCell<Statement<'c>>,
    release: RefCell<Statement<'c>>,
    roll_back_to: RefCell<Statement<'c>>,
}

impl<'c> TransactionControl<'c> {
    pub(crate) fn prepare(connection: &'c Connection, user_code: &'c UserCode) -> rusqlite::Result<Self> {
        let statement = |sql| connection.prepare(sql).map(RefCell::new);
        Ok(Self {
            connection,
            user_code,
            begin: statement("BEGIN IMMEDIATE")?,
            commit: statement("COMMIT")?,
            savepoint: statement("SAVEPOINT solewriter")?,
            release: statement("RELEASE solewriter")?,
            roll_back_to: statement("ROLLBACK TO solewriter")?,
        })
    }

    /// Takes the write lock.
    pub(crate) fn begin(&self) -> rusqlite::Result<()> {
        run(&self.begin)
    }

    pub(crate) fn commit(&self) -> rusqlite::Result<()> {
        self.user_code.allow_commit(|| run(&self.commit))
    }

    /// Ends the transaction, if SQLite has not done so by itself.
    pub(crate) fn roll_back(&self) -> rusqlite::Result<()> {
        if self.connection.is_autocommit() { Ok(()) } else { self.connection.execute_batch("ROLLBACK") }
    }

    /// What user code gets to see of the open transaction.
    pub(crate) fn transaction(&self) -> WriteTransaction<'_> {
        WriteTransaction {
            read: ReadTransaction { connection: self.connection, watchdog: None },
            control: self,
            user_code: self.user_code,
        }
    }
}

impl Savepoints for TransactionControl<'_> {
    fn savepoint(&self) -> rusqlite::Result<()> {
        run(&self.savepoint)
    }

    fn release(&self) -> rusqlite::Result<()> {
        run(&self.release)
    }

    fn roll_back_savepoint(&self) -> rusqlite::Result<()> {
        run(&self.roll_back_to)?;
        run(&self.release)
    }
}

fn run(statement: &RefCell<Statement<'_>>) -> rusqlite::Result<()> {
    statement.borrow_mut().raw_execute().map(drop)
}

/// Begins a read transaction and takes its snapshot at once: BEGIN alone leaves that to the first statement,
/// and what stands in the way of reading with it.
pub(crate) fn begin_read(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1")
}

/// Runs user code in a read transaction that has begun.
pub(crate) fn read_transaction<T>(
    connection: &Connection,
    user_code: &UserCode,
    watchdog: &Watchdog,
    read: impl FnOnce(&ReadTransaction<'_>) -> T,
) -> std::thread::Result<T> {
    let transaction = ReadTransaction { connection, watchdog: Some(watchdog) };
    user_code.run(|| catch_unwind(AssertUnwindSafe(|| read(&transaction))))
}

/// Whether a read transaction still stands, and no statement was left half-stepped in it.
pub(crate) fn read_transaction_stands(connection: &Connection) -> bool {
    !connection.is_autocommit() && !connection.is_busy()
}

/// Ends a read transaction, whatever user code left open; false if the connection is not fit for another.
pub(crate) fn end_read(connection: &Connection) -> bool {
    // SQLite may have ended it by itself.
    let ended = connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok();
    ended && !connection.is_busy()
}

/// The message of a caught panic.
pub(crate) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast_ref::<&str>().map_or_else(|| "no message".into(), |&m| m.into()),
    }
}

/// Whether user code runs on a connection now, so that SQL can't end its transaction; and whether the writer
/// commits now, which nothing else ever may.
#[derive(Clone, Default)]
pub(crate) struct UserCode(Arc<Flags>);

#[derive(Default)]
struct Flags {
    runs: AtomicBool,
    commits: AtomicBool,
}

impl UserCode {
    /// Guards a connection; once, since an authorizer set for each command would cost more than the command.
    pub(crate) fn guard(connection: &Connection) -> rusqlite::Result<Self> {
        let user_code = Self::default();
        let flags = user_code.0.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            if flags.runs.load(Ordering::Relaxed) { authorize(&context) } else { Authorization::Allow }
        }))?;
        let flags = user_code.0.clone();
        // A command that swallows an `OR ROLLBACK` and writes on would commit each statement by itself.
        connection.commit_hook(Some(move || !flags.commits.load(Ordering::Relaxed)))?;
        Ok(user_code)
    }

    fn run<T>(&self, code: impl FnOnce() -> T) -> T {
        switch(&self.0.runs, true, code)
    }

    fn pause<T>(&self, code: impl FnOnce() -> T) -> T {
        switch(&self.0.runs, false, code)
    }

    fn allow_commit<T>(&self, code: impl FnOnce() -> T) -> T {
        switch(&self.0.commits, true, code)
    }
}

/// Sets a flag for as long as `code` runs, which must not panic: the caller catches what user code throws.
fn switch<T>(flag: &AtomicBool, to: bool, code: impl FnOnce() -> T) -> T {
    let before = flag.swap(to, Ordering::Relaxed);
    let result = code();
    flag.store(before, Ordering::Relaxed);
    result
}

/// Pragmas that only read, or write nothing but the database header within the transaction.
/// FTS5 itself prepares `data_version`.
const ALLOWED_PRAGMAS: [&str; 20] = [
    "application_id",
    "collation_list",
    "compile_options",
    "data_version",
    "database_list",
    "foreign_key_check",
    "foreign_key_list",
    "freelist_count",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "page_count",
    "page_size",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];

fn authorize(context: &AuthContext<'_>) -> Authorization {
    let allowed = match &context.action {
        AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::Attach { .. }
        | AuthAction::Detach { .. } => false,
        // What is temporary belongs to the connection: the next command would find it, in place of the real.
        AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. } => false,
        AuthAction::CreateTable { .. }
        | AuthAction::CreateIndex { .. }
        | AuthAction::CreateTrigger { .. }
        | AuthAction::CreateView { .. }
        | AuthAction::CreateVtable { .. } => context.database_name != Some("temp"),
        AuthAction::Pragma { pragma_name, .. } => {
            ALLOWED_PRAGMAS.iter().any(|name| name.eq_ignore_ascii_case(pragma_name))
        }
        _ => true,
    };
    if allowed { Authorization::Allow } else { Authorization::Deny }
}
