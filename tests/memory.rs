//! Bounded Everything, for memory: a command that waits costs little beyond its payload, and so does a service that has
//! nothing to do.
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

use common::{Gate, TestDb, insert, soon};

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

/// One test at a time counts.
static COUNTED: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn a_waiting_command_takes_less_than_400_bytes_beyond_its_payload() {
    let _alone = COUNTED.lock().await;
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
    assert!(beyond < 400 * COMMANDS, "{beyond}");
    gate.open().await;
    for receipt in receipts {
        soon(receipt).await.unwrap();
    }
}

#[tokio::test]
async fn a_service_takes_less_than_a_megabyte_beside_what_sqlite_takes() {
    let _alone = COUNTED.lock().await;
    let before = ALLOCATED.load(Ordering::Relaxed);
    let db = TestDb::open().await;
    for x in 0..1_000 {
        soon(insert(&db, x)).await.unwrap();
    }
    soon(db.read("one", |tx| tx.query_row("SELECT max(x) FROM t", (), |row| row.get::<_, i64>(0))))
        .await
        .unwrap();
    let taken = ALLOCATED.load(Ordering::Relaxed) - before;
    println!("{taken} bytes a service");
    assert!(taken < 1024 * 1024, "{taken}");
}
