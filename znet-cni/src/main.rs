//! What container runtimes call: the CNI plugin, the netavark plugin, and the OCI hook for runtimes that know neither.
//!
//! It is started for every container, so it is small: it reads what the runtime says, asks the agent over its local
//! socket, and says what came of it in the runtime's words. It decides nothing about networks, touches no namespace and
//! keeps nothing; all of that is the agent's.
//!
//! | module | holds |
//! | --- | --- |
//! | `plugin` | the operations of the CNI specification |
//! | `input` | what a runtime says: environment, `CNI_ARGS`, configuration |
//! | `naming` | which network, and under which name |
//! | `result` | the result of ADD, merged into that of the plugins before |
//! | `failure` | the specification's error codes and our own |
//! | `hook` | the OCI hook |
//! | `netavark` | the plugin that podman calls beside its own networks |

mod failure;
mod hook;
mod input;
mod naming;
mod netavark;
mod plugin;
mod result;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

const HELP: &str = "\
znet-cni: the CNI plugin of znet, a netavark plugin, and an OCI hook

A container runtime starts it as its CNI specification says: CNI_COMMAND and the
other variables in the environment, the network's configuration on standard input.
`znet-agent cni install` puts it and a configuration where runtimes look.

usage: znet-cni
       znet-cni oci-hook [--network NETWORK] [--name NAME] [--interface NAME] [--agent-socket PATH]
       znet-cni create | setup NETNS | teardown NETNS | info     (netavark's plugin API)
       znet-cni --help | --version

Examples:
  znet-agent cni install --network acme
  echo '{\"cniVersion\":\"1.1.0\",\"name\":\"znet\",\"type\":\"znet-cni\",\"network\":\"acme\"}' | \\
      CNI_COMMAND=STATUS znet-cni
  runc's config.json:
  \"hooks\": {\"createRuntime\": [{\"path\": \"/opt/cni/bin/znet-cni\",
                               \"args\": [\"znet-cni\", \"oci-hook\", \"--network\", \"acme\"]}],
            \"poststop\":      [{\"path\": \"/opt/cni/bin/znet-cni\",
                               \"args\": [\"znet-cni\", \"oci-hook\"]}]}
";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|arg| arg.to_str()) {
        None if args.is_empty() && std::env::var_os("CNI_COMMAND").is_none() => {
            eprint!("{HELP}");
            plugin::main()
        }
        None if args.is_empty() => plugin::main(),
        Some(word) if let Some(call) = netavark::Call::of(word) => {
            let rest: Vec<&str> = args.iter().skip(1).filter_map(|arg| arg.to_str()).collect();
            match netavark::run(call, &rest, std::io::stdin().lock()) {
                Ok(text) => say(&text),
                Err(text) => {
                    say(&text);
                    ExitCode::FAILURE
                }
            }
        }
        Some("oci-hook") => hook::main(args.get(1..).unwrap_or_default()),
        Some("--help" | "-h" | "help") => say(HELP),
        Some("--version" | "-V") => say(concat!("znet-cni ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => {
            eprint!("{HELP}");
            eprintln!("error: there is no command {:?}", args.first().unwrap_or(&OsString::new()));
            ExitCode::from(2)
        }
    }
}

/// Prints what was asked for; nobody may read it.
fn say(text: &str) -> ExitCode {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
