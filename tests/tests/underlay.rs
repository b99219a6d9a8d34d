//! Underlays as they are: narrow, wide, lossy, behind a NAT.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use netns_harness::{NatKind, Port};
use znet_tests::{FIRST_PACKET, Member, NetworkSpec, Node, NodeOptions, Result, World};

fn acme(world: &World) -> Result<String> {
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
    world.controller.create_network(&spec)
}

fn mtu_of(member: &Member) -> Result<u32> {
    let link = member.command("ip").args(["-o", "link", "show", "znet0"]).run()?.stdout;
    Ok(link.split("mtu ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse()?)
}

/// The MTU is what the underlay leaves, and packets of that size pass without being fragmented.
fn full_packets_pass(underlay: u32, expected: u32) -> Result {
    let mut world = World::with_mtu("mtu", underlay)?;
    let token = acme(&world)?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    assert_eq!(mtu_of(&a)?, expected);
    for (to, headers) in [(b.v4()?, 28), (b.v6()?, 48)] {
        let full = (expected - headers).to_string();
        a.command("ping")
            .args(["-n", "-c", "3", "-i", "0.1", "-M", "do", "-s", &full, &to.to_string()])
            .run()?;
    }
    world.passed();
    Ok(())
}

#[test]
fn packets_of_the_containers_mtu_pass_whole_on_ethernet() -> Result {
    // 40 bytes of IPv6, 8 of UDP, 32 of WireGuard below what the underlay carries.
    full_packets_pass(1_500, 1_420)
}

#[test]
fn packets_of_the_containers_mtu_pass_whole_on_a_narrow_underlay() -> Result {
    full_packets_pass(1_400, 1_320)
}

#[test]
fn packets_of_the_containers_mtu_pass_whole_on_a_wide_underlay() -> Result {
    full_packets_pass(9_000, 8_920)
}

#[test]
fn links_come_up_on_an_underlay_that_loses_one_packet_in_five() -> Result {
    let mut world = World::new("lossy")?;
    let token = acme(&world)?;
    let n1 = world.node("n1", &[&token])?;
    let host = world.lab.host("far")?;
    world.lab.plug(&host, world.switch(), Port::new("eth0").address("192.0.2.77/24").loss_percent(20.0))?;
    let n2 = Node::start("far", &host, NodeOptions { tokens: vec![token], ..NodeOptions::default() })?;
    n2.wait_connected("acme")?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v4()?, Duration::from_secs(20))?;
    b.wait_reaches(a.v6()?, Duration::from_secs(20))?;
    world.passed();
    Ok(())
}

#[test]
fn a_node_behind_a_nat_is_reached_once_it_has_spoken_and_stays_so() -> Result {
    let mut world = World::new("nat")?;
    let token = acme(&world)?;
    let n1 = world.node("n1", &[&token])?;
    let lan = world.lab.switch("lan")?;
    let home = world.lab.host("home")?;
    world.lab.plug(&home, &lan, Port::new("eth0").address("192.168.7.2/24").gateway("192.168.7.1"))?;
    let inside = Port::new("lan0").address("192.168.7.1/24");
    let outside = Port::new("wan0").address("192.0.2.78/24");
    world.lab.nat_router("router", NatKind::Symmetric, (&lan, inside), (world.switch(), outside))?;
    let flags = vec!["--keepalive".to_owned(), "2".to_owned()];
    let n2 = Node::start("home", &home, NodeOptions { tokens: vec![token], flags })?;
    n2.wait_connected("acme")?;
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    b.wait_reaches(a.v4()?, FIRST_PACKET)?;
    // Its mapping is known now, and kept open.
    for _ in 0..3 {
        assert!(a.pings(b.v6()?, Duration::from_secs(2))?);
    }
    world.passed();
    Ok(())
}
