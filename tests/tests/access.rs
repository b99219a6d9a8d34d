//! People in the network: a laptop with stock WireGuard tools and the file of `znet-ctl access create`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use netns_harness::{HostCommand, Process, probe};
use serde_json::Value;
use znet_tests::wireguard::{NAT_ADDRESS, home_behind_nat};
use znet_tests::{FIRST_PACKET, Laptop, Member, NetworkSpec, Node, Result, World};

const SOON: Duration = Duration::from_secs(15);
/// Within this time a revocation has to be in force at all nodes.
const PROPAGATION: Duration = Duration::from_secs(1);
/// How long a device goes on with a session of which the other end knows nothing any more (white paper, section 6.5: 15 s),
/// and then some.
const NOTICED: Duration = Duration::from_secs(30);
const IN_VAIN: Duration = Duration::from_secs(1);
const PREFIXES: [&str; 2] = ["10.77.0.0/16", "fd77:7777:7777::/48"];

/// Makes an access point and returns the text of its file.
fn create(world: &World, name: &str, flags: &[&str]) -> Result<String> {
    let output = world.controller.ctl(&[&["access", "create", "acme", name], flags].concat())?;
    Ok(output.stdout)
}

fn flood(from: HostCommand, to: IpAddr, seconds: &str) -> Result<Process> {
    let to = to.to_string();
    let flood = from.args(["-n", "-D", "-i", "0.01", "-w", seconds, &to]).spawn("flood")?;
    probe::until("pings to flow", SOON, || flood.stdout().ok()?.contains("icmp_seq=20").then_some(()))?;
    Ok(flood)
}

/// When each answer came, and how many pings before the last answered one were not answered.
fn answers(flood: &Process) -> Result<(Vec<Duration>, usize)> {
    flood.wait(SOON)?;
    let text = flood.stdout()?;
    let lines = text.lines().filter(|line| line.contains("bytes from"));
    let stamps: Vec<Duration> = lines
        .filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok())
        .map(Duration::from_secs_f64)
        .collect();
    let numbers = text.lines().filter(|line| line.contains("bytes from"));
    let numbers = numbers.filter_map(|line| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok());
    let last: usize = numbers.max().unwrap_or_default();
    let count = stamps.len();
    Ok((stamps, last - count))
}

/// Moves so many bytes over TCP to a server at an address, and as many back; what comes is what was sent.
fn exchange(asks: HostCommand, serves: HostCommand, address: IpAddr) -> Result {
    let server = format!(
        "import socket,hashlib\ns=socket.create_server(('{address}',9000),family=socket.AF_INET6 if ':' in '{address}' else socket.AF_INET)\n\
         print('up',flush=True)\nc,_=s.accept()\nd=b''\n\
         while len(d)<4000000:\n d+=c.recv(1<<16)\nc.sendall(d)\nc.close()"
    );
    let server = serves.args(["-c", &server]).spawn("server")?;
    probe::until("the server", SOON, || server.stdout().ok()?.contains("up").then_some(()))?;
    let ask = format!(
        "import socket,os,threading\nd=os.urandom(4000000)\ns=socket.create_connection(('{address}',9000),10)\n\
         s.settimeout(20)\ns.sendall(d)\nr=b''\n\
         while True:\n b=s.recv(1<<16)\n if not b: break\n r+=b\nassert r==d, len(r)"
    );
    asks.args(["-c", &ask]).run_timeout(Duration::from_secs(40))?;
    server.wait(SOON)?;
    Ok(())
}

fn access_of<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["access"].as_array()?.iter().find(|access| access["name"] == name)
}

fn counted(node: &Node, side: &str, counter: &str) -> Result<u64> {
    let status = node.network("acme")?;
    let access = access_of(&status, "laptop").expect("the access point is in the status");
    Ok(access[side][counter].as_u64().unwrap())
}

/// The links, routes and namespaces of a node's host.
fn networks_of(node: &Node) -> Result<String> {
    let ask = |args: &[&str]| -> Result<String> { Ok(node.host().command("ip").args(args).run()?.stdout) };
    Ok([ask(&["-br", "link"])?, ask(&["route", "show", "table", "all"])?, ask(&["netns"])?].concat())
}

/// All pairs of a laptop and containers, both ways and by both families.
fn reach_each_other(laptop: &Laptop, members: &[&Member]) -> Result {
    for member in members {
        for address in &member.addresses {
            ensure!(laptop.pings(*address, FIRST_PACKET)?, "the laptop does not reach {address}");
        }
        for address in &laptop.addresses {
            ensure!(member.pings(*address, FIRST_PACKET)?, "{} does not reach {address}", member.name);
        }
    }
    Ok(())
}

fn acme(world: &World) -> Result<String> {
    world.controller.create_network(&NetworkSpec { name: "acme", prefixes: &PREFIXES, rest: None })
}

#[test]
fn a_laptop_behind_a_nat_is_a_member_like_any_other_until_it_is_revoked() -> Result {
    let mut world = World::new("access")?;
    let token = acme(&world)?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    let file = world.controller.host().dir().join("laptop.conf");
    let path = file.to_str().unwrap();
    let created = world.controller.ctl(&[
        "access",
        "create",
        "acme",
        "laptop",
        "--via",
        "n1",
        "--output-file",
        path,
        "--output",
        "json",
    ])?;
    assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file)?;
    let private_key = text.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).unwrap();
    assert!(!created.stdout.contains(private_key) && !created.stderr.contains(private_key));

    let home = home_behind_nat(&world.lab, world.switch())?;
    let laptop = Laptop::up(&world.lab, &home.host, &text)?;
    // It is spoken to only after it has spoken: nobody knows where it is.
    laptop.wait_reaches(a.v4()?, FIRST_PACKET)?;
    reach_each_other(&laptop, &[&a, &b])?;
    for address in &b.addresses {
        exchange(laptop.command("python3"), b.command("python3"), *address)?;
    }
    for address in &laptop.addresses {
        exchange(a.command("python3"), laptop.command("python3"), *address)?;
    }
    let seen = world.controller.json(&["container", "show", "acme", "laptop"])?;
    assert_eq!(seen["node"], "n1");
    let addresses: Vec<IpAddr> = serde_json::from_value(seen["addresses"].clone())?;
    assert_eq!(addresses, laptop.addresses);

    // The controller away, and back with what it had stored.
    world.controller.kill()?;
    reach_each_other(&laptop, &[&a, &b])?;
    world.controller.launch()?;
    n1.wait_connected("acme")?;
    let listed = world.controller.json(&["access", "list", "acme"])?;
    assert_eq!((&listed[0]["name"], &listed[0]["via"]), (&"laptop".into(), &"n1".into()), "{listed}");
    assert_eq!(listed[0]["addresses"], seen["addresses"]);

    // At another place.
    home.router.remove_address("wan0", &format!("{NAT_ADDRESS}/24"))?;
    home.router.add_address("wan0", "192.0.2.99/24")?;
    laptop.wait_reaches(b.v6()?, SOON)?;
    assert!(b.pings(laptop.addresses[1], FIRST_PACKET)?);

    let bystander = flood(a.command("ping"), b.v4()?, "4")?;
    let flooding = flood(laptop.command("ping"), b.v4()?, "4")?;
    let revoked = SystemTime::now().duration_since(UNIX_EPOCH)?;
    world.controller.ctl(&["access", "revoke", "acme", "laptop", "--yes"])?;
    let (stamps, _) = answers(&flooding)?;
    let last = stamps.last().unwrap().saturating_sub(revoked);
    println!("the last answer came {last:?} after the revocation");
    assert!(stamps.len() >= 20 && last < PROPAGATION, "answers until {last:?} after the revocation");
    assert_eq!(answers(&bystander)?.1, 0, "another link was disturbed");
    for to in &laptop.addresses {
        assert!(!b.pings(*to, IN_VAIN)?);
    }
    assert_eq!(n1.network("acme")?["access"], Value::Array(vec![]));
    assert_eq!(world.controller.json(&["access", "list", "acme"])?, Value::Array(vec![]));
    assert_eq!(world.controller.json(&["container", "list", "acme"])?.as_array().unwrap().len(), 2);
    let devices = n1.host().command("ls").arg("/var/run/wireguard").run()?.stdout;
    assert_eq!(devices.lines().count(), 1, "devices are left: {devices}");
    let trail = world.controller.json(&["audit", "acme"])?;
    let words: Vec<&str> =
        trail.as_array().unwrap().iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    for word in ["access.create", "access.offer", "access.revoke"] {
        assert!(words.contains(&word), "{word} is not in the audit trail: {words:?}");
    }
    holds_no(private_key, &[&world.controller.data_dir(), &n1.state_dir(), &n2.state_dir()])?;
    world.passed();
    Ok(())
}

/// No file below these directories has the text.
fn holds_no(key: &str, directories: &[&Path]) -> Result {
    for directory in directories {
        let listed =
            std::process::Command::new("grep").args(["-r", "-F", "-l", key]).arg(directory).output()?;
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "");
    }
    Ok(())
}

#[test]
fn a_laptop_sends_from_its_own_addresses_into_its_own_network_and_nowhere_else() -> Result {
    let mut world = World::new("access-spoof")?;
    let acme = NetworkSpec { name: "acme", prefixes: &PREFIXES, rest: None };
    let other = NetworkSpec { name: "other", prefixes: &PREFIXES, rest: None };
    let tokens = [world.controller.create_network(&acme)?, world.controller.create_network(&other)?];
    let (n1, n2) = (world.node("n1", &[&tokens[0], &tokens[1]])?, world.node("n2", &[&tokens[0]])?);
    let b = n2.attach("acme", "b")?;
    let x = n1.attach_with("other", "x", &["--wait", "--address", "10.77.0.50"])?;
    let host = world.host("desk")?;
    let before = networks_of(&n1)?;
    let laptop = Laptop::up(&world.lab, &host, &create(&world, "laptop", &["--via", "n1"])?)?;
    laptop.wait_reaches(b.v4()?, FIRST_PACKET)?;
    // Neither an interface nor a namespace nor a route is there for it: the kernel has no part in it.
    assert_eq!(networks_of(&n1)?, before);

    // Two persons share the node's port, and reach each other as two containers would.
    let host = world.host("desk-2")?;
    let second = Laptop::up(&world.lab, &host, &create(&world, "second", &["--via", "n1"])?)?;
    let end = |laptop: &Laptop| -> Result<String> {
        let text = std::fs::read_to_string(&laptop.file)?;
        Ok(text.lines().find(|line| line.starts_with("Endpoint")).unwrap().to_owned())
    };
    assert_eq!(end(&laptop)?, end(&second)?);
    second.wait_reaches(b.v4()?, FIRST_PACKET)?;
    for (from, to) in [(&laptop, &second), (&second, &laptop)] {
        for address in &to.addresses {
            assert!(from.pings(*address, FIRST_PACKET)?, "{address}");
        }
    }

    // From another address of the network.
    let ifname = laptop.ifname();
    laptop.command("ip").args(["address", "add", "10.77.9.9/32", "dev", ifname]).run()?;
    let before = counted(&n1, "outer", "drop_source")?;
    let spoofed = laptop
        .command("ping")
        .args(["-n", "-c", "2", "-W", "1", "-I", "10.77.9.9", &b.v4()?.to_string()])
        .try_run()?;
    assert!(!spoofed.status.success(), "{}", spoofed.stdout);
    assert!(counted(&n1, "outer", "drop_source")? >= before + 2);

    // To a container of another network on the same node, and to the underlay, whatever the person's own tools allow.
    let text = std::fs::read_to_string(&laptop.file)?;
    let end = text.lines().find_map(|line| line.strip_prefix("PublicKey = ")).unwrap();
    laptop.command("wg").args(["set", ifname, "peer", end, "allowed-ips", "0.0.0.0/0,::/0"]).run()?;
    for outside in ["198.51.100.1", "2001:db8:7::1"] {
        laptop.command("ip").args(["route", "add", outside, "dev", ifname]).run()?;
    }
    n1.host().add_address("lo", "198.51.100.1/32")?;
    n1.host().add_address("lo", "2001:db8:7::1/128")?;
    let before = counted(&n1, "inner", "drop_destination")?;
    for outside in [x.v4()?, x.v6()?, "198.51.100.1".parse()?, "2001:db8:7::1".parse()?] {
        if !b.addresses.contains(&outside) {
            assert!(!laptop.pings(outside, IN_VAIN)?, "{outside} answers");
        }
    }
    assert!(counted(&n1, "inner", "drop_destination")? >= before + 3);
    assert!(!x.pings(laptop.addresses[1], IN_VAIN)?, "another network reaches the laptop");
    laptop.wait_reaches(b.v4()?, FIRST_PACKET)?;
    world.passed();
    Ok(())
}

#[test]
fn a_laptops_link_outlives_its_agent_without_loss_and_its_file_outlives_engine_and_agent() -> Result {
    let mut world = World::new("access-crash")?;
    let token = acme(&world)?;
    let (mut n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let b = n2.attach("acme", "b")?;
    let host = world.host("desk")?;
    let laptop = Laptop::up(&world.lab, &host, &create(&world, "laptop", &["--via", "n1"])?)?;
    laptop.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let flooding = flood(laptop.command("ping"), b.v6()?, "6")?;
    n1.kill_agent()?;
    n1.launch()?;
    n1.wait_connected("acme")?;
    let (stamps, lost) = answers(&flooding)?;
    assert!(stamps.len() >= 100 && lost == 0, "{lost} of {} were lost", stamps.len());

    // The engine alone: its successor gets everything.
    n1.host().command("kill").args(["-9", &n1.engine_pid()?.to_string()]).run()?;
    laptop.wait_reaches(b.v6()?, NOTICED)?;
    // Both, as in a power cut.
    let engine = n1.engine_pid()?.to_string();
    n1.kill_agent()?;
    n1.host().command("kill").args(["-9", &engine]).run()?;
    n1.launch()?;
    n1.wait_connected("acme")?;
    laptop.wait_reaches(b.v6()?, NOTICED)?;
    assert!(b.pings(laptop.addresses[0], FIRST_PACKET)?);

    // Killed while it makes one, it has made it in the end.
    let killed = Instant::now();
    let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    let early = ["access", "create", "acme", "phone", "--via", "n1", "--public-key", key, "--timeout", "1ms"];
    let _ = world.controller.try_ctl(&early)?;
    n1.kill_agent()?;
    n1.launch()?;
    let again = create(&world, "phone", &["--via", "n1", "--public-key", key])?;
    assert!(again.contains("# PrivateKey") && again.contains("Endpoint = 192.0.2."), "{again}");
    println!("made {:?} after its agent was killed", killed.elapsed());
    assert_eq!(n1.network("acme")?["access"].as_array().unwrap().len(), 2);
    // A node that leaves takes its access points along.
    world.controller.ctl(&["node", "remove", "acme", "n1", "--yes"])?;
    assert_eq!(world.controller.json(&["access", "list", "acme"])?, Value::Array(vec![]));
    probe::until("the laptop to be cut off", SOON, || {
        laptop.pings(b.v6().ok()?, Duration::from_millis(200)).ok().filter(|answered| !answered)
    })?;
    world.passed();
    Ok(())
}

/// How an `access create` ends that cannot succeed, and what it says.
fn refused(world: &World, flags: &[&str]) -> Result<(i32, String)> {
    let output = world.controller.try_ctl(&[&["access", "create", "acme"], flags].concat())?;
    Ok((output.status.code().unwrap(), output.stderr))
}

#[test]
fn what_cannot_be_an_access_point_is_refused_and_leaves_nothing() -> Result {
    let mut world = World::new("access-refused")?;
    let token = acme(&world)?;
    assert_eq!(refused(&world, &["laptop"])?.0, 3, "there is no node");
    let (mut n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let a = n1.attach("acme", "a")?;
    let directory = world.controller.host().dir();
    let file = directory.join("laptop.conf");
    let path = file.to_str().unwrap();
    for (flags, expected, why) in [
        (&["laptop", "--output-file", path][..], 2, "which node"),
        (&["laptop", "--via", "n9"], 3, "no node n9"),
        (&["a", "--via", "n1"], 4, "the name is a container's"),
        (&["Laptop", "--via", "n1"], 2, "no name"),
        (&["laptop", "--via", "n1", "--address", "10.1.2.3"], 2, "outside the prefixes"),
        (&["laptop", "--via", "n1", "--address", &a.v4()?.to_string()], 4, "the address is taken"),
        (&["laptop", "--via", "n1", "--endpoint", "a b"], 2, "no endpoint"),
        (&["laptop", "--via", "n1", "--qr-file", "laptop.gif"], 2, "no such image"),
        (&["laptop", "--via", "n1", "--public-key", "AAAA"], 2, "no key"),
        (&["laptop", "--via", "n1", "--output-file", "/nowhere/laptop.conf"], 1, "no such directory"),
    ] {
        let (got, said) = refused(&world, flags)?;
        assert_eq!(got, expected, "{why}: {said}");
        assert!(!file.exists(), "{why}");
    }
    // A node that is not there to serve it.
    n1.kill_agent()?;
    let (got, said) = refused(&world, &["laptop", "--via", "n1", "--timeout", "1s", "--output-file", path])?;
    assert_eq!(got, 7, "{said}");
    assert!(said.contains("n1") && !file.exists(), "{said}");
    assert_eq!(world.controller.json(&["access", "list", "acme"])?, Value::Array(vec![]));
    n1.launch()?;
    n1.wait_connected("acme")?;

    let image = directory.join("laptop.png");
    let shown = world.controller.ctl(&[
        "access",
        "create",
        "acme",
        "laptop",
        "--via",
        "n1",
        "--qr",
        "--qr-file",
        image.to_str().unwrap(),
    ])?;
    assert!(shown.stdout.contains('▀') && !shown.stdout.contains("PrivateKey"), "{}", shown.stdout);
    assert!(std::fs::read(&image)?.starts_with(b"\x89PNG"));
    assert_eq!(std::fs::metadata(&image)?.permissions().mode() & 0o777, 0o600);
    // Its name is nobody else's, here or elsewhere.
    for node in [&n1, &n2] {
        let container = node.host().container("intruder")?;
        let netns = container.netns_path();
        let netns = netns.to_str().unwrap();
        let output = node.try_znet(&["attach", "--network", "acme", "--name", "laptop", "--netns", netns])?;
        assert_eq!(output.status.code(), Some(4), "{}", output.stderr);
        let _ = node.try_znet(&["detach", "--network", "acme", "--name", "laptop"])?;
    }
    let list = world.controller.json(&["access", "list", "acme"])?;
    assert_eq!((&list[0]["name"], &list[0]["via"]), (&"laptop".into(), &"n1".into()), "{list}");
    let again = refused(&world, &["laptop", "--via", "n2"])?;
    assert_eq!(again.0, 4, "{}", again.1);
    let unconfirmed = world.controller.try_ctl(&["access", "revoke", "acme", "laptop"])?;
    assert_eq!(unconfirmed.status.code(), Some(2), "nobody confirmed it: {}", unconfirmed.stderr);
    world.controller.ctl(&["access", "revoke", "acme", "laptop", "--yes"])?;
    let gone = world.controller.try_ctl(&["access", "revoke", "acme", "laptop", "--yes"])?;
    assert_eq!(gone.status.code(), Some(3), "{}", gone.stderr);
    world.passed();
    Ok(())
}
