//! The import's SQL, written once for every mode.
//!
//! A function here is one step or one whole command; who opens the transaction around it is the mode's
//! business.

use rusqlite::{CachedStatement, params};
use serde_json::json;
use solewriter::{ReadTransaction, WriteTransaction};
use uuid::Uuid;

use crate::prepare::{PreparedEntry, Tag};

/// The collection that every import fills.
pub(crate) const COLLECTION: &str = "default";
/// Stands in for a project where an artifact belongs to a collection only.
const SENTINEL_PROJECT: &str = "collection_artifacts_global";

/// What the SQL below needs of a connection or transaction, whoever owns it.
pub(crate) trait Sql {
    /// A statement from the connection's cache.
    ///
    /// # Errors
    /// SQLite's, if the statement can't be prepared.
    fn prepare_cached(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>>;
}

impl Sql for rusqlite::Connection {
    fn prepare_cached(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        rusqlite::Connection::prepare_cached(self, sql)
    }
}

impl Sql for ReadTransaction<'_> {
    fn prepare_cached(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        ReadTransaction::prepare_cached(self, sql)
    }
}

impl Sql for WriteTransaction<'_> {
    fn prepare_cached(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        ReadTransaction::prepare_cached(self, sql)
    }
}

/// A count as SQLite stores it: its integers are signed.
pub(crate) fn integer(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// The time as the schema stores it: ISO-8601 text.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// Makes sure that the collection and the project behind it exist.
///
/// # Errors
/// SQLite's.
pub(crate) fn ensure_collection(sql: &impl Sql, now: &str) -> rusqlite::Result<()> {
    sql.prepare_cached(
        "INSERT INTO projects (id, name, path, description, created_at, updated_at)
         VALUES (?1, 'Collection artifacts', ?1, 'Sentinel for artifacts without a project', ?2, ?2)
         ON CONFLICT DO NOTHING",
    )?
    .execute((SENTINEL_PROJECT, now))?;
    sql.prepare_cached(
        "INSERT INTO collections (id, name, description, created_at, updated_at)
         VALUES (?1, 'Default', 'Everything imported from the marketplace', ?2, ?2)
         ON CONFLICT DO NOTHING",
    )?
    .execute((COLLECTION, now))?;
    Ok(())
}

/// Imports one entry, a composite with all its children: completely, if the caller's transaction keeps it
/// whole.
///
/// # Errors
/// SQLite's; some of the entry's rows may have been written by then, and the caller has to roll them back.
pub(crate) fn import_entry(
    sql: &impl Sql,
    entry: &PreparedEntry,
    import_id: &str,
    now: &str,
) -> rusqlite::Result<()> {
    if entry.children.is_empty() {
        import_skill(sql, entry, import_id, now)?;
        return Ok(());
    }
    import_composite(sql, entry, import_id, now)
}

/// Imports one entry without its children and returns the uuid of its artifact.
///
/// # Errors
/// SQLite's, as for [`import_entry`].
pub(crate) fn import_skill(
    sql: &impl Sql,
    entry: &PreparedEntry,
    import_id: &str,
    now: &str,
) -> rusqlite::Result<String> {
    ensure_collection(sql, now)?;
    let uuid = upsert_artifact(sql, entry, now)?;
    upsert_collection_artifact(sql, entry, &uuid, now)?;
    for tag in &entry.tags {
        link_tag(sql, &uuid, tag, now)?;
    }
    mark_imported(sql, entry, import_id, now)?;
    Ok(uuid)
}

/// Imports a composite: its own artifact, every child as an entry, and the children's memberships by
/// position.
///
/// # Errors
/// SQLite's, as for [`import_entry`].
pub(crate) fn import_composite(
    sql: &impl Sql,
    entry: &PreparedEntry,
    import_id: &str,
    now: &str,
) -> rusqlite::Result<()> {
    import_skill(sql, entry, import_id, now)?;
    let composite_id = entry.artifact_id();
    let metadata = json!({ "repository": entry.manifest.repository, "children": entry.children.len() });
    sql.prepare_cached(
        "INSERT INTO composite_artifacts (id, collection_id, composite_type, display_name, description, metadata_json,
                                          created_at, updated_at)
         VALUES (?1, ?2, 'plugin', ?3, ?4, ?5, ?6, ?6)
         ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name, description = excluded.description,
                                        metadata_json = excluded.metadata_json, updated_at = excluded.updated_at",
    )?
    .execute(params![
        composite_id,
        COLLECTION,
        entry.manifest.name,
        entry.manifest.description,
        metadata.to_string(),
        now,
    ])?;
    for (position, child) in entry.children.iter().enumerate() {
        let uuid = import_skill(sql, child, import_id, now)?;
        sql.prepare_cached(
            "INSERT INTO composite_memberships (collection_id, composite_id, child_artifact_uuid, pinned_version_hash,
                                                position, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (collection_id, composite_id, child_artifact_uuid)
             DO UPDATE SET pinned_version_hash = excluded.pinned_version_hash, position = excluded.position",
        )?
        .execute(params![
            COLLECTION,
            composite_id,
            uuid,
            child.content_hash,
            integer(position),
            now
        ])?;
    }
    Ok(())
}

/// Inserts or updates the artifact and returns its uuid, which stays the same over every re-import.
fn upsert_artifact(sql: &impl Sql, entry: &PreparedEntry, now: &str) -> rusqlite::Result<String> {
    sql.prepare_cached(
        "INSERT INTO artifacts (id, uuid, project_id, name, type, source, deployed_version, upstream_version,
                                content_hash, description, target_platforms, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9, '[]', ?10, ?10)
         ON CONFLICT (id) DO UPDATE SET upstream_version = excluded.upstream_version,
                content_hash = excluded.content_hash, description = excluded.description,
                updated_at = excluded.updated_at
         RETURNING uuid",
    )?
    .query_row(
        params![
            entry.artifact_id(),
            entry.new_uuid,
            SENTINEL_PROJECT,
            entry.manifest.name,
            entry.artifact_type,
            entry.upstream_url,
            entry.manifest.version,
            entry.content_hash,
            entry.manifest.description,
            now,
        ],
        |row| row.get(0),
    )
}

fn upsert_collection_artifact(
    sql: &impl Sql,
    entry: &PreparedEntry,
    uuid: &str,
    now: &str,
) -> rusqlite::Result<()> {
    let slugs: Vec<&str> = entry.tags.iter().map(|tag| tag.slug.as_str()).collect();
    sql.prepare_cached(
        "INSERT INTO collection_artifacts (collection_id, artifact_uuid, added_at, description, author, license,
                tags_json, tools_json, deployments_json, version, artifact_content_hash, artifact_structure_hash,
                artifact_file_count, artifact_total_size, source, origin, origin_source, resolved_sha,
                resolved_version, synced_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, '[]', '[]', ?8, ?9, ?10, ?11, ?12, ?13, 'marketplace', ?14, ?9, ?8, ?3)
         ON CONFLICT (collection_id, artifact_uuid) DO UPDATE SET description = excluded.description,
                author = excluded.author, license = excluded.license, tags_json = excluded.tags_json,
                version = excluded.version, artifact_content_hash = excluded.artifact_content_hash,
                artifact_structure_hash = excluded.artifact_structure_hash,
                artifact_file_count = excluded.artifact_file_count,
                artifact_total_size = excluded.artifact_total_size, resolved_sha = excluded.resolved_sha,
                resolved_version = excluded.resolved_version, synced_at = excluded.synced_at",
    )?
    .execute(params![
        COLLECTION,
        uuid,
        now,
        entry.manifest.description,
        entry.manifest.author,
        entry.manifest.license,
        json!(slugs).to_string(),
        entry.manifest.version,
        entry.content_hash,
        entry.structure_hash,
        integer(entry.size.files),
        integer(entry.size.bytes),
        entry.upstream_url,
        entry.manifest.repository,
    ])?;
    Ok(())
}

fn link_tag(sql: &impl Sql, artifact_uuid: &str, tag: &Tag, now: &str) -> rusqlite::Result<()> {
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, tag.slug.as_bytes());
    sql.prepare_cached(
        "INSERT INTO tags (id, name, slug, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?4)
         ON CONFLICT (slug) DO NOTHING",
    )?
    .execute((id.simple().to_string(), &tag.name, &tag.slug, now))?;
    sql.prepare_cached(
        "INSERT INTO artifact_tags (artifact_uuid, tag_id, created_at) SELECT ?1, id, ?3 FROM tags WHERE slug = ?2
         ON CONFLICT DO NOTHING",
    )?
    .execute((artifact_uuid, &tag.slug, now))?;
    Ok(())
}

/// Marks the catalog entry in the same command that wrote its artifact, so that status and rows can't
/// disagree.
fn mark_imported(sql: &impl Sql, entry: &PreparedEntry, import_id: &str, now: &str) -> rusqlite::Result<()> {
    let marked = sql
        .prepare_cached(
            "UPDATE marketplace_catalog_entries
             SET status = 'imported', import_date = ?2, import_id = ?3, detected_sha = ?4, updated_at = ?2,
                 metadata_json = json_remove(coalesce(metadata_json, '{}'), '$.import_error', '$.import_error_at')
             WHERE id = ?1",
        )?
        .execute((&entry.entry_id, now, import_id, &entry.content_hash))?;
    if marked == 0 {
        return Err(rusqlite::Error::QueryReturnedNoRows);
    }
    Ok(())
}

/// Notes on catalog entries why their import failed; their status stays as it was.
///
/// # Errors
/// SQLite's.
pub(crate) fn record_failure<'a>(
    sql: &impl Sql,
    entry_ids: impl IntoIterator<Item = &'a str>,
    error: &str,
    now: &str,
) -> rusqlite::Result<()> {
    let mut statement = sql.prepare_cached(
        "UPDATE marketplace_catalog_entries
         SET metadata_json = json_set(coalesce(metadata_json, '{}'), '$.import_error', ?2, '$.import_error_at', ?3),
             updated_at = ?3
         WHERE id = ?1",
    )?;
    for id in entry_ids {
        statement.execute((id, error, now))?;
    }
    Ok(())
}
