//! Packet sockets (packet(7)): hearing who knocks at devices of the kernel's, and handing a device a packet that came out
//! of another one.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// Size of a handshake initiation (white paper, section 5.4.2).
pub const INITIATION_LEN: usize = 148;
/// Initiations that may wait to be looked at, in bytes of socket buffer.
const BACKLOG: usize = 256 << 10;
/// Longest IPv4 header.
const MAX_V4_HEADER: usize = 60;
const V6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

/// A handshake initiation as it came in.
#[derive(Clone, Debug)]
pub struct Knock {
    /// Where it came from.
    pub from: SocketAddr,
    /// The port at which it knocked.
    pub port: u16,
    /// The message.
    pub message: [u8; INITIATION_LEN],
}

/// A socket that hears every handshake initiation that reaches the caller's namespace, and nothing else: the kernel looks
/// at four fields of each packet and passes on what has WireGuard's type and length.
#[derive(Debug)]
pub struct Tap(Socket);

impl Tap {
    /// Opens it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open() -> io::Result<Self> {
        // Of no protocol, so that nothing comes in before the filter is there.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        socket.attach_filter(&filter())?;
        socket.set_nonblocking(true)?;
        socket.set_recv_buffer_size(BACKLOG)?;
        bind(&socket, libc::ETH_P_ALL, 0)?;
        Ok(Self(socket))
    }

    /// The next initiation; `None` when there is none yet.
    pub fn next(&self) -> Option<Knock> {
        let mut room = [MaybeUninit::<u8>::uninit(); MAX_V4_HEADER + UDP_HEADER + INITIATION_LEN];
        loop {
            let (length, _) = self.0.recv_from(&mut room).ok()?;
            let mut packet = [0u8; MAX_V4_HEADER + UDP_HEADER + INITIATION_LEN];
            let packet = packet.get_mut(..length)?;
            for (to, from) in packet.iter_mut().zip(&room) {
                // SAFETY: the kernel wrote the first `length` bytes of the room.
                *to = unsafe { from.assume_init() };
            }
            if let Some(knock) = parse(packet) {
                return Some(knock);
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket through which packets are handed to one device, as if a program had sent them there.
#[derive(Debug)]
pub struct Injector {
    socket: Socket,
    index: u32,
}

impl Injector {
    /// Opens it in the caller's namespace.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(index: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, index })
    }

    /// Hands over an IP packet.
    ///
    /// # Errors
    /// The operating system's; the packet is lost then.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let protocol = match packet.first().map(|byte| byte >> 4) {
            Some(4) => libc::ETH_P_IP,
            Some(6) => libc::ETH_P_IPV6,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let address = address(protocol, self.index)?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: packet and address outlive the call, which only reads them; the descriptor is open.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                length,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn address(protocol: libc::c_int, index: u32) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: sockaddr_ll is a plain C structure for which all zeroes are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = u16::try_from(protocol).map_err(io::Error::other)?.to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    Ok(address)
}

fn bind(socket: &Socket, protocol: libc::c_int, index: u32) -> io::Result<()> {
    let address = address(protocol, index)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address outlives the call, which only reads it; the descriptor is open.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Classic BPF on a packet that begins with its IP header: UDP, not a fragment, of an initiation's length and type.
fn filter() -> Vec<SockFilter> {
    use libc::{
        BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET,
        BPF_W,
    };
    const UDP_LENGTH: u32 = (UDP_HEADER + INITIATION_LEN) as u32;
    /// The type, and three bytes that are zero.
    const TYPE: u32 = 0x0100_0000;
    let op = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    let load = |size: u32, at| op(BPF_LD | size | BPF_ABS, 0, 0, at);
    let load_x = |size: u32, at| op(BPF_LD | size | BPF_IND, 0, 0, at);
    let equal = |value, jt, jf| op(BPF_JMP | BPF_JEQ | BPF_K, jt, jf, value);
    vec![
        /* 0 */ load(BPF_B, 0),
        /* 1 */ op(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0),
        // The version is 4 or 6, which the bits 0x40 and 0x20 tell.
        /* 2 */
        op(BPF_JMP | BPF_JSET | BPF_K, 0, 9, 0x40),
        /* 3 */ op(BPF_JMP | BPF_JSET | BPF_K, 9, 0, 0x20),
        // IPv4
        /* 4 */ load(BPF_B, 9),
        /* 5 */ equal(libc::IPPROTO_UDP as u32, 0, 6),
        /* 6 */ load(BPF_H, 6),
        /* 7 */ op(BPF_JMP | BPF_JSET | BPF_K, 4, 0, 0x1fff),
        /* 8 */ load_x(BPF_H, 4),
        /* 9 */ equal(UDP_LENGTH, 0, 2),
        /* 10 */ load_x(BPF_W, 8),
        /* 11 */ equal(TYPE, 8, 0),
        /* 12 */ op(BPF_RET | BPF_K, 0, 0, 0),
        // IPv6
        /* 13 */ load(BPF_B, 6),
        /* 14 */ equal(libc::IPPROTO_UDP as u32, 0, 4),
        /* 15 */ load(BPF_H, 44),
        /* 16 */ equal(UDP_LENGTH, 0, 2),
        /* 17 */ load(BPF_W, 48),
        /* 18 */ equal(TYPE, 1, 0),
        /* 19 */ op(BPF_RET | BPF_K, 0, 0, 0),
        /* 20 */ op(BPF_RET | BPF_K, 0, 0, u32::MAX),
    ]
}

/// Takes an initiation out of its packet.
fn parse(packet: &[u8]) -> Option<Knock> {
    let (from, header): (IpAddr, usize) = match packet.first()? >> 4 {
        4 => {
            let octets: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            (Ipv4Addr::from(octets).into(), usize::from(packet.first()? & 0xf) * 4)
        }
        6 => {
            let octets: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            (Ipv6Addr::from(octets).into(), V6_HEADER)
        }
        _ => return None,
    };
    let (udp, message) = packet.get(header..)?.split_at_checked(UDP_HEADER)?;
    let port = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
    let message = message.get(..INITIATION_LEN)?.try_into().ok()?;
    Some(Knock { from: SocketAddr::new(from, port(0)?), port: port(2)?, message })
}
