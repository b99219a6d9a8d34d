//! The commands that ask the running agent and print what it says.

use znet_cli::exit::{Failure, Kind};
use znet_cli::output::{self, Format};

use super::args::{AttachArgs, Command, TokenArgs};
use crate::backend::Kind as Backend;
use crate::client::LocalClient;
use crate::local::{AttachRequest, AttachedContainer, ContainerStatus, DetachRequest, JoinRequest, Status};

pub(super) async fn ask(client: &LocalClient, command: Command, format: Format) -> Result<(), Failure> {
    match command {
        Command::Join(args) => {
            let token = token_text(&args)?;
            let joined = client.join(&JoinRequest { token }).await?;
            output::print(
                format,
                &joined,
                &["NETWORK", "ID"],
                [vec![joined.network.clone(), joined.id.clone()]],
            );
        }
        Command::Attach(args) => {
            let attached = client.attach(&attach_request(args)).await?;
            output::print(format, &attached, &CONTAINER_HEADINGS, [container_row(&attached)]);
            if let (Some(dns), Format::Table) = (&attached.dns, format) {
                output::line(&format!("\nFor the container's /etc/resolv.conf:\n\n{}", dns.resolv_conf()));
            }
        }
        Command::Detach { network, name } => {
            let detached = client.detach(&DetachRequest { network, name: name.clone() }).await?;
            let text = if detached.was_attached { "detached" } else { "was not attached" };
            output::print(format, &detached, &["NAME", "RESULT"], [vec![name, text.to_owned()]]);
        }
        Command::Status => print_status(&client.status().await?, format),
        Command::Leave { network } => {
            let left = client.leave(&network).await?;
            output::print(format, &left, &["NETWORK", "ID"], [vec![left.network.clone(), left.id.clone()]]);
        }
        _ => return Err(Failure::new(Kind::Usage, "usage", "this command is not one that asks the agent")),
    }
    Ok(())
}

const CONTAINER_HEADINGS: [&str; 6] = ["NETWORK", "CONTAINER", "ADDRESSES", "INTERFACE", "MTU", "DEVICE"];

fn container_row(container: &AttachedContainer) -> Vec<String> {
    let addresses: Vec<String> = container.addresses.iter().map(ToString::to_string).collect();
    vec![
        container.network.clone(),
        container.name.clone(),
        addresses.join(" "),
        container.ifname.clone(),
        container.mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
        container.device.clone(),
    ]
}

fn attach_request(args: AttachArgs) -> AttachRequest {
    AttachRequest {
        network: args.container.network,
        name: args.container.name,
        netns: args.netns,
        ifname: args.container.ifname,
        addresses: args.container.address,
        wait_millis: args.wait.then(|| millis(args.timeout)),
        wait_controller_millis: args.wait_controller.map(millis),
        owner: None,
        no_dns: args.container.no_dns,
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The text of the join token, from the command line or a file.
pub(super) fn token_text(args: &TokenArgs) -> Result<String, Failure> {
    match (&args.token, &args.token_file) {
        (Some(text), _) => Ok(text.clone()),
        (None, Some(path)) => token_file(path),
        (None, None) => Err(Failure::new(Kind::Usage, "usage", "no join token was given")),
    }
}

/// Reads a join token out of a file.
pub(super) fn token_file(path: &std::path::Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path);
    text.map(|text| text.trim().to_owned())
        .map_err(|error| Failure::new(Kind::Usage, "token_file", format!("{}: {error}", path.display())))
}

fn print_status(status: &Status, format: Format) {
    if format == Format::Json {
        return output::json(status);
    }
    let engine = match (status.backend.kind, status.engine_pid) {
        (Backend::Engine, Some(pid)) => format!(", process {pid}"),
        (Backend::Engine, None) => ", not running".to_owned(),
        (Backend::Kernel, Some(pid)) => format!(" with an engine beside it, process {pid}"),
        (Backend::Kernel, None) => String::new(),
    };
    let backend = format!("backend: {}{engine} ({})", status.backend.kind, status.backend.why);
    output::line(&format!("node {}\nversion {}, {backend}\n", status.node, status.version));
    let networks = status.networks.iter().map(|network| {
        vec![
            network.name.clone(),
            if network.connected { "connected" } else { "away" }.to_owned(),
            network.revision.to_string(),
            network.port.to_string(),
            network.nodes.to_string(),
            network.containers.to_string(),
            network.attached.len().to_string(),
        ]
    });
    let headings = ["NETWORK", "CONTROLLER", "REVISION", "PORT", "NODES", "CONTAINERS", "HERE"];
    output::table(&headings, networks);
    let access = status.networks.iter().flat_map(|network| {
        network.access.iter().map(|access| {
            vec![
                network.name.clone(),
                access.name.clone(),
                access.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                access.port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
                access.outer_device.clone(),
                access.outer.map(|stats| stats.to_string()).unwrap_or_default(),
            ]
        })
    });
    let access: Vec<Vec<String>> = access.collect();
    if !access.is_empty() {
        output::line("");
        output::table(&["NETWORK", "ACCESS", "ADDRESSES", "PORT", "DEVICE", "TRAFFIC"], access);
    }
    let containers: Vec<Vec<String>> = status
        .networks
        .iter()
        .flat_map(|network| &network.attached)
        .map(|ContainerStatus { container, stats, .. }| {
            let mut row = container_row(container);
            row.push(container.owner.as_ref().map(ToString::to_string).unwrap_or_default());
            row.push(stats.map(|stats| stats.to_string()).unwrap_or_default());
            row
        })
        .collect();
    if !containers.is_empty() {
        output::line("");
        let mut headings = CONTAINER_HEADINGS.to_vec();
        headings.extend(["OWNER", "TRAFFIC"]);
        output::table(&headings, containers);
    }
}
