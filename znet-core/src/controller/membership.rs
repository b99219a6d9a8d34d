//! Decisions about who belongs to the network: tokens and nodes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rand_core::CryptoRng;

use super::command::Reply;
use super::decide::Decision;
use super::network::{MAX_NODES, MAX_TOKENS, Network};
use super::rejection::Rejection;
use super::rows::{Node, NodeLifetime, Row, RowKey, StateChange, Token, TokenSecret};
use crate::id::{NodeId, TokenId};
use crate::map::MAX_ENDPOINTS;
use crate::name::{MAX_NAME_LEN, Name};
use crate::time::Timestamp;

impl Network {
    pub(super) fn create_token<R: CryptoRng + ?Sized>(
        &self,
        label: Option<&Name>,
        uses: Option<u32>,
        expires: Option<Timestamp>,
        lifetime: NodeLifetime,
        now: Timestamp,
        rng: &mut R,
    ) -> Result<Decision, Rejection> {
        let mut changes = Vec::new();
        if self.tokens().len() >= MAX_TOKENS {
            // Tokens are kept after their time so that operators see what became of them, but not in the way of new ones.
            let dead = self.tokens().filter(|token| token.is_spent(now));
            let oldest = dead.min_by_key(|token| (token.created, token.id));
            let oldest = oldest.ok_or(Rejection::Full { what: "valid tokens", bound: MAX_TOKENS })?;
            changes.push(StateChange::Remove(RowKey::Token(oldest.id)));
        }
        let holder =
            self.tokens().find(|token| label.is_some() && token.label.as_ref() == label && !token.revoked);
        if let (Some(label), Some(holder)) = (label, holder) {
            return Err(Rejection::LabelTaken { label: label.clone(), token: holder.id });
        }
        let secret = TokenSecret::generate(rng);
        let token = Token {
            id: TokenId::generate(rng),
            label: label.cloned(),
            secret_hash: secret.hash(),
            max_uses: uses,
            used: 0,
            expires,
            lifetime,
            revoked: false,
            created: now,
        };
        let reply = Reply::Token { id: token.id, secret };
        changes.push(StateChange::Put(Row::Token(token)));
        Ok(Decision { changes, reply })
    }

    pub(super) fn revoke_token(
        &self,
        id: TokenId,
        with_nodes: bool,
        now: Timestamp,
    ) -> Result<Decision, Rejection> {
        let token = self.token(&id).ok_or(Rejection::NoSuchToken { token: id })?;
        let joined = self.nodes().filter(|node| with_nodes && node.token == id);
        let joined: Vec<NodeId> = joined.map(|node| node.id).collect();
        let mut decision = match joined.as_slice() {
            [] => Decision::nothing(Reply::Removed { containers: Vec::new(), nodes: 0 }),
            joined => self.remove_nodes(joined, now)?,
        };
        if !token.revoked {
            let revoked = Token { revoked: true, ..token.clone() };
            decision.changes.push(StateChange::Put(Row::Token(revoked)));
        }
        Ok(decision)
    }

    pub(super) fn remove_tokens(&self, ids: &[TokenId], now: Timestamp) -> Decision {
        let spent = |id: &&TokenId| self.token(id).is_some_and(|token| token.is_spent(now));
        let mut gone: Vec<TokenId> = ids.iter().filter(spent).copied().collect();
        gone.sort_unstable();
        gone.dedup();
        let changes = gone.into_iter().map(|id| StateChange::Remove(RowKey::Token(id))).collect();
        Decision { changes, reply: Reply::Done }
    }

    pub(super) fn join(
        &self,
        secret: Option<&TokenSecret>,
        id: NodeId,
        name: &Name,
        endpoints: &[SocketAddr],
        two_keys: bool,
        now: Timestamp,
    ) -> Result<Decision, Rejection> {
        check_endpoints(endpoints)?;
        if let Some(member) = self.node(&id) {
            let reply = Reply::Joined { name: member.name.clone() };
            if member.endpoints == endpoints && member.two_keys == two_keys {
                return Ok(Decision::nothing(reply));
            }
            let node = Node { endpoints: endpoints.to_vec(), two_keys, ..member.clone() };
            return Ok(Decision { changes: vec![StateChange::Put(Row::Node(node))], reply });
        }
        let secret = secret.ok_or(Rejection::UnknownNode { node: id })?;
        let token = self.token_by_hash(&secret.hash()).ok_or(Rejection::UnknownToken)?;
        check_token(token, now)?;
        if self.nodes().len() >= MAX_NODES {
            return Err(Rejection::Full { what: "nodes", bound: MAX_NODES });
        }
        let node = Node {
            id,
            name: self.free_node_name(name),
            endpoints: endpoints.to_vec(),
            lifetime: token.lifetime,
            token: token.id,
            joined: now,
            two_keys,
        };
        let reply = Reply::Joined { name: node.name.clone() };
        let used = Token { used: token.used.saturating_add(1), ..token.clone() };
        Ok(Decision {
            changes: vec![StateChange::Put(Row::Token(used)), StateChange::Put(Row::Node(node))],
            reply,
        })
    }

    pub(super) fn set_endpoints(&self, id: NodeId, endpoints: &[SocketAddr]) -> Result<Decision, Rejection> {
        check_endpoints(endpoints)?;
        let node = self.node(&id).ok_or(Rejection::UnknownNode { node: id })?;
        if node.endpoints == endpoints {
            return Ok(Decision::nothing(Reply::Done));
        }
        let node = Node { endpoints: endpoints.to_vec(), ..node.clone() };
        Ok(Decision { changes: vec![StateChange::Put(Row::Node(node))], reply: Reply::Done })
    }

    pub(super) fn remove_nodes(&self, ids: &[NodeId], now: Timestamp) -> Result<Decision, Rejection> {
        if let Some(unknown) = ids.iter().find(|id| self.node(id).is_none()) {
            return Err(Rejection::UnknownNode { node: *unknown });
        }
        let mut decision = self.remove_containers(ids.iter().flat_map(|id| self.containers_of(*id)), now);
        decision.changes.extend(self.drop_unserved_accesses(ids, now));
        decision.changes.extend(ids.iter().map(|id| StateChange::Remove(RowKey::Node(*id))));
        if let Reply::Removed { nodes, .. } = &mut decision.reply {
            *nodes = ids.len();
        }
        Ok(decision)
    }

    pub(super) fn collect(&self, absent: &[NodeId], now: Timestamp) -> Result<Decision, Rejection> {
        let ephemeral =
            |id: &NodeId| self.node(id).is_some_and(|node| node.lifetime == NodeLifetime::Ephemeral);
        let mut gone: Vec<NodeId> = absent.iter().copied().filter(ephemeral).collect();
        gone.sort_unstable();
        gone.dedup();
        if gone.is_empty() {
            return Ok(Decision::nothing(Reply::Removed { containers: Vec::new(), nodes: 0 }));
        }
        self.remove_nodes(&gone, now)
    }

    /// The name asked for, or with the lowest number from 2 on appended that makes it unique.
    fn free_node_name(&self, wanted: &Name) -> Name {
        if self.node_by_name(wanted).is_none() {
            return wanted.clone();
        }
        let candidates = (2u64..).filter_map(|number| {
            let suffix = format!("-{number}");
            let stem: String =
                wanted.as_str().chars().take(MAX_NAME_LEN.saturating_sub(suffix.len())).collect();
            format!("{}{suffix}", stem.trim_end_matches('-')).parse::<Name>().ok()
        });
        let mut free = candidates.filter(|name| self.node_by_name(name).is_none());
        free.next().unwrap_or_else(|| wanted.clone())
    }
}

fn check_endpoints(endpoints: &[SocketAddr]) -> Result<(), Rejection> {
    if endpoints.len() > MAX_ENDPOINTS {
        return Err(Rejection::TooManyEndpoints { got: endpoints.len() });
    }
    let unusable = endpoints.iter().find_map(|endpoint| Some((*endpoint, unusable_because(endpoint)?)));
    match unusable {
        Some((endpoint, why)) => Err(Rejection::UnusableEndpoint { endpoint, why }),
        None => Ok(()),
    }
}

/// Why no other node can send to an endpoint. All members would try, so nobody may name a group of receivers either.
fn unusable_because(endpoint: &SocketAddr) -> Option<&'static str> {
    let ip = endpoint.ip().to_canonical();
    match endpoint {
        _ if endpoint.port() == 0 => Some("port 0 is no port"),
        _ if ip.is_unspecified() => Some("it names no address; give the one at which others reach this node"),
        _ if ip.is_multicast() => Some("it is a multicast address"),
        _ if ip == IpAddr::V4(Ipv4Addr::BROADCAST) => Some("it is a broadcast address"),
        SocketAddr::V6(v6) if v6.scope_id() != 0 || v6.flowinfo() != 0 => {
            Some("a zone has a meaning on one machine only; give an address without one")
        }
        _ => None,
    }
}

impl Token {
    /// Whether it admits nobody any more: it was revoked or used up, or its time is over.
    pub fn is_spent(&self, now: Timestamp) -> bool {
        check_token(self, now).is_err()
    }
}

fn check_token(token: &Token, now: Timestamp) -> Result<(), Rejection> {
    if token.revoked {
        return Err(Rejection::RevokedToken { token: token.id });
    }
    if let Some(expired) = token.expires.filter(|expires| *expires <= now) {
        return Err(Rejection::ExpiredToken { token: token.id, expired });
    }
    match token.max_uses {
        Some(uses) if token.used >= uses => Err(Rejection::UsedUpToken { token: token.id, uses }),
        _ => Ok(()),
    }
}
