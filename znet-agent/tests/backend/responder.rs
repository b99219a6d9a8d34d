//! A thousand peers in one thread: each has a key and an address, all share a UDP socket on loopback, and each answers pings.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use znet_core::key::{PrivateKey, PublicKey};
use znet_wg::knock;

use crate::node::secret;

pub(crate) struct Responder {
    endpoint: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Peers of these numbers, who know one other peer.
    pub(crate) fn start(numbers: Range<u16>, other: PublicKey) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (endpoint, stop) = (socket.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || serve(&socket, numbers, other, &stopped));
        Self { endpoint, stop, thread: Some(thread) }
    }

    pub(crate) fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(socket: &UdpSocket, numbers: Range<u16>, other: PublicKey, stop: &AtomicBool) {
    let keys: Vec<(u16, PublicKey)> = numbers.map(|n| (n, secret(n).public_key())).collect();
    let mut tunnels: HashMap<u32, Tunn> = HashMap::new();
    let (mut room, mut out) = (vec![0; 2_048], vec![0; 2_048]);
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut room) else { continue };
        let datagram = &room[..length];
        let number = match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::HandshakeInit(_)) => {
                let addressee = keys.iter().find(|(_, key)| knock::is_for(key, datagram));
                u32::from(addressee.expect("nobody's initiation").0)
            }
            Ok(Packet::PacketData(data)) => data.receiver_idx >> 8,
            Ok(Packet::HandshakeResponse(response)) => response.receiver_idx >> 8,
            _ => continue,
        };
        let tunnel = tunnels.entry(number).or_insert_with(|| tunnel(&secret(number as u16), &other, number));
        let mut datagram = datagram;
        loop {
            match tunnel.decapsulate(None, datagram, &mut out) {
                TunnResult::WriteToNetwork(message) => {
                    socket.send_to(message, from).unwrap();
                    datagram = &[];
                }
                TunnResult::WriteToTunnelV4(packet, _) => {
                    let reply = pong(packet);
                    let mut sealed = vec![0; 2_048];
                    if let TunnResult::WriteToNetwork(message) = tunnel.encapsulate(&reply, &mut sealed) {
                        socket.send_to(message, from).unwrap();
                    }
                    break;
                }
                _ => break,
            }
        }
    }
}

/// An initiation of the peer of this number.
pub(crate) fn initiation(number: u16, to: &PublicKey) -> Vec<u8> {
    let mut room = [0; 256];
    match tunnel(&secret(number), to, number.into()).format_handshake_initiation(&mut room, false) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        _ => panic!("no initiation"),
    }
}

fn tunnel(own: &PrivateKey, other: &PublicKey, number: u32) -> Tunn {
    let own = x25519::StaticSecret::from(*own.to_bytes());
    Tunn::new(own, x25519::PublicKey::from(*other.as_bytes()), None, None, number, None)
}

/// The answer to an ICMP echo request over IPv4: addresses change places, which no checksum notices, and the type changes
/// from 8 to 0, which one does (RFC 1624).
fn pong(packet: &[u8]) -> Vec<u8> {
    let mut reply = packet.to_vec();
    let header = usize::from(packet[0] & 0xf) * 4;
    reply[12..16].copy_from_slice(&packet[16..20]);
    reply[16..20].copy_from_slice(&packet[12..16]);
    reply[header] = 0;
    let sum = u32::from(u16::from_be_bytes([packet[header + 2], packet[header + 3]])) + 0x0800;
    let sum = (sum & 0xffff) + (sum >> 16);
    reply[header + 2..header + 4].copy_from_slice(&(sum as u16).to_be_bytes());
    reply
}
