//! A client of the agent's local socket, for the command line and for runtimes on the same machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use znet_api::error::Problem;

use crate::local::{
    AttachRequest, AttachedContainer, DetachRequest, Detached, JoinRequest, JoinedNetwork, Status,
};

/// Largest answer in bytes that is read: the status of some 10,000 containers.
const MAX_ANSWER: usize = 16 << 20;
/// How long a request that does not wait for anybody may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why the agent gave no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Nobody serves the socket, or it may not be used.
    #[error("the agent cannot be reached at {path}: {source}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The agent refused.
    #[error("{0}")]
    Problem(Problem),
    /// Whatever answered is no agent of a version that this one understands.
    #[error("the agent's answer cannot be understood: {0}")]
    Protocol(String),
    /// It took too long.
    #[error("the agent did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// A client of one agent. Every call is one connection.
#[derive(Clone, Debug)]
pub struct LocalClient {
    socket: PathBuf,
}

impl LocalClient {
    /// A client of the agent that serves `socket`; nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// `POST /v1/attach`
    ///
    /// # Errors
    /// [`LocalError`], as for every call.
    pub async fn attach(&self, request: &AttachRequest) -> Result<AttachedContainer, LocalError> {
        let waits = [request.wait_millis, request.wait_controller_millis];
        let waits = waits.into_iter().flatten().fold(0, u64::saturating_add);
        let patience = TIMEOUT.saturating_add(Duration::from_millis(waits));
        self.call(Method::POST, "/v1/attach", Some(request), patience).await
    }

    /// `POST /v1/detach`
    ///
    /// # Errors
    /// [`LocalError`].
    pub async fn detach(&self, request: &DetachRequest) -> Result<Detached, LocalError> {
        self.call(Method::POST, "/v1/detach", Some(request), TIMEOUT).await
    }

    /// `POST /v1/join`
    ///
    /// # Errors
    /// [`LocalError`].
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinedNetwork, LocalError> {
        self.call(Method::POST, "/v1/join", Some(request), TIMEOUT).await
    }

    /// `GET /v1/status`
    ///
    /// # Errors
    /// [`LocalError`].
    pub async fn status(&self) -> Result<Status, LocalError> {
        self.call(Method::GET, "/v1/status", None::<&()>, TIMEOUT).await
    }

    /// `POST /v1/networks/{network}/leave`
    ///
    /// # Errors
    /// [`LocalError`].
    pub async fn leave(&self, network: &str) -> Result<JoinedNetwork, LocalError> {
        self.call(Method::POST, &format!("/v1/networks/{network}/leave"), None::<&()>, TIMEOUT).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        patience: Duration,
    ) -> Result<T, LocalError> {
        match tokio::time::timeout(patience, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(LocalError::Timeout(patience)),
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, LocalError> {
        let protocol = |error: &dyn std::fmt::Display| LocalError::Protocol(error.to_string());
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| LocalError::Unreachable { path: self.socket.clone(), source })?;
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| protocol(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "znet-agent")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| protocol(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| protocol(&e))?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| protocol(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        connection.abort();
        let body = body.map_err(|error| LocalError::Protocol(error.to_string()))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| protocol(&error));
        }
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| {
            Problem::new(status.as_u16(), "unknown", String::from_utf8_lossy(&body).into_owned())
        });
        Err(LocalError::Problem(problem))
    }
}
