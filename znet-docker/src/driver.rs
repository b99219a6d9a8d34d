//! What Docker asks for (libnetwork, `docs/remote.md`), one function a method.
//!
//! An endpoint of Docker's is a container of znet's whose device is lent: the agent makes it, Docker moves it. Its owner is
//! named after Docker's identifiers alone, so what takes it away again needs nothing that is kept here.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use axum::http::StatusCode;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use znet_local::{
    Client, CollectRequest, DetachOwnedRequest, HandOverRequest, LendRequest, Owner, ReadyRequest,
};

use crate::messages::{CreateEndpoint, CreateNetwork, DeleteNetwork, Endpoint, Join};
use crate::networks::Networks;
use crate::refusal::Refusal;

/// The kind of the owners that Docker has.
const KIND: &str = "docker";
/// How Docker calls interfaces: this and a number.
const PREFIX: &str = "eth";
/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Milliseconds to wait for a controller that is away.
const WAIT_CONTROLLER_MILLIS: u64 = 10_000;
/// Where Docker puts the options of `docker network create -o`.
const GENERIC: &str = "com.docker.network.generic";
/// Where it puts what `--publish` asks for.
const PORTS: &str = "com.docker.network.portmap";
/// The option that names the znet network.
const NETWORK: &str = "znet.network";
/// The driver option that names the container.
const NAME: &str = "znet.name";
/// The driver option with addresses to ask for.
const IP: &str = "znet.ip";
/// The driver option that leaves the resolver out.
const NO_DNS: &str = "znet.no-dns";
/// How our options begin.
const OURS: &str = "znet.";
/// As many characters of an endpoint's identifier as Docker shows.
const SHORT_ID: usize = 12;
/// Longest identifier that is taken; Docker's have 64 characters.
const MAX_ID: usize = 128;
/// The pools of Docker's `null` address manager.
const NO_POOLS: [&str; 3] = ["", "0.0.0.0/0", "::/0"];
/// A route that leads straight into the interface (`types.CONNECTED`).
const CONNECTED: u8 = 1;

/// Answers Docker.
#[derive(Debug)]
pub(crate) struct Driver {
    networks: Networks,
    agent: Client,
}

impl Driver {
    pub(crate) fn new(networks: Networks, agent_socket: &Path) -> Self {
        Self { networks, agent: Client::new(agent_socket, PATIENCE) }
    }

    /// Does what was asked for. Blocks.
    ///
    /// # Errors
    /// [`Refusal`], in words for whoever typed the command.
    pub(crate) fn call(&self, called: &str, body: &[u8]) -> Result<Value, Refusal> {
        match called {
            "Plugin.Activate" => Ok(self.activate()),
            // Docker keeps what is this machine's; who is reached is not bound to it.
            "NetworkDriver.GetCapabilities" => Ok(json!({ "Scope": "local", "ConnectivityScope": "global" })),
            "NetworkDriver.CreateNetwork" => self.create_network(&read(body)?),
            "NetworkDriver.DeleteNetwork" => self.delete_network(&read(body)?),
            "NetworkDriver.CreateEndpoint" => self.create_endpoint(&read(body)?),
            "NetworkDriver.EndpointOperInfo" => read(body).map(|_: Endpoint| json!({ "Value": {} })),
            "NetworkDriver.Join" => self.join(read(body)?),
            "NetworkDriver.Leave" | "NetworkDriver.DeleteEndpoint" => self.take_back(&read(body)?),
            // Nothing from outside gets in, which is said where ports are asked for; other nodes are the map's.
            "NetworkDriver.ProgramExternalConnectivity"
            | "NetworkDriver.RevokeExternalConnectivity"
            | "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete" => Ok(json!({})),
            "NetworkDriver.AllocateNetwork" | "NetworkDriver.FreeNetwork" => Err(Refusal::new(
                StatusCode::NOT_IMPLEMENTED,
                "a swarm has nothing to allocate here: create the network on each node, with --scope local, from the \
                 same znet network",
            )),
            other => Err(Refusal::new(StatusCode::NOT_FOUND, format!("there is no call {other:?}"))),
        }
    }

    /// Docker says this once, before it asks for anything. A container that an earlier daemon was about to start when it died
    /// is forgotten by Docker without a word, and its name would not be free until the agent takes back what nobody took.
    fn activate(&self) -> Value {
        self.networks.ids().iter().for_each(|docker| self.collect(docker, true));
        json!({ "Implements": ["NetworkDriver"] })
    }

    fn create_network(&self, asked: &CreateNetwork) -> Result<Value, Refusal> {
        let docker = identifier(&asked.network)?;
        let none = Map::new();
        let options = asked.options.as_ref().unwrap_or(&none);
        let options = match options.get(GENERIC) {
            None | Some(Value::Null) => &none,
            Some(Value::Object(options)) => options,
            Some(_) => return Err(Refusal::bad(format!("{GENERIC} is no object"))),
        };
        if let Some(unknown) = options.keys().find(|name| *name != NETWORK) {
            return Err(Refusal::bad(format!("there is no option {unknown:?}; there is {NETWORK}")));
        }
        let network = option(options, NETWORK)?.ok_or_else(|| {
            Refusal::bad(format!("no znet network is given: create the network with -o {NETWORK}=NETWORK"))
        })?;
        let pools = [&asked.ipv4, &asked.ipv6].into_iter().flatten().flatten();
        if let Some(pool) = pools.map(|pool| pool.pool.as_str()).find(|pool| !NO_POOLS.contains(pool)) {
            return Err(Refusal::bad(format!(
                "the addresses are those of the znet network, and {pool} is Docker's: create the network with \
                 --ipam-driver null and without --subnet"
            )));
        }
        // Whoever mistypes the name should learn it now and not from the first container.
        self.agent.ready(&ReadyRequest { network: Some(network.clone()) })?;
        self.networks.put(docker, &network)?;
        Ok(json!({}))
    }

    fn delete_network(&self, asked: &DeleteNetwork) -> Result<Value, Refusal> {
        let docker = identifier(&asked.network)?;
        // Docker deletes no network that has endpoints which it knows of.
        self.collect(docker, false);
        self.networks.remove(docker)?;
        Ok(json!({}))
    }

    /// Takes away what Docker does not know of any more: all of a network, or what was lent and never taken.
    fn collect(&self, docker: &str, untaken: bool) {
        let (kind, network) = (KIND.to_owned(), docker.to_owned());
        if let Err(error) = self.agent.collect(&CollectRequest { kind, network, keep: Vec::new(), untaken }) {
            tracing::warn!(network = docker, %error, "what may be left of this network was not looked for");
        }
    }

    fn create_endpoint(&self, asked: &CreateEndpoint) -> Result<Value, Refusal> {
        let owner = owner(&asked.of)?;
        let network = self.networks.get(&owner.network).ok_or_else(|| {
            let text = format!(
                "Docker's network {} is unknown here: delete it, and create it anew with -d znet",
                owner.network
            );
            Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, text)
        })?;
        refuse_foreign(asked)?;
        let none = Map::new();
        let options = asked.options.as_ref().unwrap_or(&none);
        let ours = |name: &&String| name.starts_with(OURS) && ![NAME, IP, NO_DNS].contains(&name.as_str());
        if let Some(unknown) = options.keys().find(ours) {
            let text = format!("there is no driver option {unknown:?}; there are {NAME}, {IP} and {NO_DNS}");
            return Err(Refusal::bad(text));
        }
        let short = || owner.container.chars().take(SHORT_ID).collect::<String>().to_ascii_lowercase();
        let request = LendRequest {
            network,
            name: option(options, NAME)?.unwrap_or_else(short),
            addresses: addresses(option(options, IP)?.as_deref().unwrap_or_default())?,
            wait_controller_millis: Some(WAIT_CONTROLLER_MILLIS),
            owner,
            no_dns: option(options, NO_DNS)?.is_some_and(|value| value != "false"),
        };
        let lent = self.agent.lend(&request)?;
        let mut interface = Map::new();
        for address in lent.addresses {
            let key = if address.is_ipv4() { "Address" } else { "AddressIPv6" };
            interface.insert(key.to_owned(), json!(IpNet::from(address)));
        }
        Ok(json!({ "Interface": interface }))
    }

    fn join(&self, asked: Join) -> Result<Value, Refusal> {
        let request = HandOverRequest { owner: owner(&asked.of)?, netns: asked.sandbox };
        let lent = self.agent.hand_over(&request)?;
        let route = |prefix: &IpNet| json!({ "Destination": prefix, "RouteType": CONNECTED });
        let routes: Vec<Value> = lent.routes.iter().map(route).collect();
        Ok(json!({
            "InterfaceName": { "SrcName": lent.device, "DstPrefix": PREFIX },
            "StaticRoutes": routes,
            // Without this Docker gives the container a second interface that leads to the internet.
            "DisableGatewayService": true,
        }))
    }

    /// Leaving and being deleted are one: an address rests from then on, and Docker makes a new endpoint for each start of
    /// a container.
    fn take_back(&self, asked: &Endpoint) -> Result<Value, Refusal> {
        self.agent.detach(&DetachOwnedRequest { owner: owner(asked)? })?;
        Ok(json!({}))
    }
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad(format!("the request: {error}")))
}

/// An identifier of Docker's. Names are made of it, so it is not just anything.
fn identifier(text: &str) -> Result<&str, Refusal> {
    let well = !text.is_empty() && text.len() <= MAX_ID && text.bytes().all(|b| b.is_ascii_alphanumeric());
    if well { Ok(text) } else { Err(Refusal::bad(format!("{text:?} is no identifier of Docker's"))) }
}

fn owner(of: &Endpoint) -> Result<Owner, Refusal> {
    Ok(Owner {
        kind: KIND.to_owned(),
        network: identifier(&of.network)?.to_owned(),
        container: identifier(&of.endpoint)?.to_owned(),
        interface: PREFIX.to_owned(),
    })
}

/// An option's text, if it is given and not empty.
fn option(options: &Map<String, Value>, name: &str) -> Result<Option<String>, Refusal> {
    match options.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => Err(Refusal::bad(format!("{name} is no text"))),
    }
}

fn addresses(text: &str) -> Result<Vec<IpAddr>, Refusal> {
    let bad = |part: &str| Refusal::bad(format!("{IP}: {part:?} is no address"));
    text.split(' ').filter(|part| !part.is_empty()).map(|part| part.parse().map_err(|_| bad(part))).collect()
}

/// What Docker would decide, and a znet network decides by itself or does not have.
fn refuse_foreign(asked: &CreateEndpoint) -> Result<(), Refusal> {
    let interface = asked.interface.as_ref();
    let chosen = interface.map(|i| [i.address.as_str(), i.address6.as_str()]).into_iter().flatten();
    if let Some(address) = chosen.into_iter().find(|address| !address.is_empty()) {
        return Err(Refusal::bad(format!(
            "{address} is an address of Docker's: create the network with --ipam-driver null; to ask for one of the znet \
             network's, use --network name=NETWORK,driver-opt={IP}=ADDRESS"
        )));
    }
    if interface.is_some_and(|interface| !interface.mac.is_empty()) {
        return Err(Refusal::bad("a WireGuard interface has no link-layer address: leave --mac-address out"));
    }
    let ports = asked.options.as_ref().and_then(|options| options.get(PORTS)).and_then(Value::as_array);
    if ports.is_some_and(|ports| !ports.is_empty()) {
        return Err(Refusal::bad("nothing from outside gets into a znet network: leave --publish out"));
    }
    Ok(())
}
