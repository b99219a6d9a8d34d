//! The agents' open streams: one for each node, and a way to end it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use znet_api::error::Problem;
use znet_core::id::NodeId;

/// The open streams of one network. There are never more than it has nodes.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    open: HashMap<NodeId, (u64, oneshot::Sender<Problem>)>,
    next_serial: u64,
    closed: Option<Problem>,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a node's stream; an earlier one of the node ends, as the agent has evidently given it up.
    ///
    /// # Errors
    /// Why no stream is opened any more.
    pub(super) fn open(&self, node: NodeId) -> Result<(u64, oneshot::Receiver<Problem>), Problem> {
        let mut inner = self.lock();
        if let Some(why) = &inner.closed {
            return Err(why.clone());
        }
        inner.next_serial += 1;
        let serial = inner.next_serial;
        let (end, ended) = oneshot::channel();
        if let Some((_, old)) = inner.open.insert(node, (serial, end)) {
            let _ = old.send(Problem::new(409, "replaced", "the node has opened another stream"));
        }
        Ok((serial, ended))
    }

    /// Forgets a stream that ended by itself.
    pub(super) fn forget(&self, node: &NodeId, serial: u64) {
        let mut inner = self.lock();
        if inner.open.get(node).is_some_and(|(current, _)| *current == serial) {
            inner.open.remove(node);
        }
    }

    /// Ends a node's stream, telling why.
    pub(super) fn end(&self, node: &NodeId, why: &Problem) {
        if let Some((_, end)) = self.lock().open.remove(node) {
            let _ = end.send(why.clone());
        }
    }

    /// Ends all streams; new ones may be opened.
    pub(super) fn end_all(&self, why: &Problem) {
        for (_, (_, end)) in self.lock().open.drain() {
            let _ = end.send(why.clone());
        }
    }

    /// Ends all streams and opens no more.
    pub(super) fn close(&self, why: &Problem) {
        let mut inner = self.lock();
        inner.closed = Some(why.clone());
        for (_, (_, end)) in inner.open.drain() {
            let _ = end.send(why.clone());
        }
    }
}
