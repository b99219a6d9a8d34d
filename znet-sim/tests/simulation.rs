//! Seeds that every test run repeats, and the proof that the simulation finds what it is there to find.
#![allow(clippy::panic, missing_docs)]

use znet_sim::{Bug, run};

/// Within so many seeds each planted bug must be found.
const FOUND_WITHIN: u64 = 40;

#[test]
fn nothing_breaks_and_everybody_comes_to_the_full_mesh() {
    let mut revisions = 0;
    for seed in 0..12 {
        let report = run(seed, None).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(report.applied > 0 && report.events > 0, "seed {seed} did nothing: {report:?}");
        revisions += report.revisions;
    }
    assert!(revisions > 500, "{revisions} revisions are no work");
}

#[test]
fn a_seed_runs_the_same_every_time() {
    for seed in [3, 5] {
        let first = run(seed, None).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(run(seed, None).as_ref(), Ok(&first));
    }
    let fingerprint = |seed| run(seed, None).map(|report| report.fingerprint);
    assert_ne!(fingerprint(3), fingerprint(5));
}

/// Runs seeds until the bug shows, and holds it against the same seed without it.
fn find(bug: Bug, said: &[&str]) {
    let (seed, failure) = (0..FOUND_WITHIN)
        .find_map(|seed| run(seed, Some(bug)).err().map(|failure| (seed, failure)))
        .unwrap_or_else(|| panic!("{bug:?} was not found within {FOUND_WITHIN} seeds"));
    println!("{bug:?} was found by seed {seed}\n{failure}");
    assert!(said.iter().any(|said| failure.what.contains(said)), "{failure}");
    assert_eq!(failure.seed, seed);
    assert!(!failure.trace.is_empty(), "no trace: {failure}");
    assert!(failure.to_string().ends_with(&format!("./x sim --seed {seed}")));
    // The same way again, and not without the bug.
    assert_eq!(run(seed, Some(bug)), Err(failure));
    run(seed, None).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn address_reuse_before_rest_is_found() {
    find(Bug::ReuseBeforeRest, &["rests for"]);
}

#[test]
fn a_delta_that_is_applied_twice_is_found() {
    find(Bug::DeltaTwice, &["is the last durable one", "what readers see is not what was decided"]);
}

#[test]
fn a_lost_tombstone_is_found() {
    find(Bug::LostTombstone, &["what came over a sound connection is refused", "does not have the digest"]);
}

#[test]
fn an_answer_before_the_commit_is_durable_is_found() {
    find(Bug::AcknowledgedBeforeSync, &["is the last durable one"]);
}

#[test]
fn keys_that_are_changed_before_all_know_of_it_are_found() {
    find(Bug::KeysUnheard, &["do not know each other's keys"]);
}
