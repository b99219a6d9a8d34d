//! The file that wg-quick(8) and WireGuard's apps read.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use zeroize::Zeroizing;
use znet_cli::exit::{Failure, Kind};
use znet_core::key::PrivateKey;

use super::Result;

/// Seconds between keepalives, as wg(8) advises: no NAT forgets a device before it is spoken to, and a device that moved is
/// found again.
const KEEPALIVE: u16 = 25;
/// More than a file ever has: it must not be moved as it grows, which would leave the key behind in memory.
const CAPACITY: usize = 4096;

/// What is in a file.
pub(super) struct WgQuick<'a> {
    /// The device's private key; without it the person puts it in.
    pub(super) private_key: Option<&'a PrivateKey>,
    /// The device's addresses.
    pub(super) addresses: &'a [IpAddr],
    /// Its MTU in bytes.
    pub(super) mtu: u16,
    /// The public key of the node's end.
    pub(super) end_key: &'a str,
    /// Where that is.
    pub(super) endpoint: &'a str,
    /// What lies behind it: the network, and nothing else of the person's traffic.
    pub(super) allowed: Vec<IpNet>,
}

/// The text of a file.
pub(super) fn text(file: &WgQuick<'_>) -> Zeroizing<String> {
    let addresses = file.addresses.iter().map(|address| IpNet::from(*address));
    let mut text = Zeroizing::new(String::with_capacity(CAPACITY));
    text.push_str("[Interface]\n");
    match file.private_key {
        Some(key) => {
            text.push_str("PrivateKey = ");
            text.push_str(&key.to_base64());
            text.push('\n');
        }
        None => text.push_str("# PrivateKey = the one that belongs to the public key you gave\n"),
    }
    // Writing to a text cannot fail.
    let _ = write!(
        text,
        "Address = {}\nMTU = {}\n\n[Peer]\nPublicKey = {}\nEndpoint = {}\nAllowedIPs = {}\nPersistentKeepalive = {KEEPALIVE}\n",
        list(addresses),
        file.mtu,
        file.end_key,
        file.endpoint,
        list(file.allowed.iter().copied()),
    );
    text
}

fn list(nets: impl Iterator<Item = IpNet>) -> String {
    nets.map(|net| net.to_string()).collect::<Vec<_>>().join(", ")
}

/// A host, or a host and a port, as an operator gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    text: String,
    has_port: bool,
}

impl Host {
    /// With this port, unless it has one.
    pub(super) fn with_port(&self, port: u16) -> String {
        if self.has_port { self.text.clone() } else { format!("{}:{port}", self.text) }
    }
}

/// Reads `HOST` or `HOST:PORT`: a DNS name or an address, one of IPv6 in brackets where a port follows.
pub(super) fn check_host(text: &str) -> Result<Host> {
    if text.parse::<SocketAddr>().is_ok_and(|at| at.port() != 0) {
        return Ok(Host { text: text.to_owned(), has_port: true });
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        let text = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        return Ok(Host { text, has_port: false });
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_name = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    if is_name && is_port {
        return Ok(Host { text: text.to_owned(), has_port: port.is_some() });
    }
    let why = format!("--endpoint {text:?} is neither HOST nor HOST:PORT");
    Err(Failure::new(Kind::Usage, "invalid_endpoint", why)
        .hint("an IPv6 address with a port: [2001:db8::1]:51884"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_with_its_own_port_or_the_nodes() {
        for (given, expected) in [
            ("vpn.example.net", "vpn.example.net:7"),
            ("vpn.example.net:443", "vpn.example.net:443"),
            ("192.0.2.1", "192.0.2.1:7"),
            ("192.0.2.1:9", "192.0.2.1:9"),
            ("2001:db8::1", "[2001:db8::1]:7"),
            ("[2001:db8::1]", "[2001:db8::1]:7"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            assert_eq!(check_host(given).unwrap().with_port(7), expected);
        }
        for bad in
            ["", ":1", "a:0", "a:b", "a:70000", "a b", "a\nPostUp = reboot", "[::1", "192.0.2.1:0", "ä"]
        {
            assert!(check_host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_without_the_private_key_says_where_it_goes() {
        let key = PrivateKey::from_bytes([1; 32]);
        let addresses = ["fd00::7".parse().unwrap(), "10.0.0.7".parse().unwrap()];
        let mut file = WgQuick {
            private_key: Some(&key),
            addresses: &addresses,
            mtu: 1_280,
            end_key: "END",
            endpoint: "192.0.2.1:7",
            allowed: vec!["fd00::/48".parse().unwrap(), "10.0.0.0/16".parse().unwrap()],
        };
        let rest = "Address = fd00::7/128, 10.0.0.7/32\nMTU = 1280\n\n[Peer]\nPublicKey = END\nEndpoint = 192.0.2.1:7\n\
                    AllowedIPs = fd00::/48, 10.0.0.0/16\nPersistentKeepalive = 25\n";
        let secret = key.to_base64();
        assert_eq!(*text(&file), format!("[Interface]\nPrivateKey = {}\n{rest}", *secret));
        file.private_key = None;
        let without = text(&file);
        assert!(without.starts_with("[Interface]\n# PrivateKey") && without.ends_with(rest), "{}", *without);
        assert!(!without.contains(secret.as_str()));
    }
}
