//! `znet-sim`: runs seeds until one breaks something, or replays one.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use znet_sim::{Failure, Report, run};

/// Simulate a network, its controller, its store and its agents in virtual time, with faults, and check what must hold.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  znet-sim --seeds 1000\n  znet-sim --minutes 3\n  znet-sim --seed 42"
)]
struct Args {
    /// Run that many seeds
    #[arg(long, conflicts_with_all = ["minutes", "seed"])]
    seeds: Option<u64>,
    /// Run seeds for that many minutes
    #[arg(long, conflicts_with = "seed")]
    minutes: Option<f64>,
    /// Replay this seed alone
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed; drawn when it is not given
    #[arg(long, conflicts_with = "seed")]
    first: Option<u64>,
    /// Seeds that run at the same time, each on a thread of its own
    #[arg(long)]
    jobs: Option<usize>,
}

/// What all runs came to.
#[derive(Debug, Default)]
struct Total {
    seeds: u64,
    events: u64,
    applied: u64,
    revisions: u64,
    millis: u64,
    slowest: u64,
    largest: usize,
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.events += report.events;
        self.applied += report.applied;
        self.revisions += report.revisions;
        self.millis += report.millis;
        self.slowest = self.slowest.max(report.converged_in);
        self.largest = self.largest.max(report.nodes);
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // A panic is reported as the failure of its seed.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(seed) = args.seed {
        return match run(seed, None) {
            Ok(report) => {
                println!("seed {seed} broke nothing: {report:?}");
                ExitCode::SUCCESS
            }
            Err(failure) => broken(&failure),
        };
    }
    let until = args.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let seeds = args.seeds.unwrap_or(if until.is_some() { u64::MAX } else { 100 });
    let first = args.first.unwrap_or_else(|| u64::from(rand::random::<u32>()) << 16);
    let jobs = args.jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    println!("seeds from {first} on, {jobs} at a time");
    let begun = Instant::now();
    let (total, failures) = run_all(first, seeds, until, jobs);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} seeds in {seconds:.0} s: {:.0} seeds a minute, {:.0} events a second; {} revisions, {} maps applied, {:.1} h of \
         virtual time, at most {} nodes, whole again within {:.1} s",
        total.seeds,
        total.seeds as f64 * 60.0 / seconds,
        total.events as f64 / seconds,
        total.revisions,
        total.applied,
        total.millis as f64 / 3_600_000.0,
        total.largest,
        total.slowest as f64 / 1000.0,
    );
    match failures.into_iter().min_by_key(|failure| failure.seed) {
        Some(failure) => broken(&failure),
        None => ExitCode::SUCCESS,
    }
}

fn broken(failure: &Failure) -> ExitCode {
    eprintln!("{failure}");
    ExitCode::FAILURE
}

/// Runs seeds on threads until there are no more, time is up, or one breaks something.
fn run_all(first: u64, seeds: u64, until: Option<Instant>, jobs: usize) -> (Total, Vec<Failure>) {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let all = Mutex::new((Total::default(), Vec::new()));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let over = at >= seeds || until.is_some_and(|until| Instant::now() >= until);
            if over || stop.load(Ordering::Relaxed) {
                return;
            }
            let result = run(first.wrapping_add(at), None);
            let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match result {
                Ok(report) => all.0.add(&report),
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    all.1.push(*failure);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
