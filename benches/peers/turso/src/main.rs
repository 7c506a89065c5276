//! One measurement of turso, an engine of its own with `BEGIN CONCURRENT`; prints it as JSON.

mod connections;
mod turso;

use clap::Parser;
use peers_common::{Error, Options, measure};

use crate::turso::Turso;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    if options.system != "turso" {
        return Err(format!("no system here is named {}", options.system).into());
    }
    println!("{}", serde_json::to_string(&measure::<Turso>(&options).await?)?);
    Ok(())
}
