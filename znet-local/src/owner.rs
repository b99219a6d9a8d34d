//! Who made an attachment.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who made an attachment: whoever may take it away without being asked for it by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The way by which it was asked for, such as `cni` or `oci`.
    pub kind: String,
    /// The runtime's own network, such as the `name` of a CNI configuration; empty where there is no such thing.
    pub network: String,
    /// The runtime's identifier of the container.
    pub container: String,
    /// The interface that the runtime asked for, which is not always the one that was made.
    pub interface: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, network, container, interface } = self;
        match network.is_empty() {
            true => write!(f, "{kind} {container} {interface}"),
            false => write!(f, "{kind} {network} {container} {interface}"),
        }
    }
}
