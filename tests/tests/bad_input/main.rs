//! What strangers, broken clients and bad networks send to a controller: it says what is wrong with it, keeps nothing of
//! it, and goes on serving everybody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod agents;
mod connections;
mod operators;
mod raw;
