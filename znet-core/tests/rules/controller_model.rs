//! A controller as a beginner would write it: plain maps, and every question answered by looking at everything.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use znet_core::controller::{NodeLifetime, TokenSecret};
use znet_core::id::{NodeId, TokenId};
use znet_core::key::PublicKey;
use znet_core::name::Name;
use znet_core::time::Timestamp;

/// The code of a rejection.
pub(crate) type Code = &'static str;

#[derive(Clone, Debug)]
pub(crate) struct ModelToken {
    pub(crate) secret: TokenSecret,
    pub(crate) label: Option<Name>,
    pub(crate) uses_left: Option<u32>,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) lifetime: NodeLifetime,
    pub(crate) revoked: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelNode {
    pub(crate) name: Name,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) lifetime: NodeLifetime,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelContainer {
    pub(crate) node: NodeId,
    pub(crate) addresses: Vec<IpAddr>,
    /// Known when the node made the pair.
    pub(crate) key: Option<PublicKey>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelAccess {
    pub(crate) node: NodeId,
    pub(crate) key: PublicKey,
    pub(crate) addresses: Vec<IpAddr>,
    /// Key and port of the node's end, once it was told.
    pub(crate) point: Option<(PublicKey, u16)>,
}

/// The state, and the same decisions as the real one's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) prefixes: Vec<IpNet>,
    pub(crate) reserved: Vec<IpNet>,
    pub(crate) rest_millis: u64,
    pub(crate) tokens: BTreeMap<TokenId, ModelToken>,
    pub(crate) nodes: BTreeMap<NodeId, ModelNode>,
    pub(crate) containers: BTreeMap<Name, ModelContainer>,
    pub(crate) reservations: BTreeMap<Name, Vec<IpAddr>>,
    pub(crate) accesses: BTreeMap<Name, ModelAccess>,
    pub(crate) resting: BTreeMap<IpAddr, Timestamp>,
}

impl Model {
    pub(crate) fn create_token(&self, label: Option<&Name>) -> Result<(), Code> {
        let taken = |token: &ModelToken| label.is_some() && token.label.as_ref() == label && !token.revoked;
        if self.tokens.values().any(taken) { Err("label_taken") } else { Ok(()) }
    }

    pub(crate) fn revoke(&mut self, id: &TokenId) -> Result<(), Code> {
        self.tokens.get_mut(id).ok_or("no_such_token")?.revoked = true;
        Ok(())
    }

    pub(crate) fn join(
        &mut self,
        secret: Option<&TokenSecret>,
        id: NodeId,
        name: &Name,
        endpoints: &[SocketAddr],
        now: Timestamp,
    ) -> Result<Name, Code> {
        check_endpoints(endpoints)?;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.endpoints = endpoints.to_vec();
            return Ok(node.name.clone());
        }
        let secret = secret.ok_or("unknown_node")?;
        let mut tokens = self.tokens.values_mut();
        let token =
            tokens.find(|token| *token.secret.to_bytes() == *secret.to_bytes()).ok_or("unknown_token")?;
        match token {
            ModelToken { revoked: true, .. } => return Err("revoked_token"),
            ModelToken { expires: Some(expires), .. } if *expires <= now => return Err("expired_token"),
            ModelToken { uses_left: Some(0), .. } => return Err("used_up_token"),
            ModelToken { uses_left: Some(left), .. } => *left -= 1,
            _ => {}
        }
        let lifetime = token.lifetime;
        let others: Vec<&Name> = self.nodes.values().map(|node| &node.name).collect();
        let numbered = (2..).map(|n| format!("{name}-{n}").parse().unwrap());
        let name =
            std::iter::once(name.clone()).chain(numbered).find(|name| !others.contains(&name)).unwrap();
        self.nodes.insert(id, ModelNode { name: name.clone(), endpoints: endpoints.to_vec(), lifetime });
        Ok(name)
    }

    pub(crate) fn set_endpoints(&mut self, id: NodeId, endpoints: &[SocketAddr]) -> Result<(), Code> {
        check_endpoints(endpoints)?;
        self.nodes.get_mut(&id).ok_or("unknown_node")?.endpoints = endpoints.to_vec();
        Ok(())
    }

    pub(crate) fn attach(
        &mut self,
        node: NodeId,
        name: &Name,
        explicit: &[IpAddr],
        key: Option<PublicKey>,
        now: Timestamp,
    ) -> Result<Vec<IpAddr>, Code> {
        if !self.nodes.contains_key(&node) {
            return Err("unknown_node");
        }
        let existing = self.containers.get(name).cloned();
        if existing.as_ref().is_some_and(|container| container.node != node) {
            return Err("name_taken");
        }
        let access = self.accesses.get(name);
        if access.is_some_and(|access| access.node != node) {
            return Err("name_taken");
        }
        if key.is_some_and(|key| key.as_bytes() == &[0; 32]) {
            return Err("unusable_key");
        }
        if self.accesses.values().any(|access| Some(access.key) == key) {
            return Err("key_taken");
        }
        if key.is_some() && self.containers.iter().any(|(other, c)| other != name && c.key == key) {
            return Err("key_taken");
        }
        let (explicit, held) = match (&existing, access) {
            (_, Some(access)) => (&[] as &[IpAddr], access.addresses.clone()),
            (Some(container), None) => (explicit, container.addresses.clone()),
            (None, None) => (explicit, self.reservations.get(name).cloned().unwrap_or_default()),
        };
        let addresses = self.choose(name, explicit, &held, now)?;
        self.containers.insert(name.clone(), ModelContainer { node, addresses: addresses.clone(), key });
        self.settle(existing.into_iter().flat_map(|container| container.addresses), now);
        Ok(addresses)
    }

    pub(crate) fn reserve(
        &mut self,
        name: &Name,
        explicit: &[IpAddr],
        now: Timestamp,
    ) -> Result<Vec<IpAddr>, Code> {
        let old = self.reservations.get(name).cloned();
        let of_access = || self.accesses.get(name).map(|access| access.addresses.clone());
        let of_container = || self.containers.get(name).map(|container| container.addresses.clone());
        let held = old.clone().or_else(of_container).or_else(of_access).unwrap_or_default();
        let addresses = self.choose(name, explicit, &held, now)?;
        self.reservations.insert(name.clone(), addresses.clone());
        self.settle(old.into_iter().flatten(), now);
        Ok(addresses)
    }

    pub(crate) fn unreserve(&mut self, name: &Name, now: Timestamp) {
        let old = self.reservations.remove(name);
        self.settle(old.into_iter().flatten(), now);
    }

    pub(crate) fn remove_container(&mut self, name: &Name, now: Timestamp) {
        let Some(old) = self.containers.remove(name) else { return };
        self.remove_access(name, now);
        self.settle(old.addresses.into_iter(), now);
    }

    fn remove_access(&mut self, name: &Name, now: Timestamp) {
        let old = self.accesses.remove(name);
        self.settle(old.into_iter().flat_map(|access| access.addresses), now);
    }

    pub(crate) fn create_access(
        &mut self,
        name: &Name,
        node: NodeId,
        key: PublicKey,
        explicit: &[IpAddr],
        now: Timestamp,
    ) -> Result<Vec<IpAddr>, Code> {
        if !self.nodes.contains_key(&node) {
            return Err("unknown_node");
        }
        if key.as_bytes() == &[0; 32] {
            return Err("unusable_key");
        }
        if let Some(access) = self.accesses.get(name) {
            let same = access.node == node && access.key == key;
            let same = same && explicit.iter().all(|address| access.addresses.contains(address));
            return if same { Ok(access.addresses.clone()) } else { Err("name_taken") };
        }
        if self.containers.contains_key(name) {
            return Err("name_taken");
        }
        let of_containers = self.containers.values().any(|container| container.key == Some(key));
        if of_containers || self.accesses.values().any(|access| access.key == key) {
            return Err("key_taken");
        }
        let held = self.reservations.get(name).cloned().unwrap_or_default();
        let addresses = self.choose(name, explicit, &held, now)?;
        let access = ModelAccess { node, key, addresses: addresses.clone(), point: None };
        self.accesses.insert(name.clone(), access);
        self.settle(std::iter::empty(), now);
        Ok(addresses)
    }

    pub(crate) fn offer_access(
        &mut self,
        node: NodeId,
        name: &Name,
        point: (PublicKey, u16),
    ) -> Result<(), Code> {
        let access = self.accesses.get_mut(name).filter(|access| access.node == node);
        let access = access.ok_or("unknown_access")?;
        match point {
            (key, _) if key.as_bytes() == &[0; 32] => Err("unusable_key"),
            (_, 0) => Err("unusable_port"),
            point => {
                access.point = Some(point);
                Ok(())
            }
        }
    }

    pub(crate) fn revoke_access(&mut self, name: &Name, now: Timestamp) -> Result<(), Code> {
        if !self.accesses.contains_key(name) {
            return Err("unknown_access");
        }
        self.remove_container(name, now);
        self.remove_access(name, now);
        Ok(())
    }

    pub(crate) fn remove_node(&mut self, node: &NodeId, now: Timestamp) -> Result<(), Code> {
        self.nodes.remove(node).ok_or("unknown_node")?;
        let on_it: Vec<Name> =
            self.containers.iter().filter(|(_, c)| c.node == *node).map(|(name, _)| name.clone()).collect();
        on_it.iter().for_each(|name| self.remove_container(name, now));
        let unserved: Vec<Name> =
            self.accesses.iter().filter(|(_, a)| a.node == *node).map(|(name, _)| name.clone()).collect();
        unserved.iter().for_each(|name| self.remove_access(name, now));
        Ok(())
    }

    pub(crate) fn collect(&mut self, absent: &[NodeId], now: Timestamp) {
        for node in absent {
            if self.nodes.get(node).is_some_and(|n| n.lifetime == NodeLifetime::Ephemeral) {
                self.remove_node(node, now).unwrap();
            }
        }
    }

    pub(crate) fn configure(
        &mut self,
        reserved: Option<&[IpNet]>,
        rest_millis: Option<u64>,
    ) -> Result<(), Code> {
        let rest_millis = rest_millis.unwrap_or(self.rest_millis);
        let reserved = reserved.map_or_else(|| self.reserved.clone(), <[IpNet]>::to_vec);
        for (n, range) in reserved.iter().enumerate() {
            if reserved.iter().skip(n + 1).any(|other| range.contains(other) || other.contains(range)) {
                return Err("overlapping_prefixes");
            }
        }
        if !reserved.iter().all(|range| self.prefixes.iter().any(|prefix| prefix.contains(range))) {
            return Err("reserved_outside");
        }
        (self.reserved, self.rest_millis) = (reserved, rest_millis);
        Ok(())
    }

    pub(crate) fn holder(&self, address: IpAddr) -> Option<&Name> {
        let containers = self.containers.iter().map(|(name, container)| (name, &container.addresses));
        let accesses = self.accesses.iter().map(|(name, access)| (name, &access.addresses));
        let mut all = containers.chain(&self.reservations).chain(accesses);
        all.find(|(_, addresses)| addresses.contains(&address)).map(|(name, _)| name)
    }

    /// What was let go of and has no other holder rests; what somebody has does not.
    fn settle(&mut self, let_go: impl Iterator<Item = IpAddr>, now: Timestamp) {
        let until = Timestamp::from_millis(now.as_millis() + self.rest_millis);
        for address in let_go.collect::<Vec<_>>() {
            if self.holder(address).is_none() {
                self.resting.insert(address, until);
            }
        }
        let held: Vec<IpAddr> = self.resting.keys().copied().filter(|a| self.holder(*a).is_some()).collect();
        self.resting.retain(|address, _| !held.contains(address));
    }

    fn rests(&self, address: IpAddr, now: Timestamp) -> bool {
        self.resting.get(&address).is_some_and(|until| *until > now)
    }

    fn choose(
        &self,
        name: &Name,
        explicit: &[IpAddr],
        held: &[IpAddr],
        now: Timestamp,
    ) -> Result<Vec<IpAddr>, Code> {
        let of_family = |addresses: &[IpAddr], prefix: &IpNet| -> Vec<IpAddr> {
            addresses.iter().copied().filter(|a| a.is_ipv4() == prefix.addr().is_ipv4()).collect()
        };
        if self.prefixes.iter().any(|prefix| of_family(explicit, prefix).len() > 1) {
            return Err("too_many_addresses");
        }
        if !explicit.iter().all(|address| self.prefixes.iter().any(|prefix| prefix.contains(address))) {
            return Err("outside_prefix");
        }
        let mut chosen = Vec::new();
        for prefix in &self.prefixes {
            let own = |a: IpAddr| a == prefix.network() || (a.is_ipv4() && a == prefix.broadcast());
            let address = match (of_family(explicit, prefix).first(), of_family(held, prefix).first()) {
                (Some(wanted), _) => match self.holder(*wanted) {
                    _ if own(*wanted) => return Err("unusable_address"),
                    Some(holder) if holder != name => return Err("address_taken"),
                    None if self.rests(*wanted, now) => return Err("address_resting"),
                    _ => *wanted,
                },
                (None, Some(held)) => *held,
                (None, None) => {
                    let free = |a: &IpAddr| {
                        !own(*a)
                            && self.holder(*a).is_none()
                            && !self.rests(*a, now)
                            && !self.reserved.iter().any(|range| range.contains(a))
                    };
                    prefix.hosts().take(200).find(free).ok_or("exhausted")?
                }
            };
            chosen.push(address);
        }
        Ok(chosen)
    }
}

fn check_endpoints(endpoints: &[SocketAddr]) -> Result<(), Code> {
    match endpoints {
        _ if endpoints.len() > 8 => Err("too_many_endpoints"),
        _ if endpoints.iter().any(|endpoint| endpoint.port() == 0) => Err("unusable_endpoint"),
        _ => Ok(()),
    }
}
