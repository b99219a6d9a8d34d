//! Docker's daemon on a virtual host.
//!
//! It runs in process and mount namespaces of its own, and what it mounts below `/run` is seen by the host, as its containers'
//! network namespaces have to be. All its files are in the host's directory. Programs are those that are installed, or
//! Debian's that were unpacked and not installed: an installed daemon starts, and changes the machine's packet filter.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use netns_harness::{HostCommand, Process, Signal, probe};

use super::{END, Runtimes, START};
use crate::Result;

/// Where programs of the system are, beyond the user's.
const SYSTEM: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
/// How the daemon is always run: nothing that another one has, no network of its own, files that need no driver.
const FLAGS: [&str; 11] = [
    "--exec-root=/run/docker",
    "--pidfile=/run/docker.pid",
    "--host=unix:///run/docker.sock",
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--ip-masq=false",
    "--storage-driver=vfs",
    "--exec-opt=native.cgroupdriver=cgroupfs",
    "--log-level=warn",
];
/// The first process of that namespace: it takes note of the ends of processes whose parents are gone.
const FIRST: &str = "echo ready; while :; do sleep 1000 & wait $!; done";

/// Docker on a host.
pub struct Docker<'a> {
    runtimes: &'a Runtimes,
    /// What holds the namespaces of the daemon; all that is in them ends with it.
    first: Process,
    programs: Programs,
    daemon: Option<Process>,
}

/// Where Docker's programs are.
struct Programs {
    path: String,
    libraries: String,
}

impl Programs {
    fn find() -> Result<Self> {
        let path = std::env::var("PATH").unwrap_or_default();
        let installed = path.split(':').chain(SYSTEM).map(Path::new);
        let mut installed = installed.map(|dir| dir.join("dockerd"));
        if installed.any(|daemon| daemon.is_file()) {
            let libraries = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
            return Ok(Self { path: format!("{path}:{}", SYSTEM.join(":")), libraries });
        }
        // target/docker, seen from target/PROFILE/deps/some_test-HASH
        let me = std::env::current_exe()?;
        let mut unpacked = me.ancestors().skip(1).take(4).map(|dir| dir.join("docker"));
        let root = unpacked
            .find(|root| root.join("usr/sbin/dockerd").is_file())
            .context("Docker is not installed\n  hint: ./x test unpacks it in target/docker")?;
        let at = |sub: &str| root.join(sub).display().to_string();
        let arch = std::env::consts::ARCH;
        let libraries = ["usr/lib", "lib"].map(|lib| at(&format!("{lib}/{arch}-linux-gnu"))).join(":");
        let path = [&at("usr/sbin"), &at("usr/bin"), &path, &SYSTEM.join(":")].map(String::as_str).join(":");
        Ok(Self { path, libraries })
    }
}

impl Runtimes {
    /// Starts Docker's daemon, with these flags beside those that it needs here, and waits until it answers.
    ///
    /// # Errors
    /// It is not installed, or does not come up.
    pub fn docker(&self, flags: &[&str]) -> Result<Docker<'_>> {
        // What is mounted there is seen on both sides; nothing else is.
        self.host.command("mount").args(["--make-shared", "/run"]).run()?;
        let first = self
            .host
            .command("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "unchanged"])
            .args(["sh", "-c", FIRST])
            .spawn("docker-first")?;
        first.wait_for_log("ready", START)?;
        let mut docker = Docker { runtimes: self, first, programs: Programs::find()?, daemon: None };
        docker.launch(flags)?;
        Ok(docker)
    }
}

impl Docker<'_> {
    /// The first process in the daemon's namespaces, as others see it.
    fn first(&self) -> Result<String> {
        let pid = self.first.pid();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let child = || std::fs::read_to_string(&path).ok()?.split_whitespace().next().map(str::to_owned);
        Ok(probe::until("Docker's namespaces", START, child)?)
    }

    fn command(&self, program: &str) -> HostCommand {
        let host = &self.runtimes.host;
        // The program is looked for in the path that is set here.
        let command = host.command("env").arg(format!("PATH={}", self.programs.path));
        command.arg(format!("LD_LIBRARY_PATH={}", self.programs.libraries)).arg(program)
    }

    /// Starts the daemon, which must not be running.
    ///
    /// # Errors
    /// It does not come up; the error holds its log.
    pub fn launch(&mut self, flags: &[&str]) -> Result {
        let first = self.first()?;
        let data = self.runtimes.host.dir().join("docker-data");
        let daemon = self
            .command("nsenter")
            .args(["--target", &first, "--pid", "--mount", "dockerd", "--data-root"])
            .arg(data)
            .args(FLAGS)
            .args(["--cgroup-parent", &format!("/{}", self.runtimes.cgroup)])
            .args(flags)
            .spawn("dockerd")?;
        let answers = || {
            let asked = self.docker(&["version"]).try_run().ok()?;
            (asked.status.success() || !daemon.is_running()).then_some(())
        };
        probe::until("Docker to answer", START, answers)?;
        if !daemon.is_running() {
            return Err(anyhow!("Docker ended: {}", daemon.stderr()?));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// `docker` with arguments.
    pub fn docker(&self, args: &[&str]) -> HostCommand {
        self.command("docker").args(["--host", "unix:///run/docker.sock"]).args(args)
    }

    /// Makes the image `box` out of the files that containers of tests have.
    ///
    /// # Errors
    /// What Docker said.
    pub fn import(&self) -> Result {
        let archive: PathBuf = self.runtimes.host.dir().join("box.tar");
        let tar = self.runtimes.host.command("tar").arg("-C").arg(self.runtimes.root()).arg("-cf");
        tar.arg(&archive).arg(".").run()?;
        let archive = archive.display().to_string();
        self.docker(&["import", &archive, "box"]).run()?;
        Ok(())
    }

    /// Ends the daemon by a signal, and waits for its end.
    ///
    /// # Errors
    /// It was stopped, or does not end.
    pub fn end(&mut self, signal: Signal) -> Result {
        let daemon = self.daemon.take().context("Docker was stopped")?;
        let first = self.first()?;
        let pid = std::fs::read_to_string(self.runtimes.host.dir().join("run/docker.pid"))?;
        let signal = format!("-{}", signal as i32);
        let kill = self.runtimes.host.command("nsenter").args(["--target", &first, "--pid", "--mount"]);
        kill.args(["kill", &signal, pid.trim()]).run()?;
        daemon.wait(END)?;
        Ok(())
    }
}
