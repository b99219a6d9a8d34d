//! `znet-ctl serve` without a lab: on loopback, out of a directory of its own, as whoever runs the test.
//!
//! For what strangers and operators send. What has nodes and links in it stands in a [`World`](crate::World).

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use netns_harness::probe;
use serde_json::Value;
use znet_api::client::{ControllerClient, Target};
use znet_api::rest::{CreateNetwork, CreateOperator, CreateToken, OperatorRole};
use znet_api::tls::Pin;
use znet_api::token::JoinToken;

use crate::{Result, program};

/// How long a controller may take to serve.
const START: Duration = Duration::from_secs(20);

/// A controller's process; it ends when this is dropped.
pub struct Served {
    process: Child,
    /// Where its port is.
    pub address: SocketAddr,
    /// The pin of its TLS key.
    pub pin: Pin,
    dir: tempfile::TempDir,
}

impl Served {
    /// Starts a controller and waits until it serves.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn start() -> Result<Self> {
        // Few to begin with: the controller has to see to it that it may open more.
        Self::launch("ulimit -Sn 256")
    }

    /// As [`Served::start`], with a controller that may open so many files and no more.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn start_with_files(files: u32) -> Result<Self> {
        Self::launch(&format!("ulimit -n {files}"))
    }

    fn launch(limit: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("zt-served-").tempdir()?;
        let log = File::create(dir.path().join("log"))?;
        let process = Command::new("sh")
            .args(["-c", &format!("{limit} && exec \"$@\""), "sh"])
            .arg(program("znet-ctl")?)
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir"])
            .arg(dir.path().join("data"))
            .arg("--socket")
            .arg(dir.path().join("ctl.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        // From here on it is ended whatever happens; the port and the pin are in its first words.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut served = Self { process, address: nowhere, pin: Pin::from_bytes([0; 32]), dir };
        let ready = probe::until("the controller to serve", START, || {
            served.events().into_iter().find(|event| said(event, "message") == Some("ready"))
        });
        let ready = ready.with_context(|| served.log())?;
        let word = |field: &str| said(&ready, field).with_context(|| format!("{field} in {ready}"));
        (served.address, served.pin) = (word("address")?.parse()?, word("pin")?.parse()?);
        Ok(served)
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Everything that it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn events(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("ctl.sock")
    }

    /// A client that may do everything.
    pub fn client(&self) -> ControllerClient {
        ControllerClient::new(Target::Socket(self.socket()))
    }

    /// The text of a new operator's token, for one network or for all.
    ///
    /// # Errors
    /// What the controller said.
    pub async fn operator(&self, role: OperatorRole, network: Option<&str>) -> Result<String> {
        let asked = CreateOperator { note: "test".to_owned(), role, network: network.map(str::to_owned) };
        Ok(self.client().create_operator(&asked).await?.operator_token)
    }

    /// Makes a network with an IPv4 prefix and returns a join token.
    ///
    /// # Errors
    /// What the controller said.
    pub async fn network(&self, name: &str) -> Result<JoinToken> {
        let prefixes = vec!["10.64.0.0/10".parse()?];
        let asked = CreateNetwork { name: name.to_owned(), prefixes, ..CreateNetwork::default() };
        self.client().create_network(&asked).await?;
        Ok(self.client().create_token(name, &CreateToken::default()).await?.join_token.parse()?)
    }

    /// Bytes of memory that the process holds.
    ///
    /// # Errors
    /// It has ended.
    pub fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?;
        Ok(kib.trim().parse::<u64>()? * 1024)
    }

    /// The value of a counter, summed over its labels.
    ///
    /// # Errors
    /// The controller does not answer.
    pub async fn counter(&self, name: &str, label: &str) -> Result<u64> {
        let text = self.client().metrics().await?;
        let values = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        Ok(values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    }

    /// Checks that the process lives, that no answer was a fault of its own, and that it logged no error.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn is_unharmed(&mut self) -> Result {
        if let Some(status) = self.process.try_wait()? {
            bail!("the controller ended with {status}\n{}", self.log());
        }
        if let Some(event) = self
            .events()
            .into_iter()
            .find(|event| event.get("level").and_then(Value::as_str) == Some("ERROR"))
        {
            bail!("the controller logged an error: {event}");
        }
        if self.log().contains("panicked") {
            bail!("the controller panicked\n{}", self.log());
        }
        match self.counter("znet_requests_total", "status=\"5").await? {
            0 => Ok(()),
            faults => bail!("{faults} requests were answered by a fault of the controller"),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a log line says in one of its fields.
fn said<'a>(event: &'a Value, field: &str) -> Option<&'a str> {
    event.get("fields")?.get(field)?.as_str()
}
