//! The marketplace: sources that hold entries, some of which are composites with children.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::manifest::Manifest;

/// What the scan found, arranged as sources of equally many entries.
#[derive(Debug)]
pub(crate) struct Marketplace {
    pub(crate) root: PathBuf,
    pub(crate) sources: Vec<Arc<Source>>,
    /// How many entries are crates, and how many are source folders of crates.
    pub(crate) crates: usize,
    pub(crate) folders: usize,
}

/// One source: what one import brings in.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) id: String,
    pub(crate) repo_url: String,
    pub(crate) owner: String,
    pub(crate) repo_name: String,
    pub(crate) entries: Vec<EntrySource>,
}

/// One catalog entry as it lies on disk; a composite if it has children.
#[derive(Debug, Clone)]
pub(crate) struct EntrySource {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    /// The path below the marketplace's root, with forward slashes.
    pub(crate) path: String,
    pub(crate) manifest: Manifest,
    pub(crate) is_crate: bool,
    pub(crate) size: Size,
    /// The entry will break a constraint of the schema half-way through its statements (`--poison`).
    pub(crate) is_poisoned: bool,
    pub(crate) children: Vec<EntrySource>,
}

/// How much a folder holds, with everything below it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Size {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Size {
    pub(crate) fn add_file(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

impl Source {
    pub(crate) fn new(root_url: &str, owner: &str, number: usize) -> Source {
        let repo_name = format!("shelf-{number}");
        let repo_url = format!("{root_url}#{repo_name}");
        Source {
            id: Uuid::new_v5(&Uuid::NAMESPACE_URL, repo_url.as_bytes()).to_string(),
            repo_url,
            owner: owner.to_owned(),
            repo_name,
            entries: Vec::new(),
        }
    }

    /// The number of catalog entries, children included.
    pub(crate) fn entry_count(&self) -> usize {
        self.entries.iter().map(EntrySource::entry_count).sum()
    }

    /// Every catalog entry, children after their parent.
    pub(crate) fn all_entries(&self) -> impl Iterator<Item = &EntrySource> {
        self.entries.iter().flat_map(EntrySource::family)
    }

    fn bytes(&self) -> u64 {
        self.all_entries().map(|entry| entry.size.bytes).sum()
    }

    /// The entries that can't be imported.
    pub(crate) fn poisoned_count(&self) -> usize {
        self.all_entries().filter(|entry| entry.is_poisoned).count()
    }

    /// Poisons one plain entry in a hundred, counted from the middle of each hundred.
    ///
    /// Composites are spared: one would take its whole family with it, and the share of bad entries would be
    /// chance.
    pub(crate) fn poison(&mut self) {
        let mut position = 0;
        let mut due = 50.min(self.entry_count() / 2);
        for entry in &mut self.entries {
            if position >= due && entry.children.is_empty() {
                entry.is_poisoned = true;
                due += 100;
            }
            position += entry.entry_count();
        }
    }
}

impl EntrySource {
    /// The number of catalog entries that are imported together.
    pub(crate) fn entry_count(&self) -> usize {
        1 + self.children.len()
    }

    /// The entry, then its children.
    pub(crate) fn family(&self) -> impl Iterator<Item = &EntrySource> {
        std::iter::once(self).chain(&self.children)
    }

    /// What a real importer does besides the hashing, slept: `per_entry` for the entry and each child.
    pub(crate) fn work(&self, per_entry: Duration) -> Duration {
        per_entry * u32::try_from(self.entry_count()).unwrap_or(u32::MAX)
    }

    /// The schema's type: what has children is a composite, everything else a skill.
    pub(crate) fn artifact_type(&self) -> &'static str {
        if self.children.is_empty() { "skill" } else { "composite" }
    }

    /// Where the entry comes from: its repository if it names one, else its place in the marketplace.
    pub(crate) fn upstream_url(&self) -> String {
        let repository = self.manifest.repository.as_deref().unwrap_or("file:");
        format!("{repository}#{}", self.path)
    }

    fn bytes(&self) -> u64 {
        self.family().map(|entry| entry.size.bytes).sum()
    }

    fn into_plain(mut self) -> impl Iterator<Item = EntrySource> {
        let children = std::mem::take(&mut self.children);
        std::iter::once(self).chain(children)
    }
}

/// Spreads `entries` over `sources`, at most `per_source` catalog entries each.
///
/// The sources come out about equally heavy in bytes, so that one import alone is comparable with several. A
/// composite that fits nowhere as a whole is taken apart.
pub(crate) fn shelve(sources: &mut [Source], mut entries: Vec<EntrySource>, per_source: usize) {
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.bytes()));
    for entry in entries {
        let Some(entry) = place(sources, entry, per_source) else {
            continue;
        };
        for plain in entry.into_plain() {
            if place(sources, plain, per_source).is_some() {
                break;
            }
        }
    }
    for source in sources {
        source.entries.sort_by(|a, b| a.path.cmp(&b.path));
    }
}

/// Puts `entry` into the lightest source that has room, or gives it back.
fn place(sources: &mut [Source], entry: EntrySource, per_source: usize) -> Option<EntrySource> {
    let lightest = sources
        .iter_mut()
        .filter(|source| source.entry_count() + entry.entry_count() <= per_source)
        .min_by_key(|source| source.bytes());
    let Some(source) = lightest else {
        return Some(entry);
    };
    source.entries.push(entry);
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn entry(name: &str, bytes: u64, children: Vec<EntrySource>) -> EntrySource {
        EntrySource {
            id: Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).to_string(),
            dir: PathBuf::from(name),
            path: name.to_owned(),
            manifest: Manifest { name: name.to_owned(), ..Manifest::default() },
            is_crate: true,
            size: Size { files: 1, bytes },
            is_poisoned: false,
            children,
        }
    }

    fn sources(count: usize) -> Vec<Source> {
        (1..=count).map(|number| Source::new("file:///crates", "crates", number)).collect()
    }

    #[test]
    fn shelves_are_full_and_about_equally_heavy() {
        let mut sources = sources(2);
        let entries = (1..=6).map(|n| entry(&format!("e{n}"), n, vec![]));
        shelve(&mut sources, entries.collect(), 3);
        assert_eq!(sources[0].entry_count(), 3);
        assert_eq!(sources[1].entry_count(), 3);
        assert!(sources[0].bytes().abs_diff(sources[1].bytes()) <= 1);
    }

    #[test]
    fn a_composite_that_fits_nowhere_is_taken_apart() {
        let mut sources = sources(2);
        let family = vec![entry("b", 1, vec![]), entry("c", 1, vec![])];
        shelve(&mut sources, vec![entry("a", 9, family), entry("d", 5, vec![])], 2);
        let counts = sources.iter().map(Source::entry_count);
        assert_eq!(counts.collect::<Vec<_>>(), [2, 2]);
        assert!(sources.iter().all(|s| s.entries.len() == 2));
    }

    #[test]
    fn one_plain_entry_in_a_hundred_is_poisoned() {
        let mut source = sources(1).remove(0);
        let children = vec![entry("child", 1, vec![])];
        source.entries = (0..198).map(|n| entry(&n.to_string(), 1, vec![])).collect();
        source.entries.insert(50, entry("composite", 1, children));
        source.poison();
        let poisoned: Vec<_> = source.all_entries().filter(|e| e.is_poisoned).collect();
        assert_eq!(poisoned.len(), 2);
        assert!(poisoned.iter().all(|e| e.artifact_type() == "skill"));
    }
}
