//! The controller: killed, full, doubled, replaced, restored; what it acknowledged holds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netns_harness::{Signal, probe};

use znet_tests::{FIRST_PACKET, NetworkSpec, Result, World, program};

const SOON: Duration = Duration::from_secs(15);

fn acme(world: &World) -> Result<String> {
    let spec = NetworkSpec { name: "acme", prefixes: &["10.64.0.0/10"], rest: None };
    world.controller.create_network(&spec)
}

/// All containers by name, each with its addresses; no address and no key is there twice.
fn containers(world: &World) -> Result<BTreeMap<String, Vec<String>>> {
    let all = world.controller.json(&["container", "list", "acme"])?;
    let (mut addresses, mut keys, mut found) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for container in all.as_array().unwrap() {
        let own: Vec<String> = container["addresses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|address| address.as_str().unwrap().to_owned())
            .collect();
        assert!(own.iter().all(|address| addresses.insert(address.clone())), "given twice: {own:?}");
        assert!(keys.insert(container["public_key"].to_string()), "a key twice: {container}");
        found.insert(container["name"].as_str().unwrap().to_owned(), own);
    }
    Ok(found)
}

#[test]
fn what_was_acknowledged_survives_kill_9_in_a_loop_under_load_and_no_address_is_given_twice() -> Result {
    let mut world = World::new("kill-loop")?;
    let token = acme(&world)?;
    let fleet = world.controller.host().command(program("fleet")?).args([&token, "16"]).spawn("fleet")?;
    fleet.wait_for_log("joined", SOON)?;
    let acknowledged = || -> Result<BTreeMap<String, Vec<String>>> {
        let text = fleet.stdout()?;
        let acks = text.lines().filter_map(|line| line.strip_prefix("ack "));
        let words = acks.map(|ack| ack.split(' ').map(str::to_owned).collect::<Vec<_>>());
        Ok(words.map(|words| (words[0].clone(), words[1..].to_vec())).collect())
    };
    for round in 0..10_u64 {
        let before = acknowledged()?.len();
        let more = || acknowledged().ok().filter(|acks| acks.len() > before + 20);
        probe::until("the fleet to go on", SOON, more)?;
        // Each round kills at another moment of a commit.
        std::thread::sleep(Duration::from_micros(300 * round));
        world.controller.kill()?;
        world.controller.launch()?;
        let there = containers(&world)?;
        for (name, addresses) in acknowledged()? {
            // One that was acknowledged after the listing is not in it.
            if let Some(found) = there.get(&name) {
                assert_eq!(found, &addresses, "{name} has other addresses than were acknowledged");
            }
        }
    }
    fleet.signal(Signal::SIGTERM)?;
    assert!(fleet.wait(SOON)?.success());
    let (there, acknowledged) = (containers(&world)?, acknowledged()?);
    for (name, addresses) in &acknowledged {
        assert_eq!(there.get(name), Some(addresses), "{name} was acknowledged");
    }
    assert!(acknowledged.len() > 200);
    world.passed();
    Ok(())
}

#[test]
fn a_full_disk_refuses_changes_clearly_serves_reads_and_heals() -> Result {
    let mut world = World::new("disk-full")?;
    // The data directory moves to a small disk of its own.
    world.controller.stop()?;
    let (host, data) = (world.controller.host().clone(), world.controller.data_dir());
    let old = data.with_extension("old");
    std::fs::rename(&data, &old)?;
    let script = "mkdir \"$1\" && mount -t tmpfs -o size=2m zt-disk \"$1\" && cp -a \"$2\"/. \"$1\"";
    host.command("sh").args(["-c", script, "sh"]).arg(&data).arg(&old).run()?;
    world.controller.launch()?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let (a, b) = (node.attach("acme", "a")?, node.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let fill = "dd if=/dev/zero of=\"$1\"/fill bs=4k 2>/dev/null; true";
    host.command("sh").args(["-c", fill, "sh"]).arg(&data).run()?;
    let kept = containers(&world)?;
    // The log has some room left; sooner or later a change does not fit.
    let refused = (0..2_000).find_map(|number| {
        let name = format!("r{number}");
        let output = world.controller.try_ctl(&["reservation", "add", "acme", &name]).ok()?;
        (!output.status.success()).then_some(output)
    });
    let refused = refused.expect("a full disk must refuse");
    assert_eq!(refused.status.code(), Some(4), "{}", refused.stderr);
    assert!(refused.stderr.contains("full") || refused.stderr.contains("space"), "{}", refused.stderr);
    // Reads and links go on.
    assert_eq!(containers(&world)?, kept);
    assert_eq!(world.controller.json(&["status"])?["controller"]["status"], "read_only");
    assert!(a.pings(b.v6()?, FIRST_PACKET)?);
    let reservations = world.controller.json(&["reservation", "list", "acme"])?.as_array().unwrap().len();
    host.command("rm").arg(data.join("fill")).run()?;
    let healed = || {
        let output = world.controller.try_ctl(&["reservation", "add", "acme", "after"]).ok()?;
        output.status.success().then_some(())
    };
    probe::until("changes to be taken again", SOON, healed)?;
    let after = world.controller.json(&["reservation", "list", "acme"])?.as_array().unwrap().len();
    assert_eq!(after, reservations + 1, "something acknowledged was lost, or something refused was kept");
    node.attach("acme", "c")?;
    world.controller.kill()?;
    world.controller.launch()?;
    assert_eq!(containers(&world)?.len(), 3);
    world.passed();
    Ok(())
}

#[test]
fn a_torn_write_ahead_log_loses_nothing_that_was_acknowledged() -> Result {
    let mut world = World::new("torn-wal")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    for name in ["a", "b", "c"] {
        node.attach("acme", name)?;
    }
    let kept = containers(&world)?;
    world.controller.kill()?;
    // What a crash in the middle of a write leaves: half a frame at the end of the log.
    let wal = world.controller.data_dir().join("znet.db-wal");
    let mut bytes = std::fs::read(&wal)?;
    assert!(bytes.len() > 8_192, "the log is empty: {}", bytes.len());
    let torn: Vec<u8> = bytes[bytes.len() - 4_120..].iter().map(|byte| byte ^ 0x5a).take(2_000).collect();
    bytes.extend(torn);
    std::fs::write(&wal, bytes)?;
    world.controller.launch()?;
    assert_eq!(containers(&world)?, kept);
    node.wait_connected("acme")?;
    node.attach("acme", "d")?;
    world.passed();
    Ok(())
}

#[test]
fn a_second_controller_on_the_same_data_is_refused_and_told_who_has_it() -> Result {
    let world = World::new("second")?;
    let pid = world.controller.process()?.pid();
    let socket = world.controller.host().dir().join("second.sock");
    let second = world
        .controller
        .host()
        .command(program("znet-ctl")?)
        .args(["serve", "--listen", "[::]:7444", "--socket"])
        .arg(&socket)
        .arg("--data-dir")
        .arg(world.controller.data_dir())
        .try_run()?;
    assert_eq!(second.status.code(), Some(4), "{}", second.stderr);
    assert!(second.stderr.contains(&format!("process {pid}")), "{}", second.stderr);
    world.controller.ctl(&["status"])?;
    world.passed();
    Ok(())
}

#[test]
fn sigterm_drains_and_agents_come_back_by_themselves() -> Result {
    let mut world = World::new("drain")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let fleet = world.controller.host().command(program("fleet")?).args([&token, "8"]).spawn("fleet")?;
    fleet.wait_for_log("ack fleet-7-c20", SOON)?;
    assert!(world.controller.stop()?, "the controller did not end well");
    world.controller.launch()?;
    node.wait_connected("acme")?;
    fleet.signal(Signal::SIGTERM)?;
    assert!(fleet.wait(SOON)?.success());
    let there = containers(&world)?;
    let text = fleet.stdout()?;
    for ack in text.lines().filter_map(|line| line.strip_prefix("ack ")) {
        assert!(there.contains_key(ack.split(' ').next().unwrap()), "{ack} was acknowledged");
    }
    world.passed();
    Ok(())
}

#[test]
fn a_controller_with_another_key_is_not_believed_and_links_go_on() -> Result {
    let mut world = World::new("impostor")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let (a, b) = (node.attach("acme", "a")?, node.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let revision = node.revision("acme")?;
    // Somebody else answers at the controller's address.
    world.controller.stop()?;
    let data = world.controller.data_dir();
    let aside = data.with_extension("aside");
    std::fs::rename(&data, &aside)?;
    world.controller.launch()?;
    acme(&world)?;
    let told = || node.agent().ok()?.stderr().ok()?.contains("somebody may be in the middle").then_some(());
    probe::until("the agent to notice", SOON, told)?;
    // Nor does a new node believe it.
    let joining = world.node("n2", &[])?;
    let output = joining.try_znet(&["join", &token])?;
    assert!(!output.status.success());
    assert!(output.stderr.contains("somebody may be in the middle"), "{}", output.stderr);
    assert_eq!(node.revision("acme")?, revision);
    assert!(a.pings(b.v6()?, FIRST_PACKET)?);
    world.controller.stop()?;
    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&aside, &data)?;
    world.controller.launch()?;
    node.wait_connected("acme")?;
    world.passed();
    Ok(())
}

#[test]
fn a_restored_controller_is_older_than_its_agents_until_a_new_epoch_is_started() -> Result {
    let mut world = World::new("restored")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let (a, b) = (node.attach("acme", "a")?, node.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let file = world.controller.host().dir().join("backup");
    let file = file.to_str().unwrap();
    world.controller.ctl(&["backup", file])?;
    let again = world.controller.try_ctl(&["backup", file])?;
    assert_eq!(again.status.code(), Some(4), "an existing file was overwritten");
    for number in 0..3 {
        node.attach("acme", &format!("later-{number}"))?;
    }
    let revision = node.revision("acme")?;
    world.controller.kill()?;
    let data = world.controller.data_dir();
    let refused = world.controller.try_ctl(&["restore", file, "--data-dir", data.to_str().unwrap()])?;
    assert_eq!(refused.status.code(), Some(4), "{}", refused.stderr);
    world.controller.ctl(&["restore", file, "--data-dir", data.to_str().unwrap(), "--replace"])?;
    world.controller.launch()?;
    // Its map is older than the one that the agent has applied: it is not believed.
    let told = || node.agent().ok()?.stderr().ok()?.contains("is not believed").then_some(());
    probe::until("the agent to refuse the older map", SOON, told)?;
    assert_eq!(node.revision("acme")?, revision);
    assert!(a.pings(b.v6()?, FIRST_PACKET)?);
    // The operator is told what happened and which one command resolves it.
    let show = ["network", "show", "acme"];
    let ahead = || world.controller.json(&show).ok()?.get("ahead").cloned();
    let ahead = probe::until("the controller to notice that it is behind", SOON, ahead)?;
    assert_eq!(ahead, serde_json::json!({ "nodes": 1, "revision": revision }));
    for args in [&["status"][..], &["status", "acme"], &show] {
        let said = world.controller.ctl(args)?.stdout;
        assert!(said.contains("restored from an older backup"), "{args:?}: {said}");
        assert!(said.contains("\n  znet-ctl network new-epoch acme\n"), "{args:?}: {said}");
    }
    let log = world.controller.process()?.stderr()?;
    assert_eq!(log.matches("`znet-ctl network new-epoch acme`").count(), 1, "{log}");
    world.controller.ctl(&["network", "new-epoch", "acme", "--yes"])?;
    assert!(world.controller.json(&show)?.get("ahead").is_none());
    let believed = || node.revision("acme").ok().filter(|now| *now != revision);
    probe::until("the agent to believe the new epoch", SOON, believed)?;
    assert!(a.pings(b.v6()?, FIRST_PACKET)?, "a link that both histories know was cut");
    world.passed();
    Ok(())
}

/// All files under a directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

#[test]
fn every_change_is_in_the_audit_trail_and_no_secret_is_anywhere() -> Result {
    let mut world = World::new("audit")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let a = node.attach("acme", "a")?;
    let private = node.host().command("wg").args(["show", &a.device, "private-key"]).run()?.stdout;
    node.znet(&["detach", "--network", "acme", "--name", "a"])?;
    world.controller.ctl(&["network", "set", "acme", "--rest", "5m"])?;
    let trail = world.controller.json(&["audit", "acme"])?;
    let records = trail.as_array().unwrap();
    let actions: Vec<&str> = records.iter().map(|record| record["action"].as_str().unwrap()).collect();
    let wanted = [
        "network.create",
        "token.create",
        "node.join",
        "container.attach",
        "container.detach",
        "network.change",
    ];
    assert_eq!(actions, wanted, "{trail}");
    let revisions: Vec<u64> = records.iter().map(|record| record["revision"].as_u64().unwrap()).collect();
    assert!(revisions.is_sorted() && revisions[0] == 1, "{revisions:?}");
    let actor = |at: usize| records[at]["actor"].as_str().unwrap().to_owned();
    assert!(actor(0) == "local:0" && actor(3).starts_with("node:"), "{trail}");
    let parsed: znet_api::token::JoinToken = token.parse()?;
    let secret: String = parsed.secret.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let log = world.controller.process()?.stderr()?;
    for text in [trail.to_string(), log, world.controller.json(&["token", "list", "acme"])?.to_string()] {
        assert!(!text.contains(&token[20..]) && !text.contains(&secret), "a secret shows");
    }
    // Neither the token's secret nor the container's private key is in any file of controller or agent.
    // A private key has the text form of a public one.
    let private: znet_core::key::PublicKey = private.trim().parse()?;
    let secrets = [*parsed.secret.to_bytes(), *private.as_bytes()];
    let mut seen = 0;
    for file in files(&world.controller.data_dir())?.into_iter().chain(files(&node.state_dir())?) {
        let content = std::fs::read(&file)?;
        seen += content.len();
        for window in content.windows(32) {
            assert!(!secrets.iter().any(|secret| window == secret), "a secret is in {}", file.display());
        }
    }
    assert!(seen > 50_000, "only {seen} bytes were looked at");
    world.passed();
    Ok(())
}
