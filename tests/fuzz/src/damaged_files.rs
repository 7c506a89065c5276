//! Bytes are taken for edits of a good database, its WAL, its wal-index or the record of its import. Whatever is left
//! is opened and used: no panic, no crash, no hang, and every answer is true.
//!
//! A case and what can be demanded of it are those of the reliability test `damaged_files`; the damage is chosen
//! here byte by byte.

#[allow(dead_code, reason = "the other test chooses at random")]
#[path = "../../reliability/damaged_files/case.rs"]
mod case;
#[allow(dead_code, reason = "the other test chooses at random")]
#[path = "../../reliability/damaged_files/damage.rs"]
mod damage;
#[path = "../../reliability/damaged_files/good.rs"]
mod good;
#[path = "../../reliability/damaged_files/imports.rs"]
mod imports;
#[path = "../../reliability/damaged_files/ops.rs"]
mod ops;
#[allow(dead_code, reason = "nothing here crashes on purpose")]
#[path = "../../reliability/damaged_files/report.rs"]
mod report;

use std::ops::Range;

use arbitrary::{Result, Unstructured};
use fastrand::Rng;

use crate::common::proof::Tally;
use crate::frame;
use damage::{Damage, FRAME_HEADER_BYTES, Reach, WAL_HEADER_BYTES};
use good::{Files, Goods, Kind};
use report::Mode;

/// More would leave nothing of the file.
const EDITS_MAX: usize = 12;

fn mode() -> Mode {
    match frame::canary() {
        None => Mode::Truthful,
        Some("RowDeleted") => Mode::RowDeleted,
        Some("AckBeforeCommit") => Mode::AckBeforeCommit,
        Some(unknown) => panic!("there is no canary {unknown}"),
    }
}

/// Damages a file and uses it.
pub fn run(bytes: &[u8]) {
    thread_local! { static GOODS: Goods = Goods::default(); }
    let mut u = Unstructured::new(bytes);
    let directory = frame::directory();
    let report = GOODS.with(|goods| {
        // What is used, and in which order.
        let seed: u8 = u.arbitrary().ok()?;
        let kind = Kind::any(&mut Rng::with_seed(u.arbitrary::<u8>().ok()?.into()));
        let good = goods.get(kind);
        let mut files = good.files.clone();
        let damage = damage_files(&mut u, kind, &mut files).ok()?;
        let path = directory.path().join("test.db");
        let mut report = case::use_damaged(Rng::with_seed(seed.into()), mode(), good, &files, damage, path);
        report.wrong.iter_mut().for_each(|(_, what)| *what = format!("{kind:?}, {what}"));
        Some(report)
    });
    let Some(report) = report else { return };
    let mut tally = Tally::of_one_case();
    tally.checks = report.checks;
    for (how, what) in report.wrong {
        tally.wrong(how, || what);
    }
    for (what, count) in report.figures {
        tally.add(COUNTED.iter().find(|name| **name == what).unwrap_or(&"others"), count);
    }
    frame::judge(tally, &bytes);
}

/// What a report counts.
const COUNTED: [&str; 14] = [
    "opened",
    "not_opened",
    "not_a_database",
    "acked",
    "not_applied",
    "unknown",
    "stopped",
    "reads_failed",
    "maintenance_failed",
    "imports_resumed",
    "imports_refused",
    "suspicions",
    "intact",
    "damaged",
];

fn damage_files(u: &mut Unstructured<'_>, kind: Kind, files: &mut Files) -> Result<Damage> {
    let mut damage = Damage::new(Reach::Nothing, "");
    for _ in 0..EDITS_MAX {
        if u.is_empty() {
            break;
        }
        let next = match u.arbitrary::<u8>()? {
            // By SQL, which would fail where something else is damaged.
            0..16 if !kind.is_hot() && damage.what.is_empty() => {
                return Ok(damage::record(&mut Rng::with_seed(u.arbitrary::<u8>()?.into())));
            }
            16..80 => edit_wal(u, kind.page_bytes, files)?,
            80..112 => edit_shared_memory(u, files)?,
            _ => edit_database(u, kind.page_bytes, files)?,
        };
        damage = damage.and(next);
    }
    Ok(damage)
}

fn edit_database(u: &mut Unstructured<'_>, page_bytes: usize, files: &mut Files) -> Result<Damage> {
    let what = edit(u, &mut files.db, 0, page_bytes)?;
    Ok(Damage::new(Reach::Anything, format!("db: {what}")))
}

fn edit_wal(u: &mut Unstructured<'_>, page_bytes: usize, files: &mut Files) -> Result<Damage> {
    let Some(bytes) = &mut files.wal else { return Ok(Damage::new(Reach::Nothing, "no wal")) };
    let what = edit(u, bytes, WAL_HEADER_BYTES, FRAME_HEADER_BYTES + page_bytes)?;
    if u.ratio(1, 4)? {
        mend_checksums(bytes, FRAME_HEADER_BYTES + page_bytes);
        return Ok(Damage::new(Reach::Anything, format!("wal with its checksums: {what}")));
    }
    Ok(Damage::new(Reach::Commits, format!("wal: {what}")))
}

fn edit_shared_memory(u: &mut Unstructured<'_>, files: &mut Files) -> Result<Damage> {
    let Some(bytes) = &mut files.shm else { return Ok(Damage::new(Reach::Nothing, "no shm")) };
    let what = edit(u, bytes, 0, 136)?;
    Ok(Damage::new(Reach::Nothing, format!("shm: {what}")))
}

/// Changes some bytes. Those at the beginning of a block, where its structure is, are met as often as all others.
fn edit(u: &mut Unstructured<'_>, bytes: &mut Vec<u8>, head: usize, block: usize) -> Result<String> {
    let at = place(u, bytes, head, block)?;
    Ok(match u.arbitrary::<u8>()? % 10 {
        0..2 => {
            let with = u.arbitrary::<u8>()?;
            bytes[at..].iter_mut().take(1).for_each(|byte| *byte ^= with);
            format!("{at} ^ {with}")
        }
        2..4 => put(bytes, at, &[u.arbitrary()?]),
        4 => put(bytes, at, &u.arbitrary::<u16>()?.to_be_bytes()),
        5 => put(bytes, at, &u.arbitrary::<u32>()?.to_be_bytes()),
        6 => {
            let with = *u.choose(&[0, 0xff, 0x80])?;
            let some = some(u, at, bytes.len(), block)?;
            bytes[some.clone()].fill(with);
            format!("{some:?} = {with}")
        }
        7 => {
            let from = some(u, at, bytes.len(), block)?;
            let to = place(u, bytes, head, block)?.min(bytes.len() - from.len());
            bytes.copy_within(from.clone(), to);
            format!("{from:?} at {to}")
        }
        8 => {
            bytes.truncate(at);
            format!("cut off at {at}")
        }
        _ => {
            let more = usize::from(u.arbitrary::<u8>()?) * 40;
            bytes.resize(bytes.len() + more, u.arbitrary()?);
            format!("{more} bytes more")
        }
    })
}

/// A place in a file; its end, if it is empty.
fn place(u: &mut Unstructured<'_>, bytes: &[u8], head: usize, block: usize) -> Result<usize> {
    let last = bytes.len().saturating_sub(1);
    let at = match u.arbitrary::<u8>()? % 4 {
        0 => u.arbitrary::<u8>()?.into(),
        1 => u.arbitrary::<u32>()? as usize,
        // Near the beginning of a block.
        _ => {
            let (of, within) = (usize::from(u.arbitrary::<u16>()?), usize::from(u.arbitrary::<u8>()?));
            let blocks = (bytes.len().saturating_sub(head) / block).max(1);
            head + of % blocks * block + within
        }
    };
    Ok(if at > last { at % (last + 1) } else { at })
}

/// Some bytes from there on, up to a block.
fn some(u: &mut Unstructured<'_>, at: usize, end: usize, block: usize) -> Result<Range<usize>> {
    let count = if u.arbitrary()? { block } else { u.arbitrary::<u8>()?.into() };
    Ok(at..(at + count).min(end))
}

fn put(bytes: &mut [u8], at: usize, with: &[u8]) -> String {
    for (byte, with) in bytes[at..].iter_mut().zip(with) {
        *byte = *with;
    }
    format!("{at} = {with:?}")
}

/// Makes every frame a valid one again, whatever it holds: <https://www.sqlite.org/fileformat2.html#checksum_algorithm>.
fn mend_checksums(bytes: &mut [u8], frame_bytes: usize) {
    if bytes.len() < WAL_HEADER_BYTES {
        return;
    }
    let is_big_endian = bytes[3] & 1 == 1;
    let sum = |from: &[u8], (mut first, mut second): (u32, u32)| {
        for pair in from.chunks_exact(8) {
            let word = |bytes: &[u8]| {
                let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
                if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
            };
            first = first.wrapping_add(word(&pair[..4])).wrapping_add(second);
            second = second.wrapping_add(word(&pair[4..])).wrapping_add(first);
        }
        (first, second)
    };
    let store = |to: &mut [u8], (first, second): (u32, u32)| {
        to[..4].copy_from_slice(&first.to_be_bytes());
        to[4..8].copy_from_slice(&second.to_be_bytes());
    };
    let (header, frames) = bytes.split_at_mut(WAL_HEADER_BYTES);
    let mut sums = sum(&header[..24], (0, 0));
    store(&mut header[24..], sums);
    for frame in frames.chunks_exact_mut(frame_bytes) {
        // With the salt of this WAL.
        frame[8..16].copy_from_slice(&header[16..24]);
        sums = sum(&frame[FRAME_HEADER_BYTES..], sum(&frame[..8], sums));
        store(&mut frame[16..], sums);
    }
}
