//! `solewriter dashboard`: a stress run, with its page served meanwhile.

use std::future::pending;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::cli::Dashboard;
use crate::stress::{Run, listen_for_interrupt, require_writable, verdict};
use crate::{Refusal, Verdict, output};

pub(crate) fn run(options: &Dashboard) -> Result<Verdict, Refusal> {
    require_writable(options.json.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let listener = TcpListener::bind(&options.listen)
            .await
            .map_err(|error| format!("--listen {}: {error}", options.listen))?;
        let interrupted = listen_for_interrupt();
        let run = Run::begin(&options.load).await?;
        output::note(&format!("http://{}/ shows how it goes; Ctrl-C ends it", listener.local_addr()?));
        // It ends with the runtime: a page that is open would keep it waiting.
        tokio::spawn(axum::serve(listener, solewriter::http::router(run.database())).into_future());
        run.until(ended(options.duration, interrupted)).await
    })?;
    verdict(&report, options.json.as_deref())
}

/// Ready when the time is up, if there is a limit, or somebody has had enough.
async fn ended(duration: Option<Duration>, interrupted: oneshot::Receiver<()>) {
    let time_is_up = async {
        match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = time_is_up => {}
        Ok(()) = interrupted => {}
    }
}
