//! Bad cables: loss by nftables at both ends, delay by a thread between two TAP devices.
//!
//! The kernel at hand may have no netem, so neither is left to it. Loss is decided for each packet as it arrives, at the
//! end where it arrives, so both directions lose and neither end sees what the other lost. A delayed cable is a pair of
//! TAP devices whose frames are carried by two threads of this process, one each way.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use crate::error::{LabError, Result};
use crate::host::Host;
use crate::sys;
use crate::tap::open_tap;

/// Most frames under way in one direction; more are lost, as on a real cable with a full queue.
const QUEUE: usize = 20_000;
/// Largest frame.
const FRAME: usize = 65_550;
/// The longest delay, each way.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// Loss is decided out of this many.
const PARTS: f64 = 100_000.0;

pub(crate) fn check(loss_percent: f64, delay: Duration) -> Result<()> {
    if !(0.0..=100.0).contains(&loss_percent) {
        let value = format!("{loss_percent} %");
        return Err(LabError::OutOfRange { what: "a loss", value, allowed: "0 to 100 %" });
    }
    if delay > MAX_DELAY {
        return Err(LabError::OutOfRange {
            what: "a delay",
            value: format!("{delay:?}"),
            allowed: "up to 10 s",
        });
    }
    Ok(())
}

/// Loses a part of what arrives at an interface.
pub(crate) fn lose(host: &Host, ifname: &str, percent: f64) -> Result<()> {
    let parts = (percent / 100.0 * PARTS).round();
    host.nft(&format!(
        "table netdev loss-{ifname} {{\n\
           chain in {{\n\
             type filter hook ingress device {ifname} priority 0;\n\
             numgen random mod {PARTS} < {parts} drop\n\
           }}\n\
         }}"
    ))
}

/// A cable that takes its time. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Wire {
    stop: Arc<EventFd>,
    carriers: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Makes a device at each end, in the given namespaces, and carries frames between them.
    pub(crate) fn start(
        near: (BorrowedFd<'_>, &str),
        far: (BorrowedFd<'_>, &str),
        delay: Duration,
    ) -> Result<Self> {
        let open = |(net, name): (BorrowedFd<'_>, &str)| sys::inside(net, || open_tap(name))?;
        let (near, far) = (Arc::new(open(near)?), Arc::new(open(far)?));
        let stop = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let stop = Arc::new(stop.map_err(LabError::errno("make an event descriptor"))?);
        let carrier = |from: &Arc<File>, to: &Arc<File>| {
            let (from, to, stop) = (from.clone(), to.clone(), stop.clone());
            std::thread::spawn(move || carry(&from, &to, &stop, delay))
        };
        let carriers = vec![carrier(&near, &far), carrier(&far, &near)];
        Ok(Self { stop, carriers })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        for carrier in self.carriers.drain(..) {
            let _ = carrier.join();
        }
    }
}

fn carry(mut from: &File, mut to: &File, stop: &EventFd, delay: Duration) {
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut frame = vec![0u8; FRAME];
    loop {
        let wait = under_way.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        let mut fds =
            [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        let polled = ppoll(&mut fds, wait.map(TimeSpec::from_duration), None);
        let asked =
            |at: usize| fds.get(at).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        match polled {
            Ok(_) if asked(1) => return,
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return,
        }
        loop {
            match from.read(&mut frame) {
                Ok(len) if under_way.len() < QUEUE => {
                    under_way
                        .push_back((Instant::now() + delay, frame.get(..len).unwrap_or_default().to_vec()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The device is down or gone; the other end may still come up again.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(1));
                    break;
                }
            }
        }
        let now = Instant::now();
        while under_way.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, frame)) = under_way.pop_front() {
                // A device that is down loses it, as a cable would.
                let _ = to.write(&frame);
            }
        }
    }
}
