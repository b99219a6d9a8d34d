//! Traffic through a link, made by iperf3 and ping, and what arrived of it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use netns_harness::{HostCommand, Process, probe};
use serde_json::Value;

use super::link::Link;
use crate::figures::Samples;

/// What iperf3 may take beyond its test: connecting, results, and retransmissions of these through a link that was just overloaded.
const SLACK: Duration = Duration::from_secs(20);
/// How often a test is tried. The connection over which iperf3 tells its results goes through the overloaded tunnel too.
const TRIES: u32 = 3;
/// Echo requests of one look at the latency.
const PINGS: usize = 500;
/// Seconds between them.
const PING_INTERVAL: &str = "0.002";
/// What a ping that was lost counts as; `ping` is told to wait no longer.
const LOST_PING: Duration = Duration::from_secs(1);
/// Bytes that are through before a TCP stream counts as going at full speed.
const WARM: u64 = 50_000_000;
/// How long it may take to.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where TCP goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Reverse,
}

/// What TCP moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    /// Received, in 10^9 bytes.
    pub(super) gigabytes: f64,
    /// Received, per second.
    pub(super) gbit_per_second: f64,
}

/// How fast UDP is offered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Offer {
    /// As fast as the sender can.
    Everything,
    /// So many thousand packets a second.
    Kpps(f64),
}

/// What came of UDP packets, in thousands a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivered {
    pub(super) sent: f64,
    pub(super) received: f64,
}

impl Delivered {
    /// Lost packets, of 100.
    pub(super) fn loss_percent(self) -> f64 {
        (1.0 - self.received / self.sent).max(0.0) * 100.0
    }
}

/// Round trips in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// TCP with cubic for some seconds.
pub(super) fn tcp(link: &Link, streams: u32, direction: Direction, seconds: u32) -> Result<Moved> {
    let streams = streams.to_string();
    let mut args = vec!["-C", "cubic", "-P", &streams];
    if direction == Direction::Reverse {
        args.push("-R");
    }
    let result = iperf(link, &args, seconds)?;
    let gbit_per_second = number(&result, "/end/sum_received/bits_per_second")? / 1e9;
    Ok(Moved { gigabytes: number(&result, "/end/sum_received/bytes")? / 1e9, gbit_per_second })
}

/// UDP with packets of `payload` bytes for some seconds. What arrived is the server's own count.
pub(super) fn udp(link: &Link, payload: u32, offer: Offer, seconds: u32) -> Result<Delivered> {
    let (length, rate) = (
        payload.to_string(),
        match offer {
            Offer::Everything => "0".to_owned(),
            Offer::Kpps(kpps) => format!("{:.0}", kpps * 1e3 * 8.0 * f64::from(payload)),
        },
    );
    let result = iperf(link, &["-u", "-l", &length, "-b", &rate], seconds)?;
    let kpps = |side: &str| -> Result<f64> {
        let packets = number(&result, &format!("/end/{side}/bytes"))? / f64::from(payload);
        Ok(packets / number(&result, &format!("/end/{side}/seconds"))? / 1e3)
    };
    Ok(Delivered { sent: kpps("sum_sent")?, received: kpps("sum_received")? })
}

/// The latency while nothing else goes through.
pub(super) fn ping(link: &Link) -> Result<Latency> {
    let count = PINGS.to_string();
    let pings = link
        .left
        .command("ping")
        .args(["-n", "-W", "1", "-i", PING_INTERVAL, "-c", &count, link.target])
        .try_run_timeout(Duration::from_secs(30))?;
    let mut trips = round_trips(&pings.stdout);
    ensure!(!trips.is_empty(), "no ping was answered: {}{}", pings.stdout, pings.stderr);
    let lost = PINGS.saturating_sub(trips.len());
    trips.extend(std::iter::repeat_n(LOST_PING, lost));
    let samples = Samples::new(trips);
    Ok(Latency { p50: samples.percentile(50.0) * 1e3, p99: samples.percentile(99.0) * 1e3 })
}

/// The latency beside one TCP stream that takes all it gets.
pub(super) fn ping_beside_tcp(link: &Link) -> Result<Latency> {
    let _server = server(link)?;
    // Longer than all pings take; it ends with the value.
    let client = client(link, &["-C", "cubic"], 60).spawn("iperf3-client")?;
    let sent = || bytes_sent(client.pid(), link.device).unwrap_or_default();
    let before = sent();
    probe::until("the TCP stream to go at full speed", PATIENCE, || {
        (sent() >= before + WARM || !client.is_running()).then_some(())
    })?;
    let latency = ping(link)?;
    ensure!(client.is_running(), "the TCP stream ended early: {}", client.stdout()?);
    Ok(latency)
}

/// Runs one test of iperf3 through the link and returns what the client reports.
fn iperf(link: &Link, args: &[&str], seconds: u32) -> Result<Value> {
    let mut problem = String::new();
    for _ in 0..TRIES {
        match try_iperf(link, args, seconds) {
            Ok(result) => return Ok(result),
            Err(error) => problem = format!("{error:#}"),
        }
    }
    bail!("iperf3 {} failed {TRIES} times: {problem}", args.join(" "))
}

fn try_iperf(link: &Link, args: &[&str], seconds: u32) -> Result<Value> {
    let _server = server(link)?;
    let patience = Duration::from_secs(seconds.into()) + SLACK;
    let output = client(link, args, seconds).try_run_timeout(patience)?;
    let result: Value =
        serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {}", output.stderr))?;
    match result.get("error").and_then(Value::as_str) {
        Some(error) => bail!("{error}"),
        None => Ok(result),
    }
}

/// A server for one test: one that is left over from a test that failed cannot disturb the next.
fn server(link: &Link) -> Result<Process> {
    let args = ["-s", "-1", "--forceflush", "-B", link.target];
    let server = link.right.command("iperf3").args(args).spawn("iperf3-server")?;
    server.wait_for_log("Server listening", PATIENCE)?;
    Ok(server)
}

fn client(link: &Link, args: &[&str], seconds: u32) -> HostCommand {
    let seconds = seconds.to_string();
    let always = ["-c", link.target, "--json", "--connect-timeout", "3000", "-t", &seconds];
    link.left.command("iperf3").args(always).args(args)
}

fn number(result: &Value, pointer: &str) -> Result<f64> {
    result.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("iperf3 tells no {pointer}"))
}

/// The times of all answers, out of lines such as `64 bytes from 192.0.2.2: icmp_seq=1 ttl=64 time=0.045 ms`.
fn round_trips(text: &str) -> Vec<Duration> {
    let of_line = |line: &str| {
        let (_, time) = line.split_once(" time=")?;
        let millis: f64 = time.strip_suffix(" ms")?.parse().ok()?;
        Duration::try_from_secs_f64(millis / 1e3).ok()
    };
    text.lines().filter_map(of_line).collect()
}

/// What a device in a process's network has sent.
fn bytes_sent(pid: u32, device: &str) -> Option<u64> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_count_as_round_trips() {
        let text = "PING 192.0.2.2 (192.0.2.2) 56(84) bytes of data.\n\
            64 bytes from 192.0.2.2: icmp_seq=1 ttl=64 time=0.045 ms\n\
            64 bytes from 192.0.2.2: icmp_seq=2 ttl=64 time=12 ms\n\
            From 192.0.2.1 icmp_seq=3 Destination Host Unreachable\n\
            2 packets transmitted, 2 received, 0% packet loss, time 999ms\n";
        assert_eq!(round_trips(text), [Duration::from_micros(45), Duration::from_millis(12)]);
    }

    #[test]
    fn loss_is_what_was_sent_and_not_received() {
        let loss = |received| Delivered { sent: 200.0, received }.loss_percent();
        assert!((loss(198.0) - 1.0).abs() < 1e-9);
        // Both ends count for slightly different times.
        assert!(loss(200.1) < f64::EPSILON);
    }
}
