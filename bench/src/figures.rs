//! Samples, percentiles, and how a figure compares to the one that was to be reached.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// A figure and its bound.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) name: String,
    /// What was seen.
    pub(crate) seen: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// What was to be reached, where there is such a figure.
    pub(crate) wanted: Option<Bound>,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, seen: f64, unit: &'static str) -> Self {
        Self { name: name.into(), seen, unit, wanted: None }
    }

    pub(crate) fn wanted(mut self, bound: Bound) -> Self {
        self.wanted = Some(bound);
        self
    }

    /// Whether it was reached; what has no bound is.
    pub(crate) fn reached(&self) -> bool {
        match self.wanted {
            None => true,
            Some(Bound::AtMost(most)) => self.seen <= most,
            Some(Bound::AtLeast(least)) => self.seen >= least,
        }
    }

    /// One line of a report.
    pub(crate) fn line(&self) -> String {
        let wanted = match self.wanted {
            None => String::new(),
            Some(Bound::AtMost(most)) => format!("at most {most}"),
            Some(Bound::AtLeast(least)) => format!("at least {least}"),
        };
        let mark = if self.reached() { "" } else { "  NOT REACHED" };
        format!("   {:<66} {:>10.1} {:<6} {wanted}{mark}", self.name, self.seen, self.unit)
    }
}

/// Prints figures and writes them as JSON.
pub(crate) fn report(figures: &[Figure], path: &Path) -> Result<()> {
    figures.iter().for_each(|figure| println!("{}", figure.line()));
    save(figures, path)
}

/// Writes figures as JSON, and says where and how many were not reached.
pub(crate) fn save(figures: &[Figure], path: &Path) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, serde_json::to_string_pretty(figures)?)
        .with_context(|| format!("writing {}", path.display()))?;
    let missed = figures.iter().filter(|figure| !figure.reached()).count();
    println!("\n{} figures, {missed} not reached; written to {}", figures.len(), path.display());
    Ok(())
}

/// Durations, sorted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn new(mut all: Vec<Duration>) -> Self {
        all.sort();
        Self(all)
    }

    /// The smallest sample that at least `percent` of all do not exceed, in milliseconds (nearest rank).
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        let sample = self.0.get(rank.saturating_sub(1)).or(self.0.last());
        sample.map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_sample_that_was_seen() {
        let samples = Samples::new((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!((samples.percentile(50.0), samples.percentile(99.0)), (50.0, 99.0));
        assert!(Samples::default().percentile(50.0).is_nan());
    }
}
