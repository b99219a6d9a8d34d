//! `controllers`: where agents look for the controllers of networks.

use std::collections::BTreeMap;

use clap::Subcommand;
use znet_api::rest::{ChangeControllers, Controller, SetControllers};
use znet_cli::output;

use super::Result;
use super::ask::{Asker, failed};

const HEADINGS: [&str; 3] = ["NETWORK", "CONTROLLER", "PINS"];

/// What can be done with the list of controllers in the networks' maps.
#[derive(Debug, Subcommand)]
pub enum ControllerCommand {
    /// List where agents look for the controllers; nothing where join tokens alone tell
    #[command(
        after_help = "Examples:\n  znet-ctl controllers list\n  znet-ctl controllers list --network acme"
    )]
    List {
        /// The network, by name or identifier; all when absent
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
    },
    /// Have agents look there as well, after all others
    #[command(after_help = "Examples:\n  znet-ctl controllers add ctl2.example.net:7443")]
    Add {
        /// Where agents reach a controller
        #[arg(value_name = "HOST:PORT", required = true)]
        addresses: Vec<String>,
        /// The network, by name or identifier; all when absent
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
    },
    /// Have agents look there no more
    #[command(after_help = "Examples:\n  znet-ctl controllers remove ctl.example.net:7443 --network acme")]
    Remove {
        /// Where agents do not reach a controller any more
        #[arg(value_name = "HOST:PORT", required = true)]
        addresses: Vec<String>,
        /// The network, by name or identifier; all when absent
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
    },
    /// Replace the list; without an address join tokens alone tell
    #[command(
        after_help = "Examples:\n  znet-ctl controllers set c1.example.net:7443 c2.example.net:7443\n  znet-ctl controllers set --network acme"
    )]
    Set {
        /// Where agents reach controllers, in the order in which they try them
        #[arg(value_name = "HOST:PORT")]
        addresses: Vec<String>,
        /// The network, by name or identifier; all when absent
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
    },
}

impl Asker {
    pub(super) async fn controllers(&self, command: ControllerCommand) -> Result {
        let (ControllerCommand::List { network }
        | ControllerCommand::Add { network, .. }
        | ControllerCommand::Remove { network, .. }
        | ControllerCommand::Set { network, .. }) = &command;
        let mut found = BTreeMap::new();
        for network in self.one_or_all(network.as_deref()).await? {
            let client = &self.client;
            let now = match &command {
                ControllerCommand::List { .. } => client.controllers(&network).await,
                ControllerCommand::Add { addresses, .. } => {
                    let change = ChangeControllers { add: addresses.clone(), remove: Vec::new() };
                    client.change_controllers(&network, &change).await
                }
                ControllerCommand::Remove { addresses, .. } => {
                    let change = ChangeControllers { add: Vec::new(), remove: addresses.clone() };
                    client.change_controllers(&network, &change).await
                }
                ControllerCommand::Set { addresses, .. } => {
                    client.set_controllers(&network, &SetControllers { addresses: addresses.clone() }).await
                }
            };
            found.insert(network, now.map_err(failed)?);
        }
        let rows = found.iter().flat_map(|(network, all)| all.iter().map(move |one| row(network, one)));
        output::print(self.format, &found, &HEADINGS, rows);
        Ok(())
    }

    /// The network named, or all that there are.
    async fn one_or_all(&self, network: Option<&str>) -> Result<Vec<String>> {
        if let Some(network) = network {
            return Ok(vec![network.to_owned()]);
        }
        let all = self.client.networks().await.map_err(failed)?;
        Ok(all.into_iter().map(|network| network.name).collect())
    }
}

fn row(network: &str, controller: &Controller) -> Vec<String> {
    // A pin is long; its begin tells it apart. JSON has the whole.
    let short = |pin: &String| pin.chars().take(16).collect::<String>();
    let pins: Vec<_> = controller.pins.iter().map(short).collect();
    vec![network.to_owned(), controller.address.clone(), pins.join(" ")]
}
