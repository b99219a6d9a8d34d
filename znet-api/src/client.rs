//! A client of the operators' REST API, over the controller's Unix socket or over pinned TLS with an operator's token.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::agent_client::{root_cause, tls_stream};
use crate::error::Problem;
use crate::rest::{
    Access, AuditRecord, ChangeControllers, ChangeNetwork, Container, Controller, CreateAccess,
    CreateNetwork, CreateOperator, CreateToken, Garbage, Health, Network, NetworkStatus, NewOperator,
    NewToken, Node, Operator, Removed, Reservation, Reserve, RotateKeys, RotateTls, Rotating, SetControllers,
    SigningKeys, TlsKeys, Token,
};
use crate::tls::{Pin, PinMismatch, client_config, pin_mismatch};
use crate::token::OperatorToken;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer in bytes that is read; a backup has its own.
const MAX_ANSWER: usize = 256 << 20;

/// The header of every answer that tells the pin of the TLS key that the controller shows.
pub const PIN_HEADER: &str = "znet-pin";

/// Where a controller is and how to be known to it.
#[derive(Clone, Debug)]
pub enum Target {
    /// The Unix socket of a controller on this machine; its owner is admin.
    Socket(PathBuf),
    /// A controller anywhere.
    Remote {
        /// `HOST:PORT`.
        address: String,
        /// The pin of its TLS key.
        pin: Pin,
        /// The token that is presented.
        token: OperatorToken,
    },
}

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The controller refused.
    #[error("{0}")]
    Problem(Problem),
    /// It cannot be reached.
    #[error("the controller cannot be reached at {target}: {why}")]
    Unreachable {
        /// Where it was looked for.
        target: String,
        /// What happened.
        why: String,
    },
    /// It showed another key than the pinned one.
    #[error(transparent)]
    PinMismatch(#[from] PinMismatch),
    /// Whatever answered is no controller of a version that this one understands.
    #[error("the answer cannot be understood: {0}")]
    Protocol(String),
    /// It took too long.
    #[error("the controller did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// A client of one controller. Every call is one connection.
#[derive(Clone, Debug)]
pub struct ControllerClient {
    target: Target,
    newer: Arc<Mutex<Option<Pin>>>,
}

impl ControllerClient {
    /// A client; nothing is connected yet.
    pub fn new(target: Target) -> Self {
        Self { target, newer: Arc::default() }
    }

    /// The pin of the key that the controller shows now, where it has told that this is another than the one that is pinned
    /// here, which it gives up some day.
    pub fn newer_pin(&self) -> Option<Pin> {
        *self.newer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_pin(&self, headers: &http::HeaderMap) {
        let told = headers.get(PIN_HEADER).and_then(|pin| pin.to_str().ok()?.parse::<Pin>().ok());
        if let (Target::Remote { pin, .. }, Some(told)) = (&self.target, told) {
            *self.newer.lock().unwrap_or_else(PoisonError::into_inner) = (told != *pin).then_some(told);
        }
    }

    /// `GET /healthz`
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("/healthz").await
    }

    /// `GET /v1/networks`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn networks(&self) -> Result<Vec<Network>, ClientError> {
        self.get("/v1/networks").await
    }

    /// `POST /v1/networks`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_network(&self, request: &CreateNetwork) -> Result<Network, ClientError> {
        self.call(Method::POST, "/v1/networks", Some(request)).await
    }

    /// `GET /v1/networks/{network}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn network(&self, network: &str) -> Result<Network, ClientError> {
        self.get(&format!("/v1/networks/{network}")).await
    }

    /// `PATCH /v1/networks/{network}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_network(
        &self,
        network: &str,
        request: &ChangeNetwork,
    ) -> Result<Network, ClientError> {
        self.call(Method::PATCH, &format!("/v1/networks/{network}"), Some(request)).await
    }

    /// `DELETE /v1/networks/{network}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_network(&self, network: &str) -> Result<Removed, ClientError> {
        self.delete(&format!("/v1/networks/{network}")).await
    }

    /// `GET /v1/networks/{network}/status`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self, network: &str) -> Result<NetworkStatus, ClientError> {
        self.get(&format!("/v1/networks/{network}/status")).await
    }

    /// `POST /v1/networks/{network}/epoch`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn new_epoch(&self, network: &str) -> Result<Network, ClientError> {
        self.call(Method::POST, &format!("/v1/networks/{network}/epoch"), None::<&()>).await
    }

    /// `GET /v1/networks/{network}/controllers`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn controllers(&self, network: &str) -> Result<Vec<Controller>, ClientError> {
        self.get(&format!("/v1/networks/{network}/controllers")).await
    }

    /// `PUT /v1/networks/{network}/controllers`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_controllers(
        &self,
        network: &str,
        request: &SetControllers,
    ) -> Result<Vec<Controller>, ClientError> {
        self.call(Method::PUT, &format!("/v1/networks/{network}/controllers"), Some(request)).await
    }

    /// `PATCH /v1/networks/{network}/controllers`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_controllers(
        &self,
        network: &str,
        request: &ChangeControllers,
    ) -> Result<Vec<Controller>, ClientError> {
        self.call(Method::PATCH, &format!("/v1/networks/{network}/controllers"), Some(request)).await
    }

    /// `GET /v1/networks/{network}/key`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn signing_keys(&self, network: &str) -> Result<SigningKeys, ClientError> {
        self.get(&format!("/v1/networks/{network}/key")).await
    }

    /// `POST /v1/networks/{network}/key`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rotate_key(&self, network: &str) -> Result<SigningKeys, ClientError> {
        self.call(Method::POST, &format!("/v1/networks/{network}/key"), None::<&()>).await
    }

    /// `POST /v1/networks/{network}/key/retire`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn retire_keys(&self, network: &str) -> Result<SigningKeys, ClientError> {
        self.call(Method::POST, &format!("/v1/networks/{network}/key/retire"), None::<&()>).await
    }

    /// `GET /v1/tls`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn tls(&self) -> Result<TlsKeys, ClientError> {
        self.get("/v1/tls").await
    }

    /// `POST /v1/tls/rotate`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rotate_tls(&self, request: &RotateTls) -> Result<TlsKeys, ClientError> {
        self.call(Method::POST, "/v1/tls/rotate", Some(request)).await
    }

    /// `POST /v1/tls/promote`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn promote_tls(&self) -> Result<TlsKeys, ClientError> {
        self.call(Method::POST, "/v1/tls/promote", None::<&()>).await
    }

    /// `POST /v1/tls/retire`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn retire_tls(&self) -> Result<TlsKeys, ClientError> {
        self.call(Method::POST, "/v1/tls/retire", None::<&()>).await
    }

    /// `GET /v1/networks/{network}/tokens`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn tokens(&self, network: &str) -> Result<Vec<Token>, ClientError> {
        self.get(&format!("/v1/networks/{network}/tokens")).await
    }

    /// `POST /v1/networks/{network}/tokens`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_token(&self, network: &str, request: &CreateToken) -> Result<NewToken, ClientError> {
        self.call(Method::POST, &format!("/v1/networks/{network}/tokens"), Some(request)).await
    }

    /// `DELETE /v1/networks/{network}/tokens/{id}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_token(&self, network: &str, id: &str) -> Result<Token, ClientError> {
        self.delete(&format!("/v1/networks/{network}/tokens/{id}")).await
    }

    /// `DELETE /v1/networks/{network}/tokens/{id}?with_nodes=true`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_token_with_nodes(&self, network: &str, id: &str) -> Result<Token, ClientError> {
        self.delete(&format!("/v1/networks/{network}/tokens/{id}?with_nodes=true")).await
    }

    /// `GET /v1/networks/{network}/garbage`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn garbage(&self, network: &str) -> Result<Garbage, ClientError> {
        self.get(&format!("/v1/networks/{network}/garbage")).await
    }

    /// `POST /v1/networks/{network}/garbage`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn collect_garbage(&self, network: &str) -> Result<Garbage, ClientError> {
        self.call(Method::POST, &format!("/v1/networks/{network}/garbage"), None::<&()>).await
    }

    /// `GET /v1/networks/{network}/nodes`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn nodes(&self, network: &str) -> Result<Vec<Node>, ClientError> {
        self.get(&format!("/v1/networks/{network}/nodes")).await
    }

    /// `GET /v1/networks/{network}/nodes/{node}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn node(&self, network: &str, node: &str) -> Result<Node, ClientError> {
        self.get(&format!("/v1/networks/{network}/nodes/{node}")).await
    }

    /// `DELETE /v1/networks/{network}/nodes/{node}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_node(&self, network: &str, node: &str) -> Result<Removed, ClientError> {
        self.delete(&format!("/v1/networks/{network}/nodes/{node}")).await
    }

    /// `GET /v1/networks/{network}/containers`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn containers(&self, network: &str) -> Result<Vec<Container>, ClientError> {
        self.get(&format!("/v1/networks/{network}/containers")).await
    }

    /// `GET /v1/networks/{network}/containers/{name}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn container(&self, network: &str, name: &str) -> Result<Container, ClientError> {
        self.get(&format!("/v1/networks/{network}/containers/{name}")).await
    }

    /// `DELETE /v1/networks/{network}/containers/{name}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_container(&self, network: &str, name: &str) -> Result<Removed, ClientError> {
        self.delete(&format!("/v1/networks/{network}/containers/{name}")).await
    }

    /// `POST /v1/networks/{network}/keys/rotate`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rotate_keys(&self, network: &str, request: &RotateKeys) -> Result<Rotating, ClientError> {
        self.call(Method::POST, &format!("/v1/networks/{network}/keys/rotate"), Some(request)).await
    }

    /// `GET /v1/networks/{network}/access`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn accesses(&self, network: &str) -> Result<Vec<Access>, ClientError> {
        self.get(&format!("/v1/networks/{network}/access")).await
    }

    /// `GET /v1/networks/{network}/access/{name}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn access(&self, network: &str, name: &str) -> Result<Access, ClientError> {
        self.get(&format!("/v1/networks/{network}/access/{name}")).await
    }

    /// `PUT /v1/networks/{network}/access/{name}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_access(
        &self,
        network: &str,
        name: &str,
        request: &CreateAccess,
    ) -> Result<Access, ClientError> {
        self.call(Method::PUT, &format!("/v1/networks/{network}/access/{name}"), Some(request)).await
    }

    /// `DELETE /v1/networks/{network}/access/{name}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_access(&self, network: &str, name: &str) -> Result<Removed, ClientError> {
        self.delete(&format!("/v1/networks/{network}/access/{name}")).await
    }

    /// `GET /v1/networks/{network}/reservations`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reservations(&self, network: &str) -> Result<Vec<Reservation>, ClientError> {
        self.get(&format!("/v1/networks/{network}/reservations")).await
    }

    /// `PUT /v1/networks/{network}/reservations/{name}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reserve(
        &self,
        network: &str,
        name: &str,
        request: &Reserve,
    ) -> Result<Reservation, ClientError> {
        self.call(Method::PUT, &format!("/v1/networks/{network}/reservations/{name}"), Some(request)).await
    }

    /// `DELETE /v1/networks/{network}/reservations/{name}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn unreserve(&self, network: &str, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/networks/{network}/reservations/{name}");
        self.request(Method::DELETE, &path, Bytes::new()).await.map(drop)
    }

    /// `GET /v1/networks/{network}/audit?after=…&limit=…`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit(
        &self,
        network: &str,
        after: u64,
        limit: u32,
    ) -> Result<Vec<AuditRecord>, ClientError> {
        self.get(&format!("/v1/networks/{network}/audit?after={after}&limit={limit}")).await
    }

    /// `GET /v1/audit?after=…&limit=…`: of all networks, those that were deleted included, and of the controller itself.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit_all(&self, after: u64, limit: u32) -> Result<Vec<AuditRecord>, ClientError> {
        self.get(&format!("/v1/audit?after={after}&limit={limit}")).await
    }

    /// `GET /v1/operators`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn operators(&self) -> Result<Vec<Operator>, ClientError> {
        self.get("/v1/operators").await
    }

    /// `POST /v1/operators`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_operator(&self, request: &CreateOperator) -> Result<NewOperator, ClientError> {
        self.call(Method::POST, "/v1/operators", Some(request)).await
    }

    /// `DELETE /v1/operators/{id}`
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_operator(&self, id: &str) -> Result<(), ClientError> {
        self.request(Method::DELETE, &format!("/v1/operators/{id}"), Bytes::new()).await.map(drop)
    }

    /// `POST /v1/backup`: the backup file.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn backup(&self) -> Result<Bytes, ClientError> {
        self.request(Method::POST, "/v1/backup", Bytes::new()).await
    }

    /// `GET /metrics`: counters in OpenMetrics' text form.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let text = self.request(Method::GET, "/metrics", Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, None::<&()>).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let protocol = |error: serde_json::Error| ClientError::Protocol(error.to_string());
        let body = body.map(serde_json::to_vec).transpose().map_err(protocol)?.unwrap_or_default();
        let answer = self.request(method, path, body.into()).await?;
        serde_json::from_slice(&answer).map_err(protocol)
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        match tokio::time::timeout(TIMEOUT, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Timeout),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let protocol = |error: &dyn std::fmt::Display| ClientError::Protocol(error.to_string());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "znet")
            .header(http::header::CONTENT_TYPE, "application/json");
        if let Target::Remote { token, .. } = &self.target {
            let mut value = http::HeaderValue::from_str(&format!("Bearer {}", token.to_text().as_str()))
                .map_err(|error| protocol(&error))?;
            value.set_sensitive(true);
            request = request.header(http::header::AUTHORIZATION, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| protocol(&error))?;
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(|error| protocol(&root_cause(&error)))?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| protocol(&root_cause(&error)))?;
        let status = answer.status();
        self.note_pin(answer.headers());
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        connection.abort();
        let body = body.map_err(|error| ClientError::Protocol(error.to_string()))?.to_bytes();
        if status.is_success() { Ok(body) } else { Err(ClientError::Problem(problem(status, &body))) }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        let unreachable = |target: String| {
            move |error: std::io::Error| match pin_mismatch(&error) {
                Some(mismatch) => ClientError::PinMismatch(mismatch),
                None => ClientError::Unreachable { target, why: root_cause(&error) },
            }
        };
        match &self.target {
            Target::Socket(path) => {
                let stream =
                    UnixStream::connect(path).await.map_err(unreachable(path.display().to_string()))?;
                Ok(Box::new(stream))
            }
            Target::Remote { address, pin, .. } => {
                let tls = client_config(&[*pin], None, &["http/1.1"])
                    .map_err(|error| ClientError::Protocol(error.to_string()))?;
                let stream = tls_stream(address, Arc::new(tls), Some(*pin))
                    .await
                    .map_err(unreachable(address.clone()))?;
                Ok(Box::new(stream))
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

fn problem(status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body.get(..200).unwrap_or(body)).into_owned();
        Problem::new(status.as_u16(), "unknown", if text.is_empty() { status.to_string() } else { text })
    })
}
