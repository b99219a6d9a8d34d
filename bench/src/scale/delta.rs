//! What a delta costs an agent, by the size of its map: decode, verify signature and digest, apply.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use prost::Message as _;
use znet_api::convert::{delta_from_wire, delta_to_wire};
use znet_api::v1;
use znet_core::id::{ContainerId, Epoch, NetworkId, NodeId, Revision};
use znet_core::key::{PublicKey, SigningKey};
use znet_core::map::{Change, ContainerRecord, Delta, Head, Map, Member, Record};

use crate::figures::Samples;

/// Deltas of one container each.
const DELTAS: u64 = 2_000;

/// Milliseconds for one delta in a map of so many containers, sorted.
pub(super) fn measure(containers: u64) -> Result<Samples> {
    let (network, key) = (NetworkId::from_bytes([7; 16]), SigningKey::from_seed(&[9; 32]));
    let mut map = Map::default();
    for number in 0..containers {
        map.put(container(number, 0)?);
    }
    let head = |revision: u64, map: &znet_core::map::SetHash| {
        let digest = map.digest();
        Head { network, epoch: Epoch::new(1), revision: Revision::new(revision), digest }.sign(&key)
    };
    let mut hash = map.set_hash(network);
    let mut member = Member::new(network, key.verifying_key());
    member.apply_snapshot(map.records(), &head(1, &hash))?;
    let mut took = Vec::new();
    for revision in 2..DELTAS + 2 {
        // Another one each time, all over the map, as changes come.
        let (old, new) = {
            let number = revision * 7_919 % containers;
            let id = container(number, 0)?.key();
            (map.get(id).context("no such container")?, container(number, revision)?)
        };
        hash.remove(&old);
        hash.add(&new);
        map.put(new.clone());
        let delta = Delta {
            from: Revision::new(revision - 1),
            to: Revision::new(revision),
            changes: vec![Change::Put(new)],
        };
        let bytes = delta_to_wire(&delta, &head(revision, &hash)).encode_to_vec();
        let begun = Instant::now();
        let (delta, signed) = delta_from_wire(&v1::Delta::decode(bytes.as_slice())?)?;
        member.apply_delta(&delta, &signed)?;
        took.push(begun.elapsed());
    }
    Ok(Samples::new(took))
}

/// Container `number` with its `version`-th key.
fn container(number: u64, version: u64) -> Result<Record> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key[8..16].copy_from_slice(&version.to_be_bytes());
    Ok(Record::Container(ContainerRecord {
        id: ContainerId::new(number + 1),
        name: format!("container-{number}").parse()?,
        node: NodeId::from_bytes([1; 32]),
        public_key: PublicKey::from_bytes(key),
        address6: Ipv6Addr::from_bits((0xfd_u128 << 120) | u128::from(number)),
        address4: None,
        also_key: None,
        rekey: false,
        port: None,
    }))
}

/// The sizes that are told of.
pub(super) const SIZES: [u64; 3] = [1_000, 10_000, 100_000];

/// The bound of one delta at each size.
pub(super) const BOUND: Duration = Duration::from_micros(50);
