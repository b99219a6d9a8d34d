//! Packets that are right in all but what an input says, and what two packets have in common.

use std::net::IpAddr;

use znet_wg::offload::vnet::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use znet_wg::offload::{PADDING, VnetHeader, split};

/// TCP's ACK, the flag of every packet of a flow.
const ACK: u8 = 0x10;

/// What a packet says.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) tcp: bool,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
    pub(crate) fragment: u16,
    pub(crate) id: u16,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
}

impl Spec {
    /// A packet of a flow between two addresses of one family.
    pub(crate) fn new(tcp: bool, source: IpAddr, destination: IpAddr) -> Self {
        Self { tcp, source, destination, port: 7, fragment: 0x4000, id: 1, sequence: 1, flags: ACK }
    }

    fn addresses(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
            _ => panic!("both addresses are of one family"),
        }
    }

    fn v6(&self) -> bool {
        self.source.is_ipv6()
    }

    fn ip_header(&self) -> usize {
        if self.v6() { 40 } else { 20 }
    }

    /// The packet, without a checksum that is right.
    pub(crate) fn build(&self, payload: &[u8]) -> Vec<u8> {
        let mut transport = [self.port.to_be_bytes(), [0x14, 0x51]].concat();
        if self.tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend([0, 0, 0, 9, 0x50, self.flags, 1, 0, 0, 0, 0, 0]);
        } else {
            transport.extend(((8 + payload.len()) as u16).to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(payload);
        let length = self.ip_header() + transport.len();
        let protocol = if self.tcp { 6 } else { 17 };
        let mut packet = Vec::with_capacity(length + PADDING);
        if self.v6() {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(((length - 40) as u16).to_be_bytes());
            packet.extend([protocol, 64]);
        } else {
            packet.extend([0x45, 0]);
            packet.extend((length as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend(self.fragment.to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
        }
        packet.extend(self.addresses());
        packet.extend(transport);
        packet
    }

    /// How the packet is to be cut.
    pub(crate) fn vnet(&self, gso_size: u16) -> VnetHeader {
        let gso_type = match (self.tcp, self.v6()) {
            _ if gso_size == 0 => GSO_NONE,
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        };
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: 0,
            gso_size,
            csum_start: self.ip_header() as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }
}

/// The ones' complement sum of 16-bit words (RFC 1071), slow and plain.
fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, pair| {
        let (sum, carry) =
            sum.overflowing_add(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum + u16::from(carry)
    })
}

/// What of a packet is read by whoever joins packets.
pub(crate) struct Layout {
    ip_header: usize,
    tcp: bool,
}

impl Layout {
    /// Only of TCP and UDP right behind an IP header without options, and of no fragment.
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        let (ip_header, protocol, length) = match packet.first()? {
            0x45 if packet.len() >= 20 && packet[6] & 0x3f == 0 && packet[7] == 0 => {
                (20, packet[9], usize::from(u16::from_be_bytes([packet[2], packet[3]])))
            }
            first if first >> 4 == 6 && packet.len() >= 40 => {
                (40, packet[6], 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])))
            }
            _ => return None,
        };
        let tcp = match protocol {
            6 => true,
            17 => false,
            _ => return None,
        };
        let enough = length == packet.len() && packet.len() >= ip_header + if tcp { 20 } else { 8 };
        enough.then_some(Self { ip_header, tcp })
    }

    /// Addresses, protocol and ports: packets that have these in common must not change places.
    pub(crate) fn flow(&self, packet: &[u8]) -> Vec<u8> {
        let addresses = if self.ip_header == 20 { &packet[12..20] } else { &packet[8..40] };
        [addresses, &packet[self.ip_header..self.ip_header + 4], &[self.tcp.into()]].concat()
    }

    fn checksum(&self) -> usize {
        self.ip_header + if self.tcp { 16 } else { 6 }
    }

    /// Whether it is UDP without a checksum, which nothing may be joined with.
    pub(crate) fn unsummed(&self, packet: &[u8]) -> bool {
        !self.tcp && packet[self.checksum()..self.checksum() + 2] == [0, 0]
    }

    /// Makes the checksum of TCP or UDP what it should be.
    pub(crate) fn finish(&self, packet: &mut [u8]) {
        let at = self.checksum();
        packet[at..at + 2].fill(0);
        let addresses = if self.ip_header == 20 { &packet[12..20] } else { &packet[8..40] };
        let length = (packet.len() - self.ip_header) as u32;
        let mut summed =
            [addresses, &length.to_be_bytes(), &[0, 0, 0, if self.tcp { 6 } else { 17 }]].concat();
        summed.extend(&packet[self.ip_header..]);
        let checksum = match !sum(&summed) {
            0 if !self.tcp => 0xffff,
            checksum => checksum,
        };
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Makes the checksum of an IPv4 header without options right.
pub(crate) fn finish_ipv4(packet: &mut [u8]) {
    if packet.first() == Some(&0x45) && packet.len() >= 20 {
        packet[10..12].fill(0);
        let checksum = !sum(&packet[..20]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// A packet without what may become another on its way: IPv4's identification and checksum, the checksum of what is
/// joined, and the notice of congestion.
pub(crate) fn lasting(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(layout) = Layout::of(&packet) {
        let at = layout.checksum();
        packet[at..at + 2].fill(0);
    }
    match packet.first() {
        Some(version) if version >> 4 == 4 && packet.len() >= 20 => {
            packet[1] &= !3;
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        Some(version) if version >> 4 == 6 && packet.len() >= 40 => packet[1] &= !0x30,
        _ => {}
    }
    packet
}

/// Cuts a packet that was read or joined, and says how many it became; none when it is malformed.
pub(crate) fn cut(vnet: &VnetHeader, packet: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let mut buffer = packet.to_vec();
    buffer.resize(packet.len() + PADDING, 0xff);
    let mut segments = Vec::new();
    let count = split(vnet, &mut buffer, packet.len(), mtu, |segment| {
        segments.push(segment.padded[..segment.len].to_vec());
    });
    assert_eq!(count.unwrap_or_default(), segments.len(), "all or nothing is handed out");
    assert!(buffer[packet.len()..].iter().all(|byte| *byte == 0xff), "what is behind a packet is restored");
    count.ok().map(|_| segments)
}
