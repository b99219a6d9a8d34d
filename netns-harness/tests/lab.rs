//! Labs on the real kernel: what they promise, and what they leave behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::{Duration, Instant};

use netns_harness::{Host, Lab, LabError, NatKind, Port, Signal, Switch, probe};

fn pair(lab: &Lab, second: impl FnOnce(Port) -> Port) -> (Host, Host, Switch) {
    let switch = lab.switch("s").unwrap();
    let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
    lab.plug(&a, &switch, Port::new("eth0").address("192.0.2.1/24").address("2001:db8::1/64")).unwrap();
    let port = Port::new("eth0").address("192.0.2.2/24").address("2001:db8::2/64");
    lab.plug(&b, &switch, second(port)).unwrap();
    (a, b, switch)
}

fn ping(host: &Host, args: &[&str]) -> String {
    host.command("ping").arg("-n").args(args).try_run().unwrap().stdout
}

#[test]
fn hosts_on_one_switch_reach_each_other_at_once() {
    let lab = Lab::new("hosts on one switch").unwrap();
    let (a, b, _) = pair(&lab, |port| port);
    for (from, to) in [(&a, "192.0.2.2"), (&a, "2001:db8::2"), (&b, "192.0.2.1"), (&b, "2001:db8::1")] {
        from.command("ping").args(["-n", "-c", "1", "-W", "2", to]).run().unwrap();
    }
    assert_eq!(a.command("hostname").run().unwrap().stdout.trim(), "a");
    lab.passed();
}

#[test]
fn a_cable_carries_packets_of_its_mtu_and_no_larger_ones() {
    let lab = Lab::new("mtu").unwrap();
    let (a, _, _) = pair(&lab, |port| port.mtu(1_400));
    assert!(
        ping(&a, &["-c", "1", "-W", "2", "-M", "do", "-s", "1372", "192.0.2.2"]).contains(" 0% packet loss")
    );
    assert!(
        ping(&a, &["-c", "1", "-W", "1", "-M", "do", "-s", "1373", "192.0.2.2"]).contains("100% packet loss")
    );
    lab.passed();
}

#[test]
fn a_lossy_cable_loses_in_both_directions() {
    let lab = Lab::new("loss").unwrap();
    let (a, b, _) = pair(&lab, |port| port.loss_percent(30.0));
    let on_b = b.capture("eth0", "icmp[icmptype] == icmp-echo or icmp[icmptype] == icmp-echoreply").unwrap();
    let at_a = ping(&a, &["-q", "-i", "0.002", "-c", "500", "-W", "1", "192.0.2.2"]);
    let text = on_b.text().unwrap();
    let requests = text.lines().filter(|line| line.contains("echo request")).count();
    let answered = text.lines().filter(|line| line.contains("echo reply")).count();
    let received: usize =
        at_a.split(" received").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    // tcpdump sees what arrives before the drop, so b's answers tell what got through. 30 % of 500 is 150, six sigma 61.
    assert!(requests > 400, "{requests} requests arrived at the end of the cable");
    assert!((289..=411).contains(&answered), "{answered} of 500 got through one way");
    let expected = answered * 7 / 10;
    assert!(received.abs_diff(expected) <= 55, "{received} of {answered} came back");
    lab.passed();
}

#[test]
fn a_slow_cable_takes_its_time_both_ways() {
    let lab = Lab::new("delay").unwrap();
    let (a, _, _) = pair(&lab, |port| port.delay(Duration::from_millis(20)));
    let text = ping(&a, &["-q", "-i", "0.05", "-c", "10", "192.0.2.2"]);
    let least: f64 = text.split("= ").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    assert!((40.0..60.0).contains(&least), "{text}");
    lab.passed();
}

/// Two hosts behind routers of their own send to each other's public address, as hole punching does.
fn hole_punching_succeeds(kind: NatKind) -> bool {
    let lab = Lab::new("hole punching").unwrap();
    let wan = lab.switch("wan").unwrap();
    let mut sides = Vec::new();
    for n in 1..=2 {
        let lan = lab.switch(&format!("lan{n}")).unwrap();
        let inner = Port::new("lan").address("10.0.0.1/24");
        let outer = Port::new("wan").address(&format!("203.0.113.{n}/24"));
        lab.nat_router(&format!("r{n}"), kind, (&lan, inner), (&wan, outer)).unwrap();
        let host = lab.host(&format!("h{n}")).unwrap();
        lab.plug(&host, &lan, Port::new("eth0").address("10.0.0.2/24").gateway("10.0.0.1")).unwrap();
        sides.push(host);
    }
    let punch = |to: u8| {
        format!(
            "import socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('',4000))\ns.settimeout(0.1)\n\
             end=time.time()+3\ngot=False\nwhile time.time()<end and not got:\n s.sendto(b'x',('203.0.113.{to}',4000))\n try:\n  got=bool(s.recvfrom(9))\n \
             except OSError: pass\ns.sendto(b'x',('203.0.113.{to}',4000))\nprint('punched' if got else 'blocked')\n"
        )
    };
    let first = sides[0].command("python3").args(["-c", &punch(2)]).spawn("punch").unwrap();
    let second = sides[1].command("python3").args(["-c", &punch(1)]).run().unwrap();
    first.wait(Duration::from_secs(10)).unwrap();
    let both = first.stdout().unwrap().contains("punched") && second.stdout.contains("punched");
    lab.passed();
    both
}

#[test]
fn a_port_preserving_router_lets_holes_be_punched() {
    assert!(hole_punching_succeeds(NatKind::PortPreserving));
}

#[test]
fn a_symmetric_router_does_not() {
    assert!(!hole_punching_succeeds(NatKind::Symmetric));
}

#[test]
fn a_container_is_a_namespace_with_the_files_of_its_host() {
    let lab = Lab::new("containers").unwrap();
    let host = lab.host("h").unwrap();
    let container = host.container("box").unwrap();
    let links = container.command("ip").args(["-brief", "link"]).run().unwrap().stdout;
    assert_eq!(links.lines().count(), 1, "{links}");
    let path = container.netns_path();
    host.command("nsenter").arg(format!("--net={}", path.display())).args(["ip", "link"]).run().unwrap();
    container.remove().unwrap();
    assert!(!host.command("test").arg("-e").arg(path).try_run().unwrap().status.success());
    lab.passed();
}

#[test]
fn a_pulled_cable_is_silent_and_a_plugged_one_works_again() {
    let lab = Lab::new("cable").unwrap();
    let (a, b, _) = pair(&lab, |port| port);
    b.set_link("eth0", false).unwrap();
    assert!(!ping(&a, &["-c", "1", "-W", "1", "192.0.2.2"]).contains(" 0% packet loss"));
    b.set_link("eth0", true).unwrap();
    let answered =
        || ping(&a, &["-c", "1", "-W", "1", "192.0.2.2"]).contains(" 0% packet loss").then_some(());
    probe::until("the cable to work", Duration::from_secs(10), answered).unwrap();
    lab.passed();
}

#[test]
fn processes_are_killed_and_logs_removed_with_a_lab_that_passed() {
    let lab = Lab::new("clean-up").unwrap();
    let host = lab.host("h").unwrap();
    let direct = host.command("sleep").arg("600").spawn("sleep").unwrap();
    // One that left its parent, as daemons do.
    let script = "setsid sleep 601 & echo $!";
    let orphan = host.command("sh").args(["-c", script]).run().unwrap().stdout.trim().to_owned();
    let (pids, dir) = ([direct.pid().to_string(), orphan], lab.dir().to_owned());
    direct.detach();
    assert!(dir.is_dir());
    lab.passed();
    drop(lab);
    for pid in pids {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{pid} lives: {state}");
    }
    assert!(!dir.exists());
}

#[test]
fn logs_stay_when_a_lab_did_not_pass() {
    let dir = {
        let lab = Lab::new("a failure that is meant").unwrap();
        let host = lab.host("h").unwrap();
        let echo = host.command("echo").arg("the end of the log").spawn("echo").unwrap();
        echo.wait(Duration::from_secs(5)).unwrap();
        lab.dir().to_owned()
    };
    let logs: Vec<_> = std::fs::read_dir(dir.join("logs")).unwrap().flatten().collect();
    let text = logs.iter().map(|log| std::fs::read_to_string(log.path()).unwrap()).collect::<String>();
    assert!(text.contains("the end of the log"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn two_labs_side_by_side_have_the_same_names_and_do_not_meet() {
    let (one, two) = (Lab::new("one").unwrap(), Lab::new("two").unwrap());
    let (a, _, _) = pair(&one, |port| port);
    let (c, d, _) = pair(&two, |port| port);
    d.set_link("eth0", false).unwrap();
    assert!(ping(&a, &["-c", "1", "-W", "2", "192.0.2.2"]).contains(" 0% packet loss"));
    assert!(!ping(&c, &["-c", "1", "-W", "1", "192.0.2.2"]).contains(" 0% packet loss"));
    one.passed();
    two.passed();
}

#[test]
fn errors_say_what_happened_and_what_helps() {
    let lab = Lab::new("errors").unwrap();
    let host = lab.host("h").unwrap();
    let failed = host.command("ls").arg("/nonexistent").run().unwrap_err().to_string();
    assert!(failed.contains("on h: `ls /nonexistent`") && failed.contains("No such file"), "{failed}");
    let missing = host.command("zt-no-such-program").run().unwrap_err().to_string();
    assert!(missing.contains("apt-get install"), "{missing}");
    let early = host.command("sh").args(["-c", "echo oops; exit 3"]).spawn("early").unwrap();
    let early = early.wait_for_log("ready", Duration::from_secs(5)).unwrap_err().to_string();
    assert!(early.contains("exit status: 3") && early.contains("oops"), "{early}");
    let slow = host.command("sleep").arg("30").run_timeout(Duration::from_millis(50)).unwrap_err();
    assert!(slow.is_timeout());
    assert!(matches!(lab.host("h"), Err(LabError::NameTaken { .. })));
    assert!(matches!(lab.host("H!"), Err(LabError::BadName { .. })));
    lab.passed();
}

#[test]
fn a_sweep_removes_what_a_killed_owner_left_and_nothing_else() {
    // This test runs itself again as the owner that is killed.
    if let Some(ready) = std::env::var_os("ZT_OWNER_READY") {
        let lab = Lab::new("an owner that is killed").unwrap();
        let host = lab.host("h").unwrap();
        let orphan = host.command("sh").args(["-c", "setsid sleep 602 & echo $!"]).run().unwrap().stdout;
        std::fs::write(ready, format!("{} {}", lab.prefix(), orphan.trim())).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let alive = Lab::new("an owner that lives").unwrap();
    let host = alive.host("h").unwrap();
    let sleeper = host.command("sleep").arg("603").spawn("sleep").unwrap();
    let ready = alive.dir().join("ready");
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_sweep_removes_what_a_killed_owner_left_and_nothing_else"])
        .env("ZT_OWNER_READY", &ready)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let read = || std::fs::read_to_string(&ready).ok().filter(|text| text.contains(' '));
    let text = probe::until("the other lab", Duration::from_secs(20), read).unwrap();
    let (prefix, orphan) = text.split_once(' ').unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    netns_harness::sweep().unwrap();
    let gone = || {
        let state = std::fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_default();
        (state.is_empty() || state.contains(") Z ")).then_some(())
    };
    probe::until("the orphan to be gone", Duration::from_secs(5), gone).unwrap();
    assert!(netns_harness::list().unwrap().iter().all(|(lab, _)| lab.prefix != prefix));
    assert!(sleeper.is_running());
    sleeper.signal(Signal::SIGTERM).unwrap();
    let begun = Instant::now();
    sleeper.wait(Duration::from_secs(5)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    alive.passed();
}
