//! Finds the crates that cargo has unpacked on this machine, or those of any tree, and makes a marketplace of
//! them.
//!
//! Nothing is invented: an entry is a crate, or, where there are too few, a source folder of one. The scan
//! only lists; the slow work (reading and hashing every file) is [`prepare`](crate::prepare::prepare)'s.
//! Equal trees give equal marketplaces, whatever order the file system lists them in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fmt};

use uuid::Uuid;
use walkdir::{DirEntry, WalkDir};

use crate::manifest::Manifest;
use crate::marketplace::{EntrySource, Marketplace, Size, Source, shelve};

/// A composite is one command, so it is kept to the size of the guide's batch; a repository with more crates
/// becomes several composites.
const FAMILY_ENTRIES_MAX: usize = 10;

/// How large a marketplace is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) sources: usize,
    pub(crate) entries_per_source: usize,
}

impl Shape {
    fn entries(self) -> usize {
        self.sources * self.entries_per_source
    }
}

/// Why there is no marketplace.
#[derive(Debug)]
pub(crate) enum ScanError {
    /// Neither `CARGO_HOME` nor a home directory says where cargo keeps its crates.
    NoCargoHome,
    /// The folder can't be listed.
    Unreadable(walkdir::Error),
    /// The folder holds fewer crates and folders than there are sources to fill.
    TooFew { root: PathBuf, found: usize },
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScanError::NoCargoHome => {
                write!(f, "found no cargo home to scan; name a folder with --from")
            }
            ScanError::Unreadable(_) => write!(f, "cannot list the folder to scan"),
            ScanError::TooFew { root, found: 0 } => write!(
                f,
                "{} holds no crates and no folders with files; run `cargo fetch` or name a folder with --from",
                root.display()
            ),
            ScanError::TooFew { root, found } => write!(
                f,
                "{} holds only {found} crates and folders, fewer than there are imports",
                root.display()
            ),
        }
    }
}

impl std::error::Error for ScanError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ScanError::Unreadable(error) => Some(error),
            ScanError::NoCargoHome | ScanError::TooFew { .. } => None,
        }
    }
}

/// The folder in which cargo keeps the crates that it has unpacked, one folder per registry.
///
/// # Errors
/// [`ScanError::NoCargoHome`] if the environment does not tell.
pub(crate) fn registry_sources() -> Result<PathBuf, ScanError> {
    let cargo_home = match env::var_os("CARGO_HOME").filter(|home| !home.is_empty()) {
        Some(home) => PathBuf::from(home),
        None => env::home_dir().ok_or(ScanError::NoCargoHome)?.join(".cargo"),
    };
    Ok(cargo_home.join("registry").join("src"))
}

/// Makes a marketplace of the crates below `root`.
///
/// With fewer crates than `shape` asks for, their largest source folders become entries too; if that is not
/// enough either, every source gets the same smaller number of entries.
///
/// # Errors
/// [`ScanError::Unreadable`] if `root` can't be listed, [`ScanError::TooFew`] if there is not even one entry
/// a source.
pub(crate) fn scan(root: &Path, shape: Shape) -> Result<Marketplace, ScanError> {
    let mut packages = packages(root)?;
    packages.truncate(shape.entries());
    let mut crates: Vec<EntrySource> = Vec::new();
    let mut folders = Vec::new();
    let names = Names::of(&packages);
    for (dir, manifest) in &packages {
        let mut sizes = sizes(dir);
        let size = sizes.remove(dir).unwrap_or_default();
        let name = names.unique(manifest);
        folders.extend(folder_entries(root, dir, &name, manifest, sizes));
        crates.push(entry(root, dir, manifest.clone(), name, size));
    }
    if packages.is_empty() {
        folders = bare_folders(root);
    }

    let per_source = shape.entries().min(crates.len() + folders.len()) / shape.sources;
    if per_source == 0 {
        let found = crates.len() + folders.len();
        let root = root.to_owned();
        return Err(ScanError::TooFew { root, found });
    }
    let wanted = per_source * shape.sources;
    crates.truncate(wanted);
    folders.sort_by(|a, b| (b.size.bytes, &a.path).cmp(&(a.size.bytes, &b.path)));
    folders.truncate(wanted - crates.len());
    Ok(arrange(root, crates, folders, shape.sources, per_source))
}

fn arrange(
    root: &Path,
    crates: Vec<EntrySource>,
    folders: Vec<EntrySource>,
    sources: usize,
    per_source: usize,
) -> Marketplace {
    let counts = (crates.len(), folders.len());
    let owner = root.file_name().unwrap_or(root.as_os_str());
    let owner = owner.to_string_lossy();
    let root_url = format!("file://{}", slashed(root));
    let mut shelves: Vec<Source> =
        (1..=sources).map(|number| Source::new(&root_url, &owner, number)).collect();
    let mut entries = families(crates);
    entries.extend(folders);
    shelve(&mut shelves, entries, per_source);
    Marketplace {
        root: root.to_owned(),
        sources: shelves.into_iter().map(Arc::new).collect(),
        crates: counts.0,
        folders: counts.1,
    }
}

/// Every crate below `root`, by path; a crate's own folder is searched further only if it says it is a
/// workspace.
fn packages(root: &Path) -> Result<Vec<(PathBuf, Manifest)>, ScanError> {
    let mut packages = Vec::new();
    let mut seen = BTreeSet::new();
    let mut walk = WalkDir::new(root).sort_by_file_name().into_iter();
    while let Some(found) = walk.next() {
        let dir = match found {
            Ok(found) if !found.file_type().is_dir() => continue,
            Ok(found) if is_left_out(&found) => {
                walk.skip_current_dir();
                continue;
            }
            Ok(found) => found.into_path(),
            Err(error) if error.depth() == 0 => return Err(ScanError::Unreadable(error)),
            // A folder that we may not list is not ours to import.
            Err(_) => continue,
        };
        let Some(manifest) = Manifest::read(&dir) else {
            continue;
        };
        if !manifest.is_workspace {
            walk.skip_current_dir();
        }
        // Two registries may have unpacked the same crate; it is one artifact, so it is one entry.
        if seen.insert((manifest.name.clone(), manifest.version.clone())) {
            packages.push((dir, manifest));
        }
    }
    Ok(packages)
}

/// Git's store and cargo's build output are no sources. Cargo marks the latter by a tag file; a folder that
/// is merely called `target` stays.
fn is_left_out(found: &DirEntry) -> bool {
    found.file_type().is_dir() && (found.file_name() == ".git" || found.path().join("CACHEDIR.TAG").is_file())
}

/// Every file below `dir`, sorted by path, without following links.
pub(crate) fn files(dir: &Path) -> impl Iterator<Item = walkdir::Result<DirEntry>> {
    WalkDir::new(dir)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|found| !is_left_out(found))
        .filter(|found| !matches!(found, Ok(found) if !found.file_type().is_file()))
}

/// How much `dir` and every folder below it hold.
///
/// What can't be listed counts nothing here; the entry's preparation will say so.
fn sizes(dir: &Path) -> BTreeMap<PathBuf, Size> {
    let mut sizes: BTreeMap<PathBuf, Size> = BTreeMap::new();
    for file in files(dir).filter_map(Result::ok) {
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let folders = file.path().ancestors().skip(1);
        for folder in folders.take_while(|folder| folder.starts_with(dir)) {
            sizes.entry(folder.to_owned()).or_default().add_file(bytes);
        }
    }
    sizes
}

/// The folders of one crate as entries of their own, named after the crate and their path in it.
fn folder_entries(
    root: &Path,
    crate_dir: &Path,
    crate_name: &str,
    manifest: &Manifest,
    sizes: BTreeMap<PathBuf, Size>,
) -> Vec<EntrySource> {
    let folders = sizes.into_iter().map(|(dir, size)| {
        let inside = slashed(dir.strip_prefix(crate_dir).unwrap_or(&dir));
        let name = format!("{crate_name}::{}", inside.replace('/', "::"));
        let manifest = manifest.of_folder(name.clone(), &dir);
        EntrySource { is_crate: false, ..entry(root, &dir, manifest, name, size) }
    });
    folders.collect()
}

/// The folders of a tree without any crate.
fn bare_folders(root: &Path) -> Vec<EntrySource> {
    let mut sizes = sizes(root);
    sizes.remove(root);
    let name = root.file_name().unwrap_or(root.as_os_str());
    folder_entries(root, root, &name.to_string_lossy(), &Manifest::default(), sizes)
}

fn entry(root: &Path, dir: &Path, manifest: Manifest, name: String, size: Size) -> EntrySource {
    let path = slashed(dir.strip_prefix(root).unwrap_or(dir));
    let url = format!("file://{}", slashed(dir));
    EntrySource {
        id: Uuid::new_v5(&Uuid::NAMESPACE_URL, url.as_bytes()).to_string(),
        dir: dir.to_owned(),
        path,
        manifest: Manifest { name, ..manifest },
        is_crate: true,
        size,
        is_poisoned: false,
        children: Vec::new(),
    }
}

fn slashed(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

/// Names that occur more than once, because several versions of a crate are unpacked.
struct Names(BTreeSet<String>);

impl Names {
    fn of(packages: &[(PathBuf, Manifest)]) -> Names {
        let mut seen = BTreeSet::new();
        let twice = packages
            .iter()
            .map(|(_, manifest)| manifest.name.clone())
            .filter(|name| !seen.insert(name.clone()));
        Names(twice.collect())
    }

    /// The crate's name, or cargo's `name@version` where the name alone would be ambiguous.
    fn unique(&self, manifest: &Manifest) -> String {
        match &manifest.version {
            Some(version) if self.0.contains(&manifest.name) => {
                format!("{}@{version}", manifest.name)
            }
            _ => manifest.name.clone(),
        }
    }
}

/// Makes a composite of the crates that share a repository; the crate named like the repository is the
/// parent.
fn families(crates: Vec<EntrySource>) -> Vec<EntrySource> {
    let mut repositories: BTreeMap<String, Vec<EntrySource>> = BTreeMap::new();
    let mut entries = Vec::new();
    for entry in crates {
        match entry.manifest.repository.clone() {
            Some(repository) => repositories.entry(repository).or_default().push(entry),
            None => entries.push(entry),
        }
    }
    for (repository, mut members) in repositories {
        let repository = repository.rsplit('/').next().unwrap_or_default();
        let lead = members.iter().position(|m| m.manifest.name == repository);
        members[..=lead.unwrap_or(0)].rotate_right(1);
        let mut members = members.into_iter().peekable();
        while members.peek().is_some() {
            let mut family = members.by_ref().take(FAMILY_ENTRIES_MAX);
            if let Some(parent) = family.next() {
                let children = family.collect();
                entries.push(EntrySource { children, ..parent });
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marketplace::tests::entry;

    fn member(name: &str) -> EntrySource {
        let mut entry = entry(name, 1, Vec::new());
        entry.manifest.repository = Some("https://example.org/serde".to_owned());
        entry
    }

    #[test]
    fn crates_of_one_repository_form_a_composite_led_by_its_namesake() {
        let crates = ["core", "serde", "serde_derive"].map(member).to_vec();
        let families = families(crates);
        assert_eq!(families.len(), 1);
        let names: Vec<_> = families[0].family().map(|e| e.manifest.name.as_str()).collect();
        assert_eq!(names, ["serde", "core", "serde_derive"]);
    }

    #[test]
    fn a_large_repository_becomes_several_composites() {
        let crates = (0..12).map(|n| member(&format!("c{n:02}"))).collect();
        let counts: Vec<_> = families(crates).iter().map(EntrySource::entry_count).collect();
        assert_eq!(counts, [10, 2]);
    }

    #[test]
    fn a_tree_without_crates_gives_its_folders() {
        let tree = tempfile::tempdir().expect("a temporary directory");
        for folder in ["a", "a/b", "c"] {
            let folder = tree.path().join(folder);
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join("file"), "text").expect("a file");
        }
        let shape = Shape { sources: 1, entries_per_source: 100 };
        let marketplace = scan(tree.path(), shape).expect("there are folders");
        assert_eq!((marketplace.crates, marketplace.folders), (0, 3));
        let entries = marketplace.sources[0].all_entries();
        let paths: Vec<_> = entries.map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["a", "a/b", "c"]);
    }

    #[test]
    fn an_empty_tree_is_refused_by_name() {
        let tree = tempfile::tempdir().expect("a temporary directory");
        let shape = Shape { sources: 3, entries_per_source: 100 };
        let error = scan(tree.path(), shape).expect_err("there is nothing");
        let folder = tree.path().display().to_string();
        assert!(error.to_string().contains(&folder));
    }
}
