//! Decisions about access points: devices of persons that a node lets into the network as containers.
//!
//! An access point is made in two steps, as its node has to take part: an operator names node and device, and the
//! addresses are fixed; the node then attaches a container of that name, whose identifier was given already, and tells
//! where it serves the device. Both go together, whoever takes them away.

use std::net::IpAddr;

use super::command::Reply;
use super::decide::Decision;
use super::network::Network;
use super::rejection::Rejection;
use super::rows::{Access, AccessPoint, Row, RowKey, StateChange};
use crate::id::NodeId;
use crate::key::PublicKey;
use crate::map::AccessRecord;
use crate::name::Name;
use crate::time::Timestamp;

/// Most access points of one network: people have devices by the dozen, and every member learns of each.
pub const MAX_ACCESSES: usize = 10_000;

impl Network {
    pub(super) fn create_access(
        &self,
        name: &Name,
        node: NodeId,
        public_key: PublicKey,
        addresses: &[IpAddr],
        now: Timestamp,
    ) -> Result<Decision, Rejection> {
        if self.node(&node).is_none() {
            return Err(Rejection::UnknownNode { node });
        }
        if !public_key.is_usable() {
            return Err(Rejection::UnusableKey { public_key });
        }
        if let Some(existing) = self.access_by_name(name) {
            let record = &existing.record;
            let same = record.node == node
                && record.public_key == public_key
                && addresses.iter().all(|wanted| record.addresses().any(|address| address == *wanted));
            if same {
                return Ok(Decision::nothing(Reply::Access(existing.clone())));
            }
            return Err(self.name_taken(name, record.node));
        }
        if let Some(container) = self.container_by_name(name) {
            return Err(self.name_taken(name, container.record.node));
        }
        let holder = self.container_by_key(&public_key).map(|container| &container.record.name);
        let holder = holder.or(self.access_by_key(&public_key).map(|access| &access.record.name));
        if let Some(holder) = holder {
            return Err(Rejection::KeyTaken { holder: holder.clone() });
        }
        if self.accesses().len() >= MAX_ACCESSES {
            return Err(Rejection::Full { what: "access points", bound: MAX_ACCESSES });
        }
        let held = self.reservation(name).map(|reservation| reservation.addresses.clone());
        let chosen = self.choose_addresses(name, addresses, &held.unwrap_or_default(), now)?;
        let address6 = chosen.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
        let address4 = chosen.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
        let record = AccessRecord {
            id: self.conf().next_container,
            name: name.clone(),
            node,
            public_key,
            // Every network has an IPv6 prefix, so one was chosen.
            address6: address6.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED),
            address4,
        };
        let access = Access { record, point: None, created: now };
        let mut changes = self.end_rests(&chosen, now);
        changes.push(self.next_container_given());
        changes.push(StateChange::Put(Row::Access(access.clone())));
        Ok(Decision { changes, reply: Reply::Access(access) })
    }

    pub(super) fn offer_access(
        &self,
        node: NodeId,
        name: &Name,
        point: AccessPoint,
    ) -> Result<Decision, Rejection> {
        let access = self.access_by_name(name).filter(|access| access.record.node == node);
        let access = access.ok_or_else(|| Rejection::UnknownAccess { name: name.clone() })?;
        if !point.public_key.is_usable() {
            return Err(Rejection::UnusableKey { public_key: point.public_key });
        }
        if point.port == 0 {
            return Err(Rejection::UnusablePort);
        }
        let offered = Access { point: Some(point), ..access.clone() };
        let changes = if offered == *access {
            Vec::new()
        } else {
            vec![StateChange::Put(Row::Access(offered.clone()))]
        };
        Ok(Decision { changes, reply: Reply::Access(offered) })
    }

    pub(super) fn revoke_access(&self, name: &Name, now: Timestamp) -> Result<Decision, Rejection> {
        let access =
            self.access_by_name(name).ok_or_else(|| Rejection::UnknownAccess { name: name.clone() })?;
        if let Some(container) = self.container_by_name(name) {
            return Ok(self.remove_containers([container], now));
        }
        let mut changes = self.end_rests(&[], now);
        changes.extend(self.drop_access(access, now));
        Ok(Decision { changes, reply: Reply::Removed { containers: Vec::new(), nodes: 0 } })
    }

    /// Takes away the access points of nodes that are removed, but for those that go with their containers.
    pub(super) fn drop_unserved_accesses(&self, nodes: &[NodeId], now: Timestamp) -> Vec<StateChange> {
        let theirs = self.accesses().filter(|access| nodes.contains(&access.record.node));
        let unserved = theirs.filter(|access| self.container_by_name(&access.record.name).is_none());
        unserved.flat_map(|access| self.drop_access(access, now)).collect()
    }

    /// The access point of a device with this key. There are few, so all are looked at.
    pub(super) fn access_by_key(&self, key: &PublicKey) -> Option<&Access> {
        self.accesses().find(|access| access.record.public_key == *key)
    }

    fn drop_access(&self, access: &Access, now: Timestamp) -> Vec<StateChange> {
        let record = &access.record;
        let removed = StateChange::Remove(RowKey::Access(record.id));
        std::iter::once(removed).chain(self.rest_released(&record.name, record.addresses(), now)).collect()
    }
}
