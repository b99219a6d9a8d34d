//! Big packets: the bundles of packets that Linux hands over a TUN device as one, and what becomes of them
//! here.
//!
//! The kernel's own network stack is slow for each packet and fast for each byte, and so is every system
//! call. A TUN device with `IFF_VNET_HDR` therefore gives and takes packets of up to 64 KiB, each with a
//! header in front that tells how to cut it. What goes into a tunnel is cut here ([`split()`]); what comes
//! out of tunnels in a row is joined here ([`Coalescer`]), as Linux does it for a network card (GSO and GRO).
//!
//! It knows bytes only: no device, no session, no clock. Nothing is allocated for a packet and no payload is
//! ever copied. Cutting reads each payload byte once, for its checksum; joining reads headers alone.
//!
//! | module | holds |
//! | --- | --- |
//! | [`vnet`] | the header in front of a packet |
//! | [`checksum`] | the checksum of IP, TCP and UDP |
//! | [`mod@split`] | one big packet to many |
//! | [`coalesce`] | many packets to a big one |
//! | `flow` | which packets those are |

pub mod checksum;
pub mod coalesce;
mod flow;
pub mod split;
pub mod vnet;

pub use coalesce::{Coalescer, Offloads};
pub use split::{Malformed, PADDING, Segment, split};
pub use vnet::{VNET_LEN, VnetHeader};

/// IP's number of TCP.
const TCP: u8 = 6;
/// IP's number of UDP.
const UDP: u8 = 17;
/// Bytes of an IPv4 header without options.
const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extensions.
const IPV6_HEADER: usize = 40;
/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
/// Where in its header TCP has the checksum.
const TCP_CHECKSUM: u16 = 16;
/// Where in its header UDP has the checksum.
const UDP_CHECKSUM: u16 = 6;
/// IPv4's "don't fragment", in the 16 bits that it shares with the fragment's place.
const DONT_FRAGMENT: u16 = 0x4000;
/// IPv4's "more fragments" and the fragment's place: not zero in every fragment.
const FRAGMENT: u16 = 0x3fff;

/// TCP's flags, in the 16 bits that they share with the header's length.
mod flag {
    pub(super) const FIN: u16 = 0x01;
    pub(super) const SYN: u16 = 0x02;
    pub(super) const RST: u16 = 0x04;
    pub(super) const PSH: u16 = 0x08;
    pub(super) const URG: u16 = 0x20;
    pub(super) const CWR: u16 = 0x80;
}

/// The `N` bytes at a place; `None` when they are not all there.
#[inline(always)]
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// Writes at a place; `None` when there is no room.
#[inline(always)]
fn set_field<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut::<N>()? = value;
    Some(())
}
