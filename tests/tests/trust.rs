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
