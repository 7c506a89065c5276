//! Bytes are taken for a configuration: a text, or the value of each field. It is refused by the name of a field, or
//! it survives to be written down, and a service opens with it.

use std::fmt::Debug;
use std::sync::LazyLock;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use futures_util::stream;
use solewriter::{
    Batch, Checkpoints, Config, ConfigError, Database, Drain, Durability, HealthLimits, NotStarted,
    OpenErrorReason, ReadError, WriteError,
};

use crate::common::proof::{Tally, Wrong};
use crate::common::{HANG, plain};
use crate::frame;

/// Takes the bytes for a configuration.
pub fn run(bytes: &[u8]) {
    let Some((form, bytes)) = bytes.split_first() else { return };
    let mut tally = Tally::of_one_case();
    let config = match (form % 4, std::str::from_utf8(bytes)) {
        (0, Ok(text)) => of_toml(text, &mut tally),
        (1, Ok(text)) => of_json(text, &mut tally),
        (2.., _) => of_fields(bytes, &mut tally),
        _ => return,
    };
    if let Some(config) = &config {
        write_down(config, &mut tally);
        open(config, &mut tally);
        tally.add("valid", 1);
    }
    frame::judge(tally, &config);
}

fn of_toml(text: &str, tally: &mut Tally) -> Option<Config> {
    match toml::from_str::<Config>(text) {
        Ok(config) => Some(config),
        Err(error) => {
            if let Ok(table) = text.parse::<toml::Table>() {
                see_refused(error.message(), table.keys(), tally);
            }
            // It shows the line that is wrong.
            tally.checks += u64::from(!error.to_string().is_empty());
            None
        }
    }
}

fn of_json(text: &str, tally: &mut Tally) -> Option<Config> {
    match serde_json::from_str::<Config>(text) {
        Ok(config) => Some(config),
        Err(error) => {
            if let Ok(table) = serde_json::from_str::<serde_json::Map<_, _>>(text) {
                see_refused(&error.to_string(), table.keys(), tally);
            }
            None
        }
    }
}

/// A table that is refused is refused by the name of something in it, or of what does not fit it.
fn see_refused<'k>(error: &str, keys: impl Iterator<Item = &'k String>, tally: &mut Tally) {
    let is_named = keys.chain(FIELDS.iter()).any(|name| error.contains(name.as_str()));
    tally.check(is_named, Wrong::Broken, || format!("no field is named: {error}"));
    tally.add("refused", 1);
}

/// Every field as it is written down.
static FIELDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let serde_json::Value::Object(fields) = serde_json::to_value(Config::default()).unwrap() else {
        unreachable!("a configuration is a table");
    };
    fields.keys().cloned().collect()
});

fn of_fields(bytes: &[u8], tally: &mut Tally) -> Option<Config> {
    let config = any_config(&mut Unstructured::new(bytes)).ok()?;
    let error = match config.validate() {
        Ok(()) => return Some(config),
        Err(error) => error,
    };
    let ConfigError { field, reason, .. } = error;
    let is_field = FIELDS.iter().any(|name| field.split('.').next() == Some(name));
    tally.check(is_field && !reason.is_empty(), Wrong::Broken, || format!("what is {field}? {error}"));
    // Written down and read again it is refused for the same reason.
    if is_in_whole_millis(&config) {
        let text = serde_json::to_string(&config).unwrap();
        let again = serde_json::from_str::<Config>(&text);
        let is_same = again.as_ref().is_err_and(|again| again.to_string().contains(&error.to_string()));
        tally.check(is_same, Wrong::Broken, || format!("{error}, but {again:?} of {text}"));
    }
    let directory = frame::directory();
    let opened = Database::builder(directory.path().join("test.db")).config(config).open_blocking();
    let is_same = matches!(&opened, Err(refused)
        if matches!(&refused.reason, OpenErrorReason::Config(again) if *again == error));
    tally.check(is_same, Wrong::Broken, || format!("{error}, but {opened:?}"));
    let is_untouched = directory.path().read_dir().unwrap().next().is_none();
    tally.check(is_untouched, Wrong::Broken, || format!("{error}, but files were made"));
    tally.add("refused", 1);
    None
}

/// A value at one of the ends of what makes sense, or any.
fn number<T: TryFrom<u64>>(u: &mut Unstructured<'_>, usual: u64) -> Result<T> {
    const ENDS: [u64; 26] = [
        0,
        1,
        2,
        3,
        9,
        1_000,
        1_001,
        1_024,
        65_535,
        65_536,
        65_537,
        1 << 20,
        1_000_000_000,
        1_000_000_001,
        1 << 30,
        (1 << 30) + 1,
        0x7fff_0000,
        0x7fff_0001,
        1 << 31,
        1 << 32,
        1 << 40,
        (1 << 40) + 1,
        1 << 60,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
    ];
    let number = match u.arbitrary::<u8>()? {
        // Where the bytes end, the rest is as usual.
        byte @ 1..27 => ENDS[usize::from(byte) - 1],
        27..80 => u.arbitrary::<u32>()?.into(),
        _ => usual,
    };
    // What does not fit is cut off.
    Ok(T::try_from(number).or_else(|_| T::try_from(number & 0x7f)).unwrap_or_else(|_| unreachable!()))
}

fn time(u: &mut Unstructured<'_>, usual: Duration) -> Result<Duration> {
    const DAY: Duration = Duration::from_secs(86_400);
    Ok(match u.arbitrary::<u8>()? {
        1 => Duration::from_nanos(1),
        2 => Duration::from_micros(999),
        3 => Duration::from_millis(1),
        4 => DAY,
        5 => DAY + Duration::from_nanos(1),
        6 => Duration::from_millis(i64::MAX as u64),
        7 => Duration::from_millis(u64::MAX),
        8 => Duration::MAX,
        9 => Duration::from_secs(u64::MAX),
        60 => Duration::ZERO,
        10..40 => Duration::from_millis(u.arbitrary::<u16>()?.into()),
        40..60 => Duration::from_nanos(u.arbitrary::<u32>()?.into()),
        _ => usual,
    })
}

fn any_config(u: &mut Unstructured<'_>) -> Result<Config> {
    let usual = Config::default();
    let health = HealthLimits::default();
    // Every field by name: a new one can't be forgotten.
    Ok(Config {
        name: match u.arbitrary::<u8>()? {
            0..32 => u.arbitrary::<&str>()?.into(),
            _ => usual.name,
        },
        create: true,
        durability: *u.choose(&[Durability::Full, Durability::Normal])?,
        foreign_keys: u.arbitrary()?,
        busy_timeout: time(u, usual.busy_timeout)?,
        cache_bytes: number(u, usual.cache_bytes)?,
        mmap_bytes: number(u, usual.mmap_bytes)?,
        statement_cache_capacity: number(u, usual.statement_cache_capacity as u64)?,
        queue_commands_max: number(u, usual.queue_commands_max as u64)?,
        queue_bytes_max: number(u, usual.queue_bytes_max as u64)?,
        queue_wait_max: time(u, usual.queue_wait_max)?,
        command_wait_max: time(u, usual.command_wait_max)?,
        group_commands_max: number(u, usual.group_commands_max as u64)?,
        group_hold_max: time(u, usual.group_hold_max)?,
        group_linger: time(u, usual.group_linger)?,
        bulk_hold_target: time(u, usual.bulk_hold_target)?,
        bulk_share_percent: number(u, usual.bulk_share_percent.into())?,
        maintenance_share_percent: number(u, usual.maintenance_share_percent.into())?,
        hold_warning: time(u, usual.hold_warning)?,
        readers: number(u, 1)?,
        readers_overflow: number(u, 1)?,
        reader_wait_max: time(u, usual.reader_wait_max)?,
        reader_age_max: time(u, usual.reader_age_max)?,
        read_age_max: time(u, usual.read_age_max)?,
        wal_target_bytes: number(u, usual.wal_target_bytes)?,
        checkpoint_pages: number(u, usual.checkpoint_pages.into())?,
        wal_limit_bytes: number(u, usual.wal_limit_bytes)?,
        checkpoints: *u.choose(&[Checkpoints::Service, Checkpoints::External])?,
        foreign_gap: time(u, usual.foreign_gap)?,
        foreign_gap_interval: time(u, usual.foreign_gap_interval)?,
        breaker_failures: number(u, usual.breaker_failures.into())?,
        breaker_pause: time(u, usual.breaker_pause)?,
        allow_network_file_system: u.arbitrary()?,
        trusted_schema: u.arbitrary()?,
        value_bytes_max: number(u, usual.value_bytes_max.into())?,
        shutdown_wait_max: time(u, usual.shutdown_wait_max)?,
        health: HealthLimits {
            hold_failing: time(u, health.hold_failing)?,
            wait_degraded: time(u, health.wait_degraded)?,
            queue_degraded_percent: number(u, health.queue_degraded_percent.into())?,
            wal_degraded_percent: number(u, health.wal_degraded_percent.into())?,
            read_degraded: time(u, health.read_degraded)?,
            import_lost_batches_degraded: number(u, health.import_lost_batches_degraded.into())?,
            import_duration_degraded: time(u, health.import_duration_degraded)?,
        },
    })
}

fn times(config: &Config) -> impl Iterator<Item = Duration> {
    let HealthLimits { hold_failing, wait_degraded, read_degraded, import_duration_degraded, .. } =
        config.health;
    [
        config.busy_timeout,
        config.queue_wait_max,
        config.command_wait_max,
        config.group_hold_max,
        config.group_linger,
        config.bulk_hold_target,
        config.hold_warning,
        config.reader_wait_max,
        config.reader_age_max,
        config.read_age_max,
        config.foreign_gap,
        config.foreign_gap_interval,
        config.breaker_pause,
        config.shutdown_wait_max,
        hold_failing,
        wait_degraded,
        read_degraded,
        import_duration_degraded,
    ]
    .into_iter()
}

/// Only whole milliseconds can be written down, and no more of them than 64 bits hold.
fn is_in_whole_millis(config: &Config) -> bool {
    times(config)
        .all(|time| u64::try_from(time.as_millis()).is_ok_and(|millis| Duration::from_millis(millis) == time))
}

/// What was written down is the same when it is read again, in either format.
fn write_down(config: &Config, tally: &mut Tally) {
    tally.check(config.validate().is_ok(), Wrong::Broken, || "valid, and then not".into());
    let json = serde_json::to_string(config).unwrap();
    see_again(config, serde_json::from_str(&json), &json, tally);
    // TOML has signed numbers only, and says so.
    if let Ok(toml) = toml::to_string(config) {
        see_again(config, toml::from_str(&toml), &toml, tally);
    }
}

fn see_again<E: Debug>(
    config: &Config,
    again: std::result::Result<Config, E>,
    text: &str,
    tally: &mut Tally,
) {
    let again = again.map(|again| match frame::canary() {
        // As if it were written down in seconds.
        Some("LosesMillis") => {
            let busy_timeout = Duration::from_secs(again.busy_timeout.as_secs());
            Config { busy_timeout, ..again }
        }
        Some(unknown) => panic!("there is no canary {unknown}"),
        None => again,
    });
    let is_same = match &again {
        Ok(again) => again == config || !is_in_whole_millis(config),
        Err(_) => !is_in_whole_millis(config),
    };
    tally.check(is_same, Wrong::Broken, || format!("{text}\nis read as {again:?}"));
}

/// A service opens with it, and does what it can within these limits.
fn open(config: &Config, tally: &mut Tally) {
    let directory = frame::directory();
    let path = directory.path().join("test.db");
    let builder = || {
        Database::builder(&path).config(Config {
            // Each is a thread.
            readers: config.readers.min(3),
            readers_overflow: config.readers_overflow.min(3),
            // Each command would take this long.
            group_linger: config.group_linger.min(Duration::from_millis(1)),
            ..config.clone()
        })
    };
    let db = match builder().open_blocking() {
        Ok(db) => db,
        Err(error) if !config.create => {
            let is_missing = matches!(error.reason, OpenErrorReason::Missing);
            return tally.check(is_missing, Wrong::Broken, || format!("{error:?}"));
        }
        Err(error) => return tally.wrong(Wrong::Broken, || format!("it does not open: {error:?}")),
    };
    tally.check(config.create, Wrong::Broken, || "made, and should not be".into());
    match builder().open_blocking() {
        Ok(again) => drop(again),
        Err(error) => tally.wrong(Wrong::Broken, || format!("not the same as itself: {error:?}")),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let within = async { tokio::time::timeout(HANG, use_all(&db, tally)).await };
    let written = runtime.block_on(within).expect("it hangs");
    let closed = runtime.block_on(db.shutdown(Drain::within(HANG)));
    tally.check(closed.is_ok(), Wrong::Broken, || format!("the close: {closed:?}"));
    drop(db);
    let there: rusqlite::Result<i64> =
        plain(&path).query_row("SELECT count(*) FROM t WHERE x < 100", (), |row| row.get(0));
    let is_there = if written { matches!(there, Ok(1)) } else { !matches!(there, Ok(1)) };
    tally.check(is_there, Wrong::Lost, || format!("written: {written}, there: {there:?}"));
}

/// A limit that was set may refuse a command, and nothing else may.
fn is_a_limit(error: &WriteError) -> bool {
    use NotStarted::{DeadlineExceeded, QueueFull, TooLarge, WaitedTooLong, WalFull};
    matches!(
        error,
        WriteError::NotStarted(
            TooLarge { .. }
                | WaitedTooLong { .. }
                | QueueFull { .. }
                | WalFull { .. }
                | DeadlineExceeded { .. }
        )
    )
}

/// Uses what there is. Returns whether the row was written.
async fn use_all(db: &Database, tally: &mut Tally) -> bool {
    let written = db.write("use", |tx| {
        tx.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)")?;
        Ok(tx.changes())
    });
    let written = written.await;
    let is_true = written.as_ref().err().is_none_or(is_a_limit);
    tally.check(is_true, Wrong::Broken, || format!("{written:?}"));
    tally.add("written", u64::from(written.is_ok()));
    let read = db.read("use", |tx| tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)));
    let read = read.await;
    let is_true = match &read {
        Ok(rows) => *rows == 1 && written.is_ok(),
        // There is no table.
        Err(ReadError::Query(_)) => written.is_err(),
        Err(ReadError::NoReader { .. } | ReadError::Ended { .. } | ReadError::DeadlineExceeded { .. }) => {
            true
        }
        Err(_) => false,
    };
    tally.check(is_true, Wrong::Broken, || format!("{read:?} after {written:?}"));
    if let Ok(snapshot) = db.snapshot("use").await {
        drop(snapshot.read(|tx| tx.query_row("SELECT 1", (), |_| Ok(()))).await);
    }
    let import = db.import("use", stream::iter(100..110_i64)).batch(Batch::Adaptive).lost_batches_max(1);
    let apply =
        |tx: &mut solewriter::WriteTransaction<'_>, x: &i64| tx.execute("INSERT INTO t VALUES (?1)", [x]);
    let imported = import.run(apply).await.map_err(|error| error.failure);
    tally.add("imported", u64::from(imported.is_ok()));
    let checked = db.maintain("use", |m| m.integrity_check()).await;
    if let Ok(found) = &checked {
        tally.check(found.is_empty(), Wrong::Corrupt, || format!("{found:?}"));
    }
    let text = serde_json::to_string(&(db.health(), db.stats(), db.recent_failures(), db.imports()));
    tally.check(text.is_ok(), Wrong::Broken, || format!("{text:?}"));
    drop((db.holder(), db.oldest_read(), db.import_records(10).await));
    written.is_ok()
}
