//! The marketplace: importers bring catalog entries into a collection while people rename entries.
//!
//! Every system runs the same statements. Where the application reads the uuid of an artifact and binds it again, a
//! subquery finds it.

use crate::rows::transactions;
use crate::statement::Statement;

/// The application's tables, indexes and triggers.
pub const SCHEMA: &str = include_str!("../../../../examples/marketplace/schema.sql");

/// How many entries the application commits together.
pub const ENTRIES_PER_TRANSACTION: usize = 10;
/// How many entries an import has.
pub(crate) const ENTRIES_PER_IMPORT: i64 = 100;
/// Renames that arrive a second.
pub(crate) const RENAMES_PER_S: f64 = 20.0;

/// Every entry that is imported as a whole: marked as such, with its artifact in the collection.
pub(crate) const IMPORTED: &str = "
SELECT CAST(substr(source_id, 8) AS INTEGER), raw_score FROM marketplace_catalog_entries AS entry
WHERE status = 'imported' AND EXISTS (
    SELECT 1 FROM artifacts AS a JOIN collection_artifacts AS c ON c.artifact_uuid = a.uuid WHERE a.id = 'skill:' || entry.path)";

const NOW: &str = "2026-02-27T12:00:00Z";
const WORDS: [&str; 16] = [
    "agent", "branch", "catalog", "deploy", "editor", "format", "graph", "hook", "import", "json", "kernel",
    "lint", "merge", "notes", "parser", "query",
];
const TAGS: [&str; 8] = ["async", "cli", "data", "docs", "net", "review", "testing", "web"];
const TAGS_PER_ENTRY: i64 = 4;
/// One entry of so many has its whole text in the search index.
const DEEP_TEXT_EVERY: i64 = 10;
const DEEP_TEXT_BYTES: usize = 10_000;

/// A catalog entry, by the number of its source, which is that of its importer, and its own.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub importer: i64,
    pub sequence: i64,
}

impl Entry {
    fn id(self) -> String {
        format!("{:08x}-0000-4000-8000-{:012x}", self.importer, self.sequence)
    }

    fn source(self) -> String {
        format!("source-{}", self.importer)
    }

    fn path(self) -> String {
        format!("skill-{}-{}", self.importer, self.sequence)
    }

    /// Everything that imports the entry, to be run in one transaction.
    #[must_use]
    pub fn statements(&self) -> Vec<Statement> {
        let (path, id) = (self.path(), format!("skill:{}", self.path()));
        let (hash, uuid) = (format!("{path:0>64}"), format!("{path:0>32}"));
        let url = format!("https://example.org/{}/{path}", self.source());
        let tags: Vec<_> = self.tags().collect();
        let tags_json = format!("[\"{}\"]", tags.join("\",\""));
        let description = text(self.sequence, 120);
        let mut statements = vec![
            Statement::new(
                "INSERT INTO projects (id, name, path, description, created_at, updated_at)
                 VALUES ('collection_artifacts_global', 'Collection artifacts', 'collection_artifacts_global',
                         'Sentinel for artifacts without a project', ?1, ?1)
                 ON CONFLICT DO NOTHING",
                [NOW.into()],
            ),
            Statement::new(
                "INSERT INTO collections (id, name, description, created_at, updated_at)
                 VALUES ('default', 'Default', 'Everything imported from the marketplace', ?1, ?1)
                 ON CONFLICT DO NOTHING",
                [NOW.into()],
            ),
            Statement::new(
                "INSERT INTO artifacts (id, uuid, project_id, name, type, source, deployed_version, upstream_version,
                                        content_hash, description, target_platforms, created_at, updated_at)
                 VALUES (?1, ?2, 'collection_artifacts_global', ?3, 'skill', ?4, '1.0.0', '1.0.0', ?5, ?6, '[]', ?7, ?7)
                 ON CONFLICT (id) DO UPDATE SET content_hash = excluded.content_hash,
                        description = excluded.description, updated_at = excluded.updated_at",
                [
                    id.clone().into(),
                    uuid.into(),
                    path.into(),
                    url.clone().into(),
                    hash.clone().into(),
                    description.clone().into(),
                    NOW.into(),
                ],
            ),
            Statement::new(
                "INSERT INTO collection_artifacts (collection_id, artifact_uuid, added_at, description, author,
                        license, tags_json, tools_json, deployments_json, version, artifact_content_hash,
                        artifact_structure_hash, artifact_file_count, artifact_total_size, source, origin,
                        origin_source, resolved_sha, resolved_version, synced_at)
                 SELECT 'default', uuid, ?2, ?3, 'An Author <author@example.org>', 'MIT', ?4, '[]', '[]', '1.0.0', ?5,
                        ?5, 12, 34567, ?6, 'marketplace', ?6, ?5, '1.0.0', ?2
                 FROM artifacts WHERE id = ?1
                 ON CONFLICT (collection_id, artifact_uuid) DO UPDATE SET description = excluded.description,
                        tags_json = excluded.tags_json, artifact_content_hash = excluded.artifact_content_hash,
                        synced_at = excluded.synced_at",
                [
                    id.clone().into(),
                    NOW.into(),
                    description.into(),
                    tags_json.into(),
                    hash.clone().into(),
                    url.into(),
                ],
            ),
        ];
        for tag in tags {
            statements.push(Statement::new(
                "INSERT INTO tags (id, name, slug, created_at, updated_at) VALUES (?1, ?1, ?1, ?2, ?2)
                 ON CONFLICT (slug) DO NOTHING",
                [tag.into(), NOW.into()],
            ));
            statements.push(Statement::new(
                "INSERT INTO artifact_tags (artifact_uuid, tag_id, created_at)
                 SELECT artifacts.uuid, tags.id, ?3 FROM artifacts, tags WHERE artifacts.id = ?1 AND tags.slug = ?2
                 ON CONFLICT DO NOTHING",
                [id.clone().into(), tag.into(), NOW.into()],
            ));
        }
        statements.push(Statement::new(
            "UPDATE marketplace_catalog_entries
             SET status = 'imported', import_date = ?2, import_id = ?3, detected_sha = ?4, updated_at = ?2,
                 metadata_json = json_remove(coalesce(metadata_json, '{}'), '$.import_error', '$.import_error_at')
             WHERE id = ?1",
            [
                self.id().into(),
                NOW.into(),
                format!("import-{}", self.sequence / ENTRIES_PER_IMPORT).into(),
                hash.into(),
            ],
        ));
        statements
    }

    /// A rename, as a person asks for it.
    pub(crate) fn rename(self, name: String) -> Statement {
        Statement::new(
            "UPDATE marketplace_catalog_entries SET name = ?3, updated_at = ?4 WHERE id = ?1 AND source_id = ?2",
            [self.id().into(), self.source().into(), name.into(), NOW.into()],
        )
    }

    fn seed(self) -> Statement {
        let path = self.path();
        let segments = format!("{{\"raw_path\":\"{path}\",\"extracted\":\"{}\"}}", text(self.sequence, 400));
        let score =
            "{\"manifest_score\":40,\"readme_score\":20,\"description_score\":15,\"license_score\":10}";
        let deep = if self.sequence % DEEP_TEXT_EVERY == 0 { DEEP_TEXT_BYTES } else { 0 };
        Statement::new(
            "INSERT INTO marketplace_catalog_entries (id, source_id, artifact_type, name, path, upstream_url,
                    detected_version, detected_at, confidence_score, raw_score, score_breakdown, path_segments, title,
                    description, search_tags, search_text, deep_search_text, metadata_json, created_at, updated_at)
             VALUES (?1, ?2, 'skill', ?3, ?3, ?4, '1.0.0', ?5, 85, ?6, ?7, ?8, ?3, ?9, ?10, ?11, nullif(?12, ''),
                     '{\"license\":\"MIT\"}', ?5, ?5)",
            [
                self.id().into(),
                self.source().into(),
                path.clone().into(),
                format!("https://example.org/{}/{path}", self.source()).into(),
                NOW.into(),
                self.sequence.into(),
                score.into(),
                segments.into(),
                text(self.sequence, 120).into(),
                self.tags().collect::<Vec<_>>().join(" ").into(),
                text(self.sequence + 1, 400).into(),
                text(self.sequence + 2, deep).into(),
            ],
        )
    }

    fn tags(self) -> impl Iterator<Item = &'static str> {
        (0..TAGS_PER_ENTRY).map(move |n| pick(&TAGS, self.sequence + 3 * n))
    }
}

/// The sources and their catalogs, in which every entry is still new.
pub(crate) fn seed(importers: i64, entries: i64) -> impl Iterator<Item = Vec<Statement>> {
    let sources = (0..importers).map(|importer| {
        let source = Entry { importer, sequence: 0 }.source();
        Statement::new(
            "INSERT INTO marketplace_sources (id, repo_url, owner, repo_name, created_at, updated_at)
             VALUES (?1, ?1, 'example', ?1, ?2, ?2)",
            [source.into(), NOW.into()],
        )
    });
    let entries = (0..importers)
        .flat_map(move |importer| (0..entries).map(move |sequence| Entry { importer, sequence }.seed()));
    transactions(sources.chain(entries))
}

/// Words, about so many bytes of them, the same for the same seed.
fn text(seed: i64, bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(seed.unsigned_abs());
    let mut text = String::with_capacity(bytes + 8);
    while text.len() < bytes {
        text.push_str(WORDS[random.usize(..WORDS.len())]);
        text.push(' ');
    }
    text
}

fn pick<T: Copy>(from: &[T], number: i64) -> T {
    from[number.unsigned_abs() as usize % from.len()]
}
