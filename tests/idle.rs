//! A service that has nothing to do does nothing: its threads are few, and sleep without a timer.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use common::{HANG, TestDb, insert, soon};

const READERS: usize = 2;

/// How often each thread of the service has been woken, by its name and number.
fn wake_ups() -> BTreeMap<String, u64> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let threads = tasks.filter_map(|task| {
        let task = task.unwrap().path();
        // A thread of the tests may have ended meanwhile.
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let status = fs::read_to_string(task.join("status")).ok()?;
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        let is_ours = name.starts_with("quiet-");
        is_ours.then(|| (format!("{} {}", name.trim(), task.display()), switches.trim().parse().unwrap()))
    });
    threads.collect()
}

#[tokio::test]
async fn an_idle_service_has_a_writer_a_checkpointer_and_its_readers_and_none_of_them_wakes() {
    let db = TestDb::open_with(|config| {
        config.name = "quiet".into();
        config.readers = READERS;
    });
    let db = db.await;
    for x in 0..100 {
        soon(insert(&db, x)).await.unwrap();
    }
    soon(db.read("one", |tx| tx.query_row("SELECT 1", (), |_| Ok(())))).await.unwrap();
    let threads: Vec<_> = wake_ups().into_keys().collect();
    println!("{threads:?}");
    assert_eq!(threads.len(), 2 + READERS, "{threads:?}");
    // The checkpointer looks after the writer for a moment longer.
    let asleep = async {
        loop {
            let before = wake_ups();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if wake_ups() == before {
                return;
            }
        }
    };
    tokio::time::timeout(HANG, asleep).await.expect("nothing wakes for a second");
}
