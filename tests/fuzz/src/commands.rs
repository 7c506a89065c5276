//! Bytes are taken for a life of a service: its settings, what is sent to it, and which calls of the VFS fail
//! meanwhile. Every answer must be one that its command can get, and what the end of the process or of the machine
//! leaves must be what the answers say.
//!
//! What each command comes to by itself is known, since each has rows of its own (`ledger.rs`).

mod hostile;
mod life;
mod plan;

use arbitrary::{Arbitrary, Unstructured};

use crate::frame;
use life::Life;
use plan::Plan;

/// Lives once.
pub fn run(bytes: &[u8]) {
    // Where the bytes end, the plan does.
    let Ok(plan) = Plan::arbitrary(&mut Unstructured::new(bytes)) else { return };
    frame::show(&plan);
    let tally = Life::new(&plan).live();
    frame::judge(tally, &plan);
}
