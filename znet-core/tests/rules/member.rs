//! An agent's map between an honest controller, a bad network and somebody who forges.

use proptest::prelude::*;
use znet_core::id::{Epoch, NetworkId, Revision};
use znet_core::key::{Signature, SigningKey};
use znet_core::map::{Change, Delta, Digest, Head, Map, Member, Record, Refusal, SignedHead};

use crate::generate::{NETWORK, map, record, signing_key};

/// A map that the controller published, with all that it can send about it.
#[derive(Clone, Debug)]
struct Published {
    map: Map,
    head: SignedHead,
    /// From the map before, where that was in the same epoch.
    delta: Option<Delta>,
}

fn head_of(map: &Map, epoch: u64, revision: u64) -> Head {
    Head {
        network: NETWORK,
        epoch: Epoch::new(epoch),
        revision: Revision::new(revision),
        digest: map.set_hash(NETWORK).digest(),
    }
}

fn publish(map: Map, epoch: u64, revision: u64, before: Option<&Published>) -> Published {
    let head = head_of(&map, epoch, revision).sign(&signing_key());
    let before = before.filter(|before| before.head.head.epoch == head.head.epoch);
    let delta = before.map(|before| Delta {
        from: before.head.head.revision,
        to: head.head.revision,
        changes: before.map.diff(&map),
    });
    Published { map, head, delta }
}

/// Some revisions; now and then a new epoch goes back to a lower one, as after a restored backup.
fn history() -> impl Strategy<Value = Vec<Published>> {
    prop::collection::vec((map(), 0u8..5), 2..8).prop_map(|maps| {
        let mut history: Vec<Published> = Vec::new();
        let (mut epoch, mut revision) = (0, 5);
        for (map, dice) in maps {
            if dice == 0 && !history.is_empty() {
                (epoch, revision) = (epoch + 1, revision - 2);
            }
            history.push(publish(map, epoch, revision, history.last()));
            revision += 1;
        }
        history
    })
}

/// What arrives at the agent, by which of the published maps it is about.
#[derive(Clone, Debug)]
enum Message {
    Delta(prop::sample::Index),
    Squashed(prop::sample::Index, prop::sample::Index),
    Snapshot(prop::sample::Index),
    Forged(prop::sample::Index, Forgery),
}

#[derive(Clone, Debug)]
enum Forgery {
    /// One bit of the signature.
    Signature(usize),
    /// The signature of somebody else's key.
    OtherKey,
    Network,
    Epoch(u64),
    Revision(u64),
    Digest(usize),
    /// A true head over other records, as a snapshot and as a delta.
    Records(Vec<Record>),
    Changes(Vec<Change>),
    /// One record of a true snapshot left out.
    LeftOut(prop::sample::Index),
}

fn message() -> impl Strategy<Value = Message> {
    let index = any::<prop::sample::Index>;
    let forgery = prop_oneof![
        (0usize..512).prop_map(Forgery::Signature),
        Just(Forgery::OtherKey),
        Just(Forgery::Network),
        (1u64..3).prop_map(Forgery::Epoch),
        (1u64..3).prop_map(Forgery::Revision),
        (0usize..256).prop_map(Forgery::Digest),
        prop::collection::vec(record(), 0..6).prop_map(Forgery::Records),
        prop::collection::vec(record().prop_map(Change::Put), 1..4).prop_map(Forgery::Changes),
        index().prop_map(Forgery::LeftOut),
    ];
    prop_oneof![
        6 => index().prop_map(Message::Delta),
        2 => (index(), index()).prop_map(|(a, b)| Message::Squashed(a, b)),
        2 => index().prop_map(Message::Snapshot),
        4 => (index(), forgery).prop_map(|(index, forgery)| Message::Forged(index, forgery)),
    ]
}

fn flipped<const N: usize>(bytes: &[u8; N], bit: usize) -> [u8; N] {
    let mut bytes = *bytes;
    bytes[bit / 8 % N] ^= 1 << (bit % 8);
    bytes
}

fn deliver(member: &mut Member, history: &[Published], message: &Message) -> Result<(), Refusal> {
    match message {
        Message::Delta(index) => {
            let published = index.get(history);
            match &published.delta {
                Some(delta) => member.apply_delta(delta, &published.head),
                None => snapshot(member, published.map.records(), &published.head),
            }
        }
        Message::Squashed(a, b) => {
            let (a, b) = (a.index(history.len()), b.index(history.len()));
            let run = &history[a.min(b)..=a.max(b)];
            let deltas: Option<Vec<&Delta>> = run.iter().map(|published| published.delta.as_ref()).collect();
            let last = run.last().unwrap();
            // Over the start of an epoch nothing can be squashed.
            match deltas.filter(|_| run.iter().all(|p| p.head.head.epoch == last.head.head.epoch)) {
                Some(deltas) => member.apply_delta(&Delta::squash(deltas).unwrap(), &last.head),
                None => Ok(()),
            }
        }
        Message::Snapshot(index) => {
            let published = index.get(history);
            snapshot(member, published.map.records(), &published.head)
        }
        Message::Forged(index, forgery) => forge(member, index.get(history), forgery),
    }
}

fn snapshot(
    member: &mut Member,
    records: impl IntoIterator<Item = Record>,
    head: &SignedHead,
) -> Result<(), Refusal> {
    let old = member.map().clone();
    let changes = member.apply_snapshot(records, head)?;
    assert_eq!(changes, old.diff(member.map()), "a snapshot tells what it changed");
    Ok(())
}

fn forge(member: &mut Member, published: &Published, forgery: &Forgery) -> Result<(), Refusal> {
    let SignedHead { mut head, mut signature } = published.head;
    let mut records: Vec<Record> = published.map.records().collect();
    match forgery {
        Forgery::Signature(bit) => signature = Signature::from_bytes(flipped(signature.as_bytes(), *bit)),
        Forgery::OtherKey => signature = head.sign(&SigningKey::from_seed(&[4; 32])).signature,
        Forgery::Network => head.network = NetworkId::from_bytes([8; 16]),
        Forgery::Epoch(more) => head.epoch = Epoch::new(head.epoch.get() + more),
        Forgery::Revision(more) => head.revision = Revision::new(head.revision.get() + more),
        Forgery::Digest(bit) => head.digest = Digest::from_bytes(flipped(head.digest.as_bytes(), *bit)),
        Forgery::Records(other) => records = other.clone(),
        Forgery::LeftOut(index) if !records.is_empty() => drop(records.remove(index.index(records.len()))),
        Forgery::LeftOut(_) | Forgery::Changes(_) => {}
    }
    let signed = SignedHead { head, signature };
    let delta = Delta {
        from: member.revision(),
        to: head.revision,
        changes: match forgery {
            Forgery::Changes(changes) => changes.clone(),
            _ => member.map().diff(&records.iter().cloned().collect()),
        },
    };
    // Neither way may lead to anything that was not published.
    let by_delta = member.apply_delta(&delta, &signed);
    let by_snapshot = member.apply_snapshot(records, &signed).map(drop);
    by_delta.and(by_snapshot)
}

fn state(member: &Member) -> (Map, Option<SignedHead>) {
    (member.map().clone(), member.head().copied())
}

proptest! {
    #[test]
    fn whatever_arrives_in_whatever_order_only_published_maps_are_applied_and_never_an_older_one(
        history in history(),
        messages in prop::collection::vec(message(), 0..24),
    ) {
        let mut member = Member::new(NETWORK, signing_key().verifying_key());
        for message in &messages {
            let before = state(&member);
            let answer = deliver(&mut member, &history, message);
            let after = state(&member);
            if answer.is_err() && !matches!(message, Message::Forged(..)) {
                prop_assert_eq!(&after, &before, "a refused message changes nothing");
            }
            if let Some(signed) = after.1 {
                let published = history.iter().find(|published| published.head == signed);
                prop_assert_eq!(&published.expect("a published head").map, &after.0);
                let position = |head: Option<SignedHead>| head.map(|signed| signed.head.position());
                prop_assert!(position(after.1) >= position(before.1), "never back");
                prop_assert_eq!(after.0.set_hash(NETWORK).digest(), signed.head.digest);
            } else {
                prop_assert!(after.0.is_empty());
            }
        }
        // A snapshot of what stands last mends everything.
        let last = history.last().unwrap();
        snapshot(&mut member, last.map.records(), &last.head).unwrap();
        prop_assert_eq!(member.map(), &last.map);
    }

    #[test]
    fn an_agent_that_asks_for_a_snapshot_when_told_to_keeps_up_with_a_lossy_stream(
        history in history(),
        fates in prop::collection::vec(0u8..4, 8),
    ) {
        let mut member = Member::new(NETWORK, signing_key().verifying_key());
        for (published, fate) in history.iter().zip(fates) {
            let times = match fate { 0 => 0, 3 => 2, _ => 1 };
            for _ in 0..times {
                let answer = match &published.delta {
                    Some(delta) => member.apply_delta(delta, &published.head),
                    None => snapshot(&mut member, published.map.records(), &published.head),
                };
                if let Err(refusal) = answer {
                    prop_assert!(refusal.wants_snapshot(), "{}", refusal);
                    snapshot(&mut member, published.map.records(), &published.head).unwrap();
                }
                prop_assert_eq!(member.map(), &published.map);
                prop_assert_eq!(member.head(), Some(&published.head));
            }
        }
    }
}

fn records(count: u64) -> Map {
    let mut map = Map::default();
    for n in 0..count {
        map.put(Record::Node(znet_core::map::NodeRecord {
            id: znet_core::id::NodeId::from_bytes([n as u8; 32]),
            name: format!("node-{n}").parse().unwrap(),
            endpoints: Vec::new(),
        }));
    }
    map
}

fn member_at(map: &Map, epoch: u64, revision: u64) -> Member {
    let mut member = Member::new(NETWORK, signing_key().verifying_key());
    member.apply_snapshot(map.records(), &head_of(map, epoch, revision).sign(&signing_key())).unwrap();
    member
}

/// Offers a map both ways and says how each was refused; both must leave everything as it was.
fn refused(
    member: &mut Member,
    delta: &Delta,
    map: &Map,
    head: &SignedHead,
) -> (Option<Refusal>, Option<Refusal>) {
    let before = state(member);
    let by_delta = member.apply_delta(delta, head).err();
    assert_eq!(state(member), before);
    let by_snapshot = member.apply_snapshot(map.records(), head).err();
    assert!(by_snapshot.is_none() || state(member) == before);
    (by_delta, by_snapshot)
}

#[test]
fn a_head_that_another_key_signed_is_refused() {
    let (old, new) = (records(2), records(3));
    let mut member = member_at(&old, 0, 4);
    let delta = Delta { from: Revision::new(4), to: Revision::new(5), changes: old.diff(&new) };
    let head = head_of(&new, 0, 5).sign(&SigningKey::from_seed(&[4; 32]));
    let refusal = Refusal::Signature { revision: Revision::new(5) };
    assert_eq!(refused(&mut member, &delta, &new, &head), (Some(refusal.clone()), Some(refusal.clone())));
    assert!(!refusal.wants_snapshot());
}

#[test]
fn a_head_of_another_network_is_refused_even_under_the_same_key() {
    let (old, new) = (records(2), records(3));
    let mut member = member_at(&old, 0, 4);
    let foreign = NetworkId::from_bytes([8; 16]);
    let head = Head { network: foreign, digest: new.set_hash(foreign).digest(), ..head_of(&new, 0, 5) };
    let delta = Delta { from: Revision::new(4), to: Revision::new(5), changes: old.diff(&new) };
    let refusal = Refusal::ForeignNetwork { expected: NETWORK, got: foreign };
    let (by_delta, by_snapshot) = refused(&mut member, &delta, &new, &head.sign(&signing_key()));
    assert_eq!((by_delta, by_snapshot), (Some(refusal.clone()), Some(refusal.clone())));
    assert!(!refusal.wants_snapshot());
}

#[test]
fn an_older_revision_is_refused_and_an_older_epoch_whatever_its_revision() {
    let (old, new) = (records(2), records(3));
    for (epoch, revision) in [(3, 6), (2, 99)] {
        let mut member = member_at(&old, 3, 7);
        let head = head_of(&new, epoch, revision).sign(&signing_key());
        let delta = Delta { from: Revision::new(7), to: Revision::new(revision), changes: old.diff(&new) };
        let refusal = Refusal::Older {
            epoch: Epoch::new(epoch),
            revision: Revision::new(revision),
            applied_epoch: Epoch::new(3),
            applied: Revision::new(7),
        };
        assert_eq!(refused(&mut member, &delta, &new, &head), (Some(refusal.clone()), Some(refusal.clone())));
        assert!(!refusal.wants_snapshot());
    }
}

#[test]
fn records_that_do_not_have_the_signed_digest_are_refused_and_a_snapshot_is_wanted() {
    let (old, new, other) = (records(2), records(3), records(4));
    let mut member = member_at(&old, 0, 4);
    let head = head_of(&new, 0, 5).sign(&signing_key());
    let delta = Delta { from: Revision::new(4), to: Revision::new(5), changes: old.diff(&other) };
    let refusal = Refusal::Digest { revision: Revision::new(5) };
    assert_eq!(refused(&mut member, &delta, &other, &head), (Some(refusal.clone()), Some(refusal.clone())));
    assert!(refusal.wants_snapshot());
    member.apply_snapshot(new.records(), &head).unwrap();
    assert_eq!(member.map(), &new);
}

#[test]
fn a_delta_over_a_gap_is_refused_and_a_snapshot_heals() {
    let (old, new) = (records(2), records(3));
    let mut member = member_at(&old, 0, 4);
    let head = head_of(&new, 0, 7).sign(&signing_key());
    let delta = Delta { from: Revision::new(6), to: Revision::new(7), changes: old.diff(&new) };
    let before = state(&member);
    let refusal = member.apply_delta(&delta, &head).unwrap_err();
    let gap = Refusal::Gap { from: Revision::new(6), to: Revision::new(7), applied: Revision::new(4) };
    assert_eq!((&refusal, state(&member)), (&gap, before));
    assert!(refusal.wants_snapshot());
    member.apply_snapshot(new.records(), &head).unwrap();
    assert_eq!(member.revision(), Revision::new(7));
}

#[test]
fn a_delta_under_the_head_of_another_revision_is_refused() {
    let (old, new) = (records(2), records(3));
    let mut member = member_at(&old, 0, 4);
    let head = head_of(&new, 0, 6).sign(&signing_key());
    let delta = Delta { from: Revision::new(4), to: Revision::new(5), changes: old.diff(&new) };
    let refusal = member.apply_delta(&delta, &head).unwrap_err();
    assert_eq!(refusal, Refusal::HeadMismatch { to: Revision::new(5), head: Revision::new(6) });
    assert!(refusal.wants_snapshot());
    assert_eq!(member.map(), &old);
}

#[test]
fn a_second_map_of_the_same_revision_is_refused_though_the_networks_key_signed_it() {
    let (map, other) = (records(2), records(3));
    let mut member = member_at(&map, 1, 4);
    let head = head_of(&other, 1, 4).sign(&signing_key());
    let delta = Delta { from: Revision::new(4), to: Revision::new(4), changes: map.diff(&other) };
    let refusal = Refusal::Equivocation { epoch: Epoch::new(1), revision: Revision::new(4) };
    let expected = (Some(refusal.clone()), Some(refusal.clone()));
    assert_eq!(refused(&mut member, &delta, &other, &head), expected);
    assert!(!refusal.wants_snapshot());
    // The same map again is no second one, whether as a snapshot, a repeated delta, or a bare head.
    let same = head_of(&map, 1, 4).sign(&signing_key());
    assert_eq!(member.apply_snapshot(map.records(), &same), Ok(vec![]));
    let repeated = Delta { from: Revision::new(3), to: Revision::new(4), changes: vec![] };
    let bare = Delta { from: Revision::new(4), ..repeated.clone() };
    assert_eq!(member.apply_delta(&repeated, &same), Ok(()));
    assert_eq!(member.apply_delta(&bare, &same), Ok(()));
    assert_eq!(member.map(), &map);
}

#[test]
fn a_new_epoch_comes_as_a_snapshot_and_may_go_back_in_revisions() {
    let (old, restored, next) = (records(3), records(2), records(4));
    let mut member = member_at(&old, 0, 50);
    // A delta into the new epoch is refused, even where the numbers fit by chance.
    let head = head_of(&restored, 1, 51).sign(&signing_key());
    let delta = Delta { from: Revision::new(50), to: Revision::new(51), changes: old.diff(&restored) };
    let refusal = member.apply_delta(&delta, &head).unwrap_err();
    assert!(matches!(refusal, Refusal::Gap { .. }) && refusal.wants_snapshot());
    // The snapshot is taken though its revision is lower, and deltas go on from there.
    let head = head_of(&restored, 1, 41).sign(&signing_key());
    member.apply_snapshot(restored.records(), &head).unwrap();
    assert_eq!((member.map(), member.revision()), (&restored, Revision::new(41)));
    let delta = Delta { from: Revision::new(41), to: Revision::new(42), changes: restored.diff(&next) };
    member.apply_delta(&delta, &head_of(&next, 1, 42).sign(&signing_key())).unwrap();
    assert_eq!(member.map(), &next);
}

#[test]
fn a_member_that_has_no_map_yet_takes_snapshots_only() {
    let map = records(2);
    let mut member = Member::new(NETWORK, signing_key().verifying_key());
    let head = head_of(&map, 0, 1).sign(&signing_key());
    let delta = Delta { from: Revision::ZERO, to: Revision::new(1), changes: Map::default().diff(&map) };
    let refusal = member.apply_delta(&delta, &head).unwrap_err();
    assert!(refusal.wants_snapshot());
    member.apply_snapshot(map.records(), &head).unwrap();
    assert_eq!(member.map(), &map);
}
