//! From the call of attach until every other container of the network answers a ping.
//!
//! First the network grows: a hundred containers are attached one after the other, and from within each all those before
//! it are pinged at once. Then it is full: a container is detached and attached again, and pings the ninety-nine others. Who has not answered is asked again every few milliseconds, as the packets before its handshake is
//! through may be lost. The call goes to the agent's socket, so no process is started in the time that is taken.

use std::collections::HashMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use netns_harness::Container;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};
use znet_agent::client::LocalClient;
use znet_agent::local::{AttachRequest, DetachRequest};
use znet_tests::{NetworkSpec, Node, World};

use crate::figures::{Bound, Figure, Samples};

/// Containers of the network.
const CONTAINERS: usize = 100;
/// Nodes on which they are.
const NODES: usize = 3;
/// How often one of them is attached anew.
const ROUNDS: usize = 200;
/// How often who has not answered is asked again.
const AGAIN: Duration = Duration::from_millis(50);
/// How long one round may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(20);
const NETWORK: &str = "bench";

/// A container that is attached now.
struct Place {
    node: usize,
    name: String,
    container: Container,
    /// Its namespace as seen from here.
    netns: PathBuf,
    address: IpAddr,
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut world = World::new("bench-attach")?;
    let spec = NetworkSpec { name: NETWORK, prefixes: &["10.64.0.0/10"], rest: Some("1s") };
    let token = world.controller.create_network(&spec)?;
    let mut nodes = Vec::new();
    for number in 0..NODES {
        nodes.push(world.node(&format!("n{number}"), &[&token])?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut places: Vec<Place> = Vec::new();
    let mut growing = Vec::new();
    for number in 0..CONTAINERS {
        let node = number % NODES;
        let at = nodes.get(node).context("no such node")?;
        let name = format!("c{number}");
        let container = at.host().container(&name)?;
        let netns = outside(at, container.netns_path())?;
        let begun = Instant::now();
        let address = runtime.block_on(attach(at, &name, &container))?;
        ping_all(netns.clone(), address, places.iter().map(|place| place.address).collect())?;
        growing.push(begun.elapsed());
        places.push(Place { node, name, container, netns, address });
    }
    let (mut called, mut reached) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let at = round * 37 % CONTAINERS;
        let others: Vec<IpAddr> =
            places.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, place)| place.address).collect();
        let place = places.get_mut(at).context("no such container")?;
        let node = nodes.get(place.node).context("no such node")?;
        runtime.block_on(detach(node, &place.name))?;
        let begun = Instant::now();
        place.address = runtime.block_on(attach(node, &place.name, &place.container))?;
        called.push(begun.elapsed());
        ping_all(place.netns.clone(), place.address, others)?;
        reached.push(begun.elapsed());
    }
    world.passed();
    let (growing, called, reached) = (Samples::new(growing), Samples::new(called), Samples::new(reached));
    let grows = format!("attach of {CONTAINERS} containers on {NODES} hosts, all answer");
    let what = format!("attach anew among {CONTAINERS} containers");
    Ok(vec![
        Figure::new(format!("{grows}, p50"), growing.percentile(50.0), "ms").wanted(Bound::AtMost(30.0)),
        Figure::new(format!("{grows}, p99"), growing.percentile(99.0), "ms").wanted(Bound::AtMost(150.0)),
        Figure::new(format!("{what}, call, p50"), called.percentile(50.0), "ms"),
        Figure::new(format!("{what}, call, p99"), called.percentile(99.0), "ms"),
        Figure::new(format!("{what}, all 99 answer, p50"), reached.percentile(50.0), "ms"),
        Figure::new(format!("{what}, all 99 answer, p99"), reached.percentile(99.0), "ms"),
    ])
}

/// A path of a node's host as seen from outside of it.
pub(crate) fn outside(node: &Node, path: PathBuf) -> Result<PathBuf> {
    let root = PathBuf::from(format!("/proc/{}/root", node.agent()?.pid()));
    Ok(root.join(path.strip_prefix("/").unwrap_or(&path)))
}

fn client(node: &Node) -> Result<LocalClient> {
    Ok(LocalClient::new(&outside(node, PathBuf::from("/run/znet-agent/agent.sock"))?))
}

async fn attach(node: &Node, name: &str, container: &Container) -> Result<IpAddr> {
    let request = AttachRequest {
        network: NETWORK.to_owned(),
        name: name.to_owned(),
        netns: container.netns_path(),
        ifname: "znet0".to_owned(),
        addresses: vec![],
        wait_millis: None,
        wait_controller_millis: None,
        owner: None,
        no_dns: false,
    };
    let attached = client(node)?.attach(&request).await?;
    attached.addresses.into_iter().find(IpAddr::is_ipv6).context("no IPv6 address")
}

async fn detach(node: &Node, name: &str) -> Result<()> {
    let request = DetachRequest { network: NETWORK.to_owned(), name: name.to_owned() };
    client(node)?.detach(&request).await?;
    Ok(())
}

/// Pings all addresses from within a namespace until each has answered once.
pub(crate) fn ping_all(netns: PathBuf, from: IpAddr, others: Vec<IpAddr>) -> Result<()> {
    // A thread that enters another namespace must not do anything else afterwards.
    let pinging = std::thread::spawn(move || {
        setns(File::open(&netns)?, CloneFlags::CLONE_NEWNET)?;
        ping_until_all_answer(from, others)
    });
    pinging.join().unwrap_or_else(|_| bail!("the pinging thread panicked"))
}

fn ping_until_all_answer(from: IpAddr, others: Vec<IpAddr>) -> Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    // Not UDP, but its calls are those of every datagram socket.
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(AGAIN))?;
    let begun = Instant::now();
    // ICMPv6 echo request (RFC 4443, section 4.1); the kernel fills in the checksum.
    let request = [128, 0, 0, 0, 0x7a, 0x74, 0, 1];
    let mut silent: HashMap<IpAddr, Instant> = others.into_iter().map(|address| (address, begun)).collect();
    let mut answer = [0; 256];
    while !silent.is_empty() {
        if begun.elapsed() > PATIENCE {
            let example = silent.keys().next();
            bail!("{} of the others do not answer {from}, {example:?} for one", silent.len());
        }
        let now = Instant::now();
        for (address, next) in &mut silent {
            if *next <= now {
                socket.send_to(&request, SocketAddr::new(*address, 0))?;
                *next = now + AGAIN;
            }
        }
        while let Ok((len, who)) = socket.recv_from(&mut answer) {
            // An echo reply (RFC 4443, section 4.2).
            if answer.first() == Some(&129) && len >= 8 {
                silent.remove(&who.ip());
            }
            if silent.is_empty() || silent.values().any(|next| *next <= Instant::now()) {
                break;
            }
        }
    }
    Ok(())
}
