//! The threads that move packets, of an engine and of a stand-alone device alike.
//!
//! Every source of packets, a TUN queue or a socket, belongs to one of the workers, so packets of one flow never overtake each
//! other. TUN devices are given out from the first worker on and sockets from the last, so that the two directions of a
//! lone device go through two cores. The first worker keeps the time for all networks.

mod clock;
mod sockets;
mod worker;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::eventfd::EventFd;
use znet_core::id::ContainerId;

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
        Self { tun, network, device, gone: AtomicBool::new(false), on_gone }
    }

    /// Whether the device went away, with its namespace or by somebody's hand.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
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
    id: u64,
}

/// The threads that move packets.
pub struct Plane {
    workers: Vec<Arc<Worker>>,
    clock: Arc<Clock>,
    tuns: AtomicUsize,
    udps: AtomicUsize,
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
        Ok(Self { workers, clock, tuns: AtomicUsize::new(0), udps: AtomicUsize::new(0) })
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
        let worker = self.tuns.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        self.watch(worker, worker::Source::Tun(source))
    }

    /// Moves what comes in on a port from now on. Its sockets go to one worker.
    ///
    /// # Errors
    /// The operating system's: a descriptor cannot be watched.
    pub fn watch_port(&self, sockets: &[Arc<Udp>], network: &Arc<Network>) -> io::Result<Vec<Token>> {
        let last = self.workers.len() - 1;
        let worker = last - self.udps.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        let watch = |udp: &Arc<Udp>| self.watch(worker, worker::Source::Udp(udp.clone(), network.clone()));
        sockets.iter().map(watch).collect()
    }

    /// Moves nothing of this source any more. What is under way ends by itself.
    pub fn unwatch(&self, token: &Token, fd: &impl AsFd) {
        if let Some(worker) = self.workers.get(token.worker) {
            worker.remove(token.id, fd);
        }
    }

    fn watch(&self, worker: usize, source: worker::Source) -> io::Result<Token> {
        let found = self.workers.get(worker).ok_or(io::ErrorKind::NotFound)?;
        Ok(Token { worker, id: found.add(source)? })
    }
}
