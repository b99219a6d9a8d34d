//! `access`: files with which a person's own WireGuard reaches a network.
//!
//! The private key is made here and goes into the file alone: no controller and no node ever sees it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use tokio::time::Instant;
use zeroize::Zeroizing;
use znet_api::rest::{Access, AccessPoint, CreateAccess, Network};
use znet_cli::exit::{Failure, Kind};
use znet_cli::output::{self, Format};
use znet_core::key::{PrivateKey, PublicKey};

use super::ask::{Asker, failed};
use super::wg_quick::{self, WgQuick};
use super::{Result, agree, qr};

const HEADINGS: [&str; 6] = ["ACCESS", "VIA", "ADDRESSES", "STATE", "PUBLIC KEY", "CREATED"];
/// How long to wait before the node is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What can be done with access points.
#[derive(Debug, Subcommand)]
pub enum AccessCommand {
    /// Let a person's device into a network, and print the file for its WireGuard
    #[command(
        after_help = "Examples:\n  znet-ctl access create acme laptop --via edge-7 --output-file laptop.conf\n  znet-ctl access create acme phone --via edge-7 --qr\n  znet-ctl access create acme desk --via edge-7 --endpoint vpn.example.net --public-key \"$(wg pubkey < desk.key)\"\n\nThe file is for wg-quick and for WireGuard's apps. It is shown this once: whoever has it is in the network until\n`znet-ctl access revoke`."
    )]
    Create(CreateArgs),
    /// List access points
    #[command(after_help = "Examples:\n  znet-ctl access list acme")]
    List {
        /// The network, by name or identifier
        network: String,
    },
    /// Cut a device off and take its addresses back, at once
    #[command(after_help = "Examples:\n  znet-ctl access revoke acme laptop --yes")]
    Revoke {
        /// The network, by name or identifier
        network: String,
        /// The access point's name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// What an access point and its file are like.
#[derive(Debug, ClapArgs)]
pub struct CreateArgs {
    /// The network, by name or identifier
    pub network: String,
    /// The name as which the network's containers see the device: a DNS label
    pub name: String,
    /// The node through which the device comes, by name or identifier [default: the network's only node]
    #[arg(long, value_name = "NODE")]
    pub via: Option<String>,
    /// Where the device reaches that node [default: the node's first endpoint; the port that the node chose]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub endpoint: Option<String>,
    /// The public half of a pair that the device made; the file then lacks the private one
    #[arg(long, value_name = "KEY")]
    pub public_key: Option<PublicKey>,
    /// An address, at most one of each family; the missing ones are allocated
    #[arg(long, value_name = "ADDRESS")]
    pub address: Vec<IpAddr>,
    /// The MTU of the device in bytes; what the default leaves passes every path
    #[arg(long, value_name = "BYTES", default_value_t = 1_280, value_parser = clap::value_parser!(u16).range(1_280..=9_000))]
    pub mtu: u16,
    /// Write the file here, readable for its owner alone, instead of printing it; it must not exist
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    /// Show the file as a QR code, for a phone, instead of printing it
    #[arg(long, conflicts_with = "public_key")]
    pub qr: bool,
    /// Write that QR code to a file whose name ends in .svg or .png; it must not exist
    #[arg(long, value_name = "FILE", conflicts_with = "public_key", value_parser = qr::image_path)]
    pub qr_file: Option<PathBuf>,
    /// How long the node may take until it serves the device
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

impl Asker {
    pub(super) async fn access(&self, command: AccessCommand) -> Result {
        match command {
            AccessCommand::Create(args) => self.create_access(args).await,
            AccessCommand::List { network } => {
                let all = self.client.accesses(&network).await.map_err(failed)?;
                output::print(self.format, &all, &HEADINGS, all.iter().map(row));
                Ok(())
            }
            AccessCommand::Revoke { network, name, yes } => {
                let found = self.client.access(&network, &name).await.map_err(failed)?;
                agree(yes, &format!("Cuts {name} off from network {network} (by node {})", found.via))?;
                self.client.revoke_access(&network, &name).await.map_err(failed)?;
                match self.format {
                    Format::Json => output::json(&serde_json::json!({ "revoked": name })),
                    Format::Table => output::line(&format!("{name} has no access any more")),
                }
                Ok(())
            }
        }
    }

    async fn create_access(&self, args: CreateArgs) -> Result {
        let endpoint = args.endpoint.as_deref().map(wg_quick::check_host).transpose()?;
        // Opened before anything is made that would have to be taken back.
        let file = NewFile::open(args.output_file.as_deref())?;
        let image = NewFile::open(args.qr_file.as_deref())?;
        let private_key = match args.public_key {
            Some(_) => None,
            None => Some(PrivateKey::generate(&mut rand::rng())),
        };
        let public_key = private_key.as_ref().map(PrivateKey::public_key).or(args.public_key);
        let public_key = public_key.map(|key| key.to_string()).unwrap_or_default();
        let request = CreateAccess { via: args.via.clone(), public_key, addresses: args.address.clone() };
        let (network, name) = (&args.network, &args.name);
        self.client.create_access(network, name, &request).await.map_err(failed)?;
        let done = async {
            let (access, point) = self.wait_served(&args).await?;
            let known = self.client.network(network).await.map_err(failed)?;
            let text = file_text(&args, &known, &access, &point, endpoint, private_key.as_ref())?;
            self.hand_over(&args, &access, &text, file, image)
        };
        let done = done.await;
        // A key that nobody has is of no use to anybody.
        if done.is_err() && private_key.is_some() {
            let _ = self.client.revoke_access(network, name).await;
        }
        done
    }

    /// Waits until the node has said where it serves the device.
    async fn wait_served(&self, args: &CreateArgs) -> Result<(Access, AccessPoint)> {
        let deadline = Instant::now() + args.timeout;
        loop {
            let mut access = self.client.access(&args.network, &args.name).await.map_err(failed)?;
            if let Some(point) = access.point.take() {
                let access = Access { point: Some(point.clone()), ..access };
                return Ok((access, point));
            }
            if Instant::now() >= deadline {
                let why = format!(
                    "node {} does not serve {} after {}",
                    access.via,
                    args.name,
                    humantime::format_duration(args.timeout)
                );
                let hint = format!(
                    "see with `znet-ctl node list {}` whether it is live; its agent's log says what it lacks",
                    args.network
                );
                return Err(Failure::new(Kind::TimedOut, "not_served", why).hint(hint));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn hand_over(
        &self,
        args: &CreateArgs,
        access: &Access,
        text: &str,
        file: Option<NewFile>,
        image: Option<NewFile>,
    ) -> Result {
        let quiet = file.is_some() || image.is_some() || args.qr;
        if let Some(image) = image {
            let bytes = qr::image(text, image.path())?;
            image.write(&bytes)?;
        }
        if let Some(file) = file {
            file.write(text.as_bytes())?;
        }
        let code = if args.qr { Some(qr::terminal(text)?) } else { None };
        match self.format {
            Format::Json => {
                let config = (!quiet).then_some(text);
                let value = serde_json::json!({
                    "access": access, "config": config, "file": args.output_file,
                    "qr": code, "qr_file": args.qr_file,
                });
                output::json(&value);
            }
            Format::Table if !quiet => output::write_bytes(text.as_bytes()),
            Format::Table => {
                output::table(&HEADINGS, [row(access)]);
                output::write_bytes(code.unwrap_or_default().as_bytes());
            }
        }
        Ok(())
    }
}

fn file_text(
    args: &CreateArgs,
    network: &Network,
    access: &Access,
    point: &AccessPoint,
    endpoint: Option<wg_quick::Host>,
    private_key: Option<&PrivateKey>,
) -> Result<Zeroizing<String>> {
    let endpoint = match (endpoint, point.endpoints.first()) {
        (Some(host), _) => host.with_port(point.port),
        (None, Some(first)) => first.clone(),
        (None, None) => {
            let why = format!("no address is known at which node {} can be reached first", access.via);
            let hint = "name one that leads there with --endpoint, or start its agent with --advertise";
            return Err(Failure::new(Kind::Usage, "no_endpoint", why).hint(hint));
        }
    };
    Ok(wg_quick::text(&WgQuick {
        private_key,
        addresses: &access.addresses,
        mtu: args.mtu,
        end_key: &point.public_key,
        endpoint: &endpoint,
        allowed: [Some(network.prefix6), network.prefix4].into_iter().flatten().collect(),
    }))
}

fn row(access: &Access) -> Vec<String> {
    let state = match &access.point {
        Some(point) => format!("port {}", point.port),
        None => "waits for its node".to_owned(),
    };
    vec![
        access.name.clone(),
        access.via.clone(),
        access.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        state,
        access.public_key.clone(),
        output::ago(&access.created),
    ]
}

/// A file for its owner alone, which is gone again unless it was written whole.
struct NewFile {
    path: PathBuf,
    file: File,
    whole: bool,
}

impl NewFile {
    fn open(path: Option<&Path>) -> Result<Option<Self>> {
        let Some(path) = path else { return Ok(None) };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| Self::failed(path, &error))?;
        Ok(Some(Self { path: path.to_owned(), file, whole: false }))
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn write(mut self, bytes: &[u8]) -> Result {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_all());
        written.map_err(|error| Self::failed(&self.path, &error))?;
        self.whole = true;
        Ok(())
    }

    fn failed(path: &Path, error: &std::io::Error) -> Failure {
        let kind = match error.kind() {
            std::io::ErrorKind::AlreadyExists => Kind::Conflict,
            _ => Kind::Failure,
        };
        Failure::new(kind, "file", format!("{}: {error}", path.display()))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.whole {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
