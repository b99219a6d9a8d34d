//! `znet-wg NAME`: a WireGuard device in user space, in place of `boringtun-cli` or `wireguard-go`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use nix::sys::eventfd::{EfdFlags, EventFd};
use znet_wg::io::tun::{self, Queues, Tun};
use znet_wg::sandbox::{self, Program};
use znet_wg::standalone::cli::Args;
use znet_wg::standalone::daemon::{self, Readiness};
use znet_wg::standalone::logging::{self, LogSink};
use znet_wg::standalone::privileges::{self, Confinement};
use znet_wg::standalone::{Standalone, inherit, serve, signals};
use znet_wg::uapi::socket::{self, Listener};

fn main() -> ExitCode {
    let args = Args::parse();
    let begun = LogSink::open(args.log.as_deref(), args.foreground)
        .context("the log cannot be opened")
        .and_then(|log| {
            logging::init(log, args.level());
            // Before anything is opened, or a wrong number might name something of ours.
            let inherited = Inherited::take(&args)?;
            let readiness = if args.foreground { Readiness::foreground() } else { daemon::detach()? };
            Ok((inherited, readiness))
        });
    let (inherited, mut readiness) = match begun {
        Ok((inherited, readiness)) => (inherited, Some(readiness)),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    // Half a device must not be left by a panic on some thread.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(101);
    }));
    match run(&args, inherited, &mut readiness) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match readiness {
                Some(readiness) => readiness.failed(&format!("{}: {error:#}", args.interface)),
                None => tracing::error!("{error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// Descriptors that the caller opened.
struct Inherited {
    tun: Option<Tun>,
    listener: Option<Listener>,
}

impl Inherited {
    fn take(args: &Args) -> anyhow::Result<Self> {
        let tun = args.tun_fd.0.map(|fd| inherit::duplicate(fd).and_then(Tun::adopt)).transpose();
        let tun = tun.context("the descriptor of --tun-fd (WG_TUN_FD) is no TUN device")?;
        let listener = args.uapi_fd.0.map(|fd| inherit::duplicate(fd).and_then(Listener::adopt)).transpose();
        let listener = listener.context("the descriptor of --uapi-fd (WG_UAPI_FD) is no listening socket")?;
        Ok(Self { tun, listener })
    }
}

fn run(args: &Args, inherited: Inherited, readiness: &mut Option<Readiness>) -> anyhow::Result<()> {
    let signals = signals::termination()?;
    let gone = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    let name = args.interface.as_str();
    let threads = args.thread_count().get();
    let listener = match inherited.listener {
        Some(listener) => listener,
        None => socket::listen(name)?,
    };
    let queues = match inherited.tun {
        Some(tun) => vec![tun],
        None => make_queues(name, threads)?,
    };
    if !args.disable_drop_privileges {
        privileges::give_up(listener.directory().map_or(Confinement::Nobody, Confinement::Directory))?;
    }
    let mut device = Standalone::start(queues, threads, &gone)?;
    if !args.disable_drop_privileges {
        sandbox::confine(Program::Standalone)?;
    }
    tracing::info!(interface = name, threads, "ready");
    if let Some(readiness) = readiness.take() {
        readiness.ready();
    }
    serve::serve(&mut device, &listener, &signals, &gone)?;
    tracing::info!(interface = name, "ends");
    Ok(())
}

/// One queue for each thread that reads packets: half of them, as the others serve sockets.
fn make_queues(name: &str, threads: usize) -> anyhow::Result<Vec<Tun>> {
    let count = (threads / 2).max(1);
    let kind = if count > 1 { Queues::Multi } else { Queues::Single };
    let mut queues = Vec::new();
    for _ in 0..count {
        queues.push(Tun::adopt(Tun::create(name, kind)?)?);
    }
    let any = std::net::UdpSocket::bind("127.0.0.1:0");
    if let Err(error) = any.and_then(|any| tun::set_queue_length(&any, name)) {
        tracing::debug!(%error, "the device's queue stays as it is");
    }
    Ok(queues)
}
