//! Exit codes and the errors that carry them.

use std::process::ExitCode;

use serde::Serialize;

use crate::output::Format;

/// Why a command failed, as a number that scripts can branch on. 2 is a usage error, as clap reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// 1: anything else.
    Failure,
    /// 2: a flag, a name or a file that cannot mean anything.
    Usage,
    /// 3: what was named does not exist.
    NotFound,
    /// 4: it is taken, exhausted or there already.
    Conflict,
    /// 5: token, role or privilege do not allow it.
    NotPermitted,
    /// 6: the controller or the agent cannot be reached.
    Unreachable,
    /// 7: it took longer than allowed.
    TimedOut,
}

impl Kind {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::NotPermitted => 5,
            Self::Unreachable => 6,
            Self::TimedOut => 7,
        }
    }

    /// The kind that an HTTP status of znet's APIs stands for.
    pub fn of_status(status: u16) -> Self {
        match status {
            400 | 413 | 422 => Self::Usage,
            401 | 403 => Self::NotPermitted,
            404 => Self::NotFound,
            409 | 507 => Self::Conflict,
            502 | 503 => Self::Unreachable,
            504 => Self::TimedOut,
            _ => Self::Failure,
        }
    }
}

/// A failed command: what happened, and what helps.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// A stable machine-readable code.
    pub code: String,
    /// What happened, to what.
    pub error: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(kind: Kind, code: &str, error: impl ToString) -> Self {
        Self { kind, code: code.to_owned(), error: error.to_string(), hint: None }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints it on standard error and returns the exit code.
    pub fn report(&self, format: Format) -> ExitCode {
        match format {
            Format::Json => eprintln!("{}", serde_json::to_string(self).unwrap_or_default()),
            Format::Table => {
                eprintln!("error: {}", self.error);
                if let Some(hint) = &self.hint {
                    eprintln!("  hint: {hint}");
                }
            }
        }
        ExitCode::from(self.kind.code())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Kind::Failure, "failure", format!("{error:#}"))
    }
}
