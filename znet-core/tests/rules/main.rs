//! The rules against models of them: small, slow and plain implementations that nobody would ship and anybody can check.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod allocator;
mod boundaries;
mod controller;
mod controller_cases;
mod controller_model;
mod generate;
mod map;
mod member;
mod rotation;
mod secrets;
mod succession;
