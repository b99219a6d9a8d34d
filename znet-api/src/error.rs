//! Machine-readable codes of errors, the same on gRPC (metadata key `znet-code`) and REST (RFC 9457 problem details).

use serde::{Deserialize, Serialize};
use tonic::{Code, Status};
use utoipa::ToSchema;
use znet_core::controller::Rejection;

use crate::convert::ConvertError;

/// The metadata key under which a gRPC status carries its code.
pub const CODE_KEY: &str = "znet-code";
/// The metadata key under which a gRPC status tells when to ask again, in milliseconds.
pub const RETRY_KEY: &str = "znet-retry-after-ms";
/// The longest wait that a caller lets itself be told, in milliseconds.
const LONGEST_RETRY: u64 = 60_000;

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
    /// In how many milliseconds to ask again, where that helps. It is drawn anew for each refusal, so that those who are refused
    /// together do not come back together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Problem {
    /// A problem of this HTTP status and code.
    pub fn new(status: u16, code: &str, detail: impl ToString) -> Self {
        let title =
            http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
        let (code, title, detail) = (code.to_owned(), title.to_owned(), detail.to_string());
        Self { status, code, title, detail, retry_after_ms: None }
    }

    /// The same, to be asked again in so many milliseconds.
    pub fn retry_after(mut self, millis: u64) -> Self {
        self.retry_after_ms = Some(millis);
        self
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
            408 | 504 => Code::DeadlineExceeded,
            _ => Code::Internal,
        };
        let mut status = Status::new(code, self.detail.clone());
        if let Ok(value) = self.code.parse() {
            status.metadata_mut().insert(CODE_KEY, value);
        }
        if let Some(millis) = self.retry_after_ms {
            status.metadata_mut().insert(RETRY_KEY, millis.into());
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
            | Rejection::UnknownContainer { .. }
            | Rejection::UnknownAccess { .. } => 404,
            Rejection::TooManyEndpoints { .. }
            | Rejection::UnusableEndpoint { .. }
            | Rejection::UnusableKey { .. }
            | Rejection::LifetimeTooShort { .. }
            | Rejection::TooManyNamed { .. }
            | Rejection::UnusablePort
            | Rejection::OutsidePrefix { .. }
            | Rejection::UnusableAddress { .. }
            | Rejection::TooManyAddresses { .. }
            | Rejection::OverlappingPrefixes { .. }
            | Rejection::TooManyPrefixes { .. }
            | Rejection::UnusablePrefix { .. }
            | Rejection::UnusableController { .. }
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
        let retry = status.metadata().get(RETRY_KEY).and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after_ms = retry.map(|millis: u64| millis.min(LONGEST_RETRY));
        Self { retry_after_ms, ..Self::new(http, code, status.message()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_its_way_as_a_status() {
        let problem = Problem::new(429, "overloaded", "too much").retry_after(1_234);
        let read = Problem::from(&problem.to_status());
        assert_eq!((read.code.as_str(), read.retry_after_ms), ("overloaded", Some(1_234)));
        // Nobody is kept away for ever by a number.
        let forged = Problem::new(503, "draining", "").retry_after(u64::MAX);
        assert_eq!(Problem::from(&forged.to_status()).retry_after_ms, Some(LONGEST_RETRY));
        assert_eq!(Problem::from(&Status::unavailable("gone")).retry_after_ms, None);
    }
}
