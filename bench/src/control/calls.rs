//! Attach and detach calls per second, each durable before it is answered, beside the same disk's own pace.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use znet_api::token::JoinToken;
use znet_tests::{FleetNode, NetworkSpec, World};

use super::part;
use crate::figures::{Bound, Figure, Samples};

/// Nodes that call at the same time, each one call at a time.
const NODES: usize = 100;
/// For how long.
const SECONDS: u64 = 10;

/// How the load is made.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    token: JoinToken,
    #[arg(long)]
    nodes: usize,
    #[arg(long)]
    seconds: u64,
    /// A directory on the controller's disk, for the comparison.
    #[arg(long)]
    scratch: PathBuf,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    calls: usize,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
    plain_per_second: f64,
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    let world = World::new("bench-calls")?;
    let prefixes = ["10.64.0.0/10"];
    // What is released may be given again at once, or a long run would exhaust any prefix.
    let spec = NetworkSpec { name: "bench", prefixes: &prefixes, rest: Some("1s") };
    let token = world.controller.create_network(&spec)?;
    let scratch = world.lab.dir().to_str().context("the lab's directory is no text")?.to_owned();
    let (nodes, seconds) = (NODES.to_string(), SECONDS.to_string());
    let args = ["--token", &token, "--nodes", &nodes, "--seconds", &seconds, "--scratch", &scratch];
    let seen: Seen = part(world.controller.host(), "calls", &args)?;
    world.passed();
    let rate = seen.calls as f64 / seen.seconds;
    Ok(vec![
        Figure::new(format!("attach and detach calls of {NODES} nodes"), rate, "1/s")
            .wanted(Bound::AtLeast(1000.0)),
        Figure::new("one such call, p50", seen.p50_ms, "ms"),
        Figure::new("one such call, p99", seen.p99_ms, "ms"),
        Figure::new("plain SQLite on the same disk, one durable commit each", seen.plain_per_second, "1/s"),
        Figure::new("calls for one plain commit", rate / seen.plain_per_second, "x"),
    ])
}

pub(super) async fn run(args: &Args) -> Result<Seen> {
    let plain_per_second = plain(&args.scratch)?;
    let fleet = FleetNode::join_all(&args.token, "call", args.nodes).await?;
    let begun = Instant::now();
    let until = begun + Duration::from_secs(args.seconds);
    let working = fleet.into_iter().map(|mut node| async move {
        let mut took = Vec::new();
        for number in 0.. {
            if Instant::now() >= until {
                break;
            }
            let call = Instant::now();
            node.attach(number).await?;
            took.push(call.elapsed());
            let call = Instant::now();
            node.detach(number).await?;
            took.push(call.elapsed());
        }
        Ok::<_, anyhow::Error>(took)
    });
    let took: Vec<Duration> =
        futures_util::future::try_join_all(working).await?.into_iter().flatten().collect();
    let (calls, seconds) = (took.len(), begun.elapsed().as_secs_f64());
    let samples = Samples::new(took);
    let (p50_ms, p99_ms) = (samples.percentile(50.0), samples.percentile(99.0));
    Ok(Seen { calls, seconds, p50_ms, p99_ms, plain_per_second })
}

/// How many small transactions a second SQLite makes durable here, one by one.
fn plain(directory: &Path) -> Result<f64> {
    let directory = tempfile::Builder::new().prefix("zt-plain-").tempdir_in(directory)?;
    let connection = rusqlite::Connection::open(directory.path().join("plain.db"))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute_batch("create table t (id integer primary key, content blob)")?;
    let begun = Instant::now();
    let mut done = 0_u32;
    while begun.elapsed() < Duration::from_secs(2) {
        connection.execute("insert into t (content) values (randomblob(200))", [])?;
        done += 1;
    }
    Ok(f64::from(done) / begun.elapsed().as_secs_f64())
}
