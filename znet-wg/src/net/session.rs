//! The session with one peer: boringtun's `Tunn`, and what has to be done around it.
//!
//! `Tunn` leaves some things to its caller, and gets some wrong. Each has its place here:
//!
//! - It knows the time only from the last call of `update_timers`, and its sessions expire only then: [`Session::look`] is
//!   called on use, at most four times a second, and when [`Session::deadline`] says that something is due.
//! - What was queued during a handshake is not sent when the peer's first packet confirms the session:
//!   [`Session::receive`] flushes after every change of session.
//! - It starts a handshake when the peer was silent *before* we sent: it is not shown the time while our own packet has
//!   gone unanswered for a short time only, unless something is due.
//! - Eight initiations whose responses are lost push a working session out of its ring: [`Session::admits_initiation`]
//!   refuses further ones while the session in use still brings packets.
//! - It sends an unanswered initiation again only after five seconds: [`QUICK_RETRIES`] are quicker, for a session that
//!   never worked yet.
//! - After nine minutes without a session it refuses to go on: [`Look::Expired`] makes the caller drop it, and the next
//!   packet makes a new one.
//! - Its persistent keepalive goes out whatever else was sent, and cannot be changed: ours is reset by every packet, as the
//!   kernel's is.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::{Tunn, TunnResult};

use super::outbox::{Outbox, Path};
use super::packet::outer_tos;

/// How long a packet of ours may go unanswered before a handshake is started (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT).
const UNANSWERED_FOR: Duration = Duration::from_secs(15);
/// When a packet of the peer that we had nothing to send back for is answered by an empty one (KEEPALIVE_TIMEOUT).
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// When an initiation is sent again (REKEY_TIMEOUT), and a moment more, as `Tunn` reads the clock for itself.
const RETRY_AFTER: Duration = Duration::from_millis(5_020);
/// Sessions younger than this need no rekey, so that `Tunn` may be kept from seeing the time for a while.
const NO_REKEY_BEFORE: Duration = Duration::from_secs(115);
/// Initiations that may be open before a working session would be pushed out of `Tunn`'s ring of eight.
const MAX_UNCONFIRMED: u32 = 6;
/// A session is dropped when nothing was sent or received for this long: well beyond REJECT_AFTER_TIME.
const IDLE_AFTER: Duration = Duration::from_secs(240);
/// Keys are wiped when they are this old (REJECT_AFTER_TIME).
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// The precision of all of these.
const GRAIN: Duration = Duration::from_millis(250);
/// How long after an initiation of a session that never worked the next one is sent while no answer comes. WireGuard's own
/// retry takes five seconds (REKEY_TIMEOUT), and the first initiation may well come before the peer's node has learned of
/// this container, or be lost where many begin at once.
const QUICK_RETRIES: [Duration; 4] = [
    Duration::from_millis(120),
    Duration::from_millis(250),
    Duration::from_millis(600),
    Duration::from_millis(1_500),
];
/// The first of them where the peer is reached by another session meanwhile.
const UNHURRIED: usize = 2;
/// Size of a handshake initiation, and the least room that `Tunn` asks for.
const HANDSHAKE_LEN: usize = 148;
/// What a datagram has more than the packet in it.
const OVERHEAD: usize = 32;
/// Handshakes are marked as AF41, as the kernel's are, so that a queue prefers them.
pub(super) const HANDSHAKE_TOS: u8 = 0x88;

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

impl PeerState {
    /// This, with what was before it added up.
    pub(super) fn after(self, past: &Self) -> Self {
        Self {
            endpoint: self.endpoint.or(past.endpoint),
            last_handshake: self.last_handshake.or(past.last_handshake),
            rx_bytes: self.rx_bytes + past.rx_bytes,
            tx_bytes: self.tx_bytes + past.tx_bytes,
        }
    }
}

/// What came of a look at the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The session goes on.
    Alive,
    /// The session is of no more use: drop it.
    Expired,
}

/// What came of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing for the container: a handshake message, a keepalive.
    Nothing,
    /// A packet of this many bytes for the container.
    Packet(usize),
    /// It did not authenticate, or was replayed.
    Refused,
}

/// The session with one peer.
pub struct Session {
    tunn: Box<Tunn>,
    /// Where to send to, and from where.
    path: Option<Path>,
    /// Handshakes sent in a row without an answer: which of the endpoints is tried.
    attempt: usize,
    keepalive: Option<Duration>,
    began: Instant,
    looked: Option<Instant>,
    last_sent: Option<Instant>,
    last_received: Option<Instant>,
    first_unanswered: Option<Instant>,
    /// Since when the peer waits for a sign of us.
    owed: Option<Instant>,
    handshaking: bool,
    initiated: Instant,
    /// Quick retries that were begun.
    retries: usize,
    retry_at: Option<Instant>,
    scheduled: Option<Instant>,
    unconfirmed: u32,
    receiver: Option<u32>,
    established: Option<(Instant, SystemTime)>,
    handshakes: u64,
    tx_bytes: u64,
    rx_bytes: u64,
    flush_wanted: bool,
    /// Another session took its place: packets still come in on it, and nothing goes out.
    retired: bool,
    /// The interval of keepalives from before that.
    keepalive_before: Option<Duration>,
}

impl Session {
    /// A session that will send to `endpoint`, if that is known.
    pub fn new(tunn: Tunn, endpoint: Option<SocketAddr>, keepalive: Option<u16>, now: Instant) -> Self {
        Self {
            tunn: Box::new(tunn),
            path: endpoint.map(Path::to),
            attempt: 0,
            keepalive: interval(keepalive),
            began: now,
            looked: None,
            last_sent: None,
            last_received: None,
            first_unanswered: None,
            owed: None,
            handshaking: false,
            initiated: now,
            retries: 0,
            retry_at: None,
            scheduled: None,
            unconfirmed: 0,
            receiver: None,
            established: None,
            handshakes: 0,
            tx_bytes: 0,
            rx_bytes: 0,
            flush_wanted: false,
            retired: false,
            keepalive_before: None,
        }
    }

    /// Where packets go.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.path.map(|path| path.remote)
    }

    /// Sends to another place from now on.
    pub fn set_endpoint(&mut self, endpoint: Option<SocketAddr>) {
        self.path = endpoint.map(Path::to);
    }

    /// Sends an empty packet when nothing was sent or received for so many seconds. Returns whether it did not at all
    /// before.
    pub fn set_keepalive(&mut self, seconds: Option<u16>) -> bool {
        let wanted = interval(seconds).filter(|_| !self.retired);
        let before = std::mem::replace(&mut self.keepalive, wanted);
        before.is_none() && self.keepalive.is_some()
    }

    /// Begins a handshake at this time, if none is begun before. Nobody waits for it, so it is not repeated quickly.
    pub fn initiate_at(&mut self, at: Instant) {
        self.retry_at = Some(at);
        self.retries = UNHURRIED;
    }

    /// Another session takes its place. What is on its way still comes in, until the keys are worn out.
    pub fn retire(&mut self) {
        self.retired = true;
        self.keepalive_before = self.keepalive.take();
        self.rest();
    }

    /// The other session is gone: it is in use again.
    pub fn revive(&mut self) {
        if std::mem::take(&mut self.retired) {
            self.keepalive = self.keepalive_before.take();
        }
    }

    /// Whether another session took its place.
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// Takes the place of another session, whose figures count on.
    pub fn succeed(&mut self, past: &PeerState) {
        self.rx_bytes += past.rx_bytes;
        self.tx_bytes += past.tx_bytes;
    }

    /// Nothing is due any more.
    fn rest(&mut self) {
        self.owed = None;
        self.first_unanswered = None;
        self.retry_at = None;
        self.handshaking = false;
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
            endpoint: self.endpoint(),
            last_handshake: self.established.map(|(_, at)| at),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
        }
    }

    /// Whether something of the peer that authenticated came within this time.
    pub fn heard_within(&self, within: Duration, now: Instant) -> bool {
        self.last_received.is_some_and(|at| now.duration_since(at) < within)
    }

    /// Whether an initiation of the peer may be processed.
    pub fn admits_initiation(&self, now: Instant) -> bool {
        let heard = self.last_received.is_some_and(|at| now.duration_since(at) < UNANSWERED_FOR);
        !(self.established.is_some() && heard && self.unconfirmed >= MAX_UNCONFIRMED)
    }

    /// Encrypts a packet of the container, padded or not, into the outbox; before there are keys it waits in a short queue
    /// while a handshake is made. `false` when it was dropped: there was no room, or nowhere to send it.
    pub fn send(&mut self, packet: &[u8], out: &mut Outbox, now: Instant) -> bool {
        if out.free() < room_for(packet.len()) {
            return false;
        }
        match self.tunn.encapsulate(packet, out.room()) {
            TunnResult::WriteToNetwork(datagram) => {
                let (initiation, len) = (datagram.first() == Some(&1), datagram.len());
                if initiation {
                    self.began_handshake(now);
                    if self.retry_at.is_none() {
                        self.arm(now);
                    }
                }
                self.first_unanswered.get_or_insert(now);
                let tos = if initiation { HANDSHAKE_TOS } else { outer_tos(packet) };
                self.transmit(len, tos, out, now)
            }
            TunnResult::Done => true,
            _ => false,
        }
    }

    /// Processes a datagram for this session that came by `path`. A packet for the container is written to `into`, which
    /// has at least as many bytes as the datagram.
    pub fn receive(
        &mut self,
        path: Path,
        datagram: &[u8],
        into: &mut [u8],
        out: &mut Outbox,
        now: Instant,
    ) -> Received {
        if into.len() < datagram.len().max(HANDSHAKE_LEN) {
            return Received::Refused;
        }
        let kind = datagram.first().copied().unwrap_or_default();
        let received = match self.tunn.decapsulate(Some(path.remote.ip()), datagram, into) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Received::Packet(packet.len())
            }
            TunnResult::Done => Received::Nothing,
            TunnResult::WriteToNetwork(answer) => {
                let (is_cookie, len) = (answer.first() == Some(&3), answer.len());
                // The answer goes where the question came from: an initiation does not prove where its sender is.
                self.answer(path, kind, into.get(..len).unwrap_or_default(), out, now);
                if is_cookie {
                    return Received::Nothing;
                }
                Received::Nothing
            }
            TunnResult::Err(_) => return Received::Refused,
        };
        self.rx_bytes += datagram.len() as u64;
        self.last_received = Some(now);
        self.first_unanswered = None;
        match kind {
            1 => self.unconfirmed = self.unconfirmed.saturating_add(1),
            2 => {
                self.receiver = index_at(datagram, 8);
                self.confirm(path, now);
            }
            4 => {
                let receiver = index_at(datagram, 4);
                if receiver != self.receiver {
                    self.receiver = receiver;
                    self.confirm(path, now);
                }
                // Only now has the peer proved, freshly, that it is there.
                self.path = Some(path);
            }
            _ => {}
        }
        if matches!(received, Received::Packet(_)) {
            self.owed.get_or_insert(now);
        }
        received
    }

    /// Sends what waited for the session, if one was established since the last call. To be called after each
    /// handshake message, and after a run of packets.
    pub fn flush(&mut self, out: &mut Outbox, now: Instant) {
        if !self.flush_wanted {
            return;
        }
        // As long as there is room for the largest packet that may wait.
        while out.free() > super::MAX_PACKET + OVERHEAD {
            match self.tunn.decapsulate(None, &[], out.room()) {
                TunnResult::WriteToNetwork(datagram) => {
                    let len = datagram.len();
                    self.transmit(len, 0, out, now);
                }
                _ => {
                    self.flush_wanted = false;
                    return;
                }
            }
        }
    }

    /// Whether packets still wait for a session that is there: the outbox was full.
    pub fn wants_flush(&self) -> bool {
        self.flush_wanted
    }

    /// Begins a handshake, whatever is under way.
    pub fn initiate(&mut self, out: &mut Outbox, now: Instant) {
        if out.free() < HANDSHAKE_LEN {
            return;
        }
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(out.room(), true)
        {
            let len = datagram.len();
            self.first_unanswered.get_or_insert(now);
            self.began_handshake(now);
            self.arm(now);
            self.transmit(len, HANDSHAKE_TOS, out, now);
        }
    }

    /// Sends an empty packet, which makes a handshake where there is no session.
    pub fn send_keepalive(&mut self, out: &mut Outbox, now: Instant) {
        let unanswered = self.first_unanswered;
        self.send(&[], out, now);
        if !self.handshaking {
            // Nobody answers a keepalive.
            self.first_unanswered = unanswered;
        }
    }

    /// Lets `Tunn` see the time before the session is used, if it did not lately.
    pub fn look_if_due(&mut self, out: &mut Outbox, now: Instant) -> Look {
        match self.looked {
            Some(looked) if now.duration_since(looked) < GRAIN => Look::Alive,
            _ => self.look(out, now),
        }
    }

    /// Lets time pass: retries and rekeys, sends keepalives, expires.
    pub fn look(&mut self, out: &mut Outbox, now: Instant) -> Look {
        let used = self.last_sent.max(self.last_received).unwrap_or(self.began);
        if self.keepalive.is_none() && now.duration_since(used) >= IDLE_AFTER {
            return Look::Expired;
        }
        if self.retired {
            self.rest();
            self.looked = Some(now);
            let worn = self.established.is_none_or(|(at, _)| now.duration_since(at) >= REJECT_AFTER);
            return if worn { Look::Expired } else { Look::Alive };
        }
        let unanswered =
            self.first_unanswered.is_some_and(|since| now.duration_since(since) >= UNANSWERED_FOR);
        if self.retry_at.is_some_and(|at| at <= now) || (unanswered && !self.handshaking) {
            self.retry_at = None;
            self.initiate(out, now);
        }
        let young = self.established.is_some_and(|(at, _)| now.duration_since(at) < NO_REKEY_BEFORE);
        let waiting = self.first_unanswered.is_some_and(|since| now.duration_since(since) < UNANSWERED_FOR);
        if !(young && waiting && !self.handshaking) && out.free() >= HANDSHAKE_LEN {
            self.looked = Some(now);
            match self.tunn.update_timers(out.room()) {
                TunnResult::WriteToNetwork(datagram) => {
                    let (initiation, len) = (datagram.first() == Some(&1), datagram.len());
                    if initiation {
                        self.attempt += usize::from(self.handshaking);
                        self.began_handshake(now);
                    }
                    self.transmit(len, if initiation { HANDSHAKE_TOS } else { 0 }, out, now);
                }
                TunnResult::Err(_) => return Look::Expired,
                _ => {}
            }
        }
        let owes = self.owed.is_some_and(|since| now.duration_since(since) >= KEEPALIVE_AFTER);
        if (owes || self.keepalive_at().is_some_and(|at| at <= now)) && !self.handshaking {
            self.owed = None;
            self.send_keepalive(out, now);
        }
        Look::Alive
    }

    /// When the session has to be looked at, even if it is not used.
    pub fn deadline(&self) -> Instant {
        let used = self.last_sent.max(self.last_received).unwrap_or(self.began);
        let after = |since: Option<Instant>, wait: Duration| since.map(|at| at + wait);
        let handshake = self.handshaking.then_some(self.initiated);
        let unanswered = self.first_unanswered.filter(|_| !self.handshaking);
        let wipe = self.established.map(|(at, _)| at + REJECT_AFTER);
        let idle = if self.keepalive.is_some() { None } else { Some(used) };
        [
            self.retry_at,
            after(handshake, RETRY_AFTER),
            after(self.owed, KEEPALIVE_AFTER),
            after(unanswered, UNANSWERED_FOR),
            wipe.filter(|at| self.looked.is_none_or(|looked| looked <= *at)),
            after(idle, IDLE_AFTER),
            self.keepalive_at().filter(|_| !self.handshaking),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(used + IDLE_AFTER)
    }

    /// The next time for which a look has to be scheduled, if the one that is scheduled comes too late. `now` keeps
    /// what is overdue from being asked for without a pause.
    pub fn schedule(&mut self, now: Instant) -> Option<Instant> {
        let deadline = self.deadline();
        let at = if deadline > now { deadline } else { now + GRAIN };
        if self.scheduled.is_some_and(|scheduled| scheduled <= at) {
            return None;
        }
        self.scheduled = Some(at);
        Some(at)
    }

    /// Whether the look that was scheduled for `at` is still the one that counts. It is taken off the schedule.
    pub fn take_schedule(&mut self, at: Instant) -> bool {
        let counts = self.scheduled == Some(at);
        if counts {
            self.scheduled = None;
        }
        counts
    }

    fn keepalive_at(&self) -> Option<Instant> {
        let interval = self.keepalive?;
        Some(self.last_sent.max(self.last_received).map_or(self.began, |used| used + interval))
    }

    fn arm(&mut self, now: Instant) {
        if self.established.is_none() {
            self.retry_at = QUICK_RETRIES.get(self.retries).map(|pause| now + *pause);
            self.retries += 1;
        }
    }

    fn began_handshake(&mut self, now: Instant) {
        self.handshaking = true;
        self.initiated = now;
    }

    /// A session is established: the peer answered our handshake, or used the keys of its own.
    fn confirm(&mut self, path: Path, now: Instant) {
        self.established = Some((now, SystemTime::now()));
        self.handshakes += 1;
        self.unconfirmed = 0;
        self.attempt = 0;
        self.handshaking = false;
        self.retry_at = None;
        self.path = Some(path);
        self.flush_wanted = true;
    }

    fn answer(&mut self, path: Path, question: u8, bytes: &[u8], out: &mut Outbox, now: Instant) {
        if let Some(room) = out.room().get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
            // A response, or the empty packet that confirms one.
            out.push(path, if question == 1 { HANDSHAKE_TOS } else { 0 }, bytes.len());
            self.tx_bytes += bytes.len() as u64;
            self.last_sent = Some(now);
        }
    }

    fn transmit(&mut self, len: usize, tos: u8, out: &mut Outbox, now: Instant) -> bool {
        self.last_sent = Some(now);
        let Some(path) = self.path else { return false };
        self.owed = None;
        self.tx_bytes += len as u64;
        out.push(path, tos, len);
        true
    }
}

/// Bytes of an outbox that [`Session::send`] asks for: a packet may begin a handshake.
pub(super) fn room_for(packet: usize) -> usize {
    (packet + OVERHEAD).max(HANDSHAKE_LEN)
}

fn interval(seconds: Option<u16>) -> Option<Duration> {
    seconds.filter(|seconds| *seconds != 0).map(|seconds| Duration::from_secs(seconds.into()))
}

/// The little-endian index at an offset of a message (white paper, section 5.4).
fn index_at(datagram: &[u8], offset: usize) -> Option<u32> {
    datagram.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
}
