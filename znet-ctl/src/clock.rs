//! The clocks, as values that tests replace.
//!
//! Somebody may set the wall clock, or a time server move it by hours: what is compared with it is what people say as a
//! date, when a token expires and how long an address rests. Who is alive is told by a clock that only passes, so that no
//! such jump makes a live node seem gone or a dead one live.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use znet_core::time::Timestamp;

type Tell = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Tells the time. Order never depends on it.
#[derive(Clone)]
pub struct Clock {
    wall: Tell,
    steady: Tell,
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self::on_wall(wall)
    }

    /// This wall clock, and the machine's steady one.
    pub fn on_wall(wall: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let (began, start) = (Instant::now(), wall());
        Self { wall: Arc::new(wall), steady: Arc::new(move || start.plus(began.elapsed())) }
    }

    /// Clocks that both show what the function says.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let tell: Tell = Arc::new(now);
        Self { wall: tell.clone(), steady: tell }
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        (self.wall)()
    }

    /// A time that only passes, in its own count: to be compared with itself alone.
    pub fn steady(&self) -> Timestamp {
        (self.steady)()
    }

    /// The time of day when the steady clock showed this.
    pub fn was(&self, steady: Timestamp) -> Timestamp {
        let ago = self.steady().as_millis().saturating_sub(steady.as_millis());
        Timestamp::from_millis(self.now().as_millis().saturating_sub(ago))
    }
}

fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}
