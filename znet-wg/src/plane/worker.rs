//! One thread: waits for its sources, and moves a batch of each that has something.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::backlog::sparse_first;
use super::{Clock, TunSource};
use crate::io::udp::{Inbox, Udp};
use crate::net::{Lane, MAX_PACKET, Network, Read};
use crate::offload::PADDING;

/// Most packets that are encrypted before they are sent.
const BATCH: usize = 128;
/// Bytes after which such a batch is full, however few packets it has: what a core's nearest cache holds.
const BATCH_BYTES: usize = 64 << 10;
/// Most packets that are read from a TUN queue at once: more than it holds.
const READS: usize = 1_024;
/// Bytes after which no more is read.
const READ_BYTES: usize = 1 << 20;
/// Most sources that one wait reports.
const EVENTS: usize = 64;
/// Most batches of a socket before the others have their turn.
const ROUNDS: usize = 4;
/// A call that takes longer than this had to wait for something to be ready.
const WAITED: Duration = Duration::from_micros(20);
/// The descriptor by which the worker that keeps the time is woken.
const CLOCK: u64 = 0;

/// Where packets come from.
#[derive(Clone)]
pub(super) enum Source {
    Tun(Arc<TunSource>),
    Udp(Arc<Udp>, Arc<Network>),
}

/// What a thread uses again and again.
pub(super) struct Buffers {
    lane: Lane,
    inbox: Inbox,
    packets: Box<[u8]>,
    reads: Vec<Read>,
    spare: Vec<Read>,
    /// The clock asks to be run.
    nudged: bool,
    /// When the worker looked for packets the time before.
    looked_before: Instant,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            lane: Lane::default(),
            inbox: Inbox::default(),
            packets: vec![0; READ_BYTES + MAX_PACKET + PADDING].into_boxed_slice(),
            reads: Vec::with_capacity(READS),
            spare: Vec::with_capacity(READS),
            nudged: true,
            looked_before: Instant::now(),
        }
    }
}

/// A thread's sources.
pub(super) struct Worker {
    epoll: Epoll,
    sources: Mutex<HashMap<u64, Source>>,
    next: AtomicU64,
    clock: Option<Arc<Clock>>,
}

impl Worker {
    /// A worker without sources; one of them keeps the time.
    pub(super) fn new(clock: Option<Arc<Clock>>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(clock) = &clock {
            epoll.add(clock.event(), EpollEvent::new(EpollFlags::EPOLLIN, CLOCK))?;
        }
        Ok(Self { epoll, sources: Mutex::default(), next: AtomicU64::new(CLOCK + 1), clock })
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<u64, Source>> {
        // A thread that panics ends the process, so a poisoned lock is never seen.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a source; returns its number.
    pub(super) fn add(&self, source: Source) -> io::Result<u64> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.sources().insert(id, source.clone());
        let event = EpollEvent::new(EpollFlags::EPOLLIN, id);
        let added = match &source {
            Source::Tun(source) => self.epoll.add(&*source.tun, event),
            Source::Udp(udp, _) => self.epoll.add(&**udp, event),
        };
        if added.is_err() {
            self.sources().remove(&id);
        }
        Ok(added.map(|()| id)?)
    }

    /// Watches a source no longer. A descriptor of which somebody holds a copy stays in the set until it is taken out.
    pub(super) fn remove(&self, id: u64, fd: &impl AsFd) {
        if self.sources().remove(&id).is_some() {
            let _ = self.epoll.delete(fd);
        }
    }

    /// Moves packets for as long as the process lives.
    pub(super) fn run(&self, mut buffers: Buffers) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let (mut look_at, mut looked) = (None, Instant::now());
        loop {
            if let Some(clock) = &self.clock {
                let now = Instant::now();
                if buffers.nudged || look_at.is_some_and(|at| at <= now) {
                    buffers.nudged = false;
                    look_at = clock.run(&mut buffers.lane, now);
                }
            }
            let sleep = sleep_until(look_at);
            let asked = Instant::now();
            let outcome = self.epoll.wait(&mut events, sleep);
            let now = Instant::now();
            // What is ready now was not when it last looked. If it had to wait, it was not until a moment ago.
            let waited = now.duration_since(asked) > WAITED;
            let before = std::mem::replace(&mut looked, now);
            buffers.looked_before = if waited { now } else { before };
            match outcome {
                Ok(ready) => {
                    for event in events.iter().take(ready) {
                        self.serve(event.data(), &mut buffers);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    // Nothing of the kind can happen to a descriptor that is ours and open.
                    tracing::error!(%error, "packets cannot be waited for");
                    std::process::exit(102);
                }
            }
        }
    }

    fn serve(&self, id: u64, buffers: &mut Buffers) {
        if id == CLOCK {
            if let Some(clock) = &self.clock {
                let _ = clock.event().read();
                buffers.nudged = true;
            }
            return;
        }
        let source = self.sources().get(&id).cloned();
        match source {
            Some(Source::Tun(source)) => {
                if let Err(error) = drain_tun(&source, buffers) {
                    tracing::info!(container = %source.device, %error, "the TUN device is gone");
                    self.remove(id, &*source.tun);
                    source.note_gone();
                }
            }
            Some(Source::Udp(udp, network)) => drain_udp(&udp, &network, buffers),
            None => {}
        }
    }
}

fn sleep_until(at: Option<Instant>) -> EpollTimeout {
    let sleep = at.map(|at| at.saturating_duration_since(Instant::now()));
    // Rounded up, as a look that comes too early has to come again.
    let millis = sleep.map(|sleep| u16::try_from(sleep.as_millis() + 1).unwrap_or(u16::MAX));
    millis.map_or(EpollTimeout::NONE, EpollTimeout::from)
}

/// Reads what waits, and sends what becomes of it.
fn drain_tun(source: &TunSource, buffers: &mut Buffers) -> Result<(), Errno> {
    let Buffers { lane, packets, reads, spare, looked_before, .. } = buffers;
    reads.clear();
    let mut congested = source.backlog().begin(*looked_before);
    let mut used = 0;
    let mut outcome = Ok(());
    while reads.len() < READS && used < READ_BYTES {
        let Some(room) = packets.get_mut(used..used + MAX_PACKET) else { break };
        match source.tun.read(room) {
            Ok((header, length)) => {
                reads.push(Read { header, at: used..used + length, congested: false });
                used += length + PADDING;
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                source.backlog().emptied(Instant::now());
                break;
            }
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    sparse_first(packets, reads, spare);
    // The first of the largest flow is as good as any, and those are last.
    if let Some(last) = reads.last_mut() {
        last.congested = std::mem::take(&mut congested);
    }
    let mut rest = reads.as_slice();
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(batch_length(rest));
        source.network.from_tun(source.device, packets, batch, lane, Instant::now());
        rest = after;
    }
    source.backlog().done(used, Instant::now());
    outcome
}

/// How many of these make a batch: at least one.
fn batch_length(reads: &[Read]) -> usize {
    let mut bytes = 0;
    let fits = |read: &&Read| {
        let fits = bytes < BATCH_BYTES;
        bytes += read.at.len();
        fits
    };
    reads.iter().take(BATCH).take_while(fits).count().max(1)
}

fn drain_udp(udp: &Udp, network: &Network, buffers: &mut Buffers) {
    let Buffers { lane, inbox, .. } = buffers;
    for _ in 0..ROUNDS {
        match inbox.receive(udp) {
            Ok(()) => {
                let (bytes, arrivals) = inbox.arrivals();
                network.from_udp(bytes, arrivals, lane, Instant::now());
                if !inbox.was_full() {
                    return;
                }
            }
            Err(Errno::EAGAIN) => return,
            // An ICMP error of an earlier datagram (nobody listens there) is reported on the next call: read on.
            Err(_) => {}
        }
    }
}
