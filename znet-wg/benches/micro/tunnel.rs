//! Packets through a session, cipher included. Neither side does any I/O.

use divan::Bencher;
use divan::counter::BytesCount;

use crate::common::{DATAGRAMS, HEADERS, MTU, PAYLOAD, SEGMENTS, aggregate, gso, large, pair};

/// One read of 64 KiB: cut into 47 packets, each encrypted.
#[divan::bench]
fn encrypt_64_kib(bencher: Bencher<'_, '_>) {
    let [mut sender, _] = pair();
    let whole = large(SEGMENTS);
    bencher
        .counter(BytesCount::new(HEADERS + SEGMENTS * PAYLOAD))
        .with_inputs(|| whole.clone())
        .bench_local_refs(|buffer| sender.read(gso(), buffer));
}

/// One receive call of 64 KiB: 45 datagrams decrypted, their packets joined.
#[divan::bench]
fn decrypt_64_kib(bencher: Bencher<'_, '_>) {
    let [mut sender, mut receiver] = pair();
    let before = receiver.packets().1;
    // What was received once is a replay.
    bencher
        .counter(BytesCount::new(DATAGRAMS * MTU))
        .with_inputs(|| aggregate(&mut sender))
        .bench_local_refs(|(datagrams, size)| receiver.hear(1, datagrams, *size));
    assert_eq!((receiver.packets().1 - before) % DATAGRAMS as u64, 0, "every packet arrives");
}
