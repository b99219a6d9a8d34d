//! The threads that move packets, of an engine and of a stand-alone device alike.
//!
//! Every source of packets, a TUN queue or a socket, belongs to one of the workers, so packets of one flow never overtake each
//! other. Sources begin together and move apart when they are too much for one core ([`balance`]). The first worker keeps the
//! time for all networks.

mod backlog;
mod balance;
mod clock;
mod sockets;
mod worker;

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use std::time::Instant;

use nix::sys::eventfd::EventFd;
use znet_core::id::ContainerId;

use backlog::Backlog;
pub use clock::Clock;
pub use sockets::{Began, Sockets};
use worker::Worker;

use crate::io::tun::Tun;
use crate::io::udp::Udp;
use crate::net::Network;

/// Most threads that move packets.
pub const MAX_WORKERS: usize = 64;

/// A TUN queue and whose it is.
pub struct TunSource {
    /// The queue.
    pub tun: Arc<Tun>,
    /// The network.
    pub network: Arc<Network>,
    /// The device in it.
    pub device: ContainerId,
    backlog: Mutex<Backlog>,
    gone: AtomicBool,
    on_gone: Option<Arc<EventFd>>,
}

impl TunSource {
    /// A source; `on_gone` is written to when the device goes away.
    pub fn new(
        tun: Arc<Tun>,
        network: Arc<Network>,
        device: ContainerId,
        on_gone: Option<Arc<EventFd>>,
    ) -> Self {
        let backlog = Mutex::new(Backlog::new(Instant::now()));
        Self { tun, network, device, backlog, gone: AtomicBool::new(false), on_gone }
    }

    /// Whether the device went away, with its namespace or by somebody's hand.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Its backlog, which the one worker that reads it looks at.
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
        if let Some(event) = &self.on_gone {
            let _ = event.write(1);
        }
    }
}

/// A source that is watched, to end that by.
#[derive(Debug)]
pub struct Token {
    home: usize,
    kind: Kind,
    id: u64,
}

/// What is counted of a source when a home is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tun,
    Port,
    /// A further socket of a port that was counted.
    Socket,
}

/// The threads that move packets.
pub struct Plane {
    workers: Vec<Arc<Worker>>,
    clock: Arc<Clock>,
    /// TUN queues, and ports, of which each worker is the home.
    homes: Mutex<Vec<(usize, usize)>>,
}

impl Plane {
    /// Starts so many threads, at least one, and returns when they run: a thread that is still starting makes system calls
    /// that none may make later.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(threads: usize) -> io::Result<Self> {
        let clock = Arc::new(Clock::new()?);
        let count = threads.clamp(1, MAX_WORKERS);
        let workers: Vec<Arc<Worker>> = (0..count)
            .map(|number| Worker::new(number, (number == 0).then(|| clock.clone())).map(Arc::new))
            .collect::<io::Result<_>>()?;
        let all: Arc<[Arc<Worker>]> = workers.clone().into();
        let (running, started) = std::sync::mpsc::channel();
        for (number, worker) in workers.iter().enumerate() {
            let (worker, running, all) = (worker.clone(), running.clone(), all.clone());
            std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let lane = worker::Buffers::default();
                let _ = running.send(());
                worker.run(lane, &all);
            })?;
        }
        for _ in 0..count {
            let _ = started.recv();
        }
        Ok(Self { workers, clock, homes: Mutex::new(vec![(0, 0); count]) })
    }

    /// Who wakes the networks' sessions in time.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// Number of threads.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Moves what comes out of a TUN queue from now on.
    ///
    /// # Errors
    /// The operating system's: the descriptor cannot be watched.
    pub fn watch_tun(&self, source: Arc<TunSource>) -> io::Result<Token> {
        let home = self.home(|(tuns, _)| tuns);
        self.watch(home, Kind::Tun, worker::Source::Tun(source))
    }

    /// Moves what comes in on a port from now on. Its sockets go to one worker.
    ///
    /// # Errors
    /// The operating system's: a descriptor cannot be watched.
    pub fn watch_port(&self, sockets: &[Arc<Udp>], network: &Arc<Network>) -> io::Result<Vec<Token>> {
        let home = self.home(|(_, ports)| ports);
        let source = |udp: &Arc<Udp>| worker::Source::Udp(udp.clone(), network.clone());
        let kinds = std::iter::once(Kind::Port).chain(std::iter::repeat(Kind::Socket));
        sockets.iter().zip(kinds).map(|(udp, kind)| self.watch(home, kind, source(udp))).collect()
    }

    /// Moves nothing of this source any more. What is under way ends by itself.
    pub fn unwatch(&self, token: &Token, fd: &impl AsFd) {
        // Wherever it is now.
        worker::remove(&self.workers, token.id, fd);
        self.count(token.home, token.kind, |count| count.saturating_sub(1));
    }

    fn watch(&self, home: usize, kind: Kind, source: worker::Source) -> io::Result<Token> {
        let worker = self.workers.get(home).ok_or(io::ErrorKind::NotFound)?;
        let id = worker.add(source)?;
        self.count(home, kind, |count| count + 1);
        Ok(Token { home, kind, id })
    }

    fn homes(&self) -> MutexGuard<'_, Vec<(usize, usize)>> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, home: usize, kind: Kind, change: impl Fn(usize) -> usize) {
        let mut homes = self.homes();
        match (homes.get_mut(home), kind) {
            (Some((tuns, _)), Kind::Tun) => *tuns = change(*tuns),
            (Some((_, ports)), Kind::Port) => *ports = change(*ports),
            (_, Kind::Socket) | (None, _) => {}
        }
    }

    /// The first of the workers that are home to the fewest.
    fn home(&self, of: impl Fn((usize, usize)) -> usize) -> usize {
        let homes = self.homes();
        let fewest = homes.iter().enumerate().min_by_key(|(_, counts)| of(**counts));
        fewest.map_or(0, |(worker, _)| worker)
    }
}
