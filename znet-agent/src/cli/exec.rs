//! `znet-agent exec`: a command as a container, from the making of its namespace to the taking away of everything.
//!
//! One thread enters a new network namespace and stays in it: it stands for the namespace (`/proc/PID/task/TID/ns/net`)
//! and starts the command, which inherits it. When this process is killed the thread is gone, and with it the path, so
//! that the agent takes the container away by itself. The command finds others by their names, by a `resolv.conf` that is
//! mounted for it alone.

use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, gettid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use znet_cli::exit::{Failure, Kind};

use super::args::ExecArgs;
use super::resolv::ResolvConf;
use crate::client::LocalClient;
use crate::local::{AttachRequest, DetachRequest};

/// How long the other nodes may take to learn of the container before the command is started, in milliseconds.
const WAIT_MILLIS: u64 = 30_000;
/// The exit code of a command that cannot be found, and of one that cannot be run (POSIX, Shell Command Language, 2.8.2).
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;
/// What a shell adds to the number of the signal that ended a command.
const SIGNALLED: i32 = 128;
/// Signals that are passed on. What the terminal sends (interrupt, quit) reaches the command by itself there.
const PASSED: [(Signal, bool); 7] = [
    (Signal::SIGTERM, false),
    (Signal::SIGHUP, false),
    (Signal::SIGUSR1, false),
    (Signal::SIGUSR2, false),
    (Signal::SIGWINCH, true),
    (Signal::SIGINT, true),
    (Signal::SIGQUIT, true),
];

pub(super) fn exec(client: &LocalClient, args: ExecArgs, run_dir: &Path) -> Result<ExitCode, Failure> {
    let keeper = Keeper::start()?;
    znet_cli::runtime(false)?.block_on(attached(client, args, keeper, run_dir))
}

async fn attached(
    client: &LocalClient,
    args: ExecArgs,
    keeper: Keeper,
    run_dir: &Path,
) -> Result<ExitCode, Failure> {
    let container = args.container;
    let request = AttachRequest {
        network: container.network.clone(),
        name: container.name.clone(),
        netns: keeper.path.clone(),
        ifname: container.ifname,
        addresses: container.address,
        wait_millis: (!args.no_wait).then_some(WAIT_MILLIS),
        wait_controller_millis: None,
        owner: None,
        no_dns: container.no_dns,
    };
    let detach = DetachRequest { network: container.network, name: container.name };
    // Listened to before the attach, so that a signal during it does not leave the container behind.
    let signals = signals()?;
    let dns = match client.attach(&request).await {
        Ok(attached) => attached.dns,
        Err(error) => {
            // Not reached in time by all, it is attached nevertheless.
            let _ = client.detach(&detach).await;
            return Err(error.into());
        }
    };
    let resolv_conf = dns.map(|dns| ResolvConf { text: dns.resolv_conf(), dir: run_dir.to_owned() });
    let ended = keeper.run(&args.command, resolv_conf, signals).await;
    let detached = client.detach(&detach).await;
    let code = ended?;
    detached?;
    Ok(code)
}

type Signals = Vec<(Signal, tokio::signal::unix::Signal)>;

fn signals() -> Result<Signals, Failure> {
    let terminal = std::io::stdin().is_terminal();
    let wanted = PASSED.into_iter().filter(|(_, by_terminal)| !(terminal && *by_terminal));
    // A signal that the terminal sends to both must not end this process before the command.
    let ignored = PASSED.into_iter().filter(|(_, by_terminal)| terminal && *by_terminal);
    let listen = |(name, _): (Signal, bool)| {
        let stream = signal(SignalKind::from_raw(name as i32));
        stream.map(|stream| (name, stream)).map_err(|error| Failure::new(Kind::Failure, "signals", error))
    };
    for quiet in ignored {
        std::mem::forget(listen(quiet)?);
    }
    wanted.map(listen).collect()
}

/// The thread that is the namespace.
struct Keeper {
    path: PathBuf,
    commands: mpsc::Sender<Start>,
    thread: JoinHandle<()>,
}

/// An order to the keeper: start this, say whether it started, then say how it ended.
struct Start {
    command: Command,
    resolv_conf: Option<ResolvConf>,
    running: Arc<Mutex<Option<Pid>>>,
    started: oneshot::Sender<std::io::Result<()>>,
    ended: oneshot::Sender<std::io::Result<ExitStatus>>,
}

impl Keeper {
    fn start() -> Result<Self, Failure> {
        let (commands, orders) = mpsc::channel::<Start>();
        let (entered, entering) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let result = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid());
            let inside = result.is_ok();
            if entered.send(result).is_err() || !inside {
                return;
            }
            for order in orders {
                carry_out(order);
            }
        });
        let tid = entering.recv().unwrap_or(Err(nix::Error::EIO)).map_err(|error| {
            let failure = Failure::new(
                Kind::NotPermitted,
                "not_permitted",
                format!("a network namespace cannot be made: {error}"),
            );
            failure.hint("run this as root")
        })?;
        let path = PathBuf::from(format!("/proc/{}/task/{tid}/ns/net", std::process::id()));
        Ok(Self { path, commands, thread })
    }

    /// Runs a command inside, passes signals on, and tells its exit code.
    async fn run(
        self,
        command: &[std::ffi::OsString],
        resolv_conf: Option<ResolvConf>,
        mut signals: Signals,
    ) -> Result<ExitCode, Failure> {
        let lost = || Failure::new(Kind::Failure, "exec", "the thread that holds the namespace ended");
        let Some((program, arguments)) = command.split_first() else {
            return Err(Failure::new(Kind::Usage, "usage", "no command was given"));
        };
        let mut command = Command::new(program);
        command.args(arguments);
        let running = Arc::new(Mutex::new(None));
        let (started, starting) = oneshot::channel();
        let (ended, mut ending) = oneshot::channel();
        let start = Start { command, resolv_conf, running: running.clone(), started, ended };
        self.commands.send(start).map_err(|_| lost())?;
        if let Err(error) = starting.await.map_err(|_| lost())? {
            eprintln!("error: {} cannot be run: {error}", program.display());
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if missing { NOT_FOUND } else { NOT_RUNNABLE }));
        }
        let status = loop {
            tokio::select! {
                status = &mut ending => break status.map_err(|_| lost())?,
                name = next(&mut signals) => {
                    let pid = *running.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(pid) = pid {
                        // It may end at the same moment; then there is nobody to tell.
                        let _ = kill(pid, name);
                    }
                }
            }
        };
        drop(self.commands);
        let _ = self.thread.join();
        let status = status.map_err(|error| Failure::new(Kind::Failure, "exec", error))?;
        let code = status.code().or_else(|| status.signal().map(|signal| SIGNALLED + signal));
        Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
    }
}

fn carry_out(mut order: Start) {
    if let Some(Err(error)) = order.resolv_conf.map(|conf| conf.mount()) {
        eprintln!(
            "warning: the command does not find others by name, as its /etc/resolv.conf stays the host's: {error}"
        );
    }
    match order.command.spawn() {
        Ok(child) => {
            let pid = Pid::from_raw(child.id().cast_signed());
            *order.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(pid);
            let _ = order.started.send(Ok(()));
            let _ = order.ended.send(wait(child, pid, &order.running));
        }
        Err(error) => drop(order.started.send(Err(error))),
    }
}

/// Waits for a child. Its number is forgotten before it is given back to the system, so that no signal hits another.
fn wait(mut child: Child, pid: Pid, running: &Mutex<Option<Pid>>) -> std::io::Result<ExitStatus> {
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::Error::EINTR) {}
    *running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    child.wait()
}

/// The next signal of any kind.
async fn next(signals: &mut Signals) -> Signal {
    std::future::poll_fn(|context| {
        for (name, stream) in signals.iter_mut() {
            if stream.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(*name);
            }
        }
        std::task::Poll::Pending
    })
    .await
}
