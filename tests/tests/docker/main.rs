//! The Docker network plugin: under Docker itself, and at the level of its protocol, where a test plays dockerd and does with
//! links what libnetwork does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod bad_luck;
mod daemon;
mod dockerd;
mod kernel;
mod lifecycle;
mod refused;
