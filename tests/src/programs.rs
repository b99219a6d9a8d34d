//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::Result;

/// The path of a program of this workspace, out of the same build as the caller.
///
/// # Errors
/// The program was not built; the error says how.
pub fn program(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("where am I?")?;
    // target/PROFILE/demo, or target/PROFILE/deps/some_test-HASH
    for dir in me.ancestors().skip(1).take(2) {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "{name} is not beside {}\n  hint: build it with `cargo build --workspace --bins`, or use ./x",
        me.display()
    )
}
