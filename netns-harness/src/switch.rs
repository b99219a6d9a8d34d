//! Switches, and the cables by which hosts are plugged into them.

use std::os::fd::AsFd as _;
use std::sync::PoisonError;
use std::time::Duration;

use crate::error::{LabError, Result};
use crate::host::Host;
use crate::impair::{self, Wire};

/// The MTU of an Ethernet, in bytes.
pub(crate) const DEFAULT_MTU: u32 = 1_500;
/// The least MTU that IPv6 allows (RFC 8200, section 5), and the most that a veth takes.
const MTUS: std::ops::RangeInclusive<u32> = 1_280..=65_535;
/// Longest name of an interface, in bytes.
const LONGEST_IFNAME: usize = 15;
/// The bridge inside a switch's namespace.
const BRIDGE: &str = "bridge";

/// A switch: a bridge in a namespace of its own.
#[derive(Clone, Debug)]
pub struct Switch {
    host: Host,
    mtu: u32,
}

impl Switch {
    pub(crate) fn start(host: Host, mtu: u32) -> Result<Self> {
        check_mtu(mtu)?;
        let text = mtu.to_string();
        let bridge = ["forward_delay", "0", "stp_state", "0", "mcast_snooping", "0"];
        host.command("ip")
            .args(["link", "add", BRIDGE, "mtu", &text, "type", "bridge"])
            .args(bridge)
            .run()?;
        // The switch itself has nothing to say on the cable.
        host.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        host.set_link(BRIDGE, true)?;
        Ok(Self { host, mtu })
    }

    /// The namespace that it is, for rules and captures of one's own.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

/// How a host is plugged into a switch.
#[derive(Clone, Debug)]
pub struct Port {
    ifname: String,
    addresses: Vec<String>,
    gateways: Vec<String>,
    mtu: Option<u32>,
    loss_percent: f64,
    delay: Duration,
}

impl Port {
    /// A port whose interface has this name on the host.
    pub fn new(ifname: &str) -> Self {
        Self {
            ifname: ifname.to_owned(),
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: None,
            loss_percent: 0.0,
            delay: Duration::ZERO,
        }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.ifname
    }

    /// One more address with its prefix length, as in `192.0.2.1/24`.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// The router behind which everything else is.
    #[must_use]
    pub fn gateway(mut self, address: &str) -> Self {
        self.gateways.push(address.to_owned());
        self
    }

    /// The MTU in bytes, at both ends of the cable; that of the switch unless it is said.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// How many of 100 packets are lost, each way, on average.
    #[must_use]
    pub fn loss_percent(mut self, percent: f64) -> Self {
        self.loss_percent = percent;
        self
    }

    /// How long a frame is under way, each way.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

fn check_mtu(mtu: u32) -> Result<()> {
    if MTUS.contains(&mtu) {
        Ok(())
    } else {
        Err(LabError::OutOfRange { what: "an MTU", value: mtu.to_string(), allowed: "1280 to 65535 bytes" })
    }
}

pub(crate) fn plug(host: &Host, to: &Switch, port: &Port) -> Result<()> {
    let mtu = port.mtu.unwrap_or(to.mtu);
    check_mtu(mtu)?;
    impair::check(port.loss_percent, port.delay)?;
    let ifname = port.ifname.as_str();
    if ifname.is_empty() || ifname.len() > LONGEST_IFNAME {
        return Err(LabError::BadName {
            what: "interface",
            name: ifname.to_owned(),
            longest: LONGEST_IFNAME,
        });
    }
    let far = format!("port{}", host.shared().number());
    let text = mtu.to_string();
    if port.delay.is_zero() {
        let (pid, ip) = (host.pid().to_string(), to.host.command("ip"));
        let veth = [
            "link", "add", &far, "mtu", &text, "type", "veth", "peer", "name", ifname, "mtu", &text, "netns",
            &pid,
        ];
        ip.args(veth).run()?;
    } else {
        let wire = Wire::start(
            (to.host.namespaces().net.as_fd(), &far),
            (host.namespaces().net.as_fd(), ifname),
            port.delay,
        )?;
        host.shared().wires.lock().unwrap_or_else(PoisonError::into_inner).push(wire);
        to.host.command("ip").args(["link", "set", &far, "mtu", &text]).run()?;
        host.command("ip").args(["link", "set", ifname, "mtu", &text]).run()?;
    }
    to.host.command("ip").args(["link", "set", &far, "master", BRIDGE, "up"]).run()?;
    host.set_link(ifname, true)?;
    for address in &port.addresses {
        host.add_address(ifname, address)?;
    }
    for gateway in &port.gateways {
        host.command("ip").args(["route", "add", "default", "via", gateway, "dev", ifname]).run()?;
    }
    if port.loss_percent > 0.0 {
        impair::lose(host, ifname, port.loss_percent)?;
        impair::lose(&to.host, &far, port.loss_percent)?;
    }
    Ok(())
}
