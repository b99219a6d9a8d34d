//! The same results as the curve's specification has, and as the implementation whose place this takes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use dalek::{PublicKey as TheirPublic, StaticSecret as Theirs};
use proptest::prelude::*;
use rand_core::OsRng;
use x25519_dalek::{EphemeralSecret, PublicKey, ReusableSecret, StaticSecret};

/// RFC 7748, section 5.2: the result is the next scalar, and the scalar the next point.
#[test]
fn the_iterations_of_the_specification() {
    let mut base = [0; 32];
    base[0] = 9;
    let (mut scalar, mut point) = (base, base);
    let mut step = || {
        let product = StaticSecret::from(scalar).diffie_hellman(&PublicKey::from(point)).to_bytes();
        point = std::mem::replace(&mut scalar, product);
        product
    };
    assert_eq!(hex(step()), "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
    for _ in 1..999 {
        step();
    }
    assert_eq!(hex(step()), "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51");
}

fn hex(bytes: [u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

proptest! {
    #[test]
    fn any_scalar_and_any_point_give_what_the_other_gives(scalar: [u8; 32], point: [u8; 32]) {
        let (ours, theirs) = (StaticSecret::from(scalar), Theirs::from(scalar));
        prop_assert_eq!(PublicKey::from(&ours).to_bytes(), TheirPublic::from(&theirs).to_bytes());
        let product = ours.diffie_hellman(&PublicKey::from(point));
        prop_assert_eq!(product.to_bytes(), theirs.diffie_hellman(&TheirPublic::from(point)).to_bytes());
        prop_assert_eq!(ours.to_bytes(), scalar);
    }
}

/// The points whose order is 1, 2, 4 and 8, and the same beyond the field's prime (RFC 7748, section 5 has them reduced).
#[test]
fn a_point_of_low_order_gives_zero_and_no_panic() {
    let mut points = vec![[0; 32], [0xff; 32]];
    for low in [[0x00], [0x01], [0xec], [0xed], [0xee]] {
        let mut point = if low[0] < 2 { [0; 32] } else { [0xff; 32] };
        point[0] = low[0];
        if low[0] >= 2 {
            point[31] = 0x7f;
        }
        points.push(point);
    }
    for point in points {
        let (ours, theirs) = (StaticSecret::from([7; 32]), Theirs::from([7; 32]));
        let product = ours.diffie_hellman(&PublicKey::from(point)).to_bytes();
        assert_eq!(product, theirs.diffie_hellman(&TheirPublic::from(point)).to_bytes(), "{point:?}");
    }
    assert_eq!(StaticSecret::from([7; 32]).diffie_hellman(&PublicKey::from([0; 32])).to_bytes(), [0; 32]);
}

#[test]
fn two_sides_agree_whatever_kinds_their_keys_are() {
    let (fixed, reused) = (StaticSecret::random_from_rng(OsRng), ReusableSecret::random_from_rng(OsRng));
    let (fixed_public, reused_public) = (PublicKey::from(&fixed), PublicKey::from(&reused));
    assert_eq!(
        fixed.diffie_hellman(&reused_public).to_bytes(),
        reused.diffie_hellman(&fixed_public).to_bytes()
    );
    let once = EphemeralSecret::random_from_rng(OsRng);
    let once_public = PublicKey::from(&once);
    assert_eq!(once.diffie_hellman(&fixed_public).to_bytes(), fixed.diffie_hellman(&once_public).to_bytes());
    assert_ne!(fixed_public, reused_public);
}
