//! The device out of which packets come whose peer the kernel's device was not told yet.
//!
//! It stands beside that device in the container's namespace and has routes to the two halves of each of the network's
//! prefixes; a peer that was told has a route of its own into the kernel's device, and longer prefixes win. It ends with
//! its descriptor: while no agent runs, packets to peers that were never told are answered by the kernel's device, which
//! says that there is no way.

use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use znet_wg::io::tun::{Queues, Tun};

use crate::error::AgentError;
use crate::host::netns::Netns;
use crate::host::packet::Injector;
use crate::host::{link, wireguard};

/// Bytes before each packet: the header of virtio-net in its shortest form, empty as no offload was asked for.
const HEADER: usize = 10;
/// The largest packet.
const LARGEST: usize = 65_535;
/// Packets taken at once, so that one container's flood does not keep the others waiting.
const AT_ONCE: usize = 32;

/// The device, and the way from it into the kernel's.
#[derive(Debug)]
pub(super) struct Waker {
    tun: File,
    injector: Injector,
}

/// What became of a waker when it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is empty now.
    Empty,
    /// There may be more.
    More,
    /// It is gone.
    Gone,
}

impl Waker {
    /// Makes it beside the kernel's device of this index, for a container with these addresses. Peers that are told already,
    /// with these prefixes, keep the direct way.
    pub(super) fn make(
        netns: &Netns,
        index: u32,
        addresses: &[IpAddr],
        told: &[IpNet],
    ) -> Result<Self, AgentError> {
        let name = format!("znwake{index}");
        let made = netns.run(|handle| async move {
            let tun = match Tun::create(&name, Queues::Single) {
                Ok(tun) => tun,
                Err(error) => return Ok(Err(error.into())),
            };
            let injector = match Injector::open(index) {
                Ok(injector) => injector,
                Err(source) => return Ok(Err(AgentError::Host { doing: "opening a packet socket", source })),
            };
            let prefixes = link::routed_into(&handle, index).await?;
            let mtu = link::mtu_of(&handle, index).await?;
            link::no_link_local(&handle, &name).await?;
            link::set_up(&handle, &name, Some(mtu), true).await?;
            wireguard::route_beside(&handle, index, told, addresses, true).await?;
            let own = link::index_of(&handle, &name).await?.unwrap_or_default();
            let halves: Vec<IpNet> = prefixes.iter().flat_map(halves).collect();
            wireguard::route_beside(&handle, own, &halves, addresses, true).await?;
            Ok(Ok(Self { tun: File::from(tun), injector }))
        });
        made?
    }

    /// Reads what is there.
    pub(super) fn read(&self, mut each: impl FnMut(&[u8])) -> State {
        let mut room = vec![0; HEADER + LARGEST];
        for _ in 0..AT_ONCE {
            match (&self.tun).read(&mut room) {
                Ok(length) => each(room.get(HEADER..length).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return State::Empty,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return State::Gone,
            }
        }
        State::More
    }

    /// Hands a packet to the kernel's device.
    pub(super) fn hand_on(&self, packet: &[u8]) {
        if let Err(error) = self.injector.send(packet) {
            tracing::debug!(%error, "a packet could not be handed on");
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

/// The two halves of a prefix; one that has none stands for itself.
fn halves(prefix: &IpNet) -> Vec<IpNet> {
    prefix.subnets(prefix.prefix_len() + 1).map_or_else(|_| vec![*prefix], Iterator::collect)
}
