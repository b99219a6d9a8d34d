//! The agent's side: starting an engine that outlives its starter.

use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::control::{EngineClient, EngineError};

/// How long a new engine may take until it answers.
const START: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile.
const RETRY: Duration = Duration::from_millis(5);

/// Why no engine could be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The control socket or the process could not be made.
    #[error("the engine cannot be started ({what}): {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It started and ended at once.
    #[error("the engine ended as it started ({status}); its log says why")]
    Ended {
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// It does not answer.
    #[error(transparent)]
    Silent(#[from] EngineError),
}

/// Starts `exe args…` as an engine that listens at `socket`, with its messages in `log` (or where ours go), and
/// connects to it. A socket that an earlier engine left there is replaced.
///
/// The child has its own process group, so that a signal to the agent's does not reach it, and lives on when the agent
/// ends. The returned handle may be dropped, or waited on to learn of its end.
///
/// # Errors
/// [`SpawnError`].
pub fn spawn(
    exe: &Path,
    args: &[&str],
    socket: &Path,
    log: Option<File>,
) -> Result<(EngineClient, Child), SpawnError> {
    let io = |what| move |source| SpawnError::Io { what, source };
    match fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("old control socket")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(io("control socket"))?;
    fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(io("control socket"))?;
    let mut command = Command::new(exe);
    command.args(args).stdin(Stdio::from(OwnedFd::from(listener))).process_group(0).current_dir("/");
    if let Some(log) = log {
        let copy = log.try_clone().map_err(io("log"))?;
        command.stdout(Stdio::from(copy)).stderr(Stdio::from(log));
    }
    let mut child = command.spawn().map_err(io("process"))?;
    let deadline = Instant::now() + START;
    loop {
        match EngineClient::connect(socket) {
            Ok(client) => return Ok((client, child)),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait().map_err(io("process"))? {
            return Err(SpawnError::Ended { status });
        }
        std::thread::sleep(RETRY);
    }
}
