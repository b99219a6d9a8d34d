//! Traffic through tunnels whose every byte is looked at, and pings that count their losses.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use netns_harness::{HostCommand, Process};

use super::Device;
use crate::Result;

/// Both ends of the traffic; it describes itself.
const SCRIPT: &str = include_str!("traffic.py");
/// How long one round of traffic may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers traffic on a device's host while it lives.
pub struct TrafficServer {
    _process: Process,
}

/// Pings that go on while a test does something else.
pub struct Flow {
    ping: Process,
}

impl Device {
    fn traffic(&self, args: &[&str]) -> HostCommand {
        self.command("python3").args(["-c", SCRIPT]).args(args)
    }

    /// Starts to answer traffic.
    ///
    /// # Errors
    /// It does not come up.
    pub fn serve_traffic(&self) -> Result<TrafficServer> {
        let process = self.traffic(&["serve"]).spawn("traffic")?;
        process.wait_for_log("up", PATIENCE)?;
        Ok(TrafficServer { _process: process })
    }

    /// Exchanges pings, large pings, datagrams, bursts and streams with an address where [`Device::serve_traffic`] answers.
    ///
    /// # Errors
    /// What got lost or was changed on the way.
    pub fn exchanges_all_traffic(&self, to: &str) -> Result {
        for size in ["56", "65000"] {
            let flags = ["-n", "-c", "3", "-i", "0.01", "-W", "3", "-s", size];
            self.command("ping").args(flags).arg(to).run()?;
        }
        self.traffic(&["ask", to]).run_timeout(PATIENCE)?;
        Ok(())
    }

    /// Exchanges a stream of this many bytes each way.
    ///
    /// # Errors
    /// It does not arrive, or not as it was sent.
    pub fn exchanges_stream(&self, to: &str, bytes: u32) -> Result {
        self.traffic(&["ask-stream", to, &bytes.to_string()]).run_timeout(PATIENCE)?;
        Ok(())
    }

    /// As [`Device::exchanges_stream`], where the stream is a text again and again.
    ///
    /// # Errors
    /// It does not arrive, or not as it was sent.
    pub fn exchanges_text(&self, to: &str, bytes: u32, text: &str) -> Result {
        self.traffic(&["ask-stream", to, &bytes.to_string(), text]).run_timeout(PATIENCE)?;
        Ok(())
    }

    /// Starts a number of pings, 20 ms apart.
    ///
    /// # Errors
    /// `ping` could not be started.
    pub fn flow(&self, to: &str, count: u32) -> Result<Flow> {
        let flags = ["-n", "-q", "-i", "0.02", "-W", "1", "-c"];
        let ping = self.command("ping").args(flags).arg(count.to_string()).arg(to).spawn("flow")?;
        ping.wait_for_log("PING", PATIENCE)?;
        Ok(Flow { ping })
    }
}

impl Flow {
    /// Waits for its end and tells how many pings were lost.
    ///
    /// # Errors
    /// It does not end, or could not send.
    pub fn lost(self) -> Result<u32> {
        self.ping.wait(PATIENCE)?;
        let (text, errors) = (self.ping.stdout()?, self.ping.stderr()?);
        ensure!(errors.is_empty(), "ping: {errors}");
        let mut numbers =
            text.lines().find(|line| line.contains(" received")).context("no summary")?.split(", ");
        let mut number = || numbers.next()?.split(' ').next()?.parse::<u32>().ok();
        let (Some(sent), Some(received)) = (number(), number()) else { bail!("ping: {text}") };
        Ok(sent.saturating_sub(received))
    }

    /// Whether pings are still being sent.
    pub fn goes_on(&self) -> bool {
        self.ping.is_running()
    }
}
