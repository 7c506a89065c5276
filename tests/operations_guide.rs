//! docs/operations.md names every event that the service sends to tracing, at its level.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::path::Path;

use walkdir::WalkDir;

#[test]
fn every_event_is_in_the_table_at_its_level() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let rows: Vec<_> = guide.lines().filter(|line| line.starts_with("| `")).collect();
    let mut events = 0;
    for file in WalkDir::new(root.join("src")) {
        let file = file.unwrap();
        if file.path().extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = std::fs::read_to_string(file.path()).unwrap();
        for level in ["error", "warn", "info", "debug", "trace"] {
            for after in source.split(&format!("tracing::{level}!(")).skip(1) {
                // The message is the only literal among the arguments.
                let message = after.split('"').nth(1).unwrap();
                let row = rows.iter().find(|row| row.starts_with(&format!("| `{message}` |")));
                let row = row.unwrap_or_else(|| panic!("not in the table: {message}"));
                assert!(row.contains(&format!("event, {}", level.to_uppercase())), "{row}");
                let arguments = after.split_once(");").unwrap().0;
                for field in row.split('|').nth(3).unwrap().split('`').skip(1).step_by(2) {
                    assert!(arguments.contains(field), "{message} has no {field}");
                }
                events += 1;
            }
        }
    }
    assert!(events > 20, "{events}");
}
