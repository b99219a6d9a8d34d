//! The agent: killed, restarted, half done, without its controller; what becomes of links meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::{Duration, Instant};

use anyhow::Context as _;
use netns_harness::{Process, Signal, probe};
use serde_json::Value;
use znet_tests::{FIRST_PACKET, Member, NetworkSpec, Node, NodeOptions, Result, World};

const SOON: Duration = Duration::from_secs(15);

fn acme(world: &World) -> Result<String> {
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
    world.controller.create_network(&spec)
}

/// A ping a hundred times a second; [`lost`] tells what was lost when it ends.
fn flood(from: &Member, to: &Member, count: u32) -> Result<Process> {
    let (count, to) = (count.to_string(), to.v6()?.to_string());
    Ok(from.command("ping").args(["-n", "-i", "0.01", "-c", &count, &to]).spawn("flood")?)
}

fn lost(flood: &Process) -> Result<u32> {
    flood.wait(Duration::from_secs(60))?;
    let text = flood.stdout()?;
    let numbers: Vec<u32> = text
        .lines()
        .find(|line| line.contains("packets transmitted"))
        .unwrap_or_else(|| panic!("no summary: {text}"))
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    Ok(numbers[0] - numbers[1])
}

fn containers(world: &World) -> Result<Vec<String>> {
    let all = world.controller.json(&["container", "list", "acme"])?;
    Ok(all.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn links_lose_no_packet_while_the_agent_is_killed_and_started_and_nothing_is_attached_twice() -> Result {
    let mut world = World::new("agent-killed")?;
    let token = acme(&world)?;
    let mut n1 = world.node("n1", &[&token])?;
    let n2 = world.node("n2", &[&token])?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let engine = n1.engine_pid()?;
    let flood = flood(&a, &b, 500)?;
    for _ in 0..3 {
        n1.kill_agent()?;
        n1.launch()?;
        n1.wait_connected("acme")?;
    }
    assert_eq!(lost(&flood)?, 0);
    assert_eq!(n1.engine_pid()?, engine, "the engine was replaced");
    assert_eq!(containers(&world)?, ["a", "b"]);
    let links = a.command("ip").args(["-brief", "link"]).run()?.stdout;
    assert_eq!(links.lines().count(), 2, "{links}");
    // An attachment of the killed agent is detached by the new one as any other.
    n1.znet(&["detach", "--network", "acme", "--name", "a"])?;
    assert_eq!(containers(&world)?, ["b"]);
    world.passed();
    Ok(())
}

#[test]
fn an_agent_that_is_killed_while_it_attaches_leaves_nothing_behind() -> Result {
    let mut world = World::new("agent-half")?;
    let token = acme(&world)?;
    let mut node = world.node("n1", &[&token])?;
    for round in 0..12 {
        let name = format!("half-{round}");
        let container = node.host().container(&name)?;
        let path = container.netns_path().display().to_string();
        let attaching = node
            .host()
            .command(znet_tests::program("znet-agent")?)
            .args(["attach", "--network", "acme", "--name", &name, "--netns", &path])
            .spawn("attach")?;
        // Each round kills at another moment of it.
        std::thread::sleep(Duration::from_millis(round * 3));
        node.kill_agent()?;
        let told = attaching.wait(SOON)?.success();
        node.launch()?;
        node.wait_connected("acme")?;
        let seen = std::cell::RefCell::new(String::new());
        let settled = || {
            let here = node.network("acme").ok()?;
            let here: Vec<&str> =
                here["attached"].as_array()?.iter().filter_map(|a| a["name"].as_str()).collect();
            let there = containers(&world).ok()?;
            let link = container.command("ip").args(["-brief", "link"]).run().ok()?.stdout.contains("znet0");
            let is_here = here.contains(&name.as_str());
            // Whole or not at all; and what was acknowledged is whole.
            *seen.borrow_mut() = format!("here: {here:?}, there: {there:?}, link: {link}");
            let agree = is_here == there.contains(&name) && is_here == link && (is_here || !told);
            agree.then_some(())
        };
        let waited = probe::until(&format!("round {round} (acknowledged: {told}) to settle"), SOON, settled);
        waited.with_context(|| seen.borrow().clone())?;
        node.znet(&["detach", "--network", "acme", "--name", &name])?;
        assert_eq!(containers(&world)?, [""; 0]);
    }
    world.passed();
    Ok(())
}

#[test]
fn without_their_controller_links_go_on_and_agents_restart_from_their_last_map() -> Result {
    let mut world = World::new("controller-gone")?;
    let token = acme(&world)?;
    let mut n1 = world.node("n1", &[&token])?;
    let mut n2 = world.node("n2", &[&token])?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let revision = n1.revision("acme")?;
    world.controller.kill()?;
    // Both agents and one engine start anew, and none of them can ask anybody.
    n1.kill_agent()?;
    n2.kill_agent()?;
    n1.launch()?;
    n2.launch()?;
    assert_eq!(n1.revision("acme")?, revision);
    assert!(a.pings(b.v6()?, FIRST_PACKET)?);
    let engine = n1.engine_pid()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(engine as i32), Signal::SIGKILL)?;
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    // What needs the controller says so; what was detached meanwhile is told to it later.
    let container = n1.host().container("late")?;
    let path = container.netns_path().display().to_string();
    let output = n1.try_znet(&["attach", "--network", "acme", "--name", "late", "--netns", &path])?;
    assert_eq!(output.status.code(), Some(6), "{}", output.stderr);
    assert!(output.stderr.contains("existing links go on"), "{}", output.stderr);
    n2.znet(&["detach", "--network", "acme", "--name", "b"])?;
    world.controller.launch()?;
    n1.wait_connected("acme")?;
    n2.wait_connected("acme")?;
    let gone = || containers(&world).ok().filter(|names| *names == ["a"]);
    probe::until("the controller to hear of the detached container", SOON, gone)?;
    n1.attach("acme", "late2")?;
    world.passed();
    Ok(())
}

#[test]
fn a_container_whose_namespace_vanished_is_detached() -> Result {
    let mut world = World::new("vanished")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let (a, b) = (node.attach("acme", "a")?, node.attach("acme", "b")?);
    a.container.remove()?;
    let gone = || containers(&world).ok().filter(|names| *names == ["b"]);
    probe::until("a to be detached", SOON, gone)?;
    let forgotten = || node.network("acme").ok().filter(|n| n["attached"].as_array().unwrap().len() == 1);
    probe::until("the node to forget a", SOON, forgotten)?;
    let c = node.attach("acme", "c")?;
    c.wait_reaches(b.v6()?, FIRST_PACKET)?;
    world.passed();
    Ok(())
}

#[test]
fn an_interface_that_somebody_removed_or_changed_is_mended() -> Result {
    let mut world = World::new("mended")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let (a, b) = (node.attach("acme", "a")?, node.attach("acme", "b")?);
    a.wait_reaches(b.v4()?, FIRST_PACKET)?;
    a.command("ip").args(["link", "delete", "znet0"]).run()?;
    a.wait_reaches(b.v4()?, Duration::from_secs(30))?;
    a.command("ip").args(["address", "flush", "dev", "znet0"]).run()?;
    a.wait_reaches(b.v4()?, Duration::from_secs(30))?;
    a.wait_reaches(b.v6()?, Duration::from_secs(30))?;
    world.passed();
    Ok(())
}

#[test]
fn exec_runs_a_command_as_a_container_passes_signals_and_status_and_cleans_up() -> Result {
    let mut world = World::new("exec")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let web = node.attach("acme", "web")?;
    let exec = |name: &str, script: &str| {
        let fixed = ["exec", "--network", "acme", "--name", name, "--", "sh", "-c", script];
        let command = node.host().command(znet_tests::program("znet-agent")?);
        Ok::<_, anyhow::Error>(command.args(fixed))
    };
    let ping = format!("ping -n -c 1 -W 10 {} && ip -brief address", web.v6()?);
    let output = exec("job", &ping)?.run()?;
    assert!(output.stdout.contains("znet0"), "{}", output.stdout);
    assert_eq!(exec("job", "exit 41")?.try_run()?.status.code(), Some(41));
    assert_eq!(exec("job", "kill -KILL $$")?.try_run()?.status.code(), Some(128 + 9));
    let missing = node.try_znet(&["exec", "--network", "acme", "--name", "job", "--", "/no/such/program"])?;
    assert_eq!(missing.status.code(), Some(127), "{}", missing.stderr);
    let waiting = exec("job", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done")?.spawn("exec")?;
    probe::until("the command to run", SOON, || waiting.stdout().ok()?.contains("up").then_some(()))?;
    waiting.signal(Signal::SIGTERM)?;
    assert_eq!(waiting.wait(SOON)?.code(), Some(5));
    assert_eq!(containers(&world)?, ["web"]);
    assert_eq!(node.network("acme")?["attached"].as_array().unwrap().len(), 1);
    world.passed();
    Ok(())
}

#[test]
fn a_removed_node_loses_its_links_at_once_and_one_that_leaves_is_forgotten() -> Result {
    let mut world = World::new("removed")?;
    let token = acme(&world)?;
    let nodes: Vec<Node> =
        ["n1", "n2", "n3"].iter().map(|name| world.node(name, &[&token])).collect::<Result<_>>()?;
    let members: Vec<Member> = nodes
        .iter()
        .zip(["a", "b", "c"])
        .map(|(node, name)| node.attach("acme", name))
        .collect::<Result<_>>()?;
    for member in &members {
        member.reaches_all(&members, FIRST_PACKET)?;
    }
    world.controller.ctl(&["node", "remove", "acme", "n1", "--yes"])?;
    let cut = || members[1].pings(members[0].v6().ok()?, Duration::from_millis(300)).ok().filter(|ok| !ok);
    probe::until("the removed node to be cut off", SOON, cut)?;
    let expelled =
        || nodes[0].status().ok().filter(|status| status["networks"].as_array().unwrap().is_empty());
    probe::until("the removed node to know", SOON, expelled)?;
    nodes[1].znet(&["leave", "acme"])?;
    let links = members[1].command("ip").args(["-brief", "link"]).run()?.stdout;
    assert!(!links.contains("znet0"), "{links}");
    let left = world.controller.json(&["node", "list", "acme"])?;
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    assert_eq!(containers(&world)?, ["c"]);
    world.passed();
    Ok(())
}

#[test]
fn attach_with_wait_returns_when_all_live_nodes_have_the_map_and_names_who_has_not() -> Result {
    let mut world = World::new("wait")?;
    let token = acme(&world)?;
    let n1 = world.node("n1", &[&token])?;
    let n2 = world.node("n2", &[&token])?;
    for number in 0..5 {
        let member = n1.attach("acme", &format!("c{number}"))?;
        assert!(n2.revision("acme")? >= n1.revision("acme")?, "{} is not known to n2", member.name);
    }
    // A node that is alive but does not answer is waited for, and named.
    n2.agent()?.signal(Signal::SIGSTOP)?;
    let container = n1.host().container("late")?;
    let path = container.netns_path().display().to_string();
    let begun = Instant::now();
    let output = n1.try_znet(&[
        "attach",
        "--network",
        "acme",
        "--name",
        "late",
        "--netns",
        &path,
        "--wait",
        "--timeout",
        "2s",
    ])?;
    assert_eq!(output.status.code(), Some(7), "{}", output.stderr);
    assert!(output.stderr.contains("n2"), "{}", output.stderr);
    assert!(begun.elapsed() < Duration::from_secs(10));
    n2.agent()?.signal(Signal::SIGCONT)?;
    let attached: Value = n1.network("acme")?["attached"].clone();
    assert!(attached.as_array().unwrap().iter().any(|a| a["name"] == "late"), "{attached}");
    world.passed();
    Ok(())
}

#[test]
fn attach_without_a_controller_fails_at_once_or_waits_for_it_as_long_as_it_may() -> Result {
    let mut world = World::new("wait-controller")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    world.controller.kill()?;
    let away = || node.network("acme").ok().filter(|network| network["connected"] == false);
    probe::until("the agent to notice", SOON, away)?;
    let container = node.host().container("late")?;
    let path = container.netns_path().display().to_string();
    let fixed = ["attach", "--network", "acme", "--name", "late", "--netns", &path];
    let begun = Instant::now();
    let output = node.try_znet(&fixed)?;
    let took = begun.elapsed();
    assert_eq!(output.status.code(), Some(6), "{}", output.stderr);
    assert!(output.stderr.contains("existing links go on"), "{}", output.stderr);
    assert!(took < Duration::from_secs(2), "it took {took:?} to say so");
    let begun = Instant::now();
    let output = node.try_znet(&[&fixed[..], &["--wait-controller", "2s"]].concat())?;
    assert_eq!(output.status.code(), Some(6), "{}", output.stderr);
    assert!(begun.elapsed() >= Duration::from_secs(2), "it did not wait");
    // One that waits has its container as soon as the controller is back.
    let command = node.host().command(znet_tests::program("znet-agent")?).args(fixed);
    let waiting = command.args(["--wait-controller", "60s"]).spawn("attach")?;
    world.controller.launch()?;
    assert!(waiting.wait(SOON)?.success(), "{}", waiting.stderr()?);
    assert_eq!(containers(&world)?, ["late"]);
    world.passed();
    Ok(())
}

/// Whether there is a map in the node's state directory, as its host sees it.
fn kept_maps(node: &Node) -> Result<String> {
    let find = node.host().command("find").arg(node.state_dir());
    Ok(find.args(["-name", "map*", "-size", "+0"]).run()?.stdout)
}

#[test]
fn a_map_that_is_kept_in_memory_alone_is_on_no_disk_and_its_links_outlive_the_agent() -> Result {
    let mut world = World::new("map-memory")?;
    let token = acme(&world)?;
    let host = world.host("n1")?;
    let mut flags = vec!["--map-cache".to_owned(), "disk".to_owned()];
    let options = |flags: &[String]| NodeOptions { tokens: vec![token.clone()], flags: flags.to_vec() };
    let mut n1 = Node::start("n1", &host, options(&flags))?;
    let n2 = world.node("n2", &[&token])?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    assert!(!kept_maps(&n1)?.is_empty());
    // From now on in memory: what is on disk goes.
    n1.stop_agent()?;
    flags[1] = "memory".to_owned();
    let mut n1 = Node::start("n1", &host, options(&flags))?;
    n1.wait_connected("acme")?;
    let c = n2.attach("acme", "c")?;
    a.wait_reaches(c.v6()?, FIRST_PACKET)?;
    assert_eq!(kept_maps(&n1)?, "");
    // Without map and controller the agent knows nobody, and leaves alone what the engine serves.
    world.controller.kill()?;
    n1.kill_agent()?;
    let flood = flood(&a, &b, 300)?;
    n1.launch()?;
    assert_eq!(n1.revision("acme")?, 0);
    assert_eq!(lost(&flood)?, 0);
    // What went meanwhile goes with the first map.
    world.controller.launch()?;
    n2.wait_connected("acme")?;
    n1.wait_connected("acme")?;
    n2.znet(&["detach", "--network", "acme", "--name", "c"])?;
    assert!(a.pings(b.v6()?, FIRST_PACKET)?);
    assert_eq!(kept_maps(&n1)?, "");
    world.passed();
    Ok(())
}

#[test]
fn a_full_disk_keeps_no_agent_from_its_links_and_the_map_is_kept_when_there_is_room_again() -> Result {
    let mut world = World::new("agent-full")?;
    let token = acme(&world)?;
    let mut n1 = world.node("n1", &[&token])?;
    let n2 = world.node("n2", &[&token])?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    // The agent's directory moves to a small disk of its own, which is filled up.
    n1.stop_agent()?;
    let (host, state) = (n1.host().clone(), n1.state_dir());
    let old = state.with_extension("old");
    std::fs::rename(&state, &old)?;
    let sh = |script: &str| -> Result<String> {
        Ok(host.command("sh").args(["-c", script, "sh"]).arg(&state).arg(&old).run()?.stdout)
    };
    sh("mkdir \"$1\" && mount -t tmpfs -o size=512k zt-disk \"$1\" && cp -a \"$2\"/. \"$1\"")?;
    n1.launch()?;
    n1.wait_connected("acme")?;
    sh("dd if=/dev/zero of=\"$1\"/fill bs=4k 2>/dev/null; true")?;
    // Changes arrive until the map has to be written anew, and an agent that starts finds what could be kept.
    let mut number = 0;
    let mut more = || {
        number += 1;
        n2.attach("acme", &format!("c{number}"))
    };
    let full = || n1.agent().ok()?.stderr().ok()?.contains("cannot be kept on disk").then_some(());
    for _ in 0..60 {
        let member = more()?;
        if full().is_some() {
            a.wait_reaches(member.v6()?, FIRST_PACKET)?;
            break;
        }
    }
    probe::until("the disk to be full", SOON, full)?;
    let container = host.container("late")?;
    let path = container.netns_path().display().to_string();
    let output = n1.try_znet(&["attach", "--network", "acme", "--name", "late", "--netns", &path])?;
    assert!(output.stderr.contains("No space left"), "{}", output.stderr);
    assert!(!containers(&world)?.contains(&"late".to_owned()), "something is left of an attach that failed");
    n1.kill_agent()?;
    n1.launch()?;
    n1.wait_connected("acme")?;
    assert_eq!(n1.revision("acme")?, n2.revision("acme")?);
    assert!(a.pings(b.v6()?, FIRST_PACKET)?);
    // There is room again: sooner or later the map is whole on disk, and deltas lead on from it.
    sh("rm \"$1\"/fill && touch \"$1\"/room")?;
    let whole = || {
        more().ok()?;
        let found = sh("find \"$1\" -name 'map*' -newer \"$1\"/room").ok()?;
        (!found.is_empty()).then_some(())
    };
    probe::until("the map to be kept", SOON, whole)?;
    n2.attach("acme", "last")?;
    let revision = n1.revision("acme")?;
    world.controller.kill()?;
    n1.kill_agent()?;
    n1.launch()?;
    assert_eq!(n1.revision("acme")?, revision, "the map on disk is not the last one");
    world.passed();
    Ok(())
}
