//! Wall-clock instants, handed in by whoever owns a clock.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch. The core compares instants and adds durations to them; it never reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The instant that many milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This instant and a duration later; saturates at the end of time.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this instant; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// What RFC 3339 can write: the seconds before the year 10000.
const RFC3339_END_SECS: u64 = 253_402_300_800;

/// RFC 3339, in UTC and whole seconds; "the end of time" for what that form cannot hold.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0 / 1000;
        if secs >= RFC3339_END_SECS {
            return f.write_str("the end of time");
        }
        let instant = SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        fmt::Display::fmt(&humantime::format_rfc3339_seconds(instant), f)
    }
}
