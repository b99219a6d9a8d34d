//! The OCI hook: what a runtime without CNI calls when a container was created and when it is gone, with the
//! container's state on standard input (OCI runtime specification, sections "State" and "POSIX-platform Hooks").

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use znet_local::{AttachRequest, Client, DetachOwnedRequest, Owner};

use crate::input;
use crate::naming::{NAME_LABEL, NETWORK_LABEL, label};

/// The kind of the owners that OCI hooks have.
const KIND: &str = "oci";
/// The interface unless it is said otherwise.
const INTERFACE: &str = "znet0";
/// The label, or annotation, that names the interface.
const INTERFACE_LABEL: &str = "znet.interface";
/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Milliseconds to wait for a controller that is away.
const WAIT_CONTROLLER_MILLIS: u64 = 10_000;

/// A container's state, as far as it matters here.
#[derive(Debug, Deserialize)]
struct State {
    id: String,
    status: String,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What the hook's arguments say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Flags {
    network: Option<String>,
    name: Option<String>,
    interface: Option<String>,
    agent_socket: Option<PathBuf>,
}

/// Does what the state on standard input asks for.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: znet-cni oci-hook: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[OsString]) -> Result<(), String> {
    let flags = flags(args)?;
    let state = input::json(std::io::stdin().lock()).map_err(|error| error.to_string())?;
    let state: State =
        serde_json::from_value(state).map_err(|error| format!("the container's state: {error}"))?;
    let usual = || PathBuf::from(znet_local::RUN_DIR).join(znet_local::SOCKET);
    let client = Client::new(&flags.agent_socket.clone().unwrap_or_else(usual), PATIENCE);
    match state.status.as_str() {
        "stopped" => client.detach(&DetachOwnedRequest { owner: owner(&flags, &state) }).map(drop),
        "creating" | "created" => client.attach(&request(&flags, &state)?).map(drop),
        other => return Err(format!("nothing is to be done for a container that is {other:?}")),
    }
    .map_err(|error| error.to_string())
}

/// What is said of one container outranks what is said of all.
fn pick(state: &State, key: &str, flag: Option<&String>) -> Option<String> {
    state.annotations.get(key).or(flag).cloned().filter(|value| !value.is_empty())
}

fn interface(flags: &Flags, state: &State) -> String {
    pick(state, INTERFACE_LABEL, flags.interface.as_ref()).unwrap_or_else(|| INTERFACE.to_owned())
}

fn owner(flags: &Flags, state: &State) -> Owner {
    Owner {
        kind: KIND.to_owned(),
        network: String::new(),
        container: state.id.clone(),
        interface: interface(flags, state),
    }
}

fn request(flags: &Flags, state: &State) -> Result<AttachRequest, String> {
    if state.pid == 0 {
        return Err(
            "the container has no process yet: this is a hook for createRuntime and poststop".to_owned()
        );
    }
    let network = pick(state, NETWORK_LABEL, flags.network.as_ref());
    Ok(AttachRequest {
        network: network.ok_or(
            "no network is given: add --network NETWORK to the hook's args, or the annotation znet.network",
        )?,
        name: pick(state, NAME_LABEL, flags.name.as_ref()).unwrap_or_else(|| label(&state.id)),
        netns: PathBuf::from(format!("/proc/{}/ns/net", state.pid)),
        ifname: interface(flags, state),
        addresses: Vec::new(),
        wait_millis: None,
        wait_controller_millis: Some(WAIT_CONTROLLER_MILLIS),
        owner: Some(owner(flags, state)),
        no_dns: false,
    })
}

fn flags(args: &[OsString]) -> Result<Flags, String> {
    let mut flags = Flags::default();
    let mut rest = args.iter();
    while let Some(flag) = rest.next() {
        let flag = flag.to_str().unwrap_or_default();
        let value = rest.next().and_then(|value| value.to_str()).map(str::to_owned);
        let value = value.ok_or_else(|| format!("{flag} needs a value"))?;
        match flag {
            "--network" => flags.network = Some(value),
            "--name" => flags.name = Some(value),
            "--interface" => flags.interface = Some(value),
            "--agent-socket" => flags.agent_socket = Some(value.into()),
            _ => return Err(format!("there is no flag {flag:?}; see znet-cni --help")),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn parsed(words: &[&str]) -> Result<Flags, String> {
        flags(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn annotations_outrank_flags_and_the_identifier_makes_the_name() {
        let flags = parsed(&["--network", "acme"]).unwrap();
        let plain: State = serde_json::from_value(
            json!({"ociVersion": "1.0.2", "id": "web_1", "status": "creating", "pid": 7}),
        )
        .unwrap();
        let asked = request(&flags, &plain).unwrap();
        assert_eq!((asked.network.as_str(), asked.ifname.as_str()), ("acme", "znet0"));
        assert_eq!(asked.name, label("web_1"));
        assert_eq!(asked.netns, PathBuf::from("/proc/7/ns/net"));
        let annotated: State =
            serde_json::from_value(json!({"id": "x", "status": "creating", "pid": 7, "annotations":
            {"znet.network": "blue", "znet.name": "web", "znet.interface": "eth0"}}))
            .unwrap();
        let asked = request(&flags, &annotated).unwrap();
        assert_eq!(
            (asked.network.as_str(), asked.name.as_str(), asked.ifname.as_str()),
            ("blue", "web", "eth0")
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_reason() {
        let stopped: State = serde_json::from_value(json!({"id": "x", "status": "created"})).unwrap();
        assert!(request(&Flags::default(), &stopped).unwrap_err().contains("no process"));
        let running: State =
            serde_json::from_value(json!({"id": "x", "status": "created", "pid": 7})).unwrap();
        assert!(request(&Flags::default(), &running).unwrap_err().contains("--network"));
        assert!(parsed(&["--network"]).unwrap_err().contains("needs a value"));
        assert!(parsed(&["--banana", "1"]).unwrap_err().contains("--banana"));
    }
}
