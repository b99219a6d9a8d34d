//! One round of one subject: every measurement, in an order in which none disturbs the next.

use anyhow::{Context as _, Result};

use super::link::Link;
use super::metric::{Metric, Sample};
use super::subject::Subject;
use super::traffic::{Direction, Moved, Offer, ping, ping_beside_tcp, tcp, udp};
use super::{Args, aead};
use crate::process::{Usage, Used, resident};

/// UDP payload of the small packets, in bytes.
const SMALL: u32 = 64;
/// UDP payload of the large packets: with 28 bytes of UDP and IPv4 they are packets of 1400. A payload of 1400 would be cut into
/// two fragments in a tunnel of MTU 1420, which measures something else.
const LARGE: u32 = 1372;
/// Steps of the search for the highest rate almost without loss.
const STEPS: u32 = 6;
/// Seconds of each of them.
const STEP_SECONDS: u32 = 1;
/// Where the search begins, in multiples of what is received under overload: some collapse when they are overloaded and deliver
/// twice as much when they are not. The steps narrow that down to a twentieth of what is received.
const HEADROOM: f64 = 3.0;
/// Loss that counts as none, of 100 packets.
const CLEAN_PERCENT: f64 = 1.0;

/// Sets the subject up, measures all of it and takes it down.
pub(super) fn round(subject: Subject, args: &Args) -> Result<Vec<Sample>> {
    if subject == Subject::Aead {
        let mut samples = Vec::new();
        note(&mut samples, aead::measure()?);
        return Ok(samples);
    }
    let link = Link::up(subject)?;
    let mut samples = Vec::new();
    let idle = ping(&link).context("idle ping")?;
    note(&mut samples, [(Metric::PingP50, idle.p50), (Metric::PingP99, idle.p99)]);
    streams(&link, args.seconds, &mut samples)?;
    let loaded = ping_beside_tcp(&link).context("ping beside TCP")?;
    note(&mut samples, [(Metric::LoadedPingP50, loaded.p50), (Metric::LoadedPingP99, loaded.p99)]);
    packets(&link, LARGE, (Metric::Udp1400, Metric::Udp1400Clean), args, &mut samples)?;
    packets(&link, SMALL, (Metric::Udp64, Metric::Udp64Clean), args, &mut samples)?;
    let memory = link.pids().into_iter().map(resident).collect::<Result<Vec<f64>>>()?;
    note(&mut samples, memory.into_iter().reduce(f64::max).map(|larger| (Metric::Memory, larger)));
    link.passed()?;
    Ok(samples)
}

/// Keeps samples and shows them as they come.
fn note(samples: &mut Vec<Sample>, new: impl IntoIterator<Item = Sample>) {
    for (metric, value) in new {
        eprintln!("    {:<30} {value:>9.2} {}", metric.title(), metric.unit());
        samples.push((metric, value));
    }
}

/// TCP both ways, and what one stream costs.
fn streams(link: &Link, seconds: u32, samples: &mut Vec<Sample>) -> Result<()> {
    let (forward, forward_used) = costed(link, Direction::Forward, seconds)?;
    let (reverse, reverse_used) = costed(link, Direction::Reverse, seconds)?;
    note(samples, [(Metric::Tcp1, forward.gbit_per_second), (Metric::Tcp1Reverse, reverse.gbit_per_second)]);
    let gigabytes = forward.gigabytes + reverse.gigabytes;
    let machine = (forward_used.machine + reverse_used.machine) / gigabytes;
    let tunnel = (forward_used.tunnel + reverse_used.tunnel) / gigabytes;
    note(samples, [(Metric::MachinePerGb, machine)]);
    if !link.pids().is_empty() {
        note(samples, [(Metric::TunnelPerGb, tunnel)]);
    }
    for (metric, direction) in [(Metric::Tcp4, Direction::Forward), (Metric::Tcp4Reverse, Direction::Reverse)]
    {
        let moved = tcp(link, 4, direction, seconds).context(metric.title())?;
        note(samples, [(metric, moved.gbit_per_second)]);
    }
    Ok(())
}

fn costed(link: &Link, direction: Direction, seconds: u32) -> Result<(Moved, Used)> {
    let pids = link.pids();
    let before = Usage::now(&pids)?;
    let moved = tcp(link, 1, direction, seconds).context("TCP, 1 stream")?;
    Ok((moved, Usage::now(&pids)?.since(before)))
}

/// What arrives of UDP under overload and, unless it is to be quick, the most that arrives almost without loss.
fn packets(
    link: &Link,
    payload: u32,
    (overload, clean): (Metric, Metric),
    args: &Args,
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let flood = udp(link, payload, Offer::Everything, args.seconds).context(overload.title())?;
    note(samples, [(overload, flood.received)]);
    if !args.quick {
        let most = f64::min(flood.sent, HEADROOM * flood.received);
        let rate = highest(most, |kpps| {
            let seen = udp(link, payload, Offer::Kpps(kpps), STEP_SECONDS).context(clean.title())?;
            Ok((seen.loss_percent() < CLEAN_PERCENT).then_some(seen.received))
        })?;
        note(samples, [(clean, rate)]);
    }
    Ok(())
}

/// The highest rate up to `most` that passes, by halving; `pass` tells what arrived at an offered rate, or None if too much was
/// lost. A sender that cannot offer what it was told passes with less, so what arrived counts and not what was asked for.
fn highest(most: f64, mut pass: impl FnMut(f64) -> Result<Option<f64>>) -> Result<f64> {
    let (mut passed, mut failed, mut arrived) = (0.0, most, 0.0);
    for _ in 0..STEPS {
        let middle = f64::midpoint(passed, failed);
        match pass(middle)? {
            Some(rate) => {
                passed = middle;
                arrived = f64::max(arrived, rate);
            }
            None => failed = middle,
        }
    }
    Ok(arrived)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_ends_just_below_the_limit() -> Result<()> {
        let found = highest(200.0, |kpps| Ok((kpps <= 70.0).then_some(kpps)))?;
        assert!((66.0..=70.0).contains(&found), "{found}");
        assert!(highest(200.0, |_| Ok(None))?.abs() < f64::EPSILON);
        Ok(())
    }
}
