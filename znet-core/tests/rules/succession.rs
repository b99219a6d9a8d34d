//! One signing key after another: who follows, and what nobody follows.

use proptest::prelude::*;
use znet_core::controller::{Command, Network, NewNetwork, Rejection, Settings};
use znet_core::id::{Epoch, NetworkId, Revision};
use znet_core::key::SigningKey;
use znet_core::map::{Head, LineRefusal, MAX_LINE, Map, Member, Refusal, SignedHead, Succession};
use znet_core::time::Timestamp;

use crate::generate::NETWORK;

fn key(number: usize) -> SigningKey {
    SigningKey::from_seed(&[u8::try_from(number).unwrap(); 32])
}

/// The statements from key 0 to key `length`.
fn line(network: NetworkId, length: usize) -> Vec<Succession> {
    (0..length).map(|at| Succession::sign(network, &key(at), key(at + 1).verifying_key())).collect()
}

fn head(revision: u64, by: &SigningKey) -> SignedHead {
    let digest = Map::default().set_hash(NETWORK).digest();
    Head { network: NETWORK, epoch: Epoch::default(), revision: Revision::new(revision), digest }.sign(by)
}

/// A member that believes key `at` and has applied a map under it.
fn member(at: usize) -> Member {
    let mut member = Member::new(NETWORK, key(at).verifying_key());
    member.apply_snapshot([], &head(1, &key(at))).unwrap();
    member
}

/// Checks that nothing of the member changed, and that it still believes key `at` alone.
fn assert_stays(member: &mut Member, at: usize) {
    assert_eq!(*member.key(), key(at).verifying_key());
    assert_eq!(member.revision(), Revision::new(1));
    member.apply_snapshot([], &head(2, &key(at))).unwrap();
}

proptest! {
    #[test]
    fn whoever_believes_any_key_of_a_line_follows_to_its_end_and_believes_that_alone(
        length in 1..=MAX_LINE, from in any::<prop::sample::Index>(),
    ) {
        let from = from.index(length + 1);
        let mut member = member(from);
        prop_assert_eq!(member.follow(&line(NETWORK, length)), Ok(from != length));
        prop_assert_eq!(*member.key(), key(length).verifying_key());
        // The map stays, and is older than what any earlier key signs from now on.
        prop_assert_eq!(member.revision(), Revision::new(1));
        for earlier in 0..length {
            let refused = member.apply_snapshot([], &head(2, &key(earlier)));
            prop_assert_eq!(refused, Err(Refusal::Signature { revision: Revision::new(2) }));
        }
        let older = member.apply_snapshot([], &head(0, &key(length)));
        prop_assert!(matches!(older, Err(Refusal::Older { .. })), "{:?}", older);
        prop_assert!(member.apply_snapshot([], &head(2, &key(length))).is_ok());
    }

    #[test]
    fn a_line_with_anything_wrong_in_it_is_not_followed(
        length in 1..=MAX_LINE, at in any::<prop::sample::Index>(), what in 0..7, bit in 0usize..512,
    ) {
        let (mut bad, at) = (line(NETWORK, length), at.index(length));
        let (by, to, other) = (key(at), key(at + 1).verifying_key(), key(100).verifying_key());
        let expected = match what {
            // Of another network, and rightly signed there.
            0 => {
                bad[at] = Succession::sign(NetworkId::from_bytes([8; 16]), &by, to);
                LineRefusal::ForeignNetwork { expected: NETWORK, got: NetworkId::from_bytes([8; 16]) }
            }
            // Signed by somebody else in the name of the key that goes.
            1 => {
                bad[at].signature = Succession::sign(NETWORK, &key(101), to).signature;
                LineRefusal::Signature
            }
            // A bit of a signature.
            2 => {
                let mut bytes = *bad[at].signature.as_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                bad[at].signature = znet_core::key::Signature::from_bytes(bytes);
                LineRefusal::Signature
            }
            // What the key said of another key.
            3 => {
                bad[at].to = other;
                if at + 1 < length { LineRefusal::Forked } else { LineRefusal::Signature }
            }
            // Two ways from one key.
            4 => {
                bad.insert(at, Succession::sign(NETWORK, &by, other));
                if bad.len() > MAX_LINE { LineRefusal::TooLong { got: bad.len() } } else { LineRefusal::Forked }
            }
            // Back to a key that went.
            5 => {
                bad.push(Succession::sign(NETWORK, &key(length), key(at).verifying_key()));
                if bad.len() > MAX_LINE { LineRefusal::TooLong { got: bad.len() } } else { LineRefusal::Forked }
            }
            // Too long, though all of it is right.
            _ => {
                bad = line(NETWORK, MAX_LINE + 1);
                LineRefusal::TooLong { got: MAX_LINE + 1 }
            }
        };
        let mut member = member(0);
        prop_assert_eq!(member.follow(&bad), Err(expected));
        assert_stays(&mut member, 0);
    }

    #[test]
    fn a_line_that_begins_after_the_believed_key_or_beside_it_is_not_followed(
        length in 2..=MAX_LINE, begin in any::<prop::sample::Index>(),
    ) {
        let all = line(NETWORK, length);
        let begin = begin.index(length - 1) + 1;
        let mut member = member(0);
        prop_assert_eq!(member.follow(&all[begin..]), Err(LineRefusal::LeadsElsewhere));
        prop_assert_eq!(member.follow(&[]), Err(LineRefusal::LeadsElsewhere));
        assert_stays(&mut member, 0);
    }
}

#[test]
fn a_statement_is_no_head_and_a_head_is_no_statement() {
    let statement = Succession::sign(NETWORK, &key(0), key(1).verifying_key());
    let signed = head(2, &key(0));
    let mut member = member(0);
    let forged = SignedHead { signature: statement.signature, ..signed };
    assert!(matches!(member.apply_snapshot([], &forged), Err(Refusal::Signature { .. })));
    let forged = Succession { signature: signed.signature, ..statement };
    assert_eq!(member.follow(&[forged]), Err(LineRefusal::Signature));
    assert_stays(&mut member, 0);
}

#[test]
fn a_network_takes_a_statement_of_its_present_key_alone_and_forgets_the_line_when_told_to() {
    let rng = &mut rand::rng();
    let now = Timestamp::from_millis(1);
    let new = NewNetwork { name: "acme".parse().unwrap(), prefixes: vec![], settings: Settings::default() };
    let rows =
        Network::create(NETWORK, &new, now, rng).unwrap().into_iter().filter_map(|change| match change {
            znet_core::controller::StateChange::Put(row) => Some(row),
            znet_core::controller::StateChange::Remove(_) => None,
        });
    let mut network = Network::from_rows(Revision::new(1), rows).unwrap();
    let rotate = |from: usize, to: usize| Command::RotateKey {
        statement: Box::new(Succession::sign(NETWORK, &key(from), key(to).verifying_key())),
    };
    for step in 0..MAX_LINE {
        let decision = network.decide(&rotate(step, step + 1), now, rng).unwrap();
        network.apply(&decision.changes);
        // Made at the same time by another controller: the first one counts.
        let late = network.decide(&rotate(step, 90), now, rng);
        assert_eq!(late.unwrap_err(), Rejection::StaleKey);
    }
    let signing = network.conf().signing.clone().unwrap();
    assert_eq!(signing.key, key(MAX_LINE).verifying_key());
    // The key of a revision is that with which its head was signed.
    for revision in 1..=network.revision().get() {
        let expected = key(usize::try_from(revision - 1).unwrap()).verifying_key();
        assert_eq!(signing.key_at(Revision::new(revision)), expected, "revision {revision}");
    }
    for from in 0..MAX_LINE {
        let line = signing.line(&key(from).verifying_key(), &signing.key).unwrap();
        assert_eq!(member(from).follow(&line), Ok(true));
    }
    assert!(signing.line(&key(90).verifying_key(), &signing.key).is_none());
    let full = network.decide(&rotate(MAX_LINE, MAX_LINE + 1), now, rng);
    assert_eq!(full.unwrap_err(), Rejection::LongLine);
    let decision = network.decide(&Command::RetireKeys, now, rng).unwrap();
    network.apply(&decision.changes);
    let signing = network.conf().signing.clone().unwrap();
    assert!(signing.key == key(MAX_LINE).verifying_key() && signing.line.is_empty());
    assert!(signing.line(&key(0).verifying_key(), &signing.key).is_none());
    assert!(network.decide(&Command::RetireKeys, now, rng).unwrap().changes.is_empty());
    // From rows as they are stored, those of a version before this among them.
    let stored = serde_json::to_string(network.conf()).unwrap();
    assert_eq!(&serde_json::from_str::<znet_core::controller::NetworkConf>(&stored).unwrap(), network.conf());
    let mut old: serde_json::Value = serde_json::from_str(&stored).unwrap();
    old.as_object_mut().unwrap().remove("signing");
    let old: znet_core::controller::NetworkConf = serde_json::from_value(old).unwrap();
    assert!(old.signing.is_none() && old.controllers.is_empty());
}
