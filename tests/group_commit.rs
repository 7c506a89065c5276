//! Group commit: commands that wait together share one COMMIT, within limits.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::time::{Duration, Instant};

use common::{Gate, TestDb, add, committed, insert, soon};
use solewriter::{Committed, Durability};

/// Sends `count` inserts behind a gate, opens it, and returns their commits in order.
async fn behind_a_gate(db: &TestDb, count: i64) -> (Committed<()>, Vec<Committed<usize>>) {
    let gate = Gate::close(db).await;
    let mut answers = Vec::new();
    for x in 0..count {
        answers.push(committed(insert(db, x)).await);
    }
    let opened = gate.open().await;
    let mut commits = Vec::new();
    for answer in answers {
        commits.push(soon(answer).await.unwrap());
    }
    (opened, commits)
}

fn groups(commits: &[Committed<usize>]) -> Vec<usize> {
    commits.chunk_by(|a, b| a.token == b.token).map(<[_]>::len).collect()
}

#[tokio::test]
async fn commands_that_wait_together_share_one_commit() {
    let db = TestDb::open().await;
    let before = db.stats();
    let (gate, commits) = behind_a_gate(&db, 50).await;
    assert_eq!(groups(&commits), [50]);
    assert!(commits[0].token > gate.token);
    let stats = db.stats();
    assert_eq!(stats.groups_committed - before.groups_committed, 2, "the gate and the fifty");
    assert!(stats.group_size.interactive.max >= 50, "batching is active");
    assert_eq!(stats.commands.committed - before.commands.committed, 51);
}

#[tokio::test]
async fn with_a_limit_of_one_every_command_has_a_commit_of_its_own() {
    let db = TestDb::open_with(|config| config.group_commands_max = 1).await;
    let (_, commits) = behind_a_gate(&db, 20).await;
    assert_eq!(groups(&commits), [1; 20]);
    assert_eq!(db.stats().group_size.interactive.max, 1, "batching is off");
}

#[tokio::test]
async fn a_group_is_full_at_its_limit_of_commands() {
    let db = TestDb::open_with(|config| config.group_commands_max = 10).await;
    let (_, commits) = behind_a_gate(&db, 25).await;
    assert_eq!(groups(&commits), [10, 10, 5]);
}

#[tokio::test]
async fn a_group_closes_when_it_has_held_the_lock_for_long_enough() {
    let db = TestDb::open_with(|config| config.group_hold_max = Duration::from_millis(300)).await;
    let gate = Gate::close(&db).await;
    let first = committed(insert(&db, 1)).await;
    let slow = committed(db.write("slow", |_| {
        std::thread::sleep(Duration::from_millis(310));
        Ok(())
    }))
    .await;
    let last = committed(insert(&db, 2)).await;
    gate.open().await;
    let (first, slow, last) = (first.await.unwrap(), slow.await.unwrap(), last.await.unwrap());
    assert_eq!(first.token, slow.token);
    assert!(last.token > slow.token);
    assert!(slow.timing.hold >= Duration::from_millis(310));
}

#[tokio::test]
async fn a_command_that_is_known_to_take_long_does_not_join_a_group_it_would_overrun() {
    let db = TestDb::open_with(|config| config.group_hold_max = Duration::from_millis(200)).await;
    let slow = || {
        db.write("slow", |_| {
            std::thread::sleep(Duration::from_millis(220));
            Ok(())
        })
    };
    slow().await.unwrap();
    let gate = Gate::close(&db).await;
    let first = committed(insert(&db, 1)).await;
    let slow = committed(slow()).await;
    gate.open().await;
    assert!(slow.await.unwrap().token > first.await.unwrap().token);
}

#[tokio::test]
async fn tokens_grow_with_every_commit() {
    let db = TestDb::open().await;
    let mut last = db.execute("DELETE FROM t", ()).committed().await.unwrap().token;
    for x in 0..20 {
        let token = insert(&db, x).committed().await.unwrap().token;
        assert!(token > last && token.group() == last.group() + 1);
        last = token;
    }
}

#[tokio::test]
async fn a_more_demanding_command_begins_the_next_group_and_a_less_demanding_one_rides_along() {
    let db = TestDb::open().await;
    // Its group is NORMAL.
    let gate = Gate::close(&db).await;
    let with = |x, durability| committed(insert(&db, x).durability(durability));
    let normal = with(1, Durability::Normal).await;
    let full = with(2, Durability::Full).await;
    let rider = with(3, Durability::Normal).await;
    let gate = gate.open().await.token;
    let normal = normal.await.unwrap().token;
    let (full, rider) = (full.await.unwrap().token, rider.await.unwrap().token);
    assert_eq!(normal, gate, "as demanding as the group");
    assert!(full > normal, "more demanding");
    assert_eq!(rider, full, "less demanding");
}

#[tokio::test]
async fn an_answer_tells_the_wait_and_the_hold() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let sent = Instant::now();
    let answer = committed(db.write("t.add", |tx| {
        std::thread::sleep(Duration::from_millis(20));
        add(tx, 1)
    }))
    .await;
    let accepted = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    let waited_at_least = accepted.elapsed();
    gate.open().await;
    let timing = answer.await.unwrap().timing;
    let all = sent.elapsed();
    assert!(timing.wait >= waited_at_least && timing.wait <= all, "{timing:?}, {waited_at_least:?}..{all:?}");
    assert!(timing.hold >= Duration::from_millis(20) && timing.hold <= all, "{timing:?} of {all:?}");
}
