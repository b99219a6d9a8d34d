//! An incremental hash over a set of records.
//!
//! LtHash with 1024 lanes of 16 bits over BLAKE3 as the extendable-output function: M. Bellare and D. Micciancio, "A
//! New Paradigm for Collision-Free Hashing: Incrementality at Reduced Cost" (Eurocrypt 1997), in the form of K. Lewi
//! et al., "Securing Update Propagation with Homomorphic Hashing" (2019). Adding and removing a record each cost one
//! record, at any size of the set; finding two sets of equal hash is a short-vector problem.

use std::fmt;

use serde::{Deserialize, Serialize};
use solana_lattice_hash::lt_hash::LtHash;

use super::record::Record;
use crate::id::NetworkId;

/// Separates these hashes from every other use of BLAKE3 (its specification, section 6.2).
const CONTEXT: &str = "znet 2026-11 map record v1";

/// The hash of a set of records in the form that can still change: 2 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct SetHash {
    key: [u8; 32],
    lanes: Box<LtHash>,
}

impl SetHash {
    /// The hash of no records, for a network; equal records of two networks hash differently.
    pub fn empty(network: NetworkId) -> Self {
        Self { key: blake3::derive_key(CONTEXT, network.as_bytes()), lanes: Box::new(LtHash::identity()) }
    }

    /// Adds a record to the set. The caller sees to it that it is not in the set yet.
    pub fn add(&mut self, record: &Record) {
        let element = self.element(record);
        self.lanes.mix_in(&element);
    }

    /// Takes a record out of the set. The caller sees to it that it is in the set.
    pub fn remove(&mut self, record: &Record) {
        let element = self.element(record);
        self.lanes.mix_out(&element);
    }

    /// The 32 bytes that stand for the set in a head.
    pub fn digest(&self) -> Digest {
        Digest(self.lanes.checksum().0)
    }

    fn element(&self, record: &Record) -> LtHash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&record.canonical_bytes());
        LtHash::with(&hasher)
    }
}

impl fmt::Debug for SetHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetHash({})", self.digest())
    }
}

/// The digest of a map: 32 bytes that no other set of records of the network has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest as bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
