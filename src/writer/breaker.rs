//! Refuses writes while the environment fails, and lets them through again once a probe succeeds. Pure: the
//! clock is the caller's.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::{Cause, NotStarted};

/// The longest pause between two probes.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A circuit breaker: closed while writes go through, open while they are refused, half-open during a probe.
#[derive(Debug)]
pub(super) struct Breaker {
    failures_max: u32,
    pause_min: Duration,
    failures_in_a_row: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    reason: Reason,
    cause: Cause,
    pause: Duration,
    probe_at: Instant,
}

/// Why writes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    DiskFull,
    Failures,
}

impl Breaker {
    pub(super) fn new(config: &Config) -> Self {
        let (failures_max, pause_min) = (config.breaker_failures, config.breaker_pause);
        Self { failures_max, pause_min, failures_in_a_row: 0, open: None }
    }

    /// The service could write: a group or a probe was committed. True if writes were refused until now.
    pub(super) fn succeeded(&mut self) -> bool {
        self.failures_in_a_row = 0;
        self.open.take().is_some()
    }

    /// The environment failed. True if writes are refused from now on.
    pub(super) fn failed(&mut self, cause: Cause, now: Instant) -> bool {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        if self.open.is_some() || self.failures_in_a_row >= self.failures_max {
            return self.trip(Reason::Failures, cause, now);
        }
        false
    }

    /// Refuses writes at once. True if they were not refused yet.
    pub(super) fn trip(&mut self, reason: Reason, cause: Cause, now: Instant) -> bool {
        let pause = self.open.as_ref().map_or(self.pause_min, |open| (open.pause * 2).min(PAUSE_MAX));
        self.open.replace(Open { reason, cause, pause, probe_at: now + pause }).is_none()
    }

    /// When the next probe is due, if writes are refused.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.probe_at)
    }

    /// What a command is told that comes meanwhile.
    pub(super) fn refusal(&self) -> Option<NotStarted> {
        self.open.as_ref().map(|open| match open.reason {
            Reason::DiskFull => NotStarted::DiskFull(open.cause.clone()),
            Reason::Failures => NotStarted::Unavailable(open.cause.clone()),
        })
    }

    /// Why writes are refused, if they are.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.open.as_ref().map(|open| open.cause.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause() -> Cause {
        rusqlite::Error::InvalidQuery.into()
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only_and_closes_with_one_success() {
        let config = Config { breaker_failures: 3, ..Config::default() };
        let mut breaker = Breaker::new(&config);
        let now = Instant::now();
        assert!(!breaker.failed(cause(), now) && !breaker.failed(cause(), now));
        assert!(!breaker.succeeded());
        assert!(!breaker.failed(cause(), now) && !breaker.failed(cause(), now));
        assert!(breaker.refusal().is_none());
        assert!(breaker.failed(cause(), now));
        assert!(matches!(breaker.refusal(), Some(NotStarted::Unavailable(_))));
        assert!(breaker.succeeded() && breaker.refusal().is_none());
        assert!(!breaker.failed(cause(), now), "it counts anew");
    }

    #[test]
    fn each_probe_in_vain_doubles_the_pause_up_to_its_limit() {
        let mut breaker = Breaker::new(&Config::default());
        let now = Instant::now();
        assert!(breaker.trip(Reason::DiskFull, cause(), now));
        assert!(matches!(breaker.refusal(), Some(NotStarted::DiskFull(_))));
        let mut pauses = Vec::new();
        for _ in 0..9 {
            pauses.extend(breaker.probe_at().map(|at| (at - now).as_millis()));
            assert!(!breaker.trip(Reason::DiskFull, cause(), now), "it was open already");
        }
        assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    }
}
