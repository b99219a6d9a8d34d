//! Maps, deltas and digests.

use proptest::prelude::*;
use znet_core::id::{NetworkId, Revision};
use znet_core::map::{Change, Delta, Map, Record};

use crate::generate::{NETWORK, map, record};

fn applied(map: &Map, changes: &[Change]) -> Map {
    let mut map = map.clone();
    changes.iter().for_each(|change| map.apply(change));
    map
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![record().prop_map(Change::Put), record().prop_map(|record| Change::Remove(record.key()))]
}

fn deltas() -> impl Strategy<Value = Vec<Delta>> {
    prop::collection::vec(prop::collection::vec(change(), 0..5), 1..6).prop_map(|steps| {
        let delta = |(n, changes)| {
            let from = Revision::new(n as u64);
            Delta { from, to: from.next(), changes }
        };
        steps.into_iter().enumerate().map(delta).collect()
    })
}

proptest! {
    #[test]
    fn a_difference_applied_to_the_old_map_is_the_new_map(old in map(), new in map()) {
        let changes = old.diff(&new);
        prop_assert_eq!(&applied(&old, &changes), &new);
        // It says nothing twice, and nothing that was so already.
        let mut keys: Vec<_> = changes.iter().map(Change::key).collect();
        keys.sort();
        keys.dedup();
        prop_assert_eq!(keys.len(), changes.len());
        prop_assert!(changes.iter().all(|change| old.get(change.key()) != new.get(change.key())));
        prop_assert_eq!(new.diff(&new), vec![]);
    }

    #[test]
    fn one_squashed_delta_does_what_all_did_one_after_the_other(start in map(), deltas in deltas()) {
        let one_by_one = deltas.iter().fold(start.clone(), |map, delta| applied(&map, &delta.changes));
        let squashed = Delta::squash(&deltas).unwrap();
        prop_assert_eq!(applied(&start, &squashed.changes), one_by_one);
        prop_assert_eq!(squashed.from, deltas[0].from);
        prop_assert_eq!(squashed.to, deltas[deltas.len() - 1].to);
        let mut keys: Vec<_> = squashed.changes.iter().map(Change::key).collect();
        let all = keys.len();
        keys.sort();
        keys.dedup();
        prop_assert_eq!(keys.len(), all, "a key appears at most once");
    }

    #[test]
    fn digests_are_equal_exactly_when_maps_are(one in map(), other in map()) {
        let (a, b) = (one.set_hash(NETWORK).digest(), other.set_hash(NETWORK).digest());
        prop_assert_eq!(a == b, one == other);
        // The order in which records came makes no difference, and the network does.
        let mut backwards: Vec<Record> = one.records().collect();
        backwards.reverse();
        prop_assert_eq!(backwards.into_iter().collect::<Map>().set_hash(NETWORK).digest(), a);
        if !one.is_empty() {
            prop_assert_ne!(one.set_hash(NetworkId::from_bytes([8; 16])).digest(), a);
        }
    }

    #[test]
    fn a_digest_kept_up_step_by_step_is_the_one_computed_anew(start in map(), deltas in deltas()) {
        let (mut map, mut hash) = (start.clone(), start.set_hash(NETWORK));
        for change in deltas.iter().flat_map(|delta| &delta.changes) {
            let old = match change {
                Change::Put(record) => {
                    hash.add(record);
                    map.put(record.clone())
                }
                Change::Remove(key) => map.remove(*key),
            };
            if let Some(old) = old {
                hash.remove(&old);
            }
            prop_assert_eq!(hash.digest(), map.set_hash(NETWORK).digest());
        }
    }

    #[test]
    fn canonical_bytes_are_equal_exactly_when_records_are(one in record(), other in record()) {
        prop_assert_eq!(one.canonical_bytes() == other.canonical_bytes(), one == other);
    }

    #[test]
    fn records_survive_their_json(record in record()) {
        // JSON has no place for flow labels, and no record that a controller makes has one.
        let has_flow_label = matches!(&record, Record::Node(node) if node.endpoints.iter().any(
            |endpoint| matches!(endpoint, std::net::SocketAddr::V6(v6) if v6.flowinfo() != 0)
        ));
        prop_assume!(!has_flow_label);
        let json = serde_json::to_string(&record).unwrap();
        prop_assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    }

    #[test]
    fn a_map_finds_what_it_holds(records in prop::collection::vec(record(), 0..10)) {
        let map: Map = records.iter().cloned().collect();
        prop_assert_eq!(map.records().count(), map.len());
        prop_assert_eq!(map.is_empty(), records.is_empty());
        for record in map.records() {
            prop_assert_eq!(map.get(record.key()), Some(record.clone()));
            // The last word on a key wins.
            prop_assert_eq!(records.iter().rfind(|r| r.key() == record.key()), Some(&record));
        }
    }
}
