//! TUN devices, with the kernel's offloads where it has them: a read brings up to 64 KiB of one flow as one packet, a write
//! takes as much. A pair of sockets takes the place of two devices where packets go from one to the other and no kernel
//! has to see them ([`pair`]).

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socketpair, sockopt};

use crate::net::Port;
use crate::offload::{Offloads, VNET_LEN, VnetHeader};

/// Longest name of an interface in bytes (IFNAMSIZ less its end).
pub const MAX_IFNAME: usize = 15;
/// Packets that the kernel keeps for a slow reader: some milliseconds at full speed.
const TX_QUEUE_LEN: libc::c_int = 1_000;

/// Bytes that wait at most between the ends of a [`pair`], as the kernel counts them: some thirty of the largest packets.
const PAIR_BUFFER: usize = 2 << 20;

/// Why no TUN device could be made.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// There is no `/dev/net/tun`.
    #[error(
        "/dev/net/tun cannot be opened: {0}; load the module (`modprobe tun`), or give this process access to the device"
    )]
    NoDevice(io::Error),
    /// The privilege is missing.
    #[error("a TUN device cannot be made: {0}; CAP_NET_ADMIN is needed: run this as root")]
    NotPermitted(io::Error),
    /// There is a device of this name that is no TUN device, or somebody holds it.
    #[error("an interface of this name is there already")]
    NameTaken,
    /// Anything else.
    #[error("a TUN device cannot be made: {0}")]
    Io(io::Error),
}

mod ioctl {
    nix::ioctl_write_ptr_bad!(
        /// Makes a descriptor of `/dev/net/tun` a device.
        tunsetiff,
        libc::TUNSETIFF,
        libc::ifreq
    );
    nix::ioctl_read_bad!(
        /// Tells a device's name and flags.
        tungetiff,
        libc::TUNGETIFF,
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(
        /// Says what a reader takes.
        tunsetoffload,
        libc::TUNSETOFFLOAD
    );
    nix::ioctl_write_ptr_bad!(
        /// Sets the length of the header before each packet.
        tunsetvnethdrsz,
        libc::TUNSETVNETHDRSZ,
        libc::c_int
    );
    nix::ioctl_none_bad!(
        /// Opens the namespace in which a device is now.
        tungetdevnetns,
        nix::request_code_none!(b'T', 227)
    );
    nix::ioctl_read_bad!(
        /// Tells an interface's MTU.
        siocgifmtu,
        libc::SIOCGIFMTU,
        libc::ifreq
    );
    nix::ioctl_write_ptr_bad!(
        /// Sets the length of an interface's queue.
        siocsiftxqlen,
        libc::SIOCSIFTXQLEN,
        libc::ifreq
    );
}

/// What a reader may take, in the numbers of `linux/if_tun.h`.
mod offload {
    pub(super) const CSUM: i32 = 0x01;
    pub(super) const TSO4: i32 = 0x02;
    pub(super) const TSO6: i32 = 0x04;
    pub(super) const TSO_ECN: i32 = 0x08;
    pub(super) const USO4: i32 = 0x20;
    pub(super) const USO6: i32 = 0x40;
}

/// A TUN device, or one queue of it; or one end of a [`pair`].
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    /// Packets have a virtio-net header before them.
    vnet: bool,
    offloads: Offloads,
}

/// How a device is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Queues {
    /// One queue.
    #[default]
    Single,
    /// More may be added by making the device again under its name.
    Multi,
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is a plain C structure for which all zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(MAX_IFNAME)) {
        *to = from as libc::c_char;
    }
    request
}

impl Tun {
    /// Makes a device of this name in the caller's namespace. It lives as long as the descriptor.
    ///
    /// # Errors
    /// [`TunError`].
    pub fn create(name: &str, queues: Queues) -> Result<OwnedFd, TunError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(TunError::NoDevice)?;
        let mut request = request(name);
        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if queues == Queues::Multi {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the descriptor is open and the request outlives the call, which reads and writes nothing else.
        match unsafe { ioctl::tunsetiff(file.as_raw_fd(), &raw const request) } {
            Ok(_) => Ok(file.into()),
            Err(Errno::EPERM) => Err(TunError::NotPermitted(Errno::EPERM.into())),
            Err(Errno::EBUSY | Errno::EINVAL | Errno::EEXIST) => Err(TunError::NameTaken),
            Err(error) => Err(TunError::Io(error.into())),
        }
    }

    /// Takes over a descriptor of a device that somebody made, with as many offloads as it and the kernel allow.
    ///
    /// # Errors
    /// The kernel's, for what is no TUN device.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        if getsockopt(&fd, sockopt::SockType) == Ok(SockType::SeqPacket) {
            return Ok(Self { fd, vnet: true, offloads: Offloads { tcp4: true, tcp6: true, udp: true } });
        }
        let flags = interface(fd.as_fd())?.1;
        let vnet = flags & libc::IFF_VNET_HDR != 0;
        let mut offloads = Offloads::default();
        if vnet {
            let length = VNET_LEN as libc::c_int;
            // SAFETY: the descriptor is open and the number outlives the call, which only reads it.
            unsafe { ioctl::tunsetvnethdrsz(fd.as_raw_fd(), &raw const length) }?;
            offloads = set_offloads(fd.as_fd());
        }
        Ok(Self { fd, vnet, offloads })
    }

    /// Reads one packet, which may be many of one flow in one, to the beginning of the buffer: what is said of it, and its
    /// length.
    ///
    /// # Errors
    /// The kernel's: `EAGAIN` when there is none, `EBADFD` when the device is gone.
    pub fn read(&self, buffer: &mut [u8]) -> Result<(VnetHeader, usize), Errno> {
        if !self.vnet {
            return Ok((VnetHeader::default(), nix::unistd::read(&self.fd, buffer)?));
        }
        let mut header = [0; VNET_LEN];
        let slices = &mut [io::IoSliceMut::new(&mut header), io::IoSliceMut::new(buffer)];
        let length = nix::sys::uio::readv(&self.fd, slices)?;
        if length == 0 {
            // Only a pair of sockets has an end, when there is nobody at its other one.
            return Err(Errno::EBADFD);
        }
        let header = VnetHeader::parse(&header).unwrap_or_default();
        Ok((header, length.saturating_sub(VNET_LEN)))
    }

    /// The name of its interface in the namespace in which that is.
    ///
    /// # Errors
    /// The kernel's: the device is gone.
    pub fn name(&self) -> io::Result<String> {
        Ok(interface(self.fd.as_fd())?.0)
    }
}

/// The two ends of a way for packets that stands for two TUN devices with a wire between them: what is written to one end
/// is read from the other, with the same header before each packet.
///
/// # Errors
/// The kernel's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for end in [&one, &other] {
        setsockopt(end, sockopt::SndBufForce, &(PAIR_BUFFER / 2))?;
    }
    Ok((one, other))
}

/// Whether TUN devices can be made here, tried once.
///
/// # Errors
/// [`TunError`] that says what is missing.
pub fn check() -> Result<(), TunError> {
    Tun::create(&format!("znc{:08x}", rand::random::<u32>()), Queues::Single).map(drop)
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Port for Tun {
    fn deliver(&self, slices: &[IoSlice<'_>]) -> bool {
        let slices = if self.vnet { slices } else { slices.get(1..).unwrap_or_default() };
        loop {
            match nix::sys::uio::writev(&self.fd, slices) {
                Ok(_) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }
}

fn interface(fd: BorrowedFd<'_>) -> io::Result<(String, libc::c_int)> {
    let mut answer = request("");
    // SAFETY: the descriptor is open and the answer outlives the call, which writes nothing else.
    unsafe { ioctl::tungetiff(fd.as_raw_fd(), &raw mut answer) }?;
    let name: Vec<u8> = answer.ifr_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    // SAFETY: TUNGETIFF fills in the flags; every bit pattern of a number is a value.
    let flags = unsafe { answer.ifr_ifru.ifru_flags };
    Ok((String::from_utf8_lossy(&name).into_owned(), libc::c_int::from(flags as u16)))
}

/// The name that a device has now, and the network namespace in which it is now: both can have been changed since it was
/// made, by whoever may.
///
/// # Errors
/// The kernel's: the device is gone.
pub fn whereabouts(device: &impl AsFd) -> io::Result<(String, OwnedFd)> {
    let fd = device.as_fd();
    // SAFETY: the descriptor is open and the call takes no argument.
    let netns = unsafe { ioctl::tungetdevnetns(fd.as_raw_fd()) }?;
    // SAFETY: what it returned is a new descriptor that nobody else has.
    let netns = unsafe { OwnedFd::from_raw_fd(netns) };
    Ok((interface(fd)?.0, netns))
}

/// Asks for all offloads, and for fewer from a kernel that does not know all.
fn set_offloads(fd: BorrowedFd<'_>) -> Offloads {
    let tcp = offload::CSUM | offload::TSO4 | offload::TSO6 | offload::TSO_ECN;
    let all = tcp | offload::USO4 | offload::USO6;
    for (bits, udp) in [(all, true), (tcp, false)] {
        // SAFETY: the descriptor is open; the argument is a number.
        if unsafe { ioctl::tunsetoffload(fd.as_raw_fd(), bits) }.is_ok() {
            return Offloads { tcp4: true, tcp6: true, udp };
        }
    }
    Offloads::default()
}

/// The MTU of an interface of the caller's namespace. Any socket will do for asking.
///
/// # Errors
/// The kernel's: there is no such interface.
pub fn mtu(socket: &impl AsFd, name: &str) -> io::Result<u32> {
    let mut request = request(name);
    // SAFETY: the descriptor is open and the request outlives the call, which writes nothing else.
    unsafe { ioctl::siocgifmtu(socket.as_fd().as_raw_fd(), &raw mut request) }?;
    // SAFETY: SIOCGIFMTU fills in the MTU; every bit pattern of a number is a value.
    Ok(unsafe { request.ifr_ifru.ifru_mtu }.unsigned_abs())
}

/// Lets the kernel keep enough packets for a reader that is kept waiting.
///
/// # Errors
/// The kernel's.
pub fn set_queue_length(socket: &impl AsFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    // The kernel reads the queue's length from where ifru_ivalue is, which libc calls ifru_metric.
    request.ifr_ifru.ifru_metric = TX_QUEUE_LEN;
    // SAFETY: the descriptor is open and the request outlives the call, which only reads it.
    unsafe { ioctl::siocsiftxqlen(socket.as_fd().as_raw_fd(), &raw const request) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_pair_keeps_packets_apart_and_ends_when_nobody_is_at_its_other_end() {
        let (one, other) = pair().unwrap();
        let (one, other) = (Tun::adopt(one).unwrap(), Tun::adopt(other).unwrap());
        let header = VnetHeader { gso_type: 1, gso_size: 1_400, hdr_len: 40, ..VnetHeader::default() };
        let (small, large) = (vec![1; 20], vec![2; 65_535]);
        for packet in [&small, &large] {
            assert!(one.deliver(&[IoSlice::new(&header.encode()), IoSlice::new(packet)]));
        }
        let mut buffer = vec![0; 70_000];
        for packet in [&small, &large] {
            assert_eq!(other.read(&mut buffer), Ok((header, packet.len())));
            assert_eq!(buffer[..packet.len()], packet[..]);
        }
        assert_eq!(other.read(&mut buffer), Err(Errno::EAGAIN));
        let sent =
            (0..10_000).take_while(|_| one.deliver(&[IoSlice::new(&header.encode()), IoSlice::new(&large)]));
        let sent = sent.count();
        assert!((8..1_000).contains(&sent), "{sent} of the largest packets wait");
        drop(one);
        (0..sent).for_each(|_| assert!(other.read(&mut buffer).is_ok()));
        assert_eq!(other.read(&mut buffer), Err(Errno::EBADFD));
        assert!(!other.deliver(&[IoSlice::new(&header.encode()), IoSlice::new(&small)]));
    }
}
