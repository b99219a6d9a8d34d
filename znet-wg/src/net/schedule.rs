//! When sessions have to be looked at. A session that is used, or idle, or of which nothing is due costs nothing here:
//! only the one whose time has come is looked at.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Network;
use super::lane::Lane;
use super::network::{Ends, Link};
use super::session::{Look, Session};

/// Sessions by the time at which they are to be looked at, named by their receiver index. A session may be in here more
/// than once; it knows itself which entry counts.
#[derive(Default)]
pub(super) struct Schedule(Mutex<BinaryHeap<Reverse<(Instant, u32)>>>);

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, BinaryHeap<Reverse<(Instant, u32)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds entries; returns the earliest time if that is now earlier than before.
    pub(super) fn add(&self, due: &mut Vec<(Instant, u32)>) -> Option<Instant> {
        let mut heap = self.lock();
        let before = heap.peek().map(|Reverse((at, _))| *at);
        heap.extend(due.drain(..).map(Reverse));
        let after = heap.peek().map(|Reverse((at, _))| *at);
        after.filter(|_| before.is_none() || after < before)
    }

    fn next(&self) -> Option<Instant> {
        self.lock().peek().map(|Reverse((at, _))| *at)
    }

    fn take_due(&self, now: Instant) -> Option<(Instant, u32)> {
        let mut heap = self.lock();
        heap.peek().filter(|Reverse((at, _))| *at <= now)?;
        heap.pop().map(|Reverse(due)| due)
    }
}

impl Lane {
    /// Schedules the next look at a session, if one is wanted earlier than is planned.
    pub(super) fn schedule(&mut self, link: &Link, session: &mut Session, now: Instant) {
        if let Some(at) = session.schedule(now) {
            self.due.push((at, link.index));
        }
    }
}

impl Network {
    /// When the next session has to be looked at, if one has to.
    pub fn next_due(&self) -> Option<Instant> {
        self.schedule.next()
    }

    /// Looks at the sessions whose time has come: retries, rekeys, keepalives, expiry.
    pub fn run_due(&self, lane: &mut Lane, now: Instant) {
        while let Some((at, index)) = self.schedule.take_due(now) {
            let link = self.read().links.get(&index).cloned();
            if let Some(link) = link {
                self.look(&link, at, lane, now);
            }
        }
        self.flush(lane);
    }

    fn look(&self, link: &Arc<Link>, at: Instant, lane: &mut Lane, now: Instant) {
        let mut session = link.lock();
        if !session.take_schedule(at) {
            return;
        }
        let attempt = session.attempt();
        let outcome =
            if session.deadline() <= now { session.look(&mut lane.outbox, now) } else { Look::Alive };
        if session.wants_flush() {
            session.flush(&mut lane.outbox, now);
        }
        lane.schedule(link, &mut session, now);
        let attempt = Some(session.attempt()).filter(|after| *after != attempt);
        drop(session);
        self.flush(lane);
        match (outcome, attempt) {
            (Look::Expired, _) => self.expire(link, lane, now),
            (Look::Alive, Some(attempt)) => {
                let endpoint =
                    self.read().directory.peer(link.ends.peer).and_then(|entry| entry.endpoint(attempt));
                link.lock().set_endpoint(endpoint);
            }
            (Look::Alive, None) => {}
        }
    }

    /// Ends a link. A peer that is to be kept up gets a new one, which tries again; so does one with which there is still a
    /// session of a former key.
    fn expire(&self, link: &Arc<Link>, lane: &mut Lane, now: Instant) {
        self.end_link(link);
        let Ends { device, peer, .. } = link.ends;
        if self.is_outdated(device, peer) {
            return self.renew_link(device, peer, now, lane, now);
        }
        let kept = self.read().directory.peer(peer).is_some_and(|entry| entry.keepalive().is_some());
        if kept && let Some(link) = self.make_link(device, peer, now) {
            let mut session = link.lock();
            session.send_keepalive(&mut lane.outbox, now);
            lane.schedule(&link, &mut session, now);
            drop(session);
            self.flush(lane);
        }
    }
}
