//! How the run goes, once a second on a terminal and now and then in a log.

use std::io::IsTerminal;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use solewriter::{Database, Stats};

use super::measured::Measured;
use super::report::millis;
use crate::inspect;
use crate::output;

/// How often the size of the WAL is looked at.
const LOOK: Duration = Duration::from_millis(200);

const ON_TERMINAL: Duration = Duration::from_secs(1);
const IN_LOG: Duration = Duration::from_secs(5);

pub(crate) struct Live {
    db: Database,
    measured: Arc<Measured>,
    /// `None` where nobody watches a terminal.
    screen: Option<ProgressBar>,
    began: Instant,
    shown: Instant,
    /// What was committed when it was last shown.
    committed: u64,
    wal_max_bytes: u64,
}

impl Live {
    pub(crate) fn new(db: Database, measured: Arc<Measured>) -> Self {
        let screen = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new_spinner().with_style(style)
        });
        let now = Instant::now();
        Self { db, measured, screen, began: now, shown: now, committed: 0, wal_max_bytes: 0 }
    }

    pub(crate) async fn show_until(&mut self, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = &mut end => return,
                _ = look.tick() => self.look(),
            }
        }
    }

    /// Clears the screen; returns the most bytes the WAL has held.
    pub(crate) fn end(self) -> u64 {
        if let Some(screen) = &self.screen {
            screen.finish_and_clear();
        }
        // The service has seen it at every commit of its own, between two looks.
        const HEADER_BYTES: u64 = 32;
        const FRAME_HEADER_BYTES: u64 = 24;
        let Stats { wal_pages_max, page_bytes, .. } = self.db.stats();
        let told = HEADER_BYTES + wal_pages_max * (page_bytes + FRAME_HEADER_BYTES);
        self.wal_max_bytes.max(if wal_pages_max == 0 { 0 } else { told })
    }

    fn look(&mut self) {
        // Not opened: closing it would not matter, but that of the database file would.
        let wal_bytes = inspect::beside(self.db.path(), "-wal").metadata().map_or(0, |wal| wal.len());
        self.wal_max_bytes = self.wal_max_bytes.max(wal_bytes);
        let passed = self.shown.elapsed();
        if passed < if self.screen.is_some() { ON_TERMINAL } else { IN_LOG } {
            return;
        }
        let committed = self.measured.committed.get() + self.measured.imported.get();
        let per_s = (committed - self.committed) as f64 / passed.as_secs_f64();
        (self.committed, self.shown) = (committed, Instant::now());
        self.show([
            ("s", self.began.elapsed().as_secs().to_string()),
            ("writes/s", HumanCount(per_s as u64).to_string()),
            ("p99", millis(self.measured.p99_now())),
            ("queue", HumanCount(queued(&self.db.stats())).to_string()),
            ("WAL", HumanBytes(wal_bytes).to_string()),
            ("holder", self.db.holder().map_or("nobody".into(), |holder| holder.phase.to_string())),
        ]);
    }

    fn show(&self, figures: [(&str, String); 6]) {
        match &self.screen {
            Some(screen) => {
                let mut table = Table::new();
                table.load_style(presets::UTF8_FULL_CONDENSED);
                table.set_header(figures.iter().map(|(name, _)| name));
                table.add_row(figures.iter().map(|(_, figure)| figure));
                screen.set_message(table.to_string());
            }
            None => {
                let figures = figures.map(|(name, figure)| format!("{name} {figure}"));
                output::note(&figures.join("  "));
            }
        }
    }
}

fn queued(stats: &Stats) -> u64 {
    let depth = &stats.queue_depth;
    (depth.interactive + depth.bulk + depth.maintenance) as u64
}
