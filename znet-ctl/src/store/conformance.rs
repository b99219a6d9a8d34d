//! What every [`Store`] must do, as a suite that runs against any of them.
//!
//! Each rule gets a store that is empty. A broken rule is told by its name and by what was seen instead.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr};

use znet_core::controller::{NetworkConf, Resting, Row, RowKey, StateChange};
use znet_core::id::{ContainerId, Epoch, NetworkId, Revision, TokenId};
use znet_core::map::{Digest, Head};
use znet_core::name::{Name, NameError};
use znet_core::time::Timestamp;

use super::{
    AuditNote, AuditRecord, CHANGES_KEPT, Commit, Logged, MAX_AUDIT_PAGE, Moved, Operator, Store, StoreError,
};
use crate::actor::{Actor, Role, Scope};

/// Steps of the comparison with a model.
const MODEL_STEPS: u64 = 400;
/// Revisions of one group in the test of the change log.
const GROUP: u64 = 256;

/// A rule that a store broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {saw}")]
pub struct Broken {
    /// What a store has to do.
    pub rule: &'static str,
    /// What it did.
    pub saw: String,
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self { rule: "a store that nobody disturbs does not fail", saw: error.to_string() }
    }
}

impl From<NameError> for Broken {
    fn from(error: NameError) -> Self {
        Self { rule: "the suite's own names are valid", saw: error.to_string() }
    }
}

type Verdict = Result<(), Broken>;

/// Runs the whole suite. `fresh` makes an empty store each time it is called.
///
/// # Errors
/// [`Broken`]: the first rule that does not hold.
pub async fn run<S, F, Fut>(mut fresh: F) -> Result<(), Broken>
where
    S: Store,
    F: FnMut() -> Fut,
    Fut: Future<Output = S>,
{
    an_empty_store_holds_nothing(&fresh().await).await?;
    a_created_network_is_there(&fresh().await).await?;
    a_commit_is_kept_whole_or_not_at_all(&fresh().await).await?;
    one_of_two_writers_wins(&fresh().await).await?;
    networks_share_nothing(&fresh().await).await?;
    a_deleted_network_is_gone(&fresh().await).await?;
    the_log_reaches_back_and_ends(&fresh().await).await?;
    the_audit_trail_is_paged(&fresh().await).await?;
    operators_come_and_go(&fresh().await).await?;
    commits_are_announced(&fresh().await).await?;
    rows_are_those_of_a_model(&fresh().await).await?;
    what_is_taken_over_goes_on(&fresh().await).await?;
    a_closed_store_says_so(&fresh().await).await
}

async fn an_empty_store_holds_nothing(store: &dyn Store) -> Verdict {
    const RULE: &str = "an empty store holds nothing";
    same(RULE, &store.networks().await?.len(), &0)?;
    same(RULE, &store.operators().await?.len(), &0)?;
    same(RULE, &store.audit(None, 0, MAX_AUDIT_PAGE).await?.len(), &0)?;
    let nobody = id(9);
    let unknown = StoreError::UnknownNetwork { network: nobody };
    same(RULE, &store.load(nobody).await.err(), &Some(unknown.clone()))?;
    same(RULE, &store.changes_since(nobody, Revision::ZERO).await.err(), &Some(unknown.clone()))?;
    same(
        RULE,
        &store.commit(nobody, Revision::ZERO, vec![commit(nobody, 1, vec![])]).await,
        &Err(unknown.clone()),
    )?;
    same(RULE, &store.delete_network(nobody, note("network.delete")).await, &Err(unknown))?;
    same(RULE, &store.probe().await, &Ok(()))
}

async fn a_created_network_is_there(store: &dyn Store) -> Verdict {
    const RULE: &str = "a created network is listed, loads its rows and keeps its name to itself";
    let (acme, other) = (id(1), id(2));
    create(store, acme, "acme").await?;
    let listed: Vec<_> = store.networks().await?.into_iter().map(|e| (e.id, e.name, e.revision)).collect();
    same(RULE, &listed, &vec![(acme, "acme".parse()?, Revision::new(1))])?;
    let loaded = store.load(acme).await?;
    same(RULE, &(loaded.revision, loaded.rows), &(Revision::new(1), vec![conf(acme, "acme")?]))?;
    let name: Name = "acme".parse()?;
    let taken = store.create_network(&name, commit(other, 1, vec![])).await;
    same(RULE, &taken, &Err(StoreError::NameTaken { name }))?;
    let again = store.create_network(&"fresh".parse()?, commit(acme, 1, vec![])).await;
    let conflict = StoreError::Conflict { network: acme, expected: Revision::ZERO, found: Revision::new(1) };
    same(RULE, &again, &Err(conflict))?;
    let late = store.create_network(&"late".parse()?, commit(other, 2, vec![])).await;
    holds(RULE, matches!(late, Err(StoreError::Unsupported { .. })), &late)?;
    same(RULE, &store.networks().await?.len(), &1)
}

async fn a_commit_is_kept_whole_or_not_at_all(store: &dyn Store) -> Verdict {
    const RULE: &str = "a commit is kept whole or not at all";
    let acme = id(1);
    create(store, acme, "acme").await?;
    let three = vec![
        commit(acme, 2, vec![put(1), put(2)]),
        commit(acme, 3, vec![remove(1), put(3)]),
        commit(acme, 4, vec![put(2)]),
    ];
    store.commit(acme, Revision::new(1), three).await?;
    let expected = vec![conf(acme, "acme")?, resting(2), resting(3)];
    same(RULE, &sorted(store.load(acme).await?.rows), &sorted(expected.clone()))?;
    let stale = store.commit(acme, Revision::new(3), vec![commit(acme, 4, vec![put(7)])]).await;
    let conflict =
        StoreError::Conflict { network: acme, expected: Revision::new(3), found: Revision::new(4) };
    same(RULE, &stale, &Err(conflict))?;
    let gap = vec![commit(acme, 5, vec![put(8)]), commit(acme, 7, vec![put(9)])];
    let gap = store.commit(acme, Revision::new(4), gap).await;
    holds(RULE, matches!(gap, Err(StoreError::Unsupported { .. })), &gap)?;
    let foreign = store.commit(acme, Revision::new(4), vec![commit(id(2), 5, vec![put(8)])]).await;
    holds(RULE, matches!(foreign, Err(StoreError::Unsupported { .. })), &foreign)?;
    let loaded = store.load(acme).await?;
    same(RULE, &(loaded.revision, sorted(loaded.rows)), &(Revision::new(4), sorted(expected)))?;
    same(RULE, &store.audit(Some(acme), 0, 100).await?.len(), &4)
}

async fn one_of_two_writers_wins(store: &dyn Store) -> Verdict {
    const RULE: &str = "of two writers at the same revision exactly one wins";
    let acme = id(1);
    create(store, acme, "acme").await?;
    for round in 1..20 {
        let write =
            |mark| store.commit(acme, Revision::new(round), vec![commit(acme, round + 1, vec![put(mark)])]);
        let (first, second) = tokio::join!(write(1000 + round), write(2000 + round));
        holds(RULE, first.is_ok() != second.is_ok(), &(&first, &second))?;
        let lost = first.err().or(second.err());
        let conflict = Some(StoreError::Conflict {
            network: acme,
            expected: Revision::new(round),
            found: Revision::new(round + 1),
        });
        same(RULE, &lost, &conflict)?;
    }
    same(RULE, &store.load(acme).await?.rows.len(), &20)
}

async fn networks_share_nothing(store: &dyn Store) -> Verdict {
    const RULE: &str = "networks share nothing, and one's conflict is not another's";
    let (acme, other) = (id(1), id(2));
    create(store, acme, "acme").await?;
    create(store, other, "other").await?;
    let good = store.commit(acme, Revision::new(1), vec![commit(acme, 2, vec![put(1)])]);
    let bad = store.commit(other, Revision::new(5), vec![commit(other, 6, vec![put(1)])]);
    let (good, bad) = tokio::join!(good, bad);
    same(RULE, &good, &Ok(()))?;
    holds(RULE, matches!(bad, Err(StoreError::Conflict { .. })), &bad)?;
    same(RULE, &sorted(store.load(acme).await?.rows), &sorted(vec![conf(acme, "acme")?, resting(1)]))?;
    let loaded = store.load(other).await?;
    same(RULE, &(loaded.revision, loaded.rows), &(Revision::new(1), vec![conf(other, "other")?]))
}

async fn a_deleted_network_is_gone(store: &dyn Store) -> Verdict {
    const RULE: &str = "a deleted network is gone but for its audit trail, and its name is free";
    let acme = id(1);
    create(store, acme, "acme").await?;
    let mut newest = store.revisions(acme);
    store.commit(acme, Revision::new(1), vec![commit(acme, 2, vec![put(1)])]).await?;
    store.delete_network(acme, note("network.delete")).await?;
    let unknown = StoreError::UnknownNetwork { network: acme };
    same(RULE, &store.load(acme).await.err(), &Some(unknown))?;
    same(RULE, &store.networks().await?.len(), &0)?;
    let actions: Vec<_> = store.audit(Some(acme), 0, 100).await?.into_iter().map(|r| r.action).collect();
    same(RULE, &actions, &vec!["network.create".to_owned(), "test".to_owned(), "network.delete".to_owned()])?;
    newest.borrow_and_update();
    holds(RULE, newest.changed().await.is_err(), &"somebody still announces its revisions")?;
    create(store, id(2), "acme").await
}

async fn the_log_reaches_back_and_ends(store: &dyn Store) -> Verdict {
    const RULE: &str = "the change log reaches back as far as promised, and not for ever";
    let acme = id(1);
    create(store, acme, "acme").await?;
    let mut revision = 1;
    while revision < 3 * CHANGES_KEPT {
        let group = (1..=GROUP).map(|n| commit(acme, revision + n, vec![put(revision + n)])).collect();
        store.commit(acme, Revision::new(revision), group).await?;
        revision += GROUP;
    }
    let since = |back: u64| store.changes_since(acme, Revision::new(revision - back));
    same(RULE, &since(0).await?, &vec![])?;
    same(RULE, &store.changes_since(acme, Revision::new(u64::MAX)).await?, &vec![])?;
    let kept = since(CHANGES_KEPT).await?;
    let revisions: Vec<u64> = kept.iter().map(|logged| logged.head.revision.get()).collect();
    same(RULE, &revisions, &((revision - CHANGES_KEPT + 1)..=revision).collect())?;
    let last = kept.last().map(|logged| (logged.head, logged.changes.clone()));
    same(RULE, &last, &Some((head(acme, revision), vec![put(revision)])))?;
    match store.changes_since(acme, Revision::ZERO).await {
        Err(StoreError::Compacted { oldest }) => {
            holds(RULE, oldest.get() > 0 && oldest.get() <= revision - CHANGES_KEPT, &oldest)?;
            same(RULE, &(store.changes_since(acme, oldest).await?.len() as u64), &(revision - oldest.get()))
        }
        other => holds(RULE, false, &other.map(|log| log.len())),
    }
}

async fn the_audit_trail_is_paged(store: &dyn Store) -> Verdict {
    const RULE: &str = "the audit trail tells who, what, when and which revision, in order and in pages";
    let (acme, other) = (id(1), id(2));
    create(store, acme, "acme").await?;
    create(store, other, "other").await?;
    for revision in 1..30 {
        for network in [acme, other] {
            store
                .commit(network, Revision::new(revision), vec![commit(network, revision + 1, vec![])])
                .await?;
        }
    }
    let mut after = 0;
    let mut seen = Vec::new();
    loop {
        let page = store.audit(Some(acme), after, 7).await?;
        holds(RULE, page.len() <= 7, &page.len())?;
        let Some(last) = page.last() else { break };
        holds(RULE, page.is_sorted_by(|a, b| a.seq < b.seq) && last.seq > after, &page)?;
        after = last.seq;
        seen.extend(page);
    }
    let revisions: Vec<_> = seen.iter().filter_map(|record| record.revision.map(Revision::get)).collect();
    same(RULE, &revisions, &(1..=30).collect())?;
    holds(RULE, seen.iter().all(|record| record.network == Some(acme)), &seen.len())?;
    let first = seen.first().map(|r| (r.actor.clone(), r.action.clone(), r.detail.clone(), r.at));
    let expected = ("local:7".to_owned(), "network.create".to_owned(), "detail".to_owned(), now());
    same(RULE, &first, &Some(expected))?;
    same(RULE, &store.audit(None, 0, MAX_AUDIT_PAGE).await?.len(), &60)
}

async fn operators_come_and_go(store: &dyn Store) -> Verdict {
    const RULE: &str = "operators come and go, each with an audit record";
    let operator = |n: u8, scope, role| Operator {
        id: TokenId::from_bytes([n; 8]),
        note: format!("number {n}, \"quoted\""),
        secret_hash: [n; 32],
        scope,
        role,
        created: Timestamp::from_millis(u64::from(n)),
    };
    let both = [operator(1, Scope::All, Role::Admin), operator(2, Scope::Network(id(4)), Role::Deploy)];
    for operator in &both {
        store.add_operator(operator.clone(), note("operator.create")).await?;
    }
    same(RULE, &store.operators().await?, &both.to_vec())?;
    same(RULE, &store.remove_operator(TokenId::from_bytes([1; 8]), note("operator.revoke")).await?, &true)?;
    same(RULE, &store.remove_operator(TokenId::from_bytes([1; 8]), note("operator.revoke")).await?, &false)?;
    same(RULE, &store.operators().await?.len(), &1)?;
    let trail: Vec<_> = store.audit(None, 0, 100).await?.into_iter().map(|r| (r.network, r.action)).collect();
    let expected = ["operator.create", "operator.create", "operator.revoke"];
    same(RULE, &trail, &expected.map(|action| (None, action.to_owned())).to_vec())
}

async fn commits_are_announced(store: &dyn Store) -> Verdict {
    const RULE: &str = "commits are announced to whoever waits";
    let acme = id(1);
    create(store, acme, "acme").await?;
    let mut newest = store.revisions(acme);
    newest.borrow_and_update();
    store.commit(acme, Revision::new(1), vec![commit(acme, 2, vec![]), commit(acme, 3, vec![])]).await?;
    holds(RULE, newest.changed().await.is_ok(), &"the announcements ended")?;
    same(RULE, &*newest.borrow_and_update(), &Revision::new(3))
}

/// Puts and removes in an order that looks random but is always the same, against a map.
async fn rows_are_those_of_a_model(store: &dyn Store) -> Verdict {
    const RULE: &str = "the rows are those that a map would hold";
    let acme = id(1);
    create(store, acme, "acme").await?;
    let mut model: BTreeMap<RowKey, Row> = BTreeMap::new();
    let first = conf(acme, "acme")?;
    model.insert(first.key(), first);
    let mut noise: u64 = 0x5eed;
    let mut draw = |bound: u64| {
        // Knuth's MMIX multiplier; the upper bits are the good ones.
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (noise >> 33) % bound
    };
    let mut revision = 1;
    for _ in 0..MODEL_STEPS {
        let group: Vec<Commit> = (1..=1 + draw(3))
            .map(|n| {
                let change = |n: u64| if n.is_multiple_of(3) { remove(n % 40) } else { put(n % 40) };
                commit(acme, revision + n, (0..draw(4)).map(|_| change(draw(1000))).collect())
            })
            .collect();
        for change in group.iter().flat_map(|commit| &commit.changes) {
            match change {
                StateChange::Put(row) => drop(model.insert(row.key(), row.clone())),
                StateChange::Remove(key) => drop(model.remove(key)),
            }
        }
        let grown = group.len() as u64;
        store.commit(acme, Revision::new(revision), group).await?;
        revision += grown;
    }
    let loaded = store.load(acme).await?;
    let expected: Vec<Row> = model.into_values().collect();
    same(RULE, &(loaded.revision, sorted(loaded.rows)), &(Revision::new(revision), sorted(expected)))
}

async fn what_is_taken_over_goes_on(store: &dyn Store) -> Verdict {
    const RULE: &str = "a network out of another store is as it was there, and goes on from there";
    let acme = id(1);
    let logged = |revision| Logged { head: head(acme, revision), changes: vec![put(revision)] };
    let log: Vec<Logged> = (41..=50).map(logged).collect();
    let rows: Vec<Row> = [conf(acme, "acme")?].into_iter().chain((1..=50).map(resting)).collect();
    let name: Name = "acme".parse()?;
    let moved = Moved { head: head(acme, 50), name: name.clone(), rows: rows.clone(), log: log.clone() };
    let record = |n: u64| AuditRecord {
        seq: n * 1000,
        network: n.is_multiple_of(2).then_some(acme),
        revision: None,
        at: now(),
        actor: "somebody".to_owned(),
        action: format!("old-{n}"),
        detail: String::new(),
    };
    store.adopt(moved.clone()).await?;
    store.adopt_rest(Vec::new(), (1..=120).map(record).collect()).await?;
    let loaded = store.load(acme).await?;
    same(RULE, &(loaded.revision, sorted(loaded.rows)), &(Revision::new(50), sorted(rows)))?;
    same(RULE, &store.changes_since(acme, Revision::new(40)).await?, &log)?;
    let before = store.changes_since(acme, Revision::new(39)).await;
    same(RULE, &before, &Err(StoreError::Compacted { oldest: Revision::new(40) }))?;
    let conflict = StoreError::Conflict { network: acme, expected: Revision::ZERO, found: Revision::new(50) };
    same(RULE, &store.adopt(moved.clone()).await, &Err(conflict))?;
    let other = Moved { head: head(id(2), 50), ..moved };
    same(RULE, &store.adopt(other).await, &Err(StoreError::NameTaken { name }))?;
    store.commit(acme, Revision::new(50), vec![commit(acme, 51, vec![put(51), remove(1)])]).await?;
    let loaded = store.load(acme).await?;
    same(RULE, &(loaded.revision, loaded.rows.len()), &(Revision::new(51), 51))?;
    let actions = |records: Vec<AuditRecord>| records.into_iter().map(|r| r.action).collect::<Vec<_>>();
    let all: Vec<String> = (1..=120).map(|n| format!("old-{n}")).chain(["test".to_owned()]).collect();
    same(RULE, &actions(store.audit(None, 0, MAX_AUDIT_PAGE).await?), &all)?;
    same(RULE, &store.audit(Some(acme), 0, MAX_AUDIT_PAGE).await?.len(), &61)
}

async fn a_closed_store_says_so(store: &dyn Store) -> Verdict {
    const RULE: &str = "a closed store takes no writes";
    create(store, id(1), "acme").await?;
    store.close().await;
    let late = store.commit(id(1), Revision::new(1), vec![commit(id(1), 2, vec![])]).await;
    holds(RULE, matches!(late, Err(StoreError::Unavailable { .. })), &late)?;
    let probe = store.probe().await;
    holds(RULE, matches!(probe, Err(StoreError::Unavailable { .. })), &probe)
}

fn same<T: PartialEq + std::fmt::Debug>(rule: &'static str, saw: &T, expected: &T) -> Verdict {
    if saw == expected {
        return Ok(());
    }
    Err(Broken { rule, saw: format!("{saw:?} and not {expected:?}") })
}

fn holds(rule: &'static str, condition: bool, saw: &impl std::fmt::Debug) -> Verdict {
    if condition { Ok(()) } else { Err(Broken { rule, saw: format!("{saw:?}") }) }
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by_key(Row::key);
    rows
}

fn id(n: u8) -> NetworkId {
    NetworkId::from_bytes([n; 16])
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

fn head(network: NetworkId, revision: u64) -> Head {
    let mut digest = [7; 32];
    for (byte, part) in digest.iter_mut().zip(revision.to_be_bytes()) {
        *byte = part;
    }
    let revision = Revision::new(revision);
    Head { network, epoch: Epoch::new(3), revision, digest: Digest::from_bytes(digest) }
}

fn note(action: &'static str) -> AuditNote {
    AuditNote { at: now(), actor: Actor::Local { uid: 7 }, action, detail: "detail".to_owned() }
}

fn commit(network: NetworkId, revision: u64, changes: Vec<StateChange>) -> Commit {
    Commit { head: head(network, revision), changes, audit: note("test") }
}

async fn create(store: &dyn Store, network: NetworkId, name: &str) -> Verdict {
    let changes = vec![StateChange::Put(conf(network, name)?)];
    let first = Commit { head: head(network, 1), changes, audit: note("network.create") };
    Ok(store.create_network(&name.parse()?, first).await?)
}

fn conf(network: NetworkId, name: &str) -> Result<Row, Broken> {
    let prefix6 = ipnet::Ipv6Net::new(Ipv6Addr::new(0xfd00, 1, 2, 0, 0, 0, 0, 0), 48)
        .map_err(|error| Broken { rule: "the suite's own prefix is valid", saw: error.to_string() })?;
    Ok(Row::Network(NetworkConf {
        id: network,
        name: name.parse()?,
        prefix6,
        prefix4: None,
        reserved: Vec::new(),
        rest_millis: 1,
        ephemeral_ttl_millis: 2,
        epoch: Epoch::new(3),
        created: now(),
        next_container: ContainerId::new(1),
        key_lifetime_millis: None,
        keys_since: None,
        controllers: Vec::new(),
        signing: None,
    }))
}

fn address(n: u64) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(n)))
}

fn resting(n: u64) -> Row {
    Row::Resting(Resting { address: address(n), until: now() })
}

fn put(n: u64) -> StateChange {
    StateChange::Put(resting(n))
}

fn remove(n: u64) -> StateChange {
    StateChange::Remove(RowKey::Resting(address(n)))
}
