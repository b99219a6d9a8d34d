//! From a question to its answer: no sockets, no clock, nothing kept.
//!
//! What is answered is the networks' own: `NAME.NETWORK.znet`, the names of addresses within their prefixes, and the
//! tops of these zones. Everything else is refused, as there is nobody to forward it to: a container must not reach
//! anything outside its networks through its resolver either. Messages are read and written by hickory; what is said
//! is decided here.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hickory_server::net::xfer::Protocol;
use hickory_server::proto::ProtoError;
use hickory_server::proto::op::{Edns, Header, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_server::proto::rr::{DNSClass, Name as DnsName, RData, Record, RecordType};
use hickory_server::proto::serialize::binary::{BinDecodable as _, BinDecoder, BinEncoder};
use hickory_server::server::Request;
use hickory_server::zone_handler::{MessageResponseBuilder, Queries};
use ipnet::IpNet;
use znet_core::name::Name;

use super::DOMAIN;
use super::names::{Directory, Entry, Names};

/// Seconds for which an answer may be kept. Asking again costs microseconds and no packet, so that caches gain nothing;
/// and a name that passed to another container is followed within this time. Not zero, which some caches take for an
/// error.
pub const TTL: u32 = 5;
/// Seconds for which it may be kept that there is nothing (RFC 2308, section 5): who waits for a container to come up
/// should not wait for a cache.
pub const NEGATIVE_TTL: u32 = 1;
/// Largest UDP answer in bytes, whatever the asker says that it takes (RFC 6891, section 6.2.3; DNS flag day 2020).
const MAX_UDP: u16 = 1_232;
/// What every asker takes over UDP (RFC 1035, section 4.2.1).
const MIN_UDP: u16 = 512;
/// Most records beside the question: EDNS and a signature.
const MAX_ADDITIONALS: u16 = 2;

/// How a question came, and so how long its answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A stream.
    Tcp,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A name or an address was found.
    Found,
    /// There is no such name, or nothing of this kind under it.
    Nothing,
    /// The question is none of ours.
    Refused,
    /// It is no question that can be understood.
    Malformed,
    /// No answer is due: too short to have one, or an answer itself.
    Ignored,
    /// No map of the network is known yet.
    Unknown,
}

/// The names of one network, and where they hang.
#[derive(Clone, Debug)]
pub struct Zone {
    origin: DnsName,
    directory: Arc<Directory>,
}

/// What a zone knows of a question.
enum Known {
    Records(Vec<Record>),
    NoSuchType(Box<Record>),
    NoSuchName(Box<Record>),
    NoMap,
    NotOurs,
}

impl Zone {
    /// The zone `NETWORK.znet`; `None` if that is no name, which no network's can be.
    pub fn new(network: &Name, directory: Arc<Directory>) -> Option<Self> {
        let origin = DnsName::from_labels([network.as_str().as_bytes(), DOMAIN.as_bytes()]).ok()?;
        Some(Self { origin, directory })
    }

    fn ask(&self, name: &DnsName, kind: RecordType) -> Known {
        let names = self.directory.read();
        if self.origin.zone_of(name) {
            return self.forward(&names, name, kind);
        }
        match name.parse_arpa_name() {
            Ok(net) => self.reverse(&names, name, net, kind),
            // Such as one label too many below an address of ours.
            Err(_) => match names.prefixes().iter().map(top).find(|top| top.zone_of(name)) {
                Some(top) => Known::NoSuchName(soa(&names, &top)),
                None => Known::NotOurs,
            },
        }
    }

    fn forward(&self, names: &Names, name: &DnsName, kind: RecordType) -> Known {
        if names.prefixes().is_empty() {
            return Known::NoMap;
        }
        let below = name.iter().count().saturating_sub(self.origin.iter().count());
        if below == 0 {
            return at_top(names, &self.origin, name, kind);
        }
        let label = name.iter().next().filter(|_| below == 1).and_then(|label| str::from_utf8(label).ok());
        match label.and_then(|label| label.parse().ok()).and_then(|label: Name| names.named(&label)) {
            Some(entry) => some(addresses(entry, name, kind), || soa(names, &self.origin)),
            None => Known::NoSuchName(soa(names, &self.origin)),
        }
    }

    fn reverse(&self, names: &Names, name: &DnsName, net: IpNet, kind: RecordType) -> Known {
        for prefix in names.prefixes() {
            let top = top(prefix);
            if top == *name {
                return at_top(names, &top, name, kind);
            }
            if !prefix.contains(&net) {
                continue;
            }
            // Names of less than an address lead to names and have nothing themselves (RFC 8020).
            if net.prefix_len() < net.max_prefix_len() {
                return Known::NoSuchType(soa(names, &top));
            }
            // A number may be written in several ways, of which one is the name.
            let entry = names.at(net.addr()).filter(|_| DnsName::from(net.addr()) == *name);
            return match entry {
                Some(entry) => some(self.pointer(entry, name, kind), || soa(names, &top)),
                None => Known::NoSuchName(soa(names, &top)),
            };
        }
        Known::NotOurs
    }

    fn pointer(&self, entry: &Entry, name: &DnsName, kind: RecordType) -> Vec<Record> {
        let target = self.origin.prepend_label(entry.name.as_str().as_bytes()).ok();
        let target = target.filter(|_| matches!(kind, RecordType::PTR | RecordType::ANY));
        let record = |target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)));
        target.map(record).into_iter().collect()
    }
}

fn some(records: Vec<Record>, soa: impl FnOnce() -> Box<Record>) -> Known {
    if records.is_empty() { Known::NoSuchType(soa()) } else { Known::Records(records) }
}

fn addresses(entry: &Entry, name: &DnsName, kind: RecordType) -> Vec<Record> {
    let four = entry.address4.filter(|_| matches!(kind, RecordType::A | RecordType::ANY));
    let six = Some(entry.address6).filter(|_| matches!(kind, RecordType::AAAA | RecordType::ANY));
    let four = four.map(|address| RData::A(A(address)));
    let six = six.map(|address| RData::AAAA(AAAA(address)));
    four.into_iter().chain(six).map(|data| Record::from_rdata(name.clone(), TTL, data)).collect()
}

/// The top of a zone has no server or mailbox that could be named: it names itself (RFC 6303, section 3).
fn at_top(names: &Names, top: &DnsName, name: &DnsName, kind: RecordType) -> Known {
    let ns = || Record::from_rdata(name.clone(), TTL, RData::NS(NS(top.clone())));
    match kind {
        RecordType::SOA => Known::Records(vec![*soa(names, top)]),
        RecordType::NS => Known::Records(vec![ns()]),
        RecordType::ANY => Known::Records(vec![*soa(names, top), ns()]),
        _ => Known::NoSuchType(soa(names, top)),
    }
}

fn soa(names: &Names, top: &DnsName) -> Box<Record> {
    let nobody = DnsName::from_labels(["nobody", "invalid"]).unwrap_or_default();
    // Serial numbers wrap (RFC 1982).
    let serial = (names.revision().get() & u64::from(u32::MAX)) as u32;
    let data = SOA::new(top.clone(), nobody, serial, 3_600, 1_200, 604_800, NEGATIVE_TTL);
    Box::new(Record::from_rdata(top.clone(), NEGATIVE_TTL, RData::SOA(data)))
}

/// The name under which the names of a prefix's addresses hang: where the prefix ends within a label, the next above.
/// Names below it that are not of the prefix are refused all the same.
fn top(prefix: &IpNet) -> DnsName {
    let bits = if prefix.addr().is_ipv4() { 8 } else { 4 };
    let missing = (prefix.max_prefix_len() - prefix.prefix_len()).div_ceil(bits);
    let full = DnsName::from(prefix.addr());
    let labels = full.iter().count().saturating_sub(usize::from(missing));
    full.trim_to(labels)
}

/// Answers a message out of these zones, if an answer is due. Whatever the message, the answer is bounded.
pub fn answer(zones: &[Zone], message: &[u8], transport: Transport) -> (Verdict, Option<Vec<u8>>) {
    // What the reader thinks of malformed messages is nothing to fill the agent's log with.
    let nobody = tracing::Dispatch::none();
    tracing::dispatcher::with_default(&nobody, || answer_quietly(zones, message, transport))
}

fn answer_quietly(zones: &[Zone], message: &[u8], transport: Transport) -> (Verdict, Option<Vec<u8>>) {
    let Ok(header) = Header::read(&mut BinDecoder::new(message)) else { return (Verdict::Ignored, None) };
    if header.metadata.message_type == MessageType::Response {
        return (Verdict::Ignored, None);
    }
    let bare = |verdict, code| (verdict, bare(&header.metadata, code).ok());
    if header.metadata.op_code != OpCode::Query {
        return bare(Verdict::Malformed, ResponseCode::NotImp);
    }
    // Looked at before the rest is read, as room is made for as many as are announced.
    let counts = header.counts;
    let usual = counts.queries == 1 && counts.answers == 0 && counts.authorities == 0;
    if !usual || counts.additionals > MAX_ADDITIONALS {
        return bare(Verdict::Malformed, ResponseCode::FormErr);
    }
    let (protocol, longest) = match transport {
        Transport::Udp => (Protocol::Udp, MIN_UDP),
        Transport::Tcp => (Protocol::Tcp, u16::MAX),
    };
    let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let Ok(request) = Request::from_bytes(message.to_vec(), from, protocol) else {
        return bare(Verdict::Malformed, ResponseCode::FormErr);
    };
    let edns = request.edns.as_ref().map(|asked| {
        let mut edns = Edns::new();
        // The bit is to be copied by who does not sign as well (RFC 3225, section 3).
        edns.set_max_payload(MAX_UDP).set_version(0).flags_mut().dnssec_ok = asked.flags().dnssec_ok;
        edns
    });
    let longest = match (&request.edns, transport) {
        (Some(asked), Transport::Udp) => asked.max_payload().clamp(MIN_UDP, MAX_UDP),
        _ => longest,
    };
    let newer = request.edns.as_ref().is_some_and(|asked| asked.version() > 0);
    let found = if newer { Err(ResponseCode::BADVERS) } else { lookup(zones, &request) };
    reply(&request, found, edns.as_ref(), longest)
}

/// The first zone that has the name, or else that says what is missing.
fn lookup(zones: &[Zone], request: &Request) -> Result<Known, ResponseCode> {
    let Some(query) = request.queries.queries().first() else { return Err(ResponseCode::FormErr) };
    let kind = query.query_type();
    let whole = matches!(kind, RecordType::AXFR | RecordType::IXFR);
    if query.query_class() != DNSClass::IN || whole {
        return Ok(Known::NotOurs);
    }
    let asked = query.original().name();
    let name = asked.to_lowercase();
    let mut best = Known::NotOurs;
    for zone in zones {
        match (zone.ask(&name, kind), &best) {
            (Known::Records(mut records), _) => {
                // As it was asked, capitals and all: some tell their answers from forged ones by that.
                records
                    .iter_mut()
                    .filter(|record| record.name == *asked)
                    .for_each(|r| r.name = asked.clone());
                return Ok(Known::Records(records));
            }
            (Known::NotOurs, _) => {}
            (missing, Known::NotOurs | Known::NoSuchName(_)) => best = missing,
            _ => {}
        }
    }
    Ok(best)
}

fn reply(
    request: &Request,
    found: Result<Known, ResponseCode>,
    edns: Option<&Edns>,
    longest: u16,
) -> (Verdict, Option<Vec<u8>>) {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    let (verdict, code, answers, soa) = match found {
        Ok(Known::Records(records)) => (Verdict::Found, ResponseCode::NoError, records, None),
        Ok(Known::NoSuchType(soa)) => (Verdict::Nothing, ResponseCode::NoError, vec![], Some(soa)),
        Ok(Known::NoSuchName(soa)) => (Verdict::Nothing, ResponseCode::NXDomain, vec![], Some(soa)),
        Ok(Known::NoMap) => (Verdict::Unknown, ResponseCode::ServFail, vec![], None),
        Ok(Known::NotOurs) => (Verdict::Refused, ResponseCode::Refused, vec![], None),
        Err(code) => (Verdict::Malformed, code, vec![], None),
    };
    metadata.response_code = code;
    metadata.authoritative = matches!(verdict, Verdict::Found | Verdict::Nothing);
    let none = || std::iter::empty::<&Record>();
    let message = MessageResponseBuilder::new(&request.queries, edns).build(
        metadata,
        answers.iter(),
        none(),
        soa.iter().map(AsRef::as_ref),
        none(),
    );
    let mut bytes = Vec::with_capacity(usize::from(MIN_UDP));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(longest);
    let written = message.destructive_emit(&mut encoder);
    (verdict, written.is_ok().then_some(bytes))
}

/// An answer that repeats no question, to a message of which only the header can be trusted.
fn bare(asked: &Metadata, code: ResponseCode) -> Result<Vec<u8>, ProtoError> {
    let nothing = Queries::read(&mut BinDecoder::new(&[]), 0)?;
    let message = MessageResponseBuilder::new(&nothing, None).error_msg(asked, code);
    let mut bytes = Vec::with_capacity(usize::from(MIN_UDP));
    message.destructive_emit(&mut BinEncoder::new(&mut bytes))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
