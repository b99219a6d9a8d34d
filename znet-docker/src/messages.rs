//! What Docker says, as far as it is looked at. The names are libnetwork's own; fields that are not listed are of no
//! consequence here.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

/// A network is created.
#[derive(Debug, Deserialize)]
pub(crate) struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub(crate) network: String,
    #[serde(rename = "Options")]
    pub(crate) options: Option<Map<String, Value>>,
    #[serde(rename = "IPv4Data")]
    pub(crate) ipv4: Option<Vec<Pool>>,
    #[serde(rename = "IPv6Data")]
    pub(crate) ipv6: Option<Vec<Pool>>,
}

/// What an address manager of Docker's would give addresses from.
#[derive(Debug, Deserialize)]
pub(crate) struct Pool {
    #[serde(rename = "Pool", default)]
    pub(crate) pool: String,
}

/// A network is deleted.
#[derive(Debug, Deserialize)]
pub(crate) struct DeleteNetwork {
    #[serde(rename = "NetworkID")]
    pub(crate) network: String,
}

/// What all requests about an endpoint name.
#[derive(Debug, Deserialize)]
pub(crate) struct Endpoint {
    #[serde(rename = "NetworkID")]
    pub(crate) network: String,
    #[serde(rename = "EndpointID")]
    pub(crate) endpoint: String,
}

/// An endpoint is created.
#[derive(Debug, Deserialize)]
pub(crate) struct CreateEndpoint {
    #[serde(flatten)]
    pub(crate) of: Endpoint,
    #[serde(rename = "Interface")]
    pub(crate) interface: Option<Interface>,
    #[serde(rename = "Options")]
    pub(crate) options: Option<Map<String, Value>>,
}

/// What the user, or an address manager of Docker's, has chosen for an endpoint.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Interface {
    #[serde(rename = "Address")]
    pub(crate) address: String,
    #[serde(rename = "AddressIPv6")]
    pub(crate) address6: String,
    #[serde(rename = "MacAddress")]
    pub(crate) mac: String,
}

/// An endpoint gets into a sandbox.
#[derive(Debug, Deserialize)]
pub(crate) struct Join {
    #[serde(flatten)]
    pub(crate) of: Endpoint,
    #[serde(rename = "SandboxKey")]
    pub(crate) sandbox: PathBuf,
}
