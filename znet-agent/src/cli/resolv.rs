//! A `resolv.conf` for one command: mounted over the host's in a mount namespace that only the command is in.

use std::fs::{OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where resolvers look (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What to mount, and a directory in which the file may be made.
#[derive(Debug)]
pub(super) struct ResolvConf {
    pub(super) text: String,
    pub(super) dir: PathBuf,
}

impl ResolvConf {
    /// Gives the calling thread, and what it starts from now on, a mount namespace with this file in it. Mounts that the
    /// host makes later are seen inside; what is mounted inside stays there.
    pub(super) fn mount(self) -> std::io::Result<()> {
        let path = self.dir.join(format!("resolv.conf.{}", std::process::id()));
        let mounted = self.write(&path).and_then(|()| Ok(bind(&path)?));
        // The mount keeps the file, which needs no name any more.
        let removed = std::fs::remove_file(&path);
        mounted.and(removed)
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
        // Whoever the command becomes has to read it, whatever the mask is here.
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(self.text.as_bytes())
    }
}

fn bind(file: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some(file), RESOLV_CONF, none, MsFlags::MS_BIND, none)
}
