//! `network` and `token`.

use ipnet::IpNet;
use serde::Serialize;
use znet_api::rest::{ChangeNetwork, CreateNetwork, CreateToken, Lifetime, Network, NewToken, Token};
use znet_cli::exit::{Failure, Kind};
use znet_cli::output::{self, Format};

use super::args::{NetworkCommand, TokenArgs, TokenCommand};
use super::ask::{Asker, failed};
use super::{Result, agree};

pub(super) const NETWORK_HEADINGS: [&str; 7] =
    ["NETWORK", "IPV6", "IPV4", "NODES", "CONTAINERS", "REVISION", "ID"];
pub(super) const TOKEN_HEADINGS: [&str; 6] = ["TOKEN", "LABEL", "USED", "EXPIRES", "NODES", "STATE"];

/// A network that was just created, and its first token.
#[derive(Serialize)]
struct Created {
    #[serde(flatten)]
    network: Network,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Token>,
}

impl Asker {
    pub(super) async fn network(&self, command: NetworkCommand) -> Result {
        match command {
            NetworkCommand::Create {
                name,
                prefix,
                reserve,
                rest,
                ephemeral_ttl,
                key_lifetime,
                token,
                no_token,
            } => {
                let new = CreateNetwork {
                    name,
                    prefixes: prefix,
                    reserved: reserve,
                    rest_seconds: rest.map(|rest| rest.as_secs()),
                    ephemeral_ttl_seconds: ephemeral_ttl.map(|ttl| ttl.as_secs()),
                    key_lifetime_seconds: key_lifetime.map(|lifetime| lifetime.as_secs()),
                };
                self.create_network(&new, (!no_token).then_some(token)).await
            }
            NetworkCommand::List => {
                let all = self.client.networks().await.map_err(failed)?;
                output::print(self.format, &all, &NETWORK_HEADINGS, all.iter().map(network_row));
                Ok(())
            }
            NetworkCommand::Show { network } => {
                self.print_network(&self.client.network(&network).await.map_err(failed)?)
            }
            NetworkCommand::Set { network, reserve, rest, ephemeral_ttl, key_lifetime } => {
                let change = ChangeNetwork {
                    reserved: reserve.map(ranges).transpose()?,
                    rest_seconds: rest.map(|rest| rest.as_secs()),
                    ephemeral_ttl_seconds: ephemeral_ttl.map(|ttl| ttl.as_secs()),
                    key_lifetime_seconds: key_lifetime.map(|lifetime| lifetime.as_secs()),
                };
                self.print_network(&self.client.change_network(&network, &change).await.map_err(failed)?)
            }
            NetworkCommand::Delete { network, yes } => {
                let found = self.client.network(&network).await.map_err(failed)?;
                let (nodes, containers) = (found.nodes, found.containers);
                let name = &found.name;
                agree(
                    yes,
                    &format!("Deletes network {name} with {nodes} nodes and {containers} containers"),
                )?;
                let removed = self.client.delete_network(&found.id).await.map_err(failed)?;
                let row = vec![found.name, removed.nodes.to_string(), removed.containers.to_string()];
                output::print(self.format, &removed, &["DELETED", "NODES", "CONTAINERS"], [row]);
                Ok(())
            }
            NetworkCommand::RotateKey { network, retire, yes } => {
                self.rotate_key(&network, retire, yes).await
            }
            NetworkCommand::NewEpoch { network, yes } => {
                agree(yes, &format!("Has all agents of network {network} accept this controller's history"))?;
                self.print_network(&self.client.new_epoch(&network).await.map_err(failed)?)
            }
        }
    }

    async fn create_network(&self, new: &CreateNetwork, token: Option<TokenArgs>) -> Result {
        let network = self.client.create_network(new).await.map_err(failed)?;
        let quiet = token.as_ref().is_some_and(|token| token.quiet);
        let made = match token {
            Some(token) => Some(self.client.create_token(&network.id, &wanted(token)).await.map_err(failed)?),
            None => None,
        };
        if self.format == Format::Json {
            let (join_token, token) = made.map(|made| (made.join_token, made.token)).unzip();
            output::json(&Created { network, join_token, token });
            return Ok(());
        }
        if !quiet {
            output::table(&NETWORK_HEADINGS, [network_row(&network)]);
        }
        if let Some(made) = made {
            self.print_token(&made, quiet);
        }
        Ok(())
    }

    fn print_network(&self, network: &Network) -> Result {
        output::print(self.format, network, &NETWORK_HEADINGS, [network_row(network)]);
        if self.format == Format::Table {
            let reserved: Vec<String> = network.reserved.iter().map(ToString::to_string).collect();
            let reserved = if reserved.is_empty() { "none".to_owned() } else { reserved.join(" ") };
            output::line(&format!("reserved ranges: {reserved}"));
            output::line(&format!("released addresses rest {} s", network.rest_seconds));
            output::line(&format!("ephemeral nodes may stay away {} s", network.ephemeral_ttl_seconds));
            if let Some(lifetime) = network.key_lifetime_seconds {
                output::line(&format!("keys are changed after {lifetime} s"));
            }
            output::line(&format!("created {}, epoch {}", network.created, network.epoch));
            print_ahead(network);
        }
        Ok(())
    }

    pub(super) async fn token(&self, command: TokenCommand) -> Result {
        match command {
            TokenCommand::Create { network, token } => {
                let quiet = token.quiet;
                let made = self.client.create_token(&network, &wanted(token)).await.map_err(failed)?;
                match self.format {
                    Format::Json => output::json(&made),
                    Format::Table => self.print_token(&made, quiet),
                }
            }
            TokenCommand::List { network } => {
                let all = self.client.tokens(&network).await.map_err(failed)?;
                output::print(self.format, &all, &TOKEN_HEADINGS, all.iter().map(token_row));
            }
            TokenCommand::Revoke { network, token, with_nodes, yes } => {
                let revoked = if with_nodes {
                    let what = format!("Removes all nodes of network {network} that joined by token {token}");
                    agree(yes, &what)?;
                    self.client.revoke_token_with_nodes(&network, &token).await
                } else {
                    self.client.revoke_token(&network, &token).await
                };
                let revoked = revoked.map_err(failed)?;
                output::print(self.format, &revoked, &TOKEN_HEADINGS, [token_row(&revoked)]);
            }
        }
        Ok(())
    }

    fn print_token(&self, made: &NewToken, quiet: bool) {
        if quiet {
            return output::line(&made.join_token);
        }
        output::line("");
        output::table(&TOKEN_HEADINGS, [token_row(&made.token)]);
        output::line(&format!(
            "\nOn each machine, with the token that is shown only now:\n\n  znet-agent run --join {}",
            made.join_token
        ));
    }
}

/// The request that the flags of a token come to.
fn wanted(token: TokenArgs) -> CreateToken {
    CreateToken {
        label: token.label,
        uses: token.uses,
        expires_in_seconds: token.expires.map(|expires| expires.as_secs()),
        lifetime: if token.ephemeral { Lifetime::Ephemeral } else { Lifetime::Lasting },
    }
}

fn ranges(texts: Vec<String>) -> Result<Vec<IpNet>> {
    let parse = |text: String| {
        let wrong = |error| Failure::new(Kind::Usage, "usage", format!("--reserve {text:?}: {error}"));
        text.parse::<IpNet>().map_err(wrong)
    };
    texts.into_iter().filter(|text| !text.is_empty()).map(parse).collect()
}

pub(super) fn network_row(network: &Network) -> Vec<String> {
    vec![
        network.name.clone(),
        network.prefix6.to_string(),
        network.prefix4.map_or_else(|| "-".to_owned(), |prefix| prefix.to_string()),
        network.nodes.to_string(),
        network.containers.to_string(),
        network.revision.to_string(),
        network.id.clone(),
    ]
}

/// Tells of nodes that refuse this controller's map, and what resolves that.
pub(super) fn print_ahead(network: &Network) {
    let Some(ahead) = &network.ahead else { return };
    let (nodes, name) = (ahead.nodes, &network.name);
    let have = if nodes == 1 { "node has" } else { "nodes have" };
    output::line(&format!(
        "\n{nodes} {have} applied network {name} up to revision {}, and this controller knows it up to revision {}: it \
         was\nrestored from an older backup. Their links go on, but they refuse its map, and no change reaches them. \
         When\neverything that should be in the network is in it:\n\n  znet-ctl network new-epoch {name}",
        ahead.revision, network.revision
    ));
}

pub(super) fn token_row(token: &Token) -> Vec<String> {
    let of = token.uses.map_or_else(|| "any".to_owned(), |uses| uses.to_string());
    let used_up = token.uses.is_some_and(|uses| token.used >= uses);
    let now = jiff::Timestamp::now();
    let passed = |text: &String| text.parse::<jiff::Timestamp>().is_ok_and(|expires| expires <= now);
    let state = match () {
        () if token.revoked => "revoked",
        () if token.expires.as_ref().is_some_and(passed) => "expired",
        () if used_up => "used up",
        () => "valid",
    };
    vec![
        token.id.clone(),
        token.label.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{} of {of}", token.used),
        token.expires.clone().unwrap_or_else(|| "never".to_owned()),
        match token.lifetime {
            Lifetime::Lasting => "lasting",
            Lifetime::Ephemeral => "ephemeral",
        }
        .to_owned(),
        state.to_owned(),
    ]
}
