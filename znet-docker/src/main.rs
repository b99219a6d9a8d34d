//! A network plugin for Docker (libnetwork's remote driver, by Docker's plugin API of the first generation).
//!
//! Docker asks over a Unix socket, in JSON, and this asks the agent over its own. It decides nothing about networks and
//! touches no link. All it keeps is which of Docker's networks stands for which of znet's, since Docker says that once.
//!
//! | module | holds |
//! | --- | --- |
//! | `serve` | HTTP: methods, bounds, the form of answers |
//! | `driver` | what Docker asks for, one function a method |
//! | `messages` | what Docker says, as far as it is looked at |
//! | `networks` | the file with Docker's networks |
//! | `refusal` | errors, with their status |

mod driver;
mod messages;
mod networks;
mod refusal;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use znet_cli::LogFormat;
use znet_cli::exit::{Failure, Kind};

use crate::driver::Driver;
use crate::networks::Networks;

const EXAMPLES: &str = "\
Examples:
  znet-docker &
  docker network create -d znet --ipam-driver null -o znet.network=acme acme
  docker run --rm -it --network name=acme,driver-opt=znet.name=web busybox";

/// The Docker network plugin of znet: serves Docker's plugin socket, and asks the node agent
#[derive(Debug, Parser)]
#[command(name = "znet-docker", version, after_help = EXAMPLES)]
struct Args {
    /// Where Docker looks for the plugin; the file's name is the driver's
    #[arg(long, value_name = "PATH", default_value = "/run/docker/plugins/znet.sock")]
    socket: PathBuf,
    /// Where it keeps which of Docker's networks stands for which of znet's
    #[arg(long, value_name = "DIR", default_value = "/var/lib/znet-docker")]
    state_dir: PathBuf,
    /// Where the agent listens
    #[arg(long, value_name = "PATH", default_value = "/run/znet-agent/agent.sock")]
    agent_socket: PathBuf,
    /// Which log lines are printed: error, warn, info, debug, trace
    #[arg(long, value_name = "FILTER", default_value = "info", env = "ZNET_LOG")]
    log_level: String,
    /// How log lines look
    #[arg(long, value_enum, default_value = "text", env = "ZNET_LOG_FORMAT")]
    log_format: LogFormat,
}

fn main() -> ExitCode {
    let args = Args::parse();
    znet_cli::init_logging(&args.log_level, args.log_format);
    match znet_cli::runtime(true).and_then(|runtime| runtime.block_on(run(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(znet_cli::output::Format::Table),
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let failed = |code: &'static str| move |error| Failure::new(Kind::Failure, code, error);
    let networks = Networks::open(&args.state_dir).map_err(|error| failed("state")(error.to_string()))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| failed("signals")(error.to_string()))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| failed("signals")(error.to_string()))?;
    let at = |error: std::io::Error| failed("socket")(format!("{}: {error}", args.socket.display()));
    let listener =
        znet_cli::socket::bind(&args.socket).and_then(tokio::net::UnixListener::from_std).map_err(at)?;
    let serving = tokio::spawn(serve::serve(listener, Arc::new(Driver::new(networks, &args.agent_socket))));
    tracing::info!(socket = %args.socket.display(), "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = serving => return Err(failed("socket")(format!("the plugin's socket ended: {ended:?}"))),
    }
    // Docker waits half a minute for a socket that is there and answers nothing.
    std::fs::remove_file(&args.socket).map_err(at)
}
