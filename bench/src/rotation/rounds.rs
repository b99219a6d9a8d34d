//! Which pairs are pinged in which round.

/// Two of those who play, by their numbers, the smaller one first.
pub(crate) type Pair = (usize, usize);

/// All pairs of an even number of players in matchings: in each everybody has one partner, and in all of them every pair
/// is there once. The circle method of round-robin tournaments: one stays, the others move on by one seat.
pub(crate) fn matchings(players: usize) -> Vec<Vec<Pair>> {
    let seats = players.saturating_sub(1);
    let sorted = |a: usize, b: usize| (a.min(b), a.max(b));
    let matching = |turn: usize| {
        let across = (1..players / 2).map(move |n| sorted((turn + n) % seats, (turn + seats - n) % seats));
        std::iter::once(sorted(seats, turn)).chain(across).collect()
    };
    (0..seats).map(matching).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn everybody_has_one_partner_in_a_matching_and_everybody_else_in_all_of_them() {
        for players in [2, 4, 30] {
            let all = matchings(players);
            assert_eq!(all.len(), players - 1);
            for matching in &all {
                let playing: BTreeSet<usize> = matching.iter().flat_map(|(a, b)| [*a, *b]).collect();
                assert!(playing.into_iter().eq(0..players));
            }
            let pairs: BTreeSet<Pair> = all.iter().flatten().copied().collect();
            assert_eq!(pairs.len(), players * (players - 1) / 2);
            assert!(pairs.iter().all(|(a, b)| a < b));
        }
    }
}
