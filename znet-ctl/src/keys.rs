//! The data directory: its lock and its keys.
//!
//! ```text
//! DATA_DIR/            0700
//!   lock               flock(2); holds the number of the process that has it
//!   tls.pem            0600  the keys that join tokens and maps pin
//!   znet.db            0600  everything else (see the store)
//!   networks/ID.key    0600  the seed with which a network signs its heads; two lines while one takes the place of another
//!   store.key          0600  where the store is one that several controllers share: opens their keys in it
//! ```
//!
//! Keys are not in the store: a copy of its file opens nothing. Each is on the disk before anything that needs it. A shared
//! store holds them sealed (see [`crate::keyring`]), and there are neither `tls.pem` nor `networks/` then.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{Flock, FlockArg};
use zeroize::Zeroizing;
use znet_api::tls::Identity;
use znet_core::id::NetworkId;
use znet_core::key::SigningKey;

use crate::identities::Identities;
use crate::store::StoreError;

const LOCK: &str = "lock";
pub(crate) const TLS: &str = "tls.pem";
const STORE: &str = "znet.db";
const NETWORKS: &str = "networks";
/// Largest key file that is read.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// What can go wrong with the data directory.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Another controller has it.
    #[error(
        "{} is in use by another controller (process {pid}); stop that one first, or choose another --data-dir",
        path.display()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process, as it wrote into the lock file.
        pid: String,
    },
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// A key file holds no key.
    #[error("{} holds no usable key ({why}); restore a backup with `znet-ctl restore`", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The store in which keys are sealed failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is sealed in the store cannot be opened.
    #[error(
        "{} does not open the keys in the store ({why}); copy store.key from a controller that serves it",
        path.display()
    )]
    StoreKey {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A network's key is not there.
    #[error("the signing key of network {network} is missing ({}); restore a backup with `znet-ctl restore`", path.display())]
    Missing {
        /// The network.
        network: NetworkId,
        /// Where it should be.
        path: PathBuf,
    },
}

/// A data directory that this process holds; the lock goes with the value.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes the directory where there is none, and takes its lock.
    ///
    /// # Errors
    /// [`KeysError::InUse`] when another process has it, or [`KeysError::Io`].
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        make_directory(path)?;
        make_directory(&path.join(NETWORKS))?;
        let file = path.join(LOCK);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(io(&file))?;
        let mut lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut held, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = std::io::Read::by_ref(&mut held).take(32).read_to_string(&mut pid);
                let pid = if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
                return Err(KeysError::InUse { path: path.to_owned(), pid });
            }
            Err((_, errno)) => return Err(io(&file)(errno.into())),
        };
        lock.set_len(0).map_err(io(&file))?;
        writeln!(lock, "{}", std::process::id()).map_err(io(&file))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store's file.
    pub fn store_file(&self) -> PathBuf {
        store_file(&self.path)
    }

    /// The controller's TLS keys; the first is made at the first call ever.
    ///
    /// # Errors
    /// [`KeysError`]: the file cannot be read, written or understood.
    pub fn identities(&self) -> Result<Identities, KeysError> {
        let file = self.path.join(TLS);
        match read(&file)? {
            Some(pem) => Identities::from_text(&pem)
                .map_err(|error| KeysError::Unusable { path: file, why: error.to_string() }),
            None => {
                let identity = Identity::generate()
                    .map_err(|error| KeysError::Unusable { path: file.clone(), why: error.to_string() })?;
                write(&file, identity.to_pem().as_bytes())?;
                Ok(identity.into())
            }
        }
    }

    /// Replaces the TLS keys. When it returns they are durable.
    ///
    /// # Errors
    /// [`KeysError::Io`].
    pub fn write_identities(&self, identities: &Identities) -> Result<(), KeysError> {
        write(&self.path.join(TLS), identities.to_text().as_bytes())
    }

    /// Puts a network's signing keys on the disk, in the place of those that are there. When it returns they are durable.
    ///
    /// # Errors
    /// [`KeysError::Io`].
    pub fn write_network_keys(&self, network: NetworkId, keys: &[SigningKey]) -> Result<(), KeysError> {
        let mut text = Zeroizing::new(String::new());
        for key in keys {
            STANDARD.encode_string(key.to_seed().as_slice(), &mut text);
            text.push('\n');
        }
        write(&network_key_file(&self.path, network), text.as_bytes())
    }

    /// A network's signing keys, in the order in which they were made.
    ///
    /// # Errors
    /// [`KeysError::Missing`], [`KeysError::Unusable`] or [`KeysError::Io`].
    pub fn network_keys(&self, network: NetworkId) -> Result<Vec<SigningKey>, KeysError> {
        let path = network_key_file(&self.path, network);
        let text = read(&path)?.ok_or_else(|| KeysError::Missing { network, path: path.clone() })?;
        let unusable = |why: &str| KeysError::Unusable { path: path.clone(), why: why.to_owned() };
        let read = |line: &str| {
            let bytes = Zeroizing::new(STANDARD.decode(line).map_err(|_| unusable("not base64"))?);
            let seed: [u8; 32] = bytes.as_slice().try_into().map_err(|_| unusable("not 32 bytes"))?;
            Ok(SigningKey::from_seed(&Zeroizing::new(seed)))
        };
        let keys = text.split_whitespace().map(read).collect::<Result<Vec<_>, KeysError>>()?;
        if keys.is_empty() { Err(unusable("it is empty")) } else { Ok(keys) }
    }

    /// Removes the signing key of a network that is gone.
    ///
    /// # Errors
    /// [`KeysError::Io`].
    pub fn remove_network_key(&self, network: NetworkId) -> Result<(), KeysError> {
        let path = network_key_file(&self.path, network);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(&path)(error)),
            _ => Ok(()),
        }
    }
}

/// Where the store is in a data directory.
pub(crate) fn store_file(data_dir: &Path) -> PathBuf {
    data_dir.join(STORE)
}

/// The key files of a data directory: the name under it, and the content.
pub(crate) fn key_files(
    data_dir: &Path,
    networks: &[NetworkId],
) -> Result<Vec<(String, Zeroizing<String>)>, KeysError> {
    let names = networks.iter().map(|network| format!("{NETWORKS}/{network}.key"));
    std::iter::once(TLS.to_owned())
        .chain(names)
        .map(|name| {
            let path = data_dir.join(&name);
            let missing = || io(&path)(std::io::ErrorKind::NotFound.into());
            Ok((name, read(&path)?.ok_or_else(missing)?))
        })
        .collect()
}

/// Puts a key file back under the name that [`key_files`] gave; `false` when no key file has such a name.
pub(crate) fn restore_key_file(data_dir: &Path, name: &str, content: &str) -> Result<bool, KeysError> {
    let network = name
        .strip_prefix(NETWORKS)
        .and_then(|rest| rest.strip_prefix('/'))
        .and_then(|rest| rest.strip_suffix(".key"))
        .and_then(|id| id.parse::<NetworkId>().ok());
    let path = match network {
        Some(network) => network_key_file(data_dir, network),
        None if name == TLS => data_dir.join(TLS),
        None => return Ok(false),
    };
    write(&path, content.as_bytes())?;
    Ok(true)
}

fn network_key_file(data_dir: &Path, network: NetworkId) -> PathBuf {
    data_dir.join(NETWORKS).join(format!("{network}.key"))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> KeysError {
    let path = path.to_owned();
    move |source| KeysError::Io { path, source }
}

/// Makes a directory that its owner alone may enter.
fn make_directory(path: &Path) -> Result<(), KeysError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io(path))?;
    let mode = fs::metadata(path).map_err(io(path))?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io(path))?;
    }
    Ok(())
}

pub(crate) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, KeysError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(path)(error)),
    };
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_KEY_FILE).read_to_string(&mut text).map_err(io(path))?;
    Ok(Some(text))
}

/// Writes a file of mode 0600 so that it is there whole or not at all, flushed to the disk with its name.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), KeysError> {
    let part = path.with_extension("part");
    let _ = fs::remove_file(&part);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part).map_err(io(&part))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io(&part))?;
    fs::rename(&part, path).map_err(io(path))?;
    let directory = path.parent().unwrap_or(path);
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io(directory))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("zt-").tempdir().unwrap()
    }

    #[test]
    fn a_second_holder_is_refused_and_told_who_the_first_is() {
        let dir = directory();
        let first = DataDir::open(dir.path()).unwrap();
        match DataDir::open(dir.path()) {
            Err(error @ KeysError::InUse { .. }) => {
                let text = error.to_string();
                assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn keys_come_back_and_nobody_else_may_read_them() {
        let dir = directory();
        let data = DataDir::open(dir.path()).unwrap();
        let pin = data.identities().unwrap().pins().unwrap();
        assert_eq!(data.identities().unwrap().pins().unwrap(), pin);
        let (network, other) = (NetworkId::from_bytes([1; 16]), NetworkId::from_bytes([2; 16]));
        let key = SigningKey::from_seed(&[5; 32]);
        data.write_network_keys(network, std::slice::from_ref(&key)).unwrap();
        assert_eq!(data.network_keys(network).unwrap().first().unwrap().verifying_key(), key.verifying_key());
        assert!(matches!(data.network_keys(other), Err(KeysError::Missing { .. })));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(dir.path()), 0o700);
        assert_eq!(mode(&dir.path().join(TLS)), 0o600);
        assert_eq!(mode(&network_key_file(dir.path(), network)), 0o600);
        data.remove_network_key(network).unwrap();
        data.remove_network_key(network).unwrap();
        assert!(matches!(data.network_keys(network), Err(KeysError::Missing { .. })));
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let dir = directory();
        let data = DataDir::open(dir.path()).unwrap();
        data.identities().unwrap();
        fs::write(dir.path().join(TLS), "garbage").unwrap();
        assert!(matches!(data.identities(), Err(KeysError::Unusable { .. })));
        let network = NetworkId::from_bytes([1; 16]);
        fs::write(network_key_file(dir.path(), network), "AAAA").unwrap();
        assert!(matches!(data.network_keys(network), Err(KeysError::Unusable { .. })));
    }
}
