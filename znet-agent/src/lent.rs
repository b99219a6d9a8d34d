//! Devices that a runtime moves into its containers by itself.
//!
//! Docker wants to be given a link in the host's namespace before the container's namespace exists. It moves the link,
//! renames it, and gives it addresses and routes. So such a device is lent: made in the host's namespace, down, without
//! addresses, and served. From then on the agent keeps its hands off until the runtime is done: what is half set up is not
//! mended, as a route that is there already would be an error to the runtime. The kernel tells by the device's descriptor
//! what it is called and where it is; once it is in the namespace that was named and has all its routes, it becomes a
//! container's device like every other. What nobody takes is taken back, and nothing of it is known in memory alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use znet_core::key::PrivateKey;
use znet_local::HandOverRequest;
use znet_wg::io::tun::{Queues, Tun, TunError};

use crate::access::is_access;
use crate::agent::{Agent, Joined};
use crate::attach::{
    AttachOrder, ask_patiently, blocking, detach_this, device_name, drop_local, is_current, nobody_has,
    note_release, put_attachment, still_there, take_back,
};
use crate::error::AgentError;
use crate::files::Attachment;
use crate::host::link;
use crate::host::netns::{Netns, NetnsError, NetnsId, run_in_host};
use crate::owned::find;
use crate::reconcile::Target;

/// Seconds after which a device that no runtime has taken is taken back. Docker takes one within a second or two.
const LENT_FOR: u64 = 300;
/// How long it is watched closely how a runtime goes on with a device that it said where to move.
const WATCHED_FOR: Duration = Duration::from_secs(10);
/// How often: a container that was just started finds its resolver.
const WATCH_EVERY: Duration = Duration::from_millis(20);

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Makes a device in the host's namespace for a container that is to come. The caller holds the lock on the owner.
///
/// # Errors
/// [`AgentError`]; then nothing was changed, or it was taken back.
pub(crate) async fn lend(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    order: AttachOrder,
) -> Result<Attachment, AgentError> {
    let _guard = joined.lock_name(&order.name).await;
    if is_access(joined, &order.name) {
        return Err(AgentError::AccessPoint { name: order.name });
    }
    let there = joined.state().attachments.get(&order.name).cloned();
    if let Some(there) = there {
        // Docker starts a container anew at once, before anybody looked whether the one before is gone.
        if !is_gone(agent, joined, &there).await {
            let Attachment { name, netns, ifname, .. } = there;
            return Err(AgentError::AttachedElsewhere { name, netns, ifname });
        }
        drop_local(agent, joined, &there).await;
    }
    let netns_id = NetnsId::host()?;
    let (asking, network) = (agent.clone(), joined.membership.network);
    // A device of the kernel's has no descriptor that would tell where it was moved to.
    blocking(move || asking.have_engine_serve(network)).await?;
    let (record, key, revision) = ask_patiently(joined, &order, None).await?;
    let device = device_name(joined, &record);
    let attachment = Attachment {
        container: record.id,
        name: order.name,
        netns: PathBuf::new(),
        netns_id,
        ifname: device.clone(),
        revision,
        device,
        addresses: record.addresses().collect(),
        owner: order.owner,
        no_dns: order.no_dns,
        lent: Some(now()),
        port: None,
    };
    // Written first: whatever is left half done is found by the next start.
    let mut done = nobody_has(joined, &attachment);
    if done.is_ok() {
        done = put_attachment(agent, joined, attachment.clone());
    }
    if done.is_ok() {
        done = note_release(agent, joined, &attachment.name, false).await;
    }
    if done.is_ok() {
        done = make(agent, joined, attachment.clone(), key).await;
    }
    if let Err(error) = done {
        take_back(agent, joined, &attachment).await;
        return Err(error);
    }
    Ok(attachment)
}

async fn make(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    attachment: Attachment,
    key: PrivateKey,
) -> Result<(), AgentError> {
    let (agent, joined) = (agent.clone(), joined.clone());
    blocking(move || {
        let target = Target::new(&agent, &joined, &attachment, &key.into());
        let (name, mtu) = (attachment.device.as_str(), target.desired.mtu);
        let tun = Tun::create(name, Queues::Single).map_err(|error| match error {
            TunError::NameTaken => AgentError::from(NetnsError::NameTaken { name: name.to_owned() }),
            error => error.into(),
        })?;
        run_in_host(|handle| async move { link::set_up(&handle, name, Some(mtu), false).await })?;
        agent.backend().put_device(joined.membership.network, target.device, Some(tun))
    })
    .await
}

/// Notes into which namespace the runtime is going to move a device. May be repeated until it was moved.
///
/// # Errors
/// [`AgentError::UnknownOwner`]; [`AgentError::AttachedElsewhere`] when it was said to go, or is, elsewhere; the path is the
/// host's namespace.
pub async fn hand_over(
    agent: &Arc<Agent>,
    request: HandOverRequest,
) -> Result<(Arc<Joined>, Attachment), AgentError> {
    let HandOverRequest { owner, netns } = request;
    let _owned = agent.owners.lock(&owner).await;
    let Some((joined, found)) = find(agent, |other| *other == owner).into_iter().next() else {
        return Err(AgentError::UnknownOwner { owner: Box::new(owner) });
    };
    if !netns.is_absolute() {
        return Err(AgentError::Invalid(format!("{}: no absolute path of a namespace", netns.display())));
    }
    let path = netns.clone();
    blocking(move || match Netns::open(&path) {
        Err(error @ NetnsError::Host { .. }) => Err(error.into()),
        // It may well not be there yet.
        _ => Ok(()),
    })
    .await?;
    let guard = joined.lock_name(&found.name).await;
    let current = is_current(&joined, &found);
    let free = found.lent.is_some() && (found.netns.as_os_str().is_empty() || found.netns == netns);
    if !current || !free {
        let Attachment { name, netns, ifname, .. } = found;
        return Err(AgentError::AttachedElsewhere { name, netns, ifname });
    }
    let attachment = Attachment { netns, ..found };
    put_attachment(agent, &joined, attachment.clone())?;
    drop(guard);
    tokio::spawn(watch(agent.clone(), joined.clone(), attachment.clone()));
    Ok((joined, attachment))
}

/// Looks often how far the runtime is, as its container starts as soon as it is done. The looks of [`crate::reconcile`] go on
/// after that, and after a restart of the agent.
async fn watch(agent: Arc<Agent>, joined: Arc<Joined>, attachment: Attachment) {
    let until = Instant::now() + WATCHED_FOR;
    while Instant::now() < until && is_current(&joined, &attachment) {
        tokio::time::sleep(WATCH_EVERY).await;
        if !look(&agent, &joined, attachment.clone(), false).await {
            return;
        }
    }
}

/// Whether the device of an attachment is gone, or its namespace is.
async fn is_gone(agent: &Arc<Agent>, joined: &Arc<Joined>, attachment: &Attachment) -> bool {
    if attachment.lent.is_some() {
        return matches!(whereabouts(agent, joined, attachment).await, Ok(Now::Gone));
    }
    let (netns, id) = (attachment.netns.clone(), attachment.netns_id);
    blocking(move || Ok(!still_there(&netns, id))).await.unwrap_or(false)
}

/// Whether a device is where it was made, as it is when the runtime died before it took it.
pub(crate) async fn is_untaken(agent: &Arc<Agent>, joined: &Arc<Joined>, attachment: &Attachment) -> bool {
    attachment.lent.is_some() && matches!(whereabouts(agent, joined, attachment).await, Ok(Now::Untaken))
}

/// Looks how far the runtime is with a device; `false` when that could not be found out.
pub(crate) async fn look(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    attachment: Attachment,
    vanished: bool,
) -> bool {
    let name = attachment.name.clone();
    let now = {
        // One that is being made holds the lock, and is neither gone nor there.
        let _guard = joined.lock_name(&name).await;
        match is_current(joined, &attachment) {
            true if vanished => Ok(Now::Gone),
            true => whereabouts(agent, joined, &attachment).await,
            false => return true,
        }
    };
    let done = match now {
        Ok(Now::Untaken | Now::Busy) => Ok(()),
        Ok(Now::Gone) => {
            tracing::info!(%name, "the device that was lent for this container is gone or was never taken; detaching it");
            detach_this(agent, joined, &attachment).await
        }
        Ok(Now::Settled { ifname, netns_id }) => {
            let settled = Attachment { ifname, netns_id, lent: None, ..attachment.clone() };
            settle(agent, joined, &attachment, settled).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = &done {
        tracing::warn!(%name, %error, "it is unknown how far the runtime is with this container's device; looking again");
    }
    done.is_ok()
}

/// How far the runtime is.
enum Now {
    /// It has not begun.
    Untaken,
    /// It has not finished.
    Busy,
    /// There is no device, or nobody wants it.
    Gone,
    /// It is done.
    Settled { ifname: String, netns_id: NetnsId },
}

async fn whereabouts(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    attachment: &Attachment,
) -> Result<Now, AgentError> {
    let (agent, joined, attachment) = (agent.clone(), joined.clone(), attachment.clone());
    blocking(move || {
        let overdue = attachment.lent.is_none_or(|since| since.saturating_add(LENT_FOR) < now());
        let (network, container) = (joined.membership.network, attachment.container);
        let found = agent.backend().engine_itself().whereabouts(network, container);
        let Ok(Some((ifname, netns))) = found else { return Ok(Now::Gone) };
        let netns_id = NetnsId::of(netns)?;
        if netns_id == NetnsId::host()? {
            return Ok(if overdue { Now::Gone } else { Now::Untaken });
        }
        // Where it was moved, somebody uses it; it ends with its namespace, which nothing here keeps.
        if ifname == attachment.device || !still_there(&attachment.netns, netns_id) {
            return Ok(Now::Busy);
        }
        let (prefixes, name) = (joined.prefixes().into_iter().collect(), ifname.clone());
        let netns = Netns::open(&attachment.netns)?;
        let complete =
            netns.run(|handle| async move { link::is_complete(&handle, &name, prefixes).await })?;
        Ok(if complete || overdue { Now::Settled { ifname, netns_id } } else { Now::Busy })
    })
    .await
}

/// Makes it an attachment like every other.
async fn settle(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    was: &Attachment,
    settled: Attachment,
) -> Result<(), AgentError> {
    let _guard = joined.lock_name(&was.name).await;
    if !is_current(joined, was) {
        return Ok(());
    }
    let (name, netns_id) = (settled.name.clone(), settled.netns_id);
    put_attachment(agent, joined, settled)?;
    tracing::info!(%name, "the runtime has moved this container's device to where it belongs");
    agent.dns.settle_one(agent, netns_id).await;
    agent.look_closely();
    Ok(())
}
