//! A set of numbers kept as disjoint runs, so that a million neighbours cost one entry.

use std::collections::BTreeMap;

/// A set of `u128`, as maximal runs `first..=last`. Every operation takes time logarithmic in the number of runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs(BTreeMap<u128, u128>);

impl Runs {
    /// Whether the number is in the set.
    pub(super) fn contains(&self, n: u128) -> bool {
        self.run_at(n).is_some()
    }

    /// The lowest number in `first..=last` that is not in the set.
    pub(super) fn lowest_missing(&self, first: u128, last: u128) -> Option<u128> {
        // Runs are maximal, so what follows the run that covers `first` is free.
        let candidate = match self.run_at(first) {
            None => first,
            Some((_, end)) => end.checked_add(1)?,
        };
        (candidate <= last).then_some(candidate)
    }

    /// Adds all of `first..=last`, merging with the runs it touches.
    pub(super) fn insert_run(&mut self, first: u128, last: u128) {
        let (mut first, mut last) = (first, last);
        if let Some((start, end)) = self.0.range(..=first).next_back().map(|(s, e)| (*s, *e))
            && end.saturating_add(1) >= first
        {
            first = start;
            last = last.max(end);
        }
        while let Some((start, end)) =
            self.0.range(first..=last.saturating_add(1)).next().map(|(s, e)| (*s, *e))
        {
            last = last.max(end);
            self.0.remove(&start);
        }
        self.0.insert(first, last);
    }

    /// Adds one number; `false` when it was there.
    pub(super) fn insert(&mut self, n: u128) -> bool {
        let fresh = !self.contains(n);
        if fresh {
            self.insert_run(n, n);
        }
        fresh
    }

    /// Takes one number out; `false` when it was not there.
    pub(super) fn remove(&mut self, n: u128) -> bool {
        let Some((start, end)) = self.run_at(n) else { return false };
        self.0.remove(&start);
        if start < n {
            self.0.insert(start, n - 1);
        }
        if n < end {
            self.0.insert(n + 1, end);
        }
        true
    }

    fn run_at(&self, n: u128) -> Option<(u128, u128)> {
        self.0.range(..=n).next_back().map(|(start, end)| (*start, *end)).filter(|(_, end)| *end >= n)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const END: u128 = u128::MAX;

    fn number() -> impl Strategy<Value = u128> {
        prop_oneof![3 => 0u128..20, 1 => (0u128..4).prop_map(|n| END - n)]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u128),
        Remove(u128),
        InsertRun(u128, u128),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => number().prop_map(Step::Insert),
            3 => number().prop_map(Step::Remove),
            1 => (0u128..20, 0u128..4).prop_map(|(first, more)| Step::InsertRun(first, first + more)),
        ]
    }

    proptest! {
        #[test]
        fn runs_are_the_set_that_they_stand_for_and_are_never_adjacent(
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let (mut runs, mut model) = (Runs::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(n) => prop_assert_eq!(runs.insert(n), model.insert(n)),
                    Step::Remove(n) => prop_assert_eq!(runs.remove(n), model.remove(&n)),
                    Step::InsertRun(first, last) => {
                        runs.insert_run(first, last);
                        model.extend(first..=last);
                    }
                }
                let spelled: BTreeSet<u128> = runs.0.iter().flat_map(|(first, last)| *first..=*last).collect();
                prop_assert_eq!(&spelled, &model);
                let apart = runs.0.iter().zip(runs.0.iter().skip(1));
                for ((_, end), (start, _)) in apart {
                    prop_assert!(end.saturating_add(1) < *start, "{:?}", runs);
                }
                for first in (0..20).chain([END - 3, END]) {
                    prop_assert_eq!(runs.contains(first), model.contains(&first));
                    let missing = (first..=END).take(40).find(|n| !model.contains(n));
                    prop_assert_eq!(runs.lowest_missing(first, END), missing);
                }
            }
        }
    }
}
