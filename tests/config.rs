//! The configuration a service keeps in its own file.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::time::Duration;

use serde::de::Error as _;
use solewriter::{Checkpoints, Config, Durability, HealthLimits};

fn unusual() -> Config {
    Config {
        name: "shop".into(),
        create: false,
        durability: Durability::Normal,
        foreign_keys: false,
        busy_timeout: Duration::from_millis(1),
        cache_bytes: 2_048,
        mmap_bytes: 3,
        statement_cache_capacity: 4,
        queue_commands_max: 5,
        queue_bytes_max: 6,
        queue_wait_max: Duration::from_millis(7),
        command_wait_max: Duration::from_millis(22),
        group_commands_max: 8,
        group_hold_max: Duration::from_millis(19),
        group_linger: Duration::from_millis(10),
        bulk_hold_target: Duration::from_millis(11),
        bulk_share_percent: 12,
        maintenance_share_percent: 13,
        hold_warning: Duration::from_millis(14),
        readers: 15,
        readers_overflow: 16,
        reader_wait_max: Duration::from_millis(17),
        reader_age_max: Duration::from_millis(18),
        read_age_max: Duration::from_millis(23),
        wal_target_bytes: 70_000,
        checkpoint_pages: 20,
        wal_limit_bytes: 80_000,
        checkpoints: Checkpoints::External,
        foreign_gap: Duration::from_millis(24),
        foreign_gap_interval: Duration::from_millis(25),
        breaker_failures: 26,
        breaker_pause: Duration::from_millis(27),
        allow_network_file_system: true,
        trusted_schema: true,
        value_bytes_max: 1 << 21,
        shutdown_wait_max: Duration::from_millis(21),
        health: HealthLimits {
            hold_failing: Duration::from_millis(40),
            wait_degraded: Duration::from_millis(41),
            queue_degraded_percent: 42,
            wal_degraded_percent: 43,
            read_degraded: Duration::from_millis(44),
            import_lost_batches_degraded: 45,
            import_duration_degraded: Duration::from_millis(46),
        },
    }
}

#[test]
fn it_survives_toml_and_json() {
    for config in [Config::default(), unusual()] {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config, "{text}");
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config, "{text}");
    }
}

#[test]
fn a_file_names_only_what_it_changes() {
    let config: Config = toml::from_str("readers = 8\ndurability = 'normal'\nbusy_timeout_ms = 500").unwrap();
    let expected = Config {
        readers: 8,
        durability: Durability::Normal,
        busy_timeout: Duration::from_millis(500),
        ..Config::default()
    };
    assert_eq!(config, expected);
    assert_eq!(serde_json::from_str::<Config>("{}").unwrap(), Config::default());
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    const MIB: u64 = 1 << 20;
    let Config {
        name,
        create,
        durability,
        foreign_keys,
        busy_timeout,
        cache_bytes,
        mmap_bytes,
        statement_cache_capacity,
        queue_commands_max,
        queue_bytes_max,
        queue_wait_max,
        command_wait_max,
        group_commands_max,
        group_hold_max,
        group_linger,
        bulk_hold_target,
        bulk_share_percent,
        maintenance_share_percent,
        hold_warning,
        readers,
        readers_overflow,
        reader_wait_max,
        reader_age_max,
        read_age_max,
        wal_target_bytes,
        checkpoint_pages,
        wal_limit_bytes,
        checkpoints,
        foreign_gap,
        foreign_gap_interval,
        breaker_failures,
        breaker_pause,
        allow_network_file_system,
        trusted_schema,
        value_bytes_max,
        shutdown_wait_max,
        health,
    } = Config::default();
    assert_eq!(
        (name.as_str(), create, durability, foreign_keys),
        ("solewriter", true, Durability::Full, true)
    );
    assert_eq!((cache_bytes, mmap_bytes, wal_target_bytes), (64 * MIB, 256 * MIB, 64 * MIB));
    assert_eq!((statement_cache_capacity, queue_commands_max, queue_bytes_max), (128, 16_384, 64 << 20));
    assert_eq!((group_commands_max, checkpoint_pages), (4_096, 4_000));
    assert_eq!((bulk_share_percent, maintenance_share_percent), (20, 5));
    assert_eq!((readers, readers_overflow), (5, 10));
    assert_eq!((wal_limit_bytes, value_bytes_max), (1024 * MIB, 256 << 20));
    assert_eq!((checkpoints, breaker_failures), (Checkpoints::Service, 5));
    assert!(!allow_network_file_system && !trusted_schema);
    let HealthLimits {
        hold_failing,
        wait_degraded,
        queue_degraded_percent,
        wal_degraded_percent,
        read_degraded,
        import_lost_batches_degraded,
        import_duration_degraded,
    } = health;
    assert_eq!((queue_degraded_percent, wal_degraded_percent, import_lost_batches_degraded), (80, 50, 3));
    let millis = [
        (busy_timeout, 10_000),
        (hold_failing, 30_000),
        (wait_degraded, 5_000),
        (read_degraded, 10_000),
        (import_duration_degraded, 5_000),
        (queue_wait_max, 30_000),
        (command_wait_max, 30_000),
        (group_hold_max, 25),
        (group_linger, 0),
        (bulk_hold_target, 8),
        (hold_warning, 1_000),
        (reader_wait_max, 10_000),
        (reader_age_max, 3_600_000),
        (read_age_max, 30_000),
        (foreign_gap, 110),
        (foreign_gap_interval, 5_000),
        (breaker_pause, 250),
        (shutdown_wait_max, 10_000),
    ];
    millis.into_iter().for_each(|(found, expected)| assert_eq!(found.as_millis(), expected));
}

/// The value is refused in JSON and TOML, and both name the field.
fn is_refused_by_name(field: &str, value: &str) {
    let (json, toml) = (format!("{{\"{field}\": {value}}}"), format!("{field} = {value}"));
    let json = serde_json::from_str::<Config>(&json).expect_err(&json).to_string();
    let toml = toml::from_str::<Config>(&toml).expect_err(&toml);
    // TOML also shows the line: the message itself must name the field.
    let toml = toml.message();
    assert!(json.contains(field) && toml.contains(field), "{field}: {json}, {toml}");
}

#[test]
fn an_unknown_field_is_refused_by_name() {
    for field in ["raeders", "busy_timeout", "group_hold_max"] {
        is_refused_by_name(field, "1");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused_by_the_name_of_its_field() {
    for (field, value) in [
        ("readers", "\"many\""),
        ("create", "1"),
        ("durability", "\"extra\""),
        ("busy_timeout_ms", "-1"),
        ("bulk_share_percent", "256"),
        ("group_linger_ms", "\"1 s\""),
    ] {
        is_refused_by_name(field, value);
    }
}

#[test]
fn a_value_that_makes_no_sense_is_refused_by_the_name_of_its_field() {
    for (field, value) in [
        ("name", "\"\""),
        ("busy_timeout_ms", "86400001"),
        ("cache_bytes", "0"),
        ("mmap_bytes", "4294967296"),
        ("mmap_bytes", "2000000000000"),
        ("statement_cache_capacity", "70000"),
        ("queue_commands_max", "0"),
        ("queue_bytes_max", "0"),
        ("queue_wait_max_ms", "86400001"),
        ("group_commands_max", "0"),
        ("group_hold_max_ms", "0"),
        ("group_linger_ms", "26"),
        ("bulk_hold_target_ms", "0"),
        ("bulk_share_percent", "0"),
        ("bulk_share_percent", "86"),
        ("maintenance_share_percent", "0"),
        ("hold_warning_ms", "0"),
        ("readers", "0"),
        ("readers_overflow", "1001"),
        ("reader_age_max_ms", "0"),
        ("wal_target_bytes", "1000"),
        ("checkpoint_pages", "0"),
        ("command_wait_max_ms", "0"),
        ("read_age_max_ms", "0"),
        ("wal_limit_bytes", "65536"),
        ("foreign_gap_ms", "86400001"),
        ("foreign_gap_interval_ms", "110"),
        ("breaker_failures", "0"),
        ("breaker_pause_ms", "0"),
        ("value_bytes_max", "1000"),
    ] {
        is_refused_by_name(field, value);
    }
}

#[test]
fn what_code_sets_is_checked_by_the_same_rules() {
    assert_eq!(unusual().validate(), Ok(()));
    let error = Config { readers: 0, ..Config::default() }.validate().unwrap_err();
    assert_eq!(error.field, "readers");
    assert!(toml::de::Error::custom(&error).to_string().contains(error.reason));
}
