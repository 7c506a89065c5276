//! Makes the database that a run starts from: the schema, and a catalog in which every entry is still new.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::manifest::cut;
use crate::marketplace::{EntrySource, Marketplace, Source};
use crate::store::{Sql, integer, now};

const SCHEMA: &str = include_str!("schema.sql");
/// A source keeps at most this much of a README; the catalog's deep text may be longer.
const SOURCE_README_BYTES_MAX: usize = 50_000;
const SEARCH_TEXT_BYTES_MAX: usize = 400;

/// Opens a connection with the scenario's pragmas; `busy_timeout` is how long it waits for another
/// connection's lock.
///
/// # Errors
/// SQLite's.
pub(crate) fn connect(path: &Path, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(busy_timeout)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -64000;
         PRAGMA mmap_size = 268435456;
         PRAGMA wal_autocheckpoint = 1000;",
    )?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Creates the database at `path` and fills its catalog with the marketplace.
///
/// # Errors
/// SQLite's.
pub(crate) fn create(path: &Path, marketplace: &Marketplace) -> rusqlite::Result<()> {
    let mut connection = connect(path, Duration::from_secs(10))?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    let now = now();
    for source in &marketplace.sources {
        insert_source(&*transaction, source, &now)?;
        for entry in source.all_entries() {
            insert_entry(&*transaction, source, entry, &now)?;
        }
    }
    transaction.commit()
}

fn insert_source(sql: &impl Sql, source: &Source, now: &str) -> rusqlite::Result<()> {
    let tags: BTreeSet<&String> = source.all_entries().flat_map(|entry| &entry.manifest.keywords).collect();
    let readme = source.all_entries().find_map(|entry| entry.manifest.readme.as_deref());
    sql.prepare_cached(
        "INSERT INTO marketplace_sources (id, repo_url, owner, repo_name, description, repo_readme, tags,
                counts_by_type, trust_level, enable_frontmatter_detection, indexing_enabled, deep_indexing_enabled,
                last_sync_at, scan_status, artifact_count, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'verified', 1, 1, 1, ?9, 'success', ?10, ?9, ?9)",
    )?
    .execute(params![
        source.id,
        source.repo_url,
        source.owner,
        source.repo_name,
        format!("{} unpacked crates and source folders", source.entry_count()),
        readme.map(|text| cut(text, SOURCE_README_BYTES_MAX)),
        json!(tags).to_string(),
        counts_by_type(source).to_string(),
        now,
        integer(source.entry_count()),
    ])?;
    Ok(())
}

fn counts_by_type(source: &Source) -> Value {
    let composites = source.entries.iter().filter(|entry| !entry.children.is_empty()).count();
    json!({ "skill": source.entry_count() - composites, "composite": composites })
}

fn insert_entry(sql: &impl Sql, source: &Source, entry: &EntrySource, now: &str) -> rusqlite::Result<()> {
    let manifest = &entry.manifest;
    let score = Score::of(entry);
    // Only a README makes an entry worth deep indexing; most source folders have none.
    let deep = manifest.readme.as_deref();
    sql.prepare_cached(
        "INSERT INTO marketplace_catalog_entries (id, source_id, artifact_type, name, path, upstream_url,
                detected_version, detected_at, confidence_score, raw_score, score_breakdown, path_segments, title,
                description, search_tags, search_text, deep_search_text, deep_indexed_at, deep_index_files,
                metadata_json, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?4, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?8, ?8)",
    )?
    .execute(params![
        entry.id,
        source.id,
        entry.artifact_type(),
        manifest.name,
        entry.path,
        entry.upstream_url(),
        manifest.version,
        now,
        score.total().min(100),
        score.total(),
        score.breakdown().to_string(),
        path_segments(&entry.path).to_string(),
        manifest.description,
        manifest.keywords.join(" "),
        search_text(entry),
        deep,
        deep.map(|_| now),
        deep.map(|_| json!(["README"]).to_string()),
        metadata(entry).to_string(),
    ])?;
    Ok(())
}

/// How sure the catalog is that a folder is a real entry: one point of evidence each.
struct Score([(&'static str, u32); 6]);

impl Score {
    fn of(entry: &EntrySource) -> Score {
        let points = |there: bool, points| if there { points } else { 0 };
        let manifest = &entry.manifest;
        Score([
            ("manifest_score", points(entry.is_crate, 40)),
            ("readme_score", points(manifest.readme.is_some(), 20)),
            ("description_score", points(manifest.description.is_some(), 15)),
            ("license_score", points(manifest.license.is_some(), 10)),
            ("keywords_score", points(!manifest.keywords.is_empty(), 10)),
            ("files_score", points(entry.size.files > 1, 5)),
        ])
    }

    fn total(&self) -> u32 {
        self.0.iter().map(|(_, points)| points).sum()
    }

    fn breakdown(&self) -> Value {
        self.0.iter().map(|&(name, points)| (name.to_owned(), json!(points))).collect()
    }
}

fn path_segments(path: &str) -> Value {
    let segments = path.split('/').enumerate().map(|(depth, segment)| {
        json!({
            "segment": segment,
            "normalized": slug::slugify(segment),
            "depth": depth,
            "status": "pending",
            "reason": null,
        })
    });
    json!({ "raw_path": path, "extracted": segments.collect::<Vec<_>>() })
}

fn search_text(entry: &EntrySource) -> String {
    let manifest = &entry.manifest;
    let readme = manifest.readme.as_deref().unwrap_or_default();
    let words = [&manifest.name, &entry.path]
        .into_iter()
        .chain(&manifest.description)
        .chain(&manifest.keywords)
        .map(String::as_str)
        .chain(readme.split_whitespace().take(SEARCH_TEXT_BYTES_MAX));
    let text = words.collect::<Vec<_>>().join(" ");
    cut(&text, SEARCH_TEXT_BYTES_MAX).to_owned()
}

fn metadata(entry: &EntrySource) -> Value {
    json!({
        "license": entry.manifest.license,
        "author": entry.manifest.author,
        "files": entry.size.files,
        "bytes": entry.size.bytes,
    })
}
