//! Requests and answers about containers.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Owner;

/// `POST /v1/attach`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The network, by name or identifier.
    pub network: String,
    /// The container's name.
    pub name: String,
    /// The path of its network namespace.
    pub netns: PathBuf,
    /// The interface to make inside.
    pub ifname: String,
    /// Explicit addresses, at most one of each family.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Milliseconds to wait until every live node has applied the change; absent: do not wait.
    #[serde(default)]
    pub wait_millis: Option<u64>,
    /// Milliseconds to wait for a controller that is away; absent: that is an error at once.
    #[serde(default)]
    pub wait_controller_millis: Option<u64>,
    /// On whose behalf. An owner asks for something new: what is there already is an error and not confirmed, and an
    /// attachment whose owner hangs up before it is told of it is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Whether the container gets no resolver.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_dns: bool,
}

/// `POST /v1/owned/lend`: makes a device in the host's namespace, down and without addresses, for a runtime that moves it
/// into its container by itself. A device that nobody takes is taken back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LendRequest {
    /// The network, by name or identifier.
    pub network: String,
    /// The container's name.
    pub name: String,
    /// Explicit addresses, at most one of each family.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Milliseconds to wait for a controller that is away; absent: that is an error at once.
    #[serde(default)]
    pub wait_controller_millis: Option<u64>,
    /// On whose behalf.
    pub owner: Owner,
    /// Whether the container gets no resolver.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_dns: bool,
}

/// `POST /v1/owned/hand-over`: says into which namespace the runtime is going to move what it was lent. There need not be
/// one yet. The agent looks after the device like after every other once it is there and set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOverRequest {
    /// The owner.
    pub owner: Owner,
    /// The path by which the namespace will be found.
    pub netns: PathBuf,
}

/// What a container's `resolv.conf` should say, in the words of CNI results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// The resolvers.
    pub nameservers: Vec<IpAddr>,
    /// The domain of the container's own name.
    pub domain: String,
    /// The domains in which short names are looked for.
    pub search: Vec<String>,
}

impl DnsConfig {
    /// The text of a `resolv.conf` (resolv.conf(5)). `search` alone, as it and `domain` exclude each other.
    pub fn resolv_conf(&self) -> String {
        let mut text: String =
            self.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        text
    }
}

/// An attached container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachedContainer {
    /// The network's name.
    pub network: String,
    /// The container's name.
    pub name: String,
    /// Its number within the network.
    pub container: u64,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its interface.
    pub ifname: String,
    /// The name under which `wg(8)` finds the device.
    pub device: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes that are routed into its interface.
    #[serde(default)]
    pub routes: Vec<IpNet>,
    /// The MTU of its interface, once it is made.
    pub mtu: Option<u32>,
    /// Who made it; absent when that was a person or a tool, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// What its `resolv.conf` should say; absent when it has no resolver of the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsConfig>,
}

/// `POST /v1/detach`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// The network, by name or identifier.
    pub network: String,
    /// The container's name.
    pub name: String,
}

/// The answer to [`DetachRequest`] and [`DetachOwnedRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Detached {
    /// Whether it was attached.
    pub was_attached: bool,
}

/// `POST /v1/owned/detach`: takes away what an owner made, in whatever network that was.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachOwnedRequest {
    /// The owner.
    pub owner: Owner,
}

/// `POST /v1/owned/check`: is what an owner made as it should be?
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// The owner.
    pub owner: Owner,
    /// The path of the namespace in which it should be.
    pub netns: PathBuf,
}

/// The answer to [`CheckRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// What the agent knows of it.
    pub container: AttachedContainer,
    /// What is not as it should be, in words; empty when all is well.
    pub wrong: Vec<String>,
}

/// `POST /v1/owned/collect`: takes away what a runtime has made in one of its networks and does not know any more.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// The kind of the owners.
    pub kind: String,
    /// Their network.
    pub network: String,
    /// What stays.
    pub keep: Vec<Kept>,
    /// Of the rest only what was lent and is still where it was made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untaken: bool,
}

/// An attachment that a runtime knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The runtime's identifier of the container.
    pub container: String,
    /// The interface that the runtime asked for.
    pub interface: String,
}

/// The answer to [`CollectRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Collected {
    /// The owners of what was taken away.
    pub removed: Vec<Owner>,
    /// What could not be taken away, and why.
    pub failed: Vec<String>,
}

/// `POST /v1/ready`: could a container be attached now?
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadyRequest {
    /// The network that is meant; absent: any.
    #[serde(default)]
    pub network: Option<String>,
}

/// The answer to [`ReadyRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether an engine moves packets.
    pub engine: bool,
    /// Whether the controller of the network can be asked; of any network where none was named.
    pub controller: bool,
}
