//! Pings between many pairs of containers by one thread, where a process for each pair would take most of the processor.
//!
//! What it sends are echo requests (RFC 4443, section 4.1) by a raw socket within the namespace of the container that asks; the
//! kernel of the one that is asked answers, as it does `ping`. Answers are looked for every millisecond, so times are that
//! coarse.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};

use crate::inside::enter;

/// Between two pings of a fast flow.
const FAST: Duration = Duration::from_millis(1);
/// Between two pings of another one, in as many of the above.
const SLOW: usize = 250;
/// How often the answers of slow flows are looked for, likewise.
const LOOK_AT_SLOW: usize = 20;
/// How long an answer is waited for before the next ping, where one is enough.
const AGAIN: Duration = Duration::from_millis(100);
/// How long the last answers are waited for.
const TAIL: Duration = Duration::from_secs(5);
/// How long a full socket is waited for, so that nothing hangs if nobody reads what is sent.
const STUCK: Duration = Duration::from_secs(1);
/// Room for what was answered while this thread had no processor. The kernel takes what it allows.
const BUFFER: usize = 4 << 20;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// Header, number of the ping, nanoseconds at which it was sent.
const MESSAGE: usize = HEADER + 16;

/// From one container to another.
struct Flow {
    number: u16,
    socket: Socket,
    /// How many pings are forgotten. Their answers count for nothing.
    before: u64,
    /// For each ping since then whether it was answered.
    pings: Vec<bool>,
    longest: Duration,
}

/// What became of the pings of some flows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// How many were sent.
    pub(crate) sent: usize,
    /// How many of them were not answered.
    pub(crate) lost: usize,
    /// The longest time until an answer.
    pub(crate) longest: Duration,
}

/// Flows between pairs of containers.
pub(crate) struct Flows {
    flows: Vec<Flow>,
    begun: Instant,
}

impl Flows {
    /// From each of these namespaces to each of its addresses. They are numbered in this order.
    pub(crate) fn open(from: Vec<(PathBuf, Vec<Ipv6Addr>)>) -> Result<Self> {
        let mut flows = Vec::new();
        for (netns, to) in from {
            let opening = std::thread::spawn(move || {
                enter(&netns)?;
                to.into_iter().map(open).collect::<Result<Vec<Socket>>>()
            });
            for socket in opening.join().unwrap_or_else(|_| bail!("the opening thread panicked"))? {
                let number = u16::try_from(flows.len())?;
                flows.push(Flow { number, socket, before: 0, pings: Vec::new(), longest: Duration::ZERO });
            }
        }
        Ok(Self { flows, begun: Instant::now() })
    }

    /// Pings by each flow until it is answered.
    pub(crate) fn wait_answered(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        self.forget();
        loop {
            let begun = self.begun;
            let waiting = |flow: &&mut Flow| !flow.pings.contains(&true);
            self.flows.iter_mut().filter(waiting).for_each(|flow| flow.ping(begun));
            std::thread::sleep(AGAIN);
            self.flows.iter_mut().for_each(|flow| flow.hear(begun));
            let waiting = self.flows.iter_mut().filter(waiting).count();
            if waiting == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{waiting} of {} pairs do not reach each other", self.flows.len());
            }
        }
    }

    /// Pings by all flows, by those of these numbers every millisecond, until it is over. What became of the fast ones' pings,
    /// and of the others'.
    pub(crate) fn ping(&mut self, fast: &BTreeSet<usize>, over: &AtomicBool) -> [Tally; 2] {
        self.forget();
        let (mut quick, mut slow): (Vec<_>, Vec<_>) =
            self.flows.iter_mut().enumerate().partition(|(number, _)| fast.contains(number));
        let (begun, mut tick) = (self.begun, 0_usize);
        while !over.load(Ordering::Relaxed) {
            // However late it is: who is late sends what was due meanwhile.
            let due = (begun.elapsed().as_nanos() / FAST.as_nanos()) as usize;
            while tick < due {
                quick.iter_mut().for_each(|(_, flow)| flow.ping(begun));
                slow.iter_mut().skip(tick % SLOW).step_by(SLOW).for_each(|(_, flow)| flow.ping(begun));
                tick += 1;
                if tick.is_multiple_of(LOOK_AT_SLOW) {
                    slow.iter_mut().for_each(|(_, flow)| flow.hear(begun));
                }
            }
            quick.iter_mut().for_each(|(_, flow)| flow.hear(begun));
            let next = FAST * u32::try_from(tick + 1).unwrap_or(u32::MAX);
            std::thread::sleep(next.saturating_sub(begun.elapsed()));
        }
        let last = Instant::now();
        while last.elapsed() < TAIL && quick.iter().chain(&slow).any(|(_, flow)| flow.pings.contains(&false))
        {
            quick.iter_mut().chain(&mut slow).for_each(|(_, flow)| flow.hear(begun));
            std::thread::sleep(FAST);
        }
        [quick, slow]
            .map(|flows| flows.iter().map(|(_, flow)| flow.tally()).fold(Tally::default(), Tally::and))
    }

    fn forget(&mut self) {
        for flow in &mut self.flows {
            flow.before += flow.pings.len() as u64;
            (flow.pings, flow.longest) = (Vec::new(), Duration::ZERO);
        }
        self.begun = Instant::now();
    }
}

fn open(to: Ipv6Addr) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).context("a raw socket")?;
    // From then on it hears that address alone.
    socket.connect(&SocketAddr::from((to, 0)).into())?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_write_timeout(Some(STUCK))?;
    Ok(socket)
}

impl Flow {
    /// A ping that cannot be sent counts as sent and lost.
    fn ping(&mut self, begun: Instant) {
        let mut message = [0; MESSAGE];
        let number = self.before + self.pings.len() as u64;
        let sequence = (number & u64::from(u16::MAX)) as u16;
        let at = begun.elapsed().as_nanos() as u64;
        // The kernel fills the checksum in (RFC 3542, section 3.1).
        let fields = [ECHO_REQUEST, 0, 0, 0].into_iter();
        let fields = fields.chain(self.number.to_be_bytes()).chain(sequence.to_be_bytes());
        let fields = fields.chain(number.to_be_bytes()).chain(at.to_be_bytes());
        message.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        self.pings.push(false);
        let _ = self.socket.send(&message);
    }

    /// Takes all answers that are there.
    fn hear(&mut self, begun: Instant) {
        let mut message = [0; 2 * MESSAGE];
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
            self.answered(message.get(..length).unwrap_or_default(), begun);
        }
    }

    fn answered(&mut self, message: &[u8], begun: Instant) {
        let (Some((header, body)), true) = (message.split_first_chunk::<HEADER>(), message.len() == MESSAGE)
        else {
            return;
        };
        let [kind, _, _, _, high, low, _, _] = *header;
        let (Some((number, at)), true) = (
            body.split_first_chunk::<8>(),
            kind == ECHO_REPLY && u16::from_be_bytes([high, low]) == self.number,
        ) else {
            return;
        };
        let at = at.first_chunk::<8>().map_or(0, |at| u64::from_be_bytes(*at));
        let number = u64::from_be_bytes(*number).checked_sub(self.before);
        let ping = number.and_then(|number| self.pings.get_mut(usize::try_from(number).ok()?));
        if let Some(answered) = ping {
            *answered = true;
            self.longest = self.longest.max(begun.elapsed().saturating_sub(Duration::from_nanos(at)));
        }
    }

    fn tally(&self) -> Tally {
        let lost = self.pings.iter().filter(|answered| !**answered).count();
        Tally { sent: self.pings.len(), lost, longest: self.longest }
    }
}

impl Tally {
    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            lost: self.lost + other.lost,
            longest: self.longest.max(other.longest),
        }
    }
}
