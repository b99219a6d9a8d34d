//! Why something is not done. Docker shows the text to whoever asked for it, and reads from the status only whether there
//! is such a method.

use axum::http::StatusCode;
use znet_local::ClientError;

/// A refusal.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// What was asked for cannot be meant.
    pub(crate) fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        let status = match &error {
            ClientError::Refused(refusal) => match StatusCode::from_u16(refusal.status) {
                // To Docker this means that there is no such method.
                Ok(StatusCode::NOT_FOUND) | Err(_) => StatusCode::UNPROCESSABLE_ENTITY,
                Ok(status) => status,
            },
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}
