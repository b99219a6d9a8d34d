//! The thread that starts all processes.
//!
//! A child dies with the thread that started it (`PR_SET_PDEATHSIG` means threads), and tests come and go on threads; so
//! one thread that lives as long as the process starts them all.

use std::io;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};

struct Job {
    command: Command,
    answer: mpsc::Sender<io::Result<Child>>,
}

static JOBS: OnceLock<mpsc::Sender<Job>> = OnceLock::new();

/// Starts a child that lives until it ends, is killed, or this process ends.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let jobs = JOBS.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for mut job in queue {
                // Whoever asked may have given up.
                let _ = job.answer.send(job.command.spawn());
            }
        });
        jobs
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (answer, answered) = mpsc::channel();
    jobs.send(Job { command, answer }).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}
