//! One container's device: its keys, its addresses and its sessions.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac};
use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use znet_core::id::ContainerId;
use znet_core::key::{PrivateKey, PublicKey};

use super::session::Session;
use crate::control::DeviceStats;

/// Most sessions that one device holds: each takes about 12 KiB.
pub const MAX_SESSIONS_PER_DEVICE: usize = 10_000;
/// The label of the key of `mac1` (white paper, section 5.4.4).
const LABEL_MAC1: &[u8] = b"mac1----";
/// Handshake messages a second that a device answers without asking for a cookie (white paper, section 5.3).
const HANDSHAKES_BEFORE_COOKIES: u64 = 1_000;

/// One container's device.
pub struct Device {
    /// The container.
    pub id: ContainerId,
    /// The name under which `wg(8)` finds it.
    pub name: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its figures.
    pub stats: DeviceStats,
    private_key: PrivateKey,
    public_key: PublicKey,
    mac1_key: [u8; 32],
    limiter: Arc<RateLimiter>,
    pub(super) sessions: HashMap<PublicKey, (u32, Session)>,
}

impl Device {
    /// A device without sessions.
    pub fn new(
        id: ContainerId,
        name: String,
        private_key: PrivateKey,
        addresses: Vec<IpAddr>,
        mtu: u32,
    ) -> Self {
        let public_key = private_key.public_key();
        let public = x25519::PublicKey::from(*public_key.as_bytes());
        Self {
            id,
            name,
            addresses,
            mtu,
            stats: DeviceStats::default(),
            private_key,
            public_key,
            mac1_key: Blake2s256::new()
                .chain_update(LABEL_MAC1)
                .chain_update(public_key.as_bytes())
                .finalize()
                .into(),
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_BEFORE_COOKIES)),
            sessions: HashMap::new(),
        }
    }

    /// Its private key.
    pub fn private_key(&self) -> &PrivateKey {
        &self.private_key
    }

    /// Its public key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The keyed MAC that an initiation for this device bears over `message` (white paper, section 5.4.4).
    pub(super) fn mac1(&self, message: &[u8]) -> [u8; 16] {
        let keyed = Blake2sMac::<U16>::new_with_salt_and_personal(&self.mac1_key, &[], &[]);
        // A key of 32 bytes is one that BLAKE2s takes; an all-zero MAC would match nothing that is authentic.
        keyed.map_or([0; 16], |mac| mac.chain_update(message).finalize().into_bytes().into())
    }

    /// The session with a peer.
    pub fn session(&self, peer: &PublicKey) -> Option<&Session> {
        self.sessions.get(peer).map(|(_, session)| session)
    }

    /// The peers with which it has sessions, or makes them.
    pub fn peers(&self) -> impl Iterator<Item = &PublicKey> {
        self.sessions.keys()
    }

    /// One limiter for all sessions of the device, so that its cookies hold for all of them.
    pub(super) fn limiter(&self) -> &Arc<RateLimiter> {
        &self.limiter
    }

    pub(super) fn tunn(
        &self,
        peer: &PublicKey,
        preshared: Option<[u8; 32]>,
        keepalive: Option<u16>,
        index: u32,
    ) -> Tunn {
        let secret = self.static_secret();
        let peer = x25519::PublicKey::from(*peer.as_bytes());
        Tunn::new(secret, peer, preshared, keepalive, index, Some(self.limiter.clone()))
    }

    /// The private key as boringtun's version of x25519-dalek has it.
    pub(super) fn static_secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(*self.private_key.to_bytes())
    }
}
