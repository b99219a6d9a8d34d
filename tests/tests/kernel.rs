//! Nodes whose packets the kernel's WireGuard moves, alone and together with nodes that have the engine.
//!
//! They need a kernel that has WireGuard, so an ordinary run leaves them out; `./x test --kernel` runs them in one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use netns_harness::{Process, probe};
use znet_tests::{FIRST_PACKET, Member, NetworkSpec, Node, NodeOptions, Result, World};

const SOON: Duration = Duration::from_secs(20);

fn acme(world: &World) -> Result<String> {
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
    world.controller.create_network(&spec)
}

fn node(world: &mut World, name: &str, token: &str, backend: &str) -> Result<Node> {
    let host = world.host(name)?;
    let flags = ["--backend", backend].map(str::to_owned).to_vec();
    let node = Node::start(name, &host, NodeOptions { tokens: vec![token.to_owned()], flags })?;
    node.wait_connected("acme")?;
    Ok(node)
}

fn flood(from: &Member, to: &Member, count: u32, interval: &str) -> Result<Process> {
    let (count, to) = (count.to_string(), to.v6()?.to_string());
    Ok(from.command("ping").args(["-n", "-i", interval, "-c", &count, &to]).spawn("flood")?)
}

fn lost(flood: &Process) -> Result<u32> {
    flood.wait(Duration::from_secs(60))?;
    let text = flood.stdout()?;
    let line = text.lines().find(|line| line.contains("packets transmitted"));
    let words = line.unwrap_or_else(|| panic!("no summary: {text}")).split(|c: char| !c.is_ascii_digit());
    let numbers: Vec<u32> = words.filter_map(|word| word.parse().ok()).collect();
    Ok(numbers[0] - numbers[1])
}

/// What `wg show` says of a container's device, from inside.
fn wg(member: &Member, what: &str) -> Result<String> {
    Ok(member.command("wg").args(["show", "znet0", what]).run()?.stdout)
}

/// The same in an order of its own: a peer that comes back is the last of the kernel's list.
fn allowed_ips(member: &Member) -> Result<Vec<String>> {
    let mut words: Vec<String> = wg(member, "allowed-ips")?.split_whitespace().map(str::to_owned).collect();
    words.sort_unstable();
    Ok(words)
}

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn containers_of_kernel_and_engine_nodes_reach_each_other_every_pair_both_ways() -> Result {
    let mut world = World::new("kernel-mixed")?;
    let token = acme(&world)?;
    let k1 = node(&mut world, "k1", &token, "auto")?;
    let k2 = node(&mut world, "k2", &token, "kernel")?;
    let e1 = node(&mut world, "e1", &token, "engine")?;
    for (node, kind) in [(&k1, "kernel"), (&k2, "kernel"), (&e1, "engine")] {
        assert_eq!(node.status()?["backend"]["kind"], kind);
    }
    assert_eq!(k1.status()?["backend"]["why"], "this kernel has WireGuard");
    let mut members = Vec::new();
    for (node, names) in [(&k1, ["a", "b"]), (&k2, ["c", "d"]), (&e1, ["e", "f"])] {
        for name in names {
            members.push(node.attach("acme", name)?);
        }
    }
    for member in &members {
        member.reaches_all(&members, FIRST_PACKET)?;
    }
    // Each device of the kernel's has a port of its own, and no way out of the network.
    assert_ne!(wg(&members[0], "listen-port")?, wg(&members[1], "listen-port")?);
    let out = members[0].command("ping").args(["-c", "1", "-W", "1", "192.0.2.1"]).try_run()?;
    assert!(!out.status.success());
    // Detached, nothing is left.
    k1.znet(&["detach", "--network", "acme", "--name", "a"])?;
    let links = members[0].command("ip").args(["-brief", "link"]).run()?.stdout;
    assert_eq!(links.lines().count(), 1, "{links}");
    world.passed();
    Ok(())
}

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn an_agent_that_restarts_takes_its_devices_over_and_no_packet_is_lost() -> Result {
    let mut world = World::new("kernel-restart")?;
    let token = acme(&world)?;
    let mut k1 = node(&mut world, "k1", &token, "kernel")?;
    let e1 = node(&mut world, "e1", &token, "engine")?;
    let (a, b) = (k1.attach("acme", "a")?, e1.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let (key, port) = (wg(&a, "public-key")?, wg(&a, "listen-port")?);
    let flood = flood(&a, &b, 400, "0.01")?;
    for _ in 0..3 {
        k1.kill_agent()?;
        k1.launch()?;
        k1.wait_connected("acme")?;
    }
    assert_eq!(lost(&flood)?, 0);
    assert_eq!((wg(&a, "public-key")?, wg(&a, "listen-port")?), (key, port));
    world.passed();
    Ok(())
}

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn what_an_operator_changes_with_wg_is_put_back_without_dropping_a_packet_of_other_peers() -> Result {
    let mut world = World::new("kernel-operator")?;
    let token = acme(&world)?;
    let k1 = node(&mut world, "k1", &token, "kernel")?;
    let k2 = node(&mut world, "k2", &token, "kernel")?;
    let (a, b, c) = (k1.attach("acme", "a")?, k2.attach("acme", "b")?, k2.attach("acme", "c")?);
    a.reaches_all([&b, &c], FIRST_PACKET)?;
    let (before, port) = (allowed_ips(&a)?, wg(&a, "listen-port")?);
    let of = |member: &Member| -> Result<String> { Ok(wg(member, "public-key")?.trim().to_owned()) };
    let (key_b, key_c) = (of(&b)?, of(&c)?);
    let flood = flood(&a, &b, 500, "0.01")?;
    let stranger = "oBVMjCkDTNzNJIzXpzlTBQVG2xCbJ1TWkaBH0kEnDgo=";
    for change in [
        vec!["set", "znet0", "peer", &key_c, "remove"],
        vec!["set", "znet0", "peer", &key_c, "allowed-ips", "10.1.2.3/32"],
        vec!["set", "znet0", "peer", stranger, "allowed-ips", "10.77.99.99/32"],
        vec!["set", "znet0", "peer", &key_b, "persistent-keepalive", "7"],
    ] {
        a.command("wg").args(&change).run()?;
        let mended = || {
            let (ips, alive) = (allowed_ips(&a).ok()?, wg(&a, "persistent-keepalive").ok()?);
            (ips == before && !alive.lines().any(|line| line.ends_with("\t7"))).then_some(())
        };
        probe::until(&format!("{change:?} to be put back"), SOON, mended)?;
    }
    assert_eq!(lost(&flood)?, 0);
    // The port and the key are everybody's matter, so that these two alone may cost a packet.
    a.command("wg").args(["set", "znet0", "listen-port", "4321"]).run()?;
    probe::until("the port to be set back", SOON, || (wg(&a, "listen-port").ok()? == port).then_some(()))?;
    a.wait_reaches(c.v6()?, FIRST_PACKET)?;
    world.passed();
    Ok(())
}

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn a_device_that_its_container_renames_or_deletes_is_made_anew_and_a_foreign_link_is_left_alone() -> Result {
    let mut world = World::new("kernel-gone")?;
    let token = acme(&world)?;
    let k1 = node(&mut world, "k1", &token, "kernel")?;
    let k2 = node(&mut world, "k2", &token, "kernel")?;
    let (a, b) = (k1.attach("acme", "a")?, k2.attach("acme", "b")?);
    a.command("ip").args(["link", "del", "znet0"]).run()?;
    a.wait_reaches(b.v6()?, SOON)?;
    // They talk for longer than it takes until the agent looks at the device again.
    assert_eq!(lost(&flood(&a, &b, 300, "0.01")?)?, 0);
    // The other end goes on sending to the session that was: the new device begins another one by itself.
    a.command("ip").args(["link", "del", "znet0"]).run()?;
    b.wait_reaches(a.v6()?, Duration::from_secs(10))?;
    a.command("ip").args(["link", "set", "znet0", "down"]).run()?;
    a.command("ip").args(["link", "set", "znet0", "name", "mine"]).run()?;
    a.wait_reaches(b.v6()?, 2 * SOON)?;
    let links = a.command("ip").args(["-brief", "link"]).run()?.stdout;
    assert!(links.contains("znet0") && !links.contains("mine"), "{links}");
    // A WireGuard link of that very name that somebody else made.
    let host = k1.host();
    let container = host.container("acme-c")?;
    let path = container.netns_path().display().to_string();
    container.command("ip").args(["link", "add", "znet0", "type", "wireguard"]).run()?;
    let attach = ["attach", "--network", "acme", "--name", "c", "--netns", &path];
    let refused = k1.try_znet(&attach)?;
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("interface znet0 exists already"), "{}", refused.stderr);
    container.command("ip").args(["link", "show", "znet0"]).run()?;
    container.command("ip").args(["link", "del", "znet0"]).run()?;
    k1.znet(&attach)?;
    world.passed();
    Ok(())
}

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn a_node_that_gets_the_other_backend_makes_its_devices_anew_and_auto_leaves_an_engine_that_serves() -> Result
{
    let mut world = World::new("kernel-switch")?;
    let token = acme(&world)?;
    let mut first = node(&mut world, "k1", &token, "engine")?;
    let k2 = node(&mut world, "k2", &token, "kernel")?;
    let (a, b) = (first.attach("acme", "a")?, k2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let host = first.host().clone();
    for (backend, kind, why) in [
        ("auto", "engine", "an engine serves containers here"),
        ("kernel", "kernel", "it was asked for"),
        ("auto", "kernel", "this kernel has WireGuard"),
        ("engine", "engine", "it was asked for"),
    ] {
        first.stop_agent()?;
        let flags = ["--backend", backend].map(str::to_owned).to_vec();
        first = Node::start("k1", &host, NodeOptions { tokens: Vec::new(), flags })?;
        let status = first.status()?;
        assert_eq!((&status["backend"]["kind"], &status["backend"]["why"]), (&kind.into(), &why.into()));
        a.wait_reaches(b.v6()?, SOON)?;
        b.wait_reaches(a.v6()?, SOON)?;
    }
    world.passed();
    Ok(())
}

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn links_bear_loss_delay_and_reordering() -> Result {
    let mut world = World::new("kernel-netem")?;
    let token = acme(&world)?;
    let k1 = node(&mut world, "k1", &token, "kernel")?;
    let e1 = node(&mut world, "e1", &token, "engine")?;
    let (a, b) = (k1.attach("acme", "a")?, e1.attach("acme", "b")?);
    let netem = ["delay", "20ms", "5ms", "loss", "10%", "reorder", "25%", "50%"];
    let qdisc = ["qdisc", "add", "dev", "eth0", "root", "netem"];
    k1.host().command("tc").args(qdisc).args(netem).run()?;
    a.wait_reaches(b.v6()?, SOON)?;
    let flood = flood(&a, &b, 200, "0.02")?;
    let lost = lost(&flood)?;
    // One way loses a tenth: none would mean that nothing was lost, and a third that more was than the cable lost.
    assert!((2..66).contains(&lost), "{lost} of 200 lost");
    world.passed();
    Ok(())
}
