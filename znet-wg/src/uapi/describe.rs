//! Answers as text.

use std::fmt::Arguments;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use zeroize::Zeroizing;
use znet_core::key::{PresharedKey, PrivateKey, PublicKey};

use super::reserve_wiping;

/// Longer than any line of an answer, in bytes.
const LINE: usize = 128;
/// What most answers fit in, in bytes.
const USUAL: usize = 4_096;

/// A device as `get=1` tells of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceView<'a> {
    /// Its private key, if it has one.
    pub private_key: Option<&'a PrivateKey>,
    /// Its UDP port; 0 when it has none.
    pub listen_port: u16,
    /// The mark on outgoing datagrams.
    pub fwmark: Option<u32>,
}

/// A peer as `get=1` tells of it, but for its allowed addresses.
#[derive(Clone, Copy, Debug)]
pub struct PeerView<'a> {
    /// Its public key.
    pub public_key: &'a PublicKey,
    /// The key mixed into handshakes with it.
    pub preshared_key: Option<&'a PresharedKey>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed.
    pub last_handshake: Option<SystemTime>,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Seconds between keepalives; 0 for none.
    pub persistent_keepalive: u16,
}

/// An answer to `get=1` in the making: a device, then its peers one by one, as the caller comes by them.
#[derive(Debug)]
pub struct Description {
    text: Zeroizing<Vec<u8>>,
}

impl Description {
    /// Begins with the device.
    pub fn new(device: &DeviceView<'_>) -> Self {
        let mut this = Self { text: Zeroizing::new(Vec::with_capacity(USUAL)) };
        if let Some(key) = device.private_key {
            this.key("private_key", &key.to_bytes());
        }
        if device.listen_port != 0 {
            this.line(format_args!("listen_port={}", device.listen_port));
        }
        if let Some(mark) = device.fwmark {
            this.line(format_args!("fwmark={mark}"));
        }
        this
    }

    /// Adds a peer and its allowed addresses.
    pub fn peer(&mut self, peer: &PeerView<'_>, allowed_ips: impl IntoIterator<Item = IpNet>) {
        self.key("public_key", peer.public_key.as_bytes());
        if let Some(key) = peer.preshared_key {
            self.key("preshared_key", &key.to_bytes());
        }
        self.line(format_args!("protocol_version=1"));
        if let Some(endpoint) = peer.endpoint {
            self.line(format_args!("endpoint={endpoint}"));
        }
        let since = peer.last_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        self.line(format_args!("last_handshake_time_sec={}", since.as_secs()));
        self.line(format_args!("last_handshake_time_nsec={}", since.subsec_nanos()));
        self.line(format_args!("tx_bytes={}", peer.tx_bytes));
        self.line(format_args!("rx_bytes={}", peer.rx_bytes));
        self.line(format_args!("persistent_keepalive_interval={}", peer.persistent_keepalive));
        for net in allowed_ips {
            self.line(format_args!("allowed_ip={net}"));
        }
    }

    /// Ends the answer: all went well.
    pub fn finish(mut self) -> Zeroizing<String> {
        self.line(format_args!("errno=0\n"));
        // Nothing but text was written; taking the memory moves it and copies nothing.
        Zeroizing::new(String::from_utf8(std::mem::take(&mut *self.text)).unwrap_or_default())
    }

    fn line(&mut self, line: Arguments<'_>) {
        reserve_wiping(&mut self.text, LINE);
        // Writing to memory cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn key(&mut self, name: &str, bytes: &[u8; 32]) {
        reserve_wiping(&mut self.text, LINE);
        let _ = write!(self.text, "{name}=");
        for byte in bytes {
            let _ = write!(self.text, "{byte:02x}");
        }
        self.text.push(b'\n');
    }
}

/// The whole answer to a `set=1` (0), or to a request that failed with this error number. Its sign does not
/// matter.
///
/// On the wire it is negative: `wg(8)` takes the opposite of it for its own `errno`, and wireguard-go sends
/// it so.
pub fn errno_reply(errno: i32) -> String {
    format!("errno={}\n\n", -i64::from(errno).abs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_reads_as_wg_expects_it() {
        let private = PrivateKey::from_bytes([0xab; 32]);
        let shared = PresharedKey::from_bytes([1; 32]);
        let view = DeviceView { private_key: Some(&private), listen_port: 51_820, fwmark: Some(3) };
        let peer = PeerView {
            public_key: &PublicKey::from_bytes([0x0f; 32]),
            preshared_key: Some(&shared),
            endpoint: Some("[fe80::1%3]:5".parse().unwrap()),
            last_handshake: Some(UNIX_EPOCH + Duration::new(7, 9)),
            tx_bytes: 1,
            rx_bytes: u64::MAX,
            persistent_keepalive: 25,
        };
        let mut description = Description::new(&view);
        description.peer(&peer, ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        let expected = format!(
            "private_key={}\nlisten_port=51820\nfwmark=3\npublic_key={}\npreshared_key={}\n\
             protocol_version=1\nendpoint=[fe80::1%3]:5\nlast_handshake_time_sec=7\nlast_handshake_time_nsec=9\ntx_bytes=1\n\
             rx_bytes=18446744073709551615\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\n\
             allowed_ip=fd00::/8\nerrno=0\n\n",
            "ab".repeat(32),
            "0f".repeat(32),
            "01".repeat(32),
        );
        assert_eq!(*description.finish(), expected);
    }

    #[test]
    fn what_is_not_set_is_not_told() {
        assert_eq!(*Description::new(&DeviceView::default()).finish(), "errno=0\n\n");
    }

    #[test]
    fn a_peer_with_very_many_addresses_is_told_in_full() {
        let public_key = PublicKey::from_bytes([2; 32]);
        let peer = PeerView {
            public_key: &public_key,
            preshared_key: None,
            endpoint: None,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
            persistent_keepalive: 0,
        };
        let all = (0..130_560u128).map(|n| ipnet::Ipv6Net::new_assert(n.into(), 128).into());
        let mut description = Description::new(&DeviceView::default());
        description.peer(&peer, all);
        assert_eq!(description.finish().matches("allowed_ip=").count(), 130_560);
    }

    #[test]
    fn an_error_number_is_negative_on_the_wire() {
        assert_eq!(errno_reply(0), "errno=0\n\n");
        assert_eq!(errno_reply(22), "errno=-22\n\n");
        assert_eq!(errno_reply(-22), "errno=-22\n\n");
    }
}
