//! Giving up every privilege but the two that a device needs while it runs.
//!
//! Why not become `nobody`, as an engine does: `wg(8)` may change the port and the mark at any time, for
//! which the capabilities below must stay; and the socket's file must be removed at the end, which needs the
//! right to write to root's directory. So a process with a socket of its own stays root by number, but sees
//! nothing of the file system except the directory of its socket ([`Confinement::Directory`]): root without
//! `CAP_SYS_CHROOT` does not get out. One without such a file has no reason to stay root and becomes `nobody`
//! ([`Confinement::Nobody`]).
//!
//! What this does not keep from it, the sockets of other devices in that directory, the filter of system calls does
//! ([`crate::sandbox`]): it has no `connect`.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use caps::{CapSet, Capability};
use nix::sys::prctl::{set_dumpable, set_keepcaps, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chroot, fchdir, setgroups, setresgid, setresuid};

use crate::sandbox::UNPRIVILEGED_ID;

/// What stays: to mark datagrams and attach to TUN devices, and to bind ports below 1024.
pub const KEPT: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_BIND_SERVICE];

/// Why privileges could not be given up. A process that was asked to give them up does not run with them.
#[derive(Debug, thiserror::Error)]
#[error("privileges cannot be given up ({step}): {why}; --disable-drop-privileges keeps them")]
pub struct PrivilegeError {
    /// What was tried.
    pub step: &'static str,
    /// What the operating system said.
    pub why: String,
}

/// What becomes of a process that runs as root.
#[derive(Clone, Copy, Debug)]
pub enum Confinement<'a> {
    /// It stays root and sees this directory alone, as `/`. No other directory may be open.
    Directory(BorrowedFd<'a>),
    /// It becomes `nobody`, and keeps its view of the file system.
    Nobody,
}

/// Gives up all capabilities but those of [`KEPT`] that the process has, core dumps, and the possibility to
/// gain anything back; and, as root, confines the process. A process that is not root keeps its user.
///
/// Call it when everything is open that ever will be, and before the first thread is made: capabilities are
/// each thread's own, and only new threads inherit them.
///
/// # Errors
/// [`PrivilegeError`]: the step that failed. Those before it are done.
pub fn give_up(confinement: Confinement<'_>) -> Result<(), PrivilegeError> {
    let step = |step| move |source: nix::Error| PrivilegeError { step, why: source.to_string() };
    let refused =
        |step| move |source: caps::errors::CapsError| PrivilegeError { step, why: source.to_string() };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("core limit"))?;
    let kept = kept().map_err(refused("read capabilities"))?;
    if Uid::effective().is_root() {
        drop_bounding().map_err(refused("bounding set"))?;
        confine(confinement)?;
    }
    // In this order: what is effective must be permitted, and what is ambient must be inheritable.
    caps::clear(None, CapSet::Ambient).map_err(refused("ambient set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(refused("inheritable set"))?;
    caps::set(None, CapSet::Effective, &kept).map_err(refused("effective set"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(refused("permitted set"))?;
    set_no_new_privs().map_err(step("no_new_privs"))?;
    // The last, as the kernel raises it again when the user changes.
    set_dumpable(false).map_err(step("dumpable"))
}

/// A container's root may lack the capability for a step. What it lacks it cannot misuse either, so that is
/// no failure.
fn confine(confinement: Confinement<'_>) -> Result<(), PrivilegeError> {
    let step = |step| move |source: nix::Error| PrivilegeError { step, why: source.to_string() };
    let (groups, users) = (has(Capability::CAP_SETGID)?, has(Capability::CAP_SETUID)?);
    if groups {
        setgroups(&[]).map_err(step("setgroups"))?;
    }
    match confinement {
        Confinement::Directory(directory) if has(Capability::CAP_SYS_CHROOT)? => {
            fchdir(directory).map_err(step("chdir"))?;
            chroot(".").map_err(step("chroot"))?;
        }
        Confinement::Nobody if groups && users => {
            // Or the kernel would clear all capabilities as the user changes.
            set_keepcaps(true).map_err(step("keep capabilities"))?;
            let (uid, gid) = (Uid::from_raw(UNPRIVILEGED_ID), Gid::from_raw(UNPRIVILEGED_ID));
            setresgid(gid, gid, gid).map_err(step("setresgid"))?;
            setresuid(uid, uid, uid).map_err(step("setresuid"))?;
            set_keepcaps(false).map_err(step("keep capabilities"))?;
        }
        other => tracing::warn!(confinement = ?other, "the process lacks the capabilities to confine itself"),
    }
    Ok(())
}

fn has(capability: Capability) -> Result<bool, PrivilegeError> {
    caps::has_cap(None, CapSet::Effective, capability)
        .map_err(|source| PrivilegeError { step: "read capabilities", why: source.to_string() })
}

/// Those of [`KEPT`] that there are to keep.
fn kept() -> Result<HashSet<Capability>, caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    Ok(KEPT.into_iter().filter(|capability| permitted.contains(capability)).collect())
}

/// Even a program of root's that this process could start would not have them.
fn drop_bounding() -> Result<(), caps::errors::CapsError> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        // A container's root may lack it. `no_new_privs` holds nevertheless.
        return Ok(());
    }
    let bounding = caps::read(None, CapSet::Bounding)?;
    bounding
        .into_iter()
        .filter(|capability| !KEPT.contains(capability))
        .try_for_each(|capability| caps::drop(None, CapSet::Bounding, capability))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nothing_is_kept_that_is_not_listed() {
        assert!(kept().unwrap().iter().all(|capability| KEPT.contains(capability)));
    }
}
