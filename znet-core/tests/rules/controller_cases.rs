//! The controller's decisions in cases that somebody thought of, where the walk of `controller` would come to them rarely.

use std::net::IpAddr;

use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use znet_core::controller::{
    Access, Command, Container, MAX_TOKENS, Network, NodeLifetime, Rejection, Reply, Row, StateChange, Token,
    TokenSecret,
};
use znet_core::id::{NodeId, Revision, TokenId};
use znet_core::map::{AccessRecord, ContainerRecord};

use crate::controller::{PREFIX4, World, at, key, name, new_network, node};

/// A world in which node 0 is a member.
fn world() -> World {
    let mut world = World::new();
    let token =
        Command::CreateToken { label: None, uses: None, expires: None, lifetime: NodeLifetime::Lasting };
    let Ok(Reply::Token { secret, .. }) = world.decide(&token) else { panic!("no token") };
    let join = Command::Join {
        secret: Some(secret),
        node: node(0),
        name: name("n"),
        endpoints: vec![],
        two_keys: true,
    };
    world.decide(&join).unwrap();
    world
}

fn attach(world: &mut World, who: &str, addresses: &[&str]) -> Result<ContainerRecord, Rejection> {
    let command = Command::Attach {
        node: node(0),
        name: name(who),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        public_key: None,
        port: None,
    };
    match world.decide(&command)? {
        Reply::Attached { container, .. } => Ok(container),
        other => panic!("another reply: {other:?}"),
    }
}

fn reserve(world: &mut World, who: &str, addresses: &[&str]) -> Result<Vec<IpAddr>, Rejection> {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    match world.decide(&Command::Reserve { name: name(who), addresses })? {
        Reply::Reserved(reservation) => Ok(reservation.addresses),
        other => panic!("another reply: {other:?}"),
    }
}

#[test]
fn an_address_given_up_by_a_container_that_moved_rests_before_reuse() {
    let mut world = world();
    let old = attach(&mut world, "a", &[]).unwrap();
    let moved = attach(&mut world, "a", &["10.0.0.5"]).unwrap();
    assert_eq!((moved.id, moved.address6), (old.id, old.address6));
    assert_ne!(attach(&mut world, "b", &[]).unwrap().address4, old.address4);
    let given_up = old.address4.unwrap().to_string();
    assert_eq!(attach(&mut world, "c", &[&given_up]).unwrap_err().code(), "address_resting");
    world.now = world.now.plus(znet_core::controller::DEFAULT_REST);
    assert_eq!(attach(&mut world, "d", &[]).unwrap().address4, old.address4);
}

#[test]
fn a_container_and_a_reservation_of_one_name_can_exchange_addresses() {
    let mut world = world();
    reserve(&mut world, "a", &["10.0.0.3"]).unwrap();
    let elsewhere = attach(&mut world, "a", &["10.0.0.5"]).unwrap();
    // To what is reserved for it, though it is somewhere else now.
    let home = attach(&mut world, "a", &["10.0.0.3"]).unwrap();
    assert_eq!((home.id, home.address4), (elsewhere.id, Some([10, 0, 0, 3].into())));
    // And the reservation to where the container is.
    let moved = attach(&mut world, "a", &["10.0.0.6"]).unwrap();
    let kept = reserve(&mut world, "a", &["10.0.0.6"]).unwrap();
    assert_eq!(kept, moved.addresses().collect::<Vec<_>>());
    assert_eq!(attach(&mut world, "b", &["10.0.0.6"]).unwrap_err().code(), "address_taken");
    world.decide(&Command::RemoveContainer { name: name("a") }).unwrap();
    assert_eq!(attach(&mut world, "a", &[]).unwrap().addresses().collect::<Vec<_>>(), kept);
}

#[test]
fn an_exhausted_prefix_is_named_and_changes_nothing() {
    let mut world = world();
    for n in 0..6 {
        attach(&mut world, &format!("c{n}"), &[]).unwrap();
    }
    let before = world.network.clone();
    let rejection = attach(&mut world, "one-more", &[]).unwrap_err();
    assert_eq!(rejection, Rejection::Exhausted { prefix: PREFIX4.parse().unwrap() });
    assert!(rejection.to_string().contains(PREFIX4));
    assert_eq!(world.network, before);
    // An address that rests does not help, and one whose rest is over does.
    world.decide(&Command::Detach { node: node(0), name: name("c3") }).unwrap();
    assert_eq!(attach(&mut world, "one-more", &[]).unwrap_err().code(), "exhausted");
    world.now = world.now.plus(znet_core::controller::DEFAULT_REST);
    assert_eq!(attach(&mut world, "one-more", &[]).unwrap().address4, Some([10, 0, 0, 4].into()));
}

#[test]
fn the_lowest_address_is_given_even_when_more_rested_than_one_decision_clears_away() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut network = Network::from_rows(
        Revision::new(1),
        new_network(&mut rng).into_iter().filter_map(|change| match change {
            StateChange::Put(Row::Network(mut conf)) => {
                conf.prefix4 = Some("10.0.0.0/16".parse().unwrap());
                Some(Row::Network(conf))
            }
            _ => None,
        }),
    )
    .unwrap();
    // The higher the address, the earlier it was released: clearing by age alone would find the lowest last of all.
    let rest = |n: u32| {
        let address = IpAddr::V4((0x0a00_0000 + n).into());
        StateChange::Put(Row::Resting(znet_core::controller::Resting {
            address,
            until: at(2_000 - u64::from(n)),
        }))
    };
    network.apply(&(1..=500).map(rest).collect::<Vec<_>>());
    let reserve = |who: &str| Command::Reserve { name: name(who), addresses: vec![] };
    for expected in 1u8..=100 {
        let command = reserve(&format!("c{expected}"));
        let decision = network.decide(&command, at(3_000), &mut rng).unwrap();
        network.apply(&decision.changes);
        let Reply::Reserved(reservation) = decision.reply else { panic!("another reply") };
        assert_eq!(reservation.addresses[1], IpAddr::from([10, 0, 0, expected]));
    }
    assert_eq!(network.resting().count(), 0, "the store was cleared of rests that are over");
}

#[test]
fn a_new_epoch_of_each_restored_copy_is_its_own() {
    let mut world = world();
    let backup = world.network.clone();
    let restored_at = |secs: u64| {
        let mut network = backup.clone();
        let decision =
            network.decide(&Command::NewEpoch, at(secs), &mut ChaCha20Rng::seed_from_u64(1)).unwrap();
        network.apply(&decision.changes);
        network.head().epoch
    };
    let (first, second) = (restored_at(5_000), restored_at(6_000));
    assert!(first > backup.head().epoch && second > first, "{first} {second}");
    // Nor does it go back when the clock does.
    world.decide(&Command::NewEpoch).unwrap();
    let before = world.network.head().epoch;
    world.now = at(0);
    world.decide(&Command::NewEpoch).unwrap();
    assert!(world.network.head().epoch > before);
}

#[test]
fn dead_tokens_make_room_for_new_ones_and_valid_ones_do_not() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut changes = new_network(&mut rng);
    let token = |n: usize, revoked: bool| {
        let mut id = [0; 8];
        id.copy_from_slice(&(n as u64).to_be_bytes());
        let mut secret_hash = [0; 32];
        secret_hash[..8].copy_from_slice(&id);
        StateChange::Put(Row::Token(Token {
            id: TokenId::from_bytes(id),
            label: None,
            secret_hash,
            max_uses: None,
            used: 0,
            expires: None,
            lifetime: NodeLifetime::Lasting,
            revoked,
            created: at(n as u64),
        }))
    };
    changes.extend((0..MAX_TOKENS).map(|n| token(n, n == 3 || n == 7)));
    let rows = changes.into_iter().filter_map(|change| match change {
        StateChange::Put(row) => Some(row),
        StateChange::Remove(_) => None,
    });
    let mut network = Network::from_rows(Revision::new(1), rows).unwrap();
    let create =
        Command::CreateToken { label: None, uses: None, expires: None, lifetime: NodeLifetime::Lasting };
    for oldest_dead in [3u64, 7] {
        let decision = network.decide(&create, at(0), &mut rng).unwrap();
        network.apply(&decision.changes);
        assert_eq!(network.token(&TokenId::from_bytes(oldest_dead.to_be_bytes())), None);
        assert_eq!(network.tokens().len(), MAX_TOKENS);
    }
    let rejection = network.decide(&create, at(0), &mut rng).unwrap_err();
    assert_eq!(rejection, Rejection::Full { what: "valid tokens", bound: MAX_TOKENS });
}

#[test]
fn a_token_revoked_with_its_nodes_takes_these_along_and_no_others() {
    let mut world = world();
    let mut token = |lifetime| {
        let command = Command::CreateToken { label: None, uses: None, expires: None, lifetime };
        let Ok(Reply::Token { id, secret }) = world.decide(&command) else { panic!("no token") };
        (id, secret)
    };
    let (bad, good) = (token(NodeLifetime::Lasting), token(NodeLifetime::Lasting));
    for (number, secret) in [(11, &bad.1), (12, &good.1), (13, &bad.1)] {
        let name = name(&format!("t{number}"));
        let secret = Some(secret.clone());
        world
            .decide(&Command::Join {
                secret,
                node: node(number),
                name: name.clone(),
                endpoints: vec![],
                two_keys: true,
            })
            .unwrap();
        let attach =
            Command::Attach { node: node(number), name, addresses: vec![], public_key: None, port: None };
        world.decide(&attach).unwrap();
    }
    let revoke = Command::RevokeToken { token: bad.0, with_nodes: true };
    let Ok(Reply::Removed { containers, nodes }) = world.decide(&revoke) else { panic!("not removed") };
    assert_eq!((containers.len(), nodes), (2, 2));
    let left = |number| world.network.node(&node(number)).is_some();
    assert_eq!((left(11), left(12), left(13)), (false, true, false));
    assert!(world.network.token(&bad.0).unwrap().revoked && !world.network.token(&good.0).unwrap().revoked);
    let again = world.network.decide(&revoke, world.now, &mut world.rng).unwrap();
    assert_eq!(again.changes, vec![], "revoking is idempotent");
}

#[test]
fn only_tokens_that_admit_nobody_any_more_are_removed() {
    let mut world = world();
    let mut token = |uses, expires| {
        let lifetime = NodeLifetime::Lasting;
        let Ok(Reply::Token { id, secret }) =
            world.decide(&Command::CreateToken { label: None, uses, expires, lifetime })
        else {
            panic!("no token")
        };
        (id, secret)
    };
    let (valid, expired) = (token(Some(2), None), token(None, Some(at(0))));
    let (used, revoked) = (token(Some(1), None), token(None, None));
    let secret = Some(used.1);
    world
        .decide(&Command::Join { secret, node: node(11), name: name("t"), endpoints: vec![], two_keys: true })
        .unwrap();
    world.decide(&Command::RevokeToken { token: revoked.0, with_nodes: false }).unwrap();
    let tokens = vec![valid.0, expired.0, used.0, revoked.0, valid.0, used.0];
    world.decide(&Command::RemoveTokens { tokens }).unwrap();
    let there = |id| world.network.token(&id).is_some();
    assert_eq!([valid.0, expired.0, used.0, revoked.0].map(there), [true, false, false, false]);
    assert!(world.network.node(&node(11)).is_some(), "a node outlives its token");
}

#[test]
fn a_node_name_that_is_taken_gets_a_number_and_stays_a_label() {
    let mut world = World::new();
    let token =
        Command::CreateToken { label: None, uses: None, expires: None, lifetime: NodeLifetime::Lasting };
    let Ok(Reply::Token { secret, .. }) = world.decide(&token) else { panic!("no token") };
    let longest = format!("{}-{}", "x".repeat(60), "yz");
    let mut joined = |n: u8, wanted: &str| {
        let command = Command::Join {
            secret: Some(secret.clone()),
            node: node(n),
            name: name(wanted),
            endpoints: vec![],
            two_keys: true,
        };
        match world.decide(&command).unwrap() {
            Reply::Joined { name } => name.to_string(),
            other => panic!("another reply: {other:?}"),
        }
    };
    assert_eq!([1, 2, 3].map(|n| joined(n, "pi")), ["pi", "pi-2", "pi-3"]);
    assert_eq!(joined(4, &longest), longest);
    // Cut so that the number fits, and without a hyphen before the number's own.
    assert_eq!(joined(5, &longest), format!("{}-2", "x".repeat(60)));
}

#[test]
fn endpoints_to_which_nobody_could_send_are_refused() {
    let mut world = world();
    for text in [
        "192.0.2.1:0",
        "0.0.0.0:51820",
        "[::]:51820",
        "224.0.0.1:51820",
        "[ff02::1]:51820",
        "255.255.255.255:51820",
        "[::ffff:224.0.0.1]:51820",
        "[fe80::1%3]:51820",
    ] {
        let endpoints = vec![text.parse().unwrap()];
        let rejection = world.decide(&Command::SetEndpoints { node: node(0), endpoints }).unwrap_err();
        assert_eq!(rejection.code(), "unusable_endpoint", "{text}");
    }
    let endpoints = ["192.0.2.1:51820", "[2001:db8::1]:51820", "127.0.0.1:1", "[fe80::1]:9"];
    let endpoints = endpoints.iter().map(|text| text.parse().unwrap()).collect();
    world.decide(&Command::SetEndpoints { node: node(0), endpoints }).unwrap();
}

#[test]
fn rows_that_contradict_each_other_are_called_corrupt() {
    let mut world = world();
    let container = attach(&mut world, "a", &[]).unwrap();
    reserve(&mut world, "kept", &[]).unwrap();
    let rows: Vec<Row> = world.network.rows().collect();
    let next = rows
        .iter()
        .find_map(|row| if let Row::Network(conf) = row { Some(conf.next_container) } else { None });
    let put = |record: ContainerRecord| Row::Container(Container { record, attached: at(1), keyed: None });
    let other = ContainerRecord {
        id: znet_core::id::ContainerId::new(0),
        name: name("b"),
        public_key: key(1),
        address6: "fd00:a:b::99".parse().unwrap(),
        address4: Some([10, 0, 0, 5].into()),
        ..container
    };
    let node_twice = || {
        let mut node = world.network.nodes().next().unwrap().clone();
        node.id = NodeId::from_bytes([5; 32]);
        Row::Node(node)
    };
    let token_twice = || {
        let mut token = world.network.tokens().next().unwrap().clone();
        token.id = TokenId::from_bytes([5; 8]);
        Row::Token(token)
    };
    let resting = znet_core::controller::Resting { address: container.address6.into(), until: at(9) };
    let access = |record: AccessRecord| Row::Access(Access { record, point: None, created: at(0) });
    let point = AccessRecord {
        id: other.id,
        name: other.name.clone(),
        node: other.node,
        public_key: key(9),
        address6: other.address6,
        address4: other.address4,
    };
    let cases = [
        access(AccessRecord { node: NodeId::from_bytes([6; 32]), ..point.clone() }),
        access(AccessRecord { id: next.unwrap(), ..point.clone() }),
        access(AccessRecord { name: container.name.clone(), ..point.clone() }),
        access(AccessRecord { address6: container.address6, ..point }),
        put(ContainerRecord { name: container.name.clone(), ..other.clone() }),
        put(ContainerRecord { public_key: container.public_key, ..other.clone() }),
        put(ContainerRecord { address6: container.address6, ..other.clone() }),
        put(ContainerRecord { address6: "fd00:b::1".parse().unwrap(), ..other.clone() }),
        put(ContainerRecord {
            address4: world.network.reservations().next().unwrap().addresses[1].to_string().parse().ok(),
            ..other.clone()
        }),
        put(ContainerRecord { node: NodeId::from_bytes([6; 32]), ..other.clone() }),
        put(ContainerRecord { id: next.unwrap(), ..other.clone() }),
        Row::Resting(resting),
        node_twice(),
        token_twice(),
    ];
    for bad in cases {
        let rows = rows.iter().cloned().chain([bad.clone()]);
        let corrupt = Network::from_rows(Revision::new(9), rows).expect_err(&format!("{bad:?}"));
        assert!(corrupt.to_string().contains("contradict"), "{corrupt}");
    }
    assert!(Network::from_rows(Revision::new(9), rows.iter().cloned().chain([put(other)])).is_ok());
    let headless = rows.iter().filter(|row| !matches!(row, Row::Network(_))).cloned();
    assert!(Network::from_rows(Revision::new(9), headless).is_err());
}

#[test]
fn every_rejection_has_a_code_and_a_text_that_names_what_helps() {
    let mut world = world();
    let command = Command::Attach {
        node: node(0),
        name: name("a"),
        addresses: vec![],
        public_key: Some(key(0)),
        port: None,
    };
    let rejection = world.decide(&command).unwrap_err();
    assert_eq!(rejection.code(), "unusable_key");
    assert!(rejection.to_string().contains(&key(0).to_string()));
    let foreign = Command::Join {
        secret: Some(TokenSecret::from_bytes([1; 32])),
        node: node(7),
        name: name("x"),
        endpoints: vec![],
        two_keys: true,
    };
    assert_eq!(world.decide(&foreign).unwrap_err(), Rejection::UnknownToken);
}
