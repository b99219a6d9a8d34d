//! The header that stands in front of each packet of a TUN device with `IFF_VNET_HDR`: `struct
//! virtio_net_hdr` of `linux/virtio_net.h`, ten bytes, numbers as the machine has them.

use super::field;

/// Bytes of the header.
pub const VNET_LEN: usize = 10;

/// Bit of [`VnetHeader::flags`]: the checksum at `csum_start + csum_offset` is not finished yet.
pub const NEEDS_CSUM: u8 = 1;

/// [`VnetHeader::gso_type`]: an ordinary packet.
pub const GSO_NONE: u8 = 0;
/// [`VnetHeader::gso_type`]: TCP over IPv4, to be cut.
pub const GSO_TCPV4: u8 = 1;
/// [`VnetHeader::gso_type`]: TCP over IPv6, to be cut.
pub const GSO_TCPV6: u8 = 4;
/// [`VnetHeader::gso_type`]: UDP over either, to be cut into datagrams.
pub const GSO_UDP_L4: u8 = 5;
/// Bit of [`VnetHeader::gso_type`]: the packet has TCP's CWR set.
pub const GSO_ECN: u8 = 0x80;

/// How a packet is to be cut, and what is left to do for its checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], or bits that do not matter here.
    pub flags: u8,
    /// One of [`GSO_NONE`], [`GSO_TCPV4`], [`GSO_TCPV6`] and [`GSO_UDP_L4`], perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of the headers of IP and TCP or UDP together. A hint only.
    pub hdr_len: u16,
    /// Bytes of payload in each packet, the last one's aside.
    pub gso_size: u16,
    /// Where the bytes that are summed up begin: the header of TCP or UDP.
    pub csum_start: u16,
    /// Where the checksum is to be written, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Reads the header in front of a packet; `None` when there are too few bytes.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = field::<VNET_LEN>(bytes, 0)?;
        Some(Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            csum_start: u16::from_ne_bytes([e, f]),
            csum_offset: u16::from_ne_bytes([g, h]),
        })
    }

    /// The header's bytes.
    #[inline]
    pub fn encode(&self) -> [u8; VNET_LEN] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }
}
