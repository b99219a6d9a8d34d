//! Attachments on behalf of runtimes, which know a container by an identifier of their own and not by its name.
//!
//! A runtime forgets, is killed in the middle, and tells later what it still knows. So every attachment of a runtime
//! carries an [`Owner`], and what is done by owner touches nothing that anybody else made: not what a person attached, not
//! what another runtime did, not what the same runtime did in another of its networks.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, oneshot};
use znet_core::plan::Step;
use znet_local::{CheckRequest, CollectRequest, Collected, Kept, Owner};

use crate::agent::{Agent, Joined};
use crate::attach::{AttachOrder, attach, blocking, detach_this, still_there};
use crate::error::AgentError;
use crate::files::Attachment;
use crate::host::netns::Netns;
use crate::lent::{is_untaken, lend};
use crate::reconcile::difference;

/// How many owners are worked for side by side; calls of one owner come one after the other.
const OWNER_LOCKS: u64 = 64;

/// Keeps a detach from overtaking the attach that it is meant for.
#[derive(Debug)]
pub struct OwnerLocks(Vec<Mutex<()>>);

impl Default for OwnerLocks {
    fn default() -> Self {
        Self((0..OWNER_LOCKS).map(|_| Mutex::default()).collect())
    }
}

impl OwnerLocks {
    pub(crate) async fn lock(&self, owner: &Owner) -> Option<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        owner.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % OWNER_LOCKS).ok()?;
        Some(self.0.get(at)?.lock().await)
    }
}

/// Attaches a container that must not be attached yet. If the caller is gone when it is done, it is taken back: nobody
/// would know of it.
///
/// # Errors
/// [`AgentError`]; then nothing was changed, or it was taken back.
pub async fn attach_owned(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    order: AttachOrder,
) -> Result<Attachment, AgentError> {
    let (answer, answered) = oneshot::channel();
    let (agent, joined) = (agent.clone(), joined.clone());
    tokio::spawn(async move {
        let _guard = match &order.owner {
            Some(owner) => agent.owners.lock(owner).await,
            None => None,
        };
        let attached = attach_new(&agent, &joined, order).await;
        if let Err(Ok(attachment)) = answer.send(attached) {
            tracing::info!(name = %attachment.name, "whoever asked for this container is gone; taking it back");
            if let Err(error) = detach_this(&agent, &joined, &attachment).await {
                tracing::warn!(name = %attachment.name, %error, "a container that nobody knows of could not be taken back");
            }
        }
    });
    let lost = |_| Err(AgentError::Invalid("the attach did not come to its end".to_owned()));
    answered.await.unwrap_or_else(lost)
}

async fn attach_new(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    order: AttachOrder,
) -> Result<Attachment, AgentError> {
    let Some(owner) = order.owner.clone() else {
        return Err(AgentError::Invalid("no owner was given".to_owned()));
    };
    if let Some((_, there)) = find(agent, |other| *other == owner).into_iter().next() {
        return Err(AgentError::OwnedAlready { owner: Box::new(owner), name: there.name });
    }
    if order.lent {
        return lend(agent, joined, order).await;
    }
    let others = find(agent, |other| other.container != owner.container);
    let netns = order.netns.clone();
    let taken = blocking(move || {
        let id = Netns::open(&netns)?.id();
        let same = |other: &Attachment| other.netns_id == id && still_there(&other.netns, id);
        Ok(others.into_iter().map(|(_, other)| other).find(same))
    })
    .await?;
    match taken {
        Some(Attachment { name, owner: Some(owner), .. }) => {
            Err(AgentError::NetnsInUse { netns: order.netns, name, owner: Box::new(owner) })
        }
        _ => attach(agent, joined, order).await,
    }
}

/// The attachments of such owners, in all networks.
pub(crate) fn find(agent: &Agent, wanted: impl Fn(&Owner) -> bool) -> Vec<(Arc<Joined>, Attachment)> {
    let mut found = Vec::new();
    for joined in agent.networks() {
        let state = joined.state();
        let of = |a: &&Attachment| a.owner.as_ref().is_some_and(&wanted);
        let these: Vec<Attachment> = state.attachments.values().filter(of).cloned().collect();
        drop(state);
        found.extend(these.into_iter().map(|attachment| (joined.clone(), attachment)));
    }
    found
}

/// Takes away what an owner made; `false` when there is nothing.
///
/// # Errors
/// As for [`crate::attach::detach`].
pub async fn detach_owned(agent: &Arc<Agent>, owner: &Owner) -> Result<bool, AgentError> {
    let _guard = agent.owners.lock(owner).await;
    let found = find(agent, |other| other == owner);
    for (joined, attachment) in &found {
        detach_this(agent, joined, attachment).await?;
    }
    Ok(!found.is_empty())
}

/// Takes away what a runtime made in one of its networks and does not know any more.
pub async fn collect(agent: &Arc<Agent>, request: CollectRequest) -> Collected {
    let CollectRequest { kind, network, keep, untaken } = request;
    let keep: BTreeSet<Kept> = keep.into_iter().collect();
    let stale = |owner: &Owner| {
        let known = Kept { container: owner.container.clone(), interface: owner.interface.clone() };
        owner.kind == kind && owner.network == network && !keep.contains(&known)
    };
    let mut collected = Collected { removed: Vec::new(), failed: Vec::new() };
    for (joined, attachment) in find(agent, stale) {
        let Some(owner) = attachment.owner.clone() else { continue };
        let _guard = agent.owners.lock(&owner).await;
        if untaken && !is_untaken(agent, &joined, &attachment).await {
            continue;
        }
        match detach_this(agent, &joined, &attachment).await {
            Ok(()) => {
                tracing::info!(name = %attachment.name, %owner, "the runtime does not know this container any more");
                collected.removed.push(owner);
            }
            Err(error) => collected.failed.push(format!("{owner}: {error}")),
        }
    }
    collected
}

/// What an owner made, and what is not as it should be about it, in words.
///
/// # Errors
/// [`AgentError::UnknownOwner`], or a namespace that cannot be looked into.
pub async fn check(
    agent: &Arc<Agent>,
    request: &CheckRequest,
) -> Result<(Arc<Joined>, Attachment, Vec<String>), AgentError> {
    let owner = request.owner.clone();
    let found = find(agent, |other| *other == owner).into_iter().next();
    let Some((joined, attachment)) = found else {
        return Err(AgentError::UnknownOwner { owner: Box::new(owner) });
    };
    let (agent, netns) = (agent.clone(), request.netns.clone());
    blocking(move || {
        let mut wrong = Vec::new();
        if Netns::open(&netns)?.id() != attachment.netns_id {
            wrong.push(format!("it is attached in another namespace than {}", netns.display()));
        }
        match difference(&agent, &joined, &attachment)? {
            Some((_, _, steps)) => wrong.extend(steps.iter().map(|step| in_words(step, &attachment.ifname))),
            None => wrong.push("its device is not served".to_owned()),
        }
        Ok((joined, attachment, wrong))
    })
    .await
}

/// What is wrong where such a step would put it right.
fn in_words(step: &Step, ifname: &str) -> String {
    match step {
        Step::Remove(_) | Step::MakeLink(_) => format!("interface {ifname} is not there, or not ours"),
        Step::RemoveAddress(_, address) => format!("{ifname} has address {address}, which is not its own"),
        Step::RemoveRoute(_, route) => format!("{ifname} has a route to {route}, which is not the network's"),
        Step::SetMtu(_, mtu) => format!("{ifname} has not the MTU {mtu}"),
        Step::SetUp(_) => format!("{ifname} is not up"),
        Step::AddAddress(_, address) => format!("{ifname} lacks its address {address}"),
        Step::AddRoute(_, route) => format!("{ifname} lacks the route to {route}"),
        Step::Serve(_) => format!("what is served for {ifname} is out of date"),
    }
}
