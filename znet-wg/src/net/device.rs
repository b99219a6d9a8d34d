//! One container's device: its keys, its addresses, its figures, and where its packets come out.

use std::io::IoSlice;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac};
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use znet_core::id::ContainerId;
use znet_core::key::{PresharedKey, PrivateKey, PublicKey};

use crate::control::DeviceStats;
use crate::offload::Offloads;

/// The label of the key of `mac1` (white paper, section 5.4.4).
const LABEL_MAC1: &[u8] = b"mac1----";

/// Size of a cookie reply (white paper, section 5.4.7).
pub(super) const COOKIE_LEN: usize = 64;

/// Where a device's packets come out: a TUN device, or a list in a test.
pub trait Port: Send + Sync {
    /// Hands over a packet, which may be several joined: first their header ([`crate::offload::VnetHeader`]), then the
    /// packet in pieces. `false` when it had to be dropped.
    fn deliver(&self, slices: &[IoSlice<'_>]) -> bool;
    /// What may be joined.
    fn offloads(&self) -> Offloads;
}

/// The addresses that a device may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnAddresses {
    /// A stand-alone device: whatever the peers' prefixes and its host's routes allow.
    Any,
    /// A container's: these and no others.
    Only(Vec<IpAddr>),
}

impl OwnAddresses {
    /// Whether an address is among them.
    pub fn contains(&self, address: &IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Only(all) => all.contains(address),
        }
    }
}

/// A device's figures, counted by many threads.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) tx_packets: AtomicU64,
    pub(super) tx_bytes: AtomicU64,
    pub(super) rx_packets: AtomicU64,
    pub(super) rx_bytes: AtomicU64,
    pub(super) handshakes: AtomicU64,
    pub(super) drop_malformed: AtomicU64,
    pub(super) drop_source: AtomicU64,
    pub(super) drop_destination: AtomicU64,
    pub(super) drop_endpoint: AtomicU64,
    pub(super) drop_crypto: AtomicU64,
    pub(super) drop_full: AtomicU64,
    pub(super) drop_sessions: AtomicU64,
}

/// Counts `n` more.
pub(super) fn count(counter: &AtomicU64, n: u64) {
    if n != 0 {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

impl Counters {
    fn stats(&self, sessions: u64) -> DeviceStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeviceStats {
            tx_packets: get(&self.tx_packets),
            tx_bytes: get(&self.tx_bytes),
            rx_packets: get(&self.rx_packets),
            rx_bytes: get(&self.rx_bytes),
            sessions,
            handshakes: get(&self.handshakes),
            drop_malformed: get(&self.drop_malformed),
            drop_source: get(&self.drop_source),
            drop_destination: get(&self.drop_destination),
            drop_endpoint: get(&self.drop_endpoint),
            drop_crypto: get(&self.drop_crypto),
            drop_full: get(&self.drop_full),
            drop_sessions: get(&self.drop_sessions),
        }
    }
}

/// One container's device.
pub struct Device {
    /// The container.
    pub id: ContainerId,
    /// The name under which `wg(8)` finds it.
    pub name: String,
    /// Its own addresses.
    pub addresses: OwnAddresses,
    /// Where its packets come out.
    pub port: Arc<dyn Port>,
    mtu: AtomicU32,
    pub(super) counters: Arc<Counters>,
    pair: Arc<Pair>,
    /// Another pair for which it accepts handshakes while its pair is changed.
    also: Option<Arc<Pair>>,
    /// Whether that is the next one: of no interest here, but to whoever has it served.
    also_is_next: bool,
}

/// A device's key pair, and what follows from it.
pub(super) struct Pair {
    private_key: PrivateKey,
    /// The private key as boringtun takes it; copies are cheap.
    static_secret: x25519::StaticSecret,
    public_key: PublicKey,
    mac1_key: [u8; 32],
    /// The one that `Tunn` asks. It admits everything: what may be processed is decided before.
    limiter: Arc<RateLimiter>,
    /// The one that asks everybody for a proof of address.
    cookies: Arc<RateLimiter>,
}

/// Whether a handshake message proves that its sender is where it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// It does.
    Given,
    /// It does not; a message of this many bytes asks for it.
    Asked(usize),
    /// It is not authentic.
    Refused,
}

impl Device {
    /// A device without sessions.
    pub fn new(
        id: ContainerId,
        name: String,
        private_key: PrivateKey,
        addresses: OwnAddresses,
        mtu: u32,
        port: Arc<dyn Port>,
    ) -> Self {
        Self {
            id,
            name,
            addresses,
            port,
            mtu: AtomicU32::new(mtu),
            counters: Arc::default(),
            pair: Arc::new(Pair::new(private_key)),
            also: None,
            also_is_next: false,
        }
    }

    /// Accepts handshakes for another pair as well, the next one or a former one. The same one is none.
    #[must_use]
    pub fn accepting(mut self, private_key: Option<PrivateKey>, is_next: bool) -> Self {
        self.also_is_next = is_next;
        let pair = private_key.map(|key| Arc::new(Pair::new(key)));
        self.also = pair.filter(|also| also.public_key != self.pair.public_key);
        self
    }

    /// Goes on where an earlier device was: figures, and of each pair that was its own the cookies that peers hold.
    pub(super) fn succeed(&mut self, old: &Self) {
        self.counters = old.counters.clone();
        for pair in std::iter::once(&mut self.pair).chain(&mut self.also) {
            if let Some(same) = old.pair(&pair.public_key) {
                *pair = same.clone();
            }
        }
    }

    /// Its pairs: the one with which it makes handshakes, then the other one.
    pub(super) fn pairs(&self) -> impl Iterator<Item = &Arc<Pair>> {
        std::iter::once(&self.pair).chain(&self.also)
    }

    /// Its pair with this public half.
    pub(super) fn pair(&self, public_key: &PublicKey) -> Option<&Arc<Pair>> {
        self.pairs().find(|pair| pair.public_key == *public_key)
    }

    /// The pair with which it makes handshakes.
    pub(super) fn current(&self) -> &Arc<Pair> {
        &self.pair
    }

    /// Its MTU in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Its MTU is another now.
    pub fn set_mtu(&self, mtu: u32) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Its private key.
    pub fn private_key(&self) -> &PrivateKey {
        &self.pair.private_key
    }

    /// The other private key for which it accepts handshakes.
    pub fn also_private_key(&self) -> Option<&PrivateKey> {
        self.also.as_ref().map(|pair| &pair.private_key)
    }

    /// Whether that is the next one.
    pub fn also_is_next(&self) -> bool {
        self.also_is_next
    }

    /// Its public key.
    pub fn public_key(&self) -> &PublicKey {
        &self.pair.public_key
    }

    /// Its figures, when it has so many sessions.
    pub(super) fn stats(&self, sessions: u64) -> DeviceStats {
        self.counters.stats(sessions)
    }
}

impl Pair {
    fn new(private_key: PrivateKey) -> Self {
        let public_key = private_key.public_key();
        let public = x25519::PublicKey::from(*public_key.as_bytes());
        Self {
            static_secret: x25519::StaticSecret::from(*private_key.to_bytes()),
            private_key,
            public_key,
            mac1_key: Blake2s256::new()
                .chain_update(LABEL_MAC1)
                .chain_update(public_key.as_bytes())
                .finalize()
                .into(),
            limiter: Arc::new(RateLimiter::new(&public, u64::MAX)),
            cookies: Arc::new(RateLimiter::new(&public, 0)),
        }
    }

    /// The public half.
    pub(super) fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The keyed MAC that an initiation for this device bears over `message` (white paper, section 5.4.4).
    pub(super) fn mac1(&self, message: &[u8]) -> [u8; 16] {
        let keyed = Blake2sMac::<U16>::new_with_salt_and_personal(&self.mac1_key, &[], &[]);
        // A key of 32 bytes is one that BLAKE2s takes; an all-zero MAC would match nothing that is authentic.
        keyed.map_or([0; 16], |mac| mac.chain_update(message).finalize().into_bytes().into())
    }

    /// Whether a handshake message has the MAC that only who received our last cookie can make (white paper, section 5.3).
    /// If not, a cookie is written to `into`.
    pub(super) fn proves_address(&self, from: IpAddr, datagram: &[u8], into: &mut [u8; COOKIE_LEN]) -> Proof {
        match self.cookies.verify_packet(Some(from), datagram, into) {
            Ok(_) => Proof::Given,
            Err(TunnResult::WriteToNetwork(cookie)) => Proof::Asked(cookie.len()),
            Err(_) => Proof::Refused,
        }
    }

    /// boringtun's state for a session with a peer. Keepalives are the session's own.
    pub(super) fn tunn(&self, peer: &PublicKey, preshared: Option<&PresharedKey>, index: u32) -> Tunn {
        let peer = x25519::PublicKey::from(*peer.as_bytes());
        let preshared = preshared.map(|key| *key.to_bytes());
        Tunn::new(self.static_secret.clone(), peer, preshared, None, index, Some(self.limiter.clone()))
    }

    /// The private key as boringtun takes it.
    pub(super) fn static_secret(&self) -> &x25519::StaticSecret {
        &self.static_secret
    }
}
