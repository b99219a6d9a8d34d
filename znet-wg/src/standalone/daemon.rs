//! Becoming a daemon whose starter waits until it is ready.
//!
//! `znet-wg wg0 && wg setconf wg0 wg0.conf` must find a device, so the command may not return before there is
//! one, and must tell when there will be none. A pipe tells: the daemon writes one byte when it is ready, or
//! the text of an error, and its end tells that it died. The crates at hand (`daemonize`, `fork`) detach, but
//! leave telling to their user, and their parents leave before the device is made; so this is done here, on
//! the system calls of `nix`.

use std::fs::{File, OpenOptions};
use std::io::{Error, Read as _, Result, Write as _};

use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

/// What the daemon writes when it is ready. No text of an error begins so.
const READY: u8 = 0;
/// Longest text of an error that is passed on, in bytes.
const MAX_REPORT: u64 = 4_096;

/// The daemon's duty to tell its starter how it went. Dropping it tells that the daemon failed without a
/// reason.
#[derive(Debug)]
#[must_use = "the command that started the daemon waits for this"]
pub struct Readiness {
    /// `None` in a process that did not detach.
    starter: Option<Starter>,
}

#[derive(Debug)]
struct Starter {
    pipe: File,
    /// Opened before privileges are given up.
    null: File,
}

impl Readiness {
    /// For a process that stays in the foreground: nobody waits.
    pub fn foreground() -> Self {
        Self { starter: None }
    }

    /// Lets the starter end with success. Standard error goes nowhere from now on; until now it was the
    /// starter's, so that not even a panic is lost.
    pub fn ready(self) {
        let Some(Starter { mut pipe, null }) = self.starter else { return };
        // Neither can matter: the starter may be gone, and there would be nobody to tell.
        let _ = dup2_stderr(&null);
        let _ = pipe.write_all(&[READY]);
    }

    /// Lets the starter print this and end with failure. In the foreground it is printed here.
    pub fn failed(self, error: &str) {
        match self.starter {
            Some(mut starter) => {
                let _ = starter.pipe.write_all(error.as_bytes());
            }
            None => eprintln!("error: {error}"),
        }
    }
}

/// Detaches from the terminal and the caller. It returns in the daemon alone; the process that called stays
/// until the daemon tells it how it went, and ends. Call it before the first thread is made.
///
/// Standard input and output go nowhere, and the working directory is `/`.
///
/// # Errors
/// The operating system's, or there are threads already: the caller goes on as it was.
pub fn detach() -> Result<Readiness> {
    only_thread()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let (reports, pipe) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread, as was checked just now, and only this thread could make another.
    // So no lock is held by a thread that the child lacks.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(pipe);
            // It ends as soon as it has made the daemon, and not every container has an init that would
            // collect it.
            let _ = waitpid(child, None);
            std::process::exit(wait_for_report(File::from(reports)));
        }
        ForkResult::Child => drop(reports),
    }
    let readiness = Readiness { starter: Some(Starter { pipe: pipe.into(), null }) };
    match leave_session(&readiness) {
        Ok(()) => Ok(readiness),
        Err(error) => {
            readiness.failed(&format!("cannot become a daemon: {error}"));
            leave(1)
        }
    }
}

/// In the child: a session of its own, and then a child of it, which can never get a terminal again.
fn leave_session(readiness: &Readiness) -> Result<()> {
    setsid()?;
    // SAFETY: this process was made by `fork` and has one thread.
    if let ForkResult::Parent { .. } = unsafe { fork() }? {
        leave(0);
    }
    chdir("/")?;
    if let Some(Starter { null, .. }) = &readiness.starter {
        dup2_stdin(null)?;
        dup2_stdout(null)?;
    }
    Ok(())
}

/// Ends a process that shares its buffers and exit handlers with its parent: those are the parent's to run.
fn leave(code: i32) -> ! {
    // SAFETY: `_exit` ends the process and touches no memory.
    unsafe { libc::_exit(code) }
}

/// In the starter: the exit code that the daemon's report stands for, after printing it.
fn wait_for_report(reports: File) -> i32 {
    let mut report = Vec::new();
    let read = reports.take(MAX_REPORT).read_to_end(&mut report);
    let problem = match (read, report.as_slice()) {
        (Err(error), _) => format!("cannot tell whether the daemon is ready: {error}"),
        (Ok(_), [READY, ..]) => return 0,
        (Ok(_), []) => "the daemon ended before it was ready".to_owned(),
        (Ok(_), text) => String::from_utf8_lossy(text).into_owned(),
    };
    eprintln!("error: {problem}");
    1
}

fn only_thread() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| {
        Error::new(error.kind(), format!("/proc/self/status tells no number of threads ({error})"))
    })?;
    match threads(&status) {
        Some(1) => Ok(()),
        _ => Err(Error::other("a process with several threads cannot become a daemon")),
    }
}

fn threads(status: &str) -> Option<usize> {
    status.lines().find_map(|line| line.strip_prefix("Threads:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pair() -> (File, Readiness) {
        let (reports, pipe) = pipe2(OFlag::O_CLOEXEC).unwrap();
        // A test keeps its standard error: only `failed` may be called.
        let starter = Starter { pipe: pipe.into(), null: File::open("/dev/null").unwrap() };
        (reports.into(), Readiness { starter: Some(starter) })
    }

    #[test]
    fn a_failure_and_a_death_end_the_starter_with_failure() {
        let (reports, readiness) = pair();
        readiness.failed("no such device");
        assert_eq!(wait_for_report(reports), 1);
        let (reports, readiness) = pair();
        drop(readiness);
        assert_eq!(wait_for_report(reports), 1);
    }

    #[test]
    fn a_ready_daemon_ends_the_starter_with_success() {
        let (reports, mut readiness) = pair();
        readiness.starter.as_mut().unwrap().pipe.write_all(&[READY]).unwrap();
        // The daemon lives on with the pipe open in nobody's hands.
        drop(readiness);
        assert_eq!(wait_for_report(reports), 0);
    }

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // The harness runs each test on a thread of its own.
        assert!(detach().is_err());
        assert_eq!(threads("Name:\tx\nThreads:\t12\n"), Some(12));
        assert_eq!(threads("Name:\tx\n"), None);
    }
}
