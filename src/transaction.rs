//! What user code gets to see of a connection, and every statement that begins or ends a transaction.
//!
//! User code never holds the connection itself: it could commit its neighbours, or change settings that
//! outlive it. An authorizer refuses such SQL while user code runs, and a commit hook vetoes any commit.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use rusqlite::{CachedStatement, Connection, Params, Row, Statement, ffi};

use crate::connection;
use crate::error::{RolledBack, WriteError};
use crate::failed::Reason;
use crate::failure::Failure;
use crate::rules::{self, AfterCommand, Guard, Loss, Seen};
use crate::sqlite_ffi;
use crate::statements::{RecentStatements, Statements};
use crate::sync::drop_quietly;
use crate::user_code::UserCode;
use crate::watchdog::Watchdog;

/// One unchanging state of the database, for reading.
///
/// Every method that takes SQL keeps the prepared statement for the next call, except
/// [`prepare`](Self::prepare).
pub struct ReadTransaction<'c> {
    connection: &'c Connection,
    statements: &'c dyn Statements,
    /// Statements that user code got into its hands, and may have left half-stepped.
    statements_given: Cell<u32>,
    /// Refuses further statements once the time of the caller is up.
    watchdog: &'c Watchdog,
}

impl<'c> ReadTransaction<'c> {
    fn new(connection: &'c Connection, statements: &'c dyn Statements, watchdog: &'c Watchdog) -> Self {
        Self { connection, statements, statements_given: Cell::new(0), watchdog }
    }

    /// Prepares a statement that is used once.
    ///
    /// # Errors
    /// SQLite's, if the SQL is wrong or not allowed here.
    pub fn prepare(&self, sql: &str) -> rusqlite::Result<Statement<'_>> {
        self.watchdog.check()?;
        self.statements_given.update(|given| given.wrapping_add(1));
        self.connection.prepare(sql)
    }

    /// Prepares a statement, or takes the one prepared earlier for the same text.
    ///
    /// # Errors
    /// SQLite's, if the SQL is wrong or not allowed here.
    pub fn prepare_cached(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.watchdog.check()?;
        self.statements_given.update(|given| given.wrapping_add(1));
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
        self.with_statement(sql, |statement| statement.query_row(params, map))
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
        self.with_statement(sql, |statement| statement.query_map(params, map)?.collect())
    }

    /// Uses the statement for a text in one go.
    fn with_statement<T>(
        &self,
        sql: &str,
        work: impl FnOnce(&mut Statement<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.watchdog.check()?;
        let (mut work, mut result) = (Some(work), None);
        self.statements.lend(sql, &mut |statement| result = work.take().map(|work| work(statement)))?;
        result.unwrap_or_else(|| unreachable!("a statement is lent, or there is an error"))
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
    /// When the command began.
    since: Instant,
    /// A nested savepoint could not be ended.
    savepoint_stuck: bool,
    /// SQLite's code and message behind the last error of user code.
    error: (i32, Option<String>),
    /// Why the last piece of user code that failed did.
    reason: Option<Box<Reason>>,
    /// The failure that comes is told by others.
    is_told: bool,
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
        self.with_statement(sql, |statement| statement.execute(params))
    }

    /// Runs several statements without parameters, such as the steps of a migration.
    ///
    /// # Errors
    /// SQLite's, at the first statement that fails.
    pub fn execute_batch(&mut self, sql: &str) -> rusqlite::Result<()> {
        self.watchdog.check()?;
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
        self.service(|| self.control.savepoint())?;
        let result = catch_unwind(AssertUnwindSafe(|| part(self)));
        // SQLite may have ended the transaction by itself, and the savepoint with it.
        if !self.connection.is_autocommit() {
            let keep = matches!(result, Ok(Ok(_)));
            let ended = self.service(|| end_savepoint(self.control, keep));
            // The next one to end would be this one.
            self.savepoint_stuck |= ended.is_err();
            ended?;
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs user code so that its failure, its panic or a foreign key it breaks costs nobody else anything.
    pub(crate) fn run<T, E: 'static>(
        &mut self,
        guard: Guard,
        work: impl FnOnce(&mut WriteTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, Fault<E>> {
        let ran = self.run_guarded(guard, work);
        self.note_reason(&ran);
        ran
    }

    fn run_guarded<T, E: 'static>(
        &mut self,
        guard: Guard,
        work: impl FnOnce(&mut WriteTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, Fault<E>> {
        if guard == Guard::Savepoint {
            self.service(|| self.control.savepoint()).map_err(|error| Fault::savepoint(error, ()))?;
        }
        sqlite_ffi::reset_last_insert_rowid(self.connection);
        self.forget_error::<E>();
        let before = self.traces();
        let paused = self.watchdog.pause(false);
        let result = self.user_code.run(|| catch_unwind(AssertUnwindSafe(|| work(self))));
        self.watchdog.pause(paused);
        let (result, failure) = self.classify(result);
        let after = self.traces();
        let seen = self.see(guard, result.is_ok(), failure, before, after);
        if before.others != after.others {
            // A cached statement is not prepared again, so the authorizer would not see its next use.
            self.statements.forget();
        }
        match rules::after_command(&seen) {
            AfterCommand::Keep => match self.end_guard(guard, true) {
                Ok(()) => result.map_err(Fault::own),
                Err(error) => Err(Fault::savepoint(error, result)),
            },
            AfterCommand::Leave => Err(Fault::own(or_why(result, RolledBack::ForeignKey))),
            AfterCommand::Undo => match self.end_guard(guard, false) {
                Ok(()) => Err(Fault::own(or_why(result, RolledBack::ForeignKey))),
                Err(error) => Err(Fault::savepoint(error, result)),
            },
            AfterCommand::Lose(loss) => {
                let reason = match loss {
                    Loss::StatementOpen => RolledBack::StatementLeftOpen,
                    Loss::Unguarded => RolledBack::ForeignKey,
                    Loss::Command | Loss::Environment(_) | Loss::Savepoint => RolledBack::TransactionEnded,
                };
                Err(Fault { error: or_why(result, reason), loss: Some(loss) })
            }
        }
    }

    /// Runs user code outside of any transaction, and leaves none behind.
    pub(crate) fn run_outside<T, E: 'static>(
        &mut self,
        work: impl FnOnce(&mut WriteTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, Fault<E>> {
        let ran = self.run_without_transaction(work);
        self.note_reason(&ran);
        ran
    }

    fn run_without_transaction<T, E: 'static>(
        &mut self,
        work: impl FnOnce(&mut WriteTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, Fault<E>> {
        self.forget_error::<E>();
        let paused = self.watchdog.pause(false);
        let result = self.user_code.maintain(|| catch_unwind(AssertUnwindSafe(|| work(self))));
        self.watchdog.pause(paused);
        let (result, failure) = self.classify(result);
        let open = self.connection.is_busy();
        let in_transaction = !self.connection.is_autocommit();
        if in_transaction && let Err(error) = self.connection.execute_batch("ROLLBACK") {
            // The close of the connection rolls it back.
            tracing::error!(%error, "ROLLBACK failed");
        }
        self.statements.forget();
        match result {
            Ok(value) if in_transaction => {
                Err(Fault::own(or_why(Ok(value), RolledBack::TransactionLeftOpen)))
            }
            Ok(value) if open => Err(Fault::own(or_why(Ok(value), RolledBack::StatementLeftOpen))),
            result => result.map_err(|error| {
                let loss = failure.is_environmental().then_some(Loss::Environment(failure));
                Fault { error, loss }
            }),
        }
    }

    fn note_reason<T, E>(&mut self, ran: &Result<T, Fault<E>>) {
        let (code, message) = std::mem::replace(&mut self.error, (ffi::SQLITE_OK, None));
        if let Err(fault) = ran
            && !std::mem::take(&mut self.is_told)
        {
            self.reason = Some(Box::new(Reason::new(&fault.error, code, message.as_deref())));
        }
    }

    /// The failure of an entry is about to fail its whole batch: the import tells it, and nobody else should.
    pub(crate) fn is_told_by_the_import(&mut self) {
        self.is_told = true;
    }

    /// Why the last piece of user code that failed did.
    pub(crate) fn take_reason(&mut self) -> Option<Box<Reason>> {
        self.reason.take()
    }

    /// Tells errors of the environment from those of the command.
    fn classify<T, E: 'static>(
        &mut self,
        result: std::thread::Result<Result<T, E>>,
    ) -> (Result<T, WriteError<E>>, Failure) {
        match result {
            Ok(Ok(value)) => (Ok(value), Failure::Command),
            Err(panic) => (Err(RolledBack::Panicked(panic_message(panic)).into()), Failure::Command),
            Ok(Err(error)) => {
                let code = self.code_behind(&error);
                // Before anything else is asked of SQLite.
                let message = (code != ffi::SQLITE_OK
                    && sqlite_ffi::extended_error_code(self.connection) == code)
                    .then(|| sqlite_ffi::error_message(self.connection));
                self.error = (code, message);
                let failure = match Failure::of_code(code) {
                    // Of another database that the command has looked at.
                    Failure::Corrupt if sqlite_ffi::extended_error_code(self.connection) != code => {
                        Failure::Command
                    }
                    failure => failure,
                };
                if failure == Failure::Command {
                    return (Err(WriteError::Command(error)), failure);
                }
                drop_quietly(error);
                let reason = match failure {
                    Failure::Interrupted if self.watchdog.is_ended() => RolledBack::Interrupted,
                    Failure::Interrupted if self.watchdog.deadline_has_passed() => {
                        RolledBack::DeadlineExceeded { ran: self.since.elapsed() }
                    }
                    _ => {
                        let cause = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
                        RolledBack::Environment(cause.into())
                    }
                };
                (Err(reason.into()), failure)
            }
        }
    }

    /// The result code behind the command's own error: what its type tells, or else the connection.
    fn code_behind<E: 'static>(&self, error: &E) -> i32 {
        match (error as &dyn Any).downcast_ref::<rusqlite::Error>() {
            Some(error) => error.sqlite_error().map_or(ffi::SQLITE_OK, |error| error.extended_code),
            None => sqlite_ffi::extended_error_code(self.connection),
        }
    }

    /// Lets a command that fails without SQLite not be blamed for the error of the one before.
    fn forget_error<E: 'static>(&self) {
        if TypeId::of::<E>() != TypeId::of::<rusqlite::Error>() {
            // It can fail only for want of memory, and then it has set that error.
            let _no_memory = self.connection.set_errmsg(ffi::SQLITE_OK, None).is_err();
        }
    }

    fn traces(&self) -> Traces {
        Traces {
            changes: self.connection.total_changes(),
            others: self.user_code.others(),
            statements: self.statements_given.get(),
        }
    }

    fn see(&self, guard: Guard, ok: bool, failure: Failure, before: Traces, after: Traces) -> Seen {
        let ended = self.connection.is_autocommit();
        Seen {
            guard,
            ok,
            failure,
            ended,
            // To ask SQLite costs a walk over all statements, so only where there was one to leave open.
            statement_open: before.statements != after.statements && self.connection.is_busy(),
            savepoint_stuck: self.savepoint_stuck && !ended,
            foreign_key_violated: !ended && sqlite_ffi::deferred_foreign_key_violated(self.connection),
            wrote: (before.changes, before.others) != (after.changes, after.others)
                || self.user_code.triggers_write(),
        }
    }

    fn end_guard(&self, guard: Guard, keep: bool) -> rusqlite::Result<()> {
        match guard {
            Guard::Bare => Ok(()),
            Guard::Savepoint => self.service(|| end_savepoint(self.control, keep)),
        }
    }

    /// Runs a statement of the service in the midst of user code: allowed everything, and never cut short.
    fn service<T>(&self, statement: impl FnOnce() -> T) -> T {
        let paused = self.watchdog.pause(true);
        let result = self.user_code.pause(statement);
        self.watchdog.pause(paused);
        result
    }
}

/// Releases the innermost savepoint, or undoes what was written since.
fn end_savepoint(control: &dyn Savepoints, keep: bool) -> rusqlite::Result<()> {
    if keep { control.release() } else { control.roll_back_savepoint() }
}

impl fmt::Debug for WriteTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTransaction").finish_non_exhaustive()
    }
}

/// What user code leaves behind on a connection.
#[derive(Clone, Copy)]
struct Traces {
    /// Rows changed. It grows also when `OR FAIL` keeps half of a statement, unless a trigger wrote that half.
    changes: u64,
    /// Statements prepared that are neither reads nor DML: they change the file and not the counter.
    others: u32,
    statements: u32,
}

/// The error of the code; or why its value is worth nothing, which is dropped: its type is the user's, and may
/// panic.
fn or_why<T, E>(result: Result<T, WriteError<E>>, reason: RolledBack) -> WriteError<E> {
    match result.map(|value| catch_unwind(AssertUnwindSafe(|| drop(value)))) {
        Err(error) => error,
        Ok(Ok(())) => reason.into(),
        Ok(Err(panic)) => RolledBack::Panicked(panic_message(panic)).into(),
    }
}

/// Why a piece of user code is not in the transaction.
pub(crate) struct Fault<E> {
    pub(crate) error: WriteError<E>,
    /// How it took the whole transaction with it; else only its own writes are undone.
    pub(crate) loss: Option<Loss>,
}

impl<E> Fault<E> {
    fn own(error: WriteError<E>) -> Self {
        Self { error, loss: None }
    }

    /// A savepoint statement of our own failed, so the result is worth nothing.
    fn savepoint(error: rusqlite::Error, result: impl Sized) -> Self {
        drop_quietly(result);
        Self { error: RolledBack::GroupLost(error.into()).into(), loss: Some(Loss::Savepoint) }
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
    /// Of user code.
    statements: RecentStatements<'c>,
    user_code: &'c UserCode,
    watchdog: &'c Watchdog,
    begin: RefCell<Statement<'c>>,
    commit: RefCell<Statement<'c>>,
    savepoint: RefCell<Statement<'c>>,
    release: RefCell<Statement<'c>>,
    roll_back_to: RefCell<Statement<'c>>,
    data_version: RefCell<Statement<'c>>,
}

impl<'c> TransactionControl<'c> {
    pub(crate) fn prepare(
        connection: &'c Connection,
        user_code: &'c UserCode,
        watchdog: &'c Watchdog,
        statement_cache_capacity: usize,
    ) -> rusqlite::Result<Self> {
        let statement = |sql| connection.prepare(sql).map(RefCell::new);
        Ok(Self {
            connection,
            statements: RecentStatements::new(connection, statement_cache_capacity),
            user_code,
            watchdog,
            begin: statement("BEGIN IMMEDIATE")?,
            commit: statement("COMMIT")?,
            savepoint: statement("SAVEPOINT solewriter")?,
            release: statement("RELEASE solewriter")?,
            roll_back_to: statement("ROLLBACK TO solewriter")?,
            data_version: statement(connection::DATA_VERSION)?,
        })
    }

    /// Takes the write lock.
    pub(crate) fn begin(&self) -> rusqlite::Result<()> {
        run(&self.begin)
    }

    /// The counter that changes whenever another connection has committed.
    pub(crate) fn data_version(&self) -> rusqlite::Result<i64> {
        self.data_version.borrow_mut().query_row((), |row| row.get(0))
    }

    pub(crate) fn commit(&self) -> rusqlite::Result<()> {
        self.user_code.allow_commit(|| run(&self.commit))
    }

    /// Ends the transaction, if SQLite has not done so by itself.
    pub(crate) fn roll_back(&self) -> rusqlite::Result<()> {
        if self.connection.is_autocommit() { Ok(()) } else { self.connection.execute_batch("ROLLBACK") }
    }

    /// What user code that begins now gets to see of the connection.
    pub(crate) fn transaction(&self, now: Instant) -> WriteTransaction<'_> {
        WriteTransaction {
            read: ReadTransaction::new(self.connection, &self.statements, self.watchdog),
            control: self,
            user_code: self.user_code,
            since: now,
            savepoint_stuck: false,
            error: (ffi::SQLITE_OK, None),
            reason: None,
            is_told: false,
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

/// Does something while nobody writes, and writes nothing into the database itself.
pub(crate) fn locked<T>(
    connection: &Connection,
    work: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let done = work();
    let ended = connection.execute_batch("ROLLBACK");
    let done = done?;
    ended.map(|()| done)
}

/// Begins a read transaction and takes its snapshot at once: BEGIN alone leaves that to the first statement,
/// and what stands in the way of reading with it.
pub(crate) fn begin_read(connection: &Connection) -> rusqlite::Result<()> {
    // Not from the cache: user code would find it there, prepared already, and so past the authorizer.
    connection.execute_batch("BEGIN")?;
    connection.prepare_cached("SELECT 1 FROM sqlite_schema LIMIT 1")?.exists(())?;
    Ok(())
}

/// Runs user code in a read transaction that has begun.
pub(crate) fn read_transaction<T>(
    connection: &Connection,
    user_code: &UserCode,
    watchdog: &Watchdog,
    read: impl FnOnce(&ReadTransaction<'_>) -> T,
) -> std::thread::Result<T> {
    let transaction = ReadTransaction::new(connection, connection, watchdog);
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
        Err(panic) => {
            let message = panic.downcast_ref::<&str>().map_or_else(|| "no message".into(), |&m| m.into());
            drop_quietly(panic);
            message
        }
    }
}
