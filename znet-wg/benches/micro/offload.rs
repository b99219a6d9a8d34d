//! Cutting and joining.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use znet_wg::offload::{Coalescer, PADDING, VnetHeader, split};

use crate::common::{EVERYTHING, MTU, PAYLOAD, SEGMENTS, address, gso, large, packet};

fn split_each(bencher: Bencher<'_, '_>, header: VnetHeader, whole: &[u8], segments: usize) {
    bencher.counter(ItemsCount::new(segments)).with_inputs(|| whole.to_vec()).bench_local_refs(|buffer| {
        let len = buffer.len() - PADDING;
        split(&header, buffer, len, MTU, |segment| {
            black_box(segment);
        })
        .unwrap()
    });
}

/// A packet of almost 64 KiB into packets of 1420 bytes.
#[divan::bench]
fn split_into_47(bencher: Bencher<'_, '_>) {
    split_each(bencher, gso(), &large(SEGMENTS), SEGMENTS);
}

/// A packet that is one, its checksum unfinished.
#[divan::bench]
fn split_single(bencher: Bencher<'_, '_>) {
    let header = VnetHeader { gso_type: 0, gso_size: 0, ..gso() };
    split_each(bencher, header, &large(1), 1);
}

/// Packets of flows in turn, each next one going on where its flow ended, one behind the other.
fn arena(packets: usize, flows: usize) -> Vec<u8> {
    let mut arena = Vec::new();
    let mut sequences = vec![1u32; flows];
    for nth in 0..packets {
        let flow = nth % flows;
        let mut one = packet(address(1), address(2), PAYLOAD);
        one.truncate(MTU);
        one[20..22].copy_from_slice(&(flow as u16).to_be_bytes());
        one[24..28].copy_from_slice(&sequences[flow].to_be_bytes());
        let sum: u32 =
            one[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        one[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        sequences[flow] += PAYLOAD as u32;
        arena.extend(one);
    }
    arena
}

/// 64 packets of so many flows; they are joined as far as 64 KiB go.
#[divan::bench(args = [1, 8])]
fn coalesce_64(bencher: Bencher<'_, '_>, flows: usize) {
    const PACKETS: usize = 64;
    let whole = arena(PACKETS, flows);
    let mut coalescer = Coalescer::new(EVERYTHING);
    let mut join = |arena: &mut Vec<u8>| {
        (0..PACKETS).for_each(|nth| coalescer.push(arena, nth * MTU..(nth + 1) * MTU));
        let mut groups = 0;
        coalescer.drain(arena, |slices, _| {
            black_box(slices);
            groups += 1;
        });
        groups
    };
    assert_eq!(join(&mut whole.clone()), flows.max(2), "they are joined");
    bencher.counter(ItemsCount::new(PACKETS)).with_inputs(|| whole.clone()).bench_local_refs(join);
}
