//! The addresses that belong to one peer, in little memory: a container has one or two, a gateway thousands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Single addresses of a peer, each at a number below [`Singles::len`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Singles {
    #[default]
    None,
    One(IpAddr),
    /// What a container has.
    Both(Ipv6Addr, Ipv4Addr),
    #[expect(clippy::box_collection, reason = "it would make every other peer's entry larger")]
    Many(Box<Vec<IpAddr>>),
}

impl Singles {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Both(..) => 2,
            Self::Many(all) => all.len(),
        }
    }

    pub(super) fn get(&self, number: usize) -> Option<IpAddr> {
        match (self, number) {
            (Self::One(address), 0) => Some(*address),
            (Self::Both(address, _), 0) => Some((*address).into()),
            (Self::Both(_, address), 1) => Some((*address).into()),
            (Self::Many(all), number) => all.get(number).copied(),
            _ => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        (0..self.len()).filter_map(|number| self.get(number))
    }

    /// Adds an address, which gets the number that [`Self::len`] was.
    pub(super) fn push(&mut self, address: IpAddr) {
        *self = match (std::mem::take(self), address) {
            (Self::None, address) => Self::One(address),
            (Self::One(IpAddr::V6(first)), IpAddr::V4(address)) => Self::Both(first, address),
            (Self::Many(mut all), address) => {
                all.push(address);
                Self::Many(all)
            }
            (few, address) => Self::Many(Box::new(few.iter().chain([address]).collect())),
        };
    }

    /// Removes the address of this number; the last one gets its number.
    pub(super) fn swap_remove(&mut self, number: usize) {
        if number >= self.len() {
            return;
        }
        if let Self::Many(all) = self {
            all.swap_remove(number);
            return;
        }
        let mut all: Vec<IpAddr> = self.iter().collect();
        all.swap_remove(number);
        *self = Self::None;
        all.into_iter().for_each(|address| self.push(address));
    }
}

/// Whether a prefix is a single address.
pub(super) fn single(net: &IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn singles_are_a_list_in_which_the_last_takes_the_place_of_the_removed(
            steps in proptest::collection::vec((any::<bool>(), 0usize..8, any::<[u8; 4]>(), any::<bool>()), 0..40)
        ) {
            let (mut singles, mut model) = (Singles::default(), Vec::new());
            for (push, number, bytes, v6) in steps {
                let address = match v6 {
                    true => IpAddr::from(Ipv4Addr::from(bytes).to_ipv6_mapped()),
                    false => IpAddr::from(bytes),
                };
                if push {
                    singles.push(address);
                    model.push(address);
                } else {
                    singles.swap_remove(number);
                    if number < model.len() {
                        model.swap_remove(number);
                    }
                }
                prop_assert_eq!(singles.iter().collect::<Vec<_>>(), model.clone());
            }
        }
    }
}
