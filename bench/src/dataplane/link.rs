//! Two hosts, one veth between them, and a subject's tunnel over it.
//!
//! A cable of one veth and no switch: a bridge would cost CPU time that is nobody's data plane. Each subject gets hosts of its own, so nothing is
//! left of the one before; dropping the link ends the processes and the namespaces.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail, ensure};
use netns_harness::{Host, Lab, Process, probe};

use super::subject::{Subject, find};

/// How long a program may take to answer, and a tunnel to carry its first packet.
const PATIENCE: Duration = Duration::from_secs(15);
/// The veth's ends.
const CABLE: &str = "eth0";
/// MTU of the underlay, in bytes.
const CABLE_MTU: &str = "1500";
/// The tunnel's device, at both ends.
const TUNNEL: &str = "zt-tun";
/// MTU of the tunnel in bytes: what is left of the underlay's after 60 bytes of WireGuard over IPv4, and what wg-quick(8) takes.
const TUNNEL_MTU: &str = "1420";
/// UDP port of all tunnels.
const PORT: &str = "51820";

/// One end: its addresses on the underlay and in the tunnel.
struct End {
    name: &'static str,
    outer: &'static str,
    inner: &'static str,
}

const LEFT: End = End { name: "left", outer: "192.0.2.1", inner: "198.51.100.1" };
const RIGHT: End = End { name: "right", outer: "192.0.2.2", inner: "198.51.100.2" };

/// A subject that is set up.
pub(super) struct Link {
    /// Where clients run.
    pub(super) left: Host,
    /// Where servers run.
    pub(super) right: Host,
    /// The address of the right host as seen through the subject.
    pub(super) target: &'static str,
    /// The device on both hosts that packets to there leave by.
    pub(super) device: &'static str,
    tunnel: Vec<Process>,
    /// Last, so that it is taken down after everything that runs in it.
    lab: Lab,
}

impl Link {
    /// Sets a subject up and waits until it carries packets.
    pub(super) fn up(subject: Subject) -> Result<Self> {
        let lab = Lab::new(&format!("bench-dataplane-{}", subject.name()))?;
        let (left, right) = (lab.host(LEFT.name)?, lab.host(RIGHT.name)?);
        join(&left, &right)?;
        let ends = [(&left, &LEFT, &RIGHT), (&right, &RIGHT, &LEFT)];
        let tunnel = match subject {
            Subject::Veth => Vec::new(),
            Subject::Nebula => nebula(&lab, ends)?,
            _ => {
                let command = subject.wireguard_command(TUNNEL).context("no data plane by itself")?;
                wireguard(&command, ends)?
            }
        };
        let (target, device) = if tunnel.is_empty() { (RIGHT.outer, CABLE) } else { (RIGHT.inner, TUNNEL) };
        let link = Self { left, right, target, device, tunnel, lab };
        probe::until_ok("the first packet through", PATIENCE, || {
            link.left
                .command("ping")
                .args(["-n", "-c", "1", "-W", "1", link.target])
                .run()
                .map_err(Error::from)
        })?;
        Ok(link)
    }

    /// The tunnel's processes, of both ends.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.tunnel.iter().map(Process::pid).collect()
    }

    /// Says that all went well: no logs need to be kept. Fails if a tunnel's process has ended meanwhile.
    pub(super) fn passed(&self) -> Result<()> {
        ensure!(self.tunnel.iter().all(Process::is_running), "a tunnel's process ended");
        self.lab.passed();
        Ok(())
    }
}

fn join(left: &Host, right: &Host) -> Result<()> {
    // `ip` wants a process to tell it which namespace the far end belongs to.
    let anchor = right.command("sleep").arg("60").spawn("anchor")?;
    let pid = anchor.pid().to_string();
    // An end by itself for the few milliseconds in which the child becomes its program is the machine's own namespace.
    probe::until("a process on the right host", PATIENCE, || {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "sleep").then_some(())
    })?;
    let veth = ["link", "add", CABLE, "mtu", CABLE_MTU, "type", "veth", "peer", "name", CABLE];
    left.command("ip").args(veth).args(["mtu", CABLE_MTU, "netns", &pid]).run()?;
    for (host, end) in [(left, &LEFT), (right, &RIGHT)] {
        host.set_link(CABLE, true)?;
        host.add_address(CABLE, &format!("{}/24", end.outer))?;
    }
    Ok(())
}

/// Starts a program that makes its own device, at both ends, and waits until each answers.
fn wireguard(command: &[String], ends: [(&Host, &End, &End); 2]) -> Result<Vec<Process>> {
    let (name, args) = command.split_first().context("no program")?;
    let program = find(name).with_context(|| format!("{name} is missing"))?;
    let mut keys = Vec::new();
    let mut processes = Vec::new();
    for (host, _, _) in ends {
        let private = host.command("wg").arg("genkey").run()?.stdout;
        let public = host.command("wg").arg("pubkey").stdin(&private).run()?.stdout;
        keys.push((private, public.trim().to_owned()));
        host.command("mkdir").args(["-p", "/run/wireguard"]).run()?;
        processes.push(host.command(&program).args(args).env("LOG_LEVEL", "error").spawn(name)?);
    }
    let [(left_private, left_public), (right_private, right_public)] = keys.as_slice() else {
        bail!("not two ends");
    };
    for ((host, _, _), process) in ends.iter().zip(&processes) {
        answers(host, process)?;
    }
    let [left, right] = ends;
    configure(left, left_private, right_public)?;
    configure(right, right_private, left_public)?;
    Ok(processes)
}

/// Waits until a data plane takes requests, and no longer than it lives.
fn answers(host: &Host, process: &Process) -> Result<()> {
    probe::until("the data plane to answer `wg show`", PATIENCE, || {
        let running = process.is_running();
        let shown = host.command("wg").args(["show", TUNNEL]).run_timeout(PATIENCE);
        (shown.is_ok() || !running).then_some(())
    })?;
    ensure!(process.is_running(), "it ended at once: {}{}", process.stdout()?, process.stderr()?);
    Ok(())
}

fn configure((host, me, other): (&Host, &End, &End), private: &str, peer: &str) -> Result<()> {
    // All in one request: an older boringtun panics when a peer that is there already is told anything.
    let device = ["set", TUNNEL, "listen-port", PORT, "private-key", "/dev/stdin", "peer", peer];
    let (endpoint, allowed) = (format!("{}:{PORT}", other.outer), format!("{}/32", other.inner));
    host.command("wg")
        .args(device)
        .args(["endpoint", &endpoint, "allowed-ips", &allowed])
        .stdin(private)
        .run()?;
    host.command("ip").args(["link", "set", TUNNEL, "mtu", TUNNEL_MTU]).run()?;
    host.set_link(TUNNEL, true)?;
    host.add_address(TUNNEL, &format!("{}/24", me.inner))?;
    Ok(())
}

/// Nebula makes device and address by itself; both ends know each other by the static host map, so no lighthouse runs.
fn nebula(lab: &Lab, ends: [(&Host, &End, &End); 2]) -> Result<Vec<Process>> {
    let program = find("nebula").context("nebula is missing")?;
    let cert = find("nebula-cert").context("nebula-cert is missing")?;
    let dir = lab.dir();
    let [(any, _, _), _] = ends;
    any.command(&cert).args(["ca", "-name", "zt-bench"]).current_dir(dir).run()?;
    let mut processes = Vec::new();
    for (host, me, other) in ends {
        let address = format!("{}/24", me.inner);
        let sign = ["sign", "-name", me.name, "-ip", &address];
        host.command(&cert).args(sign).current_dir(dir).run()?;
        let config = dir.join(format!("{}.yml", me.name));
        std::fs::write(&config, nebula_config(dir, me, other))?;
        processes.push(host.command(&program).arg("-config").arg(&config).spawn("nebula")?);
    }
    Ok(processes)
}

fn nebula_config(dir: &Path, me: &End, other: &End) -> String {
    let file = |name: &str, kind: &str| dir.join(format!("{name}.{kind}")).display().to_string();
    let (ca, cert, key) = (file("ca", "crt"), file(me.name, "crt"), file(me.name, "key"));
    let (inner, outer) = (other.inner, other.outer);
    format!(
        r#"pki: {{ca: "{ca}", cert: "{cert}", key: "{key}"}}
static_host_map: {{"{inner}": ["{outer}:{PORT}"]}}
lighthouse: {{am_lighthouse: false, hosts: []}}
listen: {{host: 0.0.0.0, port: {PORT}}}
cipher: aes
tun: {{dev: {TUNNEL}, mtu: {TUNNEL_MTU}}}
logging: {{level: warning, format: text}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"#
    )
}
