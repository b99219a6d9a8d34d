//! Packets that may be joined.

use std::collections::{HashMap, VecDeque};

use znet_wg::net::MAX_PACKET;
use znet_wg::offload::coalesce::MAX_JOINED;
use znet_wg::offload::{Coalescer, VnetHeader};

use crate::input::Input;
use crate::packets::{Layout, Spec, cut, finish_ipv4, lasting};
use crate::world::{addresses, offloads};

/// Packets between two drains, as an arena of 192 KiB would hold them.
const PACKETS: usize = 300;
/// Bytes of them.
const ARENA: usize = 192 << 10;
/// Bytes that lie between two packets in the arena.
const GAP: usize = 16;

/// Flows that go on packet by packet, unless the input says otherwise.
struct Flows([Spec; 8]);

impl Flows {
    fn new() -> Self {
        Self(std::array::from_fn(|n| {
            let (from, to) = (addresses(1)[n & 1], addresses(2)[n & 1]);
            let fragment = if n & 4 == 0 { 0x4000 } else { 0 };
            Spec { port: n as u16, fragment, ..Spec::new(n & 2 == 0, from, to) }
        }))
    }

    /// The next packet of an input.
    fn packet(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let kind = input.u8();
        if kind & 0x38 == 0x38 {
            return input.string().to_vec();
        }
        let flow = &mut self.0[usize::from(kind & 7)];
        let length = match kind >> 6 {
            0 => 100,
            1 => usize::from(input.u8()),
            2 => 1_380,
            _ => usize::from(input.u16() % 9_000),
        };
        let payload: Vec<u8> = (0..length).map(|n| (n as u8) ^ (flow.sequence as u8)).collect();
        let mut spec = flow.clone();
        if kind & 8 != 0 {
            spec.flags = input.u8();
        }
        let mut packet = spec.build(&payload);
        if kind & 16 != 0 {
            let header = packet.len().min(64);
            input.edit(&mut packet[..header]);
        }
        if kind & 32 == 0 || input.u8() & 1 == 0 {
            finish_ipv4(&mut packet);
            if let Some(layout) = Layout::of(&packet) {
                layout.finish(&mut packet);
            }
        }
        flow.id = flow.id.wrapping_add(1);
        flow.sequence = flow.sequence.wrapping_add(length as u32);
        packet
    }
}

/// Which packets keep their order; all that belong to no flow are one.
fn flow(packet: &[u8]) -> Vec<u8> {
    Layout::of(packet).map(|layout| layout.flow(packet)).unwrap_or_default()
}

/// What is joined can be cut into what came, in the order of each flow; what stays alone is not changed.
pub fn coalesce(data: &[u8]) {
    let mut input = Input::new(data);
    let mut coalescer = Coalescer::new(offloads(!input.u8()));
    let mut flows = Flows::new();
    while !input.is_empty() {
        let (mut arena, mut pushed) = (Vec::new(), 0);
        let mut expected: HashMap<Vec<u8>, VecDeque<Vec<u8>>> = HashMap::new();
        let count = usize::from(input.u8()) + 1;
        while pushed < count.min(PACKETS) && !input.is_empty() {
            let packet = flows.packet(&mut input);
            if arena.len() + packet.len() + GAP > ARENA {
                break;
            }
            let at = arena.len()..arena.len() + packet.len();
            arena.extend(&packet);
            arena.extend([0xa5; GAP]);
            coalescer.push(&arena, at);
            expected.entry(flow(&packet)).or_default().push_back(packet);
            pushed += 1;
        }
        let mut handed_out = 0;
        coalescer.drain(&mut arena, |slices, packets| {
            assert!(packets <= MAX_JOINED && slices.len() == packets + 1);
            let vnet = VnetHeader::parse(&slices[0]).unwrap();
            let whole: Vec<u8> = slices[1..].iter().flat_map(|slice| slice.to_vec()).collect();
            handed_out += packets;
            if packets == 1 {
                let came = expected.get_mut(&flow(&whole)).and_then(VecDeque::pop_front);
                assert_eq!(Some(&whole), came.as_ref(), "what stays alone is not changed");
                assert_eq!(vnet, VnetHeader::default());
                return;
            }
            assert!(whole.len() <= MAX_PACKET);
            let segments = cut(&vnet, &whole, 0).expect("what was joined can be cut");
            assert_eq!(segments.len(), packets);
            for segment in &segments {
                let came = expected.get_mut(&flow(segment)).and_then(VecDeque::pop_front);
                compare(segment, &came.expect("it is one of those that came"));
            }
        });
        assert_eq!(handed_out, pushed, "as many come out as went in");
        assert!(coalescer.is_empty());
    }
}

/// A packet that was joined and cut again is the one that came, with a checksum that is right.
fn compare(segment: &[u8], came: &[u8]) {
    assert_eq!(lasting(segment), lasting(came));
    let layout = Layout::of(came).expect("only flows are joined");
    assert!(!layout.unsummed(came), "UDP without a checksum would get one");
    let mut right = came.to_vec();
    layout.finish(&mut right);
    finish_ipv4(&mut right);
    if came[0] == 0x45 {
        assert_eq!(right[10..12], came[10..12], "a wrong IPv4 checksum is not made right");
        assert_eq!(right[1], segment[1], "the class is the same");
        if came[6] & 0x40 != 0 {
            // Of what is never cut the identification means nothing (RFC 6864).
            right[4..6].copy_from_slice(&segment[4..6]);
            finish_ipv4(&mut right);
        }
    }
    assert_eq!(segment, right);
}
