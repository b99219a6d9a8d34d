#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32])
}

fn peer(n: u8, address: &str, endpoints: &[&str]) -> Peer {
    Peer {
        public_key: key(n),
        addresses: vec![address.parse().unwrap()],
        endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
        preshared_key: None,
        also_key: None,
    }
}

fn owner(directory: &Directory, address: &str) -> Option<PublicKey> {
    Some(directory.peer(directory.owner(&address.parse().unwrap())?).unwrap().key)
}

#[test]
fn a_learned_endpoint_survives_an_update_that_does_not_change_the_configured_ones() {
    let mut directory = Directory::default();
    let id = directory.put(peer(1, "10.0.0.1", &["192.0.2.1:1"])).id;
    directory.learn(id, "192.0.2.9:9".parse().unwrap());
    directory.put(peer(1, "10.0.0.2", &["192.0.2.1:1"]));
    assert_eq!(directory.peer(id).unwrap().endpoint(0), Some("192.0.2.9:9".parse().unwrap()));
    assert_eq!(owner(&directory, "10.0.0.1"), None);
    directory.put(peer(1, "10.0.0.2", &["192.0.2.2:2"]));
    assert_eq!(directory.peer(id).unwrap().endpoint(0), Some("192.0.2.2:2".parse().unwrap()));
}

#[test]
fn an_address_that_moved_stays_with_its_new_owner_when_the_old_one_goes() {
    let mut directory = Directory::default();
    directory.put(peer(1, "10.0.0.1", &[]));
    directory.put(peer(2, "10.0.0.1", &[]));
    directory.remove(&key(1));
    assert_eq!(owner(&directory, "10.0.0.1"), Some(key(2)));
}

#[test]
fn a_replacement_removes_only_whom_it_does_not_name() {
    let mut directory = Directory::default();
    let first = directory.put(peer(1, "10.0.0.1", &[])).id;
    directory.put(peer(2, "10.0.0.2", &[]));
    directory.begin_replace();
    directory.put(peer(2, "10.0.0.2", &[]));
    directory.put(peer(3, "10.0.0.3", &[]));
    assert_eq!(directory.end_replace(), vec![first]);
    assert_eq!(directory.len(), 2);
}

#[test]
fn attempts_take_the_endpoints_in_turn() {
    let mut directory = Directory::default();
    let id = directory.put(peer(1, "10.0.0.1", &["192.0.2.1:1", "192.0.2.2:2"])).id;
    let at = |directory: &Directory, n| directory.peer(id).unwrap().endpoint(n).unwrap().port();
    assert_eq!([0, 1, 2].map(|n| at(&directory, n)), [1, 2, 1]);
    directory.learn(id, "192.0.2.9:9".parse().unwrap());
    assert_eq!([0, 1, 2, 3].map(|n| at(&directory, n)), [9, 1, 2, 1]);
}

#[test]
fn an_underlay_address_is_known_while_some_peer_is_there() {
    let mut directory = Directory::default();
    let id = directory.put(peer(1, "10.0.0.1", &["192.0.2.1:1"])).id;
    directory.put(peer(2, "10.0.0.2", &["192.0.2.1:2"]));
    directory.learn(id, "192.0.2.9:9".parse().unwrap());
    let knows = |directory: &Directory, at: &str| directory.knows_endpoint(&at.parse().unwrap());
    assert!(knows(&directory, "192.0.2.1:7") && knows(&directory, "192.0.2.9:7"));
    directory.remove(&key(1));
    assert!(knows(&directory, "192.0.2.1:7") && !knows(&directory, "192.0.2.9:7"));
    directory.remove(&key(2));
    assert!(!knows(&directory, "192.0.2.1:7"));
}

/// A prefix among few, so that they overlap and are taken from each other often.
fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0u8..4, prop_oneof![Just(8u8), Just(24), Just(30), Just(32), Just(32)])
            .prop_map(|(last, len)| IpNet::new(IpAddr::from([10, 0, 0, last]), len).unwrap().trunc()),
        (0u16..4, prop_oneof![Just(48u8), Just(126), Just(128), Just(128)]).prop_map(|(last, len)| {
            IpNet::new(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]), len).unwrap().trunc()
        }),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Update { key: u8, replace: bool, allow: Vec<IpNet>, disallow: Vec<IpNet> },
    Remove { key: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let nets = || proptest::collection::vec(net(), 0..4);
    prop_oneof![
        4 => (0u8..4, any::<bool>(), nets(), nets())
            .prop_map(|(key, replace, allow, disallow)| Step::Update { key, replace, allow, disallow }),
        1 => (0u8..4).prop_map(|key| Step::Remove { key }),
    ]
}

proptest! {
    /// The model is a list of prefixes with their owners, searched from the longest.
    #[test]
    fn an_address_belongs_to_the_peer_of_its_longest_prefix(steps in proptest::collection::vec(step(), 1..30)) {
        let mut directory = Directory::default();
        let mut model: BTreeMap<IpNet, u8> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Update { key: n, replace, allow, disallow } => {
                    if replace {
                        model.retain(|_, owner| *owner != n);
                    }
                    disallow.iter().for_each(|net| {
                        if model.get(net) == Some(&n) {
                            model.remove(net);
                        }
                    });
                    allow.iter().for_each(|net| {
                        model.insert(*net, n);
                    });
                    let update = PeerUpdate { replace_allowed: replace, allow, disallow, ..PeerUpdate::default() };
                    directory.update(&key(n), update);
                }
                Step::Remove { key: n } => {
                    model.retain(|_, owner| *owner != n);
                    directory.remove(&key(n));
                }
            }
            let v4 = (0u8..6).map(|n| IpAddr::from([10, 0, 0, n]));
            let v6 = (0u16..6).map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]));
            for address in v4.chain(v6) {
                let holds = model.iter().filter(|(net, _)| net.contains(&address));
                let expected = holds.max_by_key(|(net, _)| net.prefix_len()).map(|(_, owner)| key(*owner));
                let found = directory.owner(&address).map(|id| directory.peer(id).unwrap().key);
                prop_assert_eq!(found, expected);
            }
            for (_, entry) in directory.iter() {
                let mut held: Vec<IpNet> = entry.allowed().collect();
                held.sort();
                let of = model.iter().filter(|(_, owner)| key(**owner) == entry.key);
                prop_assert_eq!(held, of.map(|(net, _)| *net).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn a_peer_whose_keys_change_is_the_same_peer_as_long_as_it_keeps_one() {
    let mut directory = Directory::default();
    let with =
        |n: u8, also: Option<u8>| Peer { also_key: also.map(key), ..peer(n, "10.0.0.1", &["192.0.2.1:1"]) };
    let put = |directory: &mut Directory, n, also| {
        let changed = directory.put(with(n, also));
        (changed.id, changed.renamed)
    };
    let first = directory.put(with(1, None));
    assert!(!first.renamed);
    directory.learn(first.id, "192.0.2.9:9".parse().unwrap());
    // Whichever stages it misses.
    for (n, also) in [(1, Some(2)), (2, Some(1)), (2, None), (3, Some(2)), (3, None), (3, Some(4)), (4, None)]
    {
        assert_eq!(put(&mut directory, n, also), (first.id, true), "{n} {also:?}");
        assert_eq!(put(&mut directory, n, also), (first.id, false));
        let keys = (1..=4).filter(|n| directory.id(&key(*n)).is_some()).collect::<Vec<_>>();
        let mut expected: Vec<u8> = [n].into_iter().chain(also).collect();
        expected.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!(directory.peer(first.id).unwrap().learned(), Some("192.0.2.9:9".parse().unwrap()));
    }
    // One that keeps none is another peer.
    let second = directory.put(with(5, Some(6))).id;
    assert_ne!(second, first.id);
    assert_eq!(directory.remove(&key(6)), Some(second));
    assert!(directory.id(&key(5)).is_none() && directory.len() == 1);
}

#[test]
fn a_key_that_another_peer_has_is_not_given_to_a_second_one() {
    let mut directory = Directory::default();
    let first = directory.put(peer(1, "10.0.0.1", &[])).id;
    let second = directory.put(peer(2, "10.0.0.2", &[])).id;
    assert_ne!(first, second);
    let changed = directory.put(Peer { also_key: Some(key(1)), ..peer(2, "10.0.0.2", &[]) });
    assert_eq!((changed.id, changed.renamed), (second, false));
    assert_eq!((directory.id(&key(1)), directory.id(&key(2))), (Some(first), Some(second)));
    assert_eq!(directory.peer(second).unwrap().also(), None);
}
