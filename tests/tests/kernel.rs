//! Nodes whose packets the kernel's WireGuard moves, alone and together with nodes that have the engine.
//!
//! They need a kernel that has WireGuard, so an ordinary run leaves them out; `./x test --kernel` runs them in one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use netns_harness::{Process, probe};
use serde_json::{Value, json};
use znet_tests::{FIRST_PACKET, Laptop, Member, NetworkSpec, Node, NodeOptions, Result, World, program};

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
fn a_node_that_gets_the_kernel_leaves_its_containers_to_the_engine_and_one_that_gets_the_engine_makes_them_anew()
-> Result {
    let mut world = World::new("kernel-switch")?;
    let token = acme(&world)?;
    let mut first = node(&mut world, "k1", &token, "engine")?;
    let k2 = node(&mut world, "k2", &token, "kernel")?;
    let (a, b) = (first.attach("acme", "a")?, k2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let host = first.host().clone();
    let change = |node: &mut Node, backend: &str| -> Result {
        node.stop_agent()?;
        let flags = ["--backend", backend].map(str::to_owned).to_vec();
        *node = Node::start("k1", &host, NodeOptions { tokens: Vec::new(), flags })?;
        node.wait_connected("acme")
    };
    let engine = first.engine_pid()?;
    let flood = flood(&a, &b, 600, "0.01")?;
    for (backend, why) in [("auto", "this kernel has WireGuard"), ("kernel", "it was asked for")] {
        change(&mut first, backend)?;
        let status = first.status()?;
        assert_eq!((&status["backend"]["kind"], &status["backend"]["why"]), (&"kernel".into(), &why.into()));
        assert_eq!(first.engine_pid()?, engine);
    }
    // What comes now is the kernel's.
    let c = first.attach("acme", "c")?;
    assert!(wg(&c, "listen-port").is_ok() && wg(&a, "listen-port").is_err());
    c.reaches_all([&a, &b], FIRST_PACKET)?;
    a.reaches_all([&c], FIRST_PACKET)?;
    assert_eq!(lost(&flood)?, 0);
    // The engine takes all of them.
    change(&mut first, "engine")?;
    c.wait_reaches(b.v6()?, SOON)?;
    assert!(wg(&c, "listen-port").is_err());
    b.wait_reaches(c.v6()?, SOON)?;
    a.reaches_all([&b, &c], SOON)?;
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

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn a_runtime_calls_the_plugin_and_containers_find_each_other_by_name() -> Result {
    let mut world = World::new("kernel-cni")?;
    let token = acme(&world)?;
    let mut k1 = node(&mut world, "k1", &token, "kernel")?;
    let e1 = node(&mut world, "e1", &token, "engine")?;
    let far = e1.attach("acme", "far")?;
    let web = k1.host().container("web")?;
    let conf = json!({"cniVersion": "1.1.0", "name": "znet", "type": "znet-cni", "network": "acme"});
    let call = |node: &Node, command: &str, conf: &Value| -> Result<String> {
        let netns = web.netns_path().display().to_string();
        let plugin = node.host().command(program("znet-cni")?).stdin(conf.to_string());
        let named = plugin.env("CNI_COMMAND", command).env("CNI_CONTAINERID", "web").env("CNI_NETNS", netns);
        let placed = named.env("CNI_IFNAME", "eth0").env("CNI_PATH", "/opt/cni/bin");
        Ok(placed.run()?.stdout)
    };
    let result: Value = serde_json::from_str(&call(&k1, "ADD", &conf)?)?;
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    assert_eq!(result["ips"].as_array().unwrap().len(), 2);
    assert_eq!(result["dns"]["nameservers"], json!(["127.0.0.153"]));
    let link = web.command("ip").args(["-d", "link", "show", "eth0"]).run()?.stdout;
    assert!(link.contains("wireguard"), "{link}");
    let asks = |name: &str, of: &dyn Fn(&[&str]) -> Result<String>| -> Result<String> {
        of(&["+short", "+time=2", "@127.0.0.153", name, "AAAA"])
    };
    let of_web = |args: &[&str]| -> Result<String> { Ok(web.command("dig").args(args).run()?.stdout) };
    let of_far = |args: &[&str]| -> Result<String> { Ok(far.command("dig").args(args).run()?.stdout) };
    let own = asks("web.acme.znet", &of_far)?;
    assert!(result["ips"].to_string().contains(own.trim()) && !own.is_empty(), "{own} {result}");
    far.wait_reaches(own.trim().parse()?, FIRST_PACKET)?;
    let mut checked = conf;
    checked["prevResult"] = result;
    // The next agent takes the device over and answers there again.
    for _ in 0..2 {
        assert_eq!(asks("far.acme.znet", &of_web)?.trim(), far.v6()?.to_string());
        call(&k1, "CHECK", &checked)?;
        k1.kill_agent()?;
        k1.launch()?;
        k1.wait_connected("acme")?;
        let answers = || (!asks("far.acme.znet", &of_web).ok()?.is_empty()).then_some(());
        probe::until("the resolver to answer again", SOON, answers)?;
    }
    call(&k1, "DEL", &checked)?;
    let links = web.command("ip").args(["-brief", "link"]).run()?.stdout;
    assert_eq!(links.lines().count(), 1, "{links}");
    world.passed();
    Ok(())
}

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn networks_with_equal_prefixes_share_nothing_and_nobody_is_heard_from_an_address_that_is_not_its_own()
-> Result {
    const PREFIXES: [&str; 2] = ["10.77.0.0/16", "fd77:7777:7777::/48"];
    let mut world = World::new("kernel-isolation")?;
    let network = |name| {
        let spec = NetworkSpec { name, prefixes: &PREFIXES, rest: None };
        world.controller.create_network(&spec)
    };
    let tokens = vec![network("red")?, network("blue")?];
    let mut nodes = Vec::new();
    for name in ["k1", "k2"] {
        let flags = ["--backend", "kernel"].map(str::to_owned).to_vec();
        let options = NodeOptions { tokens: tokens.clone(), flags };
        let node = Node::start(name, &world.host(name)?, options)?;
        node.wait_connected("red")?;
        node.wait_connected("blue")?;
        nodes.push(node);
    }
    let reds = [nodes[0].attach("red", "a")?, nodes[1].attach("red", "b")?, nodes[1].attach("red", "c")?];
    let blues = [nodes[0].attach("blue", "a")?, nodes[1].attach("blue", "b")?];
    for (members, other) in [(&reds[..2], &blues[1]), (&blues[..], &reds[1])] {
        members[0].reaches_all(members, FIRST_PACKET)?;
        // The same addresses, but what is sent comes to the network's own container.
        assert_eq!(members[1].v4()?, other.v4()?);
        let capture = other.command("cat").args(["/proc/net/dev"]).run()?.stdout;
        assert_eq!(lost(&flood(&members[0], &members[1], 50, "0.01")?)?, 0);
        let received = |text: &str| -> Option<u64> {
            text.lines().find(|line| line.contains("znet0"))?.split_whitespace().nth(2)?.parse().ok()
        };
        let after = other.command("cat").args(["/proc/net/dev"]).run()?.stdout;
        let grown = received(&after).unwrap() - received(&capture).unwrap();
        assert!(grown < 10, "{grown} packets came to the other network");
    }
    // c has an address that blue has not given to anybody.
    assert!(!blues[0].pings(reds[2].v4()?, Duration::from_secs(1))?);
    // An address of the prefix that is nobody's, and one that is another container's.
    let to = reds[1].v4()?.to_string();
    let answers = |from: &str| -> Result<bool> {
        let ping = reds[0].command("ping").args(["-n", "-c", "2", "-W", "1", "-I", from, &to]);
        Ok(ping.try_run()?.status.success())
    };
    assert!(answers("znet0")?);
    for address in ["10.77.9.9", &reds[2].v4()?.to_string()] {
        let address_there = format!("{address}/32");
        reds[0].command("ip").args(["address", "add", &address_there, "dev", "znet0"]).run()?;
        assert!(!answers(address)?, "{address} was believed");
    }
    world.passed();
    Ok(())
}

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn keys_are_not_changed_while_a_kernel_node_is_a_member_and_it_is_named() -> Result {
    let mut world = World::new("kernel-keys")?;
    let token = acme(&world)?;
    let mut k1 = node(&mut world, "k1", &token, "kernel")?;
    let e1 = node(&mut world, "e1", &token, "engine")?;
    let (a, b) = (k1.attach("acme", "a")?, e1.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    for name in ["a", "b"] {
        let refused = world.controller.try_ctl(&["key", "rotate", "acme", name])?;
        assert!(!refused.status.success());
        for word in ["k1", "--backend engine"] {
            assert!(refused.stderr.contains(word), "{}", refused.stderr);
        }
        assert!(!refused.stderr.contains("e1"), "{}", refused.stderr);
    }
    // What the text says helps.
    let host = k1.host().clone();
    k1.stop_agent()?;
    let flags = ["--backend", "engine"].map(str::to_owned).to_vec();
    let k1 = Node::start("k1", &host, NodeOptions { tokens: Vec::new(), flags })?;
    k1.wait_connected("acme")?;
    a.wait_reaches(b.v6()?, SOON)?;
    let rotated =
        || world.controller.try_ctl(&["key", "rotate", "acme", "b"]).ok()?.status.success().then_some(());
    probe::until("keys to be changed", SOON, rotated)?;
    world.passed();
    Ok(())
}

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn a_laptop_comes_in_by_an_engine_beside_the_kernels_devices_and_both_outlive_the_agent() -> Result {
    let mut world = World::new("kernel-access")?;
    let token = acme(&world)?;
    let mut k1 = node(&mut world, "k1", &token, "kernel")?;
    let e1 = node(&mut world, "e1", &token, "engine")?;
    let (a, b) = (k1.attach("acme", "a")?, e1.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    assert!(k1.status()?["engine_pid"].is_null(), "an engine that nobody needs");
    let (key, port) = (wg(&a, "public-key")?, k1.network("acme")?["port"].clone());
    let file = world.controller.ctl(&["access", "create", "acme", "laptop", "--via", "k1"])?.stdout;
    let home = world.host("home")?;
    let laptop = Laptop::up(&world.lab, &home, &file)?;
    let reach_each_other = || -> Result {
        for member in [&a, &b] {
            laptop.wait_reaches(member.v6()?, SOON)?;
            laptop.wait_reaches(member.v4()?, SOON)?;
            member.wait_reaches(laptop.addresses[0], SOON)?;
        }
        Ok(())
    };
    reach_each_other()?;
    let status = k1.status()?;
    assert_eq!((&status["backend"]["kind"], &status["networks"][0]["port"]), (&"kernel".into(), &port));
    let engine = k1.engine_pid()?;
    // The agent ends and starts, without the controller: nobody loses a packet.
    let near = a.v6()?.to_string();
    let ping = laptop.command("ping").args(["-n", "-i", "0.01", "-c", "400", &near]).spawn("flood")?;
    let between = flood(&a, &b, 400, "0.01")?;
    for _ in 0..2 {
        k1.kill_agent()?;
        k1.launch()?;
        k1.wait_connected("acme")?;
    }
    assert_eq!((lost(&ping)?, lost(&between)?), (0, 0));
    assert_eq!((k1.engine_pid()?, wg(&a, "public-key")?), (engine, key));
    reach_each_other()?;
    // A container that comes later is the kernel's, and the laptop finds it.
    let c = k1.attach("acme", "c")?;
    assert!(wg(&c, "listen-port").is_ok());
    laptop.wait_reaches(c.v6()?, SOON)?;
    world.controller.ctl(&["access", "revoke", "acme", "laptop", "--yes"])?;
    let cut_off = || (!laptop.pings(a.v6().ok()?, Duration::from_millis(500)).ok()?).then_some(());
    probe::until("the laptop to be cut off", SOON, cut_off)?;
    a.reaches_all([&b, &c], FIRST_PACKET)?;
    laptop.down()?;
    world.passed();
    Ok(())
}
