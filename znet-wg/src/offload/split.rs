//! One big packet to many, on the way into a tunnel.
//!
//! Nothing is moved: the header of each packet is written right before its payload, over payload that has
//! gone already. So the bytes of a packet are only good until the next one is made.
//!
//! What is read comes from the kernel, yet a container has much say in it. Every field is checked, and what
//! does not fit is dropped whole.

use super::checksum::Sum;
use super::vnet::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader};
use super::{
    FRAGMENT, IPV4_HEADER, IPV6_HEADER, TCP, TCP_CHECKSUM, TCP_HEADER, UDP, UDP_CHECKSUM, UDP_HEADER, field,
    flag, set_field,
};
use crate::net::MAX_PACKET;

/// Bytes that must be usable behind a packet that is split: padding to the next 16-byte step is written there
/// and the bytes restored.
pub const PADDING: usize = 16;

/// Most packets that one big packet becomes. Linux takes no segment size of a TCP peer below 48 bytes, of
/// which time stamps take 12 (`tcp_min_snd_mss`): 36 in each make 1,820 of the largest packet. Whatever asks
/// for more was made to burden the engine.
pub const MAX_SEGMENTS: usize = 2048;

/// Most extension headers between the headers of IPv6 and TCP or UDP: those that may precede, each once (RFC
/// 8200 4.1), destination options twice.
const MAX_EXTENSIONS: usize = 4;

/// Why a packet cannot be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends within its headers.
    #[error("the packet is shorter than its headers")]
    Truncated,
    /// IP has no packets of this length.
    #[error("the packet is longer than {MAX_PACKET} bytes")]
    Long,
    /// The caller left no room behind it.
    #[error("there are fewer than {PADDING} bytes behind the packet")]
    Room,
    /// Neither IPv4 nor IPv6.
    #[error("the packet is neither IPv4 nor IPv6")]
    Version,
    /// IP's header tells another length.
    #[error("the packet has not the length that its header tells")]
    Length,
    /// A way to cut that is not known here.
    #[error("packets of GSO type {0:#04x} are not known")]
    GsoType(u8),
    /// The packet is not what it is to be cut as.
    #[error("the packet's protocol is not that of its GSO type")]
    Protocol,
    /// A fragment cannot be cut.
    #[error("the packet is a fragment")]
    Fragment,
    /// No payload in each packet, or more packets than [`MAX_SEGMENTS`].
    #[error("a segment size of {0} is none to cut this packet by")]
    SegmentSize(u16),
    /// The place of the checksum is none in this packet.
    #[error("the checksum has no place in the packet")]
    Checksum,
}

/// One packet, ready to be encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The packet, and zeroes to the next step of 16 bytes, but not beyond the MTU (white paper 5.4.6).
    pub padded: &'a [u8],
    /// Bytes of the packet.
    pub len: usize,
}

/// Splits what was read from a TUN device into packets, in place, and returns how many they were.
///
/// `buffer[..len]` is the IP packet (behind the header of the TUN device), and [`PADDING`] bytes more must be
/// there. What `each` is given must be used up when it returns. Nothing was handed out when the packet is
/// malformed.
#[inline]
pub fn split(
    header: &VnetHeader,
    buffer: &mut [u8],
    len: usize,
    mtu: usize,
    mut each: impl FnMut(Segment<'_>),
) -> Result<usize, Malformed> {
    if len > MAX_PACKET {
        return Err(Malformed::Long);
    }
    let buffer = buffer.get_mut(..len + PADDING).ok_or(Malformed::Room)?;
    let packet = buffer.get_mut(..len).ok_or(Malformed::Room)?;
    if header.gso_type == GSO_NONE {
        finish_checksum(header, packet)?;
        hand_out(buffer, len, mtu, &mut each).ok_or(Malformed::Room)?;
        return Ok(1);
    }
    let cutter = Cutter::new(header, packet)?;
    for nth in 0..cutter.segments {
        let segment = cutter.segment(buffer, nth).ok_or(Malformed::Truncated)?;
        let bytes = segment.len() - PADDING;
        hand_out(segment, bytes, mtu, &mut each).ok_or(Malformed::Room)?;
    }
    Ok(cutter.segments)
}

/// Pads a packet, hands it out and restores what the padding overwrote.
#[inline(always)]
fn hand_out(buffer: &mut [u8], len: usize, mtu: usize, each: &mut impl FnMut(Segment<'_>)) -> Option<()> {
    let padded = len.next_multiple_of(PADDING).min(mtu.max(len));
    let behind = field::<PADDING>(buffer, len)?;
    set_field(buffer, len, [0; PADDING])?;
    each(Segment { padded: buffer.get(..padded)?, len });
    set_field(buffer, len, behind)
}

/// Checks an ordinary packet and finishes its checksum when that is left to do.
fn finish_checksum(header: &VnetHeader, packet: &mut [u8]) -> Result<(), Malformed> {
    let ip_header = match Version::of(packet)? {
        Version::V4 { header, length } if length == packet.len() => header,
        Version::V6 { length } if length == packet.len() => IPV6_HEADER,
        _ => return Err(Malformed::Length),
    };
    if header.flags & NEEDS_CSUM == 0 {
        return Ok(());
    }
    let start = usize::from(header.csum_start);
    let at = usize::from(header.csum_offset);
    let summed = packet.get_mut(start..).filter(|_| start >= ip_header).ok_or(Malformed::Checksum)?;
    if at + 2 > summed.len() {
        return Err(Malformed::Checksum);
    }
    // The sum of the pseudo header is in the checksum's field and so part of what is summed up.
    let sum = Sum::default().bytes(summed);
    let checksum = if header.csum_offset == UDP_CHECKSUM { sum.finish_udp() } else { sum.finish() };
    set_field(summed, at, checksum.to_be_bytes()).ok_or(Malformed::Checksum)
}

/// What an IP header tells.
enum Version {
    /// IPv4: bytes of the header and of the packet.
    V4 { header: usize, length: usize },
    /// IPv6: bytes of the packet.
    V6 { length: usize },
}

impl Version {
    #[inline]
    fn of(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().ok_or(Malformed::Truncated)? >> 4 {
            4 => {
                let ip: &[u8; IPV4_HEADER] = packet.first_chunk().ok_or(Malformed::Truncated)?;
                let header = usize::from(ip[0] & 0x0f) * 4;
                if header < IPV4_HEADER || header > packet.len() {
                    return Err(Malformed::Truncated);
                }
                Ok(Self::V4 { header, length: u16::from_be_bytes([ip[2], ip[3]]).into() })
            }
            6 => {
                let ip: &[u8; IPV6_HEADER] = packet.first_chunk().ok_or(Malformed::Truncated)?;
                Ok(Self::V6 { length: usize::from(u16::from_be_bytes([ip[4], ip[5]])) + IPV6_HEADER })
            }
            _ => Err(Malformed::Version),
        }
    }
}

/// All that is the same for each packet of a big one. The sums leave out what differs from packet to packet.
struct Cutter {
    v4: bool,
    tcp: bool,
    /// Bytes of IP's header: where TCP or UDP begins.
    ip_header: usize,
    /// Bytes of all headers: where the payload begins.
    header: usize,
    payload: usize,
    /// Bytes of payload in each packet, the last one's aside.
    size: usize,
    segments: usize,
    ip_sum: Sum,
    sum: Sum,
    /// IPv4's identification of the first packet.
    id: u16,
    /// TCP's sequence number of the first packet.
    sequence: u32,
    /// TCP's flags, with the header's length.
    flags: u16,
}

impl Cutter {
    /// Checks a big packet and prepares its header. It is only changed when nothing is wrong with it.
    fn new(vnet: &VnetHeader, packet: &mut [u8]) -> Result<Self, Malformed> {
        let (v4, tcp) = Self::kind(vnet, packet)?;
        let ip_header = Self::ip_header(vnet, packet, if tcp { TCP } else { UDP })?;
        let transport = packet.get(ip_header..).ok_or(Malformed::Truncated)?;
        let transport_header = if tcp {
            let offset = *transport.get(12).ok_or(Malformed::Truncated)?;
            let bytes = usize::from(offset >> 4) * 4;
            if bytes < TCP_HEADER { Err(Malformed::Truncated) } else { Ok(bytes) }?
        } else {
            UDP_HEADER
        };
        let payload = transport.len().checked_sub(transport_header).ok_or(Malformed::Truncated)?;
        let size = usize::from(vnet.gso_size);
        // A packet without payload is handed out as it is.
        let segments = payload.checked_div(size).map(|_| payload.div_ceil(size).max(1));
        let segments = segments.filter(|&segments| segments <= MAX_SEGMENTS);
        let mut cutter = Self {
            v4,
            tcp,
            ip_header,
            header: ip_header + transport_header,
            payload,
            size,
            segments: segments.ok_or(Malformed::SegmentSize(vnet.gso_size))?,
            ip_sum: Sum::default(),
            sum: Sum::default(),
            id: 0,
            sequence: 0,
            flags: 0,
        };
        cutter.prepare(packet).ok_or(Malformed::Truncated)?;
        Ok(cutter)
    }

    /// Whether a packet is IPv4, and whether TCP, when it is what the header of the TUN device says.
    fn kind(vnet: &VnetHeader, packet: &[u8]) -> Result<(bool, bool), Malformed> {
        // The length is not looked at: it is written anew, and Linux leaves it zero when it does not fit.
        let v4 = matches!(Version::of(packet)?, Version::V4 { .. });
        let tcp = match (vnet.gso_type & !GSO_ECN, v4) {
            (GSO_TCPV4, true) | (GSO_TCPV6, false) => true,
            (GSO_TCPV4 | GSO_TCPV6, _) => return Err(Malformed::Protocol),
            (GSO_UDP_L4, _) if vnet.gso_type & GSO_ECN == 0 => false,
            _ => return Err(Malformed::GsoType(vnet.gso_type)),
        };
        // Who wants a packet cut must leave its checksum to who cuts it (virtio 1.2, 5.1.6.2.1).
        let offset = if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        if vnet.flags & NEEDS_CSUM == 0 || vnet.csum_offset != offset {
            return Err(Malformed::Checksum);
        }
        Ok((v4, tcp))
    }

    /// Bytes of IP's header with all that belongs to it, when `protocol` follows where the checksum begins.
    fn ip_header(vnet: &VnetHeader, packet: &[u8], protocol: u8) -> Result<usize, Malformed> {
        let start = usize::from(vnet.csum_start);
        match Version::of(packet)? {
            Version::V4 { header, .. } => {
                let ip: &[u8; IPV4_HEADER] = packet.first_chunk().ok_or(Malformed::Truncated)?;
                if ip[9] != protocol {
                    return Err(Malformed::Protocol);
                }
                if u16::from_be_bytes([ip[6], ip[7]]) & FRAGMENT != 0 {
                    return Err(Malformed::Fragment);
                }
                if start != header {
                    return Err(Malformed::Checksum);
                }
            }
            Version::V6 { .. } => {
                let mut next = *packet.get(6).ok_or(Malformed::Truncated)?;
                let mut at = IPV6_HEADER;
                for _ in 0..MAX_EXTENSIONS {
                    if at >= start {
                        break;
                    }
                    let [following, length, _, segments_left] =
                        field(packet, at).ok_or(Malformed::Truncated)?;
                    match next {
                        // Hop-by-hop options, destination options.
                        0 | 60 => {}
                        // A route that is not at its end has another destination in the checksum.
                        43 if segments_left == 0 => {}
                        44 => return Err(Malformed::Fragment),
                        _ => return Err(Malformed::Protocol),
                    }
                    next = following;
                    at += (usize::from(length) + 1) * 8;
                }
                if at != start {
                    return Err(Malformed::Checksum);
                }
                if next != protocol {
                    return Err(Malformed::Protocol);
                }
            }
        }
        Ok(start)
    }

    /// Takes out of the header what differs from packet to packet, and sums up the rest.
    fn prepare(&mut self, packet: &mut [u8]) -> Option<()> {
        let (ip, transport) = packet.split_at_mut_checked(self.ip_header)?;
        let addresses = if self.v4 {
            self.id = u16::from_be_bytes(field(ip, 4)?);
            set_field(ip, 2, [0; 4])?;
            set_field(ip, 10, [0; 2])?;
            self.ip_sum = Sum::default().bytes(ip);
            ip.get(12..20)?
        } else {
            ip.get(8..40)?
        };
        let header = transport.get_mut(..self.header - self.ip_header)?;
        if self.tcp {
            self.sequence = u32::from_be_bytes(field(header, 4)?);
            self.flags = u16::from_be_bytes(field(header, 12)?);
            set_field(header, 4, [0; 4])?;
            set_field(header, 12, [0; 2])?;
            set_field(header, 16, [0; 2])?;
        } else {
            set_field(header, 4, [0; 4])?;
        }
        let protocol = if self.tcp { TCP } else { UDP };
        self.sum = Sum::pseudo(addresses, protocol, 0).bytes(header);
        Some(())
    }

    /// Makes one of the packets, in order, and returns it with [`PADDING`] bytes behind.
    #[inline(always)]
    fn segment<'a>(&self, buffer: &'a mut [u8], nth: usize) -> Option<&'a mut [u8]> {
        let start = nth * self.size;
        let payload = self.size.min(self.payload - start);
        let length = self.header + payload;
        if let Some(previous) = start.checked_sub(self.size).filter(|_| nth > 0) {
            buffer.copy_within(previous..previous + self.header, start);
        }
        let segment = buffer.get_mut(start..start + length + PADDING)?;
        let (ip, rest) = segment.split_at_mut_checked(self.ip_header)?;
        if self.v4 {
            let ip: &mut [u8; IPV4_HEADER] = ip.first_chunk_mut()?;
            // At most MAX_SEGMENTS: no more than IPv4's identification can count.
            let id = self.id.wrapping_add(nth as u16);
            let checksum = self.ip_sum.word(length as u16).word(id).finish();
            [ip[2], ip[3]] = (length as u16).to_be_bytes();
            [ip[4], ip[5]] = id.to_be_bytes();
            [ip[10], ip[11]] = checksum.to_be_bytes();
        } else {
            set_field(ip, 4, ((length - IPV6_HEADER) as u16).to_be_bytes())?;
        }
        let (header, rest) = rest.split_at_mut_checked(self.header - self.ip_header)?;
        let payload = rest.get(..payload)?;
        let transport_length = (length - self.ip_header) as u16;
        let sum = self.sum.word(transport_length).bytes(payload);
        if self.tcp {
            let header: &mut [u8; TCP_HEADER] = header.first_chunk_mut()?;
            let sequence = self.sequence.wrapping_add(start as u32);
            let flags = self.flags_of(nth);
            let checksum = sum.long(sequence).word(flags).finish();
            [header[4], header[5], header[6], header[7]] = sequence.to_be_bytes();
            [header[12], header[13]] = flags.to_be_bytes();
            [header[16], header[17]] = checksum.to_be_bytes();
        } else {
            let header: &mut [u8; UDP_HEADER] = header.first_chunk_mut()?;
            let checksum = sum.word(transport_length).finish_udp();
            [header[4], header[5]] = transport_length.to_be_bytes();
            [header[6], header[7]] = checksum.to_be_bytes();
        }
        Some(segment)
    }

    /// TCP's flags of one of the packets: the end is told in the last, a smaller window in the first.
    #[inline(always)]
    fn flags_of(&self, nth: usize) -> u16 {
        let mut flags = self.flags;
        if nth > 0 {
            flags &= !flag::CWR;
        }
        if nth + 1 < self.segments {
            flags &= !(flag::FIN | flag::PSH);
        }
        flags
    }
}
