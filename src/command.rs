//! The kinds of work a caller can send: closures, typed commands, single statements.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use rusqlite::types::{ToSql, ToSqlOutput, Value};
use rusqlite::{Row, params_from_iter};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::lane::Lane;
use crate::maintenance::Maintenance;
use crate::message::Kind;
use crate::transaction::WriteTransaction;

/// A command as a value: named, serialisable, and able to run again.
///
/// It must be free of effects outside the transaction, since the writer may run it more than once; only the
/// last run counts. [`NAME`](Self::NAME) and the serialised form are meant to be stable, so that a command
/// can be stored or sent to another node.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use solewriter::{Command, WriteTransaction};
///
/// #[derive(Serialize, Deserialize)]
/// struct Rename { id: i64, name: String }
///
/// impl Command for Rename {
///     const NAME: &'static str = "entry.rename";
///     type Output = bool;
///     type Error = rusqlite::Error;
///
///     fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<bool> {
///         Ok(tx.execute("UPDATE entries SET name = ?2 WHERE id = ?1", (self.id, &self.name))? == 1)
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
/// # db.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, name TEXT)", ()).await?;
/// assert!(!db.send(Rename { id: 1, name: "first".into() }).await?);
/// # Ok(()) }
/// ```
pub trait Command: Serialize + DeserializeOwned + Send + 'static {
    /// The stable name, which is also the label in spans, warnings and statistics.
    const NAME: &'static str;

    /// The lane the command waits in unless the caller says otherwise.
    const LANE: Lane = Lane::Interactive;

    /// What the command answers.
    type Output: Send + 'static;

    /// The command's own error.
    type Error: Send + 'static;

    /// Does the work; it happens completely or not at all.
    ///
    /// # Errors
    /// The command's own: everything it wrote is undone then.
    fn apply(&self, tx: &mut WriteTransaction<'_>) -> Result<Self::Output, Self::Error>;

    /// How many bytes the command takes while it waits, for the limit of the queue.
    ///
    /// The default counts the value itself; add what it owns on the heap if that is large.
    fn payload_bytes(&self) -> usize {
        size_of_val(self)
    }
}

/// Work for the writer; implemented by the kinds in this module only.
pub trait Work: sealed::Sealed + Send + 'static {
    /// What it answers.
    type Output: Send + 'static;
    /// Its own error.
    type Error: Send + 'static;

    #[doc(hidden)]
    const KIND: Kind;

    #[doc(hidden)]
    fn run(&mut self, tx: &mut WriteTransaction<'_>) -> Result<Self::Output, Self::Error>;

    #[doc(hidden)]
    fn payload_bytes(&self) -> usize {
        size_of_val(self)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A closure that can run once.
#[derive(Debug)]
pub struct Once<F, T, E> {
    closure: Option<F>,
    result: PhantomData<fn() -> Result<T, E>>,
}

impl<F, T, E> Once<F, T, E> {
    pub(crate) fn new(closure: F) -> Self {
        Self { closure: Some(closure), result: PhantomData }
    }
}

impl<F, T, E> sealed::Sealed for Once<F, T, E> {}

impl<F, T, E> Work for Once<F, T, E>
where
    F: FnOnce(&mut WriteTransaction<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Output = T;
    type Error = E;
    const KIND: Kind = Kind::Once;

    fn run(&mut self, tx: &mut WriteTransaction<'_>) -> Result<T, E> {
        match self.closure.take() {
            Some(closure) => closure(tx),
            None => unreachable!("the writer runs a `FnOnce` command once"),
        }
    }
}

/// A closure that may run again.
#[derive(Debug)]
pub struct Rerunnable<F, T, E> {
    closure: F,
    result: PhantomData<fn() -> Result<T, E>>,
}

impl<F, T, E> Rerunnable<F, T, E> {
    pub(crate) fn new(closure: F) -> Self {
        Self { closure, result: PhantomData }
    }
}

impl<F, T, E> sealed::Sealed for Rerunnable<F, T, E> {}

impl<F, T, E> Work for Rerunnable<F, T, E>
where
    F: Fn(&mut WriteTransaction<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Output = T;
    type Error = E;
    const KIND: Kind = Kind::Rerunnable;

    fn run(&mut self, tx: &mut WriteTransaction<'_>) -> Result<T, E> {
        (self.closure)(tx)
    }
}

/// A closure that runs outside of any transaction.
#[derive(Debug)]
pub struct Outside<F, T, E> {
    closure: Option<F>,
    result: PhantomData<fn() -> Result<T, E>>,
}

impl<F, T, E> Outside<F, T, E> {
    pub(crate) fn new(closure: F) -> Self {
        Self { closure: Some(closure), result: PhantomData }
    }
}

impl<F, T, E> sealed::Sealed for Outside<F, T, E> {}

impl<F, T, E> Work for Outside<F, T, E>
where
    F: FnOnce(&mut Maintenance<'_, '_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Output = T;
    type Error = E;
    const KIND: Kind = Kind::Maintenance;

    fn run(&mut self, tx: &mut WriteTransaction<'_>) -> Result<T, E> {
        match self.closure.take() {
            Some(closure) => closure(&mut Maintenance::new(tx)),
            None => unreachable!("the writer runs maintenance once"),
        }
    }
}

/// A typed [`Command`].
#[derive(Debug)]
pub struct Typed<C>(pub(crate) C);

impl<C> sealed::Sealed for Typed<C> {}

impl<C: Command> Work for Typed<C> {
    type Output = C::Output;
    type Error = C::Error;
    const KIND: Kind = Kind::Rerunnable;

    fn run(&mut self, tx: &mut WriteTransaction<'_>) -> Result<C::Output, C::Error> {
        self.0.apply(tx)
    }

    fn payload_bytes(&self) -> usize {
        self.0.payload_bytes()
    }
}

/// One statement with owned parameters; answers how many rows it changed.
pub struct Execute {
    sql: Cow<'static, str>,
    /// The error is rare, and large.
    parameters: Result<Vec<Value>, Box<rusqlite::Error>>,
}

impl Execute {
    pub(crate) fn new(sql: Cow<'static, str>, parameters: impl Parameters) -> Self {
        Self { sql, parameters: parameters.into_values().map_err(Box::new) }
    }

    /// The parameters, or the error of the one that SQLite has no type for.
    fn parameters(&self) -> rusqlite::Result<&[Value]> {
        // An error can't be copied, and the statement may run again; none of its kinds tells more than its text.
        self.parameters
            .as_deref()
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.to_string().into()))
    }
}

impl fmt::Debug for Execute {
    /// Without the parameters: they are the caller's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execute").field("sql", &self.sql).finish_non_exhaustive()
    }
}

impl sealed::Sealed for Execute {}

impl Work for Execute {
    type Output = usize;
    type Error = rusqlite::Error;
    const KIND: Kind = Kind::Rerunnable;

    fn run(&mut self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<usize> {
        tx.execute(&self.sql, params_from_iter(self.parameters()?))
    }

    fn payload_bytes(&self) -> usize {
        let values = self.parameters.as_deref().unwrap_or_default();
        self.sql.len() + values.iter().map(value_bytes).sum::<usize>()
    }
}

/// One statement with owned parameters whose rows are the answer (`RETURNING`).
#[derive(Debug)]
pub struct ExecuteReturning<F> {
    statement: Execute,
    map: F,
}

impl<F> ExecuteReturning<F> {
    pub(crate) fn new(statement: Execute, map: F) -> Self {
        Self { statement, map }
    }
}

impl<F> sealed::Sealed for ExecuteReturning<F> {}

impl<F, T> Work for ExecuteReturning<F>
where
    F: Fn(&Row<'_>) -> rusqlite::Result<T> + Send + 'static,
    T: Send + 'static,
{
    type Output = Vec<T>;
    type Error = rusqlite::Error;
    const KIND: Kind = Kind::Rerunnable;

    fn run(&mut self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<Vec<T>> {
        tx.query_all(&self.statement.sql, params_from_iter(self.statement.parameters()?), &self.map)
    }

    fn payload_bytes(&self) -> usize {
        self.statement.payload_bytes()
    }
}

/// Parameters of a statement that wait with it: `()`, tuples and arrays of anything SQLite has a type for,
/// or a `Vec` of [`Value`]s.
///
/// The values are copied when the statement is sent.
pub trait Parameters {
    /// The values in the order of `?1`, `?2`, ….
    ///
    /// # Errors
    /// That of the first value SQLite has no type for, such as a `u64` beyond `i64::MAX`.
    fn into_values(self) -> rusqlite::Result<Vec<Value>>;
}

impl Parameters for () {
    fn into_values(self) -> rusqlite::Result<Vec<Value>> {
        Ok(Vec::new())
    }
}

impl Parameters for Vec<Value> {
    fn into_values(self) -> rusqlite::Result<Vec<Value>> {
        Ok(self)
    }
}

impl<T: ToSql, const N: usize> Parameters for [T; N] {
    fn into_values(self) -> rusqlite::Result<Vec<Value>> {
        self.iter().map(|value| owned(value)).collect()
    }
}

macro_rules! tuples_are_parameters {
    ($($name:ident)+) => {
        impl<$($name: ToSql),+> Parameters for ($($name,)+) {
            #[allow(non_snake_case)]
            fn into_values(self) -> rusqlite::Result<Vec<Value>> {
                let ($($name,)+) = self;
                Ok(vec![$(owned(&$name)?),+])
            }
        }
    };
}

tuples_are_parameters!(A);
tuples_are_parameters!(A B);
tuples_are_parameters!(A B C);
tuples_are_parameters!(A B C D);
tuples_are_parameters!(A B C D E);
tuples_are_parameters!(A B C D E F);
tuples_are_parameters!(A B C D E F G);
tuples_are_parameters!(A B C D E F G H);
tuples_are_parameters!(A B C D E F G H I);
tuples_are_parameters!(A B C D E F G H I J);
tuples_are_parameters!(A B C D E F G H I J K);
tuples_are_parameters!(A B C D E F G H I J K L);

fn owned(value: &dyn ToSql) -> rusqlite::Result<Value> {
    match value.to_sql()? {
        ToSqlOutput::Borrowed(value) => {
            Value::try_from(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
        }
        ToSqlOutput::Owned(value) => Ok(value),
        // Zero blobs, arrays and pointers need a connection to be made.
        _ => Err(rusqlite::Error::ToSqlConversionFailure("not a plain value".into())),
    }
}

fn value_bytes(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::Text(text) => text.len(),
            Value::Blob(blob) => blob.len(),
            Value::Null | Value::Integer(_) | Value::Real(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_shows_its_text_and_not_its_parameters() {
        let shown = format!("{:?}", Execute::new("SELECT ?1".into(), ("b0und-v4lue",)));
        assert!(shown.contains("SELECT ?1") && !shown.contains("b0und"), "{shown}");
    }
}
