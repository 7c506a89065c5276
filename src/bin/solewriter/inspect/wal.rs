//! How many frames the WAL has, and how many of them are not yet in the database file.
//!
//! SQLite would tell with `PRAGMA wal_checkpoint(NOOP)`, but not on a connection that can't write. Both files are
//! documented: <https://www.sqlite.org/fileformat2.html#walformat>, <https://www.sqlite.org/walformat.html>.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use serde::Serialize;

use super::files::{Unreadable, beside, open_if_there};
use super::locks::Users;

const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// The frames of a WAL; each is one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Wal {
    /// Frames that the file has room for. It begins anew without becoming shorter, so old ones may be among them.
    pub(crate) frames: u64,
    /// Frames that are in use: written since the WAL began anew, up to the newest commit.
    pub(crate) frames_in_use: Option<u64>,
    /// Frames in use that no checkpoint has copied into the database file. Where nobody has the database open, all of
    /// them: the next open will copy them anew.
    pub(crate) frames_not_checkpointed: Option<u64>,
}

/// The header of a WAL.
#[derive(Clone, Copy)]
struct Header {
    page_bytes: u64,
    salts: [u8; 8],
}

/// Reads the WAL of the database at `path`; `None` if there is none.
pub(crate) fn read(path: &Path, users: &Users) -> Result<Option<Wal>, Unreadable> {
    let (wal_path, shm_path) = (beside(path, "-wal"), beside(path, "-shm"));
    let Some(wal) = open_if_there(&wal_path)? else { return Ok(None) };
    let shm = open_if_there(&shm_path)?;
    let connected = users.is_connected;
    frames(wal, shm, connected).map(Some).map_err(|error| Unreadable::of(&wal_path, error))
}

fn frames(mut wal: File, shm: Option<File>, connected: Option<bool>) -> io::Result<Wal> {
    let bytes = wal.metadata()?.len();
    let none = Wal { frames: 0, frames_in_use: Some(0), frames_not_checkpointed: Some(0) };
    let Some(header) = Header::read(&mut wal)? else { return Ok(none) };
    let frames = (bytes - WAL_HEADER as u64) / (FRAME_HEADER as u64 + header.page_bytes);
    let (in_use, copied) = match (connected, shm) {
        // What an index says that nobody keeps up to date is worth nothing, and SQLite makes it anew.
        (Some(false), _) | (_, None) => (Some(frames_in_use(wal, header)?), Some(0)),
        (Some(true), Some(shm)) => index(shm)?.unzip(),
        (None, Some(_)) => (None, None),
    };
    let left = in_use.zip(copied).map(|(in_use, copied)| in_use.saturating_sub(copied));
    Ok(Wal { frames, frames_in_use: in_use, frames_not_checkpointed: left })
}

impl Header {
    /// `None` if there is no header yet, or none of a WAL: SQLite ignores the file then.
    fn read(wal: &mut File) -> io::Result<Option<Self>> {
        let mut bytes = [0; WAL_HEADER];
        if !fill(wal, &mut bytes)? {
            return Ok(None);
        }
        let page_bytes = u64::from(big_endian(&bytes, 8));
        let is_wal = [0x377f_0682, 0x377f_0683].contains(&big_endian(&bytes, 0));
        let is_sound = is_wal && (512..=65_536).contains(&page_bytes) && page_bytes.is_power_of_two();
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[16..24]);
        Ok(is_sound.then_some(Self { page_bytes, salts }))
    }
}

/// Follows the frames that belong to the header, up to the last one that commits. Their checksums are not looked at:
/// after a power failure SQLite may find fewer, never more.
fn frames_in_use(wal: File, header: Header) -> io::Result<u64> {
    let page = i64::try_from(header.page_bytes).unwrap_or(i64::MAX);
    let mut wal = BufReader::new(wal);
    let (mut frame, mut committed) = (0, 0);
    let mut bytes = [0; FRAME_HEADER];
    while fill(&mut wal, &mut bytes)? && bytes[8..16] == header.salts {
        frame += 1;
        let pages_after_commit = big_endian(&bytes, 4);
        if pages_after_commit > 0 {
            committed = frame;
        }
        wal.seek_relative(page)?;
    }
    Ok(committed)
}

/// Frames in use and frames copied, as the index in the -shm file has them.
///
/// It is kept in the byte order of the machine, with its header twice: equal if nobody is just writing it.
fn index(mut shm: File) -> io::Result<Option<(u64, u64)>> {
    const HEADER: usize = 48;
    let mut bytes = [0; 2 * HEADER + 4];
    if !fill(&mut shm, &mut bytes)? || bytes[..HEADER] != bytes[HEADER..2 * HEADER] {
        return Ok(None);
    }
    let (in_use, copied) = (native(&bytes, 16), native(&bytes, 2 * HEADER));
    Ok(Some((in_use.into(), copied.into())))
}

/// Whether there were enough bytes left.
fn fill(from: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn big_endian(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(four(bytes, at))
}

fn native(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(four(bytes, at))
}

fn four(bytes: &[u8], at: usize) -> [u8; 4] {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]
}
