//! X25519 (RFC 7748) by AWS-LC, with the names that boringtun uses of x25519-dalek 2.
//!
//! A handshake is little else than multiplications on this curve, and AWS-LC's, whose assembly is proved against a
//! specification (s2n-bignum), takes half the time of curve25519-dalek's. boringtun cannot be given another implementation, so this
//! crate takes the place of the one it asks for, in the workspace's `[patch.crates-io]`. It holds no arithmetic of its own:
//! what belongs here is the shape of x25519-dalek 2 and nothing else.
//!
//! Secrets are never printed, and wiped when they are dropped: those in AWS-LC's hands by AWS-LC (`OPENSSL_free`), those in
//! ours by zeroize.

use std::sync::Arc;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use rand_core::{CryptoRng, RngCore};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A public key: a u-coordinate of 32 bytes, little-endian (RFC 7748, section 5).
#[derive(PartialEq, Eq, Hash, Copy, Clone, Debug, Zeroize)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for PublicKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A private key and its public half. Copies share one place in memory.
#[derive(Clone)]
struct Pair {
    private: Arc<PrivateKey>,
    public: PublicKey,
}

impl Pair {
    fn new(scalar: &[u8; 32]) -> Self {
        // AWS-LC takes any 32 bytes, and clamps them when it multiplies (RFC 7748, section 5). What is left to fail is memory.
        #[expect(clippy::expect_used, reason = "any 32 bytes are a key, and without memory nobody goes on")]
        let private = PrivateKey::from_private_key(&X25519, scalar).expect("memory for a key");
        #[expect(clippy::expect_used, reason = "a key that is there has a public half")]
        let public = private.compute_public_key().expect("memory for a public key");
        let mut bytes = [0; 32];
        bytes.copy_from_slice(public.as_ref());
        Self { private: Arc::new(private), public: PublicKey(bytes) }
    }

    fn random(mut random: impl RngCore + CryptoRng) -> Self {
        let mut scalar = Zeroizing::new([0; 32]);
        random.fill_bytes(scalar.as_mut());
        Self::new(&scalar)
    }

    fn diffie_hellman(&self, their_public: &PublicKey) -> SharedSecret {
        let mut shared = SharedSecret([0; 32]);
        // AWS-LC refuses a point of low order, whose product is zero (RFC 7748, section 6.1). x25519-dalek returns that zero.
        let _ = agree(&self.private, UnparsedPublicKey::new(&X25519, &their_public.0), (), |product| {
            shared.0.copy_from_slice(product);
            Ok(())
        });
        shared
    }
}

/// A private key that is used for as long as its owner lives.
#[derive(Clone)]
pub struct StaticSecret {
    pair: Pair,
    scalar: Zeroizing<[u8; 32]>,
}

impl StaticSecret {
    /// A new one.
    pub fn random_from_rng<T: RngCore + CryptoRng>(mut random: T) -> Self {
        let mut scalar = Zeroizing::new([0; 32]);
        random.fill_bytes(scalar.as_mut());
        Self { pair: Pair::new(&scalar), scalar }
    }

    /// What this key and another's public key agree on; zero if theirs is a point of low order.
    pub fn diffie_hellman(&self, their_public: &PublicKey) -> SharedSecret {
        self.pair.diffie_hellman(their_public)
    }

    /// The 32 bytes as they were handed in, not clamped.
    pub fn to_bytes(&self) -> [u8; 32] {
        *self.scalar
    }

    /// The 32 bytes as they were handed in, not clamped.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.scalar
    }
}

impl From<[u8; 32]> for StaticSecret {
    fn from(bytes: [u8; 32]) -> Self {
        let scalar = Zeroizing::new(bytes);
        Self { pair: Pair::new(&scalar), scalar }
    }
}

impl From<&StaticSecret> for PublicKey {
    fn from(secret: &StaticSecret) -> Self {
        secret.pair.public
    }
}

/// A private key for one handshake, in which it is used twice.
#[derive(Clone)]
pub struct ReusableSecret(Pair);

impl ReusableSecret {
    /// A new one.
    pub fn random_from_rng<T: RngCore + CryptoRng>(random: T) -> Self {
        Self(Pair::random(random))
    }

    /// What this key and another's public key agree on; zero if theirs is a point of low order.
    pub fn diffie_hellman(&self, their_public: &PublicKey) -> SharedSecret {
        self.0.diffie_hellman(their_public)
    }
}

impl From<&ReusableSecret> for PublicKey {
    fn from(secret: &ReusableSecret) -> Self {
        secret.0.public
    }
}

/// A private key that is used once.
pub struct EphemeralSecret(Pair);

impl EphemeralSecret {
    /// A new one.
    pub fn random_from_rng<T: RngCore + CryptoRng>(random: T) -> Self {
        Self(Pair::random(random))
    }

    /// What this key and another's public key agree on; zero if theirs is a point of low order.
    pub fn diffie_hellman(self, their_public: &PublicKey) -> SharedSecret {
        self.0.diffie_hellman(their_public)
    }
}

impl From<&EphemeralSecret> for PublicKey {
    fn from(secret: &EphemeralSecret) -> Self {
        secret.0.public
    }
}

/// What two keys agree on, of 32 bytes.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SharedSecret([u8; 32]);

impl SharedSecret {
    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl AsRef<[u8]> for SharedSecret {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
