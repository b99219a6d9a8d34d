//! What people want of the network, and what goes wrong meanwhile.

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use znet_core::controller::Command;

use crate::calls::What;
use crate::controller::Waiting;
use crate::queue::{Event, Who};
use crate::world::{PREFIX4, World};

impl World {
    pub(crate) fn chaos(&mut self, event: Event) {
        match event {
            Event::Calm => self.calm_down(),
            Event::Rejoin { who } => drop(self.cut.remove(&who)),
            Event::DiskFree => self.disk.full = false,
            // What was to begin when all is calm does not.
            _ if self.calm => {}
            Event::Work { who } => {
                self.work(who);
                self.later(self.scenario.work_every, Event::Work { who });
            }
            Event::Operate => {
                self.operate();
                self.later(5_000, Event::Operate);
            }
            Event::Partition => self.partition(),
            Event::CrashAgent => {
                let who = self.rng.random_range(0..self.agents.len());
                self.crash_agent(who);
                self.later(self.scenario.agent_crash_every.unwrap_or(1_000), Event::CrashAgent);
            }
            Event::CrashController => {
                let site = self.rng.random_range(0..self.sites.len());
                // Several controllers have their store elsewhere.
                let may = self.scenario.power_cuts && self.sites.len() == 1;
                let power_cut = may && self.rng.random_bool(0.5);
                self.note(|| format!("controller {site} crashes, power cut: {power_cut}"));
                self.here = site;
                self.controller_crash(power_cut);
                self.later(3_000, Event::ControllerStart { site });
                self.later(self.scenario.controller_crash_every.unwrap_or(1_000), Event::CrashController);
            }
            Event::DiskFull => {
                self.disk.full = true;
                self.later(3_000, Event::DiskFree);
                self.later(self.scenario.disk_full_every.unwrap_or(1_000), Event::DiskFull);
            }
            _ => {}
        }
    }

    pub(crate) fn crash_agent(&mut self, who: Who) {
        self.agent_crash(who);
        self.later(3_000, Event::AgentStart { who });
    }

    /// Cuts off one node, a few or all of them for a while.
    fn partition(&mut self) {
        let all = self.agents.len();
        let number = match self.rng.random_range(0..10) {
            0..6 => 1,
            6..9 => all.div_ceil(4),
            _ => all,
        };
        let first = self.rng.random_range(0..all);
        let lasts = self.rng.random_range(100..=40_000);
        for who in (first..first + number).map(|who| who % all) {
            self.cut_off(who);
            self.queue.after(Duration::from_millis(lasts), Event::Rejoin { who });
        }
        self.later(self.scenario.partition_every.unwrap_or(1_000), Event::Partition);
    }

    /// Mostly none; now and then a certain one, which may be anybody's.
    pub(crate) fn addresses_wanted(&mut self) -> Vec<IpAddr> {
        let size = 1_u32 << (32 - u32::from(self.scenario.prefix4));
        let wanted = self.rng.random_bool(0.15).then(|| self.rng.random_range(1..size - 1));
        wanted.map(|host| IpAddr::V4(Ipv4Addr::from_bits(PREFIX4.to_bits() + host))).into_iter().collect()
    }

    /// A runtime, or the machine's surroundings, want something of a node.
    fn work(&mut self, who: Who) {
        let wish = self.rng.random_range(0..10);
        let agent = &mut self.agents[who];
        let Some(name) = agent.names.choose(&mut self.rng).cloned() else { return };
        if !agent.up || agent.busy(&name) {
            return;
        }
        match (agent.attachments.contains_key(&name), wish) {
            (_, 0) if agent.ready => {
                agent.port = 51_820 + self.rng.random_range(0..100);
                self.call(who, What::Endpoints);
            }
            (false, _) if agent.ready => self.call(who, What::Attach(name)),
            (true, 0..6) => {
                // Noted before anything is taken away, and told to the controller when it can be reached.
                agent.owed.insert(name.clone());
                agent.attachments.remove(&name);
                let life = agent.life;
                self.queue.after(Duration::ZERO, Event::Reconcile { who, life });
                self.release_unless_attached(who, name);
            }
            _ => {}
        }
    }

    /// An operator wants something of the controller.
    fn operate(&mut self) {
        if self.chance(self.scenario.keys_changed) {
            return self.rotate();
        }
        let who = self.rng.random_range(0..self.agents.len());
        self.here = self.rng.random_range(0..self.sites.len());
        let agent = &self.agents[who];
        let command = match self.rng.random_range(0..10) {
            0 => Command::NewEpoch,
            1 => Command::RemoveNode { node: agent.id },
            6 | 7 => match agent.names.choose(&mut self.rng).cloned() {
                Some(name) => Command::Reserve { name, addresses: self.addresses_wanted() },
                None => return,
            },
            8 => match agent.names.choose(&mut self.rng).cloned() {
                Some(name) => Command::Unreserve { name },
                None => return,
            },
            2..6 => match agent.names.choose(&mut self.rng) {
                Some(name) => Command::RemoveContainer { name: name.clone() },
                None => return,
            },
            _ => return,
        };
        self.note(|| format!("the operator wants {command:?}"));
        self.submit(Waiting { from: None, command: Rc::new(command) });
    }
}
