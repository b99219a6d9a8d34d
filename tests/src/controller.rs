//! `znet-ctl serve` on a host, and the operator who talks to it there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use netns_harness::{Host, Output, Process, Signal};
use serde_json::Value;

use crate::{Result, program};

/// The controller's port on every host.
const PORT: u16 = 7443;
/// How long a controller may take to serve.
const START: Duration = Duration::from_secs(20);

/// A network to create.
#[derive(Clone, Debug, Default)]
pub struct NetworkSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its prefixes; an IPv6 one is drawn when none is given.
    pub prefixes: &'a [&'a str],
    /// How long a released address rests; the controller's default when absent.
    pub rest: Option<&'a str>,
}

/// How a controller is run.
#[derive(Clone, Debug, Default)]
pub struct ControllerOptions {
    /// The addresses at which agents reach it and others like it, its own among them.
    pub advertise: Vec<String>,
    /// More flags of `znet-ctl serve`.
    pub flags: Vec<String>,
    /// Its environment, beyond what it inherits.
    pub env: Vec<(String, String)>,
}

/// A controller on a host.
pub struct Controller {
    host: Host,
    options: ControllerOptions,
    process: Option<Process>,
}

impl Controller {
    /// Starts a controller on a host that others reach at `address`, and waits until it serves.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn start(host: &Host, address: &str) -> Result<Self> {
        let advertise = vec![address.to_owned()];
        Self::start_with(host, ControllerOptions { advertise, ..ControllerOptions::default() })
    }

    /// As [`Controller::start`], with options of one's own.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn start_with(host: &Host, options: ControllerOptions) -> Result<Self> {
        let mut controller = Self { host: host.clone(), options, process: None };
        controller.launch()?;
        Ok(controller)
    }

    /// Starts the process, which must not be running.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn launch(&mut self) -> Result {
        let advertise = self.options.advertise.iter().map(|address| format!("{address}:{PORT}"));
        let advertise = advertise.collect::<Vec<_>>().join(",");
        let mut command = self.host.command(program("znet-ctl")?);
        for (name, value) in &self.options.env {
            command = command.env(name, value);
        }
        let process = command
            .args(["serve", "--listen", "[::]:7443", "--advertise", &advertise, "--data-dir"])
            .arg(self.data_dir())
            .args(&self.options.flags)
            .spawn("znet-ctl")?;
        process.wait_for_log("ready", START).context("the controller does not serve")?;
        self.process = Some(process);
        Ok(())
    }

    /// Gives the process, the next time it is started, a clock that a file sets: the returned one, with an offset such as
    /// `+2h` in it. Its monotonic clock stays the machine's, as when somebody sets the time of day.
    ///
    /// # Errors
    /// libfaketime is not installed.
    pub fn set_clock_by_file(&mut self) -> Result<PathBuf> {
        let file = self.host.dir().join("clock");
        std::fs::write(&file, "+0")?;
        let mut env = |name: &str, value: &str| self.options.env.push((name.to_owned(), value.to_owned()));
        env("LD_PRELOAD", libfaketime()?.to_str().context("a strange path")?);
        env("FAKETIME_TIMESTAMP_FILE", file.to_str().context("a strange path")?);
        env("FAKETIME_NO_CACHE", "1");
        env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        env("DONT_FAKE_MONOTONIC", "1");
        Ok(file)
    }

    /// A counter or gauge of `/metrics`, by its name there.
    ///
    /// # Errors
    /// The controller does not answer, or has none of this name.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let socket = ["-sS", "--max-time", "5", "--unix-socket", "/run/znet-ctl/ctl.sock"];
        let text = self.host.command("curl").args(socket).arg("http://localhost/metrics").run()?.stdout;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.with_context(|| format!("no {name} in {text}"))
    }

    /// The host on which it runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.host.dir().join("data")
    }

    /// The process.
    ///
    /// # Errors
    /// It was stopped.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the controller was stopped")
    }

    /// Ends the process without warning, as a power cut would.
    ///
    /// # Errors
    /// It was stopped already.
    pub fn kill(&mut self) -> Result {
        self.process.take().context("the controller was stopped")?.kill()?;
        Ok(())
    }

    /// Ends the process as an operator would, and returns whether it ended well.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<bool> {
        let process = self.process.take().context("the controller was stopped")?;
        process.signal(Signal::SIGTERM)?;
        Ok(process.wait(START)?.success())
    }

    /// Runs `znet-ctl` on the controller's host; it must succeed.
    ///
    /// # Errors
    /// What the command said.
    pub fn ctl(&self, args: &[&str]) -> Result<Output> {
        Ok(self.host.command(program("znet-ctl")?).args(args).run()?)
    }

    /// Runs `znet-ctl` on the controller's host, however it ends.
    ///
    /// # Errors
    /// It could not be started.
    pub fn try_ctl(&self, args: &[&str]) -> Result<Output> {
        Ok(self.host.command(program("znet-ctl")?).args(args).try_run()?)
    }

    /// Runs `znet-ctl … --output json` and reads what it prints.
    ///
    /// # Errors
    /// What the command said, or that it printed something else than JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.ctl(&[args, &["--output", "json"]].concat())?;
        serde_json::from_str(&output.stdout).with_context(|| format!("not JSON: {}", output.stdout))
    }

    /// Creates a network and returns a join token for any number of lasting nodes.
    ///
    /// # Errors
    /// What the command said.
    pub fn create_network(&self, spec: &NetworkSpec<'_>) -> Result<String> {
        let mut args = vec!["network", "create", spec.name];
        for prefix in spec.prefixes {
            args.extend(["--prefix", prefix]);
        }
        if let Some(rest) = spec.rest {
            args.extend(["--rest", rest]);
        }
        let created = self.json(&args)?;
        let token = created.get("join_token").and_then(Value::as_str);
        token.map(str::to_owned).ok_or_else(|| anyhow!("no join token in {created}"))
    }

    /// Makes one more join token of a network.
    ///
    /// # Errors
    /// What the command said.
    pub fn token(&self, network: &str, flags: &[&str]) -> Result<String> {
        let created = self.json(&[&["token", "create", network], flags].concat())?;
        let token = created.get("join_token").and_then(Value::as_str);
        token.map(str::to_owned).ok_or_else(|| anyhow!("no join token in {created}"))
    }
}

/// The library that shows a process another time of day.
fn libfaketime() -> Result<PathBuf> {
    let arch = std::env::consts::ARCH;
    let path = PathBuf::from(format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1"));
    if path.exists() { Ok(path) } else { Err(anyhow!("this needs libfaketime: apt-get install faketime")) }
}
