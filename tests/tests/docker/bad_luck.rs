//! Who is killed when.

use netns_harness::probe;
use serde_json::{Value, json};
use znet_tests::Result;

use crate::dockerd::{Docker, SOON, acme, containers, endpoint, id};

#[test]
fn an_agent_and_a_plugin_that_are_killed_in_the_middle_disturb_nothing() -> Result {
    let (mut world, token) = acme("docker-killed")?;
    let mut docker = Docker::start(&mut world, "n1", &token)?;
    let other = world.node("n2", &[&token])?;
    let far = other.attach("acme", "far")?;
    // The nodes know where they reach each other.
    far.wait_reaches(docker.run("first")?.v6.parse()?, SOON)?;
    docker.stop("first")?;
    let before = docker.prepare("web")?;
    // Between Join and the move.
    docker.node.kill_agent()?;
    docker.kill_plugin()?;
    docker.launch()?;
    docker.refuses(
        "NetworkDriver.CreateEndpoint",
        &endpoint("b", json!({"Interface": {}})),
        503,
        "znet-agent run",
    )?;
    let web = docker.enter("web", &before)?;
    far.wait_reaches(web.v6.parse()?, SOON)?;
    docker.node.launch()?;
    docker.wait_settled("web")?;
    far.wait_reaches(web.v4.parse()?, SOON)?;
    // What the plugin was told of networks outlives it; so does what it takes to take containers away.
    docker.stop_plugin()?;
    assert!(
        !docker.node.host().command("ls").arg("/run/docker/plugins/znet.sock").try_run()?.status.success()
    );
    docker.launch()?;
    let db = docker.run("db")?;
    far.wait_reaches(db.v6.parse()?, SOON)?;
    docker.stop("web")?;
    // Docker is gone without a word: its namespaces end, and their containers with them.
    db.container.remove()?;
    docker.wait_here(&[])?;
    let released = || (containers(&world).ok()? == ["far"]).then_some(());
    probe::until("the controller to be told", SOON, released)?;
    world.passed();
    Ok(())
}

#[test]
fn a_container_that_never_starts_leaves_nothing() -> Result {
    let (mut world, token) = acme("docker-never")?;
    let mut docker = Docker::start(&mut world, "n1", &token)?;
    // Docker gave up, as it does when the container's process cannot be started.
    docker.prepare("a")?;
    docker.stop("a")?;
    docker.wait_left(&world, &[])?;
    // It gave up while there was no agent; told again when it starts anew.
    docker.prepare("b")?;
    docker.node.kill_agent()?;
    docker.refuses("NetworkDriver.Leave", &endpoint("b", json!({})), 503, "znet-agent run")?;
    docker.node.launch()?;
    docker.stop("b")?;
    docker.wait_left(&world, &[])?;
    // Docker lost all it knew of the network's endpoints.
    docker.prepare("c")?;
    docker.well("NetworkDriver.DeleteNetwork", &json!({"NetworkID": id("net")}))?;
    docker.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}

#[test]
fn a_device_that_nobody_takes_is_taken_back_after_five_minutes() -> Result {
    let (mut world, token) = acme("docker-untaken")?;
    let mut docker = Docker::start(&mut world, "n1", &token)?;
    docker.prepare("old")?;
    docker.prepare("young")?;
    // As if one were lent five minutes ago, and the other one nearly.
    docker.node.kill_agent()?;
    let files = docker.node.host().command("find").arg(docker.node.state_dir());
    let path = files.args(["-name", "attachments.json"]).run()?.stdout;
    let mut kept: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path.trim())?)?;
    for attachment in &mut kept {
        let ago = if attachment["name"] == "old" { 301 } else { 240 };
        attachment["lent"] = json!(attachment["lent"].as_u64().unwrap() - ago);
    }
    std::fs::write(path.trim(), serde_json::to_vec(&kept)?)?;
    docker.node.launch()?;
    let one = || (docker.attached("old").ok()?.is_none()).then_some(());
    probe::until("the device that nobody took to be taken back", SOON, one)?;
    assert!(docker.attached("young")?.is_some());
    docker.stop("young")?;
    docker.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}

#[test]
fn a_daemon_that_begins_knows_nothing_of_devices_that_an_earlier_one_did_not_take() -> Result {
    let (mut world, token) = acme("docker-anew")?;
    let docker = Docker::start(&mut world, "n1", &token)?;
    let taken = docker.prepare("taken")?;
    docker.enter("taken", &taken)?;
    docker.prepare("untaken")?;
    docker.well("Plugin.Activate", &json!(null))?;
    docker.wait_here(&["taken"])?;
    docker.wait_settled("taken")?;
    docker.stop("taken")?;
    docker.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}

#[test]
fn a_container_is_started_anew_as_soon_as_the_namespace_of_the_one_before_is_gone() -> Result {
    let (mut world, token) = acme("docker-at-once")?;
    let docker = Docker::start(&mut world, "n1", &token)?;
    let before = docker.run("web")?;
    docker.wait_settled("web")?;
    let made = |seed: &str| endpoint(seed, json!({"Interface": {}, "Options": {"znet.name": "web"}}));
    docker.refuses("NetworkDriver.CreateEndpoint", &made("other"), 409, "attached already")?;
    // Nobody tells of its end, as a daemon that was killed does not.
    before.container.remove()?;
    docker.well("NetworkDriver.CreateEndpoint", &made("other"))?;
    docker.stop("other")?;
    docker.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}

#[test]
fn a_device_that_was_lent_and_lost_with_its_engine_is_taken_back() -> Result {
    let (mut world, token) = acme("docker-lost")?;
    let mut docker = Docker::start(&mut world, "n1", &token)?;
    docker.prepare("web")?;
    let engine = docker.node.engine_pid()?.to_string();
    docker.node.kill_agent()?;
    docker.node.host().command("kill").args(["-9", &engine]).run()?;
    docker.node.launch()?;
    docker.wait_left(&world, &[])?;
    // The same once more, with an agent that has a new engine take over what it holds.
    let made = docker.prepare("web")?;
    let engine = docker.node.engine_pid()?.to_string();
    docker.node.host().command("kill").args(["-9", &engine]).run()?;
    let anew = || docker.node.engine_pid().ok().filter(|pid| pid.to_string() != engine);
    probe::until("a new engine", SOON, anew)?;
    docker.enter("web", &made)?;
    docker.wait_settled("web")?;
    docker.stop("web")?;
    docker.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}
