//! What several tests need.
#![allow(dead_code, unreachable_pub)]

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A directory that goes when it is dropped.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("zt-ctl-").tempdir().unwrap()
}

/// A small disk of its own: a tmpfs that is unmounted when it is dropped.
pub struct Tmpfs {
    dir: tempfile::TempDir,
}

impl Tmpfs {
    pub fn mount(size: &str) -> Self {
        let dir = directory();
        let options = format!("size={size}");
        mount(Some("zt-ctl"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("mounting a tmpfs needs root: run the tests with sudo");
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn resize(&self, size: &str) {
        let options = format!("size={size}");
        let none = None::<&str>;
        mount(none, self.dir.path(), none, MsFlags::MS_REMOUNT, Some(options.as_str())).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}
