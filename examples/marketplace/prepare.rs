//! The slow part of an import, without the database: read the entry's files, hash them, parse its metadata.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use sha2::{Digest, Sha256};
use slug::slugify;
use uuid::Uuid;

use crate::manifest::Manifest;
use crate::marketplace::{EntrySource, Size};
use crate::scan;

/// An entry with all that its rows need; a composite brings its children.
#[derive(Debug, Clone)]
pub(crate) struct PreparedEntry {
    /// The catalog entry that this becomes an artifact of.
    pub(crate) entry_id: String,
    pub(crate) artifact_type: &'static str,
    pub(crate) upstream_url: String,
    /// The metadata as it is now; its name is the upstream's, whatever users have renamed the catalog entry
    /// to.
    pub(crate) manifest: Manifest,
    pub(crate) tags: Vec<Tag>,
    /// SHA-256 over the names and contents of all files.
    pub(crate) content_hash: String,
    /// SHA-256 over the names and sizes alone.
    pub(crate) structure_hash: String,
    pub(crate) size: Size,
    /// The identity that the artifact gets if it is new. Drawn here, so that importing is the same each time
    /// it runs.
    pub(crate) new_uuid: String,
    pub(crate) children: Vec<PreparedEntry>,
}

/// A keyword and the form in which it is unique.
#[derive(Debug, Clone)]
pub(crate) struct Tag {
    pub(crate) name: String,
    pub(crate) slug: String,
}

impl PreparedEntry {
    /// The artifact's id, `type:name`.
    pub(crate) fn artifact_id(&self) -> String {
        format!("{}:{}", self.artifact_type, self.manifest.name)
    }

    /// The entry, then its children.
    pub(crate) fn family(&self) -> impl Iterator<Item = &PreparedEntry> {
        std::iter::once(self).chain(&self.children)
    }
}

/// Why an entry could not be prepared.
#[derive(Debug)]
pub(crate) enum PrepareError {
    /// A folder of the entry can't be listed.
    List(walkdir::Error),
    /// A file of the entry can't be read.
    Read { path: PathBuf, source: io::Error },
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrepareError::List(_) => write!(f, "cannot list the entry's files"),
            PrepareError::Read { path, .. } => write!(f, "cannot read {}", path.display()),
        }
    }
}

impl std::error::Error for PrepareError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PrepareError::List(error) => Some(error),
            PrepareError::Read { source, .. } => Some(source),
        }
    }
}

/// Prepares an entry and its children.
///
/// # Errors
/// A [`PrepareError`] if any of the family's files can't be read.
pub(crate) fn prepare(source: &EntrySource) -> Result<PreparedEntry, PrepareError> {
    let hashed = hash(&source.dir)?;
    let children = source.children.iter().map(prepare);
    Ok(PreparedEntry {
        entry_id: source.id.clone(),
        artifact_type: source.artifact_type(),
        upstream_url: source.upstream_url(),
        manifest: manifest(source),
        tags: tags(source),
        content_hash: hashed.content,
        structure_hash: hashed.structure,
        size: hashed.size,
        new_uuid: Uuid::new_v4().simple().to_string(),
        children: children.collect::<Result<_, _>>()?,
    })
}

/// The metadata as it is on disk now; a folder keeps its crate's, and a crate the name that the scan made
/// unique.
fn manifest(source: &EntrySource) -> Manifest {
    let name = source.manifest.name.clone();
    match Manifest::read(&source.dir) {
        Some(manifest) => Manifest { name, ..manifest },
        None => source.manifest.of_folder(name, &source.dir),
    }
}

/// The keywords, one per slug. A poisoned entry gets one more that is longer than the schema allows: it fails
/// after the entry's first rows are written.
fn tags(source: &EntrySource) -> Vec<Tag> {
    let mut tags: Vec<Tag> = Vec::new();
    for name in &source.manifest.keywords {
        let slug = slugify(name);
        if tags.iter().all(|tag| tag.slug != slug) {
            let name = name.clone();
            tags.push(Tag { name, slug });
        }
    }
    if source.is_poisoned {
        let name = "poison ".repeat(20);
        let slug = slugify(&name);
        tags.push(Tag { name, slug });
    }
    tags
}

struct Hashed {
    content: String,
    structure: String,
    size: Size,
}

/// Hashes every file in sorted order. Lengths go in before names and contents, so that no two trees read the
/// same.
fn hash(dir: &Path) -> Result<Hashed, PrepareError> {
    let (mut content, mut structure) = (Sha256::new(), Sha256::new());
    let mut size = Size::default();
    for file in scan::files(dir) {
        let file = file.map_err(PrepareError::List)?;
        let name = file.path().strip_prefix(dir).unwrap_or(file.path());
        let name = name.to_string_lossy().replace('\\', "/");
        let bytes = hash_file(file.path(), &name, &mut content)?;
        structure.update(format!("{} {name} {bytes}\n", name.len()));
        size.add_file(bytes);
    }
    Ok(Hashed { content: hex(&content.finalize()), structure: hex(&structure.finalize()), size })
}

/// Adds one file to the hash and returns its size, without holding it in memory as a whole.
fn hash_file(path: &Path, name: &str, content: &mut Sha256) -> Result<u64, PrepareError> {
    let unreadable = |source| PrepareError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    content.update(format!("{} {name} {length}\n", name.len()));
    io::copy(&mut file, &mut HashWriter(content)).map_err(unreadable)
}

/// Lets [`io::copy`] feed a hash.
struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn hash_of(files: &[(&str, &str)]) -> Hashed {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("a file");
        }
        hash(dir.path()).expect("every file is readable")
    }

    #[test]
    fn the_content_hash_covers_names_and_contents() {
        let original = hash_of(&[("a", "1"), ("b", "2")]);
        assert_eq!(original.content, hash_of(&[("b", "2"), ("a", "1")]).content);
        assert_ne!(original.content, hash_of(&[("a", "1"), ("c", "2")]).content);
        assert_ne!(original.content, hash_of(&[("a", "1"), ("b", "3")]).content);
    }

    #[test]
    fn the_structure_hash_ignores_contents() {
        let (a, b) = (hash_of(&[("a", "1")]), hash_of(&[("a", "2")]));
        assert_eq!(a.structure, b.structure);
        assert_eq!((a.size.files, a.size.bytes), (1, 1));
    }
}
