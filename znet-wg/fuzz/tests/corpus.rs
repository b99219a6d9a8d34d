//! Every input that a fuzzer starts from, or once stumbled over, is borne.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use znet_wg_fuzz::seeds::seeds;
use znet_wg_fuzz::{Body, TARGETS};

/// The files of a target in one of this crate's directories; none where it does not exist.
fn files(directory: &str, target: &str) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory).join(target);
    let mut files: Vec<PathBuf> = match fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    files.sort();
    files
}

/// Runs a body over its files, and names the one at which it fails.
fn repeat(target: &str) {
    let (_, body): (_, Body) = TARGETS.into_iter().find(|(name, _)| *name == target).unwrap();
    let corpus = files("corpus", target);
    assert!(!corpus.is_empty(), "there are no seeds: cargo test -p znet-wg-fuzz -- --ignored writes them");
    for file in corpus.into_iter().chain(files("artifacts", target)) {
        let bytes = fs::read(&file).unwrap();
        if let Err(reason) = std::panic::catch_unwind(|| body(&bytes)) {
            eprintln!("the input is {}", file.display());
            std::panic::resume_unwind(reason);
        }
    }
}

#[test]
fn datagrams_of_the_corpus_are_borne() {
    repeat("udp_input");
}

#[test]
fn reads_of_the_corpus_are_sent_or_counted() {
    repeat("tun_input");
}

#[test]
fn packets_of_the_corpus_are_joined_without_loss() {
    repeat("coalesce");
}

#[test]
fn requests_of_the_corpus_are_understood_or_refused() {
    repeat("uapi_text");
}

#[test]
fn no_input_is_too_short() {
    for (_, body) in TARGETS {
        body(&[]);
        (0..=u8::MAX).for_each(|byte| body(&[byte; 2]));
    }
}

#[test]
#[ignore = "writes into the source tree"]
fn write_the_seeds() {
    for (target, _) in TARGETS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&path).unwrap();
        for (name, bytes) in seeds(target) {
            fs::write(path.join(name), bytes).unwrap();
        }
    }
}
