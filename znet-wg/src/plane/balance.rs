//! When a worker has too much to do for one core, and which of its sources another one should have.
//!
//! Sources begin together: a packet and its answer then wake one thread and not two, and a stream's acknowledgements are
//! served beside its packets without a second lock on its session. They move apart when that fills a core and each of two is a good
//! part of it, and come home when there is little to do. A source moves between two batches, so no packet overtakes another.

use std::time::{Duration, Instant};

/// How long a worker's use of its time is added up.
pub(super) const WINDOW: Duration = Duration::from_millis(20);
/// A worker that is busy for more than this part of the time is full, in percent.
const FULL: u32 = 90;
/// What a source needs at least for a move to be worth it, in percent of the time.
const WORTH_MOVING: u32 = 25;
/// A worker that is busy for less than this has room, in percent.
const HAS_ROOM: u32 = 25;
/// For how long a source that moved must have little to do before it goes home.
const QUIET: Duration = Duration::from_secs(1);

/// How one worker spends its time.
#[derive(Debug)]
pub(super) struct Balance {
    since: Instant,
    busy: Vec<(u64, Duration)>,
    /// When it last had much to do.
    much_at: Instant,
}

/// What is known of a worker at the end of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// How busy it was, in percent.
    pub(super) busy: u32,
    /// A source that another worker should have, if one has room.
    pub(super) give: Option<u64>,
    /// It had little to do for a while: what is not its own should go home.
    pub(super) quiet: bool,
}

impl Balance {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, busy: Vec::new(), much_at: now }
    }

    /// Whether a worker that was so busy lately can have a source more.
    pub(super) fn has_room(busy: u32) -> bool {
        busy < HAS_ROOM
    }

    /// A source was served for so long. At the end of a window, what came of it.
    pub(super) fn served(&mut self, source: u64, took: Duration, now: Instant) -> Option<Window> {
        match self.busy.iter_mut().find(|(id, _)| *id == source) {
            Some((_, sum)) => *sum += took,
            None => self.busy.push((source, took)),
        }
        let window = now.duration_since(self.since);
        if window < WINDOW {
            return None;
        }
        let percent = |time: Duration| (time.as_secs_f64() / window.as_secs_f64() * 100.0) as u32;
        let busy = percent(self.busy.iter().map(|(_, time)| *time).sum());
        if busy >= HAS_ROOM {
            self.much_at = now;
        }
        let worth: Vec<(u64, Duration)> =
            self.busy.iter().copied().filter(|(_, time)| percent(*time) >= WORTH_MOVING).collect();
        let lightest = worth.iter().min_by_key(|(_, time)| *time).map(|(id, _)| *id);
        let give = lightest.filter(|_| busy >= FULL && worth.len() > 1);
        let quiet = now.duration_since(self.much_at) > QUIET;
        self.busy.clear();
        self.since = now;
        Some(Window { busy, give, quiet })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves sources for so many milliseconds each, in turn, within so many.
    fn serve(balance: &mut Balance, start: Instant, every: u64, sources: &[(u64, u64)]) -> Vec<Window> {
        let turns = 0..200 / every;
        let turn = |turn: u64| {
            let now = start + Duration::from_millis((turn + 1) * every);
            let mut window = None;
            for (id, millis) in sources {
                window = balance.served(*id, Duration::from_millis(*millis), now).or(window);
            }
            window
        };
        turns.filter_map(turn).collect()
    }

    #[test]
    fn a_source_is_given_away_when_two_together_are_too_much() {
        let start = Instant::now();
        let full = serve(&mut Balance::new(start), start, 10, &[(1, 6), (2, 4)]);
        assert!(full.iter().any(|window| window.give == Some(2) && window.busy >= FULL), "{full:?}");
        for sources in [&[(1, 9), (2, 1)][..], &[(1, 10)], &[(1, 4), (2, 4)]] {
            let windows = serve(&mut Balance::new(start), start, 10, sources);
            assert!(windows.iter().all(|window| window.give.is_none()), "{sources:?}: {windows:?}");
        }
    }

    #[test]
    fn a_worker_is_quiet_once_it_had_little_to_do_for_a_while() {
        let start = Instant::now();
        let mut balance = Balance::new(start);
        serve(&mut balance, start, 10, &[(1, 10)]);
        let little = |balance: &mut Balance, millis: u64| {
            balance
                .served(1, Duration::from_micros(10), start + Duration::from_millis(millis))
                .map(|w| w.quiet)
        };
        assert_eq!(little(&mut balance, 500), Some(false));
        assert_eq!(little(&mut balance, 1_500), Some(true));
    }
}
