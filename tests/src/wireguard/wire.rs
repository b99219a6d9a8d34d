//! What a tunnel shows to its underlay, out of a capture.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use netns_harness::{Capture, probe};

use crate::Result;

/// Kinds of WireGuard's messages (white paper, section 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A handshake begins.
    Initiation,
    /// A handshake is answered.
    Response,
    /// Somebody under load asks for a proof of the address.
    Cookie,
    /// A packet, or a keepalive.
    Data,
}

/// A UDP datagram on the underlay that is one of WireGuard's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterPacket {
    /// Who sent it.
    pub source: IpAddr,
    /// What it is.
    pub message: Message,
    /// IPv4's type of service, or IPv6's traffic class: DSCP and ECN.
    pub tos: u8,
    /// Length of the message in bytes.
    pub len: usize,
}

/// Length of a pcap file's header, and of a packet's in it.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const ETHERNET: usize = 14;
const UDP: usize = 8;

/// Reads the messages out of a capture of an Ethernet interface. Of a fragmented datagram only the first fragment counts.
///
/// # Errors
/// The file cannot be read, or is none of tcpdump's, or its last packet is being written.
pub fn outer_packets(capture: &Path) -> Result<Vec<OuterPacket>> {
    let file = std::fs::read(capture)?;
    ensure!(file.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]), "{} is no pcap file", capture.display());
    let mut rest = file.get(FILE_HEADER..).context("no header")?;
    let mut packets = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(RECORD_HEADER) {
        let len = header.get(8..12).and_then(|len| len.try_into().ok()).map(u32::from_le_bytes);
        let (frame, after) = after.split_at_checked(len.context("no length")? as usize).context("cut off")?;
        packets.extend(frame.get(ETHERNET..).and_then(outer_packet));
        rest = after;
    }
    Ok(packets)
}

/// Waits until a capture that runs has seen enough, and returns all that it has seen.
///
/// # Errors
/// It does not, in time; the error tells what it has seen.
pub fn wait_for_packets(
    capture: &Capture,
    timeout: Duration,
    enough: impl Fn(&[OuterPacket]) -> bool,
) -> Result<Vec<OuterPacket>> {
    let seen = probe::until_ok("the capture to see enough", timeout, || {
        let packets = outer_packets(capture.path())?;
        ensure!(enough(&packets), "{packets:?}");
        Ok::<_, anyhow::Error>(packets)
    })?;
    Ok(seen)
}

fn outer_packet(ip: &[u8]) -> Option<OuterPacket> {
    let first = *ip.first()?;
    let (source, tos, header, protocol) = match first >> 4 {
        4 => {
            let source = Ipv4Addr::from(bytes::<4>(ip, 12)?);
            let continues = u16::from_be_bytes(bytes(ip, 6)?) & 0x1fff != 0;
            let header = usize::from(first & 15) * 4;
            (!continues).then_some((IpAddr::from(source), *ip.get(1)?, header, *ip.get(9)?))?
        }
        6 => {
            let source = Ipv6Addr::from(bytes::<16>(ip, 8)?);
            (IpAddr::from(source), first << 4 | ip.get(1)? >> 4, 40, *ip.get(6)?)
        }
        _ => return None,
    };
    if protocol != 17 {
        return None;
    }
    let message = match bytes(ip, header + UDP)? {
        [1, 0, 0, 0] => Message::Initiation,
        [2, 0, 0, 0] => Message::Response,
        [3, 0, 0, 0] => Message::Cookie,
        [4, 0, 0, 0] => Message::Data,
        _ => return None,
    };
    let len = usize::from(u16::from_be_bytes(bytes(ip, header + 4)?)).checked_sub(UDP)?;
    Some(OuterPacket { source, message, tos, len })
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}
