//! What the specification promises, called as a runtime calls it.

use netns_harness::probe;
use serde_json::{Value, json};
use znet_tests::{NetworkSpec, Result};

use crate::common::{SOON, acme, conf, containers, environment, links, place, v6, wait_pings};

#[test]
fn a_container_is_added_checked_and_deleted_in_every_version_that_is_spoken() -> Result {
    let (mut world, token) = acme("cni-versions")?;
    let here = place(&mut world, "n1", &[&token])?;
    let other = world.node("n2", &[&token])?;
    let there = other.attach("acme", "far")?;
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let conf = conf(json!({"cniVersion": version}));
        let name = format!("c{}", version.replace('.', ""));
        let container = here.container(&name)?;
        let result = here.add(&name, &conf)?.well();
        assert_eq!(result["cniVersion"], version);
        let interface = &result["interfaces"][0];
        assert_eq!(interface["name"], "eth0");
        assert_eq!(interface["sandbox"], format!("/run/netns/{name}"));
        assert_eq!(interface["mac"], "00:00:00:00:00:00");
        assert_eq!(result["ips"].as_array().unwrap().len(), 2);
        assert_eq!(result["dns"]["nameservers"], json!(["127.0.0.153"]));
        let found =
            container.command("dig").args(["+short", "+time=2", "@127.0.0.153", "far.acme.znet", "AAAA"]);
        assert_eq!(found.run()?.stdout.trim(), there.v6()?.to_string());
        assert_eq!(result["ips"][0]["interface"], 0);
        let routes: Vec<&str> =
            result["routes"].as_array().unwrap().iter().map(|r| r["dst"].as_str().unwrap()).collect();
        assert!(routes.contains(&"10.77.0.0/16") && routes.len() == 2, "{routes:?}");
        // What was said is so.
        wait_pings(&container, &there.v6()?.to_string())?;
        there.wait_reaches(v6(&result).parse()?, SOON)?;
        let mut checked = conf.clone();
        checked["prevResult"] = result;
        here.check(&name, &checked)?.well();
        // DEL can be repeated, needs no namespace and no network, and says nothing.
        let lost = json!({"cniVersion": version, "name": "znet", "type": "znet-cni"});
        for conf in [&checked, &conf, &lost] {
            assert_eq!(here.del(&name, conf)?.well(), Value::Null);
        }
        assert!(!links(&container)?.contains("eth0"));
        here.check(&name, &checked)?.refuses(3, &[&name]);
    }
    assert_eq!(containers(&world)?, ["far"]);
    world.passed();
    Ok(())
}

#[test]
fn what_is_there_already_is_an_error_and_stays_as_it_is() -> Result {
    let (mut world, token) = acme("cni-exists")?;
    let here = place(&mut world, "n1", &[&token])?;
    let conf = conf(json!({}));
    let container = here.container("web")?;
    let first = here.add("web", &conf)?.well();
    // The same once more, and another interface of the same container, which is something else.
    here.add("web", &conf)?.refuses(101, &["web", "already"]);
    let mut second = environment("ADD", "web", "/run/netns/web");
    second.retain(|(name, _)| *name != "CNI_IFNAME");
    second.extend([("CNI_IFNAME", "eth1"), ("CNI_ARGS", "ZNET_NAME=web-2")]);
    here.raw(&second, conf.to_string())?.well();
    assert!(links(&container)?.contains("eth1"));
    // A link that is not ours is left alone.
    let busy = here.container("busy")?;
    busy.command("ip").args(["link", "add", "eth0", "type", "bridge"]).run()?;
    here.add("busy", &conf)?.refuses(101, &["eth0", "exists"]);
    assert!(links(&busy)?.contains("eth0"));
    // A name that another container has, here or elsewhere.
    let mut named = environment("ADD", "busy", "/run/netns/busy");
    named.push(("CNI_ARGS", "ZNET_NAME=web"));
    let mut other = conf.clone();
    other["interface"] = json!("znet0");
    here.raw(&named, other.to_string())?.refuses(101, &["web"]);
    let far = place(&mut world, "n2", &[&token])?;
    far.container("web")?;
    far.add("web", &conf)?.refuses(102, &["web"]);
    here.wait_left(&world, &["web", "web-2"])?;
    let mut checked = conf;
    checked["prevResult"] = first;
    here.check("web", &checked)?.well();
    world.passed();
    Ok(())
}

#[test]
fn names_networks_and_addresses_come_from_where_runtimes_put_them() -> Result {
    let (mut world, token) = acme("cni-names")?;
    let blue = world.controller.create_network(&NetworkSpec { name: "blue", ..NetworkSpec::default() })?;
    let here = place(&mut world, "n1", &[&token, &blue])?;
    for name in ["a", "b", "c", "d"] {
        here.container(name)?;
    }
    let id = "0123456789abcdef".repeat(4);
    let annotated = conf(json!({"runtimeConfig": {
        "io.kubernetes.cri.pod-annotations": {"znet.name": "annotated", "znet.network": "blue"},
    }}));
    here.call("ADD", &id, "/run/netns/a", &annotated)?.well();
    let status = here.node.network("blue")?;
    assert_eq!(status["attached"][0]["name"], "annotated");
    assert_eq!(
        status["attached"][0]["owner"],
        json!({"kind": "cni", "network": "znet", "container": id, "interface": "eth0"})
    );
    let id = "f".repeat(64);
    here.call("ADD", &id, "/run/netns/b", &conf(json!({})))?.well();
    assert_eq!(here.attached()?, ["f".repeat(12)]);
    let mut args = environment("ADD", "c", "/run/netns/c");
    args.push(("CNI_ARGS", "IgnoreUnknown=1;FOO=bar;K8S_POD_NAME=My_Pod;IP=10.77.9.9"));
    let result = here.raw(&args, conf(json!({})).to_string())?.well();
    assert!(result.to_string().contains("10.77.9.9/32"), "{result}");
    let asked = conf(json!({"runtimeConfig": {"ips": ["10.77.9.10/16"]}, "containerName": "fixed"}));
    let result = here.add("d", &asked)?.well();
    assert!(result.to_string().contains("10.77.9.10/32"), "{result}");
    let attached = here.attached()?;
    assert!(attached.contains(&"fixed".to_owned()), "{attached:?}");
    assert!(attached.iter().any(|name| name.starts_with("my-pod-")), "{attached:?}");
    // People see whose they are.
    let shown = here.node.znet(&["status"])?.stdout;
    assert!(shown.contains("OWNER") && shown.contains("cni znet d eth0"), "{shown}");
    world.passed();
    Ok(())
}

#[test]
fn a_chain_of_plugins_keeps_what_the_others_made() -> Result {
    let (mut world, token) = acme("cni-chain")?;
    let here = place(&mut world, "n1", &[&token])?;
    let container = here.container("web")?;
    container.command("ip").args(["link", "add", "eth0", "type", "bridge"]).run()?;
    let chained = conf(json!({"interface": "znet0", "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/web"}],
        "ips": [{"interface": 0, "address": "192.0.2.77/24", "gateway": "192.0.2.1"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }}));
    let result = here.add("web", &chained)?.well();
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    assert_eq!(result["interfaces"][1]["name"], "znet0");
    assert_eq!(result["ips"][0]["gateway"], "192.0.2.1");
    assert_eq!(result["ips"][1]["interface"], 1);
    assert_eq!(result["dns"]["nameservers"], json!(["127.0.0.153", "192.0.2.53"]));
    assert_eq!(result["dns"]["search"], json!(["acme.znet"]));
    let mut checked = chained;
    checked["prevResult"] = result;
    here.check("web", &checked)?.well();
    here.del("web", &checked)?.well();
    let left = links(&container)?;
    assert!(left.contains("eth0") && !left.contains("znet0"), "{left}");
    world.passed();
    Ok(())
}

#[test]
fn garbage_collection_takes_what_its_runtime_forgot_and_nothing_of_anybody_else() -> Result {
    let (mut world, token) = acme("cni-gc")?;
    let here = place(&mut world, "n1", &[&token])?;
    let (ours, theirs) = (conf(json!({})), conf(json!({"name": "theirs"})));
    for (name, conf) in [("a", &ours), ("b", &ours), ("c", &theirs)] {
        here.container(name)?;
        here.add(name, conf)?.well();
    }
    here.node.attach("acme", "by-name")?;
    let hooked = here.container("hooked")?;
    let held = hooked.command("sleep").arg("60").spawn("hooked")?;
    let state = json!({"ociVersion": "1.0.2", "id": "by-hook", "status": "creating", "pid": held.pid()});
    let hook = here.runtimes.plugin(&[], state.to_string())?;
    hook.args(["oci-hook", "--network", "acme"]).run()?;
    let all = ["a", "b", "by-hook", "by-name", "c"];
    here.wait_left(&world, &all)?;
    here.collect(&ours, &["a", "b", "unknown"])?.well();
    here.wait_left(&world, &all)?;
    here.collect(&ours, &["a"])?.well();
    here.wait_left(&world, &["a", "by-hook", "by-name", "c"])?;
    // A runtime that lost all it knew.
    here.collect(&ours, &[])?.well();
    here.wait_left(&world, &["by-hook", "by-name", "c"])?;
    // A list that is missing is not an empty one.
    here.raw(&[("CNI_COMMAND", "GC")], theirs.to_string())?.refuses(7, &["valid-attachments"]);
    here.wait_left(&world, &["by-hook", "by-name", "c"])?;
    // A list for many more containers than there are.
    let many: Vec<String> = (0..20_000).map(|n| format!("{n:064x}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain(["c"]).collect();
    here.collect(&theirs, &many)?.well();
    here.wait_left(&world, &["by-hook", "by-name", "c"])?;
    world.passed();
    Ok(())
}

#[test]
fn many_containers_are_added_at_once_and_two_adds_of_one_make_one() -> Result {
    let (mut world, token) = acme("cni-many")?;
    let here = place(&mut world, "n1", &[&token])?;
    let conf = conf(json!({}));
    let names: Vec<String> = (0..16).map(|n| format!("m{n:02}")).collect();
    for name in &names {
        here.container(name)?;
    }
    let all: Vec<_> = std::thread::scope(|scope| {
        let adds = names.iter().map(|name| scope.spawn(|| here.add(name, &conf))).collect::<Vec<_>>();
        adds.into_iter().map(|add| add.join().unwrap()).collect::<Result<_>>()
    })?;
    let mut addresses: Vec<String> = all.into_iter().map(|said| v6(&said.well())).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), names.len());
    here.container("twice")?;
    let mut twice: Vec<u64> = std::thread::scope(|scope| {
        let adds = (0..4).map(|_| scope.spawn(|| here.add("twice", &conf))).collect::<Vec<_>>();
        adds.into_iter().map(|add| Ok(add.join().unwrap()?.error())).collect::<Result<_>>()
    })?;
    twice.sort_unstable();
    assert_eq!(twice, [0, 101, 101, 101]);
    let mut left: Vec<&str> = names.iter().map(String::as_str).collect();
    left.push("twice");
    here.wait_left(&world, &left)?;
    here.collect(&conf, &[])?.well();
    here.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}

#[test]
fn status_tells_whether_a_container_could_be_added() -> Result {
    let (mut world, token) = acme("cni-status")?;
    let mut here = place(&mut world, "n1", &[&token])?;
    let status =
        |here: &crate::common::Place, conf: &Value| here.raw(&[("CNI_COMMAND", "STATUS")], conf.to_string());
    let (known, unknown) = (conf(json!({})), conf(json!({"network": "nope"})));
    here.node.wait_connected("acme")?;
    status(&here, &known)?.well();
    status(&here, &unknown)?.refuses(50, &["nope"]);
    world.controller.kill()?;
    let away = || status(&here, &known).ok().filter(|said| said.code != 0);
    probe::until("the controller to be missed", SOON, away)?.refuses(50, &["controller", "acme"]);
    here.node.kill_agent()?;
    status(&here, &known)?.refuses(50, &["agent"]);
    here.node.launch()?;
    world.controller.launch()?;
    here.node.wait_connected("acme")?;
    status(&here, &known)?.well();
    world.passed();
    Ok(())
}
