//! What the engine's fuzzers do with their input.
//!
//! A fuzzer's input comes from nobody's network, but what it reaches is what a stranger or a container reaches. Each body
//! here takes bytes, does with them what the engine would, and panics where a promise is broken. They know nothing of
//! libFuzzer: its binaries are in `fuzz_targets`, and an ordinary test repeats every file of `corpus` and `artifacts`.
//!
//! | body | bytes become |
//! | --- | --- |
//! | [`udp_input()`] | datagrams and aggregates for a network that has a session with another |
//! | [`tun_input()`] | reads of a TUN device: packets, and headers that tell how to cut them |
//! | [`coalesce()`] | packets that may be joined |
//! | [`uapi_text()`] | requests of the configuration protocol |
//!
//! `cargo test -p znet-wg-fuzz -- --ignored` writes those files of the corpus that [`seeds`] makes. A file that is named
//! after its hash is one that a fuzzer found: what once went wrong, or what nothing else reaches.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod coalesce;
mod input;
mod packets;
pub mod seeds;
mod tun_input;
mod uapi_text;
mod udp_input;
mod world;

pub use coalesce::coalesce;
pub use tun_input::tun_input;
pub use uapi_text::uapi_text;
pub use udp_input::udp_input;

/// What a fuzzer does with an input. It panics when something is wrong.
pub type Body = fn(&[u8]);

/// All bodies and their names.
pub const TARGETS: [(&str, Body); 4] =
    [("udp_input", udp_input), ("tun_input", tun_input), ("coalesce", coalesce), ("uapi_text", uapi_text)];
