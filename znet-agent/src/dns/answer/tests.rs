#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::net::{IpAddr, Ipv6Addr};

use hickory_server::proto::op::{Message, Query};
use hickory_server::proto::serialize::binary::BinEncodable as _;
use proptest::prelude::*;
use znet_core::id::{ContainerId, NetworkId, NodeId, Revision};
use znet_core::key::PublicKey;
use znet_core::map::{Change, ContainerRecord, NetworkRecord, Record as MapRecord};

use super::*;

/// A zone with these containers, whose addresses are counted from 2 on.
fn zone(network: &str, six: &str, four: Option<&str>, containers: &[&str]) -> Zone {
    let (prefix6, prefix4): (ipnet::Ipv6Net, Option<ipnet::Ipv4Net>) =
        (six.parse().unwrap(), four.map(|four| four.parse().unwrap()));
    let name: Name = network.parse().unwrap();
    let record = NetworkRecord {
        id: NetworkId::from_bytes([7; 16]),
        name: name.clone(),
        prefix6,
        prefix4,
        controllers: vec![],
    };
    let mut changes = vec![Change::Put(MapRecord::Network(record))];
    for (number, container) in (2u32..).zip(containers) {
        changes.push(Change::Put(MapRecord::Container(ContainerRecord {
            id: ContainerId::new(number.into()),
            name: container.parse().unwrap(),
            node: NodeId::from_bytes([1; 32]),
            public_key: PublicKey::from_bytes([2; 32]),
            address6: Ipv6Addr::from(u128::from(prefix6.network()) + u128::from(number)),
            address4: prefix4.map(|prefix| Ipv4Addr::from(u32::from(prefix.network()) + number)),
            also_key: None,
            rekey: false,
            port: None,
        })));
    }
    let directory = Arc::new(Directory::default());
    directory.apply(&changes, Revision::new((1 << 32) + 9));
    Zone::new(&name, directory).unwrap()
}

fn acme() -> Zone {
    zone("acme", "fd77:7777:7777::/48", Some("10.77.0.0/16"), &["web", "db"])
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    // By its labels, as on the wire, where there is no syntax that could refuse some.
    let labels = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    message.add_query(Query::query(DnsName::from_labels(labels).unwrap(), kind));
    message
}

fn ask_message(zones: &[Zone], message: &Message, transport: Transport) -> (Verdict, Message) {
    let (verdict, bytes) = answer(zones, &message.to_bytes().unwrap(), transport);
    (verdict, Message::from_vec(&bytes.unwrap()).unwrap())
}

fn ask(zones: &[Zone], name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let (_, answer) = ask_message(zones, &question(name, kind), Transport::Udp);
    assert_eq!(answer.metadata.id, 4711);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert!(answer.metadata.recursion_desired && !answer.metadata.recursion_available);
    assert_eq!(answer.queries.len(), 1);
    let texts = answer.answers.iter().map(|record| record.data.to_string()).collect();
    (answer.metadata.response_code, texts)
}

fn pointer(address: &str) -> String {
    DnsName::from(address.parse::<IpAddr>().unwrap()).to_ascii()
}

fn found(texts: &[&str]) -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, texts.iter().map(|text| (*text).to_owned()).collect())
}

fn missing(code: ResponseCode) -> (ResponseCode, Vec<String>) {
    (code, Vec::new())
}

#[test]
fn a_container_is_found_by_name_in_both_families_and_by_both_addresses() {
    let zones = [acme()];
    assert_eq!(ask(&zones, "web.acme.znet.", RecordType::A), found(&["10.77.0.2"]));
    assert_eq!(ask(&zones, "db.acme.znet.", RecordType::AAAA), found(&["fd77:7777:7777::3"]));
    assert_eq!(ask(&zones, "db.acme.znet.", RecordType::ANY), found(&["10.77.0.3", "fd77:7777:7777::3"]));
    assert_eq!(ask(&zones, &pointer("10.77.0.3"), RecordType::PTR), found(&["db.acme.znet."]));
    assert_eq!(ask(&zones, &pointer("fd77:7777:7777::2"), RecordType::PTR), found(&["web.acme.znet."]));
}

#[test]
fn capitals_do_not_matter_and_come_back_as_they_were() {
    let (verdict, answer) =
        ask_message(&[acme()], &question("wEb.AcMe.zNeT.", RecordType::A), Transport::Udp);
    assert_eq!(verdict, Verdict::Found);
    assert_eq!(answer.queries[0].name().to_ascii(), "wEb.AcMe.zNeT.");
    assert_eq!(answer.answers[0].name.to_ascii(), "wEb.AcMe.zNeT.");
    assert_eq!(answer.answers[0].ttl, TTL);
    assert!(answer.metadata.authoritative);
}

#[test]
fn what_is_not_there_is_said_at_once_with_how_long_that_may_be_kept() {
    let zones = [zone("acme", "fd77::/48", None, &["web"])];
    for (name, kind, code) in [
        ("nobody.acme.znet.", RecordType::A, ResponseCode::NXDomain),
        ("a.web.acme.znet.", RecordType::A, ResponseCode::NXDomain),
        ("*.acme.znet.", RecordType::A, ResponseCode::NXDomain),
        ("under_score.acme.znet.", RecordType::AAAA, ResponseCode::NXDomain),
        ("web.acme.znet.", RecordType::A, ResponseCode::NoError),
        ("web.acme.znet.", RecordType::MX, ResponseCode::NoError),
        ("acme.znet.", RecordType::AAAA, ResponseCode::NoError),
        (&pointer("fd77::9"), RecordType::PTR, ResponseCode::NXDomain),
        (&pointer("fd77::2"), RecordType::TXT, ResponseCode::NoError),
        ("0.0.0.0.0.0.0.0.7.7.d.f.ip6.arpa.", RecordType::PTR, ResponseCode::NoError),
        ("g.0.0.0.0.0.0.0.0.7.7.d.f.ip6.arpa.", RecordType::PTR, ResponseCode::NXDomain),
    ] {
        let (verdict, answer) = ask_message(&zones, &question(name, kind), Transport::Udp);
        assert_eq!((verdict, answer.metadata.response_code), (Verdict::Nothing, code), "{name} {kind}");
        assert!(answer.answers.is_empty() && answer.metadata.authoritative, "{name} {kind}");
        let [soa] = answer.authorities.as_slice() else { unreachable!("{name}: {:?}", answer.authorities) };
        let RData::SOA(data) = &soa.data else { unreachable!("{soa}") };
        assert_eq!((soa.ttl, data.minimum, data.serial), (NEGATIVE_TTL, NEGATIVE_TTL, 9), "{name} {kind}");
        assert!(soa.name.zone_of(&DnsName::from_ascii(name).unwrap()), "{name}: {}", soa.name);
    }
}

#[test]
fn the_tops_of_the_zones_name_themselves() {
    let zones = [acme()];
    for top in ["acme.znet.", "77.10.in-addr.arpa.", "7.7.7.7.7.7.7.7.7.7.d.f.ip6.arpa."] {
        assert_eq!(ask(&zones, top, RecordType::NS), found(&[top]));
        let (code, texts) = ask(&zones, top, RecordType::SOA);
        assert_eq!((code, texts.len()), (ResponseCode::NoError, 1), "{top}");
        assert!(texts[0].starts_with(&format!("{top} nobody.invalid. 9 ")), "{texts:?}");
    }
}

#[test]
fn nothing_outside_the_networks_own_names_and_addresses_is_answered() {
    let zones = [zone("acme", "fd77::/48", Some("10.77.0.8/29"), &["web"])];
    for name in [
        ".",
        "znet.",
        "example.com.",
        "web.acme.znet.example.com.",
        "other.znet.",
        "web.other.znet.",
        "xacme.znet.",
        "arpa.",
        "10.in-addr.arpa.",
        "77.10.in-addr.arpa.",
        "1.0.78.10.in-addr.arpa.",
        &pointer("10.77.0.7"),
        &pointer("10.77.0.16"),
        &pointer("fd78::2"),
        "7.7.d.f.ip6.arpa.",
    ] {
        for kind in [RecordType::A, RecordType::PTR, RecordType::SOA, RecordType::ANY] {
            assert_eq!(ask(&zones, name, kind), missing(ResponseCode::Refused), "{name} {kind}");
        }
    }
    assert_eq!(ask(&zones, &pointer("10.77.0.10"), RecordType::PTR), found(&["web.acme.znet."]));
    assert_eq!(ask(&zones, &pointer("10.77.0.9"), RecordType::PTR), missing(ResponseCode::NXDomain));
    assert_eq!(ask(&zones, "acme.znet.", RecordType::AXFR), missing(ResponseCode::Refused));
}

#[test]
fn a_number_has_one_name_however_it_can_be_written() {
    let zones = [acme()];
    for name in ["02.0.77.10.in-addr.arpa.", "+2.0.77.10.in-addr.arpa.", "2.00.77.10.in-addr.arpa."] {
        assert_eq!(ask(&zones, name, RecordType::PTR), missing(ResponseCode::NXDomain), "{name}");
    }
}

#[test]
fn a_namespace_in_two_networks_knows_both_and_one_alone_knows_nothing_of_the_other() {
    let (acme, blue) = (acme(), zone("blue", "fd88::/48", Some("10.77.0.0/16"), &["web", "db", "only"]));
    let both = [acme.clone(), blue.clone()];
    assert_eq!(ask(&both, "web.acme.znet.", RecordType::AAAA), found(&["fd77:7777:7777::2"]));
    assert_eq!(ask(&both, "web.blue.znet.", RecordType::AAAA), found(&["fd88::2"]));
    // With equal prefixes the first that knows an address tells its name.
    assert_eq!(ask(&both, &pointer("10.77.0.4"), RecordType::PTR), found(&["only.blue.znet."]));
    for (zones, foreign) in [([acme], "only.blue.znet."), ([blue], "web.acme.znet.")] {
        assert_eq!(ask(&zones, foreign, RecordType::A), missing(ResponseCode::Refused));
    }
}

#[test]
fn as_long_as_no_map_is_known_nobody_is_told_that_a_name_is_missing() {
    let zones = [Zone::new(&"acme".parse().unwrap(), Arc::default()).unwrap()];
    assert_eq!(ask(&zones, "web.acme.znet.", RecordType::A), missing(ResponseCode::ServFail));
}

#[test]
fn answers_follow_the_map() {
    let zone = acme();
    let zones = [zone.clone()];
    assert_eq!(ask(&zones, "new.acme.znet.", RecordType::A), missing(ResponseCode::NXDomain));
    let record = ContainerRecord {
        id: ContainerId::new(99),
        name: "new".parse().unwrap(),
        node: NodeId::from_bytes([1; 32]),
        public_key: PublicKey::from_bytes([2; 32]),
        address6: "fd77:7777:7777::99".parse().unwrap(),
        address4: Some(Ipv4Addr::new(10, 77, 0, 99)),
        also_key: None,
        rekey: false,
        port: None,
    };
    zone.directory.apply(&[Change::Put(MapRecord::Container(record))], Revision::new(10));
    assert_eq!(ask(&zones, "new.acme.znet.", RecordType::A), found(&["10.77.0.99"]));
}

#[test]
fn edns_is_answered_in_kind_and_its_sizes_are_bounded() {
    let mut message = question("web.acme.znet.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(u16::MAX).flags_mut().dnssec_ok = true;
    message.edns = Some(edns.clone());
    let (_, answer) = ask_message(&[acme()], &message, Transport::Udp);
    let said = answer.edns.unwrap();
    assert_eq!((said.max_payload(), said.version(), said.flags().dnssec_ok), (MAX_UDP, 0, true));
    edns.set_version(1);
    message.edns = Some(edns);
    let (verdict, answer) = ask_message(&[acme()], &message, Transport::Udp);
    let code = u16::from(answer.metadata.response_code);
    assert_eq!((verdict, code), (Verdict::Malformed, u16::from(ResponseCode::BADVERS)));
    // Whatever there is to say fits.
    let long = "a".repeat(63);
    let zones = [zone(&long, "fd77::/48", Some("10.77.0.0/16"), &[&long])];
    for transport in [Transport::Udp, Transport::Tcp] {
        let message = question(&format!("{long}.{long}.znet."), RecordType::ANY);
        let (_, answer) = ask_message(&zones, &message, transport);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (2, false));
    }
}

#[test]
fn what_is_no_question_is_told_so_or_not_answered() {
    let zones = [acme()];
    let asked = question("web.acme.znet.", RecordType::A).to_bytes().unwrap();
    let code = |bytes: &[u8]| {
        let (verdict, answer) = answer(&zones, bytes, Transport::Udp);
        (verdict, answer.map(|bytes| Message::from_vec(&bytes).unwrap().metadata.response_code))
    };
    assert_eq!(code(&asked), (Verdict::Found, Some(ResponseCode::NoError)));
    assert_eq!(code(&asked[..11]), (Verdict::Ignored, None));
    assert_eq!(code(&asked[..20]), (Verdict::Malformed, Some(ResponseCode::FormErr)));
    let changed = |at: usize, to: u8| {
        let mut bytes = asked.clone();
        bytes[at] = to;
        code(&bytes)
    };
    // An answer, an update, no question, two questions, an answer within, 65,280 additional records.
    assert_eq!(changed(2, 0x80), (Verdict::Ignored, None));
    assert_eq!(changed(2, 5 << 3), (Verdict::Malformed, Some(ResponseCode::NotImp)));
    for (at, to) in [(5, 0), (5, 2), (7, 1), (9, 1), (10, 0xff)] {
        assert_eq!(changed(at, to), (Verdict::Malformed, Some(ResponseCode::FormErr)), "byte {at}");
    }
}

proptest! {
    #[test]
    fn no_bytes_do_harm_and_every_answer_is_bounded_and_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        harmless(&bytes)?;
    }

    #[test]
    fn damaged_questions_do_no_harm(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in 0usize..80) {
        let mut message = question("web.acme.znet.", RecordType::A);
        message.edns = Some(Edns::new());
        let mut bytes = message.to_bytes().unwrap();
        for (at, to) in damage {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 2).max(1));
        harmless(&bytes)?;
    }

    #[test]
    fn every_name_of_a_map_is_found_and_leads_back(names in prop::collection::btree_set("[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", 1..40)) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let zones = [zone("net", "fd12:3456:789a::/48", Some("10.0.0.0/8"), &names)];
        for name in names {
            let full = format!("{name}.net.znet.");
            for kind in [RecordType::A, RecordType::AAAA] {
                let (code, texts) = ask(&zones, &full, kind);
                prop_assert_eq!((code, texts.len()), (ResponseCode::NoError, 1));
                prop_assert_eq!(ask(&zones, &pointer(&texts[0]), RecordType::PTR), found(&[&full]));
            }
        }
    }
}

fn harmless(bytes: &[u8]) -> Result<(), TestCaseError> {
    let zones = [acme()];
    let (verdict, said) = answer(&zones, bytes, Transport::Udp);
    prop_assert_eq!(said.is_none(), verdict == Verdict::Ignored);
    if let Some(said) = said {
        prop_assert!(said.len() <= usize::from(MAX_UDP));
        let read = Message::from_vec(&said).unwrap();
        prop_assert_eq!(&read.metadata.id.to_be_bytes()[..], &bytes[..2]);
        prop_assert_eq!(read.metadata.message_type, MessageType::Response);
    }
    Ok(())
}
