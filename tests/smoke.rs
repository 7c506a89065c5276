#![allow(missing_docs, clippy::unwrap_used)]
use solewriter::*;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let db = Database::open(&path).await.unwrap();
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE)", ()).await.unwrap();
    let id = db
        .write("t.add", |tx| {
            tx.execute("INSERT INTO t (x) VALUES (?1)", [5])?;
            Ok(tx.last_insert_rowid())
        })
        .await
        .unwrap();
    assert_eq!(id, 1);
    let mut tasks = Vec::new();
    for i in 0..1000 {
        let db = db.clone();
        tasks.push(tokio::spawn(async move { db.execute("INSERT INTO t (x) VALUES (?1)", (i,)).await }));
    }
    let mut ok = 0;
    let mut err = 0;
    for t in tasks {
        match t.await.unwrap() {
            Ok(_) => ok += 1,
            Err(WriteError::Command(_)) => err += 1,
            Err(e) => panic!("{e:?}"),
        }
    }
    assert_eq!((ok, err), (999, 1));
    let p = db.write("panics", |_tx| -> rusqlite::Result<()> { panic!("boom") }).await;
    assert!(matches!(p, Err(WriteError::RolledBack(RolledBack::Panicked(m))) if m == "boom"));
    let n: i64 =
        db.read("count", |tx| tx.query_row("SELECT count(*) FROM t", (), |r| r.get(0))).await.unwrap();
    assert_eq!(n, 1000);
    let e = db.read("w", |tx| tx.prepare("INSERT INTO t(x) VALUES (9999)")?.execute(())).await;
    assert!(matches!(e, Err(ReadError::ReadOnly(_))), "{e:?}");
    let report = db
        .import("imp", futures_util::stream::iter(2000..4000))
        .run(|tx, i: &i32| tx.execute("INSERT INTO t (x) VALUES (?1)", [i]))
        .await
        .unwrap();
    assert_eq!(report.accepted, 2000);
    println!("{report:?}");
    println!("{}", serde_json::to_string_pretty(&db.stats()).unwrap());
    let db2 = Database::open(dir.path().join("../").join(dir.path().file_name().unwrap()).join("a.db"))
        .await
        .unwrap();
    let r = db.shutdown(Drain::within(Duration::from_secs(5))).await.unwrap();
    println!("{r:?}");
    assert!(matches!(
        db2.execute("DELETE FROM t", ()).await,
        Err(WriteError::NotStarted(NotStarted::Closed))
    ));
    println!(
        "{:?}",
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
    );
    let db = Database::open(&path).await.unwrap();
    drop(db);
    let db = Database::open(&path).await.unwrap();
    let b = db.blocking();
    tokio::task::spawn_blocking(move || {
        b.execute("DELETE FROM t", ()).wait().unwrap();
        b.import("x", 0..10)
            .run(|tx, i: &i32| tx.execute("INSERT INTO t (x) VALUES (?1)", [i]))
            .wait()
            .unwrap();
    })
    .await
    .unwrap();
}
