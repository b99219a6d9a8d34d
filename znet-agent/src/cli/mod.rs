//! The command line of the agent: `run` is the daemon, the others talk to it over its local socket.

mod args;
mod ask;
mod cni;
mod exec;
mod resolv;
mod run;

use std::process::ExitCode;

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
    let args = match znet_cli::parse::<Args>(CONFIG_FILE) {
        Ok(args) => args,
        Err(failure) => return failure.report(Format::Table),
    };
    let format = args.common.output;
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

fn dispatch(args: Args) -> Result<ExitCode, Failure> {
    let format = args.common.output;
    let client = LocalClient::new(&args.run_dir.join(crate::local::SOCKET));
    match args.command {
        Command::Run(run) => {
            znet_cli::init_logging(&args.common.log_level, args.common.log_format);
            znet_cli::raise_open_files();
            znet_cli::runtime(true)?.block_on(run::run(run, args.run_dir)).map(|()| ExitCode::SUCCESS)
        }
        Command::Exec(exec) => exec::exec(&client, exec, &args.run_dir),
        Command::Cni(cni) => cni::cni(cni, &args.run_dir, format).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => {
            znet_cli::completions::<Args>(shell);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => znet_cli::man_pages::<Args>(&dir)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| Failure::new(Kind::Failure, "man", format!("{}: {error}", dir.display()))),
        Command::Engine => Ok(engine()),
        asking => {
            znet_cli::runtime(false)?.block_on(ask::ask(&client, asking, format)).map(|()| ExitCode::SUCCESS)
        }
    }
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
    use clap::CommandFactory as _;

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
