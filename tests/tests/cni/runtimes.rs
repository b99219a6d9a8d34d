//! containerd, podman and runc, as Debian has them.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use netns_harness::{HostCommand, Process, Signal, probe};
use serde_json::{Value, json};
use znet_tests::runtime::owned;
use znet_tests::{FIRST_PACKET, Result};

use crate::common::{Place, SOON, acme, conf, containers, place};

/// Where the machine keeps what runtimes look for.
const MACHINE: [&str; 3] =
    ["/opt/cni/bin/znet-cni", "/etc/cni/net.d/10-znet.conflist", "/var/lib/cni/results"];

/// The first IPv6 address of a container that a node attached.
fn address(place: &Place, name: &str) -> Result<String> {
    let status = place.node.network("acme")?;
    let attached = status["attached"].as_array().cloned().unwrap_or_default();
    let found = attached.iter().find(|a| a["name"] == name).context("not attached")?;
    Ok(found["addresses"][0].as_str().context("no address")?.to_owned())
}

/// Waits until a node has attached a container of this name.
fn wait_attached(place: &Place, name: &str) -> Result<String> {
    Ok(probe::until(&format!("{name} to be attached"), SOON, || address(place, name).ok())?)
}

/// Waits until a command in a container succeeds.
fn wait_succeeds(what: &str, command: impl Fn() -> Result<HostCommand>) -> Result {
    let done = || command().ok()?.try_run().ok()?.status.success().then_some(());
    Ok(probe::until(what, FIRST_PACKET, done)?)
}

fn ctr_ping(place: &Place, id: &str, to: &str) -> HostCommand {
    let exec = format!("p{}", rand::random::<u32>());
    place.runtimes.ctr(&["task", "exec", "--exec-id", &exec, id, "/bin/ping", "-c", "1", "-W", "1", to])
}

#[test]
fn containers_of_containerd_podman_and_runc_on_two_hosts_talk() -> Result {
    let (mut world, token) = acme("cni-runtimes")?;
    let before = MACHINE.map(|path| Path::new(path).exists());
    let (one, two) = (place(&mut world, "n1", &[&token])?, place(&mut world, "n2", &[&token])?);
    one.runtimes.install(&one.node, &["--network", "acme"])?;
    two.runtimes.install(&two.node, &["--network", "acme"])?;
    // containerd on one, podman on the other, runc on both.
    let _containerd = one.runtimes.containerd()?;
    let web = one.runtimes.ctr_run("web", &["/bin/sleep", "1000"]).spawn("ctr")?;
    let web_address = wait_attached(&one, "default-web")?;
    let asked = ["--detach", "--network", "znet:ip=10.77.5.5"];
    two.runtimes.podman_run("db", &asked, &["/bin/sleep", "1000"])?.run()?;
    let db_address = address(&two, "db")?;
    let bundle = two.runtimes.bundle("job", &["--network", "acme"], &["/bin/sleep", "1000"])?;
    two.runtimes.runc(&["run", "--detach", "--bundle"]).arg(&bundle).arg("job").run()?;
    let job_address = address(&two, "job")?;
    let podman_ping = |to: &str| two.runtimes.podman(&["exec", "db", "/bin/ping", "-c", "1", "-W", "1", to]);
    let runc_ping = |to: &str| Ok(two.runtimes.runc(&["exec", "job", "/bin/ping", "-c", "1", "-W", "1", to]));
    wait_succeeds("web to reach db", || Ok(ctr_ping(&one, "web", &db_address)))?;
    wait_succeeds("web to reach job", || Ok(ctr_ping(&one, "web", &job_address)))?;
    wait_succeeds("db to reach web", || podman_ping(&web_address))?;
    wait_succeeds("db to reach job", || podman_ping(&job_address))?;
    wait_succeeds("job to reach web", || runc_ping(&web_address))?;
    wait_succeeds("job to reach db", || runc_ping(&db_address))?;
    let routes = two.runtimes.runc(&["exec", "job", "/bin/ip", "route"]).run()?.stdout;
    assert!(!routes.contains("default"), "a way out: {routes}");
    assert!(owned(&two.node, "acme", "job")?.is_some_and(|job| job["owner"]["kind"] == "oci"));
    // podman makes the resolv.conf out of the plugin's result.
    let asked = two
        .runtimes
        .podman(&["exec", "db", "/bin/busybox", "nslookup", "default-web.acme.znet"])?
        .run()?
        .stdout;
    assert!(asked.contains("127.0.0.153") && asked.contains(&web_address), "{asked}");
    let inspected = two.runtimes.podman(&["inspect", "db"])?.run()?.stdout;
    assert!(
        inspected.contains(&db_address) && inspected.contains("10.77.5.5"),
        "podman does not know the address: {inspected}"
    );
    // Each ends in its own way, and nothing is left of it.
    one.runtimes.ctr(&["task", "kill", "--signal", "SIGKILL", "web"]).run()?;
    web.wait(SOON)?;
    one.wait_left_here(&[])?;
    two.runtimes.podman(&["rm", "--force", "--time", "0", "db"])?.run()?;
    two.wait_left_here(&["job"])?;
    two.runtimes.runc(&["kill", "job", "KILL"]).run()?;
    wait_succeeds("job to be deleted", || Ok(two.runtimes.runc(&["delete", "job"])))?;
    two.wait_left_here(&[])?;
    let gone = || containers(&world).ok().filter(Vec::is_empty);
    probe::until("the controller to know none of them", SOON, gone)?;
    one.runtimes.clean()?;
    two.runtimes.clean()?;
    let after = MACHINE.map(|path| Path::new(path).exists());
    assert_eq!(before, after, "the machine's own directories were touched");
    // What was installed goes away as it came.
    one.node.znet(&["cni", "uninstall"])?;
    let left = one.node.host().command("ls").args(["/opt/cni/bin", "/etc/cni/net.d"]).run()?.stdout;
    assert!(!left.contains("znet"), "{left}");
    world.passed();
    Ok(())
}

#[test]
fn a_hook_that_cannot_attach_fails_its_container_and_leaves_nothing() -> Result {
    let (mut world, token) = acme("oci-hook")?;
    let mut here = place(&mut world, "n1", &[&token])?;
    let run = |here: &Place, id: &str, hook: &[&str]| -> Result<String> {
        let bundle = here.runtimes.bundle(id, hook, &["/bin/sleep", "1000"])?;
        let output = here.runtimes.runc(&["run", "--detach", "--bundle"]).arg(bundle).arg(id).try_run()?;
        assert!(!output.status.success(), "{id} started");
        let list = here.runtimes.runc(&["list", "--quiet"]).run()?.stdout;
        assert!(!list.contains(id), "{id} is left: {list}");
        Ok(output.stderr)
    };
    assert!(run(&here, "nowhere", &[])?.contains("--network"));
    assert!(run(&here, "foreign", &["--network", "nope"])?.contains("no member of a network nope"));
    assert!(run(&here, "no-name", &["--network", "acme", "--name", "No_Name"])?.contains("No_Name"));
    assert!(run(&here, "no-flag", &["--banana", "1"])?.contains("--banana"));
    here.node.kill_agent()?;
    assert!(run(&here, "no-agent", &["--network", "acme"])?.contains("znet-agent run"));
    here.node.launch()?;
    here.node.wait_connected("acme")?;
    here.wait_left(&world, &[])?;
    // What is no state of a container.
    for input in
        ["", "[]", "{}", r#"{"id":"x","status":"running","pid":1}"#, r#"{"id":"x","status":"created"}"#]
    {
        let hook = here.runtimes.plugin(&[], input)?.args(["oci-hook", "--network", "acme"]).try_run()?;
        assert!(!hook.status.success() && hook.stderr.contains("error:"), "{input}: {hook:?}");
    }
    here.wait_left(&world, &[])?;
    here.runtimes.clean()?;
    world.passed();
    Ok(())
}

impl Place {
    fn wait_left_here(&self, names: &[&str]) -> Result {
        let left = || self.attached().ok().filter(|here| here == names);
        probe::until(&format!("{names:?} alone to be attached"), SOON, left)?;
        Ok(())
    }
}

/// The process that looks after a container of containerd.
fn shim_of(place: &Place, id: &str) -> Result<i32> {
    let list = place.runtimes.ctr(&["task", "list"]).run()?.stdout;
    let line =
        list.lines().find(|line| line.starts_with(id)).ok_or_else(|| anyhow!("no task {id}: {list}"))?;
    let pid = line.split_whitespace().nth(1).context("no process")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no stat")?;
    Ok(fields.split_whitespace().nth(1).context("no parent")?.parse()?)
}

/// Starts a container and waits until its ADD hangs at the controller.
fn in_mid_add(world: &znet_tests::World, place: &Place, run: HostCommand) -> Result<Process> {
    world.controller.process()?.signal(Signal::SIGSTOP)?;
    let runtime = run.spawn("runtime")?;
    place.wait_asked()?;
    Ok(runtime)
}

#[test]
fn a_runtime_a_shim_or_an_agent_that_is_killed_in_the_middle_leaves_nothing_behind() -> Result {
    let (mut world, token) = acme("cni-mid-add")?;
    let mut here = place(&mut world, "n1", &[&token])?;
    here.runtimes.install(&here.node, &["--network", "acme"])?;
    let _containerd = here.runtimes.containerd()?;
    let sleep = ["/bin/sleep", "1000"];
    let ctr_run = |here: &Place, id: &str| here.runtimes.ctr_run(id, &sleep);
    let garbage = conf(json!({}));
    let settle = |world: &znet_tests::World, here: &Place| -> Result {
        world.controller.process()?.signal(Signal::SIGCONT)?;
        here.node.wait_connected("acme")?;
        // Whoever still works on it comes to an end first, as a runtime has to see to before it collects.
        let asks = || {
            let sockets = here.node.host().command("ss").args(["-xH", "state", "connected"]).run().ok()?;
            (!sockets.stdout.contains("agent.sock")).then_some(())
        };
        probe::until("the agent to have answered all", SOON, asks)?;
        Ok(())
    };
    // The runtime, which is what calls the plugin: ctr, and podman.
    let run = ctr_run(&here, "one");
    in_mid_add(&world, &here, run)?.kill()?;
    settle(&world, &here)?;
    here.collect(&garbage, &[])?.well();
    here.wait_left(&world, &[])?;
    let run = here.runtimes.podman_run("two", &["--network", "znet"], &sleep)?;
    in_mid_add(&world, &here, run)?.kill()?;
    settle(&world, &here)?;
    here.collect(&garbage, &[])?.well();
    here.wait_left(&world, &[])?;
    // The shim.
    let run = ctr_run(&here, "three");
    let runtime = in_mid_add(&world, &here, run)?;
    let shim = shim_of(&here, "three")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), Signal::SIGKILL)?;
    settle(&world, &here)?;
    runtime.wait(SOON)?;
    here.collect(&garbage, &[])?.well();
    here.wait_left(&world, &[])?;
    // The agent: its next start is enough.
    let run = ctr_run(&here, "four");
    let runtime = in_mid_add(&world, &here, run)?;
    here.node.kill_agent()?;
    assert!(!runtime.wait(SOON)?.success());
    here.node.launch()?;
    settle(&world, &here)?;
    here.wait_left(&world, &[])?;
    // And the next container is as any other.
    let run = ctr_run(&here, "five").spawn("ctr")?;
    let address: Value = json!(wait_attached(&here, "default-five")?);
    assert!(address.as_str().unwrap().contains(':'));
    here.runtimes.ctr(&["task", "kill", "--signal", "SIGKILL", "five"]).run()?;
    run.wait(SOON)?;
    here.wait_left(&world, &[])?;
    here.runtimes.clean()?;
    world.passed();
    Ok(())
}
