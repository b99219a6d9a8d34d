//! The allocator of one prefix.

use std::net::IpAddr;

use ipnet::IpNet;

use super::resting::Resting;
use super::runs::Runs;
use crate::time::Timestamp;

/// Why an explicit address cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplicitError {
    /// It is not inside the prefix.
    #[error("outside the prefix")]
    Outside,
    /// It is the prefix's own address (RFC 4291, section 2.6.1) or its broadcast address.
    #[error("names the prefix itself")]
    Unusable,
    /// Somebody has it.
    #[error("taken")]
    Taken,
    /// It was released a short while ago.
    #[error("resting until {0}")]
    Resting(Timestamp),
}

/// The addresses of one prefix: taken, reserved, resting or free.
///
/// Every operation takes time logarithmic in the number of addresses taken and resting. What is resting turns free when
/// its time comes, without anybody's doing: `now` is handed in with each question.
#[derive(Clone, Debug)]
pub struct Allocator {
    prefix: IpNet,
    first: u128,
    last: u128,
    /// Taken, reserved or resting: what a fresh address must not be.
    unavailable: Runs,
    taken: Runs,
    /// The reserved ranges and the addresses that name the prefix itself: never given unless asked for.
    reserved: Runs,
    /// What turns free for everybody when its rest is over.
    resting: Resting,
    /// What rests inside the reserved ranges, and stays reserved when its rest is over.
    resting_reserved: Resting,
}

impl Allocator {
    /// An allocator in which everything is free but the `reserved` ranges (what of them is outside the prefix does
    /// not matter).
    pub fn new(prefix: IpNet, reserved: &[IpNet]) -> Self {
        let prefix = prefix.trunc();
        let (first, last) = (number(prefix.network()), number(prefix.broadcast()));
        let mut kept = Runs::default();
        kept.insert(first);
        if prefix.addr().is_ipv4() {
            kept.insert(last);
        }
        for range in reserved {
            if prefix.contains(range) {
                kept.insert_run(number(range.network()), number(range.broadcast()));
            } else if range.contains(&prefix) {
                kept.insert_run(first, last);
            }
        }
        Self {
            prefix,
            first,
            last,
            unavailable: kept.clone(),
            taken: Runs::default(),
            reserved: kept,
            resting: Resting::default(),
            resting_reserved: Resting::default(),
        }
    }

    /// The prefix served.
    pub fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// The lowest address that may be allocated now; `None` when the prefix is exhausted.
    pub fn lowest_free(&self, now: Timestamp) -> Option<IpAddr> {
        // Addresses whose rest is over still stand among the unavailable, so the lower of both answers is the lowest.
        let rested = self.resting.lowest_due(now);
        let fresh = self.unavailable.lowest_missing(self.first, self.last);
        [rested, fresh].into_iter().flatten().min().map(|n| self.address(n))
    }

    /// Whether this very address may be given now. Reserved ranges are open to explicit requests.
    ///
    /// # Errors
    /// [`ExplicitError`] that says why not.
    pub fn check_explicit(&self, address: IpAddr, now: Timestamp) -> Result<(), ExplicitError> {
        if !self.prefix.contains(&address) {
            return Err(ExplicitError::Outside);
        }
        let n = number(address);
        if n == self.first || (address.is_ipv4() && n == self.last) {
            return Err(ExplicitError::Unusable);
        }
        if self.taken.contains(n) {
            return Err(ExplicitError::Taken);
        }
        match self.resting.get(n).or_else(|| self.resting_reserved.get(n)) {
            Some(until) if until > now => Err(ExplicitError::Resting(until)),
            _ => Ok(()),
        }
    }

    /// Marks an address as taken; it rests no longer. `false` when it was taken already or is outside the prefix.
    pub fn take(&mut self, address: IpAddr) -> bool {
        if !self.prefix.contains(&address) {
            return false;
        }
        let n = number(address);
        self.shelf(n).remove(n);
        self.unavailable.insert(n);
        self.taken.insert(n)
    }

    /// Gives an address back, to rest until `until`. `false` when it was not taken.
    pub fn release(&mut self, address: IpAddr, until: Timestamp) -> bool {
        let n = number(address);
        if !self.prefix.contains(&address) || !self.taken.remove(n) {
            return false;
        }
        // It stays among the unavailable: what was taken rests now.
        self.shelf(n).insert(n, until);
        true
    }

    /// Gives an address back at once, without rest. `false` when it was not taken.
    pub fn free(&mut self, address: IpAddr) -> bool {
        let n = number(address);
        if !self.prefix.contains(&address) || !self.taken.remove(n) {
            return false;
        }
        self.open(n);
        true
    }

    /// Lets an address that nobody has rest until `until`.
    pub fn rest(&mut self, address: IpAddr, until: Timestamp) {
        let n = number(address);
        if self.prefix.contains(&address) && !self.taken.contains(n) {
            self.unavailable.insert(n);
            self.shelf(n).insert(n, until);
        }
    }

    /// Forgets that an address rests.
    pub fn end_rest(&mut self, address: IpAddr) {
        let n = number(address);
        if self.prefix.contains(&address) && self.shelf(n).remove(n) {
            self.open(n);
        }
    }

    /// Addresses whose rest is over at `now`.
    pub fn rested(&self, now: Timestamp) -> impl Iterator<Item = IpAddr> + '_ {
        self.resting.due(now).chain(self.resting_reserved.due(now)).map(|n| self.address(n))
    }

    /// Where a number rests when it does.
    fn shelf(&mut self, n: u128) -> &mut Resting {
        if self.reserved.contains(n) { &mut self.resting_reserved } else { &mut self.resting }
    }

    /// Makes a number available unless a reserved range or the prefix itself keeps it.
    fn open(&mut self, n: u128) {
        if !self.reserved.contains(n) {
            self.unavailable.remove(n);
        }
    }

    fn address(&self, n: u128) -> IpAddr {
        match self.prefix {
            // Numbers of an IPv4 allocator come from IPv4 addresses, so the upper bits are zero.
            IpNet::V4(_) => IpAddr::V4((n as u32).into()),
            IpNet::V6(_) => IpAddr::V6(n.into()),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}
