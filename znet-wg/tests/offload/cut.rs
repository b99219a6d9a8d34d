//! One big packet to many.

use proptest::prelude::*;
use znet_wg::offload::vnet::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use znet_wg::offload::{Malformed, PADDING, VnetHeader, split};

use crate::packets::{ACK, MTU, any_spec, plain, slow_sum, split_all};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn segments_are_those_of_a_slow_reference(
        spec in any_spec(6000),
        size in 20u16..1500,
        mtu in 0usize..1600,
    ) {
        let segments = split_all(&spec.vnet(size), &spec.build_unfinished(), mtu).unwrap();
        prop_assert_eq!(segments, spec.cut(size.into()));
    }

    #[test]
    fn tiny_segments_under_large_headers_are_right(spec in any_spec(300), size in 1u16..20) {
        let segments = split_all(&spec.vnet(size), &spec.build_unfinished(), MTU).unwrap();
        prop_assert_eq!(segments, spec.cut(size.into()));
    }

    #[test]
    fn neither_length_nor_checksum_of_a_big_packet_matter(spec in any_spec(3000), junk in any::<[u8; 4]>()) {
        let mut packet = spec.build_unfinished();
        let at = if spec.v6 { 4 } else { 2 };
        packet[at..at + 2].copy_from_slice(&junk[..2]);
        let at = spec.ip_header() + if spec.tcp { 16 } else { 6 };
        packet[at..at + 2].copy_from_slice(&junk[2..]);
        let vnet = VnetHeader { hdr_len: u16::from_ne_bytes([junk[0], junk[3]]), ..spec.vnet(1000) };
        prop_assert_eq!(split_all(&vnet, &packet, MTU).unwrap(), spec.cut(1000));
    }

    #[test]
    fn checksum_of_an_ordinary_packet_is_finished(spec in any_spec(1500)) {
        let vnet = VnetHeader { gso_type: GSO_NONE, gso_size: 0, ..spec.vnet(0) };
        prop_assert_eq!(split_all(&vnet, &spec.build_unfinished(), MTU).unwrap(), vec![spec.build()]);
    }

    #[test]
    fn ordinary_packet_without_order_is_not_changed(spec in any_spec(1500)) {
        let packet = spec.build();
        prop_assert_eq!(split_all(&VnetHeader::default(), &packet, MTU).unwrap(), vec![packet]);
    }
}

#[test]
fn the_largest_packet_is_cut_whole() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut spec = plain(v6, tcp, Vec::new());
        spec.payload = (0..65_535 - spec.header()).map(|n| (n * 31) as u8).collect();
        (spec.id, spec.sequence) = (u16::MAX - 3, u32::MAX - 5000);
        let segments = split_all(&spec.vnet(1368), &spec.build_unfinished(), MTU).unwrap();
        assert_eq!(segments, spec.cut(1368));
    }
}

#[test]
fn udp_never_gets_a_checksum_of_zero() {
    for v6 in [false, true] {
        let mut spec = plain(v6, false, vec![1, 2, 3, 4, 0, 0]);
        let packet = spec.build();
        let at = spec.ip_header() + 6;
        // What makes the sum complete.
        spec.payload[4..6].copy_from_slice(&packet[at..at + 2]);
        assert_eq!(spec.build()[at..at + 2], [0xff, 0xff]);
        let ordinary = VnetHeader { gso_type: GSO_NONE, ..spec.vnet(0) };
        assert_eq!(split_all(&ordinary, &spec.build_unfinished(), MTU).unwrap(), [spec.build()]);
        assert_eq!(split_all(&spec.vnet(6), &spec.build_unfinished(), MTU).unwrap(), [spec.build()]);
    }
}

#[test]
fn congestion_bit_of_the_type_changes_nothing() {
    let spec = plain(false, true, vec![9; 4000]);
    let vnet = VnetHeader { gso_type: GSO_TCPV4 | GSO_ECN, ..spec.vnet(1000) };
    assert_eq!(split_all(&vnet, &spec.build_unfinished(), MTU).unwrap(), spec.cut(1000));
}

#[test]
fn icmpv6_checksum_is_finished_as_well() {
    let mut packet = plain(true, false, vec![5; 9]).build();
    packet[6] = 58;
    packet[42..44].copy_from_slice(&0u16.to_be_bytes());
    let vnet = VnetHeader { flags: NEEDS_CSUM, csum_start: 40, csum_offset: 2, ..VnetHeader::default() };
    let segments = split_all(&vnet, &packet, MTU).unwrap();
    assert_eq!(slow_sum(&segments[0][40..]), 0xffff);
}

/// What a packet and its header are refused for.
fn refused(vnet: VnetHeader, packet: &[u8]) -> Malformed {
    split_all(&vnet, packet, MTU).unwrap_err()
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let v4 = plain(false, true, vec![1; 3000]);
    let (vnet, packet) = (v4.vnet(1000), v4.build_unfinished());
    let v6 = plain(true, true, vec![1; 3000]);
    assert_eq!(refused(VnetHeader { gso_size: 0, ..vnet }, &packet), Malformed::SegmentSize(0));
    assert_eq!(refused(VnetHeader { gso_size: 1, ..vnet }, &packet), Malformed::SegmentSize(1));
    assert_eq!(refused(VnetHeader { gso_type: GSO_TCPV6, ..vnet }, &packet), Malformed::Protocol);
    assert_eq!(refused(v4.vnet(1000), &v6.build()), Malformed::Protocol);
    assert_eq!(refused(VnetHeader { gso_type: 3, ..vnet }, &packet), Malformed::GsoType(3));
    assert_eq!(refused(VnetHeader { gso_type: GSO_ECN, ..vnet }, &packet), Malformed::GsoType(GSO_ECN));
    assert_eq!(refused(VnetHeader { flags: 0, ..vnet }, &packet), Malformed::Checksum);
    assert_eq!(refused(VnetHeader { csum_offset: 6, ..vnet }, &packet), Malformed::Checksum);
    assert_eq!(refused(VnetHeader { csum_start: 24, ..vnet }, &packet), Malformed::Checksum);
    assert_eq!(refused(VnetHeader { csum_start: 44, ..v6.vnet(1000) }, &v6.build()), Malformed::Protocol);
    assert_eq!(refused(VnetHeader { csum_start: 8, ..v6.vnet(1000) }, &v6.build()), Malformed::Checksum);
    let udp = VnetHeader { gso_type: GSO_UDP_L4, csum_offset: 6, ..vnet };
    assert_eq!(refused(udp, &packet), Malformed::Protocol);
    let fragment = crate::packets::Spec { fragment: 0x2000, ..v4 };
    assert_eq!(refused(vnet, &fragment.build()), Malformed::Fragment);
    assert_eq!(refused(vnet, &packet[..39]), Malformed::Truncated);
    assert_eq!(refused(vnet, &[]), Malformed::Truncated);
    assert_eq!(refused(vnet, &[0x50; 100]), Malformed::Version);
    assert_eq!(refused(vnet, &vec![0x45; 65_536]), Malformed::Long);
    let mut options = packet;
    options[32] = 0xf0;
    assert_eq!(refused(vnet, &options[..60]), Malformed::Truncated);
    options[32] = 0x40;
    assert_eq!(refused(vnet, &options), Malformed::Truncated);
}

#[test]
fn ordinary_packet_that_does_not_fit_is_refused() {
    let packet = plain(false, true, vec![1; 30]).build();
    let vnet = VnetHeader { flags: NEEDS_CSUM, csum_start: 20, csum_offset: 16, ..VnetHeader::default() };
    assert_eq!(refused(vnet, &packet[..60]), Malformed::Length);
    assert_eq!(refused(VnetHeader { csum_start: 18, ..vnet }, &packet), Malformed::Checksum);
    assert_eq!(refused(VnetHeader { csum_start: 71, ..vnet }, &packet), Malformed::Checksum);
    assert_eq!(refused(VnetHeader { csum_offset: 49, ..vnet }, &packet), Malformed::Checksum);
    assert_eq!(refused(VnetHeader { csum_offset: u16::MAX, ..vnet }, &packet), Malformed::Checksum);
    assert_eq!(refused(vnet, &[0x65; 39]), Malformed::Truncated);
}

#[test]
fn too_little_room_is_refused() {
    let spec = plain(false, true, vec![1; 30]);
    let mut buffer = spec.build_unfinished();
    let len = buffer.len();
    buffer.resize(len + PADDING - 1, 0);
    let result = split(&spec.vnet(10), &mut buffer, len, MTU, |_| panic!("nothing is handed out"));
    assert_eq!(result, Err(Malformed::Room));
}

#[test]
fn packet_without_payload_is_handed_out_once() {
    let mut spec = plain(true, true, Vec::new());
    spec.flags = ACK | crate::packets::FIN;
    assert_eq!(split_all(&spec.vnet(1000), &spec.build_unfinished(), MTU).unwrap(), [spec.build()]);
}
