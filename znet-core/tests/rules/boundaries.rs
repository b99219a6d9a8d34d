//! Prefixes, names, identifiers, time and liveness: what is inside and what is not.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use znet_core::addr::{check_prefixes, draw_ula_prefix};
use znet_core::controller::Rejection;
use znet_core::controller::liveness::Liveness;
use znet_core::id::{NetworkId, NodeId, TokenId};
use znet_core::name::{MAX_NAME_LEN, Name};
use znet_core::time::Timestamp;

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn code(texts: &[&str]) -> Result<(), &'static str> {
    check_prefixes(&nets(texts)).map(drop).map_err(|rejection| rejection.code())
}

/// Bits in which a drawn prefix can differ from another: the Global ID of RFC 4193.
const GLOBAL_ID: u128 = ((1 << 40) - 1) << 80;

#[test]
fn a_drawn_prefix_is_a_ula_48_with_forty_bits_of_randomness() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let (mut ones, mut zeros) = (0u128, 0u128);
    for _ in 0..200 {
        let net = draw_ula_prefix(&mut rng);
        assert_eq!((net.prefix_len(), net.trunc()), (48, net));
        assert_eq!(net.network().octets()[0], 0xfd, "RFC 4193, section 3.1: prefix fc00::/7 with L = 1");
        assert_eq!(check_prefixes(&[net.into()]), Ok((Some(net), None)));
        let bits = u128::from(net.network());
        (ones, zeros) = (ones | bits, zeros | !bits);
    }
    // Every bit of the Global ID was seen as a one and as a zero, and no other bit changed.
    assert_eq!(ones & zeros, GLOBAL_ID);
}

#[test]
fn a_network_has_at_most_one_private_prefix_of_each_family() {
    assert_eq!(code(&[]), Ok(()));
    assert_eq!(code(&["fd12:3456:789a::/48", "10.1.0.0/16"]), Ok(()));
    for text in ["10.0.0.0/8", "172.16.0.0/12", "192.168.3.0/24", "100.64.0.0/10", "10.0.0.0/30"] {
        assert_eq!(code(&[text]), Ok(()), "{text}");
    }
    for text in
        ["fc00::/48", "2001:db8::/48", "fd00::/47", "fd00::/64", "8.8.8.0/24", "172.0.0.0/8", "10.0.0.0/31"]
    {
        assert_eq!(code(&[text]), Err("unusable_prefix"), "{text}");
    }
    assert_eq!(code(&["fd00::/48", "fd00:1::/48"]), Err("too_many_prefixes"));
    assert_eq!(code(&["10.0.0.0/24", "10.1.0.0/24"]), Err("too_many_prefixes"));
}

#[test]
fn host_bits_of_a_prefix_are_cut_off() {
    let (six, four) = check_prefixes(&nets(&["fd00::5/48", "10.0.0.9/24"])).unwrap();
    assert_eq!(six, Some("fd00::/48".parse::<Ipv6Net>().unwrap()));
    assert_eq!(four, Some("10.0.0.0/24".parse().unwrap()));
}

proptest! {
    #[test]
    fn of_overlapping_prefixes_two_are_named_and_of_others_none(
        ranges in prop::collection::vec((0u8..4, 0u8..4, 8u8..=26), 1..6),
    ) {
        let nets: Vec<IpNet> =
            ranges.iter().map(|(b, c, len)| format!("10.{b}.{c}.0/{len}").parse().unwrap()).collect();
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        let pairs = nets.iter().enumerate().flat_map(|(n, a)| nets.iter().skip(n + 1).map(move |b| (a, b)));
        let some_overlap = pairs.clone().any(|(a, b)| overlap(&a.trunc(), &b.trunc()));
        match check_prefixes(&nets) {
            Err(Rejection::OverlappingPrefixes { first, second }) => {
                prop_assert!(overlap(&first, &second));
                prop_assert!(nets.iter().filter(|net| [first, second].contains(&net.trunc())).count() >= 2);
            }
            _ => prop_assert!(!some_overlap),
        }
    }

    #[test]
    fn a_name_is_what_rfc_1123_calls_a_label_in_lower_case(text in "[a-zA-Z0-9_.é-]{0,66}") {
        let mut edges = text.chars().next().into_iter().chain(text.chars().next_back());
        let expected = (1..=MAX_NAME_LEN).contains(&text.len())
            && text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
            && edges.all(|c| c != '-');
        let name = text.parse::<Name>();
        prop_assert_eq!(name.is_ok(), expected, "{:?}", name);
        let json = serde_json::to_string(&text).unwrap();
        prop_assert_eq!(serde_json::from_str::<Name>(&json).is_ok(), expected);
    }

    #[test]
    fn labels_are_accepted_up_to_their_last_character(text in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?") {
        prop_assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
    }

    #[test]
    fn identifiers_survive_their_texts(a: [u8; 16], b: [u8; 32], c: [u8; 8]) {
        let (a, b, c) = (NetworkId::from_bytes(a), NodeId::from_bytes(b), TokenId::from_bytes(c));
        prop_assert_eq!(a.to_string().parse::<NetworkId>(), Ok(a));
        prop_assert_eq!(b.to_string().to_uppercase().parse::<NodeId>(), Ok(b));
        prop_assert_eq!(serde_json::from_str::<TokenId>(&serde_json::to_string(&c).unwrap()).unwrap(), c);
    }

    #[test]
    fn any_text_is_an_identifier_or_refused_without_a_panic(text in "[0-9a-fé+ ]{14,34}") {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        prop_assert_eq!(text.parse::<NetworkId>().is_ok(), digits && text.len() == 32);
        prop_assert_eq!(text.parse::<TokenId>().is_ok(), digits && text.len() == 16);
    }

    #[test]
    fn a_node_is_live_until_its_deadline_and_absent_from_then_on(
        steps in prop::collection::vec((0u8..4, 0u64..30, 0u8..6), 0..60),
        term in 0u64..20,
    ) {
        let term = Duration::from_millis(term);
        let (mut liveness, mut model) = (Liveness::default(), BTreeMap::<NodeId, Timestamp>::new());
        let mut now = Timestamp::from_millis(100);
        for (node, time, kind) in steps {
            let node = NodeId::from_bytes([node; 32]);
            match kind {
                0 => {
                    liveness.forget(&node);
                    model.remove(&node);
                }
                1 => now = Timestamp::from_millis(now.as_millis() + time),
                2 => {
                    // A clock that was set back, or a sign of life that was long under way.
                    let late = Timestamp::from_millis(now.as_millis() - time);
                    liveness.seen(node, late);
                    let seen = model.entry(node).or_insert(late);
                    *seen = late.max(*seen);
                }
                _ => {
                    liveness.seen(node, now);
                    model.insert(node, now);
                }
            }
            let live = |seen: Timestamp| seen.plus(term) > now;
            for node in (0..4).map(|n| NodeId::from_bytes([n; 32])) {
                prop_assert_eq!(liveness.last_seen(&node), model.get(&node).copied());
                prop_assert_eq!(liveness.is_live(&node, term, now), model.get(&node).is_some_and(|s| live(*s)));
            }
            let mut expected: Vec<_> = model.iter().filter(|(_, s)| !live(**s)).map(|(n, s)| (*s, *n)).collect();
            expected.sort();
            let absent: Vec<_> = liveness.absent(term, now).collect();
            prop_assert_eq!(absent, expected.into_iter().map(|(_, node)| node).collect::<Vec<_>>());
            let next = model.values().min().map(|seen| seen.plus(term));
            prop_assert_eq!(liveness.next_deadline(term), next);
        }
    }

    #[test]
    fn every_instant_has_a_text(millis: u64) {
        prop_assert!(!Timestamp::from_millis(millis).to_string().is_empty());
    }
}

#[test]
fn an_instant_is_shown_as_rfc_3339_says() {
    assert_eq!(Timestamp::from_millis(1_764_044_391_999).to_string(), "2025-11-25T04:19:51Z");
    assert_eq!(Timestamp::from_millis(u64::MAX).to_string(), "the end of time");
    assert_eq!(Timestamp::from_millis(253_402_300_799_999).to_string(), "9999-12-31T23:59:59Z");
    assert_eq!(Timestamp::from_millis(u64::MAX).plus(Duration::MAX), Timestamp::from_millis(u64::MAX));
}
