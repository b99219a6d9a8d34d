//! One connection: who is at the other end, and which door a request goes through.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use znet_api::tls::node_of;

use crate::grpc::{self, Caller};
use crate::hub::Hub;
use crate::rest;

/// Most connections at a time; more are closed as they come.
const MAX_CONNECTIONS: usize = 16_384;
/// How long the TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of an HTTP/1.1 request may take, and how long such a connection may idle.
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
        Self {
            grpc: grpc::Door::new(hub.clone()),
            rest: rest::router(hub.clone()),
            acceptor: TlsAcceptor::from(tls),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
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
        let stream = match tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.no_handshake(from, &error),
            Err(_) => return self.no_handshake(from, &"it took too long"),
        };
        let node = node_of(stream.get_ref().1.peer_certificates()).map(Caller);
        self.serve(stream, Peer { door: rest::Door::Tls, node }, stop).await;
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
                self.serve(stream, Peer { door: rest::Door::Socket { uid }, node: None }, stop).await;
            }
            Ok(uid) => tracing::warn!(uid, "a user who is not root was turned away at the socket"),
            Err(error) => tracing::warn!(%error, "somebody at the socket cannot be told"),
        }
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
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
        let service =
            hyper::service::service_fn(move |request| answer(grpc.clone(), rest.clone(), peer, request));
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
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
