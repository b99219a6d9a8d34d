//! What `znet-wg` and its underlay do to each other: addresses that move, routers that forget, cables that are narrow, and what can be seen
//! from outside. Cases of the Linux kernel's own test of WireGuard (tools/testing/selftests/wireguard/netns.sh) are among them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use anyhow::ensure;
use netns_harness::{Port, probe};
use znet_tests::Result;
use znet_tests::wireguard::{
    AT_ONCE, Device, LISTEN_PORT, Message, OuterPacket, Peering, Tunnels, Underlay, WireGuard,
    ask_for_all_traffic, exchange_all_traffic, home_behind_nat, outer_packets, wait_for_packets,
};

const BOTH: [WireGuard; 2] = [WireGuard::Znet; 2];

/// How long to wait for what must not come.
const IN_VAIN: Duration = Duration::from_secs(1);

#[test]
fn packets_that_the_underlay_cannot_take_whole_are_fragmented_over_ipv4() -> Result {
    let tunnels = Tunnels::connected_with_mtu("narrow-v4", 1_280, BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    exchange_all_traffic(a, b)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn packets_that_the_underlay_cannot_take_whole_are_fragmented_over_ipv6() -> Result {
    let tunnels = Tunnels::connected_with_mtu("narrow-v6", 1_280, BOTH, Underlay::V6)?;
    let [a, b] = &tunnels.devices;
    exchange_all_traffic(a, b)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn behind_a_nat_that_forgets_only_keepalives_keep_a_device_reachable() -> Result {
    let tunnels = Tunnels::new("nat", [WireGuard::Znet])?;
    let [server] = &tunnels.devices;
    let home = home_behind_nat(&tunnels.lab, &tunnels.switch)?;
    let client = Device::start(&tunnels.lab, &home.host, 2, WireGuard::Znet)?;
    server.meets(&client, &Peering::default())?;
    client.meets(server, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
    client.reaches(server.inner_v4(), AT_ONCE)?;
    server.reaches(client.inner_v4(), AT_ONCE)?;
    home.wait_forgotten()?;
    assert!(!server.pings(&client.inner_v4(), IN_VAIN)?);
    client.set(&["peer", server.public_key(), "persistent-keepalive", "1"])?;
    server.wait_reaches(&client.inner_v4(), Duration::from_secs(5))?;
    assert!(home.wait_forgotten().is_err(), "no keepalives");
    server.reaches(client.inner_v6(), AT_ONCE)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn a_device_that_moves_is_followed_from_address_to_address_and_to_the_other_underlay() -> Result {
    let tunnels = Tunnels::connected("roaming", BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    for moved in [77, 78] {
        let before = if moved == 77 { b.number() } else { 77 };
        b.host().remove_address("eth0", &format!("{}/24", Underlay::V4.address(before)))?;
        b.host().add_address("eth0", &format!("{}/24", Underlay::V4.address(moved)))?;
        b.wait_reaches(&a.inner_v4(), AT_ONCE)?;
        assert_eq!(endpoint(a, b)?, Underlay::V4.endpoint(moved, LISTEN_PORT));
        a.reaches(b.inner_v6(), AT_ONCE)?;
    }
    let over_v6 = Underlay::V6.endpoint(a.number(), LISTEN_PORT);
    b.set(&["peer", a.public_key(), "endpoint", &over_v6])?;
    b.reaches(a.inner_v4(), AT_ONCE)?;
    assert_eq!(endpoint(a, b)?, Underlay::V6.endpoint(b.number(), LISTEN_PORT));
    a.reaches(b.inner_v6(), AT_ONCE)?;
    tunnels.passed();
    Ok(())
}

fn endpoint(device: &Device, of: &Device) -> Result<String> {
    Ok(device.shown(of)?.endpoint.expect("no endpoint").to_string())
}

/// Sends the UDP payloads of a capture to an address.
const REPLAY: &str = r"
import socket, struct, sys
data = open(sys.argv[3], 'rb').read()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
at, sent = 24, 0
while at + 16 <= len(data):
    size = struct.unpack('<I', data[at + 8:at + 12])[0]
    s.sendto(data[at + 16 + 42:at + 16 + size], (sys.argv[1], int(sys.argv[2])))
    at += 16 + size
    sent += 1
print(sent)
";

#[test]
fn replayed_messages_move_no_endpoint_and_open_no_session() -> Result {
    let tunnels = Tunnels::new("replay", [WireGuard::Znet; 3])?;
    let [a, b, stranger] = &tunnels.devices;
    let capture = a.host().capture("eth0", "udp and src host 192.0.2.2")?;
    a.meets(b, &Peering::default())?;
    b.meets(a, &Peering { endpoint: Some(Underlay::V4), ..Peering::default() })?;
    assert_eq!(b.flow(&a.inner_v4(), 50)?.lost()?, 0);
    capture.text()?;
    let before = a.shown(b)?;
    let answers = stranger.host().capture("eth0", "udp and src host 192.0.2.1")?;
    let port = LISTEN_PORT.to_string();
    let replay = stranger.command("python3").args(["-c", REPLAY, "192.0.2.1", &port]);
    let sent: u32 = replay.arg(capture.path()).run()?.stdout.trim().parse()?;
    assert!(sent > 40, "only {sent} messages were replayed");
    // Whatever was sent before this ping has been looked at when it is answered.
    b.reaches(a.inner_v4(), AT_ONCE)?;
    let after = a.shown(b)?;
    assert_eq!((&after.endpoint, after.handshake), (&before.endpoint, before.handshake));
    assert_eq!(answers.count()?, 0);
    a.reaches(b.inner_v6(), AT_ONCE)?;
    tunnels.passed();
    Ok(())
}

#[test]
fn a_port_can_be_changed_at_run_time_but_not_to_one_that_is_taken() -> Result {
    for program in [WireGuard::Znet, WireGuard::ZnetWide] {
        let tunnels = Tunnels::connected("port", [program, WireGuard::Znet], Underlay::V4)?;
        let [a, b] = &tunnels.devices;
        a.set(&["listen-port", "40000"])?;
        assert_eq!(a.show("listen-port")?.trim(), "40000");
        a.reaches(b.inner_v4(), AT_ONCE)?;
        assert_eq!(endpoint(b, a)?, Underlay::V4.endpoint(a.number(), 40_000));
        // The port that it had is free: another device takes it, so that it cannot have it back.
        let mut second = Device::start(&tunnels.lab, a.host(), 3, program)?;
        let error = a.set(&["listen-port", "51820"]).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        a.reaches(b.inner_v6(), AT_ONCE)?;
        second.terminate()?;
        a.set(&["listen-port", "51820"])?;
        a.reaches(b.inner_v6(), AT_ONCE)?;
        assert_eq!(endpoint(b, a)?, Underlay::V4.endpoint(a.number(), LISTEN_PORT));
        let sockets = a.command("ss").args(["-Hlun"]).run()?.stdout;
        assert!(!sockets.contains(":40000"), "{sockets}");
        tunnels.passed();
    }
    Ok(())
}

#[test]
fn outer_packets_bear_the_mark_that_is_set_at_run_time() -> Result {
    for underlay in [Underlay::V4, Underlay::V6] {
        let tunnels = Tunnels::connected("mark", BOTH, underlay)?;
        let [a, b] = &tunnels.devices;
        a.host().nft(
            "table inet marked { chain out { type filter hook output priority filter; \
             udp dport 51820 meta mark != 0x1234 drop; }; }",
        )?;
        assert!(!a.pings(&b.inner_v4(), IN_VAIN)?);
        a.set(&["fwmark", "0x1234"])?;
        assert_eq!(a.show("fwmark")?.trim(), "0x1234");
        a.reaches(b.inner_v4(), AT_ONCE)?;
        // A handshake has to bear it as well, and so has what another port sends.
        a.set(&["listen-port", "40000"])?;
        b.forgets(a)?;
        b.meets(a, &Peering::default())?;
        a.forgets(b)?;
        a.meets(b, &Peering { endpoint: Some(underlay), ..Peering::default() })?;
        a.reaches(b.inner_v6(), AT_ONCE)?;
        a.set(&["fwmark", "off"])?;
        assert!(!a.pings(&b.inner_v4(), IN_VAIN)?);
        tunnels.passed();
    }
    Ok(())
}

#[test]
fn nothing_passes_the_underlay_in_the_clear() -> Result {
    const MARKER: &str = "a text that nobody outside may read; ";
    let tunnels = Tunnels::connected("clear", BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    let _server = b.serve_traffic()?;
    let inside = b.host().capture(b.ifname(), "tcp")?;
    let outside = b.host().capture("eth0", "")?;
    for address in b.inner() {
        a.exchanges_text(&address, 60_000, MARKER)?;
    }
    let holds = |path: &std::path::Path| {
        Ok::<_, anyhow::Error>(
            std::fs::read(path)?.windows(20).any(|bytes| MARKER.as_bytes().starts_with(bytes)),
        )
    };
    inside.text()?;
    assert!(holds(inside.path())?, "the marker is not seen where it must be");
    let text = outside.text()?;
    assert!(!holds(outside.path())?);
    assert!(!text.contains("10.99.0.") && !text.contains("fd99:"), "{text}");
    let data = outer_packets(outside.path())?.into_iter().filter(|packet| packet.message == Message::Data);
    let seen: usize = data.map(|packet| packet.len).sum();
    assert!(seen > 100_000, "only {seen} bytes of data were seen");
    tunnels.passed();
    Ok(())
}

/// Sends two pings, and returns what the underlay saw of the sender's data.
fn seen_of_pings(from: &Device, to: &str, flags: &[&str]) -> Result<Vec<OuterPacket>> {
    let capture = from.host().capture("eth0", "udp")?;
    from.command("ping").args(["-n", "-c", "2", "-i", "0.01", "-W", "2"]).args(flags).arg(to).run()?;
    let sources = [Underlay::V4, Underlay::V6].map(|underlay| underlay.address(from.number()));
    let own = |packet: &OuterPacket| {
        packet.message == Message::Data && sources.contains(&packet.source.to_string())
    };
    let enough = |seen: &[OuterPacket]| seen.iter().filter(|packet| own(packet)).count() >= 2;
    Ok(wait_for_packets(&capture, AT_ONCE, enough)?.into_iter().filter(own).collect())
}

#[test]
fn outer_packets_tell_no_class_but_congestion_and_handshakes_have_a_class_of_their_own() -> Result {
    for underlay in [Underlay::V4, Underlay::V6] {
        let tunnels = Tunnels::new("tos", BOTH)?;
        tunnels.split_batches()?;
        let [a, b] = &tunnels.devices;
        let capture = a.host().capture("eth0", "udp")?;
        for (device, other) in [(a, b), (b, a)] {
            device.meets(other, &Peering { endpoint: Some(underlay), ..Peering::default() })?;
        }
        a.reaches(b.inner_v4(), AT_ONCE)?;
        let handshakes = |seen: &[OuterPacket]| {
            let is = |message| move |packet: &&OuterPacket| packet.message == message;
            let of = |message| seen.iter().filter(is(message)).map(|packet| packet.tos).collect::<Vec<_>>();
            [of(Message::Initiation), of(Message::Response)]
        };
        wait_for_packets(&capture, AT_ONCE, |seen| handshakes(seen) == [[0x88], [0x88]])?;
        // What is inside, and what of it is outside: never a DSCP, always ECN, where "experienced" is told as "able" (RFC 3168, section 9.1.1).
        for (inner, outer) in [("0x00", 0), ("0xb8", 0), ("0x02", 2), ("0xba", 2), ("0x01", 1), ("0x03", 2)] {
            for to in b.inner() {
                let seen = seen_of_pings(a, &to, &["-Q", inner])?;
                assert!(seen.iter().all(|packet| packet.tos == outer), "{inner} to {to}: {seen:?}");
            }
        }
        tunnels.passed();
    }
    Ok(())
}

#[test]
fn congestion_on_the_underlay_is_told_inside_to_those_who_understand_it() -> Result {
    let tunnels = Tunnels::connected("congestion", BOTH, Underlay::V4)?;
    let [a, b] = &tunnels.devices;
    b.host().nft(
        "table inet congested { chain in { type filter hook prerouting priority mangle; \
         iifname eth0 udp dport 51820 ip ecn set ce; }; }",
    )?;
    let capture = b.host().capture(b.ifname(), "icmp[icmptype] == icmp-echo")?;
    for tos in ["0x02", "0x01"] {
        a.command("ping").args(["-n", "-c", "2", "-i", "0.01", "-W", "2", "-Q", tos, &b.inner_v4()]).run()?;
    }
    // RFC 6040, section 4.2: this may be dropped, but not be told to those who do not understand.
    a.pings(&b.inner_v4(), IN_VAIN)?;
    probe::until_ok("all marks to be seen", AT_ONCE, || {
        let text = b.command("tcpdump").args(["-n", "-t", "-v", "-r"]).arg(capture.path()).run()?.stdout;
        ensure!(text.matches("tos 0x3,").count() == 4, "{text}");
        Ok::<_, anyhow::Error>(())
    })?;
    tunnels.passed();
    Ok(())
}

#[test]
fn packets_are_padded_in_steps_of_sixteen_but_never_beyond_the_mtu() -> Result {
    // Headers of ICMP over IPv4; of a message around its packet; the device's MTU.
    let (headers, around, mtu) = (28, 32, 1_420);
    let tunnels = Tunnels::connected("padding", BOTH, Underlay::V4)?;
    tunnels.split_batches()?;
    let [a, b] = &tunnels.devices;
    for payload in [0, 3, 4, 5, 19, 20, 21, 1_000, 1_379, 1_380, 1_381, 1_392] {
        let seen = seen_of_pings(a, &b.inner_v4(), &["-s", &payload.to_string()])?;
        let inner: usize = payload + headers;
        let expected = around + inner.next_multiple_of(16).min(mtu);
        assert!(seen.iter().all(|packet| packet.len == expected), "{payload}: {seen:?}");
    }
    tunnels.passed();
    Ok(())
}
#[test]
fn answers_come_from_the_address_that_was_asked() -> Result {
    const SECOND: u8 = 101;
    let tunnels = Tunnels::new("two-addresses", BOTH)?;
    let [a, b] = &tunnels.devices;
    a.host().add_address("eth0", &format!("{}/24", Underlay::V4.address(SECOND)))?;
    a.host().add_address("eth0", &format!("{}/64", Underlay::V6.address(SECOND)))?;
    for underlay in [Underlay::V4, Underlay::V6] {
        a.meets(b, &Peering::default())?;
        b.meets(a, &Peering::default())?;
        let asked = underlay.endpoint(SECOND, LISTEN_PORT);
        b.set(&["peer", a.public_key(), "endpoint", &asked])?;
        b.reaches(a.inner_v4(), AT_ONCE)?;
        a.reaches(b.inner_v6(), AT_ONCE)?;
        assert_eq!(endpoint(b, a)?, asked);
        a.forgets(b)?;
        b.forgets(a)?;
    }
    tunnels.passed();
    Ok(())
}

#[test]
fn a_cable_behind_a_router_may_be_narrower_than_ours() -> Result {
    for underlay in [Underlay::V4, Underlay::V6] {
        let tunnels = Tunnels::new("path-mtu", [WireGuard::Znet])?;
        let [a] = &tunnels.devices;
        let lab = &tunnels.lab;
        let (far, router) = (lab.switch_with_mtu("far", 1_280)?, lab.host("router")?);
        let near = Port::new("near0").address("192.0.2.8/24").address("2001:db8::8/64");
        lab.plug(&router, &tunnels.switch, near)?;
        lab.plug(&router, &far, Port::new("far0").address("203.0.113.1/24").address("2001:db8:f::1/64"))?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let host = lab.host("h2")?;
        let port = Port::new("eth0").address("203.0.113.2/24").address("2001:db8:f::2/64");
        lab.plug(&host, &far, port.gateway("203.0.113.1").gateway("2001:db8:f::1"))?;
        for gateway in ["192.0.2.8", "2001:db8::8"] {
            a.command("ip").args(["route", "add", "default", "via", gateway]).run()?;
        }
        let b = Device::start(lab, &host, 2, WireGuard::Znet)?;
        b.meets(a, &Peering { endpoint: Some(underlay), ..Peering::default() })?;
        a.meets(&b, &Peering::default())?;
        b.reaches(a.inner_v4(), AT_ONCE)?;
        // The first ones may get lost, by which the kernel learns how narrow it is.
        let large = ["-n", "-c", "10", "-i", "0.1", "-W", "1", "-M", "do", "-s", "1392"];
        a.command("ping").args(large).arg(b.inner_v4()).run()?;
        ask_for_all_traffic(a, &b)?;
        tunnels.passed();
    }
    Ok(())
}
