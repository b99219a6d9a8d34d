//! Names: each container finds the others of its network by name, and nobody else, whatever else happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use netns_harness::{HostCommand, Process, probe};
use serde_json::Value;
use znet_tests::{FIRST_PACKET, Member, NetworkSpec, Node, NodeOptions, Result, World};

const SOON: Duration = Duration::from_secs(15);
/// Where every container has its resolver.
const RESOLVER: &str = "127.0.0.153";

/// A wire-format question for `web.acme.znet`, its sending, and how many answers came within a second each.
const ASK_MANY: &str = "
import socket, struct, sys, time
name = b''.join(bytes([len(part)]) + part for part in (b'web', b'acme', b'znet')) + bytes(1)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(1)
sock.connect(('127.0.0.153', 53))
took, answered = [], 0
for number in range(int(sys.argv[1])):
    start = time.monotonic()
    sock.send(struct.pack('>6H', number, 0x100, 1, 0, 0, 0) + name + struct.pack('>2H', 1, 1))
    try:
        answer = sock.recv(2048)
        answered += answer[:2] == struct.pack('>H', number) and answer[3] & 15 == 0
    except TimeoutError:
        pass
    took.append(time.monotonic() - start)
took.sort()
print(answered, int(took[len(took) // 2] * 1e6))
";

/// Questions, or with `noise` random bytes, as fast as they can be sent, by somebody who reads no answer.
const FLOOD: &str = "
import os, socket, struct, sys
name = b''.join(bytes([len(part)]) + part for part in (b'web', b'acme', b'znet')) + bytes(1)
question = struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + name + struct.pack('>2H', 1, 1)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(('127.0.0.153', 53))
print('flooding', file=sys.stderr, flush=True)
number = 0
while True:
    number += 1
    sock.send(os.urandom(number % 1400 + 1) if 'noise' in sys.argv else question)
";

fn network(world: &World, name: &str, prefix6: &str) -> Result<String> {
    let spec = NetworkSpec { name, prefixes: &["10.77.0.0/16", prefix6], rest: None };
    world.controller.create_network(&spec)
}

fn acme(world: &World) -> Result<String> {
    network(world, "acme", "fd77:7777:7777::/48")
}

/// What `dig` says to a question with these words.
fn dig(member: &Member, words: &[&str]) -> Result<String> {
    let command = member.command("dig").arg(format!("@{RESOLVER}")).args(["+time=2", "+tries=1"]);
    Ok(command.args(words).run()?.stdout)
}

/// The answers to a question, a line each.
fn short(member: &Member, words: &[&str]) -> Result<String> {
    Ok(dig(member, &[&["+short"], words].concat())?.trim().to_owned())
}

/// The response code and the milliseconds that it took.
fn status(member: &Member, words: &[&str]) -> Result<(String, u64)> {
    let text = dig(member, words)?;
    let after = |key: &str| {
        let rest = text.split_once(key).map(|(_, rest)| rest)?;
        Some(rest.split(|c: char| !c.is_ascii_alphanumeric()).next()?.to_owned())
    };
    let code = after("status: ").with_context(|| format!("no status: {text}"))?;
    let millis = after("Query time: ").with_context(|| format!("no time: {text}"))?;
    Ok((code, millis.parse()?))
}

/// What the node says of a container.
fn attached(node: &Node, member: &Member) -> Result<Value> {
    let network = node.network(&member.network)?;
    let all = network["attached"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|one| one["name"] == member.name.as_str());
    found.with_context(|| format!("{} is not attached: {network}", member.name))
}

/// A program in a container with the `resolv.conf` that the agent asks for, as a runtime would give it.
fn with_names(node: &Node, member: &Member, program: &[&str]) -> Result<HostCommand> {
    let dns = attached(node, member)?["dns"].clone();
    let texts = |key: &str| -> Vec<String> {
        let all = dns[key].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
    };
    assert_eq!(texts("nameservers"), [RESOLVER], "{dns}");
    let text = format!("nameserver {}\nsearch {}\n", texts("nameservers")[0], texts("search").join(" "));
    let file: PathBuf = node.host().dir().join(format!("{}-{}.resolv.conf", member.network, member.name));
    std::fs::write(&file, text)?;
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    Ok(member.command("unshare").args(["-m", "sh", "-c", script]).arg(file).args(program))
}

/// The sockets that an agent has open.
fn sockets(node: &Node) -> Result<BTreeSet<String>> {
    let dir = format!("/proc/{}/fd", node.agent()?.pid());
    let links = std::fs::read_dir(dir)?.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    Ok(links.map(|link| link.to_string_lossy().into_owned()).collect())
}

/// A DNS server of the container's own, which says nothing, at these addresses.
fn own_server(member: &netns_harness::Container, addresses: &[&str]) -> Result<Process> {
    let script = "
import socket, sys, time
held = []
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        held.append(socket.socket(family, kind))
        held[-1].bind((address, 53))
        if kind == socket.SOCK_STREAM:
            held[-1].listen()
print('serving', file=sys.stderr, flush=True)
time.sleep(600)
";
    let server = member.command("python3").args(["-c", script]).args(addresses).spawn("own-dns")?;
    server.wait_for_log("serving", SOON)?;
    Ok(server)
}

#[test]
fn containers_find_each_other_by_name_and_by_address_with_the_tools_that_programs_use() -> Result {
    let mut world = World::new("dns-names")?;
    let token = acme(&world)?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let (web, db) = (n1.attach("acme", "web")?, n2.attach("acme", "db")?);
    let (web4, web6) = (web.v4()?.to_string(), web.v6()?.to_string());
    for member in [&web, &db] {
        for transport in ["+notcp", "+tcp"] {
            assert_eq!(short(member, &[transport, "web.acme.znet", "A"])?, web4);
            assert_eq!(short(member, &[transport, "web.acme.znet", "AAAA"])?, web6);
            assert_eq!(short(member, &[transport, "-x", &web4])?, "web.acme.znet.");
            assert_eq!(short(member, &[transport, "-x", &web6])?, "web.acme.znet.");
        }
    }
    // The short name, by the search list, and both ways as the C library does it.
    let getent = |words: &[&str]| -> Result<String> {
        Ok(with_names(&n2, &db, &[&["getent"], words].concat())?.run()?.stdout)
    };
    for name in ["web", "web.acme.znet", "WEB"] {
        let all = getent(&["ahosts", name])?;
        assert!(all.contains(&web4) && all.contains(&web6), "{name}: {all}");
    }
    for address in [&web4, &web6] {
        let found = getent(&["hosts", address])?;
        assert!(found.contains("web.acme.znet"), "{found}");
    }
    let script = "
import socket
print(sorted({found[4][0] for found in socket.getaddrinfo('web', 80)}))
print(socket.gethostbyaddr(socket.gethostbyname('web'))[0])
";
    let python = with_names(&n2, &db, &["python3", "-c", script])?.run()?.stdout;
    assert_eq!(python.trim(), format!("['{web4}', '{web6}']\nweb.acme.znet"));
    // `exec` does all of it by itself, also for a command that is not root, and the host's file stays as it is.
    let before = std::fs::read("/etc/resolv.conf")?;
    let script =
        "cat /etc/resolv.conf; setpriv --reuid 65534 --clear-groups getent ahosts web; getent hosts job";
    let run = ["exec", "--network", "acme", "--name", "job", "--", "sh", "-c", script];
    let job = n2.znet(&run)?.stdout;
    assert!(job.starts_with(&format!("nameserver {RESOLVER}\nsearch acme.znet\n")), "{job}");
    assert!(job.contains(&web4) && job.contains(&web6) && job.contains("job.acme.znet"), "{job}");
    assert_eq!(std::fs::read("/etc/resolv.conf")?, before);
    let left = n2.host().command("find").args(["/run/znet-agent", "-name", "resolv*"]).run()?.stdout;
    assert_eq!(left, "");
    world.passed();
    Ok(())
}

#[test]
fn what_there_is_not_is_said_at_once_and_nothing_is_forwarded() -> Result {
    let mut world = World::new("dns-negative")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let web = node.attach("acme", "web")?;
    let underlay = node.host().capture("eth0", "port 53")?;
    for (words, code) in [
        (vec!["nobody.acme.znet"], "NXDOMAIN"),
        (vec!["web.acme.znet", "MX"], "NOERROR"),
        (vec!["-x", "10.77.99.99"], "NXDOMAIN"),
        (vec!["-x", "fd77:7777:7777::99"], "NXDOMAIN"),
        (vec!["example.com"], "REFUSED"),
        (vec!["web.other.znet"], "REFUSED"),
        (vec!["-x", "10.78.0.1"], "REFUSED"),
        (vec!["-x", "192.0.2.1"], "REFUSED"),
        (vec!["version.bind", "TXT", "CH"], "REFUSED"),
    ] {
        let (said, millis) = status(&web, &words)?;
        assert_eq!(said, code, "{words:?}");
        assert!(millis < 500, "{words:?} took {millis} ms");
    }
    let soa = dig(&web, &["+noall", "+authority", "nobody.acme.znet"])?;
    assert!(soa.starts_with("acme.znet.\t\t1\tIN\tSOA"), "{soa}");
    // The C library hears the refusal as well, and does not wait for somebody else.
    let getent = with_names(&node, &web, &["timeout", "4", "getent", "hosts", "example.com"])?.try_run()?;
    assert_eq!(getent.status.code(), Some(2), "{}", getent.stderr);
    assert_eq!(underlay.count()?, 0, "{}", underlay.text()?);
    world.passed();
    Ok(())
}

#[test]
fn two_networks_on_one_node_see_no_name_of_each_other_and_a_container_in_both_sees_both() -> Result {
    let mut world = World::new("dns-two")?;
    let acme = acme(&world)?;
    let blue = network(&world, "blue", "fd88:8888:8888::/48")?;
    let node = world.node("n1", &[&acme, &blue])?;
    let (a, b) = (node.attach("acme", "web")?, node.attach("blue", "web")?);
    let (a_only, b_only) = (node.attach("acme", "a-only")?, node.attach("blue", "b-only")?);
    let (a_only, b_only) = (a_only.v6()?.to_string(), b_only.v6()?.to_string());
    assert_eq!(short(&a, &["web.acme.znet", "AAAA"])?, a.v6()?.to_string());
    assert_eq!(short(&b, &["web.blue.znet", "AAAA"])?, b.v6()?.to_string());
    assert_eq!(status(&a, &["b-only.blue.znet"])?.0, "REFUSED");
    assert_eq!(status(&b, &["a-only.acme.znet"])?.0, "REFUSED");
    assert_eq!(status(&a, &["b-only.acme.znet"])?.0, "NXDOMAIN");
    assert_eq!(status(&a, &["-x", &b.v6()?.to_string()])?.0, "REFUSED");
    // Equal IPv4 prefixes: each sees the names of its own.
    let both4 = a.v4()?.to_string();
    assert_eq!(b.v4()?.to_string(), both4);
    assert_eq!(short(&a, &["-x", &both4])?, "web.acme.znet.");
    assert_eq!(short(&b, &["-x", &both4])?, "web.blue.znet.");
    // One namespace in both, until it leaves one.
    Member::attach(&node, "acme", "both", a.container.clone(), &["--ifname", "znet1"])?;
    Member::attach(&node, "blue", "both", a.container.clone(), &["--ifname", "znet2"])?;
    assert_eq!(short(&a, &["b-only.blue.znet", "AAAA"])?, b_only);
    assert_eq!(short(&a, &["a-only.acme.znet", "AAAA"])?, a_only);
    node.znet(&["detach", "--network", "blue", "--name", "both"])?;
    assert_eq!(status(&a, &["b-only.blue.znet"])?.0, "REFUSED");
    assert_eq!(short(&a, &["a-only.acme.znet", "AAAA"])?, a_only);
    world.passed();
    Ok(())
}

#[test]
fn names_follow_the_map_and_outlive_the_controller_and_the_agent() -> Result {
    let mut world = World::new("dns-away")?;
    let token = acme(&world)?;
    let mut n1 = world.node("n1", &[&token])?;
    let n2 = world.node("n2", &[&token])?;
    let a = n1.attach("acme", "a")?;
    assert_eq!(status(&a, &["late.acme.znet"])?.0, "NXDOMAIN");
    // Attached on another node, it is known here as soon as that says that all know it.
    let late = n2.attach("acme", "late")?;
    assert_eq!(short(&a, &["late.acme.znet", "AAAA"])?, late.v6()?.to_string());
    n2.znet(&["detach", "--network", "acme", "--name", "late"])?;
    let gone = || (status(&a, &["late.acme.znet"]).ok()?.0 == "NXDOMAIN").then_some(());
    probe::until("the name of a detached container to be gone", SOON, gone)?;
    let b = n2.attach("acme", "b")?;
    world.controller.kill()?;
    assert_eq!(short(&a, &["b.acme.znet", "A"])?, b.v4()?.to_string());
    // While no agent runs nobody answers, which is told at once; the next one binds again and knows what it knew.
    n1.kill_agent()?;
    let alone =
        a.command("dig").args([&format!("@{RESOLVER}"), "+time=2", "+tries=1", "b.acme.znet"]).try_run()?;
    assert!(alone.stdout.contains("connection refused"), "{}", alone.stdout);
    n1.launch()?;
    let back = || (short(&a, &["b.acme.znet", "A"]).ok()? == b.v4().ok()?.to_string()).then_some(());
    probe::until("the new agent to answer", SOON, back)?;
    assert_eq!(short(&a, &["-x", &b.v6()?.to_string()])?, "b.acme.znet.");
    world.passed();
    Ok(())
}

#[test]
fn a_container_that_is_detached_or_gone_leaves_no_socket() -> Result {
    let mut world = World::new("dns-gone")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let (a, b) = (node.attach("acme", "a")?, node.attach("acme", "b")?);
    let listening = |member: &Member| -> Result<usize> {
        let all = member.command("ss").args(["-Hlnut"]).run()?.stdout;
        Ok(all.lines().filter(|line| line.contains("127.0.0.153:53")).count())
    };
    assert_eq!((listening(&a)?, listening(&b)?), (2, 2), "one for each transport");
    assert_eq!(short(&a, &["b.acme.znet", "A"])?, b.v4()?.to_string());
    node.znet(&["detach", "--network", "acme", "--name", "a"])?;
    assert_eq!((listening(&a)?, listening(&b)?), (0, 2));
    let listed = b.command("ss").args(["-Hlnute"]).run()?.stdout;
    let inodes = listed.split_whitespace().filter_map(|word| word.strip_prefix("ino:"));
    let inside: BTreeSet<String> = inodes.map(|inode| format!("socket:[{inode}]")).collect();
    let held = || Some(sockets(&node).ok()?.intersection(&inside).count());
    assert_eq!((inside.len(), held()), (2, Some(2)), "{listed}");
    b.container.remove()?;
    probe::until("the sockets of a namespace that is gone to be closed", SOON, || {
        (held()? == 0).then_some(())
    })?;
    world.passed();
    Ok(())
}

#[test]
fn a_dns_server_of_the_containers_own_is_left_alone() -> Result {
    let mut world = World::new("dns-own")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    // Beside the resolver, at all the usual addresses.
    let usual = node.attach("acme", "usual")?;
    let (four, six) = (usual.v4()?.to_string(), usual.v6()?.to_string());
    own_server(&usual.container, &["127.0.0.1", "::1", "127.0.0.53", &four, &six])?;
    assert_eq!(short(&usual, &["usual.acme.znet", "A"])?, four);
    // There first and everywhere: the attach succeeds, and says that there is no resolver.
    let container = node.host().container("first")?;
    container.command("ip").args(["link", "set", "lo", "up"]).run()?;
    let server = own_server(&container, &["0.0.0.0"])?;
    let first = Member::attach(&node, "acme", "first", container, &[])?;
    assert_eq!(attached(&node, &first)?["dns"], Value::Null);
    assert!(server.is_running());
    usual.wait_reaches(first.v6()?, FIRST_PACKET)?;
    // Told beforehand, and told later.
    let told = node.attach_with("acme", "told", &["--no-dns"])?;
    assert_eq!(attached(&node, &told)?["dns"], Value::Null);
    own_server(&told.container, &["0.0.0.0"])?;
    let again = Member::attach(&node, "acme", "usual", usual.container.clone(), &["--no-dns"])?;
    assert_eq!(attached(&node, &again)?["dns"], Value::Null);
    let again = Member::attach(&node, "acme", "usual", usual.container, &[])?;
    assert_eq!(attached(&node, &again)?["dns"]["domain"], "acme.znet");
    // A node that gives nobody names.
    let host = world.host("n2")?;
    let (tokens, flags) = (vec![token], vec!["--no-dns".to_owned()]);
    let quiet = Node::start("n2", &host, NodeOptions { tokens, flags })?;
    let member = quiet.attach("acme", "quiet")?;
    assert_eq!(attached(&quiet, &member)?["dns"], Value::Null);
    own_server(&member.container, &["0.0.0.0"])?;
    world.passed();
    Ok(())
}

#[test]
fn a_container_that_floods_its_resolver_slows_no_other_and_is_served_again() -> Result {
    let mut world = World::new("dns-flood")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let (web, noisy) = (node.attach("acme", "web")?, node.attach("acme", "noisy")?);
    let ask = |member: &Member| -> Result<(u32, u32)> {
        let output = member.command("python3").args(["-c", ASK_MANY, "300"]).run()?.stdout;
        let mut numbers = output.split_whitespace();
        let mut next = || -> Result<u32> { Ok(numbers.next().context("too few numbers")?.parse()?) };
        Ok((next()?, next()?))
    };
    assert_eq!(ask(&web)?.0, 300);
    for kind in ["questions", "noise"] {
        let flood = noisy.command("python3").args(["-c", FLOOD, kind]).spawn("flood")?;
        flood.wait_for_log("flooding", SOON)?;
        let paused = || attached(&node, &noisy).ok()?["dns_stats"]["paused"].as_u64().filter(|n| *n > 10);
        probe::until(&format!("{kind} to be held back"), SOON, paused)?;
        let (answered, median) = ask(&web)?;
        assert_eq!(answered, 300, "during a flood of {kind}");
        assert!(median < 50_000, "half of all answers took more than {median} us during a flood of {kind}");
        // Nor does anything else of the agent.
        assert_eq!(node.status()?["networks"][0]["connected"], true);
        assert!(flood.is_running());
        flood.kill()?;
        let served =
            || (short(&noisy, &["web.acme.znet", "A"]).ok()? == web.v4().ok()?.to_string()).then_some(());
        probe::until("who flooded to be served again", SOON, served)?;
    }
    let stats = attached(&node, &noisy)?["dns_stats"].clone();
    for counter in ["found", "malformed", "too_long", "paused"] {
        assert!(stats[counter].as_u64().unwrap() > 0, "{counter}: {stats}");
    }
    assert_eq!(attached(&node, &web)?["dns_stats"]["malformed"], 0);
    world.passed();
    Ok(())
}

#[test]
fn connections_that_say_nothing_hold_up_nobody_else_and_end() -> Result {
    let mut world = World::new("dns-tcp")?;
    let token = acme(&world)?;
    let node = world.node("n1", &[&token])?;
    let (web, noisy) = (node.attach("acme", "web")?, node.attach("acme", "noisy")?);
    let script = "
import socket, sys, time
held = [socket.create_connection(('127.0.0.153', 53)) for _ in range(24)]
print('connected', file=sys.stderr, flush=True)
time.sleep(600)
";
    let silent = noisy.command("python3").args(["-c", script]).spawn("silent")?;
    silent.wait_for_log("connected", SOON)?;
    assert_eq!(short(&web, &["+tcp", "web.acme.znet", "A"])?, web.v4()?.to_string());
    assert_eq!(short(&noisy, &["+notcp", "web.acme.znet", "A"])?, web.v4()?.to_string());
    // Two rounds of silent ones have to be given up before it is accepted.
    let waits = noisy.command("dig").args([&format!("@{RESOLVER}"), "+short", "+time=14", "+tries=1"]);
    let patient = waits.args(["+tcp", "web.acme.znet", "A"]).run()?.stdout;
    assert_eq!(patient.trim(), web.v4()?.to_string());
    assert!(attached(&node, &noisy)?["dns_stats"]["connections_full"].as_u64().unwrap() > 0);
    // One that announces more than any question is cut off at once.
    let script = "
import socket
sock = socket.create_connection(('127.0.0.153', 53))
sock.settimeout(3)
sock.sendall(bytes([255, 255]))
print(sock.recv(1) == bytes())
";
    assert_eq!(web.command("python3").args(["-c", script]).run()?.stdout.trim(), "True");
    assert_eq!(attached(&node, &web)?["dns_stats"]["too_long"], 1);
    world.passed();
    Ok(())
}
