//! What containers can and cannot reach.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use znet_tests::{FIRST_PACKET, Member, NetworkSpec, Result, World};

const PREFIXES: [&str; 2] = ["10.77.0.0/16", "fd77:7777:7777::/48"];

#[test]
fn every_container_reaches_every_other_of_its_network_and_none_of_another_with_equal_prefixes() -> Result {
    let mut world = World::new("isolation")?;
    let network = |name| {
        let spec = NetworkSpec { name, prefixes: &PREFIXES, rest: None };
        world.controller.create_network(&spec)
    };
    let (red, blue) = (network("red")?, network("blue")?);
    let (n1, n2) = (world.node("n1", &[&red, &blue])?, world.node("n2", &[&red, &blue])?);
    let reds = [n1.attach("red", "a")?, n2.attach("red", "b")?, n2.attach("red", "c")?];
    let blues = [n1.attach("blue", "a")?, n2.attach("blue", "b")?];
    for member in &reds {
        member.reaches_all(&reds, FIRST_PACKET)?;
    }
    for member in &blues {
        member.reaches_all(&blues, FIRST_PACKET)?;
    }
    // The same addresses, but each network's own container answers.
    assert_eq!(reds[1].v4()?, blues[1].v4()?);
    for (members, word) in [(&reds[..2], "red"), (&blues[..2], "blue")] {
        assert_eq!(who_answers(&members[0], &members[1], word)?, word);
    }
    // c has an address that blue has not given to anybody.
    assert!(!blues[0].pings(reds[2].v4()?, Duration::from_secs(1))?);
    assert!(!blues[0].pings(reds[2].v6()?, Duration::from_secs(1))?);
    nothing_else(&reds[0])?;
    world.passed();
    Ok(())
}

/// Asks a server at the second member that says `word`.
fn who_answers(asks: &Member, serves: &Member, word: &str) -> Result<String> {
    let address = serves.v4()?.to_string();
    let script = format!(
        "import socket\ns=socket.create_server(('{address}',9000))\nprint('up',flush=True)\n\
         while True:\n c,_=s.accept()\n c.sendall(b'{word}')\n c.close()"
    );
    let server = serves.command("python3").args(["-c", &script]).spawn("server")?;
    netns_harness::probe::until("the server", FIRST_PACKET, || {
        server.stdout().ok()?.contains("up").then_some(())
    })?;
    let ask = format!(
        "import socket\ns=socket.create_connection(('{address}',9000),10)\nprint(s.recv(99).decode())"
    );
    let answer = asks.command("python3").args(["-c", &ask]).run()?.stdout;
    server.kill()?;
    Ok(answer.trim().to_owned())
}

/// `lo`, the device, the network's prefixes, and no way to anything else.
fn nothing_else(member: &Member) -> Result {
    let links = member.command("ip").args(["-o", "link"]).run()?.stdout;
    let names: Vec<&str> = links
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(|name| name.split('@').next().unwrap())
        .collect();
    assert_eq!(names, ["lo", "znet0"]);
    let routes = member.command("ip").args(["route"]).run()?.stdout;
    assert_eq!(
        routes.lines().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>(),
        ["10.77.0.0/16"]
    );
    let routes = member.command("ip").args(["-6", "route"]).run()?.stdout;
    // The first is the kernel's own, for the address itself.
    let own = member.v6()?.to_string();
    let to: Vec<&str> = routes.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(to, [own.as_str(), "fd77:7777:7777::/48"], "{routes}");
    let addresses = member.command("ip").args(["-o", "address", "show", "dev", "znet0"]).run()?.stdout;
    assert_eq!(addresses.lines().count(), 2, "{addresses}");
    for outside in ["192.0.2.1", "192.0.2.11", "2001:db8::1", "1.1.1.1"] {
        assert!(!member.pings(outside.parse()?, Duration::from_secs(1))?, "{outside} answers");
    }
    Ok(())
}

#[test]
fn the_underlay_sees_no_packet_of_a_container_in_the_clear_even_on_one_node() -> Result {
    let mut world = World::new("clear")?;
    let spec = NetworkSpec { name: "red", prefixes: &PREFIXES, rest: None };
    let token = world.controller.create_network(&spec)?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let members = [n1.attach("red", "a")?, n2.attach("red", "b")?, n1.attach("red", "c")?];
    let (cable, loopback) = (n1.host().capture("eth0", "")?, n1.host().capture("lo", "")?);
    for member in &members {
        member.reaches_all(&members, FIRST_PACKET)?;
    }
    for (capture, name) in [(&cable, "eth0"), (&loopback, "lo")] {
        let text = capture.text()?;
        assert!(text.contains("UDP"), "nothing was seen on {name}: {text}");
        assert!(!text.contains("10.77.") && !text.contains("fd77:"), "in the clear on {name}: {text}");
    }
    world.passed();
    Ok(())
}

#[test]
fn a_container_cannot_send_from_an_address_that_is_not_its_own() -> Result {
    let mut world = World::new("spoof")?;
    let spec = NetworkSpec { name: "red", prefixes: &PREFIXES, rest: None };
    let token = world.controller.create_network(&spec)?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let (a, b) = (n1.attach("red", "a")?, n2.attach("red", "b")?);
    a.wait_reaches(b.v4()?, FIRST_PACKET)?;
    a.command("ip").args(["address", "add", "10.77.9.9/32", "dev", "znet0"]).run()?;
    let output = a
        .command("ping")
        .args(["-n", "-c", "2", "-W", "1", "-I", "10.77.9.9", &b.v4()?.to_string()])
        .try_run()?;
    assert!(!output.status.success(), "{}", output.stdout);
    let status = n1.network("red")?;
    let stats = &status["attached"][0]["stats"];
    assert!(stats["drop_source"].as_u64().unwrap() >= 2, "{stats}");
    world.passed();
    Ok(())
}
