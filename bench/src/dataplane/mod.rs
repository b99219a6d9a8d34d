//! `./x bench dataplane`: our user-space WireGuard beside others, each between two network namespaces.
//!
//! Only one subject runs at a time. A round sets each of them up, measures it and takes it down again, and the report has
//! the medians of all rounds, so that what disturbs the machine for a while disturbs all of them alike.
//!
//! | module | holds |
//! | --- | --- |
//! | `subject` | what is compared, and where its program is |
//! | `link` | two hosts, a cable, and a subject's tunnel over it |
//! | `traffic` | iperf3 and ping |
//! | `cpu` | CPU time and memory |
//! | `aead` | the cipher by itself |
//! | `measure` | one round of one subject |
//! | `metric` | what is measured, and all samples |
//! | `goals` | what is to be reached |
//! | `report`, `plot` | tables, JSON, SVG |

mod aead;
mod goals;
mod link;
mod measure;
mod metric;
mod plot;
mod report;
mod subject;
mod traffic;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use serde::Serialize;

use self::goals::{Goal, goals};
use self::metric::Results;
use self::subject::Subject;
use crate::default_json;
use crate::process::busy_cores;

/// For how long the machine is looked at before each subject.
const LOOK: Duration = Duration::from_millis(300);
/// Busy cores beside the benchmark above which its figures are not worth much.
const DISTURBED: f64 = 0.2;

/// What to measure, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each run of traffic.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Do not search for the highest UDP rate with a loss below 1 %.
    #[arg(long)]
    quick: bool,
    /// Measure only these.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME[,NAME]", hide_possible_values = true)]
    only: Vec<Subject>,
    /// List what can be measured here, and measure nothing.
    #[arg(long)]
    list: bool,
    /// Where the figures are written as JSON; the plot goes beside it [default: target/bench/dataplane.json].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A subject that could not be measured, and why.
#[derive(Debug, Serialize)]
struct Unmeasured {
    subject: Subject,
    /// The round in which it failed; None if its program is not here, which is no failure.
    round: Option<u32>,
    why: String,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        return list();
    }
    netns_harness::require_root()?;
    for program in ["iperf3", "ping", "ip"] {
        if subject::find(program).is_none() {
            bail!("{program} is missing\n  hint: ./x bench dataplane installs what it needs");
        }
    }
    let (subjects, mut unmeasured) = chosen(&args.only);
    let mut results = Results::default();
    let mut disturbed = 0;
    for round in 1..=args.rounds {
        for subject in &subjects {
            let name = subject.name();
            eprintln!("round {round} of {}: {name}", args.rounds);
            disturbed += u32::from(is_disturbed()?);
            match measure::round(*subject, args) {
                Ok(samples) => results.add(*subject, samples),
                Err(error) => {
                    eprintln!("    failed: {error:#}");
                    unmeasured.push(Unmeasured {
                        subject: *subject,
                        round: Some(round),
                        why: format!("{error:#}"),
                    });
                }
            }
        }
    }
    report(args, &results, &unmeasured, disturbed)
}

/// What is to be measured, and what of it is not here.
fn chosen(only: &[Subject]) -> (Vec<Subject>, Vec<Unmeasured>) {
    let (mut subjects, mut unmeasured) = (Vec::new(), Vec::new());
    for subject in Subject::value_variants() {
        if !only.is_empty() && !only.contains(subject) {
            continue;
        }
        match subject.missing() {
            None => subjects.push(*subject),
            Some(program) => {
                let why = format!("{program} is missing");
                eprintln!("skipping {}: {why}", subject.name());
                unmeasured.push(Unmeasured { subject: *subject, round: None, why });
            }
        }
    }
    (subjects, unmeasured)
}

fn list() -> Result<()> {
    for subject in Subject::value_variants() {
        let help = subject.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        let here = match subject.missing() {
            None => String::new(),
            Some(program) => format!("  ({program} is missing)"),
        };
        println!("{:<14} {}{here}", subject.name(), help.unwrap_or_default());
    }
    Ok(())
}

/// Whether something else works on this machine just before a measurement.
fn is_disturbed() -> Result<bool> {
    let busy = busy_cores(LOOK)?;
    if busy > DISTURBED {
        eprintln!(
            "    warning: something else keeps {busy:.1} cores busy; the figures will be worse than they are"
        );
    }
    Ok(busy > DISTURBED)
}

/// Prints and writes everything, and fails if a subject that is here could not be measured.
fn report(args: &Args, results: &Results, unmeasured: &[Unmeasured], disturbed: u32) -> Result<()> {
    let goals = goals(results);
    print!("{}\ngoals\n{}", report::tables(results), report::goal_lines(&goals));
    for Unmeasured { subject, round, why } in unmeasured {
        let when = round.map(|round| format!(" in round {round}")).unwrap_or_default();
        println!("not measured: {}{when}: {why}", subject.name());
    }
    if disturbed > 0 {
        println!(
            "before {disturbed} of the measurements something else kept the machine busy: measure again"
        );
    }
    let json = args.json.clone().unwrap_or_else(|| default_json("dataplane"));
    let svg = json.with_extension("svg");
    let content = report::to_json(args, results, &goals, unmeasured, disturbed);
    write(&json, &serde_json::to_string_pretty(&content)?)?;
    write(
        &svg,
        &plot::svg(results, &format!("Data planes on one machine, medians of {} rounds", args.rounds)),
    )?;
    let seen = goals.iter().filter_map(|goal| match goal {
        Goal::Seen(figure) => Some(figure),
        Goal::Unknown(_) => None,
    });
    let (measured, missed) = (seen.clone().count(), seen.filter(|figure| !figure.reached()).count());
    let unknown = goals.len() - measured;
    println!("\n{} goals, {missed} not reached, {unknown} not measured", goals.len());
    println!("written to {} and {}", json.display(), svg.display());
    match unmeasured.iter().filter(|one| one.round.is_some()).count() {
        0 => Ok(()),
        failed => bail!("{failed} measurements failed"),
    }
}

fn write(path: &Path, content: &str) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}
