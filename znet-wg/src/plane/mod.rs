//! The threads that move packets, of an engine and of a stand-alone device alike.
//!
//! Every source of packets, a TUN queue or a socket, belongs to one of the workers, so packets of one flow never overtake each
//! other. TUN devices are given out from the first worker on and sockets from the last, so that the two directions of a
//! lone device go through two cores. The first worker keeps the time for all networks.

mod backlog;
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
    worker: usize,
    weight: usize,
    id: u64,
}

/// The threads that move packets.
pub struct Plane {
    workers: Vec<Arc<Worker>>,
    clock: Arc<Clock>,
    /// Queues and ports that each worker has.
    loads: Mutex<Vec<usize>>,
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
            .map(|number| Worker::new((number == 0).then(|| clock.clone())).map(Arc::new))
            .collect::<io::Result<_>>()?;
        let (running, started) = std::sync::mpsc::channel();
        for (number, worker) in workers.iter().enumerate() {
            let (worker, running) = (worker.clone(), running.clone());
            std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let lane = worker::Buffers::default();
                let _ = running.send(());
                worker.run(lane);
            })?;
        }
        for _ in 0..count {
            let _ = started.recv();
        }
        Ok(Self { workers, clock, loads: Mutex::new(vec![0; count]) })
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
        let worker = self.least_loaded(|worker| worker);
        self.watch(worker, 1, worker::Source::Tun(source))
    }

    /// Moves what comes in on a port from now on. Its sockets go to one worker.
    ///
    /// # Errors
    /// The operating system's: a descriptor cannot be watched.
    pub fn watch_port(&self, sockets: &[Arc<Udp>], network: &Arc<Network>) -> io::Result<Vec<Token>> {
        let worker = self.least_loaded(std::cmp::Reverse);
        let source = |udp: &Arc<Udp>| worker::Source::Udp(udp.clone(), network.clone());
        // All sockets of a port together are one load: a peer uses one of them.
        let weights = std::iter::once(1).chain(std::iter::repeat(0));
        sockets.iter().zip(weights).map(|(udp, weight)| self.watch(worker, weight, source(udp))).collect()
    }

    /// Moves nothing of this source any more. What is under way ends by itself.
    pub fn unwatch(&self, token: &Token, fd: &impl AsFd) {
        if let Some(worker) = self.workers.get(token.worker) {
            worker.remove(token.id, fd);
        }
        if let Some(load) = self.loads().get_mut(token.worker) {
            *load = load.saturating_sub(token.weight);
        }
    }

    fn watch(&self, worker: usize, weight: usize, source: worker::Source) -> io::Result<Token> {
        let found = self.workers.get(worker).ok_or(io::ErrorKind::NotFound)?;
        let id = found.add(source)?;
        if let Some(load) = self.loads().get_mut(worker) {
            *load += weight;
        }
        Ok(Token { worker, weight, id })
    }

    fn loads(&self) -> MutexGuard<'_, Vec<usize>> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker with the fewest sources; of several, the one that `order` puts first.
    fn least_loaded<O: Ord>(&self, order: impl Fn(usize) -> O) -> usize {
        let loads = self.loads();
        let least = loads.iter().enumerate().min_by_key(|(worker, load)| (**load, order(*worker)));
        least.map_or(0, |(worker, _)| worker)
    }
}
