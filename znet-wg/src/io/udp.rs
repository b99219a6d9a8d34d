//! UDP sockets: many datagrams a call, in both directions.
//!
//! Datagrams of one length to one destination leave as one large buffer that the kernel, or the network card, cuts up
//! (`UDP_SEGMENT`); those that arrive one after the other from one sender are handed over as one (`UDP_GRO`). Where a kernel,
//! a route or a card refuses that, the same datagrams are sent again, one by one, and that destination gets no more of it.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::net::{Arrival, MAX_PACKET, Outbox, Path, Run};

/// Socket buffers in bytes: some 10 ms at 3 Gbit/s, for all peers together.
const BUFFER: usize = 4 << 20;
/// Most runs in one call of sendmmsg(2).
const RUNS: usize = 16;
/// Most arrivals in one call of recvmmsg(2), each of up to 64 KiB.
pub const ARRIVALS: usize = 8;
/// Room for one arrival.
const ARRIVAL_LEN: usize = MAX_PACKET + 1;
/// Room for a type of service, a segment length and an address of this host beside a datagram.
const CONTROL_LEN: usize = 96;
/// Destinations remembered as taking no `UDP_SEGMENT`; beyond that, none gets it.
const MAX_REFUSALS: usize = 1_024;
/// How long a full socket is waited for before what is to be sent is dropped, in milliseconds.
const FULL_MILLIS: u16 = 10;

/// What the kernel says of a source address that is this host's no more, or from which no route leads on.
const SOURCE_GONE: [Errno; 4] =
    [Errno::EINVAL, Errno::EADDRNOTAVAIL, Errno::ENETUNREACH, Errno::EHOSTUNREACH];

/// Ancillary data, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

/// A bound UDP socket of one address family.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    v4: bool,
    /// `UDP_SEGMENT` works here.
    segments: AtomicBool,
    /// Some destination refused it.
    any_refused: AtomicBool,
    refused: RwLock<HashSet<IpAddr>>,
    dropped: AtomicU64,
}

/// How a port is bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Firewall mark of all that is sent; 0 for none.
    pub fwmark: u32,
    /// Let several sockets share the port, each with its share of the peers.
    pub share: bool,
}

/// Binds a port on IPv4 and, where the host has it, on IPv6. Port 0 lets the kernel choose one that both have.
///
/// # Errors
/// The operating system's; `AddrInUse` when somebody else has the port.
pub fn bind(port: u16, options: Options) -> io::Result<(u16, Vec<OwnedFd>)> {
    /// How often a port that the kernel chose for IPv4 may turn out to be taken on IPv6.
    const TRIES: usize = 16;
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..if port == 0 { TRIES } else { 1 } {
        let v4 = bind_one(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into(), options)?;
        let chosen = UdpSocket::from(v4.try_clone()?).local_addr()?.port();
        match bind_one(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, chosen).into(), options) {
            Ok(v6) => return Ok((chosen, vec![v4, v6])),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => return Ok((chosen, vec![v4])),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(domain: Domain, address: SocketAddr, options: Options) -> io::Result<OwnedFd> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    if options.share {
        socket.set_reuse_port(true)?;
    }
    if options.fwmark != 0 {
        socket.set_mark(options.fwmark)?;
    }
    socket.set_nonblocking(true)?;
    set_buffers(socket.as_fd());
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Gives a socket the buffers with which it is bound.
pub fn set_buffers(socket: BorrowedFd<'_>) {
    // Beyond net.core.rmem_max for whoever may, and as much as that for others.
    for (forced, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        if set(socket, libc::SOL_SOCKET, forced, BUFFER as libc::c_int).is_err() {
            let _ = set(socket, libc::SOL_SOCKET, plain, BUFFER as libc::c_int);
        }
    }
}

fn set(fd: BorrowedFd<'_>, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the value and its length outlive the call, which only reads them.
    let outcome = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    Errno::result(outcome)?;
    Ok(())
}

impl Udp {
    /// Takes over a bound socket.
    ///
    /// # Errors
    /// The operating system's, for what is no bound UDP socket.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let socket = UdpSocket::from(fd);
        socket.set_nonblocking(true)?;
        let v4 = socket.local_addr()?.is_ipv4();
        // Best effort, all of them: a kernel that does not know one does without.
        let _ = set(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
        let _ = match v4 {
            true => set(socket.as_fd(), libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
            false => set(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
        };
        let _ = match v4 {
            true => set(socket.as_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
            false => set(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
        };
        // A tunnel's datagrams may be fragmented, and nobody may set this host's idea of a path's MTU by forged errors.
        let _ = match v4 {
            true => set(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            false => {
                set(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
            }
        };
        let segments = set(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        Ok(Self {
            socket,
            v4,
            segments: AtomicBool::new(segments),
            any_refused: AtomicBool::new(false),
            refused: RwLock::default(),
            dropped: AtomicU64::new(0),
        })
    }

    /// Whether it is for IPv4.
    pub fn is_v4(&self) -> bool {
        self.v4
    }

    /// The port that it is bound to.
    pub fn port(&self) -> u16 {
        self.socket.local_addr().map_or(0, |address| address.port())
    }

    /// Datagrams that could not be sent.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Sets the firewall mark of all that is sent from now on.
    ///
    /// # Errors
    /// The operating system's; `EPERM` without CAP_NET_ADMIN.
    pub fn set_mark(&self, fwmark: u32) -> io::Result<()> {
        set(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, fwmark.cast_signed())
    }

    /// Sends those runs of the outbox that are for this socket's address family.
    pub fn send(&self, outbox: &Outbox) {
        let mut batch = SendBatch::default();
        for (run, bytes) in outbox.runs().filter(|(run, _)| run.path.remote.is_ipv4() == self.v4) {
            if run.count > 1 && !self.takes_segments(&run.path.remote) {
                self.send_batch(&mut batch);
                self.send_singly(run, bytes);
                continue;
            }
            batch.push(run, bytes);
            if batch.is_full() {
                self.send_batch(&mut batch);
            }
        }
        self.send_batch(&mut batch);
    }

    fn send_batch<'a>(&self, batch: &mut SendBatch<'a>) {
        let runs = std::mem::take(&mut batch.runs);
        let mut runs: &[Option<(&'a Run, &'a [u8])>] = runs.get(..batch.count).unwrap_or_default();
        batch.count = 0;
        let mut waited = false;
        while !runs.is_empty() {
            match send_runs(self.socket.as_fd(), self.v4, runs) {
                Ok(sent) => runs = runs.get(sent.max(1)..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !waited => {
                    waited = true;
                    let mut wait = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut wait, PollTimeout::from(FULL_MILLIS));
                }
                Err(error) => {
                    if let Some(Some((run, bytes))) = runs.first() {
                        self.refused(run, bytes, error);
                    }
                    runs = runs.get(1..).unwrap_or_default();
                }
            }
        }
    }

    /// A run could not be sent. If that may be because its source address is this host's no more, it is sent from
    /// another; if it may be because of `UDP_SEGMENT`, its datagrams are sent without it.
    fn refused(&self, run: &Run, bytes: &[u8], error: Errno) {
        if run.path.local.is_some() && SOURCE_GONE.contains(&error) {
            let mut elsewhere = run.clone();
            elsewhere.path.local = None;
            let mut batch = SendBatch::default();
            batch.push(&elsewhere, bytes);
            self.send_batch(&mut batch);
            return;
        }
        let by_segments = matches!(error, Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::ENOPROTOOPT);
        if run.count > 1 && by_segments {
            tracing::debug!(to = %run.path.remote, %error, "UDP_SEGMENT is refused; datagrams go out one by one");
            self.refuse(run.path.remote.ip());
            self.send_singly(run, bytes);
            return;
        }
        tracing::trace!(to = %run.path.remote, %error, "datagrams were dropped");
        self.dropped.fetch_add(run.count as u64, Ordering::Relaxed);
    }

    fn refuse(&self, destination: IpAddr) {
        let mut refused = self.refused.write().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < MAX_REFUSALS {
            refused.insert(destination);
        } else {
            self.segments.store(false, Ordering::Relaxed);
        }
        self.any_refused.store(true, Ordering::Relaxed);
    }

    fn takes_segments(&self, to: &SocketAddr) -> bool {
        let refused = || self.refused.read().unwrap_or_else(PoisonError::into_inner).contains(&to.ip());
        self.segments.load(Ordering::Relaxed) && !(self.any_refused.load(Ordering::Relaxed) && refused())
    }

    fn send_singly(&self, run: &Run, bytes: &[u8]) {
        for datagram in bytes.chunks(run.size.max(1)) {
            let single = Run::single(run.path, run.tos, datagram.len());
            let mut batch = SendBatch::default();
            batch.push(&single, datagram);
            self.send_batch(&mut batch);
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Runs that go to the kernel by one call.
#[derive(Default)]
struct SendBatch<'a> {
    runs: [Option<(&'a Run, &'a [u8])>; RUNS],
    count: usize,
}

impl<'a> SendBatch<'a> {
    fn push(&mut self, run: &'a Run, bytes: &'a [u8]) {
        if let Some(place) = self.runs.get_mut(self.count) {
            *place = Some((run, bytes));
            self.count += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.count == RUNS
    }
}

/// Writes one piece of ancillary data at `offset`; returns where the next goes.
fn put_control<const N: usize>(
    control: &mut Control,
    offset: usize,
    level: i32,
    kind: i32,
    value: [u8; N],
) -> usize {
    let header = size_of::<libc::cmsghdr>();
    // cmsghdr is the length, of the size of a pointer here, then level and type.
    let parts = [&(header + N).to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), &value];
    let mut at = offset;
    for part in parts {
        if let Some(room) = control.0.get_mut(at..at + part.len()) {
            room.copy_from_slice(part);
        }
        at += part.len();
    }
    offset + header + N.next_multiple_of(size_of::<usize>())
}

/// Hands runs to the kernel; returns how many it took.
fn send_runs(fd: BorrowedFd<'_>, v4: bool, runs: &[Option<(&Run, &[u8])>]) -> Result<usize, Errno> {
    let mut addresses: [Option<SockAddr>; RUNS] = [const { None }; RUNS];
    let mut controls = [Control([0; CONTROL_LEN]); RUNS];
    // SAFETY: both are plain C structures for which all zeroes are a value.
    let (mut vectors, mut headers) =
        unsafe { (std::mem::zeroed::<[libc::iovec; RUNS]>(), std::mem::zeroed::<[libc::mmsghdr; RUNS]>()) };
    let mut count = 0;
    let places = addresses.iter_mut().zip(&mut controls).zip(vectors.iter_mut().zip(&mut headers));
    for (((address, control), (vector, header)), (run, bytes)) in places.zip(runs.iter().flatten()) {
        let address = address.insert(SockAddr::from(run.path.remote));
        let mut used = 0;
        if run.tos != 0 {
            let (level, kind) =
                if v4 { (libc::IPPROTO_IP, libc::IP_TOS) } else { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) };
            used = put_control(control, used, level, kind, libc::c_int::from(run.tos).to_ne_bytes());
        }
        if run.count > 1 {
            let size = u16::try_from(run.size).unwrap_or(u16::MAX);
            used = put_control(control, used, libc::SOL_UDP, libc::UDP_SEGMENT, size.to_ne_bytes());
        }
        match run.path.local {
            // struct in_pktinfo: interface, the address to send from, an address that is only read on receiving.
            Some(IpAddr::V4(local)) if v4 => {
                let mut info = [0; 12];
                if let Some(room) = info.get_mut(4..8) {
                    room.copy_from_slice(&local.octets());
                }
                used = put_control(control, used, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            // struct in6_pktinfo: the address to send from, interface.
            Some(IpAddr::V6(local)) if !v4 => {
                let mut info = [0; 20];
                if let Some(room) = info.get_mut(..16) {
                    room.copy_from_slice(&local.octets());
                }
                used = put_control(control, used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            _ => {}
        }
        vector.iov_base = bytes.as_ptr().cast_mut().cast();
        vector.iov_len = bytes.len();
        let message = &mut header.msg_hdr;
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len();
        message.msg_iov = vector;
        message.msg_iovlen = 1;
        if used != 0 {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = used as _;
        }
        count += 1;
    }
    // SAFETY: the descriptor is open. The first `count` headers point to addresses, vectors and ancillary data that live
    // until the end of this function, and the vectors to bytes borrowed for as long; the kernel only reads them.
    let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    Errno::result(sent).map(|sent| usize::try_from(sent).unwrap_or_default())
}

/// Room for what one receive call brings.
pub struct Inbox {
    buffer: Box<[u8]>,
    arrivals: Vec<Arrival>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            buffer: vec![0; ARRIVALS * ARRIVAL_LEN].into_boxed_slice(),
            arrivals: Vec::with_capacity(ARRIVALS),
        }
    }
}

impl Inbox {
    /// Receives what is there, up to a bound.
    ///
    /// # Errors
    /// The kernel's: `EAGAIN` when there is nothing. Errors that earlier datagrams met on their way are reported here as well.
    pub fn receive(&mut self, udp: &Udp) -> Result<(), Errno> {
        self.arrivals.clear();
        let mut controls = [Control([0; CONTROL_LEN]); ARRIVALS];
        let mut addresses: [SockAddrStorage; ARRIVALS] = std::array::from_fn(|_| SockAddrStorage::zeroed());
        // SAFETY: both are plain C structures for which all zeroes are a value.
        let (mut vectors, mut headers) = unsafe {
            (std::mem::zeroed::<[libc::iovec; ARRIVALS]>(), std::mem::zeroed::<[libc::mmsghdr; ARRIVALS]>())
        };
        let places = addresses.iter_mut().zip(&mut controls).zip(vectors.iter_mut().zip(&mut headers));
        for (((address, control), (vector, header)), bytes) in places.zip(self.buffer.chunks_mut(ARRIVAL_LEN))
        {
            vector.iov_base = bytes.as_mut_ptr().cast();
            vector.iov_len = bytes.len();
            let message = &mut header.msg_hdr;
            message.msg_name = std::ptr::from_mut(address).cast();
            message.msg_namelen = size_of::<SockAddrStorage>() as _;
            message.msg_iov = vector;
            message.msg_iovlen = 1;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = CONTROL_LEN as _;
        }
        // SAFETY: the descriptor is open. The headers point to addresses, vectors, ancillary data and bytes that are borrowed
        // mutably by this function alone and live until its end; the kernel writes within the lengths given with each.
        let received = unsafe {
            libc::recvmmsg(
                udp.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                ARRIVALS as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(Errno::result(received)?).unwrap_or_default();
        for (number, ((header, address), control)) in
            headers.iter().zip(addresses).zip(&controls).take(received).enumerate()
        {
            // SAFETY: the kernel wrote an address of this length into the storage.
            let address = unsafe { SockAddr::new(address, header.msg_hdr.msg_namelen) };
            let Some(from) = address.as_socket() else { continue };
            let (start, length) = (number * ARRIVAL_LEN, header.msg_len as usize);
            let used = control.0.get(..header.msg_hdr.msg_controllen).unwrap_or_default();
            let Beside { tos, size, local } = read_control(used);
            let (path, size) = (Path { remote: from, local }, size.unwrap_or(length));
            self.arrivals.push(Arrival { path, tos, at: start..start + length, size });
        }
        Ok(())
    }

    /// The bytes in which arrivals lie, and the arrivals.
    pub fn arrivals(&self) -> (&[u8], &[Arrival]) {
        (&self.buffer, &self.arrivals)
    }

    /// Whether the last call brought as much as it could, so that more may be there.
    pub fn was_full(&self) -> bool {
        self.arrivals.len() == ARRIVALS
    }
}

/// What is told beside a datagram.
#[derive(Default)]
struct Beside {
    tos: u8,
    /// The length of each datagram, when they are several.
    size: Option<usize>,
    /// The address of this host that it was sent to.
    local: Option<IpAddr>,
}

fn read_control(mut control: &[u8]) -> Beside {
    let mut beside = Beside::default();
    while let Some((length, rest)) = control.split_first_chunk::<{ size_of::<usize>() }>() {
        let length = usize::from_ne_bytes(*length);
        let header = size_of::<libc::cmsghdr>();
        let Some((level, rest)) = rest.split_first_chunk::<4>() else { break };
        let Some((kind, rest)) = rest.split_first_chunk::<4>() else { break };
        let value = length.checked_sub(header).and_then(|length| rest.get(..length)).unwrap_or_default();
        let number = || value.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes));
        match (i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind)) {
            // IPv4 hands over one byte, IPv6 an int, of which the lowest byte counts.
            (libc::IPPROTO_IP, libc::IP_TOS) => beside.tos = value.first().copied().unwrap_or_default(),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => beside.tos = number().unwrap_or_default() as u8,
            (libc::SOL_UDP, libc::UDP_GRO) => {
                beside.size = number().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
            }
            // The address of this host that the datagram's route leads to, which is one to answer from.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let address = value.get(4..8).and_then(|bytes| bytes.first_chunk::<4>());
                beside.local = address.map(|address| IpAddr::from(*address));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                beside.local = value.first_chunk::<16>().map(|address| IpAddr::from(*address));
            }
            _ => {}
        }
        let next = length.max(header).next_multiple_of(size_of::<usize>());
        control = control.get(next..).unwrap_or_default();
    }
    beside
}
