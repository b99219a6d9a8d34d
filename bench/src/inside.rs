//! Threads that work inside a container's namespace, where a process for each would cost more than what is measured.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::sched::{CloneFlags, setns};
use znet_tests::{Member, Node};

/// The path of a container's namespace as seen from outside its host.
pub(crate) fn outside(node: &Node, member: &Member) -> Result<PathBuf> {
    let root = PathBuf::from(format!("/proc/{}/root", node.agent()?.pid()));
    let path = member.container.netns_path();
    Ok(root.join(path.strip_prefix("/").unwrap_or(&path)))
}

/// Moves the calling thread into another namespace. It must not do anything else afterwards.
pub(crate) fn enter(netns: &Path) -> Result<()> {
    Ok(setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?)
}
