//! What may cross threads: checked when this compiles.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use solewriter::{
    Blocking, BlockingDatabase, Builder, CommitToken, Config, Database, Execute, ImportError, ImportRun,
    Lane, OpenError, OpenSnapshot, Read, ReadError, Reading, Receipt, ShutdownError, Snapshot, Stats, Write,
    WriteError, WriteFuture,
};

const fn is_send<T: Send>() {}
const fn is_shared<T: Send + Sync + Unpin>() {}
const fn is_handle<T: Clone + Send + Sync + Unpin + 'static>() {}
const fn is_error<T: std::error::Error + Send + Sync + 'static>() {}

#[test]
fn handles_futures_and_errors_cross_threads() {
    is_handle::<Database>();
    is_handle::<BlockingDatabase>();
    is_handle::<Builder>();
    is_handle::<Config>();
    is_handle::<CommitToken>();
    is_handle::<Lane>();
    is_handle::<Stats>();
    is_handle::<Reading>();
    is_shared::<Receipt<Execute>>();
    is_shared::<Snapshot>();
    is_shared::<Snapshot<Blocking>>();
    is_send::<OpenSnapshot<'static>>();
    is_send::<Write<'static, Execute>>();
    is_send::<WriteFuture<'static, Execute>>();
    is_send::<Read<'static, fn()>>();
    is_send::<ImportRun<'static, rusqlite::Error>>();
    is_error::<OpenError>();
    is_error::<WriteError>();
    is_error::<ReadError>();
    is_error::<ShutdownError>();
    is_error::<ImportError<rusqlite::Error>>();
}

#[tokio::test]
async fn the_futures_of_a_handle_can_be_spawned() {
    fn spawnable<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) {
        drop(future);
    }
    spawnable(async {
        let db = Database::open("never").await?;
        drop(db.execute("", ()).await);
        drop(db.execute("", ()).committed().await);
        drop(db.write("never", |_| Ok(())).submit().await);
        drop(db.read("never", |_| Ok(())).await);
        if let Ok(snapshot) = db.snapshot("never").await {
            drop(snapshot.read(|_| Ok(())).deadline(std::time::Duration::ZERO).await);
        }
        drop(
            db.import("never", futures_util::stream::empty::<()>())
                .run(|_, ()| Ok::<_, rusqlite::Error>(()))
                .await,
        );
        drop(db.shutdown(solewriter::Drain::within(std::time::Duration::ZERO)).await);
        Ok::<_, OpenError>(())
    });
}
