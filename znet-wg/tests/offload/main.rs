//! Big packets: what is cut is what a slow reference makes, what is joined can be cut again, and no garbage
//! harms.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cut;
mod garbage;
mod join;
mod packets;
