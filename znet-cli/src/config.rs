//! Configuration layers: flags, then environment, then one TOML file, then defaults.
//!
//! The file is read before the flags are parsed, and its values become the defaults of the flags of the same name. So
//! a flag or an environment variable wins over it by clap's own rules, and a key that no flag has is an error.

use std::collections::BTreeMap;
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
/// `--listen` of the subcommand `serve`. A file that does not exist is an error only when `required`.
///
/// # Errors
/// [`ConfigError`] that names file, table and key.
pub fn layer(mut command: Command, path: &Path, required: bool) -> Result<Command, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(command),
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    let tables: BTreeMap<String, toml::Table> =
        toml::from_str(&text).map_err(|source| ConfigError::Toml { path: path.to_owned(), source })?;
    for (table, values) in tables {
        let unknown = |key: &str| ConfigError::UnknownKey {
            path: path.to_owned(),
            table: table.clone(),
            key: key.to_owned(),
        };
        let known: Vec<String> = match command.find_subcommand(&table) {
            Some(subcommand) => {
                subcommand.get_arguments().filter_map(|a| a.get_long().map(str::to_owned)).collect()
            }
            None => return Err(unknown("")),
        };
        for (key, value) in values {
            let long = key.replace('_', "-");
            if !known.contains(&long) {
                return Err(unknown(&key));
            }
            let defaults = texts(&value).ok_or_else(|| ConfigError::Value {
                path: path.to_owned(),
                table: table.clone(),
                key,
            })?;
            command = command.mut_subcommand(&table, |subcommand| {
                subcommand.mut_args(|arg| {
                    if arg.get_long() == Some(long.as_str()) {
                        arg.default_values(defaults.clone()).required(false)
                    } else {
                        arg
                    }
                })
            });
        }
    }
    Ok(command)
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
