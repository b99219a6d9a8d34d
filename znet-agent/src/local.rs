//! The socket on which runtimes and people talk to the agent: JSON over HTTP on a Unix socket that only root may use.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use znet_api::error::Problem;
use znet_api::token::{JoinToken, TokenError};
use znet_api::v1;
use znet_core::name::Name;
use znet_local::{
    CheckRequest, Checked, CollectRequest, Collected, DetachOwnedRequest, HandOverRequest, LendRequest,
    Readiness, ReadyRequest,
};
use znet_wg::control::{DeviceStats, NetworkStats};

use crate::access;
use crate::agent::{Agent, Joined};
use crate::attach::{AttachOrder, attach, blocking, detach};
use crate::backend::Kind;
use crate::dns::serve::DnsStats;
use crate::error::AgentError;
use crate::files::Attachment;
use crate::{control, lent, owned};

pub use znet_local::{AttachRequest, AttachedContainer, DetachRequest, Detached, SOCKET};

/// Largest request in bytes.
const MAX_BODY: usize = 64 << 10;
/// Largest list in bytes of what a runtime knows: some 50,000 containers.
const MAX_KNOWN: usize = 8 << 20;
/// The longest that a request may wait for a controller.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

/// An attached container in [`NetworkStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The container.
    #[serde(flatten)]
    pub container: AttachedContainer,
    /// Its figures, once it is served.
    #[serde(default)]
    pub stats: Option<DeviceStats>,
    /// What its resolver was asked.
    #[serde(default)]
    pub dns_stats: Option<DnsStats>,
}

/// `POST /v1/join`
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The join token's text.
    pub token: String,
}

/// A network that was joined or left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinedNetwork {
    /// Its name.
    pub network: String,
    /// Its identifier.
    pub id: String,
}

impl From<&Joined> for JoinedNetwork {
    fn from(joined: &Joined) -> Self {
        Self { network: joined.membership.name.to_string(), id: joined.membership.network.to_string() }
    }
}

/// A network in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name.
    pub name: String,
    /// Its identifier.
    pub id: String,
    /// Whether the controller is connected.
    pub connected: bool,
    /// The revision applied.
    pub revision: u64,
    /// The node's UDP port of this network.
    pub port: u16,
    /// Number of nodes in the map.
    pub nodes: usize,
    /// Number of containers in the map.
    pub containers: usize,
    /// What came in on the port and was dropped, as it is no container's.
    #[serde(default)]
    pub dropped: NetworkStats,
    /// The containers of this node.
    pub attached: Vec<ContainerStatus>,
    /// The access points of this node.
    #[serde(default)]
    pub access: Vec<ServedAccess>,
}

/// An access point: a person's device that this node lets in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServedAccess {
    /// Its name.
    pub name: String,
    /// The number of the container as which the others see it.
    pub container: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The UDP port at which the person's device is served, once it is.
    pub port: Option<u16>,
    /// The name under which `wg(8)` finds the device towards the network.
    pub inner_device: String,
    /// The name under which `wg(8)` finds the device towards the person.
    pub outer_device: String,
    /// The figures of the device towards the network.
    pub inner: Option<DeviceStats>,
    /// The figures of the device towards the person.
    pub outer: Option<DeviceStats>,
}

/// What moves the packets, and why it is that.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendStatus {
    /// The kernel's WireGuard, or the engine.
    pub kind: Kind,
    /// Why it is this one.
    pub why: String,
}

/// `GET /v1/status`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The node's identifier.
    pub node: String,
    /// The version of znet.
    pub version: String,
    /// What moves the packets.
    pub backend: BackendStatus,
    /// The engine's process; absent while there is none.
    pub engine_pid: Option<u32>,
    /// The networks of this node.
    pub networks: Vec<NetworkStatus>,
}

struct Failed(AgentError);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let problem = self.0.problem();
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [("content-type", "application/problem+json")], Json(problem)).into_response()
    }
}

impl From<AgentError> for Failed {
    fn from(error: AgentError) -> Self {
        Self(error)
    }
}

/// Opens the socket.
///
/// # Errors
/// [`AgentError::File`], also when another agent answers there.
pub fn bind(path: &Path) -> Result<UnixListener, AgentError> {
    let file = |source| AgentError::File { path: path.to_owned(), source };
    znet_cli::socket::bind(path).and_then(UnixListener::from_std).map_err(file)
}

/// Answers until the process ends.
///
/// # Errors
/// The socket's.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/attach", post(attach_one))
        .route("/v1/detach", post(detach_one))
        .route("/v1/owned/detach", post(detach_owned))
        .route("/v1/owned/check", post(check_owned))
        .route("/v1/owned/collect", post(collect_owned).layer(DefaultBodyLimit::max(MAX_KNOWN)))
        .route("/v1/owned/lend", post(lend))
        .route("/v1/owned/hand-over", post(hand_over))
        .route("/v1/ready", post(ready))
        .route("/v1/join", post(join))
        .route("/v1/status", get(status))
        .route("/v1/networks/{network}/leave", post(leave))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(agent);
    axum::serve(listener, router).await
}

fn name(text: &str) -> Result<Name, AgentError> {
    text.parse().map_err(|error| AgentError::Invalid(format!("{text:?}: {error}")))
}

/// Bodies are read by hand, so that a malformed one is a problem like every other error.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, AgentError> {
    serde_json::from_slice(body).map_err(|error| AgentError::Invalid(format!("the request: {error}")))
}

async fn attach_one(
    State(agent): State<Arc<Agent>>,
    body: bytes::Bytes,
) -> Result<Json<AttachedContainer>, Failed> {
    let request: AttachRequest = parse(&body)?;
    let joined = agent.network_named(&request.network)?;
    let order = AttachOrder {
        name: name(&request.name)?,
        netns: request.netns,
        ifname: request.ifname,
        addresses: request.addresses,
        wait: request.wait_millis.map(Duration::from_millis),
        wait_controller: Duration::from_millis(request.wait_controller_millis.unwrap_or_default())
            .min(MAX_WAIT),
        owner: request.owner,
        no_dns: request.no_dns,
        lent: false,
    };
    if order.owner.is_some() {
        let attachment = owned::attach_owned(&agent, &joined, order).await?;
        return Ok(Json(blocking(move || Ok(describe(&agent, &joined, &attachment))).await?));
    }
    let working = agent.clone();
    let (network, member) = (joined.clone(), joined.clone());
    // On a task of its own: a caller that hangs up does not leave an attach half done.
    let attached = tokio::spawn(async move { attach(&working, &member, order).await }).await;
    let attachment = attached.map_err(|error| AgentError::Invalid(error.to_string()))??;
    Ok(Json(blocking(move || Ok(describe(&agent, &network, &attachment))).await?))
}

async fn lend(
    State(agent): State<Arc<Agent>>,
    body: bytes::Bytes,
) -> Result<Json<AttachedContainer>, Failed> {
    let request: LendRequest = parse(&body)?;
    let joined = agent.network_named(&request.network)?;
    let order = AttachOrder {
        name: name(&request.name)?,
        netns: PathBuf::new(),
        ifname: String::new(),
        addresses: request.addresses,
        wait: None,
        wait_controller: Duration::from_millis(request.wait_controller_millis.unwrap_or_default())
            .min(MAX_WAIT),
        owner: Some(request.owner),
        no_dns: request.no_dns,
        lent: true,
    };
    let attachment = owned::attach_owned(&agent, &joined, order).await?;
    Ok(Json(blocking(move || Ok(describe(&agent, &joined, &attachment))).await?))
}

async fn hand_over(
    State(agent): State<Arc<Agent>>,
    body: bytes::Bytes,
) -> Result<Json<AttachedContainer>, Failed> {
    let request: HandOverRequest = parse(&body)?;
    let working = agent.clone();
    let done = tokio::spawn(async move { lent::hand_over(&working, request).await }).await;
    let (joined, attachment) = done.map_err(|error| AgentError::Invalid(error.to_string()))??;
    Ok(Json(blocking(move || Ok(describe(&agent, &joined, &attachment))).await?))
}

async fn detach_one(State(agent): State<Arc<Agent>>, body: bytes::Bytes) -> Result<Json<Detached>, Failed> {
    let request: DetachRequest = parse(&body)?;
    let joined = agent.network_named(&request.network)?;
    let name = name(&request.name)?;
    let done = tokio::spawn(async move { detach(&agent, &joined, &name).await }).await;
    let was_attached = done.map_err(|error| AgentError::Invalid(error.to_string()))??;
    Ok(Json(Detached { was_attached }))
}

async fn detach_owned(State(agent): State<Arc<Agent>>, body: bytes::Bytes) -> Result<Json<Detached>, Failed> {
    let request: DetachOwnedRequest = parse(&body)?;
    let done = tokio::spawn(async move { owned::detach_owned(&agent, &request.owner).await }).await;
    let was_attached = done.map_err(|error| AgentError::Invalid(error.to_string()))??;
    Ok(Json(Detached { was_attached }))
}

async fn check_owned(State(agent): State<Arc<Agent>>, body: bytes::Bytes) -> Result<Json<Checked>, Failed> {
    let request: CheckRequest = parse(&body)?;
    let (joined, attachment, wrong) = owned::check(&agent, &request).await?;
    let container = blocking(move || Ok(describe(&agent, &joined, &attachment))).await?;
    Ok(Json(Checked { container, wrong }))
}

async fn collect_owned(
    State(agent): State<Arc<Agent>>,
    body: bytes::Bytes,
) -> Result<Json<Collected>, Failed> {
    let request: CollectRequest = parse(&body)?;
    let done = tokio::spawn(async move { owned::collect(&agent, request).await }).await;
    Ok(Json(done.map_err(|error| AgentError::Invalid(error.to_string()))?))
}

async fn ready(State(agent): State<Arc<Agent>>, body: bytes::Bytes) -> Result<Json<Readiness>, Failed> {
    let request: ReadyRequest = parse(&body)?;
    let controller = match &request.network {
        Some(name) => agent.network_named(name)?.controller.is_connected(),
        None => agent.networks().iter().any(|joined| joined.controller.is_connected()),
    };
    let engine = blocking(move || Ok(agent.backend().works())).await?;
    Ok(Json(Readiness { engine, controller }))
}

async fn status(State(agent): State<Arc<Agent>>) -> Result<Json<Status>, Failed> {
    Ok(Json(blocking(move || Ok(status_of(&agent))).await?))
}

async fn join(State(agent): State<Arc<Agent>>, body: bytes::Bytes) -> Result<Json<JoinedNetwork>, Failed> {
    let request: JoinRequest = parse(&body)?;
    let token: JoinToken = request.token.parse().map_err(|error: TokenError| AgentError::Token(error))?;
    let joined = tokio::spawn(async move { control::join_by_token(&agent, &token, false).await }).await;
    let joined = joined.map_err(|error| AgentError::Invalid(error.to_string()))??;
    Ok(Json(JoinedNetwork::from(&*joined)))
}

async fn leave(
    State(agent): State<Arc<Agent>>,
    UrlPath(network): UrlPath<String>,
) -> Result<Json<JoinedNetwork>, Failed> {
    let joined = agent.network_named(&network)?;
    let id = joined.membership.network;
    let request = v1::LeaveRequest { network: id.as_bytes().to_vec() };
    let left = joined.controller()?.leave(request).await;
    left.map_err(|status| AgentError::Controller(Problem::from(&status)))?;
    blocking(move || {
        agent.forget(id);
        Ok(())
    })
    .await?;
    Ok(Json(JoinedNetwork::from(&*joined)))
}

fn describe(agent: &Agent, joined: &Joined, attachment: &Attachment) -> AttachedContainer {
    let device =
        agent.backend().device(joined.membership.network, attachment.container).map(|device| device.mtu);
    let dns = agent.dns.config(&joined.membership.name, attachment);
    AttachedContainer {
        network: joined.membership.name.to_string(),
        name: attachment.name.to_string(),
        container: attachment.container.get(),
        netns: attachment.netns.clone(),
        ifname: attachment.ifname.clone(),
        device: attachment.device.clone(),
        addresses: attachment.addresses.clone(),
        routes: joined.prefixes(),
        mtu: device,
        owner: attachment.owner.clone(),
        dns,
    }
}

fn status_of(agent: &Agent) -> Status {
    let (backend, engine_pid, stats) = {
        let mut backend = agent.backend();
        let which = BackendStatus { kind: backend.kind(), why: backend.why.clone() };
        (which, backend.pid(), backend.stats().unwrap_or_default())
    };
    let networks = agent.networks().into_iter().map(|joined| {
        let (attachments, revision, nodes, containers) = {
            let state = joined.state();
            let map = state.member.map();
            let all: Vec<_> = state.attachments.values().cloned().collect();
            (all, state.member.revision().get(), map.nodes().len(), map.containers().len())
        };
        let id = joined.membership.network;
        let of = |container| {
            stats.devices.iter().find(|(n, c, ..)| *n == id && *c == container).map(|(.., stats)| *stats)
        };
        NetworkStatus {
            name: joined.membership.name.to_string(),
            id: id.to_string(),
            connected: joined.controller.is_connected(),
            revision,
            port: joined.membership.port,
            nodes,
            containers,
            dropped: stats
                .networks
                .iter()
                .find(|(n, _)| *n == id)
                .map(|(_, stats)| *stats)
                .unwrap_or_default(),
            access: access::status(agent, &joined, &stats),
            attached: attachments
                .iter()
                .map(|a| ContainerStatus {
                    container: describe(agent, &joined, a),
                    stats: of(a.container),
                    dns_stats: agent.dns.stats(a),
                })
                .collect(),
        }
    });
    Status {
        node: agent.node.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        backend,
        engine_pid,
        networks: networks.collect(),
    }
}
