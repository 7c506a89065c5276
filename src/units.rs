//! How times are written where others read them: whole units, the unit in the name of the field.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serializer;

/// Whole microseconds, for fields that end in `_us`.
pub(crate) fn micros<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(whole(duration.as_micros()))
}

/// Whole milliseconds, for fields that end in `_ms`.
pub(crate) fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(whole(duration.as_millis()))
}

/// Milliseconds since 1970, for fields that end in `_at_ms`.
pub(crate) fn unix_millis<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(to_unix_millis(*time))
}

pub(crate) fn to_unix_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn from_unix_millis(millis: i64) -> SystemTime {
    let since = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

fn whole(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
