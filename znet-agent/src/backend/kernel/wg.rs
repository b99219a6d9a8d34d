//! A WireGuard device of the kernel's as generic netlink shows it (`linux/wireguard.h`): reading it, and changing what differs.
//!
//! One socket a device, opened inside the device's namespace and kept: it goes on working from any thread, and many peers
//! go into one message. Nothing here ever replaces all peers, which would end their sessions. What is read holds private
//! keys, so buffers are wiped and nothing is logged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs};
use netlink_packet_generic::{GenlFamily, GenlMessage};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_sys::{Socket, SocketAddr as KernelAddr, protocols::NETLINK_GENERIC};
use zeroize::{Zeroize as _, Zeroizing};
use znet_core::key::{PresharedKey, PrivateKey, PublicKey};

/// Peers in one message: far below the 64 KiB that an attribute can hold, each of them with a few addresses.
const PEERS_PER_MESSAGE: usize = 100;
/// How often a listing that changed under the reader is begun anew.
const READS: usize = 5;
/// The errno of a name or device that is not there.
const ENOENT: i32 = 2;

/// Why a device of the kernel's is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum WgError {
    /// The kernel has no WireGuard.
    #[error(
        "this kernel has no WireGuard (CONFIG_WIREGUARD); load the module (`modprobe wireguard`) or use --backend engine"
    )]
    NotThere,
    /// The kernel refused.
    #[error("{doing}: {source}")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It answered what is no answer.
    #[error("the kernel gave an answer that cannot be understood: {0}")]
    Malformed(String),
}

/// A device as it is.
#[derive(Debug, Default)]
pub struct Seen {
    /// Its private key, if it has one.
    pub private_key: Option<PrivateKey>,
    /// The UDP port at which its socket listens.
    pub port: u16,
    /// The mark of its packets.
    pub fwmark: u32,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, SeenPeer>,
}

/// A peer of a device as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenPeer {
    /// Where it was heard last, or is said to be.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: u16,
    /// How long ago the last handshake was; `None` when there was none.
    pub handshake: Option<Duration>,
    /// Bytes that came from it.
    pub rx: u64,
    /// Bytes that went to it.
    pub tx: u64,
    /// Its allowed addresses.
    pub addresses: BTreeSet<IpNet>,
    /// The key that both ends mix in.
    pub preshared_key: Option<PresharedKey>,
}

/// A change of one peer; what is `None` stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The peer.
    pub public_key: PublicKey,
    /// The peer is there already; if it went away meanwhile it does not come back.
    pub only_if_there: bool,
    /// Its addresses, in place of those that it had.
    pub addresses: Option<Vec<IpAddr>>,
    /// Where it is from now on.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: Option<u16>,
    /// The key that both ends mix in; all zeroes for none.
    pub preshared_key: Option<PresharedKey>,
}

impl Put {
    /// A change of nothing, of a peer that is there.
    pub fn of(public_key: PublicKey) -> Self {
        Self {
            public_key,
            only_if_there: true,
            addresses: None,
            endpoint: None,
            keepalive: None,
            preshared_key: None,
        }
    }
}

/// The handle of one device.
pub struct Wg {
    socket: Socket,
    family: u16,
    index: u32,
}

impl std::fmt::Debug for Wg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wg").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Wg {
    /// Opens the device with this index in the caller's namespace, which is to be that of the device.
    ///
    /// # Errors
    /// [`WgError`].
    pub fn open(index: u32) -> Result<Self, WgError> {
        let refused = |source| WgError::Refused { doing: "opening a netlink socket", source };
        let socket = Socket::new(NETLINK_GENERIC).map_err(refused)?;
        socket.connect(&KernelAddr::new(0, 0)).map_err(refused)?;
        let mut wg = Self { socket, family: 0, index };
        wg.family = wg.resolve()?;
        Ok(wg)
    }

    /// Its index in its namespace.
    pub fn index(&self) -> u32 {
        self.index
    }

    fn resolve(&self) -> Result<u16, WgError> {
        let ask = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(WireguardMessage::family_name().to_owned())],
        };
        let answers = self.call(GenlMessage::from_payload(ask), NLM_F_ACK, "looking for WireGuard");
        let answers = match answers {
            Err(WgError::Refused { source, .. }) if source.raw_os_error() == Some(ENOENT) => {
                return Err(WgError::NotThere);
            }
            other => other?,
        };
        let id = answers.iter().flat_map(|answer| &answer.payload.nlas).find_map(|nla| match nla {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        id.ok_or_else(|| WgError::Malformed("no number of the family".to_owned()))
    }

    /// What the device is like.
    ///
    /// # Errors
    /// [`WgError`].
    pub fn read(&self) -> Result<Seen, WgError> {
        let mut last = WgError::Malformed("the device changes faster than it can be read".to_owned());
        for _ in 0..READS {
            let message = self.message(WireguardCmd::GetDevice, Vec::new());
            match self.call(message, NLM_F_DUMP, "reading a device") {
                Ok(answers) => return Ok(seen(answers)),
                Err(WgError::Malformed(why)) => last = WgError::Malformed(why),
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Sets the private key and the port. Setting either to what it is changes nothing; another key ends all sessions.
    ///
    /// # Errors
    /// [`WgError`]; `EADDRINUSE` when somebody else has the port.
    pub fn set(&self, private_key: Option<&PrivateKey>, port: Option<u16>) -> Result<(), WgError> {
        let mut attributes = vec![WireguardAttribute::Fwmark(0)];
        attributes.extend(private_key.map(|key| WireguardAttribute::PrivateKey(*key.to_bytes())));
        attributes.extend(port.map(WireguardAttribute::ListenPort));
        let message = self.message(WireguardCmd::SetDevice, attributes);
        self.call(message, NLM_F_ACK, "setting a device's key and port").map(drop)
    }

    /// Changes peers; all others stay as they are.
    ///
    /// # Errors
    /// [`WgError`].
    pub fn put(&self, puts: &[Put]) -> Result<(), WgError> {
        for some in puts.chunks(PEERS_PER_MESSAGE) {
            self.peers(some.iter().map(peer).collect(), "changing peers")?;
        }
        Ok(())
    }

    /// Removes peers; of one that is not there this is a no-op.
    ///
    /// # Errors
    /// [`WgError`].
    pub fn remove(&self, keys: &[PublicKey]) -> Result<(), WgError> {
        let removed = |key: &PublicKey| {
            WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(*key.as_bytes()),
                // Or one that is not there would be made first.
                WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly),
            ])
        };
        for some in keys.chunks(PEERS_PER_MESSAGE) {
            self.peers(some.iter().map(removed).collect(), "removing peers")?;
        }
        Ok(())
    }

    fn peers(&self, peers: Vec<WireguardPeer>, doing: &'static str) -> Result<(), WgError> {
        let message = self.message(WireguardCmd::SetDevice, vec![WireguardAttribute::Peers(peers)]);
        self.call(message, NLM_F_ACK, doing).map(drop)
    }

    fn message(
        &self,
        cmd: WireguardCmd,
        attributes: Vec<WireguardAttribute>,
    ) -> GenlMessage<WireguardMessage> {
        // By its index: a container may rename its device.
        let index = std::iter::once(WireguardAttribute::IfIndex(self.index));
        let attributes = index.chain(attributes).collect();
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        message
    }

    /// Sends one request and takes everything that the kernel says to it.
    fn call<F>(
        &self,
        message: GenlMessage<F>,
        flags: u16,
        doing: &'static str,
    ) -> Result<Vec<GenlMessage<F>>, WgError>
    where
        F: GenlFamily + Clone + std::fmt::Debug + Eq,
        GenlMessage<F>: netlink_packet_core::NetlinkSerializable + netlink_packet_core::NetlinkDeserializable,
    {
        let refused = |source| WgError::Refused { doing, source };
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.finalize();
        let mut out = Zeroizing::new(vec![0; request.buffer_len()]);
        request.serialize(&mut out);
        self.socket.send(&out, 0).map_err(refused)?;
        let (mut answers, mut torn) = (Vec::new(), false);
        loop {
            let datagram = Zeroizing::new(self.socket.recv_from_full().map_err(refused)?.0);
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let malformed = |error: &dyn std::fmt::Display| WgError::Malformed(error.to_string());
                let answer =
                    NetlinkMessage::<GenlMessage<F>>::deserialize(rest).map_err(|error| malformed(&error))?;
                torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX);
                match answer.payload {
                    NetlinkPayload::Done(_) if torn => return Err(malformed(&"it changed under the reader")),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(refused(error.to_io())),
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
                // Messages are aligned to four bytes (netlink(7)).
                rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn peer(put: &Put) -> WireguardPeer {
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(*put.public_key.as_bytes())];
    let mut flags = WireguardPeerFlags::empty();
    flags.set(WireguardPeerFlags::UpdateOnly, put.only_if_there);
    flags.set(WireguardPeerFlags::ReplaceAllowedIps, put.addresses.is_some());
    attributes.push(WireguardPeerAttribute::Flags(flags));
    if let Some(key) = &put.preshared_key {
        attributes.push(WireguardPeerAttribute::PresharedKey(*key.to_bytes()));
    }
    attributes.extend(put.endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes.extend(put.keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    let addresses = put.addresses.as_ref().map(|all| all.iter().map(|address| allowed(*address)).collect());
    attributes.extend(addresses.map(WireguardPeerAttribute::AllowedIps));
    WireguardPeer(attributes)
}

fn allowed(address: IpAddr) -> WireguardAllowedIp {
    let (family, length) = match address {
        IpAddr::V4(_) => (WireguardAddressFamily::Ipv4, 32),
        IpAddr::V6(_) => (WireguardAddressFamily::Ipv6, 128),
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(address),
        WireguardAllowedIpAttr::Cidr(length),
    ])
}

/// Puts a listing together. A peer with many addresses comes in several messages, under its key each time.
fn seen(answers: Vec<GenlMessage<WireguardMessage>>) -> Seen {
    let now = SystemTime::now();
    let mut seen = Seen::default();
    for attribute in answers.into_iter().flat_map(|answer| answer.payload.attributes) {
        match attribute {
            WireguardAttribute::PrivateKey(mut bytes) => {
                seen.private_key = (bytes != [0; 32]).then(|| PrivateKey::from_bytes(bytes));
                bytes.zeroize();
            }
            WireguardAttribute::ListenPort(port) => seen.port = port,
            WireguardAttribute::Fwmark(mark) => seen.fwmark = mark,
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    let key = peer.0.iter().find_map(|attribute| match attribute {
                        WireguardPeerAttribute::PublicKey(bytes) => Some(PublicKey::from_bytes(*bytes)),
                        _ => None,
                    });
                    let Some(key) = key else { continue };
                    let merged = seen.peers.entry(key).or_default();
                    peer.0.into_iter().for_each(|attribute| merge(merged, attribute, now));
                }
            }
            _ => {}
        }
    }
    seen
}

fn merge(peer: &mut SeenPeer, attribute: WireguardPeerAttribute, now: SystemTime) {
    match attribute {
        WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
        WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = seconds,
        WireguardPeerAttribute::LastHandshake(time) => {
            let since = u64::try_from(time.seconds).ok().filter(|seconds| *seconds > 0);
            let at = since.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            peer.handshake = at.map(|at| now.duration_since(at).unwrap_or_default());
        }
        WireguardPeerAttribute::RxBytes(bytes) => peer.rx = bytes,
        WireguardPeerAttribute::TxBytes(bytes) => peer.tx = bytes,
        WireguardPeerAttribute::PresharedKey(mut bytes) => {
            peer.preshared_key = (bytes != [0; 32]).then(|| PresharedKey::from_bytes(bytes));
            bytes.zeroize();
        }
        WireguardPeerAttribute::AllowedIps(all) => peer.addresses.extend(all.iter().filter_map(prefix)),
        _ => {}
    }
}

fn prefix(allowed: &WireguardAllowedIp) -> Option<IpNet> {
    let address = allowed.0.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
        _ => None,
    })?;
    let length = allowed.0.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::Cidr(length) => Some(*length),
        _ => None,
    })?;
    IpNet::new(address, length).ok()
}
