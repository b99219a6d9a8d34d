//! Connections that say nothing, or say it slowly, in thousands: they take no place that others need, and what they
//! hold is given back.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use znet_api::client::{ControllerClient, Target};
use znet_api::rest::OperatorRole;
use znet_api::tls::Identity;
use znet_tests::{FleetNode, Result, Served};

use crate::raw::{PATIENCE, connect_from, exchange};

/// Half-open connections that a stranger holds, where the system lets this process open as many files.
const STRANGERS: u64 = 10_000;
/// Files that the test and the controller need for everything else.
const OTHER_FILES: u64 = 600;
/// The address of whoever means harm. Everybody else comes from 127.0.0.1.
const STRANGER: [u8; 4] = [127, 0, 0, 66];
/// The first bytes of a TLS handshake: a record of 512 bytes, of which none follows.
const BEGUN: [u8; 6] = [0x16, 3, 1, 2, 0, 1];
/// How long an honest request may take while thousands of others hold connections.
const HONEST: Duration = Duration::from_secs(5);
/// Bytes of memory that a flood may leave behind for each of its connections: what honest callers do meanwhile is kept, a
/// connection that was held would be some kilobytes.
const LEFT_BY_EACH: u64 = 600;
/// Floods within which the allocator has to have all that it wants.
const FLOODS: usize = 6;

/// Lets this process open as many files as it may. Returns how many strangers there can be.
fn strangers() -> Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(usize::try_from(STRANGERS.min(most.saturating_sub(OTHER_FILES)))?)
}

/// Opens connections: half of them say nothing, half begin a handshake.
async fn flood(served: &Served, count: usize) -> Result<Vec<TcpStream>> {
    let mut open = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = connect_from(STRANGER, served.address).await?;
        if number % 2 == 0 {
            // One that is refused may be closed already.
            let _ = stream.write_all(&BEGUN).await;
        }
        open.push(stream);
    }
    Ok(open)
}

/// Waits until the controller has hung up on all of them.
async fn wait_closed(open: Vec<TcpStream>) -> Result {
    for mut stream in open {
        let mut rest = Vec::new();
        // An end or a reset: closed either way.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_half_open_connections_leave_room_for_everybody_else_and_nothing_behind() -> Result {
    let strangers = strangers()?;
    assert!(strangers >= 1_000, "only {strangers} connections can be opened; raise `ulimit -Hn`");
    let mut served = Served::start()?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", served.pid()))?;
    let files: Vec<&str> = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(files[0], files[1], "the controller has not raised its limit of open files");
    let token = served.network("acme").await?;
    let (pin, address) = (served.pin, served.address.to_string());
    let operator = served.operator(OperatorRole::Admin, None).await?.parse()?;
    let remote = ControllerClient::new(Target::Remote { address, pin, token: operator });
    let mut node = FleetNode::join(&token, "honest", 0).await?;
    let mut watcher = node.watch().await?;
    watcher.next().await?;
    let (mut memory, mut attached) = (Vec::new(), 0);
    let settled = |memory: &[u64]| match memory {
        [.., before, after] => after.saturating_sub(*before) < LEFT_BY_EACH * strangers as u64,
        _ => false,
    };
    while memory.len() < FLOODS && !settled(&memory) {
        let open = flood(&served, strangers).await?;
        let held = Instant::now();
        // By far less than the time for which the controller waits for a handshake.
        while held.elapsed() < Duration::from_secs(4) {
            tokio::time::timeout(HONEST, remote.health()).await??;
            let acknowledged = tokio::time::timeout(HONEST, node.attach(attached)).await??;
            attached += 1;
            while tokio::time::timeout(HONEST, watcher.next()).await?? < acknowledged.revision {}
            tokio::time::timeout(HONEST, FleetNode::join(&token, "more", attached)).await??;
        }
        wait_closed(open).await?;
        memory.push(served.memory()?);
    }
    println!("{strangers} strangers, {attached} attaches meanwhile, bytes held after each flood: {memory:?}");
    assert!(attached > 10, "{attached} attaches");
    assert!(settled(&memory), "each flood leaves something behind: {memory:?}");
    let refused = served.counter("znet_bound_hit_total", "newcomers_of_a_source").await?;
    let failed = served.counter("znet_handshakes_failed_total", "").await?;
    assert_eq!(refused + failed, (memory.len() * strangers) as u64, "{refused} refused, {failed} failed");
    served.is_unharmed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_may_have_half_of_all_places_and_no_more() -> Result {
    strangers()?;
    // It gets 256 files and may not raise that: room for 64 connections.
    let mut served = Served::start_with_files(256)?;
    let open = flood(&served, 64).await?;
    let refused = async {
        loop {
            if served.counter("znet_bound_hit_total", "newcomers_of_a_source").await? == 32 {
                return Result::Ok(());
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(HONEST, refused).await??;
    let answer =
        exchange(&served, None, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    wait_closed(open).await?;
    served.is_unharmed().await
}

/// What a slow client is told in the end.
async fn told(served: &Served, node: Option<&Identity>, bytes: &[u8]) -> Result<String> {
    Ok(String::from_utf8_lossy(&exchange(served, node, bytes).await.unwrap_or_default()).into_owned())
}

#[tokio::test]
async fn who_is_slow_is_told_so_and_cut_off() -> Result {
    let mut served = Served::start()?;
    let node = Identity::generate()?;
    let operator = served.operator(OperatorRole::Admin, None).await?;
    let body = format!(
        "POST /v1/networks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {operator}\r\ncontent-length: 100\r\n\
         connection: close\r\n\r\n{{\"name\":"
    );
    let grpc = |call: &str| {
        let head =
            "HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\nte: trailers\r\ncontent-length: 100";
        format!("POST /znet.v1.Controller/{call} {head}\r\nconnection: close\r\n\r\n\0\0\0")
    };
    let (leave, watch) = (grpc("Leave"), grpc("Watch"));
    let begun = Instant::now();
    let (rest, leave, watch, half_a_head, silent) = tokio::try_join!(
        told(&served, None, body.as_bytes()),
        told(&served, Some(&node), leave.as_bytes()),
        told(&served, Some(&node), watch.as_bytes()),
        told(&served, None, b"GET /healthz HTTP/1.1\r\nhost:"),
        told(&served, None, b""),
    )?;
    assert!(rest.starts_with("HTTP/1.1 408") && rest.contains("\"code\":\"too_slow\""), "{rest}");
    for answer in [leave, watch] {
        assert!(answer.contains("grpc-status: 4") && answer.contains("znet-code: too_slow"), "{answer}");
    }
    // Nobody can be told anything who has not asked yet.
    assert!(!half_a_head.contains(" 200 ") && silent.is_empty(), "{half_a_head} {silent}");
    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    served.is_unharmed().await
}
