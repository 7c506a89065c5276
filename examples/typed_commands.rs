//! Commands as values: named, serialisable, with a typed answer and a typed error.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use solewriter::{Command, Database, Drain, Lane, Retry, WriteError, WriteTransaction};

/// Moves money from one account to another.
#[derive(Debug, Serialize, Deserialize)]
struct Transfer {
    from: String,
    to: String,
    cents: i64,
}

/// Why a transfer is refused.
#[derive(Debug)]
enum TransferError {
    NoSuchAccount(String),
    NotEnough { cents: i64 },
    Sqlite(rusqlite::Error),
}

impl Command for Transfer {
    const NAME: &'static str = "account.transfer";
    type Output = i64;
    type Error = TransferError;

    /// Returns what is left in the first account.
    fn apply(&self, tx: &mut WriteTransaction<'_>) -> Result<i64, TransferError> {
        const ADD: &str = "UPDATE accounts SET cents = cents + ?2 WHERE name = ?1";
        // The order does not matter: if any step fails, none has happened.
        if tx.execute(ADD, (&self.to, self.cents))? == 0 {
            return Err(TransferError::NoSuchAccount(self.to.clone()));
        }
        if tx.execute(ADD, (&self.from, -self.cents))? == 0 {
            return Err(TransferError::NoSuchAccount(self.from.clone()));
        }
        let cents =
            tx.query_row("SELECT cents FROM accounts WHERE name = ?1", [&self.from], |row| row.get(0))?;
        if cents < 0 { Err(TransferError::NotEnough { cents: cents + self.cents }) } else { Ok(cents) }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let db = Database::open(directory.path().join("bank.db")).await?;
    db.write("bank.create", |tx| {
        tx.execute_batch(
            "CREATE TABLE accounts (name TEXT PRIMARY KEY, cents INTEGER NOT NULL);
             INSERT INTO accounts VALUES ('ada', 1000), ('bob', 0);",
        )
    })
    .await?;

    // A command can come from anywhere that speaks serde.
    let transfer: Transfer = serde_json::from_str(r#"{"from": "ada", "to": "bob", "cents": 300}"#)?;
    let done = db.send(transfer).deadline(Duration::from_secs(2)).committed().await?;
    println!("ada has {} cents; waited {:?}, commit {}", done.value, done.timing.wait, done.token.group());

    // Its own error comes back typed, and the half that had been written is gone.
    let refused = db.send(Transfer { from: "ada".into(), to: "bob".into(), cents: 900 }).await;
    match refused {
        Err(WriteError::Command(TransferError::NotEnough { cents })) => println!("only {cents} cents there"),
        Err(error) if error.retry() == Retry::Now => println!("send it again: {error}"),
        other => println!("unexpected: {other:?}"),
    }

    // Pipelining: accepted now, answered later, in order within a lane.
    let mut receipts = Vec::new();
    for _ in 0..10 {
        let transfer = Transfer { from: "bob".into(), to: "ada".into(), cents: 10 };
        receipts.push(db.send(transfer).lane(Lane::Bulk).submit().await?);
    }
    for receipt in receipts {
        receipt.await?;
    }
    let bob: i64 = db
        .read_after(done.token, "account.get", |tx| {
            tx.query_row("SELECT cents FROM accounts WHERE name = 'bob'", (), |row| row.get(0))
        })
        .await?;
    println!("bob has {bob} cents");
    db.shutdown(Drain::within(Duration::from_secs(5))).await?;
    Ok(())
}

impl From<rusqlite::Error> for TransferError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchAccount(name) => write!(f, "there is no account {name}"),
            Self::NotEnough { cents } => write!(f, "there are only {cents} cents"),
            Self::Sqlite(_) => f.write_str("the database failed"),
        }
    }
}

impl std::error::Error for TransferError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Sqlite(error) => Some(error),
            _ => None,
        }
    }
}
