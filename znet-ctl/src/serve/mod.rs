//! The controller's process: its sockets, its signals, and how it ends.
//!
//! One TLS port serves agents and operators; what a request is for tells its content type. The Unix socket serves the
//! machine's own root. At `SIGTERM` the process takes no new connections, ends the agents' streams, lets what was begun
//! be answered, and closes the store; at a second one it ends at once, which loses nothing that was acknowledged.

mod addresses;
mod connection;
mod newcomers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use znet_api::tls::{TlsError, server_config};
use znet_core::map::is_host_and_port;

use crate::clock::Clock;
use crate::hub::{Hub, HubError};
use crate::keyring::Keyring;
use crate::keys::{DataDir, KeysError};
use crate::store::{Location, StoreError};
use connection::Doors;

/// How long connections may take to end once the process drains.
const DRAIN: Duration = Duration::from_secs(10);
/// How long accepting rests after it failed, for want of descriptors for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a controller needs to know.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where state and keys are.
    pub data_dir: PathBuf,
    /// Where networks are kept.
    pub store: Location,
    /// What opens the keys in a shared store; in the data directory when absent.
    pub store_key: Option<PathBuf>,
    /// The TLS port for agents and operators.
    pub listen: SocketAddr,
    /// Where agents reach this controller, `HOST:PORT`, best first; the machine's own addresses when empty.
    pub advertise: Vec<String>,
    /// The Unix socket for this machine's root.
    pub socket: PathBuf,
}

/// Why a controller does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data directory or a key cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The networks cannot be served.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The TLS key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The port is taken or not allowed.
    #[error("cannot listen on {address}: {source}; choose another --listen")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The Unix socket cannot be made.
    #[error("cannot listen at {}: {source}; choose another --socket", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// An address that no agent could use.
    #[error(
        "{text:?} is not HOST:PORT; --advertise takes what agents connect to, such as ctl.example.net:7443"
    )]
    Advertise {
        /// The text given.
        text: String,
    },
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
}

/// Serves until `SIGTERM` or `SIGINT`.
///
/// # Errors
/// [`ServeError`]: the controller could not begin.
pub async fn run(options: ServeOptions) -> Result<(), ServeError> {
    znet_api::tls::install_provider();
    if let Some(text) = options.advertise.iter().find(|text| !is_host_and_port(text)) {
        return Err(ServeError::Advertise { text: text.clone() });
    }
    let data = DataDir::open(&options.data_dir)?;
    let store = options.store.open(data.store_file()).await?;
    let keys = Keyring::open(data, &store, options.store_key.as_deref()).await?;
    let listen = |source| ServeError::Listen { address: options.listen, source };
    let listener = TcpListener::bind(options.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let socket = |source| ServeError::Socket { path: options.socket.clone(), source };
    let local = znet_cli::socket::bind(&options.socket).map_err(socket)?;
    let local = UnixListener::from_std(local).map_err(socket)?;
    let mut signals = Signals::new().map_err(ServeError::Signals)?;
    let advertise =
        if options.advertise.is_empty() { addresses::own(address) } else { options.advertise.clone() };
    let hub = Hub::start(keys, store, Clock::system(), advertise).await?;
    let tls = Arc::new(server_config(hub.server_keys())?);
    let server = Server {
        doors: Doors::new(hub.clone(), tls),
        stop: CancellationToken::new(),
        connections: TaskTracker::new(),
    };
    let accepting =
        [tokio::spawn(server.clone().agents(listener)), tokio::spawn(server.clone().local(local))];
    tracing::info!(
        %address,
        socket = %options.socket.display(),
        data_dir = %options.data_dir.display(),
        store = %options.store,
        pin = %hub.pin(),
        advertise = hub.advertise().join(" "),
        networks = hub.networks().len(),
        "ready"
    );
    let name = signals.wait().await;
    tracing::info!(signal = name, "draining");
    tokio::select! {
        () = server.drain(&hub) => {}
        name = signals.wait() => tracing::warn!(signal = name, "not waiting any longer"),
    }
    accepting.iter().for_each(tokio::task::JoinHandle::abort);
    // A later daemon's socket is not taken away: its data directory would have had to be another one.
    let _ = std::fs::remove_file(&options.socket);
    tracing::info!("stopped");
    Ok(())
}

/// What accepts and what it started.
#[derive(Clone)]
struct Server {
    doors: Doors,
    stop: CancellationToken,
    connections: TaskTracker,
}

impl Server {
    async fn agents(self, listener: TcpListener) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => {
                        let Some(place) = self.doors.place() else { continue };
                        let (doors, stop) = (self.doors.clone(), self.stop.clone());
                        self.connections.spawn(async move { doors.tls(stream, from, &stop, place).await });
                    }
                    Err(error) => pause(&error).await,
                }
            }
        }
    }

    async fn local(self, listener: UnixListener) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let Some(place) = self.doors.place() else { continue };
                        let (doors, stop) = (self.doors.clone(), self.stop.clone());
                        self.connections.spawn(async move { doors.local(stream, &stop, place).await });
                    }
                    Err(error) => pause(&error).await,
                }
            }
        }
    }

    async fn drain(&self, hub: &Hub) {
        hub.end_streams();
        self.stop.cancel();
        self.connections.close();
        if tokio::time::timeout(DRAIN, self.connections.wait()).await.is_err() {
            tracing::warn!(left = self.connections.len(), "connections do not end; not waiting for them");
        }
        hub.close().await;
    }
}

/// Accepting failed: not for good, but trying again at once would only burn time.
async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
