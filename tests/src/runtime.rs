//! Container runtimes on a virtual host: what they need there, and how they are called.
//!
//! Runtimes look for plugins and configurations in fixed places, and keep state in others. A [`Runtimes`] gives a host its
//! own `/opt`, `/etc` and `/var`, so that nothing of a test is ever in the machine's, and a control group of its own,
//! which ends with it. Programs are Debian's, and a container's files are busybox.

pub mod docker;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use netns_harness::{Host, HostCommand, Lab, Output, Process, probe};
use serde_json::{Value, json};

use crate::{Node, Result, program};

/// How long a runtime's daemon may take to answer.
const START: Duration = Duration::from_secs(20);
/// How long killed processes may take to be gone.
const END: Duration = Duration::from_secs(10);
/// Where control groups are: a hierarchy in each directory, or one alone.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What a container finds in its `/bin`.
const APPLETS: [&str; 6] = ["sh", "sleep", "ip", "ping", "cat", "true"];

/// A host on which container runtimes can be run.
pub struct Runtimes {
    host: Host,
    cgroup: String,
}

impl Runtimes {
    /// Makes a host ready.
    ///
    /// # Errors
    /// Something is missing on the machine, or cannot be mounted.
    pub fn prepare(lab: &Lab, host: &Host) -> Result<Self> {
        sweep_cgroups()?;
        let runtimes = Self { host: host.clone(), cgroup: format!("{}-{}", lab.prefix(), host.name()) };
        let dir = host.dir();
        for sub in ["etc", "etc.work", "opt", "var"] {
            std::fs::create_dir_all(dir.join(sub))?;
        }
        std::os::unix::fs::symlink("/run", dir.join("var/run"))?;
        let mount = |args: &[&str]| -> Result {
            host.command("mount").args(args).run()?;
            Ok(())
        };
        let path = |sub: &str| dir.join(sub).display().to_string();
        let layers = format!("lowerdir=/etc,upperdir={},workdir={}", path("etc"), path("etc.work"));
        mount(&["-t", "overlay", "zt-etc", "-o", &layers, "/etc"])?;
        mount(&["--bind", &path("opt"), "/opt"])?;
        mount(&["--bind", &path("var"), "/var"])?;
        runtimes.make_root()?;
        Ok(runtimes)
    }

    /// A container's files.
    fn make_root(&self) -> Result {
        let root = self.root();
        for sub in ["bin", "proc", "dev", "sys", "etc", "tmp"] {
            std::fs::create_dir_all(root.join(sub))?;
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
        let busybox = busybox.context("busybox is not installed\n  hint: apt-get install busybox-static")?;
        std::fs::copy(busybox, root.join("bin/busybox"))?;
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
        }
        Ok(())
    }

    /// The directory with a container's files.
    pub fn root(&self) -> PathBuf {
        self.host.dir().join("rootfs")
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The control group of a container.
    fn cgroup_of(&self, id: &str) -> String {
        format!("/{}/{id}", self.cgroup)
    }

    /// Installs plugin and configuration as a user would.
    ///
    /// # Errors
    /// What the command said.
    pub fn install(&self, node: &Node, flags: &[&str]) -> Result<Output> {
        node.znet(&[&["cni", "install"], flags].concat())
    }

    /// Calls the plugin as a runtime would: variables of the environment, a configuration on standard input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn plugin(&self, environment: &[(&str, &str)], input: impl AsRef<[u8]>) -> Result<HostCommand> {
        let mut command = self.host.command(program("znet-cni")?).stdin(input);
        for (name, value) in environment {
            command = command.env(name, value);
        }
        Ok(command)
    }

    /// Starts containerd and waits until it answers.
    ///
    /// # Errors
    /// It does not come up.
    pub fn containerd(&self) -> Result<Process> {
        let root = self.host.dir().join("containerd");
        let containerd = self
            .host
            .command("containerd")
            .args(["--address", "/run/ctd.sock", "--state", "/run/ctd", "--root"])
            .arg(root)
            .spawn("containerd")?;
        let answers = || self.ctr(&["version"]).try_run().ok().filter(|output| output.status.success());
        probe::until("containerd to answer", START, answers)?;
        Ok(containerd)
    }

    /// `ctr` with arguments.
    pub fn ctr(&self, args: &[&str]) -> HostCommand {
        self.host.command("ctr").args(["--address", "/run/ctd.sock"]).args(args)
    }

    /// `ctr run` of a container with the network that CNI is configured for; it goes on until the container ends.
    pub fn ctr_run(&self, id: &str, command: &[&str]) -> HostCommand {
        self.ctr(&["run", "--rm", "--cni", "--cgroup", &self.cgroup_of(id), "--rootfs"])
            .arg(self.root())
            .arg(id)
            .args(command)
    }

    /// `ctr run` of a container without a network; it goes on until the container ends.
    pub fn ctr_run_alone(&self, id: &str, command: &[&str]) -> HostCommand {
        let run = self.ctr(&["run", "--rm", "--cgroup", &self.cgroup_of(id), "--rootfs"]);
        run.arg(self.root()).arg(id).args(command)
    }

    /// `podman` with arguments.
    ///
    /// # Errors
    /// Its configuration cannot be written.
    pub fn podman(&self, args: &[&str]) -> Result<HostCommand> {
        let dir = self.host.dir();
        let config = dir.join("containers.conf");
        if !config.exists() {
            std::fs::write(&config, PODMAN)?;
        }
        let roots = [dir.join("podman"), PathBuf::from("/run/zt-podman")];
        let command = self.host.command("podman").env("CONTAINERS_CONF", config);
        let [root, runroot] = roots;
        Ok(command.arg("--root").arg(root).arg("--runroot").arg(runroot).args(args))
    }

    /// `podman run` of a container in a CNI network.
    ///
    /// # Errors
    /// As [`Runtimes::podman`].
    pub fn podman_run(&self, name: &str, flags: &[&str], command: &[&str]) -> Result<HostCommand> {
        let group = format!("/{}", self.cgroup);
        let fixed = [
            "run",
            "--name",
            name,
            "--cgroup-parent",
            &group,
            "--log-driver",
            "k8s-file",
            "--cap-add",
            "NET_RAW",
        ];
        let run = self.podman(&[&fixed, flags].concat())?;
        Ok(run.arg("--rootfs").arg(self.root()).args(command))
    }

    /// `runc` with arguments.
    pub fn runc(&self, args: &[&str]) -> HostCommand {
        self.host.command("runc").args(["--root", "/run/zt-runc"]).args(args)
    }

    /// A bundle whose hooks are the plugin's, and its directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn bundle(&self, id: &str, hook: &[&str], command: &[&str]) -> Result<PathBuf> {
        let dir = self.host.dir().join("bundles").join(id);
        std::fs::create_dir_all(&dir)?;
        let plugin = program("znet-cni")?;
        let args: Vec<&str> = ["znet-cni", "oci-hook"].iter().chain(hook).copied().collect();
        let hook = json!([{"path": plugin, "args": args}]);
        let capabilities = json!(["CAP_NET_RAW", "CAP_KILL"]);
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": command, "cwd": "/", "env": ["PATH=/bin"],
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "root": {"path": self.root()},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "hooks": {"createRuntime": hook, "poststop": hook},
            "linux": {
                "cgroupsPath": self.cgroup_of(id),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
            },
        });
        std::fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        Ok(dir)
    }

    /// Ends all containers, and checks that nothing is left of them.
    ///
    /// # Errors
    /// Something is left.
    pub fn clean(&self) -> Result {
        remove_cgroups(&self.cgroup)
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            eprintln!("control group {}: {error}", self.cgroup);
        }
    }
}

const PODMAN: &str = r#"[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "none"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"#;

/// All control groups of a name, in every hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let hierarchies = std::fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    let places = hierarchies.chain([PathBuf::from(CGROUPS)]).map(|place| place.join(name));
    places.filter(|place| place.is_dir()).collect()
}

/// Directories below one, the deepest first, and itself.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let below = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<PathBuf> = below.filter(|path| path.is_dir()).flat_map(|path| tree(&path)).collect();
    all.push(dir.to_owned());
    all
}

/// Kills whatever is in control groups of a name that only one lab has, and removes them.
fn remove_cgroups(name: &str) -> Result {
    if !name.starts_with("zt-") {
        bail!("{name} is no control group of a lab");
    }
    let gone = || {
        for dir in cgroups(name).iter().flat_map(|place| tree(place)) {
            let pids = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                // It may end at the same moment.
                let _ =
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), netns_harness::Signal::SIGKILL);
            }
            let _ = std::fs::remove_dir(&dir);
        }
        cgroups(name).is_empty().then_some(())
    };
    Ok(probe::until(&format!("control groups {name} to be gone"), END, gone)?)
}

/// Removes the control groups of labs whose owners are dead.
fn sweep_cgroups() -> Result {
    let places = std::fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    let entries = places.chain([PathBuf::from(CGROUPS)]).filter_map(|place| std::fs::read_dir(place).ok());
    let names = entries.flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    // Collected before the labs are: one that is made meanwhile is not among them.
    let names: BTreeSet<String> = names.filter(|name| name.starts_with("zt-")).collect();
    let labs = netns_harness::list()?;
    let lives =
        |name: &str| labs.iter().any(|(record, lives)| *lives && name.starts_with(record.prefix.as_str()));
    names.iter().filter(|name| !lives(name)).try_for_each(|name| remove_cgroups(name))
}

/// The attached container of an owner's container identifier, out of an agent's status.
///
/// # Errors
/// The agent does not answer.
pub fn owned(node: &Node, network: &str, container: &str) -> Result<Option<Value>> {
    let status = node.network(network)?;
    let attached = status.get("attached").and_then(Value::as_array).cloned().unwrap_or_default();
    let is = |value: &Value| value.pointer("/owner/container").and_then(Value::as_str) == Some(container);
    Ok(attached.into_iter().find(is))
}
