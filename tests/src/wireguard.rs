//! User-space WireGuard programs against each other: each on a host of its own, told everything by the unmodified `wg(8)`.
//!
//! A [`Tunnels`] is a lab with one switch as its underlay and a [`Device`] on each of its hosts. The programs know nobody at first; a test
//! introduces them by [`Device::meets`], so that it decides who knows an endpoint and hence who begins.

mod device;
mod program;
mod shown;
mod traffic;
mod wire;

use std::time::Duration;

use netns_harness::{Host, Lab, NatKind, Port, Switch, probe};

pub use device::{Device, LISTEN_PORT, Peering, Underlay};
pub use program::WireGuard;
pub use shown::PeerShown;
pub use traffic::{Flow, TrafficServer};
pub use wire::{Message, OuterPacket, outer_packets, wait_for_packets};

use crate::Result;

/// How long a first packet may take where nothing was lost: a handshake, with the time that a loaded machine takes.
pub const AT_ONCE: Duration = Duration::from_secs(2);

/// A lab of hosts on one switch, each with a WireGuard device.
pub struct Tunnels<const N: usize> {
    /// The devices; their numbers begin with 1.
    pub devices: [Device; N],
    /// The underlay.
    pub switch: Switch,
    /// Last, so that it is taken down after everything that runs in it.
    pub lab: Lab,
}

impl<const N: usize> Tunnels<N> {
    /// A lab in which these programs run, each on its own host.
    ///
    /// # Errors
    /// There is no root, a program is missing, or a part does not come up.
    pub fn new(purpose: &str, programs: [WireGuard; N]) -> Result<Self> {
        Self::with_mtu(purpose, 1_500, programs)
    }

    /// As [`Tunnels::new`], with an underlay of this MTU in bytes.
    ///
    /// # Errors
    /// As [`Tunnels::new`].
    pub fn with_mtu(purpose: &str, mtu: u32, programs: [WireGuard; N]) -> Result<Self> {
        let lab = Lab::new(&format!("wireguard-{purpose}"))?;
        let switch = lab.switch_with_mtu("underlay", mtu)?;
        let mut devices = Vec::new();
        for (number, program) in (1..).zip(programs) {
            let host = underlay_host(&lab, &switch, number)?;
            devices.push(Device::start(&lab, &host, number, program)?);
        }
        let devices = devices.try_into().map_err(|_| anyhow::anyhow!("not {N} devices"))?;
        Ok(Self { devices, switch, lab })
    }

    /// From now on captures see each datagram by itself: a virtual cable passes batches of them on as they were sent.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn split_batches(&self) -> Result {
        for device in &self.devices {
            device.command("ip").args(["link", "set", "eth0", "gso_max_segs", "1"]).run()?;
        }
        Ok(())
    }

    /// Says that all went well: no logs need to be kept.
    pub fn passed(&self) {
        self.lab.passed();
    }
}

impl Tunnels<2> {
    /// Two devices that know each other's endpoint on an underlay and have a session.
    ///
    /// # Errors
    /// As [`Tunnels::new`], or the first packet does not get through.
    pub fn connected(purpose: &str, programs: [WireGuard; 2], underlay: Underlay) -> Result<Self> {
        Self::connected_with_mtu(purpose, 1_500, programs, underlay)
    }

    /// As [`Tunnels::connected`], with an underlay of this MTU in bytes.
    ///
    /// # Errors
    /// As [`Tunnels::connected`].
    pub fn connected_with_mtu(
        purpose: &str,
        mtu: u32,
        programs: [WireGuard; 2],
        underlay: Underlay,
    ) -> Result<Self> {
        let tunnels = Self::with_mtu(purpose, mtu, programs)?;
        let [a, b] = &tunnels.devices;
        let at = Peering { endpoint: Some(underlay), ..Peering::default() };
        a.meets(b, &at)?;
        b.meets(a, &at)?;
        a.reaches(b.inner_v4(), AT_ONCE)?;
        Ok(tunnels)
    }
}

/// Exchanges traffic of all kinds between two devices, asked for by each of them, over both families.
///
/// # Errors
/// What got lost or was changed on the way.
pub fn exchange_all_traffic(a: &Device, b: &Device) -> Result {
    ask_for_all_traffic(a, b)?;
    ask_for_all_traffic(b, a)
}

/// Exchanges traffic of all kinds between two devices, asked for by the first of them, over both families.
///
/// # Errors
/// What got lost or was changed on the way.
pub fn ask_for_all_traffic(asks: &Device, answers: &Device) -> Result {
    let _server = answers.serve_traffic()?;
    for address in answers.inner() {
        asks.exchanges_all_traffic(&address)?;
    }
    Ok(())
}

/// A host on the underlay, at the addresses of this number.
///
/// # Errors
/// The number is taken, or the kernel refuses.
pub fn underlay_host(lab: &Lab, switch: &Switch, number: u8) -> Result<Host> {
    let host = lab.host(&format!("h{number}"))?;
    let port = Port::new("eth0")
        .address(&format!("{}/24", Underlay::V4.address(number)))
        .address(&format!("{}/64", Underlay::V6.address(number)));
    lab.plug(&host, switch, port)?;
    Ok(host)
}

/// A host behind a NAT router that forgets what is silent for [`NAT_MEMORY`].
pub struct Home {
    /// The host, which reaches the underlay over IPv4.
    pub host: Host,
    /// Its router.
    pub router: Host,
}

/// How long a router of [`home_behind_nat`] remembers a flow of UDP.
pub const NAT_MEMORY: Duration = Duration::from_secs(2);
/// The address on the underlay behind which [`home_behind_nat`] hides its host.
pub const NAT_ADDRESS: &str = "192.0.2.9";

/// Makes a host behind a symmetric NAT on an underlay.
///
/// # Errors
/// There is one already, or the kernel refuses.
pub fn home_behind_nat(lab: &Lab, underlay: &Switch) -> Result<Home> {
    let (lan, host) = (lab.switch("lan")?, lab.host("home")?);
    lab.plug(&host, &lan, Port::new("eth0").address("192.168.7.2/24").gateway("192.168.7.1"))?;
    let inside = Port::new("lan0").address("192.168.7.1/24");
    let outside = Port::new("wan0").address(&format!("{NAT_ADDRESS}/24"));
    let router = lab.nat_router("router", NatKind::Symmetric, (&lan, inside), (underlay, outside))?;
    let seconds = NAT_MEMORY.as_secs().to_string();
    for variable in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        router.sysctl(&format!("net/netfilter/{variable}"), &seconds)?;
    }
    Ok(Home { host, router })
}

impl Home {
    /// Waits until the router has forgotten all flows of UDP.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_forgotten(&self) -> Result {
        probe::until_ok("the router to forget", 4 * NAT_MEMORY, || {
            let flows = self.router.command("cat").arg("/proc/net/nf_conntrack").run()?.stdout;
            anyhow::ensure!(!flows.contains(" udp "), "{flows}");
            Ok::<(), anyhow::Error>(())
        })?;
        Ok(())
    }
}
