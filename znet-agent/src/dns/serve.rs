//! The sockets of one namespace's resolver, and the bounds of what comes in on them.
//!
//! Nothing that a container sends makes work beyond its rate: while its bucket is empty its sockets are not read, so
//! that a flood fills the kernel's queue of that socket, is dropped there, and costs the agent nothing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::answer::{Transport, Verdict, Zone, answer};
use super::bucket::Bucket;

/// Questions a second that are answered to one namespace: some microseconds each, so a tenth of a processor.
pub const QUESTIONS_PER_SECOND: u32 = 10_000;
/// Questions that may come at once.
pub const QUESTIONS_AT_ONCE: u32 = 500;
/// Largest question in bytes, over UDP and TCP: a name, EDNS with a cookie and padding (RFC 8467).
pub const MAX_QUESTION: usize = 1_232;
/// Bytes of datagrams that wait in the kernel, by its own counting: some 150 questions.
const QUEUE_BYTES: usize = 128 << 10;
/// TCP connections of one namespace at a time. One more waits until another ends or is idle for too long.
pub const MAX_CONNECTIONS: usize = 16;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;
/// How long a connection may take for one question or answer (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(5);
/// Questions that are answered before other containers have their turn.
const BATCH: usize = 16;
/// The pause after an error that says nothing of how to go on.
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// Sockets that were bound inside a namespace and work from anywhere.
#[derive(Debug)]
pub struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    /// Binds an address in the namespace of the calling thread.
    ///
    /// # Errors
    /// The address is taken, or is none of this namespace.
    pub fn bind(at: SocketAddr) -> std::io::Result<Self> {
        let tcp = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        // Connections of an agent that ended must not keep the next one away.
        tcp.set_reuse_address(true)?;
        tcp.set_nonblocking(true)?;
        tcp.bind(&at.into())?;
        let udp = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
        udp.set_recv_buffer_size(QUEUE_BYTES)?;
        udp.set_nonblocking(true)?;
        udp.bind(&at.into())?;
        // Last, so that nobody connects to half a resolver.
        tcp.listen(BACKLOG)?;
        Ok(Self { udp: udp.into(), tcp: tcp.into() })
    }
}

/// What a resolver was asked, and which of its bounds were hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStats {
    /// Questions that something was found for.
    pub found: u64,
    /// Questions for what there is not.
    pub nothing: u64,
    /// Questions for what is not of the container's networks.
    pub refused: u64,
    /// Messages that are no question, with an answer that says so or without one.
    pub malformed: u64,
    /// Questions that came before a map of the network was known.
    pub unknown: u64,
    /// Messages that are longer than any question.
    pub too_long: u64,
    /// How often it was paused, as more was asked than is answered in a second.
    pub paused: u64,
    /// How often all connections were taken.
    pub connections_full: u64,
}

#[derive(Debug, Default)]
struct Counters {
    found: AtomicU64,
    nothing: AtomicU64,
    refused: AtomicU64,
    malformed: AtomicU64,
    unknown: AtomicU64,
    too_long: AtomicU64,
    paused: AtomicU64,
    connections_full: AtomicU64,
}

/// What answers the questions of one namespace.
#[derive(Debug)]
pub struct Server {
    zones: RwLock<Vec<Zone>>,
    bucket: Mutex<Bucket>,
    counters: Counters,
}

impl Server {
    /// A resolver for these zones.
    pub fn new(zones: Vec<Zone>) -> Self {
        let bucket = Bucket::new(QUESTIONS_PER_SECOND, QUESTIONS_AT_ONCE, Instant::now());
        Self { zones: RwLock::new(zones), bucket: Mutex::new(bucket), counters: Counters::default() }
    }

    /// Answers out of other zones from now on.
    pub fn set_zones(&self, zones: Vec<Zone>) {
        *self.zones.write().unwrap_or_else(PoisonError::into_inner) = zones;
    }

    /// What it was asked.
    pub fn stats(&self) -> DnsStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        DnsStats {
            found: of(&counters.found),
            nothing: of(&counters.nothing),
            refused: of(&counters.refused),
            malformed: of(&counters.malformed),
            unknown: of(&counters.unknown),
            too_long: of(&counters.too_long),
            paused: of(&counters.paused),
            connections_full: of(&counters.connections_full),
        }
    }

    fn answer(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        if message.len() > MAX_QUESTION {
            count(&self.counters.too_long);
            return None;
        }
        let zones = self.zones.read().unwrap_or_else(PoisonError::into_inner);
        let (verdict, answer) = answer(&zones, message, transport);
        count(match verdict {
            Verdict::Found => &self.counters.found,
            Verdict::Nothing => &self.counters.nothing,
            Verdict::Refused => &self.counters.refused,
            Verdict::Malformed | Verdict::Ignored => &self.counters.malformed,
            Verdict::Unknown => &self.counters.unknown,
        });
        answer
    }

    fn wait(&self) -> Duration {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).wait(Instant::now())
    }

    fn pay(&self) {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).pay(Instant::now());
    }

    /// Waits until one more question may be read.
    async fn may_read(&self) {
        loop {
            let wait = self.wait();
            if wait.is_zero() {
                return;
            }
            count(&self.counters.paused);
            tokio::time::sleep(wait).await;
        }
    }

    /// Answers for as long as it is polled.
    ///
    /// # Errors
    /// The sockets cannot be used by this runtime.
    pub async fn serve(self: Arc<Self>, sockets: Sockets) -> std::io::Result<()> {
        let udp = UdpSocket::from_std(sockets.udp)?;
        let tcp = TcpListener::from_std(sockets.tcp)?;
        tokio::join!(self.datagrams(&udp), self.connections(&tcp));
        Ok(())
    }

    async fn datagrams(&self, socket: &UdpSocket) {
        // One byte more than may come, which tells what is too long.
        let mut buffer = [0; MAX_QUESTION + 1];
        loop {
            if socket.readable().await.is_err() {
                tokio::time::sleep(AFTER_ERROR).await;
            }
            for _ in 0..BATCH {
                self.may_read().await;
                match socket.try_recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        self.pay();
                        let message = buffer.get(..length).unwrap_or_default();
                        if let Some(answer) = self.answer(message, Transport::Udp) {
                            // An asker whose own queue is full has to ask again, as over any network.
                            let _ = socket.try_send_to(&answer, from);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        tokio::time::sleep(AFTER_ERROR).await;
                        break;
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn connections(self: &Arc<Self>, listener: &TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut open = JoinSet::new();
        loop {
            if places.available_permits() == 0 {
                count(&self.counters.connections_full);
            }
            let Ok(place) = places.clone().acquire_owned().await else { return };
            while open.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    open.spawn(async move {
                        server.connection(stream).await;
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(AFTER_ERROR).await,
            }
        }
    }

    /// One question after the other, each preceded by its length (RFC 1035, section 4.2.2).
    async fn connection(&self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut buffer = [0; MAX_QUESTION];
        loop {
            self.may_read().await;
            let asked = tokio::time::timeout(IDLE, async {
                let length = usize::from(stream.read_u16().await?);
                let Some(message) = buffer.get_mut(..length) else {
                    count(&self.counters.too_long);
                    return Err(ErrorKind::InvalidData.into());
                };
                stream.read_exact(message).await?;
                Ok::<_, std::io::Error>(length)
            });
            let Ok(Ok(length)) = asked.await else { return };
            self.pay();
            let Some(answer) = self.answer(buffer.get(..length).unwrap_or_default(), Transport::Tcp) else {
                return;
            };
            let Ok(length) = u16::try_from(answer.len()) else { return };
            let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
            if !matches!(tokio::time::timeout(IDLE, stream.write_all(&framed)).await, Ok(Ok(()))) {
                return;
            }
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
