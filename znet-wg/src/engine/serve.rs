//! The main thread: one agent at a time, and `wg(8)` at any time.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Uid;
use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::PublicKey;

use super::state::{Ports, Served, State};
use super::uapi;
use crate::control::{
    Batch, Device as WireDevice, FrameError, MAX_PEERS_PER_MESSAGE, PROTOCOL, Reply, Request, WirePrivateKey,
    recv_frame, send_frame,
};
use crate::net::OwnAddresses;

/// How long an agent or `wg(8)` may take over one message before it is hung up on.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the figures of a poll may be old before listening sockets are collected anew.
const POLL_MILLIS: u16 = 1_000;

/// Whether the engine goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

/// Answers until it is told to stop.
pub(super) fn run(listener: &UnixListener, state: &mut State, owner: Uid) -> std::io::Result<()> {
    let mut agent: Option<UnixStream> = None;
    loop {
        let (ready_agent, ready_listener, ready_uapi) = wait(listener, agent.as_ref(), state)?;
        if ready_listener && let Some(newer) = accept(listener, owner) {
            agent = Some(newer);
            continue;
        }
        state.tidy_sessions();
        for (network, device) in ready_uapi {
            uapi::answer(state, network, device);
        }
        if ready_agent && let Some(stream) = &agent {
            match answer(stream, state) {
                Ok(Next::Go) => {}
                Ok(Next::Stop) => return Ok(()),
                Err(error) => {
                    tracing::debug!(%error, "the agent is gone; links go on");
                    agent = None;
                }
            }
        }
    }
}

type Ready = (bool, bool, Vec<(NetworkId, ContainerId)>);

fn wait(listener: &UnixListener, agent: Option<&UnixStream>, state: &State) -> std::io::Result<Ready> {
    let of = |(id, served): (&NetworkId, &'_ Served)| {
        let id = *id;
        served.ports.keys().map(move |device| (id, *device)).collect::<Vec<_>>()
    };
    let uapi: Vec<(NetworkId, ContainerId)> = state.networks.iter().flat_map(of).collect();
    let mut fds = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let ports = state.networks.values().flat_map(|served| served.ports.values());
    fds.extend(ports.map(|ports| PollFd::new(ports.uapi.as_fd(), PollFlags::POLLIN)));
    if let Some(agent) = agent {
        fds.push(PollFd::new(agent.as_fd(), PollFlags::POLLIN));
    }
    match poll(&mut fds, PollTimeout::from(POLL_MILLIS)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
    let at = |index: usize| ready.get(index).copied().unwrap_or(false);
    let ready_uapi = uapi.iter().enumerate().filter(|(i, _)| at(i + 1)).map(|(_, found)| *found).collect();
    Ok((agent.is_some() && at(uapi.len() + 1), at(0), ready_uapi))
}

fn accept(listener: &UnixListener, owner: Uid) -> Option<UnixStream> {
    let (stream, _) = listener.accept().ok()?;
    let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    if peer.uid() != owner.as_raw() && peer.uid() != 0 {
        tracing::warn!(uid = peer.uid(), "a process that is not the agent tried to command the engine");
        return None;
    }
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    Some(stream)
}

fn answer(stream: &UnixStream, state: &mut State) -> Result<Next, FrameError> {
    let (request, fds) = recv_frame::<Request>(stream)?;
    match request {
        Request::Hello { .. } => {
            let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").to_owned());
            let reply = Reply::Hello { protocol: PROTOCOL, pid, version, two_keys: true, hears: true };
            send_frame(stream, &reply, &[state.sessions().file().as_fd()])?;
        }
        Request::Shutdown => {
            send_frame(stream, &Reply::Done, &[])?;
            return Ok(Next::Stop);
        }
        Request::Dump => dump(stream, state)?,
        Request::Stats => stats(stream, state)?,
        Request::Heard { network, peers, within_millis } => {
            let reply = match state.networks.get(&network) {
                Some(served) => {
                    let within = Duration::from_millis(within_millis);
                    let peers = peers.iter().take(MAX_PEERS_PER_MESSAGE);
                    Reply::Heard { peers: served.network.heard(peers, within, Instant::now()) }
                }
                None => Reply::Error { message: not_served(network) },
            };
            send_frame(stream, &reply, &[])?;
        }
        change => {
            let reply = match carry_out(state, change, fds) {
                Ok(()) => Reply::Done,
                Err(message) => Reply::Error { message },
            };
            send_frame(stream, &reply, &[])?;
        }
    }
    Ok(Next::Go)
}

fn carry_out(state: &mut State, request: Request, fds: Vec<OwnedFd>) -> Result<(), String> {
    match request {
        Request::PutNetwork { network, persistent_keepalive } => {
            state.put_network(network, persistent_keepalive, fds)?;
        }
        Request::RemoveNetwork { network } => state.remove_network(network),
        Request::PutDevice { network, device } => state.put_device(network, device, fds)?,
        Request::RemoveDevice { network, device } => state.remove_device(network, device),
        Request::PutPeers { network, peers, batch } => {
            if peers.len() > MAX_PEERS_PER_MESSAGE {
                return Err(format!("{} peers in one message; at most {MAX_PEERS_PER_MESSAGE}", peers.len()));
            }
            let keys = peers.iter().flat_map(|peer| std::iter::once(peer.public_key).chain(peer.also_key));
            let keys: Vec<PublicKey> = keys.collect();
            let served = state.networks.get(&network).ok_or_else(|| not_served(network))?;
            if batch == Batch::ReplaceBegin {
                served.network.begin_replace();
            }
            served.network.put_peers(peers);
            if batch == Batch::ReplaceEnd {
                served.network.end_replace();
            }
            served.network.welcome(&keys, &mut state.lane, Instant::now());
            served.network.renew(&mut state.lane, Instant::now());
        }
        Request::RemovePeers { network, keys } => {
            let served = state.networks.get(&network).ok_or_else(|| not_served(network))?;
            keys.iter().for_each(|key| served.network.remove_peer(key));
        }
        Request::Wake { network, device, peers } => {
            let served = state.networks.get(&network).ok_or_else(|| not_served(network))?;
            let peers = peers.iter().take(MAX_PEERS_PER_MESSAGE);
            served.network.wake(device, peers, &mut state.lane, Instant::now());
        }
        Request::Hello { .. }
        | Request::Heard { .. }
        | Request::Dump
        | Request::Stats
        | Request::Shutdown => {}
    }
    Ok(())
}

fn not_served(network: NetworkId) -> String {
    format!("network {network} is not served")
}

fn dump(stream: &UnixStream, state: &State) -> Result<(), FrameError> {
    for (id, served) in &state.networks {
        let reply = Reply::Network { network: *id };
        let bound = served.sockets.bound();
        let sockets: Vec<BorrowedFd<'_>> = bound.iter().map(|udp| udp.as_fd()).collect();
        send_frame(stream, &reply, &sockets)?;
        for device in served.network.devices() {
            let Some(Ports { source, uapi, .. }) = served.ports.get(&device.id) else { continue };
            let addresses = match &device.addresses {
                OwnAddresses::Only(addresses) => addresses.clone(),
                OwnAddresses::Any => Vec::new(),
            };
            let wire = WireDevice {
                id: device.id,
                name: device.name.clone(),
                private_key: WirePrivateKey(device.private_key().clone()),
                also_private_key: device.also_private_key().cloned().map(WirePrivateKey),
                also_is_next: device.also_is_next(),
                addresses,
                mtu: device.mtu(),
                relay: device.addresses == OwnAddresses::Any,
            };
            let fds: [BorrowedFd<'_>; 2] = [source.tun.as_fd(), uapi.as_fd()];
            send_frame(stream, &Reply::Device { network: *id, device: wire, gone: source.is_gone() }, &fds)?;
        }
    }
    send_frame(stream, &Reply::End, &[])
}

fn stats(stream: &UnixStream, state: &State) -> Result<(), FrameError> {
    for (id, served) in &state.networks {
        let reply = Reply::NetworkStats { network: *id, stats: served.network.stats() };
        send_frame(stream, &reply, &[])?;
        for (device, ports) in &served.ports {
            let Some(stats) = served.network.device_stats(*device) else { continue };
            let gone = ports.source.is_gone();
            send_frame(stream, &Reply::Stats { network: *id, device: *device, gone, stats }, &[])?;
        }
    }
    send_frame(stream, &Reply::End, &[])
}
