//! The command line of the agent: `run` is the daemon, the others talk to it over its local socket.

mod args;
mod ask;
mod exec;
mod run;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use znet_cli::config;
use znet_cli::exit::{Failure, Kind};
use znet_cli::output::Format;

use crate::client::{LocalClient, LocalError};
use crate::error::AgentError;

pub use args::{Args, Command};

/// Where the configuration file is looked for unless a flag or the environment names it.
const CONFIG_FILE: &str = "/etc/znet/agent.toml";

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    // The engine comes first: it reads no configuration and starts no runtime.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "engine") && std::env::args_os().len() == 2 {
        return engine();
    }
    let args = match parse() {
        Ok(args) => args,
        Err(failure) => return failure.report(Format::Table),
    };
    let format = args.output;
    match dispatch(args) {
        Ok(code) => code,
        Err(failure) => failure.report(format),
    }
}

fn engine() -> ExitCode {
    znet_cli::init_logging("info", znet_cli::LogFormat::Text);
    match znet_wg::engine::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::new(Kind::Failure, "engine", error).report(Format::Table),
    }
}

fn parse() -> Result<Args, Failure> {
    let named = config::path_from_args(std::env::args_os().skip(1));
    let required = named.is_some();
    let path = named.unwrap_or_else(|| CONFIG_FILE.into());
    let command = config::layer(Args::command(), &path, required)
        .map_err(|error| Failure::new(Kind::Usage, "config", error))?;
    let matches = command.get_matches();
    Args::from_arg_matches(&matches).map_err(|error| error.exit())
}

fn dispatch(args: Args) -> Result<ExitCode, Failure> {
    let format = args.output;
    let client = LocalClient::new(&args.run_dir.join(crate::local::SOCKET));
    match args.command {
        Command::Run(run) => {
            znet_cli::init_logging(&args.log_level, args.log_format);
            znet_cli::raise_open_files();
            runtime(true)?.block_on(run::run(run, args.run_dir)).map(|()| ExitCode::SUCCESS)
        }
        Command::Exec(exec) => exec::exec(&client, exec),
        Command::Completions { shell } => {
            znet_cli::completions::<Args>(shell);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => znet_cli::man_pages::<Args>(&dir)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| Failure::new(Kind::Failure, "man", format!("{}: {error}", dir.display()))),
        Command::Engine => Ok(engine()),
        asking => runtime(false)?.block_on(ask::ask(&client, asking, format)).map(|()| ExitCode::SUCCESS),
    }
}

fn runtime(threads: bool) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = match threads {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.enable_all().build();
    runtime
        .map_err(|error| Failure::new(Kind::Failure, "runtime", format!("no runtime can be made: {error}")))
}

impl From<LocalError> for Failure {
    fn from(error: LocalError) -> Self {
        match &error {
            LocalError::Unreachable { source, .. } => {
                let hint = match source.kind() {
                    std::io::ErrorKind::PermissionDenied => {
                        "only root may talk to the agent: run this with sudo"
                    }
                    _ => "is `znet-agent run` running, with the same --run-dir?",
                };
                Self::new(Kind::Unreachable, "agent_unreachable", &error).hint(hint)
            }
            LocalError::Problem(problem) => {
                Self::new(Kind::of_status(problem.status), &problem.code, &problem.detail)
            }
            LocalError::Protocol(_) => Self::new(Kind::Failure, "protocol", &error),
            LocalError::Timeout(_) => Self::new(Kind::TimedOut, "timed_out", &error),
        }
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let problem = error.problem();
        Self::new(Kind::of_status(problem.status), &problem.code, problem.detail)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_command_shows_examples() {
        let mut command = Args::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands_mut().filter(|c| !c.is_hide_set()) {
            let name = subcommand.get_name().to_owned();
            let help = subcommand.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{name} has no examples");
            assert!(help.contains(&format!("znet-agent {name}")), "{name}'s examples show another command");
        }
    }
}
