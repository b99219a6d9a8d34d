//! Addresses that rest, in the order of the addresses and searchable by deadline at once.
//!
//! "The lowest address whose rest is over" asks about two orders. A binary radix tree over the addresses, in which each
//! fork knows the earliest deadline below it, answers it in one walk from the root. Such a tree needs no balancing: a
//! path has at most as many forks as an address has bits, whatever addresses strangers ask for, and about log n when
//! the addresses stand close together, as allocated ones do.

use crate::time::Timestamp;

/// Numbers with a deadline each.
#[derive(Clone, Debug, Default)]
pub(super) struct Resting(Option<Tree>);

#[derive(Clone, Debug)]
enum Tree {
    Leaf {
        n: u128,
        until: Timestamp,
    },
    /// Everything below agrees with `n` in the bits above `bit`; `low` has a zero there and `high` a one.
    Fork {
        bit: u32,
        n: u128,
        earliest: Timestamp,
        low: Box<Tree>,
        high: Box<Tree>,
    },
}

impl Resting {
    /// Until when the number rests; `None` when it is not here.
    pub(super) fn get(&self, n: u128) -> Option<Timestamp> {
        let mut tree = self.0.as_ref()?;
        loop {
            match tree {
                Tree::Leaf { n: own, until } => return (*own == n).then_some(*until),
                Tree::Fork { bit, low, high, .. } => tree = if has_bit(n, *bit) { high } else { low },
            }
        }
    }

    /// Adds a number, or gives it another deadline.
    pub(super) fn insert(&mut self, n: u128, until: Timestamp) {
        match &mut self.0 {
            Some(tree) => tree.insert(n, until),
            None => self.0 = Some(Tree::Leaf { n, until }),
        }
    }

    /// Takes a number out; `false` when it was not here.
    pub(super) fn remove(&mut self, n: u128) -> bool {
        match &mut self.0 {
            Some(Tree::Leaf { n: own, .. }) if *own == n => {
                self.0 = None;
                true
            }
            Some(tree) => tree.remove(n),
            None => false,
        }
    }

    /// The lowest number whose deadline has come.
    pub(super) fn lowest_due(&self, now: Timestamp) -> Option<u128> {
        self.due(now).next()
    }

    /// The numbers whose deadlines have come, the lowest first.
    pub(super) fn due(&self, now: Timestamp) -> impl Iterator<Item = u128> + '_ {
        // The parts still to be walked, the lowest on top: no more of them than an address has bits.
        let mut walk: Vec<&Tree> = self.0.iter().collect();
        std::iter::from_fn(move || {
            while let Some(tree) = walk.pop() {
                match tree {
                    _ if tree.earliest() > now => {}
                    Tree::Leaf { n, .. } => return Some(*n),
                    Tree::Fork { low, high, .. } => walk.extend([high.as_ref(), low.as_ref()]),
                }
            }
            None
        })
    }
}

impl Tree {
    fn earliest(&self) -> Timestamp {
        match self {
            Self::Leaf { until, .. } => *until,
            Self::Fork { earliest, .. } => *earliest,
        }
    }

    /// In which bits above its own fork this tree's numbers differ from `n`; zero when `n` belongs below it.
    fn differs_from(&self, n: u128) -> u128 {
        match self {
            Self::Leaf { n: own, .. } => own ^ n,
            // Two shifts, because one by all 128 bits would overflow.
            Self::Fork { n: own, bit, .. } => (own ^ n) >> bit >> 1,
        }
    }

    fn insert(&mut self, n: u128, until: Timestamp) {
        if self.differs_from(n) != 0 {
            let new = Self::Leaf { n, until };
            let old = std::mem::replace(self, new.clone());
            let own = match old {
                Self::Leaf { n, .. } | Self::Fork { n, .. } => n,
            };
            let bit = (own ^ n).ilog2();
            let earliest = old.earliest().min(until);
            let (low, high) = if has_bit(n, bit) { (old, new) } else { (new, old) };
            *self = Self::Fork { bit, n, earliest, low: Box::new(low), high: Box::new(high) };
            return;
        }
        match self {
            Self::Leaf { until: own, .. } => *own = until,
            Self::Fork { bit, earliest, low, high, .. } => {
                if has_bit(n, *bit) {
                    high.insert(n, until);
                } else {
                    low.insert(n, until);
                }
                *earliest = low.earliest().min(high.earliest());
            }
        }
    }

    /// Takes a number out of a fork. That a leaf is the number itself is for its owner to see.
    fn remove(&mut self, n: u128) -> bool {
        let Self::Fork { bit, earliest, low, high, .. } = self else { return false };
        let (side, other) = if has_bit(n, *bit) { (high, low) } else { (low, high) };
        if let Self::Leaf { n: own, .. } = **side {
            if own == n {
                // The fork has one side left and becomes it.
                let left = std::mem::replace(&mut **other, Self::Leaf { n, until: Timestamp::default() });
                *self = left;
            }
            return own == n;
        }
        let removed = side.remove(n);
        *earliest = side.earliest().min(other.earliest());
        removed
    }
}

fn has_bit(n: u128, bit: u32) -> bool {
    (n >> bit) & 1 == 1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Close neighbours and far strangers, the ends of the range among them.
    fn number() -> impl Strategy<Value = u128> {
        prop_oneof![4 => 0u128..24, 1 => any::<u128>(), 1 => Just(u128::MAX), 1 => Just(1 << 127)]
    }

    proptest! {
        #[test]
        fn it_answers_as_a_plain_map_does(
            steps in prop::collection::vec((number(), 0u64..20, any::<bool>()), 0..80),
        ) {
            let (mut resting, mut model) = (Resting::default(), BTreeMap::new());
            for (n, until, insert) in steps {
                let until = Timestamp::from_millis(until);
                if insert {
                    resting.insert(n, until);
                    model.insert(n, until);
                } else {
                    prop_assert_eq!(resting.remove(n), model.remove(&n).is_some());
                }
                prop_assert_eq!(resting.get(n), model.get(&n).copied());
                for now in (0..20).map(Timestamp::from_millis) {
                    let due: Vec<u128> = resting.due(now).collect();
                    let expected: Vec<u128> =
                        model.iter().filter(|(_, until)| **until <= now).map(|(n, _)| *n).collect();
                    prop_assert_eq!(resting.lowest_due(now), expected.first().copied());
                    prop_assert_eq!(due, expected);
                }
            }
        }
    }

    #[test]
    fn a_path_has_at_most_as_many_forks_as_an_address_has_bits() {
        let mut resting = Resting::default();
        // Each of these differs from all before it in a lower bit only: the deepest tree there is.
        (0..128).for_each(|bit| resting.insert(u128::MAX << bit, Timestamp::default()));
        fn depth(tree: &Tree) -> usize {
            match tree {
                Tree::Leaf { .. } => 0,
                Tree::Fork { low, high, .. } => 1 + depth(low).max(depth(high)),
            }
        }
        assert!(resting.0.as_ref().is_some_and(|tree| (100..=128).contains(&depth(tree))));
    }
}
