//! Who goes next. Pure: no clock, no SQLite.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Config;
use crate::lane::{Lane, PerLane};

/// The commands that wait, by lane, and the writer time that is owed to each lane.
///
/// The most urgent lane goes first. A lane that waits behind others earns credit, its share of the writer's
/// time; once that covers the time its next command is expected to take, it goes before everyone. What it
/// then uses is taken off its credit. So no lane starves, and none pays for time when nobody else waited.
pub(crate) struct Lanes<T> {
    queues: PerLane<VecDeque<T>>,
    /// Nanoseconds of writer time; below zero after a command that took longer than expected.
    credit: PerLane<i64>,
    share_percent: PerLane<i64>,
    /// The usual length of a bulk batch.
    batch: Duration,
}

impl<T> Lanes<T> {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            queues: PerLane::from_fn(|_| VecDeque::new()),
            credit: PerLane::default(),
            share_percent: PerLane {
                interactive: 0,
                bulk: config.bulk_share_percent.into(),
                maintenance: config.maintenance_share_percent.into(),
            },
            batch: config.bulk_hold_target,
        }
    }

    pub(crate) fn push(&mut self, lane: Lane, command: T) {
        self.queues[lane].push_back(command);
    }

    pub(crate) fn pop(&mut self, lane: Lane) -> Option<T> {
        self.queues[lane].pop_front()
    }

    pub(crate) fn head(&self, lane: Lane) -> Option<&T> {
        self.queues[lane].front()
    }

    /// The first command of a lane that `is_wanted`.
    pub(crate) fn first(&self, lane: Lane, is_wanted: impl Fn(&T) -> bool) -> Option<&T> {
        self.queues[lane].iter().find(|command| is_wanted(command))
    }

    pub(crate) fn is_empty(&self) -> bool {
        Lane::ALL.into_iter().all(|lane| self.queues[lane].is_empty())
    }

    /// Takes every command that `is_wanted`; those left keep their order.
    pub(crate) fn take(&mut self, is_wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for lane in Lane::ALL {
            for command in std::mem::take(&mut self.queues[lane]) {
                if is_wanted(&command) {
                    taken.push(command);
                } else {
                    self.queues[lane].push_back(command);
                }
            }
        }
        taken
    }

    /// The lane whose head goes next.
    ///
    /// `None` if nothing waits, or if the group should close: it holds an interactive command, whose caller
    /// waits for the COMMIT, and no other lane has earned the time it would add.
    pub(crate) fn next(&self, group_is_interactive: bool, expected: impl Fn(&T) -> Duration) -> Option<Lane> {
        let waits = |lane: &Lane| !self.queues[*lane].is_empty();
        let owed = |lane: &Lane| match self.head(*lane) {
            Some(command) => self.credit[*lane] >= self.price(*lane, expected(command)).max(1),
            None => false,
        };
        if let Some(lane) = [Lane::Bulk, Lane::Maintenance].into_iter().find(owed) {
            return Some(lane);
        }
        let next = Lane::ALL.into_iter().find(waits)?;
        (next == Lane::Interactive || !group_is_interactive).then_some(next)
    }

    /// Accounts for writer time that was `spent` on `lane`.
    ///
    /// Credit is capped at what the next command costs, or a batch of the usual length: one long command must
    /// not buy the lanes behind it a stretch as long, at the cost of the next caller.
    pub(crate) fn spend(
        &mut self,
        lane: Lane,
        spent: Duration,
        group_is_interactive: bool,
        expected: impl Fn(&T) -> Duration,
    ) {
        let time = nanos(spent);
        for other in [Lane::Bulk, Lane::Maintenance] {
            if other != lane && !self.queues[other].is_empty() {
                let head = self.head(other).map(&expected).unwrap_or_default();
                let cap = self.price(other, head.max(self.batch)).max(1);
                let earned = time.saturating_mul(self.share_percent[other]) / 100;
                self.credit[other] = self.credit[other].saturating_add(earned).min(cap);
            }
        }
        let someone_waits =
            Lane::ALL.into_iter().any(|other| other != lane && !self.queues[other].is_empty());
        if lane != Lane::Interactive && (group_is_interactive || someone_waits) {
            self.credit[lane] -= self.price(lane, spent);
        }
        if self.queues[lane].is_empty() {
            // Credit is for waiting: a lane that does not wait can't save it up. Debts stay.
            self.credit[lane] = self.credit[lane].min(0);
        }
    }

    /// What a lane pays for its own time: the part that is not its share anyway.
    fn price(&self, lane: Lane, time: Duration) -> i64 {
        nanos(time).saturating_mul(100 - self.share_percent[lane]) / 100
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn lanes() -> Lanes<Duration> {
        Lanes::new(&Config::default())
    }

    fn next(lanes: &Lanes<Duration>, group_is_interactive: bool) -> Option<Lane> {
        lanes.next(group_is_interactive, |&expected| expected)
    }

    fn spend(lanes: &mut Lanes<Duration>, lane: Lane, spent: Duration, group_is_interactive: bool) {
        lanes.spend(lane, spent, group_is_interactive, |&expected| expected);
    }

    #[test]
    fn interactive_goes_first_and_then_closes_the_group_to_bulk() {
        let mut lanes = lanes();
        lanes.push(Lane::Bulk, 8 * MILLI);
        lanes.push(Lane::Interactive, MILLI);
        assert_eq!(next(&lanes, false), Some(Lane::Interactive));
        lanes.pop(Lane::Interactive);
        spend(&mut lanes, Lane::Interactive, MILLI, true);
        assert_eq!(next(&lanes, true), None);
        assert_eq!(next(&lanes, false), Some(Lane::Bulk));
    }

    /// Plays 10 s of a writer whose lanes are never empty and returns the share of each lane.
    fn shares_under_load(bulk_command: Duration, waiting: usize) -> PerLane<f64> {
        let mut lanes = lanes();
        let cost =
            PerLane { interactive: Duration::from_micros(20), bulk: bulk_command, maintenance: 3 * MILLI };
        let (mut spent, mut total) = (PerLane::<Duration>::default(), Duration::ZERO);
        let mut group_is_interactive = false;
        while total < Duration::from_secs(10) {
            for lane in Lane::ALL {
                while lanes.queues[lane].len() < waiting {
                    lanes.push(lane, cost[lane]);
                }
            }
            let Some(lane) = next(&lanes, group_is_interactive) else {
                group_is_interactive = false;
                continue;
            };
            lanes.pop(lane);
            group_is_interactive |= lane == Lane::Interactive;
            spend(&mut lanes, lane, cost[lane], group_is_interactive);
            spent[lane] += cost[lane];
            total += cost[lane];
        }
        PerLane::from_fn(|lane| spent[lane].as_secs_f64() / total.as_secs_f64())
    }

    #[test]
    fn under_full_load_each_lane_gets_its_share_whatever_its_commands_take() {
        for (bulk_command, waiting) in [(MILLI / 10, 2), (8 * MILLI, 2), (8 * MILLI, 1), (100 * MILLI, 2)] {
            let shares = shares_under_load(bulk_command, waiting);
            assert!((0.19..0.21).contains(&shares.bulk), "{bulk_command:?}: {shares:?}");
            assert!((0.045..0.055).contains(&shares.maintenance), "{bulk_command:?}: {shares:?}");
        }
    }

    #[test]
    fn a_lane_alone_is_never_held_back_and_owes_nothing_for_it() {
        let mut lanes = lanes();
        for _ in 0..100 {
            lanes.push(Lane::Bulk, 8 * MILLI);
            assert_eq!(next(&lanes, false), Some(Lane::Bulk));
            lanes.pop(Lane::Bulk);
            spend(&mut lanes, Lane::Bulk, 8 * MILLI, false);
        }
        assert_eq!(lanes.credit.bulk, 0);
    }

    #[test]
    fn a_lane_that_does_not_wait_saves_up_nothing() {
        let mut lanes = lanes();
        lanes.push(Lane::Bulk, 8 * MILLI);
        spend(&mut lanes, Lane::Interactive, Duration::from_secs(1), true);
        assert_eq!(next(&lanes, true), Some(Lane::Bulk));
        lanes.pop(Lane::Bulk);
        spend(&mut lanes, Lane::Bulk, 8 * MILLI, true);
        lanes.push(Lane::Bulk, 8 * MILLI);
        assert_eq!(next(&lanes, true), None);
    }

    #[test]
    fn a_long_command_buys_those_behind_it_no_more_than_a_batch() {
        let mut lanes = lanes();
        for _ in 0..1_000 {
            lanes.push(Lane::Bulk, MILLI);
        }
        lanes.push(Lane::Interactive, MILLI);
        spend(&mut lanes, Lane::Interactive, Duration::from_secs(4), true);
        let mut overtaken = Duration::ZERO;
        while next(&lanes, true) == Some(Lane::Bulk) {
            lanes.pop(Lane::Bulk);
            spend(&mut lanes, Lane::Bulk, MILLI, true);
            overtaken += MILLI;
        }
        assert!(overtaken <= 9 * MILLI, "{overtaken:?}");
    }
}
