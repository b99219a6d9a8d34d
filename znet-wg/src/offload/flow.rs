//! To which flow a packet belongs, and what it must have in common with its neighbours to be joined with
//! them: all of its headers that the joined packet can tell only once.

use super::checksum::Sum;
use super::coalesce::Offloads;
use super::{
    DONT_FRAGMENT, FRAGMENT, IPV4_HEADER, IPV6_HEADER, TCP, TCP_HEADER, UDP, UDP_HEADER, field, flag,
};

/// The source and destination of a flow, addresses and ports, and its protocol and IP version.
pub(super) type Flow = [u64; 5];

/// What joined packets have in common besides their flow and TCP's options.
pub(super) type Common = [u64; 3];

/// A packet of a flow, its headers read.
#[derive(Clone, Copy)]
pub(super) struct Packet {
    pub(super) flow: Flow,
    pub(super) common: Common,
    pub(super) v4: bool,
    pub(super) tcp: bool,
    /// Whether it may be in a group with others at all.
    pub(super) joinable: bool,
    /// Whether IPv4's identification has to count up: only of what may be fragmented does it mean anything
    /// (RFC 6864).
    pub(super) counts: bool,
    pub(super) id: u16,
    pub(super) sequence: u32,
    /// FIN and PSH.
    pub(super) ends: u16,
    pub(super) ip_header: u8,
    pub(super) header: u8,
    pub(super) payload: u16,
}

/// What a packet is to the coalescer.
pub(super) enum Kind {
    /// One of a flow.
    Flow(Packet),
    /// It belongs to no flow that could be joined.
    Alone,
    /// It may belong to any flow: a fragment, or with headers that are not read here.
    Unclear,
}

impl Kind {
    #[inline(always)]
    pub(super) fn of(bytes: &[u8], offloads: Offloads) -> Self {
        let packet = match bytes.first() {
            Some(0x45) => Self::of_v4(bytes, offloads),
            Some(version) if version >> 4 == 6 => Self::of_v6(bytes, offloads),
            _ => None,
        };
        packet.unwrap_or(Self::Unclear)
    }

    #[inline(always)]
    fn of_v4(bytes: &[u8], offloads: Offloads) -> Option<Self> {
        let (ip, transport) = bytes.split_first_chunk::<IPV4_HEADER>()?;
        let fragment = u16::from_be_bytes([ip[6], ip[7]]);
        if usize::from(u16::from_be_bytes([ip[2], ip[3]])) != bytes.len() || fragment & FRAGMENT != 0 {
            return None;
        }
        let protocol = ip[9];
        let wanted = match protocol {
            TCP => offloads.tcp4,
            UDP => offloads.udp,
            _ => false,
        };
        if !wanted {
            return Some(Self::Alone);
        }
        // Joined with others it would get a right one; alone it is dropped by whom it reaches.
        if Sum::default().bytes(ip).finish() != 0 {
            return None;
        }
        let mut packet = Packet::of(protocol == TCP, IPV4_HEADER, transport)?;
        packet.v4 = true;
        packet.counts = fragment & DONT_FRAGMENT == 0;
        packet.id = u16::from_be_bytes([ip[4], ip[5]]);
        packet.flow[0] = u64::from_ne_bytes(field(ip, 12)?);
        packet.flow[4] |= 4 << 40;
        // Type of service, "don't fragment" and its unused neighbour, time to live.
        packet.common[0] = u64::from(u32::from_be_bytes([ip[1], ip[6], ip[7], ip[8]]));
        Some(Self::Flow(packet))
    }

    #[inline(always)]
    fn of_v6(bytes: &[u8], offloads: Offloads) -> Option<Self> {
        let (ip, transport) = bytes.split_first_chunk::<IPV6_HEADER>()?;
        if usize::from(u16::from_be_bytes([ip[4], ip[5]])) != transport.len() {
            return None;
        }
        let protocol = ip[6];
        let wanted = match protocol {
            TCP => offloads.tcp6,
            UDP => offloads.udp,
            // Hop-by-hop options, route, fragment, authentication, destination options: anything may follow.
            0 | 43 | 44 | 51 | 60 => return None,
            _ => false,
        };
        if !wanted {
            return Some(Self::Alone);
        }
        let mut packet = Packet::of(protocol == TCP, IPV6_HEADER, transport)?;
        packet.flow[0] = u64::from_ne_bytes(field(ip, 8)?);
        packet.flow[1] = u64::from_ne_bytes(field(ip, 16)?);
        packet.flow[2] = u64::from_ne_bytes(field(ip, 24)?);
        packet.flow[3] = u64::from_ne_bytes(field(ip, 32)?);
        packet.flow[4] |= 6 << 40;
        // Traffic class and flow label, hop limit.
        packet.common[0] =
            u64::from(u32::from_be_bytes([ip[0], ip[1], ip[2], ip[3]])) << 8 | u64::from(ip[7]);
        Some(Self::Flow(packet))
    }
}

impl Packet {
    /// Reads all but what is IP's.
    #[inline(always)]
    fn of(tcp: bool, ip_header: usize, transport: &[u8]) -> Option<Self> {
        let ports = u64::from(u32::from_be_bytes(field(transport, 0)?));
        let mut packet = Self {
            flow: [0, 0, 0, 0, ports | u64::from(tcp) << 32],
            common: [0; 3],
            v4: false,
            tcp,
            joinable: false,
            counts: false,
            id: 0,
            sequence: 0,
            ends: 0,
            ip_header: ip_header as u8,
            header: 0,
            payload: 0,
        };
        if tcp {
            packet.read_tcp(transport)?;
        } else {
            packet.read_udp(transport)?;
        }
        Some(packet)
    }

    #[inline(always)]
    fn read_tcp(&mut self, transport: &[u8]) -> Option<()> {
        let tcp: &[u8; TCP_HEADER] = transport.first_chunk()?;
        let flags = u16::from_be_bytes([tcp[12], tcp[13]]);
        let header = usize::from(tcp[12] >> 4) * 4;
        if header < TCP_HEADER {
            return None;
        }
        // At most 65,535 bytes of IP packet.
        self.payload = transport.len().checked_sub(header)? as u16;
        self.header = self.ip_header + header as u8;
        self.sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        self.ends = flags & (flag::FIN | flag::PSH);
        // Acknowledgement; header length, flags, window; urgent pointer. Linux lets the last differ; it would
        // be lost.
        self.common[1] = u64::from_be_bytes([
            tcp[8],
            tcp[9],
            tcp[10],
            tcp[11],
            tcp[12],
            tcp[13] & !((flag::FIN | flag::PSH) as u8),
            tcp[14],
            tcp[15],
        ]);
        self.common[2] = u64::from(u16::from_be_bytes([tcp[18], tcp[19]]));
        self.joinable = self.payload > 0 && flags & (flag::SYN | flag::RST | flag::URG | flag::CWR) == 0;
        Some(())
    }

    #[inline(always)]
    fn read_udp(&mut self, transport: &[u8]) -> Option<()> {
        let udp: &[u8; UDP_HEADER] = transport.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        self.header = self.ip_header + UDP_HEADER as u8;
        self.payload = (transport.len() - UDP_HEADER) as u16;
        // A datagram without checksum would get one.
        self.joinable = self.payload > 0 && length == transport.len() && (udp[6], udp[7]) != (0, 0);
        Some(())
    }
}
