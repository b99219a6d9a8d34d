//! Counts the instructions of what is done for every packet, which no busy machine disturbs: `./x count` runs it.
//!
//! It runs itself under callgrind, a fixed amount of work for each part, and compares with `hot_path.counts`. What is
//! counted are this project's functions and boringtun's. The cipher's and the C library's take other ways on other
//! processors; of the latter the calls are counted, which are copies for the most part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(dead_code, reason = "the benchmarks use more of what they share with this")]

use std::hint::black_box;
use std::net::IpAddr;
use std::process::ExitCode;

use znet_wg::net::Directory;

mod callgrind;
#[path = "../../benches/common/mod.rs"]
mod common;
mod expected;

use common::{DATAGRAMS, Node, SEGMENTS, aggregate, gso, large, pair, stranger};

/// Batches of 64 KiB in each direction.
const BATCHES: usize = 20;
/// Peers in the directory, each looked up once in each family.
const PEERS: u32 = 10_000;

/// What is counted: its name, the function within which callgrind collects, and how many packets or addresses it is.
const PARTS: [(&str, &str, usize); 3] = [
    ("encrypt", "hot_path::counted_encrypt", BATCHES * SEGMENTS),
    ("decrypt", "hot_path::counted_decrypt", BATCHES * DATAGRAMS),
    ("lookup", "hot_path::counted_lookup", 2 * PEERS as usize),
];

/// Packets read from a TUN device: cut, their session found, encrypted.
#[inline(never)]
fn counted_encrypt(node: &mut Node, buffers: &mut [Vec<u8>]) {
    buffers.iter_mut().for_each(|buffer| node.read(gso(), buffer));
}

/// Datagrams of a socket: their session found, decrypted, their sender checked, joined.
#[inline(never)]
fn counted_decrypt(node: &mut Node, aggregates: &[(Vec<u8>, usize)]) {
    aggregates.iter().for_each(|(datagrams, size)| node.hear(1, datagrams, *size));
}

/// Whose addresses are.
#[inline(never)]
fn counted_lookup(directory: &Directory, addresses: &[IpAddr]) {
    addresses.iter().for_each(|address| {
        black_box(directory.owner(black_box(address)));
    });
}

/// The work of all parts.
fn work() {
    let [mut sender, mut receiver] = pair();
    let aggregates: Vec<_> = (0..BATCHES).map(|_| aggregate(&mut sender)).collect();
    let mut buffers = vec![large(SEGMENTS); BATCHES];
    let mut directory = Directory::default();
    (0..PEERS).for_each(|n| {
        directory.put(stranger(n));
    });
    let addresses: Vec<IpAddr> = (0..PEERS).flat_map(|n| stranger(n).addresses).collect();

    let (sent, received) = (sender.packets().0, receiver.packets().1);
    counted_encrypt(&mut sender, &mut buffers);
    counted_decrypt(&mut receiver, &aggregates);
    counted_lookup(&directory, &addresses);
    assert_eq!(sender.packets().0 - sent, (BATCHES * SEGMENTS) as u64);
    assert_eq!(receiver.packets().1 - received, (BATCHES * DATAGRAMS) as u64);
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("work") => {
            work();
            return ExitCode::SUCCESS;
        }
        Some("update") => expected::write(&callgrind::count_all()),
        None if expected::compare(&callgrind::count_all()) => {}
        None => return ExitCode::FAILURE,
        Some(other) => panic!("there is no {other}: nothing, or update"),
    }
    ExitCode::SUCCESS
}
