//! A small deployment tool over znet's client library: it makes a network, hands out a join token, and waits until the
//! deployment stands. Copy it and make it yours.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use ipnet::IpNet;
use tokio::time::Instant;
use znet_api::client::{ClientError, ControllerClient, Target};
use znet_api::rest::{Container, CreateNetwork, CreateToken, Reserve};
use znet_api::tls::Pin;
use znet_api::token::OperatorToken;

/// How often the controller is asked how far the deployment is.
const LOOK: Duration = Duration::from_millis(250);

/// Creates a network and waits until its nodes and containers are there.
#[derive(Debug, Parser)]
#[command(
    name = "deploy",
    after_help = "Examples:\n  deploy acme --prefix 10.77.0.0/16 --nodes 2 --container db --container web\n  \
                  ZNET_CONTROLLER=ctl.example.net:7443 ZNET_PIN=… ZNET_OPERATOR_TOKEN=… deploy acme --nodes 3"
)]
struct Args {
    /// The network's name
    network: String,
    /// Its prefixes
    #[arg(long, value_name = "PREFIX")]
    prefix: Vec<IpNet>,
    /// How many nodes have to be there
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// A container that has to be there; a name is kept for it
    #[arg(long, value_name = "NAME")]
    container: Vec<String>,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// The socket of a controller on this machine
    #[arg(long, value_name = "PATH", default_value = "/run/znet-ctl/ctl.sock", env = "ZNET_CTL_SOCKET")]
    socket: PathBuf,
    /// A controller elsewhere, HOST:PORT
    #[arg(long, value_name = "HOST:PORT", env = "ZNET_CONTROLLER", requires_all = ["pin", "operator_token"])]
    controller: Option<String>,
    /// The pin of its TLS key
    #[arg(long, value_name = "HEX", env = "ZNET_PIN")]
    pin: Option<Pin>,
    /// The operator's token
    #[arg(long, value_name = "TOKEN", env = "ZNET_OPERATOR_TOKEN", hide_env_values = true)]
    operator_token: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    znet_api::tls::install_provider();
    let client = ControllerClient::new(target(&args)?);
    ensure_network(&client, &args).await?;
    for name in &args.container {
        client.reserve(&args.network, name, &Reserve::default()).await?;
    }
    let uses = u32::try_from(args.nodes).context("too many nodes")?;
    let wanted = CreateToken { uses: Some(uses), expires_in_seconds: Some(3_600), ..CreateToken::default() };
    let token = client.create_token(&args.network, &wanted).await?;
    println!("on each of the {} machines:\n\n  znet-agent run --join {}\n", args.nodes, token.join_token);
    let containers = wait(&client, &args).await?;
    println!("network {} stands:", args.network);
    for container in containers {
        let addresses: Vec<String> = container.addresses.iter().map(ToString::to_string).collect();
        println!("  {} on {}: {}", container.name, container.node, addresses.join(" "));
    }
    Ok(())
}

fn target(args: &Args) -> Result<Target> {
    let Some(address) = args.controller.clone() else { return Ok(Target::Socket(args.socket.clone())) };
    let pin = args.pin.context("--pin is missing")?;
    let token: OperatorToken =
        args.operator_token.as_deref().context("--operator-token is missing")?.parse()?;
    Ok(Target::Remote { address, pin, token })
}

/// Creates the network, unless it is there from an earlier run.
async fn ensure_network(client: &ControllerClient, args: &Args) -> Result<()> {
    let prefixes = args.prefix.clone();
    let new = CreateNetwork { name: args.network.clone(), prefixes, ..CreateNetwork::default() };
    match client.create_network(&new).await {
        Ok(network) => println!("created network {} ({})", network.name, network.prefix6),
        Err(ClientError::Problem(problem)) if problem.code == "name_taken" => {
            println!("network {} is there already", args.network);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Waits until enough nodes live and all containers are attached.
async fn wait(client: &ControllerClient, args: &Args) -> Result<Vec<Container>> {
    let deadline = Instant::now() + args.timeout;
    let mut told = (usize::MAX, usize::MAX);
    loop {
        let live = client.nodes(&args.network).await?.iter().filter(|node| node.live).count();
        let containers = client.containers(&args.network).await?;
        let missing: Vec<&String> =
            args.container.iter().filter(|name| !containers.iter().any(|c| c.name == **name)).collect();
        if live >= args.nodes && missing.is_empty() {
            return Ok(containers);
        }
        if told != (live, missing.len()) {
            told = (live, missing.len());
            println!("{live} of {} nodes, {} containers missing", args.nodes, missing.len());
        }
        if Instant::now() >= deadline {
            bail!("gave up: {live} of {} nodes live, missing containers: {missing:?}", args.nodes);
        }
        tokio::time::sleep(LOOK).await;
    }
}
