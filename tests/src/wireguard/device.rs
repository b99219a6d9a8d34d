//! A WireGuard device: a program on a host, its keys, and its addresses by its number.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use netns_harness::{Host, HostCommand, Lab, Output, Process, Signal, probe};

use super::program::WireGuard;
use crate::{Result, ping};

/// UDP port of all devices, unless a test changes it.
pub const LISTEN_PORT: u16 = 51_820;
/// What wg-quick(8) takes on an underlay of 1,500 bytes.
const MTU: &str = "1420";
/// How long a program may take to come up, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What carries the tunnel's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Underlay {
    /// The address of the host with this number.
    pub fn address(self, number: u8) -> String {
        match self {
            Self::V4 => format!("192.0.2.{number}"),
            Self::V6 => format!("2001:db8::{number:x}"),
        }
    }

    /// The address and port of the host with this number.
    pub fn endpoint(self, number: u8, port: u16) -> String {
        match self {
            Self::V4 => format!("{}:{port}", self.address(number)),
            Self::V6 => format!("[{}]:{port}", self.address(number)),
        }
    }
}

/// What a device is told of a peer, beside its key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peering<'a> {
    /// Where it is; a device that is not told waits for the peer to begin.
    pub endpoint: Option<Underlay>,
    /// Prefixes; the peer's own two addresses when there are none.
    pub allowed: &'a [&'a str],
    /// Seconds between keepalives.
    pub keepalive: Option<u16>,
    /// A preshared key, as `wg genpsk` makes them.
    pub preshared: Option<&'a str>,
}

/// A WireGuard device on a host.
pub struct Device {
    host: Host,
    number: u8,
    program: WireGuard,
    ifname: String,
    private_key: String,
    public_key: String,
    process: Option<Process>,
}

impl Device {
    /// Starts a program on a host and gives its device a key, a port and the addresses of this number; it has no peers yet.
    ///
    /// # Errors
    /// The program is missing or does not come up; the error holds its log.
    pub fn start(lab: &Lab, host: &Host, number: u8, program: WireGuard) -> Result<Self> {
        let (private_key, public_key) = new_keys(host)?;
        let ifname = format!("{}-{number}", lab.prefix());
        let mut device =
            Self { host: host.clone(), number, program, ifname, private_key, public_key, process: None };
        device.launch()?;
        Ok(device)
    }

    /// Starts the program, which must not be running, and sets its device up anew.
    ///
    /// # Errors
    /// As [`Device::start`].
    pub fn launch(&mut self) -> Result {
        self.run_program()?;
        let port = LISTEN_PORT.to_string();
        self.set_with_input(&["listen-port", &port, "private-key", "/dev/stdin"], &self.private_key)?;
        self.host.command("ip").args(["link", "set", &self.ifname, "mtu", MTU, "up"]).run()?;
        for address in [format!("{}/24", self.inner_v4()), format!("{}/64", self.inner_v6())] {
            self.host.add_address(&self.ifname, &address)?;
        }
        Ok(())
    }

    /// Starts the program, which must not be running, and leaves its device as it comes.
    ///
    /// # Errors
    /// As [`Device::start`].
    pub fn run_program(&mut self) -> Result {
        let (flags, env) = self.program.settings();
        let mut command = self.host.command(self.program.path()?).args(flags).args(["-f", &self.ifname]);
        for (name, value) in env {
            command = command.env(name, value);
        }
        let process = command.spawn(self.program.name())?;
        probe::until("the program to take requests", PATIENCE, || {
            (self.listens() || !process.is_running()).then_some(())
        })?;
        ensure!(process.is_running(), "it ended at once: {}{}", process.stdout()?, process.stderr()?);
        self.process = Some(process);
        Ok(())
    }

    /// Ends the program without warning, as a crash would.
    ///
    /// # Errors
    /// It was stopped already.
    pub fn kill(&mut self) -> Result {
        self.process.take().context("the program was stopped")?.kill()?;
        Ok(())
    }

    /// Asks the program to end, and waits until it does.
    ///
    /// # Errors
    /// It does not.
    pub fn terminate(&mut self) -> Result {
        let process = self.process.take().context("the program was stopped")?;
        process.signal(Signal::SIGTERM)?;
        process.wait(PATIENCE)?;
        Ok(())
    }

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_for_end(&mut self) -> Result {
        self.process.take().context("the program was stopped")?.wait(PATIENCE)?;
        Ok(())
    }

    /// The host on which it is.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its program.
    pub fn program(&self) -> WireGuard {
        self.program
    }

    /// Its number, which its addresses follow.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its interface's name, unique on the machine.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    /// Its public key.
    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// Its private key.
    pub fn private_key(&self) -> &str {
        &self.private_key
    }

    /// Its IPv4 address in the tunnel.
    pub fn inner_v4(&self) -> String {
        format!("10.99.0.{}", self.number)
    }

    /// Its IPv6 address in the tunnel.
    pub fn inner_v6(&self) -> String {
        format!("fd99::{:x}", self.number)
    }

    /// Both its addresses in the tunnel.
    pub fn inner(&self) -> [String; 2] {
        [self.inner_v4(), self.inner_v6()]
    }

    /// A program on its host.
    pub fn command(&self, program: &str) -> HostCommand {
        self.host.command(program)
    }

    /// `wg set` of this device.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn set(&self, args: &[&str]) -> Result {
        self.command("wg").args(["set", &self.ifname]).args(args).run()?;
        Ok(())
    }

    /// `wg set` of this device, with a file that it reads as `/dev/stdin`.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn set_with_input(&self, args: &[&str], input: &str) -> Result {
        self.command("wg").args(["set", &self.ifname]).args(args).stdin(input).run()?;
        Ok(())
    }

    /// `wg COMMAND` of this device with a configuration: `setconf`, `addconf` or `syncconf`.
    ///
    /// # Errors
    /// `wg` could not be started, or did not end.
    pub fn configure(&self, command: &str, configuration: &str) -> Result<Output> {
        Ok(self.command("wg").args([command, &self.ifname, "/dev/stdin"]).stdin(configuration).try_run()?)
    }

    /// `wg show` of this device and one property.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn show(&self, property: &str) -> Result<String> {
        Ok(self.command("wg").args(["show", &self.ifname, property]).run()?.stdout)
    }

    /// Tells this device of another.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn meets(&self, other: &Self, how: &Peering<'_>) -> Result {
        let own = [format!("{}/32", other.inner_v4()), format!("{}/128", other.inner_v6())];
        let allowed = if how.allowed.is_empty() { own.join(",") } else { how.allowed.join(",") };
        let mut args = vec!["peer".to_owned(), other.public_key.clone(), "allowed-ips".to_owned(), allowed];
        if let Some(underlay) = how.endpoint {
            args.extend(["endpoint".to_owned(), underlay.endpoint(other.number, LISTEN_PORT)]);
        }
        if let Some(seconds) = how.keepalive {
            args.extend(["persistent-keepalive".to_owned(), seconds.to_string()]);
        }
        if how.preshared.is_some() {
            args.extend(["preshared-key".to_owned(), "/dev/stdin".to_owned()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.set_with_input(&args, how.preshared.unwrap_or_default())
    }

    /// Takes another device's key out of this one.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn forgets(&self, other: &Self) -> Result {
        self.set(&["peer", &other.public_key, "remove"])
    }

    /// Draws a new key for this device, and sets it. Who knows it by the old one has to be told.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn change_key(&mut self) -> Result {
        self.draw_key()?;
        self.set_with_input(&["private-key", "/dev/stdin"], &self.private_key)
    }

    /// Draws a new key for this device, which it has from the next [`Device::launch`] on.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn draw_key(&mut self) -> Result {
        (self.private_key, self.public_key) = new_keys(&self.host)?;
        Ok(())
    }

    /// Whether one ping to an address is answered within a time.
    ///
    /// # Errors
    /// `ping` could not be started.
    pub fn pings(&self, to: &str, within: Duration) -> Result<bool> {
        ping::once(self.command("ping"), to, within)
    }

    /// Sends a single ping, and demands that it is answered within a time.
    ///
    /// # Errors
    /// It is not.
    pub fn reaches(&self, to: impl AsRef<str>, within: Duration) -> Result {
        let to = to.as_ref();
        ensure!(self.pings(to, within)?, "{} does not reach {to} within {within:?}", self.host.name());
        Ok(())
    }

    /// Waits until an address answers pings.
    ///
    /// # Errors
    /// It does not, in time.
    pub fn wait_reaches(&self, to: &str, timeout: Duration) -> Result {
        ping::until_answered(|| self.command("ping"), to, timeout)
    }

    /// Whether its link and the socket of `wg(8)` are there.
    ///
    /// # Errors
    /// A program could not be started.
    pub fn left_behind(&self) -> Result<[bool; 2]> {
        let link = self.command("ip").args(["link", "show", &self.ifname]).try_run()?.status.success();
        let socket = self.command("test").args(["-e", &self.socket()]).try_run()?.status.success();
        Ok([link, socket])
    }

    fn socket(&self) -> String {
        format!("/run/wireguard/{}.sock", self.ifname)
    }

    /// Whether its socket is listened at. `wg` is not asked, as it removes one that is bound and not listened at yet.
    fn listens(&self) -> bool {
        let directory = File::open(self.host.dir().join("run/wireguard"));
        // By the descriptor, as the path to a lab can be longer than that of a socket may be.
        directory.is_ok_and(|directory| {
            let path = format!("/proc/self/fd/{}/{}.sock", directory.as_raw_fd(), self.ifname);
            UnixStream::connect(path).is_ok()
        })
    }
}

/// A private key and its public one.
fn new_keys(host: &Host) -> Result<(String, String)> {
    let private = host.command("wg").arg("genkey").run()?.stdout;
    let public = host.command("wg").arg("pubkey").stdin(&private).run()?.stdout;
    Ok((private.trim().to_owned(), public.trim().to_owned()))
}
