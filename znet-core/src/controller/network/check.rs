//! Whether stored rows fit each other: a state that contradicts itself is refused before anything is decided on it.

use std::net::IpAddr;

use super::{Corrupt, Network};
use crate::controller::rows::Container;
use crate::id::{ContainerId, NodeId};
use crate::name::Name;

impl Network {
    /// Finds what no sequence of decisions can have made.
    pub(super) fn check(&self) -> Result<(), Corrupt> {
        let corrupt = |what: String| Err(Corrupt { what });
        let count = self.containers.len();
        if self.container_by_name.len() != count {
            return corrupt("two containers have one name".to_owned());
        }
        if self.container_by_key.len() != self.containers.values().flat_map(|c| c.record.keys()).count() {
            return corrupt("two containers have one public key".to_owned());
        }
        if self.node_by_name.len() != self.nodes.len() {
            return corrupt("two nodes have one name".to_owned());
        }
        if self.token_by_hash.len() != self.tokens.len() {
            return corrupt("two tokens have one secret".to_owned());
        }
        for container in self.containers.values() {
            let record = &container.record;
            self.check_placed(&format!("container {}", record.name), record.id, record.node)?;
            self.check_held(&record.name, record.addresses())?;
        }
        self.check_accesses()?;
        if let Some(address) = self.resting.keys().find(|address| self.holders.contains_key(*address)) {
            return corrupt(format!("address {address} is held and rests"));
        }
        for reservation in self.reservations.values() {
            self.check_held(&reservation.name, reservation.addresses.iter().copied())?;
        }
        Ok(())
    }

    fn check_accesses(&self) -> Result<(), Corrupt> {
        let corrupt = |what: String| Err(Corrupt { what });
        if self.access_by_name.len() != self.accesses.len() {
            return corrupt("two access points have one name".to_owned());
        }
        for record in self.accesses.values().map(|access| &access.record) {
            self.check_placed(&format!("access point {}", record.name), record.id, record.node)?;
            let theirs = [self.containers.get(&record.id), self.container_by_name(&record.name)];
            let foreign = |container: &&Container| {
                let seen = &container.record;
                (seen.id, &seen.name, seen.node) != (record.id, &record.name, record.node)
            };
            if theirs.into_iter().flatten().any(|container| foreign(&container)) {
                return corrupt(format!("access point {} and its container are not one", record.name));
            }
            self.check_held(&record.name, record.addresses())?;
        }
        Ok(())
    }

    /// Whatever is on a node, under an identifier.
    fn check_placed(&self, what: &str, id: ContainerId, node: NodeId) -> Result<(), Corrupt> {
        if !self.nodes.contains_key(&node) {
            return Err(Corrupt { what: format!("{what} is on node {node}, which is no member") });
        }
        if id >= self.conf.next_container {
            return Err(Corrupt { what: format!("{what} has an identifier that was not given yet") });
        }
        Ok(())
    }

    fn check_held(&self, name: &Name, addresses: impl Iterator<Item = IpAddr>) -> Result<(), Corrupt> {
        for address in addresses {
            if self.holders.get(&address) != Some(name) {
                return Err(Corrupt { what: format!("address {address} of {name} is another's too") });
            }
            if !self.pools.iter().any(|pool| pool.prefix().contains(&address)) {
                return Err(Corrupt { what: format!("address {address} of {name} is outside the prefixes") });
            }
        }
        Ok(())
    }
}
