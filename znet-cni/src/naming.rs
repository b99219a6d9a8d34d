//! Which network a container gets into, and under which name.
//!
//! What is said of one container outranks what the configuration says of all. A name that somebody chose is taken as it
//! is, and refused by the agent if it is none; what a runtime made up is turned into a DNS label.

use std::fmt::Write as _;

use rscni_types::error::Error;
use sha2::{Digest as _, Sha256};

use crate::failure::no_network;
use crate::input::{Config, Environment};

/// The label, or annotation, that names the network.
pub(crate) const NETWORK_LABEL: &str = "znet.network";
/// The label, or annotation, that names the container.
pub(crate) const NAME_LABEL: &str = "znet.name";
/// Longest DNS label (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;
/// As many digits of a long identifier as runtimes show.
const SHORT_ID: usize = 12;
/// Digits of the hash that keeps shortened names apart.
const HASH_DIGITS: usize = 8;

/// The network of a container.
pub(crate) fn network(config: &Config, environment: &Environment) -> Result<String, Error> {
    let said = environment.args.get("ZNET_NETWORK").map(str::to_owned);
    let said = said.or_else(|| config.labels().remove(NETWORK_LABEL));
    said.or_else(|| config.own.network.clone()).filter(|network| !network.is_empty()).ok_or_else(no_network)
}

/// The name of a container.
pub(crate) fn name(config: &Config, environment: &Environment) -> String {
    let said = environment.args.get("ZNET_NAME").map(str::to_owned);
    let said = said.or_else(|| config.labels().remove(NAME_LABEL));
    let said = said.or_else(|| config.own.container_name.clone());
    let given = || environment.args.get("K8S_POD_NAME").map(label);
    said.or_else(given).unwrap_or_else(|| label(&environment.container))
}

/// A DNS label out of a runtime's identifier: itself if it is one, the first twelve of 64 hexadecimal digits, as runtimes
/// show them, and otherwise what can be kept of it and a hash that keeps it apart from others.
pub(crate) fn label(id: &str) -> String {
    if id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return id.chars().take(SHORT_ID).collect::<String>().to_ascii_lowercase();
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let kept: String = id.to_ascii_lowercase().chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let kept = kept.trim_matches('-');
    if kept == id && !id.is_empty() && id.len() <= MAX_LABEL {
        return id.to_owned();
    }
    let mut hash = String::new();
    for byte in Sha256::digest(id).iter().take(HASH_DIGITS / 2) {
        // Writing into a text cannot fail.
        let _ = write!(hash, "{byte:02x}");
    }
    let kept: String = kept.chars().take(MAX_LABEL - HASH_DIGITS - 1).collect();
    match kept.is_empty() {
        true => hash,
        false => format!("{kept}-{hash}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use znet_core::name::Name;

    use super::*;

    fn named(args: &str, more: &Value) -> (Result<String, u32>, String) {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "x", "type": "znet-cni"});
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = crate::input::config(conf.to_string().as_bytes()).unwrap();
        let environment = Environment::read(|name| match name {
            "CNI_CONTAINERID" => Some("default-web".into()),
            "CNI_IFNAME" => Some("eth0".into()),
            "CNI_ARGS" => Some(args.into()),
            _ => None,
        });
        let environment = environment.unwrap();
        (network(&config, &environment).map_err(|error| u32::from(&error)), name(&config, &environment))
    }

    #[test]
    fn what_is_said_of_one_container_outranks_what_is_said_of_all() {
        assert_eq!(named("", &json!({})), (Err(7), "default-web".to_owned()));
        assert_eq!(named("", &json!({"network": "acme"})), (Ok("acme".to_owned()), "default-web".to_owned()));
        let file = json!({"network": "acme", "containerName": "all"});
        assert_eq!(named("K8S_POD_NAME=pod", &file).1, "all");
        assert_eq!(named("K8S_POD_NAME=my_pod", &json!({})).1, label("my_pod"));
        let labels = json!({"network": "acme", "containerName": "all",
            "runtimeConfig": {"annotations": {"znet.network": "blue", "znet.name": "one"}}});
        assert_eq!(named("", &labels), (Ok("blue".to_owned()), "one".to_owned()));
        let args = "ZNET_NETWORK=green;ZNET_NAME=two";
        assert_eq!(named(args, &labels), (Ok("green".to_owned()), "two".to_owned()));
    }

    #[test]
    fn names_out_of_identifiers_are_short_where_runtimes_show_them_short() {
        assert_eq!(label("default-web"), "default-web");
        assert_eq!(label(&"0123456789abcdef".repeat(4)), "0123456789ab");
        assert_eq!(label("my_pod.1"), "my-pod-1-140855f5");
        assert_ne!(label("my_pod"), label("my.pod"));
    }

    proptest! {
        #[test]
        fn every_identifier_makes_a_dns_label(id in "[a-zA-Z0-9_.-]{0,80}|\\PC{0,80}") {
            prop_assert!(label(&id).parse::<Name>().is_ok(), "{:?} of {:?}", label(&id), id);
        }

        #[test]
        fn different_identifiers_make_different_labels(a in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,70}", b in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,70}") {
            prop_assume!(a != b && a.len() != 64 && b.len() != 64);
            prop_assert_ne!(label(&a), label(&b));
        }
    }
}
