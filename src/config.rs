//! What a service can set, with units, defaults and the reason for each.

use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::Semaphore;

/// How much an acknowledged write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Acknowledged writes survive a crash of the process, but a power loss may drop the newest of them.
    ///
    /// `synchronous=NORMAL`: SQLite does not sync the WAL at COMMIT
    /// (<https://www.sqlite.org/pragma.html#pragma_synchronous>). The database is never corrupted by it.
    Normal,
    /// Acknowledged writes survive a power loss (the default).
    ///
    /// `synchronous=FULL`: SQLite syncs the WAL at every COMMIT. Group commit shares that cost.
    #[default]
    Full,
}

/// Who copies the WAL into the database file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpoints {
    /// The service, on a thread beside the writer (the default).
    #[default]
    Service,
    /// Another program, Litestream for example, which must see every page before it leaves the WAL.
    ///
    /// The service runs no checkpoint, not even when it closes. `wal_target_bytes` and `checkpoint_pages` mean
    /// nothing then; `wal_limit_bytes` still holds.
    External,
}

/// Settings of a service; every field has a default, so a configuration file names only what it changes.
///
/// Durations are written in whole milliseconds under the name of the field plus `_ms`. Unknown fields and values
/// that make no sense are refused with the name of the field, when read and again at open.
///
/// ```
/// use solewriter::Config;
/// # #[derive(serde::Deserialize)] struct App { database: Config }
/// let app: App = toml::from_str("[database]\ngroup_hold_max_ms = 10\nreaders = 8")?;
/// assert_eq!(app.database.group_hold_max.as_millis(), 10);
/// assert_eq!(app.database.queue_commands_max, Config::default().queue_commands_max);
///
/// let error = toml::from_str::<Config>("readers = 0").unwrap_err();
/// assert!(error.to_string().contains("readers"));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct Config {
    /// Prefix of the names of the service's threads.
    ///
    /// Default: `solewriter`. Linux shows 15 bytes of a thread's name, so keep it short.
    pub name: String,

    /// Whether open creates the database file if there is none. Default: true.
    pub create: bool,

    /// How much acknowledged writes survive unless a command asks for something else.
    ///
    /// Default: [`Durability::Full`], because "acknowledged" should mean it; group commit pays for it.
    pub durability: Durability,

    /// Whether SQLite enforces foreign keys. Default: true.
    pub foreign_keys: bool,

    /// How long a command waits for the write lock of another process before it fails as busy.
    ///
    /// Default: 10 s. Between commands of this service there is nothing to wait for. A deadline of the command
    /// that ends earlier counts too.
    #[serde(rename = "busy_timeout_ms", with = "millis")]
    pub busy_timeout: Duration,

    /// SQLite's page cache, in bytes, for each connection. Default: 64 MiB.
    pub cache_bytes: u64,

    /// How much of the file SQLite may map into memory, in bytes, for each connection. Default: 256 MiB.
    pub mmap_bytes: u64,

    /// How many prepared statements each connection keeps. Default: 128.
    pub statement_cache_capacity: usize,

    /// How many commands may wait in each lane. Default: 16,384 (about 8 MiB beyond their payload).
    pub queue_commands_max: usize,

    /// How many bytes of payload may wait in each lane, and so the largest command. Default: 64 MiB.
    pub queue_bytes_max: usize,

    /// How long a submission waits for room in its lane before it fails as full. Default: 30 s.
    #[serde(rename = "queue_wait_max_ms", with = "millis")]
    pub queue_wait_max: Duration,

    /// How long an accepted command without a deadline of its own waits to be started. Default: 30 s.
    ///
    /// Then it is taken back, with an error that names who holds the writer. So a command that waits, through
    /// another thread, for a command of its own service ends in an error and not in a deadlock.
    #[serde(rename = "command_wait_max_ms", with = "millis")]
    pub command_wait_max: Duration,

    /// How many commands one COMMIT may cover. Default: 4,096. With 1 there is no batching at all.
    pub group_commands_max: usize,

    /// How long a group may hold the write lock before it closes. Default: 25 ms.
    ///
    /// Checked before each command starts, with the time its label is expected to take.
    #[serde(rename = "group_hold_max_ms", with = "millis")]
    pub group_hold_max: Duration,

    /// How long the writer waits for company after the first command of a group. Default: 0.
    ///
    /// Commands that wait together are committed together anyway; a delay helps only where COMMIT is very
    /// slow and callers come one at a time.
    #[serde(rename = "group_linger_ms", with = "millis")]
    pub group_linger: Duration,

    /// How long a group of bulk and maintenance commands may hold the write lock. Default: 8 ms.
    ///
    /// Import batches aim at it: it bounds how long an interactive command waits behind them. An entry is not
    /// cut in two, so one that takes longer by itself is a batch of its own.
    #[serde(rename = "bulk_hold_target_ms", with = "millis")]
    pub bulk_hold_target: Duration,

    /// The share of the writer's time the bulk lane has for certain while interactive commands wait.
    /// Default: 20 %.
    pub bulk_share_percent: u8,

    /// The share of the writer's time the maintenance lane has for certain while others wait. Default: 5 %.
    pub maintenance_share_percent: u8,

    /// How long the writer may be held before a warning says by whom. Default: 1 s.
    #[serde(rename = "hold_warning_ms", with = "millis")]
    pub hold_warning: Duration,

    /// How many read-only connections are kept open. Default: 5.
    pub readers: usize,

    /// How many more may be opened for reads that have waited 2 ms while all of these are in use. Default: 10.
    pub readers_overflow: usize,

    /// How long a read waits for a free connection. Default: 10 s.
    #[serde(rename = "reader_wait_max_ms", with = "millis")]
    pub reader_wait_max: Duration,

    /// The age at which a read-only connection is closed and opened anew. Default: 1 h.
    #[serde(rename = "reader_age_max_ms", with = "millis")]
    pub reader_age_max: Duration,

    /// How old a read or a snapshot may become before it is ended. Default: 30 s.
    ///
    /// A read that goes on pins the WAL: nothing it might look at can be checkpointed away. The statement it
    /// runs is interrupted; Rust code is not, but its next statement is. A read's own deadline replaces it.
    #[serde(rename = "read_age_max_ms", with = "millis")]
    pub read_age_max: Duration,

    /// The WAL size the service keeps to while no reader pins the WAL, in bytes. Default: 64 MiB.
    ///
    /// Checkpoints usually keep it far below. Where they fall behind, the writer waits for them here.
    pub wal_target_bytes: u64,

    /// How many pages are written to the WAL between two checkpoints. Default: 4,000 (16 MiB with pages of 4 KiB).
    ///
    /// A quarter of that while groups are small. After a checkpoint the WAL begins anew; where many commands wait and
    /// their COMMITs do not sync, only once it is near its target.
    ///
    /// Fewer mean more syncs of the database file. More mean a WAL that grows for longer before it is written
    /// over, and a file that grows takes twice as long to sync as one that does not.
    pub checkpoint_pages: u32,

    /// The WAL size beyond which nothing is written, in bytes. Default: 1 GiB.
    ///
    /// Only a reader or another program that pins the WAL lets it grow so far. Then snapshots and reads that
    /// are older than a second are ended, commands wait for up to `busy_timeout`, and then they are refused.
    pub wal_limit_bytes: u64,

    /// Who copies the WAL into the database file. Default: [`Checkpoints::Service`].
    pub checkpoints: Checkpoints,

    /// How long the writer leaves the write lock free for another program, every `foreign_gap_interval`, once
    /// it has seen one write. Default: 110 ms; 0 leaves none.
    ///
    /// SQLite's waiters poll up to 100 ms apart and would never meet the lock free between two groups. The gap
    /// costs up to this share of the throughput, 2 %, and only while another program writes.
    #[serde(rename = "foreign_gap_ms", with = "millis")]
    pub foreign_gap: Duration,

    /// See `foreign_gap`. Default: 5 s.
    #[serde(rename = "foreign_gap_interval_ms", with = "millis")]
    pub foreign_gap_interval: Duration,

    /// After how many failures of the environment in a row (I/O errors, no memory, no file descriptors) writes
    /// are refused until a commit of the service's own succeeds. Default: 5.
    pub breaker_failures: u32,

    /// How long after that the first such commit is tried; the pause doubles up to 30 s. Default: 250 ms. A full
    /// disk is probed in the same way.
    #[serde(rename = "breaker_pause_ms", with = "millis")]
    pub breaker_pause: Duration,

    /// Whether a database on NFS, 9p, virtiofs, FUSE and the like is opened all the same. Default: false.
    ///
    /// The WAL needs shared memory and locks that such file systems keep wrongly or not at all
    /// (<https://www.sqlite.org/wal.html>): the database can be corrupted within minutes.
    pub allow_network_file_system: bool,

    /// Whether the schema of the file may call functions and virtual tables that are not marked as harmless.
    /// Default: false, since a file may come from someone else (<https://www.sqlite.org/security.html>).
    pub trusted_schema: bool,

    /// The largest string, blob or row, in bytes. Default: 256 MiB; SQLite's own limit is 1 GB.
    pub value_bytes_max: u32,

    /// How long shutdown may take when the last handle is dropped, and how long an open waits for a
    /// shutdown of the same file in this process. Default: 10 s.
    #[serde(rename = "shutdown_wait_max_ms", with = "millis")]
    pub shutdown_wait_max: Duration,

    /// From where on [`Database::health`](crate::Database::health) calls the service degraded or failing.
    pub health: HealthLimits,
}

/// From where on a service is called degraded or failing, beside `hold_warning`, from where on it is degraded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthLimits {
    /// A hold of the writer from which on the service is failing. Default: 30 s.
    #[serde(rename = "hold_failing_ms", with = "millis")]
    pub hold_failing: Duration,

    /// A wait of a command from which on it is degraded. Default: 5 s.
    #[serde(rename = "wait_degraded_ms", with = "millis")]
    pub wait_degraded: Duration,

    /// The part of a lane's room that is taken, from which on it is degraded. Default: 80 %.
    pub queue_degraded_percent: u8,

    /// The part of `wal_limit_bytes` from which on it is degraded. Default: 50 %.
    pub wal_degraded_percent: u8,

    /// The age of a read or a snapshot from which on it is degraded, if the WAL has outgrown `wal_target_bytes`
    /// meanwhile. Default: 10 s.
    #[serde(rename = "read_degraded_ms", with = "millis")]
    pub read_degraded: Duration,

    /// How many batches in a row an import may lose before it is degraded. Default: 3.
    pub import_lost_batches_degraded: u32,

    /// The longest import within an hour from which on the status of
    /// [`ImportFigures`](crate::ImportFigures) is degraded. Default: 5 s.
    ///
    /// It is a figure for dashboards that ask for it; a long import alone makes no service degraded.
    #[serde(rename = "import_duration_degraded_ms", with = "millis")]
    pub import_duration_degraded: Duration,
}

impl Default for HealthLimits {
    fn default() -> Self {
        Self {
            hold_failing: Duration::from_secs(30),
            wait_degraded: Duration::from_secs(5),
            queue_degraded_percent: 80,
            wal_degraded_percent: 50,
            read_degraded: Duration::from_secs(10),
            import_lost_batches_degraded: 3,
            import_duration_degraded: Duration::from_secs(5),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            name: "solewriter".into(),
            create: true,
            durability: Durability::Full,
            foreign_keys: true,
            busy_timeout: Duration::from_secs(10),
            cache_bytes: 64 * MIB,
            mmap_bytes: 256 * MIB,
            statement_cache_capacity: 128,
            queue_commands_max: 16_384,
            queue_bytes_max: 64 * MIB as usize,
            queue_wait_max: Duration::from_secs(30),
            command_wait_max: Duration::from_secs(30),
            group_commands_max: 4_096,
            group_hold_max: Duration::from_millis(25),
            group_linger: Duration::ZERO,
            bulk_hold_target: Duration::from_millis(8),
            bulk_share_percent: 20,
            maintenance_share_percent: 5,
            hold_warning: Duration::from_secs(1),
            readers: 5,
            readers_overflow: 10,
            reader_wait_max: Duration::from_secs(10),
            reader_age_max: Duration::from_secs(3600),
            read_age_max: Duration::from_secs(30),
            wal_target_bytes: 64 * MIB,
            checkpoint_pages: 4_000,
            wal_limit_bytes: 1024 * MIB,
            checkpoints: Checkpoints::Service,
            foreign_gap: Duration::from_millis(110),
            foreign_gap_interval: Duration::from_secs(5),
            breaker_failures: 5,
            breaker_pause: Duration::from_millis(250),
            allow_network_file_system: false,
            trusted_schema: false,
            value_bytes_max: 256 * MIB as u32,
            shutdown_wait_max: Duration::from_secs(10),
            health: HealthLimits::default(),
        }
    }
}

impl Config {
    /// Checks every value; open and deserialisation do this too.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field whose value makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        // SQLite counts milliseconds, pages and KiB in signed 32-bit integers; a day and a TiB are far below.
        const DAY: Duration = Duration::from_secs(86_400);
        const TIB: u64 = 1 << 40;
        // SQLITE_MAX_MMAP_SIZE of the bundled build (https://www.sqlite.org/mmap.html).
        const MMAP_MAX: u64 = 0x7fff_0000;
        let shares = u32::from(self.bulk_share_percent) + u32::from(self.maintenance_share_percent);
        let rules: [(&'static str, bool, &'static str); 32] = [
            ("name", !self.name.is_empty() && !self.name.contains('\0'), "must be text without NUL"),
            ("busy_timeout_ms", self.busy_timeout <= DAY, "must be at most a day"),
            ("cache_bytes", (1024..=TIB).contains(&self.cache_bytes), "must be between 1 KiB and 1 TiB"),
            ("mmap_bytes", self.mmap_bytes <= MMAP_MAX, "must be at most 2147418112, SQLite's own limit"),
            ("statement_cache_capacity", self.statement_cache_capacity <= 65_536, "must be at most 65536"),
            ("queue_commands_max", in_queue_range(self.queue_commands_max), "must be between 1 and 2^30"),
            ("queue_bytes_max", in_queue_range(self.queue_bytes_max), "must be between 1 and 2^30"),
            ("queue_wait_max_ms", self.queue_wait_max <= DAY, "must be at most a day"),
            ("group_commands_max", self.group_commands_max > 0, "must be at least 1"),
            ("group_hold_max_ms", positive(self.group_hold_max), "must be more than 0 and at most a day"),
            (
                "group_linger_ms",
                self.group_linger <= self.group_hold_max,
                "must not exceed group_hold_max_ms",
            ),
            ("bulk_hold_target_ms", positive(self.bulk_hold_target), "must be more than 0 and at most a day"),
            ("bulk_share_percent", self.bulk_share_percent > 0, "must be at least 1, else bulk starves"),
            (
                "maintenance_share_percent",
                self.maintenance_share_percent > 0,
                "must be at least 1, else maintenance starves",
            ),
            (
                "bulk_share_percent",
                shares <= 90,
                "and maintenance_share_percent must leave 10 to interactive",
            ),
            ("hold_warning_ms", positive(self.hold_warning), "must be more than 0 and at most a day"),
            ("readers", (1..=1_000).contains(&self.readers), "must be between 1 and 1000"),
            ("readers_overflow", self.readers_overflow <= 1_000, "must be at most 1000"),
            ("reader_age_max_ms", !self.reader_age_max.is_zero(), "must be more than 0"),
            (
                "wal_target_bytes",
                (65_536..=TIB).contains(&self.wal_target_bytes),
                "must be between 64 KiB and 1 TiB",
            ),
            ("checkpoint_pages", self.checkpoint_pages > 0, "must be at least 1"),
            ("command_wait_max_ms", positive(self.command_wait_max), "must be more than 0 and at most a day"),
            ("read_age_max_ms", positive(self.read_age_max), "must be more than 0 and at most a day"),
            (
                "wal_limit_bytes",
                self.wal_limit_bytes > self.wal_target_bytes && self.wal_limit_bytes <= TIB,
                "must be more than wal_target_bytes and at most 1 TiB",
            ),
            ("foreign_gap_ms", self.foreign_gap <= DAY, "must be at most a day"),
            (
                "foreign_gap_interval_ms",
                positive(self.foreign_gap_interval) && self.foreign_gap_interval > self.foreign_gap,
                "must be more than foreign_gap_ms and at most a day",
            ),
            ("breaker_failures", self.breaker_failures > 0, "must be at least 1"),
            ("breaker_pause_ms", positive(self.breaker_pause), "must be more than 0 and at most a day"),
            (
                "value_bytes_max",
                (1 << 20..=1_000_000_000).contains(&self.value_bytes_max),
                "must be between 1 MiB and 1 GB, SQLite's own limit",
            ),
            ("health.queue_degraded_percent", percent(self.health.queue_degraded_percent), PERCENT),
            ("health.wal_degraded_percent", percent(self.health.wal_degraded_percent), PERCENT),
            (
                "health.import_lost_batches_degraded",
                self.health.import_lost_batches_degraded > 0,
                "must be at least 1",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, reason)) => Err(ConfigError { field, reason }),
            None => Ok(()),
        }
    }

    /// The first field in which two configurations differ.
    pub(crate) fn first_difference(&self, other: &Self) -> Option<&'static str> {
        macro_rules! first_difference {
            ($($field:ident),*) => {{
                // Naming every field here makes the compiler refuse one that is forgotten.
                let Self { $($field),* } = self;
                $(if *$field != other.$field { return Some(stringify!($field)); })*
                None
            }};
        }
        first_difference!(
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
            health
        )
    }
}

const PERCENT: &str = "must be between 1 and 100";

fn percent(percent: u8) -> bool {
    (1..=100).contains(&percent)
}

fn positive(duration: Duration) -> bool {
    !duration.is_zero() && duration <= Duration::from_secs(86_400)
}

fn in_queue_range(permits: usize) -> bool {
    (1..=Semaphore::MAX_PERMITS.min(1 << 30)).contains(&permits)
}

// The derive above writes inherent functions (`remote = "Self"`); these add what a derive can't: the name of
// the field in every error, whatever the format, and the check of the values.
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(deserializer, &mut track);
        let config = match Self::deserialize(tracked) {
            Ok(config) => config,
            Err(error) => return Err(D::Error::custom(format_args!("{}: {error}", track.path()))),
        };
        config.validate().map_err(D::Error::custom)?;
        Ok(config)
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// A configuration value that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The field, as it is written in a configuration file.
    pub field: &'static str,
    /// What the value must be.
    pub reason: &'static str,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.reason)
    }
}

impl std::error::Error for ConfigError {}

/// Durations as whole milliseconds.
mod millis {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
