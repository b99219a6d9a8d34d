//! The allocator against a map from addresses to what is the matter with them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use znet_core::addr::{Allocator, ExplicitError};
use znet_core::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Taken,
    Resting(Timestamp),
}

/// Looks at every address of the prefix, one after the other.
struct Model {
    prefix: IpNet,
    reserved: Vec<IpNet>,
    fates: BTreeMap<IpAddr, Fate>,
}

impl Model {
    fn is_own(&self, address: IpAddr) -> bool {
        let broadcast = self.prefix.addr().is_ipv4() && address == self.prefix.broadcast();
        address == self.prefix.network() || broadcast
    }

    fn explicit(&self, address: IpAddr, now: Timestamp) -> Result<(), ExplicitError> {
        match self.fates.get(&address) {
            _ if !self.prefix.contains(&address) => Err(ExplicitError::Outside),
            _ if self.is_own(address) => Err(ExplicitError::Unusable),
            Some(Fate::Taken) => Err(ExplicitError::Taken),
            Some(Fate::Resting(until)) if *until > now => Err(ExplicitError::Resting(*until)),
            _ => Ok(()),
        }
    }

    fn lowest(&self, now: Timestamp) -> Option<IpAddr> {
        let mut all = all_of(self.prefix);
        all.find(|a| self.explicit(*a, now).is_ok() && !self.reserved.iter().any(|range| range.contains(a)))
    }
}

/// The addresses of a prefix, or the first few of a vast one.
fn all_of(prefix: IpNet) -> impl Iterator<Item = IpAddr> {
    let hosts: Box<dyn Iterator<Item = IpAddr>> = match prefix {
        IpNet::V4(net) => Box::new((0..1u64 << (32 - net.prefix_len())).map(move |n| nth(prefix, n))),
        IpNet::V6(_) => Box::new((0..600).map(move |n| nth(prefix, n))),
    };
    hosts
}

fn nth(prefix: IpNet, n: u64) -> IpAddr {
    match prefix {
        IpNet::V4(net) => IpAddr::V4((u32::from(net.network()) + n as u32).into()),
        IpNet::V6(net) => IpAddr::V6((u128::from(net.network()) + u128::from(n)).into()),
    }
}

#[derive(Clone, Debug)]
enum Step {
    TakeLowest,
    Take(u64),
    Release(u64, u64),
    Free(u64),
    Rest(u64, u64),
    EndRest(u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    // One beyond the prefix's end on purpose; rests up to twice as long as one wait.
    let (n, rest) = (0u64..17, 0u64..40);
    prop_oneof![
        6 => Just(Step::TakeLowest),
        2 => n.clone().prop_map(Step::Take),
        5 => (n.clone(), rest.clone()).prop_map(|(n, rest)| Step::Release(n, rest)),
        1 => n.clone().prop_map(Step::Free),
        2 => (n.clone(), rest).prop_map(|(n, rest)| Step::Rest(n, rest)),
        1 => n.prop_map(Step::EndRest),
        2 => (0u64..20).prop_map(Step::Wait),
    ]
}

fn prefix_and_reserved() -> impl Strategy<Value = (IpNet, Vec<IpNet>)> {
    let reserved = |ranges: &'static [&'static str]| {
        prop::sample::subsequence(ranges.to_vec(), 0..=ranges.len())
            .prop_map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>())
    };
    let v4 = reserved(&["10.1.0.0/30", "10.1.0.8/31", "10.1.0.12/32", "10.9.0.0/24"]);
    let v6 = reserved(&["fd00:1:2::/126", "fd00:1:2::8/127", "fd00:1:2::c/128", "fd00:9::/64"]);
    prop_oneof![
        v4.prop_map(|reserved| ("10.1.0.0/28".parse().unwrap(), reserved)),
        v6.prop_map(|reserved| ("fd00:1:2::/48".parse().unwrap(), reserved)),
    ]
}

proptest! {
    #[test]
    fn it_decides_as_a_walk_over_all_addresses_does(
        (prefix, reserved) in prefix_and_reserved(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut allocator = Allocator::new(prefix, &reserved);
        let mut model = Model { prefix, reserved, fates: BTreeMap::new() };
        let mut now = Timestamp::from_millis(1_000);
        for step in steps {
            match step {
                Step::TakeLowest => {
                    let lowest = allocator.lowest_free(now);
                    prop_assert_eq!(lowest, model.lowest(now));
                    if let Some(address) = lowest {
                        // Nobody has it, and it does not rest.
                        prop_assert_ne!(model.fates.get(&address), Some(&Fate::Taken));
                        prop_assert!(allocator.take(address));
                        model.fates.insert(address, Fate::Taken);
                    }
                }
                Step::Take(n) => {
                    let address = nth(prefix, n);
                    let fresh = prefix.contains(&address) && model.fates.get(&address) != Some(&Fate::Taken);
                    prop_assert_eq!(allocator.take(address), fresh);
                    if fresh {
                        model.fates.insert(address, Fate::Taken);
                    }
                }
                Step::Release(n, rest) => {
                    let (address, until) = (nth(prefix, n), Timestamp::from_millis(now.as_millis() + rest));
                    let held = model.fates.get(&address) == Some(&Fate::Taken);
                    prop_assert_eq!(allocator.release(address, until), held);
                    if held {
                        model.fates.insert(address, Fate::Resting(until));
                    }
                }
                Step::Free(n) => {
                    let address = nth(prefix, n);
                    let held = model.fates.get(&address) == Some(&Fate::Taken);
                    prop_assert_eq!(allocator.free(address), held);
                    if held {
                        model.fates.remove(&address);
                    }
                }
                Step::Rest(n, rest) => {
                    let (address, until) = (nth(prefix, n), Timestamp::from_millis(now.as_millis() + rest));
                    allocator.rest(address, until);
                    if prefix.contains(&address) && model.fates.get(&address) != Some(&Fate::Taken) {
                        model.fates.insert(address, Fate::Resting(until));
                    }
                }
                Step::EndRest(n) => {
                    let address = nth(prefix, n);
                    allocator.end_rest(address);
                    if matches!(model.fates.get(&address), Some(Fate::Resting(_))) {
                        model.fates.remove(&address);
                    }
                }
                Step::Wait(millis) => now = Timestamp::from_millis(now.as_millis() + millis),
            }
            prop_assert_eq!(allocator.lowest_free(now), model.lowest(now));
            for address in all_of(prefix).take(18) {
                prop_assert_eq!(allocator.check_explicit(address, now), model.explicit(address, now));
            }
            let mut rested: Vec<IpAddr> = allocator.rested(now).collect();
            rested.sort();
            let over = |fate: &Fate| matches!(fate, Fate::Resting(until) if *until <= now);
            let expected: Vec<IpAddr> =
                model.fates.iter().filter(|(_, fate)| over(fate)).map(|(address, _)| *address).collect();
            prop_assert_eq!(rested, expected);
        }
    }
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

#[test]
fn a_released_address_rests_before_it_is_given_again() {
    let mut allocator = Allocator::new("10.0.0.0/30".parse().unwrap(), &[]);
    let [first, second] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
    assert!(allocator.take(first) && allocator.release(first, at(600)));
    assert_eq!(allocator.check_explicit(first, at(599)), Err(ExplicitError::Resting(at(600))));
    assert_eq!(allocator.lowest_free(at(599)), Some(second));
    assert!(allocator.take(second));
    assert_eq!(allocator.lowest_free(at(599)), None, "exhausted while one rests");
    assert_eq!(allocator.lowest_free(at(600)), Some(first));
}

#[test]
fn the_lowest_rested_address_is_found_behind_any_number_of_others() {
    let mut allocator = Allocator::new("10.0.0.0/16".parse().unwrap(), &[]);
    let addresses: Vec<IpAddr> = (1u32..=5_000).map(|n| IpAddr::V4((0x0a00_0000 + n).into())).collect();
    for address in &addresses {
        allocator.take(*address);
    }
    // The lowest is released last, so that its rest is over last of all.
    for (n, address) in addresses.iter().rev().enumerate() {
        allocator.release(*address, at(n as u64));
    }
    assert_eq!(allocator.lowest_free(at(10_000)), addresses.first().copied());
}

#[test]
fn a_reserved_range_that_holds_the_whole_prefix_leaves_nothing_but_explicit_addresses() {
    let allocator = Allocator::new("10.0.0.0/30".parse().unwrap(), &["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(allocator.lowest_free(at(0)), None);
    assert_eq!(allocator.check_explicit(IpAddr::from([10, 0, 0, 1]), at(0)), Ok(()));
}

#[test]
fn the_ends_of_all_address_space_are_no_special_case() {
    let last: IpAddr = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
    let mut allocator = Allocator::new("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127".parse().unwrap(), &[]);
    assert_eq!(allocator.lowest_free(at(0)), Some(last));
    assert!(allocator.take(last));
    assert_eq!(allocator.lowest_free(at(0)), None);
    assert!(allocator.release(last, at(5)));
    assert_eq!(allocator.lowest_free(at(5)), Some(last));
}
