//! Has schemathesis compare what a controller does with what its OpenAPI document says.
//!
//! `api_test SCHEMATHESIS CONFIGURATION [FLAG…]`: a controller of its own, an operator who may do everything, and a door on loopback
//! without TLS, as schemathesis knows no pins. Whatever goes through that door goes on to the controller's TLS port.
//! Afterwards the controller must be alive and must have neither logged an error nor answered with a fault of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::Mutex;
use znet_api::agent_client::tls_stream;
use znet_api::client::{ControllerClient, Target};
use znet_api::rest::OperatorRole;
use znet_api::tls::{Pin, client_config};
use znet_tests::{FleetNode, Result, Served};

/// How long one run may take.
const BOUND: Duration = Duration::from_secs(120);
/// The operation that takes operators' tokens away.
const REVOKE: &str = "revoke_operator";

#[tokio::main]
async fn main() -> Result {
    znet_api::tls::install_provider();
    let mut args = std::env::args_os().skip(1);
    let usage = "api_test SCHEMATHESIS CONFIGURATION [FLAG…]; ./x api-test knows them";
    let mut path = || -> Result<PathBuf> { Ok(std::path::absolute(args.next().context(usage)?)?) };
    let (program, config) = (path()?, path()?);
    // It leaves notes where it runs.
    let dir = tempfile::Builder::new().prefix("zt-api-").tempdir()?;
    let flags: Vec<OsString> = args.collect();
    let mut served = Served::start()?;
    let token = served.operator(OperatorRole::Admin, None).await?;
    let join = served.network("acme").await?;
    FleetNode::join(&join, "node", 1).await?.attach(1).await?;
    let door = door(&served).await?;
    let run = async |chosen: &[&str]| -> Result<bool> {
        let mut checking = Command::new(&program)
            .arg("--config-file")
            .arg(&config)
            .arg("run")
            .arg(format!("http://{door}/openapi.json"))
            .args(["--header", &format!("Authorization: Bearer {token}")])
            .args(chosen)
            .args(&flags)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("schemathesis cannot be started")?;
        let checked = tokio::time::timeout(BOUND, checking.wait()).await;
        Ok(checked.with_context(|| format!("not done within {} s", BOUND.as_secs()))??.success())
    };
    // The operation that takes tokens away finds its own: it comes last.
    let most = run(&["--exclude-operation-id", REVOKE, "--max-time", "75"]).await?;
    let pin = pin_now(&served.socket()).await?;
    let remote = Target::Remote { address: served.address.to_string(), pin, token: token.parse()? };
    let asked = ControllerClient::new(remote).networks().await;
    asked.context("the token was lost on the way: what followed was all refused alike")?;
    let last = run(&["--include-operation-id", REVOKE, "--max-time", "10"]).await?;
    served.is_unharmed().await?;
    if !(most && last) {
        bail!("the controller does not do what its OpenAPI document says");
    }
    Ok(())
}

/// The pin of the key that the controller shows now: among what is tried are the operations that replace it.
async fn pin_now(socket: &Path) -> Result<Pin> {
    let keys = ControllerClient::new(Target::Socket(socket.to_owned())).tls().await?;
    Ok(keys.current.parse()?)
}

/// Opens a door on loopback behind which the controller's TLS port is. Returns where it is.
async fn door(served: &Served) -> Result<std::net::SocketAddr> {
    let (controller, socket) = (served.address.to_string(), served.socket());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let known = Arc::new(Mutex::new(served.pin));
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (controller, socket, known) = (controller.clone(), socket.clone(), known.clone());
            tokio::spawn(async move {
                if let Err(error) = pass(&mut from, &controller, &socket, &known).await {
                    eprintln!("a connection to the controller failed: {error:#}");
                }
            });
        }
    });
    Ok(address)
}

async fn pass(from: &mut TcpStream, controller: &str, socket: &Path, known: &Mutex<Pin>) -> Result {
    let pin = *known.lock().await;
    let mut to = match connect(controller, pin).await {
        Ok(to) => to,
        Err(error) => {
            let now = pin_now(socket).await?;
            if now == pin {
                return Err(error);
            }
            *known.lock().await = now;
            connect(controller, now).await?
        }
    };
    match tokio::io::copy_bidirectional(from, &mut to).await {
        // Either end may hang up in the middle.
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn connect(controller: &str, pin: Pin) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>> {
    Ok(tls_stream(controller, Arc::new(client_config(&[pin], None, &["http/1.1"])?), Some(pin)).await?)
}
