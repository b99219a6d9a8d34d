//! Docker itself, as Debian has it.

use std::path::Path;

use netns_harness::{HostCommand, Output, Process, Signal, probe};
use serde_json::Value;
use znet_tests::runtime::Runtimes;
use znet_tests::runtime::docker::Docker as Daemon;
use znet_tests::{FIRST_PACKET, NetworkSpec, Result, World};

use crate::dockerd::{Docker as Plugin, SOON, acme, containers};

/// Where the machine keeps what Docker looks for.
const MACHINE: [&str; 3] = ["/run/docker.sock", "/run/docker", "/var/lib/docker"];
/// What a container does.
const SLEEP: [&str; 3] = ["box", "sleep", "1000"];
/// Names in `acme` by the container's own resolver, and no ten seconds for a shell that does not hear that it should end.
const USUAL: [&str; 6] =
    ["--detach", "--stop-signal=KILL", "--dns", "127.0.0.153", "--dns-search", "acme.znet"];

/// A node with the plugin, on whose host Docker can be run.
struct Place {
    runtimes: Runtimes,
    plugin: Plugin,
}

fn place(world: &mut World, name: &str, tokens: &[&str]) -> Result<Place> {
    let node = world.node(name, tokens)?;
    let runtimes = Runtimes::prepare(&world.lab, node.host())?;
    Ok(Place { runtimes, plugin: Plugin::beside(node)? })
}

impl Place {
    /// Docker on the host, with an image and a network that stands for `acme`.
    fn docker(&self, flags: &[&str]) -> Result<Daemon<'_>> {
        let daemon = self.runtimes.docker(flags)?;
        daemon.import()?;
        network(&daemon, "acme")?;
        Ok(daemon)
    }

    /// A resolver on the host's own loopback, as many machines have one: it says when it is asked.
    fn resolver(&self) -> Result<Process> {
        let serve = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('127.0.0.53',53))\n\
                     print('ready',flush=True)\nwhile True:\n print('asked',s.recvfrom(512),flush=True)";
        let host = self.runtimes.host();
        let resolver = host.command("python3").args(["-c", serve]).spawn("resolver")?;
        resolver.wait_for_log("ready", SOON)?;
        let tell = "rm -f /etc/resolv.conf; echo nameserver 127.0.0.53 >/etc/resolv.conf";
        host.command("sh").args(["-c", tell]).run()?;
        Ok(resolver)
    }

    /// The address of a container, once the agent looks after it as after every other.
    fn address(&self, name: &str) -> Result<String> {
        let settled = || {
            let attached = self.plugin.attached(name).ok()??;
            let address = attached["addresses"].as_array()?.iter().find_map(Value::as_str)?;
            attached["ifname"].as_str()?.starts_with("eth").then(|| address.to_owned())
        };
        Ok(probe::until(&format!("{name} to be where it belongs"), SOON, settled)?)
    }
}

/// Makes a network of Docker's that stands for one of znet's of the same name.
fn network(daemon: &Daemon<'_>, name: &str) -> Result {
    let of = format!("znet.network={name}");
    daemon.docker(&["network", "create", "-d", "znet", "--ipam-driver", "null", "-o", &of, name]).run()?;
    Ok(())
}

/// `docker run` of a container that sleeps, of the same name in Docker and in a network of znet's.
fn run(daemon: &Daemon<'_>, network: &str, name: &str, flags: &[&str]) -> HostCommand {
    let network = format!("name={network},driver-opt=znet.name={name}");
    let fixed = ["--name", name, "--network", &network];
    daemon.docker(&["run"]).args(USUAL).args(fixed).args(flags).args(SLEEP)
}

fn exec(daemon: &Daemon<'_>, name: &str, command: &[&str]) -> Result<Output> {
    Ok(daemon.docker(&["exec", name]).args(command).try_run()?)
}

/// Waits until a container of this name pings another one, by name or address.
fn wait_pings(daemon: &Daemon<'_>, name: &str, to: &str) -> Result {
    let answered = || {
        let ping = exec(daemon, name, &["ping", "-c", "1", "-W", "1", to]).ok()?;
        ping.status.success().then_some(())
    };
    Ok(probe::until(&format!("{name} to reach {to}"), FIRST_PACKET, answered)?)
}

#[test]
fn containers_that_docker_starts_on_two_hosts_reach_each_other_by_name_and_nothing_else() -> Result {
    let (mut world, token) = acme("docker-real")?;
    let before = MACHINE.map(|path| Path::new(path).exists());
    let spec = NetworkSpec { name: "blue", prefixes: &["10.88.0.0/16"], rest: None };
    let blue = world.controller.create_network(&spec)?;
    let (here, there) =
        (place(&mut world, "n1", &[&token, &blue])?, place(&mut world, "n2", &[&token, &blue])?);
    let resolver = here.resolver()?;
    let (one, two) = (here.docker(&[])?, there.docker(&[])?);
    network(&one, "blue")?;
    network(&two, "blue")?;
    run(&one, "acme", "web", &[]).run()?;
    run(&two, "acme", "db", &[]).run()?;
    // By name at once: it does not take until the agent looks the next time.
    wait_pings(&one, "web", "db")?;
    wait_pings(&two, "db", "web.acme.znet")?;
    let (web, db) = (here.address("web")?, there.address("db")?);
    wait_pings(&one, "web", &db)?;
    wait_pings(&two, "db", &web)?;
    let inspected = one.docker(&["inspect", "web"]).run()?.stdout;
    assert!(inspected.contains(&web), "Docker does not know {web}: {inspected}");
    // Nothing else: no other interface, no way out, no name of anybody else's.
    let links = exec(&one, "web", &["ip", "link"])?.stdout;
    assert_eq!(links.matches(": <").count(), 2, "{links}");
    for family in ["-4", "-6"] {
        let routes = exec(&one, "web", &["ip", family, "route"])?.stdout;
        assert!(!routes.contains("default") && !routes.is_empty(), "{routes}");
    }
    assert!(!exec(&one, "web", &["ping", "-c", "1", "-W", "1", "192.0.2.1"])?.status.success());
    let asked = exec(&one, "web", &["busybox", "nslookup", "www.example.com"])?;
    assert!(!asked.status.success() && asked.stdout.contains("REFUSED"), "{asked:?}");
    assert!(!resolver.stdout()?.contains("asked"), "the machine's resolver was asked for a container");
    // A second network of one container, and out of it again.
    one.docker(&["network", "connect", "--driver-opt", "znet.name=web", "blue", "web"]).run()?;
    run(&two, "blue", "far", &[]).run()?;
    wait_pings(&one, "web", "far.blue.znet")?;
    wait_pings(&one, "web", "db")?;
    assert!(!exec(&two, "db", &["ping", "-c", "1", "-W", "1", "10.88.0.1"])?.status.success());
    one.docker(&["network", "disconnect", "blue", "web"]).run()?;
    let links = exec(&one, "web", &["ip", "link"])?.stdout;
    assert_eq!(links.matches(": <").count(), 2, "{links}");
    wait_pings(&one, "web", "db")?;
    // Started anew it is another container under the same name.
    one.docker(&["restart", "web"]).run()?;
    wait_pings(&two, "db", "web")?;
    // Removed, everything is given back.
    one.docker(&["rm", "--force", "web"]).run()?;
    two.docker(&["rm", "--force", "db", "far"]).run()?;
    here.plugin.wait_left(&world, &[])?;
    there.plugin.wait_left(&world, &[])?;
    one.docker(&["network", "rm", "acme", "blue"]).run()?;
    let after = MACHINE.map(|path| Path::new(path).exists());
    assert_eq!(before, after, "the machine's own directories were touched");
    world.passed();
    Ok(())
}

#[test]
fn a_docker_daemon_that_ends_or_dies_leaves_no_container_that_it_does_not_know() -> Result {
    let (mut world, token) = acme("docker-restarted")?;
    let here = place(&mut world, "n1", &[&token])?;
    let other = world.node("n2", &[&token])?;
    let far = other.attach("acme", "far")?;
    // A runtime that does not come to an end before it is let go.
    let slow = here.runtimes.host().dir().join("slow-runc");
    let text = "#!/bin/sh\ncase \"$*\" in *create*) while [ ! -e /run/go ]; do sleep 0.1; done;; esac\nexec runc \"$@\"\n";
    std::fs::write(&slow, text)?;
    std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let with_slow = format!("slow={}", slow.display());
    let mut docker = here.docker(&["--add-runtime", &with_slow])?;
    let reached = |name: &str| far.wait_reaches(here.address(name)?.parse()?, SOON);
    run(&docker, "acme", "always", &["--restart", "always"]).run()?;
    run(&docker, "acme", "once", &[]).run()?;
    reached("always")?;
    // In an orderly way: it ends its containers, and starts those again that it was told to.
    docker.end(Signal::SIGTERM)?;
    here.plugin.wait_here(&[])?;
    docker.launch(&["--add-runtime", &with_slow])?;
    reached("always")?;
    here.plugin.wait_here(&["always"])?;
    // Killed: links go on, and the next one makes the container anew.
    docker.end(Signal::SIGKILL)?;
    reached("always")?;
    let netns = || Some(here.plugin.attached("always").ok()??["netns"].clone());
    let before = netns();
    docker.launch(&["--add-runtime", &with_slow])?;
    let anew = || (netns()? != before.clone()?).then_some(());
    probe::until("the container to be started anew", SOON, anew)?;
    reached("always")?;
    here.plugin.wait_here(&["always"])?;
    // Killed in the middle of a start: the next one does not know that container, whose name is free at once.
    let starting = run(&docker, "acme", "slow", &["--runtime", "slow"]).spawn("docker-run")?;
    let lent = || here.plugin.attached("slow").ok()?.filter(|a| a["netns"] != "");
    probe::until("the device to be on its way", SOON, lent)?;
    docker.end(Signal::SIGKILL)?;
    assert!(!starting.wait(SOON)?.success());
    docker.launch(&["--add-runtime", &with_slow])?;
    here.plugin.wait_here(&["always"])?;
    here.plugin.node.host().command("touch").arg("/run/go").run()?;
    docker.docker(&["rm", "--force", "slow"]).run()?;
    docker.end(Signal::SIGTERM)?;
    docker.launch(&["--live-restore"])?;
    run(&docker, "acme", "slow", &[]).run()?;
    reached("slow")?;
    here.plugin.wait_here(&["always", "slow"])?;
    // Told to leave its containers alone, it does, however it ends.
    let before = (here.address("always")?, here.address("slow")?);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        docker.end(signal)?;
        reached("slow")?;
        docker.launch(&["--live-restore"])?;
        reached("slow")?;
        wait_pings(&docker, "always", "far")?;
        assert_eq!((here.address("always")?, here.address("slow")?), before);
    }
    docker.docker(&["rm", "--force", "always", "once", "slow"]).run()?;
    here.plugin.wait_here(&[])?;
    let gone = || (containers(&world).ok()? == ["far"]).then_some(());
    probe::until("the controller to be told", SOON, gone)?;
    world.passed();
    Ok(())
}
