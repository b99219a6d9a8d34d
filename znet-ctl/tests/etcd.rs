//! The store in etcd: the suite that all stores pass, and what is peculiar to one that several controllers use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;
#[path = "common/etcd.rs"]
mod server;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use server::{Etcd, Pki};
use znet_core::controller::{Command, Network, NewNetwork, Resting, Row, Settings, StateChange};
use znet_core::id::{Epoch, NetworkId, NodeId, Revision, TokenId};
use znet_core::time::Timestamp;
use znet_ctl::actor::{Actor, Role, Scope};
use znet_ctl::store::etcd::{EtcdStore, EtcdUrl};
use znet_ctl::store::{Applied, AuditNote, Commit, Operator, Store, StoreError, conformance};

const NETWORK: NetworkId = NetworkId::from_bytes([1; 16]);
const SOON: Duration = Duration::from_secs(10);

fn note(action: &'static str) -> AuditNote {
    AuditNote { at: Timestamp::from_millis(1), actor: Actor::Controller, action, detail: "detail".to_owned() }
}

/// A network whose commits are real decisions, so that what is loaded can be checked against its digest.
async fn create(store: &EtcdStore) -> Network {
    let new = NewNetwork { name: "acme".parse().unwrap(), prefixes: vec![], settings: Settings::default() };
    let changes = Network::create(NETWORK, &new, Timestamp::from_millis(1), &mut rand::rng()).unwrap();
    let rows = changes.iter().filter_map(|change| match change {
        StateChange::Put(row) => Some(row.clone()),
        StateChange::Remove(_) => None,
    });
    let network = Network::from_rows(Revision::new(1), rows).unwrap();
    let first = Commit { head: network.head(), changes, audit: note("create") };
    store.create_network(&new.name, first).await.unwrap();
    network
}

/// Applies a reservation and returns the commit of it.
fn reserve(network: &mut Network, name: &str) -> Commit {
    let command = Command::Reserve { name: name.parse().unwrap(), addresses: vec![] };
    let decision = network.decide(&command, Timestamp::from_millis(2), &mut rand::rng()).unwrap();
    network.apply(&decision.changes);
    Commit { head: network.head(), changes: decision.changes, audit: note("reserve") }
}

/// What is stored, which must be a whole network.
async fn stored(store: &EtcdStore) -> Network {
    let loaded = store.load(NETWORK).await.unwrap();
    let network = Network::from_rows(loaded.revision, loaded.rows).unwrap();
    let before = Revision::new(loaded.revision.get() - 1);
    let log = store.changes_since(NETWORK, before).await.unwrap();
    assert_eq!(log.last().unwrap().head, network.head(), "rows and log disagree");
    network
}

#[tokio::test(flavor = "multi_thread")]
async fn the_etcd_store_keeps_the_rules() {
    let etcd = Etcd::start();
    let mut number = 0;
    conformance::run(|| {
        number += 1;
        let url = etcd.url(&format!("rule-{number}"));
        async move { EtcdStore::open(&url).await.unwrap() }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_beyond_every_limit_of_etcd_is_kept_whole_or_refused() {
    let etcd = Etcd::start();
    let (store, other) = (etcd.store("znet").await, etcd.store("znet").await);
    let network = create(&store).await;
    // Far more operations than a transaction of etcd takes, and far more bytes than a request of it.
    let address = |n: u32| IpAddr::V6(Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(n)));
    let big = |count: u32| -> Vec<StateChange> {
        let until = Timestamp::from_millis(9);
        (0..count).map(|n| StateChange::Put(Row::Resting(Resting { address: address(n), until }))).collect()
    };
    let commit = |revision: u64, changes| {
        let mut head = network.head();
        head.revision = Revision::new(revision);
        vec![Commit { head, changes, audit: note("big") }]
    };
    let changes = big(60_000);
    assert!(serde_json::to_vec(&changes).unwrap().len() > 2 << 20);
    store.commit(NETWORK, Revision::new(1), commit(2, changes.clone())).await.unwrap();
    assert_eq!(other.load(NETWORK).await.unwrap().rows.len(), 60_001);
    let log = other.changes_since(NETWORK, Revision::new(1)).await.unwrap();
    assert_eq!((log.len(), log[0].changes.len()), (1, 60_000));
    // One that loses the race leaves nothing behind.
    let late = other.commit(NETWORK, Revision::new(1), commit(2, changes)).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
    assert_eq!(store.load(NETWORK).await.unwrap().rows.len(), 60_001);
    let refused = store.commit(NETWORK, Revision::new(2), commit(3, big(1_300_000))).await;
    assert!(matches!(refused, Err(StoreError::Unsupported { .. })), "{refused:?}");
    assert_eq!(store.load(NETWORK).await.unwrap().revision, Revision::new(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_controllers_commit_in_turn_and_hear_of_each_other() {
    let etcd = Etcd::start();
    let stores = [etcd.store("znet").await, etcd.store("znet").await];
    let mut catalogue = stores[1].shared().unwrap().catalogue();
    catalogue.borrow_and_update();
    let network = create(&stores[0]).await;
    tokio::time::timeout(SOON, catalogue.changed()).await.unwrap().unwrap();
    assert_eq!(stores[1].networks().await.unwrap()[0].revision, Revision::new(1));
    // A controller loads a network before it commits to it.
    assert!(stored(&stores[1]).await == network);
    // Both add reservations as fast as they can, each deciding anew on what the other has committed.
    let writers = stores.iter().enumerate().map(|(own, store)| {
        let mut network = network.clone();
        async move {
            let (mut done, mut lost) = (0, 0);
            while done < 300 {
                let mut next = network.clone();
                let commit = reserve(&mut next, &format!("r{own}-{done}"));
                match store.commit(NETWORK, network.revision(), vec![commit]).await {
                    Ok(()) => {
                        network = next;
                        done += 1;
                    }
                    Err(StoreError::Conflict { .. }) => {
                        lost += 1;
                        for logged in store.changes_since(NETWORK, network.revision()).await.unwrap() {
                            network.apply(&logged.changes);
                            assert_eq!(network.head(), logged.head);
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            lost
        }
    });
    let lost = futures_util::future::join_all(writers).await;
    assert!(lost.iter().sum::<usize>() > 0, "they never met");
    let (one, two) = (stored(&stores[0]).await, stored(&stores[1]).await);
    assert!(one == two);
    // Folded on the way by both: nobody's fold undid what the other's did.
    assert_eq!((one.revision(), one.reservations().len()), (Revision::new(601), 600));
    for store in &stores {
        let mut newest = store.revisions(NETWORK);
        let heard = newest.wait_for(|revision| *revision == Revision::new(601));
        tokio::time::timeout(SOON, heard).await.unwrap().unwrap();
    }
    let trail = stores[0].audit(Some(NETWORK), 0, 1000).await.unwrap();
    let revisions: Vec<u64> = trail.iter().filter_map(|record| record.revision.map(Revision::get)).collect();
    assert_eq!(revisions, (1..=601).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_kill_9_of_etcd_and_what_was_not_happened_whole_or_not_at_all() {
    let mut etcd = Etcd::start();
    let store = etcd.store("znet").await;
    let mut network = create(&store).await;
    for round in 0..5 {
        let store_now = &store;
        let mut acknowledged = network.clone();
        let writing = async {
            let mut n = 0;
            loop {
                let mut next = acknowledged.clone();
                let commits: Vec<Commit> =
                    (0..3).map(|part| reserve(&mut next, &format!("r{round}-{n}-{part}"))).collect();
                if let Err(error) = store_now.commit(NETWORK, acknowledged.revision(), commits).await {
                    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
                    return acknowledged;
                }
                acknowledged = next;
                n += 1;
            }
        };
        let killing = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(150 + 37 * round));
            etcd.kill();
            etcd
        });
        let (acknowledged, killed) = tokio::join!(writing, killing);
        etcd = killed.unwrap();
        etcd.launch();
        network = stored(&store).await;
        let (there, acknowledged) = (network.revision().get(), acknowledged.revision().get());
        // The last group may have happened although nobody was told, and then all of it.
        assert!(there == acknowledged || there == acknowledged + 3, "{there} after {acknowledged}");
        assert!(acknowledged > 1);
    }
    let mut newest = store.revisions(NETWORK);
    newest.borrow_and_update();
    let other = etcd.store("znet").await;
    let commit = reserve(&mut network, "last");
    other.commit(NETWORK, Revision::new(network.revision().get() - 1), vec![commit]).await.unwrap();
    let heard = newest.wait_for(|revision| *revision == network.revision());
    tokio::time::timeout(SOON, heard).await.expect("the watch did not come back").unwrap();
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_is_noticed_without_asking_it() {
    let mut etcd = Etcd::start();
    let store = etcd.store("znet").await;
    let mut reachable = store.shared().unwrap().reachable();
    assert!(*reachable.borrow_and_update());
    etcd.kill();
    tokio::time::timeout(SOON, reachable.wait_for(|there| !there)).await.unwrap().unwrap();
    etcd.launch();
    tokio::time::timeout(SOON, reachable.wait_for(|there| *there)).await.unwrap().unwrap();
    assert_eq!(store.probe().await, Ok(()));
}

#[tokio::test]
async fn controllers_share_secrets_presence_and_operators() {
    let etcd = Etcd::start();
    let (one, two) = (etcd.store("znet").await, etcd.store("znet").await);
    let (a, b) = (one.shared().unwrap(), two.shared().unwrap());
    assert_eq!(a.secret("tls").await.unwrap(), None);
    assert_eq!(a.put_secret("tls", b"first").await.unwrap(), b"first");
    assert_eq!(b.put_secret("tls", b"second").await.unwrap(), b"first");
    b.remove_secret("tls").await.unwrap();
    assert_eq!(a.secret("tls").await.unwrap(), None);
    let nodes = [NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32])];
    a.report_present(NETWORK, &nodes).await.unwrap();
    assert_eq!(b.present_elsewhere(NETWORK).await.unwrap(), nodes);
    assert_eq!(a.present_elsewhere(NETWORK).await.unwrap(), vec![]);
    let applied =
        |revision| Applied { epoch: Epoch::new(2), revision: Revision::new(revision), nodes: nodes.to_vec() };
    a.report_applied(NETWORK, &applied(7)).await.unwrap();
    a.report_applied(NETWORK, &applied(9)).await.unwrap();
    assert_eq!(b.applied_elsewhere(NETWORK).await.unwrap(), [applied(9)]);
    assert_eq!(a.applied_elsewhere(NETWORK).await.unwrap(), []);
    let mut catalogue = b.catalogue();
    catalogue.borrow_and_update();
    let operator = Operator {
        id: TokenId::from_bytes([1; 8]),
        note: "somebody".to_owned(),
        secret_hash: [2; 32],
        scope: Scope::All,
        role: Role::Admin,
        created: Timestamp::from_millis(1),
    };
    one.add_operator(operator.clone(), note("operator.create")).await.unwrap();
    tokio::time::timeout(SOON, catalogue.changed()).await.unwrap().unwrap();
    assert_eq!(two.operators().await.unwrap(), [operator]);
}

#[tokio::test]
async fn members_that_speak_tls_are_believed_by_their_certificate_alone() {
    let dir = common::directory();
    znet_api::tls::install_provider();
    let pki = Pki::make(dir.path());
    let flag = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    let etcd = Etcd::with(
        "https",
        vec![
            flag("cert-file", &pki.server.0),
            flag("key-file", &pki.server.1),
            flag("trusted-ca-file", &pki.ca),
            "--client-cert-auth".to_owned(),
        ],
    );
    let open = |ca: &std::path::Path, own: bool| {
        let (cert, key) = (pki.client.0.display(), pki.client.1.display());
        let client = if own { format!("&cert={cert}&key={key}") } else { String::new() };
        let url: EtcdUrl = format!("etcd:{}?ca={}{client}", etcd.address(), ca.display()).parse().unwrap();
        async move { EtcdStore::open(&url).await }
    };
    let store = open(&pki.ca, true).await.unwrap();
    create(&store).await;
    assert_eq!(stored(&store).await.revision(), Revision::new(1));
    let (stranger, nobody) = (open(&pki.server.0, true), open(&pki.ca, false));
    let (stranger, nobody) = tokio::join!(stranger, nobody);
    assert!(matches!(stranger, Err(StoreError::Unavailable { .. })), "another authority was believed");
    assert!(
        matches!(nobody, Err(StoreError::Unavailable { .. })),
        "etcd took a client without a certificate"
    );
}
