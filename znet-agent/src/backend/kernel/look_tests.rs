#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::net::IpAddr;

use znet_core::id::ContainerId;
use znet_core::key::PrivateKey;
use znet_wg::control::WirePrivateKey;

use super::*;

const PORT: u16 = 51_820;

fn secret(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

fn key(n: u8) -> PublicKey {
    secret(n).public_key()
}

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], PORT))
}

fn peer(n: u8) -> Peer {
    Peer {
        public_key: key(n),
        also_key: None,
        addresses: vec![IpAddr::from([10, 0, 0, n])],
        endpoints: vec![at(n), at(n + 100)],
        preshared_key: None,
    }
}

/// A device that is as it should be, with peers 2 and 3, and what is remembered of it.
struct Scene {
    device: Device,
    directory: Directory,
    told: BTreeMap<PublicKey, Told>,
    seen: Seen,
    known: bool,
    keepalive: Option<u16>,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        let device = Device {
            id: ContainerId::new(1),
            name: "zn1".to_owned(),
            private_key: WirePrivateKey(secret(1)),
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            mtu: 1_420,
            relay: false,
            also_private_key: None,
            also_is_next: false,
        };
        let start = Instant::now();
        let mut directory = Directory::default();
        let mut seen = Seen { private_key: Some(secret(1)), port: PORT, ..Seen::default() };
        let mut told = BTreeMap::new();
        directory.put(peer(1));
        for n in [2, 3] {
            directory.put(peer(n));
            told.insert(key(n), Told::now(start));
            let is = SeenPeer { endpoint: Some(at(n)), addresses: prefixes(&peer(n)), ..SeenPeer::default() };
            seen.peers.insert(key(n), is);
        }
        Self { device, directory, told, seen, known: true, keepalive: None, start }
    }

    fn peer(&mut self, n: u8) -> &mut SeenPeer {
        self.seen.peers.get_mut(&key(n)).unwrap()
    }

    fn look(&mut self, after: u64) -> Repair {
        let Self { device, directory, known, keepalive, .. } = self;
        let wanted = Wanted { device, port: PORT, directory, known: *known, keepalive: *keepalive };
        compare(&wanted, &mut self.told, &self.seen, self.start + Duration::from_secs(after))
    }
}

#[test]
fn a_device_that_is_as_it_should_be_is_left_alone() {
    assert_eq!(Scene::new().look(1), Repair::default());
}

#[test]
fn a_key_a_port_and_a_mark_that_somebody_set_are_set_back() {
    let changes: [fn(&mut Seen); 4] = [
        |seen| seen.private_key = Some(secret(9)),
        |seen| seen.private_key = None,
        |seen| seen.port = 1,
        |seen| seen.fwmark = 7,
    ];
    for change in changes {
        let mut scene = Scene::new();
        change(&mut scene.seen);
        assert_eq!(scene.look(1), Repair { set: true, ..Repair::default() });
    }
}

#[test]
fn of_a_peer_that_somebody_changed_only_what_differs_is_set_and_the_others_are_not_touched() {
    let mut scene = Scene::new();
    scene.peer(2).addresses = prefixes(&peer(9));
    scene.peer(2).preshared_key = Some(PresharedKey::from_bytes([7; 32]));
    scene.peer(2).keepalive = 5;
    let put = Put {
        addresses: Some(peer(2).addresses),
        preshared_key: Some(PresharedKey::from_bytes([0; 32])),
        keepalive: Some(0),
        ..Put::of(key(2))
    };
    assert_eq!(scene.look(1), Repair { put: vec![put], ..Repair::default() });
}

#[test]
fn a_peer_that_somebody_took_off_comes_back_and_one_that_somebody_put_on_goes() {
    let mut scene = Scene::new();
    scene.seen.peers.remove(&key(3));
    scene.seen.peers.insert(key(9), SeenPeer::default());
    let repair = scene.look(1);
    assert_eq!(repair.put, [whole(&peer(3), Some(at(3)))]);
    assert_eq!(repair.remove, [key(9)]);
}

#[test]
fn before_any_map_is_known_nothing_is_taken_off() {
    let mut scene = Scene::new();
    scene.known = false;
    scene.directory = Directory::default();
    scene.told.clear();
    assert_eq!(scene.look(1), Repair::default());
}

#[test]
fn an_endpoint_at_which_a_peer_was_heard_is_left_alone_though_the_map_names_another() {
    let mut scene = Scene::new();
    for second in 1..60 {
        let is = scene.peer(2);
        is.endpoint = Some(at(77));
        is.handshake = Some(Duration::from_secs(second));
        (is.rx, is.tx) = (second * 100, second * 100);
        assert_eq!(scene.look(second), Repair::default(), "after {second} s");
    }
}

#[test]
fn a_peer_that_does_not_answer_is_tried_at_its_other_endpoints_one_after_the_other() {
    let mut scene = Scene::new();
    let mut tried = Vec::new();
    for second in 1..40 {
        scene.peer(2).tx += 148;
        let repair = scene.look(second);
        if let Some(put) = repair.put.first() {
            tried.push(put.endpoint.unwrap());
            scene.peer(2).endpoint = put.endpoint;
        }
    }
    assert!(tried.len() >= 4, "{tried:?}");
    assert_eq!(tried[..4], [at(102), at(2), at(102), at(2)]);
}

#[test]
fn nobody_who_is_not_spoken_to_is_tried_elsewhere() {
    let mut scene = Scene::new();
    for second in 1..600 {
        assert_eq!(scene.look(second).put, []);
    }
}

#[test]
fn keepalives_go_to_those_alone_with_whom_there_is_a_session() {
    let mut scene = Scene::new();
    scene.keepalive = Some(25);
    scene.peer(2).handshake = Some(Duration::from_secs(10));
    scene.peer(3).keepalive = 25;
    scene.peer(3).handshake = Some(SESSION);
    let to = |n, seconds| Put { keepalive: Some(seconds), ..Put::of(key(n)) };
    let mut wanted = vec![to(2, 25), to(3, 0)];
    wanted.sort_unstable_by_key(|put| put.public_key);
    assert_eq!(scene.look(1).put, wanted);
}

#[test]
fn the_idle_are_told_the_longest_idle_first_and_who_has_a_session_is_not_among_them() {
    let mut scene = Scene::new();
    scene.directory.put(peer(4));
    let is = SeenPeer { endpoint: Some(at(4)), addresses: prefixes(&peer(4)), ..SeenPeer::default() };
    scene.seen.peers.insert(key(4), is);
    scene.told.insert(key(4), Told::now(scene.start));
    scene.peer(2).handshake = Some(Duration::from_secs(400));
    scene.peer(3).handshake = Some(Duration::from_secs(170));
    assert_eq!(scene.look(350).idle, [key(2), key(4)]);
}
