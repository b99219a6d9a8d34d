//! Configuration layers: flags, then environment, then one TOML file, then defaults.
//!
//! The file is read before the flags are parsed, and its values become the defaults of the flags of the same name. So
//! a flag or an environment variable wins over it by clap's own rules, and a key that no flag has is an error.

use std::path::{Path, PathBuf};

use clap::Command;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("the configuration file {path} cannot be read: {source}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("the configuration file {path} is not TOML: {source}")]
    Toml {
        /// Its path.
        path: PathBuf,
        /// What is wrong, with the line.
        source: toml::de::Error,
    },
    /// A key that means nothing.
    #[error(
        "the configuration file {path} sets {key:?} in [{table}], which is no flag of that command; see `--help`"
    )]
    UnknownKey {
        /// Its path.
        path: PathBuf,
        /// The table: a subcommand.
        table: String,
        /// The key.
        key: String,
    },
    /// A value that a flag cannot take.
    #[error(
        "the configuration file {path} gives {key:?} in [{table}] a value that is neither a text, a number, a truth value nor a list of these"
    )]
    Value {
        /// Its path.
        path: PathBuf,
        /// The table: a subcommand.
        table: String,
        /// The key.
        key: String,
    },
}

/// Makes the values of the file at `path` the defaults of a command line: `[serve] listen = "…"` is the default of
/// `--listen` of the subcommand `serve`, and what stands before the first table is for the flags of all subcommands.
/// A file that does not exist is an error only when `required`.
///
/// # Errors
/// [`ConfigError`] that names file, table and key.
pub fn layer(mut command: Command, path: &Path, required: bool) -> Result<Command, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(command),
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    let file: toml::Table =
        toml::from_str(&text).map_err(|source| ConfigError::Toml { path: path.to_owned(), source })?;
    for (name, value) in file {
        let place = |table: &str, key: &str| (path.to_owned(), table.to_owned(), key.to_owned());
        let unknown = |table: &str, key: &str| {
            let (path, table, key) = place(table, key);
            ConfigError::UnknownKey { path, table, key }
        };
        let toml::Value::Table(values) = value else {
            let Some(defaults) = texts(&value) else {
                let (path, table, key) = place("", &name);
                return Err(ConfigError::Value { path, table, key });
            };
            command = with_default(command, &name, &defaults).ok_or_else(|| unknown("", &name))?;
            continue;
        };
        let mut subcommand = command.find_subcommand(&name).cloned().ok_or_else(|| unknown(&name, ""))?;
        for (key, value) in values {
            let Some(defaults) = texts(&value) else {
                let (path, table, key) = place(&name, &key);
                return Err(ConfigError::Value { path, table, key });
            };
            subcommand = with_default(subcommand, &key, &defaults).ok_or_else(|| unknown(&name, &key))?;
        }
        command = command.mut_subcommand(&name, |_| subcommand);
    }
    Ok(command)
}

/// The command with other defaults for one flag; `None` when it has no such flag.
fn with_default(command: Command, key: &str, defaults: &[String]) -> Option<Command> {
    let long = key.replace('_', "-");
    let id = command.get_arguments().find(|arg| arg.get_long() == Some(long.as_str()))?.get_id().clone();
    Some(command.mut_arg(id, |arg| arg.default_values(defaults.to_vec()).required(false)))
}

/// The path that `--config PATH` or `ZNET_CONFIG` names, before the command line is parsed.
pub fn path_from_args(args: impl IntoIterator<Item = std::ffi::OsString>) -> Option<PathBuf> {
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if text == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
        if text == "--" {
            break;
        }
    }
    std::env::var_os("ZNET_CONFIG").map(PathBuf::from)
}

fn texts(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(truth) => Some(vec![truth.to_string()]),
        toml::Value::Array(values) => {
            let all = values.iter().map(texts).collect::<Option<Vec<_>>>()?;
            Some(all.into_iter().flatten().collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::{Arg, Command};

    use super::*;

    fn command() -> Command {
        Command::new("t")
            .subcommand(Command::new("serve").arg(Arg::new("listen").long("listen").default_value("a")))
    }

    fn listen(text: &str, args: &[&str]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let matches = layer(command(), file.path(), true).unwrap().get_matches_from(args);
        matches.subcommand_matches("serve").unwrap().get_one::<String>("listen").unwrap().clone()
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        assert_eq!(listen("", &["t", "serve"]), "a");
        assert_eq!(listen("[serve]\nlisten = 'b'\n", &["t", "serve"]), "b");
        assert_eq!(listen("[serve]\nlisten = 'b'\n", &["t", "serve", "--listen", "c"]), "c");
    }

    #[test]
    fn what_stands_before_the_first_table_is_for_all_subcommands() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "socket = 's'\n[serve]\nlisten = 'b'\n").unwrap();
        let command = command().arg(Arg::new("socket").long("socket").global(true).default_value("d"));
        let matches = layer(command, file.path(), true).unwrap().get_matches_from(["t", "serve"]);
        let serve = matches.subcommand_matches("serve").unwrap();
        let value = |id| serve.get_one::<String>(id).unwrap().as_str();
        assert_eq!((value("socket"), value("listen")), ("s", "b"));
    }

    #[test]
    fn a_key_that_no_flag_has_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[serve]\nlissen = 'b'\n").unwrap();
        let error = layer(command(), file.path(), true).unwrap_err().to_string();
        assert!(error.contains("lissen") && error.contains("serve"), "{error}");
    }

    #[test]
    fn a_missing_file_matters_only_when_it_was_asked_for() {
        assert!(layer(command(), Path::new("/nonexistent/znet.toml"), false).is_ok());
        assert!(layer(command(), Path::new("/nonexistent/znet.toml"), true).is_err());
    }
}
