//! What is written where; nothing here panics when nobody reads it any more.

use std::error::Error;
use std::io::{self, ErrorKind, Write};

use serde::Serialize;

/// Writes `text` to the standard output.
///
/// # Errors
/// Of the output, except that its reader has gone away: then it had enough.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes `text` to the standard error. If that fails, there is nowhere left to say so.
pub(crate) fn note(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Says why nothing could be done, with the causes behind it.
pub(crate) fn complain(refusal: &dyn Error) {
    let mut text = format!("error: {refusal}");
    let mut cause = refusal.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    note(&text);
}

/// `value` as a JSON text for people and programs.
pub(crate) fn json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value)
}
