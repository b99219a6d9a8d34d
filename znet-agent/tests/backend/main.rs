//! What the agent expects of whatever moves its packets, engine or kernel: the same tests for both.
//!
//! The kernel's half needs WireGuard in the kernel, so an ordinary run leaves it out; `./x test --kernel` runs it in one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod node;
mod responder;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use node::{FIRST, Node};
use responder::Responder;
use znet_agent::backend::Choice;
use znet_agent::backend::kernel::EAGER_PEERS;

/// Makes one test for each backend out of each case.
macro_rules! for_both {
    ($($case:ident),* $(,)?) => {
        mod engine {
            $(#[test] fn $case() { super::$case(super::Choice::Engine); })*
        }
        mod kernel {
            $(
                #[test]
                #[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
                fn $case() { super::$case(super::Choice::Kernel); }
            )*
        }
    };
}

for_both! {
    containers_reach_each_other_once_each_is_a_peer_and_no_longer_when_it_is_none,
    changes_of_other_peers_cost_a_link_no_packet,
    an_endpoint_at_which_a_peer_was_heard_outlives_the_older_one_of_the_map,
    a_device_that_is_removed_is_gone_and_the_others_are_not,
    a_link_of_that_name_that_is_somebody_elses_is_left_alone,
    who_takes_over_takes_over_everything_and_no_packet_is_lost,
    in_a_network_of_many_first_packets_arrive_both_ways_and_so_do_those_after_a_take_over,
    who_knocks_before_it_is_known_is_answered_as_soon_as_it_is,
    a_thousand_peers_are_added_one_by_one_and_none_loses_its_first_packet,
}

fn containers_reach_each_other_once_each_is_a_peer_and_no_longer_when_it_is_none(choice: Choice) {
    let mut node = Node::start(choice);
    let (a, b) = (node.container(1), node.container(2));
    assert!(!node.pings(a, b, 1, Duration::from_millis(500)), "they are no peers yet");
    node.put(&[a, b]);
    assert!(node.pings(a, b, 1, FIRST));
    assert!(node.pings(b, a, 1, FIRST));
    node.remove_peer(b);
    node.eventually("a not to reach b", |node| !node.pings(a, b, 1, Duration::from_millis(300)));
    node.put(&[b]);
    node.eventually("a to reach b again", |node| node.pings(a, b, 1, FIRST));
}

fn changes_of_other_peers_cost_a_link_no_packet(choice: Choice) {
    let mut node = Node::start(choice);
    let (a, b) = (node.container(1), node.container(2));
    node.put(&[a, b]);
    assert!(node.pings(a, b, 1, FIRST));
    let flood = node.flood(a, b, 200);
    for n in 100..150 {
        node.put_foreign(n, "192.0.2.9:9".parse().unwrap());
    }
    node.put(&[a, b]);
    for n in 100..150 {
        node.remove_foreign(n);
    }
    node.replace(&[a, b]);
    assert_eq!(flood.lost(), 0);
}

fn an_endpoint_at_which_a_peer_was_heard_outlives_the_older_one_of_the_map(choice: Choice) {
    let mut node = Node::start(choice);
    let (a, b) = (node.container(1), node.container(2));
    // Nobody is there: who believed the map would lose packets.
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
    node.put(&[a]);
    node.put_at(b, nowhere);
    assert!(node.pings(b, a, 1, FIRST));
    let flood = node.flood(a, b, 400);
    for _ in 0..10 {
        node.put_at(b, nowhere);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(flood.lost(), 0);
}

fn a_device_that_is_removed_is_gone_and_the_others_are_not(choice: Choice) {
    let mut node = Node::start(choice);
    let [a, b, c] = [1, 2, 3].map(|n| node.container(n));
    node.put(&[a, b, c]);
    assert!(node.pings(a, b, 1, FIRST));
    assert!(node.pings(a, c, 1, FIRST));
    let flood = node.flood(a, b, 200);
    node.remove_device(c);
    node.remove_device(c);
    assert!(!node.has_link(c));
    assert_eq!(flood.lost(), 0);
    node.remake(c);
    node.put(&[c]);
    assert!(node.pings(c, a, 1, FIRST));
    assert!(node.pings(a, c, 1, FIRST));
}

fn a_link_of_that_name_that_is_somebody_elses_is_left_alone(choice: Choice) {
    let mut node = Node::start(choice);
    let refused = node.try_container_with_foreign_link(1);
    assert!(refused.contains("already"), "{refused}");
    assert!(node.has_link(0), "the foreign link was taken away");
}

fn who_takes_over_takes_over_everything_and_no_packet_is_lost(choice: Choice) {
    let mut node = Node::start(choice);
    let (a, b) = (node.container(1), node.container(2));
    node.put(&[a, b]);
    assert!(node.pings(a, b, 1, FIRST));
    let flood = node.flood(a, b, 300);
    for _ in 0..3 {
        node.take_over();
        assert_eq!(node.devices(), 2);
        node.replace(&[a, b]);
    }
    assert_eq!(flood.lost(), 0);
    node.remove_device(b);
    assert!(!node.has_link(b));
}

fn in_a_network_of_many_first_packets_arrive_both_ways_and_so_do_those_after_a_take_over(choice: Choice) {
    let mut node = Node::start(choice);
    let [a, b, c, d] = [1, 2, 3, 4].map(|n| node.container(n));
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let many = 2_000..2_000 + u16::try_from(EAGER_PEERS).unwrap() + 50;
    node.replace_foreign(many.clone(), &[a, b, c, d], nowhere);
    // Of each pair the first speaks first, so that the second hears of somebody whom nobody told it about.
    let pinger = node.pinger(a);
    assert!(pinger.pings(b, Duration::from_secs(2)), "the first packet to b was lost");
    assert!(node.pings(b, a, 1, Duration::from_secs(2)));
    let flood = node.flood(a, b, 200);
    node.take_over();
    node.replace_foreign(many, &[a, b, c, d], nowhere);
    assert_eq!(flood.lost(), 0);
    let pinger = node.pinger(c);
    for to in [d, a, b] {
        assert!(pinger.pings(to, Duration::from_secs(2)), "the first packet to {to} was lost");
    }
}

fn who_knocks_before_it_is_known_is_answered_as_soon_as_it_is(choice: Choice) {
    let mut node = Node::start(choice);
    let a = node.container(1);
    node.put(&[a]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let here = socket.local_addr().unwrap();
    // Somebody who is known is there as well: of addresses that no map names nothing is remembered.
    node.put_foreign(3_001, here);
    socket.send_to(&responder::initiation(3_000, &node.key(a)), node.endpoint(a)).unwrap();
    let mut room = [0; 2_048];
    // Nothing tells that it was heard; an answer that needs the repetition would come too late for the socket.
    std::thread::sleep(Duration::from_millis(300));
    node.put_foreign(3_000, here);
    let (length, from) = socket.recv_from(&mut room).expect("no answer");
    assert_eq!(from, node.endpoint(a));
    // The engine answers the knock that it kept, the kernel knocks back: a response or an initiation.
    assert!([92, 148].contains(&length), "{length} bytes");
}

fn a_thousand_peers_are_added_one_by_one_and_none_loses_its_first_packet(choice: Choice) {
    const PEERS: u16 = 1_000;
    assert!(usize::from(PEERS) > EAGER_PEERS, "the bound is passed on the way");
    let mut node = Node::start(choice);
    let a = node.container(1);
    let (first, count) = (1_000, PEERS);
    let responder = Responder::start(first..first + count, node.key(a));
    let started = Instant::now();
    let mut lost = Vec::new();
    let pinger = node.pinger(a);
    for n in first..first + count {
        node.put_foreign(n, responder.endpoint());
        if !pinger.pings(n, Duration::from_secs(2)) {
            lost.push(n);
        }
    }
    println!(
        "{choice:?}: {PEERS} peers, each put and pinged once, in {:.1?}; lost: {lost:?}",
        started.elapsed()
    );
    assert_eq!(lost, [0; 0]);
    let started = Instant::now();
    node.take_over();
    node.replace_foreign(first..first + count, &[a], responder.endpoint());
    let took = started.elapsed();
    println!("{choice:?}: taken over with {PEERS} peers in {took:.2?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    // What was told before is still there, and goes on.
    for n in (first..first + count).step_by(97) {
        assert!(pinger.pings(n, Duration::from_secs(2)), "peer {n}");
    }
}
