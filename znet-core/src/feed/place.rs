//! Where one stream stands: all that a controller remembers of it.

use std::sync::Arc;

use super::{Event, Next, Ring, Snapshot};
use crate::id::{Epoch, Revision};
use crate::map::Head;

/// What a stream does next.
#[derive(Debug)]
pub enum Turn<E> {
    /// It sends a delta that stands for so many published batches.
    Delta {
        /// The delta.
        event: E,
        /// How many batches it stands for.
        batches: usize,
    },
    /// It says that the agent is up to date; said once, as the first word on a stream.
    Head(E),
    /// It sends a part of a snapshot.
    Part(E),
    /// It sends nothing before something is published.
    Rest,
    /// The ring does not lead on from here: [`Place::log_wanted`] may help, and [`Place::begin`] does.
    Stuck,
}

/// Where a stream stands.
#[derive(Debug)]
pub struct Place<E> {
    /// The head that was sent last.
    at: Option<Head>,
    /// The latest position that the agent may have applied: it refuses a map that is older.
    least: (Epoch, Revision),
    /// A snapshot that is being sent, and how many of its parts were.
    sending: Option<(Arc<Snapshot<E>>, usize)>,
    /// Whether there may be something to send.
    behind: bool,
    /// Whether the agent was told anything yet.
    greeted: bool,
    /// What the agent turned out to have applied, until somebody asks.
    resumed: Option<Revision>,
}

impl<E: Event> Place<E> {
    /// The place of a stream that was just opened by an agent which says to have applied `resume`.
    pub fn new(resume: Option<Head>) -> Self {
        Self {
            at: resume,
            least: resume.map_or_else(Default::default, |head| head.position()),
            sending: None,
            behind: true,
            greeted: false,
            resumed: None,
        }
    }

    /// Whether there may be something to send.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Something was published.
    pub fn wake(&mut self) {
        self.behind = true;
    }

    /// The agent wants a snapshot.
    pub fn start_over(&mut self) {
        (self.at, self.sending, self.behind) = (None, None, true);
    }

    /// What the agent has applied of this history, told once: when it turned out whether it is of this history at all.
    pub fn take_resumed(&mut self) -> Option<Revision> {
        self.resumed.take()
    }

    /// What the stream does next. It counts as done: the place is the one after it.
    pub fn turn(&mut self, ring: &mut Ring<E>) -> Turn<E> {
        let Some((snapshot, sent)) = &mut self.sending else { return self.follow(ring) };
        let part = snapshot.parts.get(*sent).cloned();
        *sent += 1;
        if *sent >= snapshot.parts.len() {
            self.at = Some(snapshot.head);
            self.sending = None;
        }
        part.map_or(Turn::Rest, Turn::Part)
    }

    fn follow(&mut self, ring: &mut Ring<E>) -> Turn<E> {
        let Some(at) = self.at else { return Turn::Stuck };
        match ring.next(&at) {
            Next::Missing => Turn::Stuck,
            Next::Current(signed) => {
                self.behind = false;
                if self.greet(at.revision) { Turn::Head(E::head(&signed)) } else { Turn::Rest }
            }
            Next::Delta { event, head, batches } => {
                self.greet(at.revision);
                (self.at, self.least) = (Some(head), head.position());
                Turn::Delta { event, batches }
            }
        }
    }

    /// The revision after which the store's log may lead to the ring, by [`Ring::prepend`].
    pub fn log_wanted(&self, ring: &Ring<E>) -> Option<Revision> {
        let at = self.at?.revision;
        (at > Revision::ZERO && at < ring.oldest()).then(|| Revision::new(at.get() - 1))
    }

    /// The snapshot that was made for others, if this agent would take it.
    pub fn kept_snapshot(&self, ring: &mut Ring<E>) -> Option<Arc<Snapshot<E>>> {
        ring.kept().filter(|snapshot| snapshot.head.position() >= self.least)
    }

    /// Begins to send a snapshot.
    pub fn begin(&mut self, snapshot: Arc<Snapshot<E>>) {
        self.greet(Revision::ZERO);
        self.sending = Some((snapshot, 0));
    }

    /// Whether this is the first word.
    fn greet(&mut self, applied: Revision) -> bool {
        let first = !std::mem::replace(&mut self.greeted, true);
        if first {
            self.resumed = Some(applied);
        }
        first
    }
}
