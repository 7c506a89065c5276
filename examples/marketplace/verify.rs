//! Looks into the database after a run: do rows and statuses agree, and with the files on disk?

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Params};

use crate::measured::Measured;
use crate::prepare::PreparedEntry;
use crate::store::{COLLECTION, Sql};

/// What the database holds, and everything that is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Verification {
    pub(crate) imported: u64,
    pub(crate) not_imported: u64,
    pub(crate) problems: Vec<String>,
}

impl Verification {
    /// Notes it as a problem if an import reported what it tried, not what the database holds.
    pub(crate) fn compare_with(&mut self, measured: &Measured) {
        let reported = measured.first.imported.imported;
        // A re-import may have brought in what failed at first.
        let holds = match measured.again.count {
            0 => self.imported == reported,
            _ => self.imported >= reported,
        };
        let what = format!("{reported} entries were reported as imported, it holds {}", self.imported);
        self.expect(holds, "the database", &what);
    }

    fn problem(&mut self, what: &str, whose: &str) {
        self.problems.push(format!("{whose}: {what}"));
    }

    /// Notes `whose` as a problem unless `holds`.
    fn expect(&mut self, holds: bool, whose: &str, what: &str) {
        if !holds {
            self.problem(what, whose);
        }
    }
}

/// Rows that must not exist, with what is wrong with them. Each statement names the rows' identity first.
const MUST_BE_EMPTY: [(&str, &str); 5] = [
    (
        "is an artifact without a place in the collection",
        "SELECT id FROM artifacts a
         WHERE NOT EXISTS (SELECT 1 FROM collection_artifacts c WHERE c.artifact_uuid = a.uuid)",
    ),
    (
        "is an artifact that no imported entry accounts for",
        "SELECT id FROM artifacts WHERE id NOT IN (SELECT artifact_type || ':' || title
             FROM marketplace_catalog_entries WHERE status = 'imported')",
    ),
    (
        "is an imported entry without date, import or hash",
        "SELECT id FROM marketplace_catalog_entries WHERE status = 'imported'
             AND (import_date IS NULL OR import_id IS NULL OR detected_sha IS NULL
                  OR json_extract(metadata_json, '$.import_error') IS NOT NULL)",
    ),
    (
        "is an artifact that the search knows not once",
        "SELECT id FROM artifacts a
         LEFT JOIN (SELECT artifact_uuid, count(*) AS rows FROM artifact_fts GROUP BY artifact_uuid) f
             ON f.artifact_uuid = a.uuid
         WHERE coalesce(f.rows, 0) <> 1",
    ),
    ("refers to a row that does not exist", "SELECT \"table\" FROM pragma_foreign_key_check"),
];

/// Compares the database with `expected`, the entries as they are on disk.
///
/// # Errors
/// SQLite's; what is merely wrong is in the [`Verification`].
pub(crate) fn verify(sql: &impl Sql, expected: &[PreparedEntry]) -> rusqlite::Result<Verification> {
    let mut verification = Verification::default();
    for entry in expected {
        for member in entry.family() {
            verify_entry(sql, member, &mut verification)?;
        }
        verify_memberships(sql, entry, &mut verification)?;
    }
    for (what, statement) in MUST_BE_EMPTY {
        for whose in texts(sql, statement, [])? {
            verification.problem(what, &whose);
        }
    }
    for answer in texts(sql, "PRAGMA integrity_check", [])? {
        verification.expect(answer == "ok", "integrity check", &answer);
    }
    Ok(verification)
}

/// Lets FTS5 compare both search indexes with their contents; this is a write, as far as SQLite is concerned.
///
/// # Errors
/// SQLite's; its extended code `SQLITE_CORRUPT_VTAB` means that an index and its content disagree.
pub(crate) fn verify_search(connection: &Connection) -> rusqlite::Result<()> {
    // Rank 1 compares an external-content table with that content too. https://www.sqlite.org/fts5.html
    connection.execute_batch(
        "INSERT INTO catalog_fts (catalog_fts, rank) VALUES ('integrity-check', 1);
         INSERT INTO artifact_fts (artifact_fts, rank) VALUES ('integrity-check', 1);",
    )
}

fn verify_entry(
    sql: &impl Sql,
    entry: &PreparedEntry,
    verification: &mut Verification,
) -> rusqlite::Result<()> {
    let name = &entry.manifest.name;
    let status = sql
        .prepare_cached("SELECT status FROM marketplace_catalog_entries WHERE id = ?1")?
        .query_row([&entry.entry_id], |row| row.get::<_, String>(0))
        .optional()?;
    let artifact = artifact(sql, entry)?;
    match (status.as_deref(), artifact) {
        (None, _) => verification.problem("has lost its catalog entry", name),
        (Some("imported"), None) => verification.problem("is imported without an artifact", name),
        (Some("imported"), Some(artifact)) => {
            verification.imported += 1;
            let hashes = [&artifact.hash, &artifact.collection_hash];
            let same = hashes.iter().all(|hash| **hash == entry.content_hash);
            verification.expect(same, name, "has another hash than its files");
            let tags = tags(sql, &artifact.uuid)?;
            let same = tags == entry.tags.iter().map(|tag| tag.slug.clone()).collect();
            verification.expect(same, name, "has other tags than its keywords");
        }
        (Some(_), artifact) => {
            verification.not_imported += 1;
            verification.expect(artifact.is_none(), name, "has an artifact without being imported");
        }
    }
    Ok(())
}

/// A composite has all its children by position, or none.
fn verify_memberships(
    sql: &impl Sql,
    entry: &PreparedEntry,
    verification: &mut Verification,
) -> rusqlite::Result<()> {
    let members = texts(
        sql,
        "SELECT a.id FROM composite_memberships m JOIN artifacts a ON a.uuid = m.child_artifact_uuid
         WHERE m.composite_id = ?1 AND m.pinned_version_hash = a.content_hash ORDER BY m.position",
        [entry.artifact_id()],
    )?;
    let children = entry.children.iter().map(PreparedEntry::artifact_id);
    let is_imported = artifact(sql, entry)?.is_some();
    let holds = if is_imported { children.eq(members) } else { members.is_empty() };
    verification.expect(holds, &entry.manifest.name, "has other members than children");
    Ok(())
}

struct Artifact {
    uuid: String,
    hash: String,
    collection_hash: String,
}

fn artifact(sql: &impl Sql, entry: &PreparedEntry) -> rusqlite::Result<Option<Artifact>> {
    sql.prepare_cached(
        "SELECT a.uuid, a.content_hash, c.artifact_content_hash FROM artifacts a
         JOIN collection_artifacts c ON c.artifact_uuid = a.uuid AND c.collection_id = ?2 WHERE a.id = ?1",
    )?
    .query_row((entry.artifact_id(), COLLECTION), |row| {
        Ok(Artifact { uuid: row.get(0)?, hash: row.get(1)?, collection_hash: row.get(2)? })
    })
    .optional()
}

fn tags(sql: &impl Sql, artifact_uuid: &str) -> rusqlite::Result<BTreeSet<String>> {
    let slugs = texts(
        sql,
        "SELECT t.slug FROM artifact_tags l JOIN tags t ON t.id = l.tag_id WHERE l.artifact_uuid = ?1",
        [artifact_uuid],
    )?;
    Ok(slugs.into_iter().collect())
}

fn texts(sql: &impl Sql, statement: &str, parameters: impl Params) -> rusqlite::Result<Vec<String>> {
    sql.prepare_cached(statement)?.query_map(parameters, |row| row.get(0))?.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::marketplace::Marketplace;
    use crate::prepare::prepare;
    use crate::scan::{Shape, scan};
    use crate::seed::{connect, create};
    use crate::store::{import_entry, now, record_failure};

    /// A composite of two crates and one crate by itself, on disk and in a new database.
    pub(crate) fn marketplace(dir: &Path) -> (Marketplace, Connection) {
        for (name, repository) in [("a", "one"), ("b", "one"), ("c", "two")] {
            let folder = dir.join("crates").join(name);
            std::fs::create_dir_all(&folder).expect("a folder");
            let manifest = format!(
                "[package]\nname = \"{name}\"\nkeywords = [\"x\", \"y\"]\nrepository = \"https://example.org/{repository}\""
            );
            std::fs::write(folder.join("Cargo.toml"), manifest).expect("a manifest");
        }
        let shape = Shape { sources: 1, entries_per_source: 3 };
        let marketplace = scan(&dir.join("crates"), shape).expect("three crates");
        let path = dir.join("marketplace.db");
        create(&path, &marketplace).expect("a new database");
        let connection = connect(&path, Duration::ZERO).expect("it opens");
        (marketplace, connection)
    }

    fn prepared(marketplace: &Marketplace) -> Vec<PreparedEntry> {
        let entries = marketplace.sources[0].entries.iter();
        entries.map(|entry| prepare(entry).expect("readable files")).collect()
    }

    #[test]
    fn an_import_and_its_repetition_agree_with_the_files() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (marketplace, connection) = marketplace(dir.path());
        for import_id in ["first", "again"] {
            // Prepared anew, as a re-import would: the artifacts keep the uuid of their first import.
            for entry in prepared(&marketplace) {
                import_entry(&connection, &entry, import_id, &now()).expect("it imports");
            }
        }
        let verification = verify(&connection, &prepared(&marketplace)).expect("SQLite answers");
        assert_eq!(verification.problems, Vec::<String>::new());
        assert_eq!((verification.imported, verification.not_imported), (3, 0));
        verify_search(&connection).expect("the indexes agree");
    }

    #[test]
    fn a_failed_entry_keeps_its_status_and_says_why() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (marketplace, connection) = marketplace(dir.path());
        let ids = marketplace.sources[0].all_entries().map(|entry| entry.id.as_str());
        record_failure(&connection, ids, "no room", &now()).expect("it is noted");
        let errors = texts(
            &connection,
            "SELECT json_extract(metadata_json, '$.import_error') FROM marketplace_catalog_entries",
            [],
        );
        assert_eq!(errors.expect("SQLite answers"), ["no room"; 3]);
        let verification = verify(&connection, &prepared(&marketplace)).expect("SQLite answers");
        assert_eq!((verification.imported, verification.not_imported), (0, 3));
        assert!(verification.problems.is_empty());
    }

    #[test]
    fn rows_of_a_half_imported_entry_are_found() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (marketplace, connection) = marketplace(dir.path());
        let expected = prepared(&marketplace);
        import_entry(&connection, &expected[0], "import", &now()).expect("it imports");
        connection
            .execute_batch("UPDATE marketplace_catalog_entries SET status = 'new'")
            .expect("it updates");
        let verification = verify(&connection, &expected).expect("SQLite answers");
        assert!(!verification.problems.is_empty());
    }
}
