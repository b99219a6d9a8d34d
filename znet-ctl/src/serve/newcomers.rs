//! Connections that have not asked for anything yet: how many of them one source may have.
//!
//! Somebody who opens connections and lets them lie costs a place each until the time for the handshake is over. A
//! source that may have half of all places at most leaves room for everybody else. An honest fleet behind one address
//! that comes back at once stays below it for as long as its handshakes are answered.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts newcomers by source. There are never more sources than connections.
#[derive(Debug)]
pub(super) struct Newcomers {
    most: usize,
    by_source: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection's share of its source's places; given back when dropped.
#[derive(Debug)]
pub(super) struct Newcomer {
    of: Arc<Newcomers>,
    source: IpAddr,
}

impl Newcomers {
    /// At most `most` for each source.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, by_source: Mutex::default() })
    }

    /// Counts one more from this address; `None` when its source has as many as it may.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Newcomer> {
        let source = source(from);
        let mut by_source = self.lock();
        let count = by_source.entry(source).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Newcomer { of: self.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut by_source = self.of.lock();
        if let Some(count) = by_source.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

/// What stands for one party: an IPv4 address, or the /64 of an IPv6 address, as a machine can have all of a /64 (RFC
/// 4291, section 2.5.4).
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_source_has_its_share_and_no_more_until_it_gives_some_back() {
        let newcomers = Newcomers::new(2);
        let from = |text: &str| newcomers.admit(text.parse().unwrap());
        let (first, second) = (from("192.0.2.1").unwrap(), from("::ffff:192.0.2.1").unwrap());
        assert!(from("192.0.2.1").is_none());
        let other = from("192.0.2.2").unwrap();
        drop(first);
        let third = from("192.0.2.1").unwrap();
        assert!(from("192.0.2.1").is_none());
        drop((second, third, other));
        assert!(newcomers.lock().is_empty(), "something is kept of those who left");
    }

    #[test]
    fn all_addresses_of_a_64_are_one_source() {
        let newcomers = Newcomers::new(1);
        let from = |text: &str| newcomers.admit(text.parse().unwrap());
        let _first = from("2001:db8:1:1::1").unwrap();
        assert!(from("2001:db8:1:1:ffff::2").is_none());
        assert!(from("2001:db8:1:2::1").is_some());
    }
}
