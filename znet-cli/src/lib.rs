//! What the command lines of znet share: configuration layers, output forms, exit codes, logging, man pages, the daemon's socket.

pub mod config;
pub mod exit;
pub mod output;
pub mod socket;

use std::path::Path;

use clap::CommandFactory;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

/// What every command of both programs takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// How results and errors are printed
    #[arg(long, global = true, value_enum, default_value = "table", env = "ZNET_OUTPUT")]
    pub output: output::Format,
    /// A TOML file with settings: what stands before the first table is for all commands, a table for the command of its name [default: one in /etc/znet, if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "ZNET_CONFIG")]
    pub config: Option<std::path::PathBuf>,
    /// Which log lines are printed: error, warn, info, debug, trace, or a filter such as info,znet_wg=debug
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", env = "ZNET_LOG")]
    pub log_level: String,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value = "text", env = "ZNET_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// Reads a command line whose defaults come from a configuration file: the one that `--config` or `ZNET_CONFIG` names, or
/// else `usual` where it exists. A command line that means nothing ends the process, as clap does it.
///
/// # Errors
/// The file cannot be used.
pub fn parse<A: clap::Parser>(usual: &str) -> Result<A, exit::Failure> {
    let named = config::path_from_args(std::env::args_os().skip(1));
    let required = named.is_some();
    let path = named.unwrap_or_else(|| usual.into());
    let command = config::layer(A::command(), &path, required)
        .map_err(|error| exit::Failure::new(exit::Kind::Usage, "config", error))?;
    A::from_arg_matches(&command.get_matches()).map_err(|error| error.exit())
}

/// A runtime for a daemon, or a small one for a command that asks it.
///
/// # Errors
/// The operating system gives no threads or descriptors.
pub fn runtime(daemon: bool) -> Result<tokio::runtime::Runtime, exit::Failure> {
    let mut builder = match daemon {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    let failed = |error| {
        exit::Failure::new(exit::Kind::Failure, "runtime", format!("no runtime can be made: {error}"))
    };
    builder.enable_all().build().map_err(failed)
}

/// Sends log lines of this level and above to standard error. `level` may be a filter such as `info,znet_agent=debug`.
pub fn init_logging(level: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call finds a logger in place, which is what is wanted.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// Lets the process open as many files as the system allows it: a daemon holds some for each connection and container.
pub fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Writes the completions of a command line for a shell to standard output.
pub fn completions<C: CommandFactory>(shell: clap_complete::Shell) {
    let mut command = C::command();
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    output::write_bytes(&text);
}

/// Writes one man page for a command line and each of its subcommands into a directory.
///
/// # Errors
/// The error of the file system.
pub fn man_pages<C: CommandFactory>(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(C::command(), dir)
}
