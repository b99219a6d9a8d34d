//! The controller's ends of the agents' streams.

use std::sync::Arc;
use std::time::Duration;

use znet_core::feed::{self, Place, Snapshot, Turn};
use znet_core::id::{NodeId, Revision};
use znet_core::map::{Delta, Record, SignedHead};
use znet_core::time::Timestamp;

use crate::queue::{Event, Say, Serial, Told, Who};
use crate::world::World;

/// As in the controller: events under way, the pace of deltas, how long silence is borne.
const STREAM_BUFFER: usize = 2;
const PACE: Duration = Duration::from_millis(4);
pub(crate) const LIVE_TERM: Duration = Duration::from_secs(16);

/// An event, made once for all streams.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Told>);

impl feed::Event for Shared {
    fn delta(delta: &Delta, head: &SignedHead) -> Self {
        Self(Arc::new(Told::Delta(delta.clone(), *head)))
    }

    fn part(records: &[Record], head: Option<&SignedHead>) -> Self {
        Self(Arc::new(Told::Part(records.to_vec(), head.copied())))
    }

    fn head(head: &SignedHead) -> Self {
        Self(Arc::new(Told::Head(*head)))
    }
}

/// One agent's stream.
pub(crate) struct Stream {
    conn: Serial,
    place: Place<Shared>,
    /// Events that may still be sent before one has arrived.
    room: usize,
    not_before: Timestamp,
    heard: Timestamp,
    /// Whether it goes on by itself at `not_before`.
    pumping: bool,
}

impl World {
    /// The stream of a connection, if it is the one that the controller has.
    fn stream(&mut self, conn: Serial) -> Option<(Who, &mut Stream)> {
        let found = self.conns.get(&conn).filter(|found| found.controller_life == self.lives[self.here])?;
        let who = found.who;
        let stream = self.sites[self.here].as_mut()?.streams.get_mut(&who)?;
        (stream.conn == conn).then_some((who, stream))
    }

    pub(crate) fn said(&mut self, conn: Serial, say: Say) {
        let now = self.now();
        if let Say::Open(resume) = say {
            return self.open(conn, resume);
        }
        let Some((who, stream)) = self.stream(conn) else { return };
        stream.heard = now;
        match say {
            Say::WantSnapshot => stream.place.start_over(),
            Say::Applied(revision) if revision > self.disk.durable() => {
                self.breach(format!(
                    "node {who} says to have applied revision {revision}, which is not durable"
                ));
            }
            Say::Applied(revision) => self.member_seen(who, Some(revision)),
            _ => {}
        }
        self.seen(who);
        self.pump(who);
    }

    fn open(&mut self, conn: Serial, resume: Option<znet_core::map::Head>) {
        let now = self.now();
        let Some(found) = self.conns.get(&conn) else { return };
        let (who, known) = (found.who, found.controller_life == self.lives[self.here]);
        self.catch_up();
        let id = self.agents[who].id;
        let Some(up) = self.sites[self.here].as_mut().filter(|_| known) else { return self.reset_conn(conn) };
        if up.committed().node(&id).is_none() {
            return self.tell(conn, Arc::new(Told::End { unknown_node: true }));
        }
        let stream = Stream {
            conn,
            place: Place::new(resume),
            room: STREAM_BUFFER,
            not_before: now,
            heard: now,
            pumping: false,
        };
        if let Some(old) = up.streams.insert(who, stream) {
            self.tell(old.conn, Arc::new(Told::End { unknown_node: false }));
        }
        self.seen(who);
        self.pump(who);
    }

    fn seen(&mut self, who: Who) {
        let (now, id) = (self.now(), self.agents[who].id);
        if self.absences.last_seen(&id).is_some() {
            self.absences.seen(id, now);
        }
        self.member_seen(who, None);
    }

    /// A member gave a sign of life, or said what it has applied.
    fn member_seen(&mut self, who: Who, applied: Option<Revision>) {
        let (now, id) = (self.now(), self.agents[who].id);
        let Some(up) = &mut self.sites[self.here] else { return };
        let known = up.members.entry(id).or_insert((now, None));
        *known = (now, applied.or(known.1));
    }

    /// A node is no member any more.
    pub(crate) fn dismiss(&mut self, node: &NodeId) {
        let Some(who) = self.node_of.get(node).copied() else { return };
        self.absences.forget(node);
        let Some(up) = &mut self.sites[self.here] else { return };
        up.members.remove(node);
        if let Some(stream) = up.streams.remove(&who) {
            self.tell(stream.conn, Arc::new(Told::End { unknown_node: true }));
        }
    }

    pub(crate) fn end_silent_streams(&mut self) {
        let now = self.now();
        let Some(up) = &mut self.sites[self.here] else { return };
        let silent: Vec<Who> = up
            .streams
            .iter()
            .filter(|(_, stream)| stream.heard.plus(LIVE_TERM) <= now)
            .map(|(who, _)| *who)
            .collect();
        let ended: Vec<Serial> =
            silent.iter().filter_map(|who| up.streams.remove(who)).map(|stream| stream.conn).collect();
        ended.into_iter().for_each(|conn| self.reset_conn(conn));
    }

    /// An event has arrived, which makes room for another one.
    pub(crate) fn arrived(&mut self, conn: Serial) {
        if let Some((who, stream)) = self.stream(conn) {
            stream.room += 1;
            self.pump(who);
        }
    }

    /// Something was published.
    pub(crate) fn pump_all(&mut self) {
        let Some(up) = &mut self.sites[self.here] else { return };
        up.streams.values_mut().for_each(|stream| stream.place.wake());
        let all: Vec<Who> = up.streams.keys().copied().collect();
        all.into_iter().for_each(|who| self.pump(who));
    }

    pub(crate) fn pump_due(&mut self, who: Who) {
        if let Some(stream) = self.sites[self.here].as_mut().and_then(|up| up.streams.get_mut(&who)) {
            stream.pumping = false;
            self.pump(who);
        }
    }

    /// Sends what there is to send and room for.
    fn pump(&mut self, who: Who) {
        let now = self.now();
        loop {
            let Some(stream) = self.sites[self.here].as_mut().and_then(|up| up.streams.get_mut(&who)) else {
                return;
            };
            if !stream.place.is_behind() || stream.room == 0 {
                return;
            }
            if stream.not_before > now {
                if !std::mem::replace(&mut stream.pumping, true) {
                    let (at, site) = (stream.not_before, self.here);
                    self.queue.at(at, Event::Pump { site, who });
                }
                return;
            }
            let (conn, event) = match self.turn(who) {
                Some(sent) => sent,
                None => continue,
            };
            if let Some(stream) = self.sites[self.here].as_mut().and_then(|up| up.streams.get_mut(&who)) {
                stream.room -= 1;
            }
            self.tell(conn, event);
        }
    }

    /// The next event of a stream; `None` when there is none before something is published.
    fn turn(&mut self, who: Who) -> Option<(Serial, Arc<Told>)> {
        let now = self.queue.now();
        let up = self.sites[self.here].as_mut()?;
        let (stream, head) = (up.streams.get_mut(&who)?, up.head);
        let mut turn = stream.place.turn(&mut up.ring);
        if matches!(turn, Turn::Stuck)
            && let Some(log) = stream.place.log_wanted(&up.ring).and_then(|before| self.disk.since(before))
        {
            up.ring.prepend(&log);
            turn = stream.place.turn(&mut up.ring);
        }
        if matches!(turn, Turn::Stuck) {
            let kept = stream.place.kept_snapshot(&mut up.ring);
            let snapshot = kept.unwrap_or_else(|| {
                let records: Vec<Record> = up.committed.map().records().collect();
                let made = Arc::new(Snapshot::encode(&records, &head));
                up.ring.keep(made.clone(), now);
                made
            });
            stream.place.begin(snapshot);
            turn = stream.place.turn(&mut up.ring);
        }
        match turn {
            Turn::Delta { event, .. } => {
                stream.not_before = now.plus(PACE);
                Some((stream.conn, event.0))
            }
            Turn::Head(event) | Turn::Part(event) => Some((stream.conn, event.0)),
            Turn::Rest | Turn::Stuck => None,
        }
    }
}
