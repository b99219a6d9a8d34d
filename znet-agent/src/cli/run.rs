//! `znet-agent run`: the daemon.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;
use znet_api::token::JoinToken;
use znet_cli::exit::{Failure, Kind};
use znet_core::name::{MAX_NAME_LEN, Name};

use super::args::RunArgs;
use super::ask::token_file;
use crate::agent::{Agent, Options};
use crate::attach::blocking;
use crate::{control, local, reconcile};

pub(super) async fn run(args: RunArgs, run_dir: PathBuf) -> Result<(), Failure> {
    znet_api::tls::install_provider();
    let tokens = tokens(&args)?;
    let options = Options {
        name: args.name.map_or_else(hostname, Ok)?,
        state_dir: args.state_dir,
        run_dir,
        listen_port: args.listen_port,
        advertise: args.advertise,
        keepalive: args.keepalive,
        map_cache: args.map_cache,
        dns: !args.no_dns,
        backend: args.backend,
    };
    // Signals that come from here on end the agent in an orderly way.
    let io = |error: std::io::Error| Failure::new(Kind::Failure, "signals", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let replace_engine = args.replace_engine;
    let agent = blocking(move || Agent::open(options, replace_engine)).await?;
    let listener = local::bind(&agent.options.run_dir.join(local::SOCKET))?;
    for joined in agent.networks() {
        tokio::spawn(control::run(agent.clone(), joined));
    }
    for token in tokens {
        join(&agent, &token).await?;
    }
    tokio::spawn(reconcile::run(agent.clone()));
    let serving = tokio::spawn(local::serve(listener, agent.clone()));
    tracing::info!(node = %agent.node, networks = agent.networks().len(), "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = serving => {
            let why = ended.map_or_else(|error| error.to_string(), |result| format!("{result:?}"));
            return Err(Failure::new(Kind::Failure, "local_socket", format!("the local socket ended: {why}")));
        }
    }
    tracing::info!("stopping; the engine and all links go on");
    for joined in agent.networks() {
        let agent = agent.clone();
        blocking(move || {
            agent.keep_map(&joined);
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Joins by a token. A controller that is away is waited for in the background; one that refuses ends the agent.
async fn join(agent: &Arc<Agent>, token: &JoinToken) -> Result<(), Failure> {
    let known = agent.network(token.network).is_some();
    match control::join_by_token(agent, token, true).await {
        Ok(_) => Ok(()),
        Err(error) if known => {
            // It is a member already; what the token is worth does not matter.
            tracing::warn!(network = %token.name, %error, "the token was not used");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn tokens(args: &RunArgs) -> Result<Vec<JoinToken>, Failure> {
    let mut texts: Vec<Zeroizing<String>> = args.join.iter().cloned().map(Zeroizing::new).collect();
    for path in &args.join_file {
        texts.push(Zeroizing::new(token_file(path)?));
    }
    let parse = |text: &Zeroizing<String>| {
        text.parse().map_err(|error| Failure::new(Kind::Usage, "invalid_token", error))
    };
    texts.iter().map(parse).collect()
}

/// The machine's hostname as a DNS label.
fn hostname() -> Result<Name, Failure> {
    let hostname =
        nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let label = hostname.split('.').next().unwrap_or_default().to_lowercase();
    let label: String =
        label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(MAX_NAME_LEN).collect();
    label.trim_matches('-').parse().map_err(|error| {
        Failure::new(
            Kind::Usage,
            "invalid_name",
            format!("the hostname {hostname:?} makes no node name: {error}"),
        )
        .hint("give one with --name")
    })
}
