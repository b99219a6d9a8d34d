//! A lab in which a deployment runs: an underlay, a controller, nodes.

use std::time::Duration;

use netns_harness::{Host, Lab, Port, Switch};

use crate::{Controller, Node, NodeOptions, Result};

/// How long a first packet may take: a handshake, and a retry of it.
pub const FIRST_PACKET: Duration = Duration::from_secs(10);

/// A lab with one switch as its underlay, a controller on it, and as many hosts as a test wants.
pub struct World {
    /// The controller.
    pub controller: Controller,
    switch: Switch,
    next_host: u8,
    /// Last, so that it is taken down after everything that runs in it.
    pub lab: Lab,
}

impl World {
    /// A lab with a controller that serves.
    ///
    /// # Errors
    /// There is no root, or a part does not come up.
    pub fn new(purpose: &str) -> Result<Self> {
        Self::with_mtu(purpose, 1_500)
    }

    /// As [`World::new`], with an underlay of this MTU in bytes.
    ///
    /// # Errors
    /// There is no root, or a part does not come up.
    pub fn with_mtu(purpose: &str, mtu: u32) -> Result<Self> {
        let lab = Lab::new(purpose)?;
        let switch = lab.switch_with_mtu("underlay", mtu)?;
        let host = lab.host("ctl")?;
        plug(&lab, &host, &switch, 1)?;
        let controller = Controller::start(&host, "192.0.2.1")?;
        Ok(Self { controller, switch, next_host: 10, lab })
    }

    /// One more host on the underlay.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses.
    pub fn host(&mut self, name: &str) -> Result<Host> {
        self.next_host += 1;
        let host = self.lab.host(name)?;
        plug(&self.lab, &host, &self.switch, self.next_host)?;
        Ok(host)
    }

    /// One more node, which joins by these tokens and is connected to all of them.
    ///
    /// # Errors
    /// It does not come up.
    pub fn node(&mut self, name: &str, tokens: &[&str]) -> Result<Node> {
        let host = self.host(name)?;
        let tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
        Node::start(name, &host, NodeOptions { tokens, ..NodeOptions::default() })
    }

    /// Says that all went well: no logs need to be kept.
    pub fn passed(&self) {
        self.lab.passed();
    }

    /// The underlay.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }
}

fn plug(lab: &Lab, host: &Host, switch: &Switch, number: u8) -> Result {
    let port = Port::new("eth0")
        .address(&format!("192.0.2.{number}/24"))
        .address(&format!("2001:db8::{number:x}/64"));
    lab.plug(host, switch, port)?;
    Ok(())
}
