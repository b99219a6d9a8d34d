//! A list of the sessions that an engine began, in memory that outlives it.
//!
//! The others notice only after a while that an engine, and with it their sessions, is gone. The next engine therefore
//! begins anew what the last one had; which sessions that were, the agent reads out of a memory file (memfd_create(2))
//! that engine and agent both hold. It is a hint and nothing more: a record too many costs a handshake, one too few a
//! pause.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use nix::sys::memfd::{MFdFlags, memfd_create};
use znet_core::id::{ContainerId, NetworkId};
use znet_core::key::PublicKey;

/// Bytes of a record: the network, the container, the peer's key.
const RECORD: usize = 16 + 8 + 32;
/// Records that may be written before those of sessions that ended are thrown out, beyond twice the live ones.
const SLACK: usize = 1_024;
/// Most records that are read: what is written comes from an engine that strangers talk to.
const MAX_RECORDS: usize = 1 << 18;

/// A session that was begun.
pub type SessionKey = (NetworkId, ContainerId, PublicKey);

/// The engine's end of the list.
#[derive(Debug)]
pub struct SessionList {
    file: File,
    records: usize,
}

impl SessionList {
    /// An empty list.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let file = memfd_create(c"znet-sessions", MFdFlags::MFD_CLOEXEC)?;
        Ok(Self { file: file.into(), records: 0 })
    }

    /// Notes a session. One that cannot be noted is only slower to come back.
    pub fn push(&mut self, (network, device, peer): &SessionKey) {
        let number = device.get().to_le_bytes();
        let record = [network.as_bytes().as_slice(), &number, peer.as_bytes()].concat();
        if self.records < MAX_RECORDS
            && self.file.write_all_at(&record, (self.records * RECORD) as u64).is_ok()
        {
            self.records += 1;
        }
    }

    /// Whether most of what is noted has ended, when so many sessions live.
    pub fn is_stale(&self, live: usize) -> bool {
        self.records > live * 2 + SLACK
    }

    /// Begins anew with these sessions.
    pub fn rewrite(&mut self, live: impl IntoIterator<Item = SessionKey>) {
        if self.file.set_len(0).is_ok() {
            self.records = 0;
            live.into_iter().for_each(|key| self.push(&key));
        }
    }

    /// The memory file, for the agent.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Reads a list, whoever wrote it and whether that still lives.
pub fn read_sessions(file: &OwnedFd) -> BTreeSet<SessionKey> {
    let Ok(file) = file.try_clone().map(File::from) else { return BTreeSet::new() };
    let mut sessions = BTreeSet::new();
    let mut record = [0; RECORD];
    for number in 0..MAX_RECORDS {
        if file.read_exact_at(&mut record, (number * RECORD) as u64).is_err() {
            break;
        }
        sessions.extend(parse(&record));
    }
    sessions
}

fn parse(record: &[u8; RECORD]) -> Option<SessionKey> {
    let (network, rest) = record.split_first_chunk::<16>()?;
    let (device, rest) = rest.split_first_chunk::<8>()?;
    let peer = rest.first_chunk::<32>()?;
    let device = ContainerId::new(u64::from_le_bytes(*device));
    Some((NetworkId::from_bytes(*network), device, PublicKey::from_bytes(*peer)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(number: u8) -> SessionKey {
        let peer = PublicKey::from_bytes([number; 32]);
        (NetworkId::from_bytes([7; 16]), ContainerId::new(number.into()), peer)
    }

    #[test]
    fn what_was_noted_is_read_by_whoever_holds_the_file_and_the_ended_are_thrown_out() {
        let mut list = SessionList::new().unwrap();
        let held = OwnedFd::from(list.file().try_clone().unwrap());
        list.push(&key(1));
        list.push(&key(2));
        list.push(&key(1));
        assert_eq!(read_sessions(&held), BTreeSet::from([key(1), key(2)]));
        (0..SLACK).for_each(|_| list.push(&key(3)));
        assert!(list.is_stale(1) && !list.is_stale(2));
        list.rewrite([key(2)]);
        drop(list);
        assert_eq!(read_sessions(&held), BTreeSet::from([key(2)]));
    }
}
