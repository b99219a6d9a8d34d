//! Nodes that attach containers until SIGTERM, whatever becomes of the controller.
//!
//! What was acknowledged is printed, one line each: `ack NAME ADDRESS…`. What was not is asked again under the same name.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use znet_api::token::JoinToken;
use znet_tests::{FleetNode, Result};

/// How long a node rests after an attempt that failed.
const PAUSE: Duration = Duration::from_millis(20);

static DONE: AtomicBool = AtomicBool::new(false);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    znet_api::tls::install_provider();
    let mut args = std::env::args().skip(1);
    let token: JoinToken = args.next().context("fleet TOKEN NODES [NAME]")?.parse()?;
    let nodes: usize = args.next().context("fleet TOKEN NODES")?.parse()?;
    let name = args.next().unwrap_or_else(|| "fleet".to_owned());
    let fleet = FleetNode::join_all(&token, &name, nodes).await?;
    println!("joined");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        terminate.recv().await;
        DONE.store(true, Ordering::Relaxed);
    });
    futures_util::future::join_all(fleet.into_iter().map(work)).await;
    println!("done");
    Ok(())
}

async fn work(mut node: FleetNode) {
    let mut number = 0;
    while !DONE.load(Ordering::Relaxed) {
        match node.attach(number).await {
            Ok(acknowledged) => {
                let addresses: Vec<String> = acknowledged.addresses.iter().map(ToString::to_string).collect();
                println!("ack {} {}", acknowledged.name, addresses.join(" "));
                let _ = std::io::stdout().flush();
                number += 1;
            }
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                let _ = node.reconnect().await;
            }
        }
    }
}
