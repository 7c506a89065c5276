//! One measurement of one system on rusqlite 0.40; prints it as JSON.

mod async_sqlite;
mod deadpool;
#[path = "../../shared/peer.rs"]
mod peer;
mod raw;
mod solewriter;
#[path = "../../shared/steps.rs"]
mod steps;
mod tokio_rusqlite;

use clap::Parser;
use peers_common::{Error, Options, measure};

use crate::async_sqlite::AsyncSqlite;
use crate::deadpool::Deadpool;
use crate::peer::Peer;
use crate::solewriter::Solewriter;
use crate::tokio_rusqlite::TokioRusqlite;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let figures = match options.system.as_str() {
        "solewriter" => measure::<Solewriter>(&options).await,
        "tokio-rusqlite" => measure::<Peer<TokioRusqlite>>(&options).await,
        "async-sqlite" => measure::<Peer<AsyncSqlite>>(&options).await,
        "deadpool-sqlite" => measure::<Peer<Deadpool>>(&options).await,
        "raw-autocommit" => raw::measure(&options, 1),
        "raw-64" => raw::measure(&options, 64),
        "raw-512" => raw::measure(&options, 512),
        "raw" => raw::measure(&options, usize::MAX),
        other => Err(format!("no system here is named {other}").into()),
    }?;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
