//! The engine as a process: it gets its descriptors from the agent, gives up every privilege, and moves packets.
//!
//! The main thread answers the agent ([`serve`]) and `wg(8)` ([`uapi`]), and has [`state::State`] for itself; the threads of
//! the [`crate::plane`] move packets. The [`sandbox`] is entered before the first packet is read. [`spawn`] is the agent's side: it
//! starts an engine that outlives its starter.

mod serve;
mod spawn;
mod state;
mod uapi;

use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;

use crate::control::SessionList;
use crate::plane::Plane;
use crate::sandbox::{self, Program, SandboxError};

pub use spawn::{SpawnError, spawn};

/// Most threads that move packets, however many cores there are: each has some two megabytes of buffers.
const MAX_THREADS: usize = 8;

/// Why an engine did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum EngineFailure {
    /// It was not started by an agent.
    #[error(
        "standard input is not the listening socket that an agent hands to its engine; this command is not for people: use `znet-agent run`"
    )]
    NotSpawned,
    /// The privileges could not be given up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The operating system refused something without which no packet moves.
    #[error("the engine cannot go on: {0}")]
    Io(#[from] std::io::Error),
}

/// Runs the engine on the listening control socket that stands as standard input, until it is told to stop.
///
/// # Errors
/// [`EngineFailure`]: it was not spawned by an agent, or could not give up its privileges.
pub fn run() -> Result<(), EngineFailure> {
    let listener = inherited_listener()?;
    let owner = nix::unistd::getuid();
    // A panic on either thread must not leave half an engine: the agent starts a new one at once.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(101);
    }));
    // It fails for a process that leads its group already, which is as good.
    let _ = nix::unistd::setsid();
    sandbox::drop_privileges()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = cores.min(MAX_THREADS);
    let mut state = state::State::new(Plane::start(threads)?, SessionList::new()?);
    sandbox::confine(Program::Engine)?;
    serve::run(&listener, &mut state, owner)?;
    Ok(())
}

fn inherited_listener() -> Result<UnixListener, EngineFailure> {
    let stdin = std::io::stdin();
    let accepts = nix::sys::socket::getsockopt(&stdin.as_fd(), nix::sys::socket::sockopt::AcceptConn);
    if !accepts.unwrap_or(false) {
        return Err(EngineFailure::NotSpawned);
    }
    // SAFETY: descriptor 0 is open (it was asked for an option just now) and nothing else in this process uses it.
    Ok(UnixListener::from(unsafe { OwnedFd::from_raw_fd(0) }))
}
