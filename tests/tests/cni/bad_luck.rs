//! An agent that is down, slow or restarted; a plugin that is killed; a container that meddles with its own interface.

use std::time::Duration;

use netns_harness::{Signal, probe};
use serde_json::json;
use znet_tests::Result;

use crate::common::{SOON, acme, conf, containers, environment, links, place, v6, wait_pings};

#[test]
fn an_agent_that_is_down_slow_or_restarted_has_the_runtime_try_again() -> Result {
    let (mut world, token) = acme("cni-agent")?;
    let mut here = place(&mut world, "n1", &[&token])?;
    let (conf, hasty) = (conf(json!({})), conf(json!({"timeoutMillis": 400, "waitControllerMillis": 0})));
    let container = here.container("web")?;
    // Down.
    here.node.kill_agent()?;
    for command in ["ADD", "DEL", "CHECK"] {
        here.call(command, "web", "/run/netns/web", &conf)?.refuses(11, &["agent"]);
    }
    here.node.launch()?;
    here.node.wait_connected("acme")?;
    // Slow: whoever asked is gone before it wakes up, so what it makes then is taken back.
    here.node.agent()?.signal(Signal::SIGSTOP)?;
    here.add("web", &hasty)?.refuses(11, &["did not answer"]);
    here.node.agent()?.signal(Signal::SIGCONT)?;
    here.wait_left(&world, &[])?;
    // Restarted in the middle, while the controller keeps it waiting.
    world.controller.process()?.signal(Signal::SIGSTOP)?;
    let adding = here.runtimes.plugin(&environment("ADD", "web", "/run/netns/web"), conf.to_string())?;
    let adding = adding.spawn("plugin")?;
    here.wait_asked()?;
    here.node.kill_agent()?;
    assert!(!adding.wait(SOON)?.success());
    assert!(adding.stdout()?.contains("\"code\":11"), "{}", adding.stdout()?);
    here.node.launch()?;
    world.controller.process()?.signal(Signal::SIGCONT)?;
    here.node.wait_connected("acme")?;
    here.wait_left(&world, &[])?;
    assert!(!links(&container)?.contains("eth0"));
    // It can be tried again.
    here.add("web", &conf)?.well();
    // An attachment outlives the agent with its owner.
    here.node.kill_agent()?;
    here.node.launch()?;
    here.node.wait_connected("acme")?;
    here.check("web", &conf)?.well();
    here.del("web", &conf)?.well();
    here.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}

#[test]
fn a_plugin_that_is_killed_in_the_middle_leaves_nothing_behind() -> Result {
    let (mut world, token) = acme("cni-killed")?;
    let here = place(&mut world, "n1", &[&token])?;
    let conf = conf(json!({}));
    let container = here.container("web")?;
    world.controller.process()?.signal(Signal::SIGSTOP)?;
    let adding = here.runtimes.plugin(&environment("ADD", "web", "/run/netns/web"), conf.to_string())?;
    let adding = adding.spawn("plugin")?;
    here.wait_asked()?;
    adding.kill()?;
    world.controller.process()?.signal(Signal::SIGCONT)?;
    here.node.wait_connected("acme")?;
    here.wait_left(&world, &[])?;
    // A DEL does not overtake the ADD that it is for.
    world.controller.process()?.signal(Signal::SIGSTOP)?;
    let adding = here.runtimes.plugin(&environment("ADD", "web", "/run/netns/web"), conf.to_string())?;
    let adding = adding.spawn("plugin")?;
    here.wait_asked()?;
    let deleting = here.runtimes.plugin(&environment("DEL", "web", ""), conf.to_string())?.spawn("plugin")?;
    world.controller.process()?.signal(Signal::SIGCONT)?;
    adding.wait(SOON)?;
    assert!(deleting.wait(SOON)?.success(), "{}", deleting.stdout()?);
    here.wait_left(&world, &[])?;
    assert!(!links(&container)?.contains("eth0"));
    world.passed();
    Ok(())
}

#[test]
fn a_controller_that_is_away_is_waited_for_and_then_has_the_runtime_try_again() -> Result {
    let (mut world, token) = acme("cni-away")?;
    let here = place(&mut world, "n1", &[&token])?;
    let container = here.container("web")?;
    world.controller.kill()?;
    let hasty = conf(json!({"waitControllerMillis": 0}));
    let away = || here.add("web", &hasty).ok().filter(|said| said.code != 0);
    probe::until("the controller to be missed", SOON, away)?.refuses(11, &["controller"]);
    let patient = conf(json!({"waitControllerMillis": 60_000}));
    let adding = here.runtimes.plugin(&environment("ADD", "web", "/run/netns/web"), patient.to_string())?;
    let adding = adding.spawn("plugin")?;
    here.wait_asked()?;
    world.controller.launch()?;
    assert!(adding.wait(Duration::from_secs(60))?.success(), "{}", adding.stdout()?);
    assert!(links(&container)?.contains("eth0"));
    // What is deleted while it is away is gone here at once, and there as soon as it is back.
    world.controller.kill()?;
    here.del("web", &patient)?.well();
    assert!(!links(&container)?.contains("eth0"));
    world.controller.launch()?;
    here.node.wait_connected("acme")?;
    here.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}

#[test]
fn a_container_that_meddles_with_its_interface_is_told_of_mended_and_deleted() -> Result {
    let (mut world, token) = acme("cni-meddles")?;
    let here = place(&mut world, "n1", &[&token])?;
    let other = world.node("n2", &[&token])?;
    let far = other.attach("acme", "far")?;
    let conf = conf(json!({}));
    let container = here.container("web")?;
    let result = here.add("web", &conf)?.well();
    let ip = |args: &[&str]| -> Result {
        container.command("ip").args(args).run()?;
        Ok(())
    };
    here.check("web", &conf)?.well();
    // Renamed and set up again under its new name.
    ip(&["link", "set", "eth0", "down"])?;
    ip(&["link", "set", "eth0", "name", "mine"])?;
    here.check("web", &conf)?.refuses(104, &["eth0"]);
    let mended = || here.check("web", &conf).ok().filter(|said| said.code == 0);
    probe::until("the interface to be mended", Duration::from_secs(40), mended)?;
    assert!(!links(&container)?.contains("mine"));
    wait_pings(&container, &far.v6()?.to_string())?;
    // An address less, a route less.
    ip(&["address", "del", &format!("{}/128", v6(&result)), "dev", "eth0"])?;
    here.check("web", &conf)?.refuses(104, &[&v6(&result)]);
    probe::until("the address to be mended", Duration::from_secs(40), mended)?;
    // Deleted, and something else put in its place: that is not ours, so it is left alone and told of.
    let swap = "ip link delete eth0 && ip link add eth0 type bridge && ip link set eth0 up";
    container.command("sh").args(["-c", swap]).run()?;
    let told = || here.check("web", &conf).ok().filter(|said| said.code != 0);
    probe::until("the swap to be noticed", SOON, told)?.refuses(104, &[]);
    let clear = || here.node.agent().ok()?.stderr().ok()?.contains("eth0 exists already").then_some(());
    probe::until("the agent to say why it cannot be mended", SOON, clear)?;
    let details = container.command("ip").args(["-d", "address", "show", "eth0"]).run()?.stdout;
    assert!(details.contains("bridge") && !details.contains("10.77."), "{details}");
    // It is deleted as any other, and what is not ours stays.
    here.del("web", &conf)?.well();
    assert!(links(&container)?.contains("eth0"));
    assert_eq!(containers(&world)?, ["far"]);
    world.passed();
    Ok(())
}

#[test]
fn without_an_engine_existing_containers_may_be_without_links_as_well() -> Result {
    let (mut world, token) = acme("cni-51")?;
    let here = place(&mut world, "n1", &[&token])?;
    here.node.wait_connected("acme")?;
    let status = || here.raw(&[("CNI_COMMAND", "STATUS")], conf(json!({})).to_string());
    status()?.well();
    // The agent starts another engine unless it cannot: where its log should go there is a directory.
    let log = "/run/znet-agent/engine.log";
    let engine = here.node.engine_pid()?.to_string();
    here.node.host().command("rm").args(["-f", log]).run()?;
    here.node.host().command("mkdir").arg(log).run()?;
    here.node.host().command("kill").args(["-9", &engine]).run()?;
    let limited = || status().ok().filter(|said| said.code != 0);
    probe::until("the engine to be missed", SOON, limited)?.refuses(51, &["engine"]);
    here.node.host().command("rmdir").arg(log).run()?;
    probe::until("another engine", SOON, || status().ok().filter(|said| said.code == 0))?;
    world.passed();
    Ok(())
}
