//! The network: connections that carry what one end says to the other, if nothing happens to it on the way.
//!
//! A stream over TCP and TLS either carries everything in order or breaks. Here it may also deliver twice or out of order:
//! then it is `mangled`, and its agent may refuse what it would otherwise have to take.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use znet_core::time::Timestamp;

use crate::queue::{Event, Say, Serial, Site, Told, Who};
use crate::world::World;

/// How long an agent needs at most to see that a connection carries nothing any more.
const KEEPALIVE: u64 = 15_000;

/// A connection between an agent and the controller.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) who: Who,
    /// The controller, and the lives of the agent and of it between which it is.
    pub(crate) site: Site,
    pub(crate) agent_life: Serial,
    pub(crate) controller_life: Serial,
    /// Whether it carries anything.
    pub(crate) dead: bool,
    pub(crate) mangled: bool,
    last_told: Timestamp,
    last_said: Timestamp,
}

impl World {
    pub(crate) fn chance(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && !self.calm && self.rng.random_range(0..1000) < thousandths
    }

    pub(crate) fn delay(&mut self) -> Duration {
        let range = if self.calm { 0..=5 } else { self.scenario.delay.clone() };
        Duration::from_millis(self.rng.random_range(range))
    }

    pub(crate) fn connect(&mut self, who: Who) -> Serial {
        self.last_conn += 1;
        let now = self.queue.now();
        let site = self.agents[who].site;
        let conn = Conn {
            who,
            site,
            agent_life: self.agents[who].life,
            controller_life: self.lives[site],
            dead: false,
            mangled: false,
            last_told: now,
            last_said: now,
        };
        self.conns.insert(self.last_conn, conn);
        if self.cut.contains(&who) {
            self.kill_conn(self.last_conn);
        }
        self.last_conn
    }

    /// From now on a connection carries nothing; its agent finds out, the controller waits for a sign of life.
    pub(crate) fn kill_conn(&mut self, conn: Serial) {
        let Some(found) = self.conns.get_mut(&conn) else { return };
        if !std::mem::replace(&mut found.dead, true) {
            let noticed = self.rng.random_range(0..=KEEPALIVE);
            self.queue.after(Duration::from_millis(noticed), Event::Broken { conn });
        }
    }

    /// Both ends know that a connection is over, as a process ended or closed it.
    pub(crate) fn reset_conn(&mut self, conn: Serial) {
        if let Some(found) = self.conns.get_mut(&conn) {
            found.dead = true;
            let delay = self.delay();
            self.queue.after(delay, Event::Broken { conn });
        }
    }

    pub(crate) fn tell(&mut self, conn: Serial, told: Arc<Told>) {
        let Some(found) = self.conns.get(&conn) else { return };
        if found.dead {
            return;
        }
        let last = found.last_told;
        let Some((at, mangled)) = self.journey(conn, last) else { return };
        if let Some(found) = self.conns.get_mut(&conn) {
            found.last_told = found.last_told.max(at);
            found.mangled |= mangled;
        }
        if mangled && self.rng.random_bool(0.5) {
            let later = at.plus(self.delay());
            self.queue.at(later, Event::Told { conn, told: told.clone(), frees: false });
        }
        self.queue.at(at, Event::Told { conn, told, frees: true });
    }

    pub(crate) fn say(&mut self, conn: Serial, say: Say) {
        let Some(found) = self.conns.get(&conn) else { return };
        if found.dead {
            return;
        }
        // What opens a stream is its first message in any case.
        let last = found.last_said;
        let Some((at, mangled)) = self.journey(conn, last) else { return };
        let at = if matches!(say, Say::Open(_)) { last } else { at };
        if let Some(found) = self.conns.get_mut(&conn) {
            found.last_said = found.last_said.max(at);
            found.mangled |= mangled;
        }
        self.queue.at(at, Event::Said { conn, say });
    }

    /// When a message arrives, and whether out of order or twice; `None` when it does not and nothing else will.
    fn journey(&mut self, conn: Serial, last: Timestamp) -> Option<(Timestamp, bool)> {
        if self.chance(self.scenario.drop) {
            self.note(|| format!("connection {conn} breaks"));
            self.kill_conn(conn);
            return None;
        }
        let at = self.queue.now().plus(self.delay());
        if self.chance(self.scenario.reorder) || self.chance(self.scenario.duplicate) {
            return Some((at, true));
        }
        Some((at.max(last), false))
    }

    /// When a call or its answer arrives at the other end; `None` when it does not.
    pub(crate) fn parcel(&mut self, who: Who) -> Option<Duration> {
        let lost = self.cut.contains(&who) || self.chance(self.scenario.drop);
        (!lost).then(|| self.delay())
    }

    pub(crate) fn cut_off(&mut self, who: Who) {
        self.cut.insert(who);
        let hit: Vec<Serial> =
            self.conns.iter().filter(|(_, conn)| conn.who == who).map(|(serial, _)| *serial).collect();
        hit.into_iter().for_each(|conn| self.kill_conn(conn));
    }
}
