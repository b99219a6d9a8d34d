//! One thread: waits for its sources, and moves a batch of each that has something.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::backlog::sparse_first;
use super::balance::{Balance, WINDOW, Window};
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

/// Numbers for sources, which keep them wherever they go; 0 is the clock's.
static NEXT: AtomicU64 = AtomicU64::new(CLOCK + 1);
/// Held while a source moves, so that nobody looks for it in between.
static MOVING: Mutex<()> = Mutex::new(());

/// A thread's sources.
pub(super) struct Worker {
    number: usize,
    epoll: Epoll,
    sources: Mutex<HashMap<u64, Held>>,
    clock: Option<Arc<Clock>>,
    /// How busy it was in its last window, in percent, and when that ended.
    busy: Mutex<(u32, Instant)>,
}

/// A source, and the worker that has it when there is little to do.
struct Held {
    source: Source,
    home: usize,
}

impl Source {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tun(source) => source.tun.as_fd(),
            Self::Udp(udp, _) => udp.as_fd(),
        }
    }
}

/// Watches a source no longer, whichever worker has it. A descriptor of which somebody holds a copy stays in a set until it
/// is taken out.
pub(super) fn remove(workers: &[Arc<Worker>], id: u64, fd: &impl AsFd) {
    let _moving = MOVING.lock().unwrap_or_else(PoisonError::into_inner);
    for worker in workers {
        worker.remove(id, fd);
    }
}

impl Worker {
    /// A worker without sources; one of them keeps the time.
    pub(super) fn new(number: usize, clock: Option<Arc<Clock>>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(clock) = &clock {
            epoll.add(clock.event(), EpollEvent::new(EpollFlags::EPOLLIN, CLOCK))?;
        }
        Ok(Self { number, epoll, sources: Mutex::default(), clock, busy: Mutex::new((0, Instant::now())) })
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        // A thread that panics ends the process, so a poisoned lock is never seen.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a source, of which it is the home; returns its number.
    pub(super) fn add(&self, source: Source) -> io::Result<u64> {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        self.take(id, Held { source, home: self.number }).map_err(|(_, error)| error)?;
        Ok(id)
    }

    fn take(&self, id: u64, held: Held) -> Result<(), (Held, io::Error)> {
        let mut sources = self.sources();
        match self.epoll.add(held.source.fd(), EpollEvent::new(EpollFlags::EPOLLIN, id)) {
            Ok(()) => {
                sources.insert(id, held);
                Ok(())
            }
            Err(error) => Err((held, error.into())),
        }
    }

    fn remove(&self, id: u64, fd: &impl AsFd) {
        if self.sources().remove(&id).is_some() {
            let _ = self.epoll.delete(fd);
        }
    }

    /// Gives a source to another worker, between two batches of it.
    fn give(&self, id: u64, to: &Self) {
        let _moving = MOVING.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = self.sources().remove(&id) else { return };
        let _ = self.epoll.delete(held.source.fd());
        if let Err((held, error)) = to.take(id, held) {
            tracing::debug!(%error, "a source cannot be moved");
            let _ = self.take(id, held);
        }
    }

    /// How busy it is, in percent. A worker that sleeps ends no windows.
    fn busy(&self, now: Instant) -> u32 {
        let (busy, at) = *self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(at) > 5 * WINDOW { 0 } else { busy }
    }

    /// Moves sources apart, or home, as the last window wants it.
    fn balance(&self, window: Window, all: &[Arc<Self>]) {
        let now = Instant::now();
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = (window.busy, now);
        if let Some(id) = window.give {
            let others = all.iter().filter(|other| other.number != self.number);
            let idlest = others.min_by_key(|other| other.busy(now));
            if let Some(idlest) = idlest.filter(|other| Balance::has_room(other.busy(now))) {
                self.give(id, idlest);
            }
        } else if window.quiet {
            let guests: Vec<(u64, usize)> = {
                let sources = self.sources();
                let guests = sources.iter().filter(|(_, held)| held.home != self.number);
                guests.map(|(id, held)| (*id, held.home)).collect()
            };
            for (id, home) in guests {
                if let Some(home) = all.get(home) {
                    self.give(id, home);
                }
            }
        }
    }

    /// Moves packets for as long as the process lives.
    pub(super) fn run(&self, mut buffers: Buffers, all: &[Arc<Self>]) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let (mut look_at, mut looked) = (None, Instant::now());
        let mut balance = Balance::new(looked);
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
                    let mut begun = now;
                    for event in events.iter().take(ready) {
                        self.serve(event.data(), &mut buffers);
                        let ended = Instant::now();
                        let took = ended.duration_since(std::mem::replace(&mut begun, ended));
                        if let Some(window) = balance.served(event.data(), took, ended) {
                            self.balance(window, all);
                        }
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
        let source = self.sources().get(&id).map(|held| held.source.clone());
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
    source.backlog().begin(*looked_before);
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
        last.congested = source.backlog().acts_on(used);
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
