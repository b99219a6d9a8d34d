//! Packets built byte by byte from what they say, with checksums as slow and plain as RFC 1071 has them.

use proptest::prelude::*;
use znet_wg::offload::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use znet_wg::offload::{Coalescer, Malformed, Offloads, PADDING, VnetHeader, split};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;
pub(crate) const MTU: usize = 1420;

/// What stands behind the packets of a test, and has to stand there afterwards.
pub(crate) const BEHIND: u8 = 0xa5;

/// All that a packet says.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) v6: bool,
    pub(crate) tcp: bool,
    pub(crate) port: u16,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) fragment: u16,
    pub(crate) id: u16,
    pub(crate) sequence: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) flags: u8,
    pub(crate) options: Vec<u8>,
    /// Options of IPv4, or whole extension headers of IPv6 (destination options).
    pub(crate) ip_options: Vec<u8>,
    pub(crate) no_checksum: bool,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn plain(v6: bool, tcp: bool, payload: Vec<u8>) -> Spec {
    Spec {
        v6,
        tcp,
        port: 4000,
        tos: 0,
        ttl: 64,
        fragment: 0x4000,
        id: 7,
        sequence: 1000,
        ack: 2000,
        window: 500,
        urgent: 0,
        flags: ACK,
        options: Vec::new(),
        ip_options: Vec::new(),
        no_checksum: false,
        payload,
    }
}

/// The folded sum of 16-bit words, one after another.
pub(crate) fn slow_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

impl Spec {
    fn addresses(&self) -> Vec<u8> {
        match self.v6 {
            true => [[0xfd; 15].as_slice(), &[1], &[0xfd; 15], &[2]].concat(),
            false => vec![10, 0, 0, 1, 10, 0, 0, 2],
        }
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    pub(crate) fn ip_header(&self) -> usize {
        self.ip_options.len() + if self.v6 { 40 } else { 20 }
    }

    pub(crate) fn header(&self) -> usize {
        self.ip_header() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    /// The pseudo header, and TCP's or UDP's with a checksum of zero, and the payload.
    fn transport(&self) -> (Vec<u8>, Vec<u8>) {
        let mut bytes = [self.port.to_be_bytes(), [0x14, 0x51]].concat();
        if self.tcp {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.ack.to_be_bytes());
            bytes.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags]);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(self.urgent.to_be_bytes());
            bytes.extend(&self.options);
        } else {
            bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(&self.payload);
        let mut pseudo = self.addresses();
        pseudo.extend((bytes.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol()]);
        (pseudo, bytes)
    }

    fn with_checksum(&self, finish: impl Fn(&[u8], &[u8]) -> u16) -> Vec<u8> {
        let (pseudo, mut transport) = self.transport();
        let checksum = finish(&pseudo, &transport);
        let at = if self.tcp { 16 } else { 6 };
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        let length = self.ip_header() + transport.len();
        let mut packet = Vec::new();
        if self.v6 {
            packet.extend([0x60 | self.tos >> 4, self.tos << 4, 0x12, 0x34]);
            packet.extend(((length - 40) as u16).to_be_bytes());
            packet.extend([if self.ip_options.is_empty() { self.protocol() } else { 60 }, self.ttl]);
            packet.extend(self.addresses());
            packet.extend(&self.ip_options);
        } else {
            packet.extend([0x40 | (self.ip_header() / 4) as u8, self.tos]);
            packet.extend((length as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend(self.fragment.to_be_bytes());
            packet.extend([self.ttl, self.protocol(), 0, 0]);
            packet.extend(self.addresses());
            packet.extend(&self.ip_options);
            let checksum = !slow_sum(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet.extend(transport);
        packet
    }

    /// The packet with all checksums right.
    pub(crate) fn build(&self) -> Vec<u8> {
        self.with_checksum(|pseudo, transport| match !slow_sum(&[pseudo, transport].concat()) {
            _ if self.no_checksum => 0,
            0 if !self.tcp => 0xffff,
            checksum => checksum,
        })
    }

    /// The packet as a kernel hands it out that leaves its checksum to be finished.
    pub(crate) fn build_unfinished(&self) -> Vec<u8> {
        self.with_checksum(|pseudo, _| slow_sum(pseudo))
    }

    pub(crate) fn vnet(&self, gso_size: u16) -> VnetHeader {
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: match (self.tcp, self.v6) {
                (true, false) => GSO_TCPV4,
                (true, true) => GSO_TCPV6,
                (false, _) => GSO_UDP_L4,
            },
            hdr_len: self.header() as u16,
            gso_size,
            csum_start: self.ip_header() as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }

    /// The packets that this one is to be cut into.
    pub(crate) fn cut(&self, gso_size: usize) -> Vec<Vec<u8>> {
        let mut chunks: Vec<&[u8]> = self.payload.chunks(gso_size).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        let last = chunks.len() - 1;
        let packet = |(nth, chunk): (usize, &&[u8])| {
            let mut spec = Self { payload: chunk.to_vec(), ..self.clone() };
            spec.id = spec.id.wrapping_add(nth as u16);
            spec.sequence = spec.sequence.wrapping_add((nth * gso_size) as u32);
            spec.flags &= if nth == 0 { 0xff } else { !CWR };
            spec.flags &= if nth == last { 0xff } else { !(FIN | PSH) };
            spec.build()
        };
        chunks.iter().enumerate().map(packet).collect()
    }
}

/// Any packet with a payload of up to so many bytes.
pub(crate) fn any_spec(payload: usize) -> impl Strategy<Value = Spec> {
    let words = |most: usize| prop::collection::vec(any::<[u8; 4]>(), 0..=most);
    let numbers = any::<(u8, u8, bool, u16, u32, u32, u16, u8)>();
    (any::<(bool, bool)>(), numbers, words(10), 0..4usize, prop::collection::vec(any::<u8>(), 0..=payload))
        .prop_map(|((v6, tcp), (tos, ttl, df, id, sequence, ack, window, flags), options, extra, payload)| {
            Spec {
                tos,
                ttl,
                fragment: if df { 0x4000 } else { 0 },
                id,
                sequence,
                ack,
                window,
                flags,
                options: options.concat(),
                ip_options: match v6 {
                    // Destination options with nothing but padding (PadN).
                    true => (0..extra)
                        .flat_map(|n| {
                            [
                                if n + 1 < extra {
                                    60
                                } else if tcp {
                                    6
                                } else {
                                    17
                                },
                                0,
                                1,
                                4,
                                0,
                                0,
                                0,
                                0,
                            ]
                        })
                        .collect(),
                    false => vec![1; extra * 4],
                },
                ..plain(v6, tcp, payload)
            }
        })
}

/// Splits a packet as it comes and checks what surrounds each segment.
pub(crate) fn split_all(vnet: &VnetHeader, packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut buffer = packet.to_vec();
    buffer.resize(packet.len() + PADDING + 5, BEHIND);
    let mut segments = Vec::new();
    let count = split(vnet, &mut buffer, packet.len(), mtu, |segment| {
        let padded = segment.len.next_multiple_of(16).min(mtu.max(segment.len));
        assert_eq!(segment.padded.len(), padded);
        assert!(segment.padded[segment.len..].iter().all(|&byte| byte == 0), "padding is zero");
        segments.push(segment.padded[..segment.len].to_vec());
    });
    assert!(buffer[packet.len()..].iter().all(|&byte| byte == BEHIND), "what is behind is restored");
    assert_eq!(count.unwrap_or(0), segments.len());
    count.map(|_| segments)
}

/// A packet as it was handed out, and of how many it was made.
pub(crate) type Joined = (VnetHeader, Vec<u8>, usize);

/// Lays packets in an arena, joins them and returns what is handed out.
pub(crate) fn join_all(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<Joined> {
    let mut arena = Vec::new();
    for packet in packets {
        let at = arena.len()..arena.len() + packet.len();
        arena.extend(packet);
        arena.extend([BEHIND; 16]);
        coalescer.push(&arena, at);
    }
    let mut joined = Vec::new();
    coalescer.drain(&mut arena, |slices, packets| {
        let vnet = VnetHeader::parse(&slices[0]).unwrap();
        assert_eq!(slices.len(), packets + 1);
        joined.push((vnet, slices[1..].iter().flat_map(|slice| slice.to_vec()).collect(), packets));
    });
    assert!(coalescer.is_empty());
    joined
}

pub(crate) fn everything() -> Coalescer {
    Coalescer::new(Offloads { tcp4: true, tcp6: true, udp: true })
}
