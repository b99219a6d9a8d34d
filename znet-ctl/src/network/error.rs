//! Why a command was not carried out or a question not answered.

use znet_api::error::Problem;
use znet_core::controller::Rejection;

use crate::store::StoreError;

/// Why a network did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The rules say no.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The store takes no changes now; what is there can be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The network's queue is full.
    #[error("the network has more commands waiting than its queue holds; try again in a moment")]
    Overloaded,
    /// The network's task is being started.
    #[error("the network is being started; try again in a moment")]
    Starting,
    /// The network's task failed while it had the command.
    #[error("the network's task failed; whether the command was carried out is not known, ask again")]
    Interrupted,
    /// The network's stored state cannot be used.
    #[error("the network's state cannot be used ({why}); restore a backup with `znet-ctl restore`")]
    Broken {
        /// What is wrong with it.
        why: String,
    },
    /// The network was deleted.
    #[error("the network was deleted")]
    Deleted,
    /// No statement leads from the signing key that a node believes to the present one.
    #[error(
        "nothing leads from the signing key that this node believes to the network's present one: that key was retired, or this controller was restored from a backup older than it; the node's links go on, and a new join token helps: `znet-agent join TOKEN`"
    )]
    KeyRetired,
    /// The controller is shutting down.
    #[error("the controller is shutting down; try again when it is back")]
    Draining,
    /// It took too long.
    #[error(
        "the time that the call allows is over; whether the command was carried out is not known, ask again"
    )]
    DeadlineExceeded,
}

impl CommandError {
    /// A stable machine-readable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.code(),
            Self::Store(error) => store_code(error),
            Self::Overloaded => "overloaded",
            Self::Starting => "starting",
            Self::Interrupted => "interrupted",
            Self::Broken { .. } => "broken",
            Self::Deleted => "unknown_network",
            Self::KeyRetired => "key_retired",
            Self::Draining => "draining",
            Self::DeadlineExceeded => "deadline_exceeded",
        }
    }
}

impl CommandError {
    /// Within which time, in milliseconds, it makes sense to ask again: what waits is done in a second or two, and a start or a
    /// change of the process takes about as long. Thousands may be told at once, so the time is a range to draw from.
    fn retry_within(&self) -> Option<std::ops::Range<u64>> {
        match self {
            Self::Overloaded | Self::Draining => Some(500..4_000),
            Self::Starting | Self::Interrupted => Some(100..1_000),
            _ => None,
        }
    }
}

fn store_code(error: &StoreError) -> &'static str {
    match error {
        StoreError::Full { .. } => "store_full",
        StoreError::Conflict { .. } => "conflict",
        StoreError::UnknownNetwork { .. } => "unknown_network",
        StoreError::NameTaken { .. } => "name_taken",
        StoreError::TooMany { .. } => "full",
        StoreError::Corrupt { .. } => "store_corrupt",
        StoreError::Unavailable { .. }
        | StoreError::Compacted { .. }
        | StoreError::TooNew { .. }
        | StoreError::Unsupported { .. } => "store_unavailable",
    }
}

impl From<&CommandError> for Problem {
    fn from(error: &CommandError) -> Self {
        let status = match error {
            CommandError::Rejected(rejection) => return Self::from(rejection),
            CommandError::Store(error) => match error {
                StoreError::Full { .. } => 507,
                StoreError::UnknownNetwork { .. } => 404,
                StoreError::NameTaken { .. } | StoreError::TooMany { .. } => 409,
                StoreError::Corrupt { .. } => 500,
                _ => 503,
            },
            CommandError::KeyRetired => 409,
            CommandError::Overloaded => 429,
            CommandError::Deleted => 404,
            CommandError::Broken { .. } => 500,
            CommandError::DeadlineExceeded => 504,
            CommandError::Starting | CommandError::Interrupted | CommandError::Draining => 503,
        };
        let problem = Self::new(status, error.code(), error);
        match error.retry_within() {
            Some(range) => problem.retry_after(rand::random_range(range)),
            None => problem,
        }
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        Self::from(&error)
    }
}
