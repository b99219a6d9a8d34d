//! Inputs from which a fuzzer starts: what the engine sees every day, and what is odd and has to be borne.
//!
//! The handshake messages among them were true when they were made, so writing the seeds again changes those files.

use std::time::Instant;

use znet_wg::net::OwnAddresses;
use znet_wg::offload::{Offloads, VnetHeader};

use crate::packets::Spec;
use crate::world::{Node, addresses, at, ordinary, peer};

/// A seed: the name of its file, and what is in it.
pub type Seed = (String, Vec<u8>);

/// The seeds of one body.
pub fn seeds(target: &str) -> Vec<Seed> {
    let named = |(name, bytes): (&str, Vec<u8>)| (name.to_owned(), bytes);
    match target {
        "udp_input" => scripts().into_iter().map(named).chain(messages()).collect(),
        "tun_input" => reads(),
        "coalesce" => runs().into_iter().map(named).collect(),
        "uapi_text" => texts(),
        _ => Vec::new(),
    }
}

/// A byte string as [`crate::input::Input::string`] reads it.
fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

/// Steps of [`crate::udp_input()`].
fn scripts() -> Vec<(&'static str, Vec<u8>)> {
    let raw = |bytes: &[u8]| [vec![0, 0], string(bytes)].concat();
    // Four messages of one length: the last is said shorter, so that it ends the aggregate.
    let aggregate = [vec![0], [1, 0x04].repeat(4), vec![1, 0], vec![3], vec![0x83; 4], vec![9]].concat();
    let with = |at: usize, step: &[u8]| {
        let mut script = aggregate.clone();
        script.splice(at..at, step.iter().copied());
        script
    };
    let last = aggregate.len() - 1;
    vec![
        ("handshake", vec![8, 1, 0, 3, 9, 11, 3, 3, 9, 1, 0, 3, 9]),
        ("handshake_of_a_stranger", vec![8, 14, 0, 1, 0, 3, 9, 14, 1, 15, 11]),
        ("handshake_changed", vec![8, 1, 0, 5, 0, 1, 3, 0, 9, 9]),
        ("handshake_repeated", vec![8, 1, 0, 3, 9, 7, 0, 0, 9, 7, 7, 0, 9, 11]),
        ("handshakes_crossed", vec![8, 1, 0, 13, 0, 0, 3, 9, 11, 3, 3, 9, 11, 3, 9]),
        ("packet_v4", vec![0, 1, 0, 3, 9]),
        ("packet_v6", vec![0, 1, 3, 3, 9]),
        ("packet_joined", [vec![7], [1, 0x04].repeat(6), vec![3; 6], vec![9]].concat()),
        ("packet_changed", vec![0, 1, 0, 5, 0, 1, 20, 0, 1, 9]),
        ("packet_cut", vec![0, 1, 0, 0x45, 0, 0, 31, 0, 9]),
        ("packet_empty", vec![0, 1, 0, 0x45, 0, 0, 0, 0, 9]),
        ("packet_repeated", vec![0, 1, 0, 3, 7, 0, 0, 9]),
        ("packet_from_elsewhere", vec![0, 1, 0, 5, 3, 0, 9, 1, 0, 5, 4, 0, 9, 1, 0, 5, 5, 0, 9]),
        ("packet_of_another", vec![0, 1, 8, 3, 9]),
        ("packet_late", vec![0, 1, 0, 12, 0xff, 0x7f, 3, 9, 11]),
        ("aggregate", aggregate.clone()),
        ("aggregate_of_one_byte_each", with(last, &[8, 1, 0])),
        ("aggregate_of_no_size", with(last, &[8, 0, 0])),
        ("aggregate_of_too_large_a_size", with(last, &[8, 0xff, 0xff])),
        ("aggregate_of_a_wrong_size", with(last, &[8, 0x80, 5])),
        ("aggregate_with_a_stranger", with(last - 2, &[0x80, 0, 40, 0, 4, 0, 0, 0, 9, 9])),
        ("aggregate_of_64_kib", [vec![0], [1, 4].repeat(44), vec![3], vec![0x83; 43], vec![9]].concat()),
        ("short", [raw(&[4, 0, 0, 0]), vec![9]].concat()),
        ("nothing", [raw(&[]), vec![9]].concat()),
        ("keepalive", [vec![0], raw(&[4, 0, 0, 0, 0, 233, 3, 0]), vec![9]].concat()),
        ("peer_removed", vec![0, 1, 0, 14, 0, 3, 9, 14, 1, 1, 0, 3, 9]),
        ("woken", vec![0, 14, 3, 11, 3, 9, 12, 0xff, 2, 14, 4]),
    ]
}

/// A message of each type as it was on the wire.
fn messages() -> Vec<Seed> {
    let now = Instant::now();
    let (mut near, mut far) =
        (Node::new(1, Offloads::default(), now), Node::new(2, Offloads::default(), now));
    near.put_device(1, OwnAddresses::Any, 1420);
    far.put_device(2, OwnAddresses::Any, 1420);
    for node in [&near, &far] {
        node.network.put_peers(vec![peer(1, vec![at(1)]), peer(2, vec![at(2)])]);
    }
    let [from, to] = [addresses(1)[0], addresses(2)[0]];
    near.say(1, &ordinary(&Spec::new(false, from, to), b"hello"), now);
    let mut messages = Vec::new();
    for _ in 0..2 {
        for (_, datagram) in near.sent() {
            far.hear(near.at, &datagram, now);
            messages.push(datagram);
        }
        for (_, datagram) in far.sent() {
            near.hear(far.at, &datagram, now);
            messages.push(datagram);
        }
    }
    let script = |message: &Vec<u8>| [vec![8, 0, 0], string(message), vec![9]].concat();
    messages
        .iter()
        .map(|message| (format!("message_{}_{}", message[0], message.len()), script(message)))
        .collect()
}

/// One batch of [`crate::tun_input()`] each.
fn reads() -> Vec<Seed> {
    // A packet from container 1 to `to`, with this payload, to be cut by this size.
    let read = |kind: u8, to: u8, flags: u8, length: u16, size: u16| {
        [vec![kind, 1 | to << 4, flags], length.to_le_bytes().to_vec(), size.to_le_bytes().to_vec()].concat()
    };
    let batch = |settings: u8, reads: &[Vec<u8>]| [vec![settings], reads.concat()].concat();
    let mut seeds = Vec::new();
    for (kind, family) in [(0, "tcp4"), (1, "tcp6"), (2, "udp4"), (3, "udp6")] {
        seeds.push((format!("{family}_alone"), batch(0, &[read(kind, 2, 0x10, 1_000, 0)])));
        seeds.push((format!("{family}_cut"), batch(0, &[read(kind, 2, 0x18, 5_000, 1_300)])));
        seeds.push((format!("{family}_64_kib"), batch(0, &[read(kind, 2, 0x10, 65_400, 1_360)])));
        let edited = [read(kind | 24, 2, 0x10, 3_000, 1_000), vec![1, 0, 0, 1, 1, 33, 0, 7]].concat();
        seeds.push((format!("{family}_changed"), batch(0, &[edited])));
    }
    let raw =
        |header: VnetHeader, packet: &[u8]| [vec![7], header.encode().to_vec(), string(packet)].concat();
    let batches = [
        ("smallest_segments", batch(0, &[read(0, 2, 0x10, 65_400, 32)])),
        ("too_many_segments", batch(0, &[read(0, 2, 0x10, 65_400, 31)])),
        ("many_64_kib", batch(0, &vec![read(0, 2, 0x10, 65_400, 1_360); 8])),
        ("congested", batch(0, &[read(0x40, 2, 0x10, 5_000, 1_300)])),
        ("to_all", batch(0, &[1, 2, 3, 4, 5].map(|to| read(0, to, 0x10, 100, 0)))),
        ("by_any", batch(1, &[read(0, 2, 0x10, 100, 0), read(0, 4, 0x10, 100, 0), read(1, 2, 0x10, 100, 0)])),
        ("expired", batch(0xc0, &[read(0, 2, 0x10, 100, 0)])),
        ("cut_off", batch(0, &[[read(0x20, 2, 0x10, 1_000, 500), vec![30, 0]].concat()])),
        ("no_packet", batch(0, &[raw(VnetHeader::default(), &[])])),
        ("half_a_header", batch(0, &[raw(VnetHeader::default(), &[0x45, 0, 0, 20])])),
        ("large_mtu", batch(4, &[read(1, 2, 0x10, 30_000, 0)])),
        ("odd_mtu", [vec![6, 100, 0], read(0, 2, 0x10, 95, 0)].concat()),
    ];
    seeds.extend(batches.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)));
    seeds
}

/// Packets of [`crate::coalesce()`].
fn runs() -> Vec<(&'static str, Vec<u8>)> {
    let run = |count: u8, packets: Vec<u8>| [vec![0, count - 1], packets].concat();
    vec![
        ("tcp4", run(40, vec![0x80; 40])),
        ("tcp6", run(40, vec![0x81; 40])),
        ("udp4", run(40, vec![0x82; 40])),
        ("udp6", run(40, vec![0x83; 40])),
        ("too_many", run(130, vec![0; 130])),
        ("too_large", run(60, vec![0x80; 60])),
        ("eight_flows", run(80, (0..80).map(|n| n % 8).collect())),
        ("pushed", run(6, vec![0, 0, 8, 0x18, 0, 0, 0])),
        ("synchronized", run(5, vec![8, 2, 0, 0, 8, 0x11, 0])),
        ("shorter_last", run(4, vec![0, 0, 0x40, 50, 0])),
        ("longer_last", run(4, vec![0, 0, 0x40, 150, 0])),
        ("another_time_to_live", run(4, vec![0, 0, 0x10, 1, 8, 0, 1, 0])),
        ("wrong_sequence", run(4, vec![0, 0, 0x10, 1, 24, 0, 1, 0])),
        ("wrong_checksum", run(4, vec![0, 0, 0x30, 1, 36, 0, 1, 1, 0])),
        ("wrong_ipv4_checksum", run(4, vec![0, 0, 0x30, 1, 10, 0, 1, 1, 0])),
        ("udp_without_checksum", run(4, vec![2, 2, 0x32, 0, 1, 2])),
        ("fragment", run(5, vec![0, 0, 0x10, 1, 6, 0, 0x20, 0, 0])),
        ("options", run(4, vec![4, 4, 0x14, 1, 0, 0, 3, 4])),
        ("identification_counts", run(6, vec![4, 4, 0x14, 1, 5, 0, 7, 4, 4, 4])),
        ("strange", [vec![0, 2, 0], vec![0x38], string(&[0x45; 40]), vec![0]].concat()),
        ("nothing_is_joined", [vec![0xff, 7], vec![0, 1, 2, 3, 0, 1, 2, 3]].concat()),
        ("two_rounds", [run(4, vec![0; 4]), vec![3], vec![0; 4]].concat()),
    ]
}

/// Requests of [`crate::uapi_text()`], after the sizes of the pieces in which they come.
fn texts() -> Vec<Seed> {
    let (private, public, shared) = ("11".repeat(32), "ab".repeat(32), "33".repeat(32));
    let peer = format!("public_key={public}\n");
    let requests = [
        ("get", "get=1\n\n".to_owned()),
        ("get_twice", "get=1\n\nget=1\n\n".to_owned()),
        ("get_with_more", "get=1\nlisten_port=1\n\n".to_owned()),
        ("set_nothing", "set=1\n\n".to_owned()),
        (
            "device",
            format!("set=1\nprivate_key={private}\nlisten_port=51820\nfwmark=1\nreplace_peers=true\n\n"),
        ),
        ("device_reset", format!("set=1\nprivate_key={}\nlisten_port=0\nfwmark=0\n\n", "0".repeat(64))),
        (
            "setconf",
            format!(
                "set=1\nprivate_key={private}\nreplace_peers=true\n{peer}preshared_key={shared}\n\
                 endpoint=192.0.2.1:51820\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
                 allowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n\n"
            ),
        ),
        ("peer_removed", format!("set=1\n{peer}remove=true\n\n")),
        ("peer_updated", format!("set=1\n{peer}update_only=true\nallowed_ip=-10.0.0.1/32\n\n")),
        ("endpoint_v6", format!("set=1\n{peer}endpoint=[2001:db8::1]:51820\n\n")),
        (
            "endpoint_with_scope",
            format!("set=1\n{peer}endpoint=[fe80::1%eth0]:51820\nendpoint=[fe80::1%3]:1\n\n"),
        ),
        ("endpoint_without_port", format!("set=1\n{peer}endpoint=192.0.2.1\n\n")),
        ("range_of_all", format!("set=1\n{peer}allowed_ip=0.0.0.0/0\nallowed_ip=::/0\n\n")),
        ("range_with_host_bits", format!("set=1\n{peer}allowed_ip=10.1.2.3/8\nallowed_ip=fd00::1/64\n\n")),
        ("range_too_long", format!("set=1\n{peer}allowed_ip=10.0.0.0/33\n\n")),
        ("keepalive_off", format!("set=1\n{peer}persistent_keepalive_interval=off\n\n")),
        ("keepalive_too_long", format!("set=1\n{peer}persistent_keepalive_interval=65536\n\n")),
        ("protocol_version", format!("set=1\n{peer}protocol_version=1\n\n")),
        ("key_too_short", "set=1\npublic_key=abcd\n\n".to_owned()),
        ("key_of_no_digits", format!("set=1\nprivate_key={}\n\n", "zz".repeat(32))),
        ("unknown", "set=1\nunknown=1\n\n".to_owned()),
        ("no_value", "set=1\nlisten_port\n\n".to_owned()),
        ("no_end", "set=1\nlisten_port=1\n".to_owned()),
        ("no_request", "\n\n".to_owned()),
        ("carriage_returns", "get=1\r\n\r\n".to_owned()),
        ("many_ranges", format!("set=1\n{peer}{}\n", "allowed_ip=10.0.0.1/32\n".repeat(40))),
    ];
    let whole =
        requests.iter().map(|(name, text)| ((*name).to_owned(), [&[1, 0xff], text.as_bytes()].concat()));
    let pieces = |sizes: &[u8], text: &str| [&[sizes.len() as u8], sizes, text.as_bytes()].concat();
    let odd = [
        ("byte_by_byte", pieces(&[1], &requests[6].1)),
        ("with_pauses", pieces(&[3, 0, 7, 0], &requests[6].1)),
    ];
    let odd = odd.map(|(name, bytes)| (name.to_owned(), bytes));
    let no_text = ("no_text".to_owned(), [&[1, 9], b"set=1\n\xff\n\n".as_slice()].concat());
    whole.chain(odd).chain([no_text]).collect()
}
