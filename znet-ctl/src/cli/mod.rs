//! The command line: `serve` is the daemon, `restore` works on its files, everything else asks it.

mod access;
mod apply;
mod args;
mod ask;
mod controllers;
mod files;
mod gc;
mod held_up;
mod keys;
mod members;
mod networks;
mod operators;
mod qr;
mod signing;
mod store;
mod tls;
mod watch;
mod wg_quick;

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

use znet_cli::exit::{Failure, Kind};
use znet_cli::output::Format;

use crate::serve::{self, ServeError, ServeOptions};

pub use args::{Args, Command};

/// Where the configuration file is looked for unless a flag or the environment names it.
const CONFIG_FILE: &str = "/etc/znet/ctl.toml";

/// What a command comes to.
type Result<T = ()> = std::result::Result<T, Failure>;

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let args = match znet_cli::parse::<Args>(CONFIG_FILE) {
        Ok(args) => args,
        Err(failure) => return failure.report(Format::Table),
    };
    let format = args.common.output;
    match dispatch(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}

fn dispatch(args: Args) -> Result {
    match args.command {
        Command::Serve(serve) => {
            znet_cli::init_logging(&args.common.log_level, args.common.log_format);
            znet_cli::raise_open_files();
            let options = ServeOptions {
                data_dir: serve.data_dir,
                store: serve.store,
                store_key: serve.store_key,
                listen: serve.listen,
                advertise: serve.advertise,
                socket: args.socket,
            };
            Ok(znet_cli::runtime(true)?.block_on(serve::run(options))?)
        }
        Command::Restore { file, data_dir, replace } => {
            files::restore(&file, &data_dir, replace, args.common.output)
        }
        Command::Store(store::StoreCommand::Migrate { from, to, store_key }) => {
            znet_cli::init_logging(&args.common.log_level, args.common.log_format);
            let moved = crate::migrate::migrate(&from, &to, &store_key);
            store::report(znet_cli::runtime(false)?.block_on(moved)?, &to, args.common.output);
            Ok(())
        }
        Command::Completions { shell } => {
            znet_cli::completions::<Args>(shell);
            Ok(())
        }
        Command::Man { dir } => znet_cli::man_pages::<Args>(&dir)
            .map_err(|error| Failure::new(Kind::Failure, "man", format!("{}: {error}", dir.display()))),
        command => {
            let asker = ask::Asker::new(ask::Place {
                socket: args.socket,
                controller: args.controller,
                pin: args.pin,
                token: args.operator_token,
                token_file: args.operator_token_file,
                format: args.common.output,
            })?;
            let told = znet_cli::runtime(false)?.block_on(asker.ask(command));
            asker.tell_newer_pin();
            told
        }
    }
}

/// Has the user agree to something that cannot be undone.
fn agree(yes: bool, what: &str) -> Result {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let hint = "say --yes where nobody can be asked";
        return Err(
            Failure::new(Kind::Usage, "not_confirmed", format!("{what}: this was not confirmed")).hint(hint)
        );
    }
    eprint!("{what}. Go on? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(Kind::Usage, "not_confirmed", "nothing was done"))
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let kind = match &error {
            ServeError::Keys(crate::keys::KeysError::InUse { .. }) => Kind::Conflict,
            ServeError::Advertise { .. } | ServeError::Keys(crate::keys::KeysError::StoreKey { .. }) => {
                Kind::Usage
            }
            _ => Kind::Failure,
        };
        Self::new(kind, "serve", error)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    fn check(command: &mut clap::Command, path: &str) {
        let path = format!("{path}{}", command.get_name());
        let help = command.render_long_help().to_string();
        assert!(help.contains("Examples:"), "{path} has no examples");
        assert!(help.contains(&path), "the examples of {path} show another command");
        for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
            check(inner, &format!("{path} "));
        }
    }

    #[test]
    fn the_command_line_is_well_formed_and_every_command_shows_examples() {
        let mut command = Args::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands_mut() {
            check(subcommand, "znet-ctl ");
        }
    }
}
