//! The little that has to be known of IP packets.

use std::net::IpAddr;

/// Largest packet in bytes, of the overlay and, with 32 bytes more, of the underlay.
pub const MAX_PACKET: usize = 65_535;
/// The two bits of congestion notification in a type of service or traffic class (RFC 3168).
const ECN: u8 = 0b11;
/// Congestion experienced.
pub(super) const CE: u8 = 0b11;
/// The sender takes congestion notifications: ECT(0).
const ECT0: u8 = 0b10;

/// Source and destination of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where it says it comes from.
    pub source: IpAddr,
    /// Where it wants to go.
    pub destination: IpAddr,
}

impl Addresses {
    /// Reads the header of an IPv4 or IPv6 packet; `None` when it is neither, or shorter than it says.
    pub fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header = packet.first_chunk::<20>()?;
                let [first, _, high, low, ..] = *header;
                let (length, header_length) =
                    (usize::from(u16::from_be_bytes([high, low])), usize::from(first & 0x0f) * 4);
                if header_length < 20 || length < header_length || length > packet.len() {
                    return None;
                }
                Self::in_header(header)
            }
            6 => {
                let header = packet.first_chunk::<40>()?;
                let [_, _, _, _, high, low, ..] = *header;
                if usize::from(u16::from_be_bytes([high, low])) + 40 > packet.len() {
                    return None;
                }
                Self::in_header(header)
            }
            _ => None,
        }
    }

    /// Reads the addresses alone: the length of a packet that is still to be split may be stale.
    pub fn in_header(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let source = packet.get(12..16)?.first_chunk::<4>()?;
                let destination = packet.get(16..20)?.first_chunk::<4>()?;
                Some(Self { source: (*source).into(), destination: (*destination).into() })
            }
            6 => {
                let source = packet.get(8..24)?.first_chunk::<16>()?;
                let destination = packet.get(24..40)?.first_chunk::<16>()?;
                Some(Self { source: (*source).into(), destination: (*destination).into() })
            }
            _ => None,
        }
    }
}

/// The type of service of a tunnel's datagram: nothing of the packet's class shows, but congestion can be notified, as
/// RFC 6040 has it for its normal mode and Linux does.
pub(super) fn outer_tos(packet: &[u8]) -> u8 {
    match traffic_class(packet) & ECN {
        CE => ECT0,
        other => other,
    }
}

/// Passes on that a datagram experienced congestion, if the packet in it can be told. Whether the packet tells it now.
pub(super) fn note_congestion(outer_tos: u8, packet: &mut [u8]) -> bool {
    match traffic_class(packet) & ECN {
        _ if outer_tos & ECN != CE => return false,
        0 => return false,
        CE => return true,
        _ => {}
    }
    match packet {
        [version, tos, _, _, _, _, _, _, _, _, high, low, ..] if *version >> 4 == 4 => {
            let old = u16::from_be_bytes([*version, *tos]);
            *tos |= CE;
            let new = u16::from_be_bytes([*version, *tos]);
            // RFC 1624, equation 3.
            let sum = u32::from(!u16::from_be_bytes([*high, *low])) + u32::from(!old) + u32::from(new);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            [*high, *low] = (!(sum as u16)).to_be_bytes();
        }
        [version, class, ..] if *version >> 4 == 6 => *class |= CE << 4,
        _ => return false,
    }
    true
}

fn traffic_class(packet: &[u8]) -> u8 {
    match packet {
        [version, tos, ..] if version >> 4 == 4 => *tos,
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn v4(tos: u8) -> Vec<u8> {
        let mut packet = vec![0x45, tos, 0, 20, 1, 2, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        packet
    }

    #[test]
    fn the_class_of_a_packet_stays_inside_and_congestion_can_be_notified() {
        assert_eq!([0xb8, 0x01, 0x02, 0x03].map(|tos| outer_tos(&v4(tos))), [0, 1, 2, 2]);
        let mut v6 = vec![0u8; 40];
        (v6[0], v6[1]) = (0x6b, 0x90);
        assert_eq!(outer_tos(&v6), 1);
    }

    #[test]
    fn congestion_on_the_way_reaches_the_packet_if_it_can_be_told() {
        for (inner, outer, expected) in [(0x02, 3, 0x03), (0x01, 3, 0x03), (0xb8, 3, 0xb8), (0x02, 2, 0x02)] {
            let mut packet = v4(inner);
            note_congestion(outer, &mut packet);
            assert_eq!(packet, v4(expected), "{inner:x} {outer:x}");
        }
        let mut v6 = vec![0u8; 40];
        (v6[0], v6[1]) = (0x60, 0x20);
        note_congestion(3, &mut v6);
        assert_eq!((v6[0], v6[1]), (0x60, 0x30));
    }

    #[test]
    fn a_packet_that_says_it_is_longer_than_it_is_has_no_addresses() {
        let packet = v4(0);
        assert!(Addresses::of(&packet).is_some());
        assert!((0..20).all(|len| Addresses::of(&packet[..len]).is_none()));
        let mut v6 = vec![0u8; 48];
        (v6[0], v6[5]) = (0x60, 8);
        assert!(Addresses::of(&v6).is_some());
        assert!((0..48).all(|len| Addresses::of(&v6[..len]).is_none()));
    }
}
