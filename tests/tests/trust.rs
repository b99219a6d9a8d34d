//! What agents believe of their controllers, and how that changes: addresses and keys, while links go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use netns_harness::{Host, Output, Process, Signal, probe};
use serde_json::Value;
use znet_tests::{Cluster, Controller, FIRST_PACKET, Member, NetworkSpec, Node, Result, World, program};

const SOON: Duration = Duration::from_secs(20);

fn acme(controller: &Controller) -> Result<String> {
    controller.create_network(&NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None })
}

/// A ping a hundred times a second, until [`assert_no_loss`].
fn flood(from: &Member, to: &Member) -> Result<Process> {
    Ok(from.command("ping").args(["-n", "-i", "0.01", &to.v6()?.to_string()]).spawn("flood")?)
}

fn assert_no_loss(flood: &Process) -> Result {
    flood.signal(Signal::SIGINT)?;
    flood.wait(SOON)?;
    let text = flood.stdout()?;
    let sent = text.lines().find_map(|line| line.split_once(" packets transmitted")?.0.parse::<usize>().ok());
    let sent = sent.unwrap_or_else(|| panic!("no summary: {text}"));
    // The signal may come between the last request and its answer; all before must have theirs.
    let lost: Vec<usize> = (1..sent).filter(|n| !text.contains(&format!("icmp_seq={n} "))).collect();
    assert!(sent > 10 && lost.is_empty(), "of {sent} these were lost: {lost:?}");
    Ok(())
}

/// Waits until these nodes have the current map.
fn wait_current(controller: &Controller, nodes: &[&Node]) -> Result {
    let revision = controller.json(&["network", "show", "acme"])?["revision"].as_u64().unwrap();
    for node in nodes {
        let there = || node.revision("acme").ok().filter(|applied| *applied >= revision);
        probe::until(&format!("{} to have revision {revision}", node.name()), SOON, there)?;
    }
    Ok(())
}

fn actions(controller: &Controller, network: &str) -> Result<Vec<String>> {
    let trail = controller.json(&["audit", network, "--limit", "1000"])?;
    Ok(trail.as_array().unwrap().iter().map(|record| record["action"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn a_controller_that_moves_is_followed_by_running_and_by_stopped_agents_and_links_lose_nothing() -> Result {
    let mut world = World::new("moves")?;
    let token = acme(&world.controller)?;
    let n1 = world.node("n1", &[&token])?;
    let n2 = world.node("n2", &[&token])?;
    let mut n3 = world.node("n3", &[&token])?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    b.wait_reaches(a.v6()?, FIRST_PACKET)?;
    // Until an operator says something the map says nothing, as in earlier versions.
    assert_eq!(world.controller.json(&["controllers", "list"])?["acme"], serde_json::json!([]));
    let bad = world.controller.try_ctl(&["controllers", "add", "no-port"])?;
    assert!(!bad.status.success() && bad.stderr.contains("is not HOST:PORT"), "{}", bad.stderr);

    let host = world.host("ctl2")?;
    let address = "192.0.2.14";
    world.controller.ctl(&["controllers", "add", "192.0.2.1:7443", "192.0.2.14:7443"])?;
    wait_current(&world.controller, &[&n1, &n2, &n3])?;
    n3.stop_agent()?;
    let flood = flood(&a, &b)?;
    // The move: stopped here, its data there, started there.
    world.controller.stop()?;
    let there = host.dir().join("data");
    host.command("cp").arg("-a").arg(world.controller.data_dir()).arg(&there).run()?;
    let moved = Controller::start(&host, address)?;
    n1.wait_connected("acme")?;
    n2.wait_connected("acme")?;
    // With the token that names the old address alone.
    n3.launch()?;
    n3.wait_connected("acme")?;
    moved.ctl(&["controllers", "remove", "192.0.2.1:7443"])?;
    wait_current(&moved, &[&n1, &n2, &n3])?;
    let c = n3.attach("acme", "c")?;
    a.wait_reaches(c.v6()?, FIRST_PACKET)?;
    assert_no_loss(&flood)?;
    let listed = moved.json(&["controllers", "list", "--network", "acme"])?;
    assert_eq!(listed["acme"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["acme"][0]["address"], "192.0.2.14:7443");
    let said = actions(&moved, "acme")?;
    assert_eq!(said.iter().filter(|action| *action == "network.controllers").count(), 2, "{said:?}");
    world.passed();
    Ok(())
}

#[test]
fn controllers_that_share_a_store_put_themselves_into_the_map_and_agents_find_one_that_came_later() -> Result
{
    let mut cluster = Cluster::new("etcd-listed")?;
    let token = acme(&cluster.controllers[0])?;
    let listed = |controller: &Controller| -> Option<Vec<String>> {
        let all = controller.json(&["controllers", "list", "--network", "acme"]).ok()?;
        let address = |one: &Value| one["address"].as_str().map(str::to_owned);
        all["acme"].as_array()?.iter().map(address).collect()
    };
    let both = |at: usize| listed(&cluster.controllers[at]).filter(|all| all.len() == 2);
    probe::until("the first controller to list both", SOON, || both(0))?;
    probe::until("the second controller to list both", SOON, || both(1))?;
    let node = cluster.node("n1", &token)?;
    wait_current(&cluster.controllers[0], &[&node])?;
    // One that nobody's token names, as its address is new, takes the place of both.
    let (c1, c2) = (&cluster.controllers[0], &cluster.controllers[1]);
    c1.ctl(&["controllers", "remove", "192.0.2.1:7443"])?;
    assert_eq!(listed(c1).unwrap(), ["192.0.2.2:7443"]);
    c1.host().sysctl("net/ipv4/conf/eth0/promote_secondaries", "1")?;
    c1.host().add_address("eth0", "192.0.2.9/24")?;
    c1.ctl(&["controllers", "set", "192.0.2.9:7443"])?;
    wait_current(c1, &[&node])?;
    // Neither address of the token leads anywhere any more.
    c1.host().remove_address("eth0", "192.0.2.1/24")?;
    let asleep = c2.process()?;
    asleep.signal(Signal::SIGSTOP)?;
    let attached = || node.attach_with("acme", "later", &["--wait-controller", "10s"]).ok();
    probe::until("the node to find its controller", SOON, attached)?;
    asleep.signal(Signal::SIGCONT)?;
    cluster.lab.passed();
    Ok(())
}

/// The keys of a controller: the pin that it shows, the one that it announces, and those that it keeps.
fn keys(controller: &Controller) -> Option<(String, Option<String>, Vec<String>)> {
    let keys = controller.json(&["tls", "show"]).ok()?;
    let former = keys["former"].as_array()?.iter();
    let former = former.map(|former| former["pin"].as_str().unwrap().to_owned()).collect();
    Some((keys["current"].as_str()?.to_owned(), keys["next"].as_str().map(str::to_owned), former))
}

/// What `znet-ctl network list` says to an operator elsewhere who pins this key.
fn ask(from: &Host, operator: &Value, pin: &str) -> Result<Output> {
    let command = from.command(program("znet-ctl")?).args(["network", "list"]);
    let command = command.env("ZNET_CONTROLLER", "192.0.2.1:7443").env("ZNET_PIN", pin);
    Ok(command.env("ZNET_OPERATOR_TOKEN", operator["operator_token"].as_str().unwrap()).try_run()?)
}

#[test]
fn the_tls_key_changes_under_running_agents_and_who_was_away_is_served_until_the_old_one_is_retired() -> Result
{
    let mut world = World::new("tls-rotate")?;
    let token = acme(&world.controller)?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let mut away = world.node("away", &[&token])?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    b.wait_reaches(a.v6()?, FIRST_PACKET)?;
    let operator = world.controller.json(&["operator", "create", "far", "--role", "admin"])?;
    let (far, old) = (world.host("far")?, operator["pin"].as_str().unwrap().to_owned());
    away.stop_agent()?;
    let flood = flood(&a, &b)?;

    // A node that is alive and does not hear of it holds the change up.
    n2.agent()?.signal(Signal::SIGSTOP)?;
    let rotated = world.controller.json(&["tls", "rotate"])?;
    let new = rotated["next"].as_str().unwrap().to_owned();
    assert_eq!(rotated["current"], old.as_str());
    let announced = || {
        let listed = world.controller.json(&["controllers", "list"]).ok()?;
        (listed["acme"][0]["pins"].as_array()?.len() == 2).then_some(())
    };
    probe::until("the key to be announced", SOON, announced)?;
    wait_current(&world.controller, &[&n1])?;
    assert_eq!(keys(&world.controller).unwrap(), (old.clone(), Some(new.clone()), vec![]));
    let again = world.controller.try_ctl(&["tls", "rotate"])?;
    assert!(again.stderr.contains("znet-ctl tls promote"), "{}", again.stderr);
    // Killed in the middle, it goes on with what is left to do.
    world.controller.kill()?;
    world.controller.launch()?;
    n2.agent()?.signal(Signal::SIGCONT)?;
    let shown = |controller: &Controller| {
        keys(controller).filter(|keys| *keys == (new.clone(), None, vec![old.clone()]))
    };
    probe::until("the new key to be shown", SOON, || shown(&world.controller))?;
    world.controller.kill()?;
    world.controller.launch()?;
    assert!(shown(&world.controller).is_some());
    for node in [&n1, &n2] {
        node.wait_connected("acme")?;
    }
    wait_current(&world.controller, &[&n1, &n2])?;

    // Who was away, who has an old token and who pins the old key are served, and told.
    away.launch()?;
    away.wait_connected("acme")?;
    let late = world.node("late", &[&token])?;
    late.wait_connected("acme")?;
    let said = ask(&far, &operator, &old)?;
    assert!(said.status.success() && said.stderr.contains(&format!("ZNET_PIN={new}")), "{}", said.stderr);
    let said = ask(&far, &operator, &new)?;
    assert!(said.status.success() && said.stderr.is_empty(), "{}", said.stderr);
    wait_current(&world.controller, &[&away, &late])?;

    // Retired, the old key opens nothing, and nobody who followed notices.
    let fresh = world.controller.token("acme", &[])?;
    world.controller.ctl(&["tls", "retire", "--yes"])?;
    let said = ask(&far, &operator, &old)?;
    assert_eq!(said.status.code(), Some(5), "{}", said.stderr);
    assert!(ask(&far, &operator, &new)?.status.success());
    world.controller.kill()?;
    world.controller.launch()?;
    for node in [&n1, &n2, &away, &late] {
        node.wait_connected("acme")?;
        wait_current(&world.controller, &[node])?;
    }
    let stranger = world.node("stranger", &[])?;
    let refused = stranger.try_znet(&["join", &token])?;
    assert!(refused.stderr.contains("the token is of another controller"), "{}", refused.stderr);
    stranger.znet(&["join", &fresh])?;
    stranger.wait_connected("acme")?;
    assert_no_loss(&flood)?;
    let done = world.controller.json(&["audit", "--limit", "1000"])?;
    let done = done.as_array().unwrap().iter().filter_map(|record| record["action"].as_str());
    let done: Vec<&str> = done.filter(|action| action.starts_with("tls.")).collect();
    assert_eq!(done, ["tls.rotate", "tls.promote", "tls.retire"]);
    world.passed();
    Ok(())
}

#[test]
fn controllers_that_share_a_store_change_their_tls_key_together_and_give_the_old_one_up_in_time() -> Result {
    let mut cluster = Cluster::new("etcd-tls")?;
    let token = acme(&cluster.controllers[0])?;
    let node = cluster.node("n1", &token)?;
    let (old, ..) = keys(&cluster.controllers[0]).unwrap();
    cluster.controllers[0].ctl(&["tls", "rotate", "--keep", "8s"])?;
    // The one that was asked dies; the other one ends what was begun.
    cluster.controllers[0].kill()?;
    let shown = |controller: &Controller| {
        keys(controller)
            .filter(|(new, next, former)| *new != old && next.is_none() && *former == [old.clone()])
    };
    let (new, ..) =
        probe::until("the second controller to show the new key", SOON, || shown(&cluster.controllers[1]))?;
    wait_current(&cluster.controllers[1], &[&node])?;
    let late = cluster.node("late", &token)?;
    late.wait_connected("acme")?;
    let over = |controller: &Controller| keys(controller).filter(|keys| *keys == (new.clone(), None, vec![]));
    probe::until("the old key to be given up", SOON, || over(&cluster.controllers[1]))?;
    cluster.controllers[0].launch()?;
    assert!(over(&cluster.controllers[0]).is_some());
    cluster.controllers[1].kill()?;
    for node in [&node, &late] {
        let attached = || node.attach_with("acme", node.name(), &[]).ok();
        probe::until("the node to be served by the first controller", SOON, attached)?;
    }
    cluster.lab.passed();
    Ok(())
}

/// What `GET /v1/networks/acme/key` says.
fn signing(controller: &Controller) -> Option<Value> {
    let socket = controller.host().command("curl").args(["-sS", "--unix-socket", "/run/znet-ctl/ctl.sock"]);
    let text = socket.arg("http://znet/v1/networks/acme/key").run().ok()?.stdout;
    serde_json::from_str(&text).ok()
}

/// The signing key that a node has written down, and how many it has left behind.
fn believed(node: &Node, token: &str) -> Result<(String, usize)> {
    let network = token.parse::<znet_api::token::JoinToken>()?.network;
    let file = node.state_dir().join(format!("networks/{network}/membership.json"));
    let kept: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let former = kept["former_keys"].as_array().map_or(0, Vec::len);
    Ok((kept["verifying_key"].as_str().unwrap().to_owned(), former))
}

#[test]
fn the_signing_key_changes_under_running_agents_and_who_was_away_follows_until_earlier_keys_are_retired()
-> Result {
    let mut world = World::new("key-rotate")?;
    let token = acme(&world.controller)?;
    let (mut n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let (mut away, mut lost) = (world.node("away", &[&token])?, world.node("lost", &[&token])?);
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    b.wait_reaches(a.v6()?, FIRST_PACKET)?;
    let first = signing(&world.controller).unwrap()["current"].as_str().unwrap().to_owned();
    away.stop_agent()?;
    lost.stop_agent()?;
    let flood = flood(&a, &b)?;

    // Twice, with the controller killed in the middle of it and between.
    let rotating = world.controller.host().command(program("znet-ctl")?);
    let rotating = rotating.args(["network", "rotate-key", "acme"]).spawn("rotate")?;
    std::thread::sleep(Duration::from_millis(4));
    world.controller.kill()?;
    let told = rotating.wait(SOON)?.success();
    world.controller.launch()?;
    let now = signing(&world.controller).unwrap();
    assert!(!told || now["current"] != first.as_str(), "what was acknowledged did not happen");
    if now["current"] == first.as_str() {
        world.controller.ctl(&["network", "rotate-key", "acme"])?;
    }
    let second = signing(&world.controller).unwrap()["current"].as_str().unwrap().to_owned();
    wait_current(&world.controller, &[&n1, &n2])?;
    world.controller.ctl(&["network", "rotate-key", "acme"])?;
    wait_current(&world.controller, &[&n1, &n2])?;
    world.controller.kill()?;
    world.controller.launch()?;
    let keys = signing(&world.controller).unwrap();
    let third = keys["current"].as_str().unwrap().to_owned();
    assert_eq!(keys["former"], serde_json::json!([first, second]));
    // The private halves of the others are gone.
    let id = token.parse::<znet_api::token::JoinToken>()?.network;
    let file = world.controller.data_dir().join(format!("networks/{id}.key"));
    let one = || (std::fs::read_to_string(&file).ok()?.lines().count() == 1).then_some(());
    probe::until("the earlier keys to be removed", SOON, one)?;
    for node in [&n1, &n2] {
        node.wait_connected("acme")?;
        wait_current(&world.controller, &[node])?;
        assert_eq!(believed(node, &token)?, (third.clone(), 2), "{}", node.name());
    }
    // An agent that starts without its controller believes what it has on disk, under whichever key that was.
    world.controller.kill()?;
    n1.kill_agent()?;
    n1.launch()?;
    assert!(n1.revision("acme")? > 0);
    world.controller.launch()?;
    n1.wait_connected("acme")?;

    // One that was away follows both steps, and so does a node with an old token.
    let behind = signing(&world.controller).unwrap()["not_followed"].clone();
    assert!(
        ["away", "lost"].iter().all(|name| behind.as_array().unwrap().contains(&(*name).into())),
        "{behind}"
    );
    away.launch()?;
    away.wait_connected("acme")?;
    let late = world.node("late", &[&token])?;
    late.wait_connected("acme")?;
    let c = late.attach("acme", "c")?;
    a.wait_reaches(c.v6()?, FIRST_PACKET)?;
    wait_current(&world.controller, &[&away, &late])?;
    assert_eq!(believed(&away, &token)?, (third.clone(), 2));
    assert_eq!(believed(&late, &token)?, (third.clone(), 2));

    // Retired, earlier keys lead nowhere: the operator is told who is lost, and a new token brings that one back.
    let retired = ["network", "rotate-key", "acme", "--retire"];
    let asked = world.controller.try_ctl(&retired)?;
    assert!(
        !asked.status.success() && asked.stdout.contains("followed yet") && asked.stdout.contains("lost")
    );
    world.controller.ctl(&[&retired[..], &["--yes"]].concat())?;
    assert_eq!(signing(&world.controller).unwrap()["former"], serde_json::json!([]));
    lost.launch()?;
    let told = || lost.agent().ok()?.stderr().ok()?.contains("a new join token helps").then_some(());
    probe::until("the node to be told that its key was retired", SOON, told)?;
    assert_eq!(believed(&lost, &token)?, (first, 0));
    let stranger = world.node("stranger", &[])?;
    let refused = stranger.try_znet(&["join", &token])?;
    assert!(!refused.status.success() && refused.stderr.contains("key was retired"), "{}", refused.stderr);
    let fresh = world.controller.token("acme", &[])?;
    lost.znet(&["join", &fresh])?;
    lost.wait_connected("acme")?;
    wait_current(&world.controller, &[&n1, &n2, &away, &late, &lost])?;
    assert_eq!(believed(&lost, &token)?.0, third);
    assert_no_loss(&flood)?;

    let said = actions(&world.controller, "acme")?;
    let count = |wanted: &str| said.iter().filter(|action| *action == wanted).count();
    assert_eq!((count("network.rotate_key"), count("network.retire_keys")), (2, 1), "{said:?}");
    // A backup holds the keys that there are.
    let backup = world.controller.host().dir().join("backup");
    let backup = backup.to_str().unwrap();
    world.controller.ctl(&["backup", backup])?;
    world.controller.kill()?;
    let data = world.controller.data_dir();
    world.controller.ctl(&["restore", backup, "--data-dir", data.to_str().unwrap(), "--replace"])?;
    world.controller.launch()?;
    n1.wait_connected("acme")?;
    n1.attach("acme", "after-restore")?;
    world.passed();
    Ok(())
}

#[test]
fn controllers_that_share_a_store_change_a_signing_key_at_the_same_revision() -> Result {
    let mut cluster = Cluster::new("etcd-key")?;
    let token = acme(&cluster.controllers[0])?;
    let known = || cluster.controllers[1].token("acme", &[]).ok();
    let second = probe::until("the second controller to know the network", SOON, known)?;
    let (n1, n2) = (cluster.node("n1", &token)?, cluster.node("n2", &second)?);
    n1.wait_connected("acme")?;
    n2.wait_connected("acme")?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let flood = flood(&a, &b)?;
    cluster.controllers[0].ctl(&["network", "rotate-key", "acme"])?;
    wait_current(&cluster.controllers[0], &[&n1, &n2])?;
    cluster.controllers[1].ctl(&["network", "rotate-key", "acme"])?;
    wait_current(&cluster.controllers[1], &[&n1, &n2])?;
    let current = |at: usize| -> Value { signing(&cluster.controllers[at]).unwrap()["current"].clone() };
    assert_eq!(current(0), current(1));
    for node in [&n1, &n2] {
        assert_eq!((current(0).as_str().unwrap().to_owned(), 2), believed(node, &token)?);
    }
    cluster.controllers[0].kill()?;
    let moved = || n1.attach_with("acme", "moved", &["--wait-controller", "10s"]).ok();
    probe::until("the node to be served by the other controller", SOON, moved)?;
    cluster.controllers[0].launch()?;
    let late = cluster.node("late", &token)?;
    late.wait_connected("acme")?;
    assert_no_loss(&flood)?;
    cluster.lab.passed();
    Ok(())
}
