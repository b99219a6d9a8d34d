//! What can go wrong while a lab is built or used.
//!
//! Whoever reads one of these messages is looking at a failed test or a failed demo, so each says what was attempted,
//! on what, what came back, and where there is one, the command that helps.

use std::path::PathBuf;
use std::time::Duration;

/// Why an operation of the harness failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN).
    #[error(
        "virtual hosts need root, but this process runs as uid {uid}\n  hint: run it again as root, for example `sudo -E env PATH=\"$PATH\" {command}`"
    )]
    NotRoot {
        /// The effective user id that was found.
        uid: u32,
        /// This process's own command line.
        command: String,
    },

    /// A program the harness calls is not installed.
    #[error(
        "the program `{program}` is not installed\n  hint: apt-get install -y --no-install-recommends {package}"
    )]
    ToolMissing {
        /// The program's name.
        program: String,
        /// Debian's package that has it, or the program's own name where the harness does not know.
        package: String,
    },

    /// A name would not fit where the kernel or a path needs it.
    #[error(
        "{what} name {name:?} is unusable: 1 to {longest} of a-z, 0-9, '-', '_', beginning with a letter or digit"
    )]
    BadName {
        /// What was to be named.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The most bytes it may have.
        longest: usize,
    },

    /// A name is already taken in this lab.
    #[error("the lab already has a {what} named {name:?}")]
    NameTaken {
        /// What was to be named.
        what: &'static str,
        /// The name asked for.
        name: String,
    },

    /// A value is outside what a link can do.
    #[error("{what} of {value} is out of range: {allowed}")]
    OutOfRange {
        /// Which setting.
        what: &'static str,
        /// The value asked for.
        value: String,
        /// What would be accepted.
        allowed: &'static str,
    },

    /// A system call or file operation failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was attempted, on what.
        doing: String,
        /// The kernel's answer.
        source: std::io::Error,
    },

    /// A command ran and reported failure.
    #[error("on {place}: `{command}` ended with {status}{}{}", tail("stdout", .stdout), tail("stderr", .stderr))]
    Command {
        /// The host or container it ran on.
        place: String,
        /// The command line.
        command: String,
        /// Its exit status in words.
        status: String,
        /// The end of its standard output.
        stdout: String,
        /// The end of its standard error.
        stderr: String,
    },

    /// Something did not happen in time.
    #[error("gave up after {waited:.1?} waiting for {what}{}", tail("last seen", .last))]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// What was seen last instead; may be empty.
        last: String,
    },

    /// A process ended before it wrote the line that was waited for.
    #[error("on {place}: `{command}` ended with {status} before it wrote {pattern:?}{}", tail("log", .log))]
    EndedEarly {
        /// The host or container it ran on.
        place: String,
        /// The command line.
        command: String,
        /// Its exit status in words.
        status: String,
        /// The text that was waited for.
        pattern: String,
        /// The end of both its logs.
        log: String,
    },

    /// A program's output could not be understood.
    #[error("cannot understand the output of `{command}`: {why}{}", tail("output", .output))]
    Parse {
        /// The command line.
        command: String,
        /// What was missing or malformed.
        why: String,
        /// The end of the output.
        output: String,
    },

    /// The thing asked for belongs to another lab, or its lab is gone.
    #[error("{what} does not belong to this lab")]
    Foreign {
        /// Host, switch or link, with its name.
        what: String,
    },
}

impl LabError {
    /// For `map_err` on I/O: keeps the kernel's answer and says what was attempted.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> LabError {
        let doing = doing.into();
        move |source| LabError::Io { doing, source }
    }

    /// The same for nix's bare error numbers.
    pub(crate) fn errno(doing: impl Into<String>) -> impl FnOnce(nix::Error) -> LabError {
        let doing = doing.into();
        move |errno| LabError::Io { doing, source: errno.into() }
    }

    /// True if this says that time ran out.
    pub fn is_timeout(&self) -> bool {
        matches!(self, LabError::Timeout { .. })
    }

    /// The path that a failed I/O operation names is not kept apart; this tells only whether the kernel said ENOENT.
    pub fn is_not_found(&self) -> bool {
        matches!(self, LabError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

/// The harness's result.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Renders an optional block of text below a message.
fn tail(label: &str, text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() { String::new() } else { format!("\n  {label}: {}", text.replace('\n', "\n    ")) }
}

/// The Debian package that has a program which the harness or its users call.
pub(crate) fn package_of(program: &str) -> String {
    match program {
        "ip" | "tc" | "bridge" | "ss" => "iproute2",
        "nft" => "nftables",
        "ping" => "iputils-ping",
        "tcpdump" => "tcpdump",
        "wg" => "wireguard-tools",
        "iperf3" => "iperf3",
        "curl" => "curl",
        "cat" => "coreutils",
        other => other,
    }
    .to_owned()
}

/// Turns a failed start of `program` into the error that helps most.
pub(crate) fn start_failed(program: &std::ffi::OsStr, place: &str, source: std::io::Error) -> LabError {
    let path = PathBuf::from(program);
    let bare = path.components().count() == 1;
    if source.kind() == std::io::ErrorKind::NotFound && bare {
        let program = program.to_string_lossy().into_owned();
        let package = package_of(&program);
        return LabError::ToolMissing { program, package };
    }
    LabError::Io { doing: format!("start `{}` on {place}", path.display()), source }
}
