//! What passed an interface, captured by tcpdump into the lab's directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::Process;
use crate::error::Result;
use crate::host::Host;
use nix::sys::signal::Signal;

/// How long tcpdump may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A capture that runs until it is read.
#[derive(Debug)]
pub struct Capture {
    host: Host,
    tcpdump: Process,
    file: PathBuf,
}

impl Capture {
    pub(crate) fn start(host: &Host, ifname: &str, filter: &str) -> Result<Self> {
        let file =
            host.shared().dir.join(format!("{}-{ifname}-{}.pcap", host.name(), host.shared().number()));
        let tcpdump = host
            .command("tcpdump")
            .args(["-i", ifname, "-n", "-U", "--immediate-mode", "-s", "0", "-Z", "root", "-w"])
            .arg(&file)
            .arg(filter)
            .spawn("tcpdump")?;
        tcpdump.wait_for_log("listening on", PATIENCE)?;
        Ok(Self { host: host.clone(), tcpdump, file })
    }

    /// The file, for other tools.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Ends the capture and tells it as text, a line a packet.
    ///
    /// # Errors
    /// tcpdump does not end, or cannot read what it wrote.
    pub fn text(&self) -> Result<String> {
        if self.tcpdump.is_running() {
            // Whatever ended in between is as good as stopped.
            let _ = self.tcpdump.signal(Signal::SIGINT);
            self.tcpdump.wait(PATIENCE)?;
        }
        Ok(self.host.command("tcpdump").args(["-n", "-t", "-r"]).arg(&self.file).run()?.stdout)
    }

    /// Ends the capture and tells the number of packets.
    ///
    /// # Errors
    /// As [`Capture::text`].
    pub fn count(&self) -> Result<usize> {
        Ok(self.text()?.lines().count())
    }
}
