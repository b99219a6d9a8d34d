//! The same results as the specification has, and as another implementation; and no answer to what was tampered with.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use proptest::prelude::*;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// The key with every library that there is here, so that a processor which has AVX-512 tests both.
fn keys(key: &[u8; 32]) -> Vec<LessSafeKey> {
    [UnboundKey::new(&CHACHA20_POLY1305, key), UnboundKey::of_aws_lc(key)]
        .map(|key| LessSafeKey::new(key.unwrap()))
        .into()
}

fn sealed(key: &LessSafeKey, nonce: [u8; 12], aad: &[u8], text: &[u8]) -> Vec<u8> {
    let mut data = text.to_vec();
    let tag = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut data)
        .unwrap();
    data.extend_from_slice(tag.as_ref());
    data
}

fn opened(key: &LessSafeKey, nonce: [u8; 12], aad: &[u8], mut data: Vec<u8>) -> Option<Vec<u8>> {
    let text = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut data);
    text.ok().map(|text| text.to_vec())
}

fn theirs(key: &[u8; 32], nonce: [u8; 12], aad: &[u8], text: &[u8]) -> Vec<u8> {
    let mut data = text.to_vec();
    let tag =
        ChaCha20Poly1305::new(key.into()).encrypt_in_place_detached(&nonce.into(), aad, &mut data).unwrap();
    data.extend_from_slice(&tag);
    data
}

/// RFC 8439, section 2.8.2.
#[test]
fn the_vector_of_the_specification() {
    let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
    let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
    let aad = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
    let text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
    for key in keys(&key) {
        let sealed = sealed(&key, nonce, &aad, text);
        let hex: String = sealed[text.len()..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "1ae10b594f09e26a7e902ecbd0600691", "the tag by {key:?}");
        assert_eq!(sealed[..8], [0xd3, 0x1a, 0x8d, 0x34, 0x64, 0x8e, 0x60, 0xdb], "the text by {key:?}");
        assert_eq!(opened(&key, nonce, &aad, sealed).as_deref(), Some(&text[..]));
    }
}

/// Every length up to some packets, as vector code has another way for each remainder.
#[test]
fn every_length_of_a_packet() {
    let (key, nonce) = ([0x5a; 32], [9; 12]);
    let text: Vec<u8> = (0..3000).map(|i| (i * 7) as u8).collect();
    for ours in keys(&key) {
        for length in 0..text.len() {
            let sealed = sealed(&ours, nonce, &[], &text[..length]);
            assert_eq!(sealed, theirs(&key, nonce, &[], &text[..length]), "{length} bytes by {ours:?}");
            assert_eq!(
                opened(&ours, nonce, &[], sealed).unwrap(),
                text[..length],
                "{length} bytes by {ours:?}"
            );
        }
    }
}

#[test]
fn what_is_no_key_and_no_packet_is_refused() {
    for length in [0, 31, 33] {
        assert!(UnboundKey::new(&CHACHA20_POLY1305, &vec![0; length]).is_err(), "a key of {length} bytes");
    }
    for key in keys(&[1; 32]) {
        for length in 0..16 {
            assert_eq!(
                opened(&key, [0; 12], &[], vec![0; length]),
                None,
                "{length} bytes are not even a tag"
            );
        }
    }
}

/// Threads have managers of their own, and a key goes from one to another.
#[test]
fn threads_share_a_key() {
    let (key, text) = ([3; 32], vec![0xa5; 1420]);
    let ours = &keys(&key);
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let text = &text;
            scope.spawn(move || {
                for round in 0..200 {
                    let nonce = [thread, round, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                    for ours in ours {
                        assert_eq!(sealed(ours, nonce, &[], text), theirs(&key, nonce, &[], text));
                    }
                }
            });
        }
    });
}

proptest! {
    #[test]
    fn any_packet_is_what_the_other_makes_of_it(
        key: [u8; 32], nonce: [u8; 12],
        aad in prop::collection::vec(any::<u8>(), 0..100),
        text in prop::collection::vec(any::<u8>(), 0..9000),
        flip: prop::sample::Index, bit in 0..8_u8,
    ) {
        for ours in keys(&key) {
            let sealed = sealed(&ours, nonce, &aad, &text);
            prop_assert_eq!(&sealed, &theirs(&key, nonce, &aad, &text));
            let mut spoiled = sealed.clone();
            let at = flip.index(spoiled.len());
            spoiled[at] ^= 1 << bit;
            prop_assert_eq!(opened(&ours, nonce, &aad, spoiled), None);
            prop_assert_eq!(opened(&ours, nonce, &aad, sealed), Some(text.clone()));
        }
    }
}
