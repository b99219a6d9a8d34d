//! One look at a device: what of it is not as it should be, and what follows. Pure, so that it can be tested without a kernel.
//!
//! A session is never put at risk: no peer is replaced, an endpoint at which a peer was heard is left alone for as long as
//! something comes from there, and only what differs is set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use znet_core::key::{PresharedKey, PublicKey};
use znet_wg::control::{Device, Peer};

use super::directory::Directory;
use super::wg::{Put, Seen, SeenPeer};

/// Up to so many containers in a network each device is told all of them at once. Beyond it a peer is told when it is
/// wanted, and so many stay told: a device with a few hundred peers is listed in a millisecond, one with ten thousand in
/// a hundred.
pub const EAGER_PEERS: usize = 256;
/// A session ends so long after its handshake (white paper, section 6.1: Reject-After-Time).
pub(super) const SESSION: Duration = Duration::from_secs(180);
/// A peer without a session that does not answer for so long is tried elsewhere: one initiation and its repetition
/// (white paper, section 6.1: Rekey-Timeout, with its jitter).
const UNANSWERED: Duration = Duration::from_millis(6_000);
/// A peer that had a session is tried elsewhere when nothing came for so long (Keepalive-Timeout and Rekey-Timeout).
const SILENT: Duration = Duration::from_secs(15);
/// A peer that nobody wanted for so long may be forgotten where there are many; its session ended before.
const IDLE: Duration = Duration::from_secs(300);

/// What is remembered of a peer that a device was told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// When it was told.
    since: Instant,
    /// The number of the endpoint that is tried next.
    next: usize,
    /// Bytes from it and to it when something came last.
    heard: (u64, u64),
    /// When that was, as far as the looks tell.
    heard_at: Option<Instant>,
    /// Since when something is sent to it and nothing comes.
    silent: Option<Instant>,
}

impl Told {
    /// A peer that is told now, with its first endpoint.
    pub(super) fn now(now: Instant) -> Self {
        Self { since: now, next: 1, heard: (0, 0), heard_at: None, silent: None }
    }

    /// Whether it was ever heard.
    pub(super) fn heard(&self) -> bool {
        self.heard.0 > 0
    }

    /// How long ago it was told.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether it was heard within this time, and since it was told.
    pub(super) fn heard_within(&self, within: Duration) -> bool {
        self.heard_at.is_some_and(|at| at.elapsed() <= within)
    }
}

/// What a device should be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) device: &'a Device,
    pub(super) port: u16,
    pub(super) directory: &'a Directory,
    /// The directory is what a map said. Before that nobody knows which peers are too many.
    pub(super) known: bool,
    /// Seconds between keepalives to peers with a session.
    pub(super) keepalive: Option<u16>,
}

/// What has to be done so that it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Repair {
    /// Its key or port is another one, or its packets are marked.
    pub(super) set: bool,
    pub(super) put: Vec<Put>,
    pub(super) remove: Vec<PublicKey>,
    /// Peers that it was not told by this agent, and that it may keep.
    pub(super) adopted: Vec<PublicKey>,
    /// Peers that nobody wanted for long, the one that was wanted last at the end.
    pub(super) idle: Vec<PublicKey>,
}

/// What a peer's addresses are, as prefixes.
pub(super) fn prefixes(peer: &Peer) -> BTreeSet<IpNet> {
    peer.addresses.iter().map(|address| IpNet::from(*address)).collect()
}

/// A peer as it is told for the first time.
pub(super) fn whole(peer: &Peer, endpoint: Option<SocketAddr>) -> Put {
    Put {
        only_if_there: false,
        addresses: Some(peer.addresses.clone()),
        endpoint,
        preshared_key: peer.preshared_key.as_ref().map(|key| key.0.clone()),
        ..Put::of(peer.public_key)
    }
}

/// Compares a device with what it should be, and remembers what it heard of its peers.
pub(super) fn compare(
    wanted: &Wanted<'_>,
    told: &mut BTreeMap<PublicKey, Told>,
    seen: &Seen,
    now: Instant,
) -> Repair {
    let own = wanted.device.private_key.0.public_key();
    let key = seen.private_key.as_ref().map(znet_core::key::PrivateKey::public_key);
    let mut repair =
        Repair { set: key != Some(own) || seen.port != wanted.port || seen.fwmark != 0, ..Repair::default() };
    let mut idle = Vec::new();
    for (key, is) in &seen.peers {
        let Some(should) = wanted.directory.get(key).filter(|_| *key != own) else {
            if wanted.known {
                told.remove(key);
                repair.remove.push(*key);
            }
            continue;
        };
        let memory = told.entry(*key).or_insert_with(|| {
            repair.adopted.push(*key);
            Told { heard: (is.rx, is.tx), ..Told::now(now) }
        });
        repair.put.extend(mend(should, is, memory, wanted.keepalive, now));
        let quiet = is.handshake.unwrap_or_else(|| now.saturating_duration_since(memory.since));
        if quiet > IDLE {
            idle.push((quiet, *key));
        }
    }
    // What somebody took off comes back; what the network no longer has does not.
    told.retain(|key, memory| {
        let Some(should) = wanted.directory.get(key) else { return false };
        if !seen.peers.contains_key(key) {
            *memory = Told::now(now);
            repair.put.push(whole(should, should.endpoints.first().copied()));
        }
        true
    });
    idle.sort_unstable_by(|a, b| b.cmp(a));
    repair.idle = idle.into_iter().map(|(_, key)| key).collect();
    repair
}

/// What has to be changed of one peer, if anything.
fn mend(
    should: &Peer,
    is: &SeenPeer,
    memory: &mut Told,
    keepalive: Option<u16>,
    now: Instant,
) -> Option<Put> {
    let mut put = Put::of(should.public_key);
    if is.addresses != prefixes(should) {
        put.addresses = Some(should.addresses.clone());
    }
    let preshared = should.preshared_key.as_ref().map(|key| &key.0);
    if is.preshared_key.as_ref() != preshared {
        put.preshared_key = Some(preshared.cloned().unwrap_or_else(|| PresharedKey::from_bytes([0; 32])));
    }
    let alive = is.handshake.is_some_and(|age| age < SESSION);
    // Only to those that are talked with: else every pair of containers would keep a session for ever.
    let kept = if alive { keepalive.unwrap_or(0) } else { 0 };
    if is.keepalive != kept {
        put.keepalive = Some(kept);
    }
    put.endpoint = elsewhere(should, is, memory, now);
    (put != Put::of(should.public_key)).then_some(put)
}

/// Where a peer is to be tried from now on; `None` to leave it where it is.
fn elsewhere(should: &Peer, is: &SeenPeer, memory: &mut Told, now: Instant) -> Option<SocketAddr> {
    let (rx, tx) = memory.heard;
    if is.rx != rx || is.tx < tx {
        memory.heard_at = Some(now);
        memory.heard = (is.rx, is.tx);
        memory.silent = None;
    } else if is.tx > tx && memory.silent.is_none() {
        memory.silent = Some(now);
    }
    let patience = if is.handshake.is_some() { SILENT } else { UNANSWERED };
    let given_up = memory.silent.is_some_and(|since| now.saturating_duration_since(since) >= patience);
    if is.endpoint.is_some() && !given_up {
        return None;
    }
    let count = should.endpoints.len();
    let candidates = (0..count).filter_map(|n| should.endpoints.get((memory.next + n) % count));
    let next = candidates.copied().find(|candidate| is.endpoint != Some(*candidate))?;
    memory.next = should.endpoints.iter().position(|endpoint| *endpoint == next).map_or(0, |at| at + 1);
    memory.silent = None;
    memory.heard = (is.rx, is.tx);
    Some(next)
}

#[cfg(test)]
#[path = "look_tests.rs"]
mod tests;
