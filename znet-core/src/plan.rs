//! `desired + observed -> plan`, for the devices of one node.
//!
//! What should be (the map and the node's attachments) and what is (what netlink and the engine report) are compared as
//! levels, not as events: whatever happened before, carrying the plan out leads to what should be, and a plan made
//! after that is empty. A plan removes before it adds, and never touches a device that is as it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::id::{ContainerId, NetworkId};
use crate::key::PublicKey;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey {
    /// The network.
    pub network: NetworkId,
    /// The container.
    pub container: ContainerId,
}

/// How a device should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The container's public key.
    pub public_key: PublicKey,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The network's prefixes, each a route into the device.
    pub routes: BTreeSet<IpNet>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// The link as netlink reports it inside the container's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedLink {
    /// Its addresses, but for link-local ones, which are the kernel's.
    pub addresses: BTreeSet<IpAddr>,
    /// The routes into it that no address of its own explains.
    pub routes: BTreeSet<IpNet>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// The device as the engine reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedService {
    /// The public half of the key that it uses.
    pub public_key: PublicKey,
    /// The addresses that it takes for the container's own.
    pub addresses: BTreeSet<IpAddr>,
    /// The MTU that it was told.
    pub mtu: u32,
    /// Whether its TUN device has gone away with its namespace.
    pub gone: bool,
}

/// What there is of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The link; `None` when there is none of ours.
    pub link: Option<ObservedLink>,
    /// The engine's side; `None` when it does not serve the device.
    pub service: Option<ObservedService>,
}

/// One small step, harmless to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The engine stops serving the device, which removes the link as well: the TUN device ends with its descriptors.
    Remove(DeviceKey),
    /// A TUN device is made in the host's namespace, moved into the container's and renamed.
    MakeLink(DeviceKey),
    /// An address that is not the container's is taken off the link.
    RemoveAddress(DeviceKey, IpAddr),
    /// A route that is not the network's is taken off the link.
    RemoveRoute(DeviceKey, IpNet),
    /// The MTU is set.
    SetMtu(DeviceKey, u32),
    /// The link is set up.
    SetUp(DeviceKey),
    /// An address is put on the link.
    AddAddress(DeviceKey, IpAddr),
    /// A prefix is routed into the link.
    AddRoute(DeviceKey, IpNet),
    /// The engine serves the device, or learns its new key, addresses or MTU.
    Serve(DeviceKey),
}

impl Step {
    /// The device that the step is about.
    pub fn device(&self) -> DeviceKey {
        match self {
            Self::Remove(key)
            | Self::MakeLink(key)
            | Self::RemoveAddress(key, _)
            | Self::RemoveRoute(key, _)
            | Self::SetMtu(key, _)
            | Self::SetUp(key)
            | Self::AddAddress(key, _)
            | Self::AddRoute(key, _)
            | Self::Serve(key) => *key,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceKey { network, container } = self.device();
        match self {
            Self::Remove(_) => f.write_str("remove the device")?,
            Self::MakeLink(_) => f.write_str("make the link")?,
            Self::RemoveAddress(_, address) => write!(f, "remove address {address}")?,
            Self::RemoveRoute(_, route) => write!(f, "remove route {route}")?,
            Self::SetMtu(_, mtu) => write!(f, "set MTU {mtu}")?,
            Self::SetUp(_) => f.write_str("set the link up")?,
            Self::AddAddress(_, address) => write!(f, "add address {address}")?,
            Self::AddRoute(_, route) => write!(f, "add route {route}")?,
            Self::Serve(_) => f.write_str("serve the device")?,
        }
        write!(f, " of container {container} in network {network}")
    }
}

/// The steps from what is to what should be; empty when there is nothing to do.
pub fn plan(desired: &BTreeMap<DeviceKey, Desired>, observed: &BTreeMap<DeviceKey, Observed>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (key, is) in observed {
        let exists = is.link.is_some() || is.service.is_some();
        if !exists || (whole(is).is_some() && desired.contains_key(key)) {
            continue;
        }
        // Half a device cannot be mended: the descriptor and the link were made together.
        steps.push(Step::Remove(*key));
    }
    let whole_of = |key: &DeviceKey| observed.get(key).and_then(whole);
    for (key, should) in desired {
        if let Some((link, _)) = whole_of(key) {
            take_off(*key, should, link, &mut steps);
        }
    }
    for (key, should) in desired {
        match whole_of(key) {
            Some((link, service)) => {
                put_on(*key, should, link, &mut steps);
                if !serves(service, should) {
                    steps.push(Step::Serve(*key));
                }
            }
            None => {
                steps.push(Step::MakeLink(*key));
                put_on(*key, should, &ObservedLink::default(), &mut steps);
                steps.push(Step::Serve(*key));
            }
        }
    }
    steps
}

/// Both sides of a device that has both and works.
fn whole(is: &Observed) -> Option<(&ObservedLink, &ObservedService)> {
    is.link.as_ref().zip(is.service.as_ref().filter(|service| !service.gone))
}

fn serves(service: &ObservedService, should: &Desired) -> bool {
    service.public_key == should.public_key
        && service.addresses == should.addresses
        && service.mtu == should.mtu
}

fn take_off(key: DeviceKey, should: &Desired, link: &ObservedLink, steps: &mut Vec<Step>) {
    steps.extend(link.routes.difference(&should.routes).map(|route| Step::RemoveRoute(key, *route)));
    steps.extend(
        link.addresses.difference(&should.addresses).map(|address| Step::RemoveAddress(key, *address)),
    );
}

fn put_on(key: DeviceKey, should: &Desired, link: &ObservedLink, steps: &mut Vec<Step>) {
    if link.mtu != should.mtu {
        steps.push(Step::SetMtu(key, should.mtu));
    }
    if !link.up {
        steps.push(Step::SetUp(key));
    }
    steps.extend(should.addresses.difference(&link.addresses).map(|address| Step::AddAddress(key, *address)));
    steps.extend(should.routes.difference(&link.routes).map(|route| Step::AddRoute(key, *route)));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = DeviceKey> {
        (0u8..2, 0u64..4).prop_map(|(n, c)| DeviceKey {
            network: NetworkId::from_bytes([n; 16]),
            container: ContainerId::new(c),
        })
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        (0u8..4).prop_map(|n| IpAddr::from([10, 0, 0, n]))
    }

    fn route() -> impl Strategy<Value = IpNet> {
        (0u8..3).prop_map(|n| IpNet::new(IpAddr::from([10, n, 0, 0]), 16).unwrap())
    }

    fn desired() -> impl Strategy<Value = Desired> {
        (0u8..2, btree_set(address(), 1..3), btree_set(route(), 1..3), 1280u32..1283).prop_map(
            |(k, addresses, routes, mtu)| Desired {
                public_key: PublicKey::from_bytes([k; 32]),
                addresses,
                routes,
                mtu,
            },
        )
    }

    fn observed() -> impl Strategy<Value = Observed> {
        let link = (btree_set(address(), 0..3), btree_set(route(), 0..3), 1280u32..1283, any::<bool>())
            .prop_map(|(addresses, routes, mtu, up)| ObservedLink { addresses, routes, mtu, up });
        let service = (0u8..2, btree_set(address(), 0..3), 1280u32..1283, any::<bool>()).prop_map(
            |(k, addresses, mtu, gone)| ObservedService {
                public_key: PublicKey::from_bytes([k; 32]),
                addresses,
                mtu,
                gone,
            },
        );
        (proptest::option::of(link), proptest::option::of(service))
            .prop_map(|(link, service)| Observed { link, service })
    }

    /// A host that does what it is told, as the kernel and the engine would.
    fn carry_out(
        host: &mut BTreeMap<DeviceKey, Observed>,
        desired: &BTreeMap<DeviceKey, Desired>,
        step: &Step,
    ) {
        let device = host.entry(step.device()).or_default();
        let should = desired.get(&step.device());
        match step {
            Step::Remove(_) => *device = Observed::default(),
            Step::MakeLink(_) => {
                // The name of a link that is still there would be taken, and the engine would still serve the old one.
                assert_eq!(*device, Observed::default(), "{step}");
                device.link = Some(ObservedLink::default());
            }
            Step::Serve(_) => {
                let should = should.unwrap();
                device.service = Some(ObservedService {
                    public_key: should.public_key,
                    addresses: should.addresses.clone(),
                    mtu: should.mtu,
                    gone: false,
                });
            }
            Step::RemoveAddress(_, address) => drop(device.link.as_mut().unwrap().addresses.remove(address)),
            Step::RemoveRoute(_, route) => drop(device.link.as_mut().unwrap().routes.remove(route)),
            Step::SetMtu(_, mtu) => device.link.as_mut().unwrap().mtu = *mtu,
            Step::SetUp(_) => device.link.as_mut().unwrap().up = true,
            Step::AddAddress(_, address) => drop(device.link.as_mut().unwrap().addresses.insert(*address)),
            Step::AddRoute(_, route) => drop(device.link.as_mut().unwrap().routes.insert(*route)),
        }
    }

    proptest! {
        #[test]
        fn a_plan_carried_out_leaves_nothing_to_do_even_when_cut_short_and_made_anew(
            desired in btree_map(key(), desired(), 0..5),
            mut host in btree_map(key(), observed(), 0..5),
            cut in 0usize..12,
        ) {
            for step in plan(&desired, &host).iter().take(cut) {
                carry_out(&mut host, &desired, step);
            }
            for step in plan(&desired, &host) {
                carry_out(&mut host, &desired, &step);
            }
            prop_assert_eq!(plan(&desired, &host), vec![]);
            for (key, device) in &host {
                let Some(should) = desired.get(key) else {
                    prop_assert_eq!(device, &Observed::default());
                    continue;
                };
                let link = device.link.as_ref().unwrap();
                prop_assert_eq!(&link.addresses, &should.addresses);
                prop_assert_eq!(&link.routes, &should.routes);
                prop_assert_eq!((link.mtu, link.up), (should.mtu, true));
                prop_assert!(serves(device.service.as_ref().unwrap(), should));
            }
            prop_assert!(desired.keys().all(|key| host.contains_key(key)));
        }

        #[test]
        fn a_plan_removes_before_it_adds_and_each_of_its_steps_changes_something(
            desired in btree_map(key(), desired(), 0..5),
            mut host in btree_map(key(), observed(), 0..5),
        ) {
            let removes =
                |step: &Step| matches!(step, Step::Remove(_) | Step::RemoveAddress(..) | Step::RemoveRoute(..));
            let steps = plan(&desired, &host);
            let added = steps.iter().skip_while(|step| removes(step));
            prop_assert!(added.clone().all(|step| !removes(step)));
            for step in &steps {
                let before = host.clone();
                carry_out(&mut host, &desired, step);
                prop_assert_ne!(&host, &before, "{}", step);
            }
        }

        #[test]
        fn a_device_that_is_as_it_should_be_is_not_touched(
            desired in btree_map(key(), desired(), 1..5),
            other in btree_map(key(), observed(), 0..5),
        ) {
            let mut host = BTreeMap::new();
            for step in plan(&desired, &host.clone()) {
                carry_out(&mut host, &desired, &step);
            }
            let fine: BTreeSet<DeviceKey> = host.keys().copied().collect();
            for (key, device) in other {
                host.entry(key).or_insert(device);
            }
            for step in plan(&desired, &host) {
                prop_assert!(!fine.contains(&step.device()), "{}", step);
            }
        }
    }
}
