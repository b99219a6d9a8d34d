//! The Docker network plugin, at the level of its protocol: a test plays dockerd, and does with links what libnetwork does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod bad_luck;
mod dockerd;
mod lifecycle;
mod refused;
