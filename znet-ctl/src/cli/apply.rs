//! `apply`: from what is to what a manifest says, as a list of steps that can be shown without being taken.

use std::io::Read as _;
use std::path::Path;

use ipnet::IpNet;
use serde::Serialize;
use znet_api::client::ClientError;
use znet_api::manifest::{MAX_MANIFEST, Manifest, ManifestError};
use znet_api::rest::{ChangeNetwork, CreateNetwork, CreateToken, Network, Reservation, Reserve, Token};
use znet_cli::exit::{Failure, Kind};
use znet_cli::output::{self, Format};

use super::Result;
use super::ask::{Asker, failed};

/// What is there already.
#[derive(Debug, Default)]
struct Present {
    network: Option<Network>,
    tokens: Vec<Token>,
    reservations: Vec<Reservation>,
}

/// One step on the way.
#[derive(Debug)]
enum Step {
    CreateNetwork(CreateNetwork),
    ChangeNetwork(ChangeNetwork),
    CreateToken(String, CreateToken),
    Reserve(String, Reserve),
    Unreserve(String),
}

/// A step as it is shown.
#[derive(Serialize)]
struct Shown {
    change: &'static str,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token: Option<String>,
}

impl Asker {
    pub(super) async fn apply(&self, file: &Path, dry_run: bool) -> Result {
        let manifest = read(file)?;
        let present = self.present(&manifest.network.name).await?;
        let steps = plan(&manifest, &present)?;
        let mut shown = Vec::new();
        for step in steps {
            let (change, what) = step.words();
            let join_token = if dry_run { None } else { self.take(&manifest.network.name, step).await? };
            shown.push(Shown { change, what, join_token });
        }
        if self.format == Format::Json {
            output::json(&shown);
            return Ok(());
        }
        for step in &shown {
            output::line(&format!("{} {}", step.change, step.what));
            if let Some(token) = &step.join_token {
                output::line(&format!("    {token}"));
            }
        }
        output::line(match (shown.is_empty(), dry_run) {
            (true, _) => "everything is as the manifest says",
            (false, true) => "nothing was done, as this is a dry run",
            (false, false) => "done",
        });
        Ok(())
    }

    async fn present(&self, name: &str) -> Result<Present> {
        let network = match self.client.network(name).await {
            Ok(network) => network,
            Err(ClientError::Problem(problem)) if problem.status == 404 => return Ok(Present::default()),
            Err(error) => return Err(failed(error)),
        };
        Ok(Present {
            tokens: self.client.tokens(name).await.map_err(failed)?,
            reservations: self.client.reservations(name).await.map_err(failed)?,
            network: Some(network),
        })
    }

    /// Takes a step; the text of a token that was made by it.
    async fn take(&self, network: &str, step: Step) -> Result<Option<String>> {
        match step {
            Step::CreateNetwork(new) => drop(self.client.create_network(&new).await.map_err(failed)?),
            Step::ChangeNetwork(change) => {
                drop(self.client.change_network(network, &change).await.map_err(failed)?);
            }
            Step::CreateToken(_, token) => {
                return Ok(Some(self.client.create_token(network, &token).await.map_err(failed)?.join_token));
            }
            Step::Reserve(name, reserve) => {
                drop(self.client.reserve(network, &name, &reserve).await.map_err(failed)?);
            }
            Step::Unreserve(name) => self.client.unreserve(network, &name).await.map_err(failed)?,
        }
        Ok(None)
    }
}

impl Step {
    /// The kind of change, as in a diff, and what is changed.
    fn words(&self) -> (&'static str, String) {
        match self {
            Self::CreateNetwork(new) => ("+", format!("network {} {}", new.name, list(&new.prefixes))),
            Self::ChangeNetwork(change) => {
                let reserved =
                    change.reserved.as_ref().map(|ranges| format!("reserved ranges {}", list(ranges)));
                let rest = change.rest_seconds.map(|seconds| format!("rest {seconds} s"));
                let ttl = change.ephemeral_ttl_seconds.map(|seconds| format!("ephemeral-ttl {seconds} s"));
                let lifetime = change.key_lifetime_seconds.map(|seconds| format!("key-lifetime {seconds} s"));
                let words = [Some("network:".to_owned()), reserved, rest, ttl, lifetime];
                ("~", words.into_iter().flatten().collect::<Vec<_>>().join(" "))
            }
            Self::CreateToken(label, _) => ("+", format!("token {label}")),
            Self::Reserve(name, reserve) => ("+", format!("container {name} {}", list(&reserve.addresses))),
            Self::Unreserve(name) => ("-", format!("container {name}")),
        }
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn read(file: &Path) -> Result<Manifest> {
    let wrong =
        |error: ManifestError| Failure::new(Kind::Usage, "manifest", format!("{}: {error}", file.display()));
    let unreadable =
        |error: std::io::Error| Failure::new(Kind::Usage, "manifest", format!("{}: {error}", file.display()));
    let mut text = String::new();
    if file == Path::new("-") {
        let mut input = std::io::stdin().lock().take(MAX_MANIFEST as u64 + 1);
        input.read_to_string(&mut text).map_err(unreadable)?;
        // Every manifest in TOML begins with a table, and none in YAML does.
        let is_toml = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        return match is_toml.is_some_and(|line| line.starts_with('[')) {
            true => Manifest::from_toml(&text).map_err(wrong),
            false => Manifest::from_yaml(&text).map_err(wrong),
        };
    }
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    opened.take(MAX_MANIFEST as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("yaml" | "yml") => Manifest::from_yaml(&text).map_err(wrong),
        _ => Manifest::from_toml(&text).map_err(wrong),
    }
}

/// The steps from what is present to what the manifest says.
fn plan(manifest: &Manifest, present: &Present) -> Result<Vec<Step>> {
    let seconds = |text: &Option<String>| -> Result<Option<u64>> {
        let parsed = text.as_deref().map(znet_api::manifest::seconds).transpose();
        parsed.map_err(|error| Failure::new(Kind::Usage, "manifest", error))
    };
    let wanted = &manifest.network;
    let mut steps = Vec::new();
    let rest_seconds = seconds(&wanted.rest)?;
    let ephemeral_ttl_seconds = seconds(&wanted.ephemeral_ttl)?;
    let key_lifetime_seconds = seconds(&wanted.key_lifetime)?;
    match &present.network {
        None => steps.push(Step::CreateNetwork(CreateNetwork {
            name: wanted.name.clone(),
            prefixes: wanted.prefixes.clone(),
            reserved: wanted.reserved.clone(),
            rest_seconds,
            ephemeral_ttl_seconds,
            key_lifetime_seconds,
        })),
        Some(network) => {
            same_prefixes(&wanted.prefixes, network)?;
            let sorted = |ranges: &[IpNet]| {
                let mut ranges: Vec<IpNet> = ranges.iter().map(IpNet::trunc).collect();
                ranges.sort();
                ranges
            };
            let reserved =
                (sorted(&wanted.reserved) != sorted(&network.reserved)).then(|| wanted.reserved.clone());
            let rest_seconds = rest_seconds.filter(|seconds| *seconds != network.rest_seconds);
            let present = network.ephemeral_ttl_seconds;
            let ephemeral_ttl_seconds = ephemeral_ttl_seconds.filter(|seconds| *seconds != present);
            // Of a network whose keys are used for ever nothing is told, and 0 asks for that.
            let present = network.key_lifetime_seconds.unwrap_or_default();
            let key_lifetime_seconds = key_lifetime_seconds.filter(|seconds| *seconds != present);
            let change =
                ChangeNetwork { reserved, rest_seconds, ephemeral_ttl_seconds, key_lifetime_seconds };
            if change != ChangeNetwork::default() {
                steps.push(Step::ChangeNetwork(change));
            }
        }
    }
    for token in &manifest.tokens {
        let is_there = |present: &Token| !present.revoked && present.label.as_deref() == Some(&token.label);
        if !present.tokens.iter().any(is_there) {
            let request = CreateToken {
                label: Some(token.label.clone()),
                uses: token.uses,
                expires_in_seconds: seconds(&token.expires)?,
                lifetime: token.lifetime,
            };
            steps.push(Step::CreateToken(token.label.clone(), request));
        }
    }
    for kept in &present.reservations {
        if !manifest.containers.iter().any(|container| container.name == kept.name) {
            steps.push(Step::Unreserve(kept.name.clone()));
        }
    }
    for container in &manifest.containers {
        let fits = |kept: &Reservation| {
            kept.name == container.name
                && container.addresses.iter().all(|address| kept.addresses.contains(address))
        };
        if !present.reservations.iter().any(fits) {
            let reserve = Reserve { addresses: container.addresses.clone() };
            steps.push(Step::Reserve(container.name.clone(), reserve));
        }
    }
    Ok(steps)
}

/// The prefixes of a network never change; those that the manifest names must be those that it has.
fn same_prefixes(wanted: &[IpNet], network: &Network) -> Result {
    let has = |prefix: &IpNet| {
        let prefix = prefix.trunc();
        prefix == network.prefix6 || Some(prefix) == network.prefix4
    };
    match wanted.iter().find(|prefix| !has(prefix)) {
        None => Ok(()),
        Some(prefix) => {
            let have = [Some(network.prefix6), network.prefix4].into_iter().flatten().collect::<Vec<_>>();
            let error = format!(
                "network {} has the prefixes {}, the manifest says {prefix}; prefixes cannot change",
                network.name,
                list(&have)
            );
            Err(Failure::new(Kind::Conflict, "prefix_differs", error)
                .hint("choose another name for the new network, or delete this one first"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    const TEXT: &str = "[network]\nname = 'shop'\nprefixes = ['10.77.0.0/16']\nrest = '1m'\n\
                        [[tokens]]\nlabel = 'nodes'\nexpires = '7d'\n[[containers]]\nname = 'db'\naddresses = ['10.77.0.10']\n";

    fn there() -> Present {
        let network = Network {
            id: "00".repeat(16),
            name: "shop".to_owned(),
            prefix6: "fd00::/48".parse().unwrap(),
            prefix4: Some("10.77.0.0/16".parse().unwrap()),
            reserved: vec![],
            rest_seconds: 60,
            key_lifetime_seconds: None,
            ephemeral_ttl_seconds: 300,
            created: String::new(),
            epoch: 0,
            revision: 3,
            nodes: 0,
            containers: 0,
            ahead: None,
        };
        let token = Token {
            id: "00".repeat(8),
            label: Some("nodes".to_owned()),
            uses: None,
            used: 0,
            expires: None,
            lifetime: znet_api::rest::Lifetime::Lasting,
            revoked: false,
            created: String::new(),
        };
        let addresses = vec!["fd00::5".parse().unwrap(), "10.77.0.10".parse().unwrap()];
        let kept = Reservation { name: "db".to_owned(), addresses, attached: false };
        Present { network: Some(network), tokens: vec![token], reservations: vec![kept] }
    }

    #[test]
    fn what_is_there_needs_no_steps() {
        assert!(plan(&Manifest::from_toml(TEXT).unwrap(), &there()).unwrap().is_empty());
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_not_named_is_given_up() {
        let manifest = Manifest::from_toml(TEXT).unwrap();
        let words = |present: &Present| {
            let steps = plan(&manifest, present).unwrap();
            steps.iter().map(Step::words).map(|(change, what)| format!("{change} {what}")).collect::<Vec<_>>()
        };
        let all = ["+ network shop 10.77.0.0/16", "+ token nodes", "+ container db 10.77.0.10"];
        assert_eq!(words(&Present::default()), all);
        let mut present = there();
        present.tokens[0].revoked = true;
        present.reservations[0].name = "old".to_owned();
        present.network.as_mut().unwrap().rest_seconds = 600;
        let steps = ["~ network: rest 60 s", "+ token nodes", "- container old", "+ container db 10.77.0.10"];
        assert_eq!(words(&present), steps);
        present = there();
        present.network.as_mut().unwrap().key_lifetime_seconds = Some(60);
        assert!(words(&present).is_empty(), "what the manifest says nothing of stays");
        for (text, steps) in [
            ("1m", vec![]),
            ("30d", vec!["~ network: key-lifetime 2592000 s"]),
            ("0s", vec!["~ network: key-lifetime 0 s"]),
        ] {
            let manifest = TEXT.replace("rest =", &format!("key_lifetime = '{text}'\nrest ="));
            let manifest = Manifest::from_toml(&manifest).unwrap();
            let taken: Vec<_> = plan(&manifest, &present).unwrap().iter().map(Step::words).collect();
            assert_eq!(
                taken.iter().map(|(change, what)| format!("{change} {what}")).collect::<Vec<_>>(),
                steps
            );
        }
    }

    #[test]
    fn prefixes_that_differ_are_an_error() {
        let mut present = there();
        present.network.as_mut().unwrap().prefix4 = Some("10.78.0.0/16".parse().unwrap());
        let failure = plan(&Manifest::from_toml(TEXT).unwrap(), &present).unwrap_err();
        assert_eq!(failure.kind, Kind::Conflict);
        assert!(
            failure.error.contains("10.78.0.0/16") && failure.error.contains("10.77.0.0/16"),
            "{}",
            failure.error
        );
    }
}
