//! Under which keys things stand.
//!
//! ```text
//! PREFIX/format                        the form of all this
//! PREFIX/now/head/NETWORK              the revision; every commit compares and sets it
//! PREFIX/now/networks, now/operators   set by whoever adds or removes one
//! PREFIX/now/keys                      set by whoever puts another key in the place of one
//! PREFIX/name/NAME                     the network of that name
//! PREFIX/net/NETWORK/base              up to which revision the rows are folded, and who folds
//! PREFIX/net/NETWORK/row/KEY           a row
//! PREFIX/net/NETWORK/log/LAST-FIRST    the revisions of one commit
//! PREFIX/net/NETWORK/part/LAST-TAG/N   a piece of a commit that is too big for one request
//! PREFIX/audit/NETWORK/SEQ             audit records of one commit; `-` for the controllers' own
//! PREFIX/trail/SEQ-NETWORK             the order of all audit records
//! PREFIX/operator/ID                   an operator's token
//! PREFIX/present/NETWORK/CONTROLLER/N  ephemeral nodes that a controller has, for as long as it lives
//! PREFIX/suspect/NETWORK/CONTROLLER/N  nodes about which a controller asks the others' members, likewise
//! PREFIX/applied/NETWORK/CONTROLLER/N  nodes that a controller has, and what they have applied, likewise
//! PREFIX/secret/NAME                   keys of networks and controllers, sealed
//! ```
//!
//! Numbers are sixteen hexadecimal digits, so that their order is that of the keys.

use znet_core::id::{NetworkId, Revision, TokenId};
use znet_core::name::Name;

/// Makes keys under one prefix.
#[derive(Clone, Debug)]
pub(super) struct Names(String);

/// The audit trail of no network: the controllers' own.
const NOBODY: &str = "-";

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self(prefix.trim_end_matches('/').to_owned())
    }

    fn key(&self, rest: &str) -> String {
        format!("{}/{rest}", self.0)
    }

    pub(super) fn format(&self) -> String {
        self.key("format")
    }

    pub(super) fn probe(&self) -> String {
        self.key("probe")
    }

    /// Everything that is watched.
    pub(super) fn now(&self) -> String {
        self.key("now/")
    }

    pub(super) fn heads(&self) -> String {
        self.key("now/head/")
    }

    pub(super) fn head(&self, network: NetworkId) -> String {
        self.key(&format!("now/head/{network}"))
    }

    /// The network whose head this key is.
    pub(super) fn network_of_head(&self, key: &str) -> Option<NetworkId> {
        key.strip_prefix(&self.heads())?.parse().ok()
    }

    pub(super) fn networks_changed(&self) -> String {
        self.key("now/networks")
    }

    pub(super) fn operators_changed(&self) -> String {
        self.key("now/operators")
    }

    pub(super) fn keys_changed(&self) -> String {
        self.key("now/keys")
    }

    pub(super) fn names(&self) -> String {
        self.key("name/")
    }

    pub(super) fn name(&self, name: &Name) -> String {
        self.key(&format!("name/{name}"))
    }

    pub(super) fn network(&self, network: NetworkId) -> String {
        self.key(&format!("net/{network}/"))
    }

    pub(super) fn base(&self, network: NetworkId) -> String {
        self.key(&format!("net/{network}/base"))
    }

    pub(super) fn rows(&self, network: NetworkId) -> String {
        self.key(&format!("net/{network}/row/"))
    }

    pub(super) fn log(&self, network: NetworkId) -> String {
        self.key(&format!("net/{network}/log/"))
    }

    /// The log from the commit on that holds this revision or, when there is none, a later one.
    pub(super) fn log_from(&self, network: NetworkId, revision: Revision) -> String {
        self.key(&format!("net/{network}/log/{:016x}", revision.get()))
    }

    pub(super) fn log_entry(&self, network: NetworkId, first: Revision, last: Revision) -> String {
        self.key(&format!("net/{network}/log/{:016x}-{:016x}", last.get(), first.get()))
    }

    pub(super) fn parts(&self, network: NetworkId) -> String {
        self.key(&format!("net/{network}/part/"))
    }

    pub(super) fn parts_from(&self, network: NetworkId, revision: Revision) -> String {
        self.key(&format!("net/{network}/part/{:016x}", revision.get()))
    }

    /// The pieces of one commit.
    pub(super) fn parts_of(&self, network: NetworkId, last: Revision, tag: &str) -> String {
        self.key(&format!("net/{network}/part/{:016x}-{tag}/", last.get()))
    }

    pub(super) fn audit(&self, network: Option<NetworkId>) -> String {
        match network {
            Some(network) => self.key(&format!("audit/{network}/")),
            None => self.key(&format!("audit/{NOBODY}/")),
        }
    }

    pub(super) fn trail(&self) -> String {
        self.key("trail/")
    }

    pub(super) fn trail_entry(&self, network: Option<NetworkId>, seq: u64) -> String {
        match network {
            Some(network) => self.key(&format!("trail/{}-{network}", number(seq))),
            None => self.key(&format!("trail/{}-{NOBODY}", number(seq))),
        }
    }

    /// The audit records to which an entry of the order leads.
    pub(super) fn audit_of_trail(&self, key: &str) -> Option<String> {
        let (seq, network) = key.strip_prefix(&self.trail())?.split_once('-')?;
        Some(self.key(&format!("audit/{network}/{seq}")))
    }

    pub(super) fn operators(&self) -> String {
        self.key("operator/")
    }

    pub(super) fn operator(&self, id: TokenId) -> String {
        self.key(&format!("operator/{id}"))
    }

    pub(super) fn present(&self, network: NetworkId) -> String {
        self.key(&format!("present/{network}/"))
    }

    pub(super) fn suspects(&self, network: NetworkId) -> String {
        self.key(&format!("suspect/{network}/"))
    }

    pub(super) fn applied(&self, network: NetworkId) -> String {
        self.key(&format!("applied/{network}/"))
    }

    pub(super) fn secret(&self, name: &str) -> String {
        self.key(&format!("secret/{name}"))
    }
}

/// A number as it stands in a key.
pub(super) fn number(number: u64) -> String {
    format!("{number:016x}")
}

/// The two revisions in the key of a log entry: the first, and the last.
pub(super) fn revisions_of(key: &str) -> Option<(Revision, Revision)> {
    let (last, first) = key.rsplit('/').next()?.split_once('-')?;
    let revision = |text: &str| u64::from_str_radix(text, 16).ok().map(Revision::new);
    Some((revision(first)?, revision(last)?))
}

/// The end of the range of all keys that begin with a text.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's way to say: all keys from there on.
    vec![0]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_order_of_log_keys_is_that_of_revisions_and_a_commit_is_found_by_any_of_its_revisions() {
        let names = Names::new("/znet/");
        let network = NetworkId::from_bytes([7; 16]);
        let entry = |first, last| names.log_entry(network, Revision::new(first), Revision::new(last));
        assert!(entry(1, 9) < entry(10, 16) && entry(10, 16) < entry(17, 256));
        let from = names.log_from(network, Revision::new(12));
        assert!(from > entry(1, 9) && from <= entry(10, 16));
        assert_eq!(revisions_of(&entry(10, 16)).unwrap(), (Revision::new(10), Revision::new(16)));
        assert_eq!(end_of("a/"), b"a0");
        assert_eq!(names.network_of_head(&names.head(network)), Some(network));
        let trail = names.trail_entry(Some(network), 77);
        assert_eq!(names.audit_of_trail(&trail).unwrap(), format!("/znet/audit/{network}/{}", number(77)));
    }
}
