//! An agent's host: devices that do what they are told, if the step does not fail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use znet_core::plan::{Desired, DeviceKey, Observed, ObservedLink, ObservedService, Step, plan};

use crate::agent::Agent;
use crate::queue::{Event, Who};
use crate::world::World;

const MTU: u32 = 1420;
/// How long after a step that failed the agent looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Agent {
    /// How the devices of this node should be.
    pub(crate) fn desired(&self) -> BTreeMap<DeviceKey, Desired> {
        let routes: BTreeSet<IpNet> = self
            .member
            .map()
            .network()
            .into_iter()
            .flat_map(|record| [Some(IpNet::V6(record.prefix6)), record.prefix4.map(IpNet::V4)])
            .flatten()
            .collect();
        let network = self.member.network();
        let device = |record: &znet_core::map::ContainerRecord| {
            let addresses = record.addresses().collect();
            let public_key = self.pairs.get(&record.id).map_or(record.public_key, |pair| pair.key);
            let should = Desired { public_key, addresses, routes: routes.clone(), mtu: MTU };
            (DeviceKey { network, container: record.id }, should)
        };
        self.attachments.values().map(|(record, _)| device(record)).collect()
    }

    fn carry_out(&mut self, step: &Step, desired: &BTreeMap<DeviceKey, Desired>) {
        let device = self.host.entry(step.device()).or_default();
        let link = device.link.get_or_insert_default();
        match step {
            Step::Remove(_) => *device = Observed::default(),
            Step::MakeLink(_) => {}
            Step::Serve(key) => {
                device.service = desired.get(key).map(|should| ObservedService {
                    public_key: should.public_key,
                    addresses: should.addresses.clone(),
                    mtu: should.mtu,
                    gone: false,
                });
            }
            Step::RemoveAddress(_, address) => drop(link.addresses.remove(address)),
            Step::RemoveRoute(_, route) => drop(link.routes.remove(route)),
            Step::SetMtu(_, mtu) => link.mtu = *mtu,
            Step::SetUp(_) => link.up = true,
            Step::AddAddress(_, address) => drop(link.addresses.insert(*address)),
            Step::AddRoute(_, route) => drop(link.routes.insert(*route)),
        }
    }
}

impl World {
    /// Compares the host with what should be and carries out the plan for the difference. A step may fail, and then the agent
    /// crashes or looks again later.
    pub(crate) fn reconcile(&mut self, who: Who) {
        let desired = self.agents[who].desired();
        for step in plan(&desired, &self.agents[who].host) {
            if self.chance(self.scenario.step_fails) {
                self.note(|| format!("node {who} fails to {step}"));
                if self.chance(300) {
                    return self.crash_agent(who);
                }
                let life = self.agents[who].life;
                return self.queue.after(LOOK_AGAIN, Event::Reconcile { who, life });
            }
            self.agents[who].carry_out(&step, &desired);
        }
        self.agents[who].host.retain(|_, device| *device != Observed::default());
        self.one_address_each(who);
    }

    /// No two devices of a host have one address.
    fn one_address_each(&mut self, who: Who) {
        let links = self.agents[who].host.values().filter_map(|device| device.link.as_ref());
        let (mut seen, mut twice) = (BTreeSet::new(), None);
        for address in links.flat_map(|link: &ObservedLink| &link.addresses) {
            if !seen.insert(*address) {
                twice = Some(*address);
            }
        }
        if let Some(address) = twice {
            self.breach(format!("two devices of node {who} have {address}"));
        }
    }
}
