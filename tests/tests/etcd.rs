//! Several controllers over etcd: members and controllers killed, cut off and asleep, while nothing is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use netns_harness::{Process, Signal, probe};

use znet_tests::{Cluster, Controller, FIRST_PACKET, Member, NetworkSpec, Node, Result, program};

const SOON: Duration = Duration::from_secs(20);
/// Within what time agents have another controller.
const MOVE: Duration = Duration::from_secs(5);

fn acme(controller: &Controller) -> Result<String> {
    controller.create_network(&NetworkSpec { name: "acme", prefixes: &["10.64.0.0/10"], rest: None })
}

/// All containers by name, each with its addresses; no address is there twice.
fn containers(controller: &Controller) -> Result<BTreeMap<String, Vec<String>>> {
    let all = controller.json(&["container", "list", "acme"])?;
    let (mut addresses, mut found) = (BTreeSet::new(), BTreeMap::new());
    for container in all.as_array().unwrap() {
        let own = container["addresses"].as_array().unwrap().iter();
        let own: Vec<String> = own.map(|address| address.as_str().unwrap().to_owned()).collect();
        assert!(own.iter().all(|address| addresses.insert(address.clone())), "given twice: {own:?}");
        found.insert(container["name"].as_str().unwrap().to_owned(), own);
    }
    Ok(found)
}

/// Waits until a controller knows what the other one does.
fn wait_equal(one: &Controller, other: &Controller) -> Result {
    let equal = || (containers(one).ok()? == containers(other).ok()?).then_some(());
    Ok(probe::until("both controllers to know the same", SOON, equal)?)
}

/// Attaches as soon as there is a controller again; returns how long that took.
fn attach_again(node: &Node, name: &str, since: Instant) -> Result<Duration> {
    let mut attempt = 0;
    let attached = || {
        // Each with a namespace of its own.
        attempt += 1;
        node.attach_with("acme", &format!("{name}-{attempt}"), &[]).ok()
    };
    probe::until("an attach to be taken", SOON, attached)?;
    Ok(since.elapsed())
}

#[test]
fn agents_move_within_5_seconds_from_a_controller_that_is_killed_or_cut_off_and_links_lose_no_packet()
-> Result {
    let mut cluster = Cluster::new("etcd-move")?;
    let first = acme(&cluster.controllers[0])?;
    let known = || cluster.controllers[1].json(&["network", "show", "acme"]).ok();
    probe::until("the second controller to know the network", SOON, known)?;
    let second = cluster.controllers[1].token("acme", &[])?;
    let (n1, n2) = (cluster.node("n1", &first)?, cluster.node("n2", &second)?);
    n1.wait_connected("acme")?;
    n2.wait_connected("acme")?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    b.wait_reaches(a.v6()?, FIRST_PACKET)?;
    let pinging = a.command("ping").args(["-i", "0.02", &b.v6()?.to_string()]).spawn("ping")?;

    // n1 is with the first controller, which dies without a word.
    cluster.controllers[0].kill()?;
    let took = attach_again(&n1, "after-kill", Instant::now())?;
    assert!(took <= MOVE, "it took n1 {took:?} to find the other controller");
    cluster.controllers[0].launch()?;
    wait_equal(&cluster.controllers[0], &cluster.controllers[1])?;

    // Both are with the second one now, which falls silent to agents and to etcd.
    let host = cluster.controllers[1].host().clone();
    Cluster::cut_off(&host)?;
    let cut = Instant::now();
    let took = (attach_again(&n1, "after-cut", cut)?, attach_again(&n2, "after-cut-too", cut)?);
    assert!(took.0 <= MOVE && took.1 <= MOVE, "it took {took:?} to find the other controller");
    // What happens meanwhile it learns when it is back.
    cluster.controllers[0].ctl(&["reservation", "add", "acme", "meanwhile"])?;
    Cluster::heal(&host)?;
    wait_equal(&cluster.controllers[0], &cluster.controllers[1])?;
    let there = || {
        let all = cluster.controllers[1].json(&["reservation", "list", "acme"]).ok()?;
        (all.as_array()?.len() == 1).then_some(())
    };
    probe::until("the controller that was cut off to catch up", SOON, there)?;
    // And it takes changes again.
    let taken = || cluster.controllers[1].ctl(&["reservation", "add", "acme", "after"]).ok();
    probe::until("the controller that was cut off to take changes", SOON, taken)?;

    // Both are with the first one now, which agents still reach while etcd does not answer it.
    let host = cluster.controllers[0].host().clone();
    Cluster::cut_off_from_etcd(&host)?;
    let cut = Instant::now();
    let took = (attach_again(&n1, "after-etcd", cut)?, attach_again(&n2, "after-etcd-too", cut)?);
    assert!(took.0 <= MOVE && took.1 <= MOVE, "it took {took:?} to find the other controller");
    Cluster::heal(&host)?;
    wait_equal(&cluster.controllers[0], &cluster.controllers[1])?;

    assert_no_loss(&pinging)?;
    cluster.lab.passed();
    Ok(())
}

/// The nodes that are connected to a controller.
fn live(controller: &Controller) -> Result<Vec<String>> {
    let nodes = controller.json(&["node", "list", "acme"])?;
    let live = nodes.as_array().unwrap().iter().filter(|node| node["live"] == true);
    Ok(live.map(|node| node["name"].as_str().unwrap().to_owned()).collect())
}

/// Waits until the keys of these containers are not being changed any more, and returns them.
fn changed_keys(controller: &Controller, within: &str) -> Result<BTreeSet<String>> {
    let rotate = ["key", "rotate", "acme", "a", "b", "c", "--wait", within];
    let changed = controller.json(&rotate)?;
    Ok(changed.as_array().unwrap().iter().map(|one| one["public_key"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn keys_are_changed_at_once_by_controllers_that_were_just_started_and_have_some_of_the_agents_each() -> Result
{
    let mut cluster = Cluster::new("etcd-keys")?;
    let first = acme(&cluster.controllers[0])?;
    let token = || cluster.controllers[1].token("acme", &[]).ok();
    let second = probe::until("the second controller to know the network", SOON, token)?;
    let (n1, n2, n3) =
        (cluster.node("n1", &first)?, cluster.node("n2", &second)?, cluster.node("n3", &second)?);
    let (a, b, c) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?, n3.attach("acme", "c")?);
    for (from, to) in [(&a, &b), (&b, &c), (&c, &a)] {
        from.wait_reaches(to.v6()?, FIRST_PACKET)?;
    }
    assert_eq!(live(&cluster.controllers[0])?, ["n1"]);
    assert_eq!(live(&cluster.controllers[1])?, ["n2", "n3"]);
    let pings = |from: &Member, to: &Member| -> Result<Process> {
        Ok(from.command("ping").args(["-i", "0.02", &to.v6()?.to_string()]).spawn("ping")?)
    };
    let pinging = [pings(&a, &b)?, pings(&b, &c)?, pings(&c, &a)?];
    // Neither has seen the other's agents. It takes the fifteen seconds that former keys stay, and some for the stages.
    let begun = Instant::now();
    let once = changed_keys(&cluster.controllers[0], "40s")?;
    println!("changed after {:?}", begun.elapsed());
    // And again, while one of them dies and its agent goes over to the other.
    cluster.controllers[1].ctl(&["key", "rotate", "acme", "--all"])?;
    cluster.controllers[0].kill()?;
    let begun = Instant::now();
    let twice = changed_keys(&cluster.controllers[1], "55s")?;
    println!("changed again after {:?}", begun.elapsed());
    assert!(once.len() == 3 && twice.len() == 3 && once.is_disjoint(&twice), "{once:?} {twice:?}");
    assert_eq!(live(&cluster.controllers[1])?, ["n1", "n2", "n3"]);
    pinging.iter().try_for_each(assert_no_loss)?;
    cluster.lab.passed();
    Ok(())
}

fn assert_no_loss(pinging: &Process) -> Result {
    pinging.signal(Signal::SIGINT)?;
    pinging.wait(SOON)?;
    let text = pinging.stdout()?;
    let sent = text.lines().find_map(|line| line.split_once(" packets transmitted")?.0.parse::<usize>().ok());
    let sent = sent.unwrap_or_else(|| panic!("no summary: {text}"));
    let answered = |number: usize| text.contains(&format!("icmp_seq={number} "));
    // The signal may come between the last request and its answer; all before must have theirs.
    let lost: Vec<usize> = (1..sent).filter(|number| !answered(*number)).collect();
    assert!(sent > 100 && lost.is_empty(), "of {sent} these were lost: {lost:?}");
    Ok(())
}

#[test]
fn nothing_acknowledged_is_lost_and_no_address_given_twice_while_leaders_and_controllers_are_killed() -> Result
{
    let mut cluster = Cluster::new("etcd-kill")?;
    let tokens = [acme(&cluster.controllers[0])?, {
        let token = || cluster.controllers[1].token("acme", &[]).ok();
        probe::until("the second controller to know the network", SOON, token)?
    }];
    // A fleet at each controller; both write to the same network all the time.
    let mut fleets = Vec::new();
    for (number, token) in tokens.iter().enumerate() {
        let host = cluster.controllers[number].host();
        let name = format!("fleet{number}");
        fleets.push(host.command(program("fleet")?).args([token.as_str(), "6", &name]).spawn(&name)?);
    }
    let acknowledged = || -> Result<BTreeMap<String, Vec<String>>> {
        let mut all = BTreeMap::new();
        for fleet in &fleets {
            for ack in fleet.stdout()?.lines().filter_map(|line| line.strip_prefix("ack ")) {
                let mut words = ack.split(' ').map(str::to_owned);
                all.insert(words.next().unwrap(), words.collect());
            }
        }
        Ok(all)
    };
    let go_on = |what: &str| -> Result {
        let before = acknowledged()?.len();
        let more = || acknowledged().ok().filter(|acks| acks.len() > before + 20);
        probe::until(what, SOON, more)?;
        Ok(())
    };
    go_on("the fleets to begin")?;
    for round in 0..3_u64 {
        cluster.kill_the_leader()?;
        go_on("the fleets to go on under another leader")?;
        for number in [0, 1] {
            // Each round kills at another moment of a commit.
            std::thread::sleep(Duration::from_micros(700 * (2 * round + number)));
            let number = usize::try_from(number)?;
            cluster.controllers[number].kill()?;
            go_on("the fleets to go on at the other controller")?;
            cluster.controllers[number].launch()?;
        }
    }
    // And a member that is cut off for a while.
    let follower = cluster.follower()?;
    Cluster::cut_off(cluster.member_host(follower)?)?;
    go_on("the fleets to go on without a member")?;
    Cluster::heal(cluster.member_host(follower)?)?;
    for fleet in &fleets {
        fleet.signal(Signal::SIGTERM)?;
        assert!(fleet.wait(SOON)?.success());
    }
    wait_equal(&cluster.controllers[0], &cluster.controllers[1])?;
    let (there, acknowledged) = (containers(&cluster.controllers[0])?, acknowledged()?);
    for (name, addresses) in &acknowledged {
        assert_eq!(there.get(name), Some(addresses), "{name} was acknowledged");
    }
    assert!(acknowledged.len() > 100);
    // A fresh load of what is stored is the same.
    cluster.controllers[0].kill()?;
    cluster.controllers[0].launch()?;
    assert_eq!(containers(&cluster.controllers[0])?, there);
    cluster.lab.passed();
    Ok(())
}

#[test]
fn a_controller_that_sleeps_through_etcds_compaction_misses_nothing() -> Result {
    let cluster = Cluster::new("etcd-compact")?;
    acme(&cluster.controllers[0])?;
    let known = || cluster.controllers[1].json(&["network", "show", "acme"]).ok();
    probe::until("the second controller to know the network", SOON, known)?;
    let asleep = cluster.controllers[1].process()?;
    asleep.signal(Signal::SIGSTOP)?;
    for number in 0..30 {
        cluster.controllers[0].ctl(&["reservation", "add", "acme", &format!("r{number}")])?;
    }
    cluster.compact()?;
    for number in 30..40 {
        cluster.controllers[0].ctl(&["reservation", "add", "acme", &format!("r{number}")])?;
    }
    asleep.signal(Signal::SIGCONT)?;
    let all = || {
        let there = cluster.controllers[1].json(&["reservation", "list", "acme"]).ok()?;
        (there.as_array()?.len() == 40).then_some(())
    };
    probe::until("the controller that slept to know everything", SOON, all)?;
    cluster.controllers[1].ctl(&["reservation", "add", "acme", "one-more"])?;
    // Deleted at one, gone at the other.
    cluster.controllers[1].ctl(&["network", "delete", "acme", "--yes"])?;
    let gone =
        || (cluster.controllers[0].json(&["network", "list"]).ok()?.as_array()?.is_empty()).then_some(());
    probe::until("the network to be gone at the first controller", SOON, gone)?;
    cluster.lab.passed();
    Ok(())
}

/// When a controller, by its own clock, was last told something by each node, in seconds since 1970.
fn last_seen(controller: &Controller) -> Result<Vec<f64>> {
    let nodes = controller.json(&["node", "list", "acme"])?;
    let stamp = |node: &serde_json::Value| {
        let text = node["last_seen"].as_str().unwrap_or("1970-01-01T00:00:00Z");
        humantime::parse_rfc3339_weak(text).unwrap()
    };
    let since = |node| stamp(node).duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    Ok(nodes.as_array().unwrap().iter().map(since).collect())
}

#[test]
fn a_jump_of_a_controllers_clock_costs_no_node_its_membership_and_no_link_a_packet() -> Result {
    let mut cluster = Cluster::new("etcd-clock")?;
    let clock = cluster.controllers[1].set_clock_by_file()?;
    cluster.controllers[1].kill()?;
    cluster.controllers[1].launch()?;
    acme(&cluster.controllers[0])?;
    cluster.controllers[0].ctl(&["network", "set", "acme", "--ephemeral-ttl", "10s"])?;
    let token = || cluster.controllers[1].token("acme", &["--ephemeral"]).ok();
    let token = probe::until("the second controller to know the network", SOON, token)?;
    let (n1, n2) = (cluster.node("n1", &token)?, cluster.node("n2", &token)?);
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let pinging = a.command("ping").args(["-i", "0.02", &b.v6()?.to_string()]).spawn("ping")?;
    for (round, jump) in ["+1h", "-2h"].into_iter().enumerate() {
        std::fs::write(&clock, jump)?;
        // Longer than an ephemeral node may stay away, in which the nodes say all the time that they are there.
        let begun = Instant::now();
        let told = || {
            let all = last_seen(&cluster.controllers[1]).ok()?;
            let now = time_of_day(jump);
            let fresh = all.iter().all(|seen| (now - seen).abs() < 20.0);
            (fresh && all.len() == 2 && begun.elapsed() > Duration::from_secs(13)).then_some(())
        };
        probe::until("both nodes to be known and seen by the clock that jumped", SOON * 2, told)?;
        n1.attach("acme", &format!("after-{round}"))?;
        wait_equal(&cluster.controllers[0], &cluster.controllers[1])?;
    }
    assert_no_loss(&pinging)?;
    cluster.lab.passed();
    Ok(())
}

/// The time of day with such an offset, in seconds since 1970.
fn time_of_day(offset: &str) -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let (sign, span) = offset.split_at(1);
    let span = if span == "0" { 0.0 } else { humantime::parse_duration(span).unwrap().as_secs_f64() };
    if sign == "-" { now - span } else { now + span }
}
