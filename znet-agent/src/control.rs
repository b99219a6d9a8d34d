//! The control stream of one network: join, watch the map, apply what verifies, acknowledge.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use znet_api::agent_client::{AgentClient, ConnectError, connect};
use znet_api::convert::delta_from_wire;
use znet_api::error::Problem;
use znet_api::token::JoinToken;
use znet_api::v1::{self, watch_event::Event, watch_request::Say};
use znet_core::id::NodeId;
use znet_core::key::PublicKey;
use znet_core::map::{Change, LineRefusal, Record, Refusal, SignedHead, Succession};
use znet_core::name::Name;

use crate::agent::{Agent, Joined};
use crate::attach::{blocking, is_ours, release_unless_attached};
use crate::contact::Contact;
use crate::error::AgentError;
use crate::pairs::{offer, settle};
use crate::peers::{Touched, keys_of};

/// Acknowledgements that may wait to be sent.
const OUTBOX: usize = 64;
/// The shortest pause between two attempts to connect, whoever asks for the controller meanwhile.
const LEAST_PAUSE: Duration = Duration::from_millis(200);
/// Most nodes of one question.
const MAX_ASKED: usize = 256;
/// Most records of one snapshot.
const MAX_SNAPSHOT: usize = 2_000_000;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Refused(Problem),
    #[error("the controller ended the stream")]
    Ended,
    #[error("the controller sent something malformed: {0}")]
    Malformed(String),
    #[error(transparent)]
    Map(#[from] Refusal),
    #[error(transparent)]
    Key(#[from] LineRefusal),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl StreamEnd {
    /// Whether the controller, known by its pinned key, said that this node or the whole network is gone. A node whose
    /// token was never accepted is not a member in the first place.
    fn ends_membership(&self) -> bool {
        let problem = match self {
            Self::Refused(problem) | Self::Agent(AgentError::Controller(problem)) => problem,
            _ => return false,
        };
        matches!(problem.code.as_str(), "unknown_node" | "unknown_network")
    }
}

impl StreamEnd {
    /// When the controller wants to be asked again, if it said so.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(problem) | Self::Agent(AgentError::Controller(problem)) => {
                problem.retry_after_ms.map(Duration::from_millis)
            }
            _ => None,
        }
    }
}

impl From<tonic::Status> for StreamEnd {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Problem::from(&status))
    }
}

/// Becomes a member by a token and keeps the stream from then on.
///
/// # Errors
/// [`AgentError`]: the token was refused, the controller is not the one that made it, or it is away and the caller is
/// not `patient`. Then this node is no member.
pub async fn join_by_token(
    agent: &Arc<Agent>,
    token: &JoinToken,
    patient: bool,
) -> Result<Arc<Joined>, AgentError> {
    let known = agent.network(token.network).is_some();
    let (accepting, accepted) = (agent.clone(), token.clone());
    let joined = blocking(move || accepting.accept_token(&accepted)).await?;
    if known {
        return Ok(joined);
    }
    match join(agent, &joined).await {
        Ok(_) => {}
        Err(error) if patient && error.problem().status == 503 => {
            tracing::warn!(network = %token.name, %error, "the controller is away; joining when it is back");
        }
        Err(error) => {
            let (forgetting, network) = (agent.clone(), token.network);
            blocking(move || {
                forgetting.forget(network);
                Ok(())
            })
            .await?;
            return Err(error);
        }
    }
    tokio::spawn(run(agent.clone(), joined.clone()));
    Ok(joined)
}

/// Joins once, so that a token that is refused is an error of the caller.
///
/// # Errors
/// [`AgentError::Controller`] or [`AgentError::Connect`].
pub async fn join(agent: &Arc<Agent>, joined: &Arc<Joined>) -> Result<(AgentClient, Duration), AgentError> {
    let membership = &joined.membership;
    let from = joined.endpoint.load(Ordering::Relaxed);
    let (mut client, at) = connect(&joined.places(), &agent.identity, from).await?;
    joined.endpoint.store(at, Ordering::Relaxed);
    let (asking, port) = (agent.clone(), membership.port);
    let said = move || (asking.endpoints(port), asking.backend().holds_two_keys());
    let (endpoints, two_keys) = tokio::task::spawn_blocking(said).await.unwrap_or_default();
    let secret = joined.secret.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let request = v1::JoinRequest {
        network: membership.network.as_bytes().to_vec(),
        secret: secret.map(|secret| secret.to_bytes().to_vec()).unwrap_or_default(),
        name: agent.options.name.to_string(),
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        verifying_key: joined.state().member.key().as_bytes().to_vec(),
        two_keys,
    };
    let reply =
        client.join(request).await.map_err(|status| AgentError::Controller((&status).into()))?.into_inner();
    {
        let mut state = joined.state();
        state.reported = endpoints;
        state.access.offer_again();
    }
    let (keeping, kept) = (agent.clone(), joined.state().kept.clone());
    blocking(move || keeping.files.put_membership(&kept)).await?;
    *joined.secret.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let heartbeat = Duration::from_millis(u64::from(reply.heartbeat_millis.clamp(100, 60_000)));
    tracing::info!(network = %membership.name, name = reply.name, "joined");
    Ok((client, heartbeat))
}

/// Keeps the stream of a network for as long as the agent is a member.
pub async fn run(agent: Arc<Agent>, joined: Arc<Joined>) {
    let backoff = || {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(10))
            .without_max_times()
            .with_jitter()
            .build()
    };
    let mut delays = backoff();
    while agent.network(joined.membership.network).is_some() {
        let started = tokio::time::Instant::now();
        let end = stream(&agent, &joined).await;
        let served = joined.controller.is_connected();
        let why = end.as_ref().err().map_or_else(|| "it ended the stream".to_owned(), ToString::to_string);
        joined.controller.tell(Contact::Away(why));
        // The next controller, where there are several: this one failed, or sent the agent away.
        joined.endpoint.fetch_add(1, Ordering::Relaxed);
        let network = &joined.membership.name;
        let told = end.as_ref().err().and_then(StreamEnd::retry_after);
        // When the one that ended the stream is back is of no interest where there is another.
        let told = told.filter(|_| !served || joined.places().len() < 2);
        match end {
            Err(StreamEnd::Map(refusal)) => {
                tracing::error!(%network, %refusal, "the controller's map is not believed; the last verified one stays");
            }
            Err(StreamEnd::Key(refusal)) => {
                tracing::error!(%network, %refusal, "the controller's signing key is not believed; the last verified map stays");
            }
            Err(error) if error.ends_membership() => {
                tracing::error!(%network, %error, "this node is no member any more; its containers are detached");
                let (forgetting, id) = (agent.clone(), joined.membership.network);
                let _ = blocking(move || {
                    forgetting.forget(id);
                    Ok(())
                })
                .await;
                return;
            }
            Err(error) => tracing::warn!(%network, %error, "the controller is away; links go on"),
            Ok(()) => tracing::info!(%network, "the control stream ended"),
        }
        if started.elapsed() > Duration::from_secs(30) {
            delays = backoff();
        }
        let pause = delays.next().unwrap_or(Duration::from_secs(10));
        // Who is told a time keeps to it: it was drawn so that not all come back at once.
        let pause = told.map_or(pause, |told| told.max(Duration::from_millis(100)));
        let wanted = async {
            tokio::time::sleep(if told.is_some() { pause } else { LEAST_PAUSE.min(pause) }).await;
            joined.controller.wanted().await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wanted => {}
        }
    }
}

async fn stream(agent: &Arc<Agent>, joined: &Arc<Joined>) -> Result<(), StreamEnd> {
    let (mut client, heartbeat) = join(agent, joined).await?;
    let (outbox, requests) = mpsc::channel(OUTBOX);
    let say = |say| v1::WatchRequest { say: Some(say) };
    let resume = resume(joined);
    let _ = outbox.try_send(say(Say::Resume(resume)));
    let mut events = client.watch(ReceiverStream::new(requests)).await?.into_inner();
    let mut client = Some(client);
    let mut beat = tokio::time::interval(heartbeat);
    let mut snapshot = Vec::new();
    loop {
        tokio::select! {
            event = next(&mut events) => {
                let event = match event? {
                    Some(Event::Ask(asked)) => {
                        if let Some(heard) = heard(agent, joined, &asked).await {
                            let _ = outbox.try_send(say(Say::Heard(heard)));
                        }
                        continue;
                    }
                    Some(event) => event,
                    None => continue,
                };
                match apply(agent, joined, event, &mut snapshot).await {
                    Ok(Some(revision)) => {
                        // Only with a map is there anything to attach to.
                        if let Some(client) = client.take() {
                            joined.controller.tell(Contact::Connected(client));
                            agent.look_closely();
                        }
                        let _ = outbox.try_send(say(Say::Applied(v1::Applied { revision })));
                    }
                    Ok(None) => {}
                    Err(StreamEnd::Map(refusal)) if refusal.wants_snapshot() => {
                        tracing::warn!(%refusal, "asking for a snapshot");
                        let _ = outbox.try_send(say(Say::WantSnapshot(v1::WantSnapshot { why: refusal.to_string() })));
                    }
                    Err(error) => return Err(error),
                }
            }
            _ = beat.tick() => {
                // A full outbox means that the connection is stuck; its keepalive will end it.
                let _ = outbox.try_send(say(Say::Heartbeat(v1::Heartbeat {})));
            }
        }
    }
}

fn resume(joined: &Joined) -> v1::Resume {
    let state = joined.state();
    let head = state.member.head().map(|signed| signed.head);
    v1::Resume {
        network: joined.membership.network.as_bytes().to_vec(),
        epoch: head.map_or(0, |head| head.epoch.get()),
        revision: head.map_or(0, |head| head.revision.get()),
        digest: head.map(|head| head.digest.as_bytes().to_vec()).unwrap_or_default(),
        verifying_key: state.member.key().as_bytes().to_vec(),
    }
}

/// The next event; nothing for one of a kind that a later version of the controller may know.
async fn next(events: &mut Streaming<v1::WatchEvent>) -> Result<Option<Event>, StreamEnd> {
    Ok(events.message().await?.ok_or(StreamEnd::Ended)?.event)
}

/// Those of the nodes asked for whose containers were heard lately, if there are any.
async fn heard(agent: &Arc<Agent>, joined: &Arc<Joined>, asked: &v1::Ask) -> Option<v1::Heard> {
    let nodes: BTreeSet<NodeId> =
        asked.nodes.iter().take(MAX_ASKED).filter_map(|id| NodeId::try_from(id.as_slice()).ok()).collect();
    let within = Duration::from_millis(asked.within_millis.into());
    let (agent, joined) = (agent.clone(), joined.clone());
    let heard = blocking(move || {
        let owners = keys_of(joined.state().member.map(), &nodes);
        let keys: Vec<PublicKey> = owners.keys().copied().collect();
        let heard = agent.backend().heard(joined.membership.network, &keys, within)?;
        Ok(heard.iter().filter_map(|key| owners.get(key).copied()).collect::<BTreeSet<NodeId>>())
    });
    match heard.await {
        Ok(nodes) if nodes.is_empty() => None,
        Ok(nodes) => Some(v1::Heard { nodes: nodes.iter().map(|node| node.as_bytes().to_vec()).collect() }),
        Err(error) => {
            tracing::warn!(%error, "the backend did not tell whom it has heard");
            None
        }
    }
}

/// Applies an event; returns the revision to acknowledge.
async fn apply(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    event: Event,
    snapshot: &mut Vec<Record>,
) -> Result<Option<u64>, StreamEnd> {
    let malformed = |error: &dyn std::fmt::Display| StreamEnd::Malformed(error.to_string());
    match event {
        Event::Delta(wire) => {
            let (delta, head) = delta_from_wire(&wire).map_err(|error| malformed(&error))?;
            let touched = {
                let mut state = joined.state();
                let touched = Touched::by(&delta.changes, state.member.map());
                state.member.apply_delta(&delta, &head)?;
                touched
            };
            joined.directory.apply(&delta.changes, delta.to);
            tell_engine(agent, joined, touched, Some(wire)).await?;
            let wakes = |change| matches!(change, &Change::Remove(_) | &Change::Put(Record::Access(_)));
            if delta.changes.iter().any(wakes) {
                agent.wake.notify_one();
            }
            release_strangers(agent, joined, &delta.changes);
            offer_keys(agent, joined, &delta.changes);
        }
        Event::Snapshot(part) => {
            for record in &part.records {
                snapshot.push(Record::try_from(record).map_err(|error| malformed(&error))?);
            }
            if snapshot.len() > MAX_SNAPSHOT {
                return Err(StreamEnd::Malformed(format!("a snapshot of more than {MAX_SNAPSHOT} records")));
            }
            let Some(head) = &part.head else { return Ok(None) };
            let head = SignedHead::try_from(head).map_err(|error| malformed(&error))?;
            let touched = {
                let mut state = joined.state();
                let old = state.member.map().clone();
                let changes = state.member.apply_snapshot(std::mem::take(snapshot), &head)?;
                joined.directory.apply(&changes, head.head.revision);
                Touched::by(&changes, &old)
            };
            tell_engine(agent, joined, touched, None).await?;
            agent.look_closely();
        }
        // Answered where the stream is, as nothing is applied.
        Event::Ask(_) => {}
        Event::Keys(line) => {
            let line = line.line.iter().map(Succession::try_from).collect::<Result<Vec<_>, _>>();
            follow(agent, joined, &line.map_err(|error| malformed(&error))?).await?;
            return Ok(None);
        }
        Event::Head(head) => {
            let head = SignedHead::try_from(&head).map_err(|error| malformed(&error))?;
            let delta = znet_core::map::Delta {
                from: joined.state().member.revision(),
                to: head.head.revision,
                changes: Vec::new(),
            };
            joined.state().member.apply_delta(&delta, &head)?;
        }
    }
    Ok(Some(joined.state().member.revision().get()))
}

/// Follows the network's signing keys to the present one. That is on the disk before a map under it is, so that an agent that
/// starts anew believes what it finds there.
async fn follow(agent: &Arc<Agent>, joined: &Arc<Joined>, line: &[Succession]) -> Result<(), StreamEnd> {
    let kept = {
        let mut state = joined.state();
        if !state.member.follow(line)? {
            return Ok(());
        }
        state.kept.follow(line);
        state.kept.clone()
    };
    let (network, key) = (kept.name.clone(), kept.verifying_key);
    tracing::info!(%network, ?key, "the network has another signing key; the one before is believed no more");
    let keeping = agent.clone();
    if let Err(error) = blocking(move || keeping.files.put_membership(&kept)).await {
        tracing::warn!(%network, %error, "the key cannot be kept on disk; a restart follows anew");
    }
    Ok(())
}

/// Gives back containers that the controller gave to this node and that nobody here knows: an attach was under way when
/// an earlier agent ended. One that is under way now holds the lock on its name, and is known when it gives it back.
fn release_strangers(agent: &Arc<Agent>, joined: &Arc<Joined>, changes: &[Change]) {
    let names: Vec<Name> = {
        let state = joined.state();
        let ours = changes.iter().filter_map(|change| match change {
            Change::Put(Record::Container(record)) if is_ours(record, agent.node) => Some(record),
            _ => None,
        });
        ours.filter(|record| state.member.map().access(record.id).is_none())
            .map(|record| &record.name)
            .filter(|name| !state.attachments.contains_key(*name))
            .cloned()
            .collect()
    };
    if names.is_empty() {
        return;
    }
    let (agent, joined) = (agent.clone(), joined.clone());
    tokio::spawn(async move {
        if let Err(error) = release_unless_attached(&agent, &joined, names).await {
            tracing::warn!(%error, "what is left of an attach could not be given back");
        }
    });
}

/// Makes new pairs for those of this node's containers that are asked for one.
fn offer_keys(agent: &Arc<Agent>, joined: &Arc<Joined>, changes: &[Change]) {
    let asked = changes.iter().filter_map(|change| match change {
        Change::Put(Record::Container(record)) if record.rekey && is_ours(record, agent.node) => {
            Some(record.name.clone())
        }
        _ => None,
    });
    let names: Vec<Name> = asked.collect();
    if !names.is_empty() {
        let (agent, joined) = (agent.clone(), joined.clone());
        tokio::spawn(async move { offer(&agent, &joined, names).await });
    }
}

/// Keeps what was applied, a delta or else the whole map, and then tells the engine of it: what the engine knows an agent
/// that starts anew knows as well.
async fn tell_engine(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    touched: Touched,
    delta: Option<v1::Delta>,
) -> Result<(), AgentError> {
    let (agent, joined) = (agent.clone(), joined.clone());
    let told = tokio::task::spawn_blocking(move || {
        match &delta {
            Some(delta) => agent.keep_delta(&joined, delta),
            None => agent.keep_map(&joined),
        }
        let changes = {
            let state = joined.state();
            agent.viewpoint(&joined.membership).changes(&touched, state.member.map())
        };
        let network = joined.membership.network;
        let result = if joined.take_peers_unknown() {
            agent.backend().replace_peers(network, agent.all_peers(network))
        } else {
            agent.backend().change_peers(network, &changes.put, &changes.remove)
        };
        if let Err(error) = result {
            // A new engine gets all peers, so nothing is lost.
            tracing::warn!(%error, "the engine did not take a change of peers");
            agent.backend().ensure(&|network| agent.all_peers(network))?;
        }
        settle(&agent, &joined, touched.containers());
        Ok(())
    });
    told.await.unwrap_or_else(|error| Err(AgentError::Invalid(error.to_string())))
}

impl From<AgentError> for tonic::Status {
    fn from(error: AgentError) -> Self {
        error.problem().to_status()
    }
}
