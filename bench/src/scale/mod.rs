//! `./x bench scale`: one controller process and thousands of agents.
//!
//! The agents are real ones as far as the controller can tell: each has its own key, TLS connection and stream, verifies what
//! it is sent and acknowledges it. They share two cores with the controller, so every figure has the agents' own work in it.

mod agent;
mod crowd;
mod delta;
mod history;
mod plot;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use tokio::runtime::Runtime;
use znet_api::token::JoinToken;
use znet_core::id::Revision;
use znet_tests::{Controller, FleetNode, NetworkSpec, World};

use self::agent::{Agent, Kept};
use self::crowd::Crowd;
use self::plot::Curve;
use crate::default_json;
use crate::figures::{Bound, Figure, Samples};
use crate::process::{cpu_seconds, resident};

/// Agents that follow the map while the others join.
const FOLLOWERS: usize = 100;
/// Changes of which each is waited for.
const CHANGES: usize = 30;
/// Changes a second of the churn, and for how long.
const CHURN: u64 = 100;
const CHURN_SECONDS: u64 = 20;
/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(180);
/// Nodes that populate at the same time.
const WORKING: usize = 200;
/// Threads of the agents.
const THREADS: usize = 2;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Agents, each with its own connection and stream.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(200..=10_000))]
    agents: u32,
    /// Containers of the network, the same number on every node.
    #[arg(long, default_value_t = 50_000)]
    containers: usize,
    /// Containers of the network with which a controller is started anew.
    #[arg(long, default_value_t = 100_000)]
    restart: usize,
    /// Where the figures are written as JSON, and beside it the plot [default: target/bench/scale.json].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    netns_harness::require_root()?;
    let mut report = Report::default();
    agent_cost(&mut report)?;
    crowd(args, &mut report)?;
    restart(args.restart, &mut report)?;
    report.write(&args.json.clone().unwrap_or_else(|| default_json("scale")))
}

/// Figures and curves, printed as they come.
#[derive(Default)]
struct Report {
    figures: Vec<Figure>,
    curves: Vec<Curve>,
}

impl Report {
    fn title(&self, text: &str) {
        println!("\n{text}");
    }

    fn add(&mut self, figure: Figure) {
        println!("{}", figure.line());
        self.figures.push(figure);
    }

    fn write(&self, path: &std::path::Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(&self.figures)?)
            .with_context(|| format!("writing {}", path.display()))?;
        let picture = path.with_extension("svg");
        std::fs::write(&picture, plot::svg(&self.curves))
            .with_context(|| format!("writing {}", picture.display()))?;
        let missed = self.figures.iter().filter(|figure| !figure.reached()).count();
        println!(
            "\n{} figures, {missed} not reached; written to {} and {}",
            self.figures.len(),
            path.display(),
            picture.display()
        );
        Ok(())
    }
}

fn agent_cost(report: &mut Report) -> Result<()> {
    report.title("What a delta of one container costs an agent: decode, verify, apply");
    let mut points = Vec::new();
    for size in delta::SIZES {
        let samples = delta::measure(size)?;
        let micros = samples.percentile(50.0) * 1e3;
        points.push((size as f64, micros));
        let bound = delta::BOUND.as_secs_f64() * 1e6;
        report.add(
            Figure::new(format!("in a map of {size} containers, p50"), micros, "µs")
                .wanted(Bound::AtMost(bound)),
        );
        report.add(Figure::new(
            format!("in a map of {size} containers, p99"),
            samples.percentile(99.0) * 1e3,
            "µs",
        ));
    }
    let title = "a delta at an agent".to_owned();
    report.curves.push(Curve { title, unit: "µs", across: "containers in the map", points });
    Ok(())
}

/// A network with its agents.
struct Scene {
    world: World,
    runtime: Runtime,
    crowd: Arc<Crowd>,
    agents: usize,
}

impl Scene {
    fn new(agents: usize) -> Result<Self> {
        let world = World::new("bench-scale")?;
        let spec = NetworkSpec { name: "bench", prefixes: &["10.64.0.0/10"], rest: Some("1s") };
        let token: JoinToken = world.controller.create_network(&spec)?.parse()?;
        let namespace = format!("/proc/{}/ns/net", world.controller.process()?.pid());
        let runtime = crowd::runtime(&namespace, THREADS)?;
        Ok(Self { world, runtime, crowd: Arc::new(Crowd::new(token, agents)), agents })
    }

    /// Runs something on the agents' threads.
    fn run<T: Send + 'static>(&self, what: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.runtime.block_on(self.runtime.spawn(what))?
    }

    fn controller(&self) -> &Controller {
        &self.world.controller
    }

    fn cpu(&self) -> Result<f64> {
        cpu_seconds(self.controller().process()?.pid())
    }

    fn memory(&self) -> Result<f64> {
        resident(self.controller().process()?.pid())
    }

    /// A counter of the controller.
    fn counter(&self, name: &str) -> Result<f64> {
        let socket = ["--silent", "--fail", "--unix-socket", "/run/znet-ctl/ctl.sock", "http://znet/metrics"];
        let text = self.controller().host().command("curl").args(socket).run()?.stdout;
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().parse()?)
    }
}

fn crowd(args: &Args, report: &mut Report) -> Result<()> {
    let agents = args.agents as usize;
    let mut scene = Scene::new(agents)?;
    let arrived = join_storm(&scene, report)?;
    let arrived = populate(&scene, arrived, args.containers / agents)?;
    let kept = keep_map(&scene)?;
    // What is left of joining and populating must not count as the streams' memory.
    scene.world.controller.stop()?;
    scene.world.controller.launch()?;
    let empty = scene.memory()?;
    let author = follow(&scene, arrived, &kept, report)?;
    let streams = scene.memory()? - empty;
    let each = streams * 1024.0 / agents as f64;
    report.add(
        Figure::new("memory of the controller for a connected agent", each, "KiB")
            .wanted(Bound::AtMost(64.0)),
    );
    report.add(Figure::new("memory of the controller, all in all", empty + streams, "MiB"));
    churn(&scene, &author, report)?;
    come_back(&mut scene, report)?;
    scene.world.passed();
    Ok(())
}

/// All nodes join at once.
fn join_storm(scene: &Scene, report: &mut Report) -> Result<Vec<Agent>> {
    let (agents, crowd) = (scene.agents, scene.crowd.clone());
    report.title(&format!(
        "{agents} nodes join at once; {FOLLOWERS} others follow the map meanwhile, all of it"
    ));
    let token = crowd.token.clone();
    let fleet = scene.run(async move { FleetNode::join_all(&token, "follower", FOLLOWERS).await })?;
    let identities = (0..agents).map(Agent::new).collect::<Result<Vec<_>>>()?;
    let (cpu, begun) = (scene.cpu()?, Instant::now());
    let (arrived, told) = scene.run(async move {
        let (finish, finished) = tokio::sync::watch::channel(None);
        let following: Vec<_> =
            fleet.into_iter().map(|node| tokio::spawn(follow_until(node, finished.clone()))).collect();
        let arriving = identities.into_iter().map(|agent| tokio::spawn(agent.arrive(crowd.clone())));
        let mut arrived = try_join_all(arriving).await?;
        let told = begun.elapsed();
        // One more change, so that the followers know when they have seen everything.
        let last = arrived.first_mut().context("nobody")?.attach(&crowd, 0).await?;
        finish.send_replace(Some(last));
        for follower in following {
            follower.await??;
        }
        Ok((arrived, told))
    })?;
    let cpu = scene.cpu()? - cpu;
    report.add(Figure::new("until all are members", told.as_secs_f64(), "s"));
    report.add(Figure::new("until all followers have applied it", begun.elapsed().as_secs_f64(), "s"));
    report.add(Figure::new("attempts that had to be made again", scene.crowd.take_failures() as f64, ""));
    report.add(Figure::new("CPU time of the controller for a joining node", cpu * 1e3 / agents as f64, "ms"));
    Ok(arrived)
}

async fn follow_until(
    mut node: FleetNode,
    mut finished: tokio::sync::watch::Receiver<Option<Revision>>,
) -> Result<()> {
    let mut watcher = node.watch().await?;
    loop {
        if finished.borrow_and_update().is_some_and(|last| watcher.member().revision() >= last) {
            return Ok(());
        }
        tokio::select! {
            at = watcher.next() => drop(at?),
            changed = finished.changed() => changed?,
        }
    }
}

/// Every node attaches its containers. Nobody follows meanwhile.
fn populate(scene: &Scene, arrived: Vec<Agent>, each: usize) -> Result<Vec<Agent>> {
    let (crowd, begun) = (scene.crowd.clone(), Instant::now());
    let agents = scene.run(async move {
        let mut done = Vec::with_capacity(arrived.len());
        let mut arrived = arrived.into_iter();
        loop {
            let turn: Vec<Agent> = arrived.by_ref().take(WORKING).collect();
            if turn.is_empty() {
                return Ok(done);
            }
            done.extend(
                try_join_all(turn.into_iter().map(|agent| agent.populate(crowd.clone(), each))).await?,
            );
        }
    })?;
    println!("   ({} containers attached in {:.1} s)", each * scene.agents, begun.elapsed().as_secs_f64());
    Ok(agents)
}

/// What an agent keeps on its disk: the whole map, verified.
fn keep_map(scene: &Scene) -> Result<Kept> {
    let crowd = scene.crowd.clone();
    scene.run(async move {
        let mut scout = FleetNode::join(&crowd.token, "scout", 0).await?;
        let mut watcher = scout.watch().await?;
        while watcher.member().head().is_none() {
            watcher.next().await?;
        }
        let member = watcher.member();
        let head = *member.head().context("no head")?;
        for record in member.map().records() {
            crowd.history.put(record.key(), head.head.revision, Some(record));
        }
        Ok(Kept { head, hash: member.map().set_hash(crowd.token.network) })
    })
}

/// More and more agents follow, and a change goes to all of them. Returns who makes the changes.
fn follow(scene: &Scene, agents: Vec<Agent>, kept: &Kept, report: &mut Report) -> Result<Arc<Agent>> {
    report.title("One change, until every agent has verified and applied it");
    let crowd = scene.crowd.clone();
    let author = scene.run({
        let crowd = crowd.clone();
        async move { Ok(Arc::new(Agent::new(crowd_author(&crowd))?.arrive(crowd).await)) }
    })?;
    let (mut delays, mut costs) = (Vec::new(), Vec::new());
    let total = agents.len();
    let mut agents = agents.into_iter();
    let mut following = 0;
    for share in [8, 4, 2, 1] {
        let wanted = total / share;
        let before = crowd.streams();
        for mut agent in agents.by_ref().take(wanted - following) {
            agent.client = None;
            scene.runtime.spawn(agent.follow(crowd.clone(), kept.clone()));
        }
        let newcomers = begin_at(&before, following);
        crowd.await_streams(wanted, &newcomers, PATIENCE)?;
        following = wanted;
        let (mut all, mut last) = (Vec::new(), Vec::new());
        let cpu = scene.cpu()?;
        for change in 0..CHANGES {
            let (revision, begun) = change_one(scene, author.clone(), change)?;
            crowd.await_revision(following, revision, PATIENCE)?;
            let spread = crowd.spread(revision, begun);
            last.push(spread.iter().max().copied().unwrap_or_default());
            all.extend(spread);
            crowd.forget();
        }
        let cpu = (scene.cpu()? - cpu) * 1e3 / CHANGES as f64;
        let (all, last) = (Samples::new(all), Samples::new(last));
        let what = format!("a change to {following} agents");
        let p99 = Figure::new(format!("{what}, p99"), all.percentile(99.0), "ms");
        report.add(Figure::new(format!("{what}, p50"), all.percentile(50.0), "ms"));
        report.add(if following == total { p99.wanted(Bound::AtMost(1_000.0)) } else { p99 });
        report.add(Figure::new(format!("{what}, the last of them, p99"), last.percentile(99.0), "ms"));
        report.add(Figure::new(format!("{what}, CPU time of the controller"), cpu, "ms"));
        delays.push((following as f64, all.percentile(99.0)));
        costs.push((following as f64, cpu));
    }
    let curve = |title: &str, points| Curve { title: title.to_owned(), unit: "ms", across: "agents", points };
    report.curves.push(curve("a change to all, p99", delays));
    report.curves.push(curve("a change, CPU time of the controller", costs));
    ensure!(
        scene.counter("znet_snapshots_sent_total")? == 0.0,
        "an agent with the newest map was sent a whole one"
    );
    Ok(author)
}

/// The author of changes is no member of the crowd; its name must be no other's.
fn crowd_author(crowd: &Crowd) -> usize {
    crowd.streams().len() + 1
}

/// The streams that agents have had, as a bound: those who follow already owe none.
fn begin_at(before: &[u64], following: usize) -> Vec<u64> {
    let owed = before.iter().enumerate();
    owed.map(|(number, count)| if number < following { count.saturating_sub(1) } else { *count }).collect()
}

/// One attach or detach, and when it was begun.
fn change_one(scene: &Scene, author: Arc<Agent>, change: usize) -> Result<(Revision, Instant)> {
    let crowd = scene.crowd.clone();
    scene.run(async move {
        let begun = Instant::now();
        let revision = match change % 2 {
            0 => author.attach(&crowd, change).await?,
            _ => author.detach(&crowd, change - 1).await?,
        };
        Ok((revision, begun))
    })
}

/// Changes in a steady rhythm, to all agents.
fn churn(scene: &Scene, author: &Arc<Agent>, report: &mut Report) -> Result<()> {
    report.title(&format!("{CHURN} changes a second for {CHURN_SECONDS} s"));
    let (author, crowd) = (author.clone(), scene.crowd.clone());
    crowd.forget();
    let (cpu, started) = (scene.cpu()?, Instant::now());
    let begun = scene.run(async move {
        let mut rhythm = tokio::time::interval(Duration::from_micros(2_000_000 / CHURN));
        let mut making = Vec::new();
        for pair in 0..CHURN * CHURN_SECONDS / 2 {
            let due = rhythm.tick().await;
            let (author, crowd) = (author.clone(), crowd.clone());
            making.push(tokio::spawn(async move {
                two_changes(&author, &crowd, CHANGES + pair as usize, due).await
            }));
        }
        let made = try_join_all(making).await?.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(made.into_iter().flatten().collect::<BTreeMap<Revision, Instant>>())
    })?;
    let last = *begun.keys().last().context("nothing was changed")?;
    let made = started.elapsed().as_secs_f64();
    scene.crowd.await_revision(scene.agents, last, PATIENCE)?;
    let (cpu, changes) = (scene.cpu()? - cpu, begun.len() as f64);
    let ages = scene.crowd.ages(&begun);
    let (deltas, agents) = scene.crowd.deltas();
    report.add(Figure::new("changes a second that were made", changes / made, "1/s"));
    report.add(Figure::new("a change until an agent has applied it, p50", ages.percentile(50.0), "ms"));
    report.add(Figure::new("a change until an agent has applied it, p99", ages.percentile(99.0), "ms"));
    report.add(Figure::new("streams that ended meanwhile", scene.crowd.take_failures() as f64, ""));
    report.add(Figure::new("changes that one delta brought", changes * agents as f64 / deltas as f64, ""));
    report.add(Figure::new("CPU time of the controller for a change", cpu * 1e3 / changes, "ms"));
    Ok(())
}

/// An attach and half a beat later its detach, and when they were to be made: a controller that is slow does not make the figures
/// better.
async fn two_changes(
    author: &Agent,
    crowd: &Crowd,
    number: usize,
    due: tokio::time::Instant,
) -> Result<[(Revision, Instant); 2]> {
    let attached = author.attach(crowd, number).await?;
    let next = due + Duration::from_micros(1_000_000 / CHURN);
    tokio::time::sleep_until(next).await;
    let detached = author.detach(crowd, number).await?;
    Ok([(attached, due.into_std()), (detached, next.into_std())])
}

/// The controller dies, and all agents come back to the next one.
fn come_back(scene: &mut Scene, report: &mut Report) -> Result<()> {
    report.title("kill -9 of the controller, and all agents come back");
    let before = scene.crowd.streams();
    scene.crowd.take_failures();
    scene.world.controller.kill()?;
    let begun = Instant::now();
    scene.world.controller.launch()?;
    let serves = begun.elapsed().as_secs_f64();
    scene.crowd.await_streams(scene.agents, &before, PATIENCE)?;
    let back = begun.elapsed().as_secs_f64();
    let failures = scene.crowd.take_failures();
    let snapshots = scene.counter("znet_snapshots_sent_total")?;
    report.add(Figure::new("until the controller serves again", serves, "s"));
    report
        .add(Figure::new("until all agents have their streams again", back, "s").wanted(Bound::AtMost(30.0)));
    report.add(Figure::new("whole maps that were sent", snapshots, "").wanted(Bound::AtMost(0.0)));
    report.add(Figure::new("attempts for an agent", failures as f64 / scene.agents as f64, ""));
    report.add(Figure::new(
        "CPU time of the controller for an agent",
        scene.cpu()? * 1e3 / scene.agents as f64,
        "ms",
    ));
    Ok(())
}

/// A controller with a large network is started anew.
fn restart(containers: usize, report: &mut Report) -> Result<()> {
    let nodes = 100;
    let mut scene = Scene::new(nodes)?;
    report.title(&format!("kill -9 of a controller with {containers} containers"));
    let crowd = scene.crowd.clone();
    let arrived = scene.run(async move {
        let agents = (0..nodes).map(Agent::new).collect::<Result<Vec<_>>>()?;
        Ok(futures_util::future::join_all(agents.into_iter().map(|agent| agent.arrive(crowd.clone()))).await)
    })?;
    populate(&scene, arrived, containers / nodes)?;
    scene.world.controller.kill()?;
    let begun = Instant::now();
    scene.world.controller.launch()?;
    // Ready is who answers what is asked of the network.
    scene.controller().ctl(&["network", "show", "bench"])?;
    report.add(
        Figure::new("until it answers again", begun.elapsed().as_secs_f64(), "s").wanted(Bound::AtMost(5.0)),
    );
    report.add(Figure::new("its memory then", scene.memory()?, "MiB"));
    scene.world.passed();
    Ok(())
}
