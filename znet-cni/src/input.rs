//! What a runtime says: environment, `CNI_ARGS`, and the configuration on standard input.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rscni_types::error::Error;
use rscni_types::types::{ContainerId, InterfaceName, NetConf};
use rscni_types::version::SpecVersion;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::failure::variable;

/// Largest configuration in bytes that is read: a GC that lists some 30,000 containers.
const MAX_INPUT: u64 = 4 << 20;
/// The versions of the specification that are spoken.
const VERSIONS: [SpecVersion; 3] =
    [SpecVersion::new(0, 4, 0), SpecVersion::new(1, 0, 0), SpecVersion::new(1, 1, 0)];
/// How long the agent may take over an answer unless the configuration says otherwise.
const PATIENCE_MILLIS: u64 = 30_000;
/// How long ADD waits for a controller that is away unless the configuration says otherwise.
const WAIT_CONTROLLER_MILLIS: u64 = 10_000;
/// What `CNI_ARGS` may hold beside our own keys without `IgnoreUnknown`: what Kubernetes and podman always say.
const COMMON_ARGS: [&str; 5] =
    ["IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID", "K8S_POD_NAME"];
/// What `CNI_ARGS` may hold for us.
const OWN_ARGS: [&str; 4] = ["ZNET_NAME", "ZNET_NETWORK", "IP", "MAC"];

/// The versions of the specification that are spoken.
pub(crate) fn versions() -> Vec<SpecVersion> {
    VERSIONS.to_vec()
}

/// The configuration's own keys, beside those of the specification.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OwnKeys {
    /// The network, by name or identifier.
    pub(crate) network: Option<String>,
    /// The container's name.
    pub(crate) container_name: Option<String>,
    /// The interface to make, where it should not be `CNI_IFNAME`.
    pub(crate) interface: Option<String>,
    /// Where the agent listens.
    pub(crate) agent_socket: Option<PathBuf>,
    /// Milliseconds that the agent may take over an answer.
    pub(crate) timeout_millis: Option<u64>,
    /// Milliseconds to wait for a controller that is away.
    pub(crate) wait_controller_millis: Option<u64>,
    /// Milliseconds to wait until every live node has applied the change; absent: do not wait.
    pub(crate) wait_millis: Option<u64>,
    /// Whether the container gets no resolver.
    pub(crate) no_dns: Option<bool>,
}

/// A configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// The version in which it speaks and wants to be answered.
    pub(crate) version: SpecVersion,
    /// What the specification describes.
    pub(crate) conf: NetConf,
    /// What is ours.
    pub(crate) own: OwnKeys,
    /// Whether a list of valid attachments was given, were it an empty one.
    pub(crate) lists_valid: bool,
}

impl Config {
    /// How long the agent may take over an answer.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(self.own.timeout_millis.unwrap_or(PATIENCE_MILLIS))
    }

    /// Milliseconds that ADD waits for a controller that is away.
    pub(crate) fn wait_controller_millis(&self) -> u64 {
        self.own.wait_controller_millis.unwrap_or(WAIT_CONTROLLER_MILLIS)
    }

    /// Where the agent listens.
    pub(crate) fn socket(&self) -> PathBuf {
        let usual = || PathBuf::from(znet_local::RUN_DIR).join(znet_local::SOCKET);
        self.own.agent_socket.clone().unwrap_or_else(usual)
    }

    /// What the runtime says of this container beside the specification's keys.
    fn runtime(&self, key: &str) -> Option<&Value> {
        self.conf.runtime_config.as_ref()?.custom.get(key)
    }

    /// What `args.cni` says: the convention for what people put into a configuration.
    fn cni_args(&self, key: &str) -> Option<&Value> {
        self.conf.args.as_ref()?.get("cni")?.get(key)
    }

    /// Labels and annotations of the container, from all places where runtimes put them.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let runtime = ["io.kubernetes.cri.pod-annotations", "annotations", "labels"];
        let places = [self.cni_args("labels")].into_iter().chain(runtime.map(|key| self.runtime(key)));
        for place in places.flatten() {
            match place {
                Value::Object(map) => {
                    labels.extend(map.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))));
                }
                Value::Array(list) => labels.extend(list.iter().filter_map(|pair| {
                    Some((pair.get("key")?.as_str()?.to_owned(), pair.get("value")?.as_str()?.to_owned()))
                })),
                _ => {}
            }
        }
        labels
    }

    /// The addresses that are asked for, by capability, by convention or by `CNI_ARGS`.
    pub(crate) fn addresses(&self, args: &Args) -> Result<Vec<IpAddr>, Error> {
        let mut found = Vec::new();
        for place in [self.runtime("ips"), self.cni_args("ips")].into_iter().flatten() {
            let texts: Vec<String> = serde_json::from_value(place.clone())
                .map_err(|error| Error::InvalidNetworkConfig(format!("ips {place}: {error}")))?;
            for text in texts {
                found.push(address(&text).map_err(|why| Error::InvalidNetworkConfig(format!("ips: {why}")))?);
            }
        }
        for text in args.get("IP").into_iter().flat_map(|text| text.split(',')) {
            found.push(address(text).map_err(|why| variable("CNI_ARGS", &format!("IP: {why}")))?);
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Refuses what an interface without link-layer addresses cannot have.
    pub(crate) fn refuse_mac(&self, args: &Args) -> Result<(), Error> {
        let asked = self.runtime("mac").or_else(|| self.cni_args("mac")).map(ToString::to_string);
        let asked = asked.or_else(|| args.get("MAC").map(str::to_owned));
        match asked {
            Some(mac) => Err(Error::UnsupportedNetworkConfiguration(format!(
                "mac: {mac}: a WireGuard interface has no link-layer address"
            ))),
            None => Ok(()),
        }
    }
}

/// An address, with or without a prefix length, which the network knows better.
fn address(text: &str) -> Result<IpAddr, String> {
    let text = text.trim();
    let bare = text.parse::<IpAddr>().or_else(|_| text.parse::<IpNet>().map(|net| net.addr()));
    bare.map_err(|_| format!("{text:?} is no address"))
}

/// Reads a configuration. With an error comes the version in which to tell it.
pub(crate) fn config(input: impl Read) -> Result<Config, (SpecVersion, Error)> {
    let newest = SpecVersion::CURRENT;
    let value = json(input).map_err(|error| (newest, error))?;
    let said = value.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    let version = said.parse::<SpecVersion>().ok().filter(|version| VERSIONS.contains(version));
    let Some(version) = version else {
        let spoken = VERSIONS.map(|version| version.to_string()).join(", ");
        let error = Error::IncompatibleVersion(format!("config is {said:?}, plugin speaks {spoken}"));
        return Err((newest, error));
    };
    read(version, value).map_err(|error| (version, error))
}

/// The JSON object on standard input.
pub(crate) fn json(input: impl Read) -> Result<Value, Error> {
    let mut bytes = Vec::new();
    let read = input.take(MAX_INPUT + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::IOFailure(format!("standard input: {error}")))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_INPUT) {
        return Err(Error::FailedToDecode(format!("the configuration is larger than {MAX_INPUT} bytes")));
    }
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Error::FailedToDecode("the configuration is no JSON object".to_owned())),
        Err(error) => Err(Error::FailedToDecode(format!("the configuration is no JSON: {error}"))),
    }
}

fn read(version: SpecVersion, value: Value) -> Result<Config, Error> {
    let lists_valid = value.get("cni.dev/valid-attachments").is_some();
    let conf: NetConf =
        serde_json::from_value(value).map_err(|error| Error::FailedToDecode(error.to_string()))?;
    conf.validate_name()?;
    let custom: Map<String, Value> = conf.custom.clone().into_iter().collect();
    let own: OwnKeys = serde_json::from_value(Value::Object(custom))
        .map_err(|error| Error::InvalidNetworkConfig(error.to_string()))?;
    if let Some(name) = &own.interface {
        name.parse::<InterfaceName>()
            .map_err(|error| Error::InvalidNetworkConfig(format!("interface: {}", error.details())))?;
    }
    Ok(Config { version, conf, own, lists_valid })
}

/// What `CNI_ARGS` says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Args(BTreeMap<String, String>);

impl Args {
    /// Reads `KEY=VALUE;KEY=VALUE`.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let mut pairs = BTreeMap::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(variable("CNI_ARGS", &format!("{pair:?} is no KEY=VALUE")));
            };
            pairs.insert(key.to_owned(), value.to_owned());
        }
        let lenient = pairs
            .get("IgnoreUnknown")
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "t" | "true"));
        let known = |key: &str| COMMON_ARGS.contains(&key) || OWN_ARGS.contains(&key);
        match pairs.keys().find(|key| !lenient && !known(key)) {
            Some(key) => {
                Err(variable("CNI_ARGS", &format!("{key} is not known; IgnoreUnknown=1 passes over it")))
            }
            None => Ok(Self(pairs)),
        }
    }

    /// A value that is not empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// What the environment says of a container.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// The runtime's identifier.
    pub(crate) container: ContainerId,
    /// The interface that it asks for.
    pub(crate) interface: InterfaceName,
    /// The path of the namespace; empty for a DEL whose namespace is gone.
    pub(crate) netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub(crate) args: Args,
}

impl Environment {
    /// Reads what `look_up` knows, which is the process's own environment but for tests.
    pub(crate) fn read(look_up: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Self, Error> {
        let text = |name: &str| match look_up(name).map(std::ffi::OsString::into_string) {
            None => Ok(String::new()),
            Some(Ok(text)) => Ok(text),
            Some(Err(_)) => Err(variable(name, "it is no UTF-8")),
        };
        let named = |name: &str, error: Error| variable(name, error.details());
        let container = ContainerId::try_from(text("CNI_CONTAINERID")?);
        let interface = InterfaceName::try_from(text("CNI_IFNAME")?);
        Ok(Self {
            container: container.map_err(|error| named("CNI_CONTAINERID", error))?,
            interface: interface.map_err(|error| named("CNI_IFNAME", error))?,
            netns: look_up("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from),
            args: Args::parse(&text("CNI_ARGS")?)?,
        })
    }

    /// The path of the namespace, without which nothing can be made or looked at.
    pub(crate) fn netns(&self) -> Result<PathBuf, Error> {
        let given = self.netns.as_ref().ok_or_else(|| variable("CNI_NETNS", "it is missing"))?;
        std::path::absolute(given).map_err(|error| variable("CNI_NETNS", &error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn configured(value: &Value) -> Config {
        config(value.to_string().as_bytes()).map_err(|(_, error)| error).unwrap()
    }

    fn refused(text: &str) -> (String, u32) {
        let (version, error) = config(text.as_bytes()).unwrap_err();
        (version.to_string(), u32::from(&error))
    }

    #[test]
    fn a_configuration_that_cannot_be_used_is_refused_in_the_version_that_it_speaks() {
        let newest = |code| ("1.1.0".to_owned(), code);
        assert_eq!(refused(""), newest(6));
        assert_eq!(refused("{\"cniVersion\":"), newest(6));
        assert_eq!(refused("[1]"), newest(6));
        assert_eq!(refused(r#"{"name":"znet","type":"znet-cni"}"#), newest(1));
        assert_eq!(refused(r#"{"cniVersion":"9.9.9","name":"znet","type":"znet-cni"}"#), newest(1));
        assert_eq!(refused(r#"{"cniVersion":"banana","name":"znet","type":"znet-cni"}"#), newest(1));
        let old = |code| ("0.4.0".to_owned(), code);
        assert_eq!(refused(r#"{"cniVersion":"0.4.0","type":"znet-cni"}"#), old(7));
        assert_eq!(refused(r#"{"cniVersion":"0.4.0","name":"../x","type":"znet-cni"}"#), old(7));
        assert_eq!(refused(r#"{"cniVersion":"0.4.0","name":"x","type":"znet-cni","network":7}"#), old(7));
        assert_eq!(
            refused(r#"{"cniVersion":"0.4.0","name":"x","type":"znet-cni","interface":"a b"}"#),
            old(7)
        );
    }

    #[test]
    fn an_input_without_an_end_is_read_to_a_bound() {
        let (_, error) = config(std::io::repeat(b' ')).unwrap_err();
        assert_eq!(u32::from(&error), 6);
        assert!(error.details().contains("larger than"), "{error}");
    }

    #[test]
    fn labels_and_addresses_are_found_where_runtimes_put_them() {
        let config = configured(&json!({
            "cniVersion": "1.0.0", "name": "x", "type": "znet-cni",
            "args": {"cni": {"labels": [{"key": "znet.name", "value": "web"}], "ips": ["fd00::7"]}},
            "runtimeConfig": {
                "io.kubernetes.cri.pod-annotations": {"znet.network": "acme", "znet.name": "db"},
                "ips": ["10.77.0.9/16", "fd00::7"],
            },
        }));
        let labels = config.labels();
        // What the runtime says of this container outranks what stands in the file for all.
        assert_eq!(labels.get("znet.name").map(String::as_str), Some("db"));
        assert_eq!(labels.get("znet.network").map(String::as_str), Some("acme"));
        let args = Args::parse("IP=10.77.0.9").unwrap();
        let wanted: Vec<IpAddr> = vec!["10.77.0.9".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(config.addresses(&args).unwrap(), wanted);
        assert_eq!(u32::from(&config.addresses(&Args::parse("IP=banana").unwrap()).unwrap_err()), 4);
        assert!(config.refuse_mac(&args).is_ok());
        assert_eq!(
            u32::from(&config.refuse_mac(&Args::parse("MAC=02:00:00:00:00:01").unwrap()).unwrap_err()),
            2
        );
    }

    #[test]
    fn unknown_arguments_are_refused_unless_they_are_to_be_ignored() {
        assert_eq!(Args::parse("ZNET_NAME=web;K8S_POD_NAME=p").unwrap().get("ZNET_NAME"), Some("web"));
        assert_eq!(Args::parse("IgnoreUnknown=1;FOO=bar").unwrap().get("FOO"), Some("bar"));
        for bad in ["FOO=bar", "IgnoreUnknown=0;FOO=bar", "ZNET_NAME"] {
            let error = Args::parse(bad).unwrap_err();
            assert!(u32::from(&error) == 4 && error.details().contains("CNI_ARGS"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_environment_is_refused_by_the_name_of_what_is_wrong_with_it() {
        let read = |pairs: &[(&str, &str)]| {
            let pairs: BTreeMap<String, String> =
                pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Environment::read(|name| pairs.get(name).map(Into::into))
        };
        let good = [("CNI_CONTAINERID", "a1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")];
        assert!(read(&good).unwrap().netns.is_none());
        for (bad, name) in [
            (vec![], "CNI_CONTAINERID"),
            (vec![("CNI_CONTAINERID", "../x"), ("CNI_IFNAME", "eth0")], "CNI_CONTAINERID"),
            (vec![("CNI_CONTAINERID", "a1")], "CNI_IFNAME"),
            (vec![("CNI_CONTAINERID", "a1"), ("CNI_IFNAME", "a-name-far-too-long")], "CNI_IFNAME"),
            (vec![("CNI_CONTAINERID", "a1"), ("CNI_IFNAME", "e/0")], "CNI_IFNAME"),
        ] {
            let error = read(&bad).unwrap_err();
            assert!(u32::from(&error) == 4 && error.details().contains(name), "{bad:?}: {error}");
        }
    }
}
