//! What the data plane has to reach.

use super::metric::{Metric, Results};
use super::subject::Subject;
use crate::figures::{Bound, Figure};

/// A goal and how it stands.
pub(super) enum Goal {
    /// It was measured.
    Seen(Figure),
    /// Ours, or what it is compared to, was not measured.
    Unknown(String),
}

const BORINGTUN: (&str, &[Subject]) = ("boringtun-cli", &Subject::BORINGTUN);
const GOTATUN: (&str, &[Subject]) = ("gotatun-cli", &[Subject::Gotatun]);
const WIREGUARD_GO: (&str, &[Subject]) = ("wireguard-go", &[Subject::WireguardGo]);
const VETH: (&str, &[Subject]) = ("bare veth", &[Subject::Veth]);
const PEERS: (&str, &[Subject]) = ("best peer", &Subject::PEERS);

/// All goals, in the order of the report.
pub(super) fn goals(results: &Results) -> Vec<Goal> {
    vec![
        times(results, Metric::Tcp1, BORINGTUN, 6.0),
        times(results, Metric::Tcp1, GOTATUN, 5.5),
        times(results, Metric::Tcp1, WIREGUARD_GO, 9.0),
        // 0.8 of the 8 Gbit/s that this set-up is estimated to allow at most on two cores.
        absolute(results, Metric::Tcp1, Bound::AtLeast(6.4)),
        absolute(results, Metric::TunnelPerGb, Bound::AtMost(2.2)),
        times(results, Metric::TunnelPerGb, BORINGTUN, 5.0),
        times(results, Metric::Udp64, PEERS, 1.6),
        times(results, Metric::Udp64, VETH, 0.5),
        times(results, Metric::Udp1400, PEERS, 2.0),
        no_worse(results, Metric::PingP50),
        no_worse(results, Metric::PingP99),
        absolute(results, Metric::LoadedPingP99, Bound::AtMost(2_000.0)),
        absolute(results, Metric::Memory, Bound::AtMost(24.0)),
    ]
}

/// By what factor ours is to be better than the best of some others.
fn times(results: &Results, metric: Metric, (who, others): (&str, &[Subject]), at_least: f64) -> Goal {
    let name = format!("{}, against {who}", metric.title());
    let ours = results.median(Subject::Ours, metric);
    match (ours, results.best(others, metric)) {
        (Some(ours), Some((best, theirs))) => {
            let name = if others.len() > 1 { format!("{name} ({})", best.name()) } else { name };
            Goal::Seen(
                Figure::new(name, metric.advantage(ours, theirs), "x").wanted(Bound::AtLeast(at_least)),
            )
        }
        _ => Goal::Unknown(name),
    }
}

/// Ours by itself.
fn absolute(results: &Results, metric: Metric, bound: Bound) -> Goal {
    match results.median(Subject::Ours, metric) {
        Some(seen) => Goal::Seen(Figure::new(metric.title(), seen, metric.unit()).wanted(bound)),
        None => Goal::Unknown(metric.title().to_owned()),
    }
}

/// Ours is to be no more than the best peer's.
fn no_worse(results: &Results, metric: Metric) -> Goal {
    match results.best(&Subject::PEERS, metric) {
        Some((best, theirs)) => {
            let name = format!("{}, no worse than {}", metric.title(), best.name());
            match results.median(Subject::Ours, metric) {
                // To a tenth, as it is shown.
                Some(seen) => Goal::Seen(
                    Figure::new(name, seen, metric.unit())
                        .wanted(Bound::AtMost((theirs * 10.0).round() / 10.0)),
                ),
                None => Goal::Unknown(name),
            }
        }
        None => Goal::Unknown(format!("{}, no worse than the best peer", metric.title())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_the_cost_is_twice_as_good() {
        let mut results = Results::default();
        results.add(Subject::Ours, [(Metric::MachinePerGb, 2.0)]);
        results.add(Subject::Boringtun1, [(Metric::MachinePerGb, 9.0)]);
        results.add(Subject::Boringtun4, [(Metric::MachinePerGb, 11.0)]);
        let Goal::Seen(figure) = times(&results, Metric::MachinePerGb, BORINGTUN, 5.0) else {
            unreachable!("both are there");
        };
        assert!((figure.seen - 4.5).abs() < 1e-9);
        assert!(!figure.reached());
    }

    #[test]
    fn what_was_not_measured_is_not_reached() {
        assert!(goals(&Results::default()).iter().all(|goal| matches!(goal, Goal::Unknown(_))));
    }
}
