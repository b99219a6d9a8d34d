//! No secret is shown by anything, and all are wiped.

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use zeroize::ZeroizeOnDrop;
use znet_core::controller::{Command, Reply, TokenSecret};
use znet_core::id::{NodeId, TokenId};
use znet_core::key::{KeyError, PresharedKey, PrivateKey, PublicKey, SigningKey, VerifyingKey};

/// Compiles only for types that wipe themselves; these are the ones that the key types are made of.
const _: () = {
    const fn wipes_itself<T: ZeroizeOnDrop>() {}
    wipes_itself::<x25519_dalek::StaticSecret>();
    wipes_itself::<ed25519_dalek::SigningKey>();
    wipes_itself::<zeroize::Zeroizing<[u8; 32]>>();
    wipes_itself::<PrivateKey>();
    wipes_itself::<PresharedKey>();
    wipes_itself::<SigningKey>();
    wipes_itself::<TokenSecret>();
};

/// Every usual way in which 32 bytes could be spelled in a text.
fn spellings(bytes: &[u8; 32]) -> Vec<String> {
    use base64::Engine as _;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let standard = base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes);
    let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let list = format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    vec![hex.to_uppercase(), hex, standard, url, list]
}

proptest! {
    #[test]
    fn no_debug_text_shows_a_secret(bytes: [u8; 32]) {
        let private = PrivateKey::from_bytes(bytes);
        let secret = TokenSecret::from_bytes(bytes);
        let node = NodeId::from_bytes([1; 32]);
        let join = Command::Join {
            secret: Some(secret.clone()), node, name: "a".parse().unwrap(), endpoints: vec![], two_keys: true };
        let token = Reply::Token { id: TokenId::from_bytes([2; 8]), secret: secret.clone() };
        let texts = [
            format!("{private:?} {private:#?}"),
            format!("{:?}", PresharedKey::from_bytes(bytes)),
            format!("{:?}", SigningKey::from_seed(&bytes)),
            format!("{secret:?} {join:?} {token:?}"),
        ];
        for spelling in spellings(&bytes) {
            prop_assert!(texts.iter().all(|text| !text.contains(&spelling)));
        }
    }

    #[test]
    fn keys_survive_their_texts(bytes: [u8; 32]) {
        let private = PrivateKey::from_bytes(bytes);
        prop_assert_eq!(*PrivateKey::from_base64(&private.to_base64()).unwrap().to_bytes(), bytes);
        let preshared = PresharedKey::from_bytes(bytes);
        prop_assert_eq!(&PresharedKey::from_base64(&preshared.to_base64()).unwrap(), &preshared);
        let public = private.public_key();
        prop_assert_eq!(public.to_string().parse::<PublicKey>(), Ok(public));
        let json = serde_json::to_string(&public).unwrap();
        prop_assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), public);
        let verifying = SigningKey::from_seed(&bytes).verifying_key();
        let json = serde_json::to_string(&verifying).unwrap();
        prop_assert_eq!(serde_json::from_str::<VerifyingKey>(&json).unwrap(), verifying);
    }

    #[test]
    fn any_text_and_bytes_are_read_or_refused_without_a_panic(text in ".{0,60}", bytes: Vec<u8>) {
        let _ = text.parse::<PublicKey>();
        let _ = PrivateKey::from_base64(&text);
        prop_assert_eq!(PublicKey::try_from(bytes.as_slice()).is_ok(), bytes.len() == 32);
        let _ = VerifyingKey::from_slice(&bytes);
    }

    #[test]
    fn every_key_that_is_generated_is_usable(seed: u64) {
        let private = PrivateKey::generate(&mut ChaCha20Rng::seed_from_u64(seed));
        prop_assert!(private.public_key().is_usable());
    }

    #[test]
    fn a_usable_key_is_the_only_form_of_its_point(seed: u64) {
        let public = PrivateKey::generate(&mut ChaCha20Rng::seed_from_u64(seed)).public_key();
        let mut other = *public.as_bytes();
        other[31] |= 0x80;
        // The same point for every receiver, since the top bit is ignored, and yet another key.
        prop_assert!(!PublicKey::from_bytes(other).is_usable());
    }
}

#[test]
fn a_key_pair_is_the_one_of_rfc_7748() {
    // Section 6.1.
    let hex = |text: &str| *text.parse::<NodeId>().unwrap().as_bytes();
    let private = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    let public = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    assert_eq!(PrivateKey::from_bytes(private).public_key().as_bytes(), &public);
}

#[test]
fn points_of_small_order_and_numbers_beyond_the_prime_are_no_usable_keys() {
    let number = |lowest: u8, rest: u8, highest: u8| {
        let mut bytes = [rest; 32];
        (bytes[0], bytes[31]) = (lowest, highest);
        PublicKey::from_bytes(bytes)
    };
    assert!(!number(0, 0, 0).is_usable(), "0, of order 4");
    assert!(!number(1, 0, 0).is_usable(), "1, of order 1");
    assert!(!number(0xec, 0xff, 0x7f).is_usable(), "p - 1, of order 2");
    assert!(!number(0xed, 0xff, 0x7f).is_usable(), "p itself");
    assert!(!number(0xff, 0xff, 0x7f).is_usable(), "p + 18");
    assert!(!number(9, 0, 0x80).is_usable(), "the base point with the top bit set");
    assert!(number(9, 0, 0).is_usable(), "the base point");
    assert!(number(0xeb, 0xff, 0x7f).is_usable(), "p - 2, the highest that there is");
}

#[test]
fn a_signature_of_another_message_or_key_does_not_verify() {
    let key = SigningKey::from_seed(&[1; 32]);
    let signature = key.sign(b"one");
    assert!(key.verifying_key().verifies(b"one", &signature));
    assert!(!key.verifying_key().verifies(b"two", &signature));
    assert!(!SigningKey::from_seed(&[2; 32]).verifying_key().verifies(b"one", &signature));
    assert_eq!(VerifyingKey::from_slice(&[0; 31]), Err(KeyError::Length { got: 31 }));
}
