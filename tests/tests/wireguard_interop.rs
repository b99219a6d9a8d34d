//! `znet-wg` against the other user-space WireGuard programs, all told by the unmodified `wg(8)`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use netns_harness::{Capture, Host, Process};
use znet_tests::Result;
use znet_tests::wireguard::{
    AT_ONCE, Device, LISTEN_PORT, Message, NAT_ADDRESS, OuterPacket, Peering, Tunnels, Underlay, WireGuard,
    exchange_all_traffic, home_behind_nat, underlay_host, wait_for_packets,
};

/// Every case against every peer.
macro_rules! against {
    ($($name:ident = $peer:expr;)+) => { $(mod $name {
        use super::*;

        #[test]
        fn all_traffic_passes_over_ipv4_when_znet_wg_begins() -> Result {
            all_traffic_passes([WireGuard::Znet, $peer], Underlay::V4)
        }

        #[test]
        fn all_traffic_passes_over_ipv6_when_znet_wg_begins() -> Result {
            all_traffic_passes([WireGuard::Znet, $peer], Underlay::V6)
        }

        #[test]
        fn all_traffic_passes_over_ipv4_when_the_peer_begins() -> Result {
            all_traffic_passes([$peer, WireGuard::Znet], Underlay::V4)
        }

        #[test]
        fn all_traffic_passes_over_ipv6_when_the_peer_begins() -> Result {
            all_traffic_passes([$peer, WireGuard::Znet], Underlay::V6)
        }

        #[test]
        fn only_equal_preshared_keys_let_packets_through() -> Result {
            only_equal_preshared_keys($peer)
        }

        #[test]
        fn a_peer_that_was_restarted_is_back_with_its_first_packet() -> Result {
            a_restarted_peer($peer)
        }

        #[test]
        fn traffic_goes_on_when_the_peer_has_forgotten_its_session() -> Result {
            a_forgetful_peer($peer)
        }

        #[test]
        fn a_peer_with_a_new_key_is_known_at_once() -> Result {
            a_new_key($peer)
        }

        #[test]
        fn a_peer_that_roams_is_followed() -> Result {
            a_roaming_peer($peer)
        }

        #[test]
        fn keepalives_flow_without_traffic() -> Result {
            keepalives_flow([WireGuard::Znet, $peer])?;
            keepalives_flow([$peer, WireGuard::Znet])
        }

        #[test]
        fn znet_wg_behind_a_nat_stays_reachable() -> Result {
            behind_a_nat(WireGuard::Znet, $peer)
        }

        #[test]
        fn a_peer_behind_a_nat_stays_reachable() -> Result {
            behind_a_nat($peer, WireGuard::Znet)
        }
    })+ };
}

against! {
    boringtun = WireGuard::Boringtun;
    gotatun = WireGuard::Gotatun;
    wireguard_go = WireGuard::WireguardGo;
}

/// The first of the two begins; the second learns where the first is from the handshake alone.
fn all_traffic_passes(programs: [WireGuard; 2], underlay: Underlay) -> Result {
    let tunnels = Tunnels::new("traffic", programs)?;
    let [begins, answers] = &tunnels.devices;
    answers.meets(begins, &Peering::default())?;
    begins.meets(answers, &Peering { endpoint: Some(underlay), ..Peering::default() })?;
    begins.reaches(answers.inner_v4(), AT_ONCE)?;
    let learned = answers.shown(begins)?.endpoint.expect("no endpoint was learned");
    assert_eq!(learned.to_string(), underlay.endpoint(begins.number(), LISTEN_PORT));
    exchange_all_traffic(begins, answers)?;
    let (here, there) = (begins.shown(answers)?, answers.shown(begins)?);
    assert!(here.handshake > 0 && there.handshake > 0, "{here:?} {there:?}");
    tunnels.passed();
    Ok(())
}

fn only_equal_preshared_keys(peer: WireGuard) -> Result {
    for we_begin in [true, false] {
        let tunnels = Tunnels::new("preshared", [WireGuard::Znet, peer])?;
        let [a, b] = &tunnels.devices;
        let (key, other_key) = (new_preshared(a)?, new_preshared(a)?);
        let capture = a.host().capture("eth0", "udp")?;
        let with = |endpoint, preshared| Peering { endpoint, preshared, ..Peering::default() };
        let wrong = we_begin.then_some(other_key.as_str());
        a.meets(b, &with(we_begin.then_some(Underlay::V4), wrong))?;
        b.meets(a, &with((!we_begin).then_some(Underlay::V4), Some(&key)))?;
        let (begins, answers) = if we_begin { (a, b) } else { (b, a) };
        assert!(!begins.pings(&answers.inner_v4(), Duration::from_secs(1))?);
        // Both tried, and it was the keys that were in the way.
        let seen = wait_for_packets(&capture, AT_ONCE, |seen| {
            has(seen, Message::Initiation, begins) && has(seen, Message::Response, answers)
        })?;
        assert!(!has(&seen, Message::Data, a), "{seen:?}");
        assert_eq!(begins.shown(answers)?.handshake, 0);
        a.forgets(b)?;
        a.meets(b, &with(Some(Underlay::V4), Some(&key)))?;
        a.reaches(b.inner_v4(), AT_ONCE)?;
        b.reaches(a.inner_v6(), AT_ONCE)?;
        tunnels.passed();
    }
    Ok(())
}

/// Whether a device sent such a message, over IPv4.
fn has(seen: &[OuterPacket], message: Message, by: &Device) -> bool {
    let source = Underlay::V4.address(by.number());
    seen.iter().any(|packet| packet.message == message && packet.source.to_string() == source)
}

fn new_preshared(device: &Device) -> Result<String> {
    Ok(device.command("wg").arg("genpsk").run()?.stdout)
}

fn a_restarted_peer(peer: WireGuard) -> Result {
    let mut tunnels = Tunnels::connected("restart", [WireGuard::Znet, peer], Underlay::V4)?;
    let [a, b] = &mut tunnels.devices;
    b.kill()?;
    b.launch()?;
    b.meets(a, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
    b.reaches(a.inner_v4(), AT_ONCE)?;
    a.reaches(b.inner_v4(), AT_ONCE)?;
    tunnels.passed();
    Ok(())
}

/// How many pings of those that are 20 ms apart may be lost around a new handshake.
const FEW: u32 = 25;

fn a_forgetful_peer(peer: WireGuard) -> Result {
    let tunnels = Tunnels::connected("forgetful", [WireGuard::Znet, peer], Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    let flows = [a.flow(&b.inner_v4(), 100)?, b.flow(&a.inner_v6(), 100)?];
    let before = a.shown(b)?;
    b.forgets(a)?;
    b.meets(a, &Peering { endpoint: Some(Underlay::V4), keepalive: Some(1), ..Peering::default() })?;
    for flow in flows {
        let lost = flow.lost()?;
        assert!(lost <= FEW, "{lost} of 100 pings were lost");
    }
    let after = a.shown(b)?;
    assert!(after.handshake >= before.handshake && after.received > before.received, "{before:?} {after:?}");
    tunnels.passed();
    Ok(())
}

fn a_new_key(peer: WireGuard) -> Result {
    let mut tunnels = Tunnels::connected("new-key", [WireGuard::Znet, peer], Underlay::V4)?;
    let [a, b] = &mut tunnels.devices;
    a.forgets(b)?;
    if peer == WireGuard::Gotatun {
        // It cannot change its key while its port stays the same, and may end when its port changes.
        b.kill()?;
        b.draw_key()?;
        b.launch()?;
        b.meets(a, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
    } else {
        b.change_key()?;
    }
    a.meets(b, &Peering::default())?;
    b.reaches(a.inner_v4(), AT_ONCE)?;
    a.reaches(b.inner_v6(), AT_ONCE)?;
    assert_eq!(a.peer_count()?, 1);
    tunnels.passed();
    Ok(())
}

fn a_roaming_peer(peer: WireGuard) -> Result {
    const MOVED: u8 = 77;
    for underlay in [Underlay::V4, Underlay::V6] {
        let tunnels = Tunnels::connected("roaming", [WireGuard::Znet, peer], underlay)?;
        let [a, b] = &tunnels.devices;
        let length = if underlay == Underlay::V4 { 24 } else { 64 };
        let address = |number| format!("{}/{length}", underlay.address(number));
        b.host().remove_address("eth0", &address(b.number()))?;
        b.host().add_address("eth0", &address(MOVED))?;
        let mut port = LISTEN_PORT;
        // gotatun may end when its port changes.
        if peer != WireGuard::Gotatun {
            port = 40_000;
            b.set(&["listen-port", &port.to_string()])?;
        }
        b.wait_reaches(&a.inner_v4(), AT_ONCE)?;
        let endpoint = a.shown(b)?.endpoint.map(|endpoint| endpoint.to_string());
        assert_eq!(endpoint, Some(underlay.endpoint(MOVED, port)));
        a.reaches(b.inner_v6(), AT_ONCE)?;
        tunnels.passed();
    }
    Ok(())
}

/// The first of the two sends keepalives; nothing else is sent.
fn keepalives_flow(programs: [WireGuard; 2]) -> Result {
    let tunnels = Tunnels::new("keepalive", programs)?;
    let [keeps, hears] = &tunnels.devices;
    let capture = hears.host().capture("eth0", "udp and src host 192.0.2.1")?;
    hears.meets(keeps, &Peering::default())?;
    keeps
        .meets(hears, &Peering { endpoint: Some(Underlay::V4), keepalive: Some(1), ..Peering::default() })?;
    wait_for_keepalives(&capture, 2)?;
    // Only ours is asked: boringtun tells a handshake's age instead of its time, and counts no keepalives.
    if keeps.program() == WireGuard::Znet {
        let shown = keeps.shown(hears)?;
        assert!(shown.handshake > 0 && shown.sent >= 148 + 2 * KEEPALIVE, "{shown:?}");
        assert_eq!(shown.keepalive, Some(1));
    } else {
        let shown = hears.shown(keeps)?;
        assert!(shown.handshake > 0 && shown.received >= 148 + 2 * KEEPALIVE, "{shown:?}");
    }
    tunnels.passed();
    Ok(())
}

/// Length of a keepalive in bytes: an empty packet in a data message.
const KEEPALIVE: u64 = 32;

fn wait_for_keepalives(capture: &Capture, count: usize) -> Result {
    wait_for_packets(capture, Duration::from_secs(3 * count as u64), |seen| {
        seen.iter().filter(|packet| packet.len as u64 == KEEPALIVE).count() >= count
    })?;
    Ok(())
}

/// A device behind a NAT that forgets mappings after two seconds is reached from outside, long after it sent a packet of its own.
fn behind_a_nat(client: WireGuard, server: WireGuard) -> Result {
    let tunnels = Tunnels::new("nat", [server])?;
    let [server] = &tunnels.devices;
    let home = home_behind_nat(&tunnels.lab, &tunnels.switch)?;
    let client = Device::start(&tunnels.lab, &home.host, 2, client)?;
    let capture = server.host().capture("eth0", "udp and src host 192.0.2.9")?;
    server.meets(&client, &Peering::default())?;
    let to_server = Peering { endpoint: Some(Underlay::V4), keepalive: Some(1), ..Peering::default() };
    client.meets(server, &to_server)?;
    // The last of these is sent when the router would have forgotten the first.
    wait_for_keepalives(&capture, 3)?;
    let endpoint = server.shown(&client)?.endpoint.expect("no endpoint was learned");
    assert_eq!(endpoint.ip().to_string(), NAT_ADDRESS);
    server.reaches(client.inner_v4(), AT_ONCE)?;
    server.reaches(client.inner_v6(), AT_ONCE)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn three_different_peers_reach_each_other_through_znet_wg() -> Result {
    let [boringtun, gotatun, wireguard_go] =
        [WireGuard::Boringtun, WireGuard::Gotatun, WireGuard::WireguardGo];
    let tunnels = Tunnels::new("hub", [WireGuard::Znet, boringtun, gotatun, wireguard_go])?;
    let [hub, spokes @ ..] = &tunnels.devices;
    hub.host().sysctl("net/ipv4/ip_forward", "1")?;
    hub.host().sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for (spoke, underlay) in spokes.iter().zip([Underlay::V4, Underlay::V6, Underlay::V4]) {
        hub.meets(spoke, &Peering { endpoint: Some(underlay), ..Peering::default() })?;
        let all = ["10.99.0.0/24", "fd99::/64"];
        spoke.meets(hub, &Peering { endpoint: Some(underlay), allowed: &all, ..Peering::default() })?;
    }
    let servers: Vec<_> = spokes.iter().map(Device::serve_traffic).collect::<Result<_>>()?;
    for from in spokes {
        for to in spokes.iter().filter(|to| to.number() != from.number()) {
            from.reaches(to.inner_v4(), AT_ONCE)?;
            from.exchanges_stream(&to.inner_v6(), 500_000)?;
        }
    }
    drop(servers);
    tunnels.passed();
    Ok(())
}

/// Sends initiations as a stranger does who knows nothing but a public key: the first MAC is right and nothing else.
const FLOOD: &str = r"
import base64, hashlib, os, socket, sys, time
key = hashlib.blake2s(b'mac1----' + base64.b64decode(sys.argv[2])).digest()
def initiation():
    begin = bytes([1, 0, 0, 0]) + os.urandom(112)
    return begin + hashlib.blake2s(begin, key=key, digest_size=16).digest() + bytes(16)
messages = [initiation() for _ in range(500)]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 51820))
print('up', flush=True)
while True:
    for message in messages:
        try:
            s.send(message)
        except OSError:
            pass
    time.sleep(0.05)
";

/// Puts a device under load from a host until the process is dropped.
fn flood(from: &Host, loaded: &Device) -> Result<Process> {
    let address = Underlay::V4.address(loaded.number());
    let flood = from.command("python3").args(["-c", FLOOD, &address, loaded.public_key()]).spawn("flood")?;
    flood.wait_for_log("up", Duration::from_secs(10))?;
    Ok(flood)
}

/// Waits until a device has asked somebody for a proof of the address.
fn wait_for_cookie(capture: &Capture, of: &Device) -> Result {
    wait_for_packets(capture, Duration::from_secs(10), |seen| has(seen, Message::Cookie, of))?;
    Ok(())
}

/// A retry of a handshake comes after 5 s at the earliest; there may have to be two.
const A_RETRY: Duration = Duration::from_secs(15);

#[test]
fn peers_prove_their_addresses_to_znet_wg_under_load() -> Result {
    let [boringtun, gotatun, wireguard_go] =
        [WireGuard::Boringtun, WireGuard::Gotatun, WireGuard::WireguardGo];
    let tunnels = Tunnels::new("loaded", [WireGuard::Znet, boringtun, gotatun, wireguard_go])?;
    let [a, peers @ ..] = &tunnels.devices;
    let stranger = underlay_host(&tunnels.lab, &tunnels.switch, 9)?;
    let refused = stranger.capture("eth0", "udp and src host 192.0.2.1")?;
    let _flood = flood(&stranger, a)?;
    wait_for_cookie(&refused, a)?;
    let mut asked = Vec::new();
    for peer in peers {
        asked.push(peer.host().capture("eth0", "udp and src host 192.0.2.1")?);
        a.meets(peer, &Peering::default())?;
        peer.meets(a, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
    }
    let _flows = peers.iter().map(|peer| peer.flow(&a.inner_v4(), 1_000)).collect::<Result<Vec<_>>>()?;
    for (peer, asked) in peers.iter().zip(&asked) {
        peer.wait_reaches(&a.inner_v4(), A_RETRY)?;
        wait_for_cookie(asked, a)?;
    }
    tunnels.passed();
    Ok(())
}

#[test]
fn znet_wg_proves_its_address_to_a_peer_under_load() -> Result {
    // Of the peers, only boringtun can be brought to ask for a proof without overloading the machine.
    let tunnels = Tunnels::new("loads", [WireGuard::Znet, WireGuard::Boringtun])?;
    let [a, peer] = &tunnels.devices;
    let stranger = underlay_host(&tunnels.lab, &tunnels.switch, 9)?;
    let refused = stranger.capture("eth0", "udp")?;
    let asked = a.host().capture("eth0", "udp")?;
    let _flood = flood(&stranger, peer)?;
    wait_for_cookie(&refused, peer)?;
    peer.meets(a, &Peering::default())?;
    a.meets(peer, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
    let _flow = a.flow(&peer.inner_v4(), 1_000)?;
    a.wait_reaches(&peer.inner_v4(), A_RETRY)?;
    wait_for_cookie(&asked, peer)?;
    tunnels.passed();
    Ok(())
}
