//! `./x bench containers`: from a runtime's ADD until the container reaches another one on another host.
//!
//! The plugin is called as a runtime calls it, as a process of its own for each container, so that what is seen is
//! znet's alone: from its start until the container, whose namespace was there before, has an answer from another host.
//! Beside it stands what a real runtime takes for the same, and what that runtime takes for a container without a network.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use netns_harness::{Container, HostCommand, probe};
use serde_json::{Value, json};
use znet_tests::runtime::Runtimes;
use znet_tests::{Member, NetworkSpec, Node, World};

use crate::control::{outside, ping_all};
use crate::default_json;
use crate::figures::{Bound, Figure, Samples, report};

/// How often a container is added by the plugin alone.
const ADDS: usize = 200;
/// How often one is started by containerd.
const STARTS: usize = 30;
/// Containers that are started at once.
const CROWD: usize = 100;
/// How long all of them may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(120);
const NETWORK: &str = "bench";

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the figures are written as JSON [default: target/bench/containers.json].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Two hosts, and a container on the other one that answers.
struct Stage {
    runtimes: Runtimes,
    here: Node,
    far: Member,
    /// Kept, as its agent tells its engine who is new.
    _there: Node,
    world: World,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    let stage = Stage::new()?;
    let mut figures = stage.adds()?;
    figures.extend(stage.crowd_by_plugin()?);
    let containerd = stage.runtimes.containerd()?;
    figures.extend(stage.starts()?);
    figures.extend(stage.crowd_by_containerd()?);
    containerd.kill()?;
    stage.runtimes.clean()?;
    stage.world.passed();
    report(&figures, &args.json.clone().unwrap_or_else(|| default_json("containers")))
}

impl Stage {
    fn new() -> Result<Self> {
        let mut world = World::new("bench-containers")?;
        let spec = NetworkSpec { name: NETWORK, prefixes: &["10.64.0.0/10"], rest: Some("1s") };
        let token = world.controller.create_network(&spec)?;
        let (here, there) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
        let runtimes = Runtimes::prepare(&world.lab, here.host())?;
        runtimes.install(&here, &["--network", NETWORK])?;
        let far = there.attach(NETWORK, "far")?;
        Ok(Self { runtimes, here, far, _there: there, world })
    }

    fn plugin(&self, command: &str, name: &str) -> Result<HostCommand> {
        let netns = format!("/run/netns/{name}");
        let environment = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", name),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let conf = json!({"cniVersion": "1.1.0", "name": "znet", "type": "znet-cni", "network": NETWORK});
        self.runtimes.plugin(&environment, conf.to_string())
    }

    /// Adds a container and returns its IPv6 address.
    fn add(&self, name: &str) -> Result<IpAddr> {
        let said: Value = serde_json::from_str(&self.plugin("ADD", name)?.run()?.stdout)?;
        let addresses = said.get("ips").and_then(Value::as_array).context("no addresses")?;
        let bare = |ip: &Value| ip.get("address")?.as_str()?.split('/').next()?.parse().ok();
        addresses.iter().filter_map(bare).find(IpAddr::is_ipv6).context("no IPv6 address")
    }

    fn namespace(&self, container: &Container) -> Result<PathBuf> {
        outside(&self.here, container.netns_path())
    }

    /// Pings these from the other host until all have answered.
    fn reach(&self, all: Vec<IpAddr>) -> Result<()> {
        ping_all(outside(&self._there, self.far.container.netns_path())?, self.far.v6()?, all)
    }

    fn adds(&self) -> Result<Vec<Figure>> {
        let container = self.here.host().container("one")?;
        let (netns, far) = (self.namespace(&container)?, self.far.v6()?);
        let (mut called, mut reached) = (Vec::new(), Vec::new());
        for _ in 0..ADDS {
            let begun = Instant::now();
            let address = self.add("one")?;
            called.push(begun.elapsed());
            ping_all(netns.clone(), address, vec![far])?;
            reached.push(begun.elapsed());
            self.plugin("DEL", "one")?.run()?;
        }
        let (called, reached) = (Samples::new(called), Samples::new(reached));
        let what = "CNI ADD until another host answers a ping";
        Ok(vec![
            Figure::new(format!("{what}, p50"), reached.percentile(50.0), "ms").wanted(Bound::AtMost(60.0)),
            Figure::new(format!("{what}, p99"), reached.percentile(99.0), "ms").wanted(Bound::AtMost(250.0)),
            Figure::new("of that the plugin, p50", called.percentile(50.0), "ms"),
            Figure::new("of that the plugin, p99", called.percentile(99.0), "ms"),
        ])
    }

    fn crowd_by_plugin(&self) -> Result<Vec<Figure>> {
        let names: Vec<String> = (0..CROWD).map(|number| format!("crowd-{number}")).collect();
        for name in &names {
            self.here.host().container(name)?;
        }
        let begun = Instant::now();
        let addresses = std::thread::scope(|scope| {
            let adds: Vec<_> = names.iter().map(|name| scope.spawn(|| self.add(name))).collect();
            let joined =
                adds.into_iter().map(|add| add.join().unwrap_or_else(|_| bail!("a thread panicked")));
            joined.collect::<Result<Vec<IpAddr>>>()
        })?;
        self.reach(addresses)?;
        let seconds = begun.elapsed().as_secs_f64();
        for name in &names {
            self.plugin("DEL", name)?.run()?;
        }
        let what = format!("{CROWD} ADDs at once on one node, until all answer another host");
        Ok(vec![Figure::new(what, seconds, "s").wanted(Bound::AtMost(10.0))])
    }

    /// What containerd takes for a container until it has an answer, and for one without a network.
    fn starts(&self) -> Result<Vec<Figure>> {
        let far = self.far.v6()?.to_string();
        let (mut reached, mut own) = (Vec::new(), Vec::new());
        for _ in 0..STARTS {
            let begun = Instant::now();
            self.runtimes.ctr_run("one", &["/bin/ping", "-c", "1", "-W", "5", &far]).run()?;
            reached.push(begun.elapsed());
            let begun = Instant::now();
            self.runtimes.ctr_run_alone("one", &["/bin/true"]).run()?;
            own.push(begun.elapsed());
        }
        let (reached, own) = (Samples::new(reached), Samples::new(own));
        let what = "ctr run --cni of a ping to another host, its end and DEL included";
        Ok(vec![
            Figure::new(format!("{what}, p50"), reached.percentile(50.0), "ms"),
            Figure::new(format!("{what}, p99"), reached.percentile(99.0), "ms"),
            Figure::new("ctr run of a container without a network, p50", own.percentile(50.0), "ms"),
            Figure::new("ctr run of a container without a network, p99", own.percentile(99.0), "ms"),
        ])
    }

    fn crowd_by_containerd(&self) -> Result<Vec<Figure>> {
        let begun = Instant::now();
        let running = (0..CROWD)
            .map(|number| {
                let run = self.runtimes.ctr_run(&format!("crowd-{number}"), &["/bin/sleep", "1000"]);
                Ok(run.spawn("ctr")?)
            })
            .collect::<Result<Vec<_>>>()?;
        let all_attached = || {
            let attached = self.here.network(NETWORK).ok()?;
            let attached = attached.get("attached")?.as_array()?.clone();
            let address = |one: &Value| one.get("addresses")?.get(0)?.as_str()?.parse().ok();
            let addresses: Vec<IpAddr> = attached.iter().filter_map(address).collect();
            (addresses.len() == CROWD || running.iter().any(|ctr| !ctr.is_running())).then_some(addresses)
        };
        let addresses = probe::until("all containers to be attached", PATIENCE, all_attached)?;
        if let Some(failed) = running.iter().find(|ctr| !ctr.is_running()) {
            bail!("ctr run failed: {}", failed.stderr()?);
        }
        self.reach(addresses)?;
        let seconds = begun.elapsed().as_secs_f64();
        let what = format!("{CROWD} containers at once by containerd, until all answer another host");
        Ok(vec![Figure::new(what, seconds, "s").wanted(Bound::AtMost(10.0))])
    }
}
