//! What the rounds of a measurement come to, and which of them can be compared.

use peers_common::{Durability, Figures, Workload};

use crate::matrix::{Role, System};

/// All rounds of one system in one cell.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) role: Role,
    /// The median of each figure; of maxima the largest, of errors and lost rows the sum.
    pub(crate) figures: Figures,
    /// The lowest and the highest throughput.
    pub(crate) range: (f64, f64),
    /// Rounds without an outcome.
    pub(crate) failed: usize,
}

impl Summary {
    /// `None` if no round has an outcome.
    pub(crate) fn of(system: &System, rounds: &[Figures], failed: usize) -> Option<Self> {
        let first = rounds.first()?;
        let sorted = |figure: fn(&Figures) -> f64| {
            let mut values: Vec<_> = rounds.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |figure| {
            let values = sorted(figure);
            // Of an even number the lower one.
            values[(values.len() - 1) / 2]
        };
        let rates = sorted(|figures| figures.ops_per_s);
        let largest = |figure: fn(&Figures) -> u64| rounds.iter().map(figure).max().unwrap_or_default();
        let figures = Figures {
            ops_per_s: median(|figures| figures.ops_per_s),
            p50_us: median(|figures| figures.p50_us),
            p99_us: median(|figures| figures.p99_us),
            p999_us: median(|figures| figures.p999_us),
            max_us: rounds.iter().map(|figures| figures.max_us).fold(0.0, f64::max),
            errors: rounds.iter().map(|figures| figures.errors).sum(),
            lost: rounds.iter().map(|figures| figures.lost).sum(),
            cpu_us_per_command: median(|figures| figures.cpu_us_per_command),
            peak_rss_bytes: largest(|figures| figures.peak_rss_bytes),
            wal_max_bytes: largest(|figures| figures.wal_max_bytes),
            ..first.clone()
        };
        let range = (*rates.first()?, *rates.last()?);
        Some(Self { role: system.role, figures, range, failed })
    }
}

/// What is compared with each other: workload, clients, durability.
pub(crate) type Place = (Workload, usize, Durability);

/// Everything measured.
#[derive(Debug, Default)]
pub(crate) struct Results(Vec<Vec<Summary>>);

impl Results {
    pub(crate) fn add(&mut self, cell: Vec<Summary>) {
        if !cell.is_empty() {
            self.0.push(cell);
        }
    }

    pub(crate) fn cells(&self) -> impl Iterator<Item = &[Summary]> {
        self.0.iter().map(Vec::as_slice)
    }

    pub(crate) fn figures(&self) -> impl Iterator<Item = &Figures> {
        self.0.iter().flatten().map(|summary| &summary.figures)
    }

    pub(crate) fn ours(&self, place: Place) -> Option<&Figures> {
        self.of_role(place, Role::Ours).next()
    }

    pub(crate) fn all_ours(&self) -> impl Iterator<Item = &Figures> {
        self.0.iter().flatten().filter(|summary| summary.role == Role::Ours).map(|summary| &summary.figures)
    }

    pub(crate) fn limit(&self, place: Place) -> Option<&Figures> {
        self.of_role(place, Role::Limit).next()
    }

    /// The peer with the highest throughput.
    pub(crate) fn fastest_peer(&self, place: Place) -> Option<&Figures> {
        self.of_role(place, Role::Peer).max_by(|a, b| a.ops_per_s.total_cmp(&b.ops_per_s))
    }

    /// The peer with the lowest value of a latency.
    pub(crate) fn quickest_peer(&self, place: Place, latency: fn(&Figures) -> f64) -> Option<&Figures> {
        self.of_role(place, Role::Peer).min_by(|a, b| latency(a).total_cmp(&latency(b)))
    }

    fn of_role(&self, place: Place, role: Role) -> impl Iterator<Item = &Figures> {
        let (workload, clients, durability) = place;
        self.0
            .iter()
            .flatten()
            .filter(move |summary| summary.role == role)
            .map(|summary| &summary.figures)
            .filter(move |figures| {
                (figures.workload, figures.clients, figures.durability) == (workload, clients, durability)
            })
    }
}
