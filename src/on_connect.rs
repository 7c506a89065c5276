//! What a service does to each of its connections, before this crate makes its own settings.

use std::any::TypeId;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rusqlite::{Connection, ffi};

use crate::error::OpenErrorReason;
use crate::transaction::panic_message;

/// What a connection is for, as [`Builder::on_connect`](crate::Builder::on_connect) is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionRole {
    /// The one that writes.
    Writer,
    /// One of those that read; it is opened read-only.
    Reader,
}

type Hook = dyn Fn(&Connection, ConnectionRole) -> rusqlite::Result<()> + Send + Sync;

/// See [`Builder::on_connect`](crate::Builder::on_connect).
#[derive(Clone)]
pub(crate) struct OnConnect {
    hook: Arc<Hook>,
    /// The type of a hook that holds nothing: two of one such type do the same.
    without_state: Option<TypeId>,
}

impl OnConnect {
    pub(crate) fn new<F>(hook: F) -> Self
    where
        F: Fn(&Connection, ConnectionRole) -> rusqlite::Result<()> + Send + Sync + 'static,
    {
        let without_state = (size_of::<F>() == 0).then(TypeId::of::<F>);
        Self { hook: Arc::new(hook), without_state }
    }

    /// Whether both are known to do the same: the same object, or the same function.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.hook, &other.hook)
            || (self.without_state.is_some() && self.without_state == other.without_state)
    }

    /// Runs the hook.
    pub(crate) fn run(&self, connection: &Connection, role: ConnectionRole) -> Result<(), OpenErrorReason> {
        match catch_unwind(AssertUnwindSafe(|| (self.hook)(connection, role))) {
            Ok(result) => result.map_err(|error| OpenErrorReason::OnConnect(error.into()))?,
            Err(panic) => return Err(OpenErrorReason::OnConnectPanicked { message: panic_message(panic) }),
        }
        // Statements that it left in the cache are no way past the authorizer: installing that expires them.
        if connection.is_autocommit() {
            return Ok(());
        }
        let misuse = ffi::Error::new(ffi::SQLITE_MISUSE);
        let error = rusqlite::Error::SqliteFailure(misuse, Some("it left a transaction open".into()));
        Err(OpenErrorReason::OnConnect(error.into()))
    }
}

impl fmt::Debug for OnConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnConnect").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &Connection, _: ConnectionRole) -> rusqlite::Result<()> {
        Ok(())
    }

    fn with_state(state: u8) -> OnConnect {
        OnConnect::new(move |_, _| if state == 0 { Ok(()) } else { Err(rusqlite::Error::InvalidQuery) })
    }

    #[test]
    fn hooks_are_the_same_by_object_or_by_function() {
        let hook = with_state(1);
        assert!(hook.is(&hook.clone()));
        assert!(!hook.is(&with_state(1)), "what they hold can't be compared");
        assert!(OnConnect::new(nothing).is(&OnConnect::new(nothing)));
        assert!(!OnConnect::new(nothing).is(&OnConnect::new(|_, _| Ok(()))));
        assert!(!OnConnect::new(nothing).is(&hook) && !hook.is(&OnConnect::new(nothing)));
    }
}
