//! `znet-wg` against itself: the cases by which the Linux kernel tests its WireGuard (tools/testing/selftests/wireguard/netns.sh), as far as they
//! are about a device and not about the kernel, and what a device shows to its underlay.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use netns_harness::probe;
use znet_tests::Result;
use znet_tests::wireguard::{
    AT_ONCE, Device, LISTEN_PORT, Peering, Tunnels, Underlay, WireGuard, ask_for_all_traffic,
    exchange_all_traffic,
};

const BOTH: [WireGuard; 2] = [WireGuard::Znet; 2];

/// How long to wait for what must not come.
const IN_VAIN: Duration = Duration::from_secs(1);

#[test]
fn all_traffic_passes_between_two_over_ipv4() -> Result {
    let tunnels = Tunnels::connected("v4", BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    exchange_all_traffic(a, b)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn all_traffic_passes_between_two_over_ipv6() -> Result {
    let tunnels = Tunnels::connected("v6", BOTH, Underlay::V6)?;
    let [a, b] = &tunnels.devices;
    exchange_all_traffic(a, b)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn all_traffic_passes_where_several_sockets_share_a_port() -> Result {
    let tunnels = Tunnels::connected("wide", [WireGuard::ZnetWide, WireGuard::ZnetWide], Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    exchange_all_traffic(a, b)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn an_mtu_that_is_changed_at_run_time_is_honoured() -> Result {
    let tunnels = Tunnels::connected("mtu", BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    for mtu in [1_280, 8_000, 1_500] {
        for device in [a, b] {
            device.command("ip").args(["link", "set", device.ifname(), "mtu", &mtu.to_string()]).run()?;
        }
        for (to, headers) in [(b.inner_v4(), 28), (b.inner_v6(), 48)] {
            let whole = (mtu - headers).to_string();
            let flags = ["-n", "-c", "3", "-i", "0.01", "-W", "2", "-M", "do", "-s"];
            a.command("ping").args(flags).arg(whole).arg(to).run()?;
        }
        ask_for_all_traffic(a, b)?;
    }
    tunnels.passed();
    Ok(())
}

#[test]
fn a_changed_private_key_is_used_at_once() -> Result {
    let mut tunnels = Tunnels::connected("key", BOTH, Underlay::V4)?;
    let [a, b] = &mut tunnels.devices;
    for _ in 0..3 {
        let old = a.public_key().to_owned();
        a.change_key()?;
        b.set(&["peer", &old, "remove"])?;
        b.meets(a, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
        a.reaches(b.inner_v4(), AT_ONCE)?;
        b.reaches(a.inner_v6(), AT_ONCE)?;
        assert_eq!(a.show("public-key")?.trim(), a.public_key());
    }
    tunnels.passed();
    Ok(())
}

#[test]
fn addresses_by_the_hundred_thousand_are_kept_told_looked_up_and_moved() -> Result {
    let tunnels = Tunnels::new("many", [WireGuard::Znet; 3])?;
    let [a, b, c] = &tunnels.devices;
    let mut all = String::new();
    for (x, y) in (0..=254).flat_map(|x| (0..=255).map(move |y| (x, y))) {
        write!(all, "{}10.70.{x}.{y}/32,fd70::{x:x}:{y:x}/128", if all.is_empty() { "" } else { "," })?;
    }
    let at = |number| Underlay::V4.endpoint(number, LISTEN_PORT);
    let configuration = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {LISTEN_PORT}\n[Peer]\nPublicKey = {}\nEndpoint = {}\nAllowedIPs = {all}\n",
        a.private_key(),
        b.public_key(),
        at(b.number())
    );
    let begun = Instant::now();
    let set = a.configure("setconf", &configuration)?;
    assert!(set.status.success(), "{}", set.stderr);
    let count = |device: &Device| Ok::<_, anyhow::Error>(a.shown(device)?.allowed.len());
    assert_eq!(count(b)?, 255 * 256 * 2);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    for device in [b, c] {
        device.meets(a, &Peering::default())?;
        for address in ["10.70.200.7/32", "fd70::c8:7/128", "10.70.254.255/32"] {
            device.host().add_address(device.ifname(), address)?;
        }
    }
    for prefix in ["10.70.0.0/16", "fd70::/64"] {
        a.command("ip").args(["route", "add", prefix, "dev", a.ifname()]).run()?;
    }
    for address in ["10.70.200.7", "fd70::c8:7", "10.70.254.255"] {
        a.reaches(address, AT_ONCE)?;
    }
    let moved = ["peer", c.public_key(), "endpoint", &at(c.number()), "allowed-ips"];
    a.set(&[&moved[..], &["10.70.200.7/32,fd70::c8:7/128"]].concat())?;
    assert_eq!((count(b)?, count(c)?), (255 * 256 * 2 - 2, 2));
    let before = a.shown(b)?.sent;
    a.reaches("10.70.200.7", AT_ONCE)?;
    a.reaches("fd70::c8:7", AT_ONCE)?;
    assert_eq!(a.shown(b)?.sent, before, "the first peer still gets them");
    a.reaches("10.70.254.255", AT_ONCE)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn the_longest_prefix_decides_who_gets_a_packet() -> Result {
    let tunnels = Tunnels::new("prefixes", [WireGuard::Znet; 3])?;
    let [a, b, c] = &tunnels.devices;
    let at = |allowed| Peering { endpoint: Some(Underlay::V4), allowed, ..Peering::default() };
    a.meets(
        b,
        &at(&["0.0.0.0/0", "10.60.0.0/16", "10.60.1.8/31", "::/0", "fd60::/32", "fd60:0:1:8::8/127"]),
    )?;
    a.meets(c, &at(&["10.60.1.0/24", "10.60.1.9/32", "fd60:0:1::/48", "fd60:0:1:8::9/128"]))?;
    for device in [b, c] {
        device.meets(a, &Peering::default())?;
    }
    let of_b =
        ["198.51.100.1", "10.60.0.1", "10.60.2.1", "10.60.1.8", "2001:db8:9::1", "fd60::1", "fd60:0:1:8::8"];
    let of_c = ["10.60.1.1", "10.60.1.255", "10.60.1.9", "10.60.1.10", "fd60:0:1::1", "fd60:0:1:8::9"];
    // Each address is there only where it belongs, so whoever gets the packet tells.
    for (device, addresses) in [(b, &of_b[..]), (c, &of_c[..])] {
        for address in addresses {
            let length = if address.contains(':') { 128 } else { 32 };
            let prefix = format!("{address}/{length}");
            device.host().add_address(device.ifname(), &prefix)?;
            a.command("ip").args(["route", "add", &prefix, "dev", a.ifname()]).run()?;
        }
    }
    for address in of_b.iter().chain(&of_c) {
        a.reaches(address, AT_ONCE)?;
    }
    // A prefix that moves away uncovers the one below it.
    a.set(&["peer", b.public_key(), "allowed-ips", "10.60.1.0/24"])?;
    assert!(!a.pings("10.60.1.1", IN_VAIN)?);
    assert!(a.pings("10.60.1.8", AT_ONCE)? && a.pings("10.60.1.9", AT_ONCE)?);
    tunnels.passed();
    Ok(())
}

#[test]
fn a_packet_from_an_address_that_is_not_the_peers_is_dropped() -> Result {
    let tunnels = Tunnels::connected("source", BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    let strange = [("10.99.0.66", 24, a.inner_v4()), ("fd99::66", 64, a.inner_v6())];
    let capture = a.host().capture(a.ifname(), "host 10.99.0.66 or host fd99::66")?;
    for (source, length, to) in &strange {
        b.host().add_address(b.ifname(), &format!("{source}/{length}"))?;
        let flags = ["-n", "-c", "5", "-i", "0.01", "-W", "1", "-I", source, to];
        assert!(!b.command("ping").args(flags).try_run()?.status.success());
    }
    assert_eq!(capture.count()?, 0);
    let own = b.inner();
    let allowed = format!("{}/32,{}/128,10.99.0.66/32,fd99::66/128", own[0], own[1]);
    a.set(&["peer", b.public_key(), "allowed-ips", &allowed])?;
    for (source, _, to) in &strange {
        b.command("ping").args(["-n", "-c", "1", "-W", "2", "-I", source, to]).run()?;
    }
    tunnels.passed();
    Ok(())
}

#[test]
fn a_link_that_was_down_carries_packets_as_soon_as_it_is_up() -> Result {
    let tunnels = Tunnels::connected("down", BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    for device in [a, b, a] {
        device.host().set_link(device.ifname(), false)?;
        device.host().set_link(device.ifname(), true)?;
        // The kernel takes IPv6 addresses off a link that goes down.
        device.host().add_address(device.ifname(), &format!("{}/64", device.inner_v6()))?;
        b.reaches(a.inner_v4(), AT_ONCE)?;
        a.reaches(b.inner_v6(), AT_ONCE)?;
    }
    tunnels.passed();
    Ok(())
}

#[test]
fn a_device_that_gets_no_answer_begins_anew() -> Result {
    let mut tunnels = Tunnels::connected("no-answer", BOTH, Underlay::V4)?;
    let [a, b] = &mut tunnels.devices;
    b.kill()?;
    b.launch()?;
    // It does not know where the other is, so it cannot begin.
    b.meets(a, &Peering::default())?;
    // White paper, section 6.5: KEEPALIVE_TIMEOUT and REKEY_TIMEOUT are 15 s.
    let begun = Instant::now();
    a.wait_reaches(&b.inner_v4(), Duration::from_secs(20))?;
    let took = begun.elapsed();
    assert!((12..18).contains(&took.as_secs()), "{took:?}");
    tunnels.passed();
    Ok(())
}

#[test]
fn deleting_the_link_ends_the_program_and_removes_the_socket() -> Result {
    let mut tunnels = Tunnels::connected("delete", BOTH, Underlay::V4)?;
    let [a, b] = &mut tunnels.devices;
    a.command("ip").args(["link", "del", a.ifname()]).run()?;
    a.wait_for_end()?;
    assert_eq!(a.left_behind()?, [false, false]);
    // All is there to begin anew, under the same name.
    a.launch()?;
    a.meets(b, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
    a.reaches(b.inner_v4(), AT_ONCE)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn a_program_that_is_asked_to_end_removes_link_and_socket() -> Result {
    let mut tunnels = Tunnels::connected("sigterm", BOTH, Underlay::V4)?;
    let [a, b] = &mut tunnels.devices;
    a.terminate()?;
    assert_eq!(a.left_behind()?, [false, false]);
    b.kill()?;
    // Nobody could remove its socket, and yet it is no obstacle.
    assert_eq!(b.left_behind()?, [false, true]);
    for device in [&mut *a, &mut *b] {
        device.launch()?;
    }
    a.meets(b, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
    b.meets(a, &Peering::default())?;
    a.reaches(b.inner_v4(), AT_ONCE)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn a_second_program_of_the_same_name_is_refused_and_disturbs_nothing() -> Result {
    let tunnels = Tunnels::connected("second", BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    for flags in [&["-f"][..], &[]] {
        let second = a.host().command(WireGuard::Znet.path()?).args(flags).arg(a.ifname()).try_run()?;
        assert!(!second.status.success(), "{flags:?}: {}{}", second.stdout, second.stderr);
        assert!(!second.stderr.is_empty(), "{flags:?}: no word of why");
        assert_eq!(a.left_behind()?, [true, true]);
        a.reaches(b.inner_v4(), AT_ONCE)?;
        assert_eq!(a.peer_count()?, 1);
    }
    tunnels.passed();
    Ok(())
}

#[test]
fn without_the_foreground_flag_it_returns_as_soon_as_it_answers() -> Result {
    let tunnels = Tunnels::<0>::new("daemon", [])?;
    let host = tunnels.lab.host("h1")?;
    let ifname = format!("{}-1", tunnels.lab.prefix());
    for _ in 0..5 {
        host.command(WireGuard::Znet.path()?).arg(&ifname).run_timeout(Duration::from_secs(5))?;
        let shown = host.command("wg").args(["show", &ifname, "listen-port"]).run()?;
        assert!(shown.stdout.trim().parse::<u16>().is_ok(), "{}", shown.stdout);
        host.command("ip").args(["link", "del", &ifname]).run()?;
        probe::until_ok("the daemon to end", AT_ONCE, || {
            let left = host.command("ls").arg("/run/wireguard").run()?.stdout;
            anyhow::ensure!(left.is_empty(), "{left}");
            Ok::<_, anyhow::Error>(())
        })?;
    }
    tunnels.passed();
    Ok(())
}

#[test]
fn thousands_of_peers_are_kept_and_told_and_removed_around_a_session_that_stays() -> Result {
    const COUNT: usize = 2_000;
    let tunnels = Tunnels::connected("peers", BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    let before = a.shown(b)?.handshake;
    let keys = "import base64, os\nfor _ in range(2000): print(base64.b64encode(os.urandom(32)).decode())";
    let keys = a.command("python3").args(["-c", keys]).run()?.stdout;
    let mut configuration = String::new();
    for (number, key) in keys.lines().enumerate() {
        let (x, y) = (number / 256, number % 256);
        writeln!(
            configuration,
            "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.80.{x}.{y}/32, fd80::{x:x}:{y:x}/128"
        )?;
    }
    let added = a.configure("addconf", &configuration)?;
    assert!(added.status.success(), "{}", added.stderr);
    assert_eq!(a.peer_count()?, COUNT + 1);
    assert_eq!(a.show("allowed-ips")?.matches("fd80::").count(), COUNT);
    a.reaches(b.inner_v4(), AT_ONCE)?;
    let own = b.inner();
    let only = format!(
        "[Interface]\nListenPort = {LISTEN_PORT}\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = {}, {}\n",
        a.private_key(),
        b.public_key(),
        own[0],
        own[1]
    );
    let synced = a.configure("syncconf", &only)?;
    assert!(synced.status.success(), "{}", synced.stderr);
    assert_eq!(a.peer_count()?, 1);
    a.reaches(b.inner_v6(), AT_ONCE)?;
    assert_eq!(a.shown(b)?.handshake, before);
    tunnels.passed();
    Ok(())
}
