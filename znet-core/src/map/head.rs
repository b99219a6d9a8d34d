//! The signed head: the few bytes that make a whole map believable.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::id::{Epoch, NetworkId, Revision};
use crate::key::{Signature, SigningKey, VerifyingKey};

/// Separates signatures over heads from every other signature of the same key.
const CONTEXT: &[u8] = b"znet map head v1\0";

/// A revision of a network's map and the digest of the map at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The network.
    pub network: NetworkId,
    /// The restart of the network's history that the revision belongs to.
    pub epoch: Epoch,
    /// The revision.
    pub revision: Revision,
    /// The digest of the map at that revision.
    pub digest: Digest,
}

impl Head {
    /// The order in which an agent must never go back: epoch first, then revision.
    pub fn position(&self) -> (Epoch, Revision) {
        (self.epoch, self.revision)
    }

    /// Signs the head with the network's key.
    pub fn sign(self, key: &SigningKey) -> SignedHead {
        SignedHead { head: self, signature: key.sign(&self.message()) }
    }

    fn message(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CONTEXT.len() + 64);
        out.extend_from_slice(CONTEXT);
        out.extend_from_slice(self.network.as_bytes());
        out.extend_from_slice(&self.epoch.get().to_be_bytes());
        out.extend_from_slice(&self.revision.get().to_be_bytes());
        out.extend_from_slice(self.digest.as_bytes());
        out
    }
}

/// A head under the network's signature. That it is signed does not mean that it verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedHead {
    /// What is claimed.
    pub head: Head,
    /// The network's signature over it.
    pub signature: Signature,
}

impl SignedHead {
    /// Whether the signature is `key`'s over this head.
    pub fn verifies(&self, key: &VerifyingKey) -> bool {
        key.verifies(&self.head.message(), &self.signature)
    }
}
