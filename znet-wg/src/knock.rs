//! Who knocks: reading off a handshake initiation whose it is, without answering it.
//!
//! A device of the kernel's answers the peers alone that it was told. Whoever tells it peers only when they are wanted has
//! to hear who wants it.

use blake2::digest::Mac as _;
use blake2::digest::consts::U16;
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};
use boringtun::x25519;
use znet_core::key::{PrivateKey, PublicKey};

/// The label of the key of `mac1` (white paper, section 5.4.4).
const LABEL_MAC1: &[u8] = b"mac1----";
/// What `mac1` covers of an initiation.
const COVERED: usize = 116;

/// Whether an initiation is for this key: one keyed MAC, so that a stranger who does not know the key costs no more.
pub fn is_for(public_key: &PublicKey, initiation: &[u8]) -> bool {
    let key = Blake2s256::new().chain_update(LABEL_MAC1).chain_update(public_key.as_bytes()).finalize();
    let (Some(covered), Some(mac1)) = (initiation.get(..COVERED), initiation.get(COVERED..COVERED + 16))
    else {
        return false;
    };
    let Ok(mac) = Blake2sMac::<U16>::new_with_salt_and_personal(&key, &[], &[]) else { return false };
    // It is no secret whether they are equal: the key is public.
    mac.chain_update(covered).finalize().into_bytes().as_slice() == mac1
}

/// The key of the one who sent an initiation to this private key: a key agreement, some fifty microseconds. `None` when it
/// does not decrypt. Nothing protects from replay here: it is somebody who once knocked.
pub fn initiator(private_key: &PrivateKey, initiation: &[u8]) -> Option<PublicKey> {
    let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(initiation) else { return None };
    let secret = x25519::StaticSecret::from(*private_key.to_bytes());
    let public = x25519::PublicKey::from(*private_key.public_key().as_bytes());
    let half = parse_handshake_anon(&secret, &public, &initiation).ok()?;
    Some(PublicKey::from_bytes(half.peer_static_public))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
    use boringtun::noise::TunnResult;

    use super::*;

    fn initiation(from: &PrivateKey, to: &PublicKey) -> Vec<u8> {
        let secret = x25519::StaticSecret::from(*from.to_bytes());
        let mut tunnel = Tunn::new(secret, x25519::PublicKey::from(*to.as_bytes()), None, None, 1, None);
        let mut room = [0; 256];
        match tunnel.format_handshake_initiation(&mut room, false) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            _ => panic!("no initiation"),
        }
    }

    #[test]
    fn an_initiation_tells_its_sender_to_the_one_for_whom_it_is_and_to_nobody_else() {
        let [a, b, c] = [1, 2, 3].map(|byte| PrivateKey::from_bytes([byte; 32]));
        let message = initiation(&a, &b.public_key());
        assert!(is_for(&b.public_key(), &message));
        assert!(!is_for(&c.public_key(), &message));
        assert_eq!(initiator(&b, &message), Some(a.public_key()));
        assert_eq!(initiator(&c, &message), None);
        for at in 0..message.len() - 32 {
            let mut torn = message.clone();
            torn[at] ^= 1;
            assert!(!is_for(&b.public_key(), &torn));
        }
        assert!(!is_for(&b.public_key(), &message[..100]));
    }
}
