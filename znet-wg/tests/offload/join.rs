//! Many packets to a big one.

use std::collections::HashMap;

use proptest::prelude::*;
use znet_wg::offload::coalesce::{MAX_JOINED, OPEN_FLOWS};
use znet_wg::offload::{Coalescer, Offloads, VnetHeader};

use crate::packets::{ACK, CWR, ECE, FIN, Joined, MTU, PSH, RST, SYN, Spec, URG};
use crate::packets::{any_spec, everything, join_all, plain, split_all};

/// What a packet differs in from what would go on where its flow ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Twist {
    None,
    Flags(u8),
    Ack,
    Window,
    Urgent,
    Options,
    Ttl,
    Tos,
    Id,
    Fragment(u16),
    Sequence,
    NoChecksum,
    IpOptions,
    Payload(usize),
}

fn any_twist() -> impl Strategy<Value = Twist> {
    prop_oneof![
        40 => Just(Twist::None),
        6 => prop::sample::select(vec![PSH, FIN, PSH | FIN, SYN, RST, URG, ECE, CWR]).prop_map(Twist::Flags),
        1 => Just(Twist::Ack),
        1 => Just(Twist::Window),
        1 => Just(Twist::Urgent),
        1 => Just(Twist::Options),
        1 => Just(Twist::Ttl),
        1 => Just(Twist::Tos),
        2 => Just(Twist::Id),
        2 => prop::sample::select(vec![0u16, 0x4000, 0x8000, 0x2000, 0x0010]).prop_map(Twist::Fragment),
        1 => Just(Twist::Sequence),
        1 => Just(Twist::NoChecksum),
        1 => Just(Twist::IpOptions),
        6 => prop::sample::select(vec![0usize, 1, 99, 101, 200]).prop_map(Twist::Payload),
    ]
}

/// Packets of a few flows in any order, mostly such that go on where their flow ended, with the flow of each.
fn any_mixture() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
    prop::collection::vec((0u16..6, 1..6usize, any_twist()), 0..60).prop_map(|runs| {
        let mut flows: Vec<Spec> = (0..6)
            .map(|port| Spec {
                port,
                fragment: if port < 2 { 0 } else { 0x4000 },
                ..plain(port >= 4, port % 2 == 0, vec![])
            })
            .collect();
        let mut packets = Vec::new();
        for (port, count, twist) in runs {
            let flow = &mut flows[usize::from(port)];
            for nth in 0..count {
                let twist = if nth + 1 == count { twist } else { Twist::None };
                let spec = twisted(flow, twist, packets.len());
                flow.id = spec.id.wrapping_add(1);
                flow.sequence = spec.sequence.wrapping_add(spec.payload.len() as u32);
                packets.push((port, spec.build()));
            }
        }
        packets
    })
}

fn twisted(flow: &Spec, twist: Twist, nth: usize) -> Spec {
    let mut spec = flow.clone();
    spec.payload = (0..100).map(|n| (nth * 7 + n) as u8).collect();
    match twist {
        Twist::None => {}
        Twist::Flags(flags) => spec.flags |= flags,
        Twist::Ack => spec.ack += 1,
        Twist::Window => spec.window += 1,
        Twist::Urgent => spec.urgent = 5,
        Twist::Options => spec.options = vec![1; 4],
        Twist::Ttl => spec.ttl -= 1,
        Twist::Tos => spec.tos = 3,
        Twist::Id => spec.id = spec.id.wrapping_add(9),
        Twist::Fragment(fragment) => spec.fragment = fragment,
        Twist::Sequence => spec.sequence = spec.sequence.wrapping_add(1),
        Twist::NoChecksum => spec.no_checksum = !spec.tcp,
        Twist::IpOptions if spec.v6 => {
            spec.ip_options = vec![if spec.tcp { 6 } else { 17 }, 0, 1, 4, 0, 0, 0, 0];
        }
        Twist::IpOptions => spec.ip_options = vec![1; 4],
        Twist::Payload(bytes) => spec.payload.resize(bytes, nth as u8),
    }
    spec
}

/// Cuts again what was joined.
fn cut_again(joined: &[Joined]) -> Vec<Vec<u8>> {
    let cut = |(vnet, packet, packets): &Joined| {
        let segments = split_all(vnet, packet, MTU).unwrap();
        assert_eq!(segments.len(), *packets);
        segments
    };
    joined.iter().flat_map(cut).collect()
}

/// A packet without IPv4's identification when nothing may be read from it (RFC 6864): that of what is never
/// cut.
fn without_idle_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn port_of(packet: &[u8]) -> u16 {
    let at = match packet[0] >> 4 {
        4 => usize::from(packet[0] & 15) * 4,
        _ if packet[6] == 60 => 48,
        _ => 40,
    };
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_joined_can_be_cut_into_what_came_in_the_order_of_each_flow(
        batches in prop::collection::vec(any_mixture(), 1..3),
    ) {
        let mut coalescer = everything();
        for mixture in batches {
            let mut expected: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
            for (flow, packet) in &mixture {
                expected.entry(*flow).or_default().push(without_idle_id(packet.clone()));
            }
            let packets: Vec<Vec<u8>> = mixture.into_iter().map(|(_, packet)| packet).collect();
            let mut got: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
            for packet in cut_again(&join_all(&mut coalescer, &packets)) {
                got.entry(port_of(&packet)).or_default().push(without_idle_id(packet));
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn big_packet_that_was_cut_is_joined_again(spec in any_spec(20_000), size in 500u16..1400) {
        let spec = Spec { ip_options: vec![], flags: spec.flags & (PSH | FIN) | ACK, ..spec };
        prop_assume!(spec.payload.len() > size.into());
        let packet = spec.build_unfinished();
        let segments = split_all(&spec.vnet(size), &packet, MTU).unwrap();
        let count = segments.len();
        prop_assert_eq!(join_all(&mut everything(), &segments), vec![(spec.vnet(size), packet, count)]);
    }
}

/// Packets of one flow that go on where the last ended, each changed by the caller.
fn run(first: &Spec, count: usize, mut change: impl FnMut(usize, &mut Spec)) -> Vec<Vec<u8>> {
    let mut next = first.clone();
    let packet = |nth| {
        let mut spec = next.clone();
        change(nth, &mut spec);
        next.id = spec.id.wrapping_add(1);
        next.sequence = spec.sequence.wrapping_add(spec.payload.len() as u32);
        spec.build()
    };
    (0..count).map(packet).collect()
}

/// How many packets were joined in each that is handed out.
fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    join_all(&mut everything(), packets).iter().map(|(_, _, packets)| *packets).collect()
}

#[test]
fn packets_join_until_one_ends_them() {
    let tcp = plain(false, true, vec![1; 100]);
    assert_eq!(counts(&run(&tcp, 6, |_, _| {})), [6]);
    assert_eq!(counts(&run(&tcp, 6, |nth, spec| spec.flags |= if nth == 2 { PSH } else { 0 })), [3, 3]);
    assert_eq!(counts(&run(&tcp, 6, |nth, spec| spec.flags |= if nth == 0 { FIN } else { 0 })), [1, 5]);
    assert_eq!(counts(&run(&tcp, 6, |nth, spec| spec.payload.truncate(100 - nth / 3))), [4, 2]);
    assert_eq!(counts(&run(&tcp, 6, |nth, spec| spec.payload.resize(100 + nth / 3, 1))), [3, 3]);
    assert_eq!(counts(&run(&tcp, 3, |_, spec| spec.payload.clear())), [1, 1, 1]);
    assert_eq!(counts(&run(&tcp, 6, |nth, spec| spec.ack += u32::from(nth > 3))), [4, 2]);
    for never in [SYN, RST, URG, CWR] {
        assert_eq!(counts(&run(&tcp, 4, |_, spec| spec.flags |= never)), [1; 4]);
    }
}

#[test]
fn identification_counts_only_in_what_may_be_fragmented() {
    for (fragment, expected) in [(0x4000, vec![4]), (0, vec![1; 4])] {
        let spec = Spec { fragment, ..plain(false, false, vec![1; 100]) };
        assert_eq!(counts(&run(&spec, 4, |_, spec| spec.id = 7)), expected);
    }
}

#[test]
fn a_group_never_grows_over_its_bounds() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let small = run(&plain(v6, tcp, vec![1; 10]), MAX_JOINED * 2 + 1, |_, _| {});
        assert_eq!(counts(&small), [MAX_JOINED, MAX_JOINED, 1]);
        let big = join_all(&mut everything(), &run(&plain(v6, tcp, vec![1; 1300]), 60, |_, _| {}));
        assert!(big.iter().all(|(_, packet, _)| packet.len() <= 65_535));
        assert_eq!(big.iter().map(|(_, _, packets)| *packets).collect::<Vec<_>>(), [50, 10]);
    }
}

#[test]
fn interleaved_flows_are_joined_each_for_itself() {
    let flows: Vec<Vec<Vec<u8>>> = (0..OPEN_FLOWS as u16)
        .map(|port| run(&Spec { port, ..plain(port % 2 == 0, true, vec![1; 100]) }, 5, |_, _| {}))
        .collect();
    let mixed: Vec<Vec<u8>> =
        (0..5).flat_map(|nth| flows.iter().map(move |flow| flow[nth].clone())).collect();
    assert_eq!(counts(&mixed), [5; OPEN_FLOWS]);
}

#[test]
fn what_the_device_does_not_take_is_not_joined() {
    let kinds = [(false, true), (true, true), (false, false), (true, false)];
    for offloads in 0..8u8 {
        let (tcp4, tcp6, udp) = (offloads & 1 != 0, offloads & 2 != 0, offloads & 4 != 0);
        let mut coalescer = Coalescer::new(Offloads { tcp4, tcp6, udp });
        for ((v6, tcp), taken) in kinds.into_iter().zip([tcp4, tcp6, udp, udp]) {
            let packets = run(&plain(v6, tcp, vec![1; 100]), 3, |_, _| {});
            let joined = join_all(&mut coalescer, &packets);
            assert_eq!(joined.len(), if taken { 1 } else { 3 });
        }
    }
}

#[test]
fn packet_that_stays_alone_is_not_changed() {
    let mut packet = plain(false, true, vec![1; 100]).build();
    // A wrong checksum stays wrong.
    packet[36] ^= 1;
    let joined = join_all(&mut everything(), std::slice::from_ref(&packet));
    assert_eq!(joined, [(VnetHeader::default(), packet, 1)]);
}

#[test]
fn wrong_checksum_of_a_header_is_not_made_right() {
    let mut packets = run(&plain(false, true, vec![1; 100]), 3, |_, _| {});
    packets[1][10] ^= 1;
    assert_eq!(counts(&packets), [1, 1, 1]);
}
