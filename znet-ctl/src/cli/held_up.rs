//! Which nodes keep the keys of containers from being changed, and what an operator can do about each.

use znet_api::rest::Node;
use znet_cli::output;

/// Most nodes that are named at a time.
const MAX_NAMED: usize = 10;

/// What helps where nodes cannot do with a container that has two keys meanwhile, so that no key is changed; nothing where there
/// are none.
pub(super) fn unable(network: &str, nodes: &[Node]) -> Vec<String> {
    let unable = nodes.iter().filter(|node| node.one_key_only);
    let (live, away): (Vec<&Node>, Vec<&Node>) = unable.partition(|node| node.live);
    let mut help = Vec::new();
    if !live.is_empty() {
        help.push(format!(
            "{}: upgrade the agent and restart it with --replace-engine, or with --backend engine where the kernel moves the \
             packets",
            named(&live, |node| node.name.clone())
        ));
    }
    if let Some(first) = away.first() {
        help.push(format!(
            "{}: upgrade the agent when it is back; a node that is gone for good has to be removed: `znet-ctl node remove \
             {network} {}`",
            named(&away, absence),
            first.name
        ));
    }
    help
}

/// For whom a change that is under way waits, as far as this controller knows; nothing where all are connected to it.
pub(super) fn waiting(network: &str, nodes: &[Node]) -> Option<String> {
    let away: Vec<&Node> = nodes.iter().filter(|node| !node.live && node.containers > 0).collect();
    let first = away.first()?;
    Some(format!(
        "{}: not connected here. A change waits ten minutes for who is away, as links may be alive; a node that is gone for \
         good can be removed: `znet-ctl node remove {network} {}`",
        named(&away, absence),
        first.name
    ))
}

/// A node, and when it was here.
fn absence(node: &Node) -> String {
    match &node.last_seen {
        Some(seen) => format!("{} (seen {})", node.name, output::ago(seen)),
        None => format!("{} (not seen since the controller was started)", node.name),
    }
}

fn named(nodes: &[&Node], name: impl Fn(&Node) -> String) -> String {
    let mut names: Vec<String> = nodes.iter().take(MAX_NAMED).map(|node| name(node)).collect();
    if let Some(more) = nodes.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use znet_api::rest::Lifetime;

    use super::*;

    fn node(name: &str, live: bool, one_key_only: bool, containers: usize) -> Node {
        Node {
            id: String::new(),
            name: name.to_owned(),
            endpoints: Vec::new(),
            lifetime: Lifetime::Lasting,
            token: String::new(),
            joined: String::new(),
            live,
            last_seen: None,
            applied: None,
            ahead: None,
            one_key_only,
            containers,
        }
    }

    #[test]
    fn nodes_that_cannot_do_with_two_keys_are_named_with_what_helps_where_they_are() {
        assert_eq!(unable("acme", &[node("fine", true, false, 1), node("away", false, false, 1)]), [""; 0]);
        let help = unable("acme", &[node("old", true, true, 0), node("gone", false, true, 0)]);
        assert!(help[0].starts_with("old: ") && help[0].contains("--replace-engine"), "{help:?}");
        assert!(
            help[1].starts_with("gone (not seen") && help[1].contains("node remove acme gone`"),
            "{help:?}"
        );
        let many: Vec<Node> = (0..13).map(|n| node(&format!("n{n}"), true, true, 0)).collect();
        assert!(unable("acme", &many)[0].contains("n9, 3 more: "));
    }

    #[test]
    fn a_change_waits_for_those_who_are_away_with_containers() {
        assert_eq!(waiting("acme", &[node("live", true, false, 1), node("bare", false, false, 0)]), None);
        let text = waiting("acme", &[node("live", true, false, 1), node("n3", false, false, 2)]).unwrap();
        assert!(text.starts_with("n3 (not seen") && text.contains("node remove acme n3`"), "{text}");
    }
}
