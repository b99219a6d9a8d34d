//! No bytes, however wrong, make anything but an error.

use proptest::prelude::*;
use znet_wg::offload::{PADDING, VNET_LEN, VnetHeader, split};

use crate::packets::{any_spec, everything, join_all};

fn any_header() -> impl Strategy<Value = VnetHeader> {
    any::<[u8; VNET_LEN]>().prop_map(|bytes| VnetHeader::parse(&bytes).unwrap())
}

/// Splits and does not mind what becomes of it, but that no segment is longer than all was.
fn try_split(vnet: &VnetHeader, packet: &[u8], mtu: usize) {
    let mut buffer = packet.to_vec();
    buffer.resize(packet.len() + PADDING, 0);
    let _ = split(vnet, &mut buffer, packet.len(), mtu, |segment| assert!(segment.len <= packet.len()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn headers_read_back_as_written(vnet in any_header()) {
        prop_assert_eq!(VnetHeader::parse(&vnet.encode()), Some(vnet));
        prop_assert_eq!(VnetHeader::parse(&vnet.encode()[1..]), None);
    }

    #[test]
    fn random_bytes_are_survived(
        vnet in any_header(),
        version in prop::sample::select(vec![0x45u8, 0x60, 0x4f, 0x00]),
        mut packet in prop::collection::vec(any::<u8>(), 0..300),
        mtu in any::<u16>(),
    ) {
        if let Some(first) = packet.first_mut() {
            *first = version;
        }
        try_split(&vnet, &packet, mtu.into());
        let joined = join_all(&mut everything(), &[packet.clone(), packet.clone()]);
        prop_assert_eq!(joined.iter().map(|(_, _, packets)| packets).sum::<usize>(), 2);
    }

    #[test]
    fn packets_with_some_bytes_wrong_are_survived(
        spec in any_spec(200),
        size in 1u16..200,
        wrong in prop::collection::vec((0usize..80, any::<u8>()), 1..4),
        header_wrong in prop::option::of((0..VNET_LEN, any::<u8>())),
        cut in prop::option::of(0usize..300),
    ) {
        let mut packet = spec.build_unfinished();
        for (at, byte) in wrong {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        packet.truncate(cut.unwrap_or(usize::MAX));
        let mut header = spec.vnet(size).encode();
        if let Some((at, byte)) = header_wrong {
            header[at] = byte;
        }
        try_split(&VnetHeader::parse(&header).unwrap(), &packet, 1420);
        let intact = spec.build();
        let joined = join_all(&mut everything(), &[intact.clone(), packet.clone(), intact, packet]);
        prop_assert_eq!(joined.iter().map(|(_, _, packets)| packets).sum::<usize>(), 4);
    }
}

#[test]
fn places_outside_the_arena_are_ignored() {
    let mut coalescer = everything();
    coalescer.push(&[0x45; 100], 90..110);
    #[allow(clippy::reversed_empty_ranges)]
    coalescer.push(&[0x45; 100], 50..40);
    assert!(coalescer.is_empty());
    // Another arena than was pushed: empty packets, but no panic.
    let packet = crate::packets::plain(false, true, vec![1; 10]).build();
    let mut arena = packet.clone();
    arena.extend(
        crate::packets::Spec { sequence: 1010, ..crate::packets::plain(false, true, vec![1; 10]) }.build(),
    );
    coalescer.push(&arena, 0..packet.len());
    coalescer.push(&arena, packet.len()..arena.len());
    let mut handed_out = 0;
    coalescer.drain(&mut [], |_, packets| handed_out += packets);
    assert_eq!(handed_out, 2);
}
