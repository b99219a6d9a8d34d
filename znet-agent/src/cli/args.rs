//! What can be said on the command line.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use znet_cli::Common;
use znet_core::name::Name;

use crate::backend::Choice;
use crate::files::MapCache;

/// The node agent of znet: joins networks and gives containers their encrypted links.
#[derive(Debug, Parser)]
#[command(name = "znet-agent", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 not permitted, 6 unreachable, 7 timed out.\nSettings come from flags, then the environment, then the file of --config."
)]
pub struct Args {
    /// What every command takes
    #[command(flatten)]
    pub common: Common,
    /// Where the agent's sockets are
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/run/znet-agent",
        env = "ZNET_AGENT_RUN_DIR"
    )]
    pub run_dir: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What the agent's program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: join networks, follow their maps, serve this machine's containers
    Run(RunArgs),
    /// Let the running agent join one more network
    #[command(
        after_help = "Examples:\n  znet-agent join znet1.CuDq…\n  znet-agent join --token-file /run/secrets/acme"
    )]
    Join(TokenArgs),
    /// Give a network namespace its interface, addresses and keys; harmless to repeat
    Attach(AttachArgs),
    /// Take a container's interface, addresses and keys back; harmless to repeat
    #[command(after_help = "Examples:\n  znet-agent detach --network acme --name web")]
    Detach {
        /// The network, by name or identifier
        #[arg(long, value_name = "NETWORK")]
        network: String,
        /// The container's name
        #[arg(long, value_name = "NAME")]
        name: String,
    },
    /// Run a command as a container: a namespace is made, attached, and taken away at the end
    Exec(ExecArgs),
    /// Show this node's networks, containers and figures
    #[command(
        after_help = "Examples:\n  znet-agent status\n  znet-agent status --output json | jq '.networks[].attached[].addresses'"
    )]
    Status,
    /// End this node's membership of a network, with all its containers
    #[command(after_help = "Examples:\n  znet-agent leave acme")]
    Leave {
        /// The network, by name or identifier
        #[arg(value_name = "NETWORK")]
        network: String,
    },
    /// Put the CNI plugin and its configuration where container runtimes look, or take them away
    #[command(
        subcommand,
        after_help = "Examples:\n  znet-agent cni install --network acme\n  znet-agent cni uninstall"
    )]
    Cni(CniCommand),
    /// Print the completions for a shell
    #[command(after_help = "Examples:\n  znet-agent completions bash > /etc/bash_completion.d/znet-agent")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    #[command(after_help = "Examples:\n  znet-agent man /usr/local/share/man/man1")]
    Man {
        /// The directory; it is made if it is missing
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// The process that moves packets; started by the agent
    #[command(hide = true)]
    Engine,
}

/// How the agent is run.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  znet-agent run --join znet1.CuDq…\n  znet-agent run --join-file /run/secrets/acme --name edge-7\n  znet-agent run --advertise 203.0.113.7:51820 --keepalive 25"
)]
pub struct RunArgs {
    /// A join token; may be given for several networks. A network that was joined before needs none
    #[arg(long, value_name = "TOKEN", env = "ZNET_JOIN", hide_env_values = true, value_delimiter = ',')]
    pub join: Vec<String>,
    /// A file with a join token
    #[arg(long, value_name = "FILE", env = "ZNET_JOIN_FILE")]
    pub join_file: Vec<PathBuf>,
    /// The node's name: a DNS label [default: the machine's hostname]
    #[arg(long, value_name = "NAME", env = "ZNET_NODE_NAME")]
    pub name: Option<Name>,
    /// Where the agent keeps its key, memberships and last maps
    #[arg(long, value_name = "DIR", default_value = "/var/lib/znet-agent", env = "ZNET_AGENT_STATE_DIR")]
    pub state_dir: PathBuf,
    /// The first UDP port that is tried; each network has one of its own
    #[arg(long, value_name = "PORT", default_value_t = 51_820, env = "ZNET_LISTEN_PORT")]
    pub listen_port: u16,
    /// Where other nodes reach this one, as ADDRESS:PORT or [ADDRESS]:PORT; port 0 stands for the network's port [default: the addresses of this machine]
    #[arg(long, value_name = "ENDPOINT", env = "ZNET_ADVERTISE", value_delimiter = ',')]
    pub advertise: Vec<SocketAddr>,
    /// Seconds between keepalives to active peers, for a node behind a NAT
    #[arg(long, value_name = "SECONDS", env = "ZNET_KEEPALIVE", value_parser = clap::value_parser!(u16).range(1..))]
    pub keepalive: Option<u16>,
    /// Where the last verified maps are kept: on disk they are what an agent starts from while its controller is away
    #[arg(long, value_enum, value_name = "WHERE", default_value = "disk", env = "ZNET_MAP_CACHE")]
    pub map_cache: MapCache,
    /// Give containers no resolver: they find each other by address alone
    #[arg(long, env = "ZNET_NO_DNS")]
    pub no_dns: bool,
    /// What is to move the packets
    #[arg(long, value_enum, value_name = "BACKEND", default_value = "auto", env = "ZNET_BACKEND")]
    pub backend: Choice,
    /// Start a new engine even if one runs; links pause for a moment
    #[arg(long)]
    pub replace_engine: bool,
}

/// A join token.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub struct TokenArgs {
    /// The join token
    #[arg(value_name = "TOKEN", env = "ZNET_JOIN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file with the join token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// What to attach.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  znet-agent attach --network acme --name web --netns /run/netns/web\n  znet-agent attach --network acme --name db --netns /proc/4711/ns/net --address 10.77.0.10 --wait\n  znet-agent attach --network acme --name web --netns /run/netns/web --wait-controller 10m"
)]
pub struct AttachArgs {
    /// Which container
    #[command(flatten)]
    pub container: ContainerArgs,
    /// The path of its network namespace
    #[arg(long, value_name = "PATH")]
    pub netns: PathBuf,
    /// Wait until every live node of the network has applied the change
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub timeout: std::time::Duration,
    /// How long to wait for a controller that is away [default: not at all]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub wait_controller: Option<std::time::Duration>,
}

/// What to run as a container.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  znet-agent exec --network acme --name job -- curl http://web.example/\n  znet-agent exec --network acme --name shell -- bash"
)]
pub struct ExecArgs {
    /// Which container
    #[command(flatten)]
    pub container: ContainerArgs,
    /// Start the command without waiting until every live node knows of the container
    #[arg(long)]
    pub no_wait: bool,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    pub command: Vec<OsString>,
}

/// A container of a network.
#[derive(Debug, ClapArgs)]
pub struct ContainerArgs {
    /// The network, by name or identifier
    #[arg(long, value_name = "NETWORK")]
    pub network: String,
    /// The container's name: a DNS label, unique in the network
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// The interface to make inside: at most 15 bytes
    #[arg(long, value_name = "IFNAME", default_value = "znet0")]
    pub ifname: String,
    /// An explicit address; at most one of each family
    #[arg(long, value_name = "ADDRESS")]
    pub address: Vec<IpAddr>,
    /// Give it no resolver: for a container whose own DNS server wants all addresses
    #[arg(long)]
    pub no_dns: bool,
}

/// What is done about the CNI plugin.
#[derive(Debug, Subcommand)]
pub enum CniCommand {
    /// Install the plugin and a configuration; harmless to repeat
    #[command(
        after_help = "Examples:\n  znet-agent cni install --network acme\n  znet-agent cni install --network acme --name blue --conf-dir /etc/containers/cni/net.d\n  znet-agent cni install    (each container says its network: ZNET_NETWORK in CNI_ARGS, or the label znet.network)"
    )]
    Install(CniInstallArgs),
    /// Remove the configuration, and the plugin when no other configuration names it; harmless to repeat
    #[command(
        after_help = "Examples:\n  znet-agent cni uninstall\n  znet-agent cni uninstall --name blue --conf-dir /etc/containers/cni/net.d"
    )]
    Uninstall(CniPlaceArgs),
}

/// Where the CNI plugin and its configuration are.
#[derive(Debug, ClapArgs)]
pub struct CniPlaceArgs {
    /// The CNI network's name, by which a runtime knows it; two runtimes that do not share their containers need two
    #[arg(long, value_name = "NAME", default_value = "znet")]
    pub name: String,
    /// Where runtimes look for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Where runtimes look for configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
}

/// What is installed.
#[derive(Debug, ClapArgs)]
pub struct CniInstallArgs {
    /// Where it goes
    #[command(flatten)]
    pub place: CniPlaceArgs,
    /// The network of all containers that do not name one [default: none]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// The plugin's program [default: znet-cni beside this program]
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,
}
