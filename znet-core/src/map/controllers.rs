//! Where a network's controllers are, as its members have to know it: under the signature of the map, so that the list can
//! change and nobody else can change it.

use serde::{Deserialize, Serialize};

use crate::id::Pin;

/// Most controllers of one network, as many as a join token names.
pub const MAX_CONTROLLERS: usize = 16;
/// Most keys by which one controller may be known: its own, the one that follows it, and two that are given up.
pub const MAX_PINS: usize = 4;
/// Longest name of a host (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 253;

/// One place at which agents reach a controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerRecord {
    /// `HOST:PORT`, as in a join token.
    pub address: String,
    /// The pins of the TLS keys that are believed there, the one to ask for first; at most [`MAX_PINS`].
    pub pins: Vec<Pin>,
}

/// Whether a text names a place to connect to: `HOST:PORT`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
pub fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
            !host.is_empty() && host.len() <= MAX_HOST && host.chars().all(allowed)
        }
    };
    host_ok && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_that_can_be_connected_to_are_taken() {
        for good in ["ctl.example.net:7443", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in
            ["", "ctl", "ctl:", "ctl:0", "ctl:65536", ":7443", "2001:db8::1:7443x", "[::1]", "a b:1", "[x]:1"]
        {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
