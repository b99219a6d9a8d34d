//! How many questions a container may ask: a token bucket, told the time by its caller.
//!
//! It is kept as one point in time (the generic cell rate algorithm, ITU-T I.371): each question moves it on by what a
//! question costs, and it may be ahead of the clock by no more than a burst.

use std::time::{Duration, Instant};

/// What is left of a container's right to ask.
#[derive(Clone, Debug)]
pub struct Bucket {
    each: Duration,
    burst: Duration,
    paid_until: Instant,
}

impl Bucket {
    /// A full bucket for so many questions a second, and `burst` at once.
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let each = Duration::from_secs(1) / per_second.max(1);
        Self { each, burst: each * burst, paid_until: now }
    }

    /// How long nothing may be asked any more; zero when something may.
    pub fn wait(&self, now: Instant) -> Duration {
        let ahead = self.paid_until.saturating_duration_since(now);
        (ahead + self.each).saturating_sub(self.burst)
    }

    /// Pays for one question.
    pub fn pay(&mut self, now: Instant) {
        self.paid_until = self.paid_until.max(now) + self.each;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_asked_than_the_burst_and_the_rate_allow_and_an_idle_bucket_fills_no_further() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1_000, 50, start);
        let asked = |bucket: &mut Bucket, at: Instant| {
            (0..10_000).take_while(|_| bucket.wait(at).is_zero().then(|| bucket.pay(at)).is_some()).count()
        };
        assert_eq!(asked(&mut bucket, start), 50);
        assert_eq!(bucket.wait(start), Duration::from_millis(1));
        assert_eq!(asked(&mut bucket, start + Duration::from_millis(20)), 20);
        assert_eq!(asked(&mut bucket, start + Duration::from_secs(3600)), 50);
    }
}
