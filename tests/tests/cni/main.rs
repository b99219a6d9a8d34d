//! The CNI plugin, the netavark plugin and the OCI hook: by hand, as the specification says, and under runtimes that people use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod bad_luck;
mod by_hand;
mod common;
mod netavark;
mod refused;
mod runtimes;
