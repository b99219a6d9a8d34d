//! The socket that `wg(8)` talks to, for reading. Configuration is the agent's.

use std::io::Write as _;
use std::time::Duration;

use nix::errno::Errno;
use zeroize::Zeroizing;
use znet_core::id::{ContainerId, NetworkId};

use super::state::{Served, State};
use crate::net::Device;
use crate::uapi::{Description, DeviceView, PeerView, Request, RequestReader, errno_reply, parse};

/// Up to this many peers of the directory are all listed; above it, those with a session.
const LIST_ALL_UP_TO: usize = 256;
/// How long `wg(8)` may take over its request: the engine's agent waits meanwhile.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Accepts one connection on a device's socket and answers one request.
pub(super) fn answer(state: &State, network: NetworkId, device: ContainerId) {
    let served = state.networks.get(&network);
    let ports = served.and_then(|served| served.ports.get(&device));
    let accepted = ports.and_then(|ports| ports.uapi.accept().ok());
    let Some((stream, _)) = accepted else { return };
    let limits =
        stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
    if limits.is_err() {
        return;
    }
    let mut reader = RequestReader::new(stream);
    let Ok(Some(request)) = reader.next_request() else { return };
    let text = match parse(&request) {
        Ok(Request::Get) => {
            served.and_then(|served| Some(describe(served, &*served.network.device(device)?)))
        }
        // Answered like a device that the caller may not configure.
        Ok(Request::Set(_)) => Some(errno_reply(Errno::EPERM as i32).into()),
        Err(error) => Some(errno_reply(error.errno()).into()),
    };
    let _ = reader.get_mut().write_all(text.unwrap_or_default().as_bytes());
}

fn describe(served: &Served, device: &Device) -> Zeroizing<String> {
    let network = &served.network;
    let all = network.peers() <= LIST_ALL_UP_TO;
    let keepalive = network.keepalive().unwrap_or_default();
    let mut text = Description::new(&DeviceView {
        private_key: Some(device.private_key()),
        listen_port: served.sockets.port(),
        fwmark: None,
    });
    network.for_each_peer(device.id, |entry, state| {
        if entry.has_key(device.public_key()) || !(all || state.is_some()) {
            return;
        }
        let state = state.unwrap_or_default();
        let view = PeerView {
            public_key: entry.key(),
            preshared_key: entry.preshared(),
            endpoint: state.endpoint.or_else(|| entry.endpoint(0)),
            last_handshake: state.last_handshake,
            tx_bytes: state.tx_bytes,
            rx_bytes: state.rx_bytes,
            persistent_keepalive: keepalive,
        };
        text.peer(&view, entry.allowed());
    });
    text.finish()
}
