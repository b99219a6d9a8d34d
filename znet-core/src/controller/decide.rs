//! The decisions: what a command leads to, given the state. Nothing here changes anything.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use rand_core::CryptoRng;

use super::command::{Command, Reply, Settings};
use super::network::{MAX_CONTAINERS, MAX_RESERVATIONS, MAX_RESERVED_RANGES, Network};
use super::rejection::Rejection;
use super::rows::{Container, NetworkConf, Reservation, Resting, Row, RowKey, StateChange};
use crate::addr::ExplicitError;
use crate::id::{ContainerId, Epoch, NodeId};
use crate::key::{PrivateKey, PublicKey};
use crate::map::ContainerRecord;
use crate::name::Name;
use crate::time::Timestamp;

/// How many addresses whose rest is over one decision clears away: enough to keep up, too few to be felt.
const RESTED_CLEARED_AT_ONCE: usize = 16;

/// What a command leads to.
#[derive(Debug)]
pub struct Decision {
    /// What has to be committed before the reply may be sent; empty when everything was so already.
    pub changes: Vec<StateChange>,
    /// What to answer once it is committed.
    pub reply: Reply,
}

impl Decision {
    pub(super) fn nothing(reply: Reply) -> Self {
        Self { changes: Vec::new(), reply }
    }
}

impl Network {
    /// Decides one command. Nothing is changed; an empty list of changes means that all was so already.
    ///
    /// # Errors
    /// A [`Rejection`] that names what is wrong and what helps.
    pub fn decide<R: CryptoRng + ?Sized>(
        &self,
        command: &Command,
        now: Timestamp,
        rng: &mut R,
    ) -> Result<Decision, Rejection> {
        match command {
            Command::CreateToken { label, uses, expires, lifetime } => {
                self.create_token(label.as_ref(), *uses, *expires, *lifetime, now, rng)
            }
            Command::RevokeToken { token, with_nodes } => self.revoke_token(*token, *with_nodes, now),
            Command::RemoveTokens { tokens } => Ok(self.remove_tokens(tokens, now)),
            Command::Join { secret, node, name, endpoints, two_keys } => {
                self.join(secret.as_ref(), *node, name, endpoints, *two_keys, now)
            }
            Command::SetEndpoints { node, endpoints } => self.set_endpoints(*node, endpoints),
            Command::Attach { node, name, addresses, public_key, port } => {
                self.attach(*node, name, addresses, (*public_key, *port), now, rng)
            }
            Command::Detach { node, name } => Ok(match self.container_by_name(name) {
                // A person's access is taken away by operators alone.
                Some(container) if self.access(container.record.id).is_some() => {
                    Decision::nothing(Reply::Removed { containers: Vec::new(), nodes: 0 })
                }
                Some(container) if container.record.node == *node => self.remove_containers([container], now),
                _ => Decision::nothing(Reply::Removed { containers: Vec::new(), nodes: 0 }),
            }),
            Command::RemoveNode { node } => self.remove_nodes(&[*node], now),
            Command::RemoveContainer { name } => match self.container_by_name(name) {
                Some(container) => Ok(self.remove_containers([container], now)),
                None => Err(Rejection::UnknownContainer { name: name.clone() }),
            },
            Command::Reserve { name, addresses } => self.reserve(name, addresses, now),
            Command::Unreserve { name } => Ok(self.unreserve(name, now)),
            Command::CreateAccess { name, node, public_key, addresses } => {
                self.create_access(name, *node, *public_key, addresses, now)
            }
            Command::OfferAccess { node, name, point } => self.offer_access(*node, name, *point),
            Command::RevokeAccess { name } => self.revoke_access(name, now),
            Command::Configure(settings) => self.configure(settings),
            Command::ChangeControllers { add, remove, only, pins } => {
                self.change_controllers(add, remove, *only, pins)
            }
            Command::RotateKey { statement } => self.rotate_key(statement),
            Command::RetireKeys => Ok(self.retire_keys()),
            Command::RotateKeys { which } => self.rotate_keys(which, now),
            Command::OfferKey { node, name, public_key } => self.offer_key(*node, name, *public_key),
            Command::AdvanceKeys { ask, promote, settle } => Ok(self.advance_keys(ask, promote, settle, now)),
            Command::Collect { absent } => self.collect(absent, now),
            Command::NewEpoch => {
                let after = self.conf().epoch.get().saturating_add(1);
                let conf =
                    NetworkConf { epoch: Epoch::new(after.max(now.as_millis())), ..self.conf().clone() };
                Ok(Decision { changes: vec![StateChange::Put(Row::Network(conf))], reply: Reply::Done })
            }
        }
    }

    fn attach<R: CryptoRng + ?Sized>(
        &self,
        node: NodeId,
        name: &Name,
        addresses: &[IpAddr],
        (public_key, port): (Option<PublicKey>, Option<NonZeroU16>),
        now: Timestamp,
        rng: &mut R,
    ) -> Result<Decision, Rejection> {
        if self.node(&node).is_none() {
            return Err(Rejection::UnknownNode { node });
        }
        let (existing, access) = (self.container_by_name(name), self.access_by_name(name));
        let holders = [existing.map(|c| c.record.node), access.map(|access| access.record.node)];
        if let Some(holder) = holders.into_iter().flatten().find(|holder| *holder != node) {
            return Err(self.name_taken(name, holder));
        }
        // An access point has the addresses that the person's device was told.
        let addresses = if access.is_some() { &[] } else { addresses };
        if let Some(public_key) = public_key.filter(|key| !key.is_usable()) {
            return Err(Rejection::UnusableKey { public_key });
        }
        let holder = public_key.and_then(|key| self.container_by_key(&key));
        if let Some(holder) = holder.filter(|holder| holder.record.name != *name) {
            return Err(Rejection::KeyTaken { holder: holder.record.name.clone() });
        }
        if let Some(holder) = public_key.and_then(|key| self.access_by_key(&key)) {
            return Err(Rejection::KeyTaken { holder: holder.record.name.clone() });
        }
        if existing.is_none() && self.containers().len() >= MAX_CONTAINERS {
            return Err(Rejection::Full { what: "containers", bound: MAX_CONTAINERS });
        }
        let held: Vec<IpAddr> = match (existing, access, self.reservation(name)) {
            (Some(container), _, _) => container.record.addresses().collect(),
            (None, Some(access), _) => access.record.addresses().collect(),
            (None, None, Some(reservation)) => reservation.addresses.clone(),
            (None, None, None) => Vec::new(),
        };
        let chosen = self.choose_addresses(name, addresses, &held, now)?;
        let (public_key, private_key) = match public_key {
            Some(public_key) => (public_key, None),
            None => {
                let private_key = PrivateKey::generate(rng);
                (private_key.public_key(), Some(private_key))
            }
        };
        let given = existing.map(|container| container.record.id).or(access.map(|access| access.record.id));
        let id = given.unwrap_or(self.conf().next_container);
        let mut record = ContainerRecord { port, ..record_of(id, name, node, public_key, &chosen) };
        let mut keyed = existing.map(|_| now);
        if let Some(old) = existing.filter(|old| old.record.public_key == public_key) {
            // The pair that it has: a change of it that is under way goes on.
            (record.also_key, record.rekey, keyed) = (old.record.also_key, old.record.rekey, old.keyed);
        }
        let attached = existing.map_or(now, |c| c.attached);
        let container = Container { attached, keyed, record: record.clone() };
        let reply = Reply::Attached { container: record, private_key };
        if existing == Some(&container) {
            return Ok(Decision::nothing(reply));
        }
        let mut changes = self.end_rests(&chosen, now);
        if given.is_none() {
            changes.push(self.next_container_given());
        }
        changes.push(StateChange::Put(Row::Container(container)));
        // After the container has let go of them: what somebody has cannot rest.
        let old = existing.into_iter().flat_map(|old| old.record.addresses());
        changes.extend(self.rest_released(name, old.filter(|address| !chosen.contains(address)), now));
        Ok(Decision { changes, reply })
    }

    /// Notes that the next identifier of a container was given away.
    pub(super) fn next_container_given(&self) -> StateChange {
        let next = ContainerId::new(self.conf().next_container.get().saturating_add(1));
        StateChange::Put(Row::Network(NetworkConf { next_container: next, ..self.conf().clone() }))
    }

    pub(super) fn name_taken(&self, name: &Name, holder: NodeId) -> Rejection {
        let node = self.node(&holder).map_or_else(|| name.clone(), |node| node.name.clone());
        Rejection::NameTaken { name: name.clone(), node }
    }

    /// One address of each family that the network has: the explicit one, else the one held, else the lowest free. What
    /// the name's own container or reservation has, it may have in both roles.
    pub(super) fn choose_addresses(
        &self,
        name: &Name,
        explicit: &[IpAddr],
        held: &[IpAddr],
        now: Timestamp,
    ) -> Result<Vec<IpAddr>, Rejection> {
        for family in [true, false] {
            if explicit.iter().filter(|address| address.is_ipv4() == family).count() > 1 {
                return Err(Rejection::TooManyAddresses { family: if family { "IPv4" } else { "IPv6" } });
            }
        }
        for address in explicit {
            if !self.pools().iter().any(|pool| pool.prefix().contains(address)) {
                return Err(Rejection::OutsidePrefix { address: *address });
            }
        }
        let mut chosen = Vec::with_capacity(2);
        for pool in self.pools() {
            let same_family = |address: &&IpAddr| address.is_ipv4() == pool.prefix().addr().is_ipv4();
            let wanted = explicit.iter().find(same_family).copied();
            let kept = held.iter().find(same_family).copied();
            let address = match (wanted, kept) {
                (None, Some(kept)) => kept,
                (Some(wanted), _) if self.holder(&wanted) == Some(name) => wanted,
                (Some(wanted), _) => {
                    pool.check_explicit(wanted, now)
                        .map_err(|error| self.explicit_rejection(wanted, error, name))?;
                    wanted
                }
                (None, None) => {
                    pool.lowest_free(now).ok_or(Rejection::Exhausted { prefix: pool.prefix() })?
                }
            };
            chosen.push(address);
        }
        Ok(chosen)
    }

    fn explicit_rejection(&self, address: IpAddr, error: ExplicitError, asking: &Name) -> Rejection {
        match error {
            ExplicitError::Outside => Rejection::OutsidePrefix { address },
            ExplicitError::Unusable => Rejection::UnusableAddress { address },
            ExplicitError::Resting(until) => Rejection::AddressResting { address, until },
            ExplicitError::Taken => {
                Rejection::AddressTaken { address, holder: self.holder(&address).unwrap_or(asking).clone() }
            }
        }
    }

    /// Removes containers, with the access points of which they are the far end; their addresses rest, but for those that
    /// a reservation keeps.
    pub(super) fn remove_containers<'a>(
        &self,
        containers: impl IntoIterator<Item = &'a Container>,
        now: Timestamp,
    ) -> Decision {
        let mut changes = self.end_rests(&[], now);
        let mut removed = Vec::new();
        for container in containers {
            let record = &container.record;
            changes.push(StateChange::Remove(RowKey::Container(record.id)));
            if self.access(record.id).is_some() {
                changes.push(StateChange::Remove(RowKey::Access(record.id)));
            }
            changes.extend(self.rest_released(&record.name, record.addresses(), now));
            removed.push(record.id);
        }
        Decision { changes, reply: Reply::Removed { containers: removed, nodes: 0 } }
    }

    fn reserve(&self, name: &Name, addresses: &[IpAddr], now: Timestamp) -> Result<Decision, Rejection> {
        let old = self.reservation(name);
        if old.is_none() && self.reservations().len() >= MAX_RESERVATIONS {
            return Err(Rejection::Full { what: "reservations", bound: MAX_RESERVATIONS });
        }
        let in_use = self.in_use(name);
        let held = old.map_or_else(|| in_use.clone(), |reservation| reservation.addresses.clone());
        let chosen = self.choose_addresses(name, addresses, &held, now)?;
        let reservation = Reservation { name: name.clone(), addresses: chosen.clone() };
        let reply = Reply::Reserved(reservation.clone());
        if old == Some(&reservation) {
            return Ok(Decision::nothing(reply));
        }
        let given_up = old.into_iter().flat_map(|r| r.addresses.clone());
        let given_up = given_up.filter(|address| !chosen.contains(address) && !in_use.contains(address));
        let mut changes = self.end_rests(&chosen, now);
        changes.push(StateChange::Put(Row::Reservation(reservation)));
        changes.extend(self.let_rest(given_up, now));
        Ok(Decision { changes, reply })
    }

    fn unreserve(&self, name: &Name, now: Timestamp) -> Decision {
        let Some(reservation) = self.reservation(name) else { return Decision::nothing(Reply::Done) };
        let in_use = self.in_use(name);
        let mut changes = vec![StateChange::Remove(RowKey::Reservation(name.clone()))];
        changes.extend(
            self.let_rest(reservation.addresses.iter().copied().filter(|a| !in_use.contains(a)), now),
        );
        Decision { changes, reply: Reply::Done }
    }

    fn configure(&self, settings: &Settings) -> Result<Decision, Rejection> {
        if let Some(lifetime) = settings.key_lifetime {
            super::rotation::check_lifetime(lifetime)?;
        }
        let mut conf = self.conf().clone();
        conf.set(settings);
        check_reserved(&conf)?;
        let same = conf == *self.conf();
        let changes = if same { Vec::new() } else { vec![StateChange::Put(Row::Network(conf))] };
        Ok(Decision { changes, reply: Reply::Done })
    }

    pub(super) fn rest_released<'a>(
        &'a self,
        name: &'a Name,
        released: impl Iterator<Item = IpAddr> + 'a,
        now: Timestamp,
    ) -> impl Iterator<Item = StateChange> + 'a {
        let reserved = self.reservation(name).map(|r| r.addresses.as_slice()).unwrap_or_default();
        self.let_rest(released.filter(|address| !reserved.contains(address)), now)
    }

    fn let_rest<'a>(
        &'a self,
        released: impl Iterator<Item = IpAddr> + 'a,
        now: Timestamp,
    ) -> impl Iterator<Item = StateChange> + 'a {
        let until = now.plus(self.conf().rest());
        released.map(move |address| StateChange::Put(Row::Resting(Resting { address, until })))
    }

    /// Ends the rest of addresses that are given away now, as an address is held or rests, never both; and of a few whose
    /// rest is over, so that the store does not keep them for ever.
    pub(super) fn end_rests(&self, chosen: &[IpAddr], now: Timestamp) -> Vec<StateChange> {
        let rested = self.pools().iter().flat_map(|pool| pool.rested(now).take(RESTED_CLEARED_AT_ONCE));
        let given = chosen.iter().copied().filter(|address| self.rests(address));
        let ended: BTreeSet<IpAddr> = rested.chain(given).collect();
        ended.into_iter().map(|address| StateChange::Remove(RowKey::Resting(address))).collect()
    }
}

/// Refuses reserved ranges that overlap each other or lie outside the prefixes.
pub(super) fn check_reserved(conf: &NetworkConf) -> Result<(), Rejection> {
    if conf.reserved.len() > MAX_RESERVED_RANGES {
        return Err(Rejection::Full { what: "reserved ranges", bound: MAX_RESERVED_RANGES });
    }
    crate::addr::check_disjoint(&conf.reserved)?;
    let prefixes = [Some(IpNet::V6(conf.prefix6)), conf.prefix4.map(IpNet::V4)];
    for range in &conf.reserved {
        if !prefixes.iter().flatten().any(|prefix| prefix.contains(range)) {
            return Err(Rejection::ReservedOutside { range: *range });
        }
    }
    Ok(())
}

fn record_of(
    id: ContainerId,
    name: &Name,
    node: NodeId,
    public_key: PublicKey,
    chosen: &[IpAddr],
) -> ContainerRecord {
    let address6 = chosen.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
    let address4 = chosen.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
    ContainerRecord {
        id,
        name: name.clone(),
        node,
        public_key,
        // Every network has an IPv6 prefix, so one was chosen.
        address6: address6.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED),
        address4,
        also_key: None,
        rekey: false,
        port: None,
    }
}
