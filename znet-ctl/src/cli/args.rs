//! What can be said on the command line. Commands that a file of their own carries out are described there.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use ipnet::IpNet;
use znet_api::tls::Pin;
use znet_cli::Common;

use super::access::AccessCommand;
use super::controllers::ControllerCommand;
use super::keys::KeyCommand;
use super::operators::OperatorCommand;
use super::store::StoreCommand;
use super::tls::TlsCommand;
use crate::store::Location;

/// The controller of znet and the operator's command line.
#[derive(Debug, Parser)]
#[command(name = "znet-ctl", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 not permitted, 6 unreachable, 7 timed out.\nSettings come from flags, then the environment, then the file of --config."
)]
pub struct Args {
    /// What every command takes
    #[command(flatten)]
    pub common: Common,
    /// The Unix socket of a controller on this machine
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/run/znet-ctl/ctl.sock",
        env = "ZNET_CTL_SOCKET"
    )]
    pub socket: PathBuf,
    /// A controller elsewhere, as HOST:PORT; needs --pin and an operator's token
    #[arg(long, global = true, value_name = "HOST:PORT", env = "ZNET_CONTROLLER")]
    pub controller: Option<String>,
    /// The pin of that controller's TLS key, as `operator create` prints it
    #[arg(long, global = true, value_name = "HEX", env = "ZNET_PIN")]
    pub pin: Option<Pin>,
    /// The operator's token for that controller
    #[arg(long, global = true, value_name = "TOKEN", env = "ZNET_OPERATOR_TOKEN", hide_env_values = true)]
    pub operator_token: Option<String>,
    /// A file with the operator's token
    #[arg(long, global = true, value_name = "FILE", env = "ZNET_OPERATOR_TOKEN_FILE")]
    pub operator_token_file: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller
    Serve(ServeArgs),
    /// Create, list, show, change and delete networks
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl network create acme --prefix 10.77.0.0/16\n  znet-ctl network list"
    )]
    Network(NetworkCommand),
    /// List and change where agents look for a network's controllers
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl controllers list\n  znet-ctl controllers add ctl2.example.net:7443"
    )]
    Controllers(ControllerCommand),
    /// Show and change the TLS key by which the controllers are known
    #[command(subcommand, after_help = "Examples:\n  znet-ctl tls show\n  znet-ctl tls rotate --keep 30d")]
    Tls(TlsCommand),
    /// Create, list and revoke join tokens
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl token create acme --uses 3 --expires 24h\n  znet-ctl token list acme"
    )]
    Token(TokenCommand),
    /// List, show and remove nodes
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl node list acme\n  znet-ctl node remove acme edge-7 --yes"
    )]
    Node(NodeCommand),
    /// List, show and remove containers
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl container list acme\n  znet-ctl container show acme web --output json"
    )]
    Container(ContainerCommand),
    /// Change the key pairs of containers
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl key rotate acme web db\n  znet-ctl key rotate acme --all --wait 5m"
    )]
    Key(KeyCommand),
    /// Keep names and addresses for containers that will come
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl reservation add acme db --address 10.77.0.10\n  znet-ctl reservation list acme"
    )]
    Reservation(ReservationCommand),
    /// Let laptops and phones with stock WireGuard into a network
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl access create acme laptop --via edge-7 --output-file laptop.conf\n  znet-ctl access list acme"
    )]
    Access(AccessCommand),
    /// Create, list and revoke operators' tokens
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl operator create --role deploy --network acme 'CI of acme'\n  znet-ctl operator list"
    )]
    Operator(OperatorCommand),
    /// Show how networks and their nodes fare
    #[command(after_help = "Examples:\n  znet-ctl status\n  znet-ctl status acme --watch")]
    Status {
        /// One network in detail, by name or identifier; all in short when absent
        #[arg(value_name = "NETWORK")]
        network: Option<String>,
        /// Print again whenever something changes, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Remove what is of no use any more: tokens that admit nobody, ephemeral nodes that stayed away; lists it first
    #[command(after_help = "Examples:\n  znet-ctl gc --dry-run\n  znet-ctl gc acme --yes")]
    Gc {
        /// The network, by name or identifier; all when absent
        #[arg(value_name = "NETWORK")]
        network: Option<String>,
        /// Only list
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Show who changed what, when, at which revision
    #[command(
        after_help = "Examples:\n  znet-ctl audit\n  znet-ctl audit acme\n  znet-ctl audit acme --after 1200 --follow"
    )]
    Audit {
        /// The network, by name or identifier; all, and the controller itself, when absent
        #[arg(value_name = "NETWORK")]
        network: Option<String>,
        /// Only records after this one
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
        /// At most so many records
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Go on with those that come, until interrupted
        #[arg(long)]
        follow: bool,
    },
    /// Make a network, its tokens and its reservations what a file says; harmless to repeat
    #[command(
        after_help = "Examples:\n  znet-ctl apply shop.toml --dry-run\n  znet-ctl apply shop.yaml\n  cat shop.toml | znet-ctl apply -"
    )]
    Apply {
        /// The file, TOML or YAML by its ending; - reads standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Only print what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Write a copy of everything, keys included, from the running controller
    #[command(
        after_help = "Examples:\n  znet-ctl backup /var/backups/znet-2026-11-25\n  znet-ctl backup - | age -r … > znet.age"
    )]
    Backup {
        /// The file, which must not exist; - writes to standard output
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Make a data directory out of a backup; the controller must not be running
    #[command(
        after_help = "Examples:\n  znet-ctl restore /var/backups/znet-2026-11-25\n  znet-ctl restore znet.backup --data-dir /srv/znet --replace\n\nA restored controller is older than its agents may be. If they refuse its map, start a new epoch:\n  znet-ctl network new-epoch acme --yes"
    )]
    Restore {
        /// The backup
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The data directory to make
        #[arg(long, value_name = "DIR", default_value = "/var/lib/znet-ctl", env = "ZNET_CTL_DATA_DIR")]
        data_dir: PathBuf,
        /// Put what is in the data directory aside
        #[arg(long)]
        replace: bool,
    },
    /// Move everything from one store to another
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-ctl store migrate --from sqlite:/var/lib/znet-ctl --to etcd:http://e1:2379,http://e2:2379"
    )]
    Store(StoreCommand),
    /// Print the completions for a shell
    #[command(after_help = "Examples:\n  znet-ctl completions bash > /etc/bash_completion.d/znet-ctl")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    #[command(after_help = "Examples:\n  znet-ctl man /usr/local/share/man/man1")]
    Man {
        /// The directory; it is made if it is missing
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// How the controller is run.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  znet-ctl serve\n  znet-ctl serve --listen 0.0.0.0:7443 --advertise ctl.example.net:7443\n  znet-ctl serve --store etcd:http://e1:2379,http://e2:2379,http://e3:2379 --advertise c1:7443,c2:7443"
)]
pub struct ServeArgs {
    /// Where state and keys are kept; made at the first start
    #[arg(long, value_name = "DIR", default_value = "/var/lib/znet-ctl", env = "ZNET_CTL_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Where networks are kept: sqlite, or etcd:http://A:2379,http://B:2379[?prefix=/znet], in which several controllers serve
    /// the same networks; with https:// it takes ?ca=FILE[&cert=FILE&key=FILE]
    #[arg(long, value_name = "STORE", default_value = "sqlite", env = "ZNET_CTL_STORE")]
    pub store: Location,
    /// The file that opens the keys in etcd, the same for all controllers [default: store.key in the data directory]
    #[arg(long, value_name = "FILE", env = "ZNET_CTL_STORE_KEY")]
    pub store_key: Option<PathBuf>,
    /// The TCP port for agents and operators
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:7443", env = "ZNET_CTL_LISTEN")]
    pub listen: SocketAddr,
    /// Where agents reach this controller and the others on its store, best first [default: the addresses of this machine]
    #[arg(long, value_name = "HOST:PORT", env = "ZNET_CTL_ADVERTISE", value_delimiter = ',')]
    pub advertise: Vec<String>,
}

/// What can be done with networks.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Create a network and print a join token for its nodes
    #[command(
        after_help = "Examples:\n  znet-ctl network create acme --prefix 10.77.0.0/16\n  znet-ctl network create acme --quiet --uses 3 --expires 1h"
    )]
    Create {
        /// Its name: a DNS label, unique at the controller
        name: String,
        /// An IPv6 Unique Local /48 (drawn at random when none is given) or a private IPv4 prefix
        #[arg(long, value_name = "PREFIX")]
        prefix: Vec<IpNet>,
        /// A range out of which nothing is allocated unless asked for by address
        #[arg(long, value_name = "PREFIX")]
        reserve: Vec<IpNet>,
        /// How long a released address rests before it is given again [default: 10m]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        rest: Option<Duration>,
        /// How long an ephemeral node may stay away before it is removed [default: 5m]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        ephemeral_ttl: Option<Duration>,
        /// How long a container's key pair is used before it is changed, at least 1m [default: for ever]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        key_lifetime: Option<Duration>,
        /// The join token that is made along with it
        #[command(flatten)]
        token: TokenArgs,
        /// Make no join token
        #[arg(long, conflicts_with_all = ["uses", "expires", "ephemeral", "label", "quiet"])]
        no_token: bool,
    },
    /// List networks
    #[command(after_help = "Examples:\n  znet-ctl network list --output json")]
    List,
    /// Show a network
    #[command(after_help = "Examples:\n  znet-ctl network show acme")]
    Show {
        /// The network, by name or identifier
        network: String,
    },
    /// Change what may change while a network lives
    #[command(after_help = "Examples:\n  znet-ctl network set acme --reserve 10.77.0.0/24 --rest 1h")]
    #[group(required = true, multiple = true)]
    Set {
        /// The network, by name or identifier
        network: String,
        /// Replace the reserved ranges by these; an empty text for none
        #[arg(long, value_name = "PREFIX", required_unless_present_any = ["rest", "ephemeral_ttl", "key_lifetime"])]
        reserve: Option<Vec<String>>,
        /// How long a released address rests
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        rest: Option<Duration>,
        /// How long an ephemeral node may stay away before it is removed
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        ephemeral_ttl: Option<Duration>,
        /// How long a container's key pair is used before it is changed, at least 1m; 0s for ever
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        key_lifetime: Option<Duration>,
    },
    /// Delete a network with its nodes and containers
    #[command(after_help = "Examples:\n  znet-ctl network delete acme --yes")]
    Delete {
        /// The network, by name or identifier
        network: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Put a new key in the place of the one that signs the network's map; agents follow by themselves
    #[command(
        after_help = "Examples:\n  znet-ctl network rotate-key acme\n  znet-ctl network rotate-key acme --retire --yes"
    )]
    RotateKey {
        /// The network, by name or identifier
        network: String,
        /// Make no new key, but give earlier ones up: nodes and tokens that believe one of those need a new token
        #[arg(long)]
        retire: bool,
        /// Do not ask
        #[arg(long, short, requires = "retire")]
        yes: bool,
    },
    /// Start a new epoch, so that agents accept a history that was restored from a backup
    #[command(after_help = "Examples:\n  znet-ctl network new-epoch acme --yes")]
    NewEpoch {
        /// The network, by name or identifier
        network: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// What a join token is like.
#[derive(Debug, Default, ClapArgs)]
pub struct TokenArgs {
    /// A name by which tooling finds it again: a DNS label
    #[arg(long, value_name = "LABEL")]
    pub label: Option<String>,
    /// How often it can be used [default: any number of times]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// How long it is accepted [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub expires: Option<Duration>,
    /// Nodes that join by it are removed when they stay away
    #[arg(long)]
    pub ephemeral: bool,
    /// Print the token's text and nothing else
    #[arg(long, short)]
    pub quiet: bool,
}

/// What can be done with join tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token; its text is shown this once
    #[command(
        after_help = "Examples:\n  znet-ctl token create acme --uses 3 --expires 24h\n  TOKEN=$(znet-ctl token create acme --quiet)"
    )]
    Create {
        /// The network, by name or identifier
        network: String,
        /// What it is like
        #[command(flatten)]
        token: TokenArgs,
    },
    /// List join tokens
    #[command(after_help = "Examples:\n  znet-ctl token list acme")]
    List {
        /// The network, by name or identifier
        network: String,
    },
    /// Make a join token invalid; nodes that joined by it stay, or go with it
    #[command(
        after_help = "Examples:\n  znet-ctl token revoke acme 0123456789abcdef\n  znet-ctl token revoke acme ci --with-nodes --yes"
    )]
    Revoke {
        /// The network, by name or identifier
        network: String,
        /// The token's handle or label
        token: String,
        /// Remove the nodes that joined by it with all their containers, and cut their links
        #[arg(long)]
        with_nodes: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// What can be done with nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    #[command(after_help = "Examples:\n  znet-ctl node list acme")]
    List {
        /// The network, by name or identifier
        network: String,
    },
    /// Show a node
    #[command(after_help = "Examples:\n  znet-ctl node show acme edge-7")]
    Show {
        /// The network, by name or identifier
        network: String,
        /// The node, by name or identifier
        node: String,
    },
    /// Remove a node with its containers; it needs a token to come back
    #[command(after_help = "Examples:\n  znet-ctl node remove acme edge-7 --yes")]
    Remove {
        /// The network, by name or identifier
        network: String,
        /// The node, by name or identifier
        node: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// What can be done with containers.
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// List containers
    #[command(after_help = "Examples:\n  znet-ctl container list acme")]
    List {
        /// The network, by name or identifier
        network: String,
    },
    /// Show a container
    #[command(after_help = "Examples:\n  znet-ctl container show acme web")]
    Show {
        /// The network, by name or identifier
        network: String,
        /// The container's name
        name: String,
    },
    /// Remove a container wherever it runs
    #[command(after_help = "Examples:\n  znet-ctl container remove acme web --yes")]
    Remove {
        /// The network, by name or identifier
        network: String,
        /// The container's name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// What can be done with reservations.
#[derive(Debug, Subcommand)]
pub enum ReservationCommand {
    /// List reservations
    #[command(after_help = "Examples:\n  znet-ctl reservation list acme")]
    List {
        /// The network, by name or identifier
        network: String,
    },
    /// Keep a name and addresses for a container; replaces what was kept for the name
    #[command(after_help = "Examples:\n  znet-ctl reservation add acme db --address 10.77.0.10")]
    Add {
        /// The network, by name or identifier
        network: String,
        /// The container's name
        name: String,
        /// An address, at most one of each family; the missing ones are allocated
        #[arg(long, value_name = "ADDRESS")]
        address: Vec<IpAddr>,
    },
    /// Give a reservation up
    #[command(after_help = "Examples:\n  znet-ctl reservation remove acme db")]
    Remove {
        /// The network, by name or identifier
        network: String,
        /// The container's name
        name: String,
    },
}
