//! What is measured, in which unit, and all samples of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::subject::Subject;

/// What is measured of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    Tcp1,
    Tcp1Reverse,
    Tcp4,
    Tcp4Reverse,
    MachinePerGb,
    TunnelPerGb,
    Udp64,
    Udp64Clean,
    Udp1400,
    Udp1400Clean,
    PingP50,
    PingP99,
    LoadedPingP50,
    LoadedPingP99,
    Memory,
    Seal1420,
    Open1420,
    Seal64,
    Open64,
}

impl Metric {
    /// All that a path between two hosts has, in the order of the report.
    pub(super) const OF_PATHS: [Self; 15] = [
        Self::Tcp1,
        Self::Tcp1Reverse,
        Self::Tcp4,
        Self::Tcp4Reverse,
        Self::MachinePerGb,
        Self::TunnelPerGb,
        Self::Udp64,
        Self::Udp64Clean,
        Self::Udp1400,
        Self::Udp1400Clean,
        Self::PingP50,
        Self::PingP99,
        Self::LoadedPingP50,
        Self::LoadedPingP99,
        Self::Memory,
    ];

    /// All that the AEAD has by itself.
    pub(super) const OF_AEAD: [Self; 4] = [Self::Seal1420, Self::Open1420, Self::Seal64, Self::Open64];

    /// Its name for people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP, 1 stream",
            Self::Tcp1Reverse => "TCP, 1 stream, reverse",
            Self::Tcp4 => "TCP, 4 streams",
            Self::Tcp4Reverse => "TCP, 4 streams, reverse",
            Self::MachinePerGb => "CPU per GB, whole machine",
            Self::TunnelPerGb => "CPU per GB, tunnel processes",
            Self::Udp64 => "UDP 64 B, received",
            Self::Udp64Clean => "UDP 64 B, loss below 1 %",
            Self::Udp1400 => "UDP 1400 B, received",
            Self::Udp1400Clean => "UDP 1400 B, loss below 1 %",
            Self::PingP50 => "ping idle, p50",
            Self::PingP99 => "ping idle, p99",
            Self::LoadedPingP50 => "ping beside TCP, p50",
            Self::LoadedPingP99 => "ping beside TCP, p99",
            Self::Memory => "memory after the load",
            Self::Seal1420 => "seal, 1420 B",
            Self::Open1420 => "open, 1420 B",
            Self::Seal64 => "seal, 64 B",
            Self::Open64 => "open, 64 B",
        }
    }

    /// Its unit; a GB is 10^9 bytes.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Tcp1 | Self::Tcp1Reverse | Self::Tcp4 | Self::Tcp4Reverse => "Gbit/s",
            Self::MachinePerGb | Self::TunnelPerGb => "s/GB",
            Self::Udp64 | Self::Udp64Clean | Self::Udp1400 | Self::Udp1400Clean => "kpps",
            Self::PingP50 | Self::PingP99 | Self::LoadedPingP50 | Self::LoadedPingP99 => "µs",
            Self::Memory => "MiB",
            Self::Seal1420 | Self::Open1420 => "Gbit/s",
            Self::Seal64 | Self::Open64 => "Mpps",
        }
    }

    /// Whether less of it is better.
    pub(super) fn less_is_better(self) -> bool {
        matches!(self.unit(), "s/GB" | "µs" | "MiB")
    }

    /// By what factor `ours` is better than `theirs`: above 1 is better, whichever way the metric counts.
    pub(super) fn advantage(self, ours: f64, theirs: f64) -> f64 {
        if self.less_is_better() { theirs / ours } else { ours / theirs }
    }
}

/// One value of one metric.
pub(super) type Sample = (Metric, f64);

/// All samples of all subjects.
#[derive(Debug, Default)]
pub(super) struct Results(BTreeMap<Subject, BTreeMap<Metric, Vec<f64>>>);

impl Results {
    /// Adds what a round gave.
    pub(super) fn add(&mut self, subject: Subject, samples: impl IntoIterator<Item = Sample>) {
        let of_subject = self.0.entry(subject).or_default();
        for (metric, value) in samples {
            of_subject.entry(metric).or_default().push(value);
        }
    }

    /// The samples of a metric, in the order of the rounds.
    pub(super) fn samples(&self, subject: Subject, metric: Metric) -> &[f64] {
        self.0.get(&subject).and_then(|of| of.get(&metric)).map_or(&[], Vec::as_slice)
    }

    /// The median over the rounds, if the metric was measured and is a number.
    pub(super) fn median(&self, subject: Subject, metric: Metric) -> Option<f64> {
        let mut sorted: Vec<f64> = self.samples(subject, metric).to_vec();
        sorted.retain(|value| value.is_finite());
        sorted.sort_by(f64::total_cmp);
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get(sorted.len().saturating_sub(1) / 2)?;
        Some(f64::midpoint(*lower, *upper))
    }

    /// Which of these subjects is best in a metric, and its median.
    pub(super) fn best(&self, of: &[Subject], metric: Metric) -> Option<(Subject, f64)> {
        let medians = of.iter().filter_map(|subject| Some((*subject, self.median(*subject, metric)?)));
        let by_value = |a: &(Subject, f64), b: &(Subject, f64)| a.1.total_cmp(&b.1);
        if metric.less_is_better() { medians.min_by(by_value) } else { medians.max_by(by_value) }
    }

    /// The subjects of which anything was measured.
    pub(super) fn subjects(&self) -> impl Iterator<Item = Subject> {
        self.0.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_follows_the_way_the_metric_counts() {
        let mut results = Results::default();
        for value in [1.0, 9.0, 2.0] {
            results.add(Subject::Boringtun1, [(Metric::Tcp1, value), (Metric::PingP50, value)]);
        }
        results.add(Subject::Boringtun2, [(Metric::Tcp1, 3.0), (Metric::PingP50, 3.0)]);
        let both = [Subject::Boringtun1, Subject::Boringtun2];
        assert_eq!(results.best(&both, Metric::Tcp1), Some((Subject::Boringtun2, 3.0)));
        assert_eq!(results.best(&both, Metric::PingP50), Some((Subject::Boringtun1, 2.0)));
        assert_eq!(results.best(&both, Metric::Memory), None);
        assert_eq!(results.best(&[], Metric::Tcp1), None);
    }

    #[test]
    fn an_advantage_above_one_is_better() {
        assert!(Metric::Tcp1.advantage(6.0, 1.0) > 1.0);
        assert!(Metric::Memory.advantage(6.0, 1.0) < 1.0);
    }
}
