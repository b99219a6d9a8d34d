//! The session with one peer: boringtun's `Tunn`, and what has to be done around it.
//!
//! `Tunn` leaves some things to its caller, and gets some wrong. Each has its place here:
//!
//! - Sessions expire only while `update_timers` is called: [`Session::tick`] is, as long as the session is held.
//! - What was queued during a handshake is not sent when the peer's first packet confirms the session:
//!   [`Session::receive`] flushes after every change of session.
//! - It starts a handshake when the peer was silent *before* we sent: [`Session::tick`] lets it see the time only once
//!   our own packet has gone unanswered for long enough, unless something is due.
//! - Eight initiations whose responses are lost push a working session out of its ring: [`Session::admits_initiation`]
//!   refuses further ones while the session in use still brings packets.
//! - It sends an unanswered initiation again only after five seconds: [`Session::retry`] is quicker, for a session that
//!   never worked yet.
//! - After nine minutes without a session it refuses to go on: [`Tick::Expired`] makes the caller drop it, and the next
//!   packet makes a new one.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::{Tunn, TunnResult};

use super::Sink;

/// How long a packet of ours may go unanswered before a handshake is started (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT).
const UNANSWERED_FOR: Duration = Duration::from_secs(15);
/// Sessions younger than this need no rekey, so that `Tunn` may be kept from seeing the time for a while.
const NO_REKEY_BEFORE: Duration = Duration::from_secs(100);
/// Initiations that may be open before a working session would be pushed out of `Tunn`'s ring of eight.
const MAX_UNCONFIRMED: u32 = 6;
/// A session is dropped when nothing was sent or received for this long: well beyond REJECT_AFTER_TIME.
const IDLE_AFTER: Duration = Duration::from_secs(240);
/// How long after an initiation of a session that never worked the next one is sent while no answer comes. WireGuard's own
/// retry takes five seconds (REKEY_TIMEOUT), and the first initiation may well come before the peer's node has learned of
/// this container, or be lost where many begin at once.
const QUICK_RETRIES: [Duration; 4] = [
    Duration::from_millis(120),
    Duration::from_millis(250),
    Duration::from_millis(600),
    Duration::from_millis(1_500),
];
/// Size of a handshake initiation, and the least room that `Tunn` asks for.
const HANDSHAKE_LEN: usize = 148;

/// What a session is, for `wg(8)` and the figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Where packets go.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed.
    pub last_handshake: Option<SystemTime>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// What came of a look at the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    /// The session goes on.
    Alive,
    /// The session is of no more use: drop it.
    Expired,
}

/// What came of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// Nothing for the container: a handshake message, a keepalive.
    Nothing,
    /// A packet for the container.
    Packet(&'a [u8]),
    /// It did not authenticate, or was replayed.
    Refused,
}

/// The session with one peer.
pub struct Session {
    tunn: Box<Tunn>,
    /// Where to send to.
    endpoint: Option<SocketAddr>,
    /// Handshakes sent in a row without an answer: which of the endpoints is tried.
    attempt: usize,
    last_sent: Instant,
    last_received: Instant,
    first_unanswered: Option<Instant>,
    handshaking: bool,
    /// Quick retries that were begun.
    retries: usize,
    retry_at: Option<Instant>,
    unconfirmed: u32,
    receiver: Option<u32>,
    established: Option<(Instant, SystemTime)>,
    handshakes: u64,
    tx_bytes: u64,
    rx_bytes: u64,
    flush_wanted: bool,
}

impl Session {
    /// A session that will send to `endpoint`, if that is known.
    pub fn new(tunn: Tunn, endpoint: Option<SocketAddr>, now: Instant) -> Self {
        Self {
            tunn: Box::new(tunn),
            endpoint,
            attempt: 0,
            last_sent: now,
            last_received: now,
            first_unanswered: None,
            handshaking: false,
            retries: 0,
            retry_at: None,
            unconfirmed: 0,
            receiver: None,
            established: None,
            handshakes: 0,
            tx_bytes: 0,
            rx_bytes: 0,
            flush_wanted: false,
        }
    }

    /// Where packets go.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// Sends to another place from now on.
    pub fn set_endpoint(&mut self, endpoint: Option<SocketAddr>) {
        self.endpoint = endpoint;
    }

    /// How many handshakes in a row went unanswered.
    pub fn attempt(&self) -> usize {
        self.attempt
    }

    /// Handshakes completed.
    pub fn handshakes(&self) -> u64 {
        self.handshakes
    }

    /// What the session is now.
    pub fn state(&self) -> PeerState {
        PeerState {
            endpoint: self.endpoint,
            last_handshake: self.established.map(|(_, at)| at),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
        }
    }

    /// Whether an initiation of the peer may be processed.
    pub fn admits_initiation(&self, now: Instant) -> bool {
        let works = self.established.is_some() && now.duration_since(self.last_received) < UNANSWERED_FOR;
        !(works && self.unconfirmed >= MAX_UNCONFIRMED)
    }

    /// Encrypts a packet of the container and sends it; before there are keys it waits in a short queue while a
    /// handshake is made. `false` when it was dropped.
    pub fn send(&mut self, packet: &[u8], scratch: &mut [u8], now: Instant, sink: &mut impl Sink) -> bool {
        if scratch.len() < (packet.len() + 32).max(HANDSHAKE_LEN) {
            return false;
        }
        match self.tunn.encapsulate(packet, scratch) {
            TunnResult::WriteToNetwork(datagram) => {
                let initiation = datagram.first() == Some(&1);
                let len = datagram.len();
                self.first_unanswered.get_or_insert(now);
                self.handshaking |= initiation;
                if initiation && self.retry_at.is_none() {
                    self.arm(now);
                }
                let datagram = scratch.get(..len).unwrap_or_default();
                transmit(&mut self.last_sent, &mut self.tx_bytes, self.endpoint, datagram, now, sink)
            }
            TunnResult::Done => true,
            _ => false,
        }
    }

    /// Processes a datagram for this session that came from `from`.
    pub fn receive<'s>(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        scratch: &'s mut [u8],
        now: Instant,
        sink: &mut impl Sink,
    ) -> Received<'s> {
        if scratch.len() < datagram.len().max(HANDSHAKE_LEN) {
            return Received::Refused;
        }
        let kind = datagram.first().copied().unwrap_or_default();
        let packet_len = match self.tunn.decapsulate(Some(from.ip()), datagram, scratch) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Some(packet.len())
            }
            TunnResult::Done => None,
            TunnResult::WriteToNetwork(answer) => {
                let is_cookie = answer.first() == Some(&3);
                // The answer goes where the question came from: an initiation does not prove where its sender is.
                sink.send(from, answer);
                if is_cookie {
                    return Received::Nothing;
                }
                None
            }
            TunnResult::Err(_) => return Received::Refused,
        };
        self.rx_bytes += datagram.len() as u64;
        self.last_received = now;
        self.first_unanswered = None;
        match kind {
            1 => self.unconfirmed = self.unconfirmed.saturating_add(1),
            2 => {
                self.receiver = index_at(datagram, 8);
                self.confirm(from, now);
            }
            4 => {
                let receiver = index_at(datagram, 4);
                if receiver != self.receiver {
                    self.receiver = receiver;
                    self.confirm(from, now);
                }
                // Only now has the peer proved, freshly, that it is there.
                self.endpoint = Some(from);
            }
            _ => {}
        }
        match packet_len {
            Some(len) => scratch.get(..len).map_or(Received::Nothing, Received::Packet),
            None => Received::Nothing,
        }
    }

    /// Sends what waited for the session, if one was established since the last call. To be called after each
    /// datagram, once its packet is delivered.
    pub fn flush(&mut self, scratch: &mut [u8], now: Instant, sink: &mut impl Sink) {
        if !std::mem::take(&mut self.flush_wanted) {
            return;
        }
        while let TunnResult::WriteToNetwork(datagram) = self.tunn.decapsulate(None, &[], scratch) {
            let len = datagram.len();
            let Some(datagram) = scratch.get(..len) else { return };
            transmit(&mut self.last_sent, &mut self.tx_bytes, self.endpoint, datagram, now, sink);
        }
    }

    /// When a quick retry is due, if one is.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Sends an initiation again that was not answered, when that is due.
    pub fn retry(&mut self, scratch: &mut [u8], now: Instant, sink: &mut impl Sink) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.initiate(scratch, now, sink);
        }
    }

    /// Begins a handshake, whatever is under way.
    pub fn initiate(&mut self, scratch: &mut [u8], now: Instant, sink: &mut impl Sink) {
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(scratch, true) {
            let len = datagram.len();
            self.first_unanswered.get_or_insert(now);
            self.handshaking = true;
            self.arm(now);
            let datagram = scratch.get(..len).unwrap_or_default();
            transmit(&mut self.last_sent, &mut self.tx_bytes, self.endpoint, datagram, now, sink);
        }
    }

    fn arm(&mut self, now: Instant) {
        if self.established.is_none() {
            self.retry_at = QUICK_RETRIES.get(self.retries).map(|pause| now + *pause);
            self.retries += 1;
        }
    }

    /// Lets time pass: retries and rekeys, sends keepalives, expires.
    pub fn tick(&mut self, scratch: &mut [u8], now: Instant, sink: &mut impl Sink) -> Tick {
        let quiet = now.duration_since(self.last_sent).min(now.duration_since(self.last_received));
        if quiet >= IDLE_AFTER && self.tunn.persistent_keepalive().is_none() {
            return Tick::Expired;
        }
        let young = self.established.is_some_and(|(at, _)| now.duration_since(at) < NO_REKEY_BEFORE);
        let waiting = self.first_unanswered.is_some_and(|since| now.duration_since(since) < UNANSWERED_FOR);
        if young && waiting && !self.handshaking && self.tunn.persistent_keepalive().is_none() {
            return Tick::Alive;
        }
        match self.tunn.update_timers(scratch) {
            TunnResult::WriteToNetwork(datagram) => {
                let len = datagram.len();
                if datagram.first() == Some(&1) {
                    self.attempt += usize::from(self.handshaking);
                    self.handshaking = true;
                }
                let datagram = scratch.get(..len).unwrap_or_default();
                transmit(&mut self.last_sent, &mut self.tx_bytes, self.endpoint, datagram, now, sink);
                Tick::Alive
            }
            TunnResult::Err(_) => Tick::Expired,
            _ => Tick::Alive,
        }
    }

    /// A session is established: the peer answered our handshake, or used the keys of its own.
    fn confirm(&mut self, from: SocketAddr, now: Instant) {
        self.established = Some((now, SystemTime::now()));
        self.handshakes += 1;
        self.unconfirmed = 0;
        self.attempt = 0;
        self.handshaking = false;
        self.retry_at = None;
        self.endpoint = Some(from);
        self.flush_wanted = true;
    }
}

fn transmit(
    last_sent: &mut Instant,
    tx_bytes: &mut u64,
    endpoint: Option<SocketAddr>,
    datagram: &[u8],
    now: Instant,
    sink: &mut impl Sink,
) -> bool {
    *last_sent = now;
    *tx_bytes += datagram.len() as u64;
    endpoint.is_some_and(|endpoint| sink.send(endpoint, datagram))
}

/// The little-endian index at an offset of a message (white paper, section 5.4).
fn index_at(datagram: &[u8], offset: usize) -> Option<u32> {
    datagram.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
}
