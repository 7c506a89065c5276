//! What bytes are taken for.

use std::ops::RangeInclusive;
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use serde::{Deserialize, Serialize};
use solewriter::{Durability, Lane};

use super::hostile::{FRAGMENTS, What};
use crate::common::Kind;
use crate::common::faults::{By, Lasts, Of, Op};
use crate::ledger::End;
use crate::workload::Manner;

/// More would only be slow.
const STEPS_MAX: usize = 48;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) page_bytes: u32,
    pub(super) checkpoint_pages: u32,
    pub(super) group_commands_max: usize,
    pub(super) cache_bytes: u64,
    pub(super) readers_overflow: usize,
    pub(super) breaker_failures: u32,
    /// Few commands fit into a lane, and nobody waits for room.
    pub(super) is_small: bool,
    /// Writes that fail have written a part.
    pub(super) tears_writes: bool,
    /// When the files are looked at, in 256ths of what was recorded, and what has ended then.
    pub(super) looks: Vec<(u8, End)>,
    /// Decides what becomes of what was not synced.
    pub(super) luck: u64,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug)]
pub(super) enum Step {
    Send(Sent),
    /// Holds the writer until the next [`Settle`](Self::Settle), so that what is sent meanwhile waits together.
    Gate,
    /// Waits for every answer.
    Settle,
    /// Somebody has no use for an answer any more.
    Drop(usize),
    Read,
    ReadText(Text),
    TakeSnapshot,
    ReadSnapshot,
    DropSnapshot,
    /// Begins the import, or goes on with it; it is dropped after this time.
    Import(Option<Duration>),
    Maintain(Maintenance),
    /// Another program takes the write lock until the next [`Settle`](Self::Settle).
    Foreign,
    Fail(Failing),
    Heal,
    Reopen,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Maintenance {
    Check,
    Optimize,
    Vacuum,
    Reindex,
}

#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) kind: Kind,
    pub(super) what: What,
    pub(super) lane: Lane,
    pub(super) durability: Durability,
    pub(super) deadline: Option<Duration>,
    pub(super) withdraws: bool,
}

/// SQL that makes sense now and then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Text {
    pub(super) sql: String,
    pub(super) how: How,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum How {
    Batch,
    Execute,
    Query,
}

#[derive(Debug)]
pub(super) enum Failing {
    /// Whatever call comes after so many others.
    Any { spared: usize, lasts: Lasts, second_code: bool },
    /// Calls of a kind.
    Kind { op: Op, of: Of, by: Option<By>, second_code: bool, spared: u32, times: u32 },
}

/// One of a few, or something within a range, for one byte.
fn choose<T: Copy>(u: &mut Unstructured<'_>, from: &[T]) -> Result<T> {
    u.choose(from).copied()
}

fn within(u: &mut Unstructured<'_>, range: RangeInclusive<u8>) -> Result<u8> {
    u.int_in_range(range)
}

impl<'a> Arbitrary<'a> for Plan {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut plan = Self {
            page_bytes: choose(u, &[512, 1024, 4096])?,
            checkpoint_pages: within(u, 4..=60)?.into(),
            group_commands_max: within(u, 1..=20)?.into(),
            // What does not fit is written before its COMMIT.
            cache_bytes: choose(u, &[2_000_000, 4_096])?,
            readers_overflow: within(u, 0..=1)?.into(),
            breaker_failures: within(u, 1..=4)?.into(),
            is_small: u.ratio(1, 8)?,
            tears_writes: u.arbitrary()?,
            looks: Vec::new(),
            luck: u.arbitrary::<u16>()?.into(),
            steps: Vec::new(),
        };
        for _ in 0..4 {
            plan.looks.push((u.arbitrary()?, choose(u, &[End::Kill, End::PowerLoss])?));
        }
        while !u.is_empty() && plan.steps.len() < STEPS_MAX {
            plan.steps.push(u.arbitrary()?);
        }
        Ok(plan)
    }
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match within(u, 0..=39)? {
            0..16 => Self::Send(u.arbitrary()?),
            16..18 => Self::Gate,
            18..21 => Self::Settle,
            21 => Self::Drop(u.arbitrary::<u8>()?.into()),
            22 => Self::Read,
            23 => Self::ReadText(u.arbitrary()?),
            24 => Self::TakeSnapshot,
            25 => Self::ReadSnapshot,
            26 => Self::DropSnapshot,
            27 => Self::Import(None),
            28 => Self::Import(Some(Duration::from_micros(u64::from(u.arbitrary::<u8>()?) * 20))),
            29 => Self::Maintain(choose(
                u,
                &[Maintenance::Check, Maintenance::Optimize, Maintenance::Vacuum, Maintenance::Reindex],
            )?),
            30 => Self::Foreign,
            31..37 => Self::Fail(u.arbitrary()?),
            37 => Self::Heal,
            _ => Self::Reopen,
        })
    }
}

impl<'a> Arbitrary<'a> for Sent {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let what = u.arbitrary()?;
        // A few bits of one byte for what is usually left as it is.
        let options: u8 = u.arbitrary()?;
        Ok(Self {
            kind: Kind::ALL[usize::from(options & 3)],
            what,
            lane: match options >> 2 & 7 {
                0 => Lane::Bulk,
                1 => Lane::Maintenance,
                _ => Lane::Interactive,
            },
            durability: if options >> 5 & 1 == 1 { Durability::Normal } else { Durability::Full },
            deadline: match options >> 6 {
                3 => Some(Duration::from_millis(within(u, 0..=20)?.into())),
                _ => None,
            },
            withdraws: options >> 6 == 2,
        })
    }
}

impl<'a> Arbitrary<'a> for What {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match within(u, 0..=35)? {
            0..10 => Self::Manner(Manner::Good),
            10 => Self::Manner(Manner::Nests),
            11 => Self::Manner(Manner::Spills),
            12..14 => Self::Manner(Manner::Churns),
            14 => Self::Manner(Manner::FailsAtTheEnd),
            15 => Self::Manner(Manner::Panics),
            16..18 => Self::Manner(Manner::RollsBackEverything),
            18 => Self::Manner(Manner::KeepsHalf),
            19 => Self::SwallowsRollback,
            20 => Self::LeaksRead,
            21 => Self::LeaksWrite,
            22 => Self::BreaksForeignKey,
            23 => Self::MendsForeignKey,
            24 => Self::TriesToCommit,
            25 => Self::ChangesSchema,
            26 => Self::KeepsOfTrigger,
            27 => Self::TooLong,
            28 => Self::CallsItself,
            29 => Self::Endless,
            30 => Self::WritesNothing,
            _ => Self::Text(u.arbitrary()?),
        })
    }
}

impl<'a> Arbitrary<'a> for Text {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let how = choose(u, &[How::Batch, How::Execute, How::Query])?;
        let mut sql = String::new();
        for _ in 0..within(u, 1..=6)? {
            sql += choose(u, &FRAGMENTS)?;
            sql.push(' ');
        }
        Ok(Self { sql, how })
    }
}

impl<'a> Arbitrary<'a> for Failing {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let second_code = u.arbitrary()?;
        if u.arbitrary()? {
            let lasts = choose(u, &[Lasts::Once, Lasts::ForItsKind, Lasts::ForAll])?;
            return Ok(Self::Any { spared: u.arbitrary::<u8>()?.into(), lasts, second_code });
        }
        let (op, of) = choose(
            u,
            &[
                (Op::Sync, Of::Wal),
                (Op::Sync, Of::Wal),
                (Op::Sync, Of::Wal),
                (Op::Sync, Of::Database),
                (Op::Write, Of::Wal),
                (Op::Write, Of::Database),
                (Op::Read, Of::Wal),
                (Op::Read, Of::Database),
                (Op::Truncate, Of::Wal),
                (Op::Truncate, Of::Database),
                (Op::Lock, Of::Database),
                (Op::Open, Of::Wal),
                (Op::Open, Of::Database),
                (Op::Size, Of::Wal),
                (Op::Size, Of::Database),
                (Op::FileLock, Of::Database),
                (Op::Map, Of::Database),
                (Op::Delete, Of::Wal),
                (Op::Access, Of::Wal),
            ],
        )?;
        Ok(Self::Kind {
            op,
            of,
            by: choose(u, &[None, Some(By::Writer), Some(By::Checkpointer), Some(By::Other)])?,
            second_code,
            spared: within(u, 0..=40)?.into(),
            times: choose(u, &[1, 2, 3, u32::MAX])?,
        })
    }
}
