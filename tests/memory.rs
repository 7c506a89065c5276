//! Bounded Everything, for memory: a command that waits costs little beyond its payload.
//!
//! Alone in its file, since it counts every allocation of the process.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    unsafe_code,
    reason = "a test that counts allocations"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Gate, TestDb, soon};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counter has no effect on it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `block` came from `alloc` above, and so from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const COMMANDS: usize = 10_000;
const PAYLOAD_BYTES: usize = 1_000;

#[tokio::test]
async fn ten_thousand_waiting_commands_take_less_than_10_mb_beyond_their_payload() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let mut receipts = Vec::with_capacity(COMMANDS);
    let before = ALLOCATED.load(Ordering::Relaxed);
    for x in 0..COMMANDS {
        let mut payload = vec![0_u8; PAYLOAD_BYTES];
        payload[..8].copy_from_slice(&x.to_le_bytes());
        let command = db.execute("INSERT INTO t (x) VALUES (?1)", (payload,));
        receipts.push(command.submit().await.unwrap());
    }
    let waiting = ALLOCATED.load(Ordering::Relaxed) - before;
    assert_eq!(db.stats().queue_depth.interactive, COMMANDS);
    assert!(waiting > COMMANDS * PAYLOAD_BYTES, "the payload waits too: {waiting}");
    let beyond = waiting - COMMANDS * PAYLOAD_BYTES;
    println!("{} bytes a command beyond its payload", beyond / COMMANDS);
    assert!(beyond < 10_000_000, "{beyond}");
    gate.open().await;
    for receipt in receipts {
        soon(receipt).await.unwrap();
    }
}
