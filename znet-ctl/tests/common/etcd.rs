//! A real etcd on loopback, for as long as a test needs it.
#![allow(dead_code, unreachable_pub)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use znet_ctl::store::etcd::{EtcdStore, EtcdUrl};

/// How long it may take to serve.
const START: Duration = Duration::from_secs(20);

/// One member, which is a cluster of its own.
pub struct Etcd {
    dir: tempfile::TempDir,
    client: u16,
    peer: u16,
    flags: Vec<String>,
    scheme: &'static str,
    child: Option<Child>,
}

impl Etcd {
    pub fn start() -> Self {
        Self::with("http", vec![])
    }

    /// Starts it with more flags.
    pub fn with(scheme: &'static str, flags: Vec<String>) -> Self {
        // Both held at the same time, so that they differ.
        let free = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let [client, peer] = free.map(|listener| listener.local_addr().unwrap().port());
        let mut etcd = Self { dir: crate::common::directory(), client, peer, flags, scheme, child: None };
        etcd.launch();
        etcd
    }

    /// Starts the process on what it has stored so far.
    pub fn launch(&mut self) {
        let (client, peer) = (self.address(), format!("http://127.0.0.1:{}", self.peer));
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new("etcd")
            .args(["--name", "zt", "--initial-cluster", &format!("zt={peer}")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(&self.flags)
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("these tests need etcd: apt-get install etcd-server");
        self.child = Some(child);
        let deadline = Instant::now() + START;
        while !self.log().contains("serving") && !self.log().contains("ready to serve") {
            assert!(Instant::now() < deadline, "etcd does not serve: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends the process without warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn address(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.client)
    }

    /// Its name on a command line, with a place of its own in it.
    pub fn url(&self, prefix: &str) -> EtcdUrl {
        format!("etcd:{}?prefix=/{prefix}", self.address()).parse().unwrap()
    }

    pub async fn store(&self, prefix: &str) -> EtcdStore {
        EtcdStore::open(&self.url(prefix)).await.unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A certificate authority, a server's and a client's certificate, as files.
pub struct Pki {
    pub ca: PathBuf,
    pub server: (PathBuf, PathBuf),
    pub client: (PathBuf, PathBuf),
}

impl Pki {
    pub fn make(dir: &Path) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let leaf = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            (
                write(&format!("{name}.crt"), certificate.pem()),
                write(&format!("{name}.key"), key.serialize_pem()),
            )
        };
        Self { ca: write("ca.crt", ca.pem()), server: leaf("server"), client: leaf("client") }
    }
}
