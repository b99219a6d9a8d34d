//! Running programs on hosts, and processes with their logs.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{LabError, Result, start_failed};
use crate::host::{Container, Host};
use crate::spawner;
use crate::sys::{self, Entry};

/// How long a command may take unless it is said otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How much of an output is shown in an error, in bytes.
const SHOWN: usize = 4_000;
/// How often a log is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What a command that ended printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output; what is not UTF-8 is replaced.
    pub stdout: String,
    /// Its standard error; what is not UTF-8 is replaced.
    pub stderr: String,
}

/// A program to run on a host or in a container.
#[derive(Debug)]
pub struct HostCommand {
    host: Host,
    container: Option<Container>,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    stdin: Option<Vec<u8>>,
}

impl HostCommand {
    pub(crate) fn new(host: &Host, container: Option<&Container>, program: &OsStr) -> Self {
        Self {
            host: host.clone(),
            container: container.cloned(),
            program: program.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            stdin: None,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// A variable of its environment, beside those of this process.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Its working directory; `/` unless it is said.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = dir.as_ref().to_owned();
        self
    }

    /// What it reads on standard input; nothing unless it is said.
    #[must_use]
    pub fn stdin(mut self, text: impl AsRef<[u8]>) -> Self {
        self.stdin = Some(text.as_ref().to_owned());
        self
    }

    /// Runs it to its end, which must be a success within a minute.
    ///
    /// # Errors
    /// [`LabError::Command`] with what it printed, [`LabError::Timeout`], or it cannot be started.
    pub fn run(self) -> Result<Output> {
        self.run_timeout(TIMEOUT)
    }

    /// Runs it to its end, which must be a success within `timeout`.
    ///
    /// # Errors
    /// As [`HostCommand::run`].
    pub fn run_timeout(self, timeout: Duration) -> Result<Output> {
        let (place, command) = (self.place(), self.line());
        let output = self.try_run_timeout(timeout)?;
        if output.status.success() {
            return Ok(output);
        }
        let (stdout, stderr) = (end_of(&output.stdout), end_of(&output.stderr));
        Err(LabError::Command { place, command, status: output.status.to_string(), stdout, stderr })
    }

    /// Runs it to its end, however it ends, within a minute.
    ///
    /// # Errors
    /// [`LabError::Timeout`], or it cannot be started.
    pub fn try_run(self) -> Result<Output> {
        self.try_run_timeout(TIMEOUT)
    }

    /// Runs it to its end, however it ends, within `timeout`.
    ///
    /// # Errors
    /// As [`HostCommand::try_run`].
    pub fn try_run_timeout(self, timeout: Duration) -> Result<Output> {
        // Files and not pipes: a daemon that a command leaves behind would keep a pipe open.
        let file = || tempfile::tempfile().map_err(LabError::io("make a temporary file"));
        let copy = |file: &File| file.try_clone().map_err(LabError::io("copy a descriptor"));
        let (mut stdout, mut stderr) = (file()?, file()?);
        let what = format!("`{}` on {} to end", self.line(), self.place());
        let mut child = self.start(copy(&stdout)?, copy(&stderr)?)?;
        let ended = sys::pidfd(child.id())?;
        let begun = Instant::now();
        let in_time = sys::readable_before(&ended, begun + timeout);
        if !in_time {
            let _ = child.kill();
        }
        let status = child.wait().map_err(LabError::io("wait for a child"))?;
        let (stdout, stderr) = (text_of(&mut stdout)?, text_of(&mut stderr)?);
        if !in_time {
            let last = format!("{}{}", end_of(&stdout), end_of(&stderr));
            return Err(LabError::Timeout { what, waited: begun.elapsed(), last });
        }
        Ok(Output { status, stdout, stderr })
    }

    /// Starts it and lets it run. Its output goes to files of the lab that are named after `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(self, log: &str) -> Result<Process> {
        let dir = self.host.shared().dir.join("logs");
        std::fs::create_dir_all(&dir).map_err(LabError::io(format!("make {}", dir.display())))?;
        let stem = format!("{}-{log}-{}", self.host.name(), self.host.shared().number());
        let path = |kind: &str| dir.join(format!("{stem}.{kind}"));
        let (stdout, stderr) = (path("out"), path("err"));
        let make = |path: &Path| File::create(path).map_err(LabError::io(format!("make {}", path.display())));
        let (place, command) = (self.place(), self.line());
        let child = self.start(make(&stdout)?, make(&stderr)?)?;
        let pid = child.id();
        let ended = sys::pidfd(pid)?;
        Ok(Process { place, command, pid, ended, child: Mutex::new(child), stdout, stderr, detached: false })
    }

    fn start(self, stdout: File, stderr: File) -> Result<Child> {
        let place = self.place();
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env).stdout(stdout).stderr(stderr);
        command.stdin(match &self.stdin {
            Some(text) => Stdio::from(input(text)?),
            None => Stdio::null(),
        });
        let entry = Entry {
            host: self.host.namespaces().clone(),
            net: self.container.as_ref().map(Container::open).transpose()?,
            cwd: sys::c_path(&self.cwd)?,
            parent: std::process::id().cast_signed(),
        };
        sys::enter_before_exec(&mut command, entry);
        spawner::spawn(command).map_err(|source| start_failed(&self.program, &place, source))
    }

    fn place(&self) -> String {
        match &self.container {
            Some(container) => format!("{} in {}", self.host.name(), container.name()),
            None => self.host.name().to_owned(),
        }
    }

    fn line(&self) -> String {
        let program = Path::new(&self.program).file_name().unwrap_or(&self.program);
        let words = std::iter::once(program).chain(self.args.iter().map(OsString::as_os_str));
        let words: Vec<String> =
            words.map(|word| word.to_string_lossy().chars().take(60).collect()).collect();
        words.join(" ")
    }
}

fn input(text: &[u8]) -> Result<File> {
    let mut file = tempfile::tempfile().map_err(LabError::io("make a temporary file"))?;
    file.write_all(text).and_then(|()| file.rewind()).map_err(LabError::io("write a command's input"))?;
    Ok(file)
}

fn text_of(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(LabError::io("read a command's output"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn end_of(text: &str) -> String {
    let from = text.len().saturating_sub(SHOWN);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text.get(from..).unwrap_or_default().to_owned()
}

/// A program that runs. It is killed when the value is dropped, unless it was detached.
#[derive(Debug)]
pub struct Process {
    place: String,
    command: String,
    pid: u32,
    ended: OwnedFd,
    child: Mutex<Child>,
    stdout: PathBuf,
    stderr: PathBuf,
    detached: bool,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it printed on standard output so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn stdout(&self) -> Result<String> {
        read_log(&self.stdout)
    }

    /// What it printed on standard error so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn stderr(&self) -> Result<String> {
        read_log(&self.stderr)
    }

    /// Waits until one of its logs has a text.
    ///
    /// # Errors
    /// [`LabError::EndedEarly`] or [`LabError::Timeout`], both with the end of the logs.
    pub fn wait_for_log(&self, text: &str, timeout: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            // Asked before the logs are read: what it printed before its end is seen.
            let running = self.is_running();
            let log = format!("{}{}", self.stdout()?, self.stderr()?);
            if log.contains(text) {
                return Ok(());
            }
            if !running {
                return Err(LabError::EndedEarly {
                    place: self.place.clone(),
                    command: self.command.clone(),
                    status: self.wait(timeout)?.to_string(),
                    pattern: text.to_owned(),
                    log: end_of(&log),
                });
            }
            if begun.elapsed() >= timeout {
                let what = format!("`{}` on {} to write {text:?}", self.command, self.place);
                return Err(LabError::Timeout { what, waited: begun.elapsed(), last: end_of(&log) });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let doing = || format!("send {signal} to `{}` on {}", self.command, self.place);
        // Held, so that nobody reaps the process and its number goes to another meanwhile.
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.try_wait().map_err(LabError::io(doing()))?.is_some() {
            return Err(LabError::Io { doing: doing(), source: std::io::Error::other("it has ended") });
        }
        kill(Pid::from_raw(self.pid.cast_signed()), signal).map_err(LabError::errno(doing()))
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&self) -> Result<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let killed = child.kill().and_then(|()| child.wait());
        killed.map_err(LabError::io(format!("kill `{}` on {}", self.command, self.place)))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`LabError::Timeout`] with the end of its logs.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        if !sys::readable_before(&self.ended, begun + timeout) {
            let what = format!("`{}` on {} to end", self.command, self.place);
            let last = end_of(&format!("{}{}", self.stdout()?, self.stderr()?));
            return Err(LabError::Timeout { what, waited: begun.elapsed(), last });
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.wait().map_err(LabError::io(format!("wait for `{}`", self.command)))
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        !sys::readable_before(&self.ended, Instant::now())
    }

    /// Lets it run on when this value is dropped, until the lab ends.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached {
            let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read_log(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(LabError::io(format!("read {}", path.display())))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
