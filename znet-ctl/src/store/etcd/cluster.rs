//! The members of a cluster, and how a question finds one that answers.
//!
//! The client library spreads requests over the members that it was given and reports each failure of one. Here every
//! member has a channel of its own, and a request goes to the one that answered last; when that one fails, to the next.
//! A request whose answer got lost may have happened: whoever asks is told, and has to be able to tell.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, Error};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Endpoint;

use super::url::{EtcdTls, EtcdUrl};
use crate::store::StoreError;

/// How long one attempt at one member may take to connect.
const CONNECT: Duration = Duration::from_secs(1);
/// How long one attempt at one member may take. An election takes about as long with etcd's own settings.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long it is attempted in all.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long to wait before the next attempt, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(300));
/// How often a silent connection is probed, and how long a probe may go unanswered. etcd hangs up on who probes more often
/// than every five seconds; the watch finds out sooner, by asking.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(2));
/// Largest answer that is taken. Pages are chosen so that they are far below it.
const MAX_ANSWER: usize = 64 << 20;

/// An answer, and whether an earlier attempt may have been carried out as well.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) value: T,
    pub(super) repeated: bool,
}

/// The members. Cloning one costs a few references.
#[derive(Clone)]
pub(super) struct Cluster {
    members: Arc<[Client]>,
    current: Arc<AtomicUsize>,
    /// Whether anybody answers, as whoever watches says.
    reachable: watch::Sender<bool>,
}

impl Cluster {
    /// Makes the channels; nothing is connected yet.
    pub(super) async fn new(url: &EtcdUrl) -> Result<Self, StoreError> {
        let tls = url.tls.as_ref().map(tls_config).transpose()?;
        let mut members = Vec::with_capacity(url.members.len());
        for member in &url.members {
            let channel = Channel::Tonic(channel(member, tls.clone())?);
            let options = ConnectOptions::new().with_require_leader(true);
            let client = Client::from_channel(channel, Some(options)).await;
            members.push(client.map_err(|error| StoreError::Unavailable { why: why(&error) })?);
        }
        Ok(Self { members: members.into(), current: Arc::default(), reachable: watch::Sender::new(true) })
    }

    /// A member to talk to, and what says that it failed.
    pub(super) fn member(&self) -> Option<(usize, Client)> {
        let at = self.current.load(Ordering::Relaxed);
        self.members.get(at % self.members.len().max(1)).map(|client| (at, client.clone()))
    }

    /// Goes on to the next member, unless somebody did so already.
    pub(super) fn failed(&self, at: usize) {
        let next = at.wrapping_add(1);
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether anybody answers, and its changes.
    pub(super) fn reachable(&self) -> watch::Receiver<bool> {
        self.reachable.subscribe()
    }

    /// Says whether anybody answers; whether that is news.
    pub(super) fn set_reachable(&self, reachable: bool) -> bool {
        self.reachable.send_if_modified(|before| std::mem::replace(before, reachable) != reachable)
    }

    /// Asks until somebody answers, or it is known that nobody does.
    pub(super) async fn call<T, F, Fut>(&self, request: F) -> Result<Answer<T>, StoreError>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let (mut pause, mut repeated) = (PAUSE.0, false);
        let mut reachable = self.reachable();
        let there = *reachable.borrow_and_update();
        loop {
            let (at, client) = self.member().ok_or_else(nobody)?;
            let attempt = tokio::select! {
                attempt = tokio::time::timeout(ATTEMPT, request(client)) => attempt,
                // Not for the length of an attempt that has no hope: somebody waits, and may ask another controller.
                _ = reachable.wait_for(|now| !now), if there => return Err(out_of_reach()),
            };
            let failure = match attempt {
                Ok(Ok(value)) => return Ok(Answer { value, repeated }),
                Ok(Err(error)) => {
                    if !is_passing(&error) {
                        return Err(translate(&error));
                    }
                    repeated |= !is_refusal(&error);
                    why(&error)
                }
                Err(_) => {
                    repeated = true;
                    format!("no answer within {ATTEMPT:?}")
                }
            };
            self.failed(at);
            if !there || Instant::now() + pause >= deadline {
                return Err(StoreError::Unavailable { why: failure });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({} members)", self.members.len())
    }
}

fn out_of_reach() -> StoreError {
    StoreError::Unavailable { why: "no member of the cluster answers".to_owned() }
}

fn nobody() -> StoreError {
    StoreError::Unavailable { why: "no member of the cluster was named".to_owned() }
}

/// Whether another member, or the same one later, may answer.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
                | Code::Aborted
        ),
        Error::TransportError(_) | Error::IoError(_) => true,
        _ => false,
    }
}

/// Whether the member said that it did nothing.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains("etcdserver: no leader"))
}

/// What an error of etcd means for a store.
pub(super) fn translate(error: &Error) -> StoreError {
    let why = why(error);
    match error {
        Error::GRpcStatus(status) => match status.code() {
            Code::ResourceExhausted if why.contains("space") => StoreError::Full { why },
            // A read at a revision that was compacted meanwhile, or a request beyond a limit of the server.
            _ => StoreError::Unavailable { why },
        },
        _ => StoreError::Unavailable { why },
    }
}

/// Whether a read failed because what it looked at was compacted away.
pub(super) fn is_compacted(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable { why } if why.contains("compacted"))
}

/// The innermost message: what really happened.
fn why(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => {
            let mut cause = std::error::Error::source(status);
            while let Some(inner) = cause.and_then(std::error::Error::source) {
                cause = Some(inner);
            }
            cause
                .map_or_else(|| status.message().to_owned(), |cause| format!("{}: {cause}", status.message()))
        }
        error => error.to_string(),
    }
}

fn channel(
    member: &str,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Result<tonic::transport::Channel, StoreError> {
    let endpoint = Endpoint::from_shared(format!("http://{member}"))
        .map_err(|error| StoreError::Unavailable { why: format!("{member}: {error}") })?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let Some(tls) = tls else { return Ok(endpoint.connect_lazy()) };
    // TLS by the stack that everything else here uses; tonic's own would bring a second one.
    let (address, host) = (member.to_owned(), host_of(member).to_owned());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (tls, address, host) = (tls.clone(), address.clone(), host.clone());
        async move {
            let tcp = TcpStream::connect(&address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
            let stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// The host of `HOST:PORT`, without the brackets of an IPv6 address.
fn host_of(member: &str) -> &str {
    let host = member.rsplit_once(':').map_or(member, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn tls_config(tls: &EtcdTls) -> Result<Arc<rustls::ClientConfig>, StoreError> {
    let failed = |path: &std::path::Path, error: &dyn std::fmt::Display| StoreError::Unavailable {
        why: format!("{}: {error}", path.display()),
    };
    let certificates = |path: &std::path::Path| {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        all.map_err(|error| failed(path, &error))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&tls.ca)? {
        roots.add(certificate).map_err(|error| failed(&tls.ca, &error))?;
    }
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let own = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
            let configured = builder.with_client_auth_cert(certificates(certificate)?, own);
            configured.map_err(|error| failed(certificate, &error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Sets how large an answer may be.
pub(super) fn kv(client: &Client) -> etcd_client::KvClient {
    client.kv_client().max_decoding_message_size(MAX_ANSWER)
}
