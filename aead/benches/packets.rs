//! What a packet costs with each library: `cargo bench -p ring@0.17.14`.
#![allow(clippy::unwrap_used)]

use divan::Bencher;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

const SIZES: [usize; 4] = [64, 512, 1420, 8900];

fn main() {
    let chosen = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap();
    println!(
        "chosen for this processor: {}",
        if chosen.is_multi_buffer() { "Intel's library" } else { "AWS-LC" }
    );
    divan::main();
}

fn seal(bencher: Bencher<'_, '_>, key: UnboundKey, size: usize) {
    let (key, mut data) = (LessSafeKey::new(key), vec![0_u8; size]);
    bencher.counter(divan::counter::BytesCount::new(size)).bench_local(|| {
        key.seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut data)
            .unwrap()
    });
}

#[divan::bench(args = SIZES)]
fn chosen(bencher: Bencher<'_, '_>, size: usize) {
    seal(bencher, UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap(), size);
}

#[divan::bench(args = SIZES)]
fn aws_lc(bencher: Bencher<'_, '_>, size: usize) {
    seal(bencher, UnboundKey::of_aws_lc(&[7; 32]).unwrap(), size);
}
