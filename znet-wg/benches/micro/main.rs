//! What the parts of the packet logic cost, without sockets, devices and other threads. `./x bench micro` runs it.
//!
//! First the memory of a peer that is known and not used is printed; then times, by divan.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod directory;
mod memory;
mod offload;
mod tunnel;

fn main() {
    memory::print();
    divan::main();
}
