//! The rows of every workload but the marketplace.

use crate::statement::Statement;

/// The tables, made before anything is measured.
pub const SCHEMA: &str = "
CREATE TABLE events (id INTEGER PRIMARY KEY, client INTEGER NOT NULL, sequence INTEGER NOT NULL, text TEXT NOT NULL);
CREATE TABLE items (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);";

pub const INSERT: &str = "INSERT INTO events (client, sequence, text) VALUES (?1, ?2, ?3)";
pub const READ: &str = "SELECT text FROM items WHERE id = ?1";
pub const READ_BALANCE: &str = "SELECT balance FROM accounts WHERE id = ?1";
pub const WRITE_BALANCE: &str = "UPDATE accounts SET balance = ?2 WHERE id = ?1";

/// Every row that is there, as it was sent.
pub const SENT: &str = "SELECT client, sequence FROM events";
/// Every account and its balance.
pub(crate) const BALANCES: &str = "SELECT id, balance FROM accounts";

/// What a row says: about a hundred bytes, as a service writes them.
pub const TEXT: &str =
    "one row of about a hundred bytes, as a service writes it: who did what, where, when, and why";

/// How many rows can be read by their key; with their text they fit into every cache.
pub const ITEMS: i64 = 100_000;
/// How many accounts there are.
pub const ACCOUNTS: i64 = 1_000;

/// How many statements a transaction has that fills a table beforehand.
const SEEDS_PER_TRANSACTION: usize = 10_000;

/// A row to insert: the n-th of its client, so that each can be looked for afterwards.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub client: i64,
    pub sequence: i64,
}

impl Row {
    /// The account that a deposit with this row goes to.
    #[must_use]
    pub fn account(self) -> i64 {
        (self.client * 7919 + self.sequence) % ACCOUNTS
    }
}

/// What fills the tables beforehand: each item is one transaction.
pub fn seed() -> impl Iterator<Item = Vec<Statement>> {
    let items = (0..ITEMS).map(|id| {
        Statement::new(
            "INSERT INTO items (id, text) VALUES (?1, ?2)",
            [id.into(), format!("{id} {TEXT}").into()],
        )
    });
    let accounts = (0..ACCOUNTS)
        .map(|id| Statement::new("INSERT INTO accounts (id, balance) VALUES (?1, 0)", [id.into()]));
    transactions(items.chain(accounts))
}

pub(crate) fn transactions(
    mut statements: impl Iterator<Item = Statement>,
) -> impl Iterator<Item = Vec<Statement>> {
    std::iter::from_fn(move || {
        let transaction: Vec<_> = statements.by_ref().take(SEEDS_PER_TRANSACTION).collect();
        (!transaction.is_empty()).then_some(transaction)
    })
}
