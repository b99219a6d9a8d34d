//! The command line: `boringtun-cli`'s options and the environment variables of `boringtun-cli` and
//! `wireguard-go`.

use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::FalseyValueParser;

/// Longest name of an interface in bytes: Linux's `IFNAMSIZ`, without the zero that ends it.
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

const EXAMPLES: &str = "\
Examples:
  znet-wg wg0 && wg setconf wg0 /etc/wireguard/wg0.conf
  znet-wg --foreground --verbosity debug wg0
  WG_QUICK_USERSPACE_IMPLEMENTATION=znet-wg wg-quick up wg0";

/// WireGuard in user space: makes a TUN device that wg(8) configures, in place of boringtun-cli or
/// wireguard-go.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "znet-wg", version, after_help = EXAMPLES)]
pub struct Args {
    /// The name of the interface
    #[arg(value_name = "INTERFACE")]
    pub interface: InterfaceName,
    /// Stay in the foreground and log to standard error; without it the command returns when the device is
    /// ready
    #[arg(short, long, env = "WG_PROCESS_FOREGROUND", value_parser = FalseyValueParser::new())]
    pub foreground: bool,
    /// How many threads move packets [default: as many as there are processors]
    #[arg(short, long, value_name = "N", env = "WG_THREADS")]
    pub threads: Option<NonZeroUsize>,
    /// What is logged: silent, error, warn, info, debug (or verbose) or trace (or max) [default: what
    /// LOG_LEVEL says, or error]
    #[arg(short, long, value_name = "LEVEL", env = "WG_LOG_LEVEL")]
    pub verbosity: Option<Verbosity>,
    /// Append log lines to this file [default: standard error in the foreground; none in the background]
    #[arg(short, long, value_name = "FILE", env = "WG_LOG_FILE")]
    pub log: Option<PathBuf>,
    /// Use this inherited descriptor of a TUN device instead of making one; -1 for none
    #[arg(long, value_name = "FD", env = "WG_TUN_FD", default_value = "-1", hide_default_value = true)]
    #[arg(allow_negative_numbers = true)]
    pub tun_fd: InheritedFd,
    /// Use this inherited descriptor of a socket that listens for wg(8) instead of making one; -1 for none
    #[arg(long, value_name = "FD", env = "WG_UAPI_FD", default_value = "-1", hide_default_value = true)]
    #[arg(allow_negative_numbers = true)]
    pub uapi_fd: InheritedFd,
    /// Keep all privileges of the caller
    #[arg(long, env = "WG_SUDO", value_parser = FalseyValueParser::new())]
    pub disable_drop_privileges: bool,
    /// Without effect; scripts for boringtun-cli give it
    #[arg(long, hide = true)]
    pub disable_connected_udp: bool,
    /// Without effect; scripts for boringtun-cli give it
    #[arg(long, hide = true)]
    pub disable_multi_queue: bool,
}

impl Args {
    /// What is to be logged: the option, else `WG_LOG_LEVEL`, else wireguard-go's `LOG_LEVEL`, else errors.
    pub fn level(&self) -> Verbosity {
        self.verbosity.unwrap_or_else(|| Verbosity::of_log_level(std::env::var("LOG_LEVEL").ok().as_deref()))
    }

    /// How many threads are to move packets.
    pub fn thread_count(&self) -> NonZeroUsize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
    }
}

/// Which log lines are written: these and all more serious ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// None.
    Silent,
    /// What does not work.
    #[default]
    Error,
    /// What may not work.
    Warn,
    /// What happens to the process and its device.
    Info,
    /// What happens to each peer.
    Debug,
    /// What happens to each packet.
    Trace,
}

impl Verbosity {
    /// What wireguard-go's `LOG_LEVEL` stands for. Other programs use a variable of this name, with other
    /// words: those are passed over, as wireguard-go does it.
    pub fn of_log_level(value: Option<&str>) -> Self {
        value.and_then(|value| value.parse().ok()).unwrap_or_default()
    }
}

/// A word that names no [`Verbosity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected silent, error, warn, info, debug, verbose, trace or max")]
pub struct UnknownVerbosity;

impl FromStr for Verbosity {
    type Err = UnknownVerbosity;

    fn from_str(text: &str) -> Result<Self, UnknownVerbosity> {
        match text.to_ascii_lowercase().as_str() {
            "silent" | "off" => Ok(Self::Silent),
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" | "verbose" => Ok(Self::Debug),
            "trace" | "max" => Ok(Self::Trace),
            _ => Err(UnknownVerbosity),
        }
    }
}

/// The number of a descriptor that the caller opened, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InheritedFd(pub Option<RawFd>);

impl FromStr for InheritedFd {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // An empty variable is as good as none.
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|number: RawFd| Self((number >= 0).then_some(number)))
    }
}

/// A name that Linux takes for an interface, and that makes a file name for its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

/// Why a text is no name of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Too short or too long.
    #[error("a name has 1 to {MAX_NAME} bytes, this one {got}")]
    Length {
        /// Its bytes.
        got: usize,
    },
    /// A directory's name.
    #[error("`.` and `..` cannot name an interface")]
    Dots,
    /// A character that the kernel refuses, or of which it makes another name.
    #[error("{0:?} cannot be in the name of an interface")]
    Character(char),
}

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !(1..=MAX_NAME).contains(&text.len()) {
            return Err(NameError::Length { got: text.len() });
        }
        if matches!(text, "." | "..") {
            return Err(NameError::Dots);
        }
        // `%d` becomes a number, so that the interface would have another name than its socket.
        let refused = |c: &char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        match text.chars().find(refused) {
            Some(c) => Err(NameError::Character(c)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(["znet-wg"].iter().chain(args))
    }

    #[test]
    fn the_command_line_is_well_formed_and_shows_examples() {
        Args::command().debug_assert();
        assert!(Args::command().render_long_help().to_string().contains("Examples:"));
    }

    #[test]
    fn what_is_written_for_boringtun_cli_is_understood() {
        let args = parse(&[
            "-f",
            "-t",
            "4",
            "-v",
            "max",
            "-l",
            "/tmp/l",
            "--tun-fd",
            "-1",
            "--uapi-fd",
            "5",
            "--disable-drop-privileges",
            "--disable-connected-udp",
            "--disable-multi-queue",
            "wg0",
        ])
        .unwrap();
        assert!(args.foreground && args.disable_drop_privileges);
        assert_eq!(args.thread_count().get(), 4);
        assert_eq!(args.level(), Verbosity::Trace);
        assert_eq!(args.log, Some(PathBuf::from("/tmp/l")));
        assert_eq!((args.tun_fd, args.uapi_fd), (InheritedFd(None), InheritedFd(Some(5))));
        assert_eq!(args.interface.as_str(), "wg0");
    }

    #[test]
    fn a_name_is_needed_and_one_thread_at_least() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["wg0", "wg1"]).is_err());
        assert!(parse(&["-t", "0", "wg0"]).is_err());
    }

    #[test]
    fn names_that_linux_refuses_are_refused() {
        for good in ["wg0", "a", "zürich", "fifteen-bytes-0"] {
            assert!(good.parse::<InterfaceName>().is_ok(), "{good}");
        }
        for bad in
            ["", ".", "..", "a/b", "a b", "a\t", "a\u{a0}", "a:b", "wg%d", "\u{1b}[m", "sixteen-bytes-00"]
        {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_words_of_both_programs_name_a_verbosity() {
        let words = [
            ("silent", Verbosity::Silent),
            ("error", Verbosity::Error),
            ("verbose", Verbosity::Debug),
            ("debug", Verbosity::Debug),
            ("info", Verbosity::Info),
            ("trace", Verbosity::Trace),
            ("max", Verbosity::Trace),
        ];
        for (word, verbosity) in words {
            assert_eq!(word.parse(), Ok(verbosity));
        }
        assert_eq!("loud".parse::<Verbosity>(), Err(UnknownVerbosity));
    }

    #[test]
    fn the_variable_of_another_program_does_not_matter() {
        assert_eq!(Verbosity::of_log_level(Some("verbose")), Verbosity::Debug);
        assert_eq!(Verbosity::of_log_level(Some("LEVEL_7")), Verbosity::Error);
        assert_eq!(Verbosity::of_log_level(None), Verbosity::Error);
    }
}
