//! The netavark plugin: what podman calls for networks whose driver it is (netavark, `plugin-API.md`, API 1.0.0).
//!
//! The types of that interface lie in a crate that brings netavark itself, with firewalls, D-Bus and a DHCP client; of them
//! a few fields are read here.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use znet_local::{AttachRequest, AttachedContainer, Client, DetachOwnedRequest, Owner};

use crate::input;
use crate::naming::label;
use crate::result::NO_MAC;

/// The version of the interface that is spoken.
const API_VERSION: &str = "1.0.0";
/// The kind of the owners that netavark has.
const KIND: &str = "netavark";
/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Milliseconds to wait for a controller that is away.
const WAIT_CONTROLLER_MILLIS: u64 = 10_000;
/// The options that a network may have, as in `podman network create --opt`.
const OPTIONS: [&str; 2] = ["network", "agent-socket"];

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Create,
    Setup,
    Teardown,
    Info,
}

impl Call {
    /// The call of this name.
    pub(crate) fn of(word: &str) -> Option<Self> {
        Some(match word {
            "create" => Self::Create,
            "setup" => Self::Setup,
            "teardown" => Self::Teardown,
            "info" => Self::Info,
            _ => return None,
        })
    }
}

/// A network as podman keeps it, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Network {
    name: String,
    options: Option<BTreeMap<String, String>>,
    subnets: Option<Vec<Value>>,
}

/// One container in one network.
#[derive(Debug, Deserialize)]
struct Exec {
    container_id: String,
    container_name: String,
    port_mappings: Option<Vec<Value>>,
    network: Network,
    network_options: Options,
}

#[derive(Debug, Deserialize)]
struct Options {
    interface_name: String,
    static_ips: Option<Vec<IpAddr>>,
    static_mac: Option<String>,
}

/// Does what was asked for; returns the text for standard output.
///
/// # Errors
/// The text for standard output, which says what is wrong.
pub(crate) fn run(call: Call, args: &[&str], input: impl Read) -> Result<String, String> {
    let done = match (call, args) {
        (Call::Info, []) => Ok(info()),
        (Call::Create, []) => read(input).and_then(create),
        (Call::Setup, [netns]) => read(input).and_then(|exec| setup(netns, exec)),
        (Call::Teardown, [_]) => read(input).and_then(teardown),
        (Call::Setup | Call::Teardown, _) => Err("one argument expected: the path of a namespace".to_owned()),
        (Call::Info | Call::Create, _) => Err("no argument expected".to_owned()),
    };
    done.map_err(|why| json!({ "error": why }).to_string())
}

fn read(input: impl Read) -> Result<Value, String> {
    input::json(input).map_err(|error| error.to_string())
}

fn info() -> String {
    json!({ "version": env!("CARGO_PKG_VERSION"), "api_version": API_VERSION }).to_string()
}

fn parsed<T: for<'de> Deserialize<'de>>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("standard input: {error}"))
}

/// The network as podman is to keep it: what it does for its own networks, this one does not need.
fn create(asked: Value) -> Result<String, String> {
    let network: Network = parsed(asked.clone())?;
    network.znet()?;
    if network.subnets.is_some_and(|subnets| !subnets.is_empty()) {
        return Err("the addresses are those of the znet network: leave --subnet out".to_owned());
    }
    let mut kept = match asked {
        Value::Object(kept) => kept,
        _ => Map::new(),
    };
    // Nothing leads out of it, the controller gives the addresses, and no name server of podman's runs in it.
    kept.insert("internal".to_owned(), json!(true));
    kept.insert("ipv6_enabled".to_owned(), json!(true));
    kept.insert("dns_enabled".to_owned(), json!(false));
    kept.insert("ipam_options".to_owned(), json!({ "driver": "none" }));
    Ok(Value::Object(kept).to_string())
}

fn setup(netns: &str, exec: Value) -> Result<String, String> {
    let exec: Exec = parsed(exec)?;
    if exec.port_mappings.as_ref().is_some_and(|ports| !ports.is_empty()) {
        return Err("nothing from outside gets into a znet network: leave --publish out".to_owned());
    }
    if exec.network_options.static_mac.as_ref().is_some_and(|mac| !mac.is_empty()) {
        return Err("a WireGuard interface has no link-layer address: leave --mac-address out".to_owned());
    }
    let attached = exec.client()?.attach(&exec.attach(netns)?).map_err(|error| error.to_string())?;
    Ok(status(&attached).to_string())
}

fn teardown(exec: Value) -> Result<String, String> {
    let exec: Exec = parsed(exec)?;
    exec.client()?
        .detach(&DetachOwnedRequest { owner: exec.owner() })
        .map(|_| String::new())
        .map_err(|error| error.to_string())
}

impl Network {
    fn option(&self, name: &str) -> Option<&str> {
        self.options.as_ref()?.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The name of the znet network.
    fn znet(&self) -> Result<&str, String> {
        let unknown = self.options.iter().flatten().find(|(name, _)| !OPTIONS.contains(&name.as_str()));
        if let Some((name, _)) = unknown {
            return Err(format!("there is no option {name:?}; there are {}", OPTIONS.join(" and ")));
        }
        self.option("network").ok_or_else(|| {
            "no znet network is given: create the network with --opt network=NETWORK".to_owned()
        })
    }
}

impl Exec {
    fn client(&self) -> Result<Client, String> {
        let usual = || PathBuf::from(znet_local::RUN_DIR).join(znet_local::SOCKET);
        let socket = self.network.option("agent-socket").map_or_else(usual, PathBuf::from);
        Ok(Client::new(&socket, PATIENCE))
    }

    fn owner(&self) -> Owner {
        Owner {
            kind: KIND.to_owned(),
            network: self.network.name.clone(),
            container: self.container_id.clone(),
            interface: self.network_options.interface_name.clone(),
        }
    }

    fn attach(&self, netns: &str) -> Result<AttachRequest, String> {
        Ok(AttachRequest {
            network: self.network.znet()?.to_owned(),
            name: label(&self.container_name),
            netns: PathBuf::from(netns),
            ifname: self.network_options.interface_name.clone(),
            addresses: self.network_options.static_ips.clone().unwrap_or_default(),
            wait_millis: None,
            wait_controller_millis: Some(WAIT_CONTROLLER_MILLIS),
            owner: Some(self.owner()),
            no_dns: false,
        })
    }
}

/// What podman shows of the container.
fn status(attached: &AttachedContainer) -> Value {
    let subnets: Vec<Value> =
        attached.addresses.iter().map(|address| json!({ "ipnet": IpNet::from(*address) })).collect();
    let interface = json!({ "mac_address": NO_MAC, "subnets": subnets });
    let mut interfaces = Map::new();
    interfaces.insert(attached.ifname.clone(), interface);
    let dns = attached.dns.clone().unwrap_or_default();
    json!({ "dns_search_domains": dns.search, "dns_server_ips": dns.nameservers, "interfaces": interfaces })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn network(more: &Value) -> Value {
        let mut network = json!({
            "name": "podnet", "id": "2f25", "driver": "znet", "dns_enabled": true, "internal": false,
            "ipv6_enabled": false, "subnets": null, "options": {"network": "acme"}, "labels": {"a": "b"},
        });
        network.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        network
    }

    fn exec(more: &Value) -> Value {
        let mut exec = json!({
            "container_id": "752947ff", "container_name": "web_1", "port_mappings": [], "network": network(&json!({})),
            "network_options": {"interface_name": "eth0", "static_ips": ["10.77.0.9"], "aliases": ["752947ff91f9"]},
        });
        exec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        exec
    }

    fn said(call: &str, args: &[&str], input: &Value) -> Value {
        let text = run(Call::of(call).unwrap(), args, input.to_string().as_bytes());
        serde_json::from_str(&text.unwrap_or_else(|error| error)).unwrap()
    }

    fn refusal(call: &str, args: &[&str], input: &Value) -> String {
        said(call, args, input).get("error").unwrap().as_str().unwrap().to_owned()
    }

    #[test]
    fn a_network_stays_as_it_was_asked_for_but_for_what_podman_would_do_in_it() {
        let kept = said("create", &[], &network(&json!({})));
        let changed = json!({"dns_enabled": false, "internal": true, "ipv6_enabled": true, "ipam_options": {"driver": "none"}});
        assert_eq!(kept, network(&changed));
        let info = said("info", &[], &Value::Null);
        assert_eq!(info.get("api_version"), Some(&json!("1.0.0")));
    }

    #[test]
    fn what_a_network_cannot_have_is_refused_with_the_reason() {
        let refused = |more| refusal("create", &[], &network(&more));
        assert!(refused(json!({"options": null})).contains("--opt network="));
        assert!(refused(json!({"options": {"network": ""}})).contains("--opt network="));
        assert!(refused(json!({"options": {"network": "a", "mtu": "9"}})).contains("mtu"));
        assert!(refused(json!({"subnets": [{"subnet": "10.0.0.0/8"}]})).contains("--subnet"));
        assert!(refused(json!({"options": 7})).contains("standard input"));
        assert!(refusal("create", &["x"], &network(&json!({}))).contains("argument"));
    }

    #[test]
    fn what_a_container_cannot_have_is_refused_with_the_reason() {
        let refused = |more| refusal("setup", &["/run/netns/x"], &exec(&more));
        assert!(refused(json!({"port_mappings": [{"host_port": 80}]})).contains("--publish"));
        let options = json!({"interface_name": "eth0", "static_mac": "02:00:00:00:00:01"});
        assert!(refused(json!({"network_options": options})).contains("--mac-address"));
        assert!(refused(json!({"container_id": 7})).contains("standard input"));
        let away = network(&json!({"options": {"network": "acme", "agent-socket": "/nonexistent"}}));
        assert!(refused(json!({"network": away})).contains("/nonexistent"));
        assert!(refusal("teardown", &[], &exec(&json!({}))).contains("namespace"));
        let text = run(Call::Setup, &["/run/netns/x"], b"{".as_slice()).unwrap_err();
        assert!(text.contains("error"), "{text}");
    }

    #[test]
    fn the_owner_is_the_same_in_setup_and_teardown() {
        let exec: Exec = parsed(exec(&json!({}))).unwrap();
        let asked = exec.attach("/run/netns/x").unwrap();
        assert_eq!(asked.owner, Some(exec.owner()));
        assert_eq!((asked.network.as_str(), asked.name), ("acme", label("web_1")));
        assert_eq!(asked.addresses, [IpAddr::from([10, 77, 0, 9])]);
    }
}
