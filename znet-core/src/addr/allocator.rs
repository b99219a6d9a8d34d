//! The allocator of one prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

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
/// Every operation takes time logarithmic in the number of addresses taken. What is resting turns free when its time
/// comes, without anybody's doing: `now` is handed in with each question.
#[derive(Clone, Debug)]
pub struct Allocator {
    prefix: IpNet,
    first: u128,
    last: u128,
    /// Taken, reserved or resting: what `lowest_free` must step over.
    unavailable: Runs,
    taken: Runs,
    reserved: Vec<(u128, u128)>,
    resting: BTreeMap<u128, Timestamp>,
    by_deadline: BTreeSet<(Timestamp, u128)>,
}

impl Allocator {
    /// An allocator in which everything is free but the `reserved` ranges (those outside the prefix do not matter).
    pub fn new(prefix: IpNet, reserved: &[IpNet]) -> Self {
        let prefix = prefix.trunc();
        let (first, last) = (number(prefix.network()), number(prefix.broadcast()));
        let mut unavailable = Runs::default();
        unavailable.insert(first);
        if prefix.addr().is_ipv4() {
            unavailable.insert(last);
        }
        let reserved: Vec<_> = reserved
            .iter()
            .filter(|range| prefix.contains(*range))
            .map(|range| (number(range.network()), number(range.broadcast())))
            .collect();
        reserved.iter().for_each(|(from, to)| unavailable.insert_run(*from, *to));
        Self {
            prefix,
            first,
            last,
            unavailable,
            taken: Runs::default(),
            reserved,
            resting: BTreeMap::new(),
            by_deadline: BTreeSet::new(),
        }
    }

    /// The prefix served.
    pub fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// The lowest address that may be allocated now; `None` when the prefix is exhausted.
    pub fn lowest_free(&self, now: Timestamp) -> Option<IpAddr> {
        // Addresses whose rest is over still stand among the unavailable: prefer the lower of both answers.
        let rested = self
            .by_deadline
            .range(..=(now, u128::MAX))
            .map(|(_, n)| *n)
            .filter(|n| !self.is_reserved(*n))
            .take(RESTED_LOOKED_AT)
            .min();
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
        match self.resting.get(&n) {
            Some(until) if *until > now => Err(ExplicitError::Resting(*until)),
            _ => Ok(()),
        }
    }

    /// Marks an address as taken; it rests no longer. `false` when it was taken already or is outside the prefix.
    pub fn take(&mut self, address: IpAddr) -> bool {
        if !self.prefix.contains(&address) {
            return false;
        }
        let n = number(address);
        self.wake(n);
        self.unavailable.insert(n);
        self.taken.insert(n)
    }

    /// Gives an address back, to rest until `until`. `false` when it was not taken.
    pub fn release(&mut self, address: IpAddr, until: Timestamp) -> bool {
        let released = self.free(address);
        if released {
            self.rest(address, until);
        }
        released
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
        if !self.prefix.contains(&address) || self.taken.contains(n) {
            return;
        }
        self.wake(n);
        self.unavailable.insert(n);
        self.resting.insert(n, until);
        self.by_deadline.insert((until, n));
    }

    /// Forgets that an address rests.
    pub fn end_rest(&mut self, address: IpAddr) {
        let n = number(address);
        if self.prefix.contains(&address) && self.wake(n) {
            self.open(n);
        }
    }

    /// Addresses whose rest is over at `now`, the longest over first.
    pub fn rested(&self, now: Timestamp) -> impl Iterator<Item = IpAddr> + '_ {
        self.by_deadline.range(..=(now, u128::MAX)).map(|(_, n)| self.address(*n))
    }

    /// Removes an address from the resting; `false` when it did not rest.
    fn wake(&mut self, n: u128) -> bool {
        match self.resting.remove(&n) {
            Some(until) => self.by_deadline.remove(&(until, n)),
            None => false,
        }
    }

    /// Makes a number available unless a reserved range or the prefix itself keeps it.
    fn open(&mut self, n: u128) {
        let broadcast = self.prefix.addr().is_ipv4() && n == self.last;
        if n != self.first && !broadcast && !self.is_reserved(n) {
            self.unavailable.remove(n);
        }
    }

    fn is_reserved(&self, n: u128) -> bool {
        self.reserved.iter().any(|(from, to)| (*from..=*to).contains(&n))
    }

    fn address(&self, n: u128) -> IpAddr {
        match self.prefix {
            // Numbers of an IPv4 allocator come from IPv4 addresses, so the upper bits are zero.
            IpNet::V4(_) => IpAddr::V4((n as u32).into()),
            IpNet::V6(_) => IpAddr::V6(n.into()),
        }
    }
}

/// How many rested addresses are compared for the lowest. Rested ones are cleared away as decisions are made, so more
/// than these stand there only after a long silence; then a low one is found, if not always the lowest.
const RESTED_LOOKED_AT: usize = 64;

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}
