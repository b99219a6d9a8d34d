//! Ephemeral nodes that stayed away, before they are collected.
//!
//! An agent may be gone or cut off while its engine goes on: the containers of such a node talk, and who talks is not
//! collected. So the agents that are connected are asked whether they have heard a node lately, and only when none answers
//! for some time is it collected. That time passes on a steady clock and is longer than a heartbeat takes, or an agent to come
//! back that could not reach its controller: a node that only seems absent is seen meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::Instant;
use znet_api::v1;
use znet_core::id::NodeId;

use super::{HEARTBEAT, Hosted};
use crate::store::PRESENT_FOR;

/// Most nodes that are asked for at a time; the others have to wait.
pub(super) const MAX_ASKED: usize = 256;
/// How long members have to answer, and the node to come back. After an outage of the controller some agents are back while others
/// pause, at most 10 s and as much again by chance, and need a moment to connect.
const PATIENCE: Duration = Duration::from_secs(25);
/// How often a controller looks for the others' questions: their reports hold long enough for a few looks.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(3);

// Time for the node to be heard of here, by its own heartbeat or by another controller's look, question and report.
const _: () =
    assert!(PATIENCE.as_secs() > 4 * HEARTBEAT.as_secs() && PATIENCE.as_secs() > 4 * LOOK_EVERY.as_secs());
const _: () = assert!(PATIENCE.as_secs() < PRESENT_FOR.as_secs());

/// What every stream is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The event in the bytes of its message.
    pub(super) event: Bytes,
    /// When nobody waits for an answer any more.
    until: Instant,
}

/// The question of one network.
#[derive(Debug)]
pub(super) struct Questions(watch::Sender<Option<Question>>);

impl Questions {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Asks all streams, those that are opened in the next seconds included.
    pub(super) fn ask(&self, nodes: &[NodeId], within: Duration) {
        let ask = v1::Ask {
            nodes: nodes.iter().take(MAX_ASKED).map(|node| node.as_bytes().to_vec()).collect(),
            within_millis: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
        };
        let event = v1::WatchEvent { event: Some(v1::watch_event::Event::Ask(ask)) };
        let until = Instant::now() + PATIENCE;
        self.0.send_replace(Some(Question { event: event.encode_to_vec().into(), until }));
    }

    /// Tells of every question, the present one included.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Question>> {
        let mut questions = self.0.subscribe();
        questions.mark_changed();
        questions
    }
}

/// The question that a stream has not been asked yet.
pub(super) fn unasked(questions: &mut watch::Receiver<Option<Question>>) -> Option<Bytes> {
    let question = questions.borrow_and_update();
    question
        .as_ref()
        .filter(|question| question.until > Instant::now())
        .map(|question| question.event.clone())
}

/// The nodes about which members were asked.
#[derive(Debug, Default)]
pub(super) struct Suspects(BTreeMap<NodeId, Instant>);

/// What is to be done about nodes that are absent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Ask for these, if there are any that were not asked for yet.
    pub(super) ask: Vec<NodeId>,
    /// Nobody has heard of these.
    pub(super) collect: Vec<NodeId>,
}

impl Suspects {
    /// What is to be done, when these nodes are absent.
    fn step(&mut self, absent: &[NodeId], now: Instant) -> Step {
        let still: BTreeSet<&NodeId> = absent.iter().collect();
        self.0.retain(|node, _| still.contains(node));
        let known = self.0.len();
        for node in absent {
            if self.0.len() >= MAX_ASKED {
                break;
            }
            self.0.entry(*node).or_insert(now);
        }
        let mut step = Step::default();
        if self.0.len() > known {
            step.ask = self.0.keys().copied().collect();
        }
        step.collect
            .extend(self.0.iter().filter(|(_, since)| now - **since >= PATIENCE).map(|(node, _)| *node));
        step
    }

    /// Asks the members here about the nodes that are absent; those of which nobody has heard are to be collected. None while
    /// no member at all is connected here: there is nobody to ask, and nobody whom a node too many could disturb.
    pub(super) fn step_for(&mut self, hosted: &Hosted, absent: &[NodeId]) -> Step {
        let absent = if hosted.presence.live() == 0 { &[] } else { absent };
        let step = self.step(absent, Instant::now());
        if !step.ask.is_empty() {
            hosted.ask(&step.ask);
        }
        step
    }
}

impl Hosted {
    /// Ephemeral nodes that may be collected when somebody asks for that. While members are connected there are none, as
    /// the task sees to them; else those that stayed away, if no other controller's members hear them.
    pub async fn unheard(&self) -> Vec<NodeId> {
        if self.presence.live() > 0 {
            return Vec::new();
        }
        let absent = self.overdue().await;
        let Some(shared) = self.common.store.shared().filter(|_| !absent.is_empty()) else { return absent };
        if let Err(error) = shared.report_suspects(self.id, &absent).await {
            tracing::debug!(network = %self.name, %error, "not collecting while others cannot be asked");
            return Vec::new();
        }
        tokio::time::sleep(PATIENCE).await;
        self.overdue().await
    }

    /// Asks the members that are connected here whether they have heard these nodes.
    pub(super) fn ask(&self, nodes: &[NodeId]) {
        let within = self.read(|network, _| network.conf().ephemeral_ttl()).unwrap_or_default();
        self.questions.ask(nodes, within);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 32]);
    const B: NodeId = NodeId::from_bytes([2; 32]);

    #[tokio::test(start_paused = true)]
    async fn who_is_absent_is_asked_for_once_and_collected_when_nobody_answers_in_time() {
        let mut suspects = Suspects::default();
        let start = Instant::now();
        let mut step = |absent: &[NodeId], seconds| {
            let step = suspects.step(absent, start + Duration::from_secs(seconds));
            (step.ask, step.collect)
        };
        assert_eq!(step(&[], 0), (vec![], vec![]));
        assert_eq!(step(&[A], 1), (vec![A], vec![]));
        assert_eq!(step(&[A], 2), (vec![], vec![]));
        assert_eq!(step(&[B, A], 3), (vec![A, B], vec![]), "both are asked for, as members may have come");
        // Somebody has heard A.
        assert_eq!(step(&[B], 27), (vec![], vec![]));
        assert_eq!(step(&[B], 28), (vec![], vec![B]));
        assert_eq!(step(&[A], 29), (vec![A], vec![]), "its time begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_bound_are_asked_for_at_a_time() {
        let mut suspects = Suspects::default();
        let node = |number: u16| {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&number.to_be_bytes());
            NodeId::from_bytes(id)
        };
        let all: Vec<NodeId> = (0..1_000).map(node).collect();
        let start = Instant::now();
        assert_eq!(suspects.step(&all, start).ask.len(), MAX_ASKED);
        let collected = suspects.step(&all, start + PATIENCE).collect;
        assert_eq!(collected, all[..MAX_ASKED]);
        let rest = &all[MAX_ASKED..];
        assert_eq!(suspects.step(rest, start + PATIENCE).ask, rest[..MAX_ASKED]);
    }
}
