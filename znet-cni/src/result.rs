//! The result of ADD: what the agent made, added to what the plugins before made.

use std::path::Path;

use ipnet::IpNet;
use rscni_types::error::Error;
use rscni_types::legacy;
use rscni_types::types::{CNIResult, CNIResultWithVersion, Dns, Interface, IpConfig, Route};
use znet_local::{AttachedContainer, DnsConfig};

use crate::input::Config;

/// What the kernel reports as the address of an interface that has none. Some runtimes insist on one.
pub(crate) const NO_MAC: &str = "00:00:00:00:00:00";

/// The result of ADD for an attached container.
pub(crate) fn result(config: &Config, attached: &AttachedContainer, sandbox: &Path) -> CNIResult {
    let mut result = config.conf.prev_result.clone().unwrap_or_default();
    let index = u32::try_from(result.interfaces.len()).ok();
    result.interfaces.push(Interface {
        name: attached.ifname.clone(),
        mac: NO_MAC.to_owned(),
        mtu: attached.mtu,
        sandbox: Some(sandbox.display().to_string()),
        socket_path: None,
        pci_id: None,
    });
    result.ips.extend(attached.addresses.iter().map(|address| IpConfig {
        interface: index,
        address: IpNet::from(*address),
        gateway: None,
    }));
    result.routes.extend(attached.routes.iter().map(|prefix| Route {
        dst: *prefix,
        gw: None,
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    }));
    result.dns = dns(config, attached.dns.as_ref(), result.dns);
    result
}

/// What the configuration says, which the specification has plugins pass on; or else the container's resolver, and after it
/// those of the plugins before: it refuses what is not of its networks, and the C library then asks the next.
fn dns(config: &Config, ours: Option<&DnsConfig>, before: Option<Dns>) -> Option<Dns> {
    let configured = config.conf.dns.clone().filter(|dns| *dns != Dns::default());
    let Some(ours) = ours.filter(|_| configured.is_none()) else { return configured.or(before) };
    let mut dns = before.unwrap_or_default();
    dns.nameservers.splice(0..0, ours.nameservers.iter().map(ToString::to_string));
    dns.search.get_or_insert_default().splice(0..0, ours.search.iter().cloned());
    dns.domain.get_or_insert_with(|| ours.domain.clone());
    Some(dns)
}

/// The result in the layout of the version that was asked in.
pub(crate) fn to_json(config: &Config, result: CNIResult) -> Result<String, Error> {
    let text = match config.version.is_legacy() {
        true => serde_json::to_string(&legacy::CNIResult::new(config.version, result)),
        false => serde_json::to_string(&CNIResultWithVersion::new(config.version, result)),
    };
    text.map_err(|error| Error::IOFailure(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn added(conf: &Value) -> Value {
        added_with(conf, &Value::Null)
    }

    fn added_with(conf: &Value, dns: &Value) -> Value {
        let config = crate::input::config(conf.to_string().as_bytes()).unwrap();
        let attached: AttachedContainer = serde_json::from_value(json!({
            "network": "acme", "name": "web", "container": 7, "netns": "/run/netns/web", "ifname": "eth0",
            "device": "wg", "addresses": ["fd77::7", "10.77.0.7"], "routes": ["fd77::/48", "10.77.0.0/16"], "mtu": 1420,
            "dns": dns,
        }))
        .unwrap();
        let result = result(&config, &attached, Path::new("/run/netns/web"));
        serde_json::from_str(&to_json(&config, result).unwrap()).unwrap()
    }

    #[test]
    fn a_result_is_in_the_version_that_was_asked_in() {
        let said = added(&json!({"cniVersion": "1.1.0", "name": "x", "type": "znet-cni"}));
        assert_eq!(
            said,
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [{"name": "eth0", "mac": NO_MAC, "mtu": 1420, "sandbox": "/run/netns/web"}],
                "ips": [{"interface": 0, "address": "fd77::7/128"}, {"interface": 0, "address": "10.77.0.7/32"}],
                "routes": [{"dst": "fd77::/48"}, {"dst": "10.77.0.0/16"}],
            })
        );
        let said = added(&json!({"cniVersion": "0.4.0", "name": "x", "type": "znet-cni"}));
        assert_eq!(said.get("cniVersion"), Some(&json!("0.4.0")));
        assert_eq!(
            said.get("ips"),
            Some(&json!([
                {"version": "6", "interface": 0, "address": "fd77::7/128"},
                {"version": "4", "interface": 0, "address": "10.77.0.7/32"},
            ]))
        );
    }

    #[test]
    fn what_the_plugins_before_made_stays() {
        let said = added(&json!({
            "cniVersion": "0.4.0", "name": "x", "type": "znet-cni", "interface": "znet0",
            "prevResult": {
                "cniVersion": "0.4.0",
                "interfaces": [{"name": "br0"}, {"name": "eth1", "mac": "02:00:00:00:00:01", "sandbox": "/n"}],
                "ips": [{"version": "4", "interface": 1, "address": "192.0.2.7/24", "gateway": "192.0.2.1"}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}],
                "dns": {"nameservers": ["192.0.2.53"]},
            },
        }));
        let list = |key: &str| said.get(key).and_then(Value::as_array).cloned().unwrap();
        assert_eq!(list("interfaces").len(), 3);
        assert_eq!(list("ips").first().unwrap().get("gateway"), Some(&json!("192.0.2.1")));
        assert_eq!(list("ips").last().unwrap().get("interface"), Some(&json!(2)));
        assert_eq!(list("routes").len(), 3);
        assert_eq!(said.get("dns"), Some(&json!({"nameservers": ["192.0.2.53"]})));
    }

    #[test]
    fn the_configurations_dns_is_passed_on_and_outranks_the_containers_resolver() {
        let dns = json!({"nameservers": ["fd77::1"], "search": ["acme.znet"]});
        let ours = json!({"nameservers": ["127.0.0.153"], "domain": "a.znet", "search": ["a.znet"]});
        let conf = json!({"cniVersion": "1.0.0", "name": "x", "type": "znet-cni", "dns": dns});
        assert_eq!(added(&conf).get("dns"), Some(&dns));
        assert_eq!(added_with(&conf, &ours).get("dns"), Some(&dns));
    }

    #[test]
    fn the_containers_resolver_comes_before_those_of_the_plugins_before() {
        let ours = json!({"nameservers": ["127.0.0.153"], "domain": "acme.znet", "search": ["acme.znet"]});
        let alone = json!({"cniVersion": "1.0.0", "name": "x", "type": "znet-cni"});
        assert_eq!(added_with(&alone, &ours).get("dns"), Some(&ours));
        let before =
            json!({"nameservers": ["192.0.2.53"], "search": ["example.net"], "options": ["ndots:2"]});
        let chained = json!({
            "cniVersion": "1.0.0", "name": "x", "type": "znet-cni",
            "prevResult": {"cniVersion": "1.0.0", "dns": before},
        });
        let both = json!({
            "nameservers": ["127.0.0.153", "192.0.2.53"], "domain": "acme.znet",
            "search": ["acme.znet", "example.net"], "options": ["ndots:2"],
        });
        assert_eq!(added_with(&chained, &ours).get("dns"), Some(&both));
        assert_eq!(added(&chained).get("dns"), Some(&before));
    }
}
