//! The controller's disk: rows and a log as its store keeps them, over a cache that a power cut empties.

use std::collections::{BTreeMap, VecDeque};

use znet_core::controller::{Row, RowKey, StateChange};
use znet_core::feed::Logged;
use znet_core::id::Revision;

use crate::model::Op;

/// One commit: all of its revisions, or none.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) logged: Vec<Logged>,
    pub(crate) ops: Vec<Op>,
}

/// What is durable, and what is written and not durable yet.
pub(crate) struct Disk {
    rows: BTreeMap<RowKey, Row>,
    revision: Revision,
    log: VecDeque<Logged>,
    log_kept: usize,
    cache: Vec<Frame>,
    pub(crate) full: bool,
}

impl Disk {
    pub(crate) fn new(log_kept: usize) -> Self {
        Self {
            rows: BTreeMap::new(),
            revision: Revision::ZERO,
            log: VecDeque::new(),
            log_kept,
            cache: Vec::new(),
            full: false,
        }
    }

    /// The newest revision that is written.
    pub(crate) fn written(&self) -> Revision {
        let last = self.cache.last().and_then(|frame| frame.logged.last());
        last.map_or(self.revision, |logged| logged.head.revision)
    }

    /// The newest revision that survives whatever comes.
    pub(crate) fn durable(&self) -> Revision {
        self.revision
    }

    /// Writes a commit that follows `expected`; `false` when somebody else was faster.
    pub(crate) fn write(&mut self, expected: Revision, frame: Frame) -> bool {
        let follows = self.written() == expected;
        if follows {
            self.cache.push(frame);
        }
        follows
    }

    /// Makes durable what is written, and returns it.
    pub(crate) fn sync(&mut self) -> Vec<Frame> {
        let frames = std::mem::take(&mut self.cache);
        for logged in frames.iter().flat_map(|frame| &frame.logged) {
            for change in &logged.changes {
                match change {
                    StateChange::Put(row) => drop(self.rows.insert(row.key(), row.clone())),
                    StateChange::Remove(key) => drop(self.rows.remove(key)),
                }
            }
            self.revision = logged.head.revision;
            self.log.push_back(logged.clone());
            while self.log.len() > self.log_kept {
                self.log.pop_front();
            }
        }
        frames
    }

    /// The power goes: of what is not durable so many whole commits are left. The next one is torn, and as its checksum does
    /// not fit it counts for nothing.
    pub(crate) fn power_cut(&mut self, left: usize) {
        self.cache.truncate(left);
    }

    /// How many commits are written and not durable.
    pub(crate) fn cached(&self) -> usize {
        self.cache.len()
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// The revisions after `revision`; `None` when the log does not reach back.
    pub(crate) fn since(&self, revision: Revision) -> Option<Vec<Logged>> {
        let first = self.log.front().map_or(self.revision.next(), |logged| logged.head.revision);
        (revision.next() >= first)
            .then(|| self.log.iter().filter(|logged| logged.head.revision > revision).cloned().collect())
    }
}
