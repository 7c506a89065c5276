//! One run: imports in rounds, with the load beside them, on whatever does the writing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::catalog::{Page, Rename};
use crate::cli::Options;
use crate::error::Error;
use crate::load::{Requests, open_loop};
use crate::marketplace::{Marketplace, Source};
use crate::measured::{Answer, Imported, Measured, Round, Rounds, WriteFigures};

/// What a mode has to be able to do.
pub(crate) trait Service: Send + Sync + 'static {
    /// Imports every entry of `source` and advances `progress` by the entries as they are committed or have
    /// failed.
    ///
    /// # Errors
    /// Only what ends the run; an entry or a batch that failed is counted.
    fn import(
        self: Arc<Self>,
        source: Arc<Source>,
        progress: ProgressBar,
    ) -> impl Future<Output = Result<Imported, Error>> + Send;

    /// Renames one entry.
    fn rename(self: Arc<Self>, rename: Rename) -> impl Future<Output = Answer> + Send;

    /// Reads one page of a source.
    fn list(self: Arc<Self>, page: Page) -> impl Future<Output = Answer> + Send;

    /// The write path's figures so far.
    fn figures(&self) -> WriteFigures;
}

/// Imports the first `imports` sources at once, round after round, while renames and list reads arrive.
///
/// A comparison ends with the first round and the requests that arrived meanwhile; otherwise rounds follow
/// one another until the options' time is up.
///
/// # Errors
/// The first error of an import.
pub(crate) async fn drive<S: Service>(
    service: &Arc<S>,
    options: &Options,
    marketplace: &Marketplace,
    imports: usize,
) -> Result<Measured, Error> {
    let sources = &marketplace.sources[..imports.min(marketplace.sources.len())];
    let requests = Arc::new(Requests::of(marketplace, imports));
    let (stop, stopped) = watch::channel(false);
    let renames = tokio::spawn({
        let (service, requests) = (Arc::clone(service), Arc::clone(&requests));
        let send = move |arrival| Arc::clone(&service).rename(requests.rename(arrival));
        open_loop(options.renames_per_s, stopped.clone(), send)
    });
    let reads = tokio::spawn({
        let service = Arc::clone(service);
        let send = move |arrival| Arc::clone(&service).list(requests.page(arrival));
        open_loop(options.reads_per_s(), stopped, send)
    });
    let rounds = rounds(service, sources, options.repeat_for()).await;
    stop.send_replace(true);
    let (renames, reads) = (renames.await?, reads.await?);
    let (first, again) = rounds?;
    Ok(Measured { imports: sources.len(), first, again, writes: service.figures(), renames, reads })
}

/// The first round, and as many more as begin within `repeat_for` of the start.
async fn rounds<S: Service>(
    service: &Arc<S>,
    sources: &[Arc<Source>],
    repeat_for: Duration,
) -> Result<(Rounds, Rounds), Error> {
    let start = Instant::now();
    let bars = Bars::of(sources);
    let (mut first, mut again) = (Rounds::default(), Rounds::default());
    first.add(round(service, sources, &bars, "import").await?);
    while start.elapsed() < repeat_for {
        let title = format!("re-import {}", again.count + 1);
        again.add(round(service, sources, &bars, &title).await?);
    }
    Ok((first, again))
}

/// Imports all sources at once and waits for the last.
async fn round<S: Service>(
    service: &Arc<S>,
    sources: &[Arc<Source>],
    bars: &Bars,
    title: &str,
) -> Result<Round, Error> {
    let start = Instant::now();
    let mut imports = JoinSet::new();
    for (source, bar) in sources.iter().zip(&bars.0) {
        bar.reset();
        bar.set_message(format!("{} {title}", source.repo_name));
        let service = Arc::clone(service);
        imports.spawn(service.import(Arc::clone(source), bar.clone()));
    }
    let (mut imported, mut first_done) = (Imported::default(), None);
    while let Some(one) = imports.join_next().await {
        first_done.get_or_insert_with(|| start.elapsed());
        imported.add(one??);
    }
    let wall = start.elapsed();
    Ok(Round { wall, first_done: first_done.unwrap_or(wall), imported })
}

/// One progress bar per import; indicatif hides them where there is no terminal.
struct Bars(Vec<ProgressBar>);

impl Bars {
    fn of(sources: &[Arc<Source>]) -> Bars {
        let bars = MultiProgress::new();
        let style = ProgressStyle::with_template("{msg:24} {bar:40} {pos}/{len} {elapsed}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |source: &Arc<Source>| {
            let bar = ProgressBar::new(source.entry_count() as u64).with_style(style.clone());
            bars.add(bar)
        };
        Bars(sources.iter().map(bar).collect())
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        for bar in &self.0 {
            bar.finish_and_clear();
        }
    }
}
