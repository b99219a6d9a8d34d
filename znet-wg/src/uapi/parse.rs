//! Requests out of text.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;
use nix::errno::Errno;
use zeroize::Zeroizing;
use znet_core::key::{PresharedKey, PrivateKey, PublicKey};

use super::{AllowedIp, Request, SetDevice, SetPeer};

/// How much of a stranger's text an error repeats, in characters.
const QUOTED: usize = 64;
/// Bytes of every key of WireGuard.
const KEY: usize = 32;

/// Why a request means nothing. It never repeats the value of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {flaw}")]
pub struct UapiError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub flaw: Flaw,
}

/// What is wrong with a line of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The first line is no operation.
    #[error("expected get=1 or set=1")]
    Operation,
    /// A line follows `get=1`.
    #[error("nothing may follow get=1")]
    Trailing,
    /// The line is not `key=value`.
    #[error("expected key=value")]
    NotKeyValue,
    /// The key does not exist, or not here.
    #[error("a {section} has no setting {key:?}")]
    UnknownKey {
        /// `device` or `peer`.
        section: &'static str,
        /// Its beginning.
        key: String,
    },
    /// The value cannot be the key's.
    #[error("{key}: expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it takes.
        expected: &'static str,
    },
    /// The interface that an endpoint is scoped to is not known here.
    #[error("endpoint: no interface {0:?}; name one that exists, or its index")]
    Scope(String),
}

impl UapiError {
    /// The error number for the answer, positive; as wireguard-go chooses it.
    pub fn errno(&self) -> i32 {
        match self.flaw {
            Flaw::NotKeyValue => Errno::EPROTO as i32,
            Flaw::Scope(_) => Errno::ENODEV as i32,
            _ => Errno::EINVAL as i32,
        }
    }
}

/// Reads a request, up to its blank line or the end. Interfaces in scoped endpoints are understood by index
/// only.
///
/// # Errors
/// [`UapiError`]: the first line that means nothing. None of the request is to be carried out.
pub fn parse(text: &str) -> Result<Request, UapiError> {
    parse_with(text, &|_| None)
}

/// Reads a request like [`parse`], and asks `interface_index` for the index of an interface that an endpoint
/// is scoped to by name: `wg(8)` sends link-local ones so (`[fe80::1%eth0]:51820`), whatever its user wrote.
///
/// # Errors
/// [`UapiError`]: the first line that means nothing. None of the request is to be carried out.
pub fn parse_with(text: &str, interface_index: &dyn Fn(&str) -> Option<u32>) -> Result<Request, UapiError> {
    let mut lines = text.split('\n').take_while(|line| !line.is_empty()).zip(1..);
    let operation = lines.next().map(|(line, _)| line);
    match operation {
        Some("get=1") => match lines.next() {
            None => Ok(Request::Get),
            Some((_, line)) => Err(UapiError { line, flaw: Flaw::Trailing }),
        },
        Some("set=1") => {
            let mut device = SetDevice::default();
            for (text, line) in lines {
                set_line(&mut device, text, interface_index).map_err(|flaw| UapiError { line, flaw })?;
            }
            Ok(Request::Set(device))
        }
        _ => Err(UapiError { line: 1, flaw: Flaw::Operation }),
    }
}

fn set_line(
    device: &mut SetDevice,
    line: &str,
    interface_index: &dyn Fn(&str) -> Option<u32>,
) -> Result<(), Flaw> {
    let (key, value) = line.split_once('=').ok_or(Flaw::NotKeyValue)?;
    if key == "public_key" {
        let bytes = key_bytes("public_key", value)?;
        device.peers.push(SetPeer::new(PublicKey::from_bytes(*bytes)));
        return Ok(());
    }
    match device.peers.last_mut() {
        None => device_line(device, key, value),
        Some(peer) => peer_line(peer, key, value, interface_index),
    }
}

fn device_line(device: &mut SetDevice, key: &str, value: &str) -> Result<(), Flaw> {
    match key {
        "private_key" => {
            let bytes = key_bytes("private_key", value)?;
            device.private_key = Some((!is_zero(&bytes)).then(|| PrivateKey::from_bytes(*bytes)));
        }
        "listen_port" => device.listen_port = Some(number("listen_port", value, PORT)?),
        "fwmark" => {
            let mark = number("fwmark", value, "a number from 0 to 4294967295")?;
            device.fwmark = Some((mark != 0).then_some(mark));
        }
        "replace_peers" => device.replace_peers = only_true("replace_peers", value)?,
        _ => return Err(unknown("device", key)),
    }
    Ok(())
}

fn peer_line(
    peer: &mut SetPeer,
    key: &str,
    value: &str,
    interface_index: &dyn Fn(&str) -> Option<u32>,
) -> Result<(), Flaw> {
    match key {
        "remove" => peer.remove = only_true("remove", value)?,
        "update_only" => peer.update_only = only_true("update_only", value)?,
        "preshared_key" => {
            let bytes = key_bytes("preshared_key", value)?;
            peer.preshared_key = Some((!is_zero(&bytes)).then(|| PresharedKey::from_bytes(*bytes)));
        }
        "endpoint" => peer.endpoint = Some(endpoint(value, interface_index)?),
        "persistent_keepalive_interval" => {
            let seconds = number("persistent_keepalive_interval", value, "seconds from 0 to 65535")?;
            peer.persistent_keepalive = Some(seconds);
        }
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = only_true("replace_allowed_ips", value)?;
            // It means those of the lines before it as well.
            peer.allowed_ips.clear();
        }
        "allowed_ip" => peer.allowed_ips.push(allowed_ip(value)?),
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(Flaw::Value { key: "protocol_version", expected: "1" }),
        _ => return Err(unknown("peer", key)),
    }
    Ok(())
}

const PORT: &str = "a port from 0 to 65535";

fn unknown(section: &'static str, key: &str) -> Flaw {
    Flaw::UnknownKey { section, key: key.chars().take(QUOTED).collect() }
}

fn only_true(key: &'static str, value: &str) -> Result<bool, Flaw> {
    if value == "true" { Ok(true) } else { Err(Flaw::Value { key, expected: "true" }) }
}

fn number<N: std::str::FromStr>(key: &'static str, value: &str, expected: &'static str) -> Result<N, Flaw> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or(Flaw::Value { key, expected })
}

fn key_bytes(key: &'static str, value: &str) -> Result<Zeroizing<[u8; KEY]>, Flaw> {
    let wrong = Flaw::Value { key, expected: "64 hexadecimal digits" };
    if value.len() != 2 * KEY {
        return Err(wrong);
    }
    let mut bytes = Zeroizing::new([0; KEY]);
    for (byte, pair) in bytes.iter_mut().zip(value.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { return Err(wrong) };
        let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16)) else {
            return Err(wrong);
        };
        *byte = u8::try_from(high << 4 | low).unwrap_or_default();
    }
    Ok(bytes)
}

fn is_zero(bytes: &[u8; KEY]) -> bool {
    bytes.iter().fold(0, |any, byte| any | byte) == 0
}

fn allowed_ip(value: &str) -> Result<AllowedIp, Flaw> {
    let (remove, range) = value.strip_prefix('-').map_or((false, value), |range| (true, range));
    let net: IpNet = range.parse().map_err(|_| Flaw::Value {
        key: "allowed_ip",
        expected: "an address and the length of its prefix, as in 192.0.2.0/24",
    })?;
    Ok(AllowedIp { net: net.trunc(), remove })
}

fn endpoint(value: &str, interface_index: &dyn Fn(&str) -> Option<u32>) -> Result<SocketAddr, Flaw> {
    let wrong = || Flaw::Value {
        key: "endpoint",
        expected: "an address and a port, as in 192.0.2.1:51820 or [::1]:51820",
    };
    // The standard library reads an index as a scope, but no name.
    let scoped = value.strip_prefix('[').and_then(|rest| rest.split_once("]:"));
    let Some((address, scope, port)) =
        scoped.and_then(|(inner, port)| inner.split_once('%').map(|(address, scope)| (address, scope, port)))
    else {
        return value.parse().map_err(|_| wrong());
    };
    let Ok(IpAddr::V6(address)) = address.parse() else { return Err(wrong()) };
    let port = number("endpoint", port, PORT)?;
    let index = number::<u32>("endpoint", scope, "").ok().or_else(|| interface_index(scope));
    let index = index.ok_or_else(|| Flaw::Scope(scope.chars().take(QUOTED).collect()))?;
    Ok(SocketAddrV6::new(address, port, 0, index).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    /// As `wg setconf` sends it (wireguard-tools 1.0.20210914), but for the keys.
    const SETCONF: &str = "set=1\nprivate_key=PRIVATE\nlisten_port=51820\nfwmark=51820\nreplace_peers=true\n\
        public_key=PUBLIC\npreshared_key=SHARED\nendpoint=192.0.2.1:51820\npersistent_keepalive_interval=25\n\
        replace_allowed_ips=true\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n\n";
    /// As `wg syncconf` sends it to a device that has another peer.
    const SYNCCONF: &str = "set=1\nprivate_key=PRIVATE\nlisten_port=51820\nfwmark=51820\n\
        public_key=OTHER\nremove=true\npublic_key=PUBLIC\npreshared_key=SHARED\nendpoint=192.0.2.1:51820\n\
        persistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n\
        allowed_ip=fd00::/8\n\n";
    /// As `wg set DEVICE private-key FILE listen-port 0 fwmark off` sends it.
    const SET_DEVICE: &str = "set=1\nprivate_key=PRIVATE\nlisten_port=0\nfwmark=0\n\n";
    /// As `wg set DEVICE peer KEY preshared-key /dev/null endpoint [fe80::1%lo]:5 allowed-ips ''` sends it.
    const SET_PEER: &str = "set=1\npublic_key=PUBLIC\npreshared_key=ZERO\nendpoint=[fe80::1%lo]:5\n\
        replace_allowed_ips=true\n\n";

    fn with_keys(text: &str) -> String {
        let replace = [("PRIVATE", 0x11), ("PUBLIC", 0xab), ("SHARED", 0x33), ("OTHER", 0x44), ("ZERO", 0u8)];
        replace.iter().fold(text.to_owned(), |text, (name, byte)| text.replace(name, &hex(&[*byte; 32])))
    }

    fn set(text: &str) -> Result<SetDevice, UapiError> {
        let lo = |name: &str| (name == "lo").then_some(1);
        match parse_with(&with_keys(text), &lo)? {
            Request::Set(device) => Ok(device),
            Request::Get => panic!("it is a get"),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn full_peer() -> SetPeer {
        SetPeer {
            preshared_key: Some(Some(PresharedKey::from_bytes([0x33; 32]))),
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            persistent_keepalive: Some(25),
            replace_allowed_ips: true,
            allowed_ips: ["10.0.0.0/8", "fd00::/8"]
                .map(|net| AllowedIp { net: net.parse().unwrap(), remove: false })
                .to_vec(),
            ..SetPeer::new(PublicKey::from_bytes([0xab; 32]))
        }
    }

    #[test]
    fn get_is_understood_and_stands_alone() {
        assert!(matches!(parse("get=1\n"), Ok(Request::Get)));
        assert!(matches!(parse("get=1\n\n"), Ok(Request::Get)));
        let error = parse("get=1\nprivate_key=1\n").unwrap_err();
        assert_eq!((error.line, error.errno()), (2, libc::EINVAL));
    }

    #[test]
    fn setconf_is_understood() {
        let device = set(SETCONF).unwrap();
        assert_eq!(*device.private_key.unwrap().unwrap().to_bytes(), [0x11; 32]);
        assert_eq!((device.listen_port, device.fwmark), (Some(51_820), Some(Some(51_820))));
        assert!(device.replace_peers);
        assert_eq!(device.peers, [full_peer()]);
    }

    #[test]
    fn syncconf_is_understood() {
        let device = set(SYNCCONF).unwrap();
        assert!(!device.replace_peers);
        let gone = SetPeer { remove: true, ..SetPeer::new(PublicKey::from_bytes([0x44; 32])) };
        assert_eq!(device.peers, [gone, full_peer()]);
    }

    #[test]
    fn zero_unsets_a_mark_and_a_key() {
        let device = set(SET_DEVICE).unwrap();
        assert_eq!((device.listen_port, device.fwmark), (Some(0), Some(None)));
        assert!(set("set=1\nprivate_key=ZERO\n").unwrap().private_key.unwrap().is_none());
        let [peer] = <[SetPeer; 1]>::try_from(set(SET_PEER).unwrap().peers).unwrap();
        assert_eq!(peer.preshared_key, Some(None));
        assert!(peer.replace_allowed_ips && peer.allowed_ips.is_empty());
    }

    #[test]
    fn a_link_local_endpoint_is_scoped_by_name_or_by_index() {
        let endpoint = |text: &str| {
            let device = set(&format!("set=1\npublic_key=PUBLIC\nendpoint={text}\n"))?;
            Ok::<_, UapiError>(device.peers.first().unwrap().endpoint.unwrap())
        };
        assert_eq!(
            endpoint("[fe80::1%lo]:5").unwrap(),
            SocketAddrV6::new("fe80::1".parse().unwrap(), 5, 0, 1).into()
        );
        assert_eq!(
            endpoint("[fe80::1%3]:5").unwrap(),
            SocketAddrV6::new("fe80::1".parse().unwrap(), 5, 0, 3).into()
        );
        assert_eq!(endpoint("[::1]:5").unwrap(), "[::1]:5".parse().unwrap());
        let error = endpoint("[fe80::1%eth9]:5").unwrap_err();
        assert_eq!((error.line, &error.flaw), (3, &Flaw::Scope("eth9".to_owned())));
        for wrong in ["192.0.2.1", "192.0.2.1%lo:5", "[::1]", "::1:5", "[::1%lo]:x", "example.org:5", ""] {
            assert_eq!(endpoint(wrong).unwrap_err().errno(), libc::EINVAL, "{wrong}");
        }
    }

    #[test]
    fn sections_of_one_peer_stay_apart_and_in_order() {
        let text = "set=1\npublic_key=PUBLIC\nremove=true\npublic_key=PUBLIC\nallowed_ip=10.0.0.1/32\n";
        let removals: Vec<_> = set(text).unwrap().peers.iter().map(|peer| peer.remove).collect();
        assert_eq!(removals, [true, false]);
    }

    #[test]
    fn allowed_addresses_are_cut_to_their_prefix_and_may_be_taken_away() {
        let text = "set=1\npublic_key=PUBLIC\nallowed_ip=10.1.2.3/8\nallowed_ip=-10.0.0.1/32\n";
        let taken = |net: &str, remove| AllowedIp { net: net.parse().unwrap(), remove };
        let expected = [taken("10.0.0.0/8", false), taken("10.0.0.1/32", true)];
        assert_eq!(set(text).unwrap().peers.first().unwrap().allowed_ips, expected);
    }

    #[test]
    fn replacing_addresses_means_those_named_before_as_well() {
        let text = "set=1\npublic_key=PUBLIC\nallowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\n";
        assert!(set(text).unwrap().peers.first().unwrap().allowed_ips.is_empty());
    }

    #[test]
    fn nonsense_is_refused_with_its_line_and_number() {
        let cases = [
            ("", 1, libc::EINVAL),
            ("set=2\n", 1, libc::EINVAL),
            ("\nget=1\n", 1, libc::EINVAL),
            ("set=1\nprivate_key\n", 2, libc::EPROTO),
            ("set=1\nprivate_key=12\n", 2, libc::EINVAL),
            ("set=1\nprivate_key=PUBLICx\n", 2, libc::EINVAL),
            ("set=1\nlisten_port=65536\n", 2, libc::EINVAL),
            ("set=1\nlisten_port=+5\n", 2, libc::EINVAL),
            ("set=1\nfwmark=0xff\n", 2, libc::EINVAL),
            ("set=1\nreplace_peers=false\n", 2, libc::EINVAL),
            ("set=1\nremove=true\n", 2, libc::EINVAL),
            ("set=1\npublic_key=PUBLIC\nlisten_port=1\n", 3, libc::EINVAL),
            ("set=1\npublic_key=PUBLIC\nprotocol_version=2\n", 3, libc::EINVAL),
            ("set=1\npublic_key=PUBLIC\nallowed_ip=10.0.0.1\n", 3, libc::EINVAL),
            ("set=1\npublic_key=PUBLIC\nallowed_ip=10.0.0.1/33\n", 3, libc::EINVAL),
            ("set=1\npublic_key=PUBLIC\npersistent_keepalive_interval=off\n", 3, libc::EINVAL),
        ];
        for (text, line, errno) in cases {
            let error = set(text).unwrap_err();
            assert_eq!((error.line, error.errno()), (line, errno), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_error_does_not_tell_a_secret() {
        let secret = "5ec2e7";
        for text in [format!("set=1\nprivate_key={secret}\n"), format!("set=1\nprivate_key {secret}\n")] {
            assert!(!set(&text).unwrap_err().to_string().contains(secret));
        }
    }

    fn print(device: &SetDevice) -> String {
        let mut text = "set=1\n".to_owned();
        let mut line = |key: &str, value: String| text.push_str(&format!("{key}={value}\n"));
        if let Some(key) = &device.private_key {
            line("private_key", hex(key.as_ref().map(|key| *key.to_bytes()).unwrap_or_default().as_slice()));
        }
        if let Some(port) = device.listen_port {
            line("listen_port", port.to_string());
        }
        if let Some(mark) = device.fwmark {
            line("fwmark", mark.unwrap_or_default().to_string());
        }
        if device.replace_peers {
            line("replace_peers", "true".to_owned());
        }
        for peer in &device.peers {
            line("public_key", hex(peer.public_key.as_bytes()));
            let flags = [
                ("remove", peer.remove),
                ("update_only", peer.update_only),
                ("replace_allowed_ips", peer.replace_allowed_ips),
            ];
            flags.iter().filter(|(_, set)| *set).for_each(|(key, _)| line(key, "true".to_owned()));
            if let Some(key) = &peer.preshared_key {
                line(
                    "preshared_key",
                    hex(key.as_ref().map(|key| *key.to_bytes()).unwrap_or_default().as_slice()),
                );
            }
            if let Some(endpoint) = peer.endpoint {
                line("endpoint", endpoint.to_string());
            }
            if let Some(seconds) = peer.persistent_keepalive {
                line("persistent_keepalive_interval", seconds.to_string());
            }
            for AllowedIp { net, remove } in &peer.allowed_ips {
                line("allowed_ip", format!("{}{net}", if *remove { "-" } else { "" }));
            }
        }
        text
    }

    fn nonzero() -> impl Strategy<Value = [u8; 32]> {
        any::<[u8; 32]>().prop_filter("zero means none", |bytes| !is_zero(bytes))
    }

    fn allowed() -> impl Strategy<Value = AllowedIp> {
        let net = (any::<IpAddr>(), any::<u8>()).prop_map(|(address, prefix)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new_assert(address, prefix % (longest + 1)).trunc()
        });
        (net, any::<bool>()).prop_map(|(net, remove)| AllowedIp { net, remove })
    }

    prop_compose! {
        fn peer()(
            key in any::<[u8; 32]>(),
            (remove, update_only, replace_allowed_ips) in any::<(bool, bool, bool)>(),
            shared in option::of(option::of(nonzero())),
            (address, port, scope) in any::<(Option<IpAddr>, u16, u32)>(),
            persistent_keepalive in any::<Option<u16>>(),
            allowed_ips in vec(allowed(), 0..5),
        ) -> SetPeer {
            SetPeer {
                public_key: PublicKey::from_bytes(key),
                remove,
                update_only,
                preshared_key: shared.map(|key| key.map(PresharedKey::from_bytes)),
                endpoint: address.map(|address| match address {
                    IpAddr::V4(_) => SocketAddr::new(address, port),
                    IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, scope).into(),
                }),
                persistent_keepalive,
                replace_allowed_ips,
                allowed_ips,
            }
        }
    }

    prop_compose! {
        fn device()(
            private_key in option::of(option::of(nonzero())),
            listen_port in any::<Option<u16>>(),
            fwmark in option::of(option::of(1..=u32::MAX)),
            replace_peers in any::<bool>(),
            peers in vec(peer(), 0..4),
        ) -> SetDevice {
            SetDevice {
                private_key: private_key.map(|key| key.map(PrivateKey::from_bytes)),
                listen_port,
                fwmark,
                replace_peers,
                peers,
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_printed_reads_as_it_was(device in device()) {
            let text = print(&device);
            let Ok(Request::Set(read)) = parse(&text) else { panic!("refused: {text}") };
            prop_assert_eq!(print(&read), text);
            prop_assert_eq!(read.peers, device.peers);
            prop_assert_eq!(read.listen_port, device.listen_port);
            prop_assert_eq!(read.fwmark, device.fwmark);
            prop_assert_eq!(read.replace_peers, device.replace_peers);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*", lines in vec("[a-z_]{0,12}=?[\\PC]{0,20}", 0..6)) {
            let _ = parse(&text);
            let _ = parse(&format!("set=1\n{}\n", lines.join("\n")));
            let key = "a".repeat(64);
            for name in ["endpoint", "allowed_ip", "preshared_key", "persistent_keepalive_interval"] {
                let _ = parse(&format!("set=1\npublic_key={key}\n{name}={text}\n"));
            }
        }
    }
}
