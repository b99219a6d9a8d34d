//! `./x bench rotation`: all keys of thirty containers changed under a flood, until all pairs had their turn.
//!
//! A thousand pings a second between all 435 pairs at once are more than two cores carry. So it goes in rounds: in each all
//! keys are changed once, from the command until the former ones are gone, while some pairs ping each other every
//! millisecond and all others four times a second. First the same pings are sent without a change: only of a
//! machine that carries them at rest does a lost one say anything.

mod flows;
mod rounds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;
use znet_tests::{FIRST_PACKET, Member, NetworkSpec, Node, World};

use self::flows::{Flows, Tally};
use self::rounds::{Pair, matchings};
use crate::default_json;
use crate::figures::{Bound, Figure, Samples};
use crate::inside::outside;

/// Containers, on so many nodes.
const CONTAINERS: usize = 30;
const NODES: usize = 3;
/// For how long pings are sent without a change, and after one.
const AT_REST: Duration = Duration::from_secs(2);
/// How long a change may take.
const CHANGE: &str = "55s";
/// Rounds of a quick run.
const QUICK: usize = 2;
/// Part of the pings that were due which have to be sent.
const PACE: f64 = 0.98;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many of the 29 matchings of 15 pairs a round has.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    matchings: u8,
    /// So many rounds and no more.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..))]
    rounds: Option<u8>,
    /// Two rounds.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Where the figures are written as JSON [default: target/bench/rotation.json].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was seen in a round.
#[derive(Debug, Serialize)]
struct Round {
    /// Pairs that pinged each other every millisecond.
    pairs: usize,
    sent: usize,
    lost: usize,
    longest_ms: f64,
    /// Of all other pairs.
    others: usize,
    others_sent: usize,
    others_lost: usize,
    others_longest_ms: f64,
    change_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    figures: Vec<Figure>,
    rounds: Vec<Round>,
}

/// Thirty containers that ping each other.
struct Bench {
    flows: Flows,
    /// The number of each pair's flow.
    numbers: BTreeMap<Pair, usize>,
    /// Kept, as their agents end with them.
    _nodes: Vec<Node>,
    world: World,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    netns_harness::require_root()?;
    let mut bench = Bench::new()?;
    let all = matchings(CONTAINERS);
    let rounds: Vec<Vec<Pair>> = all.chunks(usize::from(args.matchings)).map(|some| some.concat()).collect();
    let most = if args.quick { QUICK } else { args.rounds.map_or(rounds.len(), usize::from) };
    let mut seen = Vec::new();
    for (at, pairs) in rounds.iter().enumerate().take(most) {
        let round = bench.round(pairs).with_context(|| format!("round {}", at + 1))?;
        println!("round {:>2} of {}: {}", at + 1, rounds.len().min(most), round.line());
        seen.push(round);
    }
    let figures = figures(&seen);
    figures.iter().for_each(|figure| println!("{}", figure.line()));
    let lost: usize = seen.iter().map(|round| round.lost + round.others_lost).sum();
    let path = args.json.clone().unwrap_or_else(|| default_json("rotation"));
    save(&Report { figures, rounds: seen }, &path)?;
    if lost > 0 {
        bail!("{lost} pings were lost");
    }
    bench.world.passed();
    Ok(())
}

fn figures(rounds: &[Round]) -> Vec<Figure> {
    let sum = |part: fn(&Round) -> usize| rounds.iter().map(part).sum::<usize>() as f64;
    let most = |part: fn(&Round) -> f64| rounds.iter().map(part).fold(0.0, f64::max);
    let changes = rounds.iter().map(|round| Duration::from_secs_f64(round.change_seconds)).collect();
    vec![
        Figure::new("pairs that pinged each other every millisecond", sum(|round| round.pairs), ""),
        Figure::new("pings of theirs", sum(|round| round.sent), ""),
        Figure::new("of these lost", sum(|round| round.lost), "").wanted(Bound::AtMost(0.0)),
        Figure::new("longest time until an answer", most(|round| round.longest_ms), "ms"),
        Figure::new("pings between the other pairs, four a second", sum(|round| round.others_sent), ""),
        Figure::new("of these lost", sum(|round| round.others_lost), "").wanted(Bound::AtMost(0.0)),
        Figure::new("longest time until an answer", most(|round| round.others_longest_ms), "ms"),
        Figure::new(
            "a change of all keys, the 15 s after it included, p50",
            Samples::new(changes).percentile(50.0) / 1e3,
            "s",
        ),
        Figure::new("the longest of them", most(|round| round.change_seconds), "s"),
    ]
}

fn save(report: &Report, path: &Path) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, serde_json::to_string_pretty(report)?)
        .with_context(|| format!("writing {}", path.display()))?;
    println!("\n{} rounds; written to {}", report.rounds.len(), path.display());
    Ok(())
}

impl Bench {
    fn new() -> Result<Self> {
        let mut world = World::new("bench-rotation")?;
        let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
        let token = world.controller.create_network(&spec)?;
        let mut nodes = Vec::new();
        for number in 0..NODES {
            nodes.push(world.node(&format!("n{number}"), &[&token])?);
        }
        // Of neighbouring numbers on different nodes, so that every matching has pairs of one node and of two.
        let mut members = Vec::new();
        for (number, node) in (0..CONTAINERS).zip(nodes.iter().cycle()) {
            members.push((node, node.attach("acme", &format!("c{number}"))?));
        }
        let mut flows = Flows::open(ways(&members)?)?;
        flows.wait_answered(FIRST_PACKET)?;
        let pairs = (0..CONTAINERS).flat_map(|a| (a + 1..CONTAINERS).map(move |b| (a, b)));
        let numbers = pairs.zip(0..).collect();
        Ok(Self { flows, numbers, _nodes: nodes, world })
    }

    /// One change of all keys while these pairs ping each other every millisecond.
    fn round(&mut self, pairs: &[Pair]) -> Result<Round> {
        let fast: BTreeSet<usize> = pairs.iter().filter_map(|pair| self.numbers.get(pair).copied()).collect();
        let (rest, took) = during(&mut self.flows, &fast, || {
            let begun = Instant::now();
            std::thread::sleep(AT_REST);
            Ok(begun.elapsed())
        })?;
        let due = fast.len() as f64 * took.as_secs_f64() * 1e3;
        let [quick, slow] = rest;
        if quick.lost + slow.lost > 0 || (quick.sent as f64) < PACE * due {
            bail!(
                "this machine does not carry it at rest: of {due:.0} pings that were due {} were sent, and {} lost; \
                 fewer pairs a round are had by --matchings",
                quick.sent,
                quick.lost + slow.lost
            );
        }
        let controller = &self.world.controller;
        let before = keys(&controller.json(&["container", "list", "acme"])?)?;
        let ([quick, slow], (took, after)) = during(&mut self.flows, &fast, || {
            let begun = Instant::now();
            let changed = controller.json(&["key", "rotate", "acme", "--all", "--wait", CHANGE])?;
            let took = begun.elapsed();
            std::thread::sleep(AT_REST);
            Ok((took, keys(&changed)?))
        })?;
        if after.len() != CONTAINERS || !before.is_disjoint(&after) {
            bail!("not all keys were changed: {before:?}, {after:?}");
        }
        Ok(Round::new((fast.len(), quick), (self.numbers.len() - fast.len(), slow), took))
    }
}

impl Round {
    fn new((pairs, quick): (usize, Tally), (others, slow): (usize, Tally), change: Duration) -> Self {
        Self {
            pairs,
            sent: quick.sent,
            lost: quick.lost,
            longest_ms: quick.longest.as_secs_f64() * 1e3,
            others,
            others_sent: slow.sent,
            others_lost: slow.lost,
            others_longest_ms: slow.longest.as_secs_f64() * 1e3,
            change_seconds: change.as_secs_f64(),
        }
    }

    fn line(&self) -> String {
        format!(
            "{} pairs sent {} pings, {} lost, longest {:.0} ms; {} others sent {}, {} lost, longest {:.0} ms; \
             all keys changed in {:.1} s",
            self.pairs,
            self.sent,
            self.lost,
            self.longest_ms,
            self.others,
            self.others_sent,
            self.others_lost,
            self.others_longest_ms,
            self.change_seconds
        )
    }
}

/// Pings while something else is done, whatever comes of it.
fn during<T>(
    flows: &mut Flows,
    fast: &BTreeSet<usize>,
    what: impl FnOnce() -> Result<T>,
) -> Result<([Tally; 2], T)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| flows.ping(fast, &over));
        let done = what();
        over.store(true, Ordering::Relaxed);
        let tallies = pinging.join().ok().context("the pinging thread panicked")?;
        Ok((tallies, done?))
    })
}

/// From each container to all those of larger numbers.
fn ways(members: &[(&Node, Member)]) -> Result<Vec<(PathBuf, Vec<Ipv6Addr>)>> {
    let addresses: Vec<Ipv6Addr> = members.iter().map(|(_, member)| v6(member)).collect::<Result<_>>()?;
    let later = |number: usize| addresses.iter().skip(number + 1).copied().collect();
    let ways = members.iter().enumerate();
    ways.map(|(number, (node, member))| Ok((outside(node, member)?, later(number)))).collect()
}

fn v6(member: &Member) -> Result<Ipv6Addr> {
    match member.v6()? {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(address) => bail!("{address} is no IPv6 address"),
    }
}

/// The public keys of listed containers.
fn keys(listed: &Value) -> Result<BTreeSet<String>> {
    let key = |one: &Value| Some(one.get("public_key")?.as_str()?.to_owned());
    let listed = listed.as_array().context("no list of containers")?;
    listed.iter().map(key).collect::<Option<_>>().context("a container without a key")
}
