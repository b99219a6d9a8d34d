//! The stores: one suite for both, and what SQLite's does when the disk lets it down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Tmpfs;
use rusqlite::Connection;
use znet_core::controller::{Network, NewNetwork, Row, Settings, StateChange};
use znet_core::id::{NetworkId, Revision};
use znet_core::time::Timestamp;
use znet_ctl::actor::Actor;
use znet_ctl::store::conformance;
use znet_ctl::store::{AuditNote, Commit, MemoryStore, SqliteStore, Store, StoreError};

const NETWORK: NetworkId = NetworkId::from_bytes([1; 16]);

fn note(detail: &str) -> AuditNote {
    let at = Timestamp::from_millis(1);
    AuditNote { at, actor: Actor::Controller, action: "test", detail: detail.to_owned() }
}

/// A network whose commits are real decisions, so that what is loaded can be checked against its digest.
struct Writer {
    network: Network,
}

impl Writer {
    async fn create(store: &dyn Store) -> Self {
        let new =
            NewNetwork { name: "acme".parse().unwrap(), prefixes: vec![], settings: Settings::default() };
        let now = Timestamp::from_millis(1);
        let changes = Network::create(NETWORK, &new, now, &mut rand::rng()).unwrap();
        let rows = changes.iter().map(|change| match change {
            StateChange::Put(row) => row.clone(),
            StateChange::Remove(_) => panic!("a new network removes nothing"),
        });
        let network = Network::from_rows(Revision::new(1), rows).unwrap();
        let first = Commit { head: network.head(), changes, audit: note("create") };
        store.create_network(&new.name, first).await.unwrap();
        Self { network }
    }

    /// Commits one reservation, padded by an audit record of `weight` bytes.
    async fn reserve(
        &mut self,
        store: &dyn Store,
        name: &str,
        weight: usize,
    ) -> Result<Revision, StoreError> {
        let command =
            znet_core::controller::Command::Reserve { name: name.parse().unwrap(), addresses: vec![] };
        let decision = self.network.decide(&command, Timestamp::from_millis(2), &mut rand::rng()).unwrap();
        let mut next = self.network.clone();
        next.apply(&decision.changes);
        let commit =
            Commit { head: next.head(), changes: decision.changes, audit: note(&"x".repeat(weight)) };
        store.commit(NETWORK, self.network.revision(), vec![commit]).await?;
        self.network = next;
        Ok(self.network.revision())
    }
}

/// Loads the network and checks that rows, log and digest agree; returns its revision and number of reservations.
async fn check(store: &dyn Store) -> (u64, usize) {
    let loaded = store.load(NETWORK).await.unwrap();
    let network = Network::from_rows(loaded.revision, loaded.rows).unwrap();
    let log = store.changes_since(NETWORK, Revision::ZERO).await.unwrap();
    assert_eq!(log.len() as u64, loaded.revision.get(), "the log has a gap");
    assert_eq!(log.last().unwrap().head, network.head(), "rows and log disagree");
    let replayed = log.iter().flat_map(|logged| &logged.changes).fold(
        std::collections::BTreeMap::new(),
        |mut rows: std::collections::BTreeMap<_, Row>, change| {
            match change {
                StateChange::Put(row) => drop(rows.insert(row.key(), row.clone())),
                StateChange::Remove(key) => drop(rows.remove(key)),
            }
            rows
        },
    );
    assert!(network == Network::from_rows(loaded.revision, replayed.into_values()).unwrap());
    (loaded.revision.get(), network.reservations().len())
}

#[tokio::test]
async fn the_store_in_memory_keeps_the_rules() {
    conformance::run(|| async { MemoryStore::new() }).await.unwrap();
}

#[tokio::test]
async fn the_sqlite_store_keeps_the_rules() {
    let dir = common::directory();
    let mut number = 0;
    conformance::run(|| {
        number += 1;
        let file = dir.path().join(format!("{number}.db"));
        async move { SqliteStore::open(&file).unwrap() }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_clean_close_and_without_one() {
    let dir = common::directory();
    let file = dir.path().join("znet.db");
    for close in [true, false] {
        let store = SqliteStore::open(&file).unwrap();
        if close {
            let mut writer = Writer::create(&store).await;
            for n in 0..20 {
                writer.reserve(&store, &format!("c{n}"), 10).await.unwrap();
            }
            store.close().await;
            assert!(!dir.path().join("znet.db-wal").exists(), "a clean close leaves one file");
        }
        assert_eq!(check(&store_or_reopen(store, &file)).await, (21, 20));
    }
}

fn store_or_reopen(store: SqliteStore, file: &Path) -> SqliteStore {
    drop(store);
    SqliteStore::open(file).unwrap()
}

/// The files as they would be found after a power cut at this moment.
fn photograph(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let name = format!("znet.db{suffix}");
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// What was flushed before a commit was acknowledged is in the log below its length at that moment. Everything after
/// that may be torn by a power cut in any way: cut short, zeroes, or garbage.
#[tokio::test]
async fn a_torn_log_loses_nothing_that_was_acknowledged() {
    let dir = common::directory();
    let store = SqliteStore::open(&dir.path().join("znet.db")).unwrap();
    let mut writer = Writer::create(&store).await;
    for n in 0..10 {
        writer.reserve(&store, &format!("kept{n}"), 200).await.unwrap();
    }
    let acknowledged = writer.network.revision().get();
    let wal = dir.path().join("znet.db-wal");
    let safe = std::fs::metadata(&wal).unwrap().len();
    for n in 0..10 {
        writer.reserve(&store, &format!("maybe{n}"), 200).await.unwrap();
    }
    let whole = std::fs::metadata(&wal).unwrap().len();
    assert!(whole > safe);
    let newest = writer.network.revision().get();
    let step = (whole - safe) / 37;
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..=37 {
        let cut = safe + round * step;
        for damage in ["cut", "zeroes", "garbage"] {
            let copy = common::directory();
            photograph(dir.path(), copy.path());
            let mut bytes = std::fs::read(copy.path().join("znet.db-wal")).unwrap();
            let at = usize::try_from(cut).unwrap();
            match damage {
                "cut" => bytes.truncate(at),
                "zeroes" => bytes[at..].fill(0),
                _ => bytes[at..].iter_mut().enumerate().for_each(|(n, byte)| *byte ^= (n % 251 + 1) as u8),
            }
            std::fs::write(copy.path().join("znet.db-wal"), bytes).unwrap();
            let store = SqliteStore::open(&copy.path().join("znet.db")).unwrap();
            let (revision, reservations) = check(&store).await;
            assert!(
                (acknowledged..=newest).contains(&revision),
                "{damage} at {cut}: revision {revision}, but {acknowledged} was acknowledged before"
            );
            assert_eq!(reservations as u64, revision - 1);
            seen.insert(revision);
            // And it goes on from there.
            assert_eq!(store.probe().await, Ok(()));
        }
    }
    assert!(seen.len() > 5, "the damage hit hardly any commit: {seen:?}");
}

#[tokio::test]
async fn a_full_disk_stops_writes_alone_and_they_resume_by_themselves() {
    let disk = Tmpfs::mount("1m");
    let store = SqliteStore::open(&disk.path().join("znet.db")).unwrap();
    let mut writer = Writer::create(&store).await;
    let mut acknowledged = writer.network.revision().get();
    let mut number = 0;
    let error = loop {
        number += 1;
        match writer.reserve(&store, &format!("c{number}"), 3000).await {
            Ok(revision) => acknowledged = revision.get(),
            Err(error) => break error,
        }
        assert!(number < 2000, "the disk does not fill up");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.to_string().contains("no space is left"), "{error}");
    // Reading goes on, and nothing that was acknowledged is missing.
    assert_eq!(check(&store).await.0, acknowledged);
    // Nothing is written while it lasts, however often it is tried.
    for _ in 0..20 {
        let again = writer.reserve(&store, &format!("c{number}"), 3000).await;
        assert!(matches!(again, Err(StoreError::Full { .. })), "{again:?}");
    }
    assert_eq!(check(&store).await.0, acknowledged);
    // Even a start on the full disk finds everything.
    disk.resize("8m");
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(error) = store.probe().await {
        assert!(Instant::now() < deadline, "writes do not resume: {error}");
    }
    let revision = writer.reserve(&store, &format!("c{number}"), 3000).await.unwrap();
    assert_eq!(revision.get(), acknowledged + 1);
    assert_eq!(check(&store).await.0, acknowledged + 1);
    store.close().await;
}

#[tokio::test]
async fn a_file_of_a_newer_version_or_of_another_program_is_refused_and_left_alone() {
    let dir = common::directory();
    let file = dir.path().join("znet.db");
    SqliteStore::open(&file).unwrap().close().await;
    let connection = Connection::open(&file).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let before = std::fs::read(&file).unwrap();
    let error = SqliteStore::open(&file).unwrap_err();
    assert_eq!(error, StoreError::TooNew { found: 99, known: znet_ctl::store::sqlite::FORMAT });
    assert_eq!(std::fs::read(&file).unwrap(), before);

    let other = dir.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(matches!(SqliteStore::open(&other), Err(StoreError::Corrupt { .. })));
    let text = dir.path().join("text.db");
    std::fs::write(&text, "this is no database, however long it may be: ".repeat(100)).unwrap();
    assert!(matches!(SqliteStore::open(&text), Err(StoreError::Corrupt { .. })));
}

#[tokio::test]
async fn commits_of_many_networks_share_a_flush() {
    let dir = common::directory();
    let store = Arc::new(SqliteStore::open(&dir.path().join("znet.db")).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50u8 {
        let store = store.clone();
        tasks.spawn(async move {
            let network = NetworkId::from_bytes([n; 16]);
            let name = format!("net{n}").parse().unwrap();
            let new = NewNetwork { name, prefixes: vec![], settings: Settings::default() };
            let changes =
                Network::create(network, &new, Timestamp::from_millis(1), &mut rand::rng()).unwrap();
            let rows = changes.iter().filter_map(|change| match change {
                StateChange::Put(row) => Some(row.clone()),
                StateChange::Remove(_) => None,
            });
            let head = Network::from_rows(Revision::new(1), rows).unwrap().head();
            store.create_network(&new.name, Commit { head, changes, audit: note("create") }).await.unwrap();
            for revision in 1..40 {
                let mut head = head;
                head.revision = Revision::new(revision + 1);
                let commit = Commit { head, changes: vec![], audit: note("test") };
                store.commit(network, Revision::new(revision), vec![commit]).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let revisions: Vec<_> =
        store.networks().await.unwrap().iter().map(|entry| entry.revision.get()).collect();
    assert_eq!(revisions, vec![40; 50]);
}

#[tokio::test]
async fn a_copy_is_whole_and_of_one_moment() {
    let dir = common::directory();
    let store = SqliteStore::open(&dir.path().join("znet.db")).unwrap();
    let mut writer = Writer::create(&store).await;
    for n in 0..50 {
        writer.reserve(&store, &format!("c{n}"), 10).await.unwrap();
    }
    let copy = dir.path().join("copy.db");
    store.copy_to(&copy).await.unwrap();
    writer.reserve(&store, "later", 10).await.unwrap();
    let copied = SqliteStore::open(&copy).unwrap();
    assert_eq!(check(&copied).await, (51, 50));
}
