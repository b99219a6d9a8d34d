//! An agent's connection to its controller: TLS 1.3 with the pinned key, HTTP/2, gRPC.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use znet_core::map::ControllerRecord;

use crate::tls::{Identity, Pin, PinMismatch, TlsError, client_config, name_of, pin_mismatch};
use crate::v1::controller_client::ControllerClient;

/// A gRPC client of a controller.
pub type AgentClient = ControllerClient<Channel>;

/// How long one attempt to reach one endpoint may take, TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a silent connection is probed, so that a dead controller is noticed, and how long a probe may go unanswered.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// The same where there is another controller to go to.
const KEEPALIVE_OF_SEVERAL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(1500));
/// How long an endpoint is given before the next is tried beside it.
const HEAD_START: Duration = Duration::from_millis(300);
/// Largest message that an agent accepts; a snapshot comes in parts far below it.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Why no endpoint of the controller could be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The controller showed another key than the pinned one.
    #[error("{endpoint}: {mismatch}")]
    PinMismatch {
        /// The endpoint.
        endpoint: String,
        /// Both pins.
        mismatch: PinMismatch,
    },
    /// No endpoint answered; the last one's error.
    #[error("the controller cannot be reached at {endpoint}: {why}")]
    Unreachable {
        /// The endpoint tried last.
        endpoint: String,
        /// What happened there.
        why: String,
    },
    /// Not a `HOST:PORT`.
    #[error("{endpoint:?} is not HOST:PORT")]
    BadEndpoint {
        /// The text given.
        endpoint: String,
    },
    /// No endpoint was given.
    #[error("no endpoint of the controller is known")]
    NoEndpoint,
    /// The own identity cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Connects to the first place that answers with a key that is pinned there, and tells which. Each gets a head start over the next, so
/// that one that does not answer at all costs a moment and not its whole time limit.
///
/// `from` is the number of the place that is tried first: somebody whom one has failed goes on to the next.
///
/// # Errors
/// [`ConnectError`]; a pin mismatch at any endpoint is reported before mere unreachability.
pub async fn connect(
    places: &[ControllerRecord],
    identity: &Identity,
    from: usize,
) -> Result<(AgentClient, usize), ConnectError> {
    let mut worst = ConnectError::NoEndpoint;
    let keepalive = if places.len() > 1 { KEEPALIVE_OF_SEVERAL } else { KEEPALIVE };
    let order = (0..places.len()).map(|step| from.wrapping_add(step) % places.len());
    let mut waiting = order.filter_map(|at| places.get(at).map(|place| (at, place)));
    let mut trying = FuturesUnordered::new();
    let mut exhausted = false;
    loop {
        if !exhausted {
            match waiting.next() {
                Some((at, place)) => {
                    let tls = Arc::new(client_config(&place.pins, Some(identity), &["h2"])?);
                    trying.push(async move { (at, connect_one(place, tls, keepalive).await) });
                }
                None => exhausted = true,
            }
        }
        let answered = tokio::select! {
            Some(answered) = trying.next() => answered,
            () = tokio::time::sleep(HEAD_START), if !exhausted => continue,
            else => return Err(worst),
        };
        match answered {
            (at, Ok(channel)) => {
                let client = ControllerClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE);
                return Ok((client, at));
            }
            (_, Err(_)) if matches!(worst, ConnectError::PinMismatch { .. }) => {}
            (_, Err(error)) => worst = error,
        }
    }
}

async fn connect_one(
    place: &ControllerRecord,
    tls: Arc<rustls::ClientConfig>,
    (interval, timeout): (Duration, Duration),
) -> Result<Channel, ConnectError> {
    let endpoint = place.address.as_str();
    let bad = || ConnectError::BadEndpoint { endpoint: endpoint.to_owned() };
    let builder = Endpoint::from_shared(format!("http://{endpoint}"))
        .map_err(|_| bad())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(interval)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let (address, first) = (endpoint.to_owned(), place.pins.first().copied());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (tls, address) = (tls.clone(), address.clone());
        async move { tls_stream(&address, tls, first).await.map(TokioIo::new) }
    });
    builder.connect_with_connector(connector).await.map_err(|error| match pin_mismatch(&error) {
        Some(mismatch) => ConnectError::PinMismatch { endpoint: endpoint.to_owned(), mismatch },
        None => ConnectError::Unreachable { endpoint: endpoint.to_owned(), why: root_cause(&error) },
    })
}

/// A TLS stream to `HOST:PORT`. Who that is tells the pinned key; the name in the handshake tells the controller which of its keys
/// is wanted, as far as it is known.
///
/// # Errors
/// The operating system's, or that of the TLS library as what an [`std::io::Error`] wraps.
pub async fn tls_stream(
    address: &str,
    tls: Arc<rustls::ClientConfig>,
    wanted: Option<Pin>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = wanted.map_or_else(|| "znet".to_owned(), |pin| name_of(&pin));
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(stream) => stream,
        Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 5 s")),
    }
}

/// The innermost message of an error: what really happened.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
