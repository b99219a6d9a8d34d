//! `znet-agent run` on a host, and the user or runtime that talks to it there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use netns_harness::{Host, Output, Process, Signal, probe};
use serde_json::Value;

use crate::{Member, Result, program};

/// How long an agent may take to be ready, and to be connected.
const START: Duration = Duration::from_secs(20);

/// How an agent is run.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// The join tokens that it gets.
    pub tokens: Vec<String>,
    /// More flags of `znet-agent run`. Without `--backend` it is the engine.
    pub flags: Vec<String>,
}

/// A node: an agent on a host.
pub struct Node {
    name: String,
    host: Host,
    options: NodeOptions,
    agent: Option<Process>,
}

impl Node {
    /// Starts an agent on a host and waits until it is ready.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn start(name: &str, host: &Host, options: NodeOptions) -> Result<Self> {
        let mut node = Self { name: name.to_owned(), host: host.clone(), options, agent: None };
        node.launch()?;
        Ok(node)
    }

    /// Starts the agent, which must not be running.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn launch(&mut self) -> Result {
        let agent = self.spawn()?;
        agent
            .wait_for_log("ready", START)
            .with_context(|| format!("the agent of {} is not ready", self.name))?;
        self.agent = Some(agent);
        Ok(())
    }

    fn spawn(&self) -> Result<Process> {
        let mut command = self
            .host
            .command(program("znet-agent")?)
            .args(["run", "--name", &self.name, "--state-dir"])
            .arg(self.state_dir());
        for token in &self.options.tokens {
            command = command.args(["--join", token]);
        }
        // The same on every machine, whether its kernel has WireGuard or not.
        if !self.options.flags.iter().any(|flag| flag == "--backend") {
            command = command.args(["--backend", "engine"]);
        }
        Ok(command.args(&self.options.flags).spawn("znet-agent")?)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host on which it runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where its agent keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        self.host.dir().join("state")
    }

    /// The agent's process.
    ///
    /// # Errors
    /// It was stopped.
    pub fn agent(&self) -> Result<&Process> {
        self.agent.as_ref().context("the agent was stopped")
    }

    /// Ends the agent without warning; its engine lives on.
    ///
    /// # Errors
    /// It was stopped already.
    pub fn kill_agent(&mut self) -> Result {
        self.agent.take().context("the agent was stopped")?.kill()?;
        Ok(())
    }

    /// Ends the agent in an orderly way; its engine lives on.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_agent(&mut self) -> Result {
        let agent = self.agent.take().context("the agent was stopped")?;
        agent.signal(Signal::SIGTERM)?;
        agent.wait(START)?;
        Ok(())
    }

    /// Runs `znet-agent` on the host; it must succeed.
    ///
    /// # Errors
    /// What the command said.
    pub fn znet(&self, args: &[&str]) -> Result<Output> {
        Ok(self.host.command(program("znet-agent")?).args(args).run()?)
    }

    /// Runs `znet-agent` on the host, however it ends.
    ///
    /// # Errors
    /// It could not be started.
    pub fn try_znet(&self, args: &[&str]) -> Result<Output> {
        Ok(self.host.command(program("znet-agent")?).args(args).try_run()?)
    }

    /// What `znet-agent status` says.
    ///
    /// # Errors
    /// What the command said.
    pub fn status(&self) -> Result<Value> {
        let output = self.znet(&["status", "--output", "json"])?;
        serde_json::from_str(&output.stdout).with_context(|| format!("not JSON: {}", output.stdout))
    }

    /// What `znet-agent status` says of a network.
    ///
    /// # Errors
    /// What the command said, or that the node is not in the network.
    pub fn network(&self, network: &str) -> Result<Value> {
        let status = self.status()?;
        let networks = status.get("networks").and_then(Value::as_array).cloned().unwrap_or_default();
        let named = |value: &Value| value.get("name").and_then(Value::as_str) == Some(network);
        networks
            .into_iter()
            .find(named)
            .ok_or_else(|| anyhow!("{} is not in network {network}: {status}", self.name))
    }

    /// The revision of a network that this node has applied.
    ///
    /// # Errors
    /// As [`Node::network`].
    pub fn revision(&self, network: &str) -> Result<u64> {
        self.network(network)?.get("revision").and_then(Value::as_u64).context("no revision in the status")
    }

    /// Waits until the node is connected to a network's controller.
    ///
    /// # Errors
    /// It is not, in time.
    pub fn wait_connected(&self, network: &str) -> Result {
        let connected = || {
            let known = self.network(network).ok();
            known.and_then(|known| known.get("connected")?.as_bool()?.then_some(()))
        };
        Ok(probe::until(&format!("{} to be connected to {network}", self.name), START, connected)?)
    }

    /// The engine's process.
    ///
    /// # Errors
    /// There is none.
    pub fn engine_pid(&self) -> Result<u32> {
        let pid = self.status()?.get("engine_pid").and_then(Value::as_u64).context("no engine runs")?;
        Ok(u32::try_from(pid)?)
    }

    /// Makes a namespace on the host and attaches it under a name; waits until all nodes know of it.
    ///
    /// # Errors
    /// What the command said.
    pub fn attach(&self, network: &str, name: &str) -> Result<Member> {
        self.attach_with(network, name, &["--wait"])
    }

    /// As [`Node::attach`], with flags of one's own.
    ///
    /// # Errors
    /// What the command said.
    pub fn attach_with(&self, network: &str, name: &str, flags: &[&str]) -> Result<Member> {
        let container = self.host.container(&format!("{network}-{name}"))?;
        Member::attach(self, network, name, container, flags)
    }
}
