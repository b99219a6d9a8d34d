//! Where log lines go. A daemon has no terminal, and a file that nobody asked for only fills a disk.

use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use tracing_subscriber::filter::LevelFilter;

use super::cli::Verbosity;

/// Where log lines go.
#[derive(Clone, Debug)]
pub enum LogSink {
    /// Standard error.
    Stderr,
    /// The end of this file.
    File(Arc<File>),
    /// Nowhere.
    Nowhere,
}

impl LogSink {
    /// Opens the file if one is named, else takes standard error in the foreground, and nothing in the
    /// background. Call it before [`super::daemon::detach`], which leaves the working directory.
    ///
    /// # Errors
    /// The file cannot be opened or made.
    pub fn open(file: Option<&Path>, foreground: bool) -> Result<Self> {
        match file {
            Some(path) => {
                let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
                Ok(Self::File(Arc::new(opened)))
            }
            None if foreground => Ok(Self::Stderr),
            None => Ok(Self::Nowhere),
        }
    }
}

/// Sends log lines of this verbosity to `sink`, for the life of the process.
pub fn init(sink: LogSink, verbosity: Verbosity) {
    let builder = tracing_subscriber::fmt().with_max_level(level(verbosity)).with_target(false);
    // A second call finds a logger in place, which is what is wanted.
    let _ = match sink {
        LogSink::Stderr => builder.with_writer(std::io::stderr).try_init(),
        LogSink::File(file) => builder.with_ansi(false).with_writer(file).try_init(),
        LogSink::Nowhere => Ok(()),
    };
}

fn level(verbosity: Verbosity) -> LevelFilter {
    match verbosity {
        Verbosity::Silent => LevelFilter::OFF,
        Verbosity::Error => LevelFilter::ERROR,
        Verbosity::Warn => LevelFilter::WARN,
        Verbosity::Info => LevelFilter::INFO,
        Verbosity::Debug => LevelFilter::DEBUG,
        Verbosity::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_appended_to_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for foreground in [true, false] {
            let LogSink::File(file) = LogSink::open(Some(&path), foreground).unwrap() else { unreachable!() };
            std::io::Write::write_all(&mut &*file, b"line\n").unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"line\nline\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn without_a_file_only_the_foreground_logs() {
        assert!(matches!(LogSink::open(None, true).unwrap(), LogSink::Stderr));
        assert!(matches!(LogSink::open(None, false).unwrap(), LogSink::Nowhere));
        assert!(LogSink::open(Some(Path::new("/nonexistent/log")), true).is_err());
    }
}
