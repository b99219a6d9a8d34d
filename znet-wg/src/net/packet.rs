//! The little that has to be known of IP packets.

use std::net::IpAddr;

/// Largest packet in bytes, of the overlay and, with 32 bytes more, of the underlay.
pub const MAX_PACKET: usize = 65_535;

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
                let length = u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?) as usize;
                let header = usize::from(packet.first()? & 0x0f) * 4;
                if header < 20 || length < header || length > packet.len() {
                    return None;
                }
                let source = <[u8; 4]>::try_from(packet.get(12..16)?).ok()?;
                let destination = <[u8; 4]>::try_from(packet.get(16..20)?).ok()?;
                Some(Self { source: source.into(), destination: destination.into() })
            }
            6 => {
                let payload = u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?) as usize;
                if payload.saturating_add(40) > packet.len() {
                    return None;
                }
                let source = <[u8; 16]>::try_from(packet.get(8..24)?).ok()?;
                let destination = <[u8; 16]>::try_from(packet.get(24..40)?).ok()?;
                Some(Self { source: source.into(), destination: destination.into() })
            }
            _ => None,
        }
    }
}
