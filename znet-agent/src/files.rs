//! What the agent keeps on disk: its own key, its memberships without secrets, its attachments without keys, what people's files
//! name of its access points, and the
//! last map of each network that it could verify. Files are replaced whole, so a crash leaves the old or the new one.
//!
//! Nobody can log in to a node, so a damaged file never keeps it from starting: what cannot be read is put aside, and
//! the controller's map tells what is missing. Nor does a full disk: what is on it stays as it was, and what cannot be
//! written now is written later.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use prost::Message as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use znet_api::convert::delta_from_wire;
use znet_api::tls::Identity;
use znet_api::v1;
use znet_core::id::{ContainerId, Epoch, NetworkId, Pin, Revision, TokenId};
use znet_core::key::VerifyingKey;
use znet_core::map::{Member, Record, Refusal, SignedHead};
use znet_core::name::Name;
use znet_local::Owner;

use crate::access::Kept;
use crate::error::AgentError;
use crate::host::netns::NetnsId;

/// Largest map file in bytes that is written or read: some 400,000 containers.
const MAX_MAP_FILE: u64 = 64 << 20;

/// Where the last verified maps are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum MapCache {
    /// On disk as well: an agent that starts with the controller away knows the network.
    #[default]
    Disk,
    /// In memory alone: nobody who takes the disk learns who is in the network.
    Memory,
}

/// What is kept of a join token once it was used: everything but the secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Membership {
    /// The network.
    pub network: NetworkId,
    /// Its name.
    pub name: Name,
    /// Where its controller can be reached.
    pub endpoints: Vec<String>,
    /// The pin of the controller's TLS key.
    pub pin: Pin,
    /// Which map was applied when a later token brought this pin: one after it replaces the pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_since: Option<(Epoch, Revision)>,
    /// The tokens that were taken, by their handles; they say nothing new.
    #[serde(default)]
    pub tokens: Vec<TokenId>,
    /// The keys that signed heads before, the first one first; they are believed no more, but for what is on this node's disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_keys: Vec<VerifyingKey>,
    /// The key that signs the network's heads.
    pub verifying_key: VerifyingKey,
    /// The UDP port that this node uses for the network.
    pub port: u16,
}

/// An attached container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The container.
    pub container: ContainerId,
    /// Its name.
    pub name: Name,
    /// The path by which its namespace was given.
    pub netns: PathBuf,
    /// Which namespace that was.
    pub netns_id: NetnsId,
    /// The interface inside.
    pub ifname: String,
    /// The map holds the container from this revision on.
    pub revision: Revision,
    /// The name under which `wg(8)` finds the device.
    pub device: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Who made it; `None` when that was a person or a tool, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// It has no resolver, as it asked for none.
    #[serde(default)]
    pub no_dns: bool,
    /// Since when, in seconds since 1970, its device is lent: see [`crate::lent`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lent: Option<u64>,
    /// The UDP port of its own device, where the kernel serves it.
    #[serde(default)]
    pub port: Option<NonZeroU16>,
}

/// The agent's directory, held by one agent at a time.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
    cache: MapCache,
    /// Given back by the kernel when the process ends, however it ends.
    _lock: Arc<Flock<File>>,
}

impl Files {
    /// Opens the directory, which only root may enter, and makes it where it is missing.
    ///
    /// # Errors
    /// [`AgentError::File`], or [`AgentError::Busy`] when another agent has it open.
    pub fn open(dir: &Path, cache: MapCache) -> Result<Self, AgentError> {
        let networks = dir.join("networks");
        DirBuilder::new().recursive(true).mode(0o700).create(&networks).map_err(at(&networks))?;
        Ok(Self { dir: dir.to_owned(), cache, _lock: Arc::new(lock(dir)?) })
    }

    /// The node's own identity, made on first use.
    ///
    /// # Errors
    /// [`AgentError::File`] or [`AgentError::Invalid`].
    pub fn identity(&self) -> Result<Identity, AgentError> {
        let path = self.dir.join("node.pem");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let text = zeroize::Zeroizing::new(text);
                Identity::from_pem(&text)
                    .map_err(|error| AgentError::Invalid(format!("{}: {error}", path.display())))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let identity =
                    Identity::generate().map_err(|error| AgentError::Invalid(error.to_string()))?;
                replace(&path, identity.to_pem().as_bytes(), true)?;
                Ok(identity)
            }
            Err(source) => Err(AgentError::File { path, source }),
        }
    }

    /// All memberships.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn memberships(&self) -> Result<Vec<Membership>, AgentError> {
        let dir = self.dir.join("networks");
        let mut all = Vec::new();
        for entry in fs::read_dir(&dir).map_err(at(&dir))? {
            let path = entry.map_err(at(&dir))?.path().join("membership.json");
            all.extend(read_json(&path)?);
        }
        Ok(all)
    }

    /// Keeps a membership. One that is there already is left alone, which a full disk cannot hinder.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn put_membership(&self, membership: &Membership) -> Result<(), AgentError> {
        let dir = self.network_dir(membership.network);
        let (path, content) = (dir.join("membership.json"), json(membership)?);
        if fs::read(&path).is_ok_and(|there| there == content) {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at(&dir))?;
        replace(&path, &content, true)
    }

    /// Forgets a network.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn remove_network(&self, network: NetworkId) -> Result<(), AgentError> {
        let dir = self.network_dir(network);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(&dir)(error)),
            _ => Ok(()),
        }
    }

    /// The attachments of a network.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn attachments(&self, network: NetworkId) -> Result<Vec<Attachment>, AgentError> {
        Ok(read_json(&self.network_dir(network).join("attachments.json"))?.unwrap_or_default())
    }

    /// Keeps the attachments of a network. Not forced to the disk: a namespace does not survive a power cut either.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn put_attachments(&self, network: NetworkId, attachments: &[&Attachment]) -> Result<(), AgentError> {
        replace(&self.network_dir(network).join("attachments.json"), &json(&attachments)?, false)
    }

    /// The containers that the controller has still to be told are gone.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn releases(&self, network: NetworkId) -> Result<BTreeSet<Name>, AgentError> {
        Ok(read_json(&self.network_dir(network).join("releases.json"))?.unwrap_or_default())
    }

    /// Keeps the containers that the controller has still to be told are gone.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn put_releases(&self, network: NetworkId, releases: &BTreeSet<Name>) -> Result<(), AgentError> {
        replace(&self.network_dir(network).join("releases.json"), &json(releases)?, false)
    }

    /// What is kept of a network's access points.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn access(&self, network: NetworkId) -> Result<Kept, AgentError> {
        Ok(read_json(&self.network_dir(network).join("access.json"))?.unwrap_or_default())
    }

    /// Keeps it, private keys included, for root alone: nobody else could make them again.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn put_access(&self, network: NetworkId, kept: &Kept) -> Result<(), AgentError> {
        let text = zeroize::Zeroizing::new(json(kept)?);
        replace(&self.network_dir(network).join("access.json"), &text, true)
    }

    /// Keeps a verified map, in place of the one before and of the deltas that led on from that.
    ///
    /// # Errors
    /// [`AgentError::File`]: the one before is kept; also when the map is larger than would be read again.
    pub fn put_map(&self, member: &Member) -> Result<(), AgentError> {
        let Some(head) = member.head().filter(|_| self.cache == MapCache::Disk) else { return Ok(()) };
        let records = member.map().records().map(|record| v1::Record::from(&record)).collect();
        let snapshot = v1::SnapshotPart { records, head: Some(head.into()) };
        let dir = self.network_dir(member.network());
        let path = dir.join("map");
        if u64::try_from(snapshot.encoded_len()).is_ok_and(|length| length > MAX_MAP_FILE) {
            return Err(at(&path)(std::io::ErrorKind::FileTooLarge.into()));
        }
        replace(&path, &snapshot.encode_to_vec(), true)?;
        // A crash before this leaves deltas that the map has already; those are passed over when it is loaded.
        let journal = dir.join("map.log");
        match OpenOptions::new().write(true).open(&journal).and_then(|file| file.set_len(0)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(&journal)(error)),
            _ => Ok(()),
        }
    }

    /// Keeps a verified delta beside the map from which it leads on. Returns how long the list of them is, in bytes: a
    /// change of a large map costs what the change does, until they are put together.
    ///
    /// # Errors
    /// [`AgentError::File`].
    pub fn append_delta(&self, network: NetworkId, delta: &v1::Delta) -> Result<u64, AgentError> {
        if self.cache == MapCache::Memory {
            return Ok(0);
        }
        let path = self.network_dir(network).join("map.log");
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            let before = file.metadata()?.len();
            if let Err(error) = file.write_all(&delta.encode_length_delimited_to_vec()) {
                // On a full disk a part of it may be there.
                let _ = file.set_len(before);
                return Err(error);
            }
            Ok(file.metadata()?.len())
        };
        append().map_err(at(&path))
    }

    /// Gives a member the last map that was kept, if that still verifies: signatures and digests are checked as if it
    /// came from the controller. Returns whether deltas were found beside it.
    ///
    /// Where maps are kept in memory alone, what an earlier agent left on disk is removed.
    ///
    /// What was verified under a key that signed heads before is used as well: that key is not believed any more when somebody
    /// else presents it, but this is the node's own file, and the map in it is the last that there was.
    pub fn load_map(&self, member: &mut Member, former: &[VerifyingKey]) -> bool {
        let present = *member.key();
        let torn = self.load_map_under(member, &[&[present], former].concat());
        member.believe(present);
        torn
    }

    fn load_map_under(&self, member: &mut Member, keys: &[VerifyingKey]) -> bool {
        let dir = self.network_dir(member.network());
        if self.cache == MapCache::Memory {
            // They may never have been there.
            let _ = (fs::remove_file(dir.join("map")), fs::remove_file(dir.join("map.log")));
            return false;
        }
        if let Some(Err(error)) =
            read_bounded(&dir.join("map")).map(|bytes| apply_snapshot(member, &bytes, keys))
        {
            tracing::warn!(dir = %dir.display(), %error, "the map on disk is not used; waiting for the controller's");
        }
        let Some(journal) = read_bounded(&dir.join("map.log")).filter(|journal| !journal.is_empty()) else {
            return false;
        };
        if let Err(error) = apply_deltas(member, &journal, keys) {
            let revision = member.revision();
            tracing::warn!(dir = %dir.display(), %revision, %error, "the end of the map on disk is not used");
        }
        true
    }

    fn network_dir(&self, network: NetworkId) -> PathBuf {
        self.dir.join("networks").join(network.to_string())
    }
}

/// The content of a file, if there is one and it is not larger than any map.
fn read_bounded(path: &Path) -> Option<Vec<u8>> {
    let small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= MAX_MAP_FILE);
    if small { fs::read(path).ok() } else { None }
}

/// Has a member believe that of these keys which signed a head, if it is not the one that it believes already.
fn believe_signer(member: &mut Member, head: &SignedHead, keys: &[VerifyingKey]) {
    let [_, _, ..] = keys else { return };
    if !head.verifies(member.key())
        && let Some(key) = keys.iter().find(|key| head.verifies(key))
    {
        member.believe(*key);
    }
}

fn apply_snapshot(member: &mut Member, bytes: &[u8], keys: &[VerifyingKey]) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let snapshot = v1::SnapshotPart::decode(bytes).map_err(|error| text(&error))?;
    let head =
        SignedHead::try_from(snapshot.head.as_ref().ok_or("no head")?).map_err(|error| text(&error))?;
    let records: Result<Vec<Record>, _> = snapshot.records.iter().map(Record::try_from).collect();
    let records = records.map_err(|error| text(&error))?;
    believe_signer(member, &head, keys);
    member.apply_snapshot(records, &head).map(drop).map_err(|error| text(&error))
}

/// Applies deltas one after the other, as far as they are whole and verify.
fn apply_deltas(member: &mut Member, mut journal: &[u8], keys: &[VerifyingKey]) -> Result<(), String> {
    while !journal.is_empty() {
        let wire = v1::Delta::decode_length_delimited(&mut journal).map_err(|error| error.to_string())?;
        let (delta, head) = delta_from_wire(&wire).map_err(|error| error.to_string())?;
        believe_signer(member, &head, keys);
        match member.apply_delta(&delta, &head) {
            // The map was put together with it, and the crash came before the list was emptied.
            Ok(()) | Err(Refusal::Older { .. }) => {}
            Err(refusal) => return Err(refusal.to_string()),
        }
    }
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError::File { path, source }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, AgentError> {
    serde_json::to_vec_pretty(value).map_err(|error| AgentError::Invalid(error.to_string()))
}

/// Takes the directory for this process, or says which one has it.
fn lock(dir: &Path) -> Result<Flock<File>, AgentError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    match Flock::lock(file.map_err(at(&path))?, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            // Only for whoever is kept out to be told; a full disk keeps nobody from starting.
            let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            Ok(file)
        }
        Err((mut file, nix::Error::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.rewind().and_then(|()| file.read_to_string(&mut pid));
            Err(AgentError::Busy { dir: dir.to_owned(), pid: pid.trim().to_owned() })
        }
        Err((_, error)) => Err(at(&path)(error.into())),
    }
}

/// Reads a file; one that is missing or damaged is `None`, and the damaged one is put aside.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, AgentError> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)
            .map_err(|error| {
                let aside = path.with_extension("damaged");
                tracing::error!(path = %path.display(), %error, aside = %aside.display(), "a damaged file is put aside");
                let _ = fs::rename(path, &aside);
            })
            .ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AgentError::File { path: path.to_owned(), source }),
    }
}

fn replace(path: &Path, bytes: &[u8], durable: bool) -> Result<(), AgentError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&new, path)
    };
    write().map_err(|error| {
        // What is there of it would only fill the disk.
        let _ = fs::remove_file(&new);
        at(path)(error)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use znet_api::convert::delta_to_wire;
    use znet_core::id::{Epoch, NodeId};
    use znet_core::key::SigningKey;
    use znet_core::map::{Change, Delta, Head, Map, NodeRecord};

    use super::*;

    const NETWORK: NetworkId = NetworkId::from_bytes([1; 16]);

    fn key() -> SigningKey {
        SigningKey::from_seed(&[7; 32])
    }

    fn node(number: u8) -> Record {
        let name = format!("n{number}").parse().unwrap();
        Record::Node(NodeRecord { id: NodeId::from_bytes([number; 32]), name, endpoints: vec![] })
    }

    /// The map of a revision has as many nodes.
    fn head(revision: u8) -> SignedHead {
        let map: Map = (1..=revision).map(node).collect();
        let digest = map.set_hash(NETWORK).digest();
        let revision = Revision::new(revision.into());
        Head { network: NETWORK, epoch: Epoch::default(), revision, digest }.sign(&key())
    }

    fn delta(to: u8) -> v1::Delta {
        let changes = vec![Change::Put(node(to))];
        let (from, to_revision) = (Revision::new(u64::from(to) - 1), Revision::new(to.into()));
        delta_to_wire(&Delta { from, to: to_revision, changes }, &head(to))
    }

    fn files() -> (tempfile::TempDir, Files) {
        let dir = tempfile::Builder::new().prefix("zt-files-").tempdir().unwrap();
        let files = Files::open(dir.path(), MapCache::Disk).unwrap();
        fs::create_dir(files.network_dir(NETWORK)).unwrap();
        let mut member = Member::new(NETWORK, key().verifying_key());
        member.apply_snapshot([node(1)], &head(1)).unwrap();
        files.put_map(&member).unwrap();
        (dir, files)
    }

    fn loaded(files: &Files) -> Member {
        let mut member = Member::new(NETWORK, key().verifying_key());
        files.load_map(&mut member, &[]);
        member
    }

    #[test]
    fn deltas_lead_on_from_the_map_and_a_torn_one_at_the_end_is_left_out() {
        let (_dir, files) = files();
        files.append_delta(NETWORK, &delta(2)).unwrap();
        let whole = files.append_delta(NETWORK, &delta(3)).unwrap();
        assert_eq!(loaded(&files).revision(), Revision::new(3));
        let journal = files.network_dir(NETWORK).join("map.log");
        OpenOptions::new().write(true).open(journal).unwrap().set_len(whole - 3).unwrap();
        let member = loaded(&files);
        assert_eq!(member.revision(), Revision::new(2));
        files.put_map(&member).unwrap();
        files.append_delta(NETWORK, &delta(3)).unwrap();
        assert_eq!(loaded(&files).revision(), Revision::new(3));
    }

    #[test]
    fn deltas_that_the_map_has_already_are_passed_over() {
        let (_dir, files) = files();
        files.append_delta(NETWORK, &delta(2)).unwrap();
        let journal = fs::read(files.network_dir(NETWORK).join("map.log")).unwrap();
        files.put_map(&loaded(&files)).unwrap();
        // The crash came after the map was written and before the list was emptied.
        fs::write(files.network_dir(NETWORK).join("map.log"), journal).unwrap();
        files.append_delta(NETWORK, &delta(3)).unwrap();
        assert_eq!(loaded(&files).revision(), Revision::new(3));
    }

    #[test]
    fn what_was_verified_under_an_earlier_key_is_used_and_the_present_one_is_believed() {
        let (_dir, files) = files();
        let new = SigningKey::from_seed(&[8; 32]);
        let mut wire = delta(2);
        wire.head = Some((&head(2).head.sign(&new)).into());
        files.append_delta(NETWORK, &wire).unwrap();
        let load = |former: &[VerifyingKey]| {
            let mut member = Member::new(NETWORK, new.verifying_key());
            files.load_map(&mut member, former);
            (member.revision().get(), *member.key() == new.verifying_key())
        };
        assert_eq!(load(&[key().verifying_key()]), (2, true));
        assert_eq!(load(&[]), (0, true));
        assert_eq!(load(&[SigningKey::from_seed(&[9; 32]).verifying_key()]), (0, true));
    }

    #[test]
    fn a_map_that_somebody_changed_on_disk_is_not_believed() {
        let (_dir, files) = files();
        let path = files.network_dir(NETWORK).join("map");
        let mut bytes = fs::read(&path).unwrap();
        for byte in &mut bytes {
            *byte ^= u8::from(*byte == b'1');
        }
        fs::write(&path, bytes).unwrap();
        assert_eq!(loaded(&files).revision(), Revision::ZERO);
    }

    #[test]
    fn a_map_file_that_is_larger_than_any_map_is_not_read() {
        let (_dir, files) = files();
        let path = files.network_dir(NETWORK).join("map");
        let whole = fs::read(&path).unwrap();
        // Trailing zeroes alone would be an error of their own, so the size is what counts.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(MAX_MAP_FILE + 1).unwrap();
        assert!(read_bounded(&path).is_none());
        assert_eq!(loaded(&files).revision(), Revision::ZERO);
        fs::write(&path, whole).unwrap();
        assert_eq!(loaded(&files).revision(), Revision::new(1));
    }

    #[test]
    fn in_memory_alone_nothing_is_written_and_what_is_there_is_removed() {
        let (dir, files) = files();
        files.append_delta(NETWORK, &delta(2)).unwrap();
        let member = loaded(&files);
        drop(files);
        let files = Files::open(dir.path(), MapCache::Memory).unwrap();
        assert_eq!(loaded(&files).revision(), Revision::ZERO);
        files.put_map(&member).unwrap();
        assert_eq!(files.append_delta(NETWORK, &delta(3)).unwrap(), 0);
        let left = fs::read_dir(files.network_dir(NETWORK)).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn attachments_of_an_older_agent_have_no_owner_and_owners_survive() {
        let (_dir, files) = files();
        let old = r#"[{"container":7,"name":"web","netns":"/run/netns/web","netns_id":{"device":4,"inode":9},
            "ifname":"znet0","revision":3,"device":"zn1","addresses":["fd00::7"]}]"#;
        fs::write(files.network_dir(NETWORK).join("attachments.json"), old).unwrap();
        let mut attachment = files.attachments(NETWORK).unwrap().pop().unwrap();
        assert_eq!(attachment.owner, None);
        let text = |text: &str| text.to_owned();
        let (container, interface) = (text("c1"), text("eth0"));
        attachment.owner = Some(Owner { kind: text("cni"), network: text("znet"), container, interface });
        files.put_attachments(NETWORK, &[&attachment]).unwrap();
        assert_eq!(files.attachments(NETWORK).unwrap(), [attachment]);
    }

    #[test]
    fn a_damaged_list_of_attachments_is_put_aside_and_keeps_nobody_from_starting() {
        let (_dir, files) = files();
        let path = files.network_dir(NETWORK).join("attachments.json");
        fs::write(&path, "[{").unwrap();
        assert!(files.attachments(NETWORK).unwrap().is_empty());
        assert!(path.with_extension("damaged").exists());
    }
}
