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
use znet_core::feed::{self, Snapshot, Turn};
use znet_core::id::{Epoch, NodeId, Revision};
use znet_core::key::VerifyingKey;
use znet_core::map::{Digest, Head};

use super::feed::Encoded;
use super::suspects::{self, MAX_ASKED};
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

impl Hosted {
    /// What a stream does next.
    async fn turn(&self, place: &mut feed::Place<Encoded>) -> Result<Turn<Encoded>, CommandError> {
        let turn = place.turn(&mut self.feed.ring());
        if !matches!(turn, Turn::Stuck) {
            return Ok(turn);
        }
        // Many streams may be here at once, after a start for one: the first works, the others find the result.
        let _turn = self.history.lock().await;
        let turn = place.turn(&mut self.feed.ring());
        if !matches!(turn, Turn::Stuck) {
            return Ok(turn);
        }
        let wanted = place.log_wanted(&self.feed.ring());
        if let Some(before) = wanted {
            match self.common.store.changes_since(self.id, before).await {
                Ok(log) => self.feed.prepend(&log),
                Err(error) => tracing::debug!(network = %self.name, %error, "the log does not help"),
            }
            let turn = place.turn(&mut self.feed.ring());
            if !matches!(turn, Turn::Stuck) {
                return Ok(turn);
            }
        }
        let kept = place.kept_snapshot(&mut self.feed.ring());
        place.begin(match kept {
            Some(snapshot) => snapshot,
            None => self.make_snapshot().await?,
        });
        self.common.metrics.snapshots.inc();
        Ok(place.turn(&mut self.feed.ring()))
    }

    async fn make_snapshot(&self) -> Result<Arc<Snapshot<Encoded>>, CommandError> {
        let (records, head) =
            self.read(|network, head| (network.map().records().collect::<Vec<_>>(), *head))?;
        let encoded = tokio::task::spawn_blocking(move || Snapshot::encode(&records, &head)).await;
        let snapshot = Arc::new(encoded.map_err(|_| CommandError::Interrupted)?);
        self.common.metrics.snapshots_made.inc();
        self.feed.keep(snapshot.clone(), self.common.clock.now());
        Ok(snapshot)
    }

    /// Serves one agent's stream until it ends: by the agent, by silence, or as there is a reason on this side.
    pub async fn serve_stream(
        self: Arc<Self>,
        node: NodeId,
        resume: Option<Resume>,
        believes: Option<VerifyingKey>,
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
            if let Some(Err(error)) = believes.map(|believes| self.can_follow(&believes)) {
                tracing::warn!(network = %self.name, %node, %error, "the node does not follow to the present signing key");
                return Some(Problem::from(error));
            }
            self.seen(node);
            if let Some(resume) = &resume {
                self.catch_up_with(resume).await;
            }
            tokio::select! {
                biased;
                why = &mut end => why.ok(),
                why = self.pump(node, resume, believes, said, &out) => why,
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
        believes: Option<VerifyingKey>,
        said: impl Stream<Item = Result<v1::WatchRequest, Status>> + Send,
        out: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Option<Problem> {
        let mut said = pin!(said);
        let mut newest = self.feed.subscribe();
        let mut questions = self.questions.subscribe();
        let mut question = None;
        let mut place = Place::new(self, node, resume, believes);
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
                permit = ready(out, place.not_before), if place.is_behind() => {
                    let permit = permit?;
                    newest.borrow_and_update();
                    match place.next(self, node).await {
                        Ok(Some(event)) => permit.send(Ok(event)),
                        Ok(None) => {}
                        Err(error) => return Some(Problem::from(error)),
                    }
                }
                asked = questions.changed() => {
                    asked.ok()?;
                    question = suspects::unasked(&mut questions);
                }
                permit = out.reserve(), if question.is_some() => {
                    if let (Ok(permit), Some(question)) = (permit, question.take()) {
                        permit.send(Ok(question));
                    }
                }
                changed = newest.changed(), if !place.is_behind() => {
                    changed.ok()?;
                    place.place.wake();
                }
            }
        }
    }

    fn hear(&self, node: NodeId, message: v1::WatchRequest, place: &mut Place) -> Result<(), Problem> {
        let now = self.common.clock.steady();
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
                place.place.start_over();
            }
            Some(Say::Heard(heard)) => {
                self.presence.seen(node, now);
                let nodes = heard.nodes.iter().take(MAX_ASKED);
                for heard in nodes.filter_map(|id| NodeId::try_from(id.as_slice()).ok()) {
                    if self.presence.vouch(heard, now) {
                        self.common.metrics.absent_heard.inc();
                    }
                }
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

/// Where a stream stands, and when it may go on.
struct Place {
    place: feed::Place<Encoded>,
    not_before: Instant,
    /// The signing key that the agent believes, once it has read what was sent; `None` for one that cannot follow another.
    believes: Option<VerifyingKey>,
    /// What is sent next, as what had to be said before it was said.
    waiting: Option<Bytes>,
}

impl Place {
    fn new(hosted: &Hosted, node: NodeId, resume: Option<Resume>, believes: Option<VerifyingKey>) -> Self {
        let current = hosted.read(|_, head| head.head).ok();
        if let (Some(resume), Some(current)) = (resume, current)
            && (resume.epoch, resume.revision) > current.position()
        {
            hosted.is_ahead(node, (resume.epoch, resume.revision), current.revision);
        }
        let at = resume.map(|Resume { epoch, revision, digest }| Head {
            network: hosted.id,
            epoch,
            revision,
            digest,
        });
        Self { place: feed::Place::new(at), not_before: Instant::now(), believes, waiting: None }
    }

    /// Whether there may be something to send.
    fn is_behind(&self) -> bool {
        self.waiting.is_some() || self.place.is_behind()
    }

    /// The next event; `None` when there is none before something is published.
    async fn next(&mut self, hosted: &Hosted, node: NodeId) -> Result<Option<Bytes>, CommandError> {
        if let Some(waiting) = self.waiting.take() {
            return Ok(Some(waiting));
        }
        let turn = hosted.turn(&mut self.place).await?;
        if let Some(applied) = self.place.take_resumed() {
            hosted.presence.applied(node, applied, hosted.common.clock.steady());
        }
        let event = match turn {
            Turn::Delta { event, batches } => {
                self.not_before = Instant::now() + pace(hosted.common.metrics.streams.get());
                hosted.common.metrics.deltas.inc();
                if batches > 1 {
                    hosted.common.metrics.coalesced.inc();
                }
                event
            }
            Turn::Head(event) | Turn::Part(event) => event,
            Turn::Rest | Turn::Stuck => return Ok(None),
        };
        // The key that signs is a matter of the revision, so an event that was encoded before a change fits its time.
        let told = match (self.believes, event.revision) {
            (Some(believes), Some(revision)) => hosted.leads_to(&believes, revision)?,
            _ => None,
        };
        let Some((line, key)) = told else { return Ok(Some(event.bytes)) };
        (self.believes, self.waiting) = (Some(key), Some(event.bytes));
        Ok(Some(Encoded::new(line, None).bytes))
    }
}
