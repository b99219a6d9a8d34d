//! A node without an agent: a backend, and containers in namespaces of their own, all on loopback.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use znet_agent::backend::{Backend, Choice, Kind};
use znet_agent::files::Attachment;
use znet_agent::host::netns::Netns;
use znet_core::id::{ContainerId, NetworkId, Revision};
use znet_core::key::{PrivateKey, PublicKey};
use znet_wg::control::{Device, Peer, WirePrivateKey};
use znet_wg::io::tun::{Queues, Tun};

/// How long a first packet may take, on a busy machine: a handshake, and a retry of it.
pub(crate) const FIRST: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(20);
const NETWORK: NetworkId = NetworkId::from_bytes([0x7a; 16]);

/// The private key of a number.
pub(crate) fn secret(number: u16) -> PrivateKey {
    let mut bytes = [0x5a; 32];
    // Of the first byte and the last some bits do not count (RFC 7748, section 5).
    bytes[1..3].copy_from_slice(&number.to_be_bytes());
    PrivateKey::from_bytes(bytes)
}

fn address(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    IpAddr::from([10, 77, high, low])
}

fn run(command: &[&str]) -> Output {
    Command::new(command[0])
        .args(&command[1..])
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn must(command: &[&str]) {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) struct Node {
    choice: Choice,
    backend: Option<Backend>,
    engine: Option<Child>,
    dir: tempfile::TempDir,
    prefix: String,
    attachments: BTreeMap<u16, Attachment>,
    port: u16,
}

impl Node {
    pub(crate) fn start(choice: Choice) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "network namespaces need root; run: sudo ./x test");
        let dir = tempfile::Builder::new().prefix("zt-").tempdir().unwrap();
        let prefix = format!("zt-{:06x}", rand::random::<u32>() & 0xff_ffff);
        let engine = (choice == Choice::Engine).then(|| {
            let exe = Path::new(env!("CARGO_BIN_EXE_znet-agent"));
            let socket = dir.path().join("engine.sock");
            znet_wg::engine::spawn(exe, &["engine"], &socket, None).unwrap().1
        });
        let mut node =
            Self { choice, backend: None, engine, dir, prefix, attachments: BTreeMap::new(), port: 0 };
        node.take_over();
        node
    }

    /// Ends the hold on what is there, and begins a new one.
    pub(crate) fn take_over(&mut self) {
        drop(self.backend.take());
        let mut backend = Backend::choose(self.choice, self.dir.path(), 42_000).unwrap();
        let wanted = if self.choice == Choice::Engine { Kind::Engine } else { Kind::Kernel };
        assert_eq!(backend.kind(), wanted);
        backend.ensure(&|_| Vec::new()).unwrap();
        let attachments: Vec<Attachment> = self.attachments.values().cloned().collect();
        let (port, served) = backend.take_up(NETWORK, 42_000, None, &attachments).unwrap();
        assert_eq!(served, !attachments.is_empty());
        self.port = port;
        self.backend = Some(backend);
    }

    fn backend(&mut self) -> &mut Backend {
        self.backend.as_mut().unwrap()
    }

    fn netns(&self, number: u16) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// A container of this number.
    pub(crate) fn container(&mut self, number: u16) -> u16 {
        must(&["ip", "netns", "add", &self.netns(number)]);
        self.make(number).unwrap();
        number
    }

    /// Makes the device of a container anew.
    pub(crate) fn remake(&mut self, number: u16) {
        self.make(number).unwrap();
    }

    /// What is said when there is a link in the way, which is `znet0` in the namespace of container 0.
    pub(crate) fn try_container_with_foreign_link(&mut self, number: u16) -> String {
        let netns = self.netns(0);
        must(&["ip", "netns", "add", &netns]);
        must(&["ip", "-n", &netns, "link", "add", "znet0", "type", "bridge"]);
        let path = PathBuf::from("/run/netns").join(netns);
        self.make_in(number, &path).unwrap_err()
    }

    fn make(&mut self, number: u16) -> Result<(), String> {
        let path = PathBuf::from("/run/netns").join(self.netns(number));
        self.make_in(number, &path)
    }

    fn make_in(&mut self, number: u16, path: &Path) -> Result<(), String> {
        let device = Device {
            id: ContainerId::new(number.into()),
            name: format!("zn{}{number:x}", &self.prefix[3..]),
            private_key: WirePrivateKey(secret(number)),
            addresses: vec![address(number)],
            mtu: 1_420,
            relay: false,
            also_private_key: None,
            also_is_next: false,
        };
        let netns = Netns::open(path).unwrap();
        let port = self.backend().reserve_port(None).unwrap();
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let outside = self.backend().make_link(NETWORK, &netns, "znet0", &device, port);
        let tun = if outside.map_err(|error| text(&error))? {
            None
        } else {
            let tun = netns.run(|_| async move { Ok(Tun::create("znet0", Queues::Single)) }).unwrap();
            Some(tun.map_err(|error| text(&error))?)
        };
        let (name, ip) = (path.file_name().unwrap().to_str().unwrap(), format!("{}/32", address(number)));
        must(&["ip", "-n", name, "address", "add", &ip, "dev", "znet0"]);
        must(&["ip", "-n", name, "link", "set", "lo", "up"]);
        must(&["ip", "-n", name, "link", "set", "znet0", "mtu", "1420", "up"]);
        // As the agent marks its routes.
        must(&["ip", "-n", name, "route", "add", "10.77.0.0/16", "dev", "znet0", "protocol", "122"]);
        self.backend().put_device(NETWORK, device.clone(), tun).unwrap();
        let attachment = Attachment {
            container: device.id,
            name: format!("c{number}").parse().unwrap(),
            netns: path.to_owned(),
            netns_id: netns.id(),
            ifname: "znet0".to_owned(),
            revision: Revision::new(1),
            device: device.name,
            addresses: device.addresses,
            owner: None,
            no_dns: false,
            lent: None,
            port,
        };
        self.attachments.insert(number, attachment);
        Ok(())
    }

    pub(crate) fn key(&self, number: u16) -> PublicKey {
        secret(number).public_key()
    }

    fn peer(&self, number: u16, endpoint: SocketAddr) -> Peer {
        Peer {
            public_key: self.key(number),
            also_key: None,
            addresses: vec![address(number)],
            endpoints: vec![endpoint],
            preshared_key: None,
        }
    }

    /// Where a container of this node is reached.
    pub(crate) fn endpoint(&self, number: u16) -> SocketAddr {
        let own = self.attachments.get(&number).and_then(|attachment| attachment.port);
        SocketAddr::from((Ipv4Addr::LOCALHOST, own.map_or(self.port, NonZeroU16::get)))
    }

    pub(crate) fn put(&mut self, numbers: &[u16]) {
        let peers: Vec<Peer> = numbers.iter().map(|n| self.peer(*n, self.endpoint(*n))).collect();
        self.backend().change_peers(NETWORK, &peers, &[]).unwrap();
    }

    pub(crate) fn replace(&mut self, numbers: &[u16]) {
        let peers = numbers.iter().map(|n| self.peer(*n, self.endpoint(*n))).collect();
        self.backend().replace_peers(NETWORK, peers).unwrap();
    }

    pub(crate) fn put_at(&mut self, number: u16, endpoint: SocketAddr) {
        let peer = self.peer(number, endpoint);
        self.backend().change_peers(NETWORK, &[peer], &[]).unwrap();
    }

    pub(crate) fn remove_peer(&mut self, number: u16) {
        let key = self.key(number);
        self.backend().change_peers(NETWORK, &[], &[key]).unwrap();
    }

    /// A peer that is no container of this node.
    pub(crate) fn put_foreign(&mut self, number: u16, endpoint: SocketAddr) {
        self.put_at(number, endpoint);
    }

    pub(crate) fn remove_foreign(&mut self, number: u16) {
        self.remove_peer(number);
    }

    pub(crate) fn replace_foreign(&mut self, numbers: Range<u16>, own: &[u16], endpoint: SocketAddr) {
        let own: Vec<Peer> = own.iter().map(|n| self.peer(*n, self.endpoint(*n))).collect();
        let peers = numbers.map(|n| self.peer(n, endpoint)).chain(own).collect();
        self.backend().replace_peers(NETWORK, peers).unwrap();
    }

    pub(crate) fn remove_device(&mut self, number: u16) {
        self.backend().remove_device(NETWORK, ContainerId::new(number.into()));
        self.attachments.remove(&number);
    }

    pub(crate) fn devices(&mut self) -> usize {
        self.backend().devices(NETWORK).len()
    }

    pub(crate) fn has_link(&self, number: u16) -> bool {
        run(&["ip", "-n", &self.netns(number), "link", "show", "znet0"]).status.success()
    }

    fn ping(&self, from: u16, to: u16, count: u32, within: Duration) -> Command {
        let mut command = Command::new("ip");
        let (count, within) = (count.to_string(), format!("{:.1}", within.as_secs_f64()));
        command.args([
            "netns",
            "exec",
            &self.netns(from),
            "ping",
            "-n",
            "-i",
            "0.01",
            "-c",
            &count,
            "-W",
            &within,
        ]);
        command.arg(address(to).to_string()).stdin(Stdio::null());
        command
    }

    pub(crate) fn pings(&self, from: u16, to: u16, count: u32, within: Duration) -> bool {
        self.ping(from, to, count, within).output().unwrap().status.success()
    }

    /// A way to ping from a container without a process each time.
    pub(crate) fn pinger(&self, from: u16) -> Pinger {
        let netns = Netns::open(&self.attachments[&from].netns).unwrap();
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        let socket = netns.run(|_| async move { Ok(open()) }).unwrap();
        Pinger(socket)
    }

    pub(crate) fn flood(&self, from: u16, to: u16, count: u32) -> Flood {
        let mut ping = self.ping(from, to, count, Duration::from_secs(2));
        Flood(ping.stdout(Stdio::piped()).spawn().unwrap())
    }

    pub(crate) fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut backend) = self.backend.take() {
            backend.remove_network(NETWORK);
        }
        if let Some(mut engine) = self.engine.take() {
            let _ = engine.kill();
            let _ = engine.wait();
        }
        let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
            if name.starts_with(&self.prefix) {
                run(&["ip", "netns", "del", &name]);
            }
        }
    }
}

/// Sends one ping at a time, over IPv4.
pub(crate) struct Pinger(Socket);

impl Pinger {
    /// Whether a peer of this number answers one ping in time.
    pub(crate) fn pings(&self, to: u16, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let IpAddr::V4(address) = address(to) else { panic!("an IPv4 address") };
        let [high, low] = to.to_be_bytes();
        // Type 8, its checksum, an identifier that tells the peer, a number (RFC 792).
        let sum = !(0x0800u16.wrapping_add(to));
        let request = [8, 0, sum.to_be_bytes()[0], sum.to_be_bytes()[1], high, low, 0, 0];
        self.0.send_to(&request, &SocketAddr::from((address, 0)).into()).unwrap();
        let mut room = [0; 256];
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            self.0.set_read_timeout(Some(left)).unwrap();
            let Ok(length) = (&self.0).read(&mut room) else { continue };
            // The IPv4 header comes before the answer, of type 0.
            if room[..length].get(20..26) == Some(&[0, 0, room[22], room[23], high, low]) {
                return true;
            }
        }
        false
    }
}

/// Pings that go on, a hundred times a second.
pub(crate) struct Flood(Child);

impl Flood {
    /// Waits for its end, and tells how many were not answered.
    pub(crate) fn lost(self) -> u32 {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.contains("packets transmitted"));
        let words = line.unwrap_or_else(|| panic!("no summary: {text}")).split(|c: char| !c.is_ascii_digit());
        let numbers: Vec<u32> = words.filter_map(|word| word.parse().ok()).collect();
        numbers[0] - numbers[1]
    }
}
