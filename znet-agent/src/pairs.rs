//! The pairs of this node's containers, when they are changed.
//!
//! A new pair is made here, and the engine accepts it before the controller hears of it: so nobody is ever told of a key that
//! is not served, and no private half leaves the node or is written to its disk. Engine and agent both have it, and either may
//! be killed. What is to be done follows from the record and from what the engine has (`znet_core::pair`), so it is harmless
//! to look again at any time.

use std::sync::Arc;

use znet_api::v1;
use znet_core::id::{ContainerId, NetworkId, Revision};
use znet_core::key::{PrivateKey, PublicKey};
use znet_core::map::{AccessRecord, ContainerRecord};
use znet_core::name::Name;
use znet_core::pair::{Held, PairStep, step};
use znet_wg::control::{Device, WirePrivateKey};

use crate::agent::{Agent, Joined};
use crate::attach::{blocking, bounded, is_ours, network_bytes};
use crate::backend::{Backend, Kind};
use crate::error::AgentError;
use crate::files::Attachment;

/// The public halves that a device has.
fn held(device: &Device) -> Held {
    let public = |key: &WirePrivateKey| key.0.public_key();
    let also = device.also_private_key.as_ref().map(public);
    Held { key: public(&device.private_key), also, next: device.also_is_next }
}

/// A container of this node with a device: an attached one, or an access point, which has no attachment.
#[derive(Clone)]
struct Own {
    container: ContainerId,
    name: Name,
    attachment: Option<Attachment>,
}

impl From<&Attachment> for Own {
    fn from(attachment: &Attachment) -> Self {
        let (container, name) = (attachment.container, attachment.name.clone());
        Self { container, name, attachment: Some(attachment.clone()) }
    }
}

impl From<&AccessRecord> for Own {
    fn from(access: &AccessRecord) -> Self {
        Self { container: access.id, name: access.name.clone(), attachment: None }
    }
}

impl Own {
    /// All of them.
    fn all(agent: &Agent, joined: &Joined) -> Vec<Self> {
        let state = joined.state();
        let accesses = state.member.map().accesses().filter(|access| access.node == agent.node);
        state.attachments.values().map(Self::from).chain(accesses.map(Self::from)).collect()
    }

    /// The one of this number.
    fn find(joined: &Joined, container: ContainerId) -> Option<Self> {
        let state = joined.state();
        let attached = state.attachments.values().find(|attachment| attachment.container == container);
        attached.map(Self::from).or_else(|| state.member.map().access(container).map(Self::from))
    }

    /// The one of this name.
    fn named(joined: &Joined, name: &Name) -> Option<Self> {
        let state = joined.state();
        let access = || state.member.map().accesses().find(|access| access.name == *name).map(Self::from);
        state.attachments.get(name).map(Self::from).or_else(access)
    }

    /// Its record, once the map has what the controller said about it last.
    fn record(&self, agent: &Agent, joined: &Joined) -> Option<ContainerRecord> {
        let state = joined.state();
        let said = self.attachment.as_ref().map_or(Revision::ZERO, |attachment| attachment.revision);
        let known = state.member.head().is_some() && state.member.revision() >= said;
        let record = state.member.map().container(self.container).filter(|_| known)?;
        is_ours(record, agent.node).then(|| record.clone())
    }

    /// What is to be done about its pairs, and its device.
    fn look(
        &self,
        backend: &Backend,
        network: NetworkId,
        record: &ContainerRecord,
    ) -> Option<(PairStep, Device)> {
        let device = backend.device(network, self.container)?;
        Some((step(record, held(&device)), device))
    }
}

/// Has the devices of these containers use and accept the keys that the others use, as far as they have them. Blocks. To be
/// called before a map is acknowledged, as others rely on it then.
pub(crate) fn settle(agent: &Agent, joined: &Joined, containers: impl IntoIterator<Item = ContainerId>) {
    for own in containers.into_iter().filter_map(|container| Own::find(joined, container)) {
        if let Err(error) = settle_one(agent, joined, &own) {
            tracing::warn!(name = %own.name, %error, "the engine did not take a change of keys; trying again");
        }
    }
}

/// As [`settle`], for all containers: an earlier agent may have ended between a map and what follows from it.
pub(crate) fn settle_all(agent: &Agent, joined: &Joined) {
    settle(agent, joined, Own::all(agent, joined).into_iter().map(|own| own.container));
}

/// As [`settle`], for an attachment.
pub(crate) fn settle_attached(
    agent: &Agent,
    joined: &Joined,
    attachment: &Attachment,
) -> Result<(), AgentError> {
    settle_one(agent, joined, &attachment.into())
}

fn settle_one(agent: &Agent, joined: &Joined, own: &Own) -> Result<(), AgentError> {
    let Some(record) = own.record(agent, joined) else { return Ok(()) };
    let mut backend = agent.backend();
    let Some((step, mut device)) = own.look(&backend, joined.membership.network, &record) else {
        return Ok(());
    };
    device.also_is_next = false;
    match (step, device.also_private_key.take()) {
        (PairStep::Swap { keep }, Some(next)) => {
            let former = std::mem::replace(&mut device.private_key, next);
            device.also_private_key = keep.then_some(former);
        }
        (PairStep::Drop, _) => {}
        _ => return Ok(()),
    }
    tracing::info!(name = %own.name, key = %device.private_key.0.public_key(), ?step, "changing keys");
    backend.put_device(joined.membership.network, device, None)
}

/// Tells the controller of what it waits for: new pairs that it asked for.
pub(crate) async fn offer_all(agent: &Arc<Agent>, joined: &Arc<Joined>) {
    if joined.controller().is_err() {
        return;
    }
    let (looking, at) = (agent.clone(), joined.clone());
    let waited_for = blocking(move || {
        let wanted = |own: &Own| {
            let record = own.record(&looking, &at)?;
            let (step, _) = own.look(&looking.backend(), at.membership.network, &record)?;
            (step != PairStep::Keep).then(|| own.name.clone())
        };
        Ok(Own::all(&looking, &at).iter().filter_map(wanted).collect::<Vec<Name>>())
    });
    offer(agent, joined, waited_for.await.unwrap_or_default()).await;
}

/// As [`offer_all`], for containers of these names alone.
pub(crate) async fn offer(agent: &Arc<Agent>, joined: &Arc<Joined>, names: Vec<Name>) {
    for name in names {
        if let Err(error) = offer_one(agent, joined, &name).await {
            tracing::warn!(%name, %error, "the key of this container will be changed later");
        }
    }
}

async fn offer_one(agent: &Arc<Agent>, joined: &Arc<Joined>, name: &Name) -> Result<(), AgentError> {
    let _guard = joined.lock_name(name).await;
    let Some(own) = Own::named(joined, name) else { return Ok(()) };
    let (working, at, of) = (agent.clone(), joined.clone(), own.clone());
    let offered = blocking(move || prepare(&working, &at, &of)).await?;
    match offered {
        Some(Offer::Next(public_key)) => {
            let request = v1::OfferKeyRequest {
                network: network_bytes(joined),
                name: name.to_string(),
                public_key: public_key.as_bytes().to_vec(),
            };
            bounded(joined, joined.controller()?.offer_key(request)).await.map(drop)
        }
        Some(Offer::InUse(public_key)) => reclaim(agent, joined, own, public_key).await,
        None => Ok(()),
    }
}

/// What the controller is to be told.
enum Offer {
    /// The next key.
    Next(PublicKey),
    /// The key that the container uses, whatever the map says.
    InUse(PublicKey),
}

/// Does what can be done here. Blocks.
fn prepare(agent: &Agent, joined: &Joined, own: &Own) -> Result<Option<Offer>, AgentError> {
    let Some(record) = own.record(agent, joined) else { return Ok(None) };
    let mut backend = agent.backend();
    let Some((step, mut device)) = own.look(&backend, joined.membership.network, &record) else {
        return Ok(None);
    };
    Ok(match step {
        PairStep::Keep => None,
        PairStep::Swap { .. } | PairStep::Drop => {
            drop(backend);
            settle_one(agent, joined, own)?;
            None
        }
        PairStep::Offer(public_key) => Some(Offer::Next(public_key)),
        PairStep::Reclaim => Some(Offer::InUse(device.private_key.0.public_key())),
        PairStep::Make => {
            if !backend.holds_two_keys() {
                let why = match backend.kind() {
                    Kind::Engine => {
                        "the engine is of a version that cannot change keys; restart the agent with --replace-engine"
                    }
                    Kind::Kernel => {
                        "a device of the kernel's has one key; restart the agent with --backend engine"
                    }
                };
                return Err(AgentError::Invalid(why.to_owned()));
            }
            let next = PrivateKey::generate(&mut rand::rng());
            let public_key = next.public_key();
            (device.also_private_key, device.also_is_next) = (Some(WirePrivateKey(next)), true);
            backend.put_device(joined.membership.network, device, None)?;
            Some(Offer::Next(public_key))
        }
    })
}

/// The controller has a key of this container that nobody has the private half of: it was restored from a backup that is older
/// than the change of the key. It is told the one that is used.
async fn reclaim(
    agent: &Arc<Agent>,
    joined: &Arc<Joined>,
    own: Own,
    public_key: PublicKey,
) -> Result<(), AgentError> {
    tracing::info!(name = %own.name, key = %public_key, "the controller has another key of this container; telling it");
    // An access point has the addresses that the controller knows.
    let addresses = own.attachment.iter().flat_map(|attachment| &attachment.addresses);
    let request = v1::AttachRequest {
        network: network_bytes(joined),
        name: own.name.to_string(),
        addresses: addresses.map(ToString::to_string).collect(),
        public_key: public_key.as_bytes().to_vec(),
        port: own.attachment.as_ref().and_then(|attachment| attachment.port).map(|port| port.get().into()),
    };
    let reply = bounded(joined, joined.controller()?.attach(request)).await?;
    match own.attachment {
        Some(attachment) => {
            let revision = Revision::new(reply.revision);
            crate::attach::put_attachment(agent, joined, Attachment { revision, ..attachment })
        }
        None => Ok(()),
    }
}
