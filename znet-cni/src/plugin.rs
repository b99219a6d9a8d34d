//! The operations of the CNI specification 1.1, and of the older ones down to 0.4.

use std::io::{Read, Write as _};
use std::process::ExitCode;

use rscni_types::error::Error;
use rscni_types::types::{Cmd, ErrorResult};
use rscni_types::version::{PluginInfo, SpecVersion};
use serde_json::Value;
use znet_local::{
    AttachRequest, CheckRequest, Client, ClientError, CollectRequest, DetachOwnedRequest, Kept, Owner,
    ReadyRequest,
};

use crate::failure::{not_as_it_should_be, not_collected, of_agent, variable};
use crate::input::{self, Config, Environment};
use crate::{naming, result};

/// The kind of the owners that CNI has.
const KIND: &str = "cni";

/// Does what the environment and standard input say.
pub(crate) fn main() -> ExitCode {
    let said = run(|name| std::env::var_os(name), std::io::stdin().lock());
    let (text, code) = match said {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err((version, error)) => {
            let text = serde_json::to_string(&ErrorResult::new(version, &error));
            (text.unwrap_or_default(), ExitCode::FAILURE)
        }
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The text for standard output, or the error and the version in which to tell it.
fn run(
    look_up: impl Fn(&str) -> Option<std::ffi::OsString>,
    input: impl Read,
) -> Result<String, (SpecVersion, Error)> {
    let newest = |error| (SpecVersion::CURRENT, error);
    let command = look_up("CNI_COMMAND").unwrap_or_default();
    let command = command.to_str().unwrap_or_default();
    let command = command.parse::<Cmd>();
    let command = command.map_err(|error| newest(variable("CNI_COMMAND", error.details())))?;
    if command == Cmd::Version {
        return version(input).map_err(newest);
    }
    let config = input::config(input)?;
    let version = config.version;
    let allowed = version.allows(command);
    allowed.and_then(|()| act(command, &config, &look_up)).map_err(|error| (version, error))
}

fn act(
    command: Cmd,
    config: &Config,
    look_up: &impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<String, Error> {
    let client = Client::new(&config.socket(), config.patience());
    let environment = || Environment::read(look_up);
    match command {
        Cmd::Add => add(&client, config, &environment()?),
        Cmd::Del => del(&client, config, &environment()?),
        Cmd::Check => check(&client, config, &environment()?),
        Cmd::Gc => collect(&client, config),
        Cmd::Status => status(&client, config),
        Cmd::Version => Ok(String::new()),
    }
}

/// The versions that are spoken, told in the version that was asked in, if one was.
fn version(input: impl Read) -> Result<String, Error> {
    let asked = input::json(input).ok();
    let asked = asked.as_ref().and_then(|value| value.get("cniVersion")).and_then(Value::as_str);
    let versions = input::versions();
    let asked = asked.and_then(|text| text.parse().ok()).filter(|asked| versions.contains(asked));
    let info = PluginInfo::new(asked.unwrap_or(SpecVersion::CURRENT), versions);
    serde_json::to_string(&info).map_err(|error| Error::IOFailure(error.to_string()))
}

fn owner(config: &Config, environment: &Environment) -> Owner {
    Owner {
        kind: KIND.to_owned(),
        network: config.conf.name.clone(),
        container: environment.container.to_string(),
        interface: environment.interface.to_string(),
    }
}

fn add(client: &Client, config: &Config, environment: &Environment) -> Result<String, Error> {
    let netns = environment.netns()?;
    config.refuse_mac(&environment.args)?;
    let request = AttachRequest {
        network: naming::network(config, environment)?,
        name: naming::name(config, environment),
        netns: netns.clone(),
        ifname: config.own.interface.clone().unwrap_or_else(|| environment.interface.to_string()),
        addresses: config.addresses(&environment.args)?,
        wait_millis: config.own.wait_millis,
        wait_controller_millis: Some(config.wait_controller_millis()),
        owner: Some(owner(config, environment)),
        no_dns: config.own.no_dns.unwrap_or_default(),
    };
    let attached = client.attach(&request).map_err(|error| of_agent(&error))?;
    result::to_json(config, result::result(config, &attached, &netns))
}

/// Neither the namespace nor the network has to be there any more.
fn del(client: &Client, config: &Config, environment: &Environment) -> Result<String, Error> {
    let request = DetachOwnedRequest { owner: owner(config, environment) };
    client.detach(&request).map_err(|error| of_agent(&error))?;
    Ok(String::new())
}

fn check(client: &Client, config: &Config, environment: &Environment) -> Result<String, Error> {
    let request = CheckRequest { owner: owner(config, environment), netns: environment.netns()? };
    let checked = client.check(&request).map_err(|error| of_agent(&error))?;
    let mut wrong = checked.wrong;
    // What the runtime was told at ADD, as far as it is about this interface.
    if let Some(before) = &config.conf.prev_result {
        let ours = |index: u32| {
            let at = usize::try_from(index).ok()?;
            Some(before.interfaces.get(at)?.name == checked.container.ifname)
        };
        let told = before.ips.iter().filter(|ip| ip.interface.and_then(ours) == Some(true));
        let lost = told.filter(|ip| !checked.container.addresses.contains(&ip.address.addr()));
        wrong.extend(lost.map(|ip| format!("address {} is not the container's any more", ip.address.addr())));
    }
    match wrong.is_empty() {
        true => Ok(String::new()),
        false => Err(not_as_it_should_be(&wrong)),
    }
}

fn collect(client: &Client, config: &Config) -> Result<String, Error> {
    if !config.lists_valid {
        return Err(Error::InvalidNetworkConfig("cni.dev/valid-attachments is missing".to_owned()));
    }
    let valid = config.conf.valid_attachments.clone().unwrap_or_default();
    let keep = valid.into_iter().map(|valid| Kept { container: valid.container_id, interface: valid.ifname });
    let (kind, network) = (KIND.to_owned(), config.conf.name.clone());
    let request = CollectRequest { kind, network, keep: keep.collect(), untaken: false };
    let collected = client.collect(&request).map_err(|error| of_agent(&error))?;
    match collected.failed.is_empty() {
        true => Ok(String::new()),
        false => Err(not_collected(&collected.failed)),
    }
}

fn status(client: &Client, config: &Config) -> Result<String, Error> {
    let request = ReadyRequest { network: config.own.network.clone() };
    let ready = client.ready(&request).map_err(|error| match error {
        ClientError::Refused(refusal) => Error::PluginNotAvailable(refusal.detail),
        other => Error::PluginNotAvailable(other.to_string()),
    })?;
    let network = request.network.unwrap_or_else(|| "any network".to_owned());
    match (ready.engine, ready.controller) {
        (false, _) => Err(Error::PluginNotAvailableLimitedConnectivity(
            "no engine moves packets; the agent is starting one".to_owned(),
        )),
        (true, false) => Err(Error::PluginNotAvailable(format!(
            "the controller of {network} cannot be reached; existing containers go on"
        ))),
        (true, true) => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn said(pairs: &[(&str, &str)], input: &str) -> Result<String, (String, u32)> {
        let look_up =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        run(look_up, input.as_bytes()).map_err(|(version, error)| (version.to_string(), u32::from(&error)))
    }

    fn conf(version: &str) -> String {
        json!({"cniVersion": version, "name": "x", "type": "znet-cni", "network": "acme", "agentSocket": "/nonexistent"})
            .to_string()
    }

    #[test]
    fn versions_are_told_in_the_version_that_was_asked_in() {
        let versions = json!(["0.4.0", "1.0.0", "1.1.0"]);
        for (input, version) in
            [("", "1.1.0"), (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), (r#"{"cniVersion":"7.0.0"}"#, "1.1.0")]
        {
            let text = said(&[("CNI_COMMAND", "VERSION")], input).unwrap();
            let text: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(text, json!({"cniVersion": version, "supportedVersions": versions}));
        }
    }

    #[test]
    fn commands_that_are_missing_unknown_or_newer_than_the_version_are_refused() {
        assert_eq!(said(&[], &conf("1.1.0")), Err(("1.1.0".to_owned(), 4)));
        assert_eq!(said(&[("CNI_COMMAND", "add")], &conf("1.1.0")), Err(("1.1.0".to_owned(), 4)));
        for command in ["GC", "STATUS"] {
            assert_eq!(said(&[("CNI_COMMAND", command)], &conf("1.0.0")), Err(("1.0.0".to_owned(), 1)));
        }
    }

    #[test]
    fn without_an_agent_status_says_so_and_the_others_ask_to_try_again() {
        let container = [("CNI_CONTAINERID", "a1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/a")];
        let with = |command| [&[("CNI_COMMAND", command)], container.as_slice()].concat();
        for command in ["ADD", "DEL", "CHECK"] {
            assert_eq!(said(&with(command), &conf("0.4.0")), Err(("0.4.0".to_owned(), 11)), "{command}");
        }
        assert_eq!(said(&with("STATUS"), &conf("1.1.0")), Err(("1.1.0".to_owned(), 50)));
        // A list that is missing is not an empty one.
        assert_eq!(said(&with("GC"), &conf("1.1.0")), Err(("1.1.0".to_owned(), 7)));
    }
}
