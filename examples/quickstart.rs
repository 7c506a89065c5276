//! Open, write, read, close: `cargo run --example quickstart [FILE]`.

use std::time::Duration;

use solewriter::{Database, Drain};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let path = std::env::args_os().nth(1).map_or_else(|| directory.path().join("notes.db"), Into::into);

    let db = Database::open(&path).await?;
    db.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)", ()).await?;

    // A closure is one transaction: all of it is committed, or nothing.
    let id = db
        .write("notes.add", |tx| {
            tx.execute("INSERT INTO notes (text) VALUES (?1)", ["buy tea"])?;
            Ok(tx.last_insert_rowid())
        })
        .await?;

    // Commands that wait together share one COMMIT: a thousand writes, a few syncs.
    let writers: Vec<_> = (0..1_000)
        .map(|number| {
            let db = db.clone();
            tokio::spawn(async move {
                db.execute("INSERT INTO notes (text) VALUES (?1)", (format!("note {number}"),)).await
            })
        })
        .collect();
    for writer in writers {
        writer.await??;
    }

    // A read begun after a write was acknowledged sees it.
    let (text, count) = db
        .read("notes.get", move |tx| {
            let text: String =
                tx.query_row("SELECT text FROM notes WHERE id = ?1", [id], |row| row.get(0))?;
            let count: i64 = tx.query_row("SELECT count(*) FROM notes", (), |row| row.get(0))?;
            Ok((text, count))
        })
        .await?;
    let stats = db.stats();
    println!("note {id}: {text}");
    println!("{count} notes in {} commits", stats.groups_committed);

    db.shutdown(Drain::within(Duration::from_secs(5))).await?;
    Ok(())
}
