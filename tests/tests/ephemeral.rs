//! Nodes that are members only for as long as they are there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use netns_harness::{Signal, probe};
use znet_tests::{FIRST_PACKET, NetworkSpec, Result, World};

const SOON: Duration = Duration::from_secs(20);
/// Within which time a node that stays away is collected: members have 25 s to answer.
const COLLECTED: Duration = Duration::from_secs(60);

#[test]
fn a_node_without_its_agent_stays_for_as_long_as_its_containers_are_heard() -> Result {
    let mut world = World::new("ephemeral")?;
    let spec = NetworkSpec { name: "acme", prefixes: &[], rest: None };
    let lasting = world.controller.create_network(&spec)?;
    world.controller.ctl(&["network", "set", "acme", "--ephemeral-ttl", "5s"])?;
    let ephemeral = world.controller.token("acme", &["--ephemeral"])?;
    let n1 = world.node("n1", &[&lasting])?;
    let (mut heard, mut silent) = (world.node("heard", &[&ephemeral])?, world.node("silent", &[&ephemeral])?);
    let (a, x, y) = (n1.attach("acme", "a")?, heard.attach("acme", "x")?, silent.attach("acme", "y")?);
    a.wait_reaches(x.v6()?, FIRST_PACKET)?;
    a.wait_reaches(y.v6()?, FIRST_PACKET)?;
    let pinging = a.command("ping").args(["-i", "0.1", &x.v6()?.to_string()]).spawn("ping")?;
    // Their engines go on, and one of them is talked to.
    heard.kill_agent()?;
    silent.kill_agent()?;
    let names = || -> Result<Vec<String>> {
        let nodes = world.controller.json(&["node", "list", "acme"])?;
        Ok(nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect())
    };
    let collected = || names().ok().filter(|names| !names.contains(&"silent".to_owned()));
    let left = probe::until("the silent node to be collected", COLLECTED, collected)?;
    assert_eq!(left, ["heard", "n1"], "whoever talks is not collected");
    let before = world.controller.metric("znet_absent_heard_total")?;
    let again = || (world.controller.metric("znet_absent_heard_total").ok()? >= before + 3.0).then_some(());
    probe::until("the node to be heard of some more times", COLLECTED, again)?;
    assert_eq!(names()?, ["heard", "n1"]);
    pinging.signal(Signal::SIGINT)?;
    pinging.wait(SOON)?;
    let text = pinging.stdout()?;
    let count = |of: &str| -> u32 {
        let before = text.split(of).next().unwrap_or_default();
        before.rsplit([' ', '\n', ',']).find_map(|word| word.parse().ok()).unwrap_or_default()
    };
    let (sent, received) = (count(" packets transmitted"), count(" received"));
    // The signal may come between the last request and its answer.
    assert!(sent > 100 && sent - received <= 1, "{text}");
    let collected = || (names().ok()? == ["n1"]).then_some(());
    probe::until("the node that nobody talks to any more to be collected", COLLECTED, collected)?;
    world.passed();
    Ok(())
}
