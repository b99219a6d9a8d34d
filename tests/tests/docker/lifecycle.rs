//! What is to go well.

use netns_harness::probe;
use serde_json::json;
use znet_tests::{FIRST_PACKET, Result};

use crate::dockerd::{Docker, SOON, Started, acme, endpoint, id};

fn wait_pings(from: &Started, to: &str) -> Result {
    let answered = || {
        let ping = from.container.command("ping").args(["-n", "-c", "1", "-W", "0.3", to]).try_run().ok()?;
        ping.status.success().then_some(())
    };
    Ok(probe::until(&format!("{to} to answer"), FIRST_PACKET, answered)?)
}

#[test]
fn containers_of_docker_on_two_hosts_reach_each_other_and_nothing_else() -> Result {
    let (mut world, token) = acme("docker")?;
    let one = Docker::start(&mut world, "n1", &token)?;
    let two = Docker::start(&mut world, "n2", &token)?;
    assert_eq!(one.well("Plugin.Activate", &json!(null))?, json!({"Implements": ["NetworkDriver"]}));
    let capabilities = one.well("NetworkDriver.GetCapabilities", &json!(null))?;
    assert_eq!(capabilities, json!({"Scope": "local", "ConnectivityScope": "global"}));
    let (web, db) = (one.run("web")?, two.run("db")?);
    // At once: it does not wait for the agent to see that Docker is done.
    for (from, to) in [(&web, &db), (&db, &web)] {
        wait_pings(from, &to.v6)?;
        wait_pings(from, &to.v4)?;
    }
    for docker in [&one, &two] {
        docker.well("NetworkDriver.ProgramExternalConnectivity", &endpoint("web", json!({"Options": {}})))?;
        docker.well("NetworkDriver.DiscoverNew", &json!({"DiscoveryType": 1, "DiscoveryData": {}}))?;
    }
    for family in ["-4", "-6"] {
        let default = web.container.command("ip").args([family, "route", "show", "default"]).run()?.stdout;
        assert_eq!(default, "", "it leads somewhere else");
    }
    let links = web.container.command("ip").args(["-brief", "link"]).run()?.stdout;
    assert_eq!(links.lines().count(), 2, "{links}");
    // From then on it is a container like every other: it has a resolver, and what is broken is mended.
    one.wait_settled("web")?;
    let answered = || {
        let dig = web.container.command("dig");
        let found = dig.args(["+short", "+time=1", "+tries=1", "@127.0.0.153", "db.acme.znet", "AAAA"]);
        (found.try_run().ok()?.stdout.trim() == db.v6).then_some(())
    };
    probe::until("the resolver to answer", SOON, answered)?;
    web.container.command("ip").args(["address", "del", &format!("{}/32", web.v4), "dev", "eth0"]).run()?;
    let mended = || {
        let shown =
            web.container.command("ip").args(["-4", "address", "show", "dev", "eth0"]).run().ok()?.stdout;
        shown.contains(&web.v4).then_some(())
    };
    probe::until("the address to be put back", SOON, mended)?;
    wait_pings(&db, &web.v4)?;
    let shown = one.attached("web")?.unwrap();
    assert_eq!(shown["owner"]["kind"], "docker");
    assert_eq!(shown["owner"]["container"], id("web"));
    // A name that nobody chose, and an address that somebody did.
    let asked = endpoint("anon", json!({"Interface": null, "Options": {"znet.ip": "10.77.9.9"}}));
    let made = one.well("NetworkDriver.CreateEndpoint", &asked)?;
    assert_eq!(made["Interface"]["Address"], "10.77.9.9/32");
    assert!(one.attached(&id("anon")[..12])?.is_some());
    one.stop("anon")?;
    // Both may be repeated, in any order, and nobody needs the network for it.
    one.stop("web")?;
    one.well("NetworkDriver.DeleteNetwork", &json!({"NetworkID": id("net")}))?;
    one.well("NetworkDriver.DeleteNetwork", &json!({"NetworkID": id("net")}))?;
    one.stop("web")?;
    two.stop("db")?;
    one.wait_left(&world, &[])?;
    two.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}
