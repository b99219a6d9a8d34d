//! A person's machine: stock WireGuard tools and the file that an operator handed over.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use netns_harness::{Host, HostCommand, Lab};

use crate::wireguard::WireGuard;
use crate::{Result, ping};

/// A machine on which `wg-quick up FILE` was run.
pub struct Laptop {
    host: Host,
    ifname: String,
    /// Its addresses in the network, as the file has them.
    pub addresses: Vec<IpAddr>,
    /// The file.
    pub file: PathBuf,
}

impl Laptop {
    /// Puts a file's text on a host and has `wg-quick` set it up, with `wireguard-go` as this kernel has no WireGuard.
    ///
    /// # Errors
    /// A program is missing, or what `wg-quick` said.
    pub fn up(lab: &Lab, host: &Host, text: &str) -> Result<Self> {
        let ifname = format!("{}-lap", lab.prefix());
        let file = host.dir().join(format!("{ifname}.conf"));
        std::fs::write(&file, text)?;
        let addresses = text.lines().find_map(|line| line.strip_prefix("Address = "));
        let addresses = addresses.context("no addresses in the file")?.split(", ");
        let addresses = addresses.map(|text| Ok(text.split('/').next().unwrap_or_default().parse()?));
        let laptop = Self { host: host.clone(), ifname, addresses: addresses.collect::<Result<_>>()?, file };
        laptop.quick("up")?;
        Ok(laptop)
    }

    /// `wg-quick down`.
    ///
    /// # Errors
    /// What it said.
    pub fn down(&self) -> Result {
        self.quick("down")
    }

    fn quick(&self, what: &str) -> Result {
        let path = WireGuard::WireguardGo.path()?;
        self.host
            .command("wg-quick")
            .arg(what)
            .arg(&self.file)
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", path)
            .run()?;
        Ok(())
    }

    /// Its interface's name.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    /// The host on which it is.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// A command on it.
    pub fn command(&self, program: &str) -> HostCommand {
        self.host.command(program)
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
}
