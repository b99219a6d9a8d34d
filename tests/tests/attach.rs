//! Attaching: what goes wrong says what and how to help, and changes nothing; what is repeated changes nothing either.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use netns_harness::{Output, probe};
use serde_json::{Value, json};
use znet_tests::{FIRST_PACKET, Member, NetworkSpec, Node, NodeOptions, Result, World};

const SOON: Duration = Duration::from_secs(20);

/// A command has to fail with this exit code and these words, and leave the network as it was.
fn refused(world: &World, node: &Node, args: &[&str], code: i32, words: &[&str]) -> Result {
    let before = world.controller.json(&["network", "show", "acme"])?;
    let output = node.try_znet(args)?;
    check(&output, args, code, words);
    let after = world.controller.json(&["network", "show", "acme"])?;
    let count = |value: &Value| (value["containers"].clone(), value["nodes"].clone());
    assert_eq!(count(&before), count(&after), "{args:?} left something at the controller");
    let status = node.network("acme")?;
    assert_eq!(
        status["attached"].as_array().unwrap().len(),
        1,
        "{args:?} left something at the node: {status}"
    );
    Ok(())
}

fn check(output: &Output, args: &[&str], code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "{args:?} does not say {word:?}: {}", output.stderr);
    }
}

#[test]
fn bad_input_is_refused_with_the_reason_and_changes_nothing() -> Result {
    let mut world = World::new("attach-bad")?;
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/29"], rest: None };
    let token = world.controller.create_network(&spec)?;
    let node = world.node("n1", &[&token])?;
    let web = node.attach("acme", "web")?;
    let other = node.host().container("other")?;
    let path = other.netns_path().display().to_string();
    let to = |name: &'static str, netns: &str, more: &[&str]| -> Vec<String> {
        let fixed = ["attach", "--network", "acme", "--name", name, "--netns", netns];
        fixed.iter().chain(more).map(ToString::to_string).collect()
    };
    let file = node.host().dir().join("no-namespace").display().to_string();
    node.host().command("touch").arg(&file).run()?;
    node.host().container("busy")?.command("ip").args(["link", "add", "znet0", "type", "bridge"]).run()?;
    let taken = web.v4()?.to_string();
    let netless =
        ["attach", "--network", "nope", "--name", "x", "--netns", &path].map(str::to_owned).to_vec();
    let cases: Vec<(Vec<String>, i32, Vec<&str>)> = vec![
        (to("a_b", &path, &[]), 2, vec!["a_b", "use a-z, 0-9 and -"]),
        (to("web", &path, &[]), 4, vec!["web"]),
        (to("x", &path, &["--address", "10.99.0.1"]), 2, vec!["10.99.0.1", "outside the network's prefixes"]),
        (to("x", &path, &["--address", &taken]), 4, vec![&taken, "web"]),
        (to("x", &path, &["--address", "10.77.0.3", "--address", "10.77.0.4"]), 2, vec!["one"]),
        (to("x", &path, &["--ifname", "a-name-far-too-long"]), 2, vec!["a-name-far-too-long", "15"]),
        (to("x", "/run/netns/missing", &[]), 3, vec!["/run/netns/missing"]),
        (to("x", &file, &[]), 2, vec!["no-namespace", "not a network namespace"]),
        (to("x", "/run/netns/busy", &[]), 4, vec!["znet0"]),
        (netless, 3, vec!["nope"]),
    ];
    for (args, code, words) in &cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(&world, &node, &args, *code, words)?;
    }
    // /29 leaves six addresses; five more fill it.
    let more: Vec<_> = (0..5).map(|n| node.attach("acme", &format!("m{n}"))).collect::<Result<_>>()?;
    let args = to("x", &path, &[]);
    let output = node.try_znet(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    check(&output, &[], 4, &["10.77.0.0/29", "exhausted"]);
    assert!(web.pings(more[4].v4()?, FIRST_PACKET)?);
    world.passed();
    Ok(())
}

#[test]
fn a_network_is_refused_with_prefixes_that_overlap_or_cannot_be_used() -> Result {
    let world = World::new("network-bad")?;
    let create = |more: &[&str]| world.controller.try_ctl(&[&["network", "create", "acme"], more].concat());
    for (args, code, words) in [
        (vec!["--prefix", "10.77.0.0/16", "--prefix", "10.77.1.0/24"], 2, vec!["10.77"]),
        (vec!["--prefix", "fd00:1::/48", "--prefix", "fd00:2::/48"], 2, vec!["more than one IPv6 prefix"]),
        (vec!["--prefix", "8.8.0.0/16"], 2, vec!["8.8.0.0/16"]),
        (vec!["--prefix", "2001:db8::/48"], 2, vec!["2001:db8::/48"]),
        (vec!["--prefix", "10.77.0.0/16", "--reserve", "10.99.0.0/24"], 2, vec!["10.99.0.0/24"]),
        (vec!["--prefix", "10.77.0.0/33"], 2, vec!["10.77.0.0/33"]),
        (vec!["--rest", "soon"], 2, vec!["soon"]),
    ] {
        check(&create(&args)?, &args, code, &words);
    }
    check(
        &world.controller.try_ctl(&["network", "create", "UPPER_case"])?,
        &[],
        2,
        &["UPPER_case", "use a-z, 0-9 and -"],
    );
    assert_eq!(world.controller.json(&["network", "list"])?, serde_json::json!([]));
    world.controller.ctl(&["network", "create", "acme"])?;
    check(&create(&[])?, &["twice"], 4, &["acme"]);
    world.passed();
    Ok(())
}

#[test]
fn attach_and_detach_can_be_repeated() -> Result {
    let mut world = World::new("attach-twice")?;
    let token = world.controller.create_network(&NetworkSpec { name: "acme", ..NetworkSpec::default() })?;
    let node = world.node("n1", &[&token])?;
    let (a, b) = (node.attach("acme", "a")?, node.attach("acme", "b")?);
    a.wait_reaches(b.v6()?, FIRST_PACKET)?;
    let revision = node.revision("acme")?;
    let path = a.container.netns_path().display().to_string();
    let again = node.znet(&[
        "attach",
        "--network",
        "acme",
        "--name",
        "a",
        "--netns",
        &path,
        "--wait",
        "--output",
        "json",
    ])?;
    let again: Value = serde_json::from_str(&again.stdout)?;
    assert_eq!(again["addresses"][0].as_str(), Some(a.v6()?.to_string().as_str()));
    assert_eq!(node.revision("acme")?, revision, "the second attach changed something");
    assert!(a.pings(b.v6()?, FIRST_PACKET)?);
    let detach = ["detach", "--network", "acme", "--name", "a", "--output", "json"];
    let first: Value = serde_json::from_str(&node.znet(&detach)?.stdout)?;
    let second: Value = serde_json::from_str(&node.znet(&detach)?.stdout)?;
    assert_eq!((&first["was_attached"], &second["was_attached"]), (&Value::Bool(true), &Value::Bool(false)));
    let links = a.command("ip").args(["-brief", "link"]).run()?.stdout;
    assert!(!links.contains("znet0"), "{links}");
    // Its address rests: the next container gets another one.
    let c = node.attach("acme", "c")?;
    assert_ne!(c.v6()?, a.v6()?);
    world.passed();
    Ok(())
}

#[test]
fn an_agent_without_privileges_or_without_tun_says_so_and_how_to_help() -> Result {
    let mut world = World::new("no-privileges")?;
    let token = world.controller.create_network(&NetworkSpec { name: "acme", ..NetworkSpec::default() })?;
    let host = world.host("n1")?;
    let agent = znet_tests::program("znet-agent")?;
    let state = host.dir().join("state");
    let drop = ["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"];
    let output = host
        .command("setpriv")
        .args(drop)
        .arg(&agent)
        .args(["run", "--backend", "engine", "--state-dir", state.to_str().unwrap(), "--join", &token])
        .try_run()?;
    check(&output, &["run"], 5, &["CAP_NET_ADMIN"]);
    // The device file is hidden in a mount namespace of its own.
    let script = format!(
        "mount -t tmpfs zt-none /dev/net && exec {} run --backend engine --state-dir {} --join {token}",
        agent.display(),
        state.display()
    );
    let output = host.command("unshare").args(["-m", "sh", "-c", &script]).try_run()?;
    check(&output, &["no /dev/net/tun"], 1, &["/dev/net/tun", "modprobe tun"]);
    world.passed();
    Ok(())
}

#[test]
fn tokens_that_are_wrong_expired_used_up_truncated_revoked_or_foreign_admit_nobody() -> Result {
    let mut world = World::new("tokens")?;
    let good = world.controller.create_network(&NetworkSpec { name: "acme", ..NetworkSpec::default() })?;
    let foreign =
        world.controller.create_network(&NetworkSpec { name: "other", ..NetworkSpec::default() })?;
    world.controller.ctl(&["network", "delete", "other", "--yes"])?;
    let expired = world.controller.token("acme", &["--expires", "1ms"])?;
    let revoked = world.controller.token("acme", &["--label", "gone"])?;
    world.controller.ctl(&["token", "revoke", "acme", "gone"])?;
    let once = world.controller.token("acme", &["--uses", "1"])?;
    let host = world.host("n1")?;
    let node = Node::start("n1", &host, NodeOptions::default())?;
    world.node("n2", &[&once])?;
    let mut wrong: znet_api::token::JoinToken = good.parse()?;
    wrong.secret = znet_core::controller::TokenSecret::from_bytes([7; 32]);
    let wrong = wrong.to_text().to_string();
    let mut damaged = good.clone();
    damaged.replace_range(20..21, if &good[20..21] == "A" { "B" } else { "A" });
    for (token, code, words) in [
        (wrong.as_str(), 5, "token"),
        (&expired, 5, "expired"),
        (&revoked, 5, "revoked"),
        (&once, 5, "used"),
        (&good[..good.len() - 9], 2, "cut short"),
        (&damaged, 2, "damaged"),
        (&foreign, 3, "no network"),
        ("znet1.", 2, "token"),
        ("hello", 2, "znet1."),
    ] {
        let output = node.try_znet(&["join", token])?;
        check(&output, &["join", token], code, &[words]);
        assert_eq!(node.status()?["networks"], serde_json::json!([]), "{words}");
    }
    let nodes = world.controller.json(&["node", "list", "acme"])?;
    assert_eq!(nodes.as_array().unwrap().len(), 1, "{nodes}");
    node.znet(&["join", &good])?;
    node.wait_connected("acme")?;
    world.passed();
    Ok(())
}

/// A node's file of deltas on a disk that hangs: whoever opens it for writing waits.
struct Hanging {
    log: PathBuf,
    pipe: PathBuf,
    kept: PathBuf,
}

impl Hanging {
    fn begin(node: &Node, network: &str) -> Result<Self> {
        let log = node.state_dir().join("networks").join(network).join("map.log");
        let (pipe, kept) = (log.with_extension("pipe"), log.with_extension("kept"));
        node.host().command("mkfifo").arg(&pipe).run()?;
        // A map that was just written has no deltas beside it.
        if log.exists() {
            std::fs::rename(&log, &kept)?;
        }
        std::fs::rename(&pipe, &log)?;
        Ok(Self { log, pipe, kept })
    }

    /// Whoever waits goes on, and the file is as it was.
    fn end(self, node: &Node) -> Result {
        std::fs::rename(&self.log, &self.pipe)?;
        if self.kept.exists() {
            std::fs::rename(&self.kept, &self.log)?;
        }
        // It ends when nobody writes any more.
        node.host().command("cat").arg(&self.pipe).run()?;
        Ok(())
    }
}

/// What the agent answers to an attach, with the HTTP status.
fn ask(node: &Node, request: &Value) -> Result<(u16, Value)> {
    let curl = node.host().command("curl").args(["-sS", "--max-time", "15", "-w", "\n%{http_code}", "-d"]);
    let socket = ["--unix-socket", "/run/znet-agent/agent.sock", "http://localhost/v1/attach"];
    let said = curl.arg(request.to_string()).args(socket).run()?.stdout;
    let (body, status) = said.rsplit_once('\n').unwrap();
    Ok((status.parse()?, serde_json::from_str(body)?))
}

#[test]
fn an_address_is_refused_while_a_container_has_it_of_whose_removal_the_node_has_not_heard() -> Result {
    let mut world = World::new("attach-behind")?;
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: Some("1s") };
    let token = world.controller.create_network(&spec)?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let (old, far) = (n1.attach("acme", "old")?, n2.attach("acme", "far")?);
    far.wait_reaches(old.v4()?, FIRST_PACKET)?;
    let id = world.controller.json(&["network", "show", "acme"])?["id"].as_str().unwrap().to_owned();
    // The stream of n1 stands still: it hears of one change, and is not done with it.
    let hanging = Hanging::begin(&n1, &id)?;
    n2.attach_with("acme", "more", &[])?;
    let revision = world.controller.json(&["network", "show", "acme"])?["revision"].as_u64().unwrap();
    probe::until("n1 to hear of a change", SOON, || n1.revision("acme").ok().filter(|at| *at >= revision))?;
    world.controller.ctl(&["container", "remove", "acme", "old", "--yes"])?;
    let container = n1.host().container("new")?;
    let request = json!({
        "network": "acme", "name": "new", "netns": container.netns_path(), "ifname": "znet0",
        "addresses": [old.v4()?],
    });
    // The controller gives it as soon as it has rested.
    let answer = || ask(&n1, &request).ok().filter(|(_, said)| said["code"] != "address_resting");
    let (status, said) = probe::until("the address to have rested", SOON, answer)?;
    assert_eq!((status, said["code"].as_str()), (503, Some("behind")), "{said}");
    let detail = said["detail"].as_str().unwrap();
    assert!(detail.contains("was old's") && detail.contains("try again"), "{said}");
    // Of the attach nothing is left, anywhere.
    let links = container.command("ip").args(["-brief", "link"]).run()?.stdout;
    assert!(!links.contains("znet0"), "{links}");
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&world.controller.json(&["container", "list", "acme"])?), ["far", "more"]);
    assert_eq!(names(&n1.network("acme")?["attached"]), ["old"]);
    // It hears the rest, and then may have it.
    hanging.end(&n1)?;
    let gone = || n1.network("acme").ok().filter(|network| names(&network["attached"]).is_empty());
    probe::until("n1 to hear that old is gone", SOON, gone)?;
    let address = old.v4()?.to_string();
    let again = || Member::attach(&n1, "acme", "new", container.clone(), &["--address", &address]).ok();
    let new = probe::until("the address to be given", SOON, again)?;
    assert_eq!(new.v4()?, old.v4()?);
    far.wait_reaches(new.v4()?, FIRST_PACKET)?;
    world.passed();
    Ok(())
}
