//! Where a node looks for a network's controllers, and by which keys it knows them: what join tokens said, until the map,
//! which the network signs, says something newer.

use znet_api::token::JoinToken;
use znet_core::id::{Epoch, Pin, Revision};
use znet_core::key::VerifyingKey;
use znet_core::map::{ControllerRecord, MAX_LINE, Map, Succession};

use crate::files::Membership;

/// Most tokens that are remembered as used; one that was forgotten counts as new.
const MAX_TOKENS: usize = 32;
/// Most signing keys that are remembered as followed by another.
const MAX_FORMER_KEYS: usize = 2 * MAX_LINE;

impl Membership {
    /// What is kept of a token with which this node becomes a member.
    pub fn of(token: &JoinToken) -> Self {
        Self {
            network: token.network,
            name: token.name.clone(),
            endpoints: token.endpoints.clone(),
            pin: token.pin,
            pin_since: None,
            tokens: vec![token.id],
            former_keys: Vec::new(),
            verifying_key: token.verifying_key,
            port: 0,
        }
    }

    /// Takes over what a token says of the controllers, where the map that is applied stands at `applied`. A token that was
    /// taken before says nothing new, however often it is given: the map may have said something newer since.
    pub fn take(&mut self, token: &JoinToken, applied: Option<(Epoch, Revision)>) {
        if self.tokens.contains(&token.id) {
            return;
        }
        // An earlier version did not write down which tokens it took.
        if !(self.tokens.is_empty() && self.pin == token.pin) {
            self.pin_since = applied;
        }
        self.tokens.push(token.id);
        if self.tokens.len() > MAX_TOKENS {
            self.tokens.remove(0);
        }
        (self.endpoints, self.pin) = (token.endpoints.clone(), token.pin);
        // An old token does not bring back a key that another has followed.
        if !self.former_keys.contains(&token.verifying_key) {
            self.believe(token.verifying_key);
        }
    }

    /// Believes another signing key from now on, and the one before no more.
    fn believe(&mut self, key: VerifyingKey) {
        if key != self.verifying_key {
            self.leave(self.verifying_key);
            self.verifying_key = key;
        }
    }

    /// Believes the key to which a line leads that was followed, and none of those on the way.
    pub fn follow(&mut self, line: &[Succession]) {
        for step in line {
            self.leave(step.from);
            self.verifying_key = step.to;
        }
    }

    fn leave(&mut self, key: VerifyingKey) {
        if !self.former_keys.contains(&key) {
            self.former_keys.push(key);
        }
        if self.former_keys.len() > MAX_FORMER_KEYS {
            self.former_keys.remove(0);
        }
    }

    /// Where the controllers are: those of the map, then those of the token. Once the map tells by which keys they are known,
    /// the token's key is one of them or is believed no more, unless the token came after that map.
    pub fn places(&self, map: &Map, applied: Option<(Epoch, Revision)>) -> Vec<ControllerRecord> {
        let listed = map.network().map(|network| network.controllers.as_slice()).unwrap_or_default();
        let fresh = self.pin_since.is_some_and(|since| applied.is_none_or(|applied| applied <= since));
        let own = (fresh || listed.is_empty()).then_some(self.pin);
        let believed = |pins: &[Pin]| {
            let mut all = pins.to_vec();
            all.extend(own.filter(|own| !pins.contains(own)));
            all
        };
        let mut places: Vec<ControllerRecord> = listed
            .iter()
            .map(|place| ControllerRecord { address: place.address.clone(), pins: believed(&place.pins) })
            .collect();
        let mut known: Vec<Pin> = Vec::new();
        for pin in listed.iter().flat_map(|place| &place.pins) {
            if !known.contains(pin) {
                known.push(*pin);
            }
        }
        let pins = believed(&known);
        for address in &self.endpoints {
            if !places.iter().any(|place| place.address == *address) {
                places.push(ControllerRecord { address: address.clone(), pins: pins.clone() });
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use znet_core::controller::TokenSecret;
    use znet_core::id::{NetworkId, TokenId};
    use znet_core::key::SigningKey;
    use znet_core::map::{NetworkRecord, Record};

    use super::*;

    const NETWORK: NetworkId = NetworkId::from_bytes([1; 16]);

    fn pin(number: u8) -> Pin {
        Pin::from_bytes([number; 32])
    }

    fn token(number: u8, endpoint: &str) -> JoinToken {
        JoinToken {
            network: NETWORK,
            name: "acme".parse().unwrap(),
            endpoints: vec![endpoint.to_owned()],
            pin: pin(number),
            verifying_key: SigningKey::from_seed(&[7; 32]).verifying_key(),
            id: TokenId::from_bytes([number; 8]),
            secret: TokenSecret::from_bytes([number; 32]),
        }
    }

    fn map(address: &str, pins: &[Pin]) -> Map {
        let controllers = vec![ControllerRecord { address: address.to_owned(), pins: pins.to_vec() }];
        let (name, prefix6) = ("acme".parse().unwrap(), "fd00::/48".parse().unwrap());
        [Record::Network(NetworkRecord { id: NETWORK, name, prefix6, prefix4: None, controllers })]
            .into_iter()
            .collect()
    }

    fn at(revision: u64) -> Option<(Epoch, Revision)> {
        Some((Epoch::default(), Revision::new(revision)))
    }

    fn texts(places: &[ControllerRecord]) -> Vec<(&str, Vec<u8>)> {
        let first = |pin: &Pin| pin.as_bytes()[0];
        places.iter().map(|place| (place.address.as_str(), place.pins.iter().map(first).collect())).collect()
    }

    #[test]
    fn the_maps_controllers_come_first_and_their_keys_replace_the_tokens() {
        let kept = Membership::of(&token(1, "old:1"));
        assert_eq!(texts(&kept.places(&Map::default(), None)), [("old:1", vec![1])]);
        let moved = map("new:1", &[pin(3), pin(2)]);
        assert_eq!(texts(&kept.places(&moved, at(5))), [("new:1", vec![3, 2]), ("old:1", vec![3, 2])]);
        let same = map("old:1", &[pin(1)]);
        assert_eq!(texts(&kept.places(&same, at(5))), [("old:1", vec![1])]);
    }

    #[test]
    fn keys_on_the_way_of_a_line_are_not_brought_back_by_old_tokens_and_a_new_key_is_taken_from_a_new_one() {
        let key = |number: u8| SigningKey::from_seed(&[number; 32]);
        let line = [7, 8].map(|at| Succession::sign(NETWORK, &key(at), key(at + 1).verifying_key()));
        let mut kept = Membership::of(&token(1, "old:1"));
        kept.follow(&line);
        assert_eq!(kept.former_keys, [7, 8].map(|at| key(at).verifying_key()));
        for (number, signs, believed) in [(2, 7, 9), (3, 8, 9), (4, 9, 9), (5, 10, 10), (6, 9, 10)] {
            let token = JoinToken { verifying_key: key(signs).verifying_key(), ..token(number, "old:1") };
            kept.take(&token, None);
            assert_eq!(kept.verifying_key, key(believed).verifying_key(), "token {number}");
        }
    }

    #[test]
    fn a_new_token_is_believed_until_the_map_says_something_newer_and_an_old_one_says_nothing() {
        let mut kept = Membership::of(&token(1, "old:1"));
        let listed = map("a:1", &[pin(2)]);
        kept.take(&token(4, "b:1"), at(5));
        assert_eq!(texts(&kept.places(&listed, at(5))), [("a:1", vec![2, 4]), ("b:1", vec![2, 4])]);
        assert_eq!(texts(&kept.places(&listed, at(6))), [("a:1", vec![2]), ("b:1", vec![2])]);
        kept.take(&token(1, "old:1"), at(6));
        kept.take(&token(4, "b:1"), at(6));
        assert_eq!(texts(&kept.places(&listed, at(6))), [("a:1", vec![2]), ("b:1", vec![2])]);
    }
}
