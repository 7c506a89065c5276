//! What a power loss may leave of what was written: a disk that keeps what was synced, and of the rest what it
//! pleases.
//!
//! The first sync of a new file makes the names of all of them durable, as SQLite's VFS syncs the directory then. Only the bytes
//! of a write can be torn, not their neighbours: SQLite relies on that (`SQLITE_IOCAP_POWERSAFE_OVERWRITE`).

use std::path::Path;

use fastrand::Rng;

use super::beside;
use super::faults::Of;

/// One change of a file.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Create,
    Write {
        offset: usize,
        bytes: Box<[u8]>,
    },
    Truncate(usize),
    Sync,
    SyncFailed,
    /// And perhaps the directory is synced.
    Delete {
        is_synced: bool,
    },
}

/// A change, and of which file.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) of: Of,
    pub(crate) change: Change,
}

/// What becomes of a write that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Luck {
    /// Nothing unsynced is there.
    Dropped,
    /// Everything is there.
    Kept,
    /// Everything up to some point is there, and the last write is torn.
    Torn,
    /// Each write is there or not.
    Scattered,
    /// Each sector of each write is there or not.
    Shattered,
}

const LUCKS: [Luck; 5] = [Luck::Dropped, Luck::Kept, Luck::Torn, Luck::Scattered, Luck::Shattered];

/// What is written in one piece, or not at all.
const SECTOR: usize = 512;

/// What a disk holds of a database.
#[derive(Clone, Debug)]
pub(crate) struct Disk<'r> {
    files: [File<'r>; 3],
}

#[derive(Clone, Debug)]
struct File<'r> {
    /// What is there whatever happens; `None` if the file is not.
    durable: Option<Vec<u8>>,
    /// What was done since the last sync.
    pending: Vec<&'r Change>,
}

/// The files that a power loss has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    files: [Option<Vec<u8>>; 3],
}

/// The files of a database, in the order in which they are held here.
const SUFFIXES: [&str; 3] = ["", "-wal", "-journal"];

fn place(of: Of) -> Option<usize> {
    match of {
        Of::Database => Some(0),
        Of::Wal => Some(1),
        Of::Journal => Some(2),
        Of::Other => None,
    }
}

impl<'r> Disk<'r> {
    pub(crate) fn new(image: Image) -> Self {
        Self { files: image.files.map(|durable| File { durable, pending: Vec::new() }) }
    }

    /// Does what was recorded. A sync that fails drops what it pleases: these pages count as clean, and no later sync
    /// writes them.
    pub(crate) fn apply(&mut self, recorded: &'r Recorded, rng: &mut Rng) {
        let Some(place) = place(recorded.of) else { return };
        let file = &mut self.files[place];
        match &recorded.change {
            Change::Sync => {
                let is_first = file.pending.iter().any(|change| matches!(change, Change::Create));
                file.sync();
                if is_first {
                    self.sync_directory();
                }
            }
            Change::SyncFailed => {
                let kept = [0, 50, 100][rng.usize(0..3)];
                let is_dropped = |change: &Change| matches!(change, Change::Write { .. });
                file.pending.retain(|change| !is_dropped(change) || rng.u8(0..100) < kept);
            }
            change => file.pending.push(change),
        }
        if let Change::Delete { is_synced: true } = recorded.change {
            self.sync_directory();
        }
    }

    fn sync_directory(&mut self) {
        self.files.iter_mut().for_each(File::sync_name);
    }

    /// What is left if the power goes now.
    pub(crate) fn power_loss(&self, rng: &mut Rng) -> Image {
        Image { files: self.files.each_ref().map(|file| file.power_loss(rng)) }
    }
}

impl File<'_> {
    fn sync(&mut self) {
        self.durable = self.content(|_, _| true);
        self.pending.clear();
    }

    /// Makes durable that the file is there, or is not.
    fn sync_name(&mut self) {
        let names = |change: &&Change| matches!(change, Change::Create | Change::Delete { .. });
        if let Some(last) = self.pending.iter().rposition(names) {
            self.durable = matches!(self.pending[last], Change::Create).then(Vec::new);
            self.pending.drain(..=last);
        }
    }

    fn power_loss(&self, rng: &mut Rng) -> Option<Vec<u8>> {
        let (last, luck) = (self.pending.len(), LUCKS[rng.usize(0..LUCKS.len())]);
        let kept = if luck == Luck::Torn { rng.usize(0..=last) } else { last };
        self.content(|place, sector| match luck {
            Luck::Dropped => false,
            Luck::Kept => true,
            Luck::Torn => place < kept || (place == kept && (sector.is_none() || rng.bool())),
            Luck::Scattered => sector.is_some() || rng.bool(),
            Luck::Shattered => sector.is_none() || rng.bool(),
        })
    }

    /// The file with those of the pending changes that `is_kept`: asked once for each change, and if so, once for
    /// each sector of a write.
    fn content(&self, mut is_kept: impl FnMut(usize, Option<usize>) -> bool) -> Option<Vec<u8>> {
        let mut content = self.durable.clone();
        // A file that was made and whose name is lost: what is written to it goes nowhere.
        let mut is_nameless = false;
        for (place, change) in self.pending.iter().enumerate() {
            let kept = is_kept(place, None);
            match change {
                Change::Create if kept => {
                    content = Some(Vec::new());
                    is_nameless = false;
                }
                Change::Create => is_nameless = true,
                Change::Delete { .. } if kept => content = None,
                Change::Delete { .. } | Change::Sync | Change::SyncFailed => {}
                _ if !kept || is_nameless => {}
                Change::Truncate(bytes) => {
                    if let Some(content) = &mut content {
                        content.resize(*bytes, 0);
                    }
                }
                Change::Write { offset, bytes } => {
                    let Some(content) = &mut content else { continue };
                    for (sector, piece) in sectors(*offset, bytes) {
                        if is_kept(place, Some(sector)) {
                            let (from, to) = (sector, sector + piece.len());
                            if content.len() < to {
                                content.resize(to, 0);
                            }
                            content[from..to].copy_from_slice(piece);
                        }
                    }
                }
            }
        }
        content
    }
}

/// The pieces of a write that lie in one sector each, with their place in the file.
fn sectors(offset: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let first = (SECTOR - offset % SECTOR).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let rest = rest.chunks(SECTOR).enumerate().map(move |(n, piece)| (offset + first + n * SECTOR, piece));
    std::iter::once((offset, head)).chain(rest)
}

impl Image {
    /// An empty database file, as a service makes it.
    pub(crate) fn empty() -> Self {
        Self { files: [Some(Vec::new()), None, None] }
    }

    /// Takes the files as they are.
    ///
    /// Only where nobody in this process has them open: to close a descriptor would drop SQLite's locks.
    pub(crate) fn read(path: &Path) -> Self {
        Self { files: SUFFIXES.map(|suffix| std::fs::read(beside(path, suffix)).ok()) }
    }

    /// Does what was recorded, and all of it is there: the end of a process takes nothing of it away.
    pub(crate) fn apply(&mut self, recorded: &Recorded) {
        let Some(place) = place(recorded.of) else { return };
        let file = &mut self.files[place];
        match &recorded.change {
            Change::Sync | Change::SyncFailed => {}
            Change::Create => *file = Some(Vec::new()),
            Change::Delete { .. } => *file = None,
            Change::Truncate(bytes) => file.get_or_insert_default().resize(*bytes, 0),
            Change::Write { offset, bytes } => {
                let file = file.get_or_insert_default();
                let end = offset + bytes.len();
                file.resize(file.len().max(end), 0);
                file[*offset..end].copy_from_slice(bytes);
            }
        }
    }

    /// Puts the files where nobody has any open.
    pub(crate) fn write(&self, path: &Path) {
        for (content, suffix) in self.files.iter().zip(SUFFIXES) {
            let path = beside(path, suffix);
            match content {
                Some(content) => std::fs::write(path, content).unwrap(),
                None => drop(std::fs::remove_file(path)),
            }
        }
        // What a power loss leaves of shared memory is nothing.
        drop(std::fs::remove_file(beside(path, "-shm")));
    }
}
