//! From what is to what should be: make plans, carry them out, again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use znet_api::v1;
use znet_core::id::NetworkId;
use znet_core::plan::{Desired, DeviceKey, Observed, ObservedService, Step, plan};
use znet_wg::control::Device;

use crate::access;
use crate::agent::{Agent, Joined};
use crate::attach::{
    Keys, addresses, ask_controller, blocking, build, detach_this, device, drop_local, is_current, is_ours,
    put_attachment, release_leftovers, reserve_port, still_there,
};
use crate::backend::kernel;
use crate::engine::address_set;
use crate::error::AgentError;
use crate::files::Attachment;
use crate::host::netns::{Netns, NetnsError};
use crate::host::{link, wireguard};
use crate::lent;
use crate::pairs::{offer_all, settle_attached};
use znet_wg::io::tun::{Queues, Tun, TunError};

/// How often the engine is asked whether it lives and whether namespaces are gone.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// The least time between two looks, so that a busy network does not keep the node looking.
const REST: Duration = Duration::from_millis(50);
/// Every so many looks, the links themselves are looked at.
const LINKS_EVERY: u32 = 50;

/// How one container's device should be, and what is needed to make it.
pub struct Target {
    /// How it should be.
    pub desired: Desired,
    /// What the engine should serve.
    pub device: Device,
    network: NetworkId,
    ifname: String,
    port: Option<NonZeroU16>,
}

impl Target {
    /// The target for an attachment.
    pub(crate) fn new(agent: &Agent, joined: &Joined, attachment: &Attachment, keys: &Keys) -> Self {
        let mtu = agent.mtu();
        let routes: BTreeSet<IpNet> = joined.prefixes().into_iter().collect();
        Self {
            desired: Desired {
                public_key: keys.key.public_key(),
                addresses: addresses(attachment),
                routes,
                mtu,
            },
            device: device(attachment, keys, mtu),
            network: joined.membership.network,
            ifname: attachment.ifname.clone(),
            port: attachment.port,
        }
    }
}

/// Carries out the steps of a plan for one device. Blocks.
///
/// # Errors
/// The error of the first step that fails; the next plan starts from what is then.
pub fn carry_out(agent: &Agent, netns: &Netns, target: &Target, steps: &[Step]) -> Result<(), AgentError> {
    for step in steps {
        tracing::debug!(%step, "carrying out");
    }
    if let Some(Step::Remove(key)) = steps.iter().find(|step| matches!(step, Step::Remove(_))) {
        agent.backend().remove_device(key.network, key.container);
    }
    let mut from_outside = false;
    if steps.iter().any(|step| matches!(step, Step::MakeLink(_))) {
        let Target { network, ifname, device, port, .. } = target;
        from_outside = agent.backend().make_link(*network, netns, ifname, device, *port)?;
    }
    let inside = steps.iter().any(|step| !matches!(step, Step::Remove(_) | Step::Serve(_)));
    // All that happens inside the namespace happens on one visit and over one netlink socket, in the order of the plan.
    let tun = if inside { change_inside(netns, target, steps, from_outside)? } else { None };
    if steps.iter().any(|step| matches!(step, Step::Serve(_))) {
        agent.backend().put_device(target.network, target.device.clone(), tun)?;
    }
    Ok(())
}

/// Carries out what is to be done inside a namespace. Returns the TUN device that was made, if one was.
fn change_inside(
    netns: &Netns,
    target: &Target,
    steps: &[Step],
    from_outside: bool,
) -> Result<Option<OwnedFd>, AgentError> {
    let name = target.ifname.as_str();
    let mut made = None;
    let tun = &mut made;
    let changed = netns.run(|handle| async move {
        link::set_up(&handle, "lo", None, true).await?;
        for step in steps {
            match step {
                // One of the kernel's was made in the host's namespace.
                Step::MakeLink(_) if from_outside => {}
                Step::MakeLink(_) => match Tun::create(name, Queues::Single) {
                    Ok(device) => *tun = Some(Ok(device)),
                    Err(error) => {
                        *tun = Some(Err(error));
                        return Ok(());
                    }
                },
                Step::SetMtu(_, mtu) => link::set_up(&handle, name, Some(*mtu), false).await?,
                Step::SetUp(_) => {
                    link::no_link_local(&handle, name).await?;
                    link::set_up(&handle, name, None, true).await?;
                }
                Step::AddAddress(_, address) => link::add_address(&handle, name, *address).await?,
                Step::RemoveAddress(_, address) => link::remove_address(&handle, name, *address).await?,
                Step::AddRoute(_, route) => link::add_route(&handle, name, *route).await?,
                Step::RemoveRoute(_, route) => link::remove_route(&handle, name, *route).await?,
                Step::Remove(_) | Step::Serve(_) => {}
            }
        }
        Ok(())
    });
    match made.transpose() {
        Err(TunError::NameTaken) => Err(NetnsError::NameTaken { name: name.to_owned() }.into()),
        Err(error) => Err(error.into()),
        Ok(made) => Ok(changed.map(|()| made)?),
    }
}

/// Looks, plans and carries out, for as long as the agent runs.
pub async fn run(agent: Arc<Agent>) {
    for round in 0u32.. {
        let closely = agent.take_closely() | round.is_multiple_of(LINKS_EVERY);
        if let Err(error) = look(&agent, closely).await {
            tracing::warn!(%error, "the node is not as it should be; trying again");
        }
        agent.dns.settle(&agent).await;
        tokio::time::sleep(REST).await;
        let _ = tokio::time::timeout(LOOK_EVERY, agent.wake.notified()).await;
    }
}

async fn look(agent: &Arc<Agent>, links_too: bool) -> Result<(), AgentError> {
    let asking = agent.clone();
    let (new, gone) = blocking(move || {
        let mut backend = asking.backend();
        let new = backend.ensure(&|network| asking.all_peers(network))?;
        Ok((new, backend.gone()?.into_iter().collect::<BTreeSet<_>>()))
    })
    .await?;
    for joined in agent.networks() {
        remove_strangers(agent, &joined).await;
        if let Err(error) = access::look(agent, &joined, &gone, links_too || new).await {
            tracing::warn!(%error, "the access points are not as they should be; trying again");
        }
        if links_too {
            release_leftovers(agent, &joined).await?;
            report_endpoints(agent, &joined).await;
            offer_all(agent, &joined).await;
        }
        let attachments: Vec<Attachment> = {
            let state = joined.state();
            // Without a map nobody knows how they should be: what is there stays as it is.
            let known = state.member.head().is_some();
            state.attachments.values().filter(|_| known).cloned().collect()
        };
        for attachment in attachments {
            let key = DeviceKey { network: joined.membership.network, container: attachment.container };
            let vanished = gone.contains(&(key.network, key.container));
            if attachment.lent.is_some() {
                lent::look(agent, &joined, attachment, vanished).await;
                continue;
            }
            let served = agent.backend().device(key.network, key.container).is_some();
            // The TUN device keeps the namespace, so that nobody tells of its end: its path does.
            let there = still_there(&attachment.netns, attachment.netns_id);
            if links_too || new || vanished || !served || !there {
                look_at(agent, &joined, attachment, vanished).await;
            }
        }
    }
    Ok(())
}

/// Tells the controller where this node can be reached, when that has changed.
async fn report_endpoints(agent: &Arc<Agent>, joined: &Arc<Joined>) {
    let Ok(mut client) = joined.controller() else { return };
    let (asking, port) = (agent.clone(), joined.membership.port);
    let Ok(endpoints) = blocking(move || Ok(asking.endpoints(port))).await else { return };
    if endpoints == joined.state().reported {
        return;
    }
    let request = v1::ReportRequest {
        network: joined.membership.network.as_bytes().to_vec(),
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
    };
    match client.report(request).await {
        Ok(_) => joined.state().reported = endpoints,
        Err(error) => tracing::info!(error = error.message(), "the new endpoints will be reported later"),
    }
}

/// Removes devices that no attachment names, and attachments that the map does not name any more.
async fn remove_strangers(agent: &Arc<Agent>, joined: &Arc<Joined>) {
    let network = joined.membership.network;
    let served = agent.backend().devices(network);
    let accesses = access::containers(agent, joined);
    let (strangers, expelled) = {
        let state = joined.state();
        let known: BTreeSet<_> = state.attachments.values().map(|a| a.container).collect();
        let known = |id: &_| known.contains(id) || accesses.contains(id);
        // Without a map nobody knows whether it is an access point's.
        let mapped = state.member.head().is_some();
        let strangers: Vec<_> = served.into_iter().filter(|id| mapped && !known(id)).collect();
        let revision = state.member.revision();
        let map = state.member.map();
        let gone = |a: &&Attachment| {
            a.revision <= revision
                && map.container(a.container).is_none_or(|record| !is_ours(record, agent.node))
        };
        let expelled: Vec<Attachment> = state.attachments.values().filter(gone).cloned().collect();
        (strangers, expelled)
    };
    for container in strangers {
        tracing::info!(%network, %container, "removing what is left of an attachment");
        let agent = agent.clone();
        let _ = blocking(move || {
            agent.backend().remove_device(network, container);
            Ok(())
        })
        .await;
    }
    for attachment in expelled {
        tracing::info!(%network, name = %attachment.name, "the controller removed this container");
        drop_local(agent, joined, &attachment).await;
    }
}

async fn look_at(agent: &Arc<Agent>, joined: &Arc<Joined>, attachment: Attachment, vanished: bool) {
    let name = attachment.name.clone();
    let there = still_there(&attachment.netns, attachment.netns_id);
    let result = if !there {
        tracing::info!(%name, netns = %attachment.netns.display(), "the container's namespace is gone; detaching it");
        detach_this(agent, joined, &attachment).await
    } else if vanished || agent.backend().device(joined.membership.network, attachment.container).is_none() {
        rebuild(agent, joined, attachment, vanished).await
    } else {
        mend(agent, joined, attachment).await
    };
    if let Err(error) = result {
        tracing::warn!(%name, %error, "the container is not as it should be; trying again");
    }
}

/// Makes a device anew: its interface was removed, or engine and agent both died. A new pair comes from the controller,
/// since nothing here keeps the old one.
async fn rebuild(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    mut attachment: Attachment,
    vanished: bool,
) -> Result<(), AgentError> {
    let name = attachment.name.clone();
    let _guard = joined.lock_name(&name).await;
    // It may have been detached, and its name attached again, since it was looked at; or an attach that was under way then
    // has come to its end.
    let served = agent.backend().device(joined.membership.network, attachment.container).is_some();
    if !is_current(joined, &attachment) || (served && !vanished) {
        return Ok(());
    }
    let network = joined.membership.network;
    name_is_free(network, &attachment).await?;
    let held = agent.backend().device(network, attachment.container).as_ref().map(Keys::of);
    let (record, key, revision) = match held {
        Some(key) => {
            let (removing, container) = (agent.clone(), attachment.container);
            blocking(move || {
                removing.backend().remove_device(network, container);
                Ok(())
            })
            .await?;
            return build(agent, joined, attachment, key).await;
        }
        None => {
            let port = reserve_port(agent, attachment.port).await?;
            ask_controller(joined, &name, (&attachment.addresses, port), Duration::ZERO).await?
        }
    };
    attachment.container = record.id;
    attachment.addresses = record.addresses().collect();
    attachment.port = record.port;
    attachment.revision = revision;
    put_attachment(agent, joined, attachment.clone())?;
    build(agent, joined, attachment, key.into()).await
}

/// Whatever took the name of an interface that is gone is somebody else's: it is left alone, and no controller is asked
/// for a pair that could not be used.
async fn name_is_free(network: NetworkId, attachment: &Attachment) -> Result<(), AgentError> {
    let (path, name) = (attachment.netns.clone(), attachment.ifname.clone());
    let mark = kernel::mark(network, attachment.container);
    blocking(move || {
        let looked_for = name.clone();
        let netns = Netns::open(&path)?;
        match netns.run(|handle| async move { link::index_of(&handle, &looked_for).await })? {
            // A device of the kernel's that could not be taken over makes room.
            Some(_) if wireguard::find(&netns, &mark)?.is_none() => {
                Err(NetnsError::NameTaken { name }.into())
            }
            _ => Ok(()),
        }
    })
    .await
}

/// Compares a device with what it should be, and mends what is not.
async fn mend(agent: &Arc<Agent>, joined: &Arc<Joined>, attachment: Attachment) -> Result<(), AgentError> {
    let _guard = joined.lock_name(&attachment.name).await;
    if !is_current(joined, &attachment) {
        return Ok(());
    }
    let (agent, joined) = (agent.clone(), joined.clone());
    blocking(move || match difference(&agent, &joined, &attachment)? {
        Some((netns, target, steps)) => {
            carry_out(&agent, &netns, &target, &steps)?;
            // Its keys may have been changed meanwhile.
            settle_attached(&agent, &joined, &attachment)
        }
        None => Ok(()),
    })
    .await
}

/// What leads from how a device is to how it should be; `None` while the engine does not serve it. Blocks.
///
/// # Errors
/// The namespace cannot be looked into.
pub(crate) fn difference(
    agent: &Agent,
    joined: &Joined,
    attachment: &Attachment,
) -> Result<Option<(Netns, Target, Vec<Step>)>, AgentError> {
    let key = DeviceKey { network: joined.membership.network, container: attachment.container };
    let Some(device) = agent.backend().device(key.network, key.container) else { return Ok(None) };
    let target = Target::new(agent, joined, attachment, &Keys::of(&device));
    let netns = Netns::open(&attachment.netns)?;
    let name = attachment.ifname.clone();
    let link = netns.run(|handle| async move { link::observe(&handle, &name).await })?;
    let service = ObservedService {
        public_key: device.private_key.0.public_key(),
        addresses: address_set(&device),
        mtu: device.mtu,
        gone: false,
    };
    let observed = BTreeMap::from([(key, Observed { link, service: Some(service) })]);
    let steps = plan(&BTreeMap::from([(key, target.desired.clone())]), &observed);
    Ok(Some((netns, target, steps)))
}
