//! docs/operations.md names every event that the service sends to tracing, at its level, and every kind of trouble
//! that its health can tell of, with limits that exist.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::path::Path;

use solewriter::Config;
use walkdir::WalkDir;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The row of a table that begins with `name`.
fn row<'g>(guide: &'g str, name: &str) -> &'g str {
    let row = guide.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
    row.unwrap_or_else(|| panic!("not in a table: {name}"))
}

/// What a column of a row has between backticks.
fn quoted(row: &str, column: usize) -> impl Iterator<Item = &str> {
    row.split('|').nth(column).unwrap().split('`').skip(1).step_by(2)
}

#[test]
fn every_event_is_in_the_table_at_its_level() {
    let guide = read("docs/operations.md");
    let mut events = 0;
    for file in WalkDir::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let file = file.unwrap();
        if file.path().extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = std::fs::read_to_string(file.path()).unwrap();
        for level in ["error", "warn", "info", "debug", "trace"] {
            for after in source.split(&format!("tracing::{level}!(")).skip(1) {
                // The message is the only literal among the arguments.
                let message = after.split('"').nth(1).unwrap();
                let row = row(&guide, message);
                assert!(row.contains(&format!("event, {}", level.to_uppercase())), "{row}");
                let arguments = after.split_once(");").unwrap().0;
                for field in quoted(row, 3) {
                    assert!(arguments.contains(field), "{message} has no {field}");
                }
                events += 1;
            }
        }
    }
    assert!(events > 20, "{events}");
}

#[test]
fn every_kind_of_trouble_is_in_the_table_with_its_states_and_limits() {
    let (guide, source) = (read("docs/operations.md"), read("src/health.rs"));
    let config = serde_json::to_value(Config::default()).unwrap();
    let variants = source.split_once("pub enum Trouble {").unwrap().1.split_once('}').unwrap().0;
    let kinds = variants.lines().map(str::trim).filter_map(|line| line.strip_suffix(','));
    let mut count = 0;
    for kind in kinds {
        let row = row(&guide, &snake_case(kind));
        let states = row.split('|').nth(2).unwrap().trim();
        let uses: Vec<_> = source.split(&format!("kind: Trouble::{kind},")).skip(1).collect();
        assert!(!uses.is_empty(), "nothing ever says {kind}");
        for after in uses {
            let state = after.trim_start().split_once(',').unwrap().0;
            let expected = match state {
                "state: HealthState::Failing" => "failing",
                "state: HealthState::Degraded" => "degraded",
                // By how long it lasts.
                "state" => "degraded, failing",
                other => panic!("{kind}: {other}"),
            };
            assert_eq!(states, expected, "{kind}");
        }
        for limit in quoted(row, 5) {
            let (part, field) = match limit.strip_prefix("health.") {
                Some(field) => (&config["health"], field),
                None => (&config, limit),
            };
            let exists = part.get(field).is_some() || part.get(format!("{field}_ms")).is_some();
            assert!(exists, "{kind}: Config has no {limit}");
        }
        count += 1;
    }
    assert!(count > 10, "{count}");
}

/// As serde names the variants.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (position, letter) in name.char_indices() {
        if letter.is_uppercase() && position > 0 {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}
