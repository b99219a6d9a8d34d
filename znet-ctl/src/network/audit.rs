//! The words of the audit trail.

use znet_core::controller::{Command, Network, Reply, Rotate};
use znet_core::id::{ContainerId, NodeId};
use znet_core::time::Timestamp;

use crate::actor::Actor;
use crate::store::AuditNote;

/// The one word for a command by whoever gives it.
pub(super) fn action(command: &Command, actor: &Actor) -> &'static str {
    match command {
        Command::CreateToken { .. } => "token.create",
        Command::RevokeToken { .. } => "token.revoke",
        Command::RemoveTokens { .. } => "token.collect",
        Command::Join { .. } => "node.join",
        Command::SetEndpoints { .. } => "node.report",
        Command::Attach { .. } => "container.attach",
        Command::Detach { .. } => "container.detach",
        Command::RemoveNode { node } if *actor == Actor::Node(*node) => "node.leave",
        Command::RemoveNode { .. } => "node.remove",
        Command::RemoveContainer { .. } => "container.remove",
        Command::Reserve { .. } => "reservation.put",
        Command::Unreserve { .. } => "reservation.remove",
        Command::CreateAccess { .. } => "access.create",
        Command::OfferAccess { .. } => "access.offer",
        Command::RevokeAccess { .. } => "access.revoke",
        Command::Configure(_) => "network.change",
        Command::RotateKeys { .. } => "key.rotate",
        Command::OfferKey { .. } => "key.offer",
        Command::AdvanceKeys { .. } => "key.advance",
        Command::Collect { .. } => "node.collect",
        Command::ChangeControllers { .. } => "network.controllers",
        Command::RotateKey { .. } => "network.rotate_key",
        Command::RetireKeys => "network.retire_keys",
        Command::NewEpoch => "network.epoch",
    }
}

/// What is written down about a command that was decided on `before`.
pub(super) fn note(
    command: &Command,
    reply: &Reply,
    actor: &Actor,
    before: &Network,
    at: Timestamp,
) -> AuditNote {
    let detail = match (command, reply) {
        (Command::CreateToken { label, uses, expires, .. }, Reply::Token { id, .. }) => {
            let label = label.as_ref().map(|label| format!(" {label}")).unwrap_or_default();
            let uses = uses.map_or_else(|| "any number of uses".to_owned(), |uses| format!("{uses} uses"));
            let expires = expires.map(znet_api::rest::rfc3339);
            format!("token {id}{label}, {uses}, expires {}", expires.as_deref().unwrap_or("never"))
        }
        (Command::RevokeToken { token, with_nodes: true }, Reply::Removed { containers, nodes }) => {
            format!("token {token} with {nodes} nodes and {} containers", containers.len())
        }
        (Command::RevokeToken { token, .. }, _) => format!("token {token}"),
        (Command::RemoveTokens { tokens }, _) => {
            let named: Vec<_> = tokens.iter().take(10).map(ToString::to_string).collect();
            format!("{} tokens that admit nobody any more: {}", tokens.len(), named.join(", "))
        }
        (Command::Join { node, endpoints, .. }, Reply::Joined { name }) => {
            format!("node {name} ({node}) at {}", list(endpoints))
        }
        (Command::SetEndpoints { node, endpoints }, _) => {
            format!("node {} at {}", node_name(before, node), list(endpoints))
        }
        (Command::Attach { node, .. }, Reply::Attached { container, .. }) => {
            let addresses: Vec<_> = container.addresses().collect();
            format!("container {} on node {}: {}", container.name, node_name(before, node), list(&addresses))
        }
        (Command::Detach { node, name }, _) => {
            format!("container {name} on node {}", node_name(before, node))
        }
        (Command::RemoveNode { node }, Reply::Removed { containers, .. }) => {
            format!("node {} ({node}) with {} containers", node_name(before, node), containers.len())
        }
        (Command::RemoveContainer { name }, _) => format!("container {name}"),
        (Command::Reserve { name, .. }, Reply::Reserved(reservation)) => {
            format!("reservation {name}: {}", list(&reservation.addresses))
        }
        (Command::Unreserve { name }, _) => format!("reservation {name}"),
        (Command::CreateAccess { node, public_key, .. }, Reply::Access(access)) => {
            let (node, addresses) = (node_name(before, node), access.record.addresses().collect::<Vec<_>>());
            format!("access {} of {public_key} by node {node}: {}", access.record.name, list(&addresses))
        }
        (Command::OfferAccess { node, name, point }, _) => {
            format!("access {name} at port {} of node {}", point.port, node_name(before, node))
        }
        (Command::RevokeAccess { name }, _) => format!("access {name}"),
        (Command::Configure(settings), _) => {
            let reserved =
                settings.reserved.as_ref().map(|ranges| format!("reserved ranges {}", list(ranges)));
            let rest = settings.rest.map(|rest| format!("rest {} s", rest.as_secs()));
            let ttl = settings.ephemeral_ttl;
            let ttl = ttl.map(|ttl| format!("ephemeral nodes may stay away {} s", ttl.as_secs()));
            let lifetime = settings.key_lifetime.map(|lifetime| match lifetime {
                Some(lifetime) => format!("key lifetime {} s", lifetime.as_secs()),
                None => "no key lifetime".to_owned(),
            });
            [reserved, rest, ttl, lifetime].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        (Command::RotateKeys { which }, Reply::Rotating { containers }) => match which {
            Rotate::All => "all containers".to_owned(),
            Rotate::Node(node) => {
                format!("{} containers of node {}", containers.len(), node_name(before, node))
            }
            Rotate::Named(_) => format!("containers {}", some(containers.iter())),
        },
        (Command::OfferKey { node, name, public_key }, _) => {
            format!("container {name} on node {}: {public_key}", node_name(before, node))
        }
        (Command::AdvanceKeys { ask, promote, settle }, _) => {
            let names = |word: &str, ids: &mut dyn Iterator<Item = ContainerId>| {
                let named = some(ids.map(|id| container_name(before, id)));
                (!named.is_empty()).then(|| format!("{word}: {named}"))
            };
            let stages = [
                names("new pair asked for", &mut ask.iter().copied()),
                names("next key in use", &mut promote.iter().map(|(id, _)| *id)),
                names("former key gone", &mut settle.iter().map(|(id, _)| *id)),
            ];
            stages.into_iter().flatten().collect::<Vec<_>>().join("; ")
        }
        (Command::Collect { absent }, Reply::Removed { containers, nodes }) => {
            let names: Vec<_> = absent.iter().take(10).map(|node| node_name(before, node)).collect();
            format!("{nodes} absent nodes with {} containers: {}", containers.len(), names.join(", "))
        }
        (Command::ChangeControllers { add, remove, only, pins }, _) => {
            let (add, pins) = (list(add), list(pins));
            match only {
                true => format!("controllers are {add}, with the pins {pins}"),
                false => format!("controllers: added {add}, removed {}, with the pins {pins}", list(remove)),
            }
        }
        (Command::RotateKey { statement }, _) => {
            format!("the signing key {:?} follows {:?}", statement.to, statement.from)
        }
        (Command::RetireKeys, _) => {
            let line = before.conf().signing.as_ref().map(|signing| signing.line.len()).unwrap_or_default();
            format!("{line} earlier signing keys")
        }
        (Command::NewEpoch, _) => format!("the epoch after {}", before.conf().epoch),
        _ => String::new(),
    };
    AuditNote { at, actor: actor.clone(), action: action(command, actor), detail }
}

fn node_name(network: &Network, node: &NodeId) -> String {
    network.node(node).map_or_else(|| node.to_string(), |node| node.name.to_string())
}

fn container_name(network: &Network, id: ContainerId) -> String {
    network.container(id).map_or_else(|| id.get().to_string(), |container| container.record.name.to_string())
}

/// The first few of many, and how many more there are.
fn some<T: ToString>(mut all: impl Iterator<Item = T>) -> String {
    let named: Vec<String> = all.by_ref().take(10).map(|one| one.to_string()).collect();
    match all.count() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
