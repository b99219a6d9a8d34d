//! The tables, the goals, and the same as JSON.

use serde_json::{Value, json};

use super::goals::Goal;
use super::metric::{Metric, Results};
use super::subject::Subject;
use super::{Args, Unmeasured};

/// Width of the names of the metrics.
const NAMES: usize = 36;

/// Medians, and by what factor ours is better than each peer.
pub(super) fn tables(results: &Results) -> String {
    let paths: Vec<Subject> = results.subjects().filter(|subject| *subject != Subject::Aead).collect();
    let mut text = String::new();
    if !paths.is_empty() {
        text += "\nmedians (1400 B are whole packets, 64 B is the payload of UDP)\n";
        text += &table(&paths, |subject, metric| results.median(subject, metric).map(figure));
    }
    let others: Vec<Subject> = paths.iter().copied().filter(|subject| *subject != Subject::Ours).collect();
    if paths.contains(&Subject::Ours) && !others.is_empty() {
        text += "\nznet-wg to each: above 1 it is better\n";
        text += &table(&others, |subject, metric| {
            let (ours, theirs) = (results.median(Subject::Ours, metric)?, results.median(subject, metric)?);
            Some(format!("{}x", figure(metric.advantage(ours, theirs))))
        });
    }
    let alone = Metric::OF_AEAD.into_iter().filter_map(|metric| {
        let median = results.median(Subject::Aead, metric)?;
        Some(format!("{:<NAMES$}{:>12}\n", label(metric), figure(median)))
    });
    let alone: String = alone.collect();
    if !alone.is_empty() {
        text += "\nChaCha20-Poly1305 of ring, one core\n";
        text += &alone;
    }
    text
}

fn table(subjects: &[Subject], cell: impl Fn(Subject, Metric) -> Option<String>) -> String {
    let names: Vec<String> = subjects.iter().map(|subject| subject.name()).collect();
    let width = |name: &str| name.len().max(8) + 2;
    let mut text = " ".repeat(NAMES);
    for name in &names {
        text += &format!("{name:>width$}", width = width(name));
    }
    text.push('\n');
    for metric in Metric::OF_PATHS {
        let cells: Vec<Option<String>> = subjects.iter().map(|subject| cell(*subject, metric)).collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        text += &format!("{:<NAMES$}", label(metric));
        for (name, cell) in names.iter().zip(cells) {
            text += &format!("{:>width$}", cell.as_deref().unwrap_or("-"), width = width(name));
        }
        text.push('\n');
    }
    text
}

fn label(metric: Metric) -> String {
    format!("{} [{}]", metric.title(), metric.unit())
}

/// Three digits that count.
pub(super) fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// One line for each goal.
pub(super) fn goal_lines(goals: &[Goal]) -> String {
    let line = |goal: &Goal| match goal {
        Goal::Seen(figure) if figure.reached() => format!("{}  reached\n", figure.line()),
        Goal::Seen(figure) => format!("{}\n", figure.line()),
        Goal::Unknown(name) => format!("   {name:<66}          - not measured\n"),
    };
    goals.iter().map(line).collect()
}

/// Everything, for other programs: medians and all samples.
pub(super) fn to_json(
    args: &Args,
    results: &Results,
    goals: &[Goal],
    unmeasured: &[Unmeasured],
    disturbed: u32,
) -> Value {
    let metrics = Metric::OF_PATHS.into_iter().chain(Metric::OF_AEAD);
    let of_subject = |subject: Subject| -> Vec<Value> {
        let of_metric = |metric: Metric| {
            let median = results.median(subject, metric)?;
            let samples = results.samples(subject, metric);
            Some(json!({"metric": metric, "unit": metric.unit(), "median": median, "samples": samples}))
        };
        metrics.clone().filter_map(of_metric).collect()
    };
    let subjects: serde_json::Map<String, Value> =
        results.subjects().map(|subject| (subject.name(), of_subject(subject).into())).collect();
    let goals: Vec<Value> = goals
        .iter()
        .map(|goal| match goal {
            Goal::Seen(figure) => json!({"figure": figure, "reached": figure.reached()}),
            Goal::Unknown(name) => json!({"name": name, "reached": null}),
        })
        .collect();
    json!({
        "machine": machine(),
        "rounds": args.rounds,
        "seconds": args.seconds,
        "subjects": subjects,
        "goals": goals,
        "not_measured": unmeasured,
        "disturbed": disturbed,
    })
}

/// What it ran on: figures of different machines do not compare.
fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "processor": model.map(|(_, name)| name),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_compared_to_each_that_was_measured() {
        let mut results = Results::default();
        results.add(Subject::Ours, [(Metric::Tcp1, 6.0), (Metric::Memory, 4.0)]);
        results.add(Subject::Boringtun1, [(Metric::Tcp1, 1.0), (Metric::Memory, 3.0)]);
        results.add(Subject::Veth, [(Metric::Tcp1, 45.0)]);
        let text = tables(&results);
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.rsplit(' ').filter(|word| !word.is_empty()).collect()).collect();
        assert!(rows.iter().any(|row| row.starts_with(&["45.0", "1.00", "6.00"])), "{text}");
        assert!(rows.iter().any(|row| row.starts_with(&["0.13x", "6.00x"])), "{text}");
        assert!(rows.iter().any(|row| row.starts_with(&["-", "0.75x"])), "{text}");
    }
}
