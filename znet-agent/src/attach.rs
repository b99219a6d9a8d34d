//! Attaching and detaching containers. Both may be repeated; a failure in between is taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use znet_api::v1;
use znet_core::id::{NodeId, Revision};
use znet_core::key::PrivateKey;
use znet_core::map::ContainerRecord;
use znet_core::name::Name;
use znet_core::plan::{DeviceKey, Observed, plan};
use znet_local::Owner;
use znet_wg::control::{Device, WirePrivateKey};

use crate::access::is_access;
use crate::agent::{Agent, Joined};
use crate::error::AgentError;
use crate::files::Attachment;
use crate::host::link;
use crate::host::netns::{Netns, NetnsError, NetnsId};
use crate::host::socket::DEVICE_PREFIX;
use crate::reconcile::{Target, carry_out};
use znet_wg::io::tun::MAX_IFNAME;

/// How long the controller may take over one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a controller that died under a question is left alone.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What a runtime asks for.
#[derive(Clone, Debug)]
pub struct AttachOrder {
    /// The container's name.
    pub name: Name,
    /// The path of its namespace.
    pub netns: PathBuf,
    /// The interface to make inside.
    pub ifname: String,
    /// Explicit addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// How long to wait until every live node has applied the change; `None` not to wait.
    pub wait: Option<Duration>,
    /// How long to wait for a controller that is away.
    pub wait_controller: Duration,
    /// On whose behalf. Nothing that is there already is confirmed to an owner.
    pub owner: Option<Owner>,
    /// Whether it gets no resolver.
    pub no_dns: bool,
    /// Whether the runtime moves the device into the container by itself: there is no namespace yet, and no interface's name.
    pub lent: bool,
}

/// Attaches a container, or confirms that it is attached as asked for.
///
/// # Errors
/// [`AgentError`]; then nothing was changed, or it was taken back.
pub async fn attach(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    order: AttachOrder,
) -> Result<Attachment, AgentError> {
    check_ifname(&order.ifname)?;
    let guard = joined.lock_name(&order.name).await;
    if is_access(joined, &order.name) {
        return Err(AgentError::AccessPoint { name: order.name });
    }
    let netns_id = preflight(joined, &order).await?;
    if let Some(mut existing) = existing(agent, joined, &order, netns_id).await? {
        if existing.no_dns != order.no_dns {
            existing.no_dns = order.no_dns;
            put_attachment(agent, joined, existing.clone())?;
        }
        agent.dns.settle_one(agent, netns_id).await;
        drop(guard);
        if let Some(timeout) = order.wait {
            wait_applied(joined, existing.revision, timeout).await?;
        }
        return Ok(existing);
    }
    let port = reserve_port(agent, None).await?;
    let (record, key, revision) = ask_patiently(joined, &order, port).await?;
    let attachment = Attachment {
        container: record.id,
        name: order.name.clone(),
        netns: order.netns.clone(),
        netns_id,
        ifname: order.ifname.clone(),
        revision,
        device: device_name(joined, &record),
        addresses: record.addresses().collect(),
        owner: order.owner.clone(),
        no_dns: order.no_dns,
        lent: None,
        port: record.port,
    };
    // Written first: whatever is left half done is found by the next start.
    let mut done = nobody_has(joined, &attachment);
    if done.is_ok() {
        done = put_attachment(agent, joined, attachment.clone());
    }
    if done.is_ok() {
        done = note_release(agent, joined, &order.name, false).await;
    }
    if done.is_ok() {
        done = build(agent, joined, attachment.clone(), key.into()).await;
    }
    if let Err(error) = done {
        take_back(agent, joined, &attachment).await;
        return Err(error);
    }
    agent.dns.settle_one(agent, netns_id).await;
    drop(guard);
    if let Some(timeout) = order.wait {
        wait_applied(joined, revision, timeout).await?;
    }
    Ok(attachment)
}

/// Detaches a container; `false` when none of this name was attached here.
///
/// # Errors
/// [`AgentError::File`]: that it has to be told to the controller later could not be noted.
pub async fn detach(agent: &Arc<Agent>, joined: &Arc<Joined>, name: &Name) -> Result<bool, AgentError> {
    let _guard = joined.lock_name(name).await;
    detach_locked(agent, joined, name).await
}

/// Detaches this very attachment: one that took its place meanwhile stays.
///
/// # Errors
/// As for [`detach`].
pub(crate) async fn detach_this(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    attachment: &Attachment,
) -> Result<(), AgentError> {
    let _guard = joined.lock_name(&attachment.name).await;
    if is_current(joined, attachment) {
        detach_locked(agent, joined, &attachment.name).await?;
    }
    Ok(())
}

/// Whether an attachment is still the one of its name. To be asked under the lock on the name.
pub(crate) fn is_current(joined: &Joined, attachment: &Attachment) -> bool {
    joined.state().attachments.get(&attachment.name) == Some(attachment)
}

async fn detach_locked(agent: &Arc<Agent>, joined: &Arc<Joined>, name: &Name) -> Result<bool, AgentError> {
    let attachment = joined.state().attachments.get(name).cloned();
    // Noted before anything is taken away: a crash in between leaves a note too many, never a container too many.
    note_release(agent, joined, name, true).await?;
    if let Some(attachment) = &attachment {
        drop_local(agent, joined, attachment).await;
    }
    release(agent, joined, name).await?;
    Ok(attachment.is_some())
}

/// Tells the controller of a container that is gone, if it can be reached. The caller holds the lock on the name.
async fn release(agent: &Arc<Agent>, joined: &Arc<Joined>, name: &Name) -> Result<(), AgentError> {
    let request = v1::DetachRequest { network: network_bytes(joined), name: name.to_string() };
    let told = match joined.controller() {
        Ok(mut client) => bounded(joined, client.detach(request)).await.map(drop),
        Err(error) => Err(error),
    };
    match told {
        Ok(()) => note_release(agent, joined, name, false).await,
        // What the controller does not know needs no release.
        Err(AgentError::Controller(problem)) if problem.status == 404 => {
            note_release(agent, joined, name, false).await
        }
        Err(error) => {
            tracing::info!(%name, %error, "the controller will be told later that this container is gone");
            Ok(())
        }
    }
}

/// Tells the controller of everything that it missed: containers that were detached while it was away, and those that
/// it gave to an attach that never came to its end here.
pub(crate) async fn release_leftovers(agent: &Arc<Agent>, joined: &Arc<Joined>) -> Result<(), AgentError> {
    if joined.controller().is_err() {
        return Ok(());
    }
    let names: Vec<Name> = {
        let state = joined.state();
        let ours = state.member.map().containers().filter(|record| is_ours(record, agent.node));
        let ours = ours.filter(|record| state.member.map().access(record.id).is_none());
        let orphans = ours.map(|record| &record.name).filter(|name| !state.attachments.contains_key(name));
        orphans.chain(&state.releases).cloned().collect()
    };
    release_unless_attached(agent, joined, names).await
}

/// Gives back the containers of these names, but for those that are attached here.
pub(crate) async fn release_unless_attached(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    names: Vec<Name>,
) -> Result<(), AgentError> {
    for name in names {
        // An attach under way holds the lock and is in the list when it gives it back.
        let _guard = joined.lock_name(&name).await;
        if joined.state().attachments.contains_key(&name) {
            note_release(agent, joined, &name, false).await?;
        } else {
            release(agent, joined, &name).await?;
        }
    }
    Ok(())
}

pub(crate) async fn note_release(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    name: &Name,
    owed: bool,
) -> Result<(), AgentError> {
    let releases = {
        let mut state = joined.state();
        let changed = if owed { state.releases.insert(name.clone()) } else { state.releases.remove(name) };
        changed.then(|| state.releases.clone())
    };
    let Some(releases) = releases else { return Ok(()) };
    let (agent, network) = (agent.clone(), joined.membership.network);
    blocking(move || agent.files.put_releases(network, &releases)).await
}

pub(crate) fn network_bytes(joined: &Joined) -> Vec<u8> {
    joined.membership.network.as_bytes().to_vec()
}

/// Waits for a controller's answer, but not for ever.
pub(crate) async fn bounded<T>(
    joined: &Joined,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, AgentError> {
    let away = |why: String| joined.away(why);
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {
            Err(away(status.message().to_owned()))
        }
        Ok(Err(status)) => Err(AgentError::Controller((&status).into())),
        Err(_) => Err(away(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

fn check_ifname(name: &str) -> Result<(), AgentError> {
    let bad = name.is_empty()
        || name.len() > MAX_IFNAME
        || name == "."
        || name == ".."
        || name == "lo"
        || name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if bad { Err(AgentError::Ifname { name: name.to_owned() }) } else { Ok(()) }
}

/// Looks at everything that can be wrong on this host before the controller is asked for anything.
async fn preflight(joined: &Arc<Joined>, order: &AttachOrder) -> Result<NetnsId, AgentError> {
    let (path, ifname) = (order.netns.clone(), order.ifname.clone());
    let attached = joined.state().attachments.get(&order.name).cloned();
    blocking(move || {
        let netns = Netns::open(&path)?;
        let ours = attached.is_some_and(|a| a.netns_id == netns.id() && a.ifname == ifname);
        let taken =
            netns.run(|handle| async move { Ok((link::index_of(&handle, &ifname).await?, ifname)) })?;
        match taken {
            (Some(_), name) if !ours => Err(NetnsError::NameTaken { name }.into()),
            _ => Ok(netns.id()),
        }
    })
    .await
}

/// The attachment of this name, if it is as asked for. One whose namespace is gone makes room for the new one.
async fn existing(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    order: &AttachOrder,
    netns_id: NetnsId,
) -> Result<Option<Attachment>, AgentError> {
    let Some(attachment) = joined.state().attachments.get(&order.name).cloned() else { return Ok(None) };
    if attachment.lent.is_some() {
        let (name, netns, ifname) = (attachment.name, attachment.netns, attachment.ifname);
        return Err(AgentError::AttachedElsewhere { name, netns, ifname });
    }
    let (asking, old, network) = (agent.clone(), attachment.clone(), joined.membership.network);
    let (served, there) = blocking(move || {
        let served = asking.backend().device(network, old.container).is_some();
        Ok((served, still_there(&old.netns, old.netns_id)))
    })
    .await?;
    if attachment.netns_id != netns_id && !there {
        drop_local(agent, joined, &attachment).await;
        return Ok(None);
    }
    if attachment.netns_id != netns_id && served {
        let (name, netns, ifname) = (attachment.name, attachment.netns, attachment.ifname);
        return Err(AgentError::AttachedElsewhere { name, netns, ifname });
    }
    let same = order.owner.is_none()
        && attachment.ifname == order.ifname
        && order.addresses.iter().all(|a| attachment.addresses.contains(a));
    if !same {
        let (name, netns, ifname) = (attachment.name, attachment.netns, attachment.ifname);
        return Err(AgentError::AttachedElsewhere { name, netns, ifname });
    }
    Ok(served.then_some(attachment))
}

/// What the controller gives: a container's record, its private key, and the revision that has it.
pub(crate) type Given = (ContainerRecord, PrivateKey, Revision);

/// Asks the controller for a container, and again while it is away and there is patience for it.
pub(crate) async fn ask_patiently(
    joined: &Joined,
    order: &AttachOrder,
    port: Option<NonZeroU16>,
) -> Result<Given, AgentError> {
    let deadline = Instant::now() + order.wait_controller;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match ask_controller(joined, &order.name, (&order.addresses, port), left).await {
            // It died under the question, or was away to the end.
            Err(AgentError::ControllerAway { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            answer => return answer,
        }
    }
}

/// The port that a container's device will have, where it has one of its own: the wanted one if it is free.
pub(crate) async fn reserve_port(
    agent: &Arc<Agent>,
    wanted: Option<NonZeroU16>,
) -> Result<Option<NonZeroU16>, AgentError> {
    let agent = agent.clone();
    blocking(move || agent.backend().reserve_port(wanted)).await
}

/// Asks the controller for a container; its answer holds the private key this once.
pub(crate) async fn ask_controller(
    joined: &Joined,
    name: &Name,
    (addresses, port): (&[IpAddr], Option<NonZeroU16>),
    patience: Duration,
) -> Result<Given, AgentError> {
    let request = v1::AttachRequest {
        network: network_bytes(joined),
        name: name.to_string(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        public_key: Vec::new(),
        port: port.map(|port| port.get().into()),
    };
    let mut client = joined.controller_within(patience).await?;
    let reply = bounded(joined, client.attach(request)).await?;
    let invalid =
        |what: &dyn std::fmt::Display| AgentError::Invalid(format!("the controller's answer: {what}"));
    let secret = zeroize::Zeroizing::new(reply.private_key);
    let key = <[u8; 32]>::try_from(secret.as_slice()).map_err(|_| invalid(&"no private key"))?;
    let record = reply.container.as_ref().ok_or_else(|| invalid(&"no container"))?;
    let record = ContainerRecord::try_from(record).map_err(|error| invalid(&error))?;
    let key = PrivateKey::from_bytes(key);
    if key.public_key() != record.public_key {
        return Err(invalid(&"the private key does not belong to the container's public key"));
    }
    Ok((record, key, Revision::new(reply.revision)))
}

/// The name under which `wg(8)` finds a device: of this node, network and container, and so unique on the host.
pub(crate) fn device_name(joined: &Joined, record: &ContainerRecord) -> String {
    let network: String = joined.membership.network.to_string().chars().take(6).collect();
    let mut name = format!("{DEVICE_PREFIX}{network}{:x}", record.id.get());
    name.truncate(MAX_IFNAME);
    name
}

/// Makes the device of an attachment, by the plan for it alone.
pub(crate) async fn build(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    attachment: Attachment,
    keys: Keys,
) -> Result<(), AgentError> {
    let (agent, joined) = (agent.clone(), joined.clone());
    blocking(move || {
        let netns = Netns::open(&attachment.netns)?;
        let target = Target::new(&agent, &joined, &attachment, &keys);
        let device_key = DeviceKey { network: joined.membership.network, container: attachment.container };
        let desired = BTreeMap::from([(device_key, target.desired.clone())]);
        let observed = BTreeMap::<DeviceKey, Observed>::new();
        carry_out(&agent, &netns, &target, &plan(&desired, &observed))
    })
    .await
}

pub(crate) fn put_attachment(
    agent: &Agent,
    joined: &Joined,
    attachment: Attachment,
) -> Result<(), AgentError> {
    let mut state = joined.state();
    state.attachments.insert(attachment.name.clone(), attachment);
    let all: Vec<&Attachment> = state.attachments.values().collect();
    agent.files.put_attachments(joined.membership.network, &all)
}

/// Refuses addresses that another attachment here has: a node whose stream stands still for longer than addresses rest has
/// not heard that the controller removed that one, and would have two devices with one address.
pub(crate) fn nobody_has(joined: &Joined, attachment: &Attachment) -> Result<(), AgentError> {
    let state = joined.state();
    let others = state.attachments.values().filter(|other| other.name != attachment.name);
    for other in others {
        if let Some(address) = other.addresses.iter().find(|address| attachment.addresses.contains(address)) {
            return Err(AgentError::Behind { address: *address, holder: other.name.clone() });
        }
    }
    Ok(())
}

/// Takes a half-made attachment back, at the controller as well.
pub(crate) async fn take_back(agent: &Arc<Agent>, joined: &Arc<Joined>, attachment: &Attachment) {
    let noted = note_release(agent, joined, &attachment.name, true).await;
    drop_local(agent, joined, attachment).await;
    if let Err(error) = noted.and(release(agent, joined, &attachment.name).await) {
        tracing::warn!(name = %attachment.name, %error, "a failed attach could not be taken back");
    }
}

/// Removes what there is of an attachment on this host.
pub(crate) async fn drop_local(agent: &Arc<Agent>, joined: &Arc<Joined>, attachment: &Attachment) {
    let (answering, netns_id) = (agent.clone(), attachment.netns_id);
    let (agent, joined, attachment) = (agent.clone(), joined.clone(), attachment.clone());
    let dropped = blocking(move || {
        agent.backend().remove_device(joined.membership.network, attachment.container);
        let mut state = joined.state();
        state.attachments.remove(&attachment.name);
        let all: Vec<&Attachment> = state.attachments.values().collect();
        agent.files.put_attachments(joined.membership.network, &all)
    });
    if let Err(error) = dropped.await {
        tracing::warn!(%error, "the list of attachments cannot be written");
    }
    answering.dns.settle_one(&answering, netns_id).await;
}

/// Waits until every live node of the network has applied a revision.
async fn wait_applied(joined: &Joined, revision: Revision, timeout: Duration) -> Result<(), AgentError> {
    let network = network_bytes(joined);
    let mut request = tonic::Request::new(v1::WaitAppliedRequest { network, revision: revision.get() });
    request.set_timeout(timeout);
    let mut waiting = joined.controller_within(Duration::ZERO).await?;
    match tokio::time::timeout(timeout, waiting.wait_applied(request)).await {
        Ok(Ok(reply)) if reply.get_ref().applied => Ok(()),
        Ok(Ok(reply)) => Err(AgentError::NotApplied { lagging: reply.into_inner().lagging }),
        Ok(Err(status))
            if status.code() != tonic::Code::DeadlineExceeded && status.code() != tonic::Code::Cancelled =>
        {
            Err(AgentError::Controller((&status).into()))
        }
        _ => Err(AgentError::NotApplied { lagging: Vec::new() }),
    }
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(AgentError::Invalid(error.to_string())))
}

/// The private halves of a device's pairs.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// Of the one in use.
    pub(crate) key: PrivateKey,
    /// Of the other one, while it is changed.
    pub(crate) also: Option<PrivateKey>,
    /// Whether that is the next one.
    pub(crate) next: bool,
}

impl Keys {
    /// Those that a device has.
    pub(crate) fn of(device: &Device) -> Self {
        Self {
            key: device.private_key.0.clone(),
            also: device.also_private_key.as_ref().map(|key| key.0.clone()),
            next: device.also_is_next,
        }
    }
}

impl From<PrivateKey> for Keys {
    fn from(key: PrivateKey) -> Self {
        Self { key, also: None, next: false }
    }
}

/// The device that an engine is told to serve for an attachment.
pub(crate) fn device(attachment: &Attachment, keys: &Keys, mtu: u32) -> Device {
    Device {
        id: attachment.container,
        name: attachment.device.clone(),
        private_key: WirePrivateKey(keys.key.clone()),
        also_private_key: keys.also.clone().map(WirePrivateKey),
        also_is_next: keys.next,
        addresses: attachment.addresses.clone(),
        mtu,
        relay: false,
    }
}

/// Whether a path still leads to the namespace that an attachment was made in.
pub(crate) fn still_there(path: &Path, id: NetnsId) -> bool {
    Netns::open(path).is_ok_and(|netns| netns.id() == id)
}

/// The set of a container's addresses.
pub(crate) fn addresses(attachment: &Attachment) -> BTreeSet<IpAddr> {
    attachment.addresses.iter().copied().collect()
}

/// Whether a record is this node's.
pub(crate) fn is_ours(record: &ContainerRecord, node: NodeId) -> bool {
    record.node == node
}
