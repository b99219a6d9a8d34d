//! The engine as users meet it: what `wg(8)` shows, what happens when it is killed, what strangers can do to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use znet_tests::{FIRST_PACKET, Member, NetworkSpec, Node, Result, World};

fn two(purpose: &str) -> Result<(World, Node, Node, Member, Member)> {
    let mut world = World::new(purpose)?;
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
    let token = world.controller.create_network(&spec)?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let (a, b) = (n1.attach("acme", "a")?, n2.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    Ok((world, n1, n2, a, b))
}

fn kill_engine(node: &Node) -> Result<u32> {
    let pid = node.engine_pid()?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
    Ok(pid)
}

#[test]
fn traffic_is_back_within_two_seconds_after_the_engine_was_killed_whoever_sends_first() -> Result {
    let (world, n1, n2, a, b) = two("engine-killed")?;
    for (node, from, to) in [(&n1, &a, &b), (&n1, &b, &a), (&n2, &a, &b)] {
        let old = kill_engine(node)?;
        let begun = Instant::now();
        from.wait_reaches(to.v6()?, Duration::from_secs(20))?;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "back after {took:?}");
        assert_ne!(node.engine_pid()?, old);
    }
    world.passed();
    Ok(())
}

#[test]
fn wg_show_tells_the_truth() -> Result {
    let (world, n1, _n2, a, b) = two("wg-show")?;
    let shown = n1.host().command("wg").args(["show", &a.device, "dump"]).run()?.stdout;
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split('\t').collect()).collect();
    let list = world.controller.json(&["container", "list", "acme"])?;
    let key = |name: &str| {
        let all = list.as_array().unwrap();
        all.iter().find(|c| c["name"] == name).unwrap()["public_key"].as_str().unwrap().to_owned()
    };
    let status = n1.network("acme")?;
    assert_eq!(lines[0][1], key("a"), "{shown}");
    assert_eq!(lines[0][2], status["port"].to_string(), "{shown}");
    assert_eq!(lines.len(), 2, "{shown}");
    let peer = &lines[1];
    assert_eq!(peer[0], key("b"));
    assert_eq!(peer[2], "192.0.2.12:51820", "{shown}");
    let allowed: Vec<&str> = peer[3].split(',').collect();
    assert!(allowed.contains(&format!("{}/128", b.v6()?).as_str()), "{shown}");
    assert!(allowed.contains(&format!("{}/32", b.v4()?).as_str()), "{shown}");
    assert!(peer[4].parse::<u64>()? > 1_700_000_000, "no handshake: {shown}");
    assert!(peer[5].parse::<u64>()? > 0 && peer[6].parse::<u64>()? > 0, "no traffic: {shown}");
    // It is for reading: configuration is the controller's.
    let set = n1.host().command("wg").args(["set", &a.device, "listen-port", "1"]).try_run()?;
    assert!(!set.status.success());
    world.passed();
    Ok(())
}

#[test]
fn the_engine_has_no_privileges_and_a_filter_of_system_calls() -> Result {
    let (world, n1, ..) = two("sandbox")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", n1.engine_pid()?))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!((field("Uid:").as_str(), field("Gid:").as_str()), ("65534", "65534"));
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    world.passed();
    Ok(())
}

#[test]
fn random_and_mutated_datagrams_neither_crash_nor_grow_the_engine_nor_disturb_links() -> Result {
    let (world, n1, n2, a, b) = two("garbage")?;
    let pid = n1.engine_pid()?;
    let capture = n1.host().capture("eth0", "udp port 51820")?;
    // Fresh handshakes and data, to be mutated.
    kill_engine(&n2)?;
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    a.command("ping").args(["-n", "-c", "20", "-i", "0.01", &b.v6()?.to_string()]).run()?;
    capture.text()?;
    let before = resident(pid)?;
    let flood =
        a.command("ping").args(["-n", "-c", "400", "-i", "0.01", &b.v6()?.to_string()]).spawn("flood")?;
    let attacker = n2.host().command("python3").args(["-c", ATTACK, "192.0.2.11", "51820"]);
    let sent = attacker.arg(capture.path()).run_timeout(Duration::from_secs(60))?.stdout;
    let sent: u32 = sent.trim().parse()?;
    assert!(sent >= 50_000, "only {sent} datagrams were sent");
    assert!(flood.wait(Duration::from_secs(60))?.success());
    assert!(flood.stdout()?.contains(" 0% packet loss"), "{}", flood.stdout()?);
    assert_eq!(n1.engine_pid()?, pid, "the engine was replaced");
    let dropped = n1.network("acme")?["dropped"].clone();
    for counter in ["drop_malformed", "drop_no_session", "drop_stranger"] {
        assert!(dropped[counter].as_u64().unwrap() > 0, "{counter} did not tell: {dropped}");
    }
    let grown = resident(pid)?.saturating_sub(before);
    assert!(grown < 4 << 10, "the engine grew by {grown} KiB");
    world.passed();
    Ok(())
}

/// Sends random datagrams, and messages out of a capture with a few bytes changed, cut short or made longer.
const ATTACK: &str = r"
import os, random, socket, struct, sys, time
to = (sys.argv[1], int(sys.argv[2]))
data = open(sys.argv[3], 'rb').read()
seeds, at = [], 24
while at + 16 <= len(data):
    size = struct.unpack('<I', data[at + 8:at + 12])[0]
    frame = data[at + 16:at + 16 + size]
    at += 16 + size
    payload = frame[42:]
    if len(payload) >= 32 and payload[0] in (1, 2, 3, 4):
        seeds.append(payload)
assert len({s[0] for s in seeds}) >= 3, 'the capture has no handshakes'
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent, until = 0, time.monotonic() + 4
while time.monotonic() < until:
    for _ in range(100):
        kind = random.random()
        if kind < 0.3:
            p = os.urandom(random.choice((0, 1, 4, 31, 32, 64, 92, 148, 500, 1400)))
        elif kind < 0.5:
            p = bytes([random.choice((1, 2, 3, 4)), 0, 0, 0]) + os.urandom(random.choice((28, 60, 88, 144, 300)))
        else:
            p = bytearray(random.choice(seeds))
            for _ in range(random.randrange(4)):
                p[random.randrange(len(p))] = random.randrange(256)
            if kind > 0.85:
                p = p[:random.randrange(len(p))] if kind > 0.92 else p + os.urandom(random.randrange(64))
        try:
            s.sendto(bytes(p), to)
            sent += 1
        except OSError:
            pass
print(sent)
";

/// Resident memory in KiB.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

#[test]
fn a_quiet_link_loses_nothing_beside_others_of_its_node() -> Result {
    let mut world = World::new("quiet-links")?;
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
    let token = world.controller.create_network(&spec)?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let here = ["a", "b", "c", "d"].map(|name| n1.attach("acme", name));
    let here: Vec<Member> = here.into_iter().collect::<Result<_>>()?;
    let there = n2.attach("acme", "e")?;
    there.reaches_all(&here, FIRST_PACKET)?;
    // All at once, so that every worker has several devices to serve, and each device little.
    let pings: Vec<_> = here
        .iter()
        .map(|member| {
            let to = member.v6()?.to_string();
            let args = ["-n", "-q", "-i", "0.02", "-c", "100", "-W", "5", &to];
            Ok(there.command("ping").args(args).spawn("ping")?)
        })
        .collect::<Result<_>>()?;
    for ping in &pings {
        ping.wait(Duration::from_secs(30))?;
        let said = ping.stdout()?;
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    world.passed();
    Ok(())
}
