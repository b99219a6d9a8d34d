//! Key pairs that are changed while packets flow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netns_harness::{HostCommand, Process, probe};
use serde_json::Value;
use znet_api::agent_client::connect;
use znet_api::tls::Identity;
use znet_api::v1;
use znet_tests::{FIRST_PACKET, FleetNode, Laptop, Member, NetworkSpec, Node, Result, Served, World};

const SOON: Duration = Duration::from_secs(15);
/// A change takes some seconds until the new keys are in use, and fifteen more until the former are gone.
const ROTATION: Duration = Duration::from_secs(90);
/// Containers of the large network, on three nodes.
const CONTAINERS: usize = 30;

fn acme(world: &World) -> Result<String> {
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
    world.controller.create_network(&spec)
}

/// The public key of each container, and how far the change of it is.
fn keys(world: &World) -> Result<BTreeMap<String, (String, Value)>> {
    let all = world.controller.json(&["container", "list", "acme"])?;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of = |one: &Value| (text(&one["name"]), (text(&one["public_key"]), one["key_change"].clone()));
    Ok(all.as_array().unwrap().iter().map(of).collect())
}

fn stage(world: &World, name: &str) -> Option<String> {
    Some(keys(world).ok()?.get(name)?.1.as_str().unwrap_or("none").to_owned())
}

/// Waits until the change of a container's key is so far.
fn wait_for_stage(world: &World, name: &str, wanted: &str) -> Result {
    let there = || stage(world, name).filter(|stage| stage == wanted);
    probe::until(&format!("the key of {name} to be {wanted}"), ROTATION, there)?;
    Ok(())
}

/// The key that `wg(8)` shows of a container's device on its node.
fn shown(node: &Node, member: &Member) -> Result<String> {
    Ok(node.host().command("wg").args(["show", &member.device, "public-key"]).run()?.stdout.trim().to_owned())
}

/// Pings from one container to others, each so many times at an interval in seconds.
fn flood(from: &Member, to: &[&Member], interval: &str, count: u32) -> Result<Process> {
    let addresses: Vec<String> = to.iter().map(|to| Ok(to.v6()?.to_string())).collect::<Result<_>>()?;
    let script = format!(
        "for to in {}; do ping -n -q -W 5 -i {interval} -c {count} $to & done; wait",
        addresses.join(" ")
    );
    Ok(from.command("sh").args(["-c", &script]).spawn("flood")?)
}

/// How many pings were sent, and how many of them were not answered.
fn result(flood: &Process, within: Duration) -> Result<(u64, u64)> {
    flood.wait(within)?;
    let text = flood.stdout()?;
    let summaries = text.lines().filter(|line| line.contains("packets transmitted"));
    let counts = summaries.map(|line| {
        let numbers: Vec<u64> =
            line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
        (numbers[0], numbers[0] - numbers[1])
    });
    let (sent, lost) = counts.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    assert!(sent > 0, "no summary: {text}");
    Ok((sent, lost))
}

/// What was sent and lost by all of them.
fn results(floods: &[Process], within: Duration) -> Result<(u64, u64)> {
    let deadline = Instant::now() + within;
    let mut all = (0, 0);
    for flood in floods {
        let (sent, lost) = result(flood, deadline.saturating_duration_since(Instant::now()))?;
        all = (all.0 + sent, all.1 + lost);
    }
    Ok(all)
}

/// Pings between all pairs, for so many seconds: each pair four times a second, and three of them a thousand times. A thousand
/// times between all of them would be more than two cores carry.
fn flood_all(members: &[Member], seconds: u32) -> Result<(Vec<Process>, Vec<Process>)> {
    let mut all = Vec::new();
    for (n, from) in members.iter().enumerate() {
        let later: Vec<&Member> = members[n + 1..].iter().collect();
        if !later.is_empty() {
            all.push(flood(from, &later, "0.25", seconds * 4)?);
        }
    }
    // Of two nodes, of one node, and so that one container is at both ends.
    let fast = [(0, 1), (1, 2), (3, 6)];
    let fast = fast.into_iter().map(|(a, b)| flood(&members[a], &[&members[b]], "0.001", seconds * 1_000));
    Ok((all, fast.collect::<Result<_>>()?))
}

/// Changes all keys while all containers ping each other. How many pings were lost of all pairs, and of the fast ones.
fn change_under_flood(world: &World, members: &[Member]) -> Result<(u64, u64)> {
    let (all, fast) = flood_all(members, 30)?;
    let begun = Instant::now();
    let rotated = world.controller.ctl(&["key", "rotate", "acme", "--all", "--wait", "2m"])?;
    println!("changed after {:?}:\n{}", begun.elapsed(), rotated.stdout);
    assert!(all.iter().chain(&fast).all(Process::is_running), "pings went on while keys were changed");
    let (slow, fast) = (results(&all, ROTATION)?, results(&fast, ROTATION)?);
    println!("with a change: {slow:?} of all pairs, {fast:?} of the fast ones");
    Ok((slow.1, fast.1))
}

#[test]
fn all_keys_of_thirty_containers_are_changed_and_no_ping_is_lost() -> Result {
    let mut world = World::new("rotate-all")?;
    let token = acme(&world)?;
    let nodes: Vec<Node> = (1..=3).map(|n| world.node(&format!("n{n}"), &[&token])).collect::<Result<_>>()?;
    let attach = |n: usize| nodes[n % 3].attach("acme", &format!("c{n}"));
    let members: Vec<Member> = (0..CONTAINERS).map(attach).collect::<Result<_>>()?;
    for from in &members {
        let to: Vec<&Member> = members.iter().filter(|to| to.name != from.name).collect();
        result(&flood(from, &to, "0.2", 1)?, FIRST_PACKET)?;
    }
    // What the machine carries when nothing is changed.
    let (all, fast) = flood_all(&members, 5)?;
    let (quiet, quiet_fast) = (results(&all, ROTATION)?, results(&fast, ROTATION)?);
    println!("without a change: {quiet:?} of all pairs, {quiet_fast:?} of the fast ones");
    assert_eq!((quiet.1, quiet_fast.1), (0, 0), "the machine does not carry this at rest");
    let before = keys(&world)?;
    assert_eq!(change_under_flood(&world, &members)?, (0, 0));
    let after = keys(&world)?;
    for member in &members {
        let (key, change) = &after[&member.name];
        assert!(change.is_null() && *key != before[&member.name].0, "{}", member.name);
        let number: usize = member.name[1..].parse()?;
        assert_eq!(shown(&nodes[number % 3], member)?, *key);
    }
    let trail = world.controller.json(&["audit", "acme"])?;
    let actions: Vec<&str> =
        trail.as_array().unwrap().iter().map(|record| record["action"].as_str().unwrap()).collect();
    for action in ["key.rotate", "key.offer", "key.advance"] {
        assert!(actions.contains(&action), "{action}");
    }
    world.passed();
    Ok(())
}

#[test]
fn a_change_outlives_its_controller_and_its_agents_and_waits_for_a_node_that_is_away() -> Result {
    let mut world = World::new("rotate-killed")?;
    let token = acme(&world)?;
    let mut n1 = world.node("n1", &[&token])?;
    let mut n2 = world.node("n2", &[&token])?;
    let mut n3 = world.node("n3", &[&token])?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    let (c, d) = (n3.attach("acme", "c")?, n1.attach("acme", "d")?);
    for from in [&a, &b, &c, &d] {
        from.reaches_all([&a, &b, &c, &d], FIRST_PACKET)?;
    }
    let before = keys(&world)?;
    let floods = [
        flood(&a, &[&b, &c, &d], "0.01", 6_000)?,
        flood(&b, &[&c, &d], "0.01", 6_000)?,
        flood(&c, &[&d], "0.01", 6_000)?,
    ];
    let begun = Instant::now();
    // A node is away: its engine moves packets, and hears of nothing.
    n3.kill_agent()?;
    world.controller.ctl(&["key", "rotate", "acme", "a", "b", "d"])?;
    for name in ["a", "b", "d"] {
        wait_for_stage(&world, name, "offered")?;
    }
    // The controller forgets whom it has heard of, and an agent where it was.
    world.controller.kill()?;
    n1.kill_agent()?;
    world.controller.launch()?;
    n1.launch()?;
    n2.wait_connected("acme")?;
    n1.wait_connected("acme")?;
    assert_eq!(stage(&world, "a").as_deref(), Some("offered"), "one does not know the next key");
    n3.launch()?;
    n3.wait_connected("acme")?;
    for name in ["a", "b", "d"] {
        wait_for_stage(&world, name, "promoted")?;
    }
    // And once more, while the new keys come into use.
    n2.kill_agent()?;
    world.controller.kill()?;
    n2.launch()?;
    world.controller.launch()?;
    let waited = world.controller.ctl(&["key", "rotate", "acme", "a", "b", "d", "--wait", "1m"])?;
    println!("changed after {:?}:\n{}", begun.elapsed(), waited.stdout);
    let (sent, lost) = results(&floods, ROTATION)?;
    println!("{lost} of {sent} pings were lost");
    assert_eq!(lost, 0);
    let after = keys(&world)?;
    for (node, member) in [(&n1, &a), (&n2, &b), (&n1, &d)] {
        assert_ne!(after[&member.name].0, before[&member.name].0);
        assert_eq!(shown(node, member)?, after[&member.name].0);
    }
    assert_eq!(after["c"], before["c"]);
    // Nothing of the former keys is needed for new sessions.
    for from in [&a, &b, &c, &d] {
        from.reaches_all([&a, &b, &c, &d], SOON)?;
    }
    world.passed();
    Ok(())
}

#[test]
fn a_person_at_an_access_point_loses_nothing_while_all_keys_are_changed() -> Result {
    let mut world = World::new("rotate-access")?;
    let token = acme(&world)?;
    let (mut n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    let created = world.controller.ctl(&["access", "create", "acme", "laptop", "--via", "n1"])?;
    let host = world.host("desk")?;
    let laptop = Laptop::up(&world.lab, &host, &created.stdout)?;
    for member in [&a, &b] {
        laptop.wait_reaches(member.v6()?, FIRST_PACKET)?;
    }
    let before = keys(&world)?;
    assert_eq!(before.len(), 3, "the access point is seen as a container");
    let pings = |from: HostCommand, to: IpAddr| -> Result<Process> {
        let flood = from.args(["-n", "-q", "-W", "5", "-i", "0.005", "-c", "8000", &to.to_string()]);
        Ok(flood.spawn("flood")?)
    };
    let floods = [
        pings(laptop.command("ping"), a.v4()?)?,
        pings(laptop.command("ping"), b.v6()?)?,
        pings(b.command("ping"), laptop.addresses[0])?,
    ];
    // Of all, and once more of the access point while its agent is away and comes back.
    world.controller.ctl(&["key", "rotate", "acme", "--all", "--wait", "1m"])?;
    let between = keys(&world)?;
    world.controller.ctl(&["key", "rotate", "acme", "laptop"])?;
    n1.kill_agent()?;
    n1.launch()?;
    n1.wait_connected("acme")?;
    wait_for_stage(&world, "laptop", "promoted")?;
    let (sent, lost) = results(&floods, ROTATION)?;
    println!("{lost} of {sent} pings were lost");
    assert_eq!(lost, 0);
    wait_for_stage(&world, "laptop", "none")?;
    let after = keys(&world)?;
    for name in ["a", "b", "laptop"] {
        assert_ne!(between[name].0, before[name].0, "{name}");
    }
    assert_ne!(after["laptop"].0, between["laptop"].0);
    laptop.wait_reaches(b.v6()?, FIRST_PACKET)?;
    world.passed();
    Ok(())
}

#[test]
fn what_cannot_be_changed_is_said_and_what_is_being_changed_is_no_error() -> Result {
    let mut world = World::new("rotate-errors")?;
    let token = acme(&world)?;
    let n1 = world.node("n1", &[&token])?;
    let a = n1.attach("acme", "a")?;
    for (args, code, word) in [
        (&["key", "rotate", "acme", "x"][..], 3, "there is no container x"),
        (&["key", "rotate", "acme", "--node", "n9"], 3, "there is no node n9"),
        (&["key", "rotate", "other", "--all"], 3, "other"),
        (&["key", "rotate", "acme"], 2, "CONTAINER"),
        (&["network", "set", "acme", "--key-lifetime", "10s"], 4, "too short"),
    ] {
        let refused = world.controller.try_ctl(args)?;
        let code =
            if word == "too short" { refused.status.code().filter(|code| *code != 0) } else { Some(code) };
        assert!(
            refused.status.code() == code && refused.stderr.contains(word),
            "{args:?}: {}",
            refused.stderr
        );
    }
    let network = world.controller.json(&["network", "set", "acme", "--key-lifetime", "30d"])?;
    assert_eq!(network["key_lifetime_seconds"], 30 * 86_400);
    let network = world.controller.json(&["network", "set", "acme", "--key-lifetime", "0s"])?;
    assert!(network["key_lifetime_seconds"].is_null());
    let first = keys(&world)?;
    world.controller.ctl(&["key", "rotate", "acme", "--node", "n1"])?;
    let again = world.controller.try_ctl(&["key", "rotate", "acme", "a", "--wait", "1ms"])?;
    assert_eq!(again.status.code(), Some(7), "{}", again.stderr);
    let changed = world.controller.json(&["key", "rotate", "acme", "a", "--wait", "1m"])?;
    assert_ne!(changed[0]["public_key"], first["a"].0.as_str(), "{changed}");
    assert!(changed[0]["key_change"].is_null(), "{changed}");
    assert_eq!(changed[0]["public_key"].as_str().unwrap(), shown(&n1, &a)?);
    world.passed();
    Ok(())
}

#[test]
fn a_node_that_is_away_and_holds_a_change_up_is_named_with_the_way_out() -> Result {
    let mut world = World::new("rotate-away")?;
    let token = acme(&world)?;
    let (n1, mut n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let (a, _b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    n2.kill_agent()?;
    world.controller.ctl(&["key", "rotate", "acme", "a"])?;
    wait_for_stage(&world, "a", "offered")?;
    let told = || {
        let status = world.controller.ctl(&["status", "acme"]).ok()?.stdout;
        let keys = status.split("key pairs that are being changed: 1").nth(1)?;
        (keys.contains("n2 (seen") && keys.contains("znet-ctl node remove acme n2")).then_some(())
    };
    probe::until("the status to tell who is waited for", ROTATION, told)?;
    let waited = world.controller.try_ctl(&["key", "rotate", "acme", "a", "--wait", "1ms"])?;
    assert_eq!(waited.status.code(), Some(7), "{}", waited.stderr);
    for word in ["a (offered)", "n2 (seen", "znet-ctl node remove acme n2"] {
        assert!(waited.stderr.contains(word), "no {word:?}: {}", waited.stderr);
    }
    world.controller.ctl(&["node", "remove", "acme", "n2", "--yes"])?;
    let changed = world.controller.json(&["key", "rotate", "acme", "a", "--wait", "50s"])?;
    assert_eq!(changed[0]["public_key"].as_str().unwrap(), shown(&n1, &a)?);
    world.passed();
    Ok(())
}

/// What `znet-ctl` says to an operator of this controller, and how it ends.
fn ctl(served: &Served, args: &[&str]) -> Result<(Option<i32>, String)> {
    let command = std::process::Command::new(znet_tests::program("znet-ctl")?)
        .arg("--socket")
        .arg(served.socket())
        .args(args)
        .output()?;
    let said = [command.stdout, command.stderr].concat();
    Ok((command.status.code(), String::from_utf8(said)?))
}

#[tokio::test]
async fn a_node_that_never_said_that_it_holds_two_keys_is_named_with_the_way_out() -> Result {
    let mut served = Served::start()?;
    let token = served.network("acme").await?;
    let fine = FleetNode::join(&token, "fine", 0).await?;
    // As an agent of an earlier version, which says nothing of it, joins and is not seen again.
    let identity = Identity::generate()?;
    let (mut client, _) = connect(&token.controllers(), &identity, 0).await?;
    let join = v1::JoinRequest {
        network: token.network.as_bytes().to_vec(),
        secret: token.secret.to_bytes().to_vec(),
        name: "edge-7".to_owned(),
        ..v1::JoinRequest::default()
    };
    client.join(join).await?;
    let way_out = "znet-ctl node remove acme edge-7";
    let (code, said) = ctl(&served, &["key", "rotate", "acme", "--all"])?;
    assert!(code == Some(4) && said.contains("edge-7") && said.contains(way_out), "{code:?} {said}");
    let (code, said) = ctl(&served, &["status", "acme"])?;
    assert!(code == Some(0) && said.contains("edge-7 (not seen") && said.contains(way_out), "{said}");
    assert!(!said.contains("fine-0 ("), "{said}");
    let (code, said) = ctl(&served, &["node", "remove", "acme", "edge-7", "--yes"])?;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = ctl(&served, &["key", "rotate", "acme", "--all"])?;
    assert_eq!(code, Some(0), "{said}");
    let (_, said) = ctl(&served, &["status", "acme"])?;
    assert!(!said.contains("no key of a container can be changed"), "{said}");
    drop(fine);
    served.is_unharmed().await
}
