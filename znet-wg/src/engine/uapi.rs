//! The socket that `wg(8)` talks to: the cross-platform UAPI, for reading. Configuration is the agent's.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use zeroize::Zeroizing;
use znet_core::id::{ContainerId, NetworkId};

use super::state::{Served, State};
use crate::net::{Device, DirectoryEntry, PeerState};

/// Up to this many peers of the directory are all listed; above it, those with a session.
const LIST_ALL_UP_TO: usize = 256;
/// How long `wg(8)` may take over its request: the engine's agent waits meanwhile.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Longest request looked at.
const MAX_REQUEST: usize = 4_096;

/// Accepts one connection on a device's socket and answers it.
pub(super) fn answer(state: &State, network: NetworkId, device: ContainerId) {
    let served = state.networks.get(&network);
    let ports = served.and_then(|served| served.ports.get(&device));
    let accepted = ports.and_then(|ports| ports.uapi.accept().ok());
    let Some((mut stream, _)) = accepted else { return };
    let limits =
        stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
    if limits.is_err() {
        return;
    }
    let Some(request) = read_request(&mut stream) else { return };
    let text = match request.lines().next() {
        Some("get=1") => served.and_then(|served| Some(describe(served, &*served.network.device(device)?))),
        // Answered like a device that the caller may not configure.
        Some("set=1") => Some(Zeroizing::new(format!("errno={}\n\n", Errno::EPERM as i32))),
        _ => Some(Zeroizing::new(format!("errno={}\n\n", Errno::EINVAL as i32))),
    };
    let _ = stream.write_all(text.unwrap_or_default().as_bytes());
}

fn read_request(stream: &mut UnixStream) -> Option<String> {
    let mut request = Vec::new();
    let mut chunk = [0u8; 512];
    while !request.ends_with(b"\n\n") && request.len() < MAX_REQUEST {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(len) => request.extend_from_slice(chunk.get(..len)?),
        }
    }
    String::from_utf8(request).ok()
}

fn describe(served: &Served, device: &Device) -> Zeroizing<String> {
    let network = &served.network;
    let all = network.peers() <= LIST_ALL_UP_TO;
    let keepalive = network.keepalive();
    let mut text = Zeroizing::new(String::with_capacity(4_096));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "private_key={}", hex(device.private_key().to_bytes().as_slice()).as_str());
    let _ = writeln!(text, "listen_port={}", served.sockets.port());
    network.for_each_peer(device.id, |entry, state| {
        if entry.key() != device.public_key() && (all || state.is_some()) {
            describe_peer(&mut text, entry, state.unwrap_or_default(), keepalive);
        }
    });
    text.push_str("errno=0\n\n");
    text
}

fn describe_peer(text: &mut String, entry: &DirectoryEntry, state: PeerState, keepalive: Option<u16>) {
    let _ = writeln!(text, "public_key={}", hex(entry.key().as_bytes()).as_str());
    if let Some(key) = entry.preshared() {
        let _ = writeln!(text, "preshared_key={}", hex(key.to_bytes().as_slice()).as_str());
    }
    if let Some(endpoint) = state.endpoint.or_else(|| entry.endpoint(0)) {
        let _ = writeln!(text, "endpoint={endpoint}");
    }
    let since = state.last_handshake.unwrap_or(UNIX_EPOCH);
    let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let _ = writeln!(text, "last_handshake_time_sec={}", since.as_secs());
    let _ = writeln!(text, "last_handshake_time_nsec={}", since.subsec_nanos());
    let _ = writeln!(text, "tx_bytes={}\nrx_bytes={}", state.tx_bytes, state.rx_bytes);
    let _ = writeln!(text, "persistent_keepalive_interval={}", keepalive.unwrap_or(0));
    for net in entry.allowed() {
        let _ = writeln!(text, "allowed_ip={net}");
    }
    text.push_str("protocol_version=1\n");
}

fn hex(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(bytes.len() * 2));
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
