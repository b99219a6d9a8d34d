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
