//! One connection: who is at the other end, and which door a request goes through.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use znet_api::tls::node_of;

use super::newcomers::{Newcomer, Newcomers};
use crate::grpc::{self, Caller};
use crate::hub::Hub;
use crate::rest;

/// Most connections at a time, where the system lets the process open as many files; more are closed as they come.
const MAX_CONNECTIONS: u64 = 16_384;
/// Files that are no connections: the store's, the listeners, backups under way.
const OTHER_FILES: u64 = 256;
/// The fewest connections that make sense, however few files there are.
const MIN_CONNECTIONS: u64 = 64;
/// How long the TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of an HTTP/1.1 request may take, how long such a connection may idle, and how long any connection
/// may take to ask for something at all.
const REQUEST_HEAD: Duration = Duration::from_secs(30);
/// Most requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// How often a silent HTTP/2 connection is probed, so that dead ones do not pile up.
const PROBE: Duration = Duration::from_secs(20);
/// How long a probe may go unanswered.
const PROBE_TERM: Duration = Duration::from_secs(10);

/// The way in for connections of all kinds.
#[derive(Clone)]
pub(super) struct Doors {
    hub: Arc<Hub>,
    grpc: grpc::Door,
    rest: Router,
    acceptor: TlsAcceptor,
    places: Arc<Semaphore>,
    newcomers: Arc<Newcomers>,
}

/// Who is at the other end.
#[derive(Clone, Copy)]
struct Peer {
    /// How an operator comes in.
    door: rest::Door,
    /// The node that proved its key.
    node: Option<Caller>,
}

impl Doors {
    pub(super) fn new(hub: Arc<Hub>, tls: Arc<rustls::ServerConfig>) -> Self {
        let places = places();
        Self {
            grpc: grpc::Door::new(hub.clone()),
            rest: rest::router(hub.clone()),
            acceptor: TlsAcceptor::from(tls),
            places: Arc::new(Semaphore::new(places)),
            newcomers: Newcomers::new(places / 2),
            hub,
        }
    }

    /// A place for one more connection; `None` when there are as many as may be.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.places.clone().try_acquire_owned().ok();
        if place.is_none() {
            self.hub.metrics().bound_hit("connections");
        }
        place
    }

    /// Serves a connection to the TLS port until it ends.
    pub(super) async fn tls(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        stop: &CancellationToken,
        _place: OwnedSemaphorePermit,
    ) {
        // Small answers must not wait for more; a socket that refuses the option works all the same.
        let _ = stream.set_nodelay(true);
        let Some(newcomer) = self.newcomers.admit(from.ip()) else {
            return self.hub.metrics().bound_hit("newcomers_of_a_source");
        };
        let shaken = async {
            // Who says nothing costs no state of TLS.
            stream.readable().await?;
            self.acceptor.accept(stream).await
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE, shaken) => shaken,
            () = stop.cancelled() => return,
        };
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.no_handshake(from, &error),
            Err(_) => return self.no_handshake(from, &"it took too long"),
        };
        let node = node_of(stream.get_ref().1.peer_certificates()).map(Caller);
        self.serve(stream, Peer { door: rest::Door::Tls, node }, Some(newcomer), stop).await;
    }

    fn no_handshake(&self, from: SocketAddr, why: &dyn std::fmt::Display) {
        self.hub.metrics().handshakes_failed.inc();
        tracing::debug!(%from, %why, "no TLS handshake");
    }

    /// Serves a connection to the Unix socket until it ends. The file's mode keeps others out; root and the
    /// controller's own user are admin.
    pub(super) async fn local(
        &self,
        stream: UnixStream,
        stop: &CancellationToken,
        _place: OwnedSemaphorePermit,
    ) {
        let own = nix::unistd::geteuid().as_raw();
        match stream.peer_cred().map(|peer| peer.uid()) {
            Ok(uid) if uid == 0 || uid == own => {
                self.serve(stream, Peer { door: rest::Door::Socket { uid }, node: None }, None, stop).await;
            }
            Ok(uid) => tracing::warn!(uid, "a user who is not root was turned away at the socket"),
            Err(error) => tracing::warn!(%error, "somebody at the socket cannot be told"),
        }
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        newcomer: Option<Newcomer>,
        stop: &CancellationToken,
    ) {
        let metrics = self.hub.metrics();
        metrics.connections.inc();
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(REQUEST_HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(PROBE)
            .keep_alive_timeout(PROBE_TERM);
        let (grpc, rest) = (self.grpc.clone(), self.rest.clone());
        let first = Arc::new(FirstRequest { came: CancellationToken::new(), newcomer: Mutex::new(newcomer) });
        let waited = first.clone();
        let service = hyper::service::service_fn(move |request| {
            first.note();
            answer(grpc.clone(), rest.clone(), peer, request)
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = waited.overdue() => {
                metrics.bound_hit("first_request");
                Ok(())
            }
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
        metrics.connections.dec();
    }
}

/// Connections for which there is room: as many as the process may open files, less those that it needs itself.
fn places() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let places = files.saturating_sub(OTHER_FILES).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS);
    usize::try_from(places).unwrap_or(usize::MAX)
}

/// Whether a connection has asked for anything yet. Until it has, it counts as its source's newcomer.
struct FirstRequest {
    came: CancellationToken,
    newcomer: Mutex<Option<Newcomer>>,
}

impl FirstRequest {
    fn note(&self) {
        if !self.came.is_cancelled() {
            self.came.cancel();
            self.newcomer.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Returns when the first request is overdue; never when it came.
    async fn overdue(&self) {
        if tokio::time::timeout(REQUEST_HEAD, self.came.cancelled()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    }
}

/// Agents speak gRPC, and everything else is for operators.
async fn answer(
    grpc: grpc::Door,
    rest: Router,
    peer: Peer,
    mut request: http::Request<Incoming>,
) -> Result<http::Response<axum::body::Body>, Infallible> {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc {
        request.extensions_mut().insert(peer.door);
        return rest.oneshot(request.map(axum::body::Body::new)).await;
    }
    if let Some(node) = peer.node {
        request.extensions_mut().insert(node);
    }
    Ok(grpc.oneshot(request).await?.map(axum::body::Body::new))
}
