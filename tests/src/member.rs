//! A container of a network, and the programs that run in it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use netns_harness::{Container, HostCommand};
use serde_json::Value;

use crate::{Node, Result, ping};

/// An attached container.
pub struct Member {
    /// Its network.
    pub network: String,
    /// Its name.
    pub name: String,
    /// The name under which `wg(8)` finds its device on the node.
    pub device: String,
    /// Its addresses: IPv6, then IPv4 where the network has it.
    pub addresses: Vec<IpAddr>,
    /// Its namespace.
    pub container: Container,
}

impl Member {
    /// Attaches a namespace of a node's host.
    ///
    /// # Errors
    /// What the command said.
    pub fn attach(
        node: &Node,
        network: &str,
        name: &str,
        container: Container,
        flags: &[&str],
    ) -> Result<Self> {
        let path = container.netns_path();
        let path = path.to_str().context("the path of the namespace is no text")?;
        let fixed = ["attach", "--network", network, "--name", name, "--netns", path, "--output", "json"];
        let output = node.znet(&[&fixed, flags].concat())?;
        let attached: Value = serde_json::from_str(&output.stdout)?;
        let addresses = attached.get("addresses").context("no addresses in the answer")?.clone();
        let device = attached.get("device").and_then(Value::as_str).context("no device in the answer")?;
        Ok(Self {
            network: network.to_owned(),
            name: name.to_owned(),
            device: device.to_owned(),
            addresses: serde_json::from_value(addresses)?,
            container,
        })
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// It has none.
    pub fn v6(&self) -> Result<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv6).context("no IPv6 address")
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// It has none.
    pub fn v4(&self) -> Result<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv4).context("no IPv4 address")
    }

    /// A command in it.
    pub fn command(&self, program: &str) -> HostCommand {
        self.container.command(program)
    }

    /// Whether one ping to an address is answered within a time.
    ///
    /// # Errors
    /// `ping` could not be started.
    pub fn pings(&self, to: IpAddr, within: Duration) -> Result<bool> {
        ping::once(self.command("ping"), &to.to_string(), within)
    }

    /// Waits until an address answers pings.
    ///
    /// # Errors
    /// It does not, in time.
    pub fn wait_reaches(&self, to: IpAddr, timeout: Duration) -> Result {
        ping::until_answered(|| self.command("ping"), &to.to_string(), timeout)
    }

    /// Pings all addresses of others; every one has to answer within a time.
    ///
    /// # Errors
    /// One does not.
    pub fn reaches_all<'a>(&self, others: impl IntoIterator<Item = &'a Self>, within: Duration) -> Result {
        for other in others.into_iter().filter(|other| other.name != self.name) {
            for address in &other.addresses {
                if !self.pings(*address, within)? {
                    bail!("{} does not reach {} at {address}", self.name, other.name);
                }
            }
        }
        Ok(())
    }
}
