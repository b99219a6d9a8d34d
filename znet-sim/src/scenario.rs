//! What a seed draws: how large the network is, and which faults there are and how often. Not every run has every fault, as
//! some hide others.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{Rng, RngExt as _};

/// What is drawn for one run. Rates are in thousandths.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) nodes: usize,
    /// Controllers over one store. With one the store is on its own disk.
    pub(crate) controllers: usize,
    /// Container names of each node.
    pub(crate) names: usize,
    /// Length of the IPv4 prefix: some networks are short of addresses.
    pub(crate) prefix4: u8,
    pub(crate) rest: Duration,
    pub(crate) ephemeral_ttl: Duration,
    /// Nodes of that many in ten are ephemeral.
    pub(crate) ephemeral: u32,
    /// How long there are faults and wishes.
    pub(crate) troubled: Duration,
    /// Between two wishes of a node.
    pub(crate) work_every: u64,
    /// Wishes of an operator that are for other keys.
    pub(crate) keys_changed: u32,
    /// Revisions that the store's log keeps.
    pub(crate) log_kept: usize,
    pub(crate) delay: RangeInclusive<u64>,
    pub(crate) drop: u32,
    pub(crate) duplicate: u32,
    pub(crate) reorder: u32,
    pub(crate) partition_every: Option<u64>,
    pub(crate) agent_crash_every: Option<u64>,
    pub(crate) controller_crash_every: Option<u64>,
    /// Whether a crash of the controller may be a power cut.
    pub(crate) power_cuts: bool,
    pub(crate) commit_refused: u32,
    /// Commits that are reported as failed and happen.
    pub(crate) commit_lies: u32,
    /// Commits whose flush fails: they are in the cache and may be lost.
    pub(crate) flush_fails: u32,
    pub(crate) disk_full_every: Option<u64>,
    /// Writes of an agent's file that fail.
    pub(crate) keep_fails: u32,
    /// Steps on a host that fail, and after which the agent crashes.
    pub(crate) step_fails: u32,
}

impl Scenario {
    pub(crate) fn draw<R: Rng>(rng: &mut R) -> Self {
        let (nodes, names, troubled, work_every) = match rng.random_range(0..100) {
            0..70 => (rng.random_range(2..=12), rng.random_range(1..=4), 60..=150, 400..=4_000),
            70..95 => (rng.random_range(13..=48), rng.random_range(1..=4), 30..=90, 1_000..=8_000),
            _ => (rng.random_range(100..=300), rng.random_range(1..=2), 10..=30, 5_000..=20_000),
        };
        let mut sometimes =
            |range: RangeInclusive<u64>| rng.random_bool(0.5).then(|| rng.random_range(range));
        let (partition_every, agent_crash_every) = (sometimes(2_000..=20_000), sometimes(1_000..=15_000));
        let (controller_crash_every, disk_full_every) =
            (sometimes(5_000..=40_000), sometimes(5_000..=40_000));
        let mut rate = |most: u64| u32::try_from(sometimes(1..=most).unwrap_or(0)).unwrap_or(0);
        let (drop, duplicate, reorder) = (rate(10), rate(50), rate(50));
        let (commit_refused, commit_lies, flush_fails) = (rate(50), rate(50), rate(30));
        let (keep_fails, step_fails) = (rate(50), rate(50));
        let keys_changed = rate(500);
        let slowest = *[5, 50, 400].get(rng.random_range(0..3)).unwrap_or(&5);
        // Room for about one and a half times as many containers as there are names.
        let wanted = u32::try_from(nodes * names * 3 / 2 + 4).unwrap_or(u32::MAX);
        let bits = 32 - wanted.next_power_of_two().trailing_zeros().max(3);
        let controllers = *[1, 1, 2, 3].get(rng.random_range(0..4)).unwrap_or(&1);
        Self {
            nodes,
            controllers,
            names,
            prefix4: u8::try_from(bits).unwrap_or(16),
            rest: Duration::from_millis(rng.random_range(2_000..=40_000)),
            ephemeral_ttl: Duration::from_millis(rng.random_range(20_000..=60_000)),
            ephemeral: rng.random_range(0..=5),
            troubled: Duration::from_secs(rng.random_range(troubled)),
            work_every: rng.random_range(work_every),
            keys_changed,
            log_kept: *[16, 256, 4096].get(rng.random_range(0..3)).unwrap_or(&256),
            delay: 0..=slowest,
            drop,
            duplicate,
            reorder,
            partition_every,
            agent_crash_every,
            controller_crash_every,
            power_cuts: rng.random_bool(0.5),
            commit_refused,
            commit_lies,
            flush_fails,
            disk_full_every,
            keep_fails,
            step_fails,
        }
    }
}
