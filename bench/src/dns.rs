//! `./x bench dns`: how long a container's resolver takes over an answer.
//!
//! One container asks at a steady rate, in groups of a millisecond's worth, whatever has been answered by then, as many
//! programs in one container would: for addresses of both families, for names of addresses, and for names that there are
//! not. The time runs from the sending of a question to the reading of its answer, by a thread within the namespace. Then
//! the same is done while another container floods its own resolver.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use znet_agent::dns::{ADDRESS, PORT};
use znet_tests::{Member, NetworkSpec, Node, World};

use crate::default_json;
use crate::figures::{Bound, Figure, Samples};
use crate::inside::{enter, outside};
use crate::process::cpu_seconds;

/// Containers of the network.
const CONTAINERS: usize = 20;
/// How long the next answer is waited for.
const TAIL: Duration = Duration::from_secs(1);
/// Questions of one group are sent at once.
const TICK: Duration = Duration::from_millis(1);
const NETWORK: &str = "bench";
/// Types of records (RFC 1035, section 3.2.2; RFC 3596).
const A: u16 = 1;
const AAAA: u16 = 28;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For how long questions are asked.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    seconds: u32,
    /// Questions a second.
    #[arg(long, value_name = "COUNT", default_value_t = 5_000)]
    rate: u32,
    /// Where the figures are written as JSON [default: target/bench/dns.json].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was seen of the questions of one run.
struct Seen {
    took: Samples,
    answered: usize,
    cpu: f64,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    netns_harness::require_root()?;
    let mut world = World::new("bench-dns")?;
    let spec = NetworkSpec { name: NETWORK, prefixes: &["10.64.0.0/10"], rest: None };
    let token = world.controller.create_network(&spec)?;
    let node = world.node("n1", &[&token])?;
    let mut members = Vec::new();
    for number in 0..CONTAINERS {
        members.push(node.attach_with(NETWORK, &format!("c{number}"), &[])?);
    }
    let [asking, flooding, ..] = members.as_slice() else { bail!("too few containers") };
    let alone = measure(&node, asking, args)?;
    let flood = Flood::start(outside(&node, flooding)?);
    let beside = measure(&node, asking, args);
    flood.stop()?;
    let beside = beside?;
    world.passed();
    let total = f64::from(args.rate) * f64::from(args.seconds);
    let what = format!("DNS answer at {} questions a second", args.rate);
    let lost = |seen: &Seen| 100.0 * (1.0 - seen.answered as f64 / total);
    let figures = [
        Figure::new(format!("{what}, p50"), alone.took.percentile(50.0), "ms"),
        Figure::new(format!("{what}, p99"), alone.took.percentile(99.0), "ms").wanted(Bound::AtMost(1.0)),
        Figure::new(format!("{what}, p99.9"), alone.took.percentile(99.9), "ms"),
        Figure::new(format!("{what}, not answered"), lost(&alone), "%").wanted(Bound::AtMost(0.0)),
        Figure::new("the agent's CPU time for one of them", alone.cpu / total * 1e6, "us"),
        Figure::new(format!("{what}, beside a flood, p50"), beside.took.percentile(50.0), "ms"),
        Figure::new(format!("{what}, beside a flood, p99"), beside.took.percentile(99.0), "ms"),
        Figure::new(format!("{what}, beside a flood, not answered"), lost(&beside), "%"),
    ];
    figures.iter().for_each(|figure| println!("{}", figure.line()));
    let path = args.json.clone().unwrap_or_else(|| default_json("dns"));
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(&path, serde_json::to_string_pretty(&figures)?)
        .with_context(|| format!("writing {}", path.display()))?;
    let missed = figures.iter().filter(|figure| !figure.reached()).count();
    println!("\n{} figures, {missed} not reached; written to {}", figures.len(), path.display());
    Ok(())
}

fn measure(node: &Node, member: &Member, args: &Args) -> Result<Seen> {
    let (netns, agent) = (outside(node, member)?, node.agent()?.pid());
    let before = cpu_seconds(agent)?;
    let (rate, seconds) = (args.rate, args.seconds);
    let asking = std::thread::spawn(move || {
        enter(&netns)?;
        ask(rate, seconds)
    });
    let took = asking.join().unwrap_or_else(|_| bail!("the asking thread panicked"))?;
    let cpu = cpu_seconds(agent)? - before;
    Ok(Seen { answered: took.len(), took: Samples::new(took), cpu })
}

fn resolver() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(SocketAddr::from((ADDRESS, PORT)))?;
    Ok(socket)
}

/// One question (RFC 1035, section 4.1).
fn question(id: u16, host: &str, kind: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    for field in [id, 0x0100, 1, 0, 0, 0] {
        message.extend(field.to_be_bytes());
    }
    for label in [host, NETWORK, "znet"] {
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend(1u16.to_be_bytes());
    message
}

/// Asks, and tells how long each answer took that came.
fn ask(rate: u32, seconds: u32) -> Result<Vec<Duration>> {
    let socket = resolver()?;
    socket.set_read_timeout(Some(TAIL))?;
    let sent: Vec<AtomicU64> = (0..=u16::MAX).map(|_| AtomicU64::new(0)).collect();
    let (start, total) = (Instant::now(), rate * seconds);
    // Read on a thread of its own: the timeouts of sockets are too coarse to send by.
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_answers(&socket, &sent, start, total));
        let mut asked = 0;
        while asked < total {
            let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u32;
            while asked < due.min(total) {
                let (name, kind) = match asked % 3 {
                    0 => (format!("c{}", asked as usize % CONTAINERS), A),
                    1 => (format!("c{}", asked as usize % CONTAINERS), AAAA),
                    _ => (format!("missing-{asked}"), A),
                };
                let id = (asked & u32::from(u16::MAX)) as u16;
                let message = question(id, &name, kind);
                if let Some(slot) = sent.get(usize::from(id)) {
                    slot.store(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
                }
                socket.send(&message)?;
                asked += 1;
            }
            std::thread::sleep(TICK);
        }
        reading.join().unwrap_or_else(|_| bail!("the reading thread panicked"))
    })
}

/// Reads until all answers are there, or none has come for some time.
fn read_answers(socket: &UdpSocket, sent: &[AtomicU64], start: Instant, total: u32) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(total as usize);
    let mut buffer = [0; 2_048];
    while took.len() < total as usize {
        let Ok(length) = socket.recv(&mut buffer) else { break };
        let now = start.elapsed();
        if let Some(&[high, low]) = buffer.get(..length).and_then(<[u8]>::first_chunk) {
            let slot = sent.get(usize::from(u16::from_be_bytes([high, low])));
            let at = slot.map(|slot| Duration::from_nanos(slot.load(Ordering::Relaxed)));
            took.extend(at.map(|at| now.saturating_sub(at)));
        }
    }
    Ok(took)
}

/// A container that asks as fast as it can and reads no answer.
struct Flood {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Flood {
    fn start(netns: PathBuf) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let thread = std::thread::spawn(move || {
            enter(&netns)?;
            let (socket, message) = (resolver()?, question(7, "c0", A));
            while !until.load(Ordering::Relaxed) {
                socket.send(&message)?;
            }
            Ok(())
        });
        Self { over, thread }
    }

    fn stop(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| bail!("the flooding thread panicked"))
    }
}
