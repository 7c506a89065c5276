//! One measurement of one system on libsqlite3-sys 0.37; prints it as JSON.

#[path = "../../shared/peer.rs"]
mod peer;
mod r2d2_sqlite;
mod sqlx;
#[path = "../../shared/steps.rs"]
mod steps;

use clap::Parser;
use peers_common::{Error, Options, measure};

use crate::peer::Peer;
use crate::r2d2_sqlite::R2d2;
use crate::sqlx::{All, One, Sqlx};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let figures = match options.system.as_str() {
        "r2d2_sqlite" => measure::<Peer<R2d2>>(&options).await,
        "sqlx-pool-10" => measure::<Sqlx<All>>(&options).await,
        "sqlx-writer-1" => measure::<Sqlx<One>>(&options).await,
        other => Err(format!("no system here is named {other}").into()),
    }?;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
