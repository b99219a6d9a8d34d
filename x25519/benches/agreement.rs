//! What a multiplication costs here and with the implementation whose place this takes: `cargo bench -p x25519-dalek@2.0.1`.

use dalek::{PublicKey as TheirPublic, StaticSecret as Theirs};
use divan::Bencher;
use x25519_dalek::{PublicKey, StaticSecret};

fn main() {
    divan::main();
}

#[divan::bench]
fn aws_lc_agree(bencher: Bencher<'_, '_>) {
    let (secret, public) = (StaticSecret::from([7; 32]), PublicKey::from(&StaticSecret::from([9; 32])));
    bencher.bench(|| secret.diffie_hellman(&public));
}

#[divan::bench]
fn dalek_agree(bencher: Bencher<'_, '_>) {
    let (secret, public) = (Theirs::from([7; 32]), TheirPublic::from(&Theirs::from([9; 32])));
    bencher.bench(|| secret.diffie_hellman(&public));
}

#[divan::bench]
fn aws_lc_new_pair() -> PublicKey {
    PublicKey::from(&StaticSecret::from([7; 32]))
}

#[divan::bench]
fn dalek_new_pair() -> TheirPublic {
    TheirPublic::from(&Theirs::from([7; 32]))
}
