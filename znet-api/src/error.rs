//! Machine-readable codes of errors, the same on gRPC (metadata key `znet-code`) and REST (RFC 9457 problem details).

use serde::{Deserialize, Serialize};
use tonic::{Code, Status};
use utoipa::ToSchema;
use znet_core::controller::Rejection;

use crate::convert::ConvertError;

/// The metadata key under which a gRPC status carries its code.
pub const CODE_KEY: &str = "znet-code";

/// A request was refused: what a user or a program needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Stable machine-readable code: lower case words with underscores.
    pub code: String,
    /// The status in words.
    pub title: String,
    /// What happened, to what, and what helps.
    pub detail: String,
}

impl Problem {
    /// A problem of this HTTP status and code.
    pub fn new(status: u16, code: &str, detail: impl ToString) -> Self {
        let title =
            http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
        Self { status, code: code.to_owned(), title: title.to_owned(), detail: detail.to_string() }
    }

    /// The same refusal as a gRPC status.
    pub fn to_status(&self) -> Status {
        let code = match self.status {
            400 | 413 | 422 => Code::InvalidArgument,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::NotFound,
            409 => Code::FailedPrecondition,
            429 | 507 => Code::ResourceExhausted,
            503 => Code::Unavailable,
            504 => Code::DeadlineExceeded,
            _ => Code::Internal,
        };
        let mut status = Status::new(code, self.detail.clone());
        if let Ok(value) = self.code.parse() {
            status.metadata_mut().insert(CODE_KEY, value);
        }
        status
    }
}

impl From<&Rejection> for Problem {
    fn from(rejection: &Rejection) -> Self {
        let status = match rejection {
            Rejection::UnknownToken
            | Rejection::ExpiredToken { .. }
            | Rejection::UsedUpToken { .. }
            | Rejection::RevokedToken { .. } => 403,
            Rejection::NoSuchToken { .. }
            | Rejection::UnknownNode { .. }
            | Rejection::UnknownContainer { .. } => 404,
            Rejection::TooManyEndpoints { .. }
            | Rejection::OutsidePrefix { .. }
            | Rejection::UnusableAddress { .. }
            | Rejection::TooManyAddresses { .. }
            | Rejection::OverlappingPrefixes { .. }
            | Rejection::TooManyPrefixes { .. }
            | Rejection::UnusablePrefix { .. }
            | Rejection::ReservedOutside { .. } => 422,
            _ => 409,
        };
        Self::new(status, rejection.code(), rejection)
    }
}

impl From<&ConvertError> for Problem {
    fn from(error: &ConvertError) -> Self {
        Self::new(400, "invalid_argument", error)
    }
}

impl From<&Status> for Problem {
    fn from(status: &Status) -> Self {
        let http = match status.code() {
            Code::InvalidArgument => 400,
            Code::Unauthenticated => 401,
            Code::PermissionDenied => 403,
            Code::NotFound => 404,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => 409,
            Code::ResourceExhausted => 507,
            Code::Unavailable | Code::Cancelled => 503,
            Code::DeadlineExceeded => 504,
            _ => 500,
        };
        let code =
            status.metadata().get(CODE_KEY).and_then(|value| value.to_str().ok()).unwrap_or("unavailable");
        Self::new(http, code, status.message())
    }
}
