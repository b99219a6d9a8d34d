//! `znet-wg` as `wg(8)` and `wg-quick(8)` meet it, with `wireguard-go` as its peer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use netns_harness::{Host, HostCommand, Lab, probe};
use znet_tests::Result;
use znet_tests::wireguard::{
    AT_ONCE, Device, LISTEN_PORT, Peering, Tunnels, Underlay, WireGuard, underlay_host,
};

const WITH_GO: [WireGuard; 2] = [WireGuard::Znet, WireGuard::WireguardGo];

fn configuration(device: &Device, peers: &str) -> String {
    format!(
        "[Interface]\nListenPort = {LISTEN_PORT}\nFwMark = 0x77\nPrivateKey = {}\n\n{peers}",
        device.private_key()
    )
}

fn peer(of: &Device, more: &str) -> String {
    let [v4, v6] = of.inner();
    format!("[Peer]\nPublicKey = {}\nAllowedIPs = {v4}/32, {v6}/128\n{more}\n", of.public_key())
}

/// Its lines, without regard to the order of peers and prefixes.
fn lines(configuration: &str) -> Vec<String> {
    let mut lines: Vec<String> = configuration
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            words.sort_unstable();
            words.join(" ")
        })
        .collect();
    lines.sort();
    lines
}

fn apply(device: &Device, command: &str, configuration: &str) -> Result {
    let output = device.configure(command, configuration)?;
    anyhow::ensure!(output.status.success(), "wg {command}: {}", output.stderr);
    Ok(())
}

#[test]
fn a_configuration_comes_back_as_it_was_set() -> Result {
    let mut tunnels =
        Tunnels::new("showconf", [WireGuard::Znet, WireGuard::WireguardGo, WireGuard::WireguardGo])?;
    let [a, b, c] = &mut tunnels.devices;
    let preshared = a.command("wg").arg("genpsk").run()?.stdout;
    let endpoint = Underlay::V6.endpoint(b.number(), LISTEN_PORT);
    let of_b =
        peer(b, &format!("Endpoint = {endpoint}\nPersistentKeepalive = 25\nPresharedKey = {preshared}"));
    let wanted = configuration(a, &format!("{of_b}{}", peer(c, "")));
    apply(a, "setconf", &wanted)?;
    let shown = a.command("wg").args(["showconf", a.ifname()]).run()?.stdout;
    assert_eq!(lines(&shown), lines(&wanted));
    // A fresh program is told what the first one said.
    a.kill()?;
    a.launch()?;
    apply(a, "setconf", &shown)?;
    let again = a.command("wg").args(["showconf", a.ifname()]).run()?.stdout;
    assert_eq!(lines(&again), lines(&shown));
    // What is not in a new configuration is gone with it.
    apply(a, "setconf", &configuration(a, &peer(c, "")))?;
    assert_eq!(a.show("peers")?.trim(), c.public_key());
    apply(a, "addconf", &peer(b, ""))?;
    assert_eq!((a.peer_count()?, a.shown(b)?.keepalive), (2, None));
    tunnels.passed();
    Ok(())
}

#[test]
fn a_peer_that_is_updated_keeps_its_session_and_loses_no_packet() -> Result {
    let tunnels = Tunnels::connected("update", WITH_GO, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    let before = a.shown(b)?;
    let flow = a.flow(&b.inner_v4(), 100)?;
    let [v4, v6] = b.inner();
    let mut updates = 0;
    while flow.goes_on() {
        let more = format!("{v4}/32,{v6}/128,10.88.{}.0/24", updates % 256);
        for allowed in [more.as_str(), &format!("{v4}/32,{v6}/128")] {
            a.set(&["peer", b.public_key(), "allowed-ips", allowed])?;
        }
        a.set(&["peer", b.public_key(), "persistent-keepalive", "20"])?;
        let endpoint = Underlay::V4.endpoint(b.number(), LISTEN_PORT);
        apply(a, "addconf", &peer(b, &format!("Endpoint = {endpoint}")))?;
        apply(a, "syncconf", &configuration(a, &peer(b, &format!("Endpoint = {endpoint}"))))?;
        updates += 1;
    }
    assert!(updates > 5, "only {updates} rounds of updates while pings flowed");
    assert_eq!(flow.lost()?, 0);
    let after = a.shown(b)?;
    assert_eq!((after.handshake, after.endpoint), (before.handshake, before.endpoint));
    assert!(after.received > before.received);
    tunnels.passed();
    Ok(())
}

#[test]
fn syncconf_keeps_the_sessions_of_those_who_stay_and_removes_who_is_not_named() -> Result {
    let programs = [WireGuard::Znet, WireGuard::WireguardGo, WireGuard::WireguardGo];
    let tunnels = Tunnels::new("syncconf", programs)?;
    let [a, b, c] = &tunnels.devices;
    for other in [b, c] {
        a.meets(other, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
        other.meets(a, &Peering::default())?;
        a.reaches(other.inner_v4(), AT_ONCE)?;
    }
    let before = a.shown(b)?;
    apply(a, "syncconf", &configuration(a, &peer(b, "")))?;
    assert_eq!(a.show("peers")?.trim(), b.public_key());
    a.reaches(b.inner_v6(), AT_ONCE)?;
    let after = a.shown(b)?;
    // Where the peer is stays known although the file is silent about it.
    assert_eq!((after.handshake, &after.endpoint), (before.handshake, &before.endpoint));
    assert!(!a.pings(&c.inner_v4(), Duration::from_secs(1))?);
    tunnels.passed();
    Ok(())
}

#[test]
fn wg_show_tells_the_truth() -> Result {
    let tunnels = Tunnels::connected("show", WITH_GO, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    assert_eq!(a.command("wg").args(["show", "interfaces"]).run()?.stdout.trim(), a.ifname());
    assert_eq!(a.show("public-key")?.trim(), a.public_key());
    assert_eq!(a.show("private-key")?.trim(), a.private_key());
    assert_eq!(a.show("listen-port")?.trim(), LISTEN_PORT.to_string());
    assert_eq!(a.show("fwmark")?.trim(), "off");
    assert_eq!(a.show("preshared-keys")?.split_whitespace().last(), Some("(none)"));
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let shown = a.shown(b)?;
    assert!((now() - 30..=now()).contains(&shown.handshake), "{shown:?}");
    let mut allowed = shown.allowed;
    allowed.sort();
    assert_eq!(allowed, b.inner().map(|at| if at.contains(':') { at + "/128" } else { at + "/32" }));
    assert_eq!((shown.keepalive, shown.endpoint.unwrap().to_string().as_str()), (None, "192.0.2.2:51820"));
    // One way is what the other way is; all bytes of messages count.
    let there = b.shown(a)?;
    assert_eq!((shown.sent, shown.received), (there.received, there.sent));
    tunnels.passed();
    Ok(())
}

/// A host on which `wg-quick` finds no WireGuard in the kernel, whatever the machine has, and uses ours instead.
struct QuickHost {
    host: Host,
    shims: PathBuf,
    file: PathBuf,
    ifname: String,
}

impl QuickHost {
    fn new(lab: &Lab, host: Host, number: u8) -> Result<Self> {
        let (shims, ifname) = (host.dir().join("bin"), format!("{}-{number}", lab.prefix()));
        std::fs::create_dir_all(&shims)?;
        let ip = shims.join("ip");
        let script = "#!/bin/sh\ncase \"$*\" in 'link add '*' type wireguard') exit 2 ;; esac\n\
                      PATH=${PATH#*:} exec ip \"$@\"\n";
        std::fs::write(&ip, script)?;
        std::fs::set_permissions(&ip, std::fs::Permissions::from_mode(0o755))?;
        host.command("mount").args(["-t", "tmpfs", "none", "/sys/module"]).run()?;
        let file = host.dir().join(format!("{ifname}.conf"));
        Ok(Self { host, shims, file, ifname })
    }

    fn write(&self, configuration: &str) -> Result {
        std::fs::write(&self.file, configuration)?;
        std::fs::set_permissions(&self.file, std::fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    fn quick(&self, command: &str) -> Result<HostCommand> {
        let path = std::env::var("PATH")?;
        Ok(self
            .host
            .command("wg-quick")
            .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.shims.display()))
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", WireGuard::Znet.path()?)
            .arg(command)
            .arg(&self.file))
    }

    fn pings(&self, to: &str) -> Result {
        self.host.command("ping").args(["-n", "-c", "1", "-W", "2", to]).run()?;
        Ok(())
    }

    fn wait_gone(&self) -> Result {
        probe::until_ok("the daemon to leave", AT_ONCE, || {
            let link = self.host.command("ip").args(["link", "show", &self.ifname]).try_run()?;
            anyhow::ensure!(!link.status.success(), "{}", link.stdout);
            let sockets = self.host.command("ls").arg("/run/wireguard").run()?.stdout;
            anyhow::ensure!(sockets.is_empty(), "{sockets}");
            Ok::<_, anyhow::Error>(())
        })?;
        Ok(())
    }
}

#[test]
fn wg_quick_brings_a_tunnel_up_and_down_with_everything_routed_through_it() -> Result {
    let tunnels = Tunnels::new("quick", [WireGuard::WireguardGo])?;
    let [b] = &tunnels.devices;
    let host = underlay_host(&tunnels.lab, &tunnels.switch, 2)?;
    // The peer is behind the default route: only the mark keeps its own packets out of the tunnel.
    b.host().add_address("eth0", "203.0.113.1/32")?;
    host.command("ip").args(["route", "add", "default", "via", "192.0.2.1"]).run()?;
    for address in ["198.51.100.1/32", "2001:db8:51::1/128"] {
        b.host().add_address(b.ifname(), address)?;
    }
    let private = host.command("wg").arg("genkey").run()?.stdout;
    let public = host.command("wg").arg("pubkey").stdin(&private).run()?.stdout;
    b.set(&["peer", public.trim(), "allowed-ips", "10.99.0.2/32,fd99::2/128"])?;
    let quick = QuickHost::new(&tunnels.lab, host, 2)?;
    quick.write(&format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.99.0.2/24, fd99::2/64\n\n\
         [Peer]\nPublicKey = {}\nEndpoint = 203.0.113.1:{LISTEN_PORT}\nAllowedIPs = 0.0.0.0/0, ::/0\n",
        private.trim(),
        b.public_key()
    ))?;
    for _ in 0..2 {
        quick.quick("up")?.run()?;
        for inside in ["10.99.0.1", "fd99::1", "198.51.100.1", "2001:db8:51::1"] {
            quick.pings(inside)?;
        }
        let saved = quick.host.command("ip").args(["link", "show", &quick.ifname]).run()?.stdout;
        assert!(saved.contains("mtu 1420"), "{saved}");
        quick.quick("save")?.run()?;
        quick.quick("down")?.run()?;
        quick.wait_gone()?;
    }
    tunnels.passed();
    Ok(())
}
