//! Many packets to a big one, on the way out of tunnels.
//!
//! The packets lie in an arena, each where it was decrypted. Those of a flow that follow each other are
//! joined: the header of the first is told their common length, and the payloads of the others are gathered
//! by the system call that writes. What is joined is what Linux would join (`tcp_gro_receive`,
//! `inet_gro_receive`, `udp_gro_receive`), so that cutting it again gives the packets that came.
//!
//! The checksums of joined packets are neither checked nor computed: the TUN device is told that they are
//! still to be finished, which its kernel takes for right. That is sound, for every byte was authenticated by
//! Poly1305 as the peer sent it, which is more than a checksum can say. WireGuard in the kernel does
//! likewise: it marks what it decrypted `CHECKSUM_UNNECESSARY`. A packet that stays alone is not changed, and
//! the kernel checks it.
//!
//! Inside a flow the order never changes. A packet that cannot join the open group of its flow closes it, and
//! groups are handed out in the order in which they were begun.

use std::io::IoSlice;
use std::ops::Range;

use super::checksum::Sum;
use super::flow::{Common, Flow, Kind, Packet};
use super::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET_LEN, VnetHeader};
use super::{IPV4_HEADER, IPV6_HEADER, TCP, TCP_CHECKSUM, TCP_HEADER, UDP, UDP_CHECKSUM, field, set_field};
use crate::net::MAX_PACKET;

/// Most packets that are joined. At an MTU of 1420 the largest packet holds 47; Linux joins no more than 64
/// datagrams (`UDP_GRO_CNT_MAX`).
pub const MAX_JOINED: usize = 64;

/// Most flows that may grow at a time. With more the one that rested longest is closed: looking for a flow
/// must stay cheap. A sender's packets come in runs, so few are needed.
pub const OPEN_FLOWS: usize = 16;

/// What a TUN device takes joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// TCP over IPv4 (`TUN_F_TSO4`).
    pub tcp4: bool,
    /// TCP over IPv6 (`TUN_F_TSO6`).
    pub tcp6: bool,
    /// UDP over either (`TUN_F_USO4` and `TUN_F_USO6`).
    pub udp: bool,
}

/// Packets that are handed out as one.
#[derive(Clone, Debug)]
struct Group {
    flow: Flow,
    common: Common,
    /// The first packet.
    first: Range<usize>,
    /// Its payload, and that of all but the last.
    size: u16,
    /// Bytes of the joined packet.
    total: usize,
    /// How many packets.
    count: usize,
    /// TCP's sequence number after the last.
    sequence: u32,
    /// IPv4's identification of the next.
    id: u16,
    /// FIN and PSH of the last.
    ends: u16,
    v4: bool,
    tcp: bool,
    ip_header: u8,
    header: u8,
    /// The payloads of the others, as places in [`Coalescer::pieces`]; the first is not there when it is
    /// alone.
    next: usize,
    last: usize,
    vnet: [u8; VNET_LEN],
}

/// The payload of a packet that joined a group.
#[derive(Clone, Debug)]
struct Piece {
    at: Range<usize>,
    /// The group's next.
    next: usize,
}

/// A flow that may grow.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    /// Of its flow, to pass over others at a glance.
    ports: u64,
    group: usize,
}

/// Joins packets of an arena. It is filled and emptied over and over, and allocates only while it grows.
#[derive(Clone, Debug, Default)]
pub struct Coalescer {
    offloads: Offloads,
    groups: Vec<Group>,
    pieces: Vec<Piece>,
    /// The most recent first.
    open: [Open; OPEN_FLOWS],
    opened: usize,
}

impl Coalescer {
    /// One that holds nothing yet.
    pub fn new(offloads: Offloads) -> Self {
        Self { offloads, ..Self::default() }
    }

    /// Joins what these allow from now on. To be called while it is empty.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
    }

    /// Whether there is nothing to hand out.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Notes the IP packet at a place of the arena, of its exact length. It joins the group of its flow if it
    /// may, else it begins one. A place outside the arena is ignored.
    #[inline]
    pub fn push(&mut self, arena: &[u8], at: Range<usize>) {
        let Some(bytes) = arena.get(at.clone()) else { return };
        match Kind::of(bytes, self.offloads) {
            Kind::Flow(packet) => self.push_packet(arena, at, bytes, &packet),
            Kind::Alone => self.groups.push(Group::alone(at)),
            Kind::Unclear => {
                self.opened = 0;
                self.groups.push(Group::alone(at));
            }
        }
    }

    #[inline]
    fn push_packet(&mut self, arena: &[u8], at: Range<usize>, bytes: &[u8], packet: &Packet) {
        let place = self.find(&packet.flow);
        if let Some(place) = place {
            let index = self.open.get(place).map_or(usize::MAX, |open| open.group);
            if let Some(group) = self.groups.get_mut(index)
                && packet.joinable
                && group.takes(packet, arena, bytes)
            {
                let piece = self.pieces.len();
                if group.count == 1 {
                    group.next = piece;
                } else if let Some(last) = self.pieces.get_mut(group.last) {
                    last.next = piece;
                }
                group.last = piece;
                self.pieces
                    .push(Piece { at: at.start + usize::from(packet.header)..at.end, next: usize::MAX });
                if group.join(packet) {
                    self.touch(place);
                } else {
                    self.close(place);
                }
                return;
            }
            self.close(place);
        }
        if packet.joinable && packet.ends == 0 {
            self.open(packet.flow[4], self.groups.len());
        }
        self.groups.push(Group::begun_by(packet, at));
    }

    /// The place of a flow among the open ones.
    #[inline]
    fn find(&self, flow: &Flow) -> Option<usize> {
        let open = self.open.get(..self.opened)?;
        open.iter().position(|open| {
            open.ports == flow[4] && self.groups.get(open.group).is_some_and(|group| group.flow == *flow)
        })
    }

    /// Makes an open flow the most recent.
    #[inline]
    fn touch(&mut self, place: usize) {
        if place > 0
            && let Some(older) = self.open.get_mut(..=place)
        {
            older.rotate_right(1);
        }
    }

    fn close(&mut self, place: usize) {
        if let Some(younger) = self.open.get_mut(place..self.opened) {
            younger.rotate_left(1);
            self.opened -= 1;
        }
    }

    fn open(&mut self, ports: u64, group: usize) {
        self.opened = (self.opened + 1).min(OPEN_FLOWS);
        self.touch(self.opened - 1);
        self.open[0] = Open { ports, group };
    }

    /// Hands every group out in the order in which the groups were begun, then forgets them.
    ///
    /// `write` gets the header of the TUN device as the first slice, the packet in all others, at most
    /// [`MAX_JOINED`], and the number of packets that were joined in it. The arena must be as it was: the
    /// headers of joined packets are changed in it.
    pub fn drain(&mut self, arena: &mut [u8], mut write: impl FnMut(&[IoSlice<'_>], usize)) {
        for group in &mut self.groups {
            if group.count > 1 {
                // Every place was looked at when it was pushed: it can only fail with another arena.
                let _ = group.write_header(arena);
            }
        }
        let arena = &*arena;
        let mut slices = [IoSlice::new(&[]); MAX_JOINED + 1];
        for group in &self.groups {
            let mut used = 0;
            let first = [group.vnet.as_slice(), arena.get(group.first.clone()).unwrap_or_default()];
            let mut next = group.next;
            let others = std::iter::from_fn(|| {
                let piece = self.pieces.get(next)?;
                next = piece.next;
                Some(arena.get(piece.at.clone()).unwrap_or_default())
            });
            for (slice, bytes) in slices.iter_mut().zip(first.into_iter().chain(others)) {
                *slice = IoSlice::new(bytes);
                used += 1;
            }
            write(slices.get(..used).unwrap_or_default(), group.count);
        }
        self.groups.clear();
        self.pieces.clear();
        self.opened = 0;
    }
}

impl Group {
    /// A packet that no other can join.
    fn alone(at: Range<usize>) -> Self {
        Self {
            flow: Flow::default(),
            common: Common::default(),
            total: at.len(),
            first: at,
            size: 0,
            count: 1,
            sequence: 0,
            id: 0,
            ends: 0,
            v4: false,
            tcp: false,
            ip_header: 0,
            header: 0,
            next: usize::MAX,
            last: usize::MAX,
            vnet: [0; VNET_LEN],
        }
    }

    #[inline]
    fn begun_by(packet: &Packet, at: Range<usize>) -> Self {
        Self {
            flow: packet.flow,
            common: packet.common,
            total: at.len(),
            first: at,
            size: packet.payload,
            count: 1,
            sequence: packet.sequence.wrapping_add(packet.payload.into()),
            id: packet.id.wrapping_add(1),
            ends: packet.ends,
            v4: packet.v4,
            tcp: packet.tcp,
            ip_header: packet.ip_header,
            header: packet.header,
            next: usize::MAX,
            last: usize::MAX,
            vnet: [0; VNET_LEN],
        }
    }

    /// Whether a joinable packet of the group's flow goes on where the group ends.
    #[inline]
    fn takes(&self, packet: &Packet, arena: &[u8], bytes: &[u8]) -> bool {
        if self.common != packet.common
            || packet.payload > self.size
            || self.total + usize::from(packet.payload) > MAX_PACKET
            || self.count >= MAX_JOINED
            || (packet.counts && packet.id != self.id)
        {
            return false;
        }
        if !self.tcp {
            return true;
        }
        // The header's length is among what is common, so that the options begin and end at the same places.
        let options = usize::from(packet.ip_header) + TCP_HEADER..usize::from(packet.header);
        let same_options = options.is_empty()
            || arena.get(self.first.clone()).and_then(|first| first.get(options.clone()))
                == bytes.get(options);
        packet.sequence == self.sequence && same_options
    }

    /// Takes the packet in; `false` when it is the last.
    #[inline]
    fn join(&mut self, packet: &Packet) -> bool {
        self.count += 1;
        self.total += usize::from(packet.payload);
        self.sequence = packet.sequence.wrapping_add(packet.payload.into());
        self.id = packet.id.wrapping_add(1);
        self.ends = packet.ends;
        packet.payload == self.size && packet.ends == 0 && self.count < MAX_JOINED
    }

    /// Makes the header of the first packet that of the joined one, and the header of the TUN device.
    fn write_header(&mut self, arena: &mut [u8]) -> Option<()> {
        let packet = arena.get_mut(self.first.clone())?;
        let ip_header = usize::from(self.ip_header);
        let (ip, transport) = packet.split_at_mut_checked(ip_header)?;
        let addresses = if self.v4 {
            let ip: &mut [u8; IPV4_HEADER] = ip.first_chunk_mut()?;
            [ip[2], ip[3]] = (self.total as u16).to_be_bytes();
            [ip[10], ip[11]] = [0; 2];
            let checksum = Sum::default().bytes(ip).finish();
            [ip[10], ip[11]] = checksum.to_be_bytes();
            ip.get(12..20)?
        } else {
            set_field(ip, 4, ((self.total - IPV6_HEADER) as u16).to_be_bytes())?;
            ip.get(8..40)?
        };
        let length = self.total - ip_header;
        let protocol = if self.tcp { TCP } else { UDP };
        let pseudo = Sum::pseudo(addresses, protocol, length as u32).fold().to_be_bytes();
        let csum_offset = if self.tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        set_field(transport, csum_offset.into(), pseudo)?;
        if self.tcp {
            let flags = u16::from_be_bytes(field(transport, 12)?) | self.ends;
            set_field(transport, 12, flags.to_be_bytes())?;
        } else {
            set_field(transport, 4, (length as u16).to_be_bytes())?;
        }
        let vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: match (self.tcp, self.v4) {
                (true, true) => GSO_TCPV4,
                (true, false) => GSO_TCPV6,
                (false, _) => GSO_UDP_L4,
            },
            hdr_len: self.header.into(),
            gso_size: self.size,
            csum_start: self.ip_header.into(),
            csum_offset,
        };
        self.vnet = vnet.encode();
        Some(())
    }
}
