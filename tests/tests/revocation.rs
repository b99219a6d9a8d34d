//! Access that is taken away: what becomes of the links of nodes that are members no more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use netns_harness::{Process, Signal, probe};
use znet_tests::{FIRST_PACKET, Member, NetworkSpec, Node, Result, World};

const SOON: Duration = Duration::from_secs(15);
/// Within this time a revocation has to be in force at all nodes.
const PROPAGATION: Duration = Duration::from_secs(1);

/// A ping a hundred times a second for some seconds, each answer with its time.
fn flood(from: &Member, to: &Member) -> Result<Process> {
    let to = to.v6()?.to_string();
    Ok(from.command("ping").args(["-n", "-D", "-i", "0.01", "-w", "4", &to]).spawn("flood")?)
}

/// When each answer came.
fn answers(flood: &Process) -> Result<Vec<Duration>> {
    flood.wait(SOON)?;
    let text = flood.stdout()?;
    let stamps = text.lines().filter(|line| line.contains("bytes from"));
    let stamps = stamps.filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok());
    Ok(stamps.map(Duration::from_secs_f64).collect())
}

/// How many pings before the last answered one were not answered.
fn gaps(flood: &Process) -> Result<usize> {
    let answered = answers(flood)?.len();
    let text = flood.stdout()?;
    let last =
        text.lines().filter_map(|line| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok());
    Ok(last.max().unwrap_or(usize::MAX) - answered)
}

fn expelled(node: &Node) -> Option<()> {
    node.status().ok()?["networks"].as_array()?.is_empty().then_some(())
}

#[test]
fn a_token_revoked_with_its_nodes_cuts_their_links_everywhere_even_if_they_do_not_cooperate() -> Result {
    let mut world = World::new("revoked")?;
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
    let good = world.controller.create_network(&spec)?;
    let bad = world.controller.token("acme", &["--label", "bad"])?;
    let (n1, n2) = (world.node("n1", &[&good])?, world.node("n2", &[&good])?);
    let (m1, m2) = (world.node("m1", &[&bad])?, world.node("m2", &[&bad])?);
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    let (x, y) = (m1.attach("acme", "x")?, m2.attach("acme", "y")?);
    for from in [&x, &y] {
        from.reaches_all([&a, &b, &x, &y], FIRST_PACKET)?;
    }
    // One of them will not hear that it is out; its engine goes on sending.
    m1.agent()?.signal(Signal::SIGSTOP)?;
    let stubborn = [flood(&x, &a)?, flood(&x, &b)?];
    let among_themselves = flood(&x, &y)?;
    let others = flood(&a, &b)?;
    for flood in stubborn.iter().chain([&among_themselves, &others]) {
        let flowing = || flood.stdout().ok()?.contains("icmp_seq=20").then_some(());
        probe::until("pings to flow", SOON, flowing)?;
    }
    let refused = world.controller.try_ctl(&["token", "revoke", "acme", "bad", "--with-nodes"])?;
    assert_eq!(refused.status.code(), Some(2), "nobody confirmed it: {}", refused.stderr);
    let revoked = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let begun = Instant::now();
    world.controller.ctl(&["token", "revoke", "acme", "bad", "--with-nodes", "--yes"])?;
    probe::until("the node that listens to be told", PROPAGATION, || expelled(&m2))?;
    let told = begun.elapsed();
    for flood in stubborn.iter().chain([&among_themselves]) {
        let answers = answers(flood)?;
        let last = answers.last().unwrap().saturating_sub(revoked);
        println!("the last answer came {last:?} after the revocation; the other node knew after {told:?}");
        assert!(answers.len() >= 20 && last < PROPAGATION, "answers until {last:?} after the revocation");
    }
    assert_eq!(gaps(&others)?, 0, "the others' link was disturbed");
    // By then it is told as well, and the token admits nobody.
    m1.agent()?.signal(Signal::SIGCONT)?;
    probe::until("the stubborn node to be told", SOON, || expelled(&m1))?;
    let output = m1.try_znet(&["join", &bad])?;
    assert_eq!(output.status.code(), Some(5), "{}", output.stderr);
    let nodes = world.controller.json(&["node", "list", "acme"])?;
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
    let trail = world.controller.json(&["audit", "acme"])?;
    let last = trail.as_array().unwrap().last().unwrap();
    assert_eq!(last["action"], "token.revoke", "{last}");
    assert!(last["subject"].as_str().unwrap().ends_with("with 2 nodes and 2 containers"), "{last}");
    world.passed();
    Ok(())
}

#[test]
fn what_is_of_no_use_is_listed_before_it_is_removed() -> Result {
    let world = World::new("garbage")?;
    let spec = NetworkSpec { name: "acme", prefixes: &[], rest: None };
    world.controller.create_network(&spec)?;
    world.controller.token("acme", &["--label", "gone"])?;
    world.controller.token("acme", &["--label", "kept"])?;
    world.controller.ctl(&["token", "revoke", "acme", "gone"])?;
    let tokens = || -> Result<usize> {
        Ok(world.controller.json(&["token", "list", "acme"])?.as_array().unwrap().len())
    };
    let listed = world.controller.ctl(&["gc", "--dry-run"])?.stdout;
    assert!(listed.contains("gone") && !listed.contains("kept"), "{listed}");
    assert_eq!(tokens()?, 3);
    let refused = world.controller.try_ctl(&["gc", "acme"])?;
    assert_eq!(refused.status.code(), Some(2), "nobody confirmed it: {}", refused.stderr);
    assert_eq!(tokens()?, 3);
    let removed = world.controller.json(&["gc", "acme", "--yes"])?;
    assert_eq!(removed["acme"]["tokens"][0]["label"], "gone", "{removed}");
    assert_eq!(tokens()?, 2);
    let again = world.controller.ctl(&["gc"])?.stdout;
    assert!(again.contains("nothing to remove"), "{again}");
    world.passed();
    Ok(())
}
