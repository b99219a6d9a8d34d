//! What `wg show` tells.

use std::net::SocketAddr;

use anyhow::Context as _;

use super::Device;
use crate::Result;

/// What a device tells of one of its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerShown {
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Its prefixes, in the order in which they are told.
    pub allowed: Vec<String>,
    /// When the last handshake was, in seconds since 1970; 0 for never.
    pub handshake: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Seconds between keepalives.
    pub keepalive: Option<u16>,
}

impl PeerShown {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t').skip(2);
        Some(Self {
            endpoint: fields.next()?.parse().ok(),
            allowed: fields
                .next()?
                .split(',')
                .filter(|shown| *shown != "(none)")
                .map(str::to_owned)
                .collect(),
            handshake: fields.next()?.parse().ok()?,
            received: fields.next()?.parse().ok()?,
            sent: fields.next()?.parse().ok()?,
            keepalive: fields.next()?.parse().ok(),
        })
    }
}

impl Device {
    /// What it tells of another device.
    ///
    /// # Errors
    /// It does not know the other, or `wg` said an error.
    pub fn shown(&self, other: &Self) -> Result<PeerShown> {
        // The first line is the device's own, and holds its private key: it is in no error.
        let dump = self.show("dump")?;
        let line = dump.lines().skip(1).find(|line| line.starts_with(other.public_key()));
        let line = line.with_context(|| format!("h{} has no peer h{}", self.number(), other.number()))?;
        PeerShown::parse(line).with_context(|| format!("unreadable: {line}"))
    }

    /// How many peers it has.
    ///
    /// # Errors
    /// What `wg` said.
    pub fn peer_count(&self) -> Result<usize> {
        Ok(self.show("peers")?.lines().count())
    }
}
