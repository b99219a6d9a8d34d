//! Hosts, and containers on them.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::capture::Capture;
use crate::command::HostCommand;
use crate::error::{LabError, Result, start_failed};
use crate::lab::Shared;
use crate::spawner;
use crate::sys::{self, Birth, NamespaceFds};

/// A virtual host: a network, a host name and a `/run` of its own. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    shared: Arc<Shared>,
    namespaces: Arc<NamespaceFds>,
    /// Holds the namespaces where `/proc` shows them; it ends when its standard input does, which is with this process.
    keeper: Mutex<Child>,
    keeper_pid: u32,
}

impl Host {
    pub(crate) fn start(shared: &Arc<Shared>, name: &str) -> Result<Self> {
        let dir = shared.dir.join("hosts").join(name);
        let run = dir.join("run");
        // Programs that give up root must still reach sockets below it.
        std::fs::create_dir_all(&run).map_err(LabError::io(format!("make {}", run.display())))?;
        let birth = Birth {
            hostname: sys::c_text(OsStr::new(name))?,
            binds: vec![(sys::c_path(&run)?, sys::c_path(Path::new("/run"))?)],
        };
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::be_born_before_exec(&mut command, birth);
        let keeper =
            spawner::spawn(command).map_err(|source| start_failed(OsStr::new("cat"), name, source))?;
        let pid = keeper.id();
        let namespaces = Arc::new(NamespaceFds::of_process(pid)?);
        shared.note_network(sys::net_cookie(namespaces.net.as_fd())?)?;
        let inner = Inner {
            name: name.to_owned(),
            shared: shared.clone(),
            namespaces,
            keeper: Mutex::new(keeper),
            keeper_pid: pid,
        };
        let host = Self(Arc::new(inner));
        host.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        host.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        host.command("ip").args(["link", "set", "lo", "up"]).run()?;
        Ok(host)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A directory of its own that ends with the lab.
    pub fn dir(&self) -> PathBuf {
        self.0.shared.dir.join("hosts").join(&self.0.name)
    }

    /// A program to run on it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        HostCommand::new(self, None, program.as_ref())
    }

    /// One more network namespace on it, as `ip netns add` makes them: with a `lo` that is down, and nothing else.
    ///
    /// # Errors
    /// The name is taken on this host, or the kernel refuses.
    pub fn container(&self, name: &str) -> Result<Container> {
        self.command("ip").args(["netns", "add", name]).run()?;
        let container = Container { host: self.clone(), name: name.to_owned() };
        let net = container.open()?;
        self.0.shared.note_network(sys::net_cookie(net.as_fd())?)?;
        Ok(container)
    }

    /// Sets a kernel variable of its network, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// There is no such variable, or the kernel refuses the value.
    pub fn sysctl(&self, variable: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(variable);
        sys::inside(self.0.namespaces.net.as_fd(), || std::fs::write(&path, value))?
            .map_err(LabError::io(format!("set {variable} to {value} on {}", self.0.name)))
    }

    /// Adds rules of nftables.
    ///
    /// # Errors
    /// What `nft` said.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.command("nft").args(["-f", "-"]).stdin(rules).run()?;
        Ok(())
    }

    /// Sets an interface up or down: down is a cable that was pulled out.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn set_link(&self, ifname: &str, up: bool) -> Result<()> {
        self.command("ip").args(["link", "set", ifname, if up { "up" } else { "down" }]).run()?;
        Ok(())
    }

    /// Gives an interface an address with its prefix length, usable at once.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn add_address(&self, ifname: &str, address: &str) -> Result<()> {
        let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        self.command("ip").args(["address", "add", address, "dev", ifname]).args(nodad).run()?;
        Ok(())
    }

    /// Takes an address off an interface.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn remove_address(&self, ifname: &str, address: &str) -> Result<()> {
        self.command("ip").args(["address", "del", address, "dev", ifname]).run()?;
        Ok(())
    }

    /// Starts to capture what passes an interface and matches a filter of pcap(7).
    ///
    /// # Errors
    /// `tcpdump` does not come up.
    pub fn capture(&self, ifname: &str, filter: &str) -> Result<Capture> {
        Capture::start(self, ifname, filter)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn namespaces(&self) -> &Arc<NamespaceFds> {
        &self.0.namespaces
    }

    /// A process in its namespaces, for `ip link … netns PID`.
    pub(crate) fn pid(&self) -> u32 {
        self.0.keeper_pid
    }

    /// Ends the process that holds the namespaces.
    pub(crate) fn end(&self) {
        let mut keeper = self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = keeper.kill();
        let _ = keeper.wait();
    }
}

/// A named network namespace on a host. Dropping the value leaves the namespace to the lab.
#[derive(Clone, Debug)]
pub struct Container {
    host: Host,
    name: String,
}

impl Container {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host on which it is.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The path of its namespace, as programs on the host see it.
    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A program to run in it, with the host's files.
    pub fn command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        HostCommand::new(&self.host, Some(self), program.as_ref())
    }

    /// Removes the namespace's name. The namespace ends when nothing runs in it any more.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn remove(&self) -> Result<()> {
        self.host.command("ip").args(["netns", "del", &self.name]).run()?;
        Ok(())
    }

    /// Opened anew each time: a descriptor that is kept would keep the namespace.
    pub(crate) fn open(&self) -> Result<OwnedFd> {
        let path =
            PathBuf::from(format!("/proc/{}/root", self.host.pid())).join("run/netns").join(&self.name);
        let doing = format!("enter container {} on {}", self.name, self.host.name());
        File::open(&path).map(OwnedFd::from).map_err(LabError::io(doing))
    }
}
