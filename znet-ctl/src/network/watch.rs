//! One agent's stream: where it stands, and what leads on from there.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use znet_api::error::Problem;
use znet_api::v1;
use znet_api::v1::watch_request::Say;
use znet_core::controller::Rejection;
use znet_core::id::{Epoch, NodeId, Revision};
use znet_core::map::{Digest, Head};

use super::feed::{Next, Snapshot, head_event};
use super::{CommandError, Hosted, LIVE_TERM};

/// Encoded events that wait for a stream's connection. What comes on top is coalesced, not queued.
pub const STREAM_BUFFER: usize = 2;
/// The shortest time between two deltas of a stream: under load they are fewer and larger.
const PACE: Duration = Duration::from_millis(4);
/// What that time grows by for each open stream. A delta costs the controller some 50 µs for each agent, acknowledgement
/// included, so that steady changes to however many agents take about half a core, and the first change after a pause still
/// leaves at once.
const PACE_EACH: Duration = Duration::from_micros(100);
/// How long a stream that has to end waits for its connection to take the reason.
const FAREWELL: Duration = Duration::from_secs(1);

/// The last head that an agent has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its revision.
    pub revision: Revision,
    /// Its digest.
    pub digest: Digest,
}

/// A place in a network's history.
type Position = (Epoch, Revision);

/// What a stream sends next.
enum Step {
    /// It is up to date.
    Current(Bytes, Head),
    Delta {
        event: Bytes,
        head: Head,
        batches: usize,
    },
    Snapshot(Arc<Snapshot>),
}

impl Hosted {
    /// What leads on from where a stream stands. An agent refuses a map that is older than `least`.
    async fn advance(&self, at: Option<&Head>, least: Position) -> Result<Step, CommandError> {
        if let Some(step) = at.and_then(|at| self.step(at)) {
            return Ok(step);
        }
        // Many streams may be here at once, after a start for one: the first works, the others find the result.
        let _turn = self.history.lock().await;
        if let Some(at) = at {
            if let Some(step) = self.step(at) {
                return Ok(step);
            }
            if at.revision.get() > 0 && at.revision < self.feed.oldest() {
                let before = Revision::new(at.revision.get() - 1);
                match self.common.store.changes_since(self.id, before).await {
                    Ok(log) => self.feed.prepend(&log),
                    Err(error) => tracing::debug!(network = %self.name, %error, "the log does not help"),
                }
                if let Some(step) = self.step(at) {
                    return Ok(step);
                }
            }
        }
        if let Some(snapshot) = self.feed.snapshot().filter(|snapshot| snapshot.head.position() >= least) {
            return Ok(Step::Snapshot(snapshot));
        }
        let (records, head) =
            self.read(|network, head| (network.map().records().collect::<Vec<_>>(), *head))?;
        let encoded = tokio::task::spawn_blocking(move || Snapshot::encode(&records, &head)).await;
        let snapshot = Arc::new(encoded.map_err(|_| CommandError::Interrupted)?);
        self.common.metrics.snapshots_made.inc();
        self.feed.keep(snapshot.clone());
        Ok(Step::Snapshot(snapshot))
    }

    fn step(&self, at: &Head) -> Option<Step> {
        match self.feed.next(at) {
            Next::Current(signed) => Some(Step::Current(head_event(&signed), signed.head)),
            Next::Delta { event, head, batches } => Some(Step::Delta { event, head, batches }),
            Next::Missing => None,
        }
    }

    /// Serves one agent's stream until it ends: by the agent, by silence, or as there is a reason on this side.
    pub async fn serve_stream(
        self: Arc<Self>,
        node: NodeId,
        resume: Option<Resume>,
        said: impl Stream<Item = Result<v1::WatchRequest, Status>> + Send,
        out: mpsc::Sender<Result<Bytes, Status>>,
    ) {
        let (serial, mut end) = match self.streams.open(node) {
            Ok(opened) => opened,
            Err(why) => return farewell(&out, &why).await,
        };
        self.common.metrics.streams.inc();
        let end = async {
            // Only now: a node that is removed from here on finds its stream to end.
            match self.read(|network, _| network.node(&node).is_some()) {
                Ok(true) => {}
                Ok(false) => return Some(Problem::from(&Rejection::UnknownNode { node })),
                Err(error) => return Some(Problem::from(error)),
            }
            self.seen(node);
            tokio::select! {
                biased;
                why = &mut end => why.ok(),
                why = self.pump(node, resume, said, &out) => why,
            }
        }
        .await;
        if let Some(why) = end {
            farewell(&out, &why).await;
        }
        self.streams.forget(&node, serial);
        self.common.metrics.streams.dec();
    }

    /// Sends what leads on, and listens. Returns why the stream ends, or nothing when the agent ended it.
    async fn pump(
        &self,
        node: NodeId,
        resume: Option<Resume>,
        said: impl Stream<Item = Result<v1::WatchRequest, Status>> + Send,
        out: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Option<Problem> {
        let mut said = pin!(said);
        let mut newest = self.feed.subscribe();
        let mut place = Place::new(self, node, resume);
        let mut heard = Instant::now();
        // Set anew only when it is over: with thousands of streams the timer would cost more than what is said.
        let mut silence = pin!(tokio::time::sleep_until(heard + LIVE_TERM));
        loop {
            tokio::select! {
                message = said.next() => {
                    let Some(Ok(message)) = message else { return None };
                    heard = Instant::now();
                    if let Err(why) = self.hear(node, message, &mut place) {
                        return Some(why);
                    }
                }
                () = &mut silence => {
                    if heard.elapsed() < LIVE_TERM {
                        silence.as_mut().reset(heard + LIVE_TERM);
                        continue;
                    }
                    let why = format!("nothing was heard from the node for {} s", LIVE_TERM.as_secs());
                    return Some(Problem::new(503, "silent", why));
                }
                permit = ready(out, place.not_before), if place.behind => {
                    let permit = permit?;
                    newest.borrow_and_update();
                    match place.next(self, node).await {
                        Ok(Some(event)) => permit.send(Ok(event)),
                        Ok(None) => {}
                        Err(error) => return Some(Problem::from(error)),
                    }
                }
                changed = newest.changed(), if !place.behind => {
                    changed.ok()?;
                    place.behind = true;
                }
            }
        }
    }

    fn hear(&self, node: NodeId, message: v1::WatchRequest, place: &mut Place) -> Result<(), Problem> {
        let now = self.common.clock.now();
        match message.say {
            Some(Say::Applied(applied)) => {
                // Nobody can have applied what does not exist.
                let revision = Revision::new(applied.revision).min(self.feed.revision());
                self.presence.applied(node, revision, now);
            }
            Some(Say::Heartbeat(_)) => self.presence.seen(node, now),
            Some(Say::WantSnapshot(want)) => {
                let why: String = want.why.chars().take(300).collect();
                tracing::warn!(network = %self.name, %node, why, "the node could not apply what it was sent");
                self.presence.seen(node, now);
                place.start_over();
            }
            Some(Say::Resume(_)) => {
                return Err(Problem::new(400, "invalid_argument", "only the first message may resume"));
            }
            None => {
                return Err(Problem::new(400, "invalid_argument", "the message says nothing that is known"));
            }
        }
        Ok(())
    }
}

/// The shortest time between two deltas of one of so many streams.
fn pace(streams: i64) -> Duration {
    PACE.max(PACE_EACH * u32::try_from(streams).unwrap_or_default())
}

/// Waits for the time to send and for room to do so; `None` when the connection is gone.
async fn ready<T>(out: &mpsc::Sender<T>, not_before: Instant) -> Option<mpsc::Permit<'_, T>> {
    tokio::time::sleep_until(not_before).await;
    out.reserve().await.ok()
}

async fn farewell(out: &mpsc::Sender<Result<Bytes, Status>>, why: &Problem) {
    let _ = out.send_timeout(Err(why.to_status()), FAREWELL).await;
}

/// Where a stream stands: all that is remembered of it.
struct Place {
    /// The head that was sent last.
    at: Option<Head>,
    /// The latest position that the agent may have applied.
    least: Position,
    /// A snapshot that is being sent, and how many of its parts were.
    sending: Option<(Arc<Snapshot>, usize)>,
    /// Whether there may be something to send.
    behind: bool,
    /// Whether the agent was told anything yet.
    greeted: bool,
    not_before: Instant,
}

impl Place {
    fn new(hosted: &Hosted, node: NodeId, resume: Option<Resume>) -> Self {
        let current = hosted.read(|_, head| head.head).ok();
        if let (Some(resume), Some(current)) = (resume, current)
            && (resume.epoch, resume.revision) > current.position()
        {
            tracing::warn!(
                network = %hosted.name, %node, applied = %resume.revision, current = %current.revision,
                "the node has applied a later revision than this controller knows: it was restored from an older \
                 backup; start a new epoch for the network, or the node will refuse its map"
            );
        }
        let at = resume.map(|Resume { epoch, revision, digest }| Head {
            network: hosted.id,
            epoch,
            revision,
            digest,
        });
        let least = at.map_or_else(Position::default, |head| head.position());
        Self { at, least, sending: None, behind: true, greeted: false, not_before: Instant::now() }
    }

    fn start_over(&mut self) {
        (self.at, self.sending, self.behind) = (None, None, true);
    }

    /// The next event; `None` when there is none before something is published.
    async fn next(&mut self, hosted: &Hosted, node: NodeId) -> Result<Option<Bytes>, CommandError> {
        if self.sending.is_none() {
            let step = hosted.advance(self.at.as_ref(), self.least).await?;
            if let Step::Delta { head, .. } = &step {
                self.least = head.position();
            }
            if !self.greeted {
                // What the agent says to have applied counts once it turned out to be of this history.
                let known = self.at.filter(|_| !matches!(step, Step::Snapshot(_)));
                let applied = known.map_or(Revision::ZERO, |head| head.revision);
                hosted.presence.applied(node, applied, hosted.common.clock.now());
            }
            match step {
                Step::Current(event, head) => {
                    self.at = Some(head);
                    self.behind = false;
                    return Ok((!std::mem::replace(&mut self.greeted, true)).then_some(event));
                }
                Step::Delta { event, head, batches } => {
                    self.at = Some(head);
                    self.greeted = true;
                    self.not_before = Instant::now() + pace(hosted.common.metrics.streams.get());
                    hosted.common.metrics.deltas.inc();
                    if batches > 1 {
                        hosted.common.metrics.coalesced.inc();
                    }
                    return Ok(Some(event));
                }
                Step::Snapshot(snapshot) => {
                    hosted.common.metrics.snapshots.inc();
                    self.greeted = true;
                    self.sending = Some((snapshot, 0));
                }
            }
        }
        let Some((snapshot, sent)) = &mut self.sending else { return Ok(None) };
        let part = snapshot.parts.get(*sent).cloned();
        *sent += 1;
        if *sent >= snapshot.parts.len() {
            self.at = Some(snapshot.head);
            self.sending = None;
        }
        Ok(part)
    }
}
